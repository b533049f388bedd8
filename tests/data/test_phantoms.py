"""Phantoms: balance, truth, regions, noise, splits, few-shot tasks, volumes."""

import dataclasses
import json
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import binomtest, chisquare, norm
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from vqa_core.data import phantoms
from vqa_core.data.phantoms import (
    FAMILIES,
    KINDS,
    MODALITIES,
    PLANES,
    REGIONS,
    UNANSWERABLE,
    UNSEEN_MODALITY,
    Plan,
    generate,
    statistics,
)
from vqa_core.data.phantoms.anatomy import TABLE, visible_organs
from vqa_core.data.phantoms.plan import draw_finding, draw_plan, hosts
from vqa_core.data.phantoms.questions import ask, ask_about_absent
from vqa_core.data.phantoms.render import draw
from vqa_core.data.phantoms.tasks import SPLITS as TASK_SPLITS
from vqa_core.data.phantoms.tasks import TASKS, Task, episode, episodes
from vqa_core.data.phantoms.volumes import covariates, volumes
from vqa_core.data.vqa_rad import QUESTION_TYPES, medical_answer


@pytest.fixture(scope="module")
def pool():
    return generate(60, seed=3)


def asked_of(number, seed):
    """Family → questions with their plans, as ``generate`` asks them, without drawing the pictures."""
    found = {family: [] for family in FAMILIES}
    for i in range(number):
        plan = draw_plan(False, random.Random(f"plan of phantom {i} of seed {seed}"))
        for family, rows in found.items():
            asked = ask(plan, family, random.Random(f"{family} of phantom {i} of seed {seed}"))
            if asked:
                rows.append((plan, asked))
    return found


@pytest.fixture(scope="module")
def many():
    """Family → questions to learn from and to be scored on."""
    train, test = asked_of(3500, 0), asked_of(2000, 1)
    return {family: (train[family], test[family]) for family in FAMILIES}


def one_finding(kind, number, *, seed=0, planes=PLANES, modalities=MODALITIES):
    """Plans with one finding of a kind and nothing else."""
    chance = random.Random(f"{kind} {seed}")
    while number:
        plan = draw_plan(False, chance)
        if plan.plane in planes and plan.modality in modalities:
            finding = draw_finding(plan.region, plan.plane, kind, True, chance)
            yield dataclasses.replace(plan, findings=(finding,))
            number -= 1


# ------------------------------------------------------------------------------------------------- reproducible


def test_same_seed_same_set_and_another_seed_another():
    one, two, other = generate(3, seed=5), generate(3, seed=5), generate(3, seed=6)
    assert one.content_hash() == two.content_hash() != other.content_hash()
    assert one.samples == two.samples
    assert not set(one.picture_ids) & set(other.picture_ids)


def test_a_picture_does_not_depend_on_how_many_follow():
    few, more = generate(2, seed=5), generate(9, seed=5)
    np.testing.assert_array_equal(few.images, more.images[:2])
    assert few.samples == more.samples[: len(few)]
    assert few.plans == more.plans[:2]


def test_asking_less_leaves_pictures_and_other_questions_as_they_are(pool):
    part = generate(8, seed=3, families=("PLANE", "POS"))
    assert part.families == ("PLANE", "POS")
    np.testing.assert_array_equal(part.images, pool.images[:8])
    assert list(part) == [s for s in pool if s.family in part.families and pool.picture_index(s.picture_id) < 8]


def test_hash_covers_pixels():
    data = generate(2)
    before = data.content_hash()
    data.images[1, 3, 4] ^= 1
    assert data.content_hash() != before


def test_pictures_are_grey_and_drawn_again_exactly(pool):
    for i, picture_id in enumerate(list(pool.picture_ids)[:5]):
        rgb = pool.picture(picture_id)
        assert rgb.shape == (64, 64, 3)
        assert rgb.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(rgb[:, :, channel], pool.images[i])
        np.testing.assert_array_equal(pool.drawing(picture_id).picture, pool.images[i])


@pytest.mark.parametrize("size", [48, 128])
def test_any_size_shows_the_same(size, pool):
    data = generate(4, seed=3, size=size)
    assert data.images.shape == (4, size, size)
    assert data.plans == pool.plans[:4]
    assert data.samples == pool.samples[: len(data)]
    for i, s in enumerate(data):
        if s.meta["depends_on"] == ["body"]:
            assert data.region_mask(i).mean() == pytest.approx(pool.region_mask(i).mean(), rel=0.06)


