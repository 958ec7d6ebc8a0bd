"""Tables as they are read: in a notebook, in words, in the README."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from ssb import figures
from ssb.config import PRESETS, Config
from ssb.metrics import retrieval
from ssb.paper import Claim
from ssb.study import PROTOCOLS, Grid, Study
from ssb.tables.verdicts import EMPTY, LOG, Ranks, Runs
from ssb.training.runs import Run

METRICS = ("R@1", "R@5", "R@10", "MdR")  # of the tables in notebooks and README
INTERVALS = {  # of a difference, over what → columns of its ends
    "over queries": ("delta_low", "delta_high"),
    "over seeds": ("seeds_low", "seeds_high"),
    "over both": ("low", "high"),
}
STRESS = 5  # times the contrastive term, from which captioning is no term of similar magnitude
STRESSED = "table1_lambda10"  # the table at the paper's λ on the mean over tokens


class ReportError(ValueError):
    """A file that a report is made of cannot be read; the message names it and what to do."""


def read(path: Path, **options) -> pd.DataFrame:
    """A table; ReportError where it is none."""
    try:
        return pd.read_csv(path, **options)
    except ValueError as error:  # of pandas: no columns, rows of other lengths; no UTF-8
        reason = " ".join(str(error).split())
        raise ReportError(f"{path} is not a table ({reason}); delete it, then run its notebook again") from error


def signed(x: float) -> str:
    """One decimal with its sign; what rounds to nothing is +0.0."""
    return f"{round(x, 1) + 0.0:+.1f}"


def bound(x: float) -> str:
    """An end of an interval, with its sign also where it rounds to nothing: [-0.0, +0.2] contains 0."""
    return f"{x + 0.0:+.1f}"


def widest(row) -> tuple[float, float]:
    """The interval of a difference over queries and seeds, or where there is none, of one seed, that over queries. row:
    a `Difference`, or a row of a frame with its columns as attributes."""
    whole = not np.isnan(getattr(row, "low", np.nan))
    return (row.low, row.high) if whole else (row.delta_low, row.delta_high)


def bracketed(low: float, high: float) -> str:
    """Of a difference, "[-0.3, +0.5]"."""
    return f"[{bound(low)}, {bound(high)}]"


def cells(values: Iterable[float], form: Callable[[float], str] = "{:.1f}".format) -> list[str]:
    """Numbers as text, blank where one is NaN."""
    return ["" if np.isnan(value) else form(value) for value in values]


def intervals(low: Iterable[float], high: Iterable[float], form: Callable[[float], str] = "{:.1f}".format) -> list[str]:
    """[low, high] as text, blank where low is NaN."""
    return ["" if np.isnan(a) else f"[{form(a)}, {form(b)}]" for a, b in zip(low, high)]


def p_value(p: float) -> str:
    """p as text: "0.012", or "< 0.001"."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def reading(summary: pd.DataFrame, baseline: str) -> str:
    """The table in words: what differs from the baseline beyond the noise, by how much, and what the paper found."""
    base = summary.loc[baseline]
    sd = f" (deviation over {base['seeds']:.0f} seeds {base['R@1 sd']:.1f})" if base["seeds"] > 1 else ""
    lines, resolved = [f"{baseline}: R@1 {base['R@1']:.1f}{sd}"], []
    for setting, row in summary.drop(index=baseline).iterrows():
        delta, interval = signed(row["delta"]), bracketed(row["delta_low"], row["delta_high"])
        difference = row["paper R@1"] - base["paper R@1"]
        paper = "" if np.isnan(difference) else f" (paper {signed(difference)})"
        p = "" if np.isnan(row["p"]) else f", p = {p_value(row['p'])}".replace("= <", "<")
        test = f"{interval}{p}: {row['verdict']}"
        lines.append(f"{setting} against {baseline}: {delta} {test}{paper}{ranked(row)}")
        if row["verdict"] in ("higher", "lower"):
            resolved.append(f"{setting} ({row['verdict']})")
    if resolved:
        lines.append(f"Beyond the noise of queries and seeds: {', '.join(resolved)}.")
    else:
        lines.append(f"No setting differs from {baseline} beyond the noise of queries and seeds.")
    return "\n".join(lines)


def in_ranks(row: Mapping[str, float]) -> str:
    """By how much the geometric mean of the ranks, which uses every query, differs, with its interval over queries and
    seeds: "-0.8 % [-1.2, -0.3]", from a factor of 2 on "12.4 times [10.5, 14.6]"; "" where a table has none. row: with
    the columns LOG of `ssb.tables.verdicts`."""
    values = [100 * np.expm1(row.get(name, np.nan)) for name in LOG]
    if np.isnan(values).any():
        return ""
    if values[0] >= 100:
        times, low, high = (f"{1 + value / 100:.1f}" for value in values)
        return f"{times} times [{low}, {high}]"
    return f"{signed(values[0])} % {bracketed(*values[1:])}"


