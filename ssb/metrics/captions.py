"""COCO's caption metrics (Tables 7 to 9), computed by pycocoevalcap.

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
    """Why COCO's metrics cannot be computed here, printed by the first call; None where they can be.

    All four are defined on the words of the Penn Treebank tokenizer, and the tokenizer and METEOR are Java programs.
    With another tokenizer they would be different metrics under the same names.
    """
    folder = Path(ptbtokenizer.__file__).parent
    if subprocess.run("java -version", shell=True, capture_output=True).returncode:
        why = "`java` is missing or does not run"
    elif not os.access(folder, os.W_OK):
        why = f"the tokenizer writes its input to its own folder, and {folder} is not writable"
    else:
        return None
    print(f"{', '.join(METRICS)} stay blank: {why}. Install Java 8 or later (conda install openjdk).")
    return why


def evaluate(
    hypotheses: pd.DataFrame, references: pd.DataFrame, metrics: tuple[str, ...] = METRICS
) -> tuple[dict[str, float], pd.Series]:
    """`metrics` of pycocoevalcap over all clips, and the CIDEr of each caption by clip, in the order of the hypotheses.
    Both times 100, as published; NaN where Java is missing, and the CIDEr of a single clip, with a printed reason. The
    mean of the second is the CIDEr of the first.

    hypotheses: one caption for each clip; references: one or more for each of these clips. CIDEr weights words by the
    number of these clips that have them in a reference, so it depends on which clips are evaluated together.
    ValueError for a metric that is not in METRICS, and for a clip without reference or with two captions.
    """
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"no metric {listed(sorted(unknown))}; choose from {', '.join(METRICS)}")
    pair = tokenized(hypotheses, references)
    each = pd.Series(np.nan, index=pd.Index(hypotheses["clip"], name="clip"), name="CIDEr", dtype=float)
    if pair is None:
        return dict.fromkeys(metrics, np.nan), each
    mean, values = Cider().compute_score(*pair)
    if len(hypotheses) == 1:
        print("CIDEr stays blank: it weights words by how few of the clips have them, and there is one clip")
        mean, values = np.nan, np.full(1, np.nan)
    compute = {
        "BLEU-4": lambda: Bleu(4).compute_score(*pair, verbose=0)[0][3],
        "METEOR": lambda: meteor(*pair),
        "ROUGE-L": lambda: Rouge().compute_score(*pair)[0],
        "CIDEr": lambda: mean,
    }
    each[:] = 100 * values
    return {name: 100 * float(compute[name]()) for name in metrics}, each


def meteor(references: dict, hypotheses: dict) -> float:
    """METEOR of tokenized captions, 0 to 1. All evaluations of a process share one Java program, which takes seconds
    to load its paraphrases and a fraction of a second to score some hundred captions."""
    scorer = _meteor()
    if scorer.meteor_p.poll() is not None:  # the program has ended
        _meteor.cache_clear()
        scorer = _meteor()
    try:
        return scorer.compute_score(references, hypotheses)[0]
    except BaseException:  # interrupted: unread answers would be taken for those of the next evaluation
        _meteor.cache_clear()
        scorer.meteor_p.kill()
        if scorer.lock.locked():  # its destructor would wait for the lock
            scorer.lock.release()
        raise


_meteor = functools.cache(Meteor)


def tokenized(hypotheses: pd.DataFrame, references: pd.DataFrame) -> tuple[dict, dict] | None:
    """References and hypotheses, clip → list of tokenized sentences, as pycocoevalcap takes them; None without Java.
    ValueError as in `evaluate`."""
    for name, frame in (("hypotheses", hypotheses), ("references", references)):
        if missing := {"clip", "text"} - set(frame.columns):
            raise ValueError(f"{name} lack the column {listed(sorted(missing))}; wanted clip and text")
    clips = hypotheses["clip"]
    if not len(clips):
        raise ValueError("no hypotheses; wanted captions of one or more clips")
    if clips.duplicated().any():
        raise ValueError(f"clip {listed(clips[clips.duplicated()].unique())} has two captions; wanted one")
    if len(unreferenced := clips[~clips.isin(references["clip"])]):
        raise ValueError(f"no reference for clip {listed(unreferenced)}; wanted at least one for each captioned clip")
    if java_fails():
        return None
    references = references[references["clip"].isin(clips)].groupby("clip")["text"].agg(list)
    texts = {("reference", clip): references[clip] for clip in clips}
    texts |= {("hypothesis", clip): [text] for clip, text in zip(clips, hypotheses["text"])}
    tokens = tokenize(texts)  # both in one call: starting Java takes longer than tokenizing
    return tuple({clip: tokens[kind, clip] for clip in clips} for kind in ("reference", "hypothesis"))


def tokenize(texts: dict) -> dict:
    """Key → sentences, each replaced by the words of the Penn Treebank tokenizer, joined by spaces. RuntimeError with
    Java's message where the tokenizer fails."""
    # join words by spaces: a character that Java takes for a line end would shift all later captions by one
    captions = {key: [{"caption": " ".join(text.split())} for text in some] for key, some in texts.items()}
    with _captured_stderr() as messages:
        tokens = ptbtokenizer.PTBTokenizer().tokenize(captions)
        if {key: len(some) for key, some in tokens.items()} != {key: len(some) for key, some in texts.items()}:
            messages.seek(0)
            why = " ".join(messages.read().decode(errors="replace").split())[:300]
            raise RuntimeError(f"the tokenizer returned another number of captions; Java's message: {why or 'none'}")
    return tokens


@contextlib.contextmanager
def _captured_stderr():
    """Redirect the standard error of the process to a temporary file, which is yielded: the tokenizer reports its speed
    there at every call."""
    with tempfile.TemporaryFile() as messages:
        original = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(original, 2)
            os.close(original)


def examples(hypotheses: pd.DataFrame, references: pd.DataFrame, each: int = 3) -> pd.DataFrame:
    """The `each` best captions by CIDEr, as many around the median, and as many of the worst: columns kind, clip, text,
    CIDEr and references (joined by " / "). Ties keep their order; fewer of each kind where there are not three times
    as many clips, and none where Java is missing."""
    frame = hypotheses[["clip", "text"]].assign(CIDEr=evaluate(hypotheses, references, ())[1].to_numpy()).dropna()
    frame = frame.sort_values("CIDEr", ascending=False, kind="stable")
    n = min(each, len(frame) // 3)
    middle = (len(frame) - n) // 2
    parts = {"best": frame[:n], "median": frame[middle : middle + n], "worst": frame[len(frame) - n :]}
    chosen = pd.concat(parts, names=["kind"]).reset_index("kind").reset_index(drop=True)
    return chosen.assign(references=chosen["clip"].map(references.groupby("clip")["text"].agg(" / ".join)))
