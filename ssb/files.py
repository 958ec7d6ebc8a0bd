"""Where things are stored, and how a file is written so that a killed process never leaves half of one."""

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path


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


@contextlib.contextmanager
def written(path):
    """Yield a path next to `path` to write a file or a folder to; it is renamed to `path` when the block ends without
    error. On an error the draft is removed and `path` stays as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(3)}{path.suffix}")
    try:
        yield draft
        try:
            os.replace(draft, path)
        except OSError:
            if not (draft.is_dir() and path.is_dir()):  # another process has finished the same folder: keep that one
                raise
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def short(path: Path) -> str:
    """A path as it is printed: relative to the root where it lies under it."""
    path = Path(path).resolve()
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


def digest(*parts: str | bytes) -> str:
    """Twelve hex digits of the SHA-256 of the parts, in order. Each part is preceded by its length, so that parts
    cannot run into one another."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:12]


def label(corpus: str, preset: str) -> str:
    """Name of the folders of a corpus and preset, which are never mixed in one table: "shapes", or "shapes-smoke"."""
    return corpus if preset == "laptop" else f"{corpus}-{preset}"


def folder(kind: str, label: str) -> Path:
    """results/<label> or figures/<label>."""
    return root() / kind / label
