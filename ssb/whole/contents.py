"""What the study is made of: its notebooks in the order in which they are executed, with their corpora and parameters.

`ssb study` executes them; see `ssb.whole.executed`.
"""

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ssb import files, published
from ssb.config import PRESETS, ConfigError


class Entry(NamedTuple):
    """A notebook that is executed on a corpus.

    notebook: the name of its file, without .ipynb. tables: the tables that it writes, each with the corpus whose
    folders hold it; the names of its other files begin with that of the table. minutes: that it took on two cores, or
    is expected to. parameters: those that are not as in the notebook, without the corpus. reads: the files of other
    notebooks that it reads, a pattern.
    """

    notebook: str
    corpus: str
    tables: tuple[tuple[str, str], ...]
    minutes: float
    parameters: Mapping = MappingProxyType({})
    reads: str = ""

    @property
    def preset(self) -> str:
        """The preset of its runs."""
        return self.parameters.get("preset", "laptop")

    @property
    def name(self) -> str:
        """Of the executed notebook: "shapes/01_table1_objectives", with the folder of its results."""
        table = f"_{self.parameters['table']}" if "table" in self.parameters else ""
        return f"{files.label(self.corpus, self.preset)}/{self.notebook}{table}"


HALF = {"epochs": 20}  # of flickr8k, whose ablations would take twenty hours with all of them


def each(
    notebook: str,
    tables: str,
    minutes: Mapping[str, float] = MappingProxyType({}),
    reads: str = "",
    tuned: Mapping[str, float] = MappingProxyType({}),
    half: Mapping[str, float] = MappingProxyType({}),
    **parameters,
) -> list[Entry]:
    """A notebook on several corpora. tables: names with spaces between, with another corpus as "events/name"; {corpus}
    is that of the entry. minutes: corpus → how many it takes. tuned: the same, of corpora on which it has the preset
    `tuned`. half: the same, with half of its epochs too."""
    entries = []
    how = [(each, parameters) for each in minutes.items()]
    how += [(each, parameters | {"preset": "tuned"}) for each in tuned.items()]
    how += [(each, parameters | {"preset": "tuned", "changes": HALF}) for each in half.items()]
    for (corpus, each_minutes), values in how:
        names = [name.format(corpus=corpus).rpartition("/") for name in tables.split()]
        written = tuple((other or corpus, name) for other, _, name in names)
        entries.append(Entry(notebook, corpus, written, each_minutes, values, reads))
    return entries


