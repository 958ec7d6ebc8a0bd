"""`ssb cost`: what the paper's training and search cost on this machine, next to the numbers of its section 6.1.

The `paper` preset as it is trained here, on random data of the right shapes: a T5 of the published sizes with random
weights, since the real ones cannot be downloaded everywhere; noise for features, every clip of the full 32 steps;
captions of MSR-VTT's lengths. The time of a step, an encoding or a search does not depend on the values.

`--size paper` is MSR-VTT's size with t5-base. `--size small` shows that the benchmark runs, on a CPU in a minute or
two. The column `note` says why a row is no statement on the paper's hardware.
"""

import gc
import io
import itertools
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

from ssb import files, paper, text
from ssb.bench.timing import ROUNDS, seconds
from ssb.config import Config
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.tables import read_table
from ssb.machine import machine, peak_memory
from ssb.metrics import retrieval
from ssb.training.loop import Training

CAPTIONS = 20  # of a clip of MSR-VTT
LENGTHS = 2.16, 0.42  # mean and deviation of log(tokens): 20,000 captions of MSR-VTT, WordPiece of 30,522, no end token
WIDTHS = {"resnet152": 2048, "r2plus1d": 512}
WORDS = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)]  # one token each
GIB = 2**30
HOUR = 3600


class Size(NamedTuple):
    """How much is measured. t5: changes of transformers' T5Config(), which has the sizes of t5-small."""

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


def noise(clips: int, each: int = CAPTIONS, widths: dict[str, int] | None = None, steps: int | None = None) -> Corpus:
    """Clips with this many captions each, streams of these widths, and steps; by default of the paper's shapes: two
    streams of 32 steps, 20 captions."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(*LENGTHS, clips * each)).round().astype(int).clip(min=1)
    words = np.split(rng.choice(WORDS, lengths.sum()), np.cumsum(lengths)[:-1])
    captions = pd.DataFrame({"clip": np.arange(clips).repeat(each), "text": [" ".join(row) for row in words]})
    streams = {}
    for name, width in (widths or WIDTHS).items():
        values = rng.standard_normal((clips, steps or Config().max_steps, width), np.float32)
        streams[name] = Stream(values.astype(np.float16), source=name)
    return Corpus("noise", [f"clip{i}" for i in range(clips)], captions, {"train": np.arange(clips)}, streams)


def save_t5(folder: str, sizes: dict[str, int]):
    """A T5 of random weights and a tokenizer of one token a word, to load by Config(text_encoder=folder)."""
    transformers.logging.disable_progress_bar()
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(folder)
    text.fit_tokenizer(WORDS * 2, T5Config().vocab_size).save_pretrained(folder)


def spread(what: str, values: np.ndarray, unit: str) -> dict:
    """A row of a measurement: median, least and greatest of its ROUNDS values."""
    return dict(what=what, value=np.median(values), low=values.min(), high=values.max(), unit=unit)


def measured(rows: Iterator[dict], device: torch.device, precision: str) -> list[dict]:
    """The rows with their precision and two peaks of memory in GiB: of tensors on the GPU while these rows were
    measured; of the process since its start, data and models included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = [{"precision": precision} | row for row in rows]
    gpu = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else np.nan
    return [row | {"gpu_gib": gpu, "process_gib": peak_memory() / GIB} for row in rows]


