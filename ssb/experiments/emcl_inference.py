"""What EMCL (Jin et al., NeurIPS 2022) adds: as a layer in training, and at inference on the embeddings of any run.

Its scores are taken in blocks, and a score depends on all captions and clips of its block, hence on the order of the
rows. The order of a test set tells something: captions of one clip are beside each other, or captions and clips follow
each other alike. So rows are dealt into blocks at random here, and what other orders are worth is measured.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ssb import emcl
from ssb.corpora.corpus import Corpus
from ssb.experiments.emcl_layer import Constants, _claim
from ssb.metrics import retrieval
from ssb.metrics.retrieval import points
from ssb.metrics.statistics import paired, settled
from ssb.paper import paper_gain
from ssb.study import Study
from ssb.training.runs import Run

MODULE = Constants(7, 10, 0.1, 4.0)  # of the paper's inference module, on CLIP2Video
TRIED = {  # at inference
    "bases": (2, 4, 7, 16, 32, 64),
    "stages": (1, 3, 10, 30),
    "temperature": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "beta": (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0),  # a wide range, for the released Ê is smaller by about n / K
}
FORMS = {"ours": "cosine", "released": "dot"}  # → its score; the second step for step as the public code
ORDERS = {  # of rows, before they are cut into blocks
    "shuffled": "captions and clips at random",
    "listed": "as the corpus lists them: captions of a clip beside each other, in the order of the clips",
    "paired": "one caption of each clip at a time, both in one order, as on a test set of one caption a clip",
    "apart": "as paired, but the clips moved on by a block, so that no caption meets its own clip among right pairs",
}
BLOCK = 32  # captions and clips in a call, as in the public code ...
BLOCKS = (16, 32, 64, 128, None)  # ... and others; None: all at once
TEMPERATURES = (0.1, 0.05, 0.02)  # at which the effective rank is measured; the paper's, and sharper ones


# The module at inference


class Embedded(NamedTuple):
    """A split by a run: text (Q, n), video (C, n), clip_of (Q,); the run's seed, by which the module's start and the
    order of rows are drawn too; plain (Q,), text→video ranks without the module; the run's name."""

    text: Tensor
    video: Tensor
    clip_of: Tensor
    seed: int
    plain: np.ndarray
    run: str


def embedded(runs: Mapping[str, list[Run]], corpus: Corpus) -> dict[str, dict[str, list[Embedded]]]:
    """split ("val", "test") → setting → a member for each run; every run is loaded once."""
    found: dict[str, dict[str, list[Embedded]]] = {"val": {}, "test": {}}
    for setting, members in runs.items():
        for run in members:
            model, data = run.load(corpus)
            for split, settings in found.items():
                text, video, clip_of = data.embed(model, split)
                plain = retrieval.search(text, video, clip_of)
                member = Embedded(text, video, torch.from_numpy(clip_of), run.config.seed, plain, run.name)
                settings.setdefault(setting, []).append(member)
    return found


def module(member: Embedded, form: str, constants: Constants) -> emcl.EMCL:
    """A form with these constants; its start is drawn from the member's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(member.seed)
        return emcl.EMCL(*constants, released=form == "released").eval()


def scores(
    member: Embedded, form: str, constants: Constants, order: str = "shuffled", block: int | None = BLOCK
) -> Tensor:
    """(Q, C) scores after EMCL. form: of FORMS; order: of ORDERS; block: as in `emcl.similarity`."""
    if form not in FORMS or order not in ORDERS:
        raise ValueError(
            f"form = {form!r}, order = {order!r}; forms are {', '.join(FORMS)}, orders {', '.join(ORDERS)}"
        )
    em = module(member, form, constants)
    out = member.text.new_empty(len(member.text), len(member.video))
    for rows, clips in dealt(member, order, block):
        found = emcl.similarity(member.text[rows], member.video[clips], em, block, score=FORMS[form])
        out[rows[:, None], clips] = found
    return out


def dealt(member: Embedded, order: str, block: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Captions and clips in the order in which they are cut into blocks. Under "paired" and "apart" several times, each
    with one caption of a clip and all clips: under "paired" the k-th caption is of the k-th clip, and clips without a
    further caption come last."""
    generator = torch.Generator().manual_seed(member.seed)
    if order == "shuffled":
        yield tuple(torch.randperm(len(x), generator=generator) for x in (member.text, member.video))
        return
    if order == "listed":
        yield tuple(torch.arange(len(x)) for x in (member.text, member.video))
        return
    left = pd.Series(member.clip_of.numpy())
    for _, captions in left.groupby(left.groupby(left).cumcount()):  # the first captions, the second ones, ...
        captions = captions.sort_values()
        clips = torch.tensor([*captions, *sorted({*range(len(member.video))} - {*captions})])
        yield torch.tensor(captions.index), clips.roll(block or 0) if order == "apart" else clips


