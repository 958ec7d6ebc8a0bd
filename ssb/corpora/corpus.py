"""A corpus: clips, their captions, splits of the clips, and feature streams. It checks itself when it is created."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora import origin, reading
from ssb.corpora.reading import CorpusError, check_array, check_range, entry, listed, sizes
from ssb.corpora.stories import Stories

LARGE = 1 << 30  # bytes: of a larger stream the hash is kept, because it takes seconds


@dataclass(frozen=True)
class Stream:
    """Frozen features of every clip, one vector per time step.

    values:  (clips, steps, dim) array, memory-mapped or in memory; or one .npy path of (steps, dim) per clip.
    lengths: (clips,) how many leading steps of each clip are real; None: all of them (files: their own length).
    source:  what an error message calls it.

    CorpusError for values or lengths of another shape or type.
    """

    values: np.ndarray | Sequence[Path]
    lengths: np.ndarray | None = None
    source: str = "stream"

    def __post_init__(self):
        if not self.packed:
            return
        check_array(self.values, self.source, "clips, steps, dim")
        n, steps, _ = self.values.shape
        lengths = self.lengths
        if lengths is not None and (len(lengths) != n or lengths.min() < 1 or lengths.max() > steps):
            raise CorpusError(f"{self.source}: lengths must be {n} numbers from 1 to {steps}")

    @property
    def packed(self) -> bool:
        """Whether the values are one array, not one file per clip."""
        return isinstance(self.values, np.ndarray)

    def __len__(self) -> int:
        return len(self.values)

    @functools.cached_property
    def dim(self) -> int:
        """The width of a feature vector."""
        return (self.values if self.packed else self._file(0)).shape[-1]

    def _file(self, index: int) -> np.ndarray:
        values = reading.read_array(self.values[index])
        check_array(values, self.values[index], "steps, dim")
        return values

    def clip(self, index: int) -> np.ndarray:
        """(steps, dim) float32 of one clip, its real steps only. CorpusError where a value is not finite."""
        if self.packed:
            which, x = f"{self.source}: clip number {index}", self.values[index]
            x = x if self.lengths is None else x[: self.lengths[index]]
        else:
            which, x = self.values[index], self._file(index)
            if x.shape[1] != self.dim:
                raise CorpusError(f"{which}: shape {x.shape}; wanted (steps, {self.dim}) as the first clip")
        x = np.asarray(x, np.float32)
        if not np.isfinite(x).all():
            raise CorpusError(f"{which} holds NaN or infinity; extract it again or drop it")
        return x

    def update(self, sha) -> None:
        """Feed the content to a hash; of extracted features, what they were made of (`ssb.corpora.origin`)."""
        if not self.packed:
            sums = [files.sha256(path) for path in self.values]
            if made := origin.made_of(self.values, sums):
                return sha.update(made.encode())
            for path, each in zip(self.values, sums):
                sha.update(f"{path.name} {path.stat().st_size}".encode() + bytes.fromhex(each))
            return
        sha.update(f"{self.values.shape} {self.values.dtype}".encode())
        if self.lengths is not None:
            sha.update(np.asarray(self.lengths, np.int64).tobytes())
        if self.values.nbytes <= LARGE:
            return self._feed(sha)
        path, flags = getattr(self.values, "filename", None), self.values.flags
        as_stored = path and flags.c_contiguous and not flags.writeable
        if as_stored and self.values.offset + self.values.nbytes == Path(path).stat().st_size:
            sha.update(files.once(path, f"{self.values.shape} {self.values.dtype}", self._sum).encode())
        else:  # in memory, or a part of a file
            sha.update(self._sum().encode())

    def _sum(self) -> str:
        """The SHA-256 of all values of one array."""
        sha = hashlib.sha256()
        self._feed(sha)
        return sha.hexdigest()

    def _feed(self, sha) -> None:
        for row in self.values:
            sha.update(np.ascontiguousarray(row).data)


def fuse(streams: Sequence[Stream], index: int, source: str) -> np.ndarray:
    """(steps, ΣD) float32: the streams of one clip side by side, the early fusion of section 4.1.

    A stream of one step, a clip-level vector, is repeated along the others. CorpusError, naming `source`, where
    the others differ by more than one step: encoders may round the last second differently.
    """
    parts = [stream.clip(index) for stream in streams]
    lengths = [len(x) for x in parts if len(x) > 1] or [1]
    if max(lengths) - min(lengths) > 1:
        listing = ", ".join(f"{stream.source}: {len(x)}" for stream, x in zip(streams, parts))
        raise CorpusError(f"{source}: the streams differ in steps ({listing})")
    return np.concatenate([x[: min(lengths)] if len(x) > 1 else x.repeat(min(lengths), 0) for x in parts], axis=1)


def shorten(values: np.ndarray, max_steps: int) -> np.ndarray:
    """(steps, D) → (at most max_steps, D): a longer clip is averaged in max_steps equal segments, so that its end is
    represented too."""
    steps = len(values)
    if steps <= max_steps:
        return values
    edges = np.arange(max_steps + 1) * steps // max_steps
    return np.add.reduceat(values, edges[:-1], axis=0) / np.diff(edges)[:, None].astype(np.float32)


@dataclass(frozen=True)
class Corpus:
    """Clips with captions, split into train, val and test, and frozen features of each clip, all in memory.

    clips:    N unique ids.
    captions: frame with the columns `clip` (position in `clips`) and `text`; further columns are kept. Of these
              `video` is the video that the clip is cut from, "" where that is not given, and `start` where it begins.
    splits:   name → positions of clips; no clip is in two splits.
    streams:  name → Stream, rows in the order of `clips`.
    meaning:  what each clip shows, one row per clip (see `ssb.corpora.shapes`); None where that is not known.
    frames:   clip position → its pixels, (frames, height, width, 3) uint8; None where there are no pixels.
    stories:  the long videos whose events the clips are (`ssb.corpora.stories`); None where there are no such videos.
    classes:  a function that returns the class of each clip, N texts; None where there are none.
    drawn:    whether the library draws the clips, so that clips of one id in two such corpora are not the same.

    CorpusError where the parts do not fit each other or a caption is empty; features are checked as they are read.
    """

    name: str
    clips: list[str]
    captions: pd.DataFrame
    splits: dict[str, np.ndarray]
    streams: dict[str, Stream]
    meaning: pd.DataFrame | None = None
    frames: Callable[[int], np.ndarray] | None = field(default=None, compare=False)
    stories: Stories | None = None
    classes: Callable[[], Sequence[str]] | None = field(default=None, compare=False)
    drawn: bool = False

    in_memory = True

    def __post_init__(self):
        if not self.clips:
            raise CorpusError(f"{self.name}: no clips")
        reading.rows_of(self.name, self.clips)
        self._check_captions()
        self._check_streams()
        for split, clips in self.splits.items():
            check_range(np.asarray(clips), f"{self.name}: split {split!r}", "clips", 0, len(self.clips))
        reading.check_apart(self.name, {split: [self.clips[i] for i in clips] for split, clips in self.splits.items()})
        if self.stories is not None:
            self.stories.check(self.name, self.clips, self.captions["clip"].to_numpy(), self.splits)

    def _check_captions(self):
        if missing := {"clip", "text"} - set(self.captions.columns):
            raise CorpusError(f"{self.name}: captions lack the column {listed(sorted(missing))}")
        clip, text = self.captions["clip"].to_numpy(), self.captions["text"]
        if len(uncaptioned := np.setdiff1d(np.arange(len(self.clips)), clip)):
            ids = listed(self.clips[i] for i in uncaptioned)
            raise CorpusError(f"{self.name}: no caption for clip {ids}; write one or leave it out of the split")
        check_range(clip, f"{self.name}: clip of a caption", "captions", 0, len(self.clips))
        if wrong := [(row, each) for row, each in zip(clip, text) if not isinstance(each, str) and not pd.isna(each)]:
            row, each = wrong[0]
            raise CorpusError(f"{self.name}: a caption of clip {self.clips[row]!r} is {each!r:.60}; wanted a text")
        if half := [
            self.clips[row] for row, each in zip(clip, text) if isinstance(each, str) and reading.HALF.search(each)
        ]:
            raise CorpusError(f"{self.name}: half an emoji in a caption of clip {listed(half)}; delete it")
        if "video" in self.captions:
            videos = self.captions.groupby("clip")["video"].nunique()
            if len(several := videos.index[videos > 1]):
                ids = listed(self.clips[i] for i in several)
                raise CorpusError(f"{self.name}: the captions of clip {ids} name several videos; name one")
        empty = text.isna() | (text.astype(str).str.strip() == "")
        if empty.any():
            ids = listed(self.clips[i] for i in clip[empty])
            raise CorpusError(f"{self.name}: empty caption of clip {ids}; write one or delete the row")

    def _check_streams(self):
        if not self.streams:
            raise CorpusError(f"{self.name}: no feature stream; put <stream>.npy and <stream>.ids.txt into features/")
        for name, stream in self.streams.items():
            if len(stream) != len(self.clips):
                raise CorpusError(f"{self.name}: stream {name!r} has {len(stream)} clips, the corpus {len(self.clips)}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of all that a run depends on: ids, captions, splits, features, stories."""
        sha = hashlib.sha256()
        sha.update("\n".join(self.clips).encode())
        sha.update(self.captions[["clip", "text"]].to_csv(index=False).encode())
        for split in sorted(self.splits):
            sha.update(split.encode() + np.asarray(self.splits[split], np.int64).tobytes())
        for name in sorted(self.streams):
            sha.update(name.encode())
            self.streams[name].update(sha)
        if self.stories is not None:
            self.stories.update(sha)
        return sha.hexdigest()[:12]

    def describe(self) -> str:
        """The corpus in a few lines: counts, splits, the shape of each stream, false negatives if they are known."""
        counts = f"{len(self.clips)} clips ({sizes(self.splits)}), {len(self.captions)} captions"
        lines = [f"{self.name} ({self.fingerprint}): {counts}"]
        for name, stream in self.streams.items():
            steps = stream.values.shape[1] if stream.packed else "?"
            lines.append(f"stream {name}: ({len(stream)} clips, {steps} steps, {stream.dim} dims)")
        if self.stories is not None:
            lines.append(self.stories.describe(len(self.clips)))
        if self.meaning is not None:
            share = 100 * self.false_negative_rate()
            lines.append(f"false negatives: a caption is also true of {share:.2f} % of the other clips")
        return "\n".join(lines)

    def id(self, clip: int) -> str:
        """The id of the clip at this position."""
        return self.clips[clip]

    @functools.cached_property
    def _videos(self) -> dict[int, str]:
        if "video" not in self.captions:
            return {}
        return self.captions.dropna(subset="video").set_index("clip")["video"].astype(str).to_dict()

    def video_of(self, clip: int) -> str:
        """The video that the clip at this position is cut from; "" where the corpus does not give it."""
        return self._videos.get(clip, "")

    def split(self, name: str) -> np.ndarray:
        """Positions of the clips of a split; CorpusError listing the splits where it is none of them."""
        return entry(self.splits, name, self.name, "split")

    def captions_of(self, clips: np.ndarray) -> pd.DataFrame:
        """The captions of these clips, ordered by clip as given; `caption` is the position in `self.captions`."""
        order = pd.Series(range(len(clips)), index=clips)
        rows = self.captions.assign(caption=range(len(self.captions)), order=self.captions["clip"].map(order))
        rows = rows.dropna(subset="order").sort_values("order", kind="stable")
        return rows.drop(columns="order").reset_index(drop=True)

    def features(self, streams: Sequence[str] = (), max_steps: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Early fusion (section 4.1): the streams of every clip side by side, see `fuse` and `shorten`.

        Returns values (clips, M, ΣD) float32 and mask (clips, M) bool, M ≤ max_steps; values are 0 where the mask is
        False. `streams` empty: all of them, in the corpus's order. CorpusError for a stream that is not there.
        """
        chosen = reading.chosen(self.streams, streams, self.name)
        whole = (fuse(chosen, i, f"{self.name}: clip {clip!r}") for i, clip in enumerate(self.clips))
        fused = [shorten(x, max_steps) for x in whole]
        values = np.zeros((len(fused), max(map(len, fused)), fused[0].shape[1]), np.float32)
        mask = np.zeros(values.shape[:2], bool)
        for i, x in enumerate(fused):
            values[i, : len(x)], mask[i, : len(x)] = x, True
        return values, mask

    def truth(self, captions: Sequence[int], clips: Sequence[int]) -> np.ndarray:
        """(captions, clips) bool: is the caption at this position true of the clip at that one? It is if the clip
        agrees with the caption's own in every attribute that the caption mentions. CorpusError for a corpus without
        `meaning`."""
        if self.meaning is None or "says" not in self.captions:
            raise CorpusError(f"{self.name}: it is not known which captions are true of a clip; take shapes or events")
        rows = self.captions.iloc[np.asarray(captions)]
        true = np.ones((len(rows), len(clips)), bool)
        for name in self.meaning:
            value = pd.factorize(self.meaning[name])[0]
            unmentioned = np.array([name not in says for says in rows["says"]], bool)
            true &= unmentioned[:, None] | (value[rows["clip"]][:, None] == value[np.asarray(clips)][None, :])
        return true

    def false_negative_rate(self, split: str | None = None) -> float:
        """The share of false negatives, measured: of all pairs of a caption and a clip not its own, in one split or in
        the whole corpus, those whose caption is true of the clip."""
        clips = np.arange(len(self.clips)) if split is None else self.split(split)
        captions = np.flatnonzero(self.captions["clip"].isin(clips))
        pairs = len(captions) * (len(clips) - 1)
        return float((self.truth(captions, clips).sum() - len(captions)) / pairs)
