"""Figures of the ablations, drawn from frames alone; style and saving are those of `ssb.figures`."""

from collections.abc import Collection, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm

from ssb import tables
from ssb.figures import COLOURS, PAGE, arms, legend, styled

SIGNED = "vlag_r"  # blue gains, red losses
MARKS = "oDs^vPX"


@styled
def heat_map(summary: pd.DataFrame, title: str, collapsed: Collection[str] = (), metric: str = "R@1"):
    """λ × T: the difference of `cross` to no captioning in each cell, bold where it is resolved. The last column is the
    paper's T with a decoder that learns to speak before it moves the heads. summary: of `Study.summary` over
    `tables.constants`; collapsed: settings that have no number because a run of theirs collapsed."""
    columns = [(t, False) for t in tables.TEMPERATURES] + [(0.1, True)]
    names = [[tables.constant(c, *column) for column in columns] for c in tables.LAMBDAS]
    deltas = np.array([[summary["delta"].get(name, np.nan) for name in row] for row in names])
    figure, axis = plt.subplots(figsize=(PAGE * 0.75, 2.6))
    norm = CenteredNorm(0, max(1.0, np.nanmax(np.abs(deltas))))
    image = axis.imshow(deltas, cmap=SIGNED, norm=norm, aspect="auto")
    for y, row in enumerate(names):
        for x, name in enumerate(row):
            if name in summary.index:
                resolved = summary["verdict"][name] != "not resolved"
                dark = abs(deltas[y, x]) > 0.6 * norm.vmax
                style = dict(fontweight="bold" if resolved else "normal", color="white" if dark else "black")
                axis.text(x, y, f"{deltas[y, x]:+.1f}", ha="center", va="center", fontsize=7, **style)
            elif name in collapsed:
                axis.text(x, y, "collapsed", ha="center", va="center", fontsize=7, style="italic")
    axis.set(xticks=range(len(columns)), xticklabels=[f"{t:g}" + "\ndecoder first" * warm for t, warm in columns])
    axis.set(yticks=range(len(names)), yticklabels=[f"{c:g}" for c in tables.LAMBDAS])
    axis.set(xlabel="temperature T", ylabel="weight of captioning λ", title=title)
    axis.spines[:].set_visible(False)
    axis.axvline(len(columns) - 1.5, color="white", lw=3)
    figure.colorbar(image, ax=axis, label=f"{metric} less none (points)")
    return figure


