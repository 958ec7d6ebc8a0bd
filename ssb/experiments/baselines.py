"""The baseline first: a search, on validation clips alone, of the settings of `none` and then of those of captioning.

A look is a setting trained with several seeds and ranked on the validation clips, never on the test clips
(`Config.evaluate`). The search takes one step after the other; a step tries some values of one or two settings with the
others as they were found so far, and keeps the best by R@1 + R@5 + R@10, text to video, the mean over the seeds. This
is coordinate descent: it is cheap and can miss settings that are better only together.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb.report import Experiment
from ssb.study import Study
from ssb.training.runs import Run

RECALLS = ("t2v R@1", "t2v R@5", "t2v R@10")
MOST_EPOCHS, MOST_STEPS = 160, 8000  # of a look: a run of `none` of 8,000 steps takes a minute or two on one core
TABLES = {"looks": Experiment("Looks at the validation clips")}


class Step(NamedTuple):
    """A step of the search. tried: the settings found so far → what else to try, as changes of them."""

    name: str
    tried: Callable[[Mapping], list[dict]]


def values(name: str, *tried) -> Step:
    """A step that tries these values of one setting."""
    return Step(name, lambda found: [{name: value} for value in tried])


def times(name: str, *factors: float) -> Step:
    """A step that tries multiples of the value of a setting that was found so far."""
    return Step(f"{name} again", lambda found: [{name: float(f"{found[name] * factor:.2g}")} for factor in factors])


def heads(found: Mapping) -> list[dict]:
    """Both small heads with each contrastive loss."""
    losses = [{"contrast": "triplet", "negatives": negatives} for negatives in ("hardest", "scheduled", "mean")]
    return [
        {"video_pooling": head, **loss} for head, loss in product(("conv", "mean"), [*losses, {"contrast": "info_nce"}])
    ]


def epochs(batches: int) -> Step:
    """More and fewer epochs, up to MOST_EPOCHS and MOST_STEPS. batches: of an epoch."""
    most = min(MOST_EPOCHS, MOST_STEPS // batches)
    return Step("epochs", lambda found: [{"epochs": n} for n in (20, 40, 80, 160) if n <= most])


def baseline_steps(batches: int) -> list[Step]:
    """The search of `none`. batches: of an epoch."""
    return [
        Step("head and contrastive loss", heads),
        values("lr", 5e-4, 2e-3),
        epochs(batches),
        values("dim", 512, 1024),
        values("dropout", 0.0, 0.1, 0.5),
        values("weight_decay", 0.01, 0.1),
        values("standardise", False),
        times("lr", 0.5, 2.0),
    ]


CAPTIONING_STEPS = [
    values("captioning", 0.03, 0.1, 0.3, 1.0, 3.0),
    values("temperature", 0.03, 0.3, 1.0),
    values("decoder_lr", 1e-3, 2e-3, 1e-2),
    values("decoder_warmup", 0.2),
    times("captioning", 0.5, 2.0),
    times("temperature", 0.5, 2.0),
]


def named(changes: Mapping) -> str:
    """The name of a setting that changes these in the preset."""
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the preset"


def score(runs: Sequence[Run]) -> float:
    """R@1 + R@5 + R@10, the mean over runs."""
    return float(np.mean([sum(run.metrics[name] for name in RECALLS) for run in runs]))


class Search:
    """Looks at a corpus, and the settings found so far. study: ranks validation clips, `Config.evaluate` = "val"."""

    def __init__(self, study: Study):
        if study.base.evaluate != "val":
            raise ValueError('a search needs a study with changes {"evaluate": "val"}: it must not see test clips')
        self.study = study
        self.runs: dict[str, list[Run]] = {}  # setting → its runs
        self.steps: dict[str, str] = {}  # setting → the step that tried it first
        self.found: dict[str, object] = {}  # what is changed in the preset

    def take(self, steps: Sequence[Step]) -> dict:
        """Take the steps, one after the other; returns what was found so far."""
        base = self.study.base.model_dump()
        for step in steps:
            tried = [self.found] + [self.found | changes for changes in step.tried(base | self.found)]
            kept = [{name: value for name, value in changes.items() if value != base[name]} for changes in tried]
            grid = {named(changes): changes for changes in kept}
            new = {name: changes for name, changes in grid.items() if name not in self.runs}
            if new:
                print(f"{step.name}: {len(new)} new settings")
                self.runs |= self.study.run(new, further=self.runs, complete=False)
                self.steps |= dict.fromkeys(new, step.name)
            best = max(grid, key=lambda name: score(self.runs[name]))  # of equal ones the first, which is simpler
            self.found = grid[best]
            print(f"{step.name}: {best}, {score(self.runs[best]):.1f}")
        return self.found

    def looks(self) -> pd.DataFrame:
        """All settings tried, a row each in the order of the search: the step that tried it first, its recalls on the
        validation clips, mean over seeds, their sum with its deviation over seeds, and the seconds of a run."""
        rows = {}
        for setting, runs in self.runs.items():
            recalls = pd.DataFrame([[run.metrics[name] for name in RECALLS] for run in runs], columns=RECALLS)
            row = {"step": self.steps[setting], **recalls.mean(), "sum": recalls.sum(axis=1).mean()}
            seconds = np.mean([run.provenance["seconds"] for run in runs])
            rows[setting] = row | {"sum sd": recalls.sum(axis=1).std(ddof=1), "seconds": seconds}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting").round(2)
