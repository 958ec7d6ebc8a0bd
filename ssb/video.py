"""Raw video → feature streams: one vector for each second of a clip, from a frozen image or video backbone.

    python -m ssb.video clips/ --stream resnet --model microsoft/resnet-152 --out data/mine/features
    python -m ssb.video clips/ --stream r2plus1d --model r2plus1d_34_32_ig65m --out data/mine/features

These are the two streams of the paper (section 4.1): ResNet-152 after its last pooling, 2048-d, and R(2+1)D-34, its
last convolutional layer averaged over space and time, 512-d. OUT becomes a folder that `ssb.readers.read_streams`
reads: OUT/<stream>/<clip>.npy of (steps, dim) float16. Beside it OUT/<stream>.json says how the stream was made, and
`sha256sum -c <stream>.sha256` in OUT checks it. OUT/<stream>.sources.tsv says of which files it was made: clip, bytes,
time of change, SHA-256.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ssb import files, r2plus1d
from ssb.corpus import CorpusError, check_array, listed, read_array
from ssb.decode import windows
from ssb.study import minutes
from ssb.text import ModelError, located, pretrained

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


# Backbones


@dataclass(frozen=True)
class Backbone:
    """encode:  (B, count, …) of what `prepare` makes → (B, dim)
    prepare: a frame → an array
    count:   frames of a window; 1 for an image backbone
    rate:    frames of a window in a second
    input:   what `prepare` does, in words"""

    encode: torch.nn.Module
    prepare: Callable[[av.VideoFrame], np.ndarray]
    count: int
    rate: Fraction
    input: str

    def settings(self) -> dict:
        """All that the features depend on."""
        state = self.encode.state_dict()
        weights = (part for key in sorted(state) for part in (key, state[key].cpu().contiguous().numpy().tobytes()))
        rate = str(self.rate) if self.count > 1 else None
        return {"weights": files.digest(*weights), "input": self.input, "frames": self.count, "rate": rate}


def backbone(model: str, count: int | None = None, rate: float | None = None) -> Backbone:
    """`model`: a name of `r2plus1d.PUBLISHED`; a .pth, .pt or .safetensors file of such weights; or hub name or folder
    of any image or video backbone of transformers.

    R(2+1)D sees as many frames as it was trained on, 30 a second whatever the clip's own rate (the paper does not say;
    it was trained on consecutive frames). Other video backbones see as many as their config says, spread over the
    second; image backbones the frame in its middle."""
    if model in r2plus1d.PUBLISHED or Path(model).suffix in (".pth", ".pt", ".safetensors"):
        encode, trained = r2plus1d.load(model)
        if not (count or trained):
            raise ModelError(f"{model}: made for windows of 8 or of 32 frames? Say which with --frames")
        input = f"shorter side {r2plus1d.SHORT}, middle {r2plus1d.SIDE} × {r2plus1d.SIDE}"
        return Backbone(encode, middle, count or trained, Fraction(rate or 30), input)
    config = pretrained(AutoConfig, model)
    wanted = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    if count and count != (wanted or 1):
        raise ModelError(f"{model!r} sees {wanted or 1} frames at a time; leave --frames {count} out")
    encode = Pooled(pretrained(AutoModel, model), video=bool(wanted)).eval()
    try:  # by PIL: the other kind asks for torchvision
        processor = AutoImageProcessor.from_pretrained(located(model), backend="pil")
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{model!r}: cannot tell how frames are prepared ({first}); wanted a preprocessor_config.json")
    prepare = functools.partial(processed, processor=processor)
    input = files.digest(json.dumps(processor.to_dict(), sort_keys=True, default=str))
    return Backbone(encode, prepare, wanted or 1, Fraction(rate or wanted or 1), input)


class Pooled(torch.nn.Module):
    """A transformers backbone: its last hidden state averaged over all places; or of a model of images and text the
    features of an image. For a ResNet that is its last pooling. A pooler with weights is not used: files often lack it.
    """

    def __init__(self, model: torch.nn.Module, video: bool):
        super().__init__()
        self.model, self.video = model, video

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = frames if self.video else frames[:, 0]  # (B, count, 3, H, W) or (B, 3, H, W)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixels)
            return getattr(found, "pooler_output", found)
        x = self.model(**{self.model.main_input_name: pixels}).last_hidden_state
        return x.flatten(2).mean(2) if x.ndim > 3 else x.mean(1)  # (B, dim, h, w) or (B, places, dim)


def middle(frame: av.VideoFrame) -> np.ndarray:
    """(112, 112, 3) uint8 RGB: the shorter side scaled to 128, the middle of it."""
    short, side = r2plus1d.SHORT, r2plus1d.SIDE
    width, height = (round(short * size / min(frame.width, frame.height)) for size in (frame.width, frame.height))
    image = frame.reformat(width, height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def processed(frame: av.VideoFrame, processor) -> np.ndarray:
    """(3, H, W) float32: by the image processor of a transformers model."""
    pixels = processor(frame.to_ndarray(format="rgb24"), input_data_format="channels_last")["pixel_values"]
    return np.asarray(pixels, np.float32).reshape(np.shape(pixels)[-3:])


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
        raise ValueError(f"stream {stream!r}: wanted a name without folders, such as resnet")
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
                raise ValueError(f"{path} and {found[path.stem]} are both clip {path.stem!r}; rename or leave out one")
            found[path.stem] = path
        if given.is_dir() and not inside:
            raise ValueError(f"{given}: no video; wanted files that end in {', '.join(ENDINGS)}")
    return found


def check_settings(out: Path, stream: str, settings: dict):
    """Keep the settings, or refuse to go on with a stream that was made with others."""
    path = out / f"{stream}.json"
    mend = "choose another name, or delete its folder"
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: not readable ({error}); delete it and the folder {stream}/") from None
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise ValueError(f"{out / stream}: made with other {listed(other)}, see {path.name}; {mend}")
    elif any((out / stream).glob("[!.]*.npy")) or (out / f"{stream}.npy").exists():
        raise ValueError(f"{out}: has a stream {stream!r} that was not made here; {mend}")
    else:
        with files.written(path) as draft:
            draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def there(out: Path, stream: str, clip: str, sums: dict[str, str]) -> bool:
    """Is the clip done, as it was written? If it was not entered in the sums (the process was killed), it is now."""
    path = out / stream / f"{clip}.npy"
    if not path.is_file():
        return False
    try:
        check_array(read_array(path), path, "steps, dim")
    except CorpusError:
        return False
    found = sha256(path)
    return sums.setdefault(clip, found) == found


def replaced(out: Path, stream: str, done: dict[str, Path]) -> list[str]:
    """Those of the clips that are done whose features are of another file than the one given now: of another size, or
    of another time of change and other content. Their features are deleted. What a clip is of that was made before
    this was kept is not known; it is taken to be this file."""
    before, other, unknown = read_sources(out, stream), [], 0
    for clip, path in sorted(done.items()):
        if not path.is_file():
            continue
        now, known = path.stat(), before.get(clip)
        if known and (now.st_size, now.st_mtime_ns) == known[:2]:
            continue
        sha = sha256(path)
        if known and (now.st_size, sha) != (known[0], known[2]):
            other.append(clip)
            (out / stream / f"{clip}.npy").unlink()
            continue
        unknown += known is None
        enter_source(out, stream, clip, path, sha)
    if other:
        print(f"{len(other)} clips were made of other files of these names, and are made anew: {listed(other)}")
    if unknown:
        print(f"{unknown} clips do not say of which file they were made; they are taken to be of these")
    return other


def read_sources(out: Path, stream: str) -> dict[str, tuple[int, int, str]]:
    """Clip → size, time of change (ns) and SHA-256 of the file that it was made of."""
    path = out / f"{stream}.sources.tsv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (re.fullmatch(r"(.+)\t(\d+)\t(-?\d+)\t([0-9a-f]{64})", line) for line in lines)
    return {row[1]: (int(row[2]), int(row[3]), row[4]) for row in found if row}  # the last line of a clip counts


def enter_source(out: Path, stream: str, clip: str, source: Path, sha: str):
    """A line more, so that a killed process has said of which files its clips are."""
    state = source.stat()
    with open(out / f"{stream}.sources.tsv", "a", encoding="utf-8") as file:
        file.write(f"{clip}\t{state.st_size}\t{state.st_mtime_ns}\t{sha}\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(out: Path, stream: str) -> dict[str, str]:
    """Clip → SHA-256 of its file, as written by `write_sums`."""
    path = out / f"{stream}.sha256"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.split(f"  {stream}/", 1) for line in lines)
    return {pair[1].removesuffix(".npy"): pair[0] for pair in pairs if len(pair) == 2}


def write_sums(out: Path, stream: str, sums: dict[str, str], gone: Iterable[str] = ()):
    """gone: clips that are not to be listed any more, unless `sums` has them."""
    before = read_sums(out, stream)  # again, as another process may have done other clips
    sums = {clip: sha for clip, sha in before.items() if clip not in set(gone)} | sums
    with files.written(out / f"{stream}.sha256") as draft:
        lines = [f"{sums[clip]}  {stream}/{clip}.npy\n" for clip in sorted(sums)]
        draft.write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m ssb.video", description="Raw video to a feature stream.")
    parser.add_argument("clips", nargs="+", metavar="CLIPS", help="video files, or folders of them")
    parser.add_argument("--stream", required=True, metavar="NAME", help="what the stream is called")
    parser.add_argument("--model", required=True, help="backbone: hub name, folder, R(2+1)D-34 weights or their name")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the features/ folder of a corpus")
    parser.add_argument("--frames", type=int, help="frames of a window (R(2+1)D; default: what it was trained on)")
    parser.add_argument("--rate", type=float, help="frames of a window in a second (default: 30 for R(2+1)D)")
    parser.add_argument("--batch", type=int, default=16, help="windows in a batch (default: 16)")
    parser.add_argument("--workers", type=int, help="decoding processes (default: one for each core, at most 8)")
    parser.add_argument("--device", help="default: cuda where there is one")
    given = parser.parse_args(arguments)
    for name, least in (("frames", 1), ("batch", 1), ("workers", 0), ("rate", 1e-3)):
        if (value := getattr(given, name)) is not None and not least <= value < 1e6:
            parser.error(f"--{name} {value}: wanted {least} or more")
    try:
        eye = backbone(given.model, given.frames, given.rate)
        broken = extract(given.clips, given.out, given.stream, eye, given.batch, given.workers, given.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"error: {error}; the same command with a smaller --batch goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if broken:
        print(f"{len(broken)} clips could not be read and have no features:", file=sys.stderr)
        print(*(f"  {clip}: {wrong}" for clip, wrong in broken.items()), sep="\n", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
