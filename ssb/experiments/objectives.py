"""Table 1: the captioning objectives."""

from ssb.config import OBJECTIVES
from ssb.paper import Claim

TITLES = {"table1": "Table 1: captioning objective", "table1_lambda10": "Table 1 at the paper's λ"}
TABLE1 = {objective: {"objective": objective} for objective in OBJECTIVES}
CLAIMS = [
    Claim("cross-captioning beats no captioning", "cross", "none", "1", ("cross", "none")),
    Claim("hybrid captioning beats no captioning", "hybrid", "none", "1", ("hybrid", "none")),
    Claim("cross beats hybrid", "cross", "hybrid", "1", ("cross", "hybrid")),
]
