"""Table 1: the captioning objectives."""

from ssb.config import OBJECTIVES

TABLE1 = {objective: {"objective": objective} for objective in OBJECTIVES}
