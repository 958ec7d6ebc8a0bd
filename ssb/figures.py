"""The study's figures. Every function returns a matplotlib Figure; `save` writes it as PNG and PDF."""

import functools
import string
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
import torch
from IPython.display import Image
from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from ssb import files, losses
from ssb.corpora.corpus import Corpus
from ssb.metrics import retrieval
from ssb.model import SupportSetModel
from ssb.training.data import Data
from ssb.training.runs import Run

PAGE, COLUMN = 6.9, 3.3  # inches: the width of a page of print, of one of its two columns
STYLE = {
    "font.size": 8,
    **{f"{part}size": 8 for part in ("axes.title", "axes.label", "xtick.label", "ytick.label", "figure.title")},
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
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
MARKS = "oDs^v<>ph"  # markers, so that lines do not differ by colour alone
RESOLVED = ("higher", "lower", "held", "contradicted")  # verdicts; the marks of the others are hollow
WIDE = 30  # times the half of an interval, from which one difference leaves the others no room on a linear axis
MISSING = "□"  # drawn for a character that the font does not have


def styled(draw: Callable[..., plt.Figure]) -> Callable[..., plt.Figure]:
    """Decorator of a function that draws a figure: in the study's style, which ends with the call, and with every text
    as it is given, see `literal`."""

    @functools.wraps(draw)
    def drawn(*arguments, **options) -> plt.Figure:
        with plt.rc_context(STYLE):
            figure = draw(*arguments, **options)
            literal(figure)
        return figure

    return drawn


def literal(figure: plt.Figure):
    """Make every text of a figure be drawn as it is: captions, names of clips, corpora and settings may hold dollar
    signs, between which matplotlib would read mathematics. Characters without a glyph become `MISSING`. Ticks that
    matplotlib labels itself, such as powers of ten, stay mathematics."""
    ticks = set()
    for axis in figure.findobj(Axis):
        labels = [label for tick in axis.majorTicks + axis.minorTicks for label in (tick.label1, tick.label2)]
        if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):  # given with set_ticklabels
            given = [label.get_text() for label in axis.get_ticklabels()]
            if any(given):  # panels that share an axis share its labels, which only one of them has
                axis.set_ticklabels([drawable(text) for text in given])
        else:
            ticks.update([*labels, axis.offsetText])
    for text in figure.findobj(Text):
        if text not in ticks:
            text.set_parse_math(False)
            text.set_text(drawable(text.get_text()))


def drawable(text: str) -> str:
    """A text with `MISSING` for each character that the font of the figures lacks in one of its styles."""
    glyphs = _glyphs(tuple(plt.rcParams["font.family"]), tuple(plt.rcParams["font.sans-serif"]))
    return "".join(letter if letter == "\n" or ord(letter) in glyphs else MISSING for letter in text)


@functools.cache
def _glyphs(families: tuple[str, ...], preferred: tuple[str, ...]) -> set[int]:
    """The characters that these families have, regular, bold and italic. preferred: what "sans-serif" stands for, so
    that a change of it is noticed."""
    glyphs = set()
    for family in families:
        styles = {}, {"weight": "bold"}, {"style": "italic"}
        paths = [font_manager.findfont(font_manager.FontProperties(family=[family], **style)) for style in styles]
        glyphs |= set.intersection(*(set(font_manager.get_font(path).get_charmap()) for path in paths))
    return glyphs


def gain_curve(axis: plt.Axes, x, rows: pd.DataFrame, mark: str, colour, label: str | None = None):
    """Differences against x, a line: `delta` of each row, with its interval over queries as a thick bar and the one
    over queries and seeds as a thin one; hollow where the verdict is not resolved. rows: of `statistics.settled`."""
    for low, high, width, over in (
        ("delta_low", "delta_high", 3, "queries"),
        ("low", "high", 0.8, "queries and seeds"),
    ):
        ends = np.clip([rows["delta"] - rows[low], rows[high] - rows["delta"]], 0, None)
        axis.errorbar(x, rows["delta"], ends, fmt="none", color=colour, elinewidth=width, label=f"95 %, {over}")
    axis.plot(x, rows["delta"], marker=mark, ms=4, lw=1, color=colour, label=label)
    filled = np.array(rows["verdict"].isin(RESOLVED))
    for chosen, face, words in ((filled, colour, "filled: resolved"), (~filled, "white", "hollow: not resolved")):
        if chosen.any():
            axis.plot(np.asarray(x)[chosen], rows["delta"][chosen], mark, ms=4, color=colour, mfc=face, label=words)


class Picture(Image):
    """A picture that a notebook shows, and a terminal as the sentence for those who cannot see it."""

    def __repr__(self):
        return self.alt


