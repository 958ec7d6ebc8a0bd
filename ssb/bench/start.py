"""What it costs to begin, for `ssb bench training`: the first run of a process and a further one; and an earlier commit
of the library beside this one.

All is measured in processes of their own, on one thread, each library with a folder of its own that holds its text
states.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ssb import files
from ssb.bench.timing import BenchmarkError, rows
from ssb.config import Config
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError
from ssb.training.runs import configure

HERE = Path(__file__).resolve().parents[2]
ROUNDS = 3
START = """
import json, sys, time
import ssb
from ssb.training import loop

class Begun(BaseException):
    pass

def step(self, captions, take=loop.Training.take_step):
    take(self, captions)
    raise Begun

loop.Training.take_step = step
begun, taken = 0.0, []  # the processor time of a process counts from its beginning
for seed in range(int(sys.argv[2])):
    try:
        ssb.fit(ssb.Config(**json.loads(sys.argv[1])).replace(seed=seed))
    except Begun:
        taken.append(time.process_time() - begun)
    begun = time.process_time()
print(json.dumps(taken))
"""
LOAD = """
import json, sys, time
import ssb

begun, taken = 0.0, []
for seed in range(int(sys.argv[2])):
    run = ssb.fit(ssb.Config(**json.loads(sys.argv[1])).replace(seed=seed, epochs=1))
    run.load()
    taken.append(time.process_time() - begun)
    begun = time.process_time()
print(json.dumps(taken))
"""
TABLE1 = """
import json, sys
import ssb

study = ssb.Study("table1", preset="paper", seeds=[0], jobs=1, changes=json.loads(sys.argv[1]))
runs = study.run({name: {"objective": name} for name in ssb.OBJECTIVES})
study.rows(runs)
study.summary(runs, "none")
print("[]")
"""


def child(
    program: str, config: Config, home: Path, library: Path = HERE, runs: int = 2
) -> tuple[list[float], float, float]:
    """Run a program with a Config and a number of runs in a process of its own: the numbers on its last line, and its
    seconds by the processor and by the clock. BenchmarkError where it fails."""
    environment = os.environ | {"SSB_HOME": str(home), "SSB_DATA": str(files.data()), "PYTHONPATH": str(library)}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", program, config.key, str(runs)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchmarkError(f"{library}: {(done.stderr.strip().splitlines() or ['a process was killed'])[-1]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), used, clock


def starting(config: Config) -> list[dict]:
    """Rows for the processor time until the first training step is done and until a finished run is loaded, as for a
    figure: from the beginning of a process, and a second time in it. On msrvtt1k too, where it is there."""
    found = []
    for each in dict.fromkeys([config.corpus, "msrvtt1k"]):
        if each != config.corpus:
            try:
                load_corpus(each)
            except CorpusError:
                print(f"{each} is not in {files.data()}: no rows for it")
                continue
            config = configure("laptop", each)
        with tempfile.TemporaryDirectory() as folder:
            for name, program in (("start", START), ("load", LOAD)):
                child(program, config, Path(folder))  # which computes text states, or trains
                taken = np.array([child(program, config, Path(folder))[0] for _ in range(ROUNDS)])
                names = f"{name}, {each}: first", f"{name}, {each}: further"
                found += rows(dict(zip(names, taken.T)), "s")
    return found


def commit(checkout: Path) -> str:
    """The commit of a checkout of the library; BenchmarkError where it is none."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (checkout / "ssb" / "__init__.py").is_file():
        raise BenchmarkError(f"--before {checkout}: no checkout of this library; make one with `git worktree add`")
    return done.stdout.strip()


def against(checkout: Path, config: Config) -> list[dict]:
    """Rows for a cold start, until the first training step is done, and for Table 1 with one seed, the objectives one
    after the other: by the checkout and by this library in turn. BenchmarkError where one of them fails."""
    libraries, found = {"before": checkout.resolve(), "ours": HERE}, []
    with tempfile.TemporaryDirectory() as folder:
        homes = {name: Path(folder) / name for name in libraries}
        for name, home in homes.items():
            home.mkdir()
            child(START, config, home, libraries[name])  # which computes the text states
        for what, program, rounds in (("cold start", START, ROUNDS), ("Table 1", TABLE1, 1)):
            taken = [[child(program, config, homes[x], libraries[x], 1)[1:] for x in homes] for _ in range(rounds)]
            for clock, values in zip(("", ", by the clock"), np.array(taken).T):
                found += rows({f"study: {what}{clock}: {x}": each for x, each in zip(homes, values)}, "s")
    return found
