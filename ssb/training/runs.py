"""A finished run and its folder; the name, the data and the model of a run, from its Config."""

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_model

from ssb import files, losses
from ssb.config import VERSION, Config, ConfigError, too_large
from ssb.corpora.load import CORPORA, load_corpus
from ssb.corpora.reading import CorpusError, listed
from ssb.metrics import retrieval
from ssb.model import DECODER, HEADS, SupportSetModel
from ssb.training.data import Data, Tokenizers
from ssb.training.identity import identity
from ssb.training.protocol import TrainingCorpus, TrainingData
from ssb.training.stories import StoryData
from ssb.training.streamed import Streamed


def configure(preset: str, /, corpus: str = "shapes", **changes) -> Config:
    """A preset on a corpus: with the changes of the corpus's record, and then with `changes`. ConfigError where a
    setting is unknown, out of range or does not fit the others."""
    own = CORPORA[corpus].settings.get(str(preset), {}) if str(corpus) in CORPORA else {}
    if preset == "tuned" and not own:
        raise ConfigError(
            f"preset = 'tuned': no settings were searched for {corpus}; notebooks/23_baselines.ipynb searches them: "
            "give what it prints as changes of the preset 'laptop'"
        )
    return check(Config.preset(preset, **{"corpus": corpus, **own, **changes}))


def check(config: Config) -> Config:
    """The Config; ConfigError where it names a head or a contrastive loss that is not registered, the heads are too
    large, or the loss does not fit the other settings. Config itself cannot check this, because it is imported by the
    registries."""
    for setting in ("video_pooling", "text_pooling"):
        if (name := getattr(config, setting)) not in HEADS:
            raise ConfigError(f"{setting} = {name!r}: wanted one of {listed(HEADS, 99)}")
    heads = (HEADS[name] for name in (config.video_pooling, config.text_pooling))
    weights = sum(head.weights(config) for head in heads if hasattr(head, "weights"))
    if message := too_large(config.weights() | {"dim, pool_ffn and pool_layers": weights}):
        raise ConfigError(message)
    losses.contrast(config)
    return config


def registered() -> tuple[dict, dict, dict]:
    """The heads, contrastive losses and corpora that were registered from outside the library, for `register`."""
    heads, contrasts = ({k: v for k, v in r.items() if _is_users(v)} for r in (HEADS, losses.CONTRASTS))
    return heads, contrasts, {k: v for k, v in CORPORA.items() if _is_users(v.read or v.annotation or v.labels)}


def register(heads: dict, contrasts: dict, corpora: dict) -> None:
    """Register them in this process, a worker's."""
    HEADS.update(heads)
    losses.CONTRASTS.update(contrasts)
    CORPORA.update(corpora)


def _is_users(thing) -> bool:
    return getattr(getattr(thing, "func", thing), "__module__", "ssb").partition(".")[0] != "ssb"


def load(
    config: Config, corpus: TrainingCorpus, device="cpu", like: TrainingData | Tokenizers | None = None
) -> TrainingData:
    """The batches of a corpus: `Data`, or `StoryData` of its long videos for a run of sequences; `Streamed` where it is
    not in memory. like: as in `Data`."""
    in_memory = StoryData if config.sequences else Data
    return (in_memory if corpus.in_memory else Streamed)(config, corpus, device, like)


