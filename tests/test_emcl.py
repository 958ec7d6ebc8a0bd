"""EMCL against its formulas in plain loops, in float64; what a result depends on; the public code's behaviour."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb import emcl, losses
from ssb.emcl import EMCL, effective_rank, similarity

WAYS = pytest.mark.parametrize("released", [False, True], ids=["ours", "released"])


def embeddings(rows, channels, seed=0, length=None):
    x = torch.randn(rows, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x if length is None else length * F.normalize(x, dim=1)


def made(seed=0, dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EMCL(**options).to(dtype)


def naive(x, start, stages, temperature, beta, released):
    """Section 3.2 of the paper, or the public code, number by number → β Ê + E and the bases."""
    x = x.tolist()
    rows, channels, k = range(len(x)), range(len(x[0])), range(len(start))
    mu = [list(start) for _ in rows]
    for _ in range(stages):
        z = []
        for n in channels:
            e = [math.exp(sum(x[i][n] * mu[i][j] for i in rows) / temperature) for j in k]
            z.append([value / sum(e) for value in e])
        sums = [1e-6 + sum(z[n][j] for n in channels) for j in k]
        if released:
            z = [[z[n][j] / sums[j] for j in k] for n in channels]
        mu = [[sum(x[i][n] * z[n][j] for n in channels) for j in k] for i in rows]
        if not released:
            mu = [[mu[i][j] / sums[j] for j in k] for i in rows]
        norms = [math.sqrt(sum(mu[i][j] ** 2 for i in rows)) + (1e-6 if released else 0) for j in k]
        mu = [[mu[i][j] / norms[j] for j in k] for i in rows]
    out = [[beta * sum(mu[i][j] * z[n][j] for j in k) + x[i][n] for n in channels] for i in rows]
    return torch.tensor(out, dtype=torch.float64), mu


def apart(start):
    """Moved to mean 0 and stretched to the deviation √(2 / K); of one number nothing."""
    k, mean = len(start), sum(start) / len(start)
    if k == 1:
        return start
    deviation = math.sqrt(sum((s - mean) ** 2 for s in start) / (k - 1))
    return [(s - mean) / deviation * math.sqrt(2 / k) for s in start]


@WAYS
@pytest.mark.parametrize("rows, channels, bases", [(4, 6, 3), (5, 3, 7), (1, 2, 1)])
def test_is_the_formula_over_three_training_calls(released, rows, channels, bases):
    module = made(bases=bases, stages=3, temperature=0.7, beta=2.5, momentum=0.8, released=released)
    start = module.start[0].tolist()
    for seed in range(3):
        x = embeddings(rows, channels, seed)
        wanted, mu = naive(x, start, 3, 0.7, 2.5, released)
        assert torch.allclose(module(x), wanted, atol=1e-10)
        start = [0.8 * s + 0.2 * sum(row[j] for row in mu) / rows for j, s in enumerate(start)]
        start = start if released else apart(start)
        assert module.start[0].tolist() == pytest.approx(start, abs=1e-12)


@WAYS
def test_start_moves_to_the_mean_of_the_bases(released):
    """One channel: every basis is that channel, (3, 4) / 5, of mean 0.7."""
    module = made(bases=2, momentum=0.9, released=released)
    module.start.copy_(torch.tensor([[0.5, -0.25]]))
    x = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    module.eval()(x)
    assert module.start.tolist() == [[0.5, -0.25]]
    module.train()(x)
    moved = [0.9 * 0.5 + 0.07, 0.9 * -0.25 + 0.07]
    assert module.start.tolist()[0] == pytest.approx(moved if released else apart(moved), abs=1e-6)


@WAYS
def test_gradient_is_that_of_the_embeddings_alone(released):
    x, module = embeddings(3, 4), made(bases=2, released=released)
    jacobian = torch.autograd.functional.jacobian(module, x).reshape(12, 12)
    assert torch.equal(jacobian, torch.eye(12, dtype=torch.float64))
    assert not torch.allclose(module(x), x, atol=1e-2)
    assert not list(module.parameters())


@given(rows=st.integers(1, 9), channels=st.integers(1, 9), seed=st.integers(0, 99), released=st.booleans())
@settings(max_examples=30, deadline=None)
def test_permuted_rows_and_channels_permute_the_result(rows, channels, seed, released):
    x, module = embeddings(rows, channels, seed), made(bases=4, temperature=0.5, released=released).eval()
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randperm(rows, generator=generator), torch.randperm(channels, generator=generator)
    assert torch.allclose(module(x[i][:, j]), module(x)[i][:, j], atol=1e-8)


@WAYS
def test_result_of_a_row_depends_on_the_others(released):
    x, module = embeddings(6, 8), made(bases=4, temperature=0.5, released=released).eval()
    assert not torch.allclose(module(x)[:3], module(x[:3]), atol=1e-2)


def test_bases_have_unit_length_and_responsibilities_sum_to_one():
    x = embeddings(6, 8)
    bases, z = made(bases=4).fit(x)
    assert torch.allclose(bases.norm(dim=0), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(z.sum(dim=1), torch.ones(8, dtype=torch.float64))
    _, z = made(bases=4, released=True).fit(x)
    assert torch.allclose(z.sum(dim=0), torch.ones(4, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_released_start_has_two_values_and_ours_one_per_basis(seed):
    ours, released = made(seed, bases=32), made(seed, bases=32, released=True)
    assert (released.start.abs() - 1).abs().max() < 5e-3
    assert 1 < len(released.start.round(decimals=2).unique()) == 2
    assert len(ours.start.unique()) == 32


@pytest.mark.parametrize("seed", range(3))
def test_thirty_two_released_bases_are_about_two(seed):
    """Embeddings of length 16, where λ = 1 tells channels apart; 32 bases would do for 64 rows."""
    x = embeddings(256, 256, seed, length=16)

    def rank(module):
        bases, z = module.fit(x)
        return effective_rank(bases @ z.T)

    assert 1.5 < rank(made(seed, released=True)) < 2.5
    assert rank(made(seed)) > 20


def test_unit_rows_at_temperature_one_leave_one_basis_whatever_the_start():
    x = embeddings(64, 512, length=1)
    for released in (False, True):
        bases, _ = made(released=released).fit(x)
        assert effective_rank(bases) == pytest.approx(1, abs=1e-2)
    bases, _ = made(temperature=0.02).fit(x)
    assert effective_rank(bases) > 20


def test_released_reconstruction_is_the_smaller_one():
    x = embeddings(64, 512, length=1)
    sizes = {}
    for released in (False, True):
        bases, z = made(released=released).fit(x)
        sizes[released] = (bases @ z.T).norm()
    assert sizes[False] / sizes[True] == pytest.approx(512 / 32, rel=1e-2)  # n / K, while the bases are one


@WAYS
def test_state_is_saved_and_read(released):
    x, module = embeddings(5, 6), made(0, bases=3, released=released)
    module(x)
    other = made(1, bases=3, released=released)
    assert not torch.allclose(other.eval()(x), module.eval()(x), atol=1e-3)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


@WAYS
def test_the_start_is_the_only_state_and_moves_with_the_module(released):
    module = made(bases=3, released=released, dtype=torch.float32)
    assert [*module.state_dict()] == ["start"] and module.to(torch.float64).start.dtype == torch.float64


def test_no_weight_of_the_bases_leaves_the_embeddings():
    x = embeddings(4, 5)
    assert torch.equal(made(beta=0.0)(x), x)


def test_autocast_does_not_coarsen_it():
    x, module = embeddings(8, 16).float(), made(bases=4, dtype=torch.float32).eval()
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(x)
    assert torch.equal(inside, module(x)) and inside.dtype == torch.float32
    assert module(x.bfloat16()).dtype == torch.bfloat16


@WAYS
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("block", [1, 3, 4, 50, None])
def test_similarity_is_that_of_each_block_alone(released, unit, score, block):
    text, video, module = embeddings(7, 6, 1), embeddings(5, 6, 2), made(bases=3, temperature=0.3, released=released)
    scores = similarity(text, video, module, block, unit, score)
    size = block or 99
    for q in range(7):
        for c in range(5):
            t, v = text[q // size * size :][:size], video[c // size * size :][:size]
            rows = [x / x.norm() if unit else x for x in (*t, *v)]
            out, _ = naive(torch.stack(rows), module.start[0].tolist(), 9, 0.3, 3.0, released)
            a, b = out[q % size], out[len(t) + c % size]
            wanted = a @ b / (a.norm() * b.norm() if score == "cosine" else 1)
            assert scores[q, c].item() == pytest.approx(wanted.item(), abs=1e-8)


def test_similarity_depends_on_block_and_order_unless_all_go_at_once():
    text, video = embeddings(8, 16, 1), embeddings(8, 16, 2)
    module = made(bases=4, temperature=0.1)
    order = torch.tensor([5, 1, 7, 3, 0, 2, 6, 4])

    def reordered(block):
        return similarity(text[order], video, module, block)

    whole, blocks = similarity(text, video, module, None), similarity(text, video, module, 4)
    assert not torch.allclose(whole, blocks, atol=1e-2)
    assert not torch.allclose(blocks[order], reordered(4), atol=1e-2)
    assert torch.allclose(whole[order], reordered(None), atol=1e-8)
    swapped = torch.tensor([3, 1, 0, 2, 6, 4, 5, 7])  # within the blocks
    assert torch.allclose(blocks[swapped], similarity(text[swapped], video, module, 4), atol=1e-8)
    assert torch.allclose(blocks.T, similarity(video, text, module, 4), atol=1e-8)


def test_blocks_computed_together_are_separate_calls(monkeypatch):
    text, video, module = embeddings(23, 16, 1), embeddings(5, 16, 2), made(bases=4, temperature=0.1)
    many = similarity(text, video, module, 4)  # five whole blocks and a rest
    monkeypatch.setattr(emcl, "TILE", 1)
    assert torch.allclose(similarity(text, video, module, 4), many, atol=1e-12)
    alone = [similarity(text[i : i + 4], video[j : j + 4], module) for i in range(0, 23, 4) for j in (0, 4)]
    assert torch.allclose(many[4:8, :4], alone[2], atol=1e-12) and torch.allclose(many[20:, 4:], alone[-1], atol=1e-12)
    assert similarity(text[:0], video, module).shape == (0, 5)


@WAYS
@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_similarity_is_the_module_applied_to_each_pair_of_blocks(released, score):
    """At the paper's constants, in float32 no less exact than `reconstruct` itself."""
    module = made(bases=7, stages=10, temperature=0.1, beta=4.0, released=released)
    text, video = embeddings(70, 64, 1, length=1), embeddings(50, 64, 2, length=1)
    wanted, rough = torch.empty(70, 50, dtype=torch.float64), torch.empty(70, 50)
    for i in range(0, 70, 32):
        for j in range(0, 50, 32):
            for out, dtype in ((wanted, torch.float64), (rough, torch.float32)):
                t, v = (F.normalize(x.to(dtype), dim=1) for x in (text[i : i + 32], video[j : j + 32]))
                rows = torch.cat([v, t])
                rows = module.beta * module.to(dtype).reconstruct(rows)[0] + rows
                rows = F.normalize(rows, dim=1) if score == "cosine" else rows
                out[i : i + 32, j : j + 32] = rows[len(v) :] @ rows[: len(v)].T
    exact = similarity(text, video, module.double(), 32, score=score)
    assert torch.allclose(exact, wanted, atol=1e-11)
    error = (similarity(text.float(), video.float(), module.float(), 32, score=score) - wanted).abs().max()
    assert error < 1e-6 + 2 * (rough - wanted).abs().max()


