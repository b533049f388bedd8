# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What VQA is
#
# A picture, a question about it in plain words, an answer: *visual question answering* {cite:p}`antol2015vqa` is said in one line.
# What makes it hard is said in one line too: **an answer that is right need not have come from the picture.** This chapter builds the task from
# the bottom up to a first model, blinds that model, and then measures how far one gets on real data with both eyes shut.
#
# :::{admonition} What you will be able to do
# :class: tip
# - turn pictures and sentences into tensors with masks, and follow their shapes to the answer;
# - read a question as a small program whose truth can be computed, and say what *balanced* means;
# - tell what a baseline that sees no picture proves, and run four of them on any data set;
# - find the leak that lets a lookup table without eyes look like a good model on a medical benchmark.
#
# **Before you start**: Python and arrays; what a classifier and a softmax are. No earlier chapter.\
# **What it costs**: the baselines of this page took {val}`01_what_is_vqa.seconds.baselines:.0f` seconds of computing on the machine that made it, and the
# networks borrowed from {doc}`chapter 3 <03_fusion>` took {val}`01_what_is_vqa.seconds.networks:.0f`. {doc}`/book/status` has the whole account.
# :::

# %% tags=["parameters"]
PROFILE = "auto"  # smoke, cpu, gpu; auto is gpu where CUDA is
PIXELS = 256  # side of the pictures in the figures

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

from vqa_core import experiments, figures
from vqa_core.data import scenes

figures.use_style()
pd.options.display.max_colwidth = 80
chapter = figures.Chapter("01_what_is_vqa", PROFILE)

# %% [markdown]
# ## Look first
#
# Most of this book runs on **scenes**: pictures that are drawn, not photographed, with questions that are made, not collected. That is a choice. In a
# photograph nobody knows the truth about every object; here every object, every question's logic and every answer is known, so that when a model
# is wrong we can say *where* it went wrong. The idea is that of CLEVR {cite:p}`johnson2017clevr` and SHAPES {cite:p}`andreas2016nmn`. Real data
# sets come [further down](#baselines-that-see-no-picture).

# %%
shown = scenes.generate(64, seed=8, size=PIXELS, objects=(4, 6))
shown


# %%
def ask_about(family, number):
    """Position of the question of a family about the picture with that number."""
    wanted = (shown.picture_ids[number], family)
    return next(i for i, s in enumerate(shown) if (s.picture_id, s.family) == wanted)


chosen = [ask_about(family, 2 * k) for k, family in enumerate(scenes.FAMILIES)]

# %% tags=["hide-input"]
fig, axes = plt.subplots(4, 4, figsize=(10.4, 8), height_ratios=[1, 0.44, 1, 0.44])
fig.get_layout_engine().set(hspace=0, h_pad=0.12)
for ax, below, i in zip(axes[::2].flat, axes[1::2].flat, chosen):
    ax.imshow(shown.picture(shown[i].picture_id))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(shown[i].family.replace("_", " "), fontsize=11, color="#5c6470", loc="left")
    below.text(0.5, 1, textwrap.fill(shown[i].question, 27), ha="center", va="top", fontsize=12)
    below.text(0.5, 0.12, shown[i].answer, ha="center", va="bottom", fontsize=14, weight="bold", color="#0a5c8a")
    below.axis("off")
said = [f"{shown[i].question} {shown[i].answer}." for i in chosen]
chapter.figure(
    fig,
    "gallery",
    caption="Eight scenes, one question from each family, and the answer. Which could you answer without the picture?",
    alt="Eight drawn pictures with coloured shapes on grey. " + " ".join(said),
    data=pd.DataFrame(
        [(shown[i].family, shown[i].question, shown[i].answer) for i in chosen],
        columns=["family", "question", "answer"],
    ),
    picture=True,
)

# %% [markdown]
# An object has a size, a texture, a colour and a shape. Try the exclusive-or in {numref}`fig-01-what-is-vqa-gallery`: you found the object, checked one
# attribute, checked the other, and compared. That is four steps, and only two of them are about seeing.
#
# ## From a picture and a sentence to an answer
#
# Write $v$ for the picture, $q$ for the question and $a$ for an answer. Almost every model of the last ten years computes
#
# $$
# \hat a = \arg\max_{a \in \mathcal A}\; p_\theta(a \mid v, q), \qquad
# p_\theta(\cdot \mid v, q) = \operatorname{softmax}\bigl(h\,(f(e_v(v),\, e_q(q)))\bigr),
# $$ (eq-01-vqa)
#
# with an image encoder $e_v$, a text encoder $e_q$, a {term}`fusion` $f$ and a head $h$. $\mathcal A$ is the {term}`answer vocabulary`: the answers that
# occur in training. So even "what colour is it?" is *classification*: the model points at one entry of a list, and an answer that is not on the list is
# {term}`unreachable <unreachable answer>`, however good the model.
#
# One question with its picture is a `Sample`:

# %%
sample = shown[chosen[1]]
fields = ("picture_id", "question", "answer", "family", "kind")
{name: getattr(sample, name) for name in fields}

