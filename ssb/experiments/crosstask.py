"""Step localisation on CrossTask by the embeddings of a trained run."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ssb import files, s2dtw, text
from ssb.corpora import features, labels
from ssb.corpora.corpus import Corpus, fuse
from ssb.corpora.reading import CorpusError, entry, listed
from ssb.machine import threads
from ssb.metrics.steps import TASKS, annotated, count, ctr, evenly, localise, read_tasks, task_order
from ssb.training.runs import Run


class Localised(NamedTuple):
    """What `of_run` returns. frame: as of `localise`. ctr: of it. evenly: the CTR of steps spread evenly over the same
    videos, which a model must beat. official: whether the order of the steps is that of `read_tasks`."""

    frame: pd.DataFrame
    ctr: float
    evenly: float
    official: bool


def of_run(run: Run, home: Path, corpus: Corpus | None = None) -> Localised:
    """CTR of a trained run, without further training, on the CrossTask videos of `home` that have features.

    home: holds crosstask.csv; features/ with every stream of the run (see `features.sources`), one step a second, the
    id of a clip being that of its video; and tasks_primary.txt, without which the steps are in the order of
    `task_order`. Each second goes through the run's video head as a clip of one step, each step's text through its text
    encoder; the score is their cosine. corpus: that of the run; None: loaded. CorpusError for features that do not fit.
    """
    table, official = labels.crosstask(home), (home / TASKS).is_file()
    tasks = read_tasks(home / TASKS) if official else task_order(table)
    model, data = run.load(corpus)
    names, source = run.config.streams or list(data.corpus.streams), features.place(home)
    paths = [entry(features.sources(source), name, str(source), "stream") for name in names]
    available = [features.available(path) for path in paths]
    ids = [video for video in table["video"].unique() if all(video in stream for stream in available)]
    if not ids:
        raise CorpusError(f"{source}: no video has features in every stream of the run, {listed(names)}")
    streams = [features.read_stream(path, ids) for path in paths]
    if (width := sum(stream.dim for stream in streams)) != data.video_width:
        raise CorpusError(
            f"{source}: features of width {width} in {listed(names)}, but the run was trained on {data.video_width}; "
            "extract them with the same encoders"
        )
    words = list(dict.fromkeys(step for steps in tasks.values() for step in steps))
    rows, c_v = text.Ragged.of(text.token_ids(data.tokenizer, words, run.config.max_tokens)), {}
    text.check_length(run.config, data.encoder, int(rows.lengths.max()))
    with torch.inference_mode(), threads(run.config.threads):
        for i, video in enumerate(ids):
            seconds = torch.from_numpy(fuse(streams, i, f"{source}: video {video!r}"))[:, None]  # (T, 1, D)
            c_v[video] = model.embed_video(seconds, torch.ones(seconds.shape[:2], dtype=bool))
        rows = text.frozen_states(data.encoder, rows) if run.config.freeze_text else rows
        c_t = dict(zip(words, model.embed_text(*rows.padded(np.arange(len(words))))))
    videos, scores = annotated(table, tasks, {video: len(x) for video, x in c_v.items()}), {}
    for video, task, inside in videos:
        if len(inside) > inside.shape[1]:
            raise CorpusError(
                f"{source}: video {video!r} has {inside.shape[1]} seconds for the {len(inside)} steps of task "
                f"{task!r}; extract all of the video at one step a second"
            )
        scores[video] = -s2dtw.cosine_cost(c_v[video], torch.stack([c_t[step] for step in tasks[task]])).T.numpy()
    frame = localise(scores, videos)
    even = [count(evenly(*video.inside.shape), video.inside)[0] for video in videos]
    return Localised(frame, ctr(frame), ctr(frame.assign(correct=even)), official)


def crosstask(runs: Mapping[str, list[Run]], corpus: Corpus, home: Path | None = None) -> str:
    """CTR of every setting, the mean over its runs, in words; or the files that are missing for it. corpus: that of the
    runs; home: as in `of_run`, None: crosstask/ in $SSB_DATA."""
    home = files.data() / "crosstask" if home is None else home
    names = next(iter(runs.values()))[0].config.streams or list(corpus.streams)
    missing = [] if (home / "crosstask.csv").is_file() else [home / "crosstask.csv"]
    missing += [features.place(home) / name for name in names if name not in features.sources(features.place(home))]
    if missing:
        return (
            f"CrossTask: left out, because {listed(map(files.short, missing))} are missing. Needed: crosstask.csv "
            "(`ssb data crosstask`) and the streams that the runs are trained on, features/<stream>/<video>.npy at one "
            f"step a second; with {TASKS} the steps are in the official order."
        )
    results = {name: [of_run(run, home, corpus) for run in members] for name, members in runs.items()}
    first = next(iter(results.values()))[0]
    order = f"of {TASKS}" if first.official else "that is typical of the annotation used for evaluation"
    lines = [f"CrossTask CTR, {len(first.frame)} videos, steps in the order {order}; spread evenly: {first.evenly:.1f}"]
    lines += [f"{name}: {np.mean([each.ctr for each in members]):.1f}" for name, members in results.items()]
    return "\n".join(lines)
