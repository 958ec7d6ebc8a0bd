"""How files are read: JSON, tables, lists of ids; feature streams of a folder or an archive; a Corpus out of them.

What the files of each dataset hold is the matter of `ssb.datasets`.
"""

import contextlib
import functools
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.reading import (
    CorpusError,
    archived,
    check_array,
    listed,
    read_array,
    read_json,
    read_table,
    rows_of,
    share,
)


def read_streams(folder: Path, clips: list[str]) -> dict[str, Stream]:
    """Every stream of a features folder, its rows in the order of `clips`.

    A stream is `<stream>.npy`, (clips, steps, dim), with `<stream>.ids.txt`, one clip id a line; an optional
    `<stream>.lengths.txt` says how many steps of each are real. Or it is a folder `<stream>/` with one `<clip>.npy` of
    (steps, dim) for each clip.
    """
    streams = {}
    for path in packed(folder):
        streams[path.stem] = packed_stream(path, clips)
    for path in unpacked(folder):
        paths = [path / f"{clip}.npy" for clip in clips]
        absent(path, [clip for clip, file in zip(clips, paths) if not file.is_file()], clips)
        streams[path.name] = Stream(paths, source=str(path))
    if not streams:
        raise CorpusError(f"{folder}: no feature stream; put <stream>.npy with <stream>.ids.txt there")
    return streams


def lacking(folder: Path, clips: list[str]) -> dict[str, list[str]]:
    """Stream of a features folder → those of the clips that it does not have. The features are not read."""
    found = {}
    for path in packed(folder):
        known = rows_of(path.with_suffix(".ids.txt"), packed_ids(path))
        found[path.stem] = [clip for clip in clips if clip not in known]
    for path in unpacked(folder):
        found[path.name] = [clip for clip in clips if not (path / f"{clip}.npy").is_file()]
    return found


