"""HowTo100M made ready for one Config: each batch is read from the disk, the next one while the last is trained on.

An epoch is one pair of every training video: a window of at most max_steps seconds and the narrations within it, see
`HowTo100M.window`. A pair is known by a number, the "caption" of `Data`: N × (epoch + 1) + video, of the N videos there
are; numbers below N are the fixed windows with which videos are embedded. So what a batch holds follows from its
numbers and Config.seed.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from ssb import text
from ssb.config import Config, ConfigError
from ssb.corpora.howto100m.corpus import HowTo100M
from ssb.machine import threads
from ssb.model import Batch, Past
from ssb.training.data import Data

NARRATIONS = 20_000  # of the training videos, to fit a tokenizer on
MEASURED = 1_000  # training videos, for the mean and deviation of the features


class Streamed(Data):
    """What `Data` is to a corpus in memory. Nothing of it grows with the corpus but the numbers of an epoch's pairs.

    States of a frozen text encoder are computed in every step: those of 136 million narrations are kept nowhere.
    """

    def __init__(self, config: Config, corpus: HowTo100M, device="cpu", like: Data | None = None):
        self.config, self.corpus, self.device = config, corpus, device
        if config.epoch != "clips":
            raise ConfigError(f"{corpus.name}: an epoch is one pair of every video; set epoch = 'clips'")
        if config.intra:
            raise ConfigError(f"{corpus.name}: intra = True wants two captions of a clip, and a window has one")
        if config.sequences:
            raise ConfigError(f"{corpus.name}: sequences = True wants a corpus of stories, such as events")
        self.train = corpus.split("train")
        self.streams = corpus.chosen(config.streams)
        known = self.sample() if "scratch" in (config.text_encoder, config.decoder) else []
        self.tokenizer = like.tokenizer if like else text.tokenizer(config.text_encoder, known, config.vocabulary)
        self.encoder = text.build_encoder(config, len(self.tokenizer))
        self.text_width = self.encoder.config.hidden_size
        self.vocabulary = 0
        if config.objective != "none":
            spoken = getattr(like, "label_tokenizer", None)
            self.label_tokenizer = spoken or text.tokenizer(config.decoder, known, config.vocabulary)
            self.vocabulary = len(self.label_tokenizer)
        self.past: dict[int, np.ndarray] = {}  # windows of as many pairs as the support set may reach back to
        self.reader = ThreadPoolExecutor(1)  # one alone, for a tokenizer serves no two threads
        self.coming = np.empty((0, 1), int)  # the epoch's batches
        self.ahead: tuple[np.ndarray, Future] | None = None  # the batch read in the background

    @property
    def video_width(self) -> int:
        return sum(stream.dim for stream in self.streams)

    def sample(self) -> list[str]:
        """At most NARRATIONS narrations of training videos, evenly spaced."""
        videos = self.train[np.linspace(0, len(self.train) - 1, min(NARRATIONS, len(self.train))).astype(int)]
        each = -(-NARRATIONS // len(videos))
        found = []
        for video in videos.tolist():
            shard, row = self.corpus.place(video)
            count = shard.count(row)
            found += shard.texts_of(row, np.unique(np.linspace(0, count - 1, min(each, count)).astype(int)))
        return found[:NARRATIONS]

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation (D,) of each feature over fixed windows of MEASURED training videos, evenly spaced."""
        videos = self.train[np.linspace(0, len(self.train) - 1, min(MEASURED, len(self.train))).astype(int)]
        count, mean, squares = 0, 0.0, 0.0
        for video in videos.tolist():
            values, _ = self.window(video)
            values = values.astype(np.float64)
            off = values.mean(0) - mean  # Chan, Golub & LeVeque (1983): two samples as one
            squares = squares + ((values - values.mean(0)) ** 2).sum(0)
            squares = squares + off**2 * count * len(values) / (count + len(values))
            mean = mean + off * len(values) / (count + len(values))
            count += len(values)
        deviation = np.sqrt(squares / max(count - 1, 1))
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float().clamp(min=1e-6)

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of an epoch's pairs, (steps, B), a function of Config.seed and the epoch alone."""
        videos = np.random.default_rng((self.config.seed, epoch)).permutation(np.array(self.train))
        size = min(self.config.batch, len(videos))
        steps = len(videos) // size
        self.coming = (len(self.corpus) * (epoch + 1) + videos[: steps * size]).reshape(steps, size)
        return self.coming

    def window(self, number: int) -> tuple[np.ndarray, str]:
        """Features (steps, D) and caption of a pair."""
        epochs, video = divmod(number, len(self.corpus))
        seed = (self.config.seed, epochs) if epochs else ()
        begin, end, caption = self.corpus.window(video, self.config.max_steps, *seed)
        return self.corpus.features(video, self.streams, begin, end), caption

    def padded(self, windows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, max_steps, D) and which steps are real, (B, max_steps)."""
        values = np.zeros((len(windows), self.config.max_steps, self.video_width), np.float32)
        mask = np.zeros(values.shape[:2], bool)
        for i, window in enumerate(windows):
            values[i, : len(window)], mask[i, : len(window)] = window, True
        return torch.from_numpy(values), torch.from_numpy(mask)

    def _read(self, numbers: np.ndarray) -> tuple[list[np.ndarray], tuple, tuple | None]:
        """Windows of the pairs; token ids and labels of their captions, each with the mask of what is real."""
        windows, captions = zip(*(self.window(number) for number in numbers.tolist()))

        def ids(tokenizer):
            rows = text.Ragged.of(text.token_ids(tokenizer, list(captions), self.config.max_tokens))
            return rows.padded(np.arange(len(captions)))

        return list(windows), ids(self.tokenizer), ids(self.label_tokenizer) if self.vocabulary else None

    def read(self, numbers: np.ndarray):
        """`_read`, in the background where these pairs were to be expected; then the epoch's next batch is begun."""
        if self.ahead is None or not np.array_equal(self.ahead[0], numbers):
            self.ahead = numbers, self.reader.submit(self._read, numbers)
        found = self.ahead[1].result()
        self.ahead = None
        for step in np.flatnonzero(self.coming[:-1, 0] == numbers[0]) + 1:  # none or one
            self.ahead = self.coming[step], self.reader.submit(self._read, self.coming[step])
        return found

    def batch(self, captions: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """As `Data.batch`. `clips` are numbers too: of the past, the pair of this batch where it is of the same video,
        as a video is not to help to say its own narration, whichever windows they are."""
        windows, tokens, labels = self.read(captions)
        parts = [*self.states(*tokens), *self.padded(windows)]
        batch = Batch(*(x.to(self.device) for x in parts), clips=torch.from_numpy(captions).to(self.device))
        if labels is not None:
            batch.labels = labels[0].masked_fill(~labels[1], -100).to(self.device)
        if memory:
            numbers, own = memory[0].tolist(), {number % len(self.corpus): number for number in captions.tolist()}
            clips = torch.tensor([own.get(number % len(self.corpus), number) for number in numbers])
            found = [self.past[x] if x in self.past else self.window(x)[0] for x in numbers]  # not there: a resumed run
            batch.past = Past(*(x.to(self.device) for x in (clips, memory[1], *self.padded(found))))
        if (self.config.support_set or 0) > len(captions):
            self.past |= dict(zip(captions.tolist(), windows))
            for number in list(self.past)[: -self.config.support_set]:
                del self.past[number]
        return batch

    def states(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, or the states of an encoder that is frozen, and the mask."""
        if not self.config.freeze_text:
            return tokens, mask
        encoder, ids, real = self.encoder.eval().to(self.device), tokens.to(self.device), mask.to(self.device)
        with torch.no_grad():
            return encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state, mask

    def embed(self, model, split: str, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        videos = self.corpus.split(split)
        c_t, c_v = [], []
        model.eval()
        with torch.inference_mode(), threads(self.config.threads):
            for part in np.array_split(videos, -(-len(videos) // size)):
                windows, tokens, _ = self.read(np.asarray(part))
                c_t.append(model.embed_text(*(x.to(self.device) for x in self.states(*tokens))).float().cpu())
                c_v.append(model.embed_video(*(x.to(self.device) for x in self.padded(windows))).float().cpu())
        return torch.cat(c_t), torch.cat(c_v), np.arange(len(videos))
