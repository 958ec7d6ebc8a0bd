"""Every reading of the paper: the gain of `cross` under a balanced fraction of all combinations of what it leaves open.

The form is that of a multiverse (Steegen et al., Increasing transparency through a multiverse analysis, 2016), shown as
a specification curve (Simonsohn et al., Specification curve analysis, 2020).
"""

import math
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.linalg import null_space

from ssb.corpora.corpus import Corpus
from ssb.corpora.load import CORPORA
from ssb.experiments.ablations import TRANSFORMER_LR
from ssb.experiments.baselines import recorded
from ssb.experiments.when import log_ranks
from ssb.figures import COLOURS, PAGE, RESOLVED, heading, styled
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import DELTA, Difference, holm, paired, settled
from ssb.report import STRESS, Experiment, bracketed, signed
from ssb.study import Study
from ssb.tables.verdicts import Runs, acts, stacked

# setting → its two values, each with its words; the first is the default
CHOICES: dict[str, dict] = {
    "weighted_term": {"captioning": "λ on captioning", "contrast": "λ on the contrastive loss"},
    "over_tokens": {"mean": "mean over tokens", "sum": "sum over tokens"},
    "weights_by": {"cosine": "weights by cosine", "dot product": "weights by dot product"},
    "mixing": {"after": "mixing after the layer", "before": "mixing before the layer"},
    "clip_apart": {False: "clipping together", True: "clipping apart"},
    "pre_encoder_in": {"all": "f in all layers", "first": "f in the first layer"},
    "kernels": {"side by side": "kernels side by side", "in turn": "kernels in turn"},
    "epoch": {"pairs": "epochs of pairs", "clips": "epochs of clips"},
    "lr_schedule": {"decay": "rate × 0.95 an epoch", "cosine": "rate by a cosine"},
    "negatives": {"hardest": "hardest negatives", "scheduled": "scheduled negatives"},
}
FREE = [*CHOICES][:5]  # all of whose combinations are there
# Without captioning these have no effect. A λ before the contrastive loss stands there without captioning too: clipping
# makes a gradient ten times as large another.
OF_CAPTIONING = FREE[1:]
MEAN = "mean"  # of all readings, a row beside those of the choices
# what all readings share: the paper's head on video, smaller and with its own learning rate, its λ and contrastive loss
SHARED = {"video_pooling": "transformer", "pool_layers": 2, "pool_ffn": 256, "text_pooling": "mean"}
SHARED |= {"contrast": "triplet", "captioning": 10.0, "lr": TRANSFORMER_LR}
WIDEST = 256  # d
MULTIVERSE = Experiment(
    "Every reading of the paper",
    baseline="none",
    alt="Specification curve: the gain of cross under each reading, sorted, above a grid of what each reading chooses.",
    shown="choices",
)
TABLES = {"multiverse": MULTIVERSE}


def design() -> dict[int, dict]:
    """Reading → setting → value: all 32 combinations of the first five choices; each of the other five takes its first
    value where the four choices other than its own counterpart have an even number of second values.

    This is a fraction of resolution IV (Box, Hunter & Hunter, Statistics for Experimenters, 2005, chapter 6): each
    value stands in 16 readings, each pair of values of two choices in 8, and no effect of one choice is mixed with one
    of two together. The first reading takes every default; opposite values of the first five choices give the same
    other five.
    """
    readings = {}
    for number, first in enumerate(product((1, -1), repeat=len(FREE)), 1):
        signs = *first, *(math.prod(first) * sign for sign in first)
        readings[number] = {name: [*values][sign < 0] for (name, values), sign in zip(CHOICES.items(), signs)}
    return readings


def lengths(corpus: Corpus, batch: int, steps: int) -> dict[str, dict]:
    """Value of `epoch` → epochs that take about `steps` optimiser steps, in whole passes over the pairs, as many with
    either value to within half an epoch of clips; and as many validations."""
    train = corpus.split("train")
    batch = min(batch, len(train))
    pairs, clips = len(corpus.captions_of(train)) // batch, len(train) // batch
    passes = max(1, round(steps / pairs))
    epochs = round(passes * pairs / clips)
    return {
        "pairs": {"epochs": passes, "validate_every": 1},
        "clips": {"epochs": epochs, "validate_every": round(epochs / passes)},
    }


