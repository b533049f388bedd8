"""VQA-RAD protocols: known counts and ceilings, splits that share nothing, and hooks that really change the picture."""

import numpy as np
import pytest

from vqa_core.data.types import Dataset, Sample
from vqa_core.evaluation import protocols
from vqa_core.evaluation.protocols import (
    Protocol,
    beside,
    split_by_picture,
    with_blank_pictures,
    with_shuffled_pictures,
)
from vqa_core.evaluation.statistics import wilson


def sample(i, picture, answer, kind, question="is it?"):
    return Sample(str(i), picture, question, answer, "PRES", kind, meta={"qid": i})


def picture(picture_id):
    """A picture that tells its number."""
    return np.full((4, 4, 3), int(picture_id[1:]), dtype=np.uint8)


@pytest.fixture
def train():
    answers = [("yes", "closed"), ("no", "closed"), ("left", "open")]
    rows = [sample(i, f"p{i // 3}", *answers[i % 3]) for i in range(60)]
    return Dataset("vqa_rad", "train", rows, picture)


@pytest.fixture
def test_set():
    rows = [
        sample(100, "p1", "yes", "closed"),
        sample(101, "p2", "left", "closed"),  # a choice: closed officially, but not yes/no
        sample(102, "p3", "heart", "open"),  # never in training
        sample(103, "p4", "left", "open"),
    ]
    return Dataset("vqa_rad", "test", rows, picture)


def test_the_default_is_the_clean_protocol_and_says_so():
    p = Protocol()
    assert (p.train, p.test, p.closed, p.vocabulary) == ("1797", "451", "official", "train")
    assert str(p) == p.label == "VQA-RAD 1797 → 451, closed official, train vocabulary"
    assert "(leaky)" in Protocol("3064").label
    assert len({Protocol(a, b, c, v).label for a in protocols.TRAIN for b in protocols.TEST
                for c in protocols.CLOSED_RULES for v in protocols.VOCABULARIES}) == 32  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"train": "3000"}, {"test": "all"}, {"closed": "no"}, {"vocabulary": "test"}, {"validation": 1.0}]
)
def test_unknown_values_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*(allowed are|between 0 and 1)"):
        Protocol(**wrong)


def test_closed_rules_and_vocabularies(train, test_set):
    data = Protocol().apply(train, test_set)
    assert data.closed.tolist() == [True, True, False, False]
    assert data.vocabulary.symbols == ("left", "no", "yes")
    assert Protocol(closed="yes/no").apply(train, test_set).closed.tolist() == [True, False, False, False]
    assert "heart" in Protocol(vocabulary="train+test").apply(train, test_set).vocabulary


def test_score_and_ceiling_are_those_of_the_parts(train, test_set):
    data = Protocol().apply(train, test_set)
    score = data.score(["Yes", "no", "heart", "right"])
    assert (score.all, score.closed, score.open) == (wilson(2, 4), wilson(1, 2), wilson(1, 2))
    assert str(score).startswith(data.protocol.label + ": all 50.0 % [")
    assert "n = 4" in str(score)
    ceiling = data.ceiling()
    assert (ceiling.all, ceiling.closed, ceiling.open) == (wilson(3, 4), wilson(2, 2), wilson(1, 2))
    assert Protocol(vocabulary="train+test").apply(train, test_set).ceiling().all.mean == 1
    closed_only = Protocol().apply(train, test_set.subset([0, 1]))
    assert closed_only.score(["yes", "left"]).open is None
    with pytest.raises(ValueError, match="3 predictions for 4 answers"):
        data.score(["yes"] * 3)


def test_validation_is_a_part_of_training_that_shares_no_picture(train, test_set):
    data = Protocol(validation=0.25).apply(train, test_set)
    assert len(data.validation.picture_ids) == 5
    assert not set(data.train.picture_ids) & set(data.validation.picture_ids)
    ids = [s.question_id for part in (data.train, data.validation) for s in part]
    assert sorted(ids) == sorted(s.question_id for s in data.known)
    assert not set(ids) & {s.question_id for s in data.test}


