"""A pooling head, a contrastive loss and a corpus are added from outside, without editing the library, and trained."""

import importlib
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ssb
from ssb import Config, ConfigError, losses, model
from ssb.corpora import labels, load, shapes
from ssb.corpora.record import Recipe, Record
from ssb.experiments import actions
from ssb.training.collapse import STUCK_STEPS, Watch
from ssb.training.runs import check, check_unseen


class LastStep(nn.Module):
    """A head: a linear layer of the last real step."""

    def __init__(self, pre_encoder, width, config):
        super().__init__()
        self.linear = nn.Linear(width, config.dim)

    def forward(self, e, mask):
        last = mask.sum(dim=1) - 1
        return self.linear(e[torch.arange(len(e)), last])


class Distance(losses.Contrast):
    """A contrastive loss: of each pair's distance, less that of the next pair's clip."""

    def __call__(self, text, video, batch, progress=1.0, other=None):
        return ((text - video) ** 2).mean() - 0.1 * ((text - video.roll(1, 0)) ** 2).tanh().mean()


def tiny_shapes(clips: int = 60):
    return replace(shapes.corpus(clips=clips, false_negatives=0.05), name="tiny", classes=lambda: clips * ["motion"])


class Huge(LastStep):
    """A head that says how many weights it has."""

    @staticmethod
    def weights(config):
        return 10**6 * config.dim


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(model.HEADS, "last", LastStep)
    monkeypatch.setitem(losses.CONTRASTS, "distance", Distance)
    record = Record("tiny", "sixty clips", tiny_shapes, settings={"smoke": {"epochs": 1, "batch": 16}})
    monkeypatch.setitem(load.CORPORA, "tiny", record)


@pytest.mark.parametrize("objective", ["none", "cross"])
def test_all_three_are_trained_together(registered, objective):
    config = ssb.configure("smoke", "tiny", contrast="distance", video_pooling="last", objective=objective)
    assert (config.epochs, config.batch) == (1, 16)  # of the record
    assert ssb.configure("smoke", "tiny", epochs=2).epochs == 2  # what is asked for goes first
    run = ssb.fit(config, quiet=True)
    network, data = run.load()
    assert isinstance(network.video_head, LastStep) and data.corpus.fingerprint == tiny_shapes().fingerprint
    values, mask = torch.randn(2, 3, data.video_width), torch.tensor([[True, True, False], [True, True, True]])
    ends = network.normalise(values, mask)[[0, 1], [1, 2]]
    assert torch.allclose(network.embed_video(values, mask), network.video_head.linear(ends))
    assert np.isfinite(run.log["contrast"]).all()


def test_a_study_trains_them_and_takes_the_settings_of_the_corpus(registered):
    study = ssb.Study("mine", "tiny", "smoke", seeds=[0], jobs=1)
    runs = study.run({"last": {"video_pooling": "last", "objective": "none"}, "mean": {"objective": "none"}})
    assert study.base.epochs == 1 and len({members[0].name for members in runs.values()}) == 2


def test_a_loss_with_a_floor_is_watched(registered, monkeypatch):
    """Collapse is looked for by what a loss says of itself, not by its name, and explained in its own words."""
    monkeypatch.setattr(Distance, "floor", 0.35, raising=False)
    watch = Watch(Distance(Config()))
    assert not any(watch.after_step(0.35, 0.0) for _ in range(STUCK_STEPS - 1))
    words = "the contrastive loss has been its floor = 0.35 and all similarities equal"
    assert watch.after_step(0.35, 0.0).endswith(words)
    assert "negatives" not in watch.contrast.advice() and "lower lr" in watch.contrast.advice()
    monkeypatch.setattr(Distance, "advice", lambda loss: "Take pairs that differ.")
    monkeypatch.setattr("ssb.training.collapse.STUCK_STEPS", 1)
    monkeypatch.setattr("ssb.training.collapse.NEAR", 1e9)
    monkeypatch.setattr("ssb.training.collapse.EQUAL", 1e9)
    with pytest.raises(ssb.Collapsed, match="its floor = 0.35 and .*. Take pairs that differ. No number of this run"):
        ssb.fit(ssb.configure("smoke", "tiny", contrast="distance", objective="none"), quiet=True)
    assert Watch(losses.InfoNCE(Config())).after_step(0.35, 0.0) is None


def test_losses_without_pairs_are_named_where_pairs_are_missing(registered, monkeypatch):
    """By what they say of themselves."""
    monkeypatch.setattr(Distance, "paired", False)
    few = {"corpus_options": {"videos": 36, "takes": 4, "false_negatives": 0.05, "irrelevant": 0.5}}
    config = ssb.configure("smoke", "events", sequences=True, objective="none", batch=4, **few)
    with pytest.raises(ConfigError, match="10 captions and 8 clips; take contrast = 's2dtw' or 'distance'"):
        ssb.fit(config, quiet=True)


def test_a_head_that_is_too_large_is_refused(registered, monkeypatch):
    monkeypatch.setitem(model.HEADS, "huge", Huge)
    assert ssb.configure("smoke", "tiny", text_pooling="huge", dim=32).dim == 32
    with pytest.raises(ConfigError, match="at most 5e[+]08 fit; lower one of dim, "):
        ssb.configure("smoke", "tiny", text_pooling="huge", dim=1024)


