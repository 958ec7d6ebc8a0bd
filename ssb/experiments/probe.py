"""Linear probes: what can be had without a neural network, and so what a trained run must reach."""

import itertools

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ssb.corpora.corpus import Corpus
from ssb.metrics import retrieval

_PROBED = {  # the paper's head, its feed-forward twice the width, with the preset's loss
    "video_pooling": "transformer",
    "pool_ffn": 512,
    "contrast": "triplet",
    "negatives": "scheduled",
    "text_pooling": "mean",
    "objective": "none",
}
HEADS = {  # is a run trained at all? without captioning
    "convolutions": {"video_pooling": "conv", "text_pooling": "mean", "objective": "none"},
    "paper's head on video": _PROBED,
    "paper's head on video, InfoNCE": _PROBED | {"contrast": "info_nce"},
    "paper's head on video, InfoNCE, 100 epochs": _PROBED
    | {"contrast": "info_nce", "epochs": 100, "validate_every": 10},
    "paper's heads on both, InfoNCE": _PROBED | {"contrast": "info_nce", "text_pooling": "transformer"},
}

COMPONENTS = (100, 300, 500)
PENALTIES = (10.0, 100.0, 1000.0)


def retrieval_probe(corpus: Corpus, max_steps: int = 32) -> tuple[np.ndarray, dict]:
    """Text → video by ridge regression from a clip's mean features to the latent semantic analysis of its captions.

    Fitted on the training clips; the number of components and the penalty are those with the best R@1 + R@5 + R@10 on
    the validation clips. Returns the test ranks (Q,), every caption a query, and the chosen setting.
    """
    values, mask = corpus.features(max_steps=max_steps)
    means = (values * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)  # (N, D)
    train = corpus.split("train")
    means = StandardScaler().fit(means[train]).transform(means)
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")
    known = words.fit_transform(corpus.captions_of(train)["text"])
    best = None
    sizes = [size for size in COMPONENTS if size < min(known.shape)] or [min(known.shape) - 1]
    for size, penalty in itertools.product(sizes, PENALTIES):
        # centred, or the words that all captions share would decide every cosine
        reduced = TruncatedSVD(size, random_state=0), Normalizer(), StandardScaler(with_std=False)
        topics = make_pipeline(*reduced).fit(known)
        ridge = Ridge(alpha=penalty).fit(means[train], _per_clip(corpus, train, topics.transform(known)))
        score = sum(list(retrieval.metrics(_ranks(corpus, "val", words, topics, ridge, means)).values())[:3])
        if best is None or score > best[0]:
            best = score, {"components": size, "penalty": penalty}, topics, ridge
    _, chosen, topics, ridge = best
    return _ranks(corpus, "test", words, topics, ridge, means), chosen


def _per_clip(corpus: Corpus, clips: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(captions, k) → (clips, k), the mean over the captions of a clip."""
    place = {clip: i for i, clip in enumerate(clips)}
    rows = corpus.captions_of(clips)["clip"].map(place).to_numpy()
    sums = np.zeros((len(clips), vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return sums / np.bincount(rows)[:, None]


def _ranks(corpus: Corpus, split: str, words, topics, ridge, means: np.ndarray) -> np.ndarray:
    clips = corpus.split(split)
    captions = corpus.captions_of(clips)
    place = {clip: i for i, clip in enumerate(clips)}
    queries = topics.transform(words.transform(captions["text"]))
    return retrieval.search(queries, ridge.predict(means[clips]), captions["clip"].map(place).to_numpy(copy=True))
