"""EMCL in the study: the order of rows in blocks, scores against the module called by hand, the choice of constants,
and claims against their definitions."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import ssb
from ssb import emcl
from ssb.experiments import emcl_inference, emcl_layer, overview
from ssb.experiments.emcl_inference import MODULE, Embedded
from ssb.experiments.emcl_layer import Constants
from ssb.metrics import retrieval

SMALL = Constants(3, 2, 0.3, 0.5)


def member(clip_of, clips, channels=16, seed=0, alike=1.0):
    """Clips at random, captions `alike` them, and noise."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(clips, channels, generator=generator, dtype=torch.float64)
    clip_of = torch.as_tensor(clip_of)
    noise = torch.randn(len(clip_of), channels, generator=generator, dtype=torch.float64)
    text = alike * video[clip_of] + noise
    return Embedded(text, video, clip_of, seed, retrieval.search(text, video, clip_of), f"run{seed}")


clip_ofs = st.integers(1, 9).flatmap(
    lambda clips: st.tuples(
        st.just(clips), st.permutations(range(clips)), st.lists(st.integers(0, clips - 1), max_size=20)
    )
)


# the order of rows


@settings(deadline=None, max_examples=40)
@given(clip_ofs, st.sampled_from([*emcl_inference.ORDERS]), st.sampled_from([1, 2, 4, None]))
def test_every_caption_meets_every_clip_once(drawn, order, block):
    clips, own, more = drawn
    one = member([*own, *more], clips)
    met = np.zeros((len(one.text), clips), int)
    for rows, columns in emcl_inference.row_orders(one, order, block):
        np.add.at(met, (rows[:, None].numpy(), columns.numpy()), 1)
    assert (met == 1).all()


def blocks_of_pairs(one, order, block):
    """(caption's block, own clip's block) of every caption; blocks of which clips are left over have no captions."""
    for rows, columns in emcl_inference.row_orders(one, order, block):
        position = torch.argsort(columns)
        yield from zip((torch.arange(len(rows)) // block).tolist(), (position[one.clip_of[rows]] // block).tolist())


def test_paired_rows_have_their_own_clip_at_the_same_place_and_apart_ones_in_another_block():
    clip_of = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3))
    one = member(clip_of, 40)
    for rows, columns in emcl_inference.row_orders(one, "paired", 8):
        assert (one.clip_of[rows] == columns).all()
    assert len([*emcl_inference.row_orders(one, "paired", 8)]) == 3
    assert all(a != b for a, b in blocks_of_pairs(one, "apart", 8))
    share = np.mean([a == b for a, b in blocks_of_pairs(one, "shuffled", 8)])
    assert share < 0.5


def test_paired_rows_stay_paired_where_clips_have_unequal_captions():
    one = member([2, 0, 2, 1, 2, 0], 4)  # clip 3 has none
    results = [(rows.tolist(), columns.tolist()) for rows, columns in emcl_inference.row_orders(one, "paired", 2)]
    assert results == [([1, 3, 0], [0, 1, 2, 3]), ([5, 2], [0, 2, 1, 3]), ([4], [2, 0, 1, 3])]


# scores


@pytest.mark.parametrize("block", [4, None])
def test_listed_scores_are_those_of_the_rows_as_they_are(block):
    one = member([0, 0, 1, 1, 1, 2], 3, seed=5)
    wanted = emcl.similarity(one.text, one.video, emcl_inference.module(one, "released", SMALL), block, score="dot")
    assert torch.equal(emcl_inference.scores(one, "released", SMALL, "listed", block), wanted)


@pytest.mark.parametrize("form", ["ours", "released"])
@pytest.mark.parametrize("block", [4, None])
def test_scores_are_those_of_the_shuffled_rows_put_back(form, block):
    one = member(np.arange(30) % 10, 10, seed=3)
    torch.manual_seed(3)
    by_hand = emcl.EMCL(3, 2, 0.3, 0.5, released=form == "released").eval()
    generator = torch.Generator().manual_seed(3)
    rows, clips = torch.randperm(30, generator=generator), torch.randperm(10, generator=generator)
    wanted = torch.empty(30, 10, dtype=torch.float64)
    size = block or 30
    for i in range(0, 30, size):
        for j in range(0, 10, size):
            t, v = rows[i : i + size], clips[j : j + size]
            out = by_hand(F.normalize(torch.cat([one.text[t], one.video[v]]), dim=1))
            out = F.normalize(out, dim=1) if form == "ours" else out
            wanted[t[:, None], v] = out[: len(t)] @ out[len(t) :].T
    assert torch.allclose(emcl_inference.scores(one, form, SMALL, "shuffled", block), wanted, atol=1e-8)