def ranked(row: Mapping[str, float]) -> str:
    """`in_ranks` at the end of a sentence."""
    return f"; geometric mean of the ranks {words}" if (words := in_ranks(row)) else ""


def metrics_table(run: Run) -> pd.DataFrame:
    """The test metrics of one run, a row for each protocol."""
    ranks = {protocol: run.ranks[protocol] for protocol in PROTOCOLS}
    rows = {protocol: retrieval.metrics(r) | {"queries": len(r)} for protocol, r in ranks.items()}
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def printed(summary: pd.DataFrame) -> pd.DataFrame:
    """A `Study.summary` as text; a number that is not available is blank."""
    columns = {name: cells(summary[name]) for name in (*METRICS, "R@1 sd")}
    if "log rank" in summary:  # not in tables of before there was one
        columns["log rank"] = cells(summary["log rank"], "{:.2f}".format)
    columns["R@1 95 %"] = intervals(summary["R@1 low"], summary["R@1 high"])
    columns["delta"] = cells(summary["delta"], signed)
    for kind, (low, high) in INTERVALS.items():
        if low in summary:  # over both not in tables of before there was one
            columns[kind] = intervals(summary[low], summary[high], bound)
    columns["p"] = cells(summary["p"], p_value)
    if "resolves" in summary:
        columns["resolves"] = cells(summary["resolves"])
    columns["verdict"] = summary["verdict"].fillna("").tolist()
    columns |= {name: cells(summary[name]) for name in ("paper R@1", "paper R@5")}
    return pd.DataFrame(columns, index=summary.index)


def best(numbers: pd.DataFrame, text: pd.DataFrame) -> pd.DataFrame:
    """True in the cells of `text` with the best number of a column: the least MdR, the greatest recall. numbers: the
    numeric columns to compare, with the labels that they have in `text`, of all its rows or of some."""
    marks = {name: column == (column.min() if "MdR" in name else column.max()) for name, column in numbers.items()}
    return pd.DataFrame(marks).reindex(index=text.index, columns=text.columns, fill_value=False)


class Table(Styler):
    """A table that a notebook shows as HTML, and a terminal as aligned text."""

    def __repr__(self):
        rows = [line.split("\t") for line in self.to_string(delimiter="\t", sparse_index=False).splitlines()]
        columns = [[cell.strip() for cell in column] for column in zip(*rows)]
        widths = [max(map(len, column)) for column in columns]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)).rstrip() for row in zip(*columns)]
        return "\n".join([self.caption or "", *lines]).strip("\n")


def styled(text: pd.DataFrame, bold: pd.DataFrame, caption: str, grey: Iterable = ()) -> Table:
    """A table as a notebook shows it. bold: of the cells, as `best` gives it; grey: labels of rows."""
    css = bold.map(lambda mark: "font-weight: bold" if mark else "")
    css.loc[list(grey)] = "opacity: 0.7"  # of the theme's own colour, light or dark
    table = Table(text).set_caption(caption).apply(lambda _: css, axis=None)
    return table.set_properties(**{"white-space": "nowrap"})


def show(summary: pd.DataFrame, caption: str) -> Table:
    """A `Study.summary` as a notebook shows it, the best of each metric in bold."""
    text = printed(summary)
    return styled(text, best(summary[[*METRICS]], text), caption)


def verdicts(claims: pd.DataFrame) -> str:
    """`Study.claims` in words, a line for each."""
    if claims.empty:
        return "The paper claims nothing about these settings."
    lines = []
    for row in claims.itertuples():
        paper = "" if np.isnan(row.paper) else f", paper {signed(row.paper)}"
        queries = f"{bracketed(row.delta_low, row.delta_high)} over queries"
        seeds = f"{bracketed(row.seeds_low, row.seeds_high)} over {row.seeds} seeds"
        resolves = "" if np.isnan(getattr(row, "resolves", np.nan)) else f", resolves {row.resolves:.1f}"
        lines.append(f"{row.claim}: {row.verdict} ({signed(row.delta)} points, {queries}, {seeds}{resolves}{paper})")
    return "\n".join(lines)


def settings() -> pd.DataFrame:
    """Every setting of `ssb.Config`, a row each: its default, which is the paper's, what the other presets change it
    to ("" where they do not), and what it is."""
    rows = {}
    for name, field in Config.model_fields.items():
        changed = {preset: repr(changes[name]) if name in changes else "" for preset, changes in PRESETS.items()}
        rows[name] = {**changed, "paper": repr(field.default), "what it is": field.description}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def markdown(frame: pd.DataFrame) -> str:
    """A frame of text as a Markdown table, without its index."""
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Experiment:
    """One table of the study. The modules of `ssb.experiments` collect theirs in `TABLES`, by the name of their files.

    title: of the table and its figures. number: of the table in the paper, "2a"; "" where it has none. grid: study →
    setting → what it changes in the preset; None where that depends on other results. baseline: the setting that the
    others are compared with. claims: of the paper, about its settings. alt: the figure in one sentence. draw: the
    figure of a `Comparison`; None: `figures.settings`. shown: names with spaces between, of those of its files
    <table>_<shown>.csv that pages show in full.
    """

    title: str
    number: str = ""
    grid: Callable[[Study], Grid] | None = None
    baseline: str = ""
    claims: tuple[Claim, ...] = ()
    alt: str = ""
    draw: Callable[["Comparison"], Figure] | None = None
    shown: str = "summary"


