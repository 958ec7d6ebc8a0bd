"""Figure 5: the clips that a run retrieves for captions of the test clips. The queries are chosen by rule, not by hand:
each query is of one of three kinds, and the share of each kind says how typical its cases are."""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb.corpora.corpus import Corpus
from ssb.figures import COLOURS, PAGE, heading, show_clip, styled
from ssb.metrics import meaning, retrieval
from ssb.training.runs import Run

KINDS = {  # of queries: the definition, and which queries are drawn
    "good": ("its own clip is first, alone", "the largest margins"),
    "tied": ("another clip of which it is true is first, or its own clip ties for first", "the smallest shortfalls"),
    "bad": ("it is true of no clip in the first place", "the worst ranks"),
}
BEST = 3  # clips drawn for each query


class Search(NamedTuple):
    """Test captions of a run as queries among its test clips. similarity: (Q, C) exact cosines; own: (Q,) the column of
    each query's own clip; ranks: (Q,) of it; fits: (Q, C) bool, whether the caption is true of the clip; kinds: (Q,),
    see `kinds`; texts: (Q,); clips: (C,) positions in the corpus."""

    run: Run
    corpus: Corpus
    similarity: np.ndarray
    own: np.ndarray
    ranks: np.ndarray
    fits: np.ndarray
    kinds: np.ndarray
    texts: list[str]
    clips: np.ndarray

    def choose(self, cases: int = 2) -> pd.DataFrame:
        """The queries to draw, see `choose`."""
        return choose(self.similarity, self.own, self.fits, cases)


def search(run: Run, corpus: Corpus, fits: np.ndarray | None = None) -> Search:
    """Search the test clips with every test caption, as the run's own test did. fits: of `meaning.same(corpus)`, which
    is called where it is None."""
    model, data = run.load(corpus)
    data.check_cosine()
    text, video, own = data.embed(model, "test")
    similarity = (retrieval.unit(text).cpu() @ retrieval.unit(video).cpu().T).numpy()
    ranks, clips = retrieval.ranks(similarity, own), corpus.split("test")
    fits = meaning.same(corpus) if fits is None else fits
    texts = corpus.captions_of(clips)["text"].tolist()
    return Search(run, corpus, similarity, own, ranks, fits, kinds(similarity, own, fits), texts, clips)


def margins(similarity, own) -> np.ndarray:
    """(Q,) similarity of the own clip minus the largest of another clip: above 0 where the own clip is first, 0 where
    it shares the first place. similarity: (Q, C); own: (Q,) columns. ValueError where there is only one clip."""
    similarity, rows = np.array(similarity, np.float64), np.arange(len(own))
    if similarity.shape[1] < 2:
        raise ValueError(f"similarity has shape {similarity.shape}; a margin needs two or more clips")
    right = similarity[rows, own]
    similarity[rows, own] = -np.inf
    return right - similarity.max(axis=1)


def kinds(similarity, own, fits) -> np.ndarray:
    """(Q,) the kind of each query, by the clips of the largest similarity, the first place:

    good   its own clip alone is in the first place
    tied   otherwise, if the caption is true of a clip in the first place, which may be its own
    bad    the caption is true of no clip in the first place

    similarity: (Q, C); own: (Q,) columns; fits: (Q, C) bool, of `meaning.same`. Where each caption is true of its own
    clip alone, "tied" means equal similarities. ValueError for fits of another type or shape.
    """
    similarity, fits = np.asarray(similarity), np.asarray(fits)
    if fits.dtype != bool or fits.shape != similarity.shape:
        raise ValueError(f"fits is {fits.dtype} of shape {fits.shape}; wanted bool of shape {similarity.shape}")
    first = similarity == similarity.max(axis=1, keepdims=True)
    return np.where(margins(similarity, own) > 0, "good", np.where((first & fits).any(axis=1), "tied", "bad"))


def choose(similarity, own, fits, cases: int = 2) -> pd.DataFrame:
    """At most `cases` queries of each kind: kind, query, rank, margin. Of "good" those with the largest margin, of
    "tied" those with the smallest shortfall, of "bad" those with the worst rank; among equals those with the larger
    shortfall, then the first query. At most one query for each clip, since captions of one clip rank alike."""
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
    """The queries on which two runs disagree most: rank 1 in one run and the worst ranks in the other, at most `cases`
    for each run, one query for each clip. ranks, others: (Q,) of the two runs; own: (Q,) the clip of each query.
    Columns first (0 or 1, the run that is right), query, rank and other (in the two runs)."""
    frame = pd.DataFrame({"query": np.arange(len(own)), "rank": ranks, "other": others, "own": own})
    chosen = []
    for first, (right, wrong) in enumerate((("rank", "other"), ("other", "rank"))):
        rows = frame.assign(first=first)[(frame[right] == 1) & (frame[wrong] > 1)]
        rows = rows.sort_values([wrong, "query"], ascending=[False, True])
        chosen.append(rows.drop_duplicates("own").head(cases))
    return pd.concat(chosen, ignore_index=True)[["first", "query", "rank", "other"]]


def shares(searches: Mapping[str, Search]) -> pd.DataFrame:
    """The percentage of queries of each kind: a row for each kind with its definition, a column for each run.
    searches: setting → the search of its run."""
    frame = pd.DataFrame({"definition": {kind: definition for kind, (definition, _) in KINDS.items()}})
    for setting, each in searches.items():
        frame[setting] = [round(100 * (each.kinds == kind).mean(), 1) for kind in KINDS]
    return frame.rename_axis("kind")


