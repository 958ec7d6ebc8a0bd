"""Whatever is wrong with the files of a corpus: one message within ten seconds that names the file, or the clip in it,
and how to fix it; nothing is written but lists of clips without features."""

import io
import json
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import write_corpus

from ssb import ConfigError, CorpusError, ModelError, load_corpus, text
from ssb.corpora import features, labels, official
from ssb.corpora.howto100m.index import index
from ssb.metrics import steps
from ssb.training import identity
from ssb.training.runs import finished_run


def put(name: str, content: str | bytes):
    """Write a file of the folder."""

    def damage(home: Path):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def change(name: str, old: str, new: str, count: int = 1):
    def damage(home: Path):
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new, count))

    return damage


def beyond(home: Path):
    """A number that float32 holds and whose square it does not."""
    path = home / "features/look.npy"
    values = np.load(path).astype(np.float32)
    values[3, 0, 0] = -1e20
    np.save(path, values)


def encoded(name: str, encoding: str):
    return lambda home: (home / name).write_bytes((home / name).read_text().replace("clip00", "café").encode(encoding))


def pipe(name: str):
    def damage(home: Path):
        (home / name).unlink()
        os.mkfifo(home / name)

    return damage


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """A .npy file of this shape without its values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def rows(change, name: str = "features/look.npy"):
    def damage(home: Path):
        values = np.load(home / name)
        change(values)
        np.save(home / name, values)

    return damage


def three_broken(values):
    values[1], values[4, 2, 3], values[10] = 0, np.nan, np.inf


def large_zip(home: Path):
    """A zip of a few KB that says that it holds 8 GB of JSON."""
    path = home / "train_val_annotation.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", " " * 1000)
    content, size = bytearray(path.read_bytes()), struct.pack("<I", (1 << 32) - 2)
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        begin = content.index(mark) + at
        content[begin : begin + 4] = size
    path.write_bytes(content)


DEEP = "[" * 100_000 + "]" * 100_000
FOLDER = {
    "a comma more": (change("captions.csv", "number 02", "number 02, too"), r"captions\.csv, line 6: 3 cells.*quotes"),
    "a comma at the end": (change("captions.csv", "number 02\n", "number 02,\n"), r"captions\.csv, line 6: 3 cells"),
    "a row cut": (change("captions.csv", "clip03,a red thing number 03", "clip03"), r"captions\.csv, line 8: 1 cells"),
    "an open quote": (
        change("captions.csv", "a red thing number 02", '"a red'),
        r"captions\.csv, line 6: .*close the q",
    ),
    "two open quotes": (
        lambda home: [
            change("captions.csv", f",{words}", f',"{words}')(home)
            for words in ("a red thing number 02", "one blue thing number 04")
        ],
        r"captions\.csv, line 6: .*close the quote",
    ),
    "a quote over rows that ends a later one": (
        lambda home: [
            change("captions.csv", ",a red thing number 02", ',"a red')(home),
            change("captions.csv", "blue thing number 04", 'blue"')(home),
        ],
        r"captions\.csv, line 6: a quoted text goes on over further lines; put it on one line, or close",
    ),
    "semicolons": (
        change("captions.csv", ",", ";", 99),
        r"captions\.csv: columns are 'clip;text'; .*save it with commas",
    ),
    "tabs": (
        change("captions.csv", ",", "\t", 99),
        r"captions\.csv: columns .*separated by '\\t', save it with commas",
    ),
    "a column twice": (
        change("captions.csv", "clip,text", "text,text"),
        r"captions\.csv: column 'text' is there twice",
    ),
    "NUL": (change("captions.csv", "number 02", "number\0"), r"captions\.csv: .*line 6: a NUL character.*save it as"),
    "UTF-16 captions": (encoded("captions.csv", "utf-16"), r"captions\.csv: .*it is UTF-16\); save it as UTF-8"),
    "latin-1 captions": (encoded("captions.csv", "latin-1"), r"captions\.csv: .*line 2: byte 0xe9 is not UTF-8"),
    "no rows": (put("captions.csv", "clip,text\n"), r"captions\.csv: no rows; write one for each clip"),
    "videos that differ": (
        lambda home: put(
            "captions.csv",
            "clip,text,video\n" + "".join(f"clip{i:02d},words,{k * (i == 3)}\n" for i in range(12) for k in range(2)),
        )(home),
        r"mine: the captions of clip 'clip03' name several videos",
    ),
    "UTF-16 ids": (encoded("features/look.ids.txt", "utf-16"), r"look\.ids\.txt: .*it is UTF-16\); save it as UTF-8"),
    "latin-1 ids": (
        encoded("features/look.ids.txt", "latin-1"),
        r"look\.ids\.txt: .*line 1: byte 0xe9.*save it as UTF",
    ),
    "a blank line": (
        change("features/look.ids.txt", "clip03\n", "clip03\n\n"),
        r"look\.ids\.txt: line 5 is blank; write",
    ),
    "an id that leads out": (
        change("features/look.ids.txt", "clip03", "../../x"),
        r"ids\.txt: clip id '../../x'; wanted",
    ),
    "an absolute id": (
        change("split.json", "clip03", "/etc/x"),
        r"split\.json: clip id '/etc/x'; wanted names without",
    ),
    "UTF-16 lengths": (
        put("features/look.lengths.txt", ("5\n" * 12).encode("utf-16")),
        r"lengths\.txt: .*it is UTF-16",
    ),
    "a key twice": (change("split.json", '"val"', '"train"'), r"split\.json: .*key 'train' is there twice; keep one"),
    "UTF-16 split": (encoded("split.json", "utf-16"), r"split\.json: .*it is UTF-16\); save it as UTF-8"),
    "deep nesting": (put("split.json", DEEP), r"split\.json: not readable as JSON \(RecursionError.*download"),
    "an id that is null": (change("split.json", '"clip03"', "null"), r"split\.json: train holds None; wanted clip ids"),
    "an id that is a list": (
        change("split.json", '"clip03"', '["clip03"]'),
        r"split\.json: train holds \['clip03'\]; w",
    ),
    "numbers beyond float32": (beyond, r"look\.npy: .*'clip03' \(numbers beyond 1e\+15\)"),
    "half an id": (
        change("split.json", "clip03", "\\ud83d"),
        r"split\.json: train\[3\] is '\\ud83d', with half a char",
    ),
    "a pipe of features": (pipe("features/look.npy"), r"look\.npy: not a regular file; copy the file itself"),
    "a pipe of captions": (pipe("captions.csv"), r"captions\.csv: not a regular file; copy the file itself"),
    "a huge shape": (
        put("features/look.npy", header((12, 1 << 40, 6))),
        r"look\.npy: not a complete .npy array .*copy",
    ),
    "a shape that overflows": (
        put("features/look.npy", header((12, 1 << 33, 1 << 33))),
        r"look\.npy: not a complete .npy",
    ),
    "a negative shape": (put("features/look.npy", header((12, -1, 6)) + b"0" * 999), r"look\.npy: not a complete .npy"),
    "broken features": (
        rows(three_broken),
        r"look\.npy: no usable features for 3 of 12 clips .*'clip01' \(all zero\), 'clip04' \(NaN or infinity\), "
        r"'clip10' \(NaN or infinity\); extract them .*all in results/cache/missing/mine-look\.txt$",
    ),
    "clips without steps": (
        put("features/look.lengths.txt", "5\n" * 10 + "0\n0\n"),
        r"2 of 12 clips .*'clip10' \(no steps\), 'clip11' \(no s",
    ),
    "a stream twice": (lambda home: None, r"mine: streams name 'look' twice; name each once"),
    "a pattern without a group": (lambda home: None, r"video = 'clip.*': does not give the video of clip 'clip00'"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(call, home: Path, message: str, writes: Path):
    before, begun = content(writes), time.monotonic()
    with pytest.raises(CorpusError, match=message) as caught:
        call()
    assert time.monotonic() - begun < 10 and "\n" not in str(caught.value)
    assert content(writes) == before
    assert not [name for name in content(home) if not name.startswith("results/cache/missing/")]
    str(caught.value).encode()  # it can be printed


@pytest.mark.parametrize("damage, message", FOLDER.values(), ids=FOLDER)
def test_malformed_corpora(small_folder, home, damage, message):
    damage(small_folder)

    def call():
        options = {"video": "clip.*"} if "video = " in message else {}
        load_corpus(small_folder, **options).features(("look", "look") if "streams name" in message else ())

    refused(call, home, message, small_folder)


# The official files

MSRVTT = {"sentences": [{"video_id": f"clip{i:02d}", "caption": "words"} for i in range(12)]}


def changed(row: int, **fields) -> str:
    sentences = [dict(sentence) for sentence in MSRVTT["sentences"]]
    sentences[row] |= fields
    return json.dumps({"sentences": sentences})


TRAIN, TEST = "train_val_videodatainfo.json", "test_videodatainfo.json"
YOUCOOK = {"database": {"v": {"subset": "training", "annotations": [{"id": 0, "sentence": ["a"], "segment": [0, 1]}]}}}
OFFICIAL = {
    "msrvtt: half a character": (
        "msrvtt",
        {TRAIN: changed(3, caption="a \ud83d")},
        rf"{TRAIN}: sentences\[3\].caption, "
        r"of clip 'clip03', is 'a \\ud83d', with half a character .*delete it",
    ),
    "msrvtt: a list of captions": (
        "msrvtt",
        {TRAIN: changed(3, caption=["a"])},
        rf"{TRAIN}: not the MSR-VTT .*wanted a t",
    ),
    "msrvtt: a number as clip": (
        "msrvtt",
        {TRAIN: changed(3, video_id=3)},
        rf"{TRAIN}: not the MSR-VTT .*wanted a text, ",
    ),
    "msrvtt: one file for both": (
        "msrvtt_full",
        {TRAIN: changed(0), TEST: changed(0)},
        rf"{TEST}: clip 'clip00', .* is in "
        rf"{TRAIN} too; if one file holds all clips, rename it MSRVTT_data.json and delete",
    ),
    "msrvtt: deep nesting": ("msrvtt", {TRAIN: DEEP}, rf"{TRAIN}: not readable as JSON \(RecursionError"),
    "msrvtt: latin-1": (
        "msrvtt",
        {TRAIN: changed(0).replace("words", "é").encode("latin-1")},
        rf"{TRAIN}: .*not UTF-8",
    ),
    "msrvtt: 8 GB in a zip": ("msrvtt", large_zip, r"train_val_annotation\.zip: 4\.3 GB of text.*download it again"),
    "msrvtt: a clip twice in a list": (
        "msrvtt_full",
        {TRAIN: changed(0), TEST: '{"sentences": []}', "train_list_full.txt": "a\na\n"},
        r"train_list_full\.txt: duplicate clip id 'a'; keep one",
    ),
    "msvd: UTF-16 list": (
        "msvd",
        {"youtube_video_to_id_mapping.txt": "a vid1\n", "train_list.txt": "a".encode("utf-16")},
        r"train_list\.txt: .*it is UTF-16\); save it as UTF-8",
    ),
    "msvd: a map of one column": (
        "msvd",
        {"youtube_video_to_id_mapping.txt": "a\n"},
        r"mapping\.txt: not the MSVD id map",
    ),
    "activitynet: a string": (
        "activitynet",
        {"train.json": '{"v_a": {"sentences": "a b"}}'},
        r"train\.json: not an Act.*li",
    ),
    "activitynet: a key twice": (
        "activitynet",
        {"train.json": '{"v": {"sentences": []}, "v": {"sentences": []}}'},
        r"train\.json: .*key 'v' is there twice",
    ),
    "youcook2: a list": (
        "youcook2",
        {"youcookii_annotations_trainval.json": json.dumps(YOUCOOK)},
        r"trainval\.json: not the YouCook2 annotation.*wanted a text",
    ),
    "vatex: a string": (
        "vatex",
        {"vatex_training_v1.0.json": '[{"videoID": "a", "enCap": "words"}]'},
        r"v1\.0\.json: not the VATEX captions.*wanted a list of texts",
    ),
    "vidvrd: a string": (
        "vidvrd",
        {"train_val_label.json": '{"a": {"captions": "dog_run"}}'},
        r"label\.json: not the VidVRD labels.*wanted a list of texts",
    ),
    "vidvrd: half a character": (
        "vidvrd",
        {"train_val_label.json": '{"a": {"captions": ["\\ud83d"]}}'},
        r"label\.json: a\.captions\[0\] is .* half a character",
    ),
    "crosstask: before the video": (
        "crosstask",
        {"crosstask.csv": "video_id,task_id,start,end,text\nv,1,-5,3,stir\n"},
        r"crosstask\.csv: a step of video 'v' is not between 0 and 1,000,000 seconds; fix or",
    ),
    "crosstask: beyond any video": (
        "crosstask",
        {"crosstask.csv": "video_id,task_id,start,end,text\nv,1,0,1e15,stir\n"},
        r"crosstask\.csv: a step of video 'v' is not between 0 and 1,000,000 seconds; fix or",
    ),
    "crosstask: a task twice": (
        "tasks",
        {"tasks_primary.txt": "1\nt\na\n1\nx\n1\nt\na\n1\ny\n"},
        r"tasks_primary\.txt: not the CrossTask tasks: .*a task is there twice",
    ),
    "ucf101: no rows": (
        "ucf101",
        {"classInd.txt": "1 Run\n", "vttwins_ucf.csv": "video_id,label,split1,split2,split3\n"},
        r"vttwins_ucf\.csv: no rows; ",
    ),
    "hmdb51: half a row": (
        "hmdb51",
        {"vttwins_hmdb51.csv": "video_id,label,split1,split2,split3\na.avi,run,1\n"},
        r"vttwins_hmdb51\.csv, line 2: 3 cells, the header has 5",
    ),
    "hmdb51: a path that leads out": (
        "hmdb51",
        {"vttwins_hmdb51.csv": "video_id,label,split1,split2,split3\n...avi,r,1,1,1"},
        r"vttwins_hmdb51\.csv: clip id '\.\.'; wanted names without",
    ),
}
READERS = {
    "msrvtt": lambda home: official.msrvtt_captions(home, "train_val"),
    "msrvtt_full": official.msrvtt_full,
    **{name: getattr(official, name) for name in ("msvd", "activitynet", "youcook2", "vatex", "vidvrd")},
    **{name: getattr(labels, name) for name in ("crosstask", "ucf101", "hmdb51")},
    "tasks": lambda home: steps.read_tasks(home / "tasks_primary.txt"),
}


@pytest.mark.parametrize("reader, contents, message", OFFICIAL.values(), ids=OFFICIAL)
def test_malformed_official_files(tmp_path, home, reader, contents, message):
    folder = tmp_path / "files"
    folder.mkdir()
    if callable(contents):
        contents(folder)
    else:
        for name, text in contents.items():
            put(name, text)(folder)
    refused(lambda: READERS[reader](folder), home, message, folder)


# HowTo100M: a video that cannot be used is skipped, and listed with the reason

HEADER = "start,end,text\n"
NARRATIONS = {
    "unquoted commas": (
        HEADER + "0,5,take the flour, sugar and eggs\n",
        "line 2: 4 cells, the header has 3; put quotes",
    ),
    "a short row": (HEADER + "0,5,hello\n5,9\n", "line 3: 2 cells, the header has 3"),
    "an open quote": (HEADER + '0,5,"open\n5,9,mix\n', "line 2: unexpected end of data; close the quote"),
    "a quote over rows": (HEADER + '0,5,"open\n5,9,mix"\n', "line 2: a quoted text goes on over further lines"),
    "semicolons": (
        HEADER.replace(",", ";") + "0;5;hello\n",
        "columns are 'start;end;text'; wanted start, end, text, sep",
    ),
    "other names": (HEADER.title() + "0,5,hello\n", "columns are 'Start', 'End', 'Text'; wanted start, end, text"),
    "minutes": (HEADER + "00:05,9,mix\n", "a start or end is not a number"),
    "UTF-16": ((HEADER + "0,5,hello\n").encode("utf-16"), "it is UTF-16); save it as UTF-8"),
    "latin-1": ((HEADER + "0,5,café\n").encode("latin-1"), "line 2: byte 0xe9 is not UTF-8); save it as UTF-8"),
    "NUL": (HEADER + "0,5,a\0b\n", "line 2: a NUL character"),
}


@pytest.mark.parametrize("text, message", NARRATIONS.values(), ids=NARRATIONS)
def test_malformed_narrations(tmp_path, home, text, message):
    for i in range(8):
        put(f"captions/video{i}.csv", HEADER + "0,5,take the flour\n")(tmp_path)
        put(f"features/look/video{i}.npy", b"")(tmp_path)
        np.save(tmp_path / "features" / "look" / f"video{i}.npy", np.ones((9, 4), np.float32))
    put("captions/video3.csv", text)(tmp_path)
    begun = time.monotonic()
    index(tmp_path, log=lambda line: None)
    (line,) = (tmp_path / "index" / "skipped.txt").read_text().splitlines()
    assert line.startswith("video3\t") and message in line and time.monotonic() - begun < 10


def test_broken_clips_are_left_out_by_name(small_folder, home, capsys):
    rows(three_broken)(small_folder)
    corpus = load_corpus(small_folder, missing="drop")
    assert corpus.clips == [f"clip{i:02d}" for i in (0, 2, 3, 5, 6, 7, 8, 9, 11)]
    listing = home / "results" / "cache" / "missing" / "mine-look.txt"
    assert listing.read_text() == "clip01\tall zero\nclip04\tNaN or infinity\nclip10\tNaN or infinity\n"
    assert "left out, as they have no usable features: train 2 of 6" in capsys.readouterr().out


def test_what_was_found_in_large_streams_is_kept_as_long_as_they_are_the_same(small_folder, monkeypatch):
    monkeypatch.setattr(features, "SMALL", 0)
    rows(three_broken)(small_folder)
    looked, examined = [], features.examined
    monkeypatch.setattr(features, "examined", lambda *args: looked.append(args[0].name) or examined(*args))
    for _ in range(2):
        assert len(load_corpus(small_folder, missing="drop").clips) == 9
    assert sorted(looked) == ["look.npy", "move.npy"]
    np.save(small_folder / "features" / "look.npy", np.ones((12, 5, 6), np.float32))
    assert len(load_corpus(small_folder).clips) == 12 and len(looked) == 3


def test_one_file_of_all_clips_is_read_once(tmp_path):
    everything = {"sentences": [{"video_id": f"video{i}", "caption": "words"} for i in range(20)]}
    put("MSRVTT_data.json", json.dumps(everything))(tmp_path)
    assert len(official.msrvtt_captions(tmp_path, "train_val", "test")) == 20


def test_write_corpus_is_sound(tmp_path):
    assert len(load_corpus(write_corpus(tmp_path / "sound")).clips) == 12


LONG = ["x" * 300, "ä" * 200, "a/" * 3000, "x" * 300 + "/y", "half\0"]


@pytest.mark.parametrize("name", LONG, ids=lambda name: ascii(name[:5]))
def test_a_name_that_no_file_can_have_is_no_corpus(name):
    with pytest.raises(CorpusError, match="^no corpus '.* nor a folder") as caught:
        load_corpus(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LONG, ids=lambda name: ascii(name[:5]))
def test_a_name_that_no_file_can_have_is_no_run_and_no_model(name):
    with pytest.raises(ConfigError, match="^pretrained = .*no such finished run"):
        finished_run(name)
    with pytest.raises(ModelError, match="^cannot load '"):
        text.tokenizer(name, [], 0)
    assert isinstance(identity.model_content(name), str)
