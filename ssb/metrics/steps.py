"""Step localisation as CrossTask evaluates it (Zhukov et al., CVPR 2019; code of DmZhukov/CrossTask, MIT).

The steps of a task come in one fixed order. In a video of T clips of one second each step is assigned exactly one clip,
strictly one after the other, so that the sum of scores is highest, whether or not the step occurs in the video. An
annotated step is localised correctly where its clip lies in one of its intervals. The recall of a task is the share of
annotated steps localised correctly, over all of its videos together; CTR is the mean over tasks.

As in the original: an interval covers the seconds from floor(start) to ceil(end); a step annotated several times in a
video counts once; annotations beyond the last clip do not count. Different: where sums are equal the earliest clips
are taken, not the latest; a video of fewer clips than steps is an error, not undefined; float64, not float32.

The released code of VT-TWINS (KoDohwan/VT-TWINS) reports another measure under the name of CTR, see `trimmed_recall`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb.corpora.reading import CorpusError, expecting, listed, read_lines
from ssb.corpora.stories import Stories

TASKS = "tasks_primary.txt"
COLUMNS = ["video", "task", "correct", "annotated"]  # of a frame with one row for each video


class Annotated(NamedTuple):
    """A video of T seconds and where the K steps of its task are; `inside` (K, T) bool."""

    video: str
    task: str
    inside: np.ndarray


def read_tasks(source: Path) -> dict[str, list[str]]:
    """task → its steps in order, of the official tasks_primary.txt: id, title, address, number of steps, the steps.
    CorpusError for a file of another form."""
    lines = [line.strip() for line in read_lines(source)]
    with expecting(source, "the CrossTask tasks: wanted five lines a task, the last its steps"):
        tasks = {task: steps.split(",") for task, steps in zip(lines[::5], lines[4::5], strict=True)}
        if len(tasks) < len(lines) // 5:
            raise ValueError("a task is there twice; keep one")
        if not tasks or [len(steps) for steps in tasks.values()] != [int(n) for n in lines[3::5]]:
            raise ValueError("a task has another number of steps than its fourth line says")
    return tasks


def task_order(steps: pd.DataFrame) -> dict[str, list[str]]:
    """task → its steps in their typical order, for use without the official one: by the mean position of a step in its
    videos (middle of the step over the end of the last). steps: the frame of `ssb.corpora.labels.crosstask`. This order
    is computed from the annotations that the evaluation uses afterwards; report it with the result."""
    position = (steps["start"] + steps["end"]) / 2 / steps.groupby("video")["end"].transform("max")
    mean = position.groupby([steps["task"], steps["text"]]).mean().sort_values(kind="stable")
    return {task: list(group.index.get_level_values("text")) for task, group in mean.groupby("task")}


def annotated(
    steps: pd.DataFrame, tasks: Mapping[str, list[str]], seconds: Mapping[str, int] | None = None
) -> list[Annotated]:
    """Which seconds belong to which step, for each video.

    steps: the frame of `ssb.corpora.labels.crosstask`; tasks: from `read_tasks` or `task_order`.
    seconds: video → T, the number of clips its features have; videos without are left out. None: up to the last
    annotation. CorpusError for a step that the task does not have.
    """
    videos = []
    for (task, video), group in steps.groupby(["task", "video"], sort=False):
        if seconds is not None and video not in seconds:
            continue
        row = {step: k for k, step in enumerate(tasks.get(task, ()))}
        if unknown := sorted(set(group["text"]) - set(row)):
            raise CorpusError(f"task {task!r} has no step {listed(unknown)}, which is annotated in video {video!r}")
        inside = np.zeros((len(row), seconds[video] if seconds is not None else int(np.ceil(group["end"].max()))), bool)
        for step, start, end in zip(group["text"], group["start"], group["end"]):
            inside[row[step], int(np.floor(start)) : int(np.ceil(end))] = True
        videos.append(Annotated(video, task, inside))
    return videos


def assign(scores) -> np.ndarray:
    """The clip of each step, (K,) strictly increasing, that gives the highest sum; of equal sums, the one whose last
    step is earliest, then the last but one, and so on. scores: (K, T), steps in their order. Dynamic programming: exact
    in O(K T).

    ValueError for more steps than clips and for a score that is not finite."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not 1 <= len(scores) <= scores.shape[1]:
        raise ValueError(f"scores have shape {scores.shape}; wanted (steps, clips), one to as many steps as clips")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; look for NaN in the embeddings")
    best = np.empty_like(scores)  # the highest sum of this step and all before it, if the step is assigned this clip
    best[0] = scores[0]
    for k in range(1, len(scores)):
        best[k, :k] = -np.inf  # too few clips left for the earlier steps
        best[k, k:] = scores[k, k:] + np.maximum.accumulate(best[k - 1])[k - 1 : -1]
    clips, end = np.empty(len(scores), int), scores.shape[1]
    for k in reversed(range(len(scores))):
        end = clips[k] = best[k, :end].argmax()
    return clips


