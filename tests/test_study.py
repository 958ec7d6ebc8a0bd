"""Grids of runs, tables and figures, on ranks made by hand and on runs of seconds."""

import itertools
import re
import traceback

import numpy as np
import pandas as pd
import pytest
import small_study
import torch
from scipy import stats

import ssb
from ssb import figures, files, paper, report, study
from ssb.config import ConfigError
from ssb.experiments import ablations, objectives
from ssb.metrics import statistics
from ssb.study import Study
from ssb.training import batch, collapse, loop, runs
from ssb.training.runs import TrainingError

SMALL = {"corpus_options": {"clips": 60, "captions": 2, "false_negatives": 0.1}, "epochs": 1, "batch": 16}


@pytest.fixture
def table(home, monkeypatch):
    monkeypatch.setattr(study, "load_corpus", lambda name, **options: ssb.load_corpus("shapes", clips=60))
    return Study("table1", preset="smoke", seeds=range(5))


def test_summary_says_what_differs(hand, table):
    frame = table.summary(hand, "none", paper="1")
    assert frame.loc["cross", "verdict"] == "higher" and frame.loc["full", "verdict"] == "inconclusive"
    assert frame.loc["none", "verdict"] == ""
    each = {name: [100 * (run.ranks["t2v"] == 1).mean() for run in members] for name, members in hand.items()}
    for name, members in each.items():
        assert frame.loc[name, "R@1"] == pytest.approx(np.mean(members), abs=0.01)
        assert frame.loc[name, "R@1 sd"] == pytest.approx(np.std(members, ddof=1), abs=0.001)
        assert frame.loc[name, "R@1 low"] < np.mean(members) < frame.loc[name, "R@1 high"]
    delta = np.mean(each["cross"]) - np.mean(each["none"])
    assert frame.loc["cross", "delta"] == pytest.approx(delta, abs=0.001)
    test = stats.ttest_rel(each["cross"], each["none"]).confidence_interval()
    assert frame.loc["cross", "seeds_low"] == pytest.approx(test.low, abs=0.001)
    assert frame.loc["cross", "seeds_high"] == pytest.approx(test.high, abs=0.001)
    # the paper's numbers, where they are known and nowhere else
    assert frame.loc["cross", "paper R@1"] == 27.2 and frame.loc["none", "paper R@5"] == 53.0
    assert np.isnan(frame.loc["full", "paper R@1"])


def test_a_better_setting_on_one_seed_is_not_a_verdict(hand, table):
    one = {name: members[:1] for name, members in hand.items()}
    frame = table.summary(one, "none")
    assert frame.loc["cross", "delta_low"] > 0 and np.isnan(frame.loc["cross", "p"])
    assert frame.loc["cross", "verdict"] == "inconclusive"


def test_a_table_that_the_paper_lacks_and_a_baseline_without_seeds(hand, table):
    probe = hand["none"][0].ranks["t2v"]
    frame = table.summary({"cross": hand["cross"]}, "probe", fixed={"probe": probe})
    assert frame[["paper R@1", "paper R@5"]].isna().all().all()
    assert frame.loc["probe", "seeds"] == 1 and frame.loc["cross", "verdict"] == "higher"
    assert "probe: R@1" in report.reading(frame, "probe") and "paper" not in report.reading(frame, "probe")
    page = report.show(frame, "Heads").to_html()
    assert "nan" not in page.lower().replace("nano", "")
    figures.settings(table.rows({"cross": hand["cross"]}), frame, "Heads", baseline="probe")


def test_reading_is_the_table_in_words(hand, table):
    words = report.reading(table.summary(hand, "none", paper="1"), "none")
    assert "Beyond the noise of queries and seeds: cross (higher)." in words
    assert "cross against none" in words and "(paper +1.3)" in words
    ranks = [np.stack([run.ranks["t2v"] for run in hand[name]]).ravel() for name in ("cross", "none")]
    ratio = stats.gmean(ranks[0]) / stats.gmean(ranks[1])
    assert f"; geometric mean of the ranks {100 * (ratio - 1):+.1f} % [" in words
    same = report.reading(table.summary({name: hand[name] for name in ("none", "full")}, "none"), "none")
    assert "No setting differs" in same


