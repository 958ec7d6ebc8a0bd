"""Figures of Tables 7 to 9 and 11, drawn from frames alone; style and saving are those of `ssb.figures`."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.experiments import captioning
from ssb.figures import COLOURS, PAGE, arms, styled
from ssb.metrics.captions import METRICS

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
                bar = dict(fmt=mark, ms=3.5, color=COLOURS[k], capsize=2, elinewidth=1, label=captioning.SAID[way])
                axis.errorbar(row[metric], here, xerr=arms(*row[[metric, f"{metric} low", f"{metric} high"]]), **bar)
        one = summary.loc[(captioning.CONSTANT, ""), metric]
        axis.axvline(one, color="0.4", lw=0.9, ls="--", zorder=0, label=captioning.CONSTANT)
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
