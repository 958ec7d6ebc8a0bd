"""The claims of all corpora side by side, from files made by hand."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ssb import figures, report
from ssb.__main__ import main
from ssb.experiments import ablations, carries, finding, long_videos, overview, readmes, strength, together, when
from ssb.metrics.sequences import BY_FULL

ROOT = Path(__file__).parents[2]
CLAIM = dict(claim="cross beats none", setting="cross", baseline="none", seeds=3, paper=1.3, delta=-0.26, p=0.2,
             delta_low=-0.5, delta_high=0.04, seeds_low=-0.9, seeds_high=0.4, verdict="inconclusive")  # fmt: skip


def write(home: Path, folder: str, table: str, corpus: str, preset: str = "laptop", **change):
    """A claim, and a table of three runs: its own of an hour, one of half an hour that all tables share, and one on a
    GPU."""
    (home / folder).mkdir(exist_ok=True)
    pd.DataFrame([CLAIM | change]).to_csv(home / folder / f"{table}_claims.csv", index=False)
    rows = [
        (corpus, preset, f"{corpus} {table}", "cpu", 3600),
        (corpus, preset, "shared", "cpu", 1800),
        (corpus, preset, f"fast {corpus} {table}", "A GPU", 60),
    ]
    columns = ["corpus", "preset", "run", "device", "seconds"]
    pd.DataFrame(rows, columns=columns).to_csv(home / folder / f"{table}.csv", index=False)


@pytest.fixture
def results(tmp_path):
    """Two corpora, and one folder of the smoke preset that the README leaves out."""
    write(tmp_path, "shapes", "table2a", "shapes", claim="more is more", paper=np.nan, verdict="held")
    write(tmp_path, "shapes", "table1", "shapes")
    write(tmp_path, "msrvtt1k", "table1", "msrvtt1k", delta=2.0, verdict="held")
    write(tmp_path, "shapes-smoke", "table1", "shapes", "smoke", claim="of the smoke preset")
    return tmp_path


def test_claims_are_side_by_side(results):
    table = overview.claims_table(overview.claims(results))
    assert list(table.columns) == ["table", "claim", "paper", "shapes", "msrvtt1k"]
    assert table.values.tolist() == [
        [
            "table1",
            "cross beats none",
            "+1.3",
            "-0.3 [-0.5, +0.0] [-0.9, +0.4] inconclusive",
            "+2.0 [-0.5, +0.0] [-0.9, +0.4] held",
        ],
        ["table2a", "more is more", "", "-0.3 [-0.5, +0.0] [-0.9, +0.4] held", ""],
    ]
    assert "smoke" not in report.markdown(table)
    assert overview.claims(results, "shapes-smoke")["claim"].tolist() == ["of the smoke preset"]


def test_the_table_at_the_papers_weight_is_called_a_stress_test(results):
    """With the ratio where its rows have one, of cross alone."""
    assert overview.stress_tests(overview.claims(results)) == []
    write(results, "shapes", overview.STRESSED, "shapes")
    words = "table1_lambda10: λ = 10 on the mean over tokens is a stress test, not the paper's similar magnitudes"
    assert overview.stress_tests(overview.claims(results)) == [f"{words}."]
    path = results / "shapes" / f"{overview.STRESSED}.csv"
    pd.read_csv(path).assign(setting=["cross", "full", "full"], ratio=[28.3, 99, 99]).to_csv(path, index=False)
    times = "; in training with cross, captioning was 28.3 (shapes) times the contrastive term."
    assert overview.stress_tests(overview.claims(results)) == [f"{words}{times}"]
    row = next(row for row in overview.claims(results).itertuples() if row.setting == "cross" and row.stress > 0)
    assert overview.verdict(row) == f"{row.verdict} (captioning 28.3 times the contrastive term)"


def test_a_corpus_of_the_readers_own_is_not_taken_for_a_preset(results):
    """A folder `my-data` is a corpus of that name; it stands after those of the library."""
    write(results, "my-data", "table1", "my-data", verdict="contradicted")
    write(results, "my-data-smoke", "table1", "my-data", "smoke", claim="of the smoke preset")
    table = overview.claims_table(overview.claims(results))
    assert list(table.columns) == ["table", "claim", "paper", "shapes", "msrvtt1k", "my-data"]
    assert table["my-data"].tolist() == ["-0.3 [-0.5, +0.0] [-0.9, +0.4] contradicted", ""]
    (results / "my-data" / "table1_summary.csv").write_text("setting\n")
    assert overview.links(results)["my-data"].tolist() == ["[45 min](my-data/table1_summary.csv)", ""]


def test_corpora_with_few_tables_share_a_column(results):
    for table in ("table2b", "table2c", "table2d"):
        write(results, "shapes", table, "shapes")
        write(results, "msrvtt1k", table, "msrvtt1k")
    write(results, "vidvrd", "table2a", "vidvrd", claim="more is more", paper=np.nan, verdict="held")
    write(results, "events", "table2a", "events", claim="more is more", paper=np.nan)
    table = overview.claims_table(overview.claims(results)).set_index("table")
    assert list(table.columns) == ["claim", "paper", "shapes", "msrvtt1k", "other corpora"]
    cell = "-0.3 [-0.5, +0.0] [-0.9, +0.4]"
    assert table.loc["table2a", "other corpora"] == f"events: {cell} inconclusive; vidvrd: {cell} held"
    assert (table.drop("table2a")["other corpora"] == "").all()


def test_tables_are_in_the_order_of_the_paper():
    names = ["table10", "emcl", "table2a", "table1_lambda10", "table1", "captioning", "table12"]
    rows = overview.by_table(pd.DataFrame({"table": names}))["table"].tolist()
    assert rows == ["table1", "table1_lambda10", "table2a", "table10", "table12", "captioning", "emcl"]


def test_missing_results_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebooks of the tables first"):
        overview.claims(tmp_path, "shapes")
    with pytest.raises(FileNotFoundError, match="run the notebooks of the tables first"):
        overview.claims(tmp_path)


def test_a_shared_run_costs_once(results):
    """Three runs of an hour, one of half an hour that all of the three tables share: 3.5 core hours; those on a GPU are
    counted apart."""
    assert "4 runs" in overview.cost(results) and "(2 more rows share them)" in overview.cost(results)
    assert overview.cost(results).endswith(
        "3.5 core hours (shapes 2.5, msrvtt1k 1.0), about 1.8 hours on two cores; and 3 runs on one A GPU."
    )
    assert "2 runs" in overview.cost(results, "smoke")


def test_links_give_the_minutes_of_a_table_on_two_cores(results):
    for corpus in ("shapes", "msrvtt1k", "shapes-smoke"):
        (results / corpus / "table1_summary.csv").write_text("setting\n")
    assert overview.links(results).values.tolist() == [
        ["table1", "[45 min](shapes/table1_summary.csv)", "[45 min](msrvtt1k/table1_summary.csv)"],
        ["table2a", "[45 min](shapes/table2a.csv)", ""],  # without a summary
    ]
    path = results / "shapes/table1.csv"
    rows = pd.read_csv(path)
    rows[rows["device"] != "cpu"].to_csv(path, index=False)
    links = ["[on a GPU](shapes/table1_summary.csv)", "[45 min](shapes/table2a.csv)"]
    assert overview.links(results)["shapes"].tolist() == links


def test_every_table_with_claims_is_of_one_experiment():
    assert overview.TABLES["table2a"] is ablations.TABLE2A and overview.TABLES.items() >= together.TABLES.items()
    tables = {path.name.removesuffix("_claims.csv") for path in (ROOT / "results").glob("*/*_claims.csv")}
    assert tables <= overview.TABLES.keys()


def test_titles_name_the_unit_of_the_claims(results):
    write(results, "shapes", "table11", "shapes", claim="the head is better (points of top-1)")
    write(results, "shapes", "mine", "shapes", claim="the head is better (points of F1)")
    figure = overview.overview(overview.claims(results, "shapes"), "title")
    words = " ".join(" ".join(text.get_text() for text in figure.axes[0].texts).split())
    assert "Table 11: actions, top-1" in words and "mine, F1" in words


@pytest.fixture
def checkout(results, tmp_path_factory):
    """A checkout of three notebooks, the middle one new, that lacks all generated text."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "notebooks").mkdir()
    results.rename(root / "results")
    for name in ("shapes", "msrvtt1k"):
        summary = {"setting": ["none"], "seeds": 1, "delta": np.nan, "verdict": "", "p": np.nan, "R@1 sd": np.nan}
        summary |= dict.fromkeys(("R@1", "R@5", "R@10", "MdR", "R@1 low", "R@1 high"), 1.0)
        summary |= dict.fromkeys(
            ("delta_low", "delta_high", "seeds_low", "seeds_high", "paper R@1", "paper R@5"), np.nan
        )
        pd.DataFrame(summary).to_csv(root / "results" / name / "table1_summary.csv", index=False)
        rows = pd.read_csv(root / "results" / name / "table1.csv").assign(n_queries=9)
        rows.to_csv(root / "results" / name / "table1.csv", index=False)
    for name, links in (("01_a", "Paper: x | Next: [Old](03_c.ipynb) | Results: y"), ("02_b", "Paper: x | Results: y"),
                        ("03_c", "Papers: x, z | Before: [Old](01_a.ipynb) | Results: y")):  # fmt: skip
        cell = {"source": [f"# Title {name}\n", "\n", f"{links}\n", "more"]}
        table = "table1" if name == "02_b" else "mine"
        writes = [f"results/shapes-smoke/{table}{kind}.csv" for kind in ("", "_claims")]
        book = {"cells": [cell], "metadata": {"ssb": {"writes": writes}}}
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(book))
    marks = "a\n<!-- finding -->\nold\n<!-- end of finding -->\nb\n<!-- answers -->\n<!-- end of answers -->\n"
    marks += "<!-- notebooks -->\n<!-- end of notebooks -->\nc\n"
    (root / "README.md").write_text(marks)
    (root / "notebooks" / "README.md").write_text("a\n<!-- table -->\n<!-- end of table -->\n")
    return root


