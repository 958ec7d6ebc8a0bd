"""Confidence intervals over queries and over seeds, one paired test, Holm's adjustment, and the verdict.

Every function takes values, one number for each query: (seeds, Q), or (Q,) of a single run. Their mean is the score:
100 · (rank ≤ K) for R@K (`ssb.metrics.retrieval.points`), 100 · (first class is right) for top-1, the CIDEr of a
caption. Intervals and differences are in the unit of the values.

Two sources of noise are separated. Over queries: the percentile interval of the bootstrap (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13); whole groups are drawn, since captions of one clip, or clips cut from
one film, are not independent (Field & Welsh, Bootstrapping clustered data, 2007). Over seeds: Student's t.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

BLOCK = 1 << 22  # numbers held at once by a bootstrap
RESAMPLES = 2000
LEVEL = 0.95  # confidence of every interval in the tables


class Difference(NamedTuple):
    """A difference of mean values: its percentile interval and the two-sided p of no difference over queries, and its
    interval over seeds, NaN for a single seed. The fields are the columns of every table that compares."""

    delta: float
    delta_low: float
    delta_high: float
    p: float
    seeds_low: float
    seeds_high: float


DELTA = Difference._fields


def interval(values, groups=None) -> tuple[float, float]:
    """95 % interval over queries of the mean over seeds and queries: (low, high). groups: as in `draws`."""
    return percentiles(resampled(values, groups))


def over_seeds(values) -> tuple[float, float]:
    """95 % interval of a mean over seeds, by Student's t: (low, high). values: (seeds,), one number for each seed; a
    single one has no interval, (NaN, NaN)."""
    values = np.asarray(values, float)
    half = np.nan
    if len(values) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def paired(a, b, groups=None) -> Difference:
    """mean(a) − mean(b) on the same queries and seeds. a, b: values of one shape; groups: as in `draws`. ValueError
    for shapes that differ."""
    return combined([(1, a, b, groups)])


def combined(pairs: Iterable[tuple]) -> Difference:
    """Σ weight · (mean(a) − mean(b)) over the `pairs` (weight, a, b, groups), each as in `paired`: a difference of two
    gains, or the slope of a gain over several corpora. All pairs have the same seeds and the same groups, which every
    resample draws alike; the queries of a group may differ from pair to pair."""
    delta = each = drawn = 0.0
    for weight, a, b, groups in pairs:
        a, b = matched(a, b)
        delta = delta + weight * (a.mean() - b.mean())
        each = each + weight * (a.mean(axis=1) - b.mean(axis=1))
        drawn = drawn + weight * (resampled(a, groups) - resampled(b, groups))
    return Difference(float(delta), *tested(drawn), *over_seeds(each))


def resampled(values, groups=None, resamples: int = RESAMPLES, seed: int = 0, median: bool = False) -> np.ndarray:
    """(resamples,) the mean over seeds and queries in each resample; median: the mean over seeds of the median over
    queries. The other arguments are those of `draws`."""
    values = by_seed(values)
    group, blocks = draws(groups, values.shape[1], resamples, seed)
    if median:
        return np.concatenate([np.mean([_medians(x, times, group) for x in values], axis=0) for times in blocks])
    # summed over seeds too: sums of integers are exact, so settings with equally many hits do not differ by 1e-16
    sums, sizes = np.bincount(group, values.sum(axis=0)), len(values) * np.bincount(group)
    return np.concatenate([(times @ sums) / (times @ sizes) for times in blocks])


def _medians(values: np.ndarray, times: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Median of values (Q,) in each resample, a query counting as often as its group was drawn, times (rows, G);
    (rows,)."""
    order = np.argsort(values)
    passed = times[:, group[order]].cumsum().reshape(len(times), -1)  # one running count over all resamples
    ends = passed[:, -1]
    totals = np.diff(ends, prepend=0)
    middle = [np.searchsorted(passed.ravel(), ends - totals + i, "right") for i in ((totals - 1) // 2, totals // 2)]
    return values[order[np.array(middle) % len(values)]].mean(axis=0)


def draws(groups, queries: int, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The group of each query, (Q,) from 0 to G − 1, and blocks (rows, G) of how often each group is drawn, with
    replacement, in a resample; `resamples` rows in all.

    groups: (Q,) labels; None: each query is its own group. The draws depend on G, resamples and seed alone, so that
    scores over equally many groups share their resamples. ValueError for groups that do not fit.
    """
    groups = np.arange(queries) if groups is None else np.asarray(groups)
    if groups.shape != (queries,):
        raise ValueError(f"groups have shape {groups.shape}; wanted one label per query, ({queries},)")
    labels, group = np.unique(groups, return_inverse=True)
    return group, _blocks(len(labels), max(1, BLOCK // queries), resamples, np.random.default_rng(seed))


def _blocks(groups: int, size: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)


def percentiles(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """(resamples,) of a score → its percentile interval, (low, high)."""
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def tested(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """(resamples,) of a difference → its percentile interval and p: (low, high, p).

    p = 2 min(share of resamples with a difference ≤ 0, share with one ≥ 0), with one resample added to each so that p
    is never 0 (Davison & Hinkley, Bootstrap Methods and their Application, 1997, chapter 4), and at most 1.
    """
    rarer = min((~(drawn > 0)).sum(), (~(drawn < 0)).sum())  # NaN counts for both: p is 1
    return *percentiles(drawn, level), float(min(1.0, 2 * (1 + rarer) / (1 + len(drawn))))


def by_seed(values, name: str = "values") -> np.ndarray:
    """(Q,) or (seeds, Q) → (seeds, Q) float64; ValueError for another shape and for no values."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"{name} have shape {values.shape}; wanted (queries,) or (seeds, queries), not empty")
    return np.atleast_2d(values)


def matched(a, b, name: str = "values") -> tuple[np.ndarray, np.ndarray]:
    """The values of two settings, each (seeds, Q) float64; ValueError where seeds or queries differ in number."""
    a, b = by_seed(a, name), by_seed(b, name)
    if a.shape != b.shape:
        raise ValueError(
            f"{name} of {a.shape} and {b.shape} (seeds, queries) cannot be paired: both must have the same queries and "
            "equally many seeds"
        )
    return a, b


def holm(p: pd.Series) -> pd.Series:
    """p values adjusted for the number of tests (Holm, A simple sequentially rejective multiple test procedure, 1979);
    a missing one, the baseline's, stays missing and is not counted."""
    ordered = p.dropna().sort_values()
    stepped = ordered * np.arange(len(ordered), 0, -1)
    return stepped.cummax().clip(upper=1).reindex(p.index)


def settled(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the columns DELTA: p adjusted for the number of its rows, and `verdict`."""
    frame = frame.assign(p=holm(frame["p"]))
    return frame.assign(verdict=[verdict(row) for row in frame.itertuples()])


def verdict(row) -> str:
    """Is a difference beyond the noise of queries and of seeds? "higher" or "lower" where p < 0.05 and the interval
    over seeds excludes 0, otherwise "not resolved"; "" where p is missing, in the baseline's own row.

    row: a `Difference`, or a row of a frame with its columns as attributes.
    """
    if pd.isna(row.p):
        return ""
    if row.p < 0.05 and row.seeds_low > 0:
        return "higher"
    if row.p < 0.05 and row.seeds_high < 0:
        return "lower"
    return "not resolved"