def gain(member: Embedded, *arguments) -> float:
    """Text→video R@1 with EMCL less that without, in points. arguments: of `scores`."""
    ranks = retrieval.ranks(scores(member, *arguments), member.clip_of)
    return 100 * float((ranks <= 1).mean() - (member.plain <= 1).mean())


def chosen(members: list[Embedded]) -> tuple[dict[str, Constants], pd.DataFrame]:
    """form → the constants that gain most on these embeddings (of validation clips), mean over runs, rows shuffled: of
    all λ and β of TRIED together, then of K, then of stages, from the paper's K and stages. And each one's gain."""
    best, rows = {}, []
    for form in FORMS:
        at = MODULE
        for names in (("temperature", "beta"), ("bases",), ("stages",)):
            tried = [at._replace(**dict(zip(names, values))) for values in product(*(TRIED[name] for name in names))]
            gains = [float(np.mean([gain(member, form, constants) for member in members])) for constants in tried]
            at = tried[int(np.argmax(gains))]
            rows += [{"form": form, **c._asdict(), "val delta": round(g, 3)} for c, g in zip(tried, gains)]
        best[form] = at
    return best, pd.DataFrame(rows).drop_duplicates()


def sweep(members: list[Embedded], best: Mapping[str, Constants]) -> pd.DataFrame:
    """One constant at a time around `best` (form → constants), and the block, rows shuffled: columns constant, value,
    form, seed, delta (points of text→video R@1). The value of the block None is the number of captions."""
    rows = []
    for form, member in product(FORMS, members):
        at, where = best[form], {"form": form, "seed": member.seed}
        for name, values in TRIED.items():
            for value in sorted({*values, getattr(at, name)}):
                delta = gain(member, form, at._replace(**{name: value}))
                rows.append({"constant": name, "value": value, **where, "delta": delta})
        for block in BLOCKS:
            delta = gain(member, form, at, "shuffled", block)
            rows.append({"constant": "block", "value": block or len(member.text), **where, "delta": delta})
    return pd.DataFrame(rows).round({"delta": 3})


def orders(members: list[Embedded], constants: Constants = MODULE) -> pd.DataFrame:
    """What the order of the rows is worth, by block: columns form, order, block, seed, delta."""
    rows = [
        (form, order, block or len(member.text), member.seed, gain(member, form, constants, order, block))
        for form, order, block, member in product(FORMS, ORDERS, BLOCKS, members)
    ]
    return pd.DataFrame(rows, columns=["form", "order", "block", "seed", "delta"]).round(3)


def effective_ranks(members: list[Embedded]) -> pd.DataFrame:
    """Effective rank of Ê, by form, λ and K, with the paper's number of stages, and of E (form "E"): mean over blocks
    of shuffled rows of unit length. Columns form, temperature, bases, seed, effective rank."""
    rows = []
    for member in members:
        blocks = [F.normalize(torch.cat([member.video[v], member.text[t]]), dim=1) for t, v in _meetings(member)]
        ranks = {("E", np.nan, np.nan): [emcl.effective_rank(x) for x in blocks]}
        for form, temperature, bases in product(FORMS, TEMPERATURES, TRIED["bases"]):
            em = module(member, form, MODULE._replace(bases=bases, temperature=temperature))
            fitted = [em.fit(x) for x in blocks]
            ranks[form, temperature, bases] = [emcl.effective_rank(mu @ z.mT) for mu, z in fitted]
        rows += [(*key, member.seed, float(np.mean(found))) for key, found in ranks.items()]
    return pd.DataFrame(rows, columns=["form", "temperature", "bases", "seed", "effective rank"]).round(3)


def _meetings(member: Embedded) -> list[tuple[Tensor, Tensor]]:
    """Captions and clips of blocks that meet, each row in one at most."""
    ((captions, clips),) = dealt(member, "shuffled", BLOCK)
    pairs = [*zip(captions.split(BLOCK), clips.split(BLOCK))]
    return [pair for pair in pairs if len(pair[0]) == len(pair[1]) == BLOCK] or pairs[:1]