# ---------------------------------------------------------------------------------------------------------- noise


def test_severity_changes_pixels_only_and_more_is_noisier():
    clean = generate(6, seed=2, severity=0)
    errors = []
    for severity in (1, 2, 3, 4, 5):
        data = generate(6, seed=2, severity=severity)
        assert data.samples == clean.samples
        for i in (0, 5):
            picture_id = data.picture_ids[i]
            np.testing.assert_array_equal(data.drawing(picture_id).owner, clean.drawing(picture_id).owner)
            np.testing.assert_array_equal(data.drawing(picture_id).findings, clean.drawing(picture_id).findings)
        errors.append(np.abs(data.images.astype(float) - clean.images).mean(axis=(1, 2)))
    assert (np.diff(errors, axis=0) > 0).all()


def noise_of(modality):
    """Clean grey values of a picture and the noise on them, below the marker."""
    plan = Plan("abdomen", modality, "coronal", (), ("L", True))
    clean = draw(plan, 64, 0, [1]).picture.astype(float)[12:]
    noisy = draw(plan, 64, 3, [1]).picture.astype(float)[12:]
    return clean, noisy - clean


def test_noise_is_that_of_the_modality():
    clean, ct = noise_of("ct")
    middle = (clean > 60) & (clean < 170)
    assert ct[middle].std() == pytest.approx(0.09 * 255, rel=0.08)
    assert abs(ct[middle].mean()) < 1.5
    clean, xray = noise_of("xray")  # variance in proportion to the signal
    dark, bright = (clean > 40) & (clean < 90), (clean > 130) & (clean < 190)
    ratio = xray[bright].var() / xray[dark].var()
    assert ratio == pytest.approx(clean[bright].mean() / clean[dark].mean(), rel=0.25)
    clean, mri = noise_of("t1 mri")  # magnitude: the ground is lifted, to sigma · √(π/2) where there is no signal
    ground = clean < 8
    assert (clean + mri)[ground].mean() == pytest.approx(0.09 * 255 * (np.pi / 2) ** 0.5, rel=0.1)
    assert abs(mri[(clean > 100) & (clean < 170)].mean()) < 3


# -------------------------------------------------------------------------------------------------------- balance


def words_accuracy(train, test):
    """Accuracy of logistic regression on TF-IDF of words and word pairs."""
    words = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=100).fit(
        words.fit_transform([a.words for _, a in train]), [a.answer for _, a in train]
    )
    return model.score(words.transform([a.words for _, a in test]), [a.answer for _, a in test])


def lookup_accuracy(train, test):
    """Accuracy of the most frequent training answer of the same wording."""
    table = defaultdict(Counter)
    for _, a in train:
        table[a.words][a.answer] += 1
    return np.mean([table[a.words].most_common(1)[0][0] == a.answer for _, a in test if a.words in table])


@pytest.mark.parametrize("family", FAMILIES)
def test_question_alone_is_at_chance(many, family):
    train, test = many[family]
    chance = np.mean([a.chance for _, a in test])
    margin = 3 * (0.25 / len(test)) ** 0.5
    assert words_accuracy(train, test) == pytest.approx(chance, abs=margin)
    assert lookup_accuracy(train, test) == pytest.approx(chance, abs=margin)


def test_the_question_only_check_finds_a_planted_prior(many):
    def plant(rows):
        return [(p, a) for p, a in rows if not ("fracture" in a.words and a.answer == "no")]

    train, test = (plant(rows) for rows in many["PRES"])
    assert words_accuracy(train, test) > np.mean([a.chance for _, a in test]) + 0.04


def test_answers_to_one_form_are_equally_frequent(many):
    for family, (train, test) in many.items():
        by_form = defaultdict(Counter)
        for _, a in train + test:
            if a.answer in ("yes", "no"):
                by_form[a.organ, re.sub(r"\b(not|the|a|an)\b", "", a.words)[:14]][a.answer] += 1
        for form, counts in by_form.items():
            total = sum(counts.values())
            assert binomtest(counts["yes"], total, 0.5).pvalue > 1e-4, (family, form, counts)


