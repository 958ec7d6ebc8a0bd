"""Execute the notebooks of the study, each in a process of its own, and know which of them are done.

An executed notebook is results/executed/<name of the entry>.ipynb. Beside it are its log (.log) and its record (.json):
what it depended on, the minutes that it took, and the error where it failed. It is stale when something that it
depended on has changed since.
"""

import ast
import contextlib
import functools
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ssb import files
from ssb.config import VERSION, Config, ConfigError
from ssb.corpora import features
from ssb.corpora.load import CORPORA
from ssb.progress import minutes
from ssb.whole import contents
from ssb.whole.contents import Entry

SHOWN = 160  # letters of an error
# parameters that change the preset → the parameter that names the corpus that they are of
CHANGES = {"changes": "corpus", "pretrain_changes": "pretrain", "trained_changes": "trained_on"}
CHANGES |= {"video_changes": "videos"}
CHILD = "from ssb.whole.executed import child; child()"


def source(entry: Entry) -> Path:
    """The notebook's file, of the study's folder or else of the checkout that the library runs from."""
    for folder in (files.root(), Path(__file__).parents[2]):
        if (path := folder / "notebooks" / f"{entry.notebook}.ipynb").is_file():
            return path
    raise FileNotFoundError(f"{files.root() / 'notebooks'} has no {entry.notebook}.ipynb; run this in a checkout")


def output(entry: Entry) -> Path:
    """The executed notebook."""
    return files.root() / "results" / "executed" / f"{entry.name}.ipynb"


def values(entry: Entry) -> dict:
    """The parameters that the notebook declares → the values that it is executed with."""
    cells = json.loads(source(entry).read_text(encoding="utf-8"))["cells"]
    cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(cell["source"])).body
    defaults = {line.target.id: ast.literal_eval(line.value) for line in lines}
    given = {"corpus": entry.corpus, **entry.parameters}
    return {name: given.get(name, default) for name, default in defaults.items()}


def smoke(entry: Entry) -> Entry:
    """The entry with the preset smoke: what its notebook says of a run of seconds, on the corpora of the entry."""
    given = json.loads(source(entry).read_text(encoding="utf-8"))["metadata"]["ssb"]["smoke"]
    given, usual = {name: given[name] for name in given if name not in ("corpus", "jobs")}, values(entry)
    for name in given.keys() & CHANGES.keys():
        given[name] = usual[name] | given[name]
        if CORPORA[usual.get(CHANGES[name], entry.corpus)].dataset:
            given[name].pop("corpus_options", None)  # sizes of the corpora that the library draws
    return entry._replace(parameters={**entry.parameters, **given}, minutes=0.5)


def lacking(entry: Entry) -> str:
    """The folder of data that an entry needs and that is not there, or ""."""
    others = (entry.parameters.get(name) for name in ("pretrain", "trained_on", "decoder_corpus"))
    corpora = {entry.corpus, *(corpus for corpus, _ in entry.tables), *filter(None, others)}
    names = sorted(name for name in corpora if CORPORA[name].dataset and not features.own_folder(name))
    folders = [files.data() / CORPORA[name].dataset for name in names]
    return next((str(folder) for folder in folders if not folder.is_dir()), "")


def _owned(entry: Entry, kind: str, suffix: str, also: str = "") -> str:
    """The digest of the files of this suffix that the entry has written under results/ or figures/. also: a pattern of
    further ones there, which it reads."""
    paths = []
    for corpus, table in entry.tables:
        folder = files.folder(kind, files.label(corpus, entry.preset))
        own = [path for path in folder.glob(f"[!.]*{suffix}") if contents.owner(folder.name, path.stem) == table]
        paths += own + ([*folder.glob(also)] if also else [])
    return files.digest(*(f"{path.name} {files.sha256(path)}" for path in sorted(paths)))


def settings(entry: Entry) -> str:
    """The digest of what the entry's preset sets on its corpus, "" where it has none."""
    preset = values(entry).get("preset", "paper")
    with contextlib.suppress(ConfigError):
        return Config.preset(preset, **CORPORA[entry.corpus].settings.get(preset, {})).sha
    return ""


def depends(entry: Entry) -> dict[str, str]:
    """What an executed notebook depends on: what in words → its digest. That of the data is of the names and sizes of
    the official files and of the features, "" where there are none or none are needed."""
    dataset = CORPORA[entry.corpus].dataset
    home = files.data() / dataset
    paths = [*home.glob("*"), *features.place(home).rglob("*")] if dataset else []
    sizes = [f"{path.relative_to(path.parents[2])} {path.stat().st_size}" for path in paths if path.is_file()]
    return {
        "the notebook": files.sha256(source(entry))[:12],
        "its preset": settings(entry),
        "its parameters": files.digest(json.dumps(values(entry) | {"jobs": 0}, sort_keys=True)),
        "the library": library(),
        "the data": files.digest(*sorted(sizes)) if sizes else "",
        "its results": _owned(entry, "results", ".csv", entry.reads),
        "its figures": _owned(entry, "figures", ".png"),
    }


