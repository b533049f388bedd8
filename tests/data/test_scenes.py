"""Scenes: balance, truth, regions, captions, splits."""

import json
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from vqa_core.data import scenes
from vqa_core.data.scenes import (
    ATTRIBUTES,
    COLOURS,
    FAMILIES,
    OPEN_FAMILIES,
    SHAPES,
    UNSEEN,
    Scene,
    SceneObject,
    depends_on,
    execute,
    generate,
)
from vqa_core.data.scenes.render import draw, visible
from vqa_core.data.text import tokenize

CLOSED_FAMILIES = [f for f in FAMILIES if f not in OPEN_FAMILIES]


@pytest.fixture(scope="module")
def pool():
    return generate(400, seed=3)


@pytest.fixture(scope="module")
def train():
    return scenes.load("train", n=2400, size=32)


@pytest.fixture(scope="module")
def test():
    return scenes.load("test", n=1600, size=32)


@pytest.fixture(scope="module")
def composition():
    return scenes.load("test_composition", n=640, size=32)


def scene_of(data, sample):
    return data.scenes[data.picture_index(sample.picture_id)]


def of_family(data, family):
    return [s for s in data if s.family == family]


# ------------------------------------------------------------------------------------------------- reproducible


def test_same_seed_same_set_and_another_seed_another():
    one, two, other = generate(8, seed=5), generate(8, seed=5), generate(8, seed=6)
    assert one.content_hash() == two.content_hash() != other.content_hash()
    assert one.samples == two.samples
    assert not set(one.picture_ids) & set(other.picture_ids)


def test_first_pictures_do_not_depend_on_how_many_follow():
    few, many = generate(10, seed=5), generate(70, seed=5)
    np.testing.assert_array_equal(few.images, many.images[:10])
    assert few.samples == many.samples[: len(few)]


def test_hash_covers_pixels():
    data = generate(2)
    before = data.content_hash()
    data.images[1, 3, 4, 0] ^= 1
    assert data.content_hash() != before


@pytest.mark.parametrize("knob", [{"noise": 0.1}, {"clutter": 1.0}])
def test_noise_and_clutter_change_pixels_only(knob):
    plain, changed = generate(8), generate(8, **knob)
    assert plain.samples == changed.samples
    assert plain.scenes == changed.scenes
    assert (plain.images != changed.images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("size", [32, 128, 256])
def test_any_size_shows_the_same_scenes(size):
    data = generate(4, size=size)
    assert data.images.shape == (4, size, size, 3)
    assert data.images.dtype == np.uint8
    assert data.scenes == generate(4).scenes
    assert data.picture(data.picture_ids[2]).shape == data.region_mask(0).shape + (3,)
    mask = next(data.region_mask(i) for i, s in enumerate(data) if s.meta["objects"])
    reference = next(generate(4).region_mask(i) for i, s in enumerate(data) if s.meta["objects"])
    assert mask.mean() == pytest.approx(reference.mean(), rel=0.35)  # the same share of the picture, up to rounding


# -------------------------------------------------------------------------------------------------------- balance


def test_every_question_has_a_partner_with_another_answer(pool):
    by_id = {s.question_id: s for s in pool}
    for s in pool:
        partner = by_id[s.meta["partner"]]
        assert partner.meta["partner"] == s.question_id
        assert partner.question == s.question
        assert partner.family == s.family
        assert partner.meta["program"] == s.meta["program"]
        assert partner.picture_id != s.picture_id
        assert partner.answer != s.answer


def test_closed_questions_are_exactly_half_yes_for_every_wording(pool):
    answers = defaultdict(Counter)
    for s in pool:
        if s.kind == "closed":
            answers[s.question][s.answer] += 1
    assert {s.family for s in pool if s.kind == "closed"} == set(CLOSED_FAMILIES)
    for counts in answers.values():
        assert set(counts) == {"yes", "no"}
        assert counts["yes"] == counts["no"]


def test_counts_are_uniform_whatever_is_counted(train):
    table = defaultdict(Counter)
    for s in of_family(train, "counting"):
        named = [next(k for k in ATTRIBUTES if v in ATTRIBUTES[k]) for v in s.meta["program"][1][1:]]
        table["+".join(named)][s.answer] += 1
    numbers = "01234"
    assert len(table) == 10  # four attributes, six pairs of them
    assert set(sum(table.values(), Counter())) == set(numbers)
    rows = np.array([[row[a] for a in numbers] for row in table.values()])
    assert chisquare(rows.sum(0)).pvalue > 0.01
    assert chi2_contingency(rows).pvalue > 0.01


def lookup_accuracy(train, test):
    """Accuracy of the most frequent training answer of the same wording, where the wording occurred."""
    table = defaultdict(Counter)
    for s in train:
        table[s.question][s.answer] += 1
    known = [s for s in test if s.question in table]
    return np.mean([table[s.question].most_common(1)[0][0] == s.answer for s in known]), len(known)


def words_accuracy(train, test):
    """Accuracy of logistic regression on TF-IDF of words and word pairs."""
    words = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=200).fit(
        words.fit_transform([s.question for s in train]), [s.answer for s in train]
    )
    return model.score(words.transform([s.question for s in test]), [s.answer for s in test])


