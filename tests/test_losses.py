"""Every loss against a plain-loop reading of its formula, in float64 and at odd sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ssb import losses
from ssb.config import OBJECTIVES, Config, ConfigError

SIZES = (2, 3, 7)
SUPPORTS = OBJECTIVES[1:]


def pairs(size, dim=5, seed=0):
    """text and video of different lengths, so that forgetting to normalise shows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, size, dim, dtype=torch.float64, generator=generator)
    return (x * torch.tensor([0.3, 4.0])[:, None, None]).unbind()


def tracked(*tensors):
    return [x.clone().requires_grad_() for x in tensors]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def s(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def naive_triplet(text, video, margin, negatives):
    """Eq. 1 word for word, and its two gentler forms."""
    size, total = len(text), 0.0
    for i in range(size):
        others = [j for j in range(size) if j != i]
        own = s(text[i], video[i])
        for scores in ([s(text[i], video[j]) for j in others], [s(text[j], video[i]) for j in others]):
            hinges = [max(0.0, margin - own + score) for score in scores]
            violating = [hinge for hinge in hinges if hinge > 0]
            if negatives == "mean":
                total += sum(hinges) / len(hinges)
                continue
            h = 1.0 if negatives == "hardest" else negatives
            total += h * max(hinges) + (1 - h) * (sum(violating) / len(violating) if violating else 0.0)
    return total / size


def naive_info_nce(text, video, temperature):
    size, total = len(text), 0.0
    for i in range(size):
        own = math.exp(s(text[i], video[i]) / temperature)
        total -= math.log(own / sum(math.exp(s(text[i], video[j]) / temperature) for j in range(size))) / 2
        total -= math.log(own / sum(math.exp(s(text[j], video[i]) / temperature) for j in range(size))) / 2
    return total / size


def naive_weights(text, video, objective, temperature):
    """w of eq. 3, over the support sets of section 3.2."""
    size = len(text)
    if objective == "hybrid":
        return (naive_weights(text, video, "identity", 1) + naive_weights(text, video, "full", temperature)) / 2
    w = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        members = {"identity": {i}, "full": set(range(size)), "cross": set(range(size)) - {i}}[objective]
        scores = {j: math.exp(s(text[i], video[j]) / temperature) for j in members}
        for j in members:
            w[i, j] = scores[j] / sum(scores.values())
    return w


def naive_mean(weights, sequences, lengths):
    """Step by step, over the members that have the step."""
    rows, steps = len(weights), sequences.shape[1]
    out, mask = torch.zeros(rows, steps, sequences.shape[2], dtype=torch.float64), torch.zeros(rows, steps).bool()
    for i in range(rows):
        for m in range(steps):
            members = [j for j in range(len(sequences)) if lengths[j] > m and weights[i, j] > 0]
            share = sum(weights[i, j].item() for j in members)
            for j in members:
                out[i, m] += weights[i, j].item() / share * sequences[j, m]
            mask[i, m] = bool(members)
    return out, mask


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margin", [0.2, 0.7])
@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.0, 0.3, 1.0])
def test_triplet_is_eq_1(size, margin, negatives):
    text, video = pairs(size, seed=size)
    wanted = naive_triplet(text, video, margin, negatives)
    assert losses.triplet(text, video, margin, negatives).item() == pytest.approx(wanted, abs=1e-12)
    assert losses.triplet(video, text, margin, negatives).item() == pytest.approx(wanted, abs=1e-12)


def test_triplet_of_separated_pairs_is_zero():
    text = torch.eye(4, dtype=torch.float64)
    for negatives in ("hardest", "mean", 0.0, 0.5):
        assert losses.triplet(text, text, 0.2, negatives) == 0


@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.0, 0.5, 1.0])
@pytest.mark.parametrize("margin", [0.2, 0.5])
def test_triplet_of_collapsed_embeddings_is_twice_the_margin(negatives, margin):
    point = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(7, 3)
    assert losses.triplet(point, 5 * point, margin, negatives).item() == pytest.approx(2 * margin, abs=1e-12)


@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.4])
@pytest.mark.parametrize("size", SIZES)
def test_gradient_of_triplet(size, negatives):
    text, video = tracked(*pairs(size))
    assert gradcheck(lambda a, b: losses.triplet(a, b, 0.2, negatives), (text, video))
    losses.triplet(text, video, 0.2, negatives).backward()
    assert text.grad.abs().sum() > 0 and video.grad.abs().sum() > 0


@pytest.mark.parametrize("wrong", ["easiest", -0.1, 1.1])
def test_triplet_refuses_other_negatives(wrong):
    with pytest.raises(ValueError, match=f"negatives={wrong!r}"):
        losses.triplet(*pairs(3), negatives=wrong)


