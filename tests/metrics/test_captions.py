"""Generated captions against a loop over the model's own caption loss; their metrics against hand-worked cases."""

import contextlib
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from ssb import Config, load_corpus, losses
from ssb.experiments import captioning
from ssb.metrics import captions
from ssb.training.data import Data
from ssb.training.runs import build

java = pytest.mark.skipif(captions.java_fails() is not None, reason="needs Java")
MOST = 4  # tokens


@pytest.fixture(scope="module")
def trained(shared_home):
    """A model whose decoder has begun to learn, so that captions differ and end; its data."""
    corpus = load_corpus("shapes", clips=48, captions=2, false_negatives=0.05)
    config = Config.preset("smoke", vocabulary=300, max_steps=8, dropout=0.0, decoder_dropout=0.0)
    data = Data(config, corpus)
    data.video_mask = data.video_mask.clone()  # kept for other tests
    data.video_mask[::3, 5:] = False  # clips of different lengths
    torch.manual_seed(0)
    model = build(data)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(150):
        for rows in data.order(epoch):
            batch = data.batch(rows)
            loss = model.caption_loss(*model.support(torch.eye(len(rows)), batch.video, batch.video_mask), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), data


@contextlib.contextmanager
def with_config(data, **changes):
    """The data with other settings inside the block."""
    config, data.config = data.config, data.config.replace(**changes)
    try:
        yield
    finally:
        data.config = config


def greedy(model, support, mask, most) -> list[int]:
    """The tokens of one caption, each that which adds least to the model's own loss of the caption so far."""
    tokens, end = [], model.decoder.config.eos_token_id
    while len(tokens) < most and tokens[-1:] != [end]:
        n = len(tokens) + 1
        cost = [
            n * model.caption_loss(support, mask, torch.tensor([[*tokens, word]])).item()
            for word in range(model.decoder.config.vocab_size)
        ]
        tokens.append(int(np.argmin(cost)))
    return tokens


def cut(row, end=1) -> list[int]:
    """What generate gives, without the start mark and the padding."""
    row = row.tolist()[1:]
    return row[: row.index(end) + 1] if end in row else row


@torch.no_grad()
def test_greedy_is_the_best_next_token_of_the_own_loss(trained):
    model, data = trained
    clips = torch.tensor([39, 42])  # of five steps and of eight
    support, mask = captioning.own(model, data, clips)
    for i, row in enumerate(model.generate(support, mask, beams=1, max_tokens=MOST)):
        assert cut(row) == greedy(model, support[[i]], mask[[i]], MOST)


@torch.no_grad()
def test_beams_find_what_is_more_likely_per_token(trained):
    model, data = trained
    support, mask = captioning.own(model, data, torch.arange(48))

    def search(beams):
        rows = model.generate(support, mask, beams, 60)
        for row in rows.tolist():  # a start mark, then words, and after the end mark nothing
            assert row[0] == 0 and set(row[row.index(1) :] if 1 in row else []) <= {0, 1}
        rows = [cut(row) for row in rows]
        labels = [torch.tensor([row]) for row in rows]
        costs = [model.caption_loss(support[[i]], mask[[i]], label).item() for i, label in enumerate(labels)]
        return np.array(costs), np.array([row[-1] == 1 for row in rows])

    (one, ended), (four, finished) = search(1), search(4)
    both = ended & finished
    assert both.sum() > 12
    assert four[both].mean() < one[both].mean()


def test_own_support_is_the_clip_itself(trained):
    model, data = trained
    with torch.no_grad():
        support, mask = captioning.own(model, data, torch.tensor([3, 4]))
        for i, clip in enumerate((3, 4)):
            alone = model.to_decoder(model.normalise(data.video[[clip]], data.video_mask[[clip]]))[0]
            real = data.video_mask[clip]
            assert torch.equal(mask[i], real)
            torch.testing.assert_close(support[i][real], alone[real])


