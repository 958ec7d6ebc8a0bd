"""What a run finds prepared by the run before it, and batches of means: the same numbers as without."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from ssb import Config, ConfigError, load_corpus, losses, text
from ssb.training import data as module
from ssb.training import runs
from ssb.training.data import Data
from ssb.training.loop import fit
from ssb.training.runs import TrainingError

OPTIONS = {"clips": 60, "false_negatives": 0.05}


@pytest.fixture
def corpus():
    return load_corpus("shapes", **OPTIONS)


@pytest.fixture
def config(corpus, tmp_path):
    """`smoke` with a frozen encoder of its own."""
    return frozen(corpus, tmp_path / "encoder")


def frozen(corpus, folder, seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = text.fit_tokenizer(corpus.captions["text"].tolist(), 400)
        sizes = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = dict(text_encoder=str(folder), freeze_text=True, batch=8, dropout=0.0, decoder_dropout=0.0) | changes
    return Config.preset("smoke", corpus="shapes", corpus_options=OPTIONS, **changes)


def forget():
    module._features.clear()
    runs._corpora.clear()
    for kept in (module.tokenizer, module.token_ids, module.frozen_encoder, module.states):
        kept.cache_clear()


PARTS = ("video", "video_mask", "text", "labels", "encoder", "tokenizer", "label_tokenizer")


def parts(data):
    return {name: getattr(data, name) for name in PARTS}


def test_runs_that_differ_in_other_settings_share_what_is_prepared(config, corpus):
    forget()
    state = torch.get_rng_state()
    first = Data(config, corpus)
    again = Data(config.replace(seed=3, lr=0.1, objective="full", epochs=7), load_corpus("shapes", **OPTIONS))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn, prepared before or not
    assert again.config.seed == 3 and all(x is parts(again)[name] for name, x in parts(first).items())
    assert not np.array_equal(first.order(0), again.order(0))
    scratch = config.replace(freeze_text=False, text_encoder="scratch")
    one, two = Data(scratch, corpus), Data(scratch, corpus)
    assert one.text is two.text is one.labels and one.tokenizer is one.label_tokenizer  # fitted alike
    assert one.encoder is not two.encoder  # each run trains its own


@pytest.mark.parametrize(
    "changes, same",
    [
        (dict(max_steps=3), {"text", "labels", "encoder", "tokenizer", "label_tokenizer"}),
        (dict(max_tokens=5), {"video", "video_mask", "encoder", "tokenizer", "label_tokenizer"}),
        (dict(text_pooling="max"), set(PARTS) - {"text"}),
        (dict(vocabulary=100), set(PARTS) - {"labels", "label_tokenizer"}),
        (dict(freeze_text=False), {"video", "video_mask", "labels", "tokenizer", "label_tokenizer"}),
    ],
)
def test_what_a_setting_changes_is_prepared_again(config, corpus, changes, same):
    forget()
    first = parts(Data(config, corpus))
    changed = config.replace(**changes)
    found = Data(changed, corpus)
    assert {name for name, x in parts(found).items() if x is first[name]} == same
    forget()
    alone = Data(changed, corpus)
    assert torch.equal(found.video, alone.video) and torch.equal(found.video_mask, alone.video_mask)
    for one, other in ((found.text, alone.text), (found.labels, alone.labels)):
        assert np.array_equal(one.values, other.values) and np.array_equal(one.offsets, other.offsets)


def test_other_captions_features_and_weights_are_prepared_again(config, corpus, tmp_path):
    first = Data(config, corpus)
    name, stream = next(iter(corpus.streams.items()))
    other = dataclasses.replace(stream, values=np.array(stream.values) + 1)
    moved = Data(config, dataclasses.replace(corpus, streams={**corpus.streams, name: other}))
    assert not torch.equal(moved.video, first.video) and moved.text is first.text
    captions = corpus.captions.assign(text=corpus.captions["text"] + " again")
    said = Data(config, dataclasses.replace(corpus, captions=captions))
    assert not np.array_equal(said.labels.lengths, first.labels.lengths)
    frozen(corpus, tmp_path / "encoder", seed=1)  # the same folder, other weights
    assert not np.array_equal(Data(config, corpus).text.values, first.text.values)


def test_a_run_is_the_same_whatever_ran_before(config, corpus, monkeypatch, tmp_path):
    found = []
    for name, before in (("a", False), ("b", True)):
        monkeypatch.setenv("SSB_HOME", str(tmp_path / name))
        forget()
        if before:
            fit(config.replace(seed=5), corpus, quiet=True)
        run = fit(config, corpus, quiet=True)
        weights = {name: x.numpy().tobytes() for name, x in load_file(run.folder / "model.safetensors").items()}
        found.append((weights, (run.folder / "log.csv").read_bytes(), (run.folder / "trace.csv").read_bytes()))
    assert found[0] == found[1]


def test_a_mean_head_gets_means_and_gives_the_same(config, corpus):
    data, whole = Data(config, corpus), Data(config.replace(text_pooling="max"), corpus)
    captions = data.order(0)[0]
    batch, states = data.batch(captions), whole.batch(captions)
    assert batch.text.shape == (8, 1, 12) and states.text.shape[1] > 1 and batch.text_mask.all()
    torch.manual_seed(0)
    model = runs.build(data).double().train()
    found = []
    for given in (batch, states):
        model.zero_grad()
        c_t = model.text_head(given.text.double(), given.text_mask)
        c_t.square().sum().backward()
        found.append([c_t.detach(), *(weight.grad for weight in model.text_head.parameters())])
    for one, other in zip(*found):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_loaded_runs_share_one_corpus_until_it_changes(corpus, tmp_path, monkeypatch):
    config = frozen(corpus, tmp_path / "encoder", epochs=1)
    some = [fit(config.replace(seed=seed), corpus, quiet=True) for seed in (0, 1)]
    forget()
    read = []
    monkeypatch.setattr(runs, "load_corpus", lambda *a, **o: read.append(a) or load_corpus(*a, **o))
    data = [run.load()[1] for run in some]
    assert len(read) == 1 and data[0].corpus is data[1].corpus and data[0].video is data[1].video
    assert some[0].load(corpus)[1].corpus is corpus and len(read) == 1
    other = fit(config, load_corpus("shapes", **{**OPTIONS, "seed": 1}), quiet=True)
    with pytest.raises(ValueError, match="pass that one"):
        other.load()
    assert len(read) == 2 and some[0].load()[1].corpus is data[0].corpus and len(read) == 2


def test_fewer_training_clips_are_a_part_of_more_and_the_others_stay(tiny):
    corpus = load_corpus("shapes", **tiny.corpus_options)
    few, more, every = (Data(tiny.replace(train_clips=n), corpus) for n in (8, 20, None))
    assert len(few.train) == 8 and {*few.train} < {*more.train} < {*every.train}
    assert {*few.clip_of[few.order(0).ravel()]} == {*few.train}
    assert np.array_equal(few.pairs("test"), every.pairs("test")) and few.corpus.fingerprint == corpus.fingerprint
    mean = few.video[few.train][few.video_mask[few.train]].mean(0)
    assert torch.equal(few.statistics()[0], mean)
    with pytest.raises(ConfigError, match="train_clips = 41: shapes has 40 training clips"):
        Data(tiny.replace(train_clips=41), corpus)


@pytest.mark.parametrize("contrast", ["triplet", "info_nce"])
def test_soft_targets_are_by_the_states_that_batches_have(config, corpus, contrast):
    """A mean head, whose batches hold means, learns as one whose batches hold all states."""
    soft = config.replace(soft_targets=0.8, contrast=contrast, epochs=1)
    run, hard = (fit(c, corpus, quiet=True) for c in (soft, soft.replace(soft_targets=0.0)))
    assert run.trace["contrast"][0] != hard.trace["contrast"][0]
    data, similarities = Data(soft, corpus), []
    rows = data.order(0)[0]
    for pooling in ("mean", "max"):
        batch = Data(soft.replace(text_pooling=pooling), corpus).batch(rows)
        similarities.append(losses.caption_similarity(batch.text, batch.text_mask))
    torch.testing.assert_close(*similarities)


def test_a_run_is_loaded_with_the_model_that_it_was_trained_with_or_not_at_all(tiny, tmp_path):
    """Whoever saves other weights into the folder gets no figures of a model that was never trained."""
    folder = tmp_path / "bert"

    def save(seed: int):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(vocab_size=300, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=110))  # fmt: skip
        model.save_pretrained(folder)
        text.fit_tokenizer(["a red circle moves to the left"] * 4, 300).save_pretrained(folder)

    save(0)
    config = tiny.replace(text_encoder=str(folder), freeze_text=True, max_tokens=20)
    run = fit(config, quiet=True)
    ranks = run.load()[1].ranks(run.load()[0], "test")
    assert np.array_equal(ranks["t2v"], run.ranks["t2v"])
    save(1)
    with pytest.raises(TrainingError, match=f"run {run.name} was trained with another content of .*bert"):
        run.load()
    with pytest.raises(TrainingError, match="put that back, or train it again"):
        fit(config.replace(pretrained=run.name), quiet=True)
    save(0)
    assert run.load()[1].corpus.fingerprint
