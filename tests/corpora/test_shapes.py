"""The corpus shapes: its captions and features are checked against its pixels, not against its code."""

import dataclasses
import hashlib
import pickle
import re

import numpy as np
import pytest

from ssb.corpora import pixels, shapes
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError

COLOURS = {
    "red": "red scarlet crimson",
    "orange": "orange tangerine amber",
    "yellow": "yellow golden",
    "green": "green emerald",
    "cyan": "turquoise cyan aqua",
    "blue": "blue cobalt",
    "purple": "purple violet lilac",
    "pink": "pink rose-coloured rosy",
}
SHAPES = {
    "circle": "circle disc round",
    "square": "square box block",
    "triangle": "triangle three-cornered triangular",
    "star": "star",
    "cross": "cross plus",
    "ring": "ring hoop doughnut",
}
SPEEDS = {"slow": "slow slowly slow-moving unhurried gently", "fast": "fast fast-moving quick quickly rapidly high"}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def small(home):
    return shapes.corpus(clips=200, false_negatives=0.05)


@pytest.fixture(scope="module")
def full(home):
    return shapes.corpus()


def test_sizes_and_types(full):
    assert (full.name, len(full.clips), len(full.captions)) == ("shapes", 1200, 6000)
    assert {split: len(members) for split, members in full.splits.items()} == {"train": 800, "val": 100, "test": 300}
    for name, dim in (("appearance", 128), ("motion", 64)):
        assert full.streams[name].values.shape == (1200, 8, dim) and full.streams[name].values.dtype == np.float16
    assert list(full.captions) == ["clip", "text", "says", "describer"] and list(full.meaning) == list(
        shapes.ATTRIBUTES
    )
    assert all(full.captions["says"])


def test_same_seed_same_bits_and_other_seed_other(small, monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))  # an empty cache: made again from the start
    np.random.seed(5)
    again = load_corpus("shapes", clips=200, false_negatives=0.05)
    assert again.fingerprint == small.fingerprint
    assert again.captions.equals(small.captions) and again.meaning.equals(small.meaning)
    assert all(np.array_equal(again.frames(clip), small.frames(clip)) for clip in (0, 7, 199))
    other = shapes.corpus(clips=200, false_negatives=0.05, seed=1)
    assert not other.meaning.equals(small.meaning)
    assert not np.array_equal(other.streams["motion"].values, small.streams["motion"].values)


def test_pixels_of_this_version():
    """A cache on a user's disk is used while VERSION is the same. Changed pixels need another VERSION and then another
    digest here."""
    films = b"".join(shapes.film(shapes.scenes(30), 0, clip).tobytes() for clip in range(30))
    assert (pixels.VERSION, hashlib.sha256(films).hexdigest()[:12]) == (1, "36d2ee626607")


def test_frames_can_be_sent_to_another_process(small):
    film = pickle.loads(pickle.dumps(small.frames))(3)
    assert film.shape == (16, 48, 48, 3) and film.dtype == np.uint8
    assert np.array_equal(film, small.frames(3))


@pytest.mark.parametrize("share", [0.005, 0.02, 0.15])
def test_the_share_of_false_negatives_is_reached_and_measured_as_by_a_double_loop(share):
    corpus = shapes.corpus(clips=60, captions=3, false_negatives=share)
    rows = corpus.meaning.to_dict("records")
    hits = pairs = 0
    for clip, says in zip(corpus.captions["clip"], corpus.captions["says"]):
        for other in range(60):
            if other != clip:
                pairs += 1
                hits += all(rows[clip][name] == rows[other][name] for name in says)
    assert hits / pairs == pytest.approx(share, rel=0.05)
    assert corpus.false_negative_rate() == pytest.approx(hits / pairs, rel=1e-12)


def test_rate_of_a_split_counts_that_split_alone(small):
    clips = small.splits["test"]
    captions = np.flatnonzero(small.captions["clip"].isin(clips))
    true = small.truth(captions, clips)
    assert true.shape == (250, 50)
    own = small.captions["clip"].to_numpy()[captions][:, None] == clips[None, :]
    assert true[own].all()
    assert small.false_negative_rate("test") == pytest.approx(true[~own].mean())


