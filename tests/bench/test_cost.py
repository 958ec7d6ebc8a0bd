"""The benchmark of the paper's cost: what it builds has the published sizes, its sums are right, its table is kept."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import T5Config, T5ForConditionalGeneration

from ssb import Config, load_corpus, text
from ssb.__main__ import main
from ssb.bench import cost
from ssb.training.data import Data
from ssb.training.loop import Training

TINY = cost.Size(dict(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1), 8, 4, 5, 6, searched=30)
SHOWN = ["train", "train, one step", "train, all epochs"]
SHOWN += ["encode queries", "encode videos", "search", "search, encoding included"]


@pytest.fixture
def small_shapes(monkeypatch):
    """Narrow streams and heads, so that a test takes a second; the real widths are tested alone."""
    monkeypatch.setattr(cost, "WIDTHS", {"a": 12, "b": 4})
    monkeypatch.setattr(cost, "Config", lambda **changes: Config(dim=8, pool_ffn=16, max_steps=4, **changes))


@pytest.fixture
def cpu(monkeypatch):
    """Accelerate keeps its device for the whole process: it forgets it before and after."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def number(frame, what, column="value"):
    return float(frame.set_index("what").loc[what, column])


def test_the_paper_size_is_the_published_one():
    """t5-base has 222.9 M weights (Raffel et al. 2020, "about 220 million"), t5-small 60.5 M."""
    for name, weights in (("paper", 222_903_552), ("small", 60_506_624)):
        with torch.device("meta"):
            model = T5ForConditionalGeneration(T5Config(**cost.SIZES[name].t5))
        assert sum(p.numel() for p in model.parameters()) == weights
    assert cost.PAIRS == 180_000 and cost.EPOCHS == 20 and cost.SIZES["paper"].batch == Config().batch == 64
    numbers = pd.read_csv(Path(cost.__file__).parents[1] / "paper.csv").query("table == 'cost'").set_index("row")
    assert numbers.loc[list(cost.PAPER.values()), "value"].tolist() == [12, 200, 250, 30]
    assert "180K pairs" in cost.PAPER["train, all epochs"] and "20 epochs" in cost.PAPER["train, all epochs"]


def test_noise_has_the_shapes_of_msrvtt(tmp_path):
    corpus = cost.noise(100)
    values, mask = corpus.features()
    assert values.shape == (100, 32, 2560) and mask.all() and np.std(values) == pytest.approx(1, abs=0.01)
    assert corpus.captions["clip"].value_counts().unique().tolist() == [20]
    cost.save_t5(tmp_path, TINY.t5)
    tokenizer = text.tokenizer(str(tmp_path), [], 0)
    captions = corpus.captions["text"].tolist()
    tokens = np.array([len(row) for row in text.token_ids(tokenizer, captions, 100)]) - 1  # the end mark
    assert tokens.tolist() == [len(caption.split()) for caption in captions]
    # 20,000 captions of MSR-VTT have 9.5 WordPiece tokens in the mean, deviation 4.4, quartiles of about 7 and 11
    assert tokens.mean() == pytest.approx(9.5, abs=0.3) and tokens.std() == pytest.approx(4.3, abs=0.4)
    assert np.percentile(tokens, (25, 50, 75)) == pytest.approx((7, 9, 11), abs=1)
    other = cost.noise(100)
    assert other.captions.equals(corpus.captions) and other.fingerprint == corpus.fingerprint


def test_noise_agrees_with_the_real_captions(msrvtt):
    real = load_corpus("msrvtt1k").captions["text"].tolist()
    tokenizer = text.tokenizer("sentence-transformers/all-MiniLM-L6-v2", [], 0)
    logs = np.log([len(row) - 2 for row in tokenizer(real)["input_ids"]])  # without its two marks
    assert (logs.mean(), logs.std()) == pytest.approx(cost.LENGTHS, abs=0.006)