def test_regions_modalities_planes_and_kinds_are_uniform():
    plans = [draw_plan(False, random.Random(i)) for i in range(6000)]
    for values, names in (
        ([p.region for p in plans], REGIONS),
        ([p.modality for p in plans], MODALITIES),
        ([p.plane for p in plans], PLANES),
        ([f.kind for p in plans for f in p.findings], KINDS),
    ):
        counts = Counter(values)
        assert set(counts) == set(names)
        assert chisquare([counts[v] for v in names]).pvalue > 0.001
    assert not any(p.modality == "xray" and p.plane == "axial" for p in plans)
    assert np.mean([len(p.present) == 0 for p in plans]) == pytest.approx(0.25, abs=0.02)
    sides = Counter((f.kind, f.side) for p in plans for f in p.findings if f.side)
    for kind in KINDS:
        if sides[kind, "left"]:
            assert binomtest(sides[kind, "left"], sides[kind, "left"] + sides[kind, "right"]).pvalue > 1e-4


def test_every_kind_has_a_place_in_every_view():
    for region in REGIONS:
        for plane in PLANES:
            for side in ("",) if plane == "sagittal" else ("left", "right"):
                for kind in KINDS:
                    for organ in hosts(region, plane, kind, side):
                        for xray in (False, True) if plane != "axial" else (False,):
                            assert organ in {o.name for o in visible_organs(region, plane, xray)}
                    assert hosts(region, plane, kind, side), (region, plane, side, kind)


# ---------------------------------------------------------------------------------------------------------- truth


