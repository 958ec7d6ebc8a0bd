"""Tables of a study: how settings are compared and claims are judged, and the ranks that this needs."""

from ssb import lazily

__getattr__, __dir__ = lazily(__name__, __path__)
