"""Our runs beside the rows that the paper compares itself with: Tables 3 to 6, and 10 for a model that was not trained
on the dataset. The paper's numbers are those of paper.csv; one that could not be verified is blank, never filled in."""

import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, arms, styled
from ssb.metrics import retrieval, statistics
from ssb.paper import OF_CORPUS, Claim, baselines, recalls_of, record
from ssb.study import Study
from ssb.training.runs import Run, data_for, measured, told

# What a way is called in a column → the protocol of ours. Which of the two video→text protocols the paper follows it
# does not say; CE and MMT, with which it compares, follow the first, and with one caption a clip both are the same.
WAYS = {"t2v": "t2v", "v2t": "v2t best-caption", "v2t max-per-video": "v2t max-per-video"}
HEADS = dict(zip(WAYS, ("text→video", "video→text (ours: best-caption)", "video→text, max-per-video")))
GREY = "0.55"
PRETRAINING_CLAIMS = [
    Claim(
        *("pre-training and a quarter of the epochs beat training from scratch", "cross, pre-trained", "cross"),
        *(OF_CORPUS, ("Support-Set after howto100m", "Support-Set from scratch")),
    ),
    Claim("so they do against as few epochs", "cross, pre-trained", "cross, a quarter"),
    Claim("cross beats no captioning after pre-training", "cross, pre-trained", "none, pre-trained"),
]
ZERO_SHOT_CLAIMS = [Claim("cross transfers better than no captioning", "cross, zero-shot", "none, zero-shot")]


def ours(runs: Mapping[str, Sequence[Run]], recalls: Sequence[int] = (1, 5, 10)) -> pd.DataFrame:
    """A row for each setting (setting → its runs, one for each seed): method, seeds, and for each way of WAYS

    R@K, MdR              means over seeds, in percent and as a rank
    R@1 sd                deviation of R@1 over seeds; NaN of one seed
    R@1 low, R@1 high     95 % interval over queries of R@1's mean over seeds, by bootstrap; of text→video whole clips
                          are drawn, since captions of one clip are not independent

    ValueError where there is no run, and where runs are not of the same test queries.
    """
    _first(runs)  # there is one
    rows = []
    for setting, members in runs.items():
        row = {"method": setting, "seeds": len(members)}
        for way, found in _ranks(runs, setting).items():
            scores = retrieval.metrics(found, recalls)
            row |= {f"{way} {metric}": value for metric, value in scores.items() if metric != "MnR"}
            each = pd.Series([retrieval.metrics(ranks, (1,))["R@1"] for ranks in found])
            low, high = _interval(runs, way, found, "R@1")
            row |= {f"{way} R@1 sd": each.std(ddof=1), f"{way} R@1 low": low, f"{way} R@1 high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def beside(
    runs: Mapping[str, Sequence[Run]], table: str, recalls: Sequence[int] | None = None, corpus: str | None = None
) -> pd.DataFrame:
    """`baselines` and below them `ours` in the same columns, `from` saying whose a row is ("paper" or "ours"); what a
    row has no number for is NaN.

    recalls: the K of R@K; None: those of the table. corpus: whose test clips the runs searched; None: that on which
    they were trained.
    """
    recalls = recalls_of(table) if recalls is None else recalls
    mine = ours(runs, recalls)
    begun = [members[0].trained_on for members in runs.values()]
    mine = mine.assign(**{"from": "ours", "pretrain": begun, "dataset": corpus or _corpus(runs)})
    frame = pd.concat([baselines(table).assign(**{"from": "paper"}), mine], ignore_index=True)
    sure = ("R@1", "R@1 sd", "R@1 low", "R@1 high")
    metrics = [*sure, *(f"R@{k}" for k in recalls if k != 1), "MdR"]
    columns = [f"{way} {metric}" for way in WAYS for metric in metrics]
    frame = frame.reindex(columns=["from", "method", "pretrain", "dataset", "seeds", *columns, "source"])
    return frame.fillna({"source": ""}).astype({"seeds": "Int64"})


def write(study: Study, frame: pd.DataFrame) -> None:
    """`beside` to results/<corpus>/<table>_beside.csv."""
    study.write(frame.round(2), f"{study.table}_beside.csv")


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """`beside` as it is shown, every cell a string; what is not known is blank. Columns (way, metric)."""
    shown = {("", name): frame[name].tolist() for name in ("method", "pretrain", "dataset")}
    for way, head in HEADS.items():
        for column in frame:
            metric = column.removeprefix(f"{way} ")
            if column.startswith(f"{way} ") and re.fullmatch(r"R@\d+|MdR", metric):
                shown[head, metric] = ["" if np.isnan(x) else f"{x:.1f}" for x in frame[column]]
                if metric == "R@1":
                    low, high, spread = (frame[f"{way} R@1 {part}"] for part in ("low", "high", "sd"))
                    shown[head, "sd"] = ["" if np.isnan(x) else f"{x:.1f}" for x in spread]
                    shown[head, "95 %"] = ["" if np.isnan(a) else f"[{a:.1f}, {b:.1f}]" for a, b in zip(low, high)]
    return pd.DataFrame(shown, index=frame.index)


