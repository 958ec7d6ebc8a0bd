"""`ssb cost`: what the paper's training and search cost on this machine, beside its section 6.1.

The `paper` preset as it is trained here, on data of the right shapes and no meaning: a T5 of the published sizes with
random weights, for the real ones cannot be had everywhere; noise for features, every clip of the full 32 steps;
captions of MSR-VTT's lengths. A step, an encoding and a search take the same time whatever they work on.

`--size paper` is MSR-VTT's size with t5-base. `--size small` shows that the benchmark runs, on a CPU in a minute or
two. A row says in `note` why it is no statement on the paper's hardware.
"""

import gc
import io
import itertools
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate import Accelerator
from transformers import T5Config, T5ForConditionalGeneration

from ssb import files, text
from ssb.bench.timing import ROUNDS, BenchmarkError, seconds
from ssb.config import Config
from ssb.corpora.corpus import Corpus, Stream
from ssb.machine import machine
from ssb.metrics import retrieval
from ssb.training.loop import Training

CAPTIONS = 20  # of a clip of MSR-VTT
LENGTHS = 2.16, 0.42  # mean and deviation of log(tokens): 20,000 captions of MSR-VTT, WordPiece of 30,522, no end mark
WIDTHS = {"resnet152": 2048, "r2plus1d": 512}
WORDS = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)]  # one token each
GIB = 2**30
HOUR = 3600


class Size(NamedTuple):
    """How much is measured. t5: what differs from transformers' T5Config(), whose sizes are t5-small's."""

    t5: dict[str, int]
    clips: int
    batch: int
    steps: int  # of training, all windows together
    encoded: int  # queries, and as many videos
    searched: int = 5000


SIZES = {
    "paper": Size(dict(d_model=768, d_ff=3072, num_heads=12, num_layers=12), 9000, 64, 200, 5000),
    "small": Size({}, 64, 8, 10, 64),
}
PAIRS, EPOCHS = SIZES["paper"].clips * CAPTIONS, Config().epochs
PAPER = {  # what is measured → the row of paper.csv
    "train, all epochs": "train, 180K pairs, 20 epochs, one V100",
    "encode queries": "encode text queries (lower end)",
    "encode videos": "encode videos (lower end)",
    "search, encoding included": "5,000 queries over 5,000 videos, encoding included (lower end)",
}
COLUMNS = (
    "what size precision value low high unit extrapolated paper note "
    "preset t5_layers t5_width clips batch device cores threads gpu_gib process_gib torch commit dirty"
).split()
OWN = ["device", "size"]  # rows that agree in these are replaced by a new measurement


def noise(clips: int) -> Corpus:
    """Clips of the paper's shapes: two streams of 32 steps, 20 captions each."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(*LENGTHS, clips * CAPTIONS)).round().astype(int).clip(min=1)
    words = np.split(rng.choice(WORDS, lengths.sum()), np.cumsum(lengths)[:-1])
    captions = pd.DataFrame({"clip": np.arange(clips).repeat(CAPTIONS), "text": [" ".join(row) for row in words]})
    shapes = {name: (clips, Config().max_steps, width) for name, width in WIDTHS.items()}
    streams = {
        name: Stream(rng.standard_normal(shape, np.float32).astype(np.float16), source=name)
        for name, shape in shapes.items()
    }
    return Corpus("noise", [f"clip{i}" for i in range(clips)], captions, {"train": np.arange(clips)}, streams)


def save_t5(folder: str, sizes: dict[str, int]):
    """A T5 of random weights and a tokenizer of one token a word, to load by Config(text_encoder=folder)."""
    transformers.logging.disable_progress_bar()
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(folder)
    text.fit_tokenizer(WORDS * 2, T5Config().vocab_size).save_pretrained(folder)


def spread(what: str, values: np.ndarray, unit: str) -> dict:
    """A row of a measurement: the median of its windows, the least and the greatest."""
    return dict(what=what, value=np.median(values), low=values.min(), high=values.max(), unit=unit)


def measured(rows: Iterator[dict], device: torch.device, precision: str) -> list[dict]:
    """The rows with their precision and the most memory held at once, GiB: by tensors on the GPU while these rows were
    measured; by the process since it began, which has built the data and the models too."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = [{"precision": precision} | row for row in rows]
    gpu = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else np.nan
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return [row | {"gpu_gib": gpu, "process_gib": resident / GIB} for row in found]


