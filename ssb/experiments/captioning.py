"""What the trained decoders of a study say of its test clips, and how well (Tables 7 to 9). A decoder that learnt to
speak of mixes of other clips, as under `cross`: does it still caption a clip itself?"""

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
from ssb.metrics import captions as captions_
from ssb.metrics.captions import METRICS, java_fails, judged, tokenized
from ssb.metrics.statistics import interval, over_seeds, paired, verdict
from ssb.model import SupportSetModel, generated
from ssb.paper import published
from ssb.report import signed
from ssb.study import Study
from ssb.training.data import Data
from ssb.training.runs import Run

WAYS = {  # what the decoder sees of a clip, and how it looks for words
    "own": {"source": "own", "beams": 4},
    "own, greedy": {"source": "own", "beams": 1},
    "support": {"source": "support", "beams": 4},
}
SAID = dict(zip(WAYS, ("the clip itself, 4 beams", "the clip itself, greedy", "its support set, 4 beams")))
GRID = {objective: {"objective": objective} for objective in OBJECTIVES if objective != "none"}  # no decoder, no words
CONSTANT = "one sentence for all"
CANDIDATES = 50  # the most frequent training captions, of which that sentence is chosen
VERSION = 1  # raise it when the captions or scores of an unchanged run change: kept ones of another are not read


class Spoken(NamedTuple):
    """What `measure` gives. rows: one for each run and way. cider: (setting, way) → (seeds, C) CIDEr of each test clip.
    constant: the one sentence, as `constant` gives it."""

    rows: pd.DataFrame
    cider: dict[tuple[str, str], np.ndarray]
    constant: dict


def measure(study: Study, runs: Mapping[str, list[Run]], metrics: Iterable[str] = METRICS) -> Spoken:
    """Caption the test clips with every run in every one of WAYS, and judge the captions; rows, with the provenance of
    the runs, are written to results/<corpus>/<table>.csv. What was judged before is read back from `files.cache()`.

    Columns beside those of `Study.rows`: way; `metrics`; distinct, the share of captions that no other clip has got
    before (%); clips. Without Java the metrics stay blank.
    """
    metrics, frames, cider = tuple(metrics), [], {}
    for setting, members in runs.items():
        about = study.frame({setting: members}).set_index("seed")
        about = about[["preset", "run", "config_sha", "best_epoch", *members[0].provenance]]
        for way in WAYS:
            found = [said(run, study.corpus, way, metrics) for run in members]
            cider[setting, way] = np.stack([each["CIDEr"].to_numpy() for each, _ in found])
            for run, (told, scores) in zip(members, found):
                row = {"table": study.table, "corpus": study.corpus.name, "setting": setting, "way": way}
                row |= {"seed": run.config.seed} | {name: round(value, 2) for name, value in scores.items()}
                row |= {"distinct": round(share_of_distinct(told), 1), "clips": len(told)}
                frames.append(row | about.loc[run.config.seed].to_dict())
    rows = pd.DataFrame(frames).sort_values(["setting", "way", "seed"], kind="stable", ignore_index=True)
    study.write(rows, f"{study.table}.csv")
    return Spoken(rows, cider, constant(study.corpus, metrics))


def said(
    run: Run, corpus: Corpus, way: str = "own", metrics: Iterable[str] = METRICS
) -> tuple[pd.DataFrame, dict[str, float]]:
    """A finished run's captions of the test clips, columns clip, text and CIDEr, and the `metrics` of all of them.
    Each is found once and kept; metrics that could not be had before, without Java, are added when they can be."""
    weights = (run.folder / "model.safetensors").read_bytes()
    version = importlib.metadata.version("pycocoevalcap")
    key = files.digest(run.name, weights, json.dumps(WAYS[way]), version, str(VERSION))
    path = files.cache() / "captions" / f"{key}.json"
    clips = corpus.split("test")
    kept = _read(path, len(clips))
    if not kept:
        model, data = run.load(corpus)
        kept = {"texts": captions(model, data, "test", **WAYS[way])["text"].tolist(), "scores": {}}
        _keep(path, kept)
    told = pd.DataFrame({"clip": clips, "text": kept["texts"]})
    missing = [name for name in metrics if name not in kept["scores"]]
    if (missing or "CIDEr" not in kept) and not java_fails():
        scores, each = judged(told, corpus.captions_of(clips), tuple(missing))
        kept["scores"] |= scores
        _keep(path, kept | {"CIDEr": each.tolist()})
        kept["CIDEr"] = each.tolist()
    scores = {name: kept["scores"].get(name, np.nan) for name in metrics}
    return told.assign(CIDEr=kept.get("CIDEr", np.nan)), scores


