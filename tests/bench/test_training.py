"""The benchmark runs, compares like with like, and writes what it should; how fast anything is, no test asks."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel

from ssb import Config, files, load_corpus, text
from ssb.bench import scoring, start, timing, training
from ssb.bench.timing import BenchmarkError
from ssb.training.data import Data
from ssb.training.loop import Training

OPTIONS = {"clips": 60, "false_negatives": 0.05}
MACHINE = ["corpus", "commit", "dirty", "torch", "cpu", "cores", "threads"]


@pytest.fixture
def corpus():
    return load_corpus("shapes", **OPTIONS)


@pytest.fixture
def config(corpus, tmp_path):
    """`smoke` with a small frozen encoder."""
    folder = tmp_path / "encoder"
    tokenizer = text.fit_tokenizer(corpus.captions["text"].tolist(), 400)
    sizes = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = dict(text_encoder=str(folder), freeze_text=True, batch=8)
    return Config.preset("smoke", corpus="shapes", corpus_options=OPTIONS, **changes)


@pytest.mark.parametrize("pooling", ["mean", "transformer"])
def test_every_way_trains_the_same_model(config, corpus, pooling):
    data = Data(config.replace(text_pooling=pooling), corpus)
    captions = data.order(0)[0]
    ways = {name: training.Steps(data, way) for name, way in training.STEPS.items()}
    losses = {name: way.model.eval()(way.batch(captions))["loss"].item() for name, way in ways.items()}
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ours"]), rel=1e-3)  # kept states have half precision

    literal = ways["literal"].batch(captions)
    assert (
        literal.text.shape[1] == literal.labels.shape[1] == training.LENGTH > ways["ours"].batch(captions).text.shape[1]
    )
    assert literal.text.dtype == torch.float32 and ways["both"].batch(captions).text.dtype == torch.float16
    assert data.batch(captions).text.shape[1] == (1 if pooling == "mean" else data.text.lengths[captions].max())
    for way in ways.values():
        before = [p.clone() for p in way.model.parameters()]
        way.take(captions)
        assert any(not torch.equal(a, b) for a, b in zip(before, way.model.parameters()))


def test_vocabulary_is_scored_at_padding_by_the_literal_way_alone(config, corpus):
    data = Data(config, corpus)
    captions = data.order(0)[0]
    scored = {}
    for name, way in training.STEPS.items():
        steps = training.Steps(data, way)
        steps.model.decoder.lm_head.register_forward_hook(
            lambda module, inputs, out, name=name: scored.update({name: out.shape[:-1].numel()})
        )
        steps.take(captions)
    real = data.labels.lengths[captions]
    padded = len(captions) * real.max()
    whole = {"literal": 800, "states kept": 800, "no padding": padded, "both": padded}
    whole |= {"both, means kept": padded, "both, fused Adam": padded}
    assert scored == {**whole, "both, packed decoder": real.sum(), "ours": real.sum()}


SIZES = scoring.Sizes(search=((40, 20), (50, 30)), emcl=(70, 40), whole=(66, 34))


def test_a_small_run_writes_its_rows(config, corpus, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(scoring, "ONE_BY_ONE", 40)
    monkeypatch.setattr(start, "child", lambda program, *_: ([4.0, 0.5], *((5.0, 6.0) if len(_) > 2 else ())))
    monkeypatch.setattr(start, "commit", lambda checkout: "0123456789ab")
    out = tmp_path / "results" / "bench.csv"
    training.bench(config, corpus, out, 2, start.HERE, SIZES)
    frame = pd.read_csv(out)
    groups = {
        "step": list(training.STEPS),
        "decoder": ["T5", "packed"],
        **{f"run, {objective}": ["literal", "ours"] for objective in (config.objective, "none")},
        "validation": ["all protocols", "what selects"],
        "search, 40 x 20": ["np.sort", "argsort", "torchmetrics", "ours"],
        "search, 50 x 30": ["np.sort", "argsort", "ours"],
        "EMCL, 70 x 40": ["layer by layer", "ours"],
        "EMCL, 66 x 34": ["ours"],
        **{f"{part}, shapes": ["first", "further"] for part in ("start", "load")},
        **{
            f"study: {what}{clock}": ["before", "ours"]
            for what in ("cold start", "Table 1")
            for clock in ("", ", by the clock")
        },
    }
    assert frame["what"].tolist() == [f"{group}: {name}" for group, names in groups.items() for name in names]
    assert list(frame) == ["what", "median", "min", "max", "ratio", "unit", *MACHINE[:1], "before", *MACHINE[1:]]
    assert all(0 < low <= middle <= high for low, middle, high in frame[["min", "median", "max"]].to_numpy())
    assert set(frame["unit"]) == {"steps/s", "captions/s", "queries/s", "s"}
    for group, names in groups.items():
        part = frame.set_index("what").loc[[f"{group}: {name}" for name in names]]
        quotient = part["median"] / part["median"].iloc[0]
        quotient = 1 / quotient if part["unit"].iloc[0] == "s" else quotient
        if len(names) > 1:
            assert part["ratio"].tolist() == pytest.approx(quotient.tolist(), rel=2e-3)
    assert frame["ratio"].isna().sum() == 1 and (frame["before"] == "0123456789ab").all()
    assert frame[["cpu", "torch"]].notna().all(axis=None) and (frame["threads"] == 1).all()
    said = capsys.readouterr().out
    assert "R@1 of 40 queries among 20 items" in said and "msrvtt1k is not in" in said
    assert [path.name for path in out.parent.iterdir()] == ["bench.csv"]
    assert not files.runs().exists()


@pytest.mark.slow  # three processes
def test_what_the_processes_measure(config, tmp_path):
    """A further start is faster than the first, which imports the library; Table 1 leaves a run of each objective."""
    for program in (start.LOAD, start.START):
        (first, further), used, clock = start.child(program, config, tmp_path)
        assert 0 < further < first and first + further <= used + 0.1 and clock > 0
    assert start.child(start.TABLE1, config, tmp_path)[1] > 0
    rows = pd.read_csv(tmp_path / "results" / "shapes-paper" / "table1.csv")
    assert rows["setting"].nunique() == 5 and (rows["seed"] == 0).all()


def test_a_whole_run_takes_every_step_and_validates(config, corpus, monkeypatch):
    """The literal run differs from ours in what it computes, not in what it learns."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    seen = {}

    def finished(self):
        seen[type(self).__name__] = self
        finish(self)

    finish = Training.finish
    monkeypatch.setattr(Training, "finish", finished)
    changes = dict(dropout=0.0, decoder_dropout=0.0, lr=1e-4)
    found = training.running(config.replace(**changes), corpus, rounds=1)
    assert [row["what"] for row in found[:2]] == [f"run, {config.objective}: {way}" for way in ("literal", "ours")]
    literal, ours = seen["LiteralTraining"], seen["Training"]  # of the objective none
    assert literal.config == ours.config and len(literal.trace) == len(ours.trace) == ours.steps > 2
    losses = (np.array(run.trace)[:, 0] for run in (literal, ours))
    assert np.allclose(*losses, rtol=1e-2)  # kept states have half precision
    assert literal.optimizer.param_groups[0]["fused"] is not True and ours.optimizer.param_groups[0]["fused"]


