"""λ and T of cross-captioning: the grid and its heat map."""

from collections.abc import Collection

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm

from ssb.figures import PAGE, styled

SIGNED = "vlag_r"  # blue gains, red losses


@styled
def heat_map(summary: pd.DataFrame, title: str, collapsed: Collection[str] = (), metric: str = "R@1"):
    """λ × T: the difference of `cross` to no captioning in each cell, bold where it is resolved. The last column is the
    paper's T with a decoder that learns to speak before it moves the heads. summary: of `Study.summary` over
    `tables.constants`; collapsed: settings that have no number because a run of theirs collapsed."""
    columns = [(t, False) for t in TEMPERATURES] + [(0.1, True)]
    names = [[constant(c, *column) for column in columns] for c in LAMBDAS]
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
    axis.set(yticks=range(len(names)), yticklabels=[f"{c:g}" for c in LAMBDAS])
    axis.set(xlabel="temperature T", ylabel="weight of captioning λ", title=title)
    axis.spines[:].set_visible(False)
    axis.axvline(len(columns) - 1.5, color="white", lw=3)
    figure.colorbar(image, ax=axis, label=f"{metric} less none (points)")
    return figure


LAMBDAS, TEMPERATURES = (0.01, 0.1, 1.0, 10.0), (0.01, 0.1, 1.0)
WARMUP = 0.2  # share of the steps in which the decoder learns before it teaches; the epoch kept is to lie after it


def constant(captioning: float, temperature: float, warm: bool = False) -> str:
    """The name of a cell of the map of λ and T."""
    return f"λ = {captioning:g}, T = {temperature:g}" + ", decoder first" * warm


def constants(lambdas=LAMBDAS, temperatures=TEMPERATURES) -> dict[str, dict]:
    """λ and T of `cross`; at the paper's T also with a decoder that has learnt to speak before it moves the heads."""
    cells = {constant(c, t): {"captioning": c, "temperature": t} for c in lambdas for t in temperatures}
    warm = {
        constant(c, 0.1, True): {"captioning": c, "temperature": 0.1, "decoder_warmup": WARMUP} for c in lambdas[1:]
    }
    return {"none": {"objective": "none"}} | {k: v | {"objective": "cross"} for k, v in (cells | warm).items()}
