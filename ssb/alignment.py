"""VT-TWINS in the study: which loss aligns long videos with caption sequences that are out of order, incomplete and
partly about something else (Ko et al., CVPR 2022, section 4 and table 3 of the supplement)."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb import actions, bases, files, losses, retrieval, s2dtw, sequences, steps
from ssb.batches import threads
from ssb.corpus import Corpus
from ssb.figures import COLOURS, HEAT, PAGE, styled
from ssb.train import Run

S2DTW = {"sequences": True, "contrast": "s2dtw", "batch": 16, "objective": "none"}
FULL = "S2DTW"  # as the paper has it: contrastive, shifted cosine, γ 0.1, dummies, smoothing
ABLATION = {
    FULL: {},
    "1 − cosine": {"s2dtw_shifted": False},
    "γ = 0.01": {"s2dtw_gamma": 0.01},
    "γ = 1": {"s2dtw_gamma": 1.0},
    "no dummies": {"s2dtw_dummy": None},
    "no smoothing": {"s2dtw_smooth": False},
    "soft-DTW": {"s2dtw_dummy": None, "s2dtw_smooth": False},
    "symmetric": {"s2dtw_symmetric": True},
    "τ = 0.1": {"s2dtw_temperature": 0.1},
    "no negatives": {"s2dtw_contrastive": False},
}
ABLATION = {name: S2DTW | changes for name, changes in ABLATION.items()}
PAPER = {  # row of the supplement's Table 3 → ours
    "full: contrastive, shifted cosine, gamma 0.1": FULL,
    "cosine distance": "1 − cosine",
    "gamma 0.01": "γ = 0.01",
    "gamma 1": "γ = 1",
    "no contrastive": "no negatives",
}
_PLACE = {"sequences": True, "batch": 16}  # told caption k is taken to be of clip k
SEQUENCES = {  # what a caption sequence can be trained with; all are judged by the same S2DTW
    "triplet by place": _PLACE | {"contrast": "triplet", "objective": "none"},
    "InfoNCE by place": _PLACE | {"contrast": "info_nce", "objective": "none"},
    "SSB cross by place": _PLACE | {"contrast": "triplet", "objective": "cross"},
    FULL: S2DTW,
    "SSB + S2DTW": S2DTW | {"objective": "cross"},
}
MEASURES = ("step recall", "pooled R@1", "best-match R@1", "spread", "motion top-1")


def clips(constants: bases.Constants = bases.LAYER) -> dict[str, dict]:
    """The same losses on clips and their captions, and EMCL with these constants."""
    grid = {
        "triplet": {"objective": "none"},
        "InfoNCE": {"contrast": "info_nce", "objective": "none"},
        "SSB cross": {"objective": "cross"},
        "EMCL": bases.layer(constants, objective="none"),
        "SSB + EMCL": bases.layer(constants, objective="cross"),
    }
    return {name: {"contrast": "triplet"} | changes for name, changes in grid.items()}


def measure(run: Run, corpus: Corpus, split: str = "test", probe: bool = True) -> dict[str, float]:
    """What a run has learnt of long videos, beside its ranks: each of MEASURES but "motion top-1" without `probe`.

    step recall:    of the told captions that are of an event, those given the right clip under the order of the events
                    (percent, see `ssb.steps`).
    pooled, best-match R@1: text → video by the cosine of means, and by each caption's nearest clip, in any order.
    spread:         deviation of all cosines between told captions and clips; 0: all embeddings are one point.
    motion top-1:   of a linear layer on the clips' embeddings, where the motions are known (see `ssb.actions`).
    """
    model, data = run.load(corpus)
    c_t, c_v = data.told(model, split)  # (V, m, d), (V, n, d)
    own = np.arange(len(c_t))
    cosine = -s2dtw.cosine_cost(c_v, c_t).transpose(1, 2)  # (V, m, n)
    found = {"step recall": steps.ctr(steps.of_stories(cosine, corpus.stories, corpus.stories.split(split)))}
    for name, score in (("pooled", sequences.pooled_similarity), ("best-match", sequences.best_match_similarity)):
        found[f"{name} R@1"] = retrieval.metrics(retrieval.ranks(score(c_t, c_v), own))["R@1"]
    found["spread"] = losses.cosine(c_t.flatten(0, 1), c_v.flatten(0, 1)).std().item()
    if probe:
        with torch.inference_mode(), threads(run.config.threads):
            head = data.embed_videos(model, np.arange(len(corpus.clips))).numpy()
        found["motion top-1"] = motion(head, corpus, run.config.seed)
    return found


def motion(head: np.ndarray, corpus: Corpus, seed: int) -> float:
    """Top-1 on the test clips, in percent, of a linear layer on the embeddings (N, d) of all clips."""
    train, val, test = (corpus.split(name) for name in ("train", "val", "test"))
    recipe = actions.Recipe(epochs=60, milestones=(40,), lr=1e-2, batch=None)
    labels = actions.labels(corpus)
    table = actions.recognise({"head": head}, labels, train, test, val, recipe=recipe, seeds=[seed])
    return float(table.rows["top-1"].iloc[0])


def table(runs: Mapping[str, list[Run]], corpus: Corpus, probe: bool = True) -> pd.DataFrame:
    """`measure` of every run, a row each with its setting and seed, for `Study.rows(also=…)`. What was measured once is
    kept in results/cache."""
    rows = []
    for setting, members in runs.items():
        for run in members:
            path = files.cache() / "alignment" / f"{run.name}-{probe:d}.csv"
            if not path.exists():
                with files.written(path) as draft:
                    pd.DataFrame([measure(run, corpus, probe=probe)]).to_csv(draft, index=False)
            rows.append({"setting": setting, "seed": run.config.seed, **pd.read_csv(path).iloc[0]})
    return pd.DataFrame(rows)


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of R@1, R@10 and MEASURES for each setting, and the supplement's Table 3 where it has the
    setting: one column for each of its data sets. rows: of `Study.rows` with `table`."""
    rows = rows.assign(**{name: rows[f"t2v {name}"].astype(float) for name in ("R@1", "R@10")})
    ours = rows.groupby("setting", sort=False)[["R@1", "R@10", *(name for name in MEASURES if name in rows)]].mean()
    paper = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype={"table": str})
    theirs = paper[paper["table"] == "VT-TWINS 3"]
    theirs = theirs.assign(what=theirs["dataset"] + " " + theirs["metric"]).pivot(
        index="row", columns="what", values="value"
    )
    return ours.join(theirs.rename(index=PAPER).add_prefix("paper: ")).round(3)


