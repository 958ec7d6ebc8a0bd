"""The command line: what it costs to start, its exit codes, and that every command that a text names exists."""

import ast
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ssb
from ssb import ConfigError, CorpusError, ModelError, TrainingError, __main__
from ssb.__main__ import BENCHMARKS, COMMANDS, build_parser, main
from ssb.bench import alignment, cost, howto100m, scale, training
from ssb.bench.timing import ROUNDS, BenchmarkError
from ssb.corpora import catalogue
from ssb.corpora.download import FetchError
from ssb.corpora.howto100m import index
from ssb.training import loop
from ssb.video import extract
from ssb.video.decode import VideoError
from ssb.whole import executed

ROOT = Path(__file__).parents[1]
HEAVY = "matplotlib IPython seaborn transformers torch scipy sklearn".split()
EVERY = [[], *([name] for name in COMMANDS), ["bench"], *(["bench", name] for name in BENCHMARKS)]


# What it costs to start


def started(*command: str) -> tuple[subprocess.CompletedProcess, float]:
    """A Python process, and the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-W", "error", *command], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_help_is_there_at_once(command):
    taken = []
    while not taken or taken[-1] > 1.0 and len(taken) < 3:  # a busy machine may take longer once
        done, seconds = started("-m", "ssb", *command, "--help")
        taken.append(seconds)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(" ".join(["usage: ssb", *command, "[-h]"]))
    assert min(taken) < 1.0


@pytest.mark.parametrize("command", [[], ["shapes"]], ids=" ".join)
def test_the_corpora_are_listed_without_heavy_imports(command):
    program = "import sys; from ssb.__main__ import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    done, _ = started("-c", program, "data", *command)
    assert done.returncode == 0 and done.stderr == ""
    assert not set(HEAVY) & set(done.stdout.splitlines()[-1].split())


EACH = (
    "metrics.retrieval experiments.objectives corpora.load corpora.howto100m.index training.loop video.ledger".split()
)


def test_every_module_is_there_after_a_bare_import():
    """And `dir` lists it; importing the library imports none of them, nor anything heavy."""
    program = """
import operator, sys
import ssb
print(*sys.modules)
for name in sys.argv[1:]:
    package, _, module = name.rpartition(".")
    part = operator.attrgetter(package)(ssb)
    assert module in dir(part) and getattr(part, module) is sys.modules[f"ssb.{name}"]
assert set(dir(ssb)) == set(ssb.__all__) >= {"metrics", "training", "corpora", "load_corpus", "Config"}
for part in (ssb, ssb.metrics):
    try:
        part.no_such_thing
    except AttributeError as error:
        print(error)