def packed(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.npy"))


def unpacked(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*/"))


def packed_ids(path: Path) -> list[str]:
    """The clip of each row of <stream>.npy."""
    names = path.with_suffix(".ids.txt")
    if not names.is_file():
        raise CorpusError(f"{names}: no such file; write the clip id of each row of {path.name}, one a line")
    return names.read_text(encoding="utf-8").split()


def packed_stream(path: Path, clips: list[str]) -> Stream:
    values = read_array(path)
    check_array(values, path, "clips, steps, dim")
    names, ids = path.with_suffix(".ids.txt"), packed_ids(path)
    if len(ids) != len(values):
        raise CorpusError(f"{names}: {len(ids)} ids for the {len(values)} rows of {path.name}")
    row = rows_of(names, ids)
    absent(path, [clip for clip in clips if clip not in row], clips)
    rows = np.array([row[clip] for clip in clips])
    lengths = None
    if (extra := path.with_suffix(".lengths.txt")).is_file():
        try:
            (lengths,) = np.array(extra.read_text().split(), dtype=np.int64).reshape(1, len(ids))[:, rows]
        except ValueError:
            raise CorpusError(f"{extra}: wanted {len(ids)} whole numbers, one a line") from None
    if not np.array_equal(rows, np.arange(len(values))):  # a copy is made only where rows are left out or out of order
        values = values[rows]
    return Stream(values, lengths, source=str(path))


def read_archive(path: Path, clips: list[str], names: dict[str, str]) -> dict[str, Stream]:
    """Streams out of one .npz that holds `ids` (rows,) and, for each of `names` (stream → key), an array of
    (rows, steps, dim), or of (rows, dim): clip-level vectors, a stream of one step. Held in memory: a zip cannot be
    mapped."""
    held = archived(path, "ids", *names.values())
    row = rows_of(path, archive_ids(held))
    absent(path, [clip for clip in clips if clip not in row], clips)
    rows, streams = [row[clip] for clip in clips], {}
    for stream, key in names.items():
        values, source = held[key], f"{path}, array {key!r}"
        values = values[:, None] if values.ndim == 2 else values
        check_array(values, source, "clips, steps, dim")
        if len(values) != len(row):
            raise CorpusError(f"{source}: {len(values)} rows for the {len(row)} ids; copy it again")
        streams[stream] = Stream(values[rows], source=source)
    return streams


def archive_ids(held: dict[str, np.ndarray]) -> list[str]:
    return [str(clip) for clip in held["ids"].ravel()]


def absent(path: Path, missing: list[str], clips: list[str]):
    """CorpusError where clips are missing of the stream `path`, in <folder>/features/, or of an archive in <folder>."""
    if missing:
        home = path.parent.parent if path.parent.name == "features" else path.parent
        listing = list_missing(home.resolve().name, {path.name.removesuffix(".npy"): missing})
        raise CorpusError(
            f"{path}: no features for {share(len(missing), len(clips))}: {listed(missing)}; extract them or leave "
            f'these clips out of the split, as corpus_options={{"missing": "drop"}} does{listing}'
        )


def list_missing(name: str, streams: dict[str, list[str]]) -> str:
    """Of a corpus or folder `name`: write down all clips that a stream lacks, one a line, where messages name five.

    Returns "; all in results/cache/missing/<name>-<stream>.txt" for the message. A stream that lacks none has no such
    file. A place that cannot be written to is no matter."""
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


def kept(name: str, splits: dict[str, list[str]], missing: str, lacking) -> dict[str, list[str]]:
    """The splits that a corpus is made of. missing="refuse": as they are, so that a clip without features is an error;
    "drop": the clips that every stream has; a printed line says how many are left out and where they are listed.

    lacking: clips → {stream: those that it does not have}. CorpusError where nothing is left of a split."""
    if missing not in ("refuse", "drop"):
        raise CorpusError(
            f"{name}: missing = {missing!r}; wanted 'refuse', or 'drop' to leave out clips without features"
        )
    if missing == "refuse":
        return splits
    streams = lacking(clips_of(splits))
    gone = set().union(*streams.values())
    left = {split: [clip for clip in members if clip not in gone] for split, members in splits.items()}
    if empty := [split for split, members in left.items() if splits[split] and not members]:
        raise CorpusError(f"{name}: no clip of split {listed(empty)} has features in every stream; extract them")
    counts = ", ".join(
        f"{split} {share(len(splits[split]) - len(members), len(splits[split]), '')}" for split, members in left.items()
    )
    first = [clip for clip in clips_of(splits) if clip in gone]
    listing = list_missing(name, streams)
    print(f"{name}: left out for want of features: {counts}{': ' if first else ''}{listed(first)}{listing}")
    return left


def clips_of(splits: dict[str, list[str]]) -> list[str]:
    """Every clip of the splits, one split after the other: the order of the clips of a corpus."""
    return [clip for members in splits.values() for clip in members]


def assemble(name: str, captions: pd.DataFrame, splits: dict[str, list[str]], streams: dict[str, Stream]) -> Corpus:
    """A Corpus of the clips in `splits` from captions with the columns `clip` (id) and `text`, and from streams whose
    rows are in the order of `clips_of(splits)`."""
    clips = clips_of(splits)
    position = {clip: i for i, clip in enumerate(clips)}
    captions = captions[captions["clip"].isin(position)]
    captions = captions.assign(clip=captions["clip"].map(position)).sort_values("clip", kind="stable")
    return Corpus(
        name=name,
        clips=clips,
        captions=captions.reset_index(drop=True),
        splits={split: np.array([position[clip] for clip in members], dtype=int) for split, members in splits.items()},
        streams=streams,
    )


def read_splits(path: Path) -> dict[str, list[str]]:
    splits, names = read_json(path), ("train", "val", "test")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name), list) for name in names):
        raise CorpusError(f'{path}: wanted {{"train": [ids], "val": [ids], "test": [ids]}}')
    splits = {name: [str(clip) for clip in splits[name]] for name in names}
    check_apart(path, splits)
    return splits


def check_apart(source: Path, splits: dict[str, list[str]]):
    seen: dict[str, str] = {}
    for name, members in splits.items():
        for clip in members:
            if clip in seen:
                where = f"twice in {name!r}" if seen[clip] == name else f"in {seen[clip]!r} and again in {name!r}"
                raise CorpusError(f"{source}: clip {clip!r} is {where}; keep it in one place")
            seen[clip] = name


# Readers


def folder(path: Path, missing: str = "refuse") -> Corpus:
    """A corpus of your own: `captions.csv` (columns clip, text), `split.json` ({"train": ids, "val": …, "test": …}) and
    `features/` (see `readers.read_streams`). missing: see `readers.kept`."""
    path = Path(path)
    name = path.resolve().name
    captions = read_table(path / "captions.csv", "clip", "text")
    splits = kept(name, read_splits(path / "split.json"), missing, functools.partial(features_lacking, path))
    return assemble(name, captions, splits, features(path, clips_of(splits)))


def features(home: Path, clips: list[str]) -> dict[str, Stream]:
    return read_streams(home / "features", clips)


def features_lacking(home: Path, clips: list[str]) -> dict[str, list[str]]:
    return lacking(home / "features", clips)