def test_rows(hand, table):
    rows = table.rows(hand)
    assert list(rows.columns[:4]) == ["table", "corpus", "setting", "seed"]
    assert list(rows.columns[-10:]) == [
        "n_queries", "preset", "run", "config_sha", "corpus_sha", "commit", "dirty", "torch", "device", "seconds"
    ]  # fmt: skip
    assert len(rows) == 15 and rows[["setting", "seed"]].apply(tuple, axis=1).is_monotonic_increasing
    assert rows.groupby("setting")["config_sha"].nunique().eq(1).all() and rows["run"].is_unique
    written = pd.read_csv(table.results / "table1.csv", dtype=str)
    assert list(written["t2v R@1"]) == list(rows["t2v R@1"]) and all(x[-3] == "." for x in written["t2v R@1"])
    first = (table.results / "table1.csv").read_bytes()
    table.rows(dict(reversed(hand.items())))
    assert (table.results / "table1.csv").read_bytes() == first


def test_holm_by_hand():
    adjusted = statistics.holm(pd.Series({"a": 0.01, "b": np.nan, "c": 0.04, "d": 0.03}))
    assert adjusted["a"] == pytest.approx(0.03) and np.isnan(adjusted["b"])
    assert adjusted["d"] == pytest.approx(0.06) and adjusted["c"] == pytest.approx(0.06)


def test_paper_numbers_are_those_of_the_file():
    numbers = paper.paper_numbers("1")
    assert numbers == {
        ("none", "R@1"): 25.9, ("none", "R@5"): 53.0, ("hybrid", "R@1"): 26.0, ("hybrid", "R@5"): 54.8,
        ("cross", "R@1"): 27.2, ("cross", "R@5"): 55.2,
    }  # fmt: skip


def test_each_run_is_trained_once_and_kept(home, monkeypatch, capsys):
    """The second table asks for runs that the first has trained; a new setting alone is trained."""
    grid = {name: {"objective": name} for name in ("none", "cross")}
    first = Study("table1", preset="smoke", seeds=[0, 1], jobs=1, changes=SMALL).run(grid)
    assert [[run.config.seed for run in members] for members in first.values()] == [[0, 1], [0, 1]]
    assert "4/4" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in files.runs().glob("*/metrics.json")}
    assert len(times) == 4
    again = Study("table2", preset="smoke", seeds=[1, 0], jobs=1, changes=SMALL).run(
        grid | {"full": {"objective": "full"}}
    )
    assert "2/2" in capsys.readouterr().out
    assert again["none"][0].name == first["none"][1].name
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_failed_run_does_not_stop_the_others(home):
    grid = {"bad": {"lr": 1e30, "text_lr": 1e30, "clip": 1e30}, "good": {}}
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL | {"objective": "none", "epochs": 3})
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed; the others are kept.\nbad, seed 0: loss is"):
        work.run(grid)
    assert len(list(files.runs().glob("*/metrics.json"))) == 1


def test_several_processes_give_the_same_runs(home, tmp_path, monkeypatch):
    grid = {name: {"objective": name} for name in ("none", "cross")}
    two = Study("t", preset="smoke", seeds=[0], jobs=2, changes=SMALL).run(grid)
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "other"))
    one = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL).run(grid)
    for name in grid:
        assert two[name][0].name == one[name][0].name
        assert np.array_equal(two[name][0].ranks["t2v"], one[name][0].ranks["t2v"])


def test_a_table_is_of_one_corpus(home):
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL)
    with pytest.raises(ConfigError, match="'more' changes the corpus"):
        work.run({"more": {"corpus_options": {"clips": 90}}})


