"""Where things are stored, and how they are written: whole or not at all, checked when read back, by one process at a
time. Neither a killed process nor a power cut leaves half of a file under its name."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

SUMS = "sums.json"  # in a sealed folder: file → SHA-256
# the disk refuses, whatever the program does
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def root() -> Path:
    """The study's folder: `$SSB_HOME`, else the nearest parent of the working directory that holds `notebooks/` and
    `pyproject.toml`, else the working directory. Notebooks thus write to the same place from the root, from
    `notebooks/` and in JupyterLab."""
    if home := os.environ.get("SSB_HOME"):
        return Path(home).expanduser().resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return here


def data() -> Path:
    """The folder of corpora: `$SSB_DATA`, else `data/` under the root. A relative `$SSB_DATA` is looked up from the
    working directory first, then from the root, so that it means the same in JupyterLab and in a terminal."""
    given = Path(os.environ.get("SSB_DATA") or "data").expanduser()
    if given.is_absolute() or given.exists():
        return given.resolve()
    return (root() / given).resolve()


def runs() -> Path:
    """The folder of all runs, results/runs/<name>."""
    return root() / "results" / "runs"


def cache() -> Path:
    """The folder of what can be computed again: drawn corpora, text states, captions."""
    return root() / "results" / "cache"


def short(path: Path) -> str:
    """A path as it is printed: relative to the root where it lies under it."""
    path = Path(path).resolve()
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


def digest(*parts: str | bytes | memoryview) -> str:
    """Twelve hex digits of the SHA-256 of the parts, in order. Each part is preceded by its length, so that parts
    cannot run into one another."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:12]


COMPARABLE = ("laptop", "tuned", "paper_small")  # presets


def label(corpus: str, preset: str) -> str:
    """Name of the folders of a corpus and preset: "shapes" for those of a size that can be compared, whose tables have
    names of their own, else such as "shapes-smoke"."""
    return corpus if preset in COMPARABLE else f"{corpus}-{preset}"


def folder(kind: str, label: str) -> Path:
    """results/<label> or figures/<label>."""
    return root() / kind / label


# Whole or not at all


class StorageError(OSError):
    """Something could not be written; the message names it, the reason, the free space and what to do."""


