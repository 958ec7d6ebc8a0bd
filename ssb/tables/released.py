"""The ranks beside a table: results/<corpus>/<table>.npz holds those of every test query of every run, from which the
summary and the claims of the table are computed again without the runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora.reading import CorpusError, listed
from ssb.metrics.statistics import settled
from ssb.paper import Claim
from ssb.tables.verdicts import EMPTY, Ranks, Runs, claimed, compared, judged, rounded

FIXED, OWN = "fixed", "compared"  # keys: fixed/<setting>; <run>/compared: what was compared in place of t2v
SHARES = {"": None, "unknown": np.nan}  # cells of a table without a number
TOLD = ("paper R@1", "paper R@5")  # columns of a summary that are not computed


class Released(NamedTuple):
    """A run as its table keeps it. ranks: as of `ssb.training.runs.Run`; share: as `Run.share`."""

    name: str
    seed: int
    ranks: dict[str, np.ndarray]
    share: float | None


class Table(NamedTuple):
    """The ranks of a table: setting → its runs in the order of seeds; fixed and ranks as in `ssb.Study.summary`."""

    runs: dict[str, list[Released]]
    fixed: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray] | None


def packed(values: np.ndarray) -> np.ndarray:
    """Ranks in few bytes: twice their value as an integer, where that is exact, as it is but for ties of several right
    items; else as they are."""
    twice = 2 * np.asarray(values, np.float64)
    exact = (twice == np.round(twice)).all() and twice.max(initial=0) < 2**32
    return twice.astype(np.min_scalar_type(int(twice.max(initial=0)))) if exact else np.asarray(values, np.float64)


def unpacked(values: np.ndarray) -> np.ndarray:
    """The ranks that were `packed`, float64."""
    return values if values.dtype == np.float64 else values / 2


def arrays(tables: Iterable[Runs], fixed: Ranks = EMPTY, ranks: Ranks | None = None) -> dict[str, np.ndarray]:
    """The ranks of the runs of one or several parts of a table by their keys. fixed, ranks: as in
    `ssb.Study.summary`."""
    each = {f"{FIXED}/{name}": packed(values) for name, values in fixed.items()}
    for runs in tables:
        for setting, members in runs.items():
            for k, run in enumerate(members):
                each |= {f"{run.name}/{protocol}": packed(values) for protocol, values in run.ranks.items()}
                if ranks is not None:
                    each[f"{run.name}/{OWN}"] = packed(ranks[setting][k])
    return each


def write(path: Path, values: Mapping[str, np.ndarray]):
    """Write arrays by their keys; the same ones give the same bytes."""
    with files.written(path) as draft:
        np.savez_compressed(draft, allow_pickle=False, **dict(sorted(values.items())))  # dated 1980, as numpy does


def contents(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """What comes before the first / of a key, a run or FIXED → the rest of the key → its array. path: of a table's CSV.
    CorpusError where the file beside it is missing."""
    if not (beside := path.with_suffix(".npz")).exists():
        raise CorpusError(f"{files.short(beside)} is missing: run the notebook of the table {path.stem} again")
    each: dict[str, dict[str, np.ndarray]] = {}
    with np.load(beside, allow_pickle=False) as archive:
        for key, values in archive.items():
            run, _, name = key.partition("/")
            each.setdefault(run, {})[name] = values
    return each


def read(path: Path, part: Mapping = EMPTY) -> Table:
    """The ranks beside a table. path: of its CSV. part: column → value of the rows that are wanted, where several
    studies share a table. CorpusError where the file is missing, or not of these rows."""
    rows, beside = pd.read_csv(path, keep_default_na=False, dtype=str), path.with_suffix(".npz")
    for column, value in part.items():
        rows = rows[pd.to_numeric(rows[column]) == value]
    each = {run: {name: unpacked(values) for name, values in own.items()} for run, own in contents(path).items()}
    if missing := sorted(set(rows["run"]) - each.keys()):
        raise CorpusError(
            f"{files.short(beside)} lacks the runs {listed(missing)} of {path.name}: run its notebook again"
        )
    runs: dict[str, list[Released]] = {}
    for row in rows.to_dict("records"):
        share = SHARES.get(text := row.get("share", "unknown"), text)
        share = share if share is None else float(share)
        runs.setdefault(row["setting"], []).append(Released(row["run"], int(row["seed"]), each[row["run"]], share))
    own = {name: [run.ranks[OWN] for run in members] for name, members in runs.items() if OWN in members[0].ranks}
    return Table(runs, each.get(FIXED, {}), {name: np.stack(x) for name, x in own.items()} or None)


def summary(path: Path) -> pd.DataFrame:
    """The summary of a table, computed from the table and its ranks alone, but for the columns TOLD; of the published
    one only the order of the settings and the baseline are taken. path: of the table's CSV."""
    table, before = read(path), pd.read_csv(path.with_name(f"{path.stem}_summary.csv"))
    order, baseline = before["setting"], before.loc[before["delta"].isna(), "setting"].iloc[0]
    runs = {name: table.runs[name] for name in order if name in table.runs}
    fixed = {name: values for name, values in table.fixed.items() if name in set(order)}
    ranks = table.ranks and {name: table.ranks[name] for name in runs}
    return rounded(settled(compared(runs, baseline, fixed, ranks))).drop(columns=[*TOLD])


def claims(path: Path, rows: list[dict] | None = None) -> pd.DataFrame:
    """The claims of a table, computed from the table and its ranks alone; of the published ones only their words and
    the paper's numbers are taken. path: of the table's CSV. rows: the claims with their differences, where they are
    more than differences between two settings; see `ssb.tables.verdicts.judged`."""
    names = dict.fromkeys(("setting", "baseline"), str)  # which may be numbers
    table, before = read(path), pd.read_csv(path.with_name(f"{path.stem}_claims.csv"), dtype=names)
    wanted = [Claim(row.claim, row.setting, row.baseline) for row in before.itertuples()]
    frame = judged(claimed(table.runs, wanted, "", table.ranks) if rows is None else rows)
    return frame.assign(paper=before["paper"])