def test_it_trains_the_paper_preset(small_shapes, cpu, tmp_path, monkeypatch):
    """Every step is one of Training's, on the paper's settings, encoder and decoder among the weights."""
    seen = []

    def step(self, captions):
        changed = set(self.config.model_dump(exclude_defaults=True))
        seen.append((len(captions), changed, len(self.model.encoder_parameters()), self.watch.stuck))
        heads_encoder_decoder = [group["params"] for group in self.optimizer.param_groups]
        before = [[p.clone() for p in weights] for weights in heads_encoder_decoder]
        take(self, captions)
        for old, new in zip(before, heads_encoder_decoder, strict=True):
            assert any(not torch.equal(a, b) for a, b in zip(old, new))
        self.watch.stuck = 99  # one more would be a collapse

    take = Training.take_step
    monkeypatch.setattr(Training, "take_step", step)
    cost.cost("tiny", TINY, tmp_path / "cost.csv", steps=10)
    assert len(seen) == 12  # a window to warm up and five to measure
    sizes, changed, encoder, stuck = zip(*seen)
    assert set(sizes) == {4} and set(stuck) == {0} and min(encoder) > 0
    # the presets differ from `paper` in what the fixture narrows and the size changes, and in nothing else
    assert set.union(*changed) <= {"dim", "pool_ffn", "max_steps", "text_encoder", "decoder", "batch", "threads"}


def test_rates_and_extrapolations(small_shapes, cpu, tmp_path, monkeypatch, capsys):
    """By hand: windows of 1 to 5 seconds for one step of 4 pairs; encodings of 6 and 30 searched."""
    windows = np.arange(1.0, 6)

    def seconds(works):
        works = list(works)
        for work in works:
            work()
        return windows[:, None] * [1, 2, 3][: len(works)]

    monkeypatch.setattr(cost, "seconds", seconds)
    out = tmp_path / "results" / "cost.csv"
    frame = cost.cost("tiny", TINY, out)
    assert frame["what"].tolist() == SHOWN
    train = frame.set_index("what").loc["train", ["value", "low", "high"]].astype(float).tolist()
    assert train == pytest.approx([4 / 3, 4 / 5, 4], abs=0.006)
    assert [number(frame, "train, one step", x) for x in ("value", "low", "high")] == [3000, 1000, 5000]
    assert number(frame, "train, all epochs", "extrapolated") == pytest.approx(20 * 180_000 / (4 / 3) / 3600, abs=0.01)
    assert number(frame, "encode queries") == 2 and number(frame, "encode videos") == 1 and number(frame, "search") == 9
    assert number(frame, "search, encoding included", "extrapolated") == 3 * 5 + 6 * 5 + 9
    assert frame.set_index("what")["paper"].to_dict() == dict(
        zip(SHOWN, ("", "", "12.00", "200.00", "250.00", "", "30.00"), strict=True)
    )
    whole = cost.cost("tiny", TINY._replace(encoded=8, searched=8), out)
    assert number(whole, "search, encoding included") == 3 + 6 + 9  # measured, as all of it was
    assert whole.set_index("what").loc["search, encoding included", "extrapolated"] == ""
    assert "no statement on the paper's hardware" in capsys.readouterr().out


def test_what_is_encoded_and_searched(small_shapes, cpu, tmp_path, monkeypatch):
    calls = []
    search = cost.retrieval.search

    def counted(queries, gallery, targets):
        calls.append((tuple(queries.shape), tuple(gallery.shape), len(targets)))
        return search(queries, gallery, targets)

    monkeypatch.setattr(cost.retrieval, "search", counted)
    for name in ("embed_texts", "embed_videos"):

        def spy(self, model, rows, embed=getattr(Data, name)):
            out = embed(self, model, rows)
            calls.append((embed.__name__, rows.tolist(), tuple(out.shape), model.training))
            return out

        monkeypatch.setattr(Data, name, spy)
    cost.cost("tiny", TINY, tmp_path / "cost.csv")
    firsts = [20 * i for i in range(6)]  # a caption of each clip
    assert calls[0] == ("embed_texts", firsts, (6, 8), False)
    assert calls[1] == ("embed_videos", list(range(6)), (6, 8), False)
    assert calls[2] == ((30, 8), (30, 8), 30) and len(calls) == 3 * 6


