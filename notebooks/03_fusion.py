# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fusion methods
#
# A picture has become tokens. A question has become tokens. Somewhere between these two and the answer they have to
# meet, and the place and manner of that meeting is called *fusion*. It is a small part of a model, often one line of
# code, and it decides which questions the model can answer at all.
#
# This chapter holds everything else still. One picture encoder and one question encoder, both frozen, give the same
# tokens to {val}`03_fusion.size.methods` ways of fusing. Whatever differs between their accuracies is the fusion's doing.
#
# :::{admonition} What you will be able to do
# :class: tip
# - write sum, concatenation, FiLM, gated, product, MFB and low-rank fusion from memory, and say what each can't do;
# - prove that a sum with a linear head never gets four answers right that a product gets right, and see it hold in
#   trained models;
# - say where two modalities may meet (answers, pooled vectors, every token, attended tokens, one sequence) and what
#   each place costs;
# - read a comparison of methods with paired differences, intervals over seeds and pictures, and corrected tests.
# :::
#
# **You need** linear algebra, PyTorch, and the two words *token* and *encoder* ({doc}`/book/glossary`).
# The experiments behind this page took {val}`03_fusion.time.experiment:.0f` seconds of computing
# for {val}`03_fusion.size.runs` trainings on {val}`03_fusion.time.device`; the page itself runs in a minute or two
# (measured on {doc}`/book/status`).

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from torch import nn

from vqa_core import experiments, figures
from vqa_core.data import scenes
from vqa_core.evaluation import baselines, claims, statistics
from vqa_core.experiments import fusion, fusion_cost, fusion_real, readout
from vqa_core.experiments.fusion import METHODS
from vqa_core.experiments.scene_encoders import scene_split

figures.use_style()
chapter = figures.Chapter("03_fusion", profile=PROFILE)
profile = chapter.profile

# %% [markdown]
# The runs are read from disk; what is missing is computed now.

# %%
records = experiments.load("fusion", profile)
runs = readout.by_unit(records)
seeds = len(runs["pool_concat"])
chapter.value("size.methods", len(METHODS))
chapter.value("size.runs", len(records))
chapter.value("size.seeds", seeds)
chapter.value("time.experiment", sum(r.seconds for r in records), n=len(records), of="runs")
chapter.value("time.device", records[0].device)

# %% [markdown]
# ## Where picture and question can meet
#
# There are three places, and two ways to combine them.
#
# - **Answers** (*late*): each modality answers on its own, and the answers are joined.
# - **Vectors** (*pool, then fuse*): each modality becomes one vector, and two vectors become one.
# - **Tokens**: the question meets the picture before the picture is pooled. It can be fused with *every* token, or it
#   can *look* first and be fused with what it saw, or all tokens of both sides go as one *sequence* through a
#   transformer (*early*).
# - **Hybrid**: a joint branch, and beside it both sides on their own.
#
# The shapes below are those of the experiment; the cell reads them from the tokens.

# %%
feed = fusion.feed_of(profile, "test", "grid", "slots")
cells, d_i = feed.pictures.shape[1:]
d_t, answers = feed.words.shape[-1], len(fusion.answer_vocabulary(profile))
dim, narrow = runs["pool_concat"][0].spec.model.dim, runs["early"][0].spec.model.dim
print(f"{cells} image tokens of {d_i} features, questions of {d_t} features, {answers} answers")

# %% tags=["hide-input"]
I, P, Q = f"image tokens\n{cells} × {d_i}", f"pooled picture\n{d_i}", f"question\n{d_t}"
PANELS = {  # node: (x, y, text); edges as pairs of nodes
    "answers (late)": ({"i": (0, 4, P), "q": (2, 4, Q), "a": (0, 2.7, f"classifier\n{answers}"),
                        "b": (2, 2.7, f"classifier\n{answers}"), "j": (1, 1.2, f"mean of answers\n{answers}")}, "ia qb aj bj"),
    "pool, then fuse": ({"i": (0, 4, I), "q": (2, 4, Q), "a": (0, 2.8, P), "f": (1, 1.6, f"fuse\n{dim}"),
                         "j": (1, 0.4, f"head\n{answers}")}, "ia af qf fj"),
    "fuse at every token": ({"i": (0, 4, I), "q": (2, 4, Q), "f": (1, 2.8, f"fuse\n{cells} × {narrow}"),
                             "a": (1, 1.6, f"sum\n{narrow}"), "j": (1, 0.4, f"head\n{answers}")}, "if qf fa aj"),
    "attend, then fuse": ({"i": (0, 4, I), "q": (2, 4, Q), "a": (0, 2.8, f"8 looks\n8 × {cells}"),
                           "r": (0, 1.6, f"what was seen\n{8 * d_i}"), "f": (2, 1.6, f"fuse\n{dim}"),
                           "j": (2, 0.4, f"head\n{answers}")}, "ia qa ar rf qf fj"),
    "one sequence (early)": ({"i": (0, 4, I), "q": (2, 4, f"slots\nup to {feed.words.shape[1]} × {d_t}"),
                              "s": (1, 2.8, f"sequence\n(1 + {cells} + slots) × {narrow}"),
                              "t": (1, 1.6, "two transformer blocks\nanswer token"), "j": (1, 0.4, f"head\n{answers}")}, "is qs st tj"),
    "hybrid": ({"i": (0, 4, I), "q": (2, 4, Q), "a": (0, 2.6, f"alone\n{dim}"), "b": (2, 2.6, f"alone\n{dim}"),
                "f": (1, 2.6, f"attend, fuse\n{dim}"), "c": (1, 1.4, f"joined\n{dim}"), "j": (1, 0.4, f"head\n{answers}")}, "ia qb if qf ac bc fc cj"),
}

# %% tags=["hide-input"]
def draw_flow(ax, title, nodes, edges):
    """One way from tokens to answers; orange is picture, blue is question, the others have seen both."""
    for a, b in edges.split():
        (x0, y0, _), (x1, y1, _) = nodes[a], nodes[b]
        ax.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": figures.INK["light"],
                                                        "shrinkA": 14, "shrinkB": 15, "lw": 0.9})
    fed = {b: {a for a, c in edges.split() if c == b} for _, b in edges.split()}
    side = {"i": "i", "q": "q"}
    for key in sorted(nodes, key=lambda k: -nodes[k][1]):
        found = {side[a] for a in fed.get(key, ())} or {side.get(key)}
        side[key] = found.pop() if len(found) == 1 else "both"
        colour = {"i": figures.PALETTE[2], "q": figures.PALETTE[0], "both": figures.PALETTE[4]}[side[key]]
        style = {"boxstyle": "round,pad=0.3", "fc": "none", "ec": colour, "lw": 2.2 if side[key] == "both" else 1.3}
        ax.text(*nodes[key], ha="center", va="center", fontsize=8, bbox=style)
    ax.set(xlim=(-0.7, 2.7), ylim=(-0.1, 4.5), title=title)
    ax.axis("off")


# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 3, figsize=(8.6, 6.6))
for ax, (title, panel) in zip(axes.flat, PANELS.items()):
    draw_flow(ax, title, *panel)
shapes = pd.DataFrame([{"place": p, "node": t.replace("\n", " ")} for p, (n, _) in PANELS.items() for *_, t in n.values()])
chapter.figure(
    fig, "flow", data=shapes,
    caption="Six ways from tokens to an answer, with the shapes of the experiment. Thick purple frames have seen both "
    "modalities: the further up they begin, the earlier the two meet.",
    alt=f"Six flow charts. In each, {cells} image tokens and a question run down to {answers} answers; "
    "they meet at the answers, at pooled vectors, at every token, after attention, in one sequence, or in two branches at once.",
)

# %% [markdown]
# ## Fusing two vectors
#
# Let $x$ be the pooled picture and $y$ the pooled question. Each method below is printed from the file that the
# experiment runs, followed by numbers that you can check by hand with $x = (1, 2)$ and $y = (3, -1)$.

# %%
x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
eye, zero = torch.eye(2), torch.zeros(2, 2)


def by_hand(module, **weights):
    """The module with the given weight matrices; all its other parameters are 0."""
    for name, parameter in module.eval().named_parameters():
        layer, _, kind = name.rpartition(".")
        given = weights.get(layer if kind == "weight" else f"{layer}_{kind}")
        parameter.data = torch.zeros_like(parameter) if given is None else given.clone()
    return module


# %% [markdown]
# ### Sum and concatenation
#
# $$\text{sum: } W_x x + W_y y \qquad\qquad \text{concat: } W\,[x\,;\,y]$$
#
# ```{literalinclude} /vqa_core/fusion/vector.py
# :pyobject: SumFusion
# ```

# %%
from vqa_core.fusion.vector import ConcatFusion, FiLM, GatedFusion, LowRankTensorFusion, MFB, ProductFusion, SumFusion

added = by_hand(SumFusion(2, 2, 2), image_projection=eye, text_projection=eye)
joined = by_hand(ConcatFusion(2, 2, 2), projection=torch.cat([eye, eye], dim=1))
print(added.fuse(x, y).fused.tolist(), joined.fuse(x, y).fused.tolist())

