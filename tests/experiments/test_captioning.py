"""Captions of a study's runs: rows against COCO's metrics asked directly, what is kept, and what is said of it."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssb import Study, figures, files, paper
from ssb.experiments import captioning as captioning_module
from ssb.experiments import captioning_figures
from ssb.metrics import captions as captions_module

java = pytest.mark.skipif(captions_module.java_fails() is not None, reason="needs Java")
SMALL = {"epochs": 1, "max_tokens": 8, "corpus_options": {"clips": 60, "captions": 2, "false_negatives": 0.05}}
FAST = ("BLEU-4", "CIDEr")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("speech")


@pytest.fixture
def study(home, monkeypatch):
    monkeypatch.setenv("SSB_HOME", str(home))
    return Study("captioning", "shapes", "smoke", seeds=[0, 1], jobs=1, changes=SMALL)


@pytest.fixture
def runs(study):
    return study.run({name: captioning_module.GRID[name] for name in ("identity", "cross")})


@pytest.fixture
def parrot(monkeypatch):
    """In place of a decoder of one epoch: the caption of a clip nearby, farther for `cross`. Returns what was asked."""
    asked = []

    def captions(model, data, split, source, beams):
        asked.append((data.config.objective, data.config.seed, source, beams))
        clips = data.corpus.split(split)
        texts = data.corpus.captions_of(clips).groupby("clip")["text"].last()[clips].to_numpy()
        away = np.arange(len(clips)) % (3 if data.config.objective == "cross" else 2) + (source == "support")
        return pd.DataFrame({"clip": clips, "text": texts[(np.arange(len(clips)) + away) % len(clips)]})

    monkeypatch.setattr(captioning_module, "captions", captions)
    return asked


@java
def test_rows_are_what_the_metrics_say_and_are_found_once(study, runs, parrot, monkeypatch):
    spoken = captioning_module.measure(study, runs, FAST)
    assert len(parrot) == len(set(parrot)) == 2 * 2 * 3
    assert {("cross", 1, "own", 4), ("cross", 1, "own", 1), ("cross", 1, "support", 4)} <= set(parrot)
    rows = pd.read_csv(study.results / "captioning.csv")
    assert len(rows) == 12 and set(rows["way"]) == set(captioning_module.WAYS)
    assert {"run", "preset", "config_sha", "corpus_sha", "commit", "seconds"} <= set(rows)
    references = study.corpus.captions_of(study.corpus.split("test"))
    for setting in runs:
        told = captioning_module.said(runs[setting][1], study.corpus, "support", ())[0]
        want, each = captions_module.scores(told, references, FAST), captions_module.cider(told, references)
        row = rows[(rows["setting"] == setting) & (rows["way"] == "support") & (rows["seed"] == 1)].iloc[0]
        assert row[list(FAST)].tolist() == pytest.approx(list(want.values()), abs=0.006)
        assert row["distinct"] == pytest.approx(100 * len(set(told["text"])) / len(told), abs=0.06)
        assert spoken.cider[setting, "support"][1].tolist() == pytest.approx(each.tolist())
    monkeypatch.setattr(captioning_module, "captions", None)  # neither said nor judged again
    monkeypatch.setattr(
        captions_module, "judged", lambda told, *a: (dict.fromkeys(FAST, 0), pd.Series(0.0, told["clip"]))
    )
    again = captioning_module.measure(study, runs, FAST)
    pd.testing.assert_frame_equal(again.rows, spoken.rows)
    assert all(np.array_equal(again.cider[key], spoken.cider[key]) for key in spoken.cider)


@java
def test_what_is_kept_is_of_these_weights_and_whole(study, runs, parrot):
    run = runs["cross"][0]
    before, scores = captioning_module.said(run, study.corpus, "own", FAST)
    parrot.clear()
    for path in (files.cache() / "captions").iterdir():
        path.write_text(path.read_text()[:-40])
    after, again = captioning_module.said(run, study.corpus, "own", FAST)
    pd.testing.assert_frame_equal(after, before)
    assert scores == again and len(parrot) == 1
    weights = run.folder / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + bytes(4))
        captioning_module.said(run, study.corpus, "own", FAST)
        assert len(parrot) == 2
    finally:
        weights.write_bytes(kept)


def test_without_java_all_is_blank_and_is_made_up_for_later(study, runs, parrot, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(os.environ, "PATH", str(tmp_path))
        captions_module.java_fails.cache_clear()
        for path in (files.cache() / "captions").glob("*"):
            path.unlink()
        spoken = captioning_module.measure(study, runs, FAST)
        summary, claims = captioning_module.summary(study, spoken), captioning_module.claims(study, spoken)
        assert spoken.rows[list(FAST)].isna().all(axis=None) and (spoken.rows["distinct"] > 0).all()
        assert summary["CIDEr"].isna().all() and claims.empty
        assert captioning_module.reading(spoken, claims) == "There is no CIDEr to answer with."
        examples = captioning_module.examples(study, runs)
        assert examples.empty
        (
            captioning_figures.captions(spoken.rows, summary, "title"),
            captioning_figures.samples(examples, study.corpus, "title"),
        )
    captions_module.java_fails.cache_clear()
    if captions_module.java_fails() is None:
        parrot.clear()
        assert np.isfinite(captioning_module.measure(study, runs, FAST).rows[list(FAST)]).all(axis=None) and not parrot


@java
def test_the_one_sentence_is_the_best_on_validation(monkeypatch):
    """Of the two most frequent, whatever their case and full stop; the third would be better still."""
    told = {"train": ["A cat sleeps.", "a cat sleeps", "a cat sleeps ", "a dog runs fast", "A dog runs fast"]}
    told["train"] += ["a dog runs over the snow"]
    told |= {"val": ["a dog runs over the snow", "a bird sings"], "test": ["a dog runs", "a man cooks", "the sun"]}
    clips = {name: np.arange(len(texts)) + 10 * i for i, (name, texts) in enumerate(told.items())}
    frames = {tuple(clips[name]): pd.DataFrame({"clip": clips[name], "text": told[name]}) for name in told}
    corpus = SimpleNamespace(split=clips.get, captions_of=lambda which: frames[tuple(which)])
    monkeypatch.setattr(captioning_module, "CANDIDATES", 2)
    found = captioning_module.constant(corpus, FAST)
    assert found["text"] == "a dog runs fast"
    same = pd.DataFrame({"clip": clips["test"], "text": found["text"]})
    each = captions_module.cider(same, frames[tuple(clips["test"])])
    assert found["each"].tolist() == pytest.approx(each.tolist()) and found["CIDEr"] == pytest.approx(each.mean())
    assert found["each"][0] > found["each"][1]


def by_hand(**settings):
    """Spoken from the mean CIDEr of each setting's own and support captions; the one sentence has 20."""
    rng, clip = np.random.default_rng(0), np.random.default_rng(1).normal(0, 5, 200)
    values = {
        (name, way): mean + clip + rng.normal(0, 1, (3, 200)) + rng.normal(0, 0.2, (3, 1))
        for name, means in settings.items()
        for way, mean in zip(captioning_module.WAYS, means)
    }
    rows = [
        {"setting": name, "way": way, "seed": seed, "CIDEr": each[seed].mean(), "distinct": 50.0}
        for (name, way), each in values.items()
        for seed in range(3)
    ]
    return captioning_module.Spoken(pd.DataFrame(rows), values, {"text": "a man", "CIDEr": 20.0, "each": 20 + clip})


