"""An evaluation of real texts about real users of films, where they lie beside the project."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.evaluation.bench_provenance import provenance
from vllm_dare.evaluation.quality import Plan, evaluate

FILMS = Path(__file__).parents[4] / "shared" / "data" / "ml1m"
USERS = 80

pytestmark = pytest.mark.skipif(not FILMS.is_dir(), reason="needs the films beside the project")


def _texts(name: str) -> dict[int, str]:
    with gzip.open(FILMS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return {row["id"]: row["text"] for row in map(json.loads, lines)}


def _write(path: Path, texts: dict[int, str]) -> Path:
    rows = [json.dumps({"id": f"u{i}", "text": text}) + "\n" for i, text in texts.items()]
    path.write_text("".join(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A large model's texts against themselves, those of the next user, and those of a small model."""
    folder = tmp_path_factory.mktemp("films")
    large, small = _texts("user_knowledge"), _texts("warmup_users_t07")
    ids = [i for i in small if i in large][:USERS]
    texts = {
        "large": {i: large[i] for i in ids},
        "again": {i: large[i] for i in ids},
        "others": {i: large[j] for i, j in zip(ids, ids[1:] + ids[:1], strict=True)},
        "small": {i: small[i] for i in ids},
    }
    plan = Plan(
        files={name: _write(folder / f"{name}.jsonl", found) for name, found in texts.items()},
        items=FILMS / "movies.csv",
        attribute="genres",
        interactions=FILMS / "interactions.csv.gz",
        id_prefix="u",
        seeds=1,
    )
    return evaluate(plan, provenance(), lambda what: None)


def test_the_tables_are_read(result: dict[str, Any]) -> None:
    assert result["documents"] == result["interactions"]["users"] == USERS
    assert result["interactions"]["rows"] > 50 * USERS
    assert len(result["vocabulary"]) == 18
    assert {"Children's", "Film-Noir", "Sci-Fi"} < set(result["vocabulary"])


def test_large_models_state_what_users_like(result: dict[str, Any]) -> None:
    large, again, others, _ = result["variants"]
    assert again["verdict"]["word"] == "holds"
    assert large["content"]["precision"]["value"] > others["content"]["precision"]["value"]
    assert others["content"]["precision"]["difference"]["high"] < 0
    assert others["text"]["length_ratio"]["value"] == 1.0
    assert 0.6 < large["ranking"]["auc"]["value"] < 0.85


def test_a_musical_score_is_no_musical(result: dict[str, Any]) -> None:
    records = {record["value"]: record for record in result["variants"][1]["attributes"]}
    assert records["Musical"]["stated"] < 0.2, "nearly every text speaks of the musical score"
    assert records["Action"]["stated"] > 0.3
