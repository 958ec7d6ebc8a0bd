"""The linear probe against its closed form, and where its answer is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from ssb import Study, load_corpus
from ssb.corpora.corpus import Corpus, Stream
from ssb.experiments import probe
from ssb.metrics import retrieval

WORDS = "red blue green circle square star left right up down fast slow".split()


def corpus_of(values: np.ndarray, texts: list[str]) -> Corpus:
    """Clips of one step and one caption; two thirds train, the rest half val, half test."""
    n = len(texts)
    splits = dict(zip(("train", "val", "test"), np.split(np.arange(n), [2 * n // 3, 5 * n // 6])))
    captions = pd.DataFrame({"clip": range(n), "text": texts})
    streams = {"look": Stream(values[:, None].astype(np.float32))}
    return Corpus("hand", [f"c{i}" for i in range(n)], captions, splits, streams)


def by_hand(corpus: Corpus, components: int, penalty: float) -> np.ndarray:
    """Test ranks by a full singular value decomposition and the normal equations of ridge regression."""
    values, mask = corpus.features()
    means = (values * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    train, test = corpus.split("train"), corpus.split("test")
    deviation = means[train].std(0)
    means = (means - means[train].mean(0)) / np.where(deviation > 0, deviation, 1)
    captions, queries = corpus.captions_of(train), corpus.captions_of(test)
    tfidf = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")
    words = tfidf.fit_transform(captions["text"]).toarray()
    axes = np.linalg.svd(words)[2][:components].T
    topics, asked = words @ axes, tfidf.transform(queries["text"]).toarray() @ axes
    topics, asked = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (topics, asked))
    topics, asked = topics - topics.mean(0), asked - topics.mean(0)
    wanted = np.stack([topics[captions["clip"] == clip].mean(0) for clip in train])
    x, intercept = means[train], wanted.mean(0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (wanted - intercept))
    answers = means[test] @ weights + intercept
    cosine = asked @ answers.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(answers, axis=1)
    own = [list(test).index(clip) for clip in queries["clip"]]
    return np.array([1 + (row > row[k]).sum() for row, k in zip(cosine, own)])


def test_ranks_are_those_of_the_closed_form(monkeypatch):
    """With almost all components, since a randomised decomposition of few is only approximate."""
    monkeypatch.setattr(probe, "COMPONENTS", (10**6,))
    monkeypatch.setattr(probe, "PENALTIES", (10.0,))
    corpus = load_corpus("shapes", clips=120, false_negatives=0.05)
    ranks, chosen = probe.retrieval_probe(corpus)
    assert len(ranks) == len(corpus.captions_of(corpus.split("test")))
    assert np.mean(np.abs(ranks - by_hand(corpus, **chosen)) <= 1) > 0.95


def test_features_that_count_the_words_are_solved_and_noise_is_chance():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.permutation(len(WORDS)) < 4 for _ in range(360)]).astype(float)
    texts = [" ".join(word for word, there in zip(WORDS, row) if there) for row in counts]
    ranks, _ = probe.retrieval_probe(corpus_of(counts, texts))
    assert retrieval.metrics(ranks)["R@5"] > 80  # among 60 clips, some of which have the same words
    ranks, _ = probe.retrieval_probe(corpus_of(rng.normal(size=counts.shape), texts))
    assert retrieval.metrics(ranks)["MnR"] == pytest.approx(30.5, abs=3 * (60**2 / 12 / 60) ** 0.5)


def test_the_setting_is_the_best_on_validation_clips(monkeypatch):
    corpus = load_corpus("shapes", clips=120, false_negatives=0.05)
    monkeypatch.setattr(probe, "COMPONENTS", (2, 16))
    _, chosen = probe.retrieval_probe(corpus)
    splits = corpus.splits | {"test": corpus.split("val"), "val": corpus.split("test")}
    as_test = dataclasses.replace(corpus, splits=splits)
    scores = {}
    for size in (2, 16):
        for penalty in probe.PENALTIES:
            monkeypatch.setattr(probe, "COMPONENTS", (size,))
            monkeypatch.setattr(probe, "PENALTIES", (penalty,))
            recalls = retrieval.metrics(probe.retrieval_probe(as_test)[0])
            scores[size, penalty] = recalls["R@1"] + recalls["R@5"] + recalls["R@10"]
            monkeypatch.setattr(probe, "PENALTIES", (10.0, 100.0, 1000.0))
    assert scores[chosen["components"], chosen["penalty"]] == max(scores.values())


class Made:
    """A run with these recalls."""

    def __init__(self, seed: int, t2v: float, v2t: float):
        self.metrics = {f"t2v R@{k}": t2v + seed for k in (1, 5, 10)}
        self.metrics |= {f"v2t best-caption R@{k}": v2t + seed for k in (1, 5, 10)}


def test_the_bars_are_the_ridge_and_the_published_numbers(home, monkeypatch):
    """Flickr8k by the README of VSE: 14.9 / 38.3 / 51.6 from text, 22.3 / 48.7 / 59.8 from the image."""
    study = Study("heads", preset="smoke", seeds=[0], jobs=1, changes={"corpus_options": {"clips": 60}})
    monkeypatch.setattr(study, "base", study.base.model_copy(update={"corpus": "flickr8k"}))
    runs = {"convolutions": [Made(seed, 14.0, 30.0) for seed in (0, 1)], "tuned": [Made(0, 60.0, 61.0)], "other": []}
    bars = probe.bars(study, runs, {probe.STATES: np.array([1.0, 1.0, 3.0, 20.0])})
    assert bars["wanted"].tolist() == [50.0, 75.0, 75.0, 22.3, 48.7, 59.8, 14.9, 38.3, 51.6]
    assert bars.columns.tolist() == ["wanted", "convolutions", "tuned"]
    assert bars.loc[("VSE, public code", "t2v R@1"), "convolutions"] == 14.5
    bold = probe.bars_table(bars).to_html().count("font-weight: bold")
    assert bold == 1 and pd.read_csv(home / "results/shapes-smoke/heads_bars.csv")["tuned"].tolist()[:3] == [60.0] * 3


def test_the_notebook_has_a_bar_where_the_text_encoder_is_frozen(capsys):
    corpus = load_corpus("shapes", clips=120, false_negatives=0.05)
    study = Study("heads", preset="smoke", seeds=[0], jobs=1, changes={"corpus_options": {"clips": 60}})
    study.corpus = corpus
    assert list(probe.probes(study)) == [probe.PROBE] and "penalty" in capsys.readouterr().out
