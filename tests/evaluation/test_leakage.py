"""The audit, in both directions: a planted leak is found, and where there is none, none is."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.__main__ import main
from vqa_core.data import vqa_rad
from vqa_core.data.types import Dataset, Sample
from vqa_core.evaluation import leakage
from vqa_core.evaluation.leakage import Share
from vqa_core.evaluation.statistics import wilson


def sample(number, picture, question, answer, **meta):
    return Sample(str(number), picture, question, answer, "f", "open", meta=meta)


def dataset(split, samples, pictures=None):
    return Dataset("toy", split, samples, lambda i: pictures[i])


def noise(seed, size=(48, 64)):
    """A picture like no other: coarse coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(size[::-1], Image.Resampling.BICUBIC))


def test_a_share_has_its_n_and_wilson_interval():
    share = Share(284, 451)
    assert share.interval == wilson(284, 451)
    assert str(share) == "284 of 451, 63.0 % [58.4, 67.3]"
    for count, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            Share(count, n)


# --- questions ------------------------------------------------------------------------------------------------------


def release(seed=0, pictures=40, leak=True):
    """A release numbered through: original (4k + 1, test), re-wording without a common word (4k + 2), unrelated rows.

    Without the leak the re-wordings answer at random, as any other question about the picture does.
    """
    rng = np.random.default_rng(seed)
    train, test = [], []
    for k in range(pictures):
        answers = rng.choice(["yes", "no", "left", "right"], 4)
        test.append(sample(4 * k + 1, f"p{k}", f"original{k} one", answers[0], phrase="free"))
        twin = answers[0] if leak else answers[1]
        train.append(sample(4 * k + 2, f"p{k}", f"template{k} two", twin, phrase="frame"))
        train += [sample(4 * k + j, f"p{k}", f"other{k} {j}", answers[j - 1], phrase="free") for j in (3, 4)]
    return train, test


def test_rewordings_without_a_common_word_are_found_by_their_numbers():
    train, test = release()
    found = leakage.rewordings_by_numbering(train, test)
    assert found.pairs == tuple((s.question_id, str(int(s.question_id) + 1)) for s in test)
    assert found.rule.startswith("numbered +1")
    assert leakage.rewordings_by_wording(train, test).pairs == ()  # nothing in the words gives them away


def test_a_chance_neighbour_is_not_taken_for_a_rewording():
    """A field of meta tells re-wordings from rows that stand at the same place and agree now and then."""
    train, test = release()
    extra = [sample(10_001 + 4 * k, "q", f"question{k}", "yes", phrase="free") for k in range(12)]
    chance = [
        sample(10_002 + 4 * k, "q", f"neighbour{k}", "yes" if k < 3 else "no", phrase="free") for k in range(12)
    ]  # fmt: skip
    found = leakage.rewordings_by_numbering(train + chance, test + extra)
    assert {a for a, _ in found.pairs} == {s.question_id for s in test}
    assert found.rule == "numbered +1, phrase = frame"


@pytest.mark.parametrize("seed", range(5))
def test_no_rewording_is_invented_by_numbering(seed):
    assert leakage.rewordings_by_numbering(*release(seed, leak=False)).pairs == ()
    train, test = release(seed)
    elsewhere = [sample(s.question_id, f"new {s.picture_id}", s.question, s.answer) for s in test]
    assert leakage.rewordings_by_numbering(train, elsewhere).pairs == ()  # no picture is shared
    assert leakage.rewordings_by_numbering(train, test[:5]).pairs == ()  # five neighbours prove nothing


def test_a_neighbour_about_another_picture_is_no_rewording():
    """Answers agree all the way; the numbers follow each other; but the pictures differ."""
    train, test = release()
    frames = {s.picture_id: f"new {s.picture_id}" for s in train if s.meta["phrase"] == "frame"}
    moved = [
        sample(s.question_id, frames[s.picture_id], s.question, s.answer) if s.meta["phrase"] == "frame" else s
        for s in train
    ]
    assert leakage.rewordings_by_numbering(moved, test).pairs == ()


