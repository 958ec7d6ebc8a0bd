"""The gain of `cross` against the strength of the baseline that it is added to."""

from collections.abc import Iterable
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.experiments.baselines import RECALLS, named_presets
from ssb.experiments.objectives import TABLE1
from ssb.figures import COLOURS, MARKS, PAGE, heading, styled
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined, paired, settled, slope
from ssb.paper import paper_difference
from ssb.report import Experiment, signed, widest
from ssb.study import Study
from ssb.tables.verdicts import Runs, acts, stacked
from ssb.training.runs import load

HEADS, NEGATIVES, WIDTHS = ("conv", "mean"), ("scheduled", "hardest"), (64, 512)
VALIDATION = [name.replace("t2v", "val") for name in RECALLS]
STEPS = (500, 1000)  # of training, but at most twice the preset's epochs
LAMBDAS = (0.1, 0.3, 1.0)
PRESETS = ("laptop", "tuned")  # without paper_small, which trains for longer than all others together
STRENGTH = Experiment(
    "Gain against the strength of the baseline",
    baseline="laptop",
    alt="Gain of cross in text to video R@1 against the validation R@1 of no captioning, one point for each baseline.",
    shown="gains",
)
TABLES = {"strength": STRENGTH}
AVERAGE = "cross gains, the mean over the baselines"
OTHERS = f"{AVERAGE} but that of the largest gain"
FIXED = f"{AVERAGE}, with λ = {{:g}} on all"
FALLS = "cross gains less over stronger baselines, the largest gain left out (points less for ten points)"


def baselines(study: Study) -> dict[str, dict]:
    """Baseline → what it changes in the preset: sixteen from weak to strong, and those of PRESETS that the
    corpus has."""
    base = study.base
    batches = len(load(base, study.corpus).order(0))
    counts = [min(2 * base.epochs, max(1, round(steps / batches))) for steps in STEPS]
    if counts[0] == counts[1]:
        counts = [base.epochs, 2 * base.epochs]
    cells = {
        f"{head}, {negatives}, {epochs} epochs, d = {dim}": {
            "video_pooling": head,
            "contrast": "triplet",
            "negatives": negatives,
            "epochs": epochs,
            "dim": dim,
        }
        for head, negatives, epochs, dim in product(HEADS, NEGATIVES, counts, WIDTHS)
    }
    named = {"laptop": {}, **named_presets(study)}
    return {name: named[name] for name in PRESETS if name in named} | cells


def captioned(baseline: str, weight: float) -> str:
    """The setting of `cross` on a baseline. weight: λ."""
    return f"{baseline}: cross, λ = {weight:g}"


def grid(study: Study) -> dict[str, dict]:
    """Every baseline without captioning, and with it at each λ of LAMBDAS."""
    cells = {}
    for name, changes in baselines(study).items():
        cells[name] = changes | {"objective": "none"}
        cells |= {captioned(name, w): changes | {"objective": "cross", "captioning": w} for w in LAMBDAS}
    return cells


def validation(runs: Runs) -> pd.DataFrame:
    """One row for each run: setting, seed, and the recalls on the validation clips at the epoch kept, in percent."""
    rows = []
    for setting, members in runs.items():
        for run in members:
            kept = run.log.set_index("epoch").loc[run.metrics["best_epoch"], VALIDATION]
            rows.append({"setting": setting, "seed": run.config.seed, **kept})
    return pd.DataFrame(rows, columns=["setting", "seed", *VALIDATION]).astype(dict.fromkeys(VALIDATION, float))


def scored(runs: Runs, names: Iterable[str]) -> dict[str, float]:
    """Those of these settings that have runs → the sum of their recalls on the validation clips, means over runs."""
    found = validation({name: runs[name] for name in names if name in runs})
    return found.groupby("setting", sort=False)[VALIDATION].mean().sum(axis=1).round(3).to_dict()


