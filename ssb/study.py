"""A table of the paper as a grid of runs: each run trained once, then rows, intervals and tests beside the paper's."""

import contextlib
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import joblib
import numpy as np
import pandas as pd
import torch

from ssb import files
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import listed
from ssb.files import folder, label
from ssb.metrics import retrieval
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import DELTA, interval, paired, settled
from ssb.paper import Claim, paper_difference, paper_numbers
from ssb.progress import minutes
from ssb.training.loop import fit
from ssb.training.runs import Collapsed, Run, TrainingError, check, configure, load, run_name, told

WAYS = ("t2v", "v2t best-caption", "v2t max-per-video")
METRICS = tuple(retrieval.metrics(np.ones(1)))
VERDICTS = {"higher": "held", "lower": "contradicted", "not resolved": "not resolved"}  # of a claim


class Study:
    """One table on one corpus with one preset.

    table: the name of its files, "table1". seeds: each setting is trained once with each. jobs: runs at the same time,
    -1: one on each core, or one where there is a GPU to share; under `joblib.parallel_config("dask")` they go to a
    cluster. changes: what all runs of the table change in the preset, such as {"epochs": 5}.
    """

    def __init__(
        self,
        table: str,
        corpus: str = "shapes",
        preset: str = "laptop",
        seeds: Iterable[int] = (0, 1, 2),
        jobs: int = -1,
        changes: Mapping = MappingProxyType({}),
    ):
        self.table, self.preset, self.seeds = table, preset, list(seeds)
        self.jobs = 1 if jobs == -1 and torch.cuda.is_available() else jobs
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: wanted one or more different whole numbers")
        self.base = configure(preset, **{"corpus": corpus, **changes})
        self.corpus: Corpus = load_corpus(self.base.corpus, **self.base.corpus_options)
        self.label = label(self.corpus.name, preset)
        self.data = told(self.base)  # the corpus with its options
        changed = {**changes, **self.base.corpus_options}
        changed.pop("corpus_options", None)
        said = [f"{name} = {value}" for name, value in changed.items()]
        self.where = ", ".join([self.corpus.name, f"{preset} preset", *said])  # for titles
        self.results, self.figures = folder("results", self.label), folder("figures", self.label)
        self.tables: list[Path] = []  # written so far
        self.collapsed: dict[str, int] = {}  # settings left out → how many of their runs collapsed

    def run(
        self,
        grid: Mapping[str, Mapping],
        may_collapse: bool = False,
        begin: Mapping[str, list[Run]] = MappingProxyType({}),
    ) -> dict[str, list[Run]]:
        """Train what is not trained yet; returns setting → its runs, one for each seed.

        grid: setting → what it changes in the preset. A run that fails does not stop the others: they are finished and
        kept, and TrainingError then says which failed and why.
        may_collapse: settings of which a run collapses are left out, said so, and counted in `self.collapsed`, for the
        other seeds of such a setting alone would flatter it.
        begin: settings that begin with the weights of other runs, setting → a run for each seed (`Config.pretrained`).
        """
        base = self.base.model_dump()
        if unknown := sorted(begin.keys() - grid.keys()):
            raise ConfigError(f"begin names {listed(unknown)}; there are the settings {listed(grid)}")
        first = {name: [{"pretrained": run.name} for run in begin[name]] for name in begin}
        first |= {name: [{}] * len(self.seeds) for name in grid if name not in begin}
        if wrong := [name for name, runs in first.items() if len(runs) != len(self.seeds)]:
            raise ConfigError(f"{wrong[0]!r}: {len(first[wrong[0]])} runs to begin with for {len(self.seeds)} seeds")
        grid = {
            name: [
                check(Config(**{**base, **changes, "seed": seed, **before}).effective())
                for seed, before in zip(self.seeds, first[name])
            ]
            for name, changes in grid.items()
        }
        todo, folders = {}, {}
        for name, configs in grid.items():
            folders[name] = [files.runs() / run_name(config, self.corpus) for config in configs]
            for config, path in zip(configs, folders[name]):
                if (config.corpus, config.corpus_options) != (self.base.corpus, self.base.corpus_options):
                    raise ConfigError(f"{name!r} changes the corpus; make another Study, for a table is of one corpus")
                if not (path / "metrics.json").exists():
                    todo.setdefault(path.name, (f"{name}, seed {config.seed}", config))
        self._prepare([config for _, config in todo.values()])
        failed = self._train(list(todo.values()))
        if may_collapse:
            gone = {title: error for title, error in failed.items() if isinstance(error, Collapsed)}
            failed = {title: error for title, error in failed.items() if title not in gone}
            lost = {name for name, (title, _) in todo.items() if title in gone}
            counts = {name: sum(folder.name in lost for folder in found) for name, found in folders.items()}
            self.collapsed = {name: n for name, n in counts.items() if n}
            for name, n in self.collapsed.items():
                print(f"left out: {name}, of which {n} of {len(self.seeds)} runs collapsed")
            folders = {name: found for name, found in folders.items() if name not in self.collapsed}
        if failed:
            lines = "\n".join(f"{title}: {error}" for title, error in failed.items())
            raise TrainingError(f"{len(failed)} of {len(todo)} runs failed; the others are kept.\n{lines}")
        missing = [str(f) for found in folders.values() for f in found if not (f / "metrics.json").exists()]
        if missing:
            raise TrainingError(
                f"the workers wrote elsewhere than {missing[0]}; give them the same SSB_HOME and SSB_DATA"
            )
        return {name: [Run(folder) for folder in found] for name, found in folders.items()}

    def _prepare(self, configs: list[Config]):
        """Compute the states of each frozen text encoder once, before several processes want them at once."""
        for config in {(c.text_encoder, c.max_tokens): c for c in configs if c.freeze_text}.values():
            load(config, self.corpus)

    def _train(self, todo: list[tuple[str, Config]]) -> dict[str, Exception]:
        """Train in parallel; one line as each run ends. Returns the failed ones, title → why."""
        failed, begun = {}, time.perf_counter()
        work = joblib.Parallel(n_jobs=self.jobs, return_as="generator_unordered")
        places = {"SSB_HOME": str(files.root()), "SSB_DATA": str(files.data())}  # a worker may be elsewhere
        results = work(joblib.delayed(attempt)(title, config, places) for title, config in todo)
        for done, (title, run, error) in enumerate(results, 1):
            if error:
                failed[title] = error
            left = (time.perf_counter() - begun) / done * (len(todo) - done)
            said = (
                f"failed: {error}"
                if error
                else f"t2v R@1 {run.metrics['t2v R@1']:5.1f}, {run.provenance['seconds']:.0f} s"
            )
            bar = "█" * round(20 * done / len(todo))
            print(f"{bar:·<20} {done}/{len(todo)}  {title}: {said}; about {minutes(left)} left", flush=True)
        return failed

    def rows(self, runs: Mapping[str, list[Run]], also: pd.DataFrame | None = None) -> pd.DataFrame:
        """One row for each run, with its provenance; written to results/<corpus>/<table>.csv. also: further columns, by
        setting and seed."""
        frame = self.frame(runs)
        if also is not None:
            new = [name for name in also if name not in frame or name in ("setting", "seed")]
            frame = frame.merge(also[new].round(4), on=["setting", "seed"])
        self.write(frame, f"{self.table}.csv")
        return frame

    def frame(self, runs: Mapping[str, list[Run]]) -> pd.DataFrame:
        """`rows`, not written."""
        rows, began = [], any(run.trained_on for members in runs.values() for run in members)
        for setting, members in runs.items():
            for run in members:
                metrics = {key: value for key, value in run.metrics.items() if key not in ("n_queries", "best_epoch")}
                rows.append(
                    {"table": self.table, "corpus": self.corpus.name, "setting": setting, "seed": run.config.seed}
                    | {key: f"{value:.2f}" for key, value in metrics.items()}
                    | {"best_epoch": run.metrics["best_epoch"], "n_queries": run.metrics["n_queries"]}
                    | ({"trained_on": run.trained_on} if began else {})
                    | {"preset": self.preset, "run": run.name, "config_sha": run.config.sha}
                    | run.provenance
                )
        return pd.DataFrame(rows).sort_values(["setting", "seed"], kind="stable").reset_index(drop=True)

    def summary(
        self,
        runs: Mapping[str, list[Run]],
        baseline: str,
        way: str = "t2v",
        fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
        ranks: Mapping[str, np.ndarray] | None = None,
    ) -> pd.DataFrame:
        """One row for each setting; written to results/<corpus>/<table>_summary.csv.

        For each metric the mean over seeds; for R@1 also its deviation over seeds and its 95 % interval over queries
        (resampling clips, since captions of one clip are not independent), the paper's number where it is known, and
        the difference to the baseline:
          delta, delta_low, delta_high   of the seed means, 95 % by paired bootstrap over clips
          p                              of that bootstrap, adjusted by Holm for the number of settings compared
          seeds_low, seeds_high          95 % by Student's t over the differences of runs of the same seed
          verdict                        "higher" or "lower" where p < 0.05 and the seeds' interval agrees, else
                                         "not resolved"
        fixed: further settings that have no seeds, name → ranks (Q,) of the same queries; one may be the baseline.
        ranks: setting → other ranks (seeds, Q) of the runs than those of `way`, such as semantic ones.
        """
        frame = self.compare(runs, baseline, way, fixed, ranks)
        frame = settled(frame).round(3)
        self.write(frame.reset_index(), f"{self.table}_summary.csv")
        return frame

    def compare(self, runs, baseline, way="t2v", fixed=MappingProxyType({}), ranks=None) -> pd.DataFrame:
        """`summary` before p is adjusted and judged, not written."""
        if baseline not in [*runs, *fixed]:
            raise ConfigError(f"baseline = {baseline!r}: the settings are {', '.join([*fixed, *runs])}")
        paper = paper_numbers(self.table.removeprefix("table").partition("_")[0], way)
        ranks = {name: given[None] for name, given in fixed.items()} | (ranks or stacked(runs, way))
        clips = next(iter(runs.values()))[0].ranks["clip"] if way == "t2v" else None
        rows = {}
        for setting, found in ranks.items():
            each = pd.DataFrame([retrieval.metrics(r) for r in found])
            hits = points(found, "R@1")
            low, high = interval(hits, clips)
            row = {"seeds": len(found), **each.mean().round(2)}
            row |= {"R@1 sd": each["R@1"].std(ddof=1), "R@1 low": low, "R@1 high": high}
            row |= {f"paper {metric}": paper.get((setting, metric), np.nan) for metric in ("R@1", "R@5")}
            if setting != baseline:
                base = np.broadcast_to(points(ranks[baseline], "R@1"), hits.shape)  # it may have no seeds
                row |= paired(hits, base, clips)._asdict()
            rows[setting] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
        return frame.reindex(columns=frame.columns.union([*DELTA], sort=False))  # missing in a table of one setting

    def training(self, runs: Mapping[str, list[Run]]) -> pd.DataFrame:
        """How each setting trained, means over seeds: its weights without the decoder's, the epoch kept, the
        contrastive loss at the first validated epoch, at the kept one and the last, and the last captioning loss (nats
        per token). Written to results/<corpus>/<table>_training.csv."""
        rows = {}
        for setting, members in runs.items():
            each = []
            for run in members:
                log, kept = run.log.set_index("epoch"), run.metrics["best_epoch"]
                contrast = log["contrast"]
                each.append({"epoch kept": kept, "contrast, first": contrast.iloc[0], "kept": contrast[kept]})
                each[-1] |= {
                    "last": contrast.iloc[-1],
                    "captioning, last": log.get("captioning", contrast * np.nan).iloc[-1],
                }
            rows[setting] = {"weights": members[0].weights, **pd.DataFrame(each).mean().round(3)}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
        self.write(frame.reset_index(), f"{self.table}_training.csv")
        return frame

    def claims(
        self,
        runs: Mapping[str, list[Run]],
        claims: Iterable[Claim],
        ranks: Mapping[str, np.ndarray] | None = None,
    ) -> pd.DataFrame:
        """What a paper claims of the settings, tested as `summary` tests: one row for each claim whose two settings are
        here. Written to results/<corpus>/<table>_claims.csv. ranks: as in `summary`."""
        ranks = ranks or stacked(runs, "t2v")
        clips = next(iter(runs.values()))[0].ranks["clip"]
        rows = []
        for claim in claims:
            if {claim.setting, claim.baseline} <= runs.keys():
                one, other = (points(ranks[name], "R@1") for name in (claim.setting, claim.baseline))
                row = {"claim": claim.says, "setting": claim.setting, "baseline": claim.baseline, "seeds": len(one)}
                row |= {"paper": paper_difference(claim, self.corpus.name)}
                rows.append(row | paired(one, other, clips)._asdict())
        return self.judged(rows)

    def judged(self, rows: list[dict]) -> pd.DataFrame:
        """Claims with their differences → with p adjusted and verdicts, written."""
        frame = pd.DataFrame(rows, columns=["claim", "setting", "baseline", "seeds", "paper", *DELTA])
        frame = settled(frame).round(3)
        frame["verdict"] = [VERDICTS[found] for found in frame["verdict"]]
        self.write(frame, f"{self.table}_claims.csv")
        return frame

    def traces(self, grid: Mapping[str, Mapping]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
        """How the steps of each setting went with the first seed, collapsed or not: setting → `Run.trace`; and how they
        ended, written to results/<corpus>/<table>_traces.csv."""
        traces, ends = {}, []
        for setting, changes in grid.items():
            config = Config(**{**self.base.model_dump(), **changes, "seed": self.seeds[0]})
            try:
                run = fit(config, self.corpus, quiet=True)
                end = {"collapsed": False, "t2v R@1": round(run.metrics["t2v R@1"], 2)}
                traces[setting] = run.trace
            except Collapsed as collapsed:
                end = {"collapsed": True}
                traces[setting] = collapsed.trace
            last = traces[setting].tail(10).drop(columns="step").mean()
            ends.append({"setting": setting, "steps": len(traces[setting]), **end, **last.round(5)})
        frame = pd.DataFrame(ends)
        self.write(frame, f"{self.table}_traces.csv")
        return traces, frame

    def written(self) -> str:
        """The paths of what this table has made."""
        figures = [self.figures / f"{self.table}.png", *sorted(self.figures.glob(f"{self.table}_fig*.png"))]
        return "\n".join(files.short(path) for path in [*self.tables, *figures] if path.exists())

    def write(self, frame: pd.DataFrame, name: str):
        """To results/<corpus>/<name>, whole or not at all."""
        with files.written(self.results / name) as draft:
            frame.to_csv(draft, index=False, lineterminator="\n")
        self.tables = list(dict.fromkeys([*self.tables, self.results / name]))
        print(f"wrote {files.short(self.results / name)}")


def attempt(title: str, config: Config, places: dict[str, str]) -> tuple[str, Run | None, Exception | None]:
    """`fit` in a worker: whatever goes wrong is returned, so that the other runs go on."""
    try:
        os.environ.update(places)
        with contextlib.redirect_stdout(io.StringIO()):  # what a reader says of its corpus has been said once
            return title, fit(config, quiet=True), None
    except Exception as error:
        return title, None, error


def stacked(runs: Mapping[str, list[Run]], way: str) -> dict[str, np.ndarray]:
    """Setting → the ranks of its runs, (seeds, Q)."""
    return {setting: np.stack([run.ranks[way] for run in members]) for setting, members in runs.items()}
