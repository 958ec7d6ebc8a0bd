"""Figures of EMCL at inference, in the style of `ssb.figures`."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from ssb.experiments.emcl_inference import BLOCK, FORMS, TEMPERATURES
from ssb.experiments.emcl_layer import Constants
from ssb.figures import COLOURS, PAGE, styled

AXES = {
    "bases": "bases K",
    "stages": "EM stages",
    "temperature": "temperature λ",
    "beta": "weight of Ê, β",
    "block": "captions and clips in a block",
}
STYLES = ("-", "--", ":")  # of TEMPERATURES
TICKS = {1 / 16: "1/16", 1 / 4: "1/4"}
LINES = {
    "listed": ("-", "as listed, captions of a clip together"),
    "paired": ("-.", "one caption a clip, right pairs together"),
    "apart": (":", "the same, own clip in another block"),
    "shuffled": ("--", "at random"),
}


@styled
def constants(sweep: pd.DataFrame, ranks: pd.DataFrame, best: Mapping[str, Constants], title: str):
    """How much EMCL changes R@1 against each of its constants, the others as in `best` (dotted), and against the block;
    bands are one deviation over seeds. Last, the effective rank of Ê at several λ. sweep, ranks: of `bases.sweep` and
    `bases.effective_ranks`."""
    figure, axes = plt.subplots(2, 3, figsize=(PAGE, 4.2))
    for axis, (name, label) in zip(axes.flat, AXES.items()):
        rows = sweep[sweep["constant"] == name]
        for form, at in best.items():
            part = rows[rows["form"] == form]
            _line(axis, part["value"], part["delta"], COLOURS[list(FORMS).index(form)], "-", form)
            own = BLOCK if name == "block" else getattr(at, name)
            axis.axvline(own, color=COLOURS[list(FORMS).index(form)], lw=0.8, ls=(0, (1, 3)), zorder=0)
        values = sorted(rows["value"].unique())
        if name == "temperature":
            values = [value for value in values if value in (0.01, 0.1, 1.0)]
        _logarithmic(axis, values, name == "block")
        axis.set_xlabel(label)
    for axis in axes[:, 0]:
        axis.set_ylabel("change of R@1 (points)")
    _ranks(axes.flat[-1], ranks)
    figure.suptitle(title, fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="0.3", lw=0.8, ls=(0, (1, 3)))]
    labels += ["chosen (of the block: the paper's)"]
    handles += [plt.Line2D([], [], color="0.3", ls=style) for style in (*STYLES, "-.")]
    labels += [f"last panel: λ = {TEMPERATURES[0]:g}", *(f"λ = {t:g}" for t in TEMPERATURES[1:]), "E itself"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


@styled
def orders(frame: pd.DataFrame, title: str):
    """What the order of the rows is worth: the change of R@1 against the block, a panel for each form, bands one
    deviation over seeds. frame: of `bases.orders`."""
    figure, axes = plt.subplots(1, len(FORMS), figsize=(PAGE * 0.8, 2.8))
    for axis, form in zip(axes, FORMS):
        for k, (order, (style, label)) in enumerate(LINES.items()):
            part = frame[(frame["form"] == form) & (frame["order"] == order)]
            _line(axis, part["block"], part["delta"], COLOURS[k], style, label)
        _logarithmic(axis, sorted(frame["block"].unique()), True)
        axis.set(xlabel="captions and clips in a block", title=form)
    axes[0].set_ylabel("change of R@1 (points)")
    figure.suptitle(title, fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _line(axis: plt.Axes, x: pd.Series, y: pd.Series, colour, style: str, label: str):
    """The mean over seeds, and one deviation beside it."""
    each = y.groupby(x).agg(["mean", "std"]).fillna(0)  # one seed deviates by nothing
    axis.plot(each.index, each["mean"], style, marker="o", ms=2.5, lw=1.2, color=colour, label=label)
    axis.fill_between(
        each.index, each["mean"] - each["std"], each["mean"] + each["std"], color=colour, alpha=0.15, lw=0
    )


def _logarithmic(axis: plt.Axes, values: list[float], block: bool):
    """Ticks at these values; the last block is all rows at once."""
    axis.axhline(0, color="0.5", lw=0.8, zorder=0)
    axis.set_xscale("log")
    labels = [TICKS.get(value, f"{value:g}") for value in values]
    axis.set(xticks=values, xticklabels=[*labels[:-1], "all"] if block else labels)
    axis.minorticks_off()


def _ranks(axis: plt.Axes, ranks: pd.DataFrame):
    """Effective rank against K, mean over seeds; a line for each form and λ."""
    for k, form in enumerate(FORMS):
        for temperature, style in zip(TEMPERATURES, STYLES):
            part = ranks[(ranks["form"] == form) & (ranks["temperature"] == temperature)]
            mean = part.groupby("bases")["effective rank"].mean()
            axis.plot(mean.index, mean, style, marker="o", ms=2.5, lw=1.2, color=COLOURS[k])
    axis.axhline(ranks.loc[ranks["form"] == "E", "effective rank"].mean(), color="0.3", lw=1, ls="-.")
    bases = sorted(ranks["bases"].dropna().unique())
    _logarithmic(axis, bases, False)
    axis.set_yscale("log", base=2)
    axis.set(ylim=(0.9, 70), yticks=[1, 2, 4, 8, 16, 32, 64], yticklabels=[1, 2, 4, 8, 16, 32, 64])
    axis.set(xlabel="bases K", ylabel="effective rank of Ê")
    axis.minorticks_off()
