"""A finished run and its folder; how its name, data and model follow from a Config."""

import functools
import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.torch import load_model

from ssb import files, losses
from ssb.config import VERSION, Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.corpora.load import CORPORA, load_corpus
from ssb.corpora.reading import CorpusError, listed
from ssb.metrics import retrieval
from ssb.model import DECODER, HEADS, SupportSetModel
from ssb.training.data import Data
from ssb.training.stories import StoryData
from ssb.training.streamed import Streamed


def configure(preset: str, corpus: str = "shapes", **changes) -> Config:
    """A preset on a corpus: with what the corpus's record changes in the preset, and then with `changes`. ConfigError
    where a setting is unknown, out of range or does not fit the others."""
    own = CORPORA[corpus].settings.get(preset, {}) if corpus in CORPORA else {}
    return check(Config.preset(preset, **{"corpus": corpus, **own, **changes}))


def check(config: Config) -> Config:
    """The Config; ConfigError where it names a head or a contrastive loss that is not registered, or the loss does not
    fit the other settings: what Config cannot know, since it lies below the registries."""
    for setting in ("video_pooling", "text_pooling"):
        if (name := getattr(config, setting)) not in HEADS:
            raise ConfigError(f"{setting} = {name!r}: wanted one of {listed(HEADS, 99)}")
    losses.contrast(config)
    return config


def load(config: Config, corpus: Corpus | HowTo100M, device="cpu", like: Data | None = None) -> Data:
    """What reads the batches of a corpus: `Data` in memory, `StoryData` of its long videos where the run is of
    sequences, `Streamed` from the disk for HowTo100M."""
    if isinstance(corpus, HowTo100M):
        return Streamed(config, corpus, device, like)
    return (StoryData if config.sequences else Data)(config, corpus, device, like)


def check_unseen(trained: Corpus, corpus: Corpus):
    """CorpusError where test clips of a corpus are among the clips, or cut from the videos, that a run was trained or
    validated on. Of corpora that the library makes, clips of one number differ."""
    if getattr(corpus, "meaning", None) is not None:
        return
    known = {source(trained.id(i)) for name in ("train", "val") for i in trained.split(name)}
    test = [corpus.clips[i] for i in corpus.split("test")]
    if seen := [clip for clip in test if source(clip) in known]:
        raise CorpusError(
            f"{len(seen)} of {len(test)} test clips of {corpus.name} are cut from what {trained.name} was trained or "
            f"validated on: {listed(seen)}; take another corpus, or leave them out of one of the two"
        )


