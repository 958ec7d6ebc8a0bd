"""Long videos of several events, told by captions that are out of order, missing and irrelevant at dialled rates: what
the weak alignment of VT-TWINS (Ko et al., CVPR 2022, section 3) is for. `ssb.s2dtw` aligns them.

The corpus `events` is made as `shapes` is. Its videos come as takes of one script: one background, one colour and a
repertoire of events, of which each take shows some in an order of its own. So clips of a video look alike, as those of
one kitchen do; what tells the takes of one script apart is which of its events they show, and in what order. A clip is
still a clip: its own captions are clean, and clip-level training and retrieval work as on any corpus.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb import retrieval, shapes
from ssb.corpus import Corpus, CorpusError, listed
from ssb.pixels import Scene

DIALS = ("events", "disorder", "missing", "irrelevant", "seed")  # of `of_videos`
EVENTS = tuple(  # shape, size, motion, speed: whatever can be seen, each once (see `shapes.scenes`)
    (shape, size, motion, speed)
    for shape, size, motion in itertools.product(*(shapes.WORDS[name] for name in ("shape", "size", "motion")))
    for speed in (["none"] if motion == "still" else shapes.WORDS["speed"])
    if not (motion == "spin" and shape in ("circle", "ring"))
)


@dataclass(frozen=True, eq=False)
class Stories:
    """Long videos of a corpus, all of n clips and all told by m captions; n and m may differ.

    clips:    (V, n) positions in `corpus.clips`: the events of each video, in time order.
    captions: (V, m) positions in `corpus.captions`: its narration, in the order in which it is told.
    splits:   name → numbers of videos; the clips of a video, and those that its captions are of, are in the split of
              the corpus that has the same name.
    truth:    (V, m) which of the n clips each told caption describes, -1 where none; None where that is not known.
    scripts:  (V,) videos of one number are takes of one script; None where that is not known. No run sees it, so it is
              no part of the fingerprint.
    """

    clips: np.ndarray
    captions: np.ndarray
    splits: dict[str, np.ndarray]
    truth: np.ndarray | None = None
    scripts: np.ndarray | None = None

    def split(self, name: str) -> np.ndarray:
        """Numbers of the videos of a split; CorpusError listing the splits where it is none of them."""
        if name not in self.splits:
            raise CorpusError(f"stories have no split {name!r}; they have {listed(self.splits)}")
        return self.splits[name]

    def check(self, corpus: Corpus) -> None:
        """CorpusError, naming the corpus, where they do not fit it."""
        try:
            self._check_numbers(len(corpus.clips), len(corpus.captions))
            self._check_splits(corpus)
            if self.truth is not None:
                self._check_truth(corpus.captions["clip"].to_numpy())
            if self.scripts is not None and np.shape(self.scripts) != (len(self.clips),):
                raise CorpusError(f"stories: scripts of shape {np.shape(self.scripts)} for {len(self.clips)} videos")
        except CorpusError as error:
            raise CorpusError(f"{corpus.name}: {error}") from None

    def _check_numbers(self, clips: int, captions: int) -> None:
        for name, rows, most in (("clips", self.clips, clips), ("captions", self.captions, captions)):
            _whole(rows, f"stories.{name}", ("videos", name), 0, most)
        if len(self.captions) != len(self.clips):
            raise CorpusError(f"stories: {len(self.clips)} rows of clips and {len(self.captions)} of captions")
        clip, times = np.unique(self.clips, return_counts=True)
        if (times > 1).any():
            raise CorpusError(
                f"stories: clip number {listed(clip[times > 1])} is an event twice; each belongs to one video"
            )

    def _check_splits(self, corpus: Corpus) -> None:
        seen: dict[int, str] = {}
        for split, videos in self.splits.items():
            if split not in corpus.splits:
                raise CorpusError(f"stories: split {split!r} is none of the corpus, which has {listed(corpus.splits)}")
            _whole(videos, f"stories.splits[{split!r}]", ("videos",), 0, len(self.clips))
            for video in videos:
                if video in seen:
                    raise CorpusError(f"stories: video {video} is in split {seen[video]!r} and again in {split!r}")
                seen[int(video)] = split
            told = corpus.captions["clip"].to_numpy()[self.captions[videos]]
            for what, clips in (("shows", self.clips[videos]), ("is told of", told)):
                stray = ~np.isin(clips, corpus.splits[split])
                if stray.any():
                    video, clip = videos[stray.any(1).argmax()], corpus.clips[clips[stray][0]]
                    raise CorpusError(
                        f"stories: video {video} of split {split!r} {what} clip {clip!r} of no such split"
                    )

    def _check_truth(self, clip_of: np.ndarray) -> None:
        _whole(self.truth, "stories.truth", ("videos", "captions"), -1, self.clips.shape[1])
        if self.truth.shape != self.captions.shape:
            raise CorpusError(f"stories: truth of shape {self.truth.shape} for captions of {self.captions.shape}")
        told = clip_of[self.captions]
        own = np.take_along_axis(self.clips, np.maximum(self.truth, 0), 1)
        among = (told[:, :, None] == self.clips[:, None]).any(-1)
        wrong = np.where(self.truth < 0, among, told != own)
        if wrong.any():
            video, caption = np.argwhere(wrong)[0]
            raise CorpusError(
                f"stories: truth[{video}, {caption}] is {self.truth[video, caption]}, but that caption is of clip "
                f"number {told[video, caption]}"
            )

    def update(self, sha) -> None:
        """Feed the content to a hash."""
        parts = {"clips": self.clips, "captions": self.captions, "truth": self.truth}
        parts |= {f"split {name}": self.splits[name] for name in sorted(self.splits)}
        for name, part in parts.items():
            part = np.asarray(() if part is None else part, np.int64)
            sha.update(f"stories {name} {part.shape}".encode() + part.tobytes())

    def describe(self, clips: int) -> str:
        """One line, for `Corpus.describe` of a corpus of this many clips."""
        (videos, n), m = self.clips.shape, self.captions.shape[1]
        sizes = ", ".join(f"{name} {len(members)}" for name, members in self.splits.items())
        left = f"{clips - videos * n} clips are in no video"
        return f"stories: {videos} videos ({sizes}) of {n} clips, told by {m} captions; {left}"


def _whole(values, source: str, axes: tuple[str, ...], low: int, high: int) -> None:
    """CorpusError unless these are whole numbers of low … high - 1, one axis for each name, none of them empty."""
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.integer):
        raise CorpusError(f"{source}: wanted an array of whole numbers, got {getattr(values, 'dtype', type(values))}")
    if values.ndim != len(axes) or not values.size:
        raise CorpusError(f"{source}: shape {values.shape}; wanted ({', '.join(axes)}), none of them 0")
    if values.min() < low or values.max() >= high:
        wrong = values.min() if values.min() < low else values.max()
        raise CorpusError(f"{source}: {wrong} is not from {low} to {high - 1}")


def corpus(
    videos: int = 360,
    events: int = 8,
    takes: int = 4,
    captions: int = 5,
    disorder: float = 0.25,
    missing: float = 0.25,
    irrelevant: float = 0.25,
    false_negatives: float = shapes.FALSE_NEGATIVES,
    seed: int = 0,
    **unknown,
) -> Corpus:
    """The corpus `events`: two thirds of the scripts to train on, a ninth to validate, two ninths to test.

    videos:    in all, each of `events` clips, one event a clip.
    takes:     videos of one script. A script is a background, a colour and `events` + `events` // 2 distinct events
               (shape, size, motion, speed); every take shows `events` of these, drawn and ordered by chance. 1: no two
               videos share a script, and the scene alone goes far to tell them apart.
    captions:  of each clip, clean ones, as `shapes` has them; false_negatives: as there, over all pairs of the corpus.
    disorder, missing, irrelevant: how badly a video is told, see `of_videos`. They change nothing but the stories.
    seed:      everything random follows from it.

    The captions have the columns `video`, an id, and `start`, the number of the event. The streams are those of
    `shapes` and are kept in `files.cache()`. CorpusError for an argument that does not fit.
    """
    whole = {"videos": (videos, 1), "events": (events, 2), "takes": (takes, 1), "captions": (captions, 1)}
    dials = {"disorder": disorder, "missing": missing, "irrelevant": irrelevant}
    shapes.check_options("events", unknown, whole | {"seed": (seed, 0)}, false_negatives=false_negatives, **dials)
    if events + events // 2 > len(EVENTS):
        raise CorpusError(f"events: events={events}; a script needs half as many again, and there are {len(EVENTS)}")
    scripts = -(-videos // takes)
    if scripts < 9:
        raise CorpusError(f"events: videos={videos}; give at least {8 * takes + 1}, nine scripts of {takes} takes")
    shown = scenes(videos, events, takes, seed)
    meaning = pd.DataFrame([asdict(scene) for scene in shown])
    told = shapes.describe(meaning, captions, false_negatives, seed, name="events")
    ids = [f"video{video:04d}" for video in range(videos)]
    cuts = takes * events * (scripts - 2 * scripts // 9 - np.array([scripts // 9, 0]))
    made = Corpus(
        name="events",
        clips=[f"{video}_{event}" for video in ids for event in range(events)],
        captions=told.assign(video=np.array(ids)[told["clip"] // events], start=told["clip"] % events),
        splits=dict(zip(("train", "val", "test"), np.split(np.arange(len(shown)), cuts))),
        streams=shapes.streams(shown, seed, "events", repr(shown)),
        meaning=meaning,
        frames=functools.partial(shapes.film, shown, seed),
    )
    stories = of_videos(made, events, **dials, seed=seed)
    return replace(made, stories=replace(stories, scripts=stories.clips[:, 0] // (events * takes)))


def scenes(videos: int, events: int, takes: int, seed: int = 0) -> tuple[Scene, ...]:
    """What each clip shows, video after video and event after event."""
    rng, shown = np.random.default_rng([seed, 3]), []
    for first in range(0, videos, takes):
        colour, background = (str(rng.choice(list(shapes.WORDS[name]))) for name in ("colour", "background"))
        script = rng.choice(len(EVENTS), events + events // 2, replace=False)
        for _ in range(first, min(first + takes, videos)):
            for event in rng.permutation(script)[:events]:
                shape, size, motion, speed = EVENTS[event]
                shown.append(Scene(shape, colour, size, motion, speed, background))
    return tuple(shown)


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
    shapes.check_options(corpus.name, (), {"events": (events, 1), "seed": (seed, 0)}, **shares)
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
            shown = shapes.truth(corpus, pool, clips[numbers].ravel())
            true = shown.reshape(len(pool), *clips[numbers].shape).any(-1)
        for number, fits in zip(numbers, true.T):
            yield pool[(source[pool] != video[number]) & ~fits]


def pooled_similarity(text, video) -> Tensor:
    """Cosine of the means, which know no order: text (Q, m, d) and video (C, n, d) → (Q, C) float64. The means are of
    vectors of length 1. As in `retrieval`, nothing depends on the shape of a batch, and equal items tie."""
    text, video = (retrieval.unit(_units(x, name).mean(1), name) for x, name in ((text, "text"), (video, "video")))
    return text @ video.T


def best_match_similarity(text, video, chunk: int = 64) -> Tensor:
    """Mean over the captions of each one's cosine with its nearest clip, in whatever order: text (Q, m, d) and video
    (C, n, d) → (Q, C) float64, `chunk` texts at a time."""
    text, video = _units(text, "text"), _units(video, "video")
    flat, found = video.flatten(0, 1).T, []
    for some in text.split(chunk):
        cosine = (some @ flat).unflatten(2, video.shape[:2])  # (chunk, m, C, n)
        found.append(_even(cosine.amax(3)).mean(1))
    return torch.cat(found)


def _units(x, name: str) -> Tensor:
    """(V, k, d) → the same in float64, of length 1 and rounded as `retrieval.unit` does."""
    x = torch.as_tensor(x)
    if x.ndim != 3 or not x.shape[1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; wanted (videos, steps, channels)")
    return retrieval.unit(x.flatten(0, 1), name).unflatten(0, x.shape[:2])


def _even(x: Tensor) -> Tensor:
    """Rounded so far that float64 adds up to thousands of them without further rounding, in whatever order."""
    return (x * 2**40).round() / 2**40
