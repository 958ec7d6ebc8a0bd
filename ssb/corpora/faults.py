"""Which clips have no usable features: they are absent, cut, empty, NaN, all zero or of another width than others."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ssb.corpora import reading
from ssb.corpora.corpus import Stream
from ssb.corpora.reading import CorpusError, listed, proportion

LARGEST = 1e15  # of a number in the features: its square must be one in float32
ABSENT = "absent"  # why there are no features, where it needs no explanation


def of_files(stored: dict[str, Path], clips: list[str]) -> dict[str, str]:
    """`unusable`, of one file a clip. The width wanted is that of most files."""
    reasons, width = {}, {}
    for clip in clips:
        if clip not in stored:
            reasons[clip] = ABSENT
            continue
        try:
            reading.check_array(values := reading.read_array(stored[clip]), "its file", "steps, dim")
        except CorpusError as error:
            reasons[clip] = str(error).removeprefix(f"{stored[clip]}: ").removeprefix("its file: ")
            continue
        width[clip] = values.shape[1]
        if reason := fault(values):
            reasons[clip] = reason
    (usual, _), *others = Counter(width.values()).most_common() or [(0, 0)]
    wide = {clip: f"{dim} wide, most are {usual}" for clip, dim in width.items() if others and dim != usual}
    return dict(merged(clips, reasons, wide))


def of_rows(stream: Stream, row: Mapping[str, int], clips: list[str]) -> dict[str, str]:
    """Those of the clips that an array has no usable features of → why."""
    lengths, reasons = stream.lengths, {}
    for clip in clips:
        real = None if lengths is None or clip not in row else lengths[row[clip]]
        if reason := fault(stream.values[row[clip], :real]) if clip in row else ABSENT:
            reasons[clip] = reason
    return reasons


def fault(values: np.ndarray) -> str:
    """What makes the features (steps, dim) of a clip unusable; "" if nothing does."""
    if not np.isfinite(values).all():
        return "NaN or infinity"
    if values.dtype != np.float16 and max(values.max(initial=0), -values.min(initial=0)) > LARGEST:
        return f"numbers beyond {LARGEST:g}"
    return "" if values.any() else "all zero"


def merged(clips: list[str], *parts: dict[str, str]) -> list[tuple[str, str]]:
    """The items of these dictionaries in the order of `clips`, the first of each."""
    merged = {clip: reason for part in reversed(parts) for clip, reason in part.items()}
    return [(clip, merged[clip]) for clip in clips if clip in merged]


def lacks(clips: list[str], missing: Collection[str], stored: Collection[str] = ()) -> str:
    """ "no features for 1 of 11 clips (9.1 %): 'clip7'", with the reason of each where it is known."""
    names = named(missing)
    others = f" (it has {listed(stored, 2)})" if stored and len(missing) == len(clips) else ""
    return f"no {'usable ' if '(' in names else ''}features for {proportion(len(missing), len(clips))}: {names}{others}"


def reasons_of(missing: Collection[str]) -> Mapping[str, str]:
    """Clip → why it has no usable features; ABSENT where only the clips are given."""
    return missing if isinstance(missing, Mapping) else dict.fromkeys(missing, ABSENT)


def named(missing: Collection[str], most: int = 5) -> str:
    """ "'a' (all zero), 'b' and 7 more": those first that have a reason other than being absent."""
    reasons = reasons_of(missing)
    clips = sorted(reasons, key=lambda clip: reasons[clip] == ABSENT)
    first = [repr(clip) if reasons[clip] == ABSENT else f"{clip!r} ({reasons[clip]})" for clip in clips[:most]]
    return ", ".join(first) + (f" and {len(clips) - most} more" if len(clips) > most else "")
