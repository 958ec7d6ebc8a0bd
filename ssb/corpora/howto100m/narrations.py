"""The narrations of HowTo100M (Miech et al., 2019) as they are published, read one video at a time.

Official: `caption.json`, one JSON object of several GB, video id → {"start": […], "end": […], "text": […]}, the seconds
at which each narration begins and ends and its words, without stop words (the authors' raw_caption.json, of the same
form, has them). Or `captions/`, for each video one <video id>.csv with the columns start, end, text, the form that the
code of Miech et al. (2020) reads, or one <video id>.json of {"start": […], "end": […], "text": […]}. caption.json is
read if both exist.

Ours: an error in a video skips that video alone (`UnusableError`), as the narrations are automatic transcripts, 136
million of them; and a narration of stop words alone, which has no words left, is skipped.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssb import files
from ssb.corpora.reading import CorpusError, listed, read_text
from ssb.corpora.tables import parsed

BLOCK = 1 << 22  # bytes read at a time
LONGEST = 1 << 26  # characters of one video; anything longer is not a list of narrations
NAME = re.compile(r"(?!\.)[^\s/\\\0\ud800-\udfff]{1,60}")  # of a video: a file name and a word, in UTF-8
OPENING, EMPTY, KEY, COLON, NEXT = (  # the punctuation of an object, each after any white space
    re.compile(mark.replace(" ", r"[ \t\n\r]*")) for mark in ("\ufeff? {", " }", ' (?=")', " : ", " [,}]")
)
DECODER = json.JSONDecoder(strict=False)  # which allows line breaks inside a text


class UnusableError(ValueError):
    """A video whose narrations cannot be used; the message says why."""


def source(folder: Path) -> Path:
    """caption.json or captions/ of a folder; CorpusError where it has neither."""
    for path in (folder / "caption.json", folder / "captions"):
        if path.exists():
            return path
    raise CorpusError(f"{folder}: neither caption.json nor captions/; put the narrations of HowTo100M there")


def state(path: Path) -> dict:
    """What changes when the narrations change: `of`, their total number of bytes or files, and `sha`, a hash of sizes
    and times of change."""
    if path.is_dir():
        names = video_files(path)
        stats = ((path / name).stat() for name in names)
        facts = (f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in zip(names, stats))
        return {"of": len(names), "sha": files.digest(*facts)}
    stat = path.stat()
    return {"of": stat.st_size, "sha": files.digest(f"{stat.st_size} {stat.st_mtime_ns}")}


def videos(path: Path, position: int = 0) -> Iterator[tuple[str, object, int]]:
    """Each video's id, its entry, an argument of `checked`, and the position after it: of the next byte or the next
    file. `position`: where to begin."""
    return file_videos(path, position) if path.is_dir() else json_videos(path, position)


def json_videos(path: Path, position: int) -> Iterator[tuple[str, object, int]]:
    """`videos` of a caption.json, with no more than a block and a video in memory.

    A reader of JSON streams such as ijson stops at the first NaN and at the first byte that is not UTF-8; here they
    only invalidate their video. CorpusError where the file is not such an object, or ends too early.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    buffer, begin, last = "", 0, False  # text that has been read, where the next key begins in it
    with open(path, "rb") as file:
        file.seek(position)
        while not last:
            try:
                key, entry, end, last = one_video(buffer, begin, first=position == 0)
            except (ValueError, RecursionError) as error:  # not such an object, or not yet all of it
                block = file.read(BLOCK)
                if not block or len(buffer) - begin > LONGEST:
                    raise CorpusError(
                        f'{path}: from byte {position} on not {{video id: {{"start": […], "end": […], "text": […]}}, '
                        f"…}} ({error}); download it again"
                    ) from None
                buffer, begin = buffer[begin:] + decode(block), 0
                continue
            position += len(buffer[begin:end].encode("utf-8", "surrogateescape"))
            begin = end
            if key is not None:
                yield key, entry, position
        rest = buffer[begin:].encode("utf-8", "surrogateescape")
        while not rest.strip():
            if not (rest := file.read(BLOCK)):
                return
        raise CorpusError(f"{path}: goes on after its object has ended, at byte {position}; download it again")


