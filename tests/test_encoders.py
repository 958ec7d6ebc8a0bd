"""Text encoders of many architectures, small and untrained: their states are those of the model's own forward, and
what they cannot take is refused before training."""

import ast
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import ssb
from ssb import Config, text
from ssb.text import ModelError, Ragged, pretrained

CAPTIONS = ["a red circle moves to the left", "the small square spins", "a star", "something blue, slow-moving"] * 4
TOKENS = 300
BERT = dict(vocab_size=TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
BERT |= dict(max_position_embeddings=42)
TOWER = BERT | dict(max_position_embeddings=20)
IMAGE = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
IMAGE |= dict(image_size=16, patch_size=8)
SEQ2SEQ = dict(vocab_size=TOKENS, d_model=16, max_position_embeddings=42)
for part in ("encoder", "decoder"):
    SEQ2SEQ |= {f"{part}_layers": 2, f"{part}_ffn_dim": 24, f"{part}_attention_heads": 2}
T5 = dict(vocab_size=TOKENS, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2, num_decoder_layers=1)
T5 |= dict(decoder_start_token_id=0)
DISTIL = dict(vocab_size=TOKENS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=42)
MARKS = dict(pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1)
CLIP = dict(text_config=TOWER, vision_config=IMAGE)


def a(name: str, **settings):
    """A model of this class, as it was made."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**settings)).eval()


def bert_to_bert():
    decoder = a("BertLMHeadModel", **BERT, is_decoder=True, add_cross_attention=True)
    return transformers.EncoderDecoderModel(encoder=a("BertModel", **BERT), decoder=decoder).eval()


def captioner():
    decoder = a("BertLMHeadModel", **BERT, is_decoder=True, add_cross_attention=True)
    return transformers.VisionEncoderDecoderModel(encoder=a("ViTModel", **IMAGE), decoder=decoder)


def llava():
    language = transformers.LlamaConfig(**BERT)
    return a(
        "LlavaForConditionalGeneration", text_config=language, vision_config=transformers.CLIPVisionConfig(**IMAGE)
    )


def tower(model):
    return model.text_model


def encoder(model):
    return model.get_encoder()


def body(model):
    return model.base_model


# architecture → how to make it; the part of it that reads text; the most tokens that it reads, None without a limit
ENCODERS = {
    "BERT": (lambda: a("BertModel", **BERT), body, 42),
    "BERT with a head": (lambda: a("BertForMaskedLM", **BERT), body, 42),
    "RoBERTa": (lambda: a("RobertaForMaskedLM", **BERT), body, 40),
    "DistilBERT": (lambda: a("DistilBertModel", **DISTIL), body, 42),
    "ALBERT": (lambda: a("AlbertModel", **BERT, embedding_size=8), body, 42),
    "ELECTRA": (lambda: a("ElectraForPreTraining", **BERT, embedding_size=8), body, 42),
    "MPNet": (lambda: a("MPNetModel", **BERT), body, 40),
    "DeBERTa v2": (
        lambda: a("DebertaV2Model", **BERT, relative_attention=True, position_biased_input=False),
        body,
        None,
    ),
    "Longformer": (lambda: a("LongformerModel", **BERT, attention_window=4), body, 40),
    "BART": (lambda: a("BartModel", **SEQ2SEQ), encoder, 42),
    "BART with a head": (lambda: a("BartForConditionalGeneration", **SEQ2SEQ), encoder, 42),
    "mBART": (lambda: a("MBartForConditionalGeneration", **SEQ2SEQ), encoder, 42),
    "Pegasus": (lambda: a("PegasusForConditionalGeneration", **SEQ2SEQ), encoder, 42),
    "Marian": (lambda: a("MarianMTModel", **SEQ2SEQ, pad_token_id=0, decoder_start_token_id=0), encoder, 42),
    "T5": (lambda: a("T5ForConditionalGeneration", **T5), encoder, None),
    "the encoder of a T5": (lambda: a("T5EncoderModel", **T5), encoder, None),
    "mT5": (lambda: a("MT5ForConditionalGeneration", **T5), encoder, None),
    "LongT5": (lambda: a("LongT5ForConditionalGeneration", **T5, local_radius=3), encoder, None),
    "the encoder of a LongT5": (lambda: a("LongT5EncoderModel", **T5, local_radius=3), encoder, None),
    "two BERTs": (bert_to_bert, encoder, 42),
    "CLIP": (lambda: a("CLIPModel", **CLIP), tower, 20),
    "the text of CLIP": (lambda: a("CLIPTextModel", **TOWER), lambda model: model, 20),
    "the text of CLIP, projected": (lambda: a("CLIPTextModelWithProjection", **TOWER), tower, 20),
    "SigLIP": (lambda: a("SiglipModel", **CLIP), tower, 20),
    "the text of SigLIP": (lambda: a("SiglipTextModel", **TOWER), lambda model: model, 20),
}
REFUSED = {
    "GPT-2": (lambda: a("GPT2LMHeadModel", vocab_size=TOKENS, n_embd=16, n_layer=1, n_head=2), "gpt2, a decoder"),
    "Llama": (lambda: a("LlamaForCausalLM", **BERT), "llama, a decoder"),
    "BERT as a decoder": (lambda: a("BertLMHeadModel", **BERT, is_decoder=True), "bert, a decoder"),
    "LLaVA": (llava, "llava, a decoder"),
    "ViT": (lambda: a("ViTModel", **IMAGE), "vit, which reads pixel_values, not text"),
    "the image of CLIP": (
        lambda: a("CLIPVisionModel", **IMAGE),
        "clip_vision_model, which reads pixel_values, not text",
    ),
    "an image captioner": (captioner, "which reads pixel_values, not text"),
    "Whisper": (lambda: a("WhisperModel", **SEQ2SEQ, **MARKS), "whisper, which reads input_features, not text"),
    "ViLT": (lambda: a("ViltModel", **BERT, image_size=16, patch_size=8), "does not read token ids alone"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return text.fit_tokenizer(CAPTIONS, TOKENS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """kind → the model and the folder that it was saved in, with a tokenizer."""
    made = {}

    def folder(kind: str):
        if kind not in made:
            torch.manual_seed(0)
            model, path = ENCODERS[kind][0](), tmp_path_factory.mktemp("encoder")
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[kind] = model, path
        return made[kind]

    return folder


def config(folder, **changes) -> Config:
    return Config.preset("smoke", text_encoder=str(folder), **changes)


def changed(folder, to, change=None, **settings):
    """A copy of a model folder: its weights, name → tensor, changed in place, and its config.json."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    own = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(own | settings))
    if change:
        weights = {name: x.clone() for name, x in load_file(to / "model.safetensors").items()}
        change(weights)
        save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("kind", ENCODERS)
def test_states_are_those_of_the_models_own_forward(kind, saved, tokenizer):
    """One caption at a time in the model as it was made; all of them padded, in float16, in ours."""
    model, folder = saved(kind)
    ours = text.build_encoder(config(folder), len(tokenizer))
    ids = Ragged.of(text.token_ids(text.tokenizer(str(folder), [], 0), CAPTIONS[:4], 20))
    states, own = text.frozen_states(ours, ids), ENCODERS[kind][1](model)
    assert ours.config.hidden_size == states.values.shape[1] == 16
    for i in range(4):
        row = torch.from_numpy(ids.values[ids.offsets[i] : ids.offsets[i + 1]])[None]
        with torch.no_grad():
            alone = own(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].numpy()
        assert np.allclose(states.values[ids.offsets[i] : ids.offsets[i + 1]], alone, atol=5e-3), kind
        assert np.abs(alone).max() > 0.05 and alone.std(0).max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_positions_end_where_the_models_own_forward_fails(kind, saved, tokenizer):
    folder, most = saved(kind)[1], ENCODERS[kind][2]
    ours = text.build_encoder(config(folder), len(tokenizer))
    assert text.most_tokens(ours) == most
    for length in (most or 600, (most or 600) + 1):
        ids = torch.full((1, length), 7)
        if length == most or not most:
            assert ours(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[1] == length
            text.check_length(config(folder), ours, length)
            continue
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            ours(input_ids=ids, attention_mask=torch.ones_like(ids))
        with pytest.raises(
            ModelError, match=f"takes at most {most} tokens.*of {length} .*set max_tokens = {most} or l"
        ):
            text.check_length(config(folder), ours, length)


@pytest.mark.parametrize("kind", ["BERT", "BART", "CLIP", "SigLIP", "LongT5"])
def test_encoders_are_trained(kind, saved, tokenizer):
    ours = text.build_encoder(config(saved(kind)[1]), len(tokenizer)).train()
    ids = torch.tensor([[5, 6, 7, 1]])
    ours(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.square().sum().backward()
    without = {name for name, p in ours.named_parameters() if p.grad is None and "pooler" not in name}
    assert not {name for name in without if not name.startswith("head.")}  # of SigLIP, its pooler


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_does_not_read_text_is_refused(kind, tmp_path):
    make, words = REFUSED[kind]
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        text.build_encoder(config(tmp_path), TOKENS)
    message = str(caught.value)
    assert f"text_encoder = {str(tmp_path)!r}" in message and words in message and "\n" not in message
    assert "take a text encoder (such as BERT" in message and "CLIP or SigLIP" in message


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "BART with a head", "CLIP", "T5"])
def test_a_tokenizer_larger_than_the_embedding_is_refused(kind, saved):
    folder = saved(kind)[1]
    text.build_encoder(config(folder), TOKENS)
    with pytest.raises(ModelError, match=f"text_encoder = .*tokenizer has {TOKENS + 1} tokens.*{TOKENS} rows"):
        text.build_encoder(config(folder), TOKENS + 1)
    if kind == "T5":
        text.build_decoder(Config.preset("smoke", decoder=str(folder)), TOKENS)
        with pytest.raises(ModelError, match=f"decoder = .*tokenizer has {TOKENS + 1} tokens.*{TOKENS} rows"):
            text.build_decoder(Config.preset("smoke", decoder=str(folder)), TOKENS + 1)


def test_a_tokenizer_with_added_tokens_is_counted_whole(saved, tmp_path):
    folder = changed(saved("BERT")[1], tmp_path / "grown")
    grown = AutoTokenizer.from_pretrained(folder)
    grown.add_tokens([f"<word {i}>" for i in range(TOKENS)])
    grown.save_pretrained(folder)
    with pytest.raises(ModelError, match="rows"):
        text.build_encoder(config(folder), len(text.tokenizer(str(folder), [], 0)))


@pytest.mark.parametrize("kind, frozen", [("CLIP", True), ("SigLIP", False), ("BART", True), ("LongT5", False)])
def test_runs_train_with_them(kind, frozen, saved, tiny, home):
    settings = dict(text_encoder=str(saved(kind)[1]), freeze_text=frozen, max_tokens=16, objective="none")
    run = ssb.fit(tiny.replace(**settings), quiet=True)
    assert np.isfinite(run.log["contrast"]).all() and 0 <= run.metrics["t2v R@1"] <= 100


# weights


def without(*parts):
    """Delete the weights with these words in their names."""

    def change(weights):
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def copied(one: str, other: str):
    """Copy the weights with `one` in their names to names with `other` instead."""

    def change(weights):
        for name in [name for name in weights if one in name]:
            weights[name.replace(one, other)] = weights[name].clone()

    return change


# kind of model → weights that its text encoder cannot do without, and a layer too many in the part that is used
PARTS = {
    "BERT": ("encoder.layer.1.attention", ("layer.1.", "layer.7.")),
    "BERT with a head": ("encoder.layer.1.attention", ("layer.1.", "layer.7.")),
    "BART with a head": ("encoder.layers.1.fc1", ("encoder.layers.1.", "encoder.layers.7.")),
    "T5": ("encoder.block.1.layer.0", ("encoder.block.1.", "encoder.block.7.")),
    "CLIP": ("text_model.encoder.layers.1.mlp", ("text_model.encoder.layers.1.", "text_model.encoder.layers.7.")),
    "the text of CLIP": ("layers.1.mlp", ("encoder.layers.1.", "encoder.layers.7.")),
}


@pytest.mark.parametrize("kind", PARTS)
def test_weights_missing_or_left_over_in_the_part_that_is_used(kind, saved, tmp_path):
    missing, further = PARTS[kind]
    lacking = changed(saved(kind)[1], tmp_path / "lacking", without(missing))
    with pytest.raises(ModelError, match=f"lacking.*lacks .* weights of a .*{missing}"):
        text.build_encoder(config(lacking), TOKENS)
    longer = changed(saved(kind)[1], tmp_path / "longer", copied(*further))
    with pytest.raises(
        ModelError, match=f"longer.*holds .* weights that its config.json has no place for.*{further[1]}"
    ):
        text.build_encoder(config(longer), TOKENS)


@pytest.mark.parametrize("kind", ["BART with a head", "T5"])
def test_word_vectors_that_are_shared_are_missed(kind, saved, tmp_path):
    folder = changed(saved(kind)[1], tmp_path / "blind", without("shared", "embed_tokens", "lm_head"))
    with pytest.raises(ModelError, match="blind.*lacks .*embed_tokens"):
        text.build_encoder(config(folder), TOKENS)


@pytest.mark.parametrize(
    "kind, dropped",
    [
        ("BERT", "pooler"),
        ("BERT with a head", "cls."),
        ("BART with a head", "model.decoder."),
        ("T5", "decoder.block"),
        ("CLIP", "vision_model"),
        ("SigLIP", "vision_model"),
    ],
)
def test_parts_that_are_not_used_may_lack_weights(kind, dropped, saved, tmp_path):
    folder = changed(saved(kind)[1], tmp_path / "part", without(dropped))
    ids = torch.tensor([[5, 6, 7, 1]])
    states = [
        text.build_encoder(config(path), TOKENS)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        for path in (folder, saved(kind)[1])
    ]
    assert torch.equal(*states)


def test_names_of_older_files_are_understood(saved, tmp_path):
    """Positions were saved as weights; the text of CLIP had its name before every weight."""
    for kind, name in (("BERT", "embeddings"), ("RoBERTa", "roberta.embeddings"), ("CLIP", "text_model.embeddings")):
        rows = torch.arange(20)[None]
        old = changed(saved(kind)[1], tmp_path / kind, lambda weights: weights.update({f"{name}.position_ids": rows}))
        text.build_encoder(config(old), TOKENS)

    def renamed(weights):
        for name in list(weights):
            weights[f"text_model.{name}"] = weights.pop(name)

    folder = changed(saved("the text of CLIP")[1], tmp_path / "old", renamed)
    new, old = (text.build_encoder(config(path), TOKENS) for path in (saved("the text of CLIP")[1], folder))
    assert all(torch.equal(x, old.state_dict()[name]) for name, x in new.state_dict().items())


def test_weights_of_another_shape_are_named(saved, tmp_path):
    folder = changed(saved("BERT")[1], tmp_path / "small", vocab_size=200)
    with pytest.raises(ModelError, match=r"small.*word_embeddings.*shape \(300, 16\).*asks for \(200, 16\)"):
        text.build_encoder(config(folder), 100)


@pytest.mark.parametrize(
    "change, words",
    [
        (without("decoder.block.0.layer.1"), "lacks .*decoder.block.0.layer.1"),
        (copied("decoder.block.0.", "decoder.block.5."), "no place for.*decoder.block.5"),
        (without("shared", "lm_head", "embed_tokens"), "lacks "),
        (without("encoder.block", "encoder.final"), None),
        (copied("encoder.block.0.", "encoder.block.5."), None),
    ],
)
def test_weights_of_a_decoder_are_compared_too(change, words, saved, tmp_path):
    folder = changed(saved("T5")[1], tmp_path / "t5", change)
    settings = Config.preset("smoke", decoder=str(folder))
    if words is None:  # of the encoder, which is not used
        text.build_decoder(settings, TOKENS)
        return
    with pytest.raises(ModelError, match=words):
        text.build_decoder(settings, TOKENS)


def test_the_encoder_of_a_t5_is_no_decoder(saved):
    with pytest.raises(ModelError, match="lacks .*decoder.block"):
        text.build_decoder(Config.preset("smoke", decoder=str(saved("the encoder of a T5")[1])), TOKENS)


@pytest.mark.parametrize("mark", ["pad_token_id", "eos_token_id", "decoder_start_token_id"])
def test_a_decoder_without_marks_is_refused(mark, saved, tmp_path):
    folder = changed(saved("T5")[1], tmp_path / "t5", **{mark: None})
    with pytest.raises(ModelError, match=f"decoder = .*no {mark}"):
        text.build_decoder(Config.preset("smoke", decoder=str(folder)), TOKENS)


# folders that cannot be loaded

AUTO = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", None],
}
CODE = """from pathlib import Path
Path({ran!r}).touch()
from transformers import BertConfig as EvilConfig, BertModel as EvilModel, BertTokenizer as EvilTokenizer
"""


