import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRecall

from ssb.metrics import statistics
from ssb.metrics.retrieval import (
    bootstrap,
    matrix_ranks,
    metrics,
    paired_bootstrap,
    points,
    ranks,
    search,
    unit,
    video_to_text,
)

PROTOCOLS = ("best-caption", "max-per-video")


def naive_ranks(similarity, targets):
    found = []
    for row, target in zip(similarity, targets):
        others = [s for j, s in enumerate(row) if j != target]
        found.append(1 + sum(s > row[target] for s in others) + sum(s == row[target] for s in others) / 2)
    return np.array(found)


def naive_best_caption(similarity, clip):
    """Mean rank of the first right caption over every order in which the tied captions may fall."""
    found = []
    for i, row in enumerate(similarity):
        best = max(s for s, c in zip(row, clip) if c == i)
        right = sum(s == best and c == i for s, c in zip(row, clip))
        wrong = sum(s == best and c != i for s, c in zip(row, clip))
        before = [(n, math.comb(wrong + right - n - 1, right - 1)) for n in range(wrong + 1)]
        found.append(1 + sum(s > best for s in row) + sum(n * w for n, w in before) / sum(w for _, w in before))
    return np.array(found)


def naive_max_per_video(similarity, clip):
    clips = range(len(similarity))
    best = [[max(s for s, c in zip(row, clip) if c == j) for j in clips] for row in similarity]
    return naive_ranks(best, clips)


def tied_embeddings(rng, rows, kinds=5, dim=7):
    """Rows drawn with repetition from a few kinds, of different length, so that cosines tie but raw products do not."""
    return rng.normal(size=(kinds, dim))[rng.integers(kinds, size=rows)] * 2.0 ** rng.integers(-3, 4, size=(rows, 1))


def captioned(rng, videos, captions):
    return rng.permutation(np.r_[np.arange(videos), rng.integers(videos, size=captions - videos)])


# ranks


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ranks_agree_with_python_loops(data):
    q, g = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    value = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])
    similarity = data.draw(st.lists(st.lists(value, min_size=g, max_size=g), min_size=q, max_size=q))
    targets = data.draw(st.lists(st.integers(0, g - 1), min_size=q, max_size=q))
    found = ranks(torch.tensor(similarity), targets)
    assert found.dtype == np.float64
    assert found.tolist() == naive_ranks(similarity, targets).tolist()


def test_ranks_of_integers_arrays_and_tensors_with_gradient():
    rng = np.random.default_rng(0)
    similarity, targets = rng.integers(-2, 3, size=(41, 23)), rng.integers(23, size=41)
    wanted = naive_ranks(similarity, targets)
    assert (ranks(similarity, targets) == wanted).all()
    assert (ranks(torch.tensor(similarity).float().requires_grad_(), torch.tensor(targets)) == wanted).all()


def test_a_constant_matrix_scores_chance():
    found = ranks(torch.zeros(60, 60), range(60))
    assert (found == 30.5).all()  # the mean of 1 ... 60
    assert metrics(found)["R@1"] == 0
    same = torch.ones(60, 8)
    assert (search(same, same, range(60), chunk=7) == 30.5).all()
    assert (video_to_text(same, same, range(60), "max-per-video", chunk=7) == 30.5).all()
    # 20 clips of 3 captions: 57 wrong captions fall at random among 3 right ones, a quarter of them before the first
    assert video_to_text(same[:20], same, np.arange(60) % 20).tolist() == pytest.approx([1 + 57 / 4] * 20)


def test_recalls_and_reciprocal_ranks_agree_with_torchmetrics():
    torch.manual_seed(0)
    similarity, targets = torch.randn(101, 37), torch.randint(37, (101,))
    found = ranks(similarity, targets)
    index = torch.arange(101)[:, None].expand(-1, 37)
    right = torch.nn.functional.one_hot(targets, 37).bool()
    for k in (1, 5, 10):
        for metric in (RetrievalRecall(top_k=k), RetrievalHitRate(top_k=k)):
            theirs = metric(similarity.flatten(), right.flatten(), index.flatten()).item()
            assert metrics(found)[f"R@{k}"] == pytest.approx(100 * theirs, abs=1e-4)
    positive = similarity - similarity.min() + 1  # it takes a score of 0 or less as not found
    theirs = [retrieval_reciprocal_rank(s, r).item() for s, r in zip(positive, right)]
    assert 1 / found == pytest.approx(theirs)


