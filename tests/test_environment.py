"""What a newcomer installs and reads."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pandas as pd
from helpers import unchanged_results
from setuptools import find_packages

from ssb.experiments import readmes

ROOT = Path(__file__).parents[1]


def requirement(text: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"([\w.-]+)(.*)", text.strip()).groups()
    return name, bounds


def test_both_lists_of_packages_are_equal():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*extras["images"]} < {*extras["test"]}
    pip = dict(requirement(line) for line in project["dependencies"] + extras["test"])
    lines = (ROOT / "environment.yml").read_text().splitlines()
    conda = dict(requirement(re.sub(r"#.*", "", line).strip()[2:]) for line in lines if re.match(r"      - [\w]", line))
    assert conda == pip
    assert any(line.strip() == f"- python{project['requires-python']}" for line in lines)
    assert all("  # " in line for line in lines if re.match(r"      - \w", line)), "a line says who needs it"
    assert all("<" in bounds for bounds in pip.values())


def test_what_the_library_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {requirement(line)[0].replace("-", "_") for line in project["dependencies"]}
    declared |= {"sklearn", "IPython", "PIL"}  # which come with scikit-learn, ipykernel and pillow
    compared = {"bench/scoring.py": {"torchmetrics"}, "bench/alignment.py": {"tslearn", "numba"}}  # of the tests
    paths = sorted((ROOT / "ssb").rglob("*.py"))
    assert len(paths) > 60, "the sub-packages are read too"
    for path in paths:
        allowed = declared | sys.stdlib_module_names | {"ssb"}
        allowed |= compared.get(str(path.relative_to(ROOT / "ssb")), set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert {name.partition(".")[0] for name in names} <= allowed, (path, names)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_readme_starts_with_two_commands():
    job, tests = blocks("bash")[:2]
    assert "pip install" in job and "papermill" in job and "notebooks/01_table1_objectives.ipynb" in job
    assert "pip install" in tests and "pytest" in tests


def test_files_named_in_the_readme_are_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((?!http|#)([^)\s]+)\)", text) + re.findall(
        r"(?:notebooks|tests)/[\w.]+\.(?:ipynb|py)", text
    ):
        assert (ROOT / path.partition("#")[0]).exists(), path


def test_numbers_of_the_readmes_are_those_of_the_results():
    """The generated parts are what `ssb report` makes of results/ now."""
    unchanged_results()
    for path, text in readmes.generated(ROOT).items():
        assert path.read_text() == text, path


def test_the_readme_is_one_screen_wide_and_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert 120 <= len(lines) <= 160
    assert max(len(line) for block in blocks(r"\w+") for line in block.splitlines()) <= 88


def test_the_code_of_the_readme_runs(home, tmp_path, monkeypatch):
    """The blocks of Python at smoke size: a loss in a module of its own, then a study of it."""
    module, study = blocks("python")
    name = re.match(r"# (\w+\.py)\n", module)[1]
    (tmp_path / name).write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    small = 'preset="smoke", jobs=1, changes={"corpus_options": {"clips": 60}, '
    assert study.count("changes={") == 1
    exec(study.replace("changes={", small), names := {})
    rows = pd.read_csv(home / "results/shapes-smoke/mine_summary.csv")
    assert set(rows["setting"]) == {"none", "mine"}
    contrasts = {setting: members[0].config.contrast for setting, members in names["runs"].items()}
    assert contrasts["mine"] == f"{name[:-3]}:one_way" != contrasts["none"]


def test_committed_tables_are_whole():
    """Both corpora, five objectives, at least five seeds, made by a clean checkout with the laptop preset."""
    unchanged_results()
    for corpus in ("shapes", "msrvtt1k"):
        rows = pd.read_csv(ROOT / "results" / corpus / "table1.csv")
        assert set(rows["setting"]) == {"none", "identity", "full", "hybrid", "cross"}
        assert rows.groupby("setting")["seed"].nunique().min() >= 5
        assert rows["preset"].eq("laptop").all() and rows["corpus"].eq(corpus).all()
        assert not rows["dirty"].any() and rows["commit"].notna().all() and rows["corpus_sha"].nunique() == 1
        assert rows["run"].is_unique
        for name in ("table1", "table1_fig2b_weights", "table1_fig3_attention"):
            for suffix in (".png", ".pdf"):
                assert (ROOT / "figures" / corpus / f"{name}{suffix}").exists()


def test_the_package_has_all_its_folders_and_tables():
    """What an installed copy holds: every folder with a module in it, and every table that the library reads."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(ROOT, include=setup["packages"]["find"]["include"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "ssb").rglob("*.py")}
    assert {Path(*package.split(".")) for package in packages} == folders and len(folders) == 11
    suffixes = (".csv", ".json", ".html", ".css", ".js")
    for path in [path for path in (ROOT / "ssb").rglob("*.*") if path.suffix in suffixes]:
        patterns = setup["package-data"][".".join(path.parent.relative_to(ROOT).parts)]
        assert any(path.match(pattern) for pattern in patterns), path