class Comparison:
    """The runs of one table compared with a baseline: what the notebooks of the tables show, one method for each of
    their cells. Making one writes the rows and the summary to results/<corpus>/.

    runs: setting → its runs, as `Study.run` returns them. title: in place of the experiment's with the corpus and the
    preset. baseline: in place of the experiment's. also: further columns of the rows, as in `Study.rows`. fixed, ranks:
    as in `Study.summary`. ConfigError for an unknown baseline.
    """

    def __init__(
        self,
        study: Study,
        runs: Runs,
        experiment: Experiment,
        title: str = "",
        baseline: str = "",
        also: pd.DataFrame | None = None,
        fixed: Ranks = EMPTY,
        ranks: Ranks | None = None,
    ):
        self.study, self.runs, self.experiment, self.ranks = study, runs, experiment, ranks
        self.title = title or f"{experiment.title}, {study.subtitle}{stress_title(runs)}"
        self.baseline = baseline or experiment.baseline
        self.rows = study.rows(runs, also, fixed, ranks)
        self.summary = study.summary(runs, self.baseline, fixed, ranks, experiment.number)

    def table(self):
        """The summary, with the best setting of each metric in bold."""
        return show(self.summary, f"{self.title}: text→video, delta to {self.baseline}")

    def figure(self):
        """The experiment's figure, by default the recall of each setting and its difference to the baseline; written to
        figures/<corpus>/<table>.png and .pdf."""
        if self.experiment.draw:
            figure = self.experiment.draw(self)
        else:
            figure = figures.settings(self.rows, self.summary, self.title, baseline=self.baseline)
        return figures.save(figure, self.study.figures, self.study.table, self.experiment.alt)

    def training(self) -> pd.DataFrame:
        """`Study.training`: how each setting was trained."""
        return self.study.training(self.runs)

    def claims(self):
        """Test the experiment's claims, write them to results/<corpus>/<table>_claims.csv and print the verdicts."""
        print(verdicts(self.study.claims(self.runs, self.experiment.claims, self.ranks)))

    def reading(self):
        """Print what the table resolves, whether its λ is a stress test, how far the set-up is from the paper's, and
        the files that were written."""
        print(reading(self.summary, self.baseline))
        if words := stressed(self.runs):
            print(words)
        print(setup(self.study))
        print(self.study.written())


def stressed(runs: Runs) -> str:
    """A sentence where settings have the paper's λ on the mean over tokens, and captioning was at least STRESS times
    the contrastive term in one of their runs (`Run.ratio`); else ""."""
    return _stressed([run.ratio for members in runs.values() if _as_printed(members[0].config) for run in members])


def stressed_rows(rows: pd.DataFrame) -> str:
    """The same of the rows of a table, by its name and by the λ in the names of its settings; "" of a table without
    ratios."""
    if "ratio" not in rows:
        return ""
    named = rows["setting"].str.contains(rf"λ = {Config().captioning:g}(?![\d.])") | rows["table"].eq(STRESSED)
    return _stressed([*rows.loc[named, "ratio"].dropna()])


def _as_printed(config: Config) -> bool:
    """Has it the paper's λ, on captioning and on the mean over tokens?"""
    default = Config()
    return config.objective != "none" and (*config.factors, config.over_tokens) == (*default.factors, "mean")


def _stressed(ratios: list[float]) -> str:
    return f"{stress_test(Config().captioning)}: {_times(ratios)}." if ratios and max(ratios) >= STRESS else ""


def _times(ratios: list[float]) -> str:
    return f"captioning was {min(ratios):.3g} to {max(ratios):.3g} times the contrastive term"


def stress_title(runs: Runs) -> str:
    """The end of the title of a table all of whose captioning is a stress test; else ""."""
    captioned = [members for members in runs.values() if members[0].config.objective != "none"]
    ratios = [run.ratio for members in captioned for run in members]
    if not ratios or min(ratios) < STRESS or not all(_as_printed(members[0].config) for members in captioned):
        return ""
    return f"; a stress test: {_times(ratios)}"


def stress_test(weight: float) -> str:
    """What λ is where it makes captioning many times the contrastive term."""
    return f"λ = {weight:g} on the mean over tokens is a stress test, not the paper's similar magnitudes"


def setup(study: Study) -> str:
    """How a study differs from the paper's set-up, in words."""
    changed = len(PRESETS[study.preset])
    preset = f"changes {changed} of the paper's settings, which ssb.settings() lists" if changed else "is the paper's"
    return f"Corpus {study.corpus.name}; the {study.preset} preset {preset}."
