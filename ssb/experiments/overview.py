"""Every claim on every corpus: the table, the figure, the cost."""

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import blended_transform_factory

from ssb import files, published
from ssb.config import Config
from ssb.corpora.load import CORPORA
from ssb.figures import COLOURS, MARKS, PAGE, RESOLVED, difference, star, styled
from ssb.report import (
    METRICS,
    STRESSED,
    Experiment,
    best,
    bracketed,
    markdown,
    printed,
    read,
    reading,
    signed,
    stress_test,
    stressed_rows,
)

OTHERS = "other corpora"  # the column of corpora with few tables
SLOTS = 3  # verdicts beside a claim in one line of the list
CLAIM, PANEL, VERDICTS, SLOT = 1.42, (3.05, 4.3), 4.42, 0.86  # inches from the left: the columns of the list
SCALE = "Δ R@1 vs the second setting (points, or as named)\nlinear to ±1, logarithmic beyond"

ABOVE = ("overview", "finding", "readmes")  # modules of this folder that are about all tables
_NAMES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
_EXPERIMENTS = [importlib.import_module(f"{__package__}.{name}") for name in _NAMES if name not in ABOVE]
TABLES: dict[str, Experiment] = {}  # name of the files → experiment, of all modules of this folder
for _experiment in _EXPERIMENTS:
    TABLES |= getattr(_experiment, "TABLES", {})


