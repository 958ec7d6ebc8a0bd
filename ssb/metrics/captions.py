"""Captions that a trained decoder writes, and how COCO's metrics judge them (Tables 7 to 9).

Captions and references are frames with the columns `clip` (position in the corpus) and `text`, as `Corpus.captions_of`
gives them.
"""

import contextlib
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from ssb.corpora.reading import listed

METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


@functools.cache
def java_fails() -> str | None:
    """Why COCO's metrics cannot be computed here, printed the first time; None where they can.

    All four are defined on the words of the Penn Treebank tokenizer, and it and METEOR are programs in Java. With
    another tokenizer they would be other metrics under the same names.
    """
    why = None
    try:
        if subprocess.run(["java", "-version"], capture_output=True).returncode:
            why = "`java` does not run"
    except OSError:
        why = "there is no `java`"
    folder = Path(ptbtokenizer.__file__).parent
    if why is None and not os.access(folder, os.W_OK):
        why = f"the tokenizer puts its input into its own folder, and {folder} is not writable"
    if why is not None:
        print(f"{', '.join(METRICS)} stay blank: {why}. Install Java 8 or later (conda install openjdk).")
    return why


def scores(hypotheses: pd.DataFrame, references: pd.DataFrame, metrics: tuple[str, ...] = METRICS) -> dict[str, float]:
    """`metrics` of pycocoevalcap, times 100 as published; each NaN where Java is missing.

    hypotheses: one caption a clip; references: one or more for each of these clips. CIDEr weighs words by how many
    of these clips have them in a reference, so it depends on which clips are judged together.
    ValueError for a metric that is not in METRICS, and for a clip without reference, or captioned twice.
    """
    return judged(hypotheses, references, metrics)[0]


def cider(hypotheses: pd.DataFrame, references: pd.DataFrame) -> pd.Series:
    """CIDEr of each caption times 100, by clip in the order of the hypotheses; their mean is that of `scores`."""
    return judged(hypotheses, references, ())[1]


def judged(
    hypotheses: pd.DataFrame, references: pd.DataFrame, metrics: tuple[str, ...] = METRICS
) -> tuple[dict[str, float], pd.Series]:
    """`scores` and `cider` at once."""
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"no metric {listed(sorted(unknown))}; there are {', '.join(METRICS)}")
    pairs = tokenized(hypotheses, references)
    each = pd.Series(np.nan, index=pd.Index(hypotheses["clip"], name="clip"), name="CIDEr", dtype=float)
    if pairs is None:
        return dict.fromkeys(metrics, np.nan), each
    mean, values = Cider().compute_score(*pairs)
    judge = {
        "BLEU-4": lambda: Bleu(4).compute_score(*pairs, verbose=0)[0][3],
        "METEOR": lambda: meteor(*pairs),
        "ROUGE-L": lambda: Rouge().compute_score(*pairs)[0],
        "CIDEr": lambda: mean,
    }
    each[:] = 100 * values
    return {name: 100 * float(judge[name]()) for name in metrics}, each


def meteor(right: dict, spoken: dict) -> float:
    """METEOR of tokenized captions, 0 to 1. All evaluations of a process are made by one Java program, for reading its
    paraphrases takes it seconds and scoring some hundred captions a fraction of one."""
    judge = _meteor()
    if judge.meteor_p.poll() is not None:  # it was stopped
        _meteor.cache_clear()
        judge = _meteor()
    try:
        return judge.compute_score(right, spoken)[0]
    except BaseException:  # half an evaluation: its answers would be taken for those of the next
        _meteor.cache_clear()
        judge.meteor_p.kill()
        if judge.lock.locked():  # which its end would wait for
            judge.lock.release()
        raise


_meteor = functools.cache(Meteor)


def tokenized(hypotheses: pd.DataFrame, references: pd.DataFrame) -> tuple[dict, dict] | None:
    """References and hypotheses, clip → list of tokenized sentences, as pycocoevalcap wants them; None without Java."""
    for name, table in (("hypotheses", hypotheses), ("references", references)):
        if missing := {"clip", "text"} - set(table.columns):
            raise ValueError(f"{name} lack the column {listed(sorted(missing))}; wanted clip and text")
    clips = hypotheses["clip"]
    if not len(clips):
        raise ValueError("no hypotheses; wanted a caption for one clip or more")
    if clips.duplicated().any():
        raise ValueError(f"clip {listed(clips[clips.duplicated()].unique())} is captioned twice; wanted one caption")
    if len(bare := clips[~clips.isin(references["clip"])]):
        raise ValueError(f"no reference for clip {listed(bare)}; wanted at least one for each that is captioned")
    if java_fails():
        return None
    # whatever Java may take for the end of a line would move all later captions to other clips
    table = {("right", clip): [] for clip in clips}
    for clip, text in zip(references["clip"], references["text"]):
        if ("right", clip) in table:
            table["right", clip].append(" ".join(text.split()))
    table |= {("spoken", clip): [" ".join(text.split())] for clip, text in zip(clips, hypotheses["text"])}
    found = words(table)  # both at once: Java takes longer to begin than to do it
    return tuple({clip: found[part, clip] for clip in clips} for part in ("right", "spoken"))


def words(table: dict) -> dict:
    """Key → sentences as they are, to key → sentences in the words of the Penn Treebank tokenizer."""
    with _unheard() as said:
        found = ptbtokenizer.PTBTokenizer().tokenize(
            {clip: [{"caption": text} for text in texts] for clip, texts in table.items()}
        )
        if {clip: len(texts) for clip, texts in found.items()} != {clip: len(texts) for clip, texts in table.items()}:
            said.seek(0)
            why = " ".join(said.read().decode(errors="replace").split())[:300]
            raise RuntimeError(f"the tokenizer gave back another number of captions; Java says: {why or 'nothing'}")
    return found


@contextlib.contextmanager
def _unheard():
    """The tokenizer reports its speed on the standard error of the process, at every call: to a file in its place."""
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def examples(hypotheses: pd.DataFrame, references: pd.DataFrame, each: int = 3) -> pd.DataFrame:
    """The `each` best captions by CIDEr, as many around the median and the worst: columns kind, clip, text, CIDEr and
    references (joined by " / "). Chosen by rule, ties by their order; fewer of each where there are not thrice as many
    clips, and none where Java is missing."""
    table = hypotheses[["clip", "text"]].assign(CIDEr=cider(hypotheses, references).to_numpy()).dropna()
    table = table.sort_values("CIDEr", ascending=False, kind="stable")
    n = min(each, len(table) // 3)
    middle = (len(table) - n) // 2
    parts = {"best": table[:n], "median": table[middle : middle + n], "worst": table[len(table) - n :]}
    found = pd.concat(parts, names=["kind"]).reset_index("kind").reset_index(drop=True)
    told = references.groupby("clip")["text"].agg(" / ".join)
    return found.assign(references=found["clip"].map(told))
