"""The baseline first: a search, on validation clips alone, of the settings of `none` and then of those of captioning.

A look is a setting trained with several seeds and ranked on the validation clips, never on the test clips
(`Config.evaluate`). The search takes one step after the other; a step tries some values of one or two settings with the
others as they were found so far, and keeps the best by R@1 + R@5 + R@10, text to video, the mean over the seeds; of
the epochs and of the widths, which are what a run costs, the least within one standard error of the best. A run may
take twice the preset's epochs. This is coordinate descent: it is cheap and can miss settings that are better only
together.

From the preset `tuned`, which holds what a first search has found, a second one goes on with captioning, so that
captioning has as many looks as the baseline. It changes nothing in the preset: it tells how much more was to be found.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, product
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import figures
from ssb.config import Config, ConfigError
from ssb.corpora.load import CORPORA
from ssb.figures import COLOURS, MARKS, PAGE, styled
from ssb.report import Experiment
from ssb.study import Study
from ssb.training.runs import Run, TrainingError, configure

RECALLS = ("t2v R@1", "t2v R@5", "t2v R@10")
NAMED = ("tuned", "paper_small")  # presets that are baselines of every corpus that has them, and `laptop`
LOOKS = Experiment(
    "Looks at the validation clips",
    alt="Recall of every setting tried on the validation clips, in the order of the search, and the best so far.",
)
TABLES = {"looks": LOOKS, "looks_tuned": replace(LOOKS, title="Further looks at captioning")}


class Step(NamedTuple):
    """A step of the search. tried: the settings found so far → what else to try, as changes of them. cost: of settings
    within a standard error of the best one, take that with the least of this; "": take the best one."""

    name: str
    tried: Callable[[Mapping], list[dict]]
    cost: str = ""


def values(name: str, *tried, cost: str = "") -> Step:
    """A step that tries these values of one setting. cost: as of `Step`."""
    return Step(name, lambda found: [{name: value} for value in tried], cost)


def times(name: str, *factors: float) -> Step:
    """A step that tries multiples of the value of a setting that was found so far."""
    return Step(f"{name} again", lambda found: [{name: float(f"{found[name] * factor:.2g}")} for factor in factors])


def heads(found: Mapping) -> list[dict]:
    """Both small heads with each contrastive loss."""
    triplets = [{"contrast": "triplet", "negatives": negatives} for negatives in ("hardest", "scheduled", "mean")]
    pairs = product(("conv", "mean"), [*triplets, {"contrast": "info_nce"}])
    return [{"video_pooling": head, **loss} for head, loss in pairs]


def baseline_steps(epochs: int) -> list[Step]:
    """The search of `none`. epochs: of the preset."""
    return [
        Step("head and loss", heads),
        values("lr", 5e-4, 2e-3),
        values("epochs", max(1, epochs // 2), epochs, 2 * epochs, cost="epochs"),
        values("dim", 512, 1024, cost="dim"),
        values("dropout", 0.0, 0.1, 0.5),
        values("weight_decay", 0.01, 0.1),
        values("standardise", False),
        times("lr", 0.5, 2.0),
    ]


CAPTIONING_STEPS = (  # a look at `cross` costs several at `none`
    values("captioning", 0.03, 0.1, 0.3, 1.0),
    values("temperature", 0.03, 0.3),
    values("decoder_lr", 1e-3, 1e-2),
    values("decoder_warmup", 0.2),
)
FURTHER_STEPS = (  # as many as make the looks at captioning those at the baseline
    times("captioning", 0.5, 2.0),
    times("temperature", 0.5, 2.0),
    times("decoder_lr", 0.5, 2.0),
    times("lr", 0.5, 2.0),
    values("dropout", 0.0, 0.1, 0.3),
    values("weight_decay", 0.0, 0.01, 0.1),
    values("scratch_layers", 2),
)

NUMBER = r"[\d.]+(e-?\d+)?"
WORDS = {  # of settings, in the figure
    "lr": "learning rate",
    "lr again": "learning rate again",
    "captioning again": "λ again",
    "temperature again": "temperature T again",
    "decoder_lr again": "decoder's rate again",
    "scratch_layers": "decoder's layers",
    "dim": "width d",
    "weight_decay": "weight decay",
    "standardise": "standardisation",
    "captioning": "λ",
    "temperature": "temperature T",
    "decoder_lr": "decoder's rate",
    "decoder_warmup": "decoder first",
}


def named(changes: Mapping) -> str:
    """The name of a setting that changes these in the preset."""
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the preset"


def at_edge(found: str, tried: Iterable[str], base: Mapping) -> list[str]:
    """The settings that a search ended at the least or the largest value of, so that a better one may lie beyond, as
    none does beyond the least that is possible. found, tried: of `named`, the latter all looks at the same objective.
    base: the preset in which they change something."""
    looks = [dict(part.partition(" ")[::2] for part in look.split(", ")) for look in tried]
    values: dict[str, set[float]] = {}
    for look in looks:
        for name, value in look.items():
            if re.fullmatch(NUMBER, value) and len({each.get(name) for each in looks}) > 1:
                values.setdefault(name, set()).add(float(value))
    for name in values:
        values[name] |= {float(base[name])} if any(name not in look for look in looks) else set()
    kept = {name: float(base[name]) for name in values} | {
        name: float(value) for name, value in (part.partition(" ")[::2] for part in found.split(", ")) if name in values
    }
    ends = {name: (min(each), max(each)) for name, each in values.items()}
    return [name for name, both in ends.items() if kept[name] in both and kept[name] != least(name)]


def least(setting: str) -> float:
    """The smallest value that a setting can have; -inf where it has no such bound."""
    return next((each.ge for each in Config.model_fields[setting].metadata if hasattr(each, "ge")), -np.inf)


def scored(runs: Sequence[Run]) -> np.ndarray:
    """R@1 + R@5 + R@10 of each run."""
    return np.array([sum(run.metrics[name] for name in RECALLS) for run in runs])


def standard_error(scores: Sequence[np.ndarray]) -> float:
    """Of the mean of a setting over seeds, with the deviation pooled over all settings; 0 with one seed."""
    n = len(scores[0])
    return float(np.sqrt(np.mean([each.var(ddof=1) for each in scores]) / n)) if n > 1 else 0.0


def recorded(corpus: str, preset: str = "tuned") -> dict:
    """What a preset changes in `laptop` on a corpus of the library, such as the settings that a search has found; {}
    where none was searched."""
    if preset == "tuned" and preset not in CORPORA[corpus].settings:
        return {}
    laptop, other = (configure(name, corpus).model_dump() for name in ("laptop", preset))
    return {name: value for name, value in other.items() if value != laptop[name]}


def named_presets(study: Study) -> dict[str, dict]:
    """Those of NAMED that the study's corpus has → what they change in `laptop`; {} where that is not its preset."""
    if study.base.corpus not in CORPORA or study.preset != "laptop":
        return {}
    return {preset: changes for preset in NAMED if (changes := recorded(study.base.corpus, preset))}