def setting(reading: int, objective: str) -> str:
    """The name of a reading's runs with or without captioning."""
    return f"{reading:02d} {objective}"


def grid(study: Study, steps: int) -> dict[str, dict]:
    """Every reading without captioning and with `cross`. On a corpus with settings that a search has found (`tuned`),
    the readings change those. steps: as of `lengths`."""
    tuned = study.preset == "laptop" and study.base.corpus in CORPORA
    shared = recorded(study.base.corpus) if tuned else {}
    shared = shared | SHARED | {"dim": min(study.base.dim, WIDEST)}
    of_epoch, cells = lengths(study.corpus, shared.get("batch", study.base.batch), steps), {}
    for reading, chosen in design().items():
        changes = shared | of_epoch[chosen["epoch"]] | chosen
        others = {name: value for name, value in changes.items() if name not in OF_CAPTIONING}
        cells[setting(reading, "none")] = others | {"objective": "none"}
        cells[setting(reading, "cross")] = changes | {"objective": "cross"}
    return cells


def columns(runs: Runs) -> pd.DataFrame:
    """What each run chooses, for `Study.rows`; a choice without effect on it is left out."""
    rows = []
    for reading, chosen in design().items():
        for objective in ("none", "cross"):
            for run in runs.get(name := setting(reading, objective), ()):
                row = {"setting": name, "seed": run.config.seed, "reading": reading, "steps": len(run.trace)}
                used = {k: v for k, v in chosen.items() if objective == "cross" or k not in OF_CAPTIONING}
                rows.append(row | dict.fromkeys(chosen, "") | used)
    return pd.DataFrame(rows)


def gains(study: Study, runs: Runs) -> pd.DataFrame:
    """Each reading of which no run collapsed: its choices; R@1 without captioning, and the gain of `cross` with both
    intervals; the same in mean log rank (percent of a rank, a gain is positive); `Run.ratio` and `Run.share`. Written
    to results/<corpus>/<table>_readings.csv."""
    ranks, logs, rows = stacked(runs), log_ranks(runs), {}
    for reading, chosen in design().items():
        cross, none = (setting(reading, objective) for objective in ("cross", "none"))
        if cross not in runs or none not in runs:
            continue
        clips, hits = runs[none][0].ranks["clip"], [points(ranks[name], "R@1") for name in (cross, none)]
        row = chosen | {"R@1": hits[1].mean()} | paired(*hits, clips)._asdict()
        found = paired(logs[cross], logs[none], clips)._asdict()
        row |= {f"log {name}": found[name] for name in DELTA if name != "noise"}
        row |= {name: np.mean([getattr(run, name) for run in runs[cross]]) for name in ("ratio", "share")}
        rows[reading] = row | {"acts": acts(runs[cross])}
    frame = settled(pd.DataFrame.from_dict(rows, orient="index")).rename_axis("reading").round(3)
    study.write(frame.reset_index(), f"{study.table}_readings.csv")
    return frame


def contrasts(gains: pd.DataFrame) -> pd.DataFrame:
    """Choice → the weights of the readings, by which their gains sum to the effect of its second value: by least
    squares on all choices, which in the whole design is the difference of two means; before them MEAN, by whose weights
    they sum to the mean gain. Choices of which one value is left, since all readings with the other collapsed, are left
    out."""
    codes = {name: np.where(gains[name] == [*values][1], 0.5, -0.5) for name, values in CHOICES.items()}
    codes = {name: code for name, code in codes.items() if len(set(code)) > 1}
    weights = np.linalg.pinv(np.column_stack([np.ones(len(gains)), *codes.values()]))
    return pd.DataFrame(weights, index=pd.Index([MEAN, *codes], name="choice"), columns=gains.index)


