"""Tables 3 to 6, retrieval from scratch and after pre-training, and Table 10, retrieval without fine-tuning: our runs
next to the rows that the paper prints. Numbers of paper.csv that could not be verified are blank."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import report
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, heading, interval, legend, styled
from ssb.metrics import retrieval, statistics
from ssb.paper import OF_CORPUS, Claim, baselines, recalls_of, record
from ssb.report import Experiment
from ssb.tables.verdicts import stacked
from ssb.training.runs import Run, check_origins, corpus_label, data_for, measured, origins

OBJECTIVES = ("none", "cross")  # that are pre-trained, unless the reader chooses others
# Prefix of a column → our protocol. The paper does not say which of the two video→text protocols it follows; CE and
# MMT, with which it compares, follow the first, and with one caption per clip both are the same.
PROTOCOLS = {"t2v": "t2v", "v2t": "v2t best-caption", "v2t max-per-video": "v2t max-per-video"}
HEADS = dict(zip(PROTOCOLS, ("text→video", "video→text (ours: best-caption)", "video→text, max-per-video")))
ZERO_SHOT = "{}, zero-shot"  # the name of a setting on the other corpus


def pre_trained(objectives: Iterable[str]) -> dict[str, dict]:
    """The settings to pre-train: each objective."""
    return {name: {"objective": name} for name in objectives}


def fine_tuned(base: Config, objectives: Iterable[str]) -> dict[str, dict]:
    """The settings of Tables 3 to 6: each objective from scratch; from scratch for a quarter of the epochs, which the
    paper leaves out; and pre-trained, for a quarter of the epochs from the weights of a run on another corpus, as the
    paper does after HowTo100M. `begin` of `Study.run` names these runs, see `initial_runs`."""
    grid = {}
    for name in objectives:
        short = {"objective": name, "epochs": max(1, base.epochs // 4)}
        grid |= {name: {"objective": name}, f"{name}, a quarter": short, f"{name}, pre-trained": short}
    return grid


def initial_runs(runs: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Pre-trained runs by objective → by the settings of `fine_tuned` that begin with their weights."""
    return {f"{name}, pre-trained": members for name, members in runs.items()}


class ZeroShot:
    """A finished run tested on another corpus, without training on it: what the rows of a table need of a `Run`. name,
    config, share and ratio are the run's; ranks, metrics, trained_on and provenance are those of this test.

    streams: those of the other corpus that are used, of the same total width as the features the run was trained on;
    (): all. ConfigError for another width; CorpusError where the run was trained or validated on test clips.
    """

    def __init__(self, run: Run, corpus: Corpus, streams: Iterable[str] = ()):
        model, trained = run.load()
        config = run.config.replace(corpus=corpus.name, corpus_options={}, streams=tuple(streams), pretrained="")
        data = data_for(config, corpus, like=trained)
        if data.video_width != (width := len(model.shift)):
            raise ConfigError(
                f"run {run.name} was trained on features of width {width}, those of {corpus.name} have "
                f"{data.video_width}; name streams of that total width"
            )
        check_origins(origins(run.config), corpus)
        self.name, self.config, self.share, self.ratio = run.name, run.config, run.share, run.ratio
        self.trained_on = ", begun with ".join(filter(None, (corpus_label(run.config), run.trained_on)))
        self.ranks = data.ranks(model, "test")
        self.metrics = measured(self.ranks) | {"best_epoch": run.metrics["best_epoch"]}
        self.provenance = run.provenance | {"corpus_sha": corpus.fingerprint}


def zero_shot(runs: Mapping[str, list[Run]], corpus: Corpus, streams: Iterable[str] = ()) -> dict[str, list[ZeroShot]]:
    """`ZeroShot` of every run (setting → its runs), under the settings' names in ZERO_SHOT."""
    tested = {name: [ZeroShot(run, corpus, streams) for run in members] for name, members in runs.items()}
    return {ZERO_SHOT.format(name): members for name, members in tested.items()}


def chance(corpus: Corpus) -> str:
    """The expected metrics of random ranks on the test clips, in words."""
    clips = len(corpus.split("test"))
    return f"by chance, among {clips} test clips: R@1 {100 / clips:.1f}, R@5 {500 / clips:.1f}, MdR {(clips + 1) / 2:g}"


