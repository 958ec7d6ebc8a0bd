"""The study's figures. Every function returns a matplotlib Figure; `save` writes it as PNG and PDF."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Image
from matplotlib.colors import PowerNorm

from ssb import files, losses
from ssb.corpora.corpus import Corpus
from ssb.training.runs import Run

PAGE = 6.9  # inches
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
}
COLOURS = sns.color_palette("colorblind")
HEAT = "mako_r"  # one hue scale, light to dark: readable in grey and by the colour-blind


def styled(draw):
    """Draw in the study's style without changing the style of the reader's own plots."""

    def inner(*args, **kwargs):
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    inner.__name__, inner.__doc__, inner.__wrapped__ = draw.__name__, draw.__doc__, draw
    return inner


def save(figure: plt.Figure, folder: Path, name: str, alt: str) -> Image:
    """Write folder/name.png and .pdf, close the figure, and return the picture for the notebook to show.

    alt: one sentence for those who cannot see it; kept in the files too.
    """
    folder = Path(folder)
    # no dates and versions in the files: the same figure has the same bits
    kept = {".png": {"Software": None, "Description": alt}, ".pdf": {"CreationDate": None, "Subject": alt}}
    for suffix, metadata in kept.items():
        with files.written(folder / f"{name}{suffix}") as draft, plt.rc_context(STYLE):
            figure.savefig(draft, metadata=metadata)
    plt.close(figure)
    path = folder / f"{name}.png"
    print(f"wrote {files.short(path)} and .pdf")
    return Image(filename=str(path), alt=alt, width=round(96 * figure.get_figwidth()))


@styled
def settings(rows: pd.DataFrame, summary: pd.DataFrame, title: str, metric: str = "R@1", baseline: str = "none"):
    """A table as a plot. Left: each seed a dot, and the mean with its 95 % interval over queries. Right: the difference
    to the baseline on the same queries and seeds, with both intervals; where either holds 0, nothing is resolved.

    rows, summary: of `Study.rows` and `Study.summary`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 0.32 * len(summary) + 1.2), sharey=True)
    for y, (setting, row) in enumerate(summary.iterrows()):
        seeds = rows.loc[rows["setting"] == setting, f"t2v {metric}"].astype(float)
        offsets = np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) != 1 else np.array([0.2])
        left.scatter(seeds, y + offsets, s=9, color=COLOURS[1], zorder=3, label="one seed")
        low, high = row[f"{metric} low"], row[f"{metric} high"]
        bar = dict(fmt="D", ms=4, color=COLOURS[0], capsize=3, elinewidth=1.5)
        left.errorbar(row[metric], y, xerr=arms(row[metric], low, high), label="mean, 95 % over queries", **bar)
        if setting != baseline:
            difference(right, y, row)
    right.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    left.set(yticks=range(len(summary)), yticklabels=summary.index, xlabel=f"text→video {metric} (%)")
    right.set(xlabel=f"{metric} less {baseline} (points)")
    right.tick_params(axis="y", length=0)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=8)
    legend(figure, columns=3)
    return figure


def legend(figure: plt.Figure, columns: int):
    """One below all panels, of each thing once."""
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles = {label: handle for handles, labels in found for label, handle in zip(labels, handles)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=7
    )


def difference(axis: plt.Axes, y: int, row: pd.Series):
    """The difference of a row of a summary with both its intervals, that over seeds where there are several."""
    bar = dict(fmt="D", ms=4, color=COLOURS[0], capsize=3, elinewidth=1.5)
    axis.errorbar(row["delta"], y, xerr=arms(row["delta"], row["delta_low"], row["delta_high"]), **bar)
    if not np.isnan(row["seeds_low"]):
        spread = arms(row["delta"], row["seeds_low"], row["seeds_high"])
        bar |= dict(fmt="none", color=COLOURS[2])
        axis.errorbar(row["delta"], y + 0.2, xerr=spread, label="95 % over seeds", **bar)


