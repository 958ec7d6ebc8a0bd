"""Step localisation as CrossTask evaluates it (Zhukov et al., CVPR 2019; code of DmZhukov/CrossTask, MIT).

The steps of a task come in one fixed order. In a video of T clips of one second each step is given exactly one clip,
strictly one after the other, so that the sum of scores is highest, whether or not the step is shown. An annotated step
is found where its clip lies in one of its intervals. The recall of a task is the share of annotated steps found, over
all of its videos together; CTR is the mean over tasks.

Here as there: an interval covers the seconds from floor(start) to ceil(end); a step annotated several times in a video
counts once; what is annotated beyond the last clip does not count. Different: where sums are equal the earliest clips
are taken, not the latest; a video of fewer clips than steps is an error, not undefined; float64, not float32.

The released code of VT-TWINS (KoDohwan/VT-TWINS) reports something else under the name of CTR, see `trimmed_recall`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssb.corpora.reading import CorpusError, expecting, listed, read_lines
from ssb.corpora.stories import Stories

TASKS = "tasks_primary.txt"


class Annotated(NamedTuple):
    """A video of T seconds and where the K steps of its task are; `inside` (K, T) bool."""

    video: str
    task: str
    inside: np.ndarray


def read_tasks(source: Path) -> dict[str, list[str]]:
    """task → its steps in order, of the official tasks_primary.txt: id, title, address, how many steps, the steps."""
    lines = [line.strip() for line in read_lines(source)]
    with expecting(source, "the CrossTask tasks: wanted five lines a task, the last its steps"):
        tasks = {task: steps.split(",") for task, steps in zip(lines[::5], lines[4::5], strict=True)}
        if not tasks or [len(steps) for steps in tasks.values()] != [int(n) for n in lines[3::5]]:
            raise ValueError("the number of steps is not the one that is told")
    return tasks


def task_order(steps: pd.DataFrame) -> dict[str, list[str]]:
    """task → its steps in the order in which they tend to be shown, for where the official order is not at hand: by
    where in the video (middle of the step over the end of the last) a step is, in the mean over its annotations.
    steps: the frame of `datasets.crosstask`. This looks at the annotations that are judged by afterwards; say so."""
    place = (steps["start"] + steps["end"]) / 2 / steps.groupby("video")["end"].transform("max")
    mean = place.groupby([steps["task"], steps["text"]]).mean().sort_values(kind="stable")
    return {task: list(some.index.get_level_values("text")) for task, some in mean.groupby("task")}


def annotated(
    steps: pd.DataFrame, tasks: Mapping[str, list[str]], seconds: Mapping[str, int] | None = None
) -> list[Annotated]:
    """Which seconds belong to which step, for each video.

    steps: the frame of `datasets.crosstask`; tasks: from `read_tasks` or `task_order`.
    seconds: video → T, how many clips its features have; videos without are left out. None: up to the last annotation.
    CorpusError for a step that the task does not have.
    """
    videos = []
    for (task, video), group in steps.groupby(["task", "video"], sort=False):
        if seconds is not None and video not in seconds:
            continue
        row = {step: k for k, step in enumerate(tasks.get(task, ()))}
        if strange := sorted(set(group["text"]) - set(row)):
            raise CorpusError(f"task {task!r} has no step {listed(strange)}, which is annotated in video {video!r}")
        inside = np.zeros((len(row), seconds[video] if seconds is not None else int(np.ceil(group["end"].max()))), bool)
        for step, start, end in zip(group["text"], group["start"], group["end"]):
            inside[row[step], int(np.floor(start)) : int(np.ceil(end))] = True
        videos.append(Annotated(video, task, inside))
    return videos


def assign(scores) -> np.ndarray:
    """The clip of each step, (K,) strictly increasing, that gives the highest sum; of equal sums, the one whose last
    step is earliest, then the last but one, and so on. scores: (K, T), steps in their order; exact, in K · T.

    ValueError for more steps than clips and for a score that is not finite."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not 1 <= len(scores) <= scores.shape[1]:
        raise ValueError(f"scores have shape {scores.shape}; wanted (steps, clips), one to as many steps as clips")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite; look for NaN in the embeddings")
    ends = np.empty_like(scores)  # the highest sum of this step and all before it, if the step is given this clip
    ends[0] = scores[0]
    for k in range(1, len(scores)):
        ends[k, :k] = -np.inf  # where those before have no room
        ends[k, k:] = scores[k, k:] + np.maximum.accumulate(ends[k - 1])[k - 1 : -1]
    clips, room = np.empty(len(scores), int), scores.shape[1]
    for k in reversed(range(len(scores))):
        room = clips[k] = ends[k, :room].argmax()
    return clips


