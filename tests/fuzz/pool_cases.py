"""Pools that somebody made up: each is an honest one with a few changes, which a seed and a number tell.

Nearly always the names of changed files are made to fit again, as whoever made them up would do: checksums
keep nobody out who can write them.
"""

import base64
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from vllm_dare.drafting.blend import Blend
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.pivots import encode
from vllm_dare.pool.segment import PoolDocument
from vllm_dare.pool.tokenizer import MAX_VOCABULARY_SIZE, TokenizerInfo
from vllm_dare.pool.writer import PoolContent, write_pool
from vllm_dare.routing.router_file import RouterFile, write_item_router, write_user_router

INFO = TokenizerInfo(name="any", fingerprint="0" * 16, vocab_size=50)
MODEL_VOCAB = 60  # models have more rows than their tokenizer has tokens
NOWHERE = Path("/nowhere")  # what a link may point to, and nobody may make
Rng = np.random.Generator


@dataclass(frozen=True)
class Special:
    """What stands in a file's place: "link" to `target`, "pipe", "directory"."""

    kind: str
    target: str = ""


Content = bytes | Special
Files = dict[str, Content]


def documents(rng: Rng, number: int) -> list[PoolDocument]:
    """Texts that repeat each other, so that contexts have many places."""
    phrases = [rng.integers(0, INFO.vocab_size, 4) for _ in range(6)]
    texts = [np.concatenate([phrases[i] for i in rng.integers(0, 6, 5)]) for _ in range(number)]
    return [PoolDocument(text.astype(np.int32), i + 1) for i, text in enumerate(texts)]


def honest_pools(folder: Path) -> list[Files]:
    """Three pools: one with everything there is, one of a single segment, one whose groups are apart."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    users = write_user_router(
        folder,
        groups=["users/0", "users/1"],
        centroids=rng.normal(size=(2, 3)).astype(np.float32),
        item_ids=["i1", "i2", "i3"],
        item_vectors=rng.normal(size=(3, 3)).astype(np.float32),
        attributes={"": np.array([-1, -2], np.float32), "age=25": np.array([-3, -4], np.float32)},
    )
    items = write_item_router(
        folder,
        groups=["items/a", "items/b"],
        attribute="genre",
        values={"War": "items/a", "Drama": "items/b"},
        ranks={"War": 1},
        rule="rarest",
    )
    full = PoolContent(
        tokenizer=INFO,
        groups={"users/0": documents(rng, 12), "users/1": documents(rng, 3)},
        global_documents=documents(rng, 16),
        assignments=[(entity_hash("user", f"u{i}"), f"users/{i % 2}") for i in range(9)],
        provenance="strict",
        model="m",
        routers=[RouterFile.open(users), RouterFile.open(items)],
        blend=Blend.default().encode(),
        pivots=encode(np.array([3, 5, 2**63], np.uint64)),
    )
    single = PoolContent(
        INFO, {}, documents(rng, 40), assignments=None, provenance="external", model=None, pivots=""
    )
    apart = PoolContent(INFO, {"a": documents(rng, 8), "b": []}, None, None, "strict", None, pivots="")
    pools = []
    for name, content in (("full", full), ("single", single), ("apart", apart)):
        directory = folder / name
        write_pool(content, directory, workers=1, max_segment_tokens=250)
        if name == "full":
            store = LiveStore(prepare_live(directory, INFO), INFO, has_global=True, max_tokens=10**4)
            store.freeze(
                [LiveDocument(document.tokens, "users/0", "strict", 7) for document in documents(rng, 5)]
            )
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        pools.append({str(path.relative_to(directory)): path.read_bytes() for path in paths})
    return pools


class Directory:
    """A pool directory on disk; of one case to the next only what differs is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holds: Files = {}
        self.owner = 0

    def forget(self) -> None:
        """Somebody else has written into it: the next `put` begins anew, as it does in another process."""
        self.owner = 0

    def _begin(self) -> None:
        self.owner = os.getpid()
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in ("segments", "live/segments"):
            (self.path / folder).mkdir(parents=True)
        self.holds = {}

    def put(self, files: Mapping[str, Content]) -> None:
        if self.owner != os.getpid():
            self._begin()
        for name in [name for name in self.holds if self.holds[name] is not files.get(name)]:
            _remove(f"{self.path}/{name}")
            del self.holds[name]
        for name, content in files.items():
            if name not in self.holds:
                _write(f"{self.path}/{name}", content)
                self.holds[name] = content


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        os.rmdir(path)


