"""The grid over λ and T and its map."""

import re

import numpy as np
import pandas as pd

from ssb import Config
from ssb.experiments import constants


def test_map_of_constants_spans_what_it_says():
    assert max(constants.LAMBDAS) / min(constants.LAMBDAS) == 1000
    assert (min(constants.TEMPERATURES), max(constants.TEMPERATURES)) == (0.01, 1.0)
    paper = Config()
    assert constants.constants()[constants.constant(paper.captioning, paper.temperature)]["temperature"] == 0.1
    assert all(re.fullmatch(r"none|λ = [\d.]+, T = [\d.]+(, decoder first)?", name) for name in constants.constants())


def test_the_settings_of_a_cell_are_those_of_its_name():
    for name, changes in constants.constants().items():
        if name != "none":
            weight, temperature = re.match(r"λ = ([\d.]+), T = ([\d.]+)", name).groups()
            assert (changes["captioning"], changes["temperature"]) == (float(weight), float(temperature))
            assert name.endswith("decoder first") == (changes.get("decoder_warmup") == 0.2)
            assert changes["objective"] == "cross"
    assert constants.constants()["none"] == {"objective": "none"} and len(constants.constants()) == 1 + 4 * 3 + 3


def test_each_number_is_in_the_cell_of_its_setting():
    """Two settings with numbers, one resolved, and one that collapsed."""
    names = [constants.constant(0.01, 0.1), constants.constant(10.0, 0.1, True)]
    rows = {"delta": [0.26, -30.0], "verdict": ["inconclusive", "lower"]}
    summary = pd.DataFrame(rows, index=pd.Index(names, name="setting"))
    figure = constants.heat_map(summary, "title", [constants.constant(1.0, 0.01)], Config(captioning=0.1))
    axis = figure.axes[0]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    lines = [label.get_text() for label in axis.get_yticklabels()]
    cells = {
        text.get_text(): (
            lines[int(text.xy[1] if hasattr(text, "xy") else text.get_position()[1])],
            columns[int(text.get_position()[0])],
            text.get_fontweight(),
        )
        for text in axis.texts
    }
    assert cells == {
        "+0.3": ("0.01", "0.1", "normal"),
        "-30.0": ("10", "0.1\ndecoder\nfirst", "bold"),
        "collapsed": ("1", "0.01", "normal"),
    }
    shown = axis.images[0].get_array()
    assert shown.shape == (4, 4) and np.isnan(shown.filled(np.nan)).sum() == 14
    frames = {
        (patch.get_linestyle(), *np.add(patch.get_xy(), patch.get_height() / 2).round(9)) for patch in axis.patches
    }
    assert frames == {("-", 1, 3), ("--", 1, 1)}  # λ = 10 of the paper, 0.1 given as the preset's, at T = 0.1
