"""The rows of every table of settings: what each changes in the preset; and what the paper claims of them."""

from typing import NamedTuple

from ssb.config import OBJECTIVES
from ssb.corpus import Corpus

TABLE1 = {objective: {"objective": objective} for objective in OBJECTIVES}

_PAPER_HEAD = {"video_pooling": "transformer", "pool_ffn": 512}  # feed-forward twice the width, as the paper's
_TRIPLET = {"contrast": "triplet"}
_PROBED = _PAPER_HEAD | _TRIPLET | {"negatives": "scheduled", "text_pooling": "mean", "objective": "none"}
HEADS = {  # is a run trained at all? without captioning
    "convolutions": {"video_pooling": "conv", "text_pooling": "mean", "objective": "none"},
    "paper's head on video": _PROBED,
    "paper's head on video, InfoNCE": _PROBED | {"contrast": "info_nce"},
    "paper's head on video, InfoNCE, 100 epochs": _PROBED
    | {"contrast": "info_nce", "epochs": 100, "validate_every": 10},
    "paper's heads on both, InfoNCE": _PROBED | {"contrast": "info_nce", "text_pooling": "transformer"},
}

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


LAMBDAS, TEMPERATURES = (0.01, 0.1, 1.0, 10.0), (0.01, 0.1, 1.0)
WARMUP = 0.2  # share of the steps in which the decoder learns before it teaches; the epoch kept is to lie after it


def constant(captioning: float, temperature: float, warm: bool = False) -> str:
    """The name of a cell of the map of λ and T."""
    return f"λ = {captioning:g}, T = {temperature:g}" + ", decoder first" * warm


def constants(lambdas=LAMBDAS, temperatures=TEMPERATURES) -> dict[str, dict]:
    """λ and T of `cross`; at the paper's T also with a decoder that has learnt to speak before it moves the heads."""
    cells = {constant(c, t): {"captioning": c, "temperature": t} for c in lambdas for t in temperatures}
    warm = {
        constant(c, 0.1, True): {"captioning": c, "temperature": 0.1, "decoder_warmup": WARMUP} for c in lambdas[1:]
    }
    return {"none": {"objective": "none"}} | {k: v | {"objective": "cross"} for k, v in (cells | warm).items()}


def same_meaning(captioning: float) -> dict[str, dict]:
    """The objectives of Table 1 that can move the heads, and `cross` with more captioning than the preset's."""
    objectives = {name: changes for name, changes in TABLE1.items() if name != "identity"}
    more = {f"cross, λ = {c:g}": {"objective": "cross", "captioning": c} for c in (10 * captioning, 100 * captioning)}
    return objectives | more


def table_of(corpus: str) -> str:
    """The paper's table of a corpus, of Tables 3 to 6; Table 3 for those of which the paper has none."""
    others = {"vatex": "4", "activitynet": "5", "msvd": "6"}
    return next((table for start, table in others.items() if corpus.startswith(start)), "3")


CLIPS, SEEDS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000), (2, 3, 5, 10, 20)  # of the power curve


class Claim(NamedTuple):
    """What the paper says of two settings of a table: the first retrieves better. `paper`: the row of paper.csv that
    holds the difference, or two rows to subtract; empty where the size is not known."""

    table: str
    says: str
    setting: str
    baseline: str
    paper: tuple[str, ...] = ()


