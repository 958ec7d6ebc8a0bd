"""What each corpus needs, where it comes from and how much of it is there; and fetching what has a direct link.

    ssb data                      the names, and whether the files are there
    ssb data msvd                 its files and features
    ssb data msvd --download      fetches the missing files that have a link, then the same

A corpus is complete if it can be loaded; UCF-101, HMDB-51 and CrossTask are if their labels can be read. Clips without
features are listed in results/cache/missing/. The files are listed in sources.csv. Pages and links were found in public
sources and may have moved; the SHA-256 sums are those of the versions that the study was tested with: a file with a
different one may still be good, and have different counts.
"""

from pathlib import Path

from ssb import files
from ssb.corpora import download, faults, features
from ssb.corpora.download import Needed
from ssb.corpora.load import CORPORA, load_corpus
from ssb.corpora.reading import CorpusError, proportion, sizes
from ssb.corpora.record import Record

INCOMPLETE = "not complete"


def members(name: str) -> list[str]:
    """The corpora that a name stands for: itself, those of a dataset, or "all". CorpusError listing the names where it
    is none of them."""
    if name in CORPORA:
        return [name]
    if of_dataset := [x.name for x in CORPORA.values() if x.dataset and name in (x.dataset, "all")]:
        return of_dataset
    datasets = {record.dataset for record in CORPORA.values()} - {"", *CORPORA}
    raise CorpusError(f"no corpus {name!r}; there are {', '.join([*CORPORA, *sorted(datasets), 'all'])}")


def overview() -> list[str]:
    """A line for each corpus: its name, how much of it is there, what it is. No file is opened."""
    needed, data = download.sources(), files.data()
    rows = [(record.name, presence(record, needed, data), record.about) for record in CORPORA.values()]
    return aligned(rows)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, the columns padded to equal width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def presence(record: Record, needed: list[Needed], data: Path) -> str:
    """How much of a corpus is in the folder `data`, in words. needed: the files of all corpora."""
    home = data / record.dataset
    if not record.dataset:
        return "drawn by the library"
    if features.own_folder(record.name):
        return "a folder of your own"
    if record.index and (home / record.index).is_file():
        return "indexed"
    names = [file.present(home) for file in needed if record.name in file.corpora]
    if None in names:
        return f"{names.count(None)} of {len(names)} files missing" if any(names) else "not there"
    featured = features.ARCHIVE in names or any(features.place(home).glob("[!.]*"))
    return "files complete" if featured else "files complete, no features"


def report(name: str) -> bool:
    """Print what the corpora of a name (see `members`) have and lack; returns whether all are complete."""
    data, names, incomplete = files.data(), members(name), set()
    wanted = [file for file in download.sources() if set(names) & set(file.corpora)]
    rows = []
    for file in wanted:
        name_or_names = file.present(data / file.dataset) or " or ".join(reversed(file.names))
        rows.append((f"{file.dataset}/{name_or_names}", file.state(data / file.dataset), file.what, file.page))
    if rows:
        print(f"wanted in {data} (SSB_DATA, or data/ of the study):", *aligned(rows), sep="\n  ")
    for corpus in names:
        record = CORPORA[corpus]
        summary, lines = check(record, [file for file in wanted if corpus in file.corpora], data)
        lines += [f"features: {source(record, data / record.dataset)}"] if record.features else []
        print(f"{corpus}: {summary}", *lines, sep="\n  ")
        incomplete |= {corpus} if summary == INCOMPLETE else set()
    missing = [file for file in wanted if incomplete & set(file.corpora) and not file.present(data / file.dataset)]
    if linked := [file.target for file in missing if file.link]:
        print(f"to fetch {', '.join(linked)}:", f"`ssb data {name} --download`", sep="\n  ")
    for file in missing:
        if not file.link:
            print(f"{file.dataset}/{file.target} has no link: {file.what}{'; see ' if file.page else ''}{file.page}")
    return not incomplete


def check(record: Record, wanted: list[Needed], data: Path) -> tuple[str, list[str]]:
    """Whether a corpus can be loaded, or its labels read, in words, INCOMPLETE if not; and lines that say why not, and
    how many of the clips have features. wanted: the files that it needs."""
    home = data / record.dataset
    missing = [file.target for file in wanted if not file.present(home)]
    try:
        if not record.dataset:
            return "complete", ["it is drawn by the library and needs no files"]
        if own := features.own_folder(record.name):
            source = f"{own} is a folder of your own, read instead of the official files"
            return "complete", [source, loads(record)]
        if record.index:
            return check_indexed(record, home, missing)
        if record.read:
            return "complete", [loads(record)]
        if missing:
            return INCOMPLETE, [f"missing: {', '.join(missing)}"]
        clips = annotated(record, home)
        streams = features.lacking(home, clips, record.arrays)
        lines = [covered(record.name, stream, lacking, clips) for stream, lacking in streams.items()]
        if not streams:
            lines = [
                "no features" + ("" if record.features else f", which are yours: {extraction(record, home, clips)}")
            ]
        if record.labels:
            total = len(clips)
            counts = (f"{name} {proportion(total - len(missing), total)}" for name, missing in streams.items())
            return f"labels complete; features: {', '.join(counts) or 'none'}", lines
        if streams and not any(streams.values()):
            return "complete", [*lines, loads(record)]
        advice = 'extract them, or leave out the clips that lack some: corpus_options={"missing": "drop"}'
        return INCOMPLETE, [*lines, *([advice] if streams else [])]
    except CorpusError as error:
        return INCOMPLETE, [str(error)]


def check_indexed(record: Record, home: Path, missing: list[str]) -> tuple[str, list[str]]:
    """`check` of a corpus that is loaded from its index, for which the narrations are no longer needed."""
    try:
        record.read().fingerprint  # reads some of the features
        return "complete", [loads(record)]
    except CorpusError as error:
        lines = [str(error)] if (home / record.index).is_file() else []
        lines += [f"missing: {', '.join(missing)}"] if missing else []
        if not any(home.glob("features/[!.]*/")):
            lines.append(f"no features, which are yours: {extraction(record, home, [])}")
        return INCOMPLETE, [*lines, f"when all is there, index it: `ssb index {home}`"]


def source(record: Record, home: Path) -> str:
    """Where the features of a record that says so can be had, or how they are made."""
    return record.features.format(home=home, out=files.root() / "features" / record.dataset)


def extraction(record: Record, home: Path, clips: list[str]) -> str:
    """The command that makes features, and how clips are cut before, where they are parts of videos."""
    command = f"`ssb extract CLIPS --stream resnet --model microsoft/resnet-152 --out {home / 'features'}`"
    return f"{record.cutting.format(first=clips[0])}; then {command}" if record.cutting else command


def annotated(record: Record, home: Path) -> list[str]:
    """All clips of a corpus, or the videos where its labels are of steps."""
    if record.labels:
        table = record.labels(home)
        return table["video" if "video" in table else "clip"].unique().tolist()
    return features.clips_of(record.annotation(home)[1])


def covered(corpus: str, stream: str, lacking: dict[str, str], clips: list[str]) -> str:
    """How many of the clips have usable features in a stream, in words."""
    listing = features.list_missing(corpus, {stream: lacking})
    reasons = f"; none for {faults.named(lacking)}{listing}" if lacking else ""
    return f"features {stream}: {proportion(len(clips) - len(lacking), len(clips))}{reasons}"


def loads(record: Record) -> str:
    """The sizes of the splits of a corpus, in words. CorpusError where it cannot be loaded."""
    return f"it loads: {sizes(load_corpus(record.name).splits)}"