def _write(path: str, content: Content) -> None:
    if isinstance(content, bytes):
        with open(path, "wb") as file:
            file.write(content)
        return
    _remove(path)  # what the reader itself has made there
    if content.kind == "link":
        os.symlink(content.target, path)
    elif content.kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkdir(path)


NESTED: list[Any] = []
for _ in range(150):
    NESTED = [NESTED]
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 17, 2**24, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400,
    -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0", "-1", "7", "9" * 5000, "x" * 1000,
    "0" * 32, "F" * 32, "a" * 31 + "\n", "0" * 32 + "\n", "../" * 8 + "etc/passwd", "/etc/passwd",
    "\x00", "é\n", "\ud800", "\udc00x", "strict", "2020-01-01", "0001-01-01T00:00:00",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    [], {}, [[]], [0], [0, 0], {"a": 1}, {"": []}, NESTED, ["0" * 32] * 300, list(range(300)),
]  # fmt: skip
EXTREMES = [-(2**31), -2, -1, 0, 1, 2, 7, 8, 49, 50, 59, 60, 61, 2**15, 2**30, 2**31 - 2, 2**31 - 1]


def make_case(pools: list[Files], seed: int, number: int) -> Files:
    """The files of a case."""
    rng = np.random.default_rng((seed, number))
    files = dict(pools[rng.choice(len(pools), p=[0.3, 0.4, 0.3])])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change = _CHANGES[rng.choice(len(_CHANGES), p=_SHARES)]
        change(rng, files)
    return files