def test_any_error_of_a_run_is_reported_after_the_others(home, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "CALLS = []\ndef loss(text, video):\n    CALLS.append(1)\n    if len(CALLS) > 1:  # once it is tried\n"
    (tmp_path / "broken_later.py").write_text(
        f"{source}        raise RuntimeError('mine')\n    return (text - video).mean()\n"
    )
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL | {"objective": "none"})
    with pytest.raises(
        TrainingError, match="1 of 2 runs failed; the others are kept.\nown, seed 0: RuntimeError: mine"
    ) as caught:
        work.run({"own": {"contrast": "broken_later:loss"}, "good": {}})
    assert str(caught.value).endswith("broken_later.py, line 5)")
    assert str(caught.value.__cause__).count("RuntimeError: mine") == 1 and "in loss" in str(caught.value.__cause__)


@pytest.mark.parametrize("grid", [["none"], {"a": None}, {"a": ["b"]}, {1: {}}, None])
def test_a_grid_is_a_dictionary_of_dictionaries(home, grid):
    with pytest.raises(ConfigError, match="(the grid|the setting 'a') = .*: wanted a dictionary of names"):
        Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL).run(grid)


def test_checkpoints_of_a_finished_run_are_removed(home):
    """A power cut may leave them; beside a damaged run they stay, for it is trained again."""
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL)
    run = work.run({"none": {"objective": "none"}})["none"][0]
    left, log = loop.partial(run.folder), (run.folder / "log.csv").read_bytes()
    for call in (lambda: work.run({"none": {"objective": "none"}}), lambda: loop.fit(run.config, work.corpus)):
        left.mkdir()
        (run.folder / "log.csv").write_text("")
        with pytest.raises(TrainingError, match="is damaged"):
            call()
        assert left.exists()
        (run.folder / "log.csv").write_bytes(log)
        call()
        assert not left.exists()


def test_cut_captions_are_said_once_before_training(home, tmp_path, capsys):
    small_study.save_encoder(tmp_path)
    changes = SMALL | dict(text_encoder=str(tmp_path), freeze_text=True, max_tokens=3)
    Study("t", preset="smoke", seeds=[0, 1], jobs=1, changes=changes).run({"none": {"objective": "none"}, "cross": {}})
    begin, trained = capsys.readouterr().out.split("1/4", 1)
    for part in ("text encoder", "decoder"):
        words = rf"shapes: \d+\.\d % of \d+ captions are cut for the {part}, after max_tokens = 3"
        assert len(re.findall(words, begin)) == 1 and "captions are cut" not in trained


def test_an_interrupt_is_a_few_lines(home, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped; what is finished is kept, the same command con") as caught:
        Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL).run({"none": {"objective": "none"}})
    assert len(traceback.format_exception(caught.value)) == 4  # a head, this line, that in `run`, and the message


def test_a_damaged_run_is_refused_before_anything_is_trained(home):
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL)
    folder = work.run({"none": {"objective": "none"}})["none"][0].folder
    (folder / "log.csv").write_text("epoch\n")
    with pytest.raises(
        TrainingError, match=f"{folder.name} is damaged .log.csv is not as it was written.: delete it, t"
    ):
        work.run({"none": {"objective": "none"}, "cross": {}})
    assert [path.name for path in files.runs().iterdir()] == [folder.name]


def test_one_setting_and_an_unknown_baseline(hand, table):
    frame = table.summary({"none": hand["none"]}, "none")
    assert report.show(frame, "t").to_html() and report.reading(frame, "none").startswith("none: R@1")
    with pytest.raises(ConfigError, match="baseline = 'nothing': the settings are none"):
        table.summary({"none": hand["none"]}, "nothing")


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_be_different(home, seeds):
    with pytest.raises(ConfigError, match="seeds"):
        Study("t", preset="smoke", seeds=seeds)


def test_presets_and_corpora_have_their_own_folders(home):
    smoke = Study("t", preset="smoke", changes=SMALL)
    assert smoke.results == home / "results" / "shapes-smoke"
    assert files.label("shapes", "laptop") == "shapes"


@pytest.fixture
def trained(home):
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL)
    return {name: members[0] for name, members in work.run(objectives.GRID).items()}


