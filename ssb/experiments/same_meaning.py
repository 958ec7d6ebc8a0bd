"""Do clips of the same meaning come closer? Semantic recall and similarity by kind of pair, for the runs of a table."""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.corpora.load import load_corpus
from ssb.experiments.objectives import TABLE1
from ssb.figures import COLOURS, PAGE, styled
from ssb.metrics import retrieval
from ssb.metrics.meaning import auc, pairs, same, semantic_ranks
from ssb.paper import Claim
from ssb.training.runs import Run

CLAIMS = [Claim("cross finds clips of the same meaning better than no captioning", "cross", "none")]


@styled
def densities(frame: pd.DataFrame, title: str):
    """How similar a caption is to its own clip, to others of the same meaning and to the rest, a panel for each
    setting. frame: setting, kind, similarity, density."""
    settings = list(frame["setting"].unique())
    lines = -(-len(settings) // 3)
    size = (PAGE, 1.4 * lines + 0.7)
    figure, axes = plt.subplots(lines, 3, figsize=size, sharey=True, sharex=True, squeeze=False)
    for axis in axes.flat[len(settings) :]:
        axis.axis("off")
    for axis, setting in zip(axes.flat, settings):
        for k, (kind, rows) in enumerate(frame[frame["setting"] == setting].groupby("kind", sort=False)):
            style = dict(color=COLOURS[k], ls=("-", "--", ":")[k])
            axis.plot(rows["similarity"], rows["density"], label=kind if axis is axes[0, 0] else None, **style)
            axis.fill_between(rows["similarity"], rows["density"], color=COLOURS[k], alpha=0.12, lw=0)
        axis.set(title=setting, ylim=(0, None))
    for axis in axes[-1]:
        axis.set_xlabel("similarity s")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


BINS = 60


class Table(NamedTuple):
    """What `table` gives. rows: one for each run. ranks: setting → semantic ranks (seeds, Q), to be bootstrapped over
    clips. histogram: density of the cosines of each kind of pairs, columns setting, kind, similarity (the middle of a
    bin) and density, the mean over seeds; a kind without pairs is left out."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]
    histogram: pd.DataFrame


def measure(run: Run, fits: np.ndarray | None = None, corpus: Corpus | None = None) -> dict[str, float]:
    """How a finished run treats clips of the same meaning, on the test clips:

    semantic R@1 ... MdR       of `semantic_ranks`
    own, same meaning, other   mean cosine of each kind of pairs
    gap                        "same meaning" less "other", in deviations of "other"
    AUC                        see `auc`
    false negatives            other clips that a caption is true of in a batch of the run's size, expected number for
                               one caption, from their share among the test clips

    fits: `same(corpus)`, made where it is not given. NaN for what needs pairs that there are none of.
    """
    corpus = corpus or load_corpus(run.config.corpus, **run.config.corpus_options)
    return _measured(run, same(corpus) if fits is None else fits, corpus)[0]


def table(runs: Mapping[str, list[Run]], corpus: Corpus, fits: np.ndarray | None = None) -> Table:
    """`measure` of every run, setting → its runs, with the ranks and histograms behind it. Each run is read once."""
    fits = same(corpus) if fits is None else fits
    rows, ranks, parts, seen = [], {}, [], {}
    for setting, members in runs.items():
        for run in members:
            seen[run.folder] = seen.get(run.folder) or _measured(run, fits, corpus)
        found = [seen[run.folder] for run in members]
        ranks[setting] = np.stack([each[1] for each in found])
        for run, (row, _, _) in zip(members, found):
            plain = {"R@1": run.metrics["t2v R@1"]}
            rows.append({"setting": setting, "seed": run.config.seed, **plain, **row, "run": run.name})
        for kind in found[0][2]:
            density = np.mean([each[2][kind] for each in found], axis=0)
            middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
            columns = {"setting": setting, "kind": kind, "similarity": middles, "density": density}
            parts.append(pd.DataFrame(columns))
    return Table(pd.DataFrame(rows), ranks, pd.concat(parts, ignore_index=True))


def _measured(run: Run, fits: np.ndarray, corpus: Corpus) -> tuple[dict[str, float], np.ndarray, dict]:
    """The row, the semantic ranks (Q,) and the densities of a run."""
    model, data = run.load(corpus)
    data.check_plain()
    text, video, clip_of = data.embed(model, "test")
    ranks, kinds = semantic_ranks(text, video, fits), pairs(text, video, clip_of, fits)
    row = {f"semantic {name}": x for name, x in retrieval.metrics(ranks).items() if name != "MnR"}
    row |= {kind: float(values.mean()) if len(values) else np.nan for kind, values in kinds.items()}
    spread = kinds["other"].std() if len(kinds["other"]) else 0
    row["gap"] = (row["same meaning"] - row["other"]) / spread if spread > 0 else np.nan
    row["AUC"] = auc(text, video, clip_of, fits)
    share = len(kinds["same meaning"]) / (fits.size - len(fits)) if fits.shape[1] > 1 else 0.0
    row["false negatives"] = share * (min(run.config.batch, len(data.train)) - 1)
    densities = {  # a cosine may be above 1 by a rounding
        kind: np.histogram(values.clip(-1, 1), BINS, (-1, 1), density=True)[0]
        for kind, values in kinds.items()
        if len(values)
    }
    return row, ranks, densities


def same_meaning(captioning: float) -> dict[str, dict]:
    """The objectives of Table 1 that can move the heads, and `cross` with more captioning than the preset's."""
    objectives = {name: changes for name, changes in TABLE1.items() if name != "identity"}
    more = {f"cross, λ = {c:g}": {"objective": "cross", "captioning": c} for c in (10 * captioning, 100 * captioning)}
    return objectives | more
