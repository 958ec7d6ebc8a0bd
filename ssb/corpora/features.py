"""Feature streams of a folder or an archive, and a Corpus made of them, of captions and of splits.

The official files of each dataset are read in `ssb.corpora.official`.
"""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora import reading
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.reading import CorpusError, listed, share

Splits = dict[str, list[str]]  # name → clip ids
Lacking = dict[str, list[str]]  # stream → those of the clips asked for that have no features in it
Arrays = Mapping[str, str]  # stream → its array in an archive of features
ARCHIVE = "features.npz"

# Streams


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
    """One stream, its rows in the order of `clips`."""
    if path.is_dir():
        check_complete(path, clips, available(path))
        return Stream([path / f"{clip}.npy" for clip in clips], source=str(path))
    stream, row = packed(path)
    check_complete(path, clips, row)
    rows = np.array([row[clip] for clip in clips])
    if np.array_equal(rows, np.arange(len(stream))):
        return stream  # memory-mapped: values are copied only where rows are left out or in another order
    return Stream(stream.values[rows], None if stream.lengths is None else stream.lengths[rows], stream.source)


def packed(path: Path) -> tuple[Stream, dict[str, int]]:
    """`<stream>.npy` as it is stored, memory-mapped, and clip id → row."""
    row, stream = available(path), Stream(reading.read_array(path), source=str(path))
    if len(row) != len(stream):
        raise CorpusError(f"{path.with_suffix('.ids.txt')}: {len(row)} ids for the {len(stream)} rows of {path.name}")
    if (extra := path.with_suffix(".lengths.txt")).is_file():
        with reading.expecting(extra, f"{len(row)} whole numbers, one a line"):
            lengths = np.array(extra.read_text().split(), np.int64).reshape(len(row))
        stream = Stream(stream.values, lengths, stream.source)
    return stream, row


def available(path: Path) -> dict[str, int]:
    """Clip id → row, or any number in a folder of files, of the clips that a stream has features of."""
    if path.is_dir():
        return reading.rows_of(path, [file.stem for file in path.glob("*.npy")])
    names = path.with_suffix(".ids.txt")
    with reading.expecting(names, "a list of ids", wanted=f"the clip id of each row of {path.name}, one a line"):
        return reading.rows_of(names, names.read_text(encoding="utf-8").split())


def read_archive(path: Path, clips: list[str], names: Arrays) -> dict[str, Stream]:
    """Streams out of one .npz that holds `ids` (rows,) and, for each of `names` (stream → key), an array of
    (rows, steps, dim), or of (rows, dim): clip-level vectors, a stream of one step. Held in memory: a zip cannot be
    memory-mapped."""
    row, arrays = reading.archived(path, *names.values())
    check_complete(path, clips, row)
    rows, streams = [row[clip] for clip in clips], {}
    for (stream, key), values in zip(names.items(), arrays):
        source = f"{path}, array {key!r}"
        values = values[:, None] if values.ndim == 2 else values
        reading.check_array(values, source, "clips, steps, dim")
        if len(values) != len(row):
            raise CorpusError(f"{source}: {len(values)} rows for the {len(row)} ids; copy it again")
        streams[stream] = Stream(values[rows], source=source)
    return streams


# Clips without features


def lacking(home: Path, clips: list[str], arrays: Arrays | None = None) -> Lacking:
    """Stream → those of the clips without features in it, of `home`/features/, or with `arrays` of `home`/features.npz.
    No features are read."""
    if arrays:
        stored = {ARCHIVE: reading.archived(home / ARCHIVE)[0]}
    else:
        stored = {name: available(path) for name, path in sources(home / "features").items()}
    return {name: [clip for clip in clips if clip not in ids] for name, ids in stored.items()}


def check_complete(path: Path, clips: list[str], stored: Collection[str]) -> None:
    """CorpusError where some of the clips are not among those stored in the stream or archive `path`."""
    if missing := [clip for clip in clips if clip not in stored]:
        home = path.parent.parent if path.parent.name == "features" else path.parent
        listing = list_missing(home.resolve().name, {path.name.removesuffix(".npy"): missing})
        raise CorpusError(
            f"{path}: no features for {share(len(missing), len(clips))}: {listed(missing)}; extract them or leave "
            f'these clips out of the split, as corpus_options={{"missing": "drop"}} does{listing}'
        )


