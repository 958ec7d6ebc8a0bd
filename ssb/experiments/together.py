"""SSB, EMCL and S2DTW on one training budget, on clips and on long videos."""

from ssb.experiments import emcl_layer


def clips(constants: emcl_layer.Constants = emcl_layer.LAYER) -> dict[str, dict]:
    """The same losses on clips and their captions, and EMCL with these constants."""
    grid = {
        "triplet": {"objective": "none"},
        "InfoNCE": {"contrast": "info_nce", "objective": "none"},
        "SSB cross": {"objective": "cross"},
        "EMCL": emcl_layer.layer(constants, objective="none"),
        "SSB + EMCL": emcl_layer.layer(constants, objective="cross"),
    }
    return {name: {"contrast": "triplet"} | changes for name, changes in grid.items()}
