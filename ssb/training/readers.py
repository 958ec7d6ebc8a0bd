"""Processes that read pairs of HowTo100M from disk, several batches ahead of the training, in the order of the batches.

Reading is Python code that holds the interpreter's lock most of the time, so that threads would take turns. A reader is
a program that imports neither torch nor a model. It takes numbers of pairs from its standard input, answers on its
standard output, and ends when its input does, which is when training has ended, however that ended.
"""

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssb.corpora.howto100m.corpus import Features, HowTo100M
from ssb.corpora.tokens import token_ids

AHEAD = 2  # batches asked of each reader: it reads one while the other is taken over
PROGRAM = "from ssb.training.readers import main; main()"
PIPE = 1 << 20  # bytes; more than a pipe of Linux usually holds


class Pairs(NamedTuple):
    """The pairs of a batch. video: (B, max_steps, D) float32, padded with 0; steps: (B,), how many of them are real;
    tokens: for each tokenizer, the ids of all captions end to end and their lengths (B,)."""

    video: np.ndarray
    steps: np.ndarray
    tokens: list[tuple[np.ndarray, np.ndarray]]


@dataclass
class Source:
    """How pairs are read, equal in every process. A pair's number is as in `ssb.training.streamed`; seed, max_steps and
    max_tokens are those of the Config."""

    corpus: HowTo100M
    streams: Sequence[str]
    max_steps: int
    max_tokens: int
    seed: int
    tokenizers: Sequence

    def window(self, number: int) -> tuple[np.ndarray, str]:
        """Features (steps, D) float32 and caption of a pair."""
        epochs, video = divmod(number, len(self.corpus))
        seed = (self.seed, epochs) if epochs else ()
        begin, end, caption = self.corpus.window(video, self.max_steps, *seed)
        streams: list[Features] = self.corpus.chosen(self.streams)
        return self.corpus.window_features(video, streams, begin, end), caption

    def read(self, numbers: np.ndarray) -> Pairs:
        """The pairs with these numbers (B,)."""
        windows, captions = zip(*(self.window(number) for number in numbers.tolist()))
        rows = (token_ids(tokenizer, list(captions), self.max_tokens) for tokenizer in self.tokenizers)
        tokens = [(np.concatenate(each), np.array([len(row) for row in each])) for each in rows]
        return Pairs(*padded(windows, self.max_steps), tokens)


def padded(windows: Sequence[np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (steps, D) as one array (B, most, D), padded with 0, and their steps (B,)."""
    values = np.zeros((len(windows), most, windows[0].shape[1]), np.float32)
    for row, window in zip(values, windows):
        row[: len(window)] = window
    return values, np.array([len(window) for window in windows])


class Readers:
    """`count` processes with a source, started by the first `read`. In memory are at most AHEAD batches for each."""

    def __init__(self, source: Source, count: int):
        self.source, self.count, self.turns = source, count, 0
        self.processes: list[subprocess.Popen] = []
        self.asked: deque[tuple[np.ndarray, Future]] = deque()
        self.receiver = ThreadPoolExecutor(1)  # takes the answers in the order in which they were asked for
        weakref.finalize(self, end, self.processes)

    def read(self, numbers: np.ndarray, following: Sequence[np.ndarray] = ()) -> Pairs:
        """The pairs with these numbers (B,); those of the following batches are read in the background. Raises what a
        reader raised, and MemoryError where one was killed."""
        while self.asked and not np.array_equal(self.asked[0][0], numbers):
            self.asked.popleft()  # of batches that are not wanted any more
        for each in [numbers, *following[: AHEAD * self.count]][len(self.asked) :]:
            self.ask(each)
        try:
            return self.asked.popleft()[1].result()
        except BaseException:
            self.asked.clear()
            end(self.processes)  # the next call starts others
            raise

    def ask(self, numbers: np.ndarray):
        """Give a reader the numbers of a batch to read; readers take turns."""
        if not self.processes:
            self.start()
        process = self.processes[self.turns % self.count]
        self.turns += 1
        try:
            pickle.dump(numbers, process.stdin)
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and its last answer says why
        self.asked.append((numbers, self.receiver.submit(answer, process)))

    def start(self):
        """Start the readers."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pipesize=PIPE)
        for _ in range(self.count):
            self.processes.append(subprocess.Popen([sys.executable, "-c", PROGRAM], **options))
        for process in self.processes:
            pickle.dump(self.source, process.stdin)


def answer(process: subprocess.Popen) -> Pairs:
    """The next answer of a reader."""
    try:
        result = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise MemoryError("a process that reads the corpus was killed") from None
    if isinstance(result, Exception):
        raise result
    return result


def end(processes: list[subprocess.Popen]):
    """End readers, and empty the list."""
    for process in processes:
        process.kill()
        process.wait()
    processes.clear()  # which closes the pipes


def main():
    """A reader: takes a `Source` and then numbers (B,) from standard input, gives `Pairs` or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # training stops it
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    def send(result: Pairs | Exception):
        pickle.dump(result, answers, protocol=5)
        answers.flush()

    try:
        source = pickle.load(requests)
        while True:
            send(source.read(pickle.load(requests)))
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except Exception as error:
        send(error)
