"""The grids and claims of all tables: every setting is one that can be trained, and every claim is of settings that are
there."""

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from ssb import PRESETS, Config, load_corpus, study, text
from ssb import paper as paper_module
from ssb.experiments import ablations, emcl_layer, objectives, overview, together, transfer

GRIDS = {name: table.grid for name, table in overview.TABLES.items() if table.grid}
GRIDS |= {  # of results, and not of a table
    "collapse": lambda study: ablations.COLLAPSE,
    "emcl": lambda study: emcl_layer.grid(emcl_layer.LAYER._replace(beta=1.0)),
    "together": lambda study: together.clips(),
}


def grid_of(table: str, preset: str) -> dict[str, dict]:
    """As the notebook of the table asks for it."""
    return GRIDS[table](study.Study("t", preset=preset, changes={"corpus_options": {"clips": 60}}))


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"tuned"}))  # of a corpus that was searched
@pytest.mark.parametrize("table", GRIDS)
def test_settings_are_valid_and_differ(table, preset):
    """But for those that differ in what they begin with."""
    grid = grid_of(table, preset)
    grid = {name: grid[name] for name in grid if name not in transfer.initial_runs(grid)}
    base = Config.preset(preset).model_dump()
    shas = {name: Config(**{**base, **changes}).effective().sha for name, changes in grid.items()}
    same = {name for name in shas if list(shas.values()).count(shas[name]) > 1}
    assert len(grid) > 1 and not same


@pytest.mark.parametrize("table", [name for name, table in overview.TABLES.items() if table.claims and name in GRIDS])
def test_claims_are_of_settings_of_their_table(table):
    for preset in ("paper", "laptop"):
        settings = grid_of(table, preset).keys()
        settings |= {transfer.ZERO_SHOT.format(name) for name in settings}
        for claim in overview.TABLES[table].claims:
            missing = {claim.setting, claim.baseline} - settings
            assert missing <= ({"soft targets"} if preset == "paper" else set())  # these need a frozen text encoder


@pytest.mark.parametrize("table", overview.TABLES)
def test_a_claim_has_the_size_of_the_rows_that_it_names(table):
    """NaN where it names no row of paper.csv."""
    for claim in overview.TABLES[table].claims:
        size = paper_module.paper_difference(claim)
        assert bool(claim.rows) == (size == size)


def test_sizes_of_the_papers_claims():
    """By hand from paper.csv: 27.2 - 25.9, 26.0 - 25.9, 27.2 - 26.0."""
    assert [paper_module.paper_difference(claim) for claim in objectives.TABLE1.claims] == [1.3, 0.1, 1.2]


def test_streams_are_called_by_what_they_show(monkeypatch):
    shapes = load_corpus("shapes", clips=60)
    assert list(ablations.table2a(shapes)) == ["all streams", "appearance", "motion"]
    assert ablations.ROLES == {"resnet152": "appearance", "conv3d": "motion", "r2plus1d": "motion"}


def test_support_set_sizes_are_a_geometric_series_to_eight_batches():
    grid = ablations.table2f(64)
    sizes = [int(name) for name in grid if name != "none"]
    assert sizes[0] == 4 and sizes[-1] == 8 * 64 and all(b == 2 * a for a, b in zip(sizes, sizes[1:]))
    assert grid["64"] == {"support_set": None}  # the run of Table 1


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
    for grid in (ablations.table2c("paper", 40, 800), ablations.table2d("paper")):
        runs = work.run(grid)
        widths = {name: members[0].load()[0] for name, members in runs.items()}
        if grid["small"].get("text_encoder"):
            assert widths["base"].encoder.config.d_model == 24 and widths["small"].encoder.config.d_model == 16
        else:
            assert widths["base"].decoder.config.d_model == 24 and widths["small"].decoder.config.d_model == 16
    assert work.claims(runs, ablations.TABLE2C.claims)["claim"].tolist() == [
        "the larger text encoder beats the smaller"
    ]
