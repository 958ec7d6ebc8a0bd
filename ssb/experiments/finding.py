"""The finding: what the study answers, in a sentence, a table and a figure, all from the tables under results/."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import files, published
from ssb.experiments import overview
from ssb.figures import COLOURS, PAGE, legend, styled
from ssb.report import markdown, read, signed

# claims of the tables
CROSS = "cross-captioning beats no captioning"
MEANING = "cross finds clips of the same meaning better than no captioning"
FALSE_NEGATIVES = "the more false negatives, the more captioning gains (points for every tenfold): cross"
EMCL, WEAK = "SSB and EMCL beat EMCL alone", "weak alignment beats soft-DTW"
# table → the baseline of its runs; the first that a corpus has is the one to trust most
BASELINES = {
    "table1_tuned": "the tuned baseline",
    "table12_tuned": "the tuned baseline",
    "table1": "the `laptop` preset",
    "table1_paper_small": "the paper's heads",
}
FIRST = ("flickr8k_confirm", "flickr8k", "shapes", "msrvtt1k")  # corpora, the one to trust most first


class Question(NamedTuple):
    """A question of the study: the claim of a table that answers it."""

    text: str
    table: str
    claim: str = CROSS


QUESTIONS = (
    Question("Does cross-captioning beat no captioning?", "table1"),
    Question("… over a tuned baseline?", "table1_tuned"),
    Question("… over a tuned baseline?", "table12_tuned"),
    Question("Does it beat the hybrid, which sees the caption's own clip?", "table1", "cross beats hybrid"),
    Question("Does it at λ = 10 on the mean over tokens? (a stress test)", "table1_lambda10"),
    Question(
        "Does it bring clips of one meaning together?",
        "same_meaning",
        MEANING,
    ),
    Question(
        "Does it gain more where there are more false negatives?",
        "false_negatives",
        FALSE_NEGATIVES,
    ),
    Question("EMCL: does it add to cross-captioning?", "together", EMCL),
    Question("VT-TWINS: does weak alignment beat soft-DTW?", "s2dtw", WEAK),
)


def gains(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims that compare `cross` with no captioning, one for each corpus and baseline, those to trust most first.
    claims: of `overview.claims`."""
    rows = claims[(claims["claim"] == CROSS) & claims["table"].isin(BASELINES)]
    tables = [*BASELINES]
    rows = rows.loc[sorted(rows.index, key=lambda k: (place(rows["corpus"][k]), tables.index(rows["table"][k])))]
    return rows[~rows.assign(over=rows["table"].map(BASELINES)).duplicated(["corpus", "over"])].reset_index(drop=True)


def place(corpus: str) -> tuple[int, str]:
    """A key that sorts corpora, those of FIRST first."""
    return FIRST.index(corpus) if corpus in FIRST else len(FIRST), corpus


def difference(row) -> str:
    """A row of claims in words: "+0.1 points [-0.3, 0.5]"."""
    return f"{signed(row.delta)} points [{signed(row.delta_low)}, {signed(row.delta_high)}]"


def judgement(row) -> str:
    """The verdict on a claim, and where it is inconclusive the smallest difference that the design finds."""
    resolves = getattr(row, "resolves", np.nan)
    if row.verdict == "inconclusive" and not np.isnan(resolves):
        return f"inconclusive (the design finds {resolves:.1f} points with 80 % power)"
    return row.verdict


def headline(claims: pd.DataFrame) -> str:
    """The finding in Markdown: for each corpus and baseline the gain of `cross` in R@1, text→video, with its interval
    over queries; the first in bold; then of how many the claim is held. claims: of `overview.claims`."""
    rows, lines = gains(claims), []
    for row in rows.itertuples():
        text = (
            f"On {row.corpus}, over {BASELINES[row.table]}, cross-captioning changes text→video R@1 by "
            f"{difference(row)} over {row.seeds} seeds: {judgement(row)}."
        )
        lines.append(f"**{text}**" if not lines else text)
    if len(rows) > 1:
        held = (rows["verdict"] == "held").sum()
        lines.append(f"The claim that it helps is held in {held or 'none'} of these {len(rows)}.")
    paper = rows["paper"].dropna()
    return textwrap.fill(" ".join([*lines, *(f"The paper prints {signed(x)}." for x in paper[:1])]), 120)


def answers(claims: pd.DataFrame) -> pd.DataFrame:
    """A row for each of QUESTIONS that a table answers: the paper's difference, and for each corpus ours with its
    interval over queries and the verdict. claims: of `overview.claims`."""
    cells = []
    for question in QUESTIONS:
        for row in claims[(claims["table"] == question.table) & (claims["claim"] == question.claim)].itertuples():
            interval = f"[{signed(row.delta_low)}, {signed(row.delta_high)}]"
            text = f"{signed(row.delta)} {interval} {row.verdict}"
            paper = "" if np.isnan(row.paper) else signed(row.paper)
            cells.append((question.text, paper, row.corpus, question.table, text))
    frame = pd.DataFrame(cells, columns=["question", "paper", "corpus", "table", "text"])
    return overview.by_corpus(frame, ["question", "paper"])


