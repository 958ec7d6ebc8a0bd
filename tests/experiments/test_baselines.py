"""Looks and the search: no test clip is seen, each step keeps the best, and the record holds what was found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ssb import ConfigError, Study
from ssb.config import Config
from ssb.corpora import shapes
from ssb.corpora.load import CORPORA
from ssb.experiments import baselines
from ssb.experiments.baselines import Search, Step
from ssb.training import runs
from ssb.training.loop import fit
from ssb.training.runs import TrainingError

SMALL = {"corpus_options": {"clips": 60, "false_negatives": 0.05}}
ARGUMENTS = "looks", "shapes", "smoke", [0, 1], 1


def test_a_look_ranks_the_validation_clips_whatever_the_test_clips_are(tiny):
    corpus = shapes.corpus(**tiny.corpus_options)
    look = fit(tiny.replace(evaluate="val"), corpus, quiet=True)
    model, data = look.load(corpus)
    expected = data.ranks(model, "val")
    assert look.ranks.keys() == expected.keys()
    assert all(np.array_equal(look.ranks[name], expected[name]) for name in expected)
    log = look.log.set_index("epoch").loc[look.metrics["best_epoch"]]
    assert look.metrics["t2v R@1"] == pytest.approx(log["val R@1"])
    test, half = corpus.split("test"), len(corpus.split("test")) // 2
    others = replace(corpus, splits=corpus.splits | {"test": test[:half]})
    assert np.array_equal(fit(tiny.replace(evaluate="val"), others, quiet=True).ranks["t2v"], look.ranks["t2v"])


def test_a_search_refuses_a_study_that_ranks_test_clips():
    with pytest.raises(ConfigError, match="from objective = 'none' to 'cross'"):
        Search(*ARGUMENTS, changes=SMALL | {"objective": "cross"})


def test_a_table_is_of_the_test_clips(home):
    """Nothing but `looks` makes a study rank validation clips, so that no table mixes both."""
    with pytest.raises(ConfigError, match="changes: evaluate = 'val'; a table is of the test clips"):
        Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL | {"evaluate": "val"})
    study = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL)
    with pytest.raises(ConfigError, match="the setting 'a': evaluate = 'test'"):
        study.grid({"a": {"evaluate": "test"}})
    looks = Search(*ARGUMENTS, changes=SMALL).study
    assert (study.base.evaluate, looks.base.evaluate) == ("test", "val") and "evaluate = val" in looks.subtitle


class Made:
    """A run with these recalls."""

    def __init__(self, changes: dict, seed: int, value: float):
        self.metrics = {"t2v R@1": value + seed, "t2v R@5": 0.0, "t2v R@10": 0.0}
        self.config = Config.preset("smoke", **changes)
        self.provenance = {"seconds": 1.0}


@pytest.fixture
def search(monkeypatch):
    """A search in a landscape worked out by hand: the best is lr 2, then dim 64, and lr 4 with it."""
    search = Search(*ARGUMENTS, changes=SMALL)
    study = search.study
    values = {
        (1e-3, 32): 10,
        (2e-3, 32): 12,
        (5e-4, 32): 9,
        (2e-3, 64): 13,
        (2e-3, 16): 11,
        (4e-3, 64): 15,
        (1e-3, 64): 12,
        (2e-3, 128): 13.4,
    }

    def run(grid, may_collapse, further, complete):
        assert may_collapse and not complete
        trained.extend(grid)
        configs = {name: study.base.replace(**changes) for name, changes in grid.items()}
        found = {name: values.get((c.lr, c.dim)) for name, c in configs.items()}
        return dict(further) | {
            n: [Made(grid[n], seed, v) for seed in (0, 1)] for n, v in found.items() if v is not None
        }

    trained = []
    monkeypatch.setattr(study, "run", run)
    search.trained = trained
    return search


def test_each_step_keeps_the_best_and_goes_on_from_it(search):
    steps = [baselines.values("lr", 5e-4, 2e-3), baselines.values("dim", 64, 16), baselines.times("lr", 0.5, 2.0)]
    assert search.take(steps) == {"lr": 4e-3, "dim": 64}
    assert search.trained == [
        "the preset", "lr 0.0005", "lr 0.002", "lr 0.002, dim 64", "lr 0.002, dim 16", "dim 64", "lr 0.004, dim 64",
    ]  # fmt: skip
    assert search.steps["dim 64"] == "lr again" and search.steps["lr 0.002, dim 16"] == "dim"


def test_a_setting_that_collapses_is_not_chosen_nor_tried_again(search):
    collapses = Step("lr", lambda found: [{"lr": 1.0}])
    assert search.take([collapses, collapses]) == {} and search.trained == ["the preset", "lr 1.0"]


def test_a_step_of_which_every_setting_collapses_ends_the_search(search):
    search.take([])
    with pytest.raises(TrainingError, match="lr: a run of every setting collapsed"):
        search.found = {"lr": 3.0}
        search.take([Step("lr", lambda found: [{"lr": 1.0}])])


def test_equal_settings_keep_the_first(search):
    search.take([baselines.values("lr", 2e-3), Step("both", lambda found: [{"lr": 1e-3, "dim": 64}])])
    assert search.found == {"lr": 2e-3}  # 12 points, as lr 1e-3 with dim 64


def test_of_costly_settings_the_cheapest_within_a_standard_error_is_kept(search):
    """The two runs of a setting differ by 1: a deviation of √½ over seeds and a standard error of ½."""
    costly = baselines.values("dim", 64, 16, 128)
    assert search.take([baselines.values("lr", 2e-3), costly]) == {"lr": 2e-3, "dim": 128}
    search.found = {"lr": 2e-3}
    assert search.take([costly._replace(cost="dim")]) == {"lr": 2e-3, "dim": 64}
    assert baselines.standard_error([np.array([11.0, 13.0]), np.array([13.0, 15.0])]) == pytest.approx(1.0)
    assert baselines.standard_error([np.array([11.0])]) == 0


@pytest.mark.slow
def test_a_search_writes_its_looks_and_goes_on_where_it_was_stopped(home, capsys):
    def searched() -> tuple[Search, pd.DataFrame]:
        search = Search("looks", "shapes", "smoke", [0], 1, SMALL)
        search.take([baselines.values("epochs", 1, 3)])
        search.found |= {"objective": "cross"}
        search.take([baselines.values("captioning", 0.1)])
        return search, search.looks()

    first, looks = searched()
    assert looks["step"].tolist() == ["epochs"] * 3 + ["captioning"] * len(looks[3:])
    rows = pd.read_csv(home / "results/shapes-smoke/looks.csv")
    assert rows["setting"].nunique() == len(looks) and set(looks["objective"]) == {"none", "cross"}
    first.figure(looks)
    first.reading()
    assert "none: 3 looks" in capsys.readouterr().out
    assert searched()[1].equals(looks) and "to train" not in capsys.readouterr().out


def test_the_title_of_a_figure_names_the_search_and_its_own_changes(home):
    titles = [Search(name, "shapes", "smoke", [0], 1, SMALL).title for name in ("looks", "looks_tuned")]
    assert titles == ["Looks at the validation clips: shapes", "Further looks at captioning: shapes"]
    half = Search("looks_tuned", "shapes", "smoke", [0], 1, SMALL | {"epochs": 2})
    assert half.title == "Further looks at captioning: shapes, epochs = 2"


@pytest.mark.parametrize("name", ["shapes", "msrvtt1k", "flickr8k"])
def test_captioning_has_as_many_looks_as_the_baseline(name, search, monkeypatch, request):
    """With the further ones, from the preset `tuned`."""

    def run(grid, may_collapse, further, complete):
        return dict(further) | {setting: [Made(changes, 0, 10.0)] for setting, changes in grid.items()}

    monkeypatch.setattr(search.study, "run", run)
    search.study.preset, search.study.base = "tuned", runs.configure("tuned", name, objective="none")
    assert search.baseline() == {} == search.runs and search.captioning() == {"objective": "cross"}
    before = pd.read_csv(request.config.rootpath / "results" / name / "looks_summary.csv")["objective"].value_counts()
    assert before["cross"] + len(search.runs) - 1 == before["none"]  # the first of these was the best of those


def test_tuned_needs_settings_that_were_searched(monkeypatch):
    with pytest.raises(ConfigError, match="23_baselines"):
        runs.configure("tuned", "events")
    monkeypatch.setitem(CORPORA, "events", replace(CORPORA["events"], settings={"tuned": {"lr": 2e-3}}))
    assert runs.configure("tuned", "events").lr == 2e-3 and baselines.recorded("events") == {"lr": 2e-3}
    assert baselines.recorded("shapes", "laptop") == {}


@pytest.mark.parametrize("name", [name for name, record in CORPORA.items() if "tuned" in record.settings])
def test_the_record_holds_what_the_looks_found(name, request):
    """The settings of the preset are those that the committed search ended with."""
    path = request.config.rootpath / "results" / name.split("_")[0] / "looks_summary.csv"
    looks = pd.read_csv(path).dropna(subset="setting").set_index("setting")
    held = baselines.recorded(name)
    cross = looks[(looks["objective"] == "cross") & looks["found"]].index.item()
    assert {*baselines.named(held | {"objective": "cross"}).split(", ")} == {*cross.split(", ")}


def test_what_a_search_ended_at_the_edge_of():
    base = {"lr": 1e-3, "dropout": 0.3, "weight_decay": 0.0, "epochs": 40, "dim": 256}
    tried = ["the preset", "lr 0.0005", "lr 5e-05", "lr 0.002, epochs 20", "lr 0.002, epochs 80", "video_pooling mean"]
    tried += ["lr 0.002, epochs 80, dropout 0.0", "lr 0.002, epochs 80, standardise False", "weight_decay 0.1"]
    tried += ["dropout 0.5"]
    assert baselines.at_edge("lr 0.002, epochs 80, dropout 0.0", tried, base) == ["lr", "epochs"]  # not at 0
    assert baselines.at_edge("lr 0.0005, weight_decay 0.1", tried, base) == ["weight_decay"]
    assert baselines.at_edge("lr 5e-05, epochs 20", tried, base) == ["lr", "epochs"]
    assert baselines.at_edge("the preset", tried, base) == []
    assert baselines.at_edge("the preset", tried[:-1], base) == ["dropout"]  # 0.3, of 0 and 0.3
    layers = base | {"scratch_layers": 1}  # fewer are not possible
    assert baselines.at_edge("the preset", ["the preset", "scratch_layers 2"], layers) == []
    assert baselines.at_edge("scratch_layers 2", ["the preset", "scratch_layers 2"], layers) == ["scratch_layers"]
    always = [f"{each}, captioning 0.1" for each in tried[1:]]
    assert baselines.at_edge("lr 0.0005, captioning 0.1", always, base | {"captioning": 0.1}) == []
