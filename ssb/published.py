"""The tables under results/ that a study would replace: it may make the same rows again and add to them, no more."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ssb import files
from ssb.config import PRESETS, VERSION, Config, ConfigError
from ssb.corpora.load import CORPORA
from ssb.training.runs import Run, configure, run_name

# of notebooks, besides those of `Study` and the settings of runs: the values that the published tables are made with
PARAMETERS: Mapping = {
    "cases": 2,
    "decoder_corpus": "",
    "effect": 1.0,
    "metrics": ["BLEU-4", "METEOR", "ROUGE-L", "CIDEr"],
    "objectives": ["none", "cross"],
    "recipe": "",
    "steps": 600,
    "streams": [],
}
# columns that vary
ORIGIN = {"trained_on", "share", "ratio", "corpus_sha", "commit", "dirty", "torch", "device", "seconds"}
KEYS = ("setting", "seed", "mode", "dataset", "split", "recipe", "false_negatives")  # of the rows of a table
RESERVED = ("cache", "executed", "report", "runs")  # folders of results/ that are no corpus


class Planned(NamedTuple):
    """A run that a table is made of. shas, names: its `Config.sha` and its name under every VERSION of the library."""

    setting: str
    seed: int
    config: Config
    shas: frozenset[str]
    names: frozenset[str]


def planned(setting: str, config: Config, corpus, begin: Run | None = None) -> Planned:
    """A run of a setting, to be trained on `corpus`. begin: the run whose weights it starts from."""
    shas, names = {config.sha}, {run_name(config, corpus)}
    for version in range(1, VERSION + 1):
        each = config
        if begin is not None:
            old = files.digest(begin.config.key, begin.provenance["corpus_sha"], str(version))
            each = config.replace(pretrained=old)
        shas.add(files.digest(each.replace(seed=0).key, str(version)))
        names.add(files.digest(each.key, corpus.fingerprint, str(version)))
    return Planned(setting, config.seed, config, frozenset(shas), frozenset(names))


def finished(setting: str, run: Run) -> Planned:
    """A finished run of a setting."""
    shas = {run.config.sha, *(files.digest(run.config.replace(seed=0).key, str(v)) for v in range(1, VERSION + 1))}
    return Planned(setting, run.config.seed, run.config, frozenset(shas), frozenset({run.name}))


def plain_name(name: str, what: str) -> str:
    """The name; ConfigError where it is no plain file name, so that nothing is written outside results/ and
    figures/."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(f"{what} {name!r}: wanted a plain name of letters, digits, '_', '-' and '.', without folders")
    return name


def check_label(corpus: str, own: bool, library: Iterable[str]) -> None:
    """ConfigError for the folder of a corpus whose results would share a folder with something else. own: it is the
    reader's own. library: names of the library's corpora."""
    plain_name(corpus, "the name of the corpus folder,")
    if own and corpus in library:
        raise ConfigError(f"the folder {corpus!r} is named like a corpus of the library: rename it")
    if own and corpus in RESERVED:
        raise ConfigError(f"the folder {corpus!r} is named like results/{corpus}, which holds no tables: rename it")
    if preset := next((name for name in PRESETS if corpus.endswith(f"-{name}")), None):
        raise ConfigError(
            f"the corpus folder {corpus!r} is named like the results of the {preset} preset on "
            f"{corpus.removesuffix(f'-{preset}')!r}: rename it"
        )


def folders(place: Path, comparable: bool = True) -> list[Path]:
    """The folders of results/ or figures/ with published tables, in the order of CORPORA, the reader's own last.
    comparable: of presets whose tables can be compared; False: of all but smoke, whose numbers mean nothing."""
    left_out = [name for name in PRESETS if name not in files.COMPARABLE] if comparable else ["smoke"]
    found = [path for path in place.glob("[!.]*") if path.is_dir() and path.name not in RESERVED]
    found = [path for path in found if not path.name.endswith(tuple(f"-{preset}" for preset in left_out))]
    places = {name: number for number, name in enumerate(CORPORA)}
    return sorted(found, key=lambda path: (places.get(path.name, len(places)), path))


