"""Weights of one run in another, tests of a run on another corpus, EMCL as a layer of training."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ssb import emcl, figures, losses
from ssb.config import Config, ConfigError
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError
from ssb.experiments import emcl_layer, transfer
from ssb.experiments.transfer import ZeroShot, fine_tuned, initial_runs, zero_shot
from ssb.metrics import retrieval
from ssb.study import Study
from ssb.training.data import Data
from ssb.training.loop import Training, fit
from ssb.training.runs import build, configure, source

OPTIONS = {"clips": 120, "captions": 2, "false_negatives": 0.05}
HERE, THERE = {"corpus_options": OPTIONS | {"seed": 3}}, {"corpus_options": OPTIONS}


def small(**changes) -> Config:
    return Config.preset("smoke", batch=16, **changes)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))
    return tmp_path


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


@pytest.mark.parametrize("objective", ["none", "cross"])
def test_a_run_begins_with_the_weights_of_another(home, objective):
    first = fit(small(objective=objective, **THERE), quiet=True)
    config = small(objective=objective, pretrained=first.name, lr=1e-12, text_lr=1e-12, decoder_lr=1e-12, **HERE)
    second, fresh = fit(config, quiet=True), fit(config.replace(pretrained=""), quiet=True)
    before, after, other = weights(first), weights(second), weights(fresh)
    assert after.keys() == before.keys() and second.name != fresh.name
    for name in after.keys() - {"shift", "scale"}:
        assert torch.allclose(after[name], before[name], atol=1e-7), name
    assert torch.equal(after["shift"], other["shift"]) and not torch.equal(after["shift"], before["shift"])
    assert not torch.allclose(other["video_head.f.weight"], before["video_head.f.weight"])


def test_words_keep_their_numbers(home):
    """The captions of the second corpus are numbered by the tokenizer of the first, or its weights were nonsense."""
    first = fit(small(**THERE), quiet=True)
    second = fit(small(pretrained=first.name, **HERE), quiet=True)
    (_, trained), (_, data) = first.load(), second.load()
    sentence = "watch a large red circle slide to the left"
    for name in ("tokenizer", "label_tokenizer"):
        assert getattr(data, name)(sentence) == getattr(trained, name)(sentence)
    fresh = Data(small(**HERE), data.corpus)
    assert fresh.tokenizer.get_vocab() != trained.tokenizer.get_vocab()


def test_a_decoder_may_be_new(home):
    first = fit(small(objective="none", **THERE), quiet=True)
    second = fit(small(objective="cross", pretrained=first.name, lr=1e-12, text_lr=1e-12, **HERE), quiet=True)
    assert torch.allclose(weights(second)["text_head.f.weight"], weights(first)["text_head.f.weight"], atol=1e-7)
    assert any(name.startswith("decoder.") for name in weights(second))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 64}, "size mismatch for text_head.f.weight"),
        ({"streams": ("motion",)}, "size mismatch for .*streams that are as wide in sum"),
        ({"text_pooling": "transformer"}, "that run has no text_head.layers"),
        ({"pretrained": "0123456789ab"}, "no such finished run in results/runs; train it first"),
    ],
)
def test_weights_that_do_not_fit_are_refused(home, changes, message):
    first = fit(small(objective="none", **THERE), quiet=True)
    with pytest.raises(ConfigError, match=message):
        fit(small(**{"objective": "none", "pretrained": first.name, **HERE, **changes}), quiet=True)


def test_zero_shot_is_the_run_itself_on_its_own_corpus(home):
    run = fit(small(**THERE), quiet=True)
    same = ZeroShot(run, load_corpus("shapes", **OPTIONS))
    assert same.metrics == run.metrics and all(np.array_equal(same.ranks[way], run.ranks[way]) for way in run.ranks)


def test_zero_shot_by_hand(home):
    """Captions and clips of the other corpus through the trained model, with its tokenizer and its statistics."""
    run, corpus = fit(small(**THERE), quiet=True), load_corpus("shapes", **HERE["corpus_options"])
    tested = zero_shot({"cross": [run]}, corpus)["cross, zero-shot"][0]
    model, trained = run.load()
    clips = corpus.split("test")
    values, mask = corpus.features(max_steps=run.config.max_steps)
    captions = corpus.captions_of(clips)
    with torch.inference_mode():
        c_v = model.embed_video(torch.from_numpy(values[clips]), torch.from_numpy(mask[clips]))
        end = [trained.tokenizer.eos_token_id]
        ids = [torch.tensor([trained.tokenizer(text).input_ids + end]) for text in captions["text"]]
        c_t = torch.cat([model.embed_text(row, torch.ones_like(row, dtype=torch.bool)) for row in ids])
    own = captions["clip"].map({clip: i for i, clip in enumerate(clips)}).to_numpy(copy=True)
    ranks = retrieval.ranks(losses.cosine(c_t, c_v), own)
    assert np.mean(tested.ranks["t2v"] == ranks) > 0.97  # rounding may break a tie
    assert tested.metrics["t2v MnR"] != run.metrics["t2v MnR"]
    assert tested.provenance["corpus_sha"] == corpus.fingerprint and tested.config == run.config


def test_zero_shot_wants_features_of_the_same_width(home):
    run = fit(small(**THERE), quiet=True)
    with pytest.raises(ConfigError, match="width 192, those of shapes have 64; name streams of that total"):
        ZeroShot(run, load_corpus("shapes", **OPTIONS), ["motion"])


def test_a_study_fine_tunes_each_seed_from_its_own(home):
    options = dict(preset="smoke", seeds=[0, 1], jobs=1)
    before = Study("before", changes={**THERE, "epochs": 1}, **options).run({"none": {"objective": "none"}})
    study = Study("after", changes={**HERE, "epochs": 4}, **options)
    runs = study.run(fine_tuned(study.base, ["none"]), begin=initial_runs(before))
    assert [run.config.pretrained for run in runs["none, pre-trained"]] == [run.name for run in before["none"]]
    assert {run.config.epochs for run in runs["none, pre-trained"] + runs["none, a quarter"]} == {1}
    assert {run.config.epochs for run in runs["none"]} == {4} and runs["none"][0].config.pretrained == ""
    with pytest.raises(ConfigError, match="'none, pre-trained': 1 runs to begin with for 2 seeds"):
        study.run(fine_tuned(study.base, ["none"]), begin={"none, pre-trained": before["none"][:1]})


# EMCL as a layer


def batch_of(config, corpus):
    torch.manual_seed(0)
    data = Data(config, corpus)
    return build(data), data, data.batch(data.order(0)[0])


@pytest.mark.parametrize("objective", ["none", "cross"])
def test_losses_see_what_emcl_gives(home, objective):
    corpus = load_corpus("shapes", **OPTIONS)
    config = small(objective=objective, emcl=True, emcl_bases=8, contrast="triplet", dropout=0.0, decoder_dropout=0.0)
    model, _, batch = batch_of(config, corpus)
    model.train()
    start = model.emcl.start.clone()
    terms = model(batch)
    layer = emcl.EMCL(8)
    layer.start.copy_(start)
    c_t, c_v = model.embed_text(batch.text, batch.text_mask), model.embed_video(batch.video, batch.video_mask)
    c_v, c_t = layer(torch.cat([c_v, c_t])).split(len(c_t))
    assert terms["contrast"].item() == pytest.approx(losses.triplet(c_t, c_v, negatives="hardest").item(), rel=1e-5)
    assert torch.allclose(terms["c_v"], c_v.detach(), atol=1e-5)
    assert torch.equal(model.emcl.start, layer.start) and not torch.equal(layer.start, start)
    if objective == "cross":
        assert terms["captioning"].item() == pytest.approx(model.captioning(c_t, c_v, batch).item(), rel=1e-5)


def test_without_beta_emcl_is_no_layer(home):
    plain, layered = (
        fit(small(objective="cross", **THERE, **x), quiet=True) for x in ({}, {"emcl": True, "emcl_beta": 0.0})
    )
    assert np.array_equal(plain.ranks["t2v"], layered.ranks["t2v"])
    assert np.allclose(plain.log["contrast"], layered.log["contrast"])


def test_ranks_with_emcl_are_of_blocks_of_the_batch_dealt_at_random(home):
    run = fit(small(objective="none", emcl=True, **THERE), quiet=True)
    model, data = run.load()
    c_t, c_v, own = data.embed(model, "test")
    generator = torch.Generator().manual_seed(0)
    captions, clips = (torch.randperm(len(x), generator=generator).split(16) for x in (c_t, c_v))
    scores = torch.empty(len(c_t), len(c_v))
    for i, j in itertools.product(captions, clips):
        rows = model.emcl(torch.cat([c_v[j], c_t[i]]))
        scores[i[:, None], j] = losses.cosine(rows[len(j) :], rows[: len(j)])
    assert np.mean(run.ranks["t2v"] == retrieval.ranks(scores, own)) > 0.97
    assert model.emcl.start.shape == (1, 32) and not torch.equal(model.emcl.start, build(data).emcl.start)


def test_what_emcl_learned_is_in_a_checkpoint(home):
    training = Training(small(emcl=True, **THERE), load_corpus("shapes", **OPTIONS), home / "run", quiet=True)
    assert "emcl.start" in training.raw.state_dict()


# what the reviewer of a table would ask


def test_test_clips_that_were_trained_on_are_refused(home, small_folder):
    """A corpus of one's own, and the same with the splits changed: what was trained on must not be tested."""
    run = fit(small(corpus=str(small_folder), epochs=1), quiet=True)
    other = home / "other"
    shutil.copytree(small_folder, other)
    splits = json.loads((other / "split.json").read_text())
    splits["train"], splits["test"] = splits["test"] + splits["train"][4:], splits["train"][:4]
    (other / "split.json").write_text(json.dumps(splits))
    with pytest.raises(CorpusError, match="4 of 4 test clips of other are cut from what"):
        ZeroShot(run, load_corpus(other))
    with pytest.raises(CorpusError, match="4 of 4 test clips"):
        fit(small(corpus=str(other), epochs=1, pretrained=run.name), quiet=True)


