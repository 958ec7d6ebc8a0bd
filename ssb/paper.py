"""The numbers that the papers print (paper.csv) and the claims that are tested against them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb.corpora.load import CORPORA
from ssb.corpora.record import Record
from ssb.metrics import captions


class Claim(NamedTuple):
    """A claim of a paper about two settings: the first retrieves better than the second, the baseline.

    text: the claim in words. table: of paper.csv; "" where the size of the difference is not known, OF_CORPUS for the
    corpus's own table among Tables 3 to 6. rows: the row that holds the difference, or the two to subtract.
    """

    text: str
    setting: str
    baseline: str
    table: str = ""
    rows: tuple[str, ...] = ()


OF_CORPUS = "that of the corpus"
TABLES = ("3", "4", "5", "6", "10")  # of methods by dataset
METRICS = ("R@1", "R@5", "R@10", "R@50", "MdR")


def rows(**values: str) -> pd.DataFrame:
    """The rows of paper.csv with these values in these columns, `rows(table="3", direction="t2v")`, in the order of
    the file. `value` is a number, every other column text; `group` is "" where a row has none."""
    numbers = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype={"table": str}).fillna({"group": ""})
    return numbers[numbers[[*values]].eq(pd.Series(values)).all(axis=1)]


def baselines(table: str) -> pd.DataFrame:
    """The rows of a table of the paper: method, pretrain ("" for none; a ? where the source leaves it open), dataset,
    "<t2v|v2t> <metric>" for each metric that the table prints (recalls in percent, MdR as a rank; NaN where the number
    is not in paper.csv), and source. In the printed order, rows of the paper last. ValueError for another table."""
    if table not in TABLES:
        raise ValueError(f"table = {table!r} does not compare methods by dataset; wanted one of {', '.join(TABLES)}")
    keys = ["method", "pretrain", "dataset"]
    numbers = rows(table=table).rename(columns={"row": "method", "group": "pretrain"})
    frame = numbers.pivot(index=keys, columns=["direction", "metric"], values="value")
    printed = [
        (direction, metric) for direction in ("t2v", "v2t") for metric in METRICS if (direction, metric) in frame
    ]
    frame = frame[printed].set_axis([f"{direction} {metric}" for direction, metric in printed], axis=1)
    frame["source"] = numbers.groupby(keys)["source"].agg(lambda sources: " | ".join(sources.unique()))
    frame = frame.loc[numbers[keys].drop_duplicates().itertuples(index=False, name=None)].reset_index()  # as printed
    return frame.sort_values("method", key=lambda name: name.str.startswith("Support-Set"), kind="stable",
                             ignore_index=True)  # fmt: skip


def recalls_of(table: str) -> tuple[int, ...]:
    """The K of every R@K that a table of the paper prints, ascending."""
    metrics = rows(table=table)["metric"].unique()
    return tuple(sorted(int(metric[2:]) for metric in metrics if metric.startswith("R@")))


def published(corpus: str) -> pd.DataFrame:
    """The captioning table of the paper for this corpus (MSR-VTT: 7, VATEX: 8, ActivityNet: 9): a row for each method,
    its metrics and the source of the numbers; no rows where the paper has no such corpus."""
    table = record(corpus).caption_table
    numbers = rows(table=table, direction="caption").replace({"metric": {"BLEU4": "BLEU-4"}})
    data = numbers["group"].map(lambda group: f" + {group}" if group else "")
    numbers = numbers.assign(setting=numbers["row"] + data + f" (paper, Table {table})")
    frame = numbers.pivot(index="setting", columns="metric", values="value").reindex(columns=captions.METRICS)
    return frame.assign(source=numbers.groupby("setting")["source"].first())


def paper_numbers(table: str) -> dict[tuple[str, str], float]:
    """(row, metric) → the number that a table of the paper prints for text→video. A row that the table prints both from
    scratch and after pre-training is also found under "<row> from scratch" and "<row> after <corpus>"."""
    numbers = {}
    for (row, metric), same in rows(table=table, direction="t2v").groupby(["row", "metric"], sort=False):
        numbers[row, metric] = same["value"].iloc[0]
        if len(same) > 1:
            for group, value in zip(same["group"], same["value"]):
                numbers[f"{row} after {group}" if group else f"{row} from scratch", metric] = value
    return numbers


def paper_gain() -> float:
    """What EMCL at inference adds to the R@1 of CLIP2Video in its paper, text→video, in points."""
    return paper_difference(Claim("", "", "", "EMCL", ("CLIP2Video + EMCL at inference", "CLIP2Video")))


def paper_difference(claim: Claim, corpus: str = "") -> float:
    """The size of a claim in the paper, in points of R@1; NaN where it is not known. corpus: the name of ours, for
    claims of OF_CORPUS."""
    numbers = paper_numbers(record(corpus).retrieval_table if claim.table == OF_CORPUS else claim.table)
    keys = [(row, metric) for row in claim.rows for metric in ("R@1", "delta R@1") if (row, metric) in numbers]
    if not keys or len(keys) != len(claim.rows):
        return np.nan
    first, *rest = (numbers[key] for key in keys)
    return round(first - rest[0], 3) if rest else first


def record(corpus: str) -> Record:
    """The record of a corpus of this name; an empty one for a corpus of the reader's own."""
    return CORPORA.get(corpus) or Record(corpus, "a folder of your own", None)
