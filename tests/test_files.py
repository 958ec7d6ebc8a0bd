"""Files: whole or untouched, and located from wherever a notebook is run."""

import errno
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ssb import files


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with files.written(path) as draft:
        draft.write_text("a,b\n")
        assert not path.exists() and draft.parent == path.parent and draft.suffix == ".csv"
    assert path.read_text() == "a,b\n" and list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with files.written(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_on_an_error_the_old_file_stays(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error), files.written(path) as draft:
        draft.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_on_an_error_nothing_new_is_left(tmp_path):
    with pytest.raises(ValueError), files.written(tmp_path / "run") as draft:
        draft.mkdir()
        (draft / "log.csv").write_text("half")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole(tmp_path):
    with files.written(tmp_path / "run") as draft:
        draft.mkdir()
        (draft / "log.csv").write_text("a")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "log.csv").read_text() == "a" and list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_a_folder_replaces_another_without_a_moment_of_half_of_it(tmp_path):
    path = tmp_path / "run"
    with files.written(path) as late:
        late.mkdir()
        (late / "log.csv").write_text("second")
        with files.written(path) as early:
            early.mkdir()
            (early / "log.csv").write_text("first")
    assert (path / "log.csv").read_text() == "second" and list(tmp_path.iterdir()) == [path]


def test_a_folder_does_not_replace_a_file(tmp_path):
    path = tmp_path / "run"
    path.write_text("old")
    with pytest.raises(OSError), files.written(path) as draft:
        draft.mkdir()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


WRITER = """
import runpy, sys, time
written = runpy.run_path(sys.argv[2])["written"]  # the file alone: importing all of ssb takes seconds
with written(sys.argv[1]) as draft, open(draft, "w") as file:
    file.write("half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    command = [sys.executable, "-c", WRITER, path, files.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        assert any(other.read_text() == "half" for other in tmp_path.iterdir())
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL and path.read_text() == "old"
    with files.written(path) as draft:  # its remains do not get in the way
        draft.write_text("new")
    assert path.read_text() == "new"


def test_digest_of_known_parts():
    parts = (3).to_bytes(8, "little") + b"abc" + (2).to_bytes(8, "little") + "é".encode()
    assert files.digest(b"abc", "é") == hashlib.sha256(parts).hexdigest()[:12]


@pytest.mark.parametrize("other", [("a", "bc"), ("abc",), ("ab", "c", ""), ("", "ab", "c"), ("c", "ab"), ()])
def test_digest_keeps_parts_apart(other):
    assert files.digest("ab", "c") == files.digest(b"ab", "c") != files.digest(*other)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A checkout with notebooks, next to a folder of data; $SSB_HOME is not set."""
    monkeypatch.delenv("SSB_HOME")
    monkeypatch.delenv("SSB_DATA", raising=False)  # which a study of an earlier test may have set
    checkout = (tmp_path / "study").resolve()
    for folder in ("notebooks/deep", "results", "data"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    return checkout


@pytest.mark.parametrize("here", [".", "notebooks", "notebooks/deep", "results"])
def test_root_is_found_from_any_folder_of_the_study(study, here, monkeypatch):
    monkeypatch.chdir(study / here)
    assert files.root() == study
    assert (files.runs(), files.cache()) == (study / "results/runs", study / "results/cache")
    assert files.data() == study / "data"


def test_root_elsewhere_is_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("SSB_HOME")
    monkeypatch.delenv("SSB_DATA", raising=False)  # which a study of an earlier test may have set
    (tmp_path / "notebooks").mkdir()  # without a pyproject.toml it is not of the study
    monkeypatch.chdir(tmp_path / "notebooks")
    assert files.root() == (tmp_path / "notebooks").resolve()


def test_ssb_home_wins(study, tmp_path, monkeypatch):
    monkeypatch.chdir(study / "notebooks")
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "other"))
    assert files.root() == (tmp_path / "other").resolve() == files.data().parent
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSB_HOME", "~/mine")
    assert files.root() == (tmp_path / "mine").resolve()
    monkeypatch.setenv("SSB_HOME", "")
    assert files.root() == study


@pytest.mark.parametrize("here", [".", "notebooks"])
def test_a_relative_ssb_data_means_the_same_from_notebooks(study, here, monkeypatch):
    monkeypatch.chdir(study / here)
    for given in ("../shared/data", "data"):
        monkeypatch.setenv("SSB_DATA", given)
        assert files.data() == (study / given).resolve()
    monkeypatch.setenv("SSB_DATA", "not-there-yet")
    assert files.data() == study / "not-there-yet"


def test_ssb_data_from_the_working_directory_absolute_or_empty(study, monkeypatch):
    monkeypatch.chdir(study / "notebooks")
    monkeypatch.setenv("SSB_DATA", "deep")
    assert files.data() == study / "notebooks" / "deep"
    monkeypatch.setenv("SSB_DATA", "/not/there")
    assert files.data() == Path("/not/there")
    monkeypatch.setenv("SSB_DATA", "")  # as good as not set
    assert files.data() == study / "data"