def test_what_an_earlier_generation_was_trained_on_is_not_tested(home, small_folder):
    """a → b → c: the test clips of c are training clips of a, and b has none of them."""
    rows = pd.read_csv(small_folder / "captions.csv")
    between, last = home / "between", home / "last"
    for folder, splits in ((between, None), (last, {"train": (6, 9), "val": (9, 12), "test": (0, 6)})):
        shutil.copytree(small_folder, folder)
        if splits is None:  # other videos altogether
            ids = rows["clip"].str.replace("clip", "other")
            rows.assign(clip=ids, text="b " + rows["text"]).to_csv(folder / "captions.csv", index=False)
            for path in (folder / "split.json", *folder.glob("features/*.ids.txt")):
                path.write_text(path.read_text().replace("clip", "other"))
        else:
            split = {name: [f"clip{i:02d}" for i in range(*ends)] for name, ends in splits.items()}
            (folder / "split.json").write_text(json.dumps(split))
    first = fit(small(corpus=str(small_folder), epochs=1), quiet=True)
    second = fit(small(corpus=str(between), epochs=1, pretrained=first.name), quiet=True)
    assert second.trained_on == str(small_folder)
    for tested in (
        lambda: fit(small(corpus=str(last), epochs=1, pretrained=second.name), quiet=True),
        lambda: fit(small(corpus=str(last), epochs=1, pretrained_decoder=second.name), quiet=True),
        lambda: ZeroShot(second, load_corpus(last)),
    ):
        with pytest.raises(CorpusError, match="6 of 6 test clips of last are cut from what mine was trained"):
            tested()


