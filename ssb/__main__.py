"""The command line, `ssb` or `python -m ssb`, with one sub-command each for the data, the features and the training.

Every sub-command has two functions: `<name>_options` declares its arguments, `<name>` does the work and returns the
exit code. They import what they need themselves, so that `--help` costs nothing.

Exit codes: 0 done; 1 not complete or failed, with a line on stderr that begins with "error: "; 2 wrong usage; 130
stopped by Ctrl-C.
"""

import argparse
import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

from ssb import files

CONTINUES = "extract index train".split()  # commands that continue where a stopped one ended; also `data --download`


def number(least: float, most: float = 1e9, kind: type = int) -> Callable[[str], float]:
    """A type of argument: numbers of a range."""

    def value(text: str) -> float:
        result = kind(text)
        if not least <= result <= most:  # nor NaN
            raise ArgumentTypeError(f"{text}: wanted {least} to {most:g}")
        return result

    value.__name__ = kind.__name__  # argparse names the type in its message
    return value


def data_options(parser: ArgumentParser):
    parser.add_argument("name", nargs="?", metavar="NAME", help="a corpus, msrvtt for all of MSR-VTT, or all")
    parser.add_argument("--download", action="store_true", help="first fetch the missing files that have a direct link")


def data(given: Namespace) -> int:
    """List the corpora, or report what one needs and has; complete is one that can be loaded."""
    from ssb.corpora import catalogue

    if given.name is None:
        if given.download:
            given.misuse("--download of what? name a corpus")
        print(*catalogue.overview(), sep="\n")
        return 0
    try:
        names = catalogue.members(given.name)
    except catalogue.CorpusError as error:
        given.misuse(str(error))
    failures = catalogue.download.download(names) if given.download else []
    complete = catalogue.report(given.name)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 0 if complete and not failures else 1


def extract_options(parser: ArgumentParser):
    parser.add_argument("clips", nargs="+", metavar="CLIPS", help="video files, or folders of them")
    parser.add_argument("--stream", required=True, metavar="NAME", help="what the feature stream is called")
    parser.add_argument("--model", required=True, help="backbone: hub name, folder, R(2+1)D-34 weights or their name")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the features/ folder of a corpus")
    parser.add_argument("--frames", type=number(1, 1e6), help="of a window (R(2+1)D; default: as it was trained)")
    parser.add_argument("--rate", type=number(1e-3, 1e6, float), help="frames a second (default: 30 for R(2+1)D)")
    parser.add_argument("--batch", type=number(1, 1e6), default=16, help="windows in a batch (default: 16)")
    parser.add_argument("--workers", type=number(0, 1e6), help="decoding processes (default: one a core, at most 8)")
    parser.add_argument("--device", help="default: cuda where there is one")


def extract(given: Namespace) -> int:
    """Video to a feature stream; not complete where a clip could not be read."""
    import torch

    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:  # no such device, or not on this machine
        given.misuse(f"--device {given.device}: {str(error).splitlines()[0]}")
    from ssb.video.backbones import backbone
    from ssb.video.extract import extract

    model = backbone(given.model, given.frames, given.rate)
    broken = extract(given.clips, given.out, given.stream, model, given.batch, given.workers, given.device)
    if broken:
        print(f"error: {len(broken)} clips could not be read and have no features:", file=sys.stderr)
        print(*(f"  {clip}: {reason}" for clip, reason in broken.items()), sep="\n", file=sys.stderr)
    return 1 if broken else 0


def index_options(parser: ArgumentParser):
    folder = dict(type=Path, default=files.data() / "howto100m", help="default: %(default)s")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", **folder)
    parser.add_argument("--held-out", type=number(1), default=1000, help="videos of val and of test, at most 5 %% each")


def index(given: Namespace) -> int:
    """Index HowTo100M, or look anew which of its videos have features."""
    from ssb.corpora.howto100m.index import index

    index(given.folder, given.held_out, lambda line: print(line, flush=True))
    return 0


