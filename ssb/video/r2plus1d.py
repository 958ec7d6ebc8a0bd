"""R(2+1)D-34 (Tran et al., CVPR 2018) as it was pretrained on IG-65M (Ghadiyaram et al., CVPR 2019), and its weights.

The layers have the names and shapes of the published conversions to PyTorch, github.com/moabitcoin/ig65m-pytorch.
"""

import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ssb.text import ModelError

HOME = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/"
PUBLISHED = {  # name → file; its ending is the start of its SHA-256, which is checked
    "r2plus1d_34_8_ig65m": "r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth",
    "r2plus1d_34_32_ig65m": "r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth",
    "r2plus1d_34_8_kinetics": "r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
    "r2plus1d_34_32_kinetics": "r2plus1d_34_clip32_ft_kinetics_from_ig65m-ade133f1.pth",
}
FRAMES = {359: 8, 487: 32}  # classes of the two models that were trained on IG-65M alone → frames of their clips
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # RGB in 0…1, of Kinetics
SHORT, SIDE = 128, 112  # pixels: the shorter side is scaled to the one, and the middle square of the other cut out


def between(inside: int, outside: int) -> int:
    """M_i of section 3.5: channels between the two parts of a convolution, so many that it has as many weights as the
    3 × 3 × 3 one that it replaces. (torchvision's R(2+1)D takes the number of a block's first convolution for its
    second as well; the published weights do not.)"""
    return 27 * inside * outside // (9 * inside + 3 * outside)


def norm(channels: int) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels, eps=1e-3)  # that of Caffe2, where the weights are from


def separated(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A convolution in space, then one in time: (B, inside, T, H, W) → (B, outside, T, H, W) / stride."""
    middle = between(inside, outside)
    return nn.Sequential(
        nn.Conv3d(inside, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        norm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outside, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class Block(nn.Module):
    """Two separated convolutions and the way past them."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Sequential(separated(inside, outside, stride), norm(outside), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(separated(outside, outside), norm(outside))
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv3d(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + past)


def blocks(depth: int, inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inside, outside, stride), *(Block(outside, outside, 1) for _ in range(depth - 1)))


class R2Plus1D(nn.Module):
    """(B, T, 112, 112, 3) uint8 RGB → (B, 512): the last convolutional layer, averaged over space and time.

    `fc` is not used; it is there so that the published weights fit.
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
        mean, std = (torch.tensor(value, device=frames.device) for value in (MEAN, STD))
        x = (frames.float() / 255 - mean) / std  # (B, T, H, W, 3)
        x = self.stem(x.permute(0, 4, 1, 2, 3))  # (B, 64, T, H / 2, W / 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3, 4))  # of (B, 512, T / 8, H / 16, W / 16)


def load(name: str) -> tuple[R2Plus1D, int | None]:
    """The network with the weights of a .pth, .pt or .safetensors file, or with published ones (a name of PUBLISHED;
    the first use needs the network), and the frames of a clip that it was trained on: None where neither the file's
    name (…clip8…, …clip32…) nor the number of classes tells."""
    try:
        if name in PUBLISHED:
            path = Path(PUBLISHED[name])
            options = dict(map_location="cpu", weights_only=True, check_hash=True, progress=False)
            weights = torch.hub.load_state_dict_from_url(HOME + path.name, **options)
        elif (path := Path(name)).suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file; wanted the weights of an R(2+1)D-34, or one of {known()}") from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name!r}: {first}; download it again, whole, or name one of {known()}") from None
    head = weights.get("fc.weight") if isinstance(weights, dict) else None
    if not isinstance(head, torch.Tensor) or head.ndim != 2:
        raise ModelError(f"{name}: not the weights of an R(2+1)D-34 (no fc.weight); wanted those of {known()}")
    with torch.device("meta"):  # shapes alone: no time is lost on weights drawn by chance
        model = R2Plus1D(len(head))
    shapes, found = (
        {key: getattr(value, "shape", None) for key, value in x.items()} for x in (model.state_dict(), weights)
    )
    for key in sorted(shapes.keys() | found.keys()):
        if shapes.get(key) != found.get(key):
            have, want = (None if x.get(key) is None else tuple(x[key]) for x in (found, shapes))
            raise ModelError(f"{name}: {key} is {have}, wanted {want} (None: not there); wanted weights of {known()}")
    model.load_state_dict(weights, assign=True)
    clip = re.search(r"clip(\d+)_", path.name)
    return model.float().eval(), int(clip[1]) if clip else FRAMES.get(len(head))


def known() -> str:
    return ", ".join(PUBLISHED)