def test_numbering_needs_whole_numbers_of_one_numbering():
    train, test = release()
    named = [sample(f"test-{s.question_id}", s.picture_id, s.question, s.answer) for s in test]
    assert leakage.rewordings_by_numbering(train, named) is None
    own = [sample(i, s.picture_id, s.question, s.answer) for i, s in enumerate(test)]
    assert leakage.rewordings_by_numbering(train, own) is None  # both begin at the same numbers


def test_rewordings_by_wording():
    train = [
        sample("a", "p", "is/are there a rib fracture on the left side", "no"),
        sample("b", "p", "what organ is shown in this picture", "lung"),
        sample("c", "q", "which modality was used here", "ct"),
    ]

    def found(question, answer, picture="p"):
        return leakage.rewordings_by_wording(train, [sample("t", picture, question, answer)]).pairs

    assert found("is there a rib fracture on the left side?", "No") == (("t", "a"),)
    assert found("is there a rib fracture on the left side?", "yes") == ()  # another answer
    assert found("is there a rib fracture on the left side?", "no", "q") == ()  # another picture
    assert found("is there a mass on the right?", "no") == ()  # some words in common
    assert found("how was it made", "no") == ()  # none


def test_repeated_rows_and_sentences():
    train = [sample(1, "p", "Is it so?", "yes"), sample(2, "p", "How many?", "2")]
    test = [sample(3, "p", "is it so?", "Yes"), sample(4, "q", "IS IT SO?", "yes"), sample(5, "p", "Where?", "2")]
    assert leakage.repeated_rows(train, test) == Share(1, 3)
    assert leakage.repeated_sentences(train, test) == Share(1, 2)
    assert leakage.repeated_rows(train, test[1:]) == Share(0, 2)
    assert leakage.repeated_sentences(train, test[2:]) == Share(0, 1)


# --- pictures -------------------------------------------------------------------------------------------------------


def compressed(picture, quality=80):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def scaled(picture, factor):
    size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size))


def drawing(colour, left, top, size=20):
    picture = np.full((64, 64, 3), 240, dtype=np.uint8)
    picture[top : top + size, left : left + size] = colour
    return picture


def compare(train, test):
    ids = [f"train{i}" for i in range(len(train))], [f"test{i}" for i in range(len(test))]
    found = leakage.shared_pictures(*ids, leakage.fingerprints(train), leakage.fingerprints(test))
    return found["exact"].count, found["near"].count


def test_the_same_picture_under_another_name_is_found():
    assert compare([noise(i) for i in range(5)], [noise(9), noise(3)]) == (1, 1)