def test_ranks_refuse_nan_and_misfits():
    similarity = torch.randn(5, 4)
    similarity[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"similarity of query 3 holds NaN \(1 of 5 queries do\); look for"):
        ranks(similarity, [0] * 5)
    with pytest.raises(ValueError, match=r"targets\[2\] is 4; wanted 0 to 3"):
        ranks(torch.zeros(5, 4), [0, 1, 4, 0, 0])
    with pytest.raises(ValueError, match=r"targets\[0\] is -1"):
        ranks(torch.zeros(5, 4), [-1, 1, 2, 0, 0])
    with pytest.raises(ValueError, match=r"targets is torch.int64 of shape \(4,\); wanted integers of shape \(5,\)"):
        ranks(torch.zeros(5, 4), [0] * 4)
    with pytest.raises(ValueError, match="targets is torch.float32"):
        ranks(torch.zeros(2, 4), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"similarity has shape \(5,\); wanted \(queries, items\)"):
        ranks(torch.zeros(5), [0] * 5)


# search


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_search_equals_ranks_of_the_whole_matrix_at_any_chunk_size(chunk, dtype):
    rng = np.random.default_rng(chunk)
    queries, gallery = (torch.tensor(tied_embeddings(rng, n, kinds=11)).to(dtype) for n in (53, 67))
    targets = rng.integers(67, size=53)
    found = search(queries, gallery, targets, chunk=chunk)
    assert (found == ranks(unit(queries) @ unit(gallery).T, targets)).all()
    assert (found % 1 == 0.5).any()  # there were ties


@pytest.mark.parametrize("distance", [1e-9, 1e-7, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("width", [8, 513])
def test_similarities_closer_than_float32_can_tell_are_ordered_exactly(distance, width, monkeypatch):
    """Against all similarities in float64; few of the gallery are close, so that most are compared in float32 only."""
    rng = np.random.default_rng(width)
    gallery, targets = rng.standard_normal((3000, width)), rng.integers(40, size=200)
    gallery[:40] = gallery[:1] + distance * rng.standard_normal((40, width))
    queries = gallery[targets] + 0.1 * rng.standard_normal((200, width))
    expected = ranks(unit(queries) @ unit(gallery).T, targets)
    for precision in ("highest", "high"):  # with "high" a GPU multiplies in TF32
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        assert (search(queries, gallery, targets) == expected).all()


def test_copies_of_an_item_tie_wherever_they_stand():
    """In float32 the columns of a matrix product are rounded differently near its edge, which would part the copies."""
    torch.manual_seed(0)
    gallery = torch.randn(1, 515).expand(203, -1) * torch.tensor([0.5, 1, 4])[torch.arange(203) % 3, None]
    queries, targets = torch.randn(101, 515), torch.randint(203, (101,))
    for chunk in (13, 64, 203):
        assert (search(queries, gallery, targets, chunk) == 102).all()  # the mean of 1 ... 203


def test_dot_products_of_units_do_not_depend_on_the_order_of_summation():
    torch.manual_seed(0)
    a, b = unit(torch.randn(31, 2049)), unit(torch.randn(29, 2049))
    shuffled = torch.randperm(2049)
    assert torch.equal(a @ b.T, a[:, shuffled] @ b[:, shuffled].T)
    assert torch.equal(a @ b.T, (a[:, None] * b).sum(dim=2))
    assert torch.equal((a @ b.T)[7:9, 5:], a[7:9] @ b[5:].T)


def test_similarities_are_cosines():
    torch.manual_seed(0)
    a, b = torch.randn(40, 1024), torch.randn(50, 1024) + 0.5
    exact = torch.nn.functional.normalize(a.double()) @ torch.nn.functional.normalize(b.double()).T
    assert (unit(a) @ unit(b).T - exact).abs().max() < 5e-8
    assert unit(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
    targets = torch.randint(50, (40,))
    assert (search(a, b, targets) == naive_ranks(exact.tolist(), targets.tolist())).all()


def test_search_refuses_what_is_not_finite_and_misfits():
    good, bad = torch.randn(4, 3), torch.randn(4, 3)
    bad[2, 0] = math.inf
    with pytest.raises(ValueError, match=r"row 2 of queries is not finite \(1 of 4 rows are not\); look at"):
        search(bad, good, range(4))
    with pytest.raises(ValueError, match="row 2 of gallery is not finite"):
        search(good, bad, range(4))
    with pytest.raises(ValueError, match="queries has 3 channels, gallery has 2"):
        search(good, good[:, :2], range(4))
    with pytest.raises(ValueError, match=r"targets\[3\] is 4; wanted 0 to 3"):
        search(good, good, [0, 1, 2, 4])
    with pytest.raises(ValueError, match=r"queries has shape \(3,\)"):
        search(good[0], good, [0])
    with pytest.raises(RuntimeError):
        search(good, good, range(4), chunk=-1)


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation inside the block returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return out


def test_the_whole_matrix_is_never_in_memory():
    torch.manual_seed(0)
    queries, gallery, targets = torch.randn(500, 4), torch.randn(400, 4), torch.randint(400, (500,))
    with Largest() as whole:
        ranks(unit(queries) @ unit(gallery).T, targets)
    assert whole.numel == 500 * 400
    with Largest() as chunked:
        search(queries, gallery, targets, chunk=32)
    assert chunked.numel == 500 * 4  # the embeddings themselves
    clip = torch.arange(500) % 400
    with Largest() as chunked:
        video_to_text(gallery, queries, clip, "best-caption", chunk=32)
    assert chunked.numel == 500 * 4
    with Largest() as chunked:
        video_to_text(gallery, queries, clip, "max-per-video", chunk=32)
    assert chunked.numel == 400 * 32


# video to text


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 14), st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6))
def test_both_protocols_agree_with_python_loops(videos, more, kinds, chunk, seed):
    rng = np.random.default_rng(seed)
    clip = captioned(rng, videos, videos + more)
    video, text = tied_embeddings(rng, videos, kinds), tied_embeddings(rng, videos + more, kinds)
    similarity = (unit(video) @ unit(text).T).tolist()
    found = video_to_text(video, text, clip, "best-caption", chunk)
    assert found == pytest.approx(naive_best_caption(similarity, clip), rel=1e-12)
    found = video_to_text(video, text, clip, "max-per-video", chunk)
    assert (found == naive_max_per_video(similarity, clip)).all()


