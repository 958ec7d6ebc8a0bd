"""Figures of Tables 7 to 9."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.experiments.captioning import CONSTANT
from ssb.figures import COLOURS, PAGE, filmstrip, heading, interval, legend, styled
from ssb.metrics.captions import METRICS

SOURCES = {  # what a caption is made from: marker and label
    "own": ("D", "the clip itself, 4 beams"),
    "own, greedy": ("o", "the clip itself, greedy"),
    "support": ("s", "its support set, 4 beams"),
}
KINDS = ("best", "median", "worst")
FILM, LINE = 0.62, 0.14  # inches: the height of a strip of frames, of a line of text


@styled
def captions(rows: pd.DataFrame, summary: pd.DataFrame, title: str):
    """A panel for each metric: every setting's captions from the clip itself (beams and greedy) and from its support
    set, a dot for each seed, the mean with its 95 % interval over seeds; the line is one sentence for all clips.

    rows, summary: of `captioning.measure` and `captioning.summary`.
    """
    metrics = [name for name in METRICS if name in summary]
    settings = list(dict.fromkeys(setting for setting, source in summary.index if source))
    figure, axes = plt.subplots(1, len(metrics), figsize=(PAGE, 0.62 * len(settings) + 1.1), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics):
        for k, (source, (marker, label)) in enumerate(SOURCES.items()):
            bar = dict(fmt=marker, ms=3.5, color=COLOURS[k], capsize=2, elinewidth=1, label=label)
            for setting, y in zip(settings, np.arange(len(settings)) + 0.26 * (k - 1)):
                row = summary.loc[(setting, source)]
                seeds = rows[(rows["setting"] == setting) & (rows["mode"] == source)]
                axis.scatter(seeds[metric], np.full(len(seeds), y + 0.11), s=5, color="0.3", lw=0, label="one seed")
                interval(axis, y, *row[[metric, f"{metric} low", f"{metric} high"]], **bar)
        axis.axvline(summary.loc[(CONSTANT, ""), metric], color="0.4", lw=0.9, ls="--", zorder=0, label=CONSTANT)
        axis.set(xlabel=f"{metric} (× 100)", yticks=range(len(settings)), yticklabels=settings)
    axes[0, 0].set_ylim(len(settings) - 0.5, -0.5)
    heading(figure, f"{title}: mean, 95 % over seeds")
    legend(figure, columns=3)
    return figure


@styled
def samples(examples: pd.DataFrame, corpus: Corpus, title: str):
    """The best, median and worst captions by CIDEr, a column each: frames of the clip where the corpus has pixels, the
    caption of each setting, and the first reference. examples: of `captioning.examples`; CIDEr is the first setting's.
    """
    settings = [name for name in examples if name not in ("kind", "id", "clip", "CIDEr", "references")]
    columns = [examples[examples["kind"] == kind].to_dict("records") for kind in KINDS]
    cells = [[_wrapped(row, settings) for row in column] for column in columns]
    film = FILM if corpus.frames else 0.0
    heights = [film + LINE * (1 + max(sum(len(text) for text, _ in cell) for cell in line)) for line in zip(*cells)]
    height = 0.5 + sum(heights)
    figure = plt.figure(figsize=(PAGE, height))
    figure.set_layout_engine("none")  # positions are in inches; an engine set at creation is reset by the first save
    figure.text(0.5, 1 - 0.06 / height, title, ha="center", va="top")
    for k, (kind, column) in enumerate(zip(KINDS, columns)):
        x, top = k / len(KINDS), 0.46
        figure.text(x, 1 - 0.26 / height, kind, va="top", weight="bold")
        for row, cell, step in zip(column, cells[k], heights):
            if corpus.frames:
                strip, tall = filmstrip(corpus.frames(row["clip"])), FILM - 0.06
                wide = tall * strip.shape[1] / strip.shape[0]
                axis = figure.add_axes([x, 1 - (top + tall) / height, wide / PAGE, tall / height])
                axis.imshow(strip, interpolation="nearest", aspect="auto")
                axis.axis("off")
            y = top + film
            for text, style in cell:
                figure.text(x, 1 - y / height, "\n".join(text), va="top", **style)
                y += LINE * len(text)
            top += step
    return figure


def _wrapped(row: dict, settings: list[str]) -> list[tuple[list[str], dict]]:
    """The texts of one clip, each as wrapped lines with its style."""
    first, *others = settings
    parts = [(f"{row['id']}, CIDEr {row['CIDEr']:.0f}", {"color": "0.4"})]
    parts += [(f"{first}: {row[first]}", {"weight": "bold"})]
    parts += [(f"{name}: {row[name]}", {}) for name in others]
    parts += [(f"reference: {row['references'].split(' / ')[0]}", {"style": "italic", "color": COLOURS[0]})]
    widths = (34 if "weight" in style else 39 for _, style in parts)
    return [(textwrap.wrap(x, width, break_on_hyphens=False), style) for (x, style), width in zip(parts, widths)]
