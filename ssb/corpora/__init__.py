"""Corpora: clips, captions, splits and frozen features; where they come from and how they are read."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