def runs(results: Path, preset: str = "laptop") -> pd.DataFrame:
    """The runs of a preset, or of all that are comparable with it, in the tables under results/: columns folder, table
    (the name of the file), corpus, run, device and seconds. A run of several tables has a row for each. Corpora in the
    order of `CORPORA`, the reader's own last. FileNotFoundError where there are no tables."""
    frames = [
        pd.read_csv(path).assign(folder=path.parent.name, table=path.stem) for path in results.glob("[!.]*/[!.]*.csv")
    ]
    columns = ["folder", "table", "corpus", "run", "device", "seconds"]
    presets = files.COMPARABLE if preset in files.COMPARABLE else (preset,)
    frames = [frame.loc[frame["preset"].isin(presets), columns] for frame in frames if {"preset", *columns} <= {*frame}]
    if not frames:
        raise FileNotFoundError(f"no tables of runs in {results}; run the notebooks of the tables first")
    order = dict(zip(CORPORA, range(len(CORPORA))))
    rows = pd.concat(frames).sort_values(["folder", "table"])
    return rows.sort_values("corpus", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def files_of(kind: str, results: Path) -> list[tuple[str, str, Path]]:
    """Corpus, table and path of each <table>_<kind>.csv of comparable presets under results/."""
    paths = [path for folder in published.folders(results) for path in sorted(folder.glob(f"[!.]*_{kind}.csv"))]
    return [(path.parent.name, path.name.removesuffix(f"_{kind}.csv"), path) for path in paths]


TERM = "the contrastive term"  # of which captioning is so many times
ALT = "A list of every claim: its difference with intervals on each corpus, the paper's, and the verdict in words."


def claims(results: Path, label: str = "") -> pd.DataFrame:
    """Every claim tested under results/: corpus, table, the columns of `Study.claims`, and of the setting share, the
    mean `ssb.Run.share`, and in the table STRESSED stress, the mean `ssb.Run.ratio`; NaN where they are not recorded.
    label: of one folder alone, see `files.label`; "": those of all corpora. FileNotFoundError where there is no table
    of claims, ReportError where one cannot be read."""
    paths = [
        (label, path.name.removesuffix("_claims.csv"), path) for path in (results / label).glob("[!.]*_claims.csv")
    ]
    paths = paths if label else files_of("claims", results)
    frames = [
        read(path).assign(corpus=corpus, table=table, stress=np.nan, share=np.nan) for corpus, table, path in paths
    ]
    if not frames:
        raise FileNotFoundError(f"no claims in {results / label}; run the notebooks of the tables first")
    for frame, (_, table, path) in zip(frames, paths):
        runs = path.with_name(f"{table}.csv")
        rows = read(runs) if runs.exists() else pd.DataFrame()
        for column, name in [("share", "share"), *([("stress", "ratio")] if table == STRESSED else [])]:
            if name in rows:
                values = pd.to_numeric(rows[name], errors="coerce")
                frame[column] = frame["setting"].map(values.groupby(rows["setting"]).mean())
    frame = pd.concat([frame for frame in frames if len(frame)] or frames)
    return by_table(frame)


def verdict(row) -> str:
    """The verdict on a claim in a word, of a stress test with how many times the contrastive term captioning was. row:
    of `claims`."""
    words = "" if np.isnan(row.stress) else f" (captioning {row.stress:.3g} times {TERM})"
    return f"{row.verdict}{words}"


def by_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of their tables: those of the paper by their number there, "1", "2a" … "12", each followed by
    its variants, then those beyond it."""
    order = {table: _number(experiment.number) for table, experiment in TABLES.items() if experiment.number}
    frame = frame.assign(number=frame["table"].map(order))
    return frame.sort_values(["number", "table"], ignore_index=True).drop(columns="number")  # stable, NaN last


def _number(number: str) -> float:
    """A table's number in the paper as a number: "2" → 2, "2b" → 2.02."""
    digits, letter = re.fullmatch(r"(\d+)([a-z]?)", number).groups()
    return int(digits) + (ord(letter) - ord("a") + 1) / 100 if letter else int(digits)


def by_corpus(cells: pd.DataFrame, keys: list[str], first: Sequence[str] = ()) -> pd.DataFrame:
    """Text in long form, columns table, corpus, text and `keys` → a row for each combination of `keys` and a column for
    each corpus. first: the corpora with a column of their own, in this order; where none is named, those with at least
    half as many tables as the one with most. The others share the column OTHERS."""
    tables = cells.groupby("corpus", sort=False)["table"].nunique()
    own = first or tables.index[tables >= tables.max() / 2]
    small = ~cells["corpus"].isin(own)
    cells = cells.assign(text=cells["text"].mask(small, cells["corpus"] + ": " + cells["text"]))
    cells["corpus"] = cells["corpus"].mask(small, OTHERS)
    columns = [name for name in (*own, OTHERS) if name in set(cells["corpus"])]
    wide = cells.pivot_table("text", keys, "corpus", aggfunc="; ".join, fill_value="", sort=False)
    return wide[columns].rename_axis(columns=None).reset_index()


def claims_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`claims` for reading: a row for each claim, the paper's difference, and for each corpus ours with its intervals
    over queries and over seeds, the verdict, and after a slash the smallest effect that the design resolves; "" where
    the corpus does not test the claim."""
    texts = []
    for row in frame.itertuples():
        pairs = (row.delta_low, row.delta_high), (row.seeds_low, row.seeds_high)
        intervals = " ".join(bracketed(low, high) for low, high in pairs)
        resolves = getattr(row, "resolves", np.nan)  # no column of tables of before there were four verdicts
        texts.append(
            f"{signed(row.delta)} {intervals} {verdict(row)}" + ("" if np.isnan(resolves) else f" / {resolves:.1f}")
        )
    paper = ["" if np.isnan(x) else signed(x) for x in frame["paper"]]
    return by_corpus(frame.assign(paper=paper, text=texts), ["table", "claim", "paper"])


def _title(table: str, rows: pd.DataFrame) -> str:
    """The title of a table, with the unit of its claims where that is not R@1, and of a stress test with how many times
    the contrastive term captioning was; its name where no experiment has it. rows: its claims."""
    unit, times = re.search(r"\(points of (.+)\)", rows["claim"].iloc[0]), rows["stress"].dropna()
    words = f", {unit[1]}" if unit else ""
    words += f": captioning {times.min():.0f} to {times.max():.0f} times {TERM}" if len(times) else ""
    return (TABLES[table].title if table in TABLES else table) + words


@styled
def overview(claims: pd.DataFrame, title: str):
    """One list of all claims, grouped by their tables: the difference that each names, ours with its intervals, a mark
    for each corpus, and the paper's where its size is known; beside it the verdicts in words. The side of the claim is
    grey; the scale is linear up to one point and logarithmic beyond. claims: of `claims`."""
    marks = dict(zip(claims["corpus"].unique(), zip(cycle(MARKS), cycle(COLOURS[:6]))))
    figure, axis = plt.subplots()
    inches = blended_transform_factory(figure.dpi_scale_trans, axis.transData)
    y = 0.0
    for table, rows in claims.groupby("table", sort=False):
        heading = textwrap.wrap(_title(table, rows), 20, break_on_hyphens=False)
        axis.text(0, y, "\n".join(heading), va="top", weight="bold", transform=inches)
        end = y + len(heading)
        for (setting, baseline, _), part in rows.groupby(["setting", "baseline", "claim"], sort=False):
            names = textwrap.wrap(f"{setting} vs {baseline}", 31, break_on_hyphens=False)
            height = max(len(names), -(-len(part) // SLOTS), len(part) / 2)  # so that marks do not overlap
            axis.text(CLAIM, y, "\n".join(names), va="top", transform=inches)
            for k, (_, row) in enumerate(part.iterrows()):
                mark, colour = marks[row["corpus"]]
                style = {"marker": mark, "color": colour}
                difference(axis, y + height * (k + 0.6) / (len(part) + 0.2), row, size=3.5, **style)
                x, line = VERDICTS + SLOT * (k % SLOTS), y + k // SLOTS
                face = colour if row["verdict"] in RESOLVED else "white"
                axis.plot(x, line + 0.5, ms=3.5, mfc=face, clip_on=False, transform=inches, **style)
                axis.text(x + 0.06, line, row["verdict"], va="top", transform=inches)
            if not np.isnan(part["paper"].iloc[0]):
                star(axis, part["paper"].iloc[0], y + height / 2)
            y += height
        y = max(y, end) + 0.4
        axis.plot([0, PAGE], [y - 0.2] * 2, color="0.8", lw=0.5, clip_on=False, transform=inches)
    above, below, line = 0.5, 1.1, 0.13  # inches; the height of a line
    height = above + line * y + below
    figure.set_size_inches(PAGE, height)
    figure.set_layout_engine("none")
    axis.set_position([PANEL[0] / PAGE, below / height, (PANEL[1] - PANEL[0]) / PAGE, line * y / height])
    axis.set(xscale="symlog", ylim=(y, 0), yticks=[], xlabel=SCALE)
    reach = 3 * max(1.5, *np.abs(axis.dataLim.intervalx))
    axis.set(xlim=(-reach, reach), xticks=[x for x in (-10, -1, 1, 10) if abs(x) < reach])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(top=True, labeltop=True)  # of a list too long for one screen
    axis.axvspan(0, reach, color="0.94", lw=0, zorder=-1)
    axis.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    axis.spines["left"].set_visible(False)
    for corpus, (mark, colour) in marks.items():
        axis.plot([], ls="", marker=mark, color=colour, label=corpus)
    first = {label: handle for handle, label in reversed([*zip(*axis.get_legend_handles_labels())])}
    figure.legend([*first.values()][::-1], [*first][::-1], loc="lower center", ncols=5)
    figure.suptitle(title, y=1 - 0.08 / height, va="top")
    return figure


def cost(results: Path, preset: str = "laptop") -> str:
    """The training time of all runs of a preset under results/, each counted once, in words."""
    every = runs(results, preset)
    rows = every[every["device"] == "cpu"]
    once = rows.drop_duplicates("run")
    seconds, each = once["seconds"], once.groupby("corpus", sort=False)["seconds"].sum() / 3600
    hours = seconds.sum() / 3600
    words = (
        f"Training of all tables, partly alongside other work: {len(seconds)} runs of {seconds.mean():.0f} seconds on "
        f"average ({len(rows) - len(seconds)} more rows share them), {hours:.1f} core hours "
        f"({', '.join(f'{corpus} {x:.1f}' for corpus, x in each.items())}), about {hours / 2:.1f} hours on two cores"
    )
    others = every[every["device"] != "cpu"].drop_duplicates("run")["device"].value_counts()
    return "".join([words, *(f"; and {count} runs on one {device}" for device, count in others.items()), "."])


def links(results: Path) -> pd.DataFrame:
    """A row for each table, a column for each corpus: the minutes of its runs on two cores, if it shared none with
    another table, as a link to its summary or to what is shown of it; of runs on a GPU the link alone."""
    rows = runs(results)
    tables = {*zip(rows["folder"], rows["table"]), *(each[:2] for each in files_of("summary", results))}
    rows = rows[rows["device"] == "cpu"].drop_duplicates(["folder", "table", "run"])
    minutes = (rows.groupby(["folder", "table"])["seconds"].sum() / 120).map("{:.0f} min".format)
    cells = []
    folders = published.folders(results)
    places = [(each, table) for each in folders for label, table in sorted(tables) if label == each.name]
    for folder, table in places:
        kinds = ["summary", *(TABLES[table].shown.split() if table in TABLES else [])]
        names = [*(f"{table}_{kind}.csv" for kind in kinds), f"{table}.csv"]
        name = next(name for name in names if (folder / name).exists())
        text = f"[{minutes.get((folder.name, table), 'on a GPU')}]({folder.name}/{name})"
        cells.append((table, folder.name, text))
    cells = pd.DataFrame(cells, columns=["table", "corpus", "text"])
    return by_corpus(by_table(cells), ["table"])


def stress_tests(claims: pd.DataFrame) -> list[str]:
    """A sentence about the tables STRESSED, if there are any, with the measured `ssb.Run.ratio` of
    `cross` where the table has it. claims: of `claims`."""
    rows = claims[(claims["table"] == STRESSED) & (claims["setting"] == "cross")].drop_duplicates("corpus")
    if rows.empty:
        return []
    measured = [f"{row.stress:.3g} ({row.corpus})" for row in rows.dropna(subset="stress").itertuples()]
    times = f"; in training with cross, captioning was {', '.join(measured)} times the contrastive term"
    return [f"{STRESSED}: {stress_test(Config().captioning)}{times if measured else ''}."]


def table(path: Path) -> str:
    """A summary in Markdown, with the cost of its runs, the last line of its reading, and what is a stress test."""
    table = path.stem.removesuffix("_summary")
    summary, rows = pd.read_csv(path, index_col="setting"), pd.read_csv(path.with_name(f"{table}.csv"))
    cells = printed(summary)
    cells = cells.where(~best(summary[[*METRICS]], cells), "**" + cells + "**").reset_index()
    words = reading(summary, summary.index[summary["delta"].isna()][0]).splitlines()[-1:] + [stressed_rows(rows)]
    return (
        f"**{path.parent.name}, {table}**: {summary['seeds'].max():.0f} seeds, {rows['n_queries'].iloc[0]} queries, "
        f"{rows['seconds'].sum() / 60:.0f} core minutes\n\n{markdown(cells)}\n\n{' '.join(filter(None, words))}"
    )
