"""Whatever is typed after `ssb`: one line that names the argument or the file and what is wanted, an exit code that is
not 0, nothing written."""

import errno
import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssb import files
from ssb.__main__ import BENCHMARKS, main
from ssb.bench import cost
from ssb.corpora.howto100m import index
from ssb.training import loop

DEEP = "[" * 10_000 + "]" * 10_000
LONG = "9" * 10_000


@pytest.fixture(autouse=True)
def limit():
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def refused(words: list[str], capsys, home: Path) -> tuple[int, str]:
    """The exit code and the one message; the usage that argparse prints before it is left out."""
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr().err
    usage, mark, message = printed.rpartition("error: ")
    assert code in (1, 2) and mark and "Traceback" not in printed
    assert usage == "" if code == 1 else usage.startswith("usage: ssb")
    assert message.endswith("\n") and message.count("\n") == 1 and len(message) < 1200
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    return code, message


EXTRACT = ["extract", "clips", "--stream", "a", "--model", "b", "--out", "c"]


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["train", "big"], 2, "no preset 'big'; there are paper, laptop, tuned, paper_small, smoke"),
        (["train", "smoke", "epochs"], 2, "'epochs': wanted SETTING=VALUE, such as epochs=3"),
        (["train", "smoke", "=1"], 2, "'=1': wanted SETTING=VALUE"),
        (["train", "smoke", LONG], 2, ": wanted SETTING=VALUE"),
        (["train", "smoke", "epochs=1", "epochs=2"], 2, "epochs: set twice; keep one of them"),
        (["train", "smoke", "epoch_count=1"], 2, "unknown setting 'epoch_count'; did you mean"),
        (["train", "smoke", "self=1"], 2, "unknown setting 'self'; "),
        (["train", "smoke", "preset=1"], 2, "unknown setting 'preset'; "),
        (["train", "smoke", 'corpus_options={"name": 1}'], 1, "shapes: unknown option 'name'; it takes clips, "),
        (["train", "smoke", "epochs=many"], 2, "epochs = 'many': input should be a valid integer"),
        (["train", "smoke", "epochs=1.5"], 2, "epochs = 1.5: input should be a valid integer"),
        (["train", "smoke", "epochs=null"], 2, "epochs = None: input should be a valid integer"),
        (["train", "smoke", "epochs=-1"], 2, "epochs = -1: input should be greater than or equal to 1"),
        (["train", "smoke", "lr=NaN"], 2, "lr = nan: input should be"),
        (["train", "smoke", "lr=1e999"], 2, "lr = inf: input should be"),
        (["train", "smoke", f"epochs={DEEP}"], 2, "epochs = '[[["),
        (["train", "smoke", f"corpus_options={DEEP}"], 2, "corpus_options = '[[["),
        (["train", "smoke", f"epochs={LONG}"], 2, "epochs = "),
        (["train", "smoke", "corpus=nowhere", "streams=7"], 2, "streams = 7: input should be"),
        (["train", "smoke", "corpus=nowhere"], 2, "no corpus 'nowhere': neither 'shapes', "),
        (["train", "smoke", "video_pooling=avg"], 2, "video_pooling = 'avg': wanted one of 'mean', "),
        (["train", "smoke", "contrast=tripelt"], 2, "contrast = 'tripelt': wanted 'triplet', "),
        (["train", "smoke", 'corpus_options={"clips": 9}'], 1, "shapes: clips=9; give a whole number from 30 to"),
        (["bench", "training", "--corpus", "nope"], 2, "no corpus 'nope': neither 'shapes', "),
        (["train", "epochs=1", "lr=1"], 2, "'epochs=1' comes first; name a preset before it"),
        ([*EXTRACT, "--batch", "1e3"], 2, "argument --batch: invalid int value: '1e3'"),
        ([*EXTRACT, "--batch", LONG], 2, "argument --batch: invalid int value: '9999"),
        ([*EXTRACT, "--batch", "100000"], 2, "argument --batch: 100000: wanted 1 to 4096"),
        ([*EXTRACT, "--workers", "1000000"], 2, "argument --workers: 1000000: wanted 0 to 256"),
        ([*EXTRACT, "--rate", "inf"], 2, "argument --rate: inf: wanted 0.001 to 1e+06"),
        ([*EXTRACT, "--frames", "0"], 2, "argument --frames: 0: wanted 1 to 1024"),
        ([*EXTRACT, "--device", "meta"], 2, "--device meta: "),
        ([*EXTRACT, "--device", "cuda:99"], 2, "--device cuda:99: "),
        (["index", "--held-out", "1e9"], 2, "argument --held-out: invalid int value: '1e9'"),
        (["data", "../../etc"], 2, "no corpus '../../etc'; there are shapes, events"),
        (["data", "caf\udce9"], 2, "no corpus"),
        (["bench", "howto100m", "--videos", "99999999999"], 2, "argument --videos: 99999999999: wanted 4 to 1e+07"),
        *(
            (["bench", *words], 2, f"argument {words[1]}: {words[2]}: wanted ")
            for option, low, high in (
                ("training --steps", 0, 10**7),
                ("howto100m --videos", 3, 10**8),
                ("howto100m --narrations", 0, 10**5),
                ("howto100m --batches", 0, 10**7),
            )
            for words in ([*option.split(), str(value)] for value in (low, -1, high))
        ),
        *((["bench", name, "--out", "/"], 1, "--out / is a folder; name a file") for name in BENCHMARKS),
        (["cost", "--steps", "4"], 2, "argument --steps: 4: wanted 5 to 1e+06"),
    ],
    ids=lambda value: " ".join(value)[:60].encode(errors="replace").decode() if isinstance(value, list) else None,
)
def test_what_is_typed_wrong(words, code, message, home, capsys):
    given, printed = refused(words, capsys, home)
    assert given == code and message in printed


