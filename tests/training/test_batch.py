"""Runs that fail, workers that are killed, studies that are killed: what is named, what is finished, what ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import psutil
import pytest
from joblib.externals.loky import get_reusable_executor

import ssb
from ssb import Config, Study, files, load_corpus
from ssb.training import batch
from ssb.training.runs import Run, TrainingError, run_name

ROOT = Path(__file__).parents[2]
SMALL = {"corpus_options": {"clips": 60, "captions": 2, "false_negatives": 0.1}, "epochs": 1, "batch": 16}
# a loss is tried before anything is trained: these fail later, and kill workers alone
LOSSES = """
import os, signal, pathlib, sys
from multiprocessing import parent_process
CALLS = []

def value(text, video, name=""):
    CALLS.append(name)
    return (text @ video.T).exp().mean()

def key(text, video):
    if "key" in CALLS: raise KeyError("mine")
    return value(text, video, "key")

def bare(text, video):
    assert "bare" not in CALLS
    return value(text, video, "bare")

def leave(text, video):
    if "leave" in CALLS: sys.exit("bye")
    return value(text, video, "leave")

def die(text, video):
    if parent_process(): os.kill(os.getpid(), signal.SIGKILL)
    return value(text, video)

def once(text, video):
    mark = pathlib.Path(os.environ["SSB_HOME"]) / "killed"
    if parent_process() and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value(text, video)

def slow(text, video):
    import time
    time.sleep(0.5)
    return value(text, video)
"""


@pytest.fixture
def losses(home, monkeypatch):
    """Losses of a reader, which workers find too."""
    (home / "mine").mkdir()
    (home / "mine" / "ownloss.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(home / "mine")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(home / "mine"), str(Path(ssb.__file__).parents[1])]))
    get_reusable_executor().shutdown(wait=True)  # workers that have imported such a module of another test
    yield home
    sys.modules.pop("ownloss", None)


def study(jobs: int, **changes) -> Study:
    return Study("t", preset="smoke", seeds=[0], jobs=jobs, changes=SMALL | {"objective": "none"} | changes)


def own(name: str) -> dict:
    return {"contrast": f"ownloss:{name}"}


def test_an_error_of_the_readers_code_is_named_with_its_line_once(losses, capsys):
    with pytest.raises(TrainingError) as caught:
        study(1).run({"key": own("key"), "bare": own("bare"), "leave": own("leave"), "good": {}})
    lines = re.sub(r"\(/\S*/", "(", str(caught.value)).splitlines()  # without the folders of the files
    assert lines == [
        "3 of 4 runs failed; the others are kept.",
        "key, seed 0: KeyError: 'mine' (ownloss.py, line 11)",
        "bare, seed 0: AssertionError (ownloss.py, line 15)",
        "leave, seed 0: SystemExit: bye (ownloss.py, line 19)",
    ]
    assert str(caught.value.__cause__).count("Traceback") == 1 and "raise KeyError" in str(caught.value.__cause__)
    assert "4 runs: 4 to train one at a time" in capsys.readouterr().out


def test_a_worker_with_other_data_trains_nothing(home, small_folder):
    """Another SSB_DATA, or other files at the same path."""
    config = Config.preset("smoke", corpus=str(small_folder), epochs=1, batch=4).effective()
    name = run_name(config, load_corpus(small_folder))
    captions = small_folder / "captions.csv"
    captions.write_text(captions.read_text().replace("number 03", "number three"))
    outcome = batch.attempt(name, config, {"SSB_HOME": str(home)}, home, ({}, {}, {}))
    other = run_name(config, load_corpus(small_folder))
    assert isinstance(outcome.result, TrainingError) and not files.runs().exists()
    assert f"would train run {other}, not {name}: its data, models or code differ" in str(outcome.result)


def test_what_is_read_back_is_printed(home, capsys):
    work = study(1)
    work.run({"good": {}})
    capsys.readouterr()
    work.run({"good": {}, "more": {"lr": 0.002}})
    assert "2 runs: 1 read from results/runs, 1 to train one at a time" in capsys.readouterr().out
    work.run({"good": {}})
    assert "1 runs, all read from results/runs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_kills_its_worker_is_a_failed_run_and_the_others_are_finished(losses, capsys):
    grid = {"a": {"lr": 0.002}, "dies": own("die"), "b": {"lr": 0.003}, "c": {"lr": 0.004}}
    with pytest.raises(TrainingError, match="1 of 4 runs failed; the others are kept.\ndies, seed 0: its process was"):
        study(2).run(grid)
    assert len([*files.runs().glob("*/metrics.json")]) == 3
    assert "dies, seed 0" in capsys.readouterr().out.partition("a worker was killed while these were trained")[2]


@pytest.mark.slow
def test_a_worker_that_is_killed_once_from_outside_costs_nothing(losses):
    runs = study(2).run({"a": {"lr": 0.002}, "once": own("once"), "b": {"lr": 0.003}})
    assert all(isinstance(run, Run) for members in runs.values() for run in members)


@pytest.mark.parametrize("jobs, widths", [(8, [8, 4]), (2, [2, *[2] * 7])])
def test_a_worker_that_is_killed_before_any_run_began_halves_the_jobs(jobs, widths, monkeypatch, capsys):
    asked, done = [], Run.__new__(Run)
    done.metrics = {"t2v R@1": 1.0}

    def parallel(configs, jobs, folder):
        asked.append(jobs)
        names = [*configs]
        if len(asked) == 1:
            yield batch.Outcome(names[0], done, 1.0, [])
            raise BrokenExecutor
        yield from (batch.Outcome(name, done, 1.0, []) for name in names)

    monkeypatch.setattr(batch, "parallel", parallel)
    todo = {f"run{i}": (f"setting, seed {i}", Config.preset("smoke")) for i in range(10 if jobs == 8 else 8)}
    assert batch.train(todo, jobs, dict.fromkeys(todo, 1.0)) == {} and asked == widths
    printed = capsys.readouterr().out
    assert f"a worker was killed before it began a run, probably for memory: 1 of {len(todo)} runs are kept" in printed
    assert f"at most {jobs // 2} at the same time; take fewer jobs" in printed


def children(process: psutil.Process, name: str = "popen_loky") -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if name in " ".join(child.cmdline())]


def wait_for(condition, seconds: float) -> bool:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_workers_end_with_their_study(losses, tmp_path):
    script = f"""
