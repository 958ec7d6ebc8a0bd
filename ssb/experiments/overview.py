"""Every claim on every corpus: the table, the figure and the README's section of results."""

import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.figures import COLOURS, PAGE, arms, legend, styled
from ssb.report import best, markdown, printed, reading, signed


@styled
def overview(claims: pd.DataFrame, title: str):
    """One panel for each table: every claim of the paper as the difference it names, ours with its intervals and the
    paper's where its size is known; grey says on which side the paper's lies.

    claims: of `report.claims` for one corpus.
    """
    names = list(claims["table"].unique())
    columns = 3
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(PAGE, 1.25 * lines + 0.6), squeeze=False)
    for axis, name in zip(axes.flat, names):
        rows = claims[claims["table"] == name].reset_index(drop=True)
        for y, row in rows.iterrows():
            bar = dict(fmt="D", ms=4, color=COLOURS[0], capsize=2, label="ours, 95 % over queries")
            axis.errorbar(row["delta"], y, xerr=arms(row["delta"], row["delta_low"], row["delta_high"]), **bar)
            bar = dict(fmt="none", color=COLOURS[2], capsize=2, label="95 % over seeds")
            seeds = arms(row["delta"], row["seeds_low"], row["seeds_high"])
            axis.errorbar(row["delta"], y + 0.22, xerr=seeds, **bar)
            if not np.isnan(row["paper"]):
                axis.scatter(row["paper"], y, marker="*", s=45, color=COLOURS[1], zorder=3, label="the paper's")
        reach = 1.1 * max(1.5, *np.abs(axis.get_xlim()))
        axis.axvspan(0, reach, color="0.93", lw=0, zorder=-1)
        axis.axvline(0, color="0.5", lw=0.8, ls="--")
        axis.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6), title=TITLES.get(name, name))
        between = " –\n" if len(rows) < 4 else " – "
        axis.set(yticks=range(len(rows)), yticklabels=[f"{r.setting}{between}{r.baseline}" for r in rows.itertuples()])
        axis.tick_params(axis="y", labelsize=6, length=0)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis in axes.flat[max(len(names) - columns, 0) : len(names)]:
        axis.set_xlabel("points of R@1, or as named")
    figure.suptitle(title, fontsize=8)
    legend(figure, columns=3)
    return figure


MAIN = ("shapes", "msrvtt1k")  # the corpora with a column of their own
OTHERS = "other corpora"


def claims(results: Path, label: str = "") -> pd.DataFrame:
    """Every claim tested under results/: corpus, table, and the columns of `Study.claims`. label: one folder's alone;
    otherwise all of the laptop preset. FileNotFoundError where there is none."""
    found = []
    for path in sorted(results.glob(f"{label or '*'}/*_claims.csv")):
        if label or "-" not in path.parent.name:  # other presets have folders of their own, see `study.label`
            name = path.name.removesuffix("_claims.csv")
            found.append(pd.read_csv(path).assign(corpus=path.parent.name, table=name))
    found = [frame for frame in found if len(frame)]
    if not found:
        raise FileNotFoundError(f"no claims in {results / label}; run the notebooks of the tables first")
    frame = pd.concat(found, ignore_index=True)
    return frame.sort_values(["table", "corpus"], key=lambda x: x.map(_order), kind="stable", ignore_index=True)


def _order(name: str) -> tuple[int, int, str]:
    """table1, its variants, table2a … table12, then what goes beyond the paper's tables."""
    number = re.match(r"table(\d+)", name)
    return (0, int(number[1]), name) if number else (1, 0, name)