def test_a_new_notebook_is_linked_and_listed_by_one_command(checkout, capsys):
    assert main(["report", str(checkout)]) == 0
    assert capsys.readouterr().out.count("wrote ") == 6
    links = {path.stem: "".join(json.loads(path.read_text())["cells"][0]["source"]).splitlines()[2]
             for path in (checkout / "notebooks").glob("*.ipynb")}  # fmt: skip
    assert links == {
        "01_a": "Paper: x | Next: [Title 02_b](02_b.ipynb) | Results: y",
        "02_b": "Paper: x | Before: [Title 01_a](01_a.ipynb) | Next: [Title 03_c](03_c.ipynb) | Results: "
        "[shapes](../results/shapes/table1_summary.csv), [msrvtt1k](../results/msrvtt1k/table1_summary.csv)",
        "03_c": "Papers: x, z | Before: [Title 02_b](02_b.ipynb) | Results: y",
    }
    text = (checkout / "README.md").read_text()
    assert "old" not in text and "| [Title 02_b](notebooks/02_b.ipynb) |" in text
    assert "| table1 |" in (checkout / "results" / "README.md").read_text()
    assert [line for line in text.splitlines() if len(line) == 1] == ["a", "b", "c"]
    assert "| [02_b](02_b.ipynb) | Title 02_b | Held" in (checkout / "notebooks" / "README.md").read_text()
    assert main(["report", str(checkout)]) == 0 and "wrote" not in capsys.readouterr().out


