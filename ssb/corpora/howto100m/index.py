"""HowTo100M (Miech et al., 2019), 1.2 million videos and 136 million narrations, as a corpus that stays on disk.

    ssb index [FOLDER] [--held-out 1000]        FOLDER: $SSB_DATA/howto100m

indexes FOLDER/caption.json or FOLDER/captions/ (see `ssb.corpora.howto100m.narrations`) once, shard by shard, and
continues after it was killed. Then, in every call, it looks which videos have features: some videos of HowTo100M are
always unavailable, and features that are added later count in the next call. Videos that are left out, also those
without features, are listed in FOLDER/index/skipped.txt, each with the reason.

The narrations are the official ones. The features are yours, one step per second, in any of three forms:

    features/<stream>/<video>.npy           (steps, dim) float16 or float32
    features/<stream>/<ab>/<video>.npy      the same in folders named by the first two characters of the ids
    features/<stream>/<shard>.npy           (videos, steps, dim), with <shard>.ids.txt and an optional
                                            <shard>.lengths.txt, as in `ssb.corpora.features`; any number of shards

`val` and `test` are 1,000 videos each, or 5 % of a small corpus, chosen by a hash of the id: our choice, as there is no
official split. So are the windows of a video that make its pairs (`HowTo100M.window`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora import features
from ssb.corpora.howto100m import narrations
from ssb.corpora.howto100m.shards import SHARD, Rows, finished, listing, write_shards
from ssb.corpora.reading import CorpusError, check_array, listed, read_array

HELD_OUT = 1_000


# The index


def index(folder: Path, held_out: int = HELD_OUT, log: Callable[[str], None] = print, shard: int = SHARD):
    """Make FOLDER/index/: `shards/<number>/` of the narrations, `found/` of the videos that have features, skipped.txt.

    A shard of n videos with m narrations is ids.npy (n,) bytes; first.npy (n + 1,) int64: video i has the narrations
    first[i] to first[i + 1]; times.npy (m, 2) float32: seconds; text.txt: a narration per line, UTF-8; offsets.npy
    (m + 1,) int64: the bytes at which lines begin; digest.npy (n,) uint64, a hash of each video; skipped.txt; and
    shard.json. CorpusError where the narrations or the features cannot be read.
    """
    folder = Path(folder)
    shards = folder / "index" / "shards"
    with files.lock(folder / "index", lambda holder: log(f"{folder} is being indexed by {holder}; waiting for it")):
        try:
            source = narrations.source(folder)
        except CorpusError:
            if not finished(shards) or any(map(files.damage, listing(shards))):
                raise
            log(f"{folder}: the narrations have been indexed and deleted; the index is used")
        else:
            write_shards(source, shards, log, shard)
        find(folder, held_out, log)


# Which videos have features


def find(folder: Path, held_out: int, log: Callable[[str], None]):
    """Write index/found/ and index/skipped.txt. index/found/ has, for the N videos that can be used, in the order of
    their ids: rows.npy (N,) the video's row in the index, steps.npy (N,) how many seconds of it have features,
    <stream>.place.npy (N, 2) where they are, and train.npy, val.npy, test.npy, which of the N."""
    shards = listing(folder / "index" / "shards")
    indexed, digests = (np.concatenate([read_array(x / f"{name}.npy") for x in shards]) for name in ("ids", "digest"))
    skipped = [line for shard in shards for line in (shard / "skipped.txt").read_text(encoding="utf-8").splitlines()]
    if not len(indexed):
        raise CorpusError(f"{folder}: none of its {len(skipped)} videos can be used: {listed(skipped, 3)}")
    ids, rows = np.unique(indexed, return_index=True)  # sorted ids, and the first row of each

    def skip(names: Iterable[bytes], why: str):
        skipped.extend(f"{name.decode()}\t{why}" for name in names)

    skip(np.delete(indexed, rows), "is there twice; the first is used")
    paths = sorted(folder.glob("features/[!.]*/"))
    if not paths:
        raise CorpusError(f"{folder / 'features'}: no feature stream; put <stream>/<video>.npy there")
    usable, steps, positions, streams, unreadable = np.ones(len(ids), bool), None, {}, {}, set()
    for path in paths:
        log(f"looking for features in {path}")
        positions[path.name], length, streams[path.name], errors = located(path, ids)
        skipped += [f"{name.decode()}\t{why}" for name, why in errors.items()]
        unreadable |= errors.keys()
        steps = length if steps is None else steps
        unequal = (np.abs(steps - length) > 1) & (steps > 0) & (length > 0) & usable
        skip(ids[unequal], "streams differ in steps")
        usable &= ~unequal
        steps = np.minimum(steps, length)
    skip((name for name in ids[usable & (steps == 0)] if name not in unreadable), "no features")
    usable &= steps > 0
    without = len(ids) - int(usable.sum())
    too_late = usable & (np.floor(begins(shards)[rows]) >= steps)
    skip(ids[too_late], "features end before its first narration")
    usable &= ~too_late

    count = int(usable.sum())
    if count < 4:
        why = f" ({listed(skipped, 3)})" if skipped else ""
        raise CorpusError(f"{folder}: {count} of {len(ids)} videos have narrations and features; wanted 4 or more{why}")
    annotated, ids, rows, steps = len(ids), ids[usable], rows[usable], steps[usable]
    hashed = np.argsort(np.fromiter((int(files.digest(name), 16) for name in ids), np.int64, count), kind="stable")
    size = min(held_out, max(1, count // 20))
    splits = {"val": hashed[:size], "test": hashed[size : 2 * size], "train": np.sort(hashed[2 * size :])}
    sha = hashlib.sha256(ids.tobytes() + digests[rows].tobytes() + steps.tobytes())
    sha.update(b"".join(np.sort(splits[name]).tobytes() for name in ("train", "val", "test")))
    facts = {"sha": sha.hexdigest(), "annotated": annotated, "skipped": len(skipped), "streams": streams}
    arrays = {"rows": rows, "steps": steps, **splits}
    arrays |= {f"{name}.place": position[usable] for name, position in positions.items()}
    with files.written(folder / "index" / "skipped.txt") as draft:
        draft.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
    with files.written(folder / "index" / "found", sealed=True) as draft:
        draft.mkdir()
        for name, values in arrays.items():
            np.save(draft / f"{name}.npy", values)
        (draft / "found.json").write_text(json.dumps(facts, indent=1))
    log(f"{annotated} videos with narrations, {without} of them ({100 * without / annotated:.1f} %) without features")
    log(f"{count} can be used: train {len(splits['train'])}, val {size}, test {size}")
    if skipped:
        log(f"{len(skipped)} skipped, listed in {files.short(folder / 'index' / 'skipped.txt')}")


def begins(shards: list[Path]) -> np.ndarray:
    """(n,) float32: the second at which the first narration of each video begins."""
    parts = []
    for shard in shards:
        first, times = read_array(shard / "first.npy"), read_array(shard / "times.npy")
        parts.append(np.minimum.reduceat(times[:, 0], first[:-1]) if len(times) else np.empty(0, np.float32))
    return np.concatenate(parts)


def located(path: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict, dict[bytes, str]]:
    """The features of a stream for these videos (n,), sorted bytes. Where they are, (n, 2) int32: the shard and the row
    in it; for a file of its own 0, or 1 in a two-letter folder, and 0; -1 without features. How many steps, (n,) int32.
    The stream's `dim` and `shards`. And video → what is wrong with its features. CorpusError for an invalid shard."""
    position, steps, errors = np.full((len(ids), 2), -1, np.int32), np.zeros(len(ids), np.int32), {}
    shards, dim = sorted(file.name.removesuffix(".ids.txt") for file in path.glob("[!.]*.ids.txt")), None
    check_shards(path, shards, ids)
    for number, name in enumerate(shards):
        source = path / f"{name}.npy"
        values, packed_ids, lengths = packed(source)
        dim = dim or values.shape[2]
        if values.shape[2] != dim:
            raise CorpusError(f"{source}: shape {values.shape}; wanted (videos, steps, {dim}) as {shards[0]}.npy")
        _, rows, inner = np.intersect1d(ids, packed_ids, assume_unique=True, return_indices=True)
        if len(twice := rows[position[rows, 0] >= 0]):
            names = listed(name.decode() for name in ids[twice])
            raise CorpusError(f"{source}: video {names} is in another shard too; keep one of each")
        position[rows, 0], position[rows, 1], steps[rows] = number, inner, lengths[inner]
    for row, name in enumerate([] if shards else ids):
        candidates = [(nested, one_file(path, name.decode(), nested)) for nested in (0, 1)]
        try:
            for nested, file in [(nested, file) for nested, file in candidates if file.is_file()][:1]:
                check_array(values := read_array(file), file, "steps, dim")
                dim = dim or values.shape[1]
                if values.shape[1] != dim:
                    raise CorpusError(f"{file}: shape {values.shape}; wanted (steps, {dim}) as the first file")
                position[row], steps[row] = (nested, 0), len(values)
        except CorpusError as error:
            errors[name] = narrations.printable(str(error))
    return position, steps, {"dim": dim, "shards": shards}, errors


