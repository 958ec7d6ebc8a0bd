"""Step localisation: the dynamic programme against every increasing assignment, the measures against hand counts and
against the released code's own steps, spelled out here."""

import itertools

import numpy as np
import pandas as pd
import pytest
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssb import CorpusError
from ssb.corpora import labels
from ssb.corpora.stories import Stories
from ssb.metrics import steps


@st.composite
def scored(draw):
    clips = draw(st.integers(1, 6))
    shape = draw(st.integers(1, clips)), clips
    return draw(arrays(float, shape, elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]) | st.floats(-9, 9)))


@given(scored())
@settings(max_examples=200, deadline=None)
def test_assignment_is_the_best_of_all(scores):
    k, t = scores.shape
    sums = {c: sum(scores[i, c[i]] for i in range(k)) for c in itertools.combinations(range(t), k)}
    found = tuple(steps.assign(scores))
    assert found in sums  # strictly increasing
    assert sums[found] == pytest.approx(max(sums.values()), abs=1e-12)


@given(arrays(np.int64, (3, 6), elements=st.integers(-2, 2)))
@settings(max_examples=100, deadline=None)
def test_of_equal_sums_the_earliest_from_the_last_step_on(scores):
    every = itertools.combinations(range(6), 3)
    wanted = min(every, key=lambda c: (-sum(scores[i, c[i]] for i in range(3)), c[::-1]))
    assert tuple(steps.assign(scores)) == wanted


def test_assignment_by_hand():
    """Each step's best clip is the last but one; the order leaves one of them there."""
    scores = np.array([[2, 0, 1, 9, 0], [0, 2, 0, 9, 1], [0, 0, 3, 9, 8]])
    assert steps.assign(scores).tolist() == [0, 3, 4]  # 2 + 9 + 8
    assert steps.assign(scores[:, :3]).tolist() == [0, 1, 2]
    assert steps.assign(scores[:1]).tolist() == [3]
    assert steps.assign(np.zeros((2, 4))).tolist() == [0, 1]


@pytest.mark.parametrize(
    "scores, message",
    [
        (np.zeros((3, 2)), r"shape \(3, 2\); wanted \(steps, clips\), one to as many steps as clips"),
        (np.zeros((0, 2)), r"shape \(0, 2\)"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.array([[1, np.nan]]), "not finite"),
        (np.array([[1, -np.inf]]), "not finite"),
    ],
)
def test_bad_scores(scores, message):
    with pytest.raises(ValueError, match=message):
        steps.assign(scores)


@given(st.integers(1, 12), st.integers(0, 30))
def test_evenly_is_an_assignment_in_the_middle_of_equal_parts(k, more):
    clips = steps.evenly(k, k + more)
    assert (np.diff(clips) > 0).all() and clips[0] >= 0 and clips[-1] < k + more
    parts = np.arange(k + 1) * (k + more) / k
    assert ((parts[:-1] <= clips + 1) & (clips < parts[1:])).all()


TABLE = pd.DataFrame(
    [
        ("a", "7", 0.0, 1.0, "stir"),
        ("a", "7", 3.2, 4.1, "pour"),
        ("a", "7", 5.0, 6.0, "stir"),
        ("b", "7", 1.0, 2.5, "pour"),
        ("c", "9", 0.5, 0.6, "cut"),
    ],
    columns=["video", "task", "start", "end", "text"],
)
TASKS = {"7": ["pour", "bake", "stir"], "9": ["cut"]}


def test_annotated_by_hand():
    a, b, c = steps.annotated(TABLE, TASKS)
    assert (a.video, a.task, b.video, c.task) == ("a", "7", "b", "9")
    assert a.inside.astype(int).tolist() == [[0, 0, 0, 1, 1, 0], [0] * 6, [1, 0, 0, 0, 0, 1]]
    assert b.inside.astype(int).tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert c.inside.tolist() == [[True]]
    a, c = steps.annotated(TABLE, TASKS, seconds={"a": 4, "c": 3})
    assert a.inside.astype(int).tolist() == [[0, 0, 0, 1], [0] * 4, [1, 0, 0, 0]]
    assert c.inside.tolist() == [[True, False, False]]
    with pytest.raises(CorpusError, match="task '7' has no step 'stir', which is annotated in video 'a'"):
        steps.annotated(TABLE, TASKS | {"7": ["pour"]})


