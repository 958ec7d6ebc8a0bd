"""Support sets of another size than the batch: drawn from it, or reaching into a memory of earlier batches."""

from collections import Counter, deque
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import nn

from ssb import files, losses
from ssb.config import Config
from ssb.corpora.load import load_corpus
from ssb.model import Batch, MaskedBatchNorm, Past, SupportSetModel
from ssb.training import loop
from ssb.training import runs as runs_module
from ssb.training.loop import fit

VIDEO, TEXT, WORDS = 6, 5, 64  # widths of the features and of the text states; ids of the decoder
SUPPORTS = ("identity", "full", "hybrid", "cross")
OPTIONS = {"clips": 60, "captions": 2, "false_negatives": 0.05}  # 40 clips to train on


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("shapes", **OPTIONS)


def small(**changes) -> Config:
    return Config.preset("smoke", corpus_options=OPTIONS, batch=8, **changes)


def nothing(text, video):
    """A contrastive loss that leaves captioning alone."""
    return text.new_zeros(())


def model(objective="cross", **changes) -> SupportSetModel:
    """On text states, with every kind of weight at work and nothing left to chance."""
    still = dict(dropout=0.0, decoder_dropout=0.0, contrast=f"{__name__}:nothing", captioning=1.0)
    heads = dict(dim=8, pool_heads=2, pool_ffn=12, video_pooling="transformer", text_pooling="transformer")
    torch.manual_seed(0)
    made = SupportSetModel(
        Config.preset("smoke", objective=objective, **still | heads | changes), VIDEO, TEXT, vocabulary=WORDS
    )
    for norm in made.modules():
        if isinstance(norm, MaskedBatchNorm):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5), nn.init.uniform_(norm.running_var, 0.5, 2)
    return made.eval()


def pairs(size: int, seed: int = 0) -> Batch:
    """Captions and clips of different lengths; pair i is of clip i."""
    torch.manual_seed(seed)

    def mask(steps):
        return torch.arange(steps) < 1 + torch.randint(steps, (size, 1))

    labels = torch.randint(2, WORDS, (size, 6)).masked_fill(~mask(6), -100)
    inputs = torch.randn(size, 4, TEXT), mask(4), 2 * torch.randn(size, 5, VIDEO), mask(5)
    return Batch(*inputs, labels, clips=torch.arange(size))


def part(batch: Batch, rows) -> Batch:
    names = ("text", "text_mask", "video", "video_mask", "labels", "clips")
    return Batch(**{name: getattr(batch, name)[rows] for name in names})


def embedded(net, batch):
    return net.embed_text(batch.text, batch.text_mask), net.embed_video(batch.video, batch.video_mask)


def remembered(net, batch: Batch) -> Past:
    return Past(batch.clips, embedded(net, batch)[1].detach(), batch.video, batch.video_mask)


def gradients(net, loss) -> dict[str, torch.Tensor]:
    """Of each weight, 0 where the loss does not reach it."""
    net.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}


# smaller than the batch


def test_each_support_set_of_n_is_as_likely_as_any_other():
    """The own clip always, and each subset of n - 1 others of 7 in a share of 1 / C(7, n - 1) of the steps."""
    size, steps = 8, 600
    batch = pairs(size)
    for n in (2, 3, 7):
        net, counter = model(support_set=n), Counter()
        torch.manual_seed(1)
        for _ in range(steps):
            candidates = net.candidates(batch)
            assert candidates.shape == (size, size) and candidates.diagonal().all()
            assert (candidates.sum(dim=1) == n).all()
            for i, row in enumerate(candidates.tolist()):
                counter[frozenset((j - i) % size for j in range(size) if row[j] and j != i)] += 1
        counts = [counter[frozenset(others)] for others in combinations(range(1, size), n - 1)]
        assert sum(counts) == size * steps
        assert stats.chisquare(counts).pvalue > 1e-3


def test_support_sets_are_drawn_again_in_each_step_and_for_each_caption():
    net, batch = model(support_set=4), pairs(8)
    draws = [net.candidates(batch) for _ in range(4)]
    assert all(not torch.equal(a, b) for a, b in combinations(draws, 2))
    apart = 0
    for _ in range(50):  # of one ranking for two captions, what they see of the others would be nested
        one, two = ({j for j in range(2, 8) if row[j]} for row in net.candidates(batch)[:2])
        apart += not (one <= two or two <= one)
    assert apart > 10
    captions = {net(batch)["captioning"].item() for _ in range(4)}
    assert len(captions) == 4


