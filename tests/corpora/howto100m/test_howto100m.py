"""HowTo100M from disk: the index against a naive reading, windows against a naive overlap, bad input, kills, memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from ssb import Config, ConfigError, Corpus, CorpusError, files, fit, load_corpus, text
from ssb.__main__ import main
from ssb.bench import howto100m as benchmark
from ssb.bench.timing import BenchmarkError
from ssb.corpora import labels, windows
from ssb.corpora.howto100m import corpus as corpus_module
from ssb.corpora.howto100m import index as index_module
from ssb.corpora.howto100m import narrations
from ssb.corpora.howto100m import shards as shards_module
from ssb.metrics import meaning
from ssb.training.runs import load
from ssb.training.streamed import Streamed

VIDEOS, BARE = 120, 7  # BARE of them have no features
WORDS = "cut the onion now mix flour and water until it is smooth café 混ぜる".split()


def invented(seed: int = 0) -> dict:
    """The content of a caption.json; in no order, times neither."""
    rng, found = np.random.default_rng(seed), {}
    for number in rng.permutation(VIDEOS):
        count = int(rng.integers(1, 15))
        start = rng.uniform(0, 25, count).round(2)
        end = start + rng.choice([0, 0.5, 3.25, 9], count)
        lines = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]
        found[f"-v{number:04d}_"] = {"start": start.tolist(), "end": end.tolist(), "text": lines}
    return found


def write_features(folder: Path, ids, seed: int = 1):
    rng = np.random.default_rng(seed)
    for stream, width in (("look", 5), ("move", 3)):
        (folder / "features" / stream).mkdir(parents=True)
    for name in ids:
        steps = int(rng.integers(26, 40))
        for stream, width in (("look", 5), ("move", 3)):
            values = rng.standard_normal((steps, width)).astype(np.float16)
            np.save(folder / "features" / stream / f"{name}.npy", values)


def write_csvs(folder: Path, content: dict):
    (folder / "captions").mkdir()
    for name, entry in content.items():
        pd.DataFrame(entry).to_csv(folder / "captions" / f"{name}.csv")  # with a column of numbers, as pandas does


def write_jsons(folder: Path, content: dict):
    (folder / "captions").mkdir()
    for name, entry in content.items():
        (folder / "captions" / f"{name}.json").write_text(json.dumps(entry, indent=1))


def index(folder: Path, **options) -> list[str]:
    said = []
    index_module.index(folder, log=said.append, **{"shard": 17, **options})
    return said


def opened(folder: Path) -> corpus_module.HowTo100M:
    index(folder)
    return load_corpus(folder)


def left_out(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "index" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


def skipped(folder: Path) -> dict[str, str]:
    """Those that are left out for something else than that they have no features."""
    return {name: why for name, why in left_out(folder) if why != "no features"}


@pytest.fixture
def content() -> dict:
    return invented()


@pytest.fixture
def folder(tmp_path, content) -> Path:
    """Not yet indexed."""
    path = tmp_path / "howto100m"
    path.mkdir()
    (path / "caption.json").write_text(json.dumps(content))
    write_features(path, sorted(content)[BARE:])
    return path


def same_index(one: Path, two: Path, *parts: str):
    for part in parts:
        names = sorted(path.relative_to(one / "index") for path in (one / "index" / part).rglob("*.*"))
        assert names and names == sorted(
            path.relative_to(two / "index") for path in (two / "index" / part).rglob("*.*")
        )
        for name in names:
            if name.name != "source.json":
                assert (one / "index" / name).read_bytes() == (two / "index" / name).read_bytes(), name


# The index


def test_index_equals_a_naive_reading(folder, content):
    said = index(folder)
    corpus = load_corpus(folder)
    assert [corpus.id(i) for i in range(len(corpus))] == sorted(content)[BARE:]
    for video in range(len(corpus)):
        entry = content[corpus.id(video)]
        times, lines = corpus.narrations(video)
        assert np.array_equal(times, np.float32([entry["start"], entry["end"]]).T) and lines == entry["text"]
        look, move = (np.load(folder / "features" / name / f"{corpus.id(video)}.npy") for name in ("look", "move"))
        assert corpus.steps[video] == len(look)
        both = corpus.window_features(video, corpus.chosen(), 3, 20)
        assert both.dtype == np.float32 and np.array_equal(both, np.concatenate([look, move], axis=1)[3:20])
    assert np.array_equal(
        corpus.window_features(0, corpus.chosen(["move"]), 0, 2),
        corpus.window_features(0, corpus.chosen(), 0, 2)[:, 5:],
    )
    assert len(list((folder / "index" / "shards").glob("0*"))) == 8 and not skipped(folder)
    assert f"{VIDEOS} videos with narrations, {BARE} of them (5.8 %) without features" in said
    assert "113 can be used: train 103, val 5, test 5" in said
    assert "113 of 120 videos have features (train 103, val 5, test 5)" in corpus.describe()


def test_all_forms_and_any_order_give_one_corpus(folder, content, tmp_path):
    first = opened(folder)
    (folder / "caption.json").unlink()
    for write in (write_jsons, write_csvs):
        shutil.rmtree(folder / "captions", ignore_errors=True)
        write(folder, content)
        assert opened(folder).fingerprint == first.fingerprint
    by_name = tmp_path / "sorted" / "howto100m"
    shutil.copytree(folder / "features", by_name / "features")
    (by_name / "caption.json").write_text(json.dumps({name: content[name] for name in sorted(content)}, indent=1))
    index(by_name)
    for shard in (folder / "index" / "shards").glob("0*"):
        for name in ("ids.npy", "first.npy", "times.npy", "offsets.npy", "text.txt", "digest.npy"):
            other = by_name / "index" / "shards" / shard.name / name
            assert (shard / name).read_bytes() == other.read_bytes()
    same_index(by_name, folder, "found")


entries = st.recursive(st.none() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3), max_leaves=4)


@given(st.dictionaries(st.text(max_size=8), entries, max_size=4), st.sampled_from([None, 1]), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_streamed_object_is_what_json_reads(tmp_path_factory, data, indent, block):
    """Whatever the blocks in which it is read, and from the place after any of its videos."""
    path = tmp_path_factory.getbasetemp() / "caption.json"
    path.write_bytes(json.dumps(data, indent=indent, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    wanted = json.loads(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrations, "BLOCK", block)
        found = list(narrations.videos(path))
        assert repr([(name, entry) for name, entry, _ in found]) == repr(list(wanted.items()))
        for number, (_, _, place) in enumerate(found[:-1]):
            assert repr(list(narrations.videos(path, place))) == repr(found[number + 1 :])


def damaged(name: str, **changes):
    return lambda content: content[name].update(changes)


def replaced(name: str, entry):
    return lambda content: content.update({name: entry})


FIRST = sorted(invented())[BARE]
ONE = {"start": [1.0], "end": [2.0], "text": ["stir"]}
BAD_VIDEO = {
    "no words": (damaged(FIRST, start=[1, 2], end=[2, 3], text=["", " \t\n"]), "no narration has words"),
    "no narration": (damaged(FIRST, start=[], end=[], text=[]), "no narration has words"),
    "NaN": (replaced(FIRST, ONE | {"start": [float("nan")]}), "is NaN, negative"),
    "infinity": (replaced(FIRST, ONE | {"end": [float("inf")]}), "is NaN, negative"),
    "before the video": (replaced(FIRST, ONE | {"start": [-1]}), "negative"),
    "backwards": (replaced(FIRST, ONE | {"end": [0.5]}), "ends before it begins"),
    "null": (replaced(FIRST, ONE | {"start": [None]}), "is NaN, negative"),
    "nested": (replaced(FIRST, ONE | {"start": [[1, 2]]}), "not a number"),
    "huge": (replaced(FIRST, ONE | {"end": [10**400]}), "not a number"),
    "words for times": (replaced(FIRST, ONE | {"end": ["soon"]}), "not a number"),
    "a number for words": (replaced(FIRST, ONE | {"text": [5]}), "a text is 5"),
    "lists of other lengths": (replaced(FIRST, ONE | {"text": ["a", "b"]}), "1 starts, 1 ends and 2 texts"),
    "no end": (replaced(FIRST, {"start": [1], "text": ["a"]}), "not the three lists"),
    "no object": (replaced(FIRST, [1, 2]), "not the three lists"),
    "half a character": (replaced(FIRST, ONE | {"text": ["a \ud83d b"]}), "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_VIDEO)
def test_a_bad_video_is_skipped_and_listed(folder, content, case):
    damage, why = BAD_VIDEO[case]
    damage(content)
    (folder / "caption.json").write_text(json.dumps(content))
    corpus = opened(folder)
    assert list(skipped(folder)) == [FIRST] and why in skipped(folder)[FIRST]
    assert [corpus.id(i) for i in range(len(corpus))] == sorted(content)[BARE + 1 :]


@pytest.mark.parametrize("name", ["../../etc", "a b", "", "x" * 61, "\ud800", "a\tb"])
def test_an_id_that_is_no_file_name_is_skipped(folder, content, name):
    (folder / "caption.json").write_text(json.dumps(content | {name: ONE}))
    assert len(opened(folder)) == VIDEOS - BARE
    assert list(skipped(folder).values()) == ["its id is not a file name of 1 to 60 characters without spaces"]


def test_bytes_that_are_no_text_cost_one_video(folder, content):
    raw = json.dumps(content | {FIRST: ONE}).encode()
    (folder / "caption.json").write_bytes(raw.replace(b'"stir"', b'"st\xff\xfeir"'))
    assert len(opened(folder)) == VIDEOS - BARE - 1 and skipped(folder) == {FIRST: "its text is not UTF-8"}


def test_the_first_of_two_of_one_id_is_used(folder, content):
    raw = json.dumps(content)
    (folder / "caption.json").write_text(raw[:-1] + f', "{FIRST}": {json.dumps(ONE)}' + "}")
    corpus = opened(folder)
    assert corpus.narrations(0)[1] == content[FIRST]["text"] and len(corpus) == VIDEOS - BARE
    assert skipped(folder) == {FIRST: "is there twice; the first is used"}


def test_a_narration_without_words_is_left_out_of_its_video(folder, content):
    content[FIRST] = {"start": [1, 2, 3], "end": [2, 3, 4], "text": [" ", float("nan"), "  stir\nwell "]}
    (folder / "caption.json").write_text(json.dumps(content))
    times, lines = opened(folder).narrations(0)
    assert times.tolist() == [[3, 4]] and lines == ["stir well"] and not skipped(folder)


BAD_CSV = {
    b"start,end,text\n1,x,a\n": "not a number",
    b"start,end,text\n1,,a\n": "not a number",
    b"a,b\n1,2\n": "columns are 'a', 'b'; wanted start, end, text",
    b"": "not a readable CSV (it is empty)",
    b"start,end,text\n1,2,\xff\n": "not a readable CSV",
    b"start,end,text\n1,2\n": "line 2: 2 cells, the header has 3",
    b"start,end,text\n1,2,\n": "no narration has words",
}


@pytest.mark.parametrize("raw, why", BAD_CSV.items())
def test_a_bad_csv_is_skipped_and_listed(folder, content, raw, why):
    (folder / "caption.json").unlink()
    write_csvs(folder, content)
    (folder / "captions" / f"{FIRST}.csv").write_bytes(raw)
    assert len(opened(folder)) == VIDEOS - BARE - 1
    assert list(skipped(folder)) == [FIRST] and why in skipped(folder)[FIRST]


BAD_JSON = {
    b"{": "not a readable JSON",
    b'{"start": [1], "end": [2], "text": ["\xff"]}': "not a readable JSON",
    b"[1, 2]": "not the three lists",
    json.dumps({"other": ONE}).encode(): "not the three lists",
    json.dumps(ONE | {"end": [0]}).encode(): "ends before it begins",
}


@pytest.mark.parametrize("raw, why", BAD_JSON.items())
def test_a_bad_json_of_a_video_is_skipped_and_listed(folder, content, raw, why):
    (folder / "caption.json").unlink()
    write_jsons(folder, content)
    (folder / "captions" / f"{FIRST}.json").write_bytes(raw)
    assert len(opened(folder)) == VIDEOS - BARE - 1
    assert list(skipped(folder)) == [FIRST] and why in skipped(folder)[FIRST]


def test_tables_and_json_are_not_mixed(folder, content):
    (folder / "caption.json").unlink()
    write_csvs(folder, content)
    (folder / "captions" / "zzz.json").write_text(json.dumps(ONE))
    with pytest.raises(CorpusError, match="captions: has 120 .csv and 1 .json, such as -v0000_.csv and zzz.json; keep"):
        index(folder)
    assert not (folder / "index").exists()


def test_videos_without_features_are_listed_once(folder, content):
    names = sorted(content)
    (folder / "features" / "move" / f"{names[20]}.npy").write_bytes(b"")  # listed as broken
    (folder / "features" / "look" / f"{names[30]}.npy").unlink()  # in one stream of the two
    said = index(folder)
    found = left_out(folder)
    assert sorted(name for name, why in found if why == "no features") == [*names[:BARE], names[30]]
    assert [name for name, why in found if "not a complete .npy array" in why] == [names[20]]
    assert len(found) == BARE + 2 and said[-1].startswith(f"{BARE + 2} skipped, listed in ")


NO_FILE = {
    "a list": (b"[1, 2]", r"caption.json: from byte 0 on not \{video id: .*download it again"),
    "no JSON": (b"<html>no such page</html>", "caption.json: from byte 0 on not"),
    "nothing": (b"", "caption.json: from byte 0 on not"),
    "cut short": (json.dumps(invented()).encode()[:-300], r"caption.json: from byte \d{5} on not"),
    "two objects": (b'{"a": 1} {"b": 2}', "caption.json: goes on after its object has ended, at byte 8"),
    "no colon": (b'{"a" 1}', "caption.json: from byte 0 on not"),
    "an empty object": (b"{}", "none of its 0 videos can be used"),
    "no video that can be used": (b'{"a": 1, "b": 2}', "none of its 2 videos can be used: 'a\\\\tnot the three"),
    "videos without features": (
        json.dumps({"a": ONE, "b": ONE}).encode(),
        "0 of 2 videos have narrations and features",
    ),
}


@pytest.mark.parametrize("case", NO_FILE)
def test_a_file_that_is_none_is_one_error(folder, case, capsys):
    raw, message = NO_FILE[case]
    (folder / "caption.json").write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        index(folder)
    assert main(["index", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(CorpusError, match="index: no index; run `ssb index /.*`"):
        load_corpus(folder)


def test_no_folder_is_named_with_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SSB_DATA", str(tmp_path / "none"))
    with pytest.raises(CorpusError, match=r"none/howto100m: no such folder; .* and run `ssb index`$"):
        load_corpus("howto100m")


def test_what_is_missing_is_said(folder, monkeypatch):
    monkeypatch.setenv("SSB_DATA", str(folder.parent))
    with pytest.raises(CorpusError, match="no index; run `ssb index /.*`"):
        load_corpus("howto100m")
    (folder / "caption.json").unlink()
    with pytest.raises(CorpusError, match="neither caption.json nor captions/"):
        index(folder)
    (folder / "captions").mkdir()
    with pytest.raises(CorpusError, match="captions: no <video id>.csv or .json in it"):
        index(folder)


# Features


def packed(folder: Path, stream: str, parts: int):
    """The files of a stream as shards, in an order of chance."""
    path = folder / "features" / stream
    names = np.random.default_rng(5).permutation(sorted(file.stem for file in path.glob("*.npy")))
    for number, part in enumerate(np.array_split(names, parts)):
        held = [np.load(path / f"{name}.npy") for name in part]
        values = np.full((len(held), 50, held[0].shape[1]), np.nan, np.float16)  # which is not to be read
        for row, x in zip(values, held):
            row[: len(x)] = x
        np.save(path / f"part{number}.npy", values)
        (path / f"part{number}.ids.txt").write_text("\n".join(part))
        (path / f"part{number}.lengths.txt").write_text("\n".join(str(len(x)) for x in held))
    for name in names:
        (path / f"{name}.npy").unlink()


def test_three_forms_of_features_are_the_same(folder):
    wanted = opened(folder).fingerprint
    packed(folder, "look", 3)
    for file in sorted((folder / "features" / "move").glob("*.npy")):
        (folder / "features" / "move" / file.name[:2]).mkdir(exist_ok=True)
        file.rename(folder / "features" / "move" / file.name[:2] / file.name)
    found = opened(folder)
    assert found.fingerprint == wanted
    assert found.streams["look"].shards == ["part0", "part1", "part2"]
    (folder / "features" / "look" / "._part3.npy").touch()
    (folder / "features" / "move" / "unknown.npy").write_bytes(move(folder, "-v/-v0050_").read_bytes())
    assert opened(folder).fingerprint == wanted


@pytest.mark.parametrize("gone", [["part1"], ["part0", "part1"]], ids=str)
def test_a_shard_without_ids_is_one_error(folder, gone):
    """It would be passed over, whether others have theirs or not."""
    packed(folder, "look", 2)
    for name in gone:
        (folder / "features" / "look" / f"{name}.ids.txt").unlink()
    with pytest.raises(CorpusError, match=r"look/part[01]\.npy: no part[01]\.ids\.txt next to it; write the video id"):
        index(folder)


@pytest.mark.parametrize("place", ["", "-v/"])
def test_files_of_videos_beside_shards_are_one_error(folder, place):
    values = move(folder).read_bytes()
    packed(folder, "move", 2)
    (path := move(folder, f"{place}{FIRST}")).parent.mkdir(exist_ok=True)
    path.write_bytes(values)
    with pytest.raises(CorpusError, match=rf"move/{place}{FIRST}\.npy: "):
        index(folder)


def move(folder: Path, name: str = FIRST) -> Path:
    return folder / "features" / "move" / f"{name}.npy"


LEFT_OUT = {
    "an empty file": (lambda path: path.write_bytes(b""), "not a complete .npy array"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete .npy array"),
    "another width": (lambda path: np.save(path, np.ones((30, 4), np.float32)), r"shape \(30, 4\)"),
    "whole numbers": (lambda path: np.save(path, np.ones((30, 3), int)), "holds int64"),
    "three axes": (lambda path: np.save(path, np.ones((30, 3, 1))), "wanted (steps, dim)"),
    "other steps": (lambda path: np.save(path, np.ones((60, 3), np.float16)), "streams differ in steps"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_broken_features_are_left_out_and_listed(folder, case):
    damage, why = LEFT_OUT[case]
    last = sorted(path.stem for path in (folder / "features" / "move").glob("*.npy"))[-1]
    damage(move(folder, last))
    corpus = opened(folder)
    assert len(corpus) == VIDEOS - BARE - 1
    assert list(skipped(folder)) == [last] and why.replace("\\", "") in skipped(folder)[last]


def test_features_that_end_before_the_first_word_are_left_out(folder, content):
    content[FIRST] = {"start": [20.9], "end": [22], "text": ["stir"]}
    (folder / "caption.json").write_text(json.dumps(content))
    for stream, width in (("look", 5), ("move", 3)):
        np.save(folder / "features" / stream / f"{FIRST}.npy", np.ones((20, width), np.float16))
    assert len(opened(folder)) == VIDEOS - BARE - 1
    assert skipped(folder) == {FIRST: "features end before its first narration"}
    for stream, width in (("look", 5), ("move", 3)):
        np.save(folder / "features" / stream / f"{FIRST}.npy", np.ones((21, width), np.float16))
    corpus = opened(folder)
    assert corpus.window(0, 8, 0, 0) == (13, 21, "stir") and not skipped(folder)


def nan(path):
    values = np.load(path)
    values[:, 1] = np.nan
    np.save(path, values)


BROKEN_LATER = {
    "NaN": (nan, "NaN or infinity in video"),
    "gone": (lambda path: path.unlink(), "no such file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete .npy array"),
    "shorter": (lambda path: np.save(path, np.ones((2, 3), np.float16)), r"shape \(2, 3\); wanted 3 wide and at least"),
    "wider": (lambda path: np.save(path, np.ones((50, 4), np.float16)), r"shape \(50, 4\); wanted 3 wide"),
}


@pytest.mark.parametrize("case", BROKEN_LATER)
def test_features_broken_since_are_named(folder, case):
    corpus = opened(folder)
    damage, message = BROKEN_LATER[case]
    damage(move(folder))
    with pytest.raises(CorpusError, match=f"move/{FIRST}.npy.*{message}"):
        corpus.window_features(0, corpus.chosen(), *corpus.window(0, 8, 0, 0)[:2])


def ids(change):
    def damage(path: Path):
        names = path.read_text().split()
        path.write_text("\n".join(change(names)))

    return damage


BAD_SHARD = {
    "a row too many": ("part0.ids.txt", ids(lambda names: names[1:]), "part0.ids.txt: 56 ids for the 57 rows"),
    "an id twice": ("part0.ids.txt", ids(lambda names: [names[1], *names[1:]]), "part0.ids.txt: duplicate clip id"),
    "another width": (
        "part1.npy",
        lambda path: np.save(path, np.ones((56, 50, 4), np.float16)),
        r"wanted \(.*, 3\) as",
    ),
    "cut short": ("part1.npy", lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a complete .npy"),
    "no lengths": (
        "part0.lengths.txt",
        lambda path: path.write_text("1 2"),
        "part0.lengths.txt: not 57 whole numbers, one a line",
    ),
    "length 0": ("part0.lengths.txt", ids(lambda n: ["0", *n[1:]]), "lengths must be 57 numbers from 1 to 50"),
    "too long": ("part0.lengths.txt", ids(lambda n: ["51", *n[1:]]), "lengths must be 57 numbers from 1 to 50"),
    "Fortran": ("part0.npy", lambda path: np.save(path, np.asfortranarray(np.load(path))), "Fortran order"),
}


@pytest.mark.parametrize("case", BAD_SHARD)
def test_a_bad_shard_of_features_is_one_error(folder, case):
    name, damage, message = BAD_SHARD[case]
    packed(folder, "move", 2)
    damage(folder / "features" / "move" / name)
    with pytest.raises(CorpusError, match=message):
        index(folder)


def test_a_video_in_two_shards_is_one_error(folder):
    packed(folder, "move", 2)
    path = folder / "features" / "move"
    for ending in (".npy", ".ids.txt", ".lengths.txt"):
        shutil.copy(path / f"part0{ending}", path / f"part2{ending}")
    with pytest.raises(CorpusError, match="part2.npy: video .* is in another shard too"):
        index(folder)


def test_no_stream_and_no_such_stream(folder):
    corpus = opened(folder)
    with pytest.raises(CorpusError, match="no stream 'sound'; it has 'look', 'move'"):
        corpus.chosen(["sound"])
    with pytest.raises(CorpusError, match="no split 'dev'; it has"):
        corpus.split("dev")
    shutil.rmtree(folder / "features")
    with pytest.raises(CorpusError, match="features: no feature stream"):
        index(folder)


def test_a_corpus_on_disk_names_what_needs_one_in_memory(folder):
    """Whatever a notebook asks for, it ends with one line."""
    corpus = opened(folder)
    message = "^howto100m is read from disk window by window; this needs a corpus in memory, such as shapes$"
    absent = {name for name in dir(Corpus) if not name.startswith("_")} | set(Corpus.__dataclass_fields__)
    absent -= {"id", "split", "describe", "fingerprint", "name", "splits", "streams", "video_of", "in_memory", "drawn"}
    for name in sorted(absent):
        if name in ("meaning", "frames", "stories", "classes"):
            assert getattr(corpus, name) is None
        else:
            with pytest.raises(CorpusError, match=message):
                getattr(corpus, name)
    for use in (meaning.same, labels.labels, lambda corpus: windows.of_videos(corpus, 2)):
        with pytest.raises(CorpusError):
            use(corpus)


@pytest.mark.slow
def test_a_notebook_that_needs_a_corpus_in_memory_ends_with_one_line(folder, home):
    index(folder)
    notebook = Path(__file__).parents[3] / "notebooks" / "11_same_meaning.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), str(home / "out.ipynb"), "--no-progress-bar"]
    environment = os.environ | {"SSB_DATA": str(folder.parent), "PYTHONWARNINGS": "ignore"}
    parameters = ["-p", "corpus", "howto100m", "-p", "preset", "smoke"]
    done = subprocess.run([*command, *parameters], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == (
        "CorpusError: howto100m is read from disk window by window; this needs a corpus in memory, such as shapes"
    )


# Splits and windows


def test_held_out_videos_depend_on_ids_alone(folder):
    corpus = opened(folder)
    members = {name: [corpus.id(i) for i in corpus.split(name)] for name in ("train", "val", "test")}
    by_hash = sorted(members["train"] + members["val"] + members["test"], key=files.digest)
    assert members["val"] == by_hash[:5] and members["test"] == by_hash[5:10]
    assert sorted(by_hash) == [corpus.id(i) for i in range(len(corpus))] and len(set(by_hash)) == 113
    index(folder, held_out=2)
    fewer = load_corpus(folder)
    assert [len(fewer.split(name)) for name in ("train", "val", "test")] == [109, 2, 2]
    assert fewer.fingerprint != corpus.fingerprint


second = st.integers(0, 200).map(lambda x: x / 4)


@given(st.lists(st.tuples(second, second), min_size=1), st.integers(0, 50), st.integers(1, 30))
def test_overlap_is_shared_time(spans, begin, length):
    """A narration is the half-open span of its seconds, or where it takes no time a moment."""
    times = np.float32([sorted(span) for span in spans])
    end = begin + length
    naive = [max(s, begin) < min(e, end) or s == e and begin <= s < end for s, e in times.tolist()]
    assert corpus_module.overlapping(times, begin, end).tolist() == naive


@pytest.mark.parametrize("most", [1, 8, 32])
def test_windows_against_a_naive_overlap(folder, content, most):
    corpus = opened(folder)
    for video in range(len(corpus)):
        entry, steps = content[corpus.id(video)], int(corpus.steps[video])
        drawn = {corpus.window(video, most, 3, epoch) for epoch in range(6)}
        for begin, end, caption in drawn:
            assert 0 <= begin and end == begin + min(most, steps) <= steps
            assert begin in {int(s) for s in entry["start"]} or end == steps
            spans = zip(entry["start"], entry["end"], entry["text"])
            said = [w for s, e, w in spans if max(s, begin) < min(e, end) or s == e and begin <= s < end]
            assert said and caption == " ".join(said)
        if most == 1 and len({int(s) for s in entry["start"]}) > 5:
            assert len(drawn) > 1


# Batches


def streamed(folder: Path, **changes) -> Streamed:
    settings = {"batch": 16, "objective": "none", **changes}
    return load(Config.preset("smoke", **settings), load_corpus(folder))


def test_order_is_of_seed_and_epoch(folder):
    index(folder)
    data = streamed(folder)
    order = data.order(0)
    assert order.shape == (103 // 16, 16) and len(np.unique(order)) == order.size
    assert set(order.ravel() % 113) <= set(data.train.tolist())
    again = streamed(folder)
    again.order(5)
    assert np.array_equal(again.order(0), order) and not np.array_equal(again.order(1) % 113, order % 113)
    assert not np.array_equal(streamed(folder, seed=1).order(0), order)


def naive(data: Streamed, numbers) -> list[tuple[np.ndarray, str]]:
    corpus, found = data.corpus, []
    for number in numbers:
        epochs, video = divmod(int(number), len(corpus))
        seed = (data.config.seed, epochs) if epochs else ()
        begin, end, caption = corpus.window(video, 8, *seed)
        parts = [np.load(corpus.folder / "features" / s / f"{corpus.id(video)}.npy") for s in ("look", "move")]
        found.append((np.concatenate(parts, axis=1)[begin:end].astype(np.float32), caption))
    return found


def test_a_batch_is_its_windows_whatever_was_read_before(folder):
    index(folder)
    data, other = (streamed(folder, objective="cross") for _ in range(2))
    order, _ = data.order(2), other.order(2)
    batches = {step: data.batch(order[step]) for step in range(len(order))}  # each but the first in the background
    for step in (4, 1, 2, 3, 0, 5):
        ours, again = batches[step], other.batch(order[step])
        for name in ("text", "text_mask", "video", "video_mask", "labels", "clips"):
            assert torch.equal(getattr(ours, name), getattr(again, name)), name
        windows, captions = zip(*naive(data, order[step]))
        assert np.array_equal(ours.video.numpy(), np.stack(windows)) and ours.video_mask.all()
        ids = text.token_ids(data.tokenizer, list(captions), data.config.max_tokens)
        assert [row[keep].tolist() for row, keep in zip(ours.text, ours.text_mask)] == [x.tolist() for x in ids]
        labels = text.token_ids(data.label_tokenizer, list(captions), data.config.max_tokens)
        assert [row[row != -100].tolist() for row in ours.labels] == [x.tolist() for x in labels]


def test_short_videos_are_padded_and_long_captions_cut(folder):
    index(folder)
    data = streamed(folder, max_steps=39, max_tokens=5)
    batch = data.batch(data.order(0)[0])
    steps = [int(data.corpus.steps[number % 113]) for number in batch.clips.tolist()]
    assert batch.video.shape == (16, 39, 8) and batch.video_mask.sum(1).tolist() == steps
    assert not batch.video[~batch.video_mask].any() and batch.text.shape[1] == 5


def test_statistics_are_those_of_the_windows(folder):
    index(folder)
    data = streamed(folder)
    steps = np.concatenate([values for values, _ in naive(data, data.train)])
    mean, deviation = data.statistics()
    assert np.allclose(mean, steps.mean(0), atol=1e-5) and np.allclose(deviation, steps.std(0, ddof=1), rtol=1e-4)


def test_a_video_does_not_help_to_say_its_own_words(folder):
    """Windows of earlier epochs, too: under `candidates` the past is what differs in `clips`."""
    index(folder)
    data = streamed(folder, objective="cross", support_set=40)
    before, now = data.order(0), data.order(1)[0]
    past = torch.from_numpy(np.concatenate([before[4][:14], np.setdiff1d(before, before[4])[:10]]))
    batch = data.batch(now, (past, torch.zeros(24, 32)))
    assert batch.past.video.shape == (24, 8, 8) and len(batch.past.clips) == 24
    for i, number in enumerate(now):
        for j, other in enumerate(past.tolist()):
            assert (batch.clips[i] == batch.past.clips[j]) == (number % 113 == other % 113)
    assert np.array_equal(batch.past.video.numpy(), np.stack([values for values, _ in naive(data, past)]))
    kept = streamed(folder, objective="cross", support_set=40)  # read before, not again
    for numbers in before:
        kept.batch(numbers)
    assert len(kept.past) == 40 and list(kept.past)[-16:] == before[-1].tolist()
    windows = kept.batch(now, (torch.from_numpy(before[-1]), torch.zeros(16, 32))).past.video
    assert np.array_equal(windows.numpy(), np.stack([values for values, _ in naive(data, before[-1])]))


def test_states_of_a_frozen_encoder_are_computed_in_the_step(folder, tmp_path):
    index(folder)
    tokenizer = text.fit_tokenizer([" ".join(WORDS)] * 9, 400)
    sizes = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    data = streamed(folder, text_encoder=str(tmp_path / "encoder"), freeze_text=True)
    numbers = data.order(0)[0]
    batch = data.batch(numbers)
    assert batch.text.shape[2] == data.text_width == 12
    for (_, caption), row, keep in list(zip(naive(data, numbers), batch.text, batch.text_mask))[:4]:
        ids = text.token_ids(data.tokenizer, [caption], data.config.max_tokens)[0]
        with torch.no_grad():
            alone = data.encoder(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        assert torch.allclose(row[keep], alone, atol=1e-5) and not batch.text.requires_grad
    assert fit(data.config, data.corpus, quiet=True).metrics["n_queries"] == 5


@pytest.mark.parametrize("changes, message", [({"epoch": "pairs"}, "set epoch = 'clips'"),
                                              ({"intra": True, "contrast": "triplet"}, "intra = True needs two"),
                                              ])  # fmt: skip
def test_what_cannot_be_is_refused(folder, changes, message):
    index(folder)
    with pytest.raises(ConfigError, match=message):
        streamed(folder, **changes)
    with pytest.raises(CorpusError, match="no stream 'sound'"):
        streamed(folder, streams=("sound",))


def test_a_tokenizer_sees_training_narrations_alone(folder, content, monkeypatch):
    corpus = opened(folder)
    lines = streamed(folder).sample()
    wanted = [line for i in corpus.split("train").tolist() for line in content[corpus.id(i)]["text"]]
    assert sorted(lines) == sorted(wanted)  # all of so few
    monkeypatch.setattr("ssb.training.streamed.NARRATIONS", 50)
    assert len(streamed(folder).sample()) == 50


# Kills


KILLED = """
import sys, time
from pathlib import Path
from ssb.corpora.howto100m.index import index
def say(line):
    if line.startswith("shard 3"):
        print("three", flush=True)
        time.sleep(600)