def test_table_is_kept_and_replaced(small_shapes, cpu, tmp_path, monkeypatch):
    out = tmp_path / "cost.csv"
    cost.cost("tiny", TINY, out)
    first = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(first) == cost.COLUMNS and sorted(first["what"]) == sorted(SHOWN)
    assert first[["device", "cores", "threads", "process_gib", "torch"]].ne("").all(axis=None)
    assert first["value"].str.fullmatch(r"(\d+\.\d\d)?").all() and first["gpu_gib"].eq("").all()

    lines = first.assign(device="NVIDIA V100", commit="0123456789", value="1.50")  # would not survive as a number
    lines.to_csv(out, index=False)
    cost.cost("tiny", TINY, out)
    cost.cost("other", TINY, out)
    cost.cost("tiny", TINY, out)
    both = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert len(both) == 21 and both["size"].value_counts().to_dict() == {"tiny": 14, "other": 7}
    stayed = both[both["device"] == "NVIDIA V100"].reset_index(drop=True)
    assert stayed.equals(lines.sort_values(["precision", "what"]).reset_index(drop=True))
    keys = both[["device", "size", "precision", "what"]]
    assert keys.equals(keys.sort_values(list(keys), ignore_index=True)) and not keys.duplicated().any()

    before = out.read_bytes()

    def full(self, path=None, **options):
        if path is None:
            return text_of(self, **options)
        path.write_text("what,si")
        raise OSError("no space left on device")

    text_of = pd.DataFrame.to_csv
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="no space"):
        cost.cost("tiny", TINY, out)
    assert out.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["cost.csv"]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", 'what,size\n"', None])
def test_another_table_is_refused_before_the_work(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(cost, "noise", None)  # any work would fail
    out = tmp_path / "cost.csv"
    out.mkdir() if content is None else out.write_text(content)
    assert main(["cost", "--size", "small", "--device", "cpu", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "cost.csv" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--size", "huge"], "--size"),
        (["--steps", str(cost.ROUNDS - 1)], f"wanted {cost.ROUNDS} "),
        (["--steps", "many"], "--steps"),
        (["--device", "tpu"], "--device"),
        (["--device", "cuda"], "take --device cpu"),
    ],
)
def test_misuse_is_one_message(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(["cost", *arguments])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "error: " in error and said in error


@pytest.mark.parametrize(
    "arguments, gpu, size, forced",
    [
        ([], False, "small", True),
        ([], True, "paper", False),
        (["--device", "cpu"], True, "small", True),
        (["--size", "paper", "--device", "cpu"], False, "paper", True),
        (["--size", "small"], True, "small", False),
    ],
)
def test_defaults_follow_the_device(arguments, gpu, size, forced, monkeypatch, home):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    asked = []
    monkeypatch.setattr(cost, "cost", lambda *given: asked.append(given))
    assert main(["cost", *arguments, "--steps", "7", "--out", "c.csv"]) == 0 == main(["cost", *arguments])
    table = home / "results" / "cost.csv"
    assert asked == [(size, cost.SIZES[size], Path("c.csv"), 7), (size, cost.SIZES[size], table, None)]
    assert (os.environ["ACCELERATE_USE_CPU"] == "true") == forced


def test_note_names_what_is_not_the_paper():
    assert cost.note("paper", "Tesla V100-SXM2-16GB") == ""
    assert cost.note("paper", "NVIDIA H200") == "on NVIDIA H200, not a V100: no statement on the paper's hardware"
    assert "not the paper's size" in cost.note("small", "Tesla V100-SXM2-16GB")


@pytest.mark.gpu
def test_gpu_rows_have_both_precisions_and_the_memory_of_the_card(small_shapes, tmp_path):
    frame = cost.cost("tiny", TINY, tmp_path / "cost.csv")
    assert frame["device"].unique().tolist() == [torch.cuda.get_device_name()]
    assert sorted(frame.loc[frame["what"] == "train", "precision"]) == ["bf16", "tf32"]
    assert frame.loc[frame["what"].str.startswith("encode"), "precision"].unique().tolist() == ["fp32"]
    assert len(frame) == len(SHOWN) + 3 and frame["gpu_gib"].astype(float).ge(0).all()


@pytest.mark.gpu
def test_gpu_memory_of_the_small_size_is_that_of_its_weights_at_least(tmp_path):
    """Adam keeps weights, gradients and two moments, 16 bytes a weight: t5-small's two halves alone are 0.9 GiB."""
    frame = cost.cost("small", cost.SIZES["small"]._replace(encoded=16, searched=100), tmp_path / "cost.csv", steps=5)
    memory = frame[frame["what"] == "train"].set_index("precision")["gpu_gib"].astype(float)
    assert (memory > 16 * 60_506_624 / 2**30).all() and (memory < 20).all()
    encoding = frame.set_index("what").loc["encode queries", "gpu_gib"]
    assert float(encoding) < memory["tf32"]  # counted anew
    assert all(number(frame.query("precision == @p"), "train") > 0 for p in ("tf32", "bf16"))