@pytest.mark.parametrize("objective", SUPPORTS)
def test_captions_are_generated_from_the_drawn_clips_alone(objective, monkeypatch):
    """As if each caption had come with a batch of its own, of n clips."""
    net, batch, n = model(objective, support_set=3, temperature=0.5), pairs(7), 3
    drawn = net.candidates(batch)
    monkeypatch.setattr(net, "candidates", lambda batch: drawn)
    c_t, c_v = embedded(net, batch)
    logs, tokens = 0.0, 0
    for i, row in enumerate(drawn):
        clips = [i, *(j for j in torch.where(row)[0].tolist() if j != i)]  # the own first
        assert len(clips) == n
        weights = losses.support_set_weights(c_t[i : i + 1], c_v[clips], objective, 0.5)
        support = net.support(weights, batch.video[clips], batch.video_mask[clips])
        count = (batch.labels[i] != -100).sum()
        logs, tokens = logs + count * net.caption_loss(*support, batch.labels[i : i + 1]), tokens + count
    torch.testing.assert_close(net(batch)["captioning"], (logs / tokens).detach())


def test_cross_gives_no_weight_to_the_own_clip(monkeypatch):
    calls, weights = [], losses.support_set_weights
    monkeypatch.setattr(losses, "support_set_weights", lambda *given: calls.append(weights(*given)) or calls[-1])
    for n in (2, 3, 7, 11):
        net, batch = model(support_set=n), pairs(7)
        if n == 11:
            batch.past = remembered(net, replace(pairs(4, seed=1), clips=torch.arange(7, 11)))
        for _ in range(5):
            net(batch)
            w = calls.pop()
            assert w.shape == (7, max(n, 7)) and (w.diagonal() == 0).all() and ((w > 0).sum(dim=1) == n - 1).all()


# larger than the batch


@pytest.mark.parametrize("earlier", [3, 4, 9])
@pytest.mark.parametrize("objective", SUPPORTS)
def test_a_memory_is_a_larger_batch(objective, earlier):
    """Of weights that do not change, the last captions of one large batch: the same loss, and the same gradient but for
    what would go to the earlier clips."""
    net, size = model(objective, support_set=4 + earlier, temperature=0.5), 4
    large = pairs(earlier + size)
    batch = part(large, slice(earlier, None))
    batch.past = remembered(net, part(large, slice(earlier)))
    ours = net(batch)["captioning"]
    gradient = gradients(net, net(batch)["loss"])

    def in_one_go(c_v):
        weights = losses.support_set_weights(embedded(net, large)[0], c_v, objective, 0.5)[earlier:]
        return net.caption_loss(*net.support(weights, large.video, large.video_mask), batch.labels)

    c_v = embedded(net, large)[1]
    torch.testing.assert_close(ours, in_one_go(c_v).detach())
    wanted = gradients(net, in_one_go(torch.cat([c_v[:earlier].detach(), c_v[earlier:]])))
    torch.testing.assert_close(gradient, wanted, atol=2e-6, rtol=1e-4)
    reached = {head for head in ("text_head", "video_head") for name, x in gradient.items() if head in name and x.any()}
    assert reached == (set() if objective == "identity" else {"text_head", "video_head"})
    if reached:
        whole = gradients(net, in_one_go(embedded(net, large)[1]))
        assert any(
            not torch.allclose(x, whole[name], rtol=1e-2) for name, x in gradient.items() if "video_head" in name
        )


@pytest.mark.parametrize("objective", ["full", "hybrid", "cross"])
def test_clips_of_the_past_matter(objective):
    net, batch = model(objective, support_set=12, temperature=0.5), pairs(4)
    past = remembered(net, replace(pairs(8, seed=1), clips=torch.arange(4, 12)))
    terms = [net(replace(batch, past=None))["captioning"]]
    for other in (past, replace(past, c_v=-past.c_v), replace(past, video=past.video + 1)):
        terms.append(net(replace(batch, past=other))["captioning"])
    assert len({round(x.item(), 6) for x in terms}) == 4


@pytest.mark.parametrize("objective", SUPPORTS)
def test_an_own_clip_of_an_earlier_epoch_is_in_no_support_set(objective):
    """Caption 1 alone is scored, and the past is full of its clip: as without a past."""
    net, batch = model(objective, support_set=12), pairs(4)
    batch.labels[[0, 2, 3]] = -100
    stale = Past(torch.tensor([1] * 8), torch.randn(8, 8), torch.randn(8, 5, VIDEO), torch.ones(8, 5).bool())
    alone, with_past = (net(replace(batch, past=past)) for past in (None, stale))
    torch.testing.assert_close(with_past["captioning"], alone["captioning"])
    other = net(replace(batch, past=replace(stale, clips=torch.tensor([2] * 8))))
    assert (other["captioning"] == alone["captioning"]) == (objective == "identity")


