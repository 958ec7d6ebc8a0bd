"""What the extraction of features records beside a stream: settings of the backbone, files of the clips, checksums."""

import json
import re
from collections.abc import Sequence
from pathlib import Path


def read_sources(out: Path, stream: str) -> dict[str, tuple[int, int, str]]:
    """Clip → size, time of change (ns) and SHA-256 of the file that its features were made of, of
    <stream>.sources.tsv."""
    lines = _lines(out / f"{stream}.sources.tsv")
    rows = (re.fullmatch(r"(.+)\t(\d+)\t(-?\d+)\t([0-9a-f]{64})", line) for line in lines)
    return {row[1]: (int(row[2]), int(row[3]), row[4]) for row in rows if row}  # the last line of a clip counts


def read_sums(out: Path, stream: str) -> dict[str, str]:
    """Clip → SHA-256 of its features, of <stream>.sha256."""
    pairs = (line.split(f"  {stream}/", 1) for line in _lines(out / f"{stream}.sha256"))
    return {pair[1].removesuffix(".npy"): pair[0] for pair in pairs if len(pair) == 2}


def _lines(path: Path) -> list[str]:
    """The lines of a record, none where it is missing. Bytes that are not UTF-8 make a line that fits no clip."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []


def made_of(paths: Sequence[Path], sums: Sequence[str]) -> str:
    """What the files of a stream were made of, the settings of the backbone and the SHA-256 of the file of each clip;
    "" where that is not known of all of them, or one has changed since. sums: their SHA-256.

    It stands for their values in the fingerprint of a corpus: the last digits of these depend on the processor."""
    out, stream = paths[0].parents[1], paths[0].parent.name
    try:
        settings = json.loads((out / f"{stream}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    before, recorded = read_sources(out, stream), read_sums(out, stream)
    clips = [path.name.removesuffix(".npy") for path in paths]
    if any(clip not in before or recorded.get(clip) != sha for clip, sha in zip(clips, sums)):
        return ""
    return json.dumps([stream, settings, [[clip, before[clip][2]] for clip in clips]], sort_keys=True)
