"""python -m ssb.bench: how fast a training step and a ranking are, as ratios within one run on one thread.

A training step of the `laptop` preset is compared with the same model trained the literal way: captions padded to 100
tokens, states of the frozen text encoder computed again in every step, and the vocabulary scored at padding too. Rows
between the two take away one of these at a time, so that one sees what each is worth. `retrieval.search` is compared
with a full sorted matrix and with torchmetrics called once per query.
"""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ssb import files, retrieval, text
from ssb.batches import Data
from ssb.config import Config
from ssb.corpus import Corpus, load_corpus
from ssb.model import Batch, SupportSetModel
from ssb.train import build, provenance

LENGTH = 100  # tokens that the paper pads to
# What each row does the literal way; the last is the library as it is.
STEPS = {
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
    tail = x.new_full((len(x), LENGTH - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, tail], dim=1)


class Steps:
    """One model and its optimizer, and batches made in one of the ways of STEPS."""

    def __init__(self, data: Data, ids: text.Ragged, way: set[str]):
        self.data, self.ids, self.way = data, ids, way
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = build(data)
        if "vocabulary" in way:
            self.model.__class__ = Literal
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=data.config.lr)

    def batch(self, captions: np.ndarray) -> Batch:
        batch = self.data.batch(captions)
        if "states" in self.way:
            tokens, mask = self.ids.padded(captions)
            if "padding" in self.way:
                tokens, mask = padded(tokens, 0), padded(mask, False)
            with torch.no_grad():
                batch.text = self.data.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            batch.text_mask = mask
        elif "padding" in self.way:
            batch.text, batch.text_mask = padded(batch.text, 0), padded(batch.text_mask, False)
        if "padding" in self.way:
            batch.labels = padded(batch.labels, -100)
        return batch

    def loss(self, captions: np.ndarray) -> Tensor:
        return self.model(self.batch(captions))["loss"]

    def take(self, captions: np.ndarray):
        self.model.train()
        self.loss(captions).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.data.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def ways_of_stepping(config: Config, corpus: Corpus) -> tuple[dict[str, Steps], np.ndarray]:
    """One `Steps` for each of STEPS, all with the same weights, and the captions of an epoch's batches."""
    data = Data(config, corpus)
    data.encoder.eval()
    ids = text.Ragged.of(text.token_ids(data.tokenizer, corpus.captions["text"].tolist(), config.max_tokens))
    return {name: Steps(data, ids, way) for name, way in STEPS.items()}, data.order(0)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def interleaved(works: dict[str, Callable[[], object]], repeats: int, amount: int, unit: str) -> list[dict]:
    """Rates of each work, amount / seconds, measured A B C A B C …, so that a busy minute hits all of them alike.
    The ratio is the rate over that of the first work, median of the rounds."""
    for work in works.values():
        work()  # warm
    rates = np.array([[amount / timed(work) for work in works.values()] for _ in range(repeats)])
    ratios = np.median(rates / rates[:, :1], axis=0)
    return [
        {"what": name, "unit": unit, "median": np.median(r), "min": r.min(), "max": r.max(), "ratio": ratio, "n": repeats}
        for name, r, ratio in zip(works, rates.T, ratios)
    ]


def training(config: Config, corpus: Corpus, steps: int, repeats: int) -> list[dict]:
    """Training steps per second of each of STEPS."""
    ways, order = ways_of_stepping(config, corpus)
    chosen = [order[i % len(order)] for i in range(math.ceil(steps / repeats))]
    works = {f"step: {name}": lambda way=way: [way.take(c) for c in chosen] for name, way in ways.items()}
    return interleaved(works, repeats, len(chosen), "steps/s")


def ranking(queries: int, items: int, repeats: int) -> list[dict]:
    """Queries per second; ValueError if the three do not find the same share at rank 1."""
    try:
        from torchmetrics.functional.retrieval import retrieval_recall
    except ImportError:
        raise SystemExit("the comparison needs torchmetrics: pip install torchmetrics") from None
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(items, 256, generator=generator)
    target = torch.randint(items, (queries,), generator=generator)
    query = gallery[target] + 3 * torch.randn(queries, 256, generator=generator)

    def similarity() -> Tensor:
        return retrieval.unit(query) @ retrieval.unit(gallery).T

    def by_sorting() -> float:
        order = similarity().argsort(dim=1, descending=True)
        places = (order == target[:, None]).nonzero()[:, 1]
        return retrieval.metrics(1 + places)["R@1"]

    def by_torchmetrics() -> float:
        right = torch.arange(items) == target[:, None]
        found = [[retrieval_recall(s, r, top_k=k) for k in (1, 5, 10)] for s, r in zip(similarity(), right)]
        return 100 * torch.tensor(found).mean(dim=0)[0].item()

    def ours() -> float:
        return retrieval.metrics(retrieval.search(query, gallery, target))["R@1"]

    works = {"ranks: torchmetrics": by_torchmetrics, "ranks: sorted matrix": by_sorting, "ranks: ours": ours}
    recalls = {name: round(work(), 3) for name, work in works.items()}
    if len(set(recalls.values())) > 1:
        raise ValueError(f"R@1 differs: {recalls}")
    print(f"R@1 of {queries} queries among {items} items is {recalls['ranks: ours']:.2f} by all three")
    return interleaved(works, repeats, queries, "queries/s")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def bench(config: Config, corpus: Corpus, out: Path, steps: int = 30, repeats: int = 5, queries=2000, items=500):
    """Measure, print, and write a row for each measurement to `out`; returns the frame."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begun = time.perf_counter()
        rows = training(config, corpus, steps, repeats) + ranking(queries, items, repeats)
        frame = pd.DataFrame(rows).round({"median": 2, "min": 2, "max": 2, "ratio": 2})
        print(frame.to_string(index=False))
        origin = provenance(corpus, time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    origin.pop("device")  # all of it ran on the processor
    frame = frame.assign(corpus=corpus.name, config_sha=config.sha, cpu=processor(), cores=os.cpu_count(), threads=1, **origin)
    with files.written(out) as draft:
        frame.to_csv(draft, index=False)
    return frame


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ssb.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", default="shapes")
    parser.add_argument("--steps", type=int, default=30, help="of each way, spread over five rounds")
    parser.add_argument("--out", type=Path, default=files.root() / "results" / "bench.csv")
    asked = parser.parse_args()
    bench(Config.preset("laptop", corpus=asked.corpus), load_corpus(asked.corpus), asked.out, asked.steps)
