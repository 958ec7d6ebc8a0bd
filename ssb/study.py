"""A table of the paper as a grid of runs: each run trained once, then rows, intervals and tests next to the paper's."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch

from ssb import files, processes, published
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.load import CORPORA, load_corpus
from ssb.corpora.reading import CorpusError, listed
from ssb.metrics.statistics import settled
from ssb.paper import Claim
from ssb.progress import minutes
from ssb.published import Planned
from ssb.tables import released
from ssb.tables.verdicts import EMPTY, Ranks, Runs, claimed, compared, judged, rounded
from ssb.training import batch
from ssb.training.loop import fit, read_back
from ssb.training.runs import (
    Collapsed,
    Run,
    TrainingError,
    check,
    configure,
    corpus_label,
    load,
    run_name,
)

PROTOCOLS = ("t2v", "v2t best-caption", "v2t max-per-video")
COUNTS = ("best_epoch", "n_queries")  # of Run.metrics, whole numbers
Grid = Mapping[str, Mapping]  # setting → what it changes in the preset
MOST_JOBS = 1024
SMOKE = "SMOKE PRESET: seconds of training that test whether everything runs. Its numbers and figures mean nothing."


class Study:
    """One table on one corpus with one preset.

    table: the name of its files, "table1". seeds: each setting is trained once with each. jobs: runs at the same time,
    -1: one on each core, or one where there is a GPU to share; under `joblib.parallel_config("dask")` they go to a
    cluster. changes: what all runs of the table change in the preset, such as {"epochs": 5}.
    looks: rank the validation clips in place of the test clips, to choose settings (`Config.evaluate`).
    parameters: of its notebook, those that change what is made of the runs, see `published.PARAMETERS`; what differs
    from there is a column of the rows.
    """

    def __init__(
        self,
        table: str,
        corpus: str = "shapes",
        preset: str = "laptop",
        seeds: Iterable[int] = (0, 1, 2),
        jobs: int = -1,
        changes: Mapping = EMPTY,
        looks: bool = False,
        **parameters,
    ):
        if isinstance(seeds, str) or not isinstance(seeds, Iterable):
            raise ConfigError(f"seeds = {seeds!r:.80}: wanted a list of whole numbers, such as [0, 1, 2]")
        if type(jobs) is not int or not 1 <= abs(jobs) <= MOST_JOBS:
            raise ConfigError(
                f"jobs = {jobs!r:.80}: wanted 1 to {MOST_JOBS} runs at the same time, or -1 for each core"
            )
        checked(changes, "changes")
        if (count := processes.launched()) > 1:
            raise ConfigError(
                f"a study was started as one of {count} processes: start it without `accelerate launch`; `jobs` trains "
                "several runs at the same time, `accelerate launch -m ssb train …` one run in several processes"
            )
        self.table, self.preset, self.seeds = published.plain_name(table, "table ="), preset, list(seeds)
        self.jobs = 1 if jobs == -1 and torch.cuda.is_available() else jobs
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: wanted one or more different whole numbers")
        if "seed" in changes:
            raise ConfigError(f"changes: the seed is no change of all runs; give seeds = [{changes['seed']}]")
        self._check_evaluated(changes, "changes")
        if preset == "smoke":
            print(SMOKE)
        self.base = configure(preset, **{"corpus": corpus, **changes, "evaluate": "val" if looks else "test"})
        self.corpus: Corpus = self.read_corpus()
        published.check_label(self.corpus.name, self.base.corpus not in CORPORA, CORPORA)
        for split in ("val", "test"):
            if (clips := len(self.corpus.split(split))) < 2:
                name = self.corpus.name
                raise CorpusError(f"{name}: {clips} clip in the {split} split; a study resamples clips: give 2 or more")
        self.parameters = published.other_parameters(parameters)
        self.label = files.label(self.corpus.name, preset)
        self.corpus_label = corpus_label(self.base)
        changed = {**changes, **self.base.corpus_options, **({"evaluate": "val"} if looks else {})}
        names = {"captioning": "λ", "temperature": "T"}
        values = {name: f"{x:g}" if isinstance(x, float) else x for name, x in changed.items()}
        parts = [f"{names.get(name, name)} = {value}" for name, value in values.items() if name != "corpus_options"]
        self.subtitle = ", ".join([self.corpus.name, f"{preset} preset", *parts])  # for titles
        self.results, self.changes = files.folder("results", self.label), dict(changes)
        self.part: Mapping = EMPTY  # column → value of this study's rows, where several share one table
        self.plan: list[Planned] = []  # of `run`: runs whose rows may be written
        self.tables: list[Path] = []  # written so far
        self.collapsed: dict[str, int] = {}  # settings left out → how many of their runs collapsed

    def read_corpus(self) -> Corpus:
        """The corpus of the runs; CorpusError as of `load_corpus`."""
        return load_corpus(self.base.corpus, **self.base.corpus_options)

    def grid(self, grid: Grid) -> pd.DataFrame:
        """What each setting changes, to be read before anything is trained: one row for each setting, one column for
        each setting of `ssb.Config` that differs, "" where a row keeps the value of the last row, "otherwise".
        ConfigError for a setting that does not exist or is out of range, and as of `protect`."""
        self.protect(self.planned(grid), complete=False)
        base = self.base.model_dump()
        full = [Config(**{**base, **changes}).model_dump() for changes in grid.values()]
        columns = [name for name in base if any(config[name] != base[name] for config in full)]
        rows = {name: [_cell(changes[c]) if c in changes else "" for c in columns] for name, changes in grid.items()}
        rows["otherwise"] = [_cell(base[column]) for column in columns]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("setting")

    def planned(self, grid: Grid, begin: Runs = EMPTY, decoders: Runs = EMPTY) -> list[Planned]:
        """The runs of a grid, setting by setting and seed by seed. Arguments and errors as of `run`."""
        plan = []
        for setting, changes in checked(grid, "the grid").items():
            checked(changes, f"the setting {setting!r}")
            first, decoder = (runs.get(setting, [None] * len(self.seeds)) for runs in (begin, decoders))
            for given in (first, decoder):
                if len(given) != len(self.seeds):
                    raise ConfigError(f"{setting!r}: {len(given)} runs to begin with for {len(self.seeds)} seeds")
            self._check_evaluated(changes, f"the setting {setting!r}")
            if "seed" in changes:
                raise ConfigError(f"{setting!r} changes the seed; give the seeds of all settings as seeds")
            for seed, before, learnt in zip(self.seeds, first, decoder):
                weights = {"pretrained": before.name} if before else {}
                weights |= {"pretrained_decoder": learnt.name} if learnt else {}
                config = check(self.base.replace(**{**changes, "seed": seed, **weights}).effective())
                if (config.corpus, config.corpus_options) != (self.base.corpus, self.base.corpus_options):
                    raise ConfigError(f"{setting!r} changes the corpus; a table is of one corpus: make another Study")
                plan.append(published.planned(setting, config, self.corpus, before))
        return plan

    @staticmethod
    def _check_evaluated(changes: Mapping, what: str):
        if "evaluate" in changes:
            raise ConfigError(
                f"{what}: evaluate = {changes['evaluate']!r}; a table is of the test clips, and with Study(…, looks = "
                "True) of the validation clips: leave it out"
            )

    def protect(self, plan: Iterable[Planned], complete: bool = True):
        """ConfigError where results/<corpus>/<table>.csv holds what these runs would replace; the smoke preset is
        exempt. complete: as of `published.conflicts`."""
        if self.preset != "smoke":
            changed = {**self.parameters, **self.changes, "seeds": "".join(map(str, self.seeds))}
            if not self.tables:
                published.check_name(self.table, self.results, files.folder("figures", self.label))
            path, sha = self.results / f"{self.table}.csv", self.corpus.fingerprint
            published.check(path, plan, sha, self.part, complete, changed, self.parameters)

    def run(
        self,
        grid: Grid,
        may_collapse: bool = False,
        begin: Runs = EMPTY,
        further: Runs = EMPTY,
        complete: bool = True,
        decoders: Runs = EMPTY,
    ) -> dict[str, list[Run]]:
        """Train what is not trained yet; returns setting → its runs, one for each seed.

        grid: setting → what it changes in the preset. A run that fails does not stop the others: they are finished and
        kept, and TrainingError then names those that failed and why.
        may_collapse: leave out the settings of which a run collapses, because their other seeds alone would flatter
        them; each is printed and counted in `self.collapsed`.
        begin: settings that begin with the weights of other runs, setting → a run for each seed (`Config.pretrained`).
        further: finished runs of settings that belong to the table too; returned before the others.
        complete: False: the table will have further settings, which depend on these.
        decoders: the same for settings that begin with the decoder of other runs (`Config.pretrained_decoder`).
        ConfigError, before anything is trained: for a setting that changes the corpus or the seed, for `begin` that
        does not fit the grid and the seeds, and where the published table would lose or change rows (see `protect`).
        TrainingError, before as well, where a finished run is damaged.
        """
        plan = self.planned(grid, begin, decoders)
        if unknown := sorted({*begin, *decoders} - grid.keys()):
            raise ConfigError(f"begin names {listed(unknown)}; there are the settings {listed(grid)}")
        others = [published.finished(setting, run) for setting, members in further.items() for run in members]
        self.protect([*others, *plan], complete)
        self.plan = [*others, *plan]
        folders, todo = {}, {}  # setting → folders of its runs; run that is not trained yet → its title and Config
        damaged: dict[str, None] = {}
        for one in plan:
            folder = files.runs() / run_name(one.config, self.corpus)
            folders.setdefault(one.setting, []).append(folder)
            if (folder / "metrics.json").exists():
                try:
                    read_back(folder)
                except TrainingError as error:
                    damaged[str(error)] = None
            else:
                todo.setdefault(folder.name, (f"{one.setting}, seed {one.seed}", one.config))
        if damaged:  # all of them, before anything is trained
            raise TrainingError("\n".join(damaged))
        try:
            failed = self._train(todo, len({folder for paths in folders.values() for folder in paths}))
        except KeyboardInterrupt:  # without the lines of the libraries that were at work
            raise KeyboardInterrupt("stopped; what is finished is kept, the same command continues from here") from None
        if may_collapse:
            lost = {name for name, error in failed.items() if isinstance(error, Collapsed)}
            failed = {name: error for name, error in failed.items() if name not in lost}
            collapsed = [setting for setting, paths in folders.items() for path in paths if path.name in lost]
            self.collapsed = dict(Counter(collapsed))
            for setting, count in self.collapsed.items():
                print(f"left out: {setting}, of which {count} of {len(self.seeds)} runs collapsed")
                del folders[setting]
        if failed:
            lines = "\n".join(f"{todo[name][0]}: {error}" for name, error in failed.items())
            traces = [error.trace for error in failed.values() if isinstance(error, batch.RunError)]
            raise TrainingError(f"{len(failed)} of {len(todo)} runs failed; the others are kept.\n{lines}") from (
                batch.Trace(traces[0]) if traces else None
            )
        for path in (path for paths in folders.values() for path in paths):
            if not (path / "metrics.json").exists():
                raise TrainingError(f"workers wrote elsewhere than {path}; give them the same SSB_HOME and SSB_DATA")
        return {**further, **{setting: [Run(path) for path in paths] for setting, paths in folders.items()}}

    def _train(self, todo: Mapping[str, tuple[str, Config]], total: int) -> dict[str, Exception]:
        """Train, run → its title and Config, after a line that says what is read back, what is trained, and for how
        long. total: all runs. Returns failed run → why."""
        if not todo:
            print(f"{total} runs, all read from {files.short(files.runs())}")
            return {}
        usual = configure(self.preset, self.base.corpus).epochs
        estimates = batch.estimates(todo, self.results, self.preset, usual)
        workers = min(joblib.effective_n_jobs(self.jobs), len(todo))
        seconds = batch.Clock(estimates, workers, batch.work(todo)).seconds()
        long = f"about {minutes(seconds)}" if seconds == seconds else "for how long is known when one has ended"
        parallel = f"on {workers} cores" if workers > 1 else "one at a time"
        read = f"{total - len(todo)} read from {files.short(files.runs())}, " if total > len(todo) else ""
        print(f"{total} runs: {read}{len(todo)} to train {parallel}, {long}", flush=True)
        kinds = {(c.text_encoder, c.max_tokens, c.objective == "none"): c for _, c in todo.values() if c.freeze_text}
        cut: list[str] = []
        for config in kinds.values():
            cut += load(config, self.corpus).cut  # once, before several processes need them at the same time
        remarks = dict.fromkeys(cut)
        print("".join(f"{line}\n" for line in remarks), end="", flush=True)
        return batch.train(todo, self.jobs, estimates, remarks)

    def rows(
        self, runs: Runs, also: pd.DataFrame | None = None, fixed: Ranks = EMPTY, ranks: Ranks | None = None
    ) -> pd.DataFrame:
        """One row for each run, with its provenance; written to results/<corpus>/<table>.csv, and the ranks beside it,
        see `release`. also: further columns, by setting and seed. fixed, ranks: as in `summary`."""
        frame = self.frame(runs)
        if also is not None:
            new = [name for name in also if name not in frame or name in ("setting", "seed")]
            frame = frame.merge(also[new].round(4), on=["setting", "seed"])
        self.write(frame, f"{self.table}.csv")
        self.release([runs], fixed, ranks)
        return frame

    def release(self, tables: Iterable[Runs], fixed: Ranks = EMPTY, ranks: Ranks | None = None):
        """Write the ranks of every test query of the table's runs to results/<corpus>/<table>.npz, by which
        `ssb.tables.released` computes summary and claims again. tables: of all parts. ConfigError as of `write`."""
        self.release_arrays(released.arrays(tables, fixed, ranks))

    def release_arrays(self, arrays: Mapping[str, np.ndarray]):
        """Write what is measured of every test query, or clip, of the table's runs to results/<corpus>/<table>.npz.
        arrays: by keys that begin with the name of a run, or with released.FIXED. ConfigError as of `write`."""
        self._may_write()
        path = self.results / f"{self.table}.npz"
        released.write(path, arrays)
        self._wrote(path)

    def frame(self, runs: Runs) -> pd.DataFrame:
        """`rows` without writing them; `trained_on` is a column where runs began with the weights of others."""
        rows = []
        for setting, members in runs.items():
            for run in members:
                row = {"table": self.table, "corpus": self.corpus.name, "setting": setting, "seed": run.config.seed}
                row |= {name: f"{value:.2f}" for name, value in run.metrics.items() if name not in COUNTS}
                row |= {"share": share_cell(run.share), "ratio": "" if run.ratio is None else f"{run.ratio:.4g}"}
                row |= {name: run.metrics[name] for name in COUNTS}
                row |= {"trained_on": run.trained_on}
                row |= {"preset": self.preset, "run": run.name, "config_sha": run.config.sha}
                rows.append(row | run.provenance)
        frame = pd.DataFrame(rows).sort_values(["setting", "seed"], kind="stable").reset_index(drop=True)
        return frame if any(frame["trained_on"]) else frame.drop(columns="trained_on")

    def summary(
        self, runs: Runs, baseline: str, fixed: Ranks = EMPTY, ranks: Ranks | None = None, paper: str = ""
    ) -> pd.DataFrame:
        """One row for each setting; written to results/<corpus>/<table>_summary.csv.

        For each metric the mean over seeds; for R@1 also its deviation over seeds and its 95 % interval over queries
        (resampling clips, since captions of one clip are not independent), the paper's number where it prints one, and
        the difference to the baseline:
          delta, delta_low, delta_high   of the seed means, 95 % by paired bootstrap over clips
          seeds_low, seeds_high          95 % by Student's t over the differences of runs of the same seed
          low, high                      95 % over both, see `ssb.metrics.statistics.Noise`
          p                              of that, adjusted by Holm for the number of settings compared
          resolves                       the smallest true difference that the table finds with 80 % power
          verdict                        "higher" or "lower" where p < 0.05, else "equivalent", "hardly acts" or
                                         "inconclusive", see `ssb.metrics.statistics.verdict`
        fixed: further settings that have no seeds, name → ranks (Q,) of the same queries; one may be the baseline.
        ranks: setting → ranks (seeds, Q) in place of the runs' own from text to video, such as semantic ones.
        paper: the table of the paper whose numbers are shown too, "2a"; "": none.
        ConfigError for an unknown baseline.
        """
        frame = rounded(settled(self.compare(runs, baseline, fixed, ranks, paper)))
        self.write(frame.reset_index(), f"{self.table}_summary.csv")
        return frame

    def compare(
        self, runs: Runs, baseline: str, fixed: Ranks = EMPTY, ranks: Ranks | None = None, paper: str = ""
    ) -> pd.DataFrame:
        """`summary` before p is adjusted and judged, not written."""
        return compared(runs, baseline, fixed, ranks, paper)

    def training(self, runs: Runs) -> pd.DataFrame:
        """How each setting trained, means over seeds: its weights without the decoder's, the epoch kept, the
        contrastive loss at the first validated epoch, at the kept one and the last, the last captioning loss (nats per
        token) and captioning's `Run.share` and `Run.ratio`. Written to results/<corpus>/<table>_training.csv."""
        rows = {}
        for setting, members in runs.items():
            each = []
            for run in members:
                contrast, kept = run.log.set_index("epoch")["contrast"], run.metrics["best_epoch"]
                row = {"epoch kept": kept, "contrast, first": contrast.iloc[0], "kept": contrast[kept]}
                captioning = run.log.get("captioning", contrast * np.nan)
                row |= {"last": contrast.iloc[-1], "captioning, last": captioning.iloc[-1]}
                for name, value in (("share", run.share), ("ratio", run.ratio)):
                    row[f"captioning, {name}"] = np.nan if value is None else value
                each.append(row)
            rows[setting] = {"weights": members[0].weights, **pd.DataFrame(each).mean().round(3)}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
        self.write(frame.reset_index(), f"{self.table}_training.csv")
        return frame

    def claims(self, runs: Runs, claims: Iterable[Claim], ranks: Ranks | None = None) -> pd.DataFrame:
        """A paper's claims about the settings, tested as `summary` tests: one row for each claim whose two settings are
        here. Written to results/<corpus>/<table>_claims.csv. ranks: as in `summary`."""
        return self.judged(claimed(runs, claims, self.corpus.name, ranks))

    def judged(self, rows: list[dict]) -> pd.DataFrame:
        """Claims with their differences → with p adjusted and verdicts, written."""
        frame = judged(rows)
        self.write(frame, f"{self.table}_claims.csv")
        return frame

    def traces(self, grid: Grid) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
        """Every step of each setting with the first seed, collapsed or not: setting → `Run.trace`; and the means of
        the last ten steps, written to results/<corpus>/<table>_traces.csv."""
        self.planned(grid)
        traces, ends = {}, []
        for setting, changes in grid.items():
            try:
                run = fit(self.base.replace(**{**changes, "seed": self.seeds[0]}), self.corpus, quiet=True)
                end = {"collapsed": False, "t2v R@1": round(run.metrics["t2v R@1"], 2)}
            except Collapsed as error:
                run, end = error, {"collapsed": True}
            traces[setting] = run.trace
            last = traces[setting].tail(10).drop(columns="step").mean()
            ends.append({"setting": setting, "steps": len(traces[setting]), **end, **last.round(5)})
        frame = pd.DataFrame(ends)
        self.write(frame, f"{self.table}_traces.csv")
        return traces, frame

    def written(self) -> str:
        """The paths of what this table has made."""
        figures = [self.figures / f"{self.table}.png", *sorted(self.figures.glob(f"{self.table}_fig*.png"))]
        return "\n".join(files.short(path) for path in [*self.tables, *figures] if path.exists())

    @property
    def figures(self) -> Path:
        """The folder of the figures. ConfigError as of `write`."""
        self._may_write()
        return files.folder("figures", self.label)

    def _may_write(self, rows: bool = False):
        path = self.results / f"{self.table}.csv"
        if self.preset == "smoke" or not path.exists() or self.plan and (rows or path in self.tables):
            return
        missing = (
            f"its rows have not been written: write {path.name}" if self.plan else "nothing has been run: call run"
        )
        raise ConfigError(
            f"{files.short(path)} is there, and was not compared with what this study makes, for {missing} first, or "
            "give this table another name"
        )

    def write(self, frame: pd.DataFrame, name: str):
        """To results/<corpus>/<name>, whole or not at all. ConfigError where that would replace a published table that
        `run` has not compared, or take rows from it."""
        published.plain_name(name, "the file name")
        if name != f"{self.table}.csv" and not name.startswith(f"{self.table}_"):
            raise ConfigError(f"the file name {name!r}: one of the table {self.table} begins with {self.table}_")
        rows = name == f"{self.table}.csv"
        self._may_write(rows)
        if rows and self.parameters:
            frame = frame.assign(parameters=json.dumps(self.parameters))
        if rows and self.preset != "smoke":
            published.check_rows(self.results / name, frame)
        with files.written(self.results / name) as draft:
            frame.to_csv(draft, index=False, lineterminator="\n")
        self._wrote(self.results / name)

    def _wrote(self, path: Path):
        self.tables = list(dict.fromkeys([*self.tables, path]))
        print(f"wrote {files.short(path)}")


def checked(changes: Mapping, what: str) -> Mapping:
    """The dictionary; ConfigError where it is none, or has a key that is no text."""
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise ConfigError(f"{what} = {changes!r:.80}: wanted a dictionary of names, such as {{'epochs': 5}}")
    return changes


def share_cell(share: float | None) -> str:
    """`Run.share` in a row of a table: "" without captioning, "unknown" where it was not recorded."""
    return "" if share is None else "unknown" if np.isnan(share) else f"{share:.4f}"


def _cell(value) -> str:
    """A value of `ssb.Config` as text, a list without its brackets."""
    return " ".join(map(str, value)) if value and isinstance(value, list | tuple) else str(value)
