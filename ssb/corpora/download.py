"""The files that each corpus needs (sources.csv), and fetching those that have a link: resumed after an interruption,
checked, unpacked."""

import functools
import json
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
from ssb.corpora.reading import SOURCES, UNZIPPING

RECORD = "checksums.txt"  # in the dataset's folder: sums of fetched files without a known one, as sha256sum writes them
CHUNK = 1 << 16
TARS = ".tar.gz", ".tgz", ".tar"
ARCHIVES = ".zip", *TARS  # the ends of their names
TIMEOUT = 60  # seconds
PAGE = "a web page arrived, not the file; not kept; fetch the file with a browser"


class FetchError(ValueError):
    """A file that could not be fetched; the message names the link and how to fix it."""


@dataclass(frozen=True)
class Needed:
    """A file of a dataset, a row of sources.csv. names: those it may have, in the order in which they are looked for;
    "captions" is a folder with a file for each video. link: the file, which may have another name there, or an archive
    that contains it. sha256: of each name, where known."""

    dataset: str
    names: list[str]
    corpora: list[str]
    what: str
    page: str
    link: str
    sha256: list[str]

    @property
    def packed(self) -> bool:
        """Whether the link is that of an archive."""
        return self.linked.endswith(ARCHIVES) and self.linked not in self.names

    @property
    def linked(self) -> str:
        """The name of the file in the link; "" without a link."""
        return urlsplit(self.link).path.rpartition("/")[2]

    @property
    def target(self) -> str:
        """The name under which it is kept: that in the link if it is one of the names, else the first."""
        return self.linked if self.linked in self.names else self.names[0]

    def sum(self, name: str) -> str | None:
        """The SHA-256 of the version of this name, where known."""
        return dict(zip(self.names, self.sha256)).get(name)

    def present(self, home: Path) -> str | None:
        """The name under which it is in the folder; None where it is not."""
        for name in self.names:
            if (home / name).is_file() or any(path.suffix in (".csv", ".json") for path in (home / name).glob("*.*")):
                return name
        return None

    def state(self, home: Path) -> str:
        """Whether it is in the folder and has the known or the recorded sum, in words."""
        name = self.present(home)
        if name is None:
            return "missing"
        expected, recorded = self.sum(name), read_record(home).get(name)
        if not expected and not recorded:
            return "there, checksum not known"
        same = pooch.file_hash(str(home / name)) == (expected or recorded)
        if expected:
            return "there, sha256 ok" if same else "other content: counts may differ"
        return f"there, sha256 as in {RECORD}" if same else f"other content than in {RECORD}"


def sources() -> list[Needed]:
    """The files of all datasets."""
    table = pd.read_csv(SOURCES, keep_default_na=False)
    lists = table[["names", "corpora", "sha256"]].apply(lambda column: column.str.split())
    return [Needed(**row) for row in table.assign(**lists).to_dict("records")]


# Fetching


def download(names: list[str]) -> list[str]:
    """Fetch every missing file of these corpora that has a link; returns what went wrong, a line each. A file that is
    there is never touched, and a fetched file whose SHA-256 is not the known one is not kept."""
    data, wrong = files.data(), []
    wanted = [file for file in sources() if set(names) & set(file.corpora) and file.link]
    missing = [file for file in wanted if not file.present(data / file.dataset)]
    for link in dict.fromkeys(file.link for file in missing):  # one archive may hold several files
        try:
            fetch([file for file in missing if file.link == link], data)
        except FetchError as error:
            wrong.append(str(error))
        except OSError as error:
            wrong.append(f"{link}: cannot be kept ({error}); free space there or set SSB_DATA to another folder")
    return wrong


def fetch(wanted: list[Needed], data: Path):
    """Fetch the files of one link into their dataset's folder. FetchError where that fails."""
    file, home = wanted[0], data / wanted[0].dataset
    path = home / (file.linked if file.packed else file.target)
    own = path.exists()  # an archive that the reader has put there is used, and kept
    expected = None if file.packed else file.sum(file.target)
    home.mkdir(parents=True, exist_ok=True)
    print(f"fetching {file.link}", flush=True)
    pooch.get_logger().setLevel(logging.WARNING)
    get, failure = functools.partial(resume, part=home / f"{path.name}.part"), None
    try:
        pooch.retrieve(file.link, known_hash=expected, fname=path.name, path=home, downloader=get)
        if file.packed:
            unpack(path, wanted)
        else:
            record(home, file.target, expected, pooch.file_hash(str(path)))
    except ValueError as error:  # also pooch's, of a file with a wrong SHA-256, which it has not kept
        link = "" if isinstance(error, FetchError) else f"{file.link}: "
        failure = FetchError(f"{link}{error}; see {file.page}")
    if file.packed and not own:
        path.unlink(missing_ok=True)
    if failure:
        raise failure