def reading(shares: pd.DataFrame) -> str:
    """The `shares` in words, a line for each run."""
    lines = []
    for name in shares.columns.drop("definition"):
        own, same, other = (shares.loc[kind, name] for kind in KINDS)
        lines.append(
            f"{name}: of the test captions {own:.1f} % find their own clip first, {same:.1f} % another of which they "
            f"are equally true, and {other:.1f} % a clip of another meaning."
        )
    return "\n".join([*lines, "One run of each: the differences are not tested."])


def top(search: Search, query: int) -> list[int]:
    """Columns of the BEST clips most similar to a query, the most similar first; ties in the order of the split."""
    return np.argsort(-search.similarity[query], kind="stable")[:BEST].tolist()


def table(search: Search, chosen: pd.DataFrame) -> pd.DataFrame:
    """The cases of `choose` in full: for each the query (the number of its caption), its own clip with rank and
    similarity, the retrieved clips, each with its similarity and whether the caption is true of it, the share of
    queries of its kind, and the run. Without the captions, which may not be ours to publish."""
    names = [search.corpus.clips[clip] for clip in search.clips]
    run = {"setting": search.run.config.objective, "seed": search.run.config.seed, "run": search.run.name}
    percent, rows = shares({"%": search})["%"], []
    for case in chosen.itertuples():
        own, scores = search.own[case.query], search.similarity[case.query].round(6)
        row = {"kind": case.kind, "query": case.query, "clip": names[own]}
        row |= {"rank": case.rank, "similarity": scores[own]}
        for k, column in enumerate(top(search, case.query), 1):
            row |= {f"found {k}": names[column], f"similarity {k}": scores[column]}
            row[f"true {k}"] = search.fits[case.query, column]
        rows.append(row | {"share of kind": percent[case.kind]} | run)
    return pd.DataFrame(rows)


@styled
def figure(search: Search, chosen: pd.DataFrame, title: str):
    """Figure 5: for each case of `choose` the rank of its own clip and the most similar clips, the best at the left, as
    frames where the corpus has them and as a caption of the clip elsewhere, with similarity s; clips of which the query
    is true are marked. The own clip is last where it is not among them. At the left the rule by which the cases were
    chosen, and the share of all queries that are of their kind."""
    percent, blocks = shares({"%": search})["%"], []
    for kind, rows in chosen.groupby("kind", sort=False):
        definition, rule = KINDS[kind]
        rule = f"{kind}, {percent[kind]:.1f} % of queries: {definition}. Shown: {rule}"
        lines = [(search, q, f"rank {search.ranks[q]:g}: “{search.texts[q]}”") for q in rows["query"]]
        blocks.append((rule, lines))
    return _blocks(blocks, title)


@styled
def contrast(searches: Mapping[str, Search], chosen: pd.DataFrame, title: str):
    """The cases of `disagreements` between two runs, setting → search, a line for each run, drawn as in `figure`."""
    names, blocks = list(searches), []
    for first, rows in chosen.groupby("first", sort=False):
        lines = [
            (each, query, f"{name}, rank {each.ranks[query]:g}: “{each.texts[query]}”")
            for query in rows["query"]
            for name, each in searches.items()
        ]
        blocks.append((f"rank 1 with {names[first]}. Shown: the worst ranks with {names[1 - first]}", lines))
    return _blocks(blocks, title)


def _blocks(blocks: list[tuple[str, list[tuple[Search, int, str]]]], title: str) -> plt.Figure:
    """Draw blocks of cases, each with the rule at its left. blocks: a rule and its lines (search, query, heading)."""
    count = [len(lines) for _, lines in blocks]
    figure = plt.figure(figsize=(PAGE, 1.1 * max(1, sum(count)) + 0.4))
    if not blocks:
        heading(figure, title)
        figure.text(0.5, 0.4, "there is no such query", ha="center")
        return figure
    words = "s: similarity of query and clip"
    if blocks[0][1][0][0].corpus.meaning is None:
        words += "; what is true is estimated from the wording of captions"
    heading(figure, f"{title}\n({words})")
    parts = figure.subfigures(len(blocks), 1, height_ratios=count, squeeze=False)[:, 0]
    for part, (rule, lines) in zip(parts, blocks):
        left, right = part.subfigures(1, 2, width_ratios=[1, 5.2])
        left.text(0.04, 0.94, textwrap.fill(rule, 18), va="top")
        left.add_artist(plt.Line2D([0.98, 0.98], [0.04, 0.96], color="0.7", lw=0.8))
        for line, case in zip(right.subfigures(len(lines), 1, squeeze=False)[:, 0], lines):
            _line(line, *case)
    return figure


def _line(line, search: Search, query: int, words: str) -> None:
    """The clips of one query, and its own in the last column where it is not among them."""
    line.suptitle(textwrap.shorten(words, 92, placeholder=" …”"), x=0.01, ha="left")
    columns, own = top(search, query), search.own[query]
    axes = line.subplots(1, len(columns) + (own not in columns), squeeze=False)[0]
    for axis, column in zip(axes, columns if own in columns else [*columns, own]):
        _clip(axis, search, query, column, 80 // len(axes))


def _clip(axis: plt.Axes, search: Search, query: int, column: int, letters: int) -> None:
    """letters: of a line of its caption, where it has no frames."""
    if column == search.own[query]:
        mark, style = "own clip: ", dict(color=COLOURS[2], fontweight="bold")
    elif search.fits[query, column]:
        mark, style = "also true: ", dict(color=COLOURS[0], fontweight="bold")
    else:
        mark, style = "", dict(color="0.3")
    score = f"{search.similarity[query, column]:.2f}".replace("-", "−")
    axis.set_title(f"{mark}s = {score}", **style).set_in_layout(False)  # keeps the columns aligned
    show_clip(axis, search.corpus, int(search.clips[column]), letters, 4)