def test_best_caption_with_ties_is_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    video, text, clip = np.eye(3)[[0]].repeat(2, 0), np.eye(3)[[0, 0, 0, 0, 0, 1]], np.array([0, 0, 1, 1, 1, 1])
    right = np.array([True, True, False, False, False])  # of the five captions that tie for video 0
    drawn = [1 + rng.permutation(right).argmax() for _ in range(20000)]
    assert video_to_text(video, text, clip)[0] == 2 == pytest.approx(np.mean(drawn), abs=0.03)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_one_caption_per_clip_both_protocols_are_plain_ranks(protocol):
    rng = np.random.default_rng(1)
    video, text, clip = tied_embeddings(rng, 33), tied_embeddings(rng, 33), rng.permutation(33)
    caption = np.argsort(clip)  # of each video
    assert (video_to_text(video, text, clip, protocol, chunk=10) == search(video, text, caption)).all()


def test_the_protocols_differ_where_a_wrong_clip_has_two_good_captions():
    video, clip = np.eye(2), np.array([0, 1, 1])
    text = np.array([[0.6, 0.8], [1.0, 0.0], [1.0, 0.1]])  # both captions of clip 1 fit video 0 better than its own
    assert video_to_text(video, text, clip, "best-caption").tolist() == [3, 2]
    assert video_to_text(video, text, clip, "max-per-video").tolist() == [2, 2]


def test_video_to_text_refuses_misfits():
    video, text = torch.randn(3, 2), torch.randn(4, 2)
    with pytest.raises(ValueError, match="protocol='mean'; wanted 'best-caption' or 'max-per-video'"):
        video_to_text(video, text, [0, 1, 2, 0], "mean")
    with pytest.raises(ValueError, match=r"video 1 has no caption \(1 of 3 have none\)"):
        video_to_text(video, text, [0, 2, 2, 0])
    with pytest.raises(ValueError, match=r"clip_of_caption\[1\] is 3; wanted 0 to 2"):
        video_to_text(video, text, [0, 3, 2, 1])
    with pytest.raises(ValueError, match="row 0 of text is not finite"):
        video_to_text(video, text * math.nan, [0, 1, 2, 0])


