"""What a study can resolve: the components of its noise, the curves and the reading."""

import numpy as np
import pandas as pd
import pytest
from helpers import made

from ssb.experiments.power import curves, in_words, noise
from ssb.metrics.power import Components, needed, power


def test_curves_have_a_row_for_each_choice():
    parts = {"a": Components(100, 0.2, 300), "b": Components(0, 1, 50)}
    frame = curves(pd.DataFrame(parts, index=Components._fields).T, 2.0, clips=(100, 1000), seeds=(3, 5))
    assert list(frame) == ["difference", "effect", "clips", "seeds", "power"] and (frame["effect"] == 2).all()
    assert [tuple(row) for row in frame[["difference", "seeds", "clips"]].to_numpy()] == [
        (name, s, c) for name in parts for s in (3, 5) for c in (100, 1000)
    ]
    for row in frame.itertuples():
        assert row.power == power(parts[row.difference], 2.0, row.clips, row.seeds)


def test_the_reading_of_the_power_gives_both_rates_and_the_clips_needed():
    parts = Components(100, 0.05, 300)
    frame = pd.DataFrame({"x": parts}, index=Components._fields).T
    words = in_words(frame, 1.0, 300, 5)
    assert words.startswith("With the noise of “x”, 5 seeds and 300 test clips resolve 1 points of R@1 in ")
    assert f"in {power(parts, 1.0, 300, 5):.0%} of studies (80% need {needed(parts):,} clips)" in words
    assert f"in {power(parts, 0.0, 300, 5):.1%} where there is no effect" in words
    assert "(no number of clips is enough)" in in_words(frame.assign(seed=4), 1.0, 300, 5)


def test_noise_of_another_seed_is_that_of_independent_pairs(home):
    """Against the variances that the hits are drawn with: the clips' part cancels between two seeds of one setting."""
    rng = np.random.default_rng(3)
    clip = np.repeat(np.arange(400), 5)
    chance = rng.uniform(0.1, 0.6, 400)[clip]
    runs = {"none": [], "cross": []}
    for seed in range(12):
        luck = rng.choice([-0.08, 0.08])  # of the seed: variance 0.0064, 64 squared points
        for name in runs:
            ranks = np.where(rng.random(2000) < chance + luck, 1, 9)
            runs[name].append(made(home, f"{name}{seed}", name, seed, ranks, clip))
    frame = noise(runs, "cross", "none")
    assert list(frame.index) == ["cross − none", "none, another seed"]
    again = frame.loc["none, another seed"]
    residual = 1e4 * np.mean((chance + 0.08) * (1 - chance - 0.08) + (chance - 0.08) * (1.08 - chance)) / 2 / 5
    assert again["clip"] == 0 and again["residual"] == pytest.approx(2 * residual, rel=0.1)
    assert 40 < again["seed"] < 300  # 2 × 64, from twelve seeds
