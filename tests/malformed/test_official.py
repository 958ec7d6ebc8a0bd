"""Each file of each official reader, damaged in every way that a copy or a download goes wrong: one message that names
the file and how to fix it."""

import json
import os
import time
from pathlib import Path

import pytest

from ssb import CorpusError
from ssb.corpora import flickr8k, official
from ssb.corpora.labels import crosstask, hmdb51, ucf101
from ssb.metrics.steps import read_tasks

IDS = [f"clip{i:02d}" for i in range(6)]
LISTS = {"train": IDS[:2], "val": IDS[2:4], "test": IDS[4:]}


def sentences(clips: list[str]) -> str:
    return json.dumps(
        {"sentences": [{"video_id": clip, "caption": "some wörds"} for clip in clips]}, ensure_ascii=False
    )


def lists(ending: str, splits=LISTS) -> dict[str, str]:
    return {f"{split}{ending}": "\n".join(clips) for split, clips in splits.items()}


TRAIN, TEST = "train_val_videodatainfo.json", "test_videodatainfo.json"
PARTS = {TRAIN: sentences(IDS[:4]), TEST: sentences(IDS[4:])}
PARAGRAPHS = {name: json.dumps({f"{name}{clip}": {"sentences": ["some words"]} for clip in IDS}) for name in "ab"}
STEP = {"id": 0, "sentence": "stir", "segment": [0, 5]}
VIDEOS = {clip: {"subset": "training", "annotations": [STEP]} for clip in IDS}
VATEX = [{"videoID": clip, "enCap": ["some words"]} for clip in IDS]
FLICKR8K = {"Flickr8k.token.txt": "".join(f"{clip}.jpg#{i}\tsome wörds .\n" for clip in IDS for i in range(5))}
FLICKR8K |= {
    f"Flickr_8k.{part}Images.txt": "".join(f"{clip}.jpg\n" for clip in clips)
    for part, clips in {"train": IDS[:4], "dev": IDS[4:5], "test": IDS[5:]}.items()
}
ACTIONS = "video_id,label,split1,split2,split3\nclip00.avi,1,1,2,0\n"
READERS = {  # name → the reader, and sound files
    "msrvtt1k": (official.msrvtt1k, {TRAIN: sentences(IDS)}),
    "msrvtt_full": (official.msrvtt_full, PARTS | lists("_list_full.txt")),
    "msrvtt_1ka": (
        official.msrvtt_1ka,
        PARTS
        | {"MSRVTT_JSFUSION_test.csv": "video_id,sentence\nclip04,words\nclip05,words\n"}
        | {"MSRVTT_train.9k.csv": "video_id\n" + "\n".join(IDS[:4]), "val_list_full.txt": "\n".join(IDS[2:4])},
    ),
    "msvd": (
        official.msvd,
        {"youtube_video_to_id_mapping.txt": "\n".join(f"{clip} vid{clip}" for clip in IDS)}
        | lists("_list.txt")
        | {f"sents_{k}_lc_nopunc.txt": "\n".join(f"vid{clip}\twords" for clip in v) for k, v in LISTS.items()},
    ),
    "activitynet": (official.activitynet, {"train.json": PARAGRAPHS["a"], "val_1.json": PARAGRAPHS["b"]}),
    "youcook2": (
        official.youcook2,
        {"youcook2_youcookii_annotations_trainval.json": json.dumps({"database": VIDEOS})}
        | {"vttwins_validation_youcook.csv": "video_id,start,end,text\nclip00,0,5,stir\n"},
    ),
    "vatex": (
        official.vatex,
        {"vatex_training_v1.0.json": json.dumps(VATEX[:4]), "vatex_validation_v1.0.json": json.dumps(VATEX[4:])}
        | lists("_list.txt"),
    ),
    "vidvrd": (
        official.vidvrd,
        {"train_val_label.json": json.dumps({clip: {"captions": ["dog_run"]} for clip in IDS})},
    ),
    "flickr8k": (flickr8k.flickr8k, FLICKR8K),
    "flickr8k_confirm": (flickr8k.confirm, FLICKR8K),
    "crosstask": (crosstask, {"crosstask.csv": "video_id,task_id,start,end,text\nclip00,1,0,3,stir\n"}),
    "crosstask tasks": (
        lambda home: read_tasks(home / "tasks_primary.txt"),
        {"tasks_primary.txt": "1\ntitle\nhttp://x\n2\nstir,pour\n"},
    ),
    "ucf101": (ucf101, {"ucf101_classInd.txt": "1 Run\n", "vttwins_ucf.csv": ACTIONS}),
    "hmdb51": (hmdb51, {"vttwins_hmdb51.csv": ACTIONS}),
}


