"""Corpus: early fusion against a loop, a fingerprint of all a run can see, captions in order."""

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest

from ssb import Corpus, CorpusError, load_corpus
from ssb.corpora.corpus import Stream


def corpus_of(streams: dict[str, Stream], clips: int = 4, **fields) -> Corpus:
    """Clips a, b, …, two captions each, the first two to train on."""
    text = [f"{word} {clip}" for clip in range(clips) for word in ("one", "two")]
    captions = pd.DataFrame({"clip": np.repeat(np.arange(clips), 2), "text": text})
    splits = {"train": np.arange(2), "val": np.array([2]), "test": np.arange(3, clips)}
    fields = {"clips": [chr(97 + clip) for clip in range(clips)], "captions": captions, "splits": splits} | fields
    return Corpus(name="made", streams=streams, **fields)


def packed(steps: int, dim: int, clips: int = 4, seed: int = 0, dtype=np.float32, lengths=None) -> Stream:
    return Stream(np.random.default_rng(seed).standard_normal((clips, steps, dim)).astype(dtype), lengths)


def naive_features(rows: list[list[np.ndarray]], max_steps: int):
    """rows: of each clip, (steps, dim) of each stream → values, mask; with loops."""
    fused = []
    for parts in rows:
        steps = min([len(part) for part in parts if len(part) > 1], default=1)
        clip = [np.concatenate([part[step if len(part) > 1 else 0] for part in parts]) for step in range(steps)]
        if steps > max_steps:
            edges = [steps * segment // max_steps for segment in range(max_steps + 1)]
            clip = [np.mean(clip[a:b], axis=0, dtype=np.float64) for a, b in zip(edges, edges[1:])]
        fused.append(np.array(clip))
    longest = max(len(clip) for clip in fused)
    values = np.zeros((len(fused), longest, fused[0].shape[1]))
    mask = np.zeros((len(fused), longest), bool)
    for i, clip in enumerate(fused):
        values[i, : len(clip)], mask[i, : len(clip)] = clip, True
    return values, mask


@pytest.mark.parametrize(
    "steps, max_steps",
    [(1, 1), (1, 8), (5, 1), (5, 5), (5, 8), (7, 3), (7, 6), (30, 22), (50, 32), (64, 32), (122, 14), (127, 32)],
)
def test_features_agree_with_a_loop(steps, max_steps):
    lengths = np.array([steps, 1, (steps + 1) // 2, max(1, steps - 1)])
    look, move = packed(steps, 3, lengths=lengths), packed(1, 2, seed=1, dtype=np.float16)
    values, mask = corpus_of({"look": look, "move": move}).features(max_steps=max_steps)
    rows = [[look.values[i, : lengths[i]], move.values[i]] for i in range(4)]
    wanted, wanted_mask = naive_features(rows, max_steps)
    assert values.dtype == np.float32 and values.shape == wanted.shape == (4, min(steps, max_steps), 5)
    assert np.array_equal(mask, wanted_mask)
    np.testing.assert_allclose(values, wanted, atol=1e-5)
    assert not values[~mask].any()


def test_streams_are_chosen_and_ordered():
    look, move = packed(3, 2), packed(3, 4, seed=1)
    corpus = corpus_of({"look": look, "move": move})
    for names, wanted in (
        (("move",), move.values),
        (("look",), look.values),
        (("move", "look"), np.concatenate([move.values, look.values], 2)),
        ((), np.concatenate([look.values, move.values], 2)),
    ):
        assert np.array_equal(corpus.features(names)[0], wanted)


def test_the_last_second_may_be_rounded_and_no_more():
    look, move = packed(6, 2), packed(5, 3, seed=1)
    values, mask = corpus_of({"look": look, "move": move}).features()
    assert np.array_equal(values, np.concatenate([look.values[:, :5], move.values], 2)) and mask.all()
    with pytest.raises(CorpusError, match=r"made: clip 'a': the streams differ in steps \(.*: 6, .*: 4\)"):
        corpus_of({"look": look, "move": packed(4, 3)}).features()


def files_of(stream: Stream, folder) -> Stream:
    """The same stream, a file for each clip."""
    folder.mkdir()
    paths = [folder / f"{clip}.npy" for clip in "abcd"]
    for i, path in enumerate(paths):
        np.save(path, stream.clip(i).astype(stream.values.dtype))
    return Stream(paths, source=str(folder))


def test_one_file_a_clip_equals_packed(tmp_path):
    look = packed(9, 3, dtype=np.float16, lengths=np.array([9, 4, 1, 6]))
    apart = files_of(look, tmp_path / "look")
    assert (len(apart), apart.dim) == (4, 3)
    for names in ((), ("look", "move")):
        one, other = (corpus_of({"look": s, "move": packed(1, 2)}).features(names, max_steps=5) for s in (look, apart))
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_lengths_cut_a_clip():
    stream = packed(5, 2, lengths=np.array([5, 3, 1, 2]))
    assert [len(stream.clip(i)) for i in range(4)] == [5, 3, 1, 2]
    assert np.array_equal(stream.clip(1), stream.values[1, :3])
    _, mask = corpus_of({"look": stream}).features()
    assert mask.sum(1).tolist() == [5, 3, 1, 2]


@pytest.mark.parametrize("lengths", [[5, 3, 0, 2], [5, 3, 6, 2], [5, 3, 1], [5, 3, 1, 2, 2]])
def test_lengths_that_cannot_be(lengths):
    with pytest.raises(CorpusError, match="lengths must be 4 numbers from 1 to 5"):
        packed(5, 2, lengths=np.array(lengths))


def test_what_is_behind_the_length_does_not_count():
    stream = packed(5, 2, lengths=np.array([5, 3, 1, 2]))
    before = corpus_of({"look": stream}).features()[0]
    stream.values[1, 3:] = 99
    assert np.array_equal(corpus_of({"look": stream}).features()[0], before)


def test_equal_content_has_an_equal_fingerprint(tmp_path):
    look, lengths = packed(3, 2).values, np.array([3, 1, 2, 3])
    np.save(tmp_path / "look.npy", look)
    mapped = np.load(tmp_path / "look.npy", mmap_mode="r")
    arrays = {"one": look, "other": look.copy(), "disk": mapped, "columns first": np.asfortranarray(look)}
    prints = {corpus_of({"look": Stream(x, lengths, source)}).fingerprint for source, x in arrays.items()}
    assert len(prints) == 1 and len(prints.pop()) == 12
    apart = [files_of(packed(3, 2), tmp_path / name) for name in ("here", "there")]
    assert len({corpus_of({"look": stream}).fingerprint for stream in apart}) == 1


def changed(array: np.ndarray) -> np.ndarray:
    """The smallest change there is."""
    array = array.copy()
    array[-1, -1, -1] = np.nextafter(array[-1, -1, -1], np.float32(9))
    return array


def test_any_change_changes_the_fingerprint(tmp_path):
    look, move = packed(3, 2), packed(1, 2, seed=1)
    base = corpus_of({"look": look, "move": move})
    text = base.captions.assign(text=[*base.captions["text"][:-1], "two 4"])
    swapped = base.captions.assign(clip=[1, 0, 0, 1, 2, 2, 3, 3])
    split = {**base.splits, "train": np.array([1, 0])}
    others = [
        dataclasses.replace(base, captions=text),
        dataclasses.replace(base, captions=swapped),
        dataclasses.replace(base, captions=base.captions.iloc[::-1].reset_index(drop=True)),
        dataclasses.replace(base, captions=base.captions.iloc[1:].reset_index(drop=True)),
        dataclasses.replace(base, clips=["a", "b", "c", "e"]),
        dataclasses.replace(base, splits=split),
        dataclasses.replace(base, splits={"train": base.splits["train"], "test": np.array([2]), "val": np.array([3])}),
        dataclasses.replace(base, splits=dict(zip(("train", "validation", "test"), base.splits.values()))),
        dataclasses.replace(base, streams={"look": look}),
        dataclasses.replace(base, streams={"looks": look, "move": move}),
        dataclasses.replace(base, streams={"look": Stream(changed(look.values)), "move": move}),
        dataclasses.replace(base, streams={"look": Stream(look.values.astype(np.float64)), "move": move}),
        dataclasses.replace(base, streams={"look": Stream(look.values, np.array([3, 3, 3, 2])), "move": move}),
        dataclasses.replace(base, streams={"look": files_of(look, tmp_path / "a"), "move": move}),
        dataclasses.replace(
            base, streams={"look": files_of(Stream(changed(look.values)), tmp_path / "b"), "move": move}
        ),
    ]
    prints = [corpus.fingerprint for corpus in (base, *others)]
    assert len(set(prints)) == len(prints)


def test_the_source_and_the_name_are_not_content():
    look = packed(3, 2)
    other = dataclasses.replace(corpus_of({"look": dataclasses.replace(look, source="elsewhere")}), name="other")
    assert other.fingerprint == corpus_of({"look": look}).fingerprint


def test_every_value_of_a_large_stream_counts(monkeypatch, tmp_path):
    """However it is stored; of a file the hash is computed once, and again when the file was written again."""
    monkeypatch.setattr("ssb.corpora.corpus.LARGE", 64)
    values, calls, summed = np.random.default_rng(0).random((600, 2, 2), np.float32), [], Stream._sum
    monkeypatch.setattr(Stream, "_sum", lambda stream: (calls.append(len(stream)), summed(stream))[1])

    def printed(x) -> str:
        sha = hashlib.sha256()
        Stream(x).update(sha)
        return sha.hexdigest()

    def stored(x):
        np.save(tmp_path / "x.npy", x)
        return np.load(tmp_path / "x.npy", mmap_mode="r")

    first = printed(values)
    assert first == printed(np.asfortranarray(values)) == printed(stored(values))
    calls.clear()
    assert printed(np.load(tmp_path / "x.npy", mmap_mode="r")) == first and not calls
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for part in (mapped[1:], mapped[:-1], mapped[::-1], mapped[np.arange(600)[::-1]]):
        assert printed(part) == printed(np.array(part)) != first
    copied = np.load(tmp_path / "x.npy", mmap_mode="c")
    copied[301, 0, 0] += 1
    assert printed(copied) == printed(np.array(copied)) != first
    for row in range(0, 600, 7):  # most of them not among 256 evenly spaced ones
        other = values.copy()
        other[row, 1, 1] += 1
        assert printed(other) != first
    assert printed(stored(other)) == printed(other)  # of the same size


def test_a_large_stream_is_checked(monkeypatch):
    monkeypatch.setattr("ssb.corpora.corpus.LARGE", 64)
    look = packed(3, 2)
    base = corpus_of({"look": look})
    assert base.fingerprint == corpus_of({"look": packed(3, 2)}).fingerprint
    assert base.fingerprint != corpus_of({"look": Stream(changed(look.values))}).fingerprint
    look.values[2, 1, 0] = np.nan
    with pytest.raises(CorpusError, match="stream: clip number 2 holds NaN or infinity; extract it again or drop it"):
        corpus_of({"look": look}).features()


def test_captions_of_clips_in_the_order_given():
    corpus = corpus_of({"look": packed(3, 2)}, captions=pd.DataFrame(
        [(3, "d"), (0, "a"), (1, "b"), (3, "dd"), (0, "aa"), (2, "c")], columns=["clip", "text"]))  # fmt: skip
    rows = corpus.captions_of(np.array([3, 1, 0]))
    assert rows["text"].tolist() == ["d", "dd", "b", "a", "aa"]
    assert rows["clip"].tolist() == [3, 3, 1, 0, 0]
    assert rows["caption"].tolist() == [0, 3, 2, 1, 4]
    assert list(rows) == ["clip", "text", "caption"] and rows.index.tolist() == [0, 1, 2, 3, 4]


def test_caption_is_the_position_whatever_the_index_says():
    corpus = corpus_of({"look": packed(3, 2)})
    again = dataclasses.replace(corpus, captions=corpus.captions.set_axis(range(40, 48)))
    assert again.captions_of(np.array([2, 0]))["caption"].tolist() == [4, 5, 0, 1]


def test_describe(tmp_path):
    corpus = corpus_of({"look": packed(3, 2), "apart": files_of(packed(3, 5), tmp_path / "apart")})
    assert corpus.describe().splitlines() == [
        f"made ({corpus.fingerprint}): 4 clips (train 2, val 1, test 1), 8 captions",
        "stream look: (4 clips, 3 steps, 2 dims)",
        "stream apart: (4 clips, ? steps, 5 dims)",
    ]


def test_describe_gives_the_share_of_false_negatives_where_it_is_known():
    corpus = load_corpus("shapes", clips=60, false_negatives=0.05)
    lines = corpus.describe().splitlines()
    assert lines[0] == f"shapes ({corpus.fingerprint}): 60 clips (train 40, val 5, test 15), 300 captions"
    assert lines[1:3] == [f"stream {name}: (60 clips, 8 steps, {dim} dims)"
                          for name, dim in (("appearance", 128), ("motion", 64))]  # fmt: skip
    rate = 100 * corpus.false_negative_rate()
    assert lines[3] == f"false negatives: a caption is also true of {rate:.2f} % of the other clips"
    assert 4.5 < rate < 5.5


def test_split_lists_what_there_is():
    corpus = corpus_of({"look": packed(3, 2)})
    assert corpus.split("val").tolist() == [2]
    with pytest.raises(CorpusError, match="made has no split 'dev'; it has 'train', 'val', 'test'"):
        corpus.split("dev")


LOOK = {"look": packed(3, 2)}
TABLE = corpus_of(LOOK).captions


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(clips=[]), "made: no clips"),
        (dict(clips=["a", "b", "a", "d"]), "made: duplicate clip id 'a'; keep one of each"),
        (dict(captions=TABLE.rename(columns={"text": "sentence"})), "made: captions lack the column 'text'"),
        (dict(captions=TABLE.assign(text=["x"] * 5 + [None] + ["x"] * 2)), "made: empty caption of clip 'c'; write"),
        (dict(captions=TABLE.assign(clip=[0, 0, 1, 1, 2, 2, 3, 9])), "made: clip of a caption: 9 is not from 0 to 3"),
        (dict(captions=TABLE.assign(clip=[0, 0, 1, 1, 2, 2, 3, -1])), "made: clip of a caption: -1 is not from 0 to 3"),
        (dict(captions=TABLE[:6]), "made: no caption for clip 'd'"),
        (dict(captions=TABLE[:0]), "made: no caption for clip 'a', 'b', 'c', 'd'"),
        (
            dict(splits={"train": np.array([0, 1]), "val": np.array([], int)}),
            "made: split 'val': shape (0,); wanted (clips), none of",
        ),
        (
            dict(splits={"train": np.array([0, 1]), "val": np.array([1])}),
            "made: clip 'b' is in 'train' and again in 'val'; keep it in one place",
        ),
        (dict(splits={"train": np.array([0, 4])}), "made: split 'train': 4 is not from 0 to 3"),
        (dict(streams={}), "made: no feature stream; put <stream>.npy"),
        (dict(streams={"look": packed(3, 2, clips=5)}), "made: stream 'look' has 5 clips, the corpus 4"),
    ],
)
def test_a_corpus_checks_itself(fields, words):
    with pytest.raises(CorpusError) as caught:
        dataclasses.replace(corpus_of(LOOK), **fields)
    assert str(caught.value).startswith(words)