def raising(error: BaseException):
    def fails(*arguments, **options):
        raise error

    return fails


FULL = OSError(errno.ENOSPC, "No space left on device", "x.npy")
HINT = "; free some space or allow writing, then give the same command again"
ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")


@pytest.mark.parametrize(
    "error, message",
    [
        (FULL, f"[Errno 28] No space left on device: 'x.npy'{HINT}"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), f"[Errno 13] Permission denied: 'x'{HINT}"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "[Errno 2] No such file or directory: 'x'"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "[Errno 21] Is a directory: 'x'"),
        (
            files.StorageError("cannot write x: the disk is full;\nfree some space"),
            "cannot write x: the disk is full; ",
        ),
        (MemoryError(), "out of memory; close other programs, or take a smaller batch or corpus"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory (Unable to allocate 9 TiB); close other programs"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory (CUDA out of memory); close other programs"),
        (ALLOCATOR, "out of memory ([enforce fail"),
    ],
)
@pytest.mark.parametrize("command", ["train smoke", "index", "cost --size small --device cpu"])
def test_errors_of_the_machine_are_one_line(command, error, message, home, monkeypatch, capsys):
    for module, name in ((loop, "fit"), (index, "index"), (cost, "cost")):
        monkeypatch.setattr(module, name, raising(error))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    code, printed = refused(command.split(), capsys, home)
    assert code == 1 and printed.startswith(message)


def test_a_damaged_run_is_one_line(home, small_folder, capsys):
    words = ["train", "smoke", f"corpus={small_folder}", "epochs=1"]
    assert main(words) == 0
    (run,) = (path for path in files.runs().iterdir() if not path.name.startswith("."))
    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace("R@1", "R@2", 1))
    capsys.readouterr()
    command = [sys.executable, "-m", "ssb", *words]
    root = Path(files.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, env=os.environ)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run.name in done.stderr and "is damaged (metrics.json" in done.stderr and "delete it" in done.stderr


WAITING = """
import sys, time
from ssb.__main__ import BENCHMARKS, main
from ssb.training import loop
def fit(config):
    print("ready", flush=True)
    time.sleep(60)
loop.fit = fit
sys.exit(main(["train", "smoke"]))
"""


def test_an_interrupt_is_one_line():
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert child.stderr.read() == "stopped; the same command continues from here\n"


def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ssb", "data"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: [Errno 28] No space left on device")


def test_a_terminal_that_has_ascii_alone():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "ssb", "data"], capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