def test_a_corpus_says_what_its_classes_are_and_whether_it_is_drawn(registered, capsys):
    corpus = ssb.load_corpus("tiny")
    assert labels.labels(corpus).tolist() == 60 * ["motion"]
    check_unseen(corpus, corpus)  # drawn: clips of one number differ
    with pytest.raises(ssb.CorpusError, match="test clips of tiny are cut from what tiny was trained"):
        check_unseen(corpus, replace(corpus, drawn=False, splits={"test": corpus.splits["train"]}))
    with pytest.raises(ssb.CorpusError, match="its clips have no class"):
        labels.labels(replace(corpus, classes=None))


def test_a_dataset_of_actions_is_registered_with_its_recipe(monkeypatch):
    record = Record("waving", "two actions", dataset="waving", labels=labels.action_table, recipe=Recipe(epochs=7))
    assert list(actions.datasets()) == ["ucf101", "hmdb51"]
    monkeypatch.setitem(load.CORPORA, "waving", record)
    assert list(actions.datasets()) == ["ucf101", "hmdb51", "waving"]
    epochs = {name: each.recipe.epochs for name, each in actions.datasets().items()}
    assert epochs == {"ucf101": 500, "hmdb51": 1500, "waving": 7}  # the first two: section 6.6 of the paper


OWN = """
from ssb.corpora import shapes
from ssb.model import MeanHead
class Double(MeanHead):
    def forward(self, e, mask):
        return 2 * super().forward(e, mask)
def sixty():
    return shapes.corpus(clips=60, false_negatives=0.05)
"""


@pytest.mark.slow
def test_workers_know_what_was_registered(tmp_path, monkeypatch):
    (tmp_path / "extras.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    extras = importlib.import_module("extras")
    monkeypatch.setitem(model.HEADS, "double", extras.Double)
    monkeypatch.setitem(load.CORPORA, "sixty", Record("sixty", "sixty clips", extras.sixty))
    study = ssb.Study("mine", "sixty", "smoke", seeds=[0, 1], jobs=2, changes={"epochs": 1})
    runs = study.run({"double": {"video_pooling": "double", "objective": "none"}})
    assert [run.config.video_pooling for run in runs["double"]] == ["double", "double"]


def test_a_head_whose_source_cannot_be_read_is_refused(registered, monkeypatch):
    """As one that is defined in a notebook or typed at a prompt."""
    monkeypatch.setitem(sys.modules, "typed", types.ModuleType("typed"))  # without __file__
    monkeypatch.setattr(LastStep, "__module__", "typed")
    with pytest.raises(ConfigError, match="LastStep has no source file; define it in a module, a .py file"):
        ssb.fit(ssb.configure("smoke", "tiny", video_pooling="last", objective="none"), quiet=True)


@pytest.mark.parametrize("setting", ["video_pooling", "text_pooling"])
def test_an_unknown_head_is_refused_before_training(setting, home):
    with pytest.raises(ConfigError, match=f"{setting} = 'avg': wanted one of 'mean', 'max', 'conv', 'transformer'"):
        ssb.configure("smoke", **{setting: "avg"})
    with pytest.raises(ConfigError, match=f"{setting} = 'avg'"):
        ssb.fit(Config.preset("smoke", **{setting: "avg"}))
    with pytest.raises(ConfigError, match=f"{setting} = 'avg'"):
        ssb.Study("t", preset="smoke", seeds=[0]).run({"wrong": {setting: "avg"}})
    assert not (home / "results" / "runs").exists()


def test_an_unknown_loss_and_one_that_does_not_fit_are_refused_before_training():
    with pytest.raises(ConfigError, match="contrast = 'tripelt': wanted 'triplet', 'info_nce', 's2dtw' or"):
        check(Config(contrast="tripelt"))
    with pytest.raises(ConfigError, match="set sequences = True"):
        check(Config(contrast="s2dtw"))


def test_a_loss_that_fails_is_refused_before_training(home, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def loss(text, video):\n    return text.no_such_thing()\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = r"contrast = 'broken:loss' fails on .*AttributeError: .*no_such_thing.*broken.py, line 2\)"
    few = {"corpus_options": {"clips": 60, "false_negatives": 0.05}}
    for begin in (check, lambda config: ssb.fit(config, quiet=True)):
        with pytest.raises(ConfigError, match=words):
            begin(Config.preset("smoke", contrast="broken:loss", **few))
    with pytest.raises(ConfigError, match=words):
        ssb.Study("t", preset="smoke", seeds=[0], changes=few).run({"wrong": {"contrast": "broken:loss"}})
    assert not (home / "results" / "runs").exists()


def test_a_name_that_is_no_corpus_lists_those_there_are(registered):
    hint = r"no corpus 'shpes' \(did you mean 'shapes'\?\)"
    with pytest.raises(ssb.CorpusError, match=f"{hint}: neither 'shapes', 'events', .*'tiny' nor a folder"):
        ssb.load_corpus("shpes")
