"""`ssb study`: what is skipped, what is done again, and what becomes of notebooks that fail or are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from ssb import files
from ssb.__main__ import main
from ssb.config import PRESETS
from ssb.whole import contents, executed
from ssb.whole.contents import Entry

ROOT = Path(__file__).parents[2]
# in place of papermill: runs the last cell, in which the parameters are known, and leaves the notebook
PLAIN = """
import json, pathlib, sys
from ssb import files
notebook, path, given, parent = json.loads(sys.argv[1])
files.end_with(parent)
cells = json.loads(pathlib.Path(notebook).read_text())["cells"]
exec("".join(cells[-1]["source"]), {**given, "given": given})
pathlib.Path(path).write_text("executed")
"""
PROGRAM = f"""
import sys
from ssb.whole import contents, executed
from ssb.__main__ import main
contents.STUDY = tuple(contents.Entry(name, "shapes", (("shapes", name),), 1) for name in ("first", "second"))
contents.TABLES = {{("shapes", "first"), ("shapes", "second")}}
executed.CHILD = {PLAIN!r}
sys.exit(main(["study"]))
"""
WRITES = """
import pathlib
folder = pathlib.Path("{home}/results/shapes")
folder.mkdir(parents=True, exist_ok=True)
(folder / "{table}.csv").write_text(f"a\\n{{a}}\\n")
with open("{home}/count", "a") as count:
    count.write("{table}\\n")
