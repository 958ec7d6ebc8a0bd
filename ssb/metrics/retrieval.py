"""Ranks of the right item, the retrieval metrics computed from them, and their intervals over queries.

One rule for ties everywhere: the rank is the expected one if ties were broken at random, so a model that gives every
pair the same similarity scores chance, not rank 1 (`expected_rank`).

Similarities of embeddings are computed exactly: `unit` rounds unit vectors to multiples of 2⁻²⁶, so every product and
every partial sum of a dot product is a multiple of 2⁻⁵² below 2, which float64 represents without rounding. Hence no
result depends on chunk size, threads or the shape of a matrix product, and copies of an item always tie. The rounding
changes a cosine by about 1e-8; float32 would change it by up to 6e-8.
"""

import re
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssb.metrics import statistics
from ssb.metrics.statistics import LEVEL, RESAMPLES


def ranks(similarity, targets) -> np.ndarray:
    """Rank of the right item of each query: 1 + (items strictly better) + (other items tied with it) / 2.

    similarity: (Q, G) tensor or array, higher is better; infinities are fine.
    targets: (Q,) integers, the column of the right item.
    Returns (Q,) float64, 1-based; half ranks come from ties. Raises ValueError for NaN, naming the query, and for
    shapes or targets that do not fit.
    """
    similarity = torch.as_tensor(similarity).detach()
    if similarity.ndim != 2:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}; wanted (queries, items)")
    targets = _indices(targets, len(similarity), similarity.shape[1], "targets").to(similarity.device)
    if len(bad := similarity.isnan().any(dim=1).nonzero()):
        raise ValueError(
            f"similarity of query {bad[0].item()} holds NaN ({len(bad)} of {len(similarity)} queries do); "
            "look for NaN or all-masked inputs in its embedding"
        )
    own = similarity.gather(1, targets[:, None])
    return _numpy(expected_rank((similarity > own).sum(dim=1), (similarity == own).sum(dim=1)))


def expected_rank(better: Tensor, tied: Tensor, right: Tensor | int = 1) -> Tensor:
    """(Q,) float64: rank of the best-ranked right item, averaged over all orders of the items tied with it.

    better, tied, right: (Q,) integers: items strictly better than the best right one, items as good (itself included),
    and how many of these are right. Of n wrong ones among the tied, n / (right + 1) precede the first right one on
    average: with one right item the rank is 1 + better + n / 2.
    """
    return 1 + better + (tied - right).double() / (right + 1)


def unit(x, name: str = "x") -> Tensor:
    """(N, d) embeddings → (N, d) float64 of length 1, each number a multiple of 2⁻²⁶ (a zero row stays zero), so that
    `unit(a) @ unit(b).T` is the cosine similarity without further rounding. Raises ValueError for another shape and
    for a row that is not finite, naming it."""
    x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; wanted (rows, channels)")
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    if not x.isfinite().all():
        bad = (~x.isfinite()).any(dim=1).nonzero()
        raise ValueError(
            f"row {bad[0].item()} of {name} is not finite ({len(bad)} of {len(x)} rows are not); "
            "look at the training log for the step where the loss became NaN, or at the features"
        )
    return F.normalize(x.double(), dim=1).mul_(2**26).round_().div_(2**26)


def search(queries, gallery, targets, chunk: int = 1024) -> np.ndarray:
    """`ranks` by cosine similarity without the whole matrix: at most chunk × chunk similarities are held at a time.

    queries: (Q, d); gallery: (G, d); targets: (Q,) row of the right item in the gallery. For text → video with several
    captions per clip every caption is a query: search(text, video, clip_of_caption).
    Returns (Q,) float64, equal to ranks(unit(queries) @ unit(gallery).T, targets) for every chunk size. Raises
    ValueError as `unit` does, and for shapes or targets that do not fit.
    """
    queries, gallery = _pair(queries, gallery, "queries", "gallery")
    targets = _indices(targets, len(queries), len(gallery), "targets").to(queries.device)
    own = _own_similarity(queries, gallery, targets, chunk)
    parts = zip(queries.split(chunk), own.split(chunk))
    return _numpy(torch.cat([expected_rank(*_count(q, gallery, s, chunk)) for q, s in parts]))


