"""The list of what the study is made of, against the notebooks and against what is committed under results/ and
figures/."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import DATA

from ssb import __main__, files
from ssb.config import ConfigError
from ssb.corpora.load import CORPORA
from ssb.corpora.reading import CorpusError
from ssb.study import Study
from ssb.training.runs import run_name
from ssb.whole import committed, contents, executed
from ssb.whole.contents import STUDY

ROOT = Path(__file__).parents[2]
each_entry = pytest.mark.parametrize("entry", STUDY, ids=lambda entry: entry.name)


def notebook(entry) -> dict:
    return json.loads((ROOT / "notebooks" / f"{entry.notebook}.ipynb").read_text(encoding="utf-8"))


def test_every_notebook_is_in_the_list_and_no_entry_twice():
    assert {entry.notebook for entry in STUDY} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    names = [entry.name for entry in STUDY]
    assert len(set(names)) == len(names) and {entry.corpus for entry in STUDY} <= CORPORA.keys()
    wanted = "01 02 03 04 05 06 07 08 09 11 12 16 18 21 22 23 24 25 26 27 28".split()
    assert sorted({entry.notebook[:2] for entry in STUDY if entry.corpus == "flickr8k"}) == wanted


@each_entry
def test_an_entry_is_what_its_notebook_declares(entry, monkeypatch):
    """Its parameters, and the tables of the files that the notebook's own tests expect of it."""
    monkeypatch.setenv("SSB_HOME", str(ROOT))
    usual = executed.values(entry._replace(parameters={}))
    assert entry.parameters.keys() <= usual.keys()
    assert all(usual[name] != value for name, value in entry.parameters.items()), "as in the notebook"
    stems = {Path(path).stem for path in notebook(entry)["metadata"]["ssb"]["writes"]}
    names = [name for _, name in entry.tables]
    if "table" in usual:
        assert names[-1 if entry.notebook == "18_emcl_layer" else 0] == entry.parameters.get("table", usual["table"])
        stems = {stem.replace(usual["table"], entry.parameters.get("table", usual["table"]), 1) for stem in stems}
    stems = {re.sub("_for_shapes$", f"_for_{entry.corpus}", stem) for stem in stems}
    owned = {stem: max((n for n in names if (stem + "_").startswith(f"{n}_")), key=len, default="") for stem in stems}
    assert all(owned.values()) and set(owned.values()) == set(names)


@each_entry
def test_smoke_is_for_every_entry(entry, monkeypatch):
    monkeypatch.setenv("SSB_HOME", str(ROOT))
    small, given = executed.smoke(entry), notebook(entry)["metadata"]["ssb"]["smoke"]
    values = executed.values(small)
    assert small.parameters["preset"] == "smoke" and small.name.startswith(f"{entry.corpus}-smoke/")
    assert values.get("corpus", entry.corpus) == entry.corpus and values.get("seeds") == given.get(
        "seeds", values.get("seeds")
    )
    options = values.get("changes", {}).get("corpus_options")
    assert options == (None if CORPORA[entry.corpus].dataset else given.get("changes", {}).get("corpus_options"))
    if "pretrain_changes" in values:
        clips = values["pretrain_changes"].get("corpus_options", {}).get("clips")
        assert clips == (100 if values["pretrain"] == "shapes" else None)


def test_all_that_is_committed_is_of_an_entry():
    """And what lies beside the folders of the corpora is measured by `ssb bench` and `ssb cost`."""
    for path in [*(ROOT / "results").glob("*/[!.]*"), *(ROOT / "figures").glob("*/[!.]*")]:
        folder = path.parent.name
        if folder not in ("runs", "cache", "executed", "report") and not folder.endswith("-smoke"):
            assert contents.owner(folder, path.stem), f"{path}: no entry of ssb/whole/contents.py writes it"
    commands = [*__main__.COMMANDS.values(), *__main__.BENCHMARKS.values()]
    helps = [options.get("help", "") for command in commands for _, options in command.arguments]
    measured = set(re.findall(r"default: results/(\w+)\.csv", " ".join(helps)))
    assert {path.stem for path in (ROOT / "results").glob("[!.]*.csv")} == measured
    drawn = {path.stem for path in (ROOT / "figures").glob("[!.]*.*")}
    assert drawn == {"scale", "finding", "overview"}  # 22_overview draws the last two


