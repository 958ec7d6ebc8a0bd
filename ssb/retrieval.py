"""The public name of `ssb.metrics.retrieval` and of the tests of `ssb.metrics.statistics`."""

from ssb.metrics.retrieval import matrix_ranks, metrics, ranks, search, unit, video_to_text
from ssb.metrics.statistics import Paired, bootstrap, paired_bootstrap

__all__ = [
    "Paired",
    "bootstrap",
    "matrix_ranks",
    "metrics",
    "paired_bootstrap",
    "ranks",
    "search",
    "unit",
    "video_to_text",
]
