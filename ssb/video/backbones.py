"""Image and video backbones: frozen networks that encode windows of frames as features."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ssb import files
from ssb.text import ModelError, model_path, pretrained
from ssb.video import colours, efficientnet, r2plus1d

# image backbones that need no download: name → what loads it, what prepares a frame, and that in words
IMAGES = {
    "efficientnet_lite0": (efficientnet.load, efficientnet.prepare, "all of it, 224 × 224, bicubic, (x − 127) / 128"),
    "colour_edges": (colours.First, colours.prepare, "72 colours and 9 directions in 3 × 3 cells, of 96 × 96 pixels"),
}


@dataclass(frozen=True)
class Backbone:
    """A frozen network that encodes windows of frames, and how frames are prepared for it.

    encode:  (B, count, …) of prepared frames → (B, dim)
    prepare: a frame → an array
    count:   frames in a window; 1 for an image backbone
    rate:    frames per second in a window
    input:   what `prepare` does, in words or as a hash
    grid:    2: of a still image the whole and its 2 × 2 parts, see `ssb.video.decode.parts`; 1: the whole alone
    """

    encode: torch.nn.Module
    prepare: Callable[[av.VideoFrame], np.ndarray]
    count: int
    rate: Fraction
    input: str
    grid: int = 1

    def settings(self) -> dict:
        """All that the features depend on: a hash of the weights, the input, the number and the rate of the frames, the
        grid (none in streams without this entry), and that turned videos are turned upright, which was not so in
        streams without this entry."""
        state = self.encode.state_dict()
        weights = (part for key in sorted(state) for part in (key, state[key].cpu().contiguous().numpy().tobytes()))
        rate = str(self.rate) if self.count > 1 else None
        made = {"weights": files.digest(*weights), "input": self.input, "frames": self.count, "rate": rate}
        return made | {"turned": "as shown", "grid": self.grid if self.grid > 1 else None}


def backbone(model: str, count: int | None = None, rate: float | None = None, grid: int = 1) -> Backbone:
    """`model`: a name of IMAGES or of `r2plus1d.PUBLISHED`; a .pth, .pt or .safetensors file of R(2+1)D weights; or the
    hub name or folder of any image or video backbone of transformers. count, rate, grid: as in `Backbone`, to replace
    the defaults.

    R(2+1)D gets as many frames as it was trained on, 30 per second whatever the clip's own rate (the paper does not
    say; it was trained on consecutive frames). Other video backbones get as many as their config says, spread over the
    second; image backbones the frame in its middle. ModelError where the model cannot be loaded or used so."""
    if model in IMAGES:
        check_count(model, count, 1)
        load, prepare, input = IMAGES[model]
        return Backbone(load(), prepare, 1, Fraction(rate or 1), input, grid)
    if model in r2plus1d.PUBLISHED or Path(model).suffix in (".pth", ".pt", ".safetensors"):
        encode, trained = r2plus1d.load(model)
        if not (count or trained):
            raise ModelError(f"{model}: trained on clips of 8 or of 32 frames? Set the number with --frames")
        input = f"shorter side {r2plus1d.SHORT}, middle {r2plus1d.SIDE} × {r2plus1d.SIDE}"
        return Backbone(encode, middle, count or trained, Fraction(rate or 30), input, grid)
    config = pretrained(AutoConfig, model)
    wanted = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    check_count(model, count, wanted or 1)
    encode = Pooled(pretrained(AutoModel, model), video=bool(wanted)).eval()
    try:  # with PIL: the default needs torchvision
        processor = AutoImageProcessor.from_pretrained(model_path(model), trust_remote_code=False, backend="pil")
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{model!r}: does not say how to prepare frames ({first}); wanted a preprocessor_config.json")
    prepare = functools.partial(processed, processor=processor)
    input = files.digest(json.dumps(processor.to_dict(), sort_keys=True, default=str))
    return Backbone(encode, prepare, wanted or 1, Fraction(rate or wanted or 1), input, grid)


def check_count(model: str, given: int | None, wanted: int):
    """ModelError for another number of frames than a model takes."""
    if given and given != wanted:
        raise ModelError(f"{model!r} takes windows of {wanted} frames; leave --frames {given} out")


class Pooled(torch.nn.Module):
    """A transformers backbone: its last hidden state averaged over all positions, the last pooling of a ResNet; for a
    model of images and text the features of an image. A pooler with weights is not used: files often lack it."""

    def __init__(self, model: torch.nn.Module, video: bool):
        super().__init__()
        self.model, self.video = model, video

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, count, 3, H, W) → (B, dim)."""
        pixels = frames if self.video else frames[:, 0]
        if hasattr(self.model, "get_image_features"):
            features = self.model.get_image_features(pixels)
            return getattr(features, "pooler_output", features)
        x = self.model(**{self.model.main_input_name: pixels}).last_hidden_state
        return x.flatten(2).mean(2) if x.ndim > 3 else x.mean(1)  # (B, dim, h, w) or (B, positions, dim)


def middle(frame: av.VideoFrame) -> np.ndarray:
    """(112, 112, 3) uint8 RGB: the shorter side scaled to 128, then the middle square cropped."""
    short, side = r2plus1d.SHORT, r2plus1d.SIDE
    width, height = (round(short * size / min(frame.width, frame.height)) for size in (frame.width, frame.height))
    image = frame.reformat(width, height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def processed(frame: av.VideoFrame, processor) -> np.ndarray:
    """(3, H, W) float32, from the image processor of a transformers model."""
    pixels = processor(frame.to_ndarray(format="rgb24"), input_data_format="channels_last")["pixel_values"]
    return np.asarray(pixels, np.float32).reshape(np.shape(pixels)[-3:])
