"""Readers of HowTo100M: any number of them gives the same batches, none outlives its training, none is large."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from ssb import Config, load_corpus
from ssb.bench import howto100m as bench
from ssb.corpora.howto100m import index
from ssb.corpora.reading import CorpusError
from ssb.training import streamed
from ssb.training.readers import AHEAD, Readers
from ssb.training.streamed import Streamed

FIELDS = ("text", "text_mask", "video", "video_mask", "labels", "clips")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "howto100m"
    bench.synthesise(folder, 120, 5)
    index.index(folder, log=lambda line: None)
    rng = np.random.default_rng(0)
    np.save(folder / "features" / "zeros" / "all.npy", rng.standard_normal((120, bench.STEPS, bench.DIM), np.float32))
    return folder


def data(folder, count: int) -> Streamed:
    made = Streamed(Config.preset("smoke", batch=8, objective="cross"), load_corpus(folder))
    made.readers = Readers(made.source, count)
    return made


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition, seconds: float = 30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_any_number_of_readers_gives_the_same_batches(folder):
    alone, three = data(folder, 1), data(folder, 3)
    order = alone.order(1)
    assert np.array_equal(three.order(1), order) and len(order) > 10
    for step in (0, 1, 2, 3, 4, 9, 2, 3, 0, *range(5, len(order))):  # jumps too, as after a resumption
        one, other = alone.batch(order[step]), three.batch(order[step])
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)
        windows = [alone.window(number)[0] for number in order[step].tolist()]  # read in this process
        assert all(np.array_equal(row[: len(x)], x) for row, x in zip(one.video.numpy(), windows))
        assert len(alone.readers.asked) <= AHEAD and len(three.readers.asked) <= 3 * AHEAD
    assert len(three.readers.processes) == 3 and not three.readers.asked  # the epoch has ended


def test_a_killed_reader_is_said_and_replaced(folder):
    two = data(folder, 2)
    order = two.order(0)
    wanted = two.batch(order[0])
    processes = [*two.readers.processes]
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(MemoryError, match="a process that reads the corpus was killed"):
        for numbers in order[1:]:
            two.batch(numbers)
    assert all(process.poll() is not None for process in processes)
    assert torch.equal(two.batch(order[0]).video, wanted.video)


def test_an_error_of_a_reader_is_the_error_of_the_training(folder):
    two = data(folder, 2)
    (folder / "features" / "zeros" / "all.npy").write_bytes(b"no array")
    with pytest.raises(CorpusError, match=r"all\.npy"):
        two.batch(two.order(0)[0])


def test_an_index_that_was_made_again_is_not_mixed_in(folder):
    two = data(folder, 2)
    index.index(folder, held_out=3, log=lambda line: None)
    with pytest.raises(CorpusError, match="was indexed again while it was being read"):
        two.batch(two.order(0)[0])


def test_readers_end_with_their_data(folder):
    two = data(folder, 2)
    two.batch(two.order(0)[0])
    pids = [process.pid for process in two.readers.processes]
    assert len(pids) == 2 and all(map(lives, pids))
    del two
    until(lambda: not any(map(lives, pids)))


SCRIPT = """
import sys, time
from ssb import Config, load_corpus
from ssb.training.readers import Readers
from ssb.training.streamed import Streamed
data = Streamed(Config.preset("smoke", batch=8), load_corpus(sys.argv[1]))
data.readers = Readers(data.source, 2)
data.batch(data.order(0)[0])
print(*(process.pid for process in data.readers.processes), flush=True)
time.sleep(60)
"""


def test_readers_end_with_a_killed_training(folder):
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, folder], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(lives, pids))
    maps = [line for pid in pids for line in open(f"/proc/{pid}/maps")] if sys.platform == "linux" else []
    assert not any("libtorch" in line for line in maps)  # a reader is small
    parent.kill()
    parent.wait()
    until(lambda: not any(map(lives, pids)))


@pytest.mark.parametrize("cores, used, wanted", [(1, 1, 1), (2, 1, 1), (4, 1, 3), (4, 3, 1), (64, 1, 8)])
def test_readers_take_the_cores_that_torch_leaves(cores, used, wanted, monkeypatch):
    monkeypatch.setattr(streamed.joblib, "cpu_count", lambda: cores)
    assert streamed.free_cores(used) == wanted
