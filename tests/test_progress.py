"""The progress bar as those see it who wait for it."""

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

CELL = """
import time
from ssb import progress
progress.FIRST, progress._in_lab = 0.2, {in_lab}
with progress.Bar(40) as bar:
    for k in range(40):
        time.sleep(0.05)
        bar.step(f"part {{k}}")
"""


@pytest.mark.parametrize("in_lab", [False, True])
def test_a_batch_logs_ever_fewer_lines_and_jupyterlab_none(tmp_path, caplog, in_lab):
    """Of 40 parts in two seconds or more; in JupyterLab, and in the saved notebook, the last state stands."""
    cell = CELL.format(in_lab="lambda: True" if in_lab else "progress._in_lab")
    nbformat.write(new_notebook(cells=[new_code_cell(cell)]), tmp_path / "in.ipynb")
    with caplog.at_level("INFO", logger="papermill"):
        options = {"kernel_name": "python3", "log_output": True, "progress_bar": False}
        done = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", **options)
    outputs = done.cells[-1].outputs
    lines = "".join(each["text"] for each in outputs if each.output_type == "stream").splitlines()
    logged = [each for each in caplog.text.splitlines() if "/40  part" in each]
    assert len(lines) == len(logged) and (not lines if in_lab else 3 <= len(lines) <= 12)
    (last,) = (each["data"]["text/plain"] for each in outputs if each.output_type == "display_data")
    assert "40/40" in last
