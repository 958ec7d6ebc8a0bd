"""The corpus `events`: long videos of several events, drawn by the library as `shapes` is, told by captions that are
out of order, missing and irrelevant at dialled rates."""

import functools
import itertools
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from ssb.corpora import reading, shapes
from ssb.corpora.corpus import Corpus
from ssb.corpora.pixels import Scene
from ssb.corpora.reading import CorpusError
from ssb.corpora.windows import of_videos

EVENTS = tuple(  # shape, size, motion, speed: whatever can be seen, each once (see `shapes.scenes`)
    (shape, size, motion, speed)
    for shape, size, motion in itertools.product(*(shapes.WORDS[name] for name in ("shape", "size", "motion")))
    for speed in (["none"] if motion == "still" else shapes.WORDS["speed"])
    if not (motion == "spin" and shape in ("circle", "ring"))
)


def corpus(
    videos: int = 360,
    events: int = 8,
    takes: int = 4,
    captions: int = 5,
    disorder: float = 0.25,
    missing: float = 0.25,
    irrelevant: float = 0.25,
    false_negatives: float = shapes.FALSE_NEGATIVES,
    seed: int = 0,
    **unknown,
) -> Corpus:
    """The corpus `events`: two thirds of the scripts to train on, a ninth to validate, two ninths to test.

    videos:    in all, each of `events` clips, one event a clip.
    takes:     videos of one script. A script is a background, a colour and `events` + `events` // 2 distinct events
               (shape, size, motion, speed); every take shows `events` of these, drawn and ordered by chance. 1: no two
               videos share a script, and the scene alone goes far to tell them apart.
    captions:  of each clip, clean ones, as `shapes` has them; false_negatives: as there, over all pairs of the corpus.
    disorder, missing, irrelevant: how badly a video is told, see `of_videos`. They change nothing but the stories.
    seed:      everything random follows from it.

    The captions have the columns `video`, an id, and `start`, the number of the event. The streams are those of
    `shapes` and are kept in `files.cache()`. CorpusError for an argument that does not fit.
    """
    whole = {"videos": (videos, 1), "events": (events, 2), "takes": (takes, 1), "captions": (captions, 1)}
    dials = {"disorder": disorder, "missing": missing, "irrelevant": irrelevant}
    reading.check_options("events", unknown, whole | {"seed": (seed, 0)}, false_negatives=false_negatives, **dials)
    if events + events // 2 > len(EVENTS):
        raise CorpusError(f"events: events={events}; a script needs half as many again, and there are {len(EVENTS)}")
    scripts = -(-videos // takes)
    if scripts < 9:
        raise CorpusError(f"events: videos={videos}; give at least {8 * takes + 1}, nine scripts of {takes} takes")
    shown = scenes(videos, events, takes, seed)
    meaning = pd.DataFrame([asdict(scene) for scene in shown])
    told = shapes.describe(meaning, captions, false_negatives, seed, name="events")
    ids = [f"video{video:04d}" for video in range(videos)]
    cuts = takes * events * (scripts - 2 * scripts // 9 - np.array([scripts // 9, 0]))
    made = Corpus(
        name="events",
        clips=[f"{video}_{event}" for video in ids for event in range(events)],
        captions=told.assign(video=np.array(ids)[told["clip"] // events], start=told["clip"] % events),
        splits=dict(zip(("train", "val", "test"), np.split(np.arange(len(shown)), cuts))),
        streams=shapes.streams(shown, seed, "events", repr(shown)),
        meaning=meaning,
        frames=functools.partial(shapes.film, shown, seed),
    )
    stories = of_videos(made, events, **dials, seed=seed)
    return replace(made, stories=replace(stories, scripts=stories.clips[:, 0] // (events * takes)))


def scenes(videos: int, events: int, takes: int, seed: int = 0) -> tuple[Scene, ...]:
    """What each clip shows, video after video and event after event."""
    rng, shown = np.random.default_rng([seed, 3]), []
    for first in range(0, videos, takes):
        colour, background = (str(rng.choice(list(shapes.WORDS[name]))) for name in ("colour", "background"))
        script = rng.choice(len(EVENTS), events + events // 2, replace=False)
        for _ in range(first, min(first + takes, videos)):
            for event in rng.permutation(script)[:events]:
                shape, size, motion, speed = EVENTS[event]
                shown.append(Scene(shape, colour, size, motion, speed, background))
    return tuple(shown)