@functools.cache
def library() -> str:
    """The digest of the library's code and of the version of its runs."""
    folder = Path(__file__).parents[1]
    paths = sorted(folder.rglob("*.py"))
    return files.digest(str(VERSION), *(f"{path.relative_to(folder)} {files.sha256(path)}" for path in paths))


def record(entry: Entry) -> dict:
    """What is known of the last execution: of (see `depends`), minutes, error; {} where there was none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is made again
        known = json.loads(output(entry).with_suffix(".json").read_text(encoding="utf-8"))
        return {"of": dict(known["of"]), "minutes": float(known["minutes"]), "error": str(known["error"])}
    return {}


def _keep(entry: Entry, seconds: float, error: str):
    with files.written(output(entry).with_suffix(".json")) as draft:
        known = {"of": depends(entry), "minutes": round(seconds / 60, 2), "error": error}
        draft.write_text(json.dumps(known, indent=1), encoding="utf-8")


def state(entry: Entry) -> tuple[str, str]:
    """done, stale, failed or "not yet made", and why."""
    known = record(entry)
    if not known:
        return "not yet made", ""
    if known["error"]:
        return "failed", f"{known['error']}; see {files.short(output(entry).with_suffix('.log'))}"
    if not output(entry).exists():
        return "stale", "the executed notebook is not there"
    now = depends(entry)
    if changed := [what for what in now if now[what] and now[what] != known["of"].get(what)]:
        return "stale", f"changed: {', '.join(changed)}"
    return "done", ""


def expected(entry: Entry) -> float:
    """The minutes that an entry takes: that it took last time, or else by the list."""
    known = record(entry)
    return known["minutes"] if known and not known["error"] else entry.minutes


def run(entries: Iterable[Entry], jobs: int | None = None) -> dict[str, str]:
    """Execute what is not done, one notebook after the other. jobs: runs at the same time, None: as in the notebooks.
    Returns name → why it is not done."""
    entries = list(entries)
    todo = [entry for entry in entries if state(entry)[0] != "done"]
    left = [expected(entry) for entry in todo]
    done, long = len(entries) - len(todo), minutes(60 * sum(left))
    print(f"notebooks: {done} of {len(entries)} are done, {long} left", flush=True)
    failed = {}
    for number, entry in enumerate(todo):
        print(f"{number + 1}/{len(todo)}  {entry.name}, about {minutes(60 * left[number])}", flush=True)
        if folder := lacking(entry):
            failed[entry.name] = f"needs SSB_DATA: no {folder}"
        elif error := execute(entry, jobs):
            failed[entry.name] = f"{error}; see {files.short(output(entry).with_suffix('.log'))}"
        print(f"       {failed.get(entry.name) or 'done in ' + minutes(60 * record(entry)['minutes'])}", flush=True)
    return failed


def execute(entry: Entry, jobs: int | None = None) -> str:
    """Execute a notebook, unless it is done; returns "" or why it failed. It is executed by one process at a time."""
    path, log = output(entry), output(entry).with_suffix(".log")
    with files.lock(path, lambda holder: print(f"       waits for {holder}", flush=True)):
        if state(entry)[0] == "done":
            return ""
        given = values(entry)
        if jobs is not None and "jobs" in given:
            given["jobs"] = jobs
        arguments = json.dumps([str(source(entry)), str(path), given, os.getpid()])
        command = [sys.executable, "-c", CHILD, arguments]
        environment = os.environ | {"SSB_HOME": str(files.root()), "SSB_DATA": str(files.data())}
        start = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as out:  # in a session of its own: Ctrl-C is for this process alone
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
            try:
                code = process.wait()
            finally:
                process.terminate()
                process.wait()
        error = _reason(code, log)
        _keep(entry, time.perf_counter() - start, error)
        return error


def _reason(code: int, log: Path) -> str:
    """Why a process ended with this code, "" for 0."""
    if code <= 0:
        return f"ended by signal {-code}" if code else ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line[:SHOWN] for line in reversed(lines) if line), f"exit code {code}")


def child():
    """Execute one notebook, in a process that `execute` has started."""
    import papermill

    notebook, path, given, parent = json.loads(sys.argv[1])
    files.end_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {"kernel_name": "python3", "progress_bar": False, "log_output": True}
    try:
        with files.written(Path(path)) as draft:
            papermill.execute_notebook(notebook, draft, given, **options)
    except papermill.PapermillExecutionError as error:
        print(re.sub(r"\x1b\[[\d;]*m", "", str(error)), file=sys.stderr)
        sys.exit(" ".join(f"{error.ename}: {error.evalue}".split()))