def test_captions_mention_less_as_the_share_rises(home):
    few, many = (shapes.corpus(clips=200, false_negatives=share).captions["says"] for share in (0.005, 0.1))
    assert all(set(vague) <= set(exact) for vague, exact in zip(many, few)) and sum(map(len, many)) < sum(map(len, few))


@pytest.mark.parametrize("attribute, words", [("colour", COLOURS), ("shape", SHAPES), ("speed", SPEEDS)])
def test_text_mentions_what_says_lists_correctly_and_nothing_else(small, attribute, words):
    meaning = {word: value for value, line in words.items() for word in line.split()}
    said = 0
    for clip, text, says, _ in small.captions.itertuples(index=False):
        text = re.sub("mov(e|es|ing) round", "", text)  # a motion, no shape
        found = {meaning[word] for word in text.split() if word in meaning}
        assert found == ({small.meaning[attribute][clip]} if attribute in says else set()), text
        said += attribute in says
    assert 0.1 < said / len(small.captions) < 0.95


def test_every_word_of_the_table_is_in_use_and_no_sentence_has_a_gap(full):
    text = "\n".join(full.captions["text"])
    for name in ("shape", "colour", "size", "background"):
        for word in (word for words in shapes.WORDS[name].values() for word in words):
            assert re.search(rf"\b{word}\b", text), word
    assert not re.search(r"  |\bNone\b|\ba [aeiou]|\ban [^aeiou]|^ | $|something object", text, re.M)


@pytest.mark.parametrize(
    "describer, words, sentence",
    [
        (0, dict(size="large", colour="red", shape="star", motion="spin", speed="quickly", background="polka dots"),
         "a large red star spins quickly on polka dots"),
        (0, dict(motion="move left"), "something moves left"),
        (1, dict(size="small", colour="blue", shape="ring"), "the video shows a small blue ring"),
        (1, dict(colour="amber", motion="hop up and down"), "the video shows an amber object hopping up and down"),
        (2, dict(shape="disc", motion="rise"), "there is a disc that rises"),
        (3, dict(shape="disc", motion="rise", background="a wall"), "watch a disc rise with a wall behind it"),
        (2, dict(shape="disc", speed="slowly"), "there is an unhurried disc"),
    ],
)  # fmt: skip
def test_sentences(describer, words, sentence):
    assert shapes._sentence(describer, words, "slow") == sentence


def test_describers_differ(full):
    assert (full.captions.groupby("clip")["text"].nunique() >= 4).all()


def accuracy(corpus, names, attribute) -> float:
    """On test clips, of ridge regression to one-hot classes from mean and deviation over the steps, its penalty chosen
    on the validation clips."""
    steps = np.concatenate([np.asarray(corpus.streams[name].values, np.float64) for name in names], axis=2)
    x = np.concatenate([steps.mean(1), steps.std(1)], axis=1)
    classes, y = np.unique(corpus.meaning[attribute], return_inverse=True)
    train, val, test = (corpus.splits[split] for split in ("train", "val", "test"))
    x = np.c_[(x - x[train].mean(0)) / (x[train].std(0) + 1e-6), np.ones(len(x))]
    gram, target = x[train].T @ x[train], x[train].T @ np.eye(len(classes))[y[train]]
    right = [(x @ np.linalg.solve(gram + lam * np.eye(len(gram)), target)).argmax(1) == y for lam in (0.1, 1, 10, 100)]
    return float(max(right, key=lambda hits: hits[val].mean())[test].mean())


def test_streams_contain_what_captions_mention(full):
    for attribute in ("shape", "colour", "size", "background"):
        assert accuracy(full, ["appearance"], attribute) > 0.8, attribute
    moving, looking = (accuracy(full, [name], "motion") for name in ("motion", "appearance"))
    assert moving > 0.75 and moving > looking + 0.3


