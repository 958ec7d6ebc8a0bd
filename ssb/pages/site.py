"""The report: a folder of pages that need no network, from the tables, the figures and the notebooks that were run."""

import functools
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

from ssb import figures, files, published
from ssb.machine import machine
from ssb.pages.executed import TEMPLATES, Executed, body, executed, prose
from ssb.report import INTERVALS, METRICS, bound, cells, intervals, p_value, printed, read, reading, signed

SUMMARY = [*METRICS, "R@1 sd", "R@1 low", "p", "seeds_low", "paper R@1", "paper R@5"]  # of summaries of retrieval alone
ORIGIN = ["seed", "preset", "dirty", "torch", "device", "commit"]  # columns of tables of runs
PACKAGES = "transformers accelerate numpy scipy pandas scikit-learn matplotlib jupyterlab papermill nbconvert"
HOW_TO_READ = "## How to read a table\n"
OTHERS = "others"  # the section of what no notebook writes


class Table(NamedTuple):
    name: str
    address: str
    frame: pd.DataFrame  # of text
    words: str  # the last line of its reading; "" where it is no summary of retrieval


class Figure(NamedTuple):
    name: str
    address: str
    alt: str
    width: int  # in CSS pixels
    height: int


class Section(NamedTuple):
    """What one notebook writes."""

    name: str
    title: str
    books: list[Executed]
    figures: list[Figure]
    tables: list[Table]


def found(root: Path, kind: str, suffix: str) -> list[Path]:
    """The files under results/ or figures/ that the report shows: not those of the smoke preset, which mean nothing."""
    folders = [*published.folders(root / kind, comparable=False), root / kind]
    return [path for folder in folders for path in sorted(folder.glob(f"[!.]*{suffix}"))]


def table(root: Path, path: Path) -> Table:
    """A table: a summary of retrieval in the form of the notebooks, any other as it is stored."""
    address, words = path.relative_to(root).as_posix(), ""
    frame = read(path, dtype=str, keep_default_na=False)
    name = ", ".join(path.relative_to(root / "results").with_suffix("").parts)
    if path.stem.endswith("_summary") and frame.columns[0] == "setting" and frame["setting"].is_unique:
        summary = read(path, index_col="setting")
        if {*SUMMARY} <= {*summary} and len(baseline := summary.index[summary["delta"].isna()]) == 1:
            frame = printed(summary).reset_index().astype(str)
            words = f"{name.removesuffix('_summary')}: {reading(summary, baseline[0]).splitlines()[-1]}"
    return Table(name, address, frame, words)


def figure(root: Path, path: Path) -> Figure:
    with Image.open(path) as image:
        dots = image.info.get("dpi", (96, 96))[0]
        width, height = (round(96 * length / dots) for length in image.size)
    name = ", ".join(path.relative_to(root / "figures").with_suffix("").parts)
    return Figure(name, path.relative_to(root).as_posix(), figures.described(path), width, height)


def sections(
    root: Path, titles: Mapping[Path, str], writers: Mapping[str, str], books: list[Executed]
) -> list[Section]:
    """A section for each notebook, in reading order, and one for what no notebook writes. titles, writers: as in
    `write`."""

    def of(path: Path) -> Section:
        name = writers.get(published.owner(path.stem, writers), OTHERS)
        return parts[name if name in parts else OTHERS]

    names = {path.stem: title for path, title in titles.items()} | {book.name: book.title for book in books}
    parts = {name: Section(name, title, [], [], []) for name, title in names.items()}
    parts[OTHERS] = Section(OTHERS, "Benchmarks and other files", [], [], [])
    for book in books:
        parts[book.name].books.append(book)
    for path in found(root, "figures", ".png"):
        of(path).figures.append(figure(root, path))
    for path in found(root, "results", ".csv"):
        of(path).tables.append(table(root, path))
    return [part for part in parts.values() if part.books or part.figures or part.tables]