# from a matrix


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 14), st.integers(1, 6), st.integers(0, 10**6))
def test_ranks_of_a_matrix_of_cosines_are_those_of_the_embeddings(videos, more, kinds, seed):
    rng = np.random.default_rng(seed)
    clip = captioned(rng, videos, videos + more)
    video, text = tied_embeddings(rng, videos, kinds), tied_embeddings(rng, videos + more, kinds)
    found = matrix_ranks(unit(text) @ unit(video).T, clip)
    assert list(found) == ["t2v", *(f"v2t {protocol}" for protocol in PROTOCOLS)]
    assert (found["t2v"] == search(text, video, clip)).all()
    for protocol in PROTOCOLS:
        assert (found[f"v2t {protocol}"] == video_to_text(video, text, clip, protocol)).all()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_ranks_of_any_matrix_agree_with_python_loops(data):
    """Scores that no embeddings have, infinities among them."""
    videos = data.draw(st.integers(1, 5))
    clip = data.draw(st.permutations([*range(videos), *data.draw(st.lists(st.integers(0, videos - 1), max_size=6))]))
    value = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, math.inf])
    row = st.lists(value, min_size=videos, max_size=videos)
    similarity = data.draw(st.lists(row, min_size=len(clip), max_size=len(clip)))
    found, columns = matrix_ranks(torch.tensor(similarity), clip), np.array(similarity).T.tolist()
    assert (found["t2v"] == naive_ranks(similarity, clip)).all()
    assert found["v2t best-caption"] == pytest.approx(naive_best_caption(columns, clip), rel=1e-12)
    assert (found["v2t max-per-video"] == naive_max_per_video(columns, clip)).all()


def test_ranks_of_a_matrix_refuse_nan_and_misfits():
    similarity = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"video 1 has no caption \(1 of 3 have none\)"):
        matrix_ranks(similarity, [0, 2, 2, 0])
    with pytest.raises(ValueError, match=r"targets is torch.int64 of shape \(3,\); wanted integers of shape \(4,\)"):
        matrix_ranks(similarity, [0, 1, 2])
    similarity[2, 0] = math.nan
    with pytest.raises(ValueError, match=r"similarity of query 2 holds NaN \(1 of 4 queries do\)"):
        matrix_ranks(similarity, [0, 1, 2, 0])


# metrics


def test_metrics_of_known_ranks():
    found = metrics([1, 1.5, 5, 10, 11, 600])
    assert found == pytest.approx({"R@1": 100 / 6, "R@5": 50, "R@10": 400 / 6, "MdR": 7.5, "MnR": 628.5 / 6})
    assert list(found) == ["R@1", "R@5", "R@10", "MdR", "MnR"]
    assert list(metrics([1.0], recalls=(1, 50))) == ["R@1", "R@50", "MdR", "MnR"]
    assert metrics([[1, 1, 2], [9, 7, 2]]) == pytest.approx(
        {"R@1": 100 / 3, "R@5": 400 / 6, "R@10": 100, "MdR": 4, "MnR": 22 / 6}
    )


@pytest.mark.parametrize(
    "wrong, words",
    [
        ([], r"ranks have shape \(0,\); wanted \(queries,\) or \(seeds, queries\), not empty"),
        (np.ones((2, 2, 2)), r"ranks have shape \(2, 2, 2\)"),
        ([1, math.nan], "a rank is nan; ranks are finite and count from 1"),
        ([1, math.inf], "a rank is inf"),
        ([0, 1, 2], "a rank is 0.0"),
    ],
)
def test_ranks_that_cannot_be_are_refused(wrong, words):
    for use in (metrics, bootstrap, lambda r: paired_bootstrap(r, r)):
        with pytest.raises(ValueError, match=words):
            use(wrong)