def test_no_checkout_is_refused_before_the_work(config, corpus, tmp_path):
    with pytest.raises(BenchmarkError, match="--before .*: no checkout of this library"):
        training.bench(config, corpus, tmp_path / "bench.csv", before=tmp_path)
    assert not (tmp_path / "bench.csv").exists()


def test_a_library_that_fails_is_named(config, tmp_path):
    (tmp_path / "ssb").mkdir()
    (tmp_path / "ssb" / "__init__.py").write_text("raise ValueError('no such library')")
    with pytest.raises(BenchmarkError, match=f"{tmp_path}: ValueError: no such library"):
        start.child(start.START, config, tmp_path, tmp_path)


def test_ratios_are_how_many_times_as_fast():
    values = {"a": np.array([2.0, 4.0, 9.0]), "b": np.array([8.0, 1.0, 16.0])}
    assert [row["ratio"] for row in timing.rows(values, "s")] == [1, 0.5]
    assert [row["ratio"] for row in timing.rows(values, "steps/s")] == [1, 2]


def test_disagreeing_scores_are_not_timed(monkeypatch):
    monkeypatch.setattr(scoring.emcl, "similarity", lambda text, video, module: torch.zeros(len(text), len(video)))
    with pytest.raises(BenchmarkError, match="EMCL, 70 x 40: scores differ"):
        scoring.emcl_rows(SIZES)


def test_disagreeing_ranks_are_not_timed(monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(scoring.retrieval, "search", lambda query, gallery, target: 2 + 0 * target)
    with pytest.raises(ValueError, match="R@1 differs"):
        scoring.ranking([(40, 20)])


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.retrieval", None)
    with pytest.raises(BenchmarkError, match="pip install torchmetrics"):
        scoring.ranking([(40, 20)])
