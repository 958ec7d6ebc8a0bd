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
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from ssb import losses
from ssb.batches import Data, threads
from ssb.corpus import listed
from ssb.model import SupportSetModel

SOURCES = ("own", "support")
METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
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


def generated(model: SupportSetModel, support: Tensor, mask: Tensor, beams: int, max_tokens: int) -> Tensor:
    """Token ids (B, L) of the decoder's captions, each beginning with T5's start mark; after its end mark there
    is nothing but padding or more end marks.

    support (B, M, W), mask (B, M): as `SupportSetModel.support` gives them.
    """
    known = model.decoder.config
    settings = GenerationConfig(  # all that decides: a pretrained model may bring settings of its own
        num_beams=beams,
        max_new_tokens=max_tokens,
        do_sample=False,
        length_penalty=1.0,
        early_stopping=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        pad_token_id=known.pad_token_id,
        eos_token_id=known.eos_token_id,
        decoder_start_token_id=known.decoder_start_token_id,
    )
    return model.decoder.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=support),
        attention_mask=mask.long(),
        generation_config=settings,
    )


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