def claims_table(claims: pd.DataFrame) -> pd.DataFrame:
    """Claims as text, with all their intervals. claims: of every corpus, as of `write`."""
    text = {name: claims[name] for name in ("claim", "table", "corpus", "verdict")}
    text |= {"ours": cells(claims["delta"], signed), "paper": cells(claims["paper"], signed)}
    numbers = claims.reindex(columns=["p", "resolves", *sum(INTERVALS.values(), ())])
    text |= {kind: intervals(numbers[low], numbers[high], bound) for kind, (low, high) in INTERVALS.items()}
    text |= {"resolves": cells(numbers["resolves"]), "p": cells(numbers["p"], p_value)}
    return pd.DataFrame(text)


def runs(tables: list[Table]) -> pd.DataFrame | None:
    """Where the runs of each table come from; None where there are none."""
    rows = []
    for each in tables:
        if {"run", "seconds", *ORIGIN} <= {*each.frame}:
            own = each.frame.drop_duplicates("run")
            minutes = own["seconds"].astype(float).sum() / 60
            values = {key: ", ".join(sorted(own[key].unique(), key=lambda text: (len(text), text))) for key in ORIGIN}
            rows.append({"table": each.name, "runs": str(len(own)), "minutes": f"{minutes:.1f}"} | values)
    return pd.DataFrame(rows) if rows else None


def environment() -> pd.DataFrame:
    """This machine, and the versions of the packages that compute, draw and write."""
    rows = {"python": platform.python_version(), **machine(), **{name: version(name) for name in PACKAGES.split()}}
    return pd.DataFrame([(name, str(value)) for name, value in rows.items()], columns=["what", "value"])


def how_to_read(root: Path) -> str:
    """The section of notebooks/README.md that explains intervals and verdicts; "" where there is none."""
    path = root / "notebooks" / "README.md"
    _, start, rest = (path.read_text(encoding="utf-8") if path.is_file() else "").partition(HOW_TO_READ)
    return start + rest.partition("\n## ")[0]


def write(
    root: Path,
    titles: Mapping[Path, str],
    writers: Mapping[str, str],
    finding: str = "",
    claims: pd.DataFrame | None = None,
) -> Path:
    """Write results/report/ from what is under results/ and figures/ of a folder; returns its index.html. It replaces
    the former one when it is whole. titles: the notebooks in reading order → their titles. writers: table → the name of
    the notebook that writes it. finding: Markdown; "" where there is none yet. claims: of `overview.claims`, None where
    there are none. ReportError where a table or a notebook cannot be read."""
    books = executed(root / "results")
    parts = sections(root, titles, writers, books)
    tables = [table for part in parts for table in part.tables]
    shown = {each.address for part in parts for each in (*part.figures, *part.tables)}
    names, guide = {part.name for part in parts}, how_to_read(root)

    def address(url: str, label: str = "") -> str:
        """The target of a link in a notebook, as seen from the page of a notebook or, without label, from the index."""
        path, _, anchor = url.partition("#")
        if ":" in path or not path:
            return url
        up, name, suffix = "../../" if label else "", PurePosixPath(path).stem, PurePosixPath(path).suffix
        pages = {book.label: book.page for book in books if book.name == name}
        if suffix == ".ipynb":
            page = pages.get(label) or next(iter(pages.values()), f"index.html#{name}" if name in names else "")
        elif suffix == ".md":
            page = f"index.html#{anchor}" if guide and anchor == "how-to-read-a-table" else ""
        else:
            page = normpath(f"notebooks/{path}")
            page = page if page in shown else ""
        return up + page if page else ""

    templates = Environment(loader=TEMPLATES, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    index = templates.get_template("index.html").render(
        finding=prose(finding, address),
        headline=next((each for part in parts for each in part.figures if each.name == "finding"), None),
        claims=None if claims is None else claims_table(claims),
        reading=prose(guide, address),
        sections=parts,
        executed=books,
        runs=runs(tables),
        environment=environment(),
    )
    folder = root / "results" / "report"
    with files.written(folder) as draft:
        draft.mkdir()
        (draft / "index.html").write_text(index, encoding="utf-8")
        for book in books:
            (draft / book.page).parent.mkdir(parents=True, exist_ok=True)
            text = body(book.book, functools.partial(address, label=book.label))
            page = templates.get_template("notebook.html").render(book=book, body=text)
            (draft / book.page).write_text(page, encoding="utf-8")
        for name in shown:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, draft / name)
    return folder / "index.html"
