"""When does captioning gain: with how many training clips, in which batch, for which queries?"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.figures import COLOURS, MARKS, PAGE, RESOLVED, gain_curve, heading, legend, styled
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined, over_both, paired, settled, slope
from ssb.report import Experiment, bracketed, widest
from ssb.study import Study
from ssb.tables.verdicts import Runs, stacked

PARTS = (12, 6, 3, 1.5, 1)  # of the training clips: a twelfth to all of them
BATCHES = (16, 32, 128, 256)  # and that of the preset
OTHERS = {"0": (0, 0), "1-2": (1, 2), "3-9": (3, 9), "10 or more": (10, 10**9)}  # other clips a query is true of
WHEN = Experiment(
    "When captioning gains",
    baseline="none",
    alt="Gain of cross in mean log rank against training clips, against the batch and by false negatives of a query.",
    shown="gains",
)
TABLES = {"when": WHEN}
CLIPS = "training clips"  # the curve over them
MORE = {CLIPS: CLIPS, "batch": "clips in a batch"}  # a curve → what it counts
SCALE = -100.0  # of the logarithm of a rank: gains are positive, in percent of a rank
UNIT = {"acts": None}  # of rows: in percent of a rank, so that nothing is called equivalent
TRUE_OF = "other clips that a query is true of"  # released beside the ranks
MANY = "cross gains more for queries that are true of other clips too (percent of a rank)"


def variants(study: Study) -> dict[str, tuple[str, int, dict]]:
    """Name → what varies, its value, and what it changes in the preset. The first is the preset itself. Fewer clips are
    trained on for more epochs, so that all take equally many steps and validations; the best is kept. Other batches
    take equally many epochs."""
    clips, base = len(study.corpus.split("train")), study.base
    batch, cells = base.batch, {"all": ("", clips, {})}
    for n in sorted({max(batch, round(clips / part)) for part in PARTS}):
        if n < clips:
            longer = {name: round(getattr(base, name) * clips / n) for name in ("epochs", "validate_every")}
            cells[f"{n} clips"] = CLIPS, n, {"train_clips": n} | longer
    sizes = [n for n in BATCHES if n != batch and n <= clips]
    return cells | {f"batch {n}": ("batch", n, {"batch": n}) for n in sizes}


def grid(study: Study) -> dict[str, dict]:
    """Every variant without captioning and with `cross`."""
    cells = {}
    for name, (_, _, changes) in variants(study).items():
        cells |= {f"{objective}, {name}": changes | {"objective": objective} for objective in ("none", "cross")}
    return cells


def log_ranks(runs: Runs) -> dict[str, np.ndarray]:
    """Setting → SCALE · ln(rank) of each test query, (seeds, Q), which uses every query."""
    return {name: SCALE * np.log(ranks) for name, ranks in stacked(runs).items()}


def gains(study: Study, runs: Runs) -> pd.DataFrame:
    """Each variant: the gain of `cross` over no captioning in mean log rank, and in R@1 with its interval over queries
    and seeds. Written to results/<corpus>/<table>_gains.csv. The preset itself stands in both curves, and counts as one
    test."""
    values, clips, found, places = log_ranks(runs), runs["none, all"][0].ranks["clip"], {}, []
    hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs).items()}
    for name, (kind, size, _) in variants(study).items():
        cross, none = f"cross, {name}", f"none, {name}"
        if not {cross, none} <= values.keys():
            continue  # a run collapsed
        curves = [(kind, size)] if kind else [(CLIPS, size), ("batch", study.base.batch)]
        places += [{"variant": name, "kind": curve, "size": x} for curve, x in curves]
        row = {"none": values[none].mean() / SCALE, "R@1": hits[none].mean()}
        row |= zip(("R@1 delta", "R@1 low", "R@1 high"), over_both(hits[cross] - hits[none], clips))
        found[name] = row | paired(values[cross], values[none], clips)._asdict() | UNIT
    gains = settled(pd.DataFrame.from_dict(found, orient="index"))
    frame = pd.DataFrame(places).join(gains, on="variant").sort_values(["kind", "size"], ignore_index=True).round(3)
    study.write(frame, f"{study.table}_gains.csv")
    return frame


def claimed(runs: Runs, gains: pd.DataFrame, others: np.ndarray) -> list[dict]:
    """By how much the gain in log rank grows with each doubling of the training clips and of the batch, by least
    squares, and by how much that of queries that are true of other clips too exceeds that of the rest, as rows of
    claims. gains: of `gains`, at least variant, kind and size. others: as in `by_query`."""
    values, clips, rows = log_ranks(runs), runs["none, all"][0].ranks["clip"], []
    same = {"seeds": len(values["none, all"]), "paper": np.nan}
    for kind, part in gains.groupby("kind", sort=False):
        names = [(f"cross, {name}", f"none, {name}") for name in part["variant"]]
        weights = slope(np.log2(part["size"]))
        pairs = [(weight, values[cross], values[none], clips) for weight, (cross, none) in zip(weights, names)]
        more = f"more {MORE[kind]}"
        row = {"claim": f"cross gains more with {more} (percent of a rank for every doubling)"}
        row |= {"setting": f"gain with {more}", "baseline": "with fewer"} | same
        rows.append(row | combined(pairs)._asdict() | UNIT)
    many = others > 0
    if many.any() and not many.all():
        row = {"claim": MANY, "setting": "gain for such queries", "baseline": "for the others"} | same
        weights = np.where(many, 1 / many.sum(), -1 / (~many).sum()) * len(many)
        found = paired(values["cross, all"] * weights, values["none, all"] * weights, clips)
        rows.append(row | found._asdict() | UNIT)
    return rows


def by_query(study: Study, runs: Runs, others: np.ndarray) -> pd.DataFrame:
    """The gain of `cross` in mean log rank by how many other test clips the query is true of. others: (Q,) how many, as
    far as is known. Written to results/<corpus>/<table>_queries.csv."""
    values, clips, rows = log_ranks(runs), runs["none, all"][0].ranks["clip"], []
    for label, (low, high) in OTHERS.items():
        chosen = (others >= low) & (others <= high)
        if len(np.unique(clips[chosen])) > 1:
            found = paired(values["cross, all"][:, chosen], values["none, all"][:, chosen], clips[chosen])
            row = {"others": label, "queries": int(chosen.sum())} | found._asdict()
            rows.append(row | UNIT)
    frame = settled(pd.DataFrame(rows)).round(3)
    study.write(frame, f"{study.table}_queries.csv")
    return frame


def reading(gains: pd.DataFrame, claims: pd.DataFrame) -> str:
    """The gains in words, a line for each curve, of its ends and what is resolved between them, and one for the
    queries. claims: of `claimed`, judged."""
    lines = []
    for kind, part in gains.groupby("kind", sort=False):
        told = part["verdict"].isin(RESOLVED)
        told.iloc[[0, -1]] = True
        ends = [
            f"{row.delta:+.1f} % {bracketed(*widest(row))} ({row.verdict}) at {row['size']:g}, where "
            f"R@1 without captioning is {row['R@1']:.1f}"
            for _, row in part[told].iterrows()
        ]
        lines.append(f"Gain of cross in log rank against {kind}: {' and '.join(ends)}.")
    verbs = {"held": "gain more", "contradicted": "gain less"}
    for row in claims[claims["claim"] == MANY].itertuples():
        verb = verbs.get(row.verdict, "do not differ in their gain beyond the noise of queries and seeds")
        words = f"{row.delta:+.1f} % {bracketed(*widest(row))}"
        lines.append(f"Queries that are true of other clips too {verb}: {words}.")
    return "\n".join(lines)


@styled
def figure(gains: pd.DataFrame, queries: pd.DataFrame, title: str) -> plt.Figure:
    """The gain against the training clips, against the batch, and by how many other clips a query is true of; bars:
    95 % over queries, thin ones over queries and seeds."""
    canvas, axes = plt.subplots(1, 3, figsize=(PAGE, 2.6), sharey=True)
    for axis, (kind, part), mark, colour in zip(axes, gains.groupby("kind", sort=False), MARKS, COLOURS):
        gain_curve(axis, part["size"], part, mark, colour)
        ticks = part["size"].tolist()
        axis.set(xscale="log", xlabel=kind, xticks=ticks, xticklabels=[f"{n:g}" for n in ticks])
        axis.minorticks_off()
        axis.tick_params(axis="x", labelrotation=45)
    gain_curve(axes[2], np.arange(len(queries)), queries, MARKS[2], COLOURS[2])
    axes[2].set(xticks=range(len(queries)), xticklabels=queries["others"], xlabel="other clips a query is true of")
    for axis in axes:
        axis.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    axes[0].set_ylabel("gain of cross in log rank (%)")
    heading(canvas, title)
    legend(canvas, columns=2)
    return canvas
