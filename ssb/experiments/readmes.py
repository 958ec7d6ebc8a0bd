"""The generated text of the READMEs, and the links between the notebooks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from ssb import files, published
from ssb.corpora.load import CORPORA
from ssb.experiments import baselines, finding, overview
from ssb.experiments.overview import TABLES, files_of
from ssb.figures import described
from ssb.report import INTERVALS, Experiment, bound, cells, intervals, markdown, p_value
from ssb.training.runs import configure

ABOUT = """# Results

Made from the tables of this folder by `ssb report`; do not edit. Text→video on the test clips at the epoch that was
best on validation, means over seeds; [how to read a table](../notebooks/README.md#how-to-read-a-table). The paper's
numbers are from another corpus with other encoders: compare signs, not sizes. On flickr8k the tables of notebooks 03 to
09, 18, 21 and 25 to 27 have half of the epochs of the preset that they name."""
PICTURES = {"figure5": "Figure 5: retrieved clips", "quickstart": "Quickstart"}  # of no experiment
BENCHMARKS = {  # results/<name>.csv → what it measures, and the columns that are shown
    "cost": (
        "Section 6.1: what training and search cost",
        "what size precision value low high unit extrapolated paper device",
    ),
    "bench": ("Speed against a literal implementation, and an earlier commit", "what median min max ratio unit"),
    "s2dtw_bench": ("Speed of S2DTW", "what median min max ratio unit"),
    "howto100m_bench": ("Speed of reading HowTo100M", "what median min max ratio unit"),
    "scale": ("How each part grows with the corpus", "what axis size seconds low high slope"),
}
COLUMNS = """The paper's difference in points of R@1, or as named, and ours with its interval over queries, the one over
seeds, the verdict, and after a slash the smallest difference that the table finds with 80 % power."""


def results_page(root: Path, claims: pd.DataFrame) -> str:
    """results/README.md: the finding, the claims, and every table with its figures. claims: of `overview.claims`."""
    results = root / "results"
    parts = [ABOUT, "## Is the support-set effect real?", finding.first_page(results, claims)]
    parts += [words] if (words := finding.confirmation(claims)) else []
    parts += ["## The claims", COLUMNS, markdown(overview.claims_table(claims))]
    parts += [*overview.stress_tests(claims), overview.cost(results)]
    parts += ["## Every table", markdown(overview.links(results)), "## Tables and figures"]
    for table, part in made(root).groupby("table", sort=False):
        one = TABLES.get(table, Experiment(PICTURES.get(table, table)))
        each = part.groupby("corpus", sort=False)["path"]
        parts += [
            f"### {one.title}",
            *(folded(corpus, paths, [f"{table}_{name}.csv" for name in one.shown.split()]) for corpus, paths in each),
        ]
    parts += [
        "## Speed and cost",
        *(benchmark(root, name) for name in BENCHMARKS if (results / f"{name}.csv").exists()),
    ]
    return "\n\n".join(parts) + "\n"


def made(root: Path) -> pd.DataFrame:
    """The files that the notebooks made of each table on each corpus, tables in the order of the paper and those of the
    reader's own after them: columns corpus, table and path."""
    tables, found = {*TABLES, *PICTURES, *(table for _, table, _ in files_of("summary", root / "results"))}, []
    for folder in published.folders(root / "results"):
        for place, suffix in ((folder, "csv"), (folder, "npz"), (root / "figures" / folder.name, "png")):
            paths = sorted(place.glob(f"[!.]*.{suffix}"))
            found += [(folder.name, published.owner(path.stem, tables), path) for path in paths]
    return overview.by_table(pd.DataFrame([each for each in found if each[1]], columns=["corpus", "table", "path"]))


def folded(corpus: str, paths: pd.Series, shown: Sequence[str]) -> str:
    """The files of a table folded away under the name of its corpus: those shown in full, the figures, and links."""
    pictures = [f"![{described(path)}](../figures/{corpus}/{path.name})" for path in paths if path.suffix == ".png"]
    links = [f"[{path.name}]({corpus}/{path.name})" for path in paths if path.suffix != ".png"]
    body = [in_full(path) for name in shown for path in paths if path.name == name] + pictures
    body += [f"Files: {', '.join(links)}."] if links else []
    return details(corpus, *body)


def details(title: str, *body: str) -> str:
    """Parts of a page, folded away under a title."""
    return "\n\n".join([f"<details><summary>{title}</summary>", *body, "</details>"])


def benchmark(root: Path, name: str) -> str:
    """A table of `ssb cost` or of one of the benchmarks, folded away, with its figure where it has one."""
    title, columns = BENCHMARKS[name]
    rows, picture = pd.read_csv(root / "results" / f"{name}.csv"), root / "figures" / f"{name}.png"
    shown = [f"![{described(picture)}](../figures/{picture.name})"] if picture.exists() else []
    source = f"With the machine and the commit: [{name}.csv]({name}.csv)."
    return details(title, plainly(rows[columns.split()]), *shown, source)


def in_full(path: Path) -> str:
    """A summary in Markdown; one of a form of its own as it is in the file, but for the ends of each interval of a
    difference, which share a column."""
    summary = pd.read_csv(path)
    if {"setting", "R@1", "delta", "p", "R@1 low"} <= {*summary} and summary["setting"].is_unique:
        return overview.table(path)
    kinds = {pair: kind for kind, pair in INTERVALS.items()}
    for low in [name for name in summary if name.endswith("low")]:
        high = f"{low.removesuffix('low')}high"
        if high in summary:
            kind = kinds.get((low, high))
            summary[low] = intervals(summary[low], summary[high], bound if kind else "{:.3g}".format)
            name = kind or f"{low.removesuffix('low').rstrip(' _')} 95 %"
            summary = summary.drop(columns=high).rename(columns={low: name})
    for name in summary.columns.intersection(["p", "log p"]):
        summary[name] = cells(summary[name], p_value)
    return plainly(summary)


def plainly(frame: pd.DataFrame) -> str:
    """A table in Markdown, numbers as short as they can be."""
    return markdown(frame.map(_short))


def _short(value) -> str:
    if pd.isna(value):
        return ""
    return (f"{value:.4g}" if abs(value) < 1000 else f"{value:g}") if isinstance(value, float) else str(value)


def titles(root: Path) -> dict[Path, str]:
    """The notebooks in reading order → their titles."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    return {path: _first_cell(path).splitlines()[0].removeprefix("# ") for path in paths}


def _first_cell(path: Path) -> str:
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


def contents(root: Path, finished: pd.DataFrame) -> str:
    """The README's list of notebooks with their minutes, in Markdown. finished: of `overview.runs`."""
    finished = own_runs(finished, writers(root))
    rows = [(f"[{title}](notebooks/{path.name})", minutes(finished, path)) for path, title in titles(root).items()]
    return markdown(pd.DataFrame(rows, columns=["notebook", "minutes on two cores"]))


def own_runs(finished: pd.DataFrame, writer: Callable[[str], Path | None]) -> pd.DataFrame:
    """Each run once, with the first notebook that has it (column notebook). finished: of `overview.runs`; writer: of
    `writers`."""
    finished = finished.assign(notebook=finished["table"].map(writer))
    return finished.sort_values("notebook", kind="stable").drop_duplicates(["corpus", "run"])


def minutes(finished: pd.DataFrame, path: Path) -> str:
    """Of a notebook's runs on two cores by corpus, without those on a GPU. finished: of `own_runs`."""
    own = finished[(finished["notebook"] == path) & (finished["device"] == "cpu")]
    spent = own.groupby("corpus", sort=False)["seconds"].sum() / 120
    return ", ".join(f"{corpus} {x:.0f}" for corpus, x in spent.items() if x >= 0.5)


def writers(root: Path) -> Callable[[str], Path | None]:
    """A table, or another file without its ending, → the notebook that writes it, whatever name a parameter gives the
    table: table1_tuned is of the one that writes table1."""
    found = {}
    for path in titles(root):
        names = json.loads(path.read_text(encoding="utf-8"))["metadata"]["ssb"]["writes"]
        stems = sorted({Path(name).stem for name in names if name.endswith(".csv")}, key=len)
        found |= {stem: path for k, stem in enumerate(stems) if not published.owner(stem, stems[:k])}
    return lambda name: found.get(published.owner(name, found))


def notebooks(root: Path, claims: pd.DataFrame, finished: pd.DataFrame) -> str:
    """The table of notebooks/README.md: each notebook with its title, the verdicts on its claims and the minutes of its
    runs on two cores, each run counted once. claims, finished: of `overview.claims` and `overview.runs`."""
    rows, summaries, writer = [], files_of("summary", root / "results"), writers(root)
    claims, finished = claims.assign(notebook=claims["table"].map(writer)), own_runs(finished, writer)
    for path, title in titles(root).items():
        frame = claims[claims["notebook"] == path]
        words = (
            _verdicts(frame) if len(frame) else _differences([each for each in summaries if writer(each[1]) == path])
        )
        words = words or _numbers(root / "results", writer, path)
        rows.append((f"[{path.stem}]({path.name})", title, words, minutes(finished, path)))
    return markdown(pd.DataFrame(rows, columns=["notebook", "question", "what it found", "minutes"]))


def links_to_results(root: Path) -> dict[Path, str]:
    """Notebook → links to what it found, its tables on each corpus, in Markdown."""
    files, found = made(root), {}
    files["notebook"] = files["table"].map(writers(root))
    for (path, corpus), part in files.groupby(["notebook", "corpus"], sort=False):
        for table, own in part.groupby("table", sort=False)["path"]:
            names = [f"{table}_{name}.csv" for name in (TABLES[table].shown.split() if table in TABLES else ())]
            first = [each for name in (*names, f"{table}.csv") for each in own if each.name == name]
            if first:
                address = f"../{first[0].relative_to(root).as_posix()}"
                links = found.setdefault(path, {})
                name = f"{corpus}: {table}" if any(corpus == other for other, _ in links) else corpus
                links[corpus, table] = f"[{name}]({address})"
    return {path: ", ".join(each.values()) for path, each in found.items()}


def with_links(root: Path, path: Path, results: str = "") -> str:
    """The text of a notebook's file with links to the notebooks before and after it in the line of links of its first
    cell, a line of parts "Paper: …", "Before: …", "Next: …" and "Results: …". results: its links, "": as they are."""
    names, number = titles(root), [*titles(root)].index(path)
    links = {"Before": [*names][number - 1 : number] if number else [], "Next": [*names][number + 1 : number + 2]}
    new = [f"{word}: [{names[each]}]({each.name})" for word, others in links.items() for each in others]
    book = json.loads(path.read_text(encoding="utf-8"))
    lines = "".join(book["cells"][0]["source"]).splitlines(keepends=True)
    line_of_links = next(k for k, line in enumerate(lines) if line.startswith(("Paper: ", "Papers: ")))
    papers, *others = lines[line_of_links].rstrip("\n").split(" | ")
    others = [f"Results: {results}"] if results else [part for part in others if part.startswith("Results: ")]
    end = "\n" if lines[line_of_links].endswith("\n") else ""
    lines[line_of_links] = " | ".join([papers, *new, *others]) + end
    book["cells"][0]["source"] = lines
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def generated(root: Path, claims: pd.DataFrame | None = None) -> dict[Path, str]:
    """The files of a checkout that hold generated text → what they should hold: README.md the finding and the list of
    notebooks, notebooks/README.md their table, results/README.md everything, and each notebook its links. claims: of
    `overview.claims`, None: to be read."""
    results = root / "results"
    claims, finished = overview.claims(results) if claims is None else claims, overview.runs(results)
    found = {"finding": finding.headline(claims), "answers": markdown(finding.answers(claims))}
    readmes = {
        root / "README.md": found | {"notebooks": contents(root, finished)},
        root / "notebooks" / "README.md": {"table": notebooks(root, claims, finished)},
    }
    found = links_to_results(root)
    texts = {path: with_links(root, path, found.get(path, "")) for path in titles(root)}
    texts[results / "README.md"] = results_page(root, claims)
    for path, parts in readmes.items():
        texts[path] = path.read_text(encoding="utf-8")
        for name, text in parts.items():
            before, start, rest = texts[path].partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition(f"<!-- end of {name} -->")
            if not end:
                raise ValueError(f"{path} lacks the lines <!-- {name} --> and <!-- end of {name} -->; put them back")
            texts[path] = f"{before}{start}{text.strip()}\n{end}{after}"
    return texts


def write(root: Path, claims: pd.DataFrame | None = None) -> list[Path]:
    """Bring the files of `generated` up to date; returns those that changed. claims: as there."""
    texts = generated(root, claims)
    changed = {path: text for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in changed.items():
        with files.written(path) as draft:
            draft.write_text(text, encoding="utf-8")
    return [*changed]


def _verdicts(frame: pd.DataFrame) -> str:
    """Claims in words: which were held or contradicted, or two settings equivalent, on which corpora, and how many
    tests were inconclusive."""
    parts, main = [], frame["table"].map(len) == frame["table"].map(len).min()
    stressed = [f" (a stress test, captioning {x:.3g} times {overview.TERM})" if x > 0 else "" for x in frame["stress"]]
    variants = frame["table"] + stressed
    frame = frame.assign(corpus=frame["corpus"].where(main, frame["corpus"] + ": " + variants))
    for verdict in ("held", "contradicted", "equivalent", "hardly acts"):
        corpora = frame[frame["verdict"] == verdict].groupby("claim", sort=False)["corpus"].agg(", ".join)
        each = [f"{claim.partition(' (points')[0]} ({names})" for claim, names in corpora.items()]
        if each:
            parts.append(f"{verdict.capitalize()}: {'; '.join(each)}.")
    if undecided := (frame["verdict"] == "inconclusive").sum():
        parts.append(f"Inconclusive: {undecided} of {len(frame)} tests.")
    return " ".join(parts)


def _differences(summaries: list[tuple[str, str, Path]]) -> str:
    """Summaries in words: how many settings differ from the baseline. summaries: some of `files_of`."""
    parts = []
    for corpus, table, path in summaries:
        summary = pd.read_csv(path, index_col="setting")
        if "found" in summary:
            parts.append(_looks(corpus, "tuned" if table.endswith("_tuned") else "laptop", summary))
        if "delta" not in summary:
            continue
        baseline, counts = summary.index[summary["delta"].isna()][0], summary["verdict"].value_counts()
        kinds = ["higher", "lower", *(name for name in ("equivalent", "hardly acts") if name in counts), "inconclusive"]
        each = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in kinds)
        parts.append(f"Against {baseline} on {corpus}: {each}.")
    return " ".join(parts)


def _numbers(results: Path, writer: Callable, path: Path) -> str:
    """What the first page of results/README.md says of a notebook's tables that have neither claims nor a summary."""
    wanted = [each._replace(tables=[x for x in each.tables if writer(x) == path]) for each in finding.EFFECT]
    texts = [text for each in wanted if each.tables for text in finding.numbers(results, each).items()]
    return " ".join(f"On {path.parent.name}: {text}." for path, text in texts)


def _looks(corpus: str, preset: str, looks: pd.DataFrame) -> str:
    """What a search on the validation clips has found, in words. preset: where it began. looks: as of
    `ssb.experiments.baselines`."""
    parts = []
    for name, own in looks.groupby("objective", sort=False):
        found = own.index[own["found"]][0]
        edges = baselines.at_edge(found, own.index, configure(preset, corpus).model_dump()) if corpus in CORPORA else []
        words = ", ".join(baselines.WORDS.get(name, name) for name in edges)
        beyond = f", at the edge of what was tried: {words}" if edges else ""
        seconds = own["seconds"].mean()
        parts.append(f"{name} {own.loc[found, 'sum']:.1f} ({len(own)} looks, {seconds:.0f} seconds a run{beyond})")
    began = f"{'further, ' if preset == 'tuned' else ''}from `{preset}`'s {looks['sum'].iloc[0]:.1f}"
    return f"R@1 + R@5 + R@10 on the validation clips of {corpus}, {began}: {', '.join(parts)}."