"""
    done, _ = started("-c", program, *EACH)
    assert done.returncode == 0, done.stderr
    modules, *errors = done.stdout.splitlines()
    assert not {name for name in modules.split() if name.startswith("ssb.")} and not set(HEAVY) & set(modules.split())
    assert errors == [f"module '{name}' has no attribute 'no_such_thing'" for name in ("ssb", "ssb.metrics")]


CORPORA = [path.stem for path in (ROOT / "ssb/corpora").glob("[!_]*.py")]
CORPORA.remove("tokens")  # for models and for processes that read; it needs a tokenizer of transformers


@pytest.mark.parametrize("names", [["ssb"], [f"ssb.corpora.{name}" for name in CORPORA]])
def test_imports_stay_light(names):
    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    done, _ = started("-c", program, *names)
    assert done.returncode == 0, done.stderr
    assert set(names) <= set(done.stdout.split()) and not set(HEAVY) & set(done.stdout.split())


def test_the_script_is_declared():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"ssb": "ssb.__main__:main"}


def test_the_parser_repeats_the_numbers_of_the_library():
    """It has its own copies of these, for their modules are slow to import."""
    parser = build_parser()
    assert parser.parse_args(["index"]).held_out == index.HELD_OUT
    assert parser.parse_args(["cost", "--steps", str(ROUNDS)]).steps == ROUNDS
    assert all(parser.parse_args(["cost", "--size", size]).size == size for size in cost.SIZES)
    assert f"in {ROUNDS} rounds" in (ROOT / "ssb" / "__main__.py").read_text()


# Exit codes


@pytest.mark.parametrize(
    "error", [ConfigError, CorpusError, ModelError, TrainingError, VideoError, FetchError, BenchmarkError]
)
def test_an_error_of_the_library_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(loop, "fit", raising(error("x.csv: two\nlines")))
    assert main(["train", "smoke"]) == 1
    assert capsys.readouterr() == ("", "error: x.csv: two lines\n")


def raising(error: BaseException):
    def fails(*arguments, **options):
        raise error

    return fails


def test_an_error_of_the_system_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "fit", lambda config: (tmp_path / "no.csv").read_text())
    assert main(["train", "smoke"]) == 1
    assert capsys.readouterr().err == f"error: [Errno 2] No such file or directory: '{tmp_path}/no.csv'\n"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(loop, "fit", raising(ValueError("a mistake in a loss")))
    with pytest.raises(ValueError, match="a mistake in a loss"):
        main(["train", "smoke"])


@pytest.mark.parametrize(
    "command, continues",
    [
        ("train smoke", True),
        ("index", True),
        ("study leak", True),
        ("data msvd --download", True),
        ("extract clips --stream a --model b --out c", True),
        ("data msvd", False),
        ("cost --size small --device cpu", False),
    ],
)
def test_stopping_is_one_line(command, continues, monkeypatch, capsys):
    for module, name in ((loop, "fit"), (index, "index"), (catalogue, "report"), (cost, "cost")):
        monkeypatch.setattr(module, name, raising(KeyboardInterrupt()))
    monkeypatch.setattr(catalogue.download, "download", raising(KeyboardInterrupt()))
    monkeypatch.setattr(extract, "extract", raising(KeyboardInterrupt()))
    monkeypatch.setattr(executed, "run", raising(KeyboardInterrupt()))
    monkeypatch.setattr("ssb.video.backbones.backbone", lambda *arguments: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert main(shlex.split(command)) == 130
    words = "stopped; the same command continues from here" if continues else "stopped"
    assert capsys.readouterr().err == f"{words}\n"


WAITING = """
import sys, time
from ssb.corpora import catalogue
from ssb.__main__ import main
catalogue.report = lambda name: (print("ready", flush=True), time.sleep(60))
sys.exit(main(["data", "msvd"]))
"""


def test_ctrl_c_ends_the_process_with_130():
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130 and child.stderr.read() == "stopped\n"


@pytest.mark.parametrize("command", [["-m", "ssb", "data"], ["-c", "from ssb.__main__ import main"]], ids=" ".join)
@pytest.mark.parametrize("module", ["argparse", "psutil"])
def test_ctrl_c_during_the_first_imports_is_one_line(command, module, tmp_path, monkeypatch):
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    done, _ = started(*command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("command", [["data"], ["data", "msvd"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(command):
    command = [sys.executable, "-m", "ssb", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()  # as `head` does when it has read enough
        assert child.stderr.read() == ""


@pytest.mark.parametrize(
    "command, words",
    [
        ("", "required: COMMAND"),
        ("dat", "invalid choice: 'dat'"),
        ("data nowhere", "no corpus 'nowhere'; there are shapes, events, msrvtt1k"),
        ("data --download", "--download of what? name a corpus"),
        ("extract clips", "required: --stream, --model, --out"),
        ("extract clips --stream a --model b --out c --rate nan", "argument --rate: nan: wanted 0.001 to 1e+06"),
        ("extract clips --stream a --model b --out c --batch x", "argument --batch: invalid int value: 'x'"),
        ("extract clips --stream a --model b --out c --device gpu", "error: --device gpu: Expected one of cpu, cuda"),
        ("index here there", "unrecognized arguments: there"),
        ("index --held-out 0", "argument --held-out: 0: wanted 1 to"),
        ("train", "required: PRESET"),
        ("train epochs=1", "'epochs=1' comes first; name a preset before it"),
        ("train smoke epochs", "'epochs': wanted SETTING=VALUE, such as epochs=3"),
        ("train smoke =3", "'=3': wanted SETTING=VALUE"),
        ("train big", "no preset 'big'; there are paper, laptop, tuned, paper_small, smoke"),
        ("train smoke epoch_count=1", "unknown setting 'epoch_count'; did you mean"),
        ("train smoke epochs=many", "epochs = 'many': input should be a valid integer"),
        ("train smoke corpus=nowhere", "no corpus 'nowhere': neither 'shapes', "),
        ("bench training --corpus nowhere", "no corpus 'nowhere': neither 'shapes', "),
        ("bench training --steps 7", "--steps: would replace results/bench.csv, which is measured without; add --out"),
        ("bench training --corpus events --steps 7", "--corpus, --steps: would replace results/bench.csv"),
        (
            "bench howto100m --videos 9",
            "--videos: would replace results/howto100m_bench.csv, which is measured without",
        ),
        ("cost --size small --device cpu --steps 10", "--steps: would replace results/cost.csv"),
        ("bench", "required: BENCHMARK"),
        ("bench model", "invalid choice: 'model'"),
        ("bench howto100m --videos many", "argument --videos: invalid int value: 'many'"),
        ("cost --size huge", "argument --size: invalid choice: 'huge'"),
    ],
)
def test_wrong_usage_is_2(command, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.startswith("usage: ssb")
    assert words in said.err.splitlines()[-1]


def test_settings_are_json_or_text(monkeypatch, capsys):
    given = []

    def fit(config):
        given.append(config)
        return type("Run", (), {"folder": "results/runs/x", "__str__": lambda self: "a run"})()

    monkeypatch.setattr(loop, "fit", fit)
    values = ["epochs=3", "streams=[]", "freeze_text=false", "text_encoder=scratch", 'corpus_options={"clips": 60}']
    assert main(["train", "smoke", *values]) == 0
    assert capsys.readouterr().out == "a run\nresults/runs/x\n"
    changes = dict(epochs=3, streams=(), freeze_text=False, text_encoder="scratch", corpus_options={"clips": 60})
    assert given == [ssb.Config.preset("smoke", **changes)]
    assert main(["train", "paper", "corpus=vatex", "max_tokens=50"]) == 0  # with what the record of the corpus changes
    assert (given[-1].epochs, given[-1].max_steps, given[-1].max_tokens) == (30, 64, 50)
    assert __main__.setting("a=b=c") == ("a", "b=c") and __main__.setting("a=") == ("a", "")
    assert __main__.setting("a=" + "[" * 100_000) == ("a", "[" * 100_000)


def test_benchmarks_get_their_options(monkeypatch, tmp_path):
    calls = []
    for module in (alignment, howto100m, scale, training):
        monkeypatch.setattr(module, "bench", lambda *given, module=module: calls.append((module, *given)))
    monkeypatch.setattr("ssb.corpora.load.load_corpus", lambda name: f"corpus {name}")
    home = tmp_path / "results"
    assert main(["bench", "alignment", "--out", str(home / "a.csv")]) == 0
    assert main(["bench", "howto100m", "--videos", "9", "--out", "b.csv"]) == 0
    assert main(["bench", "training", "--corpus", "events", "--out", "c.csv"]) == 0
    assert main(["bench", "scale", "--out", "d.csv"]) == 0
    config = ssb.Config.preset("laptop", corpus="events")
    assert calls == [
        (alignment, home / "a.csv"),
        (howto100m, Path("b.csv"), 9, 40, 1000),
        (training, config, "corpus events", Path("c.csv"), 30, None),
        (scale, Path("d.csv"), Path()),  # and its figure beside it
    ]
    calls.clear()
    assert [main(["bench", name]) for name in BENCHMARKS] == [0, 0, 0, 0]
    results = ssb.files.root() / "results"
    assert [call[-1] for call in calls if call[0] is scale] == [ssb.files.root() / "figures"]
    paths = {path for call in calls for path in call if isinstance(path, Path)} - {ssb.files.root() / "figures"}
    assert paths == {results / f"{name}.csv" for name in ("bench", "s2dtw_bench", "scale", "howto100m_bench")}


def test_howto100m_is_indexed_in_the_data_folder(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(index, "index", lambda folder, held_out, say: calls.append((folder, held_out)))
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    assert main(["index"]) == 0 and main(["index", "here", "--held-out", "5"]) == 0
    assert calls == [(tmp_path / "howto100m", index.HELD_OUT), (Path("here"), 5)]


# Every command that a text names exists


def texts() -> dict[str, list[str]]:
    """File → its texts: strings of the library, f-strings with X for their values; the README; cells of notebooks."""
    found = {"README.md": [(ROOT / "README.md").read_text()]}
    for path in sorted((ROOT / "ssb").rglob("*.py")):
        found[str(path.relative_to(ROOT))] = strings(ast.parse(path.read_text()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[path.name] = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    return found


def strings(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)]
    return [text for child in ast.iter_child_nodes(node) for text in strings(child)]


def commands(text: str) -> list[str]:
    """Those in backquotes, and those on a line of their own, in a docstring or a block of code; two spaces end them."""
    spans = re.findall(r"`ssb ([^`]*)`", text) + re.findall(r"^(?: {4})?ssb (.*)$", text, re.M)
    return [re.split(r" {2,}|\n", span)[0] for span in spans]


def test_commands_are_recognised():
    text = "run `ssb data` or\n\n    ssb index [FOLDER]      to index\nssb train smoke\nthe ssb bench `x` import ssb\n"
    assert commands(text) == ["data", "index [FOLDER]", "train smoke"]
    tree = ast.parse("raise ValueError(f'see `ssb data {name}`; ' 'or `ssb cost`')")
    assert commands(strings(tree)[0]) == ["data X", "cost"]


def test_named_commands_exist(capsys):
    named = [(file, command) for file, found in texts().items() for text in found for command in commands(text)]
    assert {command.split()[0] for _, command in named} >= {*COMMANDS, "bench"}
    for file, command in named:
        words = shlex.split(re.sub(r"[\[\]…]|\.\.\.", "", command))
        try:
            build_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{file} names `ssb {command}`: {capsys.readouterr().err.splitlines()[-1]}")
        if words[0] == "data" and words[1:2] not in ([], ["X"], ["NAME"]):
            assert catalogue.members(words[1]), file


def test_no_text_names_a_module_to_run():
    files = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "ssb").rglob("*.py")]
    assert not [path for path in files if re.search(r"python3? -m ssb\.", path.read_text())]
    for path in (ROOT / "ssb").rglob("*.py"):
        assert (
            path.name == "__main__.py" or "__name__ ==" not in path.read_text() and "argparse" not in path.read_text()
        )
