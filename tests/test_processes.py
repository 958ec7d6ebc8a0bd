"""Two processes train the run that one trains: same losses, weights and ranks."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ssb import processes
from tests.helpers import ROOT

RUN = """
import json, sys, torch
import ssb
from ssb import processes, text

kind, settings = json.loads(sys.argv[1])
torch.set_default_dtype(getattr(torch, kind))
scratch_t5 = text.scratch_t5  # without dropout
text.scratch_t5 = lambda width, heads, tokens, dropout, **layers: scratch_t5(width, heads, tokens, 0.0, **layers)
for setting in settings:
    run = ssb.fit(ssb.Config.preset("smoke", **setting))
    if processes.index() == 0:
        print("RUN", run.folder, flush=True)
"""
CLIPS = {"clips": 60, "captions": 2, "false_negatives": 0.05}
BASE = dict(corpus_options=CLIPS, batch=16, epochs=2, standardise=True, dropout=0.3, decoder_dropout=0.0)
TRANSFORMER = dict(video_pooling="transformer", text_pooling="transformer", dim=32, pool_heads=2, pool_ffn=32)
OF_LONG = {"videos": 36, "events": 3, "takes": 2, "false_negatives": 0.05}
LONG = dict(corpus="events", corpus_options=OF_LONG, sequences=True, batch=4)
SETTINGS = {
    "none": dict(objective="none"),
    "identity": dict(objective="identity"),
    "full": dict(objective="full", batch=15),
    "hybrid": dict(objective="hybrid", clip_apart=True, decoder_warmup=0.5),
    "cross": dict(objective="cross"),
    "transformer": dict(objective="cross", **TRANSFORMER),
    "small support": dict(objective="cross", support_set=5),
    "memory": dict(objective="cross", support_set=40),
    "intra": dict(objective="cross", contrast="triplet", intra=True),
    "triplet": dict(objective="cross", contrast="triplet"),
    "emcl": dict(objective="cross", contrast="info_nce", emcl=True, emcl_bases=4),
    "other caption": dict(objective="hybrid", weights_from="other caption", weights_gradient="text"),
    "shuffled": dict(objective="cross", weights_from="clip", decoded="shuffled", weight_decay=0.01, support_set=5),
    "s2dtw": dict(objective="none", contrast="s2dtw", **LONG),
    "s2dtw cross": dict(objective="cross", contrast="s2dtw", **LONG),
}
CASES = [("float32", 2, 1e-5), ("float64", 2, 1e-9), ("float64", 3, 1e-9)]  # numbers, processes, tolerance


def start(home: Path, arguments: list[str], rank: int = 0, of: int = 1, port: int = 0) -> subprocess.Popen:
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SSB_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if of > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=home, **pipes)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fitted(home: Path, script: str, argument: str, of: int) -> list[Path]:
    """Folders of the runs of a script, run by so many processes."""
    port = free_port()
    started = [start(home, ["-c", script, argument], rank, of, port) for rank in range(of)]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(printed)
    assert all("RUN" not in text and "epoch" not in text for text in printed[1:]), "the first process prints"
    return [Path(line.partition(" ")[2]) for line in printed[0].splitlines() if line.startswith("RUN")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Kind of numbers, number of processes → setting → the folder of its run."""

    @functools.cache
    def made(kind: str, of: int) -> dict[str, Path]:
        epochs = {"epochs": 1 if kind == "float32" else 2}  # Adam multiplies what rounding adds to tiny gradients
        argument = json.dumps([kind, [BASE | epochs | setting for setting in SETTINGS.values()]])
        return dict(zip(SETTINGS, fitted(tmp_path_factory.mktemp("home"), RUN, argument, of), strict=True))

    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("kind", "of", "tolerance"), [("float32", 2, 1e-5), ("float64", 2, 1e-9), ("float64", 3, 1e-9)]
)
def test_processes_train_the_run_of_one(runs, name, kind, of, tolerance):
    one, several = runs(kind, 1)[name], runs(kind, of)[name]
    assert one.name == several.name and {x.name for x in one.iterdir()} == {x.name for x in several.iterdir()}
    for file in ("log.csv", "trace.csv"):
        expected, trained = (pd.read_csv(folder / file) for folder in (one, several))
        printed = 2e-6 if file == "trace.csv" else 0  # six digits
        pd.testing.assert_frame_equal(trained, expected, rtol=max(tolerance, printed), atol=tolerance)
    expected, trained = weights(one), weights(several)
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained.pop(name), expected.pop(name)) for name in ("shift", "scale"))  # infinity in it
    if kind == "float32":  # of all weights together, as Adam makes a step of the rounding of a gradient of zero
        difference = torch.stack([(trained[key] - value).float().norm() for key, value in expected.items()]).norm()
        assert difference <= tolerance * torch.stack([value.float().norm() for value in expected.values()]).norm()
    else:
        for key, value in expected.items():
            torch.testing.assert_close(trained[key], value, rtol=tolerance, atol=tolerance)
    with np.load(one / "ranks.npz") as expected, np.load(several / "ranks.npz") as trained:
        assert all(np.array_equal(trained[key], expected[key]) for key in expected)


