"""Files that somebody damaged or made up: each is refused with one sentence, and none crashes."""

import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dare.errors import PoolError
from vllm_dare.pool.assignments import Assignments
from vllm_dare.pool.segment import Segment, write_segment
from vllm_dare.pool.tokenizer import MAX_VOCABULARY_SIZE, TokenizerInfo
from vllm_dare.routing.router_file import RouterFile

INFO = TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=100)
Header = dict[str, Any]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    documents = [np.array(tokens, np.int32) for tokens in ([1, 2, 3, 1, 2], [2, 3], [9])]
    return write_segment(tmp_path_factory.mktemp("good"), documents, tokenizer=INFO).path.read_bytes()


def split(content: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def put(directory: Path, content: bytes) -> Path:
    """Under the name that its content asks for, so that the checksum gives nothing away."""
    path = directory / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    path.write_bytes(content)
    return path


def assert_refused_on_opening(directory: Path, content: bytes, match: str = "") -> None:
    path = put(directory, content)
    with pytest.raises(PoolError, match=match) as caught:
        Segment.open(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_the_untouched_file_is_accepted(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    Segment.open(put(tmp_path, join(header, data))).verify()


def test_truncation_is_refused_at_every_byte(tmp_path: Path, content: bytes) -> None:
    for length in range(len(content)):
        assert_refused_on_opening(tmp_path, content[:length], "damaged")


def test_appended_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    assert_refused_on_opening(tmp_path, content + b"\0", "damaged")


@given(data=st.data())
@settings(max_examples=400)
def test_a_flipped_bit_is_found_by_the_checksum_and_never_crashes(
    content: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    with TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(damaged)
        with pytest.raises(PoolError):
            Segment.open(path).verify()


@given(data=st.data())
@settings(max_examples=400)
def test_data_that_were_changed_under_a_fitting_name_are_found_by_verify(
    content: bytes, data: st.DataObject
) -> None:
    header, arrays = split(content)
    values = np.frombuffer(arrays, "<i4").copy()
    # The keys of the three documents, two words each, come first; they may be any numbers.
    place = data.draw(st.integers(6, len(values) - 1))
    value = data.draw(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 12))
    unchanged = values[place] == value
    values[place] = value
    with TemporaryDirectory() as directory:
        segment = Segment.open(put(Path(directory), join(header, values.tobytes())))
        if unchanged:
            segment.verify()
        else:
            with pytest.raises(PoolError):
                segment.verify()


HUGE = 2**63 - 1


@pytest.mark.parametrize("length", [10**8 + 1, 2**31, 2**40, HUGE, 2**64 - 1])
def test_a_huge_header_length_is_refused(tmp_path: Path, content: bytes, length: int) -> None:
    assert_refused_on_opening(tmp_path, struct.pack("<Q", length) + content[8:], "longer than the file")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="cut JSON"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no metadata"),
        pytest.param(b'{"__metadata__": 1}', id="metadata not an object"),
        pytest.param(b'{"__metadata__": {"kind": 1}}', id="metadata not strings"),
        pytest.param(b'{"__metadata__": {"kind": "segment"}}', id="no version"),
        pytest.param(b"9" * 5000, id="an endless number"),
    ],
)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    assert_refused_on_opening(tmp_path, struct.pack("<Q", len(raw)) + raw, "damaged")


def changed(path: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            header = header[parent]
        if value is None:
            del header[last]
        else:
            header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("tokens", None),
        changed("more", {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]}),
        changed("tokens", 5),
        changed("tokens/dtype", "F32"),
        changed("tokens/dtype", "U64"),
        changed("tokens/dtype", ["I32"]),
        changed("tokens/shape", None),
        changed("tokens/shape", [11, 1]),
        changed("tokens/shape", [-11]),
        changed("tokens/shape", [11.0]),
        changed("tokens/shape", [True]),
        changed("tokens/shape", [HUGE]),
        changed("tokens/shape", [10**400]),
        changed("tokens/data_offsets", [0]),
        changed("tokens/data_offsets", [44, 0]),
        changed("tokens/data_offsets", [-44, 0]),
        changed("tokens/data_offsets", [1, 45]),
        changed("tokens/data_offsets", [0, HUGE]),
        changed("tokens/data_offsets", ["0", "44"]),
        changed("suffix_array/data_offsets", [0, 32]),  # overlaps the tokens
        changed("suffix_array/data_offsets", [10**6, 10**6 + 32]),
        changed("__metadata__/kind", "assignments"),
        changed("__metadata__/format_version", "one"),
        changed("__metadata__/format_version", "-1"),
        changed("__metadata__/format_version", "9" * 5000),
        changed("__metadata__/num_tokens", "9"),
        changed("__metadata__/num_tokens", "-8"),
        changed("__metadata__/num_tokens", "many"),
        changed("__metadata__/num_documents", "4"),
        changed("__metadata__/vocab_size", "0"),
        changed("__metadata__/vocab_size", "3"),
        changed("__metadata__/vocab_size", "99999999999999"),
        changed("__metadata__/provenance", "unknown"),
        changed("__metadata__/tokenizer_fingerprint", None),
        changed("__metadata__/surprise", "yes"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(
    tmp_path: Path, content: bytes, change: Callable[[Header], None]
) -> None:
    header, data = split(content)
    change(header)
    assert_refused_on_opening(tmp_path, join(header, data), "damaged")


def test_two_arrays_in_one_place_are_refused(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    header["suffix_array"] = header["tokens"]
    assert_refused_on_opening(tmp_path, join(header, data), "misplaced")


def test_misaligned_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8 + 1)
    assert_refused_on_opening(tmp_path, struct.pack("<Q", len(encoded)) + encoded + data, "misplaced")


def test_an_older_format_asks_for_a_new_pool(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    header["__metadata__"]["format_version"] = "1"
    assert_refused_on_opening(tmp_path, join(header, data), "of an older vllm-dare; rebuild the pool")


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    header["__metadata__"]["format_version"] = "3"
    assert_refused_on_opening(tmp_path, join(header, data), "newer vllm-dare; upgrade")


@pytest.mark.parametrize(
    "raw", [b"1,", b"[],", b"{},", b'"",', b'{"a":{}},'], ids=lambda raw: raw.decode().strip(",")
)
def test_a_header_of_very_many_values_is_refused_before_they_are_made(
    tmp_path: Path, content: bytes, raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, data = split(content)
    encoded = json.dumps({"more": "many", **header}).encode().replace(b'"many"', b"[" + raw * 10_000 + b"1]")
    encoded += b" " * (-len(encoded) % 8)
    monkeypatch.setattr("vllm_dare.pool.json_reader.from_json", lambda *_, **__: pytest.fail("it was parsed"))
    assert_refused_on_opening(tmp_path, struct.pack("<Q", len(encoded)) + encoded + data, "not valid JSON")


def test_a_vocabulary_that_is_made_up_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    header["__metadata__"]["vocab_size"] = str(MAX_VOCABULARY_SIZE)
    values = np.frombuffer(data, "<i4").copy()
    for name in ("tokens", "heads"):
        begin, end = (place // 4 for place in header[name]["data_offsets"])
        array = values[begin:end]
        array[array == array.max()] = MAX_VOCABULARY_SIZE - 1
    segment = Segment.open(put(tmp_path, join(header, values.tobytes())))
    tracemalloc.start()
    segment.verify()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("open_file", [Segment.open, Assignments.open, RouterFile.open])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, open_file: Callable[[Path], object]) -> None:
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    with pytest.raises(PoolError, match="not a regular file"):
        open_file(path)
    link = tmp_path / "link.safetensors"
    link.symlink_to("/dev/zero")
    with pytest.raises(PoolError, match="not a regular file"):
        open_file(link)


def test_a_link_to_a_segment_is_one(tmp_path: Path, content: bytes) -> None:
    """As where a hub's cache keeps the files of a pool."""
    path = put(tmp_path, content)
    link = tmp_path / "links" / path.name
    link.parent.mkdir()
    link.symlink_to(path)
    Segment.open(link).verify()


def test_a_file_that_has_gone_since_it_was_mapped_is_named(tmp_path: Path, content: bytes) -> None:
    segment = Segment.open(put(tmp_path, content))
    segment.path.unlink()
    with pytest.raises(PoolError, match="is missing"):
        segment.verify_checksum()


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"is missing"):
        Segment.open(tmp_path / "none.safetensors")
    with pytest.raises(PoolError, match=r"Cannot read"):
        Segment.open(tmp_path)