@pytest.mark.parametrize("size", [2, 5, 500])
def test_retrieved_support_set_by_plain_loops(trained, size):
    model, data = trained
    with torch.no_grad():
        train = data.embed_videos(model, data.train)
        clips = torch.tensor([int(data.train[2]), *data.corpus.split("test")[:2].tolist()])
        with with_config(data, support_set=size):
            support, mask = captioning.retrieved(model, data, clips, train)
        for i, clip in enumerate(clips.tolist()):
            own = data.embed_videos(model, clips[[i]].numpy())
            near = sorted(
                (
                    (torch.cosine_similarity(own, train[[j]]).item(), int(other))
                    for j, other in enumerate(data.train)
                    if other != clip
                ),
                reverse=True,
            )[:size]
            weights = torch.zeros(1, len(data.video))
            total = sum(math.exp(s / data.config.temperature) for s, _ in near)
            for s, other in near:
                weights[0, other] = math.exp(s / data.config.temperature) / total
            steps = model.to_decoder(model.normalise(data.video, data.video_mask))
            wanted, wanted_mask = losses.weighted_mean(weights, steps, data.video_mask)
            assert torch.equal(mask[i], wanted_mask[0])
            torch.testing.assert_close(support[i], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", captioning.SOURCES)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_does_not_depend_on_its_neighbours(trained, monkeypatch, source, beams):
    model, data = trained
    with with_config(data, max_tokens=8):
        together = captioning.caption(model, data, "test", source, beams)
        assert together["clip"].tolist() == data.corpus.split("test").tolist()
        monkeypatch.setattr(captioning, "BATCH", 1)
        pd.testing.assert_frame_equal(captioning.caption(model, data, "test", source, beams), together)


def test_the_test_captions_are_not_used(trained, monkeypatch):
    model, data = trained
    before = captioning.caption(model, data, source="support", beams=1)
    monkeypatch.setattr(data, "text", None)
    monkeypatch.setattr(data, "labels", None)
    pd.testing.assert_frame_equal(captioning.caption(model, data, source="support", beams=1), before)


def test_arguments_that_are_refused(trained):
    model, data = trained
    for wrong in ({"source": "other"}, {"beams": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            captioning.caption(model, data, **wrong)
    with with_config(data, objective="none"), pytest.raises(ValueError, match="no decoder"):
        captioning.caption(model, data)


def frame(*texts) -> pd.DataFrame:
    """A row for each caption of clips 0, 1, …"""
    rows = [(clip, text) for clip, some in enumerate(texts) for text in ([some] if isinstance(some, str) else some)]
    return pd.DataFrame(rows, columns=["clip", "text"])


HYPOTHESES = frame("A man is running, fast.", "two dogs play", "the cat's asleep on a red-hot roof")
REFERENCES = frame(
    ["a man runs fast", "The man is running in a park!"],
    ["two dogs play in the snow", "dogs (two) play", "some animals"],
    ["a cat sleeps on the roof"],
)
FAST = ("BLEU-4", "ROUGE-L", "CIDEr")  # METEOR takes ten seconds to begin


@java
def test_scores_are_those_of_pycocoevalcap():
    tokenizer = PTBTokenizer()
    references = {i: [{"caption": t} for t in part["text"]] for i, part in REFERENCES.groupby("clip")}
    hypotheses = {i: [{"caption": t}] for i, t in enumerate(HYPOTHESES["text"])}
    pair = tokenizer.tokenize(references), tokenizer.tokenize(hypotheses)
    want = Bleu(4).compute_score(*pair, verbose=0)[0][3], Rouge().compute_score(*pair)[0], Cider().compute_score(*pair)
    order = REFERENCES.sample(frac=1, random_state=1)  # of the references; those of other clips are not used
    order = pd.concat([order, pd.DataFrame({"clip": [9], "text": ["two dogs play"]})])
    scores, each = captions.evaluate(HYPOTHESES, order, FAST)
    assert list(scores.values()) == pytest.approx([100 * want[0], 100 * want[1], 100 * want[2][0]])
    assert each.tolist() == pytest.approx(100 * want[2][1]) and each.mean() == pytest.approx(scores["CIDEr"])
    assert each.index.tolist() == [0, 1, 2]


@java
def test_bleu_and_cider_worked_by_hand():
    # clip 0: 5 of 6 words are right, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; clip 1: all of 4, 3, 2, 1
    hypotheses = frame("the cat sat on a mat", "dogs run very far")
    references = frame("the cat sat on the mat", "dogs run very far")
    scores, each = captions.evaluate(hypotheses, references, ("BLEU-4",))
    assert scores["BLEU-4"] == pytest.approx(100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25, rel=1e-6)
    # no n-gram is in both clips' references, so every idf is log 2 and cancels in the cosine; "the" counts once in the
    # caption and twice in the reference, "a" only in the caption: (min(1, 2) · 2 + 4) / (√6 · √8) of single words
    singles = (1 * 2 + 4) / (math.sqrt(6) * math.sqrt(8))
    want = 10 * np.mean([singles, 3 / 5, 2 / 4, 1 / 3])
    assert each.tolist() == pytest.approx([100 * want, 1000.0])


@java
def test_cider_of_one_clip_is_undefined(capsys):
    """Every word is in every clip: idf log(1/1) = 0, and the cosine 0 / 0."""
    scores, each = captions.evaluate(frame("two dogs play"), frame(["two dogs play", "some dogs"]), FAST)
    assert math.isnan(scores["CIDEr"]) and each.isna().all() and scores["ROUGE-L"] == pytest.approx(100)
    assert capsys.readouterr().out.startswith("CIDEr stays blank: it weights words by how few of the clips have them")
    two = captions.evaluate(frame("two dogs play", "a cat"), frame("two dogs play", "a cat"), ("CIDEr",))
    assert two[0]["CIDEr"] > 0 and capsys.readouterr().out == ""


@java
def test_line_ends_and_empty_captions_stay_with_their_clip():
    hypotheses = frame("a man\u2028runs\r\nfast", "", "two dogs play")
    _, each = captions.evaluate(hypotheses, frame("a man runs fast", "a boat", "two dogs play"), ())
    assert each[0] > 500 and each[1] == 0 and each[2] > 500


@java
@pytest.mark.slow
def test_meteor_of_the_same_and_of_other_words():
    references = frame("two dogs play in the snow", "a man cooks rice in a pan")
    assert captions.evaluate(references, references, ("METEOR",))[0]["METEOR"] == pytest.approx(100)
    other = frame("quantum stocks fell sharply", "")
    assert captions.evaluate(other, references, ("METEOR",))[0]["METEOR"] < 5


@java
@pytest.mark.slow
def test_meteor_of_one_java_program_is_that_of_one_for_each_set():
    pairs = [
        captions.tokenized(HYPOTHESES, REFERENCES),
        captions.tokenized(REFERENCES.drop_duplicates("clip"), REFERENCES),
    ]
    pairs.append(
        captions.tokenized(HYPOTHESES, REFERENCES[::-1])
    )  # the first again, with the references in another order
    fresh = [Meteor().compute_score(*pair)[0] for pair in pairs]
    captions._meteor.cache_clear()
    assert [captions.meteor(*pair) for pair in pairs] == fresh
    assert captions._meteor.cache_info().misses == 1
    assert fresh[0] == fresh[2] != fresh[1]


@java
@pytest.mark.slow
def test_meteor_goes_on_after_its_program_was_stopped_or_interrupted(monkeypatch):
    pair = captions.tokenized(HYPOTHESES, REFERENCES)
    want = captions.meteor(*pair)
    captions._meteor().meteor_p.kill()
    captions._meteor().meteor_p.wait()
    assert captions.meteor(*pair) == want
    scorer, calls = captions._meteor(), []

    def stat(hypothesis, references):  # interrupted at the second of three captions, one answer not read
        calls.append(hypothesis)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return type(scorer)._stat(scorer, hypothesis, references)

    monkeypatch.setattr(scorer, "_stat", stat)
    with pytest.raises(KeyboardInterrupt):
        captions.meteor(*pair)
    assert captions.meteor(*pair) == want


@java
def test_the_tokenizer_prints_nothing_on_standard_error(capfd):
    captions.evaluate(HYPOTHESES, REFERENCES, ())
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


@java
def test_examples_are_chosen_by_rule():
    references = frame(*(f"word{i} runs over there now" for i in range(7)))
    hypotheses = frame(*(" ".join(t.split()[: 5 - i % 5]) for i, t in enumerate(references["text"])))
    each = captions.evaluate(hypotheses, references, ())[1].sort_values(ascending=False, kind="stable")
    chosen = captions.examples(hypotheses, references, each=2)
    assert chosen["kind"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert chosen["clip"].tolist() == [*each.index[:2], *each.index[2:4], *each.index[-2:]]
    assert chosen["references"].tolist() == references["text"][chosen["clip"]].tolist()
    assert len(captions.examples(hypotheses[:2], references)) == 0


def test_without_java_scores_are_nan_and_the_reason_is_printed_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    captions.java_fails.cache_clear()
    try:
        scores, each = captions.evaluate(HYPOTHESES, REFERENCES)
        assert list(scores) == list(captions.METRICS) and all(math.isnan(x) for x in scores.values())
        assert each.isna().all() and captions.examples(HYPOTHESES, REFERENCES).empty
        assert capsys.readouterr().out.count("stay blank: `java` is missing or does not run") == 1
    finally:
        captions.java_fails.cache_clear()


def test_captions_that_cannot_be_evaluated():
    with pytest.raises(ValueError, match="clip '0' has two captions"):
        captions.evaluate(pd.concat([HYPOTHESES, HYPOTHESES[:1]]), REFERENCES)
    with pytest.raises(ValueError, match="no reference for clip '2'"):
        captions.evaluate(HYPOTHESES, REFERENCES[REFERENCES["clip"] < 2])
    with pytest.raises(ValueError, match="'text'"):
        captions.evaluate(HYPOTHESES[["clip"]], REFERENCES)
    with pytest.raises(ValueError, match="'SPICE'"):
        captions.evaluate(HYPOTHESES, REFERENCES, ("SPICE",))
    with pytest.raises(ValueError, match="no hypotheses"):
        captions.evaluate(HYPOTHESES[:0], REFERENCES)
