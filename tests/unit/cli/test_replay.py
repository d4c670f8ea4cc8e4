"""`vllm-dare replay` on the demo's documents, as users type it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[3] / "examples" / "demo"
MODEL = str(DEMO / "model")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first documents of the demo and a split of them."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = (DEMO / "documents.jsonl").read_text().splitlines()[:60]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    ids = [json.loads(line)["id"] for line in lines]
    (folder / "splits.json").write_text(json.dumps({"train_users": ids[:50], "test_users": ids[50:]}))
    (folder / "groups.csv").write_text("user,group\n" + "".join(f"{i},all\n" for i in ids))
    return folder


def _command(corpus: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm_dare.cli.app", "replay", str(corpus / "documents.jsonl")),
        *("--tokenizer", MODEL, *options),
    ]


def _run(corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(corpus, *options), capture_output=True, text=True, check=False, timeout=300, cwd=corpus
    )


def test_settings_side_by_side(corpus: Path, tmp_path: Path) -> None:
    result = _run(
        corpus,
        *("--split", "splits.json", "--draft", "4,16", "--sources", "own,global,group+global"),
        *("--assignments", "groups.csv", "--pool-size", "10,all", "--peers", "ngram", "--limit", "4"),
        *("--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")),
    )
    assert result.returncode == 0, result.stderr
    assert "50 documents of 'train_users' for the pool; 4 of 'test_users'" in result.stderr
    for part in ("dare own+group+global (groups)", "tokens per step", "calibration error", "ngram"):
        assert part in result.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["status"] == "done"
    assert found["provenance"]["versions"]["vllm-dare"]
    assert len(found["corpus"]["files"][0]["sha256"]) == 64
    records = found["results"]
    assert len(records) == 2 + 2 * 2 * 2 + 2
    steps = {(r["setting"]["drafter"], *r["setting"]["sources"]): r["tokens_per_step"] for r in records}
    assert steps["dare", "own", "global"] > steps["dare", "own"] >= 1
    assert {r["tokens"] for r in records} == {records[0]["tokens"]}
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert pictures == ["reliability.png", "survival.png", "tokens_per_step.png"]
    for name in pictures:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_in_order(corpus: Path, tmp_path: Path) -> None:
    outputs = ("--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots"))
    result = _run(corpus, "--order", "--sources", "global", *outputs)
    assert result.returncode == 0, result.stderr
    assert "Tokens per step while learning" in result.stdout and "1-60" in result.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["split"] is None and len(found["results"][0]["blocks"]) == 1
    assert (tmp_path / "plots" / "learning.png").exists()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    texts = ("", "The user likes it.", "The user likes it.", "")
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "documents.jsonl").write_text("\n".join(rows))
    result = _run(tmp_path, "--order")
    assert result.returncode == 0, result.stderr
    assert "2 documents, 0 with a prompt, are drafted for" in result.stderr
    assert "2 documents without any text were left out." in result.stderr


def test_nothing_of_vllm_or_torch_is_imported(corpus: Path) -> None:
    code = (
        "import sys\n"
        "from vllm_dare.cli.app import main\n"
        "try: main()\n"
        "finally: print([n for n in ('torch', 'vllm') if n in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *_command(corpus)[3:], "--split", "splits.json", "--limit", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=corpus)
    assert result.stderr.strip().endswith("[]")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Give either --split FILE or --order"),
        (("--split", "splits.json", "--order"), "Give either --split FILE or --order"),
        (("--order", "--pool-size", "3"), "leave them out with --order"),
        (("--split", "nowhere.json"), "There is no split file nowhere.json"),
        (("--split", "splits.json", "--train", "a", "--test", "b"), "has no list 'a'"),
        (("--split", "splits.json", "--draft", "0"), "--draft takes lengths from 1 to 128"),
        (("--split", "splits.json", "--draft", "x"), "--draft takes whole numbers separated by commas"),
        (("--split", "splits.json", "--pool-size", "many"), "--pool-size takes whole numbers or all"),
        (("--split", "splits.json", "--peers", "medusa"), "--peers takes arctic and ngram"),
        (("--split", "splits.json", "--sources", "pool"), "--sources takes own, group and global"),
        (("--split", "splits.json", "--json", "nowhere/out.json"), "there is no directory nowhere"),
        (("--split", "splits.json", "--json", "splits.json"), "is the file splits.json, too"),
        (("--split", "splits.json", "--json", "/proc/out.json"), "no file can be made in /proc"),
        (("--split", "splits.json", "--plots", "splits.json"), "splits.json is a file; name another one"),
        (("--split", "splits.json", "--plots", "/proc/plots"), "no file can be made in /proc"),
    ],
)
def test_a_users_error_is_one_sentence(corpus: Path, options: tuple[str, ...], sentence: str) -> None:
    result = _run(corpus, *options)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_after_ctrl_c_what_is_finished_is_reported(corpus: Path, tmp_path: Path) -> None:
    lengths = ",".join(map(str, range(1, 129)))  # more than is done in a moment
    options = ("--split", "splits.json", "--draft", lengths, "--json", str(tmp_path / "out.json"))
    code = (
        "import sys\n"
        "from vllm_dare.evaluation import study\n"
        "before = study.replay_arm\n"
        "def replay_arm(*arguments):\n"
        "    result = before(*arguments)\n"
        "    print('replayed', file=sys.stderr, flush=True)\n"
        "    return result\n"
        "study.replay_arm = replay_arm\n"
        "from vllm_dare.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *_command(corpus)[3:], *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus)
    assert process.stderr is not None
    while "replayed" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "dare own+group+global" in output
    assert "Interrupted: the " in errors and "of 128 settings that were done are above" in errors
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["status"] == "interrupted" and 0 < len(found["results"]) < 128
