"""`ssb bench howto100m`: does training on HowTo100M fit into memory, whatever its size?

Writes a caption.json of 1,200,000 synthetic videos of 40 narrations of four words (the official one has 113 on average)
into a temporary folder, 4.1 GB with the index, indexes it, and reads batches of the `smoke` preset in a new process.
The features are one sparse file of 200 steps per video, all zeros, which takes no space: the numbers do not include the
speed of a disk. Peaks are resident memory, compared with that of a process that only imports the library.

Two readers are compared with one, twice: the pairs are received and dropped, which only the readers limit; and they are
made to batches, as in training. The readers and training share the cores, so the processor time of both says what to
expect: on two cores two readers give at most 2 r / (r + t) times the batches of one.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from ssb.bench.timing import ROUNDS, BenchmarkError, in_process, row, rows, write
from ssb.config import Config
from ssb.corpora.howto100m import index
from ssb.corpora.load import load_corpus
from ssb.machine import threads
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
    """Seconds to draw the order of an epoch; how many of its batches were read; pairs per second of these in at most
    ROUNDS rounds, received only and made to batches, each with the pairs of one reader and of two (2, 2, rounds);
    milliseconds of the processor for a batch, in the readers and in this process; and the memory of the largest reader
    at the end, in MB. A batch of fewer training videos than the preset's is all of them."""
    config = Config.preset("smoke", max_steps=32)
    with threads(1):
        data = Streamed(config, load_corpus(folder))
        start_time = time.perf_counter()
        order = data.order(0)
        seconds = time.perf_counter() - start_time
        assert len(np.unique(order)) == order.size
        order = order[:batches]
        readers = [Readers(data.source, count) for count in READERS]
        for each in readers:
            each.read(order[-1])  # starts them
        processes = [psutil.Process(process.pid) for x in readers for process in x.processes]
        rates, used = np.empty((2, len(READERS), min(ROUNDS, len(order)))), np.zeros(2)
        for i, data.batches in enumerate(np.array_split(order, rates.shape[2])):
            for j in (0, 1) if i % 2 else (1, 0):  # what one has read, the other finds in memory
                data.readers = readers[j]
                for way, take in enumerate((received, made)):
                    start_time, before = time.perf_counter(), worked(processes)
                    for step, numbers in enumerate(data.batches):
                        take(data, numbers, step)
                    rates[way, j, i] = data.batches.size / (time.perf_counter() - start_time)
                used += worked(processes) - before  # of `made`
        memory = max(process.memory_info().rss for process in processes)
    each = 1000 * used / (len(READERS) * len(order))
    return {"order": seconds, "batches": len(order), "rates": rates, "used": each, "reader": memory / 2**20}


def received(data: Streamed, numbers: np.ndarray, step: int):
    """Take over the pairs of a batch from a reader."""
    data.readers.read(numbers, data.batches[step + 1 :])


def made(data: Streamed, numbers: np.ndarray, step: int):
    """A batch, as training takes it."""
    batch = data.batch(numbers)
    assert batch.video.shape == (len(numbers), data.config.max_steps, DIM) and batch.text_mask.any(1).all()


def worked(readers: list[psutil.Process]) -> np.ndarray:
    """Seconds of the processor so far: of the readers, of this process (2,)."""
    return np.array([sum(sum(reader.cpu_times()[:2]) for reader in readers), time.process_time()])


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
    base, read = results["alone"]["peak"], results["reading"]
    names = "{}, one reader", "{}, two readers"
    measured = [
        row("index: time", results["indexing"]["seconds"] * 100_000 / videos, "s per 100,000 videos"),
        row("order of an epoch", read["order"], "s"),
    ]
    for way, rates in zip(("received", "batches"), read["rates"]):
        measured += rows({name.format(way): values for name, values in zip(names, rates)}, "pairs/s")
    for part, used in zip(("readers", "training"), read["used"]):
        measured.append(row(f"processor time of a batch: {part}", used, "ms"))
    peaks = {"memory of a reader": read["reader"]} | {f"peak: {name}": x["peak"] for name, x in results.items()}
    measured += [row(name, value, "MB", value / base) for name, value in peaks.items()]
    with threads(1):  # as in `reading`
        return write(measured, out, corpus="made up", videos=videos, narrations=count * videos, batches=read["batches"])
