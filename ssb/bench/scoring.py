"""Rankings and EMCL at inference, for `ssb bench training`.

`retrieval.search` is compared with sorted matrices and with torchmetrics, which is called once per query.
`emcl.similarity` is compared with a call of the layer for each pair of blocks, as in the public code.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssb import emcl
from ssb.bench.timing import BenchmarkError, compare, row, seconds
from ssb.metrics import retrieval

DIM, BLOCK = 256, 32
MODULE = 7, 10, 0.1, 4.0  # constants of the paper's inference module, see `ssb.emcl.EMCL`
ONE_BY_ONE = 1000  # queries; torchmetrics takes minutes for more


class Sizes(NamedTuple):
    """What is searched, (queries, items) each, and captions and clips that EMCL scores: in both ways, and ours alone,
    by default as many as the test split of MSR-VTT has."""

    search: Sequence[tuple[int, int]] = ((1000, 1000), (5000, 5000))
    emcl: tuple[int, int] = (2048, 1024)
    whole: tuple[int, int] = (59_800, 2_990)


SIZES = Sizes()


def ranking(sizes: Sequence[tuple[int, int]]) -> list[dict]:
    """`ranked` at each of these sizes."""
    return [each for size in sizes for each in ranked(*size)]


def ranked(queries: int, items: int) -> list[dict]:
    """Rows for implementations of R@1 on so many queries and items; BenchmarkError if they do not agree or torchmetrics
    is missing."""
    try:
        from torchmetrics.functional.retrieval import retrieval_recall
    except ImportError:
        raise BenchmarkError("the benchmark compares with torchmetrics: pip install torchmetrics") from None
    generator = torch.Generator().manual_seed(0)
    gallery, target = torch.randn(items, 256, generator=generator), torch.arange(queries) % items
    query = gallery[target] + 6 * torch.randn(queries, 256, generator=generator)

    def similarity() -> Tensor:
        return F.normalize(query) @ F.normalize(gallery).T

    def by_torchmetrics() -> float:
        right = torch.arange(items) == target[:, None]
        recalls = [[retrieval_recall(s, r, top_k=k) for k in (1, 5, 10)] for s, r in zip(similarity(), right)]
        return 100 * torch.tensor(recalls)[:, 0].mean().item()

    def by_sorting() -> float:
        ranks = (similarity().argsort(dim=1, descending=True) == target[:, None]).nonzero()[:, 1]
        return 100 * (ranks == 0).double().mean().item()

    def by_values() -> float:  # as the public code of collaborative experts and CLIP4Clip ranks
        distance = -similarity().numpy()
        own = np.take_along_axis(distance, target.numpy()[:, None], axis=1)
        ranks = np.where(np.sort(distance, axis=1) == own)[1]
        return 100 * (ranks == 0).mean()

    def ours() -> float:
        return retrieval.metrics(retrieval.search(query, gallery, target))["R@1"]

    ways = {"np.sort": by_values, "argsort": by_sorting, "torchmetrics": by_torchmetrics, "ours": ours}
    if queries > ONE_BY_ONE:
        del ways["torchmetrics"]
    calls = {f"search, {queries:,} x {items:,}: {name}": call for name, call in ways.items()}
    recalls = {f"{work():.3f}" for work in calls.values()}
    if len(recalls) > 1:
        raise BenchmarkError(f"R@1 differs: {recalls}")
    print(f"R@1 of {queries} queries among {items} items: {recalls.pop()} by all of them")
    return compare(calls, queries, "queries/s")


def layer_by_layer(text: Tensor, video: Tensor, module: emcl.EMCL) -> Tensor:
    """`emcl.similarity` as one call of the layer for each pair of blocks: text (Q, n), video (C, n) → (Q, C)."""
    scores = text.new_empty(len(text), len(video))
    for i in range(0, len(text), BLOCK):
        for j in range(0, len(video), BLOCK):
            t, v = text[i : i + BLOCK], video[j : j + BLOCK]
            both = F.normalize(module(F.normalize(torch.cat([v, t]))))
            scores[i : i + BLOCK, j : j + BLOCK] = both[len(v) :] @ both[: len(v)].T
    return scores


def emcl_rows(sizes: Sizes) -> list[dict]:
    """Rows for EMCL at inference; BenchmarkError if the two ways do not agree."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = emcl.EMCL(*MODULE).eval()
        text, video = torch.randn(sizes.emcl[0], DIM), torch.randn(sizes.emcl[1], DIM)
        many = torch.randn(sizes.whole[0], DIM), torch.randn(sizes.whole[1], DIM)
    name = f"EMCL, {len(text):,} x {len(video):,}"
    ways = {"layer by layer": layer_by_layer, "ours": emcl.similarity}
    calls = {f"{name}: {way}": lambda score=score: score(text, video, module) for way, score in ways.items()}
    literal, ours = (call() for call in calls.values())
    if not torch.allclose(literal, ours, atol=1e-4):
        raise BenchmarkError(f"{name}: scores differ by up to {(literal - ours).abs().max():.1g}")
    alone = seconds([lambda: emcl.similarity(*many, module)], time.process_time, rounds=1)
    return [*compare(calls), row(f"EMCL, {len(many[0]):,} x {len(many[1]):,}: ours", alone, "s")]