def test_the_split_by_picture_is_always_the_same(train):
    chosen = set(split_by_picture(train, 0.2)[1].picture_ids)
    backwards = train.subset(range(len(train) - 1, -1, -1))
    assert set(split_by_picture(backwards, 0.2)[1].picture_ids) == chosen
    assert chosen <= set(split_by_picture(train, 0.4)[1].picture_ids)
    with pytest.raises(ValueError, match="leaves one part of the split empty"):
        split_by_picture(train, 0.01)


def reader(dataset):
    """A model that looks: it answers the number on the picture."""
    return [str(dataset.picture(s.picture_id)[0, 0, 0]) for s in dataset]


def test_blank_and_shuffled_pictures_take_the_picture_away(train):
    rows = [sample(200 + i, f"p{i % 10}", str(i % 10), "open") for i in range(30)]
    data = Protocol().apply(train, Dataset("vqa_rad", "test", rows, picture))
    scores = beside(data, reader)
    assert list(scores) == ["ceiling", "majority", "question_only", "lookup", "model", "blank", "shuffled"]
    assert scores["model"].all.mean == 1
    assert scores["blank"].all.mean == 0
    assert scores["shuffled"].all.mean == 0  # no question keeps its picture
    assert {s.label for s in scores.values()} == {data.protocol.label}
    blank, shuffled = with_blank_pictures(data.test), with_shuffled_pictures(data.test, seed=1)
    assert len({blank.picture(i).tobytes() for i in blank.picture_ids}) == 1
    assert sorted(s.picture_id for s in shuffled) == sorted(s.picture_id for s in data.test)
    assert [(s.question, s.answer) for s in shuffled] == [(s.question, s.answer) for s in data.test]
    assert list(beside(data)) == ["ceiling", "majority", "question_only", "lookup"]


def test_a_blind_model_scores_the_same_without_pictures(train, test_set):
    scores = beside(Protocol().apply(train, test_set), lambda d: [s.question[:0] + "left" for s in d])
    assert scores["model"] == scores["blank"] == scores["shuffled"]


def test_the_parquet_form_has_no_official_kinds(train, test_set):
    bare = [Sample(s.question_id, s.picture_id, s.question, s.answer, "unlabelled", s.kind) for s in test_set]
    bare = Dataset("vqa_rad", "test", bare, picture)
    with pytest.raises(ValueError, match=r"no official closed questions; use closed='yes/no'.*--source json"):
        Protocol().apply(train, bare)
    assert Protocol(closed="yes/no").apply(train, bare).closed.sum() == 1


# --- VQA-RAD: known values ------------------------------------------------------------------------------------------


@pytest.mark.realdata("vqa_rad")
def test_known_ceilings_and_counts(data_root):
    per_cent = lambda score: [round(100 * i.mean, 1) for i in (score.all, score.closed, score.open)]  # noqa: E731
    leaky = Protocol("3064").load(data_root)
    assert (len(leaky.known), len(leaky.test), len(leaky.vocabulary), leaky.closed.sum()) == (3064, 451, 458, 272)
    assert per_cent(leaky.ceiling()) == [90.5, 97.8, 79.3]
    assert per_cent(Protocol("3064", "308").load(data_root).ceiling()) == [87.7, 97.3, 73.2]
    clean = Protocol(closed="yes/no").load(data_root)
    assert (len(clean.known), len(clean.vocabulary), clean.closed.sum(), (~clean.closed).sum()) == (1797, 415, 251, 200)
    assert clean.ceiling().all.mean == 340 / 451
    assert Protocol(vocabulary="train+test").load(data_root).ceiling().all.mean == 1


@pytest.mark.realdata("vqa_rad")
def test_no_test_picture_is_in_the_disjoint_training_set(data_root):
    data = Protocol("disjoint").load(data_root)
    assert not set(data.known.picture_ids) & set(data.test.picture_ids)
    assert len(data.known) == 734
    parts = [set(d.picture_ids) for d in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))


@pytest.mark.realdata("vqa_rad")
@pytest.mark.parametrize(("train", "known"), [("3064", 62.7), ("2780", 22.8), ("1797", 23.5)])
def test_lookup_is_printed_beside(data_root, monkeypatch, train, known):
    monkeypatch.setattr(protocols.leakage, "PRIOR_ANSWERS", 3)  # the classifier's own number is not the question here
    assert round(100 * beside(Protocol(train).load(data_root))["lookup"].all.mean, 1) == known
