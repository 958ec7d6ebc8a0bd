"""Long videos prepared for one Config: batches of whole videos with their caption sequences."""

import numpy as np
import torch

from ssb import losses, s2dtw
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError
from ssb.machine import threads
from ssb.metrics import retrieval
from ssb.model import Batch
from ssb.training.data import Data


class StoryData(Data):
    """A corpus of long videos (`Corpus.stories`): a batch holds `Config.batch` videos, each with all its clips and its
    whole caption sequence. A query is a caption sequence. CorpusError where the corpus has no long videos, ConfigError
    where its sequences do not fit the contrastive loss."""

    def __init__(self, config: Config, corpus: Corpus, device="cpu", like: Data | None = None):
        if corpus.stories is None:
            raise CorpusError(f"{corpus.name} has no long videos; sequences = True needs a corpus such as events")
        self.stories = corpus.stories
        clips, captions = self.stories.clips.shape[1], self.stories.captions.shape[1]
        self.paired = losses.contrast(config).paired
        if self.paired and clips != captions:
            others = " or ".join(repr(name) for name, loss in losses.CONTRASTS.items() if not loss.paired)
            raise ConfigError(
                f"contrast = {config.contrast!r} pairs captions and clips by position, but each video of {corpus.name} "
                f"has {captions} captions and {clips} clips; take contrast = {others}"
            )
        super().__init__(config, corpus, device, like)

    def pairs(self, split: str) -> np.ndarray:
        """The numbers of the long videos of a split."""
        return self.stories.split(split)

    def order(self, epoch: int) -> np.ndarray:
        """Videos of an epoch's batches, (steps, B)."""
        videos = np.random.default_rng((self.config.seed, epoch)).permutation(self.stories.splits["train"])
        size = min(self.config.batch, len(videos))
        return videos[: len(videos) // size * size].reshape(-1, size)

    def items(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All captions and all clips of these videos (B,), one video after the other."""
        return self.stories.captions[rows].ravel(), self.stories.clips[rows].ravel()

    def batch(self, rows: np.ndarray, memory: tuple[torch.Tensor, ...] = ()) -> Batch:
        """All clips and captions of these videos (B,), one video after the other."""
        batch = self._batch(rows)
        batch.stories = len(rows)
        if not self.paired:
            captioned, filmed = (torch.arange(len(x)) * len(rows) // len(x) for x in (batch.text, batch.video))
            support = (captioned[:, None] != filmed) | (self.config.objective == "full")
            batch.support = support.to(self.device)
        return batch

    def embed_sequences(self, model, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """c_t (V, m, d) of the captions of each video of a split, c_v (V, n, d) of its clips; after EMCL, one call on
        all of them, where the model has it."""
        rows = self.stories.splits[split]
        captions, clips = self.stories.captions[rows], self.stories.clips[rows]
        with torch.inference_mode(), threads(self.config.threads):
            c_t = self.embed_texts(model.eval(), captions.ravel()).to(self.device)
            c_v = self.embed_videos(model, clips.ravel()).to(self.device)
            c_t, c_v = model.rebuilt(c_t, c_v)
            return c_t.unflatten(0, captions.shape).cpu(), c_v.unflatten(0, clips.shape).cpu()

    def ranks(self, model, split: str, every: bool = True) -> dict[str, np.ndarray]:
        """Ranks by S2DTW as `Data.ranks` gives them, (V,) each: of each caption sequence among the videos, and of each
        video among the sequences. With one sequence for each video both protocols from video to text are the same."""
        c_t, c_v = self.embed_sequences(model, split)
        with torch.inference_mode(), threads(self.config.threads):
            scores = -s2dtw.distances(c_v, c_t, **losses.alignment_options(self.config))  # (sequences, videos)
        videos = np.arange(len(scores))
        return retrieval.matrix_ranks(scores, videos) | {"clip": videos}
