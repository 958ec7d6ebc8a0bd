"""What all tests share: a home of their own, nothing from the network, and small corpora to read or to damage."""

import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores

import numpy as np
import pytest
from helpers import DATA, made, write_corpus

from ssb import Config


def pytest_configure(config):
    known = {line.partition(":")[0] for line in config.getini("markers")}  # of pyproject.toml, where that is read
    markers = {"slow": "takes more than ten seconds", "gpu": "needs a CUDA device", "browser": "needs Chromium"}
    for name, what in markers.items():
        if name not in known:
            config.addinivalue_line("markers", f"{name}: {what}")


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory):
    """$SSB_HOME of fixtures that outlive one test. SSB_DATA is not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSB_HOME", str(tmp_path_factory.mktemp("shared_home")))
        patch.delenv("SSB_DATA", raising=False)
        yield


@pytest.fixture(autouse=True)
def home(shared_home, tmp_path_factory, monkeypatch) -> Path:
    """An empty $SSB_HOME for each test. A module whose tests read what one of them made has its own `home`."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SSB_HOME", str(path))
    return path


@pytest.fixture(scope="module")
def browser():
    """Chromium as Debian has it, driven by playwright. Where one of them is missing, tests are skipped; in CI they
    fail."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright; pip install -e '.[test]'")
    if not (path := shutil.which("chromium")):
        missing("no Chromium; apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # which root cannot have
        yield chromium
        chromium.close()


@pytest.fixture
def msrvtt(monkeypatch) -> Path:
    """The folder of the real MSR-VTT files, $SSB_DATA pointing at its parent; skips where they are not."""
    if not (DATA / "msrvtt" / "train_val_annotation.zip").is_file():
        pytest.skip(f"no MSR-VTT files in {DATA}; set SSB_DATA to the folder that holds msrvtt/")
    monkeypatch.setenv("SSB_DATA", str(DATA))
    return DATA / "msrvtt"


@pytest.fixture
def small_folder(tmp_path) -> Path:
    """A valid corpus on disk: 12 clips of two captions; streams `look` (12, 5, 6) and `move` (12, 1, 3)."""
    return write_corpus(tmp_path / "mine")


@pytest.fixture
def tiny(shared_home) -> Config:
    """A run of seconds."""
    return Config.preset("smoke", corpus="shapes", corpus_options={"clips": 60, "false_negatives": 0.05}, epochs=1)


@pytest.fixture
def hand(home):
    """none, and cross which is better by 20 points on every seed, and full which is the same but for luck."""
    rng = np.random.default_rng(0)
    clip = np.repeat(np.arange(100), 4)
    runs = {"none": [], "full": [], "cross": []}
    for seed in range(5):
        base = np.where(rng.random(400) < 0.3, 1, 7)
        luck = np.where(rng.random(400) < 0.3, 1, 7)
        better = np.where((base > 1) & (rng.random(400) < 0.3), 1, base)
        for name, ranks in (("none", base), ("full", luck), ("cross", better)):
            runs[name].append(made(home, f"{name}{seed}", name, seed, ranks, clip))
    return runs
