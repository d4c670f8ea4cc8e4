"""Groups of real users of films, where their interactions lie beside the project."""

from pathlib import Path

import pytest

from vllm_dare.pool.group_inputs import group_router
from vllm_dare.routing.query import Query
from vllm_dare.routing.router import Router
from vllm_dare.routing.user_groups import Plan, group_users

pytest.importorskip("implicit")

FILMS = Path(__file__).parents[4] / "shared" / "data" / "ml1m"
HORROR = ["1997", "1974", "1982", "1215", "1347"]  # The Exorcist, Friday the 13th, Halloween, …
MUSICALS = ["914", "899", "1035", "900", "1088"]  # My Fair Lady, Singin' in the Rain, …

pytestmark = pytest.mark.skipif(not FILMS.is_dir(), reason="needs the films beside the project")


def test_new_users_are_placed_by_five_films(tmp_path: Path) -> None:
    plan = Plan(FILMS / "interactions.csv.gz", tmp_path / "groups", method="als", groups=10)
    quality = group_users(plan, lambda what: None)["quality"]
    assert quality["new_users"]["num_users"] > 500
    assert quality["new_users"]["few"] > 4 * quality["new_users"]["chance"]
    assert quality["new_users"]["all"] > 0.7
    assert quality["neighbour_overlap"] > 5 * quality["chance"]
    router = Router(None, [group_router(tmp_path / "groups")])
    assert router.route(Query(history=HORROR)).group != router.route(Query(history=MUSICALS)).group
