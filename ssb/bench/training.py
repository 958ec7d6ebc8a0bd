"""`ssb bench training`: how fast a training step and a ranking are, as ratios within one run on one thread.

Training steps of the `laptop` preset are compared with a literal implementation of the paper: captions padded to 100
tokens, states of the frozen text encoder computed again in every step, T5's own decoder, which computes padding too,
the states of all tokens where the head takes their mean alone, and torch's default Adam; the rows between leave some of
this out. The packed decoder is also compared with T5's own by itself.
`retrieval.search` is compared with a sorted matrix and with torchmetrics, called once
per query.
"""

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ssb import text
from ssb.bench.timing import ROUNDS, BenchmarkError, compare, write
from ssb.config import Config
from ssb.corpora.corpus import Corpus
from ssb.machine import threads
from ssb.metrics import retrieval
from ssb.model import Batch, SupportSetModel
from ssb.training.data import Data
from ssb.training.runs import build

LENGTH = 100  # tokens that the paper pads to
STEPS = {  # row → what is done literally
    "literal": {"padding", "states", "decoder", "tokens", "adam"},
    "states kept": {"padding", "decoder", "tokens", "adam"},
    "no padding": {"states", "decoder", "tokens", "adam"},
    "both": {"decoder", "tokens", "adam"},
    "both, packed decoder": {"tokens", "adam"},
    "both, means kept": {"decoder", "adam"},
    "both, fused Adam": {"decoder", "tokens"},
    "ours": set(),
}


def caption_loss(model: SupportSetModel, support: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """`SupportSetModel.caption_loss` as T5 computes it, at every position."""
    states = BaseModelOutput(last_hidden_state=support)
    return model.decoder(encoder_outputs=states, attention_mask=mask.long(), labels=labels).loss


def padded(x: Tensor, value) -> Tensor:
    """(B, L, …) → (B, LENGTH, …)."""
    return torch.cat([x, x.new_full((len(x), LENGTH - x.shape[1], *x.shape[2:]), value)], dim=1)


class Steps:
    """A model, its optimizer and its batches. literal: a value of STEPS. All begin with the same weights."""

    def __init__(self, data: Data, literal: set[str]):
        self.data, self.literal = data, literal
        captions = data.corpus.captions["text"].tolist()
        self.ids = text.Ragged.of(text.token_ids(data.tokenizer, captions, data.config.max_tokens))
        self.encoder = data.encoder.eval()
        self.text = data.text
        if "tokens" in literal:
            self.text = text.cached_states(data.config.text_encoder, self.encoder, self.ids)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = build(data)
        if "decoder" in literal:
            self.model.caption_loss = functools.partial(caption_loss, self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=data.config.lr, fused="adam" not in literal)

    def batch(self, captions: np.ndarray) -> Batch:
        """The pairs of these captions (B,), padded and encoded as `literal` says."""
        batch, source = self.data.batch(captions), self.ids if "states" in self.literal else self.text
        batch.text, batch.text_mask = source.padded(captions)
        if "padding" in self.literal:
            batch.text, batch.text_mask = padded(batch.text, 0), padded(batch.text_mask, False)
            batch.labels = padded(batch.labels, -100)
        if "states" in self.literal:
            with torch.no_grad():
                batch.text = self.encoder(input_ids=batch.text, attention_mask=batch.text_mask.long()).last_hidden_state
        return batch

    def take(self, captions: np.ndarray):
        """A training step on the pairs of these captions (B,)."""
        self.model.train()
        self.model(self.batch(captions))["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.data.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def training(config: Config, corpus: Corpus, steps: int) -> list[dict]:
    """Rows for the training steps of STEPS; steps: of each, in all rounds together."""
    data = Data(config, corpus)
    order = data.order(0)
    batches = np.resize(order, (max(1, steps // ROUNDS), order.shape[1]))
    trained = {f"step: {name}": Steps(data, literal) for name, literal in STEPS.items()}
    calls = {name: lambda x=x: [x.take(captions) for captions in batches] for name, x in trained.items()}
    return compare(calls, len(batches), "steps/s") + decoding(trained["step: ours"], batches)


def decoding(steps: Steps, batches: np.ndarray) -> list[dict]:
    """Rows for the loss of the decoder and its gradient, computed by T5 itself and packed. batches (n, B): captions."""
    width, pairs = steps.model.decoder.config.d_model, [steps.batch(captions) for captions in batches]
    generator = torch.Generator().manual_seed(0)
    support = [torch.randn(*pair.video_mask.shape, width, generator=generator) for pair in pairs]

    def decode(loss):
        for given, pair in zip(support, pairs):
            loss(steps.model, given.requires_grad_(), pair.video_mask, pair.labels).backward()
        steps.optimizer.zero_grad()

    ways = {"decoder: T5": caption_loss, "decoder: packed": SupportSetModel.caption_loss}
    return compare({name: functools.partial(decode, loss) for name, loss in ways.items()}, batches.size, "captions/s")


def ranking(queries: int, items: int) -> list[dict]:
    """Rows for four implementations of R@1; BenchmarkError if they do not agree or torchmetrics is missing."""
    try:
        from torchmetrics.functional.retrieval import retrieval_recall
    except ImportError:
        raise BenchmarkError("the benchmark compares with torchmetrics: pip install torchmetrics") from None
    generator = torch.Generator().manual_seed(0)
    gallery, target = torch.randn(items, 256, generator=generator), torch.arange(queries) % items
    query = gallery[target] + 6 * torch.randn(queries, 256, generator=generator)

    def similarity() -> Tensor:
        return F.normalize(query) @ F.normalize(gallery).T

    def by_torchmetrics() -> float:
        right = torch.arange(items) == target[:, None]
        recalls = [[retrieval_recall(s, r, top_k=k) for k in (1, 5, 10)] for s, r in zip(similarity(), right)]
        return 100 * torch.tensor(recalls)[:, 0].mean().item()

    def by_sorting() -> float:
        ranks = (similarity().argsort(dim=1, descending=True) == target[:, None]).nonzero()[:, 1]
        return 100 * (ranks == 0).double().mean().item()

    def by_values() -> float:  # as the public code of collaborative experts and CLIP4Clip ranks
        distance = -similarity().numpy()
        own = np.take_along_axis(distance, target.numpy()[:, None], axis=1)
        ranks = np.where(np.sort(distance, axis=1) == own)[1]
        return 100 * (ranks == 0).mean()

    def ours() -> float:
        return retrieval.metrics(retrieval.search(query, gallery, target))["R@1"]

    calls = {"ranks: torchmetrics": by_torchmetrics, "ranks: argsort": by_sorting, "ranks: np.sort": by_values}
    calls["ranks: ours"] = ours
    recalls = {f"{work():.3f}" for work in calls.values()}
    if len(recalls) > 1:
        raise BenchmarkError(f"R@1 differs: {recalls}")
    print(f"R@1 of {queries} queries among {items} items: {recalls.pop()} by all of them")
    return compare(calls, queries, "queries/s")


def bench(config: Config, corpus: Corpus, out: Path, steps: int = 30, queries: int = 1000, items: int = 1000):
    """Measure on one thread, print, and write one row per measurement to `out`; returns the frame."""
    with threads(1):
        return write(training(config, corpus, steps) + ranking(queries, items), out, corpus=corpus.name)