def test_task_order_by_hand():
    # stir: (0.5 + 5.5) / 6 / 2 = 0.5 of the video; pour: (3.65 / 6 + 1.75 / 2.5) / 2 = 0.654
    assert steps.task_order(TABLE) == {"7": ["stir", "pour"], "9": ["cut"]}


def test_ctr_by_hand():
    videos = steps.annotated(TABLE, TASKS, seconds={"a": 6, "b": 4, "c": 2})
    scores = {
        "a": np.eye(3, 6, 3),  # pour at 3 (found), bake at 4, stir at 5 (found)
        "b": np.eye(3, 4),  # pour at 0 (not), bake at 1, stir at 2: neither is annotated
        "c": np.array([[0.0, 1.0]]),
    }
    frame = steps.localise(scores, videos)
    assert frame.to_numpy().tolist() == [["a", "7", 2, 2], ["b", "7", 0, 1], ["c", "9", 0, 1]]
    assert steps.task_recall(frame).to_dict() == {"7": pytest.approx(200 / 3), "9": 0}
    assert steps.ctr(frame) == pytest.approx(100 / 3)
    assert steps.ctr(frame, per_video=True) == pytest.approx(25)
    unannotated = pd.DataFrame([("d", "9", 0, 0)], columns=frame.columns)
    assert steps.ctr(pd.concat([frame, unannotated]), per_video=True) == pytest.approx(25)
    with pytest.raises(ValueError, match="no annotated step"):
        steps.ctr(unannotated)
    with pytest.raises(ValueError, match=r"video 'b': scores of shape \(3, 3\); wanted \(steps, clips\) = \(3, 4\)"):
        steps.localise(scores | {"b": np.eye(3)}, videos)
    with pytest.raises(ValueError, match="no scores for video 'c'"):
        steps.localise({video: scores[video] for video in "ab"}, videos)


def released(scores: dict, videos) -> float:
    """CTR in the released code's terms: matrices (T, K) of 0 and 1, sums by task; the assignment by trying all."""
    match, total = {}, {}
    for video, task, inside in videos:
        k, t = inside.shape
        y = np.zeros((t, k))
        best = max(itertools.combinations(range(t), k), key=lambda c: sum(scores[video][i, c[i]] for i in range(k)))
        y[list(best), range(k)] = 1
        truth = inside.T.astype(int)
        total[task] = total.get(task, 0) + (truth.sum(axis=0) > 0).sum()
        match[task] = match.get(task, 0) + (truth * y).sum()
    return 100 * np.mean([match[task] / total[task] for task in match])


def test_ctr_agrees_with_the_released_definition():
    rng, videos, scores = np.random.default_rng(0), [], {}
    for number in range(60):
        task = int(rng.integers(4))
        inside = rng.random((task + 1, int(rng.integers(5, 9)))) < 0.3
        inside[0, 0] = True
        videos.append(steps.Annotated(str(number), str(task), inside))
        scores[str(number)] = rng.standard_normal(inside.shape) + inside
    found = steps.ctr(steps.localise(scores, videos))
    assert found == pytest.approx(released(scores, videos)) and 50 < found < 95


CARDS = "7\nMake tea\nhttp://x\n3\npour,bake,stir\n\n9\nCut, and run\nhttp://y\n1\ncut\n\n"


def test_read_tasks(tmp_path):
    source = tmp_path / "tasks_primary.txt"
    source.write_text(CARDS)
    assert steps.read_tasks(source) == TASKS
    for damaged in (
        CARDS.replace("\n3\n", "\n2\n"),
        CARDS.replace("\n3\n", "\n"),
        CARDS.replace("3", "x"),
        "\n",
        "7\n",
    ):
        source.write_text(damaged)
        with pytest.raises(CorpusError, match="tasks_primary.txt: (not the CrossTask tasks|it is empty)"):
            steps.read_tasks(source)