@pytest.mark.parametrize("family", FAMILIES)
def test_question_alone_is_at_chance(train, test, composition, family):
    known = of_family(train, family)
    for data in (test, composition):
        asked = of_family(data, family)
        chance = data.chance(family)
        assert words_accuracy(known, asked) == pytest.approx(chance, abs=0.03)
        accuracy, n = lookup_accuracy(known, asked)
        assert accuracy == pytest.approx(chance, abs=max(0.03, 2.5 * (chance * (1 - chance) / max(n, 1)) ** 0.5))


def test_the_question_only_check_finds_a_planted_prior(train, test):
    def plant(data):
        return [s for s in of_family(data, "existence") if not ("large" in s.question and s.answer == "no")]

    assert words_accuracy(plant(train), plant(test)) > 0.53
    assert lookup_accuracy(plant(train), plant(test))[0] > 0.53


def test_picture_alone_is_near_chance_on_closed_families(train, test):
    def features(data, family):
        rows = []
        for s in of_family(data, family):
            things = scene_of(data, s).objects
            counts = Counter(v for o in things for v in o[:4])
            rows.append([len(things)] + [counts[v] for values in ATTRIBUTES.values() for v in values])
        return rows, [s.answer for s in of_family(data, family)]

    for family in CLOSED_FAMILIES:
        model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(*features(train, family))
        assert model.score(*features(test, family)) == pytest.approx(0.5, abs=0.04), family


def test_neither_attribute_alone_tells_an_exclusive_or(train):
    alone = Counter()
    for s in of_family(train, "exclusive_or"):
        _, first, second = s.meta["program"]
        for part in (first, second):
            alone[execute(part, scene_of(train, s)), s.answer] += 1
    for value in ("yes", "no"):
        assert alone[value, "yes"] / (alone[value, "yes"] + alone[value, "no"]) == pytest.approx(0.5, abs=0.03)


def test_chance_is_computed_from_the_admissible_answers(pool, train):
    assert pool.chance("logic") == 0.5
    assert pool.chance("counting") == pytest.approx(0.2)
    assert generate(2, objects=(1, 3)).chance("counting") == pytest.approx(1 / 3)
    by_options = defaultdict(set)
    for s in of_family(train, "attribute_query"):
        by_options[s.meta["program"][1], s.meta["options"]].add(s.answer)
    assert set(by_options) == {("size", 2), ("texture", 2), ("colour", 6), ("colour", 8), ("shape", 3), ("shape", 4)}
    with pytest.raises(ValueError, match="no question of family 'weather'"):
        pool.chance("weather")


# ---------------------------------------------------------------------------------------------------------- truth


@pytest.fixture
def still_life():
    return Scene(
        (
            SceneObject("small", "solid", "red", "circle", 0.2, 0.2, 0.085),
            SceneObject("large", "striped", "red", "square", 0.8, 0.3, 0.135),
            SceneObject("large", "solid", "blue", "circle", 0.5, 0.8, 0.135),
        )
    )


