"""A corpus prepared for one Config, and the order of its pairs in training.

What takes long is kept in memory for the next run of this process: features, tokenizers, token ids, and a frozen text
encoder with what it gives. So none of it may be changed in place.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ssb import emcl, losses, machine, text
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError
from ssb.machine import threads
from ssb.metrics import retrieval
from ssb.model import HEADS, Batch, Past
from ssb.training.device import Clips, Texts, sent
from ssb.training.identity import model_content
from ssb.training.protocol import training_items

_features: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}  # those of the last call of `features`


def features(corpus: Corpus, streams: tuple[str, ...], max_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`Corpus.features` as tensors: (N, M, D), and the mask (N, M)."""
    key = corpus.fingerprint, streams, max_steps
    if key not in _features:
        _features.clear()  # first, so that two of them are never in memory
        values, mask = corpus.features(streams, max_steps)
        _features[key] = torch.from_numpy(values), torch.from_numpy(mask)
    return _features[key]


@functools.lru_cache(maxsize=4)
def tokenizer(name: str, content: str, captions: tuple[str, ...], vocabulary: int):
    """`text.tokenizer`, kept for the next call. content: of the model's folder, see `model_content`."""
    return text.tokenizer(name, list(captions), vocabulary)


@functools.lru_cache(maxsize=4)
def token_ids(tokenizer, captions: tuple[str, ...], most: int) -> text.Ragged:
    """`text.cached_ids`, kept for the next call."""
    return text.cached_ids(tokenizer, list(captions), most)


@functools.lru_cache(maxsize=4)
def longer(tokenizer, captions: tuple[str, ...], most: int) -> int:
    """`text.longer`, kept for the next call."""
    return text.longer(tokenizer, list(captions), most)


@functools.lru_cache(maxsize=1)
def frozen_encoder(name: str, content: str, vocabulary: int) -> torch.nn.Module:
    """`text.build_encoder` of a frozen one. It draws nothing from torch's generator, whether it was kept or not."""
    with torch.random.fork_rng():
        return text.build_encoder(Config(text_encoder=name, freeze_text=True), vocabulary)


@functools.lru_cache(maxsize=2)
def states(name: str, encoder: torch.nn.Module, ids: text.Ragged, device: str, mean: bool) -> text.Ragged:
    """`text.cached_states`, kept for the next call."""
    return text.cached_states(name, encoder, ids, device, mean)


class Tokenizers(NamedTuple):
    """Those of finished runs whose weights a run starts from: of the text encoder and of the decoder; None: its own."""

    tokenizer: Any = None
    label_tokenizer: Any = None


