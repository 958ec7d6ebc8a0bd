"""The packed decoder against T5 of transformers, which computes padding and ignores it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ssb import decoder

VOCABULARY, WIDTH, STEPS = 50, 24, 5
KINDS = {  # of T5
    "plain": dict(feed_forward_proj="relu"),
    "gated": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "tied": dict(tie_word_embeddings=True),
    "one head": dict(num_heads=1, d_kv=7, num_decoder_layers=1),
    "few buckets": dict(relative_attention_num_buckets=4, relative_attention_max_distance=6),
}
LABELS = {  # lengths of the captions, padded to the longest
    "ragged": [9, 3, 14, 1, 6, 2],
    "alike": [4, 4, 4],
    "one": [7],
}


def t5(dropout=0.0, **changes) -> T5ForConditionalGeneration:
    sizes = dict(d_model=WIDTH, d_kv=8, num_heads=3, d_ff=40, num_layers=0, num_decoder_layers=3)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, dropout_rate=dropout, decoder_start_token_id=0, **{**sizes, **changes})
    )
    for weight in model.parameters():  # a T5 of this size begins with next to equal scores
        nn.init.normal_(weight, std=0.4)
    return model


def batch(lengths, dtype=torch.float64):
    """support (B, M, W) and its mask, of different lengths and with gaps; labels (B, L)."""
    generator = torch.Generator().manual_seed(1)
    size = len(lengths)
    labels = torch.randint(1, VOCABULARY, (size, max(lengths)), generator=generator)
    labels[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = -100
    mask = torch.rand(size, STEPS, generator=generator) < 0.6
    mask[:, 2] = True
    return torch.randn(size, STEPS, WIDTH, generator=generator, dtype=dtype), mask, labels


def by_transformers(model, support, mask, labels):
    states = BaseModelOutput(last_hidden_state=support)
    return model(encoder_outputs=states, attention_mask=mask.long(), labels=labels).loss


def gradients(model, loss_of, support, *rest):
    """The loss and its gradient to every parameter and to the support."""
    model.zero_grad()
    support = support.clone().requires_grad_()
    loss = loss_of(model, support, *rest)
    loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters() if "encoder." not in name[:8]}
    return {"loss": loss.detach(), "support": support.grad} | {k: v for k, v in named.items() if v is not None}


@pytest.mark.parametrize("lengths", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(kind, lengths):
    model, given = t5(**KINDS[kind]).double(), batch(lengths)
    ours, theirs = (gradients(model, loss, *given) for loss in (decoder.caption_loss, by_transformers))
    assert model.config.scale_decoder_outputs == (kind != "gated")  # both are tested
    assert ours.keys() == theirs.keys() and len(ours) > 15
    for name, wanted in theirs.items():
        assert (ours[name] - wanted).norm() <= 1e-6 * wanted.norm(), name
        assert wanted.norm() > 0 or (lengths == [1] or "bias" in name), name


def test_labels_may_have_gaps():
    model, (support, mask, labels) = t5().double(), batch([9, 3, 14, 6])
    labels[2, 4:7] = labels[0, 0] = labels[3, 2] = -100
    given = support, mask, labels
    ours, theirs = (gradients(model, loss, *given) for loss in (decoder.caption_loss, by_transformers))
    for name, wanted in theirs.items():
        assert (ours[name] - wanted).norm() <= 1e-6 * wanted.norm(), name


def test_only_real_tokens_are_computed():
    model, given = t5(), batch(LABELS["ragged"], torch.float32)
    rows = {}
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Dropout) or "norm" in name:
            module.register_forward_hook(lambda m, x, out, name=name: rows.update({name: x[0].shape}))
    model.lm_head.register_forward_hook(lambda m, x, out: rows.update({"lm_head": x[0].shape}))
    decoder.caption_loss(model, *given)
    support = {name for name in rows if "EncDecAttention.k" in name or "EncDecAttention.v" in name}
    assert len(support) == 6 and {rows[name] for name in support} == {given[0].shape}
    assert {shape[0] for name, shape in rows.items() if name not in support | {BIAS}} == {sum(LABELS["ragged"])}


BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias"


def test_padding_and_later_tokens_change_no_token():
    model, (support, mask, labels) = t5().double(), batch([9, 3, 6])
    loss = decoder.caption_loss(model, support, mask, labels)
    wide = decoder.caption_loss(model, support, mask, F.pad(labels, (0, 5), value=-100))
    each = [decoder.caption_loss(model, support[i : i + 1], mask[i : i + 1], labels[i : i + 1]) for i in range(3)]
    mean = sum(n * x for n, x in zip([9, 3, 6], each)) / 18
    torch.testing.assert_close(wide, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, loss, rtol=1e-6, atol=0)
    absent = support.masked_fill(~mask[..., None], 1e3)
    torch.testing.assert_close(decoder.caption_loss(model, absent, mask, labels), loss, rtol=1e-12, atol=0)


def test_dropout_is_at_the_places_of_transformers(monkeypatch):
    """Each module of dropout is called as often, and attention drops the same share of its weights."""
    model, given = t5(dropout=0.3), batch(LABELS["ragged"], torch.float32)
    calls, shares = [], []
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(
                lambda m, x, out, name=name: calls.append((name, m.p, (out[x[0] != 0] == 0).float().mean().item()))
            )
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, mask, dropout, scale: shares.append(dropout) or attend(q, k, v, mask, dropout, scale=scale),
    )
    places = []
    for loss in (decoder.caption_loss, by_transformers):
        calls.clear()
        if loss is by_transformers:
            monkeypatch.undo()
        loss(model.train(), *given)
        places.append([(name, p) for name, p, _ in calls])
        assert all(share == pytest.approx(0.3, abs=0.12) for _, _, share in calls)
    assert places[0] == places[1] and len(places[0]) == 2 + 4 * 3
    assert shares == [0.3] * 6  # two attentions in each of three layers
    shares.clear()
    assert decoder.caption_loss(model.eval(), *given) == decoder.caption_loss(model, *given)


@pytest.mark.slow
def test_dropout_has_the_expected_loss_of_transformers():
    model, given = t5(dropout=0.2, num_decoder_layers=1), batch(LABELS["ragged"], torch.float32)
    means, errors = [], []
    with torch.no_grad():
        for loss in (decoder.caption_loss, by_transformers):
            values = torch.stack([loss(model.train(), *given) for _ in range(1000)])
            means.append(values.mean().item())
            errors.append((values.std() / len(values) ** 0.5).item())
    assert abs(means[0] - means[1]) < 4 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_in_mixed_precision(kind):
    model, given = t5(**KINDS[kind]), batch(LABELS["ragged"], torch.float32)
    whole = gradients(model, decoder.caption_loss, *given)
    with torch.autocast("cpu", torch.bfloat16):
        half, theirs = (gradients(model, loss, *given) for loss in (decoder.caption_loss, by_transformers))
    assert half["loss"].dtype == torch.float32
    for name, wanted in whole.items():
        off = (half[name] - wanted).norm()
        assert torch.isfinite(half[name]).all()
        assert off <= max(0.05 * wanted.norm(), 2 * (theirs[name] - wanted).norm()) + 1e-6, name


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_on_a_gpu(kind):
    model, given = t5(**KINDS[kind]).double(), batch(LABELS["ragged"])
    there = copy.deepcopy(model).cuda()  # `cuda` moves a model with its gradients
    wanted = gradients(model, decoder.caption_loss, *given)
    ours = gradients(there, decoder.caption_loss, *(x.cuda() for x in given))
    for name, value in wanted.items():
        assert (ours[name].cpu() - value).norm() <= 1e-6 * value.norm(), name
