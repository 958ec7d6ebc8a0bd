"""Timing of calls in interleaved rounds, and the table of a benchmark."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.machine import machine

ROUNDS = 5


class BenchmarkError(ValueError):
    """A benchmark that cannot be run, or implementations that disagree; the message says how to fix it."""


def seconds(calls: Iterable[Callable[[], object]]) -> np.ndarray:
    """Seconds that each call takes, (ROUNDS, works): called A B C A B C …, so that a busy minute affects all alike."""
    calls = list(calls)
    taken = np.empty((ROUNDS + 1, len(calls)))
    for i in np.ndindex(taken.shape):
        start = time.perf_counter()
        calls[i[1]]()
        taken[i] = time.perf_counter() - start
    return taken[1:]  # the first round is warm-up


def row(what: str, values: np.ndarray | float, unit: str, ratio: float | None = None) -> dict:
    """A row of a benchmark's table: median, least and greatest of the measured values."""
    return dict(what=what, median=np.median(values), min=np.min(values), max=np.max(values), ratio=ratio, unit=unit)


def compare(calls: dict[str, Callable[[], object]], amount: int, unit: str) -> list[dict]:
    """Rows of the rates `amount` per second, each with the median of its ratios to the first one's rate."""
    rates = amount / seconds(calls.values())
    ratios = np.median(rates / rates[:, :1], axis=0)
    return [row(what, values, unit, ratio) for what, values, ratio in zip(calls, rates.T, ratios)]


def write(rows: list[dict], out: Path, **columns) -> pd.DataFrame:
    """Print the rows, and write them to `out` with these columns and `machine()`; returns the frame."""
    frame = pd.DataFrame(rows).round(2)
    print(frame.to_string(index=False))
    frame = frame.assign(**columns, **machine())
    with files.written(out) as draft:
        frame.to_csv(draft, index=False)
    return frame
