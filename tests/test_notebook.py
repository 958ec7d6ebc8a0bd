import os
import pickle
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

import ssb
from ssb import notebook as notebook_module
from ssb.notebook import Parameters

CELL = """
corpus: str = "shapes"  # name or folder of a corpus
seeds: list[int] = [0, 1, 2]  # one run each
lr: float = 5e-5  # Adam's # first rate
steps: int = 32
flag: bool = False  # train again what is there
best: int | None = None  # epoch
settings_by_name: dict[str, list[float]] = {
    "a": [0.5],  # inside
}  # sizes
"""
CALL = "from ssb.notebook import parameters\nsettings = parameters()"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # the user's history is left alone
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    yield shell
    shell.restore_sys_module_state()  # it had put its own __main__
    InteractiveShell.clear_instance()


def run(shell, *cells, **given):
    """Run a parameters cell, what papermill would put behind it, and the call; → settings."""
    injected = [PythonTranslator.codify(given)] if given else []
    for cell in (*(cells or [CELL]), *injected, CALL):
        shell.run_cell(cell, store_history=True).raise_error()
    return shell.user_ns["settings"]


def test_later_cells_may_use_the_bare_names(shell):
    run(shell, seeds="[0,1]", lr="3e-5", flag="true")
    assert [shell.user_ns[name] for name in ("seeds", "lr", "flag")] == [[0, 1], 3e-5, True]


def refusal(shell, *cells, **given):
    with pytest.raises(ValueError) as caught:
        run(shell, *cells, **given)
    return str(caught.value)


def test_values_as_declared(shell):
    settings = run(shell)
    assert vars(settings) == {
        "corpus": "shapes",
        "seeds": [0, 1, 2],
        "lr": 5e-5,
        "steps": 32,
        "flag": False,
        "best": None,
        "settings_by_name": {"a": [0.5]},
    }
    assert repr(settings).startswith("Parameters(corpus='shapes', seeds=[0, 1, 2], lr=5e-05, steps=32")


@pytest.mark.parametrize(
    "name, given, wanted",
    [
        ("corpus", "msrvtt", "msrvtt"),
        ("corpus", "1", "1"),  # a string where one is wanted is left as it is
        ("corpus", "[0]", "[0]"),
        ("seeds", "[0,1]", [0, 1]),
        ("seeds", [7], [7]),
        ("lr", "3e-5", 3e-5),
        ("lr", "1", 1.0),
        ("lr", 2, 2.0),
        ("steps", " 64 ", 64),
        ("flag", "true", True),
        ("flag", "false", False),
        ("flag", "True", True),
        ("flag", True, True),
        ("best", "3", 3),
        ("best", "null", None),
        ("best", "None", None),
        ("settings_by_name", "{'b': [1, 2.5]}", {"b": [1.0, 2.5]}),
    ],
)
def test_what_papermill_passes_becomes_what_is_wanted(shell, name, given, wanted):
    value = getattr(run(shell, **{name: given}), name)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    "name, given, words",
    [
        ("seeds", "0,", "seeds = '0,' is not of type list[int]  # one run each"),
        ("seeds", 3, "seeds = 3 is not of type list[int]"),
        ("seeds", [0, "1"], "seeds = [0, '1'] is not of type list[int]"),
        ("seeds", [True], "seeds = [True] is not of type list[int]"),
        ("lr", "fast", "lr = 'fast' is not of type float  # Adam's # first rate"),
        ("lr", True, "lr = True is not of type float"),
        ("steps", 5.0, "steps = 5.0 is not of type int"),
        ("steps", "5.0", "steps = '5.0' is not of type int"),
        ("steps", False, "steps = False is not of type int"),
        ("steps", "import os", "steps = 'import os' is not of type int"),
        ("flag", 1, "flag = 1 is not of type bool  # train again what is there"),
        ("flag", "yes", "flag = 'yes' is not of type bool"),
        ("corpus", 2024, "corpus = 2024 is not of type str  # name or folder of a corpus"),
        ("corpus", None, "corpus = None is not of type str"),
    ],
)
def test_a_value_of_another_type_is_refused(shell, name, given, words):
    assert words in refusal(shell, **{name: given})


def test_a_misspelt_name_is_refused_with_the_real_ones(shell):
    message = refusal(shell, corpsu="msrvtt", zzz=1, seeds=[1])
    assert message.splitlines() == [
        "corpsu is not a parameter of this notebook. Did you mean corpus?",
        "zzz is not a parameter of this notebook.",
        "The parameters are:",
        "  corpus: str  # name or folder of a corpus",
        "  seeds: list[int]  # one run each",
        "  lr: float  # Adam's # first rate",
        "  steps: int  # ",
        "  flag: bool  # train again what is there",
        "  best: int | None  # epoch",
        "  settings_by_name: dict[str, list[float]]  # sizes",
    ]


