from pathlib import Path

import pytest

from vllm_dare.errors import DareError
from vllm_dare.routing.value_map import read_value_map


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "map.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_values_and_groups_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "# crime\nFilm-Noir: crime\n'No': 1\n1999: nineties\n\"Children's\": kids\n")
    assert read_value_map(path, ["1999", "No"]) == {
        "Film-Noir": "crime",
        "No": "1",
        "1999": "nineties",
        "Children's": "kids",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not a mapping; write lines"),
        ("{}", "is not a mapping"),
        ("- a\n- b\n", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("a: [b, c]\n", r"the group \['b', 'c'\], which is not a text"),
        ("a: {b: c}\n", "the group {'b': 'c'}, which is not a text"),
        ("a:\n", "the group None"),
        ("a: 1.5\n", "the group 1.5"),
        ("No: b\n", "the value False, which is not a text; put it in quotes"),
        ("a: x\nb: y\na: z\n", r"map.yaml:3 has 'a', which is there twice"),
        ("a: b: c\n", r"map.yaml:1 is not valid YAML"),
        ("a: x\n\tb: y\n", r"map.yaml:2 is not valid YAML"),
        ("a: !!python/object:os.system x\n", r"map.yaml:1 is not valid YAML"),
        ("? [a]\n: b\n", r"map.yaml.* is not valid YAML"),
        ("[" * 5000, r"map.yaml.* is not valid YAML"),
        (b"\xff\xfe\xff", "is not valid UTF-8"),
        ("b: x\n", "has no group for a; add a line"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(DareError, match=reason) as caught:
        read_value_map(write(tmp_path, content), ["a"])
    assert "\n" not in str(caught.value)


def test_missing_values_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "x: y\n")
    with pytest.raises(DareError, match=r"has no group for v0, v1, v2, v3, v4, … \(9 in all\)"):
        read_value_map(path, [f"v{number}" for number in range(9)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DareError, match=r"Cannot read .*No such file"):
        read_value_map(tmp_path / "map.yaml", [])
