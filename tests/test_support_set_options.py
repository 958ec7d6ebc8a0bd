"""Where the weights of a support set come from, which embeddings learn through them, and what is decoded."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_model
from scipy import stats

from ssb import files, losses
from ssb.config import OBJECTIVES, Config, ConfigError
from ssb.corpora.load import load_corpus
from ssb.experiments import carries
from ssb.training.data import Data, others
from ssb.training.loop import decode_with, fit
from tests.test_support_set import embedded, gradients, model, pairs, remembered

OPTIONS = {"clips": 60, "captions": 3, "false_negatives": 0.05}  # 40 clips to train on
SUPPORTS = OBJECTIVES[1:]


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("shapes", **OPTIONS)


def small(**changes) -> Config:
    return Config.preset("smoke", **{"corpus_options": OPTIONS, "batch": 8, **changes})


def with_others(batch):
    """A batch with another caption of each clip."""
    other = pairs(len(batch.text), seed=9)
    return replace(batch, other=other.text, other_mask=other.text_mask)


def naive_weights(queries, clips, objective, temperature):
    """w of eq. 3 by loops, of any queries (B, d)."""
    w = torch.zeros(len(queries), len(clips))
    for i, query in enumerate(queries):
        members = [j for j in range(len(clips)) if objective != "cross" or j != i]
        scores = [torch.exp(query @ clips[j] / (query.norm() * clips[j].norm()) / temperature) for j in members]
        for j, score in zip(members, scores):
            w[i, j] = score / sum(scores)
        if objective in ("identity", "hybrid"):
            one = torch.eye(len(clips))[i]
            w[i] = one if objective == "identity" else (w[i] + one) / 2
    return w


@pytest.mark.parametrize("source", ["caption", "other caption", "clip"])
@pytest.mark.parametrize("objective", SUPPORTS)
def test_weights_are_those_of_their_source(objective, source, monkeypatch):
    """And clips of the past are compared with it too."""
    net = model(objective, weights_from=source, temperature=0.5, support_set=9)
    batch = with_others(pairs(5))
    batch.past = remembered(net, replace(pairs(4, seed=1), clips=torch.arange(5, 9)))
    made, weights = [], losses.support_set_weights
    monkeypatch.setattr(losses, "support_set_weights", lambda *given: made.append(weights(*given)) or made[-1])
    net(batch)
    c_t, c_v = embedded(net, batch)
    again = net.embed_text(batch.other, batch.other_mask)
    query = {"caption": c_t, "other caption": again, "clip": c_v}[source]
    wanted = naive_weights(query, torch.cat([c_v, batch.past.c_v]), objective, 0.5)
    torch.testing.assert_close(made[0], wanted)


@pytest.mark.parametrize("objective", SUPPORTS)
def test_a_clip_that_is_its_captions_source_needs_no_caption(objective):
    """With the weights of the clip no caption moves them: the text head gets no gradient, the video head does."""
    net = model(objective, weights_from="clip", temperature=0.5)
    gradient = gradients(net, net(pairs(5))["loss"])
    assert not any(x.any() for name, x in gradient.items() if "text_head" in name)
    assert any(x.any() for name, x in gradient.items() if "video_head" in name) == (objective != "identity")


def test_the_caption_that_is_decoded_gives_no_weight_to_another_ones_support():
    """What a caption says changes nothing but what is decoded, where its clip's other caption is the source."""
    net, batch = model("cross", weights_from="other caption"), with_others(pairs(5))
    changed = replace(batch, text=batch.text + 1)
    assert torch.equal(net(batch)["captioning"], net(changed)["captioning"])
    assert not torch.equal(net(batch)["captioning"], net(replace(batch, other=batch.other + 1))["captioning"])


