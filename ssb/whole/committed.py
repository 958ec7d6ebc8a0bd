"""How far the study is. Where a notebook was executed here, its record says so; where it was not, the tables that are
under results/ are judged by their settings, seeds and config_sha."""

import contextlib
import functools
import io
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd

from ssb import files, published
from ssb.config import ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError
from ssb.experiments import (
    baselines,
    carries,
    emcl_layer,
    false_negatives,
    leak,
    multiverse,
    overview,
    strength,
    together,
    transfer,
    when,
)
from ssb.progress import minutes
from ssb.published import Planned
from ssb.study import Study
from ssb.training.runs import run_name
from ssb.whole import contents, executed
from ssb.whole.contents import Entry

GRIDS = {name: experiment.grid for name, experiment in overview.TABLES.items() if experiment.grid}
GRIDS |= {"strength": strength.grid, "when": when.grid, "emcl_trials": lambda _: emcl_layer.trials()}
GRIDS |= dict.fromkeys(leak.TABLES, leak.grid)
GRIDS |= {"multiverse": lambda study: multiverse.grid(study, (published.PARAMETERS | study.parameters)["steps"])}


# why an entry is done that was not executed here
AS_COMMITTED, FIGURES_ALONE = "as committed", "figures alone"
SEEDS_ALONE = "committed; nothing but its seeds is checked without"


class Absent:
    """In place of a corpus whose files are not here. Known are its name and, from the tables, its fingerprint; whatever
    else is asked of it is a CorpusError."""

    def __init__(self, name: str, fingerprint: str, why: str):
        self.name, self.fingerprint, self._why = name, fingerprint, why

    def split(self, name: str) -> range:
        """As many clips of val and test as a study needs."""
        return range(2) if name in ("val", "test") else self.__getattr__(name)

    def __getattr__(self, name: str):
        raise CorpusError(self._why)


class AbsentStudy(Study):
    """A study whose runs can be planned, as far as they do not depend on the corpus, where its files are not here.

    corpora: those read before, by name and options; what this one reads is added.
    """

    def __init__(self, *args, corpora: dict[str, Corpus] | None = None, **parameters):
        self._corpora = {} if corpora is None else corpora
        super().__init__(*args, **parameters)

    def read_corpus(self):
        key = f"{self.base.corpus} {sorted(self.base.corpus_options.items())}"
        try:
            if key not in self._corpora:
                self._corpora[key] = super().read_corpus()
            return self._corpora[key]
        except CorpusError as error:
            folder = files.folder("results", files.label(self.base.corpus, self.preset))
            tables = [folder / f"{self.table}.csv", *sorted(folder.glob("[!.]*.csv"))]
            rows = (pd.read_csv(path, nrows=1) for path in tables if path.exists())  # read until one says it
            known = (row["corpus_sha"][0] for row in rows if len(row) and "corpus_sha" in row)
            return Absent(self.base.corpus, next(known, ""), str(error))


class Plan(NamedTuple):
    """The runs that a table is made of. complete: it has no others."""

    study: Study
    runs: list[Planned]
    complete: bool = True


