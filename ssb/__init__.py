"""Support-Set Bottlenecks for Video-Text Representation Learning (Patrick et al., ICLR 2021): a reproducible study.

Everything named here is imported when it is first used, so that `import ssb` costs next to nothing.
"""

import importlib
import warnings

# progress is plain text, which a saved notebook keeps; tqdm need not advise to install widgets
warnings.filterwarnings("ignore", "IProgress not found")

NAMES = {  # public name → the module that defines it
    "Config": "config",
    "ConfigError": "config",
    "OBJECTIVES": "config",
    "PRESETS": "config",
    "Corpus": "corpora.corpus",
    "CorpusError": "corpora.reading",
    "load_corpus": "corpora.load",
    "ModelError": "text",
    "Run": "training.runs",
    "TrainingError": "training.runs",
    "Collapsed": "training.runs",
    "configure": "training.runs",
    "fit": "training.loop",
    "Study": "study",
    "parameters": "notebook",
    "settings": "report",
}
MODULES = ("config", "losses", "emcl", "s2dtw", "model", "text", "retrieval")  # the method
MODULES += ("study", "paper", "figures", "report", "notebook", "files", "progress", "machine")  # the study
MODULES += ("corpora", "training", "metrics", "experiments", "video", "bench")
__all__ = [*NAMES, *MODULES]


def __getattr__(name: str):
    if name in NAMES:
        return getattr(importlib.import_module(f"ssb.{NAMES[name]}"), name)
    if name in MODULES:
        return importlib.import_module(f"ssb.{name}")
    raise AttributeError(f"module 'ssb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
