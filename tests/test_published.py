"""Published tables are not replaced by other results: what is refused, what may be made again, and where files go."""

import ast
import json
import re
import shutil
import subprocess
import types
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import write_corpus

from ssb import Study, configure, published
from ssb.config import ConfigError
from ssb.corpora.reading import CorpusError
from ssb.experiments import ablations, false_negatives, objectives, overview, transfer
from ssb.notebook import Parameters

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Corpora that are drawn once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def committed(home, cache):
    """The committed tables of the shapes corpus, in a home of their own; nothing is trained."""
    shutil.copytree(ROOT / "results" / "shapes", home / "results" / "shapes")
    (home / "results" / "cache").symlink_to(cache)
    return home


def refusal(study, grid, **arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        study.protect(study.planned(grid, **arguments))
    return str(caught.value)


def test_the_committed_tables_may_be_made_again(committed):
    """Under whichever VERSION they were made; and with more seeds and settings."""
    study = Study("table1", seeds=range(5))
    study.protect(study.planned(objectives.GRID))
    more = Study("table1", seeds=range(7))
    more.protect(more.planned(objectives.GRID | {"more": {"epochs": 1}}))
    for table, grid in (("table2f", ablations.table2f(study.base.batch)), ("table2a", ablations.table2a(study.corpus))):
        other = Study(table, preset="tuned")
        other.protect(other.planned(grid))
        other.grid(grid)
    five = Study("table11", preset="tuned", seeds=range(5))
    five.protect(five.planned({name: objectives.GRID[name] for name in ("none", "cross")}))
    assert "'cross' trained with other settings" in refusal(
        Study("emcl_inference", seeds=range(5), changes={"lr": 1.0}), objectives.GRID
    )


def test_other_results_for_a_published_table_are_refused_before_training(committed):
    before = {path: path.read_bytes() for path in committed.rglob("*.csv")}
    few = Study("table1", changes={"epochs": 12}, seeds=range(5))
    with pytest.raises(ConfigError) as caught:
        few.run(objectives.GRID)
    words = str(caught.value)
    assert words.startswith("results/shapes/table1.csv would be replaced by other results: 'cross', 'full', 'hybrid', ")
    assert "'identity', 'none' trained with other settings. Give this table another name" in words
    assert "-p table table1_epochs12" in words and "\n" not in words
    with pytest.raises(ConfigError, match="'none' trained with"):
        few.grid(objectives.GRID)  # shown before anything is trained
    assert "it has the seeds 2, 3, 4 too" in refusal(Study("table1", seeds=[0, 1]), objectives.GRID)
    none = {"none": {"objective": "none"}}
    assert "it has the settings 'cross', 'full', 'hybrid'" in refusal(Study("table1", seeds=range(5)), none)
    other = Study("table1", changes={"corpus_options": {"clips": 90}}, seeds=range(5))
    assert "it is of another corpus of this name" in refusal(other, objectives.GRID)
    new = Study("table1_epochs12", changes={"epochs": 12}, seeds=[0])
    new.protect(new.planned(objectives.GRID))
    with pytest.raises(ConfigError, match="call run first"):
        few.write(pd.DataFrame(), "table1_summary.csv")
    with pytest.raises(ConfigError, match="call run first"):
        few.figures
    assert not (committed / "results/runs").exists()
    assert before == {path: path.read_bytes() for path in committed.rglob("*.csv")}


def test_what_differs_is_named_where_the_run_is_still_there(committed):
    run = pd.read_csv(committed / "results/shapes/table1.csv").query("setting == 'none' and seed == 0")["run"].iloc[0]
    (committed / "results/runs" / run).mkdir(parents=True)
    config = Study("t").base.replace(objective="none").effective()
    (committed / "results/runs" / run / "config.json").write_text(config.model_dump_json())
    assert "'none' trained with epochs = 40, not 12" in refusal(
        Study("table1", changes={"epochs": 12}, seeds=range(5)), objectives.GRID
    )


def test_rows_are_not_lost_when_a_table_is_written(committed):
    study = Study("table1", seeds=range(5))
    study.plan = study.planned(objectives.GRID)
    rows = pd.read_csv(study.results / "table1.csv")
    study.write(rows, "table1.csv")
    with pytest.raises(ConfigError, match=r"would lose 5 of its 25 rows \(setting cross, seed 0\)"):
        study.write(rows[rows["setting"] != "cross"], "table1.csv")
    assert len(pd.read_csv(study.results / "table1.csv")) == 25


def test_sweeps_over_corpora_are_compared_rate_by_rate(committed):
    rows = pd.read_csv(committed / "results/shapes/false_negatives.csv")
    rates = sorted(rows["false_negatives"].unique())
    sweep = false_negatives.Sweep("false_negatives", rates[:2], preset="tuned")
    for study in sweep.studies.values():
        study.protect(study.planned(false_negatives.SWEEP))
    with pytest.raises(ConfigError, match="has the rates .* too"):
        sweep.run()
    with pytest.raises(ConfigError, match="other settings"):
        false_negatives.Sweep("false_negatives", rates, preset="tuned", changes={"epochs": 3}).run()


def test_pretrained_and_zero_shot_rows_are_compared_too(committed):
    """The names of the runs that others begin with change with VERSION; the rows are the same."""
    changes = {"corpus_options": {"clips": 2400, "false_negatives": 0.1, "seed": 1}}
    before = Study("pretraining_for_shapes", preset="tuned", changes=changes)
    study = Study("pretraining", preset="tuned")
    grid = transfer.pre_trained(["none", "cross"])
    plan = before.planned(grid)
    before.protect(plan)

    class Begun:
        def __init__(self, one):
            self.name, self.config = "x" * 12, one.config
            self.provenance = {"corpus_sha": before.corpus.fingerprint}

    begin = {
        "none, pre-trained": [Begun(one) for one in plan[:3]],
        "cross, pre-trained": [Begun(one) for one in plan[3:]],
    }
    tuned = transfer.fine_tuned(study.base, ["none", "cross"])
    study.protect(study.planned(tuned, begin))
    study.grid(tuned)
    assert "'cross, pre-trained' trained with" in refusal(
        study, tuned, begin={name: begin["none, pre-trained"] for name in begin}
    )
    ten = Study("table10", preset="tuned")
    zero = [published.finished(f"{one.setting}, zero-shot", Begun(one)) for one in plan]
    ten.protect([*zero, *ten.planned(grid)])
    assert "it has the settings 'cross, zero-shot', 'none, zero-shot' too" in refusal(ten, grid)


OTHERS = [
    ("table1_fig2b_weights", "figures/shapes/table1_fig2b_weights.png"),
    ("quickstart", "figures/shapes/quickstart_attention.png"),
    ("quickstart_retrieval", "figures/shapes/quickstart_retrieval.png"),
    ("emcl_layer", "results/shapes/emcl_layer_ranks.csv"),
    ("table12_power", "results/shapes/table12_power.csv"),
]


@pytest.mark.parametrize("table, taken", OTHERS)
def test_a_table_named_like_a_file_of_another_is_refused(committed, table, taken):
    (committed / "figures").symlink_to(ROOT / "figures")
    assert (committed / taken).exists()
    with pytest.raises(ConfigError) as caught:
        Study(table, seeds=range(5)).grid(objectives.GRID)
    words = str(caught.value)
    assert f"{taken.rpartition('.')[0]}." in words.replace(".pdf", ".png") or "does not name its runs" in words
    assert "another name, such as -p table " in words


def test_a_new_name_is_allowed_beside_any_other(committed):
    """Also as the beginning of the name of another table, whose files are its own."""
    (committed / "figures").symlink_to(ROOT / "figures")
    for table in ("mine", "table1_epochs12", "table", "table1_fig", "pretraining_for", "pretraining_from", "emc"):
        Study(table, seeds=[0]).grid(objectives.GRID)
    for table in ("emcl", "table1"):  # not made yet, where longer names are
        for path in (committed / "results/shapes").glob(f"{table}*"):
            if not path.stem.startswith(("emcl_inference", "emcl_trials", "table1_lambda10")):
                path.unlink()
        if (committed / "figures").is_symlink():
            (committed / "figures").unlink()
        for path in sorted((ROOT / "figures/shapes").glob(f"{table}_*")):
            if path.stem.startswith(("emcl_inference", "table1_lambda10")):
                (committed / "figures/shapes").mkdir(parents=True, exist_ok=True)
                shutil.copy(path, committed / "figures/shapes")
        Study(table, seeds=[0]).grid(objectives.GRID)


def test_another_kind_of_table_of_the_same_runs_is_refused(committed):
    """As `-p table table1` of the notebook of captions: the runs are those of Table 1."""
    study = Study("table1", seeds=range(5))
    study.plan = study.planned(objectives.GRID)
    rows = pd.read_csv(study.results / "table1.csv")
    with pytest.raises(ConfigError, match="write table1.csv first"):
        study.write(rows, "table1_summary.csv")
    with pytest.raises(ConfigError, match="write table1.csv first"):
        study.figures
    for frame in (rows.assign(CIDEr=1.0), rows.drop(columns="t2v R@1")):
        with pytest.raises(ConfigError, match="another kind of table: only one of the two has the column "):
            study.write(frame, "table1.csv")
    study.write(rows, "table1.csv")
    study.write(rows, "table1_summary.csv")
    assert study.figures


def test_a_published_table_may_be_made_again_by_this_version(hand):
    """Its columns are those of today's rows, but for those that come and go."""
    study = Study("t", preset="smoke", seeds=range(5), changes={"corpus_options": {"clips": 60}})
    for path in sorted((ROOT / "results").glob("*/table1.csv")):
        assert set(pd.read_csv(path, nrows=0)) ^ set(study.frame(hand)) <= published.ORIGIN


def code_cells(notebook: Path) -> list[str]:
    """The first declares the parameters, the second makes the study."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


OTHER = {"cases": 3, "effect": 0.5, "metrics": ["CIDEr"], "objectives": ["cross", "none"], "recipe": "hmdb51"}
OTHER |= {"decoder_corpus": "shapes", "steps": 900, "streams": ["motion"]}
COMPARED = {"table", "corpus", "preset", "seeds", "jobs", "changes"}  # by `Study` itself


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb"))[1:], ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_is_compared_with_that_of_the_published_table(notebook, committed, monkeypatch):
    """By the runs, where it is what a study or a sweep is made of; or else by `published.PARAMETERS`."""
    declared, setup = code_cells(notebook)[:2]
    defaults = {}
    exec(declared, defaults)
    code = "\n".join(code_cells(notebook))
    for name in [line.target.id for line in ast.parse(declared).body if line.target.id not in COMPARED]:
        if name not in published.PARAMETERS:
            made = r"(Study|Sweep)\((\*\*vars\(settings\)|[^\n]*\b" + name + r"\b)"
            assert re.search(made, code), f"{name}: give its default in published.PARAMETERS, and it to the Study"
            continue
        assert defaults[name] == published.PARAMETERS[name], f"{name} has another default in published.PARAMETERS"
        space = {**defaults, name: OTHER[name], "__builtins__": __builtins__}
        names = [line.target.id for line in ast.parse(declared).body]
        monkeypatch.setattr("ssb.notebook.parameters", lambda _: Parameters(**{name: space[name] for name in names}))
        exec(setup, space)
        if not (space["study"].results / f"{defaults['table']}.csv").exists():  # nothing is published yet
            assert space["study"].parameters == {name: OTHER[name]}
            continue
        with pytest.raises(ConfigError) as caught:
            space["study"].protect([], complete=False)
        words = f"{defaults['table']}.csv would be replaced by other results: it was made with {name} = "
        assert words in str(caught.value) and "-p table " in str(caught.value)


def test_a_table_of_other_parameters_has_them_and_may_be_made_again(committed):
    plan = {"none": {"objective": "none"}}
    first = Study("mine", seeds=[0], effect=0.5)
    first.plan = first.planned(plan)
    row = {"setting": "none", "seed": 0, "run": "r", "config_sha": first.plan[0].config.sha}
    first.write(pd.DataFrame([row]), "mine.csv")
    assert pd.read_csv(first.results / "mine.csv")["parameters"].tolist() == ['{"effect": 0.5}']
    again = Study("mine", seeds=[0], effect=0.5)
    again.protect(again.planned(plan))
    again.plan = again.planned(plan)
    again.write(pd.DataFrame([row]), "mine.csv")
    words = refusal(Study("mine", seeds=[0]), plan)
    assert "it was made with effect = 0.5, not 1.0. Give this table another name, such as -p table mine_seeds0" in words
    assert "effect = 0.5, not 2.0" in refusal(Study("mine", seeds=[0], effect=2.0), plan)
    with pytest.raises(ConfigError, match="efect is no parameter of a study"):
        Study("mine", seeds=[0], efect=2.0)


def test_the_figures_of_one_run_have_its_name_where_it_is_another(committed):
    corpus = Study("t").corpus

    def place(preset="laptop", corpus=corpus, **changes):
        config = configure(preset, "shapes", **changes).effective()
        return published.figures_of("quickstart", types.SimpleNamespace(config=config, name="x" * 12), corpus, preset)

    assert place() == (committed / "figures/shapes", "quickstart")
    own = replace(corpus, name="mine")  # a folder without tables: another of its name may have come before
    config = configure("laptop", "shapes").replace(corpus=str(committed / "mine"))
    run = types.SimpleNamespace(config=config.effective(), name="x" * 12)
    assert published.figures_of("quickstart", run, own, "laptop")[1] == f"quickstart_{'x' * 12}"
    assert place(objective="cross", seed=0)[1] == "quickstart"
    for changes in ({"objective": "none"}, {"seed": 1}, {"epochs": 3}, {"corpus_options": {"clips": 90}}):
        assert place(**changes)[1] == f"quickstart_{'x' * 12}"
    other = replace(corpus, captions=corpus.captions.assign(text="a circle"))
    assert place(corpus=other)[1] == f"quickstart_{'x' * 12}"
    assert place("smoke", epochs=1) == (committed / "figures/shapes-smoke", "quickstart")
    with pytest.raises(ConfigError, match="named like the results of the smoke preset"):
        place(corpus=replace(corpus, name="mine-smoke"))


@pytest.mark.parametrize("table", ["../../x", "/tmp/x", "", ".hidden", "a/b", "a b", "x" * 300, "a\n"])
def test_a_table_is_a_plain_file_name(home, table):
    with pytest.raises(ConfigError, match="table =.* wanted a plain name"):
        Study(table, preset="smoke")


def test_the_file_of_a_study_is_a_plain_name(home):
    study = Study("t", preset="smoke", changes={"corpus_options": {"clips": 60}})
    with pytest.raises(ConfigError, match="wanted a plain name"):
        study.write(pd.DataFrame(), "../t.csv")
    assert not (home / "results/t.csv").exists()


@pytest.mark.parametrize(
    "name, words",
    [
        ("mine-smoke", "named like the results of the smoke preset on 'mine'"),
        ("shapes", "named like a corpus of the library"),
        ("runs", "named like results/runs"),
        ("my corpus", "wanted a plain name"),
        (".mine", "wanted a plain name"),
    ],
)
def test_two_corpora_never_share_a_folder(home, tmp_path, name, words):
    folder = write_corpus(tmp_path / name)
    with pytest.raises(ConfigError, match=words):
        Study("t", str(folder), preset="smoke")


def test_a_second_corpus_of_the_same_folder_name_is_refused(home, tmp_path):
    first, second = write_corpus(tmp_path / "a" / "mine"), write_corpus(tmp_path / "b" / "mine")
    text = (second / "captions.csv").read_text()
    (second / "captions.csv").write_text(text.replace("a red", "a green"))
    study = Study("t", str(first), seeds=[0])
    plan = study.planned({"none": {"objective": "none"}})
    study.results.mkdir(parents=True)
    row = {"setting": "none", "seed": 0, "run": "r", "config_sha": plan[0].config.sha}
    pd.DataFrame([row | {"corpus_sha": study.corpus.fingerprint}]).to_csv(study.results / "t.csv")
    study.protect(plan)
    words = refusal(Study("t", str(second), seeds=[0]), {"none": {"objective": "none"}})
    assert "another corpus of this name" in words and "rename the folder of one of the two corpora" in words


def test_the_seed_is_no_change(home):
    with pytest.raises(ConfigError, match=r"give seeds = \[5\]"):
        Study("t", preset="smoke", changes={"seed": 5})
    study = Study("t", preset="smoke", changes={"corpus_options": {"clips": 60}})
    for call in (study.grid, study.run, study.traces):
        with pytest.raises(ConfigError, match="'other' changes the seed"):
            call({"other": {"seed": 3}})


def test_one_test_clip_is_refused_before_training(home, tmp_path):
    folder = write_corpus(tmp_path / "mine")
    split = '{"train": %s, "val": ["clip09", "clip10"], "test": ["clip11"]}' % str([f"clip{i:02d}" for i in range(9)])
    (folder / "split.json").write_text(split.replace("'", '"'))
    with pytest.raises(CorpusError, match="mine: 1 clip in the test split"):
        Study("t", str(folder), preset="smoke")


# what is committed


def test_no_two_summaries_are_equal():
    seen = {}
    for path in sorted((ROOT / "results").glob("*/*_summary.csv")):
        assert path.read_bytes() not in seen, f"{path} is {seen[path.read_bytes()]}"
        seen[path.read_bytes()] = path


def test_every_committed_table_is_one_that_a_notebook_writes():
    names = set()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        book = json.loads(notebook.read_text(encoding="utf-8"))
        code = "".join(next(cell for cell in book["cells"] if cell["cell_type"] == "code")["source"])
        default = code.partition('table: str = "')[2].partition('"')[0]
        for name in (Path(path).name for path in book["metadata"]["ssb"]["writes"] if path.endswith(".csv")):
            names |= {name.replace(default, title, 1) for title in [default, *overview.TABLES] if default in title}
    for path in sorted((ROOT / "results").glob("*/*.csv")):
        stem, _, other = path.stem.partition("_for_")
        assert f"{stem}_for_shapes.csv" if other else path.name in names, f"{path}: no notebook writes it"
        if path.stem.startswith("pretraining") and path.stem in overview.TABLES:
            from_ = list((ROOT / "results").glob(f"*/{path.stem}_for_{path.parent.name}.csv"))
            assert from_, f"{path}: what it was pre-trained on is not there"


@pytest.mark.parametrize(
    "path",
    ["results/shapes/.table1.ab12cd-12-abcdef.csv", "results/.x", "figures/shapes/.a.png", "results/x-smoke/t.csv"],
)
def test_drafts_and_smoke_results_are_ignored(path):
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("no git repository")
    assert done.returncode == 0


def test_a_study_writes_no_file_of_another_table(home):
    study = Study("mine", preset="smoke")
    with pytest.raises(ConfigError, match="the file name 'table1.csv': one of the table mine begins with mine_"):
        study.write(pd.DataFrame({"a": [1]}), "table1.csv")
    assert not list(home.glob("results/**/table1.csv"))
