"""What the numbers of a run depend on besides its settings and its corpus: code of your own, and pretrained models.

A run's name is a digest of all of it. So that what is hashed is also what runs, code that was edited after its import
is refused, or imported again: in a worker, and where this process has not trained with it yet.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import multiprocessing
import operator
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import psutil
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig

from ssb import files, losses, text
from ssb.config import VERSION, Config, ConfigError
from ssb.model import HEADS
from ssb.training.protocol import TrainingCorpus

CONSTANTS = (int, float, complex, str, bytes, tuple, type(None))
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def identity(config: Config, corpus: TrainingCorpus) -> list[str]:
    """Everything that a run's numbers depend on, a text for each: its settings that differ from the defaults, the
    corpus, the version, code of your own, pretrained models that may change. ConfigError where this process has
    imported code that is no longer what its file says."""
    heads = [HEADS[name] for name in (config.video_pooling, config.text_pooling)]
    contrast = losses.contrast(config)
    modules = dict.fromkeys([contrast.module, *map(inspect.getmodule, heads)])
    own = [module for module in modules if module.__name__.partition(".")[0] != "ssb"]
    code = [_code(module, [type(contrast), *heads]) for module in own]
    models = [config.text_encoder, *([config.decoder] if config.objective != "none" else [])]
    return [config.key, corpus.fingerprint, str(VERSION), *code, *filter(None, map(model_content, models))]


# Pretrained models


def model_content(name: str) -> str:
    """The content of a model's folder, or the commit of a hub's model; "" for "scratch", for a model that a package
    installs, and for one that is not there."""
    if name == "scratch" or text.model_path(name) != name:
        return ""
    if os.path.isdir(name) and not (Path(name) / "config.json").is_file():  # which building the model will report
        return ""
    if os.path.isdir(name):
        paths = (path for path in sorted(Path(name).rglob("*")) if path.is_file())
        inner = [path for path in paths if not any(x.startswith(".") for x in path.relative_to(name).parts)]
        sums = (part for path in inner for part in (str(path.relative_to(name)), _sum(path, *_state(path))))
        return f"model {files.digest(*sums)}"
    return _commit(name)


@functools.cache
def _commit(name: str) -> str:
    try:
        text.pretrained(AutoConfig, name)  # the first use fetches it, and so it has a commit from the first run on
    except text.ModelError:  # which building the model will report
        return ""
    path = try_to_load_from_cache(name, "config.json")
    return f"model {name} {Path(path).parent.name}" if isinstance(path, str) else ""


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _sum(path: Path, size: int, changed: int) -> str:
    return files.sha256(path)


# Code of your own


def _code(module: ModuleType, classes: list[type]) -> str:
    """The source of a module and of the modules of yours that it imports; ConfigError where it is not what runs."""
    if not getattr(module, "__file__", None):  # a notebook
        own = [each for each in classes if each.__module__ == module.__name__]
        try:
            return "code " + files.digest(*map(inspect.getsource, own))
        except (OSError, TypeError):
            name = own[0].__name__ if own else module.__name__
            raise ConfigError(f"{name} has no source file; define it in a module, a .py file") from None
    paths = own_modules(module)
    unsure, worker = _unsure(paths), multiprocessing.parent_process()
    edited = unsure or _edited(paths) or _replaced(module, classes)
    if (unsure or edited and worker) and module.__name__ != "__main__":
        for name, path in paths.items():
            sys.modules.pop(name, None)
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)  # of the same second and size
        importlib.invalidate_caches()
        importlib.import_module(module.__name__)
        _register_again(paths)
        edited = _edited(paths)
    if edited:
        raise ConfigError(
            f"{paths[edited]} is not what this process has imported as {edited}: restart the kernel, or reload it with "
            f"importlib.reload and then whatever imports it"
        )
    return "code " + files.digest(*(part for name, path in paths.items() for part in (name, path.read_bytes())))


def _register_again(paths: dict[str, Path]) -> None:
    """Take the registered heads and losses of these modules from what has just been imported. ConfigError where one is
    not found there by its name."""
    for registry in (HEADS, losses.CONTRASTS):
        for name, thing in [*registry.items()]:
            if (home := getattr(thing, "__module__", "")) in paths:
                try:
                    registry[name] = operator.attrgetter(thing.__qualname__)(importlib.import_module(home))
                except AttributeError:
                    raise ConfigError(
                        f"{paths[home]} was written after this process began and has no {thing.__qualname__} to import "
                        f"again, which is registered as {name!r}: restart the kernel, or define it in the module itself"
                    ) from None


def own_modules(module: ModuleType) -> dict[str, Path]:
    """A module and the modules that it imports, and these import, from the same package or folder: name → file."""
    folder, package = Path(module.__file__).resolve().parent, module.__name__.partition(".")[0]
    paths, todo = {module.__name__: Path(module.__file__).resolve()}, [module.__name__]
    while todo:
        for name in _imports(here := todo.pop(), paths[here]):
            top = name.partition(".")[0]
            local = folder not in INSTALLED and ((folder / top).is_dir() or (folder / f"{top}.py").is_file())
            if name in paths or top == "ssb" or not (top == package or local):
                continue
            path = _file(name)
            if path and (top == package or path.is_relative_to(folder)):
                paths[name] = path
                todo.append(name)
    return dict(sorted(paths.items()))


def _imports(name: str, path: Path) -> Iterator[str]:
    """Names of the modules that a file may import, with the packages that they are in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # which `_differs` reports
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]  # modules, or names within base
        else:
            continue
        for each in names:
            parts = each.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file(name: str) -> Path | None:
    """The source file of a module; None where there is none."""
    try:
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):  # within something that is no package
        return None
    path = Path(getattr(spec, "origin", None) or "")
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def _replaced(module: ModuleType, classes: list[type]) -> str | None:
    """The module's name where one of these classes is of an earlier import of it."""
    own = [each for each in classes if each.__module__ == module.__name__]
    return module.__name__ if any(vars(module).get(each.__name__, each) is not each for each in own) else None


