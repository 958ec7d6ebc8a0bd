"""Raw video → feature streams: one vector for each second of a clip, from a frozen image or video backbone.

    ssb extract clips/ --stream resnet --model microsoft/resnet-152 --out data/mine/features
    ssb extract clips/ --stream r2plus1d --model r2plus1d_34_32_ig65m --out data/mine/features
    ssb extract images/ --stream lite0 --model efficientnet_lite0 --grid 2 --out data/mine/features

The first two are the streams of the paper (section 4.1): ResNet-152 after its last pooling, 2048-d, and R(2+1)D-34, its
last convolutional layer averaged over space and time, 512-d. OUT becomes a folder that
`ssb.corpora.features.read_streams` reads: OUT/<stream>/<clip>.npy of (steps, dim) float16. OUT/<stream>.json records
the settings of the stream, and `sha256sum -c <stream>.sha256` in OUT checks its files. OUT/<stream>.sources.tsv records
the video files: clip, bytes, time of change, SHA-256.
"""

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ssb import files, machine
from ssb.files import sha256
from ssb.progress import minutes
from ssb.video.backbones import Backbone
from ssb.video.decode import VideoError, parts, windows
from ssb.video.ledger import add_source, check_settings, complete, read_sums, remove_outdated, write_sums

ENDINGS = "3gp avi flv gif m4v mkv mov mp4 mpeg mpg ogv ts webm wmv".split()  # the files of a folder that are clips
STILLS = "bmp jpeg jpg png tif tiff webp".split()  # and those of one without such files: clips of one second

THREADS = 2  # of the backbone on a CPU: with another number the last digits differ
LONGEST_NAME = 220  # bytes of the name of a clip or a stream: 255 less what a draft of its file adds