def test_a_readme_without_marks_is_an_error(checkout):
    (checkout / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="README.md lacks the lines <!-- finding --> and <!-- end of finding -->"):
        readmes.write(checkout)


def test_the_list_has_a_line_for_each_claim_and_a_mark_for_each_corpus(results):
    write(results, "shapes", "table2f", "shapes", setting=64, baseline=4)  # as pandas reads names that are numbers
    claims = overview.claims(results)
    figure = overview.overview(claims, "title")
    (axis,) = figure.axes
    words = [" ".join(text.get_text().split()) for text in axis.texts]
    names = "Table 1: captioning objective", "Table 2a: video features", "Table 2f: support-set size"
    assert [words.index(name) for name in names] == sorted(words.index(name) for name in names)
    assert words.count("64 vs 4") == 1 and set(claims["verdict"]) <= set(words)
    at_data = [line for line in axis.lines if line.get_transform() == axis.transData]
    marks = [line for line in at_data if line.get_label() in ("filled: resolved", "hollow: not resolved")]
    assert [line.get_xdata().tolist() for line in marks] == [[delta] for delta in claims["delta"]]
    for line, verdict in zip(marks, claims["verdict"]):
        assert (line.get_markerfacecolor() != "white") == (verdict in ("held", "contradicted"))
    stars = [line.get_xdata().tolist() for line in at_data if line.get_marker() == "*"]
    assert stars and all(star == [1.3] for star in stars)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend >= {"95 %, queries", "the paper's", *claims["corpus"]}


