"""The command line, `ssb` or `python -m ssb`, with one sub-command for each step, from the data to the report.

A sub-command is a function: its docstring is the help, `@argument` declares its arguments, and it returns the exit
code, None for 0. Each imports what it needs itself, so that `--help` costs nothing.

Exit codes: 0 done; 1 not complete or failed, with a line on stderr that begins with "error: "; 2 wrong usage; 130
stopped by Ctrl-C.
"""

import sys

try:
    import json
    import os
    import re
    from argparse import ArgumentParser, ArgumentTypeError, Namespace
    from collections.abc import Callable
    from pathlib import Path

    from ssb import files
except KeyboardInterrupt:  # as in `main`, whose commands import what takes longer
    print("stopped", file=sys.stderr)
    sys.exit(130)

# commands that continue where a stopped one ended; also `data --download`
CONTINUES = "extract index train study".split()


def argument(*names: str, **options) -> Callable:
    """A decorator that declares an argument of a command, with the parameters of `ArgumentParser.add_argument`."""

    def declare(command: Callable) -> Callable:
        command.arguments = [(names, options), *getattr(command, "arguments", [])]
        return command

    return declare


def number(least: float, most: float = 1e9, kind: type = int) -> Callable[[str], float]:
    """A type of argument: numbers of a range."""

    def value(text: str) -> float:
        try:
            result = kind(text)
        except ValueError:  # also of an int of thousands of digits
            raise ArgumentTypeError(f"invalid {kind.__name__} value: {text[:40]!r}") from None
        if not least <= result <= most:  # nor NaN
            raise ArgumentTypeError(f"{text[:40]}: wanted {least} to {most:g}")
        return result

    return value


