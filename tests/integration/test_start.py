"""What cannot work stops the engine before any worker starts, with one sentence that says what to do."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import ConfigError, DareError, PoolError

from .conftest import SPECULATION
from .server import free_port, server_command

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook for uncaught errors is put back afterwards."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def configure(demo_model: str) -> Callable[..., Any]:
    """Builds the engine's configuration, which is all that the front end does before it starts workers."""

    def configure(dare: Any = None, speculation: dict[str, Any] | None = SPECULATION, **options: Any) -> Any:
        from vllm import EngineArgs

        settings = {} if dare is None else {"dare": dare}
        return EngineArgs(
            demo_model, speculative_config=speculation, additional_config=settings, **options
        ).create_engine_config()

    return configure


@pytest.fixture
def copied_pool(demo_pool: Path, tmp_path: Path) -> Path:
    shutil.copytree(demo_pool, tmp_path / "pool")
    return tmp_path / "pool"


@pytest.fixture
def segment(copied_pool: Path) -> Path:
    return max((copied_pool / "segments").iterdir(), key=lambda path: path.stat().st_size)


def refused(error: type[DareError], pattern: str, configure: Callable[[], Any]) -> None:
    """Assert that the configuration is refused with one sentence that matches."""
    with pytest.raises(error, match=pattern) as caught:
        configure()
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"[.!]$", message)
    assert len(message) < 400
    assert caught.value.__cause__ is None


def test_a_good_configuration_is_accepted(configure: Any, demo_pool: Path) -> None:
    config = configure({"pool": str(demo_pool), "verification": {"mode": "relaxed"}})
    assert config.speculative_config.model == SPECULATION["model"]
    assert configure().additional_config == {}


@pytest.fixture
def said() -> Iterator[list[tuple[str, str]]]:
    """(level, message) of what vLLM's log shows: only loggers below "vllm" have a handler."""
    records: list[tuple[str, str]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((record.levelname, record.getMessage()))

    logger, collector = logging.getLogger("vllm"), Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(collector)
    logger.setLevel(level)


@pytest.mark.parametrize("mode", ["strict", "relaxed"])
def test_the_rule_is_announced_in_vllms_log(configure: Any, said: list[tuple[str, str]], mode: str) -> None:
    configure({"verification": {"mode": mode}})
    ours = {level: message for level, message in said if message.startswith("DARE")}
    assert f"verification is {mode}" in ours["INFO"]
    assert ("WARNING" in ours) == (mode == "relaxed")


def test_what_is_on_is_said_in_one_line(
    configure: Any, said: list[tuple[str, str]], demo_pool: Path, copied_pool: Path
) -> None:
    configure({"pool": str(demo_pool)})
    configure({"pool": str(copied_pool), "live": {}, "draft_budget": "fixed"})
    off, on = [message for _, message in said if message.startswith("DARE")]
    assert f"up to 16 tokens from the pool {demo_pool} (134777 tokens, 15 groups), draft budget auto;" in off
    assert off.endswith("verification is strict; learning is off.")
    assert "draft budget fixed" in on and on.endswith("learning is on.")


def test_of_several_api_servers_only_what_starts_them_looks_at_the_pool_and_says_so(
    configure: Any, said: list[tuple[str, str]], demo_pool: Path, tmp_path: Path
) -> None:
    for rank in (-1, 0, 1):
        pool = demo_pool if rank == -1 else tmp_path / "not looked at"
        configure({"pool": str(pool)}, _api_process_count=2, _api_process_rank=rank)
    assert len([message for _, message in said if message.startswith("DARE")]) == 1


def test_a_pool_of_another_tokenizer(configure: Any, tmp_path: Path) -> None:
    import numpy as np
    from tokenizers import Tokenizer, models

    from vllm_dare.pool.build import build_pool
    from vllm_dare.pool.documents import Document

    (tmp_path / "others").mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "others/tokenizer.json"))
    documents = [Document(id="1", token_ids=np.array([0, 1], np.int32))]
    build_pool(documents, str(tmp_path / "others"), tmp_path / "pool")
    refused(
        PoolError,
        r"tokenizer others .* but the model uses .*examples/demo/model .*rebuild the pool",
        lambda: configure({"pool": str(tmp_path / "pool")}),
    )


def test_a_pool_that_is_not_there(configure: Any, tmp_path: Path) -> None:
    refused(PoolError, str(tmp_path / "nowhere"), lambda: configure({"pool": str(tmp_path / "nowhere")}))


def test_a_directory_that_is_no_pool(configure: Any, tmp_path: Path) -> None:
    refused(PoolError, str(tmp_path), lambda: configure({"pool": str(tmp_path)}))


def test_a_missing_segment(configure: Any, copied_pool: Path, segment: Path) -> None:
    segment.unlink()
    refused(PoolError, f"{segment.name} is missing", lambda: configure({"pool": str(copied_pool)}))


