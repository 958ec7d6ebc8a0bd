"""Table 11: are actions recognised better from the embedding c_v of a pre-trained head than from the average of the
features it is computed from? And does captioning train a better head for it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ssb import figures, files, paper
from ssb.config import ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.features import assemble, place, read_streams
from ssb.corpora.labels import labels
from ssb.corpora.load import CORPORA
from ssb.corpora.reading import CorpusError, listed
from ssb.corpora.record import Record
from ssb.experiments import objectives
from ssb.machine import threads
from ssb.metrics.actions import mean_over_time, recognise
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import interval, paired, settled
from ssb.model import SupportSetModel
from ssb.progress import track
from ssb.report import Experiment, bracketed, signed, verdicts
from ssb.study import Study
from ssb.tables import released
from ssb.training.data import Data
from ssb.training.runs import Run, build

EXPERIMENT = Experiment(
    "Table 11: actions",
    number="11",
    grid=lambda study: objectives.PAIR,
    alt="Forest plot of the top-1 of a linear layer on average pooling, an untrained head and trained heads.",
)
TABLES = {"table11": EXPERIMENT}
POOLED, UNTRAINED = "average pooling", "head, untrained"
FILMS = "film"  # of each test clip, in the file of ranks
PAPER = "transformer pooling minus average pooling (more than)"  # row of paper.csv


def datasets() -> dict[str, Record]:
    """Name → the record of each dataset of actions, the one whose recipe serves other corpora first."""
    return {name: record for name, record in CORPORA.items() if record.recipe}


class Task(NamedTuple):
    """Clips whose actions are to be recognised, and their splits."""

    values: np.ndarray  # (N, M, D) frozen features
    mask: np.ndarray  # (N, M) the valid steps
    classes: np.ndarray  # (N,)
    films: np.ndarray  # (N,) what a clip is cut from: clips of one film are not independent
    splits: dict[str, tuple]  # name → rows to train on, rows to choose the epoch on or None, rows to test on


def own_task(run: Run, corpus: Corpus) -> Task:
    """The classes and the split of the corpus that the run was trained on. The epoch is chosen on the validation clips,
    on which the head was not trained."""
    parts = corpus.split("train"), corpus.split("val"), corpus.split("test")
    features = corpus.features(run.config.streams, run.config.max_steps)
    return Task(*features, labels(corpus), np.array(corpus.clips), {"own": parts})


def official_task(dataset: str, run: Run, corpus: Corpus, data: Path | None = None) -> Task:
    """A dataset of actions with its official splits, in features that a run on another corpus takes.

    dataset: one of `datasets`, a folder in `data` (`files.data()`) with the lists that `ssb.corpora.labels` reads and
    `features/` (see `read_streams`), whose streams have the names and widths of the corpus's. The epoch is chosen
    on some films of the training clips. CorpusError for what is missing or does not fit.
    """
    if dataset not in (records := datasets()):
        raise CorpusError(f"no action dataset {dataset!r}; there are {listed(records)}, and '' for the corpus's own")
    record = records[dataset]
    home = (data or files.data()) / record.dataset
    table = record.labels(home)
    streams = read_streams(place(home), table["clip"].tolist())
    names = run.config.streams or tuple(corpus.streams)
    for name in names:
        if name not in streams:
            raise CorpusError(
                f"{home / 'features'}: no stream {name!r}, which run {run.name} was trained on; extract it"
            )
        if streams[name].dim != (width := corpus.streams[name].dim):
            raise CorpusError(
                f"{streams[name].source}: {streams[name].dim} dims, but run {run.name} was trained on {width} of "
                f"{name!r} in {corpus.name}; extract them with the same encoder"
            )
    clips = assemble(dataset, table.assign(text=table["label"]), {"all": table["clip"].tolist()}, streams)
    features = clips.features(names, run.config.max_steps)
    return Task(*features, table["label"].to_numpy(), film(table["clip"], record), official(table, record))


def official(table: pd.DataFrame, record: Record) -> dict[str, tuple[np.ndarray, None, np.ndarray]]:
    """The splits of a `Task` from the labels of a dataset."""
    rows = {name: [np.flatnonzero(table[name] == part) for part in ("train", "test")] for name in record.splits}
    return {name: (train, None, test) for name, (train, test) in rows.items()}


def film(clips: pd.Series, record: Record) -> np.ndarray:
    """(N,) the names without `Record.cut`: clips that differ in nothing else are cut from one film, such as
    `…_g01_c02` of UCF-101 and `…_goo_2` of HMDB-51, and must not be on both sides of a split."""
    return clips.str.replace(f"(?:{record.cut})$", "", regex=True).to_numpy()


def embedded(model: SupportSetModel, values: np.ndarray, mask: np.ndarray, size: int = 512) -> np.ndarray:
    """(N, M, D), (N, M) → c_v (N, d) of a model in evaluation mode, `size` clips at a time."""
    device = next(model.parameters()).device
    batches = zip(*(torch.from_numpy(x).split(size) for x in (values, mask)))
    with torch.inference_mode():
        parts = [model.embed_video(x.to(device), valid.to(device)) for x, valid in batches]
        return torch.cat(parts).float().cpu().numpy()


def untrained(data: Data) -> SupportSetModel:
    """The model of a run before training, its weights drawn from the run's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(data.config.seed)
        return build(data).eval().to(data.device)


