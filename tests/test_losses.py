"""Every loss against a plain-loop reading of its formula, in float64 and at odd sizes."""

import math
import sys
from types import SimpleNamespace

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


def triples(size, seed=0):
    """Pairs, and another caption of each clip."""
    text, video = pairs(size, seed=seed)
    return text, video, 2 * text + 3 * pairs(size, seed=seed + 100)[0]


def tracked(*tensors):
    return [x.clone().requires_grad_() for x in tensors]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def s(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def naive_triplet(text, video, margin, negatives, intra=None):
    """Eq. 1 word for word, and its two gentler forms; with intra also each caption against the other captions, another
    one of its clip as the positive, and each clip against the other clips, itself as the positive."""
    size, total = len(text), 0.0
    for i in range(size):
        others = [j for j in range(size) if j != i]
        own = s(text[i], video[i])
        parts = [(own, [s(text[i], video[j]) for j in others]), (own, [s(text[j], video[i]) for j in others])]
        if intra is not None:
            parts.append((s(text[i], intra[i]), [s(text[i], text[j]) for j in others]))
            parts.append((1.0, [s(video[i], video[j]) for j in others]))
        for positive, scores in parts:
            hinges = [max(0.0, margin - positive + score) for score in scores]
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


def naive_weights(text, video, objective, temperature, candidates=None):
    """w of eq. 3, over the support sets of section 3.2, or those of their clips that are candidates."""
    size, clips = len(text), range(len(video))
    if objective == "hybrid":
        one, all_of_them = (naive_weights(text, video, o, temperature, candidates) for o in ("identity", "full"))
        return (one + all_of_them) / 2
    w = torch.zeros(size, len(video), dtype=torch.float64)
    for i in range(size):
        members = {"identity": {i}, "full": set(clips), "cross": set(clips) - {i}}[objective]
        members = {j for j in members if candidates is None or candidates[i, j]}
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margin", [0.5, 1.5])
@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.0, 0.3, 1.0])
def test_intra_is_the_hinge_within_each_modality_too(size, margin, negatives):
    text, video, other = triples(size, seed=size)
    wanted = naive_triplet(text, video, margin, negatives, other)
    assert losses.triplet(text, video, margin, negatives, intra=other).item() == pytest.approx(wanted, abs=1e-12)
    assert wanted > naive_triplet(text, video, margin, negatives)  # there is something to add


def test_intra_by_hand():
    """Pairs far apart: nothing but the second captions can be wrong. At right angles to their first they cost α each;
    two clips at cosine 0.9 cost α - 0.1 each."""
    axes = torch.eye(6, dtype=torch.float64)
    assert losses.triplet(axes[:3], axes[:3], 0.2, intra=axes[:3]) == 0
    assert losses.triplet(axes[:3], axes[:3], 0.2, intra=axes[3:]).item() == pytest.approx(0.2, abs=1e-12)
    assert losses.triplet(axes[:3], axes[:3], 0.2, intra=-axes[:3]).item() == pytest.approx(1.2, abs=1e-12)
    near = torch.tensor([[1, 0], [0.9, 0.19**0.5]], dtype=torch.float64)
    text = torch.tensor([[1, -1], [-1, 1]], dtype=torch.float64)  # s to the own clip at least 0.3 above the other's
    alone = losses.triplet(text, near, 0.2).item()
    assert losses.triplet(text, near, 0.2, intra=text).item() == pytest.approx(alone + 0.1, abs=1e-12)


@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.0, 0.5, 1.0])
@pytest.mark.parametrize("margin", [0.2, 0.5])
def test_intra_of_collapsed_embeddings_is_four_times_the_margin(negatives, margin):
    point = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(7, 3)
    loss = losses.triplet(point, 5 * point, margin, negatives, intra=0.1 * point)
    assert loss.item() == pytest.approx(4 * margin, abs=1e-12)