def list_missing(name: str, streams: Lacking) -> str:
    """Write down all clips that a stream of the corpus or folder `name` lacks, one a line: messages name only five.

    Returns "; all in results/cache/missing/<name>-<stream>.txt" for the message. The list of a stream that lacks none
    is deleted. Write failures are ignored."""
    written = []
    for stream, missing in streams.items():
        path = files.cache() / "missing" / f"{name}-{stream.removesuffix('.npz')}.txt"
        with contextlib.suppress(OSError):
            if not missing:
                path.unlink(missing_ok=True)
                continue
            with files.written(path) as draft:
                draft.write_text("".join(f"{clip}\n" for clip in missing), encoding="utf-8")
            written.append(files.short(path))
    return f"; all in {', '.join(written)}" if written else ""


def usable(name: str, splits: Splits, missing: str, home: Path, arrays: Arrays | None = None) -> Splits:
    """The splits that a corpus is made of. missing="refuse": as they are, so that a clip without features is an error;
    "drop": the clips that every stream has, and a printed line says how many are left out and where they are listed.
    home, arrays: as in `lacking`. CorpusError where no clip of a split is left."""
    if missing not in ("refuse", "drop"):
        raise CorpusError(f"{name}: missing = {missing!r}; wanted 'refuse', or 'drop' to keep clips with features only")
    if missing == "refuse":
        return splits
    streams = lacking(home, clips_of(splits), arrays)
    gone = set().union(*streams.values())
    left = {split: [clip for clip in members if clip not in gone] for split, members in splits.items()}
    if empty := [split for split, members in left.items() if not members]:
        raise CorpusError(f"{name}: no clip of split {listed(empty)} has features in every stream; extract them")
    counts = ", ".join(
        f"{split} {share(len(members) - len(left[split]), len(members), '')}" for split, members in splits.items()
    )
    first = [clip for clip in clips_of(splits) if clip in gone]
    listing = list_missing(name, streams)
    print(f"{name}: left out for want of features: {counts}{': ' if first else ''}{listed(first)}{listing}")
    return left


# Corpora


def clips_of(splits: Splits) -> list[str]:
    """Every clip of the splits, one split after the other: the order of the clips of a corpus."""
    return [clip for members in splits.values() for clip in members]


def assemble(name: str, captions: pd.DataFrame, splits: Splits, streams: dict[str, Stream]) -> Corpus:
    """A Corpus of the clips in `splits` from captions with the columns `clip` (id) and `text`, and from streams whose
    rows are in the order of `clips_of(splits)`."""
    clips = clips_of(splits)
    position = {clip: i for i, clip in enumerate(clips)}
    captions = captions[captions["clip"].isin(position)]
    captions = captions.assign(clip=captions["clip"].map(position)).sort_values("clip", kind="stable")
    rows = {split: np.array([position[clip] for clip in members], dtype=int) for split, members in splits.items()}
    return Corpus(name, clips, captions.reset_index(drop=True), rows, streams)


def build(name: str, home: Path, captions, splits: Splits, missing: str, arrays: Arrays | None = None) -> Corpus:
    """As `assemble`, with the streams of `home`; arrays: as in `lacking`. missing: see `usable`."""
    splits = usable(name, splits, missing, home, arrays)
    clips = clips_of(splits)
    streams = read_archive(home / ARCHIVE, clips, arrays) if arrays else read_streams(home / "features", clips)
    return assemble(name, captions, splits, streams)


def read_splits(path: Path) -> Splits:
    """{"train": ids, "val": ids, "test": ids} of a JSON file; further keys are ignored."""
    splits, names = reading.read_json(path), ("train", "val", "test")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name), list) for name in names):
        raise CorpusError(f'{path}: wanted {{"train": [ids], "val": [ids], "test": [ids]}}')
    splits = {name: [str(clip) for clip in splits[name]] for name in names}
    reading.check_apart(path, splits)
    return splits


def folder(path: Path, missing: str = "refuse") -> Corpus:
    """A corpus of your own: `captions.csv` (columns clip, text), `split.json` (see `read_splits`) and `features/` (see
    `sources`). missing: see `usable`."""
    path = Path(path)
    captions = reading.read_table(path / "captions.csv", "clip", "text")
    return build(path.resolve().name, path, captions, read_splits(path / "split.json"), missing)


def own_folder(name: str) -> Path | None:
    """A folder with a captions.csv that has the name of a corpus, in the working directory or in $SSB_DATA."""
    return next((path for path in (Path(name), files.data() / name) if (path / "captions.csv").is_file()), None)
