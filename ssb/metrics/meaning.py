"""Does training push apart captions and clips of the same meaning? The paper says that a contrastive loss does so to a
caption and other clips of which it is also true, the false negatives of its batch, and that `cross` prevents it. Here
the ranks and the similarities of such pairs are measured."""

import numpy as np
import pandas as pd
import torch
from scipy import stats
from transformers import AutoModel

from ssb.corpora.corpus import Corpus
from ssb.machine import threads
from ssb.metrics import retrieval
from ssb.text import Ragged, frozen_states, pretrained, token_ids, tokenizer

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256  # the encoder's own limit; longer captions are cut
KINDS = ("own", "same meaning", "other")


def same(corpus: Corpus, split: str = "test") -> np.ndarray:
    """(Q, C) bool: is the caption true of the clip? Captions in the order of `corpus.captions_of(corpus.split(split))`,
    clips in that of the split; a caption is always true of its own clip.

    Where the corpus has `meaning` (`shapes`), this is `Corpus.truth`. Elsewhere it is estimated from the captions: by
    `near`, or, if every clip has one caption, clips have the same meaning if their captions are the same words.
    """
    clips = corpus.split(split)
    captions = corpus.captions_of(clips)
    if corpus.meaning is not None:
        return corpus.truth(captions["caption"], clips)
    clip_of = pd.Index(clips).get_indexer(captions["clip"])
    words, distinct = pd.factorize(captions["text"].str.lower().str.split().str.join(" "))
    if len(captions) == len(clips):
        return words[:, None] == words  # captions are ordered by clip
    return near(sentences(distinct.tolist())[words], clip_of)


def sentences(captions: list[str]) -> np.ndarray:
    """(n, 384) float64: the mean of ENCODER's states over the tokens of each caption."""
    encoder = pretrained(AutoModel, ENCODER)
    ids = Ragged.of(token_ids(tokenizer(ENCODER, [], 0), captions, MAX_TOKENS))
    with threads(1):
        states = frozen_states(encoder, ids)
    return np.add.reduceat(states.values.astype(np.float64), ids.offsets[:-1]) / ids.lengths[:, None]


def near(vectors, clip_of, chunk: int = 512) -> np.ndarray:
    """(Q, C) bool: is a caption as near to a clip's captions as captions of one clip are to each other?

    vectors: (Q, d) of the captions; clip_of: (Q,) the clip of each, 0 to C − 1.
    A caption is near to a clip if its largest cosine to the captions of that clip is at least a threshold: the median,
    over captions of clips with several, of a caption's largest cosine to the others of its own clip. There is no
    parameter to tune. A caption is always near to its own clip.
    This compares wording, not truth: on `shapes`, where the truth is known, few of these pairs are true, because the
    encoder puts a red star nearer to a blue star than to its own paraphrase.
    ValueError where no clip has two captions.
    """
    vectors, clip = retrieval.unit(vectors, "vectors"), torch.tensor(np.asarray(clip_of))
    best = vectors.new_full((len(vectors), int(clip.max()) + 1), -torch.inf)
    for rows in torch.arange(len(vectors)).split(chunk):
        cosine = vectors[rows] @ vectors.T  # (chunk, Q)
        cosine[torch.arange(len(rows)), rows] = -torch.inf  # exclude the caption itself
        best[rows] = best[rows].scatter_reduce(1, clip.expand(len(rows), -1), cosine, "amax")
    best = best.round(decimals=6)  # the cosine of equal captions is 1 up to rounding; they must tie
    own = best.gather(1, clip[:, None])
    several = own.isfinite()
    if not several.any():
        raise ValueError("no clip has two captions, so there is no threshold for how near captions of one clip are")
    return (best >= np.median(own[several])).scatter(1, clip[:, None], True).numpy()


def semantic_ranks(text, video, fits) -> np.ndarray:
    """(Q,) float64: rank of the best-ranked clip of which the caption is true; any such clip counts as right.

    text: (Q, d); video: (C, d); fits: (Q, C) bool, of `same`. ValueError for shapes that do not match.
    Ties as in `retrieval.expected_rank`; equal to `retrieval.search` where each caption is true of its own clip alone.
    """
    cosine, fits, _ = _cosines(text, video, fits)
    best = np.where(fits, cosine, -np.inf).max(axis=1, keepdims=True)
    tied = cosine == best
    counts = (torch.from_numpy(x.sum(axis=1)) for x in (cosine > best, tied, tied & fits))
    return retrieval.expected_rank(*counts).numpy()


def pairs(text, video, clip_of, fits) -> dict[str, np.ndarray]:
    """Cosines of all pairs of a caption and a clip by kind: "own", its own clip; "same meaning", another clip of which
    it is true; "other", the rest. Each 1-D, captions in order. clip_of: (Q,) column of each caption's own clip; the
    other arguments as in `semantic_ranks`."""
    cosine, fits, own = _cosines(text, video, fits, clip_of)
    return dict(zip(KINDS, (cosine[own], cosine[fits & ~own], cosine[~fits])))


def auc(text, video, clip_of, fits) -> float:
    """Area under the ROC curve: probability that a caption is more similar to another clip of the same meaning than to
    one of a different meaning, ties counting half. Computed for each caption, then averaged over the captions that have
    clips of both kinds, without their own clips. 0.5 is chance; NaN where no caption has both kinds. Arguments as in
    `pairs`."""
    cosine, fits, own = _cosines(text, video, fits, clip_of)
    fitting, others = fits.sum(axis=1) - 1, (~fits).sum(axis=1)
    ranks = stats.rankdata(np.where(own, -np.inf, cosine), axis=1) - 1  # without the own clip, which ranks below all
    above = (ranks * (fits & ~own)).sum(axis=1) - fitting * (fitting + 1) / 2  # pairs in order: Mann-Whitney U
    both = (fitting > 0) & (others > 0)
    return float((above[both] / (fitting * others)[both]).mean()) if both.any() else np.nan


def _cosines(text, video, fits, clip_of=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact cosines (Q, C), fits, and a mask (Q, C) of own clips (fits, where clip_of is None); ValueError where shapes
    differ and for a caption that is true of no clip, or not of its own."""
    text, video, fits = retrieval.unit(text, "text").cpu(), retrieval.unit(video, "video").cpu(), np.asarray(fits)
    if text.shape[1] != video.shape[1]:
        raise ValueError(f"text has {text.shape[1]} channels, video has {video.shape[1]}; they must be equal")
    if fits.dtype != bool or fits.shape != (len(text), len(video)):
        wanted = f"wanted bool of shape ({len(text)}, {len(video)}), a row for each caption and a column for each clip"
        raise ValueError(f"fits is {fits.dtype} of shape {fits.shape}; {wanted}")
    own = fits if clip_of is None else np.arange(fits.shape[1]) == np.asarray(clip_of)[:, None]
    right = (fits & own).any(axis=1)
    if not right.all():
        raise ValueError(
            f"caption {np.argmin(right)} does not fit its own clip ({(~right).sum()} of {len(fits)} do not); are fits "
            "and embeddings of the same split?"
        )
    return (text @ video.T).numpy(), fits, own
