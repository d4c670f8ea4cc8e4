"""Orders reach every engine that learns, and what they want forgotten comes back from nowhere."""

import errno
from pathlib import Path

import numpy as np
import pytest

from vllm_dare.errors import PoolError
from vllm_dare.pool import files, live_orders
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_keeper import LiveKeeper
from vllm_dare.pool.live_orders import (
    ORDERS_NAME,
    OrderReader,
    Unfollowed,
    give_order,
    has_followers,
    is_followed,
)
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.lock import locked
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo

INFO = TokenizerInfo(name="numbers", fingerprint="0123456789abcdef", vocab_size=1000)


def document(number: int, group: str | None = "g", key: int = 0) -> LiveDocument:
    return LiveDocument(np.array([number, *range(30, 40)], np.int32), group, "strict", key)


class Keeper:
    """A `LiveKeeper` that learns for an engine that is not there, and what it was told."""

    def __init__(self, pool: Path) -> None:
        store = LiveStore(prepare_live(pool, INFO), INFO, has_global=True, max_tokens=10**6)
        self.told: list[object] = []
        self.failures: list[Exception] = []
        self.keeper = LiveKeeper(store, has_global=True, max_tokens=10**6, on_stop=self.failures.append)
        self.keeper._engine = self
        store.orders.start()

    def gather(self) -> None: ...

    def forget(self, unfollowed: Unfollowed) -> None:
        self.told.append(unfollowed)

    def renew(self) -> None:
        self.told.append("renew")

    def texts(self, group: str | None = "g") -> list[int]:
        """The first tokens of the documents that draft, in memory and mapped."""
        sources = self.keeper.live.segments(group)[group is None]
        tokens = np.concatenate([source.tokens for source in sources] or [np.empty(0, np.int32)])
        parts = np.split(tokens, np.flatnonzero(tokens == -1) + 1)
        return sorted(int(part[0]) for part in parts if len(part))


def on_disk(pool: Path) -> list[int]:
    with RetrievalPool.open(pool / "live") as live:
        live.verify()
        return sorted(int(one[0]) for segment in live.global_segments() for one in segment.documents())


def order(pool: Path, **what: list[int] | list[str]) -> int:
    with locked(pool / "live"):
        return give_order(pool / "live", **what)  # type: ignore[arg-type]


def test_an_order_without_a_name_writes_everything_down(tmp_path: Path) -> None:
    one = Keeper(tmp_path)
    one.keeper.add([document(1), document(2)])
    one.keeper.tend()
    assert on_disk(tmp_path) == []
    number = order(tmp_path)
    assert not is_followed(tmp_path / "live", number)
    one.keeper.tend()
    assert is_followed(tmp_path / "live", number)
    assert on_disk(tmp_path) == one.texts() == [1, 2]
    assert "renew" not in one.told
    assert not one.failures


def test_text_in_memory_is_forgotten_by_key_and_by_group(tmp_path: Path) -> None:
    one, other = Keeper(tmp_path), Keeper(tmp_path)
    one.keeper.add([document(1, key=7), document(2, key=8), document(3, "h", key=8), document(4, None)])
    other.keeper.add([document(5, key=7), document(6, "h", key=9)])
    number = order(tmp_path, keys=[7], groups=["h"])
    one.keeper.tend()
    assert not is_followed(tmp_path / "live", number)
    other.keeper.tend()
    assert is_followed(tmp_path / "live", number)
    one.keeper.tend()  # reads what the other has written
    for keeper in (one, other):
        assert keeper.texts(None) == on_disk(tmp_path) == [2, 4]
        assert keeper.texts() == [2]
        assert keeper.texts("h") == []
        assert keeper.told[1:] == ["renew"]
        assert not keeper.failures


def test_text_of_later_is_learned_again(tmp_path: Path) -> None:
    one = Keeper(tmp_path)
    order(tmp_path, keys=[7])
    one.keeper.tend()
    one.keeper.add([document(1, key=7)])
    one.keeper.close()
    assert on_disk(tmp_path) == [1]


def test_orders_from_before_an_engine_starts_are_none_of_its_business(tmp_path: Path) -> None:
    prepare_live(tmp_path, INFO)
    number = order(tmp_path, keys=[7])
    assert not has_followers(tmp_path / "live")
    one = Keeper(tmp_path)
    assert has_followers(tmp_path / "live")
    assert is_followed(tmp_path / "live", number)
    one.keeper.add([document(1, key=7)])
    one.keeper.close()
    assert on_disk(tmp_path) == [1]
    assert one.told == []


def test_who_has_missed_too_many_orders_forgets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_orders, "_KEPT_ORDERS", 3)
    one = Keeper(tmp_path)
    one.keeper.add([document(1, key=1)])
    for key in range(10, 13):
        order(tmp_path, keys=[key])
    one.keeper.tend()
    assert one.texts() == [1]
    one.keeper.add([document(2, key=2)])
    for key in range(10, 14):
        order(tmp_path, keys=[key])
    one.keeper.tend()
    assert one.texts() == on_disk(tmp_path) == [1]


def test_a_directory_that_was_made_anew_gives_orders_too(tmp_path: Path) -> None:
    live = prepare_live(tmp_path, INFO)
    for _ in range(3):
        give_order(live)
    reader = OrderReader(live)
    (live / ORDERS_NAME).unlink()
    assert reader.unfollowed() is None
    give_order(live, keys=[5])
    unfollowed = reader.unfollowed()
    assert unfollowed is not None
    assert (unfollowed.number, unfollowed.keys, unfollowed.everything) == (1, {5}, False)
    reader.followed(1)
    assert reader.unfollowed() is None


def test_text_without_a_key_is_nobodys() -> None:
    unfollowed = Unfollowed(1, frozenset({0}), frozenset(), everything=False)
    assert not unfollowed.covers(None, 0)


def test_with_a_full_disk_all_text_that_was_learned_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Keeper(tmp_path)
    one.keeper.add([document(1, key=7), document(2, key=8)])
    order(tmp_path)
    one.keeper.tend()
    assert on_disk(tmp_path) == [1, 2]
    number = order(tmp_path, keys=[7])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one.keeper.add([document(3, key=7)])
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        one.keeper.add([document(4)])
        one.keeper.tend()
    assert len(one.failures) == 1
    assert not is_followed(tmp_path / "live", number)
    one.keeper.tend()
    assert one.texts() == one.texts(None) == []
    assert is_followed(tmp_path / "live", number)
    one.keeper.add([document(5)])  # learning goes on in memory
    assert one.texts() == [5]


def test_an_engine_that_fails_in_the_background_is_told_once_and_still_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Keeper(tmp_path)
    one.keeper.add([document(1, key=7)])
    with monkeypatch.context() as patched:
        patched.setattr(one, "gather", lambda: 1 / 0)
        one.keeper.tend()
        one.keeper.tend()
    assert len(one.failures) == 1
    number = order(tmp_path, keys=[7])
    one.keeper.tend()
    assert one.texts() == []
    assert is_followed(tmp_path / "live", number)


def test_damaged_orders_are_refused(tmp_path: Path) -> None:
    live = prepare_live(tmp_path, INFO)
    (live / ORDERS_NAME).write_text("{")
    with pytest.raises(PoolError, match="is damaged"):
        give_order(live)
    with pytest.raises(PoolError, match="is damaged"):
        OrderReader(live)
