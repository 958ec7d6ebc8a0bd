"""What each corpus needs, where it comes from, how much of it is there; and getting what has a direct link.

    python -m ssb.corpora.official                      the names
    python -m ssb.corpora.official msvd                 its files and features
    python -m ssb.corpora.official msvd --download      fetches the missing files that have a link, then the same

It ends with 0 where the corpus can be loaded, or of UCF-101, HMDB-51 and CrossTask the labels can be read, 1 where
something is missing, 2 where it was asked for wrongly. Clips without features are listed in results/cache/missing/. The
files are listed in sources.csv. Pages and links were found in public sources and may have moved; the SHA-256 sums are
those of the versions that the study was tested with, so that a file of another sum may be good, and have other counts.
"""

import argparse
import sys
from pathlib import Path

from ssb import files
from ssb.corpora import download, features, labels, official
from ssb.corpora.corpus import Corpus
from ssb.corpora.download import Needed
from ssb.corpora.features import clips_of, list_missing
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError, listed, share

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


LABELLED = {"crosstask": labels.crosstask, "ucf101": labels.ucf101, "hmdb51": labels.hmdb51}


# What is there


def report(name: str) -> bool:
    """Print what corpus or family `name` has and lacks; is all of it there?"""
    data, rows, well = files.data(), [], set()
    names = FAMILIES.get(name, [name])
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
        print(f"to fetch {', '.join(linked)}:", f"python -m ssb.corpora.official {name} --download", sep="\n  ")
    for file in missing:
        if not file.link:
            print(f"{file.dataset}/{file.target} has no link: {file.what}{'; see ' if file.page else ''}{file.page}")
    return well == set(names)


def check(corpus: str, wanted: list[Needed], data: Path) -> tuple[bool, str, list[str]]:
    """Can it be loaded, of labels: read; that in words; and lines that say why not, and how many of the clips have
    features."""
    reader, home = official.READERS.get(corpus), data / wanted[0].dataset
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
        return (
            False,
            "not complete",
            [*lines, f"when all is there, index it: python -m ssb.corpora.howto100m.index {home}"],
        )


def extraction(corpus: str, home: Path, clips: list[str]) -> str:
    """How features are made."""
    command = (
        f"python -m ssb.video.extract CLIPS --stream resnet --model microsoft/resnet-152 --out {home / 'features'}"
    )
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
        return features.features_lacking(home, clips), clips
    reader = official.READERS[corpus]
    clips = clips_of(reader.annotation(home)[1])
    return reader.lacking(home, clips), clips


def covered(corpus: str, stream: str, lacking: list[str], clips: list[str]) -> str:
    listing = list_missing(corpus, {stream: lacking})
    rest = f"; none for {listed(lacking)}{listing}" if lacking else ""
    return f"features {stream}: {share(len(clips) - len(lacking), len(clips))}{rest}"


def loaded(corpus: Corpus | HowTo100M) -> str:
    return "it loads: " + ", ".join(f"{split} {len(members)}" for split, members in corpus.splits.items())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m ssb.corpora.official", description="What a corpus needs, and getting it."
    )
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
        wrong = download.download(FAMILIES.get(given.name, [given.name])) if given.download else []
        well = report(given.name)
    except OSError as error:
        well, wrong = False, [str(error)]
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(*(f"error: {line}\n" for line in wrong), sep="", end="", file=sys.stderr)
    return 0 if well and not wrong else 1