index(Path(sys.argv[1]), log=say, shard=17)
"""


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_killed_index_goes_on(folder, content, tmp_path, form):
    if form == "csv":
        (folder / "caption.json").unlink()
        write_csvs(folder, content)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "three\n"
        child.send_signal(signal.SIGKILL)
    shards = folder / "index" / "shards"
    assert child.returncode == -signal.SIGKILL and len(list(shards.glob("0*"))) == 3
    with pytest.raises(CorpusError, match="no index"):
        load_corpus(folder)
    (shards / ".00003.99-abc").mkdir()  # as a process killed while it wrote
    ages = {path: path.stat().st_mtime_ns for path in shards.glob("0*/*")}
    assert "continues after 3 shards" in index(folder)
    assert all(path.stat().st_mtime_ns == age for path, age in ages.items()) and not list(shards.glob(".*"))
    index(whole)
    same_index(folder, whole, "shards", "found")


def test_a_damaged_part_of_an_index_is_named_and_made_again(folder, tmp_path, capsys):
    whole = shutil.copytree(folder, tmp_path / "whole")
    for each in (folder, whole):
        index_module.index(each, log=lambda line: None, shard=17)
    parts = ["found", *(f"shards/0000{number}" for number in (0, 3, 6))]
    for part in parts:
        path = sorted(path for path in (folder / "index" / part).iterdir() if path.stat().st_size)[-2]
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        with pytest.raises(CorpusError, match=rf"{part} is damaged \({path.name} is not as it was written\): run `ssb"):
            load_corpus(folder)
        index_module.index(folder, log=lambda line: None, shard=17)
        same_index(folder, whole, "shards", "found")
        assert load_corpus(folder).fingerprint == load_corpus(whole).fingerprint
    (folder / "caption.json").unlink()
    (folder / "index" / "shards" / "00002" / "text.txt").write_text("")
    with pytest.raises(CorpusError, match="neither caption.json nor captions/; put the narrations"):
        index(folder)


def test_a_large_index_is_looked_through_once(folder, monkeypatch):
    index(folder)
    monkeypatch.setattr(shards_module, "SMALL", 0)
    first, looked = load_corpus(folder).fingerprint, []
    monkeypatch.setattr(shards_module.files, "damage", counted(files.damage, looked, folder / "index"))
    assert load_corpus(folder).fingerprint == first and not looked
    path = folder / "index" / "found" / "rows.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(CorpusError, match="found is damaged"):
        load_corpus(folder)


def counted(damage, calls: list, within: Path):
    """`damage` that notes folders within one."""

    def call(path: Path):
        calls.extend([path] * path.is_relative_to(within))
        return damage(path)

    return call


def test_two_processes_index_one_after_the_other(folder):
    """The second waits, and finds all done."""
    code = KILLED.replace("time.sleep(600)", "time.sleep(3)")
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "three\n"
        lines = []
        index_module.index(folder, log=lines.append, shard=17)
    assert child.returncode == 0 and lines[0].startswith(f"{folder} is being indexed by process {child.pid} on ")
    assert not any(line.startswith("shard") for line in lines)


def test_other_narrations_are_indexed_anew(folder, content):
    index(folder)
    assert not any("changed" in line or line.startswith("shard") for line in index(folder))
    content[FIRST]["text"][0] = "other words"
    (folder / "caption.json").write_text(json.dumps(content))
    assert any("has changed since it was indexed" in line for line in index(folder))
    assert load_corpus(folder).narrations(0)[1][0] == "other words"
    (folder / "caption.json").unlink()
    assert "the narrations have been indexed and deleted; the index is used" in index(folder)[0]


TRAINING = """
import json, sys, time
from ssb import Config, load_corpus
from ssb.training import loop as train
train.CHECKPOINT_SECONDS = 0
step = train.Training.take_step
def slowly(self, captions):
    step(self, captions)
    print(self.epoch, self.step, flush=True)
    time.sleep(0.05)
