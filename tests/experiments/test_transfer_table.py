"""The paper's rows as printed and ours below them, against the csv module, numpy and direct bootstraps."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import made
from matplotlib.collections import PathCollection

import ssb
from ssb import paper as paper_module
from ssb import study
from ssb.corpora.load import CORPORA
from ssb.experiments import transfer
from ssb.metrics import retrieval

PRINTED = list(csv.DictReader((Path(ssb.__file__).parent / "paper.csv").read_text().splitlines()))
SURE = ("R@1", "R@1 sd", "R@1 low", "R@1 high")


def cells(table: str) -> dict[tuple[str, ...], float]:
    """(method, pretrain, dataset, "way metric") → number, read without pandas."""
    rows = [row for row in PRINTED if row["table"] == table]
    return {(r["row"], r["group"], r["dataset"], f"{r['direction']} {r['metric']}"): float(r["value"]) for r in rows}


@pytest.mark.parametrize("values", [{}, {"table": "cost"}, {"table": "3", "direction": "t2v", "group": ""}])
def test_rows_of_the_file(values):
    """Against the csv module: the rows that agree in every given column, in the order of the file."""
    wanted = [row for row in PRINTED if all(row[column] == value for column, value in values.items())]
    results = paper_module.rows(**values)
    assert [*results["row"]] == [row["row"] for row in wanted] and [*results["group"]] == [
        row["group"] for row in wanted
    ]
    assert results["value"].tolist() == [float(row["value"]) for row in wanted] and len(wanted) > 5


@pytest.mark.parametrize("table", paper_module.TABLES)
def test_baselines_are_the_numbers_of_the_file_and_nothing_else(table):
    frame = paper_module.baselines(table)
    names = [name for name in frame if name not in ("method", "pretrain", "dataset", "source")]
    results = {
        (row["method"], row["pretrain"], row["dataset"], name): row[name]
        for _, row in frame.iterrows()
        for name in names
        if not np.isnan(row[name])
    }
    assert results == cells(table) and len(results) > 3
    assert not frame[names].isna().all().any(), "a metric that the table does not print has no column"
    assert frame["source"].str.len().min() > 5


@pytest.mark.parametrize("table", paper_module.TABLES)
def test_baselines_are_in_the_papers_order_and_its_own_rows_last(table):
    frame = paper_module.baselines(table)
    order = list(dict.fromkeys((r["row"], r["group"]) for r in PRINTED if r["table"] == table))
    order = [r for r in order if "Support-Set" not in r[0]] + [r for r in order if "Support-Set" in r[0]]
    assert list(zip(frame["method"], frame["pretrain"])) == order


def test_baselines_of_the_tables_by_hand():
    three, five = (paper_module.baselines(table).set_index(["method", "pretrain"]) for table in ("3", "5"))
    assert three.loc[("Support-Set", "howto100m"), ["t2v R@1", "v2t R@1"]].tolist() == [30.1, 28.5]
    assert three.loc[("HT100M", ""), "t2v R@1"] == 12.1 and np.isnan(three.loc[("HT100M", ""), "v2t R@1"])
    assert "t2v R@50" not in three and "t2v R@10" not in five
    assert five.loc[("CE", ""), "v2t R@50"] == 90.9 and np.isnan(five.loc[("HSE", ""), "t2v R@50"])
    assert "howto100m?" in paper_module.baselines("4")["pretrain"].tolist(), "what the source leaves open stays open"
    assert " | " in paper_module.baselines("4")["source"].iloc[-1], "its recalls have two sources"
    assert [paper_module.recalls_of(t) for t in paper_module.TABLES] == [(1, 5, 10)] * 2 + [(1, 5, 50)] + [
        (1, 5, 10)
    ] * 2
    message = "table = '2a' does not compare methods by dataset; wanted one of 3, 4, 5, 6, 10"
    with pytest.raises(ValueError, match=message):
        paper_module.baselines("2a")


def test_every_corpus_has_a_table():
    wanted = {name: "3" for name in (*CORPORA, "my/folder")}
    wanted |= {"vatex": "4", "activitynet": "5", "activitynet_val2": "5", "msvd": "6"}
    wanted |= {"flickr8k": "", "flickr8k_confirm": ""}
    assert {name: paper_module.record(name).retrieval_table for name in wanted} == wanted
    tested = [record for record in CORPORA.values() if record.published]
    assert [record.name for record in tested] == ["msrvtt_1ka", "msvd", "activitynet", "vatex"]
    for record in tested:
        assert set(paper_module.baselines(record.retrieval_table)["dataset"]) == {record.published}


@pytest.fixture
def uneven(home):
    """Two settings of two seeds whose ranks differ by way; clips of one to six captions, so that drawing clips is not
    drawing captions, and video→text has fewer queries."""
    rng = np.random.default_rng(1)
    clip = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    runs = {}
    for name in ("none", "cross"):
        runs[name] = []
        for seed in (0, 1):
            run = made(home, f"{name}{seed}", name, seed, np.ones(len(clip)), clip)
            ways = {"t2v": rng.choice([1, 2, 7, 30, 70], 40)[clip], "v2t best-caption": rng.integers(1, 20, 40)}
            ways |= {"v2t max-per-video": rng.integers(1, 9, 40)}
            np.savez(
                run.folder / "ranks.npz", clip=clip, **{way: results.astype(float) for way, results in ways.items()}
            )
            runs[name].append(run)
    return runs


def test_ours_by_hand(uneven):
    frame = transfer.ours(uneven, (1, 5, 50))
    assert frame["method"].tolist() == ["none", "cross"] and frame["seeds"].tolist() == [2, 2]
    protocols = {"t2v": "t2v", "v2t": "v2t best-caption", "v2t max-per-video": "v2t max-per-video"}
    for (_, row), members in zip(frame.iterrows(), uneven.values()):
        for way, protocol in protocols.items():
            results = [run.ranks[protocol] for run in members]
            for k in (1, 5, 50):
                wanted = np.mean([100 * sum(rank <= k for rank in ranks) / len(ranks) for ranks in results])
                assert row[f"{way} R@{k}"] == pytest.approx(wanted)
            assert row[f"{way} MdR"] == np.mean([np.median(ranks) for ranks in results])
            one, other = (100 * np.mean(ranks <= 1) for ranks in results)
            assert row[f"{way} R@1 sd"] == pytest.approx(abs(one - other) / 2**0.5)
    assert not [name for name in frame if "R@10" in name or "MnR" in name]


def test_intervals_are_bootstraps_over_clips(uneven):
    frame = transfer.ours(uneven).set_index("method")
    clip = uneven["none"][0].ranks["clip"]
    for setting, members in uneven.items():
        ranks = np.stack([run.ranks["t2v"] for run in members])
        interval = tuple(frame.loc[setting, ["t2v R@1 low", "t2v R@1 high"]])
        assert interval == retrieval.bootstrap(ranks, "R@1", clip) != retrieval.bootstrap(ranks, "R@1")
        for way, protocol in (("v2t", "v2t best-caption"), ("v2t max-per-video", "v2t max-per-video")):
            ranks = np.stack([run.ranks[protocol] for run in members])
            assert tuple(frame.loc[setting, [f"{way} R@1 low", f"{way} R@1 high"]]) == retrieval.bootstrap(ranks, "R@1")


def test_one_seed_has_no_deviation(uneven):
    frame = transfer.ours({name: members[:1] for name, members in uneven.items()})
    assert frame["t2v R@1 sd"].isna().all() and frame["t2v R@1 low"].notna().all()


@pytest.mark.parametrize("table", paper_module.TABLES)
def test_rows_are_blank_where_there_is_no_number(uneven, table):
    frame = transfer.with_paper_rows(uneven, table, "shapes")
    paper, mine = frame[frame["from"] == "paper"], frame[frame["from"] == "ours"]
    assert frame["from"].tolist() == ["paper"] * len(paper) + ["ours", "ours"]
    names = [name for name in frame if re.match(r"(t2v|v2t)", name)]
    assert mine[names].notna().all().all() and set(mine["dataset"]) == {"shapes"}
    numbers = cells(table)
    for _, row in paper.iterrows():
        for name in names:
            wanted = numbers.get((row["method"], row["pretrain"], row["dataset"], name))
            assert row[name] == wanted if wanted is not None else np.isnan(row[name]), name
    printed = {f"{way} {name}" for way in transfer.PROTOCOLS for name in SURE}
    assert printed < set(names) and ("t2v R@50" in names) == (table == "5") != ("t2v R@10" in names)


def test_what_cannot_be_compared_is_refused(uneven, home):
    with pytest.raises(ValueError, match="no run to compare with the paper's rows"):
        transfer.with_paper_rows({}, "3", "shapes")
    with pytest.raises(ValueError, match="no run of 'full' to compare"):
        transfer.with_paper_rows(uneven | {"full": []}, "3", "shapes")
    odd = made(home, "odd", "full", 0, np.ones(9), np.arange(9))
    with pytest.raises(ValueError, match=f"'full', run {odd.name}: its test queries differ"):
        transfer.with_paper_rows(uneven | {"full": [odd]}, "3", "shapes")


@pytest.mark.parametrize(
    "corpus, table, same",
    [("msrvtt_1ka", "3", 1), ("msrvtt_1ka", "10", 1), ("msrvtt_1ka_7k", "3", 0), ("msrvtt1k", "3", 0),
     ("activitynet", "5", 1), ("activitynet_val2", "5", 0), ("msvd", "6", 1), ("msvd", "3", 0), ("shapes", "3", 0)],
)  # fmt: skip
def test_the_title_names_the_data_of_the_papers_rows(uneven, corpus, table, same):
    frame = transfer.with_paper_rows(uneven, table, corpus)
    assert transfer.same_data(frame) == same
    html = transfer.show(frame, "Title").to_html()
    assert ("OTHER DATA" in html) != same and "Title; " in html
    figure = transfer.dots(uneven, table, "Title", corpus)
    drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert drawn[-2:] == ["none", "cross"] and (len(drawn) == len(frame) if same else len(drawn) == 2)
    assert ("without the paper's rows" in figure.get_suptitle()) != same
    assert figure.axes[1].get_xlabel() == ("text→video R@50 (%)" if table == "5" else "text→video R@10 (%)")


def test_displayed_in_grey_bold_and_blank(uneven):
    frame = transfer.with_paper_rows(uneven, "3", "shapes")
    text = transfer.printed(frame)
    assert text.shape == (16, 3 + 3 * 6) and not text.isin(["nan", "<NA>"]).any().any()
    head = "video→text (ours: best-caption)"
    translated = text.loc[frame["method"] == "VidTranslate"].iloc[0]
    assert translated["text→video"].tolist() == ["14.7", "", "", "", "52.8", ""] and set(translated[head]) == {""}
    bold = transfer.best(frame, text)
    assert not bold[frame["from"] == "paper"].any().any() and not bold[""].any().any()
    first, second = (transfer.ours({name: uneven[name]}).iloc[0] for name in ("none", "cross"))
    for way, name in transfer.HEADS.items():
        for metric in ("R@1", "R@5", "R@10", "MdR"):
            better = second[f"{way} {metric}"] - first[f"{way} {metric}"]
            better *= -1 if metric == "MdR" else 1
            assert bold[name, metric].tolist()[-2:] == [better <= 0, better >= 0]
        assert not bold[name, "sd"].any()
    html = transfer.show(frame, "T").to_html()
    grey = re.search(r"([^}]*)\{\s*opacity: 0.7;", html)[1]
    assert {int(row) for row in re.findall(r"row(\d+)_col", grey)} == set(range(14))


def test_a_dot_stands_at_each_known_number(uneven):
    figure = transfer.dots(uneven, "5", "T", "activitynet")
    frame = paper_module.baselines("5")
    for axis, metric in zip(figure.axes, ("R@1", "R@50")):
        dots = [
            np.ma.filled(dot.get_offsets(), np.nan)[0] for dot in axis.collections if isinstance(dot, PathCollection)
        ]
        results = {(x, y) for x, y in dots if not np.isnan(x)}
        wanted = {(x, y) for y, x in enumerate(frame[f"t2v {metric}"]) if not np.isnan(x)}
        assert {(round(float(x), 6), int(y)) for x, y in results} == wanted
        assert len(wanted) == (5 if metric == "R@1" else 4)


def test_the_file_tells_the_papers_rows_from_ours(uneven, home):
    table = study.Study("pretraining", preset="smoke", seeds=[0], changes={"corpus_options": {"clips": 60}})
    frame = transfer.with_paper_rows(uneven, "6", "shapes")
    table.write(frame.round(2), f"{table.table}_with_paper.csv")
    path = home / "results" / "shapes-smoke" / "pretraining_with_paper.csv"
    assert "results/shapes-smoke/pretraining_with_paper.csv" in table.written()
    back = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert back["from"].tolist() == ["paper"] * 6 + ["ours"] * 2 and "seconds" not in back
    rows = back.set_index(["method", "pretrain"])
    assert rows.loc[("Support-Set", "howto100m"), "t2v R@1"] == "28.4"
    assert rows.loc[("CE", ""), "v2t R@1"] == "" == rows.loc[("CE", ""), "t2v R@1 low"]
    assert float(rows.loc[("none", ""), "t2v R@1"]) == pytest.approx(frame["t2v R@1"].iloc[-2], abs=0.005)
