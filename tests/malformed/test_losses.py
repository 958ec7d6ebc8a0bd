"""Losses and heads of a reader's own: what a run's name hashes is what ran, in workers too."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import joblib
import pytest

from ssb import Config, ConfigError, Study, TrainingError, files, fit, load_corpus, losses
from ssb import model as model_module
from ssb.text import ModelError
from ssb.training import identity
from ssb.training.runs import run_name

LOSS = "def loss(text, video):\n    return {} * ((text - video) ** 2).mean()\n"
OPTIONS = {"clips": 60, "false_negatives": 0.05}


def config(contrast: str, **changes) -> Config:
    return Config.preset("smoke", corpus_options=OPTIONS, epochs=1, objective="none", contrast=contrast, **changes)


@pytest.fixture(scope="module")
def corpus(shared_home):
    return load_corpus("shapes", **OPTIONS)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of modules, forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("own", "own_helper", "kit"):
            del sys.modules[name]


ages = iter(range(1, 10**6))


def write(path: Path, source: str):
    """Files of different ages: Python takes compiled code from a file of the same second and size."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    os.utime(path, (10**9 + next(ages),) * 2)
    importlib.invalidate_caches()


WORDS = "is not what this process has imported as {}: restart the kernel, or reload it with importlib.reload"
MODULE = {"own.py": "T = 0.07\n\n\n" + LOSS.format("T")}
HELPER = {"own.py": "from own_helper import T\n\n\n" + LOSS.format("T"), "own_helper.py": "T = 0.07\n"}
INSIDE = {"own.py": "def loss(text, video):\n    import own_helper\n\n    return own_helper.loss(text, video)\n"}
INSIDE |= {"own_helper.py": LOSS.format(1)}
PACKAGE = {"kit/__init__.py": "", "kit/own.py": "from .parts import scale\n\n\n" + LOSS.format("scale.T")}
PACKAGE |= {"kit/parts/__init__.py": "", "kit/parts/scale.py": "from ..base import T\n", "kit/base.py": "T = 0.07\n"}
LITERAL = MODULE | {"own.py": "T = 0.07\nNAMES = ('a', 'b')\n\n\n" + LOSS.format("T")}
EDITS = {  # files, the loss, the file that is edited, from what to what, the module that is named
    "a constant": (MODULE, "own:loss", "own.py", ("0.07", "500"), "own"),
    "the formula": (MODULE, "own:loss", "own.py", ("** 2", "** 4"), "own"),
    "a tuple": (LITERAL, "own:loss", "own.py", ("'b'", "'c'"), "own"),
    "a constant of a helper": (HELPER, "own:loss", "own_helper.py", ("0.07", "500"), "own_helper"),
    "a helper imported in the loss": (INSIDE, "own:loss", "own_helper.py", ("1 *", "2 *"), "own_helper"),
    "a module of the package": (PACKAGE, "kit.own:loss", "kit/base.py", ("0.07", "500"), "kit.base"),
    "an error of syntax": (MODULE, "own:loss", "own.py", ("return", "retrun"), "own"),
    "a file that is no text": (MODULE, "own:loss", "own.py", ("T = 0.07", "T = '\0'"), "own"),
}


@pytest.mark.parametrize("first", [True, False], ids=["trained before", "only imported"])
@pytest.mark.parametrize("sources, loss, file, change, named", EDITS.values(), ids=EDITS)
def test_code_edited_after_its_import_is_refused(sources, loss, file, change, named, first, place, corpus):
    for name, source in sources.items():
        write(place / name, source)
    settings = config(loss)
    if first:
        before = run_name(settings, corpus)
    for name in sources:
        importlib.import_module(name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    write(place / file, sources[file].replace(*change))
    with pytest.raises(ConfigError) as caught:
        fit(settings, corpus, quiet=True)
    assert str(caught.value).startswith(str(place / file)) and WORDS.format(named) in str(caught.value)
    assert "\n" not in str(caught.value) and not files.runs().exists()
    write(place / file, sources[file])
    if first:
        assert run_name(settings, corpus) == before


@pytest.mark.parametrize("sources, loss, file, change, named", [*EDITS.values()][:6], ids=[*EDITS][:6])
def test_code_that_is_loaded_again_is_another_run(sources, loss, file, change, named, place, corpus):
    for name, source in sources.items():
        write(place / name, source)
    before = run_name(config(loss), corpus)
    write(place / file, sources[file].replace(*change))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "own_helper", "kit")]:
        del sys.modules[name]
    assert run_name(config(loss), corpus) != before


