"""Generated captions against a loop over the model's own caption loss; their metrics against hand-worked cases."""

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
from ssb import model as model_module
from ssb.experiments import captioning as captioning_module
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
    seen = captioning_module.own(model, data, clips)
    found = model_module.generated(model, *seen, beams=1, max_tokens=MOST)
    for i, row in enumerate(found):
        assert cut(row) == greedy(model, seen[0][[i]], seen[1][[i]], MOST)


@torch.no_grad()
def test_beams_find_what_is_more_likely_per_token(trained):
    model, data = trained
    seen = captioning_module.own(model, data, torch.arange(48))

    def found(beams):
        rows = model_module.generated(model, *seen, beams, 60)
        for row in rows.tolist():  # a start mark, then words, and after the end mark nothing
            assert row[0] == 0 and set(row[row.index(1) :] if 1 in row else []) <= {0, 1}
        rows = [cut(row) for row in rows]
        labels = [torch.tensor([row]) for row in rows]
        costs = [model.caption_loss(seen[0][[i]], seen[1][[i]], label).item() for i, label in enumerate(labels)]
        return np.array(costs), np.array([row[-1] == 1 for row in rows])

    (one, ended), (four, finished) = found(1), found(4)
    both = ended & finished
    assert both.sum() > 12
    assert four[both].mean() < one[both].mean()


def test_own_support_is_the_clip_itself(trained):
    model, data = trained
    with torch.no_grad():
        seen, mask = captioning_module.own(model, data, torch.tensor([3, 4]))
        for i, clip in enumerate((3, 4)):
            alone = model.to_decoder(model.normalise(data.video[[clip]], data.video_mask[[clip]]))[0]
            real = data.video_mask[clip]
            assert torch.equal(mask[i], real)
            torch.testing.assert_close(seen[i][real], alone[real])