@pytest.mark.parametrize(
    "change", [compressed, lambda p: scaled(p, 0.7), lambda p: scaled(p, 2), lambda p: (p * 0.8).astype(np.uint8)]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_changed_copy_is_a_near_duplicate_only(change, seed):
    assert compare([noise(i) for i in range(20)], [change(noise(seed))]) == (0, 1)


def test_no_shared_picture_is_invented():
    assert compare([noise(i) for i in range(200)], [noise(1000 + i) for i in range(200)]) == (0, 0)
    red, blue = (200, 0, 0), (0, 0, 200)
    assert compare([drawing(red, 10, 10)], [drawing(blue, 10, 10), drawing(red, 24, 10), drawing(red, 10, 10, 12)]) == (
        0,
        0,
    )
    flat = [np.full((8, 8, 3), v, dtype=np.uint8) for v in (0, 100)]
    assert compare(flat[:1], flat[1:]) == (0, 0)
    assert compare(flat, flat[1:]) == (1, 1)


def test_the_perceptual_hash_depends_on_the_picture_only():
    a, b = leakage.perceptual_hash(noise(0)), leakage.perceptual_hash(noise(1))
    assert leakage.perceptual_hash(noise(0)) == a
    assert (a ^ b).bit_count() > leakage.NEAR_BITS
    assert (a ^ leakage.perceptual_hash(scaled(noise(0), 3))).bit_count() <= 4
    assert 0 <= a < 2**64


def test_without_fingerprints_pictures_are_compared_by_id():
    assert leakage.shared_pictures(["a", "b"], ["b", "c", "d"]) == {"same_id": Share(1, 3), "exact": None, "near": None}


# --- answers and language -------------------------------------------------------------------------------------------


def test_unreachable_answers():
    train = [sample(1, "p", "what?", "Left lung")]
    assert leakage.unreachable_answers(
        train, [sample(2, "p", "what?", "left  lung"), sample(3, "p", "what?", "x")]
    ) == (Share(1, 2))


def test_the_language_prior_is_found_and_not_invented(monkeypatch):
    told = [sample(i, f"p{i}", f"is it word{i % 2}", ("yes", "no")[i % 2]) for i in range(40)]
    assert leakage.language_prior(told, told).correct.all()
    balanced = [sample(i, f"p{i}", f"is it word{i // 2}", ("yes", "no")[i % 2]) for i in range(40)]
    assert leakage.language_prior(balanced, balanced).correct.mean() == 0.5
    monkeypatch.setattr(leakage, "PRIOR_ANSWERS", 1)
    assert set(leakage.language_prior([*told, *told[:1]], told).predictions) == {"yes"}


# --- the whole audit ------------------------------------------------------------------------------------------------


def test_split_pairs():
    assert leakage.split_pairs(["tiny", "val", "test"]) == [("tiny", "val"), ("tiny", "test")]
    assert leakage.split_pairs(["train", "train_b", "dev"]) == [("train", "dev"), ("train_b", "dev")]
    assert leakage.split_pairs(["train"]) == []


def toy_splits():
    """``train_leaky`` has the test's re-wordings and pictures; ``train`` has neither."""
    leaky, test = release()
    clean = [sample(5000 + i, f"c{i}", s.question, s.answer, **s.meta) for i, s in enumerate(release(1)[0])]
    pictures = {f"p{k}": noise(k, (12, 16)) for k in range(40)} | {
        f"c{k}": noise(100 + k, (12, 16)) for k in range(120)
    }
    return [dataset(n, s, pictures) for n, s in (("train", clean), ("train_leaky", leaky), ("test", test))]


def test_audit_tells_the_leaky_split_from_the_clean_one(capsys):
    found = leakage.audit_splits("toy", toy_splits())
    clean, leaky = ("train", "test"), ("train_leaky", "test")
    assert found["pairs"] == [clean, leaky]
    assert found["reworded_across_splits"][leaky]["numbering"] == Share(40, 40)
    assert found["reworded_across_splits"][clean]["numbering"] == Share(0, 40)
    assert found["shared_pictures"][leaky] == dict.fromkeys(("same_id", "exact", "near"), Share(40, 40))
    assert found["shared_pictures"][clean] == dict.fromkeys(("same_id", "exact", "near"), Share(0, 40))
    assert found["unreachable_answers"][clean] == Share(0, 40)
    train, test = toy_splits()[1:]
    prior = leakage.language_prior(train.samples, test.samples).correct
    assert found["question_only_accuracy"][leaky] == Share(prior.sum(), 40)
    accuracies = ("lookup_accuracy", "question_only_accuracy", "majority_accuracy")
    assert all(found[a][pair].n == 40 for a in accuracies for pair in (clean, leaky))

    told = json.loads(json.dumps(leakage.as_json(found)))
    share = told["reworded_across_splits"]["train_leaky -> test"]["numbering"]
    assert (share["count"], share["n"], share["share"]) == (40, 40, 1.0)
    assert 0.9 < share["low"] < 1
    assert told["rewordings"]["train_leaky -> test"]["numbering"]["pairs"][0] == ["1", "2"]

    leakage.show(found)
    out = capsys.readouterr().out
    assert "toy: train_leaky → test" in out
    assert "numbered +1" in out


def test_pictures_are_left_closed_when_asked():
    def never(_):
        raise AssertionError("a picture was opened")

    splits = [Dataset("toy", d.split, d.samples, never) for d in toy_splits()]
    found = leakage.audit_splits("toy", splits, pictures=False)
    assert found["shared_pictures"]["train_leaky", "test"] == {"same_id": Share(40, 40), "exact": None, "near": None}
    with pytest.raises(AssertionError, match="was opened"):
        leakage.audit_splits("toy", splits)


def test_audits_that_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="no data set 'imagenet'; allowed are scenes"):
        leakage.audit("imagenet")
    with pytest.raises(ValueError, match="flickr8k holds captions"):
        leakage.audit("flickr8k")
    assert main(["audit", "nlvr", "--root", str(tmp_path)]) == 2
    assert "data fetch nlvr" in capsys.readouterr().err


