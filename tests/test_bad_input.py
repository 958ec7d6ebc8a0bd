"""Whatever is wrong with the input: an error of the library's own that names the file or setting and how to fix it."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ssb
from ssb import Config, ConfigError, CorpusError, ModelError, files, fit, load_corpus
from ssb.__main__ import main
from ssb.corpora import official

LOOK = "features/look.npy"


def text(name: str, old: str, new: str):
    """Put other words into a file."""

    def damage(folder: Path):
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))

    return damage


def whole(name: str, content: str | bytes):
    def damage(folder: Path):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def gone(name: str):
    return lambda folder: (folder / name).unlink()


def array(change, name: str = LOOK):
    """Save an array changed."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)), allow_pickle=True)


def cut(name: str, share: float):
    def damage(folder: Path):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def split(**changes):
    def damage(folder: Path):
        content = json.loads((folder / "split.json").read_text())
        (folder / "split.json").write_text(json.dumps(content | changes))

    return damage


def hole(value: float):
    def change(values):
        values[3, 1, 2] = value
        return values

    return change


def apart(change=lambda values: values, clip: str = "clip03"):
    """The stream `look` as one file a clip, one of them changed; None: not there."""

    def damage(folder: Path):
        values = np.load(folder / LOOK)
        (folder / "features" / "look").mkdir()
        for i, x in enumerate(values):
            np.save(folder / "features" / "look" / f"clip{i:02d}.npy", x)
        (folder / LOOK).unlink()
        path = folder / "features" / "look" / f"{clip}.npy"
        changed = change(np.load(path))
        if changed is None:
            path.unlink()
        else:
            np.save(path, changed)

    return damage


def archive_as_array(folder: Path):
    with open(folder / LOOK, "wb") as file:
        np.savez(file, look=np.ones((12, 5, 6), np.float32))


def clips(*numbers: int) -> list[str]:
    return [f"clip{i:02d}" for i in numbers]


def unusable(stream: str, clip: str, why: str) -> str:
    return rf"{stream}: no usable features for 1 of 12 clips .*'{clip}' \({why}\); extract them or leave"


