"""The leak: do the support-set weights carry the wording of the caption that is decoded?

The weights of a caption are made from the caption itself (eq. 3), so that captioning can reward embeddings that write
its wording into the weights, where the decoder reads it off, instead of its content. Weights made from another caption
of the clip, or from the clip itself (`Config.weights_from`), cannot do so. Measured by a probe: given ē_v, which of the
clip's own captions made the weights?
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssb import losses
from ssb.config import Config, ConfigError
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError
from ssb.experiments.probe import clip_means
from ssb.figures import COLOURS, MARKS, PAGE, gain_curve, heading, legend, styled
from ssb.metrics.statistics import interval, over_seeds
from ssb.paper import Claim
from ssb.progress import track
from ssb.report import Experiment
from ssb.study import Study
from ssb.tables.verdicts import Runs
from ssb.training.runs import Run

LAMBDAS = (0.1, 0.3, 1.0, 3.0)
SOURCES = {
    "caption": "cross",
    "other caption": "cross, weights of another caption",
    "clip": "cross, weights of the clip",
}
PENALTIES = tuple(10.0**k for k in range(6))


def setting(source: str, weight: float) -> str:
    """The setting of weights from this source. weight: λ."""
    return f"{SOURCES[source]}, λ = {weight:g}"


LEAK = Experiment(
    "The leak",
    baseline="none",
    claims=tuple(
        Claim(f"weights of another caption beat the caption's own, λ = {weight:g}", *names)
        for weight in LAMBDAS
        for names in [(setting("other caption", weight), setting("caption", weight))]
    ),
    alt="How often the caption that made the weights is told from the support, and the gain in R@1, against λ.",
)
TUNED = replace(LEAK, title="The leak over the tuned baseline")
TABLES = {"leak": LEAK, "leak_tuned": TUNED}


def grid(study: Study) -> dict[str, dict]:
    """No captioning, and at each λ `cross` by weights of its caption, of another caption and of the clip itself."""
    if not study.base.freeze_text:
        raise ConfigError("the probe reads the states of a frozen text encoder: set freeze_text = True")
    captions = np.bincount(study.corpus.captions["clip"])
    if (few := captions[np.concatenate([*study.corpus.splits.values()])].min()) < 2:
        raise CorpusError(f"{study.corpus.name}: a clip has {few} caption; the leak is measured where all have several")
    cells = {"none": {"objective": "none"}}
    for source, weight in product(SOURCES, LAMBDAS):
        cells[setting(source, weight)] = {"objective": "cross", "captioning": weight, "weights_from": source}
    return cells


def supports(run: Run, corpus: Corpus, split: str, means: np.ndarray, base: Config) -> pd.DataFrame:
    """ē_v, the mean over time, of `cross` for the captions of a split, in random support sets of about a batch's size.

    means: (N, D) mean features of all clips. base: whose T makes the weights, of a run without captioning too. Each
    clip counts with as many captions as the clip with the fewest has. Columns caption (position in `corpus.captions`),
    clip, number (of the caption among those of its clip), and support, each (D,)."""
    model, data = run.load(corpus)
    data.check_cosine()
    text, video, own = data.embed(model, split)
    clips, rows = corpus.split(split), corpus.captions_of(corpus.split(split))
    number = rows.groupby("clip").cumcount().to_numpy()
    size, each = min(run.config.batch, len(clips)), int(np.bincount(own).min())
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(run.config.seed)).numpy()
    parts, constants = [], (base.temperature, None, base.weights_by)
    for block in np.array_split(order, len(order) // size):
        for k in range(each):
            chosen = np.flatnonzero(number == k)[block]  # captions are in the order of their clips
            weights = losses.support_set_weights(text[chosen], video[block], "cross", *constants)
            mixed = weights.numpy() @ means[clips[block]]
            captions = rows["caption"].to_numpy()[chosen]
            parts.append(pd.DataFrame({"caption": captions, "clip": block, "number": k, "support": [*mixed]}))
    return pd.concat(parts).sort_values(["clip", "number"], ignore_index=True)


def told(found: Mapping[str, pd.DataFrame], states: np.ndarray) -> np.ndarray:
    """100 where the caption that made the weights is told from the support, else 0: (test captions,), in the order of
    the frame. found: split → `supports`. states: (captions, W), the mean text state of each.

    A ridge regression from ē_v to the states is fitted on the training clips, its penalty chosen on the validation
    clips; the caption told is the one of the clip whose state is nearest to the prediction by cosine; a tie counts in
    part."""
    x, y = (np.stack([*found["train"]["support"]]), states[found["train"]["caption"]])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-12

    def right(split: str, ridge: Ridge) -> np.ndarray:
        frame = found[split]
        each = frame["number"].max() + 1
        own = states[frame["caption"]].reshape(-1, each, states.shape[1])  # (clips, K, W)
        guess = ridge.predict((np.stack([*frame["support"]]) - mean) / scale).reshape(own.shape)
        unit = [z / np.linalg.norm(z, axis=-1, keepdims=True).clip(1e-12) for z in (guess, own)]
        cosine = np.einsum("ckw,cjw->ckj", *unit)
        best = cosine >= cosine.max(axis=-1, keepdims=True) - 1e-12
        return 100 * (np.einsum("ckk->ck", best) / best.sum(axis=-1)).ravel()

    ridges = [Ridge(alpha=penalty).fit((x - mean) / scale, y) for penalty in PENALTIES]
    return right("test", max(ridges, key=lambda ridge: right("val", ridge).mean()))


def describers(found: Mapping[str, pd.DataFrame], describer: np.ndarray) -> np.ndarray:
    """100 where a logistic regression, fitted on the training clips, tells from ē_v who wrote the caption, else 0:
    (test captions,). describer: of each caption of the corpus."""
    x, y = ([np.stack([*found[s]["support"]]), describer[found[s]["caption"]]] for s in ("train", "test"))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(*x)
    return 100.0 * (classifier.predict(y[0]) == y[1])


def measured(run: Run, corpus: Corpus, means: np.ndarray, base: Config) -> Iterator[tuple[str, np.ndarray, float]]:
    """What each probe tells of a run: its name, percent of the captions of each test clip, (clips,), and chance. base:
    as in `supports`."""
    found = {split: supports(run, corpus, split, means, base) for split in ("train", "val", "test")}
    text = run.load(corpus)[1].text
    rows = np.arange(len(corpus.captions))
    states = np.concatenate([_mean(*text.padded(part)) for part in np.array_split(rows, max(1, len(rows) // 512))])
    each = found["test"]["number"].max() + 1
    yield "caption", told(found, states).reshape(-1, each).mean(axis=1), 100 / each
    if "describer" in corpus.captions:
        describer = corpus.captions["describer"].to_numpy()
        share = np.bincount(describer[found["test"]["caption"]]).max() / len(found["test"])
        yield "describer", describers(found, describer).reshape(-1, each).mean(axis=1), 100 * share


def _mean(states: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


def leaks(study: Study, runs: Runs) -> pd.DataFrame:
    """Each setting and probe: the share of test captions that are told, in percent, with its interval over clips and
    over seeds, and chance. Written to results/<corpus>/<table>_leaks.csv."""
    means, rows = clip_means(study.corpus, study.base.streams), []
    each = {run.name: run for members in runs.values() for run in members}
    found = {name: [*measured(run, study.corpus, means, study.base)] for name, run in track(each.items(), "probes")}
    for name, members in runs.items():
        for probes in zip(*(found[run.name] for run in members)):
            names, values, chances = zip(*probes)
            low, high = interval(values)
            row = {"setting": name, "probe": names[0], "told": np.mean(values), "low": low, "high": high}
            seeds_low, seeds_high = over_seeds(np.mean(values, axis=1))
            rows.append(row | {"seeds_low": seeds_low, "seeds_high": seeds_high, "chance": np.mean(chances)})
    frame = pd.DataFrame(rows).round(2)
    study.write(frame, f"{study.table}_leaks.csv")
    return frame


def reading(leaks: pd.DataFrame, summary: pd.DataFrame) -> str:
    """What the probes and the gains say, in words, a line for each setting."""
    lines = []
    for name, part in leaks.groupby("setting", sort=False):
        words = [f"{row.probe} told in {row.told:.1f} % [{row.low:.1f}, {row.high:.1f}], chance {row.chance:.1f} %"
                 for row in part.itertuples()]  # fmt: skip
        gain = "" if name == LEAK.baseline else f"; R@1 {summary['delta'][name]:+.2f}: {summary['verdict'][name]}"
        lines.append(f"{name}: {', '.join(words)}{gain}")
    return "\n".join(lines)


@styled
def figure(leaks: pd.DataFrame, summary: pd.DataFrame, title: str) -> plt.Figure:
    """Left, a panel for each probe: the share that is told from the support against λ, with no captioning and chance as
    lines. Right: the gain in R@1. One line for each source of the weights."""
    probes = list(leaks["probe"].unique())
    canvas, axes = plt.subplots(1, len(probes) + 1, figsize=(PAGE, 2.6))
    for (source, label), mark, colour in zip(SOURCES.items(), MARKS, COLOURS):
        names = [setting(source, weight) for weight in LAMBDAS]
        panels = [leaks[leaks["probe"] == probe].set_index("setting")[["told", "low", "high"]] for probe in probes]
        for axis, panel in zip(axes, panels):
            middle, low, high = panel.reindex(names).to_numpy(float).T
            options = dict(marker=mark, color=colour, ms=4, lw=1, capsize=2, label=label)
            axis.errorbar(LAMBDAS, middle, (middle - low, high - middle), **options)
        gain_curve(axes[-1], LAMBDAS, summary.reindex(names), mark, colour)
    for axis, probe in zip(axes, probes):
        part = leaks[leaks["probe"] == probe]
        axis.axhline(part.set_index("setting")["told"][LEAK.baseline], color="0.4", lw=0.8, label="no captioning")
        axis.axhline(part["chance"].mean(), color="0.4", lw=0.8, ls=":", label="chance")
        axis.set(ylabel=f"{probe} told (%)")
    axes[-1].axhline(0, color="0.4", lw=0.8)
    axes[-1].set(ylabel="Δ R@1 vs none\n(points)")
    for axis in axes:
        axis.set(xscale="log", xlabel="weight of captioning λ", xticks=LAMBDAS, xticklabels=[f"{w:g}" for w in LAMBDAS])
        axis.minorticks_off()
    heading(canvas, f"{title}: what a probe tells, with 95 % over test clips, and the gain in R@1")
    legend(canvas, columns=2)
    return canvas
