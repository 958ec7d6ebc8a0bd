"""Step localisation on CrossTask by the frames of a trained run."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ssb import files, s2dtw, text
from ssb.corpora import labels
from ssb.corpora.corpus import Corpus
from ssb.corpora.reading import CorpusError, check_array, listed, read_array
from ssb.machine import threads
from ssb.metrics.steps import TASKS, annotated, ctr, evenly, localised, read_tasks, recall, task_order
from ssb.training.runs import Run


class Localised(NamedTuple):
    """What `of_run` gives. frame: as of `localised`. ctr: of it. evenly: of steps spread evenly over the same videos,
    which a model must beat. official: whether the order of the steps is that of `read_tasks`."""

    frame: pd.DataFrame
    ctr: float
    evenly: float
    official: bool


def of_run(run: Run, home: Path, corpus: Corpus | None = None) -> Localised:
    """CTR of a trained run, without further training, on the CrossTask videos of `home` that have features.

    home: holds crosstask.csv; features/<stream>/<video>.npy (T, D) floats at one step a second, every stream of the
    run, as wide as it was trained on; and tasks_primary.txt, without which the steps are in the order of `task_order`.
    Each second goes through the run's video head as a clip of one step, each step's text through its text encoder; the
    score is their cosine. Streams may differ by one second, the last. corpus: that of the run, if it is at hand.
    CorpusError for features that do not fit.
    """
    table, official = labels.crosstask(home), (home / TASKS).is_file()
    tasks = read_tasks(home / TASKS) if official else task_order(table)
    model, data = run.load(corpus)
    streams = run.config.streams or list(data.corpus.streams)
    known = [v for v in table["video"].unique() if all(_features(home, stream, v).is_file() for stream in streams)]
    if not known:
        raise CorpusError(f"{home / 'features'}: no video has features in every stream of the run, {listed(streams)}")
    with torch.inference_mode(), threads(run.config.threads):
        seen = {video: _seconds(home, streams, video, data.video_width, model) for video in known}
        words = list(dict.fromkeys(step for steps in tasks.values() for step in steps))
        rows = text.Ragged.of(text.token_ids(data.tokenizer, words, run.config.max_tokens))
        rows = text.frozen_states(data.encoder, rows) if run.config.freeze_text else rows
        said = dict(zip(words, model.embed_text(*rows.padded(np.arange(len(words))))))
    videos, scores = annotated(table, tasks, {video: len(c_v) for video, c_v in seen.items()}), {}
    for video, task, inside in videos:
        if len(inside) > inside.shape[1]:
            raise CorpusError(
                f"{_features(home, streams[0], video)}: {inside.shape[1]} seconds for the {len(inside)} steps of task "
                f"{task!r}; extract all of the video at one step a second"
            )
        scores[video] = -s2dtw.cosine_cost(seen[video], torch.stack([said[step] for step in tasks[task]])).T.numpy()
    frame = localised(scores, videos)
    blind = [recall(evenly(*video.inside.shape), video.inside) for video in videos]
    return Localised(frame, ctr(frame), ctr(frame.assign(found=[found for found, _ in blind])), official)


def _features(home: Path, stream: str, video: str) -> Path:
    return home / "features" / stream / f"{video}.npy"


def _seconds(home: Path, streams: list[str], video: str, width: int, model) -> torch.Tensor:
    """c_v (T, d) of each second of a video."""
    parts = []
    for stream in streams:
        source = _features(home, stream, video)
        parts.append(read_array(source))
        check_array(parts[-1], source, "seconds, channels")
    lengths = [len(part) for part in parts]
    if max(lengths) - min(lengths) > 1:  # encoders may round the last second differently, no more
        raise CorpusError(f"{home / 'features'}: streams of video {video!r} differ in seconds, {lengths}")
    fused = np.concatenate([part[: min(lengths)] for part in parts], axis=1).astype(np.float32)
    if fused.shape[1] != width:
        raise CorpusError(
            f"{home / 'features'}: video {video!r} has features of width {fused.shape[1]} in {listed(streams)}, the "
            f"run was trained on {width}; take the same encoders"
        )
    values = torch.from_numpy(fused)[:, None]
    return model.embed_video(values, torch.ones(values.shape[:2], dtype=bool))


def crosstask(runs: Mapping[str, list[Run]], corpus: Corpus, home: Path | None = None) -> str:
    """CTR of every setting, the mean over its runs, in words; or what is missing for it. corpus: that of the runs;
    home: as in `of_run`, None: crosstask/ in $SSB_DATA."""
    home = files.data() / "crosstask" if home is None else home
    streams = next(iter(runs.values()))[0].config.streams or list(corpus.streams)
    wanted = [home / "crosstask.csv", *(home / "features" / stream for stream in streams)]
    if missing := [path for path in wanted if not path.exists()]:
        return (
            f"CrossTask: left out, for there is no {listed(map(files.short, missing))}. Wanted: crosstask.csv "
            "(`ssb data crosstask`) and, of the streams the runs are trained on, "
            f"features/<stream>/<video>.npy at one step a second; with {TASKS} the steps are in the official order."
        )
    found = {name: [of_run(run, home, corpus) for run in members] for name, members in runs.items()}
    one = next(iter(found.values()))[0]
    order = f"of {TASKS}" if one.official else "in which they tend to be shown, taken from the annotation judged by"
    lines = [f"CrossTask CTR, {len(one.frame)} videos, steps in the order {order}; spread evenly: {one.evenly:.1f}"]
    return "\n".join([*lines, *(f"{name}: {np.mean([each.ctr for each in some]):.1f}" for name, some in found.items())])