def video_to_text(video, text, clip_of_caption, protocol: str = "best-caption", chunk: int = 1024) -> np.ndarray:
    """Rank of each video's own text where clips have one or more captions; (V,) float64.

    video: (V, d); text: (C, d); clip_of_caption: (C,) row in `video` that each caption belongs to.
    protocol:
        "best-caption": all captions are the gallery; the rank of the best-ranked right one (CE, MMT, VSE++), see
            `expected_rank`.
        "max-per-video": clips are the gallery, a clip counts as its most similar caption (CLIP4Clip); chunk × V
            similarities are held.
    With one caption per clip both equal `search`. Raises ValueError as `search` does, for a video without a caption
    and for an unknown protocol.
    """
    if protocol not in ("best-caption", "max-per-video"):
        raise ValueError(f"protocol={protocol!r}; wanted 'best-caption' or 'max-per-video'")
    video, text = _pair(video, text, "video", "text")
    clip = _indices(clip_of_caption, len(text), len(video), "clip_of_caption").to(video.device)
    _check_captioned(clip, len(video))
    best, winners = _best_captions(_own_similarity(text, video, clip, chunk), clip, len(video))
    result = []
    for v, own, r in zip(video.split(chunk), best.split(chunk), winners.split(chunk)):
        if protocol == "best-caption":
            result.append(expected_rank(*_count(v, text, own, chunk), r))
        else:
            score = v.new_full((len(video), len(v)), -torch.inf)  # clips down, queries across
            for t, c in zip(text.split(chunk), clip.split(chunk)):
                score.scatter_reduce_(0, c[:, None].expand(-1, len(v)), t @ v.T, "amax")
            result.append(expected_rank((score > own).sum(dim=0), (score == own).sum(dim=0)))
    return _numpy(torch.cat(result))


def matrix_ranks(similarity, clip_of_caption) -> dict[str, np.ndarray]:
    """Ranks of every protocol from a matrix of scores that do not come from embeddings alone: "t2v" (Q,), "v2t
    best-caption" (C,) and "v2t max-per-video" (C,), as in `ranks` and `video_to_text`.

    similarity: (Q, C) of captions and clips, higher is better; clip_of_caption: (Q,) the column of each caption's clip.
    Raises ValueError as `ranks` does, NaN included, and for a clip without a caption.
    """
    similarity = torch.as_tensor(similarity).detach()
    t2v = ranks(similarity, clip_of_caption)  # which checks the shapes too
    clip = torch.as_tensor(clip_of_caption).long().to(similarity.device)
    clips = similarity.shape[1]
    _check_captioned(clip, clips)
    best, winners = _best_captions(similarity.gather(1, clip[:, None])[:, 0], clip, clips)
    caption = expected_rank((similarity > best).sum(dim=0), (similarity == best).sum(dim=0), winners)
    score = similarity.new_zeros(clips, clips)  # of a clip by its most similar caption; clips down, queries across
    score.scatter_reduce_(0, clip[:, None].expand(-1, clips), similarity, "amax", include_self=False)
    return {"t2v": t2v, "v2t best-caption": _numpy(caption), "v2t max-per-video": ranks(score.T, range(clips))}


def metrics(ranks, recalls=(1, 5, 10)) -> dict[str, float]:
    """R@K for each K of `recalls`, the percentage of queries with rank ≤ K; MdR, the median rank; MnR, the mean rank.

    ranks: (Q,), or (seeds, Q): each metric is then averaged over seeds. Raises ValueError for ranks that are empty,
    not finite or below 1.
    """
    ranks = _checked(ranks)
    return {name: _score(ranks, name) for name in (*(f"R@{k}" for k in recalls), "MdR", "MnR")}


def points(ranks, metric: str) -> np.ndarray:
    """Ranks, (Q,) or (seeds, Q) → the values (seeds, Q) whose mean is the metric, for `ssb.metrics.statistics`.
    "R@K": 100 for a rank ≤ K, else 0; "MnR": the rank itself. ValueError for another metric, and for ranks as in
    `metrics`."""
    ranks = _checked(ranks)
    if metric == "MnR":
        return ranks
    if not (k := re.fullmatch(r"R@([1-9]\d*)", metric)):
        raise ValueError(
            f"metric={metric!r}; wanted 'MdR', 'MnR' or 'R@K' such as 'R@1'; MdR, a median, is no mean of values: use "
            "`bootstrap` or `paired_bootstrap` for it"
        )
    return 100.0 * (ranks <= int(k[1]))


