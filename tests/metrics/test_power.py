"""Variance components and power: against least squares, noncentral t, loops, and the study's own verdict."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ssb.metrics import statistics
from ssb.metrics.power import Components, components, needed, power, standard_error
from ssb.metrics.retrieval import points


def residual_squares(values, *factors) -> float:
    """Sum of squares left by a least-squares fit on dummies of the factors."""
    columns = np.concatenate([np.ones((len(values), 1)), *(np.eye(f.max() + 1)[f] for f in factors)], axis=1)
    return float(((values - columns @ np.linalg.lstsq(columns, values)[0]) ** 2).sum())


def gain(ranks, base):
    return 100.0 * (ranks == 1) - 100.0 * (base == 1)


def by_least_squares(ranks, base, clips):
    """The same estimates from nested regressions, one row for each seed and clip."""
    rows = pd.DataFrame(gain(ranks, base)).T.groupby(clips).mean()
    n, s = rows.shape
    values, clip, seed = rows.to_numpy().ravel(), np.repeat(np.arange(n), s), np.tile(np.arange(s), n)
    rest = residual_squares(values, clip, seed)
    of_clip = (residual_squares(values, seed) - rest) / (n - 1)
    of_seed = (residual_squares(values, clip) - rest) / (s - 1)
    rest /= (n - 1) * (s - 1)
    return max(0, (of_clip - rest) / s), max(0, (of_seed - rest) / n), rest


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_the_analysis_of_variance(seed):
    rng = np.random.default_rng(seed)
    clips = (
        rng.permutation(np.r_[np.arange(17), rng.integers(17, size=40)]) * 3
    )  # of unequal captions, labels with gaps
    chance = np.clip(rng.uniform(0.1, 0.9, 17)[clips // 3] + rng.normal(0, 0.2, (4, 1)), 0, 1)
    ranks, base = (np.where(rng.random((4, 57)) < p, 1, 5) for p in (chance, 0.4))
    found = components(gain(ranks, base), clips)
    assert found == pytest.approx(by_least_squares(ranks, base, clips))
    assert components(gain(base, ranks), clips) == pytest.approx(found)
    assert found.residual > 0 and found.clip + found.seed > 0


def test_components_by_hand():
    # clips 0 and 1, two captions each; differences by seed: (100, 0) and (50, 50)
    found = components(100 * np.array([[1, 1, 0, 0], [1, 0, 1, 0]]), [0, 0, 1, 1])
    # means of clips 75 and 25, of seeds 50 and 50: what is left is ±25, so MS_residual 4 · 25² = 2500
    assert found == (1250 - 2500 / 2, 0, 2500)  # MS_seed is 0: its component would be −1250
    only_clips = components(100 * np.array([[1, 1, 0, 0], [1, 1, 0, 0]]), [0, 0, 1, 1])
    assert only_clips == (5000, 0, 0)
    only_seeds = components(100 * np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), [0, 0, 1, 1])
    assert only_seeds == (0, 5000, 0)


def test_components_are_unbiased():
    """Of many corpora drawn alike, the estimates average to what they were drawn with."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        chance = rng.choice([0.1, 0.5], 30) + rng.choice([-0.1, 0.1], (6, 1))  # variances 400 and 100 squared points
        found.append(components(100 * (rng.random((6, 30)) < chance + 0.2), np.arange(30)))
    p = np.add.outer([0.1, 0.5], [-0.1, 0.1]) + 0.2
    wanted = 400, 100, 1e4 * (p * (1 - p)).mean()
    assert np.abs(np.mean(found, axis=0) - wanted).max() < 30
    assert (np.abs(np.mean(found, axis=0) - wanted) < 4 * np.std(found, axis=0) / 400**0.5 + 8).all()


def test_components_refuse_what_tells_nothing():
    with pytest.raises(ValueError, match="1 seeds and 3 clips; wanted two or more of each"):
        components(np.zeros((1, 3)), np.arange(3))
    with pytest.raises(ValueError, match="2 seeds and 1 clips"):
        components(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"shapes \(2, 4\) and \(3,\)"):
        components(np.zeros((2, 4)), np.zeros(3))


