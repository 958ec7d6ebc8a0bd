"""λ and T of cross-captioning: the grid and its heat map."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from ssb.config import Config
from ssb.figures import COLUMN, RESOLVED, heading, styled
from ssb.report import STRESS, Experiment, signed

LAMBDAS, TEMPERATURES = (0.01, 0.1, 1.0, 10.0), (0.01, 0.1, 1.0)
WARMUP = 0.2  # share of the steps in which the decoder alone learns; the epoch kept should lie after it


def constant(captioning: float, temperature: float, warm: bool = False) -> str:
    """The setting of one cell of the grid. captioning: λ; warm: with the decoder trained first."""
    return f"λ = {captioning:g}, T = {temperature:g}{', decoder first' if warm else ''}"


def constants() -> dict[str, dict]:
    """λ and T of `cross`; at the paper's T also with a decoder that is trained before its gradient moves the heads."""
    cells = {constant(c, t): {"captioning": c, "temperature": t} for c in LAMBDAS for t in TEMPERATURES}
    for c in LAMBDAS[1:]:
        cells[constant(c, 0.1, True)] = {"captioning": c, "temperature": 0.1, "decoder_warmup": WARMUP}
    return {"none": {"objective": "none"}} | {name: cell | {"objective": "cross"} for name, cell in cells.items()}


@styled
def heat_map(
    summary: pd.DataFrame,
    title: str,
    collapsed: Collection[str] = (),
    preset: Config | None = None,
    ratio: float = np.nan,
):
    """λ × T: the difference of `cross` to no captioning in each cell, bold where it is resolved; a frame around the
    paper's cell, a stress test where captioning was `ratio` times the contrastive term, and around that of the preset.
    The last column is the paper's T with a decoder that is trained first.
    summary: of `Study.summary` over `constants`; collapsed: settings without a number because one of their runs
    collapsed."""
    columns = [(t, False) for t in TEMPERATURES] + [(0.1, True)]
    names = [[constant(c, *column) for column in columns] for c in LAMBDAS]
    deltas = np.array([[summary["delta"].get(name, np.nan) for name in row] for row in names])
    figure, axis = plt.subplots(figsize=(COLUMN, 2.9))
    norm = CenteredNorm(0, max(1.0, np.nanmax(np.abs(deltas))))
    image = axis.imshow(deltas, cmap="vlag_r", norm=norm, aspect="auto")  # blue gains, red losses
    axis.patch.set(hatch="////", ec="0.8")
    framed = {"the paper's": (Config(), "-", 0.47), "the preset's": (preset, "--", 0.4)}
    framed = {label: frame for label, frame in framed.items() if frame[0]}
    handles = [
        Line2D([], [], ls="", label="bold: resolved"),
        Patch(hatch="////", fc="white", ec="0.8", label="not tried, or collapsed"),
    ]
    for label, (_, style, _) in framed.items():
        handles.append(Patch(fill=False, lw=1.3, ls=style, label=f"{label} λ and T"))
    if ratio >= STRESS:
        words = f"λ = {Config().captioning:g}: a stress test, captioning\n{ratio:.0f} times the contrastive term"
        handles.append(Line2D([], [], ls="", label=words))
    for (y, x), delta in np.ndenumerate(deltas):
        dark = abs(delta) > 0.6 * norm.vmax
        style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        if (name := names[y][x]) in summary.index:
            resolved = summary["verdict"][name] in RESOLVED
            axis.text(x, y, signed(delta), fontweight="bold" if resolved else "normal", **style)
        elif name in collapsed:
            axis.text(x, y, "collapsed", bbox={"fc": "white", "lw": 0, "pad": 0.5}, **style)
        for config, line, half in framed.values():
            if (config.captioning, config.temperature, False) == (LAMBDAS[y], *columns[x]):
                around = [withStroke(linewidth=2.8, foreground="white")]  # to be seen on every colour
                box = {"fill": False, "lw": 1.3, "ls": line, "ec": "black", "path_effects": around}
                axis.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, **box))
    labels = [f"{t:g}\ndecoder\nfirst" if warm else f"{t:g}" for t, warm in columns]
    axis.set(xticks=range(len(columns)), xticklabels=labels)
    axis.set(yticks=range(len(names)), yticklabels=[f"{c:g}" for c in LAMBDAS])
    axis.set(xlabel="temperature T", ylabel="weight of captioning λ")
    axis.spines[:].set_visible(False)
    axis.axvline(len(columns) - 1.5, color="white", lw=3)
    figure.colorbar(image, ax=axis, label="Δ R@1 vs none (points)")
    heading(figure, title)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=2)
    legend.get_texts()[0].set_fontweight("bold")
    return figure


def drawn(rows: pd.DataFrame, summary: pd.DataFrame, title: str, collapsed: Collection[str], preset: Config):
    """`heat_map` with the ratio of the paper's cell in the rows of the table."""
    paper = pd.to_numeric(rows.loc[rows["setting"] == constant(Config().captioning, Config().temperature), "ratio"])
    return heat_map(summary, f"Gain of cross over none by {title}", collapsed, preset, paper.mean())


CONSTANTS = Experiment(
    "λ and T",
    grid=lambda study: constants(),
    baseline="none",
    alt="Heat map of the gain in R@1 of cross over no captioning, by λ and T, with the paper's and the preset's cells.",
    draw=lambda result: drawn(result.rows, result.summary, result.title, result.study.collapsed, result.study.base),
)
TABLES = {"constants": CONSTANTS}