def best(frame: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """True at the best of OURS in each metric."""
    marks = pd.DataFrame(False, shown.index, shown.columns)
    mine = frame["from"] == "ours"
    for way, head in HEADS.items():
        for metric in (metric for name, metric in shown.columns if name == head and metric not in ("sd", "95 %")):
            values = frame.loc[mine, f"{way} {metric}"]
            marks.loc[mine, (head, metric)] = values == (values.min() if metric == "MdR" else values.max())
    return marks


def same_data(frame: pd.DataFrame) -> bool:
    """Are the paper's rows of the very test set that ours are of?"""
    paper = set(frame.loc[frame["from"] == "paper", "dataset"])
    return {record(name).published for name in frame.loc[frame["from"] == "ours", "dataset"]} <= paper


def caveat(frame: pd.DataFrame) -> str:
    """What must be said wherever the two stand side by side."""
    datasets = ", ".join(frame.loc[frame["from"] == "paper", "dataset"].unique())
    if same_data(frame):
        return f"the paper's rows (grey) are of the same test set, {datasets}"
    return f"the paper's rows (grey) are of OTHER DATA, {datasets}: not to be compared in size"


def show(frame: pd.DataFrame, title: str):
    """`beside` as a notebook shows it: the paper's rows grey, each with its dataset, the best of ours in bold."""
    shown = printed(frame)
    paper = frame["from"] == "paper"
    style = best(frame, shown).map(lambda x: "font-weight: bold" if x else "")
    style[paper] = "color: #777777"
    table = shown.style.set_caption(f"{title}; {caveat(frame)}").hide(axis="index")
    return table.apply(lambda _: style, axis=None).set_properties(**{"white-space": "nowrap"})


@styled
def dots(runs: Mapping[str, Sequence[Run]], table: str, title: str, corpus: str | None = None):
    """Text→video R@1 and R@10 (R@50 where the table has no R@10): ours with 95 % intervals over queries, and the
    paper's rows as grey marks where they are of the very same test set; otherwise ours alone."""
    frame = beside(runs, table, corpus=corpus)
    metrics = ["R@1", "R@10" if "t2v R@10" in frame else f"R@{recalls_of(table)[-1]}"]
    if not (together := same_data(frame)):
        frame = frame[frame["from"] == "ours"].reset_index(drop=True)
    theirs = frame["pretrain"].where(frame["from"] == "paper", "")  # ours are named by their settings
    names = [name + f" + {pretrain}" * bool(pretrain) for name, pretrain in zip(frame["method"], theirs)]
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 0.2 * len(frame) + 1.3), sharey=True)
    for axis, metric in zip(axes, metrics):
        for y, row in frame.iterrows():
            value = row[f"t2v {metric}"]
            if row["from"] == "paper":
                axis.scatter(value, y, marker="o", s=16, color=GREY, label="the paper's")
                continue
            low, high = _interval(runs, "t2v", _ranks(runs, row["method"])["t2v"], metric)
            bar = dict(fmt="D", ms=4, color=COLOURS[0], capsize=3, label="ours, mean over seeds, 95 % over queries")
            axis.errorbar(value, y, xerr=arms(value, low, high), **bar)
        axis.set(xlabel=f"text→video {metric} (%)", yticks=range(len(frame)), yticklabels=names)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
    axes[1].tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    figure.suptitle(title if together else f"{title}\n(the paper's rows, of other data, are left out)", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = dict(zip(labels, handles))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _ranks(runs: Mapping[str, Sequence[Run]], setting: str) -> dict[str, np.ndarray]:
    """Way → the ranks (seeds, queries) of a setting's runs."""
    first = _first(runs).ranks["clip"]
    for run in runs[setting]:
        if not np.array_equal(run.ranks["clip"], first):
            raise ValueError(
                f"{setting!r}, run {run.name}: other test queries than the first run; take runs of one corpus"
            )
    return {way: np.stack([run.ranks[protocol] for run in runs[setting]]) for way, protocol in WAYS.items()}


def _interval(runs: Mapping[str, Sequence[Run]], way: str, found: np.ndarray, metric: str) -> tuple[float, float]:
    """95 % over queries; of video→text every clip is one query."""
    return statistics.interval(retrieval.points(found, metric), _first(runs).ranks["clip"] if way == "t2v" else None)


def _first(runs: Mapping[str, Sequence[Run]]) -> Run:
    empty = [setting for setting, members in runs.items() if not len(members)]
    if empty or not runs:
        raise ValueError(f"no run of {empty[0]!r}" if empty else "no runs: nothing to put beside the paper's rows")
    return next(iter(runs.values()))[0]


def _corpus(runs: Mapping[str, Sequence[Run]]) -> str:
    """The corpus that all runs were trained on."""
    names = {run.config.corpus for members in runs.values() for run in members}
    if len(names) > 1:
        raise ValueError(f"runs trained on {', '.join(sorted(names))}: say in `corpus` on whose test clips they stand")
    return names.pop()


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
