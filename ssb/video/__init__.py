"""Raw video to feature streams."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