def test_standard_error_is_the_deviation_of_the_mean():
    rng = np.random.default_rng(0)
    n, s = 7, 3
    draws = rng.normal(0, 2, (20000, 1, n)) + rng.normal(0, 1, (20000, s, 1)) + rng.normal(0, 3, (20000, s, n))
    assert standard_error(Components(4, 1, 9), n, s) == pytest.approx(draws.mean((1, 2)).std(), rel=0.02)


def near(p: float, draws: int) -> float:
    """Four deviations of a share of draws."""
    return 4 * max(p * (1 - p), 1 / draws) ** 0.5 / draws**0.5


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("clips", [10, 150])
def test_with_noise_of_clips_alone_power_is_that_of_a_t_test(effect, clips):
    """The interval over seeds has no width."""
    t = stats.nct(clips - 1, effect * clips**0.5 / 9)
    bar = stats.t.ppf(0.975, clips - 1)
    wanted = t.sf(bar) + t.cdf(-bar)
    assert power(Components(81, 0, 0), effect, clips, 3, draws=20000) == pytest.approx(wanted, abs=near(wanted, 20000))
    if clips == 150:  # and nearly that of the normal distribution
        z = effect * clips**0.5 / 9
        plain = stats.norm.sf(1.96 - z) + stats.norm.cdf(-1.96 - z)
        assert power(Components(81, 0, 0), effect, clips, 3, draws=20000) == pytest.approx(plain, abs=0.025)


@pytest.mark.parametrize("effect", [0.0, 1.0, 3.0])
def test_with_noise_of_seeds_alone_power_is_that_of_a_t_test(effect):
    t, bar = stats.nct(4, effect * 5**0.5), stats.t.ppf(0.975, 4)
    wanted = t.sf(bar) + t.cdf(-bar)
    for clips in (2, 500):
        found = power(Components(0, 1, 0), effect, clips, 5, draws=20000)
        assert found == pytest.approx(wanted, abs=near(wanted, 20000))


@pytest.mark.parametrize("noise", [(100, 1, 300), (0, 0, 200), (50, 3, 0), (10, 0.2, 400)])
@pytest.mark.parametrize("effect, alpha", [(0.0, 0.05), (1.5, 0.05), (3.0, 0.01)])
def test_power_agrees_with_whole_tables_drawn_and_tested(noise, effect, alpha):
    """A table of clips and seeds for each draw, and the rule on it as the study has it."""
    rng, clips, seeds, draws, resolved = np.random.default_rng(1), 60, 4, 3000, 0
    for _ in range(draws):
        table = effect + rng.normal(0, noise[0] ** 0.5, clips) + rng.normal(0, noise[1] ** 0.5, (seeds, 1))
        table = table + rng.normal(0, noise[2] ** 0.5, (seeds, clips))
        of_clips, of_seeds = table.mean(0), table.mean(1)
        rest = ((table - of_clips - of_seeds[:, None] + table.mean()) ** 2).sum() / ((seeds - 1) * (clips - 1))
        over_clips, over_seeds = of_clips.var(ddof=1) / clips, of_seeds.var(ddof=1) / seeds
        t_clips, t_seeds = (stats.t.ppf(1 - alpha / 2, n - 1) for n in (clips, seeds))
        both = t_seeds**2 * over_seeds + t_clips**2 * max(0, over_clips - rest / clips / seeds)
        resolved += abs(table.mean()) > max(both, t_clips**2 * over_clips) ** 0.5
    share = resolved / draws
    found = power(Components(*noise), effect, clips, seeds, alpha, draws=20000)
    assert found == pytest.approx(share, abs=near(share, draws) + 0.01)


def test_power_agrees_with_the_verdict_of_a_study():
    """From ranks: hits that fall by chance, for each clip its own, through the paired bootstrap to the verdict."""
    rng, clips, seeds = np.random.default_rng(2), 200, 4
    verdicts = []
    for _ in range(250):
        ours, theirs = rng.choice([0.2, 0.4], clips), rng.choice([0.15, 0.35], clips)
        luck = rng.choice([-0.01, 0.01], (seeds, 1))
        ranks, base = (np.where(rng.random((seeds, clips)) < p, 1, 2) for p in (ours + luck, theirs + 0 * luck))
        verdicts.append(statistics.verdict(statistics.paired(points(ranks, "R@1"), points(base, "R@1"))))
    spread = 1e4 * np.mean([p * (1 - p) for p in (0.2, 0.4)]) + 1e4 * np.mean([p * (1 - p) for p in (0.15, 0.35)])
    found = power(Components(clip=200, seed=1, residual=spread), 5.0, clips, seeds)
    share = np.mean(np.isin(verdicts, ["higher", "lower"]))
    assert 0.2 < share < 0.9 and found == pytest.approx(share, abs=3.5 * (share * (1 - share) / 250) ** 0.5)


