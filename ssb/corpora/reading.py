"""How files are read: JSON, tables, lists of ids and arrays; checks of what was read. Errors name the file and how to
fix it."""

import contextlib
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd

SOURCES = Path(__file__).with_name("sources.csv")  # the files of each dataset, which `ssb data` lists


class CorpusError(ValueError):
    """The data is not usable as it is; the message names the file or field and how to fix it."""


def listed(names, most: int = 5) -> str:
    """'a', 'b', … and 7 more: for error messages."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def entry(table: Mapping, name: str, owner: str, kind: str):
    """table[name]; CorpusError listing the names in the table where `owner` has no such `kind`."""
    if name not in table:
        raise CorpusError(f"{owner} has no {kind} {name!r}; it has {listed(table)}")
    return table[name]


def check_array(values: np.ndarray, source: str | Path, axes: str, kind: type = np.floating) -> None:
    """CorpusError unless an array has these axes ("clips, steps, dim"), none of them empty, and numbers of this kind:
    np.floating or np.integer."""
    if values.ndim != axes.count(",") + 1 or 0 in values.shape:
        raise CorpusError(f"{source}: shape {values.shape}; wanted ({axes}), none of them 0")
    if not np.issubdtype(values.dtype, kind):
        fix = "save it as float16 or float32" if kind is np.floating else "wanted whole numbers"
        raise CorpusError(f"{source}: holds {values.dtype}; {fix}")


def check_range(values: np.ndarray, source: str, axes: str, low: int, high: int) -> None:
    """CorpusError unless an array has these axes and whole numbers from low to high - 1."""
    if not isinstance(values, np.ndarray):
        raise CorpusError(f"{source}: wanted an array of whole numbers, got {type(values)}")
    check_array(values, source, axes, np.integer)
    outside = values[(values < low) | (values >= high)]
    if len(outside):
        raise CorpusError(f"{source}: {outside[0]} is not from {low} to {high - 1}")


def check_apart(source: str | Path, splits: Mapping[str, Iterable], kind: str = "clip") -> None:
    """CorpusError where a split (name → its members) is empty, or a member is in two splits or twice in one."""
    split_of = {}
    for split, members in splits.items():
        if not len(members):
            raise CorpusError(f"{source}: split {split!r} is empty; give it at least one {kind}")
        for member in members:
            if member in split_of:
                first = split_of[member]
                where = f"twice in {split!r}" if first == split else f"in {first!r} and again in {split!r}"
                raise CorpusError(f"{source}: {kind} {member!r} is {where}; keep it in one place")
            split_of[member] = split


def missing_file(path: Path, wanted: str = "") -> CorpusError:
    """The error for a file that is not there. It names the command that lists the files of the dataset, if the file's
    folder has the name of a dataset. wanted: what the file should hold."""
    name = path.absolute().parent.name
    hint = f"wanted {wanted}" if wanted else "`ssb data` lists what each corpus needs"
    if f"\n{name}," in SOURCES.read_text(encoding="utf-8"):
        hint = f"{f'wanted {wanted}; ' if wanted else ''}`ssb data {name}` lists what {name} needs"
    return CorpusError(f"{path}: no such file; {hint}")


# RuntimeError: protected by a password, or compressed by a method that Python does not have
UNZIPPING = OSError, zipfile.BadZipFile, zlib.error, RuntimeError
WRONG_CONTENT = EOFError, AttributeError, KeyError, TypeError, ValueError


@contextlib.contextmanager
def expecting(source: Path, what: str, fix: str = "", wanted: str = ""):
    """Turns an error of code that reads a file into a CorpusError: "source: no such file; …", see `missing_file`, or
    "source: not `what` (why); `fix`"."""
    try:
        yield
    except CorpusError:
        raise
    except FileNotFoundError:
        raise missing_file(source, wanted) from None
    except (*UNZIPPING, *WRONG_CONTENT) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise CorpusError(f"{source}: not {what} ({why}){fix and f'; {fix}'}") from None


def read_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file; CorpusError where it is missing, cut short or not such a file. Never unpickles."""
    with expecting(path, "a complete .npy array", "copy or extract it again", "the features of a stream"):
        return np.lib.format.open_memmap(path, mode="r")


