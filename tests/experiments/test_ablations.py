"""The rows of the tables: every setting is one that can be trained, and every claim is of settings that are there."""

import re

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from ssb import PRESETS, Config, load_corpus, study, text
from ssb import paper as paper_module
from ssb.experiments import (
    ablations,
    constants,
    emcl_layer,
    long_videos,
    objectives,
    probe,
    same_meaning,
    together,
    transfer,
)

GRIDS = {  # as the notebooks ask for them, by preset
    "table1": lambda preset: objectives.TABLE1,
    "heads": lambda preset: probe.HEADS,
    "table2a": lambda preset: ablations.table2a(load_corpus("shapes", clips=60)),
    "table2b": ablations.table2b,
    "table2c": ablations.table2c,
    "table2d": ablations.table2d,
    "table2e": lambda preset: ablations.TABLE2E,
    "collapse": lambda preset: ablations.COLLAPSE,
    "table2f": lambda preset: ablations.table2f(Config.preset(preset).batch),
    "constants": lambda preset: constants.constants(),
    "same_meaning": lambda preset: same_meaning.grid(Config.preset(preset).captioning),
    "emcl": lambda preset: emcl_layer.grid(emcl_layer.LAYER._replace(beta=1.0)),
    "s2dtw": lambda preset: long_videos.ABLATION,
    "together": lambda preset: together.clips(),
    "together_videos": lambda preset: together.SEQUENCES,
}
NAMED = GRIDS | {  # settings that differ in what they begin with or are tested on
    "pretraining": lambda preset: transfer.fine_tuned(Config.preset(preset), ("none", "cross")),
    "table10": lambda preset: {transfer.ZERO_SHOT.format(name): {} for name in ("none", "cross")},
}
CLAIMS = {f"table{table}": claims for table, claims in ablations.CLAIMS.items()} | {
    "table1": objectives.CLAIMS,
    "same_meaning": same_meaning.CLAIMS,
    "s2dtw": long_videos.CLAIMS,
    "together": together.CLAIMS,
    "together_videos": together.VIDEO_CLAIMS,
    "pretraining": transfer.PRETRAINING_CLAIMS,
    "table10": transfer.ZERO_SHOT_CLAIMS,
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("table", GRIDS)
def test_settings_are_valid_and_differ(table, preset):
    grid = GRIDS[table](preset)
    base = Config.preset(preset).model_dump()
    shas = {name: Config(**{**base, **changes}).effective().sha for name, changes in grid.items()}
    same = {name for name in shas if list(shas.values()).count(shas[name]) > 1}
    assert len(grid) > 1 and not same


@pytest.mark.parametrize("table", CLAIMS)
def test_claims_are_of_settings_of_their_table(table):
    for claim in CLAIMS[table]:
        for preset in ("paper", "laptop"):
            grid = NAMED[table](preset)
            assert {claim.setting, claim.baseline} <= grid.keys() or table == "table2a"
        found = paper_module.paper_difference(claim)
        assert bool(claim.rows) == (found == found)  # a size where a row of paper.csv is named, NaN where none is


def test_sizes_of_the_papers_claims():
    """By hand from paper.csv: 27.2 - 25.9, 26.0 - 25.9, 27.2 - 26.0."""
    assert [paper_module.paper_difference(claim) for claim in objectives.CLAIMS] == [1.3, 0.1, 1.2]


def test_streams_are_called_by_what_they_show(monkeypatch):
    shapes = load_corpus("shapes", clips=60)
    assert list(ablations.table2a(shapes)) == ["all streams", "appearance", "motion"]
    assert ablations.ROLES == {"resnet152": "appearance", "conv3d": "motion", "r2plus1d": "motion"}


def test_support_set_sizes_are_a_geometric_series_to_eight_batches():
    grid = ablations.table2f(64)
    sizes = [int(name) for name in grid if name != "none"]
    assert sizes[0] == 4 and sizes[-1] == 8 * 64 and all(b == 2 * a for a, b in zip(sizes, sizes[1:]))
    assert grid["64"] == {"support_set": None}  # the run of Table 1


def test_map_of_constants_spans_what_it_says():
    assert max(constants.LAMBDAS) / min(constants.LAMBDAS) == 1000
    assert (min(constants.TEMPERATURES), max(constants.TEMPERATURES)) == (0.01, 1.0)
    paper = Config()
    assert constants.constants()[constants.constant(paper.captioning, paper.temperature)]["temperature"] == 0.1
    assert all(re.fullmatch(r"none|λ = [\d.]+, T = [\d.]+(, decoder first)?", name) for name in constants.constants())


def test_paper_preset_takes_t5_from_folders_of_their_names(tmp_path, monkeypatch):
    """Tables 2c and 2d as the paper has them, on small weights saved as those of t5-small and t5-base are."""
    monkeypatch.chdir(tmp_path)
    tokenizer = text.fit_tokenizer(["a red disc moves left", "the blue ring grows"], 300)
    for name, width in (("t5-small", 16), ("t5-base", 24)):
        sizes = dict(d_model=width, d_kv=8, d_ff=32, num_heads=2, num_layers=1, num_decoder_layers=1)
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    small = {"corpus_options": {"clips": 60, "captions": 2, "false_negatives": 0.1}, "epochs": 1, "batch": 16}
    small |= {"dim": 32, "pool_ffn": 32, "lr_schedule": "constant", "contrast": "info_nce", "negatives": "mean"}
    work = study.Study("table2c", preset="paper", seeds=[0], jobs=1, changes=small)
    for grid in (ablations.table2c("paper"), ablations.table2d("paper")):
        runs = work.run(grid)
        widths = {name: members[0].load()[0] for name, members in runs.items()}
        if grid["small"].get("text_encoder"):
            assert widths["base"].encoder.config.d_model == 24 and widths["small"].encoder.config.d_model == 16
        else:
            assert widths["base"].decoder.config.d_model == 24 and widths["small"].decoder.config.d_model == 16
    assert work.claims(runs, ablations.CLAIMS["2c"])["claim"].tolist() == ["the larger text encoder beats the smaller"]