@pytest.mark.parametrize(
    "folder, stem, table",
    [
        ("shapes", "emcl_inference_orders", "emcl_inference"),
        ("shapes", "emcl_layer_ranks", "emcl"),
        ("shapes-smoke", "emcl_trials_validation", "emcl_trials"),
        ("shapes", "table1_fig2b_weights", "table1"),
        ("flickr8k", "table1_tuned_summary", "table1_tuned"),
        ("flickr8k_confirm", "table2a", ""),
        ("shapes", "table1x", ""),
        ("msrvtt1k_odd", "pretraining_for_msrvtt1k_even", "pretraining_for_msrvtt1k_even"),
    ],
)
def test_a_file_belongs_to_the_longest_name(folder, stem, table):
    assert contents.owner(folder, stem) == table


def test_entries_are_chosen_by_table_notebook_corpus_and_preset():
    def chosen(*names, **how):
        return [entry.name for entry in contents.chosen(names, **how)]

    assert chosen() == [entry.name for entry in STUDY]
    assert chosen("table1", corpus="shapes") == ["shapes/01_table1_objectives"]
    assert chosen("table1_tuned", preset="tuned")[0] == "shapes/01_table1_objectives_table1_tuned"
    assert chosen("table1", "leak", corpus="shapes") == ["shapes/01_table1_objectives", "shapes/26_leak"]
    assert chosen("01_table1_objectives", corpus="msrvtt1k")[2:] == ["msrvtt1k/01_table1_objectives_table1_lambda10"]
    assert chosen("shapes/26_leak_leak_tuned") == ["shapes/26_leak_leak_tuned"]
    assert chosen("table1", preset="smoke") == chosen("table1", preset="laptop")
    with pytest.raises(ConfigError, match="the study has no leak on vidvrd; "):
        contents.chosen(["table2a", "leak"], corpus="vidvrd")


# The committed tables


@pytest.fixture
def fresh(home, tmp_path_factory, monkeypatch):
    """A fresh clone: the committed results, and nothing executed."""
    for kind in ("results", "figures"):
        ignored = shutil.ignore_patterns("runs", "cache", "executed", "report", "*-smoke", ".*", "*.pdf", "*.png.*")
        shutil.copytree(ROOT / kind, home / kind, ignore=ignored)
    (home / "results" / "cache").symlink_to(tmp_path_factory.getbasetemp())
    if DATA.is_dir():
        monkeypatch.setenv("SSB_DATA", str(DATA))
    return home


def wrong_rows(entry, kind: type[Study] = Study) -> tuple[bool, list[str]]:
    """Whether all of an entry's tables have rows of this version; and of those that have some, what is not as the list
    makes it, in words."""
    current, wrong = True, []
    for study, runs, complete in committed.plans(entry, kind):
        path = study.results / f"{study.table}.csv"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column, value in study.part.items():
            frame = frame[pd.to_numeric(frame[column]) == value]
        now = {(one.config.sha, str(one.seed)) for one in runs}
        named = {(one.setting, one.config.sha) for one in runs}
        if "config_sha" not in frame:  # it names runs of another table
            current &= set(frame["run"]) <= {run_name(one.config, study.corpus) for one in runs}
            continue
        if not any(frame["config_sha"].isin([sha for sha, _ in now])):
            current = False
            continue
        rows = [row for row in frame.to_dict("records") if row["config_sha"]]
        found = {(row["config_sha"], row["seed"]) for row in rows}
        wrong += [f"{path.name} has {key}" for key in found - now if complete]
        wrong += [f"{path.name} lacks {key}" for key in now - found]
        settings = {(row["setting"], row["config_sha"]) for row in rows if row["setting"] in dict(named)}
        wrong += [f"{path.name}: {setting} is {sha}" for setting, sha in settings - named]
    return current, wrong