def evenly(steps: int, clips: int) -> np.ndarray:
    """The clips (K,) of steps spread evenly, without a look at the video: what a model must beat."""
    return ((np.arange(steps) + 0.5) * clips / steps).astype(int)


def recall(clips, inside) -> tuple[int, int]:
    """How many steps are found, and how many are annotated: clips (K,) of the steps, inside (K, T) bool."""
    inside = np.asarray(inside, bool)
    return int(inside[np.arange(len(inside)), clips].sum()), int(inside.any(1).sum())


def localised(scores: Mapping[str, np.ndarray], videos: list[Annotated]) -> pd.DataFrame:
    """A row for each video, columns video, task, found and steps (annotated ones); scores: video → (K, T)."""
    rows = []
    for video, task, inside in videos:
        if video not in scores:
            raise ValueError(f"no scores for video {video!r}")
        if (shape := np.shape(scores[video])) != inside.shape:
            raise ValueError(f"video {video!r}: scores of shape {shape}; wanted (steps, clips) = {inside.shape}")
        rows.append((video, task, *recall(assign(scores[video]), inside)))
    return pd.DataFrame(rows, columns=["video", "task", "found", "steps"])


def task_recall(frame: pd.DataFrame, per_video: bool = False) -> pd.Series:
    """Recall of each task, in percent, of a frame as `localised` gives. per_video: the mean of the recalls of its
    videos, so that one of many steps counts no more than another; the released code counts steps."""
    frame = frame[frame["steps"] > 0]
    if frame.empty:
        raise ValueError("no annotated step in any video; there is no recall")
    if per_video:
        return (100 * frame["found"] / frame["steps"]).groupby(frame["task"]).mean()
    total = frame.groupby("task")[["found", "steps"]].sum()
    return 100 * total["found"] / total["steps"]


def ctr(frame: pd.DataFrame, per_video: bool = False) -> float:
    """CTR in percent: the mean over tasks of `task_recall`."""
    return float(task_recall(frame, per_video).mean())


def of_stories(similarity, stories: Stories, videos=None) -> pd.DataFrame:
    """The same for made videos: the told captions that are of an event, in the true order of their events, are given a
    clip each. A frame as `localised` gives, of one task, "events", `video` being the number of the video.

    similarity: (V, m, n) of the told captions and clips of each video, or None: they are spread `evenly`, blindly.
    videos: (V,) their numbers, None: all.
    """
    if stories.truth is None:
        raise ValueError("what the captions of these stories describe is not known; use the corpus 'events'")
    videos = np.arange(len(stories.clips)) if videos is None else np.asarray(videos)
    n = stories.clips.shape[1]
    wanted = (len(videos), stories.captions.shape[1], n)
    blind = similarity is None
    similarity = np.zeros(wanted) if blind else np.asarray(similarity, np.float64)
    if similarity.shape != wanted:
        raise ValueError(f"similarity has shape {similarity.shape}; wanted (videos, captions, clips) = {wanted}")
    rows = []
    for video, scores, truth in zip(videos, similarity, stories.truth[videos]):
        order = np.argsort(truth, kind="stable")[(truth < 0).sum() :]
        found = 0, 0
        if len(order):
            clips = evenly(len(order), n) if blind else assign(scores[order])
            found = recall(clips, np.eye(n, dtype=bool)[truth[order]])
        rows.append((int(video), "events", *found))
    return pd.DataFrame(rows, columns=["video", "task", "found", "steps"])


def trimmed_recall(similarity) -> float:
    """What the released code of VT-TWINS calls CTR, of one task, in percent: similarity (S, S) of the annotated
    segments, cut out beforehand, and their texts, of all videos of the task; the share of segments to which no text is
    nearer than their own. Steps that share a text tie and count as found. This is no localisation: nothing is looked
    for in the video and nothing has an order."""
    similarity = np.asarray(similarity, np.float64)
    if similarity.ndim != 2 or len(similarity) != similarity.shape[1] or not len(similarity):
        raise ValueError(f"similarity has shape {similarity.shape}; wanted (segments, texts), as many of both")
    if not np.isfinite(similarity).all():
        raise ValueError("a similarity is not finite; look for NaN in the embeddings")
    return float(100 * (np.diag(similarity) >= similarity.max(1)).mean())
