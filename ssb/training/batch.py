"""Many runs, in parallel and to the end: what is being done, how long it takes, and which runs failed and why."""

import contextlib
import io
import os
import re
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, as_completed
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import joblib
import pandas as pd
from joblib.parallel import LokyBackend, get_active_backend

from ssb import files
from ssb.config import Config, ConfigError, located
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError
from ssb.progress import Bar, minutes
from ssb.text import ModelError
from ssb.training.loop import fit
from ssb.training.runs import Run, TrainingError, register, registered, run_name

OWN = (ConfigError, CorpusError, ModelError, TrainingError, files.StorageError)  # their messages say everything
LEAST = 0.05  # seconds of a run; tables give one digit, and so 0.0 for less
KILLED = "its process was killed, probably for memory: take fewer jobs, or a smaller batch"
EPOCH = re.compile(r"epoch +(\d+/\d+)")  # at the beginning of a line that `fit` prints
ALONE = threading.Lock()


class RunError(TrainingError):
    """A run failed by an error that is not one of the library's own; `trace` is its traceback."""

    trace = ""


class Trace(Exception):
    """The traceback of an error in a worker, shown as the cause of the error that is raised here."""

    def __str__(self):
        return f"\n{self.args[0]}"


class Outcome(NamedTuple):
    """What became of a run. remarks: lines that training printed, but for its epochs."""

    name: str
    result: Run | Exception
    seconds: float
    remarks: list[str]


