"""`ssb bench scale`: how the cost of each part grows with the corpus, on random data, at reduced width, on a CPU.

Each part is measured at several sizes: reading a corpus and ordering an epoch, a training step, a search, all ranks of
an evaluation, and a training step with a larger support set. The slope of seconds against size on logarithmic axes is
the exponent: 0 for a cost that does not depend on the size, 1 for one that is proportional to it, 2 for its square.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter

from ssb import files
from ssb.bench.cost import noise
from ssb.config import Config
from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, MARKS, heading, save, styled
from ssb.machine import machine, threads
from ssb.metrics import retrieval
from ssb.training import data
from ssb.training.loop import Training

CLIPS = (1000, 2000, 5000, 10_000, 20_000)
CAPTIONS = 9  # of a clip: 180,000 of the largest corpus
SUPPORT = (64, 128, 256, 512, 1024, 2048)
QUERIES = 1000
ROUNDS, ENOUGH = 3, 2.0  # a measurement is repeated so often, or until it has taken so many seconds
STEPS = 4  # of training, in each round
WIDTHS = {"appearance": 24, "motion": 8}
NARROW = dict(dim=32, pool_ffn=64, max_steps=8, batch=64, standardise=True)
NARROW |= dict(text_encoder="scratch", scratch_text_width=32, scratch_text_layers=1, scratch_heads=2)
NARROW |= dict(decoder="scratch", scratch_width=32, scratch_layers=1, vocabulary=1000)
READ, TRAIN, STEP = "read, order an epoch", "training, a pair", "training, a step"
SEARCH, RANKS = f"search, {QUERIES:,} queries", "ranks, a caption a clip"


def timed(call: Callable[[], object]) -> float:
    """The seconds that the processor works on a call: other programs do not change them, as they would a clock's."""
    start = time.process_time()
    call()
    return time.process_time() - start


def repeated(call: Callable[[], object]) -> list[float]:
    """Seconds of a call, each time."""
    taken = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        taken.append(timed(call))
    return taken


def row(what: str, axis: str, size: int, taken: list[float], units: int = 1) -> dict:
    """A row of the table: median, least and greatest of the seconds for one of `units`."""
    low, middle, high = (f(taken) / units for f in (np.min, np.median, np.max))
    return dict(what=what, axis=axis, size=size, seconds=middle, low=low, high=high)


def training(config: Config, corpus: Corpus) -> Callable[[], None]:
    """A function that takes STEPS steps, with a full support set; it has been called once, to warm up."""
    work = Training(config, corpus, Path("never written"), quiet=True)
    batches = itertools.cycle(work.data.order(0)[: 4 * STEPS])
    past = (config.support_set or 0) - config.batch
    if past > 0:
        work.memory = torch.arange(past), torch.randn(past, config.dim)

    def steps():
        for captions in itertools.islice(batches, STEPS):
            work.watch.stuck = 0  # noise may collapse, which costs as much as learning
            work.take_step(captions)
        work.read()

    steps()
    return steps


def reading(config: Config, clips: int) -> Iterator[dict]:
    """Rows for a corpus of so many clips: its features, tokens and the order of an epoch; and training on it."""
    corpus = noise(clips, CAPTIONS, WIDTHS, config.max_steps)

    def read():
        data._features.clear()  # those of the last time
        for kept in (data.tokenizer, data.token_ids):
            kept.cache_clear()
        with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, SSB_HOME=home):  # nor those on disk
            data.Data(config, corpus).order(0)

    yield row(READ, "clips", clips, repeated(read))
    yield row(TRAIN, "clips", clips, repeated(training(config, corpus)), STEPS * config.batch)


def supported(config: Config, sizes: Sequence[int]) -> Iterator[dict]:
    """Rows for support sets of these sizes, in rounds of all of them."""
    corpus = noise(max(sizes), 2, WIDTHS, config.max_steps)
    calls = [training(config.replace(support_set=size), corpus) for size in sizes]
    taken = np.array([[timed(call) for call in calls] for _ in range(ROUNDS)])
    for size, values in zip(sizes, taken.T):
        yield row(STEP, "support set", size, values, STEPS)


def searching(dim: int, clips: int) -> Iterator[dict]:
    """Rows for a gallery of so many clips: a search, and the ranks of all protocols, in both directions."""
    text, video = torch.randn(2, clips, dim)
    own = torch.arange(clips)

    def ranks():
        retrieval.search(text, video, own)
        for protocol in ("best-caption", "max-per-video"):
            retrieval.video_to_text(video, text, own, protocol)

    queries = text[:QUERIES], video, own[:QUERIES]
    yield row(SEARCH, "clips", clips, repeated(lambda: retrieval.search(*queries)))
    yield row(RANKS, "clips", clips, repeated(ranks))


def measured(config: Config, clips: Sequence[int], support: Sequence[int]) -> pd.DataFrame:
    """All rows, with the slope of each part."""
    rows = [row for size in clips for row in (*reading(config, size), *searching(config.dim, size))]
    frame = pd.DataFrame([*rows, *supported(config, support)])
    slopes = {what: slope(part["size"], part["seconds"]) for what, part in frame.groupby("what")}
    return frame.assign(slope=frame["what"].map(slopes)).sort_values(["axis", "what", "size"], ignore_index=True)


def slope(sizes, seconds) -> float:
    """Of seconds against size on logarithmic axes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


@styled
def drawn(frame: pd.DataFrame) -> plt.Figure:
    """Seconds against the number of clips, and against the size of the support set; one line for each part."""
    figure, axes = plt.subplots(2, 1, figsize=(3.5, 5.4), height_ratios=(3, 2))
    style = zip(MARKS, COLOURS)
    for axis, (name, label) in zip(
        axes, (("clips", "clips of the corpus"), ("support set", "clips of the support set"))
    ):
        chosen = frame[frame["axis"] == name]
        for what, part in chosen.groupby("what", sort=False):
            mark, colour = next(style)
            ends = part["seconds"] - part["low"], part["high"] - part["seconds"]
            label_of = f"{what}: slope {part['slope'].iloc[0]:.2f}"
            axis.errorbar(
                part["size"], part["seconds"], ends, marker=mark, color=colour, ms=4, lw=1.2, capsize=2, label=label_of
            )
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds of CPU time")
        middle = np.exp(np.log(chosen["seconds"]).mean())
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, middle / 10), max(high, middle * 10))  # or noise would look like growth
        axis.yaxis.set_minor_formatter(NullFormatter())
        ticks = sorted(set(chosen["size"]))
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.xaxis.minorticks_off()
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    heading(figure, "CPU time by the size of the corpus and of the support set")
    return figure


def bench(
    out: Path, figures: Path, clips: Sequence[int] = CLIPS, support: Sequence[int] = SUPPORT, **changes
) -> pd.DataFrame:
    """Measure on one thread, print, and write the rows to `out` and the figure to the folder `figures`; returns the
    frame. changes: of the reduced `paper` preset."""
    with threads(1), torch.random.fork_rng():
        torch.manual_seed(0)
        frame = measured(Config(**NARROW | changes), clips, support)
    print(frame.to_string(index=False, float_format="%.3g"))
    with files.written(out) as draft:
        frame.assign(**machine()).to_csv(draft, index=False, float_format="%.4g")
    lines = frame.groupby("what", sort=False)["slope"].first()
    growth = ", ".join(f"{what} {value:.2f}" for what, value in lines.items())
    save(drawn(frame), figures, "scale", alt=f"Seconds against size on logarithmic axes; slopes: {growth}.")
    return frame
