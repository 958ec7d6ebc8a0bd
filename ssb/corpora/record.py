"""The record of a corpus that has a name: all that the library needs to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Recipe:
    """How a linear layer is trained on frozen features (see `ssb.metrics.actions`); the defaults are the paper's for
    UCF-101 unless a comment says otherwise."""

    epochs: int = 500
    milestones: tuple[int, ...] = (200, 400)  # epochs after which the learning rate is divided by 10
    lr: float = 1e-4  # Adam
    weight_decay: float = 1e-4  # L2, of all weights
    batch: int | None = 64  # not given in the paper; None: all training clips
    held_out: float = 0.1  # share of the training clips to choose the epoch on if none are given; 0: the last epoch


@dataclass(frozen=True)
class Record:
    """A row of `ssb.corpora.load.CORPORA`.

    about:    one line for `ssb data`: what it is, and its training, validation and test clips.
    read:     options of `load_corpus` → the corpus; None where it is made of official files.
    dataset:  the folder of its files under $SSB_DATA; "" where the library generates it.
    annotation: folder → captions and splits of the official files (see `ssb.corpora.official`).
    index:    the file in its folder that `ssb index` writes, and without which it cannot be read; "": it needs none.
    arrays:   stream → its array, where the features are in one features.npz.
    labels:   folder → a table of labelled clips or steps, of a dataset without captions.
    splits:   the columns of these labels that say "train" or "test" of each clip, one for each official split.
    cut:      a regular expression of the end of a clip's name by which clips that are cut from one film differ.
    recipe:   of the paper's linear layer, where the labels are actions to be recognised.
    classes:  folder, clip ids → the class of each clip, where the official files give one.
    settings: preset → what this corpus changes in it (`ssb.configure`).
    cutting:  how clips are cut from the videos, where they are annotated parts; {first} is the id of a clip.
    features: where features can be had or how they are made, if not as those of any corpus; {home} is the folder of its
              files, {out} that of its features.
    retrieval_table, caption_table: the number of the paper's table for it; "" if the paper has no such table.
    published: its name in paper.csv if its test clips are those of the paper; "" for other splits of the videos.
    """

    name: str
    about: str
    read: Callable | None = None
    dataset: str = ""
    annotation: Callable[[Path], tuple[pd.DataFrame, dict[str, list[str]]]] | None = None
    index: str = ""
    arrays: Mapping[str, str] | None = None
    labels: Callable[[Path], pd.DataFrame] | None = None
    splits: tuple[str, ...] = ()
    cut: str = ""
    recipe: Recipe | None = None
    classes: Callable[[Path, list[str]], list[str]] | None = None
    settings: Mapping[str, Mapping] = field(default_factory=dict)
    cutting: str = ""
    features: str = ""
    retrieval_table: str = "3"
    caption_table: str = ""
    published: str = ""