SMALL, STRIPED, BLUE = (["unique", ["filter", v]] for v in ("small", "striped", "blue"))
RED, GREEN, CIRCLE, SQUARE = (["filter", v] for v in ("red", "green", "circle", "square"))


@pytest.mark.parametrize(
    ("program", "answer", "objects"),
    [
        (["exist", ["filter", "red", "circle"]], "yes", (0,)),
        (["exist", ["filter", "blue", "square"]], "no", ()),
        (["count", RED], "2", (0, 1)),
        (["count", ["filter", "green"]], "0", ()),
        (["query", "shape", STRIPED], "square", (1,)),
        (["query", "size", BLUE], "large", (2,)),
        (["same", "shape", SMALL, BLUE], "yes", (0, 2)),
        (["same", "texture", STRIPED, BLUE], "no", (1, 2)),
        (["in", SMALL, ["left of", BLUE]], "yes", (0, 2)),
        (["in", SMALL, ["right of", BLUE]], "no", (0, 2)),
        (["in", BLUE, ["above", SMALL]], "no", (0, 2)),
        (["exist", ["filter", "red", ["above", BLUE]]], "yes", (0, 1, 2)),
        (["exist", ["filter", "large", ["below", BLUE]]], "no", (1, 2)),
        (["and", ["exist", RED], ["exist", GREEN]], "no", (0, 1)),
        (["or", ["exist", RED], ["exist", GREEN]], "yes", (0, 1)),
        (["and", ["exist", RED], ["not", ["exist", GREEN]]], "yes", (0, 1)),
        (["xor", ["has", "red", SMALL], ["has", "circle", SMALL]], "no", (0,)),
        (["xor", ["has", "red", STRIPED], ["has", "circle", STRIPED]], "yes", (1,)),
        (["xor", ["has", "green", STRIPED], ["has", "circle", STRIPED]], "no", (1,)),
        (["more", RED, SQUARE], "yes", (0, 1)),
        (["fewer", RED, SQUARE], "no", (0, 1)),
        (["as many", RED, CIRCLE], "yes", (0, 1, 2)),
    ],
)
def test_programs_mean_what_they_say(still_life, program, answer, objects):
    assert execute(program, still_life) == answer
    assert depends_on(program, still_life) == objects


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (["query", "colour", ["unique", CIRCLE]], "2 objects"),
        (["query", "colour", ["unique", GREEN]], "0 objects"),
        (["paint", RED], "is not a program"),
        (["count", ["filter", "pink"]], "no object can be 'pink'"),
    ],
)
def test_programs_without_meaning_are_refused(still_life, program, message):
    with pytest.raises(ValueError, match=message):
        execute(program, still_life)


def test_answers_are_the_programs_executed_after_a_journey_through_json(pool):
    for s in pool:
        meta = json.loads(json.dumps(s.meta))
        assert execute(meta["program"], scene_of(pool, s)) == s.answer
        assert tuple(meta["objects"]) == depends_on(meta["program"], scene_of(pool, s))
        assert meta["unseen"] == any(scene_of(pool, s).objects[i][2:4] in UNSEEN for i in meta["objects"])


def named(phrase, scene):
    """Objects that a noun phrase fits, found without the package."""
    words = [re.sub(r"^(circle|square|triangle|thing|object)s$|^(cross)es$", r"\1\2", w) for w in phrase.split()]
    words = [w for w in words if w not in ("a", "an", "the", "thing", "object")]
    assert all(any(w in values for values in ATTRIBUTES.values()) for w in words), phrase
    return [o for o in scene.objects if set(words) <= set(o[:4])]


SIDES = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}
SIDES |= {f"to the {side}": SIDES[side] for side in ("left of", "right of")}
SIDES |= {"higher than": SIDES["above"], "lower than": SIDES["below"]}


