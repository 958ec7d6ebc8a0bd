"""The report: what its pages hold and link to, and how they behave in a browser."""

import base64
import csv
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from helpers import FAINT, ROOT
from PIL import Image

from ssb import paper, published
from ssb.corpora.load import CORPORA
from ssb.experiments import finding, overview, readmes
from ssb.pages import site
from ssb.report import ReportError
from ssb.whole.contents import NOTEBOOKS

LABELS = ("shapes", "msrvtt1k")
SOME = ("table1.", "table1_", "table2a", "captioning", "quickstart")
OBJECTIVES = "notebooks/shapes/01_table1_objectives.html"
QUICKSTART = "notebooks/msrvtt1k/00_quickstart.html"
STYLED = "<table><thead><tr><th>R@1</th></tr></thead><tr><td style='opacity: 0.7'>30.1</td></tr></table>"


def outputs() -> list[nbformat.NotebookNode]:
    """Of every kind that the notebooks of the study have: a long line, a table, a figure."""
    png = base64.b64encode((ROOT / "figures/scale.png").read_bytes()).decode()
    new = nbformat.v4.new_output
    return [
        new("stream", text="wrote results/shapes/table1.csv and a line that has no end " * 9),
        new("execute_result", {"text/html": STYLED, "text/plain": "R@1"}, execution_count=2),
        new("display_data", {"image/png": png}, metadata={"image/png": {"alt": "Seconds & sizes.", "width": 662}}),
    ]


def ran(name: str, results: Path, label: str, results_of_cells: list, failed: bool = False, **parameters):
    """Store a notebook of the study as papermill leaves it, with these outputs in every code cell."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    for count, cell in enumerate(cell for cell in book.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = results_of_cells, count + 1
    if failed:
        note = nbformat.v4.new_markdown_cell("<span style='color:red'>An Exception</span>")
        note.metadata.tags = ["papermill-error-cell-tag"]
        book.cells.insert(0, note)
    book.metadata.papermill = {"input_path": f"notebooks/{name}.ipynb", "duration": 90.0, "exception": failed or None}
    book.metadata.papermill["parameters"] = parameters
    (results / "executed" / label).mkdir(parents=True)
    nbformat.write(book, results / "executed" / label / f"{name}.ipynb")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Some of the committed results and figures of two corpora, the same from a smoke run, and two notebooks that were
    run, one of which failed."""
    root = tmp_path_factory.mktemp("checkout")
    paths = [path for kind in ("results", "figures") for label in LABELS for path in (ROOT / kind / label).iterdir()]
    for path in (path for path in paths if path.name.startswith(SOME)):
        for label in (path.parent.name, f"{path.parent.name}-smoke"):
            (root / path.parts[-3] / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / path.parts[-3] / label / path.name)
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copyfile(ROOT / "results/scale.csv", root / "results/scale.csv")
    ran("01_table1_objectives", root / "results", "shapes", outputs())
    lines = ["\x1b[31mConfigError\x1b[0m: <no>"]
    error = nbformat.v4.new_output("error", ename="ConfigError", evalue="<no>", traceback=lines)
    ran("00_quickstart", root / "results", "msrvtt1k", [error], failed=True, preset="smoke")
    return root


@pytest.fixture(scope="module")
def report(checkout) -> Path:
    """The folder of the report."""
    claims = overview.claims(checkout / "results")
    return site.write(checkout, readmes.titles(checkout), NOTEBOOKS, finding.page(claims), claims).parent


@pytest.fixture(scope="module")
def soups(report) -> dict[Path, BeautifulSoup]:
    """Every page → its elements."""
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in report.rglob("*.html")}


@pytest.fixture(scope="module")
def index(report, soups) -> BeautifulSoup:
    return soups[report / "index.html"]


def words(element) -> str:
    return " ".join(element.get_text().split())


def rows(table) -> list[list[str]]:
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]


def tables_of(checkout: Path) -> list[Path]:
    paths = [path for label in LABELS for path in (checkout / "results" / label).glob("*.csv")]
    return [checkout / "results/scale.csv", *paths]


# What the pages hold


