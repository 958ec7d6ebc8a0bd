"""Long videos, each several consecutive clips, narrated by captions of which set shares are out of order, missing or
irrelevant: what the weak alignment of VT-TWINS (Ko et al., CVPR 2022, section 3) is for. `ssb.s2dtw` aligns them.

A clip keeps its own captions, so that clip-level training and retrieval work as on any corpus.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ssb.corpora import reading
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError, listed
from ssb.corpora.stories import Stories

OPTIONS = ("events", "disorder", "missing", "irrelevant", "seed")  # of `of_videos`


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
    left out; `Corpus.describe` says how many clips that are. `load_corpus(…, events=…)` gives a corpus that has them.

    A video of n clips is narrated by one caption of each, drawn from the clip's own; then, as exactly as n allows,
    missing:    missing · n of these are left out, but never all,
    disorder:   disorder · n neighbours are swapped among the rest, at different positions until all have been used, so
                that so many pairs of captions come in the wrong order,
    irrelevant: irrelevant · n captions are inserted at random positions, of clips of another video of the split and,
                where `corpus.meaning` is known, true of no clip of this one,
    so that m = n - missing + irrelevant. Each option alone leaves the draws of the others as they are: what is missing
    at 0.25 is missing at 0.5 too. CorpusError for a share out of range, missing columns, a video with too few
    irrelevant captions, or a split without a full window.
    """
    shares = {"disorder": disorder, "missing": missing, "irrelevant": irrelevant}
    reading.check_options(corpus.name, (), {"events": (events, 1, 10_000), "seed": (seed, 0, 2**32 - 1)}, **shares)
    swaps, left_out, inserted = (round(share * events) for share in shares.values())
    if left_out == events:
        raise CorpusError(f"{corpus.name}: missing={missing} of {events} events leaves no caption; give a lower share")
    clips, videos, splits = _windows(corpus, events)
    captions_of = corpus.captions.groupby("clip").indices
    captions, truth = [], []
    for number, unrelated in enumerate(_unrelated(corpus, clips, videos, splits, inserted)):
        rng = np.random.default_rng([seed, 4, number])
        choice, order = rng.random(events), np.sort(rng.permutation(events)[left_out:])
        position, gap = rng.random(events), rng.random(events)
        for left in np.resize(np.argsort(position[: len(order) - 1]), swaps if len(order) > 1 else 0):
            order[[left, left + 1]] = order[[left + 1, left]]
        own = np.array([captions_of[clip][int(x * len(captions_of[clip]))] for clip, x in zip(clips[number], choice)])
        others = rng.permutation(unrelated)[:inserted]
        if len(others) < inserted:
            raise CorpusError(
                f"{corpus.name}: {len(others)} captions are irrelevant to video {number}, {inserted} are wanted; lower "
                "`irrelevant` or `false_negatives`, or take more videos"
            )
        merged = np.argsort(np.append(np.arange(1, len(order) + 1) / (len(order) + 1), gap[:inserted]), kind="stable")
        captions.append(np.append(own[order], others)[merged])
        truth.append(np.append(order, np.full(inserted, -1))[merged])
    return Stories(clips, np.array(captions, int), splits, np.array(truth, int))


def _windows(corpus: Corpus, events: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Clips (V, events), the id (V,) of the video that each window is from, and the numbers of the windows by split."""
    if missing := {"video", "start"} - set(corpus.captions.columns):
        raise CorpusError(f"{corpus.name}: captions lack the column {listed(sorted(missing))}; long videos need it")
    rows = corpus.captions.drop_duplicates("clip").set_index("clip")[["video", "start"]]
    rows["start"] = pd.to_numeric(rows["start"], errors="coerce")  # the cells of a CSV are read as text
    if rows.isna().any(axis=None):
        raise CorpusError(f"{corpus.name}: captions without video, or whose start is not a number; fix these columns")
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


def _unrelated(corpus: Corpus, clips, videos, splits, wanted: int) -> Iterator[np.ndarray]:
    """Of each video in turn, the captions that may serve as irrelevant ones; an empty array where none are wanted."""
    clip_of = corpus.captions["clip"].to_numpy()
    source, names = pd.factorize(corpus.captions["video"])  # integers compare faster than names
    video = names.get_indexer(videos)
    for split, numbers in splits.items():
        pool = np.flatnonzero(np.isin(clip_of, corpus.splits[split])) if wanted else np.arange(0)
        true = np.zeros((len(pool), len(numbers)), bool)  # of any clip of the video
        if wanted and corpus.meaning is not None:
            true = corpus.truth(pool, clips[numbers].ravel()).reshape(len(pool), *clips[numbers].shape).any(-1)
        for number, fits in zip(numbers, true.T):
            yield pool[(source[pool] != video[number]) & ~fits]
