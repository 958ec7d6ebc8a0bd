"""The one rule of imports: only downwards, at module level, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ssb
from ssb.experiments import overview

LAYERS = """files progress machine notebook processes < config emcl s2dtw < losses corpora < text decoder
 < model metrics video < training < paper published < tables < study figures < report bench < pages < experiments
 < whole < __init__ __main__ retrieval"""
LEVEL = {part: level for level, names in enumerate(LAYERS.split("<")) for part in names.split()}
ROOT = Path(ssb.__file__).parent
SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in ROOT.rglob("*.py")}
STARTS = ("__init__", "__main__")  # which import what is used, when it is used
OWN_CODE = ("losses", "training.identity")  # which import the reader's own modules by their names
DYNAMIC = {"import_module", "__import__", "pkgutil", "runpy", "modules", "exec"}


def initialisers(target: str, sources: dict[str, str]) -> list[str]:
    """The `__init__` modules that run before a module, or with a package: of ssb itself, and of every package above."""
    parts = target.split(".") if target else []
    names = [".".join([*parts[:end], "__init__"]) for end in range(len(parts) + 1)]
    return [name for name in names if name in sources]


def imported(node: ast.AST, sources: dict[str, str]) -> list[str]:
    """The modules of ssb that a statement imports, "training.loop"; "" for ssb itself."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the module in full"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        packages = {name.removesuffix(".__init__") for name in sources}
        names = [name if name.removeprefix("ssb.") in packages else node.module for name in inner]
    else:
        return []
    return [name.removeprefix("ssb").removeprefix(".") for name in names if name.partition(".")[0] == "ssb"]


def dynamic(tree: ast.AST) -> list[int]:
    """The lines on which modules are imported, or looked up, by names that are not constants of other libraries:
    import_module, __import__, pkgutil, runpy, sys.modules."""
    harmless, uses = set(), []
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else node.value if isinstance(node, ast.Subscript) else None
        if called is not None:
            given = node.args if isinstance(node, ast.Call) else [node.slice]
            names = [x.value for x in given if isinstance(x, ast.Constant) and isinstance(x.value, str)]
            if names and not any(name.partition(".")[0] == "ssb" for name in names):
                harmless |= {id(inner) for inner in ast.walk(called)}  # sys.modules.get("IPython")
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            whole = isinstance(node, ast.Name) or isinstance(node.value, ast.Name) and node.value.id == "sys"
            if name in DYNAMIC and (name != "modules" or whole and isinstance(node, ast.Attribute)):
                uses.append(node)
    return [node.lineno for node in uses if id(node) not in harmless]


def wrong_imports(sources: dict[str, str]) -> list[str]:
    """What breaks the rule, a line each; CycleError for a circle, which it names."""
    graph, wrong = {}, []
    for name, source in sources.items():
        tree, last = ast.parse(source), name.rpartition(".")[2]
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            for target in imported(node, sources):
                if id(node) not in top and last not in STARTS:
                    wrong.append(f"{name}:{node.lineno} imports {target or 'ssb'} inside a function or a condition")
                here, there = name.partition(".")[0], target.partition(".")[0]
                above = LEVEL.get(there, 99) > LEVEL[here] or (LEVEL[there] == LEVEL[here] and there != here)
                if above and not (target == "" and last == "__init__"):  # for `ssb.lazily`
                    wrong.append(f"{name}:{node.lineno} imports {target or 'ssb'}, which is not below it")
                if id(node) in top:
                    graph.setdefault(name, set()).update([target] if target in sources else [])
                    graph[name].update(x for x in initialisers(target, sources) if x not in initialisers(name, sources))
        if last not in STARTS and name not in OWN_CODE:
            wrong += [f"{name}:{line} imports by name" for line in dynamic(tree)]
        graph.setdefault(name, set()).update(x for x in initialisers(name.rpartition(".")[0], sources) if x != name)
    TopologicalSorter(graph).prepare()
    return wrong


def test_imports_go_downwards_at_module_level_and_not_in_a_circle():
    wrong = [line for line in wrong_imports(SOURCES) if not line.startswith("experiments.overview:")]
    walks = [line for line in wrong_imports(SOURCES) if line.startswith("experiments.overview:")]
    assert not wrong, "\n".join(wrong)
    assert walks and all(line.endswith(" imports by name") for line in walks), "it collects all experiments"
    above = {f"experiments.{name}" for name in overview.ABOVE}
    others = [source for name, source in SOURCES.items() if name.startswith("experiments.") and name not in above]
    assert not any(
        "experiments import overview" in source or "experiments.overview import" in source for source in others
    )


@pytest.mark.parametrize("name", OWN_CODE)
def test_what_imports_the_readers_modules_names_none_of_the_library(name):
    calls = [node for node in ast.walk(ast.parse(SOURCES[name])) if isinstance(node, ast.Call)]
    strings = [x.value for node in calls for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    assert not any(value.startswith("ssb.") for value in strings)


def test_no_module_gives_the_importing_function_another_name():
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module in ("importlib", "pkgutil", "runpy"):
                assert not any(alias.asname for alias in node.names)


@pytest.mark.parametrize(
    "line",
    [
        "importlib.import_module('ssb.study')",
        "importlib.import_module(f'ssb.{name}')",
        "import_module(name)",
        "__import__('ssb.report')",
        "[x.name for x in pkgutil.iter_modules(path)]",
        "sys.modules['ssb.study']",
        "sys.modules.get(name)",
    ],
)
def test_an_import_by_name_inside_a_function_is_found(line):
    source = f"import importlib, pkgutil, sys\n\n\ndef use(name, path):\n    return {line}\n"
    assert wrong_imports(SOURCES | {"metrics.extra": source}) == [
        *wrong_imports(SOURCES), "metrics.extra:5 imports by name"
    ]  # fmt: skip
    assert not dynamic(ast.parse("def use():\n    return sys.modules.get('IPython'), importlib.import_module('numpy')"))


def test_a_circle_through_the_init_of_a_package_is_found():
    """`ssb.training.loop` runs ssb/training/__init__.py first; one that imports it, or what imports it, is a circle."""
    for source in ("from ssb.training import loop\n", "from ssb.training.batch import train\n"):
        with pytest.raises(CycleError):
            wrong_imports(SOURCES | {"training.__init__": source})
    with pytest.raises(CycleError):
        wrong_imports(SOURCES | {"corpora.__init__": "from ssb.corpora.howto100m import index\n"})
    with pytest.raises(CycleError):
        wrong_imports(SOURCES | {"__init__": "from ssb.files import root\n"})


def test_every_part_has_its_layer_and_the_top_is_small():
    assert {name.partition(".")[0] for name in SOURCES} <= LEVEL.keys() | {"__init__"}
    assert len([name for name in SOURCES if "." not in name]) <= 20
    assert len([path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("_")]) == 9