def page(claims: pd.DataFrame) -> str:
    """The headline and the answers, in Markdown; "" where no corpus has a Table 1. claims: of `overview.claims`."""
    return f"{words}\n\n{markdown(answers(claims))}" if (words := headline(claims)) else ""


def first_page(results: Path) -> str:
    """Is the support-set effect real? In numbered sentences, one for each kind of table that there is, with the numbers
    of every corpus and links to its tables, in Markdown."""
    folders, lines = sorted(published.folders(results), key=lambda folder: place(folder.name)), []
    for words, table, number in SENTENCES:
        paths = [path for each in folders if (path := each / f"{table}.csv").exists()]
        texts = {path: number(read(path)) for path in paths}
        parts = [f"[{path.parent.name}]({path.parent.name}/{path.name}) {text}" for path, text in texts.items() if text]
        if parts:
            lines.append(f"{len(lines) + 1}. {words}: {'; '.join(parts)}.")
    return "\n".join(lines)


def _of_claim(claim: str = CROSS) -> Callable[[pd.DataFrame], str]:
    """How a table answers a claim."""

    def number(claims: pd.DataFrame) -> str:
        rows = claims[claims["claim"] == claim].itertuples()
        return " and ".join(f"{difference(row)}, {judgement(row)}" for row in rows)

    return number


def _strength(gains: pd.DataFrame) -> str:
    weak, strong = (gains.loc[gains["val R@1"].agg(pick)] for pick in ("idxmin", "idxmax"))
    ends = {"weakest": weak, "strongest": strong}
    parts = [f"{difference(row)} over the {word} ({row['baseline']})" for word, row in ends.items()]
    return f"{' and '.join(parts)} of {len(gains)}"


def _carries(summary: pd.DataFrame) -> str:
    rows = summary.set_index("setting")
    names = {"cross": "in full", "cross, captions shuffled in each step": "with the captions of other clips"}
    return " and ".join(f"{difference(rows.loc[name])} {words}" for name, words in names.items() if name in rows.index)


def _leak(leaks: pd.DataFrame) -> str:
    told = leaks[leaks["probe"] == "caption"].set_index("setting")["told"]
    most = told.drop("none").idxmax()
    return f"{told[most]:.0f} % with {most}, {told['none']:.0f} % without captioning"


SENTENCES = (  # words, table, and how it puts its numbers
    *((f"Cross-captioning over {name}", f"{table}_claims", _of_claim()) for table, name in BASELINES.items()),
    ("Its gain over weak and strong baselines", "strength_gains", _strength),
    ("What carries the gain", "carries_summary", _carries),
    ("At λ = 10 on the mean over tokens, a stress test", "table1_lambda10_claims", _of_claim()),
    ("Clips of one meaning found among the first", "same_meaning_claims", _of_claim(MEANING)),
    ("Gain for every tenfold of false negatives", "false_negatives_claims", _of_claim(FALSE_NEGATIVES)),
    ("A probe tells which caption of a clip made the weights", "leak_leaks", _leak),
    ("EMCL added to cross-captioning", "together_claims", _of_claim(EMCL)),
    ("VT-TWINS: weak alignment against soft-DTW", "s2dtw_claims", _of_claim(WEAK)),
)


def folder(label: str) -> Path:
    """Where the figure goes: figures/, which holds those of all corpora; that of the smoke preset to its own folder."""
    return files.folder("figures", label if label.endswith("-smoke") else "")


@styled
def figure(rows: pd.DataFrame) -> plt.Figure:
    """The gain of `cross` over no captioning on every corpus and baseline, beside the paper's. rows: of `gains`. Thick:
    95 % over queries; thin: over queries and seeds; filled where the claim is held or contradicted."""
    canvas, axis = plt.subplots(figsize=(PAGE * 0.8, 0.9 + 0.28 * len(rows)))
    for y, row in enumerate(rows.itertuples(), start=1):
        low, high = (getattr(row, name, np.nan) for name in ("low", "high"))
        low, high = (row.seeds_low, row.seeds_high) if np.isnan(low) else (low, high)
        axis.plot([low, high], [y, y], color=COLOURS[0], lw=0.8, label="95 %, new queries and new seeds")
        axis.plot([row.delta_low, row.delta_high], [y, y], color=COLOURS[0], lw=3, label="95 %, new queries")
        face = COLOURS[0] if row.verdict in ("held", "contradicted") else "white"
        axis.plot(row.delta, y, "o", color=COLOURS[0], mfc=face, ms=6, zorder=3, label="ours")
    paper = rows["paper"].dropna()
    if len(paper):
        axis.plot(paper.iloc[0], 0, "*", color=COLOURS[1], ms=10, label="the paper's (MSR-VTT, one run)")
    axis.axvline(0, color="0.5", lw=0.8, ls="--")
    names = [f"{row.corpus}: {BASELINES[row.table].replace('`', '')}" for row in rows.itertuples()]
    axis.set(yticks=range(len(rows) + 1), yticklabels=["the paper", *names], ylim=(len(rows) + 0.6, -0.6))
    axis.set(xlabel="Δ R@1 of cross-captioning vs none (points)")
    legend(canvas, columns=2)
    return canvas


ALT = "Gain of cross-captioning over no captioning in text to video R@1, every corpus and baseline, beside the paper's."