def test_the_finding_is_of_the_corpus_and_baseline_to_trust_most(results):
    """One claim of each corpus and table, told apart by its difference; Table 12 counts where there is no Table 1."""
    rows = {("flickr8k", "table1"): 1.2, ("flickr8k", "table1_tuned"): 0.3, ("flickr8k", "table12_tuned"): 0.5}
    rows |= {("shapes", "table1"): -0.1, ("flickr8k_confirm", "table12"): 0.7}
    for (corpus, table), delta in rows.items():
        (results / corpus).mkdir(exist_ok=True)
        claim = {
            "claim": finding.CROSS,
            "setting": "cross",
            "baseline": "none",
            "seeds": 5,
            "paper": 1.3,
            "delta": delta,
        }
        claim |= {"delta_low": delta - 0.4, "delta_high": delta + 0.4, "p": 0.5, "seeds_low": delta - 0.6}
        claim |= {"seeds_high": delta + 0.6, "verdict": "held" if delta > 1 else "inconclusive", "resolves": 0.9}
        pd.DataFrame([claim]).to_csv(results / corpus / f"{table}_claims.csv", index=False)
        runs = {"preset": "laptop", "corpus": corpus, "run": table, "device": "cpu", "seconds": 60}
        pd.DataFrame([runs]).to_csv(results / corpus / f"{table}.csv", index=False)
    gains = finding.gains(overview.claims(results))
    assert gains["corpus"].tolist() == ["flickr8k_confirm", "flickr8k", "flickr8k", "shapes"]
    assert gains["delta"].tolist() == [0.7, 0.3, 1.2, -0.1]
    words = " ".join(finding.headline(overview.claims(results)).split())
    assert words.startswith(
        "**On flickr8k_confirm (5 seeds), reconstructing captions from other clips (cross-captioning) changes R@1, the "
        "percentage of captions whose own clip is ranked first, by +0.7 points [+0.3, +1.1]"
    )
    assert "[+0.3, +1.1] over the `laptop` preset; the paper prints +1.3.**" in words
    both = overview.claims(results).assign(low=-0.2, high=1.6)  # over queries and seeds, which goes before
    assert "by +0.7 points [-0.2, +1.6] over" in " ".join(finding.headline(both).split())
    assert "ranks" not in words and words.count("**") == 2
    assert words.endswith(
        "is held in 1 of 4 comparisons with no captioning on 2 corpora and a second split of one, by R@1."
    )
    logs = {"log delta": np.log(0.99), "log low": np.log(0.98), "log high": 0.0}
    with_ranks = finding.headline(overview.claims(results).assign(**logs))
    changed = logs | {"log delta": np.log([0.99, 0.98, 0.97, 0.5]), "log high": [-0.01, 0.01, -0.02, -0.5]}
    assert finding.conclusion(gains.assign(**changed)).endswith(
        "by R@1; by all ranks together, each tested alone, it helps in 3, by 1.0 to 50.0 %, and harms in none."
    )
    apart = gains.assign(**changed, over=[*gains["over"][:3], "the paper's heads"])  # which hardly train
    assert "it helps in 3, by 1.0 to 3.0 % and by 50.0 % over the paper's heads on shapes, and" in finding.conclusion(
        apart
    )
    assert finding.conclusion(gains.assign(**logs)).endswith("it helps in none and harms in none.")
    little = "captioning had less than 10 % of the gradient"
    assert little not in finding.conclusion(gains.assign(share=0.2))
    shares = gains.assign(share=[0.014, 0.061, 0.1, np.nan])
    assert finding.conclusion(shares).endswith(f"In 2 of them, at the weight λ of the preset, {little} (1.4 to 6.1 %).")
    words = "The geometric mean of the ranks of the right clips changes by -1.0 % [-2.0, +0.0]; less is better."
    assert words in " ".join(with_ranks.split())
    answers = finding.answers(overview.claims(results)).set_index("question")
    (tuned,) = (answers.loc[name] for name in answers.index if "the tuned baseline" in name)
    assert "+0.3 [" in " ".join(tuned) and "+0.5 [" not in " ".join(tuned)
    first, _, *lines = finding.first_page(results, overview.claims(results)).splitlines()
    assert (
        first.startswith("**The claim that it helps is held in 1 of [4 comparisons](#the-claims)") and "frozen" in first
    )
    assert lines[0] == (
        "1. Over the tuned baseline cross-captioning changes R@1: [flickr8k](flickr8k/table1_tuned_claims.csv) +0.3 "
        "points [-0.1, +0.7], inconclusive (the design finds 0.9 points with 80 % power)."
    )
    gained = {
        "baseline": "a",
        "val R@1": 9.0,
        "delta": 1.0,
        "delta_low": 0.5,
        "delta_high": 1.5,
        "verdict": ["higher"],
        "λ": 0.3,
    }
    pd.DataFrame(gained).to_csv(results / "shapes/strength_gains.csv")
    average = {"claim": [strength.AVERAGE], "delta": 1.0, "delta_low": 0.5, "delta_high": 1.5, "verdict": "held"}
    pd.DataFrame(average).to_csv(results / "shapes/strength_claims.csv")
    gain = (
        "It gains over 1 of 1 baselines (1 beyond the noise; none lose beyond it) ([shapes](shapes/strength_gains.csv))"
    )
    told = f"by R@1.** {gain}, on average by +1.0 points [+0.5, +1.5] on shapes (held) at the λ that validation chose."
    assert f"{told} Encoders" in finding.first_page(results, overview.claims(results)).splitlines()[0]
    over_laptop = "\n".join(lines).split("2. Over the `laptop` preset")[1].split("3. ")[0]
    assert "[flickr8k_confirm](flickr8k_confirm/table12_claims.csv) +0.7" in over_laptop
    assert "(the design finds 0.9 points" in over_laptop
    assert finding.confirmation(claims := overview.claims(results)).endswith("p = 0.50 over the `laptop` preset.")
    both = pd.concat([claims, claims.assign(corpus="flickr8k_confirm", table="table12_tuned", p=0.02).iloc[:1]])
    said = finding.confirmation(both)
    family = "p = 0.04 over the tuned baseline and p = 0.50 over the `laptop` preset"
    assert said.endswith(f"{family}.")
    third = claims.assign(corpus="flickr8k_confirm", table="table12_paper_small", p=0.03).iloc[:1]
    said = finding.confirmation(pd.concat([both, third]))  # which is no member of the family
    assert said.endswith(f"{family}; by itself p = 0.03 over the paper's heads.")
    assert finding.confirmation(third) == ""
    assert finding.confirmation(claims[claims["corpus"] == "shapes"]) == ""
    axis = finding.figure(gains).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()][2] == "flickr8k:\nthe tuned baseline"
    filled = [line.get_markerfacecolor() for line in axis.lines if line.get_marker() == "o"]
    assert [colour != "white" for colour in filled] == [False, False, True, False]


