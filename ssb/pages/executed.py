"""Notebooks that were run, as HTML: prose and outputs, code one click away, mathematics as MathML."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from jinja2 import FileSystemLoader
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ssb.report import ReportError

TEMPLATES = FileSystemLoader(Path(__file__).parent)
FAILED = "papermill-error-cell-tag"  # of the cells that papermill adds where another one failed
BOX = '<div class="box" tabindex="0" role="region" aria-label="{}">{}</div>'

Address = Callable[[str], str]  # the target of a link → its address in the report, "" where the report lacks it


class Executed(NamedTuple):
    """A notebook that was run. page: its address in the report. label: the folder of its results, see `files.label`.
    name: of the notebook it was made from. smoke: was it with the preset smoke? minutes: NaN where it was not papermill
    that ran it."""

    page: str
    label: str
    name: str
    title: str
    failed: bool
    smoke: bool
    minutes: float
    book: nbformat.NotebookNode


def executed(results: Path) -> list[Executed]:
    """The notebooks results/executed/<label>/<name>.ipynb, by name and label; of those in results/executed/ itself the
    label is "executed". ReportError where one cannot be read."""
    books = []
    for path in sorted((results / "executed").rglob("[!.]*.ipynb"), key=lambda path: (path.stem, path)):
        if ".ipynb_checkpoints" in path.parts:
            continue
        try:
            book = nbformat.read(path, as_version=4)
        except (ValueError, AttributeError, nbformat.ValidationError) as error:
            raise ReportError(f"{path} is no complete notebook; delete it, then run the notebook again") from error
        ran, label = book.metadata.get("papermill", {}), path.parent.name
        first = next((cell.source for cell in book.cells if cell.source.startswith("# ")), f"# {path.stem}")
        title = first.splitlines()[0].removeprefix("# ")
        name, minutes = Path(ran.get("input_path") or path).stem, (ran.get("duration") or float("nan")) / 60
        page, failed = f"notebooks/{label}/{path.stem}.html", bool(ran.get("exception"))
        smoke = ran.get("parameters", {}).get("preset") == "smoke"
        books.append(Executed(page, label, name, title, failed, smoke, minutes, book))
    return books


class Prose(IPythonRenderer):
    """Markdown as HTML: mathematics as MathML, headings with the anchors of GitHub, tables in a box that scrolls."""

    def __init__(self, address: Address):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.address = address

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def heading(self, text: str, level: int, **attributes) -> str:
        anchor = re.sub(r"[^\w -]", "", re.sub("<[^>]+>", "", text).lower()).replace(" ", "-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def table(self, text: str) -> str:
        return BOX.format("Table", f"<table>{text}</table>")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        address = self.address(url)
        return f'<a href="{html.escape(address)}">{text}</a>' if address else text


def prose(markdown: str, address: Address) -> str:
    """Markdown as HTML."""
    return MarkdownWithMath(renderer=Prose(address)).render(markdown)


def body(book: nbformat.NotebookNode, address: Address) -> str:
    """The cells of a notebook as HTML."""
    cells = [cell for cell in book.cells if FAILED not in cell.metadata.get("tags", [])]
    exporter = HTMLExporter(
        template_name="basic",
        extra_loaders=[TEMPLATES],
        template_file="cells.html",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": lambda source: prose(source, address)},
    )
    return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells, metadata=book.metadata))[0]
