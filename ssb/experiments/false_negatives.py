"""The paper's explanation, tested where the truth is known: does captioning gain more, the more false negatives there
are? Grids of runs on `shapes` at several rates of false negatives."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import files
from ssb.config import ConfigError
from ssb.corpora import shapes
from ssb.corpora.reading import listed
from ssb.figures import COLOURS, MARKS, PAGE, gain_curve, legend, styled
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined, settled, slope
from ssb.report import Experiment
from ssb.study import Study
from ssb.tables.verdicts import Runs, stacked
from ssb.training.runs import Run

SWEEP = {
    "none": {"objective": "none"},
    "cross": {"objective": "cross"},
    "cross, λ = 1": {"objective": "cross", "captioning": 1.0},
}
TABLES = {"false_negatives": Experiment("Gain per tenfold of false negatives", grid=lambda study: SWEEP)}
CLAIM = "the more false negatives, the more captioning gains (points for every tenfold)"


class Sweep:
    """The same grid at several rates of false negatives.

    rates: values of `false_negatives` of the corpus `shapes`: the share of false negatives among the pairs of a caption
    and another clip. The clips, their features and their split are the same at each; the detail of the captions
    differs. The other arguments are those of `Study`. ConfigError without a rate.
    """

    def __init__(self, table: str, rates: Iterable[float], changes: Mapping = MappingProxyType({}), **arguments):
        self.studies = {}
        for rate in sorted(rates):
            options = {**changes.get("corpus_options", {}), "false_negatives": rate}
            if rate == shapes.FALSE_NEGATIVES:
                del options["false_negatives"]  # the corpus of the other tables, whose runs are shared
            self.studies[rate] = Study(table, changes={**changes, "corpus_options": options}, **arguments)
            self.studies[rate].part = {"false_negatives": rate}
        if not self.studies:
            raise ConfigError("rates = []: wanted one or more rates of false negatives, such as [0.005, 0.05]")
        self.first = next(iter(self.studies.values()))
        self.subtitle = f"{self.first.corpus.name}, {self.first.preset} preset"

    def grid(self) -> pd.DataFrame:
        """What each setting changes, the same at every rate, as `Study.grid` shows it."""
        return self.first.grid(SWEEP)

    def run(self) -> dict[float, dict[str, list[Run]]]:
        """Train the grid SWEEP at every rate: rate → setting → runs, one for each seed. ConfigError, before anything is
        trained, where the published table would lose or change rows."""
        path = self.first.results / f"{self.first.table}.csv"
        if path.exists() and self.first.preset != "smoke":
            if lost := sorted(set(pd.read_csv(path).get("false_negatives", [])) - self.studies.keys()):
                raise ConfigError(
                    f"{files.short(path)} has the rates {listed(lost)} too; give them, or another name for this table, "
                    f"such as -p table {self.first.table}_2"
                )
        for study in self.studies.values():
            study.protect(study.planned(SWEEP))
        return {rate: study.run(SWEEP) for rate, study in self.studies.items()}

    def rows(self, runs: Mapping) -> pd.DataFrame:
        """As `Study.rows`, with the rate of false negatives; written to results/<corpus>/<table>.csv."""
        frames = [study.frame(runs[rate]).assign(false_negatives=rate) for rate, study in self.studies.items()]
        frame = pd.concat(frames, ignore_index=True)
        self.first.write(frame, f"{self.first.table}.csv")
        self.first.release(runs.values())
        return frame

    def summary(self, runs: Mapping) -> pd.DataFrame:
        """One row for each rate (column `rate`) and setting, written to <table>_summary.csv: the measured share of
        false negatives among the training clips, their expected number in a batch for one caption, R@1, and the
        difference to no captioning as in `Study.summary` (Holm over the whole sweep)."""
        rows = []
        for rate, study in self.studies.items():
            measured = study.corpus.false_negative_rate("train")
            corpus = {"rate": rate, "share": measured, "per batch": measured * (study.base.batch - 1)}
            compared = study.compare(runs[rate], "none")
            rows += [corpus | {"setting": setting} | row.to_dict() for setting, row in compared.iterrows()]
        frame = settled(pd.DataFrame(rows)).round(5)
        self.first.write(frame, f"{self.first.table}_summary.csv")
        return frame

    def trend(self, runs: Mapping, summary: pd.DataFrame) -> pd.DataFrame:
        """How much the gain over no captioning grows for every tenfold of false negatives, in points of R@1; one row
        for each setting. The paper's explanation predicts a positive number; `claims` tests it.

        delta: the slope by least squares over the rates; its interval over queries resamples clips, the same at all
        rates, which share their clips; the one over seeds is Student's t over the slopes of the single seeds.
        ConfigError for a single rate.
        """
        return slopes(runs, summary)

    def claims(self, trend: pd.DataFrame) -> pd.DataFrame:
        """The trends as claims, written to <table>_claims.csv: points of gain for every tenfold of false negatives."""
        return self.first.judged(claimed_trends(trend, len(self.first.seeds)))


def slopes(runs: Mapping[float, Runs], summary: pd.DataFrame) -> pd.DataFrame:
    """`Sweep.trend`: rate → setting → its runs, and the summary → a row for each setting."""
    x = np.log10(summary.drop_duplicates("rate")["per batch"].to_numpy())
    if len(x) < 2:
        raise ConfigError(f"rates = {list(runs)}: a trend needs at least 2")
    pairs = {}
    for weight, rate in zip(slope(x), runs):
        hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs[rate], "t2v").items()}
        base, clips = hits.pop("none"), runs[rate]["none"][0].ranks["clip"]
        for setting, values in hits.items():
            pairs.setdefault(setting, []).append((weight, values, base, clips))
    unit = {"acts": None}  # no points, but points for every tenfold
    rows = {setting: combined(each)._asdict() | unit for setting, each in pairs.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def claimed_trends(trend: pd.DataFrame, seeds: int) -> list[dict]:
    """The trends as the rows of claims. trend: of `slopes`."""
    about = {"baseline": "none", "seeds": seeds, "paper": np.nan}
    return [{"claim": f"{CLAIM}: {row['setting']}"} | about | row for row in trend.reset_index().to_dict("records")]


@styled
def gains(summary: pd.DataFrame, title: str):
    """The gain over no captioning against the number of false negatives; thick bars are 95 % over queries, thin ones
    over queries and seeds. summary: of `Sweep.summary`."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.65, 2.7))
    groups = list(summary.dropna(subset="delta").groupby("setting", sort=False))
    for k, (setting, rows) in enumerate(groups):
        x = rows["per batch"] * 1.06 ** (k - (len(groups) - 1) / 2)  # side by side on a logarithmic axis
        gain_curve(axis, x, rows, MARKS[k], COLOURS[k], setting)
    axis.axhline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    ticks = sorted(summary["per batch"].unique())
    axis.set(xscale="log", xticks=ticks, xticklabels=[f"{t:.2g}" for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel="expected false negatives of a caption in a batch", ylabel="Δ R@1 vs none (points)", title=title)
    legend(figure, columns=3)
    return figure
