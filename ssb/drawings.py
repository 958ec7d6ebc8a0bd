"""Figures of Tables 7 to 9 and 11, drawn from frames alone; style and saving are those of `ssb.figures`."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import recognition, speech
from ssb.captioning import METRICS
from ssb.corpus import Corpus
from ssb.figures import COLOURS, PAGE, arms, difference, legend, styled

MARKS = {"own": "D", "own, greedy": "o", "support": "s"}
KINDS = ("best", "median", "worst")
SHOWN = 4  # frames of a clip
FILM, LINE = 0.5, 0.105  # inches: the height of a strip of frames, of a line of text


@styled
def captions(rows: pd.DataFrame, summary: pd.DataFrame, title: str):
    """A panel for each metric: every setting's captions of a clip itself (beams and greedy) and from its support set,
    each seed a dot, the mean with its 95 % interval over seeds; the line is one sentence for all clips.

    rows, summary: of `speech.measure` and `speech.summary`.
    """
    metrics = [name for name in METRICS if name in summary] or ["CIDEr"]
    settings = list(dict.fromkeys(setting for setting, way in summary.index if way))
    figure, axes = plt.subplots(1, len(metrics), figsize=(PAGE, 0.62 * len(settings) + 1.1), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics):
        for k, (way, mark) in enumerate(MARKS.items()):
            for y, setting in enumerate(settings):
                here, row = y + 0.26 * (k - 1), summary.loc[(setting, way)]
                seeds = rows.loc[(rows["setting"] == setting) & (rows["way"] == way), metric]
                axis.scatter(seeds, np.full(len(seeds), here + 0.11), s=5, color="0.3", lw=0, label="one seed")
                bar = dict(fmt=mark, ms=3.5, color=COLOURS[k], capsize=2, elinewidth=1, label=speech.SAID[way])
                axis.errorbar(row[metric], here, xerr=arms(*row[[metric, f"{metric} low", f"{metric} high"]]), **bar)
        one = summary.loc[(speech.CONSTANT, ""), metric]
        axis.axvline(one, color="0.4", lw=0.9, ls="--", zorder=0, label=speech.CONSTANT)
        axis.set(xlabel=f"{metric} (× 100)", yticks=range(len(settings)), yticklabels=settings)
    axes[0, 0].set_ylim(len(settings) - 0.5, -0.5)
    figure.suptitle(f"{title}: mean, 95 % over seeds", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend = dict(zip(labels, handles))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    return figure


@styled
def samples(examples: pd.DataFrame, corpus: Corpus, title: str):
    """The best, median and worst captions by CIDEr, a column each: frames of the clip where the corpus has pixels, what
    each setting says of it, and the first of its captions. examples: of `speech.examples`, the first setting's judged.
    """
    settings = [name for name in examples if name not in ("kind", "id", "clip", "CIDEr", "references")]
    columns = [examples[examples["kind"] == kind].to_dict("records") for kind in KINDS]
    cells = [[_told(row, settings) for row in column] for column in columns]
    film = FILM if corpus.frames else 0.0
    heights = [film + LINE * (1 + max(sum(len(text) for text, _ in cell) for cell in line)) for line in zip(*cells)]
    wide, tall = PAGE / len(KINDS), 0.5 + sum(heights)
    figure = plt.figure(figsize=(PAGE, tall))
    figure.set_layout_engine("none")  # all places are in inches; said at creation, it is forgotten after the first save
    figure.text(0.5, 1 - 0.06 / tall, title, ha="center", va="top", fontsize=8)
    for x, (kind, column) in enumerate(zip(KINDS, columns)):
        figure.text(x * wide / PAGE, 1 - 0.26 / tall, kind, va="top", weight="bold")
        down = 0.46
        for row, cell, height in zip(column, cells[x], heights):
            if corpus.frames:
                frames = corpus.frames(row["clip"])
                strip = np.concatenate(frames[np.linspace(0, len(frames) - 1, SHOWN).astype(int)], axis=1)
                high = FILM - 0.06
                across = high * strip.shape[1] / strip.shape[0]
                axis = figure.add_axes([x * wide / PAGE, 1 - (down + high) / tall, across / PAGE, high / tall])
                axis.imshow(strip, interpolation="nearest", aspect="auto")
                axis.axis("off")
            line = down + film
            for text, style in cell:
                figure.text(x * wide / PAGE, 1 - line / tall, "\n".join(text), va="top", fontsize=6, **style)
                line += LINE * len(text)
            down += height
    return figure


def _told(row: dict, settings: list[str]) -> list[tuple[list[str], dict]]:
    """Folded texts of one clip, and how each is set."""
    first, *others = settings
    parts = [(f"{row['id']}, CIDEr {row['CIDEr']:.0f}", {"color": "0.4"})]
    parts += [(f"{first}: {row[first]}", {"weight": "bold"})]
    parts += [(f"{name}: {row[name]}", {}) for name in others]
    parts += [(f"reference: {row['references'].split(' / ')[0]}", {"style": "italic", "color": COLOURS[0]})]
    return [
        (textwrap.wrap(text, 43 if "weight" in style else 48, break_on_hyphens=False), style) for text, style in parts
    ]


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
        if setting != recognition.POOLED:
            difference(right, y, row)
    left.axvline(100 / rows["classes"].iloc[0], color="0.5", lw=0.8, ls=":", label="chance")
    right.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    left.set(yticks=range(len(summary)), yticklabels=summary.index, xlabel="top-1 (% of test clips)", xlim=(0, None))
    right.set(xlabel=f"top-1 less {recognition.POOLED} (points)")
    right.tick_params(axis="y", length=0)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=8)
    legend(figure, columns=4)
    return figure
