"""Long videos and their narrations: noise counted by hand, truth against the captions themselves, similarities against
naive loops."""

import dataclasses
import inspect
import itertools
import json
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb import Corpus, CorpusError, load_corpus
from ssb.corpora import events as events_module
from ssb.corpora import features, official, shapes
from ssb.corpora.corpus import Stream
from ssb.corpora.stories import Stories
from ssb.corpora.windows import of_videos
from ssb.experiments import long_videos
from ssb.metrics import retrieval
from ssb.metrics.sequences import recall_at_1
from ssb.s2dtw import distances, s2dtw

SMALL = dict(videos=36, events=4, takes=4, captions=3, false_negatives=0.05)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def small(home):
    return load_corpus("events", **SMALL)


@pytest.fixture(scope="module")
def long(home):
    return load_corpus("events", videos=45, takes=5)


@pytest.fixture(scope="module")
def bare():
    """The default corpus without its features, which take long to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "streams", lambda drawn, *_: {"none": Stream(np.zeros((len(drawn), 1, 1), np.float32))})
        return events_module.corpus()


def narrated(corpus, **noise) -> Stories:
    """The videos of a corpus, narrated in another way."""
    return of_videos(corpus, corpus.stories.clips.shape[1], **noise)


def inversions(truth) -> int:
    kept = [clip for clip in truth if clip >= 0]
    return sum(a > b for i, a in enumerate(kept) for b in kept[i + 1 :])


def test_sizes(small, long):
    assert (small.name, len(small.clips), len(small.captions)) == ("events", 144, 432)
    assert {split: len(videos) for split, videos in small.stories.splits.items()} == {"train": 16, "val": 4, "test": 16}
    assert {split: len(clips) for split, clips in small.splits.items()} == {"train": 64, "val": 16, "test": 64}
    assert long.stories.clips.shape == long.stories.captions.shape == (45, 8)
    assert np.array_equal(long.stories.clips, np.arange(360).reshape(45, 8))
    assert long.clips[9] == "video0001_1" and list(long.captions["video"][45:46]) == ["video0001"]
    assert {name: stream.values.shape for name, stream in long.streams.items()} == {
        "appearance": (360, 8, 128),
        "motion": (360, 8, 64),
    }
    assert long.frames(7).shape == (16, 48, 48, 3)


def shown(corpus) -> np.ndarray:
    """What each clip of each video shows, (V, n) texts."""
    return corpus.meaning.agg(" ".join, axis=1).to_numpy()[corpus.stories.clips]


def test_scripts_share_events_and_takes_show_them_in_other_orders(long):
    events, scripts = shown(long), long.stories.scripts
    of_script = [set(events[scripts == script].ravel()) for script in range(9)]
    assert all(len(each) <= 12 for each in of_script)
    for hand in range(0, 9, 3):  # the 36 events are dealt to three scripts, then anew
        assert not any(a & b for a, b in itertools.combinations(of_script[hand : hand + 3], 2))
    assert all(sum(event in each for each in of_script) > 1 for event in set.union(*of_script))
    assert len(set(map(tuple, events))) == 45 and len(set.union(*of_script)) == 36
    drawn = {(s.shape, s.size, s.motion, s.speed) for s in events_module.scenes(900, 8, 10)}
    assert drawn < set(events_module.EVENTS) and len(set(events_module.EVENTS)) == len(events_module.EVENTS)


def test_a_third_of_the_takes_is_slow():
    scenes = np.array([" ".join(asdict(scene).values()) for scene in events_module.scenes(2000, 8, 10, seed=3)])
    again = scenes.reshape(2000, 8)[:, 1:] == scenes.reshape(2000, 8)[:, :-1]
    slow = again.any(1)
    assert slow.mean() == pytest.approx((1 - 0.6**7) / 3, abs=0.04)
    assert again.sum(1)[slow].mean() == pytest.approx(7 * 0.4 / (1 - 0.6**7), abs=0.1)


def test_a_corpus_of_long_videos_has_few_dials_and_many_test_videos(bare):
    options = inspect.signature(events_module.corpus).parameters
    assert all(0 < options[name].default <= 0.3 for name in ("disorder", "missing", "irrelevant"))
    sizes = {split: len(videos) for split, videos in bare.stories.splits.items()}
    assert sizes == {"train": 320, "val": 80, "test": 320}


def test_with_perfect_costs_the_alignment_decides(bare):
    """The scores that count: by S2DTW at least ten points more than by soft-DTW and by place."""
    scores = long_videos.perfect_scores(long_videos.perfect(bare))
    right = {name: recall_at_1(each) for name, each in scores.items()}
    full, soft, place = (right[name] for name in (long_videos.PERFECT, long_videos.SOFT, long_videos.PLACE))
    assert full > 60 and full >= max(soft, place) + 10
    assert right[f"{long_videos.PERFECT}, no smoothing"] > soft + 10  # what dummies gain alone
    words = long_videos.tells_apart(bare)
    assert f"S2DTW retrieves {full:.1f} % of 320 test videos" in words and f"{full - soft:+.1f} points" in words
    told = {line.split(":")[0]: line for line in words.splitlines()}
    assert {name for name, line in told.items() if "tells the two apart" in line} == {
        "soft-DTW",
        "k-th caption to k-th clip",
    }
    worse = right[f"{long_videos.PERFECT}, γ = 1"]  # so that no claim on γ is tested here
    assert "Here S2DTW loses even so" in told["γ = 1"] and f"{full - worse:+.1f} points" in told["γ = 1"]
    assert "cannot tell them apart" in told["no dummies"]


def test_without_learning_alignment_is_at_chance(bare):
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        text, video = (torch.randn(320, 8, 16, generator=rng) for _ in range(2))
        assert recall_at_1(-distances(video, text)) < 2  # of 320, at most 6; one is expected


def test_events_are_those_that_shapes_can_show():
    drawn = {(s.shape, s.size, s.motion, s.speed) for s in shapes.scenes(60_000)}
    assert drawn == set(events_module.EVENTS)


def test_scripts_are_known_and_change_no_fingerprint(small, long):
    assert small.stories.scripts.tolist() == [video // 4 for video in range(36)]
    assert np.array_equal(long.stories.scripts, np.repeat(np.arange(9), 5))
    unknown = dataclasses.replace(small, stories=dataclasses.replace(small.stories, scripts=None))
    assert unknown.fingerprint == small.fingerprint
    assert of_videos(small, 4).scripts is None


def test_seed_is_all(small, monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_HOME", str(tmp_path))  # an empty cache
    again = load_corpus("events", **SMALL)
    assert again.fingerprint == small.fingerprint
    assert all(np.array_equal(again.frames(clip), small.frames(clip)) for clip in (0, 143))
    other = load_corpus("events", **SMALL, seed=1)
    assert not other.meaning.equals(small.meaning)
    assert not np.array_equal(other.stories.truth, small.stories.truth)


def test_cache_is_read_and_no_option_of_the_captions_remakes_it(small, monkeypatch):
    monkeypatch.setattr(shapes, "render", None)
    changed = load_corpus(
        "events", **SMALL | {"false_negatives": 0.08, "disorder": 0.5, "irrelevant": 0, "captions": 2}
    )
    assert isinstance(changed.streams["motion"].values, np.memmap)
    assert changed.meaning.equals(small.meaning)


@pytest.mark.parametrize("name, value", [("disorder", 0.5), ("missing", 0.5), ("irrelevant", 0.5)])
def test_noise_changes_nothing_but_the_stories(small, name, value):
    changed = load_corpus("events", **SMALL, **{name: value})
    assert changed.captions.equals(small.captions)
    assert np.array_equal(changed.stories.clips, small.stories.clips)
    assert not np.array_equal(changed.stories.truth, small.stories.truth)
    assert changed.fingerprint != small.fingerprint


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 8), st.integers(0, 7), st.integers(0, 8), st.integers(0, 3))
def test_shares_are_exact(long, disorder, missing, irrelevant, seed):
    stories = narrated(long, disorder=disorder / 8, missing=missing / 8, irrelevant=irrelevant / 8, seed=seed)
    stories.check("long", long.clips, long.captions["clip"].to_numpy(), long.splits)
    assert stories.captions.shape == stories.truth.shape == (45, 8 - missing + irrelevant)
    for truth in stories.truth:
        kept = [clip for clip in truth if clip >= 0]
        assert len(kept) == len(set(kept)) == 8 - missing
        assert inversions(truth) == disorder if disorder < 8 - missing else inversions(truth) <= disorder


def test_captions_are_of_the_events_and_irrelevant_ones_are_false_of_all(long):
    stories = narrated(long, disorder=0.25, missing=0.25, irrelevant=0.5)
    rows, words = long.captions, long.meaning.to_dict("records")
    split_of = {clip: split for split, clips in long.splits.items() for clip in clips}
    for clips, captions, truth in zip(stories.clips, stories.captions, stories.truth):
        for caption, number in zip(captions, truth):
            clip, says = rows["clip"][caption], rows["says"][caption]
            fits = [all(words[clip][name] == words[own][name] for name in says) for own in clips]
            assert clip == clips[number] and fits[number] if number >= 0 else not any(fits)
            assert split_of[clip] == split_of[clips[0]]


def test_each_kind_of_noise_leaves_the_draws_of_the_others(long):
    calm = narrated(long)
    assert np.array_equal(calm.truth, np.tile(np.arange(8), (45, 1)))

    def kept(stories):
        return [set(captions[truth >= 0]) for captions, truth in zip(stories.captions, stories.truth)]

    def irrelevant_of(stories):
        return [set(captions[truth < 0]) for captions, truth in zip(stories.captions, stories.truth)]

    few, many = narrated(long, missing=0.25), narrated(long, missing=0.5, irrelevant=0.5, disorder=0.5)
    assert all(a < b < set(c) for a, b, c in zip(kept(many), kept(few), calm.captions))
    fewer = irrelevant_of(narrated(long, irrelevant=0.25))
    assert all(a < b for a, b in zip(fewer, irrelevant_of(many)))
    assert len(set.union(*fewer)) > 60  # not the same ones for every video
    for stories in (few, narrated(long, missing=0.25, irrelevant=0.5)):
        assert all(inversions(truth) == 0 for truth in stories.truth)


def test_irrelevant_captions_are_inserted_anywhere(long):
    truth = np.concatenate([narrated(long, irrelevant=0.125, seed=seed).truth for seed in range(20)])
    share = (truth < 0).mean(0)
    assert np.allclose(share, 1 / 9, atol=4 * np.sqrt(1 / 9 * 8 / 9 / len(truth)))  # four standard errors


def test_each_describer_is_heard(long):
    clip = long.captions["clip"].to_numpy()
    first = np.searchsorted(clip, np.arange(360))
    turn = np.concatenate([(narrated(long, seed=s).captions - first[long.stories.clips]).ravel() for s in range(5)])
    assert np.allclose(np.bincount(turn, minlength=5) / len(turn), 0.2, atol=0.04)


def test_order_distinguishes_takes():
    """With similarities from the truth and vague captions, a similarity that uses their order finds more."""
    vague = load_corpus("events", videos=45, takes=5, false_negatives=0.1)
    stories, rows = vague.stories, np.arange(45)
    true = vague.truth(stories.captions.ravel(), stories.clips.ravel()).reshape(45, 8, 45, 8)
    true = torch.tensor(true.transpose(0, 2, 3, 1), dtype=torch.float64)  # (texts, videos, clips, captions)
    found = {
        "aligned": retrieval.ranks(-s2dtw(-true), rows),
        "pooled": retrieval.ranks(true.mean((2, 3)), rows),
        "best match": retrieval.ranks(true.amax(2).mean(2), rows),
    }
    right = {name: retrieval.metrics(ranks)["R@1"] for name, ranks in found.items()}
    assert right["aligned"] > max(right["pooled"], right["best match"]) + 5, right


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(videos=32), "videos=32; give at least 33, nine scripts of 4 takes"),
        (dict(videos=True), "videos=True; give a whole number"),
        (dict(events=1), "events=1; give a whole number from 2 to 178"),
        (dict(events=200), "events=200; give a whole number from 2 to 178"),
        (dict(takes=0), "takes=0"),
        (dict(disorder=1.1), "disorder=1.1; give a share from 0 to 1"),
        (dict(missing="much"), "missing='much'"),
        (dict(missing=1), "missing=1 of 4 events leaves no caption"),
        (dict(irrelevant=-0.1), "irrelevant=-0.1"),
        (dict(false_negatives=0.9), "events: false_negatives=0.9 cannot be reached"),
        (dict(seed=-1), "seed=-1"),
        (dict(clips=3), "events: unknown option 'clips'; it takes videos, events, takes, captions"),
        (dict(videos=9, takes=1), "captions are irrelevant to video 4, 1 are wanted; lower `irrelevant`"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CorpusError, match=re.escape(message)):
        load_corpus("events", **SMALL | options)


def test_fingerprint_of_a_corpus_without_stories_is_what_it_was(small):
    """Runs are filed under it: these are from before there were stories."""
    assert shapes.corpus(clips=60, false_negatives=0.05).fingerprint == "0688bc9f0c87"
    bare, stories = dataclasses.replace(small, stories=None), small.stories
    assert bare.fingerprint != small.fingerprint
    swapped = stories.captions[:, ::-1].copy(), stories.truth[:, ::-1].copy()
    for changed in (
        dataclasses.replace(stories, captions=swapped[0], truth=swapped[1]),
        dataclasses.replace(stories, truth=None),
        dataclasses.replace(stories, splits={"train": stories.splits["train"]}),
    ):
        assert dataclasses.replace(small, stories=changed).fingerprint not in (small.fingerprint, bare.fingerprint)


@pytest.mark.slow
def test_fingerprint_of_the_default_corpus_is_what_it_was():
    assert load_corpus("shapes").fingerprint == "dec9f8f79013"


def test_describe(small):
    line = "stories: 36 videos (train 16, val 4, test 16) of 4 clips, narrated by 4 captions; 0 clips are in no video"
    assert line in small.describe().split("\n")
    assert "stories" not in dataclasses.replace(small, stories=None).describe()
    assert list(small.stories.split("val")) == [16, 17, 18, 19]
    with pytest.raises(CorpusError, match="no split 'dev'; it has 'train', 'val', 'test'"):
        small.stories.split("dev")


def put(array, *changes):
    array = array.copy()
    for place, value in changes:
        array[place] = value
    return array


DAMAGE = {  # of stories of 36 videos, 4 clips, 4 captions
    "clip out of range": (lambda s: dict(clips=put(s.clips, ((0, 0), 144))), "stories.clips: 144 is not from 0 to 143"),
    "caption out of range": (
        lambda s: dict(captions=put(s.captions, ((1, 1), -1))),
        "stories.captions: -1 is not from 0",
    ),
    "clip in two videos": (lambda s: dict(clips=put(s.clips, ((0, 0), 5))), "clip number '5' is an event twice"),
    "clip twice in a video": (lambda s: dict(clips=put(s.clips, ((0, 0), 1))), "clip number '1' is an event twice"),
    "one list": (lambda s: dict(clips=s.clips[0]), "stories.clips: shape (4,); wanted (videos, clips)"),
    "no video": (lambda s: dict(clips=s.clips[:0]), "stories.clips: shape (0, 4)"),
    "floats": (lambda s: dict(captions=s.captions * 1.0), "stories.captions: holds float64; wanted whole numbers"),
    "a nested list": (lambda s: dict(clips=s.clips.tolist()), "stories.clips: wanted an array of whole numbers"),
    "fewer rows": (lambda s: dict(captions=s.captions[1:]), "36 rows of clips and 35 of captions"),
    "another split": (
        lambda s: dict(splits={"dev": np.array([0])}),
        "the corpus has no split 'dev'; it has 'train', 'val', 'test'",
    ),
    "in two splits": (
        lambda s: dict(splits=s.splits | {"val": np.array([3, 24])}),
        "video 3 is in 'train' and again in 'val'; keep it in one place",
    ),
    "no such video": (
        lambda s: dict(splits=s.splits | {"val": np.array([36])}),
        "splits['val']: 36 is not from 0 to 35",
    ),
    "clips of another split": (
        lambda s: dict(splits={"test": np.array([19, 28])}),
        "video 19 of split 'test' has clips of 'video0019_0', which is not in that split",
    ),
    "captions of another split": (
        lambda s: dict(captions=put(s.captions, ((0, slice(None)), 431)), truth=None),
        "video 0 of split 'train' has captions of 'video0035_3', which is not in that split",
    ),
    "truth of another shape": (lambda s: dict(truth=s.truth[:, 1:]), "truth of shape (36, 3) for captions of (36, 4)"),
    "truth out of range": (lambda s: dict(truth=put(s.truth, ((0, 0), 4))), "stories.truth: 4 is not from -1 to 3"),
    "wrong truth": (lambda s: dict(truth=np.where(s.truth < 0, -1, (s.truth + 1) % 4)), "but that caption is of clip"),
    "scripts of fewer": (lambda s: dict(scripts=s.scripts[1:]), "stories: scripts of shape (35,) for 36 videos"),
    "truth of none": (lambda s: dict(truth=np.full_like(s.truth, -1)), "is -1, but that caption is of clip number"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_stories_check_themselves(small, damage):
    changes, message = DAMAGE[damage]
    with pytest.raises(CorpusError, match=r"^events: .*" + re.escape(message)):
        dataclasses.replace(small, stories=dataclasses.replace(small.stories, **changes(small.stories)))


def steps_corpus(videos: dict[str, list[float]], **fields) -> Corpus:
    """One clip for each start of each video, in reverse order, all of them in `train`."""
    rows = [(video, start) for video, starts in videos.items() for start in starts][::-1]
    captions = pd.DataFrame(
        {"clip": range(len(rows)), "text": [f"{v} at {s}" for v, s in rows], "video": [v for v, _ in rows]}
    ).assign(**{"start": [s for _, s in rows]} | fields)
    stream = Stream(np.zeros((len(rows), 1, 1), np.float32))
    return Corpus("made", [f"{v}_{s}" for v, s in rows], captions, {"train": np.arange(len(rows))}, {"look": stream})


def test_windows_by_hand():
    corpus = steps_corpus({"a": [3, 1, 2, 9, 7], "b": [0], "c": [5, 4]})  # rows: c4 c5 b0 a7 a9 a2 a1 a3
    stories = of_videos(corpus, 2)
    assert stories.clips.tolist() == [[0, 1], [6, 5], [7, 3]]
    assert np.array_equal(stories.captions, stories.clips) and list(stories.splits["train"]) == [0, 1, 2]
    line = dataclasses.replace(corpus, stories=stories).describe().split("\n")[-1]
    assert line == "stories: 3 videos (train 3) of 2 clips, narrated by 2 captions; 2 clips are in no video"


def test_irrelevant_captions_are_of_other_videos_where_meaning_is_unknown():
    corpus = steps_corpus({"a": list(range(40)), "b": [0, 1, 2]})
    for seed in range(5):
        stories = of_videos(corpus, 2, irrelevant=1.0, seed=seed)
        clip = corpus.captions["clip"].to_numpy()[stories.captions[stories.truth < 0]].reshape(-1, 2)
        own = corpus.captions["video"].to_numpy()[stories.clips[:, 0]]
        assert (corpus.captions["video"].to_numpy()[clip] != own[:, None]).all()
    with pytest.raises(CorpusError, match="made: 3 captions are irrelevant to video 0, 4 are wanted"):
        of_videos(corpus, 4, irrelevant=1.0)


@pytest.mark.parametrize(
    "corpus, message",
    [
        (lambda: load_corpus("shapes", clips=30, false_negatives=0.05), "captions lack the column 'start', 'video'"),
        (lambda: steps_corpus({"a": [1, 2]}, start=["1", "soon"]), "whose start is not a number"),
        (lambda: steps_corpus({"a": [1, 2]}, start=[1, np.nan]), "captions without video"),
        (lambda: steps_corpus({"a": [1]}), "no video of split 'train' has 2 clips"),
    ],
)
def test_what_has_no_videos(corpus, message):
    with pytest.raises(CorpusError, match=message):
        of_videos(corpus(), 2)


def test_youcook2():
    """Windows of the real annotation, counted video by video; features are made."""
    if not (DATA / "youcook2" / "vttwins_validation_youcook.csv").is_file():
        pytest.skip(f"no YouCook2 files in {DATA}; set SSB_DATA to the folder that holds youcook2/")
    captions, splits = official.youcook2(DATA / "youcook2")
    stream = Stream(np.zeros((sum(map(len, splits.values())), 1, 1), np.float32))
    corpus = features.assemble("youcook2", captions, splits, {"look": stream})
    stories = of_videos(corpus, 4, disorder=0.25, missing=0.25, irrelevant=0.5)
    corpus = dataclasses.replace(corpus, stories=stories)
    assert {split: len(videos) for split, videos in stories.splits.items()} == {"train": 1984, "val": 106, "test": 679}
    assert "narrated by 5 captions; 2611 clips are in no video" in corpus.describe()  # 1885 + 92 + 634
    rows = captions.set_index("clip")
    for video in [0, 700, 2000, 2768]:
        events = rows.loc[[corpus.clips[clip] for clip in stories.clips[video]]]
        assert events["video"].nunique() == 1 and events["start"].is_monotonic_increasing
        for caption, number in zip(stories.captions[video], stories.truth[video]):
            text, source = corpus.captions["text"][caption], corpus.captions["video"][caption]
            own = source == events["video"].iloc[0]
            assert text == events["text"].iloc[number] if number >= 0 else not own


def folder_of_videos(path):
    """A corpus on the disk whose captions say of which video they are and when: two videos of four clips a split."""
    splits = {split: [f"{split}{v}_{k}" for v in "ab" for k in range(4)] for split in ("train", "val", "test")}
    rows = [(clip, f"step {clip}", clip[:-2], 10.0 * int(clip[-1])) for ids in splits.values() for clip in ids][::-1]
    clips = [clip for ids in splits.values() for clip in ids]
    (path / "features").mkdir(parents=True)
    pd.DataFrame(rows, columns=["clip", "text", "video", "start"]).to_csv(path / "captions.csv", index=False)
    (path / "split.json").write_text(json.dumps(splits))
    np.save(path / "features" / "look.npy", np.random.default_rng(0).standard_normal((24, 2, 8)).astype(np.float32))
    (path / "features" / "look.ids.txt").write_text("\n".join(clips))
    return path


def test_load_corpus_makes_long_videos_of_captions_with_video_and_start(tmp_path, capsys):
    path = folder_of_videos(tmp_path / "mine")
    plain, videos = load_corpus(path), load_corpus(path, events=4, missing=0.5, irrelevant=0.25, disorder=0.25)
    assert plain.stories is None and videos.fingerprint != plain.fingerprint
    assert [[videos.clips[clip] for clip in clips] for clips in videos.stories.clips[:2]] == [
        ["traina_0", "traina_1", "traina_2", "traina_3"],
        ["trainb_0", "trainb_1", "trainb_2", "trainb_3"],
    ]
    assert videos.stories.captions.shape == (6, 3) and (videos.stories.truth < 0).sum() == 6
    own = of_videos(videos, 4, disorder=0.25, missing=0.5, irrelevant=0.25)
    assert np.array_equal(videos.stories.truth, own.truth) and videos.stories.scripts is None
    whole = load_corpus(path, events=4, missing="drop")  # of features, not of captions
    assert (
        whole.stories.captions.shape == (6, 4)
        and "left out, as they have no usable features" in capsys.readouterr().out
    )
    for options, message in (
        ({"events": 4, "missing": "all"}, "missing = 'all'; wanted 'refuse'"),
        ({"events": 4, "clips": 3}, "takes no option 'clips'; it has 'missing', .* those of long videos, 'events', 'd"),
        ({"events": 4, "missing": 2}, "missing=2; give a share"),
        ({"events": 5}, "no video of split 'train' has 5 clips"),
    ):
        with pytest.raises(CorpusError, match=message):
            load_corpus(path, **options)
    table = pd.read_csv(path / "captions.csv")
    table.drop(columns="start").to_csv(path / "captions.csv", index=False)
    with pytest.raises(CorpusError, match="mine: captions lack the column 'start'; long videos need it"):
        load_corpus(path, events=4)
    table.assign(start="soon").to_csv(path / "captions.csv", index=False)
    with pytest.raises(CorpusError, match="whose start is not a number"):
        load_corpus(path, events=4)
