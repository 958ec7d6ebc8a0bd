"""What each corpus needs, where it comes from, how much of it is there; and getting what has a direct link.

    python -m ssb.datasets                      the names
    python -m ssb.datasets msvd                 its files and features
    python -m ssb.datasets msvd --download      fetches the missing files that have a link, then the same

It ends with 0 where the corpus can be loaded, or of UCF-101, HMDB-51 and CrossTask the labels can be read, 1 where
something is missing, 2 where it was asked for wrongly. Clips without features are listed in results/cache/missing/. The
files are listed in sources.csv. Pages and links were found in public sources and may have moved; the SHA-256 sums are
those of the versions that the study was tested with, so that a file of another sum may be good, and have other counts.
"""

import argparse
import functools
import logging
import os
import re
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pooch
import requests

from ssb import datasets, files
from ssb.corpus import Corpus, CorpusError, listed, load_corpus
from ssb.howto100m import HowTo100M
from ssb.readers import UNZIPPING, clips_of, list_missing, share

ABOUT = {
    "msrvtt1k": "MSR-VTT, its first 1,000 clips: 700 / 100 / 200",
    "msrvtt1k_even": "those of even category numbers: 346 / 44 / 95",
    "msrvtt1k_odd": "those of odd category numbers: 354 / 56 / 105",
    "msrvtt_full": "MSR-VTT, official split: 6,513 / 497 / 2,990",
    "msrvtt_1ka": "MSR-VTT, 1k-A split: 8,503 / 497 / 1,000",
    "msrvtt_1ka_7k": "MSR-VTT, 1k-A test, official training: 6,513 / 497 / 1,000",
    "msvd": "MSVD: 1,200 / 100 / 670",
    "activitynet": "ActivityNet Captions, paragraphs, tested on val_1: 9,509 / 500 / 4,917",
    "activitynet_val2": "the same, tested on val_2: 9,509 / 500 / 4,885",
    "youcook2": "YouCook2, annotated steps: 9,821 / 516 / 3,350",
    "vatex": "VATEX, English captions: 25,991 / 1,500 / 1,500",
    "vidvrd": "VidVRD, templated relations: 268 / 45 / 134",
    "crosstask": "CrossTask, annotated steps of 331 videos; no captions",
    "ucf101": "UCF-101, labels of 13,320 clips; no captions",
    "hmdb51": "HMDB-51, labels of 6,766 clips; no captions",
    "howto100m": "HowTo100M, narration with times",
}
FAMILIES = {"msrvtt": [name for name in ABOUT if name.startswith("msrvtt")], "all": list(ABOUT)}
LABELLED = {"crosstask": datasets.crosstask, "ucf101": datasets.ucf101, "hmdb51": datasets.hmdb51}
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


# What is there


def report(name: str) -> bool:
    """Print what corpus or family `name` has and lacks; is all of it there?"""
    data, rows, well = files.data(), [], set()
    names = FAMILIES.get(name, [name])
    wanted = [file for file in sources() if set(names) & set(file.corpora)]
    for file in wanted:
        home = data / file.dataset
        shown = file.found(home) or " or ".join(reversed(file.names))
        rows.append((f"{file.dataset}/{shown}", file.state(home), file.what, file.page))
    print(f"wanted in {data} (SSB_DATA, or data/ of the study):")
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    for corpus in names:
        complete, summary, lines = check(corpus, [file for file in wanted if corpus in file.corpora], data)
        print(f"{corpus}: {summary}", *lines, sep="\n  ")
        well |= {corpus} if complete else set()
    needed = (file for file in wanted if set(names) & set(file.corpora) - well)
    missing = [file for file in needed if not file.found(data / file.dataset)]
    if linked := [file.target for file in missing if file.link]:
        print(f"to fetch {', '.join(linked)}:", f"python -m ssb.datasets {name} --download", sep="\n  ")
    for file in missing:
        if not file.link:
            print(f"{file.dataset}/{file.target} has no link: {file.what}{'; see ' if file.page else ''}{file.page}")
    return well == set(names)