def gains(study: Study, runs: Runs) -> pd.DataFrame:
    """Each baseline: its R@1 on the validation clips; the λ with the best R@1 + R@5 + R@10 there; and on the test clips
    the R@1 of both and the gain of `cross` at that λ. Written to results/<corpus>/<table>_gains.csv."""
    clips, rows = next(iter(runs.values()))[0].ranks["clip"], {}
    ranks = stacked(runs)
    for name in runs:
        weights = {captioned(name, weight): weight for weight in LAMBDAS}
        scores = scored(runs, weights)
        if not scores:
            continue
        best = max(scores, key=scores.get)
        hits = [points(ranks[setting], "R@1") for setting in (best, name)]
        own = validation({name: runs[name]})["val R@1"].mean()
        row = {"val R@1": own, "λ": weights[best], "R@1": hits[1].mean()}
        rows[name] = row | paired(*hits, clips)._asdict() | {"acts": acts(runs[best])}
    frame = settled(pd.DataFrame.from_dict(rows, orient="index")).rename_axis("baseline").round(3)
    study.write(frame.reset_index(), f"{study.table}_gains.csv")
    return frame


def claimed(runs: Runs, gains: pd.DataFrame, seeds: int) -> list[dict]:
    """Of all baselines together, as rows of claims: the mean gain; the same without the baseline of the largest one,
    and with one λ on all, since validation chose the best of three for `cross` and had one of `none`; and how many
    points less the gain is for ten points more of validation R@1, by least squares without the largest gain, since a
    single baseline that fails to train can make the slope. gains: of `gains`, at least by baseline the columns val R@1,
    λ and delta."""
    clips, ranks = next(iter(runs.values()))[0].ranks["clip"], stacked(runs)
    ones, best = pd.Series(1.0, gains.index), gains["λ"]
    wanted = [(AVERAGE, "cross", "none", best, ones / len(gains))]
    if len(gains) > 1:
        others = ones.drop(gains["delta"].idxmax())
        wanted += [(OTHERS, "cross, the largest left out", "none", best, others / len(others))]
    for weight in LAMBDAS:
        one = pd.Series(weight, gains.index)
        if all(captioned(name, weight) in runs for name in gains.index):
            wanted += [(FIXED.format(weight), f"cross, λ = {weight:g}", "none", one, ones / len(gains))]
    rest = without_largest(gains)
    steepness = pd.Series(-10 * slope(rest["val R@1"]), rest.index)
    wanted += [(FALLS, "gain over weaker", "over stronger", best, steepness)]
    rows = []
    for claim, setting, baseline, weight, parts in wanted:
        pairs, names = [], {name: captioned(name, weight[name]) for name in parts.index}
        for name, part in parts.items():
            one, other = (points(ranks[each], "R@1") for each in (names[name], name))
            pairs.append((part, one, other, clips))
        row = {"claim": claim, "setting": setting, "baseline": baseline, "seeds": seeds, "paper": np.nan}
        every = [run for each in names.values() for run in runs[each]]
        unit = None if claim == FALLS else acts(every)  # no points, but points for ten points
        rows.append(row | combined(pairs)._asdict() | {"acts": unit})
    return rows


def without_largest(gains: pd.DataFrame) -> pd.DataFrame:
    """`gains` but for the baseline of the largest gain; all of them where fewer than two would be left."""
    return gains.drop(gains["delta"].idxmax()) if len(gains) > 2 else gains


