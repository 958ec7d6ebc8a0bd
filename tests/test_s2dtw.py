"""S2DTW against its recursion cell by cell, against a sum over all paths, and against another library's soft-DTW."""

import itertools
import math
import sys

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ssb.bench import alignment as benchmark
from ssb.bench.timing import BenchmarkError
from ssb.s2dtw import alignment, cosine_cost, distances, loss, s2dtw

FORMS = {
    "s2dtw": {},
    "no dummies": {"dummy": None},
    "no smoothing": {"smooth": False},
    "soft-DTW": {"dummy": None, "smooth": False},
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
PLAIN = FORMS["soft-DTW"]
sides = st.integers(1, 6)


def costs(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) - 1


def softmin(values, gamma):
    values = [value for value in values if value < math.inf]
    least = min(values)
    return least - gamma * math.log(sum(math.exp((least - value) / gamma) for value in values))


def naive_grid(cost, gamma=0.1, dummy=0.5, smooth=True):
    """Local smoothing and weak alignment of section 3, cell by cell."""
    n, m = len(cost), len(cost[0])

    def at(i, j):
        return cost[i][j] if i >= 0 and j >= 0 else math.inf

    d = [list(row) for row in cost]
    for i, j in itertools.product(range(n), range(m)) if smooth else ():
        near = [at(i, j - 1), at(i - 1, j), at(i - 1, j - 1)]
        d[i][j] += softmin(near, gamma) if (i, j) != (0, 0) else -gamma * math.log(3)
    if dummy is None:
        return d
    return [[d[i // 2][j // 2] if i % 2 and j % 2 else dummy for j in range(2 * m + 1)] for i in range(2 * n + 1)]


def naive(cost, gamma=0.1, **form):
    grid = naive_grid(cost, gamma, **form)
    r = {(-1, -1): 0.0}
    for i, j in itertools.product(range(len(grid)), range(len(grid[0]))):
        r[i, j] = grid[i][j] + softmin(
            [r.get((i - 1, j), math.inf), r.get((i, j - 1), math.inf), r.get((i - 1, j - 1), math.inf)], gamma
        )
    return r[len(grid) - 1, len(grid[0]) - 1]


def paths(n, m, i=0, j=0):
    if (i, j) == (n - 1, m - 1):
        yield [(i, j)]
    for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
        if a < n and b < m:
            yield from ([(i, j), *rest] for rest in paths(n, m, a, b))


@given(n=sides, m=sides, pairs=st.integers(1, 3), seed=st.integers(0, 99), form=st.sampled_from([*FORMS.values()]))
@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
@settings(max_examples=25, deadline=None)
def test_is_the_recursion(gamma, n, m, pairs, seed, form):
    cost = costs(pairs, n, m, seed=seed)
    wanted = [naive(one, gamma, **form) for one in cost.tolist()]
    assert s2dtw(cost, gamma, **form).tolist() == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("n, m", [(1, 1), (2, 2), (3, 1), (1, 2), (2, 3)])
@EVERY_FORM
def test_is_the_softmin_over_all_paths(n, m, gamma, form):
    cost = costs(n, m, seed=n + 10 * m)
    grid = naive_grid(cost.tolist(), gamma, **form)
    every = list(paths(len(grid), len(grid[0])))
    total = [sum(grid[i][j] for i, j in path) for path in every]
    value = softmin(total, gamma)
    assert s2dtw(cost, gamma, **form).item() == pytest.approx(value, abs=1e-10)
    passes = torch.zeros(len(grid), len(grid[0]), dtype=torch.float64)
    for path, one in zip(every, total):
        for i, j in path:
            passes[i, j] += math.exp((value - one) / gamma)
    assert torch.allclose(alignment(cost, gamma, grid=True, **form), passes, atol=1e-10)
    odd = passes if form.get("dummy", 0.5) is None else passes[1::2, 1::2]
    assert torch.allclose(alignment(cost, gamma, **form), odd, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 1, 5), (2, 2, 3, 4)])
@EVERY_FORM
def test_gradient(shape, gamma, form):
    cost = costs(*shape).requires_grad_()
    assert gradcheck(lambda x: s2dtw(x, gamma, **form), cost)


@EVERY_FORM
def test_gradient_of_a_weighted_sum(form):
    """Each pair's own upstream gradient, and an alignment as a constant weight."""
    cost, weights = costs(3, 2, 4).requires_grad_(), costs(3, seed=1)
    passes = alignment(cost, **form)
    assert not passes.requires_grad
    assert gradcheck(lambda x: (weights * s2dtw(x, **form)).sum() + (passes * x).sum(), cost)


def test_gradient_without_smoothing_is_the_alignment():
    cost = costs(3, 4, 5).requires_grad_()
    for dummy in (0.5, None):
        (gradient,) = torch.autograd.grad(s2dtw(cost, dummy=dummy, smooth=False).sum(), cost)
        assert torch.equal(gradient, alignment(cost, dummy=dummy, smooth=False))


def test_no_second_derivative():
    cost = costs(3, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(s2dtw(cost), cost, create_graph=True)


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("n, m", [(1, 1), (5, 5), (4, 9), (17, 3)])
def test_without_dummies_and_smoothing_it_is_tslearns_soft_dtw(n, m, gamma):
    variants = pytest.importorskip("tslearn.metrics.softdtw_variants")
    cost = costs(n, m)
    other = variants.SoftDTW(cost.numpy(), gamma=gamma)
    assert s2dtw(cost, gamma, **PLAIN).item() == pytest.approx(float(other.compute()), rel=1e-9)
    assert torch.allclose(alignment(cost, gamma, **PLAIN), torch.as_tensor(other.grad()), atol=1e-7)


@EVERY_FORM
def test_a_pair_does_not_see_its_neighbours(form):
    cost = costs(2, 3, 4, 5).requires_grad_()
    value = s2dtw(cost, **form)
    assert value.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert value[i, j].item() == pytest.approx(s2dtw(cost[i, j], **form).item(), abs=1e-12)
        assert torch.allclose(alignment(cost, **form)[i, j], alignment(cost[i, j], **form), atol=1e-12)
    (gradient,) = torch.autograd.grad(value[1, 2], cost)
    assert gradient[1, 2].abs().sum() > 0
    gradient[1, 2] = 0
    assert not gradient.any()
    assert s2dtw(cost[:0], **form).shape == (0, 3)


@EVERY_FORM
def test_memory_layout_does_not_matter(form):
    cost = costs(5, 4, 3)
    assert torch.equal(s2dtw(cost.permute(2, 0, 1), **form), s2dtw(cost.permute(2, 0, 1).contiguous(), **form))


@EVERY_FORM
def test_clips_and_captions_may_change_places(form):
    cost = costs(3, 4, 6)
    assert torch.allclose(s2dtw(cost.mT, **form), s2dtw(cost, **form))
    assert torch.allclose(alignment(cost.mT, **form), alignment(cost, **form).mT)


def test_time_may_run_backwards_unless_smoothed():
    cost = costs(3, 4, 6)
    back = cost.flip(-1, -2)
    assert torch.allclose(s2dtw(back, smooth=False), s2dtw(cost, smooth=False))
    assert not torch.allclose(s2dtw(back), s2dtw(cost), atol=1e-2)


@given(n=sides, m=sides, gamma=st.sampled_from([0.01, 0.1, 1.0]), seed=st.integers(0, 99), dummy=st.booleans())
@settings(max_examples=40, deadline=None)
def test_alignment_is_an_expected_path(n, m, gamma, seed, dummy):
    e = alignment(costs(n, m, seed=seed), gamma, dummy=0.5 if dummy else None, grid=True)
    n, m = e.shape
    assert n % 2 == m % 2 == 1 if dummy else True
    assert (e > -1e-12).all() and (e < 1 + 1e-12).all()
    assert e[0, 0].item() == pytest.approx(1) and e[-1, -1].item() == pytest.approx(1)
    assert (e.sum(0) > 1 - 1e-12).all() and (e.sum(1) > 1 - 1e-12).all()  # no row or column is left out
    assert max(n, m) - 1e-9 < e.sum() < n + m - 1 + 1e-9
    diagonals = [e.flip(1).diagonal(m - 1 - d).sum().item() for d in range(n + m - 1)]
    assert all(one < 1 + 1e-9 for one in diagonals)  # a path is on a diagonal once, or steps over it
    assert all(a + b > 1 - 1e-9 for a, b in itertools.pairwise(diagonals))


def test_small_gamma_gives_the_one_best_path():
    cost = torch.tensor([[0.0, 9, 9], [0, 9, 9], [9, 1, 9], [9, 9, 2]], dtype=torch.float64)
    path = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(alignment(cost, 1e-3, **PLAIN), path)
    assert s2dtw(cost, 1e-3, **PLAIN).item() == pytest.approx(3)


def test_dummies_take_what_matches_nothing():
    """Clip 1 matches no caption: with dummies the path passes it by."""
    cost = torch.tensor([[-1.0, 1], [1, 1], [1, -1]], dtype=torch.float64)
    assert torch.allclose(alignment(cost, 0.01, smooth=False).sum(1), torch.tensor([1.0, 0, 1], dtype=torch.float64))
    assert alignment(cost, 0.01, **PLAIN)[1].sum() >= 1
    # (0,0) dummy, (1,1) -1, (2,2) dummy, (3,2) dummy, (4,2) dummy, (5,3) -1, (6,4) dummy: 5 × 0.5 - 2
    assert s2dtw(cost, 1e-3, smooth=False).item() == pytest.approx(0.5, abs=1e-2)


def test_smoothing_by_hand():
    """One row: each cell has its left neighbour alone; so D = 0.2 - γ log 3, 0.3 + 0.2, -0.4 + 0.3."""
    cost = torch.tensor([[0.2, 0.3, -0.4]], dtype=torch.float64).requires_grad_()
    value = s2dtw(cost, 0.1, dummy=None)
    assert value.item() == pytest.approx(0.2 - 0.1 * math.log(3) + 0.5 - 0.1, abs=1e-12)
    value.backward()
    assert cost.grad.tolist() == [pytest.approx([2, 2, 1])]


@EVERY_FORM
@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 20, 60)])
def test_float32_at_a_small_gamma(shape, form):
    """Costs of paths are some ten thousand γ, of which float32 keeps three decimals."""
    exact = costs(*shape).float().double().requires_grad_()
    single = exact.detach().float().requires_grad_()
    values = s2dtw(exact, 0.01, **form), s2dtw(single, 0.01, **form)
    assert values[1].dtype == torch.float32
    assert torch.allclose(values[0], values[1].double(), atol=1e-4)
    for value in values:
        value.sum().backward()
    assert (exact.grad - single.grad).abs().max() < 2e-3
    assert torch.allclose(exact.grad.sum((1, 2)), single.grad.double().sum((1, 2)), rtol=1e-4)


