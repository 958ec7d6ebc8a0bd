"""Differentiable weak temporal alignment of VT-TWINS (Ko et al., CVPR 2022): smoothed soft-DTW with dummy cells.

cost (…, n, m): δ_ij of clip i and caption j. softmin_γ(a) = -γ log Σ exp(-a/γ). Paths go from cell (0, 0) to the last
one by steps down, right or both; soft-DTW is the softmin over all paths of the sum of their cells (Cuturi & Blondel,
ICML 2017), and its gradient is the expected path.

All pairs of a batch are computed together, one anti-diagonal after the other. Cells are stored skewed, (diagonal, row,
pair): a diagonal is one slice, and so are the three predecessors of its cells. The forward pass stores the softmax over
the predecessors of each cell, which sums to 1 despite rounding; the backward pass only multiplies and adds these, so
float32 is accurate enough at γ = 0.01.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def s2dtw(cost: Tensor, gamma: float = 0.1, dummy: float | None = 0.5, smooth: bool = True) -> Tensor:
    """Cost of aligning each pair, (…, n, m) → (…), differentiable once. ValueError for costs or a γ that do not fit.

    smooth: local neighbourhood smoothing, D_ij = δ_ij + softmin_γ(δ_i,j-1, δ_i-1,j, δ_i-1,j-1), ∞ outside the grid,
        and D_00 = δ_00 - γ log 3. False: D = δ.
    dummy: cost of the other cells of a (2n+1) × (2m+1) grid with D at its odd cells, through which a path may bypass
        clips and captions that match nothing. None: paths on D itself; with smooth = False this is plain soft-DTW.
    """
    return _S2DTW.apply(_checked(cost, gamma), gamma, dummy, smooth)


@torch.no_grad()
def alignment(
    cost: Tensor, gamma: float = 0.1, dummy: float | None = 0.5, smooth: bool = True, grid: bool = False
) -> Tensor:
    """The expected path: the probability that a path passes each cell, where paths have a probability in proportion to
    exp(-cost / γ). (…, n, m) → (…, n, m), each in [0, 1], the gradient of S2DTW by D. No gradient flows through it.

    grid: return the whole (…, 2n+1, 2m+1) grid with its dummy cells; without dummies (None) it is (…, n, m) as well.
    """
    cells, _ = _grid(_checked(cost, gamma), gamma, dummy, smooth)
    _, weights = _forward(cells, gamma)
    paths = _backward(weights, cells.shape)
    return paths if grid or dummy is None else paths[..., 1::2, 1::2]


def cosine_cost(video: Tensor, text: Tensor, shifted: bool = True) -> Tensor:
    """δ of clips (…, n, d) and captions (…, m, d) → (…, n, m): -cos, in [-1, 1]; 1 - cos if not shifted."""
    cosine = F.normalize(video, dim=-1) @ F.normalize(text, dim=-1).mT
    return -cosine if shifted else 1 - cosine


def distances(video: Tensor, text: Tensor, *, shifted: bool = True, block: int = 64, **options) -> Tensor:
    """S2DTW of all pairs of sequences: video (C, n, d), text (Q, m, d) → (Q, C).

    block: texts at a time, to bound the memory; the result is the same. options: gamma, dummy and smooth of `s2dtw`.
    """
    parts = []
    for some in text.split(block):
        cost = cosine_cost(video.flatten(0, 1), some.flatten(0, 1), shifted)  # (C n, Q m): no copy of a video per text
        cost = cost.unflatten(1, some.shape[:2]).unflatten(0, video.shape[:2]).permute(2, 0, 1, 3)  # (Q, C, n, m)
        parts.append(s2dtw(cost, **options))
    return torch.cat(parts)


def loss(
    video: Tensor,
    text: Tensor,
    *,
    shifted: bool = True,
    contrastive: bool = True,
    symmetric: bool = False,
    temperature: float = 1.0,
    **options,
) -> Tensor:
    """mean_i [ logsumexp_j(-S2DTW(V_j, T_i) / τ) + S2DTW(V_i, T_i) / τ ], j over the batch: a scalar.

    video (B, n, d) and text (B, m, d), item i of both from one video. The defaults are the released loss: each text
    against all videos, no temperature. ValueError for unpaired inputs or a temperature that is not positive.

    symmetric: the mean of that and of each video against all texts.
    contrastive: False: mean_i S2DTW(V_i, T_i), without negatives, under which embeddings collapse.
    options: gamma, dummy and smooth of `s2dtw`.
    """
    if len(video) != len(text):
        raise ValueError(f"S2DTW loss: {len(video)} videos and {len(text)} texts; wanted pairs")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; wanted a positive number")
    if not contrastive:
        return s2dtw(cosine_cost(video, text, shifted), **options).mean()
    scores = -distances(video, text, shifted=shifted, **options) / temperature  # (texts, videos)
    own = torch.arange(len(scores), device=scores.device)
    text_to_video = F.cross_entropy(scores, own)
    return (text_to_video + F.cross_entropy(scores.T, own)) / 2 if symmetric else text_to_video


def _checked(cost: Tensor, gamma: float) -> Tensor:
    if cost.dim() < 2 or not all(cost.shape[-2:]):
        raise ValueError(f"S2DTW takes costs of shape (…, clips, captions), got {tuple(cost.shape)}")
    if not cost.isfinite().all():
        raise ValueError("S2DTW got a cost that is not finite")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma={gamma}; wanted a positive number")
    return cost if cost.dtype == torch.float64 else cost.float()


class _S2DTW(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cost, gamma, dummy, smooth):
        cells, near = _grid(cost, gamma, dummy, smooth)
        value, weights = _forward(cells, gamma, keep=ctx.needs_input_grad[0])
        ctx.shape, ctx.odd = cells.shape, dummy is not None
        ctx.save_for_backward(near, *weights)
        return value

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # create_graph: a second derivative of 0 would be silently wrong
            raise RuntimeError("S2DTW has no second derivative: call it on detached costs, or without create_graph")
        near, *weights = ctx.saved_tensors
        grad = _backward(weights, ctx.shape) * upstream[..., None, None]
        if ctx.odd:
            grad = grad[..., 1::2, 1::2]
        if near is not None:
            left, up, both = near * grad
            grad[..., :, :-1] += left[..., :, 1:]
            grad[..., :-1, :] += up[..., 1:, :]
            grad[..., :-1, :-1] += both[..., 1:, 1:]
        return grad, None, None, None


def _grid(cost: Tensor, gamma: float, dummy: float | None, smooth: bool) -> tuple[Tensor, Tensor | None]:
    """(…, n, m) → the cells that paths go through, and the weights (3, …, n, m) of each cell's smoothing neighbours."""
    near = None
    if smooth:
        padded = F.pad(cost, (1, 0, 1, 0), value=math.inf)
        three = torch.stack([padded[..., 1:, :-1], padded[..., :-1, 1:], padded[..., :-1, :-1]]).div_(-gamma)
        three[..., 0, 0] = 0  # cell (0, 0) has no neighbours
        total, near = _log_sum_exp(three)
        cost = cost - gamma * total
    if dummy is None:
        return cost, near
    *batch, n, m = cost.shape
    cells = cost.new_full((*batch, 2 * n + 1, 2 * m + 1), dummy)
    cells[..., 1::2, 1::2] = cost
    return cells, near