def test_links_resolve_and_nothing_is_loaded_from_elsewhere(report, soups):
    assert {str(path.relative_to(report)) for path in soups} == {"index.html", OBJECTIVES, QUICKSTART}
    for path, soup in soups.items():
        for element in soup.find_all(["a", "img", "script", "link", "iframe", "source"]):
            target = urlsplit(element.get("href") or element.get("src") or "")
            if target.scheme in ("http", "https"):
                assert element.name == "a", element
            elif target.scheme != "data" and (element.name != "script" or target.path):
                other = (path.parent / unquote(target.path)).resolve() if target.path else path
                assert other.is_file() and other.is_relative_to(report), element
                assert not target.fragment or soups[other].find(id=unquote(target.fragment)), element
        assert not soup.find_all("link", rel="stylesheet")
        assert not any(word in style.get_text() for style in soup.find_all("style") for word in ("url(", "@import"))


def test_notebooks_link_to_each_other_and_to_the_tables(report, soups):
    links = {link["href"] for link in soups[report / OBJECTIVES].find_all("a")}
    assert {"../../notebooks/msrvtt1k/00_quickstart.html", "../../index.html#how-to-read-a-table"} <= links
    assert "../../results/shapes/table1_summary.csv" in links
    assert "Next: Is it trained?" in words(soups[report / OBJECTIVES]), "of which the report has nothing"
    links = {link["href"] for link in soups[report / QUICKSTART].find_all("a")}
    assert {f"../../{OBJECTIVES}", "../../figures/shapes/quickstart_attention.png"} <= links


def test_every_page_can_be_read_by_everyone(soups):
    for path, soup in soups.items():
        assert soup.html["lang"] == "en" and soup.title.get_text().strip() and len(soup.find_all("h1")) == 1
        levels = [int(heading.name[1]) for heading in soup.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])]
        assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:])), path
        ids = [element["id"] for element in soup.find_all(id=True)]
        assert len(ids) == len(set(ids))
        assert all(image.get("alt", "").strip() for image in soup.find_all("img"))
        assert soup.body.find("a")["href"] == "#main" and soup.main["id"] == "main"
        for table in soup.find_all("table"):
            box = table.find_parent("div", class_="box")
            assert box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"]


def test_a_notebook_is_shown_without_its_code_and_with_its_mathematics(report, soups):
    soup = soups[report / OBJECTIVES]
    assert soup.h1.get_text() == "Table 1, Figures 2b and 3: which captioning objective?"
    codes = soup.find_all("details")
    assert len(codes) > 5 and not any(code.has_attr("open") for code in codes)
    assert "import ssb" in words(soup) and all(pre.find_parent("details") for pre in soup.select(".highlight pre"))
    assert soup.find("math").get_text() == "Si" and "$" not in soup.main.p.get_text() and "S_i" not in words(soup)
    assert soup.find("img", alt="Seconds & sizes.")["src"].startswith("data:image/png;base64,")
    assert "1.5 minutes" in words(soup) and "Stopped by an error" not in words(soup)
    assert "Smoke preset" not in words(soup)


def test_a_notebook_that_failed_or_was_a_smoke_run_says_so(report, soups, index):
    soup = soups[report / QUICKSTART]
    assert "Smoke preset: seconds of training" in words(soup)
    assert "Stopped by an error" in words(soup) and "ConfigError: <no>" in words(soup)
    assert "An Exception" not in words(soup) and "msrvtt1k (stopped by an error)" in words(index)


def test_every_table_is_there_as_it_is_stored(report, checkout, index):
    shown = {details.summary.get_text(): details for details in index.find_all("details")}
    paths = tables_of(checkout)
    assert len(shown) == len(paths) > 20
    for path in paths:
        details = shown[", ".join(path.relative_to(checkout / "results").with_suffix("").parts)]
        assert (report / details.find("a")["href"]).read_bytes() == path.read_bytes()
        with open(path, newline="", encoding="utf-8") as file:
            stored = list(csv.reader(file))
        seen = rows(details.table)
        if seen[0] == stored[0]:
            assert seen == stored
        else:  # a summary as the notebooks show it
            assert path.stem.endswith("_summary") and len(seen) == len(stored)
            kept = pd.read_csv(path, dtype={"setting": str})
            assert [row[0] for row in seen[1:]] == kept["setting"].tolist()
            for name, digits in (("R@1", 1), ("MdR", 1), ("delta", 1), ("p", 3)):
                values = [row[seen[0].index(name)].replace("< 0.001", "0.0005") for row in seen[1:]]
                assert pd.to_numeric(pd.Series(values)).tolist() == pytest.approx(
                    kept[name].tolist(), abs=0.51 * 10**-digits, nan_ok=True
                )