def save(figure: plt.Figure, folder: Path, name: str, alt: str) -> Picture:
    """Write folder/name.png and .pdf, close the figure, and return the picture for the notebook to show.

    alt: one sentence for those who cannot see it; stored in the files too.
    """
    folder = Path(folder)
    # no dates and versions in the files: the same figure has the same bits
    tags = {".png": {"Software": None, "Description": alt}, ".pdf": {"CreationDate": None, "Subject": alt}}
    for suffix, metadata in tags.items():
        with files.written(folder / f"{name}{suffix}") as draft, plt.rc_context(STYLE):
            figure.savefig(draft, metadata=metadata)
    plt.close(figure)
    path = folder / f"{name}.png"
    print(f"wrote {files.short(path)} and .pdf")
    return Picture(filename=str(path), alt=alt, width=round(96 * figure.get_figwidth()))


def described(path: Path) -> str:
    """The sentence that `save` stored in a .png; its name where there is none."""
    with PIL.Image.open(path) as image:
        return image.info.get("Description", f"The figure {path.stem}.")


@styled
def settings(
    rows: pd.DataFrame,
    summary: pd.DataFrame,
    title: str,
    baseline: str = "none",
    metric: str = "R@1",
    column: str = "t2v R@1",
    queries: str = "queries",
    chance: float | None = None,
):
    """A table as a forest plot: the difference of each setting to the baseline on the same queries and seeds, that of
    each seed a dot, the paper's a star where both its numbers are known; at the right the mean itself.

    rows, summary: of `Study.rows` and `Study.summary`. metric: in the summary; column: in the rows; queries: what the
    intervals are over; chance: the metric by chance, named where it is given.
    """
    equal = (summary[["delta_low", "delta_high"]] == 0).all(axis=1)
    marks = np.where(summary.index == baseline, " (reference)", np.where(equal, ": equal", ""))
    names = [f"{name}{mark}" for name, mark in zip(summary.index, marks)]
    labels = [textwrap.fill(name, 22, break_on_hyphens=False) for name in names]
    figure, axis = plt.subplots(figsize=(COLUMN, 0.31 * len(summary) + 1.5))
    seeds = rows.assign(score=rows[column].astype(float)).pivot_table("score", "seed", "setting")
    seeds = seeds.sub(seeds.get(baseline, summary.loc[baseline, metric]), axis="index")
    paper = summary.get(f"paper {metric}", pd.Series(dtype=float)).reindex(summary.index)
    axis.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    for y, (setting, row) in enumerate(summary.iterrows()):
        axis.text(1.03, y, f"{row[metric]:.1f}", va="center", transform=axis.get_yaxis_transform())
        if setting == baseline:
            axis.axhspan(y - 0.5, y + 0.5, color="0.92", lw=0, zorder=-1)
            continue
        if setting in seeds:  # one without training has none
            axis.plot(seeds[setting], np.full(len(seeds), y + 0.28), ".", ms=3, color="0.35", label="one seed")
        difference(axis, y, row, queries=queries)
        if not np.isnan(shift := paper[setting] - paper[baseline]):
            star(axis, shift, y)
    if equal.any():
        axis.plot([], [], " ", label="equal: on every query")
    axis.text(1.03, -0.75, f"{metric} (%)", va="center", transform=axis.get_yaxis_transform())
    axis.set(yticks=range(len(summary)), yticklabels=labels, ylim=(len(summary) - 0.5, -0.5))
    half = (summary["delta_high"] - summary["delta_low"]).replace(0, np.nan).median() / 2
    wide = summary["delta"].abs().max() > WIDE * half
    if wide:
        low, high = axis.get_xlim()
        axis.set_xscale("symlog", linthresh=1)
        low, high = min(1.4 * low, -1.5), max(1.4 * high, 1.5)
        axis.set(xlim=(low, high), xticks=[x for x in (-10, -1, 0, 1, 10) if low < x < high])
        axis.xaxis.set_major_formatter("{x:g}")
    scale = "points, logarithmic beyond ±1" if wide else "points"
    axis.set_xlabel(textwrap.fill(f"Δ {metric} vs {baseline} ({scale})", 34))
    axis.tick_params(axis="y", length=0)
    words = title if chance is None else f"{title}; chance: {chance:.1f} %"
    heading(figure, words)
    legend(figure, columns=2)
    return figure


