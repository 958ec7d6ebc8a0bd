"""Which clips have the same meaning, and how a run ranks them: against loops, scikit-learn and captions by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoTokenizer

import ssb
from ssb.corpora.corpus import Corpus, Stream
from ssb.metrics import meaning, retrieval
from ssb.text import model_path


def captioned(captions: list[list[str]]) -> Corpus:
    """A corpus without `meaning`; its test clips are all but the first two, in reverse order."""
    n = len(captions)
    rows = [(clip, text) for clip, texts in enumerate(captions) for text in texts]
    return Corpus(
        name="hand",
        clips=[f"c{i}" for i in range(n)],
        captions=pd.DataFrame(rows, columns=["clip", "text"]),
        splits={"train": np.array([0, 1]), "test": np.arange(n)[:1:-1]},
        streams={"look": Stream(np.random.default_rng(0).normal(size=(n, 3, 4)).astype(np.float32))},
    )


@st.composite
def embedded(draw):
    """Embeddings of a few kinds of rows, so that cosines tie, the clip of each caption, and what fits."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    clips, captions, kinds = draw(st.integers(2, 6)), draw(st.integers(1, 8)), draw(st.integers(2, 8))
    rows = rng.integers(-2, 3, (kinds, 3)).astype(float)
    clip_of = rng.integers(clips, size=captions)
    fits = rng.random((captions, clips)) < draw(st.sampled_from([0.0, 0.3, 0.8]))
    fits[np.arange(captions), clip_of] = True
    return rows[rng.integers(kinds, size=captions)], rows[rng.integers(kinds, size=clips)], clip_of, fits


def cosines(text, video) -> list[list[float]]:
    return (retrieval.unit(text) @ retrieval.unit(video).T).tolist()


@settings(deadline=None, max_examples=60)
@given(embedded())
def test_semantic_ranks_are_the_mean_over_all_orders_of_the_tied(drawn):
    text, video, _, fits = drawn
    for rank, row, right in zip(meaning.semantic_ranks(text, video, fits), cosines(text, video), fits):
        orders = itertools.permutations(range(len(row)))  # those that a sort may give are the descending ones
        firsts = [
            next(rank for rank, clip in enumerate(order, 1) if right[clip])
            for order in orders
            if all(row[a] >= row[b] for a, b in itertools.pairwise(order))
        ]
        assert rank == pytest.approx(np.mean(firsts))


@settings(deadline=None, max_examples=60)
@given(embedded())
def test_where_only_the_own_clip_fits_the_ranks_are_those_of_search(drawn):
    text, video, clip_of, _ = drawn
    own = np.eye(len(video), dtype=bool)[clip_of]
    assert (meaning.semantic_ranks(text, video, own) == retrieval.search(text, video, clip_of)).all()
    assert np.isnan(meaning.auc(text, video, clip_of, own))
    assert not len(meaning.pairs(text, video, clip_of, own)["same meaning"])


@settings(deadline=None, max_examples=60)
@given(embedded())
def test_pairs_and_auc_agree_with_loops_and_scikit_learn(drawn):
    text, video, clip_of, fits = drawn
    wanted, areas = {kind: [] for kind in meaning.KINDS}, []
    for row, own, right in zip(cosines(text, video), clip_of, fits):
        for clip, cosine in enumerate(row):
            wanted["own" if clip == own else "same meaning" if right[clip] else "other"].append(cosine)
        rest = [clip for clip in range(len(row)) if clip != own]
        if len(set(right[rest])) == 2:
            areas.append(roc_auc_score(right[rest], np.array(row)[rest]))
    kinds = meaning.pairs(text, video, clip_of, fits)
    assert {kind: values.tolist() for kind, values in kinds.items()} == wanted
    area = meaning.auc(text, video, clip_of, fits)
    assert area == pytest.approx(np.mean(areas)) if areas else np.isnan(area)


def test_constant_embeddings_score_chance():
    fits = np.random.default_rng(0).random((40, 12)) < 0.3
    clip_of = np.arange(40) % 12
    fits[np.arange(40), clip_of] = True
    flat = np.ones((40, 5)), np.ones((12, 5))
    assert meaning.auc(*flat, clip_of, fits) == 0.5
    # the first of r among n others is at (n + r + 1) / (r + 1)
    assert meaning.semantic_ranks(*flat, fits) == pytest.approx(13 / (fits.sum(1) + 1))


