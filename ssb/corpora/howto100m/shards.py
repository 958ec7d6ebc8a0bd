"""The shards of an index of narrations: how they are written, listed and read."""

import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.howto100m.narrations import UnusableError, checked, printable, state, videos
from ssb.corpora.reading import CorpusError, read_array, read_json
from ssb.progress import minutes

SHARD = 10_000  # videos
SMALL = 1 << 26  # bytes: a larger index is not read whole at every load


def listing(shards: Path) -> list[Path]:
    """The shards of an index, in order."""
    return sorted(shards.glob("[0-9]*"))


def finished(shards: Path) -> bool:
    """Whether the last shard of the narrations has been written."""
    done = listing(shards)
    return bool(done) and read_json(done[-1] / "shard.json")["last"]


def check_sound(index: Path):
    """CorpusError where a part of an index is not as it was written. A large one is read once, as long as size and time
    of change of its files are the same."""
    parts = [index / "found", *listing(index / "shards")]
    states = [(file, file.stat()) for part in parts for file in sorted(part.iterdir())]
    facts = repr([(str(file.resolve()), state.st_size, state.st_mtime_ns) for file, state in states])

    def look(draft: Path | None = None):
        for part in parts:
            if damage := files.damage(part):
                raise CorpusError(f"{part} is damaged ({damage}): run `ssb index` again")

    if sum(state.st_size for _, state in states) < SMALL:
        look()
    else:
        files.kept(files.cache() / "howto100m" / files.digest(facts), look)


def write_shards(source: Path, shards: Path, log: Callable[[str], None], size: int):
    """Write the narrations `source` in shards of `size` videos, after the shards that are already there. Shards of
    other narrations, or of another size, are deleted first."""
    now = state(source) | {"size": size}
    if (shards / "source.json").is_file() and read_json(shards / "source.json") != now:
        log(f"{source} has changed since it was indexed; it is indexed again")
        shutil.rmtree(shards.parent)
    whole = list(itertools.takewhile(lambda shard: not files.damage(shard), listing(shards)))
    for shard in listing(shards)[len(whole) :]:  # each begins where the one before it ends
        log(f"{files.short(shard)} is damaged or follows one that is; it is indexed again")
        shutil.rmtree(shard)
    shards.mkdir(parents=True, exist_ok=True)
    with files.written(shards / "source.json") as draft:
        draft.write_text(json.dumps(now))
    for left in shards.glob(".*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    if finished(shards):
        return
    count = len(listing(shards))
    position = start = read_json(shards / f"{count - 1:05d}" / "shard.json")["next"] if count else 0
    if count:
        log(f"continues after {count} shards")
    start_time, entries, ended = time.perf_counter(), videos(source, position), False
    while not ended:
        usable, skipped = [], []
        for name, entry, position in itertools.islice(entries, size):
            try:
                usable.append((*checked(name, entry), name.encode()))
            except UnusableError as error:
                skipped.append(f"{printable(name)}\t{printable(str(error))}\n")
        ended = len(usable) + len(skipped) < size
        write_shard(shards / f"{count:05d}", usable, skipped, {"next": position, "last": ended})
        count += 1
        left = (time.perf_counter() - start_time) * (now["of"] - position) / max(position - start, 1)
        log(f"shard {count}: {len(usable)} videos, {len(skipped)} skipped; {minutes(left)} left")


def write_shard(path: Path, videos: list[tuple], skipped: list[str], facts: dict):
    """Write a shard (see `ssb.corpora.howto100m.index`). videos: for each the times (m, 2) and the words of its
    narrations, and its id; skipped: the lines of skipped.txt; facts: the content of shard.json."""
    times, words, ids = zip(*videos) if videos else ((), (), ())
    lines = list(itertools.chain.from_iterable(words))
    digests = (hashlib.blake2b(b"\n".join([i, t.tobytes(), *w]), digest_size=8).digest() for t, w, i in videos)
    arrays = {
        "ids": np.array(ids, "S"),
        "first": np.cumsum([0, *map(len, words)], dtype=np.int64),
        "times": np.concatenate([np.empty((0, 2), np.float32), *times]),
        "offsets": np.cumsum([0, *(len(line) + 1 for line in lines)], dtype=np.int64),
        "digest": np.frombuffer(b"".join(digests), "<u8"),
    }
    with files.written(path, sealed=True) as draft:
        draft.mkdir()
        for name, values in arrays.items():
            np.save(draft / f"{name}.npy", values, allow_pickle=False)
        with open(draft / "text.txt", "wb") as file:
            file.writelines(line + b"\n" for line in lines)
        (draft / "skipped.txt").write_text("".join(skipped), encoding="utf-8")
        (draft / "shard.json").write_text(json.dumps(facts))


class Rows:
    """Rows of a .npy file, (n, …), each read from the disk on request. The pages of a memory map would stay in memory:
    over an epoch, the whole file. CorpusError where the file is not complete or in Fortran order."""

    def __init__(self, path: Path):
        mapped = read_array(path)  # reads the header alone
        if not mapped.flags.c_contiguous:
            raise CorpusError(f"{path}: is in Fortran order; save it with numpy.ascontiguousarray")
        self.path, self.offset, self.dtype, self.shape = path, mapped.offset, mapped.dtype, mapped.shape

    def read(self, begin: int, end: int, *within: int) -> np.ndarray:
        """Rows begin to end, (end - begin, …); with `within`, these rows of row `within` of the file. CorpusError where
        they are not all there."""
        inner = self.shape[len(within) + 1 :]
        size = math.prod(inner)
        skipped = begin + (within[0] * self.shape[1] if within else 0)
        offset = self.offset + skipped * size * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, (end - begin) * size, offset=offset)
        if values.size != (end - begin) * size:
            raise CorpusError(f"{self.path}: cut short since it was opened; copy it again")
        return values.reshape(end - begin, *inner)


class Shard:
    """The narrations of the videos of a shard; a row is a video's position in it."""

    def __init__(self, path: Path):
        self.path = path
        self.ids, self.first = read_array(path / "ids.npy"), read_array(path / "first.npy")  # memory-mapped
        self.times, self.offsets = Rows(path / "times.npy"), Rows(path / "offsets.npy")

    def count(self, row: int) -> int:
        """The number of narrations of a video."""
        return int(self.first[row + 1] - self.first[row])

    def times_of(self, row: int) -> np.ndarray:
        """(m, 2) float32: the seconds at which the narrations of a video begin and end."""
        return self.times.read(*self.first[row : row + 2].tolist())

    def texts_of(self, row: int, which: np.ndarray) -> list[str]:
        """The words of some narrations of a video, `which`: positions in ascending order. CorpusError where the shard
        is damaged."""
        begin = int(self.first[row])
        edges = self.offsets.read(begin + int(which[0]), begin + int(which[-1]) + 2)
        with open(self.path / "text.txt", "rb") as file:
            file.seek(edges[0])
            content = file.read(edges[-1] - edges[0])
        edges, which = edges - edges[0], which - which[0]
        try:
            texts = [content[edges[i] : edges[i + 1] - 1].decode() for i in which]
        except UnicodeDecodeError:
            texts = []
        if len(content) != edges[-1] or not all(texts):
            raise CorpusError(f"{self.path}: damaged; delete the folder index/ and run `ssb index` again")
        return texts
