"""Tables as they are read: in a notebook, in words, in the README."""

import numpy as np
import pandas as pd

from ssb.config import PRESETS, Config
from ssb.metrics import retrieval
from ssb.study import WAYS
from ssb.training.runs import Run


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


def settings() -> pd.DataFrame:
    """Every setting of `ssb.Config`, a row each: its default, which is the paper's, what the other presets change it
    to ("" where they do not), and what it is."""
    rows = {}
    for name, field in Config.model_fields.items():
        changed = {preset: repr(changes[name]) if name in changes else "" for preset, changes in PRESETS.items()}
        rows[name] = {**changed, "paper": repr(field.default), "what it is": field.description}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def markdown(frame: pd.DataFrame) -> str:
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
