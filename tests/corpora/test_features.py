"""Features and readers: a folder of your own in all its forms; archives, tables and lists, whole and damaged."""

import csv
import json
import math
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssb import CorpusError, Study, load_corpus
from ssb.corpora import features as features_module
from ssb.corpora import reading, tables


def test_json_is_the_same_plain_or_zipped(tmp_path):
    content = {"sentences": [{"video_id": "v", "caption": "a café"}]}
    plain, packed = tmp_path / "a.json", tmp_path / "a.zip"
    plain.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "folder/inner.json")
        archive.writestr("README.txt", "read me")
    assert reading.read_json(plain) == reading.read_json(packed) == content


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


NAMES = {"look": "look_pool8", "move": "move_vector"}
CLIPS = ["d", "b", "a"]


@pytest.fixture
def archive(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "features.npz"
    look, move = rng.standard_normal((4, 3, 5)).astype(np.float16), rng.standard_normal((4, 2)).astype(np.float32)
    np.savez(path, ids=np.array(list("abcd")), look_pool8=look, move_vector=move)
    return path


def saved_with(path, **changes):
    with np.load(path) as held:
        content = {key: held[key] for key in held.files} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


def test_archive(archive):
    streams = features_module.read_archive(archive, CLIPS, NAMES)
    held = np.load(archive)
    assert list(streams) == ["look", "move"]
    assert streams["look"].values.shape == (3, 3, 5) and streams["look"].values.dtype == np.float16
    assert streams["move"].values.shape == (3, 1, 2)
    for i, row in enumerate((3, 1, 0)):
        assert np.array_equal(streams["look"].values[i], held["look_pool8"][row])
        assert np.array_equal(streams["move"].values[i, 0], held["move_vector"][row])


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_archive(archive, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorpusError, match=r"features\.npz: not a complete \.npz archive \(.*\); copy it again"):
        features_module.read_archive(archive, CLIPS, NAMES)


def test_every_flipped_byte_is_seen_or_makes_no_difference(archive):
    """A zip holds a checksum of each array; its other bytes are names, times and sizes."""
    content, wanted = archive.read_bytes(), features_module.read_archive(archive, CLIPS, NAMES)
    seen = 0
    for place in range(0, len(content), 3):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = features_module.read_archive(archive, CLIPS, NAMES)
        except CorpusError as error:
            assert str(archive) in str(error)
            seen += 1
        else:
            assert all(np.array_equal(found[name].values, wanted[name].values) for name in NAMES)
    assert seen > 10


ARCHIVES = {
    "no ids": (dict(ids=None), r"features\.npz: no array 'ids'; wanted a \.npz that holds 'ids', 'look_pool8', 'move"),
    "no stream": (dict(move_vector=None), r"features\.npz: no array 'move_vector'; wanted"),
    "an id twice": (dict(ids=np.array(list("abad"))), r"features\.npz: duplicate clip id 'a'; keep one of each"),
    "a clip less": (
        dict(ids=np.array(list("axcd"))),
        r"no features for 1 of 3 clips \(33\.3 %\): 'b'; extract",
    ),
    "too few rows": (dict(look_pool8=np.ones((3, 3, 5))), r"array 'look_pool8': 3 rows for the 4 ids; copy it"),
    "whole numbers": (dict(look_pool8=np.ones((4, 3, 5), int)), r"array 'look_pool8': holds int64; save it as float"),
    "one axis": (dict(look_pool8=np.ones(4)), r"array 'look_pool8': shape \(4,\); wanted \(clips, steps, dim\)"),
    "Python objects": (dict(look_pool8=np.array([None] * 4)), r"features\.npz: not a complete .*[Oo]bject.*copy"),
}


@pytest.mark.parametrize("changes, message", ARCHIVES.values(), ids=ARCHIVES)
def test_a_wrong_archive(archive, changes, message):
    saved_with(archive, **changes)
    with pytest.raises(CorpusError, match=message):
        features_module.read_archive(archive, CLIPS, NAMES)


def test_what_is_no_archive(archive):
    np.save(archive.with_suffix(".npy"), np.ones(3))
    for content in (archive.with_suffix(".npy").read_bytes(), pickle.dumps([1]), b"words"):
        archive.write_bytes(content)
        with pytest.raises(CorpusError, match=r"features\.npz: not a complete \.npz archive"):
            features_module.read_archive(archive, CLIPS, NAMES)
    archive.unlink()
    with pytest.raises(CorpusError, match=r"features\.npz: no such file; `ssb data` lists"):
        features_module.read_archive(archive, CLIPS, NAMES)
    with zipfile.ZipFile(archive, "w") as other:
        other.writestr("README.txt", "no arrays")
    with pytest.raises(CorpusError, match=r"features\.npz: no array 'ids', 'look_pool8', 'move_vector'; wanted"):
        features_module.read_archive(archive, CLIPS, NAMES)


word = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8)


