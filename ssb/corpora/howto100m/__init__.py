"""HowTo100M, a corpus that stays on disk."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
