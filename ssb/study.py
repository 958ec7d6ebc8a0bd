"""A table of the paper as a grid of runs: each run trained once, then rows, intervals and tests beside the paper's."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import joblib
import numpy as np
import pandas as pd
from scipy import stats

from ssb import files, retrieval
from ssb.batches import Data
from ssb.config import OBJECTIVES, Config, ConfigError
from ssb.corpus import Corpus, load_corpus
from ssb.train import Run, TrainingError, fit, run_name

WAYS = ("t2v", "v2t best-caption", "v2t max-per-video")
METRICS = tuple(retrieval.metrics(np.ones(1)))
# Rows of tables: what each setting changes in the preset.
TABLE1 = {objective: {"objective": objective} for objective in OBJECTIVES}
HEADS = {  # is a run trained at all? without captioning
    "convolutions on video": {"objective": "none"},
    "the paper's head on video": {"objective": "none", "video_pooling": "transformer"},
    "the paper's heads on both": {"objective": "none", "video_pooling": "transformer", "text_pooling": "transformer"},
}


class Study:
    """One table on one corpus with one preset.

    table: the name of its files, "table1". seeds: each setting is trained once with each. jobs: runs at the same time,
    -1: all cores; under `joblib.parallel_config("dask")` they go to a cluster. changes: what all runs of the table
    change in the preset, such as {"epochs": 5}.
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
        self.table, self.preset, self.seeds, self.jobs = table, preset, list(seeds), jobs
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: wanted one or more different whole numbers")
        self.base = Config.preset(preset, **{"corpus": corpus, **changes})
        self.corpus: Corpus = load_corpus(corpus, **self.base.corpus_options)
        self.label = label(self.corpus.name, preset)
        self.where = f"{self.corpus.name}, {preset} preset"  # for titles
        self.results, self.figures = folder("results", self.label), folder("figures", self.label)

    def run(self, grid: Mapping[str, Mapping]) -> dict[str, list[Run]]:
        """Train what is not trained yet; returns setting → its runs, one for each seed.

        grid: setting → what it changes in the preset. A run that fails does not stop the others: they are finished and
        kept, and TrainingError then says which failed and why.
        """
        base = self.base.model_dump()
        grid = {
            name: [Config(**{**base, **changes, "seed": seed}).effective() for seed in self.seeds]
            for name, changes in grid.items()
        }
        todo = {}
        for name, configs in grid.items():
            for config in configs:
                folder = files.runs() / run_name(config, self.corpus)
                if not (folder / "metrics.json").exists():
                    todo.setdefault(folder.name, (f"{name}, seed {config.seed}", config))
        if todo:
            self._prepare([config for _, config in todo.values()])
        failed = self._train(list(todo.values()))
        if failed:
            lines = "\n".join(f"{title}: {error}" for title, error in failed)
            raise TrainingError(f"{len(failed)} of {len(todo)} runs failed; the others are kept.\n{lines}")
        return {name: [fit(config, self.corpus) for config in configs] for name, configs in grid.items()}

    def _prepare(self, configs: list[Config]):
        """Compute the states of each frozen text encoder once, before several processes want them at once."""
        for config in {(c.text_encoder, c.max_tokens): c for c in configs if c.freeze_text}.values():
            Data(config, self.corpus)

    def _train(self, todo: list[tuple[str, Config]]) -> list[tuple[str, Exception]]:
        """Train in parallel; one line as each run ends. Returns the failed ones."""
        failed, begun = [], time.perf_counter()
        work = joblib.Parallel(n_jobs=self.jobs, return_as="generator_unordered")
        results = work(joblib.delayed(attempt)(title, config) for title, config in todo)
        for done, (title, run, error) in enumerate(results, 1):
            if error:
                failed.append((title, error))
            left = (time.perf_counter() - begun) / done * (len(todo) - done)
            said = (
                f"failed: {error}"
                if error
                else f"t2v R@1 {run.metrics['t2v R@1']:5.1f}, {run.provenance['seconds']:.0f} s"
            )
            bar = "█" * round(20 * done / len(todo))
            print(f"{bar:·<20} {done}/{len(todo)}  {title}: {said}; about {minutes(left)} left", flush=True)
        return failed

    def rows(self, runs: Mapping[str, list[Run]]) -> pd.DataFrame:
        """One row for each run, with its provenance; written to results/<corpus>/<table>.csv."""
        rows = []
        for setting, members in runs.items():
            for run in members:
                metrics = {key: value for key, value in run.metrics.items() if key not in ("n_queries", "best_epoch")}
                rows.append(
                    {"table": self.table, "corpus": self.corpus.name, "setting": setting, "seed": run.config.seed}
                    | {key: f"{value:.2f}" for key, value in metrics.items()}
                    | {"best_epoch": run.metrics["best_epoch"], "n_queries": run.metrics["n_queries"]}
                    | {"preset": self.preset, "run": run.name, "config_sha": run.config.sha}
                    | run.provenance
                )
        frame = pd.DataFrame(rows).sort_values(["setting", "seed"], kind="stable").reset_index(drop=True)
        self._write(frame, f"{self.table}.csv")
        return frame

    def summary(
        self,
        runs: Mapping[str, list[Run]],
        baseline: str,
        way: str = "t2v",
        fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
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
        """
        paper = paper_numbers(self.table.removeprefix("table").partition("_")[0], way)
        ranks = {name: given[None] for name, given in fixed.items()}  # (seeds, Q) each
        ranks |= {name: np.stack([run.ranks[way] for run in members]) for name, members in runs.items()}
        clips = next(iter(runs.values()))[0].ranks["clip"] if way == "t2v" else None
        rows = {}
        for setting, found in ranks.items():
            each = pd.DataFrame([retrieval.metrics(r) for r in found])
            low, high = retrieval.bootstrap(found, "R@1", clips)
            row = {"seeds": len(found), **each.mean().round(2)}
            row |= {"R@1 sd": each["R@1"].std(ddof=1), "R@1 low": low, "R@1 high": high}
            row |= {f"paper {metric}": paper.get((setting, metric)) for metric in ("R@1", "R@5")}
            if setting != baseline:
                row |= against(found, np.broadcast_to(ranks[baseline], found.shape), clips)
            rows[setting] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
        if "p" in frame:
            frame["p"] = holm(frame["p"])
            frame["verdict"] = [verdict(row) for _, row in frame.iterrows()]
        frame = frame.round(3)
        self._write(frame.reset_index(), f"{self.table}_summary.csv")
        return frame

    def written(self) -> str:
        """The paths of what this table has made."""
        paths = [*sorted(self.results.glob(f"{self.table}*.csv")), *sorted(self.figures.glob(f"{self.table}*.png"))]
        return "\n".join(str(path.relative_to(files.root())) for path in paths)

    def _write(self, frame: pd.DataFrame, name: str):
        with files.written(self.results / name) as draft:
            frame.to_csv(draft, index=False, lineterminator="\n")
        print(f"wrote {(self.results / name).relative_to(files.root())}")


def label(corpus: str, preset: str) -> str:
    """Its folders' name, for corpora and presets are never mixed in one table: "shapes", or "shapes-smoke"."""
    return corpus if preset == "laptop" else f"{corpus}-{preset}"


def folder(kind: str, label: str) -> Path:
    """results/<label> or figures/<label>."""
    return files.root() / kind / label


def attempt(title: str, config: Config) -> tuple[str, Run | None, Exception | None]:
    """`fit` in a worker: an error is returned, so that the other runs go on."""
    try:
        return title, fit(config, quiet=True), None
    except (ValueError, TrainingError) as error:
        return title, None, error


def against(ranks: np.ndarray, base: np.ndarray, clips) -> dict[str, float]:
    """R@1 of (seeds, Q) ranks less that of the baseline's, with the interval over queries and that over seeds."""
    delta = retrieval.paired_bootstrap(ranks, base, "R@1", clips)
    row = {"delta": delta.delta, "delta_low": delta.low, "delta_high": delta.high, "p": delta.p}
    if len(ranks) > 1:
        differences = 100 * ((ranks <= 1).mean(axis=1) - (base <= 1).mean(axis=1))
        half = stats.t.ppf(0.975, len(ranks) - 1) * stats.sem(differences)
        row |= {"seeds_low": delta.delta - half, "seeds_high": delta.delta + half}
    return row


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def holm(p: pd.Series) -> pd.Series:
    """Holm's adjustment for as many tests as there are numbers; a missing one (the baseline's) stays missing."""
    known = p.dropna().sort_values()
    stepped = known * np.arange(len(known), 0, -1)
    return stepped.cummax().clip(upper=1).reindex(p.index)


def verdict(row: pd.Series) -> str:
    """Beyond the noise of queries and of seeds, or not."""
    if pd.isna(row["p"]):
        return ""
    low, high = row.get("seeds_low", np.nan), row.get("seeds_high", np.nan)
    if row["p"] < 0.05 and low > 0:
        return "higher"
    if row["p"] < 0.05 and high < 0:
        return "lower"
    return "not resolved"


def paper_numbers(table: str, way: str = "t2v") -> dict[tuple[str, str], float]:
    """(row, metric) → the number the paper prints, where it could be verified."""
    numbers = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype={"table": str})
    numbers = numbers[(numbers["table"] == table) & (numbers["direction"] == way)]
    return {(row, metric): value for row, metric, value in zip(numbers["row"], numbers["metric"], numbers["value"])}


