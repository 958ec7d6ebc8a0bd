"""Tables as they are read, from files made by hand."""

import numpy as np
import pandas as pd
import pytest

from ssb import report
from ssb.experiments import overview

CLAIM = dict(claim="cross beats none", setting="cross", baseline="none", seeds=3, paper=1.3, delta=-0.26, p=0.2,
             delta_low=-0.5, delta_high=0.04, seeds_low=-0.9, seeds_high=0.4, verdict="not resolved")  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Two corpora, and one folder of the smoke preset that no README shows."""
    for corpus, table, change in (
        ("shapes", "table2a", {"claim": "more is more", "paper": np.nan, "verdict": "held"}),
        ("shapes", "table1", {}),
        ("msrvtt1k", "table1", {"delta": 2.0, "verdict": "held"}),
        ("shapes-smoke", "table1", {"claim": "nobody reads this"}),
    ):
        folder = tmp_path / corpus
        folder.mkdir(exist_ok=True)
        pd.DataFrame([CLAIM | change]).to_csv(folder / f"{table}_claims.csv", index=False)
        preset = "smoke" if "-" in corpus else "laptop"
        rows = [(f"{corpus} {table}", 3600, preset), ("shared", 1800, preset)]
        pd.DataFrame(rows, columns=["run", "seconds", "preset"]).to_csv(folder / f"{table}.csv", index=False)
    return tmp_path


def test_claims_are_side_by_side(results):
    shown = overview.claims_table(overview.claims(results))
    assert list(shown.columns) == ["table", "claim", "paper", "shapes", "msrvtt1k"]
    assert shown.values.tolist() == [
        [
            "table1",
            "cross beats none",
            "+1.3",
            "-0.3 [-0.5, +0.0] [-0.9, +0.4] not resolved",
            "+2.0 [-0.5, +0.0] [-0.9, +0.4] held",
        ],
        ["table2a", "more is more", "", "-0.3 [-0.5, +0.0] [-0.9, +0.4] held", ""],
    ]
    assert "nobody" not in report.markdown(shown)
    assert overview.claims(results, "shapes-smoke")["claim"].tolist() == ["nobody reads this"]


def test_no_claims_are_said_plainly(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebooks of the tables first"):
        overview.claims(tmp_path, "shapes")


def test_verdicts_in_words():
    words = report.verdicts(pd.DataFrame([CLAIM, CLAIM | {"paper": np.nan}]))
    one, other = words.splitlines()
    assert one.startswith("cross beats none: not resolved (-0.3 points, [-0.5, +0.0] over queries, [-0.9, +0.4] over 3")
    assert one.endswith("paper +1.3)") and "paper" not in other
    assert "nothing" in report.verdicts(pd.DataFrame())


def test_a_shared_run_costs_once(results):
    """Three runs of an hour, one of half an hour that all of the three tables share: 3.5 core hours."""
    assert "4 runs" in overview.cost(results) and "(2 more rows share them)" in overview.cost(results)
    assert "3.5 core hours, about 1.8 hours on two cores" in overview.cost(results)
    assert "2 runs" in overview.cost(results, "smoke")


def test_links_say_what_a_table_took_on_two_cores(results):
    for corpus in ("shapes", "msrvtt1k", "shapes-smoke"):
        (results / corpus / "table1_summary.csv").touch()
    shown = overview.links(results)
    assert shown.values.tolist() == [
        ["table1", "[45 min](results/shapes/table1_summary.csv)", "[45 min](results/msrvtt1k/table1_summary.csv)"]
    ]
