"""VT-TWINS in the study: which loss aligns long videos with caption sequences that are out of order, incomplete and
partly about something else (Ko et al., CVPR 2022, section 4 and table 3 of the supplement)."""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssb import files, losses, paper, s2dtw
from ssb.corpora import labels
from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, HEAT, PAGE, heading, legend, styled
from ssb.machine import threads
from ssb.metrics import actions, retrieval, sequences, statistics, steps
from ssb.metrics.sequences import BY_FULL, by_script, recall_at_1
from ssb.paper import Claim
from ssb.progress import track
from ssb.report import Experiment
from ssb.training.runs import Run, build, load, measured
from ssb.training.stories import StoryData

S2DTW = {"sequences": True, "contrast": "s2dtw", "batch": 16, "objective": "none"}
FULL = "S2DTW"  # the paper's: contrastive, shifted cosine, γ 0.1, dummies, smoothing
_VARIANTS = {
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
ABLATION = {name: S2DTW | changes for name, changes in _VARIANTS.items()}
EXPERIMENT = Experiment(
    "S2DTW ablation",
    grid=lambda study: ABLATION,
    baseline=FULL,
    claims=(
        Claim("the shifted cosine beats the cosine distance", FULL, "1 − cosine"),
        Claim("γ = 0.1 beats a smaller one", FULL, "γ = 0.01"),
        Claim("γ = 0.1 beats a larger one", FULL, "γ = 1"),
        Claim("dummies help", FULL, "no dummies"),
        Claim("smoothing helps", FULL, "no smoothing"),
        Claim("weak alignment beats soft-DTW", FULL, "soft-DTW"),
        Claim("negatives are needed", FULL, "no negatives"),
    ),
    alt="Forest plot of the retrieval of long videos by their captions under variants of S2DTW, each seed a dot.",
    shown="summary measures",
)
TABLES = {"s2dtw": EXPERIMENT}
PAPER = {  # row of the supplement's Table 3 → ours
    "full: contrastive, shifted cosine, gamma 0.1": FULL,
    "cosine distance": "1 − cosine",
    "gamma 0.01": "γ = 0.01",
    "gamma 1": "γ = 1",
    "no contrastive": "no negatives",
}
OWN = {"R@1": "R@1 by own S2DTW", "R@10": "R@10 by own S2DTW"}  # with the γ, dummies, … that a run is trained with
MEASURES = ("step recall", *BY_FULL, "pooled R@1", "best-match R@1", "spread", "motion top-1")
DRAWS = 100  # of random scores, to estimate their step recall
PERFECT = "perfect costs"
PLACE = f"{PERFECT}, k-th caption to k-th clip"
SOFT = f"{PERFECT}, soft-DTW"
PERFECT_ROWS = {  # how they are aligned
    PERFECT: {},
    f"{PERFECT}, no dummies": {"dummy": None},
    f"{PERFECT}, no smoothing": {"smooth": False},
    SOFT: {"dummy": None, "smooth": False},
    f"{PERFECT}, γ = 1": {"gamma": 1.0},
}


def measure(model, data: StoryData) -> dict[str, float]:
    """What a model has learnt of long videos, on the test videos: each of MEASURES for which the corpus has the truth.

    step recall:    of the captions that describe an event, those assigned the right clip under the order of the events
                    (percent, see `ssb.metrics.steps`); `baselines` has that of steps spread evenly.
    R@1 by full S2DTW, right script, within-script R@1: see `by_script`; all runs are scored by the S2DTW of FULL,
                    whichever they were trained with, which separates the embeddings from the way of scoring.
    pooled, best-match R@1: text → video by the cosine of means, and by each caption's nearest clip; both ignore order.
    spread:         standard deviation of all cosines between captions and clips; 0: all embeddings are one point.
    motion top-1:   of a linear layer on the clips' embeddings (see `ssb.metrics.actions`), percent of the test clips.
    """
    corpus, config, values = data.corpus, data.config, {}
    c_t, c_v = data.embed_sequences(model, "test")  # (V, m, d), (V, n, d)
    stories, videos = corpus.stories, corpus.stories.split("test")
    if stories.truth is not None:
        cosine = -s2dtw.cosine_cost(c_v, c_t).transpose(1, 2)  # (V, m, n)
        values["step recall"] = step_recall(cosine, corpus)
    values |= by_script(-s2dtw.distances(c_v, c_t), None if stories.scripts is None else stories.scripts[videos])
    values["pooled R@1"] = recall_at_1(sequences.pooled_similarity(c_t, c_v))
    values["best-match R@1"] = recall_at_1(sequences.best_match_similarity(c_t, c_v))
    values["spread"] = losses.cosine(c_t.flatten(0, 1), c_v.flatten(0, 1)).std().item()
    if corpus.meaning is not None:
        with torch.inference_mode(), threads(config.threads):
            head = data.embed_videos(model, np.arange(len(corpus.clips))).numpy()
        train, val, test = (corpus.split(name) for name in ("train", "val", "test"))
        recipe = actions.Recipe(epochs=60, milestones=(40,), lr=1e-2, batch=None)
        motions, seeds = labels.labels(corpus), [config.seed]
        table = actions.recognise({"head": head}, motions, train, test, val, recipe=recipe, seeds=seeds)
        values["motion top-1"] = float(table.rows["top-1"].iloc[0])
    return values


def step_recall(similarity, corpus: Corpus) -> float:
    """CTR (percent) on the test videos. similarity: as in `steps.localise_stories`."""
    return steps.ctr(steps.localise_stories(similarity, corpus.stories, corpus.stories.split("test")))


def baselines(corpus: Corpus) -> pd.DataFrame:
    """MEASURES without a model on the test videos, a row each, blank where a measure does not apply or the corpus lacks
    the truth:

    captions spread evenly (blind): without the videos; only the order of the events is known (`steps.evenly`).
    random scores:  by chance; step recall as the mean of DRAWS draws.
    perfect costs:  the ceiling. δ is -1 where the caption is true of the clip (`Corpus.truth`), else 0. Vague captions
                    and captions out of order keep it below 100. Also with variants of S2DTW, and by the mean cost of
                    the k-th caption and the k-th clip where a video has as many of both, under OWN["R@1"]. Under
                    "best-match R@1", by the number of captions that are true of any clip, which ignores order.
    """
    stories, rows = corpus.stories, {}
    videos = stories.split("test")
    scripts = None if stories.scripts is None else stories.scripts[videos]
    shape = (len(videos), stories.captions.shape[1], stories.clips.shape[1])
    chance = dict.fromkeys((OWN["R@1"], BY_FULL[0], "pooled R@1", "best-match R@1"), 100 / len(videos))
    if scripts is not None:
        takes = (scripts[:, None] == scripts).sum(1)  # videos of the script of each video
        chance |= dict(zip(BY_FULL[1:], (100 * (takes / len(videos)).mean(), 100 * (1 / takes).mean())))
    if stories.truth is not None:
        rows["captions spread evenly (blind)"] = {"step recall": step_recall(None, corpus)}
        rng = np.random.default_rng(0)
        chance["step recall"] = float(np.mean([step_recall(rng.random(shape), corpus) for _ in range(DRAWS)]))
    rows["random scores"] = chance
    if corpus.meaning is not None:
        true = perfect(corpus)
        scores = perfect_scores(true)
        rows |= {name: {OWN["R@1"]: recall_at_1(each)} for name, each in scores.items()}
        own = true[np.arange(len(videos)), :, np.arange(len(videos))]
        rows[PERFECT] |= by_script(scores[PERFECT], scripts)
        rows[PERFECT]["best-match R@1"] = recall_at_1(torch.from_numpy(true.any(3).sum(1)))
        rows[PERFECT]["step recall"] = step_recall(own, corpus)
    return pd.DataFrame.from_dict(rows, orient="index")


def perfect(corpus: Corpus) -> np.ndarray:
    """Which captions of the test videos are true of which of their clips, (V, m, V, n) bool: captions, clips."""
    videos, stories = corpus.stories.split("test"), corpus.stories
    captions, clips = stories.captions[videos], stories.clips[videos]
    return corpus.truth(captions.ravel(), clips.ravel()).reshape(*captions.shape, *clips.shape)


def perfect_scores(true: np.ndarray, block: int = 64) -> dict[str, Tensor]:
    """The scores (V, V) of caption sequences and videos by costs that are -1 where the caption is true of the clip,
    else 0, for each way to align them. true: of `perfect`. block: sequences at a time, to bound the memory."""
    cost = -torch.from_numpy(true).permute(0, 2, 3, 1).float()  # (sequences, videos, n, m)
    scores = {
        name: torch.cat([-s2dtw.s2dtw(some, **options) for some in cost.split(block)])
        for name, options in PERFECT_ROWS.items()
    }
    if cost.shape[2] == cost.shape[3]:
        scores[PLACE] = -cost.diagonal(dim1=2, dim2=3).mean(-1)
    return scores


def tells_apart(corpus: Corpus) -> str:
    """Whether a corpus can tell methods of alignment apart, in words: by how much S2DTW retrieves better where the
    costs are perfect than each other way to align them, with intervals over its test scripts, or, where it has none,
    its test videos. What perfect costs cannot tell apart, those of a trained model cannot by their paths."""
    if corpus.meaning is None:
        return f"{corpus.name}: it is not known what a caption is true of, and so not what perfect costs would reach."
    ranks = {name: retrieval.ranks(x, np.arange(len(x))) for name, x in perfect_scores(perfect(corpus)).items()}
    hits, stories = {name: retrieval.points(each, "R@1") for name, each in ranks.items()}, corpus.stories
    groups = None if stories.scripts is None else stories.scripts[stories.split("test")]
    lines = [f"With perfect costs S2DTW retrieves {hits[PERFECT].mean():.1f} % of {len(ranks[PERFECT])} test videos."]
    for name in [name for name in hits if name != PERFECT]:
        found = statistics.paired(hits[PERFECT], hits[name], groups)
        apart = "The corpus cannot tell them apart."
        if found.delta_low > 0:
            apart = "The corpus tells the two apart."
        elif found.delta_high < 0:
            apart = "Here S2DTW loses even so: that it should win is not tested."
        lines.append(
            f"{name.removeprefix(PERFECT + ', ')}: {hits[name].mean():.1f} %, {found.delta:+.1f} points to S2DTW "
            f"[{found.delta_low:+.1f}, {found.delta_high:+.1f}]. {apart}"
        )
    return "\n".join(lines)


def table(runs: Mapping[str, list[Run]], corpus: Corpus) -> pd.DataFrame:
    """`measure` of every run, a row each with its setting and seed, for `Study.rows(also=…)`. Values are kept in
    results/cache under the name of the run and a digest of the code that measures."""
    modules = (Path(module.__file__).read_bytes() for module in (actions, losses, retrieval, s2dtw, sequences, steps))
    source, rows = files.digest(inspect.getsource(measure), *modules), []
    each = [(setting, run) for setting, members in runs.items() for run in members]
    for setting, run in track(each, "aligning the long videos"):
        folder = files.kept(files.cache() / "alignment" / f"{run.name}-{source}", partial(_measured, run, corpus))
        rows.append({"setting": setting, "seed": run.config.seed, **pd.read_csv(folder / "measures.csv").iloc[0]})
    return pd.DataFrame(rows)


def _measured(run: Run, corpus: Corpus, draft: Path):
    pd.DataFrame([measure(*run.load(corpus))]).to_csv(draft / "measures.csv", index=False)


def untrained(runs: Mapping[str, list[Run]], corpus: Corpus) -> dict[str, float]:
    """`measure` of the models that the runs of the first setting began with, the mean over their seeds, and OWN."""
    values = []
    for run in next(iter(runs.values())):
        with torch.random.fork_rng():
            torch.manual_seed(run.config.seed)  # as `fit` does, before a text encoder from scratch is drawn
            data = load(run.config, corpus)
            model = build(data)
        own = measured(data.ranks(model, "test"))
        values.append(measure(model, data) | {column: own[f"t2v {name}"] for name, column in OWN.items()})
    return pd.DataFrame(values).mean().to_dict()


def measures(rows: pd.DataFrame, runs: Mapping[str, list[Run]], corpus: Corpus) -> pd.DataFrame:
    """Means over seeds of OWN and MEASURES for each setting, and the supplement's Table 3 where it has the setting, one
    column for each of its data sets; then the models `untrained`, and the `baselines`. rows: of `Study.rows` of these
    runs with `table`."""
    rows = rows.assign(**{column: rows[f"t2v {name}"].astype(float) for name, column in OWN.items()})
    ours = rows.groupby("setting", sort=False)[[*OWN.values(), *(name for name in MEASURES if name in rows)]].mean()
    theirs = paper.rows(table="VT-TWINS 3")
    theirs = theirs.assign(column="paper: " + theirs["dataset"] + " " + theirs["metric"])
    ours = ours.join(theirs.pivot(index="row", columns="column", values="value").rename(index=PAPER))
    others = pd.concat([pd.DataFrame([untrained(runs, corpus)], index=["untrained"]), baselines(corpus)])
    return pd.concat([ours, others.reindex(columns=ours.columns)]).rename_axis("setting").round(3)


def resolution(summary: pd.DataFrame, videos: int) -> str:
    """The smallest difference that so many test videos can resolve, in words: half the width of the intervals over
    queries of a `Study.summary`."""
    half = ((summary["delta_high"] - summary["delta_low"]) / 2).dropna()
    if half.empty:
        return "One setting: nothing is compared."
    return (
        f"With {videos} test videos the 95 % interval over queries of a difference in R@1 extends {half.median():.1f} "
        f"points to either side (median over the settings; from {half.min():.1f} to {half.max():.1f}). Smaller "
        "differences are not resolved, whatever the seeds."
    )


@torch.no_grad()
def pairs(run: Run, corpus: Corpus) -> dict[str, tuple[Tensor, Tensor, np.ndarray]]:
    """The captions of a test video with the video itself and with another: name → costs δ (n, m), the expected
    alignment (n, m), and, for the video itself, its true cells (k, 2) where they are known. The video is the one of
    median margin between the two costs, the other the one that is nearest to its captions."""
    model, data = run.load(corpus)
    c_t, c_v = data.embed_sequences(model, "test")
    options = losses.alignment_options(run.config)
    scores = s2dtw.distances(c_v, c_t, **options)  # (sequences, videos)
    others = scores + torch.diag(torch.full((len(scores),), torch.inf))
    margin = others.amin(1) - scores.diagonal()
    video = int(margin.argsort()[len(margin) // 2])
    truth = corpus.stories.truth
    clip_of = np.full(c_t.shape[1], -1) if truth is None else truth[corpus.stories.split("test")[video]]
    captions = np.flatnonzero(clip_of >= 0)
    cells = np.stack([clip_of[captions], captions], axis=1)
    examples, shifted = {}, options.pop("shifted")
    for name, which in (("its own video", video), ("the nearest other video", int(others[video].argmin()))):
        cost = s2dtw.cosine_cost(c_v[which], c_t[video], shifted)
        examples[name] = cost, s2dtw.alignment(cost, **options), cells if which == video else cells[:0]
    return examples


@styled
def draw(examples: Mapping[str, tuple], title: str):
    """Figures 1 and 2 of the supplement of VT-TWINS: the costs of a caption sequence against its own video and against
    another, and the expected alignment under S2DTW. Rings: the true clip of a caption, where it is known. examples: of
    `pairs`."""
    figure, axes = plt.subplots(2, 2, figsize=(PAGE, 5.4), sharex=True, sharey=True)
    costs = torch.stack([cost for cost, *_ in examples.values()])
    for (above, below), (name, (cost, path, cells)) in zip(axes.T, examples.items()):
        shades = above.imshow(cost, cmap="cividis", vmin=float(costs.min()), vmax=float(costs.max()))
        likely = below.imshow(path, cmap=HEAT, vmin=0, vmax=1)
        above.set_title(f"captions of a video,\nagainst {name}")
        for axis in (above, below):
            ring = {"label": "the caption's true clip"} if len(cells) else {}
            axis.scatter(*cells.T[::-1], s=70, facecolors="none", edgecolors=COLOURS[1], linewidths=1.2, **ring)
            axis.set(xticks=range(cost.shape[1]), yticks=range(cost.shape[0]))
            axis.set(xticklabels=range(1, cost.shape[1] + 1), yticklabels=range(1, cost.shape[0] + 1))
            axis.spines[:].set_visible(True)
        below.set_xlabel("caption, in the order of the narration")
    for axis in axes[:, 0]:
        axis.set_ylabel("clip, in time")
    figure.colorbar(shades, ax=axes[0], label="cost δ", shrink=0.85)
    figure.colorbar(likely, ax=axes[1], label="probability that the path\npasses here", shrink=0.85)
    legend(figure, columns=1)
    heading(figure, title)
    return figure