def read(question, plan):
    """Answer a question from its words and the plan, as an English reader would."""
    q = question.removesuffix("?").lower()
    found = {f.kind: f for f in plan.present}
    kinds = "|".join(KINDS)
    said = re.findall(kinds, q)
    names = {"ct": "a ct scan", "t1 mri": "a t1 mri", "t2 mri": "a t2 mri", "xray": "an x-ray"}
    named = [m for m, w in names.items() if w in q]
    mri = plan.modality.endswith("mri")

    def choose(value):
        return value if re.search(rf"\bor\b.*\b{value}\b|\b{value}\b.*\bor\b", q) else None

    if "modality" in q or "kind of scan" in q or named:
        return plan.modality if len(named) != 1 else named[0] == plan.modality
    if "plane" in q:
        planes = [p for p in PLANES if p in q]
        return plan.plane if len(planes) != 1 else planes[0] == plan.plane
    if "marker" in q:
        place = "top" if plan.marker[1] else "bottom"
        sides = {"L": "left", "R": "right", "A": "anterior", "P": "posterior"}
        return choose(place) or place in q if re.search("top|bottom", q) else sides[plan.marker[0]]
    if "bone" in q or "fat" in q:
        value = ("black" if mri else "white") if "bone" in q else ("white" if mri else "grey")
        return value if q.startswith("what") else value in q
    if "part of the body" in q or "region" in q:
        return plan.region
    if m := re.search(r"(?:is this|show) the (\w+)$", q):
        return m[1] == plan.region
    if m := re.search(r"(?:any part of|contain) the (\w+)", q):
        return m[1] in {o.name for o in TABLE[plan.region]}
    if "exactly" in q:
        return {"one": 1, "two": 2, "three": 3}[q.split("exactly ")[1].split()[0]] == found[said[0]].number
    if "how many" in q or "number of" in q:
        return str(found[said[0]].number if said[0] in found else 0)
    if m := re.search(r"the (\w+) (enlarged|too big|normal|abnormal)$", q):
        here = [f for f in plan.present if f.organ == m[1]]
        if m[2] == "normal":
            return not here
        return any(f.kind == "enlargement" for f in here) if m[2] != "abnormal" else bool(here)
    if re.search(r"picture normal|look normal", q):
        return not found
    if re.search(r"anything abnormal|there an abnormality", q):
        return bool(found)
    if re.search(r"what is abnormal|what is the abnormality|which finding", q):
        return next(iter(found))
    f = found.get(said[0])
    if q.startswith(("in which organ", "which organ", "where")):
        return f.organ
    if "side" in q or "on the left or" in q or "on the right or" in q:
        return f.side if "which" in q or " or " in q else f.side in q
    for name, value in (f.attributes if f else {}).items():
        if name in q:
            return value if "how" in q else choose(value) or value in q.split()
    if "brighter" in q or "darker" in q:
        value = "brighter" if f.bright else "darker"
        return choose(value) or value in q
    if re.search(r"\b(small|large|size)\b", q):
        return f.size if q.startswith(("how", "what")) else choose(f.size) or f.size in q
    assert q.startswith(("is there", "do you see", "does the picture show")), q
    if len(said) == 2:
        return next(kind for kind in said if kind in found)
    organ = re.search(r"(?:in|of) the (\w+)$", q)
    return bool(f) and (not organ or f.organ == organ[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_words_of_every_question_mean_its_answer(many, family):
    for plan, a in many[family][1][:800]:
        answer = read(a.words, plan)
        assert {True: "yes", False: "no"}.get(answer, answer) == a.answer, (a.words, plan)


def test_samples_are_like_vqa_rad(pool):
    assert set(FAMILIES) == set(QUESTION_TYPES) == set(pool.families)
    assert all(s.answer == medical_answer(s.answer) for s in pool)  # the official normalisation changes nothing
    assert {s.meta["organ"] for s in pool} == {"HEAD", "CHEST", "ABD"}
    assert {s.kind for s in pool} == {"open", "closed"}
    for s in pool:
        plan = pool.plans[pool.picture_index(s.picture_id)]
        assert json.loads(json.dumps(s.meta)) == s.meta
        assert (s.meta["region"], s.meta["modality"], s.meta["plane"]) == (plan.region, plan.modality, plan.plane)
        assert s.meta["question_types"] == [s.family]
        assert s.meta["answerable"]
    wordings = {s.question for s in pool if s.family == "PLANE" and s.kind == "open"}
    assert len(wordings) == 3


# -------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "enlargement"])
def test_masks_are_the_pixels_that_change_when_the_finding_goes(kind):
    for i, plan in enumerate(one_finding(kind, 14)):
        gone = dataclasses.replace(plan, findings=(dataclasses.replace(plan.findings[0], present=False),))
        with_it, without = (draw(p, 64, 0, [4, i]) for p in (plan, gone))
        (mask,) = with_it.findings
        change = np.abs(with_it.picture.astype(int) - without.picture)
        near = ndimage.binary_dilation(mask, iterations=2)
        if kind == "fluid level":  # the gas above the fluid is painted too
            near |= with_it.organ(plan.findings[0].organ)
        assert not without.findings.any()
        assert mask.sum() >= 5, plan
        assert (change[mask] > 8).mean() > 0.5, plan
        if (kind, plan.modality) != ("fluid level", "xray"):  # organs lie before each other there
            assert (change[~near] > 8).mean() < 0.01, plan


def test_an_enlarged_organ_is_larger():
    for i, plan in enumerate(one_finding("enlargement", 24)):
        gone = dataclasses.replace(plan, findings=(dataclasses.replace(plan.findings[0], present=False),))
        big, normal = (draw(p, 64, 0, [4, i]) for p in (plan, gone))
        organ = plan.findings[0].organ
        assert big.organ(organ).sum() > 1.1 * normal.organ(organ).sum(), plan
        grown = big.organ(organ) & ~normal.organ(organ)
        assert np.abs(big.picture.astype(int) - normal.picture)[grown].mean() > 5, plan  # and one sees it
        assert big.findings[0].any()
        assert not (big.findings[0] & ~big.organ(organ) & ~(plan.modality == "xray")).any()


@pytest.mark.parametrize("kind", ["nodule", "cyst"])
def test_as_many_as_the_plan_says(kind):
    for i, plan in enumerate(one_finding(kind, 40)):
        (mask,) = draw(plan, 64, 0, [8, i]).findings
        assert ndimage.label(mask, np.ones((3, 3)))[1] == plan.findings[0].number, (i, plan)


def test_large_is_larger_than_small():
    for kind in ("mass", "bleed", "fluid level"):
        area = defaultdict(list)
        for i, plan in enumerate(one_finding(kind, 24)):
            area[plan.findings[0].size].append(draw(plan, 64, 0, [8, i]).findings.sum())
        assert np.mean(area["large"]) > 1.4 * np.mean(area["small"])


def test_brighter_is_brighter_where_it_is_asked_about():
    from vqa_core.data.phantoms.render import has_room_for_both

    signs = Counter()
    for kind in ("mass", "nodule"):
        for i, plan in enumerate(one_finding(kind, 30)):
            (finding,) = plan.findings
            gone = dataclasses.replace(plan, findings=(dataclasses.replace(finding, present=False),))
            with_it, without = (draw(p, 64, 0, [9, i]) for p in (plan, gone))
            (mask,) = with_it.findings
            change = (with_it.picture.astype(float) - without.picture)[mask].mean()
            askable = has_room_for_both(finding.organ, plan.modality)
            assert (change > 0) == (finding.bright or not askable), plan
            signs[askable, change > 0] += 1
    assert min(signs[True, True], signs[True, False]) > 5


def test_sides_are_the_patients():
    for kind in ("mass", "bleed", "fluid level", "nodule"):
        for i, plan in enumerate(one_finding(kind, 20, planes=("axial", "coronal"))):
            if plan.findings[0].side:
                mask = draw(plan, 64, 0, [8, i]).findings[0]
                x = np.nonzero(mask)[1].mean() - 31.5
                assert (x > 0) == (plan.findings[0].side == "left"), plan  # as if the patient faced the reader


def mean_grey(drawn, mask):
    return drawn.picture[mask].mean()


def test_modalities_look_as_they_should():
    def head(modality):
        return draw(Plan("head", modality, "axial", (), ("L", True)), 96, 0, [1])

    ct, t1, t2 = head("ct"), head("t1 mri"), head("t2 mri")
    for drawn, bone_is_white in ((ct, True), (t1, False), (t2, False)):
        bone, fat = mean_grey(drawn, drawn.organ("skull")), mean_grey(drawn, drawn.tissue("fat"))
        assert bone > 200 if bone_is_white else bone < 60
        assert fat < 110 if bone_is_white else fat > 170
    for drawn, fluid_is_bright in ((t1, False), (t2, True)):
        brain, fluid = mean_grey(drawn, drawn.tissue("grey matter")), mean_grey(drawn, drawn.organ("ventricles"))
        assert (fluid > brain + 50) == fluid_is_bright
        assert (fluid < brain - 50) != fluid_is_bright
    assert mean_grey(t1, t1.tissue("white matter")) > mean_grey(t1, t1.tissue("grey matter")) + 20
    assert mean_grey(t2, t2.tissue("white matter")) < mean_grey(t2, t2.tissue("grey matter")) - 20
    chest = draw(Plan("chest", "xray", "coronal", (), ("L", True)), 96, 0, [1])
    assert mean_grey(chest, chest.organ("lung")) < 0.8 * mean_grey(chest, chest.organ("heart"))
    probe = draw(Plan("chest", UNSEEN_MODALITY, "axial", (), ("L", True)), 96, 0, [1])
    assert not probe.field.all()
    assert probe.picture[~probe.field & ~probe.marker].max() == 0


def test_regions_of_questions(pool):
    for i, s in enumerate(pool):
        mask = pool.region_mask(i)
        assert mask.shape == (64, 64)
        assert mask.dtype == bool
        assert mask.any(), s
        drawn = pool.drawing(s.picture_id)
        if s.family in ("MODALITY", "PLANE"):
            np.testing.assert_array_equal(mask, drawn.body())
        if s.family == "OTHER":
            np.testing.assert_array_equal(mask, drawn.marker)
        if s.family == "COUNT" and s.answer not in ("0", "yes", "no"):
            np.testing.assert_array_equal(mask, drawn.findings[int(s.meta["depends_on"][0][-1])])


# ---------------------------------------------------------------------------------------------------------- splits


def test_splits_share_no_picture():
    sets = [phantoms.load(split, n=6, size=48, families=("PRES",)) for split in phantoms.SPLITS]
    pixels = [p.tobytes() for data in sets for p in data.images]
    assert len(pixels) == len(set(pixels)) == 30
    assert len({data.seed for data in sets}) == 5
    assert [data.split for data in sets] == list(phantoms.SPLITS)
    again = phantoms.load("train", n=1, seed=1, size=48)
    assert again.seed not in {data.seed for data in sets}


def test_the_unseen_modality_is_nowhere_else(many):
    unseen = phantoms.load("unseen", n=20, size=48)
    assert {p.modality for p in unseen.plans} == {UNSEEN_MODALITY}
    assert set(unseen.families) == set(FAMILIES) - {"MODALITY"}
    assert UNSEEN_MODALITY not in MODALITIES
    answers = {a.answer for train, _ in many.values() for _, a in train}
    assert {s.answer for s in unseen} <= answers  # a trained model can say all of them


def test_unanswerable_questions_are_about_what_is_not_there():
    data = phantoms.load("unanswerable", n=15, size=48)
    assert set(data.families) == {"ABN", "PRES", "SIZE"}
    for i, s in enumerate(data):
        assert s.answer == UNANSWERABLE
        assert not s.meta["answerable"]
        assert s.meta["named_organ"] in s.question
        assert s.meta["named_organ"] not in {o.name for o in data.drawing(s.picture_id).rows}
        assert not data.region_mask(i).any()


def test_words_do_not_say_that_a_question_is_unanswerable(many):
    chance = random.Random(0)
    absent = []
    while len(absent) < 1500:
        plan = draw_plan(False, chance)
        asked = ask_about_absent(plan, "PRES", chance)
        if asked and asked.organ != "spine":
            absent.append((plan, asked))
    there = [(p, a._replace(answer="there")) for p, a in many["PRES"][0] if a.organ not in ("", "spine")][:1500]
    rows = there + absent[: len(there)]
    chance.shuffle(rows)
    half = len(rows) // 2
    assert words_accuracy(rows[:half], rows[half:]) == pytest.approx(0.5, abs=0.05)


def test_a_subset_keeps_pictures_and_regions(pool):
    keep = random.Random(0).sample(range(len(pool)), 10)
    part = pool.subset(keep, split="part")
    assert (len(part), part.split) == (10, "part")
    for i, k in enumerate(keep):
        assert part[i] == pool[k]
        np.testing.assert_array_equal(part.region_mask(i), pool.region_mask(k))
    assert part.content_hash() != pool.content_hash()


def test_the_set_says_that_it_shows_no_patients(pool):
    assert any("not patients" in note for note in pool.notes)
    assert "Phantoms are not patients" in phantoms.__doc__


# ----------------------------------------------------------------------------------------------------------- tasks


def test_classes_of_the_task_splits_are_disjoint_and_all():
    assert sorted(t for split in TASK_SPLITS.values() for t in split) == list(TASKS)
    assert len(set(TASKS)) == len(TASKS) >= 25
    assert min(len(classes) for classes in TASK_SPLITS.values()) >= 5


def test_an_episode_has_its_shape_and_is_reproducible():
    e = episode("meta_val", 3, ways=3, shots=1, queries=2, size=48)
    again = episode("meta_val", 3, ways=3, shots=1, queries=2, size=48)
    assert e.support.shape == (3, 48, 48)
    assert e.query.shape == (6, 48, 48)
    assert e.support.dtype == e.query.dtype == np.uint8
    np.testing.assert_array_equal(e.support_labels, [0, 1, 2])
    np.testing.assert_array_equal(e.query_labels, np.repeat([0, 1, 2], 2))
    for a, b in zip(e, again):
        np.testing.assert_array_equal(a, b)
    assert set(e.classes) <= set(TASK_SPLITS["meta_val"])
    others = list(episodes("meta_val", 3, ways=3, shots=1, queries=2, size=48))
    others += [episode("meta_test", 3, ways=3, shots=1, queries=2, size=48)]
    pixels = [p.tobytes() for x in (e, *others) for group in (x.support, x.query) for p in group]
    assert len(set(pixels)) == len(pixels) == 5 * 9  # no picture is in two episodes, or in support and query


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "meta_train"),
        ({"split": "meta_test", "ways": 40}, "classes"),
        ({"split": "meta_test", "ways": 1}, "ways is 1"),
        ({"split": "meta_test", "shots": 0}, "positive"),
        ({"split": "meta_test", "index": -1}, "negative"),
    ],
)
def test_impossible_episodes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        episode(**{"index": 0, **arguments})


