"""A study that is killed at any moment, or by a power cut, and started again, has the results of one left alone."""

import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import small_study

import ssb

pytestmark = pytest.mark.slow
ALL = bool(os.environ.get("SSB_ALL_POWER_CUTS"))  # every point of a power cut, which takes many minutes
KILLS, POINTS = 20, 14


@pytest.fixture(scope="module")
def context():
    """Processes that have imported the library when they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_study"])
    folders = [str(Path(__file__).parent), str(Path(ssb.__file__).parents[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))  # the server does not take over sys.path
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    small_study.save_encoder(folder)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(context, encoder, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What the study leaves, and how many seconds it takes."""
    ended(started(context, tmp_path_factory.mktemp("first"), encoder))  # it begins the server of processes
    home = tmp_path_factory.mktemp("undisturbed")
    start = time.perf_counter()
    ended(started(context, home, encoder))
    return small_study.outcome(home), time.perf_counter() - start


def started(context, home: Path, encoder: str, *arguments, call=small_study.study):
    process = context.Process(target=call, args=(str(home), encoder, *arguments))
    process.start()
    return process


def ended(process):
    process.join(200)
    assert process.exitcode == 0


def kill(process):
    """All of its group; a process that has not yet made one is alone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join(20)
    assert process.exitcode in (0, -signal.SIGKILL)


def same(home: Path, wanted: dict[str, bytes]):
    found = small_study.outcome(home)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_what_is_compared(undisturbed):
    wanted, _ = undisturbed
    names = " ".join(wanted)
    assert names.count("ranks.npz") == names.count("metrics.json") == 4 and "/." not in names and ".part" not in names
    for name in ("results/shapes-smoke/t.csv", "results/shapes-smoke/t_summary.csv", "figures/shapes-smoke/t.png"):
        assert len(wanted[name]) > 200


@pytest.mark.parametrize("turn", range(5))
def test_killed_at_random_moments(turn, context, encoder, undisturbed, tmp_path):
    """KILLS kills in five studies, each several times before it may end."""
    wanted, seconds = undisturbed
    rng = np.random.default_rng(turn)
    for moment in rng.uniform(0, seconds, KILLS // 5):
        process = started(context, tmp_path, encoder)
        process.join(moment)
        kill(process)
    ended(started(context, tmp_path, encoder))
    same(tmp_path, wanted)


PLACES = {"a checkpoint": "checkpoint", "text states": "text-", "drawn clips": "shapes-", "a table": ".t."}
PLACES |= {"a summary": "t_summary", "a figure": ".png"}


@pytest.mark.parametrize("stop_in", PLACES.values(), ids=PLACES)
def test_killed_while_something_is_written(stop_in, context, encoder, undisturbed, tmp_path):
    process = started(context, tmp_path, encoder, 1, stop_in)
    until((tmp_path / "stopped").exists, process)
    assert [path for path in tmp_path.rglob(".*") if stop_in.strip(".") in path.name]  # a draft without its name
    kill(process)
    ended(started(context, tmp_path, encoder))
    same(tmp_path, undisturbed[0])


def until(condition, process, seconds: float = 60):
    """Wait; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None and time.monotonic() < end
        time.sleep(0.005)


def test_one_of_two_batches_is_killed(context, encoder, undisturbed, tmp_path):
    wanted, _ = undisturbed
    killed, other = (started(context, tmp_path, encoder) for _ in range(2))
    until(lambda: list(tmp_path.glob("results/runs/*.part/checkpoint-*")), killed)
    kill(killed)
    ended(other)
    ended(started(context, tmp_path, encoder))  # a draft of the killed one may be where the other had written before
    same(tmp_path, wanted)


def test_two_batches_end_with_one_result(context, encoder, undisturbed, tmp_path):
    processes = [started(context, tmp_path, encoder) for _ in range(2)]
    for process in processes:
        ended(process)
    same(tmp_path, undisturbed[0])


def test_killed_with_its_workers(context, encoder, undisturbed, tmp_path):
    process = started(context, tmp_path, encoder, 2)
    until(lambda: list(tmp_path.glob("results/runs/*")), process, 120)
    kill(process)
    ended(started(context, tmp_path, encoder))
    same(tmp_path, undisturbed[0])


def test_after_a_power_cut(context, encoder, undisturbed, tmp_path):
    """Of what was not synced only names are left, renames happened or not."""
    wanted, _ = undisturbed
    cut = small_study.on_a_disk_that_forgets
    for folder in ("count", "snapshots"):
        (tmp_path / folder).mkdir()
    ended(started(context, tmp_path / "a", encoder, str(tmp_path / "count"), {}, call=cut))
    events = int((tmp_path / "count" / "events").read_text())
    assert events > 50
    rng = np.random.default_rng(0)
    points = range(events) if ALL else sorted(rng.choice(events, POINTS, replace=False).tolist())
    choices = {point: bool(rng.integers(2)) for point in points}
    ended(started(context, tmp_path / "b", encoder, str(tmp_path / "snapshots"), choices, call=cut))
    for point in points:
        home = tmp_path / "snapshots" / str(point)
        ended(started(context, home, encoder))
        same(home, wanted)
        shutil.rmtree(home)
