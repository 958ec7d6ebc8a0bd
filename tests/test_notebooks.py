"""Every notebook, run by papermill as a user would; how notebooks must look in the repository."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = '{"epochs": 1, "corpus_options": {"clips": 90, "captions": 2, "false_negatives": 0.05}}'
SMALLER = '{"epochs": 1, "corpus_options": {"clips": 90, "captions": 2}}'
TINY = ["-p", "changes", SMALL, "-p", "seeds", "[0]", "-p", "jobs", "1"]
OTHER = '{"corpus_options": {"clips": 100, "captions": 2, "false_negatives": 0.05, "seed": 1}}'
STORIES = '{"batch": 6, "corpus_options": {"videos": 36, "events": 4, "captions": 2, "false_negatives": 0.05}}'
ARGUMENTS = {
    "00_quickstart": ["-p", "changes", SMALL],
    "01_table1_objectives": ["-p", "changes", SMALL, "-p", "seeds", "[0,1]", "-p", "jobs", "1"],
    "02_is_it_trained": ["-p", "changes", SMALL, "-p", "seeds", "[0]", "-p", "jobs", "1", "-p", "corpus", "shapes"],
    "10_false_negatives": [
        "-p",
        "changes",
        SMALLER,
        "-p",
        "dials",
        "[0.05,0.2]",
        "-p",
        "seeds",
        "[0]",
        "-p",
        "jobs",
        "1",
    ],
    "13_tables3to6_pretraining": [*TINY, "-p", "pretrain_changes", OTHER],
    "14_table10_zero_shot": [*TINY, "-p", "trained_changes", OTHER],
    "19_vt_twins_s2dtw": ["-p", "changes", STORIES, "-p", "seeds", "[0]", "-p", "jobs", "1"],
    "20_together": [*TINY, "-p", "video_changes", STORIES],
    "12_significance": ["-p", "changes", SMALL, "-p", "seeds", "[0,1]", "-p", "jobs", "1"],
    "21_overview": [],
    "15_figure5_retrieved": ["-p", "changes", SMALL, "-p", "jobs", "1"],
    "16_tables7to9_captioning": ["-p", "changes", SMALL, "-p", "seeds", "[0]", "-p", "metrics", '["BLEU-4","CIDEr"]'],
    "17_table11_actions": ["-p", "changes", SMALL, "-p", "seeds", "[0]", "-p", "jobs", "1"],
    **{
        name: TINY
        for name in (
            "03_table2a_video_encoder",
            "04_table2b_aggregation",
            "05_table2c_text_encoder",
            "06_table2d_text_decoder",
            "07_table2e_contrastive_loss",
            "08_table2f_support_set",
            "09_lambda_temperature",
            "11_same_meaning",
            "18_emcl",
        )
    },
}
HERE = "results/shapes-smoke", "figures/shapes-smoke"


def wrote(table: str) -> list[str]:
    """What every notebook of a table of settings leaves."""
    return [*(f"{HERE[0]}/{table}{part}.csv" for part in ("", "_summary", "_claims")), f"{HERE[1]}/{table}.png"]


WRITES = {
    "00_quickstart": ["figures/shapes-smoke/quickstart_retrieval.png", "figures/shapes-smoke/quickstart_attention.pdf"],
    "01_table1_objectives": [
        "results/shapes-smoke/table1.csv",
        "results/shapes-smoke/table1_summary.csv",
        "figures/shapes-smoke/table1.png",
        "figures/shapes-smoke/table1_fig2b_weights.pdf",
        "figures/shapes-smoke/table1_fig3_attention.png",
    ],
    "02_is_it_trained": ["results/shapes-smoke/heads.csv", "figures/shapes-smoke/heads.pdf"],
    "07_table2e_contrastive_loss": [*wrote("table2e"), f"{HERE[1]}/table2e_fig_collapse.png"],
    "09_lambda_temperature": [path for path in wrote("constants") if "_claims" not in path],  # the paper claims nothing
    "10_false_negatives": [f"{HERE[0]}/false_negatives_claims.csv", f"{HERE[1]}/false_negatives.png"],
    "13_tables3to6_pretraining": [
        *wrote("pretraining"),
        f"{HERE[0]}/pretraining_beside.csv",
        f"{HERE[1]}/pretraining_fig_beside.png",
    ],
    "14_table10_zero_shot": [*wrote("table10"), f"{HERE[0]}/table10_beside.csv"],
    "19_vt_twins_s2dtw": [
        *(path.replace("shapes", "events") for path in wrote("s2dtw")),
        "results/events-smoke/s2dtw_measures.csv",
        "figures/events-smoke/s2dtw_fig_alignment.png",
    ],
    "20_together": [
        *wrote("together"),
        *(path.replace("shapes", "events") for path in wrote("together_videos")),
        "results/events-smoke/together_videos_measures.csv",
    ],
    "12_significance": [f"{HERE[0]}/table12_power.csv", f"{HERE[1]}/table12.png"],
    "21_overview": [f"{HERE[1]}/overview.png"],
    "15_figure5_retrieved": [
        f"{HERE[0]}/figure5.csv",
        f"{HERE[1]}/figure5.png",
        f"{HERE[1]}/figure5_fig_differ.pdf",
    ],
    "18_emcl": [
        *wrote("emcl"),
        f"{HERE[0]}/emcl_inference.csv",
        f"{HERE[0]}/emcl_inference_claims.csv",
        f"{HERE[1]}/emcl_inference.png",
        f"{HERE[1]}/emcl_inference_fig_orders.png",
    ],
    "16_tables7to9_captioning": [*wrote("captioning"), f"{HERE[1]}/captioning_fig_samples.pdf"],
    **{
        name: wrote(table)
        for name, table in {
            "03_table2a_video_encoder": "table2a",
            "04_table2b_aggregation": "table2b",
            "05_table2c_text_encoder": "table2c",
            "06_table2d_text_decoder": "table2d",
            "08_table2f_support_set": "table2f",
            "11_same_meaning": "same_meaning",
            "17_table11_actions": "table11",
        }.items()
    },
}


CLAIMS = """claim,setting,baseline,seeds,paper,delta,delta_low,delta_high,p,seeds_low,seeds_high,verdict
cross beats none,cross,none,3,1.3,0.5,-0.2,1.1,0.3,-0.4,1.4,not resolved
hybrid beats none,hybrid,none,3,,0.5,-0.2,1.1,0.3,-0.4,1.4,not resolved
"""


def papermill(notebook: Path, home: Path, *arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", str(notebook), str(home / "out.ipynb"), "--no-progress-bar"]
    environment = os.environ | {"SSB_HOME": str(home), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def code_cells(notebook: Path):
    return [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_the_smoke_preset(notebook, tmp_path):
    if notebook.stem == "21_overview":  # which draws what the others have left
        (tmp_path / HERE[0]).mkdir(parents=True)
        (tmp_path / HERE[0] / "table1_claims.csv").write_text(CLAIMS)
        (tmp_path / HERE[0] / "table1.csv").write_text("run,seconds,preset\nx,1,smoke\n")
    done = papermill(notebook, tmp_path, "-p", "preset", "smoke", *ARGUMENTS[notebook.stem])
    assert done.returncode == 0, done.stderr[-3000:]
    for path in WRITES[notebook.stem]:
        assert (tmp_path / path).stat().st_size > 100, path
    shown = [out for cell in code_cells(tmp_path / "out.ipynb") for out in cell.outputs]
    assert not [out for out in shown if out.output_type == "stream" and out.name == "stderr"]
    pictures = [out for out in shown if "image/png" in out.get("data", {})]
    assert len(pictures) == sum(path.startswith("figures") for path in WRITES[notebook.stem])


@pytest.mark.slow
def test_runs_from_the_notebooks_folder(tmp_path):
    """As in JupyterLab, where the kernel's working directory is the notebook's: same root, so same files."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    environment = {key: value for key, value in os.environ.items() if key != "SSB_HOME"}
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS[0]), "out.ipynb", "-p", "preset", "smoke"]
    done = subprocess.run(
        [*command, *ARGUMENTS["00_quickstart"]],
        cwd=tmp_path / "notebooks",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "figures/shapes-smoke/quickstart_attention.png").exists()
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["out.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-p", "corpsu", "msrvtt1k"], "Did you mean corpus?"),
        (["-p", "seeds", "three"], "seeds = 'three' is not of type list[int]"),
        (["-p", "preset", "smoek"], "no preset 'smoek'"),
        (["-p", "preset", "smoke", "-p", "corpus", "msrvt"], "no corpus 'msrvt'"),
        (["-p", "preset", "smoke", "-p", "changes", '{"epoch": 3}'], "epoch = 3"),
        (["-p", "preset", "smoke", "-p", "changes", '{"epohcs": 3}'], "did you mean 'epochs'?"),
    ],
)
def test_wrong_parameters_stop_it(arguments, message, tmp_path):
    done = papermill(ROOT / "notebooks/01_table1_objectives.ipynb", tmp_path, *arguments)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("*/*.csv"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stripped_and_thin(notebook):
    book = json.loads(notebook.read_text())
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in book["metadata"]
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is cells[0]
    for cell in book["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}
    for cell in cells[1:]:
        source = "".join(cell["source"])
        assert len([node for node in ast.parse(source).body if not isinstance(node, ast.ImportFrom)]) <= 5
        loops = ast.For, ast.While, ast.FunctionDef, ast.ClassDef
        assert not any(isinstance(node, loops) for node in ast.walk(ast.parse(source))), "all loops live in ssb"
    for line in "".join(tagged[0]["source"]).splitlines():
        assert ":" in line.split("=")[0] and "  # " in line, "a parameter has a type and a comment"
    assert set(ARGUMENTS) == set(WRITES) == {path.stem for path in NOTEBOOKS}


def test_notebooks_print_their_numbers():
    """No result is typed into the prose: what is there of decimals are the paper's."""
    printed = {"25.9", "27.2", "1.3", "0.1", "0.01", "0.05"}  # the last: T = 0.1, the range of T, and a p
    for notebook in NOTEBOOKS:
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "markdown":
                words = cell.source.replace("(", " ").replace(")", " ").replace(",", " ").split()
                numbers = {
                    word.strip(".")
                    for word in words
                    if word.strip(".").replace(".", "").isdigit() and "." in word.strip(".")
                }
                assert numbers <= printed, (notebook.name, numbers)
