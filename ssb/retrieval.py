"""The public name of `ssb.metrics.retrieval`."""

from ssb.metrics.retrieval import (
    Paired,
    bootstrap,
    matrix_ranks,
    metrics,
    paired_bootstrap,
    points,
    ranks,
    search,
    unit,
    video_to_text,
)

__all__ = [
    "Paired",
    "bootstrap",
    "matrix_ranks",
    "metrics",
    "paired_bootstrap",
    "points",
    "ranks",
    "search",
    "unit",
    "video_to_text",
]