@styled
def sizes(rows: pd.DataFrame, summary: pd.DataFrame, title: str, batch: int, metric: str = "R@1"):
    """Table 2f: recall against the size of the support set; the band is the run without captioning."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.6, 2.5))
    none = summary.loc["none"]
    axis.axhspan(none[f"{metric} low"], none[f"{metric} high"], color="0.92", lw=0)
    axis.axhline(none[metric], color="0.5", lw=1, ls="--", label="no captioning, 95 % over queries")
    table = summary.drop(index="none")
    x = table.index.astype(int)
    error = np.array([arms(row[metric], row[f"{metric} low"], row[f"{metric} high"]) for _, row in table.iterrows()])
    bar = dict(fmt="D-", ms=4, color=COLOURS[0], capsize=3)
    axis.errorbar(x, table[metric], yerr=error[..., 0].T, label="mean, 95 % over queries", **bar)
    seeds = rows[rows["setting"] != "none"]
    axis.scatter(seeds["setting"].astype(int), seeds[f"t2v {metric}"].astype(float), s=9, color=COLOURS[1], zorder=3,
                 label="one seed")  # fmt: skip
    axis.axvline(batch, color="0.7", lw=0.8, ls=":")
    axis.set_xscale("log", base=2)
    axis.set(xticks=x, xticklabels=x, xlabel="clips in the support set (dotted: the batch)")
    axis.set(ylabel=f"text→video {metric} (%)", title=title)
    axis.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


@styled
def gains(summary: pd.DataFrame, title: str, metric: str = "R@1"):
    """The gain over no captioning against the number of false negatives; thick bars are 95 % over queries, thin ones
    over seeds. summary: of `mechanism.sweep`."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.65, 2.7))
    settings = list(summary.loc[summary["delta"].notna(), "setting"].unique())
    for k, setting in enumerate(settings):
        rows = summary[summary["setting"] == setting]
        x = rows["per batch"] * 1.06 ** (k - (len(settings) - 1) / 2)  # side by side on a logarithmic axis
        for low, high, width in (("delta_low", "delta_high", 2.2), ("seeds_low", "seeds_high", 0.8)):
            error = np.array([rows["delta"] - rows[low], rows[high] - rows["delta"]]).clip(min=0)
            axis.errorbar(x, rows["delta"], yerr=error, fmt="none", color=COLOURS[k], elinewidth=width)
        axis.plot(x, rows["delta"], marker=MARKS[k], ms=4, lw=1, color=COLOURS[k], label=setting)
    axis.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    axis.set_xscale("log")
    ticks = sorted(summary["per batch"].unique())
    axis.set(xticks=ticks, xticklabels=[f"{t:.2g}" for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel="false negatives of a caption in a batch (expected number)")
    axis.set(ylabel=f"{metric} less none (points)", title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


@styled
def densities(frame: pd.DataFrame, title: str):
    """How similar a caption is to its own clip, to others of the same meaning and to the rest, a panel for each
    setting. frame: setting, kind, similarity, density."""
    settings = list(frame["setting"].unique())
    lines = -(-len(settings) // 3)
    size = (PAGE, 1.4 * lines + 0.7)
    figure, axes = plt.subplots(lines, 3, figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis in axes.flat[len(settings) :]:
        axis.axis("off")
    for axis, setting in zip(axes.flat, settings):
        for k, (kind, rows) in enumerate(frame[frame["setting"] == setting].groupby("kind", sort=False)):
            style = dict(color=COLOURS[k], ls=("-", "--", ":")[k])
            axis.plot(rows["similarity"], rows["density"], label=kind if axis is axes[0, 0] else None, **style)
            axis.fill_between(rows["similarity"], rows["density"], color=COLOURS[k], alpha=0.12, lw=0)
        axis.set(title=setting, ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("similarity s")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


@styled
def power(curves: pd.DataFrame, title: str, clips: int, goal: float = 0.8):
    """The probability of resolving the effect against the number of test clips, a line for each number of seeds and a
    panel for each source of noise. curves: difference, clips, seeds, power. clips: of this corpus, marked."""
    names = list(curves["difference"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(PAGE, 2.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        for k, (seeds, rows) in enumerate(curves[curves["difference"] == name].groupby("seeds")):
            label = f"{seeds} seeds" if axis is axes[0, 0] else None
            axis.plot(rows["clips"], rows["power"], marker=MARKS[k], ms=3, lw=1, color=COLOURS[k], label=label)
        axis.axhline(goal, color="0.5", lw=0.8, ls="--")
        axis.axvline(clips, color="0.7", lw=0.8, ls=":")
        axis.set_xscale("log")
        axis.set(xlabel="test clips (dotted: this corpus)", title=f"noise of {name}", ylim=(0, 1.02))
    axes[0, 0].set_ylabel("probability of resolving it")
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=7)
    return figure


@styled
def collapse(traces: Mapping[str, pd.DataFrame], title: str, margin: float, window: int = 10):
    """The loss, the spread of the similarities and the gradient of each step, means over `window` steps. traces:
    setting → of `Run.trace` or `Collapsed.trace`."""
    panels = {"contrast": "contrastive loss", "spread": "deviation of similarities", "gradient": "gradient norm"}
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.5))
    for axis, (column, name) in zip(axes, panels.items()):
        for k, (setting, trace) in enumerate(traces.items()):
            smooth = trace[column].rolling(window, min_periods=1).mean()
            label = setting if axis is axes[0] else None
            axis.plot(trace["step"], smooth, color=COLOURS[k], ls=("-", "--", "-.", ":")[k % 4], lw=1.2, label=label)
        axis.set(xlabel="training step", title=name, ylim=(0, None))
    axes[0].axhline(2 * margin, color="0.5", lw=0.8, ls=":")
    axes[0].annotate("2α", (1, 2 * margin), (2, 0), textcoords="offset points", va="center", fontsize=7,
                     xycoords=("axes fraction", "data"))  # fmt: skip
    for axis in axes[1:]:
        axis.set_yscale("log")
        axis.set_ylim(1e-4, None)
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


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
        axis.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6), title=tables.TITLES.get(name, name))
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
