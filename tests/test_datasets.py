"""Readers: what the official files hold, and a folder of one's own in all its forms."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssb import datasets, load_corpus


def test_msrvtt1k(msrvtt):
    corpus = load_corpus("msrvtt1k")
    assert corpus.name == "msrvtt1k" and len(set(corpus.clips)) == len(corpus.clips) == 1000
    assert set(corpus.clips) == {f"video{i}" for i in range(1000)}
    assert len(corpus.captions) == 20000 and (corpus.captions["clip"].value_counts() == 20).all()
    assert {name: len(members) for name, members in corpus.splits.items()} == {"train": 700, "val": 100, "test": 200}
    assert sorted(np.concatenate(list(corpus.splits.values()))) == list(range(1000))
    official = json.loads((msrvtt / "clips1000_split.json").read_text())
    for name, members in corpus.splits.items():
        assert [corpus.clips[i] for i in members] == official[name]
    (name,) = corpus.streams
    assert corpus.streams[name].values.shape == (1000, 50, 128)


def test_msrvtt1k_gives_each_clip_its_own_rows(msrvtt):
    corpus = load_corpus("msrvtt1k")
    (name,) = corpus.streams
    ids = (msrvtt / "features" / f"{name}.ids.txt").read_text().split()
    stored = np.load(msrvtt / "features" / f"{name}.npy")
    with zipfile.ZipFile(msrvtt / "train_val_annotation.zip") as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".json"))
        sentences = json.loads(archive.read(inner))["sentences"]
    for clip in (0, 1, 699, 700, 999):
        assert np.array_equal(corpus.streams[name].values[clip], stored[ids.index(corpus.clips[clip])])
        wanted = sorted(s["caption"] for s in sentences if s["video_id"] == corpus.clips[clip])
        assert sorted(corpus.captions_of(np.array([clip]))["text"]) == wanted


def test_msrvtt1k_fused_to_32_steps(msrvtt):
    values, mask = load_corpus("msrvtt1k").features(max_steps=32)
    assert values.shape == (1000, 32, 128) and mask.all() and np.isfinite(values).all()


def test_the_zip_and_the_json_out_of_it_agree(msrvtt, tmp_path, monkeypatch):
    packed = load_corpus("msrvtt1k")
    home = tmp_path / "msrvtt"
    home.mkdir()
    for name in ("clips1000_split.json", "features"):
        (home / name).symlink_to(msrvtt / name)
    with zipfile.ZipFile(msrvtt / "train_val_annotation.zip") as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".json"))
        (home / "train_val_videodatainfo.json").write_bytes(archive.read(inner))
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    plain = load_corpus("msrvtt1k")
    assert plain.captions.equals(packed.captions) and plain.fingerprint == packed.fingerprint


def test_json_is_the_same_plain_or_zipped(tmp_path):
    content = {"sentences": [{"video_id": "v", "caption": "a café"}]}
    plain, packed = tmp_path / "a.json", tmp_path / "a.zip"
    plain.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "folder/inner.json")
        archive.writestr("README.txt", "read me")
    assert datasets.read_json(plain) == datasets.read_json(packed) == content


def test_folder(small_folder):
    corpus = load_corpus(small_folder)
    table = pd.read_csv(small_folder / "captions.csv")
    assert corpus.name == "mine" and corpus.clips == [f"clip{i:02d}" for i in range(12)]
    assert {name: list(members) for name, members in corpus.splits.items()} == {
        "train": [0, 1, 2, 3, 4, 5], "val": [6, 7, 8], "test": [9, 10, 11]}  # fmt: skip
    assert corpus.captions["text"].tolist() == table["text"].tolist()
    assert [corpus.clips[i] for i in corpus.captions["clip"]] == table["clip"].tolist()
    assert {name: stream.values.shape for name, stream in corpus.streams.items()} == {
        "look": (12, 5, 6), "move": (12, 1, 3)}  # fmt: skip
    values, mask = corpus.features()
    assert values.shape == (12, 5, 9) and mask.all()


def test_a_folder_is_found_by_its_name_in_ssb_data(small_folder, monkeypatch):
    monkeypatch.setenv("SSB_DATA", str(small_folder.parent))
    assert load_corpus("mine").fingerprint == load_corpus(small_folder).fingerprint
    monkeypatch.chdir(small_folder)
    assert load_corpus(".").name == "mine"


def test_features_are_memory_mapped_where_their_order_is_that_of_the_clips(small_folder):
    assert isinstance(load_corpus(small_folder).streams["look"].values, np.memmap)


def shuffle_rows(folder: Path):
    order = np.random.default_rng(1).permutation(12)
    for path in (folder / "features").glob("*.npy"):
        ids = np.array(path.with_suffix(".ids.txt").read_text().split())
        np.save(path, np.load(path)[order])
        path.with_suffix(".ids.txt").write_text("\n".join(ids[order]))


def add_rows(folder: Path):
    for path in (folder / "features").glob("*.npy"):
        values = np.load(path)
        np.save(path, np.concatenate([values[:1] + 1, values]))
        names = path.with_suffix(".ids.txt")
        names.write_text("of-no-split\n" + names.read_text())


def shuffle_captions(folder: Path):
    lines = (folder / "captions.csv").read_text().splitlines()
    mixed = [lines[0], *lines[1::2][::-1], *lines[2::2], "of-no-split,words"]
    (folder / "captions.csv").write_text("\n".join(mixed))


def add_columns(folder: Path):
    table = pd.read_csv(folder / "captions.csv")
    table.assign(annotator=1)[["annotator", "text", "clip"]].to_csv(folder / "captions.csv", index=False)


def mark_as_utf8(folder: Path):
    text = (folder / "captions.csv").read_text()
    (folder / "captions.csv").write_text(text, encoding="utf-8-sig")  # as spreadsheets save it


def leave_rubbish(folder: Path):
    (folder / "features" / ".ipynb_checkpoints").mkdir()
    (folder / "features" / "._look.npy").write_bytes(b"\0\5\26\7")
    (folder / "features" / "README.txt").write_text("which network")


@pytest.mark.parametrize("change", [shuffle_rows, add_rows, shuffle_captions, add_columns, mark_as_utf8, leave_rubbish])
def test_what_makes_no_difference(small_folder, change):
    before = load_corpus(small_folder).fingerprint
    change(small_folder)
    assert load_corpus(small_folder).fingerprint == before


def test_a_folder_of_files_equals_one_array(small_folder):
    wanted = load_corpus(small_folder).features()
    for name in ("look", "move"):
        path = small_folder / "features" / f"{name}.npy"
        (small_folder / "features" / name).mkdir()
        for clip, values in zip(path.with_suffix(".ids.txt").read_text().split(), np.load(path)):
            np.save(path.with_suffix("") / f"{clip}.npy", values)
        path.unlink()
    found = load_corpus(small_folder).features()
    assert np.array_equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1])


def test_lengths_follow_their_clip(small_folder):
    lengths = small_folder / "features" / "look.lengths.txt"
    lengths.write_text("\n".join(str(1 + i % 5) for i in range(12)))
    wanted = 1 + np.arange(12) % 5
    assert load_corpus(small_folder).features()[1].sum(1).tolist() == wanted.tolist()
    split = json.loads((small_folder / "split.json").read_text())
    (small_folder / "split.json").write_text(json.dumps({name: ids[::-1] for name, ids in split.items()}))
    corpus = load_corpus(small_folder)
    assert corpus.features()[1].sum(1).tolist() == [wanted[int(clip[-2:])] for clip in corpus.clips]


def test_ids_and_captions_are_text(small_folder):
    """Numbers keep their zeros, and NA and null are words."""
    shutil.rmtree(small_folder)
    (small_folder / "features").mkdir(parents=True)
    (small_folder / "captions.csv").write_text("clip,text\n001,NA\n002,null\n3,1.50\n4,nan\n")
    (small_folder / "split.json").write_text('{"train": ["001", "002"], "val": [3], "test": [4]}')
    np.save(small_folder / "features" / "look.npy", np.ones((4, 2, 2), np.float32))
    (small_folder / "features" / "look.ids.txt").write_text("001\n002\n3\n4\n")
    corpus = load_corpus(small_folder)
    assert corpus.clips == ["001", "002", "3", "4"]
    assert corpus.captions["text"].tolist() == ["NA", "null", "1.50", "nan"]


def test_further_splits_are_left_out(small_folder):
    split = json.loads((small_folder / "split.json").read_text())
    (small_folder / "split.json").write_text(json.dumps(split | {"note": "by channel", "extra": ["clip00"]}))
    assert list(load_corpus(small_folder).splits) == ["train", "val", "test"]