def ours(runs: Mapping[str, Sequence[Run]], recalls: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """A row for each setting (setting → its runs, one for each seed): method, pretrain (`Run.trained_on`), seeds, and
    for each prefix in PROTOCOLS

    R@K, MdR              means over seeds, in percent and as a rank
    R@1 sd                standard deviation of R@1 over seeds; NaN for one seed
    R@1 low, R@1 high     95 % interval over queries of the mean R@1, by bootstrap; for text→video whole clips are
                          drawn, since captions of one clip are not independent

    ValueError where there is no run of a setting, and where runs have different test queries.
    """
    clips, rows = _clips(runs), {}
    for setting, members in runs.items():
        rows[setting] = {"method": setting, "pretrain": members[0].trained_on, "seeds": len(members)}
    for prefix, protocol in PROTOCOLS.items():
        for setting, ranks in stacked(runs, protocol).items():
            metrics, hits = retrieval.metrics(ranks, recalls), retrieval.points(ranks, "R@1")
            low, high = statistics.interval(hits, clips if prefix == "t2v" else None)
            metrics |= {"R@1 sd": pd.Series(hits.mean(axis=1)).std(ddof=1), "R@1 low": low, "R@1 high": high}
            rows[setting] |= {f"{prefix} {metric}": value for metric, value in metrics.items() if metric != "MnR"}
    return pd.DataFrame([*rows.values()])


def _clips(runs: Mapping[str, Sequence[Run]]) -> np.ndarray:
    """(Q,) the clip of each test query, the same for all runs; ValueError where it is not, or there is no run."""
    if not runs or not all(map(len, runs.values())):
        empty = [f" of {setting!r}" for setting, members in runs.items() if not len(members)]
        raise ValueError(f"no run{', '.join(empty)} to compare with the paper's rows; train it first")
    clips = next(iter(runs.values()))[0].ranks["clip"]
    for setting, members in runs.items():
        if different := [run.name for run in members if not np.array_equal(run.ranks["clip"], clips)]:
            raise ValueError(
                f"{setting!r}, run {different[0]}: its test queries differ from those of the first run; take runs of "
                "one corpus"
            )
    return clips


def with_paper_rows(runs: Mapping[str, Sequence[Run]], table: str, corpus: str) -> pd.DataFrame:
    """The rows of a table of the paper (`ssb.paper.baselines`) and below them `ours` in the same columns; the column
    `from` is "paper" or "ours". NaN where a row has no such number. corpus: the one of our test clips, as
    `Study.corpus_label` names it."""
    recalls = recalls_of(table)
    rows = ours(runs, recalls).assign(**{"from": "ours", "dataset": corpus})
    frame = pd.concat([baselines(table).assign(**{"from": "paper"}), rows], ignore_index=True)
    metrics = ["R@1", "R@1 sd", "R@1 low", "R@1 high", *(f"R@{k}" for k in recalls if k != 1), "MdR"]
    columns = [f"{prefix} {metric}" for prefix in PROTOCOLS for metric in metrics]
    frame = frame.reindex(columns=["from", "method", "pretrain", "dataset", "seeds", *columns, "source"])
    return frame.fillna({"source": ""}).astype({"seeds": "Int64"})


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """`with_paper_rows` as text, blank where there is no number. Columns (heading, metric)."""
    text = {("", name): frame[name].tolist() for name in ("method", "pretrain", "dataset")}
    for prefix, head in HEADS.items():
        for column, values in frame.filter(regex=rf"^{prefix} (R@\d+|MdR)$").items():
            metric = column.removeprefix(f"{prefix} ")
            text[head, metric] = report.cells(values)
            if metric == "R@1":
                text[head, "sd"] = report.cells(frame[f"{column} sd"])
                text[head, "95 %"] = report.intervals(frame[f"{column} low"], frame[f"{column} high"])
    return pd.DataFrame(text, index=frame.index)


def best(frame: pd.DataFrame, text: pd.DataFrame) -> pd.DataFrame:
    """True at the best of our settings in each metric; frame: of `with_paper_rows`, text: of `printed`."""
    rows = frame[frame["from"] == "ours"]
    columns = {(head, metric): f"{prefix} {metric}" for prefix, head in HEADS.items() for metric in text[head]}
    return report.best(pd.DataFrame({key: rows[name] for key, name in columns.items() if name in rows}), text)


def show(frame: pd.DataFrame, title: str):
    """`with_paper_rows` as a notebook displays it: the paper's rows grey, the best of our settings in bold."""
    text, paper = printed(frame), frame.index[frame["from"] == "paper"]
    return report.styled(text, best(frame, text), f"{title}; {caveat(frame)}", grey=paper).hide(axis="index")


def same_data(frame: pd.DataFrame) -> bool:
    """Do the paper's rows have the same test set as ours?"""
    paper = set(frame.loc[frame["from"] == "paper", "dataset"])
    return {record(name).published for name in frame.loc[frame["from"] == "ours", "dataset"]} <= paper


def caveat(frame: pd.DataFrame) -> str:
    """How far the two kinds of rows can be compared, for the title of the table."""
    datasets = ", ".join(frame.loc[frame["from"] == "paper", "dataset"].unique())
    if same_data(frame):
        return f"the paper's rows (grey) are of the same test set, {datasets}"
    return f"the paper's rows (grey) are of OTHER DATA, {datasets}: do not compare the numbers"


@styled
def dots(runs: Mapping[str, Sequence[Run]], table: str, title: str, corpus: str):
    """Text→video R@1 and R@10 (R@50 where the table has no R@10): our settings with 95 % intervals over queries, and
    the paper's rows as stars where they have the same test set. Arguments as in `with_paper_rows`."""
    frame = with_paper_rows(runs, table, corpus)
    metrics = ["R@1", "R@10" if "t2v R@10" in frame else f"R@{recalls_of(table)[-1]}"]
    if not (comparable := same_data(frame)):
        frame = frame[frame["from"] == "ours"].reset_index(drop=True)
    pretrain = frame["pretrain"].where(frame["from"] == "paper", "")  # the names of our settings include it
    names = [f"{name} + {data}" if data else name for name, data in zip(frame["method"], pretrain)]
    clips, ranks = _clips(runs), stacked(runs)
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 0.2 * len(frame) + 1.3), sharey=True)
    for axis, metric in zip(axes, metrics):
        for y, row in frame.iterrows():
            value = row[f"t2v {metric}"]
            if row["from"] == "paper":
                axis.scatter(value, y, marker="*", s=45, color=COLOURS[1], ec="black", lw=0.4, label="the paper's")
            else:
                ends = statistics.interval(retrieval.points(ranks[row["method"]], metric), clips)
                interval(axis, y, value, *ends, label="ours, mean over seeds, 95 % over queries")
        axis.set(xlabel=f"text→video {metric} (%)", yticks=range(len(frame)), yticklabels=names)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
    axes[1].tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    heading(figure, title if comparable else f"{title}; without the paper's rows, which are of other data")
    legend(figure, columns=2)
    return figure