def owner(stem: str, tables: Iterable[str]) -> str:
    """The table to which a file without its ending belongs: the longest name that it has or begins with, table1 for
    table1_fig3_attention; "" where there is none."""
    return max((table for table in tables if f"{stem}_".startswith(f"{table}_")), key=len, default="")


def other_parameters(values: Mapping) -> dict:
    """Those of a notebook's parameters that are not as in PARAMETERS. ConfigError for one that is not there."""
    if unknown := sorted(values.keys() - PARAMETERS.keys()):
        raise ConfigError(
            f"{unknown[0]} is no parameter of a study; its value of the published tables goes in PARAMETERS"
        )
    return {name: value for name, value in values.items() if value != PARAMETERS[name]}


def check_name(table: str, results: Path, figures: Path):
    """ConfigError where a table without rows yet has files already: they belong to another one, as table1_fig2b_weights
    and emcl_layer_ranks do. Files of a longer name that has rows of its own, such as table1_lambda10, do not count."""
    if (results / f"{table}.csv").exists():
        return  # whose rows are compared
    taken = [path for folder in (results, figures) for path in sorted(folder.glob(f"{table}*"))]
    taken = [path for path in taken if owner(path.stem, [table])]
    for path in [path for path in taken if path.suffix == ".csv"]:
        if "config_sha" in pd.read_csv(path, nrows=0) or (figures / f"{path.stem}.png").exists():
            taken = [other for other in taken if not owner(other.stem, [path.stem])]
    if taken:
        raise ConfigError(
            f"table = {table!r}: {files.short(taken[0])} is there and belongs to another table. Give this one another "
            f"name, such as -p table my_{table}, or move away what begins with {table}"
        )


def figures_of(name: str, run: Run, corpus, preset: str) -> tuple[Path, str]:
    """The folder of figures of a single run, and what their names begin with: `name`, followed by the run's own name
    where its settings are not those of the preset or its corpus is not that of the tables. ConfigError as of
    `check_label`."""
    check_label(corpus.name, run.config.corpus not in CORPORA, CORPORA)
    label, usual = files.label(corpus.name, preset), configure(preset, run.config.corpus).effective()
    tables = [pd.read_csv(path) for path in files.folder("results", label).glob("[!.]*.csv")]
    shas = {sha for table in tables if "corpus_sha" in table for sha in table["corpus_sha"]}
    published = corpus.fingerprint in shas or not shas and run.config.corpus in CORPORA
    same = preset == "smoke" or run.config.key == usual.key and published
    return files.folder("figures", label), name if same else f"{name}_{run.name}"


def check(
    path: Path,
    plan: Iterable[Planned],
    fingerprint: str,
    part: Mapping,
    complete: bool,
    changed: Mapping,
    parameters: Mapping,
):
    """ConfigError where a published table differs from the runs that would replace it, or was made with other
    parameters; arguments as of `conflicts`. changed: what the study changes, for the name to suggest."""
    if clauses := conflicts(path, plan, fingerprint, part, complete, parameters):
        words = [f"{name}{value}" for name, value in changed.items() if isinstance(value, int | float | str)]
        name = re.sub(r"[^\w.-]", "", "_".join([path.stem, words[0]]))[:60]
        rename = " or rename the folder of one of the two corpora," if "another corpus" in clauses[0] else ""
        raise ConfigError(
            f"{files.short(path)} would be replaced by other results: {'; '.join(clauses)}. Give this table another "
            f"name, such as -p table {name},{rename} or move that file away"
        )


def check_rows(path: Path, frame: pd.DataFrame):
    """ConfigError where a published table would have fewer rows of a kind than before, or other columns: those of
    another kind of table of the same runs."""
    if not path.exists():
        return
    before = pd.read_csv(path, dtype=str, keep_default_na=False)
    if others := sorted((set(before) ^ set(frame)) - ORIGIN):
        raise ConfigError(
            f"{files.short(path)} is another kind of table: only one of the two has the column {others[0]!r}; give "
            f"this table another name, such as -p table {path.stem}_2, or move that file away"
        )
    keys = [name for name in KEYS if name in before and name in frame]
    rows = [each[keys].astype(str).itertuples(index=False, name=None) for each in (before, frame.fillna(""))]
    if lost := Counter(rows[0]) - Counter(rows[1]):
        first = ", ".join(f"{name} {value}" for name, value in zip(keys, next(iter(lost))))
        raise ConfigError(
            f"{files.short(path)} would lose {lost.total()} of its {len(before)} rows ({first}); give this table "
            f"another name, such as -p table {path.stem}_2, or move that file away"
        )


