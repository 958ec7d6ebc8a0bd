"""R(2+1)D-34 (Tran et al., CVPR 2018) as it was pretrained on IG-65M (Ghadiyaram et al., CVPR 2019), and its weights.

The layers have the names and shapes of the published conversions to PyTorch, github.com/moabitcoin/ig65m-pytorch.
"""

import functools
import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ssb.text import ModelError

HOME = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/"
PUBLISHED = {  # name → file; the hex digits at its end are the start of its SHA-256, which is checked
    "r2plus1d_34_8_ig65m": "r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth",
    "r2plus1d_34_32_ig65m": "r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",
    "r2plus1d_34_8_kinetics": "r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
    "r2plus1d_34_32_kinetics": "r2plus1d_34_clip32_ft_kinetics_from_ig65m-ade133f1.pth",
}
NAMES = ", ".join(PUBLISHED)
FRAMES = {359: 8, 487: 32}  # classes of the two models that were trained on IG-65M alone → frames of their clips
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # RGB in 0…1, of Kinetics
SHORT, SIDE = 128, 112  # pixels: of the scaled shorter side, and of the square cropped from the middle

norm = functools.partial(nn.BatchNorm3d, eps=1e-3)  # that of Caffe2, in which the weights were trained


def separated(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A convolution in space, then one in time: (B, inside, T, H, W) → (B, outside, T, H, W) / stride.

    Between them are M_i channels (section 3.5), so that both have as many weights as the 3 × 3 × 3 convolution that
    they replace. (torchvision's R(2+1)D uses the M_i of a block's first convolution for its second as well; the
    published weights do not.)"""
    middle = 27 * inside * outside // (9 * inside + 3 * outside)
    return nn.Sequential(
        nn.Conv3d(inside, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        norm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outside, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class Block(nn.Module):
    """Two separated convolutions with a residual connection: (B, inside, T, H, W) → (B, outside, T, H, W) / stride."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Sequential(separated(inside, outside, stride), norm(outside), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(separated(outside, outside), norm(outside))
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv3d(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both, after a ReLU."""
        residual = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + residual)


def blocks(depth: int, inside: int, outside: int, stride: int) -> nn.Sequential:
    """`depth` blocks, the first of which changes the channels and the resolution."""
    return nn.Sequential(Block(inside, outside, stride), *(Block(outside, outside, 1) for _ in range(depth - 1)))


class R2Plus1D(nn.Module):
    """(B, T, 112, 112, 3) uint8 RGB → (B, 512): the last convolutional layer, averaged over space and time.

    `fc` is not used; it exists so that the published weights fit.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            norm(45),
            nn.ReLU(inplace=True),
            nn.Conv3d(45, 64, (3, 1, 1), 1, (1, 0, 0), bias=False),
            norm(64),
            nn.ReLU(inplace=True),
        )
        self.layer1 = blocks(3, 64, 64, 1)
        self.layer2 = blocks(4, 64, 128, 2)
        self.layer3 = blocks(6, 128, 256, 2)
        self.layer4 = blocks(3, 256, 512, 2)
        self.fc = nn.Linear(512, classes)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, 112, 112, 3) uint8 RGB → (B, 512) float32, a feature vector for each clip of T frames."""
        mean, std = (torch.tensor(value, device=frames.device) for value in (MEAN, STD))
        x = (frames.float() / 255 - mean) / std  # (B, T, H, W, 3)
        x = self.stem(x.permute(0, 4, 1, 2, 3))  # (B, 64, T, H / 2, W / 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3, 4))  # of (B, 512, T / 8, H / 16, W / 16)


def load(name: str) -> tuple[R2Plus1D, int | None]:
    """The network with the weights of a .pth, .pt or .safetensors file, or with published ones (a name of PUBLISHED;
    the first use needs the network), and the frames of the clips that it was trained on: None where neither the file's
    name (…clip8…, …clip32…) nor the number of classes determines them. ModelError for a file of another model."""
    try:
        if name in PUBLISHED:
            path = Path(PUBLISHED[name])
            options = dict(map_location="cpu", weights_only=True, check_hash=True, progress=False)
            weights = torch.hub.load_state_dict_from_url(HOME + path.name, **options)
        elif (path := Path(name)).suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name!r}: {first}; download it again, whole, or name one of {NAMES}") from None
    head = weights.get("fc.weight") if isinstance(weights, dict) else None
    if not isinstance(head, torch.Tensor) or head.ndim != 2:
        raise ModelError(f"{name}: not the weights of an R(2+1)D-34 (no fc.weight); wanted those of {NAMES}")
    with torch.device("meta"):  # without memory, and without random weights, which take time
        model = R2Plus1D(len(head))
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{name}: {' '.join(str(error).split())[:500]}; wanted weights of {NAMES}") from None
    clip = re.search(r"clip(\d+)_", path.name)
    return model.float().eval(), int(clip[1]) if clip else FRAMES.get(len(head))