# %% [markdown]
# `kind` tells the two sorts apart that every report should keep apart. A {term}`closed question` carries its answers in it (*yes/no*, *left or right?*); an
# {term}`open question` does not. On closed questions a coin is right every other time; a single accuracy over both sorts says little.
#
# ### Sentences to numbers
#
# A sentence is cut into words, and a `Vocabulary` numbers them. Two symbols are not words: `<pad>` fills short sentences up, and `<unk>` stands for every word
# that training never showed.

# %%
from vqa_core.data import Vocabulary, encode_questions

asked = [s.question for s in shown]
words = Vocabulary.of_words(asked)
toy = ["Is there a red cross?", "How many small purple unicorns are there?"]
ids, mask = encode_questions(toy, words)
print(ids, mask.astype(int), sep="\n\n")

# %% [markdown]
# The first sentence is shorter, so its row ends in zeros where the {term}`mask <padding>` is 0. The unicorn became number 1, `<unk>`: an honest "I do not know this word".
# (Some published code gives unknown words the number of the *last* real word of the vocabulary, and nothing crashes.)
#
# :::{warning}
# A mask is not bookkeeping. If padding takes part in a mean or in attention, the same question gets another answer in another
# {term}`batch`. The tests of this book ask every model the same question with more padding and compare.
# :::
#
# ### A batch
#
# `collate` puts pictures, words, mask and answers of several samples side by side. It is all that a model ever sees:
#
# ```{literalinclude} /vqa_core/data/types.py
# :pyobject: Batch
# :language: python
# ```
#
# The pictures and questions below are test questions of the book's standard scenes, and the two encoders are those that chapter 3 trains:
# one names what is in each cell of the picture, the other fills the slots of a sentence. Neither has ever seen an answer.

# %%
from vqa_core.experiments.fusion import KEPT, answer_vocabulary
from vqa_core.experiments.scene_encoders import load_encoders, scene_split

runs = experiments.load("fusion", chapter.profile)
test = scene_split(chapter.profile, "test")
namer, reader, words = load_encoders(chapter.profile)
answers = answer_vocabulary(chapter.profile)

# %%
from vqa_core.data.collate import collate
from vqa_core.training.feed import as_float

places = (0, 9, 18, 27)
four = [test[i] for i in places]
pixels = np.stack([test.picture(s.picture_id) for s in four])
batch = collate(four, as_float(torch.from_numpy(pixels)), words, answers)
{name: tuple(tensor.shape) for name, tensor in batch._asdict().items()}

# %% [markdown]
# ### The model, and what flows through it
#
# The whole model is one composition, and it reads like {eq}`eq-01-vqa`:
#
# ```{literalinclude} /vqa_core/model.py
# :pyobject: VQAModel.forward
# :language: python
# :dedent: 4
# ```
#
# We take a trained fusion from chapter 3 (attend, then concatenate), put the encoders before it, and send the four questions through.

# %%
from vqa_core.experiments.fusion import build
from vqa_core.experiments.scene_encoders import NamedCells, SlotTokens

first = next(r for r in runs if r.spec.unit == KEPT)
cells, slots = NamedCells(namer), SlotTokens(reader, form="vector")
trained = build(first.spec.model, cells.out_dim, slots.out_dim, len(answers))

# %%
from vqa_core.model import VQAModel

stored = {k: torch.from_numpy(v) for k, v in first.arrays.items()}
mine = [k for k in stored if k.startswith("model.")]
trained.load_state_dict({k.removeprefix("model."): stored[k] for k in mine})
model = VQAModel(cells, slots, trained.fusion, trained.head).eval()
with torch.no_grad():
    out = model(*batch[:3])
out.logits.shape

# %%
found = [answers.symbols[i] for i in out.logits.argmax(1)]
measured = first.arrays["predicted_test"][list(places)]
assert found == [answers.symbols[i] for i in measured]  # that of chapter 3
asked, true = [s.question for s in four], [s.answer for s in four]
pd.DataFrame({"question": asked, "model": found, "truth": true})

# %% tags=["hide-input"]
with torch.no_grad():
    seen = {
        "pictures": batch.pictures,
        "image encoder\nnames each cell": model.image_encoder(batch.pictures).tokens,
        "words": batch.words,
        "text encoder\nfills slots": SlotTokens(reader)(batch.words, batch.word_mask).tokens,
        "one vector,\nsum of the slots": model.text_encoder(batch.words, batch.word_mask).tokens,
        "attention\nheads look at cells": out.fusion.attention,
        "fusion\nconcat": out.fusion.fused,
        "head\nanswer logits": out.logits,
    }
at = [(0, 2), (1.7, 2), (0, 0), (1.7, 0), (3.4, 0), (3.4, 2), (5.1, 1), (6.8, 1)]
arrows = [(0, 1), (2, 3), (3, 4), (1, 5), (4, 5), (5, 6), (4, 6), (6, 7)]
shape_of = {name: "(B, " + ", ".join(map(str, x.shape[1:])) + ")" for name, x in seen.items()}

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(8.4, 3.5))
side = [figures.PALETTE[k] for k in (0, 0, 1, 1, 1, 3, 3, 2)]
for (x, y), (name, shape), colour in zip(at, shape_of.items(), side):
    ax.add_patch(plt.Rectangle((x - 0.68, y - 0.55), 1.36, 1.1, fill=False, ec=colour, lw=1.8))
    ax.text(x, y + 0.14, name, ha="center", va="center", fontsize=9.5, linespacing=1.35)
    ax.text(x, y - 0.36, shape, ha="center", va="center", fontsize=9, family="monospace")