def test_a_baseline_below_its_bar_is_told_on_the_first_page_in_bold(results):
    bars = pd.DataFrame({"bar": "ridge", "metric": ["t2v R@1", "t2v R@5"], "wanted": [11.4, 32.5]})
    bars.assign(tuned=[11.4, 33.0]).to_csv(results / "shapes/heads_bars.csv")
    bars.assign(convolutions=0.0).to_csv(results / "msrvtt1k/heads_bars.csv")
    link = "[shapes](shapes/heads_bars.csv)"
    words = finding.BARS
    all_of_them = f"reaches all of them on {link} (closest: t2v R@1 11.4 to 11.4 of ridge)"
    assert finding.bars(results) == f"{words} {all_of_them}."
    bars.assign(tuned=[10.9, 32.5]).to_csv(results / "msrvtt1k/heads_bars.csv")
    below = "**does not reach them on [msrvtt1k](msrvtt1k/heads_bars.csv) (t2v R@1 10.9 to 11.4 of ridge)**"
    assert finding.bars(results) == f"{words} {all_of_them} and {below}."
    (results / "shapes/heads_bars.csv").unlink()
    assert finding.bars(results) == f"{words} {below}."


def test_the_ceiling_of_captioning_is_told_with_the_verdict_of_its_claim(results):
    row = {"delta": 0.5, "delta_low": 0.1, "delta_high": 0.9, "verdict": "inconclusive"}
    parts = pd.DataFrame([row | {"setting": name} for name in ("cross", carries.ORACLE)])
    parts.to_csv(results / "shapes/carries_summary.csv")
    claims = [{"setting": carries.ORACLE, "baseline": "none"}, {"setting": carries.ORACLE, "baseline": "cross"}]
    pd.DataFrame(
        [row | one | {"verdict": word, "claim": ""} for one, word in zip(claims, ("held", "contradicted"))]
    ).to_csv(results / "shapes/carries_claims.csv")
    (line,) = (line for line in finding.sentences(results, finding.EFFECT).splitlines() if "carries_summary" in line)
    assert line.endswith("(one of 2 claims, not of the rows): held.") and "in full: inconclusive, +0.5" in line
    rivals = pd.DataFrame(
        [row | {"setting": name, "delta": x} for name, x in (("dropout 0.4", -2), ("weight decay 1", 2))]
    )
    pd.concat([parts, rivals]).to_csv(results / "shapes/carries_summary.csv")
    against = [(carries.AGAINST.format(name), each) for name, each in zip(carries.RIVALS, rivals["setting"])]
    tests = pd.DataFrame([row | {"claim": claim, "setting": "cross", "baseline": name} for claim, name in against])
    tests = tests.assign(delta=[2.5, -1.5], verdict=["held", "contradicted"])
    tests.to_csv(results / "shapes/carries_claims.csv")
    (line,) = (line for line in finding.sentences(results, finding.EFFECT).splitlines() if "carries_summary" in line)
    rival = "-1.5 points [+0.1, +0.9] against weight decay 1 in its place, which alone gains +2.0 points [+0.1, +0.9]"
    assert line.endswith(f"{rival}, of 2 rivals the best on the test clips: contradicted.")
    adds = {"claim": "", "setting": "cross, weight decay 1", "baseline": "weight decay 1", "verdict": "held"}
    pd.concat([tests, pd.DataFrame([row | adds])]).to_csv(results / "shapes/carries_claims.csv")
    (line,) = (line for line in finding.sentences(results, finding.EFFECT).splitlines() if "carries_summary" in line)
    assert line.endswith("contradicted, +0.5 points [+0.1, +0.9] added to that rival: held.")
    control = pd.DataFrame([row | {"setting": name} for name in ("cross", carries.SHUFFLED)])
    pd.concat([parts, control.iloc[1:]]).to_csv(results / "shapes/carries_summary.csv")
    claim = {"claim": "", "setting": "cross", "baseline": carries.SHUFFLED, "delta": 0.4, "verdict": "equivalent"}
    claim |= {"log delta": np.log(0.99), "log low": np.log(0.98), "log high": 0.0}
    pd.DataFrame([row | claim]).to_csv(results / "shapes/carries_claims.csv")
    (line,) = (line for line in finding.sentences(results, finding.EFFECT).splitlines() if "carries_summary" in line)
    against = "+0.4 points [+0.1, +0.9] (ranks -1.0 % [-2.0, +0.0]) in full against these: equivalent"
    assert line.endswith(f"with the captions of other clips: inconclusive, {against}.")


