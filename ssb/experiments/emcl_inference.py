"""EMCL (Jin et al., NeurIPS 2022) at inference, on the embeddings of runs that were trained without it.

Its scores are computed in blocks, and a score depends on all captions and clips of its block, hence on the order of the
rows. The order of a test set reveals matches: captions of one clip follow each other, or captions and clips come in the
same order. So rows are shuffled here before they are cut into blocks, and the effect of other orders is measured.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ssb import emcl
from ssb.corpora.corpus import Corpus
from ssb.experiments import objectives
from ssb.experiments.emcl_layer import Constants, mean_rank
from ssb.figures import COLOURS, PAGE, heading, legend, styled
from ssb.metrics import retrieval
from ssb.metrics.statistics import Difference, paired, settled
from ssb.paper import paper_gain
from ssb.progress import track
from ssb.report import Experiment, bracketed, widest
from ssb.study import Study
from ssb.tables import released
from ssb.training.runs import Run

TABLES = {"emcl_inference": Experiment("EMCL at inference", grid=lambda study: objectives.GRID, shown="changes")}
MODULE = Constants(7, 10, 0.1, 4.0)  # of the paper's inference module, on CLIP2Video
TRIED = {
    "bases": (2, 4, 7, 16, 32, 64),
    "stages": (1, 3, 10, 30),
    "temperature": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "beta": (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0),  # a wide range, because the released Ê is smaller by about n / K
}
FORMS = {"ours": "cosine", "released": "dot"}  # → its score; "released" is step for step the public code
ORDERS = {  # of rows, before they are cut into blocks, see `row_orders` → line style and label
    "shuffled": ("--", "at random"),
    "listed": ("-", "as listed, captions of a clip together"),
    "paired": ("-.", "one caption a clip, right pairs in one block"),
    "apart": (":", "one caption a clip, own clip in another block"),
}
BLOCK = 32  # captions and clips in a call, as in the public code ...
BLOCKS = (16, 32, 64, 128, None)  # ... and others; None: all at once
TEMPERATURES = {0.1: "-", 0.05: "--", 0.02: ":"}  # λ at which the effective rank is measured → line style


class Embedded(NamedTuple):
    """A split embedded by a run: text (Q, n), video (C, n), clip_of (Q,); the run's seed, which also draws the module's
    start and the order of rows; plain (Q,), text→video ranks without the module; the run's name."""

    text: Tensor
    video: Tensor
    clip_of: Tensor
    seed: int
    plain: np.ndarray
    run: str


def embedded(runs: Mapping[str, list[Run]], corpus: Corpus) -> dict[str, dict[str, list[Embedded]]]:
    """split ("val", "test") → setting → `Embedded` of each run; every run is loaded once."""
    splits: dict[str, dict[str, list[Embedded]]] = {"val": {}, "test": {}}
    each = [(setting, run) for setting, members in runs.items() for run in members]
    for setting, run in track(each, "embedding captions and clips"):
        model, data = run.load(corpus)
        for split, settings in splits.items():
            text, video, clip_of = data.embed(model, split)
            plain = retrieval.search(text, video, clip_of)
            member = Embedded(text, video, torch.from_numpy(clip_of), run.config.seed, plain, run.name)
            settings.setdefault(setting, []).append(member)
    return splits


