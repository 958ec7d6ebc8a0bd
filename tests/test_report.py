"""Tables as they are read, from files made by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from ssb import Config, report

CLAIM = dict(claim="cross beats none", setting="cross", baseline="none", seeds=3, paper=1.3, delta=-0.26, p=0.2,
             delta_low=-0.5, delta_high=0.04, seeds_low=-0.9, seeds_high=0.4, verdict="inconclusive")  # fmt: skip


def test_verdicts_in_words():
    words = report.verdicts(pd.DataFrame([CLAIM, CLAIM | {"paper": np.nan}]))
    one, other = words.splitlines()
    assert one.startswith("cross beats none: inconclusive (-0.3 points, [-0.5, +0.0] over queries, [-0.9, +0.4] over 3")
    assert one.endswith("paper +1.3)") and "paper" not in other
    assert "nothing" in report.verdicts(pd.DataFrame())


def runs(ratios, **settings):
    config = Config(**settings)
    return [SimpleNamespace(config=config, ratio=ratio) for ratio in ratios]


def test_the_papers_weight_on_the_token_mean_is_called_a_stress_test_where_it_is_one():
    large = {"none": runs([None], objective="none"), "cross": runs([30.0, 12.345]), "full": runs([20.0])}
    wanted = "λ = 10 on the mean over tokens is a stress test, not the paper's similar magnitudes: captioning was "
    assert report.stressed(large) == f"{wanted}12.3 to 30 times the contrastive term."
    assert not report.stressed({"none": large["none"], "cross": runs([1.5])})
    rows = pd.DataFrame(
        {"setting": ["cross, λ = 10", "λ = 10, T = 0.1", "λ = 1, T = 0.1"], "ratio": [12.3, 30.0, 99.0], "table": "t"}
    )
    assert report.stressed_rows(rows) == report.stressed(large)
    assert not report.stressed_rows(rows[2:]) and not report.stressed_rows(rows[["setting"]])
    assert "99 to 99" in report.stressed_rows(rows[2:].assign(table=report.STRESSED))  # by the name of the table
    assert report.stress_title(large) == "; a stress test: captioning was 12.3 to 30 times the contrastive term"
    assert report.stress_title(large | {"hybrid": runs([30.0], captioning=1.0)}) == ""  # not all of the table is one
    assert report.stress_title({"none": large["none"]}) == ""
    for other in ({"captioning": 0.1}, {"weighted_term": "contrast"}, {"over_tokens": "sum"}):
        assert not report.stressed({"cross": runs([30.0], **other)})


def test_a_p_below_three_decimals_is_not_nought():
    texts = [report.p_value(p) for p in (1.0, 0.01234, 0.001, 0.00099, 0.0)]
    assert texts == ["1.000", "0.012", "0.001", "< 0.001", "< 0.001"]
    row = {name: 0.0 for name in ("R@1", "R@1 sd", "paper R@1", "delta", "delta_low", "delta_high")} | {"seeds": 3}
    summary = pd.DataFrame([row | {"p": np.nan, "verdict": ""}, row | {"p": 0.0, "verdict": "higher"}], ["none", "one"])
    assert "[+0.0, +0.0], p < 0.001: higher (" in report.reading(summary, "none")