@pytest.mark.parametrize("model_type", ["evil", "bert"])
def test_code_in_a_model_folder_is_never_run(model_type, saved, tmp_path, monkeypatch):
    """Not even where somebody answers yes to the question of transformers."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = changed(saved("BERT")[1], tmp_path / "model", auto_map=AUTO, model_type=model_type)
    (folder / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    own = json.loads((folder / "tokenizer_config.json").read_text())
    own |= {"auto_map": AUTO, "tokenizer_class": "EvilTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    loads = [
        lambda: text.build_encoder(config(folder), TOKENS),
        lambda: text.build_decoder(Config.preset("smoke", decoder=str(folder)), TOKENS),
        lambda: text.tokenizer(str(folder), [], 0),
    ]
    for load in loads:
        try:
            load()
        except ModelError as error:
            assert str(folder) in str(error) and "\n" not in str(error) and "trust_remote_code" not in str(error)
    assert not (tmp_path / "ran").exists()
    if model_type == "evil":
        for load in loads[:2]:
            with pytest.raises(ModelError, match="Python code of its own .*never run"):
                load()


def test_every_loader_is_told_to_run_no_code(monkeypatch):
    calls = []
    for path in Path(ssb.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("from_pretrained", "from_config"):
                calls.append((path.name, [ast.unparse(each) for each in node.keywords]))
    loads = [(name, keywords) for name, keywords in calls if "trust_remote_code=False" not in keywords]
    assert len(calls) > 1 and not loads

    class Loader:
        @staticmethod
        def from_pretrained(name, **options):
            raise ValueError(f"trust is {options['trust_remote_code']}")

    with pytest.raises(ModelError, match="trust is False"):
        pretrained(Loader, "any")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", "{}", '{"model_type": 5}', '{"model_type": "nothing"}', '{"model_type": "bert", "x'],
)
def test_a_damaged_config_is_one_line(content, saved, tmp_path):
    folder = changed(saved("BERT")[1], tmp_path / "damaged")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="damaged") as caught:
        text.build_encoder(config(folder), TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [dict(num_attention_heads=3), dict(hidden_size="x"), dict(vocab_size=-1)])
def test_settings_that_make_no_model_are_one_line(settings, saved, tmp_path):
    folder = changed(saved("BERT")[1], tmp_path / "damaged", **settings)
    with pytest.raises(ModelError, match="damaged") as caught:
        text.build_encoder(config(folder), 0)
    assert "\n" not in str(caught.value)


def test_an_error_without_words_is_one_line():
    class Loader:
        @staticmethod
        def from_pretrained(name, **options):
            raise NotImplementedError

    with pytest.raises(ModelError, match="cannot load 'any': NotImplementedError"):
        pretrained(Loader, "any")


def test_the_sentence_encoder_of_the_presets_is_complete():
    name = Config.preset("laptop").text_encoder
    words = text.tokenizer(name, [], 0)
    assert isinstance(words, PreTrainedTokenizerFast) or len(words) == 30522
    assert text.most_tokens(text.build_encoder(Config.preset("laptop"), len(words))) == 512