def bootstrap(
    ranks, metric: str = "R@1", groups=None, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a metric over resampled queries: (low, high), in the metric's unit.

    ranks: (Q,), or (seeds, Q) of the same queries: the metric is then averaged over seeds in every resample.
    metric: "MdR", "MnR" or "R@K" with any K.
    groups: (Q,) labels; whole groups are drawn, since captions of one clip are not independent. None: single queries.
    Raises ValueError for ranks, metric or groups that do not fit.
    """
    drawn = statistics.resampled(_values(ranks, metric), groups, resamples, seed, metric == "MdR")
    return statistics.percentiles(drawn, level)


class Paired(NamedTuple):
    """metric(a) − metric(b), its percentile interval, and the two-sided p of no difference: the part over queries of a
    `statistics.Difference`."""

    delta: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a, b, metric: str = "R@1", groups=None, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Paired:
    """Compare two settings on the same queries: every resample draws the same queries (or groups) for both.

    a, b: ranks of one shape, (Q,) or (seeds, Q); the rest as in `bootstrap`. p: as in `statistics.tested`, never 0.
    A positive delta favours a for recalls, and b for MdR and MnR.
    """
    a, b = statistics.matched(_checked(a), _checked(b), "ranks")
    drawn = (statistics.resampled(_values(ranks, metric), groups, resamples, seed, metric == "MdR") for ranks in (a, b))
    return Paired(_score(a, metric) - _score(b, metric), *statistics.tested(np.subtract(*drawn), level))


def _numpy(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def _own_similarity(queries: Tensor, gallery: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """(Q,) the similarity of each query to its right item."""
    return torch.cat([(q * gallery[t]).sum(dim=1) for q, t in zip(queries.split(chunk), targets.split(chunk))])


def _best_captions(own: Tensor, clip: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """The similarity of each clip to the best of its own captions, and how many of them are tied for best; (clips,).
    own: (Q,) the similarity of each caption to its clip."""
    best = own.new_zeros(clips).scatter_reduce(0, clip, own, "amax", include_self=False)
    return best, torch.bincount(clip[own == best[clip]], minlength=clips)


def _pair(a, b, *names: str) -> tuple[Tensor, Tensor]:
    a, b = (unit(x, name) for x, name in zip((a, b), names))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} has {a.shape[1]} channels, {names[1]} has {b.shape[1]}; they must be equal")
    return a, b.to(a.device)


def _indices(x, length: int, size: int, name: str) -> Tensor:
    x = torch.as_tensor(x)
    if x.shape != (length,) or x.is_floating_point() or x.dtype == torch.bool:
        raise ValueError(f"{name} is {x.dtype} of shape {tuple(x.shape)}; wanted integers of shape ({length},)")
    x = x.long()
    if len(wrong := ((x < 0) | (x >= size)).nonzero()):
        raise ValueError(f"{name}[{wrong[0].item()}] is {x[wrong[0]].item()}; wanted 0 to {size - 1}")
    return x


def _check_captioned(clip: Tensor, clips: int):
    if len(bare := (torch.bincount(clip, minlength=clips) == 0).nonzero()):
        raise ValueError(
            f"video {bare[0].item()} has no caption ({len(bare)} of {clips} have none); leave it out or give it one"
        )


def _count(queries: Tensor, gallery: Tensor, own: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """How many items of the gallery are more similar to each query than `own` (Q,), and how many as similar.

    In float32 first. Its similarity of unit vectors (d,) is off by less than (d + 8) 2⁻²⁴, that of `own` included
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); where that leaves the order open, the
    pair is computed again, exactly.
    """
    margin = (queries.shape[1] + 8) * 2.0**-24
    if torch.get_float32_matmul_precision() != "highest" or torch.is_autocast_enabled(queries.device.type):
        margin = torch.inf  # the float32 product may be one of a shorter format
    better, tied = torch.zeros_like(own), torch.zeros_like(own)
    rough, minus = queries.float(), -own.float()[:, None]
    for g in gallery.split(chunk):
        difference = torch.addmm(minus, rough, g.float().T)
        row, column = (difference.abs() <= margin).nonzero(as_tuple=True)
        if len(row) * 64 > difference.numel():  # as where a model has collapsed
            difference = (queries @ g.T).sub_(own[:, None])
            better += (difference > 0).sum(dim=1)
            tied += (difference == 0).sum(dim=1)
            continue
        better += torch.gt(difference, margin, out=difference).sum(dim=1)
        exact = (queries[row] * g[column]).sum(dim=1) - own[row]
        better.index_add_(0, row, (exact > 0).double())
        tied.index_add_(0, row, (exact == 0).double())
    return better, tied


def _checked(ranks) -> np.ndarray:
    """(Q,) or (seeds, Q) → (seeds, Q)."""
    ranks = statistics.by_seed(ranks, "ranks")
    if len(wrong := ranks[~(np.isfinite(ranks) & (ranks >= 1))]):
        raise ValueError(f"a rank is {wrong[0]}; ranks are finite and count from 1")
    return ranks


def _values(ranks, metric: str) -> np.ndarray:
    """(seeds, Q) the values whose mean is the metric, or whose median it is for MdR."""
    return _checked(ranks) if metric == "MdR" else points(ranks, metric)


def _score(ranks: np.ndarray, metric: str) -> float:
    """(seeds, Q) → the metric, averaged over seeds."""
    return float(np.median(ranks, axis=1).mean() if metric == "MdR" else points(ranks, metric).mean())
