"""Timing of calls: interleaved rounds, the median of each."""

import time
from collections.abc import Callable, Iterable

import numpy as np

ROUNDS = 5


class BenchmarkError(ValueError):
    """A benchmark that cannot be run, or whose ways of doing a thing disagree; the message says how to fix it."""


def interleaved(works: dict[str, Callable[[], object]], amount: int, unit: str) -> list[dict]:
    """Rates of the works and ratios to the first of them."""
    rates = amount / seconds(works.values())
    columns = np.median(rates, axis=0), rates.min(axis=0), rates.max(axis=0), np.median(rates / rates[:, :1], axis=0)
    rows = zip(works, *(column.round(2) for column in columns))
    return [dict(zip(("what", "median", "min", "max", "ratio"), row), unit=unit) for row in rows]


def seconds(works: Iterable[Callable[[], object]]) -> np.ndarray:
    """(ROUNDS, works), measured A B C A B C … so that a busy minute hits all alike."""
    works = list(works)
    taken = np.empty((ROUNDS + 1, len(works)))
    for i in np.ndindex(taken.shape):
        begun = time.perf_counter()
        works[i[1]]()
        taken[i] = time.perf_counter() - begun
    return taken[1:]  # the first round is warm-up