def one_video(buffer: str, begin: int, first: bool) -> tuple[str | None, object, int, bool]:
    """A key and its value from position `begin` on, the position after the comma or brace that follows, and whether it
    is the brace; key None: the object is empty. ValueError where the buffer ends before. first: the object begins
    here."""
    begin = after(OPENING, buffer, begin) if first else begin
    if first and (empty := EMPTY.match(buffer, begin)):
        return None, None, empty.end(), True
    key, begin = DECODER.raw_decode(buffer, after(KEY, buffer, begin))
    entry, begin = DECODER.raw_decode(buffer, after(COLON, buffer, begin))
    end = after(NEXT, buffer, begin)
    return key, entry, end, buffer[end - 1] == "}"


def after(mark: re.Pattern, buffer: str, begin: int) -> int:
    """The position after a mark that begins at position `begin`; ValueError where there is another character."""
    if match := mark.match(buffer, begin):
        return match.end()
    raise ValueError(f"unexpected {buffer[begin : begin + 20]!r}")


def video_files(folder: Path) -> list[str]:
    """Names of the videos' files, sorted. CorpusError where there are none, or both .csv and .json."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name[0] != ".")
    kinds = [[name for name in names if name.endswith(ending)] for ending in (".csv", ".json")]
    if all(kinds):
        raise CorpusError(
            f"{folder}: has {len(kinds[0])} .csv and {len(kinds[1])} .json, such as {kinds[0][0]} and {kinds[1][0]}; "
            f"keep one kind"
        )
    if not any(kinds):
        raise CorpusError(f"{folder}: no <video id>.csv or .json in it; put the narrations of HowTo100M there")
    return kinds[0] or kinds[1]


def file_videos(folder: Path, position: int) -> Iterator[tuple[str, object, int]]:
    """`videos` of a folder captions/."""
    for number, name in enumerate(video_files(folder)[position:], position + 1):
        yield name.removesuffix(".csv").removesuffix(".json"), folder / name, number


def file_entry(path: Path):
    """The content of the file of one video, in the form of caption.json. UnusableError where it cannot be read."""
    try:
        if path.suffix == ".json":
            return DECODER.decode(read_text(path, "readable"))
        header, *rows = parsed(Path(path.name), read_text(path, "readable"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableError(f"not a readable {path.suffix[1:].upper()} ({error})") from None
    if not {"start", "end", "text"} <= set(header):
        raise UnusableError(f"columns are {listed(header)}; wanted start, end, text, separated by commas")
    return {name: [row[header.index(name)] for row in rows] for name in ("start", "end", "text")}


def checked(name: str, entry) -> tuple[np.ndarray, list[bytes]]:
    """Begin and end (m, 2) float32 in seconds and the words, UTF-8 in one line, of each narration of a video that has
    words. UnusableError where the video cannot be used."""
    if not NAME.fullmatch(name):
        raise UnusableError("its id is not a file name of 1 to 60 characters without spaces")
    entry = file_entry(entry) if isinstance(entry, Path) else entry
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), list) for key in ("start", "end", "text")):
        raise UnusableError("not the three lists start, end and text")
    start, end, text = entry["start"], entry["end"], entry["text"]
    if not len(start) == len(end) == len(text):
        raise UnusableError(f"{len(start)} starts, {len(end)} ends and {len(text)} texts")
    try:
        times = np.array([start, end], np.float64).reshape(2, len(text)).T  # (m, 2)
    except (TypeError, ValueError, OverflowError):
        raise UnusableError("a start or end is not a number") from None
    if not (np.isfinite(times) & (times >= 0) & (times < 1e6)).all():
        raise UnusableError("a start or end is NaN, negative or beyond a million seconds")
    if (times[:, 1] < times[:, 0]).any():
        raise UnusableError("a narration ends before it begins")
    if set(map(type, text)) != {str}:  # None and NaN are pandas' empty text
        if strange := [x for x in text if not (x is None or isinstance(x, str) or x != x)]:
            raise UnusableError(f"a text is {strange[0]!r:.40}")
        text = [x if isinstance(x, str) else "" for x in text]
    try:
        lines = [" ".join(x.split()).encode() for x in text]
    except UnicodeEncodeError:
        raise UnusableError("its text is not UTF-8") from None
    kept = [i for i, line in enumerate(lines) if line]
    if not kept:
        raise UnusableError("no narration has words")
    return times[kept].astype(np.float32), [lines[i] for i in kept]


def printable(words: str) -> str:
    """The words in one line, without characters that UTF-8 cannot encode."""
    return " ".join(words.encode("utf-8", "backslashreplace").decode().split())