def plans(entry: Entry, kind: Callable[..., Study] = Study) -> Iterator[Plan]:
    """The runs of each table of an entry, without those that depend on results which are not there; nothing is trained.
    kind: makes the studies. CorpusError where data are missing that they need, ConfigError where a preset has no
    settings for the corpus."""
    given = executed.values(entry)
    names = [name for _, name in entry.tables]
    make = functools.partial(kind, preset=given["preset"], seeds=given["seeds"])
    others = {name: given[name] for name in published.PARAMETERS if name in given}
    changes = given["changes"]
    if "rates" in given:
        for study in false_negatives.Sweep(**given).studies.values():
            yield Plan(study, study.planned(false_negatives.SWEEP))
    elif "objectives" in given:  # that are trained on another corpus first
        kind, other = ("pretrain", given["pretrain"]) if "pretrain" in given else ("trained", given["trained_on"])
        first = make(names[-1], other, changes=changes | given[f"{kind}_changes"])
        study = make(names[0], entry.corpus, changes=changes, **others)
        grid = transfer.pre_trained(given["objectives"])
        before = first.planned(grid)
        if kind == "trained":
            tested = [one._replace(setting=transfer.ZERO_SHOT.format(one.setting)) for one in before]
            yield Plan(study, [*tested, *study.planned(grid)])
            return
        yield Plan(first, before)
        begin = {name: [as_begun(first, one) for one in before if one.setting == name] for name in grid}
        tuned = transfer.fine_tuned(study.base, given["objectives"])
        yield Plan(study, study.planned(tuned, transfer.initial_runs(begin)))
    else:
        for corpus, name in entry.tables:
            videos = name == "together_videos"
            looks = name in baselines.TABLES
            own = {"objective": "none"} if looks else given["video_changes"] if videos else {}
            preset = given["video_preset" if videos else "preset"]
            seeds = given["seeds"][:1] if name == "emcl_trials" else given["seeds"]
            which = {"preset": preset, "seeds": seeds, "changes": changes | own}
            study = make(name, corpus, **which, looks=looks, **others)
            grid, complete = grid_of(name, study)
            decoders = {}
            if other := given.get("decoder_corpus"):
                grid, first = carries.settings(study, other), carries.lender(study, other)
                learnt = first.planned({"cross": {"objective": "cross"}})
                decoders[carries.BORROWED] = [as_begun(first, one) for one in learnt]
            yield Plan(study, study.planned(grid, decoders=decoders), complete)


def grid_of(table: str, study: Study) -> tuple[Mapping, bool]:
    """The grid of a table, and whether that is all of it."""
    if table in GRIDS:
        return GRIDS[table](study), True
    if table in ("emcl", "together"):
        path = study.results / "emcl_trials_validation.csv"
        tried = pd.read_csv(path) if path.exists() else pd.DataFrame([{**emcl_layer.LAYER._asdict(), "sum": 0}])
        best = tried.loc[tried["sum"].idxmax()]
        constants = emcl_layer.Constants(int(best.bases), int(best.stages), float(best.temperature), float(best.beta))
        return (emcl_layer.grid if table == "emcl" else together.clips)(constants), path.exists()
    if table in baselines.TABLES:  # that with which the search begins
        first = {"objective": "cross"} if study.preset == "tuned" else {}
        return {baselines.named(first): first}, False
    return {"cross": {}}, False


def as_begun(study: Study, one: Planned) -> SimpleNamespace:
    """A planned run as one that another begins with."""
    origin = {"corpus_sha": study.corpus.fingerprint}
    return SimpleNamespace(name=run_name(one.config, study.corpus), config=one.config, provenance=origin)


def differences(plan: Plan) -> list[str]:
    """How a table under results/ differs from what the notebook would make now, a clause for each kind."""
    study, path = plan.study, plan.study.results / f"{plan.study.table}.csv"
    if not path.exists():
        return [f"there is no {path.name}"]
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, value in study.part.items():
        rows = rows[pd.to_numeric(rows[column]) == value]
    clauses = published.conflicts(
        path, plan.runs, study.corpus.fingerprint, study.part, plan.complete, study.parameters
    )
    names, current, earlier = {one.setting for one in plan.runs}, set(), set()
    for row in rows.to_dict("records"):
        same = [one for one in plan.runs if str(one.seed) == row["seed"]]
        same = [one for one in same if row["setting"] == one.setting or row["setting"] not in names]
        made = {(one.setting, one.seed) for one in same if is_current(row, one, study)}
        current |= made
        earlier |= {(one.setting, one.seed) for one in same if not made and published.is_of(row, one)}
    if earlier:
        clauses.append(f"of an earlier version: {len(earlier)} of the runs of {path.name}")
    lacks = {(one.setting, one.seed) for one in plan.runs} - current - earlier
    if lacks and not clauses:
        clauses.append(f"{path.name} lacks {len(lacks)} of its runs, such as {min(lacks)[0]!r}")
    return clauses


def is_current(row: Mapping, one: Planned, study: Study) -> bool:
    """Is a row of a table, but for its seed, made by a planned run with this version of the library?"""
    if row.get("config_sha"):
        return row["config_sha"] == one.config.sha
    return row["run"] == run_name(one.config, study.corpus)


