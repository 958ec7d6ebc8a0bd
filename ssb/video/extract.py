"""Raw video → feature streams: one vector for each second of a clip, from a frozen image or video backbone.

    ssb extract clips/ --stream resnet --model microsoft/resnet-152 --out data/mine/features
    ssb extract clips/ --stream r2plus1d --model r2plus1d_34_32_ig65m --out data/mine/features

These are the two streams of the paper (section 4.1): ResNet-152 after its last pooling, 2048-d, and R(2+1)D-34, its
last convolutional layer averaged over space and time, 512-d. OUT becomes a folder that
`ssb.corpora.features.read_streams` reads: OUT/<stream>/<clip>.npy of (steps, dim) float16. Beside it OUT/<stream>.json
says how the stream was made, and `sha256sum -c <stream>.sha256` in OUT checks it. OUT/<stream>.sources.tsv says of
which files it was made: clip, bytes, time of change, SHA-256.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ssb import files
from ssb.progress import minutes
from ssb.video.backbones import Backbone
from ssb.video.decode import VideoError, windows
from ssb.video.ledger import check_settings, enter_source, read_sums, replaced, sha256, there, write_sums

ENDINGS = "3gp avi flv gif m4v mkv mov mp4 mpeg mpg ogv ts webm wmv".split()  # the files of a folder that are clips


class Windows(IterableDataset):
    """The steps of many clips, to be read by the workers of a DataLoader: (number of the clip, window, None), and after
    the last one of a clip (number, None, "" or what is wrong with the clip)."""

    def __init__(self, paths: list[Path], count: int, rate: Fraction, prepare: Callable):
        self.paths, self.options = paths, (count, rate, prepare)

    def __iter__(self):
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for i in range(first, len(self.paths), stride):
            wrong = ""
            try:
                for window in windows(self.paths[i], *self.options):
                    yield i, window, None
            except (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
                wrong = " ".join(str(error).split()) or type(error).__name__
            yield i, None, wrong


def collate(items: list[tuple]) -> tuple[list[tuple[int, str | None]], torch.Tensor | None]:
    """Items of `Windows`: number and word of each; the windows of all in one tensor (n, count, …), None if no one has
    any."""
    seen = [window for _, window, _ in items if window is not None]
    return [(i, wrong) for i, _, wrong in items], torch.from_numpy(np.stack(seen)) if seen else None


# Extraction


def extract(
    clips: Iterable[str | Path],
    out: str | Path,
    stream: str,
    eye: Backbone,
    batch: int = 16,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, str]:
    """Write a stream of these files, and of the videos in these folders; a clip's id is its file's name without the
    ending. Clips that are there already, whole and of the same file, are not read again. Returns clip → what is wrong
    with it.

    batch: windows that go through the backbone together. workers: processes that decode; 0: this one."""
    out, paths = Path(out), named(clips)
    if not stream or stream.startswith(".") or Path(stream).name != stream:
        raise VideoError(f"stream {stream!r}: wanted a name without folders, such as resnet")
    check_settings(out, stream, eye.settings())
    sums = read_sums(out, stream)
    todo = [clip for clip in paths if not there(out, stream, clip, sums)]
    other = replaced(out, stream, {clip: paths[clip] for clip in paths.keys() - set(todo)})
    todo += other
    sums = {clip: sha for clip, sha in sums.items() if clip not in set(other)}
    print(f"{len(paths)} clips, {len(paths) - len(todo)} of them done before", flush=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encode, dataset = eye.encode.eval().to(device), Windows([paths[c] for c in todo], eye.count, eye.rate, eye.prepare)
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    loader = DataLoader(dataset, batch, collate_fn=collate, num_workers=min(workers, len(todo)))
    broken, rows, done, begun, told = {}, {}, 0, time.perf_counter(), 0.0
    try:
        for marks, seen in loader:
            if seen is not None:
                with torch.inference_mode():
                    vectors = iter(encode(seen.to(device)).to("cpu", torch.float16).numpy())
            for i, wrong in marks:
                clip = todo[i]
                if wrong is None:
                    rows.setdefault(clip, []).append(next(vectors))
                    continue
                values, done = rows.pop(clip, None), done + 1
                if not wrong and not np.isfinite(values).all():
                    wrong = "its features are NaN or beyond float16"
                if wrong:
                    broken[clip] = wrong
                    print(f"{paths[clip]}: {wrong}; left out", file=sys.stderr, flush=True)
                    continue
                path = out / stream / f"{clip}.npy"
                enter_source(out, stream, clip, paths[clip], sha256(paths[clip]))  # first, should the process be killed
                with files.written(path) as draft, open(draft, "wb") as file:
                    np.save(file, np.stack(values), allow_pickle=False)
                sums[clip] = sha256(path)
            spent = time.perf_counter() - begun
            if done and (spent - told > 2 or done == len(todo)):
                bar, left, told = "█" * (20 * done // len(todo)), spent / done * (len(todo) - done), spent
                print(f"{bar:·<20} {done}/{len(todo)} clips; about {minutes(left)} left", flush=True)
    except torch.OutOfMemoryError as error:
        raise VideoError(f"{error}; the same command with a smaller --batch continues from here") from None
    finally:
        write_sums(out, stream, sums, other)
    return broken


def named(clips: Iterable[str | Path]) -> dict[str, Path]:
    """Clip id → file."""
    found: dict[str, Path] = {}
    for given in map(Path, clips):
        inside = [path for path in sorted(given.glob("[!.]*")) if path.suffix.lower()[1:] in ENDINGS]
        for path in inside if given.is_dir() else [given]:
            if path.stem in found and found[path.stem] != path:
                raise VideoError(f"{path} and {found[path.stem]} are both clip {path.stem!r}; rename or leave out one")
            found[path.stem] = path
        if given.is_dir() and not inside:
            raise VideoError(f"{given}: no video; wanted files that end in {', '.join(ENDINGS)}")
    return found