@contextlib.contextmanager
def written(path, sealed: bool = False):
    """Yield a path next to `path` to write a file or a folder to; when the block ends without error it is on the disk
    and renamed to `path`. On an error the draft is removed and `path` stays as it was. sealed: of a folder, see `seal`.

    StorageError where the disk refuses it.
    """
    path = Path(path)
    draft = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}-{secrets.token_hex(3)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        yield draft
        if sealed:
            seal(draft)
        _sync(draft)
        _replace(draft, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer on a full disk
        if message := explained(error, path):
            raise message from error
        raise
    finally:
        _remove(draft)


def explained(error: Exception, path: Path) -> StorageError | None:
    """An error in writing to a path, in words, where the disk is the cause; else None."""
    if isinstance(error, StorageError):
        return error
    refused = isinstance(error, OSError) and error.errno in DISK
    return _refused(error, path) if refused or not isinstance(error, OSError) and _free(path) <= 1 << 20 else None


def _free(path: Path) -> int:
    """Bytes that are free where a path is to be written."""
    return shutil.disk_usage(next(folder for folder in path.parents if os.path.exists(folder))).free


def _refused(error: Exception, path: Path) -> StorageError:
    """An error in writing to a path, in words."""
    reason = getattr(error, "strerror", None) or "the disk is full"
    return StorageError(
        f"cannot write {path}: {reason} ({_free(path) / 1e9:.1f} GB are free there); free some space or allow writing, "
        "or set SSB_HOME to another folder; the same command continues from what is finished"
    )


def _sync(path: Path) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk."""
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            _sync(inner)
        _sync_folder(path)
    else:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(draft: Path, path: Path) -> None:
    """Rename; a folder that is there is moved aside first, because a rename cannot replace it."""
    if not (draft.is_dir() and path.is_dir()):
        os.replace(draft, path)
        return
    aside = draft.with_name(f"{draft.name}-old")
    os.rename(path, aside)
    os.rename(draft, path)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    return digest(platform.node())[:6]


def sweep(folder: Path) -> None:
    """Remove the drafts that processes of this machine have left in a folder and that are no longer running."""
    for draft in folder.glob(".*"):
        name = re.fullmatch(rf"\..*\.{_host()}-(\d+)-[0-9a-f]{{6}}(\..*|-old)?", draft.name)
        if name and not _runs(int(name[1]), draft):
            _remove(draft)


def _runs(pid: int, draft: Path) -> bool:
    """Whether the process that began this draft still runs. Another one may have its number now."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= draft.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


_sweep_once = functools.cache(sweep)


# Checked


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write the sum of every file of a folder into its sums.json, by which `damage` knows them again."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = {name: sha256(folder / name) for name in names if name != SUMS}
    (folder / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a clause that names the file; None where it is as it was sealed."""
    try:
        sums = dict(json.loads((folder / SUMS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{SUMS} is missing or not readable"
    for name, wanted in sums.items():
        try:
            if sha256(folder / name) != wanted:
                return f"{name} is not as it was written"
        except OSError:
            return f"{name} is missing or not readable"
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    further = sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))
    return next((f"{name} is not in {SUMS}" for name in further if name not in sums and name != SUMS), None)


def kept(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder of results/cache that `make(draft)` fills, once: by one process at a time; again if it is damaged."""
    if damage(folder):
        with lock(folder):
            if damage(folder):
                with written(folder, sealed=True) as draft:
                    draft.mkdir()
                    make(draft)
    return folder


def once(path: Path, what: str, make: Callable[[], str]) -> str:
    """A text that `make()` computes from a file, kept in results/cache until the size or the time of the file changes.
    what: names what is computed."""
    path = Path(path).resolve()
    state = path.stat()
    kept = cache() / "sums" / digest(str(path), str(state.st_size), str(state.st_mtime_ns), what)
    with contextlib.suppress(OSError, ValueError):  # a file that is missing or damaged is made again
        text, own = kept.read_text(encoding="utf-8").rsplit("\n", 1)
        if digest(kept.name, text) == own:
            return text
    text = make()
    with written(kept) as draft:
        draft.write_text(f"{text}\n{digest(kept.name, text)}", encoding="utf-8")
    return text


# By one process at a time


@contextlib.contextmanager
def lock(path: Path, waiting: Callable[[str], object] = lambda holder: None):
    """Hold the lock of a run or a cache folder; the system releases it when the process ends, however it ends.

    waiting: called once with "process N on host H" where another process holds it, before waiting for it.
    StorageError where the lock cannot be written.
    """
    holder, file_lock = _lock(path)
    folder = holder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file_lock.acquire(timeout=0)
        except Timeout:
            with contextlib.suppress(OSError):
                waiting(holder.read_text(encoding="utf-8"))
            file_lock.acquire()
    except OSError as error:
        raise _refused(error, folder) from error
    try:
        with contextlib.suppress(OSError):  # it serves a message alone
            holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        file_lock.release()


def held(path: Path) -> str:
    """The process that holds the lock of a path, as "process N on host H"; "" where none does."""
    holder, file_lock = _lock(path)
    with contextlib.suppress(FileNotFoundError):  # of whoever holds it; another folder for locks is not made here
        text = holder.read_text(encoding="utf-8")
        try:
            file_lock.acquire(timeout=0)
            file_lock.release()
        except Timeout:
            return text
    return ""


def _lock(path: Path) -> tuple[Path, FileLock]:
    """The file that names who holds the lock of a path, and the lock."""
    name = f"{path.name}-{digest(short(path))}"
    return cache() / "locks" / f"{name}.holder", FileLock(cache() / "locks" / f"{name}.lock")


def end_with(parent: int) -> None:
    """End this process when the one that started it has ended, however that ended."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
