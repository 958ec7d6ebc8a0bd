"""A corpus: clips, their captions, splits of the clips, and feature streams. It checks itself when it is made."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ssb.corpora.reading import CorpusError, check_array, listed, read_array
from ssb.corpora.stories import Stories

WHOLE = 1 << 30  # bytes of a stream that are checked and hashed in full; of a larger one, evenly spaced blocks


@dataclass(frozen=True)
class Stream:
    """Frozen features of every clip, one vector per time step.

    values:  (clips, steps, dim) array, memory-mapped or in memory; or one .npy path of (steps, dim) per clip.
    lengths: (clips,) how many leading steps of each clip are real; None: all of them (files: their own length).
    source:  what an error message calls it.
    """

    values: np.ndarray | Sequence[Path]
    lengths: np.ndarray | None = None
    source: str = "stream"

    def __post_init__(self):
        if not self.packed:
            return
        check_array(self.values, self.source, "clips, steps, dim")
        n, steps, _ = self.values.shape
        if self.lengths is not None and (
            len(self.lengths) != n or self.lengths.min() < 1 or self.lengths.max() > steps
        ):
            raise CorpusError(f"{self.source}: lengths must be {n} numbers from 1 to {steps}")

    @property
    def packed(self) -> bool:
        return isinstance(self.values, np.ndarray)

    def __len__(self) -> int:
        return len(self.values)

    @functools.cached_property
    def dim(self) -> int:
        return (self.values if self.packed else self._file(0)).shape[-1]

    def _file(self, index: int) -> np.ndarray:
        values = read_array(self.values[index])
        check_array(values, self.values[index], "steps, dim")
        return values

    def clip(self, index: int) -> np.ndarray:
        """(steps, dim) float32 of one clip, its real steps only. CorpusError where one is not finite."""
        if self.packed:
            x = self.values[index]
            x = x if self.lengths is None else x[: self.lengths[index]]
        else:
            x = self._file(index)
            if x.shape[1] != self.dim:
                raise CorpusError(
                    f"{self.values[index]}: shape {x.shape}; wanted (steps, {self.dim}) as the first clip"
                )
        x = np.asarray(x, np.float32)
        if not np.isfinite(x).all():
            which = f"{self.source}: clip number {index}" if self.packed else self.values[index]
            raise CorpusError(f"{which} holds NaN or infinity; extract it again or drop it")
        return x

    def update(self, sha) -> None:
        """Feed the content to a hash."""
        if not self.packed:
            for path in self.values:
                sha.update(f"{path.name} {path.stat().st_size}".encode())
                with open(path, "rb") as file:
                    sha.update(hashlib.file_digest(file, "sha256").digest())
            return
        sha.update(f"{self.values.shape} {self.values.dtype}".encode())
        if self.lengths is not None:
            sha.update(np.asarray(self.lengths, np.int64).tobytes())
        rows = range(len(self.values))
        if self.values.nbytes > WHOLE:
            rows = np.linspace(0, len(self.values) - 1, 256).astype(int)
        for row in rows:
            sha.update(np.ascontiguousarray(self.values[row]).data)


@dataclass(frozen=True)
class Corpus:
    """clips:    N unique ids.
    captions: frame with columns `clip` (position in `clips`) and `text`; any further column travels along.
    splits:   name → positions of clips; no clip is in two splits.
    streams:  name → Stream, rows in the order of `clips`.
    meaning:  where the truth is known, one row per clip (see `ssb.shapes`).
    frames:   where pixels can be shown, clip position → (frames, height, width, 3) uint8.
    stories:  where the clips are events of long videos, which ones and how each video is told (`ssb.sequences`).
    """

    name: str
    clips: list[str]
    captions: pd.DataFrame
    splits: dict[str, np.ndarray]
    streams: dict[str, Stream]
    meaning: pd.DataFrame | None = None
    frames: Callable[[int], np.ndarray] | None = field(default=None, compare=False)
    stories: Stories | None = None

    def __post_init__(self):
        self._check_clips()
        self._check_captions()
        self._check_splits()
        self._check_streams()
        if self.stories is not None:
            try:
                self.stories.check(self.clips, self.captions["clip"].to_numpy(), self.splits)
            except CorpusError as error:
                raise CorpusError(f"{self.name}: {error}") from None

    def _check_clips(self):
        if not self.clips:
            raise CorpusError(f"{self.name}: no clips")
        repeated = [clip for clip, n in Counter(self.clips).items() if n > 1]
        if repeated:
            raise CorpusError(f"{self.name}: duplicate clip id {listed(repeated)}; keep one of each")

    def _check_captions(self):
        missing = {"clip", "text"} - set(self.captions.columns)
        if missing:
            raise CorpusError(f"{self.name}: captions lack the column {listed(sorted(missing))}")
        clip = self.captions["clip"].to_numpy()
        if len(clip) and (clip.min() < 0 or clip.max() >= len(self.clips)):
            wrong = clip.min() if clip.min() < 0 else clip.max()
            raise CorpusError(f"{self.name}: a caption points at clip number {wrong} of {len(self.clips)}")
        text = self.captions["text"]
        empty = text.isna() | (text.astype(str).str.strip() == "")
        if empty.any():
            ids = [self.clips[i] for i in clip[empty.to_numpy()]]
            raise CorpusError(f"{self.name}: empty caption of clip {listed(ids)}; write one or delete the row")
        bare = np.setdiff1d(np.arange(len(self.clips)), clip)
        if len(bare):
            ids = listed([self.clips[i] for i in bare])
            raise CorpusError(f"{self.name}: no caption for clip {ids}; write one or leave it out of the split")

    def _check_splits(self):
        seen: dict[int, str] = {}
        for split, members in self.splits.items():
            if len(members) == 0:
                raise CorpusError(f"{self.name}: split {split!r} is empty")
            for clip in members:
                if not 0 <= clip < len(self.clips):
                    raise CorpusError(f"{self.name}: split {split!r} points at clip number {clip} of {len(self.clips)}")
                if clip in seen:
                    raise CorpusError(
                        f"{self.name}: clip {self.clips[clip]!r} is in split {seen[clip]!r} and again in {split!r}"
                    )
                seen[int(clip)] = split

    def _check_streams(self):
        if not self.streams:
            raise CorpusError(f"{self.name}: no feature stream; put <stream>.npy and <stream>.ids.txt into features/")
        for name, stream in self.streams.items():
            if len(stream) != len(self.clips):
                raise CorpusError(f"{self.name}: stream {name!r} has {len(stream)} clips, the corpus {len(self.clips)}")
            if not stream.packed or stream.values.nbytes > WHOLE:
                continue  # such a stream is checked clip by clip as it is read
            for row, clip in zip(stream.values, self.clips):
                if not np.isfinite(row).all():
                    raise CorpusError(
                        f"{stream.source}: NaN or infinity in the features of clip {clip!r}; "
                        f"extract it again or drop it"
                    )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of everything a run can see: ids, captions, splits and features."""
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
        """What there is, in a few lines: counts, splits, the shape of each stream, false negatives where known."""
        sizes = ", ".join(f"{name} {len(members)}" for name, members in self.splits.items())
        lines = [f"{self.name} ({self.fingerprint}): {len(self.clips)} clips ({sizes}), {len(self.captions)} captions"]
        for name, stream in self.streams.items():
            steps = stream.values.shape[1] if stream.packed else "?"
            lines.append(f"stream {name}: ({len(stream)} clips, {steps} steps, {stream.dim} dims)")
        if self.stories is not None:
            lines.append(self.stories.describe(len(self.clips)))
        if self.meaning is not None:
            pass  # which builds on this module

            share = 100 * self.false_negative_rate()
            lines.append(f"false negatives: a caption is also true of {share:.2f} % of the other clips")
        return "\n".join(lines)

    def id(self, clip: int) -> str:
        return self.clips[clip]

    def split(self, name: str) -> np.ndarray:
        """Positions of the clips of a split; CorpusError listing the splits where it is none of them."""
        if name not in self.splits:
            raise CorpusError(f"{self.name} has no split {name!r}; it has {listed(self.splits)}")
        return self.splits[name]

    def captions_of(self, clips: np.ndarray) -> pd.DataFrame:
        """The captions of these clips, ordered by clip as given, `caption` holding the position in the corpus."""
        place = pd.Series(range(len(clips)), index=clips)
        rows = self.captions.assign(caption=range(len(self.captions)), order=self.captions["clip"].map(place))
        rows = rows[rows["clip"].isin(clips)].sort_values("order", kind="stable")
        return rows.drop(columns="order").reset_index(drop=True)

    def features(self, streams: Sequence[str] = (), max_steps: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Early fusion (section 4.1): the streams of every clip side by side.

        Returns values (clips, M, ΣD) float32 and mask (clips, M) bool, M ≤ max_steps. A clip of more steps is averaged
        down to max_steps equal segments, so that its end is seen too; a stream of one step (a clip-level vector) is
        repeated along the others. `streams` empty: all of them, in the corpus's order.
        """
        chosen = list(streams) or list(self.streams)
        for name in chosen:
            if name not in self.streams:
                raise CorpusError(f"{self.name} has no stream {name!r}; it has {listed(self.streams)}")
        fused = [self._fuse(i, [self.streams[name] for name in chosen], max_steps) for i in range(len(self.clips))]
        steps = max(len(x) for x in fused)
        values = np.zeros((len(fused), steps, fused[0].shape[1]), np.float32)
        mask = np.zeros((len(fused), steps), bool)
        for i, x in enumerate(fused):
            values[i, : len(x)] = x
            mask[i, : len(x)] = True
        return values, mask

    def _fuse(self, index: int, streams: list[Stream], max_steps: int) -> np.ndarray:
        parts = [stream.clip(index) for stream in streams]
        steps = max(len(x) for x in parts)
        long = [len(x) for x in parts if len(x) > 1]
        if long and steps - min(long) > 1:  # encoders may round the last second differently, no more
            lengths = ", ".join(f"{stream.source}: {len(x)}" for stream, x in zip(streams, parts))
            raise CorpusError(f"{self.name}: streams of clip {self.clips[index]!r} differ in steps ({lengths})")
        steps = min(long, default=1)
        fused = np.concatenate([x[:steps] if len(x) > 1 else x.repeat(steps, 0) for x in parts], axis=1)
        if steps <= max_steps:
            return fused
        edges = np.arange(max_steps + 1) * steps // max_steps
        return np.add.reduceat(fused, edges[:-1], axis=0) / np.diff(edges)[:, None].astype(np.float32)

    def truth(self, captions: Sequence[int], clips: Sequence[int]) -> np.ndarray:
        """(captions, clips) bool: is this caption (row of `captions`) true of this clip? It is where the clip agrees
        with the caption's own in every attribute that the caption mentions. CorpusError for a corpus without `meaning`.
        """
        if self.meaning is None or "says" not in self.captions:
            raise CorpusError(f"{self.name}: what its clips show is not known; use the corpus 'shapes' or 'events'")
        rows = self.captions.iloc[np.asarray(captions)]
        true = np.ones((len(rows), len(clips)), bool)
        for name in self.meaning:
            value = pd.factorize(self.meaning[name])[0]
            silent = np.array([name not in says for says in rows["says"]], bool)
            true &= silent[:, None] | (value[rows["clip"]][:, None] == value[np.asarray(clips)][None, :])
        return true

    def false_negative_rate(self, split: str | None = None) -> float:
        """Measured share of false negatives: pairs of a caption and another clip of which it is true as well, among all
        pairs of a caption and another clip; of one split or of the whole corpus."""
        clips = np.arange(len(self.clips)) if split is None else self.split(split)
        captions = np.flatnonzero(self.captions["clip"].isin(clips))
        pairs = len(captions) * (len(clips) - 1)
        return float((self.truth(captions, clips).sum() - len(captions)) / pairs)
