"""The training loop: same bits, resumption after a kill, collapse, what a run leaves behind."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ssb import files, losses
from ssb.config import Config, ConfigError
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError
from ssb.metrics import retrieval
from ssb.study import Study
from ssb.training import collapse, loop
from ssb.training import runs as runs_module
from ssb.training.data import Data
from ssb.training.loop import fit
from ssb.training.runs import Collapsed, TrainingError

SMALL = dict(corpus_options={"clips": 120, "captions": 2, "false_negatives": 0.05}, batch=16)


def small(**changes) -> Config:
    return Config.preset("smoke", **{**SMALL, **changes})


def content(run) -> dict[str, bytes]:
    """What a run is, without what a clock says; of the weights the bits, for safetensors orders its header at will."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(run.folder / "model.safetensors").items()}
    names = ("config.json", "metrics.json", "log.csv", "trace.csv")
    texts = {name: (run.folder / name).read_bytes() for name in names}
    return weights | texts | {name: ranks.tobytes() for name, ranks in run.ranks.items()}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Two separate homes: `home(name)` moves to one."""

    def move(name):
        monkeypatch.setenv("SSB_HOME", str(tmp_path / name))
        return tmp_path / name

    move("a")
    return move


@pytest.mark.parametrize("objective", ["none", "cross"])
def test_same_config_same_bits(home, objective):
    first = content(fit(small(objective=objective), quiet=True))
    home("b")
    torch.manual_seed(99)  # a run does not depend on what else the process does
    np.random.seed(99)
    before = torch.get_rng_state()
    again = content(fit(small(objective=objective), quiet=True))
    assert again == first
    assert torch.equal(torch.get_rng_state(), before)
    assert content(fit(small(objective=objective, seed=1), quiet=True)) != first


def test_objectives_of_a_seed_begin_alike(home):
    """Runs are compared in pairs: the same heads, the same batches."""
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    data, heads = {}, {}
    for objective in ("none", "cross"):
        torch.manual_seed(5)
        data[objective] = Data(small(objective=objective), corpus)
        heads[objective] = runs_module.build(data[objective]).state_dict()
    for name, weights in heads["none"].items():
        assert torch.equal(weights, heads["cross"][name]), name
    assert np.array_equal(data["none"].order(3), data["cross"].order(3))
    assert not np.array_equal(data["none"].order(3), data["none"].order(4))


def test_identity_cannot_move_the_heads(home):
    """With the video encoder frozen captioning reaches the heads through w alone, and under identity w is constant. So
    with gradients clipped apart the run retrieves exactly as without captioning; clipped together it does not, because
    the decoder's gradient then shrinks the heads' steps."""
    ranks = {
        (objective, apart): fit(small(objective=objective, clip_apart=apart, decoder_dropout=0.0), quiet=True).ranks[
            "t2v"
        ]
        for objective in ("none", "identity", "cross")
        for apart in (True, False)
    }
    assert np.array_equal(ranks["none", True], ranks["identity", True])
    assert not np.array_equal(ranks["none", False], ranks["identity", False])
    assert not np.array_equal(ranks["none", True], ranks["cross", True])


def test_a_run_whose_decoder_never_is_warm_retrieves_as_without_captioning(home):
    still = dict(clip_apart=True, decoder_dropout=0.0, epochs=1)
    none, warming, warm = (
        fit(small(**still, **changes), quiet=True)
        for changes in (dict(objective="none"), dict(decoder_warmup=0.999), dict(decoder_warmup=0.5))
    )
    assert np.array_equal(none.ranks["t2v"], warming.ranks["t2v"])
    assert not np.array_equal(none.ranks["t2v"], warm.ranks["t2v"])
    weights = [load_file(run.folder / "model.safetensors") for run in (none, warming, warm)]
    heads = [name for name in weights[0] if "head" in name]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in heads)
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in heads if "weight" in name)


RATES = {"lr": ("text_head.", "video_head."), "text_lr": ("encoder.",), "decoder_lr": ("decoder.", "to_decoder.")}


@pytest.mark.parametrize("slow", RATES)
def test_each_rate_moves_its_own_part_alone(home, slow):
    config = small(epochs=1, **{slow: 1e-12})
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    trained = dict(fit(config, corpus, quiet=True).load(corpus)[0].named_parameters())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        begun = dict(runs_module.build(Data(config, corpus)).named_parameters())
    still = {name for name, first in begun.items() if (trained[name] - first).abs().max() < 1e-8}
    unused = "decoder.encoder.final_layer_norm.weight"  # of a T5's encoder, which is passed by
    assert still == {name for name in begun if name.startswith(RATES[slow])} | {unused}


def test_weight_decay_is_of_the_heads_matrices_alone(home):
    """With all rates next to zero but for decay: matrices of the heads shrink by 1 - lr × decay in each step."""
    still = dict(epochs=1, lr_schedule="constant", lr=1e-9, text_lr=1e-9, decoder_lr=1e-9, weight_decay=1e3)
    changes = dict(text_pooling="transformer", pool_heads=2, pool_ffn=8)
    config = small(**still, **changes).model_copy(update={"weight_decay": 1e7})  # 1 % a step
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    work = loop.Training(config, corpus, files.runs() / "x", quiet=True)
    begun = {name: p.detach().clone() for name, p in work.raw.named_parameters()}
    steps = work.data.order(0)
    for captions in steps:
        work.take_step(captions)
    for name, p in work.raw.named_parameters():
        decays = "head." in name and p.ndim > 1
        wanted = begun[name] * (1 - 1e-9 * 1e7) ** len(steps) if decays else begun[name]
        assert torch.allclose(p, wanted, rtol=1e-5, atol=1e-6), name


def test_a_decay_of_next_to_nothing_is_none(home):
    """AdamW with a decay of nearly nothing is Adam, whatever groups its weights are in."""
    plain, decayed = (fit(small(epochs=1, **changes), quiet=True) for changes in ({}, {"weight_decay": 1e-12}))
    assert plain.name != decayed.name
    one, two = (load_file(run.folder / "model.safetensors") for run in (plain, decayed))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one if name != "scale")


def test_the_second_caption_is_the_next_of_the_clip(home, small_folder):
    """Of clips with 1, 2, 3 and 4 captions, in any order: from each caption one after another, each once, and back."""
    counts = {f"clip{i:02d}": 1 + i % 4 for i in range(12)}
    rows = [(clip, f"clip {clip[-2:]} caption {n}") for clip, count in counts.items() for n in range(count)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    corpus = load_corpus(str(small_folder))
    captions = pd.DataFrame(
        {"clip": [corpus.clips.index(clip) for clip, _ in rows], "text": [caption for _, caption in rows]}
    )
    config = Config.preset("smoke", contrast="triplet", intra=True, batch=6, epoch="pairs")
    data = Data(config, dataclasses.replace(corpus, captions=captions))
    for caption, (clip, text) in enumerate(rows):
        visited, now = [], caption
        for _ in range(counts[clip]):
            now = data.next[now]
            visited.append(rows[now])
        assert now == caption and len(set(visited)) == counts[clip] and {clip} == {name for name, _ in visited}
    captions = data.order(0)[0]
    batch = data.batch(captions)
    for ids, mask, caption in zip(batch.other, batch.other_mask, captions):
        (clip, text), other = rows[caption], data.tokenizer.decode(ids[mask], skip_special_tokens=True).strip()
        assert (clip, other) in rows and (other == text) == (counts[clip] == 1)
    assert Data(config.replace(intra=False), data.corpus).batch(captions).other is None


@pytest.mark.parametrize("epoch", ["clips", "pairs"])
def test_an_epoch_sees_each_training_clip_or_pair_once(home, epoch):
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    data = Data(small(epoch=epoch, batch=8), corpus)
    captions = data.order(0).ravel()
    clips = data.clip_of[captions]
    assert np.isin(clips, corpus.split("train")).all()
    assert len(np.unique(clips if epoch == "clips" else captions)) == len(captions)
    whole = len(corpus.split("train")) * (1 if epoch == "clips" else 2)
    assert whole - 3 * 8 < len(captions) <= whole
    for batch in data.order(1):
        assert len(np.unique(data.clip_of[batch])) == len(batch)  # no clip is its own negative or in its own support


def test_epochs_of_pairs_may_differ_in_how_many_batches_they_fill(home):
    """Two captions of a clip are never in one batch, so how many fill up is left to the order: here 25, 25, 24."""
    options = {"clips": 60, "captions": 5}
    config = small(corpus_options=options, batch=8, epoch="pairs", objective="none", seed=2, epochs=3, validate_every=3)
    run = fit(config, quiet=True)
    assert len(run.trace) in (3 * 24, 25 + 25 + 24)


def test_a_finished_run_is_not_trained_again(home, monkeypatch):
    run = fit(small(objective="none"), quiet=True)
    monkeypatch.setattr(loop.Training, "take_step", None)
    assert fit(small(objective="none"), quiet=True).folder == run.folder
    # without captioning its settings have no effect, so tables that vary them share the run
    assert fit(small(objective="none", captioning=3.0, temperature=0.7), quiet=True).folder == run.folder


KILLED = """
import json, sys, time
from ssb.training import loop as train
from ssb.config import Config
train.CHECKPOINT_SECONDS = 0.0
step = train.Training.take_step
def slowly(self, captions):
    step(self, captions)
    print(self.epoch, self.step, flush=True)
    time.sleep(0.05)
