"""Free text in figures - captions, names of clips, corpora and settings - is drawn as it is, whatever is in it."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_corpus
from matplotlib.figure import Figure
from matplotlib.text import Text

from ssb import Config, figures, fit, load_corpus
from ssb.experiments import (
    ablations,
    captioning_figures,
    constants,
    false_negatives,
    long_videos,
    overview,
    power,
    retrieved,
    same_meaning,
)
from ssb.experiments.captioning import CONSTANT
from ssb.figures import MISSING

TEXTS = ["$519 to $119", "$$", "a_b^c", r"\$5 \frac{", "5 $🫠$ #%&"]
DELTA = dict(delta=1.0, delta_low=0.5, delta_high=1.5, seeds_low=0.2, seeds_high=1.8, verdict="better")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch to numpy
        yield
    figures.plt.close("all")


def drawn(figure) -> str:
    """All text of a figure after it is drawn as it is saved, each as matplotlib reads it; nothing is mathematics except
    the numbers at an axis."""
    figure.set_dpi(40)
    figure.draw_without_rendering()
    read = [(text.get_text(), *text._preprocess_math(text.get_text())) for text in figure.findobj(Text)]
    assert not [given for given, _, mathematics in read if mathematics and "mathdefault" not in given]
    return "\n".join(shown for _, shown, _ in read)


def replaced(text: str) -> str:
    return text.replace("🫠", MISSING)


def summary(names) -> pd.DataFrame:
    row = {"R@1": 50.0, "R@1 low": 45.0, "R@1 high": 55.0, **DELTA}
    return pd.DataFrame([row] * len(names), index=pd.Index(names, name="setting"))


def settings(text):
    rows = pd.DataFrame({"setting": [text, "none"], "seed": 0, "t2v R@1": [50.0, 40.0]})
    yield figures.settings(rows, summary([text, "none"]), f"title {text}"), 2
    yield figures.settings(rows, summary([text, "none"]), "title", baseline=text), 2


def collapse(text):
    trace = pd.DataFrame({"step": [1, 2], "contrast": [0.5, 0.4], "spread": [0.1, 0.2], "gradient": [1.0, 0.1]})
    yield ablations.collapse({text: trace}, text, 0.2), 2


def sizes(text):
    rows = pd.DataFrame({"setting": ["4", "8", "none"], "t2v R@1": [50.0, 40.0, 30.0]})
    yield ablations.sizes(rows, summary(["4", "8", "none"]), text, 8), 1


def captions(text):
    index = [(text, mode) for mode in captioning_figures.SOURCES] + [(CONSTANT, "")]
    frame = pd.DataFrame({"CIDEr": 5.0, "CIDEr low": 4.0, "CIDEr high": 6.0}, index=pd.MultiIndex.from_tuples(index))
    rows = pd.DataFrame([{"setting": text, "mode": mode, "CIDEr": 5.0} for mode in captioning_figures.SOURCES])
    yield captioning_figures.captions(rows, frame, text), 2


def samples(text):
    row = {"id": text, "clip": 0, "CIDEr": 5.0, "references": f"{text} / other", text: text}
    yield (
        captioning_figures.samples(
            pd.DataFrame([{"kind": kind, **row} for kind in captioning_figures.KINDS]),
            SimpleNamespace(frames=None),
            text,
        ),
        1 + 4 * 3,
    )


def heat_map(text):
    names = [constants.constant(c, t, False) for c in constants.LAMBDAS for t in constants.TEMPERATURES]
    yield constants.heat_map(summary(names), text), 1


def gains(text):
    columns = {key: [1.0] * 2 for key in (*DELTA, "low", "high")} | {"verdict": "higher"}
    frame = pd.DataFrame({"setting": [text] * 2, "per batch": [0.1, 1.0], **columns})
    yield false_negatives.gains(frame, text), 2


def draw(text):
    cost = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    yield long_videos.draw({name: (cost, cost, np.array([[0, 0]])) for name in (text, "other")}, text), 2


def claims(text):
    row = {"corpus": "shapes", "table": text, "claim": text, "setting": text, "baseline": text, "paper": 1.0, **DELTA}
    row["stress"] = np.nan
    yield overview.overview(pd.DataFrame([row]), text), 4


def curves(text):
    frame = pd.DataFrame({"difference": text, "seeds": [1, 1], "clips": [10, 100], "power": [0.1, 0.9]})
    yield power.power_curves(frame, text, 50), 2


def densities(text):
    frame = pd.DataFrame({"setting": text, "kind": text, "similarity": [0.0, 1.0], "density": [0.5, 1.5]})
    yield same_meaning.densities(frame, text), 3


DRAWN = [settings, collapse, sizes, captions, samples, heat_map, gains, draw, claims, curves, densities]


def test_a_gain_that_is_not_resolved_is_hollow():
    columns = {key: [0.5, 2.0, -2.0] for key in (*DELTA, "low", "high")}
    rows = pd.DataFrame(columns | {"verdict": ["inconclusive", "higher", "lower"]})
    _, axis = figures.plt.subplots()
    figures.gain_curve(axis, [1, 2, 3], rows, "o", "C0", "cross")
    *_, line, filled, hollow = axis.lines
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 2.0], [3, -2.0]]
    assert filled.get_xydata().tolist() == [[2, 2.0], [3, -2.0]] and filled.get_markerfacecolor() == "C0"
    assert hollow.get_xydata().tolist() == [[1, 0.5]] and hollow.get_markerfacecolor() == "white"
    assert [each.get_label() for each in (filled, hollow)] == ["filled: resolved", "hollow: not resolved"]
    figures.plt.close()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("draws", DRAWN)
def test_names_and_captions_are_drawn_as_they_are(draws, text):
    for figure, times in draws(text):
        assert drawn(figure).count(replaced(text)) >= times
        figures.plt.close(figure)


@pytest.fixture(scope="module")
def run(shared_home, tmp_path_factory):
    """A run on a corpus of these captions, whose clips have no frames, so that captions are drawn for them."""
    folder = write_corpus(tmp_path_factory.mktemp("prices") / "5$ and 6$")
    clips = json.loads((folder / "split.json").read_text())
    rows = [(clip, TEXTS[i % len(TEXTS)] + f" {clip}") for i, clip in enumerate(sum(clips.values(), []))]
    pd.DataFrame(rows, columns=["clip", "text"]).to_csv(folder / "captions.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(Config.preset("smoke", corpus=str(folder), epochs=1), quiet=True)


def test_the_figures_of_a_run(run):
    corpus = load_corpus(run.config.corpus)
    search = retrieved.search(run, corpus, np.eye(3, dtype=bool))
    chosen = search.choose(1)
    texts = [replaced(text) for text in search.texts]
    searches = {"5$": search, "6$": search._replace(ranks=np.array([3.0, 2.0, 1.0]))}
    different = pd.DataFrame({"first": [0, 1], "query": [0, 1]})
    for figure in (
        figures.retrieved(run, f"title {corpus.name}", queries=3),
        figures.attention_map(run, f"title {corpus.name}", size=3, strongest=3),
        retrieved.figure(search, chosen, f"title {corpus.name}"),
        retrieved.contrast(searches, different, f"title {corpus.name}"),
    ):
        shown = " ".join(drawn(figure).split())
        assert "title 5$ and 6$" in shown and sum(text in shown for text in texts) >= 2
    assert "rank 1 with 5$" in " ".join(drawn(retrieved.contrast(searches, different, "t")).split())
    matrices = figures.weight_matrices({"5$ to 6$": run}, "5$ to 6$", 3)
    assert drawn(matrices).count("5$ to 6$") == 2 and "weight wᵢⱼ" in drawn(matrices)


def test_powers_of_ten_stay_mathematics(run):
    trace = pd.DataFrame({"step": [1, 2], "contrast": [0.5, 0.4], "spread": [0.1, 0.001], "gradient": [1.0, 0.01]})
    figure = ablations.collapse({"5$": trace}, "5$", 0.2)
    figure.canvas.draw()
    ticks = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert any("10^{" in tick for tick in ticks) and all(
        label.get_parse_math() for label in figure.axes[1].get_yticklabels()
    )


def test_what_the_font_lacks_is_replaced():
    assert figures.drawable("a🫠日é\n\tΔ → wᵢⱼ “…” −\ud83d") == "a□□é\n□Δ → wᵢⱼ “…” −□"


def test_a_picture_is_its_sentence_in_a_terminal(tmp_path):
    picture = figures.save(Figure(), tmp_path, "empty", alt="Nothing is drawn.")
    assert repr(picture) == "Nothing is drawn." and picture.filename == str(tmp_path / "empty.png")


def test_one_large_difference_leaves_the_others_room():
    """Beyond ±1 the axis is logarithmic then, and says so; else it is linear."""
    frame, rows = summary(["none", "a", "b"]), pd.DataFrame({"t2v R@1": [50.0], "seed": 0, "setting": "none"})
    axis = figures.settings(rows, frame, "title").axes[0]
    assert axis.get_xscale() == "linear" and axis.get_xlabel().endswith("(points)")
    frame.loc["b", ["delta", "delta_low", "delta_high"]] = [-40.0, -40.5, -39.5]
    axis = figures.settings(rows, frame, "title").axes[0]
    assert axis.get_xscale() == "symlog" and "logarithmic" in axis.get_xlabel()
    assert axis.get_xlim()[0] < -40.5 and [*axis.get_xticks()] == [-10, -1, 0, 1]