# %% [markdown]
# The two print the same, and not by chance.
#
# :::{admonition} Proposition: concatenation is a sum
# :class: note
# Split $W$ by columns into $[W_x\; W_y]$, of the widths of $x$ and $y$. Then
#
# $$W\,[x\,;\,y] = W_x x + W_y y ,$$
#
# so a linear layer on a concatenation and a sum of two linear layers are the same family of functions, with the same
# number of weights. What differs is how large the weights are at the start.
# :::
#
# "Concatenate the features" therefore names no interaction. If one happens, it happens in the layers above.
#
# ### FiLM
#
# Feature-wise linear modulation {cite:p}`perez2018film` lets one side, the condition $c$, scale and shift the features
# of the other side, $m$:
#
# $$[\gamma\,;\,\beta] = W_f\, c, \qquad \text{out} = W_o\,(\gamma \odot m + \beta).$$
#
# ```{literalinclude} /vqa_core/fusion/vector.py
# :pyobject: FiLM.fuse
# ```
#
# With $\gamma = y$ and $\beta = (1, 1)$:

# %%
modulated = by_hand(
    FiLM(2, 2, 2), condition=torch.cat([eye, zero]), condition_bias=torch.tensor([0.0, 0, 1, 1]), out_projection=eye
)
print(modulated.fuse(x, y).fused.tolist())

# %% [markdown]
# :::{warning}
# **The split has the size of the modulated side.** A snippet that is copied from notes to notes keeps `input_dim`, the
# size of the *condition*, and splits $[\gamma\,;\,\beta]$ by it. As long as both sizes are equal nobody notices.
# :::

# %%
def split_by_condition(condition_dim, modulated_dim):
    """What the snippet does: the layer gives 2 × modulated_dim numbers and is split by condition_dim."""
    film = nn.Linear(condition_dim, 2 * modulated_dim)(torch.zeros(1, condition_dim))
    return [tuple(part.shape) for part in film.split(condition_dim, dim=1)]


for sizes in [(512, 512), (512, 256), (256, 512)]:
    print(sizes, "->", len(parts := split_by_condition(*sizes)), "parts:", parts)

# %% [markdown]
# Two parts are wanted. One part stops with an error when it is unpacked, and so do four. The class above splits by
# `chunk(2)` and takes any sizes: its test feeds it three different ones.
#
# ### Gated fusion and product
#
# A gate {cite:p}`kiela2018gated` is a modulation that can only attenuate; a product is one without a squashing function:
#
# $$\text{gated: } W_o\,\bigl(\sigma(W_y y) \odot W_x x\bigr) \qquad\qquad \text{product: } W_o\,(W_x x \odot W_y y)$$
#
# ```{literalinclude} /vqa_core/fusion/vector.py
# :pyobject: GatedFusion.fuse
# ```

# %%
same = {"image_projection": eye, "text_projection": eye, "out_projection": eye}
print("gated  ", by_hand(GatedFusion(2, 2, 2), **same).fuse(x, y).fused.tolist())
print("product", by_hand(ProductFusion(2, 2, 2), **same).fuse(x, y).fused.tolist())

# %% [markdown]
# ### MFB and low-rank tensors
#
# The most general bilinear map has a weight for every triple of a picture feature, a question feature and an output
# {cite:p}`zadeh2017tfn`: $\mathcal{W} \cdot ([x\,;\,1] \otimes [y\,;\,1])$. That is too many. Two ways to have fewer:
#
# $$\text{MFB: } z = \sum_{k} U_k x \odot V_k y,\quad \operatorname{sign}(z)\sqrt{|z|},\quad \text{then } z/\lVert z\rVert_2
# \qquad \text{low rank: } \sum_{r} A_r[x\,;\,1] \odot B_r[y\,;\,1]$$
#
# {cite:p}`yu2017mfb,liu2018lmf`. The ones matter: they keep both sides alone beside their products.
#
# ```{literalinclude} /vqa_core/fusion/vector.py
# :pyobject: MFB.fuse
# ```
#
# ```{literalinclude} /vqa_core/fusion/vector.py
# :pyobject: LowRankTensorFusion.fuse
# ```

# %%
both = {"image_projection": eye, "text_projection": eye}
ones = {"image_factors_bias": torch.ones(2), "text_factors_bias": torch.ones(2)}
print("MFB     ", by_hand(MFB(2, 2, 2, factor=1), **both).fuse(x, y).fused.tolist())
print("low rank", by_hand(LowRankTensorFusion(2, 2, 2, rank=1), image_factors=eye, text_factors=eye, **ones).fuse(x, y).fused.tolist())

# %% [markdown]
# By hand: MFB has $x \odot y = (3, -2)$, roots $(\sqrt 3, -\sqrt 2)$, divided by $\sqrt 5$. The low-rank tensor has
# $(x + 1) \odot (y + 1) = (2 \cdot 4,\; 3 \cdot 0)$.
#
# **Conditional batch normalisation** {cite:p}`devries2017cbn` goes deeper down: the question shifts scale and offset of the
# batch norms *inside* the picture encoder. It needs the encoder to be trained, so it has no place in a comparison with
# frozen ones; the class is `vqa_core.fusion.vector.ConditionalBatchNorm2d`.
#
# ### What a sum can't do
#
# Why all this multiplying? Put a linear head on a sum. The score of answer $a$ is then $s_a(x, y) = f_a(x) + g_a(y)$: it is
# **additive**. The margin of *yes* over *no* is additive too, $m(x, y) = f(x) + g(y)$.
#
# :::{admonition} Proposition: three out of four
# :class: note
# Take two pictures $A, B$ and two yes/no questions $p, q$ with the answers
#
# |  | $A$ | $B$ |
# |---|---|---|
# | $p$ | yes | no |
# | $q$ | no | yes |
#
# **An additive score answers at most three of these four correctly.** *Proof.* All four right would need
# $m(A, p) > 0$, $m(B, q) > 0$, $m(B, p) < 0$ and $m(A, q) < 0$. But
#
# $$m(A, p) + m(B, q) = f(A) + g(p) + f(B) + g(q) = m(B, p) + m(A, q),$$
#
# and a positive number is not a negative one. $\square$
# :::
#
# The table is an exclusive-or of picture and question, and balanced data are full of it: "is there a red circle?" and "is
# there a blue square?" about a pair of pictures, of which one has the one and one the other. The quantity that is zero
# for every additive score, however it was trained, is the **interaction contrast**
#
# $$\Delta = s(A,p) - s(A,q) - s(B,p) + s(B,q).$$

# %%
def contrast(unit, size=5):
    """|interaction contrast| of a vector fusion with random weights and a linear head, at random inputs."""
    torch.manual_seed(0)
    module = METHODS[unit].build(size, size, 16, 1).double().eval()
    head, (a, b, p, q) = nn.Linear(16, 1).double(), torch.randn(4, size, dtype=torch.float64)
    score = lambda picture, question: head(module.fuse(picture, question).fused)  # noqa: E731
    return (score(a, p) - score(a, q) - score(b, p) + score(b, q)).abs().item()


pooled = [u for u in METHODS if u.startswith("pool_")]
table = pd.DataFrame([{"fusion": METHODS[u].title, "contrast": contrast(u)} for u in pooled])

# %%
chapter.table(
    table, "contrast", formats={"contrast": ".1e"},
    caption="Interaction contrast of each vector fusion with a linear head and random weights. Rounding is all that sum "
    "and concatenation have.",
)

# %% [markdown]
# Does it hold in *trained* models? The scenes come in pairs, and each question is asked about both pictures of its pair, with
# different answers. Two questions of a pair that flip in opposite directions are the table above. Here are all of them in the test
# set, and how often a model gets all four cells right.

# %%
test = scene_split(profile, "test")
truth, families = np.array([s.answer for s in test]), np.array([s.family for s in test])
pictures = np.array([s.picture_id for s in test])
correct = {unit: readout.right_or_wrong(some, truth) for unit, some in runs.items()}
four = readout.opposite_questions(test.samples)  # (K, 4)
pairs = pictures[four[:, 0]]
chapter.value("four.cases", len(four))
chapter.value("four.pairs", len(set(pairs)))

# %%
shown = ["late_mean", "late_vote", "linear_sum", "linear_concat", "linear_film", "linear_product",
         "pool_concat", "pool_film", "attend_concat", "attend_film"]  # fmt: skip
whole = {u: correct[u][:, four].all(-1) for u in shown}  # bool (S, K)
solved = readout.accuracy_table(whole, pairs).assign(of="cases")
solved.insert(1, "method", [METHODS[u].title for u in solved["unit"]])
for unit in ("linear_sum", "late_vote", "linear_film", "attend_film"):
    chapter.value(f"four.{unit}", float(whole[unit].mean()), n=whole[unit].size, of="cases")
assert not any(whole[u].any() for u in ("linear_sum", "linear_concat", "late_mean", "late_vote"))

# %% tags=["hide-input"]
GROUPS = {"nowhere": "one side hidden", "answers": "answers (late)", "linear": "pooled vectors, linear head", "pooled": "pooled vectors",
          "tokens": "every token", "sequence": "one sequence (early)", "attended": "attended tokens"}  # fmt: skip
COLOUR = dict(zip(GROUPS, [figures.PALETTE[i] for i in (5, 2, 0, 0, 4, 3, 1)]))
MARKER = dict(zip(GROUPS, "Psoo^Dv"))
group_of = {u: "linear" if u.startswith("linear") else m.meets for u, m in METHODS.items()}
ORDER = [u for g in GROUPS for u in METHODS if group_of[u] == g]


