"""λ and T of cross-captioning: the grid and its heat map."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm

from ssb.figures import PAGE, styled
from ssb.report import Experiment

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
def heat_map(summary: pd.DataFrame, title: str, collapsed: Collection[str] = ()):
    """λ × T: the difference of `cross` to no captioning in each cell, bold where it is resolved. The last column is the
    paper's T with a decoder that is trained first. summary: of `Study.summary` over `constants`; collapsed: settings
    without a number because one of their runs collapsed."""
    columns = [(t, False) for t in TEMPERATURES] + [(0.1, True)]
    names = [[constant(c, *column) for column in columns] for c in LAMBDAS]
    deltas = np.array([[summary["delta"].get(name, np.nan) for name in row] for row in names])
    figure, axis = plt.subplots(figsize=(PAGE * 0.75, 2.6))
    norm = CenteredNorm(0, max(1.0, np.nanmax(np.abs(deltas))))
    image = axis.imshow(deltas, cmap="vlag_r", norm=norm, aspect="auto")  # blue gains, red losses
    for (y, x), delta in np.ndenumerate(deltas):
        text = dict(ha="center", va="center")
        if (name := names[y][x]) in summary.index:
            weight = "normal" if summary["verdict"][name] not in ("higher", "lower") else "bold"
            colour = "white" if abs(delta) > 0.6 * norm.vmax else "black"
            axis.text(x, y, f"{delta:+.1f}", fontweight=weight, color=colour, **text)
        elif name in collapsed:
            axis.text(x, y, "collapsed", style="italic", **text)
    labels = [f"{t:g}\ndecoder first" if warm else f"{t:g}" for t, warm in columns]
    axis.set(xticks=range(len(columns)), xticklabels=labels)
    axis.set(yticks=range(len(names)), yticklabels=[f"{c:g}" for c in LAMBDAS])
    axis.set(xlabel="temperature T", ylabel="weight of captioning λ", title=title)
    axis.spines[:].set_visible(False)
    axis.axvline(len(columns) - 1.5, color="white", lw=3)
    figure.colorbar(image, ax=axis, label="Δ R@1 vs none (points)")
    return figure


CONSTANTS = Experiment(
    "λ and T",
    grid=lambda study: constants(),
    baseline="none",
    alt="Heat map of the gain in R@1 of cross over no captioning, by weight of captioning and temperature.",
    draw=lambda result: heat_map(result.summary, f"Gain of cross over none by {result.title}", result.study.collapsed),
)
TABLES = {"constants": CONSTANTS}