# On the disk, checked, and by one process at a time


def test_what_is_written_is_synced_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    steps = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (steps.append(os.readlink(f"/proc/self/fd/{handle}")), real_sync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append(f"rename to {b}"), real_replace(a, b)))
    with files.written(tmp_path / "run") as draft:
        (draft / "inner").mkdir(parents=True)
        (draft / "a.txt").write_text("a")
        (draft / "inner" / "b.txt").write_text("b")
    synced = [Path(step).name for step in steps]
    rename = steps.index(f"rename to {tmp_path / 'run'}")
    assert set(synced[:rename]) == {"a.txt", "b.txt", "inner", draft.name} and synced[rename + 1 :] == [tmp_path.name]


def test_a_sealed_folder_knows_every_change(tmp_path):
    folder = tmp_path / "run"
    with files.written(folder, sealed=True) as draft:
        (draft / "inner").mkdir(parents=True)
        for name in ("a.bin", "inner/b.bin"):
            (draft / name).write_bytes(bytes(range(256)) * 8)
    assert files.damage(folder) is None
    assert json.loads((folder / files.SUMS).read_text())["a.bin"] == hashlib.sha256(bytes(range(256)) * 8).hexdigest()
    for name in ("a.bin", "inner/b.bin"):
        whole = (folder / name).read_bytes()
        for at in range(0, len(whole), 199):
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert files.damage(folder) == f"{name} is not as it was written"
        (folder / name).unlink()
        assert files.damage(folder) == f"{name} is missing or not readable"
        (folder / name).write_bytes(whole)
    (folder / ".hidden").touch()
    assert files.damage(folder) is None
    (folder / "more.txt").touch()
    assert files.damage(folder) == "more.txt is not in sums.json"
    (folder / "more.txt").unlink()
    (folder / files.SUMS).write_text("{}")
    assert files.damage(folder) == "a.bin is not in sums.json"
    for broken in ("", "[1]", "null", "{"):
        (folder / files.SUMS).write_text(broken)
        assert files.damage(folder) == f"{files.SUMS} is missing or not readable"


def test_a_kept_folder_is_made_once_and_again_where_it_is_damaged(home):
    made = []

    def make(draft):
        made.append(1)
        (draft / "x").write_text("content")

    folder = files.cache() / "thing"
    assert files.kept(folder, make) == files.kept(folder, make) == folder and len(made) == 1
    (folder / "x").write_text("contemt")
    files.kept(folder, make)
    assert (folder / "x").read_text() == "content" and len(made) == 2


@pytest.mark.parametrize(
    "code, words", [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
def test_a_disk_that_refuses_is_explained(tmp_path, code, words):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(files.StorageError, match=f"cannot write .*table.csv: {words} .*SSB_HOME") as caught:
        with files.written(path):
            raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value) and path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["cache", "cache/locks"])
def test_a_lock_that_cannot_be_written_is_explained_alike(home, where):
    """A file is in the place of a folder, which no free space would change."""
    (home / "results" / where).parent.mkdir(parents=True)
    (home / "results" / where).touch()
    with pytest.raises(files.StorageError, match="^cannot write .*locks: .* GB .* SSB_HOME to") as caught:
        with files.lock(home / "results" / "runs" / "x"):
            pytest.fail("the lock is not held")
    assert "\n" not in str(caught.value)


def test_drafts_of_dead_processes_are_removed_and_others_stay(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        pass
    host = files._host()
    dead = [
        f".table.{host}-{ended.pid}-abcdef.csv",
        f".run.{host}-{ended.pid}-abcdef",
        f".r.{host}-{ended.pid}-abcdef-old",
    ]
    alive = [f".table.{host}-{os.getpid()}-abcdef.csv", f".table.ffffff-{ended.pid}-abcdef.csv", ".hidden", "table.csv"]
    for name in dead[:1] + alive:
        (tmp_path / name).write_text("x")
    for name in dead[1:]:
        (tmp_path / name).mkdir()
    reused = f".old.{host}-{os.getpid()}-abcdef.csv"  # of a process of an earlier day that had this number
    (tmp_path / reused).touch()
    os.utime(tmp_path / reused, (10**9, 10**9))
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(alive)
    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / f".late.{host}-{zombie.pid}-abcdef.csv").touch()
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(alive)
    zombie.wait()


HOLDER = """
import sys, time
from pathlib import Path
from ssb import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_ends_with_its_process(home):
    path = files.runs() / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        heard = []
        killer = threading.Timer(0.5, holder.kill)
        killer.start()
        with files.lock(path, heard.append):
            assert holder.wait(10) == -signal.SIGKILL
    assert heard == [f"process {holder.pid} on {platform.node()}"]
    with files.lock(path, heard.append):
        pass
    assert len(heard) == 1