def dot(ax, at, row, unit, **more):
    """A measured number with its interval, in the colour and marker of the place where the modalities meet."""
    g = group_of[unit]
    face = "none" if g == "linear" else COLOUR[g]
    error = [[max(0, row["mean"] - row["low"])], [max(0, row["high"] - row["mean"])]]
    ax.errorbar(row["mean"], at, xerr=error, fmt=MARKER[g], color=COLOUR[g], mfc=face, capsize=2, lw=1.2, **more)


# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.8, 3.4))
for at, row in enumerate(solved.to_dict("records")):
    ax.barh(at, row["mean"], height=0.55, color=COLOUR[group_of[row["unit"]]], alpha=0.3)
    dot(ax, at, row, row["unit"])
ax.set(yticks=range(len(solved)), yticklabels=solved["method"], xlim=(-0.02, 1), xlabel="share of cases with all four answers right")
ax.invert_yaxis()
chapter.figure(
    fig, "four_right", data=solved, records=[r for u in shown for r in runs[u]],
    caption="Two pictures, two questions, an exclusive-or of answers: how often trained models get all four right. "
    "Additive models (late mean, late vote, and sum or concat with a linear head) can't, and never do.",
    alt=f"Dots with intervals for ten methods. Additive methods stand at {solved['mean'].min():.0%} of {len(four)} cases; "
    f"the best, {solved.loc[solved['mean'].idxmax(), 'method']}, at {solved['mean'].max():.0%}.",
)

# %% [markdown]
# Of {val}`03_fusion.four.cases:,d` cases in {val}`03_fusion.four.pairs:,d` pairs of pictures, a sum with a linear head has
# {val}`03_fusion.four.linear_sum:.0%` right. It is not a matter of training: the cell above asserts it for every seed. FiLM with the same
# head has {val}`03_fusion.four.linear_film:.1%`. The late vote is on the list because it is additive in *probabilities* instead of
# logits, and the proof doesn't mind ({ref}`exercise <ex-fusion-vote>`).
#
# :::{note}
# A head with a hidden layer lifts the limit: ReLU after a sum makes products, roughly. The question is then how well, and that
# is what experiments are for. The proposition says what must *not* be left to a linear head.
# :::
#
# ### A trap on the way to pooled vectors
#
# To use a ResNet as an encoder, its classifier must go. Notes that circulate write `resnet.fn = nn.Identity()`. Python
# creates the attribute `fn`, nothing reads it, and the features of the picture are a thousand class scores.

# %%
from torchvision.models import resnet18

picture = torch.zeros(1, 3, 64, 64)
wrong, right = resnet18(weights=None).eval(), resnet18(weights=None).eval()
wrong.fn = nn.Identity()
right.fc = nn.Identity()
print("resnet.fn:", tuple(wrong(picture).shape), "  resnet.fc:", tuple(right(picture).shape))

# %% [markdown]
# ## Fusing tokens
#
# Pooling forgets. The sum of a red square and a blue circle is the sum of a blue square and a red circle; no fusion of
# the pooled vector can tell them apart. So let the question in *before* pooling.
#
# **Fuse at every token, then pool.** Any vector fusion above, with shared weights, at each of the tokens:
#
# ```{literalinclude} /vqa_core/fusion/stages.py
# :pyobject: TokenFusion.forward
# ```
#
# **Attend, then fuse.** The question makes $H$ queries; each looks at all tokens and reads a weighted mean. One more entry with
# score 0 stands for "nothing here", so that a head that finds nothing reads zeros:
#
# $$p_{hi} \propto \exp(x_i^\top W_h\, y + b_h), \qquad r_h = \sum_i p_{hi}\, x_i, \qquad \text{out} = \operatorname{fuse}([r_1; \dots; r_H],\, y).$$
#
# ```{literalinclude} /vqa_core/fusion/stages.py
# :pyobject: AttendFusion.forward
# ```
#
# **Stacked attention** (SAN) {cite:p}`yang2016san` looks several times; what it saw is *added* to the question before the next look:
#
# $$h = \tanh(W_I v \oplus W_Q u^{s-1}), \qquad p = \operatorname{softmax}(W_P h), \qquad u^s = \textstyle\sum_i p_i v_i + u^{s-1}.$$
#
# ```{literalinclude} /vqa_core/fusion/stacked.py
# :pyobject: SAN.forward
# ```
#
# **Bilinear attention** (BAN) {cite:p}`kim2018ban` weighs all *pairs* of a word $t$ and an image token $i$, with one softmax over
# all of them, $A_{ti} \propto \exp \sum_k p_k\, x_{tk}\, y_{ik}$, and pools the products under that weight:
#
# ```{literalinclude} /vqa_core/fusion/bilinear.py
# :pyobject: BAN.attention
# ```
#
# :::{warning}
# **Attention over one token is no attention.** Published code gives these modules *one* pooled picture vector. It runs.
# :::

# %%
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked import SAN

torch.manual_seed(0)
words, one_token = torch.randn(1, 4, 6), torch.randn(1, 1, 5)  # (B, Nₜ, 6), (B, 1, 5)
san = SAN(image_dim=5, text_dim=6, out_dim=8)
looked = san(one_token, words)
looked.fused.sum().backward()
print("SAN's weights:", looked.attention.flatten().tolist())
print("gradient of W_P:", max(w.weight.grad.abs().max().item() for w in san.w_score))

# %%
maps = BAN(image_dim=5, text_dim=6, out_dim=8, glimpses=1)(one_token, words).attention  # (1, 1, Nₜ, 1)
print("BAN's weights over 4 words x 1 place:", [round(w, 3) for w in maps.flatten().tolist()])

# %% [markdown]
# SAN's softmax over one number is the constant 1: nothing about where to look is ever learned, its gradient is 0, and what remains
# is $u^0 + S\,v$, a sum. BAN's softmax is left with the words: "where to look" has become "which word to read". All token
# fusions of this chapter therefore get {val}`03_fusion.size.cells` tokens, with masks.
#
# ## Stages, and words to describe a fusion
#
# **Late** fusion joins answers: the mean of logits (a product of opinions), a vote (the mean of probabilities), or a
# weighted mean in which each side also says how unsure it is (inverse variance).
# **Early** fusion joins tokens before any joint encoder. **Hybrid** fusion does both {cite:p}`baltrusaitis2019multimodal`. Surveys use four more pairs of words:
#
# - *symmetric*: swapping the modalities gives the same kind of model; in an *asymmetric* one they have different roles.
# - *explicit*: the interaction is written down (a product, an attention map); *implicit*: later layers must find it.
# - *token-level*: single tokens meet; *instance-level*: the whole picture meets the whole sentence.
# - The representation is *joint* (one vector), *coordinated* (two spaces tied by a similarity: CLIP, chapter 5), or
#   *encoder–decoder* (a picture goes in, a sentence comes out: chapter 11). All methods of this chapter are joint.

# %%
chapter.value("size.cells", int(cells))
kinds = {  # method: (symmetric?, explicit?, level, meets)
    "sum": ("yes", "no", "instance"), "concat": ("yes", "no", "instance"), "FiLM": ("no", "yes", "instance"),
    "gated": ("no", "yes", "instance"), "product": ("yes", "yes", "instance"), "MFB": ("yes", "yes", "instance"),
    "low-rank tensor": ("yes", "yes", "instance"), "FiLM at tokens": ("no", "yes", "token"),
    "attend, FiLM": ("no", "yes", "token"), "SAN": ("no", "yes", "token"), "BAN": ("yes", "yes", "token"),
    "early (joint transformer)": ("yes", "yes", "token"), "late (mean)": ("yes", "no", "instance"),
    "late (variance)": ("yes", "no", "instance"), "hybrid": ("no", "yes", "both"),
}  # fmt: skip
place = {m.title: GROUPS[m.meets] for m in METHODS.values()}
properties = [{"method": m, "meets at": place[m], "symmetric": s, "explicit": e, "level": v, "representation": "joint"}
              for m, (s, e, v) in kinds.items()]  # fmt: skip

# %%
chapter.table(pd.DataFrame(properties), "properties", caption="The methods in the words of the surveys.")

# %% [markdown]
# ## The experiment
#
# **The same for all.** Scenes with balanced questions of eight families (chapter 1): each question is asked about two pictures and has
# another answer on each, so that the words alone tell nothing. The picture encoder was taught to *name what is in each cell* of its grid and the
# question encoder to *fill in the slots* of what is asked; both were then frozen. Neither ever saw an answer. A fusion gets
# {val}`03_fusion.size.cells` image tokens (presence, probabilities of attribute values, place) or their sum, and the slots or their sum.
# Optimiser, number of epochs, order of the data per seed, and the head (two hidden layers) are the same.
#
# **What differs.** The fusion; the width, where a fusion's cost is tokens × width²; and the head, in four rows that exist for the
# proposition above. Sizes are in {numref}`tab-03-fusion-results`.
#
# **What counts.** {val}`03_fusion.size.questions:,d` test questions about {val}`03_fusion.size.pictures:,d` pictures, {val}`03_fusion.size.seeds` seeds. Intervals
# hold seeds *and* pictures to be random; choices between methods are made on validation, never on the test set.
# The rules of the claims that this chapter judges were written before the runs:

# %%
chapter.value("size.questions", len(test))
chapter.value("size.pictures", len(set(pictures)))
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = pd.DataFrame([{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.id in ("F1", "F2", "F3")])
chapter.table(rules, "rules", caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.")

# %% [markdown]
# The baselines: the most frequent answer to everything; a model without the picture; one without the question; and the best
# method with *another* picture shown to it than the one that is asked about.

# %%
majority = baselines.majority(scene_split(profile, "train").samples, test.samples).correct[None]
shuffled = readout.right_or_wrong(runs["attend_film"], truth, "predicted_shuffled")
base = readout.accuracy_table(
    {"majority": majority, "shuffled": shuffled, "question_only": correct["question_only"], "picture_only": correct["picture_only"]}, pictures
).set_index("unit")
for unit, row in base.iterrows():
    chapter.value(f"base.{unit}", dict(row[["mean", "low", "high", "n"]]), of="questions")
chapter.value("base.chance", test.chance(), exact=True)

# %%
table = readout.accuracy_table(correct, pictures, families)
by = table.set_index(["unit", "family"])
overall = table[table["family"] == "all"].set_index("unit").loc[ORDER]
kept = [u for u in METHODS if group_of[u] in ("answers", "pooled", "tokens", "sequence", "attended")]
best = readout.best_on_validation(runs, kept)
best_pooled = readout.best_on_validation(runs, pooled)
best_late = readout.best_on_validation(runs, [u for u in METHODS if METHODS[u].meets == "answers"])

# %% [markdown]
# ### Every family, every method

# %% tags=["hide-input"]
def family_panel(ax, family):
    """Accuracy of all methods on one family, drawn from chance upwards."""
    chance = test.chance(family)
    for at, unit in enumerate(ORDER):
        row = by.loc[(unit, family)]
        colour = COLOUR[group_of[unit]]
        ax.barh(at, row["mean"] - chance, left=chance, height=0.64, color=colour, alpha=0.3, lw=0)
        dot(ax, at, row, unit, ms=3.6)
    ax.axvline(chance, color=figures.INK["light"], ls="--", lw=0.9)
    ax.set_title(family.replace("_", "\n"), fontsize=9)
    ax.set(xlim=(0, 1.02), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"], yticks=range(len(ORDER)))
    ax.tick_params(axis="y", length=0, labelsize=8)
    ax.grid(axis="y", visible=False)


# %% tags=["hide-input"]
fig, axes = plt.subplots(1, len(scenes.FAMILIES), figsize=(9.6, 6.4), sharey=True)
for ax, family in zip(axes, scenes.FAMILIES):
    family_panel(ax, family)
axes[0].set_yticklabels([METHODS[u].title for u in ORDER])
axes[0].invert_yaxis()
edges = [i for i in range(1, len(ORDER)) if group_of[ORDER[i]] != group_of[ORDER[i - 1]]]
for ax in axes:
    for edge in edges:
        ax.axhline(edge - 0.5, color=figures.GRID["light"], lw=1)
marks = [plt.Line2D([], [], color=COLOUR[g], marker=MARKER[g], mfc="none" if g == "linear" else COLOUR[g], lw=0, label=t) for g, t in GROUPS.items()]
fig.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8)
hardest = table[table["unit"] == best].set_index("family")["mean"].drop("all").idxmin()
chapter.figure(
    fig, "accuracy_by_family", data=table.assign(chance=[test.chance(None if f == "all" else f) for f in table["family"]]), records=records,
    caption="Same tokens, same head, another fusion: accuracy by question family with 95 % intervals over seeds and pictures. Bars start "
    "at chance (dashed), which is what the words alone are worth. Colour and marker say where picture and question meet.",
    alt=f"Eight panels of dots, one per question family, {len(ORDER)} methods each. Overall {METHODS[best].title} has {overall.loc[best, 'mean']:.0%}, "
    f"the best pooled fusion {overall.loc[best_pooled, 'mean']:.0%}, late fusion {overall.loc[best_late, 'mean']:.0%}, chance {test.chance():.0%}; "
    f"hardest for {METHODS[best].title} is {hardest.replace('_', ' ')}.",
)

# %%
def share(row):
    return f"{row['mean']:.1%} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


wide = [
    {"method": METHODS[u].title, **{f.replace("_", " "): share(by.loc[(u, f)]) for f in scenes.FAMILIES}} for u in ORDER
]
chapter.table(pd.DataFrame(wide), "families", records=records, caption="Accuracy by family with 95 % intervals.")

# %% [markdown]
# ### Overall, and against the baselines

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.4, 6.0))
for at, (unit, row) in enumerate(overall.iterrows()):
    dot(ax, at, row, unit)
lines = {"majority": (":", base.loc["majority", "mean"]), "chance": ("--", test.chance()), "shuffled picture": ("-.", base.loc["shuffled", "mean"])}
for name, (style, at) in lines.items():
    ax.axvline(at, ls=style, lw=1.2, color=figures.INK["light"], label=f"{name} {at:.1%}")
for edge in edges:
    ax.axhline(edge - 0.5, color=figures.GRID["light"], lw=1)
ax.set(yticks=range(len(ORDER)), yticklabels=overall.index.map(lambda u: METHODS[u].title), xlabel="accuracy, all families")
ax.grid(axis="y", visible=False)
ax.invert_yaxis()
first = ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=8, borderaxespad=0.2)
fig.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8)
drawn = pd.concat([overall.reset_index(), base.loc[["majority", "shuffled"]].reset_index()]).drop(columns="family")
chapter.figure(
    fig, "overall", data=drawn, records=records,
    caption="Accuracy over all families, grouped by where the modalities meet, with 95 % intervals. Lines: the baselines.",
    alt=f"Forest plot of {len(ORDER)} methods from {overall['mean'].min():.0%} to {overall['mean'].max():.0%}; "
    f"majority {base.loc['majority', 'mean']:.0%}, shuffled picture {base.loc['shuffled', 'mean']:.0%}, chance {test.chance():.0%}.",
)

# %%
cost = readout.cost_table(runs).set_index("unit").loc[ORDER]
results = overall[["mean", "low", "high", "n"]].join(cost).reset_index(drop=True)
results.insert(0, "method", [METHODS[u].title for u in ORDER])
results["MFLOP"], results["ms per step"] = results.pop("flops") / 1e6, 1e3 * results.pop("seconds_per_step")
results = results.rename(columns={"activation_mb": "activations, MB"})
chapter.table(
    results, "results", records=records,
    formats={k: ".1%" for k in ("mean", "low", "high")} | {"MFLOP": ".3f", "ms per step": ".1f", "activations, MB": ".1f"},
    caption="Accuracy over all families with its interval, and what it costs: parameters of fusion and head, multiplications and additions "
    "for one question, what a training step keeps in memory for its backward pass, and its time.",
)

# %% tags=["hide-input"]
def value(key, interval, of="questions"):
    """A measured number for the text; anything with mean, low, high and n."""
    chapter.value(key, {k: interval[k] if isinstance(interval, dict) else getattr(interval, k) for k in ("mean", "low", "high", "n")}, of=of)


for name, unit in {"best": best, "best_pooled": best_pooled, "best_late": best_late}.items():
    chapter.value(f"{name}.title", METHODS[unit].title)
    value(f"{name}.accuracy", dict(overall.loc[unit]))
for unit in ORDER:
    value(f"accuracy.{unit}", dict(overall.loc[unit]))

# %% [markdown]
# Chosen on validation, the best of all is **{val}`03_fusion.best.title`** with {val}`03_fusion.best.accuracy:ci.1%`; the best fusion of pooled vectors is
# **{val}`03_fusion.best_pooled.title`** with {val}`03_fusion.best_pooled.accuracy:ci.1%`; the best late fusion, **{val}`03_fusion.best_late.title`**, has
# {val}`03_fusion.best_late.accuracy:ci.1%`. Without the picture a model reaches {val}`03_fusion.base.question_only:.1%`, without the question
# {val}`03_fusion.base.picture_only:.1%`; chance is {val}`03_fusion.base.chance:.1%`, because counts and attributes have more than two answers. Shown
# another picture, attend-FiLM falls to {val}`03_fusion.base.shuffled:.1%`: it does use the picture it is asked about.
#
# ### Gain over concatenation
#
# The field's default is to concatenate pooled vectors. What does each method gain over that, with the same seed on the same questions?
# There are many comparisons with one base, so the p-values are Holm's {cite:p}`holm1979`.

# %%
fused = {u: correct[u] for u in ORDER if group_of[u] != "nowhere"}
gains = readout.gain_table(fused, "pool_concat", pictures)
gains.insert(1, "method", [METHODS[u].title for u in gains["unit"]])
chapter.table(
    gains.drop(columns="unit"), "gains", records=records, formats={k: "+.1%" for k in ("mean", "low", "high")} | {"p": ".2g", "p_holm": ".2g"},
    caption="Gain in accuracy over pooled concatenation, paired by seed and question; paired t test over seeds, adjusted for all rows.",
)

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.0, 5.4))
for at, row in enumerate(gains.to_dict("records")):
    dot(ax, at, row, row["unit"])
    if row["p_holm"] < 0.05:
        ax.annotate("∗", (row["high"], at), xytext=(5, -4), textcoords="offset points", fontsize=11)
ax.axvline(0, color=figures.INK["light"], lw=1)
ax.set(yticks=range(len(gains)), yticklabels=gains["method"], xlabel="gain over pooled concatenation")
ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:+.0f}".replace("-", "−") + (" points" if v == ax.get_xticks()[-2] else ""))
ax.invert_yaxis()
won = gains[(gains["p_holm"] < 0.05) & (gains["mean"] > 0)]
chapter.value("gains.won", len(won))
chapter.value("gains.compared", len(gains))
chapter.figure(
    fig, "gain_over_concat", data=gains, records=records,
    caption="Gain over pooled concatenation in percentage points. A star: Holm's p is below five in a hundred.",
    alt=f"Forest plot of {len(gains)} gains, from {gains['mean'].min():+.1%} to {gains['mean'].max():+.1%}; {len(won)} are positive and significant.",
)

