"""The benchmark of growth: what it measures at which size, its slopes, its table and its figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ssb.bench import scale
from ssb.training.loop import Training

CLIPS, SUPPORT = (40, 80), (8, 16, 24)
TINY = dict(dim=8, pool_ffn=8, batch=8, vocabulary=512)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(scale, "QUERIES", 20)
    monkeypatch.setattr(scale, "STEPS", 2)


def test_a_slope_is_the_exponent():
    sizes = np.array(scale.CLIPS)
    for exponent in (0, 1, 2, 0.5):
        assert scale.slope(sizes, 3e-4 * sizes.astype(float) ** exponent) == pytest.approx(exponent, abs=1e-9)


def test_the_largest_corpus_is_that_of_the_paper_or_larger():
    assert scale.CLIPS[-1] * scale.CAPTIONS == 180_000 and scale.CLIPS[0] == 1000 and scale.CLIPS[-1] == 20_000
    assert scale.SUPPORT[0] == scale.NARROW["batch"] and scale.SUPPORT[-1] == 2048
    assert len(scale.noise(5, 9, scale.WIDTHS, 8).captions) == 45


def test_what_is_measured(small, tmp_path, monkeypatch, capsys):
    """Seconds by hand: the n-th call takes n seconds."""
    calls, past, step = [], [], Training.take_step

    def taken(self, captions):
        past.append((len(self.data.corpus.clips), self.config.support_set, len(self.memory[0]) if self.memory else 0))
        step(self, captions)
        assert len(self.config.model_dump(exclude_defaults=True)) < 20 and self.config.video_pooling == "transformer"

    def timed(call):
        call()
        calls.append(call)
        return float(len(calls))

    monkeypatch.setattr(Training, "take_step", taken)
    monkeypatch.setattr(scale, "timed", timed)
    before = torch.get_num_threads()
    frame = scale.bench(tmp_path / "a" / "scale.csv", tmp_path / "figures", CLIPS, SUPPORT, **TINY)
    assert torch.get_num_threads() == before
    assert {(clips, size) for clips, size, _ in past} == {(40, None), (80, None), *((24, size) for size in SUPPORT)}
    assert all(kept == (size or 8) - 8 for _, size, kept in past)
    sizes = frame.groupby("what")["size"].apply(list).to_dict()
    assert sizes.pop(scale.STEP) == [*SUPPORT]
    assert sizes == {what: [*CLIPS] for what in (scale.READ, scale.TRAIN, scale.SEARCH, scale.RANKS)}
    first = frame.set_index(["what", "size"]).loc[(scale.READ, 40)]
    assert (first["low"], first["seconds"], first["high"]) == (1, 1.5, 2)  # two calls take longer than ENOUGH
    last = frame[frame["what"] == scale.STEP].set_index("size").loc[8]
    rounds = [len(calls) - 3 * n + 1 for n in (3, 2, 1)]  # interleaved
    assert (last["low"], last["seconds"], last["high"]) == pytest.approx(np.array(rounds) / 2)
    written = pd.read_csv(tmp_path / "a" / "scale.csv")
    assert list(written)[: len(frame.columns)] == list(frame) and {"cpu", "commit", "torch"} <= {*written}
    assert np.allclose(written["seconds"], frame["seconds"], rtol=1e-3)
    assert (tmp_path / "figures" / "scale.png").is_file() and (tmp_path / "figures" / "scale.pdf").is_file()
    assert "slope" in capsys.readouterr().out


def test_the_figure_names_its_axes_and_lines(small):
    rows = [scale.row(what, "clips", n, [n * 1e-3] * 3) for what in "abcd" for n in scale.CLIPS]
    rows += [scale.row("e", "support set", n, [0.1, 0.2, 0.3]) for n in scale.SUPPORT]
    figure = scale.drawn(pd.DataFrame(rows).assign(slope=1.0))
    top, bottom = figure.axes
    for axis, lines in ((top, 4), (bottom, 1)):
        assert axis.get_xscale() == axis.get_yscale() == "log" and "seconds" in axis.get_ylabel()
        shown = axis.get_legend().get_texts()
        assert len(shown) == lines and all("slope 1.00" in text.get_text() for text in shown)
    assert bottom.get_ylim()[1] / bottom.get_ylim()[0] >= 15  # no growth looks like none
    assert figure.get_figwidth() <= 3.5
    plt.close(figure)