QUESTION = "Does it gain more where there are more false negatives?"


def test_the_readings_and_the_queries_are_told_on_the_first_page(results):
    folder = results / "shapes"
    folder.mkdir(exist_ok=True)
    verdicts = {"verdict": ["higher", "inconclusive", "lower", "inconclusive"], "delta": [1.0, 0.2, -3.0, 0.4]}
    verdicts |= {"ratio": [1.0, 60.0, 70.0, 9.0], "R@1": [30.0, 20.0, 25.4, 28.0]}
    verdicts |= {"weighted_term": ["contrast", *["captioning"] * 3], "over_tokens": "mean"}
    verdicts |= {"pre_encoder_in": "all", "kernels": "in turn", "weights_by": "cosine", "share": 0.1}
    pd.DataFrame(verdicts).to_csv(folder / "multiverse_readings.csv", index=False)
    pd.DataFrame({"steps": [620, 624]}).to_csv(folder / "multiverse.csv", index=False)
    mean = {"choice": ["mean"], "delta": 0.25, "delta_low": -0.5, "delta_high": 1.0, "verdict": "higher"}
    pd.DataFrame(mean).to_csv(folder / "multiverse_choices.csv", index=False)
    queries = {"others": ["0", "1-2", "10 or more"], "delta": [0.5, 1.0, -2.0]}
    queries |= {"low": [0.1, 0.0, -3.0], "high": [0.9, 2.0, -1.0], "queries": [70, 20, 10]}
    more = {"claim": [when.MANY], "delta": 0.3, "low": -1.5, "high": 2.0, "verdict": "inconclusive"}
    pd.DataFrame(more).to_csv(folder / "when_claims.csv", index=False)
    of_queries = finding.answers(overview.claims(results)).set_index("question")
    assert " +0.3 % of a rank [-1.5, +2.0] inconclusive" in " ".join(of_queries.loc[QUESTION])
    pd.DataFrame(queries).to_csv(folder / "when_queries.csv", index=False)
    curves = {"kind": ["batch", "training clips", "training clips"], "size": [64, 500, 6000]}
    curves |= {"delta": [0.1, 2.6, 0.3], "low": [-1.0, 1.5, -0.5], "high": [1.2, 3.7, 1.1]}
    curves |= {"verdict": ["inconclusive", "higher", "inconclusive"]}
    pd.DataFrame(curves).to_csv(folder / "when_gains.csv", index=False)
    lines = finding.first_page(results, overview.claims(results)).splitlines()
    gained = {"verdict": ["equivalent", "inconclusive"], "delta": [-0.1, -0.2]}
    pd.DataFrame(gained).to_csv(results / "msrvtt1k/strength_gains.csv")
    similar = "1 of 1 readings of the paper with terms of similar magnitude (1 beyond the noise; none lose beyond it)"
    larger = "2 of 3 others, with captioning larger (none beyond the noise; 1 lose beyond it)"
    over = "It gains over none of 2 baselines (none beyond the noise; none lose beyond it)"
    link, of_readings = "([msrvtt1k](msrvtt1k/strength_gains.csv))", "([shapes](shapes/multiverse_readings.csv))"
    assert finding.shares(results) == f"{over} {link}; under {similar} and {larger} {of_readings}."
    assert finding.shares(folder) == ""
    mean = {"claim": [strength.AVERAGE], "delta": 0.2, "low": 0.1, "high": 0.3, "verdict": "held"}
    pd.DataFrame(mean).to_csv(results / "msrvtt1k/strength_claims.csv")
    average = f"{link}, on average by +0.2 points [+0.1, +0.3] on msrvtt1k (held) at the λ that validation chose; under"
    assert f"{over} {average}" in finding.shares(results)
    (readings,) = (line for line in lines if line.startswith("    - ") and "multiverse_readings" in line)
    assert "csv): of the 1 with λ on the contrastive loss and a mean over tokens" in readings
    means = "the mean over all of them is +0.2 points [-0.5, +1.0], held"
    told = f"after 624 steps, with an R@1 without captioning of 20 to 30, it gains under 3 of 4 readings, {means}"
    assert f"in the others it was 9 to 70 times, in 3 of 3 at least 5 times, a stress test; {told}" in readings
    (line,) = (line for line in lines if line.startswith("    - ") and "when_queries" in line)
    assert "-0.5 % [-0.9, -0.1] for the 70 queries that fit 0 other clips and +2.0 % [+1.0, +3.0]" in line
    sizes = "-2.6 % [-3.6, -1.5] with 500, a gain; -0.3 % [-1.1, +0.5] with 6000, inconclusive"
    rest = "all that fit some against those that fit none: -0.3 % [-2.0, +1.5], inconclusive"
    assert line.endswith(f"for the 10 queries that fit 10 or more other clips; {rest}; by training clips {sizes}.")
    assert len(finding.EFFECT) == 10


