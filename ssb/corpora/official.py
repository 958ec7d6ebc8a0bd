"""What the official files of each dataset hold.

Annotation and features are read apart. An annotation function takes the dataset's folder and returns captions, a
frame with the columns `clip` (id) and `text`, and splits, name → ids of the clips; it needs no features. A `Reader`
adds the streams of `<dataset>/features/` (see `features.read_streams`) and gives a Corpus.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssb import files
from ssb.corpora.corpus import Corpus, Stream
from ssb.corpora.features import (
    archive_ids,
    assemble,
    check_apart,
    clips_of,
    features,
    features_lacking,
    folder,
    kept,
    read_archive,
    read_splits,
)
from ssb.corpora.reading import (
    archived,
    expecting,
    first_of,
    numbers,
    read_ids,
    read_json,
    read_lines,
    read_table,
    rows_of,
)
from ssb.corpora.record import Record
from ssb.files import digest

Annotation = tuple[pd.DataFrame, dict[str, list[str]]]
HELD_OUT = 0.05  # of the training videos, to choose an epoch on, where a dataset has no validation split of its own


def shuffled(clips) -> list[str]:
    """In an order of chance that is the same for ever: by a hash of the id, which no version of a random generator
    changes and which does not depend on what other clips there are."""
    return sorted(clips, key=digest)


def frame(rows, *further: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["clip", "text", *further])


# MSR-VTT (Xu et al., 2016): 10,000 clips, 20 captions each


def msrvtt_captions(home: Path, *parts: str) -> pd.DataFrame:
    """The official captions of `parts`: "train_val" (7,010 clips), "test" (2,990)."""
    rows = []
    for part in parts:
        source = msrvtt_source(home, part)
        annotation = read_json(source)
        with expecting(source, "the MSR-VTT annotation: wanted sentences with video_id and caption"):
            rows += [(sentence["video_id"], sentence["caption"]) for sentence in annotation["sentences"]]
    return frame(rows)


def msrvtt_source(home: Path, part: str) -> Path:
    """The .json or the zip it comes in."""
    packed = {"train_val": "train_val_annotation.zip", "test": "test_videodatainfo.json.zip"}
    return first_of(home, f"{part}_videodatainfo.json", packed[part])


def msrvtt1k(home: Path) -> Annotation:
    """The first 1,000 clips, 20 captions each, split 700 / 100 / 200 by clips1000_split.json.

    All of these clips are in the official training set: results are not comparable with published 1k-A numbers.
    """
    captions = msrvtt_captions(home, "train_val")
    return captions, read_splits(home / "clips1000_split.json")


def msrvtt1k_half(home: Path, odd: bool) -> Annotation:
    """The clips of `msrvtt1k` whose official category, 0 to 19, is an even number (346 / 44 / 95) or an odd one (354 /
    56 / 105), in the same splits: two halves that differ in subject, to train on one and test on the other."""
    captions, splits = msrvtt1k(home)
    source = msrvtt_source(home, "train_val")
    annotation = read_json(source)
    with expecting(source, "the MSR-VTT annotation: wanted videos with video_id and category, for every clip"):
        category = {video["video_id"]: int(video["category"]) for video in annotation["videos"]}
        return captions, {
            split: [clip for clip in members if category[clip] % 2 == odd] for split, members in splits.items()
        }


def msrvtt_full(home: Path) -> Annotation:
    """The official split, {train,val,test}_list_full.txt: 6,513 / 497 / 2,990; every caption is a query."""
    splits = {split: read_ids(home / f"{split}_list_full.txt") for split in ("train", "val", "test")}
    return msrvtt_captions(home, "train_val", "test"), splits


def msrvtt_1ka(home: Path, train: str = "MSRVTT_train.9k.csv") -> Annotation:
    """The 1k-A split (Yu et al., 2018): MSRVTT_JSFUSION_test.csv names 1,000 test clips and one query for each; `train`
    lists the other 9,000, or with MSRVTT_train.7k.csv the 7,010 of the official train and val.

    It has no validation clips. The 497 official ones, all of them in both lists, are held out of training here: they
    share no YouTube video with the 8,503 or 6,513 that are left.
    """
    test = read_table(home / "MSRVTT_JSFUSION_test.csv", "video_id", "sentence")
    queries = frame(zip(test["video_id"], test["sentence"]))
    val = read_ids(home / "val_list_full.txt")
    known = read_table(home / train, "video_id")["video_id"]
    splits = {"train": known[~known.isin(val)].tolist(), "val": val, "test": test["video_id"].tolist()}
    captions = msrvtt_captions(home, "train_val", "test")
    others = captions[~captions["clip"].isin(queries["clip"])]
    return pd.concat([others, queries], ignore_index=True), splits


# MSVD (Chen & Dolan, 2011)


def msvd(home: Path) -> Annotation:
    """{train,val,test}_list.txt: 1,200 / 100 / 670 clips, YouTube id and seconds; 18 to 81 captions each, lower case
    and without punctuation, in sents_*_lc_nopunc.txt under numbers that youtube_video_to_id_mapping.txt explains."""
    source = home / "youtube_video_to_id_mapping.txt"
    with expecting(source, "the MSVD id map: wanted a clip and its number a line"):
        clip = {number: clip for clip, number in map(str.split, read_lines(source))}
    rows, splits = [], {}
    for split in ("train", "val", "test"):
        splits[split] = read_ids(home / f"{split}_list.txt")
        source = home / f"sents_{split}_lc_nopunc.txt"
        with expecting(source, "the MSVD captions: wanted a number of the id map, a tab and a caption a line"):
            rows += [(clip[number], text) for number, text in (line.split("\t") for line in read_lines(source))]
    return frame(rows), splits


# ActivityNet Captions (Krishna et al., 2017)


def activitynet(home: Path, test: str = "val_1.json") -> Annotation:
    """Paragraph retrieval: the sentences of a video, joined in the order of the file, are its one caption. Tested on
    val_1.json, 4,917 videos, or val_2.json, another annotator's words for 4,885 of them (the test captions are
    not public). Of the 10,009 training videos 500 are held out for validation, chosen by a hash of their ids."""
    known, unknown = activitynet_paragraphs(home / "train.json"), activitynet_paragraphs(home / test)
    held = set(shuffled(known["clip"])[: round(HELD_OUT * len(known))])
    splits = {"train": [clip for clip in known["clip"] if clip not in held], "val": sorted(held)}
    return pd.concat([known, unknown], ignore_index=True), splits | {"test": unknown["clip"].tolist()}


def activitynet_paragraphs(source: Path) -> pd.DataFrame:
    videos = read_json(source)
    with expecting(source, "an ActivityNet annotation: wanted {video: {sentences: [text]}}"):
        return frame([(clip, " ".join(" ".join(video["sentences"]).split())) for clip, video in videos.items()])


# YouCook2 (Zhou et al., 2018)


def youcook2(home: Path) -> Annotation:
    """A clip is an annotated step, `<video>_<number of the step>`, with one caption; the columns video, start and end
    (seconds) say where it is from.

    The test clips are the 3,350 of vttwins_validation_youcook.csv, of 436 of the 457 validation videos: the list that
    Ko et al. (2022) report retrieval on. The other 142 validation clips are in no split. Of the 1,333 training videos,
    10,337 clips, 67 are held out whole for validation, chosen by a hash of their ids: 9,821 and 516 clips.
    """
    source = first_of(home, "youcookii_annotations_trainval.json", "youcook2_youcookii_annotations_trainval.json")
    videos = read_json(source)
    with expecting(source, "the YouCook2 annotation: wanted {database: {video: {subset, annotations}}}"):
        training = [name for name, video in videos["database"].items() if video["subset"] == "training"]
        captions = frame(
            [
                (f"{name}_{step['id']}", step["sentence"], name, *map(float, step["segment"]))
                for name, video in videos["database"].items()
                for step in video["annotations"]
            ],
            *("video", "start", "end"),
        )
    held = set(shuffled(training)[: round(HELD_OUT * len(training))])
    splits = {
        "train": captions["clip"][captions["video"].isin(set(training) - held)].tolist(),
        "val": captions["clip"][captions["video"].isin(held)].tolist(),
    }
    return captions, splits | {"test": youcook2_listed(home / "vttwins_validation_youcook.csv", captions)}


def youcook2_listed(source: Path, captions: pd.DataFrame) -> list[str]:
    """The clips that a list names by video, times and text: two steps of one video may have the same times."""
    table = read_table(source, "video_id", "start", "end", "text")
    keys = zip(table["video_id"], numbers(table, "start", source), numbers(table, "end", source), table["text"])
    clip = dict(zip(zip(captions["video"], captions["start"], captions["end"], captions["text"]), captions["clip"]))
    with expecting(source, "a list of YouCook2 steps: one of its rows is no annotated step"):
        return [clip[key] for key in keys]


# VATEX (Wang et al., 2019)


def vatex(home: Path) -> Annotation:
    """The English captions, ten a clip, of vatex_training_v1.0.json (25,991 clips) and vatex_validation_v1.0.json
    (3,000). {train,val,test}_list.txt are the split of Chen et al. (2020): the official validation clips in halves."""
    rows = []
    for part in ("training", "validation"):
        source = home / f"vatex_{part}_v1.0.json"
        clips = read_json(source)
        with expecting(source, "the VATEX captions: wanted a list of {videoID, enCap: [text], chCap}"):
            rows += [(clip["videoID"], text) for clip in clips for text in clip["enCap"]]
    return frame(rows), {split: read_ids(home / f"{split}_list.txt") for split in ("train", "val", "test")}


# VidVRD (Shang et al., 2017)


def vidvrd(home: Path) -> Annotation:
    """train_val_label.json: one templated relation, "dog stand behind frisbee", for each of 447 clips. This is no
    natural language, and as only 302 of them are distinct, many captions are true of several clips.

    The split that comes with them (443 / 2 / 2) is no use for retrieval. The one here is drawn: 60 / 10 / 30 % of the
    clips in the order of a hash of their ids, 268 / 45 / 134.
    """
    source = home / "train_val_label.json"
    labels = read_json(source)
    with expecting(source, "the VidVRD labels: wanted {clip: {captions: [text]}}"):
        captions = frame([(clip, text.replace("_", " ")) for clip in labels for text in labels[clip]["captions"]])
    clips = shuffled(labels)
    train, test = round(0.6 * len(clips)), round(0.7 * len(clips))
    return captions, {"train": clips[:train], "val": clips[train:test], "test": clips[test:]}


def vidvrd_streams(home: Path, clips: list[str]) -> dict[str, Stream]:
    """The two streams of the paper's shape: `resnet152`, 8 steps of 2048; `conv3d`, a clip-level vector of 512."""
    return read_archive(home / "features.npz", clips, {"resnet152": "resnet152_pool8", "conv3d": "conv3d"})