def test_every_figure_is_there_with_its_sentence(report, checkout, index):
    alts = {image["src"]: image["alt"] for image in index.find_all("img")}
    paths = [path for label in LABELS for path in (checkout / "figures" / label).glob("*.png")]
    assert {*alts} == {path.relative_to(checkout).as_posix() for path in paths} and len(paths) > 10
    for path in paths:
        name = path.relative_to(checkout)
        assert (report / name).read_bytes() == path.read_bytes()
        with Image.open(path) as image:
            assert alts[name.as_posix()] == image.info["Description"]


def test_the_finding_is_that_of_table_1(checkout, index):
    """The sentences of the README, the first in bold, and its table of answers."""
    said, bold = index.find(class_="finding"), index.find(class_="finding").find_all("strong")
    numbers = paper.paper_numbers("1")
    gain = f"{numbers['cross', 'R@1'] - numbers['none', 'R@1']:+.1f}"
    assert words(bold[0]).endswith(f"; the paper prints {gain}.") and len(bold) == 1
    first = finding.gains(overview.claims(checkout / "results"))["corpus"].iloc[0]
    answers = {row[0]: row for row in rows(said.table)[1:]}
    for label in LABELS:
        claims = pd.read_csv(checkout / "results" / label / "table1_claims.csv", index_col="claim")
        cross = claims.loc["cross-captioning beats no captioning"]
        delta, start, end = (f"{round(cross[name], 1) + 0.0:+.1f}" for name in ("delta", "low", "high"))
        text = f"{delta} points [{start}, {end}] over the laptop preset"
        assert (text in words(bold[0])) == (label == first)
        column = rows(said.table)[0].index(label)
        question = "Does cross-captioning beat no captioning over the laptop preset?"
        assert f"{delta} [{start}, {end}] {cross['verdict']}" in answers[question][column]


def test_the_finding_is_said_once(checkout, index):
    """In the words of README.md, which the report is handed."""
    claims = overview.claims(checkout / "results")
    said = words(BeautifulSoup(finding.headline(claims).replace("**", "").replace("`", ""), "html.parser"))
    assert words(index.find(class_="finding").p) == said
    assert said.startswith("On shapes")
    assert finding.page(claims[claims["claim"] != finding.CROSS]) == ""


def test_folders_that_count(home):
    """Of corpora, in the order of the catalogue and the reader's own last; not smoke, nor what holds no tables."""
    for name in ("mine", "shapes-smoke", "cache", "report", "runs", "executed", ".hidden", "shapes-paper", "shapes",
                 "flickr8k", "msrvtt1k", "a"):  # fmt: skip
        (home / "results" / name).mkdir(parents=True)
    (home / "results" / "scale.csv").touch()
    names = [path.name for path in published.folders(home / "results")]
    assert names[:3] == [name for name in CORPORA if name in names] and names[3:] == ["a", "mine"]
    every = [path.name for path in published.folders(home / "results", comparable=False)]
    assert every == [*names, "shapes-paper"] and published.folders(home / "figures") == []


@pytest.mark.parametrize(
    "stem, table",
    [("t1", "t1"), ("t1_claims", "t1"), ("t1_b_fig2", "t1_b"), ("t12", "t12"), ("t123", ""), ("t", ""), ("", "")],
)
def test_a_file_is_of_the_longest_name_that_it_begins_with(stem, table):
    assert published.owner(stem, ["t1", "t12", "t1_b"]) == table


def test_every_claim_is_there(checkout, index):
    head, *seen = rows(index.find(id="claims-table"))
    columns, wanted = [head.index(name) for name in ("corpus", "table", "claim", "verdict", "ours")], []
    for path in [path for path in tables_of(checkout) if path.name.endswith("_claims.csv")]:
        for row in pd.read_csv(path).itertuples():
            ours = f"{round(row.delta, 1) + 0.0:+.1f}"
            wanted.append((path.parent.name, path.stem.removesuffix("_claims"), row.claim, row.verdict, ours))
    assert sorted(tuple(row[k] for k in columns) for row in seen) == sorted(wanted) and len(seen) > 10