class Output(io.TextIOBase):
    """The standard output of a run: its last line stands in a file that the study reads, its remarks are kept."""

    def __init__(self, path: Path):
        self.path, self.rest, self.remarks = path, "", []
        self.show("starts")

    def write(self, text: str) -> int:
        """Take text; every full line counts."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if epoch := EPOCH.match(line):
                line = f"epoch {epoch[1]}"
            elif line.strip():
                self.remarks.append(line)
            self.show(line)
        return len(text)

    def show(self, line: str) -> None:
        """Write a line where the study shows it as the state of this run."""
        with contextlib.suppress(OSError):  # a worker of another machine has no such folder
            self.path.write_text(line, encoding="utf-8")


def train(
    todo: Mapping[str, tuple[str, Config]], jobs: int, estimates: Mapping[str, float], remarks: Iterable[str] = ()
) -> dict[str, Exception]:
    """Train all runs. todo: run → its title and Config. estimates: run → seconds, or NaN where they are not known.
    remarks: of runs, that are not printed again.

    Returns failed run → why. A worker that is killed ends its batch: then those runs that were being trained are
    trained again one at a time and the others together, and a run that kills its process alone is a failed one. Where
    none had begun, half as many are trained at the same time.
    """
    titles = {name: title for name, (title, _) in todo.items()}
    failed, ended, printed = {}, set(), set(remarks)
    clock, batches = Clock(estimates, joblib.effective_n_jobs(jobs), work(todo)), [([*todo], jobs)]
    with tempfile.TemporaryDirectory(prefix="ssb-") as path, Bar(len(todo)) as bar:
        folder = Path(path)
        bar.now = lambda: f"{clock.left()}  {running(folder, titles)}"
        while batches:
            names, width = batches.pop(0)
            try:
                for outcome in parallel({name: todo[name][1] for name in names}, width, folder):
                    name, result, seconds, lines = outcome
                    ended.add(name)
                    clock.ended(outcome)
                    for remark in lines:
                        if remark not in printed:
                            bar.print(f"{titles[name]}: {remark}")
                    printed.update(lines)
                    if isinstance(result, Run):
                        line = f"t2v R@1 {result.metrics['t2v R@1']:5.1f}, {seconds:.0f} s"
                    else:
                        failed[name], line = result, f"failed: {result}"
                    bar.step(f"{titles[name]}: {line}; {clock.left()}")
            except BrokenExecutor:
                if len(names) == 1:
                    failed[names[0]] = TrainingError(KILLED)
                    bar.step(f"{titles[names[0]]}: failed: {KILLED}")
                    continue
                left = [name for name in names if name not in ended]
                active = [name for name in left if (folder / name).exists()]
                if not active:  # the killed worker was about to begin with any of them
                    half = max(1, min(joblib.effective_n_jobs(width), len(left)) // 2)
                    bar.print(
                        f"a worker was killed before it began a run, probably for memory: {len(ended)} of {len(todo)} "
                        f"runs are kept, the others go on, at most {half} at the same time; take fewer jobs"
                    )
                    batches = ([(left, half)] if half > 1 else [([name], 2) for name in left]) + batches
                    continue
                killed = ", ".join(titles[name] for name in active)
                bar.print(f"a worker was killed while these were trained: {killed}; they are trained one at a time")
                for name in active:
                    (folder / name).unlink(missing_ok=True)
                if others := [name for name in left if name not in active]:
                    batches.insert(0, (others, width))
                batches = [([name], 2) for name in active] + batches  # 2: a job in a process of its own
    return failed


def parallel(configs: Mapping[str, Config], jobs: int, folder: Path) -> Iterator[Outcome]:
    """Train in parallel; outcomes as the runs end. BrokenExecutor where a worker is killed; on a dask cluster, which
    gives its run to another worker, where that has happened to a run again and again, after the others have ended."""
    environment = {"SSB_HOME": str(files.root()), "SSB_DATA": str(files.data())}  # workers may run elsewhere
    environment["SSB_MODULES"] = os.pathsep.join(sys.path)  # a worker may be older than what has been added to it
    own, backend = registered(), get_active_backend()[0]
    arguments = [(name, config, environment, folder, own) for name, config in configs.items()]
    if hasattr(backend, "client"):
        yield from on_dask(backend.client, arguments)
        return
    options = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "n_jobs"}
    if isinstance(backend, LokyBackend):  # the workers of a cluster serve others too
        options |= {"initializer": files.end_with, "initargs": (os.getpid(),)}
    workers = min(joblib.effective_n_jobs(jobs), max(len(configs), 2))
    environment["LOKY_MAX_CPU_COUNT"] = str(max(1, joblib.cpu_count() // workers))  # cores that a run may use
    yield from joblib.Parallel(n_jobs=workers, **options)(joblib.delayed(attempt)(*each) for each in arguments)


def on_dask(client, arguments: Iterable[tuple]) -> Iterator[Outcome]:
    """`alone` with each of these arguments on the cluster of a `distributed.Client`; joblib would wait for ever for a
    run that has killed its workers."""
    executor = client.get_executor(pure=False)
    try:
        lost = None
        for future in as_completed([executor.submit(alone, *each) for each in arguments]):
            if error := future.exception():
                lost = error
            else:
                yield future.result()
        if lost:
            raise BrokenExecutor(str(lost)) from lost
    finally:
        executor.shutdown(wait=False)  # a study that is stopped begins no further run


def alone(*arguments) -> Outcome:
    """`attempt`, one at a time in a process: the threads of a dask worker would share torch's random numbers."""
    with ALONE:
        return attempt(*arguments)


def attempt(name: str, config: Config, environment: dict[str, str], folder: Path, own: tuple) -> Outcome:
    """`fit` in a worker; returns whatever went wrong too, so that the other runs go on."""
    start, output = time.perf_counter(), Output(folder / name)
    try:
        os.environ.update(environment)
        if "SSB_MODULES" in environment:
            sys.path[:] = dict.fromkeys([*environment["SSB_MODULES"].split(os.pathsep), *sys.path])
        register(*own)
        with contextlib.redirect_stdout(io.StringIO()):  # a corpus prints its remarks when the study loads it
            corpus = load_corpus(config.corpus, **config.corpus_options)
        if (other := run_name(config, corpus)) != name:
            raise TrainingError(
                f"the worker would train run {other}, not {name}: its data, models or code differ from the study's; "
                "give it the same SSB_HOME and SSB_DATA, and the same files there"
            )
        with contextlib.redirect_stdout(output):
            result = fit(config, corpus)
    except OWN as error:
        result = error
    except (Exception, SystemExit) as error:
        result = RunError(located(error))
        result.trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        (folder / name).unlink(missing_ok=True)
    return Outcome(name, result, time.perf_counter() - start, output.remarks)


