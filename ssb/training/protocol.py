"""What training uses of a corpus and of the batches made of it."""

from typing import Protocol

import numpy as np
import torch

from ssb import files
from ssb.config import Config, ConfigError
from ssb.model import Batch


class TrainingCorpus(Protocol):
    """Any corpus that `ssb.training.loop.fit` takes: `Corpus` and `HowTo100M`. Its items, clips or videos, are numbers.
    Where it is `in_memory`, batches also need `captions`, `captions_of`, `features` and `stories` of `Corpus`."""

    name: str
    fingerprint: str  # of all that a run depends on, part of the run's name
    in_memory: bool  # False: batches are read by `ssb.training.streamed.Streamed`
    drawn: bool  # by the library: items of one id in two such corpora are not the same

    def split(self, name: str) -> np.ndarray:
        """The items of a split."""

    def id(self, item: int) -> str:
        """The id of an item."""

    def video_of(self, item: int) -> str:
        """The video that an item is cut from, "" where that is not known."""


def training_items(config: Config, corpus: TrainingCorpus) -> np.ndarray:
    """The items to train on: those of the training split, or the first `Config.train_clips` of them in the order of a
    hash of their ids, so that a smaller number is a part of a larger one. ConfigError where there are fewer."""
    items, wanted = corpus.split("train"), config.train_clips
    if wanted is None:
        return items
    if wanted > len(items):
        raise ConfigError(f"train_clips = {wanted}: {corpus.name} has {len(items)} training clips")
    return np.sort(sorted(items, key=lambda item: files.digest(corpus.id(item)))[:wanted])


class TrainingData(Protocol):
    """A corpus prepared for one Config: `Data`, `StoryData` and `Streamed`."""

    config: Config
    corpus: TrainingCorpus
    cut: list[str]  # remarks on captions that are longer than max_tokens
    video_width: int  # D, of the fused features
    text_width: int  # W, of the states of the text encoder
    encoder: torch.nn.Module  # the text encoder
    tokenizer: object  # of the text encoder
    label_tokenizer: object | None  # of the decoder; None without captioning

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale (D,) of the features of the training clips."""

    def order(self, epoch: int) -> np.ndarray:
        """Rows of an epoch's batches, (steps, B)."""

    def pairs(self, split: str) -> np.ndarray:
        """One row for each item of a split."""

    def batch(self, rows: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """The pairs of these rows (B,); memory: past clips (P,) and their c_v (P, d)."""

    def prefetch(self, rows: np.ndarray):
        """Begin to make the batch of these rows, which is the next but one to be asked for."""

    def ranks(self, model, split: str, every: bool = True) -> dict[str, np.ndarray]:
        """The rank of each query of a split by protocol, and "clip", the item of each text query; every: False: those
        of "t2v" are enough."""
