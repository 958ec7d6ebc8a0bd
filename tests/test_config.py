"""Config: the paper's numbers, errors that help, and a name that changes with every setting."""

import json
import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ssb
from ssb import OBJECTIVES, PRESETS, Config, ConfigError
from ssb.config import located
from ssb.model import SupportSetModel, TransformerHead
from ssb.text import build_encoder
from ssb.training.runs import check, configure

PAPER = dict(
    dim=1024,
    batch=64,
    lr=5e-5,
    text_lr=5e-5,
    decoder_lr=5e-5,
    lr_schedule="decay",
    clip=0.2,
    clip_apart=False,
    dropout=0.3,
    captioning=10,
    margin=0.2,
    temperature=0.1,
    pool_heads=4,
    pool_ffn=2048,
    pool_layers=2,
    pre_encoder=True,
    video_pooling="transformer",
    text_pooling="transformer",
    epochs=20,
    max_steps=32,
    max_tokens=100,
    text_encoder="t5-base",
    freeze_text=False,
    decoder="t5-base",
    contrast="triplet",
    negatives="hardest",
    objective="cross",
    support_set=None,
    intra=False,
    info_nce_temperature=0.05,
)
# A valid value of every setting that the defaults do not have.
OTHER = dict(
    corpus="msrvtt1k",
    corpus_options={"clips": 60},
    streams=("appearance",),
    standardise=True,
    max_steps=31,
    max_tokens=99,
    epoch="clips",
    text_encoder="t5-small",
    freeze_text=True,
    decoder="t5-small",
    vocabulary=4001,
    scratch_width=64,
    scratch_layers=3,
    scratch_text_width=64,
    scratch_text_layers=3,
    scratch_heads=8,
    dim=512,
    video_pooling="mean",
    text_pooling="max",
    pool_layers=1,
    pool_heads=8,
    pool_ffn=1024,
    pool_query="cls",
    pre_encoder=False,
    pre_encoder_in="first",
    kernels="in turn",
    dropout=0.0,
    decoder_dropout=0.0,
    contrast="info_nce",
    margin=0.1,
    negatives="mean",
    schedule=(0.2, 0.9),
    intra=True,
    info_nce_temperature=0.07,
    soft_targets=0.5,
    objective="none",
    captioning=1.0,
    weighted_term="contrast",
    over_tokens="sum",
    temperature=0.2,
    support_set=32,
    weights_from="clip",
    weights_by="dot product",
    mixing="before",
    weights_gradient="text",
    decoded="permuted",
    decoder_warmup=0.5,
    batch=32,
    epochs=21,
    lr=1e-4,
    text_lr=1e-4,
    decoder_lr=1e-4,
    lr_schedule="constant",
    weight_decay=0.01,
    clip=1.0,
    clip_apart=True,
    validate_every=2,
    evaluate="val",
    train_clips=10,
    precision="bf16",
    threads=2,
    sequences=True,
    pretrained="0123456789ab",
    pretrained_decoder="0123456789ab",
    emcl=True,
    emcl_bases=16,
    emcl_stages=5,
    emcl_temperature=0.1,
    emcl_beta=1.0,
    emcl_released=True,
    s2dtw_gamma=0.01,
    s2dtw_dummy=None,
    s2dtw_smooth=False,
    s2dtw_shifted=False,
    s2dtw_contrastive=False,
    s2dtw_symmetric=True,
    s2dtw_temperature=0.1,
)


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return str(caught.value)


def test_the_paper_preset_has_the_papers_numbers():
    config = Config.preset("paper")
    assert {name: getattr(config, name) for name in PAPER} == PAPER
    assert config == Config()


def test_objectives_are_those_of_table_1():
    assert OBJECTIVES == ("none", "identity", "full", "hybrid", "cross")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_their_json_is_the_same_config(preset):
    config = Config.preset(preset, seed=3, corpus_options={"clips": 60, "false_negatives": 0.1}, streams=["motion"])
    again = Config(**json.loads(config.model_dump_json(indent=1)))
    assert again == config and again.sha == config.sha and again.seed == 3 and again.streams == ("motion",)


def test_every_setting_but_the_seed_changes_the_sha():
    assert OTHER.keys() | {"seed"} == Config.model_fields.keys()
    shas = {"": Config().sha} | {name: Config(**{name: value}).sha for name, value in OTHER.items()}
    same = [name for name in shas if list(shas.values()).count(shas[name]) > 1]
    assert not same
    assert Config(seed=7).sha == Config().sha
    assert all(len(sha) == 12 and set(sha) <= set("0123456789abcdef") for sha in shas.values())