train.Training.take_step = slowly
train.fit(Config(**json.loads(sys.argv[1])), load_corpus(sys.argv[2]), quiet=True)
"""


def bits(run) -> dict[str, bytes]:
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(run.folder / "model.safetensors").items()}
    texts = {name: (run.folder / name).read_bytes() for name in ("metrics.json", "log.csv", "trace.csv")}
    return weights | texts | {name: ranks.tobytes() for name, ranks in run.ranks.items()}


def test_a_killed_training_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    """With a support set that reaches back beyond the kill."""
    corpus = opened(folder)
    config = Config.preset("smoke", corpus=str(folder), batch=16, support_set=40, epochs=3)
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "killed"))
    command = [sys.executable, "-c", TRAINING, config.model_dump_json(), folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) as child:
        assert any(line.split() == ["1", "3"] for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    (partial,) = files.runs().glob("*")
    assert partial.suffix == ".part"
    resumed = fit(config, quiet=True)
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "unbroken"))
    unbroken = fit(config, quiet=True)
    assert bits(resumed) == bits(unbroken)
    model, data = unbroken.load()
    c_t, c_v, clip = data.embed(model, "test")
    assert isinstance(data, Streamed) and c_t.shape == c_v.shape == (5, 32) and clip.tolist() == [0, 1, 2, 3, 4]
    again = data.embed(model, "test")
    assert torch.equal(c_t, again[0]) and torch.equal(c_v, again[1])
    nan(move(folder, corpus.id(int(corpus.split("train")[0]))))
    with pytest.raises(CorpusError, match="NaN or infinity"):
        fit(config.replace(seed=1), quiet=True)


# Size


PEAK = """
import json, sys
from pathlib import Path
from ssb.bench import howto100m as bench
from ssb.corpora.howto100m.index import index
from ssb.machine import peak_memory
folder = Path(sys.argv[2])
if sys.argv[1] == "index":
    index(folder, shard=500)
    reader = 0
