"""Intervals and the paired test on values of any kind, against scipy, plain loops and cases by hand."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ssb.metrics import statistics
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import (
    Difference,
    Noise,
    by_group,
    combined,
    draws,
    interval,
    over_seeds,
    paired,
    resampled,
    settled,
    verdict,
)


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
    assert paired(base, base)[:4] == (0, 0, 0, 1) and verdict(paired(base, base)) == "equivalent"
    assert np.isnan(paired(one[:1], base[:1]).seeds_low) and verdict(paired(one[:1], base[:1])) == "inconclusive"


def test_there_is_no_p_of_values_that_are_missing():
    values = np.array([1.0, np.nan, 2.0])
    for one, other in ((values, [0, 0, 0]), (np.stack([values] * 3), np.zeros((3, 3)))):
        assert np.isnan(paired(one, other).p) and verdict(paired(one, other)) in ("", "inconclusive")


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
    cells = sum(np.stack([g[:, of == c].mean(axis=1) for c in range(30)], axis=1) for g, of in zip(gains, (few, many)))
    assert found.noise == pytest.approx(Noise.of(cells))  # clips have equally many captions
    assert found.delta == pytest.approx(gains[0].mean() + gains[1].mean())
    each = gains[0].mean(axis=1) + gains[1].mean(axis=1)
    assert (found.seeds_low, found.seeds_high) == pytest.approx(over_seeds(each))


def test_the_noise_of_a_table_is_that_of_least_squares():
    """Mean squares as differences of what fits of dummies leave, by hand for one clip more than seeds."""
    table = np.random.default_rng(4).gamma(2, 9, (3, 4))
    seed, clip = (np.eye(n)[index.ravel()] for n, index in zip((3, 4), np.indices((3, 4))))

    def left(*columns) -> float:
        columns = np.concatenate([np.ones((12, 1)), *columns], axis=1)
        return float(((table.ravel() - columns @ np.linalg.lstsq(columns, table.ravel())[0]) ** 2).sum())

    rest = left(seed, clip)
    assert Noise.of(table) == pytest.approx(((left(seed) - rest) / 3, (left(clip) - rest) / 2, rest / 6, 4, 3, 0))


def test_the_interval_over_both_meets_those_over_each():
    """Where only clips differ it is Student's over clips, where only seeds do, or all is rest, that over seeds."""
    rng, n, s = np.random.default_rng(5), 40, 4
    of_clip, of_seed = rng.normal(1, 9, (1, n)) + np.zeros((s, 1)), rng.normal(1, 9, (s, 1)) + np.zeros((1, n))
    for table, values in ((of_clip, of_clip[0]), (of_seed, of_seed[:, 0])):
        theirs = stats.ttest_1samp(values, 0)
        found = paired(table, np.zeros((s, n)))
        assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
        assert found.p == pytest.approx(theirs.pvalue)
    both = of_clip + of_seed  # without a rest: t² of each with its own variance, in sum
    half = [stats.t.ppf(0.975, len(x) - 1) ** 2 * x.var(ddof=1) / len(x) for x in (of_clip[0], of_seed[:, 0])]
    found = paired(both, np.zeros((s, n)))
    assert found.high - found.delta == pytest.approx(sum(half) ** 0.5)
    noise = found.noise
    assert noise.half(noise.p(found.delta)) == pytest.approx(abs(found.delta)) and noise.p(-found.delta) == found.p
    assert noise.p(0.0) == 1 and noise.p(1e9) == statistics.LEAST and noise.p(noise.half()) == pytest.approx(0.05)


def test_clips_with_more_captions_weigh_more():
    """The table over clips has the mean over captions; with equally many captions its cells are the clips' means."""
    values = np.random.default_rng(6).normal(3, 2, (2, 7))
    clips = np.array([0, 0, 0, 1, 1, 2, 2])
    assert by_group(values, clips).mean() == pytest.approx(values.mean())
    cells = [values.mean() + (3 * values[:, :3].mean(axis=1) - 3 * values.mean()) / (7 / 3)]
    assert by_group(values, clips)[:, 0] == pytest.approx(cells[0])
    assert by_group(values[:, 1:], clips[1:]) == pytest.approx(values[:, 1:].reshape(2, 3, 2).mean(axis=2))