def test_a_module_that_was_reloaded_is_taken(place, corpus):
    write(place / "own.py", MODULE["own.py"])
    before = run_name(config("own:loss"), corpus)
    write(place / "own.py", MODULE["own.py"].replace("0.07", "500"))
    importlib.reload(sys.modules["own"])
    assert run_name(config("own:loss"), corpus) != before


def test_a_constant_that_was_set_by_hand_is_refused(place, corpus):
    """Workers would train with the file's."""
    write(place / "own.py", MODULE["own.py"])
    run_name(config("own:loss"), corpus)
    sys.modules["own"].T = 0.5
    with pytest.raises(ConfigError, match=WORDS.format("own")):
        run_name(config("own:loss"), corpus)


def test_a_counter_is_no_edit(place, corpus):
    counting = LOSS.format(1).replace("    return", "    global CALLS\n    CALLS += 1\n    return")
    write(place / "own.py", f"CALLS = 0\n\n\n{counting}")
    first = fit(config("own:loss"), corpus, quiet=True)
    assert sys.modules["own"].CALLS > 0
    assert fit(config("own:loss"), corpus, quiet=True).folder == first.folder


def test_what_is_hashed_of_a_loss(place):
    for name, source in (HELPER | PACKAGE | {"other.py": "X = 1\n"}).items():
        write(place / name, source)
    module = importlib.import_module("own")
    assert identity.own_modules(module) == {name: place / f"{name}.py" for name in ("own", "own_helper")}
    names = ["kit", "kit.base", "kit.own", "kit.parts", "kit.parts.scale"]
    assert [*identity.own_modules(importlib.import_module("kit.own"))] == names


def in_a_worker(settings: Config, home: str, folder: str) -> tuple[str, list[float], int]:
    sys.path.insert(0, folder)
    os.environ["SSB_HOME"] = home
    run = fit(settings, quiet=True)
    return run.name, run.trace["contrast"].tolist(), os.getpid()


def test_workers_train_what_the_file_says(place, corpus, home):
    """The same worker process before and after an edit of a helper; and a process that never knew the old code."""
    for name, source in HELPER.items():
        write(place / name, source)
    call = joblib.delayed(in_a_worker)(config("own:loss"), str(home), str(place))
    with joblib.parallel_config("loky", n_jobs=2):
        (before, losses_before, one), (same, _, other) = joblib.Parallel()([call, call])
        write(place / "own_helper.py", "T = 500\n")
        later = joblib.Parallel()([call, call])
    assert before == same and {pid for *_, pid in later} & {one, other}
    assert {name for name, *_ in later} == {run_name(config("own:loss").effective(), corpus)} != {before}
    again = fit(config("own:loss"), corpus, quiet=True)
    assert later[0][1] == later[1][1] == again.trace["contrast"].tolist()
    assert again.trace["contrast"][0] > 1000 * losses_before[0]


HEAD = """
import ssb.model


class Head(ssb.model.MeanHead):
    def forward(self, e, mask):
        return {} * super().forward(e, mask)
"""