def judged(entry: Entry, corpora: dict[str, Corpus] | None = None) -> tuple[str, str]:
    """done, stale or "not yet made", and why, of an entry that was not executed here. corpora: see `AbsentStudy`. Where
    runs cannot be planned without data that are not here, of a table nothing but its seeds and files is looked at."""
    corpus, table = entry.tables[0]  # its own
    path = files.root() / "results" / files.label(corpus, entry.preset) / f"{table}.csv"
    if not path.exists():
        drawn = "table" not in executed.values(entry) and has_figures(entry)
        return ("done", FIGURES_ALONE) if drawn else ("not yet made", "")
    folder, kind = executed.lacking(entry), functools.partial(AbsentStudy, corpora=corpora)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            clauses = [clause for plan in plans(entry, kind) for clause in differences(plan)]
    except ConfigError as error:
        return "stale", " ".join(str(error).split())
    except CorpusError as error:
        clauses, why = other_seeds(entry, path), f"{SEEDS_ALONE} {folder or ' '.join(str(error).split())}"
    else:
        why = AS_COMMITTED
    clauses += [f"there is no {name}" for name in missing(entry)]
    return ("stale", "; ".join(dict.fromkeys(clauses))) if clauses else ("done", why)


def other_seeds(entry: Entry, path: Path) -> list[str]:
    """A clause where a table of an entry has other seeds than it would be made with."""
    seeds = sorted({int(seed) for seed in pd.read_csv(path)["seed"].dropna()})
    wanted = sorted(executed.values(entry)["seeds"])
    return [f"{path.name} has the seeds {seeds}, the list {wanted}"] if seeds != wanted else []


def missing(entry: Entry) -> list[str]:
    """The files that the notebook writes for the first table of an entry and that are not here."""
    names = json.loads(executed.source(entry).read_text(encoding="utf-8"))["metadata"]["ssb"]["writes"]
    (corpus, table), written = entry.tables[0], [Path(name) for name in names]
    stems = [path.stem for path in written]
    tables = {name for _, name in entry.tables} & {*stems} or {min(stems, key=len)}
    first = table if table in tables else min(tables, key=len)
    own = [path for path in written if contents.owner(path.parts[1], path.stem) == first]
    paths = [Path(path.parts[0], files.label(corpus, entry.preset), path.name.replace(first, table, 1)) for path in own]
    return [str(path) for path in paths if not (files.root() / path).exists()]


def has_figures(entry: Entry) -> bool:
    """Are there figures of an entry without tables? Those of all corpora together are in figures/ itself."""
    figures = files.root() / "figures"
    names = [(folder, name) for corpus, name in entry.tables for folder in (files.label(corpus, entry.preset), "")]
    return any(any((figures / folder).glob(f"{name}*.png")) for folder, name in names)


def overview_of(entries: Iterable[Entry]) -> Iterator[str]:
    """A table of the entries in lines, below a heading: how far each is, its minutes, and why; then what is left.
    Entries that are committed as they would be made are done, though `executed.run` would make them again, here."""
    entries, counts, corpora = list(entries), Counter(), {}
    left = again = 0.0
    width = max(len(entry.name) for entry in entries)
    yield f"{'state':14}  {'notebook':{width}}  {'takes':>7}  why"
    for entry in entries:
        word, why = executed.state(entry)
        if holder := files.held(executed.output(entry)):
            word, why = "running", holder
        elif word == "not yet made" and entry.preset != "smoke":
            word, why = judged(entry, corpora)
        counts[word] += 1
        left += 60 * executed.expected(entry) * (word != "done")
        again += 60 * executed.expected(entry) * (word == "done" and not executed.record(entry))
        why = textwrap.shorten(why, executed.SHOWN, placeholder=" …") if word == "stale" else why
        yield f"{word:14}  {entry.name:{width}}  {minutes(60 * executed.expected(entry)):>7}  {why}".rstrip()
    total = f"{', '.join(f'{count} {word}' for word, count in counts.items())}: {minutes(left)} left"
    yield total + (f", and {minutes(again)} for what is done but was not executed here" if again else "")
