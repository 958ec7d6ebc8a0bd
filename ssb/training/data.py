"""A corpus made ready for one Config, and the order in which its pairs are seen."""

import numpy as np
import torch

from ssb import emcl, text
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError
from ssb.machine import threads
from ssb.metrics import retrieval
from ssb.model import Batch, Past


class Data:
    """Fused features in memory, token ids or kept text states, and labels of a corpus, for one Config.

    like: the data of the run that a model's weights are from; its tokenizers number the words.
    """

    def __init__(self, config: Config, corpus: Corpus, device="cpu", like: "Data | None" = None):
        self.config, self.corpus, self.device = config, corpus, device
        captions = corpus.captions["text"].tolist()
        self.clip_of = corpus.captions["clip"].to_numpy(copy=True)  # of each caption
        self.train = corpus.split("train")
        if len(self.train) < 2:
            raise CorpusError(f"{corpus.name}: one training clip; a contrastive loss needs at least 2")
        video, mask = corpus.features(config.streams, config.max_steps)
        self.video, self.video_mask = torch.from_numpy(video), torch.from_numpy(mask)  # (N, M, D), (N, M)

        known = corpus.captions_of(self.train)["text"].tolist()  # a fitted tokenizer sees no other captions
        self.tokenizer = like.tokenizer if like else text.tokenizer(config.text_encoder, known, config.vocabulary)
        self.encoder = text.build_encoder(config, len(self.tokenizer))
        self.text_width = self.encoder.config.hidden_size
        self.text = text.Ragged.of(text.token_ids(self.tokenizer, captions, config.max_tokens))
        if config.freeze_text:
            with threads(config.threads):
                self.text = text.kept_states(config.text_encoder, self.encoder, self.text, device)
        self.vocabulary, self.labels = 0, None
        if config.objective != "none":
            spoken = getattr(like, "label_tokenizer", None)  # none, where that run did not caption
            self.label_tokenizer = spoken or text.tokenizer(config.decoder, known, config.vocabulary)
            self.vocabulary = len(self.label_tokenizer)
            self.labels = text.Ragged.of(text.token_ids(self.label_tokenizer, captions, config.max_tokens))

        # captions grouped by clip: those of clip c are by_clip[first[c] : first[c] + count[c]]
        self.by_clip = np.argsort(self.clip_of, kind="stable")
        self.count = np.bincount(self.clip_of)
        self.first = np.cumsum(self.count) - self.count
        nth = np.empty_like(self.by_clip)  # of its clip's captions
        nth[self.by_clip] = np.arange(len(nth)) - self.first[self.clip_of[self.by_clip]]
        self.next = self.by_clip[self.first[self.clip_of] + (nth + 1) % self.count[self.clip_of]]  # caption of the clip

    @property
    def video_width(self) -> int:
        """D, of the fused features."""
        return self.video.shape[-1]

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

    def batch(self, rows: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """The pairs of these captions, padded to the longest of them. memory: clips (P,) and c_v (P, d) of the past."""
        batch = self._batch(rows, self.clip_of[rows])
        if self.config.intra:
            batch.other, batch.other_mask = (x.to(self.device) for x in self.text.padded(self.next[rows]))
        if memory:
            clips = memory[0].cpu()
            parts = *memory, self.video[clips], self.video_mask[clips]
            batch.past = Past(*(x.to(self.device) for x in parts))
        return batch

    def _batch(self, captions: np.ndarray, clips: np.ndarray) -> Batch:
        clips = torch.from_numpy(clips)
        parts = [*self.text.padded(captions), self.video[clips], self.video_mask[clips]]
        batch = Batch(*(x.to(self.device) for x in parts), clips=clips.to(self.device))
        if self.labels is not None:
            labels, mask = self.labels.padded(captions)
            batch.labels = labels.masked_fill(~mask, -100).to(self.device)
        return batch

    def check_plain(self):
        """ConfigError for a run that is not ranked by the cosine of c_t and c_v, which is what figures show."""
        if self.config.emcl or self.config.sequences:
            raise ConfigError(
                "a run with emcl or sequences ranks captions by more than their own embeddings, which is all that can "
                "be shown here; take a run without"
            )

    def embed(self, model, split: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """c_t (Q, d) of every caption of a split, c_v (C, d) of its clips, and each caption's clip (Q,) among those."""
        clips = self.corpus.split(split)
        rows = self.corpus.captions_of(clips)
        place = {clip: i for i, clip in enumerate(clips)}
        with torch.inference_mode(), threads(self.config.threads):
            c_t = self.embed_texts(model.eval(), rows["caption"].to_numpy(copy=True))
            return c_t, self.embed_videos(model, clips), rows["clip"].map(place).to_numpy(copy=True)

    def embed_videos(self, model, clips: np.ndarray, size: int = 512) -> torch.Tensor:
        """c_v (clips, d) of these clips, on the CPU; in inference mode."""
        parts = torch.from_numpy(clips).split(size)
        c_v = [model.embed_video(self.video[i].to(self.device), self.video_mask[i].to(self.device)) for i in parts]
        return torch.cat(c_v).float().cpu()

    def embed_texts(self, model, captions: np.ndarray, size: int = 512) -> torch.Tensor:
        """c_t (captions, d) of these captions, on the CPU; in inference mode."""
        order = np.argsort(self.text.lengths[captions], kind="stable")  # captions of a length together: little padding
        c_t = None
        for part in np.array_split(order, max(1, -(-len(order) // size))):
            values, mask = self.text.padded(captions[part])
            out = model.embed_text(values.to(self.device), mask.to(self.device)).float().cpu()
            c_t = out.new_empty(len(captions), out.shape[1]) if c_t is None else c_t
            c_t[part] = out
        return c_t

    def ranks(self, model, split: str) -> dict[str, np.ndarray]:
        """Ranks of a split's queries: "t2v", "v2t best-caption", "v2t max-per-video"; and `clip`, that of each text
        query. With EMCL the embeddings go through it in blocks of the batch's size, as in training, dealt at random."""
        c_t, c_v, clip = self.embed(model, split)
        if self.config.emcl:
            with threads(self.config.threads):
                pair = c_t.to(self.device), c_v.to(self.device)
                scores = emcl.similarity(*pair, model.emcl, self.config.batch, unit=False, seed=self.config.seed)
            return retrieval.matrix_ranks(scores, clip) | {"clip": clip}
        return {
            "t2v": retrieval.search(c_t, c_v, clip),
            "v2t best-caption": retrieval.video_to_text(c_v, c_t, clip, protocol="best-caption"),
            "v2t max-per-video": retrieval.video_to_text(c_v, c_t, clip, protocol="max-per-video"),
            "clip": clip,
        }
