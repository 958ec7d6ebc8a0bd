"""Table 11: does the embedding c_v of a pre-trained head tell actions better apart than the average of the features it
is made of? And does captioning make a better head for it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ssb import files
from ssb.config import ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.features import assemble, read_streams
from ssb.corpora.labels import hmdb51, labels, ucf101
from ssb.corpora.reading import CorpusError, listed
from ssb.figures import COLOURS, PAGE, arms, difference, legend, styled
from ssb.machine import threads
from ssb.metrics.actions import RECIPES, recognise
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import interval, paired, settled
from ssb.model import SupportSetModel
from ssb.report import signed, verdicts
from ssb.study import Study
from ssb.training.data import Data
from ssb.training.runs import Run, build

OFFICIAL = {"ucf101": ucf101, "hmdb51": hmdb51}
POOLED, UNTRAINED = "average pooling", "head, untrained"
PAPER = "transformer pooling minus average pooling (more than)"  # row of paper.csv


class Task(NamedTuple):
    """Clips whose actions are to be recognised, and the parts to do it on."""

    values: np.ndarray  # (N, M, D) frozen features
    mask: np.ndarray  # (N, M), the real steps
    classes: np.ndarray  # (N,)
    films: np.ndarray  # (N,) what a clip is cut from: clips of one film are not independent
    splits: dict[
        str, tuple[np.ndarray, np.ndarray | None, np.ndarray]
    ]  # rows to train on, to choose the epoch on, test


def own_task(run: Run, corpus: Corpus) -> Task:
    """The classes and the split of the corpus that the run was trained on. The epoch is chosen on its validation clips,
    which its head was not trained on."""
    parts = corpus.split("train"), corpus.split("val"), corpus.split("test")
    seen = corpus.features(run.config.streams, run.config.max_steps)
    return Task(*seen, labels(corpus), np.array(corpus.clips), {"own": parts})


def official_task(dataset: str, run: Run, corpus: Corpus, data: Path | None = None) -> Task:
    """UCF-101 or HMDB-51 and its three official splits, in the features that a run of another corpus can take.

    dataset: "ucf101" or "hmdb51", a folder in `data` (`files.data()`) with the lists that `datasets` reads and
    `features/` (see `readers.read_streams`), the streams named as the corpus's and as wide. The epoch is chosen on some
    films of the training clips. CorpusError for what is missing or does not fit.
    """
    if dataset not in OFFICIAL:
        raise CorpusError(f"no action dataset {dataset!r}; there are {listed(OFFICIAL)}, and '' for the corpus's own")
    home = (data or files.data()) / dataset
    table = OFFICIAL[dataset](home)
    streams = read_streams(home / "features", table["clip"].tolist())
    names = run.config.streams or tuple(corpus.streams)
    for name in names:
        if name not in streams:
            raise CorpusError(
                f"{home / 'features'}: no stream {name!r}, which run {run.name} was trained on; extract it"
            )
        if streams[name].dim != corpus.streams[name].dim:
            wide, wanted = streams[name].dim, corpus.streams[name].dim
            raise CorpusError(
                f"{streams[name].source}: {wide} dims, but run {run.name} was trained on {wanted} of {name!r} in "
                f"{corpus.name}; extract them with the same encoder"
            )
    shown = assemble(dataset, table.assign(text=table["label"]), {"all": table["clip"].tolist()}, streams)
    seen = shown.features(names, run.config.max_steps)
    return Task(*seen, table["label"].to_numpy(), film(table["clip"]), official(table))


def official(table: pd.DataFrame) -> dict[str, tuple[np.ndarray, None, np.ndarray]]:
    """The splits of a `Task` from the columns split1, split2, split3 of `datasets.ucf101` or `hmdb51`."""
    names = ("split1", "split2", "split3")
    rows = {name: [np.flatnonzero(table[name] == part) for part in ("train", "test")] for name in names}
    return {name: (train, None, test) for name, (train, test) in rows.items()}


def film(clips: pd.Series) -> np.ndarray:
    """(N,) the name without its last number: the clips of UCF-101 (`_g01_c02`) and HMDB-51 (`…_goo_2`) that differ in
    nothing else are cut from one film, and must not be on both sides of a split."""
    return clips.str.replace(r"_c?\d+$", "", regex=True).to_numpy()


def averaged(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, M, D), (N, M) → (N, D), the mean over the real steps."""
    return (values * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def embedded(model: SupportSetModel, values: np.ndarray, mask: np.ndarray, size: int = 512) -> np.ndarray:
    """(N, M, D), (N, M) → c_v (N, d) of a model in evaluation mode."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [
            model.embed_video(*(torch.from_numpy(x[i : i + size]).to(device) for x in (values, mask)))
            for i in range(0, len(values), size)
        ]
        return torch.cat(parts).float().cpu().numpy()


class Compared(NamedTuple):
    """What `compare` gives. rows: one for each kind of features, split and seed. ranks: features → (seeds, Q) over the
    test clips of all splits, in their order. films: (Q,) of those."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]
    films: np.ndarray

    def hits(self, name: str) -> np.ndarray:
        """(seeds, Q) 100 where the right class of a test clip is above all others, else 0; their mean is top-1 (%)."""
        return points(self.ranks[name], "R@1")

    def gain(self, name: str, base: str) -> dict[str, float]:
        """top-1 of some features less that of others: the columns DELTA of `ssb.metrics.statistics`, films drawn."""
        return paired(self.hits(name), self.hits(base), self.films)._asdict()


def compare(study: Study, runs: Mapping[str, list[Run]], dataset: str = "", recipe: str = "") -> Compared:
    """Actions recognised from averaged features, from a head that was never trained and from the trained head of each
    setting, once for each seed of the runs; rows, with the provenance of the runs, are written to
    results/<corpus>/<table>.csv. The first setting's runs say which features are averaged.

    dataset: see `official_task`; "": `own_task`. recipe: "ucf101" or "hmdb51", the schedule; "": the dataset's, or that
    of ucf101. The layer has the run's seed. ConfigError for a recipe that there is not.
    """
    recipe = recipe or (dataset if dataset in RECIPES else "ucf101")
    if recipe not in RECIPES:
        raise ConfigError(f"recipe = {recipe!r}; wanted one of {listed(RECIPES)}")
    first = next(iter(runs.values()))
    task = official_task(dataset, first[0], study.corpus) if dataset else own_task(first[0], study.corpus)
    rows, ranks = [], {}
    for setting, members in runs.items():
        about = study.frame({setting: members}).set_index("seed")[
            ["preset", "run", "config_sha", *members[0].provenance]
        ]
        for run in members:
            model, data = run.load(study.corpus)
            inputs = {f"head, {setting}": model}
            if members is first:
                inputs = {POOLED: None, UNTRAINED: untrained(data)} | inputs
            with threads(run.config.threads):
                inputs = {
                    name: averaged(task.values, task.mask) if model is None else embedded(model, task.values, task.mask)
                    for name, model in inputs.items()
                }
            seed, found = run.config.seed, {}
            for split, (train, val, test) in task.splits.items():
                result = recognise(inputs, task.classes, train, test, val, task.films, RECIPES[recipe], [seed])
                each = result.rows.rename(columns={"features": "setting"}).round({"top-1": 2, "top-5": 2})
                each = each.assign(table=study.table, corpus=study.corpus.name, dataset=dataset, split=split)
                rows.append(each.assign(recipe=recipe, **about.loc[seed]))
                for name in inputs:
                    found.setdefault(name, []).append(result.ranks[name][0])
            for name, parts in found.items():
                ranks.setdefault(name, []).append(np.concatenate(parts))
    frame = pd.concat(rows).sort_values(["setting", "split", "seed"], kind="stable", ignore_index=True)
    leading = ["table", "corpus", "dataset", "split", "setting", "seed"]
    frame = frame[[*leading, *frame.columns.drop(leading)]]
    study.write(frame, f"{study.table}.csv")
    tests = np.concatenate([test for _, _, test in task.splits.values()])
    return Compared(frame, {name: np.stack(each) for name, each in ranks.items()}, task.films[tests])


def untrained(data: Data) -> SupportSetModel:
    """A model whose weights are drawn from the seed of the run: what a head gives that knows nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(data.config.seed)
        return build(data).eval().to(data.device)


def summary(study: Study, compared: Compared) -> pd.DataFrame:
    """One row for each kind of features; written to results/<corpus>/<table>_summary.csv. top-1 and top-5 are means
    over splits and seeds; `kept last` the percent of layers that were best at the last epoch of their schedule, and so
    might have become better; the deviation of top-1 over seeds, its 95 % interval over test clips (films drawn again),
    and the difference to average pooling as in `Study.summary`. Where the splits are not equally large, the difference,
    which counts every test clip alike, may be another in the last digit than that of the means."""
    rows = {}
    for name in compared.ranks:
        each = compared.rows[compared.rows["setting"] == name].groupby("seed")[["top-1", "top-5"]].mean()
        low, high = interval(compared.hits(name), compared.films)
        row = {"seeds": len(each), **each.mean(), "top-1 sd": each["top-1"].std(ddof=1)}
        own = compared.rows[compared.rows["setting"] == name]
        row["kept last"] = 100 * (own["epoch"] == own["recipe"].map(lambda recipe: RECIPES[recipe].epochs)).mean()
        rows[name] = row | {"top-1 low": low, "top-1 high": high}
        if name != POOLED:
            rows[name] |= compared.gain(name, POOLED)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
    frame = settled(frame).round(3)
    study.write(frame.reset_index(), f"{study.table}_summary.csv")
    return frame


def claims(study: Study, compared: Compared, dataset: str = "") -> pd.DataFrame:
    """Table 11's claim of every trained head, what training adds to a head, and whether `cross` makes a better one; in
    points of top-1, written to results/<corpus>/<table>_claims.csv. paper: of the dataset, a bound from below; blank
    where it is neither UCF-101 nor HMDB-51."""
    numbers = pd.read_csv(Path(__file__).parents[1] / "paper.csv", dtype={"table": str})
    found = numbers[(numbers["table"] == "11") & (numbers["row"] == PAPER) & (numbers["dataset"] == dataset)]
    paper = found["value"].item() if len(found) else np.nan
    heads = [name for name in compared.ranks if name not in (POOLED, UNTRAINED)]
    asked = [(f"the pre-trained head ({name.removeprefix('head, ')}) beats average pooling", name, POOLED, paper)
             for name in heads]  # fmt: skip
    asked += [(f"training makes the head ({name.removeprefix('head, ')}) better", name, UNTRAINED, np.nan)
              for name in heads]  # fmt: skip
    if {"head, cross", "head, none"} <= set(heads):
        asked.append(("cross-captioning makes a better head for actions", "head, cross", "head, none", np.nan))
    rows = []
    for says, name, base, size in asked:
        row = {"claim": f"{says} (points of top-1)", "setting": name, "baseline": base, "paper": size}
        row["seeds"] = len(compared.ranks[name])
        rows.append(row | compared.gain(name, base))
    return study.judged(rows)


def reading(summary: pd.DataFrame, claims: pd.DataFrame) -> str:
    """The summary in words: what the head is worth, and how much of it came with training."""
    base = summary.loc[POOLED]
    lines = [f"{POOLED}: {base['top-1']:.1f} % of the test clips recognised."]
    for name, row in summary.drop(index=POOLED).iterrows():
        low, high = signed(row["delta_low"]), signed(row["delta_high"])
        lines.append(f"{name}: {row['top-1']:.1f} %, {signed(row['delta'])} [{low}, {high}]: {row['verdict']}.")
    late = ", ".join(f"{name} {share:.0f} %" for name, share in summary["kept last"].items())
    lines.append(f"Layers best at the last epoch of their schedule, which a longer one might make better: {late}.")
    return "\n".join([*lines, verdicts(claims)])


@styled
def recognised(rows: pd.DataFrame, summary: pd.DataFrame, title: str):
    """Table 11. Left: top-1 of each kind of features, each seed a dot (mean over splits), and the mean with its 95 %
    interval over test clips. Right: the difference to average pooling with both intervals.

    rows, summary: of `recognition.compare` and `recognition.summary`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.32 * len(summary) + 1.2), sharey=True)
    each = rows.groupby(["setting", "seed"])["top-1"].mean()
    for y, (setting, row) in enumerate(summary.iterrows()):
        seeds = each[setting]
        offsets = np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) != 1 else np.array([0.2])
        left.scatter(seeds, y + offsets, s=9, color=COLOURS[1], zorder=3, label="one seed")
        bar = dict(fmt="D", ms=4, color=COLOURS[0], capsize=3, elinewidth=1.5)
        spread = arms(row["top-1"], row["top-1 low"], row["top-1 high"])
        left.errorbar(row["top-1"], y, xerr=spread, label="mean, 95 % over test clips", **bar)
        if setting != POOLED:
            difference(right, y, row)
    left.axvline(100 / rows["classes"].iloc[0], color="0.5", lw=0.8, ls=":", label="chance")
    right.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    left.set(yticks=range(len(summary)), yticklabels=summary.index, xlabel="top-1 (% of test clips)", xlim=(0, None))
    right.set(xlabel=f"top-1 less {POOLED} (points)")
    right.tick_params(axis="y", length=0)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=8)
    legend(figure, columns=4)
    return figure
