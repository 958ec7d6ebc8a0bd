"""Retrieval of long videos without alignment: against loops, and recall by script by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb.metrics import sequences
from ssb.metrics.sequences import best_match_similarity, pooled_similarity


def test_by_script_by_hand():
    """Two scripts of two takes: the video itself is first; one of its script; a tie for the first place; one of
    another script."""
    scores = [[9, 1, 0, 0], [5, 4, 0, 0], [0, 7, 7, 1], [8, 0, 1, 2]]
    values = sequences.by_script(torch.tensor(scores).double(), np.array([0, 0, 1, 1]))
    assert values == {"R@1 by full S2DTW": 25, "right script": 50, "within-script R@1": 75}
    assert sequences.by_script(np.array(scores), None) == {"R@1 by full S2DTW": 25}


def sequences_of(q: int, c: int, m: int, n: int, d: int, seed: int):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((q, m, d)), rng.standard_normal((c, n, d))


@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4), st.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_similarities_agree_with_loops(q, c, m, n, d, seed):
    text, video = sequences_of(q, c, m, n, d, seed)
    length = np.linalg.norm
    text_, video_ = (x / length(x, axis=-1, keepdims=True) for x in (text, video))
    pooled, best = np.empty((q, c)), np.empty((q, c))
    for i in range(q):
        for j in range(c):
            a, b = text_[i].mean(0), video_[j].mean(0)
            pooled[i, j] = a @ b / length(a) / length(b)
            best[i, j] = np.mean([max(caption @ clip for clip in video_[j]) for caption in text_[i]])
    np.testing.assert_allclose(best_match_similarity(3 * text, video), best, atol=1e-7)
    np.testing.assert_allclose(pooled_similarity(text, 2 * video), pooled, atol=1e-5)  # a mean may be near 0


def test_similarities_know_no_order_and_no_chunks():
    text, video = (torch.tensor(x) for x in sequences_of(7, 6, 5, 4, 33, 0))
    for similarity in (pooled_similarity, best_match_similarity):
        whole = similarity(text, video)
        assert whole.shape == (7, 6) and whole.dtype == torch.float64
        assert torch.equal(whole, similarity(text.flip(1), video[:, [2, 0, 3, 1]]))
        assert torch.equal(whole[2:3, 1:4], similarity(text[2:3], video[1:4]))
    assert torch.equal(best_match_similarity(text, video, chunk=2), best_match_similarity(text, video))


@pytest.mark.parametrize("similarity", [pooled_similarity, best_match_similarity])
def test_bad_similarities(similarity):
    good = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"text has shape \(3, 4\); wanted \(videos, steps, channels\)"):
        similarity(good[0], good)
    wrong = good.copy()
    wrong[1, 1, 2] = np.nan
    with pytest.raises(ValueError, match="row 4 of video is not finite"):
        similarity(good, wrong)
