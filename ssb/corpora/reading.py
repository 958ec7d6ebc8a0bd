"""How files are read: JSON, tables, lists of ids and .npy arrays, with errors that name the file and how to fix it."""

import contextlib
import json
import zipfile
import zlib
from collections import Counter
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd

SOURCES = Path(__file__).with_name("sources.csv")  # the files of each dataset, which `ssb data` lists


class CorpusError(ValueError):
    """The data is not usable as it is; the message names the file or field and the mend."""


def listed(names, most: int = 5) -> str:
    """'a', 'b', … and 7 more: for error messages."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def check_array(values: np.ndarray, source: str | Path, axes: str) -> None:
    if values.ndim != axes.count(",") + 1 or 0 in values.shape:
        raise CorpusError(f"{source}: shape {values.shape}; wanted ({axes}), none of them 0")
    if not np.issubdtype(values.dtype, np.floating):
        raise CorpusError(f"{source}: holds {values.dtype}; save it as float16 or float32")


def absent(path: Path, wanted: str = "") -> CorpusError:
    """The error for a file that is not there. It names the command that lists the files of the dataset, which is known
    where the file's folder has the name of one. wanted: what the file should hold."""
    name, datasets = path.absolute().parent.name, SOURCES.read_text(encoding="utf-8").splitlines()[1:]
    hints = [f"wanted {wanted}"] if wanted else []
    if name in {line.partition(",")[0] for line in datasets}:
        hints.append(f"`ssb data {name}` lists what {name} needs")
    elif not wanted:
        hints.append("`ssb data` lists what each corpus needs")
    return CorpusError(f"{path}: no such file; {'; '.join(hints)}")


def read_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file; CorpusError where it is missing, cut short or not such a file. Never unpickles."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; put the features there or name another stream") from None
    except (ValueError, EOFError, OSError) as error:
        raise CorpusError(f"{path}: not a complete .npy array ({error}); copy or extract it again") from None


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
        raise absent(path) from None
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
        raise absent(source, f"a table with the columns {', '.join(columns)}") from None
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
        raise absent(path) from None
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


def archived(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """These arrays of a .npz; of the others not a byte is read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive.files]:
                raise CorpusError(f"{path}: no array {listed(missing)}; wanted a .npz that holds {listed(keys)}")
            return {key: archive[key] for key in keys}
    except FileNotFoundError:
        raise absent(path) from None
    except CorpusError:
        raise
    except (*UNZIPPING, ValueError, EOFError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: not a complete .npz archive ({error}); copy it again") from None


def share(some: int, of: int, what: str = " clips") -> str:
    """3 of 200 clips (1.5 %)."""
    return f"{some} of {of}{what} ({100 * some / max(of, 1):.1f} %)"


def check_options(corpus: str, unknown, whole: dict[str, tuple], **shares) -> None:
    """CorpusError for an option of a made corpus that does not fit. whole: option → its value and the least it may be;
    shares: options from 0 to 1."""
    if unknown:
        raise CorpusError(f"{corpus}: unknown option {listed(unknown)}; it takes {', '.join([*whole, *shares])}")
    for option, (value, least) in whole.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise CorpusError(f"{corpus}: {option}={value!r}; give a whole number of at least {least}")
    for option, value in shares.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise CorpusError(f"{corpus}: {option}={value!r}; give a share from 0 to 1, such as 0.02")