def claims_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`claims` as it is read: a row for each claim, the paper's difference, and for each corpus ours with its intervals
    over queries and over seeds and the verdict, blank where the corpus cannot tell."""
    rows = {}
    for row in frame.itertuples():
        paper = "" if np.isnan(row.paper) else signed(row.paper)
        line = rows.setdefault((row.table, row.claim), {"table": row.table, "claim": row.claim, "paper": paper})
        pairs = (row.delta_low, row.delta_high), (row.seeds_low, row.seeds_high)
        intervals = " ".join(f"[{signed(low)}, {signed(high)}]" for low, high in pairs)
        _place(line, row.corpus, f"{signed(row.delta)} {intervals} {row.verdict}")
    return pd.DataFrame(rows.values(), columns=["table", "claim", "paper", *_columns(rows.values())]).fillna("")


def cost(results: Path, preset: str = "laptop") -> str:
    """What all runs of a preset under results/ took, each counted once."""
    frames = [pd.read_csv(path) for path in sorted(results.glob("*/*.csv"))]
    rows = pd.concat([f for f in frames if {"run", "seconds", "preset"} <= set(f)], ignore_index=True)
    runs = rows[rows["preset"] == preset].drop_duplicates("run")
    hours = runs["seconds"].sum() / 3600
    shared = len(rows[rows["preset"] == preset]) - len(runs)
    return (
        f"The training of all of it, some of it beside other work: {len(runs)} runs of "
        f"{runs['seconds'].mean():.0f} seconds in the mean ({shared} more rows share them), {hours:.1f} core hours, "
        f"about {hours / 2:.1f} hours on two cores."
    )


def readme(results: Path) -> str:
    """The README's results, from what the laptop preset has left under results/: claims, Table 1, the rest as links."""
    parts = [f"### The paper's claims\n\n{markdown(claims_table(claims(results)))}", cost(results), "### Table 1"]
    parts += [_table(path) for path in sorted(results.glob("*/table1_summary.csv")) if "-" not in path.parent.name]
    return "\n\n".join([*parts, "### Every table", markdown(links(results))])


def links(results: Path) -> pd.DataFrame:
    """A row for each table, a column for each corpus: the minutes of its runs on two cores, were none shared, as a
    link to its summary."""
    cells = {}
    for path in sorted(
        results.glob("*/*_summary.csv"), key=lambda path: _order(path.name.removesuffix("_summary.csv"))
    ):
        corpus, name = path.parent.name, path.name.removesuffix("_summary.csv")
        if "-" not in corpus:
            rows = pd.read_csv(path.with_name(f"{name}.csv")).drop_duplicates("run")  # one may have several rows
            minutes = rows["seconds"].sum() / 120
            _place(cells.setdefault(name, {}), corpus, f"[{minutes:.0f} min](results/{corpus}/{path.name})")
    frame = pd.DataFrame.from_dict(cells, orient="index").fillna("").rename_axis("table").reset_index()
    return frame[["table", *_columns(cells.values())]]


def _place(line: dict[str, str], corpus: str, cell: str):
    """Into the column of its corpus, or of all the corpora that few tables have."""
    if corpus in MAIN:
        line[corpus] = cell
    else:
        line[OTHERS] = "; ".join(filter(None, [line.get(OTHERS), f"{corpus}: {cell}"]))


def _columns(lines: Iterable[dict[str, str]]) -> list[str]:
    return [name for name in (*MAIN, OTHERS) if any(name in line for line in lines)]


def _table(path: Path) -> str:
    """A summary as Markdown, with what its runs cost and its last line in words."""
    summary = pd.read_csv(path, index_col="setting")
    rows = pd.read_csv(path.with_name(path.name.replace("_summary", "")))
    shown = printed(summary)
    shown = shown.where(~best(summary, shown), "**" + shown + "**").reset_index()
    title = f"**{path.parent.name}, {path.name.removesuffix('_summary.csv')}**"
    words = reading(summary, summary.index[summary["delta"].isna()][0]).splitlines()[-1]
    return (
        f"{title}: {summary['seeds'].max():.0f} seeds, {rows['n_queries'].iloc[0]} queries, "
        f"{rows['seconds'].sum() / 60:.0f} core minutes\n\n{markdown(shown)}\n\n{words}"
    )


TITLES = {  # of the panels of the overview
    "table1": "Table 1: captioning objective",
    "table1_lambda10": "Table 1 at the paper's λ",
    "table2a": "Table 2a: video features",
    "table2b": "Table 2b: aggregation",
    "table2c": "Table 2c: text encoder",
    "table2d": "Table 2d: decoder",
    "table2e": "Table 2e: contrastive loss",
    "table2f": "Table 2f: support-set size",
    "table11": "Table 11: actions, top-1",
    "captioning": "captions, CIDEr",
    "false_negatives": "gain per tenfold of false negatives",
    "same_meaning": "recall of the same meaning",
    "pretraining": "Tables 3 to 6: pre-training",
    "table10": "Table 10: zero-shot",
    "pretraining_from_shapes": "pre-training on shapes: a control",
    "table10_from_shapes": "zero-shot from shapes: a control",
    "s2dtw": "VT-TWINS",
    "emcl": "EMCL as a layer",
    "emcl_inference": "EMCL at inference",
    "together": "one budget",
    "together_videos": "one budget, long videos",
}
