# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention maps
#
# A red spot on a picture is the most convincing figure of a paper, and often the least tested. It says "the model looked here", and nobody can say that it is wrong, because nobody knows where the model
# should have looked. Whether attention explains anything has been argued both ways {cite:p}`jain2019attention,wiegreffe2019attention`.
#
# On drawn scenes we do know. Every question comes with the pixels that its answer depends on, so that a map is right or wrong like an answer is. This chapter makes maps in seven ways on several models, scores
# them against the truth and against maps that never saw a model, takes away what they point at, and destroys the model to see whether the map notices.
#
# :::{admonition} What you will be able to do
# :class: tip
# - get a map from any model of this book by one call, and show that it belongs to the very answer that was given;
# - score a map against a region, and know what a map that knows nothing scores;
# - say what attention, rollout, relevance, Grad-CAM, integrated gradients and occlusion compute, and where each fails;
# - run the two sanity checks that any map should pass before it is shown to anyone.
# :::
#
# **You need** attention and its masks (chapter 2), fusion by attention (chapter 3), and multimodal transformers (chapter 4).\
# **What it costs**: training and explaining {val}`09_attention_maps.size.models` models with {val}`09_attention_maps.size.seeds` seeds each took {val}`09_attention_maps.time.experiment:.0f` seconds of computing on
# {val}`09_attention_maps.time.device`.

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import textwrap

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vqa_core import experiments, figures
from vqa_core.evaluation import claims
from vqa_core.experiments import attention_maps, similarity_maps, transformers
from vqa_core.experiments import attention_maps_drawing as drawing
from vqa_core.experiments import attention_maps_readout as readout
from vqa_core.experiments.attention_maps import METHODS
from vqa_core.experiments.attention_maps_readout import OWN, TITLES