def test_support_weights_of_a_batch(trained):
    for objective, run in trained.items():
        weights, batch = figures.support_weights(*run.load(), 7)
        assert weights.shape == (7, 7) and len(batch) == 7 and batch["id"].is_unique
        assert np.allclose(weights.sum(1), 0 if objective == "none" else 1, atol=1e-6)
    corpus = ssb.load_corpus("shapes", **SMALL["corpus_options"])
    for clip, text in zip(batch["clip"], batch["text"]):
        assert text in corpus.captions.loc[corpus.captions["clip"] == clip, "text"].tolist()
    assert np.all(np.diag(weights) == 0)  # cross
    assert np.array_equal(figures.support_weights(*trained["identity"].load(), 7)[0], np.eye(7))


def test_figures_have_labels_and_titles_and_are_the_same_each_time(trained, home, hand, table):
    rows, summary = table.rows(hand), table.summary(hand, "none")
    drawn = {
        "settings": lambda: figures.settings(rows, summary, "Title: shapes, smoke"),
        "weights": lambda: figures.weight_matrices(trained, "Title: shapes, smoke", size=8),
        "attention": lambda: figures.attention_map(trained["cross"], "Title: shapes, smoke", size=8),
        "retrieved": lambda: figures.retrieved(trained["cross"], "Title: shapes, smoke"),
    }
    for name, draw in drawn.items():
        figure = draw()
        titles = [axis.get_title() for axis in figure.axes] + [figure.get_suptitle()]
        assert any("Title: shapes, smoke" in title for title in titles), name
        for axis in figure.axes:
            if axis.axison and axis.get_subplotspec() and axis.get_subplotspec().colspan.start == 0:
                assert axis.get_xlabel() and (axis.get_ylabel() or name == "settings"), name
        figures.save(figure, home / "figures", name, alt="A sentence.")
    for name, suffix in itertools.product(drawn, (".png", ".pdf")):
        path = home / "figures" / f"{name}{suffix}"
        before = path.read_bytes()
        assert len(before) > 5000
        figures.save(drawn[name](), home / "figures", name, alt="A sentence.")
        assert path.read_bytes() == before, path.name


def test_attention_map_names_the_strongest_rows(trained):
    weights, batch = figures.support_weights(*trained["cross"].load(), 10)
    figure = figures.attention_map(trained["cross"], "t", size=10, strongest=2)
    words = " ".join(text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts)
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    assert f"caption {row + 1}:" in words and f"clip {column + 1} (w = {weights.max():.2f})" in words


def test_training(trained, table):
    frame = table.training({name: [run] for name, run in trained.items()})
    model, _ = trained["cross"].load()
    heads = (
        sum(p.numel() for p in model.head_parameters() + model.encoder_parameters())
        + model.shift.numel()
        + model.scale.numel()
    )
    assert (frame["weights"] == heads).all()  # tied word vectors are stored once
    assert frame.loc["cross", "kept"] == pytest.approx(trained["cross"].log["contrast"].iloc[0], abs=1e-3)
    assert frame.loc["cross", "captioning, last"] == pytest.approx(
        trained["cross"].log["captioning"].iloc[-1], abs=1e-3
    )
    assert np.isnan(frame.loc["none", "captioning, last"])


def test_metrics_table(trained):
    run = trained["cross"]
    frame = report.metrics_table(run)
    assert frame.loc["t2v", "R@10"] == pytest.approx(run.metrics["t2v R@10"], abs=0.005)
    assert list(frame["queries"]) == [30, 15, 15]


def test_show_is_html_with_the_best_in_bold(hand, table):
    page = report.show(table.summary(hand, "none"), "Table 1").to_html()
    assert "Table 1" in page and "inconclusive" in page and "font-weight: bold" in page


def test_claims_of_a_table_and_of_its_variants(hand, table):
    claims = table.claims(hand, objectives.TABLE1.claims)
    assert claims["claim"].tolist() == ["cross-captioning beats no captioning"]  # hybrid is not among these runs
    row = claims.iloc[0]
    delta = table.summary(hand, "none").loc["cross"]
    assert (row["delta"], row["seeds_low"]) == (delta["delta"], delta["seeds_low"])
    assert row["verdict"] == "held" and row["paper"] == 1.3
    swapped = {"none": hand["cross"], "cross": hand["none"]}
    table.table = "table1_lambda10"
    assert table.claims(swapped, objectives.TABLE1.claims)["verdict"].tolist() == ["contradicted"]
    table.table = "table2a"
    assert table.claims(hand, ablations.TABLE2A.claims).empty
    assert pd.read_csv(table.results / "table1_lambda10_claims.csv")["delta"].iloc[0] == -row["delta"]