@pytest.fixture
def judge(tmp_path, monkeypatch):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))
    return Study("captioning", "shapes", "smoke", changes={"corpus_options": SMALL["corpus_options"]})


@pytest.mark.parametrize(
    "own, identity, verdicts, answer",
    [
        (40, 60, ["held", "contradicted", "held"], "yes, it says more of a clip.*; worse than"),
        (10, 60, ["contradicted", "contradicted", "held"], "no, one sentence for all scores better; worse than"),
        (40, 40, ["held", "not resolved", "held"], "yes.*; no difference"),
    ],
)
def test_claims_and_the_answer(judge, own, identity, verdicts, answer):
    spoken = by_hand(identity=(identity, identity, 30), cross=(own, own, 45))
    claims = captioning_module.claims(judge, spoken)
    assert (
        claims["verdict"].tolist()[:3] == verdicts
        and claims["baseline"].tolist()[3] == "cross, own"
        and claims["claim"].str.contains("CIDEr").all()
    )
    said = captioning_module.reading(spoken, claims).splitlines()
    assert "better from its support set" in said[2]
    assert f"CIDEr {spoken.cider['cross', 'own'].mean():.1f} from the clip itself" in said[2]
    assert said[0].endswith(f"CIDEr {spoken.constant['each'].mean():.1f}.")
    assert re.search(answer, said[3])
    assert len(said) == 4  # of the other metrics nothing was measured