def setting(text: str) -> tuple[str, object]:
    """A type of argument: SETTING=VALUE, the value in JSON; anything else is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text!r}: wanted SETTING=VALUE, such as epochs=3")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def train_options(parser: ArgumentParser):
    parser.add_argument("preset", metavar="PRESET", help="paper, laptop or smoke")
    parser.add_argument("settings", type=setting, nargs="*", metavar="SETTING=VALUE", help="of ssb.Config, as JSON")


def train(given: Namespace) -> int:
    """Train one run, or read it back if it is finished."""
    if "=" in given.preset:
        given.misuse(f"{given.preset!r} comes first; name a preset before it")
    from ssb.config import Config

    config = Config.preset(given.preset, **dict(given.settings))  # before the import of torch, which takes seconds
    from ssb.training.loop import fit

    run = fit(config)
    print(run, run.folder, sep="\n")
    return 0


BENCHMARKS = {  # name → what it measures, its table
    "training": ("training steps and rankings against the literal way", "bench.csv"),
    "alignment": ("soft-DTW against tslearn and loops in Python", "s2dtw_bench.csv"),
    "howto100m": ("memory and time of an invented HowTo100M of 1.2 million videos", "howto100m_bench.csv"),
}


def table_option(parser: ArgumentParser, name: str):
    parser.add_argument("--out", type=Path, default=files.root() / "results" / name, help=f"default: results/{name}")


def bench_options(parser: ArgumentParser):
    parsers = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    each = {name: parsers.add_parser(name, help=about, description=about) for name, (about, _) in BENCHMARKS.items()}
    each["training"].add_argument("--corpus", default="shapes", help="default: shapes")
    each["training"].add_argument("--steps", type=number(1), default=30, help="of each way, in 5 rounds (default: 30)")
    for name, default, what in (
        ("videos", 1_200_000, "to invent (default: 1200000)"),
        ("narrations", 40, "of each video (default: 40)"),
        ("batches", 1000, "to read (default: 1000)"),
    ):
        each["howto100m"].add_argument(f"--{name}", type=number(1), default=default, help=what)
    for name, (_, table) in BENCHMARKS.items():
        table_option(each[name], table)


def bench(given: Namespace) -> int:
    """Measure on this machine, print, and write a table."""
    if given.benchmark == "alignment":
        from ssb.bench import alignment

        alignment.bench(given.out)
    elif given.benchmark == "howto100m":
        from ssb.bench import howto100m

        howto100m.bench(given.out, given.videos, given.narrations, given.batches)
    else:
        from ssb.bench import training
        from ssb.config import Config
        from ssb.corpora.load import load_corpus

        config = Config.preset("laptop", corpus=given.corpus)
        training.bench(config, load_corpus(given.corpus), given.out, given.steps)
    return 0


def cost_options(parser: ArgumentParser):
    parser.add_argument(
        "--size", choices=("paper", "small"), help="default: paper on a GPU, small without, where paper takes hours"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--steps", type=number(5), help="of training, in 5 windows of which the median counts")
    table_option(parser, "cost.csv")


def cost(given: Namespace) -> int:
    """Measure the cost of the paper's setting."""
    import torch

    cuda = torch.cuda.is_available()
    device = given.device or ("cuda" if cuda else "cpu")
    if device == "cuda" and not cuda:
        given.misuse("--device cuda: torch finds no GPU here; take --device cpu")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read by Accelerator
    from ssb.bench import cost

    size = given.size or ("paper" if device == "cuda" else "small")
    cost.cost(size, cost.SIZES[size], given.out, given.steps)
    return 0


COMMANDS = {  # name → its two functions, what it is for
    "data": (data_options, data, "list the corpora, or report what one needs and has; fetch files"),
    "extract": (extract_options, extract, "turn video into a feature stream"),
    "index": (index_options, index, "index HowTo100M, which makes it a corpus"),
    "train": (train_options, train, "train one run: `ssb train laptop corpus=shapes seed=1`"),
    "bench": (bench_options, bench, "measure how fast the library is"),
    "cost": (cost_options, cost, "measure what the paper's training and search cost on this machine"),
}


def build_parser() -> ArgumentParser:
    """The parser of all commands. What it returns has `run`, the function to call, and `misuse`, which ends the
    process with a message and exit code 2."""
    parser = ArgumentParser(prog="ssb", description="Support-Set Bottlenecks for Video-Text Representation Learning.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (options, run, about) in COMMANDS.items():
        command = parsers.add_parser(name, help=about, description=about)
        options(command)
        command.set_defaults(run=run, misuse=command.error)
    return parser


def expected(error: Exception) -> bool:
    """Does the message alone say what went wrong? It does for errors of the library's own, of files and of memory."""
    kind = type(error)
    own = kind.__module__.startswith("ssb.")
    return own or isinstance(error, OSError) or (kind.__module__, kind.__name__) == ("torch", "OutOfMemoryError")


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default the process's own; returns the exit code. SystemExit for --help and wrong usage."""
    given = argparse.Namespace(command=None)
    try:
        try:
            build_parser().parse_args(arguments, given)
            return given.run(given)
        finally:
            sys.stdout.flush()  # or a closed pipe would raise when the process ends
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        continues = given.command in CONTINUES or given.command == "data" and given.download
        print("stopped; the same command continues from here" if continues else "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if not expected(error):
            raise
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
