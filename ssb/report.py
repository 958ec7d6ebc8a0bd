"""Tables as they are read: in a notebook, in words, in the README."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import retrieval
from ssb.study import WAYS
from ssb.train import Run

MAIN = ("shapes", "msrvtt1k")  # the corpora with a column of their own
OTHERS = "other corpora"


def signed(x: float) -> str:
    """One decimal with its sign; what rounds to nothing is +0.0."""
    return f"{round(x, 1) + 0.0:+.1f}"


def reading(summary: pd.DataFrame, baseline: str, metric: str = "R@1") -> str:
    """The table in words: what differs from the baseline beyond the noise, by how much, and what the paper found."""
    base = summary.loc[baseline]
    lines = [f"{baseline}: {metric} {base[metric]:.1f}"]
    if base["seeds"] > 1:
        lines[0] += f" (deviation over {base['seeds']:.0f} seeds {base[f'{metric} sd']:.1f})"
    for setting, row in summary.drop(index=baseline).iterrows():
        delta, low, high = (signed(row[name]) for name in ("delta", "delta_low", "delta_high"))
        lines.append(f"{setting} against {baseline}: {delta} [{low}, {high}], p = {row['p']:.3f}: {row['verdict']}")
        theirs = row[f"paper {metric}"] - base[f"paper {metric}"]
        if not np.isnan(theirs):
            lines[-1] += f" (paper {signed(theirs)})"
    resolved = [f"{s} ({row['verdict']})" for s, row in summary.iterrows() if row["verdict"] in ("higher", "lower")]
    lines.append(
        f"Beyond the noise of queries and seeds: {', '.join(resolved)}."
        if resolved
        else f"No setting differs from {baseline} beyond the noise of queries and seeds."
    )
    return "\n".join(lines)


def metrics_table(run: Run) -> pd.DataFrame:
    """The test metrics of one run, a row for each protocol."""
    table = pd.DataFrame({way: retrieval.metrics(run.ranks[way]) for way in WAYS}).T
    return table.assign(queries=[len(run.ranks[way]) for way in WAYS]).round(2)


def printed(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as it is shown, every cell a string; what is not known is blank."""

    def text(column: str, form: str) -> list[str]:
        return ["" if np.isnan(x) else form.format(x) for x in summary[column]]

    def interval(low: str, high: str) -> list[str]:
        return ["" if np.isnan(a) else f"[{a:.1f}, {b:.1f}]" for a, b in zip(summary[low], summary[high])]

    columns = {metric: text(metric, "{:.1f}") for metric in ("R@1", "R@5", "R@10", "MdR")}
    columns |= {"R@1 sd": text("R@1 sd", "{:.1f}"), "R@1 95 %": interval("R@1 low", "R@1 high")}
    columns |= {
        "delta": ["" if np.isnan(x) else signed(x) for x in summary["delta"]],
        "over queries": interval("delta_low", "delta_high"),
    }
    columns |= {"over seeds": interval("seeds_low", "seeds_high"), "p": text("p", "{:.3f}")}
    columns |= {"verdict": summary["verdict"].fillna("").tolist()}
    columns |= {name: text(name, "{:.1f}") for name in ("paper R@1", "paper R@5")}
    return pd.DataFrame(columns, index=summary.index)


def best(summary: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """True at the best setting of each metric."""
    marks = pd.DataFrame(False, shown.index, shown.columns)
    for metric in ("R@1", "R@5", "R@10"):
        marks[metric] = summary[metric] == summary[metric].max()
    marks["MdR"] = summary["MdR"] == summary["MdR"].min()
    return marks


def show(summary: pd.DataFrame, caption: str):
    """The table as a notebook shows it, the best of each metric in bold."""
    shown = printed(summary)
    bold = best(summary, shown).map(lambda x: "font-weight: bold" if x else "")
    return shown.style.set_caption(caption).apply(lambda _: bold, axis=None).set_properties(**{"white-space": "nowrap"})


def verdicts(claims: pd.DataFrame) -> str:
    """`Study.claims` in words, a line for each."""
    if claims.empty:
        return "The paper claims nothing of these settings."
    lines = []
    for row in claims.itertuples():
        paper = "" if np.isnan(row.paper) else f", paper {signed(row.paper)}"
        queries = f"[{signed(row.delta_low)}, {signed(row.delta_high)}] over queries"
        seeds = f"[{signed(row.seeds_low)}, {signed(row.seeds_high)}] over {row.seeds} seeds"
        lines.append(f"{row.claim}: {row.verdict} ({signed(row.delta)} points, {queries}, {seeds}{paper})")
    return "\n".join(lines)


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


def markdown(frame: pd.DataFrame) -> str:
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
