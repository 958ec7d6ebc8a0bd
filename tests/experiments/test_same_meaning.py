"""Runs on test clips of the same meaning, against the measures of their embeddings and against draws."""

import itertools

import numpy as np
import pytest

import ssb
from ssb.experiments import same_meaning
from ssb.metrics import meaning
from ssb.training.runs import Run


@pytest.fixture(scope="module")
def trained(shared_home):
    corpus = ssb.load_corpus("shapes", clips=60, false_negatives=0.1)
    options = {"clips": 60, "false_negatives": 0.1}
    configs = [
        ssb.Config.preset("smoke", corpus="shapes", corpus_options=options, objective="none", epochs=6, batch=8, seed=s)
        for s in (0, 1)
    ]
    return corpus, [ssb.fit(config, corpus, quiet=True) for config in configs]


def test_a_run_is_measured_on_its_test_clips(trained):
    corpus, (run, _) = trained
    own = np.eye(15, dtype=bool)[run.ranks["clip"]]
    plain = same_meaning.measure(run, corpus, own)[0]
    for name in ("R@1", "R@5", "R@10", "MdR"):
        assert plain[f"semantic {name}"] == pytest.approx(run.metrics[f"t2v {name}"])
    assert plain["false negatives"] == 0 and np.isnan([plain[k] for k in ("same meaning", "gap", "AUC")]).all()
    fits = meaning.same(corpus)
    row = same_meaning.measure(run, corpus, fits)[0]
    assert row["semantic R@1"] > plain["semantic R@1"] and row["own"] == plain["own"]
    text, video, clip_of = run.load(corpus)[1].embed(run.load(corpus)[0], "test")
    kinds = meaning.pairs(text, video, clip_of, fits)
    assert row["own"] > row["other"] and row["same meaning"] == pytest.approx(kinds["same meaning"].mean())
    gap = (kinds["same meaning"].mean() - kinds["other"].mean()) / np.std(kinds["other"])
    assert row["gap"] == pytest.approx(gap)
    assert row["AUC"] == meaning.auc(text, video, clip_of, fits)


def test_false_negatives_are_what_batches_hold(trained):
    """Drawn at random from the test clips: of how many other clips of its batch is a caption true?"""
    corpus, (run, _) = trained
    fits, clip_of = meaning.same(corpus), run.ranks["clip"]
    rng, counts = np.random.default_rng(0), []
    for _ in range(4000):
        clips = rng.permutation(15)[: run.config.batch]
        caption = rng.choice(np.flatnonzero(clip_of == clips[0]))
        counts.append(fits[caption, clips[1:]].sum())
    wanted = same_meaning.measure(run, corpus, fits)[0]["false negatives"]
    assert wanted == pytest.approx(np.mean(counts), abs=4 * np.std(counts) / 4000**0.5) and wanted > 0.3


def test_a_table_loads_each_run_once(trained, monkeypatch):
    corpus, members = trained
    loaded, load = [], Run.load
    monkeypatch.setattr(Run, "load", lambda run, *args: (loaded.append(run.name), load(run, *args))[1])
    fits = meaning.same(corpus)
    table = same_meaning.table({"none": members, "again": members[::-1]}, corpus, fits)
    assert sorted(loaded) == sorted(run.name for run in members)
    assert table.rows["setting"].tolist() == ["none", "none", "again", "again"]
    assert table.rows["seed"].tolist() == [0, 1, 1, 0]
    for _, row in table.rows.iterrows():
        run = members[row["seed"]]
        assert row["run"] == run.name and row["R@1"] == run.metrics["t2v R@1"]
        metrics = same_meaning.measure(run, corpus, fits)[0]
        assert {name: row[name] for name in metrics} == metrics
    assert table.ranks["none"].shape == (2, 75) and (table.ranks["again"] == table.ranks["none"][::-1]).all()
    each = [100 * (table.ranks["none"][s] <= 1).mean() for s in (0, 1)]
    assert each == pytest.approx(table.rows["semantic R@1"][:2].tolist())
    assert list(table.histogram) == ["setting", "kind", "similarity", "density"]
    groups = table.histogram.groupby(["setting", "kind"])
    assert set(groups.groups) == set(itertools.product(("none", "again"), meaning.KINDS))
    for (_, kind), part in groups:
        assert len(part) == 60 and part["density"].sum() * 2 / 60 == pytest.approx(1)
        mean = (part["similarity"] * part["density"]).sum() * 2 / 60  # of the centres of bins of width 1/30
        assert mean == pytest.approx(table.rows[kind][:2].mean(), abs=1 / 60)
    figure = same_meaning.densities(table.histogram, "title")
    assert all(axis.get_ylim()[1] > table.histogram["density"].max() for axis in figure.axes), "no curve is cut off"