@settings(deadline=None, max_examples=40)
@given(
    which=st.sampled_from([0, 1, 2]), size=st.floats(0.1, 1e4), seeds=st.integers(2, 12), clips=st.integers(30, 2000)
)
def test_with_one_source_of_noise_false_verdicts_are_as_rare_as_promised(which, size, seeds, clips):
    noise = Components(*(size if i == which else 0.0 for i in range(3)))
    rate = power(noise, 0.0, clips, seeds)
    assert rate <= 0.05 + near(0.05, 4000)
    assert rate < 0.1


def test_with_two_sources_alike_false_verdicts_are_no_more():
    rate = power(Components(400.0, 1.0, 0.0), 0.0, clips=400, seeds=400, draws=20000)
    assert rate < 0.06  # that of clips prevails
    rate = power(Components(400.0, 400.0, 0.0), 0.0, clips=20000, seeds=20000, draws=20000)
    assert rate == pytest.approx(0.05, abs=near(0.05, 20000))  # of many of both the normal distribution is all


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.floats(0, 500)] * 3), st.floats(0.1, 5), st.integers(30, 3000), st.integers(2, 10))
def test_what_is_larger_or_better_measured_is_resolved_more_often(noise, effect, clips, seeds):
    here, luck = power(Components(*noise), effect, clips, seeds), 0.03
    assert power(Components(*noise), effect + 1, clips, seeds) >= here - luck
    if here > 0.5:  # below, less noise is also less luck
        assert power(Components(*noise), effect, clips * 4, seeds) >= here - luck
    assert power(Components(*(2 * x for x in noise)), effect, clips, seeds) <= here + luck
    assert power(Components(*noise), effect, clips, seeds, alpha=0.01) <= here
    assert power(Components(*noise), -effect, clips, seeds) == pytest.approx(here, abs=0.05)
    assert here == power(Components(*noise), effect, clips, seeds)  # the same draws at every call


def test_ends_of_power():
    assert power(Components(0, 0, 0), 1.0, 2, 2) == 1 and power(Components(0, 0, 0), 0.0, 2, 2) == 0
    assert power(Components(1, 0, 0), 100.0, 50, 1) == 0  # one seed has no interval
    for wrong in (dict(clips=1), dict(seeds=0), dict(alpha=0), dict(components=Components(-1, 0, 0))):
        with pytest.raises(ValueError, match="wanted at least 2 clips and 1 seed"):
            power(**{"components": Components(1, 1, 1), **wrong})


def test_needed_is_the_least_number_of_clips():
    noise = Components(100, 0.05, 300)
    clips = needed(noise, 1.0, seeds=5)
    assert power(noise, 1.0, clips, 5) >= 0.8 > power(noise, 1.0, clips - 1, 5)
    assert needed(noise, 1.0, seeds=10) < clips < needed(noise, 0.8, seeds=5)
    assert needed(noise, 1.0, seeds=5, chance=0.9) > clips < needed(noise, 1.0, seeds=5, alpha=0.01)
    # without noise of seeds, by the normal distribution: (1.96 + 0.84)² variance / gain²
    wanted = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * 400
    assert needed(Components(400, 0, 0), 1.0, seeds=3) == pytest.approx(wanted, rel=0.05)


def test_no_number_of_clips_does_against_the_noise_of_seeds():
    assert needed(Components(100, 4, 300), 1.0, seeds=5) == np.inf
    assert needed(Components(100, 4, 300), 1.0, seeds=100) < 5000
    assert needed(Components(0, 0, 0), 1.0, seeds=1) == np.inf and needed(Components(0, 0, 0), 1.0, seeds=2) == 2
