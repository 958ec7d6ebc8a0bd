"""HowTo100M (Miech et al., 2019), 1.2 million videos and 136 million narrations, as a corpus that stays on disk.

    ssb index [FOLDER] [--held-out 1000]        FOLDER: $SSB_DATA/howto100m

indexes FOLDER/caption.json or FOLDER/captions/ (see `ssb.narrations`) once, shard by shard: a killed one goes on. Then,
anew each time, it looks which videos have features, for a part of HowTo100M is always gone, and what more features are
there the next time counts. Videos that are left out, those without features too, are listed in
FOLDER/index/skipped.txt, each with the reason.

Official are the narrations. The features are yours, one step a second, in any of three forms:

    features/<stream>/<video>.npy           (steps, dim) float16 or float32
    features/<stream>/<ab>/<video>.npy      the same in folders named by the first two characters of the ids
    features/<stream>/<shard>.npy           (videos, steps, dim), with <shard>.ids.txt and perhaps <shard>.lengths.txt,
                                            as in `ssb.corpora.features.packed_stream`; any number of shards

Held out for `val` and `test` are 1,000 videos each, or 5 % of a small corpus, by a hash of the id: our choice, there is
no official split. So are the windows of a video that make its pairs (`HowTo100M.window`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.howto100m import narrations
from ssb.corpora.howto100m.shards import SHARD, finished, listing, write_shards
from ssb.corpora.reading import CorpusError, check_array, listed, read_array

HELD_OUT = 1_000


# The index


def index(folder: Path, held_out: int = HELD_OUT, say: Callable[[str], None] = print, shard: int = SHARD):
    """Make FOLDER/index/: `shards/<number>/` of the narrations, `found/` of the videos that have features, skipped.txt.

    A shard of n videos with m narrations is ids.npy (n,) bytes; first.npy (n + 1,) int64: video i has the narrations
    first[i] to first[i + 1]; times.npy (m, 2) float32: seconds; text.txt: a narration a line, UTF-8; offsets.npy
    (m + 1,) int64: the bytes at which lines begin; digest.npy (n,) uint64 of each video; skipped.txt; and shard.json.
    """
    folder = Path(folder)
    shards = folder / "index" / "shards"
    try:
        source = narrations.source(folder)
    except CorpusError:
        if not finished(shards):
            raise
        say(f"{folder}: the narrations have been indexed and are gone; the index is used")
    else:
        write_shards(source, shards, say, shard)
    find(folder, held_out, say)


# Which videos have features


def find(folder: Path, held_out: int, say: Callable[[str], None]):
    """Write index/found/ and index/skipped.txt. `found` holds, for the N videos that can be used, in the order of their
    ids: rows.npy (N,) the video's place in the index, steps.npy (N,) how many seconds of it have features,
    <stream>.place.npy (N, 2) where they are, and train.npy, val.npy, test.npy, which of the N."""
    shards = listing(folder / "index" / "shards")
    ids = np.concatenate([read_array(shard / "ids.npy") for shard in shards])
    order = np.argsort(ids, kind="stable")
    skipped = [line for shard in shards for line in (shard / "skipped.txt").read_text(encoding="utf-8").splitlines()]
    if not len(ids):
        raise CorpusError(f"{folder}: none of its {len(skipped)} videos can be used: {listed(skipped, 3)}")
    wanted = np.ones(len(ids), bool)
    wanted[order[1:]] = ids[order[1:]] != ids[order[:-1]]
    skipped += [f"{name.decode()}\tis there twice; the first is used" for name in ids[~wanted]]
    annotated = int(wanted.sum())

    paths = sorted(path for path in folder.glob("features/[!.]*/") if path.is_dir())
    if not paths:
        raise CorpusError(f"{folder / 'features'}: no feature stream; put <stream>/<video>.npy there")
    places, streams, steps, unread = {}, {}, None, set()
    for path in paths:
        say(f"looking for features in {path}")
        place, length, facts, broken = located(path, ids, order)
        skipped += [f"{name}\t{why}" for name, why in broken]
        unread |= {name.encode() for name, _ in broken}
        places[path.name], streams[path.name] = place, facts
        if steps is not None:
            apart = (np.abs(steps - length) > 1) & (steps > 0) & (length > 0) & wanted
            skipped += [f"{name.decode()}\tstreams differ in steps" for name in ids[apart]]
            wanted &= ~apart
            length = np.minimum(steps, length)
        steps = length
    featured = int((wanted & (steps > 0)).sum())
    bare = (name for name in ids[wanted & (steps == 0)] if name not in unread)
    skipped += [f"{name.decode()}\tno features" for name in bare]
    late = wanted & (steps > 0) & (np.floor(begins(shards)) >= steps)
    skipped += [f"{name.decode()}\tfeatures end before its first narration" for name in ids[late]]
    usable = wanted & (steps > 0) & ~late

    rows = order[usable[order]]
    if len(rows) < 4:
        raise CorpusError(
            f"{folder}: {len(rows)} of {annotated} videos have narrations and features; wanted at least 4"
            + (f" ({listed(skipped, 3)})" if skipped else "")
        )
    hashes = np.fromiter((int(files.digest(name), 16) for name in ids[rows]), np.int64, len(rows))
    hashed = np.argsort(hashes, kind="stable")
    count = min(held_out, max(1, len(rows) // 20))
    splits = {"val": hashed[:count], "test": hashed[count : 2 * count], "train": np.sort(hashed[2 * count :])}
    digests = np.concatenate([read_array(shard / "digest.npy") for shard in shards])
    sha = hashlib.sha256(ids[rows].tobytes() + digests[rows].tobytes() + steps[rows].tobytes())
    sha.update(b"".join(np.sort(splits[name]).tobytes() for name in ("train", "val", "test")))
    facts = {"sha": sha.hexdigest(), "annotated": annotated, "skipped": len(skipped), "streams": streams}
    found = folder / "index" / "found"
    shutil.rmtree(found, ignore_errors=True)
    with files.written(folder / "index" / "skipped.txt") as draft:
        draft.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    with files.written(found) as draft:
        draft.mkdir()
        np.save(draft / "rows.npy", rows.astype(np.int64))
        np.save(draft / "steps.npy", steps[rows])
        for name, members in splits.items():
            np.save(draft / f"{name}.npy", members.astype(np.int64))
        for name, place in places.items():
            np.save(draft / f"{name}.place.npy", place[rows])
        (draft / "found.json").write_text(json.dumps(facts, indent=1))
    without = annotated - featured
    say(f"{annotated} videos with narrations, {without} of them ({100 * without / annotated:.1f} %) without features")
    say(f"{len(rows)} can be used: train {len(splits['train'])}, val {count}, test {count}")
    if skipped:
        say(f"{len(skipped)} skipped, listed in {files.short(folder / 'index' / 'skipped.txt')}")


def begins(shards: list[Path]) -> np.ndarray:
    """(n,) the second at which the first narration of each video begins."""
    parts = []
    for shard in shards:
        first, times = read_array(shard / "first.npy"), read_array(shard / "times.npy")
        parts.append(np.minimum.reduceat(times[:, 0], first[:-1]) if len(times) else np.empty(0, np.float32))
    return np.concatenate(parts)


def located(path: Path, ids: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict, list]:
    """Where the features of each video are, (n, 2) int32: shard and row in it, or of a file 0 or, in a two-letter
    folder, 1; -1 where there are none. How many steps (n,) int32, what kind of stream, and (video, what is wrong with
    its features)."""
    place, steps, broken = np.full((len(ids), 2), -1, np.int32), np.zeros(len(ids), np.int32), []
    names = sorted(file.name.removesuffix(".ids.txt") for file in path.glob("[!.]*.ids.txt"))
    ascending, dim = ids[order], None
    check_shards(path, names, ascending)
    for number, name in enumerate(names):
        source = path / f"{name}.npy"
        values, held, lengths = packed(source)
        dim = dim or values.shape[2]
        if values.shape[2] != dim:
            raise CorpusError(f"{source}: shape {values.shape}; wanted (videos, steps, {dim}) as {names[0]}.npy")
        at = np.minimum(np.searchsorted(ascending, held), len(ids) - 1)
        known = ascending[at] == held
        rows = order[at[known]]
        if (place[rows] >= 0).any():
            twice = [name.decode() for name in ids[rows][place[rows, 0] >= 0]]
            raise CorpusError(f"{source}: video {listed(twice)} is in another shard too; keep one of each")
        place[rows] = np.stack([np.full(len(rows), number), np.flatnonzero(known)], axis=1)
        steps[rows] = lengths[known]
    for row, name in enumerate(ids if not names else []):
        found = [(nested, file) for nested in (0, 1) if (file := one_file(path, name.decode(), nested)).is_file()]
        try:
            for nested, file in found[:1]:
                check_array(values := read_array(file), file, "steps, dim")
                dim = dim or values.shape[1]
                if values.shape[1] != dim:
                    raise CorpusError(f"{file}: shape {values.shape}; wanted (steps, {dim}) as the first file")
                place[row], steps[row] = (nested, 0), len(values)
        except CorpusError as error:
            broken.append((name.decode(), narrations.printable(str(error))))
    return place, steps, {"dim": dim, "shards": names}, broken


def check_shards(path: Path, names: list[str], ascending: np.ndarray):
    """CorpusError where part of a stream would be passed over: a shard without its list of ids, or files of single
    videos beside shards. names: the shards that have a list; ascending: (n,) the videos, bytes."""
    known = set(names) if names else {name.decode() for name in ascending}
    for file in os.scandir(path):
        name = file.name.removesuffix(".npy")
        if name != file.name and name[0] != "." and name not in known and (names or is_shard(Path(file))):
            raise CorpusError(
                f"{file.path}: no {name}.ids.txt beside it; write the video id of each of its rows, one a line"
            )
    if names and (file := next(path.glob("[!.]?/*.npy"), None)):
        raise CorpusError(f"{file}: a video's own file in a stream of shards; put it into a shard or another stream")


def is_shard(path: Path) -> bool:
    """Of a file that bears no video's name: (videos, steps, dim), and not the features of a video that says nothing."""
    try:
        return read_array(path).ndim == 3
    except CorpusError:
        return False


