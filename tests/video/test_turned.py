"""Videos and images that are stored turned or mirrored and say so: their frames equal rotations and flips by numpy."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssb.video import backbones, decode, extract
from ssb.video.decode import VideoError

av = pytest.importorskip("av")

STORED = np.zeros((48, 64, 3), np.uint8)  # no two of its rotations and flips are alike
STORED[:16, :40] = 200, 100, 50
STORED[:, -8:] = 20, 220, 120
SHOWN = {  # (degrees counter-clockwise, mirrored left to right after that) → by numpy
    (degrees, mirrored): np.fliplr(np.rot90(STORED, degrees // 90)) if mirrored else np.rot90(STORED, degrees // 90)
    for degrees in (0, 90, 180, 270)
    for mirrored in (False, True)
}
EXIF = {  # orientation → by numpy, after the table of the EXIF standard (version 2.32, tag 274)
    1: STORED,
    2: np.fliplr(STORED),
    3: np.rot90(STORED, 2),
    4: np.flipud(STORED),
    5: STORED.swapaxes(0, 1),
    6: np.rot90(STORED, -1),
    7: np.rot90(STORED, 2).swapaxes(0, 1),
    8: np.rot90(STORED, 1),
}


def write_turned(path: Path, turn=None, matrix=None) -> Path:
    with av.open(str(path), "w") as container:
        lossless = path.suffix == ".mkv"
        stream = container.add_stream("ffv1" if lossless else "libx264", rate=5)
        stream.height, stream.width = STORED.shape[:2]
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        if matrix:
            stream.set_display_matrix(matrix)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(STORED, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def rgb(frame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def shown(path: Path) -> np.ndarray:
    ((frame,),) = decode.windows(path, 1, Fraction(1), rgb)
    return frame


@pytest.mark.parametrize("ending, away", [("mkv", 2), ("mp4", 12)])
@pytest.mark.parametrize("turn", SHOWN)
def test_a_video_is_turned_once(tmp_path, turn, ending, away):
    frame = shown(write_turned(tmp_path / f"a.{ending}", turn))
    assert frame.shape == SHOWN[turn].shape
    assert np.abs(frame - SHOWN[turn].astype(int)).mean() <= away / 4
    fits = [other for other, image in SHOWN.items() if image.shape == frame.shape]
    assert min(fits, key=lambda other: np.abs(frame - SHOWN[other].astype(int)).sum()) == turn


def test_without_a_matrix_nothing_is_turned(tmp_path):
    assert np.abs(shown(write_turned(tmp_path / "a.mkv")) - STORED.astype(int)).max() <= 2
    assert np.abs(shown(write_turned(tmp_path / "b.mkv", matrix=[0] * 9)) - STORED.astype(int)).max() <= 2


@pytest.mark.parametrize("degrees, nearest", [(3, 0), (80, 90), (-170, 180), (265, 270)])
def test_an_oblique_angle_is_the_nearest_quarter(tmp_path, degrees, nearest):
    frame, wanted = shown(write_turned(tmp_path / "a.mkv", (degrees, False))), SHOWN[nearest, False]
    assert frame.shape == wanted.shape and np.abs(frame - wanted.astype(int)).max() <= 2


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, *EXIF, 9])
def test_an_image_is_turned_by_its_exif(tmp_path, orientation, ending):
    exif, wanted = Image.Exif(), EXIF.get(orientation, STORED)
    if orientation:
        exif[274] = orientation
    options = {"lossless": True} if ending == "webp" else {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    Image.fromarray(STORED).save(tmp_path / f"a.{ending}", exif=exif, **options)
    frame = shown(tmp_path / f"a.{ending}")
    assert frame.shape == wanted.shape and np.abs(frame - wanted.astype(int)).mean() <= 2


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.float().mean((1, 2, 4))[:, :2]  # of the first two rows


@pytest.mark.parametrize("count", [1, 3])
def test_features_see_the_video_as_it_is_shown(tmp_path, count):
    """Those of a turned file equal those of a file that is stored as it is shown."""
    write_turned(tmp_path / "turned.mkv", (180, False))
    with av.open(str(tmp_path / "stored.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = *STORED.shape[:2], "bgr0"
        for _ in range(5):
            upright = np.ascontiguousarray(np.rot90(STORED, 2))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(upright, format="rgb24")))
        container.mux(stream.encode(None))
    backbone = backbones.Backbone(Flat(), rgb, count, Fraction(5), "rows")
    assert extract.extract([tmp_path], tmp_path / "out", "look", backbone, workers=0, device="cpu") == {}
    turned, stored = (np.load(tmp_path / "out" / "look" / f"{name}.npy") for name in ("turned", "stored"))
    np.testing.assert_allclose(turned, stored, atol=2)
    assert json.loads((tmp_path / "out" / "look.json").read_text())["turned"] == "as shown"


def test_features_from_before_are_told_apart(tmp_path):
    backbone = backbones.Backbone(Flat(), rgb, 1, Fraction(1), "rows")
    write_turned(tmp_path / "a.mkv")
    extract.extract([tmp_path / "a.mkv"], tmp_path, "look", backbone, workers=0, device="cpu")
    settings = json.loads((tmp_path / "look.json").read_text())
    del settings["turned"]
    (tmp_path / "look.json").write_text(json.dumps(settings))
    before = (tmp_path / "look" / "a.npy").read_bytes()
    with pytest.raises(VideoError, match="made with other 'turned', see look.json; choose another name, or delete"):
        extract.extract([tmp_path / "a.mkv"], tmp_path, "look", backbone, workers=0, device="cpu")
    assert (tmp_path / "look" / "a.npy").read_bytes() == before
