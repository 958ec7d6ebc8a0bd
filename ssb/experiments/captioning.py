"""Tables 7 to 9: how well the trained decoders of a study caption its test clips. Under `cross` a decoder is trained on
mixes of other clips alone; does it caption a clip from the clip itself?"""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pycocoevalcap.cider.cider import Cider
from torch import Tensor

from ssb import files, losses
from ssb.config import OBJECTIVES
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import listed
from ssb.machine import threads
from ssb.metrics import captions
from ssb.metrics.captions import METRICS
from ssb.metrics.statistics import interval, over_seeds, paired, verdict
from ssb.model import SupportSetModel
from ssb.paper import published
from ssb.progress import track
from ssb.report import Experiment, bracketed, cells, intervals, signed
from ssb.study import Study
from ssb.tables import released
from ssb.training.data import Data
from ssb.training.runs import Run

SOURCES = ("own", "support")
BATCH = 32  # clips captioned at a time
MODES = {  # what the decoder attends to, and the width of its beam search
    "own": {"source": "own", "beams": 4},
    "own, greedy": {"source": "own", "beams": 1},
    "support": {"source": "support", "beams": 4},
}
GRID = {objective: {"objective": objective} for objective in OBJECTIVES if objective != "none"}  # which has no decoder
TABLES = {"captioning": Experiment("Tables 7 to 9: captions", grid=lambda study: GRID)}
CONSTANT = "one sentence for all"
CANDIDATES = 50  # the most frequent training captions, from which that sentence is chosen
VERSION = 1  # raise it when the captions or scores of an unchanged run change: cached ones of another are not read


def caption(
    model: SupportSetModel, data: Data, split: str = "test", source: str = "own", beams: int = 4
) -> pd.DataFrame:
    """One caption for each clip of a split, in the split's order: a frame with columns `clip` and `text`. No caption of
    the split is used.

    source: "own": the decoder attends to the clip's own e_v, as under `identity`. "support": retrieve, then caption; it
            attends to ē_v = Σ_j w_j e_v^j over the most similar training clips j, w = softmax of s(c_v, c_v^j) / T, as
            many as a support set had in training, without the clip itself.
    beams:  width of the beam search, whose score is the mean log-probability of a caption's tokens; 1: greedy.
    ValueError for a model without a decoder, an unknown source and beams below 1.
    """
    config = data.config
    if config.objective == "none":
        raise ValueError("objective = 'none' trains no decoder, so it has no captions; choose a captioning objective")
    if source not in SOURCES:
        raise ValueError(f"source = {source!r}; wanted one of {listed(SOURCES)}")
    if beams < 1:
        raise ValueError(f"beams = {beams}; wanted 1 or more")
    clips = torch.from_numpy(data.corpus.split(split))
    texts = []
    model.eval()
    with torch.inference_mode(), threads(config.threads):
        train = data.embed_videos(model, data.train) if source == "support" else None
        for part in clips.split(BATCH):
            inputs = own(model, data, part) if train is None else retrieved(model, data, part, train)
            ids = model.generate(*inputs, beams, config.max_tokens)
            texts += data.label_tokenizer.batch_decode(ids, skip_special_tokens=True)
    return pd.DataFrame({"clip": clips.numpy(), "text": [" ".join(text.split()) for text in texts]})


