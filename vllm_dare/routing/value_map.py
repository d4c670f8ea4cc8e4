"""A YAML file that says which group each value of an attribute goes to."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError
from vllm_dare.extras import need

_NAMED = 5  # missing values that a message names


def read_value_map(path: Path, values: Collection[str]) -> dict[str, str]:
    """Read the map, such as ``{Film-Noir: crime, Thriller: crime, 1999: nineties}``.

    Args:
        path: a YAML mapping of texts (or whole numbers) to names of groups.
        values: those that items have; the map must have each, and may have more.

    Returns:
        Value to group, as written.

    Raises:
        DareError: the file cannot be read, is no such mapping, has a value twice, or lacks one.
    """
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise DareError(f"{path} is not a mapping; write lines of the form `value: group`.")
    groups = {_text(path, "the value", value): _text(path, "the group", g) for value, g in content.items()}
    missing = sorted(set(values) - groups.keys())
    if missing:
        named = ", ".join(missing[:_NAMED]) + (
            f", … ({len(missing)} in all)" if len(missing) > _NAMED else ""
        )
        raise DareError(f"{path} has no group for {named}; add a line for each.")
    return groups


def _load(path: Path) -> Any:
    yaml = need("yaml", "PyYAML", "'vllm-dare[groups]'")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
        """Refuses a key that is there twice, which YAML otherwise takes the last of."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                value = self.construct_object(key, deep=True)
                if value in seen:
                    line = key.start_mark.line + 1
                    raise DareError(f"{path}:{line} has {value!r}, which is there twice; leave out one.")
                seen.add(value)
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(path.read_text("utf-8"), Loader)
    except DareError:
        raise
    except OSError as error:
        raise DareError(f"Cannot read {path} ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise DareError(f"{path} is not valid UTF-8; save it as UTF-8.") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        reason = getattr(error, "problem", None) or "it is nested in a way that cannot be read"
        raise DareError(
            f"{place} is not valid YAML ({reason}); write lines of the form `value: group`."
        ) from None


def _text(path: Path, what: str, value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    raise DareError(f"{path} has {what} {value!r}, which is not a text; put it in quotes.")