def training_rows(training: Training, steps: int) -> Iterator[dict]:
    """Pairs per second, and the hours that all epochs of MSR-VTT would take at that."""
    batches = itertools.cycle(training.data.order(0))
    window = max(1, steps // ROUNDS)

    def work():
        for captions in itertools.islice(batches, window):
            training.watch.stuck = 0  # noise may collapse, which costs as much as learning
            training.take_step(captions)
        if training.data.device.type == "cuda":
            torch.cuda.synchronize()

    rates = window * training.config.batch / seconds([work])[:, 0]
    yield spread("train", rates, "pairs per second")
    yield dict(what="train, all epochs", unit="hours", extrapolated=EPOCHS * PAIRS / np.median(rates) / HOUR)


def retrieval_rows(training: Training, size: Size) -> Iterator[dict]:
    """Encoding from token ids and features, and a search of all pairs on the CPU, as a run does it after training."""
    data, model = training.data, training.raw.eval()
    clips = np.arange(size.encoded)
    queries, gallery = torch.randn(2, size.searched, training.config.dim)
    works = {
        "encode queries": lambda: data.embed_texts(model, clips * CAPTIONS),
        "encode videos": lambda: data.embed_videos(model, clips),
        "search": lambda: retrieval.search(queries, gallery, torch.arange(size.searched)),
    }
    with torch.inference_mode():
        taken = seconds(works.values())  # (ROUNDS, 3)
    yield spread("encode queries", size.encoded / taken[:, 0], "queries per second")
    yield spread("encode videos", size.encoded / taken[:, 1], "videos per second")
    yield spread("search", taken[:, 2], "seconds") | {"precision": "fp64"}
    scale = size.searched / size.encoded
    total = taken @ [scale, scale, 1]
    if scale == 1:
        yield spread("search, encoding included", total, "seconds")
    else:
        yield dict(what="search, encoding included", unit="seconds", extrapolated=np.median(total))


def note(name: str, device: str) -> str:
    """Why a row is no statement on the paper's hardware; empty for the paper's size on its kind of GPU."""
    why = ["not the paper's size"] * (name != "paper") + [f"on {device}, not a V100"] * ("V100" not in device)
    return ": ".join([", ".join(why), "no statement on the paper's hardware"]) if why else ""


def cost(name: str, size: Size, out: Path, steps: int | None = None) -> pd.DataFrame:
    """Measure on accelerate's device, print, and put the rows into `out`, where those of other devices and sizes
    stay. Returns the new rows, as text. On a GPU training is measured in float32 and in bfloat16; encoding is float32
    in any run. BenchmarkError, before anything is measured, if `out` holds something else."""
    kept = others(out)
    corpus, rows = noise(size.clips), []
    device = Accelerator().device
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        save_t5(folder, size.t5)
        config = Config(text_encoder=folder, decoder=folder, batch=size.batch, threads=torch.get_num_threads())
        for shown, precision in (("fp32", "no"), ("bf16", "bf16"))[: 2 if device.type == "cuda" else 1]:
            training = Training(config.replace(precision=precision), corpus, Path(folder) / "run", quiet=True)
            rows += measured(training_rows(training, steps or size.steps), device, shown)
            if precision == "no":
                rows += measured(retrieval_rows(training, size), device, shown)
            del training
            gc.collect()  # or the next one would not fit beside it
    origin = machine()
    cpu = origin.pop("cpu")
    frame = table(rows, name, size, torch.cuda.get_device_name() if device.type == "cuda" else cpu, origin)
    print(frame[COLUMNS[: COLUMNS.index("note")]].to_string(index=False), frame["note"][0], sep="\n")
    stays = ~kept[OWN].eq(frame[OWN].iloc[0]).all(axis=1)
    with files.written(out) as draft:
        pd.concat([kept[stays], frame]).sort_values([*OWN, "precision", "what"]).to_csv(draft, index=False)
    return frame


def table(rows: list[dict], name: str, size: Size, device: str, origin: dict) -> pd.DataFrame:
    """The rows with the paper's numbers beside them and where they are from; every cell as it is to be written."""
    numbers = pd.read_csv(Path(__file__).parents[1] / "paper.csv", dtype={"table": str})
    numbers = numbers[numbers["table"] == "cost"].set_index("row")["value"]
    t5 = T5Config(**size.t5)
    frame = pd.DataFrame(rows).assign(
        paper=[numbers[PAPER[row["what"]]] if row["what"] in PAPER else np.nan for row in rows],
        note=note(name, device),
        **dict(size=name, preset="paper", t5_layers=t5.num_layers, t5_width=t5.d_model),
        **dict(clips=size.clips, batch=size.batch, device=device, **origin),
    )
    written = frame.reindex(columns=COLUMNS).to_csv(index=False, float_format="%.2f")
    return pd.read_csv(io.StringIO(written), dtype=str, keep_default_na=False)


def others(path: Path) -> pd.DataFrame:
    """The rows already there, as they are written."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise BenchmarkError(f"{files.short(path)}: no table of this benchmark ({error}); move it away") from None
    if list(found) != COLUMNS:
        raise BenchmarkError(f"{files.short(path)}: has the columns {', '.join(found)}; wanted {', '.join(COLUMNS)}")
    return found