def test_runs_and_environment(checkout, index):
    head, *runs = rows(index.find(id="runs").find_next("table"))
    row = next(dict(zip(head, row)) for row in runs if row[0] == "shapes, table1")
    stored = pd.read_csv(checkout / "results/shapes/table1.csv")
    assert row["runs"] == str(stored["run"].nunique()) and row["seed"] == "0, 1, 2, 3, 4" and row["dirty"] == "False"
    assert row["commit"] == stored["commit"].iat[0] and row["torch"] == stored["torch"].iat[0]
    assert float(row["minutes"]) == pytest.approx(stored["seconds"].sum() / 60, abs=0.06)
    environment = dict(rows(index.find(id="environment").find_next("table")))
    assert {"python", "commit", "torch", "numpy", "cpu"} <= environment.keys()


def test_a_home_without_results_has_a_report(home):
    text = site.write(home, {}, {}).read_text()
    assert "No corpus has a Table 1 yet" in text and "No claim was tested yet" in text


@pytest.mark.parametrize(
    "name, text",
    [("executed/shapes/a.ipynb", '{"cells": ['), ("shapes/a.csv", "a,b\n1,2\n1,2,3\n"), ("shapes/b.csv", "")],
)
def test_what_cannot_be_read_is_named_and_the_former_report_stays(name, text, home):
    before = site.write(home, {}, {}).read_bytes()
    (home / "results" / name).parent.mkdir(parents=True)
    (home / "results" / name).write_text(text)
    with pytest.raises(ReportError, match=f"{Path(name).name}.*; delete it, then run"):
        site.write(home, {}, {})
    assert (home / "results/report/index.html").read_bytes() == before


# In a browser


@pytest.fixture
def opened(browser, report):
    """A function that opens a page of the report in a window of a width and scheme; fails where the page complains."""
    complaints, requested, contexts = [], [], []

    def open_page(name: str, width: int = 1280, scheme: str = "light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto((report / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints and all(url.startswith(("file:", "data:")) for url in requested)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index.html", OBJECTIVES, QUICKSTART])
def test_a_page_fits_and_can_be_read(name, width, scheme, opened):
    page = opened(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(FAINT, "body *:not(tr:nth-child(n+3) *)") == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("[...document.images].filter(x => x.loading !== 'lazy' && !x.naturalWidth).length") == 0


def tab_to(page, selector: str):
    """Press Tab until an element that the selector names has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"the keyboard does not reach {selector}")


@pytest.mark.browser
def test_the_keyboard_skips_filters_and_sorts(opened, index):
    page = opened("index.html")
    tab_to(page, ".skip")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "seen when it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    head, *every = rows(index.find(id="claims-table"))
    tab_to(page, "select[name=corpus]")
    page.keyboard.type("msrvtt1k")
    tab_to(page, "select[name=verdict]")
    verdict = next(row[3] for row in every if row[2] == "msrvtt1k")
    page.keyboard.type(verdict)
    wanted = [row for row in every if row[2:4] == ["msrvtt1k", verdict]]
    seen = page.locator("#claims-table tbody tr:visible")
    assert 0 < len(wanted) == seen.count() < len(every)
    assert page.locator("output").inner_text() == f"{len(wanted)} of {len(every)} claims"
    tab_to(page, "#claims-table th:nth-child(5) button")
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert page.locator("#claims-table [aria-sort]").count() == 1
        assert page.locator("#claims-table th:nth-child(5)").get_attribute("aria-sort") == order
        texts = page.locator("#claims-table tbody tr:visible td:nth-child(5)").all_inner_texts()
        values = sorted((float(row[4]) for row in wanted), reverse=order == "descending")
        assert [float(text) for text in texts] == values


@pytest.mark.browser
def test_intervals_sort_by_their_ends_and_blanks_are_last(opened, index):
    page = opened("index.html")
    head, *every = rows(index.find(id="claims-table"))
    column = head.index("over both")
    page.locator(f"#claims-table th:nth-child({column + 1}) button").click()
    seen = page.locator(f"#claims-table tbody td:nth-child({column + 1})").all_inner_texts()
    filled = sorted((row[column] for row in every if row[column]), key=lambda text: float(text[1:].split(",")[0]))
    starts = [float(text[1:].split(",")[0]) for text in seen[: len(filled)]]
    assert starts == [float(text[1:].split(",")[0]) for text in filled] and not any(seen[len(filled) :])
    page.locator("#claims-table th:nth-child(2) button").press("Space")
    names = page.locator("#claims-table tbody td:nth-child(2)").all_inner_texts()
    assert names == sorted(row[1] for row in every)
