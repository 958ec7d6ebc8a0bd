"""HowTo100M read window by window from its index on disk."""

import functools
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.howto100m.index import one_file
from ssb.corpora.howto100m.shards import Rows, Shard, listing
from ssb.corpora.reading import CorpusError, listed, read_array, read_json

SAMPLED = 256  # videos whose features are part of the fingerprint


# The corpus


class Features:
    """A stream of HowTo100M. `place`: (N, 2), as `located` gives it, of the videos of the corpus."""

    def __init__(self, path: Path, place: np.ndarray, dim: int, shards: list[str]):
        self.path, self.place, self.dim, self.shards = path, place, dim, shards
        self.open: dict[int, Rows] = {}

    def read(self, video: int, name: str, begin: int, end: int) -> np.ndarray:
        """(end - begin, dim) float32, the seconds begin to end of a video. CorpusError where they are not all there and
        finite, naming the file."""
        number, row = self.place[video].tolist()
        if self.shards:
            path = self.path / f"{self.shards[number]}.npy"
            if number not in self.open:
                self.open[number] = Rows(path)
            rows, within = self.open[number], (row,)
        else:
            path = one_file(self.path, name, number)
            rows, within = Rows(path), ()
        known = rows.shape[-2]
        if rows.shape[-1] != self.dim or known < end or len(rows.shape) != 2 + len(within):
            raise CorpusError(
                f"{path}: shape {rows.shape}; wanted {self.dim} wide and at least {end} steps, as it was when it was "
                f"indexed; copy it again or run `ssb index` again"
            )
        values = rows.read(begin, end, *within).astype(np.float32)
        if not np.isfinite(values).all():
            raise CorpusError(
                f"{path}: NaN or infinity in video {name!r}, steps {begin} to {end}; extract it again or delete it and "
                f"run `ssb index` again"
            )
        return values


class HowTo100M:
    """The indexed videos that have features, N of them, known by their place in the order of the ids.

    For training it takes the place of `Corpus`; `ssb.streamed.Streamed` is what reads batches from it.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        found = self.folder / "index" / "found"
        if not (found / "found.json").is_file():
            raise CorpusError(f"{found.parent}: no index; run `ssb index {self.folder}`")
        self.name = self.folder.resolve().name
        self.facts = read_json(found / "found.json")
        self.rows, self.steps = read_array(found / "rows.npy"), read_array(found / "steps.npy")
        self.splits = {name: read_array(found / f"{name}.npy") for name in ("train", "val", "test")}
        self.shards = [Shard(path) for path in listing(found.parent / "shards")]
        self.bounds = np.cumsum([len(shard.ids) for shard in self.shards])
        self.streams = {
            name: Features(self.folder / "features" / name, read_array(found / f"{name}.place.npy"), **facts)
            for name, facts in self.facts["streams"].items()
        }

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits: of all ids, narrations, lengths and splits, and the first step of some of the features."""
        parts = [self.facts["sha"]]
        for name, stream in self.streams.items():
            sample = np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int)
            parts += [name, *(stream.read(i, self.id(i), 0, 1).tobytes() for i in sample)]
        return files.digest(*parts)

    def describe(self) -> str:
        """What there is, in a few lines."""
        sizes = ", ".join(f"{name} {len(members)}" for name, members in self.splits.items())
        counted = f"{len(self)} of {self.facts['annotated']} videos have features ({sizes})"
        return "\n".join(
            [
                f"{self.name} ({self.fingerprint}): {counted}",
                *(f"stream {name}: {stream.dim} dims" for name, stream in self.streams.items()),
            ]
        )

    def split(self, name: str) -> np.ndarray:
        """The videos of a split; CorpusError listing the splits where it is none of them."""
        if name not in self.splits:
            raise CorpusError(f"{self.name} has no split {name!r}; it has {listed(self.splits)}")
        return self.splits[name]

    def chosen(self, streams=()) -> list[Features]:
        """These streams, or all; CorpusError where there is none of the name."""
        for name in streams:
            if name not in self.streams:
                raise CorpusError(f"{self.name} has no stream {name!r}; it has {listed(self.streams)}")
        return [self.streams[name] for name in streams or self.streams]

    def place(self, video: int) -> tuple[Shard, int]:
        """The shard that has its narrations, and the row in it."""
        row = int(self.rows[video])
        number = int(np.searchsorted(self.bounds, row, "right"))
        return self.shards[number], row - int(self.bounds[number - 1] if number else 0)

    def id(self, video: int) -> str:
        shard, row = self.place(video)
        return shard.ids[row].decode()

    def narrations(self, video: int) -> tuple[np.ndarray, list[str]]:
        """Seconds (m, 2) and words of all narrations of a video."""
        shard, row = self.place(video)
        times = shard.times_of(row)
        return times, shard.texts_of(row, np.arange(len(times)))

    def window(self, video: int, most: int, *seed: int) -> tuple[int, int, str]:
        """A window of at most `most` seconds of a video, and as its caption all narrations that overlap it, joined.

        Ours: the paper does not say how it draws pairs from HowTo100M, and Miech et al. (2019) take single narrations
        of a few seconds. The window begins with a narration, each as likely as the next, so that none is without words,
        or earlier where the features would end before the window; drawn from `seed` and the video's id alone.
        """
        shard, row = self.place(video)
        times, steps = shard.times_of(row), int(self.steps[video])
        starts = np.floor(times[:, 0]).astype(int)
        rng = np.random.default_rng((*seed, int.from_bytes(shard.ids[row])))
        begin = max(0, min(int(rng.choice(starts[starts < steps])), steps - most))
        end = min(begin + most, steps)
        return begin, end, " ".join(shard.texts_of(row, np.flatnonzero(overlapping(times, begin, end))))

    def features(self, video: int, streams: list[Features], begin: int, end: int) -> np.ndarray:
        """(end - begin, ΣD) float32: early fusion (section 4.1) of a window."""
        name = self.id(video)
        return np.concatenate([stream.read(video, name, begin, end) for stream in streams], axis=1)


def overlapping(times: np.ndarray, begin: int, end: int) -> np.ndarray:
    """(m,) bool: which narrations (m, 2) share time with the seconds from begin to end, or are a moment within them."""
    return (times[:, 0] < end) & ((times[:, 1] > begin) | (times[:, 0] >= begin))