def test_losses_ranked_by_one_score_differ_by_an_interval_over_seeds(results):
    folder = results / "events"
    folder.mkdir()
    claim = {"claim": [finding.WEAK], "delta": 9.0, "low": 5.0, "high": 13.0, "verdict": "held"}
    pd.DataFrame(claim).to_csv(folder / "s2dtw_claims.csv", index=False)
    rows = {"setting": ["S2DTW", "S2DTW", "soft-DTW", "soft-DTW"], "seed": [0, 1, 0, 1]}
    pd.DataFrame(rows | {BY_FULL[0]: [30.0, 31.0, 27.0, 26.0]}).to_csv(folder / "s2dtw.csv", index=False)
    perfect = {"setting": [long_videos.PERFECT, long_videos.SOFT], long_videos.OWN["R@1"]: [68.1, 36.9]}
    pd.DataFrame(perfect).to_csv(folder / "s2dtw_measures.csv", index=False)
    short, _, _, _, line, *_ = finding.sentences(results, finding.OTHERS).splitlines()
    assert short.endswith("[events](events/s2dtw_claims.csv) +9.0 points [+5.0, +13.0], held.")
    by_hand = "+4.0 points [-8.7, +16.7] over seeds where both are ranked by S2DTW"  # 4 ± 12.706 · √2 / √2
    assert line.endswith(f"+9.0 points [+5.0, +13.0], held; {by_hand}; with perfect costs R@1 is 68.1 and 36.9.")


def test_every_table_is_shown_with_its_figures_and_files(checkout):
    """A table without a summary, and figures of no table, too; each figure with its own sentence."""
    folder = checkout / "figures/shapes"
    for name in ("table1_fig3_attention", "quickstart_attention", "unknown"):
        figures.save(plt.figure(), folder, name, f"What {name} shows.")
    gains = pd.DataFrame({"baseline": ["a"], "val R@1": [20.5], "delta": [0.2], "delta_low": 0.1})
    gains = gains.assign(delta_high=0.3, verdict="higher", λ=0.3)
    gains.to_csv(checkout / "results/shapes/strength_gains.csv", index=False)
    claim = {"claim": [strength.AVERAGE], "delta": 0.16, "delta_low": 0.0, "delta_high": 0.3, "verdict": "equivalent"}
    claims = overview.claims(checkout / "results")
    pd.DataFrame(claim).to_csv(checkout / "results/shapes/strength_claims.csv", index=False)
    page = readmes.results_page(checkout, claims)
    assert "![What table1_fig3_attention shows.](../figures/shapes/table1_fig3_attention.png)" in page
    assert "### Quickstart" in page and "unknown" not in page
    part = page.split("### Gain against the strength of the baseline")[1].split("###")[0]
    words = (
        "it gains over 1 of 1 baselines, the mean over all of them is +0.2 points [+0.0, +0.3], equivalent; +0.2 points"
    )
    assert words in page
    assert "| a | 20.5 | 0.2 |" in part and "[strength_gains.csv](shapes/strength_gains.csv)" in part