@pytest.mark.parametrize("side", ["both", "text", "video", "none"])
@pytest.mark.parametrize("source", ["caption", "other caption"])
@pytest.mark.parametrize("objective", ["full", "hybrid", "cross"])
def test_one_side_learns_as_when_both_do_and_the_other_does_not(objective, source, side):
    batch = with_others(pairs(5))
    net, both = (
        model(objective, weights_from=source, weights_gradient=s, temperature=0.5, support_set=9)
        for s in (side, "both")
    )
    batch.past = remembered(net, replace(pairs(4, seed=1), clips=torch.arange(5, 9)))
    terms, expected = net(batch), both(batch)
    assert terms["captioning"] == expected["captioning"]
    learned, wanted = gradients(net, terms["loss"]), gradients(both, expected["loss"])
    for name, x in learned.items():
        stops = name.startswith("text_head") and side in ("video", "none")
        stops = stops or name.startswith("video_head") and side in ("text", "none")
        assert torch.equal(x, torch.zeros_like(x) if stops else wanted[name]), name
    assert all(any(x.any() for name, x in wanted.items() if head in name) for head in ("text_head", "video_head"))


def heads(run) -> dict[str, torch.Tensor]:
    weights = load_file(run.folder / "model.safetensors")
    return {name: x for name, x in weights.items() if not name.startswith(("decoder.", "to_decoder."))}


@pytest.mark.parametrize("changes", [{}, {"support_set": 4}, {"weights_from": "other caption"}, {"objective": "full"}])
def test_a_decoder_that_nothing_learns_from_changes_no_rank(changes, corpus):
    """Dropout in the decoder and in the heads, support sets that are drawn: the heads draw the same without them."""
    still = dict(clip_apart=True, dropout=0.2, decoder_dropout=0.3, epochs=2)
    none = fit(small(objective="none", **still), corpus, quiet=True)
    run = fit(small(**still, weights_gradient="none", **changes), corpus, quiet=True)
    learned, wanted = heads(run), heads(none)
    assert learned.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in learned.items())
    assert all(np.array_equal(run.ranks[way], ranks) for way, ranks in none.ranks.items())
    assert not np.array_equal(fit(small(**still, **changes), corpus, quiet=True).ranks["t2v"], none.ranks["t2v"])


@pytest.mark.parametrize("epoch", ["pairs", "clips"])
def test_another_caption_is_any_other_of_the_clip_in_each_step(epoch, corpus):
    data = Data(small(weights_from="other caption", epoch=epoch), corpus)
    counts = [0, 0]
    for rows in np.concatenate([data.order(e) for e in range(30)]):
        batch = data.batch(rows)
        assert torch.equal(batch.other, data.batch(rows).other)  # as in a resumed run
        captions = corpus.captions["text"].tolist()
        for row, ids, mask in zip(rows, batch.other, batch.other_mask):
            told = data.tokenizer.decode(ids[mask], skip_special_tokens=True).strip()
            others = [j for j in np.flatnonzero(data.clip_of == data.clip_of[row]) if j != row]
            which = [captions[j].lower() == told for j in others]
            assert any(which)
            if sum(which) == 1:
                counts[which.index(True)] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_clips_with_one_caption_are_refused(corpus):
    alone = load_corpus("shapes", **OPTIONS | {"captions": 1})
    with pytest.raises(ConfigError, match="40 of 40 training clips of shapes have one caption, such as .*take 'capt"):
        Data(small(weights_from="other caption"), alone)
    Data(small(weights_from="clip"), alone)


@pytest.mark.parametrize("source", ["other caption", "clip"])
def test_every_source_trains(source, corpus):
    run, usual = (fit(small(weights_from=s, epochs=1), corpus, quiet=True) for s in (source, "caption"))
    assert run.name != usual.name and not torch.equal(
        heads(run)["text_head.f.weight"], heads(usual)["text_head.f.weight"]
    )


# the oracle


