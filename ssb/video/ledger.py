"""What a folder of features records: settings, sources and checksums."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from ssb import files
from ssb.corpora.reading import CorpusError, check_array, listed, read_array
from ssb.video.decode import VideoError


def check_settings(out: Path, stream: str, settings: dict):
    """Keep the settings, or refuse (VideoError) to go on with a stream that was made with others."""
    path = out / f"{stream}.json"
    mend = "choose another name, or delete its folder"
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise VideoError(f"{path}: not readable ({error}); delete it and the folder {stream}/") from None
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise VideoError(f"{out / stream}: made with other {listed(other)}, see {path.name}; {mend}")
    elif any((out / stream).glob("[!.]*.npy")) or (out / f"{stream}.npy").exists():
        raise VideoError(f"{out}: has a stream {stream!r} that was not made here; {mend}")
    else:
        with files.written(path) as draft:
            draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def there(out: Path, stream: str, clip: str, sums: dict[str, str]) -> bool:
    """Is the clip done, as it was written? If it was not entered in the sums (the process was killed), it is now."""
    path = out / stream / f"{clip}.npy"
    if not path.is_file():
        return False
    try:
        check_array(read_array(path), path, "steps, dim")
    except CorpusError:
        return False
    found = sha256(path)
    return sums.setdefault(clip, found) == found


def replaced(out: Path, stream: str, done: dict[str, Path]) -> list[str]:
    """Those of the clips that are done whose features are of another file than the one given now: of another size, or
    of another time of change and other content. Their features are deleted. What a clip is of that was made before
    this was kept is not known; it is taken to be this file."""
    before, other, unknown = read_sources(out, stream), [], 0
    for clip, path in sorted(done.items()):
        if not path.is_file():
            continue
        now, known = path.stat(), before.get(clip)
        if known and (now.st_size, now.st_mtime_ns) == known[:2]:
            continue
        sha = sha256(path)
        if known and (now.st_size, sha) != (known[0], known[2]):
            other.append(clip)
            (out / stream / f"{clip}.npy").unlink()
            continue
        unknown += known is None
        enter_source(out, stream, clip, path, sha)
    if other:
        print(f"{len(other)} clips were made of other files of these names, and are made anew: {listed(other)}")
    if unknown:
        print(f"{unknown} clips do not say of which file they were made; they are taken to be of these")
    return other


def read_sources(out: Path, stream: str) -> dict[str, tuple[int, int, str]]:
    """Clip → size, time of change (ns) and SHA-256 of the file that it was made of."""
    path = out / f"{stream}.sources.tsv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (re.fullmatch(r"(.+)\t(\d+)\t(-?\d+)\t([0-9a-f]{64})", line) for line in lines)
    return {row[1]: (int(row[2]), int(row[3]), row[4]) for row in found if row}  # the last line of a clip counts


def enter_source(out: Path, stream: str, clip: str, source: Path, sha: str):
    """A line more, so that a killed process has said of which files its clips are."""
    state = source.stat()
    with open(out / f"{stream}.sources.tsv", "a", encoding="utf-8") as file:
        file.write(f"{clip}\t{state.st_size}\t{state.st_mtime_ns}\t{sha}\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(out: Path, stream: str) -> dict[str, str]:
    """Clip → SHA-256 of its file, as written by `write_sums`."""
    path = out / f"{stream}.sha256"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.split(f"  {stream}/", 1) for line in lines)
    return {pair[1].removesuffix(".npy"): pair[0] for pair in pairs if len(pair) == 2}


def write_sums(out: Path, stream: str, sums: dict[str, str], gone: Iterable[str] = ()):
    """gone: clips that are not to be listed any more, unless `sums` has them."""
    before = read_sums(out, stream)  # again, as another process may have done other clips
    sums = {clip: sha for clip, sha in before.items() if clip not in set(gone)} | sums
    with files.written(out / f"{stream}.sha256") as draft:
        lines = [f"{sums[clip]}  {stream}/{clip}.npy\n" for clip in sorted(sums)]
        draft.write_text("".join(lines), encoding="utf-8")
