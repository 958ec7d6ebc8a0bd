"""Getting data: the list of files against the readers and the real files; downloads from a local server that cuts
connections, serves another version and sends wrong content."""

import dataclasses
import hashlib
import io
import json
import re
import socket
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA

from ssb import CorpusError, load_corpus
from ssb.__main__ import main
from ssb.corpora import catalogue, download, official
from ssb.corpora.howto100m import index
from ssb.corpora.load import CORPORA
from ssb.corpora.official import MSRVTT_WHOLE

CONTENT = np.random.default_rng(0).bytes(700_000)  # of several chunks
FILED = {name: record for name, record in CORPORA.items() if record.dataset}  # read from files
ANNOTATED = {
    name: (record.dataset, record.labels or record.annotation) for name, record in FILED.items() if name != "howto100m"
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# The list of files


def test_every_corpus_is_listed():
    assert {name for file in download.sources() for name in file.corpora} == set(FILED)
    assert {(name, file.dataset) for file in download.sources() for name in file.corpora} == {
        (name, record.dataset) for name, record in FILED.items()
    }
    for file in download.sources():
        assert file.target in file.names and file.what
        own = [name for name in file.names if name != MSRVTT_WHOLE]  # which stands for several, and has no known sum
        assert len(file.sha256) in (0, len(own)) and all(len(x) == 64 for x in file.sha256)
        assert file.page or not file.link  # without a link a page says where it is
        for address in filter(None, (file.page, file.link)):
            assert address.startswith(("https://", "http://")) and " " not in address
    names = [(file.dataset, name) for file in download.sources() for name in file.names if name != MSRVTT_WHOLE]
    assert len(names) == len(set(names))


OPENED: list[Path] | None = None  # a list while a test records which files are opened


def watch(event: str, arguments: tuple):
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(Path(arguments[0]))


sys.addaudithook(watch)


@pytest.mark.parametrize("corpus", ANNOTATED)
def test_a_reader_opens_the_listed_files_and_no_other(corpus, tmp_path, monkeypatch):
    dataset, annotation = ANNOTATED[corpus]
    wanted = [file for file in download.sources() if corpus in file.corpora and file.names != ["features.npz"]]
    for file in wanted:
        if (name := file.present(DATA / dataset)) is None:
            pytest.skip(f"no {file.target} in {DATA / dataset}")
        (tmp_path / name).symlink_to(DATA / dataset / name)
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    annotation(tmp_path)
    assert {path for path in OPENED if path.parent == tmp_path} == set(tmp_path.iterdir())


def test_sums_are_those_of_the_real_files():
    seen = 0
    for file in download.sources():
        for name in file.names:
            path = DATA / file.dataset / name
            if path.is_file() and file.sha256:
                assert file.sum(name) == sha256(path.read_bytes()), path
                seen += 1
    if not seen:
        pytest.skip(f"no official files in {DATA}")


@pytest.mark.parametrize("part, packed", [("train_val", "train_val_annotation"), ("test", "test_videodatainfo.json")])
def test_the_sum_of_an_unpacked_annotation(part, packed, msrvtt):
    with zipfile.ZipFile(msrvtt / f"{packed}.zip") as archive:
        content = archive.read(f"{part}_videodatainfo.json")
    (file,) = (file for file in download.sources() if f"{packed}.zip" in file.names)
    assert file.sum(f"{part}_videodatainfo.json") == sha256(content)


# What is there


def asked(*arguments: str) -> int:
    return main(["data", *arguments])


@pytest.fixture
def msvd(tmp_path, monkeypatch) -> Path:
    """MSVD of 5 clips, in the form of the official files, with two streams: one array, one folder."""
    home = tmp_path / "data" / "msvd"
    (home / "features" / "move").mkdir(parents=True)
    clips = [f"a_{i}" for i in range(5)]
    (home / "youtube_video_to_id_mapping.txt").write_text("".join(f"{clip} vid{i}\n" for i, clip in enumerate(clips)))
    for split, members in (("train", [2, 0]), ("val", [4]), ("test", [1, 3])):
        (home / f"{split}_list.txt").write_text("".join(f"{clips[i]}\n" for i in members))
        (home / f"sents_{split}_lc_nopunc.txt").write_text("".join(f"vid{i}\tclip {i}\n" for i in members))
    np.save(home / "features" / "look.npy", np.ones((5, 2, 3), np.float32))
    (home / "features" / "look.ids.txt").write_text("\n".join(clips))
    for clip in clips:
        np.save(home / "features" / "move" / f"{clip}.npy", np.ones((2, 3), np.float32))
    monkeypatch.setenv("SSB_DATA", str(home.parent))
    return home


def test_what_loads_is_complete(msvd, capsys):
    assert asked("msvd") == 0
    printed = capsys.readouterr().out
    assert f"wanted in {msvd.parent}" in printed and printed.count("other content: counts may differ") == 7
    assert "features look: 5 of 5 clips (100.0 %)\n" in printed and "features move: 5 of 5 clips (100.0 %)\n" in printed
    assert printed.endswith("it loads: train 2, val 1, test 2\n")
    line = next(line for line in printed.splitlines() if "msvd/sents_val_lc_nopunc.txt" in line)
    assert line.endswith("https://www.cs.utexas.edu/users/ml/clamp/videoDescription/")


def test_clips_without_features(msvd, home, capsys):
    (msvd / "features" / "move" / "a_3.npy").unlink()
    assert asked("msvd") == 1
    printed = capsys.readouterr().out
    assert "msvd: not complete" in printed and "features look: 5 of 5 clips (100.0 %)\n" in printed
    listing = "results/cache/missing/msvd-move.txt"
    assert f"features move: 4 of 5 clips (80.0 %); none for 'a_3'; all in {listing}\n" in printed
    assert (home / listing).read_text() == "a_3\n"
    assert 'corpus_options={"missing": "drop"}' in printed and "it loads" not in printed


def test_no_features(msvd, capsys):
    for path in msvd.glob("features/*"):
        path.rename(msvd / path.name)
    assert asked("msvd") == 1
    assert "no features, which are yours: `ssb extract CLIPS --stream" in capsys.readouterr().out


def test_a_missing_file(msvd, capsys):
    (msvd / "val_list.txt").unlink()
    assert asked("msvd") == 1
    printed = capsys.readouterr().out
    assert "msvd: not complete\n  missing: val_list.txt\n" in printed
    assert "to fetch val_list.txt:\n  `ssb data msvd --download`\n" in printed
    assert [line.split()[1] for line in printed.splitlines() if "msvd/val_list.txt" in line] == ["missing"]


def test_a_damaged_file(msvd, capsys):
    (msvd / "sents_val_lc_nopunc.txt").write_text("vid4 no tab")
    assert asked("msvd") == 1
    assert "not the MSVD captions" in capsys.readouterr().out


def test_a_damaged_stream_does_not_load(msvd, capsys):
    np.save(msvd / "features" / "look.npy", np.full((5, 2, 3), np.nan, np.float32))
    assert asked("msvd") == 1
    printed = capsys.readouterr().out
    assert "features look: 0 of 5 clips (0.0 %); none for" in printed and "(NaN or infinity)" in printed
    assert "it loads" not in printed


def test_a_folder_of_your_own(small_folder, monkeypatch, capsys):
    small_folder.rename(small_folder.with_name("vatex"))
    monkeypatch.setenv("SSB_DATA", str(small_folder.parent))
    assert asked("vatex") == 0
    printed = capsys.readouterr().out
    assert "is a folder of your own" in printed and "it loads: train 6, val 3, test 3" in printed


def test_what_has_no_link(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSB_DATA", str(tmp_path / "none"))
    assert asked("crosstask") == 1
    printed = capsys.readouterr().out
    assert "crosstask/crosstask.csv has no link: " in printed and "see https://github.com/mlvlab/VT-TWINS" in printed
    assert "--download" not in printed


def test_narration_is_a_file_or_a_folder_of_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    captions = tmp_path / "howto100m" / "captions"
    captions.mkdir(parents=True)
    for name in ("README.txt", "x.csv", "x.json"):
        (captions / name).write_text("start,end,text\n")
        assert asked("howto100m") == 1
        printed = capsys.readouterr().out
        assert ("howto100m/captions  there, checksum not known" in printed) == (name != "README.txt")
        assert ("missing: caption.json" in printed) == (name == "README.txt")
        (captions / name).unlink()


def test_howto100m_is_complete_where_it_loads(tmp_path, monkeypatch, capsys):
    """Not before it is indexed, but also when the narrations are gone after that."""
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    home, command = (
        tmp_path / "howto100m",
        f"index it: `ssb index {tmp_path / 'howto100m'}`\n",
    )
    assert asked("howto100m") == 1
    printed = capsys.readouterr().out
    assert "missing: caption.json\n  no features" in printed and command in printed and "--download" in printed
    (home / "features" / "look").mkdir(parents=True)
    narrations = {f"video{i}": {"start": [0], "end": [2], "text": ["words"]} for i in range(60)}
    (home / "caption.json").write_text(json.dumps(narrations))
    for video in narrations:
        np.save(home / "features" / "look" / f"{video}.npy", np.ones((3, 2), np.float16))
    assert asked("howto100m") == 1
    printed = capsys.readouterr().out
    assert "howto100m: not complete\n" in printed and command in printed and "no features" not in printed
    index.index(home, log=lambda line: None)
    (home / "caption.json").unlink()
    assert asked("howto100m") == 0
    printed = capsys.readouterr().out
    assert "howto100m: complete\n  it loads: train 54, val 3, test 3\n" in printed and "--download" not in printed
    for path in (home / "features" / "look").glob("*.npy"):
        path.unlink()
    assert asked("howto100m") == 1
    printed = capsys.readouterr().out
    assert "howto100m: not complete\n" in printed and "look/video0.npy: no such file" in printed and command in printed


def test_youcook2_wants_steps(tmp_path, monkeypatch, capsys):
    """The name that the hint gives is the one that the reader looks for."""
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    home = tmp_path / "youcook2"
    home.mkdir()
    steps = [{"id": i, "sentence": f"do {i}", "segment": [10 * i, 10 * i + 5]} for i in range(2)]
    subsets = {"v_a-1": "training", "v_b": "validation"} | {f"v{i}": "training" for i in range(20)}
    videos = {name: {"subset": subset, "annotations": steps} for name, subset in subsets.items()}
    (home / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": videos}))
    (home / "vttwins_validation_youcook.csv").write_text("video_id,start,end,text\nv_b,0,5,do 0\n")
    assert asked("youcook2") == 1
    printed = capsys.readouterr().out
    assert "first cut the videos at the annotated times" in printed and "CLIPS/<video>_<step>.mp4" in printed
    name = re.search(r"such as (\S+)\.mp4, which make <video>_<step>\.npy", printed)[1]
    (home / "features" / "look").mkdir(parents=True)
    np.save(home / "features" / "look" / f"{name}.npy", np.ones((5, 2), np.float16))
    asked("youcook2")
    assert "features look: 1 of 43 clips" in capsys.readouterr().out


def test_labels_need_no_features(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    (tmp_path / "hmdb51" / "features" / "look").mkdir(parents=True)
    table = "video_id,label,split1,split2,split3\na.avi,clap_test,1,2,0\nb.avi,dive_test,0,1,2\n"
    (tmp_path / "hmdb51" / "vttwins_hmdb51.csv").write_text(table)
    np.save(tmp_path / "hmdb51" / "features" / "look" / "b.npy", np.ones((1, 2), np.float32))
    assert asked("hmdb51") == 0
    printed = capsys.readouterr().out
    assert "hmdb51: labels complete; features: look 1 of 2 clips (50.0 %)\n" in printed
    assert "features look: 1 of 2 clips (50.0 %); none for 'a'; all in " in printed
    (tmp_path / "hmdb51" / "features").rename(tmp_path / "features")
    assert asked("hmdb51") == 0
    assert "hmdb51: labels complete; features: none\n  no features, which are yours: " in capsys.readouterr().out


def test_a_family(tmp_path, monkeypatch, capsys):
    """Six clips have features; the two others are of the full split and of 1k-A alone."""
    home = tmp_path / "msrvtt"
    (home / "features").mkdir(parents=True)
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    clips = [f"video{i}" for i in range(8)]
    for part, held in (("train_val", clips[:6]), ("test", clips[6:])):
        content = {
            "videos": [{"video_id": clip, "category": i % 2} for i, clip in enumerate(held)],
            "sentences": [{"video_id": clip, "caption": f"this is {clip}"} for clip in held],
        }
        (home / f"{part}_videodatainfo.json").write_text(json.dumps(content))
    split = {"train": clips[:2], "val": clips[2:4], "test": clips[4:6]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    monkeypatch.setattr(official, "MSRVTT1K", tmp_path / "split.json")
    for part, held in (("train", clips[:4]), ("val", clips[4:6]), ("test", clips[6:])):
        (home / f"{part}_list_full.txt").write_text("\n".join(held))
    (home / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\nvideo7,words\n")
    (home / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *clips[:7]]))
    np.save(home / "features" / "look.npy", np.ones((6, 1, 3), np.float32))
    (home / "features" / "look.ids.txt").write_text("\n".join(clips[:6]))
    assert asked("msrvtt") == 1
    printed = capsys.readouterr().out
    for name in FILED:
        assert (f"\n{name}: " in printed) == name.startswith("msrvtt")
    assert printed.count("msrvtt/train_val_videodatainfo.json ") == 1
    assert (
        "msrvtt1k_odd: complete\n  features look: 3 of 3 clips (100.0 %)\n  it loads: train 1, val 1, test 1\n"
        in printed
    )
    assert (
        "msrvtt_full: not complete\n  features look: 6 of 8 clips (75.0 %); none for 'video6', 'video7'; all in "
        in printed
    )
    assert "msrvtt_1ka: not complete\n  features look: 6 of 8 clips" in printed
    assert "msrvtt_1ka_7k: not complete\n  missing: MSRVTT_train.7k.csv\n" in printed


def test_what_anyone_needs_for_msrvtt1k(msrvtt, capsys):
    """Nothing but the official captions and the features, whose source, licence and sum are said."""
    assert [file.names[-2] for file in download.sources() if "msrvtt1k" in file.corpora] == ["train_val_annotation.zip"]
    assert asked("msrvtt1k") == 0
    printed = capsys.readouterr().out
    assert "github.com/Hassaan-Elahi/Dense-Captioning" in printed and "Licence: none is stated there" in printed
    (sum_,) = re.findall("SHA-256 ([0-9a-f]{64})", printed)
    assert sum_ == sha256((msrvtt / "features" / "vgg_ae128.npy").read_bytes())


def test_the_list_says_how_much_is_there(msvd, monkeypatch, capsys):
    """Of each corpus a line, and no file is opened for it."""
    (msvd.parent / "vatex").mkdir()
    (msvd.parent / "vatex" / "train_list.txt").touch()
    (msvd.parent / "youcook2").mkdir()
    (msvd.parent / "youcook2" / "captions.csv").touch()
    (msvd.parent / "howto100m" / "index" / "found").mkdir(parents=True)
    (msvd.parent / "howto100m" / "index" / "found" / "found.json").touch()
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    assert asked() == 0
    assert not [path for path in OPENED if msvd.parent in path.parents]
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(CORPORA)
    states = {"shapes": "drawn by the library", "events": "drawn by the library", "msvd": "files complete"}
    states |= {"vatex": "4 of 5 files missing", "youcook2": "a folder of your own", "howto100m": "indexed"}
    for name, line in lines.items():
        assert line.split("  ")[0] == name and line.endswith(f"  {CORPORA[name].about}")
        assert f"  {states.get(name, 'not there')}  " in line


def test_complete_files_without_features(msvd, capsys):
    for path in msvd.glob("features/*"):
        path.rename(msvd / path.name)
    assert asked() == 0
    assert re.search("^msvd +files complete, no features +MSVD", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("name", ["shapes", "events"])
def test_what_the_library_draws_is_complete(name, home, capsys):
    assert asked(name) == asked(name, "--download") == 0
    assert capsys.readouterr().out == 2 * f"{name}: complete\n  it is drawn by the library and needs no files\n"
    assert not list(home.iterdir())


@pytest.mark.parametrize("name", ["msrvtt1k", "msvd", "activitynet", "youcook2", "vatex", "vidvrd"])
def test_a_corpus_that_is_not_there_names_the_command_that_reports_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    with pytest.raises(CorpusError, match="no such file") as caught:
        load_corpus(name)
    (command,) = re.findall(r"`ssb data (\w+)`", str(caught.value))
    assert name in catalogue.members(command)


@pytest.mark.parametrize(
    "arguments, words",
    [(["msvt"], "no corpus 'msvt'; there are shapes, events, msrvtt1k"), (["--download"], "of what?")],
)
def test_misuse(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        asked(*arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


# Getting it


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(files: list[tuple[str, bytes | None]]) -> bytes:
    """None: a link to a file outside."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content or b""))
    return packed.getvalue()


class Site:
    """What a server has, how it behaves, and what it was asked."""

    def __init__(self):
        self.pages: dict[str, bytes] = {}
        self.ranges, self.cut, self.status, self.tag, self.type = True, None, 200, '"first"', None
        self.length = True  # does it say how long a file is
        self.asked: list[tuple[str, str | None]] = []


@pytest.fixture
def site(monkeypatch):
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            state.asked.append((self.path, wanted))
            content = state.pages.get(self.path)
            if content is None or state.status != 200:
                return self.send_error(404 if content is None else state.status)
            begin = 0
            if wanted and state.ranges and self.headers["If-Range"] in (None, state.tag):
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if state.tag:
                self.send_header("ETag", state.tag)
            if state.type:
                self.send_header("Content-Type", state.type)
            if state.length:
                self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : state.cut])
            if state.cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def place(tmp_path, monkeypatch, site) -> Path:
    """Where the files of `msvd` go, the list of files being what a test makes it with `wanted`."""
    monkeypatch.setenv("SSB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(catalogue, "report", lambda name: True)
    return tmp_path / "data" / "msvd"


@pytest.fixture
def wanted(place, site, monkeypatch):
    def put(*files: tuple[str, str, bytes | None]):
        """(name, path on the server, content where the sum is known)"""
        rows = [
            download.Needed("msvd", [name], ["msvd"], "x", "https://page", site.url + path, [sha256(x)] if x else [])
            for name, path, x in files
        ]
        monkeypatch.setattr(download, "sources", lambda: rows)

    return put


def left(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


@pytest.mark.parametrize("known", [True, False])
def test_a_download(place, site, wanted, known, capsys):
    site.pages["/x/a.txt"] = CONTENT
    wanted(("a.txt", "/x/a.txt", CONTENT if known else None))
    assert asked("msvd", "--download") == 0
    assert (place / "a.txt").read_bytes() == CONTENT
    printed = capsys.readouterr()
    assert printed.err == "" and f"fetching {site.url}/x/a.txt" in printed.out
    if known:
        assert left(place) == {"a.txt"} and "msvd/a.txt: sha256 ok" in printed.out
    else:
        assert left(place) == {"a.txt", "checksums.txt"} and sha256(CONTENT) in printed.out
        assert (place / "checksums.txt").read_text() == f"{sha256(CONTENT)}  a.txt\n"
    assert asked("msvd", "--download") == 0 and len(site.asked) == 1


def test_a_recorded_sum_is_compared(place, site, wanted):
    """On a second machine, whose record was copied from the first."""
    site.pages |= {"/a.txt": b"one", "/b.txt": b"two"}
    wanted(("b.txt", "/b.txt", None), ("a.txt", "/a.txt", None))
    asked("msvd", "--download")
    assert (place / "checksums.txt").read_text() == f"{sha256(b'one')}  a.txt\n{sha256(b'two')}  b.txt\n"
    assert [file.state(place) for file in download.sources()] == ["there, sha256 as in checksums.txt"] * 2
    (place / "a.txt").write_bytes(b"won")
    assert [file.state(place) for file in download.sources()][1] == "other content than in checksums.txt"
    (place / "checksums.txt").write_bytes(b"\xff no sums")
    assert [file.state(place) for file in download.sources()] == ["there, checksum not known"] * 2


@pytest.mark.parametrize("cut", [1, 65_536, 300_000, len(CONTENT) - 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_is_continued(place, site, wanted, cut, ranges, capsys):
    site.pages["/a.txt"], site.ranges, site.cut = CONTENT, ranges, cut
    wanted(("a.txt", "/a.txt", CONTENT))
    assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == 1
        and printed.startswith(f"error: {site.url}/a.txt: ")
        and "; see https://page" in printed
    )
    assert not (place / "a.txt").exists()
    had = (place / "a.txt.part").stat().st_size
    assert cut - download.CHUNK <= had <= cut and (place / "a.txt.part").read_bytes() == CONTENT[:had]
    assert f"cut after {had:,} bytes; the same command continues from there" in printed
    site.cut = None
    assert asked("msvd", "--download") == 0
    assert (place / "a.txt").read_bytes() == CONTENT and left(place) == {"a.txt"}
    assert [wish for _, wish in site.asked] == [None, f"bytes={had}-" if had else None]


def test_a_download_that_is_cut_again_and_again(place, site, wanted):
    site.pages["/a.txt"] = CONTENT
    wanted(("a.txt", "/a.txt", None))
    for cut in (200_000, 400_000, 600_000):
        site.cut = cut
        assert asked("msvd", "--download") == 1
    site.cut = None
    assert asked("msvd", "--download") == 0 and (place / "a.txt").read_bytes() == CONTENT
    begun = [int(wish[6:-1]) for _, wish in site.asked[1:]]
    assert begun == sorted(set(begun)) and begun[0] > 0


def test_another_version_is_not_added_to_the_first(place, site, wanted):
    """The sum is not known, so nothing else would show it."""
    site.pages["/a.txt"], site.cut = CONTENT, 300_000
    wanted(("a.txt", "/a.txt", None))
    asked("msvd", "--download")
    site.pages["/a.txt"], site.cut, site.tag = CONTENT[::-1], None, '"second"'
    assert asked("msvd", "--download") == 0 and (place / "a.txt").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_the_version_a_download_starts_again(place, site, wanted, tag, capsys):
    site.pages["/a.txt"], site.cut, site.tag = CONTENT, 300_000, tag
    wanted(("a.txt", "/a.txt", None))
    assert asked("msvd", "--download") == 1 and "the same command starts again" in capsys.readouterr().err
    site.cut = None
    assert asked("msvd", "--download") == 0 and (place / "a.txt").read_bytes() == CONTENT
    assert site.asked == [("/a.txt", None)] * 2


@pytest.mark.parametrize("more", [b"", b"and more"])
def test_a_part_that_is_whole_or_too_long(place, site, wanted, more):
    site.pages["/a.txt"] = CONTENT
    wanted(("a.txt", "/a.txt", CONTENT))
    place.mkdir(parents=True)
    (place / "a.txt.part").write_bytes(CONTENT + more)
    (place / "a.txt.part.mark").write_text(site.tag)
    assert asked("msvd", "--download") == 0
    assert (place / "a.txt").read_bytes() == CONTENT and left(place) == {"a.txt"}
    assert len(site.asked) == (2 if more else 1)


@pytest.mark.parametrize(
    "status, words", [(404, "404 Not Found"), (500, "500 Internal Server Error"), (403, "403 Forb")]
)
def test_a_server_that_refuses(place, site, wanted, status, words, capsys):
    site.pages["/b.txt"] = b"here"
    site.pages["/a.txt"], site.status = CONTENT, status
    wanted(("a.txt", "/a.txt", CONTENT))
    assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {site.url}/a.txt: the server says {words}") and printed.count("\n") == 1
    assert left(place) == set()


def test_one_failure_does_not_stop_the_others(place, site, wanted, capsys):
    site.pages["/b.txt"] = b"here"
    wanted(("a.txt", "/a.txt", None), ("b.txt", "/b.txt", b"here"))
    assert asked("msvd", "--download") == 1
    assert left(place) == {"b.txt"} and "404" in capsys.readouterr().err


def test_no_connection(place, site, wanted, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        site.url = f"http://127.0.0.1:{free.getsockname()[1]}"
    wanted(("a.txt", "/a.txt", CONTENT))
    assert asked("msvd", "--download") == 1
    assert "/a.txt: no connection (ConnectionError); see https://page\n" in capsys.readouterr().err


def test_a_connection_that_is_cut_before_an_answer(place, wanted, site, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        site.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        wanted(("a.txt", "/a.txt", None))
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert f"{site.url}/a.txt: cut before the server answered" in printed and printed.count("\n") == 1


def test_a_server_that_never_answers(place, wanted, site, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        site.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        wanted(("a.txt", "/a.txt", None))
        assert asked("msvd", "--download") == 1
    assert "/a.txt: no answer in 0.2 seconds; the same command tries again (ReadTimeout)" in capsys.readouterr().err


HTML = b"<!DOCTYPE html>\n<html><body>Sign in to continue</body></html>"
PACK = zipped([("in/a.txt", b"one")])
WRONG = {  # (name, what the server sends, its Content-Type, message)
    "a page for a list": ("a.txt", HTML, None, "a web page arrived, not the file"),
    "a page for a table": ("a.csv", b"\xef\xbb\xbf\n <html>", None, "a web page arrived, not the file"),
    "a page for JSON": ("a.json", HTML, "text/html; charset=utf-8", "a web page arrived, not the file"),
    "a page for an archive": ("a.zip", HTML, "text/html", "a web page arrived, not the file"),
    "a page without tags": ("a.txt", b"Access denied", "text/html", "a web page arrived, not the file"),
    "an error of a cloud": ("a.csv", b"<?xml version='1.0'?><Error>NoSuchKey</Error>", None, "a web page arrived"),
    "nothing": ("a.txt", b"", None, "an empty file arrived"),
    "blanks": ("a.csv", b" \n\n", None, "an empty file arrived"),
    "words for JSON": ("a.json", b"Not found", "application/json", "not complete JSON"),
    "half of a JSON": ("a.json", json.dumps([1] * 999).encode()[:500], None, "not complete JSON"),
    "deep JSON": ("a.json", b"[" * 10_000 + b"]" * 10_000, None, "not complete JSON"),
    "half of a zip": ("a.zip", PACK[: len(PACK) // 2], "application/zip", "not a complete archive"),
    "words for a tar": ("a.tar.gz", b"Not found", None, "not a complete archive"),
    "an archive for a table": ("a.csv", PACK, None, "not text, as a CSV is"),
    "words for an array": ("a.npy", b"Not found", None, "not a complete array of numpy"),
    "half of an .npz": ("a.npz", PACK[: len(PACK) // 2], None, "not a complete array of numpy"),
}


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("case", WRONG)
def test_something_else_than_the_file_is_not_kept(place, site, wanted, case, length, capsys):
    """Of a file whose sum is not known; once the server has the file, the same command fetches it."""
    name, content, site.type, message = WRONG[case]
    site.pages[f"/{name}"], site.length = content, length
    wanted((name, f"/{name}", None))
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("kept")
    assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {site.url}/{name}: ") and message in printed and printed.count("\n") == 1
    assert "not kept; " in printed and printed.endswith("; see https://page\n") and left(place) == {"mine.txt"}
    array = io.BytesIO()
    np.save(array, np.ones(3))
    right = {"json": b"[1]", "zip": PACK, "npz": PACK, "npy": array.getvalue(), "gz": tarred([("a.txt", b"one")])}
    site.pages[f"/{name}"], site.type = right.get(name.split(".")[-1], b"clip,text\n"), None
    assert asked("msvd", "--download") == 0 and left(place) == {"mine.txt", name, "checksums.txt"}


def test_every_link_of_the_list(site, tmp_path, monkeypatch, capsys):
    """Each official file, or where it is not here one in its place, from a server that calls it as its link does."""
    packs, rows, content = {}, [], {}
    for file in (file for file in download.sources() if file.link):
        last = file.link.rpartition("/")[2]
        real = DATA / file.dataset / file.target
        made = json.dumps(file.target).encode()
        made = zipped([("made.json", made)]) if last.endswith(".zip") and last in file.names else made
        content[file.dataset, file.target] = held = real.read_bytes() if real.is_file() else made
        if last.endswith((".zip", ".tar.gz")) and last not in file.names:
            packs.setdefault(f"/{file.dataset}/{last}", []).append((f"in/{file.target}", held))
        else:
            site.pages[f"/{file.dataset}/{last}"] = held
        sums = [sha256(held) if name == file.target else "0" * 64 for name in file.names] if file.sha256 else []
        rows.append(dataclasses.replace(file, link=f"{site.url}/{file.dataset}/{last}", sha256=sums))
    site.pages |= {path: (zipped if path.endswith(".zip") else tarred)(held) for path, held in packs.items()}
    monkeypatch.setattr(download, "sources", lambda: rows)
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    assert download.download(list(FILED)) == [] and len(site.asked) == len(site.pages)
    for (dataset, name), wanted in content.items():
        assert (tmp_path / dataset / name).read_bytes() == wanted
    assert all(file.present(tmp_path / file.dataset) == file.target for file in rows)
    assert download.download(list(FILED)) == [] and len(site.asked) == len(site.pages)  # nothing again


def test_another_sum(place, site, wanted, capsys):
    site.pages["/a.txt"] = CONTENT[:-1]
    wanted(("a.txt", "/a.txt", CONTENT))
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("kept")
    assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert sha256(CONTENT) in printed and sha256(CONTENT[:-1]) in printed and printed.count("\n") == 1
    assert left(place) == {"mine.txt"}


def test_what_is_there_is_left_alone(place, site, wanted):
    site.pages["/a.txt"] = CONTENT
    wanted(("a.txt", "/a.txt", CONTENT))
    place.mkdir(parents=True)
    (place / "a.txt").write_text("my own version")
    assert asked("msvd", "--download") == 0
    assert (place / "a.txt").read_text() == "my own version" and site.asked == []


def test_a_place_that_cannot_be_written(place, site, wanted, capsys):
    site.pages["/a.txt"] = CONTENT
    wanted(("a.txt", "/a.txt", CONTENT))
    place.parent.mkdir(parents=True)
    place.write_text("a file where the folder should be")
    assert asked("msvd", "--download") == 1
    printed = capsys.readouterr().err
    assert "cannot be kept" in printed and "set SSB_DATA to another" in printed and printed.count("\n") == 1


def test_stopped_by_hand(place, site, wanted, monkeypatch, capsys):
    wanted(("a.txt", "/a.txt", CONTENT))
    monkeypatch.setattr(download.requests, "get", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert asked("msvd", "--download") == 130
    assert "stopped; the same command continues from here" in capsys.readouterr().err


# Archives


PACKED = {"zip": ("/x.zip", zipped), "tar.gz": ("/x.tar.gz", tarred)}


@pytest.mark.parametrize("path, pack", PACKED.values(), ids=PACKED)
def test_an_archive(place, site, wanted, path, pack, capsys):
    """One download for both files, and nothing but them."""
    site.pages[path] = pack([("deep/in/a.txt", CONTENT), ("b.txt", b"two"), ("c.txt", b"not wanted")])
    wanted(("a.txt", path, CONTENT), ("b.txt", path, None))
    assert asked("msvd", "--download") == 0, capsys.readouterr().err
    assert left(place) == {"a.txt", "b.txt", "checksums.txt"} and len(site.asked) == 1
    assert (place / "a.txt").read_bytes() == CONTENT and (place / "b.txt").read_bytes() == b"two"
    assert (place / "checksums.txt").read_text() == f"{sha256(b'two')}  b.txt\n"


@pytest.mark.parametrize("path, pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", ["../a.txt", "x/../../a.txt", "/tmp/a.txt", "a.txt.bak", "A.TXT"])
def test_a_file_that_leads_out_of_the_folder_is_none(place, site, wanted, path, pack, name, capsys):
    site.pages[path] = pack([(name, CONTENT)])
    wanted(("a.txt", path, CONTENT))
    assert asked("msvd", "--download") == 1
    assert "has 0 files a.txt; wanted one" in capsys.readouterr().err
    assert left(place) == set() and left(place.parent) == {"msvd"}


def test_links_in_an_archive_are_no_files(place, site, wanted, capsys):
    site.pages["/x.tar.gz"] = tarred([("a.txt", None)])
    wanted(("a.txt", "/x.tar.gz", None))
    assert asked("msvd", "--download") == 1
    assert "has 0 files a.txt" in capsys.readouterr().err and left(place) == set()


@pytest.mark.parametrize("path, pack", PACKED.values(), ids=PACKED)
def test_wrong_archives(place, site, wanted, path, pack, capsys):
    whole = pack([("a.txt", CONTENT)])
    wanted(("a.txt", path, CONTENT))
    for content, words in (
        (b"no archive", "not a complete archive"),
        (whole[: len(whole) // 2], "not a complete archive"),
        (pack([("a.txt", CONTENT[1:])]), f"a.txt has the sha256 {sha256(CONTENT[1:])}, wanted {sha256(CONTENT)}"),
        (pack([("x/a.txt", CONTENT), ("y/a.txt", CONTENT)]), "has 2 files a.txt; wanted one"),
    ):
        site.pages[path] = content
        assert asked("msvd", "--download") == 1
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1 and left(place) == set()
    site.pages[path] = whole
    assert asked("msvd", "--download") == 0 and left(place) == {"a.txt"}


def test_an_archive_of_your_own_is_used_and_left(place, site, wanted):
    wanted(("a.txt", "/x.zip", CONTENT))
    place.mkdir(parents=True)
    (place / "x.zip").write_bytes(b"not yet whole")
    assert asked("msvd", "--download") == 1 and (place / "x.zip").read_bytes() == b"not yet whole"
    (place / "x.zip").write_bytes(zipped([("a.txt", CONTENT)]))
    assert asked("msvd", "--download") == 0 and left(place) == {"a.txt", "x.zip"} and site.asked == []


def test_from_nothing_to_a_corpus(msvd, site, monkeypatch, tmp_path, capsys):
    """All files of a corpus from a server, then features: the same corpus."""
    before = load_corpus("msvd").fingerprint
    official = [file for file in download.sources() if "msvd" in file.corpora]
    rows = []
    for file in official:
        site.pages[f"/{file.target}"] = (msvd / file.target).read_bytes()
        rows.append(
            download.Needed(*("msvd", file.names, ["msvd"], "x", "https://page"), f"{site.url}/{file.target}", [])
        )
    monkeypatch.setattr(download, "sources", lambda: rows)
    monkeypatch.setenv("SSB_DATA", str(tmp_path / "new"))
    assert asked("msvd", "--download") == 1 and "no features" in capsys.readouterr().out
    (msvd / "features").rename(tmp_path / "new" / "msvd" / "features")
    assert asked("msvd") == 0 and load_corpus("msvd").fingerprint == before
    assert capsys.readouterr().out.count("there, sha256 as in checksums.txt") == 7
