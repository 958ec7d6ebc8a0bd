"""The classes of a corpus's clips; and labels without captions: the steps of CrossTask, the actions of UCF-101 and
HMDB-51."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError, expecting, first_of, listed, read_lines, rows_of, tidy
from ssb.corpora.record import Recipe, Record
from ssb.corpora.tables import numbers, read_table

LONGEST = 1_000_000  # seconds of a video
SPLITS = "split1", "split2", "split3"  # columns of UCF-101 and HMDB-51


def labels(corpus: Corpus) -> np.ndarray:
    """(N,) the class of each clip of a corpus: the motion on `shapes` and `events`; on MSR-VTT one of the 20
    categories, "category 0" to "category 19". CorpusError where the corpus has no `classes`."""
    if corpus.classes is None:
        raise CorpusError(f"{corpus.name}: its clips have no class; take a corpus with classes, such as shapes")
    return np.array(corpus.classes())


# Steps and actions


def crosstask(home: Path) -> pd.DataFrame:
    """crosstask.csv (Zhukov et al., 2019): columns video, task, start, end (seconds), text, a row for each annotated
    step: 2,640 steps of 331 videos of the 18 primary tasks. A step may occur several times in a video.
    CorpusError for a missing column, and for times that are no numbers, out of order or out of range."""
    source = home / "crosstask.csv"
    table = read_table(source, "video_id", "task_id", "start", "end", "text")
    times = {column: numbers(table, column, source) for column in ("start", "end")}
    table = table.rename(columns={"video_id": "video", "task_id": "task"}).assign(**times)
    for wrong, what in (
        (table["start"] >= table["end"], "ends before it begins"),
        ((table["start"] < 0) | (table["end"] > LONGEST), f"is not between 0 and {LONGEST:,} seconds"),
    ):
        if wrong.any():
            videos = listed(table["video"][wrong].unique())
            raise CorpusError(f"{source}: a step of video {videos} {what}; fix or delete the row")
    return table[["video", "task", "start", "end", "text"]]


def ucf101(home: Path) -> pd.DataFrame:
    """Columns clip, label (name of one of 101 classes), split1, split2, split3 ("train" or "test"): 13,320 clips of
    vttwins_ucf.csv, the classes named by the official classInd.txt."""
    source = first_of(home, "classInd.txt", "ucf101_classInd.txt")
    with expecting(source, "the list of UCF-101 classes: wanted a number and a name a line"):
        name = {number: name for number, name in map(str.split, read_lines(source))}
    table = action_table(home / "vttwins_ucf.csv")
    with expecting(home / "vttwins_ucf.csv", f"the UCF-101 list: wanted labels of {source.name}"):
        return table.assign(label=[name[number] for number in table["label"]])


def hmdb51(home: Path) -> pd.DataFrame:
    """As `ucf101`: the 6,766 clips of vttwins_hmdb51.csv, 51 classes; a split has 70 training and 30 test clips of each
    class, and "" where a clip is in neither."""
    table = action_table(home / "vttwins_hmdb51.csv")
    return table.assign(label=table["label"].str.removesuffix("_test"))


def action_table(source: Path) -> pd.DataFrame:
    """Columns clip, label, split1, split2, split3 of a list of actions: a clip is the file name in the column video_id
    without folder and ending; the 0, 1 and 2 of a split are "", "train" and "test"."""
    splits = [*SPLITS]
    table = read_table(source, "video_id", "label", *splits)
    if not table[splits].isin(["0", "1", "2"]).all(axis=None):
        raise CorpusError(f"{source}: a split is not 0, 1 or 2 (neither, train, test); copy the list again")
    table["clip"] = [tidy(name.rpartition("/")[2].rpartition(".")[0]) for name in table["video_id"]]
    rows_of(source, table["clip"].tolist())
    table[splits] = table[splits].replace({"0": "", "1": "train", "2": "test"})
    return table[["clip", "label", *splits]]


def record(name: str, about: str, labels: Callable, **actions) -> Record:
    """The record of a dataset that has labels alone, in the folder of its name. actions: see `Record`."""
    return Record(name, f"{about}; no captions", dataset=name, labels=labels, **actions)


RECORDS = [
    record("crosstask", "CrossTask, annotated steps of 331 videos", crosstask),
    record("ucf101", "UCF-101, labels of 13,320 clips", ucf101, splits=SPLITS, cut=r"_c\d+", recipe=Recipe()),
    record(
        *("hmdb51", "HMDB-51, labels of 6,766 clips", hmdb51),
        **dict(splits=SPLITS, cut=r"_\d+", recipe=Recipe(epochs=1500, milestones=(1000, 1200))),
    ),
]
