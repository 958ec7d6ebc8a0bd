"""The records of a folder of features: the settings, the video files and the checksums of each stream."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ssb import files
from ssb.corpora.origin import read_sources, read_sums
from ssb.corpora.reading import CorpusError, check_array, listed, read_array
from ssb.files import sha256
from ssb.video.decode import VideoError


def check_settings(out: Path, stream: str, settings: dict):
    """Write <stream>.json; VideoError where the stream was made with other settings, or has no settings."""
    path = out / f"{stream}.json"
    fix = "choose another name, or delete its folder"
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise VideoError(f"{path}: not readable ({error}); delete it and the folder {stream}/") from None
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise VideoError(f"{out / stream}: made with other {listed(other)}, see {path.name}; {fix}")
    elif any((out / stream).glob("[!.]*.npy")) or (out / f"{stream}.npy").exists():
        raise VideoError(f"{out}: has a stream {stream!r} without {path.name}; {fix}")
    else:
        with files.written(path) as draft:
            draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def complete(out: Path, stream: str, clip: str, sums: dict[str, str]) -> bool:
    """Whether the features of a clip are there as they were written. A clip without a checksum, whose process was
    killed, gets one in `sums`."""
    path = out / stream / f"{clip}.npy"
    try:
        check_array(read_array(path), path, "steps, dim")
    except CorpusError:
        return False
    sha = sha256(path)
    return sums.setdefault(clip, sha) == sha


def remove_outdated(out: Path, stream: str, done: dict[str, Path]) -> list[str]:
    """Delete the features of those of these clips whose video file has changed since, and return these clips: the file
    has another size, or another time of change and other content. A clip without a record, made by an earlier version,
    is taken to be unchanged."""
    before, outdated, unrecorded = read_sources(out, stream), [], 0
    for clip, path in sorted(done.items()):
        if not path.is_file() or not os.access(path, os.R_OK):
            continue
        now, source = path.stat(), before.get(clip)
        if source and (now.st_size, now.st_mtime_ns) == source[:2]:
            continue
        sha = sha256(path)
        if source and (now.st_size, sha) != (source[0], source[2]):
            outdated.append(clip)
            (out / stream / f"{clip}.npy").unlink()
            continue
        unrecorded += source is None
        add_source(out, stream, clip, path, sha)
    if outdated:
        print(f"the video files of {len(outdated)} clips have changed; they are extracted again: {listed(outdated)}")
    if unrecorded:
        print(f"{unrecorded} clips have no record of their file; they are taken to be of these files")
    return outdated


def add_source(out: Path, stream: str, clip: str, source: Path, sha: str):
    """Append a line to <stream>.sources.tsv and wait until it is on the disk, so that the record is complete even if
    the process is killed or the power fails. StorageError where the disk refuses it."""
    state, path = source.stat(), out / f"{stream}.sources.tsv"
    try:
        with open(path, "ab+") as file:
            with contextlib.suppress(OSError):  # of an empty file
                file.seek(-1, os.SEEK_END)
            begin = b"" if file.read(1) in (b"", b"\n") else b"\n"  # a power cut left half a line
            file.write(begin + f"{clip}\t{state.st_size}\t{state.st_mtime_ns}\t{sha}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise files.StorageError(
            f"cannot write {path}: {error.strerror}; free some space or allow writing; the same command continues"
        ) from error


def write_sums(out: Path, stream: str, sums: dict[str, str], removed: Iterable[str] = ()):
    """Add these sums to <stream>.sha256. removed: clips to remove from it, unless `sums` has them."""
    before = read_sums(out, stream)  # again, as another process may have done other clips
    sums = {clip: sha for clip, sha in before.items() if clip not in set(removed)} | sums
    with files.written(out / f"{stream}.sha256") as draft:
        lines = [f"{sums[clip]}  {stream}/{clip}.npy\n" for clip in sorted(sums)]
        draft.write_text("".join(lines), encoding="utf-8")
