"""The study as a whole: what it is made of, executing its notebooks, and how far it is."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
