"""EMCL (Jin et al., NeurIPS 2022) as a layer in training: choice of its constants, and what it adds."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ssb import emcl
from ssb.corpora.corpus import Corpus
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import Difference, combined, paired
from ssb.study import Study, stacked
from ssb.training.runs import Run


class Constants(NamedTuple):
    """Of `emcl.EMCL`: K, the number of EM steps, λ, β."""

    bases: int
    stages: int
    temperature: float
    beta: float

    def __str__(self):
        return f"K = {self.bases}, {self.stages} stages, λ = {self.temperature:g}, β = {self.beta:g}"


LAYER = Constants(32, 9, 1.0, 3.0)  # EMCL-Net's
TRIED_LAYER = {"temperature": (0.1, 0.3, 1.0), "beta": (0.1, 0.3, 1.0, 3.0)}  # in training; the paper's are among them


# The layer in training


def layer(constants: Constants, **changes) -> dict:
    """What a run with the layer changes in the preset."""
    return {"emcl": True, **{f"emcl_{name}": value for name, value in constants._asdict().items()}, **changes}


def trials() -> dict[str, dict]:
    """Runs from which `chosen_layer` takes λ and β. Rows that the heads make have no unit length and grow in training,
    so what the paper's λ and β mean to them is not known beforehand; K and stages are the paper's."""
    found = [LAYER._replace(temperature=t, beta=b) for t in TRIED_LAYER["temperature"] for b in TRIED_LAYER["beta"]]
    return {str(constants): layer(constants, objective="none") for constants in found}


def chosen_layer(runs: Mapping[str, list[Run]]) -> tuple[Constants, pd.DataFrame]:
    """`trials` → the constants that do best on the validation clips, by what chooses an epoch too, R@1 + R@5 + R@10 of
    the epoch kept (mean over seeds); and all of their scores."""
    rows = []
    for members in runs.values():
        kept = [run.log.set_index("epoch").loc[run.metrics["best_epoch"]] for run in members]
        found = {f"val {name}": float(np.mean([log[f"val {name}"] for log in kept])) for name in ("R@1", "R@5", "R@10")}
        constants = {name: getattr(members[0].config, f"emcl_{name}") for name in Constants._fields}
        rows.append(constants | found | {"sum": sum(found.values())})
    best = max(rows, key=lambda row: row["sum"])
    return Constants(*(best[name] for name in Constants._fields)), pd.DataFrame(rows).round(3)


def at_edge(ours: Constants) -> str:
    """Which of the chosen constants are the first or last that were tried, so that a better one may lie beyond."""
    edges = [name for name, tried in TRIED_LAYER.items() if getattr(ours, name) in (tried[0], tried[-1])]
    return f"at the edge of what was tried: {', '.join(edges)}" if edges else "not at the edge of what was tried"


def layer_ranks(runs: Mapping[str, list[Run]], corpus: Corpus) -> pd.DataFrame:
    """What the layer of each run has learnt: deviation of its start over the bases, and the effective rank of E and of
    Ê, mean over blocks of test captions and clips dealt at random, as the run's scores are taken."""
    rows = []
    for setting, members in runs.items():
        for run in members:
            if not run.config.emcl:
                continue
            model, data = run.load(corpus)
            text, video, _ = data.embed(model, "test")
            size = min(run.config.batch, len(text), len(video))
            draw = torch.Generator().manual_seed(run.config.seed)
            dealt = [torch.randperm(len(x), generator=draw)[: len(video)].split(size) for x in (video, text)]
            blocks = [torch.cat([video[v], text[t]]) for v, t in zip(*dealt) if len(v) == len(t) == size]
            fitted = [model.emcl.fit(x) for x in blocks]
            about = {"setting": setting, "seed": run.config.seed, "block": run.config.batch, "run": run.name}
            about["start sd"] = model.emcl.start.std().item()
            about["rank of E"] = float(np.mean([emcl.effective_rank(x) for x in blocks]))
            about["rank of Ê"] = float(np.mean([emcl.effective_rank(mu @ z.mT) for mu, z in fitted]))
            rows.append(about)
    return pd.DataFrame(rows).round(3)


def grid(ours: Constants) -> dict[str, dict]:
    """{none, cross} × {without the layer, with it}; with it by our constants and by the paper's."""
    cells = {}
    for objective in ("none", "cross"):
        cells[objective] = {"objective": objective}
        cells[f"{objective} + EMCL"] = layer(ours, objective=objective)
        cells[f"{objective} + EMCL, paper's constants"] = layer(LAYER, objective=objective)
    return cells


def layer_claims(study: Study, runs: Mapping[str, list[Run]]) -> pd.DataFrame:
    """Is the layer worth having, without captioning and with it, and is it worth more with it? Written to
    results/<corpus>/<table>_claims.csv. How much the layer alone adds in the paper is not known."""
    hits = {name: points(ranks, "R@1") for name, ranks in stacked(runs, "t2v").items()}
    clips = runs["none"][0].ranks["clip"]
    none, cross = ((hits[f"{name} + EMCL"], hits[name], clips) for name in ("none", "cross"))
    more = combined([(1, *cross), (-1, *none)])
    compared = {
        ("EMCL as a layer beats no EMCL: none", "none + EMCL", "none"): paired(*none),
        ("EMCL as a layer beats no EMCL: cross", "cross + EMCL", "cross"): paired(*cross),
        ("EMCL as a layer gains more with cross", "gain on cross", "gain on none"): more,
    }
    return study.judged([_claim(names, len(runs["none"]), np.nan, gain) for names, gain in compared.items()])


def _claim(names: tuple[str, str, str], seeds: int, paper: float, gain: Difference) -> dict:
    names = dict(zip(("claim", "setting", "baseline"), names))
    return {**names, "seeds": seeds, "paper": paper, **gain._asdict()}
