"""What carries the gain: lent decoders, and what is said of settings without a gradient."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from ssb import ConfigError, Study, configure
from ssb.experiments import carries


def test_the_claims_are_of_settings_of_the_grid():
    study = Study("carries", changes={"corpus_options": {"clips": 60}})
    named = {name for claim in carries.CARRIES.claims for name in (claim.setting, claim.baseline)}
    assert named <= {*carries.grid(study)}


def made(validation, ranks, weight=0.1):
    """A run with these recalls on the validation clips at the epoch kept, and these ranks on the test clips."""
    log = pd.DataFrame({"epoch": [1, 2], **{f"val R@{k}": [90.0, validation] for k in (1, 5, 10)}})
    config = SimpleNamespace(captioning=weight, seed=0)
    return SimpleNamespace(ranks={"t2v": np.array(ranks)}, log=log, metrics={"best_epoch": 2}, config=config)


def test_cross_is_compared_with_each_rival_at_the_strength_that_validation_prefers():
    study = Study("carries", changes={"corpus_options": {"clips": 60}, "dropout": 0.3})
    grid, strengths = carries.grid(study), carries.rivals(study.base)
    assert [*strengths["more dropout"].values()] == [{"dropout": 0.4}, {"dropout": 0.5}]
    for name, changes in {k: v for each in strengths.values() for k, v in each.items()}.items():
        assert (
            grid[name] == {"objective": "none"} | changes and grid[f"cross, {name}"] == {"objective": "cross"} | changes
        )
        assert {getattr(study.base, key) for key in changes} != {*changes.values()}
    runs = {"dropout 0.4": [made(50, [1])], "dropout 0.5": [made(60, [9])], "soft targets 0.25": [made(1, [1])]}
    claims = carries.with_rivals(study, runs).claims
    assert claims[: len(carries.CARRIES.claims)] == carries.CARRIES.claims
    found = {claim.text: (claim.setting, claim.baseline) for claim in claims[len(carries.CARRIES.claims) :]}
    assert found == {
        "cross gains more than more dropout": ("cross", "dropout 0.5"),
        "cross adds to more dropout": ("cross, dropout 0.5", "dropout 0.5"),
        "cross gains more than soft targets": ("cross", "soft targets 0.25"),
        "cross adds to soft targets": ("cross, soft targets 0.25", "soft targets 0.25"),
    }


@pytest.mark.slow
def test_a_decoder_of_another_corpus_is_that_of_the_run_with_the_same_seed(home):
    changes = {"corpus_options": {"clips": 60}, "epochs": 1}
    study = Study("carries", preset="smoke", seeds=[0, 1], jobs=1, changes=changes)
    decoders = carries.decoders(study, "shapes")
    grid = {name: carries.settings(study, "shapes")[name] for name in ("cross", carries.BORROWED)}
    runs = study.run(grid, decoders=decoders)
    lent = [run.config.pretrained_decoder for run in runs[carries.BORROWED]]
    assert lent == [run.name for run in decoders[carries.BORROWED]] == [run.name for run in runs["cross"]]
    losses = {name: [run.log["captioning"].iloc[0] for run in members] for name, members in runs.items()}
    assert all(np.less(losses[carries.BORROWED], losses["cross"]))  # it has been trained before
    with pytest.raises(ConfigError, match="1 runs to begin with for 2 seeds"):
        study.run(grid, decoders={carries.BORROWED: decoders[carries.BORROWED][:1]})
    with pytest.raises(ConfigError, match="'x'"):
        study.run(grid, decoders={"x": decoders[carries.BORROWED]})
    assert carries.decoders(study, "") == {} and carries.BORROWED not in carries.settings(study, "")


def test_what_is_detached_leaves_every_rank():
    class Made:
        def __init__(self, ranks):
            self.ranks = {"t2v": np.array(ranks)}

    runs = {"none": [Made([1, 2])], carries.DETACHED: [Made([1, 2])]}
    assert "leaves every rank" in carries.detached(runs)
    assert "CHANGES every rank" in carries.detached(runs | {"none": [Made([2, 1])]})
    assert "collapsed" in carries.detached({"none": []})


def test_the_ceiling_is_at_the_weight_that_validation_prefers():
    largest = [*carries.STRONGER][-1]
    runs = {"none": [made(50, [1, 9, 9, 9])], carries.ORACLE: [made(60, [1, 1, 9, 9])]}
    runs[largest] = [made(59, [1, 1, 1, 1], 3.0)]  # the best on the test clips, which nobody may look at
    found = "at the λ of 2 that is best on the validation clips, 0.1"
    assert carries.ceiling(runs) == f"Captioning by the oracle, {found}: R@1 +25.0 on the test clips."
    assert carries.ceiling({"none": runs["none"]}) == ""


def test_a_lent_decoder_is_as_wide_as_that_of_the_tuned_preset(monkeypatch):
    asked = []
    monkeypatch.setattr(carries, "Study", lambda *arguments: asked.append(arguments) or mock.MagicMock())
    base = configure("tuned", "flickr8k")
    study = SimpleNamespace(preset="tuned", base=base, seeds=[0], jobs=1, changes={"epochs": 3})
    carries.decoders(study, "msrvtt1k")
    (_, corpus, preset, *_, changes) = asked[0]
    lent = configure(preset, corpus, **changes)
    assert lent.epochs == 3 and lent.streams == configure("laptop", "msrvtt1k").streams
    names = ("dim", "video_pooling", "scratch_width", "scratch_layers", "vocabulary")
    assert [getattr(lent, name) for name in names] == [getattr(base, name) for name in names]