@pytest.mark.gpu
def test_similarity_on_a_gpu_is_that_on_the_cpu():
    text, video, module = embeddings(900, 64, 1), embeddings(300, 64, 2), made(bases=7, temperature=0.1)
    scores = similarity(text.cuda(), video.cuda(), module, 32)
    assert scores.is_cuda and torch.allclose(scores.cpu(), similarity(text, video, module, 32), atol=1e-9)


def test_similarity_leaves_the_module_as_it_was():
    module = made(bases=4)
    before = module.start.clone()
    similarity(embeddings(3, 5), embeddings(2, 5), module)
    assert module.training and torch.equal(module.start, before)
    similarity(embeddings(3, 5), embeddings(2, 5), module.eval())
    assert not module.training


def test_as_a_layer_it_trains_and_its_start_follows():
    """Both embeddings stacked pass through before the loss; the gradient reaches both."""
    text, video = (embeddings(6, 8, seed).requires_grad_() for seed in (1, 2))
    module = made(bases=4, temperature=0.5)
    before = module.start.clone()
    losses.info_nce(*module(torch.cat([text, video])).chunk(2)).backward()
    assert text.grad.abs().sum() > 0 and video.grad.abs().sum() > 0
    assert not torch.equal(module.start, before) and not module.start.requires_grad


