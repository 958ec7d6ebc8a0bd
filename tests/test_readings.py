"""The readings of what the paper leaves open: each option against loops, numpy, or its closed form."""

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from ssb import Config, ConfigError, losses
from ssb.model import HEADS, Convolutions, ConvolutionsInTurn, Identity, Linear
from ssb.training.loop import fit
from tests.test_model import WIDTH, embedded, longer, made, pairs_of, steps_mask, tiny, tokenizer

__all__ = ["tokenizer"]  # a fixture
OTHER = dict(weights_by="dot product", weighted_term="contrast", over_tokens="sum", mixing="before")
OTHER |= dict(pre_encoder_in="first", kernels="in turn")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gradients(model, batch, **options):
    """All gradients of the loss of a batch, as one vector."""
    model.zero_grad()
    model(batch, **options)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def alike(config, tokenizer, **changes):
    """Two models of the same weights, the second with some settings changed, and a batch."""
    models = [made(each) for each in (config, config.replace(**changes))]
    models[1].load_state_dict(models[0].state_dict())
    return *models, pairs_of(tokenizer)


@pytest.mark.parametrize("objective", ["full", "hybrid", "cross"])
def test_weights_by_dot_product_are_numpys(objective):
    text, video = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    w = losses.support_set_weights(text, video, objective, 0.7, by="dot product")
    scores = text.numpy() @ video.numpy().T / 0.7
    if objective == "cross":
        scores[np.arange(5), np.arange(5)] = -np.inf
    wanted = special.softmax(scores, axis=1)
    wanted = (wanted + np.eye(5, 7)) / 2 if objective == "hybrid" else wanted
    assert w.numpy() == pytest.approx(wanted, abs=1e-12)
    unit = [nn.functional.normalize(x, dim=1) for x in (text, video)]
    pair = (losses.support_set_weights(*unit, objective, 0.7, by=by) for by in losses.SIMILARITIES)
    torch.testing.assert_close(*pair)  # of embeddings of length 1 the two are one
    with pytest.raises(ValueError, match="by='euclid'; wanted one of cosine, dot product"):
        losses.support_set_weights(text, video, by="euclid")


def test_the_model_weighs_by_the_similarity_of_its_config(tokenizer):
    cosine, other, batch = alike(tiny(objective="cross"), tokenizer, weights_by="dot product")
    c_t, c_v = (x.detach().numpy() for x in embedded(cosine, batch))
    scores = c_t @ c_v.T / 0.1
    np.fill_diagonal(scores, -np.inf)
    support = other.support(torch.tensor(special.softmax(scores, axis=1)), batch.video, batch.video_mask)
    wanted = other.caption_loss(*support, batch.labels).item()
    assert other(batch)["captioning"].item() == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - cosine(batch)["captioning"].item()) > 1e-4


def test_a_weight_before_the_contrastive_loss_is_its_inverse_before_captioning(tokenizer):
    """λ L_contrast + L_cross = λ (L_contrast + L_cross / λ), and so are all gradients."""
    tenth, ten, batch = alike(
        tiny(objective="cross", captioning=0.1), tokenizer, captioning=10.0, weighted_term="contrast"
    )
    torch.testing.assert_close(gradients(ten, batch), 10 * gradients(tenth, batch))
    one, other = tenth(batch, with_share=True), ten(batch, with_share=True)
    torch.testing.assert_close(other["loss"], 10 * one["loss"])
    assert other["contrast"] == one["contrast"] and other["captioning"] == one["captioning"]
    torch.testing.assert_close(other["share"], one["share"])
    terms = one["captioning"].item(), one["contrast"].item()
    assert ten.config.ratio(*terms) == pytest.approx(0.1 * terms[0] / terms[1])
    assert tenth.config.ratio(*terms) == pytest.approx(ten.config.ratio(*terms))
    assert ten.config.ratio(1.0, 0.0) == np.inf


def test_the_sum_over_tokens_is_their_mean_times_the_tokens_of_a_caption(tokenizer):
    mean, total, batch = alike(
        tiny(objective="cross", contrast="tests.test_model:nothing"), tokenizer, over_tokens="sum"
    )
    tokens = (batch.labels != -100).sum().item() / 5
    assert total(batch)["captioning"].item() == pytest.approx(tokens * mean(batch)["captioning"].item(), rel=1e-6)
    torch.testing.assert_close(gradients(total, batch), tokens * gradients(mean, batch))


def test_mixing_before_the_layer_differs_by_its_norm_alone(tokenizer):
    """The linear layer commutes with a mean of weights that sum to 1 at every step; the layer norm does not."""
    after, before, batch = alike(tiny(objective="cross"), tokenizer, mixing="before")
    weights = losses.support_set_weights(*embedded(after, batch))
    values, mask = batch.video, batch.video_mask
    one, other = after.support(weights, values, mask), before.support(weights, values, mask)
    assert torch.equal(one[1], other[1]) and (one[0] - other[0])[one[1]].abs().max() > 0.01
    mixed, present = losses.weighted_mean(weights, values, mask)
    torch.testing.assert_close(other[0][present], before.to_decoder(mixed)[present])
    alone = torch.eye(5), values, mask
    torch.testing.assert_close(after.support(*alone)[0][mask], before.support(*alone)[0][mask])
    for model in (after, before):
        model.to_decoder[1] = nn.Identity()
    one, other = after.support(weights, values, mask), before.support(weights, values, mask)
    torch.testing.assert_close(one[0][present], other[0][present])