def test_what_does_not_fit_together_is_refused():
    text, video, clip_of, fits = np.eye(3), np.eye(3)[:2], np.array([0, 1, 0]), np.ones((3, 2), bool)
    with pytest.raises(ValueError, match=r"fits is float64 of shape \(3, 2\); wanted bool of shape \(3, 2\)"):
        meaning.semantic_ranks(text, video, fits * 1.0)
    with pytest.raises(ValueError, match=r"fits is bool of shape \(2, 3\)"):
        meaning.semantic_ranks(text, video, fits.T)
    with pytest.raises(ValueError, match="text has 3 channels, video has 2"):
        meaning.semantic_ranks(text, video[:, :2], fits)
    fits[2] = False, True
    assert meaning.semantic_ranks(text, video, fits).shape == (3,)
    with pytest.raises(ValueError, match=r"caption 2 does not fit its own clip \(1 of 3 do not\)"):
        meaning.pairs(text, video, clip_of, fits)
    fits[2] = False
    with pytest.raises(ValueError, match="caption 2 does not fit"):
        meaning.semantic_ranks(text, video, fits)


# clips of the same meaning


def test_on_shapes_the_truth_is_what_the_captions_say():
    corpus = ssb.load_corpus("shapes", clips=60, false_negatives=0.1)
    fits = meaning.same(corpus, "val")
    clips = corpus.split("val")
    captions = corpus.captions_of(clips)
    assert fits.shape == (len(captions), len(clips)) and fits.sum() > len(captions)
    for row, (_, caption) in zip(fits, captions.iterrows()):
        own = corpus.meaning.iloc[caption["clip"]]
        others = corpus.meaning.iloc[clips]
        wanted = [all(other[name] == own[name] for name in caption["says"]) for _, other in others.iterrows()]
        assert row.tolist() == wanted and row[list(clips).index(caption["clip"])]


def naive_near(vectors, clip_of):
    """The definition, in loops of float64."""
    cosine = [[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors] for a in vectors]
    everyone = range(len(vectors))

    def best(q, clip):
        return max((cosine[q][k] for k in everyone if clip_of[k] == clip and k != q), default=-np.inf)

    usual = np.median([best(q, clip_of[q]) for q in everyone if best(q, clip_of[q]) > -np.inf])
    return [[clip == clip_of[q] or best(q, clip) >= usual for clip in range(max(clip_of) + 1)] for q in everyone]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_near_is_as_near_as_captions_of_one_clip(seed, chunk):
    rng = np.random.default_rng(seed)
    clip_of = rng.permutation(np.r_[np.arange(8), rng.integers(7, size=23)])  # the last clip has one caption
    vectors = rng.normal(size=(8, 5))[clip_of] + rng.normal(size=(31, 5))
    near = meaning.near(vectors, clip_of, chunk=chunk)
    assert near.tolist() == naive_near(vectors, clip_of)
    assert 31 < near.sum() < near.size


def test_equal_captions_are_near_where_captions_of_a_clip_are_equal():
    """The threshold is then 1, which a cosine may miss by a rounding."""
    once = np.random.default_rng(0).normal(size=(40, 384))
    vectors, clip_of = np.concatenate([once, once, once]), np.r_[np.arange(40), np.arange(40), np.arange(40)[::-1]]
    near = meaning.near(vectors, clip_of)
    assert (near == np.maximum(np.eye(40), np.eye(40)[::-1])[clip_of].astype(bool))[:80].all()


def test_one_caption_for_each_clip_is_refused():
    with pytest.raises(ValueError, match="no clip has two captions"):
        meaning.near(np.eye(3), np.arange(3))


def test_by_sentences_paraphrases_fit_and_the_split_gives_the_order():
    dogs = ["a dog runs on the beach", "a dog is running along the beach"]
    cooks = ["a man is cooking pasta in a kitchen", "a man cooks pasta in the kitchen"]
    corpus = captioned([["x"], ["y"], dogs, cooks, [dogs[1], "the dog runs along a beach"], ["a rocket is launched"]])
    fits = meaning.same(corpus)  # clips 5, 4, 3, 2
    # "on the beach" is farther from "along the beach" than the median, so it fits its own clip only
    wanted = [[1, 0, 0, 0]] + 2 * [[0, 1, 0, 1]] + 2 * [[0, 0, 1, 0]] + [[0, 0, 0, 1], [0, 1, 0, 1]]
    assert fits.astype(int).tolist() == wanted


def test_with_one_caption_a_clip_the_same_words_mean_the_same():
    corpus = captioned([["x"], ["y"], ["A dog  runs"], ["a cat"], ["a dog runs"]])
    assert meaning.same(corpus).astype(int).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_a_sentence_is_the_mean_of_its_tokens():
    captions = [
        "a man is singing",
        "dog",
        "two women are talking about a recipe in a bright kitchen",
        "a man is singing",
    ]
    vectors = meaning.sentences(captions)
    folder = model_path(meaning.ENCODER)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for vector, caption in zip(vectors, captions):
        with torch.inference_mode():
            state = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(vector, state, atol=1e-3)  # states are stored as float16