# %% [markdown]
# {val}`03_fusion.gains.won` of {val}`03_fusion.gains.compared` methods gain significantly.
#
# ### Which families need interaction?
#
# Climb three steps: from an additive model, to the best pooled fusion that multiplies or has a deep head, to the best that looks at tokens. What each
# step adds, family by family, says what the family needs.

# %%
additive = readout.best_on_validation(runs, ["linear_sum", "linear_concat", "late_mean"])
looking = readout.best_on_validation(runs, [u for u in METHODS if METHODS[u].meets in ("attended", "tokens", "sequence")])
STEPS = {"additive": additive, "pooled": best_pooled, "tokens": looking}
steps = table[table["unit"].isin(STEPS.values()) & (table["family"] != "all")].reset_index(drop=True)
steps["step"] = steps["unit"].map({u: s for s, u in STEPS.items()})
need = {f: readout.gain([correct[looking]], [correct[additive]], pictures, families == f).interval for f in scenes.FAMILIES}
climb = sorted(scenes.FAMILIES, key=lambda f: need[f].mean)

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.6, 4.2))
for at, family in enumerate(climb):
    found = [by.loc[(u, family)] for u in STEPS.values()]
    chance = test.chance(family)
    ax.plot([chance] * 2, [at - 0.32, at + 0.32], color=figures.INK["light"], ls="--", lw=1.1)
    levels = [r["mean"] for r in found]
    ax.hlines(at, levels[0], levels[1], color=COLOUR["pooled"], lw=6, alpha=0.35)
    ax.hlines(at, levels[1], levels[2], color=COLOUR["attended"], lw=6, alpha=0.35)
    for row, mark, colour in zip(found, "osv", (COLOUR["nowhere"], COLOUR["pooled"], COLOUR["attended"])):
        ax.errorbar(row["mean"], at, xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]], fmt=mark, color=colour, capsize=2, ms=6)
names = [f"{s}: {METHODS[u].title}" for s, u in STEPS.items()]
handles = [plt.Line2D([], [], marker=m, color=c, lw=0, label=n) for m, c, n in zip("osv", (COLOUR["nowhere"], COLOUR["pooled"], COLOUR["attended"]), names)]
handles.append(plt.Line2D([], [], color=figures.INK["light"], ls="--", lw=1.1, label="chance"))
fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
ax.set(yticks=range(len(climb)), yticklabels=[f.replace("_", " ") for f in climb], xlim=(0, 1.02), xlabel="accuracy")
chapter.figure(
    fig, "need_of_interaction", data=steps, records=[r for u in STEPS.values() for r in runs[u]],
    caption="What each step of interaction buys. Grey circle: no interaction. Blue square: pooled vectors interact. Red triangle: the question meets "
    "tokens. Families are sorted by the whole way; each step's method is chosen on validation.",
    alt="Dumbbells for eight families. Least gained from the first to the last step: "
    f"{climb[0].replace('_', ' ')} ({need[climb[0]].mean:+.0%}); most: {climb[-1].replace('_', ' ')} ({need[climb[-1]].mean:+.0%}).",
)

# %% tags=["hide-input"]
for name, family in {"least": climb[0], "most": climb[-1]}.items():
    chapter.value(f"need.{name}.family", family.replace("_", " "))
    value(f"need.{name}.gain", need[family])
by_pooling = {f: readout.gain([correct[best_pooled]], [correct[additive]], pictures, families == f).interval for f in scenes.FAMILIES}
by_looking = {f: readout.gain([correct[looking]], [correct[best_pooled]], pictures, families == f).interval for f in scenes.FAMILIES}
for step, found in {"pooling": by_pooling, "looking": by_looking}.items():
    helped = [f.replace("_", " ") for f in scenes.FAMILIES if found[f].low > 0.02]
    chapter.value(f"need.{step}.families", ", ".join(helped) or "no family")
chapter.value("need.additive.title", METHODS[additive].title)
chapter.value("need.looking.title", METHODS[looking].title)

# %% [markdown]
# The whole way is worth most in **{val}`03_fusion.need.most.family`** ({val}`03_fusion.need.most.gain:+.1p`) and least in
# **{val}`03_fusion.need.least.family`** ({val}`03_fusion.need.least.gain:+.1p`). The first step, interaction of pooled vectors, adds more than two points (with its whole
# interval) in: {val}`03_fusion.need.pooling.families`. The second, looking at tokens, does so in: {val}`03_fusion.need.looking.families`.
#
# Pooled vectors lose *which colour belongs to which shape*. Where an answer needs that binding, no way of multiplying pooled vectors brings it back.

# %% [markdown]
# ### What accuracy costs

# %% tags=["hide-input"]
PRICES = {"flops": "FLOPs per question", "parameters": "parameters", "seconds_per_step": "seconds per step", "activation_mb": "activations per step, MB"}
priced = overall.drop(columns="family").join(cost).loc[list(fused)]


def frontier(price):
    """Methods that no other beats at a lower or equal price."""
    ordered = priced.sort_values([price, "mean"], ascending=[True, False])
    return list(ordered.index[ordered["mean"] > ordered["mean"].cummax().shift(fill_value=0)])


fig, axes = plt.subplots(2, 2, figsize=(8.8, 6.8), sharey=True)
for ax, (price, label) in zip(axes.flat, PRICES.items()):
    front = frontier(price)
    ax.step(priced.loc[front, price], priced.loc[front, "mean"], where="post", color=figures.INK["light"], lw=0.8, ls=":")
    for unit, row in priced.iterrows():
        g = group_of[unit]
        ax.plot(row[price], row["mean"], MARKER[g], color=COLOUR[g], mfc="none" if g == "linear" else COLOUR[g])
    for i, unit in enumerate(front):
        ax.annotate(METHODS[unit].title, (priced.loc[unit, price], priced.loc[unit, "mean"]), xytext=(-6, 5), ha="right", textcoords="offset points", fontsize=8)
    ax.set(xscale="log", xlabel=label)
    ax.margins(x=0.25, y=0.12)

# %% tags=["hide-input"]
for ax in axes[:, 0]:
    ax.set_ylabel("accuracy")
fig.legend(handles=marks[1:], loc="outside lower center", ncols=3, fontsize=8)
cheap = frontier("flops")
chapter.value("cost.frontier", ", ".join(METHODS[u].title for u in cheap))
chapter.figure(
    fig, "cost_against_accuracy", data=priced.reset_index(), records=records,
    caption="Accuracy against four prices (logarithmic). Named and joined by a dotted line: the methods that nothing cheaper beats.",
    alt=f"Four scatter plots of accuracy against cost. By FLOPs, nothing cheaper beats {', '.join(METHODS[u].title for u in cheap)}.",
)

# %% [markdown]
# By FLOPs, the methods that nothing cheaper beats are: {val}`03_fusion.cost.frontier`.
#
# ### How cost grows with tokens
#
# The table above has {val}`03_fusion.size.cells` image tokens. What if there are more? Here each fusion reads longer and longer inputs, timed on one thread; the exponent
# $p$ in seconds $\propto N^p$ is fitted over the larger half of the sizes and stands beside the predicted one.

# %%
timed = readout.by_unit(experiments.load("fusion_cost", profile))
cost_title = {u: fusion_cost.METHODS[u].title for u in timed}
rows = []
for unit, repeats in timed.items():
    for k, tokens in enumerate(repeats[0].arrays["tokens"]):
        interval = statistics.mean_over_seeds([r.arrays["seconds"][k] for r in repeats])
        rows.append({"unit": unit, "method": cost_title[unit], "tokens": int(tokens), **readout.row(interval)})
timings = pd.DataFrame(rows)
exponent = {u: fusion_cost.exponent_interval(r) for u, r in timed.items()}

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7.6, 4.6))
for unit, some in timings.groupby("unit", sort=False):
    predicted = timed[unit][0].details["predicted"]
    name = f"{cost_title[unit]}: {exponent[unit].mean:.2f} (predicted {predicted})"
    (line,) = ax.plot(some["tokens"], some["mean"], label=name, ms=4)
    ax.fill_between(some["tokens"], some["low"].clip(lower=some["mean"].min() / 2), some["high"], color=line.get_color(), alpha=0.15, lw=0)