class Grown(Config):
    """The library one setting later."""

    colour: str = "red"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_setting_that_is_added_later_renames_no_run(preset):
    for changes in ({}, dict(corpus_options={"clips": 60}, objective="none", support_set=8, seed=3)):
        now, later = Config.preset(preset, **changes), Grown.preset(preset, **changes)
        assert later.key == now.key and later.sha == now.sha
        assert later.replace(colour="blue").key != now.key and later.replace(colour="blue").sha != now.sha


@pytest.mark.parametrize("preset", PRESETS)
def test_the_key_is_what_differs_from_the_defaults(preset):
    config = Config.preset(preset, seed=3, streams=["motion"], margin=0.2)  # margin has its default
    key = json.loads(config.key)
    assert key == {"seed": 3, "streams": ["motion"]} | PRESETS[preset]
    assert Config(**key) == config and json.loads(Config().key) == {}


def test_without_captioning_its_settings_have_no_effect():
    captioning = {"captioning", "temperature", "support_set", "decoder_warmup"}
    captioning |= {"weights_from", "weights_gradient", "decoded", "decoder", "decoder_lr", "decoder_dropout"}
    captioning |= {"pretrained_decoder", "over_tokens", "weights_by", "mixing"}
    constants = {"emcl_bases", "emcl_stages", "emcl_temperature", "emcl_beta", "emcl_released"}  # without the layer
    bare = Config(objective="none")
    for name, value in OTHER.items():
        if name == "objective":
            continue
        changed = {"contrast": "triplet"} | {name: value}
        effective = Config(objective="none", **changed).effective()
        assert (effective.key == bare.key) == (name in captioning or name in constants), name
        matters = Config(**changed if name == "intra" else {"emcl": True} | changed)
        assert matters.effective() == matters  # with captioning and EMCL each has an effect


def test_sequences_are_checked():
    assert "no support_set on long videos" in refusal(sequences=True, support_set=4)
    assert "take one of them" in refusal(emcl=True, intra=True)
    assert Config(sequences=True, contrast="s2dtw", objective="cross").s2dtw_gamma == 0.1


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(weights_from="clip", sequences=True), "'clip': not on long videos"),
        (dict(weights_from="other caption", sequences=True), "'other caption': not on long videos"),
        (dict(weights_from="other caption", emcl=True), "EMCL takes no third embedding"),
        (dict(weights_from="meaning", sequences=True), "'meaning': not on long videos"),
        (dict(weights_from="meaning", objective="full"), "it is of other clips; take 'cross'"),
        (dict(weights_from="clip", weights_gradient="text"), "take weights_gradient = 'both' or 'none'"),
        (dict(weights_from="clip", weights_gradient="video"), "take weights_gradient = 'both' or 'none'"),
    ],
)
def test_sources_of_weights_are_checked(settings, words):
    assert words in refusal(**settings)


def test_equal_configs_have_one_sha():
    one, other = (Config(lr=lr, corpus_options=options) for lr, options in (
        (1, {"clips": 60, "captions": 3}), (1.0, {"captions": 3, "clips": 60})))  # fmt: skip
    assert one == other and one.sha == other.sha and one.model_dump_json() == other.model_dump_json()


def test_replace_changes_and_checks():
    config = Config.preset("smoke")
    assert config.replace(seed=4, objective="none") == Config.preset("smoke", seed=4, objective="none")
    assert config == Config.preset("smoke")
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        config.replace(epoch_s=3)


def test_a_config_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Config().lr = 1.0
    Config().corpus_options["clips"] = 60
    assert Config().corpus_options == {}


@pytest.mark.parametrize(
    "given, near",
    [("objectiv", "objective"), ("lrr", "lr"), ("batch_size", "batch"), ("Seed", "seed"), ("epoch_", "epoch")],
)
def test_an_unknown_setting_gets_the_nearest_name(given, near):
    message = refusal(**{given: 1})
    assert message.startswith(f"unknown setting {given!r}; did you mean ") and f"{near!r}?" in message


def test_an_unknown_setting_like_no_other_gets_the_list():
    message = refusal(zzzz=1)
    assert message.startswith("unknown setting 'zzzz'; there are ") and all(
        name in message for name in Config.model_fields
    )


def test_an_unknown_preset_gets_the_list():
    with pytest.raises(ConfigError, match="no preset 'labtop'; there are paper, laptop, tuned, paper_small, smoke"):
        Config.preset("labtop")


