"""Flickr8k: the official files against the published counts and read another way, made files with the oddities of the
official ones, the second split, and where features are looked for."""

import collections
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA

from ssb import CorpusError, load_corpus
from ssb.__main__ import main
from ssb.corpora import features, flickr8k
from ssb.corpora.load import CORPORA

TRAIN, DEV, TEST = [f"{i}_a" for i in range(8)], ["8_b", "9_b"], ["10_c", "11_c"]
GHOST = "2258277193_586949ec62.jpg.1"


def captions_of(images) -> str:
    return "".join(f"{image}#{i}\tImage {image} , way {i} .\n" for image in images for i in range(5))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Made files of twelve images, and the study's folder beside them."""
    home = tmp_path / "data" / "flickr8k"
    home.mkdir(parents=True)
    (home / "Flickr8k.token.txt").write_text(captions_of(f"{clip}.jpg" for clip in TRAIN + DEV + TEST))
    for part, clips in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        (home / f"Flickr_8k.{part}Images.txt").write_text("".join(f"{clip}.jpg\n" for clip in clips))
    monkeypatch.setenv("SSB_DATA", str(home.parent))
    monkeypatch.setenv("SSB_HOME", str(tmp_path / "study"))
    return home


def write_features(folder: Path, value: float = 1.0):
    (folder / "look").mkdir(parents=True)
    for clip in TRAIN + DEV + TEST:
        np.save(folder / "look" / f"{clip}.npy", np.full((5, 3), value, np.float16))


# The official files


@pytest.fixture(scope="module")
def real() -> Path:
    if not (DATA / "flickr8k" / "Flickr8k.token.txt").is_file():
        pytest.skip(f"no flickr8k/Flickr8k.token.txt in {DATA}; set SSB_DATA to the folder that holds flickr8k/")
    return DATA / "flickr8k"


def test_counts_and_captions(real):
    captions, splits = flickr8k.flickr8k(real)
    assert {split: len(clips) for split, clips in splits.items()} == {"train": 6000, "val": 1000, "test": 1000}
    assert len({clip for clips in splits.values() for clip in clips}) == 8000 and len(captions) == 40_000
    wanted = collections.defaultdict(list)
    for image, text in re.findall(r"^(\w+)\.jpg#[0-4]\t(.*)$", (real / "Flickr8k.token.txt").read_text(), re.M):
        wanted[image].append(text)
    lines = (real / "Flickr8k.token.txt").read_text().strip().split("\n")
    assert len(lines) in (40_000, 40_460)  # of the 8,000 images, or with 91 others and one that does not exist
    found = captions.groupby("clip", sort=False)["text"].agg(list).to_dict()
    assert found == {clip: wanted[clip] for clip in found} and set(map(len, found.values())) == {5}
    for split, part in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = (real / f"Flickr_8k.{part}Images.txt").read_text().split()
        assert [f"{clip}.jpg" for clip in splits[split]] == names


def test_the_second_split(real):
    _, official = flickr8k.flickr8k(real)
    _, second = flickr8k.confirm(real)
    assert {split: len(clips) for split, clips in second.items()} == {"train": 6000, "val": 1000, "test": 1000}
    everything = {clip for clips in official.values() for clip in clips}
    assert {clip for clips in second.values() for clip in clips} == everything
    held_out = second["val"] + second["test"]
    assert set(held_out) < set(official["train"])
    assert set(second["train"]) >= set(official["val"]) | set(official["test"])
    sums = [hashlib.sha256(clip.encode()).hexdigest() for clip in held_out]
    rest = [hashlib.sha256(clip.encode()).hexdigest() for clip in official["train"] if clip not in set(held_out)]
    assert sums == sorted(sums) and sums[-1] < min(rest)
    assert second["val"][0] == "2213113526_beeb4f9bdc"  # for ever


# Made files


def test_what_no_list_names_and_what_does_not_exist_are_left_out_and_said(home, capsys):
    plain = flickr8k.flickr8k(home)
    assert capsys.readouterr().out == ""
    with open(home / "Flickr8k.token.txt", "a") as file:
        file.write(captions_of(["12_d.jpg", "13_d.jpg", GHOST]))
    captions, splits = flickr8k.flickr8k(home)
    assert captions.equals(plain[0]) and splits == plain[1]
    words = f"left out are the captions of 2 images that no list names, and of '{GHOST}', which does not exist\n"
    assert capsys.readouterr().out.endswith(words)


