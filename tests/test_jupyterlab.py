"""The quickstart and Table 1 as a reader runs them: in JupyterLab, in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from helpers import FAINT, ROOT

QUICKSTART, TABLE1 = "00_quickstart", "01_table1_objectives"
TYPOS = {QUICKSTART: ("objectve", "objective"), TABLE1: ("seds", "seeds")}  # notebook → what is typed, what is meant
SLOWER = {"epochs": 100}  # of Table 1, so that a run lasts seconds, and the second of ten can be waited for
PATIENCE = 300  # seconds
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def with_parameters(name: str, target: Path, old: str = "", new: str = ""):
    """A copy of a notebook whose parameters cell has the values of a run of seconds, as if they had been typed. old,
    new: what else is typed there."""
    book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    text = "".join(cell["source"])
    smoke = book["metadata"]["ssb"]["smoke"]
    for name, value in (smoke | ({"changes": smoke["changes"] | SLOWER} if name == TABLE1 else {})).items():
        text, count = re.subn(rf"^({name}: [\w\[\]]+ = ).*(  # )", rf"\g<1>{value!r}\2", text, flags=re.M)
        assert count == 1, name
    cell["source"] = text.replace(f"{old}:", f"{new}:") if old else text
    target.write_text(json.dumps(book), encoding="utf-8")


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A folder with a copy of notebooks/, and the address of a JupyterLab that was started there."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "pyproject.toml").touch()
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name, (typed, meant) in TYPOS.items():
        with_parameters(name, folder / "notebooks" / f"{name}.ipynb")
        with_parameters(name, folder / "notebooks" / f"{name}_typo.ipynb", meant, typed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--notebook-dir={folder}",
    ]
    settings += ["--IdentityProvider.token=", "--LabApp.news_url=None"]
    kept = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    kept += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    environment = {name: value for name, value in os.environ.items() if name != "SSB_HOME"}
    environment |= {name: str(folder / ".jupyter" / name) for name in kept} | {"PYTHONPATH": str(ROOT)}
    with open(folder / "lab.log", "wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *settings]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE):
            try:
                requests.get(f"{address}/api", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(1)
        yield folder, address
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def opened(lab, browser):
    """A function that opens a notebook of the folder in JupyterLab, alone."""
    _, address = lab
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)

    def open_notebook(name: str):
        page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
        return page

    yield open_notebook
    page.close()


def cells(path: Path) -> list[dict]:
    """The code cells of a notebook as it is stored."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def choose(page, menu: str, *names: str):
    """An entry of a menu of the bar, by the names that lead to it. JupyterLab gives entries several roles, and those
    that open a menu none."""
    page.get_by_role("menuitem", name=menu, exact=True).click()
    for name in names:
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(name)}$")).click()


def start(page, path: Path) -> int:
    """Run all cells of an opened notebook by the menu; returns the number of its last execution before."""
    page.get_by_role("main").locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    for _ in range(PATIENCE):  # cells that are run before the kernel is connected stay as they are
        sessions = requests.get(f"{page.url.partition('/lab')[0]}/api/sessions").json()
        kernels = [session["kernel"] for session in sessions if session["path"].endswith(path.name)]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
            break
        page.wait_for_timeout(1000)
    page.wait_for_timeout(2000)
    before = max(cell["execution_count"] or 0 for cell in cells(path))
    choose(page, "Run", "Run All Cells")
    return before


def ended(page, path: Path, before: int = 0) -> list[dict]:
    """Save until every cell has run or one has failed, since the execution `before`."""
    for _ in range(PATIENCE):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        try:
            done = cells(path)
        except ValueError:  # the server is writing it
            continue
        new = [cell for cell in done if (cell["execution_count"] or 0) > before]
        failed = [output for cell in new for output in cell["outputs"] if output["output_type"] == "error"]
        if failed or len(new) == len(done):
            return done
    raise AssertionError(f"not done after {PATIENCE} seconds: {[cell['execution_count'] for cell in done]}")


