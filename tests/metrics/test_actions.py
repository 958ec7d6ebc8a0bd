"""Linear action recognition against scikit-learn's logistic regression, separable and labelless data."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssb import load_corpus
from ssb.corpora import labels
from ssb.corpora.reading import CorpusError
from ssb.metrics import actions

QUICK = actions.Recipe(epochs=40, milestones=(30,), lr=1e-2, batch=16)


def clusters(n=120, classes=4, dim=6, spread=0.3):
    """Points around `classes` far corners: (n, dim), (n,) names."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    return 5 * np.eye(dim)[y] + spread * rng.standard_normal((n, dim)), np.array([f"action {k}" for k in y])


@pytest.mark.parametrize("decay", [0.1, 0.01])
def test_the_optimum_is_that_of_logistic_regression(decay):
    x, y = load_iris(return_X_y=True)
    recipe = actions.Recipe(3000, (2000, 2500), lr=0.05, weight_decay=decay, batch=None, held_out=0)
    layer = actions.fit(x, y, recipe=recipe)
    # sklearn: C Σ loss + ‖w‖² / 2; ours: mean loss + decay ‖w‖² / 2, the bias a weight as any other
    z = np.hstack([StandardScaler().fit_transform(x), np.ones((len(x), 1))])
    theirs = LogisticRegression(C=1 / (decay * len(x)), fit_intercept=False, tol=1e-10, max_iter=5000).fit(z, y)
    assert np.vstack([layer.weight, layer.bias]) == pytest.approx(theirs.coef_.T, abs=2e-3)
    assert (layer(x).argmax(1) == y).mean() == pytest.approx(theirs.score(z, y), abs=1e-9)


def test_separable_actions_are_all_recognised_and_shuffled_names_are_not():
    x, y = clusters(400)
    train, test = np.arange(200), np.arange(200, 400)
    found = actions.recognise({"x": x}, y, train, test, recipe=QUICK, seeds=(0, 1))
    assert found.rows["top-1"].tolist() == [100, 100] and (found.ranks["x"] == 1).all()
    mixed = np.random.default_rng(3).permutation(y)
    chance = actions.recognise({"x": x}, mixed, train, test, recipe=QUICK, seeds=(0, 1)).rows
    assert chance["top-1"].mean() == pytest.approx(25, abs=4 * 100 * np.sqrt(0.25 * 0.75 / 200))


def test_test_clips_change_nothing(monkeypatch):
    """Other names and other features of the test clips: the same layers, epochs among them."""
    x, y = clusters(120, spread=4)
    train, test = np.arange(80), np.arange(80, 120)
    made, fit = [], actions.fit
    monkeypatch.setattr(actions, "fit", lambda *a: made.append(fit(*a)) or made[-1])
    first = actions.recognise({"x": x}, y, train, test, recipe=QUICK, seeds=(0, 1))
    other, z = y.copy(), x.copy()
    other[test], z[test] = np.random.default_rng(1).permutation(y[test]), 7.0
    again = actions.recognise({"x": z}, other, train, test, recipe=QUICK, seeds=(0, 1))
    for one, two in zip(made[:2], made[2:]):
        assert all(np.array_equal(a, b) for a, b in zip(one, two))
    assert first.rows["epoch"].tolist() == again.rows["epoch"].tolist()
    assert not np.array_equal(first.ranks["x"], again.ranks["x"])
    assert not np.array_equal(made[0].weight, made[1].weight)  # of two seeds


def test_the_epoch_is_the_best_on_the_clips_held_out():
    x, y = clusters(150, spread=6)
    y = np.unique(y, return_inverse=True)[1]
    val = x[100:], y[100:]
    recipe = replace(QUICK, epochs=12, milestones=())
    layer = actions.fit(x[:100], y[:100], val, recipe=recipe)

    def score(layer):
        out = layer(val[0])
        return (out.argmax(1) == val[1]).sum()

    each = [  # every epoch as the last one
        score(actions.fit(x[:100], y[:100], recipe=replace(recipe, epochs=n, held_out=0))) for n in range(1, 13)
    ]
    assert score(layer) == max(each) == each[layer.epoch - 1]
    assert len(set(each)) > 1


def test_held_out_clips_keep_films_whole_and_classes_alike():
    y = np.repeat(np.arange(5), 40)
    groups = np.arange(200) // 4
    kept, held = actions.hold_out(y, groups, 0.1, seed=0)
    assert sorted([*kept, *held]) == list(range(200)) and not set(groups[kept]) & set(groups[held])
    assert np.bincount(y[held]).tolist() == [4] * 5
    with pytest.raises(ValueError, match="held_out = 0.1"):
        actions.hold_out(np.arange(5), None, 0.1, seed=0)


def test_labels_of_shapes():
    corpus = load_corpus("shapes", clips=40, captions=1, false_negatives=0.05)
    assert labels.labels(corpus).tolist() == corpus.meaning["motion"].tolist()


def test_labels_of_msrvtt(msrvtt):
    corpus = load_corpus("msrvtt1k")
    found = labels.labels(corpus)
    assert found[corpus.clips.index("video0")] == "category 9"  # the first of the official annotation
    assert len(set(found)) == 20 and len(found) == 1000


def test_what_does_not_fit():
    x, y = clusters(40)
    corpus = load_corpus("shapes", clips=40, captions=1, false_negatives=0.05)
    object.__setattr__(corpus, "classes", None)
    with pytest.raises(CorpusError, match="no class"):
        labels.labels(corpus)
    with pytest.raises(ValueError, match="no training clip of class 'dance'"):
        actions.recognise({"x": x}, np.append(y[:-1], "dance"), np.arange(30), np.arange(30, 40), recipe=QUICK)
    with pytest.raises(ValueError, match="shapes"):
        actions.fit(x, np.zeros(3, int))
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="clip 4 "):
        actions.fit(x, np.unique(y, return_inverse=True)[1])


def test_a_dimension_that_hardly_moves_in_training_decides_nothing():
    """Constant, or constant but for the rounding of one number: a test clip may have anything there."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 40)
    x = rng.normal(y[:, None] * 4.0, 1.0, (80, 2)).astype(np.float32)
    dead = np.stack([np.full(80, 7), 7 + 1e-6 * rng.random(80)], axis=1).astype(np.float32)
    recipe = actions.Recipe(epochs=30, milestones=(20,), lr=1e-2, batch=None, held_out=0)
    alone, both = actions.fit(x, y, recipe=recipe), actions.fit(np.hstack([x, dead]), y, recipe=recipe)
    elsewhere = np.hstack([x, dead + 1])
    assert (alone(x).argmax(1) == y).mean() > 0.9
    assert np.allclose(both(elsewhere), alone(x), atol=1e-5)
