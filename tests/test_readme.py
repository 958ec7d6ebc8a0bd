"""The commands of README.md, run at smoke size."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, write_corpus
from PIL import Image

BIN = Path(sys.executable).parent
CLIPS = "corpus_options: {clips: 60}"
# line of a block after the two set-up commands → the words of it that are others at smoke size → those others
SMALL = {
    ". .venv/bin/activate": {".": ":"},  # the tests run in an environment already
    "papermill --log-output notebooks/00_quickstart.ipynb results/executed/quickstart.ipynb": {
        "papermill": f"papermill -p preset smoke -y '{{changes: {{epochs: 1, {CLIPS}}}}}'",
    },
    "ssb extract clips/ --stream resnet --model microsoft/resnet-152 --out my/features": {
        "microsoft/resnet-152": "colour_edges",  # which needs no network
    },
    "ssb train laptop corpus=my objective=cross seed=1": {"laptop": "smoke batch=4"},
    "accelerate launch --num_processes 2 -m ssb train laptop corpus=my": {
        "launch": "launch --cpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}",
        "laptop": "smoke batch=4 epochs=1",
    },
    "ssb study --status": {},
    "ssb report": {},
}
PRINTED = {  # line → what the README, or common sense, says that it ends with
    "papermill": ["R@1", "quickstart_retrieval.png", "quickstart_attention.png"],
    "ssb extract": ["12 clips"],
    "ssb train": ["results/runs/"],
    "accelerate": ["results/runs/"],
    "ssb study": ["not yet made", "01_table1_objectives"],
    "ssb report": ["results/report/index.html"],
}


def lines() -> list[str]:
    """The lines of the bash blocks after the two set-up commands, without their comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return [line.partition("  # ")[0].strip() for block in blocks[2:] for line in block.splitlines() if line.strip()]


def smaller(line: str, port: int) -> str:
    """A line of the README at smoke size."""
    for word, other in SMALL[line].items():
        assert line.split().count(word) == 1, f"{word!r} once in {line!r}"
        line = " ".join(other.replace("{port}", str(port)) if each == word else each for each in line.split())
    return line


def test_every_command_is_one_that_is_run():
    assert "python3 -m venv .venv " in (ROOT / "README.md").read_text(encoding="utf-8").partition("activate")[0]
    assert [*SMALL] == lines(), "a command of README.md that is new, or gone: say above what it is at smoke size"
    assert all(any(line.startswith(start) for start in PRINTED) for line in SMALL if not line.startswith("."))


def test_a_command_at_smoke_size_is_the_same_command():
    """Only words are put in place of words: the command and its other options stay."""
    for line in lines():
        words = shlex.split(smaller(line, 1))
        kept = [word for word in line.split() if word not in SMALL[line]]
        assert [word for word in words if word in kept] == kept and (words[0] == line.split()[0] or words[0] == ":")


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path):
    """In a folder with a corpus `my` without features, its clips as pictures, and the notebooks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "results" / "executed").mkdir(parents=True)
    (tmp_path / "clips").mkdir()
    shutil.rmtree(write_corpus(tmp_path / "my") / "features")
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "clips" / f"clip{number:02d}.png")
    environment = os.environ | {"SSB_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    for line in lines():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["bash", "-euo", "pipefail", "-c", smaller(line, port)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        wanted = [text for start, texts in PRINTED.items() if line.startswith(start) for text in texts]
        printed = done.stdout + done.stderr
        assert all(text in printed for text in wanted), f"{line}\n{printed[-2000:]}"
    for name in ("executed/quickstart.ipynb", "report/index.html"):
        assert (tmp_path / "results" / name).is_file()
    assert len([*(tmp_path / "my/features/resnet").glob("clip*.npy")]) == 12


def test_fences_of_code_stand_alone():
    """A paragraph laid out anew with its code in it is no code any more."""
    for path in [ROOT / "README.md", *ROOT.glob("[a-z]*/**/README.md")]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "```" in line]
        assert all(re.fullmatch(r" *```\w*", line) for line in lines) and len(lines) % 2 == 0, path
