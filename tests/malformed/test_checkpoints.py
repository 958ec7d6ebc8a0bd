"""Checkpoints, caches and finished runs that were damaged: every change is found, one message says what to do."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssb import Config, ConfigError, TrainingError, files, fit, load_corpus, text
from ssb.training import loop
from ssb.training.runs import Collapsed, Run, finished_run, run_name


def content(run: Run) -> dict[str, bytes]:
    """What a run is, without what a clock says."""
    weights = {name: x.numpy().tobytes() for name, x in load_file(run.folder / "model.safetensors").items()}
    texts = {name: (run.folder / name).read_bytes() for name in ("config.json", "metrics.json", "log.csv", "trace.csv")}
    return weights | texts | {name: ranks.tobytes() for name, ranks in run.ranks.items()}


def flipped(path: Path, rng: np.random.Generator, bytes_: int = 8):
    """Flip a bit or more in each of some bytes in a row, at a random place of a file."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data) - bytes_ + 1)) if len(data) > bytes_ else 0
    for at in range(start, min(start + bytes_, len(data))):
        data[at] ^= int(rng.integers(1, 256))
    path.write_bytes(data)


class Killed(BaseException):
    """What no code of the library catches."""


@pytest.fixture
def config(tiny) -> Config:
    return tiny.replace(epochs=2, batch=16)


@pytest.fixture
def unfinished(config, monkeypatch) -> Path:
    """The folder of the checkpoints of a run that was killed in its fourth step."""
    step = loop.Training.take_step

    def until_killed(self, captions):
        if (self.epoch, self.step) == (1, 1):
            raise Killed
        step(self, captions)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop.Training, "take_step", until_killed)
        with pytest.raises(Killed):
            fit(config, quiet=True)
    (folder,) = files.runs().glob("*.part")
    return folder


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def test_the_newest_sound_checkpoint_is_taken(config, unfinished, home, monkeypatch, capsys):
    newest, last = newest_first(unfinished)
    for path in (newest, last):
        assert path.name == f"checkpoint-{files.sha256(path)[:12]}.pt"
    resumed, begun = [], loop.Training.load
    monkeypatch.setattr(loop.Training, "load", lambda self, path: (resumed.append(path.name), begun(self, path)))
    flipped(newest, np.random.default_rng(0))
    run = fit(config, quiet=True)
    assert resumed == [last.name] and not unfinished.exists()
    assert capsys.readouterr().out == f"skipped {files.short(newest)}, which is damaged\n"
    monkeypatch.setenv("SSB_HOME", str(home / "uninterrupted"))
    assert content(run) == content(fit(config, quiet=True))


