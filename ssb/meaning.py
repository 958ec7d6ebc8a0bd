"""Does a trained run part what means the same? The paper says that a contrastive loss pushes apart a caption and other
clips of which it is true as well, the false negatives of its batch, and that `cross` cures it. Here the ranks and the
similarities of such pairs are measured."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from transformers import AutoModel

from ssb import retrieval, shapes, text
from ssb.batches import threads
from ssb.corpus import Corpus, load_corpus
from ssb.train import Run

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MOST_TOKENS = 256  # as its authors use it; longer captions are cut
KINDS = ("own", "same meaning", "other")
BINS = 60


def same(corpus: Corpus, split: str = "test") -> np.ndarray:
    """(Q, C) bool: does the clip mean what the caption says? Captions as `corpus.captions_of(corpus.split(split))`
    orders them, clips as the split does; a caption's own clip always does.

    `shapes` knows: `shapes.truth`. Elsewhere the other captions of a clip are the judges (see `near`), or, where no
    clip has a second caption, clips mean the same whose captions are the same words.
    """
    clips = corpus.split(split)
    captions = corpus.captions_of(clips)
    if corpus.meaning is not None:
        return shapes.truth(corpus, captions["caption"], clips)
    clip_of = captions["clip"].map({clip: i for i, clip in enumerate(clips)}).to_numpy(copy=True)
    words, known = pd.factorize(captions["text"].str.lower().str.split().str.join(" "))
    if len(captions) == len(clips):
        return words[:, None] == words  # captions are ordered by clip
    return near(sentences(known.tolist())[words], clip_of)


def sentences(captions: list[str]) -> np.ndarray:
    """(n, 384) float64: the mean of a sentence encoder's states over the tokens of each caption."""
    encoder = text.pretrained(AutoModel, ENCODER)
    ids = text.Ragged.of(text.token_ids(text.tokenizer(ENCODER, [], 0), captions, MOST_TOKENS))
    with threads(1):
        states = text.frozen_states(encoder, ids)
    return np.add.reduceat(states.values.astype(np.float64), ids.offsets[:-1]) / ids.lengths[:, None]


def near(vectors, clip_of, chunk: int = 512) -> np.ndarray:
    """(Q, C) bool: is a caption as near to a clip's captions as captions of one clip are to each other?

    vectors: (Q, d) of the captions; clip_of: (Q,) the clip of each, 0 to C − 1.
    It is where its best cosine to the captions of that clip is at least the median, over the captions that have
    company, of a caption's best cosine to the others of its own clip. Nothing is tuned. Own clips are always near.
    It is a judgement of wording: on `shapes`, where the truth is known, few of the pairs that it finds are true, for
    to the encoder a red star is nearer to a blue one than to its own paraphrase.
    ValueError where no caption has company.
    """
    vectors, clip = retrieval.unit(vectors, "vectors"), torch.tensor(np.asarray(clip_of))
    best = vectors.new_full((len(vectors), int(clip.max()) + 1), -torch.inf)
    for rows in torch.arange(len(vectors)).split(chunk):
        cosine = vectors[rows] @ vectors.T  # (chunk, Q)
        cosine[torch.arange(len(rows)), rows] = -torch.inf  # itself is no company
        best[rows] = best[rows].scatter_reduce(1, clip.expand(len(rows), -1), cosine, "amax")
    best = best.round(decimals=6)  # the cosine of equal captions is 1 up to rounding; they are to tie
    own = best.gather(1, clip[:, None])
    company = own.isfinite()
    if not company.any():
        raise ValueError("no clip has two captions, so how near captions of one clip are is not known")
    return (best >= np.median(own[company])).scatter(1, clip[:, None], True).numpy()


def semantic_ranks(text, video, fits) -> np.ndarray:
    """(Q,) float64: rank of the best-ranked clip that means what the caption says; any such clip counts as found.

    text: (Q, d); video: (C, d); fits: (Q, C) bool, as `same` gives it.
    1 + (clips strictly better) + (n others tied with it) / (r fitting ones tied + 1), the mean over orders of the tied
    as in `retrieval.video_to_text`. Equal to `retrieval.search` where one clip fits each caption.
    """
    cosine, fits = _cosines(text, video, fits)
    best = np.where(fits, cosine, -np.inf).max(axis=1, keepdims=True)
    tied = cosine == best
    return 1 + (cosine > best).sum(axis=1) + (tied & ~fits).sum(axis=1) / ((tied & fits).sum(axis=1) + 1)


def pairs(text, video, clip_of, fits) -> dict[str, np.ndarray]:
    """Cosines of all pairs of a caption and a clip by kind: "own", its own clip; "same meaning", another clip of which
    it is true; "other". Each 1-D, captions in their order. clip_of: (Q,); the rest as in `semantic_ranks`."""
    cosine, fits = _cosines(text, video, fits, clip_of)
    own = np.arange(fits.shape[1]) == np.asarray(clip_of)[:, None]
    return dict(zip(KINDS, (cosine[own], cosine[fits & ~own], cosine[~fits])))


