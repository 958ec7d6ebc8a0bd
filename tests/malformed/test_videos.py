"""Whatever is given as a video or an image: the clip is named with what is wrong, the other clips are extracted, and
what was there stays."""

import faulthandler
import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssb import files
from ssb.__main__ import main
from ssb.video import backbones, extract, ledger

av = pytest.importorskip("av")


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.float().mean((1, 2, 3))


BACKBONE = backbones.Backbone(Mean(), lambda frame: frame.to_ndarray(format="rgb24"), 1, Fraction(1), "as it is")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def limit():
    faulthandler.dump_traceback_later(60, exit=True)  # also where a read in C hangs
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """clips/good.mkv, and features/ with those of good and of an older clip."""
    (tmp_path / "clips").mkdir()
    with av.open(str(tmp_path / "clips" / "good.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 90, np.uint8))))
        container.mux(stream.encode(None))
    (tmp_path / "older.mkv").write_bytes((tmp_path / "clips" / "good.mkv").read_bytes())
    monkeypatch.setattr("ssb.video.backbones.backbone", lambda *given: BACKBONE)
    assert extracted(tmp_path, tmp_path / "older.mkv") == 0
    return tmp_path


def extracted(folder: Path, *paths, **options) -> int:
    options = {"stream": "look", "out": folder / "features", "workers": 0, "device": "cpu", "model": "x"} | options
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return main(["extract", *map(str, paths), *words])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """The header of an image of this size, and no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut(ending: str, share: float):
    def damage(path: Path):
        NOISE.save(path.with_suffix(f".{ending}"))
        content = path.with_suffix(f".{ending}").read_bytes()
        path.with_suffix(f".{ending}").unlink()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def words(content: str | bytes):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


KIND = "is a folder, a pipe or a device; give a video file"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://10.255.255.1/x.ts\n#EXT-X-ENDLIST\n"
CASES = {
    "pipe": (os.mkfifo, KIND),
    "device": (lambda path: path.symlink_to("/dev/zero"), KIND),
    "folder": (lambda path: (path / "bad.mp4").mkdir(parents=True), KIND),
    "link to itself": (lambda path: path.symlink_to(path), "not readable as video (Too many levels"),
    "empty": (words(b""), "not readable as video"),
    "zeros": (words(bytes(100_000)), "not readable as video"),
    "a page": (words("<!DOCTYPE html><html><body>404 not found</body></html>"), "not readable as video"),
    "a playlist": (words(PLAYLIST), "not readable as video"),
    "a list of other files": (words("ffconcat version 1.0\nfile good.mkv\n"), "has no video stream"),
    "subtitles": (words("1\n00:00:00,000 --> 00:00:02,000\nhello\n"), "has no video stream"),
}
IMAGES = {
    "65535 pixels wide": (words(png(65535, 65535)), "cut short or damaged (Image size"),
    "no pixels": (words(png(0, 0)), "no frame of it can be decoded"),
    "half a PNG": (cut("png", 0.5), "cut short or damaged"),
    "half a TIFF": (cut("tiff", 0.5), "cut short or damaged"),
}


@pytest.mark.parametrize("case", CASES | IMAGES)
def test_a_clip_that_is_none_is_named_and_the_others_go_on(folder, case, capsys):
    damage, message = (CASES | IMAGES)[case]
    damage(folder / "clips" / "bad.mp4")
    given = [folder / "clips" / name for name in ("bad.mp4", "good.mkv")]
    one_failure(folder, given, "bad", message, capsys)


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("ending", ["jpg", "webp", "bmp"])
def test_images_that_are_cut_short(folder, ending, share, capsys):
    cut(ending, share)(folder / "bad.dat")
    (folder / "bad.dat").rename(folder / f"bad.{ending}")
    given = [folder / f"bad.{ending}", folder / "clips" / "good.mkv"]
    one_failure(folder, given, "bad", "cut short or damaged", capsys)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("notes.txt", "some words\n" * 99, "has no video stream"),
        ("a.svg", "<svg></svg>", "cannot be decoded; convert it"),
    ],
)
def test_files_that_ffmpeg_would_draw(folder, name, content, message, capsys):
    (folder / name).write_text(content)
    one_failure(folder, [folder / name, folder / "clips" / "good.mkv"], name.split(".")[0], message, capsys)


@pytest.mark.parametrize(
    "name, message",
    [
        (b"x" * 250 + b".mkv", "its name has 250 bytes, at most 220 fit; rename it"),
        ("é".encode() * 115 + b".mkv", "its name has 230 bytes, at most 220 fit; rename it"),
        (b"caf\xe9.mkv", "its name is not UTF-8; rename it"),
        (b"a\nb.mkv", "its name has a line break, a tab or another control character; rename it"),
        (b"a\tb.mkv", "its name has a line break, a tab or another control character; rename it"),
        ("a\u2028b.mkv".encode(), "its name has a line break, a tab or another control character; rename it"),
    ],
)
def test_names_that_do_not_fit(folder, name, message, capsys):
    path = folder / "clips" / os.fsdecode(name)
    path.write_bytes((folder / "older.mkv").read_bytes())
    one_failure(folder, [folder / "clips"], path.stem, message, capsys)


def one_failure(folder: Path, given: list[Path], clip: str, message: str, capsys):
    out = folder / "features"
    before = {path: path.read_bytes() for path in (out / "look.json", out / "look" / "older.npy")}
    capsys.readouterr()
    assert extracted(folder, *given) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    count, last = printed.rstrip("\n").rpartition(f"  {clip if clip.isprintable() else repr(clip)}: ")[::2]
    assert count.endswith("error: 1 clips could not be read and have no features; copy them again:\n")
    assert message in last and "\n" not in last
    assert sorted(path.name for path in (out / "look").iterdir()) == ["good.npy", "older.npy"]
    assert {path: path.read_bytes() for path in before} == before
    assert ledger.read_sums(out, "look").keys() == ledger.read_sources(out, "look").keys() == {"good", "older"}


@pytest.mark.parametrize("name", ["a" * 220, "日本　語", "a b", "émoji 😀", "%d", "a;b&c", "http:", "-x", "a.b.c"])
def test_names_that_fit(folder, name):
    path = folder / "clips" / f"{name}.mkv"
    path.write_bytes((folder / "older.mkv").read_bytes())
    assert extracted(folder, folder / "clips") == 0
    assert (folder / "features" / "look" / f"{name}.npy").is_file()
    sums = subprocess.run(["sha256sum", "-c", "look.sha256"], cwd=folder / "features", capture_output=True)
    assert sums.returncode == 0 and len(ledger.read_sums(folder / "features", "look")) == 3
    assert extracted(folder, folder / "clips") == 0


@pytest.mark.parametrize(
    "options, content, message",
    [
        ({"out": "older.mkv"}, {}, "older.mkv: is a file; wanted the features/ folder of a corpus"),
        ({"stream": "s" * 221}, {}, "its name has 221 bytes, at most 220 fit"),
        ({"stream": "a\nb"}, {}, "its name has a line break"),
        ({}, {"look.json": "[" * 10_000 + "]" * 10_000}, "look.json: not readable"),
        ({}, {"look.json": "[1, 2]"}, "look.json: not readable"),
        ({}, {"look.json": b"\xff\xfe"}, "look.json: not readable"),
        ({}, {"look.json": "{}"}, "made with other 'weights', 'input', 'frames', 'turned', see look.json"),
        ({"device": "meta"}, {}, "--device meta"),
    ],
)
def test_arguments_that_do_not_fit(folder, options, content, message, capsys):
    if "out" in options:
        options = {"out": folder / options["out"]}
    for name, value in content.items():
        words(value)(folder / "features" / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    try:
        code = extracted(folder, folder / "clips", **options)
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and "error: " in printed[-1] and message in printed[-1] and len(printed[-1]) < 500
    assert code == 2 or len(printed) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_records_with_half_a_line_or_other_bytes(folder):
    out = folder / "features"
    for name in ("look.sources.tsv", "look.sha256"):
        with open(out / name, "ab") as file:
            file.write(b"\xff\xfe half a li")
    assert extracted(folder, folder / "older.mkv", folder / "clips") == 0
    assert ledger.read_sources(out, "look").keys() == {"older", "good"} == ledger.read_sums(out, "look").keys()


def test_a_full_disk_is_one_line(folder, monkeypatch, capsys):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger.os, "fsync", full)
    assert extracted(folder, folder / "clips") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot write ") and "free some space" in printed and printed.count("\n") == 1
    assert not (folder / "features" / "look" / "good.npy").exists()


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ssb.__main__ import main
from ssb.video import backbones, extract
import torch
from fractions import Fraction
def dies(path, *options):
    os.kill(os.getpid(), 9)
    yield
extract.windows = dies
backbones.backbone = lambda *given: backbones.Backbone(torch.nn.Identity(), None, 1, Fraction(1), "x")
sys.exit(main(["extract", *sys.argv[2:], "--stream", "look", "--model", "x", "--workers", "1", "--device", "cpu"]))
"""


def test_a_killed_worker_is_one_line(folder):
    command = [sys.executable, "-c", KILLED, Path(files.__file__).parents[1], folder / "clips", "--out", folder / "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: DataLoader worker")
    assert "fewer --workers continues" in done.stderr and not list((folder / "new").glob("look/*"))


def test_a_file_that_is_gone_once_it_was_read(folder, monkeypatch, capsys):
    def windows(path, *options):
        yield np.zeros((1, 16, 32, 3), np.uint8)
        path.unlink()

    (folder / "clips" / "a.mkv").write_bytes((folder / "older.mkv").read_bytes())
    monkeypatch.setattr(extract, "windows", windows)
    assert extracted(folder, folder / "clips") == 1
    assert "  good: can no longer be read (No such file or directory)\n" in capsys.readouterr().err
