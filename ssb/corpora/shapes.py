"""The embedded corpus: short clips of one moving shape, real pixels, described by annotators of different wording and
detail. A vague caption is true of other clips too: these are the false negatives that the paper is about, here known
exactly, and how many there are is a dial."""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from ssb import files
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.pixels import VERSION, Scene, appearance, motion, render
from ssb.corpora.reading import CorpusError, check_options, read_array

STREAMS = "appearance", "motion"
FALSE_NEGATIVES = 0.02  # about one or two of them a caption in a batch of 64
ATTRIBUTES = tuple(field.name for field in fields(Scene))


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """`value: word, word; value: …` as a dictionary."""
    pairs = (line.split(":") for line in text.split(";"))
    return {value.strip(): tuple(word.strip() for word in words.split(",")) for value, words in pairs}


# Every value and three ways to say it. A motion begins with its verb, which is inflected where it is used.
WORDS = {
    "shape": _table("""circle: circle, disc, round shape; square: square, box, four-sided block;
        triangle: triangle, three-cornered shape, triangular figure; star: star, five-pointed star, star shape;
        cross: cross, plus sign, cross shape; ring: ring, hoop, doughnut"""),
    "colour": _table("""red: red, scarlet, crimson; orange: orange, tangerine, amber;
        yellow: yellow, golden, lemon yellow; green: green, emerald, grass green; cyan: turquoise, cyan, aqua;
        blue: blue, royal blue, cobalt; purple: purple, violet, lilac; pink: pink, rose-coloured, rosy"""),
    "size": _table("small: small, little, tiny; large: large, big, huge"),
    "motion": _table("""left: move left, slide to the left, drift leftward; up: move up, rise, climb upward;
        right: move right, slide to the right, drift rightward; down: move down, sink, descend;
        clockwise: orbit clockwise, move round clockwise, loop in a clockwise direction; grow: grow, expand, swell;
        anticlockwise: orbit anticlockwise, move round anticlockwise, loop in a counterclockwise direction;
        bounce: bounce, hop up and down, jump up and down; shrink: shrink, contract, dwindle;
        shake: shake from side to side, wobble left and right, jiggle sideways;
        spin: spin on the spot, rotate in place, turn about its centre;
        still: stay still, remain motionless, rest in one place"""),
    "speed": _table("slow: slowly, at a slow pace, gently; fast: quickly, at high speed, rapidly"),
    "background": _table("""dark: a dark background, a plain dark backdrop, a black screen;
        light: a light background, a plain pale backdrop, a bright screen;
        stripes: a striped background, diagonal stripes, a stripy backdrop;
        checker: a checkered background, a checkerboard, a chequered backdrop;
        dots: a dotted background, a spotted backdrop, a polka-dot pattern"""),
}
PACE = _table("slow: slow, slow-moving, unhurried; fast: fast, fast-moving, quick")  # of a motion that is not named

# How readily each describer mentions an attribute (shape, colour, size, motion, speed, background): the plain one; the
# thorough one; the one who begins with the scenery; the one who watches the action.
CARE = np.array([[10, 10, 6, 9, 4, 4], [9, 9, 9, 9, 9, 9], [7, 5, 4, 6, 3, 10], [5, 4, 5, 10, 8, 2]]) / 10


def corpus(
    clips: int = 1200, captions: int = 5, false_negatives: float = FALSE_NEGATIVES, seed: int = 0, **unknown
) -> Corpus:
    """The corpus `shapes`: two thirds of the clips to train on, a twelfth to validate, a quarter to test.

    captions:        per clip, each by one of four describers in turn.
    false_negatives: share of the ordered pairs (caption, another clip) of the whole corpus in which the caption is true
                     of the other clip too.
    seed:            everything random follows from it.

    Streams (clips, 8, 128) `appearance` and (clips, 8, 64) `motion`, float16, stand for the paper's ResNet-152 and
    R(2+1)D-34: frozen encoders that see nothing but pixels. They do not depend on the captions and are kept in
    `files.cache()`. The caption's column `says` holds the names of the attributes that it mentions.
    CorpusError for an argument that does not fit, and where no amount of detail reaches `false_negatives`.
    """
    whole = {"clips": (clips, 30), "captions": (captions, 1), "seed": (seed, 0)}
    check_options("shapes", unknown, whole, false_negatives=false_negatives)
    shown = scenes(clips, seed)
    meaning = pd.DataFrame([asdict(scene) for scene in shown])
    told = describe(meaning, captions, false_negatives, seed)
    test, val = clips // 4, clips // 12
    splits = np.split(np.arange(clips), [clips - test - val, clips - test])  # clips are drawn alike: any cut is random
    return Corpus(
        name="shapes",
        clips=[f"shape{clip:05d}" for clip in range(clips)],
        captions=told,
        splits=dict(zip(("train", "val", "test"), splits)),
        streams=streams(shown, seed, "shapes", str(len(shown))),
        meaning=meaning,
        frames=functools.partial(film, shown, seed),
    )