def test_a_registered_head_or_loss_that_was_edited_is_refused(place, corpus, monkeypatch):
    write(place / "own.py", HEAD.format(1))
    own = importlib.import_module("own")
    monkeypatch.setitem(model_module.HEADS, "own", own.Head)
    settings = config("info_nce", video_pooling="own")
    before = run_name(settings, corpus)
    write(place / "own.py", HEAD.format(2))
    with pytest.raises(ConfigError, match=WORDS.format("own")):
        run_name(settings, corpus)
    monkeypatch.setitem(model_module.HEADS, "own", importlib.reload(own).Head)
    assert run_name(settings, corpus) != before


def test_a_class_of_a_notebook_is_named_by_its_source_or_refused(corpus, monkeypatch):
    head = type("Head", (model_module.MeanHead,), {"__module__": "notebook"})
    monkeypatch.setitem(sys.modules, "notebook", type(sys)("notebook"))
    monkeypatch.setitem(model_module.HEADS, "own", head)
    with pytest.raises(ConfigError, match="Head has no source file; define it in a module, a .py file"):
        run_name(config("info_nce", video_pooling="own"), corpus)


# Models by folder or name


def test_every_file_of_a_model_folder_counts(place, corpus):
    folder = place / "encoder"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "inner/more.json"):
        write(folder / "x", "")
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, "a")
    settings = config("info_nce", text_encoder=str(folder))
    names = [run_name(settings, corpus)]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        write(path, "b")
        names.append(run_name(settings, corpus))
    assert len(set(names)) == len(names) == 6
    (folder / ".git").mkdir()
    (folder / ".git" / "index").touch()
    assert run_name(settings, corpus) == names[-1]
    (folder / "new.json").touch()
    assert run_name(settings, corpus) != names[-1]


def test_a_folder_that_is_no_model_is_not_read(place, corpus, monkeypatch):
    """Such as "/" by mistake: hashing it would take hours."""
    write(place / "folder" / "large", "")
    monkeypatch.setattr(identity, "_sum", None)
    with pytest.raises(ModelError, match=f"cannot load '{place}/folder': .*Wanted: a folder with config.json"):
        fit(config("info_nce", text_encoder=str(place / "folder")), corpus, quiet=True)


def test_the_commit_of_a_hub_model_counts(corpus, monkeypatch):
    """Where it is in the hub's cache; a model that a run does not use does not count."""
    commits = {"t5-small": "/cache/snapshots/0123abc/config.json"}
    monkeypatch.setattr(identity, "try_to_load_from_cache", lambda name, file: commits.get(name))
    monkeypatch.setattr(identity.text, "pretrained", lambda loader, name: None)
    settings = config("info_nce", text_encoder="t5-small", decoder="t5-base")
    identity._commit.cache_clear()
    first = run_name(settings, corpus)
    assert identity.identity(settings, corpus)[3:] == ["model t5-small 0123abc"]
    commits["t5-small"] = "/cache/snapshots/4567def/config.json"
    identity._commit.cache_clear()
    assert run_name(settings, corpus) != first
    identity._commit.cache_clear()


UNUSABLE = {
    "no module": ("no.such:loss", "contrast = 'no.such:loss': wanted 'triplet', 'info_nce'"),
    "no function": ("own:other", "contrast = 'own:other': wanted 'triplet', 'info_nce'"),
    "a constant": ("own:T", "contrast = 'own:T': wanted 'triplet', 'info_nce'"),
    "no colon": ("own.loss", "contrast = 'own.loss': wanted 'triplet', 'info_nce'"),
    "nothing": ("", "contrast = '': wanted 'triplet', 'info_nce'"),
    "no module before the colon": (":loss", "contrast = ':loss'"),
    "one number for each pair": ("own:rows", "contrast = 'own:rows' gives shape"),
    "a matrix": ("own:square", "contrast = 'own:square' gives shape"),
    "no number": ("own:undefined", "contrast = 'own:undefined' is NaN on random embeddings"),
}
SOURCE = """
T = 1


def rows(text, video):
    return (text - video).mean(1)


def square(text, video):
    return text @ video.T


def undefined(text, video):
    return (text - video).mean() * float("nan")
"""