@pytest.mark.parametrize("name", ["self", "cls", "name", "preset", "changes", "settings", "cls.x"])
def test_a_name_that_python_uses_is_an_unknown_setting(name):
    """`ssb train smoke self=1`."""
    makers = (Config, partial(Config.preset, "smoke"), Config().replace, partial(configure, "smoke"))
    for make in (*makers, partial(configure, "smoke", "shapes")):
        with pytest.raises(ConfigError, match=f"unknown setting '{name}'; "):
            make(**{name: 1})


def test_each_wrong_setting_has_its_line():
    lines = refusal(batch=1, objectve="none", dropout=1.5).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("batch = 1: ") for line in lines)
    assert any(line.startswith("dropout = 1.5: ") for line in lines)
    assert "unknown setting 'objectve'; did you mean 'objective'?" in lines


LOW, TYPE = "should be greater than", "should be a valid"
NUMBERS = ("dropout", "decoder_dropout", "margin", "info_nce_temperature", "captioning", "temperature",
           "decoder_warmup", "lr", "text_lr", "decoder_lr", "clip")  # fmt: skip


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("corpus", 1, TYPE + " string"),
        ("streams", "motion", TYPE + " tuple"),
        ("streams", [1], TYPE + " string"),
        ("standardise", "yes", TYPE + " boolean"),
        ("standardise", 1, TYPE + " boolean"),
        ("max_steps", 0, LOW + " or equal to 1"),
        ("max_tokens", 1, LOW + " or equal to 2"),
        ("epoch", "captions", "'pairs' or 'clips'"),
        ("vocabulary", 63, LOW + " or equal to 64"),
        ("scratch_width", 4, LOW + " or equal to 8"),
        ("scratch_layers", 0, LOW + " or equal to 1"),
        ("scratch_text_width", 4, LOW + " or equal to 8"),
        ("scratch_text_layers", 0, LOW + " or equal to 1"),
        ("scratch_heads", 0, LOW + " or equal to 1"),
        ("dim", 0, LOW + " or equal to 2"),
        ("pool_layers", 0, LOW + " or equal to 1"),
        ("pool_heads", 0, LOW + " or equal to 1"),
        ("pool_ffn", 0, LOW + " or equal to 1"),
        ("pool_query", "last", "'first' or 'cls'"),
        ("dropout", -0.1, LOW + " or equal to 0"),
        ("dropout", 1.0, "less than 1"),
        ("decoder_dropout", 1.0, "less than 1"),
        ("margin", 0.0, LOW + " 0"),
        ("negatives", "hard", "'hardest', 'mean' or 'scheduled'"),
        ("schedule", (0.8, 0.2), "schedule (0.8, 0.2) must be two shares of the epochs, ascending, from 0 to 1"),
        ("schedule", (0.2, 1.1), "schedule (0.2, 1.1) must be two shares of the epochs, ascending, from 0 to 1"),
        ("schedule", [0.2], "required"),
        ("intra", "both", TYPE + " boolean"),
        ("info_nce_temperature", 0.0, LOW + " 0"),
        ("soft_targets", -0.1, LOW + " or equal to 0"),
        ("weight_decay", -0.1, LOW + " or equal to 0"),
        ("objective", "crss", "'none', 'identity', 'full', 'hybrid' or 'cross'"),
        ("captioning", -1.0, LOW + " or equal to 0"),
        ("temperature", 0.0, LOW + " 0"),
        ("support_set", 1, LOW + " or equal to 2"),
        ("support_set", 0, LOW + " or equal to 2"),
        ("support_set", 2.5, TYPE + " integer"),
        ("support_set", "64", TYPE + " integer"),
        ("support_set", True, TYPE + " integer"),
        ("weights_from", "video", "'caption', 'other caption', 'clip' or 'meaning'"),
        ("weights_gradient", "clip", "'both', 'text', 'video' or 'none'"),
        ("decoded", "other", "'own', 'permuted' or 'shuffled'"),
        ("decoder_warmup", -0.1, LOW + " or equal to 0"),
        ("decoder_warmup", 1.0, "less than 1"),
        ("batch", 1, LOW + " or equal to 2"),
        ("batch", "64", TYPE + " integer"),
        ("batch", 64.0, TYPE + " integer"),
        ("batch", True, TYPE + " integer"),
        ("epochs", 0, LOW + " or equal to 1"),
        ("lr", 0.0, LOW + " 0"),
        ("lr", "fast", TYPE + " number"),
        ("lr", None, TYPE + " number"),
        ("text_lr", 0.0, LOW + " 0"),
        ("text_lr", None, TYPE + " number"),
        ("decoder_lr", -1.0, LOW + " 0"),
        ("lr_schedule", "step", "'decay', 'constant' or 'cosine'"),
        ("evaluate", "train", "'test' or 'val'"),
        ("train_clips", 1, LOW + " or equal to 2"),
        ("clip", 0.0, LOW + " 0"),
        ("validate_every", 0, LOW + " or equal to 1"),
        ("precision", "fp8", "'no', 'bf16' or 'fp16'"),
        ("threads", 0, LOW + " or equal to 1"),
        ("seed", -1, LOW + " or equal to 0"),
        ("corpus_options", {"clips": [60]}, TYPE),
        ("corpus_options", {"clips": True}, TYPE),
        ("pool_heads", 3, "dim 1024 must be divisible by 4 and by pool_heads 3"),
        ("dim", 1022, "dim 1022 must be divisible by 4"),
        ("scratch_width", 66, "scratch_width 66 must be divisible by scratch_heads"),
        ("scratch_text_width", 66, "scratch_text_width 66 must be divisible by scratch_heads"),
        ("scratch_heads", 3, "scratch_width 128 must be divisible by scratch_heads"),
        *((name, "x" * 300, "too long for a name or a path") for name in ("corpus", "text_encoder", "decoder")),
        ("text_encoder", "\ud83d", "holds half a character; write it in full"),
        ("pretrained", "ab/" * 1000, "too long for a name or a path"),
        ("contrast", "é" * 200, "too long for a name or a path"),
        *((name, value, name) for name in NUMBERS for value in (math.inf, math.nan)),
    ],
)
def test_a_bad_value_is_named(name, value, words):
    message = refusal(**{name: value})
    assert message.startswith((f"{name} = ", f"{name}.", words)) and words in message