def pipe(path: Path):
    path.unlink()
    os.mkfifo(path)


def folder(path: Path):
    path.unlink()
    path.mkdir()


PAGE = "<!DOCTYPE html>\n<html><body>404: not found</body></html>"
DAMAGES = {  # how a file is damaged, and how the message says to fix it
    "gone": (Path.unlink, "no such file; (wanted|`ssb data` lists)"),
    "empty": (lambda path: path.write_text(""), "download it again|copy it again|save it as|wanted"),
    "a web page": (lambda path: path.write_text(PAGE), "a web page, not the file itself; (download|save)"),
    "UTF-16": (lambda path: path.write_text(path.read_text(), "utf-16"), "it is UTF-16.; save it as UTF-8"),
    "latin-1": (lambda path: path.write_bytes(path.read_bytes() + b"caf\xe9"), "is not UTF-8.; save it as UTF-8"),
    "NUL": (lambda path: path.write_bytes(path.read_bytes()[:-3] + bytes(3)), "a NUL character.; save it as UTF-8"),
    "zeros": (lambda path: path.write_bytes(bytes(100_000)), "a NUL character.; save it as UTF-8"),
    "a pipe": (pipe, "(not a regular file|no such file)"),
    "a folder": (folder, "(not a regular file|no such file)"),
}
JSON = {
    "cut": (lambda path: path.write_text(path.read_text()[:-5]), "not readable as JSON .*; download it again"),
    "deep nesting": (lambda path: path.write_text("[" * 10**5 + "]" * 10**5), "not readable as JSON .*; download it"),
    "a number": (lambda path: path.write_text("7"), "wanted"),
    "null": (lambda path: path.write_text("null"), "wanted"),
    "a list of lists": (lambda path: path.write_text("[[1]]"), "wanted"),
}
OTHERS = {  # names of which the reader takes the first that is there; a message names the last
    TRAIN: "train_val_annotation.zip",
    TEST: "test_videodatainfo.json.zip",
}
CASES = [
    (reader, name, damage)
    for reader, (_, contents) in READERS.items()
    for name in contents
    for damage in (DAMAGES | JSON if name.endswith(".json") else DAMAGES)
]


def written(reader: str, home: Path):
    call, contents = READERS[reader]
    for name, content in contents.items():
        (home / name).write_text(content)
    return call


@pytest.mark.parametrize("reader", READERS)
def test_the_files_are_sound(reader, tmp_path):
    assert len(written(reader, tmp_path)(tmp_path)) > 0


@pytest.mark.parametrize("reader, name, damage", CASES, ids=map("-".join, CASES))
def test_a_damaged_official_file(reader, name, damage, tmp_path, home):
    call, begun = written(reader, tmp_path), time.monotonic()
    change, fix = (DAMAGES | JSON)[damage]
    change(tmp_path / name)
    absent = damage in ("gone", "a pipe", "a folder")
    named = OTHERS.get(name, name) if absent else name
    with pytest.raises(CorpusError, match=f"{named}: .*{fix}" if damage == "gone" else f"{named}.*{fix}") as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 and time.monotonic() - begun < 10
    assert not any(home.iterdir())
