"""What the study can resolve: variance components, standard errors and the power curve (Table 12)."""

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.figures import COLOURS, MARKS, PAGE, styled
from ssb.metrics.power import Components, components, curve, needed, power
from ssb.metrics.retrieval import points
from ssb.training.runs import Run


@styled
def power_curves(curves: pd.DataFrame, title: str, clips: int, goal: float = 0.8):
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


def noise(runs: Mapping[str, list[Run]], setting: str, baseline: str) -> pd.DataFrame:
    """`components` of a setting less the baseline; and, what tables of single runs are made of, of the baseline less
    itself with another seed. There the clips' own part cancels, and the other two count twice."""
    one, base = (points(np.stack([run.ranks["t2v"] for run in runs[name]]), "R@1") for name in (setting, baseline))
    clips = runs[baseline][0].ranks["clip"]
    alone = components(base, clips)
    again = Components(0.0, 2 * alone.seed, 2 * alone.residual)
    rows = {f"{setting} − {baseline}": components(one - base, clips), f"{baseline}, another seed": again}
    return pd.DataFrame(rows, index=Components._fields).T.round(3).rename_axis("difference")


def curves(noise: pd.DataFrame, effect: float, clips: Iterable[int], seeds: Iterable[int]) -> pd.DataFrame:
    """`curve` of each row of `noise`, named in the column `difference`."""
    each = {name: curve(Components(*row), [effect], clips, seeds) for name, row in noise.iterrows()}
    return pd.concat(each, names=["difference"]).droplevel(1).reset_index()


def said(noise: pd.DataFrame, effect: float, clips: int, seeds: int, chance: float = 0.8) -> str:
    """In words, for each row of `noise`: how often this study resolves the effect, how often it gives a verdict where
    there is none, and how many clips it would take."""
    lines = []
    for name, row in noise.iterrows():
        parts = Components(*row)
        right, wrong = (power(parts, size, clips, seeds) for size in (effect, 0.0))
        enough = needed(parts, effect, seeds, chance)
        more = "no number of clips would do" if np.isinf(enough) else f"{chance:.0%} need {enough:,} clips"
        lines.append(
            f"With the noise of “{name}”, {seeds} seeds and {clips} test clips resolve {effect:g} points of R@1 in "
            f"{right:.0%} of studies ({more}) and find something where nothing is in {wrong:.1%}."
        )
    return "\n".join(lines)


CLIPS, SEEDS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000), (2, 3, 5, 10, 20)  # of the power curve
