"""One budget: the settings of the three methods, and the claims about them."""

import pytest

from ssb import Config
from ssb.config import PRESETS
from ssb.experiments import together
from ssb.experiments.emcl_layer import LAYER, Constants

OTHERS = Constants(8, 3, 0.3, 0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_on_clips_differ_in_loss_captioning_and_emcl_alone(preset):
    configs = {name: Config.preset(preset, **changes).model_dump() for name, changes in together.clips(OTHERS).items()}
    base = configs.pop("triplet")
    changed = {name: {key for key in base if config[key] != base[key]} for name, config in configs.items()}
    constants = {"emcl", "emcl_bases", "emcl_stages", "emcl_temperature", "emcl_beta"}
    assert changed == {
        "InfoNCE": {"contrast"},
        "SSB cross": {"objective"},
        "EMCL": constants,
        "SSB + EMCL": constants | {"objective"},
    }


def test_the_constants_of_the_layer_reach_the_settings():
    config = Config.preset("laptop", **together.clips(OTHERS)["SSB + EMCL"])
    assert (config.emcl_bases, config.emcl_stages, config.emcl_temperature, config.emcl_beta) == OTHERS
    assert together.clips() == together.clips(LAYER)


def test_all_settings_on_long_videos_have_one_budget():
    configs = [Config.preset("laptop", **changes) for changes in together.SEQUENCES.values()]
    assert len({(config.sequences, config.batch, config.epochs, config.lr) for config in configs}) == 1
    assert len({config.effective().sha for config in configs}) == len(configs) == 5


def test_claims_are_of_these_settings():
    for table, grid in ((together.CLIPS, together.clips()), (together.VIDEOS, together.SEQUENCES)):
        assert table.baseline in grid and len(table.claims) == 3
        assert all({claim.setting, claim.baseline} <= grid.keys() for claim in table.claims)
