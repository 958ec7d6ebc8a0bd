"""What the official files hold: counts against the published ones, content against the files read another way."""

import collections
import csv
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA
from hypothesis import given
from hypothesis import strategies as st

import ssb
from ssb import CorpusError, load_corpus
from ssb.corpora import labels
from ssb.corpora import official as official_module
from ssb.corpora.load import CORPORA


def test_msrvtt1k(msrvtt):
    corpus = load_corpus("msrvtt1k")
    assert corpus.name == "msrvtt1k" and len(set(corpus.clips)) == len(corpus.clips) == 1000
    assert set(corpus.clips) == {f"video{i}" for i in range(1000)}
    assert len(corpus.captions) == 20000 and (corpus.captions["clip"].value_counts() == 20).all()
    assert {name: len(members) for name, members in corpus.splits.items()} == {"train": 700, "val": 100, "test": 200}
    assert sorted(np.concatenate(list(corpus.splits.values()))) == list(range(1000))
    official = json.loads(official_module.MSRVTT1K.read_text())
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
    (home / "features").symlink_to(msrvtt / "features")
    with zipfile.ZipFile(msrvtt / "train_val_annotation.zip") as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".json"))
        (home / "train_val_videodatainfo.json").write_bytes(archive.read(inner))
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    plain = load_corpus("msrvtt1k")
    assert plain.captions.equals(packed.captions) and plain.fingerprint == packed.fingerprint


# The other official files


@pytest.fixture
def real(monkeypatch):
    """real("msvd"): the folder of that dataset's real files, $SSB_DATA pointing at its parent; skips where absent."""

    def find(dataset: str, needed: str) -> Path:
        if not (DATA / dataset / needed).is_file():
            pytest.skip(f"no {dataset}/{needed} in {DATA}; set SSB_DATA to the folder that holds {dataset}/")
        monkeypatch.setenv("SSB_DATA", str(DATA))
        return DATA / dataset

    return find


def sizes(annotation) -> tuple[dict, dict]:
    """Clips and captions of each split. Every clip is in one split and has a caption that is not blank."""
    captions, splits = annotation
    clips = [clip for members in splits.values() for clip in members]
    assert list(splits) == ["train", "val", "test"] and len(set(clips)) == len(clips)
    assert captions["text"].str.strip().str.len().min() > 0
    n = captions["clip"].value_counts()
    assert set(clips) <= set(n.index)
    return {k: len(v) for k, v in splits.items()}, {k: int(n[v].sum()) for k, v in splits.items()}


def official_msrvtt(home: Path) -> tuple[dict, dict]:
    """Captions and YouTube address of each clip, straight out of the zips."""
    captions, address = collections.defaultdict(list), {}
    for path in ("train_val_annotation.zip", "test_videodatainfo.json.zip"):
        with zipfile.ZipFile(home / path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".json"))
            content = json.loads(archive.read(name))
        for sentence in content["sentences"]:
            captions[sentence["video_id"]].append(sentence["caption"])
        address |= {video["video_id"]: video["url"] for video in content["videos"]}
    return captions, address


def test_msrvtt_full(real):
    home = real("msrvtt", "train_list_full.txt")
    annotation = captions, splits = official_module.msrvtt_full(home)
    assert sizes(annotation) == (
        {"train": 6513, "val": 497, "test": 2990}, {"train": 130260, "val": 9940, "test": 59800})  # fmt: skip
    wanted, _ = official_msrvtt(home)
    assert captions.groupby("clip", sort=False)["text"].agg(list).to_dict() == wanted
    numbered = [f"video{i}" for i in range(10000)]
    assert list(splits.values()) == [numbered[:6513], numbered[6513:7010], numbered[7010:]]