def _read(path: Path, clips: int) -> dict:
    """What is kept, or nothing where there is none or it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        sound = len(kept["texts"]) == clips and len(kept.get("CIDEr", kept["texts"])) == clips
        return kept if sound and isinstance(kept["scores"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _keep(path: Path, kept: dict):
    with files.written(path) as draft:
        draft.write_text(json.dumps(kept), encoding="utf-8")


def share_of_distinct(told: pd.DataFrame) -> float:
    """How many different captions, in percent of the clips."""
    return 100 * told["text"].nunique() / len(told)


def constant(corpus: Corpus, metrics: Iterable[str] = METRICS) -> dict:
    """What one sentence for every test clip is worth: text, `metrics`, and CIDEr of each clip in `each` (C,). It is
    the one of the CANDIDATES most frequent training captions whose mean CIDEr on the validation clips is best, and the
    most frequent where Java is missing. What a decoder has above it is about the clip."""
    spoken = corpus.captions_of(corpus.split("train"))["text"].str.split().str.join(" ")
    spoken = spoken.groupby(spoken.str.lower().str.rstrip(" .!")).agg(["first", "size"])
    texts = spoken.sort_values("size", ascending=False, kind="stable")["first"].head(CANDIDATES).tolist()
    if not java_fails():
        clips = corpus.split("val")
        references = corpus.captions_of(clips)
        right, tried = tokenized(pd.DataFrame({"clip": clips, "text": texts[0]}), references)[0], {}
        words = captions_.words(dict(enumerate([[text] for text in texts])))
        for i, text in enumerate(texts):
            tried[text] = Cider().compute_score(right, {clip: words[i] for clip in right})[0]
        texts = [max(tried, key=tried.get)]
    clips = corpus.split("test")
    told = pd.DataFrame({"clip": clips, "text": texts[0]})
    scores, each = judged(told, corpus.captions_of(clips), tuple(metrics))
    return {"text": texts[0], **scores, "each": each.to_numpy()}


def summary(study: Study, spoken: Spoken) -> pd.DataFrame:
    """A row for each setting and way, then the one sentence; written to results/<corpus>/<table>_summary.csv. Each
    metric and the share of distinct captions as the mean over seeds with its deviation, and 95 % intervals of the
    metric over seeds (Student's t), and of CIDEr over clips too."""
    metrics = [name for name in METRICS if name in spoken.rows]
    rows = {}
    for (setting, way), each in spoken.cider.items():
        members = spoken.rows[(spoken.rows["setting"] == setting) & (spoken.rows["way"] == way)]
        row = {"seeds": len(members)}
        for name in metrics:
            low, high = over_seeds(members[name])
            row |= {name: members[name].mean(), f"{name} sd": members[name].std(ddof=1)}
            row |= {f"{name} low": low, f"{name} high": high}
        low, high = interval(each)
        row |= {"CIDEr low over clips": low, "CIDEr high over clips": high, "distinct": members["distinct"].mean()}
        rows[setting, way] = row
    whole = {name: spoken.constant[name] for name in metrics}
    rows[CONSTANT, ""] = {"seeds": 0} | whole | {"distinct": 100 / spoken.constant["each"].size}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "way"]).round(2)
    study.write(frame.reset_index(), f"{study.table}_summary.csv")
    return frame


