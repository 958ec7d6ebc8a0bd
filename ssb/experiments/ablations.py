"""Tables 2a to 2f: what each setting changes in the preset."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, arms, styled
from ssb.paper import Claim

_PAPER_HEAD = {"video_pooling": "transformer", "pool_ffn": 512}  # feed-forward twice the width, as the paper's
_TRIPLET = {"contrast": "triplet"}
ROLES = {"resnet152": "appearance", "conv3d": "motion", "r2plus1d": "motion"}  # of a stream that is not called so


def table2a(corpus: Corpus) -> dict[str, dict]:
    """Video encoder: each stream of the corpus alone, and all of them side by side where there are several."""
    alone = {ROLES.get(name, name): {"streams": (name,)} for name in corpus.streams}
    return {"all streams": {}} | (alone if len(alone) > 1 else {})


def table2b(preset: str) -> dict[str, dict]:
    """Aggregation of the video features: the paper's head, mean and max; beyond the paper, the head taken apart."""
    head = {"video_pooling": "transformer"} if preset == "paper" else _PAPER_HEAD
    return {
        "transformer": head,
        "mean": {"video_pooling": "mean"},
        "max": {"video_pooling": "max"},
        "transformer without f": head | {"pre_encoder": False},
        "transformer, [CLS] query": head | {"pool_query": "cls"},
        "transformer, one layer": head | {"pool_layers": 1},
        "convolutions f alone": {"video_pooling": "conv"},
    }


def _scratch_text(width: int, layers: int) -> dict:
    size = {"scratch_text_width": width, "scratch_text_layers": layers}
    return {"text_encoder": "scratch", "freeze_text": False, "text_lr": 1e-3, **size}


def table2c(preset: str) -> dict[str, dict]:
    """Text encoder: in the paper's preset t5-small and t5-base, otherwise sizes that train in minutes."""
    if preset == "paper":
        return {"base": {"text_encoder": "t5-base"}, "small": {"text_encoder": "t5-small"}}
    grid = {"base": _scratch_text(128, 2), "small": _scratch_text(32, 1)}
    if preset == "laptop":
        short = {"epochs": 10}  # a quarter, as the paper's fine-tuning: each epoch of it costs as much as fifty frozen
        grid |= {
            "sentence encoder, frozen": {},
            "frozen, a quarter of the epochs": short,
            "fine-tuned, a quarter of the epochs": short | {"freeze_text": False},
        }
    return grid


def table2d(preset: str) -> dict[str, dict]:
    """Decoder: in the paper's preset t5-small and t5-base, otherwise from scratch."""
    if preset == "paper":
        return {"base": {"decoder": "t5-base"}, "small": {"decoder": "t5-small"}}
    base, small = ({"scratch_width": width, "scratch_layers": layers} for width, layers in ((192, 2), (48, 1)))
    return {"base": base, "middle": {}, "small": small}


TABLE2E = {
    "triplet, scheduled": _TRIPLET | {"negatives": "scheduled"},
    "triplet, hardest": _TRIPLET | {"negatives": "hardest"},
    "triplet, mean": _TRIPLET | {"negatives": "mean"},
    "triplet, inter and intra": _TRIPLET | {"negatives": "scheduled", "intra": True},
    **{f"InfoNCE, {t:g}": {"contrast": "info_nce", "info_nce_temperature": t} for t in (0.02, 0.05, 0.1, 0.2)},
}

# Eq. 1 from the first step, on a text encoder that knows nothing yet and on one that does; and the two ways round.
COLLAPSE = {
    "hardest, text encoder from scratch": _TRIPLET | _scratch_text(128, 2) | {"negatives": "hardest"},
    "hardest, pretrained text encoder": _TRIPLET | {"negatives": "hardest"},
    "mean, text encoder from scratch": _TRIPLET | _scratch_text(128, 2) | {"negatives": "mean"},
    "scheduled, text encoder from scratch": _TRIPLET | _scratch_text(128, 2) | {"negatives": "scheduled"},
}
COLLAPSE = {name: changes | {"objective": "none"} for name, changes in COLLAPSE.items()}


def table2f(batch: int) -> dict[str, dict]:
    """Support-set size: a geometric series from 4 to eight times the batch, and no captioning beside it."""
    sizes = [n for n in (4 * 2**k for k in range(30)) if n <= 8 * batch]
    return {str(n): {"support_set": None if n == batch else n} for n in sizes} | {"none": {"objective": "none"}}


