"""Support-Set Bottlenecks for Video-Text Representation Learning (Patrick et al., ICLR 2021): a reproducible study.

Everything named here is imported when it is first used, so that `import ssb` costs next to nothing.
"""

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping

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


def lazily(package: str, paths: Iterable[str], names: Mapping[str, str] = {}) -> tuple[Callable, Callable]:
    """`__getattr__` and `__dir__` of a package, for `__init__.py`: its modules are imported when they are first used.

    paths: `__path__` of the package. names: further public names → the module that defines each.
    """
    modules = [module.name for module in pkgutil.iter_modules(paths) if not module.name.startswith("_")]

    def get(name: str):
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted([*names, *modules])


__getattr__, __dir__ = lazily(__name__, __path__, NAMES)
__all__ = __dir__()
