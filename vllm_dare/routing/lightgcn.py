"""LightGCN: embeddings smoothed over the graph of who liked what, as in the paper's pipeline."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vllm_dare.extras import need
from vllm_dare.routing.embeddings import DIMENSIONS, Embeddings
from vllm_dare.routing.interactions import Positives

LAYERS = 3
STEPS = 2000
_BATCHES_AN_EPOCH = 16
_SMALLEST_BATCH = 8192
_PAIRS_FOR_THREADS = 2_000_000  # with fewer, threads wait for each other more than they work
_LEARNING_RATE = 0.01
_REGULARIZATION = 1e-4

Tell = Callable[[str], None]


def learn_lightgcn(positives: Positives, seed: int, tell: Tell, *, steps: int = STEPS) -> Embeddings:
    """Train LightGCN (He et al. 2020, arXiv 2002.02126) on CPU; a pure function of its arguments.

    32 dimensions, 3 layers, BPR loss with one random item that the user did not like for each positive, Adam.
    A step propagates once forward and once backward over the whole graph, which costs the same whatever the
    batch; so batches are a sixteenth of the positives (at least 8,192).

    Args:
        positives: the graph.
        seed: of the start, the order and the negatives.
        tell: called with what is being done.
        steps: how many batches.

    Raises:
        DareError: torch-geometric is not installed.
    """
    need("torch_geometric.nn.models.lightgcn", "torch-geometric", "'vllm-dare[groups]'")
    import torch

    threads = torch.get_num_threads()
    if len(positives.users) < _PAIRS_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        return _train(positives, seed, tell, steps)
    finally:
        torch.set_num_threads(threads)


def _train(positives: Positives, seed: int, tell: Tell, steps: int) -> Embeddings:
    import torch
    from torch.nn.functional import embedding  # its gradient, unlike indexing's, is summed in a fixed order
    from torch_geometric.nn.models.lightgcn import BPRLoss, LightGCN

    num_users, num_nodes = positives.num_users, positives.num_users + positives.num_items
    graph = _normalised_graph(positives)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LightGCN(num_nodes, DIMENSIONS, LAYERS, normalize=False)
    weight = model.embedding.weight
    optimizer = torch.optim.Adam([weight], lr=_LEARNING_RATE)
    bpr_loss = BPRLoss(_REGULARIZATION)
    for step, (users, liked, other) in enumerate(_triples(positives, seed, steps), 1):
        smoothed = _propagate(model, graph, weight.detach()).requires_grad_()
        nodes = torch.cat([users, num_users + liked, num_users + other])
        of_users, of_liked, of_other = embedding(nodes, smoothed).chunk(3)
        ranks = (of_users * of_liked).sum(1), (of_users * of_other).sum(1)
        loss = bpr_loss(*ranks, embedding(nodes, weight))
        optimizer.zero_grad()
        loss.backward()
        # The graph is symmetric: what it does to embeddings it does to their gradients.
        weight.grad += _propagate(model, graph, smoothed.grad)
        optimizer.step()
        tell(f"LightGCN, step {step} of {steps}")
    vectors = _propagate(model, graph, weight.detach()).numpy()
    return Embeddings(vectors[:num_users], vectors[num_users:])


def _normalised_graph(positives: Positives) -> Any:
    """1 / sqrt(degree of user · degree of item) for each positive, both ways: a CSR tensor [nodes, nodes]."""
    import torch
    from scipy.sparse import block_array, diags_array

    liked = positives.matrix()
    of_users = diags_array(1 / np.sqrt(liked.sum(axis=1).ravel()).A1)
    of_items = diags_array(1 / np.sqrt(liked.sum(axis=0).ravel()).A1)
    half = (of_users @ liked @ of_items).tocsr()
    graph = block_array([[None, half], [half.T, None]], format="csr", dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(graph.indptr.astype(np.int64)),
            torch.from_numpy(graph.indices.astype(np.int64)),
            torch.from_numpy(graph.data),
            graph.shape,
            check_invariants=False,
        )


def _propagate(model: Any, graph: Any, vectors: Any) -> Any:
    """``model.get_embedding`` of any vectors, outside autograd: the sum over layers, weighted by alpha."""
    import torch

    with torch.no_grad():
        total = vectors * model.alpha[0]
        for layer, convolution in enumerate(model.convs, 1):
            vectors = convolution(vectors, graph)
            total += vectors * model.alpha[layer]
    return total


def _triples(positives: Positives, seed: int, steps: int) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of (user, item that they like, item that they do not), int64 tensors of places."""
    import torch

    rng = np.random.default_rng(seed)
    num_items, num_pairs = positives.num_items, len(positives.users)
    known = positives.users.astype(np.int64) * num_items + positives.items  # ascending
    batch = max(_SMALLEST_BATCH, -(-num_pairs // _BATCHES_AN_EPOCH))
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if not len(order):
            order = rng.permutation(num_pairs)
        chosen, order = order[:batch], order[batch:]
        users = positives.users[chosen].astype(np.int64)
        other = rng.integers(num_items, size=len(chosen))
        pairs = users * num_items + other
        new = known[np.minimum(known.searchsorted(pairs), num_pairs - 1)] != pairs
        if new.any():
            triple = (users[new], positives.items[chosen][new].astype(np.int64), other[new])
            yield tuple(torch.from_numpy(part) for part in triple)  # type: ignore[misc]
