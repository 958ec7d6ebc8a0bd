"""What a long step is doing: durations in words, and one line of progress that is updated in place."""

import contextlib
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

CLEAR = "\r\x1b[2K"  # to the beginning of a terminal's line, and clear it
TICK = 1.0  # seconds between two updates
FIRST, LATER = 30.0, 1.5  # in a batch: seconds before the first line, and how many times as long before the next


def minutes(seconds: float) -> str:
    """85.2 → "85 s", 480 → "8 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Bar:
    """The progress of a step as one line. In a terminal and in JupyterLab it is updated in place every second, and a
    saved notebook keeps its last state. Papermill does not log updates: there a line is printed now and then too, ever
    more rarely. Elsewhere each finished part prints one line.

    total: parts of the step. now: what is being done at the moment, in words. every: in plain output, seconds between
    two lines, the first included; in place, seconds before the line appears.
    """

    def __init__(self, total: int, now: Callable[[], str] = lambda: "", every: float = 0.0):
        self.total, self.now, self.every, self.done = total, now, every, 0
        self.out, self.start = sys.stdout, time.perf_counter()
        self.shown, self.printed = False, self.start
        self.handle = None  # of the output in a notebook
        self.notebook, self.terminal = _in_notebook(), self.out.isatty()
        self.live = self.notebook or self.terminal  # updated in place
        self.next = FIRST if self.notebook and not _in_lab() else math.inf
        self.ended, self.busy = threading.Event(), threading.Lock()

    def __enter__(self) -> "Bar":
        if self.live:
            self.thread = threading.Thread(target=self._tick, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        if self.live:
            self.thread.join()
            if self.shown:
                self._show(f"{self.head()}  in {minutes(self.seconds)}", end="\n")

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.perf_counter() - self.start

    def head(self) -> str:
        """The bar, and how many parts are done."""
        return f"{'█' * round(20 * self.done / max(self.total, 1)):·<20} {self.done}/{self.total}"

    def step(self, line: str) -> None:
        """One more part is done. line: what became of it, for plain output."""
        self.done += 1
        if self.seconds >= self.next:
            self.next = LATER * self.seconds
            self.print(f"{self.head()}  {line}")
        if not self.live and time.perf_counter() - self.printed >= self.every:
            self.printed = time.perf_counter()
            self.print(f"{self.head()}  {line}")

    def print(self, line: str) -> None:
        """Print a line above the bar, where it stays."""
        with self.busy:
            print(f"{CLEAR}{line}" if self.terminal and self.shown else line, file=self.out, flush=True)

    def _tick(self) -> None:
        while not self.ended.wait(TICK):
            if self.seconds >= self.every:
                self._show(f"{self.head()}  {self.now()}".rstrip())

    def _show(self, text: str, end: str = "") -> None:
        with self.busy, contextlib.suppress(ValueError):  # a closed output
            self.shown = True
            if self.terminal:
                text = text[: shutil.get_terminal_size().columns - 1]  # a longer line could not be cleared
                print(f"{CLEAR}{text}", end=end, file=self.out, flush=True)
                return
            data = {"text/plain": text}
            if self.handle:
                self.handle.update(data, raw=True)
            else:
                self.handle = sys.modules["IPython"].display.display(data, raw=True, display_id=True)


def _in_notebook() -> bool:
    """Does this process answer a notebook, in which an output can be updated?"""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def _in_lab() -> bool:
    """Was the cell that this process executes sent by JupyterLab, which shows updates, and says which cell it is?"""
    return "cellId" in sys.modules["IPython"].get_ipython().kernel.get_parent().get("metadata", {})


def track(items: Iterable, what: str) -> Iterator:
    """Iterate over items with a bar. what: is being done, in words. A step of a few seconds prints nothing."""
    items = list(items)
    with Bar(len(items), lambda: what, every=5.0) as bar:
        for item in items:
            yield item
            bar.step(what)