def evenly(steps: int, clips: int) -> np.ndarray:
    """The clips (K,) of steps spread evenly over a video, whatever it shows: the baseline that a model must beat."""
    return ((np.arange(steps) + 0.5) * clips / steps).astype(int)


def count(clips, inside) -> tuple[int, int]:
    """The number of steps localised correctly and of annotated steps. clips: (K,) the clip of each step; inside: (K, T)
    bool, of `Annotated`."""
    inside = np.asarray(inside, bool)
    return int(inside[np.arange(len(inside)), clips].sum()), int(inside.any(1).sum())


def localise(scores: Mapping[str, np.ndarray], videos: list[Annotated]) -> pd.DataFrame:
    """A row for each video, columns video, task, correct and annotated (numbers of steps). scores: video → (K, T).
    ValueError for a video without scores, or with scores of another shape."""
    rows = []
    for video, task, inside in videos:
        if video not in scores:
            raise ValueError(f"no scores for video {video!r}")
        if (shape := np.shape(scores[video])) != inside.shape:
            raise ValueError(f"video {video!r}: scores of shape {shape}; wanted (steps, clips) = {inside.shape}")
        rows.append((video, task, *count(assign(scores[video]), inside)))
    return pd.DataFrame(rows, columns=COLUMNS)


def task_recall(frame: pd.DataFrame, per_video: bool = False) -> pd.Series:
    """Recall of each task, in percent, of a frame as `localise` returns it. per_video: the mean of the recalls of its
    videos, so that a video of many steps counts no more than another; the released code counts steps. ValueError
    without an annotated step."""
    frame = frame[frame["annotated"] > 0]
    if frame.empty:
        raise ValueError("no annotated step in any video, so recall is undefined")
    if per_video:
        return (100 * frame["correct"] / frame["annotated"]).groupby(frame["task"]).mean()
    total = frame.groupby("task")[["correct", "annotated"]].sum()
    return 100 * total["correct"] / total["annotated"]


def ctr(frame: pd.DataFrame, per_video: bool = False) -> float:
    """CTR in percent: the mean over tasks of `task_recall`."""
    return float(task_recall(frame, per_video).mean())


def localise_stories(similarity, stories: Stories, videos: np.ndarray) -> pd.DataFrame:
    """Step localisation on generated videos: the captions of a sequence that describe an event, in the true order of
    their events, are assigned a clip each. A frame as of `localise`, with one task, "events", and the number of each
    video.

    similarity: (V, m, n) of the captions and clips of each video, or None: captions are spread `evenly`.
    videos: (V,) their numbers. ValueError for another shape, and for stories whose truth is not known.
    """
    if stories.truth is None:
        raise ValueError("what the captions of these stories describe is not known; use the corpus 'events'")
    n = stories.clips.shape[1]
    shape = (len(videos), stories.captions.shape[1], n)
    if similarity is not None and np.shape(similarity) != shape:
        raise ValueError(f"similarity has shape {np.shape(similarity)}; wanted (videos, captions, clips) = {shape}")
    rows = []
    for i, (video, truth) in enumerate(zip(videos, stories.truth[videos])):
        order = np.argsort(truth, kind="stable")[(truth < 0).sum() :]
        counts = 0, 0
        if len(order):
            clips = evenly(len(order), n) if similarity is None else assign(similarity[i][order])
            counts = count(clips, np.eye(n, dtype=bool)[truth[order]])
        rows.append((int(video), "events", *counts))
    return pd.DataFrame(rows, columns=COLUMNS)


def trimmed_recall(similarity) -> float:
    """What the released code of VT-TWINS calls CTR, of one task, in percent: the share of annotated segments, cut out
    beforehand, of all videos of the task whose own text is the nearest. similarity: (S, S) of the segments and their
    texts. Steps with the same text tie and count as correct. This is no localisation: nothing is searched for in the
    video, and no order is imposed. ValueError for a matrix that is not square or not finite."""
    similarity = np.asarray(similarity, np.float64)
    if similarity.ndim != 2 or len(similarity) != similarity.shape[1] or not len(similarity):
        raise ValueError(f"similarity has shape {similarity.shape}; wanted (segments, texts), as many of both")
    if not np.isfinite(similarity).all():
        raise ValueError("a similarity is not finite; look for NaN in the embeddings")
    return float(100 * (np.diag(similarity) >= similarity.max(1)).mean())