def heading(figure: plt.Figure, title: str):
    """The title above all panels, in lines of about one length."""
    lines = max(1, -(-len(title) // round(17.5 * figure.get_figwidth())))
    figure.suptitle(textwrap.fill(title, len(title) // lines + 6))


def legend(figure: plt.Figure, columns: int):
    """One legend below all panels, each label once."""
    pairs = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels())]
    handles = {label: handle for handle, label in pairs}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def interval(axis: plt.Axes, y: float, mean: float, low: float, high: float, **style):
    """A mean with its interval, from low to high, at height y. style: of `Axes.errorbar`."""
    ends = [[max(mean - low, 0)], [max(high - mean, 0)]]  # rounded numbers may be out of order by a digit
    axis.errorbar(mean, y, xerr=ends, **dict(fmt="D", ms=4, color=COLOURS[0], capsize=3, elinewidth=1.5) | style)


def difference(axis: plt.Axes, y: float, row: pd.Series, queries: str = "queries", size: float = 5, **style):
    """The difference in a row of a summary or of claims. Thick: its 95 % interval over queries. Thin, with caps: the
    one over queries and seeds at once, or over seeds in tables without it. Filled where the verdict is resolved. style:
    of `Axes.plot`."""
    style = {"color": COLOURS[0], "marker": "o"} | style
    bar, wide = style | {"marker": "", "lw": 0.6 * size}, style | {"marker": "|", "ms": size, "lw": 0.8}
    both = "low" in row and not np.isnan(row["low"])
    ends = row[["low", "high"] if both else ["seeds_low", "seeds_high"]]
    axis.plot(row[["delta_low", "delta_high"]], [y, y], **bar, solid_capstyle="butt", label=f"95 %, {queries}")
    if not ends.isna().any():
        axis.plot(ends, [y, y], **wide, label=f"95 %, {f'{queries} and seeds' if both else 'seeds'}")
    resolved = row["verdict"] in RESOLVED
    face, label = (style["color"], "filled: resolved") if resolved else ("white", "hollow: not resolved")
    axis.plot(row["delta"], y, **style, ls="", ms=size, mfc=face, label=label, zorder=3)


def star(axis: plt.Axes, x, y):
    """The paper's numbers x at heights y."""
    axis.plot(x, y, "*", ms=7, color=COLOURS[1], mec="black", mew=0.4, label="the paper's", zorder=4)


def support_weights(
    model: SupportSetModel, data: Data, size: int, objective: str | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Weights w (B, B) of a batch of B = size test clips, each with its first caption, all zero for "none"; and the
    batch: clip (position in the corpus), id and text of each pair.

    model, data: of `Run.load`. objective: None: the run's own. ConfigError for a run that does not rank by cosine.
    """
    data.check_cosine()
    c_t, c_v, clip = data.embed(model, "test")
    captions = data.corpus.captions_of(data.corpus.split("test"))
    first = np.unique(clip, return_index=True)[1][:size]
    batch = captions.loc[first, ["clip", "text"]].reset_index(drop=True)
    batch["id"] = [data.corpus.clips[i] for i in batch["clip"]]
    objective = objective or data.config.objective
    if objective == "none":
        return np.zeros((len(batch), len(batch))), batch
    c_t = c_t[torch.from_numpy(first)]
    config = data.config
    weights = losses.support_set_weights(c_t, c_v[: len(c_t)], objective, config.temperature, by=config.weights_by)
    return weights.numpy(), batch


def _heat_map(axis: plt.Axes, weights: np.ndarray, ticks: list[int], **scale):
    """Weights (B, B) as an image with a frame; rows and columns are counted from 1."""
    labels = [tick + 1 for tick in ticks]
    axis.set(xticks=ticks, xticklabels=labels, yticks=ticks, yticklabels=labels)
    axis.spines[:].set_visible(True)
    return axis.imshow(weights, cmap=HEAT, **scale)


@styled
def weight_matrices(runs: Mapping[str, Run], title: str, size: int = 16):
    """Figure 2b: the weights w of one batch under each objective that has any, each from its own trained run (`runs`:
    objective → run). Rows are captions, columns the clips they are reconstructed from."""
    shown = {name: run for name, run in runs.items() if run.config.objective != "none"}
    lines = -(-len(shown) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(COLUMN, 1.6 * lines + 0.8), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (name, run) in zip(axes.flat, shown.items()):
        weights, batch = support_weights(*run.load(), size)
        image = _heat_map(axis, weights, [0, len(batch) - 1], norm=PowerNorm(0.5, 0, 1))  # so that small weights show
        axis.set(title=name, xlabel="clip j", ylabel="caption i")
    label = "weight wᵢⱼ (square-root scale)"
    figure.colorbar(image, ax=axes, location="bottom", aspect=30, label=label, ticks=[0, 0.05, 0.2, 0.5, 1])
    heading(figure, title)
    return figure


@styled
def attention_map(run: Run, title: str, size: int = 24, strongest: int = 4, objective: str = "cross"):
    """Figure 3: the support-set weights of a batch of test clips, and what its strongest rows attend to.

    For each of the `strongest` rows (largest weight on one other clip): the caption to be reconstructed, its own clip,
    and the clip it is reconstructed from, by frames where the corpus has them and by that clip's own caption elsewhere.
    """
    model, data = run.load()
    weights, batch = support_weights(model, data, size, objective)
    rows = np.argsort(-weights.max(axis=1), kind="stable")[:strongest]
    height, attended = (1, "its own clip, and the clip") if data.corpus.frames else (0.85, "a caption of the clip")
    figure = plt.figure(figsize=(PAGE, height * strongest + 0.3))
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.2])
    right.suptitle(f"a caption with {attended} it attends to", style="italic")
    axis = left.subplots()
    image = _heat_map(axis, weights, sorted({0, *range(5, len(batch), 6), len(batch) - 1}), vmin=0)
    axis.set(xlabel="clip j of the support set", ylabel="caption i")
    left.colorbar(image, ax=axis, location="bottom", aspect=30, label="weight wᵢⱼ")
    for part, letter, row in zip(right.subfigures(len(rows), 1, squeeze=False)[:, 0], string.ascii_uppercase, rows):
        column = int(weights[row].argmax())
        axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.2))
        text = axis.annotate(letter, (column, row), (4, 3), textcoords="offset points", weight="bold")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # readable on any cell
        _attended(part, letter, row, column, weights[row, column], batch, data.corpus)
    heading(figure, title)
    return figure


def _attended(part, letter: str, row: int, column: int, weight: float, batch: pd.DataFrame, corpus: Corpus):
    """One row's caption, its own clip and the clip that it attends to."""
    own = f"{letter}  caption {row + 1}: “{batch['text'][row]}”"
    other = f"clip {column + 1} (w = {weight:.2f}): “{batch['text'][column]}”"
    above, below = part.subplots(2, 2, height_ratios=[1, 1.1] if corpus.frames else [9, 1])
    for top, bottom, words, place in zip(above, below, (own, other), (row, column)):
        top.axis("off")
        bottom.axis("off")
        lines = textwrap.wrap(words, 31, max_lines=3 if corpus.frames else 6, placeholder=" …”")
        y, side = (0, "bottom") if corpus.frames else (1, "top")
        top.text(0, y, "\n".join(lines), va=side, transform=top.transAxes).set_in_layout(False)
        if corpus.frames:
            bottom.imshow(filmstrip(corpus.frames(int(batch["clip"][place]))))
            bottom.set_anchor("NW")


def filmstrip(frames: np.ndarray, count: int = 3) -> np.ndarray:
    """(frames, height, width, 3) → some of them side by side, evenly spaced in time, a white line between them."""
    picked = frames[np.linspace(0, len(frames) - 1, count).astype(int)]
    return np.concatenate(list(np.pad(picked, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)), axis=1)


def show_clip(axis: plt.Axes, corpus: Corpus, clip: int, width: int = 34, lines: int = 5) -> None:
    """Draw one clip (position in the corpus): its frames, or its first caption where the corpus has no frames. width,
    lines: of the text."""
    axis.axis("off")
    if corpus.frames:
        axis.imshow(filmstrip(corpus.frames(clip)))
        return
    caption = corpus.captions_of(np.array([clip]))["text"].iloc[0]
    words = textwrap.wrap(caption, width, max_lines=lines, placeholder=" …")
    axis.text(0.5, 0.5, "\n".join(words), ha="center", va="center").set_in_layout(False)


@styled
def retrieved(run: Run, title: str, queries: int = 4, best: int = 3, seed: int = 0):
    """Text → video: the `best` most similar test clips for some captions drawn at random, the right one marked, and its
    rank. ConfigError for a run that does not rank by cosine."""
    model, data = run.load()
    data.check_cosine()
    c_t, c_v, own = data.embed(model, "test")
    corpus, clips = data.corpus, data.corpus.split("test")
    captions = corpus.captions_of(clips)["text"]
    drawn = np.random.default_rng(seed).choice(len(captions), queries, replace=False)
    figure = plt.figure(figsize=(PAGE, 1.2 * queries + 0.3))
    similarity = losses.cosine(c_t[drawn], c_v)
    ranks = retrieval.ranks(similarity, own[drawn])
    for line, query, scores, rank in zip(figure.subfigures(queries, 1), drawn, similarity, ranks):
        words = f"“{textwrap.shorten(captions[query], 80, placeholder=' …')}”: the right clip has rank {rank:g}"
        line.suptitle(f"{words} of {len(clips)}", x=0.01, ha="left")
        for axis, clip in zip(line.subplots(1, best), scores.argsort(descending=True)[:best].tolist()):
            right = clip == own[query]
            style = dict(color=COLOURS[2], fontweight="bold") if right else dict(color="0.3")
            axis.set_title(f"{'right: ' if right else ''}s = {scores[clip]:.2f}", **style)
            show_clip(axis, corpus, int(clips[clip]))
    heading(figure, title)
    return figure
