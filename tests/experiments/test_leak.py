"""The leak: supports are eq. 3 over random blocks, and the probes tell what was put there and nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch

from ssb import Config, Study
from ssb.experiments import leak
from ssb.experiments.probe import clip_means
from ssb.training.loop import fit

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def states():
    """(600, 6): the states of 200 clips of three captions each."""
    return RNG.standard_normal((600, 6))


def found(states: np.ndarray, signal: float) -> dict[str, pd.DataFrame]:
    """Supports of 8 numbers that hold the caption's state, as far as `signal` says, behind a linear map."""
    mixed = np.pad(signal * states, ((0, 0), (0, 2))) + RNG.standard_normal((600, 8))
    mixed = mixed @ np.random.default_rng(1).standard_normal((8, 8))
    frame = pd.DataFrame({"caption": range(600), "clip": np.repeat(range(200), 3), "number": np.tile(range(3), 200)})
    frame["support"] = [*mixed]
    rows = {"train": frame[:300], "val": frame[300:420], "test": frame[420:]}
    return {split: part.reset_index(drop=True) for split, part in rows.items()}


def test_a_caption_that_is_in_the_support_is_told_and_noise_is_chance(states):
    assert leak.told(found(states, 10.0), states).mean() > 95
    assert abs(leak.told(found(states, 0.0), states).mean() - 100 / 3) < 10


def test_captions_of_the_same_state_are_told_by_chance(states):
    """Three captions that cannot be told apart count as a third each."""
    same = np.repeat(states[::3], 3, axis=0)
    assert leak.told(found(same, 10.0), same) == pytest.approx(np.full(180, 100 / 3))


def test_describers_are_told_where_they_write_into_the_support(states):
    describer = np.tile([0, 1, 2], 200)
    assert leak.describers(found(np.eye(6)[describer], 10.0), describer).mean() > 95
    assert abs(leak.describers(found(states, 1.0), describer).mean() - 100 / 3) < 15


@pytest.fixture(scope="module")
def config():
    """A run of seconds with a frozen text encoder."""
    options = {"clips": 60, "false_negatives": 0.05}
    settings = dict(text_encoder="sentence-transformers/all-MiniLM-L6-v2", freeze_text=True, epochs=1)
    return Config.preset("smoke", corpus="shapes", corpus_options=options, batch=16, **settings)


def test_supports_are_eq_3_for_every_caption_of_a_split(config):
    run = fit(config, quiet=True)
    model, data = run.load()
    corpus = data.corpus
    means = clip_means(corpus)
    frame = leak.supports(run, corpus, "test", means, run.config)
    text, video, own = data.embed(model, "test")
    assert frame["caption"].nunique() == len(frame) == len(text) == 75  # 15 clips, one block of 15
    k = 4
    first = frame[frame["number"] == 1].iloc[k]
    query, gallery = (torch.nn.functional.normalize(x.double(), dim=1) for x in (text, video))
    row = corpus.captions_of(corpus.split("test"))["caption"].to_list().index(first["caption"])
    assert own[row] == first["clip"]
    scores = np.exp((query[row] @ gallery.T).numpy() / config.temperature)
    scores[first["clip"]] = 0
    np.testing.assert_allclose(
        first["support"], scores / scores.sum() @ means[corpus.split("test")], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_table_of_leaks(config, home):
    changes = {
        name: getattr(config, name) for name in ("text_encoder", "freeze_text", "epochs", "batch", "corpus_options")
    }
    study = Study("leak", preset="smoke", seeds=[0, 1], jobs=1, changes=changes)
    few = {name: cell for name, cell in leak.grid(study).items() if cell.get("captioning", 1.0) == 1.0}
    runs = study.run(few)
    study.rows(runs)
    leaks = leak.leaks(study, runs)
    assert leaks["setting"].nunique() == 4 and set(leaks["probe"]) == {"caption", "describer"}
    assert (leaks[leaks["probe"] == "caption"]["chance"] == 20).all() and leaks["told"].between(0, 100).all()
    summary = study.summary(runs, "none")
    assert leak.reading(leaks, summary).count("chance 20.0 %") == 4
    assert len(leak.figure(leaks, summary, "title").axes) == 3
