"""Settings compared: the summary and the claims of a table, from its runs, or from their ranks alone."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ssb.config import ConfigError
from ssb.metrics import retrieval
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import ACTS, DELTA, interval, over_both, paired, settled
from ssb.paper import Claim, paper_difference, paper_numbers
from ssb.training.runs import Run

Runs = Mapping[str, list[Run]]  # setting → its runs, one for each seed
Ranks = Mapping[str, np.ndarray]  # setting → ranks, (seeds, Q), or (Q,) without seeds
EMPTY: Mapping = {}
VERDICTS = {"higher": "held", "lower": "contradicted"}  # of a claim; the others are as those of a comparison
LOG = ("log delta", "log low", "log high")  # difference in the mean of ln(rank), and its interval over both


def stacked(runs: Runs, protocol: str = "t2v") -> dict[str, np.ndarray]:
    """Setting → the ranks of its runs, (seeds, Q)."""
    return {setting: np.stack([run.ranks[protocol] for run in members]) for setting, members in runs.items()}


def acts(*settings: Iterable[Run]) -> bool | None:
    """Does captioning act on the heads, in each of these settings that has it: is its `Run.share`, the mean over the
    runs, at least ACTS? None: not recorded. True where none of them has captioning."""
    shares = [[run.share for run in members] for members in settings]
    means = [np.mean(each) for each in shares if None not in each]
    return None if np.isnan(means).any() else min(means, default=1.0) >= ACTS


def compared(
    runs: Runs, baseline: str, fixed: Ranks = EMPTY, ranks: Ranks | None = None, paper: str = ""
) -> pd.DataFrame:
    """`ssb.Study.summary` before p is adjusted and judged, not written. Arguments and errors as there."""
    if baseline not in [*runs, *fixed]:
        raise ConfigError(f"baseline = {baseline!r}: the settings are {', '.join([*fixed, *runs])}")
    printed = paper_numbers(paper)
    ranks = {name: given[None] for name, given in fixed.items()} | dict(ranks or stacked(runs))
    clips, rows = next(iter(runs.values()))[0].ranks["clip"], {}
    for setting, members in ranks.items():
        each = pd.DataFrame([retrieval.metrics(r) for r in members])
        hits = points(members, "R@1")
        low, high = interval(hits, clips)
        row = {"seeds": len(members), **each.mean().round(2), "log rank": np.log(members).mean()}
        row |= {"R@1 sd": each["R@1"].std(ddof=1), "R@1 low": low, "R@1 high": high}
        row |= {f"paper {metric}": printed.get((setting, metric), np.nan) for metric in ("R@1", "R@5")}
        if setting != baseline:
            base = np.broadcast_to(points(ranks[baseline], "R@1"), hits.shape)  # it may have no seeds
            row |= paired(hits, base, clips)._asdict()
            row |= zip(LOG, over_both(np.log(members) - np.log(ranks[baseline]), clips))
            row["acts"] = acts(*(runs[name] for name in (setting, baseline) if name in runs))
        rows[setting] = row
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
    return frame.reindex(columns=frame.columns.union([*DELTA], sort=False))  # missing in a table of one setting


def claimed(runs: Runs, claims: Iterable[Claim], corpus: str, ranks: Ranks | None = None) -> list[dict]:
    """A row for each claim whose two settings are here, for `judged`: its size in the paper and in these runs. corpus:
    its name. ranks: as in `ssb.Study.summary`."""
    ranks = ranks or stacked(runs)
    clips = next(iter(runs.values()))[0].ranks["clip"]
    rows = []
    for claim in claims:
        if {claim.setting, claim.baseline} <= runs.keys():
            one, other = (points(ranks[name], "R@1") for name in (claim.setting, claim.baseline))
            row = {"claim": claim.text, "setting": claim.setting, "baseline": claim.baseline, "seeds": len(one)}
            row |= {"paper": paper_difference(claim, corpus), "acts": acts(runs[claim.setting], runs[claim.baseline])}
            logs = np.log(ranks[claim.setting]) - np.log(ranks[claim.baseline])
            rows.append(row | paired(one, other, clips)._asdict() | dict(zip(LOG, over_both(logs, clips))))
    return rows


def judged(rows: list[dict]) -> pd.DataFrame:
    """Claims with their differences → a row each, with p adjusted and verdicts. acts, where a row has it, as in
    `ssb.metrics.statistics.verdict`."""
    logs = LOG if any(LOG[0] in row for row in rows) else ()  # not where the claims are of other things than ranks
    columns = ["claim", "setting", "baseline", "seeds", "paper", *DELTA, *logs, "acts"]
    frame = pd.DataFrame([{"acts": True, **row} for row in rows], columns=columns)
    return rounded(settled(frame)).replace({"verdict": VERDICTS})


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """To three decimals, but to five what is told in percent of a rank."""
    logs = frame.columns.intersection(LOG)
    return frame.round(3).assign(**frame[logs].round(5))