@given(rank=st.integers(1, 6), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_effective_rank_of_equal_singular_values_is_the_rank(rank, scale, seed):
    left, right = (torch.linalg.qr(embeddings(9, rank, s)).Q for s in (seed, seed + 1))
    assert effective_rank(scale * left @ right.T) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_unequal_singular_values():
    x = torch.diag(torch.tensor([0.5, 0.25, 0.25]))
    assert effective_rank(x) == pytest.approx(math.exp(1.5 * math.log(2)))  # an entropy of 1.5 bits
    assert effective_rank(x[:, :1]) == pytest.approx(1)


@pytest.mark.parametrize("x", [torch.zeros(3, 2), torch.zeros(0, 2), torch.tensor([[1.0, math.nan]])])
def test_effective_rank_of_nothing_is_an_error(x):
    with pytest.raises(ValueError, match="zero, empty or not finite"):
        effective_rank(x)


@pytest.mark.parametrize("options", [{"bases": 0}, {"stages": 0}, {"temperature": 0.0}, {"momentum": 1.5}])
def test_bad_settings_are_named(options):
    with pytest.raises(ValueError, match=f"{[*options][0]}={[*options.values()][0]}"):
        EMCL(**options)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(rows, channels\), got \(2, 3, 4\)"):
        EMCL()(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="score='l2'"):
        similarity(torch.ones(2, 3), torch.ones(2, 3), EMCL(), score="l2")
    with pytest.raises(ValueError, match="block=0"):
        similarity(torch.ones(2, 3), torch.ones(2, 3), EMCL(), block=0)


def test_starts_stay_apart_in_training():
    """The means of the bases are nearly one number, and averaging with it again and again would make the starts one."""
    torch.manual_seed(0)
    module = EMCL(32).train()
    for _ in range(300):
        module(torch.randn(64, 48))
    assert module.start.std().item() == pytest.approx((2 / 32) ** 0.5, rel=1e-3)
    assert len(module.start.unique()) == 32
    drawn = EMCL(1).train()
    drawn(torch.randn(8, 4))
    assert drawn.start.isfinite().all()
