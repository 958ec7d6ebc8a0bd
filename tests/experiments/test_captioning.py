"""Captions of a study's runs: rows against COCO's metrics computed directly, the cache, claims and their summary."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssb import Study, figures, files, paper
from ssb.experiments import captioning, captioning_figures
from ssb.metrics import captions

java = pytest.mark.skipif(captions.java_fails() is not None, reason="needs Java")
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
    return study.run({name: captioning.GRID[name] for name in ("identity", "cross")})


@pytest.fixture
def parrot(monkeypatch):
    """In place of a decoder of one epoch: the caption of a clip nearby, farther for `cross`. Returns its calls."""
    calls = []

    def caption(model, data, split, source, beams):
        calls.append((data.config.objective, data.config.seed, source, beams))
        clips = data.corpus.split(split)
        texts = data.corpus.captions_of(clips).groupby("clip")["text"].last()[clips].to_numpy()
        away = np.arange(len(clips)) % (3 if data.config.objective == "cross" else 2) + (source == "support")
        return pd.DataFrame({"clip": clips, "text": texts[(np.arange(len(clips)) + away) % len(clips)]})

    monkeypatch.setattr(captioning, "caption", caption)
    return calls


@java
def test_rows_agree_with_the_metrics_and_are_computed_once(study, runs, parrot, monkeypatch):
    shutil.rmtree(files.cache() / "captions", ignore_errors=True)  # of other tests
    results = captioning.measure(study, runs, FAST)
    assert len(parrot) == len(set(parrot)) == 2 * 2 * 3
    assert {("cross", 1, "own", 4), ("cross", 1, "own", 1), ("cross", 1, "support", 4)} <= set(parrot)
    rows = pd.read_csv(study.results / "captioning.csv")
    assert len(rows) == 12 and set(rows["mode"]) == set(captioning.MODES)
    assert {"run", "preset", "config_sha", "corpus_sha", "commit", "seconds"} <= set(rows)
    references = study.corpus.captions_of(study.corpus.split("test"))
    for setting in runs:
        hypotheses = captioning.caption_test_clips(runs[setting][1], study.corpus, "support", ())[0]
        want, each = captions.evaluate(hypotheses, references, FAST)
        row = rows[(rows["setting"] == setting) & (rows["mode"] == "support") & (rows["seed"] == 1)].iloc[0]
        assert row[list(FAST)].tolist() == pytest.approx(list(want.values()), abs=0.006)
        assert row["distinct"] == pytest.approx(100 * len(set(hypotheses["text"])) / len(hypotheses), abs=0.06)
        assert results.cider[setting, "support"][1].tolist() == pytest.approx(each.tolist())
    monkeypatch.setattr(captioning, "caption", None)  # neither captioned nor scored again
    monkeypatch.setattr(captions, "evaluate", lambda frame, *a: (dict.fromkeys(FAST, 0), pd.Series(0.0, frame["clip"])))
    again = captioning.measure(study, runs, FAST)
    pd.testing.assert_frame_equal(again.rows, results.rows)
    assert all(np.array_equal(again.cider[key], results.cider[key]) for key in results.cider)


@java
def test_the_cache_is_of_these_weights_and_damaged_files_are_not_read(study, runs, parrot):
    run = runs["cross"][0]
    before, scores = captioning.caption_test_clips(run, study.corpus, "own", FAST)
    parrot.clear()
    weights = run.folder / "model.safetensors"
    cached = (files.cache() / "captions").glob("*/[!.]*.json")
    original = {path: path.read_bytes() for path in [weights, *cached]}
    try:
        for path in original.keys() - {weights}:
            path.write_bytes(original[path][:-4])
        after, again = captioning.caption_test_clips(run, study.corpus, "own", FAST)
        pd.testing.assert_frame_equal(after, before)
        assert scores == again and len(parrot) == 1
        weights.write_bytes(original[weights][:-4] + bytes(4))
        captioning.caption_test_clips(run, study.corpus, "own", FAST)
        assert len(parrot) == 2
    finally:
        for path, content in original.items():
            path.write_bytes(content)


def test_without_java_scores_are_blank_and_computed_later(study, runs, parrot, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(os.environ, "PATH", str(tmp_path))
        captions.java_fails.cache_clear()
        shutil.rmtree(files.cache() / "captions", ignore_errors=True)
        results = captioning.measure(study, runs, FAST)
        summary, claims = captioning.summary(study, results), captioning.claims(study, results)
        assert results.rows[list(FAST)].isna().all(axis=None) and (results.rows["distinct"] > 0).all()
        assert summary["CIDEr"].isna().all() and claims.empty
        table = captioning.with_paper_rows(summary, "shapes")
        assert (table["CIDEr"] == "").all() and (table["CIDEr 95 % over clips"] == "").all()
        assert captioning.reading(results, claims) == "Without CIDEr the question cannot be answered."
        examples = captioning.examples(study, runs)
        assert examples.empty
        captioning_figures.captions(results.rows, summary, "title")
        captioning_figures.samples(examples, study.corpus, "title")
    captions.java_fails.cache_clear()
    if captions.java_fails() is None:
        parrot.clear()
        assert np.isfinite(captioning.measure(study, runs, FAST).rows[list(FAST)]).all(axis=None) and not parrot


@java
def test_the_one_sentence_is_the_best_on_validation(monkeypatch):
    """Of the two most frequent, whatever their case and full stop; the third would be better still."""
    texts = {"train": ["A cat sleeps.", "a cat sleeps", "a cat sleeps ", "a dog runs fast", "A dog runs fast"]}
    texts["train"] += ["a dog runs over the snow"]
    texts |= {"val": ["a dog runs over the snow", "a bird sings"], "test": ["a dog runs", "a man cooks", "the sun"]}
    clips = {name: np.arange(len(some)) + 10 * i for i, (name, some) in enumerate(texts.items())}
    frames = {tuple(clips[name]): pd.DataFrame({"clip": clips[name], "text": texts[name]}) for name in texts}
    corpus = SimpleNamespace(split=clips.get, captions_of=lambda which: frames[tuple(which)])
    monkeypatch.setattr(captioning, "CANDIDATES", 2)
    constant = captioning.constant(corpus, FAST)
    assert constant["text"] == "a dog runs fast"
    same = pd.DataFrame({"clip": clips["test"], "text": constant["text"]})
    _, each = captions.evaluate(same, frames[tuple(clips["test"])], ())
    assert constant["each"].tolist() == pytest.approx(each.tolist()) and constant["CIDEr"] == pytest.approx(each.mean())
    assert constant["each"][0] > constant["each"][1]


def by_hand(**settings):
    """Results with these mean CIDEr of each setting in each of WAYS; the one sentence for all clips has 20."""
    rng, clip = np.random.default_rng(0), np.random.default_rng(1).normal(0, 5, 200)
    values = {
        (name, mode): mean + clip + rng.normal(0, 1, (3, 200)) + rng.normal(0, 0.2, (3, 1))
        for name, means in settings.items()
        for mode, mean in zip(captioning.MODES, means)
    }
    rows = [
        {"setting": name, "mode": mode, "seed": seed, "CIDEr": each[seed].mean(), "distinct": 50.0}
        for (name, mode), each in values.items()
        for seed in range(3)
    ]
    return captioning.Results(pd.DataFrame(rows), values, {"text": "a man", "CIDEr": 20.0, "each": 20 + clip})


@pytest.fixture
def study_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))
    return Study("captioning", "shapes", "smoke", changes={"corpus_options": SMALL["corpus_options"]})


@pytest.mark.parametrize(
    "own, identity, verdicts, answer",
    [
        (40, 60, ["held", "contradicted", "held"], "are better than one sentence.*, and worse than those"),
        (10, 60, ["contradicted", "contradicted", "held"], "are worse than one sentence.*, and worse than those"),
        (
            40,
            40,
            ["held", "inconclusive", "held"],
            "are better than one.*, and neither better nor worse beyond the noise",
        ),
    ],
)
def test_claims_and_the_answer(study_by_hand, own, identity, verdicts, answer):
    results = by_hand(identity=(identity, identity, 30), cross=(own, own, 45))
    claims = captioning.claims(study_by_hand, results)
    assert (
        claims["verdict"].tolist()[:3] == verdicts
        and claims["baseline"].tolist()[3] == "cross, own"
        and claims["claim"].str.contains("CIDEr").all()
    )
    lines = captioning.reading(results, claims).splitlines()
    assert lines[2].endswith("over clips: lower.")  # than from its support set
    assert f"CIDEr {results.cider['cross', 'own'].mean():.1f} from the clip itself" in lines[2]
    assert lines[0].endswith(f"CIDEr {results.constant['each'].mean():.1f}.")
    assert re.search(answer, lines[3])
    assert len(lines) == 4  # no other metric was computed


def test_other_metrics_are_compared_by_their_interval(study_by_hand):
    results = by_hand(identity=(60, 50, 30), cross=(40, 35, 45))
    own = (results.rows["setting"] == "cross") & (results.rows["mode"] == "own")
    for name, values, constant in (
        ("BLEU-4", (10, 12, 11), 5),
        ("METEOR", (10, 12, 11), 20),
        ("ROUGE-L", (1, 30, 9), 10),
    ):
        results.rows[name] = np.resize(values, len(results.rows)).astype(float)
        results.rows.loc[own, name] = np.resize(values, own.sum())
        results.constant[name] = constant
    words = captioning.reading(results, captioning.claims(study_by_hand, results))
    for name, verdict in (("BLEU-4", "higher"), ("METEOR", "lower"), ("ROUGE-L", "inconclusive")):
        assert re.search(f"^{name} of its captions from the clip itself, difference to .*: {verdict}.$", words, re.M)


def test_summary_of_seeds_and_of_one_sentence(study_by_hand):
    results = by_hand(identity=(60, 50, 30), cross=(40, 35, 45))
    summary = captioning.summary(study_by_hand, results)
    row, values = (
        summary.loc[("cross", "support")],
        results.rows.query("setting == 'cross' and mode == 'support'")["CIDEr"],
    )
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    want = [values.mean(), values.std(), low, high]
    assert row[["CIDEr", "CIDEr sd", "CIDEr low", "CIDEr high"]].tolist() == pytest.approx(want, abs=0.006)
    assert row["CIDEr low over clips"] < row["CIDEr"] < row["CIDEr high over clips"]
    assert summary.loc[(captioning.CONSTANT, ""), "CIDEr"] == 20
    table = captioning.with_paper_rows(summary, "msrvtt1k")
    assert table.loc[("cross", "support"), "CIDEr"] == f"{values.mean():.1f} ± {values.std():.1f}"
    assert table.loc[("Support-Set + howto100m (paper, Table 7)", "own"), "CIDEr"] == "48.6"
    assert table.loc[(captioning.CONSTANT, "")].tolist() == ["20.0", "", "0 %"]
    figure = captioning_figures.captions(results.rows, summary, "shapes")
    assert [axis.get_xlabel() for axis in figure.axes] == ["CIDEr (× 100)"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["identity", "cross"]


def test_the_papers_tables_by_hand():
    seven = paper.published("msrvtt_full")
    assert seven[list(captions.METRICS)].to_numpy().tolist() == [[38.9, 28.2, 59.8, 48.6]]
    nine = paper.published("activitynet_val2")
    assert len(nine) == 6 and nine.loc["Masked Transformer (paper, Table 9)", "METEOR"] == 11.1
    assert nine.loc["Support-Set (paper, Table 9)", "CIDEr"] == 3.2 and (nine["source"] != "").all()
    assert paper.published("vatex")["CIDEr"].tolist() == [51.2] and paper.published("shapes").empty


@java
@pytest.mark.filterwarnings("error::UserWarning")
def test_samples_hold_the_captions(study, runs, parrot, tmp_path):
    examples = captioning.examples(study, runs, each=2)
    assert examples["kind"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    identity = captioning.caption_test_clips(runs["identity"][0], study.corpus, "own", ())[0].set_index("clip")["text"]
    assert examples["identity"].tolist() == identity[examples["clip"]].tolist()
    figure = captioning_figures.samples(examples, study.corpus, "title")
    texts = " ".join(" ".join(text.get_text().split()) for text in figure.texts)
    assert all(f"cross: {text}" in texts for text in examples["cross"]) and len(figure.axes) == 6
    positions = [axis.get_position().bounds for axis in figure.axes]
    figures.save(figure, tmp_path, "samples", alt="captions")  # as PNG, then as PDF
    assert [axis.get_position().bounds for axis in figure.axes] == positions
    without_frames = captioning_figures.samples(examples, SimpleNamespace(frames=None), "title")
    assert not without_frames.axes and len(without_frames.texts) == len(figure.texts)


def test_cached_files_are_plain_json(study, runs, parrot):
    captioning.caption_test_clips(runs["cross"][0], study.corpus, "own", FAST)
    kept = {path.name: json.loads(path.read_text()) for path in (files.cache() / "captions").glob("*/*.json")}
    assert {"texts.json", "sums.json"} <= kept.keys() and len(kept["texts.json"]) == len(study.corpus.split("test"))
    assert captions.java_fails() or kept["scores.json"].keys() == {"scores", "CIDEr"}