class Compared(NamedTuple):
    """The result of `compare`. rows: one for each kind of features, split and seed. ranks: features → (seeds, Q), the
    rank of the right class of the test clips of all splits, in order. films: (Q,) of those."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]
    films: np.ndarray

    def hits(self, name: str) -> np.ndarray:
        """(seeds, Q) 100 where the right class of a test clip is above all others, else 0; their mean is top-1 (%)."""
        return points(self.ranks[name], "R@1")

    def gain(self, name: str, base: str) -> dict[str, float]:
        """top-1 of some features minus that of others: the columns DELTA of `ssb.metrics.statistics`, resampling
        films."""
        return paired(self.hits(name), self.hits(base), self.films)._asdict()


def compare(study: Study, runs: Mapping[str, list[Run]], dataset: str = "", recipe: str = "") -> Compared:
    """Actions recognised from averaged features, from a head that was never trained and from the trained head of each
    setting, once for each seed of the runs; rows, with the provenance of the runs, are written to
    results/<corpus>/<table>.csv, and the ranks beside it. The features are those of the first setting's runs.

    dataset: see `official_task`; "": `own_task`. recipe: one of `datasets`, whose schedule is taken; "": that of the
    dataset, or the first. The layer has the run's seed. ConfigError for an unknown recipe.
    """
    records = datasets()
    recipe = recipe or (dataset if dataset in records else next(iter(records)))
    if recipe not in records:
        raise ConfigError(f"recipe = {recipe!r}; wanted one of {listed(records)}")
    first = next(iter(runs.values()))
    task = official_task(dataset, first[0], study.corpus) if dataset else own_task(first[0], study.corpus)
    tables, ranks, arrays = [], {}, {}
    pairs = [(setting, run) for setting, members in runs.items() for run in members]
    for setting, run in track(pairs, "training linear layers"):
        about = study.frame({setting: [run]}).iloc[0]
        about = about[["preset", "run", "config_sha", *run.provenance]]
        seed, inputs = run.config.seed, {}
        model, data = run.load(study.corpus)
        with threads(run.config.threads):
            if setting == next(iter(runs)):
                inputs[POOLED] = mean_over_time(task.values, task.mask)
                inputs[UNTRAINED] = embedded(untrained(data), task.values, task.mask)
            inputs[f"head, {setting}"] = embedded(model, task.values, task.mask)
        results = {
            split: recognise(inputs, task.classes, train, test, val, task.films, records[recipe].recipe, [seed])
            for split, (train, val, test) in task.splits.items()
        }
        for split, result in results.items():
            each = result.rows.rename(columns={"features": "setting"}).round({"top-1": 2, "top-5": 2})
            each = each.assign(table=study.table, corpus=study.corpus.name, dataset=dataset, split=split)
            tables.append(each.assign(recipe=recipe, **about))
        for name in inputs:
            each = np.concatenate([each.ranks[name][0] for each in results.values()])
            ranks.setdefault(name, []).append(each)
            arrays[f"{run.name}/{name}"] = released.packed(each)
    frame = pd.concat(tables).sort_values(["setting", "split", "seed"], kind="stable", ignore_index=True)
    leading = ["table", "corpus", "dataset", "split", "setting", "seed"]
    frame = frame[[*leading, *frame.columns.drop(leading)]]
    study.write(frame, f"{study.table}.csv")
    films = task.films[np.concatenate([test for _, _, test in task.splits.values()])]
    arrays[f"{released.FIXED}/{FILMS}"] = released.packed(np.unique(films, return_inverse=True)[1])
    study.release_arrays(arrays)
    return Compared(frame, {name: np.stack(each) for name, each in ranks.items()}, films)


def summary(study: Study, compared: Compared) -> pd.DataFrame:
    """One row for each kind of features; written to results/<corpus>/<table>_summary.csv. top-1 and top-5 are means
    over splits and seeds; top-1 also has its standard deviation over seeds, its 95 % interval over test clips
    (resampling films) and its difference to average pooling as in `Study.summary`, in which every test clip counts
    alike: with splits of different sizes it can differ from that of the means in the last digit. `kept last`: the
    percentage of layers that were best at the last epoch of their schedule, and might improve with a longer one."""
    rows, records = {}, datasets()
    for name in compared.ranks:
        own = compared.rows[compared.rows["setting"] == name]
        each = own.groupby("seed")[["top-1", "top-5"]].mean()
        row = {"seeds": len(each), **each.mean(), "top-1 sd": each["top-1"].std(ddof=1)}
        row["kept last"] = 100 * (own["epoch"] == own["recipe"].map(lambda name: records[name].recipe.epochs)).mean()
        row["top-1 low"], row["top-1 high"] = interval(compared.hits(name), compared.films)
        rows[name] = row | (compared.gain(name, POOLED) if name != POOLED else {})
    frame = settled(pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")).round(3)
    study.write(frame.reset_index(), f"{study.table}_summary.csv")
    return frame


def claims(study: Study, compared: Compared, dataset: str = "") -> pd.DataFrame:
    """Table 11's claim of every trained head, what training adds to a head, and whether `cross` trains a better one; in
    points of top-1, written to results/<corpus>/<table>_claims.csv. paper: a lower bound, of UCF-101 or HMDB-51; NaN
    for other classes."""
    printed = paper.rows(table="11", row=PAPER, dataset=dataset)["value"].tolist() or [np.nan]
    heads = {name: name.removeprefix("head, ") for name in compared.ranks if name not in (POOLED, UNTRAINED)}
    tested = [(f"the pre-trained head ({short}) beats average pooling", name, POOLED) for name, short in heads.items()]
    tested += [(f"training makes the head ({short}) better", name, UNTRAINED) for name, short in heads.items()]
    if {"head, cross", "head, none"} <= heads.keys():
        tested.append(("cross-captioning makes a better head for actions", "head, cross", "head, none"))
    rows = []
    for claim, name, baseline in tested:
        row = {"claim": f"{claim} (points of top-1)", "setting": name, "baseline": baseline}
        row |= {"seeds": len(compared.ranks[name]), "paper": printed[0] if baseline == POOLED else np.nan}
        rows.append(row | compared.gain(name, baseline))
    return study.judged(rows)


def reading(summary: pd.DataFrame, claims: pd.DataFrame) -> str:
    """The summary and the claims in words."""
    lines = [f"{POOLED}: {summary.loc[POOLED, 'top-1']:.1f} % of the test clips recognised."]
    for name, row in summary.drop(index=POOLED).iterrows():
        interval = bracketed(row["delta_low"], row["delta_high"])
        lines.append(f"{name}: {row['top-1']:.1f} %, {signed(row['delta'])} {interval}: {row['verdict']}.")
    late = ", ".join(f"{name} {share:.0f} %" for name, share in summary["kept last"].items())
    lines.append(f"Layers that were best at the last epoch, and might improve with a longer schedule: {late}.")
    return "\n".join([*lines, verdicts(claims)])


def recognised(rows: pd.DataFrame, summary: pd.DataFrame, title: str):
    """Table 11 as `figures.settings` draws a table: differences in top-1 (mean over splits) to average pooling, and
    chance. rows, summary: of `compare` and `summary`."""
    seeds = rows.groupby(["setting", "seed"], as_index=False)["top-1"].mean()
    names = dict(metric="top-1", column="top-1", queries="test clips")
    return figures.settings(seeds, summary, title, POOLED, **names, chance=100 / rows["classes"].iloc[0])
