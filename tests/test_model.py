"""The model and its text side against independent readings: plain loops, torch's own layers, transformers' own loss."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import BartConfig, BartModel, BertConfig, BertModel, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ssb import files, losses, machine, text
from ssb.config import OBJECTIVES, Config
from ssb.corpora.load import load_corpus
from ssb.model import (
    HEADS,
    Batch,
    Convolutions,
    Linear,
    MaskedBatchNorm,
    Recurrence,
    SupportSetModel,
    TransformerLayer,
    masked_mean,
)
from ssb.progress import Bar
from ssb.text import ModelError, Ragged

CAPTIONS = ["a red circle moves to the left", "the small square spins", "a star", "something blue, slow-moving"] * 4
WIDTH = 6  # of the clips' features
POOLINGS = ("mean", "max", "conv", "transformer")
TINY = dict(vocabulary=300, scratch_width=16, dim=8, pool_heads=2, pool_ffn=12, dropout=0.0, decoder_dropout=0.0)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer():
    return text.fit_tokenizer(CAPTIONS, 300)


@pytest.fixture(scope="module")
def bert(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def saved_t5(folder, tokenizer, **changes):
    torch.manual_seed(2)
    sizes = dict(d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=3, num_decoder_layers=2)
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, dropout_rate=0.0, **sizes, **changes)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def t5(tokenizer, tmp_path_factory):
    return saved_t5(tmp_path_factory.mktemp("t5"), tokenizer)


def tiny(**changes):
    return Config.preset("smoke", **{**TINY, **changes})


def steps_mask(lengths, steps=None):
    return torch.arange(steps or max(lengths)) < torch.tensor(lengths)[:, None]


def longer(x, mask, by=3):
    """The same sequences with `by` more steps of padding, and rubbish in all of it."""
    x, mask = F.pad(x, (0, 0, 0, by)), F.pad(mask, (0, by))
    return torch.where(mask[..., None], x, 100 * torch.randn_like(x)), mask


def nothing(text, video):
    """A contrastive loss that leaves captioning alone."""
    return text.new_zeros(())


def made(config, vocabulary=300, encoder=None):
    encoder = encoder or text.build_encoder(config, vocabulary)
    return SupportSetModel(config, WIDTH, encoder.config.hidden_size, vocabulary, encoder)


def pairs_of(tokenizer, size=5):
    """Captions and clips of different lengths."""
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:size], 40))
    words, mask = ids.padded(np.arange(size))
    video_mask = steps_mask([1 + (3 * i) % 5 for i in range(size)])
    video = torch.randn(size, video_mask.shape[1], WIDTH)
    return Batch(words, mask, video, video_mask, words.masked_fill(~mask, -100))


def size_of_gradient(module):
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


# pooling heads


def test_masked_batch_norm_is_batch_norm_of_the_real_steps():
    mask = steps_mask([4, 1, 3])
    x = 3 * torch.randn(3, 4, 5) + 2
    ours, plain = MaskedBatchNorm(5), nn.BatchNorm1d(5)
    for layer in (ours, plain):
        nn.init.uniform_(layer.weight, 1, 2)
    ours.load_state_dict(plain.state_dict())
    for training in (True, True, False):
        ours.train(training), plain.train(training)
        for values, m in ((x, mask), longer(x, mask)):
            out = ours(values, m)
            steps = [values[i, :length] for i, length in enumerate([4, 1, 3])]
            torch.testing.assert_close(out[m], plain(torch.cat(steps)))
            assert (out[~m] == 0).all()
            torch.testing.assert_close(ours.running_mean, plain.running_mean)
            torch.testing.assert_close(ours.running_var, plain.running_var)


def test_convolutions_are_kernels_side_by_side():
    """Kernel k at step m sees the steps m - (k - 1) // 2 to m + k // 2, nothing being there outside of the clip."""
    f, mask = Convolutions(WIDTH, 8), steps_mask([5, 3])
    x = torch.randn(2, 5, WIDTH)
    out = f(x, mask)
    for i, length in enumerate((5, 3)):
        inner = f.linear(x[i, :length])
        for m in range(length):
            channels = []
            for conv, k in zip(f.convs, (2, 3, 4, 6)):
                steps = [(n, m - (k - 1) // 2 + n) for n in range(k)]
                parts = [conv.weight[:, :, n] @ inner[step] for n, step in steps if 0 <= step < length]
                channels.append(conv.bias + sum(parts))
            torch.testing.assert_close(out[i, m], torch.cat(channels))


def test_recurrence_reads_each_caption_alone_and_from_both_ends():
    f, lengths = Recurrence(WIDTH, 8), (2, 5, 1)
    x = torch.randn(3, 5, WIDTH)
    out = f(x, steps_mask(lengths))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(out[i, :length], f.gru(x[i, :length])[0])


def naive_attention(attention, x):
    """Multi-head attention of one sequence (M, d), head by head."""
    dim, size = x.shape[1], x.shape[1] // attention.num_heads
    q, k, v = (x @ w.T + b for w, b in zip(attention.in_proj_weight.split(dim), attention.in_proj_bias.split(dim)))
    heads = []
    for h in range(attention.num_heads):
        part = slice(h * size, (h + 1) * size)
        share = (q[:, part] @ k[:, part].T / size**0.5).softmax(dim=1)
        heads.append(share @ v[:, part])
    return attention.out_proj(torch.cat(heads, dim=1))


def naive_batch_norm(norm, sequences):
    """Batch norm of training over all steps of a list of sequences."""
    steps = torch.cat(sequences)
    mean, variance = steps.mean(0), ((steps - steps.mean(0)) ** 2).mean(0)
    return [(x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias for x in sequences]


@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 1, 3)])
@pytest.mark.parametrize("f", [Linear, Convolutions, Recurrence])
def test_transformer_layer_is_its_formula(f, lengths):
    """e_attn = BN(MHA(f(e)) + f(e)), ψ(e) = BN(FFN(e_attn) + e_attn), each sequence by itself but for BN."""
    layer = TransformerLayer(f(WIDTH, 8), 8, heads=2, ffn=12, dropout=0.0)
    for norm in (layer.norm_attention, layer.norm_ffn):
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.bias, -1, 1)
    x, mask = torch.randn(3, 4, WIDTH), steps_mask(lengths)
    first = [layer.f(x[i : i + 1, :n], torch.ones(1, n).bool())[0] for i, n in enumerate(lengths)]
    attended = naive_batch_norm(layer.norm_attention, [naive_attention(layer.attention, e) + e for e in first])
    inner, outer = layer.ffn[0], layer.ffn[3]
    wanted = naive_batch_norm(layer.norm_ffn, [outer(inner(e).clamp(min=0)) + e for e in attended])
    out = layer(x, mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(out[i, :n], wanted[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("f", [Convolutions, Recurrence])
def test_what_each_head_pools(f):
    x, lengths = torch.randn(3, 4, WIDTH), (4, 1, 3)
    mask = steps_mask(lengths)
    heads = {pooling: HEADS[pooling](f, WIDTH, tiny()) for pooling in POOLINGS}
    clips = [x[i, :n] for i, n in enumerate(lengths)]
    mean = torch.stack([heads["mean"].f.weight @ e.mean(0) + heads["mean"].f.bias for e in clips])
    torch.testing.assert_close(heads["mean"](x, mask), mean)
    most = torch.stack([(e @ heads["max"].f.weight.T + heads["max"].f.bias).amax(0) for e in clips])
    torch.testing.assert_close(heads["max"](x, mask), most)
    conv = torch.stack([heads["conv"].f(e[None], torch.ones(1, len(e)).bool())[0].clamp(min=0).mean(0) for e in clips])
    torch.testing.assert_close(heads["conv"](x, mask), conv)
    one, two = heads["transformer"].layers
    torch.testing.assert_close(heads["transformer"](x, mask), two(one(x, mask), mask)[:, 0])
    assert isinstance(one.f, f) and isinstance(two.f, f)
    bare = HEADS["transformer"](f, WIDTH, tiny(pre_encoder=False, pool_layers=1))
    assert len(bare.layers) == 1 and isinstance(bare.layers[0].f, Linear)


@pytest.mark.parametrize("pre_encoder", [True, False])
@pytest.mark.parametrize("f", [Convolutions, Recurrence])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_more_padding_changes_no_head(pooling, f, pre_encoder):
    head = HEADS[pooling](f, WIDTH, tiny(pre_encoder=pre_encoder))
    x, mask = torch.randn(4, 5, WIDTH), steps_mask([5, 1, 3, 4])
    torch.testing.assert_close(head(x, mask), head(*longer(x, mask)))  # training, which moves the running statistics
    head.eval()
    out = head(x, mask)
    torch.testing.assert_close(out, head(*longer(x, mask)))
    alone = torch.cat([head(x[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate([5, 1, 3, 4])])
    torch.testing.assert_close(out, alone)
    assert out.shape == (4, 8) and (out.std(0) > 0).all()


@pytest.mark.parametrize("pre_encoder", [True, False])
@pytest.mark.parametrize("f", [Convolutions, Recurrence])
def test_cls_pools_what_a_learned_vector_before_the_first_step_becomes(f, pre_encoder):
    x, lengths = torch.randn(4, 5, WIDTH), (5, 1, 3, 4)
    mask = steps_mask(lengths)
    head = HEADS["transformer"](f, WIDTH, tiny(pool_query="cls", pre_encoder=pre_encoder))
    torch.testing.assert_close(head(x, mask), head(*longer(x, mask)))  # training, which moves the running statistics
    head.eval()
    out, (one, two) = head(x, mask), head.layers
    for i, n in enumerate(lengths):
        steps, real = torch.cat([head.cls[None], x[i, :n]])[None], torch.ones(1, n + 1).bool()
        torch.testing.assert_close(out[i : i + 1], two(one(steps, real), real)[:, 0])
    torch.testing.assert_close(out, head(*longer(x, mask)))
    first = HEADS["transformer"](f, WIDTH, tiny(pre_encoder=pre_encoder)).eval()
    unlike = first.load_state_dict(head.state_dict(), strict=False)
    assert unlike.unexpected_keys == ["cls"] and not unlike.missing_keys
    assert ((first(x, mask) - out).abs().amax(dim=1) > 0.01).all()
    out.square().sum().backward()
    assert head.cls.grad.abs().sum() > 0


@pytest.mark.parametrize("query, moves", [("cls", False), ("first", True)])
def test_a_cls_vector_does_not_see_the_order_of_steps(query, moves):
    """Attention has no positions; without f, which has, only the first step as the query knows of an order."""
    head = HEADS["transformer"](Recurrence, WIDTH, tiny(pool_query=query, pre_encoder=False)).eval()
    x, mask = torch.randn(1, 6, WIDTH), torch.ones(1, 6).bool()
    out = head(x, mask)
    for order in ([5, 4, 3, 2, 1, 0], [3, 1, 2, 0, 4, 5]):
        assert torch.allclose(head(x[:, order], mask), out, atol=1e-5) != moves
    assert torch.allclose(head(x[:, [0, 3, 2, 1, 5, 4]], mask), out, atol=1e-5)  # the first step is where it was
    with_f = HEADS["transformer"](Recurrence, WIDTH, tiny(pool_query=query)).eval()
    assert not torch.allclose(with_f(x[:, [0, 3, 2, 1, 5, 4]], mask), with_f(x, mask), atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "max", "conv"])
def test_only_a_transformer_head_has_a_query(pooling):
    names = [
        HEADS[pooling](Recurrence, WIDTH, tiny(pool_query=query)).state_dict().keys() for query in ("cls", "first")
    ]
    assert names[0] == names[1]


# captioning


def transformers_loss(decoder, support, mask, labels):
    states = BaseModelOutput(last_hidden_state=support)
    return decoder(encoder_outputs=states, attention_mask=mask.long(), labels=labels).loss


def supports(width):
    labels = torch.tensor([[5, 9, 1, -100], [7, 1, -100, -100], [8, 8, 8, 1]])
    return 3 * torch.randn(3, 4, width), steps_mask([4, 2, 1]), labels


def test_caption_loss_of_the_scratch_decoder_is_transformers_own():
    model = made(tiny()).eval()
    support, mask, labels = supports(16)
    wanted = transformers_loss(model.decoder, support, mask, labels)
    torch.testing.assert_close(model.caption_loss(support, mask, labels), wanted)
    assert not model.decoder.config.scale_decoder_outputs and len(model.decoder.encoder.block) == 0


def test_caption_loss_is_minus_log_likelihood_token_by_token():
    model = made(tiny()).eval()
    support, mask, labels = supports(16)
    logs = []
    for i, row in enumerate(labels):
        prefix = [0]
        for token in row[row != -100].tolist():
            states = BaseModelOutput(last_hidden_state=support[i : i + 1, : mask[i].sum()])
            logits = model.decoder(encoder_outputs=states, decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
            logs.append(logits.log_softmax(0)[token])
            prefix.append(token)
    torch.testing.assert_close(model.caption_loss(support, mask, labels), -torch.stack(logs).mean())


@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_folder_as_decoder_scores_as_the_whole_t5(tied, tokenizer, tmp_path):
    folder = saved_t5(tmp_path / "t5", tokenizer, tie_word_embeddings=tied)
    whole = T5ForConditionalGeneration.from_pretrained(folder).eval()
    model = made(tiny(decoder=folder), len(tokenizer)).eval()
    assert len(model.decoder.encoder.block) == 0 and len(model.decoder.decoder.block) == 2
    support, mask, labels = supports(16)
    wanted = transformers_loss(whole, support, mask, labels)
    torch.testing.assert_close(model.caption_loss(support, mask, labels), wanted)


def test_outputs_are_scaled_where_the_t5_says_so(t5, tokenizer):
    """The default T5 does; without it the loss of the same weights is another."""
    model = made(tiny(decoder=t5), len(tokenizer)).eval()
    assert model.decoder.config.scale_decoder_outputs
    inputs = supports(16)
    scaled = model.caption_loss(*inputs)
    torch.testing.assert_close(scaled, transformers_loss(model.decoder, *inputs))
    model.decoder.config.scale_decoder_outputs = False
    assert (model.caption_loss(*inputs) - scaled).abs() > 0.1


def test_dropout_of_the_decoder_is_the_settings(t5, tokenizer):
    for decoder in ("scratch", t5):
        model = made(tiny(decoder=decoder, decoder_dropout=0.4), len(tokenizer))
        rates = {m.p for m in model.decoder.decoder.modules() if isinstance(m, nn.Dropout)}
        assert rates == {0.4}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_captioning_reaches_the_heads_through_the_weights_alone(objective, tokenizer):
    """The paper's point: under `identity` there is nothing but w_ii = 1 between captioning and the joint space."""
    config = tiny(objective=objective, contrast=f"{__name__}:nothing")
    model = made(config)
    terms = model(pairs_of(tokenizer))
    if objective == "none":
        assert not hasattr(model, "decoder") and terms["loss"] == 0 and "captioning" not in terms
        return
    terms["loss"].backward()
    reached = objective != "identity"
    for module in (model.text_head, model.video_head, model.encoder):
        assert (size_of_gradient(module) > 0) == reached
    assert size_of_gradient(model.decoder.decoder) > 0 and size_of_gradient(model.to_decoder) > 0


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES[2:])
def test_until_the_decoder_is_warm_the_rest_learns_as_without_captioning(objective, tokenizer):
    """To the last bit, and the decoder as if the rest learned too."""
    made_alike = []
    for changes in (dict(decoder_warmup=0.5), dict(decoder_warmup=0.0), dict(objective="none")):
        torch.manual_seed(4)
        made_alike.append(made(tiny(**{"objective": objective, **changes})).eval())
    warming, warm, none = made_alike
    batch = pairs_of(tokenizer)
    bare = gradients(none, none(batch)["loss"])
    whole = gradients(warm, warm(batch)["loss"])
    for progress in (0.0, 0.2, 0.499, 0.5, 0.7, 1.0):
        terms = warming(batch, progress)
        assert terms["captioning"] == warm(batch)["captioning"]
        learned = gradients(warming, terms["loss"])
        wanted = whole if progress >= 0.5 else whole | bare
        assert learned.keys() == whole.keys() and bare.keys() < whole.keys()
        assert all(torch.equal(learned[name], wanted[name]) for name in learned)
    assert not any(torch.equal(bare[name], whole[name]) for name in bare if "head" in name and name.endswith("weight"))


def test_intra_is_of_another_caption_of_each_clip(tokenizer):
    model = made(tiny(contrast="triplet", negatives="mean", margin=0.9, intra=True)).eval()
    batch, others = pairs_of(tokenizer), Ragged.of(text.token_ids(tokenizer, CAPTIONS[1:6], 40))
    batch.other, batch.other_mask = others.padded(np.arange(5))
    c_t, c_v = (F.normalize(x) for x in embedded(model, batch))
    again = F.normalize(model.embed_text(batch.other, batch.other_mask))
    wanted = 0.0
    for i in range(5):
        for j in set(range(5)) - {i}:
            wanted += (0.9 - c_t[i] @ c_v[i] + c_t[i] @ c_v[j]).clamp(min=0) / 20
            wanted += (0.9 - c_t[i] @ c_v[i] + c_t[j] @ c_v[i]).clamp(min=0) / 20
            wanted += (0.9 - c_t[i] @ again[i] + c_t[i] @ c_t[j]).clamp(min=0) / 20
            wanted += (0.9 - 1 + c_v[i] @ c_v[j]).clamp(min=0) / 20
    torch.testing.assert_close(model(batch)["contrast"], wanted.detach())


def embedded(model, batch):
    return model.embed_text(batch.text, batch.text_mask), model.embed_video(batch.video, batch.video_mask)


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_cross_never_sees_its_own_clip(objective, tokenizer):
    """Other features for clip 2 change the support of caption 2 under every objective but `cross`, and that of the
    others under every one but `identity`; the weights follow the features."""
    model, batch = made(tiny(objective=objective)).eval(), pairs_of(tokenizer)
    sums = []
    for noise in (0, torch.randn_like(batch.video[2])):
        batch.video[2] += noise
        weights = losses.support_set_weights(*embedded(model, batch), objective)
        sums.append(model.support(weights, batch.video, batch.video_mask)[0])
    same = [torch.equal(a, b) for a, b in zip(*sums)]
    others = objective == "identity"
    assert same == [others, others, objective == "cross", others, others]


def test_support_is_the_mean_of_the_standardised_clips(tokenizer):
    model, batch = made(tiny(standardise=True)), pairs_of(tokenizer, 3)
    model.shift += torch.randn(WIDTH)
    model.scale *= 3.0
    out, mask = model.support(torch.eye(3), batch.video, batch.video_mask)
    wanted = model.to_decoder((batch.video - model.shift) / 3.0)
    torch.testing.assert_close(out[mask], wanted[mask])
    assert torch.equal(mask, batch.video_mask)
    rubbish = batch.video.masked_fill(~mask[..., None], torch.nan)
    torch.testing.assert_close(model.support(torch.eye(3), rubbish, mask)[0], out)
    assert model.embed_video(rubbish, mask).isfinite().all()


def test_features_that_are_not_standardised_stay_as_they_are():
    model, mask = made(tiny(standardise=False)), steps_mask([2, 1])
    values = 1e4 * torch.randn(2, 2, WIDTH)
    assert torch.equal(model.normalise(values, mask), values.masked_fill(~mask[..., None], 0))


def statistics_of(steps):
    """As a run keeps them: mean and scale of the features (n, D) of the training clips."""
    mean = steps.mean(0)
    return mean, losses.scale_of(mean, steps.std(0))


def test_a_dimension_that_is_dead_in_training_moves_no_embedding():
    """Zero, constant, or constant up to rounding in training; alive on other clips, by a little or by a lot."""
    train = torch.randn(400, WIDTH)
    train[:, 0], train[:, 1] = 0.0, 3.7
    train[:, 2] = 3.7 * (1 + 1e-7 * torch.randn(400))
    model = made(tiny(standardise=True)).eval()
    model.shift, model.scale = statistics_of(train)
    mask, test = steps_mask([4, 4]), torch.randn(2, 4, WIDTH)
    other = test.clone()
    other[..., :3] = 1e6 * torch.randn(2, 4, 3)
    for values in (test, other):
        inputs = model.normalise(values, mask)
        assert inputs.isfinite().all() and (inputs[..., :3] == 0).all()
        wanted = (values[..., 3:] - train[:, 3:].mean(0)) / train[:, 3:].std(0)
        assert torch.equal(inputs[..., 3:], wanted)
    assert torch.equal(model.embed_video(test, mask), model.embed_video(other, mask))


def test_a_dimension_that_hardly_moves_in_training_is_bounded_on_other_clips():
    train = torch.randn(400, WIDTH)
    train[:, 0] = 0.0
    train[7, 0] = 1e-4
    model = made(tiny(standardise=True)).eval()
    model.shift, model.scale = statistics_of(train)
    assert model.scale.isfinite().all()
    mask = steps_mask([4, 4])
    inputs = model.normalise(torch.full((2, 4, WIDTH), 1e3), mask)
    assert inputs.isfinite().all() and inputs.abs().max() == losses.LARGEST and (inputs > 0).all()
    own = model.normalise(train[None, :8], mask[:1].new_ones(1, 8))
    assert torch.equal(own, ((train[:8] - train.mean(0)) / train.std(0))[None])  # what training saw is not cut


@pytest.mark.parametrize("offset, size", [(0.0, 1.0), (5.0, 1e-3), (-300.0, 40.0), (0.0, 1e-9)])
def test_ordinary_dimensions_are_standardised_as_ever_to_the_bit(offset, size):
    """Whatever their offset and size; streams of very different size stand side by side."""
    train = torch.cat([offset + size * torch.randn(500, 4), torch.rand(500, 4) ** 8], dim=1)
    mean, scale = statistics_of(train)
    assert torch.equal(scale, train.std(0))
    assert torch.equal(losses.standardised(train, mean, scale), (train - train.mean(0)) / train.std(0))
    arrays = train.numpy(), mean.numpy(), train.std(0).numpy()
    again = losses.standardised(arrays[0], arrays[1], losses.scale_of(*arrays[1:]))
    assert again.dtype == np.float32 and np.array_equal(again, (arrays[0] - arrays[1]) / arrays[2])


def test_a_few_clips_of_shapes_have_dimensions_that_blow_up(home):
    """A dimension of `shapes` that is 0 on the 72 training clips and not on the others was 20,000 deviations large."""
    corpus = load_corpus("shapes", clips=120)
    values, mask = map(torch.from_numpy, corpus.features((), 16))
    train = values[corpus.split("train")][mask[corpus.split("train")]]
    before = ((values - train.mean(0)) / train.std(0).clamp(min=1e-6))[mask]
    after = losses.standardised(values, *statistics_of(train))[mask]
    assert before.abs().max() > 1e4 and after.abs().max() < losses.LARGEST
    ordinary = train.std(0) > 0
    assert torch.equal(before[:, ordinary], after[:, ordinary]) and (after[:, ~ordinary] == 0).all()


def test_loss_is_the_sum_of_its_terms(tokenizer):
    model, batch = made(tiny(captioning=7.0, contrast="triplet", negatives="mean")).eval(), pairs_of(tokenizer)
    terms = model(batch)
    torch.testing.assert_close(terms["loss"], terms["contrast"] + 7.0 * terms["captioning"])
    c_t, c_v = embedded(model, batch)
    torch.testing.assert_close(terms["similarity"], F.cosine_similarity(c_t[:, None], c_v[None], dim=-1))
    assert terms["loss"].requires_grad and not terms["similarity"].requires_grad


def test_all_objectives_of_a_seed_begin_alike():
    states = []
    for objective in OBJECTIVES:
        torch.manual_seed(3)
        states.append(made(tiny(objective=objective, text_pooling="transformer")))
    for model in states[1:]:
        for name, value in states[0].state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_each_parameter_is_trained_once(tokenizer):
    model = made(tiny(pool_query="cls", video_pooling="transformer"))
    parts = model.head_parameters(), model.encoder_parameters(), model.decoder_parameters()
    every = [id(p) for part in parts for p in part]
    assert len(set(every)) == len(every) and set(every) == {id(p) for p in model.parameters()}
    assert {id(p) for p in model.decoder_parameters()} >= {id(p) for p in model.to_decoder.parameters()}
    assert any(p is model.video_head.cls for p in model.head_parameters())
    assert {id(p) for p in model.encoder_parameters()} == {id(p) for p in model.encoder.parameters()}


# pretrained models


@pytest.mark.parametrize("encoder", ["bert", "t5"])
def test_pretrained_folders_train_end_to_end(encoder, t5, tokenizer, request):
    folder = request.getfixturevalue(encoder)
    config = tiny(text_encoder=folder, decoder=t5, text_pooling="transformer", video_pooling="transformer")
    model = made(config, len(tokenizer))
    loaded = text.tokenizer(folder, [], 300)
    assert loaded(CAPTIONS[0])["input_ids"] == tokenizer(CAPTIONS[0])["input_ids"]
    model(pairs_of(loaded))["loss"].backward()
    for module in (model.encoder, model.text_head, model.video_head, model.decoder.decoder, model.to_decoder):
        assert size_of_gradient(module) > 0
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()] == []


def test_weights_of_a_folder_are_those_saved(bert):
    whole = BertModel.from_pretrained(bert).eval()
    ours = text.build_encoder(tiny(text_encoder=bert), 0).eval()
    ids, mask = torch.tensor([[5, 6, 7, 1]]), torch.ones(1, 4).long()
    outputs = [m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (whole, ours)]
    torch.testing.assert_close(*outputs)


def test_pickled_weights_are_refused(bert, tmp_path, tokenizer):
    model = BertModel.from_pretrained(bert)
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        text.build_encoder(tiny(text_encoder=str(tmp_path)), 0)


def test_a_missing_folder_is_named(tmp_path):
    missing = str(tmp_path / "nowhere")
    for load in (
        lambda: text.build_encoder(tiny(text_encoder=missing), 0),
        lambda: text.build_decoder(tiny(decoder=missing), 0),
        lambda: text.tokenizer(missing, [], 0),
    ):
        with pytest.raises(ModelError, match="nowhere.*model.safetensors"):
            load()


def test_cut_short_weights_are_named(bert, tmp_path):
    for path in Path(bert).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=tmp_path.name):
        text.build_encoder(tiny(text_encoder=str(tmp_path)), 0)


def test_half_precision_weights_are_trained_in_float32(t5, bert, tokenizer, tmp_path):
    for loader, folder in ((BertModel, bert), (T5ForConditionalGeneration, t5)):
        loader.from_pretrained(folder).bfloat16().save_pretrained(tmp_path / loader.__name__)
        tokenizer.save_pretrained(tmp_path / loader.__name__)
    names = dict(text_encoder=str(tmp_path / "BertModel"), decoder=str(tmp_path / "T5ForConditionalGeneration"))
    model = made(tiny(**names), len(tokenizer))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(pairs_of(tokenizer))["loss"].backward()


def test_weights_that_are_missing_are_refused(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    BertConfig.from_pretrained(bert, num_hidden_layers=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder.layer.2"):
        text.build_encoder(tiny(text_encoder=str(tmp_path)), 0)


def test_decoders_of_another_kind_are_refused(bert, tmp_path):
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    sizes = dict(d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8, **heads)
    BartModel(BartConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path)
    for folder in (bert, str(tmp_path)):
        with pytest.raises(ModelError, match="T5"):
            text.build_decoder(tiny(decoder=folder), 0)


def test_a_folder_without_tokenizer_files_is_named(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path.name}.*tokenizer"):
        text.tokenizer(str(tmp_path), [], 300)


# token ids and cached states


def test_fitted_tokenizer(tokenizer):
    specials = [tokenizer.convert_tokens_to_ids(x) for x in ("<pad>", "</s>", "<unk>")]
    assert specials == [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert len(tokenizer) <= 300
    for caption in [*CAPTIONS[:4], "unseen: zebra, naïve 漢"]:
        assert tokenizer.decode(tokenizer(caption)["input_ids"]).strip() == caption
    assert tokenizer("A RED Circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert len(tokenizer("a red circle")["input_ids"]) < len(tokenizer("qz vkx wjfpbh")["input_ids"])  # learnt pieces


def test_token_ids_end_in_the_end_mark_and_are_at_most_so_many(tokenizer):
    whole = [tokenizer(caption)["input_ids"] for caption in CAPTIONS]
    for most in (2, 5, 100):
        rows = text.token_ids(tokenizer, CAPTIONS, most)
        assert [row.tolist() for row in rows] == [ids[: most - 1] + [1] for ids in whole]
        assert {row.dtype for row in rows} == {np.dtype(np.int64)}


def test_a_tokenizer_that_adds_the_end_mark_gets_no_second(tokenizer):
    own = text.fit_tokenizer(CAPTIONS, 300)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    for most in (4, 100):
        ours, theirs = (text.token_ids(x, CAPTIONS, most) for x in (tokenizer, own))
        assert [row.tolist() for row in ours] == [row.tolist() for row in theirs]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.integers(2, 40))
def test_token_ids_are_those_of_the_tokenizers_own_call(captions, most):
    minilm = text.tokenizer("sentence-transformers/all-MiniLM-L6-v2", [], 0)
    for each in (minilm, text.fit_tokenizer(CAPTIONS, 300)):
        whole, cut = (each(captions, truncation=x, max_length=most if x else None)["input_ids"] for x in (False, True))
        ends = [] if each is minilm else [1]
        wanted = [row if row[-1:] == ends else row[: most - len(ends)] + ends for row in cut]
        assert [row.tolist() for row in text.token_ids(each, captions, most)] == wanted
        lengths = [len(row) + (bool(ends) and row[-1:] != ends) for row in whole]
        assert text.longer(each, captions, most) == sum(length > most for length in lengths)
        assert text.longer(each, [], most) == 0


def test_ids_and_fitted_tokenizers_are_kept_and_made_again_where_damaged(tokenizer, monkeypatch):
    def kept(most=40, captions=CAPTIONS, encoder=tokenizer):
        ids = text.cached_ids(encoder, captions, most)
        return [ids.values[begin:end].tolist() for begin, end in zip(ids.offsets[:-1], ids.offsets[1:])]

    wanted = [row.tolist() for row in text.token_ids(tokenizer, CAPTIONS, 40)]
    assert kept() == wanted == kept() and len([*files.cache().glob("tokens-*")]) == 1
    tokenizer(CAPTIONS, truncation=True, max_length=3)  # which the tokenizer remembers
    assert kept() == wanted and len([*files.cache().glob("tokens-*")]) == 1
    assert kept(4) == [row.tolist() for row in text.token_ids(tokenizer, CAPTIONS, 4)]
    assert kept(captions=CAPTIONS[1:]) == wanted[1:] != kept(encoder=text.fit_tokenizer(CAPTIONS, 265))[1:]
    assert len([*files.cache().glob("tokens-*")]) == 4
    for path in files.cache().glob("tokens-*/*.npy"):
        path.write_bytes(path.read_bytes()[:-9])
    assert kept() == wanted

    fitted = text.tokenizer("scratch", CAPTIONS, 300)
    monkeypatch.setattr(text, "fit_tokenizer", None)  # it is not fitted again
    again = text.tokenizer("scratch", CAPTIONS, 300)
    assert text.content(fitted) == text.content(again) == text.content(tokenizer) and len(again) == len(tokenizer)
    assert again.special_tokens_map == tokenizer.special_tokens_map and again.eos_token_id == 1
    with pytest.raises(TypeError):
        text.tokenizer("scratch", CAPTIONS, 299)


def test_an_end_mark_written_in_a_caption_takes_it_from_no_other(tokenizer):
    rows = text.token_ids(tokenizer, ["a star</s>", "a red circle"], 10)
    assert [row[-1] for row in rows] == [1, 1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.sampled_from([(), (3,)]), st.randoms())
def test_padded_is_a_loop(lengths, width, random):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(length, *width)).astype(np.float32) for length in lengths]
    ragged = Ragged.of(rows)
    chosen = np.array([random.randrange(len(rows)) for _ in range(5)])
    values, mask = ragged.padded(chosen)
    longest = max(lengths[i] for i in chosen)
    assert values.shape == (5, longest, *width) and mask.shape == (5, longest) and mask.dtype == torch.bool
    assert ragged.lengths.tolist() == lengths
    for i, row in enumerate(chosen):
        n = lengths[row]
        assert np.array_equal(values[i, :n], rows[row]) and (values[i, n:] == 0).all()
        assert mask[i].tolist() == [True] * n + [False] * (longest - n)


def test_the_means_of_rows_are_those_of_a_mean_head():
    rows = [torch.randn(n, 7).half().numpy() for n in (3, 1, 9, 4, 2)]
    means = Ragged.of(rows).means(size=2)
    assert means.lengths.tolist() == [1] * 5 and means.values.dtype == np.float32
    wanted = np.stack([row.astype(np.float64).mean(0) for row in rows])
    np.testing.assert_allclose(means.values, wanted, atol=1e-6)
    values, mask = Ragged.of(rows).padded(np.arange(5))
    np.testing.assert_allclose(means.values, masked_mean(values.float(), mask), atol=1e-7)
    (kept, one), given = means.padded(np.array([2, 0])), masked_mean(values.float(), mask)[[2, 0]]
    torch.testing.assert_close(masked_mean(kept, one), given, atol=1e-7, rtol=0)


class Counted(nn.Module):
    """An encoder that counts how often it is asked."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.calls = encoder, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.encoder(**inputs)


def test_text_states_that_take_long_show_how_far_they_are(bert, tokenizer, monkeypatch, capsys):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:7], 40))
    encoder = text.build_encoder(tiny(text_encoder=bert), 0)
    text.frozen_states(encoder, ids, batch=3)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(text, "Bar", lambda total, now, every: Bar(total, now, every=0.0))
    text.frozen_states(encoder, ids, batch=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["text states of 7 captions"] * 3 and " 2/3 " in lines[1]


@pytest.mark.parametrize("batch", [1, 3, 128])
def test_frozen_states_are_those_of_each_caption_alone(batch, bert, tokenizer):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:7], 40))
    encoder = text.build_encoder(tiny(text_encoder=bert), 0).train()  # whose dropout must not count
    states = text.frozen_states(encoder, ids, batch=batch)
    assert states.values.dtype == np.float16 and states.values.shape == (len(ids.values), 12)
    for i in range(7):
        row = torch.from_numpy(ids.values[ids.offsets[i] : ids.offsets[i + 1]])[None]
        alone = encoder.eval()(input_ids=row).last_hidden_state[0].detach()
        kept = states.padded(np.array([i]))[0][0]
        torch.testing.assert_close(kept.float(), alone, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_states_have_the_same_bits_on_any_number_of_cores(cores, bert, tokenizer, monkeypatch):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS, 40))
    encoder, threads = text.build_encoder(tiny(text_encoder=bert), 0), set()
    order = np.argsort(ids.lengths, kind="stable")
    encoder.register_forward_hook(lambda *_: threads.add((threading.get_ident(), torch.get_num_threads())))
    monkeypatch.setattr(text.joblib, "cpu_count", lambda: cores)
    with machine.threads(1):
        states = text.frozen_states(encoder, ids, batch=3)
        assert {count for _, count in threads} == {1} and len(threads) <= cores
        for start in range(0, len(order), 3):
            tokens, mask = ids.padded(order[start : start + 3])
            with torch.inference_mode():
                alone = encoder.eval()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.half().numpy()
            for row, values in zip(order[start : start + 3], alone):
                begin, end = ids.offsets[row : row + 2]
                assert values[: end - begin].tobytes() == states.values[begin:end].tobytes()


def test_means_are_cached_beside_the_states(bert, tokenizer):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:4], 40))
    encoder = Counted(text.build_encoder(tiny(text_encoder=bert), 0))
    means = text.cached_states("some", encoder, ids, mean=True)
    states = text.cached_states("some", encoder, ids)
    again = text.cached_states("some", encoder, ids, mean=True)
    assert encoder.calls == 1 and states.values.dtype == np.float16
    assert np.array_equal(means.values, states.means().values) and np.array_equal(again.values, means.values)
    assert again.lengths.tolist() == [1] * 4


def test_states_are_cached_and_computed_again_where_cut_short(bert, tokenizer):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:4], 40))
    encoder = Counted(text.build_encoder(tiny(text_encoder=bert), 0))
    first = np.array(text.cached_states("some", encoder, ids).values)
    again = text.cached_states("some", encoder, ids)
    assert encoder.calls == 1 and isinstance(again.values, np.memmap) and np.array_equal(again.values, first)
    assert np.array_equal(again.offsets, ids.offsets)

    (folder,) = files.cache().glob("text-*")
    path = folder / "states.npy"
    whole = path.read_bytes()
    for calls, rest in enumerate((whole[:-10], whole[:20], b""), start=2):
        path.write_bytes(rest)
        assert np.array_equal(text.cached_states("some", encoder, ids).values, first)
        assert encoder.calls == calls and path.read_bytes() == whole
    assert list(files.cache().glob("text-*")) == [folder]


def test_other_captions_and_other_weights_are_other_states(bert, tokenizer):
    ids = Ragged.of(text.token_ids(tokenizer, CAPTIONS[:4], 40))
    encoder = Counted(text.build_encoder(tiny(text_encoder=bert), 0))
    first = text.cached_states("some", encoder, ids)
    text.cached_states("some", encoder, Ragged(ids.values, np.array([0, 2, *ids.offsets[2:]])))
    with torch.no_grad():
        next(encoder.parameters()).mul_(2.0)
    changed = text.cached_states("some", encoder, ids)
    assert encoder.calls == 3 and not np.array_equal(changed.values, first.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_in_float32_under_mixed_precision(dtype):
    """2α is 0.3984 in bfloat16, and a step held by members of small weight would be masked in float16."""
    config = Config.preset("smoke", contrast="triplet", negatives="hardest")
    model = SupportSetModel(config, 5, 6, vocabulary=64)
    for head in (model.text_head, model.video_head):  # one point
        torch.nn.init.zeros_(head.f.weight)
        torch.nn.init.ones_(head.f.bias)
    ones = torch.ones(3, 2, dtype=torch.bool)
    batch = Batch(torch.randn(3, 2, 6), ones, torch.randn(3, 2, 5), ones, torch.full((3, 4), 7))
    with torch.autocast("cpu", dtype):
        terms = model(batch)
        mask = torch.tensor([[True, False], [True, True]])
        weights = torch.tensor([[0.996, 0.004]])
        _, present = model.support(weights, torch.randn(2, 2, 5), mask)
    assert terms["contrast"].item() == pytest.approx(0.4, abs=1e-6) and terms["similarity"].dtype == torch.float32
    assert present.all()
