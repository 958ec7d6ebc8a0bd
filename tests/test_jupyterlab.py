"""The quickstart as a reader runs it: in JupyterLab, in a browser."""

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
from helpers import ROOT

SOURCE = ROOT / "notebooks" / "00_quickstart.ipynb"
PATIENCE = 300  # seconds
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def with_parameters(target: Path, values: dict, old: str = "", new: str = ""):
    """A copy of the quickstart whose parameters cell has these values, as if they had been typed. old, new: what else
    is typed there."""
    book = json.loads(SOURCE.read_text(encoding="utf-8"))
    cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    text = "".join(cell["source"]).replace(old, new) if old else "".join(cell["source"])
    for name, value in values.items():
        text, count = re.subn(rf"^({name}: \w+ = ).*(  # )", rf"\g<1>{value!r}\2", text, flags=re.M)
        assert count == 1, name
    cell["source"] = text
    target.write_text(json.dumps(book), encoding="utf-8")


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A folder with a copy of notebooks/, and the address of a JupyterLab that was started there."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "pyproject.toml").touch()
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    smoke = json.loads(SOURCE.read_text(encoding="utf-8"))["metadata"]["ssb"]["smoke"]
    with_parameters(folder / "notebooks" / "00_quickstart.ipynb", smoke)
    with_parameters(folder / "notebooks" / "typo.ipynb", smoke, "objective:", "objectve:")
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


def run_all(page, path: Path) -> list[dict]:
    """Run all cells of an opened notebook by the menu, and save until every cell has run or one has failed."""
    page.get_by_role("main").locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    for _ in range(PATIENCE):  # cells that are run before the kernel is connected stay as they are
        sessions = requests.get(f"{page.url.partition('/lab')[0]}/api/sessions").json()
        kernels = [session["kernel"] for session in sessions if session["path"].endswith(path.name)]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
            break
        page.wait_for_timeout(1000)
    page.wait_for_timeout(2000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(PATIENCE):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        try:
            done = cells(path)
        except ValueError:  # the server is writing it
            continue
        kinds = {output["output_type"] for cell in done for output in cell["outputs"]}
        if "error" in kinds or all(cell["execution_count"] for cell in done):
            return done
    raise AssertionError(f"not done after {PATIENCE} seconds: {[cell['execution_count'] for cell in done]}")


def test_run_all(lab, opened):
    folder, _ = lab
    page = opened("00_quickstart")
    done = run_all(page, folder / "notebooks" / "00_quickstart.ipynb")
    outputs = [output for cell in done for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 2
    assert (folder / "figures/shapes-smoke/quickstart_attention.png").is_file(), "beside notebooks/, not in it"
    page.get_by_role("tab", name=re.compile("Table of Contents")).click()
    contents = page.locator(".jp-TableOfContents-content")
    book = json.loads(SOURCE.read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]).splitlines()[0] for cell in book["cells"] if cell["cell_type"] == "markdown"]
    for heading in (text.lstrip("# ") for text in texts if text.startswith("#")):
        contents.get_by_text(heading, exact=True).first.wait_for()


def test_a_misspelt_parameter_is_refused_in_one_line(lab, opened):
    folder, _ = lab
    page = opened("typo")
    done = run_all(page, folder / "notebooks" / "typo.ipynb")
    (error,) = [output for cell in done for output in cell["outputs"] if output["output_type"] == "error"]
    assert error["ename"] == "ValueError"
    first = "objectve is not a parameter of this notebook. Did you mean objective?"
    assert error["evalue"].splitlines()[0] == first
    page.get_by_text(first).first.wait_for()
    assert not [cell for cell in done[2:] if cell["outputs"]], "nothing was trained"
