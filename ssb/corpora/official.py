"""What the official files of each dataset hold.

Annotation and features are read apart. An annotation function takes the dataset's folder and returns captions, a
frame with the columns `clip` (id) and `text`, and splits, name → ids of the clips; it needs no features. `read` adds
the streams of `<dataset>/features/` (see `features.sources`) and returns a Corpus.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from ssb import files
from ssb.corpora import features, reading
from ssb.corpora.corpus import Corpus
from ssb.corpora.features import Splits
from ssb.corpora.reading import CorpusError, expecting, listed, text_of, texts
from ssb.corpora.record import Record
from ssb.corpora.tables import numbers, read_table

Annotation = tuple[pd.DataFrame, Splits]
HELD_OUT = 0.05  # of the training videos, to choose an epoch on, where a dataset has no validation split of its own


def shuffled(clips) -> list[str]:
    """In the order of a hash of the id: arbitrary but fixed, as it depends neither on the version of a random generator
    nor on the other clips."""
    return sorted(clips, key=files.digest)


def frame(rows, *further: str) -> pd.DataFrame:
    """Rows of clip, text and further columns as a frame."""
    return pd.DataFrame(rows, columns=["clip", "text", *further])


def split_lists(home: Path, ending: str = "_list.txt") -> Splits:
    """The splits that three files list, <split><ending>, one clip id a line."""
    return {split: reading.read_ids(home / f"{split}{ending}") for split in ("train", "val", "test")}


# MSR-VTT (Xu et al., 2016): 10,000 clips, 20 captions each

MSRVTT = {"train_val": "train_val_annotation.zip", "test": "test_videodatainfo.json.zip"}  # part → its archive
MSRVTT_WHOLE = "MSRVTT_data.json"  # both parts in one file, as some mirrors have it
MSRVTT1K = Path(__file__).with_name("msrvtt1k.json")  # the split of msrvtt1k, which is this study's own
YOUTUBE = re.compile(r"[?&]v=([\w-]{11})")


def msrvtt_sources(home: Path, *parts: str) -> list[Path]:
    """The files of these parts of the official annotation, "train_val" (7,010 clips) or "test" (2,990): a .json or the
    zip that it comes in; or one that holds both."""
    names = ((f"{part}_videodatainfo.json", MSRVTT_WHOLE, MSRVTT[part]) for part in parts)
    return list(dict.fromkeys(reading.first_of(home, *each) for each in names))


def msrvtt_pairs(source: Path, content, rows: str, column: str) -> list[tuple]:
    """(clip, value of the column) of each of the `rows`, "videos" or "sentences", of an annotation."""
    with expecting(source, f"the MSR-VTT annotation: wanted {rows} with video_id and {column}"):
        return [(reading.tidy(text_of(row["video_id"])), row[column]) for row in content[rows]]


def msrvtt_captions(home: Path, *parts: str) -> pd.DataFrame:
    """The official captions of these parts, with the column `video`, the YouTube id ("" where the annotation has none).
    CorpusError where a clip is in two parts: its captions would count twice."""
    rows, source_of, videos = [], {}, {}
    for source in msrvtt_sources(home, *parts):
        content = reading.read_json(source)
        pairs = msrvtt_pairs(source, content, "sentences", "caption")
        if twice := [clip for clip in dict(pairs) if clip in source_of]:
            raise CorpusError(
                f"{source}: clip {listed(twice)} is in {source_of[twice[0]].name} too; if one file holds all clips, "
                f"rename it {MSRVTT_WHOLE} and delete the others"
            )
        source_of |= dict.fromkeys(dict(pairs), source)
        with expecting(source, "the MSR-VTT annotation: wanted sentences with a text as caption"):
            rows += [(clip, text_of(text)) for clip, text in pairs]
        if isinstance(content.get("videos"), list) and all("url" in video for video in content["videos"]):
            addresses = msrvtt_pairs(source, content, "videos", "url")
            videos |= {clip: found[1] for clip, url in addresses if (found := YOUTUBE.search(str(url)))}
    return frame([(clip, text, videos.get(clip, "")) for clip, text in rows], "video")


def msrvtt_categories(home: Path, clips: list[str], *parts: str) -> dict[str, int]:
    """Clip → its official category, 0 to 19, in these parts. CorpusError where one of `clips` has none."""
    category = {}
    for source in msrvtt_sources(home, *parts):
        category |= msrvtt_pairs(source, reading.read_json(source), "videos", "category")
    if missing := [clip for clip in clips if not isinstance(category.get(clip), int)]:
        raise CorpusError(f"{home}: no category for clip {listed(missing)}; wanted the official annotation of all")
    return category


def msrvtt_classes(home: Path, clips: list[str], parts: Iterable[str]) -> list[str]:
    """The category of each of `clips`, "category 0" to "category 19", in these parts."""
    category = msrvtt_categories(home, clips, *parts)
    return [f"category {category[clip]}" for clip in clips]


def msrvtt1k(home: Path) -> Annotation:
    """The first 1,000 clips, 20 captions each, split 700 / 100 / 200 by msrvtt1k.json of this package: clips that are
    cut from one YouTube video are in one split.

    All of these clips are in the official training set: results are not comparable with published 1k-A numbers.
    """
    return msrvtt_captions(home, "train_val"), features.read_splits(MSRVTT1K)


def msrvtt1k_half(home: Path, odd: bool) -> Annotation:
    """The clips of `msrvtt1k` whose official category, 0 to 19, is an even number (346 / 44 / 95) or an odd one (354 /
    56 / 105), in the same splits: two halves that differ in subject, to train on one and test on the other."""
    captions, splits = msrvtt1k(home)
    category = msrvtt_categories(home, features.clips_of(splits), "train_val")
    return captions, {split: [clip for clip in clips if category[clip] % 2 == odd] for split, clips in splits.items()}


def msrvtt_full(home: Path) -> Annotation:
    """The official split, {train,val,test}_list_full.txt: 6,513 / 497 / 2,990; every caption is a query."""
    return msrvtt_captions(home, *MSRVTT), split_lists(home, "_list_full.txt")


def msrvtt_1ka(home: Path, train: str = "MSRVTT_train.9k.csv") -> Annotation:
    """The 1k-A split (Yu et al., 2018): MSRVTT_JSFUSION_test.csv names 1,000 test clips and one query for each; `train`
    lists the other 9,000, or with MSRVTT_train.7k.csv the 7,010 of the official train and val.

    It has no validation clips. The 497 official ones, all of them in both lists, are held out of training here: they
    share no YouTube video with the 8,503 or 6,513 that are left.
    """
    test = read_table(home / "MSRVTT_JSFUSION_test.csv", "video_id", "sentence")
    captions = msrvtt_captions(home, *MSRVTT)
    video = dict(zip(captions["clip"], captions["video"]))
    tested = zip(test["video_id"], test["sentence"])
    queries = frame([(clip, text, video.get(clip, "")) for clip, text in tested], "video")
    val = reading.read_ids(home / "val_list_full.txt")
    others = read_table(home / train, "video_id")["video_id"]
    splits = {"train": others[~others.isin(val)].tolist(), "val": val, "test": queries["clip"].tolist()}
    captions = captions[~captions["clip"].isin(queries["clip"])]
    return pd.concat([captions, queries], ignore_index=True), splits


# MSVD (Chen & Dolan, 2011)


def msvd(home: Path) -> Annotation:
    """{train,val,test}_list.txt: 1,200 / 100 / 670 clips, YouTube id and seconds; 18 to 81 captions each, lower case
    and without punctuation, in sents_*_lc_nopunc.txt under the numbers of clips in youtube_video_to_id_mapping.txt."""
    source = home / "youtube_video_to_id_mapping.txt"
    with expecting(source, "the MSVD id map: wanted a clip and its number a line"):
        clip = {number: clip for clip, number in map(str.split, reading.read_lines(source))}
    rows, splits = [], split_lists(home)
    for split in splits:
        source = home / f"sents_{split}_lc_nopunc.txt"
        with expecting(source, "the MSVD captions: wanted a number of the id map, a tab and a caption a line"):
            rows += [(clip[number], text) for number, text in (line.split("\t") for line in reading.read_lines(source))]
    return frame([(clip, text, clip[:11]) for clip, text in rows], "video"), splits  # after the YouTube id, seconds


# ActivityNet Captions (Krishna et al., 2017)


def activitynet(home: Path, test: str = "val_1.json") -> Annotation:
    """Paragraph retrieval: the sentences of a video, joined in the order of the file, are its one caption. Tested on
    val_1.json, 4,917 videos, or val_2.json, another annotator's words for 4,885 of them (the test captions are
    not public). Of the 10,009 training videos 500 are held out for validation, chosen by a hash of their ids."""
    training, tested = activitynet_paragraphs(home / "train.json"), activitynet_paragraphs(home / test)
    held_out = set(shuffled(training["clip"])[: round(HELD_OUT * len(training))])
    splits = {"train": [clip for clip in training["clip"] if clip not in held_out], "val": sorted(held_out)}
    return pd.concat([training, tested], ignore_index=True), splits | {"test": tested["clip"].tolist()}


def activitynet_paragraphs(source: Path) -> pd.DataFrame:
    """The videos of one file, the caption of each being its sentences as one paragraph."""
    with expecting(source, "an ActivityNet annotation: wanted {video: {sentences: [text]}}"):
        videos = reading.read_json(source).items()
        paragraphs = [(clip, " ".join(" ".join(texts(video["sentences"])).split())) for clip, video in videos]
    return frame([(clip, text, clip.removeprefix("v_")) for clip, text in paragraphs], "video")


# YouCook2 (Zhou et al., 2018)


def youcook2(home: Path) -> Annotation:
    """A clip is an annotated step, `<video>_<number of the step>`, with one caption; the columns video, start and end
    (seconds) say where it is from.

    The test clips are the 3,350 of vttwins_validation_youcook.csv, of 436 of the 457 validation videos: the list that
    Ko et al. (2022) report retrieval on. The other 142 validation clips are in no split. Of the 1,333 training videos,
    10,337 clips, 67 are held out whole for validation, chosen by a hash of their ids: 9,821 and 516 clips.
    """
    name = "youcookii_annotations_trainval.json"
    source = reading.first_of(home, name, f"youcook2_{name}")
    with expecting(source, "the YouCook2 annotation: wanted {database: {video: {subset, annotations}}}"):
        videos = reading.read_json(source)["database"]
        training = [name for name, video in videos.items() if video["subset"] == "training"]
        rows = [
            (f"{name}_{step['id']}", text_of(step["sentence"]), name, *map(float, step["segment"]))
            for name, video in videos.items()
            for step in video["annotations"]
        ]
        captions = frame(rows, "video", "start", "end")
    held_out = set(shuffled(training)[: round(HELD_OUT * len(training))])
    videos_of = {"train": set(training) - held_out, "val": held_out}
    splits = {split: captions["clip"][captions["video"].isin(names)].tolist() for split, names in videos_of.items()}
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
        with expecting(source, "the VATEX captions: wanted a list of {videoID, enCap: [text], chCap}"):
            clips = [(text_of(clip["videoID"]), texts(clip["enCap"])) for clip in reading.read_json(source)]
        rows += [(clip, text, clip[:11]) for clip, captions in clips for text in captions]  # YouTube id, then seconds
    return frame(rows, "video"), split_lists(home)


# VidVRD (Shang et al., 2017)


def vidvrd(home: Path) -> Annotation:
    """train_val_label.json: one templated relation, "dog stand behind frisbee", for each of 447 clips. This is not
    natural language, and as only 302 of them are distinct, many captions are true of several clips.

    The split that comes with them (443 / 2 / 2) is useless for retrieval. The split here is 60 / 10 / 30 % of the clips
    in the order of a hash of their ids, 268 / 45 / 134.
    """
    source = home / "train_val_label.json"
    with expecting(source, "the VidVRD labels: wanted {clip: {captions: [text]}}"):
        labels = reading.read_json(source)
        captions = frame(
            [(clip, text.replace("_", " ")) for clip, x in labels.items() for text in texts(x["captions"])]
        )
    clips = shuffled(labels)
    train, test = round(0.6 * len(clips)), round(0.7 * len(clips))
    return captions, {"train": clips[:train], "val": clips[train:test], "test": clips[test:]}


def read(record: Record, missing: str = "refuse") -> Corpus:
    """The corpus of a record that has an annotation, from $SSB_DATA; if there is a folder of the reader's own of that
    name (see `features.own_folder`), it is read instead. missing: see `features.usable`."""
    home = files.data() / record.dataset
    classes = record.classes and partial(record.classes, home)
    if own := features.own_folder(record.name):
        return features.folder(own, missing, classes=classes)
    captions, splits = record.annotation(home)
    reading.check_apart(home, splits)
    return features.build(record.name, home, captions, splits, missing, record.arrays, classes)


def record(name: str, about: str, annotation: Callable, dataset: str = "", **fields) -> Record:
    """The record of a corpus of official files. dataset: the name of their folder, "" for that of the corpus."""
    return Record(name, about, None, dataset or name, annotation, **fields)


def msrvtt(name: str, about: str, annotation: Callable, parts=tuple(MSRVTT), **fields) -> Record:
    """The record of a split of MSR-VTT. parts: of the annotation, which have the categories of its clips."""
    fields |= {"caption_table": "7", "classes": partial(msrvtt_classes, parts=parts)}
    return record(name, about, annotation, "msrvtt", **fields)


# msrvtt1k, preset: as notebook 23 found on its validation clips; the halves take what was found on the whole
SEARCHED = {"settings": {"tuned": {"lr": 2e-3, "epochs": 80, "weight_decay": 0.1, "captioning": 0.03}}}
# where the paper's settings differ from those for MSR-VTT (section 4.1)
LONGER = {"max_steps": 64, "epochs": 30}
PARAGRAPHS = {"max_steps": 512, "max_tokens": 256, "epochs": 28, "dropout": 0.0, "decoder_dropout": 0.0}

EVEN, ODD = (partial(msrvtt1k_half, odd=odd) for odd in (False, True))
OFFICIAL_TRAIN = partial(msrvtt_1ka, train="MSRVTT_train.7k.csv")
SECOND_TEST = partial(activitynet, test="val_2.json")
FIRST = ("train_val",)
OF_PARAGRAPHS = {"settings": {"paper": PARAGRAPHS}, "retrieval_table": "5", "caption_table": "9"}
OF_VATEX = {"settings": {"paper": LONGER}, "retrieval_table": "4", "caption_table": "8", "published": "vatex"}
CUTTING = (
    "a clip is one step, so first cut the videos at the annotated times (`official.youcook2` lists video, start and "
    "end) into CLIPS/<video>_<step>.mp4, such as {first}.mp4, which make <video>_<step>.npy"
)
OF_MSRVTT1K = (
    "those of the study are features/vgg_ae128.npy, (1000, 50, 128) float16, SHA-256 29b8e0b88c1d1d140e1e9800d7f0d30a"
    "a89e673b22d616e00fd2509d7ccacfbe, its rows video0 to video999, named a line each in vgg_ae128.ids.txt; from "
    "https://github.com/Hassaan-Elahi/Dense-Captioning, where at commit add2b1e the folder featuresBig/ has a file for "
    "each clip. Licence: none is stated there. Its README says VGG16, 100 equally spaced frames and a linear "
    "auto-encoder; the array has 50, and how it was computed cannot be checked"
)
ARRAYS = {"resnet152": "resnet152_pool8", "conv3d": "conv3d"}  # as in the paper: 8 steps of 2048, one vector of 512

RECORDS = [
    msrvtt(
        "msrvtt1k",
        "MSR-VTT, its first 1,000 clips: 700 / 100 / 200",
        msrvtt1k,
        FIRST,
        features=OF_MSRVTT1K,
        **SEARCHED,
    ),
    msrvtt("msrvtt1k_even", "those of even category numbers: 346 / 44 / 95", EVEN, FIRST, **SEARCHED),
    msrvtt("msrvtt1k_odd", "those of odd category numbers: 354 / 56 / 105", ODD, FIRST, **SEARCHED),
    msrvtt("msrvtt_full", "MSR-VTT, official split: 6,513 / 497 / 2,990", msrvtt_full),
    msrvtt("msrvtt_1ka", "MSR-VTT, 1k-A split: 8,503 / 497 / 1,000", msrvtt_1ka, published="msrvtt-1kA"),
    msrvtt("msrvtt_1ka_7k", "MSR-VTT, 1k-A test, official training: 6,513 / 497 / 1,000", OFFICIAL_TRAIN),
    record("msvd", "MSVD: 1,200 / 100 / 670", msvd, retrieval_table="6", published="msvd"),
    record(
        "activitynet",
        "ActivityNet Captions, paragraphs, tested on val_1: 9,509 / 500 / 4,917",
        activitynet,
        published="activitynet-val1",
        **OF_PARAGRAPHS,
    ),
    record(
        "activitynet_val2",
        "the same, tested on val_2: 9,509 / 500 / 4,885",
        SECOND_TEST,
        "activitynet",
        **OF_PARAGRAPHS,
    ),
    record("youcook2", "YouCook2, annotated steps: 9,821 / 516 / 3,350", youcook2, cutting=CUTTING),
    record("vatex", "VATEX, English captions: 25,991 / 1,500 / 1,500", vatex, **OF_VATEX),
    record("vidvrd", "VidVRD, templated relations: 268 / 45 / 134", vidvrd, arrays=ARRAYS),
]
