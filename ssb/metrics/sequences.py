"""Similarity of long videos and their caption sequences without alignment: what S2DTW is compared with."""

import numpy as np
import torch
from torch import Tensor

from ssb.metrics import retrieval

BY_FULL = ("R@1 by full S2DTW", "right script", "within-script R@1")


def by_script(scores, scripts: np.ndarray | None) -> dict[str, float]:
    """The measures BY_FULL, in percent, of scores (V, V) of tellings and videos and the script (V,) of each video:

    R@1:          the tellings whose first video is their own. In good part that is to know the script:
    right script: the tellings whose first video is a take of their own script.
    within-script R@1: the tellings whose own video is first among the takes of its script.

    A tie for the first place counts as missed, as in `retrieval.ranks`. scripts: None: the last two are left out.
    """
    scores, own = torch.as_tensor(scores), np.arange(len(scores))
    found = [retrieval.metrics(retrieval.ranks(scores, own))["R@1"]]
    if scripts is not None:
        same = torch.as_tensor(scripts)[:, None] == torch.as_tensor(scripts)
        takes = scores.masked_fill(~same, -torch.inf)
        others = scores.masked_fill(same, -torch.inf)
        found.append(100 * (takes.amax(1) > others.amax(1)).double().mean().item())
        found.append(retrieval.metrics(retrieval.ranks(takes, own))["R@1"])
    return dict(zip(BY_FULL, found))


def pooled_similarity(text, video) -> Tensor:
    """Cosine of the means, which know no order: text (Q, m, d) and video (C, n, d) → (Q, C) float64. The means are of
    vectors of length 1. As in `retrieval`, nothing depends on the shape of a batch, and equal items tie."""
    text, video = (retrieval.unit(_units(x, name).mean(1), name) for x, name in ((text, "text"), (video, "video")))
    return text @ video.T


def best_match_similarity(text, video, chunk: int = 64) -> Tensor:
    """Mean over the captions of each one's cosine with its nearest clip, in whatever order: text (Q, m, d) and video
    (C, n, d) → (Q, C) float64, `chunk` texts at a time."""
    text, video = _units(text, "text"), _units(video, "video")
    flat, found = video.flatten(0, 1).T, []
    for some in text.split(chunk):
        cosine = (some @ flat).unflatten(2, video.shape[:2])  # (chunk, m, C, n)
        found.append(_even(cosine.amax(3)).mean(1))
    return torch.cat(found)


def _units(x, name: str) -> Tensor:
    """(V, k, d) → the same in float64, of length 1 and rounded as `retrieval.unit` does."""
    x = torch.as_tensor(x)
    if x.ndim != 3 or not x.shape[1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; wanted (videos, steps, channels)")
    return retrieval.unit(x.flatten(0, 1), name).unflatten(0, x.shape[:2])


def _even(x: Tensor) -> Tensor:
    """Rounded so far that float64 adds up to thousands of them without further rounding, in whatever order."""
    return (x * 2**40).round() / 2**40