def module(member: Embedded, form: str, constants: Constants) -> emcl.EMCL:
    """The module of one of FORMS with these constants; its start is drawn from the member's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(member.seed)
        return emcl.EMCL(*constants, released=form == "released").eval()


def scores(
    member: Embedded, form: str, constants: Constants, order: str = "shuffled", block: int | None = BLOCK
) -> Tensor:
    """(Q, C) scores after EMCL. form: of FORMS; order: of ORDERS; block: as in `emcl.similarity`. ValueError for
    another form or order."""
    if form not in FORMS or order not in ORDERS:
        raise ValueError(f"form = {form!r}, order = {order!r}: wanted one of {[*FORMS]} and one of {[*ORDERS]}")
    em = module(member, form, constants)
    out = member.text.new_empty(len(member.text), len(member.video))
    for rows, clips in row_orders(member, order, block):
        pair = member.text[rows], member.video[clips]
        out[rows[:, None], clips] = emcl.similarity(*pair, em, block, score=FORMS[form])
    return out


def row_orders(member: Embedded, order: str, block: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Captions and clips in the order in which they are cut into blocks:

    shuffled: captions and clips at random.
    listed:   as the corpus lists them: captions of a clip together, in the order of the clips.
    paired:   several times, each with one caption of a clip and all clips, as on a test set of one caption a clip: the
              k-th caption is of the k-th clip, and clips without a further caption come last.
    apart:    as paired, but with the clips shifted by a block, so that no caption shares a block with its own clip.
    """
    if order == "shuffled":
        generator = torch.Generator().manual_seed(member.seed)
        yield tuple(torch.randperm(len(x), generator=generator) for x in (member.text, member.video))
    elif order == "listed":
        yield tuple(torch.arange(len(x)) for x in (member.text, member.video))
    else:
        clip_of = pd.Series(member.clip_of.numpy())
        for _, captions in clip_of.groupby(clip_of.groupby(clip_of).cumcount()):  # the first captions, the second, ...
            captions = captions.sort_values()
            clips = torch.tensor([*captions, *sorted({*range(len(member.video))} - {*captions})])
            yield torch.tensor(captions.index), clips.roll(block or 0) if order == "apart" else clips


def gain(member: Embedded, *arguments) -> float:
    """Text→video R@1 with EMCL minus that without, in points. arguments: of `scores`."""
    ranks = retrieval.ranks(scores(member, *arguments), member.clip_of)
    return 100 * float((ranks <= 1).mean() - (member.plain <= 1).mean())


def chosen(members: list[Embedded]) -> tuple[dict[str, Constants], pd.DataFrame]:
    """form → the constants that gain most on these embeddings (of validation clips), mean over runs, rows shuffled: of
    all λ and β of TRIED together, then of K, then of stages, from the paper's K and stages. And the gain of each."""
    best, rows = {}, []
    for form in FORMS:
        current = MODULE
        for names in (("temperature", "beta"), ("bases",), ("stages",)):
            tried = [
                current._replace(**dict(zip(names, values))) for values in product(*(TRIED[name] for name in names))
            ]
            each = track(tried, f"trying constants of EMCL ({form})")
            gains = [float(np.mean([gain(member, form, constants) for member in members])) for constants in each]
            current = tried[int(np.argmax(gains))]
            rows += [{"form": form, **c._asdict(), "val delta": round(g, 3)} for c, g in zip(tried, gains)]
        best[form] = current
    return best, pd.DataFrame(rows).drop_duplicates()


def sweep(members: list[Embedded], best: Mapping[str, Constants]) -> pd.DataFrame:
    """One constant at a time around `best` (form → constants), and the block, rows shuffled: columns constant, value,
    form, seed, delta (points of text→video R@1). The value of the block None is the number of captions."""
    rows = []
    for form, member in track(product(FORMS, members), "changing one constant of EMCL at a time"):
        chosen = best[form]
        for name, tried in TRIED.items():
            for value in sorted({*tried, getattr(chosen, name)}):
                rows.append((name, value, form, member.seed, gain(member, form, chosen._replace(**{name: value}))))
        for block in BLOCKS:
            delta = gain(member, form, chosen, "shuffled", block)
            rows.append(("block", block or len(member.text), form, member.seed, delta))
    return pd.DataFrame(rows, columns=["constant", "value", "form", "seed", "delta"]).round({"delta": 3})


def orders(members: list[Embedded], constants: Constants = MODULE) -> pd.DataFrame:
    """The gain in every order of the rows, by block: columns form, order, block, seed, delta (points of R@1)."""
    rows = [
        (form, order, block or len(member.text), member.seed, gain(member, form, constants, order, block))
        for form, order, block, member in track(product(FORMS, ORDERS, BLOCKS, members), "EMCL in other orders")
    ]
    return pd.DataFrame(rows, columns=["form", "order", "block", "seed", "delta"]).round(3)


