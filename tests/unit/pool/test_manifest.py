import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool.manifest import Manifest, SegmentInfo, read_manifest, write_manifest
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo

NAME = "0123456789abcdef" * 2


def make_manifest() -> Manifest:
    return Manifest(
        tokenizer=TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=10),
        groups={"users/1": [NAME]},
        global_segments=[NAME],
        segments={NAME: SegmentInfo(num_documents=1, num_tokens=2, num_bytes=300, provenance="strict")},
        assignments=f"assignments-{NAME}.safetensors",
        routers=[f"router-{NAME}.safetensors"],
    )


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_directory_without_manifest_is_not_a_pool(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            PoolError, match=r"is not a pool directory .* build one with `vllm-dare pool build`"
        ):
            read_manifest(directory)


@pytest.mark.parametrize("version", [2, 100])
def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path, version: int) -> None:
    content = json.loads(make_manifest().model_dump_json()) | {"format_version": version, "new_field": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(PoolError, match=r"written by a newer vllm-dare; upgrade vllm-dare"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b"{}"])
def test_a_corrupt_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(PoolError, match=r"is damaged .* rebuild the pool") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"groups": {"g": ["../../../etc/passwd"]}}, id="a path for a name"),
        pytest.param({"assignments": "../assignments.safetensors"}, id="a path for assignments"),
        pytest.param({"routers": [f"../router-{NAME}.safetensors"]}, id="a path for a router"),
        pytest.param({"routers": [f"assignments-{NAME}.safetensors"]}, id="another file for a router"),
        pytest.param({"groups": {"g": ["f" * 32]}}, id="a segment that is not described"),
        pytest.param({"groups": {}, "global_segments": []}, id="a segment that is not used"),
        pytest.param({"tokenizer": {"name": "x", "fingerprint": "no", "vocab_size": 1}}, id="fingerprint"),
        pytest.param({"format_version": 0}, id="version 0"),
        pytest.param({"surprise": 1}, id="unknown field"),
        pytest.param({"groups": {"g": [NAME + "\n"]}}, id="a name and a line break"),
        pytest.param({"groups": {"\ud800": [NAME]}}, id="half a surrogate pair"),
        pytest.param({"created_at": "0001-01-01T00:00:00"}, id="a time without a zone"),
        pytest.param(
            {
                "segments": {
                    NAME: {"num_documents": 1, "num_tokens": 10**400, "num_bytes": 1, "provenance": "strict"}
                }
            },
            id="more tokens than a float holds",
        ),
        pytest.param({"groups": {"g": [1] * 300}}, id="a list of other things"),
        pytest.param({str(i): 1 for i in range(300)}, id="many unknown fields"),
        pytest.param({"x" * 10**5 + "\n": 1}, id="a long name"),
    ],
)
def test_an_inconsistent_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads(make_manifest().model_dump_json()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(PoolError, match=r"is damaged") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("values", ["1", "[]", "{}", '""', '{"a":1}'])
@pytest.mark.parametrize("field", ["groups", "global_segments", "segments", "surprise"])
def test_a_manifest_of_very_many_values_is_refused_before_they_are_made(
    tmp_path: Path, field: str, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two megabytes of these took a gigabyte, each value being an error that was described."""
    content = json.loads(make_manifest().model_dump_json()) | {field: "many"}
    many = f"[{','.join([values] * 50_000)}]"
    (tmp_path / "manifest.json").write_text(json.dumps(content).replace('"many"', many))
    monkeypatch.setattr("vllm_dare.pool.json_reader.from_json", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(PoolError, match="too many values"):
        read_manifest(tmp_path)


def test_a_group_may_be_called_anything(tmp_path: Path) -> None:
    manifest = make_manifest().model_copy(update={"groups": {'[{,"\\' * 1000: [NAME], "": [NAME]}})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_pipe_is_no_manifest_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(PoolError, match="is not a pool directory"):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_manifest()
    write_manifest(tmp_path, old)

    def crash(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("vllm_dare.pool.files.os.fsync", crash)
    with pytest.raises(OSError, match=r"Input/output"):
        write_manifest(tmp_path, make_manifest())
    assert read_manifest(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_opening_twenty_thousand_groups_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    names = [f"{i:032x}" for i in range(20_000)]
    fact = SegmentInfo(num_documents=1, num_tokens=2, num_bytes=300, provenance="strict")
    manifest = Manifest(
        tokenizer=TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=10),
        groups={f"users/{i}": [name] for i, name in enumerate(names)},
        global_segments=[],
        segments=dict.fromkeys(names, fact),
    )
    write_manifest(tmp_path, manifest)
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        RetrievalPool.open(tmp_path).close()
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.2  # 0.035 on an idle core; the bound allows for a busy machine