"""


def write_notebook(home: Path, name: str, code: str = "") -> Path:
    """A notebook with the parameters table, a and jobs, whose last cell is `code`, by default one that writes its table
    and a line of the file count."""
    code = code or WRITES.format(home=home, table=name)
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )
    declared = f'table: str = "{name}"  # name\na: int = 1  # a number\njobs: int = -1  # at once'
    book.cells = [
        nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    (home / "notebooks").mkdir(exist_ok=True)
    path = home / "notebooks" / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def listed(monkeypatch, *entries: Entry) -> list[Entry]:
    monkeypatch.setattr(contents, "STUDY", entries)
    monkeypatch.setattr(contents, "TABLES", {table for entry in entries for table in entry.tables})
    return [*entries]


@pytest.fixture
def plain(home, monkeypatch):
    """Two notebooks, which are executed without papermill."""
    for name in ("first", "second"):
        write_notebook(home, name)
    monkeypatch.setattr(executed, "CHILD", PLAIN)
    return listed(monkeypatch, *(Entry(name, "shapes", (("shapes", name),), 2.0) for name in ("first", "second")))


def count(home: Path) -> list[str]:
    """The tables that were written, in order."""
    return (home / "count").read_text().split() if (home / "count").exists() else []


def test_done_notebooks_are_skipped(home, plain, capsys):
    assert main(["study"]) == 0 and count(home) == ["first", "second"]
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["notebooks: 0 of 2 are done, 4 min left", "1/2  shapes/first, about 2 min"]
    assert re.fullmatch(r" +done in \d+ s", said[2])
    assert main(["study"]) == 0 and count(home) == ["first", "second"]
    assert capsys.readouterr().out == "notebooks: 2 of 2 are done, 0 s left\n"
    names = {path.name for path in (home / "results/executed/shapes").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("first", "second") for kind in ("ipynb", "json", "log")}


def test_what_a_notebook_depends_on_makes_it_stale(home, plain, monkeypatch):
    """The first alone is executed again."""
    entry, other = plain
    executed.run(plain)
    assert executed.state(entry) == ("done", "")

    def stale(why: str):
        assert executed.state(entry) == ("stale", why) and executed.state(other)[0] == "done"
        before = count(home)
        assert executed.run(plain) == {} and count(home) == [*before, "first"]
        assert executed.state(entry) == ("done", "")

    write_notebook(home, "first", WRITES.format(home=home, table="first") + "# another source")
    stale("changed: the notebook")
    (home / "results/shapes/first.csv").write_text("a\n3\n")
    stale("changed: its results")
    (home / "results/shapes/first_summary.csv").write_text("a\n3\n")
    stale("changed: its results")
    (home / "figures/shapes").mkdir(parents=True)
    (home / "figures/shapes/first_fig2b.png").write_text("drawn")
    stale("changed: its figures")
    (home / "figures/shapes/first_fig2b.png").unlink()
    stale("changed: its figures")
    with monkeypatch.context() as changed:
        changed.setitem(PRESETS["paper"], "lr", 1e-3)
        assert [executed.state(each) for each in plain] == [("stale", "changed: its preset")] * 2
    (home / "results/executed/shapes/first.ipynb").unlink()
    stale("the executed notebook is not there")
    (home / "results/executed/shapes/first.json").write_text("{")
    assert executed.state(entry) == ("not yet made", "")
    executed.run(plain)
    entry = entry._replace(parameters={"a": 2})
    assert executed.state(entry) == ("stale", "changed: its parameters")
    monkeypatch.setattr(executed, "library", lambda: "of another day")
    assert executed.state(plain[0]) == ("stale", "changed: the library")


def test_parameters_and_jobs_are_passed(home, plain, monkeypatch):
    """Another table is another executed notebook; how many runs are trained at once does not make it stale."""
    write_notebook(home, "first", f"import json; open('{home}/given', 'w').write(json.dumps(given))")
    entry = Entry("first", "shapes", (("shapes", "mine"),), 1, {"a": 5, "table": "mine"})
    listed(monkeypatch, entry)
    assert main(["study", "mine", "--jobs", "3"]) == 0
    assert json.loads((home / "given").read_text()) == {"a": 5, "table": "mine", "jobs": 3}
    assert (home / "results/executed/shapes/first_mine.ipynb").exists()
    assert executed.state(entry) == ("done", "")


def test_a_failed_notebook_is_named_and_the_others_run(home, plain, capsys):
    write_notebook(home, "first", "raise ValueError('a mistake')")
    assert main(["study"]) == 1 and count(home) == ["second"]
    said = capsys.readouterr()
    words = "shapes/first: ValueError: a mistake; see results/executed/shapes/first.log"
    assert said.err == f"error: {words}\n" and "ValueError: a mistake; see" in said.out
    assert "Traceback" in (home / "results/executed/shapes/first.log").read_text()
    assert not (home / "results/executed/shapes/first.ipynb").exists()
    assert executed.state(plain[0])[0] == "failed"
    write_notebook(home, "first")
    assert main(["study"]) == 0 and count(home) == ["second", "first"]


def test_a_killed_notebook_is_named(plain, home):
    write_notebook(home, "first", "import os; os.kill(os.getpid(), 9)")
    failed = executed.run(plain)
    assert failed == {"shapes/first": "ended by signal 9; see results/executed/shapes/first.log"}


def test_a_notebook_with_an_error_in_a_cell(home, monkeypatch):
    """By papermill itself: no half of a notebook is left, and the error is in one line."""
    write_notebook(home, "first", "raise ValueError('two\\nlines')")
    entries = listed(monkeypatch, Entry("first", "shapes", (("shapes", "first"),), 1))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    failed = executed.run(entries)
    assert failed == {"shapes/first": "ValueError: two lines; see results/executed/shapes/first.log"}
    folder = home / "results/executed/shapes"
    assert {path.name for path in folder.iterdir()} == {"first.json", "first.log"}
    log = (folder / "first.log").read_text()
    assert "raise ValueError" in log and "\x1b" not in log


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_a_stopped_study_goes_on(home, number, code, monkeypatch):
    """The first notebook is done, the second is stopped with the study and executed by the next one."""
    write_notebook(home, "first")
    slow = f"import os, pathlib, time\npathlib.Path('{home}/pid').write_text(str(os.getpid()))\ntime.sleep(120)"
    write_notebook(home, "second", slow)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True) as study:
        wait_for(lambda: (home / "pid").exists() and (home / "pid").read_text())
        assert files.held(executed.output(Entry("second", "shapes", (), 1))).startswith(f"process {study.pid} on ")
        study.send_signal(number)
        assert study.wait(60) == code
        said = study.stderr.read()
    assert said == ("stopped; the same command continues from here\n" if code == 130 else "")
    wait_for(lambda: not lives(int((home / "pid").read_text())))
    folder = home / "results/executed/shapes"
    assert (folder / "first.ipynb").exists() and not (folder / "second.ipynb").exists()
    assert files.held(executed.output(Entry("second", "shapes", (), 1))) == ""
    write_notebook(home, "second")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0 and count(home) == ["first", "second"]
    assert done.stdout.startswith("notebooks: 1 of 2 are done")


def wait_for(true, seconds: float = 60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


@pytest.mark.parametrize(
    "words, message",
    [
        ("frist", "no table or notebook 'frist'; did you mean 'first'?"),
        ("nothing-like-it", "no table or notebook 'nothing-like-it'; there are first, second"),
        ("shapes", "'shapes' is a corpus, no table: ssb study --corpus shapes"),
        ("--corpus shape", "no corpus of the study 'shape'; did you mean 'shapes'?"),
        ("--preset smoek", "no preset 'smoek'; did you mean 'smoke'?"),
        ("first --preset tuned", "the study has no first with tuned; `ssb study --status` lists what it has"),
        ("--jobs 0", "argument --jobs: 0: wanted 1 to 1024"),
    ],
)
def test_wrong_names_are_refused(plain, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["study", *words.split()])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_status_is_a_table(home, plain, monkeypatch, capsys):
    """Of the executed ones by their records; a running one by its lock."""
    third, fourth, fifth = (Entry(name, "shapes", (("shapes", name),), 4.0) for name in ("third", "fourth", "fifth"))
    write_notebook(home, "second", "raise ValueError('a mistake')")
    write_notebook(home, "third")
    listed(monkeypatch, *plain, third, fourth, fifth)
    executed.run([*plain, third])
    write_notebook(home, "third", "pass")
    for name in ("fourth", "fifth"):
        write_notebook(home, name)
    capsys.readouterr()
    with files.lock(executed.output(fourth)):
        assert main(["study", "--status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["state", "notebook", "takes", "why"]
    rows = [re.split(r" {2,}", line) for line in lines[1:-1]]
    assert [row[0] for row in rows] == ["done", "failed", "stale", "running", "not yet made"]
    assert [row[1] for row in rows] == [f"shapes/{name}" for name in ("first", "second", "third", "fourth", "fifth")]
    assert rows[1][3].startswith("ValueError: a mistake; see ") and rows[2][3] == "changed: the notebook"
    assert rows[3][3].startswith(f"process {os.getpid()} on ") and len(rows[4]) == 3
    assert lines[-1].startswith("1 done, 1 failed, 1 stale, 1 running, 1 not yet made: 10 min left")


def test_data_that_are_not_there_are_named(home, monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_DATA", str(tmp_path / "data"))
    write_notebook(home, "first")
    entry = Entry("first", "msrvtt1k", (("msrvtt1k", "first"),), 1)
    listed(monkeypatch, entry)
    assert executed.run([entry]) == {"msrvtt1k/first": f"needs SSB_DATA: no {tmp_path / 'data' / 'msrvtt'}"}


@pytest.mark.slow
def test_a_notebook_of_the_study_with_the_preset_smoke(home, capsys):
    assert main(["study", "table2a", "--corpus", "shapes", "--preset", "smoke"]) == 0
    writes = json.loads((ROOT / "notebooks/03_table2a_video_encoder.ipynb").read_text())["metadata"]["ssb"]["writes"]
    assert all((home / path).exists() for path in writes)
    path = home / "results/executed/shapes-smoke/03_table2a_video_encoder.ipynb"
    cells = nbformat.read(path, 4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    capsys.readouterr()
    assert main(["study", "table2a", "--corpus", "shapes", "--preset", "smoke", "--status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 done: 0 s left"