@EVERY_FORM
def test_large_costs_do_not_overflow(form):
    cost = (1000 * costs(2, 30, 31)).float().requires_grad_()
    value = s2dtw(cost, 0.01, **form)
    value.sum().backward()
    assert value.isfinite().all() and cost.grad.isfinite().all()
    assert (alignment(cost, 0.01, grid=True, **form)[:, -1, -1] == 1).all()


def test_half_precision_is_computed_in_single():
    cost = costs(2, 3, 4).bfloat16().requires_grad_()
    value = s2dtw(cost)
    value.sum().backward()
    assert value.dtype == torch.float32 and cost.grad.dtype == torch.bfloat16
    assert torch.equal(value, s2dtw(cost.float()))


def sequences(b=4, n=3, m=2, d=5):
    generator = torch.Generator().manual_seed(0)
    video, text = (torch.randn(b, k, d, dtype=torch.float64, generator=generator) for k in (n, m))
    return video, 3 * text


@pytest.mark.parametrize("shifted", [True, False])
def test_costs_of_all_pairs(shifted):
    video, text = sequences()
    cost = cosine_cost(video, text[:, None], shifted)
    assert cost.shape == (4, 4, 3, 2)
    for t, v, i, j in itertools.product(range(4), range(4), range(3), range(2)):
        a, b = video[v, i], text[t, j]
        wanted = (0 if shifted else 1) - (a @ b / (a.norm() * b.norm())).item()
        assert cost[t, v, i, j].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_distances_do_not_depend_on_the_block(block):
    video, text = sequences(6, 3, 2)
    scores = distances(video[:5], text, block=block, gamma=0.2)
    assert scores.shape == (6, 5)
    for t, v in itertools.product(range(6), range(5)):
        wanted = naive(cosine_cost(video[v], text[t]).tolist(), 0.2)
        assert scores[t, v].item() == pytest.approx(wanted, abs=1e-10)