@torch.no_grad()
def pairs(run: Run, corpus: Corpus, split: str = "test") -> dict[str, tuple[Tensor, Tensor, np.ndarray]]:
    """A video with the captions told of it and with those told of another: name → costs δ (n, m), the expected
    alignment (n, m), and, for its own, the cells (k, 2) that are true. Chosen by rule: the video of median margin
    between the two, the other being the one that is nearest to its telling."""
    model, data = run.load(corpus)
    c_t, c_v = data.told(model, split)
    options = losses.aligning(run.config)
    scores = s2dtw.distances(c_v, c_t, **options)  # (tellings, videos)
    others = scores + torch.diag(torch.full((len(scores),), torch.inf))
    margin = others.amin(1) - scores.diagonal()
    video = int(margin.argsort()[len(margin) // 2])
    found, shifted = {}, options.pop("shifted")
    for name, which in (("its own video", video), ("the nearest other video", int(others[video].argmin()))):
        cost = s2dtw.cosine_cost(c_v[which], c_t[video], shifted)
        found[name] = cost, s2dtw.alignment(cost, **options), np.empty((0, 2), int)
    truth = corpus.stories.truth
    if truth is not None:
        of = truth[corpus.stories.split(split)[video]]
        right = np.array([(clip, caption) for caption, clip in enumerate(of) if clip >= 0])
        found["its own video"] = *found["its own video"][:2], right
    return found


@styled
def draw(found: Mapping[str, tuple], title: str):
    """Figures 1 and 2 of the supplement of VT-TWINS: the costs of a telling against its own video and against another,
    and the path that is expected under S2DTW. Rings: which clip a caption is truly of, where that is known."""
    figure, axes = plt.subplots(2, 2, figsize=(PAGE, 5.4), sharex=True, sharey=True)
    costs = torch.stack([cost for cost, *_ in found.values()])
    for column, (name, (cost, path, right)) in zip(axes.T, found.items()):
        shades = column[0].imshow(cost, cmap="cividis", vmin=float(costs.min()), vmax=float(costs.max()))
        likely = column[1].imshow(path, cmap=HEAT, vmin=0, vmax=1)
        column[0].set_title(f"captions told of a video,\nagainst {name}")
        for axis in column:
            axis.scatter(*right.T[::-1], s=70, facecolors="none", edgecolors=COLOURS[1], linewidths=1.2)
            axis.set(xticks=range(cost.shape[1]), yticks=range(cost.shape[0]))
            axis.set(xticklabels=range(1, cost.shape[1] + 1), yticklabels=range(1, cost.shape[0] + 1))
            axis.spines[:].set_visible(True)
        column[1].set_xlabel("caption, as told")
    for axis in axes[:, 0]:
        axis.set_ylabel("clip, in time")
    figure.colorbar(shades, ax=axes[0], label="cost δ", shrink=0.85)
    figure.colorbar(likely, ax=axes[1], label="probability that the path\npasses here", shrink=0.85)
    figure.suptitle(title, fontsize=8)
    return figure
