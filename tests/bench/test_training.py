"""The benchmark runs, compares like with like, and writes what it should; how fast anything is, no test asks."""

import sys

import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel

from ssb import Config, load_corpus, text
from ssb.bench import training
from ssb.bench.timing import BenchmarkError
from ssb.training.data import Data

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


def test_a_small_run_writes_its_rows(config, corpus, tmp_path, capsys):
    pytest.importorskip("torchmetrics")
    out = tmp_path / "results" / "bench.csv"
    training.bench(config, corpus, out, steps=2, queries=40, items=20)
    frame = pd.read_csv(out)
    steps = [f"step: {name}" for name in training.STEPS]
    decoders = ["decoder: T5", "decoder: packed"]
    assert frame["what"].tolist() == [
        *steps,
        *decoders,
        *(f"ranks: {x}" for x in ("torchmetrics", "argsort", "np.sort", "ours")),
    ]
    assert list(frame) == ["what", "median", "min", "max", "ratio", "unit", *MACHINE]
    assert all(0 < low <= middle <= high for low, middle, high in frame[["min", "median", "max"]].to_numpy())
    first = frame.groupby("unit", sort=False).first()
    assert first.index.tolist() == ["steps/s", "captions/s", "queries/s"] and (first["ratio"] == 1).all()
    assert frame[["cpu", "torch"]].notna().all(axis=None) and (frame["threads"] == 1).all()
    assert "R@1 of 40 queries among 20 items" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["bench.csv"]


def test_disagreeing_ranks_are_not_timed(monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(training.retrieval, "search", lambda query, gallery, target: 2 + 0 * target)
    with pytest.raises(ValueError, match="R@1 differs"):
        training.ranking(40, 20)


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.retrieval", None)
    with pytest.raises(BenchmarkError, match="pip install torchmetrics"):
        training.ranking(40, 20)