def setting(text: str) -> tuple[str, object]:
    """A type of argument: SETTING=VALUE, the value in JSON; anything else is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text[:80]!r}: wanted SETTING=VALUE, such as epochs=3")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def accepted(args: Namespace, check: Callable, *values, **settings):
    """What a check of typed values returns; where it refuses them, its message and exit code 2."""
    from ssb.config import ConfigError
    from ssb.corpora.reading import CorpusError

    try:
        return check(*values, **settings)
    except (ConfigError, CorpusError) as error:
        args.error(in_one_line(error))


def table_of(args: Namespace, name: str, *free: str) -> Path:
    """The file that a benchmark writes: --out, or results/<name>, which is measured with the defaults. Wrong usage
    where --out is missing beside other options; StorageError where it is a folder. free: options whose rows
    results/<name> has beside the others."""
    usual = {names[0]: options.get("default") for names, options in args.run.arguments}
    usual = {option: value for option, value in usual.items() if option not in ("--out", *free)}
    other = [option for option, value in usual.items() if getattr(args, option.strip("-")) != value]
    if other and args.out is None:
        args.error(f"{', '.join(other)}: would replace results/{name}, which is measured without; add --out FILE.csv")
    out = args.out or files.root() / "results" / name
    if os.path.isdir(out):
        raise files.StorageError(f"--out {out} is a folder; name a file in it, such as {out / name}")
    return out


# Commands


@argument("name", nargs="?", metavar="NAME", help="a corpus, msrvtt for all of MSR-VTT, or all")
@argument("--download", action="store_true", help="first fetch the missing files that have a direct link")
def data(args: Namespace) -> int:
    """List the corpora, or report what one needs and has; fetch files."""
    from ssb.corpora import catalogue

    if args.name is None:
        if args.download:
            args.error("--download of what? name a corpus")
        print(*catalogue.overview(), sep="\n")
        return 0
    names = accepted(args, catalogue.members, args.name)
    failures = catalogue.download.download(names) if args.download else []
    complete = catalogue.report(args.name)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 0 if complete and not failures else 1


@argument("clips", nargs="+", metavar="CLIPS", help="videos or images, or folders of them")
@argument("--stream", required=True, metavar="NAME", help="what the feature stream is called")
@argument("--model", required=True, help="efficientnet_lite0, colour_edges, hub name, folder, R(2+1)D weights")
@argument("--out", required=True, metavar="FOLDER", help="the features/ folder of a corpus")
@argument("--frames", type=number(1, 1024), help="in a window (R(2+1)D; default: as it was trained)")
@argument("--rate", type=number(1e-3, 1e6, float), help="frames per second (default: 30 for R(2+1)D)")
@argument("--grid", type=number(1, 16), default=1, help="2: also the quadrants of still images, as further steps")
@argument("--batch", type=number(1, 4096), default=16, help="windows in a batch (default: 16)")
@argument("--workers", type=number(0, 256), help="decoding processes (default: one per core, at most 8)")
@argument("--device", help="default: cuda where there is one")
def extract(args: Namespace) -> int:
    """Turn videos or images into a feature stream; the exit code is 1 where a clip could not be read."""
    import torch

    try:
        torch.zeros(1, device=args.device).cpu()
    except (RuntimeError, AssertionError) as error:  # no such device, not on this machine, or one without memory
        args.error(f"--device {args.device}: {str(error).splitlines()[0]}")
    from ssb.video.backbones import backbone
    from ssb.video.extract import extract

    model = backbone(args.model, args.frames, args.rate, args.grid)
    broken = extract(args.clips, args.out, args.stream, model, args.batch, args.workers, args.device)
    if broken:
        print(f"error: {len(broken)} clips could not be read and have no features; copy them again:", file=sys.stderr)
        for clip, reason in broken.items():
            print(f"  {clip if clip.isprintable() else repr(clip)}: {reason}", file=sys.stderr)
    return 1 if broken else 0


@argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: howto100m in the data folder, $SSB_DATA")
@argument("--held-out", type=number(1), default=1000, help="videos of val and of test (default: 1000, or 5 %%)")
def index(args: Namespace):
    """Index HowTo100M, which makes it a corpus; again after features were added."""
    from ssb.corpora.howto100m.index import index

    index(args.folder or files.data() / "howto100m", args.held_out, lambda line: print(line, flush=True))


@argument("preset", metavar="PRESET", help="paper, laptop, tuned, paper_small or smoke")
@argument("settings", type=setting, nargs="*", default=[], metavar="SETTING=VALUE", help="of ssb.Config, as JSON")
def train(args: Namespace):
    """Train one run, or load it if it is finished: `ssb train laptop corpus=shapes seed=1`; on several GPUs or machines
    with `accelerate launch -m ssb train …`."""
    if "=" in args.preset:
        args.error(f"{args.preset[:80]!r} comes first; name a preset before it")
    names = [name for name, _ in args.settings]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        args.error(f"{', '.join(twice)[:80]}: set twice; keep one of them")
    from ssb.config import Config
    from ssb.corpora.load import check_name

    # before torch is imported, which takes seconds
    accepted(args, check_name, accepted(args, Config.preset, args.preset, **dict(args.settings)).corpus)
    from ssb import processes
    from ssb.training.loop import fit
    from ssb.training.runs import configure

    run = fit(accepted(args, configure, args.preset, **dict(args.settings)))
    if processes.index() == 0:
        print(run, run.folder, sep="\n")


@argument("--size", choices=("paper", "small"), help="default: paper on a GPU, small without, where paper takes hours")
@argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
@argument("--steps", type=number(5, 1e6), help="of training, in 5 windows of which the median counts")
@argument("--out", type=Path, help="default: results/cost.csv")
def cost(args: Namespace):
    """Measure what the paper's training and search cost on this machine."""
    out = table_of(args, "cost.csv", "--size", "--device")
    import torch

    cuda = torch.cuda.is_available()
    device = args.device or ("cuda" if cuda else "cpu")
    if device == "cuda" and not cuda:
        args.error("--device cuda: torch finds no GPU here; take --device cpu")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read by Accelerator
    from ssb.bench import cost

    size = args.size or ("paper" if device == "cuda" else "small")
    cost.cost(size, cost.SIZES[size], out, args.steps)