# a comma after a line break is taken for the next row, of a quote that was not closed
cell = word.filter(lambda text: "," not in text.partition("\n")[2])


@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=5))
@example(rows=[("0", "\x1e,"), ("1", "\x85,\u2028,")])  # which end no line of a CSV
def test_a_table_is_the_text_that_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "a"), *rows])
    table = tables.read_table(path, "a", "id")
    assert list(table[["id", "a"]].itertuples(index=False, name=None)) == rows


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers(tmp_path_factory, values):
    table = pd.DataFrame({"start": [repr(value) for value in values]})
    found = tables.numbers(table, "start", "x.csv")
    assert found.dtype == np.float64
    assert all(math.isclose(a, b, rel_tol=1e-15) for a, b in zip(found, values))


@pytest.mark.parametrize("text", ["", "two", "nan", "inf", "1:20"])
def test_what_is_no_number(text):
    with pytest.raises(CorpusError, match=rf"x\.csv: start holds '{text}'; wanted numbers"):
        tables.numbers(pd.DataFrame({"start": ["1", text]}), "start", "x.csv")


def test_lists_of_ids(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfb_2\r\n-a_1 \n#c\n\n")
    assert reading.read_ids(path) == ["b_2", "-a_1", "#c"]
    for content, message in (
        (b"\n \n", r"list\.txt: no ids; download it again"),
        (b"a\nb\na\n", r"list\.txt: duplicate clip id 'a'; keep one of each"),
        (b"\xff\xfe", r"list\.txt: not readable as text \(it is UTF-16\); save it as UTF-8"),
        (b"a\nb\xe9\n", r"list\.txt: not readable as text \(line 2: byte 0xe9 is not UTF-8\); save it as UTF-8"),
        (b"a\n\nb\n", r"list\.txt: line 2 is blank; write one id a line"),
        (b"a\n../b\n", r"list\.txt: clip id '../b'; wanted names without"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            reading.read_ids(path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"list\.txt: no such file; `ssb data` lists"):
        reading.read_ids(path)


def test_the_first_of_several_names(tmp_path):
    assert reading.first_of(tmp_path, "a.json", "b.json").name == "b.json"
    (tmp_path / "b.json").touch()
    assert reading.first_of(tmp_path, "a.json", "b.json").name == "b.json"
    (tmp_path / "a.json").touch()
    assert reading.first_of(tmp_path, "a.json", "b.json").name == "a.json"


def test_expecting_lets_our_own_errors_through():
    with pytest.raises(CorpusError, match="^as it is$"), reading.expecting("x.json", "a list"):
        raise CorpusError("as it is")
    with (
        pytest.raises(CorpusError, match=r"^x\.json: not a list \(KeyError: 'id'\)$"),
        reading.expecting("x.json", "a list"),
    ):
        {}["id"]
    with pytest.raises(ZeroDivisionError), reading.expecting("x.json", "a list"):
        1 / 0


def shrink(path: Path, *clips: str):
    """Take the rows of these clips out of <stream>.npy."""
    names = path.with_suffix(".ids.txt")
    ids = names.read_text().split()
    rows = [i for i, clip in enumerate(ids) if clip not in clips]
    np.save(path, np.load(path)[rows])
    names.write_text("\n".join(ids[i] for i in rows))
    if (lengths := path.with_suffix(".lengths.txt")).is_file():
        held = lengths.read_text().split()
        lengths.write_text("\n".join(held[i] for i in rows))


@pytest.fixture
def gaps(small_folder) -> Path:
    """`look` lacks clip01 and clip10, `move`, a folder of files, lacks clip01 and clip07."""
    features = small_folder / "features"
    (features / "look.lengths.txt").write_text("\n".join(str(1 + i % 5) for i in range(12)))
    shrink(features / "look.npy", "clip01", "clip10")
    (features / "move").mkdir()
    for clip, values in zip((features / "move.ids.txt").read_text().split(), np.load(features / "move.npy")):
        if clip not in ("clip01", "clip07"):
            np.save(features / "move" / f"{clip}.npy", values)
    (features / "move.npy").unlink()
    return small_folder


LEFT_OUT = (
    "mine: left out, as they have no usable features: train 1 of 6 (16.7 %), val 1 of 3 (33.3 %), test 1 of 3 "
    "(33.3 %): 'clip01', 'clip07', 'clip10'; all in results/cache/missing/mine-look.txt, "
    "results/cache/missing/mine-move.txt\n"
)


def test_all_missing_clips_are_listed_in_a_file(gaps, home, monkeypatch, capsys):
    """By the message and by dropping, for every stream; no list outlives its cause."""
    missing = home / "results" / "cache" / "missing"
    shrink(gaps / "features" / "look.npy", *(f"clip{i:02d}" for i in range(2, 8)))
    with pytest.raises(
        CorpusError, match=r"and 3 more; .*'clip07'; extract .* does; all in .*/mine-look\.txt, .*/mine-move\.txt$"
    ):
        load_corpus(gaps)
    gone = [f"clip{i:02d}" for i in (1, 2, 3, 4, 5, 6, 7, 10)]
    assert (missing / "mine-look.txt").read_text().split() == gone
    load_corpus(gaps, missing="drop")
    assert {path.name: path.read_text() for path in missing.iterdir()} == {
        "mine-look.txt": "".join(f"{clip}\n" for clip in gone), "mine-move.txt": "clip01\nclip07\n"}  # fmt: skip
    for clip in ("clip01", "clip07"):
        np.save(gaps / "features" / "move" / f"{clip}.npy", np.ones((1, 3), np.float16))
    load_corpus(gaps, missing="drop")
    assert [path.name for path in missing.iterdir()] == ["mine-look.txt"]
    shutil.rmtree(missing)
    missing.write_text("a file where the folder should be")
    with pytest.raises(CorpusError, match=r"and 3 more; extract .* does$"):
        load_corpus(gaps)


def test_dropping_is_leaving_out_of_the_split(gaps, capsys):
    found = load_corpus(gaps, missing="drop")
    assert capsys.readouterr().out == LEFT_OUT
    assert found.name == "mine" and len(found.clips) == 9
    split = json.loads((gaps / "split.json").read_text())
    kept = {name: [clip for clip in ids if clip not in ("clip01", "clip07", "clip10")] for name, ids in split.items()}
    (gaps / "split.json").write_text(json.dumps(kept))
    by_hand = load_corpus(gaps)
    assert found.fingerprint == by_hand.fingerprint and found.clips == by_hand.clips
    assert all(np.array_equal(x, y) for x, y in zip(found.features(), by_hand.features()))
    assert found.captions.equals(by_hand.captions)
    assert load_corpus(gaps, missing="drop").fingerprint == by_hand.fingerprint
    assert capsys.readouterr().out == LEFT_OUT.split("train")[0] + "train 0 of 5 (0.0 %), val 0 of 2 (0.0 %), " + (
        "test 0 of 2 (0.0 %)\n"
    )


def test_refusing_is_the_default_and_names_the_option(gaps):
    for options in ({}, {"missing": "refuse"}):
        with pytest.raises(
            CorpusError,
            match=r"2 of 12 clips.*'clip01', 'clip10'; .*'clip01', 'clip07'; extract.*\{\"missing\": \"drop\"\}",
        ):
            load_corpus(gaps, **options)


def test_a_split_of_which_nothing_is_left(gaps):
    shrink(gaps / "features" / "look.npy", "clip09", "clip11")
    with pytest.raises(CorpusError, match="^mine: no clip of split 'test' has features in every stream; extract them"):
        load_corpus(gaps, missing="drop")


@pytest.mark.parametrize("value", ["Drop", "", 0, None])
def test_another_value_of_missing(small_folder, value):
    with pytest.raises(CorpusError, match=r"mine: missing = .*; wanted 'refuse', or 'drop'"):
        load_corpus(small_folder, missing=value)


def test_damage_is_no_missing_clip(gaps):
    """What is there but wrong is still refused."""
    np.save(gaps / "features" / "look.npy", np.load(gaps / "features" / "look.npy")[1:])
    with pytest.raises(CorpusError, match="10 ids for the 9 rows"):
        load_corpus(gaps, missing="drop")
    (gaps / "features" / "look.ids.txt").unlink()
    with pytest.raises(CorpusError, match=r"look\.ids\.txt: no such file"):
        load_corpus(gaps, missing="drop")
    shutil.rmtree(gaps / "features")
    with pytest.raises(CorpusError, match="no feature stream"):
        load_corpus(gaps, missing="drop")


def test_a_study_says_in_its_titles_that_clips_are_left_out(gaps, capsys):
    changes = {"corpus_options": {"missing": "drop"}}
    study = Study("t", corpus=str(gaps), preset="smoke", changes=changes)
    assert study.subtitle == "mine, smoke preset, missing = drop"
    assert capsys.readouterr().out.endswith(LEFT_OUT)  # after the warning of the smoke preset


def test_the_real_clips_that_have_features(msrvtt, capsys):
    """All features are of clips that 1k-A trains on: its test split would be empty."""
    with pytest.raises(CorpusError, match="msrvtt_1ka: no clip of split 'val', 'test' has features"):
        load_corpus("msrvtt_1ka", missing="drop")
    before = load_corpus("msrvtt1k").fingerprint
    assert load_corpus("msrvtt1k", missing="drop").fingerprint == before
    assert "train 0 of 700 (0.0 %), val 0 of 100 (0.0 %), test 0 of 200 (0.0 %)\n" in capsys.readouterr().out


def test_an_archive_of_some_clips(tmp_path, monkeypatch, capsys):
    """vidvrd, its two streams in one .npz."""
    home = tmp_path / "vidvrd"
    home.mkdir()
    clips = [f"video{i}" for i in range(40)]
    labels = {clip: {"captions": [f"dog see ball{i}"]} for i, clip in enumerate(clips)}
    (home / "train_val_label.json").write_text(json.dumps(labels))
    known = [clip for clip in clips if clip not in ("video3", "video17")][::-1]
    values = np.array([1 + int(clip[5:]) for clip in known], np.float32)
    arrays = dict(resnet152_pool8=values.repeat(8 * 4).reshape(-1, 8, 4), conv3d=values[:, None].repeat(2, 1))
    np.savez(home / "features.npz", ids=np.array(known), **arrays)
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    with pytest.raises(CorpusError, match=r"no features for 2 of 40 clips \(5\.0 %\)"):
        load_corpus("vidvrd")
    corpus = load_corpus("vidvrd", missing="drop")
    assert sorted(corpus.clips) == sorted(known) and "'video3'" in capsys.readouterr().out
    for i, clip in enumerate(corpus.clips):
        assert corpus.features()[0][i].max() == corpus.features()[0][i].min() == 1 + int(clip[5:])
