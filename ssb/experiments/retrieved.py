"""Figure 5: what a run finds for some captions of the test clips, the cases chosen by rule and not by hand. Every
query is of one of three kinds, so that the shares of the kinds say how typical the cases are."""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, seen, styled
from ssb.metrics import meaning, retrieval
from ssb.training.runs import Run

KINDS = {  # what a query is, and which of its kind are shown
    "good": ("first is its own clip", "the largest margins"),
    "tied": ("first is a clip of which it is as true, or a tie of its own with others", "the smallest shortfalls"),
    "bad": ("first is a clip of which it is not true", "the worst ranks"),
}
BEST = 3  # clips shown of each query


class Found(NamedTuple):
    """What a run finds for each test query: similarity (Q, C), exact cosines of captions and clips; own (Q,), the
    column of each query's own clip; ranks (Q,) of it; fits (Q, C) bool, of which clips a caption is true; texts (Q,);
    clips (C,), positions in the corpus."""

    run: Run
    corpus: Corpus
    similarity: np.ndarray
    own: np.ndarray
    ranks: np.ndarray
    fits: np.ndarray
    texts: list[str]
    clips: np.ndarray

    @property
    def kinds(self) -> np.ndarray:
        return kinds(self.similarity, self.own, self.fits)

    def choose(self, cases: int = 2) -> pd.DataFrame:
        return choose(self.similarity, self.own, self.fits, cases)


def found(run: Run, corpus: Corpus, fits: np.ndarray | None = None) -> Found:
    """Search the test clips with every caption as the run did. fits: `meaning.same(corpus)`, made where not given."""
    model, data = run.load(corpus)
    data.check_plain()
    text, video, own = data.embed(model, "test")
    similarity = (retrieval.unit(text).cpu() @ retrieval.unit(video).cpu().T).numpy()
    clips, own = corpus.split("test"), np.asarray(own)
    fits = meaning.same(corpus) if fits is None else fits
    texts = corpus.captions_of(clips)["text"].tolist()
    return Found(run, corpus, similarity, own, retrieval.ranks(similarity, own), fits, texts, clips)


def margins(similarity, own) -> np.ndarray:
    """(Q,) similarity of the own clip less the highest of another: above 0 where it is first, 0 where it shares the
    first place. similarity: (Q, C); own: (Q,) columns. ValueError where there is no other clip."""
    similarity, rows = np.array(similarity, np.float64), np.arange(len(own))
    if similarity.shape[1] < 2:
        raise ValueError(f"similarity has shape {similarity.shape}; a margin needs two clips or more to search")
    right = similarity[rows, own]
    similarity[rows, own] = -np.inf
    return right - similarity.max(axis=1)


def kinds(similarity, own, fits) -> np.ndarray:
    """(Q,) the kind of each query:

    good   its own clip is first, alone
    tied   it is not, but a clip that shares the first place is as true of the caption, the own one if it shares it
    bad    no clip in the first place is

    similarity: (Q, C); own: (Q,) columns; fits: (Q, C) bool as `meaning.same` gives it. With one caption a clip and no
    caption twice every clip fits its own caption alone, and only equal similarities are tied.
    """
    similarity, fits = np.asarray(similarity), np.asarray(fits)
    if fits.dtype != bool or fits.shape != similarity.shape:
        raise ValueError(f"fits is {fits.dtype} of shape {fits.shape}; wanted bool of shape {similarity.shape}")
    first = similarity == similarity.max(axis=1, keepdims=True)
    return np.where(margins(similarity, own) > 0, "good", np.where((first & fits).any(axis=1), "tied", "bad"))


def choose(similarity, own, fits, cases: int = 2) -> pd.DataFrame:
    """At most `cases` queries of each kind: kind, query, rank, margin. Chosen are of the good those with the largest
    margin, of the tied those with the smallest shortfall, of the bad those with the worst rank; where these are equal
    the larger shortfall and then the first query. One query a clip: captions of one clip fare alike."""
    margin = margins(similarity, own)
    columns = {"kind": kinds(similarity, own, fits), "query": np.arange(len(margin)), "margin": margin}
    frame = pd.DataFrame(columns | {"rank": retrieval.ranks(similarity, own), "own": own})
    chosen = []
    for kind in KINDS:
        order = {"rank": False, "margin": True} if kind == "bad" else {"margin": False}
        rows = frame[frame["kind"] == kind].sort_values([*order, "query"], ascending=[*order.values(), True])
        chosen.append(rows.drop_duplicates("own").head(cases))
    return pd.concat(chosen, ignore_index=True)[["kind", "query", "rank", "margin"]]


def disagreements(ranks, others, own, cases: int = 1) -> pd.DataFrame:
    """Queries on which two runs disagree most: those that one finds first and that the other ranks worst, at most
    `cases` each way, one query a clip. ranks, others: (Q,) of the two runs. Columns first (0 or 1, the run that is
    right), query, rank and other (in the two runs)."""
    both = np.stack([ranks, others])
    chosen = []
    for first in (0, 1):
        frame = pd.DataFrame({"first": first, "query": np.arange(len(own)), "rank": both[0], "other": both[1]})
        frame = frame.assign(own=own, worst=both[1 - first])[(both[first] == 1) & (both[1 - first] > 1)]
        rows = frame.sort_values(["worst", "query"], ascending=[False, True])
        chosen.append(rows.drop_duplicates("own").head(cases))
    return pd.concat(chosen, ignore_index=True)[["first", "query", "rank", "other"]]


def shares(found: Mapping[str, Found]) -> pd.DataFrame:
    """The share of the queries (percent) that are of each kind, a column for each run (setting → what it found)."""
    frame = pd.DataFrame({"what": {kind: what for kind, (what, _) in KINDS.items()}})
    for setting, each in found.items():
        frame[setting] = [round(100 * (each.kinds == kind).mean(), 1) for kind in KINDS]
    return frame.rename_axis("kind")


