"""A record for each corpus that the library knows by name: all that depends on which corpus it is stands there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Record:
    """A row of `ssb.corpora.load.CORPORA`.

    about:    one line for `ssb data`: what it is, and its training, validation and test clips.
    read:     options of `load_corpus` → the corpus; None where there are labels alone.
    dataset:  the folder of its files under $SSB_DATA; "" where the library draws it.
    labels:   folder → a table of labelled clips or steps; of a dataset without captions.
    settings: preset → the settings that it changes on this corpus (`ssb.configure`).
    cutting:  how clips are cut from the videos, where they are annotated parts; {first} is the id of a clip.
    retrieval_table, caption_table: the number of the paper's table for it; "" where there is none.
    published: its name in paper.csv where it is the paper's own test set, which other splits of its videos are not.
    """

    name: str
    about: str
    read: Callable | None
    dataset: str = ""
    labels: Callable[[Path], pd.DataFrame] | None = None
    settings: Mapping[str, Mapping] = field(default_factory=dict)
    cutting: str = ""
    retrieval_table: str = "3"
    caption_table: str = ""
    published: str = ""