def others(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Values (n,), n ≥ 2, so permuted along one random cycle that none stays: each place is as likely to get any other
    place's."""
    order, out = random.permutation(len(values)), np.empty_like(values)
    out[order] = values[np.roll(order, 1)]
    return out


class Data:
    """Fused features in memory, token ids or cached text states, and labels of a corpus, for one Config.

    like: the data of the run whose weights the model starts from, whose tokenizers are used; or the tokenizers alone.
    CorpusError for a corpus with fewer than two training clips.

    On a GPU what fits is kept there; where something does not, the next batch is made in the background.
    """

    background: ThreadPoolExecutor | None = None

    def __init__(self, config: Config, corpus: Corpus, device="cpu", like: "Data | Tokenizers | None" = None):
        self.config, self.corpus, self.device = config, corpus, device
        captions = tuple(corpus.captions["text"])
        self.clip_of = corpus.captions["clip"].to_numpy(copy=True)  # of each caption
        self.train = training_items(config, corpus)
        if len(self.train) < 2:
            raise CorpusError(f"{corpus.name}: one training clip; a contrastive loss needs at least 2")
        self.video, self.video_mask = features(corpus, config.streams, config.max_steps)  # (N, M, D), (N, M)

        self.read_text(corpus.captions_of(self.train)["text"].tolist(), like)
        self.text = token_ids(self.tokenizer, captions, config.max_tokens)
        text.check_length(config, self.encoder, int(self.text.lengths.max()))
        long = np.flatnonzero(self.text.lengths >= config.max_tokens)
        self.labels = None
        if self.label_tokenizer is not None:
            self.labels = token_ids(self.label_tokenizer, captions, config.max_tokens)
            long = np.union1d(long, np.flatnonzero(self.labels.lengths >= config.max_tokens))
        self.count_cut([captions[i] for i in long], of=len(captions))
        if config.freeze_text:
            mean = getattr(HEADS[config.text_pooling], "mean_suffices", False)
            with threads(config.threads):
                self.text = states(config.text_encoder, self.encoder, self.text, str(device), mean)

        self.clips, self.texts = Clips(self.video, self.video_mask, device), Texts(self.text, device)
        self.targets = None if self.labels is None else Texts(self.labels, device)
        self.decoded = np.arange(len(captions))  # of each caption, whose labels it has
        self.ahead: dict[bytes, Future] = {}  # batches that are made in the background, by their rows
        stores = [self.clips, self.texts, *([self.targets] if self.targets else [])]
        if machine.on_gpu(device) and not all(store.resident for store in stores):
            self.background = ThreadPoolExecutor(1)

        # captions grouped by clip: those of clip c are by_clip[first[c] : first[c] + count[c]]
        self.by_clip = np.argsort(self.clip_of, kind="stable")
        self.count = np.bincount(self.clip_of)
        self.first = np.cumsum(self.count) - self.count
        self.nth = corpus.captions.groupby("clip").cumcount().to_numpy()  # of its clip's captions
        self.next = self.later(np.arange(len(captions)), 1)
        if config.weights_from == "other caption" and (one := self.train[self.count[self.train] < 2]).size:
            raise ConfigError(
                f"weights_from = 'other caption': {len(one)} of {len(self.train)} training clips of {corpus.name} have "
                f"one caption, such as {corpus.id(one[0])}; take 'caption' or 'clip'"
            )
        if config.weights_from == "meaning" and corpus.meaning is None:
            raise ConfigError(
                f"weights_from = 'meaning': what the clips of {corpus.name} show is not known; take 'caption', or a "
                "corpus such as shapes"
            )
        if config.decoded == "permuted":
            rows = np.flatnonzero(np.isin(self.clip_of, self.train))
            clip = dict(zip(self.train.tolist(), others(self.train, np.random.default_rng(config.seed)).tolist()))
            clips = np.array([clip[own] for own in self.clip_of[rows].tolist()])
            self.decoded[rows] = self.by_clip[self.first[clips] + self.nth[rows] % self.count[clips]]

    def read_text(self, captions: list[str], like: "Data | Tokenizers | None"):
        """Set the tokenizers and the text encoder. Tokenizers from scratch are fitted on these training captions."""
        config, captions = self.config, tuple(captions)

        def read(name: str):
            fitted = (captions, config.vocabulary) if name == "scratch" else ((), 0)
            return tokenizer(name, model_content(name), *fitted)

        like = like or Tokenizers()
        self.tokenizer = like.tokenizer or read(config.text_encoder)
        if config.freeze_text:
            content = model_content(config.text_encoder)
            self.encoder = frozen_encoder(config.text_encoder, content, len(self.tokenizer))
        else:
            self.encoder = text.build_encoder(config, len(self.tokenizer))
        self.text_width = self.encoder.config.hidden_size
        self.label_tokenizer = None  # of the decoder
        if config.objective != "none":
            self.label_tokenizer = like.label_tokenizer or read(config.decoder)  # None where that run did not caption

    def count_cut(self, captions: list[str], of: int = 0):
        """Set `cut`, a line for the text encoder and one for the decoder where captions have more than `max_tokens`
        tokens. of: how many captions there are, these and shorter ones; 0: these."""
        self.cut, most, of = [], self.config.max_tokens, of or len(captions)
        for part, tokenizer in (("text encoder", self.tokenizer), ("decoder", self.label_tokenizer)):
            if count := longer(tokenizer, tuple(captions), most) if tokenizer is not None else 0:
                self.cut.append(
                    f"{self.corpus.name}: {100 * count / of:.1f} % of {of} captions are cut for the {part}, "
                    f"after max_tokens = {most}"
                )

    @property
    def video_width(self) -> int:
        """D, the width of the fused features."""
        return self.video.shape[-1]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) of each feature over the steps of the training clips, and `losses.scale_of` it."""
        steps = self.video[self.train][self.video_mask[self.train]]
        mean = steps.mean(0)
        return mean, losses.scale_of(mean, steps.std(0))

    def pairs(self, split: str) -> np.ndarray:
        """A pair of each clip of a split, for `batch`: its first caption."""
        return self.by_clip[self.first[self.corpus.split(split)]]

    def order(self, epoch: int) -> np.ndarray:
        """Captions of an epoch's batches, (steps, B): a function of Config.seed and the epoch alone, so that a resumed
        run gets the same batches as an uninterrupted one. Captions that do not fill a batch are left out, because the
        support set is the batch."""
        rng = np.random.default_rng((self.config.seed, epoch))
        if self.config.epoch == "clips":
            clips = rng.permutation(self.train)
            rows = self.by_clip[self.first[clips] + rng.integers(self.count[clips])]
        else:
            rows = rng.permutation(np.flatnonzero(np.isin(self.clip_of, self.train)))
        return self._batches(rows, min(self.config.batch, len(self.train)))

    def _batches(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Each caption, in order, goes to the first batch without a caption of the same clip: with two captions a clip
        would be its own negative, and in its own support set under "cross"."""
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
        """The pairs of these captions (B,), padded to the longest. memory: past clips (P,) and their c_v (P, d)."""
        batch = self._batch(rows)
        if self.config.weights_from == "other caption":
            counts = self.count[self.clip_of[rows]]
            shift = self.draws(rows).integers(1, np.maximum(counts, 2))
            batch.other, batch.other_mask = self.texts.padded(self.later(rows, shift))
        elif self.config.intra:
            batch.other, batch.other_mask = self.texts.padded(self.next[rows])
        if memory:
            batch.past = Past(*memory, *self.clips.of(memory[0]))
        if self.config.weights_from == "meaning":
            past = memory[0].cpu().numpy() if memory else rows[:0]
            true = self.corpus.truth(rows, np.concatenate([self.clip_of[rows], past]))
            batch.true = sent(torch.from_numpy(true), self.device)
        return batch

    def later(self, rows: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
        """For each of these captions (B,) the one of the same clip that is so many places after it, and after the last
        the first."""
        clips = self.clip_of[rows]
        return self.by_clip[self.first[clips] + (self.nth[rows] + shift) % self.count[clips]]

    def draws(self, rows: np.ndarray) -> np.random.Generator:
        """What is random in a batch besides the model: of the rows and Config.seed alone, so that resumed runs and
        several processes draw the same, and the model draws the same without it."""
        return np.random.default_rng((self.config.seed, *rows.tolist()))

    def prefetch(self, rows: np.ndarray):
        """Begin to make this batch, where making it would hold up the step that needs it."""
        if self.background is not None:
            self.ahead[rows.tobytes()] = self.background.submit(self._made, rows)

    def _batch(self, rows: np.ndarray) -> Batch:
        made = self.ahead.pop(rows.tobytes(), None)
        return self._made(rows) if made is None else made.result()

    def _made(self, rows: np.ndarray) -> Batch:
        captions, clips = self.items(rows)
        batch = Batch(*self.texts.padded(captions), *self.clips.of(torch.from_numpy(clips)))
        batch.clips = sent(torch.from_numpy(clips), self.device)
        if self.targets is not None:
            shuffled = self.config.decoded == "shuffled"
            decoded = others(captions, self.draws(rows)) if shuffled else self.decoded[captions]
            labels, mask = self.targets.padded(decoded)
            batch.labels = labels.masked_fill(~mask, -100)
        return batch

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The captions and the clips of a batch."""
        return rows, self.clip_of[rows]

    def check_cosine(self):
        """ConfigError for a run that does not rank by the cosine of c_t and c_v, which is all that figures show."""
        if self.config.emcl or self.config.sequences:
            raise ConfigError(
                "a run with emcl or sequences ranks captions by more than their own embeddings, which is all that can "
                "be shown here; take a run without"
            )

    def embed(self, model, split: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """c_t (Q, d) of every caption of a split, c_v (C, d) of its clips, and each caption's clip (Q,) among those."""
        clips = self.corpus.split(split)
        rows = self.corpus.captions_of(clips)
        with torch.inference_mode(), threads(self.config.threads):
            c_t = self.embed_texts(model.eval(), rows["caption"].to_numpy(copy=True))
            return c_t, self.embed_videos(model, clips), pd.Index(clips).get_indexer(rows["clip"])

    def embed_videos(self, model, clips: np.ndarray, size: int = 512) -> torch.Tensor:
        """c_v (clips, d) of these clips, on the CPU; in inference mode."""
        c_v = [model.embed_video(*self.clips.of(i)) for i in torch.from_numpy(clips).split(size)]
        return torch.cat(c_v).float().cpu()

    def embed_texts(self, model, captions: np.ndarray, size: int = 512) -> torch.Tensor:
        """c_t (captions, d) of these captions, on the CPU; in inference mode."""
        order = np.argsort(self.text.lengths[captions], kind="stable")  # captions of a length together: little padding
        parts = np.array_split(captions[order], max(1, -(-len(order) // size)))
        c_t = [model.embed_text(*self.texts.padded(part)) for part in parts]
        return torch.cat(c_t).float().cpu()[np.argsort(order)]

    def ranks(self, model, split: str, every: bool = True) -> dict[str, np.ndarray]:
        """Ranks of a split's queries: "t2v" (Q,), "v2t best-caption" (C,), "v2t max-per-video" (C,); and "clip" (Q,),
        each text query's own. every: False: "t2v" is enough, by which the best epoch is chosen. With EMCL the
        embeddings go through it in random blocks of the batch's size, as in training."""
        c_t, c_v, clip = self.embed(model, split)
        c_t, c_v = c_t.to(self.device), c_v.to(self.device)
        if self.config.emcl:
            with threads(self.config.threads):
                scores = emcl.similarity(c_t, c_v, model.emcl, self.config.batch, unit=False, seed=self.config.seed)
            return retrieval.matrix_ranks(scores, clip) | {"clip": clip}
        t2v = {"t2v": retrieval.search(c_t, c_v, clip)}
        if not every:
            return t2v
        return t2v | {
            "v2t best-caption": retrieval.video_to_text(c_v, c_t, clip, protocol="best-caption"),
            "v2t max-per-video": retrieval.video_to_text(c_v, c_t, clip, protocol="max-per-video"),
            "clip": clip,
        }