def top(found: Found, query: int, best: int = BEST) -> list[int]:
    """Columns of the clips most similar to a query, the best first; of equal ones the first in the split."""
    return np.argsort(-found.similarity[query], kind="stable")[:best].tolist()


def table(found: Found, chosen: pd.DataFrame, best: int = BEST) -> pd.DataFrame:
    """The cases of `choose` in full: for each its query (the number of its caption), its own clip with rank and
    similarity, the clips found, each with its similarity and whether the caption is true of it, the share of queries of
    its kind, and the run. No captions: a corpus may not be ours to copy."""
    names = [found.corpus.clips[clip] for clip in found.clips]
    run = {"setting": found.run.config.objective, "seed": found.run.config.seed, "run": found.run.name}
    share, rows = shares({"%": found})["%"], []
    for case in chosen.itertuples():
        own, scores = found.own[case.query], found.similarity[case.query].round(6)
        row = {"kind": case.kind, "query": case.query, "clip": names[own]}
        row |= {"rank": case.rank, "similarity": scores[own]}
        for place, column in enumerate(top(found, case.query, best), 1):
            row |= {f"found {place}": names[column], f"similarity {place}": scores[column]}
            row[f"true {place}"] = found.fits[case.query, column]
        rows.append(row | {"share of kind": share[case.kind]} | run)
    return pd.DataFrame(rows)


@styled
def figure(found: Found, chosen: pd.DataFrame, title: str):
    """Figure 5: for each case of `choose` the most similar clips, the best at the left, by frames where the corpus has
    them and by a caption of the clip elsewhere, with similarity s; the own clip and those as true are marked. The last
    place is the own clip's where it is not among them. At the left the rule by which the cases were chosen, and the
    share of all queries that are of their kind."""
    share, blocks = shares({"%": found})["%"], []
    for kind, rows in chosen.groupby("kind", sort=False):
        what, rule = KINDS[kind]
        rule = f"{kind}, {share[kind]:.1f} % of queries: {what}. Shown: {rule}"
        blocks.append((rule, [(found, query, f"“{found.texts[query]}”") for query in rows["query"]]))
    return _drawn(blocks, title)


@styled
def contrast(found: Mapping[str, Found], chosen: pd.DataFrame, title: str):
    """The cases of `disagreements` between two runs (setting → what it found), a line for each run, as in `figure`."""
    names, blocks = list(found), []
    for first, rows in chosen.groupby("first", sort=False):
        rule = f"right with {names[first]}. Shown: the worst ranks with {names[1 - first]}"
        pairs = [(name, each, query) for query in rows["query"] for name, each in found.items()]
        heads = [f"{name}, rank {each.ranks[query]:g}: “{each.texts[query]}”" for name, each, query in pairs]
        blocks.append((rule, [(each, query, head) for (_, each, query), head in zip(pairs, heads)]))
    return _drawn(blocks, title)


def _drawn(blocks: list[tuple[str, list[tuple[Found, int, str]]]], title: str) -> plt.Figure:
    """Blocks of a rule and its lines (found, query, head)."""
    count = [len(lines) for _, lines in blocks]
    figure = plt.figure(figsize=(PAGE, 0.9 * max(1, sum(count)) + 0.4))
    if not blocks:
        figure.suptitle(title, fontsize=8)
        figure.text(0.5, 0.4, "there is no such query", ha="center", fontsize=8)
        return figure
    known = blocks[0][1][0][0].corpus.meaning is not None
    figure.suptitle(title if known else f"{title}\n(what is true is judged by the wording of captions)", fontsize=8)
    parts = figure.subfigures(len(blocks), 1, height_ratios=count, squeeze=False)[:, 0]
    for part, (rule, lines) in zip(parts, blocks):
        left, right = part.subfigures(1, 2, width_ratios=[1, 5.2])
        left.text(0.04, 0.94, textwrap.fill(rule, 19), va="top", fontsize=7)
        left.add_artist(plt.Line2D([0.98, 0.98], [0.04, 0.96], color="0.7", lw=0.8))
        for line, (found, query, head) in zip(right.subfigures(len(lines), 1, squeeze=False)[:, 0], lines):
            line.suptitle(textwrap.shorten(head, 92, placeholder=" …”"), fontsize=8, x=0.01, ha="left")
            _line(line, found, query)
    return figure


def _line(line, found: Found, query: int) -> None:
    """The clips of one query, and its own in the last place where it was not among them."""
    axes = line.subplots(1, BEST + 1)
    columns, own = top(found, query), found.own[query]
    for axis, column in zip(axes, columns):
        _titled(axis, found, query, column)
    axes[BEST].axis("off")
    if own not in columns:
        _titled(axes[BEST], found, query, own, f", rank {found.ranks[query]:g}")
    for axis in axes[len(columns) : BEST]:  # fewer test clips than places
        axis.axis("off")


def _titled(axis: plt.Axes, found: Found, query: int, column: int, more: str = "") -> None:
    if column == found.own[query]:
        said, style = "own clip: ", dict(color=COLOURS[2], fontweight="bold")
    elif found.fits[query, column]:
        said, style = "as true: ", dict(color=COLOURS[0], fontweight="bold")
    else:
        said, style = "", dict(color="0.3")
    score = f"{found.similarity[query, column]:.2f}".replace("-", "−")
    axis.set_title(f"{said}s = {score}{more}", fontsize=7, **style).set_in_layout(False)  # else columns do not align
    seen(axis, found.corpus, int(found.clips[column]), 26, 4)
