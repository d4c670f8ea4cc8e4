"""The chain that says which group serves a request: what is known first, then what can be inferred."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from vllm_dare.pool.assignments import Assignments, EntityKind, entity_hash
from vllm_dare.routing.query import Query
from vllm_dare.routing.router_file import Floats, RouterFile, RouterKind, attribute_hash

_GLOBAL = "nothing known: global"

StepName = Literal["group", "user", "item", "history", "attributes"]


@dataclass(frozen=True)
class Step:
    """What one step of the chain says.

    Attributes:
        name: which step.
        group: its answer; None passes the request on.
        reason: why, as a short phrase.
    """

    name: StepName
    group: str | None
    reason: str


@dataclass(frozen=True)
class Answer:
    """The group that serves a request, None for everybody's text, and why."""

    group: str | None
    reason: str


class Router:
    """A chain of ways to find a request's group, of which the first that has an answer counts.

    1. the group that the request names; 2. the group its user, then 3. its item is assigned to; 4. the group
    nearest to its history; 5. the group that its attributes say; otherwise none, which is everybody's text.
    Known entities go by collaborative filtering and new ones by attributes, as the binary router of
    arXiv 2408.05676 does.

    Attributes:
        assignments: who belongs to which group; None if nobody says.
        files: at most one router of each kind.
    """

    def __init__(self, assignments: Assignments | None, files: Sequence[RouterFile] = ()) -> None:
        self.assignments = assignments
        self.files = tuple(files)
        self._by_kind: dict[RouterKind, RouterFile] = {file.kind: file for file in files}

    def route(self, query: Query) -> Answer:
        """The group that serves a request; takes microseconds, and tens of them with a history.

        Where the router's files are damaged, which their `verify` reports, the answer may be wrong.
        """
        for step in self.steps(query):
            if step.group is not None:
                return Answer(step.group, step.reason)
        return Answer(None, _GLOBAL)

    def steps(self, query: Query) -> Iterator[Step]:
        """What each step says on its own, in the order of the chain; those that nothing was given for are
        left out.
        """
        if query.group is not None:
            yield Step("group", query.group, "named by the request")
        if query.user is not None:
            yield self._assigned("user", query.user)
        if query.item is not None:
            yield self._assigned("item", query.item)
        if query.history:
            yield Step("history", *self._by_history(query.history))
        if query.attributes:
            yield Step("attributes", *self._by_attributes(query))

    def _assigned(self, kind: EntityKind, entity_id: str) -> Step:
        if self.assignments is None:
            return Step(kind, None, "there are no assignments")
        group = self.assignments.group_of(kind, entity_id)
        return Step(kind, group, f"{kind} {entity_id} is assigned" if group else f"{kind} {entity_id} is new")

    @cached_property
    def _directions(self) -> Floats:
        """float32[k, d]: the centroids, each of length 1 (0 where it has none)."""
        centroids = self._by_kind["users"].centroids
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        directions: Floats = centroids / np.where(lengths > 0, lengths, 1)
        return directions

    def _by_history(self, history: Sequence[str]) -> tuple[str | None, str]:
        """The group whose centroid has the largest cosine with the sum of the items' vectors."""
        router = self._by_kind.get("users")
        if router is None:
            return None, "history: there is no router of users"
        rows = _places(router.item_hashes, [entity_hash("item", item) for item in history])
        known = f"history: {len(rows)} of {len(history)} items known"
        taste = router.item_vectors[rows].sum(axis=0)
        length = float(np.linalg.norm(taste))
        if not length > 0:
            return None, known
        cosines = self._directions @ (taste / length)
        best, text = _best(router.groups, cosines)
        return best, f"{known}, cosine {text}"

    def _by_attributes(self, query: Query) -> tuple[str | None, str]:
        """What the router of users says, or that of items; first that of items where an item is asked for."""
        about_item = query.item is not None and query.user is None and not query.history
        reasons = []
        for kind in ("items", "users") if about_item else ("users", "items"):
            router = self._by_kind.get(kind)
            if router is not None:
                answer = _by_value if kind == "items" else _by_bayes
                group, reason = answer(router, query.attributes)
                if group is not None:
                    return group, reason
                reasons.append(reason)
        return None, "; ".join(reasons) or "attributes: there is no router"


def _by_bayes(router: RouterFile, attributes: Sequence[tuple[str, str]]) -> tuple[str | None, str]:
    """Naive Bayes: the largest sum of the logarithms of a group's share and of the values' probabilities."""
    texts = [f"{name}={value}" for name, value in attributes]
    rows = [_place(router.attribute_hashes, attribute_hash(text)) for text in texts]
    known = [text for text, row in zip(texts, rows, strict=True) if row is not None]
    if not known:
        return None, f"attributes: users' router does not know {_listed(texts)}"
    prior = _place(router.attribute_hashes, attribute_hash(""))
    scores = router.attribute_scores[[row for row in (*rows, prior) if row is not None]].sum(axis=0)
    shares = np.exp(scores - scores.max())
    best, text = _best(router.groups, shares / shares.sum())
    return best, f"attributes {_listed(known)}, probability {text}"


def _by_value(router: RouterFile, attributes: Sequence[tuple[str, str]]) -> tuple[str | None, str]:
    """The group of the value with the lowest rank; of several, of the first one given."""
    found: tuple[int, str, str] | None = None
    for name, value in attributes:
        text = f"{name}={value}"
        row = _place(router.attribute_hashes, attribute_hash(text))
        if row is None:
            continue
        index, rank = int(router.attribute_groups[row]), int(router.attribute_ranks[row])
        if 0 <= index < len(router.groups) and (found is None or rank < found[0]):
            found = rank, router.groups[index], text
    if found is None:
        texts = [f"{name}={value}" for name, value in attributes]
        return None, f"attributes: items' router does not know {_listed(texts)}"
    return found[1], f"attribute {found[2]}"


def _best(groups: Sequence[str], scores: npt.NDArray[np.floating]) -> tuple[str, str]:
    """The group with the highest score, of equal ones the first; its score and the runner-up's."""
    best = int(scores.argmax())
    text = f"{scores[best]:.2f}"
    if len(groups) == 1:
        return groups[best], text
    others = scores.copy()
    others[best] = -np.inf
    second = int(others.argmax())
    return groups[best], f"{text} (next {groups[second]} {scores[second]:.2f})"


def _places(hashes: npt.NDArray[np.uint64], keys: Sequence[int]) -> npt.NDArray[np.int64]:
    """int64[found]: where those of the keys stand that are there, in their order."""
    wanted = np.array(keys, np.uint64)
    places = np.minimum(hashes.searchsorted(wanted), max(len(hashes) - 1, 0))
    return places[hashes[places] == wanted] if len(hashes) else places[:0]


def _place(hashes: npt.NDArray[np.uint64], key: int) -> int | None:
    place = int(hashes.searchsorted(np.uint64(key)))
    return place if place < len(hashes) and int(hashes[place]) == key else None


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:5])
    return shown if len(texts) <= 5 else f"{shown}, … ({len(texts)} in all)"
