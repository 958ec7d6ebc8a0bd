"""How files are read: text, JSON, lists of ids and arrays; checks of what was read. Errors name the file and how to fix
it. Tables are read in `ssb.corpora.tables`."""

import contextlib
import json
import math
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import psutil

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


def chosen(streams: Mapping, names: Collection[str], corpus: str) -> list:
    """The streams of these names, without names all of them; CorpusError for a name that is there twice, or that is
    none of a stream."""
    if repeated := repetitions(names):
        raise CorpusError(f"{corpus}: streams name {listed(repeated)} twice; name each once")
    return [entry(streams, name, corpus, "stream") for name in names or streams]


def repetitions(names: Iterable) -> list:
    """What is there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


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


# RuntimeError: protected by a password, or compressed by a method that Python does not have; RecursionError is one too
UNZIPPING = OSError, zipfile.BadZipFile, zlib.error, RuntimeError
WRONG_CONTENT = EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError, MemoryError, SyntaxError
LARGEST = 1 << 30  # bytes of text; the largest official annotation has 0.1 GB
PAGE = re.compile(r"\s*<(!doctype|html)\b", re.IGNORECASE)
HALF = re.compile("[\ud800-\udfff]")  # half of an emoji, which UTF-8 cannot encode


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
        kind = "" if type(error) in (ValueError, TypeError) else f"{type(error).__name__}: "
        why = " ".join(f"{kind}{error}".split())[:160]
        raise CorpusError(f"{source}: not {what} ({why}){fix and f'; {fix}'}") from None


def check_regular(path: Path) -> None:
    """CorpusError for a folder, a pipe or a device where a file is wanted; it would not end, or never begin."""
    if path.exists() and not path.is_file():
        raise CorpusError(f"{path}: not a regular file; copy the file itself there")


def read_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file; CorpusError where it is missing, cut short or not such a file. Never unpickles."""
    check_regular(path)
    with (
        expecting(path, "a complete .npy array", "copy or extract it again", "the features of a stream"),
        open(path, "rb") as file,
    ):
        header = np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        begin, wanted = file.tell(), math.prod(shape) * dtype.itemsize  # numpy's own product may overflow
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"it holds {dtype} of shape {shape}")
        if wanted > path.stat().st_size - begin:
            raise ValueError(f"shape {shape} needs {wanted} bytes, the file has {path.stat().st_size - begin}")
        return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")


# Text


def read_text(path: Path, what: str = "readable as text", fix: str = "download it again", wanted: str = "") -> str:
    """The characters of a text file, UTF-8 with or without a byte order mark; or of the one .json file in a zip. what,
    fix, wanted: see `expecting`. CorpusError, naming the file, for another encoding and for more than 1 GiB."""
    check_regular(path)
    with expecting(path, what, fix, wanted):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                inner = [info for info in archive.infolist() if info.filename.endswith(".json")]
                if len(inner) != 1:
                    raise CorpusError(f"{path}: {len(inner)} .json files inside; wanted one")
                check_size(path, inner[0].file_size)
                content = archive.read(inner[0])  # never more than the size given in the archive
        else:
            check_size(path, path.stat().st_size)
            content = path.read_bytes()
    with expecting(path, what, "save it as UTF-8"):
        text = decoded(content)
    if PAGE.match(text):
        raise CorpusError(f"{path}: a web page, not the file itself; {fix}")
    return text


def check_size(path: Path, size: int) -> None:
    """CorpusError for a text of more than LARGEST bytes, which would fill the memory."""
    if size > LARGEST:
        raise CorpusError(f"{path}: {size / 1e9:.1f} GB of text, no annotation is so large; download it again")


def decoded(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, as characters. ValueError that names the line of what is not UTF-8."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is UTF-16")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8") from None
    if (index := text.find("\0")) >= 0:
        line = text.count("\n", 0, index) + 1
        raise ValueError(f"line {line}: a NUL character")
    return text


def read_json(path: Path):
    """A JSON file, or the one .json file in a zip; CorpusError naming the file, and the place in it, where it cannot be
    read, a key is there twice, or a text holds half a character."""
    what = "readable as JSON"
    text = read_text(path, what)
    with expecting(path, what, "download it again"):
        content = json.loads(text, object_pairs_hook=distinct)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # an emoji, or half of one
            check_halves(path, content)
        return content