ax.set(xscale="log", yscale="log", xlabel="tokens of both sides", ylabel="seconds per question (forward)")
sizes = sorted(set(timings["tokens"]))
ax.set_xticks(sizes, [f"{s:,}" for s in sizes])
ax.minorticks_off()
ax.legend(fontsize=8, title="exponent", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
steep = max(exponent, key=lambda u: exponent[u].mean)
chapter.figure(
    fig, "cost_curves", data=timings, records=[r for some in timed.values() for r in some],
    caption="Measured seconds against the number of tokens, both logarithmic, with fitted exponents beside the predicted ones. Bands: t intervals over repeats.",
    alt=f"Seven rising lines from {sizes[0]:,} to {sizes[-1]:,} tokens; the steepest is {cost_title[steep]} with an exponent of {exponent[steep].mean:.2f}.",
)

# %%
fitted = [{"method": cost_title[u], "predicted": timed[u][0].details["predicted"], **readout.row(i)} for u, i in exponent.items()]
value("exponent.early", exponent["early"], of="repeats")
value("exponent.attend", exponent["attend_film"], of="repeats")
chapter.table(
    pd.DataFrame(fitted), "exponents", formats={k: ".2f" for k in ("mean", "low", "high")},
    caption="Exponents of the measured time in the number of tokens, with 95 % intervals over repeats, and the predicted ones.",
)

# %% [markdown]
# A joint sequence grows with exponent {val}`03_fusion.exponent.early:.2f`, attention from one question vector with {val}`03_fusion.exponent.attend:.2f`. A fit below its
# prediction means that a cheaper term still weighs at these sizes; chapter 4 takes the layers apart.
#
# ### Combinations that were never seen
#
# In the split `test_composition` every picture has at least one pair of colour and shape that training never showed.

# %%
other = scene_split(profile, "test_composition")
other_truth, other_pictures = [s.answer for s in other], [s.picture_id for s in other]
new = {u: readout.right_or_wrong(r, other_truth, "predicted_test_composition") for u, r in runs.items()}
unseen = readout.accuracy_table(new, other_pictures).set_index("unit").loc[ORDER]
both_splits = pd.concat([overall.assign(split="test"), unseen.assign(split="test_composition")]).reset_index().drop(columns="family")
drop = (overall["mean"] - unseen["mean"])[kept].sort_values()
value("unseen.best", dict(unseen.loc[best]))

# %% tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.2, 5.2))
low = min(overall["low"].min(), unseen["low"].min()) - 0.02
ax.plot([low, 1], [low, 1], color=figures.INK["light"], lw=1, ls="--")
for unit in ORDER:
    g, a, b = group_of[unit], overall.loc[unit], unseen.loc[unit]
    ax.errorbar(a["mean"], b["mean"], xerr=[[a["mean"] - a["low"]], [a["high"] - a["mean"]]], yerr=[[b["mean"] - b["low"]], [b["high"] - b["mean"]]],
                fmt=MARKER[g], color=COLOUR[g], mfc="none" if g == "linear" else COLOUR[g], lw=1)  # fmt: skip
ax.set(xlabel="accuracy, combinations as in training", ylabel="accuracy, unseen combinations", xlim=(low, 1), ylim=(low, 1), aspect="equal")
fig.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8)
chapter.figure(
    fig, "composition", data=both_splits, records=records,
    caption="Accuracy on pictures with unseen pairs of colour and shape against accuracy on pictures like those in training. On the dashed line nothing is lost.",
    alt=f"Scatter plot of {len(ORDER)} methods near a diagonal. The loss runs from {drop.iloc[0]:+.1%} ({METHODS[drop.index[0]].title}) "
    f"to {drop.iloc[-1]:+.1%} ({METHODS[drop.index[-1]].title}).",
)

# %% [markdown]
# {val}`03_fusion.best.title` has {val}`03_fusion.unseen.best:ci.1%` there. Its tokens name colour and shape as separate features, so a new combination is not a new
# thing to it; a fusion can only lose what its tokens keep apart. (Chapter 5 asks the same of encoders that were trained end to end.)
#
# ### How they learn

# %% tags=["hide-input"]
watched = list(dict.fromkeys(["late_mean", "pool_concat", best_pooled, "token_film", "early", "san", "attend_concat", "attend_film"]))
curves = readout.learning_curves({u: runs[u] for u in watched})
fig, ax = plt.subplots(figsize=(7.8, 4.4))
for i, unit in enumerate(watched):
    some, colour = curves[curves["unit"] == unit], figures.PALETTE[i % 6]
    ax.plot(some["epoch"], some["mean"], color=colour, marker=figures.MARKERS[i % 6], ls=figures.LINESTYLES[i // 6], label=METHODS[unit].title)
    for run in runs[unit]:
        ax.plot(some["epoch"], [e["validation"] for e in run.details["history"]], color=colour, lw=0.6, alpha=0.45, marker="", ls="-")
ax.set(xlabel="epoch", ylabel="validation accuracy")
ax.xaxis.get_major_locator().set_params(integer=True)
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
last = curves[curves["epoch"] == curves["epoch"].max()].set_index("unit")["mean"]
chapter.figure(
    fig, "learning_curves", data=curves, records=[r for u in watched for r in runs[u]],
    caption="Validation accuracy by epoch: mean (thick, with markers) and every seed (thin).",
    alt=f"Learning curves of {len(watched)} methods; at the last epoch from {last.min():.0%} ({METHODS[last.idxmin()].title}) to {last.max():.0%} ({METHODS[last.idxmax()].title}).",
)

# %% tags=["hide-input"]
def largest_step(unit):
    """Largest gain of validation accuracy from one epoch to the next, and when, averaged over seeds."""
    climbs = [np.diff([0] + [e["validation"] for e in r.details["history"]])[1:] for r in runs[unit]]
    return [(c.max(), c.argmax() + 2) for c in climbs if len(c)]


jumps = largest_step("attend_film")
text = f"The seeds of {METHODS['attend_film'].title} make their largest step between two epochs at epoch " + ", ".join(str(at) for _, at in jumps)
chapter.value("jump.sentence", text + "." if jumps else "At this profile there is one epoch, and no curve to speak of.")

# %% [markdown]
# {val}`03_fusion.jump.sentence` Families that need two facts at once, exclusive-or above all, give no gradient to speak of until one of the two has been found;
# a plateau in such a curve need not mean that training is over.
#
# ## The same fusions on real data
#
# Scenes are drawn, their tokens are almost names, and their questions are balanced. Do the differences survive where nothing of this holds? Three small real
# data sets are asked with eleven of the methods: easy-VQA {cite:p}`zhou2019easyvqa` (drawn shapes, template questions),
# NLVR {cite:p}`suhr2017nlvr` (sentences by people about drawn boxes, true or false) and VQA-RAD {cite:p}`lau2018vqarad` (radiology pictures, questions by clinicians).
# The image tokens come from three frozen picture encoders, concatenated; none of them was trained on these pictures.

# %%
present = fusion_real.present()
real = readout.by_unit(experiments.load("fusion_real", profile)) if present else {}
for name, about in fusion_real.DATASETS.items():
    if name not in present:
        display(HTML(f'<div class="admonition warning"><p class="admonition-title">{about.title} is not here</p><p>Its results are '
                     f"left out below. This line gets it: <code>python -m vqa_core data fetch {name}</code></p></div>"))  # fmt: skip

# %%
def scores(unit, array="correct_test"):
    """bool (S, Q) of one unit of the experiment on real data."""
    return np.stack([r.arrays[array] for r in real[unit]]).astype(bool)


def real_row(name, what, array="correct_test"):
    interval = statistics.seeds_and_questions(scores(f"{name}.{what}", array), real[f"{name}.{what}"][0].arrays["picture_test"])
    title = f"{METHODS[what].title}, other picture" if array != "correct_test" else METHODS[what].title
    return {"data": fusion_real.DATASETS[name].title, "name": name, "unit": what, "method": title, **readout.row(interval)}


SWEEP = sorted(fusion_real.SWEEP, key=ORDER.index)
on_real = pd.DataFrame([real_row(n, u) for n in present for u in SWEEP])

# %% tags=["hide-input"]
def real_panel(ax, name):
    """Accuracies of the methods on one data set; the dashed line is what the questions alone are worth."""
    some = on_real[on_real["name"] == name].set_index("unit")
    for at, unit in enumerate(SWEEP):
        dot(ax, at, some.loc[unit], unit)
    ax.axvline(some.loc["question_only", "mean"], ls="--", lw=1, color=figures.INK["light"])
    ax.set(yticks=range(len(SWEEP)), title=fusion_real.DATASETS[name].title, xlabel="accuracy")
    ax.set_yticklabels([METHODS[u].title for u in SWEEP])
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)


if present:
    fig, axes = plt.subplots(1, len(present), figsize=(9.0, 3.9), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, present):
        real_panel(ax, name)
    axes[0, 0].invert_yaxis()
    leaders = [on_real[on_real["name"] == n].sort_values("mean").iloc[-1] for n in present]
    shown = "; ".join(f"{r['data']}: {r['method']} {r['mean']:.0%}" for r in leaders)
    display(chapter.figure(
        fig, "real_data", data=on_real, records=[r for some in real.values() for r in some],
        caption="The same fusions on real data, with 95 % intervals over seeds and pictures. Dashed: the question alone. The axes differ.",
        alt=f"Dot plots of {len(SWEEP)} methods on {len(present)} real data sets. Highest: {shown}."))  # fmt: skip

# %% tags=["hide-input"]
def verdict(d):
    """In words: what a paired difference says."""
    sure = "more" if d.interval.low > 0 else "less" if d.interval.high < 0 else None
    return f"{abs(d.interval.mean):.1%} {sure} (95 % CI {d.interval.low:+.1%} to {d.interval.high:+.1%})" if sure else (
        f"no clear difference (95 % CI {d.interval.low:+.1%} to {d.interval.high:+.1%})")  # fmt: skip


def compare(name, a, b):
    groups = real[f"{name}.{a}"][0].arrays["picture_test"]
    return statistics.paired_difference(scores(f"{name}.{a}"), scores(f"{name}.{b}"), groups)


for name, about in fusion_real.DATASETS.items():
    for a, b in (("attend_film", "pool_concat"), ("pool_film", "pool_concat"), ("attend_film", "question_only")):
        said = verdict(compare(name, a, b)) if name in present else "not measured in this build"
        chapter.value(f"real.{name}.{a}.{b}", said)

# %% [markdown]
# Attend-FiLM against concatenation of pooled vectors:
#
# - easy-VQA: {val}`03_fusion.real.easy_vqa.attend_film.pool_concat`;
# - NLVR: {val}`03_fusion.real.nlvr.attend_film.pool_concat`;
# - VQA-RAD: {val}`03_fusion.real.vqa_rad.attend_film.pool_concat`.
#
# And against the question alone, which on real data is the baseline that matters: easy-VQA, {val}`03_fusion.real.easy_vqa.attend_film.question_only`;
# NLVR, {val}`03_fusion.real.nlvr.attend_film.question_only`; VQA-RAD, {val}`03_fusion.real.vqa_rad.attend_film.question_only`. A fusion can't bring into the answer what is not in the
# tokens: where frozen features say little about the picture, all fusions come close to the question-only line.
#
# ### More encoders, better answers?
#
# The tokens above are three encoders side by side. Claim F3 says that such a concatenation can lose to fewer encoders. Here is attend-FiLM on each
# encoder alone, and on all.

# %%
def encoders_of(name):
    """What was run on fewer encoders, and all of them, as unit → title."""
    fewer = sorted((u for u in real if u.startswith(f"{name}.encoders_")), key=lambda u: (len(u), u))
    titles = {u: " + ".join(fusion_real.ENCODERS[c] for c in u.rpartition("_")[2]) for u in fewer}
    return titles | {f"{name}.attend_film": "all three"}


stacked = [
    {"data": fusion_real.DATASETS[n].title, "name": n, "unit": u, "encoders": title,
     **readout.row(statistics.seeds_and_questions(scores(u), real[u][0].arrays["picture_test"]))}
    for n in present for u, title in encoders_of(n).items()
]  # fmt: skip

# %% tags=["hide-input"]
if present:
    stacked = pd.DataFrame(stacked)
    labels = list(dict.fromkeys(stacked["encoders"]))
    fig, axes = plt.subplots(1, len(present), figsize=(9.0, 2.9), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, present):
        for row in stacked[stacked["name"] == name].to_dict("records"):
            every = row["encoders"] == "all three"
            ax.errorbar(row["mean"], labels.index(row["encoders"]), xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]],
                        fmt="s" if every else "o", color=figures.PALETTE[1 if every else 0], capsize=2)  # fmt: skip
        ax.set(yticks=range(len(labels)), yticklabels=labels, title=fusion_real.DATASETS[name].title, xlabel="accuracy", ylim=(len(labels) - 0.5, -0.5))
        ax.locator_params(axis="x", nbins=4)
    said = ", ".join(f"{r['data']} {r['mean']:.0%}" for r in stacked[stacked["encoders"] == "all three"].to_dict("records"))
    display(chapter.figure(
        fig, "encoders", data=stacked, records=[r for u in stacked["unit"] for r in real[u]],
        caption="Attend-FiLM on single picture encoders (blue circles) and on their concatenation (red squares).",
        alt=f"Dot plots of accuracy by picture encoder on {len(present)} data sets; all three encoders together have {said}."))  # fmt: skip