@EVERY_FORM
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_loss_is_the_formula(form, shifted, temperature):
    video, text = sequences()

    def distance(v, t):
        cost = cosine_cost(video[v], text[t], shifted).tolist()
        return naive(cost, 0.2, **form) / temperature

    def one_way(rows):
        total = 0.0
        for own, row in rows:
            total += math.log(sum(math.exp(-value) for value in row)) + own
        return total / 4

    texts = one_way([(distance(i, i), [distance(j, i) for j in range(4)]) for i in range(4)])
    videos = one_way([(distance(i, i), [distance(i, j) for j in range(4)]) for i in range(4)])
    options = dict(gamma=0.2, shifted=shifted, temperature=temperature, **form)
    assert loss(video, text, **options).item() == pytest.approx(texts, abs=1e-10)
    assert loss(video, text, symmetric=True, **options).item() == pytest.approx((texts + videos) / 2, abs=1e-10)
    plain = sum(distance(i, i) * temperature for i in range(4)) / 4
    assert loss(video, text, contrastive=False, **options).item() == pytest.approx(plain, abs=1e-10)


def test_gradient_of_the_loss():
    video, text = (x.requires_grad_() for x in sequences(3, 3, 2, 4))
    for options in ({}, {"symmetric": True, "temperature": 0.5}, {"contrastive": False}):
        assert gradcheck(lambda v, t: loss(v, t, **options), (video, text))


