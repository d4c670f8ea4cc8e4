"""`vllm-dare group items`: groups of items by an attribute."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_dare.routing.attribute import ItemGroups

_SHOWN = 20  # groups in the table, and items in a message


class Several(StrEnum):
    """The choices of --several."""

    first = "first"
    rarest = "rarest"
    largest = "largest"


def items(
    table: Annotated[
        Path, typer.Argument(metavar="ITEMS", help="Item table: .csv, .jsonl (also with .gz) or .parquet.")
    ],
    *,
    attribute: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="The column to group by, such as genres: one value, several separated by |, or a list.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The directory to write.")],
    item_id_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of ids, if not named so.")
    ] = None,
    value_map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE",
            help="YAML lines `value: group`, one for each value; without it each value is a group.",
        ),
    ] = None,
    several: Annotated[
        Several,
        typer.Option(
            help="Where an item with several values goes: to the group of the first, or to the one that "
            "the fewest (rarest) or the most items (largest) could go to."
        ),
    ] = Several.largest,
    min_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Groups of fewer items are given up: their items go to the next group that fits, or to "
            "the group `other`.",
        ),
    ] = 50,
    prefix: Annotated[str, typer.Option(help="What the groups' names begin with.")] = "items/",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing directory.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Put items into groups by an attribute.

    Writes assignments.parquet (item, group), a router that finds the group of new items by their values, and
    report.json; give the directory to `pool build --assignments` or `replay --assignments`.
    """
    from vllm_dare.routing.attribute import group_items
    from vllm_dare.routing.group_directory import check_output, staged, write_report, write_table
    from vllm_dare.routing.item_values import read_item_values
    from vllm_dare.routing.router_file import write_item_router
    from vllm_dare.routing.value_map import read_value_map

    check_output(output, overwrite)
    found = read_item_values(table, attribute, item_id_column)
    values = {value for item in found for value in item.values}
    groups = group_items(
        found,
        rule=several.value,
        min_size=min_size,
        prefix=prefix,
        value_map=None if value_map is None else read_value_map(value_map, values),
    )
    report = {
        "table": str(table),
        "attribute": attribute,
        "map": None if value_map is None else str(value_map),
        "several": several.value,
        "min_size": min_size,
        "num_items": len(found),
        "groups": [
            {
                "group": group,
                "items": size,
                "values": sorted(v for v, g in groups.values.items() if g == group),
            }
            for group, size in groups.sizes.items()
        ],
        "merged_values": list(groups.merged),
        "items_without_values": list(groups.without),
    }
    with staged(output) as directory:
        write_table(directory, "item", list(groups.group_of), list(groups.group_of.values()))
        write_item_router(
            directory,
            groups=list(dict.fromkeys([*groups.sizes, *groups.values.values()])),
            attribute=attribute,
            values=groups.values,
            ranks=groups.ranks,
            rule=several.value,
        )
        write_report(directory, report)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(output, groups, report)


def _print(output: Path, groups: "ItemGroups", report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table("group", "items", "values", title=escape(f"groups by {report['attribute']}"))
    for row in report["groups"][:_SHOWN]:
        shown.add_row(escape(row["group"]), f"{row['items']:,}", escape(_listed(row["values"])))
    if len(report["groups"]) > _SHOWN:
        rest = report["groups"][_SHOWN:]
        shown.add_row(f"… {len(rest):,} more", f"{sum(row['items'] for row in rest):,}", "")
    Console().print(shown)
    typer.echo(
        f"Wrote {output}: {len(groups.group_of):,} of {report['num_items']:,} items in {len(groups.sizes):,} "
        "groups."
    )
    if groups.merged:
        typer.echo(
            f"{len(groups.merged):,} values have no group of at least {report['min_size']:,} items: "
            f"{_listed(groups.merged)}."
        )
    if groups.without:
        typer.echo(
            f"{len(groups.without):,} items without {report['attribute']} are in no group: "
            f"{_listed(groups.without)}."
        )


def _listed(texts: "Sequence[str]") -> str:
    return ", ".join(texts[:_SHOWN]) + (", …" if len(texts) > _SHOWN else "")
