"""When captioning gains: variants, gains in log rank by hand, and by query."""

import numpy as np
import pytest

from ssb import Study
from ssb.experiments import when

SMALL = {"corpus_options": {"clips": 240, "false_negatives": 0.05}}
CLIPS = np.repeat(np.arange(20), 2)


class Made:
    share = 0.5

    def __init__(self, ranks):
        self.ranks = {"t2v": np.asarray(ranks, float), "clip": CLIPS}


@pytest.fixture
def study(home):
    return Study("when", preset="smoke", seeds=[0, 1], jobs=1, changes=SMALL)


def fits(others: np.ndarray) -> np.ndarray:
    """(40, 20): each query is true of its own clip and of so many others."""
    table = np.zeros((40, 20), bool)
    for row, count in enumerate(others):
        table[row, [(CLIPS[row] + k) % 20 for k in range(count + 1)]] = True
    return table


def test_variants_are_parts_of_the_training_clips_and_batches(study):
    cells = when.variants(study)
    assert [name for name in cells if "clips" in name] == ["64 clips", "107 clips"]  # of 160, at least a batch
    assert [name for name in cells if "batch" in name] == ["batch 16", "batch 32", "batch 128"]
    epochs, every = study.base.epochs, study.base.validate_every
    assert cells["64 clips"][2] == {"train_clips": 64, "epochs": 2.5 * epochs, "validate_every": round(2.5 * every)}
    assert len(when.grid(study)) == 2 * len(cells)


def test_gains_are_means_of_logarithms(study):
    runs = {f"none, {name}": [Made(np.full(40, 8.0))] * 2 for name in when.variants(study)}
    runs |= {f"cross, {name}": [Made(np.full(40, 4.0))] * 2 for name in when.variants(study)}
    runs["cross, batch 16"] = [Made(np.full(40, 16.0))] * 2
    del runs["cross, batch 32"]
    gains = when.gains(study, runs).set_index(["kind", "size"])
    assert gains.loc[("training clips", 64), "delta"] == pytest.approx(100 * np.log(2), abs=1e-3)
    assert gains.loc[("batch", 16), "delta"] == pytest.approx(-100 * np.log(2), abs=1e-3)
    assert gains.loc[("batch", 64), "none"] == pytest.approx(np.log(8), abs=1e-3)
    assert ("batch", 32) not in gains.index and len(gains) == 3 + 3
    assert gains.loc[("batch", 16), "verdict"] == "lower" and gains["R@1 delta"].eq(0).all()
    batches, sizes = when.claimed(runs, gains.reset_index())
    assert batches["delta"] == pytest.approx(100 * np.log(2) * np.polyfit([4, 6, 7], [-1, 1, 1], 1)[0])
    assert sizes["delta"] == pytest.approx(0, abs=1e-9) and "clips in a batch" in batches["claim"]


def test_queries_that_gain_more_are_found(study):
    rng = np.random.default_rng(0)
    others = np.where(np.arange(40) % 2, 1, 0)
    base = rng.integers(5, 50, (2, 40)).astype(float)
    better = np.where(others, base / 2, base / 1.1)
    runs = {"none, all": [*map(Made, base)], "cross, all": [*map(Made, better)]}
    queries = when.by_query(study, runs, fits(others)).set_index("others")
    assert queries["queries"].to_dict() == {"0": 20, "1-2": 20}
    assert queries["delta"].to_list() == pytest.approx([100 * np.log(1.1), 100 * np.log(2)], abs=1e-3)
    trend = when.trend(runs, fits(others))
    assert trend.delta == pytest.approx(100 * np.log(2 / 1.1)) and trend.delta_low > 0
    gains = when.gains(study, runs)
    assert "gain more" in when.reading(gains, queries.reset_index(), trend)
    assert len(when.figure(gains, queries.reset_index(), "title").axes) == 3


def test_queries_that_gain_alike_do_not_differ(study):
    base = np.random.default_rng(1).integers(5, 50, (2, 40)).astype(float)
    runs = {"none, all": [*map(Made, base)], "cross, all": [*map(Made, base / 2)]}
    trend = when.trend(runs, fits(np.where(np.arange(40) % 3, 0, 2)))
    assert trend.delta == pytest.approx(0, abs=1e-9)
