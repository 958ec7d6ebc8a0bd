"""A study on a dask cluster has the results of a local one, whatever becomes of the workers."""

import os
import signal
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster

import ssb
from ssb import Study, files
from ssb.training import batch, loop
from ssb.training.runs import TrainingError

SMALL = {"corpus_options": {"clips": 60, "captions": 2, "false_negatives": 0.1}, "batch": 16}
GRID = {"none": {"objective": "none"}, "cross": {"objective": "cross"}}
FATAL = """
import os, signal
from multiprocessing import parent_process

def die(text, video):
    if parent_process(): os.kill(os.getpid(), signal.SIGKILL)
    return (text @ video.T).exp().mean()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread, which find the loss of a reader."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "fatal.py").write_text(FATAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(ssb.__file__).parents[1])]))
        options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(folder))
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            yield client


def study(epochs: int, seeds=(0, 1), jobs: int = -1) -> Study:
    return Study("t", preset="smoke", seeds=seeds, jobs=jobs, changes=SMALL | {"epochs": epochs})


def kill_one(client: Client, killed: list[int]):
    """Kill a worker as soon as two runs have checkpoints."""
    pids = client.run(os.getpid)
    while len({path.parent for path in files.runs().glob("*.part/checkpoint-*")}) < 2:
        time.sleep(0.01)
    pid = [*pids.values()][0]
    os.kill(pid, signal.SIGKILL)
    killed.append(pid)


@pytest.mark.slow
def test_a_killed_worker_changes_no_number(cluster, home, tmp_path, monkeypatch):
    epochs, killed = 40, []
    alone = study(epochs, jobs=1)
    wanted = alone.run(GRID)
    rows = alone.rows(wanted)
    monkeypatch.setenv("SSB_HOME", str(tmp_path))
    cluster.run(setattr, loop, "CHECKPOINT_SECONDS", 0.0)
    killer = threading.Thread(target=kill_one, args=(cluster, killed), daemon=True)
    killer.start()
    with joblib.parallel_config("dask"):
        work = study(epochs)
        runs = work.run(GRID)
    killer.join(10)
    assert killed and killed[0] not in cluster.run(os.getpid).values()
    same = [column for column in rows if column not in ("seconds", "commit", "dirty")]
    assert work.rows(runs)[same].equals(rows[same]) and len(rows) == 4
    for setting, members in wanted.items():
        for one, other in zip(members, runs[setting]):
            assert one.folder != other.folder and one.ranks.keys() == other.ranks.keys()
            assert all(np.array_equal(values, other.ranks[name]) for name, values in one.ranks.items())
            assert one.trace.equals(other.trace)


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_a_failed_run(cluster, home, capsys):
    grid = GRID | {"dies": {"objective": "none", "contrast": "fatal:die"}}
    with joblib.parallel_config("dask"), pytest.raises(TrainingError, match="1 of 3 runs failed; the others are kept"):
        study(1, seeds=[0]).run(grid)
    assert len([*files.runs().glob("*/metrics.json")]) == 2
    assert "trained one at a time" in capsys.readouterr().out


def test_threads_of_a_worker_train_one_after_the_other(monkeypatch):
    within, most = [], []

    def attempt(name):
        within.append(name)
        most.append(len(within))
        time.sleep(0.05)
        within.remove(name)

    monkeypatch.setattr(batch, "attempt", attempt)
    threads = [threading.Thread(target=batch.alone, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