def centre_and_area(film) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the coloured pixels in each frame."""
    on = (film.max(-1).astype(int) - film.min(-1)) > 50
    rows, columns = np.mgrid[:48, :48]
    area = on.sum((1, 2))
    return (columns * on).sum((1, 2)) / area, (rows * on).sum((1, 2)) / area, area


@pytest.mark.parametrize("background", shapes.WORDS["background"])
@pytest.mark.parametrize("speed, least", [("slow", 5), ("fast", 14)])
def test_motion_is_in_the_pixels(speed, least, background):
    def seen(motion, shape="square", colour="blue"):
        scene = pixels.Scene(shape, colour, "small", motion, speed, background)
        return centre_and_area(pixels.render(scene, np.random.default_rng(3)))

    for motion, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        path = seen(motion)
        assert sign * (path[axis][-1] - path[axis][0]) > least, motion
        assert np.ptp(path[1 - axis]) < 2, motion
    x, y, area = seen("still")
    assert np.ptp(x) < 0.5 and np.ptp(y) < 0.5
    assert seen("grow")[2][-1] > 1.5 * seen("grow")[2][0] and seen("shrink")[2][0] > 1.5 * seen("shrink")[2][-1]
    for motion, sign in (("clockwise", 1), ("anticlockwise", -1)):
        x, y, _ = seen(motion)
        bend = np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(y)[:-1] * np.diff(x)[1:]  # y down: > 0 turns clockwise
        assert sign * bend.sum() > 5, motion
    assert np.ptp(seen("bounce")[1]) > 4 and np.ptp(seen("shake")[0]) > 4


def test_every_shape_and_colour_is_visible_on_every_background():
    for background in shapes.WORDS["background"]:
        for colour in shapes.WORDS["colour"]:
            for shape in shapes.WORDS["shape"]:
                scene = pixels.Scene(shape, colour, "small", "still", "none", background)
                assert centre_and_area(pixels.render(scene, np.random.default_rng(1)))[2].min() > 25, scene


def test_nothing_round_spins_and_nothing_still_has_a_speed(full):
    meaning = full.meaning
    assert not (meaning["shape"].isin(["circle", "ring"]) & (meaning["motion"] == "spin")).any()
    assert ((meaning["motion"] == "still") == (meaning["speed"] == "none")).all()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no sums"])
def test_damaged_cache_is_made_again(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))
    whole = shapes.corpus(clips=30, false_negatives=0.05).fingerprint
    (path,) = tmp_path.rglob("motion.npy")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (path if damage == "gone" else path.with_name("sums.json")).unlink()
    assert shapes.corpus(clips=30, false_negatives=0.05).fingerprint == whole
    assert path.read_bytes() == content


def test_cache_is_read_and_the_share_does_not_remake_it(small, monkeypatch):
    monkeypatch.setattr(shapes, "render", None)
    assert isinstance(shapes.corpus(clips=200, false_negatives=0.1).streams["motion"].values, np.memmap)


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(clips=29), "clips=29.*from 30 to 100000"),
        (dict(clips=40.0), "clips=40.0.*whole number"),
        (dict(captions=0), "captions=0.*from 1 to 100"),
        (dict(seed=-1), "seed=-1.*from 0 to 4294967295"),
        (dict(clips=10**9), "clips=1000000000; give a whole number from 30 to 100000"),
        (dict(captions=10**400), "captions=10{59}; give"),
        (dict(seed=2**70), "seed=.*from 0 to"),
        (dict(seed=True), "seed=True"),
        (dict(false_negatives=2), "false_negatives=2.*0 to 1"),
        (dict(false_negatives=float("nan")), "false_negatives=nan"),
        (dict(false_negatives="0.1"), "false_negatives='0.1'"),
        (dict(false_negatives=0.9, clips=60), r"false_negatives=0.9 cannot be reached.*from 0\.\d+ to 0\.\d+"),
        (dict(clip=60), "unknown option 'clip'.*clips, captions"),
    ],
)
def test_bad_arguments(option, message):
    with pytest.raises(CorpusError, match=message):
        shapes.corpus(**option)


def test_truth_needs_meaning(small):
    with pytest.raises(CorpusError, match="not known"):
        dataclasses.replace(small, meaning=None).truth([0], [0])
    with pytest.raises(CorpusError, match="no split 'dev'"):
        small.false_negative_rate("dev")