# %% [markdown]
# ## What was looked at
#
# The heads of attend-FiLM, for one test question that it answers rightly: the brighter a cell, the more its token weighs in what the head reads. This is what the
# model *used*, layer by layer true by construction; it is not an explanation of *why* it answered so. Chapter 9 measures that difference.

# %%
run = runs["attend_film"][0]
feed = fusion.feed_of(profile, "test", "grid", "vector")
model = fusion.build(run.spec.model, d_i, d_t, answers)
model.load_state_dict({k.removeprefix("model."): torch.from_numpy(v) for k, v in run.arrays.items() if k.startswith("model.")})
right = correct["attend_film"][0]
chosen = next((i for i in np.flatnonzero(right) if families[i] == "spatial_relation" and truth[i] == "yes"), int(right.argmax()))
with torch.inference_mode():
    seen = model.eval()(*feed.batch([chosen])[:3])
heat = seen.fusion.attention[0, :, 0].unflatten(-1, (8, 8)).numpy()  # (heads, 8, 8)

# %% tags=["hide-input"]
sample = test[int(chosen)]
side = test.images.shape[1]
fig, axes = plt.subplots(3, 3, figsize=(6.4, 7.0))
for ax in axes.flat:
    ax.imshow(test.images[test.picture_index(sample.picture_id)], extent=(0, side, side, 0))
    ax.axis("off")
axes[0, 0].set_title("the picture", fontsize=9)
for head, ax in enumerate(axes.flat[1:]):
    ax.imshow(np.zeros((1, 1, 3)), extent=(0, side, side, 0), alpha=0.45)
    ax.imshow(heat[head], extent=(0, side, side, 0), cmap="inferno", vmin=0, vmax=max(heat.max(), 1e-6), alpha=0.7)
    ax.set_title(f"head {head + 1}: looks {heat[head].sum():.0%}", fontsize=9)
fig.suptitle(f"{sample.question}  —  {run.details['answers'][int(seen.logits.argmax())]}", fontsize=10)
weights = pd.DataFrame([{"head": h + 1, "row": r, "column": c, "weight": w} for (h, r, c), w in np.ndenumerate(heat)])
chapter.figure(
    fig, "attention", data=weights, records=[run], picture=True,
    caption="Attention weights of the eight heads over the grid of cells. What is missing to the whole went to the entry “nothing here”.",
    alt=f"A scene and eight heat maps over it for the question: {sample.question} The heads put from {heat.sum((1, 2)).min():.0%} to {heat.sum((1, 2)).max():.0%} of their weight on cells.",
)

# %% [markdown]
# How often do the heads weigh the objects that the answer depends on? Scenes know. Below is the share of the weight on cells that falls on the cells of these
# objects, over all test questions that have some, beside the share of such cells among those with any object.

# %%
def cells_of(sample):
    """Grid cells of the objects that the answer depends on, and of all objects."""
    things = test.scenes[test.picture_index(sample.picture_id)].objects
    cells = [int(t.y * 8) * 8 + int(t.x * 8) for t in things]
    return [cells[i] for i in sample.meta["objects"]], cells


rows = [i for i, s in enumerate(test) if s.meta["objects"]]
with torch.inference_mode():
    parts = [model(*feed.batch(rows[i : i + 1024])[:3]).fusion.attention for i in range(0, len(rows), 1024)]
weight = torch.cat(parts)[:, :, 0].sum(1).numpy()  # (Q, cells)
asked, every = zip(*(cells_of(test[i]) for i in rows))
pointed = np.array([w[a].sum() / w.sum() for w, a in zip(weight, map(list, asked))])
uniform = np.array([len(a) / len(e) for a, e in zip(asked, every)])
value("attention.pointed", statistics.bootstrap(pointed, pictures[rows]))
value("attention.uniform", statistics.bootstrap(uniform, pictures[rows]))

# %% [markdown]
# {val}`03_fusion.attention.pointed:ci.1%` of the weight lies on them, where looking at all objects alike would give {val}`03_fusion.attention.uniform:.1%`.
#
# ## What we saw

# %%
INTERACTION = np.isin(families, ["exclusive_or", "attribute_comparison", "count_comparison", "spatial_relation"])
f1 = readout.gain([correct["early"]], [correct[best_late]], pictures, INTERACTION)
f2 = readout.gain([correct["pool_film"], correct["pool_gated"]], [correct["pool_sum"], correct["pool_concat"]], pictures)
second = readout.gain([correct["attend_film"]], [correct["attend_concat"]], pictures)
chapter.claim("F1", f1.interval, of="questions")
chapter.claim("F2", f2.interval, of="questions")
for key, found in {"f1": f1, "f2": f2, "second_look": second}.items():
    value(f"claims.{key}", found.interval)

# %%
f3 = {}
for name in present:
    single = max((f"encoders_{c}" for c in fusion_real.ENCODERS), key=lambda w: np.mean([r.metrics["accuracy_val"].value for r in real[f"{name}.{w}"]]))
    f3[name] = compare(name, "attend_film", single)
if "vqa_rad" in f3:
    chapter.claim("F3", f3["vqa_rad"].interval, of="questions")
for name in fusion_real.DATASETS:
    chapter.value(f"claims.f3.{name}", verdict(f3[name]) if name in f3 else "not measured in this build")

# %% [markdown]
# - **Addition has a hard limit.** A sum, a concatenation, a mean of answers and a vote solve {val}`03_fusion.four.linear_sum:.0%` of the exclusive-or cases with a linear head;
#   attend-FiLM solves {val}`03_fusion.four.attend_film:.1%`.
# - **Where the two meet matters more than by which formula.** Pooled fusions lie between {val}`03_fusion.range.pooled.low:.1%` and {val}`03_fusion.range.pooled.high:.1%`; fusions
#   that let the question meet tokens lie between {val}`03_fusion.range.tokens.low:.1%` and {val}`03_fusion.range.tokens.high:.1%`.
# - **Early against late, where interaction is needed (F1):** {val}`03_fusion.claims.f1:+.1p` ({val}`03_fusion.claims.f1:range+.1p`): {verdict}`F1`.
# - **FiLM and gates against sum and concatenation (F2),** same pooled inputs, same deep head: {val}`03_fusion.claims.f2:+.1p` ({val}`03_fusion.claims.f2:range+.1p`): {verdict}`F2`.
#   The head can make up for a sum. A fairer second look gives both what was *looked at*: attend-FiLM against attend-concat is {val}`03_fusion.claims.second_look:+.1p`
#   ({val}`03_fusion.claims.second_look:range+.1p`). That look was not in the rule and judges nothing.
# - **All encoders against the best one (F3):** VQA-RAD {val}`03_fusion.claims.f3.vqa_rad`; easy-VQA {val}`03_fusion.claims.f3.easy_vqa`; NLVR {val}`03_fusion.claims.f3.nlvr`.
#
# What this does *not* say: that a method is good or bad in general. The tokens here are nearly symbols; the widths are small; each method had one learning rate. What it does say is
# about what a fusion *can't* do, and that is mathematics, and about what it does with the same input, and that is measured.
#
# ```{claims}
# :chapter: 3
# ```

