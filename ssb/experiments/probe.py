"""Linear probes: the retrieval that needs no neural network, and so the least that a trained run must reach."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ssb import losses, paper
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.experiments.baselines import NAMED, named_presets
from ssb.metrics import retrieval
from ssb.metrics.actions import mean_over_time
from ssb.report import Experiment, Table, styled
from ssb.study import Study
from ssb.tables.verdicts import Runs
from ssb.training.data import Data

PAPER_HEAD = {  # the paper's video head, with a feed-forward layer of twice the width, and the preset's loss
    "video_pooling": "transformer",
    "pool_ffn": 512,
    "contrast": "triplet",
    "negatives": "scheduled",
    "text_pooling": "mean",
    "objective": "none",
}
HEADS = {  # heads to compare with the probe, without captioning
    "convolutions": {"video_pooling": "conv", "text_pooling": "mean", "objective": "none"},
    "paper's head on video": PAPER_HEAD,
    "paper's head on video, InfoNCE": PAPER_HEAD | {"contrast": "info_nce"},
}
PROBE = "linear probe"
EXPERIMENT = Experiment(
    "Pooling heads and the linear probe",
    grid=lambda study: HEADS | {name: {**new, "objective": "none"} for name, new in named_presets(study).items()},
    baseline=PROBE,
    alt="Forest plot of text to video R@1 of two probes without a network and of pooling heads, with intervals.",
)
TABLES = {"heads": EXPERIMENT}
COMPONENTS = (100, 300, 500)
PENALTIES = (10.0, 100.0, 1000.0)
STATES = "ridge to text states"
VSE = "public code"  # row of VSE in paper.csv, on the test images of Flickr8k
STATE_PENALTIES = tuple(float(10**k) for k in range(6))


def retrieval_probe(corpus: Corpus) -> tuple[np.ndarray, dict]:
    """Text → video by ridge regression from a clip's mean features to the latent semantic analysis of its captions.

    Fitted on the training clips; the number of components and the penalty are those with the largest R@1 + R@5 + R@10
    on the validation clips. Returns the test ranks (Q,), every caption a query, and the chosen setting.
    """
    means, train = clip_means(corpus), corpus.split("train")
    captions = corpus.captions_of(train)
    tfidf = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")
    words = tfidf.fit_transform(captions["text"])  # (captions, words)
    clip = pd.Index(train).get_indexer(captions["clip"])
    best = None
    sizes = [size for size in COMPONENTS if size < min(words.shape)] or [min(words.shape) - 1]
    for size, penalty in itertools.product(sizes, PENALTIES):
        # centred, since the words that all captions share would dominate every cosine
        reduced = TruncatedSVD(size, random_state=0), Normalizer(), StandardScaler(with_std=False)
        topics = make_pipeline(*reduced).fit(words)
        sums = np.zeros((len(train), size))
        np.add.at(sums, clip, topics.transform(words))
        ridge = Ridge(alpha=penalty).fit(means[train], sums / np.bincount(clip)[:, None])
        score = sum(list(retrieval.metrics(_ranks(corpus, "val", tfidf, topics, ridge, means)).values())[:3])
        if best is None or score > best[0]:
            best = score, {"components": size, "penalty": penalty}, topics, ridge
    _, chosen, topics, ridge = best
    return _ranks(corpus, "test", tfidf, topics, ridge, means), chosen


def state_probe(config: Config, corpus: Corpus) -> tuple[np.ndarray, dict]:
    """Text → video by ridge regression from a clip's mean features to the mean states of its captions, those of the
    frozen text encoder of `config`, centred. Arguments but for the states, and what is returned, as of
    `retrieval_probe`. ConfigError for a text encoder that is trained."""
    if not config.freeze_text:
        raise ConfigError("the ridge to text states needs a frozen text encoder: set freeze_text = True")
    means = clip_means(corpus, config.streams)
    data = Data(config.replace(objective="none", text_pooling="mean"), corpus)
    states = np.concatenate([data.text.padded(rows)[0][:, 0] for rows in np.array_split(range(len(data.clip_of)), 64)])
    train = corpus.split("train")
    learnt = np.isin(data.clip_of, train)
    states = states - states[learnt].mean(axis=0)
    sums = np.zeros((len(corpus.clips), states.shape[1]))
    np.add.at(sums, data.clip_of, states)
    wanted = sums / data.count[:, None]

    def ranks(split: str, ridge: Ridge) -> np.ndarray:
        clips = corpus.split(split)
        captions = corpus.captions_of(clips)
        own = pd.Index(clips).get_indexer(captions["clip"])
        return retrieval.search(states[captions["caption"]], ridge.predict(means[clips]), own)

    ridges = {penalty: Ridge(alpha=penalty).fit(means[train], wanted[train]) for penalty in STATE_PENALTIES}
    scores = {p: sum(list(retrieval.metrics(ranks("val", ridge)).values())[:3]) for p, ridge in ridges.items()}
    penalty = max(scores, key=scores.get)
    return ranks("test", ridges[penalty]), {"penalty": penalty}


def probes(study: Study) -> dict[str, np.ndarray]:
    """Probe → its test ranks (Q,). The settings that each has chosen on the validation clips are printed. Without a
    frozen text encoder there is no ridge to its states."""
    found = {PROBE: retrieval_probe(study.corpus)}
    if study.base.freeze_text:
        found[STATES] = state_probe(study.base, study.corpus)
    for name, (ranks, chosen) in found.items():
        print(f"{name}: {chosen}, R@1 {retrieval.metrics(ranks)['R@1']:.1f}")
    return {name: ranks for name, (ranks, _) in found.items()}


def bars(study: Study, runs: Runs, ranks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What a trained baseline must reach: the recalls of the ridge to the text states, and those published for VSE on
    this corpus, beside the means over seeds of each named baseline. ranks: of the probes. Written to
    results/<corpus>/<table>_bars.csv where there are any."""
    numbers = {}
    if STATES in ranks:
        numbers = {(STATES, f"t2v {name}"): value for name, value in retrieval.metrics(ranks[STATES]).items()}
    for row in paper.rows(table="VSE", dataset=study.base.corpus, row=VSE).itertuples():
        numbers[f"VSE, {VSE}", f"{row.direction} {row.metric}"] = row.value
    numbers = {key: value for key, value in numbers.items() if "R@" in key[1]}
    index = pd.MultiIndex.from_tuples(numbers, names=["bar", "metric"])
    frame = pd.DataFrame({"wanted": [*numbers.values()]}, index)
    for name in ("convolutions", *NAMED):
        if name in runs:
            frame[name] = [np.mean([run.metrics[metric] for run in runs[name]]) for _, metric in index]
    frame = frame.round(2)
    if len(frame):
        study.write(frame.reset_index(), f"{study.table}_bars.csv")
    return frame


def bars_table(frame: pd.DataFrame) -> Table:
    """`bars` as a notebook shows them, in bold what does not reach its bar."""
    text = frame.map("{:.1f}".format)
    bold = frame.lt(frame["wanted"], axis=0)
    return styled(text, bold, "Recalls that a baseline must reach (wanted); in bold those that do not")


def clip_means(corpus: Corpus, streams: tuple[str, ...] = ()) -> np.ndarray:
    """(N, D) the mean features of each clip, standardised on the training clips."""
    means = mean_over_time(*corpus.features(streams))
    mean, deviation = (f(means[corpus.split("train")], axis=0) for f in (np.mean, np.std))
    return losses.standardised(means, mean, losses.scale_of(mean, deviation))


def _ranks(corpus: Corpus, split: str, tfidf, topics, ridge, means: np.ndarray) -> np.ndarray:
    clips = corpus.split(split)
    captions = corpus.captions_of(clips)
    queries = topics.transform(tfidf.transform(captions["text"]))
    return retrieval.search(queries, ridge.predict(means[clips]), pd.Index(clips).get_indexer(captions["clip"]))