def source(clip: str) -> str:
    """The video that a clip is cut from: the YouTube id in names such as v_<id>, <id>_3 and <id>_000001_000011; else
    the clip itself."""
    found = re.fullmatch(r"(?:v_)?([\w-]{11})(?:_\d+){0,2}", clip)
    return found[1] if found else clip


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class Collapsed(TrainingError):
    """All embeddings have become one point, where eq. 1 has no gradient that would part them. `folder`: what is kept of
    the run, results/runs/<name>.collapsed/, from which nothing is ever reported but that and how it collapsed."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder

    def __reduce__(self):  # from a worker process
        return type(self), (str(self), self.folder)

    @property
    def trace(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "trace.csv")


class Run:
    """A finished run: the folder results/runs/<name>/, read as it is asked for."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def _json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    @functools.cached_property
    def config(self) -> Config:
        return Config(**self._json("config.json"))

    @functools.cached_property
    def trained_on(self) -> str:
        """The corpus whose run this one began with, and its options; "" where it began from scratch."""
        return told(named(self.config.pretrained).config) if self.config.pretrained else ""

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """Test metrics, "<protocol> <metric>" → value, of the epoch that was best on validation."""
        return self._json("metrics.json")

    @functools.cached_property
    def provenance(self) -> dict:
        return self._json("provenance.json")

    @functools.cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """Test ranks by protocol, and `clip`, the clip of each text query."""
        with np.load(self.folder / "ranks.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    @functools.cached_property
    def log(self) -> pd.DataFrame:
        """One row for each validated epoch."""
        return pd.read_csv(self.folder / "log.csv")

    @functools.cached_property
    def trace(self) -> pd.DataFrame:
        """One row for each step, the columns of TRACE."""
        return pd.read_csv(self.folder / "trace.csv")

    @functools.cached_property
    def weights(self) -> int:
        """How many numbers were trained or kept with the model, the decoder's not counted."""
        with safe_open(self.folder / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(DECODER))

    def load(self, corpus: Corpus | None = None) -> tuple[SupportSetModel, Data]:
        """The trained model in evaluation mode, and the data it was trained on; CorpusError where that is another."""
        corpus = corpus or load_corpus(self.config.corpus, **self.config.corpus_options)
        if corpus.fingerprint != self.provenance["corpus_sha"]:
            trained = self.provenance["corpus_sha"]
            raise CorpusError(
                f"run {self.name} was trained on {trained}, this corpus is {corpus.fingerprint}: pass that one"
            )
        data = data_for(self.config, corpus)
        model = build(data)
        load_model(model, self.folder / "model.safetensors")
        return model.eval(), data

    def __repr__(self):
        return (
            f"Run({self.name}: {self.config.objective}, seed {self.config.seed}, t2v R@1 {self.metrics['t2v R@1']:.1f})"
        )


def told(config: Config) -> str:
    """The corpus of a run with its options and streams, as a table names it."""
    options = {**config.corpus_options, **({"streams": "+".join(config.streams)} if config.streams else {})}
    return "; ".join([config.corpus, *(f"{name} {value}" for name, value in options.items())])


def named(name: str) -> Run:
    """A finished run of this study; ConfigError where there is none of that name."""
    if not (files.runs() / name / "metrics.json").exists():
        raise ConfigError(f"pretrained = {name!r}: no such finished run in {files.short(files.runs())}; train it first")
    return Run(files.runs() / name)


def data_for(config: Config, corpus: Corpus, device="cpu", like: Data | None = None) -> Data:
    """A corpus made ready for a run: its clips and captions, or its long videos where the run is of sequences. like: as
    in `Data`; the data of the run that `pretrained` names. CorpusError where that run has seen test clips."""
    if config.pretrained:
        like = named(config.pretrained).load()[1]
    if like is not None and like.corpus.fingerprint != corpus.fingerprint:
        check_unseen(like.corpus, corpus)
    return load(config, corpus, device, like)


def build(data: Data) -> SupportSetModel:
    """An untrained model for the data. Its weights are drawn from torch's generator."""
    config = data.config
    encoder = None if config.freeze_text else data.encoder
    model = SupportSetModel(config, data.video_width, data.text_width, data.vocabulary, encoder)
    if config.standardise:
        for buffer, value in zip((model.shift, model.scale), data.statistics()):
            buffer.copy_(value)
    return model


def run_name(config: Config, corpus: Corpus) -> str:
    """Twelve hex digits of all that a run's numbers follow from."""
    parts = [config.key, corpus.fingerprint, str(VERSION)]
    heads = [HEADS[name] for name in (config.video_pooling, config.text_pooling)]
    for module in dict.fromkeys([losses.contrast(config).module, *map(inspect.getmodule, heads)]):
        if module.__name__.partition(".")[0] != "ssb":  # of the reader's, who may edit it
            parts.append(inspect.getsource(module))
    for name in (config.text_encoder, config.decoder):
        if Path(name).is_dir():  # a model of the reader's, who may train it on
            parts += [file.read_bytes() for file in sorted(Path(name).glob("*.safetensors"))]
    return files.digest(*parts)


def measured(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    """Ranks of `Data.ranks` → "<protocol> <metric>" → value, and n_queries."""
    ways = {way: found for way, found in ranks.items() if way != "clip"}
    metrics = {f"{way} {name}": x for way, found in ways.items() for name, x in retrieval.metrics(found).items()}
    return metrics | {"n_queries": len(ranks["clip"])}