class Search:
    """Looks at a corpus, and the settings found so far. The arguments are those of `Study`."""

    def __init__(self, table: str, corpus: str, preset: str, seeds: Sequence[int], jobs: int, changes: Mapping):
        if "objective" in changes:
            raise ConfigError("changes: the search goes from objective = 'none' to 'cross'; leave it out")
        self.study = Study(table, corpus, preset, seeds, jobs, {**changes, "objective": "none"}, looks=True)
        own = "".join(f", {name} = {value}" for name, value in changes.items() if name != "corpus_options")
        self.title = f"{TABLES.get(table, LOOKS).title}: {self.study.corpus.name}{own}"
        self.runs: dict[str, list[Run]] = {}  # setting → its runs; without those of which one collapsed
        self.steps: dict[str, str] = {}  # setting → the step that tried it first
        self.found: dict[str, object] = {}  # what is changed in the preset
        self.kept: dict[str, str] = {}  # objective → the setting found for it

    def baseline(self) -> dict:
        """Search the settings of `none`, which the preset `tuned` has found already; what was found."""
        return self.take([] if self.study.preset == "tuned" else baseline_steps(self.study.base.epochs))

    def captioning(self) -> dict:
        """Search those of `cross` around what was found; what was found."""
        self.found = self.found | {"objective": "cross"}
        return self.take(FURTHER_STEPS if self.study.preset == "tuned" else CAPTIONING_STEPS)

    def take(self, steps: Sequence[Step]) -> dict:
        """Take the steps, one after the other; returns what was found."""
        base = self.study.base.model_dump()
        for step in steps:
            tried = [self.found, *(self.found | changes for changes in step.tried(base | self.found))]
            tried = [{name: value for name, value in changes.items() if value != base[name]} for changes in tried]
            grid = {named(changes): changes for changes in tried}
            if new := {name: changes for name, changes in grid.items() if name not in self.steps}:
                self.runs = self.study.run(new, may_collapse=True, further=self.runs, complete=False)
                self.steps |= dict.fromkeys(new, step.name)
            scores = {name: scored(self.runs[name]) for name in grid if name in self.runs}
            if not scores:
                raise TrainingError(f"{step.name}: a run of every setting collapsed; begin with other changes")
            means = {name: float(each.mean()) for name, each in scores.items()}
            best = max(means, key=means.get)  # of equal ones the first
            if step.cost:
                least = means[best] - standard_error(list(scores.values()))
                near = [name for name, mean in means.items() if mean >= least]
                best = min(near, key=lambda name: (base | grid[name])[step.cost])
            self.found, self.kept[self.objective(best)] = grid[best], best
            print(f"{step.name}: {best}, R@1 + R@5 + R@10 = {means[best]:.1f}")
        return self.found

    def looks(self) -> pd.DataFrame:
        """Write results/<corpus>/looks.csv, a row for each run, and looks_summary.csv, which is returned: all settings
        in the order of the search with the step that tried it first, the recalls on the validation clips, means over
        seeds, their sum with its deviation over seeds, the seconds of a run, and whether the search ended with it."""
        rows = {}
        for setting, runs in self.runs.items():
            recalls = pd.DataFrame([[run.metrics[name] for name in RECALLS] for run in runs], columns=RECALLS)
            objective = self.objective(setting)
            row = {"step": self.steps[setting], "objective": objective, **recalls.mean()}
            row |= {"sum": recalls.sum(axis=1).mean(), "sum sd": recalls.sum(axis=1).std(ddof=1)}
            row |= {"seconds": np.mean([run.provenance["seconds"] for run in runs])}
            rows[setting] = row | {"found": self.kept.get(objective) == setting}
        self.study.rows(self.runs)
        summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting").round(2)
        self.study.write(summary.reset_index(), f"{self.study.table}_summary.csv")
        return summary

    def figure(self, looks: pd.DataFrame):
        """The `looks` in their order; written to figures/<corpus>/<table>.png and .pdf."""
        figure = drawn(looks, self.title)
        return figures.save(figure, self.study.figures, self.study.table, LOOKS.alt)

    def reading(self):
        """Print what was found, how much it gains, whether the corpus's record holds it, and the files."""
        for objective, found in self.kept.items():
            settings = [setting for setting in self.runs if self.objective(setting) == objective]
            first, last = (scored(self.runs[setting]).mean() for setting in (settings[0], found))
            error = standard_error([scored(self.runs[setting]) for setting in settings])
            print(f"{objective}: {len(settings)} looks; {settings[0]} {first:.1f}, found: {found}, {last:.1f}")
            print(f"    {last - first:+.2f}; standard error of a setting over seeds: {error:.2f}")
            if edges := at_edge(found, settings, self.study.base.model_dump()):
                print(f"    at the edge of what was tried: {', '.join(edges)}")
        if (name := self.study.base.corpus) in CORPORA and self.study.preset == "laptop":
            held = recorded(name) == {key: value for key, value in self.found.items() if key != "objective"}
            print(f'The preset "tuned" of {name} {"holds" if held else "DOES NOT HOLD"} these settings.')
        print(self.study.written())

    def objective(self, setting: str) -> str:
        """The captioning objective of a setting tried."""
        return self.runs[setting][0].config.objective