COMMITTED = [
    entry
    for entry in STUDY
    if any((ROOT / "results").glob(f"{files.label(entry.corpus, entry.preset)}/{entry.tables[0][1]}.csv"))
]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[] if "shapes/01" in entry.name else pytest.mark.slow)
        for entry in COMMITTED
    ],
)
def test_the_committed_tables_are_what_the_list_makes(entry, fresh):
    """Settings, seeds and config_sha."""
    lacking = executed.lacking(entry)
    try:
        current, wrong = wrong_rows(entry, committed.AbsentStudy if lacking else Study)
    except CorpusError as error:  # of the annotations alone, or of nothing, little can be planned
        if lacking or "no feature stream" in str(error):
            pytest.skip(f"{error}; set SSB_DATA")
        raise
    assert not wrong and current and committed.judged(entry) == ("done", "as committed")


def test_the_plan_of_a_table_is_whole_but_where_it_depends_on_results(home):
    """Those of transfer are planned apart."""
    study = Study("t", changes={"corpus_options": {"clips": 60}})  # nothing is trained
    names = {
        table
        for entry in STUDY
        for _, table in entry.tables
        if not {"pretrain", "trained_on"} & executed.values(entry).keys()
    }
    incomplete = {name for name in names if not committed.grid_of(name, study)[1]}
    assert incomplete == {"quickstart", "figure5", "overview", "finding", "looks", "looks_tuned", "emcl", "together"}


def test_a_changed_row_of_a_committed_table_is_stale(fresh):
    entry = contents.chosen(["table1"], "shapes")[0]
    path = fresh / "results/shapes/table1.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = rows.copy()
    changed.loc[0, "config_sha"] = "0" * 12
    changed.to_csv(path, index=False)
    assert committed.judged(entry) == ("stale", f"'{rows['setting'][0]}' trained with other settings")
    rows[rows["seed"] != "4"].to_csv(path, index=False)
    assert committed.judged(entry) == ("stale", "table1.csv lacks 5 of its runs, such as 'cross'")
    pd.concat([rows, rows[:1].assign(seed="9")]).to_csv(path, index=False)
    assert committed.judged(entry) == ("stale", "it has the seeds 9 too")
    path.unlink()
    assert committed.judged(entry) == ("not yet made", "")


def test_a_committed_table_without_a_setting_is_stale(fresh):
    """Also where a setting may be left out since its runs collapsed: of what is committed none did."""
    path = fresh / "results/shapes/constants.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows[rows["setting"] != "λ = 1, T = 1"].to_csv(path, index=False)
    why = "constants.csv lacks 3 of its runs, such as 'λ = 1, T = 1'"
    assert committed.judged(contents.chosen(["constants"], "shapes")[0]) == ("stale", why)


def test_without_the_files_of_its_corpus_a_table_is_judged_by_its_rows(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    for table in ("table1", "figure5"):  # of which the second names runs alone
        assert committed.judged(contents.chosen([table], "msrvtt1k")[0]) == ("done", "as committed")
    path = fresh / "results/msrvtt1k/table1.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows.assign(config_sha="0" * 12).to_csv(path, index=False)
    assert committed.judged(contents.chosen(["table1"], "msrvtt1k")[0])[0] == "stale"
    strength = contents.chosen(["strength"], "flickr8k")[0]  # whose epochs are as long as the corpus
    why = f"committed; nothing but its seeds is checked without {tmp_path / 'flickr8k'}"
    assert committed.judged(strength) == ("done", why)
    path = fresh / "results/flickr8k/strength.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows[rows["seed"] != "2"].to_csv(path, index=False)
    assert committed.judged(strength) == ("stale", "strength.csv has the seeds [0, 1], the list [0, 1, 2]")


@pytest.mark.parametrize("name", ["results/shapes/table1_summary.csv", "figures/shapes/table1.png"])
def test_a_committed_table_without_one_of_its_files_is_stale(name, fresh):
    (fresh / name).unlink()
    assert committed.judged(contents.chosen(["table1"], "shapes")[0]) == ("stale", f"there is no {name}")


@pytest.mark.parametrize(("table", "figures"), [("quickstart", "figures/shapes"), ("overview", "figures")])
def test_figures_alone_say_only_that_they_are_there(table, figures, fresh):
    entry = contents.chosen([table], "shapes")[0]
    assert committed.judged(entry) == ("done", "figures alone")
    shutil.rmtree(fresh / figures)
    assert committed.judged(entry) == ("not yet made", "")
