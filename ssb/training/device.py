"""What a GPU needs so that no step waits for it: data that lies on it where they fit, else copies from pinned memory,
shapes that recur, and numbers that are read a step later. On a CPU all of this is plain indexing.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ssb import machine
from ssb.text import Ragged

SHARE = 0.2  # of the free memory of a GPU, what the features, the texts and the labels of a run may each take there

TOKENS = 8  # captions are padded to a multiple of so many on a GPU, so that its kernels and blocks of memory recur


def fits(size: int, device) -> bool:
    """May so many bytes be kept on the device? False for a CPU, which has them already."""
    return machine.on_gpu(device) and size <= SHARE * torch.cuda.mem_get_info(device)[0]


def sent(x: Tensor, device) -> Tensor:
    """A tensor on the device; one of the host goes to a GPU by way of pinned memory, without waiting."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def fetched(x: Tensor) -> Callable[[], list[float]]:
    """Begin to read numbers (n,); what is returned gives them, and waits only for what came before this call."""
    if x.device.type != "cuda":
        return x.tolist
    host, done = torch.empty_like(x, device="cpu", pin_memory=True), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    done.record()

    def numbers() -> list[float]:
        done.synchronize()
        return host.tolist()

    return numbers


@contextlib.contextmanager
def tf32(device):
    """Matrix products of float32 on a GPU may round their factors to TF32 meanwhile."""
    before = torch.get_float32_matmul_precision()
    if machine.on_gpu(device):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Clips:
    """The features (N, M, D) of all clips and the mask of their steps (N, M), from which batches are taken. Those that
    float16 represents exactly are kept on a GPU, or go there, as float16."""

    def __init__(self, values: Tensor, mask: Tensor, device):
        self.values, self.mask, self.device = values, mask, device
        self.dtype = self.stored = values.dtype
        if machine.on_gpu(device) and all(torch.equal(x.half().to(x.dtype), x) for x in values.split(256)):
            self.stored = torch.float16
        self.resident = fits(values.numel() * self.stored.itemsize, device)
        if self.resident:
            self.values, self.mask = values.to(self.stored).to(device), mask.to(device)

    def of(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """The features (n, M, D) and the mask (n, M) of these clips (n,), on the device."""
        rows = sent(clips, self.values.device)
        values = sent(self.values[rows].to(self.stored), self.device)
        return values.to(self.dtype), sent(self.mask[rows], self.device)


class Texts:
    """The token ids, or the states, of all captions, from which batches are taken."""

    def __init__(self, rows: Ragged, device):
        self.rows, self.device, self.lengths = rows, device, rows.lengths
        self.longest = int(self.lengths.max())
        self.resident = fits(rows.values.nbytes, device)
        if self.resident:
            self.values = torch.tensor(rows.values, device=device)

    def padded(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `Ragged.padded`, on the device; on a GPU to a multiple of `TOKENS`."""
        lengths = self.lengths[rows]
        most = int(lengths.max())
        if machine.on_gpu(self.device):
            most = min(-(-most // TOKENS) * TOKENS, self.longest)
        if not self.resident:
            return tuple(sent(x, self.device) for x in self.rows.padded(rows, most))
        begin, length = sent(torch.from_numpy(np.stack([self.rows.offsets[rows], lengths])), self.device)[..., None]
        place = torch.arange(most, device=self.device)
        mask = place < length
        values = self.values[(begin + place).masked_fill(~mask, 0)]
        return values.masked_fill(~mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), 0), mask
