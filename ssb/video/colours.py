"""Colours and edges: a descriptor of images that needs no trained network.

It is weak: it knows no objects. It is the second stream of corpora of still images, where no motion can be.
"""

import av
import numpy as np
import torch
from PIL import Image

SIDE = 96  # pixels
HUES, SATURATIONS, VALUES = 8, 3, 3  # bins of the colours
CELLS, DIRECTIONS = 3, 9  # of the edges: 3 × 3 cells, 9 directions in 180°
DIM = HUES * SATURATIONS * VALUES + CELLS**2 * DIRECTIONS  # 153


def descriptor(image: Image.Image) -> np.ndarray:
    """(153,) float32 of an image scaled to 96 × 96: the square roots of the shares of 72 colours (HSV), and how strong
    the edges of 9 directions are in each of 3 × 3 cells, scaled to length 1 (as in HOG, Dalal & Triggs, 2005)."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    hue, saturation, value = np.asarray(small.convert("HSV"), np.int64).reshape(-1, 3).T
    bins = (hue * HUES >> 8) * SATURATIONS * VALUES + (saturation * SATURATIONS >> 8) * VALUES + (value * VALUES >> 8)
    colours = np.sqrt(np.bincount(bins, minlength=HUES * SATURATIONS * VALUES) / len(bins))
    down, right = np.gradient(np.asarray(small.convert("L"), np.float64))
    angle = np.arctan2(down, right) % np.pi
    direction = np.minimum((angle / np.pi * DIRECTIONS).astype(int), DIRECTIONS - 1)
    row, column = np.mgrid[:SIDE, :SIDE] * CELLS // SIDE
    cell = (row * CELLS + column) * DIRECTIONS + direction
    edges = np.bincount(cell.ravel(), np.hypot(down, right).ravel(), CELLS**2 * DIRECTIONS)
    return np.concatenate([colours, edges / max(np.linalg.norm(edges), 1e-9)]).astype(np.float32)


def prepare(frame: av.VideoFrame) -> np.ndarray:
    """(153,) of a frame."""
    return descriptor(frame.to_image())


class First(torch.nn.Module):
    """(B, 1, 153) → (B, 153): the descriptor of the only frame of a window, as it is."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """What `prepare` has made."""
        return frames[:, 0]
