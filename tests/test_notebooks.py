"""Every notebook, run by papermill as a user would; how notebooks must look in the repository; and what they share.

What a notebook is run with here and which files it leaves stand in its own metadata, under "ssb"."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import unchanged_results

import ssb
from ssb import ConfigError, Study, figures, paper, report
from ssb.experiments import ablations, objectives, overview, readmes

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"corpus_options": {"clips": 60, "false_negatives": 0.05}}
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)

CLAIMS = """claim,setting,baseline,seeds,paper,delta,delta_low,delta_high,p,seeds_low,seeds_high,verdict
cross beats none,cross,none,3,1.3,0.5,-0.2,1.1,0.3,-0.4,1.4,inconclusive
hybrid beats none,hybrid,none,3,,0.5,-0.2,1.1,0.3,-0.4,1.4,inconclusive
"""


def read(notebook: Path) -> dict:
    return json.loads(notebook.read_text(encoding="utf-8"))


def cells(notebook: Path, kind: str) -> list[str]:
    """The sources of the cells of a kind, "code" or "markdown"."""
    return ["".join(cell["source"]) for cell in read(notebook)["cells"] if cell["cell_type"] == kind]


def papermill(notebook: Path, home: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", str(notebook), str(home / "out.ipynb"), "--no-progress-bar"]
    environment = os.environ | {"SSB_HOME": str(home), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def smoke(notebook: Path) -> list[str]:
    """papermill's arguments for a run of seconds."""
    return ["-y", json.dumps(read(notebook)["metadata"]["ssb"]["smoke"])]


def tables_and_figures(home: Path) -> set[str]:
    """What is under results/ and figures/, without the runs; each figure by its PNG."""
    paths = [*home.glob("results/*-smoke/*"), *home.glob("figures/*-smoke/*")]
    return {str(path.relative_to(home)) for path in paths if path.suffix != ".pdf"}