def check_shards(path: Path, shards: list[str], ids: np.ndarray):
    """CorpusError where part of a stream would be ignored: a shard without its list of ids, or files of single videos
    in a stream of shards. shards: those with a list; ids: the videos (n,), bytes."""
    names = set(shards) or {name.decode() for name in ids}
    for file in path.glob("[!.]*.npy"):
        if file.stem not in names and (shards or is_shard(file)):
            listing = f"{file.stem}.ids.txt"
            raise CorpusError(f"{file}: no {listing} next to it; write the video id of each of its rows, one per line")
    if shards and (file := next(path.glob("[!.]?/*.npy"), None)):
        raise CorpusError(f"{file}: the file of one video in a stream of shards; put it into a shard or another stream")


def is_shard(path: Path) -> bool:
    """Whether a file is (videos, steps, dim), a shard, and not the features of a video without narrations."""
    try:
        return read_array(path).ndim == 3
    except CorpusError:
        return False


def one_file(path: Path, name: str, nested: int) -> Path:
    """The file of one video in the stream `path`, or in its two-letter folder if `nested`."""
    return path / name[:2] / f"{name}.npy" if nested else path / f"{name}.npy"


def packed(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shard of features, memory-mapped, its ids (n,) bytes and lengths (n,). CorpusError where they do not fit."""
    Rows(path)  # which refuses Fortran order
    stream, row = features.packed(path)
    lengths = np.full(len(row), stream.values.shape[1]) if stream.lengths is None else stream.lengths
    return stream.values, np.array([name.encode() for name in row]), lengths


def is_here(folder: Path) -> bool:
    """Whether a folder holds the narrations of HowTo100M or their index, and not a corpus of the reader's own."""
    inside = any((folder / name).exists() for name in ("index", "caption.json", "captions"))
    return inside and not (folder / "captions.csv").is_file()