@argument("--corpus", default="shapes", help="default: shapes")
@argument("--steps", type=number(1, 1e6), default=30, help="of each variant, in 5 rounds (default: 30)")
@argument("--before", type=Path, metavar="CHECKOUT", help="of an earlier commit, to compare a study with")
@argument("--out", type=Path, help="default: results/bench.csv")
def bench_training(args: Namespace):
    """Training, its start and rankings against a literal implementation of the paper, and an earlier commit."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # read by Accelerator
    from ssb.corpora.load import check_name, load_corpus

    accepted(args, check_name, args.corpus)
    out = table_of(args, "bench.csv", "--before")
    from ssb.bench import training
    from ssb.training.runs import configure

    training.bench(configure("laptop", args.corpus), load_corpus(args.corpus), out, args.steps, args.before)


@argument("--out", type=Path, help="default: results/s2dtw_bench.csv")
def bench_alignment(args: Namespace):
    """Soft-DTW against tslearn and loops in Python."""
    from ssb.bench import alignment

    alignment.bench(table_of(args, "s2dtw_bench.csv"))


@argument("--out", type=Path, help="default: results/scale.csv")
def bench_scale(args: Namespace):
    """How the cost of each part grows with the corpus and with the support set."""
    from ssb.bench import scale

    out = table_of(args, "scale.csv")
    scale.bench(out, out.parent if args.out else files.root() / "figures")


@argument("--videos", type=number(4, 1e7), default=1_200_000, help="to generate (default: 1200000)")
@argument("--narrations", type=number(1, 1e4), default=40, help="of each video (default: 40)")
@argument("--batches", type=number(1, 1e6), default=1000, help="to read, at most an epoch (default: 1000)")
@argument("--out", type=Path, help="default: results/howto100m_bench.csv")
def bench_howto100m(args: Namespace):
    """Memory and time of a synthetic HowTo100M of 1.2 million videos."""
    out = table_of(args, "howto100m_bench.csv")
    from ssb.bench import howto100m

    howto100m.bench(out, args.videos, args.narrations, args.batches)


@argument(
    "names", nargs="*", metavar="TABLE", help="a table, a notebook, or a name as --status prints it (default: all)"
)
@argument("--corpus", default="", help="those of one corpus")
@argument("--preset", default="", help="those of one preset; smoke: all of them in seconds, which mean nothing")
@argument("--jobs", type=number(1, 1024), help="runs at the same time (default: one on each core)")
@argument("--status", action="store_true", help="execute nothing: what is done, stale, running, failed, not yet made")
def study(args: Namespace) -> int | None:
    """Execute the notebooks of the study that are not done."""
    from ssb.whole import contents, executed

    entries = accepted(args, contents.chosen, args.names, args.corpus, args.preset)
    entries = [executed.smoke(entry) for entry in entries] if args.preset == "smoke" else entries
    if args.status:
        from ssb.whole import committed

        for line in committed.overview_of(entries):
            print(line, flush=True)
        return None
    failed = executed.run(entries, args.jobs)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


@argument("folder", nargs="?", type=Path, metavar="FOLDER", help="a checkout (default: the one that ssb runs from)")
def report(args: Namespace):
    """Write what the READMEs say of results and notebooks, the links between the notebooks, and the report for a
    browser, results/report/index.html."""
    from ssb.experiments import finding, overview, readmes
    from ssb.pages import site
    from ssb.whole import contents

    root = args.folder or files.root()
    results = root / "results"
    claims = overview.claims(results) if overview.files_of("claims", results) else None
    if (root / "README.md").is_file():  # not where $SSB_HOME keeps results alone
        for path in readmes.write(root, claims):
            print("wrote", files.short(path))
    words = "" if claims is None else finding.page(claims)
    index = site.write(root, readmes.titles(root), contents.NOTEBOOKS, words, claims)
    print("open", files.short(index), "in a browser")


COMMANDS = {"data": data, "extract": extract, "index": index, "train": train, "study": study}
COMMANDS |= {"cost": cost, "report": report}
BENCHMARKS = {"training": bench_training, "alignment": bench_alignment, "scale": bench_scale}  # of `bench`
BENCHMARKS |= {"howto100m": bench_howto100m}


# The parser


def build_parser() -> ArgumentParser:
    """The parser of all commands. What it returns has `run`, the function to call, and `error`, which ends the process
    with a message and exit code 2."""
    parser = ArgumentParser(prog="ssb", description="Support-Set Bottlenecks for Video-Text Representation Learning.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_commands(parsers, COMMANDS)
    about = "Measure how fast the library is on this machine."
    bench = parsers.add_parser("bench", help=about, description=about)
    add_commands(bench.add_subparsers(required=True, metavar="BENCHMARK"), BENCHMARKS)
    return parser


def add_commands(parsers, commands: dict[str, Callable[[Namespace], int | None]]):
    """Add a sub-parser for each of these functions."""
    for name, command in commands.items():
        parser = parsers.add_parser(name, help=command.__doc__, description=command.__doc__)
        parser.set_defaults(run=command, error=parser.error)
        for names, options in command.arguments:
            parser.add_argument(*names, **options)


def in_one_line(error: Exception) -> str | None:
    """What went wrong and what to do, of an error of the library's own, of files or of memory; None of any other, which
    a traceback explains better."""
    kind, words = type(error), " ".join(str(error).split())
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError" or "can't allocate memory" in words:
        words = f"out of memory{words and f' ({words})'}; close other programs, or take a smaller batch or corpus"
    elif isinstance(error, OSError) and error.errno in files.DISK:
        words += "; free some space or allow writing, then give the same command again"
    elif not kind.__module__.startswith("ssb.") and not isinstance(error, OSError):
        return None
    return re.sub(r"(\S{150})\S{150,}", r"\1…", words)  # a value that somebody pasted


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default the process's own; returns the exit code. SystemExit for --help and wrong usage."""
    args = Namespace(command=None)
    try:
        try:
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8, nor the terminal
            build_parser().parse_args(arguments, args)
            return args.run(args) or 0
        finally:
            sys.stdout.flush()  # or a closed pipe would raise when the process ends
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        continues = args.command in CONTINUES or args.command == "data" and args.download
        print("stopped; the same command continues from here" if continues else "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := in_one_line(error)) is None:
            raise
        print("error:", line, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
