"""What a notebook may be given by mistake: one clear message each, nothing written, no hang."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.translators import PythonTranslator

from ssb import Study
from ssb.config import ConfigError

CELL = """
table: str = "t"  # the name of the files
seeds: list[int] = [0]  # one run each
jobs: int = 1  # runs at the same time
changes: dict = {}  # in the preset
"""
CALL = 'import ssb\nsettings = ssb.parameters("table seeds jobs changes")'


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    yield shell
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


def run(shell, cell: str, given: dict):
    for source in (cell, *([PythonTranslator.codify(given)] if given else []), CALL):
        shell.run_cell(source, store_history=True).raise_error()


@pytest.mark.parametrize(
    "cell, given, words",
    [
        (CELL, {"sedes": [1]}, "sedes is not a parameter of this notebook. Did you mean seeds?"),
        (CELL.replace("seeds:", "sedes:"), {}, "sedes is not a parameter of this notebook. Did you mean seeds?"),
        (CELL + "sedes: list[int] = [1]", {}, "sedes is not a parameter of this notebook. Did you mean seeds?"),
        (CELL + "sedes = [1]", {}, "sedes is not a parameter of this notebook. Did you mean seeds?"),
        (CELL.replace("jobs: int = 1", "#"), {}, "the parameters cell lacks jobs"),
        (CELL, {"seeds": "0, 1,"}, "is not of type list[int]  # one run each"),
        (CELL, {"seeds": "[" * 10_000}, "is not of type list[int]"),
        (CELL, {"seeds": [[0]]}, "seeds = [[0]] is not of type list[int]"),
        (CELL, {"seeds": "0:3"}, "seeds = '0:3' is not of type list[int]"),
        (CELL, {"changes": "epochs=3"}, "changes = 'epochs=3' is not of type dict  # in the preset"),
        (CELL, {"changes": "{" * 10_000}, "is not of type dict"),
        (CELL, {"changes": [1]}, "changes = [1] is not of type dict"),
        (CELL, {"jobs": "two"}, "jobs = 'two' is not of type int"),
        (CELL, {"jobs": 1.5}, "jobs = 1.5 is not of type int"),
        (CELL, {"table": 7}, "table = 7 is not of type str"),
        (CELL, {"table": None}, "table = None is not of type str"),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_message(shell, home, cell, given, words):
    with pytest.raises(ValueError) as caught:
        run(shell, cell, given)
    assert words in str(caught.value).splitlines()[0] and len(str(caught.value)) < 1000
    assert not any(home.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"table": "../x"}, "table = '../x': wanted a plain name"),
        ({"seeds": []}, r"seeds = \[\]"),
        ({"seeds": [0, 0]}, r"seeds = \[0, 0\]"),
        ({"changes": {"seed": 1}}, "changes: the seed is no change"),
        ({"changes": {"epoch": 3}}, "epoch = 3"),
        ({"changes": {"epohcs": 3}}, "did you mean 'epochs'"),
        ({"preset": "smoek"}, "no preset 'smoek'"),
        ({"preset": ["smoke"]}, r"no preset \['smoke'\]"),
        ({"seeds": None}, "seeds = None: wanted a list of whole numbers"),
        ({"seeds": "012"}, "seeds = '012': wanted a list of whole numbers"),
        ({"jobs": 0}, "jobs = 0: wanted 1 to 1024 runs at the same time, or -1"),
        ({"jobs": 10**9}, "jobs = 1000000000: wanted 1 to 1024"),
        ({"jobs": "2"}, "jobs = '2': wanted 1 to 1024"),
        ({"changes": ["epochs"]}, r"changes = \['epochs'\]: wanted a dictionary"),
        ({"changes": {1: 2}}, "changes = {1: 2}: wanted a dictionary of names"),
        ({"corpus": 7}, "corpus = 7: input should be a valid string"),
    ],
)
def test_a_wrong_argument_of_a_study_is_refused_in_one_message(home, arguments, words):
    with pytest.raises(ConfigError, match=words):
        Study(**{"table": "t", "preset": "smoke"} | arguments)
    assert not any(home.iterdir())