def test_points_are_the_values_of_which_a_metric_is_the_mean():
    r = [[1, 1.5, 5, 6], [2, 1, 1, 10]]
    assert points(r, "R@1").tolist() == [[100, 0, 0, 0], [0, 100, 100, 0]]
    assert points(r[0], "MnR").tolist() == [r[0]]
    for metric in ("R@1", "R@5", "R@10", "MnR"):
        assert points(r, metric).mean() == pytest.approx(metrics(r)[metric])
    with pytest.raises(ValueError, match="MdR, a median, is no mean of values: use `bootstrap`"):
        points(r, "MdR")
    with pytest.raises(ValueError, match="a rank is 0.5"):
        points([0.5], "R@1")


# bootstrap


def some_ranks(seed=0, queries=300, top=30):
    return np.random.default_rng(seed).integers(1, top, size=queries).astype(float)


@pytest.mark.parametrize("metric", ["R@5", "R@10", "MdR", "MnR"])
def test_bootstrap_agrees_with_scipy(metric):
    r = some_ranks(queries=301, top=40)  # an odd number, so that resampled medians are ranks themselves
    theirs = stats.bootstrap(
        (r,),
        lambda x: metrics(x)[metric],
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert bootstrap(r, metric, resamples=20000) == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)


def naive_resamples(r, metric, groups, resamples, seed):
    """The same draws as the library's, each resample written out."""
    labels = np.unique(groups)
    drawn = np.random.default_rng(seed).integers(len(labels), size=(resamples, len(labels)))
    members = [np.flatnonzero(groups == label) for label in labels]
    return np.array([metrics(r[:, np.concatenate([members[g] for g in row])], (1, 3))[metric] for row in drawn])


@pytest.mark.parametrize("metric", ["R@1", "R@3", "MdR", "MnR"])
def test_grouped_resamples_over_seeds_agree_with_python_loops(metric, monkeypatch):
    rng = np.random.default_rng(3)
    groups = rng.choice(list("abcdefghijk"), size=57)
    a, b = rng.integers(1, 9, size=(3, 57)), rng.integers(1, 9, size=(3, 57)) + 0.5
    x, y = (naive_resamples(r, metric, groups, 90, seed=4) for r in (a, b))
    for block in (1 << 22, 1000):  # in one block and in many
        monkeypatch.setattr(statistics, "BLOCK", block)
        low, high = bootstrap(a, metric, groups, resamples=90, seed=4, level=0.8)
        assert (low, high) == pytest.approx(tuple(np.quantile(x, [0.1, 0.9])))
        found = paired_bootstrap(a, b, metric, groups, resamples=90, seed=4)
        assert found[1:3] == pytest.approx(np.quantile(x - y, [0.025, 0.975]))
        assert found.delta == pytest.approx(metrics(a, (1, 3))[metric] - metrics(b, (1, 3))[metric])
        rarer = min((x - y <= 1e-9).mean(), (x - y >= -1e-9).mean())
        assert found.p == pytest.approx(min(1, 2 * (1 + 90 * rarer) / 91))


def test_a_recalls_interval_is_the_binomial_one():
    r = np.where(np.arange(1000) < 300, 1, 7)
    half = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert bootstrap(r, resamples=20000) == pytest.approx((30 - half, 30 + half), abs=0.2)
    half = stats.norm.ppf(0.9) * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert bootstrap(r, resamples=20000, level=0.8) == pytest.approx((30 - half, 30 + half), abs=0.2)


@pytest.mark.parametrize("metric", ["R@5", "MdR", "MnR"])
def test_copies_of_a_query_add_no_certainty_when_grouped(metric):
    r, clip = some_ranks(top=3000 if metric == "MdR" else 30), np.arange(300)
    alone = bootstrap(r, metric)
    copied, label = r.repeat(7), clip.repeat(7)
    assert bootstrap(copied, metric, label) == pytest.approx(alone)
    low, high = bootstrap(copied, metric)
    assert high - low < 0.6 * (alone[1] - alone[0])  # the wrong answer, too narrow by about √7


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(400):
        clips = rng.random(120) < 0.4  # 40 % of all clips have both captions at rank 1
        r, clip = np.where(clips, 1, 2).repeat(2), np.arange(120).repeat(2)
        low, high = bootstrap(r, groups=clip, resamples=400, seed=seed)
        hits += low <= 40 <= high
    assert 0.91 < hits / 400 < 0.985


