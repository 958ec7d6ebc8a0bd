"""Table 1: the captioning objectives."""

from dataclasses import replace

from ssb.config import OBJECTIVES
from ssb.paper import Claim
from ssb.report import Experiment

GRID = {objective: {"objective": objective} for objective in OBJECTIVES}
PAIR = {name: GRID[name] for name in ("none", "cross")}  # for experiments that examine these two more closely
TABLE1 = Experiment(
    "Table 1: captioning objective",
    number="1",
    grid=lambda study: GRID,
    baseline="none",
    claims=(
        Claim("cross-captioning beats no captioning", "cross", "none", "1", ("cross", "none")),
        Claim("hybrid captioning beats no captioning", "hybrid", "none", "1", ("hybrid", "none")),
        Claim("cross beats hybrid", "cross", "hybrid", "1", ("cross", "hybrid")),
    ),
    alt="Forest plot of text to video R@1 of the five captioning objectives, each seed a dot, with intervals.",
)

TABLES = {
    "table1": TABLE1,
    "table1_tuned": replace(TABLE1, title="Table 1 over the tuned baseline"),
    "table1_lambda10": replace(TABLE1, title="Table 1 at λ = 10, a stress test"),
}