@pytest.mark.parametrize("loss, words", UNUSABLE.values(), ids=UNUSABLE)
def test_a_loss_that_is_none(loss, words, place, corpus):
    write(place / "own.py", SOURCE)
    with pytest.raises(ConfigError) as caught:
        fit(config(loss), corpus, quiet=True)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not any(files.runs().glob("*/metrics.json"))


FULL = """
import torch


def one(text, video):
    raise MemoryError


def two(text, video):
    return torch.empty(2**48).sum()


def three(text, video):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
"""


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_memory_that_does_not_suffice(name, place, corpus, monkeypatch):
    """One error that says what to do, whoever raises it in a step."""
    write(place / "own.py", FULL)
    monkeypatch.setattr(losses, "_tried", lambda *arguments: None, raising=False)
    with pytest.raises(
        TrainingError, match="does not fit into the memory .*: take fewer runs at the same time"
    ) as full:
        fit(config(f"own:{name}"), corpus, quiet=True)
    assert "batch = 64" in str(full.value) and "\n" not in str(full.value)


VALUES = {
    "a default": "def loss(text, video, scale=VALUE):\n    return (text - video).square().mean() * scale\n",
    "a list": "SCALES = [VALUE]\n\n\ndef loss(text, video):\n    return (text - video).square().mean() * SCALES[0]\n",
    "a class": "class P:\n    a = VALUE\n\n\ndef loss(text, video):\n    return (text - video).square().mean() * P.a\n",
    "an expression": "A = VALUE * 1.5\n\n\ndef loss(text, video):\n    return (text - video).square().mean() * A\n",
    "two": "A, B = VALUE, 1\n\n\ndef loss(text, video):\n    return (text - video).square().mean() * A\n",
    "a closure": "def make(a):\n    def loss(text, video):\n        return (text - video).square().mean() * a\n\n"
    "    return loss\n\n\nloss = make(VALUE)\n",
}


@pytest.mark.parametrize("source", VALUES.values(), ids=VALUES)
def test_a_value_that_was_edited_after_the_import_is_the_one_that_is_trained_with(source, place, corpus):
    """Which code does not show, and the file is as large as before and of the same second."""
    path = place / "own.py"
    path.write_text(source.replace("VALUE", "2.0"))
    importlib.invalidate_caches()
    importlib.import_module("own")
    path.write_text(source.replace("VALUE", "8.0"))
    eight = fit(config("own:loss"), corpus, quiet=True)
    path.write_text(source.replace("VALUE", "2.0"))
    with pytest.raises(ConfigError, match="is not what this process has imported as own: restart the kernel"):
        fit(config("own:loss", seed=1), corpus, quiet=True)
    del sys.modules["own"]
    os.utime(path, (10**9, 10**9))
    importlib.invalidate_caches()
    two = fit(config("own:loss"), corpus, quiet=True)
    first = [run.trace["contrast"].iloc[0] for run in (eight, two)]
    assert two.name != eight.name and first[0] == pytest.approx(4 * first[1], rel=1e-4)


SHIFTED = """
import ssb.model

SHIFTS = [VALUE]


class Head(ssb.model.MeanHead):
    def forward(self, e, mask):
        return super().forward(e, mask) + SHIFTS[0]
"""


def registered_head(place: Path, monkeypatch) -> Path:
    """A head that was imported and registered, and of which a value was edited before its first training: to a file of
    the same second and size."""
    path = place / "own.py"
    path.write_text(SHIFTED.replace("VALUE", "0.1"))
    importlib.invalidate_caches()
    monkeypatch.setitem(model_module.HEADS, "own", importlib.import_module("own").Head)
    path.write_text(SHIFTED.replace("VALUE", "0.0"))
    return path