class Windows(IterableDataset):
    """The steps of many clips, for the workers of a DataLoader: (number of the clip, window, None), and after the last
    step of a clip (number, None, error), where error is "" or says why the clip cannot be read."""

    def __init__(self, paths: list[Path], backbone: Backbone):
        self.paths, self.grid = paths, backbone.grid
        self.count, self.rate, self.prepare = backbone.count, backbone.rate, backbone.prepare

    def __iter__(self):
        """Items of the clips of this worker: every num_workers-th clip."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for i in range(first, len(self.paths), stride):
            message = ""
            try:
                for window in self.steps(self.paths[i]):
                    yield i, window, None
            except (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
                message = " ".join(str(error).split()) or type(error).__name__
            yield i, None, message

    def steps(self, path: Path) -> Iterator[np.ndarray]:
        """The windows of one clip, (count, …)."""
        if self.grid > 1:
            return parts(path, self.grid, self.count, self.prepare)
        return windows(path, self.count, self.rate, self.prepare)


def collate(items: list[tuple]) -> tuple[list[tuple[int, str | None]], torch.Tensor | None]:
    """Items of `Windows`: number and error of each; all windows in one tensor (n, count, …), None if there are none."""
    stacked = [window for _, window, _ in items if window is not None]
    return [(i, error) for i, _, error in items], torch.from_numpy(np.stack(stacked)) if stacked else None


def extract(
    clips: Iterable[str | Path],
    out: str | Path,
    stream: str,
    backbone: Backbone,
    batch: int = 16,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, str]:
    """Write a stream of these files, and of the videos in these folders, or of the images in one without videos; a
    clip's id is its file's name without the ending. Clips that already have complete features of the same file are
    skipped. Returns clip → error, for the clips that cannot be read or have no usable name. VideoError where the
    arguments do not fit the folder or each other, or memory is short.

    batch: windows in a batch of the backbone. workers: processes that decode; 0: this one."""
    out, paths, broken = Path(out), files_of(clips), {}
    if not stream or stream.startswith(".") or Path(stream).name != stream:
        raise VideoError(f"stream {stream!r}: wanted a name without folders, such as resnet")
    if fault := name_fault(stream):
        raise VideoError(f"stream {stream[:50]!r}: its name {fault}")
    if out.exists() and not out.is_dir():
        raise VideoError(f"{out}: is a file; wanted the features/ folder of a corpus")

    def leave_out(clip: str, error: str):
        broken[clip], path = error, str(paths.pop(clip))
        print(f"{path if path.isprintable() else repr(path)}: {error}; left out", file=sys.stderr, flush=True)

    for clip in list(paths):
        if fault := name_fault(clip):
            leave_out(clip, f"its name {fault}; rename it")
    check_settings(out, stream, backbone.settings())
    sums = read_sums(out, stream)
    todo = [clip for clip in paths if not complete(out, stream, clip, sums)]
    outdated = remove_outdated(out, stream, {clip: paths[clip] for clip in paths.keys() - set(todo)})
    todo += outdated
    sums = {clip: sha for clip, sha in sums.items() if clip not in set(outdated)}
    print(f"{len(paths)} clips, {len(paths) - len(todo)} of them done before", flush=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encode = backbone.encode.eval().to(device)
    machine.keep_memory()
    dataset = Windows([paths[clip] for clip in todo], backbone)
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    loader = DataLoader(dataset, batch, collate_fn=collate, num_workers=min(workers, len(todo)))
    rows, done, start, printed = {}, 0, time.perf_counter(), 0.0
    try:
        for items, inputs in loader:
            if inputs is not None:
                with torch.inference_mode(), machine.threads(THREADS):
                    vectors = iter(encode(inputs.to(device)).to("cpu", torch.float16).numpy())
            for i, error in items:
                clip = todo[i]
                if error is None:
                    rows.setdefault(clip, []).append(next(vectors))
                    continue
                values, done = rows.pop(clip, None), done + 1
                if not error and not np.isfinite(values).all():
                    error = "its features are NaN or beyond float16"
                try:
                    sha = "" if error else sha256(paths[clip])
                except OSError as reason:  # since its frames were read
                    error = f"can no longer be read ({reason.strerror})"
                if error:
                    leave_out(clip, error)
                    continue
                path = out / stream / f"{clip}.npy"
                add_source(out, stream, clip, paths[clip], sha)  # first, in case the process is killed
                with files.written(path) as draft, open(draft, "wb") as file:
                    np.save(file, np.stack(values), allow_pickle=False)
                sums[clip] = sha256(path)
            spent = time.perf_counter() - start
            if done and (spent - printed > 2 or done == len(todo)):
                bar, left, printed = "█" * (20 * done // len(todo)), spent / done * (len(todo) - done), spent
                print(f"{bar:·<20} {done}/{len(todo)} clips; about {minutes(left)} left", flush=True)
    except (RuntimeError, MemoryError) as error:
        words = " ".join(str(error).split()) or "out of memory"
        if "DataLoader worker" in words:  # killed, for lack of memory or by a decoder
            raise VideoError(f"{words}; the same command with fewer --workers continues from here") from None
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in words:
            raise VideoError(f"{words}; the same command with a smaller --batch continues from here") from None
        raise
    finally:
        write_sums(out, stream, sums, outdated)
    return broken


def name_fault(name: str) -> str | None:
    """Why a clip or a stream cannot have this name, in a clause; None where it can. It becomes part of file names of at
    most 255 bytes, and a field of the lines of the records."""
    if any(unicodedata.category(letter) == "Cs" for letter in name):  # as which Python reads other bytes
        return "is not UTF-8"
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        return "has a line break, a tab or another control character"
    if (size := len(name.encode())) > LONGEST_NAME:
        return f"has {size} bytes, at most {LONGEST_NAME} fit"
    return None


def files_of(clips: Iterable[str | Path]) -> dict[str, Path]:
    """Clip id → file, of these files and of the videos in these folders, or of the images in one that has no videos.
    VideoError where two files have one id, or a folder has neither."""
    paths: dict[str, Path] = {}
    for given in map(Path, clips):
        listing = sorted(given.glob("[!.]*"))
        videos, stills = (
            [path for path in listing if path.suffix.lower()[1:] in endings] for endings in (ENDINGS, STILLS)
        )
        inside = videos or stills
        if given.is_dir() and not inside:
            raise VideoError(f"{given}: no video and no image; wanted files that end in {', '.join(ENDINGS + STILLS)}")
        for path in inside or [given]:
            if (other := paths.setdefault(path.stem, path)) != path:
                raise VideoError(f"{path} and {other} are both clip {path.stem!r}; rename or leave out one")
    return paths
