"""Tables as they are read, from files made by hand."""

import numpy as np
import pandas as pd

from ssb import report

CLAIM = dict(claim="cross beats none", setting="cross", baseline="none", seeds=3, paper=1.3, delta=-0.26, p=0.2,
             delta_low=-0.5, delta_high=0.04, seeds_low=-0.9, seeds_high=0.4, verdict="not resolved")  # fmt: skip


def test_verdicts_in_words():
    words = report.verdicts(pd.DataFrame([CLAIM, CLAIM | {"paper": np.nan}]))
    one, other = words.splitlines()
    assert one.startswith("cross beats none: not resolved (-0.3 points, [-0.5, +0.0] over queries, [-0.9, +0.4] over 3")
    assert one.endswith("paper +1.3)") and "paper" not in other
    assert "nothing" in report.verdicts(pd.DataFrame())
