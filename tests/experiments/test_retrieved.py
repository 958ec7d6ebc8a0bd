"""The cases of Figure 5 against plain loops over made-up similarities, and as a run of seconds shows them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssb
from ssb import figures
from ssb.experiments import retrieved
from ssb.metrics import meaning, retrieval


@st.composite
def similarities(draw):
    """Similarities of few values, so that ties abound, the own clip of each query, and what is true."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    queries, clips, values = draw(st.integers(1, 14)), draw(st.integers(2, 6)), draw(st.sampled_from([2, 4, 50]))
    similarity = rng.integers(values, size=(queries, clips)) / 8
    own = rng.integers(clips, size=queries)
    fits = rng.random((queries, clips)) < draw(st.sampled_from([0.0, 0.2, 0.6]))
    fits[np.arange(queries), own] = True
    return similarity, own, fits


def naive(similarity, own, fits):
    """(kind, rank, margin) of each query, by the definitions."""
    for row, mine, true in zip(similarity.tolist(), own.tolist(), fits.tolist()):
        others = [s for clip, s in enumerate(row) if clip != mine]
        margin = row[mine] - max(others)
        rank = 1 + sum(s > row[mine] for s in others) + sum(s == row[mine] for s in others) / 2
        first = [clip for clip, s in enumerate(row) if s == max(row)]
        kind = "good" if first == [mine] else "tied" if any(true[clip] for clip in first) else "bad"
        yield kind, rank, margin


@settings(deadline=None, max_examples=150)
@given(similarities(), st.integers(1, 3))
def test_cases_are_chosen_by_the_rules(drawn, cases):
    similarity, own, fits = drawn
    expected = list(naive(similarity, own, fits))
    assert retrieved.kinds(similarity, own, fits).tolist() == [kind for kind, _, _ in expected]
    assert retrieved.margins(similarity, own).tolist() == [margin for _, _, margin in expected]
    wanted = []
    for kind in ("good", "tied", "bad"):
        left = [query for query in range(len(own)) if expected[query][0] == kind]
        for _ in range(cases):
            if not left:
                break
            if kind == "bad":
                best = max(left, key=lambda q: (expected[q][1], -expected[q][2], -q))
            else:
                best = max(left, key=lambda q: (expected[q][2], -q))
            wanted.append((kind, best, *expected[best][1:]))
            left = [query for query in left if own[query] != own[best]]
    chosen = retrieved.choose(similarity, own, fits, cases)
    assert list(chosen.columns) == ["kind", "query", "rank", "margin"]
    assert list(chosen.itertuples(index=False, name=None)) == wanted


def test_the_kinds_by_hand():
    similarity = np.array([
        [0.9, 0.1, 0.2],  # own clip first
        [0.9, 0.9, 0.2],  # shares the first place, with a clip of which it is not true
        [0.5, 0.9, 0.2],  # another clip of which it is true is first
        [0.5, 0.2, 0.9],  # a clip of which it is not true is first
        [0.5, 0.9, 0.9],  # of two that share the first place it is true of one
    ])  # fmt: skip
    fits = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1]], bool)
    own = np.zeros(5, int)
    assert retrieved.kinds(similarity, own, fits).tolist() == ["good", "tied", "tied", "bad", "tied"]
    assert retrieved.margins(similarity, own) == pytest.approx([0.7, 0, -0.4, -0.4, -0.4])
    chosen = retrieved.choose(similarity, own, fits, cases=2)  # all are captions of one clip: one case a kind
    assert chosen[["kind", "query"]].values.tolist() == [["good", 0], ["tied", 1], ["bad", 3]]
    assert chosen["rank"].tolist() == [1, 1.5, 2]


def test_good_is_rank_1_and_good_or_tied_is_semantic_rank_1():
    """Where nothing ties, good and tied together are the queries whose semantic rank is 1."""
    rng = np.random.default_rng(0)
    text, video, own = rng.normal(size=(60, 8)), rng.normal(size=(20, 8)), np.arange(60) % 20
    fits = rng.random((60, 20)) < 0.2
    fits[np.arange(60), own] = True
    similarity = (retrieval.unit(text) @ retrieval.unit(video).T).numpy()
    kinds = retrieved.kinds(similarity, own, fits)
    assert (kinds == "good").tolist() == (retrieval.search(text, video, own) == 1).tolist()
    assert (kinds != "bad").tolist() == (meaning.semantic_ranks(text, video, fits) == 1).tolist()
    assert set(kinds) == {"good", "tied", "bad"}


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_disagreements_are_the_worst_ranks_of_the_other_run(seed, cases):
    rng = np.random.default_rng(seed)
    one, two, own = rng.integers(1, 5, 20).astype(float), rng.integers(2, 9, 20) / 2, rng.integers(6, size=20)
    wanted = []
    for first, (right, wrong) in enumerate(((one, two), (two, one))):
        left = [q for q in range(20) if right[q] == 1 and wrong[q] > 1]
        for _ in range(cases):
            if left:
                worst = max(left, key=lambda q: (wrong[q], -q))
                wanted.append((first, worst, one[worst], two[worst]))
                left = [q for q in left if own[q] != own[worst]]
    chosen = retrieved.disagreements(one, two, own, cases)
    assert list(chosen.itertuples(index=False, name=None)) == wanted


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"fits is float64 of shape \(2, 3\); wanted bool of shape \(2, 3\)"):
        retrieved.kinds(np.eye(2, 3), [0, 1], np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"similarity has shape \(2, 1\); a margin needs two or more clips"):
        retrieved.margins(np.ones((2, 1)), [0, 0])