class Table(NamedTuple):
    """What `table` gives. rows: one for each run and way of scoring it; changes: one for each setting and way, means
    over seeds; ranks: (setting, form, constants, order) → text→video ranks (seeds, Q)."""

    rows: pd.DataFrame
    changes: pd.DataFrame
    ranks: dict[tuple[str, str, str, str], np.ndarray]


def table(test: Mapping[str, list[Embedded]], best: Mapping[str, Constants]) -> Table:
    """Every run with EMCL at inference: in both forms, by the paper's constants and by those of `best`, in every
    order but "apart".

    changes has the columns of `Study.summary`: R@1 with EMCL, and its difference to the same runs without, p adjusted
    for the settings compared in the same way.
    """
    rows, ranks, changes = [], {}, []
    for form, name, order in product(FORMS, ("paper's", "chosen"), ("shuffled", "listed", "paired")):
        constants = MODULE if name == "paper's" else best[form]
        way = {"form": form, "constants": name, "order": order}
        part = {}
        for setting, members in test.items():
            found = [retrieval.matrix_ranks(scores(m, form, constants, order), m.clip_of) for m in members]
            for member, each in zip(members, found):
                metrics = {f"{w} {k}": round(x, 2) for w, r in each.items() for k, x in retrieval.metrics(r).items()}
                about = {"setting": setting, "seed": member.seed} | way | constants._asdict() | {"block": BLOCK}
                rows.append(about | metrics | {"run": member.run})
            ranks[setting, form, name, order] = with_ = np.stack([each["t2v"] for each in found])
            plain = np.stack([member.plain for member in members])
            both = {"R@1": 100 * (with_ <= 1).mean(), "R@1 without": 100 * (plain <= 1).mean()}
            change = paired(points(with_, "R@1"), points(plain, "R@1"), members[0].clip_of.numpy())
            part[setting] = way | {"seeds": len(members)} | both | change._asdict()
        frame = pd.DataFrame.from_dict(part, orient="index").rename_axis("setting").reset_index()
        changes.append(settled(frame))
    return Table(pd.DataFrame(rows), pd.concat(changes, ignore_index=True).round(3), ranks)


CLAIMS = {  # → what is compared, its baseline and setting, form, constants, order
    "EMCL at inference beats none": ("EMCL", "none", "ours", "chosen", "shuffled"),
    "EMCL at inference adds to cross": ("cross + EMCL", "cross", "ours", "chosen", "shuffled"),
    "EMCL as released at inference beats none": ("released", "none", "released", "paper's", "shuffled"),
    "so it does with captions as they are listed": ("released, listed", "none", "released", "paper's", "listed"),
    "so it does with one caption a clip, right pairs in one block": (
        "released, paired",
        "none",
        "released",
        "paper's",
        "paired",
    ),
}


def module_claims(study: Study, test: Mapping[str, list[Embedded]], found: Table) -> pd.DataFrame:
    """CLAIMS beside what the paper's module adds to CLIP2Video, written to results/<corpus>/<table>_claims.csv."""
    paper = paper_gain()
    rows = []
    for says, (name, setting, *way) in CLAIMS.items():
        plain = np.stack([member.plain for member in test[setting]])
        with_ = found.ranks[setting, *way]
        names = says, name, setting
        clips = test[setting][0].clip_of.numpy()
        rows.append(_claim(names, len(plain), paper, paired(points(with_, "R@1"), points(plain, "R@1"), clips)))
    return study.judged(rows)


def order_worth(test: Mapping[str, list[Embedded]], found: Table) -> pd.DataFrame:
    """What an order of the rows adds to R@1 over rows at random, by the same module on the same embeddings: a row for
    each of the ways of `table`, with the columns of `statistics.Difference`, p adjusted for their number."""
    rows = []
    for (setting, form, constants, order), ranks in found.ranks.items():
        if order != "shuffled":
            base, clips = found.ranks[setting, form, constants, "shuffled"], test[setting][0].clip_of.numpy()
            names = {"setting": setting, "form": form, "constants": constants, "order": order}
            rows.append(names | paired(points(ranks, "R@1"), points(base, "R@1"), clips)._asdict())
    return settled(pd.DataFrame(rows)).round(3)