def arms(middle: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an error bar; an end may fall on the middle after rounding, never beyond it."""
    return [[max(middle - low, 0)], [max(high - middle, 0)]]


def support_weights(run: Run, size: int, objective: str | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """Weights w (B, B) of a batch of test clips, each with its first caption, as the run's objective gives them; and
    the batch: clip (position in the corpus), id and text. All zero for "none"."""
    return _support(run, size, objective)[:2]


def _support(run: Run, size: int, objective: str | None) -> tuple[np.ndarray, pd.DataFrame, Corpus]:
    """`support_weights`, and the corpus that was read for them."""
    model, data = run.load()
    data.check_plain()
    c_t, c_v, place = data.embed(model, "test")
    captions = data.corpus.captions_of(data.corpus.split("test"))
    first = np.unique(place, return_index=True)[1][:size]
    batch = captions.loc[first, ["clip", "text"]].reset_index(drop=True)
    batch["id"] = [data.corpus.clips[i] for i in batch["clip"]]
    objective = objective or run.config.objective
    if objective == "none":
        return np.zeros((len(batch), len(batch))), batch, data.corpus
    rows = torch.from_numpy(first)
    weights = losses.support_set_weights(c_t[rows], c_v[: len(rows)], objective, run.config.temperature)
    return weights.numpy(), batch, data.corpus


@styled
def weight_matrices(runs: Mapping[str, Run], title: str, size: int = 16):
    """Figure 2b: the weights w of one batch under each objective, each from its own trained run (`runs`: objective →
    run). Rows are captions, columns the clips they are reconstructed from."""
    figure, axes = plt.subplots(1, len(runs), figsize=(PAGE, 1.95), sharey=True, squeeze=False)
    for axis, (objective, run) in zip(axes[0], runs.items()):
        weights, batch = support_weights(run, size)
        image = axis.imshow(weights, cmap=HEAT, norm=PowerNorm(0.5, 0, 1))  # small weights must show beside 1
        axis.set(title=objective, xlabel="clip j", xticks=[0, len(batch) - 1], yticks=[0, len(batch) - 1])
        axis.set(xticklabels=[1, len(batch)], yticklabels=[1, len(batch)])
        axis.spines[:].set_visible(True)
    axes[0, 0].set_ylabel("caption i")
    bar = figure.colorbar(image, ax=axes[0], shrink=0.75, label="weight $w_{ij}$", ticks=[0, 0.1, 0.5, 1])
    bar.ax.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=8)
    return figure


@styled
def attention_map(run: Run, title: str, size: int = 24, strongest: int = 4, objective: str = "cross"):
    """Figure 3: the support-set weights of a batch of test clips, and what its strongest rows attend to.

    For each of the `strongest` rows (largest weight on one other clip): the caption to be reconstructed, and the clip
    it is reconstructed from, by frames where the corpus has them and by that clip's own caption.
    """
    weights, batch, corpus = _support(run, size, objective)
    rows = np.argsort(-weights.max(axis=1), kind="stable")[:strongest]
    figure = plt.figure(figsize=(PAGE, 4.2))
    grid = figure.add_gridspec(strongest, 2, width_ratios=[1.1, 1])
    axis = figure.add_subplot(grid[:, 0])
    image = axis.imshow(weights, cmap=HEAT, vmin=0)
    axis.set(xlabel="clip j of the support set", ylabel="caption i", title=title)
    ticks = sorted({0, *range(5, len(batch), 6), len(batch) - 1})
    axis.set(xticks=ticks, xticklabels=[t + 1 for t in ticks], yticks=ticks, yticklabels=[t + 1 for t in ticks])
    axis.spines[:].set_visible(True)
    figure.colorbar(image, ax=axis, shrink=0.7, label="weight $w_{ij}$")
    for k, row in enumerate(rows):
        column = int(weights[row].argmax())
        axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.2))
        axis.annotate(
            chr(65 + k),
            (column, row),
            (4, 4),
            textcoords="offset points",
            color=COLOURS[1],
            fontsize=8,
            fontweight="bold",
        )
        panel = figure.add_subplot(grid[k, 1])
        panel.axis("off")
        _attended(panel, chr(65 + k), row, column, weights[row, column], batch, corpus.frames)
    return figure


def _attended(panel: plt.Axes, letter: str, row: int, column: int, weight: float, batch: pd.DataFrame, frames):
    """One strong row in words and, where the corpus has pixels, in frames of the attended clip."""
    lines = []
    for text in (
        f"{letter}  caption {row + 1}: “{batch['text'][row]}”",
        f"from clip {column + 1} (w = {weight:.2f}): “{batch['text'][column]}”",
    ):
        lines += textwrap.wrap(text, 56, max_lines=2, placeholder=" …”")
    panel.text(0, 1, "\n".join(lines), va="top", fontsize=7, transform=panel.transAxes, linespacing=1.15)
    if frames:
        film = frames(int(batch["clip"][column]))
        strip = panel.inset_axes([0, 0, 1, 0.44])
        strip.imshow(filmstrip(film))
        strip.axis("off")
        strip.set_anchor("SW")


def filmstrip(film: np.ndarray, shown: int = 4) -> np.ndarray:
    """(frames, height, width, 3) → some frames side by side, a white line between them."""
    picked = film[np.linspace(0, len(film) - 1, shown).astype(int)]
    return np.concatenate(list(np.pad(picked, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)), axis=1)


def seen(axis: plt.Axes, corpus: Corpus, clip: int, width: int = 34, lines: int = 5) -> None:
    """One clip (position in the corpus): its frames where the corpus has them, its first caption elsewhere."""
    axis.axis("off")
    if corpus.frames:
        axis.imshow(filmstrip(corpus.frames(clip)))
        return
    own = corpus.captions_of(np.array([clip]))["text"].iloc[0]
    words = textwrap.wrap(own, width, max_lines=lines, placeholder=" …")
    axis.text(0.5, 0.5, "\n".join(words), ha="center", va="center", fontsize=7).set_in_layout(False)


@styled
def retrieved(run: Run, title: str, queries: int = 4, best: int = 3, seed: int = 0):
    """Text → video: the `best` most similar test clips for some captions drawn at random, the right one marked."""
    model, data = run.load()
    data.check_plain()
    c_t, c_v, place = data.embed(model, "test")
    corpus, clips = data.corpus, data.corpus.split("test")
    captions = corpus.captions_of(clips)["text"]
    drawn = np.random.default_rng(seed).choice(len(captions), queries, replace=False)
    figure = plt.figure(figsize=(PAGE, 0.95 * queries + 0.3))
    similarity = losses.cosine(c_t[drawn], c_v)
    for line, query, scores in zip(figure.subfigures(queries, 1), drawn, similarity):
        line.suptitle(f"“{textwrap.shorten(captions[query], 100, placeholder=' …')}”", fontsize=8, x=0.01, ha="left")
        for axis, found in zip(line.subplots(1, best), scores.argsort(descending=True)[:best].tolist()):
            right = found == place[query]
            style = dict(color=COLOURS[2], fontweight="bold") if right else dict(color="0.3")
            axis.set_title(f"{'right: ' if right else ''}s = {scores[found]:.2f}", fontsize=7, **style)
            seen(axis, corpus, int(clips[found]))
    figure.suptitle(title, fontsize=8)
    return figure


MARKS = "oDs^vPX"