@pytest.mark.parametrize("room", [3, 8, 19, 56])  # 56: more than there are clips to train on
def test_the_memory_is_first_in_first_out(room, corpus):
    """Each step gets the last `room` clips of the steps before, c_v as it was then, the features as they are."""
    work = loop.Training(small(support_set=8 + room), corpus, files.runs() / "x", quiet=True)
    kept, given, stale = deque(maxlen=room), [], 0
    work.model.register_forward_pre_hook(lambda net, inputs: given.append(inputs[0]))
    work.model.register_forward_hook(
        lambda net, inputs, terms: kept.extend(zip(inputs[0].clips.tolist(), terms["c_v"].clone()))
    )
    for step, captions in enumerate(np.concatenate([work.data.order(epoch) for epoch in range(3)])):
        before = list(kept)
        work.take_step(captions)
        batch = given.pop()
        assert batch.clips.tolist() == work.data.clip_of[captions].tolist()
        if step == 0:
            assert batch.past is None
            continue
        clips = [clip for clip, _ in before]
        assert len(clips) == min(room, 8 * step) and batch.past.clips.tolist() == clips
        assert torch.equal(batch.past.c_v, torch.stack([c_v for _, c_v in before]))
        assert torch.equal(batch.past.video, work.data.video[clips])
        assert torch.equal(batch.past.video_mask, work.data.video_mask[clips])
        assert not batch.past.c_v.requires_grad and batch.past.c_v.grad_fn is None
        for own, row in zip(batch.clips.tolist(), work.raw.candidates(batch).tolist()):
            assert row == [True] * 8 + [clip != own for clip in clips]
            stale += own in clips
    assert stale


@pytest.mark.parametrize("support_set", [None, 2, 8])
def test_there_is_no_memory_where_the_batch_is_enough(support_set, corpus):
    work = loop.Training(small(support_set=support_set), corpus, files.runs() / "x", quiet=True)
    for captions in work.data.order(0)[:2]:
        work.take_step(captions)
    assert work.memory == ()


# whole runs


def content(run) -> dict[str, bytes]:
    """What a run is, without its settings and what a clock says."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(run.folder / "model.safetensors").items()}
    texts = {name: (run.folder / name).read_bytes() for name in ("metrics.json", "log.csv", "trace.csv")}
    return weights | texts | {name: ranks.tobytes() for name, ranks in run.ranks.items()}


def test_a_support_set_of_the_batchs_size_is_the_batch(corpus):
    runs = {n: fit(small(support_set=n, epochs=1), corpus, quiet=True) for n in (None, 4, 8, 20)}
    assert len({run.name for run in runs.values()}) == 4
    assert content(runs[8]) == content(runs[None])
    for n in (4, 20):
        assert content(runs[n]) != content(runs[None])


class Killed(BaseException):
    """What no code of the library catches."""


def killed_and_resumed(config, corpus, patch) -> tuple[runs_module.Run, dict]:
    """A run that ends in its seventh step and is taken up there, and its checkpoint of the sixth."""
    step, taken = loop.Training.take_step, []

    def until_killed(self, captions):
        if (self.epoch, self.step) == (1, 1):
            raise Killed
        step(self, captions)

    def recorded(self, captions):
        taken.append((self.epoch, self.step))
        step(self, captions)

    patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    patch.setattr(loop.Training, "take_step", until_killed)
    with pytest.raises(Killed):
        fit(config, corpus, quiet=True)
    path = max(files.runs().glob("*.part/checkpoint-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    patch.setattr(loop.Training, "take_step", recorded)
    run = fit(config, corpus, quiet=True)
    assert taken == [(1, 1), (1, 2), (1, 3), (1, 4)]  # of five steps an epoch
    return run, checkpoint


@pytest.mark.parametrize("support_set, kept", [(30, 22), (3, 0)], ids=["memory", "drawn"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(support_set, kept, corpus, tmp_path, monkeypatch):
    config = small(support_set=support_set)
    uninterrupted = content(fit(config, corpus, quiet=True))
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "killed"))
    run, checkpoint = killed_and_resumed(config, corpus, monkeypatch)
    assert [len(x) for x in checkpoint["memory"]] == ([kept, kept] if kept else [])
    assert content(run) == uninterrupted


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_goes_on_with_its_memory(corpus, monkeypatch):
    run, _ = killed_and_resumed(small(support_set=30), corpus, monkeypatch)
    assert len(run.trace) == 10 and run.provenance["device"] != "cpu"