for a, b in arrows:
    (x, y), (u, w) = at[a], at[b]
    ends = ((x, y + 0.55), (u, w - 0.55)) if x == u else ((x + 0.68, y), (u - 0.68, w))
    ax.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "-|>", "color": "#808890", "lw": 1.4})
ax.set(xlim=(-0.8, 7.6), ylim=(-0.7, 2.7))
ax.axis("off")
chapter.figure(
    fig,
    "flow",
    caption="What flows from picture and sentence to the answer. Shapes are those of the forward pass above; B is the number of questions.",
    alt="Boxes joined by arrows: " + "; ".join(f"{n} {s}".replace("\n", " ") for n, s in shape_of.items()),
    data=pd.DataFrame({"step": [n.replace("\n", " ") for n in shape_of], "shape": shape_of.values()}),
)

# %% [markdown]
# Follow {numref}`fig-01-what-is-vqa-flow` from the left. A picture becomes a row of {term}`image tokens <image token>`, one for each cell; a sentence becomes a few
# {term}`text tokens <text token>`; from there on nothing knows which was which, all are vectors. The two meet in the fusion, and *how* they
# meet is the subject of chapter 3. The last box has one number for each answer in $\mathcal A$; the softmax of {eq}`eq-01-vqa` makes probabilities of them:

# %%
probability = out.logits[0].softmax(0)
best = probability.topk(4)
print(four[0].question)
names = [answers.symbols[i] for i in best.indices]
pd.DataFrame({"answer": names, "probability": best.values.numpy().round(4)})

# %% [markdown]
# ## Questions are programs
#
# Where does the truth come from? Each question of the scenes was written twice: once in English, once as a nested list that a small interpreter
# runs on the list of objects. Here is the smallest world with a question in it, three objects typed by hand:

# %%
from vqa_core.data.scenes import Scene, SceneObject, execute

red_circle = SceneObject("large", "solid", "red", "circle", 0.2, 0.5, 0.135)
red_cross = SceneObject("small", "striped", "red", "cross", 0.7, 0.3, 0.085)
blue_circle = SceneObject("small", "solid", "blue", "circle", 0.7, 0.8, 0.085)
small = Scene((red_circle, red_cross, blue_circle))

# %%
circle = ["unique", ["filter", "large", "circle"]]
red, striped = ["has", "red", circle], ["has", "striped", circle]
colour = ["query", "colour", circle]
for program in (["count", ["filter", "red"]], colour, red, striped):
    print(execute(program, small).rjust(4), " ", program)

# %% [markdown]
# Programs nest. *Is the large circle either red or striped, but not both?* is the exclusive-or of the last two lines:

# %%
execute(["xor", red, striped], small)

# %% [markdown]
# Since `filter` says which objects matter, every question also knows *where* its answer is: a **region mask**, the pixels of all objects that
# the program names. A model that is right while it looks elsewhere can be caught; chapter 9 does so.
#
# ### Balance: every question has a partner
#
# The scenes come in pairs. Whatever is asked about one picture is asked about its partner in the same words, *and has another answer there*. This is the
# lesson of VQA v2 {cite:p}`goyal2017vqa2,zhang2016yinyang`, whose pairs were collected by people, built in from the start.

# %%
left = ask_about("spatial_relation", 14)
partner = shown[left].meta["partner"]
right = next(i for i, s in enumerate(shown) if s.question_id == partner)
[(shown[i].question, shown[i].answer) for i in (left, right)]

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10, 4), width_ratios=[1, 1, 1])
for ax, i in zip(axes, (left, right)):
    ax.imshow(shown.picture(shown[i].picture_id))
    ax.contour(shown.region_mask(i), levels=[0.5], colors="white", linewidths=5)
    ax.contour(shown.region_mask(i), levels=[0.5], colors="#cc183c", linewidths=2.5)
    ax.set_title(shown[i].answer, weight="bold", fontsize=14)
axes[2].imshow(np.where(shown.region_mask(right)[..., None], shown.picture(shown[right].picture_id), 225))
axes[2].set_title("region mask (right picture)", fontsize=11)
for ax in axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
fig.suptitle(shown[left].question, fontsize=14)
both = [shown[i].answer for i in (left, right)]
chapter.figure(
    fig,
    "partners",
    caption="The same question about two pictures of a pair, with different answers. Outlined are the objects that the answer depends on; "
    "the region mask keeps them and greys out the rest.",
    alt=f"Two drawn pictures and a mask. {shown[left].question} {both[0]} on the left, {both[1]} on the right.",
    data=pd.DataFrame({"picture": ["left", "right"], "question": shown[left].question, "answer": both}),
    picture=True,
)