def effective_ranks(members: list[Embedded]) -> pd.DataFrame:
    """Effective rank of Ê, by form, λ and K, with the paper's number of stages, and of E (form "E"): mean over blocks
    of shuffled rows of unit length. Columns form, temperature, bases, seed, effective rank."""
    rows = []
    for member in track(members, "effective ranks"):
        ((captions, clips),) = row_orders(member, "shuffled", BLOCK)
        pairs = [*zip(captions.split(BLOCK), clips.split(BLOCK))]
        pairs = [pair for pair in pairs if len(pair[0]) == len(pair[1]) == BLOCK] or pairs[:1]  # whole blocks
        blocks = [F.normalize(torch.cat([member.video[v], member.text[t]]), dim=1) for t, v in pairs]
        rows.append(("E", np.nan, np.nan, member.seed, mean_rank(blocks)))
        for form, temperature, bases in product(FORMS, TEMPERATURES, TRIED["bases"]):
            em = module(member, form, MODULE._replace(bases=bases, temperature=temperature))
            rank = mean_rank([em.reconstruct(block)[0] for block in blocks])
            rows.append((form, temperature, bases, member.seed, rank))
    return pd.DataFrame(rows, columns=["form", "temperature", "bases", "seed", "effective rank"]).round(3)


class Table(NamedTuple):
    """What `table` returns. rows: one for each run and variant of scoring; changes: one for each setting and variant,
    means over seeds; ranks: (setting, form, constants, order) → text→video ranks (seeds, Q)."""

    rows: pd.DataFrame
    changes: pd.DataFrame
    ranks: dict[tuple[str, str, str, str], np.ndarray]


def difference(members: list[Embedded], ranks: np.ndarray, base: np.ndarray | None = None) -> Difference:
    """R@1 of text→video ranks (seeds, Q) minus that of `base`; None: of the same runs without EMCL."""
    base = np.stack([member.plain for member in members]) if base is None else base
    return paired(*(retrieval.points(x, "R@1") for x in (ranks, base)), members[0].clip_of.numpy())


def table(test: Mapping[str, list[Embedded]], best: Mapping[str, Constants]) -> Table:
    """Every run with EMCL at inference: in both forms, by the paper's constants and by those of `best`, in every
    order but "apart".

    changes has the columns of `Study.summary`: R@1 with EMCL, and its difference to the same runs without, p adjusted
    for the settings compared in the same way.
    """
    rows, ranks, changes = [], {}, []
    variants = product(FORMS, ("paper's", "chosen"), ("shuffled", "listed", "paired"))
    for form, name, order in track(variants, "scoring the test clips with EMCL"):
        constants = MODULE if name == "paper's" else best[form]
        variant = {"form": form, "constants": name, "order": order}
        compared = []
        for setting, members in test.items():
            each = [retrieval.matrix_ranks(scores(m, form, constants, order), m.clip_of) for m in members]
            for member, protocols in zip(members, each):
                row = {"setting": setting, "seed": member.seed} | variant | constants._asdict() | {"block": BLOCK}
                for protocol, values in protocols.items():
                    row |= {f"{protocol} {key}": round(x, 2) for key, x in retrieval.metrics(values).items()}
                rows.append(row | {"run": member.run})
            ranks[setting, form, name, order] = after = np.stack([protocols["t2v"] for protocols in each])
            recall = (100 * (x <= 1).mean() for x in (after, np.stack([member.plain for member in members])))
            row = {"setting": setting} | variant | {"seeds": len(members)} | dict(zip(("R@1", "R@1 without"), recall))
            compared.append(row | difference(members, after)._asdict())
        changes.append(settled(pd.DataFrame(compared)))
    return Table(pd.DataFrame(rows), pd.concat(changes, ignore_index=True).round(3), ranks)


