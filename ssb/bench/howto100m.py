"""`ssb bench howto100m`: does training on HowTo100M fit into memory, whatever its size?

Writes a caption.json of 1,200,000 synthetic videos of 40 narrations of four words (the official one has 113 on average)
into a temporary folder, 4.1 GB with the index, indexes it, and reads batches of the `smoke` preset in a new process.
The features are one sparse file of 200 steps per video, all zeros, which takes no space: the numbers do not include the
speed of a disk. Peaks are resident memory, compared with that of a process that only imports the library.
"""

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from ssb.bench.timing import ROUNDS, BenchmarkError, row, write
from ssb.config import Config
from ssb.corpora.howto100m import index
from ssb.corpora.load import load_corpus
from ssb.machine import peak_memory, threads
from ssb.training.readers import Readers
from ssb.training.streamed import Streamed

STEPS, DIM = 200, 16  # of the features
READERS = 1, 2
BYTES = 90  # of a narration, with its part of the index


def synthesise(folder: Path, videos: int, count: int, words: int = 4):
    """Write narrations and features of this many synthetic videos, each of `count` narrations of `words` words."""
    rng = np.random.default_rng(0)
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), rng.integers(3, 9))) for _ in range(2000)]
    entries = []
    for _ in range(500):  # which the videos take in turn
        start = np.sort(rng.uniform(0, STEPS - 1, count)).round(2)
        text = [" ".join(line) for line in rng.choice(vocabulary, (count, words))]
        entries.append(json.dumps({"start": start.tolist(), "end": (start + 4).round(2).tolist(), "text": text}))
    ids = [f"v{number:010d}" for number in range(videos)]
    stream = folder / "features" / "zeros"
    stream.mkdir(parents=True)
    with open(folder / "caption.json", "w") as file:
        for number, name in enumerate(ids):
            file.write(f'{"," if number else "{"}"{name}":{entries[number % len(entries)]}')
        file.write("}")
    np.lib.format.open_memmap(stream / "all.npy", mode="w+", dtype=np.float16, shape=(videos, STEPS, DIM))  # sparse
    (stream / "all.ids.txt").write_text("\n".join(ids))


def alone(folder: Path, batches: int) -> dict:
    """Nothing: the memory of the imports."""
    return {}


def indexing(folder: Path, batches: int) -> dict:
    """Seconds of `ssb index`."""
    start_time = time.perf_counter()
    index.index(folder)
    return {"seconds": time.perf_counter() - start_time}


def reading(folder: Path, batches: int) -> dict:
    """Seconds to draw the order of an epoch, how many of its batches were read, pairs per second of these in at most
    ROUNDS rounds, each read by one reader and by two (rounds, 2), and the memory of the largest reader at the end, in
    MB. A batch of fewer training videos than the preset's is all of them."""
    config = Config.preset("smoke", max_steps=32)
    with threads(1):
        data = Streamed(config, load_corpus(folder))
        start_time = time.perf_counter()
        order = data.order(0)
        seconds = time.perf_counter() - start_time
        assert len(np.unique(order)) == order.size
        order = order[:batches]
        rounds = min(ROUNDS, len(order))
        rates, readers = np.empty((rounds, len(READERS))), [Readers(data.source, count) for count in READERS]
        for each in readers:
            each.read(order[-1])  # starts them
        for i, part in enumerate(np.array_split(order, rounds)):
            for j in (0, 1) if i % 2 else (1, 0):  # what one has read, the other finds in memory
                data.readers = readers[j]
                start_time = time.perf_counter()
                for numbers in part:
                    batch = data.batch(numbers)
                    assert batch.video.shape == (len(part[0]), config.max_steps, DIM) and batch.text_mask.any(1).all()
                rates[i, j] = part.size / (time.perf_counter() - start_time)
    memory = max(psutil.Process(process.pid).memory_info().rss for x in readers for process in x.processes)
    return {"order": seconds, "batches": len(order), "rates": rates, "reader": memory / 2**20}


def in_process(work: Callable[..., dict], *arguments) -> dict:
    """What a function returns in a new process, and `peak`, the most memory of that process in MB. BenchmarkError where
    the process is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(work, *arguments).result() | {"peak": process.submit(peak_memory).result() / 2**20}
        except BrokenProcessPool:
            raise BenchmarkError(f"{work.__name__}: its process was killed; free memory, or measure less") from None


def bench(out: Path, videos: int, count: int, batches: int) -> pd.DataFrame:
    """Measure, print, and write one row per measurement to `out`; returns the frame. videos: at least 4, each of
    `count` narrations. batches: how many are read; an epoch of few videos has fewer. BenchmarkError, before anything is
    written, where the narrations would fill the disk."""
    needed, free = videos * count * BYTES, shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise BenchmarkError(
            f"--videos {videos} of --narrations {count} take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free "
            f"in {tempfile.gettempdir()}; take fewer, or set TMPDIR to a larger disk"
        )
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "howto100m"
        synthesise(folder, videos, count)
        results = {work.__name__: in_process(work, folder, batches) for work in (alone, indexing, reading)}
    base, rates = results["alone"]["peak"], results["reading"]["rates"]
    rows = [
        row("index: time", results["indexing"]["seconds"] * 100_000 / videos, "s per 100,000 videos"),
        row("order of an epoch", results["reading"]["order"], "s"),
        row("batches, one reader", rates[:, 0], "pairs/s", 1.0),
        row("batches, two readers", rates[:, 1], "pairs/s", np.median(rates[:, 1] / rates[:, 0])),
        row("memory of a reader", results["reading"]["reader"], "MB", results["reading"]["reader"] / base),
        *(row(f"peak: {name}", result["peak"], "MB", result["peak"] / base) for name, result in results.items()),
    ]
    with threads(1):  # as in `reading`
        read = results["reading"]["batches"]  # an epoch of few videos has fewer than asked for
        return write(rows, out, corpus="made up", videos=videos, narrations=count * videos, batches=read)