def test_the_oracle_captions_from_the_clips_a_caption_is_true_of_and_teaches_these_weights():
    """By loops: members are other clips, of the batch and of the past; a caption without one keeps its own weights."""
    net = model("cross", weights_from="meaning", temperature=0.5, support_set=9)
    batch = pairs(5)
    batch.past = remembered(net, replace(pairs(4, seed=1), clips=torch.arange(5, 9)))
    batch.true = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]] + [[1] * 9] * 3).bool()
    batch.true[4, 6] = False
    terms = net(batch)
    c_t, c_v = embedded(net, batch)
    clips = torch.cat([c_v, batch.past.c_v])
    learnt = naive_weights(c_t, clips, "cross", 0.5)
    weights, entropies = learnt.detach().clone(), []
    for i in range(5):
        members = [j for j in range(9) if j != i and batch.true[i, j]]
        if members:
            weights[i] = torch.tensor([1 / len(members) if j in members else 0.0 for j in range(9)])
            entropies.append(-sum(learnt[i, j].log() for j in members) / len(members))
    assert len(entropies) == 4
    video, mask = torch.cat([batch.video, batch.past.video]), torch.cat([batch.video_mask, batch.past.video_mask])
    told = net.caption_loss(*net.support(weights, video, mask), batch.labels)
    taught = sum(entropies) / 4
    torch.testing.assert_close(terms["captioning"], (told + taught).detach())
    found, of_decoder, of_heads = (gradients(net, loss) for loss in (terms["loss"], told, taught))
    for name, x in found.items():  # the decoder teaches the heads nothing
        torch.testing.assert_close(x, (of_heads if "_head" in name else of_decoder)[name], msg=name)
    assert all(any(x.any() for name, x in of_heads.items() if head in name) for head in ("text_head", "video_head"))


def test_the_oracle_knows_what_the_clips_of_a_batch_and_of_the_past_show(corpus):
    data = Data(small(weights_from="meaning"), corpus)
    rows, past = data.order(0)[0], torch.tensor([3, 50])
    batch = data.batch(rows, (past, torch.zeros(2, 32)))
    words, says = corpus.meaning.to_dict("records"), corpus.captions["says"]
    clips = [*data.clip_of[rows], 3, 50]
    wanted = [[all(words[j][a] == words[data.clip_of[row]][a] for a in says[row]) for j in clips] for row in rows]
    assert batch.true.tolist() == wanted and batch.true[:, : len(rows)].diagonal().all()
    assert data.batch(rows).true.shape == (8, 8) and Data(small(), corpus).batch(rows).true is None


def test_the_oracle_acts_on_the_heads(corpus):
    still = dict(epochs=1, dropout=0.0, decoder_dropout=0.0, clip_apart=True)
    none = fit(small(objective="none", **still), corpus, quiet=True)
    run, stopped = (
        fit(small(weights_from="meaning", weights_gradient=g, **still), corpus, quiet=True) for g in ("both", "none")
    )
    assert not torch.equal(heads(run)["text_head.f.weight"], heads(none)["text_head.f.weight"])
    assert all(torch.equal(x, heads(none)[name]) for name, x in heads(stopped).items())


def test_the_oracle_needs_a_corpus_of_known_meaning(corpus):
    with pytest.raises(
        ConfigError, match="weights_from = 'meaning': what the clips of shapes show is not known; take 'ca"
    ):
        Data(small(weights_from="meaning"), replace(corpus, meaning=None))


def test_the_oracle_is_a_row_where_meaning_is_known(corpus):
    study = SimpleNamespace(corpus=corpus, base=small())
    assert carries.grid(study)["cross, weights by true meaning"] == {"objective": "cross", "weights_from": "meaning"}
    study.corpus = replace(corpus, meaning=None)
    assert not any("meaning" in changes.values() for changes in carries.grid(study).values())


# what is decoded


def told(data, ids) -> list[str]:
    return [data.label_tokenizer.decode(row[row >= 0], skip_special_tokens=True).strip() for row in ids]


def inputs(batch):
    return [batch.text, batch.text_mask, batch.video, batch.video_mask, batch.clips]


