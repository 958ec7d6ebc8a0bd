"""Tables 3 to 6 and 10 by papermill, on small folders with files like the official ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
WORDS = "man woman dog cat car ball kitchen street plays runs cooks sings red blue big small".split()


def sentence(rng) -> str:
    return "a " + " ".join(rng.choice(WORDS, 5))


def features(home: Path, clips: list[str], rng):
    """Small versions of the paper's two streams: (clips, steps, dim)."""
    (home / "features").mkdir(parents=True)
    for stream, width in (("resnet152", 12), ("r2plus1d", 4)):
        np.save(home / "features" / f"{stream}.npy", rng.normal(size=(len(clips), 5, width)).astype(np.float16))
        (home / "features" / f"{stream}.ids.txt").write_text("\n".join(clips))


def vatex(home: Path, rng):
    splits = {"train": 40, "val": 10, "test": 12}
    clips = {split: [f"{split}{i}_000001_000011" for i in range(n)] for split, n in splits.items()}
    for split, ids in clips.items():
        (home / f"{split}_list.txt").write_text("\n".join(ids))
    for part, ids in (("training", clips["train"]), ("validation", clips["val"] + clips["test"])):
        captions = [{"videoID": clip, "enCap": [sentence(rng) for _ in range(3)], "chCap": []} for clip in ids]
        (home / f"vatex_{part}_v1.0.json").write_text(json.dumps(captions))
    features(home, sum(clips.values(), []), rng)


def activitynet(home: Path, rng):
    parts = {"train": [f"v_t{i}" for i in range(60)], "val_1": [f"v_v{i}" for i in range(12)]}
    for part, ids in parts.items():
        captions = {clip: {"duration": 9.0, "sentences": [sentence(rng), sentence(rng)]} for clip in ids}
        (home / f"{part}.json").write_text(json.dumps(captions))
    features(home, sum(parts.values(), []), rng)


def msvd(home: Path, rng):
    number, mapping = 0, []
    clips: list[str] = []
    for split, n in (("train", 40), ("val", 10), ("test", 12)):
        ids = [f"{split}{i}_1_9" for i in range(n)]
        rows = []
        for clip in ids:
            number += 1
            mapping.append(f"{clip} vid{number}")
            rows += [f"vid{number}\t{sentence(rng)}" for _ in range(2)]
        (home / f"{split}_list.txt").write_text("\n".join(ids))
        (home / f"sents_{split}_lc_nopunc.txt").write_text("\n".join(rows))
        clips += ids
    (home / "youtube_video_to_id_mapping.txt").write_text("\n".join(mapping))
    features(home, clips, rng)


def msrvtt(home: Path, rng):
    """The 1k-A split: one list of training clips, one of test clips with a query each, the official annotation."""
    clips = [f"video{i}" for i in range(70)]
    captions = [{"video_id": clip, "caption": sentence(rng)} for clip in clips for _ in range(2)]
    for part, ids in (("train_val", clips[:50]), ("test", clips[50:])):
        rows = [row for row in captions if row["video_id"] in ids]
        (home / f"{part}_videodatainfo.json").write_text(json.dumps({"sentences": rows}))
    (home / "val_list_full.txt").write_text("\n".join(clips[40:50]))
    (home / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *clips[:58]]))
    test = [f"ret{i},msr{i},{clip},{sentence(rng)}" for i, clip in enumerate(clips[58:])]
    (home / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *test]))
    features(home, clips, rng)


def howto100m(home: Path, rng):
    videos = [f"h{i:03d}" for i in range(80)]
    times = {"start": [0, 2, 4], "end": [2, 4, 6]}
    narrations = {video: times | {"text": [sentence(rng) for _ in range(3)]} for video in videos}
    (home / "caption.json").write_text(json.dumps(narrations))
    for stream, width in (("resnet152", 12), ("r2plus1d", 4)):
        (home / "features" / stream).mkdir(parents=True)
        for video in videos:
            np.save(home / "features" / stream / f"{video}.npy", rng.normal(size=(6, width)).astype(np.float16))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for make in (msrvtt, vatex, activitynet, msvd, howto100m):
        (data / make.__name__).mkdir()
        make(data / make.__name__, rng)
    environment = os.environ | {"SSB_DATA": str(data)}
    command = [sys.executable, "-m", "ssb", "index"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return data


def papermill(notebook: str, data: Path, home: Path, *arguments):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / f"{notebook}.ipynb"),
        str(home / "out.ipynb"),
    ]
    small = ["-p", "preset", "smoke", "-p", "seeds", "[0]", "-p", "jobs", "1", "-p", "changes", '{"batch": 8}']
    environment = os.environ | {"SSB_HOME": str(home), "SSB_DATA": str(data), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*command, *small, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("corpus, table", [("msrvtt_1ka", "3"), ("vatex", "4"), ("activitynet", "5"), ("msvd", "6")])
def test_each_benchmark_after_howto100m(corpus, table, data, tmp_path):
    changes = ["-p", "pretrain", "howto100m", "-p", "pretrain_changes", "{}", "-p", "objectives", '["cross"]']
    done = papermill("13_tables3to6_pretraining", data, tmp_path, "-p", "corpus", corpus, *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "results" / f"{corpus}-smoke"
    compared = pd.read_csv(folder / "pretraining_with_paper.csv")
    paper = pd.read_csv(ROOT / "ssb" / "paper.csv", dtype={"table": str})
    paper = paper[paper["table"] == table]
    assert set(compared.loc[compared["from"] == "paper", "method"]) == set(paper["row"])
    assert compared.loc[compared["from"] == "ours", "method"].tolist() == [
        "cross",
        "cross, a quarter",
        "cross, pre-trained",
    ]
    rows = pd.read_csv(folder / "pretraining.csv")
    assert rows["setting"].tolist() == ["cross", "cross, a quarter", "cross, pre-trained"]
    assert (tmp_path / "results/howto100m-smoke" / f"pretraining_for_{corpus}.csv").exists()


@pytest.mark.slow
def test_zero_shot_from_howto100m(data, tmp_path):
    changes = ["-p", "trained_on", "howto100m", "-p", "trained_changes", "{}"]
    done = papermill("14_table10_zero_shot", data, tmp_path, "-p", "corpus", "msvd", *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = pd.read_csv(tmp_path / "results/msvd-smoke/table10_summary.csv", index_col="setting")
    assert summary.index.tolist() == ["none, zero-shot", "cross, zero-shot", "none", "cross"]


@pytest.mark.slow
def test_pre_training_on_features_of_another_width_is_refused(data, tmp_path):
    changes = ["-p", "pretrain", "howto100m", "-p", "pretrain_changes", '{"streams": ["resnet152"]}']
    done = papermill("13_tables3to6_pretraining", data, tmp_path, "-p", "corpus", "msvd", *changes)
    assert done.returncode != 0 and "streams that are as wide in sum" in done.stderr
