"""The finding: what the study answers, in a sentence, a table and a figure, all from the tables under results/."""

import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ssb import figures, files, published
from ssb.experiments import carries, leak, long_videos, multiverse, overview, strength, when
from ssb.figures import COLUMN, RESOLVED, styled
from ssb.metrics.sequences import BY_FULL
from ssb.metrics.statistics import ACTS, holm, over_seeds
from ssb.report import bracketed, in_ranks, markdown, ranked, read, signed, widest
from ssb.tables.verdicts import LOG, VERDICTS

# claims of the tables
CROSS = "cross-captioning beats no captioning"
MEANING = "cross finds clips of the same meaning better than no captioning"
ACTIONS = "cross-captioning makes a better head for actions (points of top-1)"
FALSE_NEGATIVES = "the more false negatives, the more captioning gains (points for every tenfold): cross"
EMCL, WEAK = "SSB and EMCL beat EMCL alone", "weak alignment beats soft-DTW"
# a baseline → the tables that compare `cross` with it, the one to read where a corpus has several first
BASELINES = {
    "the tuned baseline": ("table1_tuned", "table12_tuned"),
    "the `laptop` preset": ("table1", "table12"),
    "the paper's heads": ("table12_paper_small",),
}
LEAK = 3.0  # the λ of which the first page tells the leak: the largest, where there is most of it
METHOD = "reconstructing captions from other clips (cross-captioning)"
MEASURE = "R@1, the percentage of captions whose own clip is ranked first,"
CONFIRMED = "flickr8k_confirm"  # the corpus of results/protocol.md
FAMILY = ("the tuned baseline", "the `laptop` preset")  # whose comparisons are one family of tests there
FIRST = (CONFIRMED, "flickr8k", "shapes", "msrvtt1k")  # corpora, the one to trust most first


class Question(NamedTuple):
    """A question of the study, the tables that answer it, and by which claims, as of `tested`."""

    text: str
    tables: tuple[str, ...]
    wanted: tuple[str, ...] = (CROSS,)


class Sentence(NamedTuple):
    """A sentence of the first page. tables: names of files; the first that a corpus has counts. number: the path of a
    table → what it says."""

    words: str
    tables: Sequence[str]
    number: Callable[[Path], str]


QUESTIONS = (
    *(Question(f"Does cross-captioning beat no captioning over {name}?", tables) for name, tables in BASELINES.items()),
    Question(
        "Does it help on average over weak and strong baselines, that of the largest gain left out, at the λ best on "
        "validation?",
        ("strength",),
        (strength.OTHERS,),
    ),
    Question("Does it bring clips of one meaning together?", ("same_meaning",), (MEANING,)),
    Question(
        "Does it gain more where there are more false negatives?",
        ("false_negatives", "when"),
        (FALSE_NEGATIVES, when.MANY),
    ),
    Question("EMCL: does it add to cross-captioning?", ("together",), (EMCL,)),
    Question("VT-TWINS: does weak alignment beat soft-DTW, each ranked by its own score?", ("s2dtw",), (WEAK,)),
)


def tested(claims: pd.DataFrame, tables: Sequence[str], wanted: Sequence[str] = (CROSS,)) -> pd.DataFrame:
    """The rows of the wanted claims, one for each corpus: that of the first of these tables that it has. claims: of
    `overview.claims`."""
    rows = claims[claims["claim"].isin(wanted) & claims["table"].isin(tables)]
    rows = rows.sort_values("table", key=lambda names: names.map(tables.index), kind="stable")
    return rows.drop_duplicates("corpus").sort_index()


