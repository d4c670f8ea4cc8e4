"""From interactions to groups of users: embeddings, clusters, and a directory of what was found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vllm_dare.errors import DareError
from vllm_dare.extras import need
from vllm_dare.pool.files import replace_text
from vllm_dare.routing import report
from vllm_dare.routing.clustering import Clusters, choose_count, cluster, group_counts, silhouette
from vllm_dare.routing.embeddings import Embeddings, unit_rows
from vllm_dare.routing.factorization import learn_als, learn_bpr
from vllm_dare.routing.favourites import favourites, read_titles
from vllm_dare.routing.given_embeddings import align_embeddings, read_embeddings
from vllm_dare.routing.grouping_output import (
    PICTURE_NAME,
    REPORT_NAME,
    check_grouping_output,
    staged_directory,
    write_assignment_table,
)
from vllm_dare.routing.held_out import hold_out, measure_placing
from vllm_dare.routing.history_space import HistorySpace, fit_history_space
from vllm_dare.routing.interactions import Columns, Positives, read_positives
from vllm_dare.routing.lightgcn import learn_lightgcn
from vllm_dare.routing.neighbours import neighbour_overlap
from vllm_dare.routing.picture import draw_groups
from vllm_dare.routing.router_file import write_user_router
from vllm_dare.routing.user_attributes import check_attributes, group_log_odds

Method = Literal["lightgcn", "als", "bpr"]
Tell = Callable[[str], None]

_LEARN: dict[Method, Callable[[Positives, int, Tell], Embeddings]] = {
    "lightgcn": learn_lightgcn,
    "als": learn_als,
    "bpr": learn_bpr,
}
_MODULES = {"lightgcn": ("torch_geometric", "torch-geometric"), "als": ("implicit", "implicit")}


@dataclass(frozen=True)
class Plan:
    """What to group, and how.

    Attributes:
        interactions: the table of who liked what, see `read_positives`.
        output: the directory to write.
        columns, min_weight: see `read_positives`.
        method: what learns the embeddings.
        embeddings: a table of user embeddings instead, see `read_embeddings`.
        groups: how many; None chooses, see `choose_count`.
        min_size: fewest users of a group.
        prefix: what the groups' names begin with; a number follows, 0 for the largest group.
        attributes: a table of users, see `group_log_odds`.
        items: a table of items, whose titles the report shows.
        title_column: its column of titles.
        seed: of everything that is drawn.
        overwrite: whether groups in ``output`` may be replaced.
    """

    interactions: Path
    output: Path
    columns: Columns = field(default_factory=Columns)
    min_weight: float | None = None
    method: Method = "lightgcn"
    embeddings: Path | None = None
    groups: int | None = None
    min_size: int = 10
    prefix: str = "users/"
    attributes: Path | None = None
    items: Path | None = None
    title_column: str | None = None
    seed: int = 0
    overwrite: bool = False


def group_users(plan: Plan, tell: Tell) -> dict[str, Any]:
    """Group users and write the directory.

    A tenth of the users take no part in clustering and are then routed by five of their items, to measure how
    well new users are placed. Users without an embedding go where their items route them.

    Args:
        plan: what to do.
        tell: called with what is being done.

    Returns:
        the report, as in ``report.json``.

    Raises:
        DareError: a table cannot be used, a package is missing, there are fewer users than groups, or the
            directory cannot be written.
    """
    check_plan(plan)
    tell("reading interactions")
    positives = read_positives(plan.interactions, plan.columns, plan.min_weight)
    titles = read_titles(plan.items, plan.title_column) if plan.items and plan.title_column else {}
    user_ids, embeddings = _embed(plan, positives, tell)
    vectors = unit_rows(embeddings.users)
    liked = positives.matrix(len(user_ids))
    held = _hold_out(plan, positives, vectors)
    fit_on = np.asarray(vectors.any(axis=1))
    fit_on[held] = False
    count, tried = _count(plan, vectors[fit_on], tell)
    tell(f"clustering into {count} groups")
    clusters = cluster(vectors, fit_on, count, plan.min_size, plan.seed)

    def fit(labels: np.ndarray) -> HistorySpace:
        return fit_history_space(embeddings, liked, labels, clusters.count)

    tell("routing users that were held out")
    placing = measure_placing(fit, positives, clusters.labels, held, plan.seed)
    space = fit(clusters.labels)
    labels = _complete(clusters, space, liked)
    log_odds = None
    if plan.attributes is not None:
        log_odds = group_log_odds(plan.attributes, user_ids, labels, clusters.count)
    names = [f"{plan.prefix}{number}" for number in range(clusters.count)]
    tell("measuring the groups")
    known = clusters.labels >= 0
    result = {
        "settings": report.settings(plan),
        "data": report.data(positives, labels, known),
        "tried": report.tried(tried),
        "quality": report.quality(
            silhouette(vectors[known], clusters.labels[known], plan.seed),
            neighbour_overlap(vectors[known], clusters.labels[known], plan.seed),
            clusters,
            placing,
        ),
        "attributes": None if log_odds is None else report.attributes(log_odds),
        "groups": report.groups(names, labels, favourites(positives, labels, clusters.count, titles)),
    }
    tell("writing")
    with staged_directory(plan.output) as directory:
        write_assignment_table(directory, "user", user_ids, labels, names)
        _write_router(directory, names, space, positives.item_ids, log_odds)
        draw_groups(directory / PICTURE_NAME, vectors[known], clusters.labels[known], names, plan.seed)
        replace_text(directory / REPORT_NAME, report.encode(result))
    return result


def check_plan(plan: Plan) -> None:
    """Refuse, before any work, what cannot work.

    Raises:
        DareError: see the message.
    """
    if plan.groups is not None and plan.groups < 1:
        raise DareError(f"--groups must be at least 1, or auto, not {plan.groups}.")
    if plan.min_size < 1:
        raise DareError(f"--min-size must be at least 1, not {plan.min_size}.")
    if (plan.items is None) != (plan.title_column is None):
        raise DareError("Give --items and --title-column together: a table and its column of titles.")
    need("sklearn", "scikit-learn", "'vllm-dare[groups]'")
    if plan.embeddings is None:
        module, package = _MODULES["lightgcn" if plan.method == "lightgcn" else "als"]
        need(module, package, "'vllm-dare[groups]'")
    if plan.attributes is not None:
        check_attributes(plan.attributes)
    inputs = (plan.interactions, plan.embeddings, plan.attributes, plan.items)
    check_grouping_output(plan.output, plan.overwrite, [path for path in inputs if path is not None])


def _embed(plan: Plan, positives: Positives, tell: Tell) -> tuple[Sequence[str], Embeddings]:
    """The ids of all users, those with positive interactions first, and the embeddings."""
    if plan.embeddings is None:
        return positives.user_ids, _LEARN[plan.method](positives, plan.seed, tell)
    tell("reading embeddings")
    return align_embeddings(plan.embeddings, read_embeddings(plan.embeddings), positives)


def _hold_out(plan: Plan, positives: Positives, vectors: np.ndarray) -> np.ndarray:
    """int64[n]: places of the users that take no part in clustering; none if everybody is needed."""
    has_embedding = np.asarray(vectors.any(axis=1))
    num_users = int(has_embedding.sum())
    if plan.groups is not None and plan.groups > num_users:
        raise DareError(
            f"--groups {plan.groups} is more than the {num_users:,} users with an embedding; ask for fewer."
        )
    held = hold_out(positives, has_embedding, plan.seed)
    return held[:0] if plan.groups is not None and plan.groups > num_users - len(held) else held


def _count(plan: Plan, vectors: np.ndarray, tell: Tell) -> tuple[int, dict[int, float]]:
    """How many groups, and the silhouettes of those that were tried, from the vectors to be clustered."""
    if plan.groups is not None:
        return plan.groups, {}
    return choose_count(vectors, group_counts(len(vectors), plan.min_size), plan.seed, tell)


def _complete(clusters: Clusters, space: HistorySpace, liked: Any) -> np.ndarray:
    """int32[users]: the group of each; users without an embedding go where their items route them."""
    labels = clusters.labels.copy()
    rest = np.flatnonzero(labels < 0)
    labels[rest] = space.route(liked[rest])
    return labels


def _write_router(
    directory: Path,
    names: Sequence[str],
    space: HistorySpace,
    item_ids: Sequence[str],
    log_odds: dict[str, np.ndarray] | None,
) -> None:
    speaking = np.flatnonzero(space.items.any(axis=1))
    write_user_router(
        directory,
        groups=names,
        centroids=space.centroids,
        item_ids=[item_ids[place] for place in speaking],
        item_vectors=space.items[speaking],
        attributes=log_odds,
    )