def release(study: Study, test: Mapping[str, list[Embedded]], results: Table):
    """Write the rows to results/<corpus>/<table>.csv, and beside them the ranks of every caption, without the module
    and by every variant of it."""
    study.write(results.rows, f"{study.table}.csv")
    arrays = {}
    for setting, members in test.items():
        for k, member in enumerate(members):
            ranks = {(setting, "clip"): member.clip_of.numpy(), (setting, "plain"): member.plain}
            ranks |= {key: each[k] for key, each in results.ranks.items() if key[0] == setting}
            arrays |= {f"{member.run}/{', '.join(key[1:])}": released.packed(each) for key, each in ranks.items()}
    study.release_arrays(arrays)


PUBLIC = "released", "paper's"  # form and constants of the public code
CLAIMS = {  # claim → setting, its baseline, form, constants, order
    "EMCL at inference beats none": ("EMCL", "none", "ours", "chosen", "shuffled"),
    "EMCL at inference adds to cross": ("cross + EMCL", "cross", "ours", "chosen", "shuffled"),
    "EMCL as released at inference beats none": ("released", "none", *PUBLIC, "shuffled"),
    "EMCL as released beats none with captions as they are listed": ("released, listed", "none", *PUBLIC, "listed"),
    "EMCL as released beats none with one caption a clip, right pairs in one block": (
        "released, paired",
        "none",
        *PUBLIC,
        "paired",
    ),
}


def module_claims(study: Study, test: Mapping[str, list[Embedded]], results: Table) -> pd.DataFrame:
    """CLAIMS with what the paper's module adds to CLIP2Video, written to results/<corpus>/<table>_claims.csv."""
    rows = []
    for claim, (setting, baseline, *variant) in CLAIMS.items():
        members = test[baseline]
        row = {"claim": claim, "setting": setting, "baseline": baseline, "seeds": len(members), "paper": paper_gain()}
        rows.append(row | difference(members, results.ranks[baseline, *variant])._asdict())
    return study.judged(rows)


def reading(changes: pd.DataFrame) -> str:
    """What EMCL at inference does to runs without captioning, rows shuffled, a line for each form and its constants.
    changes: of `table`."""
    rows = changes[(changes["setting"] == "none") & (changes["order"] == "shuffled")]
    return "\n".join(
        f"EMCL at inference ({row.form}, {row.constants} constants) changes R@1 of none by {row.delta:+.1f} points "
        f"{bracketed(*widest(row))}, rows shuffled: {row.verdict}."
        for row in rows.itertuples()
    )


def order_worth(test: Mapping[str, list[Embedded]], results: Table) -> pd.DataFrame:
    """What an order of the rows adds to R@1 over shuffled rows, by the same module on the same embeddings: a row for
    each setting, form, constants and order of `table`, with the columns of `statistics.Difference`, p adjusted for
    their number."""
    rows = []
    for (setting, form, constants, order), ranks in results.ranks.items():
        if order != "shuffled":
            row = {"setting": setting, "form": form, "constants": constants, "order": order}
            shuffled = results.ranks[setting, form, constants, "shuffled"]
            rows.append(row | difference(test[setting], ranks, shuffled)._asdict())
    return settled(pd.DataFrame(rows)).round(3)


AXES = {
    "bases": "bases K",
    "stages": "EM stages",
    "temperature": "temperature of EMCL",
    "beta": "weight of Ê, β",
    "block": "captions and clips in a block",
}
GAIN = "Δ R@1 vs no EMCL (points)"
BAND = {"alpha": 0.15, "lw": 0, "label": "one standard deviation over seeds"}


