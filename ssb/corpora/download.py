"""The files that each corpus needs (sources.csv), and fetching those that have a link: resumed, checked, unpacked."""

import functools
import logging
import os
import re
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pooch
import requests

from ssb import files
from ssb.corpora.reading import UNZIPPING

RECORD = "checksums.txt"  # beside the data: sums of fetched files of which none was known, as sha256sum writes them
CHUNK = 1 << 16
ARCHIVES = ".zip", ".tar.gz", ".tgz", ".tar"  # the ends of their names


class FetchError(ValueError):
    """A file that could not be had; the message names the link and the mend."""


@dataclass(frozen=True)
class Needed:
    """A file of a dataset, a row of sources.csv. names: what it may be called, in the order in which it is looked for;
    "captions" is a folder of a file for each video. link: the file, which may be called otherwise there, or an archive
    that holds it. sha256: of each name, where known."""

    dataset: str
    names: list[str]
    corpora: list[str]
    what: str
    page: str
    link: str
    sha256: list[str]

    @property
    def packed(self) -> bool:
        """Is the link that of an archive?"""
        return self.linked.endswith(ARCHIVES) and self.linked not in self.names

    @property
    def linked(self) -> str:
        """What the file is called where the link leads; "" without a link."""
        return urlsplit(self.link).path.rpartition("/")[2]

    @property
    def target(self) -> str:
        """The name under which it is fetched: that of the link where it is one of the names, else the first."""
        return self.linked if self.linked in self.names else self.names[0]

    def sum(self, name: str) -> str | None:
        return dict(zip(self.names, self.sha256)).get(name)

    def found(self, home: Path) -> str | None:
        """The name under which it is there."""
        for name in self.names:
            if (home / name).is_file() or any(path.suffix in (".csv", ".json") for path in (home / name).glob("*.*")):
                return name
        return None

    def state(self, home: Path) -> str:
        name = self.found(home)
        if name is None:
            return "missing"
        known, recorded = self.sum(name), read_record(home).get(name)
        if not known and not recorded:
            return "there, unknown sum"
        same = pooch.file_hash(str(home / name)) == (known or recorded)
        if known:
            return "there, sha256 ok" if same else "other content: counts may differ"
        return f"there, sha256 as in {RECORD}" if same else f"other content than in {RECORD}"


def sources() -> list[Needed]:
    table = pd.read_csv(Path(__file__).with_name("sources.csv"), keep_default_na=False)
    lists = table[["names", "corpora", "sha256"]].apply(lambda column: column.str.split())
    return [Needed(**row) for row in table.assign(**lists).to_dict("records")]


# Getting it


def download(names: list[str]) -> list[str]:
    """Fetch every missing file that has a link; returns what went wrong, a line each. A file that is there is never
    touched, and one that arrives with another sum than the known one is not kept."""
    data, wrong = files.data(), []
    wanted = [file for file in sources() if set(names) & set(file.corpora) and file.link]
    missing = [file for file in wanted if not file.found(data / file.dataset)]
    for link in dict.fromkeys(file.link for file in missing):  # several files may come in one archive
        try:
            fetch([file for file in missing if file.link == link], data)
        except FetchError as error:
            wrong.append(str(error))
        except OSError as error:
            wrong.append(f"{link}: cannot be kept ({error}); free the place or set SSB_DATA to another")
    return wrong


def fetch(wanted: list[Needed], data: Path):
    """The files of one link."""
    one, home = wanted[0], data / wanted[0].dataset
    path = home / (one.linked if one.packed else one.target)
    before = path.exists()  # an archive that someone has put there is used, and left
    known = None if one.packed else one.sum(one.target)
    home.mkdir(parents=True, exist_ok=True)
    print(f"fetching {one.link}", flush=True)
    pooch.get_logger().setLevel(logging.WARNING)
    get = functools.partial(resume, part=home / f"{path.name}.part")
    try:
        pooch.retrieve(one.link, known_hash=known, fname=path.name, path=home, downloader=get)
        if one.packed:
            unpack(path, wanted)
        else:
            enter(home, one.target, known, pooch.file_hash(str(path)))
    except ValueError as error:  # also pooch's, of a file with another sum, which it has not kept
        if one.packed and not before:
            path.unlink(missing_ok=True)
        link = "" if isinstance(error, FetchError) else f"{one.link}: "
        raise FetchError(f"{link}{error}; see {one.page}") from None
    if one.packed and not before:
        path.unlink()


