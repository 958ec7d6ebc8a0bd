"""The sweep of false negatives on runs made by hand: the trend is a line's slope, its intervals hold it."""

import numpy as np
import pytest
from helpers import made

from ssb import ConfigError, files
from ssb.experiments.false_negatives import Sweep

RATES = (0.01, 0.1)
CHANGES = {"corpus_options": {"clips": 90, "captions": 2}}


@pytest.fixture
def sweep(home):
    return Sweep("fn", RATES, preset="smoke", seeds=range(4), changes=CHANGES)


def runs_with(home, gain: dict[float, float]) -> dict:
    """rate → setting → four runs; cross finds `gain` more of 22 clips' 100 captions each at rank 1 than none."""
    clip = np.repeat(np.arange(22), 100)
    rng = np.random.default_rng(0)
    runs = {}
    for rate, points in gain.items():
        runs[rate] = {"none": [], "cross": []}
        for seed in range(4):
            base = np.where(rng.random(2200) < 0.3, 1, 7)
            missed = np.flatnonzero(base == 7)
            better = base.copy()
            better[rng.choice(missed, round(22 * points), replace=False)] = 1
            for name, ranks in (("none", base), ("cross", better)):
                runs[rate][name].append(made(home, f"{name}{rate}{seed}", name, seed, ranks, clip))
    return runs


def test_trend_is_the_slope_over_tenfolds(sweep, home):
    runs = runs_with(home, {0.01: 2, 0.1: 8})
    summary = sweep.summary(runs)
    near = summary.drop_duplicates("rate")["per batch"]
    gains = summary[summary["setting"] == "cross"]["delta"]
    assert gains.tolist() == pytest.approx([2, 8], abs=0.01)
    slope = np.polyfit(np.log10(near), gains, 1)[0]
    trend = sweep.trend(runs, summary)
    assert trend.loc["cross", "delta"] == pytest.approx(slope, abs=0.01)
    assert trend.loc["cross", "delta_low"] < slope < trend.loc["cross", "delta_high"]
    claims = sweep.claims(trend)
    assert claims["verdict"].tolist() == ["held"] and claims["paper"].isna().all()
    assert (sweep.first.results / "fn_claims.csv").is_file()


def test_no_trend_is_inconclusive_and_a_falling_one_contradicts(sweep, home):
    """What is no difference in points has no bound within which it is equivalent."""
    even = runs_with(home, {0.01: 3, 0.1: 3})
    assert sweep.claims(sweep.trend(even, sweep.summary(even)))["verdict"].tolist() == ["inconclusive"]


def test_falling(sweep, home):
    falling = runs_with(home, {0.01: 8, 0.1: 2})
    assert sweep.claims(sweep.trend(falling, sweep.summary(falling)))["verdict"].tolist() == ["contradicted"]


def test_the_rates_share_clips_and_not_captions(sweep):
    few, many = (work.corpus for work in sweep.studies.values())
    assert few.clips == many.clips and np.array_equal(few.split("test"), many.split("test"))
    assert np.array_equal(few.streams["motion"].values, many.streams["motion"].values)
    assert few.captions["text"].tolist() != many.captions["text"].tolist()
    shares = [0.01, 0.1]
    summary = sweep.summary({rate: runs_with(files.root() / str(rate), {rate: 1})[rate] for rate in RATES})
    assert summary.drop_duplicates("rate")["share"].tolist() == pytest.approx(shares, rel=0.3)


def test_a_sweep_of_nothing_or_of_one(home):
    with pytest.raises(ConfigError, match="rates = "):
        Sweep("fn", [], preset="smoke")
    one = Sweep("fn", [0.05], preset="smoke", seeds=range(4), changes=CHANGES)
    runs = runs_with(home, {0.05: 2})
    with pytest.raises(ConfigError, match="at least 2"):
        one.trend(runs, one.summary(runs))