def test_one_pair_has_no_negative():
    with pytest.raises(ValueError, match="at least 2 pairs"):
        losses.triplet(*pairs(1))
    with pytest.raises(ValueError, match="at least 2 pairs"):
        losses.support_set_weights(*pairs(1), "cross")
    assert losses.info_nce(*pairs(1)) == 0
    for objective in ("identity", "full", "hybrid"):
        assert losses.support_set_weights(*pairs(1), objective).tolist() == [[1]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_is_its_formula(size, temperature):
    text, video = pairs(size, seed=size)
    wanted = naive_info_nce(text, video, temperature)
    assert losses.info_nce(text, video, temperature).item() == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_info_nce_in_closed_form(size):
    point = torch.ones(size, 4, dtype=torch.float64)
    assert losses.info_nce(point, point).item() == pytest.approx(math.log(size), abs=1e-12)
    one_hot = torch.eye(size, dtype=torch.float64)  # own pair 1, all others 0
    wanted = math.log(1 + (size - 1) * math.exp(-1 / 0.5))
    assert losses.info_nce(one_hot, one_hot, 0.5).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_gradient_of_info_nce(size):
    assert gradcheck(losses.info_nce, tracked(*pairs(size)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objective", SUPPORTS)
def test_weights_are_eq_3(size, objective):
    text, video = pairs(size, seed=size)
    for temperature in (0.1, 1.0):
        w = losses.support_set_weights(text, video, objective, temperature)
        torch.testing.assert_close(w, naive_weights(text, video, objective, temperature))


@settings(deadline=None, max_examples=60)
@given(
    objective=st.sampled_from(SUPPORTS),
    size=st.integers(2, 9),
    temperature=st.floats(1e-3, 1e3),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_are_shares(objective, size, temperature, seed, dtype):
    w = losses.support_set_weights(*(x.to(dtype) for x in pairs(size, 3, seed)), objective, temperature)
    assert w.shape == (size, size) and w.dtype == dtype and (w >= 0).all()
    torch.testing.assert_close(w.sum(dim=1), torch.ones(size, dtype=dtype))
    assert objective != "cross" or (w.diagonal() == 0).all()


def test_identity_is_constant():
    w = losses.support_set_weights(*tracked(*pairs(3)), "identity")
    assert torch.equal(w, torch.eye(3, dtype=torch.float64)) and not w.requires_grad


def test_hybrid_is_the_mean_of_identity_and_full():
    text, video = pairs(7)
    full = losses.support_set_weights(text, video, "full")
    wanted = (torch.eye(7, dtype=torch.float64) + full) / 2
    torch.testing.assert_close(losses.support_set_weights(text, video, "hybrid"), wanted)


def test_temperature_goes_from_the_nearest_clip_to_all_alike():
    text, video = pairs(7)
    similarity = torch.tensor([[s(a, b) for b in video] for a in text], dtype=torch.float64)
    nearest = F.one_hot(similarity.argmax(1), 7).double()
    torch.testing.assert_close(losses.support_set_weights(text, video, "full", 1e-4), nearest)
    nearest_other = F.one_hot(similarity.fill_diagonal_(-2).argmax(1), 7).double()
    torch.testing.assert_close(losses.support_set_weights(text, video, "cross", 1e-4), nearest_other)
    alike = torch.full((7, 7), 1 / 7, dtype=torch.float64)
    torch.testing.assert_close(losses.support_set_weights(text, video, "full", 1e9), alike)
    others = (1 - torch.eye(7, dtype=torch.float64)) / 6
    torch.testing.assert_close(losses.support_set_weights(text, video, "cross", 1e9), others)


@pytest.mark.parametrize("objective", ["full", "hybrid", "cross"])
def test_gradient_of_weights_reaches_both_sides(objective):
    text, video = tracked(*pairs(4))
    assert gradcheck(lambda a, b: losses.support_set_weights(a, b, objective), (text, video))
    (losses.support_set_weights(text, video, objective) ** 2).sum().backward()
    assert (text.grad.abs().sum(1) > 0).all() and (video.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("wrong", ["none", "crossed"])
def test_weights_refuse_other_objectives(wrong):
    with pytest.raises(ValueError, match="identity, full, hybrid, cross"):
        losses.support_set_weights(*pairs(3), wrong)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objective", SUPPORTS)
def test_weighted_mean_is_eq_3_where_lengths_differ(size, objective):
    weights = losses.support_set_weights(*pairs(size), objective)
    sequences = torch.randn(size, 6, 4, dtype=torch.float64)
    lengths = [1 + (3 * j) % 5 for j in range(size)]  # nobody has the sixth step
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    out, some = losses.weighted_mean(weights, sequences, mask)
    wanted, wanted_mask = naive_mean(weights, sequences, lengths)
    torch.testing.assert_close(out, wanted)
    assert torch.equal(some, wanted_mask) and not some[:, 5].any() and some[:, 0].all()


def test_weighted_mean_of_a_support_set_smaller_or_larger_than_the_batch():
    for members in (1, 5):
        weights = torch.rand(3, members, dtype=torch.float64).softmax(1)
        sequences, mask = torch.randn(members, 4, 2, dtype=torch.float64), torch.ones(members, 4).bool()
        out, some = losses.weighted_mean(weights, sequences, mask)
        torch.testing.assert_close(out, naive_mean(weights, sequences, [4] * members)[0])
        assert some.shape == (3, 4) and some.all()


def test_weights_are_renormalised_over_those_who_have_the_step():
    weights = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    sequences = torch.ones(3, 2, 1, dtype=torch.float64) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    out, some = losses.weighted_mean(weights, sequences, torch.tensor([[True, True], [True, True], [True, False]]))
    assert out.flatten().tolist() == pytest.approx([53.2, (0.2 * 1 + 0.3 * 10) / 0.5]) and some.all()


def test_a_step_that_only_weightless_members_have_is_masked():
    weights = losses.support_set_weights(*pairs(2), "cross")  # each sees the other alone
    mask = torch.tensor([[True, True, True], [True, False, False]])
    out, some = losses.weighted_mean(weights, torch.randn(2, 3, 4, dtype=torch.float64), mask)
    assert some.tolist() == [[True, False, False], [True, True, True]]
    assert (out[0, 1:] == 0).all()


@pytest.mark.parametrize("filler", [7.0, math.inf, math.nan])
def test_padding_of_sequences_does_not_matter(filler):
    (weights,) = tracked(losses.support_set_weights(*pairs(3), "full"))
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    (sequences,) = tracked(torch.randn(3, 3, 2, dtype=torch.float64))
    wanted, _ = losses.weighted_mean(weights, sequences.masked_fill(~mask[..., None], 0), mask)
    out, _ = losses.weighted_mean(weights, sequences.masked_fill(~mask[..., None], filler), mask)
    assert torch.equal(out, wanted)
    out.square().sum().backward()
    assert weights.grad.isfinite().all() and sequences.grad.isfinite().all()


def test_gradient_of_weighted_mean():
    mask = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, False]])
    inputs = tracked(torch.rand(2, 3, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64))
    assert gradcheck(lambda w, x: losses.weighted_mean(w, x, mask)[0], inputs)


@pytest.mark.parametrize("progress, hardness", [(0, 0.0), (0.2, 0.0), (0.35, 0.25), (0.5, 0.5), (0.8, 1.0), (1, 1.0)])
def test_schedule_goes_from_violating_mean_to_hardest(progress, hardness):
    config = Config(contrast="triplet", negatives="scheduled", schedule=(0.2, 0.8), margin=0.3)
    loss = losses.contrastive(config, progress)(*pairs(7))
    assert loss.item() == pytest.approx(naive_triplet(*pairs(7), 0.3, hardness))


def test_schedule_may_be_a_step():
    config = Config(contrast="triplet", negatives="scheduled", schedule=(0.5, 0.5))
    ends = [losses.contrastive(config, progress)(*pairs(7)).item() for progress in (0.49, 0.51)]
    assert ends == pytest.approx([naive_triplet(*pairs(7), 0.2, h) for h in (0.0, 1.0)])


@pytest.mark.parametrize("negatives", ["hardest", "mean"])
def test_contrast_takes_the_settings_of_triplet(negatives):
    config = Config(contrast="triplet", negatives=negatives, margin=0.4)
    for progress in (0.0, 1.0):  # which is the schedule's alone
        loss = losses.contrastive(config, progress)(*pairs(7))
        assert loss.item() == pytest.approx(naive_triplet(*pairs(7), 0.4, negatives))


def test_contrast_takes_the_temperature_of_info_nce():
    loss = losses.contrastive(Config(contrast="info_nce", info_nce_temperature=0.3))(*pairs(7))
    assert loss.item() == pytest.approx(naive_info_nce(*pairs(7), 0.3))


def test_a_loss_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "ownlosses.py").write_text("def squared(text, video):\n    return ((text - video) ** 2).mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    text, video = pairs(3)
    loss = losses.contrastive(Config(contrast="ownlosses:squared"))(text, video)
    assert loss == ((text - video) ** 2).mean()


@pytest.mark.parametrize("wrong", ["tripelt", "no.such.module:f", "ssb.losses:nothing", "ssb.losses", "", ":f"])
def test_an_unknown_contrast_is_named(wrong):
    with pytest.raises(ConfigError, match="wanted 'triplet', 'info_nce' or 'package.module:function'") as error:
        losses.contrastive(Config(contrast=wrong))
    assert f"contrast = {wrong!r}" in str(error.value)


@pytest.mark.parametrize("wrong", ["math:pi", ".relative:f"])
def test_a_contrast_that_cannot_be_called_is_named(wrong):
    with pytest.raises(ConfigError, match="package.module:function"):
        losses.contrastive(Config(contrast=wrong))


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.01])
def test_gradient_stays_finite_where_weights_underflow(temperature):
    """A step that only members of vanishing weight have must not divide 0 by 0 on the way back."""
    for seed in range(60):
        text, video = tracked(*(x.float() for x in pairs(6, 3, seed)))
        mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 1])[:, None]
        weights = losses.support_set_weights(text, video, "cross", temperature)
        out, some = losses.weighted_mean(weights, torch.ones(6, 5, 2), mask)
        out[some].square().sum().backward()
        assert text.grad.isfinite().all() and video.grad.isfinite().all()
