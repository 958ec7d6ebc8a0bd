"""The shards of an index of narrations: how they are written, listed and read."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.howto100m.narrations import Unfit, checked, printable, state, videos
from ssb.corpora.reading import CorpusError, read_array, read_json
from ssb.progress import minutes

SHARD = 10_000  # videos


# Shards


def listing(shards: Path) -> list[Path]:
    return sorted(shards.glob("[0-9]*"))


def finished(shards: Path) -> bool:
    done = listing(shards)
    return bool(done) and read_json(done[-1] / "shard.json")["last"]


def write_shards(source: Path, shards: Path, say: Callable[[str], None], size: int):
    told = state(source) | {"size": size}
    if (shards / "source.json").is_file() and read_json(shards / "source.json") != told:
        say(f"{source} is another than the index was begun from; it is made anew")
        shutil.rmtree(shards.parent)
    shards.mkdir(parents=True, exist_ok=True)
    with files.written(shards / "source.json") as draft:
        draft.write_text(json.dumps(told))
    for left in shards.glob(".*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    if finished(shards):
        return
    done = listing(shards)
    place = begun_at = read_json(done[-1] / "shard.json")["next"] if done else 0
    if done:
        say(f"goes on after {len(done)} shards")
    begun = time.perf_counter()
    coming = videos(source, place)
    ended = False
    while not ended:
        shard = Draft()
        for name, entry, place in coming:
            shard.add(name, entry)
            if shard.read == size:
                break
        else:
            ended = True
        done.append(shards / f"{len(done):05d}")
        shard.write(done[-1], place, ended)
        spent, share = time.perf_counter() - begun, max(place - begun_at, 1) / max(told["of"] - begun_at, 1)
        left = minutes(spent / share - spent)
        say(f"shard {len(done)}: {len(shard.ids)} videos, {len(shard.skipped)} skipped; {left} left")


class Draft:
    """A shard in the making."""

    def __init__(self):
        self.read = self.empty = 0
        self.ids, self.times, self.counts, self.lines, self.digests, self.skipped = [], [], [], [], [], []

    def add(self, name: str, entry):
        self.read += 1
        try:
            times, lines, empty = checked(name, entry)
        except Unfit as error:
            self.skipped.append(f"{printable(name)}\t{printable(str(error))}\n")
            return
        content = b"\n".join([name.encode(), times.tobytes(), *lines])
        self.digests.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))
        self.ids.append(name.encode())
        self.times.append(times)
        self.counts.append(len(lines))
        self.lines += lines
        self.empty += empty

    def write(self, path: Path, place: int, last: bool):
        sizes = np.fromiter((len(line) + 1 for line in self.lines), np.int64, len(self.lines))
        arrays = {
            "ids": np.array(self.ids, "S"),
            "first": np.cumsum([0, *self.counts], dtype=np.int64),
            "times": np.concatenate([np.empty((0, 2), np.float32), *self.times]),
            "offsets": np.cumsum(np.concatenate([[0], sizes]), dtype=np.int64),
            "digest": np.array(self.digests, np.uint64),
        }
        with files.written(path) as draft:
            draft.mkdir()
            for name, values in arrays.items():
                np.save(draft / f"{name}.npy", values, allow_pickle=False)
            with open(draft / "text.txt", "wb") as file:
                file.writelines(line + b"\n" for line in self.lines)
            (draft / "skipped.txt").write_text("".join(self.skipped), encoding="utf-8")
            facts = {"next": place, "last": last, "empty": self.empty, "skipped": len(self.skipped)}
            (draft / "shard.json").write_text(json.dumps(facts))


class Rows:
    """Rows of a .npy file, (n, …), each read from the disk when it is asked for. The pages of a memory map would stay
    in the process: over an epoch, the whole file."""

    def __init__(self, path: Path):
        mapped = read_array(path)  # for what its head says; nothing else of it is read
        if mapped.ndim > 1 and not mapped.flags.c_contiguous:
            raise CorpusError(f"{path}: is in Fortran's order; save it with numpy.ascontiguousarray")
        self.path, self.offset, self.dtype, self.shape = path, mapped.offset, mapped.dtype, mapped.shape

    def read(self, begin: int, end: int, *within: int) -> np.ndarray:
        """Rows begin to end; of row `within` of the file, where one is given."""
        inner = self.shape[len(within) + 1 :]
        size = math.prod(inner)
        skipped = begin + (within[0] * self.shape[1] if within else 0)
        offset = self.offset + skipped * size * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, (end - begin) * size, offset=offset)
        if values.size != (end - begin) * size:
            raise CorpusError(f"{self.path}: cut short since it was opened; copy it again")
        return values.reshape(end - begin, *inner)


class Shard:
    """A shard that `Draft` wrote."""

    def __init__(self, path: Path):
        self.path = path
        self.ids, self.first = read_array(path / "ids.npy"), read_array(path / "first.npy")  # memory-mapped
        self.times, self.offsets = Rows(path / "times.npy"), Rows(path / "offsets.npy")

    def count(self, row: int) -> int:
        """How many narrations a video has."""
        return int(self.first[row + 1] - self.first[row])

    def times_of(self, row: int) -> np.ndarray:
        """(m, 2) seconds of the narrations of a video."""
        return self.times.read(*self.first[row : row + 2].tolist())

    def texts_of(self, row: int, which: np.ndarray) -> list[str]:
        """The words of those of its narrations, positions in ascending order."""
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
