"""What each corpus needs, where it comes from, how much of it is there; and getting what has a direct link.

    ssb data                      the names, and whether the files are there
    ssb data msvd                 its files and features
    ssb data msvd --download      fetches the missing files that have a link, then the same

A corpus is complete where it can be loaded, or of UCF-101, HMDB-51 and CrossTask the labels can be read. Clips without
features are listed in results/cache/missing/. The files are listed in sources.csv. Pages and links were found in public
sources and may have moved; the SHA-256 sums are those of the versions that the study was tested with, so that a file of
another sum may be good, and have other counts.
"""

from pathlib import Path

from ssb import files
from ssb.corpora import download, features
from ssb.corpora.corpus import Corpus
from ssb.corpora.download import Needed
from ssb.corpora.features import clips_of, list_missing
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.corpora.load import CORPORA
from ssb.corpora.official import Reader
from ssb.corpora.reading import CorpusError, listed, share
from ssb.corpora.record import Record


def members(name: str) -> list[str]:
    """The corpora that a name stands for: itself, those of a dataset, or "all". CorpusError listing the names if it is
    none."""
    if name in CORPORA:
        return [name]
    if found := [record.name for record in CORPORA.values() if record.dataset and name in (record.dataset, "all")]:
        return found
    datasets = {record.dataset for record in CORPORA.values()} - {"", *CORPORA}
    raise CorpusError(f"no corpus {name!r}; there are {', '.join([*CORPORA, *sorted(datasets), 'all'])}")


def overview() -> list[str]:
    """A line for each corpus: its name, how much of it is there, what it is. Looks at the names of files alone."""
    needed, data = download.sources(), files.data()
    rows = [(record.name, presence(record, needed, data), record.about) for record in CORPORA.values()]
    wide, widest = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{wide}}  {state:<{widest}}  {about}" for name, state, about in rows]


def presence(record: Record, needed: list[Needed], data: Path) -> str:
    """How much of a corpus is in the folder `data`, in words. needed: the files of all corpora."""
    if not record.dataset:
        return "drawn by the library"
    if isinstance(record.read, Reader) and record.read.own():
        return "a folder of your own"
    home = data / record.dataset
    if (home / "index" / "found" / "found.json").is_file():
        return "indexed"
    found = [file.found(home) for file in needed if record.name in file.corpora]
    if None in found:
        return f"{found.count(None)} of {len(found)} files missing" if any(found) else "not there"
    featured = "features.npz" in found or any(home.glob("features/[!.]*"))
    return "files complete" if featured else "files complete, no features"


def report(name: str) -> bool:
    """Print what corpus or family `name` has and lacks; is all of it there?"""
    if name in CORPORA and not CORPORA[name].dataset:
        print(f"{name}: complete", "it is drawn by the library and needs no files", sep="\n  ")
        return True
    data, rows, well = files.data(), [], set()
    names = members(name)
    wanted = [file for file in download.sources() if set(names) & set(file.corpora)]
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
        print(f"to fetch {', '.join(linked)}:", f"`ssb data {name} --download`", sep="\n  ")
    for file in missing:
        if not file.link:
            print(f"{file.dataset}/{file.target} has no link: {file.what}{'; see ' if file.page else ''}{file.page}")
    return well == set(names)


def check(corpus: str, wanted: list[Needed], data: Path) -> tuple[bool, str, list[str]]:
    """Can it be loaded, of labels: read; that in words; and lines that say why not, and how many of the clips have
    features."""
    record = CORPORA[corpus]
    official, home = isinstance(record.read, Reader), data / record.dataset
    try:
        if official and (own := record.read.own()):
            read = f"{own} is a folder of your own, read instead of the official files"
            return True, "complete", [read, loaded(record.read())]
        missing = [file.target for file in wanted if not file.found(home)]
        if not official and not record.labels:
            return check_indexed(record, home, missing)
        if missing:
            return False, "not complete", [f"missing: {', '.join(missing)}"]
        streams, clips = without(corpus, home)
        lines = [covered(corpus, stream, lacking, clips) for stream, lacking in streams.items()]
        lines = lines or [f"no features, which are yours: {extraction(record, home, clips)}"]
        if record.labels:
            counts = (f"{name} {share(len(clips) - len(gone), len(clips))}" for name, gone in streams.items())
            return True, f"labels complete; features: {', '.join(counts) or 'none'}", lines
        if any(streams.values()):
            lines.append('extract them, or leave out the clips that lack some: corpus_options={"missing": "drop"}')
        if any(streams.values()) or not streams:
            return False, "not complete", lines
        return True, "complete", [*lines, loaded(record.read())]
    except CorpusError as error:
        return False, "not complete", [str(error)]


def check_indexed(record: Record, home: Path, missing: list[str]) -> tuple[bool, str, list[str]]:
    """`check` of a corpus that is loaded from its index, which may outlive the narrations."""
    try:
        corpus = record.read()
        corpus.fingerprint  # for which some of the features are read
        return True, "complete", [loaded(corpus)]
    except CorpusError as error:
        lines = [str(error)] if (home / "index" / "found" / "found.json").is_file() else []
        lines += [f"missing: {', '.join(missing)}"] if missing else []
        if not any(home.glob("features/[!.]*/")):
            lines.append(f"no features, which are yours: {extraction(record, home, [])}")
        return False, "not complete", [*lines, f"when all is there, index it: `ssb index {home}`"]


def extraction(record: Record, home: Path, clips: list[str]) -> str:
    """How features are made."""
    command = f"`ssb extract CLIPS --stream resnet --model microsoft/resnet-152 --out {home / 'features'}`"
    return f"{record.cutting.format(first=clips[0])}; then {command}" if record.cutting else command


def without(corpus: str, home: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Stream → the clips that it lacks; and all clips."""
    record = CORPORA[corpus]
    if record.labels:
        table = record.labels(home)
        clips = table["video" if "video" in table else "clip"].unique().tolist()
        return features.features_lacking(home, clips), clips
    clips = clips_of(record.read.annotation(home)[1])
    return record.read.lacking(home, clips), clips


def covered(corpus: str, stream: str, lacking: list[str], clips: list[str]) -> str:
    listing = list_missing(corpus, {stream: lacking})
    rest = f"; none for {listed(lacking)}{listing}" if lacking else ""
    return f"features {stream}: {share(len(clips) - len(lacking), len(clips))}{rest}"


def loaded(corpus: Corpus | HowTo100M) -> str:
    return "it loads: " + ", ".join(f"{split} {len(members)}" for split, members in corpus.splits.items())
