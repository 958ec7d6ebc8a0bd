"""`ssb bench training`: how fast a training step and a ranking are, as ratios within one run on one thread.

Training steps of the `laptop` preset against the same model trained the literal way: captions padded to 100 tokens,
states of the frozen text encoder computed again in every step, the vocabulary scored at padding too; the rows between
leave some of this out. `retrieval.search` against a sorted matrix and torchmetrics called once per query.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ssb import files, text
from ssb.bench.timing import ROUNDS, BenchmarkError, interleaved
from ssb.config import Config
from ssb.corpora.corpus import Corpus
from ssb.machine import machine, threads
from ssb.metrics import retrieval
from ssb.model import Batch, SupportSetModel
from ssb.training.data import Data
from ssb.training.runs import build

LENGTH = 100  # tokens that the paper pads to
STEPS = {  # row → what it does the literal way
    "literal": {"padding", "states", "vocabulary"},
    "states kept": {"padding", "vocabulary"},
    "no padding": {"states", "vocabulary"},
    "both": {"vocabulary"},
    "ours": set(),
}


class Literal(SupportSetModel):
    """The same model; the vocabulary is scored at every position."""

    def caption_loss(self, support: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        states = BaseModelOutput(last_hidden_state=support)
        return self.decoder(encoder_outputs=states, attention_mask=mask.long(), labels=labels).loss


def padded(x: Tensor, value) -> Tensor:
    """(B, L, …) → (B, LENGTH, …)."""
    return torch.cat([x, x.new_full((len(x), LENGTH - x.shape[1], *x.shape[2:]), value)], dim=1)


class Steps:
    """A model, its optimizer and its batches, made in one of the ways of STEPS. All begin with the same weights."""

    def __init__(self, data: Data, way: set[str]):
        self.data, self.way = data, way
        captions = data.corpus.captions["text"].tolist()
        self.ids = text.Ragged.of(text.token_ids(data.tokenizer, captions, data.config.max_tokens))
        self.encoder = data.encoder.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = build(data)
        if "vocabulary" in way:
            self.model.__class__ = Literal
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=data.config.lr)

    def batch(self, captions: np.ndarray) -> Batch:
        batch = self.data.batch(captions)
        if "states" in self.way:
            batch.text, batch.text_mask = self.ids.padded(captions)
        if "padding" in self.way:
            batch.text, batch.text_mask = padded(batch.text, 0), padded(batch.text_mask, False)
            batch.labels = padded(batch.labels, -100)
        if "states" in self.way:
            with torch.no_grad():
                batch.text = self.encoder(input_ids=batch.text, attention_mask=batch.text_mask.long()).last_hidden_state
        return batch

    def take(self, captions: np.ndarray):
        self.model.train()
        self.model(self.batch(captions))["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.data.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def training(config: Config, corpus: Corpus, steps: int) -> list[dict]:
    data = Data(config, corpus)
    order = data.order(0)
    chosen = np.resize(order, (max(1, steps // ROUNDS), order.shape[1]))
    ways = {f"step: {name}": Steps(data, way) for name, way in STEPS.items()}
    works = {name: lambda way=way: [way.take(captions) for captions in chosen] for name, way in ways.items()}
    return interleaved(works, len(chosen), "steps/s")


def ranking(queries: int, items: int) -> list[dict]:
    """Three ways to R@1; BenchmarkError if they do not agree or torchmetrics is missing."""
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
        found = [[retrieval_recall(s, r, top_k=k) for k in (1, 5, 10)] for s, r in zip(similarity(), right)]
        return 100 * torch.tensor(found)[:, 0].mean().item()

    def by_sorting() -> float:
        places = (similarity().argsort(dim=1, descending=True) == target[:, None]).nonzero()[:, 1]
        return 100 * (places == 0).double().mean().item()

    def ours() -> float:
        return retrieval.metrics(retrieval.search(query, gallery, target))["R@1"]

    works = {"ranks: torchmetrics": by_torchmetrics, "ranks: sorted matrix": by_sorting, "ranks: ours": ours}
    found = {f"{work():.3f}" for work in works.values()}
    if len(found) > 1:
        raise BenchmarkError(f"R@1 differs: {found}")
    print(f"R@1 of {queries} queries among {items} items: {found.pop()} by all three")
    return interleaved(works, queries, "queries/s")


def bench(config: Config, corpus: Corpus, out: Path, steps: int = 30, queries: int = 2000, items: int = 500):
    """Measure on one thread, print, and write one row per measurement to `out`; returns the frame."""
    with threads(1):
        frame = pd.DataFrame(training(config, corpus, steps) + ranking(queries, items))
        origin = machine()
    print(frame.to_string(index=False))
    frame = frame.assign(corpus=corpus.name, **origin)
    with files.written(out) as draft:
        frame.to_csv(draft, index=False)
    return frame