def own(model: SupportSetModel, data: Data, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's input from each clip itself: (B, M, W), and its mask (B, M)."""
    values, mask = data.video[clips].to(data.device), data.video_mask[clips].to(data.device)
    return model.support(torch.eye(len(clips), device=values.device), values, mask)


def retrieved(model: SupportSetModel, data: Data, clips: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's input from each clip's support set: (B, M, W), and its mask (B, M). embeddings: (N, d) c_v of the
    training clips."""
    train, size = torch.from_numpy(data.train), data.config.support_set or data.config.batch
    by = losses.SIMILARITIES[data.config.weights_by]
    similarity = by(data.embed_videos(model, clips.numpy()), embeddings).to(data.device)  # (B, N)
    similarity = similarity.masked_fill((clips[:, None] == train).to(similarity.device), -torch.inf)  # the clip itself
    best, which = similarity.topk(min(size, len(train)), dim=1)
    weights = torch.zeros_like(similarity).scatter(1, which, (best / data.config.temperature).softmax(dim=1))
    used = (weights > 0).any(dim=0).cpu()  # few of the clips of a large corpus
    values, mask = data.video[train[used]].to(data.device), data.video_mask[train[used]].to(data.device)
    return model.support(weights[:, used.to(weights.device)], values, mask)


class Results(NamedTuple):
    """The results of `measure`. rows: one for each run and mode of MODES. cider: (setting, mode) → (seeds, C) CIDEr of
    the test clips. constant: one sentence for all clips, as `constant` returns it."""

    rows: pd.DataFrame
    cider: dict[tuple[str, str], np.ndarray]
    constant: dict


def measure(study: Study, runs: Mapping[str, list[Run]], metrics: Iterable[str] = METRICS) -> Results:
    """Caption the test clips with every run in every one of MODES, and score the captions; rows, with the provenance of
    the runs, are written to results/<corpus>/<table>.csv, and the CIDEr of each clip beside it. Captions and scores are
    cached in `files.cache()`.

    Columns in addition to those of `Study.rows`: mode; `metrics`; distinct, the number of different captions
    in percent of the clips; clips. Without Java the metrics are NaN.
    """
    metrics, rows, cider = tuple(metrics), [], {}
    each = [(run, mode) for members in runs.values() for run in members for mode in MODES]
    for run, mode in track(each, "captioning the test clips"):
        caption_test_clips(run, study.corpus, mode, metrics)  # kept in results/cache
    for setting, members in runs.items():
        about = study.frame({setting: members}).set_index("seed")
        about = about[["preset", "run", "config_sha", "best_epoch", *members[0].provenance]]
        for mode in MODES:
            scored = [caption_test_clips(run, study.corpus, mode, metrics) for run in members]
            cider[setting, mode] = np.stack([frame["CIDEr"].to_numpy() for frame, _ in scored])
            for run, (frame, scores) in zip(members, scored):
                row = {"table": study.table, "corpus": study.corpus.name, "setting": setting, "mode": mode}
                row |= {"seed": run.config.seed} | {name: round(value, 2) for name, value in scores.items()}
                row |= {"distinct": round(100 * frame["text"].nunique() / len(frame), 1), "clips": len(frame)}
                rows.append(row | about.loc[run.config.seed].to_dict())
    rows = pd.DataFrame(rows).sort_values(["setting", "mode", "seed"], kind="stable", ignore_index=True)
    study.write(rows, f"{study.table}.csv")
    results = Results(rows, cider, constant(study.corpus, metrics))
    arrays = {f"{released.FIXED}/{CONSTANT}": results.constant["each"].astype(np.float32)}
    for (setting, mode), each in cider.items():
        arrays |= {f"{run.name}/{mode}": values.astype(np.float32) for run, values in zip(runs[setting], each)}
    study.release_arrays(arrays)
    return results


def captioned(run: Run, corpus: Corpus, mode: str = "own") -> tuple[pd.DataFrame, str]:
    """A finished run's captions of the test clips, columns clip and text, and a digest of all that they depend on. They
    are computed once and kept in results/cache."""
    weights = (run.folder / "model.safetensors").read_bytes()
    key = files.digest(run.name, weights, json.dumps(MODES[mode]), str(VERSION))

    def make(draft: Path):
        model, data = run.load(corpus)
        texts = caption(model, data, "test", **MODES[mode])["text"].tolist()
        (draft / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

    folder = files.kept(files.cache() / "captions" / key, make)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return pd.DataFrame({"clip": corpus.split("test"), "text": texts}), key


def caption_test_clips(
    run: Run, corpus: Corpus, mode: str = "own", metrics: Iterable[str] = METRICS
) -> tuple[pd.DataFrame, dict[str, float]]:
    """`captioned` with the CIDEr of each clip, and the `metrics` over all of them. Scores are computed once and kept in
    results/cache; without Java they are NaN, and computed when it is there."""
    (frame, key), metrics = captioned(run, corpus, mode), tuple(metrics)
    if captions.java_fails():
        return frame.assign(CIDEr=np.nan), dict.fromkeys(metrics, np.nan)

    def make(draft: Path):
        scores, each = captions.evaluate(frame, corpus.captions_of(corpus.split("test")), metrics)
        content = {"scores": scores, "CIDEr": each.tolist()}
        (draft / "scores.json").write_text(json.dumps(content), encoding="utf-8")

    version = importlib.metadata.version("pycocoevalcap")
    folder = files.kept(files.cache() / "captions" / files.digest(key, version, *metrics), make)
    kept = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return frame.assign(CIDEr=kept["CIDEr"]), kept["scores"]


def constant(corpus: Corpus, metrics: Iterable[str] = METRICS) -> dict:
    """The scores of one sentence for all test clips: text, `metrics`, and CIDEr of each clip in `each` (C,). Of the
    CANDIDATES most frequent training captions it is the one with the best mean CIDEr on the validation clips, and the
    most frequent one where Java is missing. What a decoder scores above it depends on the clip."""
    train = corpus.captions_of(corpus.split("train"))["text"].str.split().str.join(" ")
    counts = train.groupby(train.str.lower().str.rstrip(" .!")).agg(["first", "size"])
    texts = counts.sort_values("size", ascending=False, kind="stable")["first"].head(CANDIDATES).tolist()
    if not captions.java_fails():
        clips = corpus.split("val")
        first = pd.DataFrame({"clip": clips, "text": texts[0]})
        references, _ = captions.tokenized(first, corpus.captions_of(clips))
        tokens = captions.tokenize({text: [text] for text in texts})
        texts.sort(key=lambda text: -Cider().compute_score(references, dict.fromkeys(references, tokens[text]))[0])
    clips = corpus.split("test")
    frame = pd.DataFrame({"clip": clips, "text": texts[0]})
    scores, each = captions.evaluate(frame, corpus.captions_of(clips), tuple(metrics))
    return {"text": texts[0], **scores, "each": each.to_numpy()}


def summary(study: Study, results: Results) -> pd.DataFrame:
    """A row for each setting and mode, then one for the constant sentence; written to
    results/<corpus>/<table>_summary.csv. The mean over seeds of each metric and of the share of distinct captions, the
    deviation of each metric over seeds and its 95 % interval (Student's t), and for CIDEr that over clips too."""
    metrics = [name for name in METRICS if name in results.rows]
    rows = {}
    for (setting, mode), each in results.cider.items():
        members = results.rows[(results.rows["setting"] == setting) & (results.rows["mode"] == mode)]
        row = {"seeds": len(members)}
        for name in metrics:
            row |= {name: members[name].mean(), f"{name} sd": members[name].std(ddof=1)}
            row[f"{name} low"], row[f"{name} high"] = over_seeds(members[name])
        row["CIDEr low over clips"], row["CIDEr high over clips"] = interval(each)
        rows[setting, mode] = row | {"distinct": members["distinct"].mean()}
    scores = {name: results.constant[name] for name in metrics}
    rows[CONSTANT, ""] = {"seeds": 0} | scores | {"distinct": 100 / results.constant["each"].size}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "mode"]).round(2)
    study.write(frame.reset_index(), f"{study.table}_summary.csv")
    return frame


def claims(study: Study, results: Results) -> pd.DataFrame:
    """Claims that Tables 7 to 9 rest on, in points of CIDEr, tested as in `Study.claims`; written to
    results/<corpus>/<table>_claims.csv. No rows where CIDEr is missing."""
    cider = results.cider | {(CONSTANT, ""): results.constant["each"]}
    rows = []
    for words, (setting, mode), baseline in (
        ("better than one sentence for all would", ("cross", "own"), (CONSTANT, "")),
        ("better than one trained on the clip", ("cross", "own"), ("identity", "own")),
        ("from its support set better than one sentence for all would", ("cross", "support"), (CONSTANT, "")),
        ("from its support set better than from itself", ("cross", "support"), ("cross", "own")),
    ):
        if {(setting, mode), baseline} <= cider.keys() and np.isfinite(cider[setting, mode]).all():
            each = cider[setting, mode]
            row = {"claim": f"a decoder trained on other clips captions a clip {words} (points of CIDEr)"}
            row |= {"setting": f"{setting}, {mode}", "seeds": len(each), "paper": np.nan}
            row["baseline"] = ", ".join(baseline) if baseline[0] == setting else baseline[0]
            rows.append(row | paired(each, np.broadcast_to(cider[baseline], each.shape))._asdict())
    return study.judged(rows)


def with_paper_rows(summary: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """The summary for display, every cell a string, with the rows of the paper's table for this corpus below it."""
    paper = published(corpus).assign(mode="own").set_index("mode", append=True)
    frame = pd.concat([summary, paper.reindex(columns=summary.columns)])
    table = pd.DataFrame(index=frame.index)
    for name in (name for name in METRICS if name in summary):
        pairs = zip(cells(frame[name]), cells(frame[f"{name} sd"]))
        table[name] = [f"{mean} ± {deviation}" if deviation else mean for mean, deviation in pairs]
    table["CIDEr 95 % over clips"] = intervals(frame["CIDEr low over clips"], frame["CIDEr high over clips"])
    table["distinct captions"] = cells(frame["distinct"], "{:.0f} %".format)
    return table


def examples(
    study: Study, runs: Mapping[str, list[Run]], settings: tuple[str, ...] = ("cross", "identity"), each: int = 3
) -> pd.DataFrame:
    """The best, median and worst captions from the clip itself by the first setting's first seed, as
    `ssb.metrics.captions.examples` chooses them (none without Java), with the clip's name in `id` and a column for the
    caption of each setting."""
    references = study.corpus.captions_of(study.corpus.split("test"))
    frames = {name: captioned(runs[name][0], study.corpus)[0] for name in settings}
    chosen = captions.examples(frames[settings[0]], references, each).drop(columns="text")
    chosen.insert(1, "id", [study.corpus.clips[clip] for clip in chosen["clip"]])
    return chosen.assign(
        **{name: chosen["clip"].map(frame.set_index("clip")["text"]) for name, frame in frames.items()}
    )


COMPARED = {  # by the verdict on a claim
    "held": "better than",
    "inconclusive": "neither better nor worse beyond the noise than",
    "equivalent": "as good as",
    "contradicted": "worse than",
}


def reading(results: Results, claims: pd.DataFrame) -> str:
    """The answer to the question of this module in words, from the numbers of `measure` and `claims`."""
    if claims.empty:
        return "Without CIDEr the question cannot be answered."
    sentence, each = results.constant["text"], results.constant["each"]
    lines = [f"One sentence for all clips, “{sentence}”: CIDEr {each.mean():.1f}."]
    for setting in dict.fromkeys(setting for setting, _ in results.cider):
        own, support = (results.cider[setting, mode] for mode in ("own", "support"))
        gain = paired(own, support)
        lines.append(
            f"{setting}: CIDEr {own.mean():.1f} from the clip itself, {support.mean():.1f} from its support set; "
            f"difference {signed(gain.delta)} {bracketed(gain.delta_low, gain.delta_high)} over clips: "
            f"{verdict(gain)}."
        )
    verdicts = claims.set_index(["setting", "baseline"])["verdict"]
    constant, identity = (verdicts.get(("cross, own", name)) for name in (CONSTANT, "identity"))
    if constant and identity:
        lines.append(
            "Does a decoder trained on other clips (cross) still caption a clip from the clip itself? By CIDEr its "
            f"captions are {COMPARED[constant]} one sentence for all clips, and {COMPARED[identity]} those of a "
            "decoder trained on the clip itself."
        )
        own = results.rows[(results.rows["setting"] == "cross") & (results.rows["mode"] == "own")]
        for name in (name for name in METRICS if name in own and name != "CIDEr" and len(own) > 1):
            gain = own[name] - results.constant[name]
            low, high = over_seeds(gain)
            side = "higher" if low > 0 else "lower" if high < 0 else "inconclusive"
            lines.append(
                f"{name} of its captions from the clip itself, difference to one sentence for all clips: "
                f"{signed(gain.mean())} {bracketed(low, high)} over seeds: {side}."
            )
    return "\n".join(lines)