def one_file(path: Path, name: str, nested: int) -> Path:
    return path / name[:2] / f"{name}.npy" if nested else path / f"{name}.npy"


def packed(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shard of features, memory-mapped, its ids (n,) bytes and lengths (n,)."""
    check_array(values := read_array(path), path, "videos, steps, dim")
    if not values.flags.c_contiguous:
        raise CorpusError(f"{path}: is in Fortran's order; save it with numpy.ascontiguousarray")
    ids = np.array(path.with_suffix(".ids.txt").read_bytes().split())
    if len(ids) != len(values) or len(np.unique(ids)) != len(ids):
        raise CorpusError(f"{path.with_suffix('.ids.txt')}: wanted {len(values)} different ids, one for each row")
    lengths = np.full(len(ids), values.shape[1])
    if (extra := path.with_suffix(".lengths.txt")).is_file():
        try:
            lengths = np.array(extra.read_text().split(), np.int64).reshape(len(ids))
        except ValueError:
            raise CorpusError(f"{extra}: wanted {len(ids)} whole numbers, one a line") from None
        if lengths.min() < 1 or lengths.max() > values.shape[1]:
            raise CorpusError(f"{extra}: lengths must be from 1 to {values.shape[1]}")
    return values, ids, lengths


def is_here(folder: Path) -> bool:
    """Whether a folder is meant to hold HowTo100M, and no corpus of one's own."""
    inside = any((folder / name).exists() for name in ("index", "caption.json", "captions"))
    return folder.is_dir() and (inside or folder.name == "howto100m") and not (folder / "captions.csv").is_file()
