"""Long videos of several events, told by captions that are out of order, missing and irrelevant at dialled rates: what
the weak alignment of VT-TWINS (Ko et al., CVPR 2022, section 3) is for. `ssb.s2dtw` aligns them.

The corpus `events` is made as `shapes` is. Its videos come as takes of one script: one background, one colour and a
repertoire of events, of which each take shows some in an order of its own. So clips of a video look alike, as those of
one kitchen do; what tells the takes of one script apart is which of its events they show, and in what order. A clip is
still a clip: its own captions are clean, and clip-level training and retrieval work as on any corpus.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from ssb.corpora import reading
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError, listed
from ssb.corpora.stories import Stories

DIALS = ("events", "disorder", "missing", "irrelevant", "seed")  # of `of_videos`


def with_stories(corpus: Corpus, **dials) -> Corpus:
    """The same with the stories of `of_videos`, which the dials are arguments of."""
    if not isinstance(corpus, Corpus):
        raise CorpusError(f"{corpus.name}: videos are read from the disk and cannot be told; give no {listed(dials)}")
    captions = corpus.captions
    if "start" in captions and not pd.api.types.is_numeric_dtype(captions["start"]):  # all of a table is text
        start = pd.to_numeric(captions["start"], errors="coerce")
        corpus = replace(corpus, captions=captions.assign(start=start))
    return replace(corpus, stories=of_videos(corpus, **dials))


def of_videos(
    corpus: Corpus,
    events: int = 8,
    disorder: float = 0.0,
    missing: float = 0.0,
    irrelevant: float = 0.0,
    seed: int = 0,
) -> Stories:
    """Stories of a corpus whose captions have the columns `video` and `start`, as those of YouCook2: windows of
    `events` consecutive clips of one video in one split, in the order of their start. A last window that is not full is
    left out; `Corpus.describe` says how many clips that are. `with_stories` gives the corpus that has them, as does
    `load_corpus(…, events=…)`.

    A video of n clips is told by one caption of each, drawn from the clip's own; then, as exactly as n allows,
    missing:    missing · n of these are left out, but never all,
    disorder:   disorder · n swaps of neighbours are made among the rest, each at a place of its own until all places
                have been used, so that so many pairs of captions come in the wrong order,
    irrelevant: irrelevant · n captions are put in anywhere that are of clips of another video of the split and, where
                `corpus.meaning` tells, true of no clip of this one,
    so that m = n - missing + irrelevant. Each dial alone leaves the draws of the others as they are: what is missing at
    0.25 is missing at 0.5 too. CorpusError for a share that is none, columns that are not there, a video of which no
    irrelevant caption can be found, or a split without a full window.
    """
    shares = {"disorder": disorder, "missing": missing, "irrelevant": irrelevant}
    reading.check_options(corpus.name, (), {"events": (events, 1), "seed": (seed, 0)}, **shares)
    swaps, gone, strange = (round(share * events) for share in shares.values())
    if gone == events:
        raise CorpusError(f"{corpus.name}: missing={missing} of {events} events leaves no caption; give a lower share")
    clips, videos, splits = _windows(corpus, events)
    of = corpus.captions.groupby("clip").indices
    captions, truth = [], []
    for number, other in enumerate(_others(corpus, clips, videos, splits, strange)):
        rng = np.random.default_rng([seed, 4, number])
        pick, left, place, gap = rng.random(events), rng.permutation(events), rng.random(events), rng.random(events)
        kept = np.sort(left[gone:])
        for at in np.resize(np.argsort(place[: len(kept) - 1]), swaps if len(kept) > 1 else 0):
            kept[[at, at + 1]] = kept[[at + 1, at]]
        own = np.array([of[clip][int(share * len(of[clip]))] for clip, share in zip(clips[number], pick)])
        foreign = rng.permutation(other)[:strange]
        if len(foreign) < strange:
            raise CorpusError(
                f"{corpus.name}: {len(foreign)} captions are irrelevant to video {number}, {strange} are wanted; lower "
                "`irrelevant` or `false_negatives`, or take more videos"
            )
        order = np.argsort(np.append(np.arange(1, len(kept) + 1) / (len(kept) + 1), gap[:strange]), kind="stable")
        captions.append(np.append(own[kept], foreign)[order])
        truth.append(np.append(kept, np.full(strange, -1))[order])
    return Stories(clips, np.array(captions, int), splits, np.array(truth, int))


def _windows(corpus: Corpus, events: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Clips (V, events), the id (V,) of the video that each window is from, and the numbers of the windows by split."""
    missing = {"video", "start"} - set(corpus.captions.columns)
    if missing:
        raise CorpusError(f"{corpus.name}: captions lack the column {listed(sorted(missing))}; videos cannot be told")
    rows = corpus.captions.drop_duplicates("clip").set_index("clip")[["video", "start"]]
    if rows.isna().any(axis=None) or not pd.api.types.is_numeric_dtype(rows["start"]):
        raise CorpusError(f"{corpus.name}: captions without video, or whose start is no number; mend these columns")
    clips, videos, splits = [], [], {}
    for split, members in corpus.splits.items():
        first = len(clips)
        for video, steps in rows.loc[np.sort(members)].groupby("video", sort=False):
            steps = steps.sort_values("start", kind="stable").index.to_numpy()
            full = len(steps) // events
            clips += list(steps[: full * events].reshape(full, events))
            videos += [video] * full
        if len(clips) == first:
            raise CorpusError(f"{corpus.name}: no video of split {split!r} has {events} clips; give fewer events")
        splits[split] = np.arange(first, len(clips))
    return np.array(clips, int), np.array(videos), splits


def _others(corpus: Corpus, clips, videos, splits, wanted: int) -> Iterator[np.ndarray]:
    """Of each video in turn, the captions that may serve as irrelevant ones; none where none are wanted."""
    clip_of = corpus.captions["clip"].to_numpy()
    source, names = pd.factorize(corpus.captions["video"])  # whole numbers are compared sooner than names
    video = names.get_indexer(videos)
    for split, numbers in splits.items():
        pool = np.flatnonzero(np.isin(clip_of, corpus.splits[split])) if wanted else np.arange(0)
        true = np.zeros((len(pool), len(numbers)), bool)  # of any clip of the video
        if wanted and corpus.meaning is not None:
            shown = corpus.truth(pool, clips[numbers].ravel())
            true = shown.reshape(len(pool), *clips[numbers].shape).any(-1)
        for number, fits in zip(numbers, true.T):
            yield pool[(source[pool] != video[number]) & ~fits]