@pytest.mark.parametrize(
    "reader, train",
    [(CORPORA[name].annotation, train) for name, train in (("msrvtt_1ka", 8503), ("msrvtt_1ka_7k", 6513))],
)
def test_msrvtt_1ka(real, reader, train):
    home = real("msrvtt", "MSRVTT_JSFUSION_test.csv")
    annotation = captions, splits = reader(home)
    assert sizes(annotation) == (
        {"train": train, "val": 497, "test": 1000}, {"train": 20 * train, "val": 9940, "test": 1000})  # fmt: skip
    with open(home / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        queries = {row["video_id"]: row["sentence"] for row in csv.DictReader(file)}
    test = captions[captions["clip"].isin(splits["test"])]
    assert splits["test"] == list(queries) and dict(zip(test["clip"], test["text"])) == queries
    name = "MSRVTT_train.9k.csv" if train == 8503 else "MSRVTT_train.7k.csv"
    assert set(splits["train"]) | set(splits["val"]) == set((home / name).read_text().split()[1:])
    official, address = official_msrvtt(home)
    for clip in (splits["train"][0], splits["train"][-1], splits["val"][7]):
        assert captions["text"][captions["clip"] == clip].tolist() == official[clip]
    assert not {address[clip] for clip in splits["train"]} & {address[clip] for clip in splits["val"]}


def test_1ka_without_the_features_of_most_clips(real):
    real("msrvtt", "MSRVTT_JSFUSION_test.csv")
    with pytest.raises(
        CorpusError, match=r"no features for 9000 of 10000 clips \(90\.0 %\): 'video1000', .* 8995 more"
    ):
        load_corpus("msrvtt_1ka")


def test_msvd(real):
    home = real("msvd", "train_list.txt")
    annotation = captions, splits = official_module.msvd(home)
    assert sizes(annotation) == (
        {"train": 1200, "val": 100, "test": 670}, {"train": 48774, "val": 4290, "test": 27763})  # fmt: skip
    n = captions["clip"].value_counts()
    assert (n.min(), n.max()) == (18, 81)
    first = captions["text"][captions["clip"] == "-4wsuPCjDBc_5_15"]
    assert first.iloc[:2].tolist() == ["a squirrel is eating a peanut in it s shell", "a chipmunk is eating"]
    number = dict(line.split() for line in open(home / "youtube_video_to_id_mapping.txt"))
    test = (home / "sents_test_lc_nopunc.txt").read_text()
    for clip in (splits["test"][0], splits["test"][-1]):
        wanted = re.findall(rf"^{number[clip]}\t(.*)$", test, re.MULTILINE)
        assert captions["text"][captions["clip"] == clip].tolist() == wanted


@pytest.mark.parametrize("name, test", [("val_1", 4917), ("val_2", 4885)])
def test_activitynet(real, name, test):
    home = real("activitynet", "train.json")
    reader = CORPORA["activitynet" if name == "val_1" else "activitynet_val2"].annotation
    annotation = captions, splits = reader(home)
    wanted = {"train": 9509, "val": 500, "test": test}
    assert sizes(annotation) == (wanted, wanted)
    text = dict(zip(captions["clip"], captions["text"]))
    assert text["v_QOlSCBRmfWY"] == (
        "A young woman is seen standing in a room and leads into her dancing. The girl dances around the room while "
        "the camera captures her movements. She continues dancing around the room and ends by laying on the floor."
    )
    official = json.loads((home / f"{name}.json").read_text())
    assert splits["test"] == list(official)
    for clip in splits["test"]:
        assert text[clip].split() == [word for line in official[clip]["sentences"] for word in line.split()]
    train = json.loads((home / "train.json").read_text())
    assert sorted(splits["train"] + splits["val"]) == sorted(train)


def test_youcook2(real):
    home = real("youcook2", "vttwins_validation_youcook.csv")
    annotation = captions, splits = official_module.youcook2(home)
    assert sizes(annotation)[0] == {"train": 9821, "val": 516, "test": 3350}
    assert len(captions) == len(set(captions["clip"])) == 13829
    rows = captions.set_index("clip")
    videos = {split: set(rows["video"][clips]) for split, clips in splits.items()}
    assert {split: len(names) for split, names in videos.items()} == {"train": 1266, "val": 67, "test": 436}
    assert not videos["train"] & videos["val"]
    (source,) = home.glob("*annotations_trainval.json")
    official = json.loads(source.read_text())["database"]
    assert all(official[name]["subset"] == "validation" for name in videos["test"])
    for clip in splits["train"][::500] + splits["val"][::50] + splits["test"][::200]:
        video, _, number = clip.rpartition("_")
        step = official[video]["annotations"][int(number)]
        row = rows.loc[clip]
        assert (row["video"], [row["start"], row["end"]], row["text"]) == (video, step["segment"], step["sentence"])
    with open(home / "vttwins_validation_youcook.csv", newline="") as file:
        listed = [
            (row["video_id"], float(row["start"]), float(row["end"]), row["text"]) for row in csv.DictReader(file)
        ]
    test = rows.loc[splits["test"]]
    assert list(zip(test["video"], test["start"], test["end"], test["text"])) == listed


def test_vatex(real, tmp_path):
    """The real lists; captions made, Chinese ones among them."""
    home = real("vatex", "train_list.txt")
    ids = {part: (home / f"{part}_list.txt").read_text().split() for part in ("train", "val", "test")}
    for part in ids:
        shutil.copy(home / f"{part}_list.txt", tmp_path)
    for name, clips in (("training", ids["train"]), ("validation", ids["test"][::-1] + ids["val"])):
        content = [{"videoID": clip, "enCap": [f"{clip} {i}" for i in range(2)], "chCap": ["一只猫"]} for clip in clips]
        (tmp_path / f"vatex_{name}_v1.0.json").write_text(json.dumps(content))
    annotation = captions, splits = official_module.vatex(tmp_path)
    wanted = {"train": 25991, "val": 1500, "test": 1500}
    assert sizes(annotation) == (wanted, {split: 2 * n for split, n in wanted.items()}) and splits == ids
    assert (captions["text"].str.split().str[0] == captions["clip"]).all()


@pytest.mark.parametrize("content", ["{}", '[{"videoID": "a", "chCap": []}]', '["a"]', "3", '[{"enCap": ["a"]}]'])
def test_what_are_no_vatex_captions(tmp_path, content):
    (tmp_path / "vatex_training_v1.0.json").write_text(content)
    (tmp_path / "vatex_validation_v1.0.json").write_text("7")
    file = "validation" if content == "{}" else "training"
    with pytest.raises(
        CorpusError, match=rf"vatex_{file}_v1\.0\.json: not the VATEX captions: wanted a list of .*enCap"
    ):
        official_module.vatex(tmp_path)


def test_vidvrd(real):
    home = real("vidvrd", "features.npz")
    annotation = captions, splits = official_module.vidvrd(home)
    wanted = {"train": 268, "val": 45, "test": 134}
    assert sizes(annotation) == (wanted, wanted)
    text = dict(zip(captions["clip"], captions["text"]))
    assert text["video0"] == "dog stand behind frisbee" and len(set(text.values())) == 302
    assert splits["train"][:3] == ["video12", "video72", "video436"] and splits["test"][-1] == "video241"  # for ever
    corpus = load_corpus("vidvrd")
    assert {name: stream.values.shape for name, stream in corpus.streams.items()} == {
        "resnet152": (447, 8, 2048), "conv3d": (447, 1, 512)}  # fmt: skip
    held = np.load(home / "features.npz")
    values, mask = corpus.features()
    assert values.shape == (447, 8, 2560) and mask.all()
    for i in (0, 268, 446):
        row = held["ids"].tolist().index(corpus.clips[i])
        assert np.array_equal(values[i, :, :2048], held["resnet152_pool8"][row])
        assert np.array_equal(values[i, 5, 2048:], held["conv3d"][row])
        assert corpus.captions_of(np.array([i]))["text"].tolist() == [text[corpus.clips[i]]]


def test_vidvrd_trains(real):
    real("vidvrd", "features.npz")
    run = ssb.fit(ssb.Config.preset("smoke", corpus="vidvrd", epochs=1))
    assert len(run.ranks["t2v"]) == 134 and 1 <= run.metrics["t2v MdR"] <= 134


def test_crosstask(real):
    home = real("crosstask", "crosstask.csv")
    steps = labels.crosstask(home)
    with open(home / "crosstask.csv", newline="") as file:
        rows = [tuple(row[c] for c in ("video_id", "task_id", "start", "end", "text")) for row in csv.DictReader(file)]
    found = zip(steps["video"], steps["task"], steps["start"], steps["end"], steps["text"])
    assert list(found) == [(video, task, float(start), float(end), text) for video, task, start, end, text in rows]
    assert (len(steps), steps["video"].nunique(), steps["task"].nunique()) == (2640, 331, 18)
    assert (steps["start"] < steps["end"]).all()


def test_ucf101(real):
    home = real("ucf101", "vttwins_ucf.csv")
    actions = labels.ucf101(home)
    assert len(actions) == actions["clip"].nunique() == 13320 and actions["label"].nunique() == 101
    assert (actions["clip"].str.split("_").str[1] == actions["label"]).all()
    train = {"split1": 9537, "split2": 9586, "split3": 9624}
    for split, n in train.items():
        assert actions[split].value_counts().to_dict() == {"train": n, "test": 13320 - n}
    for part, split in (("test", 1), ("test", 2), ("test", 3), ("train", 1)):
        lines = (home / f"ucf101_{part}list{split:02d}.txt").read_text().split("\n")
        official = {line.split("/")[1].split(".avi")[0] for line in lines if line}
        assert set(actions["clip"][actions[f"split{split}"] == part]) == official


def test_hmdb51(real):
    home = real("hmdb51", "vttwins_hmdb51.csv")
    actions = labels.hmdb51(home)
    assert len(actions) == actions["clip"].nunique() == 6766 and actions["label"].nunique() == 51
    assert all(f"_{label}_" in f"_{clip}" for label, clip in zip(actions["label"], actions["clip"]))
    for split in ("split1", "split2", "split3"):
        counts = actions.groupby("label")[split].value_counts().unstack()
        assert (counts["train"] == 70).all() and (counts["test"] == 30).all()
        assert actions[split].value_counts()[""] == 1666
    number = {}
    for part in ("train", "test"):
        lines = (home / f"hmdb51_{part}list01.txt").read_text().split("\n")
        official = dict(line.rsplit(" ", 1) for line in lines if line)
        assert set(actions["clip"][actions["split1"] == part]) == set(official)
        number |= official
    known = actions[actions["split1"] != ""]
    assert len(set(zip(known["label"], known["clip"].map(number)))) == 51  # one official number for each label


TABLES = {
    "crosstask": (
        labels.crosstask,
        "end,start,task_id,text,video_id\n2,1,9,stir,a\n5,4,9,stir,a\n",
        {
            ("5,4,9", "4,4,9"): "a step of video 'a' ends before it begins; fix or delete",
            ("5,4,9", "x,4,9"): "end holds 'x'; wanted numbers",
            ("task_id", "task"): "columns are 'end', 'start', 'task', .*; wanted video_id, task_id",
        },
    ),
    "vttwins_hmdb51": (
        labels.hmdb51,
        "video_id,label,split1,split2,split3\na.b.avi,clap_test,1,2,0\nc.avi,dive_test,0,1,2\n",
        {
            ("1,2,0", "1,3,0"): "a split is not 0, 1 or 2",
            ("1,2,0", "1,,0"): "a split is not 0, 1 or 2",
            ("c.avi", "d/a.b.mp4"): "duplicate clip id 'a.b'; keep one",
            ("label", "class"): "columns are 'video_id', 'class'",
        },
    ),
}


@pytest.mark.parametrize(
    "name, change", [(name, change) for name, (*_, changes) in TABLES.items() for change in (None, *changes)]
)
def test_tables(tmp_path, name, change):
    reader, content, changes = TABLES[name]
    path = tmp_path / f"{name}.csv"
    path.write_text(content)
    assert len(reader(tmp_path)) == 2
    if change is not None:
        assert change[0] in content
        path.write_text(content.replace(*change))
        with pytest.raises(CorpusError, match=rf"{name}\.csv: {changes[change]}"):
            reader(tmp_path)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), unique=True), st.randoms())