# %% tags=["hide-input"]
span = {"pooled": [u for u in pooled], "tokens": [u for u in METHODS if METHODS[u].meets in ("tokens", "attended", "sequence")]}
for name, units in span.items():
    found = overall.loc[units, "mean"]
    chapter.value(f"range.{name}", {"mean": found.mean(), "low": found.min(), "high": found.max(), "n": len(units)}, of="methods")

# %% [markdown]
# ## Exercises
#
# One star: read and compute. Two stars: prove or program. Three stars: run an experiment.
#
# ```{exercise} ★ How many numbers?
# :label: ex-fusion-parameters
#
# For sizes $d_x, d_y, d_o$, how many parameters have `SumFusion`, `ConcatFusion`, and `FiLM` (conditioned on the question)? Complete the function and call `check_parameters` with it.
# ```

# %%
def parameters_of(name: str, d_x: int, d_y: int, d_o: int) -> int:
    """Number of parameters of SumFusion, ConcatFusion or FiLM."""
    return 0  # your formula


def check_parameters(yours) -> bool:
    """Whether a function has it right for each class, at three sizes."""
    cases = [(kind, s) for kind in (SumFusion, ConcatFusion, FiLM) for s in ((2, 3, 4), (5, 1, 2), (19, 60, 256))]
    return all(yours(k.__name__, *s) == sum(p.numel() for p in k(*s).parameters()) for k, s in cases)


check_parameters(parameters_of)

# %% [markdown]
# ````{solution-start} ex-fusion-parameters
# :class: dropdown
# ````
# Sum and concatenation both have $(d_x + d_y)\,d_o$ weights and one bias of $d_o$. FiLM's condition gives $2 d_x$ numbers, and its output layer reads $d_x$.

# %%
def solution(name, d_x, d_y, d_o):
    if name == "FiLM":
        return (d_y + 1) * 2 * d_x + (d_x + 1) * d_o
    return (d_x + d_y + 1) * d_o


check_parameters(solution)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} ★ FiLM contains the others
# :label: ex-fusion-special
#
# Which $W_f$, its bias and $W_o$ turn FiLM into (a) a sum $W_x x + W_y y$ with $d_y \le d_x$, (b) a product $W_o(x \odot W_y y)$? Why can't a *gate* become a sum?
# ```
#
# ```{solution} ex-fusion-special
# :class: dropdown
#
# (a) $\gamma = 1$ (zero weights, bias one), $\beta = V y$, $W_o = W_x$ gives $W_x x + W_x V y$; with an invertible $W_x$ any $W_y = W_x V$ is reached. (b) $\beta = 0$ and $\gamma = W_y y$.
# A gate multiplies the picture by numbers between zero and one and adds nothing: for $x = 0$ its output is the bias, whatever the question is.
# ```
#
# ```{exercise} ★★ Break additivity by hand
# :label: ex-fusion-xor
#
# Scalars $x, y \in \{0, 1\}$. Find weights of `SumFusion(1, 1, 2)`, a ReLU and a linear head that give the exclusive-or. Where does the proof of the proposition fail?
# ```
#
# ```{solution} ex-fusion-xor
# :class: dropdown
#
# Two hidden units $h_1 = \operatorname{ReLU}(x + y)$ and $h_2 = \operatorname{ReLU}(x + y - 1)$, score $h_1 - 2 h_2$: it is 0, 1, 1, 0. The proof needs $m = f(x) + g(y)$; ReLU of a sum is no such sum.
# ```
#
# ````{exercise} ★★ A vote adds up, too
# :label: ex-fusion-vote
#
# `LateFusion(rule="vote")` gives the logarithm of the mean of two probability vectors. Its *scores* are not additive. Show that it still has at most three of the four cells right.
# Does the proof work for `rule="variance"`?
# ````
#
# ```{solution} ex-fusion-vote
# :class: dropdown
#
# The logarithm is increasing, so the answer is the largest of $p_a(x) + q_a(y)$, which is additive: use $m = p_{\text{yes}} + q_{\text{yes}} - p_{\text{no}} - q_{\text{no}}$. With inverse variances the weights
# depend on *both* inputs, $w(x, y)\,a(x) + (1 - w(x, y))\,b(y)$, so the margin is not additive and the proof does not apply.
# ```
#
# ````{exercise} ★★ Rank
# :label: ex-fusion-rank
#
# Show that `LowRankTensorFusion` of rank $r$ is `TensorFusion` with a weight tensor of rank at most $r$, and check it numerically: build the tensor from the factors with `torch.einsum` and compare the outputs.
# ````
#
# ````{solution} ex-fusion-rank
# :class: dropdown
#
# $\sum_r (A_r[x;1])_o (B_r[y;1])_o = \sum_{ij} \bigl(\sum_r A_{roi} B_{roj}\bigr) [x;1]_i [y;1]_j$, and the bracket is a sum of $r$ outer products for every $o$.
#
# ```python
# low = LowRankTensorFusion(3, 4, 5, rank=2)
# A = torch.cat([low.image_factors.weight, low.image_factors.bias[:, None]], 1).view(2, 5, 4)  # (r, o, i)
# B = torch.cat([low.text_factors.weight, low.text_factors.bias[:, None]], 1).view(2, 5, 5)    # (r, o, j)
# W = torch.einsum("roi,roj->oij", A, B)
# x1, y1 = torch.cat([x := torch.randn(3), torch.ones(1)]), torch.cat([y := torch.randn(4), torch.ones(1)])
# torch.allclose(torch.einsum("oij,i,j->o", W, x1, y1), low.fuse(x, y).fused, atol=1e-5)
# ```
# ````
#
# ```{exercise} ★★ Nothing here
# :label: ex-fusion-nothing
#
# `AttendFusion` has one extra entry with score 0. Take it away: what does a head read when no token matches, and which question families should suffer? Predict, then change a copy of the class and run it.
# ```
#
# ```{solution} ex-fusion-nothing
# :class: dropdown
#
# Softmax over tokens alone always reads a whole token. Where nothing matches, scores are about equal and the head reads the mean of all tokens, which looks like an unsure match. *Existence* and *logic*, where absence is half of the
# answers, should suffer first. With the extra entry, a negative bias $b_h$ makes "nothing" the default.
# ```
#
# ````{exercise} ★★★ Your own fusion
# :label: ex-fusion-own
#
# Write a subclass of `VectorFusion` with a `fuse(x, y)` of your own, enter it in `METHODS` under a new name and run it with the code below. Does it lie on the frontier of {numref}`fig-03-fusion-cost-against-accuracy`?
#
# ```python
# from dataclasses import replace
# METHODS["mine"] = fusion.Method("mine", "attended", "grid", "vector", fusion._attend(MyFusion))
# spec = next(s for s in fusion.specs("cpu") if s.unit == "attend_film")
# fusion.run(replace(spec, unit="mine", model=replace(spec.model, fusion="mine"))).metrics["accuracy_test"]
# ```
# ````
#
# ```{solution} ex-fusion-own
# :class: dropdown
#
# There is no one answer. Three that teach something: $|W_x x - W_y y|$ (a difference: symmetric, and good at *same or not*), $\max(W_x x, W_y y)$, and FiLM whose $\gamma$ is a softmax over features. Report five seeds and the paired gain over
# `attend_film` with `readout.gain`, not one number.
# ```
#
# ```{exercise} ★★★ Fewer tokens
# :label: ex-fusion-coarse
#
# Average the image tokens over blocks of two by two cells before the fusion, then four by four. At which size does attend-FiLM fall to the level of pooled FiLM, and which families fall first?
# ```
#
# ```{solution} ex-fusion-coarse
# :class: dropdown
#
# Two objects in one block are pooled as in the pooled fusions: colour and shape come apart. Families that need the binding (comparison, relation, exclusive-or) fall first and counting last, because a sum counts. Use
# `feed.pictures.unflatten(1, (8, 8))` and a mean over blocks; the rest of `fusion.run` stays as it is.
# ```
#
# ## Further reading
#
# FiLM {cite:p}`perez2018film` and its ancestor inside batch norms {cite:p}`devries2017cbn`; bilinear pooling from compact sketches {cite:p}`fukui2016mcb` to factors
# {cite:p}`yu2017mfb`; stacked {cite:p}`yang2016san` and bilinear {cite:p}`kim2018ban` attention; tensors {cite:p}`zadeh2017tfn,liu2018lmf`; the taxonomy of fusion {cite:p}`baltrusaitis2019multimodal` and its
# continuation for transformers {cite:p}`xu2023survey`. Balanced pairs, which make the exclusive-or of picture and question the normal case: {cite:p}`zhang2016yinyang,goyal2017vqa2`.