def test_convolutions_in_turn_are_a_chain_of_loops():
    """Kernel k at step m sees the steps m - (k - 1) // 2 to m + k // 2 of what the kernel before it gives."""
    f, mask = ConvolutionsInTurn(WIDTH, 8), steps_mask([5, 3])
    x = torch.randn(2, 5, WIDTH)
    out = f(x, mask)
    for i, length in enumerate((5, 3)):
        steps = list(f.linear(x[i, :length]))
        for conv, k in zip(f.convs, (2, 3, 4, 6)):
            steps = steps if k == 2 else [step.clamp(min=0) for step in steps]
            found = []
            for m in range(length):
                seen = [(n, m - (k - 1) // 2 + n) for n in range(k)]
                parts = [conv.weight[:, :, n] @ steps[step] for n, step in seen if 0 <= step < length]
                found.append(conv.bias + sum(parts))
            steps = found
        torch.testing.assert_close(out[i, :length], torch.stack(steps))


@pytest.mark.parametrize("pooling", ["conv", "transformer"])
def test_heads_have_the_kernels_of_their_config_and_see_no_padding(pooling):
    model = made(tiny(video_pooling=pooling, kernels="in turn", pre_encoder_in="first"))
    f = model.video_head.f if pooling == "conv" else model.video_head.layers[0].f
    assert isinstance(f, ConvolutionsInTurn)
    x, mask = torch.randn(4, 5, WIDTH), steps_mask([5, 1, 3, 4])
    torch.testing.assert_close(model.video_head(x, mask), model.video_head(*longer(x, mask)))


def test_f_in_the_first_layer_alone():
    """As with an f in the second layer that changes nothing."""
    both, first = (HEADS["transformer"](Linear, WIDTH, tiny(pre_encoder_in=where)) for where in ("all", "first"))
    nn.init.eye_(both.layers[1].f.weight), nn.init.zeros_(both.layers[1].f.bias)
    missing, further = first.load_state_dict(both.state_dict(), strict=False)
    assert not missing and further == ["layers.1.f.weight", "layers.1.f.bias"]
    x, mask = torch.randn(4, 5, WIDTH), steps_mask([5, 1, 3, 4])
    torch.testing.assert_close(first(x, mask), both(x, mask))
    head = HEADS["transformer"](Convolutions, WIDTH, tiny(pre_encoder_in="first", pool_layers=3))
    assert [type(layer.f) for layer in head.layers] == [Convolutions, Identity, Identity]


@pytest.mark.parametrize("kernels", ["side by side", "in turn"])
@pytest.mark.parametrize("pooling", ["conv", "transformer"])
def test_the_estimate_of_the_weights_of_a_head(pooling, kernels):
    config = Config(dim=64, pool_ffn=128, kernels=kernels)
    head = HEADS[pooling]({"side by side": Convolutions, "in turn": ConvolutionsInTurn}[kernels], 64, config)
    assert HEADS[pooling].weights(config) == pytest.approx(sum(p.numel() for p in head.parameters()), rel=0.2)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="pre_encoder = False: there is no f"):
        Config(pre_encoder=False, pre_encoder_in="first")
    with pytest.raises(ConfigError, match="captioning = 0 and weighted_term = 'contrast' leave no contrastive loss"):
        Config(captioning=0.0, weighted_term="contrast")


def test_a_run_of_the_other_readings_and_its_ratio(home):
    """The ratio of the terms, by the losses of every step."""
    small = dict(corpus_options={"clips": 60, "captions": 2, "false_negatives": 0.05}, batch=16)
    config = Config.preset("smoke", objective="cross", captioning=7.0, video_pooling="transformer", **small)
    run = fit(config.replace(**OTHER), quiet=True)
    terms = run.trace[["captioning", "contrast"]].mean()
    assert run.ratio == pytest.approx(terms["captioning"] / (7 * terms["contrast"]), rel=1e-3) and run.ratio > 0
    log = run.log
    assert log["ratio"].to_numpy() == pytest.approx((log["captioning"] / (7 * log["contrast"])).to_numpy(), rel=1e-4)
    assert log["loss"].to_numpy() == pytest.approx((log["captioning"] + 7 * log["contrast"]).to_numpy(), rel=1e-4)
    none = fit(config.replace(**OTHER, objective="none"), quiet=True)
    assert none.ratio is None and "ratio" not in none.log and (none.trace["captioning"] == 0).all()
    heads = {name: OTHER[name] for name in ("pre_encoder_in", "kernels", "weighted_term")}  # λ before the other loss
    assert fit(config.replace(**heads, objective="none"), quiet=True).name == none.name