@styled
def drawn(looks: pd.DataFrame, title: str) -> plt.Figure:
    """R@1 + R@5 + R@10 of each look, with its deviation over seeds, and the best so far; a mark for each step."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.8))
    order = np.arange(1, len(looks) + 1)
    axis.step(order, looks["sum"].cummax(), where="post", color="0.6", lw=1, label="best so far", zorder=0)
    for step, mark, colour in zip(looks["step"].unique(), cycle(MARKS), cycle(COLOURS[:6])):
        chosen = (looks["step"] == step).to_numpy()
        shape = {"fmt": mark, "color": colour, "ms": 4, "lw": 1}
        axis.errorbar(
            order[chosen], looks["sum"][chosen], looks["sum sd"][chosen], **shape, label=WORDS.get(step, step)
        )
    first = int((looks["objective"] == "none").sum())
    if 0 < first < len(looks):
        axis.axvline(first + 0.5, color="0.7", lw=0.8, ls="--")
        for x, words, side in ((first + 0.3, "no captioning", "right"), (first + 0.7, "captioning", "left")):
            axis.text(x, 0.02, words, ha=side, va="bottom", transform=axis.get_xaxis_transform())
    axis.plot([], [], color="0.3", lw=1, label="bar: deviation over seeds")
    axis.set(xlabel="look, in the order of the search", ylabel="R@1 + R@5 + R@10 (points)", title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
