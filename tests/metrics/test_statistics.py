"""Intervals and the paired test on values of any kind, against scipy, plain loops and cases by hand."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssb.metrics import statistics
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined, draws, interval, over_seeds, paired, resampled, settled, verdict


def test_statistics_know_nothing_of_the_study():
    assert not re.search(r"^\s*(from|import) ssb", Path(statistics.__file__).read_text(), re.MULTILINE)


def test_an_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).gamma(2, 20, size=300)  # as CIDEr: many small, few large
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.05 * (theirs.high - theirs.low))
    assert interval(np.stack([values - 7, values + 7])) == pytest.approx(interval(values))  # seeds are averaged


def test_over_seeds_is_students_interval():
    values = np.random.default_rng(0).normal(3, 2, size=5)
    theirs = stats.ttest_1samp(values, 0).confidence_interval()
    assert over_seeds(values) == pytest.approx((theirs.low, theirs.high))
    assert np.isnan(over_seeds(values[:1])).all()


def test_draws_are_whole_groups_with_replacement():
    groups = np.array(["b", "a", "b", "c", "c", "b"])
    group, blocks = draws(groups, 6, resamples=1000, seed=3)
    times = np.concatenate([*blocks])
    assert group.tolist() == [1, 0, 1, 2, 2, 1] and times.shape == (1000, 3) and (times.sum(axis=1) == 3).all()
    assert times.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)
    values = np.array([1.0, 10, 100, 1000, 10000, 100000])
    sums = times @ [10, 100101, 11000]
    assert resampled(values, groups, 1000, seed=3) == pytest.approx(sums / (times @ [1, 3, 2]))


def test_a_paired_difference_with_its_intervals():
    rng = np.random.default_rng(1)
    clip = rng.normal(0, 30, 400)
    base = 50 + clip + rng.normal(0, 5, (5, 400))
    one = base + 2 + rng.normal(0, 8, (5, 400))
    found = paired(one, base)
    gain = one - base
    assert found.delta == pytest.approx(gain.mean())
    seeds = stats.ttest_rel(one.mean(axis=1), base.mean(axis=1)).confidence_interval()
    assert (found.seeds_low, found.seeds_high) == pytest.approx(tuple(seeds))
    clips = stats.ttest_1samp(gain.mean(axis=0), 0).confidence_interval()
    assert (found.delta_low, found.delta_high) == pytest.approx(tuple(clips), abs=0.1)
    assert found.p < 0.01 and verdict(found) == "higher" and verdict(paired(base, one)) == "lower"
    assert paired(base, base)[:4] == (0, 0, 0, 1) and verdict(paired(base, base)) == "not resolved"
    assert np.isnan(paired(one[:1], base[:1]).seeds_low) and verdict(paired(one[:1], base[:1])) == "not resolved"


def test_p_of_values_that_are_missing_is_1():
    values = np.array([1.0, np.nan, 2.0])
    assert paired(values, [0, 0, 0]).p == 1 and verdict(paired(values, [0, 0, 0])) == "not resolved"


def test_values_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match=r"values of \(2, 3\) and \(1, 3\) \(seeds, queries\) cannot be paired"):
        paired(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"values have shape \(0,\); wanted \(queries,\) or \(seeds, queries\)"):
        interval([])


def test_an_interaction_is_a_difference_of_differences():
    rng = np.random.default_rng(0)
    cells, clips = rng.integers(1, 4, size=(4, 3, 200)), np.arange(200) // 4
    none, none_with, cross, cross_with = (points(cell, "R@1") for cell in cells)
    found = combined([(1, cross_with, cross, clips), (-1, none_with, none, clips)])
    each = ((cross_with - cross) - (none_with - none)).mean(axis=1)
    assert found.delta == pytest.approx(each.mean())
    assert found.seeds_high - found.delta == pytest.approx(4.302653 * each.std(ddof=1) / 3**0.5)
    assert found.delta_low < found.delta < found.delta_high
    # of the same queries it is the paired difference of their sums
    sums = paired(cross_with + none, cross + none_with, clips)
    for name in ("delta", "delta_low", "delta_high", "seeds_low", "seeds_high"):
        assert getattr(found, name) == pytest.approx(getattr(sums, name))
    assert found.p == pytest.approx(sums.p, abs=0.02)  # rounding moves resamples in which nothing differs
    # where only one pair differs it is the difference of that pair
    alone = combined([(1, cross_with, cross, clips), (-1, none, none, clips)])
    assert alone == paired(cross_with, cross, clips)


def test_a_slope_over_other_queries_of_the_same_clips():
    """One corpus has two captions a clip, the other three: every resample draws the same clips of both."""
    rng = np.random.default_rng(2)
    few, many = (np.repeat(np.arange(30), n) for n in (2, 3))
    pairs = [(-0.5, *rng.normal(0, 9, (2, 4, 60)), few), (1.5, *rng.normal(1, 9, (2, 4, 90)), many)]
    found = combined(pairs)
    drawn = np.random.default_rng(0).integers(30, size=(2000, 30))
    gains = [weight * (a - b) for weight, a, b, _ in pairs]
    loops = [
        sum(g[:, np.concatenate([np.flatnonzero(of == c) for c in row])].mean() for g, of in zip(gains, (few, many)))
        for row in drawn
    ]
    assert (found.delta_low, found.delta_high) == pytest.approx(tuple(np.quantile(loops, (0.025, 0.975))))
    assert found.p == pytest.approx(min(1, 2 * (1 + min(np.less(loops, 0).sum(), np.greater(loops, 0).sum())) / 2001))
    assert found.delta == pytest.approx(gains[0].mean() + gains[1].mean())
    each = gains[0].mean(axis=1) + gains[1].mean(axis=1)
    assert (found.seeds_low, found.seeds_high) == pytest.approx(over_seeds(each))


def test_verdicts_of_a_table_are_of_adjusted_p():
    rows = {
        "base": (np.nan,) * 6,
        "clear": (2.0, 1.0, 3.0, 0.001, 0.5, 3.5),
        "less clear": (2.0, 0.1, 3.0, 0.03, 0.5, 3.5),
        "seeds differ": (2.0, 1.0, 3.0, 0.001, -0.5, 4.5),
        "worse": (-2.0, -3.0, -1.0, 0.001, -3.5, -0.5),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=statistics.DELTA)
    frame = settled(table.drop(index="worse"))
    assert frame["p"].tolist()[1:] == pytest.approx([0.003, 0.03, 0.003])
    assert frame["verdict"].tolist() == ["", "higher", "higher", "not resolved"]
    frame = settled(table.assign(p=[np.nan, *[0.02] * 4]))
    assert frame["p"].dropna().tolist() == pytest.approx([0.08] * 4)
    assert frame["verdict"].tolist() == ["", *["not resolved"] * 4]
    assert verdict(statistics.Difference(*rows["worse"])) == "lower"