@pytest.mark.parametrize("ratio", [0.5, 1, 2])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "heavy", "hits"])
def test_at_most_one_verdict_in_twenty_is_false(kind, seeds, ratio):
    """Two settings that do not differ. ratio: of the noise of seeds to that of queries, both of the mean."""
    rng, clips, draws = np.random.default_rng([seeds, int(10 * ratio)]), 60, 3000
    draw = {"normal": rng.standard_normal, "heavy": lambda size: rng.standard_t(3, size) / 3**0.5}.get(kind)
    wrong = 0
    for _ in range(draws):
        if draw:
            table = draw((1, clips)) + ratio * (seeds / clips) ** 0.5 * rng.standard_normal((seeds, 1))
        else:  # 100 where a rank is 1, of two settings with the same chances, which the seed moves
            deviation = 0.42 / clips**0.5 * 2**0.5 / seeds**0.5
            moved = 0.3 + ratio * deviation * (seeds / 2) ** 0.5 * rng.standard_normal((2, seeds, 1))
            ones = rng.random((2, seeds, clips)) < moved.clip(0, 1)
            table = 100.0 * ones[0] - 100.0 * ones[1]
        wrong += abs(table.mean()) > Noise.of(table).half()  # the same as p < 0.05
    assert wrong / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_what_a_design_resolves_it_finds_in_four_of_five():
    rng, clips, seeds, draws = np.random.default_rng(8), 80, 5, 2000
    tables = rng.normal(0, 3, (draws, 1, clips)) + rng.normal(0, 0.5, (draws, seeds, 1))
    tables = tables + rng.normal(0, 5, (draws, seeds, clips))
    for alpha in (0.05, 0.01):
        effect = np.mean([Noise.of(table).resolves(alpha) for table in tables[:200]])
        found = np.mean([abs(effect + table.mean()) > Noise.of(table).half(alpha) for table in tables])
        assert found == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("unlike", [0, 1])
@pytest.mark.parametrize("ratio", [0.5, 1, 2])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("settings", [3, 17])
def test_at_most_one_table_in_twenty_has_a_false_verdict(settings, seeds, ratio, unlike):
    """Settings that do not differ from their baseline. ratio: of the noise of seeds to that of the rest, both of the
    mean. unlike: the standard deviation of the logarithm of a setting's noise of seeds."""
    rng, clips, draws = np.random.default_rng([settings, seeds, int(10 * ratio)]), 30, 600
    wrong = 0
    for _ in range(draws):
        width = ratio * clips**-0.5 * np.exp(unlike * rng.standard_normal((settings + 1, 1, 1)))
        values = width * rng.standard_normal((settings + 1, seeds, 1)) + rng.standard_normal((1, seeds, clips))
        values = values + rng.standard_normal((settings + 1, seeds, clips))
        tables = values[1:] - values[0]
        noises = statistics.shared([Noise.of(table) for table in tables])
        half = [noise.half(0.05 / settings) for noise in noises]  # Holm's first step
        wrong += (abs(tables.mean(axis=(1, 2))) > half).any()
    assert wrong / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_the_noise_of_seeds_is_shared():
    """By hand: three comparisons of three seeds, whose quotients 2, 4 and 6 have the mean 4. The n = 3 lend each other
    d (n - 1) / 2 = 2 degrees of freedom, as many as each has."""
    own = [Noise(9.0, 2.0 * rest, rest, 100, 3) for rest in (1.0, 5.0)]
    own = [own[0], own[1]._replace(seed=20.0), Noise(9.0, 12.0, 2.0, 100, 3)]
    shared = statistics.shared(own)
    assert [noise.seed for noise in shared] == pytest.approx([(2 + 4) / 2, (20 + 20) / 2, (12 + 8) / 2])
    assert {noise.borrowed for noise in shared} == {2}
    cells = 300**0.5
    half = (stats.t.ppf(0.975, 4) ** 2 * 3 + stats.t.ppf(0.975, 99) ** 2 * 8) ** 0.5 / cells
    assert shared[0].half() == pytest.approx(half) and half < own[0].half()
    assert statistics.shared(own[:1]) == own[:1]
    many = statistics.shared(own * 9)
    assert {noise.borrowed for noise in many} == {4} and many[1].seed == pytest.approx((2 * 20 + 4 * 20) / 6)
    still = own[0]._replace(seed=0.0, rest=0.0)  # the same hits with every seed
    assert statistics.shared([still, *own])[0] == still and statistics.shared([still, *own])[1:] == shared