def check_unseen(trained: TrainingCorpus, corpus: TrainingCorpus):
    """CorpusError where test clips of a corpus are cut from the videos that a run was trained or validated on, as both
    corpora give them (the column `video`), or have the same id and the same captions. Otherwise the names of the clips
    can only suggest it: a printed warning. Corpora that the library draws are not compared: their clips of the same
    number differ."""
    if corpus.drawn:
        return
    learnt = [i for name in ("train", "val") for i in trained.split(name)]
    test = corpus.split("test")
    videos = {trained.video_of(i) for i in learnt} - {""}
    names = {source(trained.id(i)) for i in learnt if not trained.video_of(i)}
    same = identities(trained, learnt).items() & identities(corpus, test).items()
    same = {clip for clip, _ in same}  # of the same id and captions
    tested = [(corpus.video_of(i), corpus.id(i)) for i in test]
    if shared := [clip for video, clip in tested if video in videos or clip in same]:
        raise CorpusError(
            f"{len(shared)} of {len(tested)} test clips of {corpus.name} are cut from what {trained.name} was trained "
            f"or validated on: {listed(shared)}; take another corpus, or leave them out of one of the two"
        )
    if alike := [clip for video, clip in tested if (video or source(clip)) in (names if video else names | videos)]:
        print(
            f"warning: {len(alike)} of {len(tested)} test clips of {corpus.name} seem to be cut from what "
            f"{trained.name} was trained or validated on, by their names: {listed(alike)}; a "
            "column `video` in captions.csv (or corpus_options={'video': a regular expression}) says which video a "
            "clip is cut from, and decides"
        )


def identities(corpus: TrainingCorpus, clips) -> dict[str, frozenset[str]]:
    """Clip id → its captions, of those of these clips whose video the corpus does not give."""
    if not (clips := [i for i in clips if not corpus.video_of(i)]):
        return {}
    rows = corpus.captions_of(clips)
    return {corpus.id(i): frozenset(text) for i, text in rows.groupby("clip")["text"]}


def source(clip: str) -> str:
    """A guess at the video that a clip is cut from: the YouTube id in names such as v_<id>, <id>_3, <id>_60.0_210.0 and
    <id>_000001_000011; else the clip itself."""
    match = re.fullmatch(r"(?:v_)?([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", clip)
    return match[1] if match else clip


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why and what to change."""


class Collapsed(TrainingError):
    """All embeddings have become one point, where eq. 1 has no gradient that separates them. `folder`: the files kept
    of the run, results/runs/<name>.collapsed/; nothing else of it is reported."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder

    def __reduce__(self):  # pickled with both arguments, to return from a worker process
        return type(self), (str(self), self.folder)

    @property
    def trace(self) -> pd.DataFrame:
        """As `Run.trace`, up to the collapse."""
        check_sound(self.folder)
        return pd.read_csv(self.folder / "trace.csv")


IDENTITY = "identity.json"  # of a run's folder: the `identity` that its name is the digest of
NOTE = "note.txt"  # of a run's folder: what to know before its numbers are used; most runs have none
_corpora: dict[tuple, TrainingCorpus] = {}  # the last that `Run.load` has read: fingerprint, name and options → corpus


