"""Support-Set Bottlenecks for Video-Text Representation Learning (Patrick et al., ICLR 2021), in the open."""

import warnings

# `python -m ssb.train` imports this package first, and with it ssb.train
warnings.filterwarnings("ignore", "'ssb.train' found in sys.modules", RuntimeWarning)
# we draw no widgets, so that a saved notebook stays readable
warnings.filterwarnings("ignore", "IProgress not found")

from ssb import (
    alignment,
    bases,
    bases_figures,
    benchmarks,
    charts,
    drawings,
    emcl,
    examples,
    figures,
    losses,
    meaning,
    mechanism,
    probe,
    recognition,
    report,
    retrieval,
    s2dtw,
    significance,
    speech,
    study,
    tables,
    transfer,
)
from ssb.config import OBJECTIVES, PRESETS, Config, ConfigError
from ssb.corpus import Corpus, CorpusError, load_corpus
from ssb.notebook import parameters
from ssb.study import Study
from ssb.text import ModelError
from ssb.train import Collapsed, Run, TrainingError, fit