def shown(done: list[dict]) -> list[dict]:
    """The outputs of cells, none of which is an error or a warning."""
    outputs = [output for cell in done for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r"\w+Warning\b", json.dumps(outputs))
    return outputs


def contents(page, path: Path):
    """The panel of contents, opened, in which every heading of the notebook is found."""
    tab = page.get_by_role("tab", name=re.compile("Table of Contents"))
    if tab.get_attribute("aria-selected") != "true":  # a click on an open one closes it
        tab.click()
    panel = page.locator(".jp-TableOfContents-content")
    book = json.loads(path.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]).splitlines()[0] for cell in book["cells"] if cell["cell_type"] == "markdown"]
    for heading in (text.lstrip("# ").replace("`", "") for text in texts if text.startswith("#")):
        panel.get_by_text(heading, exact=True).first.wait_for()
    return panel


def test_run_all(lab, opened):
    folder, _ = lab
    page, path = opened(QUICKSTART), folder / "notebooks" / f"{QUICKSTART}.ipynb"
    start(page, path)
    outputs = shown(ended(page, path))
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 2
    assert (folder / "figures/shapes-smoke/quickstart_attention.png").is_file(), "beside notebooks/, not in it"
    contents(page, path)


@pytest.mark.parametrize("name", TYPOS)
def test_a_misspelt_parameter_is_refused_in_one_line(name, lab, opened):
    folder, _ = lab
    page, path = opened(f"{name}_typo"), folder / "notebooks" / f"{name}_typo.ipynb"
    start(page, path)
    done = ended(page, path)
    (error,) = [output for cell in done for output in cell["outputs"] if output["output_type"] == "error"]
    assert error["ename"] == "ValueError"
    first = "{} is not a parameter of this notebook. Did you mean {}?".format(*TYPOS[name])
    assert error["evalue"].splitlines()[0] == first
    page.get_by_text(first).first.wait_for()
    assert not [cell for cell in done[2:] if cell["outputs"]], "nothing was trained"


def test_table_1_shows_its_progress_is_interrupted_and_goes_on(lab, opened):
    folder, _ = lab
    page, path = opened(TABLE1), folder / "notebooks" / f"{TABLE1}.ipynb"
    start(page, path)
    contents(page, path).get_by_text("Training", exact=True).first.click()
    for part in (r"\b[1-9]/10\b", r"\b[2-9]/10\b"):  # in place, as runs end
        page.locator(".jp-OutputArea-output", has_text=re.compile(part)).first.wait_for()
    choose(page, "Kernel", "Interrupt Kernel")
    done = ended(page, path)
    (error,) = [output for cell in done for output in cell["outputs"] if output["output_type"] == "error"]
    assert (error["ename"], error["evalue"][:31]) == ("KeyboardInterrupt", "stopped; what is finished is ke")
    before = start(page, path)
    outputs = shown(ended(page, path, before))
    assert re.search(r"10 runs: [2-9] read from results/runs", json.dumps(outputs))
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 3
    assert (folder / "results/shapes-smoke/table1_claims.csv").is_file(), "beside notebooks/, not in it"


def test_table_1_can_be_read_in_light_and_dark(lab, opened):
    """As it was left by the test before this one."""
    folder, _ = lab
    page, path = opened(TABLE1), folder / "notebooks" / f"{TABLE1}.ipynb"
    page.get_by_role("main").locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    panel = contents(page, path)
    for theme, light in (("JupyterLab Dark", "false"), ("JupyterLab Light", "true")):
        choose(page, "Settings", "Theme", theme)
        page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=light)
        page.wait_for_timeout(1000)  # for the style sheet
        for heading in ("The settings", "The table", "How they trained"):
            panel.get_by_text(heading, exact=True).first.click()
            page.locator(".jp-OutputArea table").first.wait_for()
            assert page.locator(".jp-OutputArea table td").count() > 10
            assert page.evaluate(FAINT, ".jp-OutputArea table *") == []
