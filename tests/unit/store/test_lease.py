import time

import pytest

from vllm_dare.errors import StoreError
from vllm_dare.store.latest import read_latest
from vllm_dare.store.lease import Lease
from vllm_dare.store.remote import Store

A, B = "a" * 32, "b" * 32


def test_one_at_a_time(url: str) -> None:
    store = Store(url)
    with Lease(store) as lease:
        assert lease.is_safe
        with pytest.raises(StoreError, match=r"is changing .*; try again"), Lease(Store(url)):
            pass
        lease.publish(A, {"box": 3}, {})
    latest = read_latest(store)
    assert (latest.manifest, latest.absorbed, latest.lease) == (A, {"box": 3}, None)
    with Lease(store) as lease:
        lease.publish(B, {"box": 4}, {})
    assert [one.manifest for one in read_latest(store).replaced] == [A]
    assert read_latest(store).number == 2


def test_who_was_paused_too_long_cannot_publish(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_run", lambda self: self._closing.wait())  # renews nothing, as if paused
    with Lease(Store(url), seconds=0.2) as late:
        late.publish(A, {}, {})
        time.sleep(0.25)
        assert not late.is_safe
        with Lease(Store(url)):  # has changed nothing but the lease
            with pytest.raises(StoreError, match="Another process has taken over"):
                late.publish(B, {}, {})
            with pytest.raises(StoreError, match="Another process has taken over"):
                late.publish(B, {}, {})
    assert read_latest(Store(url)).manifest == A


def test_it_is_renewed_and_keeps_what_was_published(url: str) -> None:
    with Lease(Store(url), seconds=4) as lease:
        lease.publish(A, {"box": 1}, {})
        taken, deadline = lease.latest.lease, time.monotonic() + 60
        while (renewed := read_latest(Store(url))).lease == taken:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (renewed.manifest, renewed.absorbed) == (A, {"box": 1})
        lease.publish(B, {"box": 2}, {})
    latest = read_latest(Store(url))
    assert (latest.manifest, latest.absorbed, latest.lease) == (B, {"box": 2}, None)


def test_a_failing_block_gives_it_back(url: str) -> None:
    with pytest.raises(ZeroDivisionError), Lease(Store(url)):
        _ = 1 / 0
    with Lease(Store(url)):
        pass


def test_a_damaged_pointer_is_refused(url: str) -> None:
    Store(url).write("latest", b"{")
    with pytest.raises(StoreError, match="latest is damaged"):
        read_latest(Store(url))
    with pytest.raises(StoreError, match="latest is damaged"), Lease(Store(url)):
        pass