figures.use_style()
chapter = figures.Chapter("09_attention_maps", profile=PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
records = experiments.load("attention_maps", profile)
runs, known = readout.by_name(records), readout.baselines_of(records)
drawn, known_drawn = readout.by_name(records, of_phantoms=True), readout.baselines_of(records, of_phantoms=True)
config = attention_maps.PROFILES[profile]
data = known.spec.data.questions
test, _ = transformers.questions_of(data, "test")
rows = np.array(known.details["rows"])
pictures = [test[i].picture_id for i in rows]

# %% tags=["hide-input"]
chapter.value("size.models", len(runs) + len(drawn))
chapter.value("size.seeds", config.model.seeds)
chapter.value("size.questions", len(rows))
chapter.value("size.pictures", len(set(pictures)))
chapter.value("size.checked", min(config.looking.checked, len(rows)))
chapter.value("size.curves", min(config.looking.curves, len(rows)))
chapter.value("size.steps", config.looking.steps)
chapter.value("size.cells", data.scenes.size // attention_maps.CELL)
chapter.value("time.experiment", sum(r.seconds for r in records), n=len(records), of="units")
chapter.value("time.device", records[0].device)

# %% [markdown]
# ## What a map is
#
# A picture is $N$ image tokens, one for each cell of a grid. A **map** gives each cell a weight: $m_i \ge 0$, $\sum_i m_i = 1$, and $m_i = 0$ where a cell is masked. A map always belongs to *one answer* $a$ of *one
# forward pass*. The first thing to ask of an explanation is therefore not whether it is pretty: are the logits those that the model gives when nobody is looking?
#
# All methods have one interface.
#
# ```{literalinclude} /vqa_core/explain/maps.py
# :pyobject: explain_tokens
# ```
#
# Let us take a small transformer with random weights, three image tokens of which the last is padding, and two words.

# %%
from vqa_core.data.types import Batch
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.explain import explain_tokens, methods_for
from vqa_core.fusion.transformer import EarlyConcatenation
from vqa_core.heads.classifier import LinearHead
from vqa_core.model import VQAModel


class Padded(CachedTokens):
    """Tokens whose last one is padding."""

    def forward(self, tokens):
        return super().forward(tokens, torch.tensor([[True, True, False]]).expand(len(tokens), 3))


# %%
torch.manual_seed(0)
toy = VQAModel(Padded(4), CachedTokens(4), EarlyConcatenation(4, 4, 8, depth=2, heads=2), LinearHead(8, 3)).eval()
asked = Batch(torch.randn(1, 3, 4), torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), None)
plain = toy(*asked[:3]).logits
for method in methods_for(toy):
    found = explain_tokens(toy, asked, method)
    print(f"{method:21}", found.maps[0].numpy().round(3), "same logits:", torch.equal(found.logits, plain))

# %% [markdown]
# Seven maps of one answer, and they do not agree. The masked token has no weight in any of them, and the logits are the same *bit for bit*: the hooks that collect the weights only look on. In the experiment below this
# is checked for every model, seed and method ({val}`09_attention_maps.check.same_logits:,d` explanations), and a single difference would have stopped it.

# %% tags=["hide-input"]
chapter.value("check.same_logits", sum(r.metrics["same_logits"].n for r in (runs | drawn).values()))
assert all(r.metrics["same_logits"].value == 1 for r in (runs | drawn).values())

# %% [markdown]
# ## Seven ways to make one
#
# **Own attention.** The weights that the model used, $A = \operatorname{softmax}(QK^\top/\sqrt d)$, of the last layer, averaged over heads and over the tokens that read; for SAN, BAN and CMSA the maps that
# the papers print {cite:p}`yang2016san,kim2018ban,gong2021cmsa`.
#
# **Rollout** {cite:p}`abnar2020rollout` follows the attention through all $L$ layers. A residual connection is an identity; so with the mean over heads $\bar A_\ell$
#
# $$ R = \hat A_L \cdots \hat A_2 \hat A_1, \qquad \hat A_\ell = \tfrac12\,(\bar A_\ell + I) . $$
#
# It knows neither the answer nor the values that were read.
#
# **Relevance propagation** {cite:p}`chefer2021generic` asks of each weight how the answer would change with it, and keeps what speaks for the answer, $\nabla A = \partial y_a / \partial A$:
#
# $$ R \leftarrow R + \bar A R, \qquad \bar A = \mathbb{E}_\text{heads} \big[ (\nabla A \odot A)^+ \big] . $$
#
# For two streams there is one $R$ for each pair of modalities, and a rule for each kind of attention.
#
# **Grad-CAM** {cite:p}`selvaraju2017gradcam` needs no attention: $m_i = \big(\sum_k \alpha_k X_{ik}\big)^+$ with features $X$ and $\alpha_k$ the mean of $\partial y_a/\partial X_{ik}$ over cells. **Grad-CAM++** {cite:p}`chattopadhay2018gradcampp`
# weighs the cells in that mean.
#
# **Integrated gradients** {cite:p}`sundararajan2017axiomatic` add up gradients on the way from a blank input $x'$ to the real one $x$, here in {val}`09_attention_maps.size.steps` steps,
#
# $$ m_i = (x_i - x'_i) \int_0^1 \frac{\partial y_a}{\partial x_i}\big(x' + t\,(x - x')\big)\,\mathrm{d}t, \qquad \sum_i m_i = y_a(x) - y_a(x') . $$
#
# **Occlusion** {cite:p}`zeiler2014visualizing` hides one cell after another and notes how far the answer falls. It is the only one that *does* something to the picture.
#
# ```{literalinclude} /vqa_core/explain/gradients.py
# :pyobject: grad_cam_plus_plus
# ```
#
# A model with two sides and no fusion, such as CLIP (chapter 5), has **similarity maps**: the cosine of each place with the sentence. They are called in the same way, and have {ref}`a section of their own <similarity-maps>`.
#
# ## The models, and what they are asked
#
# The models of scenes read the same frozen tokens: a grid of {val}`09_attention_maps.size.cells` × {val}`09_attention_maps.size.cells` cells, in which those without an object are masked. They are asked for an attribute of one object ("What colour is the large circle?") or whether there is one. The
# answer depends on that object, and its pixels are the **region**. A question whose answer is "no" depends on nothing that is there, and is left out: {val}`09_attention_maps.size.questions:,d` questions about {val}`09_attention_maps.size.pictures:,d` pictures remain.
#
# Recipes were chosen on validation. Before the last of these choices (batch and rate of the two transformers) and before the number of phantoms was cut for time, test scores of single models had been on the screen: take differences between models with a grain of salt.

# %% tags=["hide-input"]
chapter.table(
    readout.models_table(runs | drawn),
    "models",
    records=records,
    formats={"accuracy": ".1%"},
    caption="The models: accuracy on all test questions of both families (mean over seeds, n questions), and how many methods fit. 'attend, concat' is the model behind `python -m vqa_core ask`.",
)

# %% tags=["hide-input"]
show = runs["cross_attention"]
shown = len(show.arrays["cells"])
some = np.sort(np.random.default_rng(0).choice(shown, 6, replace=False))


# %% tags=["hide-input"]
def seen(at):
    """Pictures, regions and questions at positions ``at`` of the explained questions."""
    index = [int(rows[i]) for i in at]
    return [test.picture(test[i].picture_id) for i in index], [test.region_mask(i) for i in index], index


def said_of(record, at):
    """Question, and the answer of seed 0."""
    answers = record.details["answers"]
    return [f"{test[int(rows[i])].question} – {answers[record.arrays['said'][i]]}" for i in at]


# %% [markdown]
# ## Side by side
#
# Six questions, drawn by a fixed seed and not by us, and all maps of the co-attention model. Below each map stands the share of its weight that lies inside the region.

# %% tags=["hide-input"]
maps = {TITLES[m]: readout.grid_maps(show, m)[some] for m in TITLES}
notes = readout.inside_notes(show, TITLES, some)
pics, regions, index = seen(some)

# %% tags=["hide-input"]
chapter.figure(
    drawing.gallery(pics, regions, maps, said_of(show, some), notes),
    "side_by_side",
    data=readout.weight_table(maps, index, [test[i].question for i in index]),
    records=[show],
    picture=True,
    caption="One answer, seven maps. The blue outline is the object that the answer depends on; red is the weight of a cell, the strongest cell of each map in full red. Co-attention, first seed; questions drawn at random.",
    alt="Six rows with a question, its picture with the region outlined, and seven maps each. In the first row: "
    + ", ".join(f"{t} {of[0]}" for t, of in notes.items())
    + ".",
)

# %% [markdown]
# ### The same question, another picture
#
# Pictures of the scenes come in pairs, and each question is asked about both, in the same words, with another answer. A map of the question alone would stay where it is.

# %% tags=["hide-input"]
both = readout.partners(test.samples, rows[:shown])
both = both[np.sort(np.random.default_rng(1).choice(len(both), min(4, len(both)), replace=False))]
grids = readout.grid_maps(show, "rollout")
sides = [seen(pair) for pair in both]
asked_twice = [test[int(rows[a])].question for a, _ in both]
said_twice = [[said_of(show, [i])[0].split(" – ")[1] for i in pair] for pair in both]

# %% tags=["hide-input"]
by_side = {f"picture {k + 1}": grids[both[:, k]] for k in (0, 1)}
chapter.figure(
    drawing.pair_grid([s[0] for s in sides], [s[1] for s in sides], grids[both], asked_twice, said_twice),
    "pairs",
    data=readout.weight_table(by_side, [s[2][0] for s in sides], asked_twice),
    records=[show],
    picture=True,
    caption="One question, two pictures: rollout of co-attention, first seed, with the answer that the model gives. Pairs drawn at random.",
    alt=f"{len(both)} rows; in each the same question about two pictures, with the region outlined and the map of the answer beside each picture.",
)

# %% [markdown]
# ### Word by word
#
# A transformer has a map for every token of the question. Here the question's tokens are a token for the whole of it, then its slots.

# %% tags=["hide-input"]
names = readout.slot_names(profile)
few = np.arange(min(4, len(show.arrays["words"])))
words = readout.words_of(show.arrays["word_tokens"][few], show.arrays["word_mask"][few], names)

# %% tags=["hide-input"]
weights = show.arrays["words"][few].transpose(1, 0, 2).astype(float)  # (T, K, N)
by_word = readout.scattered(weights, show.arrays["cells"][few]).transpose(1, 0, 2, 3)  # (K, T, 8, 8)
by_token = {f"token {t}": of for t, of in enumerate(by_word.transpose(1, 0, 2, 3), 1)}
pics, regions, index = seen(few)
word_table = readout.weight_table(by_token, index, [test[i].question for i in index])

# %% tags=["hide-input"]
chapter.figure(
    drawing.word_grid(pics, regions, by_word, words, said_of(show, few)),
    "word_by_word",
    data=word_table,
    records=[show],
    picture=True,
    caption="Where each token of a question looks: attention of the last layer of co-attention, mean over heads, first seed; the first questions of the test set.",
    alt=f"{len(few)} rows with a picture and a map for each token of its question, {max(map(len, words))} at most; red cells are the objects that a token attends to.",
)

# %% [markdown]
# ### Head by head
#
# Averaging over heads hides that they divide the work.

# %% tags=["hide-input"]
heads = readout.scattered(show.arrays["heads"][:, :, :1].astype(float), show.arrays["cells"][:1])[:, :, 0]
pics, regions, index = seen([0])
touched = regions[0].reshape(8, -1, 8, regions[0].shape[0] // 8).any(axis=(1, 3))  # (8, 8)
inside = heads[..., touched].sum(-1)  # (layers, heads)
named = {f"layer {k}, head {h}": [of] for k, layer in enumerate(heads, 1) for h, of in enumerate(layer, 1)}

# %% tags=["hide-input"]
chapter.figure(
    drawing.head_grid(pics[0], regions[0], heads, said_of(show, [0])[0]),
    "heads",
    data=readout.weight_table(named, index, [test[index[0]].question]),
    records=[show],
    picture=True,
    caption="Every head of every layer of co-attention on the first test question: the weight that the question's tokens give to each cell.",
    alt=f"{len(heads)} rows of {heads.shape[1]} heads over the same picture. The share of the weight in cells that touch the region goes from {np.min(inside):.0%} to {np.max(inside):.0%}.",
)

# %% [markdown]
# ## Scores
#
# A region is a set of pixels $G$, a map is constant in each cell. Four scores, all 1 at best:
#
# - **Pointing game** {cite:p}`zhang2016excitation`: does the highest cell touch the region? Equally high cells share.
# - **IoU**: the largest $|G \cap M_t| / |G \cup M_t|$ of $M_t = \{m \ge t\}$ over all thresholds.
# - **Energy inside**: $\sum_{i \in G} m_i$.
# - **AUPRC**: average precision of the pixels' weights as a classifier of $G$.
#
# ```{literalinclude} /vqa_core/explain/scores.py
# :pyobject: pointing_game
# ```
#
# None of them is worth anything without knowing what a map scores that knows *nothing*: a constant map scores the area. And five maps that never saw a model: a **random cell**; the **centre bias**, the mean of the regions of training
# questions; an **edge detector**; **any object**, the cells that hold something, all alike; and, as the other end, **the right cells**, the best map that this grid allows.

# %%
from vqa_core.explain import scores as score

region = np.zeros((1, 4, 4), dtype=bool)
region[0, 1:3, 1:3] = True
constant, sharp = np.ones((1, 4, 4)), region * 1.0
for name, function in score.SCORES.items():
    print(f"{name:14} constant {function(constant, region)[0]:.2f}   right {function(sharp, region)[0]:.2f}")

# %% tags=["hide-input"]
scored = readout.score_table(runs, known, pictures)
pointing = scored[scored["metric"] == "pointing_game"]

# %% tags=["hide-input"]
chapter.figure(
    drawing.score_rows(pointing, "pointing-game accuracy", drawing.BASELINE_LINES),
    "pointing_game",
    data=scored,
    records=records,
    caption="How often the highest cell of a map touches the region, with intervals over seeds and pictures. Dashed: maps that know no model. The table behind the figure has all four scores.",
    alt="Intervals by model. " + readout.spread(pointing),
)

# %% tags=["hide-input"]
lines = pointing[pointing["model"] == readout.NO_MODEL].set_index("method")
models_only = pointing[pointing["model"] != readout.NO_MODEL]
top, low = models_only.loc[models_only["mean"].idxmax()], models_only.loc[models_only["mean"].idxmin()]
winners = readout.beats(scored)
over_objects = readout.beats(scored, "any object", 0.0)

# %% tags=["hide-input"]
for key, name in (
    ("centre", "centre bias"),
    ("objects", "any object"),
    ("edges", "edge detector"),
    ("ceiling", "the right cells"),
):
    chapter.value(f"baseline.{key}", float(lines.loc[name, "mean"]), n=len(rows), of="questions")
for key, of in (("best", top), ("worst", low)):
    chapter.value(f"{key}.pointing", float(of["mean"]), n=int(of["n"]), of="questions")
    chapter.value(f"{key}.name", f"{of['method']} of {of['model']}")
chapter.value("pointing.maps", len(models_only))
chapter.value("pointing.beat_centre", len(winners))
chapter.value("pointing.beat_objects", len(over_objects))

# %% [markdown]
# The best is {val}`09_attention_maps.best.name` with {val}`09_attention_maps.best.pointing:.1%`, the worst {val}`09_attention_maps.worst.name` with {val}`09_attention_maps.worst.pointing:.1%`; the centre bias has
# {val}`09_attention_maps.baseline.centre:.1%`. Of {val}`09_attention_maps.pointing.maps` pairs of model and method, {val}`09_attention_maps.pointing.beat_centre` beat it by twenty points or more with separated intervals.
#
# That is an easy line to pass here, because empty cells are masked: whoever points at *any* object is better than the centre. The honest line is "any object", {val}`09_attention_maps.baseline.objects:.1%`, and {val}`09_attention_maps.pointing.beat_objects` of the pairs lie above it with separated intervals.
# A saliency map that finds objects without reading the question would stop there.

# %% tags=["hide-input"]
by_both = models_only.set_index(["model", "method"])["mean"]
stacks = [METHODS[u].title for u in ("early_concatenation", "cross_attention")]
looks = [METHODS[u].title for u in ("san", "ban", "fusion.kept")]
chapter.value("own.stacks", float(by_both[stacks][:, TITLES[OWN]].mean()), n=len(rows), of="questions")
chapter.value("own.looks", float(by_both[looks][:, TITLES[OWN]].mean()), n=len(rows), of="questions")
for method in ("rollout", "relevance"):
    chapter.value(f"{method}.stacks", float(by_both[stacks][:, TITLES[method]].mean()), n=len(rows), of="questions")
for key, method in (("cam", "grad_cam"), ("gradients", "integrated_gradients"), ("occlusion", "occlusion")):
    chapter.value(f"{key}.all", float(by_both[:, TITLES[method]].mean()), n=len(rows), of="questions")

# %% [markdown]
# Reading the figure by method:
#
# - **Own attention** depends on what is read behind it. A model that looks once and answers from what it saw (SAN, BAN, attend and concat) has {val}`09_attention_maps.own.looks:.1%` on average; the two stacks {val}`09_attention_maps.own.stacks:.1%`. In a stack
#   the last layer need not be where the question meets its object: what a token carries by then was read in a layer before.
# - **Rollout** follows it back through the layers and has {val}`09_attention_maps.rollout.stacks:.1%` on the stacks, **relevance** {val}`09_attention_maps.relevance.stacks:.1%`.
# - **Grad-CAM** ({val}`09_attention_maps.cam.all:.1%` over all models) averages the gradient over cells *before* it looks at a cell. What is left says which *features* speak for the answer, and the map points at whatever has most of them:
#   if the answer is "red", at any red thing.
# - **Integrated gradients** ({val}`09_attention_maps.gradients.all:.1%`) and **occlusion** ({val}`09_attention_maps.occlusion.all:.1%`) ask of each cell on its own, and need nothing of the model but that it runs.

# %% tags=["hide-input"]
mean_scores = scored.pivot_table(index="method", columns="metric", values="mean", sort=False).reset_index()
mean_scores.columns.name = None
mean_scores = mean_scores.rename(columns=lambda c: c.replace("_", " "))
mean_scores.insert(1, "models", mean_scores["method"].map(scored.groupby("method")["model"].nunique()))
mean_scores.insert(2, "n", len(rows))

# %% tags=["hide-input"]
chapter.table(
    mean_scores,
    "all_scores",
    records=records,
    formats=dict.fromkeys((s.replace("_", " ") for s in score.SCORES), ".1%"),
    caption="All four scores by method, mean over models, seeds and n questions; maps that know no model at the end. The data of the figure above have every model, with intervals.",
)

# %% [markdown]
# IoU and AUPRC are low for all, for the right cells too: a token says what is at the *centre* of an object, and one cell of an 8 × 8 grid can't cover it. Compare with the ceiling, not with 1.
#
# (similarity-maps)=
# ### A CLIP that never learned to point
#
# The small CLIP of chapter 5 has compared whole pictures with whole captions, and nothing else. Do its image tokens know *where* the named thing is? Pictures of two objects, and a sentence about each, which is true of that object alone. The map is
# the cosine of every token with the sentence, on a grid of {val}`09_attention_maps.similarity.side` × {val}`09_attention_maps.similarity.side` patches.

# %% tags=["hide-input"]
from vqa_core.experiments.similarity_maps_readout import similarity_table

(pair_record,) = experiments.load("similarity_maps", profile)
similar = similarity_table(pair_record)
two = {k: pair_record.arrays[f"shown.{k}"] for k in ("pictures", "maps", "regions")}
sentences = [textwrap.fill(s.removeprefix("there is "), 20) for s in pair_record.details["sentences"]]
chapter.value("similarity.side", int(two["maps"].shape[1]))

# %% tags=["hide-input"]
chapter.figure(
    drawing.pair_grid(
        [(p, p) for p in two["pictures"][:3]],
        two["regions"].reshape(-1, 2, *two["regions"].shape[1:])[:3],
        two["maps"].reshape(-1, 2, *two["maps"].shape[1:])[:3],
        [f"picture {k + 1}" for k in range(3)],
        [(sentences[2 * k], sentences[2 * k + 1]) for k in range(3)],
    ),
    "similarity_maps",
    data=similar,
    records=[pair_record],
    picture=True,
    caption="Similarity maps of the small CLIP: the first three test pictures, each with a sentence about either object (outlined). Chosen by their number. The table holds all four scores.",
    alt="Three pictures of two coloured shapes, each shown twice with a map that belongs to the sentence below it.",
)

# %% tags=["hide-input"]
pointed = similar[similar["metric"] == "pointing_game"].set_index("map")
for name, title in similarity_maps.MAPS.items():
    chapter.value(f"similarity.{name}", dict(pointed.loc[title, ["mean", "low", "high", "n"]]), of="sentences")
chapter.table(
    pointed.reset_index().drop(columns="metric"),
    "similarity_scores",
    records=[pair_record],
    formats=dict.fromkeys(("mean", "low", "high"), ".1%"),
    caption="The pointing game of similarity maps (one model; intervals over pictures).",
)

# %% [markdown]
# The highest cell touches the named object in {val}`09_attention_maps.similarity.own:ci.1%`. What the sentence is worth is told by the sentence about the *other* object of the same picture: {val}`09_attention_maps.similarity.other:.1%`. What training is worth,
# by the same network with random weights: {val}`09_attention_maps.similarity.untrained:.1%`; the centre bias has {val}`09_attention_maps.similarity.centre_bias:.1%`. A number far below the centre bias in
# the second place means that a map is lowest on the thing that its sentence is not about: then it tells the two things apart, and still may not point at the right one. This is one model, the only one whose weights chapter 5 keeps.
#
# ### On phantoms
#
# The same on drawn pictures with the look of radiology (chapter 7; **phantoms are not patients**). The models read every cell of a frozen encoder's grid, nothing is masked, and nothing names what is there. Questions about the whole
# body have no region worth pointing at and are left out.

# %% tags=["hide-input"]
rows_drawn = known_drawn.details["rows"]
case = attention_maps.case_of(profile, known_drawn.spec.data)
scored_drawn = readout.score_table(drawn, known_drawn, case.groups)
pointing_drawn = scored_drawn[scored_drawn["metric"] == "pointing_game"]

# %% tags=["hide-input"]
chapter.figure(
    drawing.score_rows(pointing_drawn, "pointing-game accuracy", drawing.BASELINE_LINES),
    "pointing_game_phantoms",
    data=scored_drawn,
    records=[*drawn.values(), known_drawn],
    caption="The pointing game on phantoms, with intervals over seeds and pictures. Dashed: maps that know no model; 'any object' is every cell alike here.",
    alt="Intervals by model. " + readout.spread(pointing_drawn),
)

# %% tags=["hide-input"]
lines_drawn = pointing_drawn[pointing_drawn["model"] == readout.NO_MODEL].set_index("method")
models_drawn = pointing_drawn[pointing_drawn["model"] != readout.NO_MODEL]
top_drawn = models_drawn.loc[models_drawn["mean"].idxmax()]
best_drawn = max(drawn.values(), key=lambda r: r.metrics["accuracy_test"].value)

# %% tags=["hide-input"]
chapter.value("phantoms.questions", len(rows_drawn))
chapter.value("phantoms.accuracy", best_drawn.metrics["accuracy_test"].value, n=best_drawn.metrics["accuracy_test"].n)
chapter.value("phantoms.best", float(top_drawn["mean"]), n=int(top_drawn["n"]), of="questions")
chapter.value("phantoms.best_name", f"{top_drawn['method']} of {top_drawn['model']}")
chapter.value("phantoms.centre", float(lines_drawn.loc["centre bias", "mean"]), n=len(rows_drawn), of="questions")
chapter.value("phantoms.beat_centre", len(readout.beats(scored_drawn)))

# %% [markdown]
# Of {val}`09_attention_maps.phantoms.questions:,d` questions, the best map ({val}`09_attention_maps.phantoms.best_name`) hits {val}`09_attention_maps.phantoms.best:.1%`, the centre bias {val}`09_attention_maps.phantoms.centre:.1%`; {val}`09_attention_maps.phantoms.beat_centre` maps beat it by twenty points.
# The reason need not be in the maps. These models answer {val}`09_attention_maps.phantoms.accuracy:.1%` of the questions, much of which the words alone can do (chapter 7): where a model hardly looks, no method can show where it does. And a cell of a convolutional encoder has seen far more than its own
# pixels: evidence for a finding may sit in a neighbour. Accuracy first, then maps.
#
# ### Right and wrong answers
#
# If a map shows why, then it should look elsewhere when the answer is wrong.

# %% tags=["hide-input"]
by_answer = readout.answer_table(runs, pictures)
gap = by_answer.pivot_table(index=["model", "method"], columns="answer", values="mean", sort=False).dropna()

# %% tags=["hide-input"]
chapter.figure(
    drawing.answer_panels(by_answer, "pointing-game accuracy"),
    "right_and_wrong",
    data=by_answer,
    records=list(runs.values()),
    caption="The pointing game where the model answers rightly (filled) and wrongly (hollow). n counts pairs of seed and question; few wrong answers make wide intervals.",
    alt=f"Two panels. Mean over models and methods: {gap['right'].mean():.0%} for right answers, {gap['wrong'].mean():.0%} for wrong ones.",
)

# %% [markdown]
# ## Does the answer hang on it?
#
# A region is what the answer *should* depend on. What it *does* depend on is found by taking things away. Tokens are masked, so that the model sees a picture with fewer objects, not one with a black hole. **Deletion** removes them in the order of the map, **insertion** puts them
# in {cite:p}`petsiuk2018rise`.
#
# ```{literalinclude} /vqa_core/explain/deletion.py
# :pyobject: curves
# ```

# %% tags=["hide-input"]
curve = readout.curve_table(runs)
areas = readout.area_table(runs, pictures)
of_areas = areas.pivot_table(index="method", columns="metric", values="mean", sort=False)

# %% tags=["hide-input"]
chapter.figure(
    drawing.curve_panels(curve),
    "deletion_insertion",
    data=curve,
    records=list(runs.values()),
    caption="Probability of the model's answer while image tokens go (above) or come (below), the most important first; mean over questions and seeds. Grey, dashed: in random order.",
    alt="Curves for each model. Mean area under the deletion curve: "
    + ", ".join(f"{m} {v:.2f}" for m, v in of_areas["deletion_area"].items())
    + ".",
)

# %% tags=["hide-input"]
deletion = areas[areas["metric"] == "deletion_area"]
chapter.figure(
    drawing.score_rows(deletion, "area under the deletion curve"),
    "deletion_area",
    data=deletion,
    records=list(runs.values()),
    caption="Area under the deletion curve, with intervals over seeds and pictures: the smaller, the earlier the answer went.",
    alt="Intervals by model. " + readout.spread(deletion),
)

# %% tags=["hide-input"]
insertion = areas[areas["metric"] == "insertion_area"]
chapter.figure(
    drawing.score_rows(insertion, "area under the insertion curve"),
    "insertion_area",
    data=insertion,
    records=list(runs.values()),
    caption="Area under the insertion curve, with intervals over seeds and pictures: the larger, the earlier the answer came.",
    alt="Intervals by model. " + readout.spread(insertion),
)

# %% [markdown]
# ### Is attention faithful?
#
# One number for the oldest question. Remove the fifth of the tokens with the most attention; how far does the answer's probability fall, beyond what a random fifth does, as a share of what the *best* fifth does?
#
# $$ F = \frac{\Delta_\text{attended} - \Delta_\text{random}}{\Delta_\text{best}} $$
#
# ```{literalinclude} /vqa_core/explain/deletion.py
# :pyobject: drops
# ```

# %% tags=["hide-input"]
faithful = readout.faithfulness_table(runs, pictures)
ratios = faithful[faithful["metric"] == "faithfulness"].set_index("model")["mean"]
falls = faithful.groupby("metric")["mean"].mean()
ceiling = float(1 - falls["drop, random"] / falls["drop, best"])
chapter.value("faithful.ceiling", ceiling, n=len(rows), of="questions")

# %% tags=["hide-input"]
chapter.figure(
    drawing.drop_rows(faithful),
    "faithfulness",
    data=faithful,
    records=list(runs.values()),
    caption="Fall of the answer's probability when a fifth of the image tokens is removed (here a single object): drawn at random, the most attended, the best by occlusion.",
    alt="A row for each model with three marks. The ratio F is "
    + ", ".join(f"{m} {v:.2f}" for m, v in ratios.items())
    + ".",
)

# %% [markdown]
# Even occlusion itself would not reach one: with so few objects, a random draw hits the right one now and then. The most that any map can have here is {val}`09_attention_maps.faithful.ceiling:.2f`.
#
# ## Does the map notice that the model is gone?
#
# An edge detector makes beautiful maps and explains nothing. Two checks tell it from an explanation {cite:p}`adebayo2018sanity`. *Cascading randomisation* sets the weights back to random ones, from the head down; *label randomisation* trains the same
# model on shuffled answers. If the map stays, then it was never about what was learned.
#
# ```{literalinclude} /vqa_core/explain/randomisation.py
# :pyobject: cascade
# ```
#
# We compare maps by the rank correlation of the weights of the *real* tokens. With the masked ones, which are zero in every map, everything would agree with everything.

# %%
from vqa_core.explain.randomisation import agreement

real = np.array([[True, True, True, False, False, False]])
one, other = np.array([[0.7, 0.2, 0.1, 0, 0, 0]]), np.array([[0.1, 0.2, 0.7, 0, 0, 0]])
print("opposite maps:", agreement(one, other, real), " with padding:", agreement(one, other).round(2))

# %% tags=["hide-input"]
steps = readout.cascade_table(runs, pictures)
at_end = steps.sort_values("step").groupby("model", sort=False)["mean"].last()

# %% tags=["hide-input"]
chapter.figure(
    drawing.cascade_panels(steps),
    "cascade",
    data=steps,
    records=list(runs.values()),
    caption="Rank agreement with the trained model's maps while its parts are set back to random weights one after another, from left to right. The first point compares a map with itself; it lies below one where maps are constant.",
    alt="A panel for each model; agreement of all methods falls as more parts are set back. Mean after all of them: "
    + ", ".join(f"{m} {v:.2f}" for m, v in at_end.items())
    + ".",
)

# %% tags=["hide-input"]
sane = pd.concat([readout.sanity_table(runs, pictures), readout.sanity_table(drawn, case.groups)], ignore_index=True)
with_ = sane.groupby("with", sort=False)["mean"].mean()

# %% tags=["hide-input"]
picture = chapter.figure(
    drawing.sanity_panels(sane),
    "sanity",
    data=sane,
    records=list((runs | drawn).values()),
    caption="Rank agreement of the trained model's maps with those of the same model with random weights, of the same model trained on shuffled answers, and of another seed of the same training.",
    alt="Three panels; mean over models and methods: " + ", ".join(f"{k} {v:.2f}" for k, v in with_.items()) + ".",
)
display(picture)

# %% tags=["hide-input"]
for key, kind in (("weights", "random weights"), ("labels", "shuffled labels"), ("seed", "another seed")):
    of = sane[sane["with"] == kind]["mean"]
    chapter.value(f"sanity.{key}", float(of.mean()), n=len(of), of="pairs of model and method")
    chapter.value(f"sanity.{key}_most", float(of.max()), n=len(of), of="pairs of model and method")

# %% [markdown]
# With all weights random, agreement is {val}`09_attention_maps.sanity.weights:.2f` on average and {val}`09_attention_maps.sanity.weights_most:.2f` at most; with shuffled labels {val}`09_attention_maps.sanity.labels:.2f` and {val}`09_attention_maps.sanity.labels_most:.2f`. The line to compare with is another
# seed of the same training, {val}`09_attention_maps.sanity.seed:.2f`: no explanation can be expected to agree better than two models that learned the same.
#
# ## Do the methods agree?

# %% tags=["hide-input"]
agreed = readout.agreement_table(runs)
pairs = agreed[agreed["method"] != agreed["other"]]

# %% tags=["hide-input"]
picture = chapter.figure(
    drawing.agreement_panels(agreed),
    "agreement",
    data=agreed,
    records=list(runs.values()),
    caption="Rank correlation of the maps of every two methods, mean over questions and seeds.",
    alt=f"A matrix for each model. Agreement of different methods goes from {pairs['mean'].min():.2f} to {pairs['mean'].max():.2f}, {pairs['mean'].mean():.2f} on average.",
)
display(picture)

# %% tags=["hide-input"]
chapter.value("agreement.mean", float(pairs["mean"].mean()), n=len(pairs), of="pairs of methods")
chapter.value("agreement.least", float(pairs["mean"].min()), n=len(pairs), of="pairs of methods")

# %% [markdown]
# Methods that explain the same answer agree with {val}`09_attention_maps.agreement.mean:.2f` on average, and {val}`09_attention_maps.agreement.least:.2f` at least. Whoever shows one map has chosen one of several stories.
#
# ## Where it fails
#
# Failures are chosen by rule: of the tenth of the questions with the least weight of the model's own attention inside the region, six are drawn by a fixed seed.

# %% tags=["hide-input"]
inside_own = readout.values(show, OWN, "energy_inside")[0][:shown]
worst = readout.worst_decile(inside_own, 6)
some_methods = (OWN, "relevance", "grad_cam", "occlusion")
maps = {TITLES[m]: readout.grid_maps(show, m)[worst] for m in some_methods}

# %% tags=["hide-input"]
pics, regions, index = seen(worst)
notes = readout.inside_notes(show, some_methods, worst)
right = show.arrays["right"][0]
texts = [f"{t} ({'right' if right[i] else 'wrong'})" for i, t in zip(worst, said_of(show, worst))]
of_worst = right[:shown][inside_own <= np.quantile(inside_own, 0.1)]

# %% tags=["hide-input"]
wrong_share = 1 - of_worst.mean()
picture = chapter.figure(
    drawing.gallery(pics, regions, maps, texts, notes),
    "failures",
    data=readout.weight_table(maps, index, texts),
    records=[show],
    picture=True,
    caption="Six of the worst decile of the model's own attention (co-attention, first seed), by the share of weight inside the region.",
    alt=f"{len(worst)} rows with a picture and four maps each. In the worst decile {wrong_share:.0%} of the answers are wrong.",
)
display(picture)
# %% tags=["hide-input"]
chapter.value("worst.wrong", float(wrong_share), n=len(of_worst), of="questions")
chapter.value("all.wrong", float(1 - right.mean()), n=len(rows), of="questions")

# %% [markdown]
# In the worst decile {val}`09_attention_maps.worst.wrong:.1%` of the answers are wrong, of all questions {val}`09_attention_maps.all.wrong:.1%`. A map that misses the region is a hint that the answer may be wrong, and no more.
#
# ## What we saw

# %% tags=["hide-input"]
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.chapter == 9]
chapter.table(
    pd.DataFrame(rules),
    "rules",
    caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.",
)

# %%
effects = readout.claims(runs, pictures)
for claim, effect in effects.items():
    if effect is not None:
        chapter.claim(claim, effect, of="questions")
        chapter.value(f"claims.{claim.lower()}", effect, of="questions")

# %% [markdown]
# - **Attention weights are faithful (E3).** $F$ is {val}`09_attention_maps.claims.e3:.2f` ({val}`09_attention_maps.claims.e3:range.2f`) over all models of scenes: {verdict}`E3`.
# - **Rollout and relevance beat raw attention (E4)**: {val}`09_attention_maps.claims.e4:+.1p` ({val}`09_attention_maps.claims.e4:range+.1p`) in the pointing game, over the models of scenes that have all three: {verdict}`E4`.
#
# What this does *not* say: that these maps would be as good on photographs. The tokens here are objects, nearly named, and few; the region is known; a question has one. A map that fails here has little hope there, and that is the use of a test that can be passed.
#
# Ask the model yourself, and get the map with a warning of how far to trust it: `python -m vqa_core ask picture.png "What colour is the large circle?" --map out.png --method relevance`.
#
# ```{claims}
# :chapter: 9
# ```
#
# ## Exercises
#
# One star: read and compute. Two stars: prove or program. Three stars: run an experiment.
#
# ```{exercise} ★ What a constant map scores
# :label: ex-maps-constant
#
# Show that a constant map scores the region's share of the picture in all four scores. What does a map of one random cell score in the pointing game?
# ```
#
# ```{solution} ex-maps-constant
# :class: dropdown
#
# All cells are equally high, so the expected hit is the share $|G|/N$; the only threshold keeps everything, so that IoU is $|G|/N$; energy is the sum of $1/N$ over $G$; precision is $|G|/N$ at recall 1. One random cell hits with the share of cells that touch the region, the same as the constant map in expectation.
# ```
#
# ````{exercise} ★★ Integrated gradients add up
# :label: ex-maps-complete
#
# Check for the toy model that the scores of integrated gradients at the tokens sum to the difference of the logits, and find how many steps are needed for three digits.
# ````
#
# ````{solution-start} ex-maps-complete
# :class: dropdown
# ````
# The baseline is a picture of zero tokens with the same mask.

# %%
blank = toy(torch.zeros_like(asked.pictures), *asked[1:3]).logits
for steps_ in (4, 16, 64):
    found = explain_tokens(toy, asked, "integrated_gradients", steps=steps_, level="tokens")
    difference = (plain - blank)[0, found.targets[0]].item()
    print(f"{steps_:3} steps: sum {found.scores.sum().item():.5f}, difference {difference:.5f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ````{exercise} ★★ A map that can't fail
# :label: ex-maps-planted
#
# Write an "explainer" that ignores the model (say, the norm of each token), and show that cascading randomisation catches it.
# ````
#
# ````{solution-start} ex-maps-planted
# :class: dropdown
# ````
# Its agreement with itself stays 1 at every stage.

# %%
from vqa_core.explain.randomisation import cascading_agreement, stages_of

torch.manual_seed(1)
fresh = VQAModel(Padded(4), CachedTokens(4), EarlyConcatenation(4, 4, 8, depth=2, heads=2), LinearHead(8, 3))
norms = asked.pictures.norm(dim=-1).numpy()
mask = np.array([[True, True, False]])
print(cascading_agreement(lambda model: norms, toy, fresh, stages_of(toy), mask).ravel())

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} ★★ When rollout sees nothing
# :label: ex-maps-rollout
#
# Rollout does not know the answer. Construct a two-layer model in which rollout points at a token whose value never reaches the answer.
# ```
#
# ```{solution} ex-maps-rollout
# :class: dropdown
#
# Let the head that attends to token $j$ have a value matrix of zero: its weights are high, what it reads is 0. Rollout, which multiplies weights only, gives $j$ a high score; relevance gives it $\nabla A \odot A = 0$, because the answer does not change with that weight.
# ```
#
# ```{exercise} ★★★ Removing two
# :label: ex-maps-two
#
# With three to six objects, a fifth of the tokens is a single one. Repeat the measurement of faithfulness with `share=0.4`. Does $F$ rise or fall, and why must the random draws do better?
# ```
#
# ```{solution} ex-maps-two
# :class: dropdown
#
# Use `drops(remover, maps, share=0.4)`. With two of five objects removed, a random draw takes away the one that is asked about two times in five, so that $\Delta_\text{random}$ doubles, while $\Delta_\text{best}$ is bounded by the probability itself: $F$ falls even for perfect attention. A ratio is only comparable at the same share.
# ```
#
# ## Further reading
#
# The argument about attention as explanation {cite:p}`jain2019attention,wiegreffe2019attention`; sanity checks {cite:p}`adebayo2018sanity`; rules for bi-modal transformers {cite:p}`chefer2021generic`; deletion and insertion {cite:p}`petsiuk2018rise`.