def test_the_draw_depends_neither_on_the_order_nor_on_other_clips(clips, random):
    drawn = official_module.shuffled(clips)
    assert sorted(drawn) == sorted(clips)
    some = random.sample(clips, len(clips) // 2)
    assert official_module.shuffled(some) == [clip for clip in drawn if clip in some]


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """MSVD as the official files are, of 5 clips, with a stream whose values say which clip they are of."""
    home = tmp_path / "data" / "msvd"
    (home / "features").mkdir(parents=True)
    clips = [f"-a_b{i}_0_{i}" for i in range(5)]
    numbered = [f"vid{9 - i}" for i in range(5)]
    (home / "youtube_video_to_id_mapping.txt").write_text("\n".join(map(" ".join, zip(clips, numbered))))
    for split, members in (("train", [2, 0]), ("val", [4]), ("test", [1, 3])):
        (home / f"{split}_list.txt").write_text("\n".join(clips[i] for i in members))
        rows = [f"{numbered[i]}\tclip {i} take {k}\n" for i in members for k in range(i + 1)]
        (home / f"sents_{split}_lc_nopunc.txt").write_text("".join(rows))
    np.save(home / "features" / "look.npy", np.repeat(np.arange(1.0, 6.0, dtype=np.float32), 6).reshape(5, 2, 3))
    (home / "features" / "look.ids.txt").write_text("\n".join(clips))
    monkeypatch.setenv("SSB_DATA", str(home.parent))
    return home


def test_captions_and_features_meet(official):
    corpus = load_corpus("msvd")
    assert corpus.name == "msvd" and {k: len(v) for k, v in corpus.splits.items()} == {"train": 2, "val": 1, "test": 2}
    values, _ = corpus.features()
    assert values[:, 0, 0].tolist() == [3, 1, 5, 2, 4]
    for i, clip in enumerate(values[:, 0, 0] - 1):
        assert corpus.clips[i] == f"-a_b{clip:.0f}_0_{clip:.0f}"
        wanted = [f"clip {clip:.0f} take {k}" for k in range(int(clip) + 1)]
        assert corpus.captions_of(np.array([i]))["text"].tolist() == wanted


def test_the_annotation_needs_no_features(official):
    shutil.rmtree(official / "features")
    assert sizes(official_module.msvd(official)) == (
        {"train": 2, "val": 1, "test": 2},
        {"train": 4, "val": 5, "test": 6},
    )
    with pytest.raises(CorpusError, match="msvd/features: no feature stream; put"):
        load_corpus("msvd")


MSVD = {
    "youtube_video_to_id_mapping.txt": [
        (" vid9", "", "not the MSVD id map: wanted a clip and its number a line"),
        (None, None, "no such file; `ssb data msvd` lists what msvd needs"),
    ],
    "sents_val_lc_nopunc.txt": [
        ("vid5\t", "vid5 ", "not the MSVD captions: wanted a number of the id map, a tab"),
        ("vid5", "vid55", "not the MSVD captions: .*KeyError: 'vid55'"),
    ],
    "val_list.txt": [
        ("-a_b4_0_4", "-a_b4_0_4\nnew", r"no features for 1 of 6 clips \(16.7 %\): 'new'; extract them"),
        ("-a_b4_0_4", "-a_b1_0_1", "msvd: clip '-a_b1_0_1' is in 'val' and again in 'test'; keep"),
        ("-a_b4_0_4", "", "no ids; download it again"),
    ],
}


@pytest.mark.parametrize("name, change", [(name, change) for name, changes in MSVD.items() for change in changes])
def test_damaged_msvd(official, name, change):
    old, new, message = change
    path = official / name
    if old is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CorpusError, match=message):
        load_corpus("msvd")