def vidvrd_lacking(home: Path, clips: list[str]) -> dict[str, list[str]]:
    source = home / "features.npz"
    known = rows_of(source, archive_ids(archived(source, "ids")))
    return {source.name: [clip for clip in clips if clip not in known]}


@dataclass(frozen=True)
class Reader:
    """Corpus `name` from the official files in $SSB_DATA/`dataset`. A folder of your own that has this name, in the
    working directory or in $SSB_DATA, is read in their place where there is one.

    annotation: home → captions and splits. streams, lacking: home, clips → their features, or which it does not have.
    """

    name: str
    dataset: str
    annotation: Callable[[Path], Annotation]
    streams: Callable[[Path, list[str]], dict[str, Stream]] = features
    lacking: Callable[[Path, list[str]], dict[str, list[str]]] = features_lacking

    def own(self) -> Path | None:
        """A folder of your own that has the corpus's name."""
        folders = Path(self.name), files.data() / self.name
        return next((own for own in folders if (own / "captions.csv").is_file()), None)

    def __call__(self, missing: str = "refuse") -> Corpus:
        if own := self.own():
            return folder(own, missing)
        home = files.data() / self.dataset
        captions, splits = self.annotation(home)
        check_apart(home, splits)
        splits = kept(self.name, splits, missing, functools.partial(self.lacking, home))
        return assemble(self.name, captions, splits, self.streams(home, clips_of(splits)))