else:
    reader = bench.reading(folder, 10**9)["reader"]
print(json.dumps(peak_memory() / 2**20 + reader))
"""


def peak(work: str, folder: Path) -> float:
    done = subprocess.run([sys.executable, "-c", PEAK, work, folder], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """An index of 70 MB more, each video of which is read, takes no more than a few of them in memory."""
    sizes, peaks = [], {"index": [], "read": []}
    for videos in (600, 5600):
        folder = tmp_path / str(videos) / "howto100m"
        benchmark.synthesise(folder, videos, 40, words=50)
        for work, found in peaks.items():
            found.append(peak(work, folder))
        sizes.append(sum(path.stat().st_size for path in (folder / "index").rglob("*")) / 2**20)
    assert sizes[1] - sizes[0] > 60
    for work, (small, large) in peaks.items():
        assert large - small < 0.3 * (sizes[1] - sizes[0]), (work, small, large, sizes)


def test_a_small_benchmark_writes_its_rows(tmp_path, capsys):
    out = tmp_path / "bench.csv"
    benchmark.bench(out, 200, 5, 5)
    frame = pd.read_csv(out)
    assert list(frame)[:6] == ["what", "median", "min", "max", "ratio", "unit"]
    assert frame["what"].tolist() == [
        "index: time", "order of an epoch",
        "received, one reader", "received, two readers", "batches, one reader", "batches, two readers",
        "processor time of a batch: readers", "processor time of a batch: training",
        "memory of a reader", "peak: alone", "peak: indexing", "peak: reading",
    ]  # fmt: skip
    median = frame["median"]
    quotients = [1, median[3] / median[2], 1, median[5] / median[4], *median[8:] / median[9]]
    assert frame["ratio"].dropna().tolist() == pytest.approx(quotients, rel=2e-3)
    assert (frame["narrations"] == 1000).all() and frame["cpu"].notna().all() and (frame["median"] >= 0).all()
    assert frame["ratio"].iloc[-3] == 1 and (frame["ratio"].iloc[-2:] > 0.9).all()
    assert [path.name for path in tmp_path.iterdir()] == ["bench.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("videos, narrations, batches, read", [(4, 1, 1, 1), (90, 3, 1000, 1), (400, 1, 3, 3)])
def test_a_benchmark_of_few_videos_reads_what_there_is(videos, narrations, batches, read, tmp_path):
    """Fewer than a batch, and fewer batches than asked for: of 90 videos 82 are trained on, of 400 there are 360."""
    frame = benchmark.bench(tmp_path / "bench.csv", videos, narrations, batches)
    assert (frame["batches"] == read).all() and (frame["narrations"] == videos * narrations).all()


def test_a_benchmark_that_would_fill_the_disk_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "synthesise", None)  # any work would fail
    with pytest.raises(BenchmarkError, match="--videos 10000000 of --narrations 10000 take 9000 GB, and .* are free"):
        benchmark.bench(tmp_path / "bench.csv", 10**7, 10**4, 1)
    assert not any(tmp_path.iterdir())