def running(folder: Path, titles: Mapping[str, str]) -> str:
    """The runs that are being trained, each with what it printed last."""
    words = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):
            words.append(f"{titles[path.name]}: {path.read_text(encoding='utf-8')}")
    return " · ".join(words)


def estimates(todo: Mapping[str, tuple[str, Config]], results: Path, preset: str, epochs: int) -> dict[str, float]:
    """Run → its seconds by the tables of its corpus and preset, the median of the same settings, else of the same
    setting, else of all; NaN without a table. todo: as in `train`. epochs: of the preset."""
    columns = ["setting", "preset", "config_sha", "seconds"]
    frames = [pd.read_csv(path, dtype={"setting": str}) for path in sorted(results.glob("[!.]*.csv"))]
    frames = [frame.loc[frame["preset"] == preset, columns] for frame in frames if {*columns} <= {*frame}]
    rows, seconds = pd.concat([pd.DataFrame(columns=columns), *frames]), {}
    for name, (title, config) in todo.items():
        same = rows["config_sha"] == config.sha
        share = 1.0 if same.any() else config.epochs / epochs
        same = same if same.any() else rows["setting"] == title.rpartition(", seed ")[0]
        seconds[name] = float((rows[same] if same.any() else rows)["seconds"].median()) * share
    return seconds


def work(todo: Mapping[str, tuple[str, Config]]) -> dict[str, float]:
    """Run → how much work it is beside the others: its epochs, twice where it captions. todo: as in `train`."""
    return {name: config.epochs * (1.0 if config.objective == "none" else 2.0) for name, (_, config) in todo.items()}


class Clock:
    """How long the rest of a batch takes. estimates: run → seconds by the committed tables, or NaN. They are corrected
    by the runs that have ended here, on this machine. work: as of `work`, for runs without an estimate."""

    def __init__(self, estimates: Mapping[str, float], workers: int, work: Mapping[str, float] = MappingProxyType({})):
        known = [seconds for seconds in estimates.values() if seconds == seconds]
        usual = statistics.median(known) if known else 1.0
        share = {name: work.get(name, 1.0) for name in estimates}
        each = usual / statistics.median(share.values()) if share else usual
        times = {name: seconds if seconds == seconds else each * share[name] for name, seconds in estimates.items()}
        self.expected = {name: max(seconds, LEAST) for name, seconds in times.items()}
        self.scale, self.spent, self.done = 1.0 if known else float("nan"), 0.0, 0.0
        self.workers, self.start = workers, time.perf_counter()

    def ended(self, outcome: Outcome) -> None:
        """Count a run that has ended."""
        if isinstance(outcome.result, Run):
            self.spent, self.done = self.spent + outcome.seconds, self.done + self.expected[outcome.name]
            self.scale = self.spent / self.done
        else:
            del self.expected[outcome.name]

    def seconds(self) -> float:
        """Until all runs have ended; NaN where nothing is known yet."""
        if not self.expected:
            return 0.0
        whole = self.scale * max(sum(self.expected.values()) / self.workers, max(self.expected.values()))
        return max(whole - (time.perf_counter() - self.start), 0) if whole == whole else whole

    def left(self) -> str:
        """How long the rest takes, in words; see `seconds`."""
        seconds = self.seconds()
        return f"about {minutes(seconds)} left" if seconds == seconds else "time left unknown until a run has ended"