def read(question, scene):
    """Answer a question from its words alone, as an English reader would."""
    q = question.removesuffix("?")
    side = "|".join(sorted(SIDES, key=len, reverse=True))

    def is_(phrase):
        return bool(named(phrase, scene))

    def holds(phrase, thing):
        return thing in named(phrase, scene)

    def the(phrase):
        (only,) = named(phrase, scene)
        return only

    if m := re.fullmatch(r"How many (.+) (?:are there|do you see|does the picture show)", q):
        return str(len(named(m[1], scene)))
    if m := re.fullmatch(r"What (?:is the )?(\w+) (?:is|of|does) (the .+?)(?: have)?", q):
        return getattr(the(m[2]), m[1])
    if m := re.fullmatch(r"Do (the .+) and (the .+) have the same (\w+)", q):
        return getattr(the(m[1]), m[3]) == getattr(the(m[2]), m[3])
    if m := re.fullmatch(r"Does (the .+) have the same (\w+) as (the .+)", q):
        return getattr(the(m[1]), m[2]) == getattr(the(m[3]), m[2])
    if m := re.fullmatch(r"Are (the .+) and (the .+) of the same (\w+)", q):
        return getattr(the(m[1]), m[3]) == getattr(the(m[2]), m[3])
    if m := re.fullmatch(rf"Is (the .+?) ({side}) (the .+)", q):
        return SIDES[m[2]](the(m[1]), the(m[3]))
    if m := re.fullmatch(rf"Is there (.+?) ({side}) (the .+)", q):
        return any(SIDES[m[2]](o, the(m[3])) for o in named(m[1], scene))
    value = r"(an? \w+|\w+)"
    if m := re.fullmatch(rf"Is (the .+?) (?:either )?{value} or {value}, but not both", q):
        return holds(m[2], the(m[1])) != holds(m[3], the(m[1]))
    if m := re.fullmatch(rf"Is (the .+) just one of {value} and {value}", q):
        return holds(m[2], the(m[1])) != holds(m[3], the(m[1]))
    if m := re.fullmatch(r"(?:Are there|Do you see) (more|fewer|as many) (.+) (?:than|as) (.+)", q):
        a, b = len(named(m[2], scene)), len(named(m[3], scene))
        return {"more": a > b, "fewer": a < b, "as many": a == b}[m[1]]
    m = re.fullmatch(r"(?:Is there|Do you see|Does the picture show) (.+)", q)
    if n := re.fullmatch(r"neither (.+) nor (.+)", m[1]):
        return not is_(n[1]) and not is_(n[2])
    if n := re.fullmatch(r"(.+) but no (.+)", m[1]):
        return is_(n[1]) and not is_(n[2])
    if n := re.fullmatch(r"(.+) and (.+)", m[1]):
        return is_(n[1]) and is_(n[2])
    if n := re.fullmatch(r"(.+) or (.+)", m[1]):
        return is_(n[1]) or is_(n[2])
    return is_(m[1])


def test_the_words_of_every_question_mean_its_program(pool):
    for s in pool:
        answer = read(s.question, scene_of(pool, s))
        assert ({True: "yes", False: "no"}[answer] if isinstance(answer, bool) else answer) == s.answer, s.question


def test_directions_are_never_close_calls(pool):
    for s in of_family(pool, "spatial_relation"):
        things = scene_of(pool, s).objects
        program = s.meta["program"]
        relation, reference = program[2] if program[0] == "in" else program[1][-1]
        axis = "x" if relation in ("left of", "right of") else "y"
        (one,) = depends_on(reference, scene_of(pool, s))
        others = [things[i] for i in s.meta["objects"] if i != one]
        assert all(abs(getattr(o, axis) - getattr(things[one], axis)) >= 0.1 for o in others)


# ------------------------------------------------------------------------------------------------------- pictures


def test_regions_are_the_pixels_that_change_when_the_objects_go():
    data = generate(32, seed=9, noise=0.0, occlusion=0.4)
    for i, s in enumerate(data):
        mask, scene = data.region_mask(i), scene_of(data, s)
        assert mask.any() == bool(s.meta["objects"])
        rest = Scene(tuple(o for k, o in enumerate(scene.objects) if k not in s.meta["objects"]))
        full, without = (draw(x, 64, 0.0, 0.0, np.random.default_rng(0)).astype(int) for x in (scene, rest))
        changed = np.abs(full - without).max(-1) > 0
        assert not (mask & ~changed).any()
        assert mask.sum() >= 0.6 * changed.sum()  # beyond the mask only edges that cover less than half a pixel