def effects(study: Study, runs: Runs, gains: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of `cross` in R@1 over the readings, and by how much the second value of each choice changes it, on
    average over the other choices: its intervals over queries and over readings, p of both by Holm. The noise of
    readings is what the choices, one at a time, leave unexplained of their gains: that of the runs, and the joint
    effects of choices. The same in mean log rank. of none: by how much a choice changes R@1 without captioning; a
    reading cannot lose more than that R@1. Written to results/<corpus>/<table>_choices.csv."""
    weights = contrasts(gains)
    clips, rows = next(iter(runs.values()))[0].ranks["clip"], {name: {} for name in weights.index}
    hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs).items()}
    for kind, values in {"": hits, "log ": log_ranks(runs)}.items():
        names = ([setting(reading, objective) for reading in gains.index] for objective in ("cross", "none"))
        cross, none = (np.stack([values[name].mean(axis=0) for name in each]) for each in names)
        for name, found in _tested(weights, cross - none, clips).items():
            rows[name] |= dict(zip(("from", "to"), CHOICES.get(name, {"from": "", "to": ""}).values()))
            rows[name] |= {f"{kind}{key}": value for key, value in found._asdict().items() if kind + key != "log noise"}
    frame = settled(pd.DataFrame.from_dict(rows, orient="index")).rename_axis("choice")
    frame["of none"] = weights @ [hits[setting(reading, "none")].mean() for reading in gains.index]
    frame = frame.round(3).rename(columns=lambda name: name.replace("seeds_", "readings_"))  # which take their place
    study.write(frame.reset_index(), f"{study.table}_choices.csv")
    return frame


def _tested(weights: pd.DataFrame, gain: np.ndarray, clips: np.ndarray) -> dict[str, Difference]:
    """The sums of the gains of each query (readings, Q) by the weights of `contrasts`, tested over queries and over
    readings by the residuals of least squares. These have as many degrees of freedom as there are readings less
    weights, so that one more row than that, of this mean and this error, stands for the readings."""
    each = weights.to_numpy()
    sums, fitted = each @ gain, np.linalg.pinv(each)
    left = null_space(fitted.T)  # (readings, degrees of freedom): what the weights leave
    free = left.shape[1]
    rest = null_space(np.ones((1, free + 1))) @ (left.T @ gain) if free else np.nan * gain[:1]
    sizes = np.sqrt((free + 1) * (each**2).sum(axis=1))
    rows = zip(weights.index, sums, sizes)
    return {name: paired(total + size * rest, 0 * rest, clips) for name, total, size in rows}


def cells(gains: pd.DataFrame) -> pd.DataFrame:
    """The gains by what decides the size of the captioning term, where λ stands and whether it is a mean or a sum over
    tokens: how many readings there are, how many gain, the mean, least and greatest gain, and from where to where its
    ratio to the contrastive term goes. First are those whose median ratio is nearest to 1, the paper's similar
    magnitudes. The ratio of a single reading would not do: captioning that ruins a run leaves it a large contrastive
    term."""
    frame = gains.groupby(["weighted_term", "over_tokens"], sort=False).agg(
        readings=("delta", "size"),
        gain=("delta", lambda delta: (delta > 0).sum()),
        mean=("delta", "mean"),
        least=("delta", "min"),
        most=("delta", "max"),
        low=("ratio", "min"),
        high=("ratio", "max"),
        median=("ratio", "median"),
    )
    return frame.loc[frame["median"].map(lambda ratio: abs(np.log(ratio))).sort_values(kind="stable").index]


def alike(gains: pd.DataFrame) -> str:
    """In words, the gains in the first of `cells`, how much of the gradient captioning had there, what is `tied`, and
    how large captioning was in the others, of which those with a ratio of STRESS or more are stress tests; "" where
    there are no others."""
    table = cells(gains)
    first, others = table.iloc[0], gains[~similar(gains)]
    if others.empty:
        return ""
    times, (term, tokens) = f"{first['low']:.3g} to {first['high']:.3g} times", first.name
    chosen = f"{CHOICES['weighted_term'][term]} and a {CHOICES['over_tokens'][tokens]}"
    by = f"{signed(first['mean'])} on average, from {signed(first['least'])} to {signed(first['most'])}"
    return (
        f"of the {first['readings']:.0f} with {chosen}, the nearest to the paper's similar magnitudes (captioning was "
        f"{times} the contrastive term), {first['gain']:.0f} gain, by {by}{shares(gains)}{tied(gains)}; in the others "
        f"it was {others['ratio'].min():.3g} to {others['ratio'].max():.3g} times, in "
        f"{(others['ratio'] >= STRESS).sum()} of {len(others)} at least {STRESS} times, a stress test"
    )


def similar(gains: pd.DataFrame) -> np.ndarray:
    """Which readings are of the first of `cells`."""
    return pd.MultiIndex.from_frame(gains[["weighted_term", "over_tokens"]]) == cells(gains).index[0]


def shares(gains: pd.DataFrame) -> str:
    """In words, of all `similar` readings by the similarity that makes the weights: captioning's share of the gradient
    of the heads, and how many gain."""
    parts = []
    for by, part in gains[similar(gains)].groupby("weights_by", sort=False):
        share = 100 * part["share"]
        parts.append(
            f"{share.min():.2g} to {share.max():.2g} % of the gradient with {CHOICES['weights_by'][by]} "
            f"({(part['delta'] > 0).sum()} of {len(part)} gain)"
        )
    return f"; captioning had {' and '.join(parts)}"


def tied(gains: pd.DataFrame) -> str:
    """In words, how f and the kernels of the head go together in all `similar` readings, with R@1 without captioning;
    "" where they do not. In the design their joint effect is that of the two choices that make readings similar."""
    pairs = gains[similar(gains)].groupby(["pre_encoder_in", "kernels"], sort=False)["R@1"].mean()
    if len(pairs) != 2:
        return ""
    each = (
        f"{CHOICES['pre_encoder_in'][f]} and {CHOICES['kernels'][kernels]} (R@1 of none {base:.0f})"
        for (f, kernels), base in pairs.items()
    )
    return f"; each of them has {' or '.join(each)}, never the other two combinations"


def reading(gains: pd.DataFrame, effects: pd.DataFrame) -> str:
    """In words: how many readings gain, which choices matter, and how large the captioning term is where λ stands."""
    count, every, up, down = len(gains), len(design()), gains["delta"] > 0, gains["delta"] < 0
    lines = [f"{every - count} of {every} readings are left out: a run collapsed."] if count < every else []
    lines.append(f"{up.sum()} of {count} readings ({up.mean():.0%}) gain from cross, {down.sum()} lose.")
    for kind, low, high in (("queries", "delta_low", "delta_high"), ("seeds", "seeds_low", "seeds_high")):
        more, less = (gains[low] > 0).sum(), (gains[high] < 0).sum()
        lines.append(f"The interval over {kind} excludes 0 in {more} of the gains and {less} of the losses.")
    more, less = ((gains["verdict"] == verdict).sum() for verdict in ("higher", "lower"))
    lines.append(f"Beyond the noise of both, by Holm over the readings: {more} higher, {less} lower.")
    middle, least, most = gains["delta"].median(), gains["delta"].min(), gains["delta"].max()
    lines.append(f"The median gain is {middle:+.2f} points of R@1, from {least:+.2f} to {most:+.2f}.")
    row = effects.loc[MEAN]
    lines.append(
        f"The mean gain is {row['delta']:+.2f} points {bracketed(row['delta_low'], row['delta_high'])} over queries, "
        f"{bracketed(row['readings_low'], row['readings_high'])} over readings: {row['verdict']}."
    )
    lines += [f"{words[0].upper()}{words[1:]}."] if (words := alike(gains)) else []
    effects = effects.drop(index=MEAN)
    ordered = effects.reindex(effects["delta"].abs().sort_values(ascending=False).index)
    for row in ordered.rename(columns={"from": "first", "of none": "alone"}).head(3).itertuples():
        lines.append(
            f"From {row.first} to {row.to}: {row.delta:+.2f} points of gain {bracketed(row.delta_low, row.delta_high)} "
            f"over queries, {bracketed(row.readings_low, row.readings_high)} over readings; without captioning "
            f"{row.alone:+.2f} points of R@1."
        )
    resolved, logs = effects["verdict"].isin(RESOLVED), holm(effects["log p"]) < 0.05
    for words, which in (("", resolved), (", in mean log rank, which is not cut off at an R@1 of 0", logs)):
        names = ", ".join(effects.index[which]) or "none"
        lines.append(f"Choices beyond the noise of queries and readings, by Holm{words}: {names}.")
    for (term, tokens), row in cells(gains).iterrows():
        words = f"{CHOICES['weighted_term'][term]}, {CHOICES['over_tokens'][tokens]}"
        times = f"{row['low']:.3g} to {row['high']:.3g} times"
        lines.append(
            f"{words}: {row['gain']:.0f} of {row['readings']:.0f} gain, by {signed(row['mean'])} points on average; "
            f"the captioning term is {times} the contrastive one."
        )
    return "\n".join(lines)


@styled
def figure(gains: pd.DataFrame, effects: pd.DataFrame, title: str) -> plt.Figure:
    """The specification curve: the gain of each reading, sorted, filled where it is beyond the noise, a square where
    captioning is no term of similar magnitude (`cells`); thick, the interval over queries, thin, the one over queries
    and seeds, cut at the frame. Below, what each reading chooses; beside that, by how much the second of two values
    changes the gain, over queries (thick) and over queries and readings (thin)."""
    gains = gains.sort_values("delta", ignore_index=True)
    alike = similar(gains)
    height = 2 * len(CHOICES)
    canvas, axes = plt.subplots(
        2, 2, figsize=(PAGE, 5.6), sharex="col", sharey="row", width_ratios=(3.2, 1), height_ratios=(1, 1.5)
    )
    (curve, empty), (grid, sizes) = axes
    empty.axis("off")
    apart = gains["verdict"].isin(RESOLVED)
    for low, high, width in (("delta_low", "delta_high", 2.4), ("low", "high", 0.6)):
        ends = np.clip([gains["delta"] - gains[low], gains[high] - gains["delta"]], 0, None)
        curve.errorbar(gains.index, gains["delta"], ends, fmt="none", color=COLOURS[0], elinewidth=width)
    for kind, mark, label in ((alike, "o", "similar magnitudes"), (~alike, "s", "captioning larger")):
        for part, fill in ((apart & kind, COLOURS[0]), (~apart & kind, "white")):
            curve.plot(gains.index[part], gains["delta"][part], mark, ms=3.5, color=COLOURS[0], mfc=fill)
        curve.plot([], [], mark, ms=3.5, color=COLOURS[0], mfc="white", label=label)
    for fill, label in ((COLOURS[0], "filled: resolved"), ("white", "hollow: not resolved")):
        curve.plot([], [], "D", ms=3.5, color=COLOURS[0], mfc=fill, label=label)
    reach = 0.08 * (gains["delta_high"].max() - gains["delta_low"].min())
    curve.set_ylim(gains["delta_low"].min() - reach, gains["delta_high"].max() + reach)
    curve.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    curve.set_ylabel("Δ R@1 of cross vs none (points)")
    empty.legend(*curve.get_legend_handles_labels(), loc="upper left", handletextpad=0.2)
    words = "thick: 95 %, queries\nthin: and seeds (cut at the\nframe); below, readings"
    empty.text(0.03, 0.0, words, transform=empty.transAxes)
    for k, (name, values) in enumerate(CHOICES.items()):
        if k % 2:
            for axis in (grid, sizes):
                axis.axhspan(2 * k - 0.5, 2 * k + 1.5, color="0.94", lw=0, zorder=0)
        for y, value in enumerate(values, 2 * k):
            chosen = gains.index[gains[name] == value]
            fills = [COLOURS[0] if each else "white" for each in apart[chosen]]
            grid.scatter(chosen, [y] * len(chosen), s=9, c=fills, edgecolors=COLOURS[0], linewidths=0.8)
        if name in effects.index:
            for ends, width in ((["delta_low", "delta_high"], 2.4), (["low", "high"], 0.6)):
                sizes.plot(effects.loc[name, ends], [2 * k + 0.5] * 2, color="0.3", lw=width)
            fill = "0.3" if effects.loc[name, "verdict"] in RESOLVED else "white"
            sizes.plot(effects.loc[name, "delta"], 2 * k + 0.5, "D", ms=3.5, color="0.3", mfc=fill)
    words = [word for values in CHOICES.values() for word in values.values()]
    grid.set(yticks=range(height), yticklabels=words, ylim=(height - 0.5, -0.5), xlabel="readings, by their gain")
    grid.set_xticks([])
    sizes.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    sizes.set_xlabel("change of the gain by the\nlower choice of two (points)")
    for axis in (grid, sizes):
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    heading(canvas, title)
    return canvas
