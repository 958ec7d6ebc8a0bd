"""SSB, EMCL and S2DTW on one training budget, on clips and on long videos."""

from ssb.experiments import emcl_layer
from ssb.experiments.long_videos import FULL, S2DTW
from ssb.paper import Claim
from ssb.report import Experiment

_BY_PLACE = {"sequences": True, "batch": 16}  # caption k is paired with clip k
SEQUENCES = {  # losses for caption sequences; all runs are scored by the same S2DTW
    "triplet by place": _BY_PLACE | {"contrast": "triplet", "objective": "none"},
    "InfoNCE by place": _BY_PLACE | {"contrast": "info_nce", "objective": "none"},
    "SSB cross by place": _BY_PLACE | {"contrast": "triplet", "objective": "cross"},
    FULL: S2DTW,
    "SSB + S2DTW": S2DTW | {"objective": "cross"},
}


def clips(constants: emcl_layer.Constants = emcl_layer.LAYER) -> dict[str, dict]:
    """The grid on clips and captions: contrastive losses with and without SSB and EMCL. constants: of the layer."""
    grid = {
        "triplet": {"objective": "none"},
        "InfoNCE": {"contrast": "info_nce", "objective": "none"},
        "SSB cross": {"objective": "cross"},
        "EMCL": emcl_layer.layer(constants, objective="none"),
        "SSB + EMCL": emcl_layer.layer(constants, objective="cross"),
    }
    return {name: {"contrast": "triplet"} | changes for name, changes in grid.items()}


CLIPS = Experiment(
    "One budget: clips",
    baseline="triplet",
    claims=(
        Claim("SSB beats the triplet loss alone", "SSB cross", "triplet"),
        Claim("EMCL beats the triplet loss alone", "EMCL", "triplet"),
        Claim("SSB and EMCL beat EMCL alone", "SSB + EMCL", "EMCL"),
    ),
    alt="Forest plot of text to video R@1 of the triplet loss, InfoNCE, SSB, EMCL and both, each seed a dot.",
)
VIDEOS = Experiment(
    "One budget: long videos",
    grid=lambda study: SEQUENCES,
    baseline=FULL,
    claims=(
        Claim("S2DTW beats InfoNCE by place", FULL, "InfoNCE by place"),
        Claim("S2DTW beats the triplet loss by place", FULL, "triplet by place"),
        Claim("SSB and S2DTW beat S2DTW alone", "SSB + S2DTW", FULL),
    ),
    alt="Forest plot of the retrieval of long videos by contrastive losses by place, S2DTW, and both with captioning.",
)
TABLES = {"together": CLIPS, "together_videos": VIDEOS}
