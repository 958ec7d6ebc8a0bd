"""How many queries and seeds does it take to resolve a gain? The differences of two settings, by clip and by seed, are
decomposed into variance components of clips, of seeds and of the residual; from these follows how often the study's
verdict (see `ssb.metrics.statistics.verdict`) would be reached with more of either."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from ssb.metrics.statistics import Noise

DRAWS = 4000  # the standard error of a probability is at most 0.8 points
MOST = 10**9  # clips; what is not resolved with so many is not resolved with any number


class Components(NamedTuple):
    """Variances of the difference between two settings, for one clip and one seed, in squared points."""

    clip: float
    seed: float
    residual: float


def components(difference, clips) -> Components:
    """Two-way random effects without replication: difference = gain + clip + seed + residual.

    difference: (seeds, Q) in points, the values of one setting minus those of another with the same seed (see
    `ssb.metrics.statistics`); clips: (Q,) the clip of each query. The captions of a clip are averaged first, and clips
    count alike. The estimates are those of the analysis of variance (Searle, Casella & McCulloch, Variance Components,
    1992, chapter 4): from the mean squares, (MS_clip − MS_residual) / seeds, (MS_seed − MS_residual) / clips and
    MS_residual; a negative one is set to 0.
    ValueError for shapes that do not fit, and for fewer than two seeds or clips, which have no variance.
    """
    difference, clips = np.asarray(difference), np.asarray(clips)
    if difference.ndim != 2 or clips.shape != difference.shape[1:]:
        raise ValueError(f"shapes {difference.shape} and {clips.shape}: wanted difference (seeds, Q) and clips (Q,)")
    labels, clip = np.unique(clips, return_inverse=True)
    seeds, n = len(difference), len(labels)
    if seeds < 2 or n < 2:
        raise ValueError(f"{seeds} seeds and {n} clips; wanted two or more of each to estimate a variance")
    noise = Noise.of(np.stack([np.bincount(clip, row) for row in difference]) / np.bincount(clip))
    estimates = (noise.clip - noise.rest) / seeds, (noise.seed - noise.rest) / n, noise.rest
    return Components(*(max(0.0, x) for x in estimates))


def standard_error(components: Components, clips: int, seeds: int) -> float:
    """Standard error, in points, of the mean difference over so many new clips and new seeds."""
    return float(np.sqrt(components.clip / clips + components.seed / seeds + components.residual / (clips * seeds)))


def power(
    components: Components, effect: float = 1.0, clips: int = 1000, seeds: int = 5, alpha: float = 0.05, draws=DRAWS
) -> float:
    """Probability that the study gives a verdict "higher" or "lower" when the true gain is `effect` points: p < alpha
    (see `ssb.metrics.statistics.Noise`). A verdict on either side counts, so that at an effect of 0 this is the rate of
    false ones, alpha at most. Under Holm, the first of k settings compared with the baseline needs alpha = 0.05 / k.
    One seed gives no verdict: 0. ValueError for fewer than 2 clips or 1 seed, a negative variance or another alpha.

    Seeded Monte-Carlo over the normal model. A verdict depends on four independent numbers, the mean and the three mean
    squares, so each draw is four numbers. Where power is low it may fall a little with more clips: with less noise,
    fewer verdicts are reached by chance.
    """
    if clips < 2 or seeds < 1 or min(components) < 0 or not 0 < alpha < 1:
        raise ValueError(
            f"clips={clips}, seeds={seeds}, alpha={alpha}, {components}: wanted at least 2 clips and 1 seed, "
            "0 < alpha < 1 and no negative variance"
        )
    if seeds == 1:
        return 0.0
    clip, seed, residual = components
    rng = np.random.default_rng(0)  # the same numbers for all sizes, so that a curve is smooth
    mean = effect + standard_error(components, clips, seeds) * rng.standard_normal(draws)
    expected = clip * seeds + residual, seed * clips + residual, residual
    freedom = clips - 1, seeds - 1, (clips - 1) * (seeds - 1)
    squares = (each * stats.chi2.ppf(rng.random(draws), n) / n for each, n in zip(expected, freedom))
    return float((np.abs(mean) > Noise(*squares, clips, seeds).half(alpha)).mean())


def needed(
    components: Components, effect: float = 1.0, seeds: int = 5, chance: float = 0.8, alpha: float = 0.05
) -> float:
    """The least number of clips with which a gain of `effect` points is resolved with probability `chance`, by
    bisection; inf where none is enough, because more clips do not reduce the noise of seeds."""

    def enough(clips: int) -> bool:
        return power(components, effect, clips, seeds, alpha) >= chance

    if not enough(MOST):
        return np.inf
    low, high = 1, MOST  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