def test_a_value_of_a_head_that_was_edited_after_the_import_is_the_one_that_is_trained_with(place, corpus, monkeypatch):
    path = registered_head(place, monkeypatch)
    settings = config("info_nce", video_pooling="own")
    zero = fit(settings, corpus, quiet=True)
    assert model_module.HEADS["own"] is sys.modules["own"].Head and sys.modules["own"].SHIFTS == [0.0]
    path.write_text(SHIFTED.replace("VALUE", "0.1"))
    with pytest.raises(ConfigError, match="is not what this process has imported as own: restart the kernel"):
        fit(settings.replace(seed=1), corpus, quiet=True)
    importlib.reload(sys.modules["own"])
    os.utime(path, (10**9, 10**9))
    with pytest.raises(ConfigError, match=WORDS.format("own")):
        run_name(settings, corpus)  # the head of before is still registered
    monkeypatch.setitem(model_module.HEADS, "own", sys.modules["own"].Head)
    tenth = fit(settings, corpus, quiet=True)
    assert tenth.name != zero.name
    assert zero.trace["contrast"].iloc[0] != pytest.approx(tenth.trace["contrast"].iloc[0], rel=1e-3)


def test_a_registered_head_that_cannot_be_imported_again_is_refused(place, corpus, monkeypatch):
    path = registered_head(place, monkeypatch)
    path.write_text(path.read_text().replace("class Head", "class Other"))
    with pytest.raises(ConfigError, match="has no Head to import again, which is registered as 'own': restart"):
        fit(config("info_nce", video_pooling="own"), corpus, quiet=True)
    assert not any(files.runs().glob("*/metrics.json"))


@pytest.mark.slow
def test_workers_train_with_the_value_of_the_file(place, corpus, monkeypatch):
    """Workers that knew an earlier text of the head."""
    path = place / "own.py"
    settings = {"own": {"video_pooling": "own", "objective": "none", "contrast": "info_nce"}}
    contrasts = {}
    for value in ("0.1", "0.0"):
        path.write_text(SHIFTED.replace("VALUE", value))
        importlib.invalidate_caches()
        sys.modules.pop("own", None)
        monkeypatch.setitem(model_module.HEADS, "own", importlib.import_module("own").Head)
        study = Study("mine", "shapes", "smoke", [0, 1], 2, {"epochs": 1, "corpus_options": OPTIONS})
        runs = study.run(settings)["own"]
        contrasts[value] = [run.trace["contrast"].iloc[0] for run in runs]
        assert [run.name for run in runs] == [run_name(run.config, corpus) for run in runs]
    shutil.rmtree(runs[0].folder)
    assert fit(runs[0].config, corpus, quiet=True).trace["contrast"].iloc[0] == contrasts["0.0"][0]
    assert contrasts["0.1"] != pytest.approx(contrasts["0.0"], rel=1e-3)


CUT = """
import torch


def detached(text, video):
    return (text - video).detach().square().mean()


def measured(text, video):
    return torch.tensor((text - video).square().mean().item())


def sorted_out(text, video):
    with torch.no_grad():
        return (text - video).square().mean()


def constant(text, video):
    return torch.tensor(1.0)
"""


@pytest.mark.parametrize("name", ["detached", "measured", "sorted_out"])
@pytest.mark.parametrize("objective", ["none", "identity", "cross"])
def test_a_loss_without_gradient(name, objective, place, corpus):
    write(place / "own.py", CUT)
    with pytest.raises(ConfigError, match=f"^contrast = 'own:{name}' has no gradient: .* depend on text .c_t. or"):
        fit(config(f"own:{name}").replace(objective=objective), corpus, quiet=True)
    assert not any(files.runs().glob("*/metrics.json"))


def test_a_constant_loss_trains_nothing_alone_and_does_not_matter_with_captioning(place, corpus):
    write(place / "own.py", CUT)
    with pytest.raises(TrainingError, match="^contrast = 'own:constant' has no gradient: .* depend on text .c_t. or"):
        fit(config("own:constant"), corpus, quiet=True)
    assert not any(files.runs().glob("*/metrics.json"))
    assert fit(config("own:constant").replace(objective="cross"), corpus, quiet=True).metrics