def _unsure(paths: dict[str, Path]) -> str | None:
    """The first of these modules that has been imported, but not looked at by `_edited`, and whose file was written
    after this process began. It may be of an earlier text, which values such as TAUS = [0.07] do not show."""
    began = psutil.Process().create_time()
    known = sorted(paths.keys() & sys.modules.keys())
    new = (name for name in known if not hasattr(sys.modules[name].__spec__, "ssb_source"))
    return next((name for name in new if paths[name].stat().st_mtime > began), None)


def _edited(paths: dict[str, Path]) -> str | None:
    """The first of these modules that this process has imported and whose file has other code now. What Python has
    imported is not kept as text, so the code is compared, and the text with that of the first time it was looked at."""
    for name in sorted(paths.keys() & sys.modules.keys()):
        module, source = sys.modules[name], paths[name].read_bytes()
        spec = module.__spec__  # another one after a reload
        first = getattr(spec, "ssb_source", source)
        plain = spec is None or type(spec.loader) is SourceFileLoader  # others, such as pytest's, change the code
        if first != source or plain and _differs(module, source):
            return name
        if spec is not None:
            spec.ssb_source = source
    return None


def _differs(module: ModuleType, source: bytes) -> bool:
    """Has a module a function, or a constant such as `T = 0.07`, that its source has not, or has another value for?"""
    try:
        compiled = set(_inner(compile(source, module.__file__, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return True
    classes = (value for value in vars(module).values() if isinstance(value, type))
    own = [vars(each) for each in classes if each.__module__ == module.__name__]
    for value in (value for names in (vars(module), *own) for value in names.values()):
        code = value.__code__ if isinstance(value, FunctionType) else None
        if code and code.co_filename == module.__file__ and code not in compiled:
            return True
    tree = ast.parse(source)
    changing = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    bound = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for node in (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = target.id if isinstance(target, ast.Name) else None
        if name is None or name in changing or bound.count(name) > 1:
            continue
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, SyntaxError, RecursionError):
            continue
        if isinstance(value, CONSTANTS) and vars(module).get(name) != value:
            return True
    return False


def _inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inner(constant)