def test_a_task_that_does_not_exist_is_refused():
    from vqa_core.data.phantoms.tasks import draw_task_plan

    with pytest.raises(ValueError, match="not a finding"):
        draw_task_plan(Task("brain", "fracture"), random.Random(0))
    for task in TASKS:
        for seed in range(6):
            (finding,) = draw_task_plan(task, random.Random(seed)).findings
            assert (finding.organ, finding.kind, finding.present) == (*task, True)


# --------------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("region", REGIONS)
def test_volumes(region):
    data = volumes(3, seed=2, size=24, region=region)
    assert data.volumes.shape == data.masks.shape == (3, 24, 24, 24)
    assert (data.volumes.dtype, data.masks.dtype) == (np.uint8, bool)
    assert data.covariates.shape == (3, 25)
    assert len(data) == 3
    few = volumes(2, seed=2, size=24, region=region)
    np.testing.assert_array_equal(few.volumes, data.volumes[:2])
    np.testing.assert_array_equal(few.covariates, data.covariates[:2])
    assert data.content_hash() == volumes(3, seed=2, size=24, region=region).content_hash() != few.content_hash()
    for volume, mask in zip(data.volumes, data.masks):
        assert 20 < mask.sum() < 0.05 * mask.size
        assert ndimage.label(mask)[1] == 1
        around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
        assert abs(volume[mask].mean() - volume[around].mean()) > 10