KILLED = """
import os
from ssb import processes
from ssb.training import loop

loop.CHECKPOINT_SECONDS = 0
validate = loop.Training.validate
def die(self):
    if processes.index() == 1:
        os._exit(9)
    validate(self)
loop.Training.validate = die
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_another_number_goes_on(runs, tmp_path):
    setting = "transformer"
    argument, port = json.dumps(["float64", [BASE | {"epochs": 2} | SETTINGS[setting]]]), free_port()
    script = KILLED + RUN
    started = [start(tmp_path, ["-c", script, argument], rank, 2, port) for rank in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [1, 9], first + second
    assert "TrainingError" in first and "another process of it has ended" in first
    assert list(tmp_path.glob("results/runs/*.part/checkpoint-*.pt"))
    (resumed,) = fitted(tmp_path, RUN, argument, 1)
    expected, trained = weights(runs("float64", 1)[setting]), weights(resumed)
    for key, value in expected.items():
        torch.testing.assert_close(trained[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_accelerate_launches_one_run(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    train = ["-m", "ssb", "train", "smoke", "epochs=1", f"corpus_options={json.dumps(CLIPS)}"]
    process = start(tmp_path, [*launch, *train, "batch=16"])
    printed = process.communicate(timeout=180)[0]
    assert process.returncode == 0 and printed.count("epoch   1/1") == 1, printed
    (folder,) = (tmp_path / "results" / "runs").glob("[0-9a-f]*")
    assert printed.count(str(folder)) == 1 and (folder / "metrics.json").exists()


LEAVES = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print("left:", not dist.is_initialized()))  # the first registered runs last
from ssb import processes
processes.join()
processes.join()
print("together:", processes.agreed(5), processes.count(), end=" ")
"""


def test_processes_leave_each_other_before_they_end(tmp_path):
    """A process whose group is left to the interpreter's end can be aborted there, with its work done."""
    port = free_port()
    started = [start(tmp_path, ["-c", LEAVES], rank, 2, port) for rank in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert all("together: 5 2 left: True" in text for text in printed), printed


def test_rows_of_a_batch_are_divided(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    for length in (3, 7, 8, 9):
        rows = []
        for index in range(3):
            monkeypatch.setattr(processes, "index", lambda index=index: index)
            rows.append(list(range(length))[processes.own(length)])
        assert sum(rows, []) == list(range(length)) and max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_is_that_of_torch(p):
    x = torch.randn(5, 3, 4)
    torch.manual_seed(1)
    expected = torch.nn.functional.dropout(x, p)
    torch.manual_seed(1)
    assert torch.equal(processes.Dropout(p)(x), expected)
    assert processes.Dropout(p).eval()(x) is x
