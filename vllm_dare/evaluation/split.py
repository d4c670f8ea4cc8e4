"""Which documents are the pool's and which are held out."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dare.errors import DareError

_TRAIN, _TEST = "train_", "test_"
# Of the documents that a split names so many must be there: with fewer it is another corpus's split.
_LEAST_SHARE = 0.5
# If the second-best pair fits nearly as well as the best, nobody can tell which is meant.
_TOO_CLOSE = 0.9


@dataclass(frozen=True)
class Split:
    """Two lists of document ids, each in the file's order.

    Attributes:
        train_key, test_key: what the file calls the lists.
        train, test: the ids that the corpus has.
        num_missing: how many ids of the lists have no document.
    """

    train_key: str
    test_key: str
    train: list[str]
    test: list[str]
    num_missing: int


def read_split(
    path: Path, ids: Collection[str], train_key: str | None = None, test_key: str | None = None
) -> Split:
    """Choose the two lists of a split file and look up their ids in the corpus.

    Args:
        path: a JSON object of lists of ids, such as ``{"train_users": [3, 4], "test_users": [10]}``.
        ids: the ids of the corpus's documents.
        train_key, test_key: the lists to take; by default those two ``train_X`` and ``test_X`` whose ids
            fit the corpus best.

    Raises:
        DareError: the file is no split, no pair of lists or several fit, the lists overlap, or most of
            their ids have no document.
    """
    lists = _read(path)
    if train_key is None and test_key is None:
        train_key, test_key = _best_pair(lists, set(ids), path)
    else:
        train_key, test_key = _complete(train_key, test_key)
    for key in (train_key, test_key):
        if key not in lists:
            raise DareError(f"{path} has no list {key!r}; it has {_names(lists)}.")
    train, test = lists[train_key], lists[test_key]
    _check_disjoint(path, {train_key: train, test_key: test})
    found = {key: [i for i in lists[key] if i in ids] for key in (train_key, test_key)}
    for key, present in found.items():
        if len(present) < max(_LEAST_SHARE * len(lists[key]), 1):
            raise DareError(
                f"Of the {len(lists[key])} ids under {key!r} in {path}, {len(present)} have a document with "
                "text; give the split of this corpus, or other lists with --train and --test."
            )
    num_missing = len(train) + len(test) - len(found[train_key]) - len(found[test_key])
    return Split(train_key, test_key, found[train_key], found[test_key], num_missing)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DareError(f"There is no split file {path}; check the path.") from None
    except OSError as error:
        raise DareError(f"Cannot read the split file {path} ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise DareError(f"The split file {path} is not valid JSON; give an object of lists of ids.") from None
    if not isinstance(content, dict):
        raise DareError(f"The split file {path} is not an object of lists of ids; see `replay --help`.")
    return {key: [str(i) for i in ids] for key, ids in content.items() if _are_ids(ids)}


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(i, int | str) and not isinstance(i, bool) for i in value
    )


def _best_pair(lists: Mapping[str, Sequence[str]], ids: set[str], path: Path) -> tuple[str, str]:
    """The pair of lists whose ids and the corpus's have most in common (Jaccard index)."""
    scores = {}
    for train_key in lists:
        test_key = _TEST + train_key.removeprefix(_TRAIN)
        if train_key.startswith(_TRAIN) and test_key in lists:
            named = {*lists[train_key], *lists[test_key]}
            scores[train_key, test_key] = len(named & ids) / max(len(named | ids), 1)
    ranked = sorted(scores, key=lambda pair: -scores[pair])
    if not ranked or not scores[ranked[0]]:
        raise DareError(
            f"No pair of lists train_X and test_X in {path} holds ids of this corpus; name two of its lists "
            f"({_names(lists)}) with --train and --test."
        )
    if len(ranked) > 1 and scores[ranked[1]] > _TOO_CLOSE * scores[ranked[0]]:
        close = [train for train, _ in ranked if scores[train, _] > _TOO_CLOSE * scores[ranked[0]]]
        raise DareError(
            f"The ids of this corpus fit several lists in {path} ({', '.join(close)}); choose with --train "
            "and --test."
        )
    return ranked[0]


def _complete(train_key: str | None, test_key: str | None) -> tuple[str, str]:
    if train_key is None or test_key is None:
        raise DareError("--train and --test go together; name both lists, or neither.")
    return train_key, test_key


def _check_disjoint(path: Path, lists: Mapping[str, Sequence[str]]) -> None:
    seen: dict[str, str] = {}
    for key, ids in lists.items():
        for i in ids:
            if i in seen:
                where = f"twice under {key!r}" if seen[i] == key else f"under {seen[i]!r} and {key!r}"
                raise DareError(f"{path} has the id {i!r} {where}; name each document once.")
            seen[i] = key


def _names(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys)) or "no list of ids"