def distinct(pairs: list[tuple]) -> dict:
    """The pairs of a JSON object as a dictionary; ValueError for a key that is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"key {listed(repetitions(key for key, _ in pairs))} is there twice; keep one of each")
    return content


def check_halves(path: Path, content, location: str = "", clip: str = "") -> None:
    """CorpusError, naming the place in the file and the clip, where a text of some JSON holds half an emoji."""
    if isinstance(content, dict):
        clip = next((content[key] for key in ("video_id", "videoID") if isinstance(content.get(key), str)), clip)
        for key, value in content.items():
            check_halves(path, key, f"a key of {location or 'the file'}", clip)
            check_halves(path, value, f"{location}.{key}" if location else key, clip)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            check_halves(path, value, f"{location}[{number}]", clip)
    elif isinstance(content, str) and HALF.search(content):
        of = f", of clip {clip!r}," if clip else ""
        raise CorpusError(f"{path}: {location}{of} is {content!r:.60}, with half a character (a cut emoji); delete it")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; CorpusError where there are none."""
    lines = [line for line in _lines(read_text(path)) if line.strip()]
    if not lines:
        raise CorpusError(f"{path}: it is empty; download it again")
    return lines


def read_ids(path: Path, wanted: str = "") -> list[str]:
    """A list of clip ids, one a line; spaces inside an id are kept, those around it are not. CorpusError where there
    are none, one is there twice, or a line before the last id is blank. wanted: what they are the ids of."""
    ids = [tidy(line) for line in _lines(read_text(path, wanted=wanted).rstrip())]
    if ids == [""]:
        raise CorpusError(f"{path}: no ids; download it again")
    if "" in ids:
        raise CorpusError(f"{path}: line {ids.index('') + 1} is blank; write one id a line, without blank lines")
    return list(rows_of(path, ids))


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def tidy(name: str) -> str:
    """An id without the white space around it, and with accents in one form (NFC): some systems store them apart."""
    return unicodedata.normalize("NFC", name.strip())


def rows_of(source: Path | str, ids: list[str]) -> dict[str, int]:
    """Clip id → its row; CorpusError for a duplicate id, and for one that would lead out of the folder of features."""
    if repeated := repetitions(ids):
        raise CorpusError(f"{source}: duplicate clip id {listed(repeated)}; keep one of each")
    if wrong := [clip for clip in ids if not clip or clip[0] == "/" or ".." in clip.split("/") or not _plain(clip)]:
        raise CorpusError(
            f"{source}: clip id {listed(wrong)}; wanted names without '..', a leading '/', control characters and half "
            "characters"
        )
    return {clip: row for row, clip in enumerate(ids)}


def _plain(clip: str) -> bool:
    return clip.isprintable() or not any(unicodedata.category(mark) in ("Cc", "Cs") for mark in clip)


def texts(value) -> list[str]:
    """A list of texts as it is; TypeError for anything else, such as one text, whose letters would be taken for it."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"wanted a list of texts, got {value!r:.60}")
    return value


def text_of(value) -> str:
    """A text as it is; TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"wanted a text, got {value!r:.60}")
    return value


def archived(path: Path, *keys: str) -> tuple[dict[str, int], list[np.ndarray]]:
    """Clip id → row, of the array `ids` of a .npz, and its arrays of these keys; the others are not read. CorpusError
    where they are not there, damaged, or larger than the memory of this machine."""
    check_regular(path)
    with expecting(path, "a complete .npz archive", "copy it again"), np.load(path, allow_pickle=False) as archive:
        if missing := [key for key in ("ids", *keys) if key not in archive.files]:
            raise CorpusError(f"{path}: no array {listed(missing)}; wanted a .npz that holds {listed(['ids', *keys])}")
        size, most = sum(archive.zip.getinfo(f"{key}.npy").file_size for key in keys), psutil.virtual_memory().total
        if size > most:
            raise CorpusError(
                f"{path}: {size / 1e9:.0f} GB of arrays, this machine has {most / 1e9:.0f}; copy it again"
            )
        return rows_of(path, [tidy(str(clip)) for clip in archive["ids"].ravel()]), [archive[key] for key in keys]


def first_of(home: Path, *names: str) -> Path:
    """The first of these files of `home` that exists; the last, for the error message to name, if none does."""
    return next((home / name for name in names if (home / name).is_file()), home / names[-1])


def sizes(splits: Mapping) -> str:
    """Such as "train 700, val 100, test 200"."""
    return ", ".join(f"{name} {len(members)}" for name, members in splits.items())


def proportion(some: int, of: int, what: str = " clips") -> str:
    """Such as "3 of 200 clips (1.5 %)"."""
    return f"{some} of {of}{what} ({100 * some / max(of, 1):.1f} %)"


def check_options(corpus: str, unknown, whole: Mapping[str, tuple], **shares) -> None:
    """CorpusError for an option of a generated corpus that is unknown or out of range. whole: option → its value, the
    least and the most that it may be, whole numbers; shares: options from 0 to 1."""
    if unknown:
        raise CorpusError(f"{corpus}: unknown option {listed(unknown)}; it takes {', '.join([*whole, *shares])}")
    for option, (value, least, most) in whole.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
            raise CorpusError(f"{corpus}: {option}={value!r:.60}; give a whole number from {least} to {most}")
    for option, value in shares.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise CorpusError(f"{corpus}: {option}={value!r:.60}; give a share from 0 to 1, such as 0.02")
