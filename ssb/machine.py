"""Threads, processor, memory, commit and device: what a measurement depends on besides the settings."""

import contextlib
import ctypes
import functools
import os
import platform
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import torch


@contextlib.contextmanager
def threads(count: int):
    """Compute with this many threads: floating-point sums depend on it, and equal Configs must give equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory():
    """Let this process keep the memory that it frees, for its next tensors. glibc gives large blocks back to the system
    at once, and to get zeroed pages for them again takes an image backbone a third of its time on a CPU. Another C
    library is left as it is."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD (bytes) of malloc.h
            mallopt(parameter, value)


def on_gpu(device) -> bool:
    """Is it a device that computes while Python goes on, so that reading a number back waits for it?"""
    return torch.device(device).type == "cuda"


def machine() -> dict:
    """Where a measurement was made: `provenance` without the device, then processor, cores and threads."""
    info = Path("/proc/cpuinfo")
    cpu = info.read_text().partition("model name\t: ")[2].partition("\n")[0] if info.exists() else platform.processor()
    origin = provenance()
    del origin["device"]
    return origin | {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def peak_memory() -> int:
    """The most bytes of memory that this process has held at once; the pages of memory maps count."""
    status = Path("/proc/self/status")  # where it is known; Linux counts what began a process in its resource usage
    if status.exists() and (peak := status.read_text().partition("VmHWM:")[2].split()):
        return int(peak[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def provenance() -> dict:
    """Where a number comes from: commit of the library, whether it had uncommitted changes ("" for both without git and
    where the library is in another project's repository), torch, device."""
    library = Path(__file__).resolve().parent
    git = functools.partial(subprocess.run, cwd=library, capture_output=True, text=True)
    commit = dirty = ""
    with contextlib.suppress(OSError):  # no git here
        top = git(["git", "rev-parse", "--show-toplevel"]).stdout.strip()
        if top and _is_own(Path(top), library):
            commit = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
            dirty = bool(git(["git", "status", "--porcelain", "--", "."]).stdout.strip()) if commit else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"commit": commit, "dirty": dirty, "torch": torch.__version__, "device": device}


def _is_own(repository: Path, library: Path) -> bool:
    """Is the folder of a repository the project of this library?"""
    project = repository / "pyproject.toml"
    if library != repository.resolve() / "ssb" or not project.is_file():
        return False
    return tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name") == "ssb"