def resume(url: str, output: str, _pooch=None, *, part: Path):
    """A downloader for pooch that keeps what has arrived in `part`, and goes on from its end the next time.

    Beside it stands the mark (ETag or date) of the version that it is of. A server that cannot go on, or has another
    version now, is asked for all of it. FetchError where nothing comes or not all."""
    mark = part.with_name(f"{part.name}.mark")
    had = part.stat().st_size if part.is_file() and mark.is_file() else 0
    asked = {"Range": f"bytes={had}-", "If-Range": mark.read_text(encoding="utf-8")} if had else {}
    try:
        with requests.get(url, headers={"Accept-Encoding": "identity", **asked}, stream=True, timeout=60) as answer:
            begin, _, total = re.sub("^bytes ", "", answer.headers.get("Content-Range", "")).partition("/")
            if answer.status_code == 416 and total == str(had):  # all of it had come before the process was killed
                return arrived(part, mark, output)
            if had and (answer.status_code == 416 or answer.status_code == 206 and begin.split("-")[0] != str(had)):
                part.unlink()
                return resume(url, output, part=part)
            answer.raise_for_status()
            had = had if answer.status_code == 206 else 0
            if not had:
                part.unlink(missing_ok=True)  # before it gets another mark
            tag = answer.headers.get("ETag", "W/")
            tag = answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
            mark.write_text(tag, encoding="utf-8") if tag else mark.unlink(missing_ok=True)
            if had:
                print(f"  going on after {had:,} bytes", flush=True)
            with open(part, "ab" if had else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
    except requests.HTTPError as error:
        raise FetchError(f"{url}: the server says {error.response.status_code} {error.response.reason}") from None
    except requests.RequestException as error:
        size = part.stat().st_size if part.is_file() else 0
        mend = "goes on from there" if mark.is_file() else "begins anew, as this server cannot go on"
        again = f"cut after {size:,} bytes; the same command {mend}" if size else "no connection"
        raise FetchError(f"{url}: {again} ({type(error).__name__})") from None
    arrived(part, mark, output)


def arrived(part: Path, mark: Path, output: str):
    os.replace(part, output)
    mark.unlink(missing_ok=True)


def unpack(archive: Path, wanted: list[Needed]):
    """The wanted files out of a zip or tar.gz, each written under its own name, wherever in the archive it is; nothing
    else is. FetchError for one that is not there or is there twice, or has another sum than the known one."""
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as held:
            zipped = isinstance(held, zipfile.ZipFile)
            names = held.namelist() if zipped else [member.name for member in held if member.isfile()]
            for file in wanted:
                found = [name for name in names if inside(name) == file.target]
                if len(found) != 1:
                    raise FetchError(f"{file.link}: has {len(found)} files {file.target}; wanted one")
                with (
                    (held.open if zipped else held.extractfile)(found[0]) as source,
                    files.written(archive.with_name(file.target)) as draft,
                ):
                    with open(draft, "wb") as copy:
                        shutil.copyfileobj(source, copy)
                    known, got = file.sum(file.target), pooch.file_hash(str(draft))
                    if known and got != known:
                        raise FetchError(f"{file.link}: {file.target} has the sha256 {got}, wanted {known}; not kept")
                enter(archive.parent, file.target, known, got)
    except (*UNZIPPING, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk is at fault
            raise
        wrong = f"not a complete archive ({type(error).__name__})"
        raise FetchError(f"{archive}: {wrong}; delete it if it is there, and try again") from None


def inside(name: str) -> str:
    """The last part of a path in an archive; "" where that leads out of it."""
    path = Path(name)
    return "" if path.is_absolute() or ".." in path.parts else path.name


def enter(home: Path, name: str, known: str | None, got: str):
    """Say that a file has come, and enter its sum in the record where none was known."""
    print(f"  {home.name}/{name}: sha256 {'ok' if known else got}", flush=True)
    if not known:
        lines = [f"{sum}  {file}\n" for file, sum in sorted((read_record(home) | {name: got}).items())]
        with files.written(home / RECORD) as draft:
            draft.write_text("".join(lines), encoding="utf-8")


def read_record(home: Path) -> dict[str, str]:
    """File → its sum when it was fetched."""
    path = home / RECORD
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {found[2]: found[1] for found in (re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines) if found}