# %% [markdown]
# Balance can be *proved* to shut out the words, without any statistics. A predictor that sees only $q$ gives both pictures of a pair the same answer
# $g(q)$; their true answers $a_1$ and $a_2$ differ; so it is right on at most one of the two:
#
# $$
# \tfrac12 \bigl(\mathbb 1[g(q) = a_1] + \mathbb 1[g(q) = a_2]\bigr) \;\le\; \tfrac12 \quad\text{for every pair,}
# $$ (eq-01-pair)
#
# and where the answers are *yes* and *no* it is right on exactly one. For open questions the bound is loose. There, the generator draws the answers so that each of $m$ options is equally likely given the words, and chance is the mean of $1/m$.

# %%
FAMILIES = scenes.FAMILIES
example = {f: next(s for s in shown if s.family == f) for f in FAMILIES}
chance = {f: test.chance(f) for f in FAMILIES} | {"all": test.chance()}
chapter.value("chance", chance["all"], exact=True)
families = pd.DataFrame({"family": [f.replace("_", " ") for f in example]})
families["kind"] = [s.kind for s in example.values()]
families["an example"] = [f"{s.question} → {s.answer}" for s in example.values()]
families["chance"] = [chance[f] for f in example]

# %% tags=["hide-input"]
chapter.table(
    families,
    "families",
    caption="The eight question families, and the accuracy of the best guess from the words.",
    formats={"chance": ".1%"},
)

# %% [markdown]
# Over all families together chance is {val}`01_what_is_vqa.chance:.1%`. That, not zero and not one half, is where a model's merit begins.
#
# ## A first model, and three ways to blind it
#
# Chapter 3 trains two dozen fusions on the frozen tokens of these scenes, each from {val}`01_what_is_vqa.seeds` seeds. Four of them are enough to see what VQA is. Two are
# blind on one side on purpose: **words only** gets a blank picture, **picture only** a blank question. **Concatenate** sums the
# picture up in one vector and puts the question's vector beside it. **Attend, then concatenate** lets the question look at the cells first.