MOST = dict(train_clips=10**8, max_steps=4096, max_tokens=4096, vocabulary=10**6, scratch_layers=128,
            scratch_text_layers=128, scratch_heads=1024, pool_layers=128, pool_heads=1024, emcl_bases=4096,
            emcl_stages=1000, support_set=16384, batch=4096, epochs=100_000, validate_every=100_000, threads=1024,
            seed=2**32 - 1)  # fmt: skip
MOST |= {name: 65536 for name in ("scratch_width", "scratch_text_width", "dim", "pool_ffn")}
MOST |= {name: 1e3 for name in ("margin", "info_nce_temperature", "emcl_temperature", "emcl_beta", "s2dtw_gamma",
                                "s2dtw_dummy", "s2dtw_temperature", "temperature")}  # fmt: skip
MOST |= {name: 1e30 for name in ("lr", "text_lr", "decoder_lr", "clip")} | dict(
    captioning=1e6, weight_decay=1e3, soft_targets=1.0
)
SHARES = {"dropout", "decoder_dropout", "decoder_warmup"}  # below 1


def test_every_number_has_an_upper_bound():
    """No number that a user may type ends in a crash, a machine without memory or a run that hangs."""
    kinds = {name: str(field.annotation) for name, field in Config.model_fields.items()}
    numbers = {name for name, kind in kinds.items() if "int" in kind or "float" in kind}
    assert numbers == MOST.keys() | SHARES | {"schedule", "corpus_options"}
    fits = dict(pool_heads=1, scratch_heads=1, video_pooling="mean", text_pooling="mean")  # one divides all widths
    fits |= dict(scratch_width=1024, scratch_text_width=1024)
    for name, most in MOST.items():
        assert getattr(Config(**{**fits, name: most}), name) == most
        for value in (most * 2, most + 1, 10**30 + 1, 10**400) if isinstance(most, int) else (most * 2, 1e300):
            message = refusal(**{name: value})
            bound = str(most + 1 if name == "seed" else most).removesuffix(".0")
            assert message.startswith(f"{name} = {value if value < 10**200 else str(value)[:200]}"), message
            assert f"should be less than {'' if name == 'seed' else 'or equal to '}" in message, message
            assert message.endswith(bound) or float(message.rpartition(" ")[2]) == most, message


@given(st.data())
def test_a_number_beyond_its_bounds_is_refused_by_name(data):
    """Whatever its size and type: an integer of hundreds of digits, a fraction, a number that is none."""
    name = data.draw(st.sampled_from([*MOST, *SHARES]))
    most, whole = MOST.get(name, 1), isinstance(MOST.get(name), int)
    above = st.integers(math.ceil(most * 1.001) + 1, 10**500) | st.floats(most, exclude_min=True) | st.just(math.nan)
    below = st.integers(-(10**500), -1001) | st.floats(max_value=-1001)
    value = data.draw(above | below | (st.floats() if whole else st.nothing()))
    message = refusal(**{name: value})
    assert message.startswith(f"{name} = ") and message.count("\n") == 0 and len(message) < 400, message