def record(name: str, dataset: str, about: str, annotation: Callable[[Path], Annotation], *features, **paper) -> Record:
    """The record of a corpus of official files. features: `Reader.streams` and `Reader.lacking`; paper: what the record
    says besides."""
    return Record(name, about, Reader(name, dataset, annotation, *features), dataset, **paper)


_HALF = functools.partial(functools.partial, msrvtt1k_half)
_MSRVTT = {"caption_table": "7"}
_VATEX = {"max_steps": 64, "epochs": 30}  # where the paper differs from what it does on MSR-VTT (section 4.1)
_ACTIVITYNET = {"max_steps": 512, "max_tokens": 256, "epochs": 28, "dropout": 0.0, "decoder_dropout": 0.0}
_PARAGRAPHS = {"settings": {"paper": _ACTIVITYNET}, "retrieval_table": "5", "caption_table": "9"}

RECORDS = [
    record("msrvtt1k", "msrvtt", "MSR-VTT, its first 1,000 clips: 700 / 100 / 200", msrvtt1k, **_MSRVTT),
    record("msrvtt1k_even", "msrvtt", "those of even category numbers: 346 / 44 / 95", _HALF(odd=False), **_MSRVTT),
    record("msrvtt1k_odd", "msrvtt", "those of odd category numbers: 354 / 56 / 105", _HALF(odd=True), **_MSRVTT),
    record("msrvtt_full", "msrvtt", "MSR-VTT, official split: 6,513 / 497 / 2,990", msrvtt_full, **_MSRVTT),
    record(
        *("msrvtt_1ka", "msrvtt", "MSR-VTT, 1k-A split: 8,503 / 497 / 1,000", msrvtt_1ka),
        **_MSRVTT,
        published="msrvtt-1kA",
    ),
    record(
        *("msrvtt_1ka_7k", "msrvtt", "MSR-VTT, 1k-A test, official training: 6,513 / 497 / 1,000"),
        functools.partial(msrvtt_1ka, train="MSRVTT_train.7k.csv"),
        **_MSRVTT,
    ),
    record("msvd", "msvd", "MSVD: 1,200 / 100 / 670", msvd, retrieval_table="6", published="msvd"),
    record(
        *("activitynet", "activitynet", "ActivityNet Captions, paragraphs, tested on val_1: 9,509 / 500 / 4,917"),
        activitynet,
        **_PARAGRAPHS,
        published="activitynet-val1",
    ),
    record(
        *("activitynet_val2", "activitynet", "the same, tested on val_2: 9,509 / 500 / 4,885"),
        functools.partial(activitynet, test="val_2.json"),
        **_PARAGRAPHS,
    ),
    record(
        *("youcook2", "youcook2", "YouCook2, annotated steps: 9,821 / 516 / 3,350", youcook2),
        cutting="a clip is one step, so first cut the videos at the annotated times (`official.youcook2` lists video, "
        "start and end) into CLIPS/<video>_<step>.mp4, such as {first}.mp4, which make <video>_<step>.npy",
    ),
    record(
        *("vatex", "vatex", "VATEX, English captions: 25,991 / 1,500 / 1,500", vatex),
        settings={"paper": _VATEX},
        retrieval_table="4",
        caption_table="8",
        published="vatex",
    ),
    record(
        *("vidvrd", "vidvrd", "VidVRD, templated relations: 268 / 45 / 134", vidvrd, vidvrd_streams, vidvrd_lacking)
    ),
]
