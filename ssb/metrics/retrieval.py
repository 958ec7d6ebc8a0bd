"""Ranks of the right item, the metrics made of them, and how sure a few thousand queries make us.

One rule for ties everywhere: the rank is the one expected if ties were broken at random, so a model that gives every
pair the same similarity scores chance, not 1.

Similarities of embeddings are computed exactly: `unit` rounds unit vectors to multiples of 2⁻²⁶, so every product and
every partial sum of a dot product is a multiple of 2⁻⁵² below 2, which float64 holds without rounding. Hence no
result depends on chunk size, threads or the shape of a matrix product, and copies of an item always tie. The rounding
moves a cosine by about 1e-8; float32 would have moved it by up to 6e-8.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
    lost = similarity.isnan().any(dim=1).nonzero()
    if len(lost):
        raise ValueError(
            f"similarity of query {lost[0].item()} holds NaN ({len(lost)} of {len(similarity)} queries "
            "do); look for NaN or all-masked inputs in its embedding, a rank cannot be made up"
        )
    own = similarity.gather(1, targets[:, None])
    better, tied = (similarity > own).sum(dim=1), (similarity == own).sum(dim=1) - 1  # itself is no tie
    return _numpy(1 + better + tied.double() / 2)


def unit(x, name: str = "x") -> Tensor:
    """(N, d) embeddings → (N, d) float64 of length 1, each number a multiple of 2⁻²⁶ (a zero row stays zero). With
    them `unit(a) @ unit(b).T` is the cosine similarity without further rounding. Raises ValueError
    for another shape and for a row that is not finite, naming it."""
    x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; wanted (rows, channels)")
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    lost = (~x.isfinite()).any(dim=1).nonzero()
    if len(lost):
        raise ValueError(
            f"row {lost[0].item()} of {name} is not finite ({len(lost)} of {len(x)} rows are not); "
            "look at the training log for the step where the loss became NaN, or at the features"
        )
    return (F.normalize(x.double(), dim=1) * 2**26).round() / 2**26


def search(queries, gallery, targets, chunk: int = 1024) -> np.ndarray:
    """`ranks` by cosine similarity, without the whole matrix: at most chunk × chunk similarities exist at a time.

    queries: (Q, d); gallery: (G, d); targets: (Q,) row of the right item in the gallery. For text → video with many
    captions per clip every caption is a query: search(text, video, clip_of_caption).
    Returns (Q,) float64, equal to ranks(unit(queries) @ unit(gallery).T, targets) for every chunk size.
    """
    queries, gallery = _pair(queries, gallery, "queries", "gallery")
    targets = _indices(targets, len(queries), len(gallery), "targets").to(queries.device)
    found = []
    for q, target in zip(queries.split(chunk), targets.split(chunk)):
        better, tied = _count(q, gallery, _dot(q, gallery[target]), chunk)  # tied with itself too
        found.append(1 + better + (tied - 1).double() / 2)
    return _numpy(torch.cat(found))


def video_to_text(video, text, clip_of_caption, protocol: str = "best-caption", chunk: int = 1024) -> np.ndarray:
    """Rank of each video's own text when clips have one or more captions; (V,) float64.

    video: (V, d); text: (C, d); clip_of_caption: (C,) row in `video` that each caption belongs to.
    protocol:
        "best-caption": all captions are the gallery; the rank of the best-ranked right one (CE, MMT, VSE++):
            1 + (captions strictly better) + (wrong ones tied with it) / (right ones tied, itself included + 1).
            The last term is how many of n tied wrong ones precede the first of r right ones on average, n / (r + 1).
        "max-per-video": clips are the gallery, a clip counts as its most similar caption (CLIP4Clip); chunk × V
            similarities are held.
    With one caption per clip both equal `search`. Raises ValueError as `search` does, for a video without a caption
    and for an unknown protocol.
    """
    if protocol not in ("best-caption", "max-per-video"):
        raise ValueError(f"protocol={protocol!r}; wanted 'best-caption' or 'max-per-video'")
    video, text = _pair(video, text, "video", "text")
    clip = _indices(clip_of_caption, len(text), len(video), "clip_of_caption").to(video.device)
    _told(clip, len(video))
    right = torch.cat([_dot(video[c], t) for c, t in zip(clip.split(chunk), text.split(chunk))])  # (C,)
    best = right.new_zeros(len(video)).scatter_reduce(0, clip, right, "amax", include_self=False)  # (V,)
    winners = torch.bincount(clip[right == best[clip]], minlength=len(video))  # right captions tied for best
    found = []
    for v, own, r in zip(video.split(chunk), best.split(chunk), winners.split(chunk)):
        if protocol == "best-caption":
            better, tied = _count(v, text, own, chunk)
            found.append(1 + better + (tied - r).double() / (r + 1))
        else:
            score = v.new_full((len(video), len(v)), -torch.inf)  # clips down, queries across
            for t, c in zip(text.split(chunk), clip.split(chunk)):
                score.scatter_reduce_(0, c[:, None].expand(-1, len(v)), t @ v.T, "amax")
            better, tied = (score > own).sum(dim=0), (score == own).sum(dim=0) - 1
            found.append(1 + better + tied.double() / 2)
    return _numpy(torch.cat(found))


def matrix_ranks(similarity, clip_of_caption) -> dict[str, np.ndarray]:
    """Ranks of every protocol from a matrix of scores that is no matter of embeddings alone: "t2v" (Q,), "v2t
    best-caption" (C,) and "v2t max-per-video" (C,), ties as in `ranks` and `video_to_text`.

    similarity: (Q, C) of captions and clips, higher is better; clip_of_caption: (Q,) the column of each caption's clip.
    Raises ValueError as `ranks` does, NaN included, and for a clip without a caption.
    """
    similarity = torch.as_tensor(similarity).detach()
    found = {"t2v": ranks(similarity, clip_of_caption)}  # which looks at the shapes too
    clip = torch.as_tensor(clip_of_caption).long().to(similarity.device)
    clips = similarity.shape[1]
    _told(clip, clips)
    right = similarity.gather(1, clip[:, None])[:, 0]  # (Q,)
    score = similarity.new_zeros(clips, clips)  # of a clip by its most similar caption; clips down, queries across
    score.scatter_reduce_(0, clip[:, None].expand(-1, clips), similarity, "amax", include_self=False)
    best = score.diagonal()
    winners = torch.bincount(clip[right == best[clip]], minlength=clips)
    better, tied = (similarity > best).sum(dim=0), (similarity == best).sum(dim=0)
    found["v2t best-caption"] = _numpy(1 + better + (tied - winners).double() / (winners + 1))
    better, tied = (score > best).sum(dim=0), (score == best).sum(dim=0) - 1
    found["v2t max-per-video"] = _numpy(1 + better + tied.double() / 2)
    return found


def metrics(ranks, recalls=(1, 5, 10)) -> dict[str, float]:
    """R@K for each K of `recalls`, the queries with rank ≤ K in percent; MdR, the median rank; MnR, the mean rank.

    ranks: (Q,), or (seeds, Q): each metric is then averaged over seeds. Raises ValueError for ranks that are empty,
    not finite or below 1.
    """
    ranks = _checked(ranks)
    return {name: _score(ranks, name) for name in (*(f"R@{k}" for k in recalls), "MdR", "MnR")}


def _numpy(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)


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
    wrong = ((x < 0) | (x >= size)).nonzero()
    if len(wrong):
        raise ValueError(f"{name}[{wrong[0].item()}] is {x[wrong[0]].item()}; wanted 0 to {size - 1}")
    return x


def _told(clip: Tensor, clips: int):
    silent = (torch.bincount(clip, minlength=clips) == 0).nonzero()
    if len(silent):
        raise ValueError(
            f"video {silent[0].item()} has no caption ({len(silent)} of {clips} have none); leave it "
            "out of `video` or give it one"
        )


def _count(queries: Tensor, gallery: Tensor, own: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """How many items of the gallery are more similar to each query than `own` (Q,), and how many as similar."""
    better, tied = torch.zeros_like(own, dtype=torch.long), torch.zeros_like(own, dtype=torch.long)
    for g in gallery.split(chunk):
        similarity = queries @ g.T  # (chunk, chunk)
        better += (similarity > own[:, None]).sum(dim=1)
        tied += (similarity == own[:, None]).sum(dim=1)
    return better, tied


def _checked(ranks) -> np.ndarray:
    """(Q,) or (seeds, Q) → (seeds, Q)."""
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.ndim not in (1, 2) or not ranks.size:
        raise ValueError(f"ranks have shape {ranks.shape}; wanted (queries,) or (seeds, queries), not empty")
    wrong = ranks[~(np.isfinite(ranks) & (ranks >= 1))]
    if len(wrong):
        raise ValueError(f"a rank is {wrong[0]}; ranks are finite and count from 1")
    return np.atleast_2d(ranks)


def points(ranks: np.ndarray, metric: str) -> np.ndarray:
    """What each rank adds to a metric that is a mean over queries."""
    if metric == "MnR":
        return ranks
    if not (k := re.fullmatch(r"R@([1-9]\d*)", metric)):
        raise ValueError(f"metric={metric!r}; wanted 'MdR', 'MnR' or 'R@K' such as 'R@1'")
    return 100.0 * (ranks <= int(k[1]))


def _score(ranks: np.ndarray, metric: str) -> float:
    """(seeds, Q) → the metric, averaged over seeds."""
    return float(np.median(ranks, axis=1).mean() if metric == "MdR" else points(ranks, metric).mean())
