"""How files are read: JSON, tables, lists of ids; feature streams of a folder or an archive; a Corpus out of them.

What the files of each dataset hold is the matter of `ssb.datasets`.
"""

import contextlib
import json
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpus import Corpus, CorpusError, Stream, check_array, listed, read_array

# RuntimeError: locked by a password, or packed by a method that Python does not know
UNZIPPING = OSError, zipfile.BadZipFile, zlib.error, RuntimeError


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
    except (*UNZIPPING, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{path}: not readable as JSON ({error}); download it again") from None


@contextlib.contextmanager
def expecting(source: Path, what: str):
    """Of a file that could be read but holds something else: CorpusError "source: not `what`"."""
    try:
        yield
    except CorpusError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise CorpusError(f"{source}: not {what} ({detail})") from None


def first_of(home: Path, *names: str) -> Path:
    """The first of the names that a file of `home` has; the last where there is none, for the message to name."""
    return next((home / name for name in names if (home / name).is_file()), home / names[-1])


def read_table(source: Path, *columns: str) -> pd.DataFrame:
    """A CSV that has these columns, all of it text: ids keep their zeros, and NA is a word."""
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise CorpusError(f"{source}: no such file; wanted a table with the columns {', '.join(columns)}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CorpusError(f"{source}: not a readable CSV ({error}); save it as comma-separated UTF-8") from None
    if not set(columns) <= set(table.columns):
        raise CorpusError(f"{source}: columns are {listed(table.columns)}; wanted {', '.join(columns)}")
    return table


def numbers(table: pd.DataFrame, column: str, source: Path) -> pd.Series:
    """A column of text as float64, every one finite."""
    values = pd.to_numeric(table[column], errors="coerce").astype(float)
    if not (finite := np.isfinite(values)).all():
        raise CorpusError(f"{source}: {column} holds {listed(table[column][~finite])}; wanted numbers")
    return values


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; see README.md for where the data is looked for") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not readable as text ({error}); download it again") from None
    return [line for line in lines if line.strip()]


def read_ids(path: Path) -> list[str]:
    """A list of clip ids, one a line."""
    ids = [line.strip() for line in read_lines(path)]
    if not ids:
        raise CorpusError(f"{path}: no ids; download it again")
    return list(rows_of(path, ids))


def rows_of(source: Path, ids: list[str]) -> dict[str, int]:
    """Clip id → its row; CorpusError where an id is there twice."""
    if repeated := [clip for clip, n in Counter(ids).items() if n > 1]:
        raise CorpusError(f"{source}: duplicate clip id {listed(repeated)}; keep one of each")
    return {clip: row for row, clip in enumerate(ids)}


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


def archived(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """These arrays of a .npz; of the others not a byte is read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive.files]:
                raise CorpusError(f"{path}: no array {listed(missing)}; wanted a .npz that holds {listed(keys)}")
            return {key: archive[key] for key in keys}
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; see README.md for where the data is looked for") from None
    except CorpusError:
        raise
    except (*UNZIPPING, ValueError, EOFError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: not a complete .npz archive ({error}); copy it again") from None


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


def share(some: int, of: int, what: str = " clips") -> str:
    """3 of 200 clips (1.5 %)."""
    return f"{some} of {of}{what} ({100 * some / max(of, 1):.1f} %)"


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