FOLDER = {
    "no captions": (gone("captions.csv"), "captions.csv: no such file; wanted a table with the columns clip, text"),
    "other columns": (text("captions.csv", "clip,text", "id,text"), "captions.csv: columns are 'id', 'text'; wanted"),
    "an empty table": (whole("captions.csv", ""), r"captions.csv: not a readable CSV .*save it"),
    "another encoding": (whole("captions.csv", "clip,text\nclip00,café".encode("latin-1")), r"csv: not a.*UTF-8"),
    "ragged rows": (text("captions.csv", "clip01,", "clip01,a,b,"), r"captions.csv, line 4: 4 cells, the header has 2"),
    "an empty caption": (text("captions.csv", "a red thing number 02", " "), "empty caption of clip 'clip02'; write"),
    "half a row": (
        text("captions.csv", "clip02,a red thing number 02", "clip02"),
        "captions.csv, line 6: 1 cells, the header has 2",
    ),
    "a clip without caption": (
        whole("captions.csv", "clip,text\n" + "".join(f"clip{i:02d},words\n" for i in range(12) if i != 4)),
        "no caption for clip 'clip04'; write one or leave",
    ),
    "no split": (gone("split.json"), "split.json: no such file; "),
    "broken JSON": (text("split.json", "]", ""), r"split.json: not readable as JSON \(.*line 1 column"),
    "no val": (text("split.json", '"val"', '"dev"'), r'split.json: wanted {"train": \[ids\], "val": \[ids\]'),
    "a list": (whole("split.json", "[]"), r'split.json: wanted {"train": \[ids\]'),
    "null": (split(val=None), r'split.json: wanted {"train": \[ids\]'),
    "one id instead of a list": (split(val="clip06"), r'split.json: wanted {"train": \[ids\]'),
    "an empty split": (split(val=[]), r"split 'val' is empty"),
    "a clip twice": (split(val=clips(6, 7, 7)), r"split.json: clip 'clip07' is twice in 'val'; keep it in one place"),
    "a clip in two splits": (
        split(test=clips(9, 10, 0)),
        r"split.json: clip 'clip00' is in 'train' and again in 'test'; keep it in one place",
    ),
    "an unknown clip": (
        split(val=["clip06", "clip7"]),
        r"look.npy: no features for 1 of 11 clips \(9.1 %\): 'clip7'; .*; extract them or leave",
    ),
    "no features": (lambda folder: (folder / "features").rename(folder / "old"), "features: no feature stream; put"),
    "clips without features": (
        split(val=clips(6, *range(20, 28))),
        r"look.npy: no features for 8 of 18 clips \(44.4 %\): 'clip20', .*'clip24' and 3 more; .*; extract them or l",
    ),
    "no ids": (gone("features/look.ids.txt"), "look.ids.txt: no such file; wanted the clip id of each row of look.npy"),
    "too few ids": (text("features/look.ids.txt", "clip11", ""), "look.ids.txt: 11 ids for the 12 rows of look.npy"),
    "an id twice": (
        text("features/look.ids.txt", "clip11", "clip03"),
        "look.ids.txt: duplicate clip id 'clip03'; keep one of each",
    ),
    "NaN": (array(hole(np.nan)), unusable("look.npy", "clip03", r"NaN or infinity")),
    "infinity": (array(hole(np.inf)), unusable("look.npy", "clip03", r"NaN or infinity")),
    "a cut array": (cut(LOOK, 0.5), r"look.npy: not a complete .npy array \(.*\); copy or extract it again"),
    "a cut header": (cut(LOOK, 0.02), r"look.npy: not a complete .npy array \(.*\); copy or extract it again"),
    "an empty array file": (whole(LOOK, b""), r"look.npy: not a complete .npy array \(.*\); copy or extract it again"),
    "a pickle": (whole(LOOK, pickle.dumps([1])), r"look.npy: not a complete .npy array"),
    "Python objects": (array(lambda x: x.astype(object)), r"look.npy: .*[Oo]bject.*; .*again"),
    "an .npz": (archive_as_array, r"look.npy: not a complete .npy array"),
    "two axes": (array(lambda x: x[:, 0]), r"look.npy: shape \(12, 6\); wanted \(clips, steps, dim\)"),
    "no axis": (array(lambda x: x.sum()), r"look.npy: shape \(\); wanted \(clips, steps, dim\)"),
    "no steps": (array(lambda x: x[:, :0]), r"look.npy: (shape \(12, 0, 6\); wanted|not a complete .npy)"),
    "whole numbers": (array(lambda x: x.astype(np.int16)), "look.npy: holds int16; save it as float16 or float32"),
    "a length of 0": (whole("features/look.lengths.txt", "0 " * 12), r"look.npy: no usable .*'clip00' \(no steps\), "),
    "a length too long": (whole("features/look.lengths.txt", "6 " * 12), "look.*: lengths must be 12 numbers from 1"),
    "too few lengths": (whole("features/look.lengths.txt", "5 " * 11), "look.lengths.txt: not 12 whole numbers"),
    "too many lengths": (whole("features/look.lengths.txt", "5 " * 13), "look.lengths.txt: not 12 whole numbers"),
    "half a step": (whole("features/look.lengths.txt", "4.5 " * 12), "look.lengths.txt: not 12 whole numbers"),
    "streams of other lengths": (
        array(lambda x: x.repeat(3, 1), "features/move.npy"),
        r"clip 'clip00': the streams differ in steps \(.*look.npy: 5, .*move.npy: 3\)",
    ),
    "a file missing": (
        apart(lambda x: None),
        r"look: no features for 1 of 12 clips \(8.3 %\): 'clip03'; extract them or leave these clips out of the split",
    ),
    "NaN in a file": (apart(lambda x: x * np.nan), unusable("look", "clip03", r"NaN or infinity")),
    "a file of another width": (apart(lambda x: x[:, :4]), unusable("look", "clip03", r"4 wide, most are 6")),
    "a file of one axis": (
        apart(lambda x: x[0]),
        unusable("look", "clip03", r"shape \(6,\); wanted \(steps, dim\), .*"),
    ),
    "a first file of no axis": (
        apart(lambda x: x.sum(), "clip00"),
        unusable("look", "clip00", r"shape \(\); wanted \(steps, dim\), .*"),
    ),
    "a file of no steps": (
        apart(lambda x: x[:0]),
        unusable("look", "clip03", r"(shape \(0, 6\); wanted|not a complete .npy).*"),
    ),
    "a file of whole numbers": (
        apart(lambda x: x.astype(np.uint8)),
        unusable("look", "clip03", r"holds uint8; save it as float16 or float32"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, words", FOLDER.values(), ids=FOLDER)
def test_a_folder(small_folder, damage, words):
    damage(small_folder)
    with pytest.raises(CorpusError) as caught:
        load_corpus(small_folder).features()
    assert re.search(words, str(caught.value)), str(caught.value)


@pytest.fixture
def annotated(small_folder, monkeypatch) -> Path:
    """The files of msrvtt1k as the official ones are, of 12 clips."""
    home = small_folder.rename(small_folder.with_name("msrvtt"))
    monkeypatch.setattr(official, "MSRVTT1K", home / "split.json")
    rows = (line.split(",") for line in (home / "captions.csv").read_text().splitlines()[1:])
    annotation = {"sentences": [{"video_id": clip, "caption": words} for clip, words in rows]}
    with zipfile.ZipFile(home / "train_val_annotation.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_val_videodatainfo.json", json.dumps(annotation))
    monkeypatch.setenv("SSB_DATA", str(home.parent))
    assert len(load_corpus("msrvtt1k").captions) == 24
    return home


def inside(**members: str):
    """A zip of these files."""

    def damage(home: Path):
        with zipfile.ZipFile(home / "train_val_annotation.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.json", content)

    return damage


def flip(home: Path):
    path = home / "train_val_annotation.zip"
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)


AGAIN = r"train_val_annotation.zip: not readable as JSON \(.*\); download it again"
ANNOTATION = {
    "no zip": (gone("train_val_annotation.zip"), "train_val_annotation.zip: no such file; `ssb data msrvtt` lists"),
    "a cut zip": (cut("train_val_annotation.zip", 0.7), AGAIN),
    "a damaged zip": (flip, AGAIN),
    "broken JSON": (inside(a='{"sentences": ['), AGAIN),
    "an empty zip": (inside(), "train_val_annotation.zip: 0 .json files inside; wanted one"),
    "two files": (inside(a="{}", b="{}"), "train_val_annotation.zip: 2 .json files inside; wanted one"),
    "no sentences": (inside(a='{"videos": []}'), "zip: not the MSR-VTT annotation: wanted sentences with video_id and"),
    "no caption": (inside(a='{"sentences": [{"video_id": "clip00"}]}'), "zip: not the MSR-VTT annotation: wanted sent"),
    "a list": (inside(a="[1, 2]"), "zip: not the MSR-VTT annotation: wanted sentences with video_id and caption"),
}  # fmt: skip


@pytest.mark.parametrize("damage, words", ANNOTATION.values(), ids=ANNOTATION)
def test_an_annotation(annotated, damage, words):
    damage(annotated)
    with pytest.raises(CorpusError) as caught:
        load_corpus("msrvtt1k")
    assert re.search(words, str(caught.value)), str(caught.value)


def test_an_unknown_corpus(monkeypatch, tmp_path):
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    with pytest.raises(CorpusError) as caught:
        load_corpus("msrvt1k")
    for word in ("no corpus 'msrvt1k'", "'shapes', 'events', 'msrvtt1k'", str(tmp_path.resolve()), "set SSB_DATA"):
        assert word in str(caught.value)


def test_options_of_a_corpus_that_takes_none(annotated):
    for corpus in ("msrvtt1k", str(annotated)):
        with pytest.raises(CorpusError, match="msrvtt.*takes no option 'clips'"):
            load_corpus(corpus, clips=100)


def refused(error, words: str, config: Config):
    """`fit` refuses, and leaves no run behind."""
    with pytest.raises(error) as caught:
        fit(config, quiet=True)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert not any(files.runs().glob("*/metrics.json")) and not any(files.runs().glob("*.part"))


UNCOMMON = {
    "a stream": (CorpusError, "shapes has no stream 'apearance'; it has 'appearance', ", dict(streams=["apearance"])),
    "an option": (CorpusError, "unknown option 'clip'; it takes clips, captions", dict(corpus_options={"clip": 60})),
    "a loss's module": (ConfigError, "contrast = 'no.such:loss': wanted 'triplet', 'i", dict(contrast="no.such:loss")),
    "a loss's name": (ConfigError, "contrast = 'ssb.losses:no': wanted 'triplet', 'i", dict(contrast="ssb.losses:no")),
    "an encoder": (ModelError, "cannot load 'no/such'.*Wanted: a folder with", dict(text_encoder="no/such")),
    "a decoder": (ModelError, "cannot load 'no/such'.*Wanted: a folder with", dict(decoder="no/such")),
}  # fmt: skip


@pytest.mark.parametrize("error, words, changes", UNCOMMON.values(), ids=UNCOMMON)
def test_a_name_that_is_not_there(tiny, error, words, changes):
    refused(error, words, tiny.replace(**changes))


def test_a_loss_that_is_none_of_ours(tiny):
    words = "contrast = 'hinge': wanted 'triplet', 'info_nce', 's2dtw' or 'package.module:function'"
    refused(ConfigError, words, tiny.replace(contrast="hinge"))


def test_fp16_on_a_cpu(tiny):
    if torch.cuda.is_available():
        pytest.skip("fp16 is fine on a GPU")
    config = tiny.replace(precision="fp16")
    refused(ConfigError, "precision = 'fp16' needs a GPU; on a CPU take 'no' or 'bf16'", config)


def test_one_training_clip(small_folder, tiny):
    split(train=clips(0))(small_folder)
    config = tiny.replace(corpus=str(small_folder), corpus_options={})
    refused(CorpusError, "mine: one training clip; a contrastive loss needs at least 2", config)


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(ssb.__file__).parents[1])}
    line = [sys.executable, "-m", "ssb", "train", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def results(home) -> Path:
    """Results of earlier runs, which no error may touch."""
    folder = home / "results"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "table1.csv").write_text("table,corpus\ntable1,mine\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_refuses_a_corpus_in_one_line(small_folder, results):
    array(hole(np.nan))(small_folder)
    before = content(results)
    done = command("smoke", f"corpus={small_folder}", "epochs=1")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {small_folder}/features/look.npy: no usable features for 1 of 12 clips (8.3 %)")
    assert "'clip03' (NaN or infinity); extract them or leave these clips out" in line
    assert content(results) == before | {"cache/missing/mine-look.txt": b"clip03\tNaN or infinity\n"}


def test_the_command_line_refuses_a_setting_in_one_line(results):
    before = content(results)
    done = command("smoke", "objectiv=none")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("error: unknown setting 'objectiv'; did you mean 'objective'?\n")
    assert content(results) == before


@pytest.mark.parametrize("arguments", [[], ["epochs=1"], ["smoke", "epochs"]])
def test_the_command_line_says_how_it_is_used(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.startswith("usage: ssb train [-h] PRESET [SETTING=VALUE ...]\n")


SIXTY = 'corpus_options={"clips": 60, "false_negatives": 0.05}'


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["labtop"], "no preset 'labtop'; there are paper, laptop, tuned, paper_small, smoke"),
        (["smoke", "epochs=many"], "epochs = 'many': input should be a valid integer"),
        (["smoke", "lr=Infinity"], "lr = inf: input should be a finite number"),
        (["smoke", "corpus=msrvtt1k", 'corpus_options={"clips": 9}'], "takes no option 'clips'"),
        (["smoke", "support_set=1"], "support_set = 1: input should be greater than or equal to 2"),
        (["smoke", "decoder_warmup=1"], "decoder_warmup = 1: input should be less than 1"),
        (["smoke", "pool_query=last"], "pool_query = 'last': input should be 'first' or 'cls'"),
        (["smoke", "intra=true"], "intra = True is a part of the triplet loss; contrast is 'info_nce'"),
        (["smoke", "text_lr=0"], "text_lr = 0: input should be greater than 0"),
        (["smoke", "scratch_text_width=33"], "scratch_text_width 33 must be divisible by scratch_heads"),
        (["smoke", "suport_set=8"], "unknown setting 'suport_set'; did you mean 'support_set'?"),
        (["smoke", "corpus=nowhere"], "no corpus 'nowhere'"),
        (["smoke", "text_encoder=no/such", SIXTY], "cannot load 'no/such'"),
    ],
)
def test_the_command_line_names_the_mistake(arguments, words, capsys):
    typed = not any(word in words for word in ("takes no option", "cannot load"))  # else it is found in loading
    try:
        code = main(["train", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    usage, mark, message = printed.err.rpartition("error: ")
    assert printed.out == "" and mark and words in message and len(message.splitlines()) == 1
    assert (code, usage.startswith("usage: ssb train")) == ((2, True) if typed else (1, False))


def test_a_run_that_fails_touches_no_result(tiny, results):
    before = content(results)
    refused(ConfigError, "contrast = ", tiny.replace(contrast="ssb.losses:no"))
    kept = {name: data for name, data in content(results).items() if not name.startswith("cache")}
    assert kept == before
