"""`vllm-dare evaluate` from files to reports, on users whose tastes are known."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.evaluation.conftest import Tastes
from vllm_dare import extras
from vllm_dare.cli.app import main
from vllm_dare.evaluation.embeddings import SentenceEmbedder, TfidfEmbedder, reduced, similarity

FAST = ["--seeds", "1"]


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vllm-dare", "evaluate", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def found(
    tastes: Tastes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], str, Path]:
    """The result of a run with the same texts, with those of other users, and with all cut short."""
    ids = list(tastes.texts)
    shuffled = dict(zip(ids, np.roll(list(tastes.texts.values()), 1).tolist(), strict=True))
    short = {i: " ".join(text.split()[:4]) for i, text in tastes.texts.items()}
    files = [
        f"{name}={tastes.write(name, texts)}"
        for name, texts in (("base", tastes.texts), ("same", tastes.texts), ("shuffled", shuffled))
    ]
    files.append(f"short={tastes.write('short', short, finish_reason='length')}")
    reports = ["--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")]
    reports += ["--markdown", str(tmp_path / "report.md")]
    assert _run(monkeypatch, *files, *tastes.options, *FAST, *reports) == 0
    return json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out, tmp_path


def test_a_run_tells_what_holds_and_what_does_not(found: tuple[dict[str, Any], str, Path]) -> None:
    result, printed, _ = found
    base, same, shuffled, short = result["variants"]
    assert base["verdict"] is None and result["length_unit"] == "tokens"
    assert result["interactions"] == {"users": 80, "rows": 2000}

    assert same["verdict"]["word"] == "holds"
    for section in ("text", "content"):
        for name, figure in same[section].items():
            exact = {"length_ratio", "agreement", "jaccard", "f1", "first_agreement", "rouge_l"}
            if name in exact:
                assert (figure["value"], figure["width"]) == (1.0, 0.0), name
            elif name != "similarity":
                assert (figure["difference"]["value"], figure["difference"]["width"]) == (0.0, 0.0), name
    assert same["text"]["similarity"]["value"] == pytest.approx(1)
    for name in ("auc", "user_auc", "log_loss"):
        difference = same["ranking"][name]["difference"]
        assert (difference["value"], difference["width"]) == (0.0, 0.0)

    assert shuffled["verdict"]["word"] == "worse"
    worse = {check["name"] for check in shuffled["verdict"]["checks"] if check["word"] == "worse"}
    assert worse == {"precision", "AUC", "AUC within users"}
    assert shuffled["content"]["agreement"]["high"] < 0.9
    assert shuffled["text"]["length_ratio"]["value"] == 1.0

    assert {check["name"] for check in short["verdict"]["checks"] if check["word"] == "worse"} >= {
        "length",
        "unfinished texts",
    }
    assert short["text"]["unfinished"]["difference"]["value"] == 1.0

    assert (
        "same: holds (length, unfinished texts, precision, AUC, AUC within users within the limits)."
        in printed
    )
    assert "shuffled: worse (precision lower by" in printed


def test_reports_have_everything(found: tuple[dict[str, Any], str, Path]) -> None:
    result, _, folder = found
    text = (folder / "report.md").read_text()
    for part in ("# Does quality hold?", "| AUC | shuffled |", "| Sci-Fi | short |", "scikit-learn", "rouge"):
        assert part in text
    pictures = sorted((folder / "plots").iterdir())
    assert [path.name for path in pictures] == ["differences.png", "values.png"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
        assert f"](plots/{path.name})" in text
    assert len(result["variants"][1]["attributes"]) == 6
    assert result["provenance"]["versions"]["rouge-score"]


def test_texts_alone_can_be_compared(
    tastes: Tastes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, bad = tastes.write("base", tastes.texts), tastes.write("bad", tastes.texts)
    rows = bad.read_text().splitlines()
    bad.write_text("\n".join([*rows[:-1], '{"id": "u79", "text": "", "finish_reason": "error"}']))
    vocabulary = tmp_path / "values.tsv"
    vocabulary.write_text("Calm\nDark\tgloomy\n")
    files = [f"base={base}", f"bad={bad}", "--vocabulary", str(vocabulary)]
    assert _run(monkeypatch, *files, "--plots", str(tmp_path / "plots")) == 0
    printed = capsys.readouterr().out
    assert "1 documents were left out, since they failed (1 in bad)." in printed
    assert "bad: holds (length, unfinished texts within the limits)." in printed
    assert (tmp_path / "plots" / "values.png").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["one={base}"], "at least two files"),
        (["one={base}", "one={base}"], "stands for two files"),
        (["one={base}", "two=nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["one={base}", "two={base}", "--items", "x.csv"], "--items and --attribute go together"),
        (["one={base}", "two={base}", "--interactions", "x.csv"], "--interactions needs --items"),
        (["one={base}", "two={base}", "--model", "m"], "give --prompts FILE"),
        (["one={base}", "two={base}", "--model", "/nope", "--prompts", "p"], "There is no directory /nope."),
        (["one={base}", "two={base}", "--split-by", "day"], "--split-by takes row, user, time"),
        (["one={base}", "two={base}", "--json", "nowhere/out.json"], "there is no directory nowhere"),
        (["one={base}", "two={base}", "--markdown", "{base}"], "choose another one"),
        (["one={base}", "two={base}", "--plots", "{base}"], "cannot be a directory"),
        (["one={base}", "two={base}", "--model", "m", "--prompts", "{other}"], "has no prompt for any"),
    ],
)
def test_a_users_error_is_one_sentence(
    tastes: Tastes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "prompt": "y"}\n')
    base = tastes.write("base", tastes.texts)
    assert _run(monkeypatch, *(part.format(base=base, other=other) for part in options)) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("Error: ") and error.count("\n") == 1


def test_a_missing_package_is_one_sentence(
    tastes: Tastes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    base = tastes.write("base", tastes.texts)
    assert _run(monkeypatch, f"one={base}", f"two={base}") == 1
    assert "install it with `pip install 'vllm-dare[evaluate]'`" in capsys.readouterr().err
    with pytest.raises(extras.DareError, match="`pip install sentence-transformers`"):
        SentenceEmbedder("some/model")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vllm_dare.cli.app import app\n"
        "print([name for name in ('numpy', 'sklearn', 'rouge_score', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_texts_that_are_alike_have_similar_vectors() -> None:
    texts = ["red wine and cheese", "red wine and bread", "fast cars on roads", "slow cars on roads"]
    vectors = TfidfEmbedder(texts, 3).embed(texts)
    assert vectors.shape == (4, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert similarity(vectors[:1], vectors[1:2]) > similarity(vectors[:1], vectors[2:3])
    (smaller,) = reduced(vectors, [vectors], 2)
    assert smaller.shape == (4, 2)
    with pytest.raises(extras.DareError, match="no words"):
        TfidfEmbedder(["...", "!"])