def _log_sum_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp(x) over the first axis, and softmax(x) over it. Some, not all, may be -inf."""
    weights = x.softmax(dim=0)
    return x.amax(dim=0) - weights.amax(dim=0).log_(), weights


def _diagonals(n: int, m: int):
    """Index and first and last row (exclusive) of each anti-diagonal of an n × m grid."""
    return [(d, max(0, d - m + 1), min(n, d + 1)) for d in range(n + m - 1)]


def _skewed(n: int, m: int, pairs: int, fill: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Storage of (n + m + 1, n + 1, pairs), and the view (n, m, pairs) of it whose cell (i, j) lies at diagonal
    i + j + 2, row i + 1. The border before the first row and column is `fill`."""
    x = like.new_full((n + m + 1, n + 1, pairs), fill)
    row, diagonal = pairs, (n + 1) * pairs
    return x, x.as_strided((n, m, pairs), (diagonal + row, diagonal, 1), 2 * diagonal + row)


def _forward(cells: Tensor, gamma: float, keep: bool = True) -> tuple[Tensor, list[Tensor]]:
    """(…, n, m) → soft-DTW (…), and for each diagonal the weights (3, cells, pairs) of the left, upper and diagonal
    predecessors, which sum to 1; no weights unless `keep`."""
    *batch, n, m = cells.shape
    pairs, weights = math.prod(batch), []
    x, view = _skewed(n, m, pairs, -math.inf, cells)  # -1/γ × the cost of the cell, then of the paths that end there
    view.copy_(cells.reshape(pairs, n, m).permute(1, 2, 0)).div_(-gamma)
    x[0, 0] = 0  # the start of all paths
    for d, lo, hi in _diagonals(n, m):
        before = torch.stack([x[d + 1, lo + 1 : hi + 1], x[d + 1, lo:hi], x[d, lo:hi]])
        total, w = _log_sum_exp(before)
        x[d + 2, lo + 1 : hi + 1] += total
        if keep:
            weights.append(w)
    return (x[-1, -1] * -gamma).reshape(batch), weights


def _backward(weights: list[Tensor], shape: torch.Size) -> Tensor:
    """Weights of `_forward` → expected passes of each cell (…, n, m), passed back from cell to predecessors."""
    *batch, n, m = shape
    e, view = _skewed(n, m, math.prod(batch), 0.0, weights[0])
    e[-1, -1] = 1
    for (d, lo, hi), (left, up, both) in zip(reversed(_diagonals(n, m)), reversed(weights)):
        here = e[d + 2, lo + 1 : hi + 1]
        e[d + 1, lo + 1 : hi + 1].addcmul_(here, left)
        e[d + 1, lo:hi].addcmul_(here, up)
        e[d, lo:hi].addcmul_(here, both)
    return view.permute(2, 0, 1).reshape(shape)