def test_benchmarks_are_shown_with_their_figure(checkout):
    for name, (_, columns) in readmes.BENCHMARKS.items():
        path = checkout / "results" / f"{name}.csv"
        if name != "bench":
            pd.DataFrame({column: [f"{name} {column}"] for column in [*columns.split(), "commit"]}).to_csv(
                path, index=False
            )
    figures.save(plt.figure(), checkout / "figures", "scale", "How it grows.")
    part = readmes.results_page(checkout, overview.claims(checkout / "results")).split("## Speed and cost")[1]
    assert "| cost what | cost size |" in part and "cost commit" not in part and "bench.csv](bench.csv)" not in part
    assert "![How it grows.](../figures/scale.png)" in part and "[s2dtw_bench.csv](s2dtw_bench.csv)" in part


def test_a_search_is_told_by_what_it_found(checkout):
    looks = {"setting": ["the preset", "a", "b", "c"], "objective": ["none", "none", "cross", "cross"]}
    looks |= {"sum": [10.0, 20.0, 19.0, 21.5], "found": [False, True, False, True]}
    looks["seconds"] = [10, 20, 90, 110]
    pd.DataFrame(looks).to_csv(checkout / "results/shapes/table1_summary.csv", index=False)
    path = checkout / "results/shapes/table1_summary.csv"
    words = readmes._differences([("shapes", "table1", path)])
    found = "none 20.0 (2 looks, 15 seconds a run), cross 21.5 (2 looks, 100 seconds a run)"
    assert words == f"R@1 + R@5 + R@10 on the validation clips of shapes, from `laptop`'s 10.0: {found}."


def test_the_claims_are_read_once_for_a_report(results, checkout, monkeypatch, capsys):
    """By READMEs and pages together, but for those that a sentence of results/README.md is made of."""
    read, paths = overview.read, []
    monkeypatch.setattr(overview, "read", lambda path: paths.append(path) or read(path))
    assert main(["report", str(checkout)]) == 0 and "wrote" in capsys.readouterr().out
    paths = [path for path in paths if path.stem.endswith("_claims")]
    assert len(paths) == len(set(paths)) == 3, "two of Table 1, one of Table 2a; none of smoke"


def test_a_damaged_table_of_claims_is_named(checkout, capsys):
    (checkout / "results/shapes/table1_claims.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert main(["report", str(checkout)]) == 1
    assert "table1_claims.csv is not a table" in capsys.readouterr().err


def test_the_leak_is_told_where_there_is_most_of_it_and_by_both_probes(results):
    folder, own, other = results / "shapes", "cross, λ = 3", "cross, weights of another caption, λ = 3"
    told = [("none", "caption", 20), ("cross, λ = 1", "caption", 30), (own, "caption", 74), (other, "caption", 49)]
    told += [("none", "describer", 29), (own, "describer", 76)]
    rows = [{"setting": a, "probe": b, "told": x, "low": x - 1, "high": x + 1, "chance": 20.0} for a, b, x in told]
    pd.DataFrame(rows).to_csv(folder / "leak_leaks.csv", index=False)
    gain = {"setting": [own, other], "delta": [-18.0, -3.0], "low": [-20.0, -5.0], "high": [-16.0, -1.0]}
    pd.DataFrame(gain | {"verdict": ["lower", "inconclusive"]}).to_csv(folder / "leak_summary.csv", index=False)
    short, _, _, _, line, *_ = finding.sentences(results, finding.EFFECT[-1:]).splitlines()
    after_own = "in 74 % [73, 75] after cross, λ = 3 (R@1 -18.0 points [-20.0, -16.0], lower)"
    after_other = "in 49 % [48, 50] after weights of another caption (R@1 -3.0 points [-5.0, -1.0], inconclusive)"
    words = (
        f"over the `laptop` preset {after_own}, {after_other}, in 20 % [19, 21] without captioning, 20 % by guessing"
    )
    assert short.endswith(f"{words}.")
    describer = "in 76 % [75, 77] after cross, λ = 3, in 29 % [28, 30] without captioning, 20 % by guessing"
    assert line.endswith(f"{words}; the describer {describer}.")


def test_a_table_of_its_own_form_has_intervals_in_brackets(tmp_path):
    row = {"variant": "a", "size": 12000, "R@1": 66.99812, "delta": 1.25, "delta_low": -0.04, "delta_high": 2.5}
    pd.DataFrame([row | {"p": 0.0, "verdict": "higher"}]).to_csv(tmp_path / "x_summary.csv", index=False)
    head, _, cells = readmes.in_full(tmp_path / "x_summary.csv").splitlines()
    assert head == "| variant | size | R@1 | delta | over queries | p | verdict |"
    assert cells == "| a | 12000 | 67 | 1.25 | [-0.0, +2.5] | < 0.001 | higher |"
