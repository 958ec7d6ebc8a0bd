"""The training loop: same bits, resumption after a kill, collapse, what a run leaves behind."""

import importlib
import linecache
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ssb import files, retrieval, train
from ssb.config import Config, ConfigError
from ssb.corpus import CorpusError, load_corpus
from ssb.train import Collapsed, TrainingError, fit

SMALL = dict(corpus_options={"clips": 120, "captions": 2, "false_negatives": 0.05}, batch=16)


def small(**changes) -> Config:
    return Config.preset("smoke", **{**SMALL, **changes})


def content(run) -> dict[str, bytes]:
    """What a run is, without what a clock says; of the weights the bits, for safetensors orders its header at will."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(run.folder / "model.safetensors").items()}
    texts = {name: (run.folder / name).read_bytes() for name in ("config.json", "metrics.json", "log.csv")}
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
    torch.manual_seed(99)  # what else the process does is none of the run's business
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
        data[objective] = train.Data(small(objective=objective), corpus)
        heads[objective] = train.build(data[objective]).state_dict()
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


@pytest.mark.parametrize("epoch", ["clips", "pairs"])
def test_an_epoch_sees_each_training_clip_or_pair_once(home, epoch):
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    data = train.Data(small(epoch=epoch, batch=8), corpus)
    seen = data.order(0).ravel()
    clips = data.clip_of[seen]
    assert np.isin(clips, corpus.split("train")).all()
    assert len(np.unique(clips if epoch == "clips" else seen)) == len(seen)
    whole = len(corpus.split("train")) * (1 if epoch == "clips" else 2)
    assert whole - 3 * 8 < len(seen) <= whole
    for batch in data.order(1):
        assert len(np.unique(data.clip_of[batch])) == len(batch)  # no clip is its own negative or in its own support


def test_a_finished_run_is_not_trained_again(home, monkeypatch):
    run = fit(small(objective="none"), quiet=True)
    monkeypatch.setattr(train.Training, "take_step", None)
    assert fit(small(objective="none"), quiet=True).folder == run.folder
    # without captioning its settings are nobody's, so tables that vary them share the run
    assert fit(small(objective="none", captioning=3.0, temperature=0.7), quiet=True).folder == run.folder


KILLED = """
import json, sys, time
from ssb import train
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
    step = train.Training.take_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train.Training, "take_step", lambda self, c: (steps.append((self.epoch, self.step)), step(self, c))
        )
        resumed = fit(config, quiet=True)
    assert steps[0] in [(1, 4), (1, 5)]  # not from the start
    assert not list(files.runs().glob("*.part"))

    home("unbroken")
    assert content(resumed) == content(fit(config, quiet=True))


def test_collapse_is_found_and_not_reported(home, monkeypatch):
    """Embeddings that are all one point sit at 2α with the hardest negative; held there by a head without weights."""
    monkeypatch.setattr(train, "STUCK_STEPS", 5)
    config = small(contrast="triplet", negatives="hardest", objective="none", epochs=3)
    build = train.build

    def one_point(data):
        model = build(data)
        for head in (model.text_head, model.video_head):
            torch.nn.init.zeros_(head.f.weight)
            head.f.weight.requires_grad_(False)
            torch.nn.init.ones_(head.f.bias)
        return model

    monkeypatch.setattr(train, "build", one_point)
    with pytest.raises(Collapsed, match=r"2 × margin = 0\.4.*negatives = 'mean' or 'scheduled'"):
        fit(config, quiet=True)
    (kept,) = files.runs().glob("*")
    assert kept.suffix == ".collapsed" and not (kept / "metrics.json").exists()
    assert np.allclose(pd.read_csv(kept / "trace.csv")["contrast"], 0.4, atol=1e-3)
    monkeypatch.setattr(train.Training, "take_step", None)
    with pytest.raises(Collapsed, match=r"2 × margin = 0\.4") as again:  # it is not trained again
        fit(config, quiet=True)
    assert pickle.loads(pickle.dumps(again.value)).trace.equals(again.value.trace)  # as from a worker process


