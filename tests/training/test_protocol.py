"""Training uses nothing of a corpus or of its batches but what `ssb.training.protocol` names."""

from dataclasses import replace

import numpy as np
import pytest

import ssb
from ssb.corpora import events, shapes
from ssb.corpora.corpus import Corpus
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.training import runs
from ssb.training.data import Data
from ssb.training.protocol import TrainingCorpus, TrainingData
from ssb.training.stories import StoryData
from ssb.training.streamed import Streamed

IN_MEMORY = {"captions", "captions_of", "features", "stories"}


def members(protocol: type) -> set[str]:
    return protocol.__annotations__.keys() | {name for name in vars(protocol) if not name.startswith("_")}


class Only:
    """An object of which only some attributes can be read."""

    def __init__(self, thing, names: set[str]):
        self.__dict__.update(_thing=thing, _names=names, used=set())

    def __getattr__(self, name: str):
        assert name in self._names, f"training uses {name}"
        self.used.add(name)
        return getattr(self._thing, name)


@pytest.mark.parametrize("sequences", [False, True])
def test_a_run_uses_what_the_protocols_name(home, monkeypatch, sequences):
    long, short = {"videos": 36, "takes": 4, "false_negatives": 0.05}, {"clips": 60, "false_negatives": 0.05}
    corpus = events.corpus(**long) if sequences else shapes.corpus(**short)
    changes = {"contrast": "s2dtw", "objective": "none", "sequences": True, "batch": 4} if sequences else {}
    config = ssb.configure("smoke", corpus.name, epochs=1, **changes)
    wanted = ssb.fit(config.replace(seed=1), corpus, quiet=True)
    load, made = runs.load, []
    monkeypatch.setattr(runs, "load", lambda *given: made.append(Only(load(*given), members(TrainingData))) or made[-1])
    only = Only(replace(corpus), members(TrainingCorpus) | IN_MEMORY)
    monkeypatch.setenv("SSB_HOME", str(home / "again"))
    found = ssb.fit(config.replace(seed=1), only, quiet=True)
    assert found.name == wanted.name and found.metrics == wanted.metrics
    assert {"fingerprint", "in_memory", "split"} <= only.used
    assert {"order", "batch", "pairs", "ranks", "statistics", "video_width", "text_width"} <= made[0].used


def test_every_corpus_and_all_batches_have_it():
    for kind in (Corpus, HowTo100M):
        named = set(dir(kind)) | set(getattr(kind, "__dataclass_fields__", ())) | {"name"}  # set by __init__
        assert members(TrainingCorpus) <= named
    methods = {name for name in members(TrainingData) if callable(getattr(TrainingData, name, None))}
    assert methods == {"statistics", "order", "pairs", "batch", "prefetch", "ranks"}
    for kind in (Data, StoryData, Streamed):
        assert methods <= set(dir(kind))
    corpus = shapes.corpus(clips=60, false_negatives=0.05)
    data = Data(ssb.configure("smoke"), corpus)
    assert all(hasattr(data, name) for name in members(TrainingData))
    assert isinstance(data.order(0), np.ndarray)