# %%
truth = np.array([s.answer for s in test])
family_of = np.array([s.family for s in test])
pairs = np.array([test.picture_index(s.picture_id) // 2 for s in test])


def correct(unit, predicted="predicted_test"):
    """(S, Q): which questions the models of each seed got right."""
    mine = [r for r in runs if r.spec.unit == unit]
    symbols = np.array(mine[0].details["answers"])
    return np.stack([symbols[r.arrays[predicted]] == truth for r in mine])


# %%
scores = {
    "words only": correct("question_only"),
    "picture only": correct("picture_only"),
    "concatenate": correct("pool_concat"),
    "attend, then concatenate": correct(KEPT),
    "the same, wrong picture": correct(KEPT, "predicted_shuffled"),
}

# %%
from vqa_core.evaluation.accuracy import by_family

parts = {m: by_family(right, family_of, groups=pairs) for m, right in scores.items()}
table = pd.concat(parts, names=["model"]).reset_index()
table["chance"] = table["family"].map(chance)
table.query("family == 'all'").drop(columns="family").set_index("model").round(3)

# %% [markdown]
# The fifth row is a test of its own. The **shuffled-picture baseline** takes the best of the four as it is and shows it, for each question, *another question's
# picture*. Whatever it still scores, it owes to the words and to luck; what it loses, it owed to the right picture.

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(8.2, 5.4))
y = {f: -k for k, f in enumerate(chance)}
for k, (title, rows) in enumerate(table.groupby("model", sort=False)):
    where = rows["family"].map(y) + 0.28 - 0.14 * k
    bars = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    ax.errorbar(rows["mean"], where, xerr=np.clip(bars, 0, None), ls="", marker=figures.MARKERS[k], label=title)
for f in y:
    ax.plot([chance[f]] * 2, [y[f] - 0.42, y[f] + 0.42], color="#808890", ls="-", marker="", lw=2)
ax.plot([], [], color="#808890", ls="-", marker="", lw=2, label="chance")
ax.set(yticks=list(y.values()), yticklabels=[f.replace("_", " ") for f in y], xlim=(0, 1.02), xlabel="accuracy")
ax.xaxis.set_major_formatter("{x:.0%}")
ax.grid(axis="y", visible=False)
fig.legend(loc="outside upper center", ncols=3)
top = {m: t.set_index("family")["mean"]["all"] for m, t in table.groupby("model", sort=False)}
chapter.figure(
    fig,
    "families_accuracy",
    caption="Accuracy by question family. Bars are 95 % intervals over seeds and pairs of pictures; the grey line is chance.",
    alt="Dots with intervals for nine rows of question families. Over all: "
    + ", ".join(f"{m} {v:.0%}" for m, v in top.items()),
    data=table,
    records=[r for r in runs if r.spec.unit in ("question_only", "picture_only", "pool_concat", KEPT)],
)

# %%
from vqa_core.evaluation.statistics import paired_difference, seeds_and_questions

keys = ("words", "picture", "concat", "attend", "shuffled")
xor = family_of == "exclusive_or"
for key, right in zip(keys, scores.values()):
    part = seeds_and_questions(right[:, xor], pairs[xor])
    chapter.value(f"{key}.all", seeds_and_questions(right, pairs), of="questions")
    chapter.value(f"{key}.xor", part, of="questions")

# %%
attended, wrong = scores["attend, then concatenate"], scores["the same, wrong picture"]
owed = paired_difference(attended, wrong, pairs).interval
chapter.value("attend.owes", owed, of="questions")
chapter.value("seeds", len(attended))
print(owed)

# %% [markdown]
# Read {numref}`fig-01-what-is-vqa-families-accuracy` from its last row.
#
# - **Words only** is at {val}`01_what_is_vqa.words.all:ci.1%`, chance being {val}`01_what_is_vqa.chance:.1%`. In the closed families its interval has no width: by
#   {eq}`eq-01-pair` it *must* be right on exactly one picture of each pair that it answers with yes or no. (That is why whole pairs are drawn for the intervals here: two partners are one measurement.)
# - **Picture only** is at {val}`01_what_is_vqa.picture.all:ci.1%`. It cannot even know whether a number or a colour is wanted.
# - **Concatenation** reaches {val}`01_what_is_vqa.concat.all:ci.1%`. It has both sides in hand, and yet on exclusive-or it
#   stands at {val}`01_what_is_vqa.concat.xor:.1%`.
# - **Attending first** gives {val}`01_what_is_vqa.attend.all:ci.1%`, and {val}`01_what_is_vqa.attend.xor:.1%` on exclusive-or.
# - **The same model with the wrong picture** falls to {val}`01_what_is_vqa.shuffled.all:ci.1%`. It owes {val}`01_what_is_vqa.attend.owes:.1p` of its accuracy to having the right picture.
#
# Nothing here is about "understanding". It is a statement that can be checked: with the picture exchanged, the accuracy is gone; so it came from the picture.
#
# ## Baselines that see no picture
#
# Now the same scepticism for data that others made. Four programs, none of which opens a picture, answer the test questions of every data set
# that is on this machine:
#
# | baseline | what it answers |
# |---|---|
# | `majority` | the most frequent training answer, always |
# | `majority_by_question` | the most frequent training answer to the very same words |
# | `question_only` | what logistic regression on the question's words and pairs of words says ({term}`language prior`) |
# | `lookup` | the answer to the most similar training question *about the same picture*: it compares names of files, not pixels |
#
# The last one is the whole of this function:
#
# ```{literalinclude} /vqa_core/evaluation/baselines.py
# :pyobject: lookup
# :language: python
# ```

# %%
from vqa_core.experiments.baselines import METHODS, PROTOCOLS

blind = {r.spec.unit: r for r in experiments.load("baselines", chapter.profile)}
present = {r.spec.data.protocol.dataset for r in blind.values()}
absent = sorted({p.dataset for p in PROTOCOLS.values()} - present)
print(f"{len(blind)} of {len(PROTOCOLS)} protocols; absent: {absent}")

# %% tags=["hide-input"]
for name, records in {"baselines": blind.values(), "networks": runs}.items():
    seconds = sum(r.seconds for r in records)
    chapter.value(f"seconds.{name}", seconds, n=len(records), of="runs", unit="s")
lines = "".join(f"<li><code>python -m vqa_core data fetch {name}</code></li>" for name in absent)
box = f"""<div class="admonition note"><p class="admonition-title">Data that are not on this machine</p>
<p>The rows of these data sets are missing below. The environment variable <code>VQA_DATA</code> names the folder that
holds one folder per data set; the data come there with</p><ul>{lines}</ul><p>Then build this chapter again.</p></div>"""
HTML(box if absent else "<p>All data sets of this chapter are on this machine.</p>")

# %% [markdown]
# VQA-RAD comes in several forms, because its training questions are not independent of its test questions, as we shall see. *3064* is everything that was
# released; *2780* leaves out the re-wordings that belong to a test question; *1797* all re-wordings; *disjoint* every question about a test picture as well. The test
# is always the same; *freeform* is the part of it that some papers report.

# %%
FACTS = {
    "training questions": "train_questions",
    "test questions": "test_questions",
    "test pictures": "test_pictures",
    "seen in training": "shared_pictures",
    "re-wordings": "rewordings",
}
facts = pd.DataFrame({"data set": [PROTOCOLS[unit].title for unit in blind]})
for column, name in FACTS.items():
    facts[column] = [r.details[name] for r in blind.values()]

# %% tags=["hide-input"]
chapter.table(
    facts,
    "data",
    caption="What is trained and tested on. *Seen in training*: test pictures that training questions are about. "
    "*Re-wordings*: training questions that are a test question in other words, with its picture and its answer.",
    records=blind.values(),
)


# %%
def interval(unit, name):
    """Accuracy of a baseline; pictures are drawn, for the scenes pairs of them."""
    arrays, step = blind[unit].arrays, 2 if unit == "scenes" else 1
    return seeds_and_questions(arrays[name][None], arrays["picture"] // step)


by_unit = {(u, name): interval(u, name) for u in blind for name in METHODS}


# %% tags=["hide-input"]
ABSENT = "not measured here (the data are absent)"


def in_words(i):
    return f"{i.mean:.1%} (95% CI {100 * i.low:.1f}–{100 * i.high:.1f}, n = {i.n:,} questions)".replace("%", "\u202f%")


for unit, name in ((u, m) for u in PROTOCOLS for m in METHODS):
    if (unit, name) in by_unit:
        chapter.value(f"{unit}.{name}", by_unit[unit, name], of="questions")
        chapter.value(f"{unit}.{name}.text", in_words(by_unit[unit, name]))
    else:
        chapter.value(f"{unit}.{name}.text", ABSENT)

# %%
given_away = ABSENT
if {"vqa_rad_3064", "vqa_rad_2780"} <= blind.keys():
    leaky, clean = blind["vqa_rad_3064"].arrays, blind["vqa_rad_2780"].arrays
    both = leaky["lookup"][None], clean["lookup"][None]
    given_away = paired_difference(*both, leaky["picture"]).interval
    chapter.claim("V2", given_away, of="questions")
found = given_away if given_away is ABSENT else in_words(given_away)
chapter.value("vqa_rad.given_away.text", found)
print(given_away)

# %% tags=["hide-input"]
rows = [(PROTOCOLS[u].title, m, i.mean, i.low, i.high, i.n) for (u, m), i in by_unit.items()]
drawn = pd.DataFrame(rows, columns=["data set", "baseline", "mean", "low", "high", "n"])
ceiling = [r.metrics["ceiling"].value for r in blind.values()]
drawn["ceiling"] = np.repeat(ceiling, len(METHODS))

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(8.2, 0.62 * len(blind) + 1.5))
for k, name in enumerate(METHODS):
    part = drawn[drawn["baseline"] == name]
    where = -np.arange(len(part)) + 0.24 - 0.16 * k
    bars = np.clip([part["mean"] - part["low"], part["high"] - part["mean"]], 0, None)
    ax.errorbar(part["mean"], where, xerr=bars, ls="", marker=figures.MARKERS[k], label=name.replace("_", " "))
ax.plot(ceiling, -np.arange(len(blind)), ls="", marker="|", ms=16, mew=2, color="#808890", label="answers reachable")
ax.set(
    yticks=-np.arange(len(blind)), yticklabels=[PROTOCOLS[u].title for u in blind], xlim=(0, 1.02), xlabel="accuracy"
)
ax.xaxis.set_major_formatter("{x:.0%}")
ax.grid(axis="y", visible=False)
fig.legend(loc="outside upper center", ncols=5, columnspacing=1.2, handletextpad=0.3)
best = drawn.loc[drawn.groupby("data set", sort=False)["mean"].idxmax()]
said = ", ".join(f"{r['data set']} {r['mean']:.0%} by {r['baseline'].replace('_', ' ')}" for _, r in best.iterrows())
chapter.figure(
    fig,
    "blind",
    caption="How far four programs get that never open a picture. Bars are 95 % intervals over pictures; the grey tick is "
    "the share of test answers that occur in training.",
    alt=f"Dots with intervals, one row for each data set. The best blind answer: {said}",
    data=drawn,
    records=blind.values(),
)

# %% [markdown]
# {numref}`tab-01-what-is-vqa-data` says what was asked, {numref}`fig-01-what-is-vqa-blind` how far one gets blindly. The scenes in the first row are at chance, as they must be
# ({val}`01_what_is_vqa.scenes.question_only:.1%` for `question_only`). The others, where they are present, have characters of their own.
#
# - **easy-VQA** {cite:p}`zhou2019easyvqa` is easy for the blind too. Each picture has one shape, so *is there a green shape?* is mostly answered "no", and *is there not a circle?* "yes".
#   The most frequent answer to the very same words: {val}`01_what_is_vqa.easy_vqa.majority_by_question.text`.
# - **NLVR** {cite:p}`suhr2017nlvr` shows nearly every sentence with several pictures, of which some make it true and others false. That is balance, and it works. The words:
#   {val}`01_what_is_vqa.nlvr.question_only.text`. Always the same answer: {val}`01_what_is_vqa.nlvr.majority.text`.
# - **SHAPES** {cite:p}`andreas2016nmn` leans to one answer. Always that one: {val}`01_what_is_vqa.shapes.majority.text`.
# - **DAQUAR** {cite:p}`malinowski2014daquar` asks open questions about rooms, and rooms have furniture in its usual place. Always the same answer:
#   {val}`01_what_is_vqa.daquar.majority.text`. The words: {val}`01_what_is_vqa.daquar.question_only.text`.
# - **VQA-RAD** {cite:p}`lau2018vqarad` is the one to look at for longer.
#
# ### A lookup table in a hospital
#
# VQA-RAD holds questions that clinicians asked about radiology pictures. Its authors had many of them written a second time, as a *template re-wording*, so
# that models would meet one question in two forms. In the released files a question can lie in the test set **while its own re-wording, about the same picture
# and with the same answer, lies in training**. Some of them, as they stand in the files:

# %%
from vqa_core.data import load
from vqa_core.data.vqa_rad import rewordings_of


def leaked():
    """Open test questions, each with its re-wording in training."""
    train, tests = load("vqa_rad", "train_3064"), load("vqa_rad", "test")
    own = rewordings_of(train.samples, tests.samples)
    before = {s.meta["qid"] + 1: s for s in tests if s.kind == "open"}
    found = [(before.get(s.meta["qid"]), s) for s in train if s.question_id in own]
    return [(t.question, s.question, s.answer) for t, s in found if t]


# %% tags=["hide-input"]
NO_RAD = HTML("<p><em>VQA-RAD is not on this machine.</em></p>")
columns = ["asked in the test", "stands in training", "answer to both"]
# shown on the page only: a data set's own words do not go into figures/
pd.DataFrame(leaked()[:6:2], columns=columns) if "vqa_rad_3064" in blind else NO_RAD

# %% [markdown]
# A program that compares sentences under the same file name needs no eyes for that. Here is `lookup`
#
# - on the questions as released: {val}`01_what_is_vqa.vqa_rad_3064.lookup.text`;
# - without the re-wordings that belong to a test question: {val}`01_what_is_vqa.vqa_rad_2780.lookup.text`;
# - without any re-wording: {val}`01_what_is_vqa.vqa_rad_1797.lookup.text`;
# - with other pictures in training than in the test, where it can only give the majority answer: {val}`01_what_is_vqa.vqa_rad_disjoint.lookup.text`.
#
# The first line minus the second, as a share of all test questions, is what the re-wordings alone are worth: {val}`01_what_is_vqa.vqa_rad.given_away.text`. The third line is no better
# than the last: with the re-wordings out, the nearest question about the same picture is *another* question, and its answer is usually wrong.
#
# For comparison: MEVF with bilinear attention, which has two pretrained image encoders, was published with {typed}`62.6` % on the freeform part of the test
# {cite:p}`nguyen2019mevf`, trained on the released questions as everybody's model was. The lookup table on that part:
# {val}`01_what_is_vqa.vqa_rad_freeform.lookup.text`. This does not say that MEVF only looked things up. It says that from such a number **one cannot tell**. Chapter 7 trains such models on either side of the leak and measures how much of the number stays.


# %% tags=["hide-input"]
def by_kind(unit):
    """Rows of the lookup baseline, closed and open questions apart."""
    found = blind[unit].arrays
    for kind, members in (("closed", ~found["open"]), ("open", found["open"])):
        i = seeds_and_questions(found["lookup"][members][None], found["picture"][members])
        yield PROTOCOLS[unit].title, kind, i.mean, i.low, i.high, i.n


forms = ("vqa_rad_3064", "vqa_rad_2780", "vqa_rad_1797", "vqa_rad_disjoint")
kinds = [row for unit in forms if unit in blind for row in by_kind(unit)]

# %% tags=["hide-input"]
percent = dict.fromkeys(("mean", "low", "high"), ".1%")
chapter.table(
    pd.DataFrame(kinds, columns=["trained on", "questions", "mean", "low", "high", "n"]),
    "lookup_by_kind",
    caption="The lookup baseline on VQA-RAD, closed and open questions apart.",
    formats=percent,
    records=[blind[unit] for unit in forms if unit in blind],
) if kinds else NO_RAD

# %% [markdown]
# Apart is how to read it: open questions are where guessing fails, and it is on the open questions that the leak gives the most.
#
# :::{tip}
# Before you train on a data set, run these four on it. If `lookup` beats `majority` by much, find out why before you write anything down.
# :::
#
# ### When ten people answer
#
# In VQA v1 and v2 each question was answered by ten people {cite:p}`antol2015vqa,goyal2017vqa2`. An answer $\hat a$ earns
#
# $$
# \operatorname{acc}(\hat a) = \frac1{10} \sum_{k=1}^{10} \min\!\Bigl(\frac{\#\{j \ne k : a_j = \hat a\}}{3},\, 1\Bigr),
# $$ (eq-01-vqa2)
#
# the mean over leaving one person out of whether at least three of the other nine agree, with part marks below that. Let $c$ people say "blue" and the others "green":

# %%
from vqa_core.evaluation.accuracy import vqa_v2_accuracy


def marks(c):
    return vqa_v2_accuracy("Blue.", ["blue"] * c + ["green"] * (10 - c))


pd.Series({c: marks(c) for c in range(6)}, name="accuracy of 'Blue.'")

# %% [markdown]
# Three agreeing people do not earn full marks, four do: {eq}`eq-01-vqa2` takes each of the three away once. And "Blue." counted as "blue", because the
# protocol strips case, articles and punctuation first. Two papers that leave that step out, or take $\min(c/3, 1)$ at its word, cannot be compared.
#
# ## Ask the model yourself
#
# Once the book has been built, the model of {numref}`fig-01-what-is-vqa-flow` answers on the command line, with its probabilities and a word on what it was trained on:
#
# ```bash
# python -m vqa_core ask scene.png "How many red circles are there?"
# ```
#
# It knows scenes, and nothing else. Show it a photograph of a cat and it will still choose among its answers; that a model should be able to *decline* is the
# subject of chapter 8.
#
# ## What we saw
#
# - VQA is classification over a list of answers, given a picture and a sentence as tokens with masks. Every other chapter changes one box of {numref}`fig-01-what-is-vqa-flow`.
# - On balanced scenes words alone earn {val}`01_what_is_vqa.words.all:.1%` (chance {val}`01_what_is_vqa.chance:.1%`); a model that attends earns
#   {val}`01_what_is_vqa.attend.all:.1%`, and {val}`01_what_is_vqa.shuffled.all:.1%` with the wrong picture.
# - Having both inputs is not using both: concatenation stays at {val}`01_what_is_vqa.concat.all:.1%`.
# - On real data the blind score is a property of the *data set*. A lookup table answers this share of VQA-RAD as released:
#   {val}`01_what_is_vqa.vqa_rad_3064.lookup.text`; without the leak: {val}`01_what_is_vqa.vqa_rad_2780.lookup.text`.
#
# Two sentences of this chapter stand in the {doc}`ledger </book/claims>`, with a rule for each:

# %%
expected = np.array([1 / s.meta["options"] for s in test])  # (Q,)
gaps = scores["words only"] - expected  # (S, Q)
members = {f: family_of == f for f in FAMILIES}
gap = {f: seeds_and_questions(gaps[:, m], pairs[m]) for f, m in members.items()}
worst = max(gap, key=lambda f: abs(gap[f].mean))
chapter.claim("V1", gap[worst], of="questions")
chapter.value("words.worst_family", worst.replace("_", " "))
print(gap[worst])

# %% [markdown]
# {verdict}`V1` (the family furthest from chance is {val}`01_what_is_vqa.words.worst_family`), {verdict}`V2`.
#
# ## Exercises
#
# One star: a few minutes. Two: some code. Three: think first.
#
# ```{exercise} ★ A bound
# :label: ex-01-bound
#
# A data set has triples instead of pairs: each question is asked about three pictures and has three different answers. What is the largest accuracy
# that a predictor can have that sees only words? And what if two of the three answers are equal?
# ```
#
# ````{solution} ex-01-bound
# :label: sol-01-bound
# :class: dropdown
#
# It says the same thing three times and is right at most once: one third. With two equal answers it may be right twice, two thirds. Balance is a property of
# *answers within a group*, not of the number of pictures.
# ````
#
# ```{exercise} ★ A program
# :label: ex-01-program
#
# Write *How many small things are to the right of the large circle?* as a program and run it on the three objects above. Then *Is there neither a green thing nor a square?*
# ```
#
# ````{solution-start} ex-01-program
# :label: sol-01-program
# :class: dropdown
# ````

# %%
right_of_it = ["count", ["filter", "small", ["right of", circle]]]
green, square = ["exist", ["filter", "green"]], ["exist", ["filter", "square"]]
neither = ["and", ["not", green], ["not", square]]
solved = [execute(p, small) for p in (right_of_it, neither)]
assert solved == ["2", "yes"]
solved

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} ★★ Spoil the balance
# :label: ex-01-spoil
#
# Keep every yes/no question whose answer is "yes", but only one in four of those with "no" (in order). What do `majority` and `question_only` reach now, trained and
# tested on sets spoilt in this way? Which of them would you have to report beside your model?
# ```
#
# ````{solution-start} ex-01-spoil
# :label: sol-01-spoil
# :class: dropdown
# ````

