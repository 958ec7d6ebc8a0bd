"""Threads, processor, memory, commit and device: what a measurement depends on besides the settings."""

import contextlib
import functools
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch


@contextlib.contextmanager
def threads(count: int):
    """Compute with so many threads: floating-point sums depend on it, and the same Config is to give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict:
    """What measured: commit of the library and whether it was changed since, torch, processor, cores and threads."""
    info = Path("/proc/cpuinfo")
    cpu = info.read_text().partition("model name\t: ")[2].partition("\n")[0] if info.exists() else platform.processor()
    origin = provenance()
    origin = {name: origin[name] for name in ("commit", "dirty", "torch")}
    return origin | {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def peak() -> float:
    """MB of memory that this process has held at most; the pages of memory maps count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def provenance() -> dict:
    """Where a number came from: commit of the library, whether it had uncommitted changes, torch, device."""
    home = Path(__file__).parent
    git = functools.partial(subprocess.run, cwd=home, capture_output=True, text=True)
    commit = dirty = ""
    with contextlib.suppress(FileNotFoundError):  # no git here
        commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        dirty = bool(git(["git", "status", "--porcelain", "--", "."]).stdout.strip()) if commit else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"commit": commit, "dirty": dirty, "torch": torch.__version__, "device": device}