@pytest.mark.parametrize("size", [1, 5, 500])
def test_retrieved_support_set_by_plain_loops(trained, size):
    model, data = trained
    with torch.no_grad():
        known = data.embed_videos(model, data.train)
        clips = torch.tensor([int(data.train[2]), *data.corpus.split("test")[:2].tolist()])
        seen, mask = captioning_module.retrieved(model, data, clips, known, size)
        for i, clip in enumerate(clips.tolist()):
            own = data.embed_videos(model, clips[[i]].numpy())
            near = sorted(
                (
                    (torch.cosine_similarity(own, known[[j]]).item(), int(other))
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
            torch.testing.assert_close(seen[i], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", captioning_module.SOURCES)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_does_not_depend_on_its_neighbours(trained, monkeypatch, source, beams):
    model, data = trained
    whole = captioning_module.captions(model, data, "test", source, beams, 8)
    assert whole["clip"].tolist() == data.corpus.split("test").tolist()
    monkeypatch.setattr(captioning_module, "BATCH", 1)
    pd.testing.assert_frame_equal(captioning_module.captions(model, data, "test", source, beams, 8), whole)


def test_the_test_captions_are_not_looked_at(trained, monkeypatch):
    model, data = trained
    before = captioning_module.captions(model, data, source="support", beams=1)
    monkeypatch.setattr(data, "text", None)
    monkeypatch.setattr(data, "labels", None)
    pd.testing.assert_frame_equal(captioning_module.captions(model, data, source="support", beams=1), before)


def test_what_cannot_be_captioned(trained):
    model, data = trained
    for wrong in ({"source": "other"}, {"beams": 0}, {"max_tokens": 0}, {"support_set": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            captioning_module.captions(model, data, **wrong)
    config = data.config
    try:
        data.config = config.replace(objective="none")
        with pytest.raises(ValueError, match="no decoder"):
            captioning_module.captions(model, data)
    finally:
        data.config = config


def frame(*texts) -> pd.DataFrame:
    """A row for each caption of clips 0, 1, …"""
    rows = [(clip, text) for clip, told in enumerate(texts) for text in ([told] if isinstance(told, str) else told)]
    return pd.DataFrame(rows, columns=["clip", "text"])


SAID = frame("A man is running, fast.", "two dogs play", "the cat's asleep on a red-hot roof")
TOLD = frame(
    ["a man runs fast", "The man is running in a park!"],
    ["two dogs play in the snow", "dogs (two) play", "some animals"],
    ["a cat sleeps on the roof"],
)
FAST = ("BLEU-4", "ROUGE-L", "CIDEr")  # METEOR takes ten seconds to begin


@java
def test_scores_are_those_of_pycocoevalcap():
    words = PTBTokenizer()
    told = {i: [{"caption": t} for t in part["text"]] for i, part in TOLD.groupby("clip")}
    said = {i: [{"caption": t}] for i, t in enumerate(SAID["text"])}
    pair = words.tokenize(told), words.tokenize(said)
    want = Bleu(4).compute_score(*pair, verbose=0)[0][3], Rouge().compute_score(*pair)[0], Cider().compute_score(*pair)
    order = TOLD.sample(frac=1, random_state=1)  # of the references; others' are not looked at
    order = pd.concat([order, pd.DataFrame({"clip": [9], "text": ["two dogs play"]})])
    found = captions.scores(SAID, order, FAST)
    assert list(found.values()) == pytest.approx([100 * want[0], 100 * want[1], 100 * want[2][0]])
    each = captions.cider(SAID, TOLD)
    assert each.tolist() == pytest.approx(100 * want[2][1]) and each.mean() == pytest.approx(found["CIDEr"])


@java
def test_bleu_and_cider_worked_by_hand():
    # clip 0: 5 of 6 words are right, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; clip 1: all of 4, 3, 2, 1
    said = frame("the cat sat on a mat", "dogs run very far")
    told = frame("the cat sat on the mat", "dogs run very far")
    assert captions.scores(said, told, ("BLEU-4",))["BLEU-4"] == pytest.approx(
        100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25, rel=1e-6
    )
    # no n-gram is in both clips' references, so every idf is log 2 and cancels in the cosine; "the" counts once in the
    # caption and twice in the reference, "a" only in the caption: (min(1, 2) · 2 + 4) / (√6 · √8) of single words
    singles = (1 * 2 + 4) / (math.sqrt(6) * math.sqrt(8))
    want = 10 * np.mean([singles, 3 / 5, 2 / 4, 1 / 3])
    assert captions.cider(said, told).tolist() == pytest.approx([100 * want, 1000.0])


@java
def test_line_ends_and_empty_captions_stay_with_their_clip():
    said = frame("a man\u2028runs\r\nfast", "", "two dogs play")
    told = frame("a man runs fast", "a boat", "two dogs play")
    found = captions.cider(said, told)
    assert found[0] > 500 and found[1] == 0 and found[2] > 500


@java
@pytest.mark.slow
def test_meteor_of_the_same_and_of_other_words():
    told = frame("two dogs play in the snow", "a man cooks rice in a pan")
    assert captions.scores(told, told, ("METEOR",))["METEOR"] == pytest.approx(100)
    other = frame("quantum stocks fell sharply", "")
    assert captions.scores(other, told, ("METEOR",))["METEOR"] < 5


@java
@pytest.mark.slow
def test_meteor_of_one_java_program_is_that_of_one_for_each_set():
    pairs = [captions.tokenized(SAID, TOLD), captions.tokenized(TOLD.drop_duplicates("clip"), TOLD)]
    pairs.append(captions.tokenized(SAID, TOLD[::-1]))  # the first again, with the references in another order
    fresh = [Meteor().compute_score(*pair)[0] for pair in pairs]
    captions._meteor.cache_clear()
    assert [captions.meteor(*pair) for pair in pairs] == fresh
    assert captions._meteor.cache_info().misses == 1
    assert fresh[0] == fresh[2] != fresh[1]


@java
@pytest.mark.slow
def test_meteor_goes_on_after_its_program_was_stopped_or_interrupted(monkeypatch):
    pair = captions.tokenized(SAID, TOLD)
    want = captions.meteor(*pair)
    captions._meteor().meteor_p.kill()
    captions._meteor().meteor_p.wait()
    assert captions.meteor(*pair) == want
    judge, asked = captions._meteor(), []

    def stat(said, told):  # interrupted at the second of three captions, one answer not read
        asked.append(said)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return type(judge)._stat(judge, said, told)

    monkeypatch.setattr(judge, "_stat", stat)
    with pytest.raises(KeyboardInterrupt):
        captions.meteor(*pair)
    assert captions.meteor(*pair) == want


@java
def test_the_tokenizer_says_nothing_on_standard_error(capfd):
    captions.cider(SAID, TOLD)
    assert capfd.readouterr().err == ""
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


@java
def test_examples_are_chosen_by_rule():
    told = frame(*(f"word{i} runs over there now" for i in range(7)))
    said = frame(*(" ".join(t.split()[: 5 - i % 5]) for i, t in enumerate(told["text"])))
    each = captions.cider(said, told).sort_values(ascending=False, kind="stable")
    found = captions.examples(said, told, each=2)
    assert found["kind"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert found["clip"].tolist() == [*each.index[:2], *each.index[2:4], *each.index[-2:]]
    assert found["references"].tolist() == told["text"][found["clip"]].tolist()
    assert len(captions.examples(said[:2], told)) == 0


def test_without_java_cells_stay_blank_and_say_why_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    captions.java_fails.cache_clear()
    try:
        assert all(math.isnan(x) for x in captions.scores(SAID, TOLD).values())
        assert list(captions.scores(SAID, TOLD)) == list(captions.METRICS)
        assert captions.cider(SAID, TOLD).isna().all() and captions.examples(SAID, TOLD).empty
        assert capsys.readouterr().out.count("stay blank: there is no `java`") == 1
    finally:
        captions.java_fails.cache_clear()


def test_captions_that_cannot_be_judged():
    with pytest.raises(ValueError, match="captioned twice"):
        captions.scores(pd.concat([SAID, SAID[:1]]), TOLD)
    with pytest.raises(ValueError, match="no reference for clip '2'"):
        captions.scores(SAID, TOLD[TOLD["clip"] < 2])
    with pytest.raises(ValueError, match="'text'"):
        captions.scores(SAID[["clip"]], TOLD)
    with pytest.raises(ValueError, match="'SPICE'"):
        captions.scores(SAID, TOLD, ("SPICE",))
    with pytest.raises(ValueError, match="no hypotheses"):
        captions.scores(SAID[:0], TOLD)