# --- real data: the known leaks -------------------------------------------------------------------------------------


@pytest.mark.realdata("vqa_rad")
def test_the_vqa_rad_leak_is_found_without_knowing_of_it(data_root, monkeypatch):
    monkeypatch.setattr(leakage, "PRIOR_ANSWERS", 3)  # the classifier's own number is not the question here
    found = leakage.audit("vqa_rad", data_root, pictures=False, progress=False)
    released, para, clean, disjoint = ((s, "test") for s in ("train_3064", "train_2780", "train", "train_disjoint"))
    reworded = {pair: found["reworded_across_splits"][pair]["numbering"].count for pair in found["pairs"]}
    assert reworded[released] == 284
    assert reworded[para] == reworded[clean] == reworded[disjoint] == 0
    train, test = (data.load("vqa_rad", s, data_root).samples for s in released)
    links = found["rewordings"][released]["numbering"]
    assert {b for _, b in links.pairs} == vqa_rad.rewordings_of(train, test)
    assert links.rule == "numbered +1, phrase_type = frame"

    same_id = {pair: found["shared_pictures"][pair]["same_id"] for pair in found["pairs"]}
    assert [same_id[pair] for pair in (released, clean, disjoint)] == [Share(203, 203), Share(202, 203), Share(0, 203)]
    assert found["unreachable_answers"][released] == Share(43, 451)
    lookup = {pair: round(100 * found["lookup_accuracy"][pair].interval.mean, 1) for pair in found["pairs"]}
    assert [lookup[pair] for pair in (released, para, clean)] == [62.7, 22.8, 23.5]
    assert found["repeated_rows"][released] == Share(14, 451)


@pytest.mark.realdata("vqa_rad")
def test_different_radiographs_are_not_taken_for_one(data_root):
    dataset = data.load("vqa_rad", "train_disjoint", data_root)
    prints = leakage.fingerprints(dataset.picture(i) for i in dataset.picture_ids[:12])
    assert len(set(prints.digests)) == 12
    halves = prints.take(range(6)), prints.take(range(6, 12))
    assert not leakage.near_duplicates(*halves).any()
    assert leakage.near_duplicates(prints, halves[1]).all()


@pytest.mark.realdata("nlvr")
def test_the_sentences_that_nlvr_repeats(data_root):
    splits = {s: data.load("nlvr", s, data_root).samples for s in ("train", "dev", "test", "hidden")}
    count = lambda a, b: leakage.repeated_sentences(splits[a], splits[b]).count  # noqa: E731
    assert [count("train", s) for s in ("dev", "test", "hidden")] == [64, 59, 57]
    assert [count("dev", "test"), count("dev", "hidden"), count("test", "hidden")] == [24, 33, 27]


@pytest.mark.realdata("shapes")
def test_pictures_that_shapes_repeats_under_other_names(data_root, capsys):
    """The tiny split is a part of the small one."""
    assert main(["audit", "shapes", "--root", str(data_root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["shared_pictures"]
    assert {pair: found[pair]["exact"]["count"] for pair in found} == {
        "tiny -> small": 64,
        "tiny -> val": 0,
        "tiny -> test": 0,
    }
    assert found["tiny -> small"]["same_id"]["count"] == 0