from ssb import Study
study = Study("t", preset="smoke", seeds=[0, 1], jobs=2, changes={SMALL | {"objective": "none", "epochs": 900}!r})
if __name__ == "__main__":
    study.run({{"slow": {own("slow")!r}}})
"""
    (tmp_path / "run.py").write_text(script)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.DEVNULL, env=environment)
    assert wait_for(lambda: len([*tmp_path.glob("ssb-*/*")]) == 2, 120)  # both are being trained
    workers = children(psutil.Process(parent.pid))
    assert parent.poll() is None and len(workers) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: not any(map(lives, workers)), 10)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed, by", [("papermill", signal.SIGTERM), ("papermill", signal.SIGKILL), ("ipykernel", signal.SIGKILL)]
)
def test_workers_end_with_their_notebook(killed, by, home, tmp_path):
    """papermill, its kernel and the kernel's workers: whichever of the first two ends, all end within ten seconds."""
    parameters = {"preset": "smoke", "seeds": [0, 1], "jobs": 2, "changes": SMALL | {"epochs": 100_000}}
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks/01_table1_objectives.ipynb")]
    command += [str(tmp_path / "out.ipynb"), "-y", json.dumps(parameters)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with open(tmp_path / "log", "w") as log:
        parent = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    assert wait_for(lambda: len([*tmp_path.glob("ssb-*/*")]) == 2, 120), (tmp_path / "log").read_text()[-2000:]
    others = psutil.Process(parent.pid).children(recursive=True)
    kernel, workers = (children(psutil.Process(parent.pid), name) for name in ("ipykernel_launcher", "popen_loky"))
    assert parent.poll() is None and len(kernel) == 1 and len(workers) == 2
    os.kill(parent.pid if killed == "papermill" else kernel[0].pid, by)
    assert wait_for(lambda: not any(map(lives, others)), 10)
    parent.wait(60)


def test_the_time_left_follows_the_runs_that_have_ended(monkeypatch):
    now, done = [0.0], Run.__new__(Run)  # nothing of it is read
    monkeypatch.setattr(batch.time, "perf_counter", lambda: now[0])
    clock = batch.Clock({"a": 10.0, "b": 10.0, "c": 20.0, "d": float("nan")}, workers=1)
    assert clock.seconds() == 50  # an unknown run takes the median
    now[0] = 30.0
    clock.ended(batch.Outcome("a", done, 30.0, []))
    assert clock.seconds() == pytest.approx(3 * 50 - 30)
    unknown = batch.Clock({"a": float("nan"), "b": float("nan")}, workers=1)
    assert unknown.seconds() != unknown.seconds() and "unknown" in unknown.left()
    unknown.ended(batch.Outcome("a", done, 7.0, []))
    assert unknown.seconds() == pytest.approx(14 - 0)


def test_without_tables_a_run_that_captions_counts_twice(monkeypatch):
    monkeypatch.setattr(batch.time, "perf_counter", lambda: 0.0)
    none = Config.preset("smoke", objective="none", epochs=3)
    work = batch.work({"a": ("", none), "b": ("", none.replace(objective="cross"))})
    assert work["b"] == 2 * work["a"]
    clock = batch.Clock({"a": float("nan"), "b": float("nan")}, 1, work)
    clock.ended(batch.Outcome("a", Run.__new__(Run), 7.0, []))
    assert clock.seconds() == pytest.approx(7 + 14)


def test_a_run_of_no_time_by_the_tables_ends_too():
    clock = batch.Clock({"a": 0.0, "b": 0.0}, 1)
    clock.ended(batch.Outcome("a", Run.__new__(Run), 0.2, []))
    assert 0 < clock.scale < float("inf")