def resume(url: str, output: str, _pooch=None, *, part: Path):
    """A downloader for pooch that keeps what has arrived in `part`, and continues from its end in the next call.

    <part>.mark holds the version (ETag or date) that it is of. If the server cannot continue, or has another version
    now, all of the file is fetched again. FetchError where the transfer fails, or something else arrives."""
    answered, mark = False, part.with_name(f"{part.name}.mark")
    had = part.stat().st_size if part.is_file() and mark.is_file() else 0
    headers = {"Range": f"bytes={had}-", "If-Range": mark.read_text(encoding="utf-8")} if had else {}
    try:
        with requests.get(
            url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=TIMEOUT
        ) as answer:
            answered = True
            begin, _, total = re.sub("^bytes ", "", answer.headers.get("Content-Range", "")).partition("/")
            complete = answer.status_code == 416 and total == str(had)  # the process was killed after the last byte
            continued = had and answer.status_code == 206
            if not complete:
                if had and answer.status_code == 416 or continued and begin.split("-")[0] != str(had):
                    part.unlink()
                    return resume(url, output, part=part)
                answer.raise_for_status()
                if answer.headers.get("Content-Type", "").startswith("text/html"):
                    raise FetchError(f"{url}: {PAGE}")
                tag = answer.headers.get("ETag", "W/")
                tag = answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
                if continued:
                    print(f"  continuing after {had:,} bytes", flush=True)
                else:
                    part.unlink(missing_ok=True)  # before it gets another mark
                mark.write_text(tag, encoding="utf-8") if tag else mark.unlink(missing_ok=True)
                with open(part, "ab") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
    except requests.HTTPError as error:
        raise FetchError(f"{url}: the server says {error.response.status_code} {error.response.reason}") from None
    except requests.RequestException as error:
        size = part.stat().st_size if part.is_file() else 0
        then = "continues from there" if mark.is_file() else "starts again, as this server cannot continue"
        cause = f"cut after {size:,} bytes; the same command {then}" if answered or size else "no connection"
        if not answered and "Connection aborted" in str(error):
            cause = "cut before the server answered; the same command tries again"
        elif isinstance(error, requests.ReadTimeout):
            cause = f"no answer in {TIMEOUT} seconds; the same command tries again"
        raise FetchError(f"{url}: {cause} ({type(error).__name__})") from None
    if fault := wrong_content(part, part.name.removesuffix(".part")):
        part.unlink()
        mark.unlink(missing_ok=True)
        raise FetchError(f"{url}: {fault}")
    os.replace(part, output)
    mark.unlink(missing_ok=True)


def wrong_content(path: Path, name: str) -> str | None:
    """Why what has arrived cannot be the file of this name, in a clause; None where it may be. A file whose sum is not
    known is checked by nothing else."""
    with open(path, "rb") as file:
        begin = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not begin:
        return "an empty file arrived; not kept; the same command fetches it again"
    if begin.startswith(b"<") and not name.endswith((".html", ".xml")):
        return PAGE
    if name.endswith(".zip") and not zipfile.is_zipfile(path) or name.endswith(TARS) and not tarfile.is_tarfile(path):
        return "what arrived is not a complete archive; not kept; the same command fetches it again"
    if name.endswith(".npz") and not zipfile.is_zipfile(path) or name.endswith(".npy") and begin[:6] != b"\x93NUMPY":
        return "what arrived is not a complete array of numpy; not kept; the same command fetches it again"
    if name.endswith(".csv") and b"\0" in begin:
        return "what arrived is not text, as a CSV is; not kept; fetch it with a browser"
    if name.endswith(".json"):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "what arrived is not complete JSON; not kept; the same command fetches it again"
    return None


def unpack(archive: Path, wanted: list[Needed]):
    """Extract the wanted files, wherever in a zip or tar.gz they are, each under its own name; nothing else. FetchError
    for one that is missing or not unique there, or whose SHA-256 is not the known one."""
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as packed:
            zipped = isinstance(packed, zipfile.ZipFile)
            names = packed.namelist() if zipped else [member.name for member in packed if member.isfile()]
            for file in wanted:
                matches = [name for name in names if base_name(name) == file.target]
                if len(matches) != 1:
                    raise FetchError(f"{file.link}: has {len(matches)} files {file.target}; wanted one")
                with (
                    (packed.open if zipped else packed.extractfile)(matches[0]) as source,
                    files.written(archive.with_name(file.target)) as draft,
                ):
                    with open(draft, "wb") as copy:
                        shutil.copyfileobj(source, copy)
                    expected, actual = file.sum(file.target), pooch.file_hash(str(draft))
                    if expected and actual != expected:
                        fault = f"{file.target} has the sha256 {actual}, wanted {expected}; not kept"
                        raise FetchError(f"{file.link}: {fault}")
                record(archive.parent, file.target, expected, actual)
    except (*UNZIPPING, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the disk
            raise
        wrong = f"not a complete archive ({type(error).__name__})"
        raise FetchError(f"{archive}: {wrong}; delete it if it is there, and try again") from None


def base_name(name: str) -> str:
    """The file name at the end of a path in an archive; "" for a path that leads out of it."""
    path = Path(name)
    return "" if path.is_absolute() or ".." in path.parts else path.name


def record(home: Path, name: str, expected: str | None, actual: str):
    """Print that a file has arrived, and write its sum to RECORD if none was known."""
    print(f"  {home.name}/{name}: sha256 {'ok' if expected else actual}", flush=True)
    if not expected:
        lines = [f"{digest}  {file}\n" for file, digest in sorted((read_record(home) | {name: actual}).items())]
        with files.written(home / RECORD) as draft:
            draft.write_text("".join(lines), encoding="utf-8")


def read_record(home: Path) -> dict[str, str]:
    """File → its sum when it was fetched."""
    path = home / RECORD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}