def test_summary_of_other_ranks(hand, table):
    """Semantic ranks, say: here those of cross in place of none's, so nothing differs."""
    ranks = {name: np.stack([run.ranks["t2v"] for run in hand["cross"]]) for name in hand}
    frame = table.summary(hand, "none", ranks=ranks)
    assert frame["delta"].dropna().eq(0).all() and frame["R@1"].nunique() == 1
    assert table.claims(hand, objectives.TABLE1.claims, ranks=ranks)["verdict"].tolist() == ["equivalent"]


def test_rows_take_further_columns(hand, table):
    also = pd.DataFrame([{"setting": s, "seed": k, "AUC": k / 10, "run": "?"} for s in hand for k in range(5)])
    rows = table.rows(hand, also=also)
    assert rows["AUC"].tolist() == pytest.approx((rows["seed"] / 10).tolist()) and "?" not in rows["run"].tolist()


def test_settings_that_collapse_are_left_out_where_they_may(home, monkeypatch, capsys):
    def collapse(config, corpus):
        if config.contrast == "triplet" and config.seed == 1:
            raise runs.Collapsed("collapsed: all one point", home / "x.collapsed")
        if config.lr == 0.5:
            raise TrainingError("loss is nan")
        return fit(config, corpus, quiet=True)

    fit = batch.fit
    monkeypatch.setattr(batch, "fit", collapse)
    work = Study("t", preset="smoke", seeds=[0, 1], jobs=1, changes=SMALL | {"objective": "none"})
    grid = {"fine": {}, "stuck": {"contrast": "triplet", "negatives": "hardest"}}
    with pytest.raises(TrainingError, match="stuck, seed 1: collapsed"):
        work.run(grid)
    assert list(work.run(grid, may_collapse=True)) == ["fine"] and work.collapsed == {"stuck": 1}
    assert "left out: stuck, of which 1 of 2 runs collapsed" in capsys.readouterr().out
    grid["broken"] = {"lr": 0.5}
    with pytest.raises(TrainingError, match="2 of 3 runs failed.*\nbroken, seed 0: loss is nan"):  # no collapse
        work.run(grid, may_collapse=True)


def test_traces_of_a_run_and_of_a_collapsed_one(home, monkeypatch):
    monkeypatch.setattr(collapse, "STUCK_STEPS", 3)
    build = runs.build

    def one_point(data):
        model = build(data)
        if data.config.negatives == "hardest":
            for head in (model.text_head, model.video_head):
                torch.nn.init.zeros_(head.f.weight).requires_grad_(False)
                torch.nn.init.ones_(head.f.bias)
        return model

    monkeypatch.setattr(loop, "build", one_point)
    work = Study("t", preset="smoke", seeds=[0], jobs=1, changes=SMALL | {"epochs": 3, "objective": "none"})
    grid = {"stuck": {"contrast": "triplet", "negatives": "hardest"}, "fine": {}}
    traces, ends = work.traces(grid)
    ends = ends.set_index("setting")
    assert ends.loc["stuck", "collapsed"] and not ends.loc["fine", "collapsed"]
    assert np.isnan(ends.loc["stuck", "t2v R@1"]) and ends.loc["fine", "t2v R@1"] >= 0
    assert ends.loc["stuck", "contrast"] == pytest.approx(0.4, abs=1e-3)
    assert ends.loc["stuck", "spread"] == pytest.approx(0, abs=1e-3)
    assert len(traces["stuck"]) == 3 and set(traces["fine"]) == {"step", *loop.TRACE}
    ablations.collapse(traces, "Collapse: shapes, smoke", 0.2)