SEEDS = [0, 1, 2, 3, 4]
HALF_RATE = {"lr": 5e-4}  # of paper_small, that of Table 2b: at the rate of laptop its heads hardly learn
LARGE = {"corpus_options": {"clips": 12000}, "epochs": 40}  # shapes of 8,000 clips for training
ODD, EVEN = "msrvtt1k_odd", "msrvtt1k_even"
LENT = {"decoder_corpus": "msrvtt1k"}
# clips for pre-training, of the one stream that is as wide as that of msrvtt1k
SHAPES = {"corpus_options": {"clips": 2400, "false_negatives": 0.1, "seed": 1}, "streams": ["appearance"]}
STUDY: tuple[Entry, ...] = (
    *each("00_quickstart", "quickstart", {"shapes": 1, "msrvtt1k": 1}),
    *each("01_table1_objectives", "table1", {"shapes": 9, "msrvtt1k": 6, "flickr8k": 45}),
    *each(
        "01_table1_objectives",
        "table1_tuned",
        tuned={"shapes": 8, "msrvtt1k": 10, "flickr8k": 45},
        table="table1_tuned",
    ),
    *each(
        "01_table1_objectives",
        "table1_lambda10",
        {"shapes": 7, "msrvtt1k": 5},
        table="table1_lambda10",
        changes={"captioning": 10.0},
    ),
    *each("02_is_it_trained", "heads", {"shapes": 11, "msrvtt1k": 15, "flickr8k": 60}),
    *each("03_table2a_video_encoder", "table2a", {"vidvrd": 5}, tuned={"shapes": 2}, half={"flickr8k": 10}),
    *each("04_table2b_aggregation", "table2b", tuned={"shapes": 10, "msrvtt1k": 13}, half={"flickr8k": 50}),
    *each("05_table2c_text_encoder", "table2c", tuned={"shapes": 20, "msrvtt1k": 25}, half={"flickr8k": 10}),
    *each("06_table2d_text_decoder", "table2d", tuned={"shapes": 4, "msrvtt1k": 6}, half={"flickr8k": 10}),
    *each("07_table2e_contrastive_loss", "table2e", tuned={"shapes": 9, "msrvtt1k": 12}, half={"flickr8k": 27}),
    *each("08_table2f_support_set", "table2f", tuned={"shapes": 10, "msrvtt1k": 12}, half={"flickr8k": 27}),
    *each("09_lambda_temperature", "constants", {"shapes": 15, "msrvtt1k": 17}),
    *each("09_lambda_temperature", "constants", {"flickr8k": 65}, changes=HALF),
    *each("10_false_negatives", "false_negatives", tuned={"shapes": 14}),
    *each("11_same_meaning", "same_meaning", tuned={"shapes": 10, "msrvtt1k": 14, "flickr8k": 50}),
    *each("12_significance", "table12", {"shapes": 2, "msrvtt1k": 2, "flickr8k": 12, "flickr8k_confirm": 15}),
    *each(
        "12_significance",
        "table12_tuned",
        tuned={"shapes": 1, "msrvtt1k": 2, "flickr8k": 20, "flickr8k_confirm": 15},
        table="table12_tuned",
    ),
    *each(  # of which a run takes 15 minutes
        "12_significance",
        "table12_paper_small",
        {"flickr8k": 50},
        table="table12_paper_small",
        preset="paper_small",
        seeds=[0, 1, 2],
    ),
    *each(
        "12_significance",
        "table12_paper_small",
        {"flickr8k_confirm": 80},
        table="table12_paper_small",
        preset="paper_small",
        changes=HALF_RATE,
    ),
    *each("13_tables3to6_pretraining", "pretraining shapes/pretraining_for_{corpus}", tuned={"shapes": 9}),
    *each(
        "13_tables3to6_pretraining",
        "pretraining_from_shapes shapes/pretraining_from_shapes_for_{corpus}",
        tuned={"msrvtt1k": 9},
        table="pretraining_from_shapes",
        pretrain_changes=SHAPES,
    ),
    *each(
        "13_tables3to6_pretraining",
        f"pretraining {EVEN}/pretraining_for_{{corpus}}",
        tuned={ODD: 5},
        pretrain=EVEN,
        pretrain_changes={},
    ),
    *each(
        "13_tables3to6_pretraining",
        f"pretraining {ODD}/pretraining_for_{{corpus}}",
        tuned={EVEN: 5},
        pretrain=ODD,
        pretrain_changes={},
    ),
    *each("14_table10_zero_shot", "table10", tuned={"shapes": 6}),
    *each(
        "14_table10_zero_shot",
        "table10_from_shapes",
        tuned={"msrvtt1k": 6},
        table="table10_from_shapes",
        trained_changes=SHAPES,
    ),
    *each("14_table10_zero_shot", "table10", tuned={ODD: 2}, trained_on=EVEN, trained_changes={}),
    *each("14_table10_zero_shot", "table10", tuned={EVEN: 2}, trained_on=ODD, trained_changes={}),
    *each("15_figure5_retrieved", "figure5", tuned={"shapes": 1, "msrvtt1k": 1}),
    *each("16_tables7to9_captioning", "captioning", tuned={"shapes": 6, "msrvtt1k": 5, "flickr8k": 40}),
    *each("17_table11_actions", "table11", tuned={"shapes": 2, "msrvtt1k": 2}),
    *each("18_emcl_layer", "emcl_trials emcl", tuned={"shapes": 14, "msrvtt1k": 17}, half={"flickr8k": 23}),
    *each("19_emcl_inference", "emcl_inference", tuned={"shapes": 9, "msrvtt1k": 6}),
    *each("20_vt_twins_s2dtw", "s2dtw", {"events": 20}),
    *each("21_together", "together events/together_videos", tuned={"shapes": 11, "msrvtt1k": 12}),
    *each(  # the long videos as from the others
        "21_together", "together events/together_videos", half={"flickr8k": 22}, video_changes={"epochs": 40}
    ),
    *each("23_baselines", "looks", {"shapes": 60, "msrvtt1k": 60, "flickr8k": 85}),
    *each(
        "23_baselines",
        "looks_tuned",
        tuned={"shapes": 13, "msrvtt1k": 19},
        half={"flickr8k": 40},
        table="looks_tuned",
    ),
    *each("24_strength", "strength", {"shapes": 90, "flickr8k": 90}),
    *each("25_what_carries", "carries", {"shapes": 10}, **LENT),
    *each("25_what_carries", "carries", {"flickr8k": 65}, changes=HALF, **LENT),
    *each(
        "25_what_carries",
        "carries_tuned",
        tuned={"shapes": 25},
        half={"flickr8k": 88},
        table="carries_tuned",
        seeds=SEEDS,
        **LENT,
    ),
    *each("26_leak", "leak", {"shapes": 5, "msrvtt1k": 5}),
    *each("26_leak", "leak_tuned", tuned={"shapes": 8, "msrvtt1k": 9}, half={"flickr8k": 40}, table="leak_tuned"),
    *each("27_when", "when", tuned={"shapes": 75}, half={"flickr8k": 90}, changes=LARGE),
    *each("28_multiverse", "multiverse", {"shapes": 90, "flickr8k": 65}),
    *each("22_overview", "overview finding", {"shapes": 1, "msrvtt1k": 1, "vidvrd": 1, "flickr8k": 1}, reads="*.csv"),
)
TABLES = {(files.label(corpus, entry.preset), table) for entry in STUDY for corpus, table in entry.tables}
NOTEBOOKS = {table: entry.notebook for entry in STUDY for _, table in entry.tables}  # table → the one that writes it


