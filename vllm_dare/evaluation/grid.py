"""Tables that stay whole on a narrow terminal: the columns that do not fit make a second table below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_ENDLESS = 10**6  # columns of a terminal on which any table fits


@dataclass(frozen=True)
class Grid:
    """A table to be.

    Attributes:
        title: what stands above it.
        headings: of all columns.
        rows: the cells of each row.
        num_names: so many columns on the left say which row it is: every table of the stack has them.
        left: the columns that are not numbers.
        sections: the rows after which a line is drawn.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int = 1
    left: Sequence[int] = (0,)
    sections: Sequence[int] = ()


def stacked(grid: Grid, width: int) -> list[Table]:
    """The tables that show ``grid`` in ``width`` columns, each as wide as fits."""
    if _width(_table(grid, range(len(grid.headings)))) > width:
        grid = _narrowed(grid)
    return [
        _table(replace(grid, title=f"{grid.title} (continued)") if number else grid, columns)
        for number, columns in enumerate(_parts(grid, width))
    ]


def markdown_table(grid: Grid) -> str:
    """The table in Markdown."""
    lines = [list(grid.headings)]
    lines.append(["---" if i in grid.left else "---:" for i in range(len(grid.headings))])
    lines += [[cell.replace("|", "\\|") for cell in row] for row in grid.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _narrowed(grid: Grid) -> Grid:
    """Each word of a heading, and what a name has in brackets, goes to a line of its own."""
    count = grid.num_names
    return replace(
        grid,
        headings=[heading.replace(" ", "\n") for heading in grid.headings],
        rows=[[*(name.replace(" (", "\n(") for name in row[:count]), *row[count:]] for row in grid.rows],
    )


def _parts(grid: Grid, width: int) -> Iterator[list[int]]:
    """The columns of each table."""
    names = list(range(grid.num_names))
    columns = list(names)
    for column in range(grid.num_names, len(grid.headings)):
        if len(columns) > len(names) and _width(_table(grid, [*columns, column])) > width:
            yield columns
            columns = list(names)
        columns.append(column)
    yield columns


def _table(grid: Grid, columns: Sequence[int]) -> Table:
    table = Table(title=grid.title, title_justify="left")
    for column in columns:
        table.add_column(
            escape(grid.headings[column]),
            justify="left" if column in grid.left else "right",
            no_wrap=column >= grid.num_names,  # only names go on in a second line, if all else is too wide
            overflow="fold",
        )
    for i, row in enumerate(grid.rows):
        table.add_row(*(escape(row[column]) for column in columns), end_section=i in grid.sections)
    return table


def _width(table: Table) -> int:
    return Console(width=_ENDLESS).measure(table).maximum