def test_a_folder_of_your_own_comes_before_the_official_files(official, small_folder, monkeypatch):
    mine = load_corpus(small_folder).fingerprint
    for name in ("captions.csv", "split.json"):
        shutil.copy(small_folder / name, official)
    shutil.rmtree(official / "features")
    shutil.copytree(small_folder / "features", official / "features")
    assert load_corpus("msvd").fingerprint == mine
    small_folder.rename(small_folder.with_name("vatex"))
    monkeypatch.chdir(small_folder.parent)
    assert load_corpus("vatex").fingerprint == mine


def test_halves_of_msrvtt1k_by_subject(msrvtt):
    """Counted by reading the zip another way; the same captions and features as in the whole."""
    whole, even, odd = (load_corpus(f"msrvtt1k{half}") for half in ("", "_even", "_odd"))
    with zipfile.ZipFile(msrvtt / "train_val_annotation.zip") as archive:
        text = archive.read("train_val_videodatainfo.json").decode()
    category = {clip: int(n) for n, clip in re.findall(r'"category": (\d+),.*?"video_id": "(video\d+)"', text)}
    assert len(category) == 7010 and set(category.values()) == set(range(20))
    official = json.loads(official_module.MSRVTT1K.read_text())
    for half, rest, name, wanted in ((even, 0, "even", (346, 44, 95)), (odd, 1, "odd", (354, 56, 105))):
        assert half.name == f"msrvtt1k_{name}"
        for (split, members), n in zip(half.splits.items(), wanted):
            clips = [half.clips[i] for i in members]
            assert clips == [clip for clip in official[split] if category[clip] % 2 == rest] and len(clips) == n
        rows = [whole.clips.index(clip) for clip in half.clips]
        assert np.array_equal(half.features()[0], whole.features()[0][rows])
        assert half.captions_of(np.arange(9))["text"].tolist() == whole.captions_of(np.array(rows[:9]))["text"].tolist()
    assert not set(even.clips) & set(odd.clips) and set(even.clips) | set(odd.clips) == set(whole.clips)


def test_a_half_needs_the_category_of_every_clip(msrvtt, tmp_path):
    content = json.loads(zipfile.ZipFile(msrvtt / "train_val_annotation.zip").read("train_val_videodatainfo.json"))
    path = tmp_path / "train_val_videodatainfo.json"
    damaged = "videodatainfo.json: not the MSR-VTT annotation: wanted videos with video_id and category"
    for videos, message in (
        ([v for v in content["videos"] if v["video_id"] != "video7"], "no category for clip 'video7'; wanted"),
        ([v | {"category": "9"} for v in content["videos"]], "no category for clip .* and 995 more; wanted"),
        ([{"video_id": "video7"}], damaged),
        (None, damaged),
    ):
        path.write_text(json.dumps({"sentences": [], "videos": videos}))
        with pytest.raises(CorpusError, match=message):
            CORPORA["msrvtt1k_odd"].annotation(tmp_path)


def test_files_of_an_older_reader_keep_their_name(msrvtt):
    """Finished runs are found by these: captions, splits and features of msrvtt1k, to the last bit."""
    assert load_corpus("msrvtt1k").fingerprint == "c794daf2e55c"
