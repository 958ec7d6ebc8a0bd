"""load_corpus: a corpus by its name or by the path of a folder; and the registry of those that have a name."""

from pathlib import Path

from ssb import files
from ssb.corpora import events, features, labels, official, shapes, windows
from ssb.corpora.corpus import Corpus
from ssb.corpora.howto100m import index
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.corpora.reading import CorpusError, listed
from ssb.corpora.record import Record


def read_folder(name: str | Path, **options) -> Corpus | HowTo100M | None:
    """What a folder of this path holds, looked for from the working directory and then in $SSB_DATA; None without."""
    for path in (Path(name), files.data() / name):
        if index.is_here(path):
            return HowTo100M(path)
        if path.is_dir():
            return features.folder(path, **options)
    return None


def read_howto100m(**options) -> Corpus | HowTo100M:
    """The folder howto100m; CorpusError with what to do where there is none."""
    if corpus := read_folder("howto100m", **options):
        return corpus
    raise CorpusError(
        f"{files.data() / 'howto100m'}: no such folder; put the narrations and features of HowTo100M there (`ssb data "
        f"howto100m` lists the files) and run `ssb index`"
    )


CORPORA: dict[str, Record] = {
    record.name: record
    for record in (
        Record("shapes", "moving shapes, drawn by the library: 800 / 100 / 300", shapes.corpus),
        Record("events", "long videos of moving shapes, drawn by the library", events.corpus),
        *official.RECORDS,
        *labels.RECORDS,
        Record("howto100m", "HowTo100M, narration with times", read_howto100m, "howto100m"),
    )
}


def load_corpus(name: str | Path = "shapes", **options) -> Corpus | HowTo100M:
    """A corpus by name, one of `CORPORA`, or by the path of a folder (see `ssb.corpora.features.folder`).

    `shapes` and `events` are drawn by the library, `options` being the arguments of `ssb.corpora.shapes.corpus` and
    `ssb.corpora.events.corpus`. The others are read from $SSB_DATA, where a relative path that is not there from the
    working directory is looked up too. Their option is `missing`: clips without features are an error with "refuse",
    the default, and left out, with a printed line that counts them, with "drop". Where captions have the columns video
    and start, as those of YouCook2, they also take `events` and then have long videos, and with it the other options of
    `windows.of_videos`: `disorder`, `irrelevant`, `seed`, and `missing` as a number, the share of captions left out.

    CorpusError where the name is none, an option does not fit, or the files are missing or not what they should be.
    """
    record = CORPORA.get(str(name))
    if record and not record.dataset:
        return record.read(**options)
    if "events" in options:
        dials = {key: options.pop(key) for key in windows.DIALS if not isinstance(options.get(key, ""), str)}
        return windows.with_stories(load_corpus(name, **options), **dials)
    if others := options.keys() - {"missing"}:
        raise CorpusError(
            f"{name}: takes no option {listed(sorted(others))}; it has 'missing' and those of long videos, "
            f"{listed(windows.DIALS)}; shapes and events have more"
        )
    if record and record.read:
        return record.read(**options)
    if corpus := read_folder(name, **options):
        return corpus
    names = [record.name for record in CORPORA.values() if record.read]
    raise CorpusError(
        f"no corpus {str(name)!r}: neither {listed(names, 99)} nor a folder (data are looked for in {files.data()}; "
        f"set SSB_DATA to change that)"
    )
