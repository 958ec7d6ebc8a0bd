"""A corpus made ready for one Config, and the order in which its pairs are seen."""

import contextlib

import numpy as np
import torch

from ssb import text
from ssb.config import Config
from ssb.corpus import Corpus, CorpusError
from ssb.model import Batch, Past


@contextlib.contextmanager
def threads(count: int):
    """Compute with so many threads: floating-point sums depend on it, and the same Config is to give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Data:
    """Fused features in memory, token ids or kept text states, and labels of a corpus, for one Config."""

    def __init__(self, config: Config, corpus: Corpus, device="cpu"):
        self.config, self.corpus, self.device = config, corpus, device
        captions = corpus.captions["text"].tolist()
        self.clip_of = corpus.captions["clip"].to_numpy(copy=True)  # of each caption
        self.train = corpus.split("train")
        if len(self.train) < 2:
            raise CorpusError(f"{corpus.name}: one training clip; a contrastive loss needs at least 2")
        video, mask = corpus.features(config.streams, config.max_steps)
        self.video, self.video_mask = torch.from_numpy(video), torch.from_numpy(mask)  # (N, M, D), (N, M)

        known = corpus.captions_of(self.train)["text"].tolist()  # a fitted tokenizer sees no other captions
        self.tokenizer = text.tokenizer(config.text_encoder, known, config.vocabulary)
        self.encoder = text.build_encoder(config, len(self.tokenizer))
        self.text_width = self.encoder.config.hidden_size
        self.text = text.Ragged.of(text.token_ids(self.tokenizer, captions, config.max_tokens))
        if config.freeze_text:
            with threads(config.threads):
                self.text = text.kept_states(config.text_encoder, self.encoder, self.text, device)
        self.vocabulary, self.labels = 0, None
        if config.objective != "none":
            self.label_tokenizer = text.tokenizer(config.decoder, known, config.vocabulary)
            self.vocabulary = len(self.label_tokenizer)
            self.labels = text.Ragged.of(text.token_ids(self.label_tokenizer, captions, config.max_tokens))

        # captions grouped by clip: those of clip c are by_clip[first[c] : first[c] + count[c]]
        self.by_clip = np.argsort(self.clip_of, kind="stable")
        self.count = np.bincount(self.clip_of)
        self.first = np.cumsum(self.count) - self.count
        nth = np.empty_like(self.by_clip)  # of its clip's captions
        nth[self.by_clip] = np.arange(len(nth)) - self.first[self.clip_of[self.by_clip]]
        self.next = self.by_clip[self.first[self.clip_of] + (nth + 1) % self.count[self.clip_of]]  # caption of the clip

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation (D,) of each feature over the steps of the training clips."""
        steps = self.video[self.train][self.video_mask[self.train]]
        return steps.mean(0), steps.std(0).clamp(min=1e-6)

    def order(self, epoch: int) -> np.ndarray:
        """Captions of an epoch's batches, (steps, B): a function of Config.seed and the epoch alone, so that a resumed
        run sees what an unbroken one would. What does not fill a batch is left out: the support set is the batch."""
        rng = np.random.default_rng((self.config.seed, epoch))
        if self.config.epoch == "clips":
            clips = rng.permutation(self.train)
            rows = self.by_clip[self.first[clips] + rng.integers(self.count[clips])]
        else:
            rows = rng.permutation(np.flatnonzero(np.isin(self.clip_of, self.train)))
        return self._batches(rows, min(self.config.batch, len(self.train)))

    def _batches(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Captions in their order to the first batch without a caption of the same clip: with two of them a clip would
        be its own negative, and in its own support set under "cross"."""
        full, filling = [], []
        for row, clip in zip(rows.tolist(), self.clip_of[rows].tolist()):
            batch = next((batch for batch in filling if clip not in batch), None)
            if batch is None:
                filling.append(batch := {})
            batch[clip] = row
            if len(batch) == size:
                full.append(list(batch.values()))
                filling.remove(batch)
        return np.array(full)

    def batch(self, captions: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """The pairs of these captions, padded to the longest of them. memory: clips (P,) and c_v (P, d) of the past."""
        clips = torch.from_numpy(self.clip_of[captions])
        parts = [*self.text.padded(captions), self.video[clips], self.video_mask[clips]]
        batch = Batch(*(x.to(self.device) for x in parts), clips=clips.to(self.device))
        if self.labels is not None:
            labels, mask = self.labels.padded(captions)
            batch.labels = labels.masked_fill(~mask, -100).to(self.device)
        if self.config.intra:
            batch.other, batch.other_mask = (x.to(self.device) for x in self.text.padded(self.next[captions]))
        if memory:
            clips = memory[0].cpu()
            parts = *memory, self.video[clips], self.video_mask[clips]
            batch.past = Past(*(x.to(self.device) for x in parts))
        return batch

    def embed(self, model, split: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """c_t (Q, d) of every caption of a split, c_v (C, d) of its clips, and each caption's clip (Q,) among those."""
        with torch.inference_mode(), threads(self.config.threads):
            return self._embed(model.eval(), split)

    def _embed(self, model, split: str, size: int = 512) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        clips = self.corpus.split(split)
        rows = self.corpus.captions_of(clips)
        captions = rows["caption"].to_numpy(copy=True)
        order = np.argsort(self.text.lengths[captions], kind="stable")  # captions of a length together: little padding
        c_t = None
        for part in np.array_split(order, max(1, -(-len(order) // size))):
            values, mask = self.text.padded(captions[part])
            out = model.embed_text(values.to(self.device), mask.to(self.device)).float().cpu()
            c_t = out.new_empty(len(captions), out.shape[1]) if c_t is None else c_t
            c_t[part] = out
        parts = torch.from_numpy(clips).split(size)
        c_v = [model.embed_video(self.video[i].to(self.device), self.video_mask[i].to(self.device)) for i in parts]
        place = {clip: i for i, clip in enumerate(clips)}
        return c_t, torch.cat(c_v).float().cpu(), rows["clip"].map(place).to_numpy(copy=True)