def test_an_object_covered_in_part_has_only_its_visible_pixels():
    behind = SceneObject("large", "solid", "red", "square", 0.5, 0.5, 0.135)
    before = SceneObject("small", "solid", "blue", "circle", 0.55, 0.5, 0.085)
    shown = visible(Scene((behind, before)), 64)
    pixels = draw(Scene((behind, before)), 64, 0.0, 0.0, np.random.default_rng(0))
    assert shown[32, 35] == 1
    assert shown[32, 27] == 0
    assert shown[2, 2] == -1
    np.testing.assert_array_equal(pixels[32, 35], scenes.PALETTE["blue"])
    np.testing.assert_array_equal(pixels[32, 27], scenes.PALETTE["red"])


@pytest.mark.parametrize("occlusion", [0.0, 0.5])
def test_objects_stay_inside_and_apart(occlusion):
    data = generate(64, objects=(1, 8), occlusion=occlusion)
    distances = []
    for scene in data.scenes:
        for i, a in enumerate(scene.objects):
            assert a.radius <= min(a.x, a.y)
            assert max(a.x, a.y) <= 1 - a.radius
            for b in scene.objects[:i]:
                distances.append(np.hypot(a.x - b.x, a.y - b.y) / (a.radius + b.radius))
    assert min(distances) > 1 - occlusion
    assert (min(distances) < 1) == (occlusion > 0)


def test_all_values_look_different():
    def look(*values):
        thing = SceneObject(*values, 0.5, 0.5, scenes.RADIUS[values[0]])
        return draw(Scene((thing,)), 64, 0.0, 0.0, np.random.default_rng(0)).astype(int)

    plain = ("small", "solid", "red", "circle")
    for k, values in enumerate(ATTRIBUTES.values()):
        looks = [look(*plain[:k], v, *plain[k + 1 :]) for v in values]
        for i, a in enumerate(looks):
            for b in looks[:i]:
                assert (np.abs(a - b).max(-1) > 60).sum() >= 12  # pixels, at the smaller size


def test_number_of_objects(pool):
    assert {len(s.objects) for s in pool.scenes} == {3, 4, 5, 6}
    assert {len(s.objects) for s in generate(640, objects=(1, 8), questions_per_picture=1).scenes} == set(range(1, 9))


# -------------------------------------------------------------------------------------------------------- language


def test_every_picture_gets_every_family(pool):
    families = defaultdict(list)
    for s in pool:
        families[s.picture_id].append(s.family)
    assert len(families) == 400
    assert all(sorted(f) == sorted(FAMILIES) for f in families.values())


@pytest.mark.parametrize("number", [1, 3, 20])
def test_another_number_of_questions(number):
    data = generate(32, questions_per_picture=number)
    asked = defaultdict(list)
    for s in data:
        asked[s.picture_id].append(s)
    for samples in asked.values():
        assert len(samples) == number == len({s.question for s in samples})
        counts = Counter(s.family for s in samples)
        assert max(counts.values()) - (min(counts.values()) if number > 8 else 1) <= 2
    assert set(data.families) == set(FAMILIES)


def test_one_object_leaves_out_what_needs_two():
    data = generate(16, objects=(1, 1))
    assert set(data.families) == set(FAMILIES) - {"attribute_comparison", "spatial_relation"}
    assert len(data) == 128


def test_language_is_small(train):
    words = {w for s in train for w in tokenize(s.question)}
    assert len(words) < 90
    assert max(len(s.question.split()) for s in train) <= 16
    wordings = defaultdict(set)
    for s in of_family(train, "existence"):
        wordings[json.dumps(s.meta["program"])].add(s.question)
    assert max(len(w) for w in wordings.values()) >= 3


NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}


def caption_is_true(caption, scene):
    if m := re.fullmatch(r"a picture with exactly (\w+) (.+)", caption):
        return len(named(m[2], scene)) == NUMBERS[m[1]]
    if m := re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", caption):
        return any(SIDES[m[2]](a, b) for a in named(m[1], scene) for b in named(m[3], scene))
    parts = re.split(", | and ", re.sub("^a picture with |^there is ", "", caption))
    wanted = Counter(parts)
    return all(len(named(phrase, scene)) >= n for phrase, n in wanted.items())