def auc(text, video, clip_of, fits) -> float:
    """Probability that a caption is more similar to a clip of the same meaning than to one of another, ties counting
    half. Within each caption, as retrieval compares, then the mean over the captions that have clips of both kinds; the
    own clip is left out. 0.5 is chance; NaN where no caption has both."""
    cosine, fits = _cosines(text, video, fits, clip_of)
    own = np.arange(fits.shape[1]) == np.asarray(clip_of)[:, None]
    found, missed = fits.sum(axis=1) - 1, (~fits).sum(axis=1)
    ranks = stats.rankdata(np.where(own, -np.inf, cosine), axis=1) - 1  # without the own clip, which ranks below all
    above = (ranks * (fits & ~own)).sum(axis=1) - found * (found + 1) / 2  # pairs in order: Mann and Whitney's U
    both = (found > 0) & (missed > 0)
    return float((above[both] / (found * missed)[both]).mean()) if both.any() else np.nan


class Table(NamedTuple):
    """What `table` gives. rows: one for each run. ranks: setting → semantic ranks (seeds, Q), to be bootstrapped over
    clips. histogram: density of the cosines of each kind of pairs, columns setting, kind, similarity (the middle of a
    bin) and density, the mean over seeds; a kind without pairs is left out."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]
    histogram: pd.DataFrame


def measure(run: Run, fits: np.ndarray | None = None, corpus: Corpus | None = None) -> dict[str, float]:
    """How a finished run treats clips of the same meaning, on the test clips:

    semantic R@1 ... MdR       of `semantic_ranks`
    own, same meaning, other   mean cosine of each kind of pairs
    gap                        "same meaning" less "other", in deviations of "other"
    AUC                        see `auc`
    false negatives            other clips that a caption is true of in a batch of the run's size, expected number for
                               one caption, from their share among the test clips

    fits: `same(corpus)`, made where it is not given. NaN for what needs pairs that there are none of.
    """
    corpus = corpus or load_corpus(run.config.corpus, **run.config.corpus_options)
    return _measured(run, same(corpus) if fits is None else fits, corpus)[0]


def table(runs: Mapping[str, list[Run]], corpus: Corpus, fits: np.ndarray | None = None) -> Table:
    """`measure` of every run, setting → its runs, with the ranks and histograms behind it. Each run is read once."""
    fits = same(corpus) if fits is None else fits
    rows, ranks, parts, seen = [], {}, [], {}
    for setting, members in runs.items():
        for run in members:
            seen[run.folder] = seen.get(run.folder) or _measured(run, fits, corpus)
        found = [seen[run.folder] for run in members]
        ranks[setting] = np.stack([each[1] for each in found])
        for run, (row, _, _) in zip(members, found):
            plain = {"R@1": run.metrics["t2v R@1"]}
            rows.append({"setting": setting, "seed": run.config.seed, **plain, **row, "run": run.name})
        for kind in found[0][2]:
            density = np.mean([each[2][kind] for each in found], axis=0)
            middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
            columns = {"setting": setting, "kind": kind, "similarity": middles, "density": density}
            parts.append(pd.DataFrame(columns))
    return Table(pd.DataFrame(rows), ranks, pd.concat(parts, ignore_index=True))


def _measured(run: Run, fits: np.ndarray, corpus: Corpus) -> tuple[dict[str, float], np.ndarray, dict]:
    """The row, the semantic ranks (Q,) and the densities of a run."""
    model, data = run.load(corpus)
    data.check_plain()
    text, video, clip_of = data.embed(model, "test")
    ranks, kinds = semantic_ranks(text, video, fits), pairs(text, video, clip_of, fits)
    row = {f"semantic {name}": x for name, x in retrieval.metrics(ranks).items() if name != "MnR"}
    row |= {kind: float(values.mean()) if len(values) else np.nan for kind, values in kinds.items()}
    spread = kinds["other"].std() if len(kinds["other"]) else 0
    row["gap"] = (row["same meaning"] - row["other"]) / spread if spread > 0 else np.nan
    row["AUC"] = auc(text, video, clip_of, fits)
    share = len(kinds["same meaning"]) / (fits.size - len(fits)) if fits.shape[1] > 1 else 0.0
    row["false negatives"] = share * (min(run.config.batch, len(data.train)) - 1)
    densities = {  # a cosine may be above 1 by a rounding
        kind: np.histogram(values.clip(-1, 1), BINS, (-1, 1), density=True)[0]
        for kind, values in kinds.items()
        if len(values)
    }
    return row, ranks, densities


def _cosines(text, video, fits, clip_of=None) -> tuple[np.ndarray, np.ndarray]:
    """Exact cosines (Q, C) and fits; ValueError where shapes differ or a caption does not fit its own clip or any."""
    text, video, fits = retrieval.unit(text, "text").cpu(), retrieval.unit(video, "video").cpu(), np.asarray(fits)
    if text.shape[1] != video.shape[1]:
        raise ValueError(f"text has {text.shape[1]} channels, video has {video.shape[1]}; they must be equal")
    if fits.dtype != bool or fits.shape != (len(text), len(video)):
        wanted = f"wanted bool of shape ({len(text)}, {len(video)}), a row for each caption and a column for each clip"
        raise ValueError(f"fits is {fits.dtype} of shape {fits.shape}; {wanted}")
    right = fits.any(axis=1) if clip_of is None else fits[np.arange(len(fits)), clip_of]
    if not right.all():
        raise ValueError(
            f"caption {np.argmin(right)} does not fit its own clip ({(~right).sum()} of {len(fits)} do not); are fits "
            "and embeddings of the same split?"
        )
    return (text @ video.T).numpy(), fits