def check(corpus: str, wanted: list[Needed], data: Path) -> tuple[bool, str, list[str]]:
    """Can it be loaded, of labels: read; that in words; and lines that say why not, and how many of the clips have
    features."""
    reader, home = datasets.READERS.get(corpus), data / wanted[0].dataset
    try:
        if reader and (own := reader.own(data)):
            read = f"{own} is a folder of your own, read instead of the official files"
            return True, "complete", [read, loaded(reader(data))]
        missing = [file.target for file in wanted if not file.found(home)]
        if corpus == "howto100m":
            return check_howto100m(home, missing)
        if missing:
            return False, "not complete", [f"missing: {', '.join(missing)}"]
        streams, clips = without(corpus, home)
        lines = [covered(corpus, stream, lacking, clips) for stream, lacking in streams.items()]
        lines = lines or [f"no features, which are yours: {extraction(corpus, home, clips)}"]
        if reader is None:
            counts = (f"{name} {share(len(clips) - len(gone), len(clips))}" for name, gone in streams.items())
            return True, f"labels complete; features: {', '.join(counts) or 'none'}", lines
        if any(streams.values()):
            lines.append('extract them, or leave out the clips that lack some: corpus_options={"missing": "drop"}')
        if any(streams.values()) or not streams:
            return False, "not complete", lines
        return True, "complete", [*lines, loaded(reader(data))]
    except CorpusError as error:
        return False, "not complete", [str(error)]


def check_howto100m(home: Path, missing: list[str]) -> tuple[bool, str, list[str]]:
    """It is loaded from its index, which may outlive the narrations."""
    try:
        corpus = load_corpus("howto100m")
        corpus.fingerprint  # for which some of the features are read
        return True, "complete", [loaded(corpus)]
    except CorpusError as error:
        lines = [str(error)] if (home / "index" / "found" / "found.json").is_file() else []
        lines += [f"missing: {', '.join(missing)}"] if missing else []
        if not any(home.glob("features/[!.]*/")):
            lines.append(f"no features, which are yours: {extraction('howto100m', home, [])}")
        return False, "not complete", [*lines, f"when all is there, index it: python -m ssb.howto100m {home}"]


def extraction(corpus: str, home: Path, clips: list[str]) -> str:
    """How features are made."""
    command = f"python -m ssb.video CLIPS --stream resnet --model microsoft/resnet-152 --out {home / 'features'}"
    if corpus != "youcook2":
        return command
    return (
        f"a clip is one step, so first cut the videos at the annotated times (datasets.youcook2 lists video, start and "
        f"end) into CLIPS/<video>_<step>.mp4, such as {clips[0]}.mp4, which make <video>_<step>.npy; then {command}"
    )


def without(corpus: str, home: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Stream → the clips that it lacks; and all clips."""
    if corpus in LABELLED:
        table = LABELLED[corpus](home)
        clips = table["video" if "video" in table else "clip"].unique().tolist()
        return datasets.features_lacking(home, clips), clips
    reader = datasets.READERS[corpus]
    clips = clips_of(reader.annotation(home)[1])
    return reader.lacking(home, clips), clips


def covered(corpus: str, stream: str, lacking: list[str], clips: list[str]) -> str:
    listing = list_missing(corpus, {stream: lacking})
    rest = f"; none for {listed(lacking)}{listing}" if lacking else ""
    return f"features {stream}: {share(len(clips) - len(lacking), len(clips))}{rest}"


def loaded(corpus: Corpus | HowTo100M) -> str:
    return "it loads: " + ", ".join(f"{split} {len(members)}" for split, members in corpus.splits.items())


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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m ssb.datasets", description="What a corpus needs, and getting it.")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"a corpus, or {' or '.join(FAMILIES)}; none: the list")
    parser.add_argument("--download", action="store_true", help="fetch the missing files that have a direct link")
    given = parser.parse_args(arguments)
    if given.name is None:
        if given.download:
            parser.error("--download of what? name a corpus")
        print(*(f"{name:<17} {about}" for name, about in ABOUT.items()), sep="\n")
        return 0
    if given.name not in ABOUT | FAMILIES:
        parser.error(f"no corpus {given.name!r}; there are {', '.join([*ABOUT, *FAMILIES])}")
    try:
        wrong = download(FAMILIES.get(given.name, [given.name])) if given.download else []
        well = report(given.name)
    except OSError as error:
        well, wrong = False, [str(error)]
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(*(f"error: {line}\n" for line in wrong), sep="", end="", file=sys.stderr)
    return 0 if well and not wrong else 1
