"""A study of seconds, in processes that can be killed, and on a disk that forgets what was not synced."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from ssb import Study, figures, files, text
from ssb.training import loop

RENAME = os.rename  # which is replaced below
STEPS = 3  # of training, between two checkpoints


def save_encoder(folder: Path):
    """A text encoder that fits one sentence of shapes or another."""
    tokenizer = text.fit_tokenizer(["a red circle moves left", "one blue square spins over there"] * 9, 300)
    torch.manual_seed(1)
    sizes = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=100, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def study(home: str, encoder: str, jobs: int = 1, stop_in: str = ""):
    """Two settings of two seeds, their table, its summary and a figure. stop_in: stand still when a file or folder with
    this in its name has been written and not yet renamed, and say so in home/stopped."""
    os.setsid()  # a group of processes of its own, to be killed together
    os.environ["SSB_HOME"] = home
    loop.CHECKPOINT_SECONDS, taken = 0.0, loop.Training.save
    loop.Training.save = lambda self: taken(self) if self.step % STEPS == 1 else None
    if stop_in:
        sync = files._sync

        def stop(path: Path):
            sync(path)
            if stop_in in path.name:
                (Path(home) / "stopped").touch()
                time.sleep(60)

        files._sync = stop
    changes = dict(corpus_options={"clips": 50, "captions": 2, "false_negatives": 0.05}, batch=8, epochs=2)
    changes |= dict(text_encoder=encoder, freeze_text=True)
    work = Study("t", preset="smoke", seeds=[0, 1], jobs=jobs, changes=changes)
    runs = work.run({"none": {"objective": "none"}, "cross": {"objective": "cross"}})
    rows, summary = work.rows(runs), work.summary(runs, "none")
    figures.save(figures.settings(rows, summary, "a study of seconds"), work.figures, "t", alt="A sentence.")


def on_a_disk_that_forgets(home: str, encoder: str, snapshots: str, wanted: dict[int, bool]):
    """`study`, with a copy of its folder, in snapshots/<event>, as a disk would have it after a power cut at events
    that are numbered as fsyncs and renames happen: of files that were not synced, or changed later, only the names.
    wanted: event → are renames undone in folders that were not synced since? snapshots/events: how many there were."""
    disk = Disk(Path(home), Path(snapshots), wanted)
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle: int):
        fsync(handle)
        disk.synced(Path(os.readlink(f"/proc/self/fd/{handle}")))

    def renamed(change):
        def rename(old, new, **options):
            disk.renames(Path(old), Path(new))
            change(old, new, **options)
            disk.event()

        return rename

    os.fsync, os.replace, os.rename = synced, renamed(replace), renamed(rename)
    study(home, encoder)
    (Path(snapshots) / "events").write_text(str(disk.events))


class Disk:
    """What of a folder is on the disk."""

    def __init__(self, home: Path, snapshots: Path, wanted: dict[int, bool]):
        self.home, self.snapshots, self.wanted, self.events = home, snapshots, wanted, 0
        self.sound: set[tuple] = set()  # of synced files
        self.pending: list[tuple[Path, Path, Path | None]] = []  # old name, new name, a copy of what it replaced

    @staticmethod
    def state(path: Path) -> tuple:
        """What changes when a file is written to; its name is not part of it."""
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def synced(self, path: Path):
        """A file, or the names in a folder, are on the disk now."""
        if path.is_dir():
            self.pending = [each for each in self.pending if each[1].parent != path]
        else:
            self.sound.add(self.state(path))
        self.event()

    def renames(self, old: Path, new: Path):
        """A rename is about to happen."""
        copy = None
        if new.is_file():
            copy = self.snapshots / f"replaced-{self.events}"
            shutil.copy2(new, copy)
        self.pending.append((old, new, copy))

    def event(self):
        """Count, and copy the folder if it is wanted."""
        if self.events in self.wanted:
            self.copy(self.snapshots / str(self.events), undo=self.wanted[self.events])
        self.events += 1

    def copy(self, target: Path, undo: bool):
        """The folder as it would be found."""
        for path in sorted(self.home.rglob("*")):
            place = target / path.relative_to(self.home)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif self.state(path) in self.sound:
                shutil.copyfile(path, place)
            else:
                place.touch()
        for old, new, replaced in reversed(self.pending) if undo else ():
            old, new = (target / path.relative_to(self.home) for path in (old, new))
            if new.exists() and not old.exists() and old.parent.exists():
                RENAME(new, old)
                if replaced:
                    shutil.copyfile(replaced, new)


def outcome(home: Path) -> dict[str, bytes]:
    """What a study leaves: the names of its files; tables without seconds and commit, ranks, metrics and figures."""
    import pandas as pd

    result = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        name = str(path.relative_to(home))
        if name.startswith("results/cache/locks/") or name == "stopped":
            continue
        result[name] = b""
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
            columns = [column for column in frame if column not in ("seconds", "commit", "dirty")]
            result[name] = frame[columns].to_csv(index=False).encode()
        elif path.suffix in (".png", ".pdf") or path.name in ("metrics.json", "config.json"):
            result[name] = path.read_bytes()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                result[name] = b"".join(arrays[key].tobytes() for key in sorted(arrays))
    return result