def test_permuted_captions_are_those_of_one_other_clip(corpus):
    """In all epochs and of all captions of a clip; each clip's are decoded for one other clip, in training alone."""
    data, own = (Data(small(decoded=d, epoch="pairs"), corpus) for d in ("permuted", "own"))
    texts = [text.lower() for text in corpus.captions["text"]]
    clips, seen = {}, set()
    for rows in np.concatenate([data.order(e) for e in range(3)]):
        batch, usual = data.batch(rows), own.batch(rows)
        assert all(torch.equal(x, y) for x, y in zip(inputs(batch), inputs(usual)))
        for row, text in zip(rows, told(data, batch.labels)):
            source = data.decoded[row]
            assert texts[source] == text and data.clip_of[source] in data.train
            assert clips.setdefault(data.clip_of[row], data.clip_of[source]) == data.clip_of[source]
            seen.add(source)
    assert all(clip != source for clip, source in clips.items())
    assert len(clips) == len(set(clips.values())) == 40 and len(seen) == 120  # each caption is decoded somewhere
    test = data.pairs("test")
    assert torch.equal(data.batch(test).labels, own.batch(test).labels)
    again, other = (Data(small(decoded="permuted", seed=s), corpus).decoded for s in (0, 1))
    assert np.array_equal(again, data.decoded) and not np.array_equal(other, again)


def test_clips_with_fewer_captions_repeat_them(small_folder):
    """Of clips with 1 to 4 captions: each caption gets one of the same other clip, in turn."""
    corpus = load_corpus(str(small_folder))
    rows = [(clip, f"caption {n} of {clip}") for clip in range(12) for n in range(1 + clip % 4)]
    corpus = replace(corpus, captions=pd.DataFrame(rows, columns=["clip", "text"]))
    data = Data(Config.preset("smoke", batch=4, decoded="permuted"), corpus)
    for row, (clip, _) in enumerate(rows):
        other, _ = rows[data.decoded[row]]
        if clip not in data.train:
            assert data.decoded[row] == row
            continue
        place = row - next(i for i, (c, _) in enumerate(rows) if c == clip)
        assert other != clip and other in data.train
        assert rows[data.decoded[row]][1] == f"caption {place % (1 + other % 4)} of {other}"


def test_shuffled_labels_are_of_any_other_pair_of_the_batch(corpus):
    data, own = (Data(small(decoded=d, batch=5), corpus) for d in ("shuffled", "own"))
    counts, distinct = np.zeros((5, 5), int), 0
    for rows in np.concatenate([data.order(e) for e in range(60)]):
        batch, usual = data.batch(rows), own.batch(rows)
        assert torch.equal(batch.labels, data.batch(rows).labels)  # as in a resumed run
        assert all(torch.equal(x, y) for x, y in zip(inputs(batch), inputs(usual)))
        new, old = (told(data, x.labels) for x in (batch, usual))
        assert sorted(new) == sorted(old)
        if len(set(old)) == 5:
            distinct += 1
            counts[range(5), [old.index(text) for text in new]] += 1
    assert distinct > 200 and (counts.diagonal() == 0).all()
    assert stats.chisquare(counts[~np.eye(5, dtype=bool)]).pvalue > 1e-3


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_no_place_keeps_its_own(size, seed):
    values = np.arange(size)
    made = others(values, np.random.default_rng(seed))
    assert sorted(made) == values.tolist() and (made != values).all()


@pytest.mark.parametrize("decoded", ["permuted", "shuffled"])
def test_what_is_decoded_is_learnt(decoded, corpus):
    """The captioning loss and the heads differ from those of the own captions, the first contrastive loss does not."""
    run, usual = (fit(small(decoded=d, epochs=1), corpus, quiet=True) for d in (decoded, "own"))
    assert run.trace["contrast"][0] == usual.trace["contrast"][0]
    assert run.log["captioning"][0] != usual.log["captioning"][0]
    assert not torch.equal(heads(run)["text_head.f.weight"], heads(usual)["text_head.f.weight"])


# a decoder that another run has trained


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


