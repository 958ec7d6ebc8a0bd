"""Do clips of the same meaning come closer? Semantic recall and similarity by kind of pair, for the runs of a table."""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.experiments import objectives
from ssb.figures import COLOURS, PAGE, heading, legend, styled
from ssb.metrics import retrieval
from ssb.metrics.meaning import auc, pairs, same, semantic_ranks
from ssb.paper import Claim
from ssb.progress import track
from ssb.report import Experiment
from ssb.training.runs import Run

BINS = 60


def grid(captioning: float) -> dict[str, dict]:
    """The objectives of Table 1 that train the heads, and `cross` with 10 and 100 times the preset's λ (captioning)."""
    trained = {name: changes for name, changes in objectives.GRID.items() if name != "identity"}
    more = {f"cross, λ = {c:g}": {"objective": "cross", "captioning": c} for c in (10 * captioning, 100 * captioning)}
    return trained | more


EXPERIMENT = Experiment(
    "Semantic recall",
    grid=lambda study: grid(study.base.captioning),
    baseline="none",
    claims=(Claim("cross finds clips of the same meaning better than no captioning", "cross", "none"),),
)
TABLES = {"same_meaning": EXPERIMENT}


class Table(NamedTuple):
    """The result of `table`. rows: one for each run. ranks: setting → semantic ranks (seeds, Q). histogram: density of
    the cosines of each kind of pairs, the mean over seeds; columns setting, kind, similarity (the centre of a bin) and
    density; no rows for a kind without pairs."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]
    histogram: pd.DataFrame


def measure(run: Run, corpus: Corpus, fits: np.ndarray) -> tuple[dict[str, float], np.ndarray, dict[str, np.ndarray]]:
    """A finished run on test clips of the same meaning; fits: (Q, C) bool, of `ssb.metrics.meaning.same(corpus)`.
    Returns the semantic ranks (Q,), the density of the cosines of each kind of pairs in BINS bins from -1 to 1, and
    before them these metrics, NaN where the pairs they need do not exist:

    semantic R@1 ... MdR       of `semantic_ranks`
    own, same meaning, other   mean cosine of each kind of pairs
    gap                        "same meaning" minus "other", in standard deviations of "other"
    AUC                        see `auc`
    false negatives            expected number of other clips in a batch of which a caption is true: the batch size of
                               the run times the share of such clips among the other test clips
    """
    model, data = run.load(corpus)
    data.check_cosine()
    text, video, clip_of = data.embed(model, "test")
    ranks, kinds = semantic_ranks(text, video, fits), pairs(text, video, clip_of, fits)
    row = {f"semantic {name}": x for name, x in retrieval.metrics(ranks).items() if name != "MnR"}
    row |= {kind: float(cosines.mean()) if len(cosines) else np.nan for kind, cosines in kinds.items()}
    deviation = kinds["other"].std() if len(kinds["other"]) else 0
    row["gap"] = (row["same meaning"] - row["other"]) / deviation if deviation > 0 else np.nan
    row["AUC"] = auc(text, video, clip_of, fits)
    rate = len(kinds["same meaning"]) / (fits.size - len(fits)) if fits.shape[1] > 1 else 0.0
    row["false negatives"] = rate * (min(run.config.batch, len(data.train)) - 1)
    clipped = {kind: cosines.clip(-1, 1) for kind, cosines in kinds.items() if len(cosines)}  # of a rounding above 1
    return row, ranks, {kind: np.histogram(x, BINS, (-1, 1), density=True)[0] for kind, x in clipped.items()}


def table(runs: Mapping[str, list[Run]], corpus: Corpus, fits: np.ndarray | None = None) -> Table:
    """`measure` of every run, each loaded once. runs: setting → its runs. fits: None: `same(corpus)`."""
    fits = same(corpus) if fits is None else fits
    each = {run.name: run for members in runs.values() for run in members}
    measured = {name: measure(each[name], corpus, fits) for name in track(each, "comparing captions with clips")}
    rows, ranks, parts = [], {}, []
    for setting, members in runs.items():
        metrics, semantic, densities = zip(*(measured[run.name] for run in members))
        ranks[setting] = np.stack(semantic)
        for run, row in zip(members, metrics):
            recall = {"R@1": run.metrics["t2v R@1"]}
            rows.append({"setting": setting, "seed": run.config.seed, **recall, **row, "run": run.name})
        for kind in densities[0]:
            density = np.mean([density[kind] for density in densities], axis=0)
            centres = (np.arange(BINS) + 0.5) * 2 / BINS - 1
            columns = {"setting": setting, "kind": kind, "similarity": centres, "density": density}
            parts.append(pd.DataFrame(columns))
    return Table(pd.DataFrame(rows), ranks, pd.concat(parts, ignore_index=True))


@styled
def densities(histogram: pd.DataFrame, title: str):
    """The similarity of a caption to its own clip, to others of the same meaning and to the rest, a panel for each
    setting. histogram: of `table`."""
    settings = list(histogram["setting"].unique())
    lines = -(-len(settings) // 3)
    size = (PAGE, 1.4 * lines + 0.7)
    figure, axes = plt.subplots(lines, 3, figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis in axes.flat[len(settings) :]:
        axis.axis("off")
    for axis, setting in zip(axes.flat, settings):
        for k, (kind, rows) in enumerate(histogram[histogram["setting"] == setting].groupby("kind", sort=False)):
            axis.plot(rows["similarity"], rows["density"], color=COLOURS[k], ls=("-", "--", ":")[k], label=kind)
            axis.fill_between(rows["similarity"], rows["density"], color=COLOURS[k], alpha=0.12, lw=0)
        axis.set(title=setting, xlabel="similarity s", ylabel="density")
        axis.label_outer()
    axes[0, 0].set_ylim(0, None)  # of all panels; after the curves, since it ends autoscaling
    heading(figure, title)
    legend(figure, columns=3)
    return figure