# %%
from vqa_core.evaluation import baselines


def spoil(data):
    closed = [s for s in data if s.kind == "closed"]
    yes, no = ([s for s in closed if s.answer == a] for a in ("yes", "no"))
    return yes + no[::4]


sets = [spoil(scenes.generate(200, seed=seed, size=32)) for seed in (1, 2)]
tried = (baselines.majority, baselines.question_only)
spoilt = {f.__name__: f(*sets).correct.mean() for f in tried}
assert spoilt["majority"] == 0.8
spoilt

# %% [markdown]
# Four of five answers are "yes" now, and that is what both find. Accuracy against one half would flatter any model; report it beside the majority.
#
# ````{solution-end}
# ````
#
# ```{exercise} ★★★ What should a perfect model score with the wrong picture?
# :label: ex-01-shuffled
#
# The shuffled-picture baseline of a *perfect* model: it answers every question correctly, for the picture it is shown, which belongs to another question. Predict its
# accuracy on existence and on counting before you compute it with `execute` (both run on any scene). Why is it what it is?
# ```
#
# ````{solution-start} ex-01-shuffled
# :label: sol-01-shuffled
# :class: dropdown
# ````

# %%
from vqa_core.evaluation.statistics import wilson


def perfect_on_wrong_pictures(family, n=400):
    data = scenes.generate(n, seed=5, size=32)
    mine = [s for s in data if s.family == family]
    own = [data.picture_index(s.picture_id) for s in mine]
    found = [execute(s.meta["program"], data.scenes[i - n // 2]) for s, i in zip(mine, own)]
    return [answer == s.answer for s, answer in zip(mine, found)]


for family in ("existence", "counting"):
    hits = perfect_on_wrong_pictures(family)
    i = wilson(sum(hits), len(hits))
    print(f"{family}: {i}; chance {chance[family]:.2f}")
    assert i.low < chance[family] < i.high

# %% [markdown]
# Chance, in both. Given the words, the true answer is uniform over its options, and the other picture knows nothing about it: *whatever* a model
# says then is right with probability $1/m$. So a shuffled score above chance does not show that a model is bad; on data that are not balanced it shows a prior, and on balanced data it shows a leak.
#
# ````{solution-end}
# ````
#
# :::{seealso}
# {doc}`Chapter 3 <03_fusion>` opens the box named *fusion*. How to read intervals and verdicts: {doc}`/book/how_to_read`.
# :::