def row(delta, queries, seeds, sd=1.0):
    """A difference of 5 seeds and 100 clips. sd: of its noise."""
    noise = Noise(2 * sd**2, sd**2, sd**2, 100, 5)
    return Difference(delta, *queries, noise.p(delta), *seeds, delta - noise.half(), delta + noise.half(), noise)


def test_verdicts_of_a_table_are_of_adjusted_p():
    rows = {
        "base": (np.nan,) * 9,
        "clear": row(2.0, (1.0, 3.0), (0.5, 3.5), 9),
        "less clear": row(2.0, (0.1, 3.0), (0.5, 3.5), 13),
        "seeds differ": row(2.0, (1.0, 3.0), (-0.5, 4.5), 30),
        "worse": row(-2.0, (-3.0, -1.0), (-3.5, -0.5), 9),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=statistics.DELTA)
    frame, own = settled(table.drop(index="worse")), table["noise"].tolist()[1:4]
    noises = statistics.shared(own)  # of quotients of 1: the noise is its own, with more degrees of freedom
    assert [noise.seed for noise in noises] == pytest.approx([noise.seed for noise in own])
    p = [noise.p(2.0) for noise in noises]
    assert p[0] < 0.05 / 3 and 0.025 < p[1] < 0.05 < p[2]
    assert frame["p"].tolist()[1:] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert frame["verdict"].tolist() == ["", "higher", "inconclusive", "inconclusive"]
    assert frame["resolves"].tolist()[1:] == pytest.approx([noise.resolves(0.05 / 3) for noise in noises])
    assert frame["high"].tolist()[1:] == pytest.approx([2 + noise.half() for noise in noises])
    frame = settled(table.iloc[[0, *[2] * 4]].reset_index(drop=True))
    assert (frame["p"].dropna() == 4 * statistics.shared([own[1]] * 4)[0].p(2.0)).all()
    assert frame["verdict"].tolist() == ["", *["inconclusive"] * 4] and "noise" not in frame
    assert verdict(rows["worse"]) == "lower"


def test_equivalent_is_what_both_intervals_say_where_captioning_acts():
    near, seeds_wide = row(0.1, (-0.3, 0.5), (-0.2, 0.4)), row(0.1, (-0.3, 0.5), (-0.2, 0.51))
    assert [verdict(near, acts) for acts in (True, False, None, np.nan)] == [
        "equivalent", "hardly acts", "inconclusive", "inconclusive",
    ]  # fmt: skip
    assert verdict(seeds_wide) == verdict(near._replace(delta_low=-0.6)) == "inconclusive"
    assert verdict(near._replace(p=0.04)) == "higher"  # however small
    assert verdict(near._replace(p=np.nan, seeds_low=np.nan, seeds_high=np.nan)) == "inconclusive"
    frame = pd.DataFrame([near, near], columns=statistics.DELTA).assign(acts=[True, False])
    assert settled(frame)["verdict"].tolist() == ["equivalent", "hardly acts"] and "acts" not in settled(frame)


@given(arrays(float, 6, elements=st.floats(-50, 50)), arrays(float, 6, elements=st.floats(-50, 50)))
def test_the_weights_of_a_slope_are_those_of_least_squares(x, y):
    if np.ptp(x) > 1e-3:
        assert y @ statistics.slope(x) == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6, abs=1e-6)
    assert (statistics.slope(np.full(4, x[0])) == 0).all()