STILL = dict(epochs=1, lr=1e-12, text_lr=1e-12, decoder_lr=1e-12)


@pytest.mark.parametrize("streams, taken", [((), True), (("motion",), False)])
def test_a_run_begins_with_the_decoder_of_another_and_with_heads_of_its_own(streams, taken, corpus):
    """Whatever captions it was fitted on, its words keep their numbers; the heads begin as without it."""
    first = fit(small(corpus_options=OPTIONS | {"seed": 3}, objective="full"), quiet=True)
    settings = small(streams=streams, **STILL)
    run, fresh = (fit(settings.replace(pretrained_decoder=d), corpus, quiet=True) for d in (first.name, ""))
    begun, own, given = weights(run), weights(fresh), weights(first)
    for name, x in begun.items():
        wanted = given if name.startswith("decoder.") or taken and name.startswith("to_decoder.") else own
        assert torch.allclose(x, wanted[name], atol=1e-7), name
    learnt = [name for name in begun if name.startswith("decoder.decoder.")]
    assert not any(torch.allclose(begun[name], own[name]) for name in learnt)
    (_, data), (_, trained), (_, usual) = run.load(), first.load(), fresh.load()
    assert data.label_tokenizer.get_vocab() == trained.label_tokenizer.get_vocab() != usual.label_tokenizer.get_vocab()
    assert data.tokenizer.get_vocab() == usual.tokenizer.get_vocab()
    assert run.log["captioning"][0] < fresh.log["captioning"][0] - 0.3  # it has learnt to write


def test_a_pretrained_run_may_be_given_another_decoder(corpus):
    first, second = (fit(small(epochs=1, seed=s), corpus, quiet=True) for s in (1, 2))
    run = fit(small(pretrained=first.name, pretrained_decoder=second.name, **STILL), corpus, quiet=True)
    for name, x in weights(run).items():
        source = second if name.startswith(("decoder.", "to_decoder.")) else first
        assert torch.allclose(x, weights(source)[name], atol=1e-7), name


def test_tied_weights_of_a_decoder_are_loaded(corpus):
    """Of a T5 whose word vectors are its output layer too, as t5-base has them, the file holds one."""
    net, given = model("cross"), model("cross")
    for each in (net, given):
        each.decoder.lm_head.weight = each.decoder.shared.weight
    torch.nn.init.normal_(given.decoder.shared.weight)
    folder = files.runs() / "x"
    folder.mkdir(parents=True)
    save_model(given, str(folder / "model.safetensors"))
    decode_with(net, SimpleNamespace(folder=folder))
    assert torch.equal(net.decoder.lm_head.weight, given.decoder.lm_head.weight)
    assert torch.equal(net.decoder.decoder.embed_tokens.weight, given.decoder.shared.weight)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pretrained_decoder": "0123456789ab"}, "pretrained_decoder = '0123456789ab': no such finished run"),
        ({"scratch_layers": 2}, "scratch_layers is 1 in that run and 2 in this one"),
        ({"scratch_width": 64}, "scratch_width is 32 in that run and 64 in this one"),
        ({"scratch_heads": 4}, "scratch_heads is 2 in that run and 4 in this one"),
        ({"decoder": "t5-small"}, "decoder is 'scratch' in that run and 't5-small' in this one"),
    ],
)
def test_decoders_that_do_not_fit_are_refused(changes, message, corpus):
    first = fit(small(epochs=1), corpus, quiet=True)
    with pytest.raises(ConfigError, match=message):
        fit(small(**{"pretrained_decoder": first.name, **changes}), corpus, quiet=True)


def test_a_run_without_a_decoder_gives_none(corpus):
    none = fit(small(epochs=1, objective="none"), corpus, quiet=True)
    with pytest.raises(ConfigError, match="that run has no decoder, its objective is 'none'"):
        fit(small(pretrained_decoder=none.name), corpus, quiet=True)
    assert fit(small(epochs=1, objective="none", pretrained_decoder="any"), corpus, quiet=True).name == none.name
