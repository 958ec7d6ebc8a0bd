"""The one rule of imports: only downwards, at module level, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ssb

LAYERS = """files progress machine notebook processes < config emcl s2dtw < losses text decoder corpora
 < model metrics video < training < paper published < study figures < report bench < experiments
 < __init__ __main__ retrieval"""
LEVEL = {part: level for level, names in enumerate(LAYERS.split("<")) for part in names.split()}
ROOT = Path(ssb.__file__).parent
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(node: ast.AST) -> list[str]:
    """The modules of ssb that a statement imports, "training.loop"; "" for ssb itself."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the module in full"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name.removeprefix("ssb.") in FILES else node.module for name in inner]
    else:
        return []
    return [name.removeprefix("ssb").removeprefix(".") for name in names if name.partition(".")[0] == "ssb"]


def test_imports_go_downwards_at_module_level_and_not_in_a_circle():
    graph, wrong = {}, []
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            for target in imported(node):
                if id(node) not in top and name not in ("__init__", "__main__"):
                    wrong.append(f"{name}:{node.lineno} imports {target or 'ssb'} inside a function or a condition")
                here, there = name.partition(".")[0], target.partition(".")[0]
                if LEVEL.get(there, 99) > LEVEL[here] or (LEVEL[there] == LEVEL[here] and there != here):
                    wrong.append(f"{name}:{node.lineno} imports {target or 'ssb'}, which is not below it")
                graph.setdefault(name, set()).add(target)
    assert not wrong, "\n".join(wrong)
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_every_part_has_its_layer_and_the_top_is_small():
    assert {name.partition(".")[0] for name in FILES} <= LEVEL.keys() | {"__init__"}
    assert len([name for name in FILES if "." not in name]) <= 20
    assert len([path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("_")]) == 6
