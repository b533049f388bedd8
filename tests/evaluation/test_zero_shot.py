"""Zero-shot: the classifier is the mean of unit vectors, and agrees with what was planted."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.evaluation.zero_shot import classifier, predict, scores, sentences

VECTORS = {
    "a cat": [3.0, 0.0, 0.0],
    "a dog": [0.0, 0.5, 0.0],
    "one cat": [0.0, 0.0, 7.0],
    "one dog": [0.0, 2.0, 0.0],
}


def encode(found):
    return torch.tensor([VECTORS[sentence] for sentence in found])


def test_one_template_gives_unit_vectors_of_its_sentences():
    assert_close(classifier(["a {}"], ["cat", "dog"], encode), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))


def test_an_ensemble_is_the_mean_of_directions_not_of_vectors():
    """The long vector of "one cat" has no more weight than the short one of "a cat"."""
    found = classifier(["a {}", "one {}"], ["cat", "dog"], encode)
    assert_close(found, torch.tensor([[0.5**0.5, 0, 0.5**0.5], [0, 1, 0]]))


def test_order_and_repetition_of_templates_do_not_matter():
    expected = classifier(["a {}", "one {}"], ["cat", "dog"], encode)
    assert_close(classifier(["one {}", "a {}"], ["cat", "dog"], encode), expected)
    assert_close(classifier(["one {}", "a {}"] * 3, ["cat", "dog"], encode), expected)
    assert_close(classifier(["one {}", "a {}"], ["dog", "cat"], encode), expected[[1, 0]])


def test_a_template_may_be_a_function():
    def with_article(name):
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"

    assert sentences(with_article, ["ox", "cat"]) == ["an ox", "a cat"]
    assert_close(classifier([with_article], ["cat", "dog"], encode), classifier(["a {}"], ["cat", "dog"], encode))


def test_prediction_is_the_class_of_the_largest_cosine():
    weights = classifier(["a {}"], ["cat", "dog"], encode)
    images = torch.tensor([[9.0, 1.0, 50.0], [0.1, 0.2, 0.0]])
    assert predict(images, weights).tolist() == [0, 1]
    assert_close(scores(images, weights, 10.0)[1], torch.tensor([10 * 0.4472136, 10 * 0.8944272]))


def test_mistakes_are_named():
    for templates, names in (([], ["cat"]), (["a {}"], [])):
        with pytest.raises(ValueError, match="at least one of each"):
            classifier(templates, names, encode)
    with pytest.raises(ValueError, match=r"more than once: \['cat'\]"):
        classifier(["a {}"], ["cat", "cat", "dog"], encode)
    with pytest.raises(ValueError, match="'a photo' has 0 places for a name"):
        classifier(["a photo"], ["cat"], encode)
    with pytest.raises(ValueError, match=r"returned \(2,\) for 2 sentences"):
        classifier(["a {}"], ["cat", "dog"], lambda found: torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(1, 3\) and weights \(2, 4\)"):
        scores(torch.zeros(1, 3), torch.zeros(2, 4))