def test_a_truncated_segment(configure: Any, copied_pool: Path, segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size // 2)
    refused(PoolError, f"{segment.name} is ", lambda: configure({"pool": str(copied_pool)}))


def test_a_segment_with_a_flipped_bit(configure: Any, copied_pool: Path, segment: Path) -> None:
    content = bytearray(segment.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    segment.write_bytes(content)
    refused(PoolError, f"{segment.name} is damaged", lambda: configure({"pool": str(copied_pool)}))


def test_verification_of_checksums_can_be_left_out(configure: Any, copied_pool: Path, segment: Path) -> None:
    content = bytearray(segment.read_bytes())
    content[-1] ^= 4
    segment.write_bytes(content)
    configure({"pool": str(copied_pool), "verify_pool": False})


def test_a_manifest_of_a_newer_format(configure: Any, copied_pool: Path) -> None:
    manifest = json.loads((copied_pool / "manifest.json").read_text())
    (copied_pool / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    refused(PoolError, "newer vllm-dare; upgrade", lambda: configure({"pool": str(copied_pool)}))


def test_a_manifest_that_is_not_json(configure: Any, copied_pool: Path) -> None:
    (copied_pool / "manifest.json").write_text("{")
    refused(PoolError, r"manifest\.json", lambda: configure({"pool": str(copied_pool)}))


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"poool": "x"}, r"Unknown setting dare\.poool; known settings are pool, "),
        ({"verification": {"k": 2}}, r"Unknown setting dare\.verification\.k; known settings are mode, "),
        ({"verification": {"mode": "loose"}}, r"Bad value 'loose' for the setting dare\.verification\.mode"),
        ({"verification": {"top_k": 0}}, r"Bad value 0 for the setting dare\.verification\.top_k"),
        ({"verification": "relaxed"}, r"Bad value 'relaxed' for the setting dare\.verification"),
        ({"pool": 7}, r"Bad value 7 for the setting dare\.pool"),
        ("out/pool", r"must be a dictionary of settings, not 'out/pool'"),
    ],
    ids=str,
)
def test_bad_settings(configure: Any, settings: Any, pattern: str) -> None:
    refused(ConfigError, pattern, lambda: configure(settings))


@pytest.mark.parametrize(
    "speculation", [None, {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}], ids=str
)
def test_settings_without_the_proposer(configure: Any, speculation: dict[str, Any] | None) -> None:
    refused(ConfigError, "no DARE proposer runs: set speculative_config", lambda: configure({}, speculation))


def test_pipeline_parallelism(configure: Any) -> None:
    refused(ConfigError, "set pipeline_parallel_size to 1", lambda: configure(pipeline_parallel_size=2))


def test_the_external_launcher(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # vLLM sets it to 0 on the way
    refused(
        ConfigError,
        "external_launcher executor: use",
        lambda: configure(distributed_executor_backend="external_launcher"),
    )


def test_more_drafts_than_vllm_verifies(configure: Any) -> None:
    refused(
        ConfigError,
        "num_speculative_tokens is 129, but vLLM verifies at most 128",
        lambda: configure(speculation=SPECULATION | {"num_speculative_tokens": 129}),
    )
    configure(speculation=SPECULATION | {"num_speculative_tokens": 128})


def test_another_rejection_method(configure: Any) -> None:
    refused(
        ConfigError,
        "rejection_sample_method 'block' cannot be combined with DARE",
        lambda: configure(speculation=SPECULATION | {"rejection_sample_method": "block"}),
    )


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0.0"])
def test_a_vllm_that_is_not_supported(configure: Any, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import vllm

    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(vllm, "__version_tuple__", tuple(map(int, version.split("."))))
    refused(ConfigError, rf"vLLM {version} is not supported .* install vllm", configure)


def test_vllm_0_33_is_supported(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    monkeypatch.setattr(vllm, "__version_tuple__", (0, 33, 1, "cpu"))
    configure()


def test_the_offline_engine_refuses_before_it_starts_a_process(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing.process

    from vllm import LLM

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda _: pytest.fail("started"))
    settings = {"dare": {"pool": str(tmp_path / "nowhere")}}
    refused(
        PoolError,
        "nowhere",
        lambda: LLM(demo_model, speculative_config=SPECULATION, additional_config=settings),
    )


def test_a_program_that_does_not_catch_it_ends_with_the_sentence(demo_model: str, tmp_path: Path) -> None:
    code = f"""
        from vllm import LLM
        LLM({demo_model!r}, speculative_config={SPECULATION!r},
            additional_config={{"dare": {{"pool": {str(tmp_path / "nowhere")!r}}}}})
    """
    assert_ends_with_sentence([sys.executable, "-c", textwrap.dedent(code)], str(tmp_path / "nowhere"))


def test_a_server_ends_with_the_sentence(demo_model: str, tmp_path: Path) -> None:
    command = server_command(demo_model, free_port(), {"pool": str(tmp_path / "nowhere")})
    assert_ends_with_sentence(command, str(tmp_path / "nowhere"))


def assert_ends_with_sentence(command: list[str], pattern: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode not in {0, None}
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vllm-dare: ") and pattern in last and last.endswith(".")
    assert "Traceback" not in result.stdout + result.stderr


def test_an_engine_without_dare_is_not_affected(demo_model: str) -> None:
    """Nothing is loaded or patched but the one function, and the configuration is vLLM's."""
    code = f"""
        import json, sys
        from vllm import EngineArgs
        config = EngineArgs({demo_model!r}, additional_config={{"other": 1}}).create_engine_config()
        ours = [name for name in sys.modules if name.startswith("vllm_dare")]
        from vllm_dare.engine import plugin
        heavy = [name for name in ("numba", "llvmlite", "pydivsufsort") if name in sys.modules]
        print(json.dumps({{
            "speculation": config.speculative_config,
            "additional": config.additional_config,
            "pool": [name for name in ours if ".pool" in name or ".drafting" in name or "proposer" in name],
            "heavy": heavy,
            "patched": [
                patch.name for patch in plugin.ledger()
                if patch.module in sys.modules and patch.status() == "applied"
            ],
            "hook": not sys.excepthook.__module__.startswith("vllm_dare"),
        }}))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "speculation": None,
        "additional": {"other": 1},
        "pool": [],
        "heavy": [],
        "patched": ["configuration check"],
        "hook": True,
    }
