"""Corpora as users of this field have them: what is wrong with their files is named, and what is right is read. The
same inputs are tried from a folder next to the checkout, where that is there."""

import csv
import json
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from ssb import CorpusError, load_corpus
from ssb.corpora.howto100m.index import index
from ssb.training.runs import check_unseen

CASES = ROOT.parent / "shared" / "cases"
CLIPS = [f"clip{i:02d}" for i in range(12)]


def corpus(folder: Path, clips: list[str] = CLIPS, apart: bool = False, video=None) -> Path:
    """A sound corpus of 12 clips of four captions; apart: one file of features a clip; video: clip → its video."""
    rng = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["clip", "text", *(["video"] if video else [])])
        for number, clip in enumerate(clips):
            for way in range(4):
                table.writerow([clip, f"a red thing number {number:02d} way {way}", *([video(clip)] if video else [])])
    splits = {"train": clips[:6], "val": clips[6:9], "test": clips[9:]}
    (folder / "split.json").write_text(json.dumps(splits))
    values = rng.standard_normal((12, 5, 6)).astype(np.float16)
    if apart:
        (folder / "features" / "look").mkdir()
        for clip, x in zip(clips, values):
            np.save(folder / "features" / "look" / f"{clip}.npy", x)
    else:
        np.save(folder / "features" / "look.npy", values)
        (folder / "features" / "look.ids.txt").write_text("".join(f"{clip}\n" for clip in clips), encoding="utf-8")
    return folder


def rewritten(name: str, change, **options):
    """A sound corpus of which one file has changed."""

    def make(folder: Path) -> Path:
        path = corpus(folder, **options) / name
        content = change(path.read_text(encoding="utf-8") if path.exists() else "5\n" * 12)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make


IDS, LENGTHS = "features/look.ids.txt", "features/look.lengths.txt"


