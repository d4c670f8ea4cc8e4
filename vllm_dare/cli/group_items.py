"""`vllm-dare group items`: groups of items by an attribute."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_dare.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_dare.routing.attribute import ItemGroups

_SHOWN = 20  # groups in the table, and items in a message
_WIDTH = 120  # of a table that goes to a file


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
    json_file: options.JsonFile = None,
) -> None:
    """Put items into groups by an attribute.

    Writes assignments.parquet (item, group), a router that finds the group of new items by their values, and
    report.json; give the directory to `pool build --assignments` or `replay --assignments`.
    """
    from vllm_dare.generation.paths import check_report_file, report_errors
    from vllm_dare.pool.files import replace_text
    from vllm_dare.routing.attribute import group_items
    from vllm_dare.routing.grouping_output import check_grouping_output
    from vllm_dare.routing.item_values import read_item_values
    from vllm_dare.routing.value_map import read_value_map

    inputs = (table, *([value_map] if value_map is not None else ()))
    check_grouping_output(output, overwrite, inputs)
    if json_file is not None:
        check_report_file("--json", json_file, (output, *inputs))
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
        "groups": _rows(groups),
        "merged_values": list(groups.merged),
        "items_without_values": list(groups.without),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    _write(output, groups, attribute, several, text)
    _print(output, groups, report)
    if json_file is not None:
        with report_errors("--json", json_file):
            replace_text(json_file, text)


def _rows(groups: "ItemGroups") -> list[dict[str, Any]]:
    """The groups with their values, the biggest first."""
    values: dict[str, list[str]] = {}
    for value, group in sorted(groups.values.items()):
        values.setdefault(group, []).append(value)
    return [
        {"group": group, "items": size, "values": values.get(group, [])}
        for group, size in groups.sizes.items()
    ]


def _write(output: Path, groups: "ItemGroups", attribute: str, several: Several, report: str) -> None:
    import numpy as np

    from vllm_dare.pool.files import replace_text
    from vllm_dare.routing.grouping_output import REPORT_NAME, staged_directory, write_assignment_table
    from vllm_dare.routing.router_file import write_item_router

    names = list(dict.fromkeys([*groups.sizes, *groups.values.values()]))
    place = {name: number for number, name in enumerate(names)}
    places = np.array([place[group] for group in groups.group_of.values()], np.int32)
    with staged_directory(output) as directory:
        write_assignment_table(directory, "item", list(groups.group_of), places, names)
        write_item_router(
            directory,
            groups=names,
            attribute=attribute,
            values=groups.values,
            ranks=groups.ranks,
            rule=several.value,
        )
        replace_text(directory / REPORT_NAME, report)


def _print(output: Path, groups: "ItemGroups", report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("group", "items", "values", title=escape(f"groups by {report['attribute']}"))
    rows, rest = report["groups"][:_SHOWN], report["groups"][_SHOWN:]
    for row in rows:
        table.add_row(escape(row["group"]), f"{row['items']:,}", escape(_listed(row["values"])))
    if rest:
        table.add_row(f"… {len(rest):,} more", f"{sum(row['items'] for row in rest):,}", "")
    lines = []
    if groups.merged:
        lines.append(
            f"{len(groups.merged):,} values have no group of at least {report['min_size']:,} items: "
            f"{_listed(groups.merged)}."
        )
    if groups.without:
        lines.append(
            f"{len(groups.without):,} items without {report['attribute']} are in no group: "
            f"{_listed(groups.without)}."
        )
    num_grouped, num_groups = len(groups.group_of), len(groups.sizes)
    lines.append(
        f"Wrote {num_groups:,} groups of {num_grouped:,} of {report['num_items']:,} items to {output}."
    )
    out = Console(width=None if sys.stdout.isatty() else _WIDTH)
    out.print(table)
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _listed(texts: "Sequence[str]") -> str:
    return ", ".join(texts[:_SHOWN]) + (", …" if len(texts) > _SHOWN else "")