@styled
def constants_figure(sweep: pd.DataFrame, ranks: pd.DataFrame, best: Mapping[str, Constants], title: str):
    """The change of R@1 by EMCL against each of its constants, the others as in `best` (dotted), and against the block;
    bands are one standard deviation over seeds. Last, the effective rank of Ê at several λ. sweep, ranks: of
    `sweep` and `effective_ranks`."""
    figure, axes = plt.subplots(2, 3, figsize=(PAGE, 4.2))
    for axis, (name, label) in zip(axes.flat, AXES.items()):
        rows = sweep[sweep["constant"] == name]
        for colour, (form, constants) in zip(COLOURS, best.items()):
            _line(axis, rows[rows["form"] == form].groupby("value")["delta"], "-", colour, form)
            dotted = dict(color=colour, lw=0.8, ls=(0, (1, 3)), zorder=0)
            axis.axvline(BLOCK if name == "block" else getattr(constants, name), **dotted)
        ticks = sorted({*rows["value"]} - {0.02, 0.05, 0.2, 0.25, 0.5})  # whose labels would overlap
        _logarithmic(axis, ticks, name == "block")
        axis.set_xlabel(label)
    for axis in axes[:, 0]:
        axis.set_ylabel(GAIN)
    _ranks(axes.flat[-1], ranks)
    heading(figure, title)
    legend(figure, columns=3)
    return figure


@styled
def orders_figure(frame: pd.DataFrame, title: str):
    """The effect of the order of the rows: the change of R@1 against the block, a panel for each form, bands one
    standard deviation over seeds. frame: of `orders`."""
    figure, axes = plt.subplots(1, len(FORMS), figsize=(PAGE * 0.8, 2.8))
    for axis, form in zip(axes, FORMS):
        rows = frame[frame["form"] == form]
        for colour, (order, (style, label)) in zip(COLOURS, ORDERS.items()):
            _line(axis, rows[rows["order"] == order].groupby("block")["delta"], style, colour, label)
        _logarithmic(axis, sorted(frame["block"].unique()), True)
        axis.set(xlabel=AXES["block"], title=form)
    axes[0].set_ylabel(GAIN)
    heading(figure, title)
    legend(figure, columns=2)
    return figure


def _line(axis: plt.Axes, values, style: str, colour, label: str):
    """The mean of grouped values against the group, and a band of one standard deviation."""
    mean, deviation = values.mean(), values.std().fillna(0)  # 0 for a single seed
    axis.plot(mean.index, mean, style, marker="o", ms=2.5, lw=1.2, color=colour, label=label)
    axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, **BAND)


def _logarithmic(axis: plt.Axes, values: list[float], block: bool = False):
    """A logarithmic axis with ticks at these values. block: the last one is all rows in one block."""
    axis.axhline(0, color="0.5", lw=0.8, zorder=0)
    axis.set_xscale("log")
    labels = [f"{value:g}" for value in values]
    axis.set(xticks=values, xticklabels=[*labels[:-1], "all"] if block else labels)
    axis.minorticks_off()


def _ranks(axis: plt.Axes, ranks: pd.DataFrame):
    """Effective rank against K, mean over seeds: a colour for each form, a line style for each λ; and that of E."""
    axis.plot([], color="0.3", lw=0.8, ls=(0, (1, 3)), label="chosen (of the block: the paper's)")
    for temperature, style in TEMPERATURES.items():
        axis.plot([], color="0.3", ls=style, label=f"rank at temperature {temperature:g}")
        for colour, form in zip(COLOURS, FORMS):
            rows = ranks[(ranks["form"] == form) & (ranks["temperature"] == temperature)]
            mean = rows.groupby("bases")["effective rank"].mean()
            axis.plot(mean.index, mean, style, marker="o", ms=2.5, lw=1.2, color=colour)
    axis.axhline(
        ranks.loc[ranks["form"] == "E", "effective rank"].mean(), color="0.3", lw=1, ls="-.", label="rank of E"
    )
    _logarithmic(axis, sorted(ranks["bases"].dropna().unique()))
    axis.set_yscale("log", base=2)
    ticks = [1, 2, 4, 8, 16, 32, 64]
    axis.set(ylim=(0.9, 70), yticks=ticks, yticklabels=ticks, xlabel=AXES["bases"], ylabel="effective rank of Ê")
    axis.minorticks_off()
