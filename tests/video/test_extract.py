"""Raw video: the right frames of each second, whatever is wrong with a file; backbones; streams a corpus can read."""

import functools
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ssb import ModelError, load_corpus, machine
from ssb.__main__ import main
from ssb.video import backbones, decode, extract, r2plus1d

av = pytest.importorskip("av")

HALF = Fraction(1, 2)


def greys(count: int) -> list[int]:
    """A grey that tells the number of a frame: neighbours differ by 5 or more."""
    return [20 + i * 37 % 215 for i in range(count)]


def write_video(path: Path, shades, fps=25, size=(32, 48), codec="libx264", pixels="yuv420p", ms=(), **options) -> Path:
    """Frames of one grey each; `ms`: when each is shown, for a variable rate."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.time_base = clock = Fraction(1, 1000) if ms else 1 / Fraction(fps)
        stream.codec_context.time_base = clock
        for i, shade in enumerate(shades):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), shade, np.uint8), format="rgb24")
            frame.pts, frame.time_base = ms[i] if ms else i, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey(frame) -> np.ndarray:
    return np.array([frame.to_ndarray(format="rgb24").mean()], np.float32)


def seen(path: Path, count: int = 1, rate=1) -> np.ndarray:
    """(steps, count) greys."""
    return np.stack(list(decode.windows(path, count, Fraction(rate), grey)))[..., 0]


def number(shade: float, count: int) -> int:
    """Of the frame that has this grey."""
    away = [abs(shade - other) for other in greys(count)]
    assert min(away) < 2.5
    return int(np.argmin(away))


# Decoding


@pytest.mark.parametrize(
    "fps, count",
    [("25", 88), ("30000/1001", 75), ("10", 15), ("10", 16), ("7", 24), ("60", 31), ("1", 3), ("1/2", 2), ("25", 1)],
)
def test_a_step_is_the_frame_shown_in_the_middle_of_a_second(tmp_path, fps, count):
    path, fps = write_video(tmp_path / "a.mp4", greys(count), fps), Fraction(fps)
    middles = [k + HALF for k in range(100) if k + HALF < count / fps] or [0]
    assert [number(x, count) for (x,) in seen(path)] == [math.floor(t * fps) for t in middles]


@pytest.mark.parametrize("size, pixels, codec", [((33, 47), "yuv444p", "libx264"), ((17, 5), "yuv420p", "mpeg4")])
@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_odd_sizes_and_other_containers(tmp_path, size, pixels, codec, ending):
    path = write_video(tmp_path / f"a.{ending}", greys(25), 10, size, codec, pixels)
    assert [number(x, 25) for (x,) in seen(path)] == [5, 15]
    *_, window = decode.windows(path, 2, Fraction(30), backbones.middle)
    assert window.shape == (2, 112, 112, 3) and window.dtype == np.uint8


def test_variable_rate(tmp_path):
    ms = [0, 100, 480, 520, 1700, 1800, 3100, 3400, 6000]
    path = write_video(tmp_path / "a.mp4", greys(9), ms=ms)
    at = [number(x, 9) for (x,) in seen(path)]  # shown at 0.5, 1.5, 2.5, 3.5, 4.5, 5.5 and, if the last lasts, 6.5 s
    assert at[:6] == [2, 3, 5, 7, 7, 7] and at[6:] in ([], [8])


def test_an_image_backbone_sees_colours_the_right_way_round(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "bgr0"
        image = np.zeros((128, 160, 3), np.uint8)
        image[:64, :80] = 200, 100, 50  # upper left
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    ((window,),) = decode.windows(path, 1, Fraction(1), backbones.middle)
    assert np.abs(window - image[8:120, 24:136].astype(int)).max() <= 2  # 160 × 128 is not scaled, only cut


def naive(times: list[Fraction], end: Fraction, count: int, rate: Fraction) -> list[list[int]]:
    """Numbers of the frames of every window, with the whole clip at hand."""

    def at(t):
        return max([i for i, begin in enumerate(times) if begin <= t], default=0)

    steps = max(1, math.ceil(end - HALF))
    return [[at(k + HALF + (i - Fraction(count - 1, 2)) / rate) for i in range(count)] for k in range(steps)]


@given(
    gaps=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    count=st.integers(1, 6),
    rate=st.integers(1, 40),
)
@settings(deadline=None)
def test_windows_equal_those_of_a_clip_held_whole(gaps, count, rate):
    edges = [Fraction(sum(gaps[:i]), 40) for i in range(len(gaps) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "upright", lambda path, frame: frame)
        patch.setattr(decode, "frames", lambda path: [*zip(edges[:-1], range(1, len(gaps) + 1)), (edges[-1], None)])
        asked = []
        found = list(decode.windows("", count, Fraction(rate), lambda i: asked.append(i) or np.array(i - 1)))
    assert [window.tolist() for window in found] == naive(edges[:-1], edges[-1], count, Fraction(rate))
    assert len(asked) <= len(found) + len(set(asked))  # no frame is prepared over and over


def test_a_video_backbone_sees_frames_around_the_middle(tmp_path):
    path = write_video(tmp_path / "a.mp4", greys(50), 20)  # 2.5 s: two steps
    windows = [[number(x, 50) for x in window] for window in seen(path, count=4, rate=10)]
    assert windows == [[7, 9, 11, 13], [27, 29, 31, 33]]  # 0.35, 0.45, 0.55, 0.65 s, and a second later
    windows = [[number(x, 50) for x in window] for window in seen(path, count=3, rate=Fraction(1, 2))]
    assert windows == [[0, 10, 49], [0, 30, 49]]  # −1.5, 0.5, 2.5; −0.5, 1.5, 3.5 s


def test_sound_that_goes_on_after_the_picture_is_no_matter(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        for shade in greys(10):
            image = np.full((32, 32, 3), shade, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(picture.encode(None))
        for i in range(60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert [number(x, 10) for (x,) in seen(path)] == [5]


def sound_only(path: Path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut_short(path: Path, share: float, **options):
    whole = write_video(path, greys(100), 25, (320, 240), bf="0", **options).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def cut_other(path: Path, ending: str):
    whole = write_video(path.with_suffix(ending), greys(100), 25, (320, 240), bf="0").read_bytes()
    path.write_bytes(whole[: int(0.7 * len(whole))])


def cut_untagged(path: Path):
    """Without the DURATION of the stream: that of the file is left."""
    whole = write_video(path.with_suffix(".mkv"), greys(100), 25, (320, 240), bf="0").read_bytes()
    assert b"DURATION" in whole
    path.write_bytes(whole.replace(b"DURATION", b"ANYTHING")[: int(0.7 * len(whole))])


def holes(path: Path):
    """The data of all frames overwritten, what describes them left."""
    content = bytearray(write_video(path, greys(50), movflags="faststart").read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = bytes(len(content) - start)
    path.write_bytes(content)


DAMAGE = {
    "gone": (lambda path: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "not readable as video"),
    "words": (lambda path: path.write_text("a page that says: not found" * 99), "not readable as video"),
    "sound": (sound_only, "no video stream"),
    "no frames": (lambda path: write_video(path, []), "no frame of it|not readable as video|no video stream"),
    "no index": (functools.partial(cut_short, share=0.5), "not readable as video"),
    "cut short": (functools.partial(cut_short, share=0.7, movflags="faststart"), r"ends after \d\.\d of 4\.0 s"),
    "cut AVI": (functools.partial(cut_other, ending=".avi"), r"ends after [0-2]\.\d of 4\.0 s"),
    "cut Matroska": (functools.partial(cut_other, ending=".mkv"), r"ends after [0-2]\.\d of 4\.0 s"),
    "cut, untagged": (cut_untagged, r"ends after [0-2]\.\d of 4\.0 s"),
    "zeros": (holes, "no frame of it can be decoded"),
    "clock": (lambda path: write_video(path, greys(3), ms=[0, 40, 10**7]), "clock jumps from 0 to 10000 s"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_clip_says_what_is_wrong(tmp_path, kind):
    damage, message = DAMAGE[kind]
    damage(tmp_path / "a.mp4")
    with pytest.raises(decode.VideoError, match=message):
        list(decode.windows(tmp_path / "a.mp4", 1, Fraction(1), grey))


def test_one_damaged_packet_is_passed_over(tmp_path):
    path = write_video(tmp_path / "a.avi", greys(30), 10, codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        packet = bytes([p for p in container.demux() if p.size][15])
    content = path.read_bytes().replace(packet, bytes(len(packet)))
    path.write_bytes(content)
    assert [number(x, 30) for (x,) in seen(path)] == [5, 14, 25]  # the frame before it stays


def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path):
    """A cut without new encoding: the file says 6 s, shows the last 2."""
    whole = write_video(tmp_path / "whole.mp4", greys(60), 10, bf="0")
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.pts, packet.dts = (t - int(4 / packet.time_base) for t in (packet.pts, packet.dts))
                packet.stream = stream
                target.mux(packet)
    assert [number(x, 60) for (x,) in seen(path)] == [45, 55]


@pytest.mark.skipif(not (DATA / "msvd" / "raw_clips").is_dir(), reason="no MSVD clips")
def test_real_clips_have_as_many_steps_as_their_names_say():
    clips = [path for path in (DATA / "msvd" / "raw_clips").glob("*.avi") if path.stat().st_size < 400_000]
    assert clips
    for path in clips:
        begin, end = map(int, path.stem.split("_")[-2:])  # seconds of a YouTube video
        shades = seen(path)
        assert len(shades) == end - begin and np.ptp(shades) > 0.1


# R(2+1)D


def convolution(x, weight, stride, padding):
    """(C, T, H, W) by loops."""
    x = np.pad(x, [(0, 0), *((p, p) for p in padding)])
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], weight.shape[2:], stride)]
    out = np.zeros((len(weight), *size))
    for place in np.ndindex(*size):
        part = x[(slice(None), *(slice(i * s, i * s + k) for i, s, k in zip(place, stride, weight.shape[2:])))]
        out[(slice(None), *place)] = [(part * kernel).sum() for kernel in weight]
    return out


def normed(x, state, name):
    mean, var, weight, bias = (
        state[f"{name}.{key}"][:, None, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-3) * weight + bias


def by_hand(x, state, name, stride):
    x = convolution(x, state[f"{name}.0.weight"], (1, stride, stride), (0, 1, 1))
    x = np.maximum(normed(x, state, f"{name}.1"), 0)
    return convolution(x, state[f"{name}.3.weight"], (stride, 1, 1), (1, 0, 0))


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """Statistics of batch norms that are not 0 and 1."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point() and value.ndim == 1:
            torch.nn.init.uniform_(value, 0.2, 2)
    return module.eval()


