"""The tables and figures of the study, a module each."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
