"""Long videos of a corpus and the captions told of each: which clips, and in which order."""

from dataclasses import dataclass

import numpy as np

from ssb.corpora.reading import CorpusError, listed


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

    def check(self, clips: list[str], clip_of: np.ndarray, splits: dict[str, np.ndarray]) -> None:
        """CorpusError where they do not fit a corpus of these clips, the clip of each caption and splits of clips."""
        self._check_numbers(len(clips), len(clip_of))
        self._check_splits(clips, clip_of, splits)
        if self.truth is not None:
            self._check_truth(clip_of)
        if self.scripts is not None and np.shape(self.scripts) != (len(self.clips),):
            raise CorpusError(f"stories: scripts of shape {np.shape(self.scripts)} for {len(self.clips)} videos")

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

    def _check_splits(self, ids: list[str], clip_of: np.ndarray, splits: dict[str, np.ndarray]) -> None:
        seen: dict[int, str] = {}
        for split, videos in self.splits.items():
            if split not in splits:
                raise CorpusError(f"stories: split {split!r} is none of the corpus, which has {listed(splits)}")
            _whole(videos, f"stories.splits[{split!r}]", ("videos",), 0, len(self.clips))
            for video in videos:
                if video in seen:
                    raise CorpusError(f"stories: video {video} is in split {seen[video]!r} and again in {split!r}")
                seen[int(video)] = split
            told = clip_of[self.captions[videos]]
            for what, clips in (("shows", self.clips[videos]), ("is told of", told)):
                stray = ~np.isin(clips, splits[split])
                if stray.any():
                    video, clip = videos[stray.any(1).argmax()], ids[clips[stray][0]]
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
