"""`ssb bench training`: how fast training, its start and its evaluation are, as ratios within one run on one thread.

The literal implementation of the paper that the rows named `step` and `run` begin with: captions padded to 100 tokens,
states of the frozen text encoder computed again in every step, T5's own decoder, which computes padding too, the states
of all tokens where the head takes their mean alone, and torch's default Adam; a whole run of it computes the ranks of
all protocols in every validation, too. The rows between leave some of this out. The packed decoder is also compared
with T5's own by itself. `ssb.bench.scoring` measures rankings, `ssb.bench.start` the start of runs and an earlier
commit of the library. Times are the processor's: a ratio is how many times as fast a row is as the first of its kind.
"""

import contextlib
import copy
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ssb import text
from ssb.bench import scoring, start
from ssb.bench.timing import ROUNDS, compare, write
from ssb.config import Config
from ssb.corpora.corpus import Corpus
from ssb.machine import threads
from ssb.model import Batch, SupportSetModel
from ssb.training.data import Data
from ssb.training.loop import Training
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
            batch.labels = None if batch.labels is None else padded(batch.labels, -100)
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


class LiteralTraining(Training):
    """A run that trains in the literal way of STEPS, and computes the ranks of all protocols in every validation."""

    def __init__(self, config: Config, corpus: Corpus, folder: Path):
        super().__init__(config, corpus, folder, quiet=True)
        steps, self.data = Steps(self.data, STEPS["literal"]), copy.copy(self.data)
        self.data.batch = lambda captions, memory: steps.batch(captions)
        self.data.ranks = lambda model, split, every=True: steps.data.ranks(model, split)
        self.raw.caption_loss = functools.partial(caption_loss, self.raw)
        groups = [{name: group[name] for name in ("params", "initial_lr")} for group in self.optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(torch.optim.Adam(groups))


def running(config: Config, corpus: Corpus, rounds: int = 2) -> list[dict]:
    """Rows for whole runs of an epoch, of the Config and without captioning: from the data to the files of the run,
    with the text states on disk."""

    def run(kind: type, config: Config):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(config.seed)
            kind(config, corpus, Path(folder) / "run").run()

    found = []
    for objective in dict.fromkeys([config.objective, "none"]):
        changed = config.replace(objective=objective, epochs=1)
        ways = {"literal": LiteralTraining, "ours": functools.partial(Training, quiet=True)}
        calls = {f"run, {objective}: {name}": functools.partial(run, kind, changed) for name, kind in ways.items()}
        found += compare(calls, rounds=rounds)
    return found


def validating(config: Config, corpus: Corpus) -> list[dict]:
    """Rows for a validation that computes the ranks of all protocols, and for one that computes those that select."""
    steps = Steps(Data(config, corpus), set())
    names = {"validation: all protocols": True, "validation: what selects": False}
    calls = {name: functools.partial(steps.data.ranks, steps.model, "val", every) for name, every in names.items()}
    return compare(calls)


def bench(
    config: Config,
    corpus: Corpus,
    out: Path,
    steps: int = 30,
    before: Path | None = None,
    sizes: scoring.Sizes = scoring.SIZES,
):
    """Measure on one thread, print, and write one row per measurement to `out`; returns the frame. before: a checkout
    of an earlier commit, with which the start of a run and Table 1 are compared."""
    with threads(1), torch.random.fork_rng():
        earlier = start.commit(before) if before else ""  # first, as it may be refused
        rows = training(config, corpus, steps) + running(config, corpus) + validating(config, corpus)
        rows += scoring.ranking(sizes.search) + scoring.emcl_rows(sizes)
        rows += start.starting(config) + (start.against(before, config) if before else [])
        return write(rows, out, corpus=corpus.name, before=earlier)
