"""Training on long videos: batches, losses, ranks and measures against what the corpus says and naive loops."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import DATA

import ssb
from ssb import files, losses, s2dtw
from ssb.config import Config, ConfigError
from ssb.corpora import official
from ssb.corpora.load import load_corpus
from ssb.corpora.reading import CorpusError
from ssb.experiments import long_videos
from ssb.study import Study
from ssb.training.loop import fit
from ssb.training.runs import build
from ssb.training.stories import StoryData

EVENTS = {"videos": 36, "events": 4, "takes": 2, "captions": 2, "false_negatives": 0.05}
UNEVEN = EVENTS | {"irrelevant": 0.0}  # four clips are told by three captions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def small(options=EVENTS, **changes) -> Config:
    settings = {"batch": 6, "sequences": True, "contrast": "s2dtw", "dropout": 0.0, "decoder_dropout": 0.0}
    return Config.preset("smoke", corpus="events", corpus_options=options, **settings | changes)


def made(config: Config):
    torch.manual_seed(0)
    corpus = load_corpus("events", **config.corpus_options)
    data = StoryData(config, corpus)
    return corpus, data, build(data)


def test_a_batch_is_of_whole_videos(home):
    config = small(UNEVEN)
    corpus, data, _ = made(config)
    rows = data.order(3)
    assert rows.shape == (2, 6) and set(rows.ravel()) < set(corpus.stories.split("train"))
    assert not np.array_equal(rows, data.order(4)) and np.array_equal(rows, StoryData(config, corpus).order(3))
    batch = data.batch(rows[0])
    assert batch.stories == 6 and batch.text.shape[0] == 18 and batch.video.shape[0] == 24
    assert np.array_equal(batch.clips, corpus.stories.clips[rows[0]].ravel())
    told = [corpus.captions["text"][i] for i in corpus.stories.captions[rows[0]].ravel()]
    spoken = data.label_tokenizer.batch_decode(batch.labels.clamp(min=0), skip_special_tokens=True)
    assert [" ".join(text.split()) for text in spoken] == told


@pytest.mark.parametrize("objective", ["none", "cross", "full"])
def test_the_loss_is_s2dtw_of_the_videos(home, objective):
    config = small(UNEVEN, objective=objective, s2dtw_gamma=0.3, s2dtw_temperature=0.5, s2dtw_symmetric=True)
    _, data, model = made(config)
    batch = data.batch(data.order(0)[0])
    c_t, c_v = model.embed_text(batch.text, batch.text_mask), model.embed_video(batch.video, batch.video_mask)
    cost = torch.stack(  # (texts, videos), pair by pair
        [torch.stack([s2dtw.s2dtw(s2dtw.cosine_cost(v, t), gamma=0.3) for v in c_v.chunk(6)]) for t in c_t.chunk(6)]
    )
    log = [(-cost / 0.5).log_softmax(axis).diagonal().mean() for axis in (0, 1)]
    terms = model.train()(batch)
    assert terms["contrast"].item() == pytest.approx(-sum(log).item() / 2, rel=1e-4)
    if objective == "none":
        return
    visible = losses.cosine(c_t, c_v) / config.temperature
    for i in range(18):
        if objective == "cross":
            visible[i, 4 * (i // 3) : 4 * (i // 3) + 4] = -torch.inf  # the clips of its own video
    support = model.support(visible.softmax(1), batch.video, batch.video_mask)
    assert terms["captioning"].item() == pytest.approx(model.caption_loss(*support, batch.labels).item(), rel=1e-4)
    terms["loss"].backward()
    assert model.video_head.f.weight.grad.abs().sum() > 0


def test_ranks_are_those_of_naive_distances(home):
    run = fit(small(UNEVEN, objective="none", s2dtw_dummy=0.3), quiet=True)
    corpus = load_corpus("events", **UNEVEN)
    model, data = run.load(corpus)
    rows = corpus.stories.split("test")
    c_t, c_v, position = data.embed(model, "test")
    captions = corpus.captions_of(corpus.split("test"))
    at = {caption: i for i, caption in enumerate(captions["caption"])}
    clip_at = {clip: i for i, clip in enumerate(corpus.split("test"))}
    score = np.empty((len(rows), len(rows)))
    for i, told in enumerate(corpus.stories.captions[rows]):
        for j, shown in enumerate(corpus.stories.clips[rows]):
            cost = s2dtw.cosine_cost(c_v[[clip_at[clip] for clip in shown]], c_t[[at[caption] for caption in told]])
            score[i, j] = s2dtw.s2dtw(cost, dummy=0.3)
    naive = 1 + (score < np.diag(score)[:, None]).sum(1)
    assert np.mean(run.ranks["t2v"] == naive) > 0.8  # rounding may turn what is nearly a tie
    assert np.abs(run.ranks["t2v"] - naive).max() <= 1
    assert run.metrics["n_queries"] == len(rows) and set(run.ranks["clip"]) == set(range(len(rows)))


def test_what_cannot_be_trained_is_refused(home):
    with pytest.raises(ConfigError, match="has 3 captions and 4 clips; take contrast = 's2dtw'"):
        fit(small(UNEVEN, contrast="info_nce"), quiet=True)
    with pytest.raises(CorpusError, match="no long videos; sequences = True needs a corpus such as events"):
        fit(Config.preset("smoke", sequences=True, corpus_options={"clips": 60}), quiet=True)


@pytest.mark.parametrize("changes", [{"contrast": "info_nce"}, {"contrast": "triplet", "emcl": True}])
def test_place_by_place_any_loss_can_be_trained(home, changes):
    run = fit(small(**changes), quiet=True)
    model, data = run.load()
    c_t, c_v = data.embed_sequences(model, "test")
    assert c_t.shape == c_v.shape == (16, 4, 32) and run.metrics["n_queries"] == 16


def test_without_negatives_embeddings_collapse(home):
    """What VT-TWINS reports: with nothing but the own pairs pulled together, all embeddings come to lie on one line."""
    first = {}
    for contrastive in (False, True):
        settings = {"objective": "none", "epochs": 80, "validate_every": 80, "lr": 1e-2, "text_lr": 1e-2}
        run = fit(small(**settings, s2dtw_contrastive=contrastive), quiet=True)
        corpus = load_corpus("events", **EVENTS)
        model, data = run.load(corpus)
        unit = torch.nn.functional.normalize(
            torch.cat([x.flatten(0, 1) for x in data.embed_sequences(model, "train")]), dim=1
        )
        values = torch.linalg.svdvals(unit)
        first[contrastive] = (values[0] ** 2 / (values**2).sum()).item()
    assert first[False] > 0.95 and first[True] < 0.6


def test_measures_by_hand(home):
    run = fit(small(objective="none"), quiet=True)
    corpus = load_corpus("events", **EVENTS)
    model, data = run.load(corpus)
    results = long_videos.measure(model, data)
    assert results.keys() == set(long_videos.MEASURES)
    c_t, c_v = (torch.nn.functional.normalize(x, dim=-1) for x in data.embed_sequences(model, "test"))
    best = torch.einsum("qmd,cnd->qcmn", c_t, c_v).amax(-1).mean(-1)
    right = (best.argmax(1) == torch.arange(16)).double().mean()
    assert results["best-match R@1"] == pytest.approx(100 * right.item())
    assert results["spread"] == pytest.approx((c_t.flatten(0, 1) @ c_v.flatten(0, 1).T).std().item(), rel=1e-4)
    assert 0 <= results["step recall"] <= 100 and 0 <= results["motion top-1"] <= 100


def test_the_shown_pair_is_of_median_margin(home):
    run = fit(small(objective="none"), quiet=True)
    corpus = load_corpus("events", **EVENTS)
    results = long_videos.pairs(run, corpus)
    model, data = run.load(corpus)
    c_t, c_v = data.embed_sequences(model, "test")
    score = s2dtw.distances(c_v, c_t).numpy()
    margins = [np.delete(row, i).min() - row[i] for i, row in enumerate(score)]
    video = int(np.argsort(margins)[8])
    (cost, path, right), (other, _, none) = results.values()
    assert torch.allclose(cost, s2dtw.cosine_cost(c_v[video], c_t[video]), atol=1e-6)
    nearest = np.argsort(np.where(np.arange(16) == video, np.inf, score[video]))[0]
    assert torch.allclose(other, s2dtw.cosine_cost(c_v[nearest], c_t[video]), atol=1e-6)
    assert path.shape == cost.shape and 0 <= path.min() and path.max() <= 1 + 1e-5 and not len(none)
    truth = corpus.stories.truth[corpus.stories.split("test")[video]]
    assert [(caption, clip) for clip, caption in right] == [(i, t) for i, t in enumerate(truth) if t >= 0]


def test_measures_include_those_of_the_supplement(home):
    study = Study("s2dtw", corpus="events", preset="smoke", seeds=[0], jobs=1, changes={"corpus_options": EVENTS})
    runs = study.run(
        {name: long_videos.ABLATION[name] | {"batch": 6} for name in (long_videos.FULL, "γ = 1", "symmetric")}
    )
    rows = study.rows(runs, also=long_videos.table(runs, study.corpus))
    table = long_videos.measures(rows, runs, study.corpus)
    paper = pd.read_csv(Path(ssb.__file__).with_name("paper.csv"), dtype={"table": str})
    paper = paper[(paper["table"] == "VT-TWINS 3") & (paper["row"] == "gamma 1") & (paper["dataset"] == "crosstask")]
    assert table.loc["γ = 1", "paper: crosstask CTR"] == paper["value"].item()
    assert table.loc["symmetric"].filter(like="paper").isna().all()
    assert table.loc["γ = 1", "R@1 by own S2DTW"] == pytest.approx(runs["γ = 1"][0].metrics["t2v R@1"], abs=0.01)
    assert set(long_videos.PAPER.values()) <= set(long_videos.ABLATION)
    assert table.index.tolist() == [*sorted(runs), "untrained", *long_videos.baselines(study.corpus).index]
    _, data, model = made(runs[long_videos.FULL][0].config)
    ranks = data.ranks(model.eval(), "test")["t2v"]
    assert table.loc["untrained", "R@1 by own S2DTW"] == pytest.approx(100 * (ranks == 1).mean(), abs=0.01)
    assert table.loc[long_videos.FULL, "R@1 by full S2DTW"] == table.loc[long_videos.FULL, "R@1 by own S2DTW"]
    summary = study.summary(runs, baseline=long_videos.FULL)
    half = (summary["delta_high"] - summary["delta_low"]).drop(long_videos.FULL) / 2
    words = long_videos.resolution(summary, 16)
    assert "With 16 test videos" in words and f"from {half.min():.1f} to {half.max():.1f}" in words
    assert "One setting" in long_videos.resolution(summary.loc[[long_videos.FULL]], 16)


def test_baselines_by_hand(home):
    corpus = load_corpus("events", **EVENTS)
    table, stories = long_videos.baselines(corpus), corpus.stories
    videos = stories.split("test")
    even, right = {1: [2], 2: [1, 3], 3: [0, 2, 3]}, []
    for truth in stories.truth[videos]:
        kept = sorted(truth[truth >= 0])
        right += [a == b for a, b in zip(kept, even[len(kept)])]
    assert table.loc["captions spread evenly (blind)", "step recall"] == pytest.approx(100 * np.mean(right))
    chance = table.loc["random scores"]
    assert chance["R@1 by full S2DTW"] == 6.25 and chance["right script"] == 12.5 and chance["within-script R@1"] == 50
    assert chance["step recall"] == pytest.approx(chance_of(stories.truth[videos]), abs=6)
    says, words = corpus.captions["says"], corpus.meaning.to_dict("records")
    clip_of = corpus.captions["clip"]
    # of which clip is which caption true: tellings, videos, clips, captions
    true = np.zeros((16, 16, 4, stories.captions.shape[1]))
    for q, c, i, k in np.ndindex(true.shape):
        caption, clip = stories.captions[videos[q], k], stories.clips[videos[c], i]
        true[q, c, i, k] = all(words[clip][name] == words[clip_of[caption]][name] for name in says[caption])
    for row, options in (("perfect costs", {}), ("perfect costs, soft-DTW", {"dummy": None, "smooth": False})):
        score = s2dtw.s2dtw(-torch.tensor(true), **options).numpy()
        first = [(score[q] <= score[q, q] + 1e-6).sum() == 1 for q in range(16)]
        assert table.loc[row, "R@1 by own S2DTW"] == pytest.approx(100 * np.mean(first))
    place = np.stack([true[:, :, k, k] for k in range(4)]).mean(0)
    first = [(place[q] >= place[q, q]).sum() == 1 for q in range(16)]
    assert table.loc[long_videos.PLACE, "R@1 by own S2DTW"] == pytest.approx(100 * np.mean(first))
    bag = true.max(2).sum(2)
    assert table.loc["perfect costs", "best-match R@1"] == 100 * np.mean(
        [(b >= b[q]).sum() == 1 for q, b in enumerate(bag)]
    )
    assert table.loc["perfect costs", "step recall"] > table.loc["captions spread evenly (blind)", "step recall"]


def chance_of(truth, draws=400) -> float:
    """Step recall of random scores, every increasing assignment tried."""
    rng, right = np.random.default_rng(1), []
    for row in truth:
        kept = sorted(row[row >= 0])
        every = list(itertools.combinations(range(4), len(kept)))
        for scores in rng.random((draws, len(kept), 4)):
            best = max(every, key=lambda clips: sum(scores[k, clip] for k, clip in enumerate(clips)))
            right += [a == b for a, b in zip(best, kept)]
    return 100 * np.mean(right)


def test_values_of_other_code_are_measured_again(home, monkeypatch):
    study = Study("s2dtw", corpus="events", preset="smoke", seeds=[0], jobs=1, changes={"corpus_options": EVENTS})
    runs = study.run({"x": small(objective="none").model_dump(include={"sequences", "contrast", "objective", "batch"})})
    calls = []

    def measure(run, corpus):
        calls.append(1)
        return {"spread": 1.0}

    first = long_videos.table(runs, study.corpus)
    monkeypatch.setattr(long_videos, "measure", measure)
    assert long_videos.table(runs, study.corpus)["spread"].tolist() == [1.0] != first["spread"].tolist()
    long_videos.table(runs, study.corpus)
    assert len(calls) == 1
    for path in (files.cache() / "alignment").glob("*/measures.csv"):
        path.write_text("spread\n2.0\n")
    assert long_videos.table(runs, study.corpus)["spread"].tolist() == [1.0] and len(calls) == 2


@pytest.mark.slow
def test_youcook2_by_its_real_annotation(home, tmp_path, monkeypatch):
    """As the notebook does it: stories of the annotated steps, no classes to probe, no scripts; features are made."""
    if not (DATA / "youcook2" / "vttwins_validation_youcook.csv").is_file():
        pytest.skip(f"no YouCook2 files in {DATA}; set SSB_DATA to the folder that holds youcook2/")
    shutil.copytree(DATA / "youcook2", tmp_path / "youcook2", copy_function=shutil.copyfile)
    (tmp_path / "youcook2").chmod(0o755)
    (tmp_path / "youcook2" / "features").mkdir()
    clips = [clip for members in official.youcook2(tmp_path / "youcook2")[1].values() for clip in members]
    values = np.random.default_rng(0).standard_normal((len(clips), 2, 8)).astype(np.float16)
    np.save(tmp_path / "youcook2" / "features" / "look.npy", values)
    (tmp_path / "youcook2" / "features" / "look.ids.txt").write_text("\n".join(clips))
    monkeypatch.setenv("SSB_DATA", str(tmp_path))
    changes = {"epochs": 1, "corpus_options": {"events": 4, "missing": 0.25, "disorder": 0.25}}
    study = Study("s2dtw", corpus="youcook2", preset="smoke", seeds=[0], jobs=1, changes=changes)
    assert {split: len(videos) for split, videos in study.corpus.stories.splits.items()}["test"] == 679
    runs = study.run({name: long_videos.ABLATION[name] for name in (long_videos.FULL, "soft-DTW")})
    table = long_videos.measures(study.rows(runs, also=long_videos.table(runs, study.corpus)), runs, study.corpus)
    assert table.index.tolist() == [*sorted(runs), "untrained", "captions spread evenly (blind)", "random scores"]
    assert {"motion top-1", "right script", "within-script R@1"}.isdisjoint(table) and "step recall" in table
    assert table[["R@1 by full S2DTW", "spread", "step recall"]].loc[[*runs]].notna().all(axis=None)
    assert table.loc["random scores", "R@1 by full S2DTW"] == pytest.approx(100 / 679, abs=1e-3)


def test_what_is_not_known_is_left_out(home):
    corpus = load_corpus("events", **EVENTS)
    stories = dataclasses.replace(corpus.stories, truth=None, scripts=None)
    corpus = dataclasses.replace(corpus, stories=stories, meaning=None)
    results = long_videos.measure(*fit(small(objective="none"), corpus, quiet=True).load(corpus))
    assert list(results) == ["R@1 by full S2DTW", "pooled R@1", "best-match R@1", "spread"]
    table = long_videos.baselines(corpus)
    assert table.index.tolist() == ["random scores"] and "step recall" not in table