def test_all_at_once_one_caption_a_clip_no_order_matters():
    one = member(np.random.default_rng(1).permutation(20), 20)
    results = [emcl_inference.scores(one, "ours", SMALL, order, None) for order in emcl_inference.ORDERS]
    assert all(torch.allclose(results[0], other, atol=1e-8) for other in results)
    assert not torch.allclose(
        *(emcl_inference.scores(one, "ours", SMALL, order, 8) for order in ("paired", "apart")), atol=1e-3
    )


@pytest.mark.parametrize("order", [*emcl_inference.ORDERS])
def test_no_weight_of_the_bases_gains_nothing(order):
    one = member(np.arange(60) % 20, 20)
    for form in emcl_inference.FORMS:
        assert emcl_inference.gain(one, form, SMALL._replace(beta=0.0), order, 8) == 0


@pytest.mark.parametrize("form, beta", [("ours", 0.5), ("released", 4.0)])
def test_captions_of_a_clip_in_one_block_tell_what_belongs_together(form, beta):
    """The same rows by the same module; only which of them meet in a call differs."""
    members = [member(np.arange(400) // 20, 20, channels=128, seed=seed, alike=0.25) for seed in range(3)]
    at = MODULE._replace(beta=beta)
    listed, shuffled = (
        np.mean([emcl_inference.gain(one, form, at, order) for one in members]) for order in ("listed", "shuffled")
    )
    assert listed > shuffled + 10


def test_unknown_forms_and_orders_are_refused():
    one = member([0, 1], 2)
    with pytest.raises(
        ValueError, match="form = 'theirs', order = 'paired': wanted one of ..ours', 'released'. and one of ..shuffled'"
    ):
        emcl_inference.scores(one, "theirs", SMALL, "paired")
    with pytest.raises(ValueError, match="order = 'sorted'"):
        emcl_inference.scores(one, "ours", SMALL, "sorted")


# what is chosen, and sweeps


@pytest.fixture
def few(monkeypatch):
    """Few constants to try."""
    tried = {"bases": (2, 7), "stages": (1, 10), "temperature": (0.1, 0.5), "beta": (0.1, 4.0)}
    monkeypatch.setattr(emcl_inference, "TRIED", tried)
    monkeypatch.setattr(emcl_inference, "BLOCKS", (16, None))
    monkeypatch.setattr(emcl_inference, "TEMPERATURES", {0.1: "-"})
    return [member(np.arange(60) % 30, 30, 24, seed) for seed in (0, 1)]


def test_chosen_gains_most_of_all_that_was_tried(few):
    best, tried = emcl_inference.chosen(few)
    for form, at in best.items():
        rows = tried[tried["form"] == form]
        assert len(rows) == 4 + 1 + 1  # λ × β, another K, another number of stages
        own = rows[(rows[[*Constants._fields]] == [*at]).all(axis=1)]["val delta"].item()
        assert own == rows["val delta"].max()
        assert own == pytest.approx(np.mean([emcl_inference.gain(one, form, at) for one in few]), abs=1e-3)


def test_a_sweep_varies_one_constant(few):
    best = {form: MODULE._replace(beta=0.5) for form in emcl_inference.FORMS}
    results = emcl_inference.sweep(few, best)
    for _, part in results.groupby(["form", "seed"]):
        counts = part["constant"].value_counts().to_dict()
        assert counts == {"bases": 2, "stages": 2, "temperature": 2, "beta": 3, "block": 2}
    row = results[(results["constant"] == "bases") & (results["value"] == 2) & (results["form"] == "released")].iloc[1]
    assert row["seed"] == 1
    wanted = emcl_inference.gain(few[1], "released", Constants(2, 10, 0.1, 0.5))
    assert row["delta"] == pytest.approx(wanted, abs=1e-3)
    whole = results[(results["constant"] == "block") & (results["value"] == 60) & (results["form"] == "ours")].iloc[0]
    assert whole["delta"] == pytest.approx(
        emcl_inference.gain(few[0], "ours", best["ours"], "shuffled", None), abs=1e-3
    )


def test_orders_are_gains_by_block(few):
    results = emcl_inference.orders(few, SMALL)
    assert len(results) == 2 * 4 * 2 * 2
    row = results[(results["order"] == "apart") & (results["block"] == 16) & (results["form"] == "ours")].iloc[1]
    assert row["delta"] == pytest.approx(emcl_inference.gain(few[1], "ours", SMALL, "apart", 16), abs=1e-3)


def test_effective_ranks_are_at_most_the_number_of_bases_and_of_rows(few):
    results = emcl_inference.effective_ranks(few)
    own = results[results["form"] == "E"]
    assert len(own) == 2 and own["effective rank"].between(10, 24).all()  # 60 rows of 24 channels at random
    rest = results[results["form"] != "E"]
    assert len(rest) == 2 * 2 * 2 and (rest["effective rank"] <= rest["bases"] + 1e-3).all()


# runs and claims


def test_a_table_holds_every_run_scored_every_way(few):
    test = {"none": few, "cross": [member(np.arange(60) % 30, 30, 24, seed, alike=2.0) for seed in (0, 1)]}
    best = {"ours": SMALL, "released": SMALL}
    results = emcl_inference.table(test, best)
    assert len(results.rows) == 2 * 2 * 3 * 2 * 2 and len(results.changes) == 2 * 2 * 3 * 2
    wanted = retrieval.matrix_ranks(emcl_inference.scores(few[1], "ours", SMALL, "paired"), few[1].clip_of)
    assert (results.ranks["none", "ours", "chosen", "paired"][1] == wanted["t2v"]).all()
    keys = ["setting", "form", "constants", "order"]
    row = results.rows.set_index([*keys, "seed"]).loc["none", "ours", "chosen", "paired", 1]
    assert row["bases"] == 3 and row["run"] == "run1"
    for way, ranks in wanted.items():
        assert row[f"{way} R@5"] == pytest.approx(100 * (ranks <= 5).mean(), abs=0.01)
    worth = emcl_inference.order_worth(test, results).set_index(keys)
    assert len(worth) == 2 * 2 * 2 * 2
    for setting, members in test.items():
        each = [
            emcl_inference.gain(m, "ours", SMALL, "listed") - emcl_inference.gain(m, "ours", SMALL, "shuffled")
            for m in members
        ]
        assert worth.loc[setting, "ours", "chosen", "listed"]["delta"] == pytest.approx(np.mean(each), abs=1e-3)
    words = emcl_inference.reading(results.changes).splitlines()
    assert len(words) == 4 and words[0].startswith("EMCL at inference (ours, paper's constants) changes R@1 of none by")
    changes = results.changes.set_index(keys).loc["none", "ours", "chosen", "paired"]
    each = [emcl_inference.gain(one, "ours", SMALL, "paired") for one in few]
    assert changes["delta"] == pytest.approx(np.mean(each), abs=1e-3)
    assert changes["R@1"] - changes["R@1 without"] == pytest.approx(changes["delta"], abs=2e-3)


def test_claims_stand_beside_what_the_paper_gains(few, home):
    test = {"none": few, "cross": few}
    study = ssb.Study("emcl_inference", preset="smoke", seeds=[0, 1], changes={"corpus_options": {"clips": 60}})
    results = emcl_inference.table(test, {form: MODULE._replace(beta=64.0) for form in emcl_inference.FORMS})
    claims = emcl_inference.module_claims(study, test, results)
    assert (claims["paper"] == 1.0).all()  # 46.6 less 45.6
    written = overview.claims(home / "results", "shapes-smoke")
    assert written["claim"].tolist() == [*emcl_inference.CLAIMS] and set(written["table"]) == {"emcl_inference"}
    assert written["delta_high"][0] < -10 and written["verdict"][0] == "contradicted"


def test_claims_of_the_layer(hand, home):
    """`cross` of the fixture is better by 20 points; taken for none with the layer, and the like."""
    runs = {"none": hand["none"], "none + EMCL": hand["cross"], "cross": hand["none"], "cross + EMCL": hand["full"]}
    study = ssb.Study("emcl", preset="smoke", seeds=range(5), changes={"corpus_options": {"clips": 60}})
    claims = emcl_layer.layer_claims(study, runs).set_index("setting")
    assert claims["verdict"].tolist() == ["held", "inconclusive", "contradicted"]
    gains = claims["delta"]
    assert gains["gain on cross"] == pytest.approx(gains["cross + EMCL"] - gains["none + EMCL"], abs=2e-3)
    assert (home / "results/shapes-smoke/emcl_claims.csv").exists()


def test_the_layer_is_named_as_the_settings_of_a_run_are():
    assert emcl_layer.layer(Constants(32, 9, 1.0, 3.0), objective="none") == {
        "emcl": True,
        "emcl_bases": 32,
        "emcl_stages": 9,
        "emcl_temperature": 1.0,
        "emcl_beta": 3.0,
        "objective": "none",
    }
    assert emcl_layer.layer(emcl_layer.LAYER) in [
        {k: v for k, v in t.items() if k != "objective"} for t in emcl_layer.trials().values()
    ]
    cells = emcl_layer.grid(SMALL)
    assert len(cells) == 6 and cells["cross"] == {"objective": "cross"} and cells["none"] == {"objective": "none"}
    assert cells["cross + EMCL"]["emcl_bases"] == 3 and cells["cross + EMCL, paper's constants"]["emcl_bases"] == 32


class Trial:
    """What `chosen_layer` reads of a run."""

    def __init__(self, constants: Constants, recalls: dict[int, float], best: int):
        self.config = SimpleNamespace(**emcl_layer.layer(constants))
        columns = {f"val R@{k}": list(recalls.values()) for k in (1, 5, 10)}
        self.log = pd.DataFrame({"epoch": list(recalls), **columns})
        self.metrics = {"best_epoch": best}


def test_the_layer_is_chosen_by_the_epoch_kept():
    other = SMALL._replace(beta=9.0)
    runs = {"a": [Trial(SMALL, {4: 10.0, 8: 90.0}, best=4)], "b": [Trial(other, {4: 1.0, 8: 11.0}, best=8)]}
    best, frame = emcl_layer.chosen_layer(runs)
    assert best == other and type(best.bases) is int
    assert frame["sum"].tolist() == [30.0, 33.0]


@pytest.fixture(scope="module")
def trained(shared_home):
    corpus = ssb.load_corpus("shapes", clips=60)
    config = ssb.Config.preset("smoke", corpus="shapes", corpus_options={"clips": 60}, objective="none", epochs=1)
    return corpus, ssb.fit(config, corpus, quiet=True)


def test_embeddings_of_a_run_are_those_it_was_ranked_by(trained):
    corpus, run = trained
    results = emcl_inference.embedded({"none": [run]}, corpus)
    assert (results["test"]["none"][0].plain == run.ranks["t2v"]).all()
    assert results["test"]["none"][0].clip_of.tolist() == run.ranks["clip"].tolist()
    text, video, _ = run.load(corpus)[1].embed(run.load(corpus)[0], "val")
    assert torch.equal(results["val"]["none"][0].text, text) and torch.equal(results["val"]["none"][0].video, video)


def test_figures_are_drawn(few):
    best = {"ours": MODULE, "released": SMALL}
    figure = emcl_inference.constants_figure(
        emcl_inference.sweep(few, best), emcl_inference.effective_ranks(few), best, "title"
    )
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == [*emcl_inference.AXES.values(), "bases K"]
    assert figure.axes[4].get_xticklabels()[-1].get_text() == "all"
    frame = emcl_inference.orders(few, SMALL)
    figure = emcl_inference.orders_figure(frame, "title")
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    rows = frame[(frame["form"] == "ours") & (frame["order"] == "apart")]
    assert drawn["one caption a clip, own clip in another block"].tolist() == pytest.approx(
        rows.groupby("block")["delta"].mean().tolist()
    )
