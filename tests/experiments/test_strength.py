"""Gain against the strength of the baseline, on runs made by hand: λ by validation, gains by test, the slope."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ssb import Study
from ssb.experiments import strength
from ssb.experiments.strength import captioned

SMALL = {"corpus_options": {"clips": 60, "false_negatives": 0.05}}
CLIPS = np.repeat(np.arange(50), 2)


class Made:
    """A run whose first `hits` of 100 test queries are right, and which has this R@1 on the validation clips."""

    def __init__(self, hits: int, val: float, seed: int = 0):
        ranks = np.where(np.arange(100) < hits, 1.0, 9.0)
        self.ranks = {"t2v": ranks, "clip": CLIPS}
        self.metrics = {"best_epoch": 3, "t2v R@1": float(hits)}
        self.share, self.config = 0.5, SimpleNamespace(seed=seed)
        self.log = pd.DataFrame({"epoch": [1, 3], "val R@1": [99.0, val], "val R@5": 50.0, "val R@10": 60.0})


@pytest.fixture
def runs():
    """Three baselines of R@1 10, 20, 30, on validation 12, 22, 32; captioning gains 6, 3 and 1 points at λ = 0.3."""
    made = {}
    for name, hits, gain in (("laptop", 10, 6), ("weak", 20, 3), ("strong", 30, 1)):
        made[name] = [Made(hits + seed, hits + 2, seed) for seed in (0, 1)]
        for weight, (more, val) in zip(strength.LAMBDAS, ((9, 0), (gain, 5), (20, 3))):
            made[captioned(name, weight)] = [Made(hits + seed + more, hits + val, seed) for seed in (0, 1)]
    return made


@pytest.fixture
def study(home):
    return Study("strength", preset="smoke", seeds=[0, 1], jobs=1, changes=SMALL)


def test_the_weight_is_chosen_on_validation_and_the_gain_measured_on_test(study, runs, home):
    gains = strength.gains(study, runs)
    assert gains["λ"].tolist() == [0.3] * 3 and gains["delta"].tolist() == [6, 3, 1]
    assert gains["val R@1"].tolist() == [12, 22, 32] and gains["R@1"].tolist() == [10.5, 20.5, 30.5]
    written = pd.read_csv(home / "results/shapes-smoke/strength_gains.csv", index_col="baseline")
    assert written["delta"].tolist() == gains["delta"].tolist()


def test_a_setting_that_collapsed_is_left_out(study, runs):
    del runs[captioned("weak", 0.1)], runs["strong"]
    gains = strength.gains(study, runs)
    assert gains.index.tolist() == ["laptop", "weak"] and gains["λ"].tolist() == [0.3, 0.3]


def test_of_all_baselines_the_mean_and_the_slope(study, runs, home):
    """By least squares, the slope for ten points with its sign turned."""
    gains = strength.gains(study, runs)
    claims = study.judged(strength.claimed(runs, gains, 2)).set_index("claim")
    assert claims.loc[strength.AVERAGE, "delta"] == pytest.approx((6 + 3 + 1) / 3, abs=0.001)
    slope = np.polyfit([12, 22, 32], [6, 3, 1], 1)[0]
    assert claims.loc[strength.FALLS, "delta"] == pytest.approx(2)  # from 3 to 1, the 6 left out
    words = strength.reading(gains)
    assert "strongest baseline (strong; validation R@1 32.0): +1.00" in words
    assert words.startswith("The mean gain: +3.33 points, +2.00 without laptop, the largest.")
    assert f"it falls by {-10 * slope:.2f} points, by 2.00 without laptop" in words
    axis = strength.figure(gains, "title").axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert np.diff(lines["least squares, all"])[0] / 20 == pytest.approx(slope, abs=0.001)
    assert np.diff(lines["least squares, the\nlargest gain left out"])[0] / 20 == pytest.approx(-0.2)
    assert not axis.texts
    far = strength.figure(gains.assign(delta=[60, 3, 1], delta_low=[50, 2, 0], delta_high=[70, 4, 2]), "title").axes[0]
    assert far.get_ylim()[1] < 6 and [text.get_text() for text in far.texts] == ["+60.0"]
    assert lines["the paper's gain"][0] == pytest.approx(1.3) and "validation clips" in axis.get_xlabel()


def test_there_are_sixteen_baselines_and_the_named_ones():
    grid = strength.baselines(Study("s", preset="laptop", seeds=[0], jobs=1, changes=SMALL))
    assert len({str(sorted(changes.items())) for changes in grid.values()}) == len(grid) >= 17
    assert grid["laptop"] == {}


def test_the_recalls_on_validation_are_those_of_the_epoch_kept(runs):
    frame = strength.validation({"weak": runs["weak"]})
    assert frame.to_dict("list") == {
        "setting": ["weak"] * 2,
        "seed": [0, 1],
        "val R@1": [22.0] * 2,
        "val R@5": [50.0] * 2,
        "val R@10": [60.0] * 2,
    }