def test_seeds_are_averaged_not_pooled():
    """Seeds share their queries: two equal seeds know no more than one."""
    r = some_ranks()
    for metric in ("R@1", "MdR", "MnR"):
        assert bootstrap(np.stack([r, r]), metric) == pytest.approx(bootstrap(r, metric))
    assert metrics(np.stack([r, r])) == metrics(r)


def test_bootstrap_follows_its_seed():
    r = some_ranks()
    assert bootstrap(r, "MnR", seed=1) == bootstrap(r, "MnR", seed=1) != bootstrap(r, "MnR", seed=2)


def test_bootstrap_refuses_misfits():
    with pytest.raises(ValueError, match=r"groups have shape \(3,\); wanted one label per query, \(4,\)"):
        bootstrap([1, 2, 3, 4], groups=[0, 0, 1])
    for wrong in ("r@1", "R@0", "R@", "mean"):
        with pytest.raises(ValueError, match=f"metric='{wrong}'; wanted 'MdR', 'MnR' or 'R@K'"):
            bootstrap([1, 2], wrong)
    with pytest.raises(ValueError, match=r"ranks of \(1, 3\) and \(1, 2\) \(seeds, queries\) cannot be paired"):
        paired_bootstrap([1, 2, 3], [1, 2])


def test_bootstrap_is_fast_enough_for_a_table():
    r = np.random.default_rng(0).integers(1, 1000, size=(5, 4000))
    for metric in ("R@1", "MnR", "MdR"):
        begun = time.process_time()
        bootstrap(r, metric)
        assert time.process_time() - begun < 2  # well below 1 s on one core


# paired bootstrap


@pytest.mark.parametrize("metric", ["R@1", "R@10", "MdR", "MnR"])
def test_a_setting_does_not_differ_from_itself(metric):
    r = np.stack([some_ranks(s) for s in range(3)])
    assert paired_bootstrap(r, r, metric) == (0, 0, 0, 1)


def test_a_constant_shift_is_certain_and_never_has_p_zero():
    found = paired_bootstrap(some_ranks() + 2, some_ranks(), "MnR", resamples=999)
    assert found == pytest.approx((2, 2, 2, 2 / 1000))
    assert paired_bootstrap(some_ranks(), some_ranks() + 2, "MnR", resamples=999) == pytest.approx((-2, -2, -2, 0.002))


def test_pairing_sees_what_separate_intervals_hide():
    """McNemar's case: b finds 40 % of 1,000 clips, a finds the same and 20 more."""
    query = np.arange(1000)
    a, b = np.where(query < 420, 1, 2), np.where(query < 400, 1, 2)
    found = paired_bootstrap(a, b, resamples=4000)
    assert found.delta == pytest.approx(2)
    half = 1.96 * 100 * math.sqrt(0.02 * 0.98 / 1000)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=0.15)
    assert found.p < 0.001
    assert bootstrap(a)[0] < bootstrap(b)[1]
    shuffled = np.random.default_rng(0).permutation(a)
    assert paired_bootstrap(shuffled, b).p > 0.05


@pytest.mark.parametrize("metric", ["R@1", "MnR"])
def test_resamples_in_which_nothing_differs_count_for_both_sides(metric):
    """Over seven seeds the mean of a query is no binary fraction; rounding must not decide who is ahead."""
    a = np.random.default_rng(7).integers(1, 3, size=(7, 41))
    b = a[:, ::-1]
    drawn = np.random.default_rng(0).integers(41, size=(2000, 41))
    points = a.sum(axis=0) if metric == "MnR" else (a == 1).sum(axis=0)
    deltas = (points - points[::-1])[drawn].sum(axis=1)
    assert (deltas == 0).sum() > 20
    rarer = min((deltas <= 0).sum(), (deltas >= 0).sum())
    assert paired_bootstrap(a, b, metric).p == pytest.approx(min(1, 2 * (1 + rarer) / 2001), rel=1e-12)


def test_p_is_rarely_small_where_nothing_differs():
    rng = np.random.default_rng(6)
    p = np.array([paired_bootstrap(*rng.integers(1, 3, size=(2, 200)), resamples=300, seed=s).p for s in range(300)])
    assert 0.01 < (p < 0.05).mean() < 0.09
    assert 0.35 < (p < 0.5).mean() < 0.62
