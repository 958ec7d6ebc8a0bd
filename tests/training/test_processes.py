"""Several processes, a full disk, captions that are cut, and the commit that a run is from."""

import errno
import os
import subprocess
import sys

import pytest

from ssb import Config, ConfigError, Study, TrainingError, files, fit, load_corpus, machine
from ssb.training import loop
from ssb.training.data import Data

BATCH = """
import json, sys, time
from ssb import Config, fit
from ssb.training import loop
loop.CHECKPOINT_SECONDS = 0.0
run = loop.Training.run
def counted(self):
    print("trains", self.config.seed, flush=True)
    run(self)
loop.Training.run = counted
for seed in (0, 1):
    print("ends", seed, fit(Config(**json.loads(sys.argv[1])).replace(seed=seed), quiet=True).metrics["n_queries"])
"""


def test_three_batches_at_once_train_each_run_once(tiny, home):
    line = [sys.executable, "-c", BATCH, tiny.model_dump_json()]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) for _ in range(3)]
    printed = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    lines = [line for lines in printed for line in lines]
    assert sorted(line for line in lines if line.startswith("trains")) == ["trains 0", "trains 1"]
    assert all([line for line in lines if line.startswith("ends")] == ["ends 0 75", "ends 1 75"] for lines in printed)
    own = {f"process {process.pid} on " for process in processes}
    waited = [line for line in lines if "is being trained by" in line]
    assert waited and all(any(name in line for name in own) and line.endswith("; waiting for it") for line in waited)
    assert len([*files.runs().iterdir()]) == 2 and not list(files.runs().glob(".*"))


@pytest.mark.parametrize("where", ["checkpoint", "run"])
def test_a_full_disk_is_one_error(where, tiny, home, monkeypatch):
    """What is finished is kept, nothing half is left, and with room again the run goes on."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop.torch, "save", full) if where == "checkpoint" else patch.setattr(loop, "save_model", full)
        with pytest.raises(TrainingError) as caught:
            fit(tiny, quiet=True)
    words = str(caught.value)
    assert "cannot write" in words and "No space left on device" in words and "GB are free" in words
    assert "SSB_HOME" in words and "\n" not in words
    assert not list(files.runs().rglob(".*")) and not list(files.runs().glob("*/metrics.json"))
    assert fit(tiny, quiet=True).metrics["n_queries"] == 75


def test_a_folder_that_may_not_be_written(tiny, home, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(home / "results"))

    corpus = load_corpus(tiny.corpus, **tiny.corpus_options)
    monkeypatch.setattr(files, "lock", refused)
    with pytest.raises(
        TrainingError, match=f"stopped: cannot write {home}/results: Permission denied .*; free some space or allow"
    ):
        fit(tiny, corpus, quiet=True)


def test_a_study_in_several_processes_is_refused(home, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of 2 processes: start it without `acc"):
        Study("t", preset="smoke")
    assert not any(home.iterdir())


def test_how_many_captions_are_cut_is_printed(home, small_folder, capsys):
    """Every second caption has 6 words; tokens of a fitted tokenizer are bytes or longer, so 5 tokens may be words."""
    config = Config.preset("smoke", corpus=str(small_folder), epochs=1, batch=4)
    corpus = load_corpus(str(small_folder))
    whole = Data(config, corpus)
    assert whole.cut == []
    lengths = {"text encoder": whole.text.lengths, "decoder": whole.labels.lengths}
    for most in sorted({*whole.text.lengths.tolist()} - {2}):
        shorter = config.replace(max_tokens=most - 1)
        wanted = {part: 100 * (each >= most).mean() for part, each in lengths.items()}
        assert Data(shorter, corpus).cut == [
            f"mine: {share:.1f} % of 24 captions are cut for the {part}, after max_tokens = {most - 1}"
            for part, share in wanted.items()
        ]
    fit(shorter, corpus)
    assert capsys.readouterr().out.startswith(f"mine: {wanted['text encoder']:.1f} % of 24 captions are cut for the te")
    assert Data(config.replace(max_tokens=most), corpus).cut == []


def test_a_commit_of_another_repository_is_not_named(tmp_path, monkeypatch):
    """The library in an environment under a project of somebody else, and in its own checkout."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for place, project, own in (("other/lib", None, False), ("own", "ssb", True), ("same", "mine", False)):
        library = tmp_path / place / "ssb"
        library.mkdir(parents=True)
        (library / "machine.py").write_text("x = 1\n")
        top = tmp_path / place.partition("/")[0]
        if project:
            (top / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*git, *arguments], cwd=top, check=True)
        monkeypatch.setattr(machine, "__file__", str(library / "machine.py"))
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], cwd=top, capture_output=True, text=True)
        origin = machine.provenance()
        assert (origin["commit"], origin["dirty"]) == ((commit.stdout.strip(), False) if own else ("", "")), place
        if own:
            (library / "machine.py").write_text("x = 2\n")
            assert machine.provenance()["dirty"] is True