def test_without_negatives_one_point_is_best():
    video, text = sequences()
    point = torch.ones(4, 3, 5, dtype=torch.float64)
    assert loss(point, point[:, :2], contrastive=False) < loss(video, text, contrastive=False)
    assert loss(point, point[:, :2]).item() == pytest.approx(math.log(4))  # chance


def test_training_brings_pairs_together():
    video, text = (x.requires_grad_() for x in sequences(6, 4, 3, 8))
    optimizer = torch.optim.Adam([video, text], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(video, text, symmetric=True)
        value.backward()
        optimizer.step()
    assert value < 0.1
    assert distances(video, text).argmin(dim=1).tolist() == list(range(6))
    assert F.normalize(video, dim=-1).isfinite().all()


@pytest.mark.parametrize(
    "cost, gamma, message",
    [
        (torch.zeros(3), 0.1, r"\(…, clips, captions\), got \(3,\)"),
        (torch.zeros(2, 0, 3), 0.1, r"got \(2, 0, 3\)"),
        (torch.tensor([[0.0, math.nan]]), 0.1, "not finite"),
        (torch.zeros(2, 2), 0.0, "gamma=0.0"),
        (torch.zeros(2, 2), math.inf, "gamma=inf"),
    ],
)
def test_bad_input_is_named(cost, gamma, message):
    for function in (s2dtw, alignment):
        with pytest.raises(ValueError, match=message):
            function(cost, gamma)


def test_bad_pairs_are_named():
    video, text = sequences()
    with pytest.raises(ValueError, match="4 videos and 3 texts"):
        loss(video, text[:3])
    with pytest.raises(ValueError, match="temperature=0"):
        loss(video, text, temperature=0)


@pytest.mark.gpu
@EVERY_FORM
def test_on_a_gpu(form):
    cost = costs(8, 9, 7).requires_grad_()
    there = cost.detach().cuda().requires_grad_()
    values = s2dtw(cost, **form), s2dtw(there, **form)
    for value in values:
        value.sum().backward()
    assert torch.allclose(values[0], values[1].cpu()) and torch.allclose(cost.grad, there.grad.cpu())


@pytest.mark.slow  # the other library compiles itself
def test_benchmark_compares_like_with_like(monkeypatch, capsys, tmp_path):
    pytest.importorskip("tslearn")
    frame = benchmark.bench(tmp_path / "results" / "s2dtw_bench.csv", sizes=[(3, 5)], count=200)
    kept = pd.read_csv(tmp_path / "results" / "s2dtw_bench.csv")
    machine = ["corpus", "commit", "dirty", "torch", "cpu", "cores", "threads"]
    assert list(kept) == ["what", "median", "min", "max", "ratio", "unit", *machine]
    assert kept["ratio"].tolist() == frame["ratio"].tolist() and (kept["threads"] == 1).all()
    assert frame["what"].tolist() == [
        *(f"soft-DTW 5x5: {way}" for way in ("by cell", "tslearn", "ours")),
        *(f"memory, 200 x 200: {way}" for way in ("cells at once", "in blocks")),
    ]
    assert frame["unit"].tolist() == ["pairs/s"] * 3 + ["MB"] * 2 and "ours" in capsys.readouterr().out
    speed, memory = frame["median"][:3], frame["median"][3:]
    assert memory[3] == pytest.approx(200 * 200 * 17 * 17 * 4 / 2**20, rel=1e-3) and 10 < memory[4] < 400
    quotients = [*speed / speed[0], *memory[3] / memory]
    assert frame["ratio"].tolist() == pytest.approx(quotients, rel=2e-3) and frame["ratio"][0] == 1
    monkeypatch.setattr(benchmark, "s2dtw", lambda x, *_, **__: x.sum((1, 2)))
    with pytest.raises(ValueError, match="differ"):
        benchmark.aligning(3, 5)


def test_benchmark_without_tslearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tslearn.metrics", None)
    with pytest.raises(BenchmarkError, match="pip install tslearn"):
        benchmark.aligning(3, 5)