def read_json(path: Path):
    """A JSON file, or the one .json file in a zip; CorpusError naming the file where it cannot be read."""
    with expecting(path, "readable as JSON", "download it again"):
        if path.suffix != ".zip":
            return json.loads(path.read_text(encoding="utf-8"))
        with zipfile.ZipFile(path) as archive:
            inner = [name for name in archive.namelist() if name.endswith(".json")]
            if len(inner) != 1:
                raise CorpusError(f"{path}: {len(inner)} .json files inside; wanted one")
            return json.loads(archive.read(inner[0]))


def read_table(source: Path, *columns: str) -> pd.DataFrame:
    """A CSV that has these columns, every cell as text: ids keep their leading zeros, and NA is a word."""
    wanted = f"a table with the columns {', '.join(columns)}"
    with expecting(source, "a readable CSV", "save it as comma-separated UTF-8", wanted):
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    if not set(columns) <= set(table.columns):
        raise CorpusError(f"{source}: columns are {listed(table.columns)}; wanted {', '.join(columns)}")
    return table


def numbers(table: pd.DataFrame, column: str, source: Path) -> pd.Series:
    """A column of text as float64; CorpusError where a value is no finite number."""
    values = pd.to_numeric(table[column], errors="coerce").astype(float)
    if not (finite := np.isfinite(values)).all():
        raise CorpusError(f"{source}: {column} holds {listed(table[column][~finite])}; wanted numbers")
    return values


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    with expecting(path, "readable as text", "download it again"):
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def read_ids(path: Path) -> list[str]:
    """A list of clip ids, one a line."""
    ids = [line.strip() for line in read_lines(path)]
    if not ids:
        raise CorpusError(f"{path}: no ids; download it again")
    return list(rows_of(path, ids))


def rows_of(source: Path, ids: list[str]) -> dict[str, int]:
    """Clip id → its row; CorpusError for a duplicate id."""
    if repeated := [clip for clip, n in Counter(ids).items() if n > 1]:
        raise CorpusError(f"{source}: duplicate clip id {listed(repeated)}; keep one of each")
    return {clip: row for row, clip in enumerate(ids)}


def archived(path: Path, *keys: str) -> tuple[dict[str, int], list[np.ndarray]]:
    """Clip id → row, of the array `ids` of a .npz, and its arrays of these keys; the others are not read."""
    with expecting(path, "a complete .npz archive", "copy it again"), np.load(path, allow_pickle=False) as archive:
        if missing := [key for key in ("ids", *keys) if key not in archive.files]:
            raise CorpusError(f"{path}: no array {listed(missing)}; wanted a .npz that holds {listed(['ids', *keys])}")
        return rows_of(path, [str(clip) for clip in archive["ids"].ravel()]), [archive[key] for key in keys]


def first_of(home: Path, *names: str) -> Path:
    """The first of these files of `home` that exists; the last, for the error message to name, if none does."""
    return next((home / name for name in names if (home / name).is_file()), home / names[-1])


def sizes(splits: Mapping) -> str:
    """Such as "train 700, val 100, test 200"."""
    return ", ".join(f"{name} {len(members)}" for name, members in splits.items())


def share(some: int, of: int, what: str = " clips") -> str:
    """Such as "3 of 200 clips (1.5 %)"."""
    return f"{some} of {of}{what} ({100 * some / max(of, 1):.1f} %)"


def check_options(corpus: str, unknown, whole: Mapping[str, tuple], **shares) -> None:
    """CorpusError for an option of a generated corpus that is unknown or out of range. whole: option → its value and
    the least it may be, whole numbers; shares: options from 0 to 1."""
    if unknown:
        raise CorpusError(f"{corpus}: unknown option {listed(unknown)}; it takes {', '.join([*whole, *shares])}")
    for option, (value, least) in whole.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise CorpusError(f"{corpus}: {option}={value!r}; give a whole number of at least {least}")
    for option, value in shares.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise CorpusError(f"{corpus}: {option}={value!r}; give a share from 0 to 1, such as 0.02")
