"""Confidence intervals over queries and over seeds, one paired test of both, Holm's adjustment, and the verdict.

Every function takes values, one number for each query: (seeds, Q), or (Q,) of a single run. Their mean is the score:
100 · (rank ≤ K) for R@K (`ssb.metrics.retrieval.points`), 100 · (first class is right) for top-1, the CIDEr of a
caption. Intervals and differences are in the unit of the values.

Two sources of noise are separated. Over queries: the percentile interval of the bootstrap (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13); whole groups are drawn, since captions of one clip, or clips cut from
one film, are not independent (Field & Welsh, Bootstrapping clustered data, 2007). Over seeds: Student's t. A verdict
reckons with both at once, by the two-way analysis of variance of `Noise`, part of which the comparisons of a table
share.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

BLOCK = 1 << 22  # numbers held at once by a bootstrap
RESAMPLES = 2000
LEVEL = 0.95  # confidence of every interval in the tables
POWER = 0.8  # with which a difference is resolved
LEAST = 1e-12  # the smallest p that is told from 0


CLOSE = 0.5  # points: two settings are equivalent where both intervals lie within ± this
BORROWED = 4  # degrees of freedom, at most, of the noise of seeds that come from the other comparisons of a table
ACTS = 0.1  # captioning with less of the gradient that reaches the heads hardly acts on them


class Noise(NamedTuple):
    """The noise of a mean over seeds and clips: the mean squares of the two-way analysis of variance of a table (seeds,
    clips) with one number in each cell, value = mean + clip + seed + rest (Searle, Casella & McCulloch, Variance
    Components, 1992, chapter 4). The fields may be arrays of one shape, too."""

    clip: float
    seed: float
    rest: float
    clips: int
    seeds: int
    borrowed: float = 0.0  # degrees of freedom of `seed` beyond seeds − 1, see `shared`

    @classmethod
    def of(cls, table: np.ndarray) -> "Noise":
        """Of a table (seeds, clips), two or more of each."""
        (seeds, clips), of_clip, of_seed = table.shape, table.mean(axis=0), table.mean(axis=1)
        rest = table - of_clip - of_seed[:, None] + table.mean()
        squares = seeds * of_clip.var(ddof=1), clips * of_seed.var(ddof=1), (rest**2).sum() / (seeds - 1) / (clips - 1)
        return cls(*map(float, squares), clips, seeds)

    def half(self, alpha: float = 1 - LEVEL):
        """Half the width of the 1 − alpha interval of the mean over new clips and new seeds.

        half² = t²_seeds MS_seed / n + t²_clips max(0, MS_clip − MS_rest) / n, of n = seeds · clips cells, with
        Student's t of seeds − 1 + borrowed and clips − 1 degrees of freedom: MS_seed / n has the noise of seeds and the
        rest, and the difference adds that of clips. Each part with its own t keeps the level whatever the parts
        (Banerjee, Approximate confidence interval for linear functions of means of k populations when the population
        variances are not equal, Sankhya 22, 1960); one t for the sum, with Satterthwaite's degrees of freedom, does
        not with three or five seeds. It is never narrower than the interval over clips alone.
        """
        cells = self.clips * self.seeds
        t_clips, t_seeds = (stats.t.isf(alpha / 2, n - 1) for n in (self.clips, self.seeds + self.borrowed))
        added = t_clips**2 * np.maximum(self.clip - self.rest, 0)
        return np.sqrt(np.maximum(t_clips**2 * self.clip, t_seeds**2 * self.seed + added) / cells)

    def p(self, mean: float) -> float:
        """The alpha at which `half` is |mean|, at least LEAST; 1 for a mean of 0."""
        if mean == 0 or abs(mean) <= self.half(1):
            return 1.0
        if self.half(LEAST) <= abs(mean):
            return LEAST
        return float(np.exp(optimize.brentq(lambda x: self.half(np.exp(x)) - abs(mean), np.log(LEAST), 0.0)))

    def resolves(self, alpha: float = 1 - LEVEL) -> float:
        """The smallest true mean that is found at p < alpha with a probability of POWER: a mean that is lower than the
        true one by its own noise must still exceed `half`."""
        return float(self.half(alpha) + self.half(2 * (1 - POWER)))


def shared(noises: Sequence[Noise]) -> list[Noise]:
    """The noise of the comparisons of one table, that of seeds in part as all of them together know it.

    With three seeds a comparison alone knows its MS_seed with 2 degrees of freedom, too few for any verdict among many
    tests. So each is the mean of its own, by its d degrees of freedom, and of MS_rest · mean(MS_seed / MS_rest) over
    the n comparisons, by BORROWED more (a moderated t: Smyth, Linear models and empirical Bayes methods for assessing
    differential expression in microarray experiments, 2004, with a prior of fixed weight); but by at most d (n − 1) / 2
    more, since comparisons with one baseline share its noise. A quotient of 1 is that of seeds without an effect, and
    it has no unit, so that differences and slopes may stand in one table. Those that have no rest are left as they are.
    """
    known = [noise for noise in noises if noise.rest > 0]
    if len(known) < 2:
        return list(noises)
    quotient = np.mean([noise.seed / noise.rest for noise in known])
    found = []
    for noise in noises:
        own = noise.seeds - 1
        borrowed = min(BORROWED, own * (len(known) - 1) / 2)
        together = (own * noise.seed + borrowed * quotient * noise.rest) / (own + borrowed)
        found.append(noise._replace(seed=together, borrowed=borrowed) if noise.rest > 0 else noise)
    return found


class Difference(NamedTuple):
    """A difference of mean values: its percentile interval over queries; the two-sided p of no difference, for new
    queries and new seeds; its interval over seeds, and the one over both, of which p is; and its noise. Those that need
    several seeds are NaN for a single one. The fields are the columns of every table that compares."""

    delta: float
    delta_low: float
    delta_high: float
    p: float
    seeds_low: float
    seeds_high: float
    low: float
    high: float
    noise: Noise | float


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


def slope(x) -> np.ndarray:
    """(n,) the weights of values at x (n,) in their slope by least squares; 0 where all x are equal."""
    centred = np.asarray(x, float) - np.mean(x)
    return centred / max((centred**2).sum(), 1e-12)


def combined(pairs: Iterable[tuple]) -> Difference:
    """Σ weight · (mean(a) − mean(b)) over the `pairs` (weight, a, b, groups), each as in `paired`: a difference of two
    gains, or the slope of a gain over several corpora. All pairs have the same seeds and the same groups, which every
    resample draws alike; the queries of a group may differ from pair to pair."""
    delta = each = drawn = table = 0.0
    for weight, a, b, groups in pairs:
        a, b = matched(a, b)
        delta = delta + weight * (a.mean() - b.mean())
        each = each + weight * (a.mean(axis=1) - b.mean(axis=1))
        drawn = drawn + weight * (resampled(a, groups) - resampled(b, groups))
        table = table + weight * by_group(a - b, groups)
    noise = Noise.of(table) if min(table.shape) > 1 and np.isfinite(table).all() else np.nan
    p, half = (noise.p(delta), noise.half()) if isinstance(noise, Noise) else (np.nan, np.nan)
    around = delta - half, delta + half
    return Difference(float(delta), *percentiles(drawn), p, *over_seeds(each), *map(float, around), noise)


def over_both(values, groups=None) -> tuple[float, float, float]:
    """The mean over seeds and queries with its 95 % interval for new ones of both: (mean, low, high); NaN for the ends
    of a single seed. Arguments as of `draws`, the values (seeds, Q)."""
    table = by_group(by_seed(values), groups)
    half = Noise.of(table).half() if min(table.shape) > 1 else np.nan
    return float(table.mean()), float(table.mean() - half), float(table.mean() + half)


def by_group(values: np.ndarray, groups=None) -> np.ndarray:
    """(seeds, Q) → (seeds, G), a number for each group, with the same mean over all: mean + n (mean of the group −
    mean) for a group of n times as many queries as the average. Its deviations are those of a ratio of sums (Cochran,
    Sampling Techniques, 1977, chapter 6). groups: as in `draws`."""
    group, _ = draws(groups, values.shape[1])
    size = np.bincount(group)
    sums = np.stack([np.bincount(group, row) for row in values])
    return values.mean() + (sums - values.mean() * size) / size.mean()


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
    """A frame with the columns DELTA → with p and the interval over queries and seeds by the noise as it is `shared`,
    p adjusted for the number of its tests; `resolves`, the smallest true difference that Holm's first step finds with a
    probability of POWER (at 0.05 / number of tests), in place of the noise; and `verdict`. A column `acts`, see
    `verdict`, is used and left out; without it captioning acts."""
    tests = np.flatnonzero([isinstance(noise, Noise) for noise in frame["noise"]])
    alpha, found = (1 - LEVEL) / max(1, len(tests)), frame.assign(resolves=np.nan)[["p", "low", "high", "resolves"]]
    for row, noise in zip(tests, shared([frame["noise"].iloc[row] for row in tests])):
        delta, half = frame["delta"].iloc[row], noise.half()
        found.iloc[row] = noise.p(delta), delta - half, delta + half, noise.resolves(alpha)
    frame = frame.assign(**found.assign(p=holm(found["p"])))
    acts = frame.get("acts", pd.Series(True, frame.index))
    frame["verdict"] = [verdict(row, each) for row, each in zip(frame.itertuples(), acts)]
    return frame.drop(columns=["noise", "acts"], errors="ignore")


def verdict(row, acts: bool | None = True) -> str:
    """Is a difference beyond the noise of queries and seeds, or too small to matter?

    "higher" or "lower" where p < 0.05. Else, where the interval over queries and the one over seeds both lie within
    ±CLOSE: "equivalent"; but "hardly acts" where captioning does not act on the heads, so that nothing was compared.
    Else "inconclusive", as for a single seed. "" where nothing is compared, in the baseline's own row.

    row: a `Difference`, or a row of a frame with its columns as attributes. acts: has captioning at least ACTS of the
    gradient that reaches the heads, or is there none? None: nothing is called equivalent, since it is not known, or
    since the difference is not in points, of which CLOSE is.
    """
    if pd.isna(row.delta):
        return ""
    if row.p < 1 - LEVEL:
        return "higher" if row.delta > 0 else "lower"
    ends = row.delta_low, row.delta_high, row.seeds_low, row.seeds_high
    if acts is None or pd.isna(acts) or not np.all(np.abs(ends) <= CLOSE):
        return "inconclusive"
    return "equivalent" if acts else "hardly acts"