def test_other_metrics_are_judged_by_their_interval(judge):
    spoken = by_hand(identity=(60, 50, 30), cross=(40, 35, 45))
    own = (spoken.rows["setting"] == "cross") & (spoken.rows["way"] == "own")
    for name, values, constant in (
        ("BLEU-4", (10, 12, 11), 5),
        ("METEOR", (10, 12, 11), 20),
        ("ROUGE-L", (1, 30, 9), 10),
    ):
        spoken.rows[name] = np.resize(values, len(spoken.rows)).astype(float)
        spoken.rows.loc[own, name] = np.resize(values, own.sum())
        spoken.constant[name] = constant
    words = captioning_module.reading(spoken, captioning_module.claims(judge, spoken))
    assert "By BLEU-4 its captions of the clip itself are above" in words
    assert "By METEOR its captions of the clip itself are below" in words
    assert "By ROUGE-L its captions of the clip itself are not told apart from" in words


def test_summary_of_seeds_and_of_one_sentence(judge):
    spoken = by_hand(identity=(60, 50, 30), cross=(40, 35, 45))
    summary = captioning_module.summary(judge, spoken)
    row, values = (
        summary.loc[("cross", "support")],
        spoken.rows.query("setting == 'cross' and way == 'support'")["CIDEr"],
    )
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    want = [values.mean(), values.std(), low, high]
    assert row[["CIDEr", "CIDEr sd", "CIDEr low", "CIDEr high"]].tolist() == pytest.approx(want, abs=0.006)
    assert row["CIDEr low over clips"] < row["CIDEr"] < row["CIDEr high over clips"]
    assert summary.loc[(captioning_module.CONSTANT, ""), "CIDEr"] == 20
    shown = captioning_module.beside(summary, "msrvtt1k")
    assert shown.loc[("cross", "support"), "CIDEr"] == f"{values.mean():.1f} ± {values.std():.1f}"
    assert shown.loc[("Support-Set + howto100m (paper, Table 7)", "own"), "CIDEr"] == "48.6"
    figure = captioning_figures.captions(spoken.rows, summary, "shapes")
    assert [axis.get_xlabel() for axis in figure.axes] == ["CIDEr (× 100)"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["identity", "cross"]


def test_the_papers_tables_by_hand():
    seven = paper.published("msrvtt_full")
    assert seven[list(captions_module.METRICS)].to_numpy().tolist() == [[38.9, 28.2, 59.8, 48.6]]
    nine = paper.published("activitynet_val2")
    assert len(nine) == 6 and nine.loc["Masked Transformer (paper, Table 9)", "METEOR"] == 11.1
    assert nine.loc["Support-Set (paper, Table 9)", "CIDEr"] == 3.2 and (nine["source"] != "").all()
    assert paper.published("vatex")["CIDEr"].tolist() == [51.2] and paper.published("shapes").empty


@java
@pytest.mark.filterwarnings("error::UserWarning")
def test_samples_show_what_was_said(study, runs, parrot, tmp_path):
    examples = captioning_module.examples(study, runs, each=2)
    assert examples["kind"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    told = captioning_module.said(runs["identity"][0], study.corpus, "own", ())[0].set_index("clip")["text"]
    assert examples["identity"].tolist() == told[examples["clip"]].tolist()
    figure = captioning_figures.samples(examples, study.corpus, "title")
    texts = " ".join(" ".join(text.get_text().split()) for text in figure.texts)
    assert all(f"cross: {text}" in texts for text in examples["cross"]) and len(figure.axes) == 6
    places = [axis.get_position().bounds for axis in figure.axes]
    figures.save(figure, tmp_path, "samples", alt="captions")  # as PNG, then as PDF
    assert [axis.get_position().bounds for axis in figure.axes] == places
    blind = captioning_figures.samples(examples, SimpleNamespace(frames=None), "title")
    assert not blind.axes and len(blind.texts) == len(figure.texts)


def test_kept_files_are_plain_json(study, runs, parrot):
    captioning_module.said(runs["cross"][0], study.corpus, "own", ())
    for path in (files.cache() / "captions").glob("*.json"):
        assert {"texts", "scores"} <= set(json.loads(path.read_text()))
