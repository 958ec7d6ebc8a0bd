"""What the study can resolve: variance components, standard errors and the power curve (Table 12)."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.experiments import objectives
from ssb.figures import COLOURS, MARKS, PAGE, heading, legend, styled
from ssb.metrics.power import Components, components, needed, power
from ssb.metrics.retrieval import points
from ssb.report import Experiment
from ssb.tables.verdicts import stacked
from ssb.training.runs import Run

EXPERIMENT = Experiment(
    "Table 12: cross against none",
    number="12",
    grid=lambda study: objectives.PAIR,
    baseline="none",
    claims=objectives.TABLE1.claims[:1],
    alt="Probability of resolving the gain against the number of test clips, a line for each number of seeds.",
)
TABLES = {
    "table12": EXPERIMENT,
    "table12_tuned": replace(EXPERIMENT, title="Table 12: cross against none over the tuned baseline"),
    "table12_paper_small": replace(EXPERIMENT, title="Table 12: cross against none over the paper's heads"),
}
CLIPS, SEEDS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000), (2, 3, 5, 10, 20)  # of the power curve


def noise(runs: Mapping[str, list[Run]], setting: str, baseline: str) -> pd.DataFrame:
    """Variance components (columns clip, seed, residual; squared points of R@1) of two differences: of a setting minus
    the baseline; and of the baseline minus itself with another seed, which a table of single runs contains. There the
    variance of clips cancels, and the other two count twice."""
    hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs, "t2v").items()}
    clips = runs[baseline][0].ranks["clip"]
    alone = components(hits[baseline], clips)
    rows = {
        f"{setting} − {baseline}": components(hits[setting] - hits[baseline], clips),
        f"{baseline}, another seed": Components(0.0, 2 * alone.seed, 2 * alone.residual),
    }
    return pd.DataFrame(rows, index=Components._fields).T.round(3).rename_axis("difference")


def curves(noise: pd.DataFrame, effect: float, clips: Iterable[int], seeds: Iterable[int]) -> pd.DataFrame:
    """`ssb.metrics.power.power` with each row of `noise`: columns difference (its name), effect (points), clips, seeds
    and power, one row for each number of seeds and of clips."""
    cells = itertools.product(noise.iterrows(), seeds, clips)
    rows = [(name, effect, n, s, power(Components(*row), effect, n, s)) for (name, row), s, n in cells]
    return pd.DataFrame(rows, columns=["difference", "effect", "clips", "seeds", "power"])


def in_words(noise: pd.DataFrame, effect: float, clips: int, seeds: int, chance: float = 0.8) -> str:
    """For each row of `noise`, in words: how often this study resolves the effect (points of R@1), how often it gives a
    false verdict without an effect, and how many clips are needed to resolve it with probability `chance`."""
    lines = []
    for name, row in noise.iterrows():
        parts = Components(*row)
        right, wrong = (power(parts, size, clips, seeds) for size in (effect, 0.0))
        enough = needed(parts, effect, seeds, chance)
        more = "no number of clips is enough" if np.isinf(enough) else f"{chance:.0%} need {enough:,} clips"
        lines.append(
            f"With the noise of “{name}”, {seeds} seeds and {clips} test clips resolve {effect:g} points of R@1 in "
            f"{right:.0%} of studies ({more}), and give a false verdict in {wrong:.1%} where there is no effect."
        )
    return "\n".join(lines)


@styled
def power_curves(curves: pd.DataFrame, title: str, clips: int, goal: float = 0.8):
    """The probability of resolving the effect against the number of test clips, a line for each number of seeds and a
    panel for each source of noise. curves: of `curves`; clips: the number of this corpus, marked."""
    panels = list(curves.groupby("difference", sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(PAGE, 2.6), sharey=True, squeeze=False)
    for axis, (name, panel) in zip(axes[0], panels):
        for k, (n, rows) in enumerate(panel.groupby("seeds")):
            axis.plot(rows["clips"], rows["power"], marker=MARKS[k], ms=3, lw=1, color=COLOURS[k], label=f"{n} seeds")
        axis.axhline(goal, color="0.5", lw=0.8, ls="--")
        axis.axvline(clips, color="0.7", lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="test clips (dotted: this corpus)", title=f"noise of {name}", ylim=(0, 1.02))
    axes[0, 0].set_ylabel(f"probability of resolving\nthe effect (dashed: {goal:.0%})")
    heading(figure, title)
    legend(figure, columns=6)
    return figure
