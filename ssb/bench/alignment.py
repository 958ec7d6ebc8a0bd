"""`ssb bench alignment`: soft-DTW of a batch of pairs, value and gradient, as ratios within one run on one thread.

`s2dtw` is compared with the recursions of Cuturi & Blondel (2017) cell by cell in Python and with tslearn's compiled
loops. All three get the same costs; they are timed only if they agree. The memory of scoring many sequences and videos,
in blocks as `s2dtw.distances` does it, is compared with that of the cells of all pairs. Written to
results/s2dtw_bench.csv.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb.bench.timing import BenchmarkError, compare, in_process, rows, write
from ssb.machine import threads
from ssb.s2dtw import distances, s2dtw

SIZES = ((256, 17), (64, 129))  # pairs, side: 16 videos of 8 clips and 8 captions with dummies; 8 videos of 64 and 64
GAMMA = 0.1
COUNT, LONG = 2000, 8  # videos and sequences that are scored, and their clips and captions


def by_cell(cost: list[list[float]], gamma: float) -> tuple[float, list[list[float]]]:
    """Soft-DTW of one pair and its gradient (algorithms 1 and 2 of Cuturi & Blondel, 2017). cost: rows of a matrix."""
    n, m = len(cost), len(cost[0])
    r = [[math.inf] * (m + 2) for _ in range(n + 2)]
    r[0][0] = 0.0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = r[i - 1][j], r[i][j - 1], r[i - 1][j - 1]
            least = min(before)
            total = sum(math.exp((least - value) / gamma) for value in before)
            r[i][j] = cost[i - 1][j - 1] + least - gamma * math.log(total)
    e = [[0.0] * (m + 2) for _ in range(n + 2)]
    e[n][m] = 1.0
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
                if a <= n and b <= m:
                    e[i][j] += e[a][b] * math.exp((r[a][b] - r[i][j] - cost[a - 1][b - 1]) / gamma)
    return r[n][m], [row[1:-1] for row in e[1:-1]]


def aligning(pairs: int, cells: int, gamma: float = GAMMA) -> list[dict]:
    """Rows for three implementations of soft-DTW and its gradient, on random costs (pairs, cells, cells).
    BenchmarkError if they do not agree or tslearn is missing."""
    try:
        import numba
        from tslearn.metrics import SoftDTWLossPyTorch
    except ImportError:
        raise BenchmarkError("the benchmark compares with tslearn: pip install tslearn") from None
    numba.set_num_threads(1)
    torch.set_num_threads(1)  # as numba has just set OpenMP's, which are torch's too, to all cores
    cost = torch.rand(pairs, cells, cells, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cost[:, ::2] = cost[:, :, ::2] = 0.5
    compiled = SoftDTWLossPyTorch(gamma, dist_func=lambda x, y: x)  # x is the cost already

    def differentiated(function) -> tuple[Tensor, Tensor]:
        x = cost.clone().requires_grad_()
        value = function(x)
        value.sum().backward()
        return value.detach(), x.grad

    def literal() -> tuple[Tensor, Tensor]:
        values, gradients = zip(*(by_cell(one, gamma) for one in cost.tolist()))
        return torch.tensor(values), torch.tensor(gradients)

    name = f"soft-DTW {cells}x{cells}"
    calls = {
        f"{name}: by cell": literal,
        f"{name}: tslearn": lambda: differentiated(lambda x: compiled(x, x)),
        f"{name}: ours": lambda: differentiated(lambda x: s2dtw(x, gamma, dummy=None, smooth=False)),
    }
    (value, gradient), *others = (work() for work in calls.values())
    for other, its_gradient in others:
        if not torch.allclose(value, other, atol=1e-3) or not torch.allclose(gradient, its_gradient, atol=1e-3):
            raise BenchmarkError(f"{name}: values or gradients differ")
    return compare(calls, pairs, "pairs/s")


def scored(count: int) -> dict:
    """Nothing; scores so many sequences and videos of LONG clips and captions, for its memory."""
    with threads(1):
        video, text = torch.randn(2, count, LONG, 64)
        distances(video, text)
    return {}


def scoring(count: int) -> list[dict]:
    """Rows for the memory of scoring so many sequences and videos: the cells of all pairs at once, computed, of which
    S2DTW needs several copies; and all that a process takes in blocks, without its imports."""
    once = (count * (2 * LONG + 1)) ** 2 * 4 / 2**20
    base, peak = (in_process(scored, each)["peak"] for each in (1, count))
    name = f"memory, {count:,} x {count:,}"
    return rows({f"{name}: cells at once": np.array([once]), f"{name}: in blocks": np.array([peak - base])}, "MB")


def bench(out: Path, sizes=SIZES, count: int = COUNT) -> pd.DataFrame:
    """Measure on one thread, print, and write one row per implementation and size to `out`; returns the frame."""
    with threads(1):
        measured = [row for size in sizes for row in aligning(*size)]
        return write(measured + scoring(count), out, corpus="made up")
