"""Token ids of captions. Imports neither torch nor a model, so that a process that reads a corpus is small."""

import threading

import numpy as np
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast


def token_ids(tokenizer, captions: list[str], most: int) -> list[np.ndarray]:
    """Ids (tokens,) int64 of each caption, at most `most` of them, with the end mark last if the tokenizer has one."""
    rows, end = _encoded(tokenizer, captions, most), tokenizer.eos_token_id
    if end is not None:  # fitted tokenizers and GPT-like ones do not add it
        rows = [row if row[-1:] == [end] else row[: most - 1] + [end] for row in rows]
    return [np.asarray(row, np.int64) for row in rows]


def longer(tokenizer, captions: list[str], most: int) -> int:
    """How many captions have more than `most` tokens, the end mark included, so that `token_ids` cuts them."""
    rows, end = _encoded(tokenizer, captions), tokenizer.eos_token_id
    return sum(len(row) + (end is not None and row[-1:] != [end]) > most for row in rows)


def content(tokenizer) -> str:
    """All that the ids of a tokenizer depend on; "" for one that is written in Python."""
    if not _fast(tokenizer):
        return ""
    with _encoding:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # which the last call has set, and each call sets again
        backend.no_padding()
        return f"{tokenizers.__version__} {tokenizer.eos_token_id} {backend.to_str()}"


_encoding = threading.Lock()  # a tokenizer is set up for one call at a time


def _encoded(tokenizer, captions: list[str], most: int | None = None) -> list[list[int]]:
    """Ids as the tokenizer gives them, at most `most` of them where it is given."""
    if not captions:
        return []
    if _fast(tokenizer):
        with _encoding:
            tokenizer([""], truncation=most is not None, max_length=most)  # sets up the backend
            return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(captions)]
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warning of captions that are longer than the model takes
    try:
        return tokenizer(captions, truncation=most is not None, max_length=most)["input_ids"]
    finally:
        transformers.logging.set_verbosity(level)


def _fast(tokenizer) -> bool:
    """Is it one of the library tokenizers alone?"""
    return getattr(type(tokenizer), "_encode_plus", None) is PreTrainedTokenizerFast._encode_plus