CLAIMS = [
    Claim("table1", "cross-captioning beats no captioning", "cross", "none", ("cross", "none")),
    Claim("table1", "hybrid captioning beats no captioning", "hybrid", "none", ("hybrid", "none")),
    Claim("table1", "cross beats hybrid", "cross", "hybrid", ("cross", "hybrid")),
    Claim("table2a", "motion features beat appearance features", "motion", "appearance", ("r2plus1d minus resnet152",)),
    Claim("table2a", "both together beat motion alone", "all streams", "motion", ("concat minus r2plus1d",)),
    Claim(
        "table2b",
        "the transformer head beats the mean",
        "transformer",
        "mean",
        ("transformer minus mean or max (more than)",),
    ),
    Claim(
        "table2b",
        "the transformer head beats the maximum",
        "transformer",
        "max",
        ("transformer minus mean or max (more than)",),
    ),
    Claim("table2c", "the larger text encoder beats the smaller", "base", "small", ("t5-base minus t5-small",)),
    Claim(
        "table2d", "the larger decoder beats the smaller", "base", "small", ("t5-base decoder minus t5-small decoder",)
    ),
    Claim("table2e", "the triplet loss of eq. 1 beats InfoNCE", "triplet, hardest", "InfoNCE, 0.05"),
    Claim("table2e", "so it does with our schedule of negatives", "triplet, scheduled", "InfoNCE, 0.05"),
    Claim("table2e", "inter-modal triplets alone beat both kinds", "triplet, scheduled", "triplet, inter and intra"),
    Claim("table2f", "the batch beats a small support set", "64", "4"),
    Claim("table2f", "the batch beats a very large support set", "64", "512"),
    Claim(
        "pretraining",
        "pre-training and a quarter of the epochs beat training from scratch",
        "cross, pre-trained",
        "cross",
        ("Support-Set after howto100m", "Support-Set from scratch"),
    ),
    Claim("pretraining", "so they do against as few epochs", "cross, pre-trained", "cross, a quarter"),
    Claim("pretraining", "cross beats no captioning after pre-training", "cross, pre-trained", "none, pre-trained"),
    Claim("table10", "cross transfers better than no captioning", "cross, zero-shot", "none, zero-shot"),
    Claim("s2dtw", "the shifted cosine beats the cosine distance", "S2DTW", "1 − cosine"),
    Claim("s2dtw", "γ = 0.1 beats a smaller one", "S2DTW", "γ = 0.01"),
    Claim("s2dtw", "γ = 0.1 beats a larger one", "S2DTW", "γ = 1"),
    Claim("s2dtw", "dummies help", "S2DTW", "no dummies"),
    Claim("s2dtw", "smoothing helps", "S2DTW", "no smoothing"),
    Claim("s2dtw", "weak alignment beats soft-DTW", "S2DTW", "soft-DTW"),
    Claim("s2dtw", "negatives are needed", "S2DTW", "no negatives"),
    Claim("together", "SSB beats the triplet loss alone", "SSB cross", "triplet"),
    Claim("together", "EMCL beats the triplet loss alone", "EMCL", "triplet"),
    Claim("together", "SSB and EMCL beat EMCL alone", "SSB + EMCL", "EMCL"),
    Claim("together_videos", "S2DTW beats InfoNCE by place", "S2DTW", "InfoNCE by place"),
    Claim("together_videos", "S2DTW beats the triplet loss by place", "S2DTW", "triplet by place"),
    Claim("together_videos", "SSB and S2DTW beat S2DTW alone", "SSB + S2DTW", "S2DTW"),
    Claim("same_meaning", "cross finds clips of the same meaning better than no captioning", "cross", "none"),
]

PUBLISHED = {"msrvtt": "7", "vatex": "8", "activitynet": "9"}  # beginning of a corpus's name → captioning table

TITLES = {  # of the panels of the overview
    "table1": "Table 1: captioning objective",
    "table1_lambda10": "Table 1 at the paper's λ",
    "table2a": "Table 2a: video features",
    "table2b": "Table 2b: aggregation",
    "table2c": "Table 2c: text encoder",
    "table2d": "Table 2d: decoder",
    "table2e": "Table 2e: contrastive loss",
    "table2f": "Table 2f: support-set size",
    "table11": "Table 11: actions, top-1",
    "captioning": "captions, CIDEr",
    "false_negatives": "gain per tenfold of false negatives",
    "same_meaning": "recall of the same meaning",
    "pretraining": "Tables 3 to 6: pre-training",
    "table10": "Table 10: zero-shot",
    "pretraining_from_shapes": "pre-training on shapes: a control",
    "table10_from_shapes": "zero-shot from shapes: a control",
    "s2dtw": "VT-TWINS",
    "emcl": "EMCL as a layer",
    "emcl_inference": "EMCL at inference",
    "together": "one budget",
    "together_videos": "one budget, long videos",
}
