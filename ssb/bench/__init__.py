"""Benchmarks of the library on this machine, a module for each command."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
