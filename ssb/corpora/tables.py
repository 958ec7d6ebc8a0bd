"""How CSV files are read: every row as long as the header, every quote closed; errors name the line."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from ssb.corpora.reading import CorpusError, expecting, listed, read_text, repetitions, tidy

IDS = ["clip", "video", "video_id"]  # columns of ids


def read_table(source: Path, *columns: str) -> pd.DataFrame:
    """A CSV that has these columns and at least one row, every cell as text: ids keep their leading zeros, and NA is a
    word. CorpusError, naming file and line, where a row has not as many cells as the header or a quote is not closed.
    Cells of the columns clip, video and video_id are ids, see `tidy`."""
    what, fix = "a readable CSV", "save it as comma-separated UTF-8"
    text = read_text(source, what, fix, f"a table with the columns {', '.join(columns)}")
    with expecting(source, what, fix):
        header, *rows = parsed(source, text)
    if not set(columns) <= set(header):
        separator = next((mark for mark in ";\t" if mark in "".join(header)), "")
        hint = f"; it is separated by {separator!r}, save it with commas" if separator else ""
        raise CorpusError(f"{source}: columns are {listed(header)}; wanted {', '.join(columns)}{hint}")
    if not rows:
        raise CorpusError(f"{source}: no rows; write one for each {columns[0]}, or copy it again")
    table = pd.DataFrame(rows, columns=header, dtype=str)
    return table.assign(**{name: [tidy(x) for x in table[name]] for name in IDS if name in table})


def parsed(source: Path, text: str) -> list[list[str]]:
    """The header, without the spaces around its names, and the rows of a CSV. CorpusError that names file and line of a
    row that has not as many cells as the header, or in which a quote is not closed; ValueError where it is empty."""
    rows, line, width = [], 1, 0
    quotes = 'close the quote, and write "" for a quote inside quotes'
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row and not rows:
                row, width = [name.strip() for name in row], len(row)
                if repeated := repetitions(row):
                    raise CorpusError(f"{source}: column {listed(repeated)} is there twice; keep one")
            if row and len(row) != width:
                raise CorpusError(
                    f"{source}, line {line}: {len(row)} cells, the header has {width}; put quotes around a text with "
                    "commas, and write neither more nor fewer cells"
                )
            if any(
                rest.count(",") + 1 >= width > 1 for cell in row for rest in cell.replace("\r", "\n").split("\n")[1:]
            ):
                broken = "a quoted text goes on over further lines"
                raise CorpusError(f"{source}, line {line}: {broken}; put it on one line, or {quotes}")
            rows += [row] if row else []
            line = reader.line_num + 1
    except csv.Error as error:
        raise CorpusError(f"{source}, line {line}: {error}; {quotes}") from None
    if not rows:
        raise ValueError("it is empty")
    return rows


def numbers(table: pd.DataFrame, column: str, source: Path) -> pd.Series:
    """A column of text as float64; CorpusError where a value is no finite number."""
    values = pd.to_numeric(table[column], errors="coerce").astype(float)
    if not (finite := np.isfinite(values)).all():
        raise CorpusError(f"{source}: {column} holds {listed(table[column][~finite])}; wanted numbers")
    return values
