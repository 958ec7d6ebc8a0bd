"""The paper's explanation, tested where the truth is known: does captioning gain more, the more false negatives there
are? A sweep of the dial of `shapes`, a grid of runs at each setting of it."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.config import ConfigError
from ssb.corpora import shapes
from ssb.figures import COLOURS, MARKS, PAGE, styled
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import DELTA, combined, settled
from ssb.study import Study, stacked

SWEEP = {
    "none": {"objective": "none"},
    "cross": {"objective": "cross"},
    "cross, λ = 1": {"objective": "cross", "captioning": 1.0},
}


class Sweep:
    """The same grid at several rates of false negatives.

    dials: `false_negatives` of the corpus `shapes`, shares of the pairs of a caption and another clip. The clips, their
    features and their split are the same at each; what the captions leave out is not. The other arguments are those of
    `Study`.
    """

    def __init__(self, table: str, dials: Iterable[float], changes: Mapping = MappingProxyType({}), **arguments):
        self.studies = {}
        for dial in sorted(dials):
            options = {**changes.get("corpus_options", {}), "false_negatives": dial}
            if dial == shapes.FALSE_NEGATIVES:
                del options["false_negatives"]  # the corpus of the other tables, whose runs are shared
            self.studies[dial] = Study(table, changes={**changes, "corpus_options": options}, **arguments)
        if not self.studies:
            raise ConfigError("dials = []: wanted one or more rates of false negatives, such as [0.005, 0.05]")
        self.first = next(iter(self.studies.values()))
        self.where = ", ".join([self.first.corpus.name, f"{self.first.preset} preset"])

    def run(self, grid: Mapping[str, Mapping] = MappingProxyType(SWEEP)) -> dict:
        """dial → setting → runs, one for each seed."""
        return {dial: study.run(grid) for dial, study in self.studies.items()}

    def rows(self, runs: Mapping) -> pd.DataFrame:
        """As `Study.rows`, with the dial; written to results/<corpus>/<table>.csv."""
        frames = [study.frame(runs[dial]) for dial, study in self.studies.items()]
        frame = pd.concat([f.assign(false_negatives=dial) for dial, f in zip(self.studies, frames)], ignore_index=True)
        self.first.write(frame, f"{self.first.table}.csv")
        return frame

    def summary(self, runs: Mapping, baseline: str = "none") -> pd.DataFrame:
        """One row for each dial and setting, written to <table>_summary.csv: the measured share of false negatives
        among the training clips, how many a caption has in a batch, R@1, and the difference to the baseline as in
        `Study.summary` (Holm over the whole sweep)."""
        rows = []
        for dial, study in self.studies.items():
            share = study.corpus.false_negative_rate("train")
            near = {"dial": dial, "share": share, "per batch": share * (study.base.batch - 1)}
            own = study.compare(runs[dial], baseline)
            rows += [near | {"setting": setting} | row.to_dict() for setting, row in own.iterrows()]
        frame = pd.DataFrame(rows)
        frame = settled(frame).round(5)
        self.first.write(frame, f"{self.first.table}_summary.csv")
        return frame

    def trend(self, runs: Mapping, summary: pd.DataFrame, baseline: str = "none") -> pd.DataFrame:
        """How much the gain over the baseline grows for every tenfold of false negatives, in points of R@1; one row for
        each setting. The paper's explanation wants it positive; `claims` judges it.

        delta: the slope by least squares over the dials; its interval over queries resamples clips, the same at all
        dials, which have the same clips; the one over seeds is Student's t over the slopes of the single seeds.
        """
        near = summary.drop_duplicates("dial").set_index("dial")["per batch"]
        x = np.log10(near.to_numpy())
        if len(x) < 2:
            raise ConfigError(f"dials = {list(self.studies)}: a trend needs at least 2")
        slope = (x - x.mean()) / ((x - x.mean()) ** 2).sum()  # weights of the dials in it
        rows = {}
        for setting in summary.loc[summary["delta"].notna(), "setting"].unique():
            pairs = []
            for weight, dial in zip(slope, near.index):
                ranks = stacked({name: runs[dial][name] for name in (setting, baseline)}, "t2v").values()
                pairs.append((weight, *(points(r, "R@1") for r in ranks), runs[dial][setting][0].ranks["clip"]))
            rows[setting] = combined(pairs)._asdict()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")

    def claims(self, trend: pd.DataFrame) -> pd.DataFrame:
        """The trends as claims, written to <table>_claims.csv: points of gain for every tenfold of false negatives."""
        says = "the more false negatives, the more captioning gains (points for every tenfold)"
        seeds = len(self.first.seeds)
        rows = [
            {"claim": f"{says}: {setting}", "setting": setting, "baseline": "none", "seeds": seeds, "paper": np.nan}
            | row[[*DELTA]].to_dict()
            for setting, row in trend.iterrows()
        ]
        return self.first.judged(rows)


@styled
def gains(summary: pd.DataFrame, title: str, metric: str = "R@1"):
    """The gain over no captioning against the number of false negatives; thick bars are 95 % over queries, thin ones
    over seeds. summary: of `mechanism.sweep`."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.65, 2.7))
    settings = list(summary.loc[summary["delta"].notna(), "setting"].unique())
    for k, setting in enumerate(settings):
        rows = summary[summary["setting"] == setting]
        x = rows["per batch"] * 1.06 ** (k - (len(settings) - 1) / 2)  # side by side on a logarithmic axis
        for low, high, width in (("delta_low", "delta_high", 2.2), ("seeds_low", "seeds_high", 0.8)):
            error = np.array([rows["delta"] - rows[low], rows[high] - rows["delta"]]).clip(min=0)
            axis.errorbar(x, rows["delta"], yerr=error, fmt="none", color=COLOURS[k], elinewidth=width)
        axis.plot(x, rows["delta"], marker=MARKS[k], ms=4, lw=1, color=COLOURS[k], label=setting)
    axis.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    axis.set_xscale("log")
    ticks = sorted(summary["per batch"].unique())
    axis.set(xticks=ticks, xticklabels=[f"{t:.2g}" for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel="false negatives of a caption in a batch (expected number)")
    axis.set(ylabel=f"{metric} less none (points)", title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure
