"""Training: the batches of a corpus, the training loop, finished runs, and many runs in parallel."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
