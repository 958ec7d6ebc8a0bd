"""`ssb bench howto100m`: does training on HowTo100M stay small, whatever its size?

Makes a caption.json of 1,200,000 made-up videos of 40 narrations of four words (the official one has 113 on average) in
a temporary folder, 4.1 GB with the index, indexes it, and reads batches of the `smoke` preset in a process of its own.
The features are one sparse file of 200 steps a video, nothing but zeros, which takes no room: how fast a disk is, the
numbers do not say. Peaks are resident memory, beside that of a process that only imports the library.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ssb import files
from ssb.bench.timing import ROUNDS, BenchmarkError
from ssb.config import Config
from ssb.corpora.howto100m import index
from ssb.corpora.load import load_corpus
from ssb.machine import machine, peak
from ssb.training.streamed import Streamed

STEPS, DIM = 200, 16  # of the features


def made(folder: Path, videos: int, count: int, words: int = 4):
    """Narrations and features of so many made-up videos."""
    rng = np.random.default_rng(0)
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), rng.integers(3, 9))) for _ in range(2000)]
    tails = []
    for _ in range(500):  # entries that the videos take in turn
        start = np.sort(rng.uniform(0, STEPS - 1, count)).round(2)
        text = [" ".join(line) for line in rng.choice(vocabulary, (count, words))]
        tails.append(json.dumps({"start": start.tolist(), "end": (start + 4).round(2).tolist(), "text": text}))
    ids = [f"v{number:010d}" for number in range(videos)]
    folder.mkdir(parents=True)
    with open(folder / "caption.json", "w") as file:
        for number, name in enumerate(ids):
            file.write(f'{"," if number else "{"}"{name}":{tails[number % len(tails)]}')
        file.write("}")
    stream = folder / "features" / "zeros"
    stream.mkdir(parents=True)
    np.lib.format.open_memmap(stream / "all.npy", mode="w+", dtype=np.float16, shape=(videos, STEPS, DIM))  # sparse
    (stream / "all.ids.txt").write_text("\n".join(ids))


def alone(folder: Path, batches: int) -> dict:
    return {}


def indexing(folder: Path, batches: int) -> dict:
    begun = time.perf_counter()
    index.index(folder)
    return {"seconds": time.perf_counter() - begun}


def reading(folder: Path, batches: int) -> dict:
    """The whole order of an epoch, and the first batches of it in ROUNDS rounds."""
    torch.set_num_threads(1)
    config = Config.preset("smoke", max_steps=32)
    data = Streamed(config, load_corpus(folder))
    begun = time.perf_counter()
    order = data.order(0)
    result = {"order": time.perf_counter() - begun, "rates": []}
    assert len(np.unique(order)) == order.size and order.shape[1] == config.batch
    for part in np.array_split(order[:batches], ROUNDS):
        begun = time.perf_counter()
        for numbers in part:
            batch = data.batch(numbers)
            assert batch.video.shape == (config.batch, config.max_steps, DIM) and batch.text_mask.any(1).all()
        result["rates"].append(part.size / (time.perf_counter() - begun))
    return result


WORKS = {work.__name__: work for work in (alone, indexing, reading)}
PROCESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
from ssb.bench import howto100m
howto100m.answer(*sys.argv[1:])
"""


def apart(name: str, folder: Path, batches: int) -> dict:
    """What one of WORKS gives, done in a process of its own, with its `peak`. BenchmarkError where that fails."""
    command = [sys.executable, "-c", PROCESS, name, str(folder), str(batches)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchmarkError(f"{name} of {folder} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(name: str, folder: str, batches: str):
    """The part of `apart` in the other process: print in JSON what one of WORKS gives, and its `peak` in MB."""
    print(json.dumps(WORKS[name](Path(folder), int(batches)) | {"peak": peak()}))


def row(what: str, values, unit: str, ratio: float | None = None) -> dict:
    values = np.atleast_1d(values).round(2)
    median = np.median(values).round(2)
    return dict(what=what, median=median, min=values.min(), max=values.max(), ratio=ratio, unit=unit)


def bench(out: Path, videos: int, count: int, batches: int) -> pd.DataFrame:
    """Measure, print, and write one row per measurement to `out`; returns the frame."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "howto100m"
        made(folder, videos, count)
        found = {name: apart(name, folder, batches) for name in WORKS}
    base = found["alone"]["peak"]
    rows = [
        row("index: time", found["indexing"]["seconds"] * 100_000 / videos, "s per 100,000 videos"),
        row("order of an epoch", found["reading"]["order"], "s"),
        row("batches", found["reading"]["rates"], "pairs/s"),
        *(row(f"peak: {name}", x["peak"], "MB", round(x["peak"] / base, 2)) for name, x in found.items()),
    ]
    size = dict(videos=videos, narrations=count * videos, batches=batches)
    frame = pd.DataFrame(rows).assign(corpus="made up", **size, **machine() | {"threads": 1})
    print(frame.to_string(index=False))
    with files.written(out) as draft:
        frame.to_csv(draft, index=False)
    return frame