def reading(summary: pd.DataFrame, baseline: str, metric: str = "R@1") -> str:
    """The table in words: what differs from the baseline beyond the noise, by how much, and what the paper found."""
    base = summary.loc[baseline]
    lines = [f"{baseline}: {metric} {base[metric]:.1f}"]
    if base["seeds"] > 1:
        lines[0] += f" (deviation over {base['seeds']:.0f} seeds {base[f'{metric} sd']:.1f})"
    for setting, row in summary.drop(index=baseline).iterrows():
        lines.append(
            f"{setting} against {baseline}: {row['delta']:+.1f} [{row['delta_low']:+.1f}, {row['delta_high']:+.1f}], "
            f"p = {row['p']:.3f}: {row['verdict']}"
        )
        theirs = row[f"paper {metric}"] - base[f"paper {metric}"]
        if not np.isnan(theirs):
            lines[-1] += f" (paper {theirs:+.1f})"
    resolved = [s for s, row in summary.iterrows() if row["verdict"] in ("higher", "lower")]
    lines.append(
        f"Beyond the noise of queries and seeds: {', '.join(resolved)}."
        if resolved
        else "No setting differs from the baseline beyond the noise of queries and seeds."
    )
    return "\n".join(lines)


def metrics_table(run: Run) -> pd.DataFrame:
    """The test metrics of one run, a row for each protocol."""
    table = pd.DataFrame({way: retrieval.metrics(run.ranks[way]) for way in WAYS}).T
    return table.assign(queries=[len(run.ranks[way]) for way in WAYS]).round(2)


