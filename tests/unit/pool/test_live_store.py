"""Live text on disk: bounded, shared by processes, and whole whatever happens to them."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool import files
from vllm_dare.pool.live import LiveDocument, Source
from vllm_dare.pool.live_keeper import LiveKeeper
from vllm_dare.pool.live_store import FrozenText, LiveStore, prepare_live, prepare_pool
from vllm_dare.pool.manifest import read_manifest
from vllm_dare.pool.merge import merge_pools
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.segment import Provenance
from vllm_dare.pool.tokenizer import TokenizerInfo

VOCAB = 1000
INFO = TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=VOCAB)
OTHER = TokenizerInfo(name="letters", fingerprint="fedcba9876543210", vocab_size=VOCAB)


def document(number: int, group: str | None = "g", provenance: Provenance = "strict") -> LiveDocument:
    """A document that tells its number."""
    tokens = np.array([number // 30 % 30, number % 30, *range(30, 40)], np.int32)
    return LiveDocument(tokens, group, provenance)


def numbers(tokens: Sequence[np.ndarray]) -> Counter[int]:
    return Counter(int(one[0]) * 30 + int(one[1]) for one in tokens)


def open_store(pool: Path, *, has_global: bool = True, max_tokens: int = 10**6) -> LiveStore:
    return LiveStore(prepare_live(pool, INFO), INFO, has_global=has_global, max_tokens=max_tokens)


def stored(directory: Path, group: str | None = "g") -> Counter[int]:
    """The documents of a group, or everybody's, after everything was checked."""
    with RetrievalPool.open(directory) as pool:
        pool.verify()
        segments = pool.global_segments() if group is None else pool.group_segments(group)
        return numbers([document for segment in segments for document in segment.documents()])


def leftovers(directory: Path) -> set[str]:
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    names -= {"lock", "manifest.json", "readers"}
    return names - {f"{name}.safetensors" for name in read_manifest(directory).segments}


def test_an_empty_pool_is_made_once(tmp_path: Path) -> None:
    assert prepare_pool(tmp_path / "new" / "pool", INFO)
    assert not prepare_pool(tmp_path / "new" / "pool", INFO)
    with RetrievalPool.open(tmp_path / "new" / "pool") as pool:
        pool.verify()
        assert pool.manifest.global_segments  # so that learned text is everybody's
        assert not pool.groups


def test_an_empty_directory_becomes_a_pool_and_another_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert prepare_pool(tmp_path / "empty", INFO)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(PoolError, match="is not a pool"):
        prepare_pool(tmp_path / "mine", INFO)


def test_what_is_frozen_is_an_ordinary_pool(tmp_path: Path) -> None:
    prepare_pool(tmp_path / "pool", INFO)
    store = open_store(tmp_path / "pool")
    store.freeze([document(1, "a"), document(2, None), document(3, "b")])
    live = tmp_path / "pool" / "live"
    assert stored(live, "a") == {1: 1}
    assert stored(live, None) == {1: 1, 2: 1, 3: 1}
    merge_pools([tmp_path / "pool", live], tmp_path / "merged")
    assert stored(tmp_path / "merged", None) == {1: 1, 2: 1, 3: 1}
    assert stored(tmp_path / "merged", "b") == {3: 1}


def test_many_freezes_leave_few_segments_and_every_document_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(60):
        store.freeze([document(number), document(number + 100, "h")])
    live = tmp_path / "live"
    assert stored(live) == dict.fromkeys(range(60), 1)
    assert sum(stored(live, None).values()) == 120
    manifest = read_manifest(live)
    assert max(len(names) for names in (*manifest.groups.values(), manifest.global_segments)) <= 4
    assert not leftovers(live)


def long(number: int, group: str | None = "g", provenance: Provenance = "strict") -> LiveDocument:
    """A document so long that it is not written twice by chance."""
    tokens = document(number).tokens
    return LiveDocument(np.concatenate((tokens, np.arange(40, 100, dtype=np.int32))), group, provenance)


def test_the_texts_of_a_batch_that_runs_again_are_kept_once(tmp_path: Path) -> None:
    batch = [long(1), long(2), long(2, "h"), long(3, None)]
    open_store(tmp_path).freeze(batch)
    before = (tmp_path / "live" / "manifest.json").read_bytes()
    again = open_store(tmp_path)
    again.freeze(batch)
    assert again.num_known == 4
    assert (tmp_path / "live" / "manifest.json").read_bytes() == before
    again.freeze([long(4), long(4), *batch])
    assert again.num_known == 9
    assert stored(tmp_path / "live") == {1: 1, 2: 1, 4: 1}
    assert stored(tmp_path / "live", "h") == {2: 1}
    assert stored(tmp_path / "live", None) == {1: 1, 2: 2, 3: 1, 4: 1}