def test_clips_of_one_youtube_video_are_known():
    names = "v_abcdefghijk", "abcdefghijk_000001_000011", "abcdefghijk_3", "abcdefghijk", "abcdefghijk_12_20"
    assert {source(name) for name in names} == {"abcdefghijk"}
    assert [source(name) for name in ("video123", "a_b")] == ["video123", "a_b"]


def test_a_misspelt_setting_to_begin_with_is_refused(home):
    study = Study("after", preset="smoke", seeds=[0], jobs=1, changes=HERE)
    with pytest.raises(ConfigError, match="begin names 'none, pretrained'"):
        study.run({"none, pre-trained": {"objective": "none"}}, begin={"none, pretrained": []})
    with pytest.raises(ConfigError, match="0 runs to begin with for 1 seeds"):
        study.run({"none": {"objective": "none"}}, begin={"none": []})


def test_weights_that_would_be_left_are_refused(home):
    first = fit(small(objective="none", video_pooling="transformer", pool_layers=2, **THERE), quiet=True)
    with pytest.raises(ConfigError, match="this one has no video_head.layers.1"):
        changes = {"video_pooling": "transformer", "pool_layers": 1, "pretrained": first.name}
        fit(small(objective="none", **changes, **HERE), quiet=True)


def test_rows_name_the_corpus_of_the_first_training(home):
    options = dict(preset="smoke", seeds=[0], jobs=1)
    before = Study("before", changes={**THERE, "epochs": 1}, **options)
    first = before.run({"none": {"objective": "none"}})
    study = Study("pretraining", changes={**HERE, "epochs": 1}, **options)
    runs = study.run(fine_tuned(study.base, ["none"]), begin=initial_runs(first)) | zero_shot(first, study.corpus)
    rows = study.rows(runs).set_index("setting")["trained_on"]
    label = "shapes; captions 2; clips 120; false_negatives 0.05"
    assert rows.to_dict() == {"none": "", "none, a quarter": "", "none, pre-trained": label, "none, zero-shot": label}
    frame = transfer.with_paper_rows(runs, "3", study.corpus_label)
    assert frame.set_index("method").loc["none, pre-trained", "pretrain"] == label
    assert "trained_on" not in before.rows(first)