def show(summary: pd.DataFrame, caption: str):
    """The summary as a notebook shows it: intervals in brackets, the best of each metric in bold."""
    shown = summary[[*METRICS]].copy()
    shown["R@1 95 %"] = [interval(*pair) for pair in zip(summary["R@1 low"], summary["R@1 high"])]
    shown["R@1 sd"] = summary["R@1 sd"]
    if "delta" in summary:
        shown["delta"] = [
            "" if np.isnan(d) else f"{d:+.1f} {interval(low, high)}"
            for d, low, high in zip(summary["delta"], summary["delta_low"], summary["delta_high"])
        ]
        shown["seeds"] = [
            interval(*p) for p in zip(summary.get("seeds_low", np.nan), summary.get("seeds_high", np.nan))
        ]
        shown[["p", "verdict"]] = summary[["p", "verdict"]]
    shown[["paper R@1", "paper R@5"]] = summary[["paper R@1", "paper R@5"]]
    recalls = [m for m in METRICS if m.startswith("R@")]
    bold = "font-weight: bold"
    return (
        shown.style.set_caption(caption)
        .format(precision=1, na_rep="")
        .format("{:.3f}", subset=[c for c in ["p"] if c in shown], na_rep="")
        .highlight_max(subset=recalls, props=bold)
        .highlight_min(subset=["MdR", "MnR"], props=bold)
    )


def interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]"


def readme(results: Path) -> str:
    """The README's results: every summary under results/ made with the laptop preset, as Markdown."""
    parts = []
    for path in sorted(results.glob("*/*_summary.csv")):
        summary = pd.read_csv(path, index_col="setting", keep_default_na=False, na_values=[""])
        rows = pd.read_csv(
            path.with_name(path.name.replace("_summary", "")), index_col="setting", keep_default_na=False
        )
        if rows["preset"].iloc[0] != "laptop":
            continue
        baseline = summary.index[summary["delta"].isna()][0]
        table = path.name.removesuffix("_summary.csv")
        seconds = rows["seconds"].astype(float)
        size = f"{summary['seeds'].max():.0f} seeds, {rows['n_queries'].iloc[0]} queries"
        lines = [
            f"**{path.parent.name}, {table}** ({size}; {seconds.sum() / 60:.0f} core minutes)",
            "",
            f"| setting | R@1 (sd) | R@5 | R@10 | MdR | R@1 less {baseline}, 95 % over queries "
            "| over seeds | p | verdict | paper R@1 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for setting, row in summary.iterrows():
            cells = [setting, f"{row['R@1']:.1f}" + ("" if np.isnan(row["R@1 sd"]) else f" ({row['R@1 sd']:.1f})")]
            cells += [f"{row['R@5']:.1f}", f"{row['R@10']:.1f}", f"{row['MdR']:.1f}"]
            if setting == baseline:
                cells += [""] * 4
            else:
                cells += [f"{row['delta']:+.1f} {interval(row['delta_low'], row['delta_high'])}"]
                cells += [interval(row["seeds_low"], row["seeds_high"]), f"{row['p']:.3f}", row["verdict"]]
            cells += ["" if np.isnan(row["paper R@1"]) else f"{row['paper R@1']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