def test_a_text_of_another_group_or_provenance_is_another_one(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for one in (long(1), long(1, "h"), long(1, "g", "relaxed")):
        store.freeze([one])
    assert stored(tmp_path / "live") == {1: 2}
    assert stored(tmp_path / "live", "h") == {1: 1}
    assert store.num_known == 0


def test_how_often_a_short_text_is_written_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.freeze([document(1), document(1)])
    store.freeze([document(1)])
    assert stored(tmp_path / "live") == {1: 3}


def test_a_text_that_made_room_for_others_is_learned_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_tokens=100)
    for number in (1, 2, 1):
        store.freeze([long(number)])
    assert stored(tmp_path / "live") == {1: 1}
    assert store.num_known == 0


def test_keys_stay_with_their_documents_when_segments_are_joined(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(9):
        store.freeze([document(number)._replace(key=100 + number if number % 2 else 0)])
    with RetrievalPool.open(tmp_path / "live") as pool:
        assert len(pool.group_segments("g")) < 9
        for segments in (pool.group_segments("g"), pool.global_segments()):
            found = [one for segment in segments for one in segment.keyed_documents()]
            assert len(found) == 9
            for tokens, key in found:
                (number,) = numbers([tokens])
                assert key == (100 + number if number % 2 else 0)


def test_relaxed_text_has_segments_of_its_own(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(6):
        store.freeze([document(number, "g", "relaxed" if number % 2 else "strict")])
    with RetrievalPool.open(tmp_path / "live") as pool:
        by_provenance = {
            provenance: numbers(
                [
                    d
                    for s in pool.group_segments("g")
                    for d in s.documents()
                    if s.header.provenance == provenance
                ]
            )
            for provenance in ("strict", "relaxed")
        }
    assert by_provenance == {"strict": {0: 1, 2: 1, 4: 1}, "relaxed": {1: 1, 3: 1, 5: 1}}


def test_without_a_global_segment_there_is_no_text_for_everybody(tmp_path: Path) -> None:
    open_store(tmp_path).freeze([document(1)])
    assert stored(tmp_path / "live", None) == {1: 1}
    open_store(tmp_path, has_global=False).freeze([document(2), document(3, None)])
    assert stored(tmp_path / "live", None) == {}
    assert stored(tmp_path / "live") == {1: 1, 2: 1}


def test_the_oldest_segments_go_when_there_is_too_much(tmp_path: Path) -> None:
    limit = 240  # twenty documents
    store = open_store(tmp_path, max_tokens=limit)
    for number in range(100):
        store.freeze([document(number, f"g{number % 3}")])
        manifest = read_manifest(tmp_path / "live")
        sizes = {name: info.num_tokens for name, info in manifest.segments.items()}
        assert sum(sizes[name] for name in manifest.global_segments) <= limit
        assert sum(sizes[name] for names in manifest.groups.values() for name in names) <= limit
    kept = stored(tmp_path / "live", None)
    assert set(kept) == set(range(100 - len(kept), 100))
    assert len(kept) >= 15
    assert not leftovers(tmp_path / "live")


def test_a_reader_of_an_old_manifest_keeps_what_it_mapped_and_says_what_has_gone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.freeze([document(1, "a"), document(2, "b")])
    reader = store.read()
    (mapped,) = reader.group_segments("a")
    store.freeze([document(3, "a"), document(4, "b")])
    assert numbers(list(mapped.documents())) == {1: 1}
    with pytest.raises(PoolError, match="missing"):
        reader.group_segments("b")
    again = store.read(reader)
    assert numbers([d for s in again.group_segments("b") for d in s.documents()]) == {2: 1, 4: 1}


def test_what_others_wrote_is_noticed(tmp_path: Path) -> None:
    mine, theirs = open_store(tmp_path), open_store(tmp_path)
    mine.read()
    assert not mine.has_changed()
    theirs.freeze([document(1)])
    assert mine.has_changed()
    mine.read()
    assert not mine.has_changed()


def test_a_segment_that_somebody_reads_stays_until_later(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.freeze([document(1)])
    with RetrievalPool.open(tmp_path / "live") as reader:
        store.freeze([document(2)])
        assert numbers([d for s in reader.group_segments("g") for d in s.documents()]) == {1: 1}
    assert leftovers(tmp_path / "live")
    store.freeze([document(3)])
    assert not leftovers(tmp_path / "live")


def test_a_directory_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    prepare_live(tmp_path, INFO)
    with pytest.raises(PoolError, match=r"numbers.*letters.*remove or rename"):
        prepare_live(tmp_path, OTHER)


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).freeze([document(1)])
    (path, *_) = (tmp_path / "live" / "segments").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PoolError, match=r"Or remove .*live"):
        prepare_live(tmp_path, INFO)


def test_a_directory_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_live(tmp_path, INFO)
    real_open = os.open

    def refuse(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)  # root may write where others may not
    with pytest.raises(
        PoolError, match=r"Cannot write to .*live \(Read-only file system\).*make the pool writable"
    ):
        prepare_live(tmp_path, INFO)


class Keeper:
    """A keeper without its thread: rounds are made by hand."""

    def __init__(self, pool: Path, max_tokens: int = 2**12) -> None:
        self.errors: list[Exception] = []
        store = open_store(pool, max_tokens=max_tokens)
        self.keeper = LiveKeeper(store, has_global=True, max_tokens=max_tokens, on_stop=self.errors.append)

    def served(self) -> Counter[int]:
        own, overall = self.keeper.live.segments("g")
        found = [_documents(segments) for segments in (own, overall)]
        assert numbers(found[0]) == numbers(found[1])
        return numbers(found[0])


def _documents(segments: Sequence[Source]) -> list[np.ndarray]:
    tokens = [segment.tokens for segment in segments]
    return [part[:-1] for one in tokens for part in np.split(one, np.flatnonzero(one == -1) + 1) if len(part)]


def test_frozen_text_is_served_once(tmp_path: Path) -> None:
    one = Keeper(tmp_path)
    for number in range(80):
        one.keeper.add([document(number)])
        one.keeper.tend()
        assert one.served() == dict.fromkeys(range(number + 1), 1)
    one.keeper.close()
    assert one.served() == dict.fromkeys(range(80), 1) == stored(tmp_path / "live")
    assert not one.errors


def test_text_of_other_processes_is_served(tmp_path: Path) -> None:
    one, two = Keeper(tmp_path), Keeper(tmp_path)
    one.keeper.add([document(1)])
    one.keeper.close()
    two.keeper.add([document(2)])
    two.keeper.tend()
    assert two.served() == {1: 1, 2: 1}


def test_a_full_disk_ends_freezing_but_not_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Keeper(tmp_path)
    one.keeper.add([document(1)])
    one.keeper.close()
    one = Keeper(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for number in range(2, 200):
        one.keeper.add([document(number)])
        one.keeper.tend()
    monkeypatch.undo()
    assert [str(error) for error in one.errors] == ["[Errno 28] No space left on device"]
    served = one.served()
    assert served[1] == served[199] == 1
    assert sum(served.values()) * 12 <= 2**12 / 4 + 12
    assert stored(tmp_path / "live") == {1: 1}
    assert not leftovers(tmp_path / "live")


def test_a_directory_that_is_removed_ends_freezing_but_not_serving(tmp_path: Path) -> None:
    one = Keeper(tmp_path)
    one.keeper.add([document(1)])
    shutil.rmtree(tmp_path / "live")
    one.keeper.tend()
    one.keeper.add([document(2)])
    one.keeper.close()
    assert len(one.errors) == 1
    assert one.served() == {1: 1, 2: 1}
    assert not (tmp_path / "live").exists()


def test_a_file_that_has_gone_costs_its_text_until_the_manifest_is_read(tmp_path: Path) -> None:
    one, two = Keeper(tmp_path), Keeper(tmp_path)
    two.keeper.add([document(1)])
    two.keeper.close()
    one.keeper.tend()
    two = Keeper(tmp_path)
    two.keeper.add([document(2)])
    two.keeper.close()
    one.keeper._frozen = FrozenText(tmp_path / "live", one.keeper._frozen.manifest)  # nothing mapped yet
    one.keeper.live.swap(one.keeper._frozen)
    assert one.served() == {}
    one.keeper.tend()
    assert one.served() == {1: 1, 2: 1}


_WRITER = """
import sys
from pathlib import Path
from tests.unit.pool.test_live_store import document, open_store
store = open_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    store.freeze([document(number)])
    print(number, flush=True)
"""
ROOT = Path(__file__).parents[3]


def _write(pool: Path, first: int, last: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _WRITER, str(pool), str(first), str(last)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_keeps_what_was_frozen(tmp_path: Path) -> None:
    prepare_live(tmp_path, INFO)
    chance = random.Random(1)
    frozen: set[int] = set()
    first = 0
    for _ in range(10):
        writer = _write(tmp_path, first, 900)
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline())]  # it is up
        time.sleep(chance.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        frozen |= set(seen)
        found = stored(tmp_path / "live")
        assert set(found) >= frozen
        assert set(found) - frozen <= {max(seen) + 1}  # written, but killed before it said so
        assert set(found.values()) == {1}
        assert stored(tmp_path / "live", None) == found
        frozen, first = set(found), max(found) + 1
    open_store(tmp_path).freeze([document(899)])
    assert not leftovers(tmp_path / "live")


def test_two_processes_lose_and_double_nothing(tmp_path: Path) -> None:
    prepare_live(tmp_path, INFO)
    reader = Keeper(tmp_path)
    writers = [_write(tmp_path, first, first + 25) for first in (0, 100)]
    while any(writer.poll() is None for writer in writers):
        reader.keeper.tend()
        assert set(reader.served().values()) <= {1}
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    everything = dict.fromkeys([*range(25), *range(100, 125)], 1)
    assert stored(tmp_path / "live") == stored(tmp_path / "live", None) == everything
    reader.keeper.tend()
    assert reader.served() == everything
    assert not reader.errors
