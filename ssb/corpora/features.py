"""Feature streams of a folder or an archive, and a Corpus made of them, of captions and of splits.

The official files of each dataset are read in `ssb.corpora.official`.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora import reading
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.faults import ABSENT, lacks, merged, of_files, of_rows, reasons_of
from ssb.corpora.reading import CorpusError, listed, proportion
from ssb.corpora.tables import read_table

Splits = dict[str, list[str]]  # name → clip ids
Lacking = dict[str, dict[str, str]]  # stream → those of the clips asked for that have no usable features in it → why
Arrays = Mapping[str, str]  # stream → its array in an archive of features
ARCHIVE = "features.npz"
SMALL = 1 << 28  # bytes: the faults of a larger stream are kept on disk until the stream changes
ADVICE = 'extract them or leave these clips out of the split, as corpus_options={"missing": "drop"} does'

# Streams


def place(home: Path) -> Path:
    """The folder of the features of a dataset, or of a folder of your own: features/ in `home`, the folder of its
    files; where there is none, features/<name of that folder>/ of the study ($SSB_HOME), if that exists."""
    beside, apart = home / "features", files.root() / "features" / home.resolve().name
    return apart if apart.is_dir() and not beside.is_dir() else beside


def sources(folder: Path) -> dict[str, Path]:
    """Stream → its file or folder, of a features folder.

    A stream is `<stream>.npy`, (clips, steps, dim), with `<stream>.ids.txt`, one clip id a line; an optional
    `<stream>.lengths.txt` says how many steps of each are real. Or it is a folder `<stream>/` with one `<clip>.npy` of
    (steps, dim) for each clip.
    """
    paths = [*sorted(folder.glob("[!.]*.npy")), *sorted(folder.glob("[!.]*/"))]
    return {path.name.removesuffix(".npy"): path for path in paths}


def read_streams(folder: Path, clips: list[str]) -> dict[str, Stream]:
    """Every stream of a features folder (see `sources`), its rows in the order of `clips`. CorpusError where there is
    none, or one lacks some of the clips."""
    if not (paths := sources(folder)):
        raise CorpusError(f"{folder}: no feature stream; put <stream>.npy with <stream>.ids.txt there")
    return {name: read_stream(path, clips) for name, path in paths.items()}


def read_stream(path: Path, clips: list[str]) -> Stream:
    """One stream, its rows in the order of `clips`. CorpusError where it lacks some of them."""
    if path.is_dir():
        stored = files_of(path)
        check_complete(path, clips, [clip for clip in clips if clip not in stored], stored)
        return Stream([stored[clip] for clip in clips], source=str(path))
    stream, row = packed(path, empty=True)
    check_complete(path, clips, {clip: ABSENT for clip in clips if clip not in row} | empty(path, row, clips), row)
    return rearranged(stream, [row[clip] for clip in clips])


def rearranged(stream: Stream, rows: list[int]) -> Stream:
    """These rows of a stream; memory-mapped values are copied only where rows are left out or in another order."""
    if np.array_equal(rows, np.arange(len(stream))):
        return stream
    rows = np.array(rows)
    return Stream(stream.values[rows], None if stream.lengths is None else stream.lengths[rows], stream.source)


def packed(path: Path, empty: bool = False) -> tuple[Stream, dict[str, int]]:
    """`<stream>.npy` (clips, steps, dim) as it is stored, memory-mapped, and clip id → row. empty: a length of 0, of a
    clip without steps, is read as 1 and is no error, so that the caller can name such clips. CorpusError where the ids
    or the lengths do not fit the array."""
    row, stream = available(path), Stream(reading.read_array(path), source=str(path))
    if len(row) != len(stream):
        raise CorpusError(f"{path.with_suffix('.ids.txt')}: {len(row)} ids for the {len(stream)} rows of {path.name}")
    lengths = lengths_of(path, len(row))
    if lengths is not None:
        stream = Stream(stream.values, np.maximum(lengths, lengths == 0) if empty else lengths, stream.source)
    return stream, row


def lengths_of(path: Path, rows: int) -> np.ndarray | None:
    """(rows,) the real steps of each row of `<stream>.npy`; None without a `<stream>.lengths.txt`."""
    if not (extra := path.with_suffix(".lengths.txt")).exists():
        return None
    what = f"{rows} whole numbers, one a line"
    lines = reading.read_text(extra, what).split()
    with reading.expecting(extra, what):
        return np.array(lines, np.int64).reshape(rows)


def empty(path: Path, row: Mapping[str, int], clips: list[str]) -> dict[str, str]:
    """Those of the clips that are in `<stream>.npy` but have no steps there → that reason."""
    lengths = lengths_of(path, len(row))
    return {clip: "no steps" for clip in clips if lengths is not None and clip in row and not lengths[row[clip]]}


def available(path: Path) -> dict[str, int]:
    """Clip id → row, or any number in a folder of files, of the clips that a stream has features of."""
    if path.is_dir():
        return {clip: number for number, clip in enumerate(files_of(path))}
    wanted = f"the clip id of each row of {path.name}, one a line"
    names = path.with_suffix(".ids.txt")
    return reading.rows_of(names, reading.read_ids(names, wanted))


def files_of(path: Path) -> dict[str, Path]:
    """Clip id → its file, of a folder of one `<clip>.npy` a clip; the part of an id before a slash is a folder."""
    stored = sorted(path.rglob("[!.]*.npy"))
    ids = [reading.tidy(file.relative_to(path).with_suffix("").as_posix()) for file in stored]
    reading.rows_of(path, ids)
    return dict(zip(ids, stored))


def read_archive(path: Path, clips: list[str], names: Arrays) -> dict[str, Stream]:
    """Streams out of one .npz that holds `ids` (rows,) and, for each of `names` (stream → key), an array of
    (rows, steps, dim), or of (rows, dim): clip-level vectors, a stream of one step. Held in memory: a zip cannot be
    memory-mapped."""
    row, streams = unpacked(path, names)
    check_complete(path, clips, [clip for clip in clips if clip not in row], row)
    return {name: rearranged(stream, [row[clip] for clip in clips]) for name, stream in streams.items()}


def unpacked(path: Path, names: Arrays) -> tuple[dict[str, int], dict[str, Stream]]:
    """Clip id → row, and stream → its values (rows, steps, dim), of an archive as it is stored, see `read_archive`.
    CorpusError where an array has other dimensions or another number of rows."""
    row, arrays = reading.archived(path, *names.values())
    streams = {}
    for (stream, key), values in zip(names.items(), arrays):
        source = f"{path}, array {key!r}"
        values = values[:, None] if values.ndim == 2 else values
        reading.check_array(values, source, "clips, steps, dim")
        if len(values) != len(row):
            raise CorpusError(f"{source}: {len(values)} rows for the {len(row)} ids; copy it again")
        streams[stream] = Stream(values, source=source)
    return row, streams


# Clips without usable features


def lacking(home: Path, clips: list[str], arrays: Arrays | None = None) -> Lacking:
    """Stream → those of the clips without usable features in it and why, in the features of `home` (see `place`), or
    with `arrays` of `home`/features.npz. The features are read once; what was found in more than SMALL bytes is kept in
    results/cache, as long as size and time of change of the files are the same."""
    if arrays:
        row, streams = unpacked(home / ARCHIVE, arrays)
        return {ARCHIVE: dict(merged(clips, *(of_rows(stream, row, clips) for stream in streams.values())))}
    return {name: unusable(path, clips) for name, path in sources(place(home)).items()}


def unusable(path: Path, clips: list[str]) -> dict[str, str]:
    """Those of the clips that a stream has no usable features of → why: absent, cut, empty, NaN, all zero or of another
    width than the others."""
    if path.is_dir():
        stored = files_of(path)
        asked = [stored[clip] for clip in clips if clip in stored]
    else:
        asked = [path, *(path.with_suffix(ending) for ending in (".ids.txt", ".lengths.txt"))]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in asked if file.is_file()]
    if sum(size for _, size, _ in facts) < SMALL:
        return examined(path, clips)

    def make(draft: Path):
        print(f"{files.short(path)}: checking the features of {len(clips)} clips, once")
        (draft / "unusable.json").write_text(json.dumps(examined(path, clips)), encoding="utf-8")

    name = files.digest(str(path.resolve()), "\n".join(clips), repr(facts))
    return reading.read_json(files.kept(files.cache() / "unusable" / name, make) / "unusable.json")


def examined(path: Path, clips: list[str]) -> dict[str, str]:
    """`unusable`, of the files themselves."""
    if path.is_dir():
        return of_files(files_of(path), clips)
    stream, row = packed(path, empty=True)
    return dict(merged(clips, empty(path, row, clips), of_rows(stream, row, clips)))


def check_complete(path: Path, clips: list[str], missing: Collection[str], stored: Collection[str] = ()) -> None:
    """CorpusError where some of the clips, `missing`, have no usable features in the stream or archive `path`; as a
    dictionary, it says why of each. stored: the clips that it has."""
    if missing:
        home = path.parent.parent if path.parent.name == "features" else path.parent
        listing = list_missing(home.resolve().name, {path.name.removesuffix(".npy"): missing})
        raise CorpusError(f"{path}: {lacks(clips, missing, stored)}; {ADVICE}{listing}")


def list_missing(name: str, streams: Mapping[str, Collection[str]]) -> str:
    """Write down all clips that a stream of the corpus or folder `name` lacks, one a line, with the reason where its
    features are there but not usable: messages name only five.

    Returns "; all in results/cache/missing/<name>-<stream>.txt" for the message. The list of a stream that lacks none
    is deleted. Write failures are ignored."""
    written = []
    for stream, missing in streams.items():
        path = files.cache() / "missing" / f"{name}-{stream.removesuffix('.npz')}.txt"
        with contextlib.suppress(OSError):
            if not missing:
                path.unlink(missing_ok=True)
                continue
            reasons = reasons_of(missing).items()
            lines = (clip if why == ABSENT else f"{clip}\t{why}" for clip, why in reasons)
            with files.written(path) as draft:
                draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            written.append(files.short(path))
    return f"; all in {', '.join(written)}" if written else ""


def usable(name: str, splits: Splits, missing: str, home: Path, arrays: Arrays | None = None) -> Splits:
    """The splits that a corpus is made of. missing="refuse": as they are, and a clip without usable features in some
    stream is a CorpusError that counts all of them; "drop": the clips that every stream has, and a printed line says
    how many are left out and where they are listed. home, arrays: as in `lacking`. CorpusError where no clip of a split
    is left."""
    if missing not in ("refuse", "drop"):
        raise CorpusError(f"{name}: missing = {missing!r}; wanted 'refuse', or 'drop' to keep clips with features only")
    streams = lacking(home, clips := clips_of(splits), arrays)
    if missing == "refuse":
        if wrong := {stream: reasons for stream, reasons in streams.items() if reasons}:
            paths = {ARCHIVE: home / ARCHIVE} if arrays else sources(place(home))
            stored = {stream: () if arrays else available(paths[stream]) for stream in wrong}
            each = (f"{paths[stream]}: {lacks(clips, why, stored[stream])}" for stream, why in wrong.items())
            raise CorpusError(f"{'; '.join(each)}; {ADVICE}{list_missing(name, wrong)}")
        return splits
    dropped = set().union(*streams.values())
    left = {split: [clip for clip in members if clip not in dropped] for split, members in splits.items()}
    if empty := [split for split, members in left.items() if not members]:
        raise CorpusError(f"{name}: no clip of split {listed(empty)} has features in every stream; extract them")
    counts = (f"{split} {proportion(len(x) - len(left[split]), len(x), '')}" for split, x in splits.items())
    first = listed(clip for clip in clips if clip in dropped)
    words = f"{', '.join(counts)}: {first}" if first else ", ".join(counts)
    print(f"{name}: left out, as they have no usable features: {words}{list_missing(name, streams)}")
    return left


# Corpora


def clips_of(splits: Splits) -> list[str]:
    """Every clip of the splits, one split after the other: the order of the clips of a corpus."""
    return [clip for members in splits.values() for clip in members]


def assemble(name: str, captions: pd.DataFrame, splits: Splits, streams: dict[str, Stream], classes=None) -> Corpus:
    """A Corpus of the clips in `splits` from captions with the columns `clip` (id) and `text`, and from streams whose
    rows are in the order of `clips_of(splits)`. classes: clip ids → the class of each."""
    clips = clips_of(splits)
    position = {clip: i for i, clip in enumerate(clips)}
    captions = captions[captions["clip"].isin(position)]
    captions = captions.assign(clip=captions["clip"].map(position)).sort_values("clip", kind="stable")
    rows = {split: np.array([position[clip] for clip in members], dtype=int) for split, members in splits.items()}
    classes = classes and functools.partial(classes, clips)
    return Corpus(name, clips, captions.reset_index(drop=True), rows, streams, classes=classes)


def build(
    name: str, home: Path, captions, splits: Splits, missing: str, arrays: Arrays | None = None, classes=None
) -> Corpus:
    """As `assemble`, with the streams of `home`; arrays: as in `lacking`. missing: see `usable`."""
    splits = usable(name, splits, missing, home, arrays)
    clips = clips_of(splits)
    streams = read_archive(home / ARCHIVE, clips, arrays) if arrays else read_streams(place(home), clips)
    return assemble(name, captions, splits, streams, classes)


def read_splits(path: Path) -> Splits:
    """{"train": ids, "val": ids, "test": ids} of a JSON file; further keys are ignored. An id is a text or a number.
    CorpusError where a list is missing, holds something else, or shares a clip with another list."""
    splits, names = reading.read_json(path), ("train", "val", "test")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name), list) for name in names):
        raise CorpusError(f'{path}: wanted {{"train": [ids], "val": [ids], "test": [ids]}}')
    for name in names:
        if wrong := [clip for clip in splits[name] if isinstance(clip, bool) or not isinstance(clip, (str, int))]:
            raise CorpusError(f'{path}: {name} holds {wrong[0]!r:.60}; wanted clip ids, texts such as "clip00"')
    splits = {name: [reading.tidy(str(clip)) for clip in splits[name]] for name in names}
    reading.check_apart(path, splits)
    reading.rows_of(path, clips_of(splits))
    return splits


def folder(path: Path, missing: str = "refuse", video: str | None = None, classes=None) -> Corpus:
    """A corpus of your own: `captions.csv` (columns clip, text), `split.json` (see `read_splits`) and `features/` (see
    `sources`). missing: see `usable`; classes: see `assemble`.

    An optional column `video` gives the video that a clip is cut from, by which training on one corpus and testing on
    another are kept apart; video: a regular expression that matches every clip id, its first group being the video.
    """
    path = Path(path)
    source = path / "captions.csv"
    captions = read_table(source, "clip", "text")
    if video is not None:
        captions["video"] = [named(video, clip) for clip in captions["clip"]]
    return build(path.resolve().name, path, captions, read_splits(path / "split.json"), missing, classes=classes)


def named(pattern: str, clip: str) -> str:
    """The first group of a regular expression in a clip id; CorpusError where it does not match or has none."""
    try:
        return re.fullmatch(pattern, clip)[1]
    except (re.error, TypeError, IndexError) as error:
        raise CorpusError(
            f"video = {pattern!r}: does not give the video of clip {clip!r} ({error}); wanted a regular expression "
            r'that matches every clip id, its first group being the video, such as "(.+)_\d+"'
        ) from None


def own_folder(name: str) -> Path | None:
    """A folder with a captions.csv that has the name of a corpus, in the working directory or in $SSB_DATA."""
    return next((path for path in (Path(name), files.data() / name) if os.path.isfile(path / "captions.csv")), None)
