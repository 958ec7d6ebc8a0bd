"""The parameters of a notebook, checked in the cell right after the one that declares them."""

import ast
import difflib
import io
import json
import reprlib
import sys
import tokenize
import typing
from types import SimpleNamespace
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError


class Parameters(SimpleNamespace):
    """The checked values of a notebook's parameters as attributes; `vars(settings)` is a dict of them."""

    def __setattr__(self, name, *value):
        raise AttributeError(f"{name} cannot be changed here; edit the parameters cell, run it and the next one again")

    __delattr__ = __setattr__


class Declared(NamedTuple):
    """A line of the parameters cell."""

    annotation: str
    comment: str


def parameters(names: str = "") -> Parameters:
    """Read the parameters cell: the last cell run that holds only lines such as
    `seeds: list[int] = [0, 1]  # one run each`. Call it in the next cell.

    names: of the parameters that the notebook reads, with spaces between; "": whatever the cell declares. A name that
    is misspelt in the parameters cell itself is found by them.

    papermill inserts a cell of plain assignments between the two. It accepts a misspelt name with a warning, and lists,
    "false" and what follows `-r` arrive as strings. Here a string is read as a number, bool or list where one is
    declared; then every value must be of its annotated type (an int may be a float, nothing else is converted).

    Raises ValueError for a name that is not declared, with the list of parameters, and for a value of another type;
    RuntimeError outside a notebook.
    """
    ipython = sys.modules.get("IPython")  # loaded in every notebook; elsewhere there is no need to load it
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        raise RuntimeError("parameters() reads the cells of a running notebook, and this is none; use ssb.Config")
    space, declared, given = shell.user_ns, {}, set()
    for cell in space["In"]:
        body = _statements(cell)
        if body and all(_declares(line) for line in body):
            declared, given = _declared(cell, body), set()
        elif body and all(_declares(line) or isinstance(line, ast.Assign) for line in body) and _declares(body[0]):
            declared = _declared(cell, [line for line in body if _declares(line)])
            given = {ast.unparse(line.targets[0]) for line in body if isinstance(line, ast.Assign)}
        elif cell.split("\n")[0].strip() == "# Parameters":  # as papermill begins its cell
            if not declared:
                raise ValueError(
                    "papermill's values came before the parameters, which then hide them; give the cell "
                    "that declares the parameters the tag `parameters`"
                )
            given |= {ast.unparse(line.targets[0]) for line in body if isinstance(line, ast.Assign)}
    if not declared:
        raise ValueError("no parameters cell was run: one of nothing but `name: type = value  # meaning` lines")
    wanted = {name: declared.get(name, Declared("", "")) for name in names.split()} or declared
    if unknown := sorted((given | set(declared)) - set(wanted)):
        lines = [f"  {name}: {line.annotation}  # {line.comment}" for name, line in wanted.items()]
        raise ValueError("\n".join([*(_unknown(name, wanted) for name in unknown), "The parameters are:", *lines]))
    if missing := [name for name in wanted if name not in declared]:
        raise ValueError(f"the parameters cell lacks {', '.join(missing)}: a line such as `name: type = value`")
    values = {name: _checked(name, line, space) for name, line in declared.items()}
    space.update(values)  # later cells may use the bare names too
    return Parameters(**values)


def _statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it failed when it was run
        return []


def _declares(line: ast.stmt) -> bool:
    return isinstance(line, ast.AnnAssign) and bool(line.simple) and line.value is not None


def _declared(cell: str, body: list[ast.AnnAssign]) -> dict[str, Declared]:
    tokens = tokenize.generate_tokens(io.StringIO(cell).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    return {line.target.id: Declared(ast.unparse(line.annotation), comments.get(line.end_lineno, "")) for line in body}


def _unknown(name: str, declared: dict[str, Declared]) -> str:
    near = difflib.get_close_matches(name, declared, n=1)
    return f"{name} is not a parameter of this notebook." + "".join(f" Did you mean {n}?" for n in near)


def _checked(name: str, line: Declared, space: dict):
    adapter = TypeAdapter(eval(line.annotation, {**vars(typing), **space}))
    for value in (space[name], _parsed(space[name])):
        try:
            return adapter.validate_python(value, strict=True)
        except (ValidationError, RecursionError):
            continue
    raise ValueError(f"{name} = {reprlib.repr(space[name])} is not of type {line.annotation}  # {line.comment}")


def _parsed(value):
    """The value that a string spells in JSON or Python, such as false, True, 3e-5 or [0, 1]; else the value itself."""
    for read in (json.loads, ast.literal_eval) if isinstance(value, str) else ():
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: nested too deep
            continue
    return value