@pytest.mark.parametrize("objects", [(1, 1), (3, 6), (8, 8)])
def test_captions_are_true_different_and_as_many_as_allowed(objects):
    data = generate(64, objects=objects, captions=(1, 5))
    numbers = Counter()
    for picture_id, scene in zip(data.picture_ids, data.scenes):
        captions = data.captions(picture_id)
        assert captions == data.captions(picture_id)
        assert len(set(captions)) == len(captions)
        numbers[len(captions)] += 1
        for caption in captions:
            assert caption_is_true(caption, scene), caption
    assert set(numbers) == {1, 2, 3, 4, 5}
    assert {len(generate(4, objects=objects, captions=(5, 5)).captions(f"scene-0-00000{i}")) for i in range(4)} == {5}


def test_the_caption_check_finds_a_false_caption(still_life):
    assert caption_is_true("a small solid red circle left of a large solid blue circle", still_life)
    assert not caption_is_true("a small solid red circle right of a large solid blue circle", still_life)
    assert not caption_is_true("a picture with exactly three circles", still_life)


# ---------------------------------------------------------------------------------------------------------- splits


def test_splits_share_no_picture(train, test, composition):
    sets = [train, scenes.load("val", n=64, size=32), test, composition]
    ids = [i for data in sets for i in data.picture_ids]
    pixels = [picture.tobytes() for data in sets for picture in data.images]
    assert len(ids) == len(set(ids)) == len(set(pixels)) == 2400 + 64 + 1600 + 640
    assert [data.split for data in sets] == list(scenes.SPLITS)
    assert not set(scenes.load("train", n=2, seed=1).picture_ids) & set(ids)


def test_composition_holds_new_pairs_of_known_values(train, test, composition):
    for data in (train, test):
        things = [o for scene in data.scenes for o in scene.objects]
        assert not UNSEEN & {o[2:4] for o in things}
        assert {o.colour for o in things} == set(COLOURS)
        assert {o.shape for o in things} == set(SHAPES)
    assert all(any(o[2:4] in UNSEEN for o in scene.objects) for scene in composition.scenes)
    assert {o[2:4] for scene in composition.scenes for o in scene.objects} == {(c, s) for c in COLOURS for s in SHAPES}
    assert Counter(colour for colour, _ in UNSEEN) == dict.fromkeys(COLOURS, 1)
    assert Counter(shape for _, shape in UNSEEN) == dict.fromkeys(SHAPES, 2)
    assert 0.3 < np.mean([s.meta["unseen"] for s in composition]) < 0.7


def test_a_subset_keeps_pictures_and_regions(pool):
    keep = random.Random(0).sample(range(len(pool)), 20)
    part = pool.subset(keep, split="part")
    assert (len(part), part.split) == (20, "part")
    for i, k in enumerate(keep):
        assert part[i] == pool[k]
        np.testing.assert_array_equal(part.region_mask(i), pool.region_mask(k))
    assert part.content_hash() != pool.content_hash()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 3}, "even"),
        ({"n": 0}, "even"),
        ({"seed": -1}, "seed"),
        ({"size": 16}, "32 pixels"),
        ({"objects": (0, 4)}, "within 1 to 8"),
        ({"objects": (5, 4)}, "least, largest"),
        ({"objects": (1, 9)}, "within 1 to 8"),
        ({"noise": -0.1}, "noise"),
        ({"clutter": 2}, "clutter"),
        ({"occlusion": 0.6}, "0.5"),
        ({"pairs": "some"}, "'seen'"),
        ({"questions_per_picture": 0}, "1 to 32"),
        ({"captions": (0, 5)}, "1 to 5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"n": 2, **arguments})


def test_unknown_split_and_picture_are_named(pool):
    with pytest.raises(ValueError, match="test_composition"):
        scenes.load("dev")
    with pytest.raises(ValueError, match="scene-3-000399"):
        pool.captions("scene-9-000000")