def test_covariates_tell_as_much_as_they_should():
    labels = np.arange(2000) % 2
    x = covariates(labels, effect=1.0, informative=5)
    score = x[:, :5].sum(axis=1)  # the best classifier: all shifts are equal
    assert ((score > 0) == labels).mean() == pytest.approx(norm.cdf(np.sqrt(5) / 2), abs=0.03)
    assert abs(x[labels == 1, 5:].mean() - x[labels == 0, 5:].mean()) < 0.03
    flat = covariates(labels, effect=0.0)
    assert ((flat[:, :5].sum(axis=1) > 0) == labels).mean() == pytest.approx(0.5, abs=0.03)
    assert flat.std() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(covariates(labels[:7]), covariates(labels)[:7])


def test_grades_are_balanced_and_differ_in_the_middle_of_the_mass():
    data = volumes(16, size=24, severity=0)
    assert 3 <= data.labels.sum() <= 13
    middles = [
        volume[tuple(np.argwhere(mask).mean(0).round().astype(int))] for volume, mask in zip(data.volumes, data.masks)
    ]
    high, low = (np.array(middles)[data.labels == grade] for grade in (1, 0))
    assert high.max() < low.min()


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"size": 32}, "48 pixels"),
        ({"severity": 5.5}, "0 to 5"),
        ({"families": ("PRES", "COLOUR")}, "COLOR"),
        ({"families": ()}, "families"),
        ({"families": ("PRES", "PRES")}, "each once"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"n": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"region": "leg"}, "leg"), ({"modality": "xray"}, "xray"), ({"size": 8}, "24"), ({"severity": 6}, "severity")],
)
def test_bad_volumes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        volumes(1, **arguments)