def training_rows(training: Training, steps: int) -> Iterator[dict]:
    """Rows of training: pairs per second, milliseconds of a step, and the hours that all epochs of MSR-VTT take at this
    rate."""
    batches = itertools.cycle(training.data.order(0))
    window = max(1, steps // ROUNDS)

    def work():
        for captions in itertools.islice(batches, window):
            training.watch.stuck = 0  # noise may collapse, which costs as much as learning
            training.take_step(captions)
        training.read()
        if training.data.device.type == "cuda":
            torch.cuda.synchronize()

    rates = window * training.config.batch / seconds([work])[:, 0]
    yield spread("train", rates, "pairs per second")
    yield spread("train, one step", 1000 * training.config.batch / rates, "milliseconds")
    yield dict(what="train, all epochs", unit="hours", extrapolated=EPOCHS * PAIRS / np.median(rates) / HOUR)


def retrieval_rows(training: Training, size: Size) -> Iterator[dict]:
    """Rows of encoding from token ids and features, and of a search of all pairs, as in an evaluation."""
    data, model = training.data, training.raw.eval()
    clips = np.arange(size.encoded)
    queries, gallery = torch.randn(2, size.searched, training.config.dim).to(data.device)
    calls = {
        "encode queries": lambda: data.embed_texts(model, clips * CAPTIONS),
        "encode videos": lambda: data.embed_videos(model, clips),
        "search": lambda: retrieval.search(queries, gallery, torch.arange(size.searched)),
    }
    with torch.inference_mode():
        taken = seconds(calls.values())  # (ROUNDS, 3)
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
    """Why a row does not measure the paper's setting; empty for the paper's size on its kind of GPU, a V100."""
    reasons = [] if name == "paper" else ["not the paper's size"]
    reasons += [] if "V100" in device else [f"on {device}, not a V100"]
    return f"{', '.join(reasons)}: no statement on the paper's hardware" if reasons else ""


def cost(name: str, size: Size, out: Path, steps: int | None = None) -> pd.DataFrame:
    """Measure on accelerate's device, print, and write the rows to `out`, where those of other devices and sizes are
    kept. Returns the new rows, as text. On a GPU training is measured in float32, whose matrix products round to TF32,
    and in bfloat16; encoding is float32 in any run. CorpusError, before anything is measured, if `out` is no table of
    this benchmark."""
    earlier = read_table(out, *COLUMNS) if out.exists() else pd.DataFrame(columns=COLUMNS, dtype=str)
    corpus, rows = noise(size.clips), []
    device = Accelerator().device
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        save_t5(folder, size.t5)
        config = Config(text_encoder=folder, decoder=folder, batch=size.batch, threads=torch.get_num_threads())
        precisions = {"tf32": "no", "bf16": "bf16"} if device.type == "cuda" else {"fp32": "no"}
        for label, precision in precisions.items():
            training = Training(config.replace(precision=precision), corpus, Path(folder) / "run", quiet=True)
            rows += measured(training_rows(training, steps or size.steps), device, label)
            if precision == "no":
                rows += measured(retrieval_rows(training, size), device, "fp32")
            del training
            gc.collect()  # or the next one would not fit into memory
    origin = machine()
    frame = table(rows, name, size, torch.cuda.get_device_name() if device.type == "cuda" else origin["cpu"], origin)
    print(frame[COLUMNS[: COLUMNS.index("note")]].to_string(index=False), frame["note"][0], sep="\n")
    others = ~earlier[OWN].eq(frame[OWN].iloc[0]).all(axis=1)
    with files.written(out) as draft:
        pd.concat([earlier[others], frame]).sort_values([*OWN, "precision", "what"]).to_csv(draft, index=False)
    return frame


def table(rows: list[dict], name: str, size: Size, device: str, origin: dict) -> pd.DataFrame:
    """The rows with the paper's numbers and the columns that say where they were measured; cells as text, as in the
    CSV."""
    numbers = paper.rows(table="cost").set_index("row")["value"]
    t5 = T5Config(**size.t5)
    frame = pd.DataFrame(rows).assign(
        paper=[numbers[PAPER[row["what"]]] if row["what"] in PAPER else np.nan for row in rows],
        note=note(name, device),
        **{"size": name, "preset": "paper", "t5_layers": t5.num_layers, "t5_width": t5.d_model},
        **{"clips": size.clips, "batch": size.batch, "device": device, **origin},
    )
    written = frame.reindex(columns=COLUMNS).to_csv(index=False, float_format="%.2f")
    return pd.read_csv(io.StringIO(written), dtype=str, keep_default_na=False)