@pytest.mark.parametrize("inside, outside, stride", [(2, 3, 1), (2, 3, 2), (3, 3, 1)])
def test_a_block_equals_loops_over_space_then_time(inside, outside, stride):
    torch.manual_seed(0)
    block = drawn(r2plus1d.Block(inside, outside, stride)).double()
    state = {key: value.detach().numpy() for key, value in block.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((inside, 3, 5, 4))
    y = np.maximum(normed(by_hand(x, state, "conv1.0", stride), state, "conv1.1"), 0)
    y = normed(by_hand(y, state, "conv2.0", 1), state, "conv2.1")
    past = x
    if stride > 1 or inside != outside:
        past = normed(convolution(x, state["downsample.0.weight"], [stride] * 3, (0, 0, 0)), state, "downsample.1")
    with torch.no_grad():
        found = block(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, np.maximum(y + past, 0), rtol=1e-10, atol=1e-12)


def published(classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published weights, written out from their widths."""
    shapes = {"fc.weight": (classes, 512), "fc.bias": (classes,)}

    def norm(name, width):
        shapes.update({f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def pair(name, inside, middle, outside):
        shapes[f"{name}.0.weight"], shapes[f"{name}.3.weight"] = (middle, inside, 1, 3, 3), (outside, middle, 3, 1, 1)
        norm(f"{name}.1", middle)

    shapes |= {"stem.0.weight": (45, 3, 1, 7, 7), "stem.3.weight": (64, 45, 3, 1, 1)}
    norm("stem.1", 45), norm("stem.4", 64)
    table = (
        (1, 3, 64, 64, 144, 144),
        (2, 4, 64, 128, 230, 288),
        (3, 6, 128, 256, 460, 576),
        (4, 3, 256, 512, 921, 1152),
    )
    for layer, depth, inside, width, first, other in table:
        for n in range(depth):
            name = f"layer{layer}.{n}"
            pair(f"{name}.conv1.0", width if n else inside, other if n else first, width)
            pair(f"{name}.conv2.0", width, other, width)
            norm(f"{name}.conv1.1", width), norm(f"{name}.conv2.1", width)
        if layer > 1:
            shapes[f"layer{layer}.0.downsample.0.weight"] = (width, inside, 1, 1, 1)
            norm(f"layer{layer}.0.downsample.1", width)
    return shapes


@pytest.mark.parametrize("classes, weights", [(359, 63_676_142), (487, 63_741_806), (400, 63_697_175)])
def test_names_shapes_and_number_of_weights(classes, weights):
    with torch.device("meta"):
        model = r2plus1d.R2Plus1D(classes)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == published(classes)
    trained = {key: shape for key, shape in published(classes).items() if "running" not in key and "tracked" not in key}
    assert sum(map(math.prod, trained.values())) == sum(p.numel() for p in model.parameters()) == weights


def save_small(path: Path, shapes: dict) -> Path:
    """A file of these shapes that holds one number for each tensor."""
    torch.save({key: torch.full((), 0.5).expand(shape) for key, shape in shapes.items()}, path)
    return path


@pytest.mark.slow
def test_weights_come_back_from_safetensors_and_give_the_mean_of_the_last_layer(tmp_path):
    torch.manual_seed(0)
    model = drawn(r2plus1d.R2Plus1D(359))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    again, frames = r2plus1d.load(str(tmp_path / "a.safetensors"))
    assert frames == 8 and not again.training
    pixels = torch.randint(0, 256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    last = []
    again.layer4.register_forward_hook(lambda module, inputs, output: last.append(output))
    with torch.inference_mode():
        found = again(pixels)
        x = pixels.permute(0, 4, 1, 2, 3) / 255
        x = (x - torch.tensor(r2plus1d.MEAN).reshape(3, 1, 1, 1)) / torch.tensor(r2plus1d.STD).reshape(3, 1, 1, 1)
        x = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(x)))))
    assert last[0].shape == x.shape == (1, 512, 1, 2, 2)
    torch.testing.assert_close(last[0], x)
    torch.testing.assert_close(found, functional.adaptive_avg_pool3d(x, 1).flatten(1))


@pytest.mark.parametrize(
    "name, classes, frames",
    [
        ("r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth", 487, 32),
        ("r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth", 400, 8),
        ("mine.pt", 487, 32),
        ("mine.pt", 400, None),
    ],
)
def test_frames_of_a_window_from_name_or_classes(tmp_path, name, classes, frames):
    path = str(save_small(tmp_path / name, published(classes)))
    assert r2plus1d.load(path)[1] == frames
    if frames:
        backbone = backbones.backbone(path)
        assert (backbone.count, backbone.rate) == (frames, 30)
    else:
        with pytest.raises(ModelError, match="8 or of 32 frames.*--frames"):
            backbones.backbone(path)
        assert backbones.backbone(path, 16, 12.5).rate == Fraction(25, 2)


def test_published_weights_are_fetched_by_name_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(r2plus1d, "HOME", tmp_path.as_uri() + "/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    save_small(tmp_path / "a", published(487))
    for name, sha in (("right", hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()[:8]), ("wrong", "0" * 8)):
        file = f"r2plus1d_34_clip32_{name}-{sha}.pth"
        (tmp_path / file).write_bytes((tmp_path / "a").read_bytes())
        monkeypatch.setitem(r2plus1d.PUBLISHED, name, file)
    model, frames = r2plus1d.load("right")
    assert frames == 32 and model.fc.bias.unique().item() == 0.5
    with pytest.raises(ModelError, match="'wrong'.*hash"):
        r2plus1d.load("wrong")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"layer2.0.conv2.0.0.weight": (230, 128, 1, 3, 3)},
            r"mismatch for layer2\.0\.conv2.*\[230, .*current.*\[288, ",
        ),
        ({"stem.9.weight": (1,)}, r'Unexpected key.*"stem\.9\.weight"'),
        ({"fc.weight": None}, "no fc.weight"),
        ({"layer4.2.conv1.1.bias": None}, r'Missing key.*"layer4\.2\.conv1\.1\.bias"'),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    shapes = {key: shape for key, shape in (published(359) | change).items() if shape is not None}
    with pytest.raises(ModelError, match=rf"a\.pth: .*{message}.*wanted"):
        r2plus1d.load(str(save_small(tmp_path / "a.pth", shapes)))


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_files_that_are_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Trap()}, "trap.pth")
    Path("words.pth").write_text("not found")
    Path("words.safetensors").write_text("not found")
    torch.save([1, 2], "list.pt")
    for name in ("trap.pth", "words.pth", "words.safetensors", "list.pt", "gone.pth", "gone.safetensors"):
        with pytest.raises(ModelError, match=name):
            r2plus1d.load(name)
    assert not Path("sprung").exists()


# Backbones of transformers


def save_backbone(folder: Path, model, processor) -> str:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    """A ResNet of four layers of one block, as ResNet-152 is published: with the head of a classifier."""
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], num_labels=3)
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 56})
    return save_backbone(
        tmp_path_factory.mktemp("resnet"), transformers.ResNetForImageClassification(config), processor
    )


def test_a_resnet_gives_its_last_pooling(tmp_path, resnet):
    path, backbone = write_video(tmp_path / "a.mp4", greys(20), 10, (64, 80)), backbones.backbone(resnet)
    found = backbone.encode(
        torch.from_numpy(np.stack(list(decode.windows(path, backbone.count, backbone.rate, backbone.prepare))))
    )
    with av.open(str(path)) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    model = transformers.ResNetModel.from_pretrained(resnet).eval()
    processor = transformers.ConvNextImageProcessorPil.from_pretrained(resnet)
    wanted = model(**processor([images[5], images[15]], return_tensors="pt")).pooler_output.flatten(1)
    assert found.shape == (2, 16) and (found[0] - found[1]).abs().max() > 1e-4
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_video_backbone_gets_its_frames_in_order(tmp_path):
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    sizes = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.VideoMAEImageProcessorPil(**sizes)
    backbone = backbones.backbone(save_backbone(tmp_path / "model", transformers.VideoMAEModel(config), processor))
    assert (backbone.count, backbone.rate) == (4, 4)
    path = write_video(tmp_path / "a.mp4", greys(16), 8, (64, 80))
    first, _ = decode.windows(path, backbone.count, backbone.rate, backbone.prepare)
    with av.open(str(path)) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    wanted = processor([images[i] for i in (1, 3, 5, 7)], return_tensors="pt").pixel_values  # at 1/8, 3/8, 5/8, 7/8 s
    np.testing.assert_allclose(first, wanted.numpy().reshape(first.shape), atol=1e-5)
    found = backbone.encode(torch.from_numpy(first)[None])
    torch.testing.assert_close(found, backbone.encode.model(torch.from_numpy(first)[None]).last_hidden_state.mean(1))
    with pytest.raises(ModelError, match="takes windows of 4 frames.*--frames 8"):
        backbones.backbone(str(tmp_path / "model"), 8)


def test_a_model_of_images_and_text_gives_the_features_of_an_image(tmp_path):
    part = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.CLIPConfig(
        text_config=part | {"vocab_size": 9}, vision_config=part | dict(image_size=32, patch_size=16), projection_dim=6
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    backbone = backbones.backbone(save_backbone(tmp_path / "model", transformers.CLIPModel(config), processor))
    pixels = torch.randn(2, 1, 3, 32, 32)
    model = backbone.encode.model
    wanted = model.visual_projection(model.vision_model(pixels[:, 0]).pooler_output)
    torch.testing.assert_close(backbone.encode(pixels), wanted)


def test_a_model_that_does_not_say_how_frames_are_prepared(tmp_path, resnet):
    for path in Path(resnet).iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="preprocessor_config.json"):
        backbones.backbone(str(tmp_path))


# Extraction


class Shade(torch.nn.Module):
    """(B, count, 1) greys → (B, 2): their mean, and ten times that."""

    def forward(self, x):
        return x.mean(1) * torch.tensor([1.0, 10.0])


BACKBONE = backbones.Backbone(Shade(), grey, 1, Fraction(1), "greys")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Six clips of 1 to 6 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        write_video(folder / f"clip{i}.mp4", [20 + 30 * i + 4 * second for second in range(i + 1) for _ in range(5)], 5)
    return folder


def read(out: Path, stream: str = "look") -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in (out / stream).glob("*.npy")}


@pytest.mark.parametrize("workers, batch", [(0, 1), (0, 4), (2, 3)])
def test_every_clip_gets_its_own_steps(tmp_path, clips, workers, batch):
    assert extract.extract([clips], tmp_path, "look", BACKBONE, batch, workers, "cpu") == {}
    found = read(tmp_path)
    assert sorted(found) == [f"clip{i}" for i in range(6)]
    for i in range(6):
        values = found[f"clip{i}"]
        assert values.dtype == np.float16 and values.shape == (i + 1, 2)
        np.testing.assert_allclose(values[:, 0], 20 + 30 * i + 4 * np.arange(i + 1), atol=2)
        np.testing.assert_allclose(values[:, 1], 10 * values[:, 0], rtol=1e-2)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_backbone_computes_with_two_threads_on_every_machine(tmp_path, clips, threads):
    """The last digits of its sums depend on their number."""
    found = []

    class Counting(Shade):
        def forward(self, x):
            found.append(torch.get_num_threads())
            return super().forward(x)

    with machine.threads(threads):
        assert extract.extract([clips], tmp_path, "look", replace(BACKBONE, encode=Counting()), 4, 0, "cpu") == {}
        assert found and set(found) == {2} and torch.get_num_threads() == threads


def test_the_output_is_a_corpus(tmp_path, clips):
    names = [path.stem for path in sorted(clips.iterdir())]
    for stream in ("look", "move"):
        extract.extract(sorted(clips.iterdir()), tmp_path / "features", stream, BACKBONE, workers=0, device="cpu")
    pd.DataFrame({"clip": names, "text": names}).to_csv(tmp_path / "captions.csv", index=False)
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:3], "val": names[3:4], "test": names[4:]}))
    corpus = load_corpus(tmp_path)
    values, mask = corpus.features()
    assert list(corpus.streams) == ["look", "move"] and values.shape == (6, 6, 4)
    assert mask.sum(1).tolist() == [1, 2, 3, 4, 5, 6]


def test_the_fingerprint_is_of_the_videos_and_the_backbone_not_of_the_last_digits(tmp_path, clips):
    """Which depend on the processor. Files that were changed by hand count as they are."""
    names = [f"clip{i}" for i in range(6)]

    def corpus(name: str, factor: float = 1.0, **settings):
        class Rounded(Shade):
            def forward(self, x):
                return super().forward(x) * factor

        home = tmp_path / name
        backbone = replace(BACKBONE, encode=Rounded(), **settings)
        extract.extract([clips], home / "features", "look", backbone, workers=0, device="cpu")
        pd.DataFrame({"clip": names, "text": names}).to_csv(home / "captions.csv", index=False)
        (home / "split.json").write_text(json.dumps({"train": names[:3], "val": names[3:4], "test": names[4:]}))
        return load_corpus(home)

    first, again = corpus("first"), corpus("again", 1.002)
    assert not np.array_equal(first.features()[0], again.features()[0]) and first.fingerprint == again.fingerprint
    others = {corpus("other", input="another way").fingerprint, first.fingerprint}
    shutil.copytree(tmp_path / "first", tmp_path / "edited")
    np.save(tmp_path / "edited" / "features" / "look" / "clip2.npy", np.full((3, 2), 7, np.float16))
    others |= {load_corpus(tmp_path / "edited").fingerprint}
    (tmp_path / "again" / "features" / "look.json").unlink()
    others |= {load_corpus(tmp_path / "again").fingerprint}
    sources = tmp_path / "first" / "features" / "look.sources.tsv"
    sources.write_text(sources.read_text()[:-2] + "?\n")  # no sum of the last clip's video
    assert len(others | {load_corpus(tmp_path / "first").fingerprint}) == 5


def test_sums_are_those_of_the_files(tmp_path, clips):
    extract.extract([clips], tmp_path, "look", BACKBONE, workers=0, device="cpu")
    lines = (tmp_path / "look.sha256").read_text().splitlines()
    assert len(lines) == 6
    for line in lines:
        sha, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha


KILLED = """
import sys, time
sys.path[:0] = [sys.argv[3], sys.argv[3] + "/.."]
import test_extract as t
real, written = t.extract.sha256, []
def slow(path):
    written.append(path.suffix == ".npy")
    if written[-1] and sum(written) == 3:
        print("three", flush=True)
        time.sleep(60)
    return real(path)
t.extract.sha256 = slow
t.extract.extract([sys.argv[1]], sys.argv[2], "look", t.BACKBONE, workers=0, device="cpu")
"""


def test_a_killed_extraction_goes_on(tmp_path, clips, capsys):
    command = [sys.executable, "-c", KILLED, clips, tmp_path / "killed", Path(__file__).parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert any(line == "three\n" for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert sorted(read(tmp_path / "killed")) == ["clip0", "clip1", "clip2"]
    assert not (tmp_path / "killed" / "look.sha256").exists()
    ages = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "look").glob("*.npy")}
    for out in ("killed", "whole"):
        capsys.readouterr()
        assert extract.extract([clips], tmp_path / out, "look", BACKBONE, workers=0, device="cpu") == {}
        assert f"6 clips, {3 if out == 'killed' else 0} of them done before" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == age for path, age in ages.items())
    sums = [(tmp_path / out / "look.sha256").read_text() for out in ("killed", "whole")]
    assert sums[0] == sums[1] and sums[0].count("\n") == 6


def test_a_damaged_output_is_made_again(tmp_path, clips, capsys):
    make = functools.partial(extract.extract, [clips], tmp_path, "look", BACKBONE, workers=0, device="cpu")
    make()
    before = (tmp_path / "look.sha256").read_text()
    (tmp_path / "look" / "clip1.npy").write_bytes((tmp_path / "look" / "clip1.npy").read_bytes()[:-2])
    np.save(tmp_path / "look" / "clip4.npy", np.zeros((5, 2), np.float16))
    (tmp_path / "look" / "clip5.npy").unlink()
    capsys.readouterr()
    make()
    assert "6 clips, 3 of them done before" in capsys.readouterr().out
    assert (tmp_path / "look.sha256").read_text() == before and read(tmp_path)["clip4"].min() > 100


def made(out: Path, *paths: Path) -> dict[str, str]:
    return extract.extract(paths, out, "look", BACKBONE, workers=0, device="cpu")


def test_another_file_of_the_same_name_is_read(tmp_path, clips, capsys):
    """In another folder, or in the place of the first; the same content again, copied or touched, is not."""
    (one, other) = (tmp_path / name / "clip0.mp4" for name in ("one", "other"))
    for path, source in ((one, "clip1.mp4"), (other, "clip4.mp4")):
        path.parent.mkdir()
        shutil.copy(clips / source, path)
    assert made(tmp_path, one) == {} and len(read(tmp_path)["clip0"]) == 2
    capsys.readouterr()
    assert made(tmp_path, other) == {} and len(read(tmp_path)["clip0"]) == 5
    said = capsys.readouterr().out
    assert "the video files of 1 clips have changed; they are extracted again: 'clip0'\n1 clips, 0 of them done" in said
    shutil.copy(other, one)
    os.utime(one, ns=(1, 1))
    for path in (one, other):
        made(tmp_path, path)
        assert "1 clips, 1 of them done before" in capsys.readouterr().out
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)  # as long, and other
    assert made(tmp_path, one) == {} and "extracted again: 'clip0'" in capsys.readouterr().out
    (line,) = (tmp_path / "look.sha256").read_text().splitlines()
    assert line.split()[0] == hashlib.sha256((tmp_path / "look" / "clip0.npy").read_bytes()).hexdigest()


def test_features_of_another_file_do_not_stay_where_this_one_is_broken(tmp_path, clips):
    shutil.copy(clips / "clip1.mp4", tmp_path / "clip0.mp4")
    made(tmp_path, tmp_path / "clip0.mp4", clips / "clip2.mp4")
    (tmp_path / "clip0.mp4").write_text("no video")
    assert list(made(tmp_path, tmp_path / "clip0.mp4", clips / "clip2.mp4")) == ["clip0"]
    assert list(read(tmp_path)) == ["clip2"]
    assert [line[-9:] for line in (tmp_path / "look.sha256").read_text().splitlines()] == ["clip2.npy"]


def test_a_stream_without_a_record_of_its_files(tmp_path, clips, capsys):
    """Made by an earlier version: it is printed, once, and later files are compared."""
    shutil.copy(clips / "clip1.mp4", tmp_path / "clip0.mp4")
    made(tmp_path, tmp_path / "clip0.mp4")
    (tmp_path / "look.sources.tsv").unlink()
    for times in (1, 0):
        capsys.readouterr()
        made(tmp_path, tmp_path / "clip0.mp4")
        said = capsys.readouterr().out
        assert said.count("1 clips have no record of their file") == times and "1 of them done" in said
    made(tmp_path, clips / "clip0.mp4")
    assert len(read(tmp_path)["clip0"]) == 1


def test_an_estimate_is_printed(tmp_path, clips, capsys, monkeypatch):
    clock = iter(np.arange(0, 1000, 1.5))
    monkeypatch.setattr(extract.time, "perf_counter", lambda: next(clock))
    extract.extract([clips], tmp_path, "look", BACKBONE, batch=2, workers=0, device="cpu")
    lines = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert len(lines) > 2 and lines[-1].startswith("█" * 20 + " 6/6") and lines[-1].endswith("about 0 s left")
    assert "about 0 s" not in lines[0]


class Overflow(torch.nn.Module):
    def forward(self, x):
        return torch.where(x.mean(1) < 35, 1e5, x.mean(1))


def test_features_that_float16_cannot_hold(tmp_path, clips):
    backbone = backbones.Backbone(Overflow(), grey, 1, Fraction(1), "greys")
    assert list(extract.extract([clips], tmp_path, "look", backbone, workers=0, device="cpu").items()) == [
        ("clip0", "its features are NaN or beyond float16")
    ]
    assert "clip0" not in read(tmp_path) and len(read(tmp_path)) == 5


@pytest.mark.parametrize(
    "before, changes, message",
    [
        ({}, {"count": 2, "rate": Fraction(4)}, "made with other 'frames', 'rate'"),
        ({}, {"encode": torch.nn.Linear(1, 2)}, "made with other 'weights'"),
        ({}, {"input": "other"}, "made with other 'input'"),
        ({"look.json": "{"}, {}, "look.json: not readable"),
        ({"look.json": None}, {}, "a stream 'look' without look.json"),
    ],
)
def test_streams_of_other_settings_are_not_mixed(tmp_path, clips, before, changes, message):
    make = functools.partial(extract.extract, [clips / "clip0.mp4"], tmp_path, "look", workers=0, device="cpu")
    make(BACKBONE)
    for name, content in before.items():
        (tmp_path / name).write_text(content) if content else (tmp_path / name).unlink()
    fields = {name: getattr(BACKBONE, name) for name in ("encode", "prepare", "count", "rate", "input")}
    with pytest.raises(ValueError, match=message):
        make(backbones.Backbone(**fields | changes))


def test_clips_that_cannot_be_told_apart_or_found(tmp_path, clips):
    other = tmp_path / "clip0.avi"
    other.touch()
    with pytest.raises(ValueError, match="clip0.avi.*clip0.mp4.*'clip0'; rename"):
        extract.files_of([clips, other])
    assert extract.files_of([clips, clips / "clip0.mp4"]).keys() == {f"clip{i}" for i in range(6)}
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no video"):
        extract.files_of([tmp_path / "none"])
    for stream in ("", ".look", "a/b", ".."):
        with pytest.raises(ValueError, match="wanted a name without folders"):
            extract.extract([clips], tmp_path, stream, BACKBONE)


def test_the_command(tmp_path, clips, resnet, capfd):
    (tmp_path / "bad.mp4").write_text("not found")
    out, given = tmp_path / "features", [str(clips / "clip2.mp4"), str(tmp_path / "bad.mp4")]
    options = ["--stream", "resnet", "--out", str(out), "--workers", "1", "--device", "cpu"]
    assert main(["extract", *given, "--model", resnet, *options]) == 1
    said = capfd.readouterr()
    assert "2/2 clips" in said.out and "1 clips could not be read" in said.err
    assert said.err.splitlines()[-1].startswith("  bad: not readable as video")
    assert read(out, "resnet")["clip2"].shape == (3, 16) and len(read(out, "resnet")) == 1
    assert main(["extract", given[0], "--model", resnet, *options]) == 0
    assert main(["extract", given[0], "--model", str(tmp_path), *options]) == 1
    assert capfd.readouterr().err.startswith("error: cannot load")
    for option in (["--batch", "0"], ["--rate", "nan"], ["--workers", "-1"]):
        with pytest.raises(SystemExit) as stop:
            main(["extract", *given, "--model", resnet, *options, *option])
        assert stop.value.code == 2


def test_stopping_is_said(tmp_path, clips, resnet, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "windows", stop)
    options = ["--stream", "a", "--out", str(tmp_path), "--workers", "0", "--device", "cpu"]
    assert main(["extract", str(clips), "--model", resnet, *options]) == 130
    assert "stopped; the same command continues from here\n" == capsys.readouterr().err


FAULTS = """
import resource, sys
import numpy as np
from ssb import machine
if sys.argv[1] == "kept":
    machine.keep_memory()
np.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """An array of 256 MB takes the pages of the one before it, as the counter of the system for new ones shows."""
    new, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, check=True).stdout)
        for word in ("new", "kept")
    )
    assert kept < new / 5
