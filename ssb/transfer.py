"""From one corpus to another: the same runs tested elsewhere without training (zero-shot, Table 10)."""

from collections.abc import Iterable, Mapping

import numpy as np

from ssb.config import Config, ConfigError
from ssb.corpus import Corpus
from ssb.train import Run, data_for, measured, told

SAID = "{}, zero-shot"  # what a setting is called on the other corpus
BOTH = ("none", "cross")


class ZeroShot(Run):
    """A finished run on the test clips of another corpus, none of which, nor anything else of it, it was trained on.
    Its folder, settings and provenance are the run's own; its metrics and ranks are of the other corpus.

    streams: those of the other corpus, as wide in sum as what the run was trained on; (): all of them. ConfigError
    where they are not; CorpusError where the run has seen test clips.
    """

    def __init__(self, run: Run, corpus: Corpus, streams: Iterable[str] = ()):
        super().__init__(run.folder)
        model, known = run.load()
        config = run.config.replace(corpus=corpus.name, corpus_options={}, streams=tuple(streams), pretrained="")
        data = data_for(config, corpus, like=known)
        width, wanted = data.video_width, len(model.shift)
        if width != wanted:
            raise ConfigError(
                f"run {run.name} was trained on features of width {wanted}, those of {corpus.name} have {width}; "
                f"name streams of that width in sum"
            )
        self.ranks: dict[str, np.ndarray] = data.ranks(model, "test")
        self.metrics = measured(self.ranks) | {"best_epoch": run.metrics["best_epoch"]}
        self.trained_on = told(run.config)
        self.provenance = run.provenance | {"corpus_sha": corpus.fingerprint}


def zero_shot(runs: Mapping[str, list[Run]], corpus: Corpus, streams: Iterable[str] = ()) -> dict[str, list[ZeroShot]]:
    """Every run on the test clips of another corpus, setting by setting, under the names of SAID."""
    return {SAID.format(name): [ZeroShot(run, corpus, streams) for run in members] for name, members in runs.items()}


def chance(corpus: Corpus) -> str:
    clips = len(corpus.split("test"))
    return f"by chance, among {clips} test clips: R@1 {100 / clips:.1f}, R@5 {500 / clips:.1f}, MdR {(clips + 1) / 2:g}"


def pre_trained(objectives: Iterable[str] = BOTH) -> dict[str, dict]:
    return {name: {"objective": name} for name in objectives}


def fine_tuned(base: Config, objectives: Iterable[str] = BOTH) -> dict[str, dict]:
    """The settings of Tables 3 to 6: each objective from scratch; for a quarter of the epochs from the weights of a
    run on another corpus, as the paper does after HowTo100M; and, which the paper leaves out, for as few epochs from
    scratch. Which runs to begin with is `begin` of `Study.run`, under the names of `begun`."""
    short = {"epochs": max(1, base.epochs // 4)}
    grid = {}
    for name in objectives:
        grid |= {name: {"objective": name}, f"{name}, a quarter": {"objective": name, **short}}
        grid[f"{name}, pre-trained"] = {"objective": name, **short}
    return grid


def begun(runs: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Pre-trained runs by objective → by the settings of `fine_tuned` that begin with them."""
    return {f"{name}, pre-trained": members for name, members in runs.items()}