def test_figures_of_a_run_that_ranks_by_more_are_refused(home):
    run = fit(small(objective="cross", emcl=True, **THERE), quiet=True)
    with pytest.raises(ConfigError, match="take a run without"):
        figures.support_weights(*run.load(), 4)


def test_the_papers_settings_of_a_benchmark():
    config = configure("paper", "activitynet")
    assert (config.max_steps, config.max_tokens, config.epochs, config.dropout) == (512, 256, 28, 0.0)
    assert configure("paper", "vatex", epochs=3).epochs == 3 and configure("paper", "vatex").epochs == 30
    assert configure("laptop", "activitynet").max_steps == Config.preset("laptop").max_steps


def test_what_the_layer_has_learnt(home):
    runs = {"none": [fit(small(objective="none", **THERE), quiet=True)]}
    runs["none + EMCL"] = [fit(small(objective="none", emcl=True, **THERE), quiet=True)]
    results = emcl_layer.layer_ranks(runs, load_corpus("shapes", **OPTIONS))
    assert results["setting"].tolist() == ["none + EMCL"] and results["block"].tolist() == [16]
    assert results["start sd"].item() == pytest.approx((2 / 32) ** 0.5, abs=1e-3)
    assert 1 <= results["rank of Ê"].item() <= results["rank of E"].item() * 2
    inside = emcl_layer.LAYER._replace(temperature=0.3, beta=0.3)
    assert "edge of what was tried: beta" in emcl_layer.at_edge(
        inside._replace(beta=0.1)
    ) and "not at" in emcl_layer.at_edge(inside)