def change_one_file(rng: Rng, files: Files) -> Files:
    """A pool of a single file with some changes to that file."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        if next(iter(files)).endswith(".json"):
            changes = [_change_manifest, _change_manifest, _change_manifest, _change_bytes, _bomb]
        else:
            changes = [_change_arrays, _change_arrays, _change_arrays, _change_header, _change_bytes, _bomb]
        _pick(rng, changes)(rng, files)
    return files


def _pick(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _names(files: Files, ending: str) -> list[str]:
    return [name for name in files if name.endswith(ending) and isinstance(files[name], bytes)]


def _change_bytes(rng: Rng, files: Files) -> None:
    """Any file: cut, flip, overwrite, insert, repeat."""
    names = _names(files, "")
    if not names:
        return
    name = _pick(rng, names)
    fit(files, name, _damaged(rng, files[name]))  # type: ignore[arg-type]


def _damaged(rng: Rng, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        a, b = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
        how = rng.integers(7)
        if how == 0:
            del data[a:]
        elif how == 1 and a < len(data):
            data[a] ^= 1 << int(rng.integers(8))
        elif how == 2:
            data[a : a + 4] = struct.pack("<i", _pick(rng, EXTREMES))
        elif how == 3:
            data[a:a] = rng.bytes(int(rng.integers(1, 9)))
        elif how == 4:
            data[a:a] = data[a : min(b, a + 64)]
        elif how == 5:
            del data[a : min(b, a + 64)]
        else:
            data[a : a + 1] = _pick(rng, [b'"', b"{", b"[", b",", b":", b"\\", b"\x00", b"\xff", b"-", b"9"])
    return bytes(data)


def _change_manifest(rng: Rng, files: Files) -> None:
    """A value of a manifest, or a name in it, is another; or one is there twice."""
    names = _names(files, "manifest.json")
    if not names:
        return
    name = _pick(rng, names)
    try:
        manifest = json.loads(files[name])  # type: ignore[arg-type]
    except (ValueError, RecursionError):
        return
    if rng.random() < 0.2 and isinstance(manifest, dict):
        manifest["blend"], manifest["pivots"] = _numbers(rng), _pivots(rng)
    for _ in range(rng.integers(0, 3)):
        manifest = _changed_value(rng, manifest)
    files[name] = _encoded(rng, manifest)


def _encoded(rng: Rng, value: Any) -> bytes:
    text = json.dumps(value)
    if rng.random() < 0.1 and text.startswith("{"):
        key = _pick(rng, ["segments", "groups", "tokenizer", "__metadata__", "tokens"])
        text = f'{{"{key}": {json.dumps(_pick(rng, HOSTILE))}, {text[1:]}'
    return text.encode()


def _changed_value(rng: Rng, value: Any) -> Any:
    """The same with something changed, anywhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = _pick(rng, list(value))
        how = rng.integers(10)
        changed = dict(value)
        if how == 0:
            del changed[key]
        elif how == 1:
            changed[str(_pick(rng, HOSTILE))[:200]] = changed.pop(key)
        elif how == 2:
            changed[str(_pick(rng, HOSTILE))[:200]] = _pick(rng, [value[key], *HOSTILE])
        else:
            changed[key] = _changed_value(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = int(rng.integers(len(value)))
        return [*value[:place], _changed_value(rng, value[place]), *value[place + int(rng.integers(2)) :]]
    if isinstance(value, int) and rng.random() < 0.5:
        return value + int(rng.integers(-9, 10))
    return _pick(rng, HOSTILE)


def _numbers(rng: Rng) -> str:
    """A blend: all 0, all 1, or with numbers that are none."""
    numbers = Blend.default().numbers().astype("<f4")
    how = rng.integers(4)
    if how < 2:
        numbers[:] = how
    else:
        places = rng.integers(0, len(numbers), 50)
        numbers[places] = rng.choice([0, 1, -0.0, 1e-45, *([np.nan, np.inf, -1, 2] if how == 3 else [])], 50)
    data = numbers.tobytes()[: _pick(rng, [None, None, None, None, 8, 9])]
    return base64.b64encode(data).decode()


def _pivots(rng: Rng) -> str:
    values = rng.integers(0, 2**64, rng.integers(0, 9), dtype=np.uint64)
    data = (np.sort(values) if rng.random() < 0.8 else values).tobytes()
    return base64.b64encode(data[: _pick(rng, [None, None, None, 7])]).decode()


def _change_header(rng: Rng, files: Files) -> None:
    """A value in the header of a tensor file, or the header's length, is another."""
    name, header, data = _tensor_file(rng, files)
    if header is None:
        return
    for _ in range(rng.integers(1, 3)):
        header = _changed_value(rng, header)
    encoded = _encoded(rng, header)
    if rng.random() < 0.9:
        encoded += b" " * (-len(encoded) % 8)
    length = (
        len(encoded) if rng.random() < 0.9 else _pick(rng, [0, 1, 2**31, 2**63, 2**64 - 1, len(encoded) + 8])
    )
    fit(files, name, struct.pack("<Q", length) + encoded + data)


def _change_arrays(rng: Rng, files: Files) -> None:
    """Numbers in the arrays of a tensor file are others, or there are more or fewer; the header fits."""
    name, header, data = _tensor_file(rng, files)
    if header is None:
        return
    arrays = _arrays(header, data)
    if not arrays:
        return
    for _ in range(rng.integers(1, 4)):
        key = _pick(rng, list(arrays))
        arrays[key] = _changed_array(rng, arrays[key], key)
    fit(files, name, with_arrays(header, arrays))


def _changed_array(rng: Rng, array: np.ndarray, key: str) -> np.ndarray:
    array = array.copy()
    how = rng.integers(9)
    if how <= 3 and len(array):
        places = rng.integers(0, len(array), rng.integers(1, 1 + (len(array) if how == 3 else 4)))
        size = len(array)
        values = [*EXTREMES, size - 1, size, size + 1]
        if array.dtype == np.float32:
            values = [np.nan, np.inf, -np.inf, 0, 1e38, -1e38, 1e-45]
        with np.errstate(all="ignore"):
            array[places] = np.array(rng.choice(values, len(places))).astype(array.dtype)
    elif how == 4:
        rng.shuffle(array)
    elif how == 5:
        array = array[::-1].copy()
    elif how == 6:
        array = np.resize(array, max(0, len(array) + int(rng.integers(-3, 4))))
    elif how == 7 and array.dtype == np.int32:
        array = np.frombuffer(rng.bytes(4 * len(array)), np.int32).copy()
    elif how == 8 and len(array):
        array[:] = array[rng.integers(len(array))]
    return array


def _tensor_file(rng: Rng, files: Files) -> tuple[str, dict[str, Any] | None, bytes]:
    names = _names(files, ".safetensors")
    if not names:
        return "", None, b""
    name = _pick(rng, names)
    header, data = split(files[name])  # type: ignore[arg-type]
    return name, header, data


def split(content: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """A tensor file's header and what follows; None if that has been changed too much already."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError, OverflowError, RecursionError):
        return None, b""
    return (header, content[8 + length :]) if isinstance(header, dict) else (None, b"")


def _arrays(header: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    dtypes = {"F32": np.float32, "I32": np.int32, "U64": np.uint64}
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            try:
                begin, end = entry["data_offsets"]
                arrays[name] = np.frombuffer(data[begin:end], dtypes[entry["dtype"]])
            except (ValueError, TypeError, KeyError):
                return {}
    return arrays


def with_arrays(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A tensor file whose header says what the arrays are, in number of tokens, too."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.uint64): "U64"}
    ends = [0, *accumulate(array.nbytes for array in arrays.values())]
    entries: dict[str, Any] = {
        name: {"dtype": names[array.dtype], "shape": [len(array)], "data_offsets": ends[i : i + 2]}
        for i, (name, array) in enumerate(arrays.items())
    }
    metadata = header.get("__metadata__")
    if (
        isinstance(metadata, dict)
        and "num_tokens" in metadata
        and {"suffix_array", "document_keys"} <= arrays.keys()
    ):
        counts = {"num_tokens": len(arrays["suffix_array"]), "num_documents": len(arrays["document_keys"])}
        metadata = {**metadata, **{name: str(count) for name, count in counts.items()}}
    encoded = json.dumps({"__metadata__": metadata, **entries}).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(a.tobytes() for a in arrays.values())


def fit(files: Files, name: str, content: bytes, always: bool = False) -> None:
    """Change a file; nearly always its name, and what the manifest says of it, come to fit the content."""
    digest = hashlib.sha256(content).hexdigest()
    if not name.endswith(".safetensors") or (not always and digest[0] == "0"):
        files[name] = content
        return
    folder, _, old = name.removesuffix(".safetensors").rpartition("/")
    new = f"{old.rpartition('-')[0]}-{digest[:32]}" if "-" in old else digest[:32]
    del files[name]
    files[f"{folder}/{new}.safetensors".lstrip("/")] = content
    owner = "live/manifest.json" if name.startswith("live/") else "manifest.json"
    manifest = files.get(owner)
    if not isinstance(manifest, bytes):
        return
    manifest = manifest.replace(old.encode(), new.encode())
    try:
        parsed = json.loads(manifest)
        header, _ = split(content)
        facts, metadata = parsed["segments"][new], header["__metadata__"]  # type: ignore[index]
        facts["num_bytes"] = len(content)
        facts["num_tokens"], facts["num_documents"] = metadata["num_tokens"], metadata["num_documents"]
        parsed["tokenizer"]["vocab_size"] = metadata["vocab_size"]
        manifest = json.dumps(parsed).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    files[owner] = manifest


def _change_kind(rng: Rng, files: Files) -> None:
    """A file is missing, or is something else: a link out of the pool, a pipe, a device, a directory."""
    name = _pick(rng, list(files)) if rng.random() < 0.9 else _pick(rng, ["readers", "live/lock"])
    others = [
        *(Special("link", target) for target in ("/etc/passwd", "/dev/zero", "/dev/null", "/dev/full", ".")),
        Special("link", str(NOWHERE)),
        Special("link", Path(name).name),  # to itself
        Special("pipe"),
        Special("directory"),
    ]
    files.pop(name, None)
    if rng.random() < 0.8:
        files[name] = _pick(rng, others)


def _exchange(rng: Rng, files: Files) -> None:
    """Two files have each other's content."""
    a, b = _pick(rng, list(files)), _pick(rng, list(files))
    files[a], files[b] = files[b], files[a]


def _bomb(rng: Rng, files: Files) -> None:
    """Megabytes of JSON that would be hundreds as objects, or a header that asks for a large table; rarely,
    being slow.
    """
    if rng.random() > 0.005:
        return
    size = 3_000_000
    raw = _pick(rng, [b"1,", b"[],", b"{},", b'"",', b'{"a":1},', b'"\\"",', b"[", b'"', b"\\", b'"\\'])
    bomb = b"[" + raw * (size // len(raw)) + b"1]"
    if rng.random() < 0.5:
        names = _names(files, "manifest.json")
        if names:
            name = _pick(rng, names)
            place = _pick(rng, [b'"groups": ', b'"segments": ', b'"global_segments": ', b""])
            content: bytes = files[name]  # type: ignore[assignment]
            parts = content.partition(place) if place else (b"", b"", content)
            files[name] = parts[0] + parts[1] + bomb + b"," + parts[2]
        return
    name, header, data = _tensor_file(rng, files)
    metadata = (header or {}).get("__metadata__")
    if header is None or not isinstance(metadata, dict):
        return
    if rng.random() < 0.5:
        metadata["groups"] = bomb.decode()
    else:
        metadata["vocab_size"] = str(_pick(rng, [MAX_VOCABULARY_SIZE, 2**31 - 1]))
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    fit(files, name, struct.pack("<Q", len(encoded)) + encoded + data)


_WEIGHTED: list[tuple[Callable[[Rng, Files], None], float]] = [
    (_change_arrays, 0.40),
    (_change_header, 0.15),
    (_change_manifest, 0.20),
    (_change_bytes, 0.15),
    (_change_kind, 0.04),
    (_exchange, 0.02),
    (_bomb, 0.04),
]
_CHANGES = [change for change, _ in _WEIGHTED]
_SHARES = [share for _, share in _WEIGHTED]