def test_crosstask():
    """The real annotation: counts, the published order of two tasks, what a perfect model and an even spread get."""
    if not (DATA / "crosstask" / "crosstask.csv").is_file():
        pytest.skip(f"no CrossTask file in {DATA}; set SSB_DATA to the folder that holds crosstask/")
    table = labels.crosstask(DATA / "crosstask")
    tasks = steps.task_order(table)
    assert len(tasks) == 18 and sum(map(len, tasks.values())) == table.groupby("task")["text"].nunique().sum()
    assert tasks["59684"] == ["cut shelve", "assemble shelve", "sand shelve", "paint shelve", "attach shelve"]
    official = [
        "pour water",
        "pour juice",
        "pour jello powder",
        "pour alcohol",
        "stir mixture",
        "pour mixture into cup",
    ]
    assert set(tasks["23521"]) == set(official) and tasks["23521"][3:] == official[3:]
    videos = steps.annotated(table, tasks)
    assert len(videos) == 331
    assert sum(video.inside.any(1).sum() for video in videos) == len(table.drop_duplicates(["video", "text"])) == 1711
    assert len(table) == 2640
    seconds = {
        (video, text, second)
        for video, start, end, text in table[["video", "start", "end", "text"]].itertuples(index=False)
        for second in range(1000)
        if second < end and second + 1 > start
    }
    assert sum(video.inside.sum() for video in videos) == len(seconds)
    perfect = steps.ctr(steps.localise({video.video: video.inside for video in videos}, videos))
    even = [(v.video, v.task, *steps.count(steps.evenly(*v.inside.shape), v.inside)) for v in videos]
    even = steps.ctr(pd.DataFrame(even, columns=steps.COLUMNS))
    assert 5 < even < 25 < 75 < perfect < 100  # no one order fits every video


def test_stories_by_hand():
    """Two videos of four clips; the first is told of its clips 2, 0 and of another, the second of none of its own."""
    truth = np.array([[2, -1, 0], [-1, -1, -1]])
    stories = Stories(np.arange(8).reshape(2, 4), np.zeros((2, 3), int), {}, truth)
    similarity = np.zeros((2, 3, 4))
    similarity[0, 0] = [9, 0, 1, 0]  # of clip 2: alone it would take clip 0, after the other it may not
    similarity[0, 2] = [9, 0, 0, 0]
    frame = steps.localise_stories(similarity, stories, np.arange(2))
    assert frame.to_numpy().tolist() == [[0, "events", 2, 2], [1, "events", 0, 0]]
    assert steps.ctr(frame) == 100
    similarity[0, 2] = [0, 0, 9, 0]
    assert steps.localise_stories(similarity[:1], stories, [0]).to_numpy().tolist() == [[0, "events", 0, 2]]
    with pytest.raises(ValueError, match=r"similarity has shape \(2, 3, 4\); wanted .* = \(1, 3, 4\)"):
        steps.localise_stories(similarity, stories, [0])
    other = Stories(stories.clips, stories.captions, {}, np.array([[-1, 3, 1], [-1, -1, -1]]))
    assert steps.localise_stories(None, other, np.arange(2))["correct"].tolist() == [
        2,
        0,
    ]  # two captions of four clips, evenly: 1 and 3
    other = Stories(stories.clips, stories.captions, {}, np.array([[2, 0, -1], [3, -1, -1]]))
    assert steps.localise_stories(None, other, np.arange(2))["correct"].tolist() == [
        0,
        0,
    ]  # 1 and 3 again; one alone: 2
    with pytest.raises(ValueError, match="not known"):
        steps.localise_stories(similarity, Stories(stories.clips, stories.captions, {}), np.arange(2))


def test_trimmed_recall_as_the_released_code_counts():
    rng = np.random.default_rng(0)
    text = rng.standard_normal((5, 3))[rng.integers(0, 5, 40)]  # repeated steps tie
    similarity = (text + rng.standard_normal((40, 3))) @ text.T
    ordered, own = np.sort(-similarity, axis=1), np.diag(-similarity)
    assert steps.trimmed_recall(similarity) == 100 * np.mean([row[0] - x == 0 for row, x in zip(ordered, own)])
    assert 25 < steps.trimmed_recall(similarity) < 90
    for bad, message in ((similarity[:3], "wanted"), (similarity * np.nan, "finite")):
        with pytest.raises(ValueError, match=message):
            steps.trimmed_recall(bad)
