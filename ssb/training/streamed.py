"""HowTo100M prepared for one Config: batches are read from disk, the next ones during the training step on the last.

An epoch has one pair of every training video: a window of at most max_steps seconds and the narrations within it, see
`HowTo100M.window`. A pair is identified by a number, which replaces the caption of `Data`: N × (epoch + 1) + video, for
N videos; numbers below N are the fixed windows that represent the videos in evaluation. A batch thus depends on its
numbers and Config.seed alone.
"""

import joblib
import numpy as np
import torch

from ssb import losses, processes, text
from ssb.config import Config, ConfigError
from ssb.corpora.howto100m.corpus import HowTo100M, spaced
from ssb.machine import threads
from ssb.model import Batch, Past
from ssb.training.data import Data
from ssb.training.protocol import training_items
from ssb.training.readers import Readers, Source, padded

NARRATIONS = 20_000  # of the training videos, to fit a tokenizer on
LENGTHS = 500  # training videos, whose fixed windows say how many captions are cut
MEASURED = 1_000  # training videos, for the mean and deviation of the features
MOST_READERS = 8


class Streamed(Data):
    """`Data` for a corpus on disk. In memory, only the numbers of an epoch's pairs grow with the corpus.

    States of a frozen text encoder are computed in every step: those of 136 million narrations are too many to store.
    ConfigError for settings that need captions or stories of a corpus in memory.
    """

    def __init__(self, config: Config, corpus: HowTo100M, device="cpu", like: Data | None = None):
        self.config, self.corpus, self.device = config, corpus, device
        if config.epoch != "clips":
            raise ConfigError(f"{corpus.name}: an epoch is one pair of every video; set epoch = 'clips'")
        if config.intra:
            raise ConfigError(f"{corpus.name}: intra = True needs two captions per clip, and a window has one")
        if config.weights_from == "other caption":
            raise ConfigError(
                f"{corpus.name}: weights_from = 'other caption' needs two captions per clip; take another"
            )
        if config.weights_from == "meaning":
            raise ConfigError(
                f"{corpus.name}: weights_from = 'meaning': what its clips show is not known; take another"
            )
        if config.decoded != "own":
            raise ConfigError(f"{corpus.name}: decoded = {config.decoded!r} needs a corpus in memory; take 'own'")
        if config.sequences:
            raise ConfigError(f"{corpus.name}: sequences = True needs a corpus of long videos, such as events")
        self.train = training_items(config, corpus)
        self.streams = corpus.chosen(config.streams)
        captions = self.sample() if "scratch" in (config.text_encoder, config.decoder) else []
        self.read_text(captions, like)
        text.check_length(config, self.encoder, config.max_tokens)
        videos = self.train[spaced(len(self.train), LENGTHS)].tolist()
        self.count_cut([self.corpus.window(video, config.max_steps)[2] for video in videos])
        self.past: dict[int, np.ndarray] = {}  # windows of as many pairs as the support set may reach back to
        tokenizers = [self.tokenizer]
        if self.label_tokenizer is not None and self.label_tokenizer is not self.tokenizer:
            tokenizers.append(self.label_tokenizer)
        self.source = Source(corpus, config.streams, config.max_steps, config.max_tokens, config.seed, tokenizers)
        self.readers = Readers(self.source, free_cores(config.threads))
        self.batches = np.empty((0, 1), int)  # of the epoch

    video = video_mask = clip_of = property(lambda self: self.corpus.features)  # CorpusError: not in memory

    @property
    def video_width(self) -> int:
        """D, the width of the fused features."""
        return sum(stream.dim for stream in self.streams)

    def sample(self) -> list[str]:
        """At most NARRATIONS narrations of training videos, evenly spaced."""
        videos = self.train[spaced(len(self.train), NARRATIONS)].tolist()
        each, narrations = -(-NARRATIONS // len(videos)), []
        for video in videos:
            shard, row = self.corpus.locate(video)
            narrations += shard.texts_of(row, spaced(shard.count(row), each))
        return narrations[:NARRATIONS]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Data.statistics`, over fixed windows of MEASURED training videos, evenly spaced."""
        count, mean, squares = 0, 0.0, 0.0
        for video in self.train[spaced(len(self.train), MEASURED)].tolist():
            values = self.window(video)[0].astype(np.float64)
            difference = values.mean(0) - mean  # Chan, Golub & LeVeque (1983): statistics of two samples together
            squares = squares + ((values - values.mean(0)) ** 2).sum(0)
            squares = squares + difference**2 * count * len(values) / (count + len(values))
            mean = mean + difference * len(values) / (count + len(values))
            count += len(values)
        scale = losses.scale_of(mean, np.sqrt(squares / max(count - 1, 1)))
        return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()

    def pairs(self, split: str) -> np.ndarray:
        """The fixed windows of a split's videos."""
        return np.asarray(self.corpus.split(split))

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of an epoch's pairs, (steps, B), a function of Config.seed and the epoch alone."""
        videos = np.random.default_rng((self.config.seed, epoch)).permutation(np.array(self.train))
        size = min(self.config.batch, len(videos))
        self.batches = len(self.corpus) * (epoch + 1) + videos[: len(videos) // size * size].reshape(-1, size)
        return self.batches

    def window(self, number: int) -> tuple[np.ndarray, str]:
        """Features (steps, D) and caption of a pair."""
        return self.source.window(number)

    def videos(self, values: np.ndarray, steps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded windows (B, max_steps, D) of so many steps (B,) as tensors: they, and the mask of their steps."""
        return torch.from_numpy(values), torch.from_numpy(np.arange(self.config.max_steps) < steps[:, None])

    def ids(self, values: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of captions end to end, of these lengths (B,), as (B, L) and the mask of what is real."""
        return text.Ragged(values, np.cumsum([0, *lengths])).padded(np.arange(len(lengths)))

    def batch(self, captions: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """As `Data.batch`, of the pairs with these numbers (B,). `clips` are numbers too. A past pair has the number of
        the pair of this batch that is of the same video: no window of a video is in the support set of the video."""
        step = np.flatnonzero(self.batches[:, 0] == captions[0])[:1]
        pairs = self.readers.read(captions, self.batches[step[0] + 1 :] if len(step) else ())
        parts = [*self.states(*self.ids(*pairs.tokens[0])), *self.videos(pairs.video, pairs.steps)]
        batch = Batch(*(x.to(self.device) for x in parts), clips=torch.from_numpy(captions).to(self.device))
        if self.label_tokenizer is not None:
            labels, mask = self.ids(*pairs.tokens[-1])
            batch.labels = labels.masked_fill(~mask, -100).to(self.device)
        if memory:
            most = self.config.max_steps
            numbers, own = memory[0].tolist(), {number % len(self.corpus): number for number in captions.tolist()}
            clips = torch.tensor([own.get(number % len(self.corpus), number) for number in numbers])
            past = [self.past[x] if x in self.past else self.window(x)[0] for x in numbers]  # read after a resumption
            batch.past = Past(*(x.to(self.device) for x in (clips, memory[1], *self.videos(*padded(past, most)))))
        if (self.config.support_set or 0) > len(captions):
            windows = (window[:steps] for window, steps in zip(pairs.video, pairs.steps))
            past = self.past | dict(zip(captions.tolist(), windows))
            self.past = dict(list(past.items())[-self.config.support_set :])
        return batch

    def states(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, L), or with a frozen encoder its states (B, L, W), and the mask (B, L)."""
        if not self.config.freeze_text:
            return tokens, mask
        encoder, ids, real = self.encoder.eval().to(self.device), tokens.to(self.device), mask.to(self.device)
        with torch.no_grad():
            return encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state, mask

    def embed(self, model, split: str, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """As `Data.embed`: c_t (C, d) and c_v (C, d) of the fixed windows of a split's videos, and their positions."""
        videos = self.corpus.split(split)
        c_t, c_v = [], []
        model.eval()
        with torch.inference_mode(), threads(self.config.threads):
            parts = [np.asarray(part) for part in np.array_split(videos, -(-len(videos) // size))]
            for i, part in enumerate(parts):
                pairs = self.readers.read(part, parts[i + 1 :])
                tokens = self.states(*self.ids(*pairs.tokens[0]))
                c_t.append(model.embed_text(*(x.to(self.device) for x in tokens)).float().cpu())
                values = self.videos(pairs.video, pairs.steps)
                c_v.append(model.embed_video(*(x.to(self.device) for x in values)).float().cpu())
        return torch.cat(c_t), torch.cat(c_v), np.arange(len(videos))


def free_cores(used: int) -> int:
    """How many readers a run has whose torch uses so many cores: the other cores that it may use, from 1 to
    MOST_READERS. Their number changes no batch."""
    return max(1, min(MOST_READERS, joblib.cpu_count() // processes.count() - used))