GAIN_OF_CORPUS = ("Support-Set after howto100m", "Support-Set from scratch")  # rows of the table of the corpus
LONG = "pre-training and a quarter of the epochs beat training from scratch"
PRETRAINING = Experiment(
    "Tables 3 to 6: pre-training",
    grid=lambda study: fine_tuned(study.base, OBJECTIVES),
    baseline="cross",
    claims=(
        Claim(LONG, "cross, pre-trained", "cross", OF_CORPUS, GAIN_OF_CORPUS),
        Claim("pre-training beats training from scratch for as few epochs", "cross, pre-trained", "cross, a quarter"),
        Claim("cross beats no captioning after pre-training", "cross, pre-trained", "none, pre-trained"),
    ),
    alt="Forest plot of text to video R@1 from scratch, for a quarter of the epochs, and pre-trained, each seed a dot.",
)
TABLE10 = Experiment(
    "Table 10: zero-shot",
    number="10",
    grid=lambda study: pre_trained(OBJECTIVES),
    baseline="none, zero-shot",
    claims=(Claim("cross transfers better than no captioning", "cross, zero-shot", "none, zero-shot"),),
    alt="Forest plot of text to video R@1 of runs trained on another corpus and on this one, each seed a dot.",
)
TABLES = {
    "pretraining": PRETRAINING,
    "table10": TABLE10,
    "pretraining_from_shapes": replace(PRETRAINING, title="Pre-training on shapes: a control"),
    "table10_from_shapes": replace(TABLE10, title="Zero-shot from shapes: a control"),
}
