"""HowTo100M read window by window from its index on disk."""

import functools
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.howto100m.index import one_file
from ssb.corpora.howto100m.shards import Rows, Shard, check_sound, listing
from ssb.corpora.reading import CorpusError, chosen, entry, read_array, read_json, sizes

SAMPLED = 256  # videos whose features are part of the fingerprint


class Features:
    """A stream of HowTo100M. position: (N, 2), where the features of each video are; dim: their width; shards: names of
    the shards, empty where each video has a file of its own. See `ssb.corpora.howto100m.index.located`."""

    def __init__(self, path: Path, position: np.ndarray, dim: int, shards: list[str]):
        self.path, self.position, self.dim, self.shards = path, position, dim, shards
        self.shard = functools.cache(lambda number: Rows(path / f"{shards[number]}.npy"))  # opened once

    def read(self, video: int, name: str, begin: int, end: int) -> np.ndarray:
        """(end - begin, dim) float32, the seconds begin to end of a video with this id. CorpusError, naming the file,
        where they are not all there and finite."""
        number, row = self.position[video].tolist()
        rows = self.shard(number) if self.shards else Rows(one_file(self.path, name, number))
        within = (row,) if self.shards else ()
        if len(rows.shape) != 2 + len(within) or rows.shape[-1] != self.dim or rows.shape[-2] < end:
            raise CorpusError(
                f"{rows.path}: shape {rows.shape}; wanted {self.dim} wide and at least {end} steps, as it was when it "
                f"was indexed; copy it again or run `ssb index` again"
            )
        values = rows.read(begin, end, *within).astype(np.float32)
        if not np.isfinite(values).all():
            raise CorpusError(
                f"{rows.path}: NaN or infinity in video {name!r}, steps {begin} to {end}; extract it again or delete "
                f"it and run `ssb index` again"
            )
        return values


class HowTo100M:
    """The indexed videos that have features, N of them, numbered in the order of their ids.

    It replaces `Corpus` in training, where `ssb.training.streamed.Streamed` reads batches from it. CorpusError where
    the folder has no index, and for what only a `Corpus` has, which is in memory.
    """

    meaning = frames = stories = classes = None  # as of a `Corpus` of which they are not known
    in_memory = drawn = False

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = self.folder / "index"
        usable = index / "found"
        if not (usable / "found.json").is_file():
            raise CorpusError(f"{index}: no index; run `ssb index {self.folder}`")
        check_sound(index)
        self.name = self.folder.resolve().name
        self.facts = read_json(usable / "found.json")
        self.rows, self.steps = read_array(usable / "rows.npy"), read_array(usable / "steps.npy")
        self.splits = {name: read_array(usable / f"{name}.npy") for name in ("train", "val", "test")}
        self.shards = [Shard(path) for path in listing(index / "shards")]
        self.first = np.cumsum([0, *(len(shard.ids) for shard in self.shards)])  # row of each shard in the index
        self.streams = {
            name: Features(self.folder / "features" / name, read_array(usable / f"{name}.place.npy"), **facts)
            for name, facts in self.facts["streams"].items()
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self):  # another process opens the folder again
        return reopened, (self.folder.absolute(), self.facts["sha"])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of all ids, narrations, lengths and splits, and of the first step of the
        features of at most SAMPLED videos."""
        parts = [self.facts["sha"]]
        for name, stream in self.streams.items():
            parts += [name, *(stream.read(i, self.id(i), 0, 1).tobytes() for i in spaced(len(self), SAMPLED))]
        return files.digest(*parts)

    def describe(self) -> str:
        """The corpus in a few lines: counts, splits, the width of each stream."""
        counted = f"{len(self)} of {self.facts['annotated']} videos have features ({sizes(self.splits)})"
        streams = [f"stream {name}: {stream.dim} dims" for name, stream in self.streams.items()]
        return "\n".join([f"{self.name} ({self.fingerprint}): {counted}", *streams])

    def split(self, name: str) -> np.ndarray:
        """The videos of a split; CorpusError listing the splits where it is none of them."""
        return entry(self.splits, name, self.name, "split")

    def chosen(self, streams=()) -> list[Features]:
        """These streams, or all; CorpusError listing the streams where one does not exist."""
        return chosen(self.streams, streams, self.name)

    def locate(self, video: int) -> tuple[Shard, int]:
        """The shard with the narrations of a video, and the video's row in it."""
        row = int(self.rows[video])
        number = int(np.searchsorted(self.first, row, "right")) - 1
        return self.shards[number], row - int(self.first[number])

    def id(self, video: int) -> str:
        """The YouTube id of a video."""
        shard, row = self.locate(video)
        return shard.ids[row].decode()

    video_of = id  # whose clips are windows of the video

    def narrations(self, video: int) -> tuple[np.ndarray, list[str]]:
        """Begin and end in seconds (m, 2) float32, and words, of all narrations of a video."""
        shard, row = self.locate(video)
        times = shard.times_of(row)
        return times, shard.texts_of(row, np.arange(len(times)))

    def window(self, video: int, most: int, *seed: int) -> tuple[int, int, str]:
        """Begin and end of a window of at most `most` seconds of a video, and its caption: all narrations that overlap
        it, joined.

        Ours: the paper does not say how it draws pairs from HowTo100M, and Miech et al. (2019) take single narrations
        of a few seconds. The window begins with a narration drawn uniformly, so that no window is without words, or
        earlier where the features would end before the window; the draw depends on `seed` and the video's id alone.
        """
        shard, row = self.locate(video)
        times, steps = shard.times_of(row), int(self.steps[video])
        starts = np.floor(times[:, 0]).astype(int)
        rng = np.random.default_rng((*seed, int.from_bytes(shard.ids[row])))
        begin = max(0, min(int(rng.choice(starts[starts < steps])), steps - most))
        end = min(begin + most, steps)
        return begin, end, " ".join(shard.texts_of(row, np.flatnonzero(overlapping(times, begin, end))))

    def _in_memory(self):
        """What only a corpus in memory has: CorpusError that says so."""
        raise CorpusError(
            f"{self.name} is read from disk window by window; this needs a corpus in memory, such as shapes"
        )

    clips = captions = captions_of = features = truth = false_negative_rate = property(_in_memory)

    def window_features(self, video: int, streams: list[Features], begin: int, end: int) -> np.ndarray:
        """(end - begin, ΣD) float32: early fusion (section 4.1) of a window."""
        name = self.id(video)
        return np.concatenate([stream.read(video, name, begin, end) for stream in streams], axis=1)


def reopened(folder: Path, sha: str) -> HowTo100M:
    """The corpus of a folder, if its index is still the same; else CorpusError."""
    corpus = HowTo100M(folder)
    if corpus.facts["sha"] != sha:
        raise CorpusError(f"{folder}: was indexed again while it was being read; start again")
    return corpus


def spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def overlapping(times: np.ndarray, begin: int, end: int) -> np.ndarray:
    """(m,) bool: which narrations (m, 2) overlap the seconds from begin to end; one of no duration if it is within."""
    return (times[:, 0] < end) & ((times[:, 1] > begin) | (times[:, 0] >= begin))
