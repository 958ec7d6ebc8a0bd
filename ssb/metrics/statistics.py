"""Intervals and paired tests over queries and seeds, Holm's adjustment and the verdict of a comparison."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ssb.metrics.retrieval import _checked, _score, points


def interaction(none, none_with, cross, cross_with, clips) -> dict[str, float]:
    """R@1 of (cross_with − cross) − (none_with − none), ranks (seeds, Q) each, with intervals as in `study.against`."""
    gains = [differences(*pair, "R@1", clips) for pair in ((cross_with, cross), (none_with, none))]
    cells = ((1, cross_with), (-1, cross), (-1, none_with), (1, none))
    each = sum(sign * 100 * (ranks <= 1).mean(axis=1) for sign, ranks in cells)
    half = half_width(each)
    return dict(zip(DELTA, (each.mean(), *tested(gains[0] - gains[1]), each.mean() - half, each.mean() + half)))


BLOCK = 1 << 22  # numbers held at once by a bootstrap


def bootstrap(
    ranks, metric: str = "R@1", groups=None, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a metric over resampled queries: (low, high), in the metric's unit.

    ranks: (Q,), or (seeds, Q) of the same queries: the metric is then averaged over seeds in every resample.
    metric: "MdR", "MnR" or "R@K" with any K.
    groups: (Q,) labels; whole groups are drawn, for captions of one clip are not independent. None: single queries.
    Raises ValueError for ranks, metric or groups that do not fit.
    """
    values = _resample(_checked(ranks), metric, groups, resamples, seed)
    low, high = np.quantile(values, _tails(level))
    return float(low), float(high)


class Paired(NamedTuple):
    """metric(a) − metric(b), its percentile interval, and the two-sided p of no difference."""

    delta: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a, b, metric: str = "R@1", groups=None, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Paired:
    """Compare two settings on the same queries: every resample draws the same queries (or groups) for both.

    a, b: ranks of one shape, (Q,) or (seeds, Q); the rest as in `bootstrap`.
    p = 2 min(share of resamples with delta ≤ 0, share with delta ≥ 0), one resample added to each so that it is never
    0, and at most 1. Recalls: a positive delta speaks for a; MdR and MnR: for b.
    """
    values = differences(a, b, metric, groups, resamples, seed)
    return Paired(_score(_checked(a), metric) - _score(_checked(b), metric), *tested(values, level))


def differences(a, b, metric: str = "R@1", groups=None, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """metric(a) − metric(b) in each resample, (resamples,); arguments as in `paired_bootstrap`. The draws depend on
    groups, resamples and seed alone, so differences on the same groups are of the same resamples."""
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(
            f"ranks of {a.shape} and {b.shape} (seeds, queries) cannot be paired: they must be of the "
            "same queries and as many seeds"
        )
    return _resample(a, metric, groups, resamples, seed) - _resample(b, metric, groups, resamples, seed)


def tested(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Resampled differences → their percentile interval, low and high, and p as in `paired_bootstrap`."""
    low, high = np.quantile(values, _tails(level))
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return float(low), float(high), float(min(1.0, 2 * (1 + rarer) / (1 + len(values))))


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _resample(ranks: np.ndarray, metric: str, groups, resamples: int, seed: int) -> np.ndarray:
    """(seeds, Q) → (resamples,) values of the metric. The draws depend on groups, resamples and seed alone."""
    queries = ranks.shape[1]
    groups = np.arange(queries) if groups is None else np.asarray(groups)
    if groups.shape != (queries,):
        raise ValueError(f"groups have shape {groups.shape}; wanted one label per query, ({queries},)")
    labels, group = np.unique(groups, return_inverse=True)
    draws = _draws(len(labels), queries, resamples, np.random.default_rng(seed))
    if metric == "MdR":
        return np.concatenate([np.mean([_medians(r, times, group) for r in ranks], axis=0) for times in draws])
    sums = np.bincount(group, points(ranks, metric).sum(axis=0))  # over seeds too: whole numbers add up without
    sizes = len(ranks) * np.bincount(group)  # rounding, so settings that found equally many do not differ by 1e-16
    return np.concatenate([(times @ sums) / (times @ sizes) for times in draws])


def _draws(groups: int, queries: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks (some, groups) of how often each group is drawn in a resample, `resamples` rows in all."""
    step = max(1, BLOCK // queries)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)


def _medians(ranks: np.ndarray, times: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Median of (Q,) ranks in each resample, a query counting as often as its group was drawn; (some,)."""
    order = np.argsort(ranks)
    passed = times[:, group[order]].cumsum().reshape(len(times), -1)  # one running count over all resamples
    ends = passed[:, -1]
    totals = np.diff(ends, prepend=0)
    middle = [np.searchsorted(passed.ravel(), ends - totals + at, "right") for at in ((totals - 1) // 2, totals // 2)]
    return ranks[order[np.array(middle) % len(ranks)]].mean(axis=0)


RESAMPLES = 2000


def over_seeds(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over seeds, see `study.half_width`."""
    values = np.asarray(values, float)
    half = half_width(values)
    return values.mean() - half, values.mean() + half


def resampled(values: np.ndarray) -> np.ndarray:
    """Means (RESAMPLES,) of values (C,) over clips drawn again; the same draws for as many clips."""
    rng = np.random.default_rng(0)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)])


DELTA = ("delta", "delta_low", "delta_high", "p", "seeds_low", "seeds_high")


def against(ranks: np.ndarray, base: np.ndarray, clips) -> dict[str, float]:
    """R@1 of (seeds, Q) ranks less that of the baseline's, with the interval over queries and that over seeds."""
    delta = paired_bootstrap(ranks, base, "R@1", clips)
    row = {"delta": delta.delta, "delta_low": delta.low, "delta_high": delta.high, "p": delta.p}
    half = half_width(100 * ((ranks <= 1).mean(axis=1) - (base <= 1).mean(axis=1)))
    return row | {"seeds_low": delta.delta - half, "seeds_high": delta.delta + half}


def half_width(values: np.ndarray) -> float:
    """Half the 95 % interval of a mean over seeds, by Student's t; NaN for one seed, which tells nothing of others."""
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan


def holm(p: pd.Series) -> pd.Series:
    """Holm's adjustment for as many tests as there are numbers; a missing one (the baseline's) stays missing."""
    known = p.dropna().sort_values()
    stepped = known * np.arange(len(known), 0, -1)
    return stepped.cummax().clip(upper=1).reindex(p.index)


def settled(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the columns DELTA: p adjusted for the number of its rows, and `verdict`."""
    frame = frame.assign(p=holm(frame["p"]))
    return frame.assign(verdict=[verdict(row) for _, row in frame.iterrows()])


def verdict(row: pd.Series) -> str:
    """Beyond the noise of queries and of seeds, or not."""
    if pd.isna(row["p"]):
        return ""
    if row["p"] < 0.05 and row["seeds_low"] > 0:
        return "higher"
    if row["p"] < 0.05 and row["seeds_high"] < 0:
        return "lower"
    return "not resolved"