def reading(gains: pd.DataFrame) -> str:
    """The gains over the weakest and the strongest baseline, with the interval over queries and seeds and the verdict,
    and what one baseline adds to their mean, in words."""
    most = gains["delta"].idxmax()
    both = gains, without_largest(gains)
    mean, others = (each["delta"].mean() for each in both)
    falls, steep = (-10 * each["delta"] @ slope(each["val R@1"]) for each in both)
    lines = [
        f"The mean gain: {mean:+.2f} points, {others:+.2f} without {most}, the largest.",
        f"For ten points more of a baseline it falls by {falls:.2f} points, by {steep:.2f} without {most}.",
    ]
    for word, name in (("weakest", gains["val R@1"].idxmin()), ("strongest", gains["val R@1"].idxmax())):
        row = gains.loc[name]
        low, high = widest(row)
        lines.append(
            f"The {word} baseline ({name}; validation R@1 {row['val R@1']:.1f}): {row['delta']:+.2f} points "
            f"[{low:.2f}, {high:.2f}] at λ = {row['λ']:g}, {row['verdict']}."
        )
    return "\n".join(lines)


@styled
def figure(gains: pd.DataFrame, title: str) -> plt.Figure:
    """The gain of each baseline on the test clips against its validation R@1, with its interval over queries (thick)
    and the one over queries and seeds (thin, cut at the frame); large, those of a name; hollow, those that are not
    beyond the noise; at the frame, with its number, one that would leave the others no room. Lines: by least squares,
    and the paper's gain."""
    canvas, axis = plt.subplots(figsize=(PAGE * 0.75, 3.2))
    groups = gains.index.map(lambda name: name if name in PRESETS else f"{name.split(',')[0]} head")
    x, paper = gains["val R@1"], paper_difference(TABLE1.claims[0])
    for group, mark, colour in zip(dict.fromkeys(groups), MARKS, COLOURS):
        part = gains[groups == group]
        for low, high, width in (("delta_low", "delta_high", 2), ("low", "high", 0.5)):
            ends = np.clip([part["delta"] - part[low], part[high] - part["delta"]], 0, None)
            axis.errorbar(part["val R@1"], part["delta"], ends, fmt="none", color=colour, elinewidth=width)
        found, size = part["verdict"].isin(["higher", "lower"]), 7 if group in PRESETS else 4
        for rows, fill in ((part[found], colour), (part[~found], "white")):
            axis.plot(rows["val R@1"], rows["delta"], mark, color=colour, mfc=fill, ms=size)
        axis.plot([], [], mark, color=colour, mfc="white", ms=size, label=group)
    line, rest = np.array([x.min(), x.max()]), without_largest(gains)
    lines = {"least squares, the\nlargest gain left out": ("-", rest), "least squares, all": ("--", gains)}
    for words, (style, part) in lines.items():
        fitted = part["delta"].mean() + part["delta"] @ slope(part["val R@1"]) * (line - part["val R@1"].mean())
        axis.plot(line, fitted, style, color="0.5", lw=1, zorder=0, label=words)
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    axis.axhline(paper, color="0.5", lw=1, ls=":", zorder=0, label="the paper's gain")
    largest = gains.loc[gains["delta"].idxmax()]
    low, high = min(rest["delta_low"].min(), 0), max(rest["delta_high"].max(), paper)
    if largest["delta_high"] < 2 * high:
        high = max(high, largest["delta_high"])
    top = high + 0.08 * (high - low)
    axis.set_ylim(low - 0.08 * (high - low), top)
    if largest["delta"] > top:
        axis.plot(largest["val R@1"], top, "^", color="0.3", ms=5, clip_on=False)
        axis.annotate(signed(largest["delta"]), (largest["val R@1"], top), (6, 0), textcoords="offset points")
    for width, over in ((2, "queries"), (0.5, "queries and seeds,\ncut at the frame")):
        axis.plot([], [], color="0.3", lw=width, label=f"95 %, {over}")
    for fill, words in (("0.3", "filled: resolved"), ("white", "hollow: not resolved")):
        axis.plot([], [], "o", color="0.3", mfc=fill, ms=4, label=words)
    axis.set(
        xlabel="R@1 of no captioning on the validation clips (%)",
        ylabel="Δ R@1 of cross vs none (points),\nat the λ best on validation",
    )
    heading(canvas, title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return canvas
