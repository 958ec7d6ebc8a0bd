"""Readers of corpora on disk: the official files of MSR-VTT, and a folder of your own."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from ssb.corpus import Corpus, CorpusError, Stream, check_array, listed, read_array


def read_json(path: Path):
    """A JSON file, or the one .json file in a zip; CorpusError naming the file where it cannot be read."""
    try:
        if path.suffix != ".zip":
            return json.loads(path.read_text(encoding="utf-8"))
        with zipfile.ZipFile(path) as archive:
            inner = [name for name in archive.namelist() if name.endswith(".json")]
            if len(inner) != 1:
                raise CorpusError(f"{path}: {len(inner)} .json files inside; wanted one")
            return json.loads(archive.read(inner[0]))
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; see README.md for where the data is looked for") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise CorpusError(f"{path}: not readable as JSON ({error}); download it again") from None


def read_streams(folder: Path, clips: list[str]) -> dict[str, Stream]:
    """Every stream of a features folder, its rows in the order of `clips`.

    A stream is `<stream>.npy`, (clips, steps, dim), with `<stream>.ids.txt`, one clip id a line; an optional
    `<stream>.lengths.txt` says how many steps of each are real. Or it is a folder `<stream>/` with one `<clip>.npy` of
    (steps, dim) for each clip.
    """
    streams = {}
    for path in sorted(folder.glob("[!.]*.npy")):
        streams[path.stem] = packed_stream(path, clips)
    for path in sorted(folder.glob("[!.]*/")):
        paths = [path / f"{clip}.npy" for clip in clips]
        absent(path, [clip for clip, file in zip(clips, paths) if not file.is_file()], clips)
        streams[path.name] = Stream(paths, source=str(path))
    if not streams:
        raise CorpusError(f"{folder}: no feature stream; put <stream>.npy with <stream>.ids.txt there")
    return streams


def packed_stream(path: Path, clips: list[str]) -> Stream:
    values = read_array(path)
    check_array(values, path, "clips, steps, dim")
    names = path.with_suffix(".ids.txt")
    if not names.is_file():
        raise CorpusError(f"{names}: no such file; write the clip id of each row of {path.name}, one a line")
    ids = names.read_text(encoding="utf-8").split()
    if len(ids) != len(values):
        raise CorpusError(f"{names}: {len(ids)} ids for the {len(values)} rows of {path.name}")
    row = {clip: i for i, clip in enumerate(ids)}
    if len(row) != len(ids):
        raise CorpusError(
            f"{names}: duplicate clip id {listed({x for x in ids if ids.count(x) > 1})}; keep one of each"
        )
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


def absent(path: Path, missing: list[str], clips: list[str]):
    if missing:
        share = 100 * len(missing) / len(clips)
        raise CorpusError(
            f"{path}: no features for {len(missing)} of {len(clips)} clips ({share:.1f} %): {listed(missing)}; extract "
            f"them or leave these clips out of the split"
        )


def assemble(name: str, captions: pd.DataFrame, splits: dict[str, list[str]], features: Path) -> Corpus:
    """A Corpus of the clips in `splits` from captions with the columns `clip` (id) and `text`."""
    clips = [clip for members in splits.values() for clip in members]
    position = {clip: i for i, clip in enumerate(clips)}
    captions = captions[captions["clip"].isin(position)]
    captions = captions.assign(clip=captions["clip"].map(position)).sort_values("clip", kind="stable")
    return Corpus(
        name=name,
        clips=clips,
        captions=captions.reset_index(drop=True),
        splits={split: np.array([position[clip] for clip in members], dtype=int) for split, members in splits.items()},
        streams=read_streams(features, clips),
    )


def read_splits(path: Path) -> dict[str, list[str]]:
    splits, names = read_json(path), ("train", "val", "test")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name), list) for name in names):
        raise CorpusError(f'{path}: wanted {{"train": [ids], "val": [ids], "test": [ids]}}')
    splits = {name: [str(clip) for clip in splits[name]] for name in names}
    seen: dict[str, str] = {}
    for name, members in splits.items():
        for clip in members:
            if clip in seen:
                where = f"twice in {name!r}" if seen[clip] == name else f"in {seen[clip]!r} and again in {name!r}"
                raise CorpusError(f"{path}: clip {clip!r} is {where}; keep it in one place")
            seen[clip] = name
    return splits


def folder(path: Path) -> Corpus:
    """A corpus of your own: `captions.csv` (columns clip, text), `split.json` ({"train": ids, "val": …, "test": …}) and
    `features/` (see `read_streams`)."""
    path = Path(path)
    source = path / "captions.csv"
    try:
        captions = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise CorpusError(f"{source}: no such file; wanted a table with the columns clip, text") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CorpusError(f"{source}: not a readable CSV ({error}); save it as comma-separated UTF-8") from None
    if not {"clip", "text"} <= set(captions.columns):
        raise CorpusError(f"{source}: columns are {listed(captions.columns)}; wanted clip, text")
    return assemble(path.resolve().name, captions, read_splits(path / "split.json"), path / "features")


def msrvtt1k(data: Path) -> Corpus:
    """The first 1,000 clips of MSR-VTT, 20 captions each, under `data`/msrvtt: the official train_val annotation
    (train_val_annotation.zip, or the .json out of it), clips1000_split.json (700 / 100 / 200) and features/.

    All of these clips are in the official training set: results are not comparable with published 1k-A numbers.
    """
    home = data / "msrvtt"
    plain = home / "train_val_videodatainfo.json"
    source = plain if plain.is_file() else home / "train_val_annotation.zip"
    annotation = read_json(source)
    try:
        rows = [(sentence["video_id"], sentence["caption"]) for sentence in annotation["sentences"]]
    except (KeyError, TypeError):
        raise CorpusError(f"{source}: not the MSR-VTT annotation: wanted sentences with video_id and caption") from None
    captions = pd.DataFrame(rows, columns=["clip", "text"])
    return assemble("msrvtt1k", captions, read_splits(home / "clips1000_split.json"), home / "features")


READERS = {"msrvtt1k": msrvtt1k}
