"""CrossTask by the embeddings of a run, against one second and one step at a time and every assignment."""

import itertools

import numpy as np
import pytest
import torch

from ssb import Config, CorpusError, load_corpus
from ssb.experiments import crosstask
from ssb.text import token_ids
from ssb.training.loop import fit

TASKS = {"7": ["pour", "bake", "stir"], "9": ["cut"]}
CARDS = "7\nMake tea\nhttp://x\n3\npour,bake,stir\n\n9\nCut, and run\nhttp://y\n1\ncut\n\n"


@pytest.fixture(scope="module")
def run(shared_home):
    options = {"clips": 60, "false_negatives": 0.05}
    return fit(Config.preset("smoke", corpus="shapes", corpus_options=options, epochs=1, objective="none"), quiet=True)


CSV = """end,start,task_id,text,video_id
2.9,0.2,7,pour,a
5.0,4.0,7,stir,a
1.0,0.0,7,stir,b
1.5,0.5,9,cut,c
"""


@pytest.fixture
def folder(tmp_path):
    """The three files as they are published, and features of two of the three videos."""
    home, rng = tmp_path / "crosstask", np.random.default_rng(0)
    for stream, width in (("appearance", 128), ("motion", 64)):
        (home / "features" / stream).mkdir(parents=True)
        for video, seconds in (("a", 7), ("c", 4)):
            longer = seconds + (stream == "motion" and video == "c")
            np.save(home / "features" / stream / f"{video}.npy", rng.standard_normal((longer, width)).astype("float16"))
    (home / "crosstask.csv").write_text(CSV)
    (home / "tasks_primary.txt").write_text(CARDS)
    return home


def naive_ctr(run, home) -> float:
    """One second and one step at a time, every assignment tried."""
    model, data = run.load()
    parts = {"a": ("7", [(0, range(0, 3)), (2, range(4, 5))]), "c": ("9", [(0, range(0, 2))])}
    shares = []
    for video, (task, right) in parts.items():
        looks, moves = (np.load(home / "features" / s / f"{video}.npy") for s in ("appearance", "motion"))
        score = []
        for step in TASKS[task]:
            ids = torch.tensor(token_ids(data.tokenizer, [step], 99)[0])[None]
            c_t = model.embed_text(ids, torch.ones_like(ids, dtype=bool))
            seconds = [torch.tensor(np.append(x, y))[None, None].float() for x, y in zip(looks, moves)]
            c_v = [model.embed_video(x, torch.ones(1, 1, dtype=bool)) for x in seconds]
            score.append([torch.cosine_similarity(c_t, x).item() for x in c_v])
        every = itertools.combinations(range(len(score[0])), len(score))
        best = max(every, key=lambda clips: sum(score[k][clip] for k, clip in enumerate(clips)))
        shares.append(np.mean([best[k] in inside for k, inside in right]))
    return 100 * np.mean(shares)


def test_ctr_of_a_run(run, folder):
    with torch.inference_mode():
        wanted = naive_ctr(run, folder)
    result = crosstask.of_run(run, folder)
    assert result.ctr == pytest.approx(wanted) and result.official
    assert result.frame[["video", "task", "annotated"]].to_numpy().tolist() == [["a", "7", 2], ["c", "9", 1]]
    # evenly: a: seconds 1, 3, 5 for pour (0 to 2), bake, stir (4): 1 of 2; c: second 2 of cut (0 and 1): none
    assert result.evenly == pytest.approx(25)
    words = crosstask.crosstask(
        {"one": [run], "two": [run, run]}, load_corpus(run.config.corpus, **run.config.corpus_options), folder
    )
    assert words.split("\n") == [
        "CrossTask CTR, 2 videos, steps in the order of tasks_primary.txt; spread evenly: 25.0",
        f"one: {wanted:.1f}",
        f"two: {wanted:.1f}",
    ]
    (folder / "tasks_primary.txt").unlink()
    assert not crosstask.of_run(run, folder).official  # pour and stir alone


def test_what_crosstask_lacks_is_named(run, folder):
    corpus = load_corpus(run.config.corpus, **run.config.corpus_options)
    look = folder / "features" / "appearance"
    np.save(look / "c.npy", np.zeros((9, 128), np.float32))
    with pytest.raises(CorpusError, match="video 'c': the streams differ in steps .*appearance: 9, .*motion: 5"):
        crosstask.of_run(run, folder, corpus)
    np.save(look / "c.npy", np.zeros((4, 12), np.float32))
    with pytest.raises(CorpusError, match=r"c.npy: shape \(4, 12\); wanted \(steps, 128\)"):
        crosstask.of_run(run, folder, corpus)
    kept = np.load(look / "a.npy")
    np.save(look / "a.npy", np.zeros((7, 12), np.float32))
    with pytest.raises(CorpusError, match="features of width 76 in .*, but the run was trained on 192"):
        crosstask.of_run(run, folder, corpus)
    np.save(look / "a.npy", kept[:2])
    (look / "c.npy").unlink()
    moves = folder / "features" / "motion" / "a.npy"
    np.save(moves, np.load(moves)[:2])
    with pytest.raises(CorpusError, match="video 'a' has 2 seconds for the 3 steps of task '7'"):
        crosstask.of_run(run, folder, corpus)
    (look / "a.npy").unlink()
    with pytest.raises(CorpusError, match="no video has features in every stream of the run, 'appearance', 'motion'"):
        crosstask.of_run(run, folder, corpus)
    look.rmdir()
    with pytest.raises(CorpusError, match="features has no stream 'appearance'; it has 'motion'"):
        crosstask.of_run(run, folder, corpus)
    words = crosstask.crosstask({"one": [run]}, corpus, folder)
    assert words.startswith("CrossTask: left out") and "appearance" in words and "motion'" not in words