_HEAD_GAIN = ("transformer minus mean or max (more than)",)
CLAIMS = {  # table → what the paper says of it; where it gives no size, we ask what its choice implies
    "2a": [
        Claim("motion features beat appearance features", "motion", "appearance", "2a", ("r2plus1d minus resnet152",)),
        Claim("both together beat motion alone", "all streams", "motion", "2a", ("concat minus r2plus1d",)),
    ],
    "2b": [
        Claim("the transformer head beats the mean", "transformer", "mean", "2b", _HEAD_GAIN),
        Claim("the transformer head beats the maximum", "transformer", "max", "2b", _HEAD_GAIN),
    ],
    "2c": [Claim("the larger text encoder beats the smaller", "base", "small", "2c", ("t5-base minus t5-small",))],
    "2d": [
        Claim(
            "the larger decoder beats the smaller", "base", "small", "2d", ("t5-base decoder minus t5-small decoder",)
        )
    ],
    "2e": [
        Claim("the triplet loss of eq. 1 beats InfoNCE", "triplet, hardest", "InfoNCE, 0.05"),
        Claim("so it does with our schedule of negatives", "triplet, scheduled", "InfoNCE, 0.05"),
        Claim("inter-modal triplets alone beat both kinds", "triplet, scheduled", "triplet, inter and intra"),
    ],
    "2f": [
        Claim("the batch beats a small support set", "64", "4"),
        Claim("the batch beats a very large support set", "64", "512"),
    ],
}


@styled
def sizes(rows: pd.DataFrame, summary: pd.DataFrame, title: str, batch: int, metric: str = "R@1"):
    """Table 2f: recall against the size of the support set; the band is the run without captioning."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.6, 2.5))
    none = summary.loc["none"]
    axis.axhspan(none[f"{metric} low"], none[f"{metric} high"], color="0.92", lw=0)
    axis.axhline(none[metric], color="0.5", lw=1, ls="--", label="no captioning, 95 % over queries")
    table = summary.drop(index="none")
    x = table.index.astype(int)
    error = np.array([arms(row[metric], row[f"{metric} low"], row[f"{metric} high"]) for _, row in table.iterrows()])
    bar = dict(fmt="D-", ms=4, color=COLOURS[0], capsize=3)
    axis.errorbar(x, table[metric], yerr=error[..., 0].T, label="mean, 95 % over queries", **bar)
    seeds = rows[rows["setting"] != "none"]
    axis.scatter(seeds["setting"].astype(int), seeds[f"t2v {metric}"].astype(float), s=9, color=COLOURS[1], zorder=3,
                 label="one seed")  # fmt: skip
    axis.axvline(batch, color="0.7", lw=0.8, ls=":")
    axis.set_xscale("log", base=2)
    axis.set(xticks=x, xticklabels=x, xlabel="clips in the support set (dotted: the batch)")
    axis.set(ylabel=f"text→video {metric} (%)", title=title)
    axis.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


@styled
def collapse(traces: Mapping[str, pd.DataFrame], title: str, margin: float, window: int = 10):
    """The loss, the spread of the similarities and the gradient of each step, means over `window` steps. traces:
    setting → of `Run.trace` or `Collapsed.trace`."""
    panels = {"contrast": "contrastive loss", "spread": "deviation of similarities", "gradient": "gradient norm"}
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.5))
    for axis, (column, name) in zip(axes, panels.items()):
        for k, (setting, trace) in enumerate(traces.items()):
            smooth = trace[column].rolling(window, min_periods=1).mean()
            label = setting if axis is axes[0] else None
            axis.plot(trace["step"], smooth, color=COLOURS[k], ls=("-", "--", "-.", ":")[k % 4], lw=1.2, label=label)
        axis.set(xlabel="training step", title=name, ylim=(0, None))
    axes[0].axhline(2 * margin, color="0.5", lw=0.8, ls=":")
    axes[0].annotate("2α", (1, 2 * margin), (2, 0), textcoords="offset points", va="center", fontsize=7,
                     xycoords=("axes fraction", "data"))  # fmt: skip
    for axis in axes[1:]:
        axis.set_yscale("log")
        axis.set_ylim(1e-4, None)
    figure.suptitle(title, fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure
