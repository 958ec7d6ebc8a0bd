"""Measures of retrieval, captions, actions and steps, and their statistics."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