def test_a_collapse_behind_dropout_is_found_in_the_end(home):
    """Text from scratch, the hardest negative and dropout: the loss stays above 2α, the similarities never quite equal,
    and retrieval is chance."""
    options = {"clips": 480, "captions": 2, "false_negatives": 0.02}
    config = small(
        corpus_options=options, contrast="triplet", negatives="hardest", objective="none", epochs=4, batch=64
    )
    with pytest.raises(Collapsed, match="validation recall is that of guessing"):
        fit(config.replace(dropout=0.9, lr=1e-5), quiet=True)


def test_another_corpus_under_the_same_name_is_refused(home):
    corpus = load_corpus("shapes", **SMALL["corpus_options"], seed=1)
    run = fit(small(objective="none"), corpus, quiet=True)
    with pytest.raises(CorpusError, match="pass that one"):
        run.load()
    model, data = run.load(corpus)
    assert data.corpus is corpus


def test_an_edited_loss_or_model_is_another_run(home, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    corpus = load_corpus("shapes", **SMALL["corpus_options"])
    source = tmp_path / "edited.py"
    names = []
    for factor in (1, 2):
        source.write_text(f"def loss(text, video):\n    return {factor} * ((text - video) ** 2).mean()\n")
        linecache.clearcache()
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        names.append(train.run_name(small(contrast="edited:loss"), corpus))
    (tmp_path / "model").mkdir()
    for weights in (b"a", b"b"):
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        names.append(train.run_name(small(text_encoder=str(tmp_path / "model")), corpus))
    assert len(set(names)) == 4


def test_a_loss_that_is_not_a_number_is_named(home, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rows.py").write_text("def loss(text, video):\n    return (text - video).mean(1)\n")
    with pytest.raises(ConfigError, match="contrast = 'rows:loss' gives shape .* wanted one number"):
        fit(small(contrast="rows:loss"), quiet=True)


def test_a_run_that_learns_is_not_called_collapsed(home, monkeypatch):
    monkeypatch.setattr(train, "STUCK_STEPS", 5)
    fit(small(contrast="triplet", negatives="mean", objective="none", epochs=4), quiet=True)


def test_loss_that_is_not_finite_stops(home):
    with pytest.raises(TrainingError, match="lower lr"):
        fit(small(lr=1e30, text_lr=1e30, clip=1e30, objective="none", epochs=3), quiet=True)


def test_damaged_checkpoint_is_named(home):
    config = small(objective="none")
    corpus = load_corpus(config.corpus, **config.corpus_options)
    path = files.runs() / f"{train.run_name(config.effective(), corpus)}.part" / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    with pytest.raises(TrainingError, match="checkpoint.pt cannot be read.*delete it"):
        fit(config, corpus, quiet=True)


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
    assert run.config == config
    assert run.provenance["corpus_sha"] == corpus.fingerprint
    # read back, it ranks as it did
    model, data = run.load()
    text, video, clip = data.embed(model, "test")
    assert np.array_equal(retrieval.search(text, video, clip), run.ranks["t2v"])


def test_it_learns(home):
    """A few epochs of the real corpus lift validation recall well above chance."""
    run = fit(Config.preset("smoke", objective="none", epochs=12, lr=3e-3, text_lr=3e-3, dim=64), quiet=True)
    chance = 100 * 10 / 100  # R@10 of 100 clips
    assert run.log["val R@10"].iloc[-1] > 3 * chance


def test_schedules(home):
    data = load_corpus("shapes", **SMALL["corpus_options"])

    def factors(**changes):
        job = train.Training(small(objective="none", epochs=4, **changes), data, files.runs() / "x", True)
        found = []
        for job.epoch in range(4):
            found.append(job.lr_factor(job.epoch / 4))
        return found

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