def claims(study: Study, spoken: Spoken) -> pd.DataFrame:
    """What Tables 7 to 9 take for granted, in points of CIDEr, judged as `Study.claims` judges; written to
    results/<corpus>/<table>_claims.csv. Nothing is claimed where there is no CIDEr."""
    each = spoken.cider | {(CONSTANT, ""): spoken.constant["each"]}
    rows = []
    for says, (setting, way), name in (
        ("better than one sentence for all would", ("cross", "own"), (CONSTANT, "")),
        ("better than one trained on the clip", ("cross", "own"), ("identity", "own")),
        ("from its support set better than one sentence for all would", ("cross", "support"), (CONSTANT, "")),
        ("from its support set better than from itself", ("cross", "support"), ("cross", "own")),
    ):
        baseline = ", ".join(name) if name[0] == setting else name[0]
        if {(setting, way), name} <= each.keys() and np.isfinite(each[setting, way]).all():
            one = each[setting, way]
            row = {"claim": f"a decoder trained on other clips captions a clip {says} (points of CIDEr)"}
            row |= {"setting": f"{setting}, {way}", "baseline": baseline, "seeds": len(one), "paper": np.nan}
            rows.append(row | paired(one, np.broadcast_to(each[name], one.shape))._asdict())
    return study.judged(rows)


def beside(summary: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """The summary as it is read, every cell a string, with the paper's table below it."""
    metrics = [name for name in METRICS if name in summary]
    lines = []
    for (setting, way), row in summary.iterrows():
        cells = {name: _plus_minus(row[name], row[f"{name} sd"]) for name in metrics}
        low, high = row["CIDEr low over clips"], row["CIDEr high over clips"]
        cells |= {"CIDEr 95 % over clips": "" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]"}
        lines.append({"setting": setting, "way": way, **cells, "distinct captions": f"{row['distinct']:.0f} %"})
    for setting, row in published(corpus).iterrows():
        lines.append({"setting": setting, "way": "own"} | {name: _plus_minus(row[name], np.nan) for name in metrics})
    return pd.DataFrame(lines).fillna("").set_index(["setting", "way"])


def _plus_minus(mean: float, deviation: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.1f}" if np.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def examples(
    study: Study, runs: Mapping[str, list[Run]], settings: tuple[str, ...] = ("cross", "identity"), each: int = 3
) -> pd.DataFrame:
    """The best, median and worst captions of clips themselves by the first setting's first seed (see
    `captioning.examples`; none without Java), with the clip's name in `id` and a column for what each setting says."""
    references = study.corpus.captions_of(study.corpus.split("test"))
    told = {name: said(runs[name][0], study.corpus, "own", ())[0] for name in settings}
    found = captions_.examples(told[settings[0]], references, each).drop(columns="text")
    found.insert(1, "id", [study.corpus.clips[clip] for clip in found["clip"]])
    texts = {name: found["clip"].map(frame.set_index("clip")["text"]) for name, frame in told.items()}
    return found.assign(**texts)


ANSWER = {  # to the question of this module, by the verdicts on the first two claims
    "held": "yes, it says more of a clip than one sentence for all would",
    "not resolved": "it cannot be told from one sentence for all",
    "contradicted": "no, one sentence for all scores better",
}
COMPARED = {
    "held": "better than a decoder trained on the clip itself",
    "not resolved": "no difference to a decoder trained on the clip itself is resolved",
    "contradicted": "worse than a decoder trained on the clip itself",
}


def reading(spoken: Spoken, claims: pd.DataFrame) -> str:
    """The question answered in words, from the numbers of `measure` and `claims`."""
    if claims.empty:
        return "There is no CIDEr to answer with."
    lines = [f"One sentence for all clips, “{spoken.constant['text']}”: CIDEr {spoken.constant['each'].mean():.1f}."]
    for setting in dict.fromkeys(setting for setting, _ in spoken.cider):
        own, support = (spoken.cider[setting, way] for way in ("own", "support"))
        gain = paired(own, support)
        better = {"higher": "better from the clip", "lower": "better from its support set"}.get(verdict(gain), "")
        low, high = signed(gain.delta_low), signed(gain.delta_high)
        lines.append(
            f"{setting}: CIDEr {own.mean():.1f} from the clip itself, {support.mean():.1f} from its support set "
            f"({signed(gain.delta)} [{low}, {high}] over clips: {better or 'no difference resolved'})."
        )
    verdicts = claims.set_index(["setting", "baseline"])["verdict"]
    alone, beside = (verdicts.get(("cross, own", name)) for name in (CONSTANT, "identity"))
    if alone and beside:
        lines.append(
            f"Does a decoder trained on other clips (cross) still caption a clip itself? By CIDEr, {ANSWER[alone]}; "
            f"{COMPARED[beside]}."
        )
        own = spoken.rows[(spoken.rows["setting"] == "cross") & (spoken.rows["way"] == "own")]
        for name in (name for name in METRICS if name in own and name != "CIDEr" and len(own) > 1):
            less = own[name] - spoken.constant[name]
            low, high = over_seeds(less)
            side = "above" if low > 0 else "below" if high < 0 else "not told apart from"
            lines.append(
                f"By {name} its captions of the clip itself are {side} one sentence for all: {signed(less.mean())} "
                f"[{signed(low)}, {signed(high)}] over seeds."
            )
    return "\n".join(lines)