@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.4])
def test_intra_does_not_see_the_length_of_an_embedding(negatives):
    triple = triples(5)
    scaled = [x * torch.rand(5, 1, dtype=torch.float64).add(0.1).mul(30) for x in triple]
    values = [losses.triplet(text, video, 0.9, negatives, intra=other) for text, video, other in (triple, scaled)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("negatives", ["hardest", "mean", 0.4])
@pytest.mark.parametrize("size", [2, 4])
def test_gradient_of_intra(size, negatives):
    inputs = tracked(*triples(size))
    assert gradcheck(lambda a, b, c: losses.triplet(a, b, 0.9, negatives, intra=c), inputs)
    plain = tracked(*triples(size))
    losses.triplet(*inputs[:2], 0.9, negatives, intra=inputs[2]).backward()
    losses.triplet(*plain[:2], 0.9, negatives).backward()
    assert inputs[2].grad.abs().sum() > 0
    assert all(not torch.allclose(a.grad, b.grad) for a, b in zip(inputs[:2], plain[:2]))


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


@st.composite
def support_sets(draw):
    """An objective, B, S ≥ B and candidates (B, S): the own clip always, and another one."""
    objective, size = draw(st.sampled_from(SUPPORTS)), draw(st.integers(1, 6))
    clips = size + draw(st.integers(int(size == 1), 6))
    rows = st.lists(st.booleans(), min_size=clips, max_size=clips)
    candidates = torch.tensor(draw(st.lists(rows, min_size=size, max_size=size)))
    for i in range(size):
        candidates[i, i] = candidates[i, draw(st.sampled_from([j for j in range(clips) if j != i]))] = True
    return objective, candidates


def of_support_set(candidates, seed, dim=3):
    size, clips = candidates.shape
    return pairs(size, dim, seed)[0], pairs(clips, dim, seed + 1)[1]


@settings(deadline=None, max_examples=60)
@given(drawn=support_sets(), temperature=st.floats(0.02, 100), seed=st.integers(0, 10**6))
def test_weights_of_candidates_are_eq_3_over_them_alone(drawn, temperature, seed):
    """Support sets smaller and larger than the batch."""
    objective, candidates = drawn
    text, video = of_support_set(candidates, seed)
    w = losses.support_set_weights(text, video, objective, temperature, candidates)
    assert w.shape == candidates.shape and (w >= 0).all()
    torch.testing.assert_close(w, naive_weights(text, video, objective, temperature, candidates))
    torch.testing.assert_close(w.sum(dim=1), torch.ones(len(w), dtype=torch.float64))
    assert (w[~candidates] == 0).all() and (objective != "cross" or (w.diagonal() == 0).all())
    every = torch.ones_like(candidates)
    bare = losses.support_set_weights(text, video, objective, temperature)
    assert torch.equal(bare, losses.support_set_weights(text, video, objective, temperature, every))
    torch.testing.assert_close(bare, naive_weights(text, video, objective, temperature))


@settings(deadline=None, max_examples=40)
@given(drawn=support_sets(), temperature=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_weights_of_candidates_are_shares_at_any_temperature(drawn, temperature, seed):
    objective, candidates = drawn
    inputs = (x.float() for x in of_support_set(candidates, seed))
    w = losses.support_set_weights(*inputs, objective, temperature, candidates)
    assert w.dtype == torch.float32 and (w >= 0).all() and (w[~candidates] == 0).all()
    torch.testing.assert_close(w.sum(dim=1), torch.ones(len(w)))


@pytest.mark.parametrize("objective", ["full", "cross"])
def test_an_empty_support_set_is_refused(objective):
    candidates = torch.ones(3, 5).bool()
    candidates[1] = torch.arange(5) == 1 if objective == "cross" else False
    with pytest.raises(ValueError, match=f"objective '{objective}' leaves a support set empty"):
        losses.support_set_weights(pairs(3)[0], pairs(5)[1], objective, candidates=candidates)
    if objective == "cross":  # the own clip alone is enough for the others
        for other in ("identity", "full", "hybrid"):
            w = losses.support_set_weights(pairs(3)[0], pairs(5)[1], other, candidates=candidates)
            assert w[1].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("objective", ["full", "hybrid", "cross"])
def test_gradient_of_weights_goes_to_the_candidates(objective):
    candidates = torch.ones(3, 6).bool()
    candidates[:, 4] = candidates[0, 5] = candidates[1, 2] = False
    text, video = tracked(pairs(3)[0], pairs(6)[1])
    assert gradcheck(lambda a, b: losses.support_set_weights(a, b, objective, 0.5, candidates), (text, video))
    (losses.support_set_weights(text, video, objective, 0.5, candidates) ** 2).sum().backward()
    assert (text.grad.abs().sum(1) > 0).all()
    assert (video.grad.abs().sum(1) > 0).tolist() == [True, True, True, True, False, True]


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
    lengths = [1 + (3 * j) % 5 for j in range(size)]  # no sequence has the sixth step
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
    loss = losses.contrast(config)(*pairs(7), None, progress)
    assert loss.item() == pytest.approx(naive_triplet(*pairs(7), 0.3, hardness))


def test_schedule_may_be_a_step():
    config = Config(contrast="triplet", negatives="scheduled", schedule=(0.5, 0.5))
    ends = [losses.contrast(config)(*pairs(7), None, progress).item() for progress in (0.49, 0.51)]
    assert ends == pytest.approx([naive_triplet(*pairs(7), 0.2, h) for h in (0.0, 1.0)])


@pytest.mark.parametrize("negatives", ["hardest", "mean"])
def test_contrast_takes_the_settings_of_triplet(negatives):
    config = Config(contrast="triplet", negatives=negatives, margin=0.4)
    for progress in (0.0, 1.0):  # which is the schedule's alone
        loss = losses.contrast(config)(*pairs(7), None, progress)
        assert loss.item() == pytest.approx(naive_triplet(*pairs(7), 0.4, negatives))


@pytest.mark.parametrize("progress, hardness", [(0.1, 0.0), (0.35, 0.25), (0.9, 1.0)])
def test_contrast_takes_the_second_captions(progress, hardness):
    config = Config(contrast="triplet", negatives="scheduled", schedule=(0.2, 0.8), margin=0.9, intra=True)
    text, video, other = triples(7)
    loss = losses.contrast(config)(text, video, None, progress, other)
    assert loss.item() == pytest.approx(naive_triplet(text, video, 0.9, hardness, other))


def test_contrast_takes_the_temperature_of_info_nce():
    loss = losses.contrast(Config(contrast="info_nce", info_nce_temperature=0.3))(*pairs(7), None)
    assert loss.item() == pytest.approx(naive_info_nce(*pairs(7), 0.3))


def test_a_loss_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "ownlosses.py").write_text("def squared(text, video):\n    return ((text - video) ** 2).mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    text, video = pairs(3)
    loss = losses.contrast(Config(contrast="ownlosses:squared"))(text, video, None)
    assert loss == ((text - video) ** 2).mean()


@pytest.mark.parametrize("wrong", ["tripelt", "no.such.module:f", "ssb.losses:nothing", "ssb.losses", "", ":f"])
def test_an_unknown_contrast_is_named(wrong):
    with pytest.raises(
        ConfigError, match="wanted 'triplet', 'info_nce', 's2dtw' or 'package.module:function'"
    ) as error:
        losses.contrast(Config(contrast=wrong))
    assert f"contrast = {wrong!r}" in str(error.value)


OWN = {  # module → what is said of it
    "syntax": (
        "def loss(text, video)\n    return 0\n",
        r"syntax cannot be imported, SyntaxError: .*syntax.py, line 1\)",
    ),
    "exits": ("import sys\n\nsys.exit('bye')\n", r"exits cannot be imported, SystemExit: bye \(.*exits.py, line 3\)"),
    "silent": ("raise SystemExit\n", r"silent cannot be imported, SystemExit \(.*silent.py, line 1\)"),
    "fails": ("x = {}\nx['a']\n", r"fails cannot be imported, KeyError: 'a' \(.*fails.py, line 2\)"),
    "deep": ("import json\njson.loads('{')\n", r"deep cannot be imported, JSONDecodeError: .*deep.py, line 2\)"),
    "lacks": ("import no_such_thing\n", r"lacks cannot be imported, ModuleNotFoundError: .*lacks.py, line 1\)"),
    "helped": ("import fails\n", r"helped cannot be imported, KeyError: 'a' \(.*fails.py, line 2\)"),
    "cut": ("x = 'abc\n", r"cut cannot be imported, SyntaxError: .*cut.py, line 1\)"),
    "nul": ("x = 1\0\n", r"nul cannot be imported, (SyntaxError|ValueError): "),
    "class_": ("class loss:\n    pass\n", "is a type, not a function written in Python"),
    "number": ("loss = 3\n", "is a int, not a function written in Python"),
    "builtin": ("from os import system as loss\n", "is a builtin_function_or_method, not a function written in Python"),
    "module_": ("import torch\nloss = torch.nn.MSELoss()\n", "is a MSELoss, not a function written in Python"),
    "one": ("def loss(text):\n    return text.mean()\n", r"wanted a function of \(text, video\), two tensors"),
    "three": ("def loss(a, b, c):\n    return a.mean()\n", r"wanted a function of \(text, video\), two tensors"),
    "raises": ("def loss(a, b):\n    a = a + 1\n    return {}[0]\n", r"fails on .* Error: .*raises.py, line 3\)"),
    "quits": (
        "def loss(a, b):\n    exit(1)\n",
        r"fails on embeddings \(64, 1024\): SystemExit: 1 .*quits.py, line 2\)",
    ),
    "asserts": ("def loss(a, b):\n    assert a is b\n", r"fails on .*: AssertionError \(.*asserts.py, line 2\)"),
    "shape": ("def loss(a, b):\n    return a @ b.T\n", r"gives shape \(64, 64\) of float32; wanted one number"),
    "count": ("def loss(a, b):\n    return (a > b).sum()\n", r"gives shape \(\) of int64; wanted one number"),
    "float_": ("def loss(a, b):\n    return 1.0\n", "gives a float; wanted one number, as a tensor"),
    "nothing": ("def loss(a, b):\n    pass\n", "gives a NoneType; wanted one number, as a tensor"),
}


@pytest.mark.parametrize("module", OWN)
def test_a_loss_that_is_none_is_one_error(module, tmp_path, monkeypatch):
    for name, (source, _) in OWN.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    words = OWN[module][1].replace(" Error:", " [A-Za-z]*Error:")
    for _ in range(2):  # a module that fails once fails again
        with pytest.raises(ConfigError, match=words) as caught:
            losses.contrast(Config(contrast=f"{module}:loss"))
        assert str(caught.value).startswith(f"contrast = '{module}:loss'") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["os:system", "builtins:exit", "os:abort", "builtins:dict", "torch.nn:MSELoss"])
def test_what_is_no_python_function_is_not_called(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} is a .*, not a function written in Python"):
        losses.contrast(Config(contrast=name))


def test_a_loss_is_tried_once_and_moves_no_random_number(tmp_path, monkeypatch):
    source = (
        "import torch\n\ncalls = []\n\n\ndef loss(text, video, scale=2):\n    calls.append((text.shape, torch.rand(3)))"
    )
    (tmp_path / "counted.py").write_text(f"{source}\n    return (scale * text * video).mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(contrast="counted:loss", batch=7, dim=12)
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    first = losses.contrast(config)
    for _ in range(3):
        losses.contrast(config)
    assert torch.equal(torch.rand(4), wanted)
    (call,) = sys.modules["counted"].calls
    assert call[0] == (7, 12)
    text, video = pairs(3)
    assert torch.equal(first(text, video, None), (2 * text * video).mean())


@pytest.mark.parametrize("contrast", ["info_nce", "ownlosses:squared"])
def test_intra_is_of_the_triplet_loss_alone(contrast):
    with pytest.raises(ConfigError, match=f"intra = True is a part of the triplet loss; contrast is {contrast!r}"):
        losses.contrast(Config(intra=True, contrast=contrast))


def test_s2dtw_needs_sequences_and_an_objective_without_own_clips():
    with pytest.raises(ConfigError, match="set sequences = True"):
        losses.contrast(Config(contrast="s2dtw"))
    with pytest.raises(ConfigError, match="take 'none', 'cross'"):
        losses.contrast(Config(sequences=True, contrast="s2dtw", objective="identity"))
    assert not losses.contrast(Config(sequences=True, contrast="s2dtw", objective="cross")).paired


@pytest.mark.parametrize("wrong", ["math:pi", ".relative:f", "a b:f", "a..b:f", "ssb.losses:Triplet", "ssb.losses:"])
def test_a_contrast_that_cannot_be_called_is_named(wrong):
    with pytest.raises(ConfigError, match="package.module:function"):
        losses.contrast(Config(contrast=wrong))


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


# targets that know which captions say the same

SOFT = dict(freeze_text=True, text_encoder="any")


def captions(size, dim=4, dtype=torch.float64):
    """Frozen states of captions of different lengths, as a batch has them, and rubbish in the padding."""
    generator = torch.Generator().manual_seed(size)
    states = torch.randn(size, 5, dim, dtype=torch.float64, generator=generator) + 0.5
    mask = torch.arange(5) < torch.tensor([1 + (3 * i) % 5 for i in range(size)])[:, None]
    return SimpleNamespace(text=states.masked_fill(~mask[..., None], 9.0).to(dtype), text_mask=mask)


def naive_similarity(batch):
    means = [states[mask].mean(0) for states, mask in zip(batch.text, batch.text_mask)]
    return [[s(a, b) for b in means] for a in means]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("negatives", ["hardest", "mean"])
def test_soft_margins_are_smaller_the_more_captions_are_alike(size, share, negatives):
    text, video = pairs(size, seed=size)
    batch, wanted = captions(size), 0.0
    sim, own = naive_similarity(batch), [s(text[i], video[i]) for i in range(size)]
    assert size < 7 or min(map(min, sim)) < 0  # which counts as 0
    for i in range(size):
        margins = {j: 0.7 * (1 - share * max(0.0, sim[i][j])) for j in range(size) if j != i}
        for way in (lambda j: s(text[i], video[j]), lambda j: s(text[j], video[i])):
            hinges = [max(0.0, margin - own[i] + way(j)) for j, margin in margins.items()]
            wanted += (max(hinges) if negatives == "hardest" else sum(hinges) / len(hinges)) / size
    contrast = losses.contrast(Config(soft_targets=share, margin=0.7, negatives=negatives, **SOFT))
    assert contrast(text, video, batch).item() == pytest.approx(wanted, abs=1e-12)
    assert contrast.floor is None and wanted < losses.triplet(text, video, 0.7, negatives)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_soft_classes_are_a_mixture(size, share):
    """Towards both directions: the own clip, and the clips of similar captions."""
    text, video = pairs(size, seed=size)
    batch, wanted, tau = captions(size), 0.0, 0.4
    sim = naive_similarity(batch)
    for i in range(size):
        near = [math.exp(x / tau) for x in sim[i]]
        target = [share * x / sum(near) + (1 - share) * (i == j) for j, x in enumerate(near)]
        for way in (lambda j: s(text[i], video[j]), lambda j: s(text[j], video[i])):
            scores = [way(j) / tau for j in range(size)]
            total = math.log(sum(map(math.exp, scores)))
            wanted -= sum(t * (score - total) for t, score in zip(target, scores)) / (2 * size)
    config = Config(soft_targets=share, contrast="info_nce", info_nce_temperature=tau, **SOFT)
    assert losses.contrast(config)(text, video, batch).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("contrast", ["triplet", "info_nce"])
def test_soft_targets_of_captions_at_right_angles_are_hard_ones(contrast):
    """To rounding, at a low temperature; the mean states of a mean head give what the states give."""
    text, video = pairs(4)
    apart = SimpleNamespace(text=torch.eye(4).double()[:, None], text_mask=torch.ones(4, 1).bool())
    settings = dict(contrast=contrast, info_nce_temperature=0.02, **SOFT)
    soft, hard = (losses.contrast(Config(soft_targets=x, **settings)) for x in (1.0, 0.0))
    torch.testing.assert_close(soft(text, video, apart), hard(text, video, apart))
    batch = captions(4)
    means = torch.stack([x[mask].mean(0) for x, mask in zip(batch.text, batch.text_mask)])[:, None]
    given = SimpleNamespace(text=means, text_mask=apart.text_mask)
    torch.testing.assert_close(soft(text, video, given), soft(text, video, batch))
    assert not torch.allclose(soft(text, video, batch), hard(text, video, batch))


def test_similarity_of_half_precision_states_is_in_float32():
    batch = captions(7, dtype=torch.float16)
    similarity = losses.caption_similarity(batch.text, batch.text_mask)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, torch.tensor(naive_similarity(captions(7))).float(), atol=2e-3, rtol=0)


def test_soft_targets_need_a_frozen_encoder_and_one_of_two_losses():
    with pytest.raises(ConfigError, match="set freeze_text = True"):
        losses.contrast(Config(soft_targets=0.5))
    with pytest.raises(ConfigError, match="soft_targets are of 'triplet' and 'info_nce'; contrast is 's2dtw'"):
        losses.contrast(Config(soft_targets=0.5, contrast="s2dtw", sequences=True, objective="none", **SOFT))
