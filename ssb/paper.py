"""What the papers print: their numbers (paper.csv) and the claims that are tested against them."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb.corpora.load import CORPORA
from ssb.corpora.record import Record
from ssb.metrics import captions


class Claim(NamedTuple):
    """What a paper says of two settings: the first retrieves better.

    table: of paper.csv; "" where the size of the difference is not known, OF_CORPUS for that of the corpus among
    Tables 3 to 6. rows: the row that holds the difference, or the two to subtract.
    """

    says: str
    setting: str
    baseline: str
    table: str = ""
    rows: tuple[str, ...] = ()


OF_CORPUS = "that of the corpus"


def paper_gain() -> float:
    """Points of R@1, text→video, that the module adds to CLIP2Video in the paper."""
    numbers = paper_numbers("EMCL")
    return round(numbers["CLIP2Video + EMCL at inference", "R@1"] - numbers["CLIP2Video", "R@1"], 3)


TABLES = ("3", "4", "5", "6", "10")
METRICS = ("R@1", "R@5", "R@10", "R@50", "MdR")


def baselines(table: str) -> pd.DataFrame:
    """The rows of a table of the paper: method, pretrain ("" for none; a ? where the source leaves it open), dataset,
    "<t2v|v2t> <metric>" for each metric that the table is known to print (recalls in percent, MdR as a rank; NaN where
    the number is not known), and source. In the paper's order, its own rows last. ValueError for another table."""
    if table not in TABLES:
        raise ValueError(f"table = {table!r} is none of methods by dataset; wanted one of {', '.join(TABLES)}")
    path = Path(__file__).with_name("paper.csv")
    numbers = pd.read_csv(path, dtype={"table": str}).fillna({"group": ""})
    numbers = numbers[numbers["table"] == table].rename(columns={"row": "method", "group": "pretrain"})
    rows = ["method", "pretrain", "dataset"]
    frame = numbers.pivot(index=rows, columns=["direction", "metric"], values="value")
    known = [(way, metric) for way in ("t2v", "v2t") for metric in METRICS if (way, metric) in frame]
    frame = frame[known].set_axis([f"{way} {metric}" for way, metric in known], axis=1)
    frame["source"] = numbers.groupby(rows)["source"].agg(lambda said: " | ".join(said.unique()))
    frame = frame.loc[numbers[rows].drop_duplicates().itertuples(index=False, name=None)].reset_index()  # as printed
    return frame.sort_values("method", key=lambda name: name.str.startswith("Support-Set"), kind="stable",
                             ignore_index=True)  # fmt: skip


def recalls_of(table: str) -> tuple[int, ...]:
    """The K of every R@K that a table of the paper prints."""
    found = {int(k[1]) for name in baselines(table) if (k := re.search(r"R@(\d+)$", name))}
    return tuple(sorted(found))


def published(corpus: str) -> pd.DataFrame:
    """The captioning table of the paper for this corpus (MSR-VTT: 7, VATEX: 8, ActivityNet: 9): a row for each method,
    its metrics and the source of the numbers; no rows where the paper has no such corpus."""
    numbers = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype={"table": str}, keep_default_na=False)
    numbers = numbers.astype({"value": float})
    table = record(corpus).caption_table
    numbers = numbers[(numbers["table"] == table) & (numbers["direction"] == "caption")]
    numbers = numbers.assign(metric=numbers["metric"].replace({"BLEU4": "BLEU-4"}))
    extra = numbers["group"].map(lambda group: f" + {group}" if group else "")
    numbers["setting"] = numbers["row"] + extra + f" (paper, Table {table})"
    if numbers.empty:
        return pd.DataFrame(columns=[*captions.METRICS, "source"])
    found = numbers.pivot(index="setting", columns="metric", values="value").reindex(columns=captions.METRICS)
    return found.assign(source=numbers.groupby("setting")["source"].first())


def paper_numbers(table: str, way: str = "t2v") -> dict[tuple[str, str], float]:
    """(row, metric) → the number the paper prints, where it could be verified. A row that is there from scratch and
    after pre-training too is found as "<row> from scratch" and "<row> after <corpus>" besides."""
    numbers = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype={"table": str})
    numbers = numbers[(numbers["table"] == table) & (numbers["direction"] == way)]
    found = {}
    for (row, metric), same in numbers.groupby(["row", "metric"], sort=False):
        found[row, metric] = same["value"].iloc[0]
        if len(same) > 1:
            for group, value in zip(same["group"], same["value"]):
                found[f"{row} after {group}" if isinstance(group, str) else f"{row} from scratch", metric] = value
    return found


def paper_difference(claim: Claim, corpus: str = "") -> float:
    """The size of a claim in the paper, in points of R@1; NaN where it is not known. corpus: the name of ours, for
    claims of OF_CORPUS."""
    numbers = paper_numbers(record(corpus).retrieval_table if claim.table == OF_CORPUS else claim.table)
    found = [numbers.get((row, metric), np.nan) for row in claim.rows for metric in ("R@1", "delta R@1")]
    found = [x for x in found if not np.isnan(x)]
    if len(found) != len(claim.rows) or not found:
        return np.nan
    return found[0] if len(found) == 1 else round(found[0] - found[1], 3)


def record(corpus: str) -> Record:
    """What is known of a corpus of this name; of one of the reader's own, nothing."""
    return CORPORA.get(corpus) or Record(corpus, "a folder of your own", None)
