"""EMCL (Jin et al., NeurIPS 2022) as a layer in training: choice of its constants, and what it adds."""

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb import emcl
from ssb.corpora.corpus import Corpus
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import combined, paired
from ssb.report import Experiment
from ssb.study import Study
from ssb.tables.verdicts import Runs, acts, stacked
from ssb.training.runs import Run

EXPERIMENT = Experiment(
    "EMCL as a layer",
    baseline="none",
    alt="Forest plot of text to video R@1 without and with the EMCL layer, no captioning and cross, with intervals.",
)
TABLES = {"emcl": EXPERIMENT}


class Constants(NamedTuple):
    """Of `emcl.EMCL`: K, the number of EM steps, λ, β."""

    bases: int
    stages: int
    temperature: float
    beta: float

    def __str__(self):
        return f"K = {self.bases}, {self.stages} stages, λ = {self.temperature:g}, β = {self.beta:g}"


LAYER = Constants(32, 9, 1.0, 3.0)  # EMCL-Net's
TRIED_LAYER = {"temperature": (0.1, 0.3, 1.0), "beta": (0.1, 0.3, 1.0, 3.0)}  # the paper's are among them


def layer(constants: Constants, **changes) -> dict:
    """What a run with the layer changes in the preset."""
    return {"emcl": True, **{f"emcl_{name}": value for name, value in constants._asdict().items()}, **changes}


def trials() -> dict[str, dict]:
    """The runs from which `chosen_layer` takes λ and β; K and stages are the paper's. The heads' embeddings do not have
    unit length and grow in training, so the paper's λ and β need not suit them."""
    tried = [LAYER._replace(temperature=t, beta=b) for t, b in product(*TRIED_LAYER.values())]
    return {str(constants): layer(constants, objective="none") for constants in tried}


def chosen_layer(runs: Mapping[str, list[Run]]) -> tuple[Constants, pd.DataFrame]:
    """The runs of `trials` → the constants with the best R@1 + R@5 + R@10 on the validation clips at the epoch kept,
    the same criterion that chooses the epoch (mean over seeds); and the scores of all constants."""
    rows = []
    for members in runs.values():
        kept = pd.DataFrame([run.log.set_index("epoch").loc[run.metrics["best_epoch"]] for run in members])
        recalls = {f"val {name}": float(kept[f"val {name}"].mean()) for name in ("R@1", "R@5", "R@10")}
        constants = {name: getattr(members[0].config, f"emcl_{name}") for name in Constants._fields}
        rows.append(constants | recalls | {"sum": sum(recalls.values())})
    best = max(rows, key=lambda row: row["sum"])
    return Constants(*(best[name] for name in Constants._fields)), pd.DataFrame(rows).round(3)


def at_edge(ours: Constants) -> str:
    """Which of the chosen constants are the first or last that were tried, so that a better one may lie beyond."""
    edges = [name for name, tried in TRIED_LAYER.items() if getattr(ours, name) in (tried[0], tried[-1])]
    return f"at the edge of what was tried: {', '.join(edges)}" if edges else "not at the edge of what was tried"


def mean_rank(blocks: list[Tensor]) -> float:
    """Mean `emcl.effective_rank` of matrices."""
    return float(np.mean([emcl.effective_rank(block) for block in blocks]))


def layer_ranks(runs: Mapping[str, list[Run]], corpus: Corpus) -> pd.DataFrame:
    """What the layer of each run has learnt: the standard deviation of its start over the bases, and the effective rank
    of E and of Ê, means over blocks of test captions and clips. Blocks are drawn at random, as for the run's scores."""
    rows = []
    for setting, run in [(setting, run) for setting, members in runs.items() for run in members if run.config.emcl]:
        model, data = run.load(corpus)
        text, video, _ = data.embed(model, "test")
        size = min(run.config.batch, len(text), len(video))
        draw = torch.Generator().manual_seed(run.config.seed)
        clips, captions = (torch.randperm(len(x), generator=draw)[: len(video)].split(size) for x in (video, text))
        blocks = [torch.cat([video[v], text[t]]) for v, t in zip(clips, captions) if len(v) == len(t) == size]
        row = {"setting": setting, "seed": run.config.seed, "block": run.config.batch, "run": run.name}
        row |= {"start sd": model.emcl.start.std().item(), "rank of E": mean_rank(blocks)}
        rows.append(row | {"rank of Ê": mean_rank([model.emcl.reconstruct(block)[0] for block in blocks])})
    return pd.DataFrame(rows).round(3)


def grid(ours: Constants) -> dict[str, dict]:
    """{none, cross} × {without the layer, with it}; with it by our constants and by the paper's."""
    cells = {}
    for objective in ("none", "cross"):
        cells[objective] = {"objective": objective}
        cells[f"{objective} + EMCL"] = layer(ours, objective=objective)
        cells[f"{objective} + EMCL, paper's constants"] = layer(LAYER, objective=objective)
    return cells


def layer_claims(study: Study, runs: Runs) -> pd.DataFrame:
    """`layer_gains`, judged and written to results/<corpus>/<table>_claims.csv."""
    return study.judged(layer_gains(runs))


def layer_gains(runs: Runs) -> list[dict]:
    """Does the layer gain, without captioning and with it, and does it gain more with it? A row for
    each claim. What the layer alone adds in the paper is not known."""
    hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs, "t2v").items()}
    clips = runs["none"][0].ranks["clip"]
    none, cross = ((hits[f"{name} + EMCL"], hits[name], clips) for name in ("none", "cross"))
    more = combined([(1, *cross), (-1, *none)])
    claims = {
        ("EMCL as a layer beats no EMCL: none", "none + EMCL", "none"): paired(*none),
        ("EMCL as a layer beats no EMCL: cross", "cross + EMCL", "cross"): paired(*cross),
        ("EMCL as a layer gains more with cross", "gain on cross", "gain on none"): more,
    }
    about, keys = {"seeds": len(runs["none"]), "paper": np.nan}, ("claim", "setting", "baseline")
    rows = [dict(zip(keys, names)) | about | gain._asdict() for names, gain in claims.items()]
    captioned = {"acts": acts(runs["cross"], runs["cross + EMCL"])}  # not so the first claim
    return [rows[0], *(row | captioned for row in rows[1:])]
