"""Tables on terminals of any width: every name and every figure is there, whole."""

from io import StringIO

import pytest
from rich.console import Console

from vllm_dare.evaluation.grid import Grid, stacked

NAMES = ["dare own+group+global (groups of the documents)", "arctic, the best [setting] found"]
GRID = Grid(
    "What drafts are worth",
    ["drafter", "draft", *(f"figure number {i}" for i in range(6))],
    [[name, "16", *(f"{row}{i},234,567.890" for i in range(6))] for row, name in enumerate(NAMES)],
    num_names=2,
)


def printed(width: int) -> list[str]:
    """The lines of each table."""
    console = Console(width=width, file=StringIO())
    for table in stacked(GRID, width):
        console.print(table)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_figure_is_there_once_and_whole(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for row in GRID.rows:
        assert all(text.count(figure) == 1 for figure in row[2:])


@pytest.mark.parametrize("width", [80, 120])
def test_every_table_of_a_stack_has_the_names(width: int) -> None:
    text = "\n".join(printed(width))
    number = len(stacked(GRID, width))
    assert number > 1
    for part in ("dare own+group+global", "(groups of the documents)", "arctic, the best [setting] found"):
        assert text.count(part) == number
    assert text.count("(continued)") == number - 1


def test_what_fits_is_one_table_with_plain_headings() -> None:
    (table,) = stacked(GRID, 200)
    assert [column.header for column in table.columns] == GRID.headings


def test_a_name_that_is_too_long_goes_on_below() -> None:
    grid = Grid("", ["name", "figure"], [["a name of many words " * 5, "1,234.5"]])
    console = Console(width=40, file=StringIO())
    for table in stacked(grid, 40):
        console.print(table)
    text = console.file.getvalue()
    assert "1,234.5" in text and text.count("words") == 5
