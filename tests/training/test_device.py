"""The paths of a GPU, on a CPU: what a step waits for, what lies where, and the same numbers as without them."""

import contextlib
import copy
import math
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from ssb import Config, Study, TrainingError, fit, load_corpus, machine
from ssb.text import Ragged
from ssb.training import device, loop
from ssb.training.data import Data
from ssb.training.loop import Training
from ssb.training.runs import build

OPTIONS = {"clips": 120, "captions": 2, "false_negatives": 0.05}
NARROW = dict(dim=32, pool_ffn=32, vocabulary=512, scratch_width=32, scratch_text_width=32, scratch_heads=2, batch=8)
SCRATCH = dict(text_encoder="scratch", decoder="scratch", corpus="shapes", corpus_options=OPTIONS)
PAPER = Config(**SCRATCH, **NARROW)  # but for its widths and its pretrained models
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "repeat_interleave", "unique", "_unique2"}
WAITS |= {"unique_dim", "unique_consecutive", "equal", "bincount", "histc", "nonzero_static"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Waits(TorchDispatchMode):
    """Counts the operations for whose result, or for whose size, the host waits where the tensors are on a GPU."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        mask = name in INDEXED and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        self.counted[name] += name in WAITS or mask
        return function(*args, **(kwargs or {}))


@pytest.fixture
def like_a_gpu(monkeypatch):
    """The CPU counts as a GPU. `like_a_gpu(fits)`: whether the data fit there."""
    monkeypatch.setattr(machine, "on_gpu", lambda device: True)
    return lambda fits: monkeypatch.setattr(device, "fits", lambda size, device: fits)


def training(config: Config, tmp_path) -> Training:
    return Training(config, load_corpus(config.corpus, **config.corpus_options), tmp_path / "run", quiet=True)


def test_the_counter_sees_what_waits():
    x = torch.arange(4.0)
    for work in (
        lambda: x.sum().item(),
        lambda: bool(x.all()),
        lambda: x[x > 1],
        lambda: x.clone().index_put_((x > 1,), x.new_zeros(())),
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.masked_select(x, x > 1),
        lambda: torch.repeat_interleave(x, x.long()),
    ):
        with Waits() as waits:
            work()
        assert sum(waits.counted.values()) >= 1
    with Waits() as waits:
        x[torch.tensor([1, 2])] + x.masked_fill(x > 1, 0).sum()
    assert not any(waits.counted.values())


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("changes", [dict(support_set=20), dict(support_set=4), {}, dict(intra=True, clip_apart=True)])
def test_a_step_of_the_paper_waits_for_the_text_encoder_alone(home, tmp_path, like_a_gpu, fits, changes):
    """Which, in transformers, looks whether anything is masked. The numbers that are logged are read later."""
    like_a_gpu(fits)
    work = training(PAPER.replace(**changes), tmp_path)
    order = work.data.order(0)
    for captions in order[:4]:  # until the memory is full
        work.take_step(captions)
    with Waits() as waits:
        work.take_step(order[4])
    encoded = 2 if changes.get("intra") else 1
    assert +waits.counted == {"_local_scalar_dense": encoded}
    assert len(work.unread) == 1 and len(work.trace) == 4
    assert len(work.memory) == (2 if changes.get("support_set") == 20 else 0)


def test_a_step_on_a_cpu_waits_little_more(home, tmp_path):
    work = training(PAPER.replace(support_set=20), tmp_path)
    order = work.data.order(0)
    for captions in order[:4]:
        work.take_step(captions)
    with Waits() as waits:
        work.take_step(order[4])
    assert sum(waits.counted.values()) <= 11


def test_loss_and_gradient_need_no_value_of_a_tensor(home, like_a_gpu, monkeypatch):
    """On the meta device, whose tensors have shapes alone: what would read one, or mix it with the host's, fails."""
    like_a_gpu(True)
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *given, **options: False)
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: contextlib.nullcontext())  # knows no meta
    config = PAPER.replace(support_set=20, schedule=(0.0, 1.0))
    data = Data(config, load_corpus(config.corpus, **config.corpus_options), "meta")
    model, order = build(data).to("meta").train(), data.order(0)
    before = data.batch(order[0])
    batch = data.batch(order[1], (before.clips, torch.zeros(8, 32, device="meta")))
    terms = model(batch, 0.5)
    terms["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    numbers = torch.stack([terms["loss"], terms["similarity"].std(), norm])
    encoder, decoder = model.encoder.encoder.block, model.decoder.decoder.block  # a copy to meta unties the vectors
    trained = [*model.head_parameters(), *encoder.parameters(), *decoder.parameters()]
    assert numbers.device.type == "meta" and all(p.grad is not None for p in trained)
    with pytest.raises(RuntimeError, match="meta"):
        numbers.tolist()


# The same numbers


@pytest.mark.parametrize("freeze", [False, True])
def test_batches_from_the_device_are_those_of_the_host(home, monkeypatch, freeze):
    frozen = dict(text_encoder="sentence-transformers/all-MiniLM-L6-v2", freeze_text=True) if freeze else {}
    config = PAPER.replace(intra=True, **frozen)
    corpus = load_corpus(config.corpus, **config.corpus_options)
    host = Data(config, corpus)
    monkeypatch.setattr(device, "fits", lambda size, device: True)
    kept = Data(config, corpus)
    assert kept.clips.resident and kept.texts.resident and not host.texts.resident
    memory = torch.tensor([3, 1, 2]), torch.zeros(3, 32)
    for captions in host.order(0)[:5]:
        ours, theirs = (vars(data.batch(captions, memory)) for data in (kept, host))
        assert ours.keys() == theirs.keys() and ours["other"] is not None and ours["labels"] is not None
        for name, value in vars(ours.pop("past")).items():
            assert torch.equal(value, getattr(theirs["past"], name)), name
        for name, value in ours.items():
            same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            assert same and (not isinstance(value, torch.Tensor) or value.dtype == theirs[name].dtype), name


def test_a_batch_made_in_the_background_is_the_same(home, like_a_gpu):
    config = PAPER.replace(support_set=20)
    corpus = load_corpus(config.corpus, **config.corpus_options)
    like_a_gpu(True)
    resident = Data(config, corpus)
    like_a_gpu(False)
    data = Data(config, corpus)
    assert data.background and not resident.background
    order, made = data.order(0), data._made
    asked = []
    data._made = lambda rows: asked.append(rows.tolist()) or made(rows)
    data.prefetch(order[1])
    data.prefetch(order[0])
    for captions in order[:2]:
        ours, theirs = data.batch(captions), resident.batch(captions)
        for name in ("text", "text_mask", "video", "video_mask", "labels", "clips"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert asked == [order[1].tolist(), order[0].tolist()] and not data.ahead
    resident.prefetch(order[0])
    assert not resident.ahead


def test_float16_only_where_it_is_exact(like_a_gpu):
    like_a_gpu(True)
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(300, 4, 5, generator=generator).half().float()
    mask = torch.rand(300, 4, generator=generator) < 0.7
    rough, large = exact.clone(), exact.clone()
    rough[299, 3, 4] = 1 + 2**-12
    large[0, 0, 0] = 1e6  # infinite as float16
    for values, stored in ((exact, torch.float16), (rough, torch.float32), (large, torch.float32)):
        for fits in (True, False):
            like_a_gpu(fits)
            clips = device.Clips(values, mask, "cpu")
            rows = torch.tensor([299, 0, 7, 7])
            assert clips.stored == stored and clips.values.dtype == (stored if fits else torch.float32)
            found, found_mask = clips.of(rows)
            assert found.dtype == torch.float32 and torch.equal(found, values[rows])
            assert torch.equal(found_mask, mask[rows])


@pytest.mark.parametrize("width", [(), (3,)])
def test_captions_are_padded_to_few_lengths(like_a_gpu, width):
    lengths = [1, 3, 8, 9, 19, 16, 2]
    generator = np.random.default_rng(0)
    rows = [generator.integers(1, 9, (length, *width)) for length in lengths]
    texts = Ragged.of(rows)
    for fits in (True, False):
        like_a_gpu(fits)
        store = device.Texts(texts, "cpu")
        for chosen, most in (([0, 1], 8), ([2, 6], 8), ([3], 16), ([5, 0, 3], 16), ([4, 2], 19)):  # 19: none is longer
            values, mask = store.padded(np.array(chosen))
            assert values.shape == (len(chosen), most, *width) and mask.shape == (len(chosen), most)
            for row, value, real in zip(chosen, values, mask):
                assert np.array_equal(value[real].numpy(), rows[row]) and not value[~real].any()
                assert real.sum() == lengths[row]


def test_a_run_like_that_of_a_gpu_has_the_same_numbers(home, like_a_gpu, monkeypatch):
    """Without dropout, whose draws depend on how long captions are padded."""
    config = PAPER.replace(dropout=0.0, decoder_dropout=0.0, epochs=2, support_set=20, standardise=True)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "on_gpu", lambda device: False)
        wanted = fit(config, quiet=True)
    for fits in (True, False):
        like_a_gpu(fits)
        monkeypatch.setenv("SSB_HOME", str(home / str(fits)))
        run = fit(config, quiet=True)
        assert len(run.trace) == len(wanted.trace) and torch.get_float32_matmul_precision() == "highest"
        pd.testing.assert_frame_equal(run.trace, wanted.trace, rtol=1e-2, atol=1e-3)
        pd.testing.assert_frame_equal(run.trace[:3], wanted.trace[:3], rtol=1e-4, atol=1e-5)
        assert not np.array_equal(run.trace, wanted.trace)  # captions are padded further


# Numbers that are read later


@pytest.mark.parametrize("later", [False, True])
def test_a_loss_that_is_not_finite_is_found_a_step_later(home, tmp_path, monkeypatch, like_a_gpu, later):
    like_a_gpu(False)
    monkeypatch.setattr(machine, "on_gpu", lambda device: later)
    work = training(PAPER.replace(objective="none"), tmp_path)
    order = work.data.order(0)
    work.take_step(order[0])
    with torch.no_grad():
        next(work.raw.video_head.parameters()).fill_(math.nan)
    if later:
        work.take_step(order[1])
    with pytest.raises(TrainingError, match="loss is nan in epoch 1; lower lr = 5e-05"):
        work.take_step(order[2])
    assert len(work.trace) == 1


def test_no_checkpoint_and_no_validation_of_what_was_not_read(home, tmp_path, like_a_gpu):
    like_a_gpu(True)
    work = training(PAPER.replace(objective="none"), tmp_path)
    work.start = 0.0
    order = work.data.order(0)
    work.take_step(order[0])
    sound = copy.deepcopy(work.raw.state_dict())
    for finish in (work.save, work.validate):
        with torch.no_grad():
            next(work.raw.video_head.parameters()).fill_(math.nan)
        work.take_step(order[1])
        with pytest.raises(TrainingError, match="loss is nan"):
            finish()
        work.raw.load_state_dict(sound)
    assert not work.checkpoints() and not work.log


def test_only_training_rounds_to_tf32(like_a_gpu, home, tmp_path, monkeypatch):
    like_a_gpu(True)
    work, seen = training(PAPER.replace(objective="none"), tmp_path), []
    work.raw.text_head.register_forward_hook(lambda *given: seen.append(torch.get_float32_matmul_precision()))
    work.take_step(work.data.order(0)[0])
    work.start = 0.0
    work.validate()
    assert set(seen) == {"high", "highest"} and seen[0] == "high" and "high" not in seen[1:]
    with pytest.raises(KeyError), device.tf32("cpu"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    monkeypatch.undo()
    with device.tf32("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"


# Checkpoints


@pytest.mark.parametrize("cost, least", [(0.125, 30), (1.25, 30), (20, 400)])
def test_checkpoints_cost_at_most_a_twentieth(home, tmp_path, monkeypatch, cost, least):
    """On a clock that only steps, of a second each, and checkpoints move."""
    now, begun, save = [0.0], [], torch.save

    def slow(state, path):
        begun.append(now[0])
        now[0] += cost
        save({}, path)

    def step(self, captions):
        now[0] += 1.0
        self.sums = {"steps": 1.0}

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop.torch, "save", slow)
    monkeypatch.setattr(Training, "take_step", step)
    monkeypatch.setattr(Training, "validate", lambda self: None)
    monkeypatch.setattr(Training, "finish", lambda self: None)
    work = training(PAPER.replace(objective="none", epochs=60), tmp_path)
    work.run()
    pauses = np.diff(begun) - cost
    assert begun[0] == 31 and (pauses > least).all() and (pauses <= least + 1).all()
    assert len(begun) * cost <= 0.05 * now[0] + cost


@pytest.mark.parametrize("jobs, at_once", [(-1, 1), (3, 3)])
def test_a_gpu_trains_one_run_at_a_time_unless_told_otherwise(home, monkeypatch, jobs, at_once):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Study("t", preset="smoke", jobs=jobs).jobs == at_once


@pytest.mark.gpu
def test_runs_side_by_side_on_a_gpu_are_those_of_one_at_a_time(home, monkeypatch):
    changes = SCRATCH | NARROW | dict(epochs=1, objective="none")
    trained = {}
    for jobs in (1, 2):
        monkeypatch.setenv("SSB_HOME", str(home / str(jobs)))
        work = Study("t", preset="smoke", seeds=[0, 1], jobs=jobs, changes=changes)
        trained[jobs] = [run.metrics["t2v R@1"] for run in work.run({"none": {}})["none"]]
    assert trained[1] == pytest.approx(trained[2], abs=5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_on_a_gpu_waits_for_the_text_encoder_alone(home, tmp_path, precision):
    """By CUDA's own account, which also knows copies."""
    work = training(PAPER.replace(support_set=20, precision=precision), tmp_path)
    order = work.data.order(0)
    for captions in order[:4]:
        work.take_step(captions)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work.take_step(order[4])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in caught) <= 2
    assert work.data.clips.resident and work.data.texts.resident