def decomposed(folder: Path) -> Path:
    """The features under names whose accents are apart, as some systems store them."""
    corpus(folder, [f"café{i:02d}" for i in range(12)], apart=True)
    for path in sorted((folder / "features" / "look").iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    return folder


def bom(text: str) -> bytes:
    return text.encode("utf-8-sig")


def utf16(text: str) -> bytes:
    return text.encode("utf-16")


FOLDERS = {  # the name of a case → how it is made, and the message; "" where it is read as the sound corpus
    "04_csv/commas_all": (
        rewritten("captions.csv", lambda t: t.replace(" way 0", " way 0, and more")),
        "line 2: 3 cells",
    ),
    "04_csv/commas_some": (
        rewritten("captions.csv", lambda t: t.replace("01 way 0", "01 way 0, and more")),
        "captions.csv, line 6: 3 cells, the header has 2; put quotes around",
    ),
    "04_csv/trailing_comma": (rewritten("captions.csv", lambda t: t.replace("way 0\n", "way 0,\n")), "line 2: 3 cells"),
    "04_csv/semicolon": (
        rewritten("captions.csv", lambda t: t.replace(",", ";")),
        "separated by ';', save it with com",
    ),
    "04_csv/open_quotes": (
        rewritten("captions.csv", lambda t: t.replace("a red thing number 00 way 2", '"a red thing number 00 way 2')),
        "captions.csv, line 4: .*; close the quote",
    ),
    "04_csv/silent_quotes": (
        rewritten(
            "captions.csv",
            lambda t: t.replace("a red thing number 00 way 1", '"a red').replace("01 way 2", '01 way 2"'),
        ),
        "captions.csv, line 3: .*; .*close the quote",
    ),
    "04_csv/space_header": (rewritten("captions.csv", lambda t: t.replace("clip,text", "clip, text")), ""),
    "08_idlists/bom_ids": (rewritten(IDS, bom), ""),
    "08_idlists/bom_split": (rewritten("split.json", bom), ""),
    "08_idlists/bom_lengths": (rewritten(LENGTHS, bom), ""),
    "08_idlists/crlf": (rewritten(IDS, lambda text: text.replace("\n", "\r\n")), ""),
    "08_idlists/spaces_in_csv": (rewritten("captions.csv", lambda text: text.replace("clip03,", "clip03 ,")), ""),
    "08_idlists/spaces_packed": (lambda folder: corpus(folder, [f"my clip {i:02d}" for i in range(12)]), ""),
    "08_idlists/spaces_unpacked": (lambda folder: corpus(folder, [f"my clip {i:02d}" for i in range(12)], True), ""),
    "08_idlists/slash": (lambda folder: corpus(folder, [f"a/clip{i:02d}" for i in range(12)]), ""),
    "08_idlists/nfd": (decomposed, ""),
    "08_idlists/blank_inside": (rewritten(IDS, lambda t: t.replace("03\n", "03\n\n")), "look.ids.txt: line 5 is blank"),
    "08_idlists/latin1_ids": (
        rewritten(IDS, lambda text: text.replace("clip", "café").encode("latin-1")),
        r"look.ids.txt: .*line 1: byte 0xe9 is not UTF-8\); save it as UTF-8",
    ),
    "08_idlists/utf16_ids": (rewritten(IDS, utf16), r"look.ids.txt: .*it is UTF-16\); save it as UTF-8"),
    "08_idlists/utf16_split": (rewritten("split.json", utf16), r"split.json: .*it is UTF-16\); save it as UTF-8"),
    "08_idlists/utf16_lengths": (rewritten(LENGTHS, utf16), r"look.lengths.txt: .*it is UTF-16\); save it as UTF-8"),
    "08_idlists/utf16_csv": (rewritten("captions.csv", utf16), r"captions.csv: .*it is UTF-16\); save it as UTF-8"),
    "08_idlists/nul_csv": (
        rewritten("captions.csv", lambda t: t.replace("number 01 way 3", "number\0 01 way 3")),
        "captions.csv: .*line 9: a NUL character",
    ),
    "08_idlists/tabs": (
        rewritten("captions.csv", lambda t: t.replace(",", "\t")),
        r"separated by '\\t', save it with com",
    ),
    "08_idlists/ext_ids": (
        rewritten(IDS, lambda text: text.replace("\n", ".mp4\n")),
        r"no features for 12 of 12 clips .*\(it has 'clip00.mp4', 'clip01.mp4' and 10 more\)",
    ),
    "08_idlists/video_id_cols": (
        rewritten("captions.csv", lambda text: text.replace("clip,text", "video_id,caption")),
        "captions.csv: columns are 'video_id', 'caption'; wanted clip, text",
    ),
}


def inputs(name: str, make, folder: Path) -> list[Path]:
    """The case as it is made here, and as it is next to the checkout."""
    return [make(folder / "made"), *([CASES / name] if (CASES / name).is_dir() else [])]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_ones_own(name, tmp_path):
    make, message = FOLDERS[name]
    for folder in inputs(name, make, tmp_path):
        if message:
            with pytest.raises(CorpusError, match=message):
                load_corpus(folder)
            continue
        found = load_corpus(folder)
        ways = len(found.captions) // 12
        wanted = [f"a red thing number {number:02d} way {way}" for number in range(12) for way in range(ways)]
        assert len(found.clips) == 12 and found.captions["text"].tolist() == wanted
        stored = found.streams["look"]
        assert np.isfinite([stored.clip(i) for i in range(12)]).all() and len(stored) == 12
    assert {
        path.relative_to(CASES).as_posix() for kind in ("04_csv", "08_idlists") for path in (CASES / kind).glob("*/")
    } <= {*FOLDERS}


def annotation(folder: Path) -> Path:
    """The files of msrvtt1k with half an emoji in a caption."""
    home = corpus(folder / "msrvtt")
    sentences = [{"video_id": clip, "caption": f"{clip} way {way}"} for clip in CLIPS for way in range(2)]
    sentences[3]["caption"] = "a man dances \ud83d"
    with zipfile.ZipFile(home / "train_val_annotation.zip", "w") as archive:
        archive.writestr("train_val_videodatainfo.json", json.dumps({"sentences": sentences}))
    return folder


def test_half_an_emoji(tmp_path, monkeypatch):
    for folder in inputs("03_surrogate/data", annotation, tmp_path):
        monkeypatch.setenv("SSB_DATA", str(folder))
        with pytest.raises(
            CorpusError, match=r"annotation.zip: sentences\[3\].caption, of clip 'clip01', is .*delete it"
        ):
            load_corpus("msrvtt1k")


# Which video a clip is cut from

YOUTUBE = [f"NUsG9BgSe{i:02d}" for i in range(12)]
SWAPPED = [*YOUTUBE[6:], *YOUTUBE[:6]]  # trained, validated and tested on others, but the test clips were trained on
PAIRS = {
    "0": ([f"kitchen_cam_{i:02d}" for i in range(12)], [f"kitchen_cam_{i}" for i in range(50, 62)]),
    "1": ([f"{name}_60.0_210.0" for name in YOUTUBE], SWAPPED),
    "2": ([f"{name}_60_210" for name in YOUTUBE], SWAPPED),
}


@pytest.mark.parametrize("number", PAIRS)
def test_a_guess_only_warns_and_says_how_to_decide(number, tmp_path, capsys):
    for a, b in (
        (corpus(tmp_path / "a", PAIRS[number][0]), corpus(tmp_path / "b", PAIRS[number][1])),
        *([(CASES / f"13_leak/a{number}", CASES / f"13_leak/b{number}")] if CASES.is_dir() else []),
    ):
        check_unseen(load_corpus(a), load_corpus(b))
        printed = capsys.readouterr().out
        assert "warning: 3 of 3 test clips of" in printed and "a column `video` in captions.csv" in printed


def test_the_video_that_is_given_decides(tmp_path, capsys):
    """Other films of one name's beginning are accepted without a word, the same videos refused."""
    first, second = PAIRS["0"]
    given = [load_corpus(corpus(tmp_path / name, clips, video=str)) for name, clips in (("a", first), ("b", second))]
    check_unseen(*given)
    assert not capsys.readouterr().out
    cut, whole = PAIRS["1"]
    with pytest.raises(CorpusError, match="3 of 3 test clips of d are cut from what c was trained or validated on"):
        check_unseen(
            load_corpus(corpus(tmp_path / "c", cut, video=lambda clip: clip[:11])),
            load_corpus(corpus(tmp_path / "d", whole, video=str)),
        )
    with pytest.raises(CorpusError, match="3 of 3 test clips of f are cut from what e was trained or validated on"):
        check_unseen(
            load_corpus(corpus(tmp_path / "e", cut), video=r"(.{11})_.*"),
            load_corpus(corpus(tmp_path / "f", whole), video="(.*)"),
        )


def test_one_side_alone_is_a_guess(tmp_path, capsys):
    cut, whole = PAIRS["1"]
    given = load_corpus(corpus(tmp_path / "a", cut, video=lambda clip: clip[:11]))
    open_, other = load_corpus(corpus(tmp_path / "b", whole)), load_corpus(corpus(tmp_path / "c", whole, video=str))
    check_unseen(given, open_)
    assert "warning: 3 of 3 test clips of b" in capsys.readouterr().out
    check_unseen(load_corpus(corpus(tmp_path / "d", cut)), other)
    assert "warning: 3 of 3 test clips of c" in capsys.readouterr().out


# HowTo100M

NARRATED = {  # video → its table, and why it is skipped; "" where it is read
    "aaaaaaaaa00": ("start,end,text\n0,5,take the flour, sugar and eggs\n5,9,mix them\n", "line 2: 4 cells"),
    "aaaaaaaaa01": ('start,end,text\n0,5,"take the flour, sugar and eggs"\n5,9,mix them\n', ""),
    "aaaaaaaaa02": (",start,end,text\n0,0,5,hello\n1,5,9,mix them\n", ""),
    "aaaaaaaaa03": ('start,end,text\n0,5,"say ""hi"""\n5,9,nan\n', ""),
    "aaaaaaaaa04": ("start,end,text\n0,5,hello\n5,9\n", "line 3: 2 cells"),
    "aaaaaaaaa05": ("start;end;text\n0;5;hello\n", "columns are 'start;end;text'; wanted start, end, text, separated"),
    "aaaaaaaaa06": ("start,end,text\n0,5,hello\n5,9,mix\n", ""),
    "aaaaaaaaa07": (
        'start,end,text\n0,5,"open quote\n5,9,mix them\n9,12,bake\n',
        "line 2: unexpected end of data; close",
    ),
    "aaaaaaaaa08": ("start,end,text\n3.2e0,5,hello\n00:05,9,mix\n", "a start or end is not a number"),
    "aaaaaaaaa09": ("Start,End,Text\n0,5,hello\n", "columns are 'Start', 'End', 'Text'; wanted start, end, text"),
    "aaaaaaaaa10": ("start,end,text\n0,5,stir\n", ""),
}


def narrated(folder: Path) -> Path:
    (folder / "captions").mkdir(parents=True)
    (folder / "features" / "s3d").mkdir(parents=True)
    for video, (table, _) in NARRATED.items():
        (folder / "captions" / f"{video}.csv").write_text(table)
        np.save(folder / "features" / "s3d" / f"{video}.npy", np.ones((12, 8), np.float32))
    return folder


def test_narrations(tmp_path):
    """Nothing of a narration is lost without a word."""
    copies = [narrated(tmp_path / "made")]
    if (CASES / "14_howto_csv").is_dir():
        copies.append(tmp_path / "given")
        for part in ("captions", "features"):  # by bytes: the originals may be read-only
            for path in sorted((CASES / "14_howto_csv" / "howto100m" / part).rglob("*.*")):
                target = copies[-1] / path.relative_to(CASES / "14_howto_csv" / "howto100m")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    for folder in copies:
        index(folder, log=lambda line: None)
        skipped = dict(line.split("\t") for line in (folder / "index" / "skipped.txt").read_text().splitlines())
        for video, (_, why) in NARRATED.items():
            assert bool(why) == (video in skipped) and why in skipped.get(video, ""), video
        found = load_corpus(folder)
        texts = {found.id(i): found.narrations(i)[1] for i in range(len(found))}
        assert texts["aaaaaaaaa01"] == ["take the flour, sugar and eggs", "mix them"]
        assert texts["aaaaaaaaa03"] == ['say "hi"', "nan"]
