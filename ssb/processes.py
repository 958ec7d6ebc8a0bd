"""One run over several processes, as `accelerate launch -m ssb train …` starts them; with one, nothing is exchanged.

Each process computes its own rows of every batch. The loss of the run is the sum of what the processes add to it, so
what is computed from gathered rows in all of them alike counts 1 / `count()` in each, the gradient of a gathered tensor
is the sum of the gradients that all of them have for it, and so is that of a weight. Numbers that are drawn for a batch
are drawn for all of it in every process.
"""

import atexit
import contextlib
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

_rows: tuple[slice, int] | None = None  # that `spread` computes, and of how many


def launched() -> int:
    """How many processes the launcher has started for this run, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def join():
    """Join the processes of a launcher, if there is one, until this process ends."""
    PartialState()
    if count() > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave():
    """Threads of a group that is left to the end of the process can abort it after all its work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0. The first writes files and prints."""
    return dist.get_rank() if count() > 1 else 0


def own(length: int) -> slice:
    """The rows of this process, of a batch of `length`; the first processes have one more where it does not divide."""
    each, more = divmod(length, count())
    begin = index() * each + min(index(), more)
    return slice(begin, begin + each + (index() < more))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes, the same shape in each; and of its gradient."""
    return x if count() == 1 else _Total.apply(x)


def gathered(x: Tensor, length: int) -> Tensor:
    """All rows (length, …) of a tensor of which each process has its `own` (rows, …)."""
    if count() == 1:
        return x
    rows = own(length)
    return total(F.pad(x, (0, 0) * (x.ndim - 1) + (rows.start, length - rows.stop)))  # x + 0 = x: no rounding


def spread(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), of which each process computes its own rows. tensors: (B, …) each; returns (B, …)."""
    global _rows
    length = len(tensors[0])
    rows = own(length)
    _rows = rows, length
    try:
        return gathered(function(*(x[rows] for x in tensors)), length)
    finally:
        _rows = None


class Dropout(nn.Dropout):
    """Dropout whose draws of a batch do not depend on the number of processes. x (B, …) → (B, …), B as in `spread`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """F.dropout(x, p), of x (B, …) as in `Dropout`."""
    if p == 0:
        return x
    rows, length = _rows or (slice(None), len(x))
    kept = torch.empty(length, *x.shape[1:], dtype=x.dtype, device=x.device).bernoulli_(1 - p)
    return x * kept[rows].div_(1 - p) if p < 1 else x * 0


@contextlib.contextmanager
def apart(*what: float):
    """Draw other random numbers in each process, of modules that draw for their own rows only; afterwards all draw the
    same again. what: numbers that tell this use from others, such as the share of training done."""
    if count() == 1:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(abs(hash((torch.initial_seed(), index(), *what))))  # equal in a resumed run
        yield


def sum_gradients(parameters: Sequence[nn.Parameter]):
    """Replace each gradient by its sum over the processes."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(summed.view_as(gradient))


def agreed(number: int) -> int:
    """The number that the first process has, in all of them: they must take the same way."""
    if count() == 1:
        return number
    value = torch.tensor(int(number), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(value, 0)
    return int(value)