def test_a_checkpoint_with_a_flip_anywhere_is_found(config, unfinished, monkeypatch):
    """24 random places of 8 bytes: the damaged file is never loaded."""
    newest, last = newest_first(unfinished)
    last.unlink()
    whole, loaded = newest.read_bytes(), []
    training = loop.Training(config.effective(), load_corpus("shapes", **config.corpus_options), Path("x"), True)
    training.partial = unfinished
    monkeypatch.setattr(loop.Training, "load", lambda self, path: loaded.append(path))
    rng = np.random.default_rng(1)
    for _ in range(24):
        newest.write_bytes(whole)
        flipped(newest, rng)
        training.resume()
        assert not loaded and not newest.exists()
    newest.write_bytes(whole)
    training.resume()
    assert loaded == [newest]


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def cut(path: Path):
    torch.save({"model": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


CHECKPOINTS = {
    "empty": lambda path: path.touch(),
    "cut": cut,
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a pickle that runs a command": lambda path: path.write_bytes(pickle.dumps(Harmful(), 2)),
    "of other things": lambda path: torch.save({"epoch": 3}, path),
    "no mapping": lambda path: torch.save([1, 2], path),
    "of another model": lambda path: torch.save({"model": {"weight": torch.zeros(3)}}, path),
}


@pytest.fixture
def place(tiny, tmp_path, monkeypatch) -> Path:
    """Where a checkpoint of the run would be, under a name that does not fit its content."""
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus(tiny.corpus, **tiny.corpus_options)
    path = files.runs() / f"{run_name(tiny.effective(), corpus)}.part" / "checkpoint-0123456789ab.pt"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("write", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_what_is_no_checkpoint(tiny, write, place, capsys):
    """Under a wrong name it is skipped; one that was written so, by whomever, is named."""
    write(place)
    named = place.with_stem(f"checkpoint-{files.sha256(place)[:12]}")
    shutil.copy(place, named)
    place.unlink()
    with pytest.raises(TrainingError) as caught:
        fit(tiny, quiet=True)
    assert str(named) in str(caught.value) and "delete it to train this run from the start" in str(caught.value)
    assert "\n" not in str(caught.value) and not Path("harmed").exists()
    named.rename(place)
    assert fit(tiny, quiet=True).metrics["n_queries"] == 75 and not Path("harmed").exists()
    assert f"skipped {files.short(place)}, which is damaged" in capsys.readouterr().out


# Finished runs


@pytest.fixture(scope="module")
def finished(shared_home, tmp_path_factory) -> tuple[Path, Path]:
    """The folders of two runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSB_HOME", str(tmp_path_factory.mktemp("finished")))
        options = {"clips": 60, "false_negatives": 0.05}
        config = Config.preset("smoke", corpus_options=options, epochs=1, objective="none")
        return tuple(fit(config.replace(seed=seed), quiet=True).folder for seed in (0, 1))


@pytest.fixture
def folder(finished, home) -> Path:
    """A copy of the first."""
    return Path(shutil.copytree(finished[0], files.runs() / finished[0].name))


def change(name: str, **values):
    def write(folder: Path, other: Path):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def take(*names: str):
    return lambda folder, other: [shutil.copy(other / name, folder / name) for name in names]


def whole(folder: Path, other: Path):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def sealed_again(folder: Path, other: Path):
    shutil.copy(other / "config.json", folder / "config.json")
    files.seal(folder)


RUNS = {
    "a better number": (change("metrics.json", **{"t2v R@1": 99.0}), "metrics.json is not as it was written"),
    "another setting": (change("config.json", epochs=3), "config.json is not as it was written"),
    "another origin": (change("provenance.json", commit="f00"), "provenance.json is not as it was written"),
    "other ranks": (take("ranks.npz"), "ranks.npz is not as it was written"),
    "other weights": (take("model.safetensors"), "model.safetensors is not as it was written"),
    "another log": (lambda folder, other: (folder / "log.csv").write_text("epoch\n1\n"), "log.csv is not as"),
    "an empty trace": (lambda folder, other: (folder / "trace.csv").write_text(""), "trace.csv is not as"),
    "no config": (lambda folder, other: (folder / "config.json").unlink(), "config.json is missing"),
    "no weights": (lambda folder, other: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no sums": (lambda folder, other: (folder / "sums.json").unlink(), "sums.json is missing or not readable"),
    "other sums": (take("sums.json"), "is not as it was written"),
    "sums of nothing": (lambda folder, other: (folder / "sums.json").write_text("[]"), "sums.json"),
    "another run": (whole, "it is not the run of its name"),
    "another run's settings, with new sums": (sealed_again, "it is not the run of its name"),
}


@pytest.mark.parametrize("damage, words", RUNS.values(), ids=RUNS)
def test_a_damaged_run_is_named(damage, words, folder, finished, config):
    settings = Config(**json.loads((folder / "config.json").read_text()))
    damage(folder, finished[1])
    for read in (lambda: fit(settings, quiet=True), lambda: Run(folder), lambda: finished_run(folder.name)):
        with pytest.raises(TrainingError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{folder} is damaged (") and words in message and "\n" not in message
        assert message.endswith("): delete it, the same command trains it again")
    shutil.rmtree(folder)
    again = fit(settings, quiet=True)
    assert content(again) == content(Run(finished[0]))


def test_a_flip_anywhere_in_a_run_is_found(folder, finished):
    rng, names = np.random.default_rng(2), sorted(path.name for path in folder.iterdir())
    for turn in range(24):
        path = folder / names[turn % len(names)]
        before = path.read_bytes()
        flipped(path, rng)
        with pytest.raises(TrainingError, match="is damaged"):
            Run(folder)
        path.write_bytes(before)
        assert Run(folder).metrics["n_queries"] == 75


def test_a_folder_without_metrics_is_replaced(folder, finished, home):
    """It is trained once, not each time."""
    config = Run(folder).config
    (folder / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="no such finished run"):
        finished_run(folder.name)
    run = fit(config, quiet=True)
    written = (folder / "provenance.json").stat().st_mtime_ns
    assert content(run) == content(Run(finished[0])) and fit(config, quiet=True).folder == folder
    assert (folder / "provenance.json").stat().st_mtime_ns == written
    assert [path.name for path in files.runs().iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["../runs", "../../data", "/tmp", ".", "", "no/such"])
def test_a_run_by_a_path(folder, name):
    with pytest.raises(ConfigError, match="no such finished run in results/runs; train it first"):
        finished_run(name)


def test_a_flip_in_a_collapsed_run_is_found(config, monkeypatch):
    settings = config.replace(contrast="triplet", negatives="hardest", objective="none")

    def give_up(self):
        self.collapse("at once")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "run", give_up)
        with pytest.raises(Collapsed):
            fit(settings, quiet=True)
    (folder,) = files.runs().glob("*.collapsed")
    with pytest.raises(Collapsed, match="collapsed: at once"):
        fit(settings, quiet=True)
    rng = np.random.default_rng(3)
    for turn, path in enumerate(sorted(folder.iterdir()) * 2):
        before = path.read_bytes()
        flipped(path, rng)
        with pytest.raises(TrainingError, match="is damaged .*delete it") as caught:
            fit(settings, quiet=True)
        assert not isinstance(caught.value, Collapsed)
        path.write_bytes(before)
    (folder / "why.txt").unlink()  # it does not say how it ended, and so it has not
    assert fit(settings, quiet=True).metrics["n_queries"] == 75


# Caches


def test_a_flip_anywhere_in_the_text_states_is_found(home, monkeypatch):
    encoder = torch.nn.Embedding(50, 6)
    ids = text.Ragged.of([np.arange(2, 2 + n) for n in (3, 5, 4, 8)])
    computed = []

    def states(encoder, ids, device):
        computed.append(1)
        return text.Ragged(encoder.weight.detach()[ids.values].half().numpy(), ids.offsets)

    monkeypatch.setattr(text, "frozen_states", states)
    wanted = text.cached_states("mine", encoder, ids).values.copy()
    assert text.cached_states("mine", encoder, ids).values.tobytes() == wanted.tobytes() and len(computed) == 1
    (folder,) = files.cache().glob("text-*")
    rng = np.random.default_rng(4)
    for turn in range(24):
        flipped(sorted(folder.iterdir())[turn % 2], rng)
        assert text.cached_states("mine", encoder, ids).values.tobytes() == wanted.tobytes()
        assert len(computed) == turn + 2
    half = folder / "states.npy"
    half.write_bytes(half.read_bytes()[:-20] + bytes(20))
    assert text.cached_states("mine", encoder, ids).values.tobytes() == wanted.tobytes()
