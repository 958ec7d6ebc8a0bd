"""Retrieval of long videos by caption sequences: similarities without alignment, with which S2DTW is compared, and
recall by script."""

import numpy as np
import torch
from torch import Tensor

from ssb.metrics import retrieval

BY_FULL = ("R@1 by full S2DTW", "right script", "within-script R@1")


def recall_at_1(scores) -> float:
    """R@1 in percent of scores (V, V) in which the right item of each query has the query's own number."""
    return retrieval.metrics(retrieval.ranks(scores, np.arange(len(scores))))["R@1"]


def by_script(scores, scripts: np.ndarray | None) -> dict[str, float]:
    """The measures BY_FULL, in percent, of scores (V, V) of caption sequences and videos and the script (V,) of each
    video:

    R@1:          the sequences whose own video is first, for which recognising the script is a large part.
    right script: the sequences whose first video is of their own script.
    within-script R@1: the sequences whose own video is first among the videos of its script.

    A tie for the first place counts as missed, as in `retrieval.ranks`. scripts: None: the last two are left out.
    """
    scores = torch.as_tensor(scores)
    values = [recall_at_1(scores)]
    if scripts is not None:
        same = torch.as_tensor(scripts)[:, None] == torch.as_tensor(scripts)
        inside, outside = scores.masked_fill(~same, -torch.inf), scores.masked_fill(same, -torch.inf)
        values.append(100 * (inside.amax(1) > outside.amax(1)).double().mean().item())
        values.append(recall_at_1(inside))
    return dict(zip(BY_FULL, values))


def pooled_similarity(text, video) -> Tensor:
    """Cosine of the means, which ignore order: text (Q, m, d) and video (C, n, d) → (Q, C) float64. The means are of
    vectors of unit length. As in `retrieval`, nothing depends on the shape of a batch, and equal items tie."""
    text, video = (retrieval.unit(_unit(x, name).mean(1), name) for x, name in ((text, "text"), (video, "video")))
    return text @ video.T


def best_match_similarity(text, video, chunk: int = 64) -> Tensor:
    """Mean over the captions of each one's cosine with its nearest clip, which ignores order: text (Q, m, d) and video
    (C, n, d) → (Q, C) float64, `chunk` texts at a time."""
    text, video = _unit(text, "text"), _unit(video, "video")
    flat, parts = video.flatten(0, 1).T, []
    for rows in text.split(chunk):
        cosine = (rows @ flat).unflatten(2, video.shape[:2])  # (chunk, m, C, n)
        nearest = (cosine.amax(3) * 2**40).round() / 2**40  # so that float64 sums thousands exactly, in any order
        parts.append(nearest.mean(1))
    return torch.cat(parts)


def _unit(x, name: str) -> Tensor:
    """(V, k, d) → float64 vectors of unit length, rounded as `retrieval.unit` does; ValueError for another shape."""
    x = torch.as_tensor(x)
    if x.ndim != 3 or not x.shape[1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; wanted (videos, steps, channels)")
    return retrieval.unit(x.flatten(0, 1), name).unflatten(0, x.shape[:2])
