"""VT-TWINS in the study: which loss aligns long videos with caption sequences that are out of order, incomplete and
partly about something else (Ko et al., CVPR 2022, section 4 and table 3 of the supplement)."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb import files, losses, s2dtw
from ssb.corpora import labels as labels_
from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, HEAT, PAGE, styled
from ssb.machine import threads
from ssb.metrics import actions, retrieval, sequences, steps
from ssb.metrics.sequences import BY_FULL, by_script
from ssb.paper import Claim
from ssb.training.runs import Run

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
CLAIMS = [
    Claim("the shifted cosine beats the cosine distance", FULL, "1 − cosine"),
    Claim("γ = 0.1 beats a smaller one", FULL, "γ = 0.01"),
    Claim("γ = 0.1 beats a larger one", FULL, "γ = 1"),
    Claim("dummies help", FULL, "no dummies"),
    Claim("smoothing helps", FULL, "no smoothing"),
    Claim("weak alignment beats soft-DTW", FULL, "soft-DTW"),
    Claim("negatives are needed", FULL, "no negatives"),
]
PAPER = {  # row of the supplement's Table 3 → ours
    "full: contrastive, shifted cosine, gamma 0.1": FULL,
    "cosine distance": "1 − cosine",
    "gamma 0.01": "γ = 0.01",
    "gamma 1": "γ = 1",
    "no contrastive": "no negatives",
}
OWN = {"R@1": "R@1 by own S2DTW", "R@10": "R@10 by own S2DTW"}  # with the γ, dummies, … that a run is trained with
MEASURES = ("step recall", *BY_FULL, "pooled R@1", "best-match R@1", "spread", "motion top-1")
DRAWS = 100  # of random scores, for what they find by chance


def measure(run: Run, corpus: Corpus, split: str = "test", probe: bool = True) -> dict[str, float]:
    """What a run has learnt of long videos, beside its ranks: each of MEASURES for which the corpus is known enough.

    step recall:    of the told captions that are of an event, those given the right clip under the order of the events
                    (percent, see `ssb.steps`); `baselines` says what is had blindly. Where the truth is known.
    R@1 by full S2DTW, right script, within-script R@1: see `by_script`; by the S2DTW of FULL, whichever it was trained
                    with, so that what was learnt is compared apart from how it is scored.
    pooled, best-match R@1: text → video by the cosine of means, and by each caption's nearest clip, in any order.
    spread:         deviation of all cosines between told captions and clips; 0: all embeddings are one point.
    motion top-1:   of a linear layer on the clips' embeddings (see `ssb.actions`); where motions are known and `probe`.
    """
    model, data = run.load(corpus)
    c_t, c_v = data.told(model, split)  # (V, m, d), (V, n, d)
    stories, own, found = corpus.stories, np.arange(len(c_t)), {}
    videos = stories.split(split)
    if stories.truth is not None:
        cosine = -s2dtw.cosine_cost(c_v, c_t).transpose(1, 2)  # (V, m, n)
        found["step recall"] = steps.ctr(steps.of_stories(cosine, stories, videos))
    found |= by_script(-s2dtw.distances(c_v, c_t), None if stories.scripts is None else stories.scripts[videos])
    for name, score in (("pooled", sequences.pooled_similarity), ("best-match", sequences.best_match_similarity)):
        found[f"{name} R@1"] = retrieval.metrics(retrieval.ranks(score(c_t, c_v), own))["R@1"]
    found["spread"] = losses.cosine(c_t.flatten(0, 1), c_v.flatten(0, 1)).std().item()
    if probe and corpus.meaning is not None:
        with torch.inference_mode(), threads(run.config.threads):
            head = data.embed_videos(model, np.arange(len(corpus.clips))).numpy()
        found["motion top-1"] = motion(head, corpus, run.config.seed)
    return found


def baselines(corpus: Corpus, split: str = "test") -> pd.DataFrame:
    """What MEASURES are without a model, a row each, blank where a measure makes no sense or the corpus does not tell:

    captions spread evenly (blind): no look at the videos; only the order of the events is known (`steps.evenly`).
    random scores:  by chance; step recall as the mean of DRAWS draws.
    perfect costs:  the ceiling. δ is -1 where the caption is true of the clip (`Corpus.truth`), else 0. Vague captions
                    and tellings in disorder keep it below 100. Also with other forms of S2DTW, under OWN["R@1"]. Under
                    "best-match R@1", how many of the captions are true of any clip, whatever the order.
    """
    stories, rows = corpus.stories, {}
    videos = stories.split(split)
    shape = (len(videos), stories.captions.shape[1], stories.clips.shape[1])
    chance = dict.fromkeys((OWN["R@1"], BY_FULL[0], "pooled R@1", "best-match R@1"), 100 / len(videos))
    if stories.scripts is not None:
        takes = (stories.scripts[videos][:, None] == stories.scripts[videos]).sum(1)  # of each video's script
        chance |= dict(zip(BY_FULL[1:], (100 * (takes / len(videos)).mean(), 100 * (1 / takes).mean())))
    if stories.truth is not None:
        rows["captions spread evenly (blind)"] = {"step recall": steps.ctr(steps.of_stories(None, stories, videos))}
        rng = np.random.default_rng(0)
        draws = [steps.ctr(steps.of_stories(rng.random(shape), stories, videos)) for _ in range(DRAWS)]
        chance["step recall"] = float(np.mean(draws))
    rows["random scores"] = chance
    if corpus.meaning is not None:
        told, shown = stories.captions[videos].ravel(), stories.clips[videos].ravel()
        true = corpus.truth(told, shown).reshape(*shape[:2], len(videos), shape[2])  # (V, m, V, n)
        rows |= _ceilings(true, None if stories.scripts is None else stories.scripts[videos])
        own = true[np.arange(len(videos)), :, np.arange(len(videos))]
        rows["perfect costs"]["step recall"] = steps.ctr(steps.of_stories(own, stories, videos))
    return pd.DataFrame.from_dict(rows, orient="index")


def _ceilings(true: np.ndarray, scripts: np.ndarray | None) -> dict[str, dict[str, float]]:
    """Rows of `baselines` from which caption is true of which clip, (V, m, V, n) bool."""
    cost, own = -torch.from_numpy(true).permute(0, 2, 3, 1).float(), np.arange(len(true))  # (tellings, videos, n, m)
    scores = {
        "perfect costs": -s2dtw.s2dtw(cost),
        "perfect costs, no dummies": -s2dtw.s2dtw(cost, dummy=None),
        "perfect costs, no smoothing": -s2dtw.s2dtw(cost, smooth=False),
        "perfect costs, soft-DTW": -s2dtw.s2dtw(cost, dummy=None, smooth=False),
        "perfect costs, γ = 1": -s2dtw.s2dtw(cost, gamma=1.0),
    }
    rows = {name: {OWN["R@1"]: by_script(score, None)[BY_FULL[0]]} for name, score in scores.items()}
    unordered = torch.from_numpy(true.any(3).sum(1))
    rows["perfect costs"] |= by_script(scores["perfect costs"], scripts)
    rows["perfect costs"]["best-match R@1"] = retrieval.metrics(retrieval.ranks(unordered, own))["R@1"]
    return rows


def motion(head: np.ndarray, corpus: Corpus, seed: int) -> float:
    """Top-1 on the test clips, in percent, of a linear layer on the embeddings (N, d) of all clips."""
    train, val, test = (corpus.split(name) for name in ("train", "val", "test"))
    recipe = actions.Recipe(epochs=60, milestones=(40,), lr=1e-2, batch=None)
    labels = labels_.labels(corpus)
    table = actions.recognise({"head": head}, labels, train, test, val, recipe=recipe, seeds=[seed])
    return float(table.rows["top-1"].iloc[0])


def table(runs: Mapping[str, list[Run]], corpus: Corpus, probe: bool = True) -> pd.DataFrame:
    """`measure` of every run, a row each with its setting and seed, for `Study.rows(also=…)`. What was measured once is
    kept in results/cache, under the name of the run and a digest of the code that measured."""
    measured_by = inspect.getsource(measure), inspect.getsource(by_script), inspect.getsource(motion)
    modules = (Path(module.__file__).read_bytes() for module in (actions, losses, retrieval, s2dtw, sequences, steps))
    source, rows = files.digest(*measured_by, *modules), []
    for setting, members in runs.items():
        for run in members:
            path = files.cache() / "alignment" / f"{run.name}-{probe:d}-{source}.csv"
            if not path.exists():
                with files.written(path) as draft:
                    pd.DataFrame([measure(run, corpus, probe=probe)]).to_csv(draft, index=False)
            rows.append({"setting": setting, "seed": run.config.seed, **pd.read_csv(path).iloc[0]})
    return pd.DataFrame(rows)


def beside(rows: pd.DataFrame, corpus: Corpus) -> pd.DataFrame:
    """Means over seeds of OWN and MEASURES for each setting, and the supplement's Table 3 where it has the setting: one
    column for each of its data sets. Below them the `baselines`. rows: of `Study.rows` with `table`."""
    rows = rows.assign(**{said: rows[f"t2v {name}"].astype(float) for name, said in OWN.items()})
    ours = rows.groupby("setting", sort=False)[[*OWN.values(), *(name for name in MEASURES if name in rows)]].mean()
    paper = pd.read_csv(Path(__file__).parents[1] / "paper.csv", dtype={"table": str})
    theirs = paper[paper["table"] == "VT-TWINS 3"]
    theirs = theirs.assign(what=theirs["dataset"] + " " + theirs["metric"]).pivot(
        index="row", columns="what", values="value"
    )
    ours = ours.join(theirs.rename(index=PAPER).add_prefix("paper: "))
    bare = baselines(corpus).reindex(columns=ours.columns)
    return pd.concat([ours, bare]).rename_axis("setting").round(3)


def resolution(summary: pd.DataFrame, videos: int) -> str:
    """How large a difference so many tellings can resolve, in words: half the width of the intervals over queries of a
    `Study.summary`."""
    half = ((summary["delta_high"] - summary["delta_low"]) / 2).dropna()
    if half.empty:
        return "One setting: nothing is compared."
    return (
        f"With {videos} test videos the 95 % interval over queries of a difference in R@1 reaches {half.median():.1f} "
        f"points to either side (median over the settings; from {half.min():.1f} to {half.max():.1f}). Smaller "
        "differences are not resolved, whatever the seeds."
    )


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
