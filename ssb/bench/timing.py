"""Timing of calls in interleaved rounds, and the table of a benchmark."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.machine import machine, peak_memory

ROUNDS = 5
LESS = "s", "MB"  # units of which less is better


class BenchmarkError(ValueError):
    """A benchmark that cannot be run, or implementations that disagree; the message says how to fix it."""


def seconds(
    calls: Iterable[Callable[[], object]], clock: Callable[[], float] = time.perf_counter, rounds: int | None = None
) -> np.ndarray:
    """Seconds that each call takes, (rounds, works): called A B C A B C …, so that a busy minute affects all alike.
    rounds: None: ROUNDS of them, after one that is not counted, to warm up."""
    calls = list(calls)
    taken = np.empty((rounds or ROUNDS + 1, len(calls)))
    for i in np.ndindex(taken.shape):
        start = clock()
        calls[i[1]]()
        taken[i] = clock() - start
    return taken if rounds else taken[1:]


def row(what: str, values: np.ndarray | float, unit: str, ratio: float | None = None) -> dict:
    """A row of a benchmark's table: median, least and greatest of the measured values."""
    return dict(what=what, median=np.median(values), min=np.min(values), max=np.max(values), ratio=ratio, unit=unit)


def rows(values: Mapping[str, np.ndarray], unit: str) -> list[dict]:
    """Rows of values, name → (rounds,), each with how many times as good it is as the first: the quotient of the
    medians, of seconds and memory the first by its own, of rates its own by the first."""
    first, *_ = medians = {what: float(np.median(each)) for what, each in values.items()}
    ratios = {what: x / medians[first] for what, x in medians.items()}
    return [row(what, each, unit, 1 / ratios[what] if unit in LESS else ratios[what]) for what, each in values.items()]


def compare(calls: Mapping[str, Callable[[], object]], amount: int = 1, unit: str = "s", **options) -> list[dict]:
    """`rows` of the processor time of calls, which other programs hardly disturb: seconds, or with another unit the
    rates `amount` per second. options: of `seconds`."""
    taken = seconds(calls.values(), time.process_time, **options).T
    return rows(dict(zip(calls, taken if unit == "s" else amount / taken)), unit)


def in_process(work: Callable[..., dict], *arguments) -> dict:
    """What a function returns in a new process, and `peak`, the most memory of that process in MB. BenchmarkError where
    the process is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(work, *arguments).result() | {"peak": process.submit(peak_memory).result() / 2**20}
        except BrokenProcessPool:
            raise BenchmarkError(f"{work.__name__}: its process was killed; free memory, or measure less") from None


def write(rows: list[dict], out: Path, **columns) -> pd.DataFrame:
    """Print the rows, four digits of each number, and write them to `out` with these columns and `machine()`; returns
    the frame."""
    frame = pd.DataFrame(rows)
    numbers = frame.select_dtypes("number").columns
    frame[numbers] = frame[numbers].map(lambda x: float(f"{x:.4g}"))
    print(frame.to_string(index=False, float_format="%.6g"))
    frame = frame.assign(**columns, **machine())
    with files.written(out) as draft:
        frame.to_csv(draft, index=False)
    return frame