def gains(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims that compare `cross` with no captioning, one for each corpus and baseline (column over), those to
    trust most first. claims: of `overview.claims`."""
    rows = pd.concat([tested(claims, tables).assign(over=name) for name, tables in BASELINES.items()])
    return rows.sort_values("corpus", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def place(corpus: str) -> tuple[int, str]:
    """A key that sorts corpora, those of FIRST first."""
    return FIRST.index(corpus) if corpus in FIRST else len(FIRST), corpus


def difference(row, unit: str = " points") -> str:
    """A row of claims or of a summary in words, with its interval over queries and seeds, of tables of before there was
    one that over queries: "+0.1 points [-0.3, +0.5]"."""
    return f"{signed(row.delta)}{unit} {bracketed(*widest(row))}"


def judgement(row) -> str:
    """The verdict on a claim, and where it is inconclusive the smallest difference that the design finds."""
    resolves = row.get("resolves", np.nan)
    if row.verdict == "inconclusive" and not np.isnan(resolves):
        return f"inconclusive (the design finds {resolves:.1f} points with 80 % power)"
    return row.verdict


def headline(claims: pd.DataFrame) -> str:
    """The finding in Markdown. In bold, of the corpus to trust most: the gain of `cross` over each baseline in R@1,
    text→video, with its interval, the seeds and the paper's; then the geometric mean of the ranks there, and in how
    many comparisons on all corpora the claim is held. claims: of `overview.claims`."""
    rows = gains(claims)
    if rows.empty:
        return ""
    corpus = rows["corpus"].iloc[0]
    first = rows[rows["corpus"] == corpus]
    texts = [f"{difference(row)} over {row.over}" for _, row in first.iterrows()]
    paper = "".join(f"; the paper prints {signed(x)}" for x in first["paper"].dropna()[:1])
    where = f"On {corpus} ({first['seeds'].min():.0f} seeds)"
    parts = [f"**{where}, {METHOD} changes {MEASURE} by {_and_by(texts)}{paper}.**"]
    if ranks := [*filter(None, (in_ranks(row) for _, row in first.iterrows()))]:
        parts += [f"The geometric mean of the ranks of the right clips changes by {_and_by(ranks)}; less is better."]
    return textwrap.fill(" ".join([*parts, conclusion(rows)]), 120)


def conclusion(rows: pd.DataFrame, linked: bool = False) -> str:
    """In how many comparisons of `gains` the claim is held, in how many the interval of the mean log rank over queries
    and seeds excludes 0, and in how many captioning hardly acts. linked: with a link to the claims."""
    held, n = (rows["verdict"] == "held").sum(), len(rows)
    corpora, many = {*rows["corpus"]} - {CONFIRMED}, f"[{n} comparisons](#the-claims)" if linked else f"{n} comparisons"
    on = f" on {len(corpora)} corpora" if len(corpora) > 1 else ""
    on += " and a second split of one" if on and CONFIRMED in {*rows["corpus"]} else ""
    words = f"The claim that it helps is held in {held or 'none'} of {many} with no captioning{on}, by R@1"
    little = _acting(rows["share"].dropna()) if "share" in rows else ""
    if LOG[0] not in rows:
        return f"{words}.{little}"
    better, worse = rows[rows[LOG[2]] < 0], (rows[LOG[1]] > 0).sum()
    parts = [_sizes(part) + over for part, over in _apart(better) if len(part)]
    by = f", by {_and_by(parts)}," if parts else ""
    words = f"{words}; by all ranks together, each tested alone, it helps in {len(better) or 'none'}{by}"
    return f"{words} and harms in {worse or 'none'}.{little}"


def _apart(rows: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """Rows of `gains` over FAMILY, and those over each other baseline, with words that say which."""
    family = rows["over"].isin(FAMILY)
    others = rows[~family].groupby(["over", "corpus"], sort=False)
    return [(rows[family], ""), *((part, f" over {over} on {corpus}") for (over, corpus), part in others)]


def _and_by(texts: Sequence[str]) -> str:
    """ "a, by b and by c"."""
    return " and by ".join(filter(None, [", by ".join(texts[:-1]), texts[-1]]))


def _sizes(rows: pd.DataFrame) -> str:
    """The least and the largest change of the geometric mean of the ranks, in percent: "0.8 to 2.5 %"."""
    sizes = sorted(-100 * np.expm1(rows[LOG[0]]))
    return f"{' to '.join(dict.fromkeys(f'{size:.1f}' for size in (sizes[0], sizes[-1])))} %"


def _acting(shares: pd.Series) -> str:
    """In how many comparisons captioning had so little of the gradient that it hardly acts; "" where in none. shares:
    its share in each."""
    little = 100 * shares[shares < ACTS]
    if little.empty:
        return ""
    where = "all of them" if len(little) == len(shares) else f"{len(little)} of them"
    return (
        f" In {where}, at the weight λ of the preset, captioning had less than {100 * ACTS:.0f} % of the gradient "
        f"({little.min():.1f} to {little.max():.1f} %)."
    )


def shares(results: Path) -> str:
    """Over how many baselines, and under how many readings of similar magnitudes and how many others, of all corpora
    under results/, `cross` gains, in how many of them beyond the noise of clips and seeds, by Holm in each table, and
    by how much over the baselines on average, with links to the tables; "" where there are none."""
    folders = sorted(published.folders(results), key=lambda folder: place(folder.name))
    strengths, readings = (
        {path: read(path) for folder in folders if (path := folder / f"{kind}.csv").exists()}
        for kind in ("strength_gains", "multiverse_readings")
    )
    parts = []
    if strengths:
        means = [
            f"{difference(row)} on {path.parent.name} ({row['verdict']}{without})"
            for path in strengths
            for row, without in _mean(path)
        ]
        average = f", on average by {' and '.join(means)} at the λ that validation chose" if means else ""
        parts.append(f"over {_gained(strengths.values(), 'baselines')}{_links(strengths)}{average}")
    if readings:
        alike, others = ([table[multiverse.similar(table) == same] for table in readings.values()] for same in (1, 0))
        words = _gained(alike, "readings of the paper with terms of similar magnitude")
        words += f" and {_gained(others, 'others, with captioning larger')}" if any(map(len, others)) else ""
        parts.append(f"under {words}{_links(readings)}")
    return f"It gains {'; '.join(parts)}." if parts else ""


def _gained(tables: Iterable[pd.DataFrame], what: str) -> str:
    """How many rows of these tables gain, and how many are beyond the noise."""
    rows = pd.concat(tables)
    higher, lower = ((rows["verdict"] == word).sum() or "none" for word in ("higher", "lower"))
    gain = (rows["delta"] > 0).sum() or "none"
    return f"{gain} of {len(rows)} {what} ({higher} beyond the noise; {lower} lose beyond it)"


def _mean(path: Path) -> Iterator[tuple[pd.Series, str]]:
    """The claim of the mean over the baselines, beside a table of their gains, if it is there; and in words that
    without the largest gain."""
    if (claims := path.with_name("strength_claims.csv")).exists():
        rows = {row["claim"]: row for _, row in read(claims).iterrows()}
        others = rows.get(strength.OTHERS)
        without = "" if others is None else f"; without the largest gain {difference(others)}, {others['verdict']}"
        yield from [(rows[strength.AVERAGE], without)] if strength.AVERAGE in rows else []


def _links(paths: Iterable[Path]) -> str:
    links = ", ".join(f"[{path.parent.name}]({path.parent.name}/{path.name})" for path in paths)
    return f" ({links})"


def bars(results: Path) -> str:
    """On which corpora the tuned baseline reaches every recall that a trained one must, of `probe.bars`, with the one
    that is closest; in bold on which it does not, with the recalls; and on which it was tuned but no table says it; ""
    where none does."""
    reached, missed, unknown = [], [], []
    for folder in sorted(published.folders(results), key=lambda folder: place(folder.name)):
        path = folder / "heads_bars.csv"
        if not path.exists() or "tuned" not in (table := read(path)):
            unknown += [folder.name] if (folder / "looks_summary.csv").exists() else []
            continue
        link = f"[{folder.name}]({folder.name}/{path.name})"
        margins = table["tuned"] / table["wanted"]
        below = table[margins < 1]
        told = below if len(below) else table.loc[[margins.idxmin()]]
        texts = [f"{row.metric} {row.tuned:.1f} to {row.wanted:.1f} of {row.bar}" for row in told.itertuples()]
        words = "; ".join(texts)
        if len(below):
            missed.append(f"{link} ({words})")
        else:
            reached.append(f"{link} (closest: {words})")
    parts = [f"reaches all of them on {', '.join(reached)}"] if reached else []
    parts += [f"**does not reach them on {', '.join(missed)}**"] if missed else []
    without = f"; whether it does on {', '.join(unknown)} is not measured yet" if unknown else ""
    return f"{BARS} {' and '.join(parts)}{without}." if parts else ""


def answers(claims: pd.DataFrame) -> pd.DataFrame:
    """A row for each of QUESTIONS that a table answers: the paper's difference, and for each corpus ours with its
    interval and the verdict. claims: of `overview.claims`."""
    cells = []
    for question in QUESTIONS:
        for row in tested(claims, question.tables, question.wanted).itertuples():
            paper = "" if np.isnan(row.paper) else signed(row.paper)
            unit = " % of a rank" if row.claim == when.MANY else ""
            text = f"{difference(row, unit)} {overview.verdict(row)}"
            cells.append((question.text, paper, row.corpus, row.table, text))
    frame = pd.DataFrame(cells, columns=["question", "paper", "corpus", "table", "text"])
    return overview.by_corpus(frame, ["question", "paper"], FIRST)


def page(claims: pd.DataFrame) -> str:
    """The headline and the answers, in Markdown; "" where no corpus has a Table 1. claims: of `overview.claims`."""
    return f"{words}\n\n{markdown(answers(claims))}" if (words := headline(claims)) else ""


def numbers(results: Path, sentence: Sentence) -> dict[Path, str]:
    """What a sentence says of each corpus that has a table for it: the table → its numbers in words."""
    folders = sorted(published.folders(results), key=lambda folder: place(folder.name))
    paths = [[path for table in sentence.tables if (path := each / f"{table}.csv").exists()][:1] for each in folders]
    texts = {path: sentence.number(path) for path in itertools.chain(*paths)}
    return {path: text for path, text in texts.items() if text}


def sentences(results: Path, wanted: Sequence[Sentence]) -> str:
    """A numbered list of those of these sentences that there are tables for, in Markdown: what each says first of every
    corpus, with links to the tables, and folded away below it all that it says."""
    told = [(sentence.words, texts) for sentence in wanted if (texts := numbers(results, sentence))]
    lines = []
    for number, (words, texts) in enumerate(told, start=1):
        links = {path: f"[{path.parent.name}]({path.parent.name}/{path.name})" for path in texts}
        first = [f"{links[path]} {text.partition('; ')[0]}" for path, text in texts.items()]
        lines.append(f"{number}. {words}: {'; '.join(first)}.")
        if rest := [f"    - {links[path]}: {text}." for path, text in texts.items() if "; " in text]:
            lines += ["", "    <details><summary>in full</summary>", "", *rest, "", "    </details>", ""]
    return "\n".join(lines).rstrip()


def first_page(results: Path, claims: pd.DataFrame) -> str:
    """Is the support-set effect real? How many comparisons say so; a sentence for each kind of table; then one for
    another task and one for each of the related methods. claims: of `overview.claims`."""
    rows = gains(claims)
    words = f"**{conclusion(rows, linked=True)}**", shares(results), bars(results), CAVEAT
    parts = [" ".join(filter(None, words))] if len(rows) else []
    parts += [sentences(results, EFFECT)]
    if others := sentences(results, OTHERS):
        parts += ["On another task, and of the two related methods:", others]
    return "\n\n".join(parts)


def confirmation(claims: pd.DataFrame) -> str:
    """What came of the comparisons that were written down before they ran, in Markdown: p of FAMILY, adjusted by Holm,
    and of the others; "" where none of FAMILY has run. claims: of `overview.claims`."""
    rows = gains(claims)
    rows = rows[rows["corpus"] == CONFIRMED]
    family = rows[rows["over"].isin(FAMILY)]
    if family.empty:
        return ""
    tests = [f"p = {p:.2f} over {over}" for p, over in zip(holm(family["p"]), family["over"])]
    alone = "".join(f"; by itself p = {row.p:.2f} over {row.over}" for row in rows.drop(family.index).itertuples())
    return (
        f"The comparisons on {CONFIRMED} were [written down](protocol.md) before they ran, as one family of tests: by "
        f"Holm {' and '.join(tests)}{alone}."
    )


def _of_claim(claim: str = CROSS, acting: str = "") -> Callable[[Path], str]:
    """How a table answers a claim. acting: share or ratio, what is said of the captioning in it; "": nothing."""

    def number(path: Path) -> str:
        claims = read(path)
        rows = claims[claims["claim"] == claim]
        words = [f"{difference(row)}, {judgement(row)}{ranked(row)}" for _, row in rows.iterrows()]
        text, captioning = " and ".join(words), _captioning(path, rows, acting)
        return ": ".join([*captioning, text]) if acting == "ratio" else "; ".join([text, *captioning])

    return number


def _captioning(claims: Path, rows: pd.DataFrame, column: str) -> list[str]:
    """In words, captioning's share of the gradient or its ratio to the contrastive term, the mean over the runs that a
    table of claims is of; [] where it is not recorded."""
    runs = claims.with_name(claims.name.replace("_claims", ""))
    if not column or rows.empty or column not in (table := read(runs)):
        return []
    value = pd.to_numeric(table.loc[table["setting"].isin(rows["setting"]), column], errors="coerce").mean()
    words = {
        "share": f"had {100 * value:.1f} % of the gradient",
        "ratio": f"was {value:.3g} times the contrastive term",
    }
    return [] if np.isnan(value) else [f"captioning {words[column]}"]


def _strength(path: Path) -> str:
    table = read(path)
    claims = read(path.with_name("strength_claims.csv")).set_index("claim")
    means = claims.loc[strength.AVERAGE]
    weak, strong = (table["val R@1"].agg(pick) for pick in ("idxmin", "idxmax"))
    rows = {weak: "the weakest", strong: "the strongest"}
    rows |= {k: "a preset" for k in table.index[table["baseline"].isin(strength.PRESETS)] if k not in rows}
    parts = []
    for k, word in rows.items():
        row = table.loc[k]
        parts.append(f"{difference(row)} over {word} ({row['baseline']}) at λ = {row['λ']:g}, {row['verdict']}")
    words = f"{_counted(table, 'over', 'baselines')} {difference(means)}, {means['verdict']}"
    if strength.OTHERS in claims.index:
        most = table["baseline"][table["delta"].idxmax()]
        others = claims.loc[strength.OTHERS]
        words += f", and without that of the largest gain ({most}) {difference(others)}, {others['verdict']}"
    cases = {strength.FIXED.format(weight): f"with λ = {weight:g} on all" for weight in strength.LAMBDAS}
    also = [f"{difference(claims.loc[each])} {case}" for each, case in cases.items() if each in claims.index]
    return "; ".join(filter(None, [words, ", ".join(also), *parts]))


def _readings(path: Path) -> str:
    choices = read(path.with_name("multiverse_choices.csv")).set_index("choice")
    mean, rest = choices.loc[multiverse.MEAN], choices.drop(index=multiverse.MEAN)
    table, words = read(path), VERDICTS.get(mean["verdict"], mean["verdict"])
    steps = read(path.with_name("multiverse.csv"))["steps"]
    trained = (
        f"after {steps.max()} steps, with an R@1 without captioning of {table['R@1'].min():.0f} to "
        f"{table['R@1'].max():.0f},"
    )
    parts = [f"{trained} {_counted(table, 'under', 'readings')} {difference(mean)}, {words}"]
    matter = [
        f"{row['to']} in place of {row['from']}, {difference(row)}"
        for _, row in rest.iterrows()
        if row["verdict"] in RESOLVED
    ]
    parts += [f"the gain depends beyond the noise on {' and on '.join(matter) or 'no choice'}"] if len(rest) else []
    return "; ".join([*filter(None, [multiverse.alike(table)]), *parts])


def _counted(gains: pd.DataFrame, where: str, what: str) -> str:
    return f"it gains {where} {(gains['delta'] > 0).sum()} of {len(gains)} {what}, the mean over all of them is"


def _carries(path: Path) -> str:
    """Of each part its row of the summary; of captioning against the captions of other clips, of the oracle, and of the
    rival of captioning that does best beside it, in its place and with it, the claim, which is a test of its own."""
    rows, claims = read(path).set_index("setting"), read(path.with_name(path.name.replace("_summary", "_claims")))
    of_ceiling = claims[(claims["setting"] == carries.ORACLE) & (claims["baseline"] == carries.WITHOUT)]
    rows = pd.concat([rows.drop(index=carries.ORACLE, errors="ignore"), of_ceiling.set_index("setting")])
    names = {"cross": "in full", carries.SHUFFLED: "with the captions of other clips"}
    names |= {
        carries.ORACLE: f"with an oracle's weights by true meaning (one of {len(claims)} claims, not of the rows)"
    }
    parts = [(rows.loc[name], words) for name, words in names.items() if name in rows.index]
    parts[2:2] = [
        (row, "in full against these") for _, row in claims[claims["baseline"] == carries.SHUFFLED].iterrows()
    ]
    instead = claims[claims["claim"].isin(carries.AGAINST.format(rival) for rival in carries.RIVALS)]
    if len(instead):
        rival = instead.loc[instead["delta"].idxmin()]
        gain = difference(rows.loc[rival["baseline"]])
        words = f"against {rival['baseline']} in its place, which alone gains {gain}"
        words += f", of {len(instead)} rivals the best on the test clips"
        added = claims[(claims["setting"] == f"cross, {rival['baseline']}") & (claims["baseline"] == rival["baseline"])]
        parts += [(rival, words), *((row, "added to that rival") for _, row in added.iterrows())]
    texts = [f"{difference(row)}{_in_ranks(row)} {words}: {row['verdict']}" for row, words in parts]
    return f"{_over(path)}: {', '.join(texts)}"


def _in_ranks(row: pd.Series) -> str:
    return f" (ranks {words})" if (words := in_ranks(row)) else ""


def _leak(path: Path) -> str:
    """Of the probe on the caption, and where it is known on the describer, in percent of the cases, at λ = LEAK: with
    the weights of the caption and with those of another one, each with its gain in R@1; without captioning; and by
    guessing; then the claim that compares the two. Then the same over the tuned baseline, if a table beside it says
    so."""
    leaks, rows = read(path), read(path.with_name(path.name.replace("_leaks", "_summary"))).set_index("setting")
    own, other = (leak.setting(source, LEAK) for source in ("caption", "other caption"))
    cases = {own: f"after {own}", other: "after weights of another caption", "none": "without captioning"}
    parts = []
    over = _over(path)
    for probe, told in leaks.set_index("setting").groupby("probe", sort=False):
        shares = []
        for name, words in cases.items():
            if name in told.index:
                first = probe == "caption" and name != "none"
                gain = f" (R@1 {difference(rows.loc[name])}, {rows.loc[name, 'verdict']})" if first else ""
                shares.append(f"in {_share(told.loc[name])} {words}{gain}")
        guessing = f"{told['chance'].iloc[0]:.0f} % by guessing"
        parts.append(f"{over if probe == 'caption' else f'the {probe}'} {', '.join(shares)}, {guessing}")
    if (beside := path.with_name(path.name.replace("_leaks", "_claims"))).exists():
        claims = read(beside)
        for _, row in claims[(claims["setting"] == other) & (claims["baseline"] == own)].iterrows():
            parts.append(
                f"{difference(row)} of R@1 by weights of another caption in place of its own, {row['verdict']}"
            )
    tuned = path.with_name("leak_tuned_leaks.csv")
    parts += [_leak(tuned)] if path != tuned and tuned.exists() else []
    return "; ".join(parts)


def _over(path: Path) -> str:
    """The baseline of a table by its name."""
    return f"over {'the tuned baseline' if '_tuned_' in path.name else 'the `laptop` preset'}"


def _weak(path: Path) -> str:
    """Each loss ranks by its own score, and both by that of S2DTW, of which the interval is over seeds."""
    words = _of_claim(WEAK)(path)
    by_one = read(path.with_name("s2dtw.csv")).pivot(index="setting", columns="seed", values=BY_FULL[0])
    gain = by_one.loc["S2DTW"] - by_one.loc["soft-DTW"]
    bounds = bracketed(*over_seeds(gain))
    words = f"{words}; {signed(gain.mean())} points {bounds} over seeds where both are ranked by S2DTW"
    own = read(path.with_name("s2dtw_measures.csv")).set_index("setting")[long_videos.OWN["R@1"]]
    return f"{words}; with perfect costs R@1 is {own[long_videos.PERFECT]:.1f} and {own[long_videos.SOFT]:.1f}"


def _share(row: pd.Series) -> str:
    return f"{row['told']:.0f} % [{row['low']:.0f}, {row['high']:.0f}]"


def _when(path: Path) -> str:
    """By false negatives: of a claim, in points; of queries, in ranks. Then by training clips, if a table beside it
    says so."""
    if "others" in (table := read(path)):
        ends = [row for _, row in table.iloc[[0, -1]].iterrows()]
        cases = [f"{_smaller(row)} for the {row.queries} queries that fit {row.others} other clips" for row in ends]
        words = f"in the geometric mean of the ranks {' and '.join(cases)}"
        if (claims := path.with_name("when_claims.csv")).exists():
            tests = read(claims)
            for _, row in tests[tests["claim"] == when.MANY].iterrows():
                words += f"; all that fit some against those that fit none: {_smaller(row)}, {row['verdict']}"
    else:
        words = f"by {_of_claim(FALSE_NEGATIVES)(path)}, for every tenfold of false negatives"
    if not (curve := path.with_name("when_gains.csv")).exists():
        return words
    sizes = read(curve)
    sizes = sizes[sizes["kind"] == when.CLIPS]
    verdicts = {"higher": "a gain", "lower": "a loss"}
    cases = [
        f"{_smaller(row)} with {row['size']:g}, {verdicts.get(row['verdict'], row['verdict'])}"
        for _, row in sizes.iterrows()
    ]
    return f"{words}; by {when.CLIPS} {'; '.join(cases)}"


def _smaller(row: pd.Series) -> str:
    """A gain in `when.SCALE` · log rank as it is told elsewhere, as the change of the geometric mean of the ranks."""
    return in_ranks(dict(zip(LOG, row[["delta", "high", "low"]] / when.SCALE)))


EFFECT = (
    *(
        Sentence(
            f"Over {name} cross-captioning changes R@1",
            [f"{table}_claims" for table in tables],
            _of_claim(acting="share"),
        )
        for name, tables in BASELINES.items()
    ),
    Sentence("Of weak and strong baselines", ["strength_gains"], _strength),
    Sentence(
        "Of the readings of what the paper leaves open, with the rest as the search found it",
        ["multiverse_readings"],
        _readings,
    ),
    Sentence(
        "What carries the gain, in R@1 and in the geometric mean of the ranks",
        ["carries_tuned_summary", "carries_summary"],
        _carries,
    ),
    Sentence(
        "At λ = 10 on the mean over tokens, a stress test, it changes R@1",
        ["table1_lambda10_claims"],
        _of_claim(acting="ratio"),
    ),
    Sentence(
        "It changes how often a clip of the same meaning is found first", ["same_meaning_claims"], _of_claim(MEANING)
    ),
    Sentence(
        "As false negatives, and as training clips, increase, its gain changes",
        ["false_negatives_claims", "when_queries"],
        _when,
    ),
    Sentence(
        "A probe that reads the weighted mix of clips tells which caption of a clip made the weights",
        ["leak_leaks", "leak_tuned_leaks"],
        _leak,
    ),
)
BARS = (
    "A trained baseline should reach the recalls of a ridge regression onto text states and, where they are published, "
    "those of VSE: the tuned one, in the mean over its seeds,"
)
CAVEAT = (
    "Encoders are frozen, the decoder is small, and the corpus of the paper's size is of photographs: "
    "[limits](../README.md#limits)."
)
OTHERS = (
    Sentence(
        "A linear classifier of actions, on the head that cross-captioning trained, changes in top-1",
        ["table11_claims"],
        _of_claim(ACTIONS),
    ),
    Sentence("EMCL added to cross-captioning changes R@1", ["together_claims"], _of_claim(EMCL)),
    Sentence("VT-TWINS: weak alignment in place of soft-DTW changes R@1", ["s2dtw_claims"], _weak),
)


def folder(label: str) -> Path:
    """Where the figure goes: figures/, which holds those of all corpora; that of the smoke preset to its own folder."""
    return files.folder("figures", label if label.endswith("-smoke") else "")


@styled
def figure(rows: pd.DataFrame) -> plt.Figure:
    """The gain of `cross` over no captioning on every corpus and baseline, beside the paper's, drawn as by
    `figures.difference`. rows: of `gains`."""
    canvas, axis = plt.subplots(figsize=(COLUMN, 1.6 + 0.34 * len(rows)))
    for y, (_, row) in enumerate(rows.iterrows(), start=1):
        figures.difference(axis, y, row)
    paper = rows["paper"].dropna()
    if len(paper):
        figures.star(axis, paper.iloc[0], 0)
    axis.axvline(0, color="0.5", lw=0.8, ls="--", zorder=0)
    names = [f"{row.corpus}:\n{row.over.replace('`', '')}" for row in rows.itertuples()]
    names = ["the paper:\nMSR-VTT, one run", *names]
    axis.set(yticks=range(len(rows) + 1), yticklabels=names, ylim=(len(rows) + 0.6, -0.6))
    axis.set(xlabel="Δ R@1 of cross-captioning\nvs none (points)")
    figures.legend(canvas, columns=2)
    return canvas


ALT = "Gain of cross-captioning over no captioning in text to video R@1, every corpus and baseline, beside the paper's."