@pytest.mark.parametrize(
    "settings, names",
    [
        (dict(decoder="scratch", scratch_width=65536), "vocabulary, scratch_width and scratch_layers"),
        (dict(decoder="scratch", scratch_width=4096, scratch_layers=128), "scratch_width and scratch_layers"),
        (dict(decoder="scratch", scratch_width=4096, vocabulary=10**6), "vocabulary, scratch_width"),
        (dict(text_encoder="scratch", scratch_text_width=16384), "scratch_text_width and scratch_text_layers"),
    ],
)
def test_weights_that_do_not_fit_a_machine_are_refused(settings, names):
    message = refusal(**settings)
    assert names in message and "at most 5e+08" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("settings", [dict(dim=16384), dict(dim=65536, video_pooling="conv", text_pooling="mean")])
def test_heads_that_do_not_fit_a_machine_are_refused(settings):
    """When the heads are known, before anything is trained."""
    for begin in (lambda: configure("paper", **settings), lambda: check(Config(**settings))):
        with pytest.raises(ConfigError, match=r"at most 5e\+08 fit; lower one of dim, pool_ffn and pool_layers$"):
            begin()


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_counted_about_right(preset):
    """Against the models themselves."""
    config = Config.preset(preset, decoder="scratch", text_encoder="scratch", freeze_text=False, scratch_width=256)
    config = config.replace(
        scratch_layers=3, scratch_text_width=192, scratch_text_layers=4, video_pooling="transformer"
    )
    encoder = build_encoder(config, config.vocabulary)
    model = SupportSetModel(config, config.dim, config.dim, config.vocabulary)
    counts = [sum(p.numel() for p in part.parameters()) for part in (encoder, model.decoder, model.video_head)]
    assert [*config.weights().values(), TransformerHead.weights(config)] == pytest.approx(counts, rel=0.4)


def test_a_stream_named_twice_is_refused():
    message = refusal(streams=("look", "move", "look"))
    assert message == "streams ('look', 'move', 'look'): 'look' is there twice; name each stream once"
    assert Config(streams=["look", "move"]).streams == ("look", "move")


def nested(depth: int, value=1):
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", Config.model_fields)
def test_deep_nesting_is_one_line(name):
    for value in (nested(10), nested(900), nested(5000), {"a": nested(5000)}):
        message = refusal(**{name: value})
        assert all(line.startswith((f"{name} = ", f"{name}.")) and len(line) < 400 for line in message.splitlines())


HUGE = {"digits": 10**5000, "minus": -(10**5000), "text": "x" * 10**6, "list": [1] * 10**6, "map": {"a": [1] * 10**6}}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
def test_a_huge_value_is_one_short_line(value):
    for name in ("seed", "lr", "objective"):
        message = refusal(**{name: value})
        assert message.startswith(f"{name} = ") and len(message) < 400 and "\n" not in message


def test_an_error_is_located_where_ones_own_code_led_to_it(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import json\n\n\ndef f():\n    json.loads('{')\n\n\ndef g():\n    raise SystemExit\n")
    scope = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    for name, words, line in (("f", "JSONDecodeError: Expecting", 5), ("g", "SystemExit", 9)):
        with pytest.raises((ValueError, SystemExit)) as caught:
            scope[name]()
        assert located(caught.value).startswith(words) and located(caught.value).endswith(f" ({path}, line {line})")
    with pytest.raises(SyntaxError) as wrong:
        compile("x = 1\ny = = 2", str(path), "exec")
    assert located(wrong.value) == f"SyntaxError: invalid syntax ({path}, line 2)"
    assert located(ValueError("two\nlines")) == "ValueError: two lines"


def test_freezing_what_is_not_pretrained_is_refused():
    assert "freeze_text needs a pretrained text_encoder" in refusal(freeze_text=True, text_encoder="scratch")


def test_every_setting_is_described():
    """`ssb.settings`: a row for each field of Config, with its value in each preset."""
    table = ssb.settings()
    assert table.index.tolist() == list(Config.model_fields) and table["what it is"].str.len().ge(10).all()
    assert table.loc["epochs", ["paper", "laptop", "smoke"]].tolist() == ["20", "40", "2"]
    for preset in PRESETS:
        config = Config.preset(preset)
        for name, row in table.iterrows():
            assert repr(getattr(config, name)) == (row[preset] or row["paper"])