def check_sound(folder: Path):
    """TrainingError where the folder of a run that has ended is not as it was written, or not under its own name. Files
    that have not changed since are not read again."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if damage := _damage(Path(folder), tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)):
        raise TrainingError(f"{folder} is damaged ({damage}): delete it, the same command trains it again")


@functools.lru_cache(maxsize=4096)
def _damage(folder: Path, files_in_it: tuple) -> str | None:
    if damage := files.damage(folder):
        return damage
    try:
        parts, settings = (json.loads((folder / name).read_text()) for name in (IDENTITY, "config.json"))
        own = json.loads(parts[0]).items() <= settings.items()
        if parts[2] == str(VERSION):  # whose defaults are known
            own = Config(**settings).key == parts[0]
        if own and files.digest(*parts) == folder.name.partition(".")[0]:
            return None
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return f"{IDENTITY} or config.json is missing or not readable"
    return "it is not the run of its name"


class Run:
    """A finished run: the folder results/runs/<name>/, each file read when it is first used. TrainingError where the
    folder is damaged."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        check_sound(self.folder)

    @property
    def name(self) -> str:
        """The name of its folder, see `run_name`."""
        return self.folder.name

    def _json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    @functools.cached_property
    def config(self) -> Config:
        """The settings that the run was trained with, those without effect at their defaults."""
        return Config(**self._json("config.json"))

    @functools.cached_property
    def trained_on(self) -> str:
        """`corpus_label` of the run whose weights this one began with, and of those that this began with, as "b, begun
        with a"; "" where it began from scratch."""
        if not self.config.pretrained:
            return ""
        before = finished_run(self.config.pretrained)
        return ", begun with ".join(filter(None, (corpus_label(before.config), before.trained_on)))

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """Metrics of the epoch that was best on the validation clips, on the clips of `Config.evaluate`: "<protocol>
        <metric>" → value; recalls in percent."""
        return self._json("metrics.json")

    @functools.cached_property
    def provenance(self) -> dict:
        """corpus_sha, and `ssb.machine.provenance` with the seconds that training took."""
        return self._json("provenance.json")

    @functools.cached_property
    def note(self) -> str:
        """What to know before its numbers are used, such as that it has not learnt; "" for most runs."""
        path = self.folder / NOTE
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @functools.cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """Ranks of the clips of `Config.evaluate`, as `Data.ranks` gives them."""
        with np.load(self.folder / "ranks.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    @functools.cached_property
    def log(self) -> pd.DataFrame:
        """One row for each validated epoch."""
        return pd.read_csv(self.folder / "log.csv")

    @functools.cached_property
    def trace(self) -> pd.DataFrame:
        """One row for each step: step, and the columns of `ssb.training.loop.TRACE`."""
        return pd.read_csv(self.folder / "trace.csv")

    @functools.cached_property
    def share(self) -> float | None:
        """Captioning's share of the gradient that reaches the heads (`ssb.losses.share`), the mean over training, to
        four decimals; None without captioning, NaN where it was not recorded."""
        if self.config.objective == "none":
            return None
        return round(float(self.trace["share"].mean()), 4) if "share" in self.trace else math.nan

    @functools.cached_property
    def ratio(self) -> float | None:
        """How many times the contrastive term the captioning term was (`Config.ratio`), by their means over training;
        None without captioning."""
        if self.config.objective == "none":
            return None
        return self.config.ratio(*self.log[["captioning", "contrast"]].mean())

    @functools.cached_property
    def weights(self) -> int:
        """How many weights the model has, its buffers included, without the decoder's."""
        with safe_open(self.folder / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(DECODER))

    def load(self, corpus: TrainingCorpus | None = None) -> tuple[SupportSetModel, TrainingData]:
        """The trained model in evaluation mode, and the data that it was trained on. CorpusError for another corpus,
        TrainingError where a pretrained model or code of your own is no longer that of the run."""
        read = self.corpus(corpus)
        if self._json(IDENTITY)[3:] != identity(self.config, read)[3:]:
            names = self.config.text_encoder, self.config.decoder, self.config.contrast
            raise TrainingError(
                f"run {self.name} was trained with another content of {' or '.join(dict.fromkeys(names))} or of a head "
                "than is there now: put that back, or train it again"
            )
        data = data_for(self.config, read)
        model = build(data)
        load_model(model, self.folder / "model.safetensors")
        return model.eval(), data

    def corpus(self, corpus: TrainingCorpus | None = None) -> TrainingCorpus:
        """The corpus that it was trained on, this one or else read; CorpusError where that is another one now."""
        trained = self.provenance["corpus_sha"]
        source = self.config.corpus, *self.config.corpus_options.items()
        read = corpus or _corpora.get((trained, *source))
        read = read or load_corpus(self.config.corpus, **self.config.corpus_options)
        if trained != read.fingerprint:
            raise CorpusError(
                f"run {self.name} was trained on {trained}, this corpus is {read.fingerprint}: pass that one"
            )
        if corpus is None:
            _corpora.clear()
            _corpora[trained, *source] = read
        return read

    def __repr__(self):
        recall = self.metrics["t2v R@1"]
        return f"Run({self.name}: {self.config.objective}, seed {self.config.seed}, t2v R@1 {recall:.1f})"


def corpus_label(config: Config) -> str:
    """The corpus of a run with its options and streams, as tables name it."""
    options = {**config.corpus_options, **({"streams": "+".join(config.streams)} if config.streams else {})}
    return "; ".join([config.corpus, *(f"{name} {value}" for name, value in options.items())])


def finished_run(name: str, setting: str = "pretrained") -> Run:
    """A finished run by its name, as this setting of a Config gives it; ConfigError for an unknown one."""
    if Path(name).name != name or not os.path.exists(files.runs() / name / "metrics.json"):
        raise ConfigError(f"{setting} = {name!r}: no such finished run in {files.short(files.runs())}; train it first")
    return Run(files.runs() / name)


def data_for(config: Config, corpus: TrainingCorpus, device="cpu", like: TrainingData | None = None) -> TrainingData:
    """`load` for a run; where it begins with the weights of another run, or with its decoder, with that run's
    tokenizers. CorpusError where test clips of the corpus are among the data of that run, or of one it began with."""
    if config.pretrained:
        like = finished_run(config.pretrained).load()[1]
    check_origins([*origins(config), *([like.corpus] if like else [])], corpus)
    if config.pretrained_decoder:
        with torch.random.fork_rng():  # the heads begin as without it
            like = Tokenizers(like and like.tokenizer, decoder_run(config).load()[1].label_tokenizer)
    return load(config, corpus, device, like)


def check_origins(trained: Iterable[TrainingCorpus], corpus: TrainingCorpus):
    """`check_unseen` of each other corpus."""
    for each in {each.fingerprint: each for each in trained if each.fingerprint != corpus.fingerprint}.values():
        check_unseen(each, corpus)


def origins(config: Config) -> Iterator[TrainingCorpus]:
    """The corpora of the runs that a run begins with, of those that these begin with, and so on."""
    runs = [finished_run(config.pretrained)] if config.pretrained else []
    runs += [decoder_run(config)] if config.pretrained_decoder else []
    for run in runs:
        yield run.corpus()
        yield from origins(run.config)


def decoder_run(config: Config) -> Run:
    """The run of `Config.pretrained_decoder`; ConfigError for an unknown one, and one of another or no decoder."""
    run = finished_run(config.pretrained_decoder, "pretrained_decoder")
    shape = ["decoder", *(["scratch_width", "scratch_layers", "scratch_heads"] if config.decoder == "scratch" else [])]
    if run.config.objective == "none":
        raise ConfigError(f"pretrained_decoder = {run.name!r}: that run has no decoder, its objective is 'none'")
    for name in shape:
        if (there := getattr(run.config, name)) != (here := getattr(config, name)):
            raise ConfigError(
                f"pretrained_decoder = {run.name!r}: {name} is {there!r} in that run and {here!r} in this one"
            )
    return run


def build(data: TrainingData) -> SupportSetModel:
    """An untrained model for the data, its weights drawn from torch's global generator."""
    config = data.config
    encoder, vocabulary = None if config.freeze_text else data.encoder, len(data.label_tokenizer or ())
    model = SupportSetModel(config, data.video_width, data.text_width, vocabulary, encoder)
    if config.standardise:
        for buffer, value in zip((model.shift, model.scale), data.statistics()):
            buffer.copy_(value)
    return model


def run_name(config: Config, corpus: TrainingCorpus) -> str:
    """Twelve hex digits of everything that a run's numbers depend on, see `ssb.training.identity`."""
    return files.digest(*identity(config, corpus))


def measured(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    """Ranks of `Data.ranks` → "<protocol> <metric>" → value, recalls in percent; and n_queries, from text to video."""
    metrics = {name: retrieval.metrics(values) for name, values in ranks.items() if name != "clip"}
    flat = {f"{protocol} {name}": value for protocol, each in metrics.items() for name, value in each.items()}
    return flat | {"n_queries": len(ranks["clip"])}
