"""When captioning gains: variants, gains in log rank by hand, and by query."""

import numpy as np
import pandas as pd
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
    batches, sizes = when.claimed(runs, gains.reset_index(), np.zeros(40))  # no query is true of other clips
    assert batches["delta"] == pytest.approx(100 * np.log(2) * np.polyfit([4, 6, 7], [-1, 1, 1], 1)[0])
    assert sizes["delta"] == pytest.approx(0, abs=1e-9) and "clips in a batch" in batches["claim"]


def test_queries_that_gain_more_are_found(study):
    rng = np.random.default_rng(0)
    others = np.where(np.arange(40) % 2, 1, 0)
    base = rng.integers(5, 50, (2, 40)).astype(float)
    better = np.where(others, base / 2, base / 1.1)
    runs = {"none, all": [*map(Made, base)], "cross, all": [*map(Made, better)]}
    queries = when.by_query(study, runs, others).set_index("others")
    assert queries["queries"].to_dict() == {"0": 20, "1-2": 20}
    assert queries["delta"].to_list() == pytest.approx([100 * np.log(1.1), 100 * np.log(2)], abs=1e-3)
    gains = when.gains(study, runs)
    claims = study.judged(when.claimed(runs, gains, others))
    (more,) = claims[claims["claim"] == when.MANY].itertuples()
    assert more.delta == pytest.approx(100 * np.log(2 / 1.1), abs=1e-3) and more.low > 0 and more.verdict == "held"
    assert "are true of other clips too gain more" in when.reading(gains, claims)
    assert len(when.figure(gains, queries.reset_index(), "title").axes) == 3


def test_queries_that_gain_alike_do_not_differ(study):
    base = np.random.default_rng(1).integers(5, 50, (2, 40)).astype(float)
    runs = {"none, all": [*map(Made, base)], "cross, all": [*map(Made, base / 2)]}
    gains, others = when.gains(study, runs), np.where(np.arange(40) % 3, 0, 2)
    claims = study.judged(when.claimed(runs, gains, others))
    assert claims.set_index("claim").loc[when.MANY, "delta"] == pytest.approx(0, abs=1e-9)
    assert "do not differ" in when.reading(gains, claims)


def test_a_curve_is_told_by_its_ends_and_what_is_resolved_between(study):
    kinds = dict.fromkeys(["delta", "low", "high", "delta_low", "delta_high", "R@1"], [1.0, 2.0, 3.0, 4.0])
    gains = pd.DataFrame({"kind": "batch", "size": [16, 32, 64, 128], **kinds})
    gains["verdict"] = ["inconclusive", "higher", "inconclusive", "inconclusive"]
    gains.loc[3, ["low", "high"]] = np.nan  # of one seed
    words = when.reading(gains, pd.DataFrame({"claim": []}))
    assert "[+4.0, +4.0] (inconclusive) at 128" in words
    assert "(inconclusive) at 16" in words and "(higher) at 32" in words and "at 128" in words and "at 64" not in words