def describe(
    meaning: pd.DataFrame, captions: int, false_negatives: float, seed: int, name: str = "shapes"
) -> pd.DataFrame:
    """The captions of clips of this meaning, detailed enough for this share of false negatives: columns clip, text and
    says. CorpusError, naming the corpus, where no amount of detail reaches the share."""
    rng = np.random.default_rng([seed, 2])
    clips = len(meaning)
    describer = (rng.integers(0, len(CARE), (clips, 1)) + np.arange(captions)) % len(CARE)  # (N, K)
    reserve = rng.random((clips, captions, len(ATTRIBUTES))) / CARE[describer]  # mentioned from this level of detail on
    reserve[meaning["speed"] == "none", :, ATTRIBUTES.index("speed")] = np.inf
    habit = rng.random(reserve.shape)
    said = reserve <= np.maximum(_detail(meaning, reserve, false_negatives, name), reserve.min(-1, keepdims=True))
    rows = []
    for clip, values in enumerate(meaning.itertuples(index=False)):
        for k, who in enumerate(describer[clip]):
            words = {}
            for name, value, mentioned, draw in zip(ATTRIBUTES, values, said[clip, k], habit[clip, k]):
                if mentioned:  # most often the describer's own word, sometimes a neighbour's
                    synonyms = WORDS[name][value]
                    words[name] = synonyms[(who + (draw > 0.6) + (draw > 0.8)) % len(synonyms)]
            rows.append((clip, _sentence(who, words, dict(zip(ATTRIBUTES, values))["speed"]), tuple(words)))
    return pd.DataFrame(rows, columns=["clip", "text", "says"])


def _detail(meaning: pd.DataFrame, reserve: np.ndarray, target: float, corpus: str) -> float:
    """The level of detail whose share of false negatives is nearest to the target, by bisection: the more is said of
    the clips (reserve (N, K, A) ≤ level, or the caption's least), the fewer other clips fit."""
    clips, captions, attributes = reserve.shape
    bit = 1 << np.arange(attributes)
    fitting = np.empty((clips, 1 << attributes), np.int64)  # of how many clips is it true, if these attributes are said
    for said in range(1 << attributes):
        chosen = [name for name, b in zip(meaning, bit) if said & b]
        fitting[:, said] = meaning.groupby(chosen)["shape"].transform("size") if chosen else clips

    def share(level: float) -> float:
        said = (reserve <= np.maximum(level, reserve.min(-1, keepdims=True))) @ bit  # (N, K)
        return (np.take_along_axis(fitting, said, 1).sum() / (clips * captions) - 1) / (clips - 1)

    levels = np.unique(np.append(reserve[np.isfinite(reserve)], 0.0))
    most, least = share(levels[0]), share(levels[-1])
    if not least <= target <= most:
        reach = f"with these clips and captions it goes from {least:.5f} to {most:.5f}"
        raise CorpusError(f"{corpus}: false_negatives={target} cannot be reached; {reach}")
    low, high = 0, len(levels) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(levels[middle]) >= target else (low, middle)
    return min(levels[low], levels[high], key=lambda level: abs(share(level) - target))


def _sentence(describer: int, words: dict[str, str], speed: str) -> str:
    """A describer's sentence of the words at hand, and of nothing else."""
    pace = [PACE[speed][describer % 3]] if "speed" in words and "motion" not in words else []
    adjectives = pace + [words[name] for name in ("size", "colour") if name in words]
    name = " ".join([*adjectives, words.get("shape", "object")])
    name = ("an " if name[0] in "aeiou" else "a ") + name
    name = "something" if name == "an object" else name
    stem, _, rest = words.get("motion", "").partition(" ")
    gerund = stem.removesuffix("e") + (stem[-1:] if stem in ("spin", "hop") else "") + "ing"
    verb = (stem + "s", gerund, stem + "s", stem)[describer]
    action = " ".join(part for part in (verb, rest, words.get("speed")) if part) if stem else ""
    place = words.get("background")
    parts = (
        (name, action, place and f"on {place}"),
        ("the video shows", name, action, place and f"in front of {place}"),
        (place and f"against {place}", "there is", name, action and f"that {action}"),
        ("watch", name, action, place and f"with {place} behind it"),
    )[describer]
    return " ".join(part for part in parts if part)


def streams(shown: Sequence[Scene], seed: int, name: str, key: str) -> dict[str, Stream]:
    """The features of every clip of the corpus `name`, memory-mapped from the cache; a missing or damaged one is made
    anew. `key` and the seed tell what is shown."""
    folder = files.cache() / f"{name}-{files.digest(str(VERSION), key, str(seed))}"
    try:
        sound = (folder / "digest").read_text() == _content(folder)
    except (OSError, ValueError):
        sound = False
    if not sound:
        films = (film(shown, seed, clip) for clip in range(len(shown)))
        made = zip(*((appearance(pixels), motion(pixels)) for pixels in films))
        values_of = {stream: np.array(values, np.float16) for stream, values in zip(STREAMS, made)}
        shutil.rmtree(folder, ignore_errors=True)
        with files.written(folder) as draft:
            draft.mkdir()
            for stream, values in values_of.items():
                np.save(draft / f"{stream}.npy", values)
            (draft / "digest").write_text(_content(draft))
    return {stream: Stream(read_array(folder / f"{stream}.npy"), source=f"{name} {stream}") for stream in STREAMS}


def _content(folder: Path) -> str:
    return files.digest(*((folder / f"{name}.npy").read_bytes() for name in STREAMS))


def film(shown: Sequence[Scene], seed: int, clip: int) -> np.ndarray:
    """The frames of one clip of a corpus, (16, 48, 48, 3) uint8, the same at every call."""
    return render(shown[clip], np.random.default_rng([seed, 1, clip]))


def scenes(clips: int, seed: int = 0) -> tuple[Scene, ...]:
    """What each clip shows, every attribute drawn alone. Nothing round spins, for nobody could see it."""
    rng = np.random.default_rng([seed, 0])
    draws = {name: rng.choice(list(values), clips) for name, values in WORDS.items()}
    spinless = rng.choice([motion for motion in WORDS["motion"] if motion != "spin"], clips)
    round_ = np.isin(draws["shape"], ["circle", "ring"])
    draws["motion"] = np.where(round_ & (draws["motion"] == "spin"), spinless, draws["motion"])
    draws["speed"] = np.where(draws["motion"] == "still", "none", draws["speed"])
    return tuple(Scene(*(str(value) for value in row)) for row in zip(*(draws[name] for name in ATTRIBUTES)))
