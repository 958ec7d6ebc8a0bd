"""Does a trained run part what means the same? The paper says that a contrastive loss pushes apart a caption and other
clips of which it is true as well, the false negatives of its batch, and that `cross` cures it. Here the ranks and the
similarities of such pairs are measured."""

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
MOST_TOKENS = 256  # as its authors use it; longer captions are cut
KINDS = ("own", "same meaning", "other")


def same(corpus: Corpus, split: str = "test") -> np.ndarray:
    """(Q, C) bool: does the clip mean what the caption says? Captions as `corpus.captions_of(corpus.split(split))`
    orders them, clips as the split does; a caption's own clip always does.

    `shapes` knows: `Corpus.truth`. Elsewhere the other captions of a clip are the judges (see `near`), or, where no
    clip has a second caption, clips mean the same whose captions are the same words.
    """
    clips = corpus.split(split)
    captions = corpus.captions_of(clips)
    if corpus.meaning is not None:
        return corpus.truth(captions["caption"], clips)
    clip_of = captions["clip"].map({clip: i for i, clip in enumerate(clips)}).to_numpy(copy=True)
    words, distinct = pd.factorize(captions["text"].str.lower().str.split().str.join(" "))
    if len(captions) == len(clips):
        return words[:, None] == words  # captions are ordered by clip
    return near(sentences(distinct.tolist())[words], clip_of)


def sentences(captions: list[str]) -> np.ndarray:
    """(n, 384) float64: the mean of a sentence encoder's states over the tokens of each caption."""
    encoder = pretrained(AutoModel, ENCODER)
    ids = Ragged.of(token_ids(tokenizer(ENCODER, [], 0), captions, MOST_TOKENS))
    with threads(1):
        states = frozen_states(encoder, ids)
    return np.add.reduceat(states.values.astype(np.float64), ids.offsets[:-1]) / ids.lengths[:, None]


def near(vectors, clip_of, chunk: int = 512) -> np.ndarray:
    """(Q, C) bool: is a caption as near to a clip's captions as captions of one clip are to each other?

    vectors: (Q, d) of the captions; clip_of: (Q,) the clip of each, 0 to C − 1.
    It is where its best cosine to the captions of that clip is at least the median, over the captions of clips with
    several, of a caption's best cosine to the others of its own clip. Nothing is tuned. Own clips are always near.
    It is a judgement of wording: on `shapes`, where the truth is known, few of the pairs that it finds are true, for
    to the encoder a red star is nearer to a blue one than to its own paraphrase.
    ValueError where no clip has two captions.
    """
    vectors, clip = retrieval.unit(vectors, "vectors"), torch.tensor(np.asarray(clip_of))
    best = vectors.new_full((len(vectors), int(clip.max()) + 1), -torch.inf)
    for rows in torch.arange(len(vectors)).split(chunk):
        cosine = vectors[rows] @ vectors.T  # (chunk, Q)
        cosine[torch.arange(len(rows)), rows] = -torch.inf  # exclude the caption itself
        best[rows] = best[rows].scatter_reduce(1, clip.expand(len(rows), -1), cosine, "amax")
    best = best.round(decimals=6)  # the cosine of equal captions is 1 up to rounding; they are to tie
    own = best.gather(1, clip[:, None])
    several = own.isfinite()
    if not several.any():
        raise ValueError("no clip has two captions, so how near captions of one clip are is not known")
    return (best >= np.median(own[several])).scatter(1, clip[:, None], True).numpy()


def semantic_ranks(text, video, fits) -> np.ndarray:
    """(Q,) float64: rank of the best-ranked clip that means what the caption says; any such clip counts as found.

    text: (Q, d); video: (C, d); fits: (Q, C) bool, as `same` gives it.
    Ties as in `retrieval.expected_rank`; equal to `retrieval.search` where one clip fits each caption.
    """
    cosine, fits = _cosines(text, video, fits)
    best = np.where(fits, cosine, -np.inf).max(axis=1, keepdims=True)
    tied = cosine == best
    counts = (torch.from_numpy(x.sum(axis=1)) for x in (cosine > best, tied, tied & fits))
    return retrieval.expected_rank(*counts).numpy()


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
    fitting, others = fits.sum(axis=1) - 1, (~fits).sum(axis=1)
    ranks = stats.rankdata(np.where(own, -np.inf, cosine), axis=1) - 1  # without the own clip, which ranks below all
    above = (ranks * (fits & ~own)).sum(axis=1) - fitting * (fitting + 1) / 2  # pairs in order: Mann and Whitney's U
    both = (fitting > 0) & (others > 0)
    return float((above[both] / (fitting * others)[both]).mean()) if both.any() else np.nan


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