def owner(folder: str, stem: str) -> str:
    """The table to which a file of a folder of results/ or figures/ belongs: "emcl_inference" for
    "emcl_inference_orders". folder: its name. stem: of the file. "" where no entry writes it."""
    folder = folder.removesuffix("-smoke")
    return published.owner(stem, [table for other, table in TABLES if other == folder])


def chosen(names: Iterable[str] = (), corpus: str = "", preset: str = "") -> list[Entry]:
    """The entries of these tables, notebooks or names, this corpus and this preset; () and "": of all. Every entry has
    the preset smoke. ConfigError for a name that is not there, with the nearest one, or not on this corpus or with this
    preset."""
    by_name: dict[str, list[Entry]] = {}
    for entry in STUDY:
        for name in {entry.name, entry.notebook, *(table for _, table in entry.tables)}:
            by_name.setdefault(name, []).append(entry)
    for what, name, known in (
        *(("table or notebook", name, by_name) for name in names),
        ("corpus of the study", corpus or STUDY[0].corpus, {entry.corpus: 0 for entry in STUDY}),
        ("preset", preset or "laptop", PRESETS),
    ):
        if name not in known:
            if what == "table or notebook" and name in {entry.corpus for entry in STUDY}:
                raise ConfigError(f"{name!r} is a corpus, no table: ssb study --corpus {name}")
            near = difflib.get_close_matches(name, known, n=1)
            short = [each for each in known if "/" not in each]
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(short)}"
            raise ConfigError(f"no {what} {name[:80]!r}; {hint}")
    wanted = "" if preset == "smoke" else preset
    entries = [entry for entry in STUDY if corpus in ("", entry.corpus) and wanted in ("", entry.preset)]
    for name in names or [""]:
        if not any(name == "" or entry in by_name[name] for entry in entries):
            where = f"{name or 'table'}{corpus and f' on {corpus}'}{preset and f' with {preset}'}"
            raise ConfigError(f"the study has no {where}; `ssb study --status` lists what it has")
    return [entry for entry in entries if not names or any(entry in by_name[name] for name in names)]