# a run


@pytest.fixture(scope="module")
def trained(shared_home):
    options = {"clips": 60, "false_negatives": 0.1}
    corpus = ssb.load_corpus("shapes", **options)
    base = dict(corpus="shapes", corpus_options=options, epochs=3, batch=8)
    runs = {
        name: ssb.fit(ssb.Config.preset("smoke", objective=name, **base), corpus, True) for name in ("none", "cross")
    }
    return corpus, {name: retrieved.search(run, corpus) for name, run in runs.items()}


def test_a_search_has_the_ranks_of_the_run(trained):
    corpus, searches = trained
    for each in searches.values():
        assert np.array_equal(each.ranks, each.run.ranks["t2v"]) and np.array_equal(each.own, each.run.ranks["clip"])
        captions = corpus.captions_of(corpus.split("test"))
        assert each.texts == captions["text"].tolist()
        assert [each.clips[column] for column in each.own] == captions["clip"].tolist()
        assert np.array_equal(each.fits, corpus.truth(captions["caption"], corpus.split("test")))
    shares = retrieved.shares(searches)
    assert list(shares.columns) == ["definition", "none", "cross"] and list(shares.index) == ["good", "tied", "bad"]
    for name, each in searches.items():
        assert shares[name].sum() == pytest.approx(100, abs=0.2)
        assert shares[name]["good"] == pytest.approx(each.run.metrics["t2v R@1"], abs=0.06)
    words = retrieved.reading(shares).splitlines()
    assert words[1].startswith(f"cross: of the test captions {shares['cross']['good']:.1f} % find") and len(words) == 3


def test_the_table_has_every_case_in_full(trained):
    corpus, searches = trained
    each = searches["cross"]
    frame = retrieved.table(each, each.choose(3))
    assert frame["kind"].value_counts().max() == 3 and set(frame["setting"]) == {"cross"}
    ids = [corpus.clips[clip] for clip in corpus.split("test")]
    captions = corpus.captions_of(corpus.split("test"))
    for row in frame.to_dict("records"):
        scores = dict(zip(ids, each.similarity[row["query"]]))
        ordered = sorted(scores.values(), reverse=True)
        caption = captions.iloc[row["query"]]
        assert row["clip"] == corpus.clips[caption["clip"]] and "text" not in row
        assert row["similarity"] == pytest.approx(scores[row["clip"]], abs=1e-6)
        for k in (1, 2, 3):
            assert row[f"similarity {k}"] == pytest.approx(ordered[k - 1], abs=1e-6)
            assert scores[row[f"found {k}"]] == pytest.approx(ordered[k - 1], abs=1e-6)
            own, other = (corpus.meaning.iloc[corpus.clips.index(row[name])] for name in ("clip", f"found {k}"))
            assert row[f"true {k}"] == all(own[name] == other[name] for name in caption["says"])
        assert (row["kind"] == "good") == (row["found 1"] == row["clip"] and row["rank"] == 1)
        assert row["share of kind"] == pytest.approx(100 * np.mean(each.kinds == row["kind"]), abs=0.06)


def labels(figure) -> list[str]:
    return [axis.get_title() for axis in figure.findobj(lambda x: hasattr(x, "get_title") and hasattr(x, "imshow"))]


def test_the_figure_marks_the_right_clips_and_states_its_rules(trained):
    _, searches = trained
    each = searches["cross"]
    chosen = each.choose(2)
    figure = retrieved.figure(each, chosen, "Title: shapes, smoke")
    own = [title for title in labels(figure) if title.startswith("own clip: s = ")]
    assert len(own) == len(chosen), "each case has its own clip once"
    true = [(q, c) for q in chosen["query"] for c in retrieved.top(each, q) if c != each.own[q] and each.fits[q, c]]
    assert sum(title.startswith("also true: ") for title in labels(figure)) == len(true)
    words = " ".join(
        text.get_text().replace("\n", " ") for text in figure.findobj(match=lambda x: hasattr(x, "get_text"))
    )
    for kind in chosen["kind"].unique():
        share, (definition, rule) = 100 * np.mean(each.kinds == kind), retrieved.KINDS[kind]
        assert f"{kind}, {share:.1f} % of queries: {definition}. Shown: {rule}" in words
    for query in chosen["query"]:
        assert f"rank {each.ranks[query]:g}: “{each.texts[query][:40]}" in words


def test_the_contrast_has_a_line_for_each_run(trained, home):
    _, searches = trained
    ranks = [each.ranks for each in searches.values()]
    differ = retrieved.disagreements(*ranks, searches["none"].own)
    figure = retrieved.contrast(searches, differ, "Title: shapes, smoke")
    assert sum("own clip" in title for title in labels(figure)) == 2 * len(differ)
    nothing = retrieved.contrast(searches, retrieved.disagreements(ranks[0], ranks[0], searches["none"].own), "Title")
    assert any("no such query" in text.get_text() for text in nothing.texts)
    figures.save(nothing, home / "figures", "nothing", alt="Nothing.")


def test_without_frames_a_clip_is_shown_by_its_own_caption(small_folder, home):
    import matplotlib.pyplot as plt

    corpus = ssb.load_corpus(small_folder)
    figure, axis = plt.subplots()
    figures.show_clip(axis, corpus, 7)
    assert [text.get_text() for text in axis.texts] == ["a red thing number 07"] and not axis.images
    plt.close(figure)