@pytest.mark.slow
@each_notebook
def test_runs_with_the_smoke_preset(notebook, tmp_path):
    (tmp_path / "results/shapes-smoke").mkdir(parents=True)  # of another table, for the overview to draw
    (tmp_path / "results/shapes-smoke/other_claims.csv").write_text(CLAIMS)
    (tmp_path / "results/shapes-smoke/other.csv").write_text("corpus,run,device,seconds,preset\nshapes,x,cpu,1,smoke\n")
    before = tables_and_figures(tmp_path)
    done = papermill(notebook, tmp_path, *smoke(notebook))
    assert done.returncode == 0, done.stderr[-3000:]
    written = read(notebook)["metadata"]["ssb"]["writes"]
    assert tables_and_figures(tmp_path) - before == set(written)
    figures = [path for path in written if path.endswith(".png")]
    for path in [*written, *(path.replace(".png", ".pdf") for path in figures)]:
        assert (tmp_path / path).stat().st_size > 50, path
    executed = nbformat.read(tmp_path / "out.ipynb", 4).cells
    outputs = [output for cell in executed if cell.cell_type == "code" for output in cell.outputs]
    assert not [out for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert len([out for out in outputs if "image/png" in out.get("data", {})]) == len(figures)


@pytest.mark.slow
def test_runs_from_the_notebooks_folder(tmp_path):
    """As in JupyterLab, where the kernel's working directory is the notebook's: same root, so same files."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    environment = {key: value for key, value in os.environ.items() if key != "SSB_HOME"}
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS[0]), "out.ipynb", *smoke(NOTEBOOKS[0])]
    folder = tmp_path / "notebooks"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tables_and_figures(tmp_path) == set(read(NOTEBOOKS[0])["metadata"]["ssb"]["writes"])
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["out.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-p", "corpsu", "msrvtt1k"], "Did you mean corpus?"),
        (["-p", "seeds", "three"], "seeds = 'three' is not of type list[int]"),
        (["-p", "preset", "smoek"], "no preset 'smoek'"),
        (["-p", "preset", "smoke", "-p", "corpus", "msrvt"], "no corpus 'msrvt'"),
        (["-p", "preset", "smoke", "-p", "changes", '{"epoch": 3}'], "epoch = 3"),
        (["-p", "preset", "smoke", "-p", "changes", '{"epohcs": 3}'], "did you mean 'epochs'?"),
    ],
)
def test_wrong_parameters_stop_it(arguments, message, tmp_path):
    done = papermill(ROOT / "notebooks/01_table1_objectives.ipynb", tmp_path, *arguments)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("*/*.csv"))


@each_notebook
def test_is_stripped_and_its_cells_are_named(notebook):
    book = read(notebook)
    nbformat.validate(nbformat.read(notebook, as_version=4))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in book["metadata"] and set(book["metadata"]["ssb"]) == {"smoke", "writes"}
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names) and not [name for name in names if re.search(r"\d", name)]
    for cell in book["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}
    text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    assert notebook.read_text(encoding="utf-8") == text, "save it with json.dump(book, file, indent=1)"


@each_notebook
def test_parameters_are_the_first_cell_and_annotated(notebook):
    code = [cell for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])] == code[:1]
    for line in "".join(code[0]["source"]).splitlines():
        assert ":" in line.split("=")[0] and "  # " in line, "a parameter has a type and a comment"
    names = [line.target.id for line in ast.parse("".join(code[0]["source"])).body]
    assert f'ssb.parameters("{" ".join(names)}")' in "".join(code[1]["source"])


@each_notebook
def test_code_cells_are_short(notebook):
    for source in cells(notebook, "code")[1:]:
        body = ast.parse(source).body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [alias for node in imports for alias in node.names if alias.asname], "names are imported as they are"
        assert len([line for line in source.splitlines() if line.strip()]) - len(imports) <= 5, source
        loops = ast.For, ast.While, ast.FunctionDef, ast.ClassDef
        assert not any(isinstance(node, loops) for node in ast.walk(ast.parse(source))), "all loops live in ssb"


@each_notebook
def test_what_is_called_exists(notebook):
    """A function that was renamed in the library is found here, before the notebook is run."""
    tree = ast.parse("\n".join(cells(notebook, "code")))
    modules = {"ssb": ssb}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules |= {alias.name: importlib.import_module(f"{node.module}.{alias.name}") for alias in node.names}
    used = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for module, name in (name.split(".", 1) for name in used if re.fullmatch(r"[\w.]+", name)):
        if module in modules:
            attrgetter(name)(modules[module])  # AttributeError names what is missing


@each_notebook
def test_what_is_trained_is_shown_first(notebook):
    code = cells(notebook, "code")
    for k, source in enumerate(code):
        for study in re.findall(r"\b(\w+)\.run\(", source):
            assert any(f"{study}.grid(" in earlier for earlier in code[:k]), f"{study}.grid(…) belongs before: {source}"


@each_notebook
def test_headings(notebook):
    first, *others = cells(notebook, "markdown")
    assert first.startswith("# ") and "**The claim.**" in first and "**A reason to " in first
    for source in others:
        assert source.startswith("## "), source
        assert not re.search(r"^(#|\*\*)", source.partition("\n")[2], re.M), "one heading a cell, none in bold"
    headings = [source.splitlines()[0] for source in others]
    assert len(set(headings)) == len(headings) and headings[0] == "## Parameters"


@each_notebook
def test_links(notebook):
    """The papers, the neighbours and the results; JupyterLab opens files and no folders."""
    text = "\n".join(cells(notebook, "markdown"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in (target for target in targets if not target.startswith("https://arxiv.org/abs/")):
        path, _, anchor = target.partition("#")
        assert (notebook.parent / path).is_file(), target
        headings = re.findall(r"^#+ (.*)", (notebook.parent / path).read_text(), re.M) if anchor else [""]
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target
    number = NOTEBOOKS.index(notebook)
    neighbours = {path.name for path in NOTEBOOKS[max(number - 1, 0) : number + 2]} - {notebook.name}
    assert neighbours <= set(targets), "run `ssb report`"
    assert any(target.startswith("https://arxiv.org/abs/") for target in targets)
    assert any(target.startswith(("../results/", "../figures/")) for target in targets)


def test_notebooks_print_their_numbers():
    """No result is typed into the prose: the only decimals there are the paper's."""
    printed = {"0.1", "0.01", "0.05"}  # T, the range of T, and a p; and the numbers of the papers:
    printed |= {f"{value:g}" for value in paper.rows()["value"]}
    printed |= {f"{paper.paper_difference(claim):g}" for table in overview.TABLES.values() for claim in table.claims}
    for notebook in NOTEBOOKS:
        for source in cells(notebook, "markdown"):
            source = re.sub(r"\]\([^)]*\)", "]", source)  # numbers of papers
            assert set(re.findall(r"\d+\.\d+", source)) <= printed, notebook.name


def test_links_and_lists_are_those_that_are_generated():
    unchanged_results()
    for path, text in readmes.generated(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not up to date: run `ssb report`"


# What the notebooks share


@pytest.fixture
def book(tmp_path):
    """A notebook of two tables, and what one of them has left on two corpora."""
    (tmp_path / "notebooks").mkdir()
    writes = ["results/shapes-smoke/t.csv", "results/shapes-smoke/t_claims.csv", "figures/shapes-smoke/t.png"]
    source = {"cells": [{"source": ["# Table 1: which?\n", "text"]}], "metadata": {"ssb": {"writes": writes}}}
    (tmp_path / "notebooks" / "01_a.ipynb").write_text(json.dumps(source))
    for corpus, verdicts in (("shapes", ["held", "inconclusive"]), ("mine", ["held", "contradicted"])):
        (tmp_path / "results" / corpus).mkdir(parents=True)
        lines = CLAIMS.replace(" beats none,", " beats none (points of CIDEr),").splitlines()
        lines[1:] = [line.replace("inconclusive", verdict) for line, verdict in zip(lines[1:], verdicts)]
        (tmp_path / "results" / corpus / "t_claims.csv").write_text("\n".join(lines))
        rows = "".join(f"{corpus},{row},laptop\n" for row in ("a,cpu,240", "a,cpu,240", "b,cpu,120", "c,A GPU,9"))
        (tmp_path / "results" / corpus / "t.csv").write_text(f"corpus,run,device,seconds,preset\n{rows}")
        (tmp_path / "results" / corpus / "other.csv").write_text(
            f"corpus,run,device,seconds,preset\n{corpus},d,cpu,240,laptop\n"
        )
    return tmp_path


def listed(book: Path) -> str:
    return readmes.notebooks(book, overview.claims(book / "results"), overview.runs(book / "results"))


def test_a_notebook_is_listed_with_its_verdicts_and_minutes(book):
    """Two runs of four and two minutes of one core, one of them in two rows."""
    words = "Held: cross beats none (shapes, mine). Contradicted: hybrid beats none (mine). Inconclusive: 1 of 4 tests."
    line = f"| [01_a](01_a.ipynb) | Table 1: which? | {words} | shapes 3, mine 3 |"
    assert listed(book).splitlines()[-1] == line


def test_a_run_is_of_the_first_notebook_that_has_it(book):
    """The second notebook has a run of the first and one of three minutes of its own."""
    source = {"cells": [{"source": ["# Again"]}], "metadata": {"ssb": {"writes": ["results/shapes-smoke/u.csv"]}}}
    (book / "notebooks" / "02_b.ipynb").write_text(json.dumps(source))
    rows = "shapes,a,cpu,240,laptop\nshapes,e,cpu,360,laptop\n"
    (book / "results/shapes/u.csv").write_text(f"corpus,run,device,seconds,preset\n{rows}")
    first, second = listed(book).splitlines()[-2:]
    assert first.endswith("| shapes 3, mine 3 |") and second.endswith("| shapes 3 |")


def test_nothing_resolved_and_nothing_claimed(book):
    (book / "results/mine/t_claims.csv").unlink()
    (book / "results/shapes/t_claims.csv").write_text(CLAIMS)
    assert "| Inconclusive: 2 of 2 tests. |" in listed(book)
    (book / "results/shapes/t_claims.csv").rename(book / "results/shapes/other_claims.csv")
    assert "| Table 1: which? |  |" in listed(book)
    summary = "setting,delta,verdict\nnone,,\na,1,higher\nb,1,inconclusive\nc,0,inconclusive\n"
    (book / "results/shapes/t_summary.csv").write_text(summary)
    path = book / "notebooks" / "01_a.ipynb"
    path.write_text(path.read_text().replace("t_claims", "t_summary"))
    assert "| Against none on shapes: 1 higher, 0 lower, 2 inconclusive. |" in listed(book)
    path.write_text(path.read_text().replace("t_summary", "when_queries"))
    (book / "results/shapes/t_summary.csv").unlink()
    queries = "others,queries,delta,low,high\n0,9,1.5,1,2\n1-2,4,-1,-2,0\n"
    (book / "results/shapes/when_queries.csv").write_text(queries)
    words = "in the geometric mean of the ranks -1.5 % [-2.0, -1.0] for the 9 queries that fit 0 other clips and +1.0 %"
    assert f"| On shapes: {words}" in listed(book)


def test_the_grid_shows_what_differs():
    study = Study("t", preset="laptop", seeds=[0], changes=SMALL)
    frame = study.grid(objectives.GRID)
    assert frame.index.tolist() == [*objectives.GRID, "otherwise"] and list(frame) == ["objective"]
    assert frame["objective"].tolist() == [*objectives.GRID, study.base.objective]
    frame = study.grid(ablations.table2a(study.corpus))
    assert frame["streams"].tolist() == ["()", "appearance", "motion", "()"]
    assert study.grid({"as it is": {}, "too": {"objective": study.base.objective}}).empty
    with pytest.raises(ConfigError, match="did you mean 'objective'?"):
        study.grid({"wrong": {"objectiv": "none"}})


def test_smoke_says_that_its_numbers_mean_nothing(capsys):
    Study("t", preset="laptop", changes=SMALL)
    assert "nothing" not in capsys.readouterr().out
    Study("t", preset="smoke", changes=SMALL)
    assert "SMOKE PRESET" in capsys.readouterr().out


def test_a_comparison_writes_and_shows_a_table(home, hand, capsys):
    study = Study("table1", preset="smoke", seeds=range(5), changes=SMALL)
    comparison = report.Comparison(study, hand, objectives.TABLE1)
    assert comparison.rows.equals(study.frame(hand)) and comparison.summary.loc["cross", "verdict"] == "higher"
    title = f"Table 1: captioning objective, {study.subtitle}; a stress test: captioning was "  # these have λ = 10
    caption = comparison.table().to_html().partition("text→video, delta to none")
    assert title in caption[0] and caption[1]
    assert comparison.figure().alt == objectives.TABLE1.alt
    comparison.claims()
    comparison.reading()
    printed = capsys.readouterr().out
    assert "cross-captioning beats no captioning: held" in printed and "which ssb.settings() lists" in printed
    assert "Beyond the noise of queries and seeds: cross (higher)." in printed
    names = {path.name for path in (home / "results/shapes-smoke").iterdir()}
    assert names == {"table1.csv", "table1.npz", "table1_summary.csv", "table1_claims.csv"}
    assert (home / "figures/shapes-smoke/table1.pdf").exists()


def test_a_table_of_any_name_keeps_the_papers_numbers_and_claims(home, hand):
    """`-p table mine`: which table of the paper it is comes from the experiment, not from the name of the files."""
    study = Study("mine", preset="smoke", seeds=range(5), changes=SMALL)
    comparison = report.Comparison(study, hand, objectives.TABLE1)
    assert (
        comparison.summary.loc["cross", "paper R@1"] == 27.2
        and comparison.table().data.loc["none", "paper R@5"] == "53.0"
    )
    comparison.claims()
    claims = pd.read_csv(home / "results/shapes-smoke/mine_claims.csv")
    assert claims["paper"].tolist() == [1.3]


def test_a_title_a_baseline_and_a_figure_of_its_own(home, hand):
    drawn = []

    def draw(result):
        drawn.append(result.title)
        return figures.settings(result.rows, result.summary, result.title, baseline=result.baseline)

    study = Study("mine", preset="smoke", seeds=range(5), changes=SMALL)
    experiment = report.Experiment("Title", baseline="none", alt="A sentence.", draw=draw)
    comparison = report.Comparison(study, hand, experiment, "Another title", baseline="full")
    assert comparison.figure().alt == "A sentence." and drawn == ["Another title"]
    assert np.isnan(comparison.summary.loc["full", "delta"]) and comparison.summary["paper R@1"].isna().all()