def conflicts(
    path: Path, plan: Iterable[Planned], fingerprint: str, part: Mapping, complete: bool, parameters: Mapping
) -> list[str]:
    """How a published table differs from the runs that would replace it, a clause for each kind; [] where it does not.

    fingerprint: of the corpus. part: column → value of the rows to compare. complete: is this all that the table
    will hold? Else further rows, and those that begin with the weights of other runs, are not compared. parameters: as
    of `other_parameters`; the table has those that it was made with in its column `parameters`, if there are any.
    """
    if not path.exists():
        return []
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        return [f"it cannot be read ({str(error).strip()})"]
    if not {"setting", "seed", "run"} <= set(rows):
        return ["it does not name its runs"]
    made = json.loads(rows["parameters"].iloc[0]) if "parameters" in rows and len(rows) else {}
    old, new = ({**PARAMETERS, **changed} for changed in (made, parameters))
    if others := [name for name in old if old[name] != new[name]]:
        return [f"it was made with {name} = {old[name]!r}, not {new[name]!r}" for name in others]
    for column, value in part.items():
        if column in rows:
            rows = rows[pd.to_numeric(rows[column], errors="coerce") == value]
    plan = list(plan)
    names, seeds = {one.setting for one in plan}, {str(one.seed) for one in plan}
    found: dict[str, dict[str, None]] = {}  # kind → what, in order
    changed: dict[str, dict[str, None]] = {}  # difference → settings
    for row in rows.drop_duplicates(["setting", "seed", "run"]).to_dict("records"):
        same = [one for one in plan if row["setting"] == one.setting or row["setting"] not in names]
        if row.get("trained_on") and not complete:
            continue  # of other runs, which may not be trained yet
        if row.get("corpus_sha", fingerprint) != fingerprint:
            found.setdefault("corpus", {})[row["corpus_sha"]] = None
        elif any(is_of(row, one) and str(one.seed) == row["seed"] for one in same):
            continue
        elif row["seed"] not in seeds and (row["setting"] in names or any(is_of(row, one) for one in same)):
            if complete:
                found.setdefault("seeds", {})[row["seed"]] = None
        elif row["setting"] not in names:
            if complete:
                found.setdefault("settings", {})[row["setting"]] = None
        else:
            config = next(one.config for one in same)
            changed.setdefault(_difference(row, config), {})[repr(row["setting"])] = None
    clauses = []
    if "corpus" in found:
        clauses.append(f"it is of another corpus of this name ({', '.join(found['corpus'])}; this one: {fingerprint})")
    for difference, settings in changed.items():
        clauses.append(f"{', '.join(settings)} trained with {difference}")
    if "seeds" in found:
        clauses.append(f"it has the seeds {', '.join(found['seeds'])} too")
    if "settings" in found:
        clauses.append(f"it has the settings {', '.join(map(repr, found['settings']))} too")
    return clauses


def is_of(row: Mapping, one: Planned) -> bool:
    """Is a row of a table, but for its seed, made by a planned run?"""
    return row["config_sha"] in one.shas if row.get("config_sha") else row["run"] in one.names


def _difference(row: Mapping, config: Config) -> str:
    """How the settings of a row's run differ, where its folder is still there."""
    try:
        before = json.loads((files.runs() / row["run"] / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "other settings"
    now = config.model_dump(mode="json")
    changed = [f"{k} = {before[k]!r}, not {now[k]!r}" for k in now if k != "seed" and before.get(k, now[k]) != now[k]]
    return ", ".join(changed[:3]) or "other settings"