train.Training.take_step = slowly
train.fit(Config(**json.loads(sys.argv[1])), quiet=True)
"""


def test_killed_in_the_middle_of_an_epoch_and_resumed(home):
    config = small(epochs=3, batch=8)  # ten steps an epoch
    home("killed")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    for line in process.stdout:
        if line.split() == ["1", "4"]:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    partial = list(files.runs().glob("*.part"))
    assert len(partial) == 1 and list(files.runs().glob("*")) == partial  # a checkpoint, and no run

    steps = []
    step = loop.Training.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.Training, "take_step", lambda self, c: (steps.append((self.epoch, self.step)), step(self, c))
        )
        resumed = fit(config, quiet=True)
    assert steps[0] in [(1, 4), (1, 5)]  # not from the start
    assert not list(files.runs().glob("*.part"))

    home("uninterrupted")
    assert content(resumed) == content(fit(config, quiet=True))


@pytest.fixture
def one_point(monkeypatch):
    """Heads without weights hold runs of margin 0.2 where all embeddings are one point."""
    monkeypatch.setattr(collapse, "STUCK_STEPS", 5)
    build = runs_module.build

    def held(data):
        model = build(data)
        for head in (model.text_head, model.video_head) if data.config.margin == 0.2 else ():
            torch.nn.init.zeros_(head.f.weight)
            head.f.weight.requires_grad_(False)
            torch.nn.init.ones_(head.f.bias)
        return model

    monkeypatch.setattr(loop, "build", held)


@pytest.mark.parametrize("intra, floor", [(False, 0.4), (True, 0.8)])
def test_collapse_is_detected_and_not_reported(home, monkeypatch, one_point, intra, floor):
    """Embeddings that are all one point sit at 2α with the hardest negative, with the intra-modal terms at 4α."""
    config = small(contrast="triplet", negatives="hardest", objective="none", epochs=3, intra=intra)
    words = f"{4 if intra else 2} × margin = {floor}".replace(".", r"\.")
    with pytest.raises(Collapsed, match=words + ".*negatives = 'mean' or 'scheduled'") as first:
        fit(config, quiet=True)
    (kept,) = files.runs().glob("*")
    assert kept.suffix == ".collapsed" and not (kept / "metrics.json").exists() and files.damage(kept) is None
    assert kept == first.value.folder and Config(**json.loads((kept / "config.json").read_text())) == config.effective()
    assert len(first.value.trace) == 5 and np.allclose(pd.read_csv(kept / "trace.csv")["contrast"], floor, atol=1e-3)
    monkeypatch.setattr(loop.Training, "take_step", None)
    with pytest.raises(Collapsed, match=words) as again:  # it is not trained again
        fit(config, quiet=True)
    assert pickle.loads(pickle.dumps(again.value)).trace.equals(again.value.trace)  # as from a worker process


def test_a_study_with_a_collapsed_run_keeps_the_others(home, monkeypatch, one_point, capsys):
    changes = SMALL | {"contrast": "triplet", "negatives": "hardest", "objective": "none", "epochs": 1}
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=changes)
    grid = {"dead": {}, "alive": {"margin": 0.3}, "mean": {"margin": 0.3, "negatives": "mean"}}
    words = r"of \d runs failed; the others are kept.\ndead, seed 0: collapsed: in epoch 1: for 5 steps"
    for left in ("1 ", "1 "):
        with pytest.raises(TrainingError, match=left + words):
            work.run(grid)
        assert len(list(files.runs().glob("*.collapsed"))) == 1
        assert len(list(files.runs().glob("*/metrics.json"))) == 2 and not list(files.runs().glob("*.part"))
        assert "dead, seed 0: failed: collapsed" in capsys.readouterr().out
        monkeypatch.setattr(loop.Training, "take_step", None)  # the second time nothing is trained
    del grid["dead"]
    assert [len(runs) for runs in work.run(grid).values()] == [1, 1]


HARDEST = dict(contrast="triplet", negatives="hardest", objective="none", lr=1e-9, text_lr=1e-9, dropout=0.9)
CLIPS = {"clips": 480, "captions": 2, "false_negatives": 0.02}


def test_a_collapse_is_detected_without_dropout_at_the_end(home, monkeypatch):
    """Nearly one point, and so 2α: with dropout the similarities differ, without it they do not."""
    build = runs_module.build

    def nearly(data):
        model = build(data)
        for head in (model.text_head, model.video_head):
            torch.nn.init.normal_(head.f.weight, std=0.008)
            torch.nn.init.ones_(head.f.bias)
        return model

    monkeypatch.setattr(loop, "build", nearly)
    with pytest.raises(Collapsed, match="on validation clips the contrastive loss is not below 2 × margin") as caught:
        fit(small(corpus_options=CLIPS, batch=64, **HARDEST), quiet=True)
    assert (caught.value.trace["spread"] > collapse.EQUAL).all()


def test_what_has_not_learnt_is_a_run_with_a_remark(home, capsys):
    """Random heads: retrieval is chance, but the embeddings are not one point."""
    run = fit(small(corpus_options=CLIPS, batch=64, **HARDEST), quiet=True)
    assert "it has not learnt to retrieve: on 40 validation clips" in run.note and "collapse" not in run.note
    assert capsys.readouterr().out == f"warning: run {run.name}, none, seed 0: {run.note}\n"
    run = fit(small(corpus_options=CLIPS, batch=64, objective="none", epochs=12, lr=5e-3, text_lr=5e-3), quiet=True)
    assert run.note == "" and capsys.readouterr().out == ""


def test_loss_and_spread_without_dropout_by_numpy(home):
    """A hand-written eq. 1 on the embeddings of the first captions of the validation clips."""
    config = small(contrast="triplet", negatives="hardest", objective="none", dropout=0.5, batch=64)
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    data = Data(config, corpus)
    model = runs_module.build(data).train()
    c_t, c_v, clip = data.embed(model, "val")
    c_t = c_t[[np.flatnonzero(clip == i)[0] for i in range(len(c_v))]].double().numpy()
    c_v = c_v.double().numpy()
    s = c_t @ c_v.T / np.linalg.norm(c_t, axis=1)[:, None] / np.linalg.norm(c_v, axis=1)
    other = np.where(np.eye(len(s), dtype=bool), -np.inf, s)
    hinge = [np.maximum(0.2 - np.diag(s) + other.max(axis), 0).mean() for axis in (0, 1)]
    model.train()
    assert collapse.without_dropout(model, data, "val") == pytest.approx((sum(hinge), s.std(ddof=1)), rel=1e-4)


def test_another_corpus_under_the_same_name_is_refused(home):
    corpus = load_corpus("shapes", **SMALL["corpus_options"], seed=1)
    run = fit(small(objective="none"), corpus, quiet=True)
    with pytest.raises(CorpusError, match="pass that one"):
        run.load()
    model, data = run.load(corpus)
    assert data.corpus is corpus


def test_a_loss_that_is_not_a_number_is_named(home, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rows.py").write_text("def loss(text, video):\n    return (text - video).mean(1)\n")
    with pytest.raises(ConfigError, match="contrast = 'rows:loss' gives shape .* wanted one number"):
        fit(small(contrast="rows:loss"), quiet=True)


def test_a_run_that_learns_is_not_called_collapsed(home, monkeypatch):
    monkeypatch.setattr(collapse, "STUCK_STEPS", 5)
    fit(small(contrast="triplet", negatives="mean", objective="none", epochs=4), quiet=True)


def test_loss_that_is_not_finite_stops(home):
    with pytest.raises(TrainingError, match="lower lr"):
        fit(small(lr=1e30, text_lr=1e30, clip=1e30, objective="none", epochs=3), quiet=True)


def test_what_a_run_leaves_behind(home):
    config = small(epochs=3, validate_every=2)
    run = fit(config, quiet=True)
    corpus = load_corpus(config.corpus, **config.corpus_options)
    test = corpus.split("test")
    assert len(run.ranks["t2v"]) == 2 * len(test) == run.metrics["n_queries"]
    assert len(run.ranks["v2t best-caption"]) == len(run.ranks["v2t max-per-video"]) == len(test)
    for way in ("t2v", "v2t best-caption", "v2t max-per-video"):
        for name, value in retrieval.metrics(run.ranks[way]).items():
            assert run.metrics[f"{way} {name}"] == value
    assert list(run.log["epoch"]) == [2, 3]
    # the best validated epoch is the result
    score = run.log[["val R@1", "val R@5", "val R@10"]].sum(axis=1)
    assert run.metrics["best_epoch"] == run.log["epoch"][score.argmax()]
    assert run.config == config and files.damage(run.folder) is None
    assert run.provenance["corpus_sha"] == corpus.fingerprint
    # read back, it ranks as it did
    model, data = run.load()
    text, video, clip = data.embed(model, "test")
    assert np.array_equal(retrieval.search(text, video, clip), run.ranks["t2v"])


def test_the_trace_has_a_row_for_each_step(home):
    config = small(epochs=3)
    run = fit(config, quiet=True)
    steps = len(run.load()[1].order(0))
    assert list(run.trace["step"]) == list(range(3 * steps)) and list(run.trace.columns[1:]) == list(loop.TRACE)
    assert np.isfinite(run.trace).all(axis=None) and (run.trace[["spread", "gradient"]] > 0).all(axis=None)
    means = run.trace["contrast"].to_numpy().reshape(3, steps).mean(axis=1)
    assert run.log["contrast"].to_numpy() == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_a_row_of_the_trace_is_what_the_step_was(home, apart):
    """Similarities by numpy, and the norm of the gradient before it is clipped."""
    config = small(clip_apart=apart, clip=1e-3, dropout=0.0, decoder_dropout=0.0)
    work = loop.Training(config, load_corpus("shapes", **SMALL["corpus_options"]), files.runs() / "x", True)
    captions = work.data.order(0)[0]
    model, batch = work.raw.train(), work.data.batch(captions)
    terms = model(batch, 0.0)
    terms["loss"].backward()
    named = [(name, p.grad.double()) for name, p in model.named_parameters() if p.grad is not None]
    heads = sum((grad**2).sum().item() for name, grad in named if not name.startswith(RATES["decoder_lr"]))
    every = sum((grad**2).sum().item() for _, grad in named)
    embedded = model.embed_text(batch.text, batch.text_mask), model.embed_video(batch.video, batch.video_mask)
    c_t, c_v = (x.detach().double().numpy() for x in embedded)
    cosines = c_t @ c_v.T / np.linalg.norm(c_t, axis=1)[:, None] / np.linalg.norm(c_v, axis=1)
    model.zero_grad()
    leaves = [x.detach().requires_grad_() for x in embedded]
    norms = []
    for term in (model.contrast(*leaves, batch, 0.0, None), config.captioning * model.captioning(*leaves, batch)):
        norms.append(sum((x**2).sum().item() for x in torch.autograd.grad(term, leaves)) ** 0.5)
    work.take_step(captions)
    share = norms[1] / sum(norms)
    wanted = terms["contrast"].item(), cosines.std(ddof=1), (heads if apart else every) ** 0.5, share
    wanted += (terms["captioning"].item(),)
    assert work.trace == [pytest.approx(wanted, rel=1e-4)] and heads < every


@pytest.mark.parametrize("objective", ["none", "identity", "cross"])
def test_the_share_of_captioning_changes_nothing(home, tmp_path, monkeypatch, objective):
    """The same weights to the bit without it, and 0 where captioning has no gradient to the heads."""
    run = fit(small(objective=objective), quiet=True)
    assert (run.share is None) == (objective == "none") and (run.trace["share"] > 0).all() == (objective == "cross")
    if objective != "none":
        assert run.share == round(run.trace["share"].mean(), 4)
    (run.folder / "model.safetensors").rename(tmp_path / "with")
    shutil.rmtree(run.folder)
    monkeypatch.setattr(losses, "share", lambda *terms: torch.zeros(()))
    again = fit(small(objective=objective), quiet=True)
    weights, wanted = load_file(again.folder / "model.safetensors"), load_file(tmp_path / "with")
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in weights)
    assert again.folder == run.folder and again.trace["contrast"].equals(run.trace["contrast"])


def test_it_learns(home):
    """A few epochs of the real corpus lift validation recall well above chance."""
    run = fit(Config.preset("smoke", objective="none", epochs=12, lr=3e-3, text_lr=3e-3, dim=64), quiet=True)
    chance = 100 * 10 / 100  # R@10 of 100 clips
    assert run.log["val R@10"].iloc[-1] > 3 * chance


def test_schedules(home):
    data = load_corpus("shapes", **SMALL["corpus_options"])

    def factors(**changes):
        job = loop.Training(small(objective="none", epochs=4, **changes), data, files.runs() / "x", True)
        values = []
        for job.epoch in range(4):
            values.append(job.lr_factor(job.epoch / 4))
        return values

    assert factors(lr_schedule="constant") == [1, 1, 1, 1]
    assert factors(lr_schedule="decay") == pytest.approx([1, 0.95, 0.9025, 0.857375])
    assert factors(lr_schedule="cosine") == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


def test_bf16_runs_after_float32_in_one_process(home):
    fit(small(objective="cross", epochs=1), quiet=True)
    run = fit(small(objective="cross", epochs=1, precision="bf16"), quiet=True)
    assert np.isfinite(run.log["loss"]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu(home, precision):
    run = fit(small(objective="cross", precision=precision), quiet=True)
    assert run.provenance["device"] != "cpu" and np.isfinite(run.log["loss"]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_paper_s_heads_trained_on_a_gpu_are_saved(home):
    # cuDNN keeps the weights of the GRU in one block, which safetensors does not write
    run = fit(small(video_pooling="transformer", text_pooling="transformer", pre_encoder=True, epochs=1), quiet=True)
    model, _ = run.load()
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