def test_a_caption_stays_as_it_is(home):
    text = (home / "Flickr8k.token.txt").read_text()
    (home / "Flickr8k.token.txt").write_text(text.replace("Image 0_a.jpg , way 0 .", ' "Quoted" ,  # 5 dogs .'))
    assert flickr8k.flickr8k(home)[0]["text"][0] == ' "Quoted" ,  # 5 dogs .'


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("0_a.jpg#4\t", "0_a.jpg#3\t", "token.txt: image '0_a.jpg' has not the five captions #0 to #4; download"),
        ("0_a.jpg#4\tImage 0_a.jpg , way 4 .\n", "", "image '0_a.jpg' has not the five captions"),
        ("0_a.jpg#", "0_x.jpg#", "image '0_a.jpg' has not the five captions"),
        ("0_a.jpg#4\t", "0_a.jpg#four\t", "not the Flickr8k captions: wanted <image>#<number>, a tab"),
        ("0_a.jpg#4\t", "0_a.jpg#4 ", "not the Flickr8k captions"),
        ("0_a.jpg#4\t", "0_a.jpg\t", "not the Flickr8k captions"),
    ],
)
def test_other_captions_are_refused(home, old, new, message):
    path = home / "Flickr8k.token.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CorpusError, match=message):
        flickr8k.flickr8k(home)


@pytest.mark.parametrize(
    "new, message",
    [
        ("8_b\n9_b.jpg\n", "devImages.txt: '8_b' is not the name of an image, which ends in .jpg"),
        ("8_b.jpg\n8_b.jpg\n", "devImages.txt: duplicate clip id '8_b.jpg'"),
        ("8_b.jpg\n0_a.jpg\n", "clip '0_a' is in 'train' and again in 'val'"),
        ("8_b.jpg\n99_z.jpg\n", "image '99_z.jpg' has not the five captions"),
    ],
)
def test_other_lists_are_refused(home, new, message):
    (home / "Flickr_8k.devImages.txt").write_text(new)
    write_features(home / "features")
    with pytest.raises(CorpusError, match=message):
        load_corpus("flickr8k")


def test_two_corpora_of_one_dataset(home):
    write_features(home / "features")
    first, second = load_corpus("flickr8k"), load_corpus("flickr8k_confirm")
    assert (first.name, second.name) == ("flickr8k", "flickr8k_confirm") and first.fingerprint != second.fingerprint
    sizes = {"train": 8, "val": 2, "test": 2}
    assert {k: len(v) for k, v in first.splits.items()} == {k: len(v) for k, v in second.splits.items()} == sizes
    assert first.captions_of(np.array([0]))["text"].tolist() == [f"Image 0_a.jpg , way {i} ." for i in range(5)]
    assert CORPORA["flickr8k"].retrieval_table == "" == CORPORA["flickr8k"].published  # the paper has no stills


# Where features are


def test_features_beside_the_files_come_first_then_those_of_the_study(home, tmp_path):
    apart = tmp_path / "study" / "features" / "flickr8k"
    with pytest.raises(CorpusError, match="data/flickr8k/features: no feature stream"):
        load_corpus("flickr8k")
    write_features(apart, 2.0)
    assert features.place(home) == apart and load_corpus("flickr8k").features()[0].mean() == 2
    write_features(home / "features", 1.0)
    assert features.place(home) == home / "features" and load_corpus("flickr8k").features()[0].mean() == 1


def test_the_command_says_how_features_are_made_and_then_that_all_is_there(home, tmp_path, capsys):
    out = tmp_path / "study" / "features" / "flickr8k"
    assert main(["data", "flickr8k"]) == 1
    printed = capsys.readouterr().out
    assert "on request, for research" in printed and "https://forms.illinois.edu" in printed
    assert f"`ssb extract {home}/images --grid 2 --stream efficientnet_lite0" in printed and f"--out {out}`" in printed
    assert "flickr8k: not complete\n  no features\n  features: `ssb" in printed
    write_features(out)
    for name in ("flickr8k", "flickr8k_confirm"):
        assert main(["data", name]) == 0
        printed = capsys.readouterr().out
        assert "features look: 12 of 12 clips" in printed and "it loads: train 8, val 2, test 2\n" in printed
    main(["data"])
    assert re.search("^flickr8k +files complete +Flickr8k", capsys.readouterr().out, re.M)
