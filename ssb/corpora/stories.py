"""Long videos of a corpus and the captions that narrate each: which clips, which captions, and in which order."""

from dataclasses import dataclass

import numpy as np

from ssb.corpora.reading import CorpusError, check_apart, check_range, entry, listed, sizes


@dataclass(frozen=True, eq=False)
class Stories:
    """V long videos of a corpus, all of n clips and all narrated by m captions; n and m may differ.

    clips:    (V, n) positions in `corpus.clips`: the events of each video, in time order.
    captions: (V, m) positions in `corpus.captions`: the narration of each video, in its order.
    splits:   name → numbers of videos; the clips of a video, and the clips of its captions, are in the split of the
              corpus that has the same name.
    truth:    (V, m) which of the n clips each caption describes, -1: none of them; None where that is not known.
    scripts:  (V,) videos of one number are takes of one script; None where that is not known. No run depends on it, so
              it is not part of the fingerprint.
    """

    clips: np.ndarray
    captions: np.ndarray
    splits: dict[str, np.ndarray]
    truth: np.ndarray | None = None
    scripts: np.ndarray | None = None

    def split(self, name: str) -> np.ndarray:
        """Numbers of the videos of a split; CorpusError listing the splits where it is none of them."""
        return entry(self.splits, name, "the set of long videos", "split")

    def check(self, corpus: str, clips: list[str], clip_of: np.ndarray, splits: dict[str, np.ndarray]) -> None:
        """CorpusError, naming the corpus, where they do not fit one of these clips, the clip of each caption and splits
        of clips."""
        source, videos = f"{corpus}: stories", len(self.clips)
        check_range(self.clips, f"{source}.clips", "videos, clips", 0, len(clips))
        check_range(self.captions, f"{source}.captions", "videos, captions", 0, len(clip_of))
        if len(self.captions) != videos:
            raise CorpusError(f"{source}: {videos} rows of clips and {len(self.captions)} of captions")
        clip, times = np.unique(self.clips, return_counts=True)
        if (times > 1).any():
            raise CorpusError(f"{source}: clip number {listed(clip[times > 1])} is an event twice; keep one of them")
        check_apart(source, {split: np.asarray(members).tolist() for split, members in self.splits.items()}, "video")
        for split, members in self.splits.items():
            entry(splits, split, f"{source}: the corpus", "split")
            check_range(members, f"{source}.splits[{split!r}]", "videos", 0, videos)
            for part, used in (("clips", self.clips[members]), ("captions", clip_of[self.captions[members]])):
                outside = ~np.isin(used, splits[split])
                if outside.any():
                    raise CorpusError(
                        f"{source}: video {members[outside.any(1).argmax()]} of split {split!r} has {part} of "
                        f"{clips[used[outside][0]]!r}, which is not in that split"
                    )
        if self.truth is not None:
            self._check_truth(source, clip_of[self.captions])
        if self.scripts is not None and np.shape(self.scripts) != (videos,):
            raise CorpusError(f"{source}: scripts of shape {np.shape(self.scripts)} for {videos} videos")

    def _check_truth(self, source: str, described: np.ndarray) -> None:
        """described: (V, m) the clip of each caption."""
        check_range(self.truth, f"{source}.truth", "videos, captions", -1, self.clips.shape[1])
        if self.truth.shape != described.shape:
            raise CorpusError(f"{source}: truth of shape {self.truth.shape} for captions of {described.shape}")
        claimed = np.take_along_axis(self.clips, np.maximum(self.truth, 0), 1)
        own = (described[:, :, None] == self.clips[:, None]).any(-1)
        wrong = np.where(self.truth < 0, own, described != claimed)
        if wrong.any():
            video, caption = np.argwhere(wrong)[0]
            raise CorpusError(
                f"{source}: truth[{video}, {caption}] is {self.truth[video, caption]}, but that caption is of clip "
                f"number {described[video, caption]}"
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
        line = f"stories: {videos} videos ({sizes(self.splits)}) of {n} clips, narrated by {m} captions"
        return f"{line}; {clips - videos * n} clips are in no video"
