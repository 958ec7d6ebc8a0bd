"""Tables 2a to 2f: the ablations, what each setting changes in the preset, and the paper's claims."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, heading, legend, styled
from ssb.paper import Claim
from ssb.report import Experiment

ROLES = {"resnet152": "appearance", "conv3d": "motion", "r2plus1d": "motion"}  # of streams named after their encoder

# A learning rate at which the paper's head on video learns, by validation clips. At the one that was found for another
# head on shapes, 0.004, it stays at chance.
TRANSFORMER_LR = 5e-4


def table2a(corpus: Corpus) -> dict[str, dict]:
    """Video features: each stream of the corpus alone, and all of them concatenated where there are several."""
    alone = {ROLES.get(name, name): {"streams": (name,)} for name in corpus.streams}
    return {"all streams": {"streams": ()}} | (alone if len(alone) > 1 else {})


def table2b(preset: str) -> dict[str, dict]:
    """Aggregation of the video features: the paper's head, mean and max; beyond the paper, parts of the head."""
    # twice the width of the embeddings, as in the paper
    small = {} if preset == "paper" else {"pool_ffn": 512, "lr": TRANSFORMER_LR}
    head = {"video_pooling": "transformer"} | small
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


def table2c(preset: str, epochs: int, clips: int) -> dict[str, dict]:
    """Text encoder: in the paper's preset t5-small and t5-base, otherwise sizes that train in minutes, from scratch,
    and the sentence encoder. epochs: of the preset; clips: that are trained on, few enough to fine-tune the sentence
    encoder too or not."""
    if preset == "paper":
        return {"base": {"text_encoder": "t5-base"}, "small": {"text_encoder": "t5-small"}}
    grid = {"base": _scratch_text(128, 2), "small": _scratch_text(32, 1)}
    if preset != "smoke":
        grid |= {"sentence encoder, frozen": {}}
    if preset != "smoke" and clips <= 1000:  # an epoch of fine-tuning costs as much as 50 with the encoder frozen
        short = {"epochs": max(epochs // 4, 1)}  # as in the paper
        grid |= {
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


LOSSES = {
    **{f"triplet, {name}": {"contrast": "triplet", "negatives": name} for name in ("scheduled", "hardest", "mean")},
    "triplet, inter and intra": {"contrast": "triplet", "negatives": "scheduled", "intra": True},
    **{f"InfoNCE, {t:g}": {"contrast": "info_nce", "info_nce_temperature": t} for t in (0.02, 0.05, 0.1, 0.2)},
}

# Eq. 1 from the first step, with an untrained and with a pretrained text encoder; then negatives that avoid a collapse
_SCRATCH = _scratch_text(128, 2) | {"contrast": "triplet", "objective": "none"}
COLLAPSE = {
    "hardest, text encoder from scratch": _SCRATCH | {"negatives": "hardest"},
    "hardest, pretrained text encoder": {"contrast": "triplet", "negatives": "hardest", "objective": "none"},
    "mean, text encoder from scratch": _SCRATCH | {"negatives": "mean"},
    "scheduled, text encoder from scratch": _SCRATCH | {"negatives": "scheduled"},
}


def table2f(batch: int) -> dict[str, dict]:
    """Support-set size: powers of two from 4 to eight times the batch, and training without captioning."""
    sizes = [n for n in (4 * 2**k for k in range(30)) if n <= 8 * batch]
    return {str(n): {"support_set": None if n == batch else n} for n in sizes} | {"none": {"objective": "none"}}


@styled
def sizes(rows: pd.DataFrame, summary: pd.DataFrame, title: str, batch: int):
    """Table 2f: R@1 against the size of the support set; the band is the run without captioning. rows, summary: of
    `Study.rows` and `Study.summary`; batch: the batch size, marked by a dotted line."""
    figure, axis = plt.subplots(figsize=(PAGE * 0.6, 2.5))
    none, table = summary.loc["none"], summary.drop(index="none")
    axis.axhspan(none["R@1 low"], none["R@1 high"], color="0.92", lw=0)
    axis.axhline(none["R@1"], color="0.5", lw=1, ls="--", label="no captioning, 95 % over queries")
    x, mean = table.index.astype(int), table["R@1"]
    ends = [(mean - table["R@1 low"]).clip(lower=0), (table["R@1 high"] - mean).clip(lower=0)]
    axis.errorbar(x, mean, ends, fmt="D-", ms=4, color=COLOURS[0], capsize=3, label="mean, 95 % over queries")
    seeds = rows[rows["setting"] != "none"].astype({"setting": int, "t2v R@1": float})
    axis.scatter(seeds["setting"], seeds["t2v R@1"], s=6, color="0.35", zorder=3, label="one seed")
    axis.axvline(batch, color="0.7", lw=0.8, ls=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, x)
    axis.minorticks_off()
    axis.set(xlabel="clips in the support set (dotted: batch size)", ylabel="text→video R@1 (%)")
    heading(figure, title)
    legend(figure, columns=2)
    return figure


@styled
def collapse(traces: Mapping[str, pd.DataFrame], title: str, margin: float, window: int = 10):
    """The loss, the standard deviation of the similarities and the gradient norm at each step, means over `window`
    steps. traces: setting → of `Run.trace` or `Collapsed.trace`. margin: of the triplet loss; its value for collapsed
    embeddings, twice the margin, is marked."""
    panels = {"contrast": "contrastive loss", "spread": "std. dev. of similarities", "gradient": "gradient norm"}
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.5))
    for axis, (column, name) in zip(axes, panels.items()):
        for k, (setting, trace) in enumerate(traces.items()):
            smooth = trace[column].rolling(window, min_periods=1).mean()
            axis.plot(trace["step"], smooth, color=COLOURS[k], ls=("-", "--", "-.", ":")[k % 4], lw=1.2, label=setting)
        axis.set(xlabel="training step", title=name, ylim=(0, None))
    axes[0].axhline(2 * margin, color="0.5", lw=0.8, ls=":")
    axes[0].text(1.01, 2 * margin, "2α", va="center", transform=axes[0].get_yaxis_transform())
    for axis in axes[1:]:
        axis.set(yscale="log", ylim=(1e-4, None))
    heading(figure, title)
    legend(figure, columns=2)
    return figure


MOTION = Claim("motion features beat appearance features", "motion", "appearance", "2a", ("r2plus1d minus resnet152",))
BOTH = Claim("both together beat motion alone", "all streams", "motion", "2a", ("concat minus r2plus1d",))
HEAD_GAIN = ("transformer minus mean or max (more than)",)
ENCODER_GAIN, DECODER_GAIN = ("t5-base minus t5-small",), ("t5-base decoder minus t5-small decoder",)

TABLE2A = Experiment(
    "Table 2a: video features",
    number="2a",
    grid=lambda study: table2a(study.corpus),
    baseline="all streams",
    claims=(MOTION, BOTH),
    alt="Forest plot of text to video R@1 with each feature stream alone and with all of them, with intervals.",
)
TABLE2B = Experiment(
    "Table 2b: aggregation",
    number="2b",
    grid=lambda study: table2b(study.preset),
    baseline="transformer",
    claims=(
        Claim("the transformer head beats the mean", "transformer", "mean", "2b", HEAD_GAIN),
        Claim("the transformer head beats the maximum", "transformer", "max", "2b", HEAD_GAIN),
    ),
    alt="Forest plot of text to video R@1 of the video pooling heads, with intervals.",
)
TABLE2C = Experiment(
    "Table 2c: text encoder",
    number="2c",
    grid=lambda study: table2c(study.preset, study.base.epochs, len(study.corpus.split("train"))),
    baseline="base",
    claims=(Claim("the larger text encoder beats the smaller", "base", "small", "2c", ENCODER_GAIN),),
    alt="Forest plot of text to video R@1 of the text encoders, with intervals.",
)
TABLE2D = Experiment(
    "Table 2d: text decoder",
    number="2d",
    grid=lambda study: table2d(study.preset),
    baseline="base",
    claims=(Claim("the larger decoder beats the smaller", "base", "small", "2d", DECODER_GAIN),),
    alt="Forest plot of text to video R@1 with decoders of three sizes, with intervals.",
)
TABLE2E = Experiment(
    "Table 2e: contrastive loss",
    number="2e",
    grid=lambda study: LOSSES,
    baseline="triplet, scheduled",
    claims=(  # the paper gives no sizes
        Claim("the triplet loss of eq. 1 beats InfoNCE", "triplet, hardest", "InfoNCE, 0.05"),
        Claim("the triplet loss with our schedule of negatives beats InfoNCE", "triplet, scheduled", "InfoNCE, 0.05"),
        Claim("inter-modal triplets alone beat both kinds", "triplet, scheduled", "triplet, inter and intra"),
    ),
    alt="Forest plot of text to video R@1 of triplet losses and of InfoNCE at four temperatures, with intervals.",
)
TABLE2F = Experiment(
    "Table 2f: support-set size",
    number="2f",
    grid=lambda study: table2f(study.base.batch),
    baseline="none",
    claims=(  # what the paper's choice of the batch implies
        Claim("the batch beats a small support set", "64", "4"),
        Claim("the batch beats a very large support set", "64", "512"),
    ),
    alt="Text to video R@1 against the number of clips in the support set, with intervals.",
    draw=lambda result: sizes(result.rows, result.summary, result.title, result.study.base.batch),
)
TABLES = {
    "table2a": TABLE2A,
    "table2b": TABLE2B,
    "table2c": TABLE2C,
    "table2d": TABLE2D,
    "table2e": TABLE2E,
    "table2f": TABLE2F,
}
