"""`ssb.retrieval`: the public name of `ssb.metrics.retrieval`."""

from ssb.metrics.retrieval import (  # noqa: F401
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
