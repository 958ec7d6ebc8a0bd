"""load_corpus: a corpus by its name or by the path of a folder."""

from pathlib import Path

from ssb import files
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError, listed


def load_corpus(name: str | Path = "shapes", **options) -> Corpus:
    """A corpus by name, or by the path of a folder (see `ssb.datasets.folder`).

    `shapes` and `events` are made by the library, `options` being the arguments of `ssb.shapes.corpus` and of
    `ssb.sequences.corpus`; the others are read from $SSB_DATA, where a relative path that is not there from the working
    directory is looked up too. Their one option is `missing`: clips without features are an error with "refuse", the
    default, and left out, with a printed line that counts them, with "drop". Where captions have the columns video and
    start, as those of YouCook2, they also take `events` and then have long videos, and with it the other options of
    `sequences.of_videos`: `disorder`, `irrelevant`, `seed`, and `missing` as a number, the share of captions left out.
    """
    from ssb.corpora import (
        events,
        features,
        official,
        shapes,
        windows,  # all build on this module
    )
    from ssb.corpora.howto100m import corpus, index

    made = {"events": events.corpus, "shapes": shapes.corpus}
    if name in made:
        return made[name](**options)
    if "events" in options:
        dials = {key: options.pop(key) for key in windows.DIALS if not isinstance(options.get(key, ""), str)}
        return windows.with_stories(load_corpus(name, **options), **dials)
    if others := options.keys() - {"missing"}:
        raise CorpusError(
            f"{name}: takes no option {listed(sorted(others))}; it has 'missing' and those of long videos, "
            f"{listed(windows.DIALS)}; shapes and events have more"
        )
    if str(name) in official.READERS:
        return official.READERS[str(name)](files.data(), **options)
    for path in (Path(name), files.data() / name):
        if index.is_here(path):
            return corpus.HowTo100M(path)
        if path.is_dir():
            return features.folder(path, **options)
    if str(name) == "howto100m":
        raise CorpusError(
            f"{files.data() / name}: no such folder; put the narrations and features of HowTo100M there (python -m "
            f"ssb.corpora.official howto100m says which files) and run python -m ssb.corpora.howto100m.index"
        )
    raise CorpusError(
        f"no corpus {str(name)!r}: neither {listed([*made, *official.READERS], 99)} nor a folder (data are looked "
        f"for in {files.data()}; set SSB_DATA to change that)"
    )