def test_an_edited_cell_and_one_run_again(shell):
    assert run(shell, seeds=[4]).seeds == [4]
    assert run(shell, CELL.replace("[0, 1, 2]", "[9]")).seeds == [9]  # run again: papermill's value is gone
    assert run(shell, "pass").seeds == [9]  # only the call was run again
    assert "steps = 'x' is not of type int" in refusal(shell, CELL.replace("32", "'x'"))


def test_only_what_ran_since_the_parameters_cell_counts(shell):
    refusal(shell, sizes="[1]")
    assert run(shell, CELL + "sizes: list[int] = [0]  # new").sizes == [0]
    assert run(shell) == run(shell, "pass") and not hasattr(run(shell), "sizes")


def test_other_cells_are_no_parameters(shell):
    cells = ["import math", CELL, "width = 3\nheight: int = 4", "# a note", "", "x: int"]
    assert run(shell, *cells) == run(shell)
    with pytest.raises(SyntaxError):
        run(shell, "lr: float = ")
    assert run(shell, "pass").lr == 5e-5


def test_literals_and_types_of_the_notebook(shell):
    cells = [
        "from typing import Annotated, Literal\nfrom pydantic import Field",
        "preset: Literal['smoke', 'laptop'] = 'laptop'  # size\nshare: Annotated[float, Field(le=1)] = 1",
    ]
    assert run(shell, *cells, preset="smoke").preset == "smoke"
    assert "preset = 'huge' is not of type Literal['smoke', 'laptop']  # size" in refusal(shell, *cells, preset="huge")
    assert "share = '2' is not of type" in refusal(shell, *cells, share="2")


def test_a_notebook_without_a_parameters_cell_is_refused(shell):
    assert "no parameters cell was run: one of nothing but `name: type = value" in refusal(shell, "seeds = [0]")


def test_values_put_before_the_parameters_are_refused(shell):
    """papermill does so, with a warning, where no cell has the tag."""
    assert "give the cell that declares the parameters the tag `parameters`" in refusal(
        shell, PythonTranslator.codify({"seeds": [1]}), CELL
    )


def test_outside_a_notebook():
    InteractiveShell.clear_instance()
    with pytest.raises(RuntimeError, match="reads the cells of a running notebook, and this is none"):
        notebook_module.parameters()


def test_parameters_do_not_change():
    settings = Parameters(corpus="shapes", seeds=[0])
    with pytest.raises(AttributeError, match="corpus cannot be changed here; edit the parameters cell"):
        settings.corpus = "msrvtt"
    with pytest.raises(AttributeError, match="other cannot be changed"):
        settings.other = 1
    with pytest.raises(AttributeError, match="seeds cannot be changed"):
        del settings.seeds
    with pytest.raises(AttributeError, match="corups"):
        settings.corups
    assert pickle.loads(pickle.dumps(settings)) == settings == Parameters(corpus="shapes", seeds=[0])


# through papermill itself


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook of three cells on disk; its kernel is this interpreter and finds this library."""
    monkeypatch.setenv("PYTHONPATH", str(Path(ssb.__file__).parents[1]), prepend=os.pathsep)
    cell = nbformat.v4.new_code_cell
    show = "import sys\nprint(sys.executable, settings)"
    cells = [cell(CELL, metadata={"tags": ["parameters"]}), cell(CALL), cell(show)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "table.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_papermill_stops_at_a_misspelt_name(notebook):
    with pytest.raises(PapermillExecutionError, match="corpsu is not a parameter of this notebook. Did you mean corp"):
        papermill.execute_notebook(notebook, notebook.with_name("out.ipynb"), {"corpsu": "msrvtt"}, progress_bar=False)


def test_papermills_command_line(notebook):
    done = notebook.with_name("out.ipynb")
    given = [
        "-p",
        "seeds",
        "[0,1]",
        "-p",
        "flag",
        "true",
        "-p",
        "corpus",
        "msrvtt",
        "-r",
        "steps",
        "8",
        "-y",
        '{lr: 3e-5, settings_by_name: {b: [1, 2]}, best: "4"}',
    ]  # to YAML 3e-5 is a string
    command = [sys.executable, "-m", "papermill", notebook, done, *given, "--no-progress-bar"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    printed = nbformat.read(done, as_version=4).cells[-1].outputs[0].text
    assert printed.strip() == (
        f"{sys.executable} Parameters(corpus='msrvtt', seeds=[0, 1], lr=3e-05, steps=8, "
        "flag=True, best=4, settings_by_name={'b': [1.0, 2.0]})"
    )