SOURCES = ("own", "support")
BATCH = 32  # clips captioned at a time


def captions(
    model: SupportSetModel,
    data: Data,
    split: str = "test",
    source: str = "own",
    beams: int = 4,
    max_tokens: int | None = None,
    support_set: int | None = None,
) -> pd.DataFrame:
    """One caption for each clip of a split, in the split's order: columns `clip` and `text`.

    source:      "own": the decoder sees the clip's own e_v, as under `identity`. "support": retrieve, then caption; it
                 sees ē_v = Σ_j w_j e_v^j over training clips j, w = softmax of s(c_v, c_v^j) / T, and nothing of the
                 clip but what it is similar to. No caption of the split is used.
    beams:       of the beam search, whose score is the mean log-probability of a caption's tokens; 1: greedy.
    max_tokens:  of a caption, the end mark included; None: as in training.
    support_set: how many training clips, the most similar, a clip itself never; None: as many as a caption's support
                 set had in training.
    ValueError for a model without a decoder and for a source, beams or sizes that there are not.
    """
    config = data.config
    max_tokens = config.max_tokens if max_tokens is None else max_tokens
    support_set = (config.support_set or config.batch) if support_set is None else support_set
    if config.objective == "none":
        raise ValueError(
            "objective = 'none' trains no decoder, so there are no captions; wanted a captioning objective"
        )
    if source not in SOURCES:
        raise ValueError(f"source = {source!r}; wanted one of {listed(SOURCES)}")
    for name, value in (("beams", beams), ("max_tokens", max_tokens), ("support_set", support_set)):
        if value < 1:
            raise ValueError(f"{name} = {value}; wanted 1 or more")
    clips = torch.from_numpy(data.corpus.split(split))
    texts = []
    model.eval()
    with torch.inference_mode(), threads(config.threads):
        known = data.embed_videos(model, data.train) if source == "support" else None
        for part in clips.split(BATCH):
            seen = own(model, data, part) if known is None else retrieved(model, data, part, known, support_set)
            ids = generated(model, *seen, beams, max_tokens)
            texts += data.label_tokenizer.batch_decode(ids, skip_special_tokens=True)
    return pd.DataFrame({"clip": clips.numpy(), "text": [" ".join(text.split()) for text in texts]})


def own(model: SupportSetModel, data: Data, clips: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder sees of each clip alone: (B, M, W), and its mask (B, M)."""
    values, mask = data.video[clips].to(data.device), data.video_mask[clips].to(data.device)
    return model.support(torch.eye(len(clips), device=values.device), values, mask)


def retrieved(model: SupportSetModel, data: Data, clips: Tensor, known: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """What the decoder sees of each clip's support set. known: (N, d) c_v of the training clips."""
    train = torch.from_numpy(data.train)
    similarity = losses.cosine(data.embed_videos(model, clips.numpy()), known).to(data.device)  # (B, N)
    itself = (clips[:, None] == train).to(similarity.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    best, which = similarity.topk(min(size, len(train)), dim=1)
    weights = torch.zeros_like(similarity).scatter(1, which, (best / data.config.temperature).softmax(dim=1))
    used = (weights > 0).any(dim=0).cpu()  # of a large corpus, a small part
    values, mask = data.video[train[used]].to(data.device), data.video_mask[train[used]].to(data.device)
    return model.support(weights[:, used.to(weights.device)], values, mask)
