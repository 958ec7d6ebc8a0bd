"""The study as pages for a browser: an index of results and figures, and every notebook that was run."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
