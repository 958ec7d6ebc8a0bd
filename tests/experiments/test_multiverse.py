"""The multiverse: a balanced design, equal steps, and effects that are known because the runs are made by hand."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ssb import Config, Study
from ssb.experiments import multiverse
from ssb.experiments.multiverse import CHOICES, design, setting
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined
from ssb.training.data import Data

SMALL = {"corpus_options": {"clips": 60, "captions": 3, "false_negatives": 0.05}, "batch": 8}
CLIPS = np.repeat(np.arange(100), 2)
EFFECTS = {"negatives": 4.0, "epoch": -2.0, "weights_by": 1.0}  # points of gain, of the second value


class Made:
    """A run whose first `hits` of 200 test queries are right."""

    def __init__(self, hits: float, seed: int, objective: str):
        self.ranks = {"t2v": np.where(np.arange(200) < 2 * hits, 1.0, 9.0), "clip": CLIPS}
        self.config, self.trace = SimpleNamespace(seed=seed), [None] * 7
        self.share, self.ratio = (None, None) if objective == "none" else (0.5, 20.0)


def gain(chosen: dict) -> float:
    """Of a reading, by its choices: 3 points, and EFFECTS."""
    return 3 + sum(size * (chosen[name] == [*CHOICES[name]][1]) for name, size in EFFECTS.items())


@pytest.fixture
def runs():
    made = {}
    for reading, chosen in design().items():
        base = 20 + reading % 3
        made[setting(reading, "none")] = [Made(base + seed, seed, "none") for seed in (0, 1)]
        made[setting(reading, "cross")] = [Made(base + seed + gain(chosen), seed, "cross") for seed in (0, 1)]
    return made


@pytest.fixture
def study(home):
    return Study("multiverse", preset="smoke", seeds=[0, 1], jobs=1, changes=SMALL)


def test_the_design_is_balanced_and_no_effect_is_mixed_with_one_of_two_choices():
    signs = np.array([[1 if chosen[n] == [*v][0] else -1 for n, v in CHOICES.items()] for chosen in design().values()])
    assert signs.shape == (32, 10) and len({*map(tuple, signs.tolist())}) == 32
    assert (signs.T @ signs == 32 * np.eye(10)).all() and (signs.sum(axis=0) == 0).all()
    for one, other in combinations(range(10), 2):
        assert not (signs.T @ (signs[:, one] * signs[:, other])).any()
    defaults = Config().model_dump()
    assert design()[1] == {name: defaults[name] for name in CHOICES}


def test_every_choice_is_a_setting_with_these_values():
    for name, values in CHOICES.items():
        for value in values:
            assert getattr(Config(**{name: value}), name) == value
    bare = Config(objective="none")
    shared = {n for n, values in CHOICES.items() if bare.replace(**{n: [*values][1]}).effective().key == bare.key}
    assert shared | {"clip_apart"} == {*multiverse.OF_CAPTIONING}


def test_readings_that_differ_in_captioning_alone_share_their_runs_without_it(study):
    grid = multiverse.grid(study, steps=20)
    assert len(study.grid(grid)) == 2 * 32 + 1
    keys = {name: study.base.replace(**changes).effective().key for name, changes in grid.items()}
    assert len({key for name, key in keys.items() if name.endswith("cross")}) == 32
    assert len({key for name, key in keys.items() if name.endswith("none")}) == 32


@pytest.mark.parametrize(
    "clips, captions, steps", [(6000, 5, 600), (6000, 5, 930), (800, 5, 600), (700, 20, 600), (70, 2, 5)]
)
def test_epochs_of_pairs_and_of_clips_take_equally_many_steps(clips, captions, steps):
    corpus = SimpleNamespace(split=lambda _: np.arange(clips), captions_of=lambda train: train.repeat(captions))
    of_epoch = multiverse.lengths(corpus, 64, steps)
    pairs = of_epoch["pairs"]["epochs"] * (clips * captions // 64)
    of_clips = of_epoch["clips"]["epochs"] * (clips // 64)
    assert abs(pairs - of_clips) <= (clips // 64) / 2 and abs(pairs - steps) <= max(clips * captions // 128, steps)
    validations = [each["epochs"] / each["validate_every"] for each in of_epoch.values()]
    assert validations[0] == pytest.approx(validations[1], rel=0.1)


def test_so_do_the_batches_of_a_corpus(study):
    of_epoch, taken = multiverse.lengths(study.corpus, study.base.batch, 60), {}
    for epoch, changes in of_epoch.items():
        config = study.base.replace(epoch=epoch, **changes)
        data = Data(config, study.corpus)
        taken[epoch] = sum(len(data.order(k)) for k in range(config.epochs))
    assert taken["pairs"] == pytest.approx(taken["clips"], rel=0.06) and taken["clips"] == pytest.approx(60, rel=0.1)


def test_gains_and_effects_are_those_that_were_made(study, runs, home):
    gains = multiverse.gains(study, runs)
    assert gains["delta"].tolist() == [gain(chosen) for chosen in design().values()]
    assert (gains["log delta"] / gains["delta"]).round(3).nunique() == 1 and (gains["ratio"] == 20).all()
    effects = multiverse.effects(study, runs, gains)
    assert effects["delta"].drop("mean").to_dict() == pytest.approx(
        {name: EFFECTS.get(name, 0.0) for name in CHOICES}, abs=1e-3
    )
    assert (effects["readings_high"] - effects["readings_low"] < 1e-3).all()  # nothing is left unexplained
    assert effects["delta"]["mean"] == pytest.approx(gains["delta"].mean(), abs=1e-3)
    written = pd.read_csv(home / "results/shapes-smoke/multiverse_choices.csv", index_col="choice")
    assert written["to"]["negatives"] == "scheduled negatives"
    words = multiverse.reading(gains, effects)
    assert "32 of 32 readings (100%) gain" in words and "left out" not in words
    assert "From hardest negatives to scheduled negatives: +4.00 points" in words
    assert "λ on captioning, mean over tokens: 8 of 8 gain, by +4.5 points on average" in words
    assert "the captioning term is 20 to 20 times the contrastive one" in words
    second = {reading for reading, chosen in design().items() if chosen["kernels"] == "in turn"}
    bases = {reading: 20.5 + reading % 3 for reading in design()}  # means over the seeds
    apart = np.mean([bases[k] for k in second]) - np.mean([bases[k] for k in bases.keys() - second])
    assert effects["of none"]["kernels"] == pytest.approx(apart, abs=1e-3) and abs(apart) > 0.5
    figure = multiverse.figure(gains, effects, "title")
    assert [text.get_text() for text in figure.axes[2].get_yticklabels()][:2] == [*CHOICES["weighted_term"].values()]


def test_readings_of_similar_magnitude_are_told_apart_by_what_they_choose():
    """Not by their own ratio: the run of the third is ruined, and its ratio small."""
    kinds = [("contrast", "mean")] * 2 + [("captioning", "mean"), ("captioning", "sum"), ("captioning", "sum")]
    gains = pd.DataFrame(kinds, columns=["weighted_term", "over_tokens"])
    gains = gains.assign(ratio=[0.8, 1.2, 1.7, 70, 300], delta=[0.6, -0.2, -9.0, 3.0, -9.0])
    gains = gains.assign(
        pre_encoder_in=["all", "first", *["all"] * 3], kernels=["in turn", "side by side", *["in turn"] * 3]
    )
    gains["R@1"] = [5.0, 16.0, 9.0, 9.0, 9.0]
    gains = gains.assign(weights_by=["cosine", "dot product"] * 2 + ["cosine"], share=[0.017, 0.44, 0.5, 0.6, 0.7])
    assert multiverse.alike(gains) == (
        "of the 2 with λ on the contrastive loss and a mean over tokens, the nearest to the paper's similar magnitudes "
        "(captioning was 0.8 to 1.2 times the contrastive term), 1 gain, by +0.2 on average, from -0.2 to +0.6; "
        "captioning had 1.7 to 1.7 % of the gradient with weights by cosine (1 of 1 gain) and 44 to 44 % of the "
        "gradient with weights by dot product (0 of 1 gain); each "
        "of them has f in all layers and kernels in turn (R@1 of none 5) or f in the first layer and kernels side by "
        "side (R@1 of none 16), never the other two combinations; in the others it was 1.7 to 300 times, in 2 of 3 at "
        "least 5 times, a stress test"
    )
    assert multiverse.similar(gains).tolist() == [True, True, False, False, False]
    crossed = gains.assign(kernels=["in turn", "in turn", *gains["kernels"][2:]])
    assert "never" in multiverse.alike(crossed) and multiverse.tied(gains[:1]) == ""
    assert multiverse.cells(gains)["gain"].tolist() == [1, 0, 1] and multiverse.alike(gains[:2]) == ""


def test_an_effect_is_the_contrast_of_its_readings(study, runs):
    """`statistics.combined` over all 32 gains, in place of one sum over readings."""
    gains = multiverse.gains(study, runs)
    effects = multiverse.effects(study, runs, gains)
    pairs = []
    for reading, chosen in design().items():
        hits = [
            points(np.stack([run.ranks["t2v"] for run in runs[setting(reading, o)]]), "R@1") for o in ("cross", "none")
        ]
        pairs.append(((1 if chosen["negatives"] == "scheduled" else -1) / 16, *hits, CLIPS))
    wanted, found = combined(pairs), effects.loc["negatives"]
    for name in ("delta", "delta_low", "delta_high"):
        assert found[name] == pytest.approx(getattr(wanted, name), abs=1e-3)


def test_readings_that_collapsed_are_left_out_and_the_others_tell_the_same(study, runs):
    del runs["01 cross"], runs["08 none"], runs["20 cross"]
    gains = multiverse.gains(study, runs)
    assert len(gains) == 29
    effects = multiverse.effects(study, runs, gains)
    assert effects["delta"].drop("mean").to_dict() == pytest.approx(
        {name: EFFECTS.get(name, 0.0) for name in CHOICES}, abs=1e-3
    )
    assert "3 of 32 readings are left out" in multiverse.reading(gains, effects)
    for reading, chosen in design().items():
        if chosen["negatives"] == "hardest":
            runs.pop(setting(reading, "cross"), None)
    effects = multiverse.effects(study, runs, multiverse.gains(study, runs))
    assert "negatives" not in effects.index and effects["delta"]["epoch"] == pytest.approx(-2, abs=1e-3)


def test_the_interval_over_readings_is_that_of_least_squares(study, runs):
    """By hand: the residual of the gains on all choices, and the error of each coefficient."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for reading in design():
        for run in runs[setting(reading, "cross")]:
            run.ranks["t2v"] = np.where(np.arange(200) < rng.integers(40, 60), 1.0, 9.0)
    gains = multiverse.gains(study, runs)
    effects = multiverse.effects(study, runs, gains)
    x = np.array([[1] + [chosen[n] == [*v][1] for n, v in CHOICES.items()] for chosen in design().values()], float)
    solution, squares, *_ = np.linalg.lstsq(x, gains["delta"].to_numpy(), rcond=None)
    error = np.sqrt(squares[0] / 21 * np.diag(np.linalg.inv(x.T @ x)))[1:] * stats.t.ppf(0.975, 21)
    effects = effects.drop(index="mean")
    assert effects["delta"].to_numpy() == pytest.approx(solution[1:], abs=2e-3)
    assert (effects["readings_high"] - effects["delta"]).to_numpy() == pytest.approx(error, abs=2e-3)


def test_choices_that_do_nothing_are_seldom_called_effects(study, runs):
    """All choices have no effect: of 20 studies with noise of queries and of runs, few find any of the eleven."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        queries = rng.normal(0, 0.5, 200)
        for reading in design():
            for one, other in zip(runs[setting(reading, "cross")], runs[setting(reading, "none")]):
                own = queries + rng.normal(0, 0.5) + rng.normal(0, 1, 200)
                one.ranks["t2v"], other.ranks["t2v"] = np.where(own > 0, 1.0, 9.0), np.where(queries > 0, 1.0, 9.0)
        gains = multiverse.gains(study, runs)
        effects = multiverse.effects(study, runs, gains).drop(index="mean")
        found += effects["verdict"].isin(["higher", "lower"]).any()
    assert found <= 4


def test_rows_have_the_choices_that_act(runs):
    rows = multiverse.columns(runs)
    assert len(rows) == 4 * 32 and (rows["steps"] == 7).all()
    without = rows[rows["setting"].str.endswith("none")]
    assert (without[multiverse.OF_CAPTIONING] == "").all(axis=None) and set(without["kernels"]) == {*CHOICES["kernels"]}
