"""Small corpora and runs that tests of several folders make."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssb import Config, files, study
from ssb.metrics import retrieval
from ssb.training.runs import IDENTITY, Run

ROOT = Path(__file__).resolve().parents[1]
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"  # of the checkout
DATA = files.data() if os.environ.get("SSB_DATA") else BESIDE
# the elements, of those that a selector finds, whose text has a contrast below 4.5 to what is behind it
FAINT = """selector => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
  const above = (front, back, part) => back.map((x, k) => front[k] * part + x * (1 - part));
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, part = 1] = parse(getComputedStyle(at).backgroundColor);
      layers.push([[r, g, b], part]);
      if (part === 1) break;
    }
    return layers.reverse().reduce((back, [colour, part]) => above(colour, back, part), [255, 255, 255]);
  };
  const faint = [];
  for (const element of document.querySelectorAll(selector)) {
    const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!says || !element.checkVisibility()) continue;
    const [r, g, b, part = 1] = parse(getComputedStyle(element).color), back = behind(element);
    let opacity = part;
    for (let at = element; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
    const pair = [light(above([r, g, b], back, opacity)), light(back)].sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) faint.push(element.outerHTML.slice(0, 100));
  }
  return faint;
}"""


def write_corpus(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    clips = [f"clip{i:02d}" for i in range(12)]
    (folder / "features").mkdir(parents=True)
    rows = [(clip, f"{kind} thing number {clip[-2:]}") for clip in clips for kind in ("a red", "one blue")]
    pd.DataFrame(rows, columns=["clip", "text"]).to_csv(folder / "captions.csv", index=False)
    split = {"train": clips[:6], "val": clips[6:9], "test": clips[9:]}
    (folder / "split.json").write_text(json.dumps(split))
    for stream, shape in (("look", (12, 5, 6)), ("move", (12, 1, 3))):
        np.save(folder / "features" / f"{stream}.npy", rng.standard_normal(shape).astype(np.float16))
        (folder / "features" / f"{stream}.ids.txt").write_text("\n".join(clips))
    return folder


def made(home: Path, name: str, objective: str, seed: int, ranks, clip) -> Run:
    """A finished run with these ranks; `name` keeps runs of the same settings apart."""
    config = Config.preset("smoke", objective=objective, seed=seed)
    identity = [config.key, "c", name]
    folder = home / "results" / "runs" / files.digest(*identity)
    folder.mkdir(parents=True)
    (folder / IDENTITY).write_text(json.dumps(identity))
    ways = {way: np.asarray(ranks, float) for way in study.PROTOCOLS}
    np.savez(folder / "ranks.npz", clip=clip, **ways)
    metrics = {f"{way} {k}": v for way, r in ways.items() for k, v in retrieval.metrics(r).items()}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"n_queries": len(clip), "best_epoch": 1}))
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "trace.csv").write_text("step,contrast,spread,gradient,share\n0,0.3,0.1,1,0.4\n")
    (folder / "log.csv").write_text("epoch,contrast,captioning\n1,0.3,3\n")
    provenance = {"corpus_sha": "c", "commit": "x", "dirty": False, "torch": "t", "device": "cpu", "seconds": 1.0}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    files.seal(folder)
    return Run(folder)


def unchanged_results():
    """Whoever has run a table has other results than the committed ones, and that is fine."""
    changed = subprocess.run(["git", "status", "--porcelain", "results", "figures"], cwd=ROOT, capture_output=True)
    if changed.returncode or changed.stdout:
        pytest.skip("results/ or figures/ differ from what is committed")
