import threading
from pathlib import Path

import pytest

from vllm_dare.errors import StoreError
from vllm_dare.store.remote import Store
from vllm_dare.store.swap import swap_of


def test_only_who_knows_the_content_replaces_it(url: str) -> None:
    swap = swap_of(Store(url))
    assert swap.read("latest") is None
    assert swap.replace("latest", b"0", '"bad"') is None
    first = swap.replace("latest", b"1", None)
    assert first is not None
    assert swap.read("latest") == (b"1", first)
    assert swap.replace("latest", b"2", None) is None
    second = swap.replace("latest", b"2", first)
    assert swap.replace("latest", b"3", first) is None
    assert swap.read("latest") == (b"2", second)


def test_no_increment_of_many_writers_is_lost(url: str) -> None:
    num_writers, num_increments = 4, 15

    def increment(writer: int) -> None:
        swap, done = swap_of(Store(url)), 0
        while done < num_increments:
            found = swap.read("latest")
            number = int(found.content.split()[0]) if found else 0
            content = f"{number + 1} {writer} {done}".encode()
            done += swap.replace("latest", content, found.tag if found else None) is not None

    writers = [threading.Thread(target=increment, args=(n,)) for n in range(num_writers)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = Store(url).read("latest")
    assert content is not None
    assert int(content.split()[0]) == num_writers * num_increments


def test_an_answer_that_got_lost_is_no_loss(s3_url: str) -> None:
    swap = swap_of(Store(s3_url))
    tag = swap.replace("latest", b"mine", None)
    assert swap.replace("latest", b"mine", None) == tag  # as the client does that sends its request again


def test_a_server_that_ignores_conditions_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(s3_url)
    call = store.fs.call_s3

    def ignore(method: str, **arguments: object) -> object:
        kept = {name: value for name, value in arguments.items() if not name.startswith("If")}
        return call(method, **kept)

    monkeypatch.setattr(store.fs, "call_s3", ignore)
    with pytest.raises(StoreError, match="ignores conditional writes"):
        swap_of(store).replace("latest", b"1", None)
    assert store.read("latest") is None


def test_stores_without_conditional_writes_are_read_only(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at memory: can be read, but not written to"):
        swap_of(Store("memory://pool"))
