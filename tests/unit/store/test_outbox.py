import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dare.errors import PoolError, StoreError
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.live_store import LiveStore, prepare_live
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store import outbox as module
from vllm_dare.store.batch import read_batch, write_batch
from vllm_dare.store.cache import Place
from vllm_dare.store.latest import Latest
from vllm_dare.store.outbox import Outbox, Unsent, number_of, sent_batches
from vllm_dare.store.remote import Store

MakePool = Callable[..., Path]


def document(number: int, group: str | None = "users/1", length: int = 3) -> LiveDocument:
    return LiveDocument(np.full(length, number % 100, np.int32), group, "strict", number)


def same(first: LiveDocument, second: LiveDocument) -> bool:
    return first.tokens.tolist() == second.tokens.tolist() and first[1:] == second[1:]


@given(
    texts=st.lists(
        st.tuples(
            st.lists(st.integers(0, 99), min_size=1),
            st.none() | st.text(max_size=5),
            st.sampled_from(["strict", "relaxed", "external"]),
            st.integers(0, 2**64 - 1),
        ),
        min_size=1,
    )
)
def test_a_batch_comes_back_as_it_was(
    texts: list[tuple[list[int], str | None, str, int]],
    tmp_path_factory: pytest.TempPathFactory,
    info: TokenizerInfo,
) -> None:
    documents = [LiveDocument(np.array(ids, np.int32), *rest) for ids, *rest in texts]
    batch = read_batch(write_batch(tmp_path_factory.mktemp("batch"), documents, info, prefix="7-"))
    assert batch.tokenizer == info
    assert len(batch.documents) == len(documents)
    assert all(map(same, batch.documents, documents))


def test_damaged_batches_are_refused(tmp_path: Path, info: TokenizerInfo) -> None:
    path = write_batch(tmp_path, [document(1)], info, prefix="1-")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PoolError, match="its checksum is not its name"):
        read_batch(path)
    path = write_batch(
        tmp_path, [document(1)._replace(tokens=np.array([10**6], np.int32))], info, prefix="1-"
    )
    with pytest.raises(PoolError, match="its arrays disagree"):
        read_batch(path)


def test_batches_are_sent_once_and_in_order(url: str, info: TokenizerInfo) -> None:
    outbox, store = Outbox(Place(url)), Store(url)
    for number in range(3):
        outbox.add([document(number)], info)
    outbox.tend(store, Latest())
    sent = store.files("live")
    assert [number_of(Path(file.name)) for file in sent] == [1, 2, 3]
    assert {Path(file.name).parent.name for file in sent} == {outbox.name}
    store.remove(sent[0].name)
    outbox.tend(store, Latest())
    assert store.files("live") == sent[1:]  # it is not sent again
    outbox.add([document(9)], info)
    Outbox(Place(url)).tend(store, Latest())  # as another engine of the node
    assert [number_of(Path(file.name)) for file in store.files("live")] == [2, 3, 4]


def test_what_waits_is_counted(url: str, info: TokenizerInfo) -> None:
    outbox = Outbox(Place(url))
    assert outbox.unsent() is None
    outbox.add([document(1, length=3), document(2, length=4)], info)
    outbox.tend(Store(url), Latest())
    assert outbox.unsent() is None
    outbox.add([document(3, length=5), document(4, length=6)], info)
    outbox.add([document(5, length=7)], info)
    assert outbox.unsent() == Unsent(3, 18, str(outbox.directory))


def test_numbers_never_come_again(url: str, info: TokenizerInfo) -> None:
    outbox, store = Outbox(Place(url)), Store(url)
    outbox.add([document(1)], info)
    outbox.add([document(2)], info)
    outbox.tend(store, Latest(absorbed={outbox.name: 1}))
    (outbox.directory / "sent").unlink()  # as if it had been killed before it could note what it sent
    outbox.tend(store, Latest(absorbed={outbox.name: 2}))
    assert not list(outbox.directory.glob("*.safetensors"))
    outbox.add([document(3)], info)
    outbox.tend(store, Latest(absorbed={outbox.name: 2}))
    assert number_of(Path(store.files("live")[-1].name)) == 3


def test_what_became_part_of_the_pool_is_forgotten_here(
    url: str, make_pool: MakePool, info: TokenizerInfo
) -> None:
    place = Place(url)
    make_pool(place.pool, [("u1", "a likes films", "users/1")])
    outbox = Outbox(place)
    live = LiveStore(
        prepare_live(place.pool, info),
        info,
        has_global=True,
        max_tokens=10**5,
        pass_on=lambda documents: outbox.add(documents, info),
    )
    live.freeze([document(1)])
    live.freeze([document(2)])
    outbox.tend(Store(url), Latest(absorbed={outbox.name: 1}))
    with RetrievalPool.open(live.directory) as pool:
        left = [key for segment in pool.global_segments() for key in segment.document_keys.tolist()]
    assert left == [2]
    (path,) = outbox.directory.glob("*.safetensors")
    assert number_of(path) == 2
    path.write_bytes(b"damaged")  # since it was sent
    live.freeze([document(3)])
    outbox.tend(Store(url), Latest(absorbed={outbox.name: 2}))
    assert [number_of(path) for path in outbox.directory.glob("*.safetensors")] == [3]
    assert [batch.number for batch in sent_batches(Store(url))] == [2, 3]


def test_what_is_known_is_not_passed_on(make_pool: MakePool, info: TokenizerInfo) -> None:
    directory = make_pool("pool", [("u1", "a likes films", "users/1")])
    passed: list[LiveDocument] = []
    live = LiveStore(
        prepare_live(directory, info), info, has_global=True, max_tokens=10**5, pass_on=passed.extend
    )
    long = document(1, length=100)
    live.freeze([long, document(2)])
    live.freeze([long, document(3)])
    assert [one.key for one in passed] == [1, 2, 3]


def test_too_much_for_an_outage_makes_the_oldest_go(
    url: str, info: TokenizerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(Place(url))
    outbox.add([document(0)], info)
    (size,) = (path.stat().st_size for path in outbox.directory.glob("*.safetensors"))
    monkeypatch.setattr(module, "_MAX_BYTES", 3 * size)
    for number in range(1, 6):
        outbox.add([document(number)], info)
    assert sorted(map(number_of, outbox.directory.glob("*.safetensors"))) == [4, 5, 6]


def test_a_failure_while_sending_is_made_up_for(
    url: str, info: TokenizerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, store = Outbox(Place(url)), Store(url)
    for number in range(3):
        outbox.add([document(number)], info)
    upload, calls = Store.upload, iter(range(10))

    def fail_once(self: Store, file: Path, name: str) -> None:
        upload(self, file, name)
        if next(calls) == 1:
            raise StoreError("it is uncertain whether the file is there")

    monkeypatch.setattr(Store, "upload", fail_once)
    with pytest.raises(StoreError):
        outbox.tend(store, Latest())
    outbox.tend(store, Latest())
    assert [number_of(Path(file.name)) for file in store.files("live")] == [1, 2, 3]


ADDER = """
import sys
import numpy as np
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store.cache import Place
from vllm_dare.store.outbox import Outbox
outbox = Outbox(Place(sys.argv[1]))
info = TokenizerInfo(name="x", fingerprint="0" * 16, vocab_size=10)
for number in range(10):
    outbox.add([LiveDocument(np.array([1], np.int32), None, "strict", number)], info)
"""


def test_several_processes_share_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [subprocess.Popen([sys.executable, "-c", ADDER, url], env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = list(Outbox(Place(url)).directory.glob("*.safetensors"))
    assert sorted(map(number_of, found)) == list(range(1, 31))
