"""What carries the gain of captioning: parts of it taken away, and other regularisers in its place."""

from dataclasses import replace

import numpy as np

from ssb.config import Config
from ssb.experiments.baselines import NAMED, recorded
from ssb.experiments.leak import SOURCES
from ssb.experiments.strength import scored
from ssb.metrics.retrieval import points
from ssb.paper import Claim
from ssb.report import Experiment
from ssb.study import Study
from ssb.tables.verdicts import Runs, stacked
from ssb.training.runs import Run

WITHOUT, DETACHED = "none", "cross, no gradient to the embeddings"
SHUFFLED, ANOTHER = "cross, captions shuffled in each step", SOURCES["other caption"]
BORROWED = "cross, decoder of another corpus"
ORACLE = "cross, weights by true meaning"  # the ceiling of captioning, at the λ of the preset
RIVALS = {"more dropout": "dropout", "more weight decay": "weight_decay", "soft targets": "soft_targets"}
AGAINST, ADDS = "cross gains more than {}", "cross adds to {}"
STRONGER = {f"{ORACLE}, λ = {weight:g}": weight for weight in (0.3, 1.0, 3.0)}  # setting → λ


def rivals(base: Config) -> dict[str, dict[str, dict]]:
    """What may do as much as captioning → its two strengths by name, and what each changes in a preset. base: the
    preset's."""
    decay = base.weight_decay or 0.01
    values = {
        "dropout": [min(0.9, round(base.dropout + more, 3)) for more in (0.1, 0.2)],
        "weight_decay": [round(times * decay, 6) for times in (10, 100)],
        "soft_targets": [0.25, 0.5] if base.freeze_text else [],
    }
    return {
        rival: {f"{name.replace('_', ' ')} {value:g}": {name: value} for value in values[name]}
        for rival, name in RIVALS.items()
    }


def grid(study: Study) -> dict[str, dict]:
    """The objectives, `cross` with parts taken away, other regularisers in its place, and these with it."""
    none, cross, base = {"objective": "none"}, {"objective": "cross"}, study.base
    captions = np.bincount(study.corpus.captions["clip"])[study.corpus.split("train")]
    another = {ANOTHER: cross | {"weights_from": "other caption"}}
    oracle = {ORACLE: cross | {"weights_from": "meaning"}}
    oracle |= {name: oracle[ORACLE] | {"captioning": weight} for name, weight in STRONGER.items()}
    more = {name: changes for strengths in rivals(base).values() for name, changes in strengths.items()}
    return {
        WITHOUT: none,
        **{name: {"objective": name} for name in ("identity", "full", "hybrid", "cross")},
        DETACHED: cross | {"weights_gradient": "none"},
        "cross, gradient to the text alone": cross | {"weights_gradient": "text"},
        "cross, gradient to the video alone": cross | {"weights_gradient": "video"},
        "cross, captions permuted once": cross | {"decoded": "permuted"},
        SHUFFLED: cross | {"decoded": "shuffled"},
        "cross, decoder first": cross | {"decoder_warmup": 0.2},
        **(another if captions.min() > 1 else {}),
        **(oracle if study.corpus.meaning is not None else {}),
        **{name: none | changes for name, changes in more.items()},
        **{f"cross, {name}": cross | changes for name, changes in more.items()},
    }


CARRIES = Experiment(
    "What carries the gain",
    grid=grid,
    baseline=WITHOUT,
    claims=(
        Claim("cross with weights by true meaning beats no captioning", ORACLE, WITHOUT),
        Claim("cross gains more than with the captions of other clips", "cross", SHUFFLED),
        Claim("weights of another caption gain more than those of the caption itself", ANOTHER, "cross"),
    ),
    alt="Forest plot of text to video R@1 of captioning with parts taken away and of other regularisers.",
)
TUNED = replace(CARRIES, title="What carries the gain over the tuned baseline")
TABLES = {"carries": CARRIES, "carries_tuned": TUNED}


def with_rivals(study: Study, runs: Runs) -> Experiment:
    """The experiment of the study's table, also with the claims that `cross` gains more than each of the rivals, and
    that it adds to each, at the strength of the rival that has the best recalls on the validation clips."""
    found = []
    for rival, strengths in rivals(study.base).items():
        if scores := scored(runs, strengths):
            best = max(scores, key=scores.get)
            found += [Claim(AGAINST.format(rival), "cross", best), Claim(ADDS.format(rival), f"cross, {best}", best)]
    experiment = TABLES.get(study.table, CARRIES)
    return replace(experiment, claims=(*experiment.claims, *found))


def settings(study: Study, decoder_corpus: str) -> dict[str, dict]:
    """`grid`, and `cross` with the decoder that was trained on another corpus; "": without that setting."""
    return grid(study) | ({BORROWED: {"objective": "cross"}} if decoder_corpus else {})


def lender(study: Study, corpus: str) -> Study:
    """That of `cross` on another corpus, with a study's preset, seeds and changes; with a preset of NAMED, as it is on
    the study's own corpus, since the decoder must fit."""
    preset, changes = study.preset, study.changes
    if preset in NAMED:
        preset, changes = "laptop", recorded(study.base.corpus, preset) | changes
    return Study("decoders", corpus, preset, study.seeds, study.jobs, changes)


def decoders(study: Study, corpus: str) -> dict[str, list[Run]]:
    """What `Study.run` takes as `decoders`: the runs of `lender`. {} without a corpus."""
    return {BORROWED: lender(study, corpus).run({"cross": {"objective": "cross"}})["cross"]} if corpus else {}


def detached(runs: Runs) -> str:
    """Whether captioning without a gradient to the embeddings leaves the ranks as they are without captioning."""
    if not {WITHOUT, DETACHED} <= runs.keys():
        return "Captioning without a gradient to the embeddings: a run collapsed."
    pairs = zip(runs[WITHOUT], runs[DETACHED])
    same = all(np.array_equal(a.ranks["t2v"], b.ranks["t2v"]) for a, b in pairs)
    return f"Captioning without a gradient to the embeddings {'leaves' if same else 'CHANGES'} every rank."


def ceiling(runs: Runs) -> str:
    """The gain on the test clips of captioning by the oracle, at the λ with the best recalls on the validation clips;
    "" without the oracle."""
    scores = scored(runs, (ORACLE, *STRONGER))
    if not scores or WITHOUT not in runs:
        return ""
    best = max(scores, key=scores.get)
    one, other = (points(x, "R@1").mean() for x in stacked({name: runs[name] for name in (best, WITHOUT)}).values())
    weight = runs[best][0].config.captioning
    found = f"at the λ of {len(scores)} that is best on the validation clips, {weight:g}"
    return f"Captioning by the oracle, {found}: R@1 {one - other:+.1f} on the test clips."


def reading(runs: Runs) -> str:
    """`detached` and `ceiling`, a line each."""
    return "\n".join(filter(None, (detached(runs), ceiling(runs))))