def test_labels_of_covariates_are_checked():
    with pytest.raises(ValueError, match="row of 0 and 1"):
        covariates(np.array([0, 2]))
    with pytest.raises(ValueError, match="informative is 26"):
        covariates(np.array([0, 1]), informative=26)


def test_unknown_split_picture_and_family_are_named(pool):
    with pytest.raises(ValueError, match="unanswerable"):
        phantoms.load("dev")
    with pytest.raises(ValueError, match="phantom-3-000059"):
        pool.picture("phantom-9-000000")
    with pytest.raises(ValueError, match="no question of family 'COLOUR'"):
        pool.chance("COLOUR")


# ------------------------------------------------------------------------------------------------------- statistics


def test_statistics_count_questions_and_pictures(pool):
    by = statistics.categories(pool).set_index("category")
    assert list(by.index) == list(pool.families)
    assert by["questions"].sum() == len(pool)
    plane = [s for s in pool if s.family == "PLANE"]
    assert by.loc["PLANE", "closed"] == pytest.approx(sum(s.kind == "closed" for s in plane) / len(plane))
    assert by.loc["PLANE", "answers"] == len({s.answer for s in plane})
    assert by.loc["PLANE", "commonest"] == max(Counter(s.answer for s in plane).values()) / len(plane)
    assert by.loc["PLANE", "words"] == pool.chance("PLANE")

    seen = statistics.pictures(pool).set_index(["of", "row", "column"])["pictures"]
    assert seen["view"].sum() == len(pool.plans)
    assert seen["view", "xray", "axial"] == 0
    assert {m for m, _ in seen["view"].index} == set(MODALITIES)
    with_bleed = [p for p in pool.plans if any(f.kind == "bleed" for f in p.present)]
    assert seen["finding", "bleed"].sum() == len(with_bleed) > 0
    assert seen["finding", "none"].sum() == sum(not p.present for p in pool.plans) > 0


def test_statistics_of_the_unseen_modality_name_it_alone():
    seen = statistics.pictures(generate(4, unseen=True, size=48))
    assert set(seen[seen["of"] == "view"]["row"]) == {UNSEEN_MODALITY}
