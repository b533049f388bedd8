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
# for {val}`03_fusion.size.runs` trainings on {val}`03_fusion.time.device`;
# how long the page itself took stands on {doc}`/book/status`.

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from torch import nn

from vqa_core import experiments, figures
from vqa_core.data import scenes
from vqa_core.evaluation import baselines, claims, statistics
from vqa_core.experiments import fusion, fusion_cost, fusion_real, readout
from vqa_core.experiments import fusion_drawing as drawing
from vqa_core.experiments.fusion import METHODS
from vqa_core.experiments.fusion_drawing import place, title
from vqa_core.experiments.scene_encoders import scene_split

figures.use_style()
chapter = figures.Chapter("03_fusion", profile=PROFILE)
profile = chapter.profile

# %% [markdown]
# The runs are read from disk; what is missing is computed now.

# %% tags=["hide-input"]
records = experiments.load("fusion", profile)
runs = readout.by_unit(records)
seeds = len(runs["pool_concat"])
ORDER = [u for u in drawing.ORDER if u in runs]  # a profile may leave out what is too slow for it

# %% tags=["hide-input"]
chapter.value("size.methods", len(runs))
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
feed = fusion.feed_of(profile, "test", "grid", "slots", empty_cells=True)
cells, d_i = feed.pictures.shape[1:]
d_t, answers = feed.words.shape[-1], len(fusion.answer_vocabulary(profile))
dim, narrow = fusion.PROFILES[profile].dim, fusion.PROFILES[profile].narrow
print(f"{cells} image tokens of {d_i} features, questions of {d_t} features, {answers} answers")

# %% tags=["hide-input"]
fig, frames = drawing.flow(cells, d_i, d_t, feed.words.shape[1], dim, narrow, answers)
chapter.figure(
    fig,
    "flow",
    data=frames,
    caption="Six ways from tokens to an answer, with the shapes of the experiment. Orange frames have seen the picture, blue ones the question, "
    "thick purple ones both: the further up they begin, the earlier the two meet.",
    alt=f"Six flow charts. In each, {cells} image tokens and a question run down to {answers} answers; "
    "they meet at the answers, at pooled vectors, at every token, after attention, in one sequence, or in two branches.",
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
from vqa_core.fusion.vector import (
    MFB,
    ConcatFusion,
    FiLM,
    GatedFusion,
    LowRankTensorFusion,
    ProductFusion,
    SumFusion,
)

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
    FiLM(2, 2, 2),
    condition=torch.cat([eye, zero]),
    condition_bias=torch.tensor([0.0, 0, 1, 1]),
    out_projection=eye,
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
print(
    "low rank",
    by_hand(LowRankTensorFusion(2, 2, 2, rank=1), image_factors=eye, text_factors=eye, **ones)
    .fuse(x, y)
    .fused.tolist(),
)

# %% [markdown]
# By hand: MFB has $x \odot y = (3, -2)$, roots $(\sqrt 3, -\sqrt 2)$, divided by $\sqrt 5$. The low-rank tensor has
# $(x + 1) \odot (y + 1) = (2 \cdot 4,\; 3 \cdot 0)$.
#
# **Conditional batch normalisation** {cite:p}`devries2017cbn` goes deeper down: the question shifts scale and offset of the
# batch norms *inside* the picture encoder. It needs the encoder to be trained, so it has no place in a comparison with
# frozen ones; the class is `ConditionalBatchNorm2d`, in `fusion/vector.py`.
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
    head, (a, b, p, q) = (
        nn.Linear(16, 1).double(),
        torch.randn(4, size, dtype=torch.float64),
    )
    s = lambda picture, question: head(module.fuse(picture, question).fused)  # noqa: E731
    return (s(a, p) - s(a, q) - s(b, p) + s(b, q)).abs().item()


# %% tags=["hide-input"]
pooled = [u for u in METHODS if u.startswith("pool_")]
chapter.table(
    pd.DataFrame([{"fusion": title(u), "contrast": contrast(u)} for u in pooled]),
    "contrast",
    formats={"contrast": ".1e"},
    caption="Interaction contrast of each vector fusion with a linear head and random weights. Sum and concatenation have rounding errors, no more.",
)

# %% [markdown]
# Does it hold in *trained* models? The scenes come in pairs, and each question is asked about both pictures of its pair, with
# different answers. Two questions of a pair that flip in opposite directions are the table above. Here are all of them in the test
# set, and how often a model gets all four cells right.

# %%
test = scene_split(profile, "test")
truth, families, pictures = (np.array([getattr(s, k) for s in test]) for k in ("answer", "family", "picture_id"))
correct = {unit: readout.right_or_wrong(some, truth) for unit, some in runs.items()}  # bool (seeds, questions) each
four = readout.opposite_questions(test.samples)  # (cases, 4)
pairs = pictures[four[:, 0]]

# %% tags=["hide-input"]
chapter.value("four.cases", len(four))
chapter.value("four.pairs", len(set(pairs)))

# %%
additive = ["late_mean", "late_vote", "linear_sum", "linear_concat"]
shown = [
    *additive,
    "linear_film",
    "linear_product",
    "pool_concat",
    "pool_film",
    "attend_concat",
    "attend_film",
]
whole = {u: correct[u][:, four].all(-1) for u in shown}  # bool (seeds, cases)
assert not any(whole[u].any() for u in additive)  # the proposition, in trained models
solved = readout.accuracy_table(whole, pairs).drop(columns="family")

# %% tags=["hide-input"]
for unit in shown:
    chapter.value(f"four.{unit}", float(whole[unit].mean()), n=whole[unit].size, of="cases")

# %% tags=["hide-input"]
most = solved.loc[solved["mean"].idxmax()]
chapter.figure(
    drawing.forest(solved, "share of cases with all four answers right", limits=(-0.02, 1.02)),
    "four_right",
    data=solved,
    records=[r for u in shown for r in runs[u]],
    caption="Two pictures, two questions, an exclusive-or of answers: how often trained models get all four right. "
    "Additive models (late mean, late vote, and sum or concat with a linear head) can't, and never do.",
    alt=f"Dots with intervals for ten methods. Additive methods stand at {max(whole[u].mean() for u in additive):.0%} of {len(four)} cases; "
    f"the best, {title(most['unit'])}, at {most['mean']:.0%}.",
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

# %%
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

# %% tags=["hide-input"]
kinds = """sum: yes no instance; concat: yes no instance; FiLM: no yes instance; gated: no yes instance; product: yes yes instance;
MFB: yes yes instance; low-rank tensor: yes yes instance; FiLM at tokens: no yes token; attend, FiLM: no yes token; SAN: no yes token;
BAN: no yes token; early (joint transformer): yes yes token; late (mean): yes no instance; late (variance): yes no instance; hybrid: no yes both"""
names = ["method", "symmetric", "explicit", "level"]
properties = pd.DataFrame(
    [(m.strip(), *rest.split()) for m, rest in (k.split(": ") for k in kinds.split(";"))],
    columns=names,
)
where = {m.title: drawing.PLACES[place(u)] for u, m in METHODS.items()}
properties.insert(1, "meets at", properties["method"].map(where))

# %% tags=["hide-input"]
chapter.value("size.cells", int(cells))
chapter.table(
    properties,
    "properties",
    caption="The methods in the words of the surveys; the representation of all of them is joint.",
)

# %% [markdown]
# ## The experiment
#
# **The same for all.** Scenes with balanced questions of eight families (chapter 1): each question is asked about two pictures and has
# another answer on each, so that the words alone tell nothing. The picture encoder was taught to *name what is in each cell* of its grid and the
# question encoder to *fill in the slots* of what is asked; both were then frozen. Neither ever saw an answer. A fusion gets
# {val}`03_fusion.size.cells` image tokens (presence, probabilities of attribute values, place) or their sum, and the slots or their sum. Cells in which the encoder sees nothing are masked
# (and left out while training, which changes no result and saves most of the time; operations are counted for the whole grid).
# Optimiser, order of the data per seed, and the head (two hidden layers) are the same.
#
# **What differs.** The fusion; the width, where a fusion's cost is tokens × width²; and the head, in four rows that exist for the
# proposition above. All train for {val}`03_fusion.size.epochs` epochs ({numref}`fig-03-fusion-learning-curves` shows whether that was enough). Sizes are in {numref}`tab-03-fusion-results`.
#
# **What counts.** {val}`03_fusion.size.questions:,d` test questions about {val}`03_fusion.size.pictures:,d` pictures, {val}`03_fusion.size.seeds` seeds. Intervals
# hold seeds *and* pictures to be random; choices between methods are made on validation, never on the test set.
# The rules of the claims that this chapter judges were written before the runs:

# %% tags=["hide-input"]
chapter.value("size.epochs", fusion.PROFILES[profile].training.epochs)
chapter.value("size.questions", len(test))
chapter.value("size.pictures", len(set(pictures)))
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.id in ("F1", "F2", "F3")]
chapter.table(
    pd.DataFrame(rules),
    "rules",
    caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.",
)

# %% [markdown]
# The baselines: the most frequent answer to everything; a model without the picture; one without the question; and the best
# method with *another* picture shown to it than the one that is asked about.

# %%
majority = baselines.majority(scene_split(profile, "train").samples, test.samples).correct[None]
shuffled = readout.right_or_wrong(runs[fusion.KEPT], truth, "predicted_shuffled")
hidden = {u: correct[u] for u in ("question_only", "picture_only")}
base = readout.accuracy_table({"majority": majority, "shuffled": shuffled, **hidden}, pictures).set_index("unit")
for unit, row in base.iterrows():
    chapter.value(f"base.{unit}", dict(row[["mean", "low", "high", "n"]]), of="questions")
chapter.value("base.chance", test.chance(), exact=True)

# %%
table = readout.accuracy_table({u: correct[u] for u in ORDER}, pictures, families)
by = table.set_index(["unit", "family"])
overall = table[table["family"] == "all"].drop(columns="family").set_index("unit").loc[ORDER]
earliest = "early" if "early" in runs else "token_film"
looking = [u for u in ORDER if place(u) in ("tokens", "sequence", "attended")]
late = [u for u in ORDER if place(u) == "answers"]
best, best_pooled, best_late = (
    readout.best_on_validation(runs, some) for some in (late + pooled + looking, pooled, late)
)

# %% [markdown]
# ### Every family, every method

# %% tags=["hide-input"]
chance = {f: test.chance(f) for f in scenes.FAMILIES}
hardest = min(scenes.FAMILIES, key=lambda f: by.loc[(best, f), "mean"])
chapter.figure(
    drawing.family_panels(table, chance),
    "accuracy_by_family",
    data=table.assign(chance=table["family"].map(chance | {"all": test.chance()})),
    records=records,
    caption="Same tokens, same head, another fusion: accuracy by question family with 95 % intervals over seeds and pictures. Bars start "
    "at chance (dashed), which is what the words alone are worth. Colour and marker say where picture and question meet.",
    alt=f"Eight panels of dots, one per question family, {len(ORDER)} methods each. Overall {title(best)} has {overall.loc[best, 'mean']:.0%}, "
    f"the best pooled fusion {overall.loc[best_pooled, 'mean']:.0%}, late fusion {overall.loc[best_late, 'mean']:.0%}, chance {test.chance():.0%}; "
    f"hardest for {title(best)} is {hardest.replace('_', ' ')}.",
)


# %% tags=["hide-input"]
def share(row):
    return f"{row['mean']:.1%} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


wide = [{"method": title(u)} | {f.replace("_", " "): share(by.loc[(u, f)]) for f in scenes.FAMILIES} for u in ORDER]
chapter.table(
    pd.DataFrame(wide),
    "families",
    records=records,
    caption="Accuracy by family with 95 % intervals.",
)

# %% [markdown]
# ### Overall, and against the baselines

# %% tags=["hide-input"]
others = {
    "majority": base.loc["majority", "mean"],
    "chance": test.chance(),
    "shuffled picture": base.loc["shuffled", "mean"],
}
chapter.figure(
    drawing.forest(
        overall.reset_index(),
        "accuracy, all families",
        lines=others,
        limits=(max(0, overall["low"].min() - 0.03), 1),
    ),
    "overall",
    data=pd.concat(
        [
            overall.reset_index(),
            base.loc[["majority", "shuffled"]].reset_index().drop(columns="family"),
        ]
    ),
    records=records,
    caption="Accuracy over all families, grouped by where the modalities meet, with 95 % intervals. Lines: the baselines.",
    alt=f"Forest plot of {len(ORDER)} methods from {overall['mean'].min():.0%} to {overall['mean'].max():.0%}; "
    f"majority {base.loc['majority', 'mean']:.0%}, shuffled picture {base.loc['shuffled', 'mean']:.0%}, chance {test.chance():.0%}.",
)

# %% tags=["hide-input"]
cost = readout.cost_table(runs).set_index("unit").loc[ORDER]
results = overall[["mean", "low", "high", "n"]].join(cost).reset_index(drop=True)
results.insert(0, "method", [title(u) for u in ORDER])
results["MFLOP"], results["ms per step"] = (
    results.pop("flops") / 1e6,
    1e3 * results.pop("seconds_per_step"),
)
results = results.rename(columns={"activation_mb": "activations, MB"})
percent, short = (
    dict.fromkeys(("mean", "low", "high"), ".1%"),
    {"MFLOP": ".3f", "ms per step": ".1f", "activations, MB": ".1f"},
)

# %% tags=["hide-input"]
chapter.table(
    results,
    "results",
    records=records,
    formats=percent | short,
    caption="Accuracy over all families with its interval, and what it costs: parameters of fusion and head, multiplications and additions "
    "for one question, what a training step keeps in memory for its backward pass, and its time.",
)


# %% tags=["hide-input"]
def value(key, found, of="questions"):
    """A measured number for the text: a row of a table, or an interval."""
    get = found.get if hasattr(found, "get") else lambda name: getattr(found, name)
    chapter.value(key, {name: get(name) for name in ("mean", "low", "high", "n")}, of=of)


for name, unit in {
    "best": best,
    "best_pooled": best_pooled,
    "best_late": best_late,
}.items():
    chapter.value(f"{name}.title", title(unit))
    value(f"{name}.accuracy", overall.loc[unit])
value("accuracy.kept", overall.loc[fusion.KEPT])

# %% [markdown]
# Chosen on validation, the best of all is **{val}`03_fusion.best.title`** with {val}`03_fusion.best.accuracy:ci.1%`; the best fusion of pooled vectors is
# **{val}`03_fusion.best_pooled.title`** with {val}`03_fusion.best_pooled.accuracy:ci.1%`; the best late fusion, **{val}`03_fusion.best_late.title`**, has
# {val}`03_fusion.best_late.accuracy:ci.1%`. Without the picture a model reaches {val}`03_fusion.base.question_only:.1%`, without the question
# {val}`03_fusion.base.picture_only:.1%`; chance is {val}`03_fusion.base.chance:.1%`, because counts and attributes have more than two answers. Shown
# *another* picture than the one it is asked about, attend-concat has {val}`03_fusion.base.shuffled:.1%` instead of {val}`03_fusion.accuracy.kept:.1%`.
#
# ### Gain over concatenation
#
# The field's default is to concatenate pooled vectors. What does each method gain over that, with the same seed on the same questions?
# There are many comparisons with one base, so the p-values are Holm's {cite:p}`holm1979`.

# %% tags=["hide-input"]
fused = [u for u in ORDER if place(u) != "nowhere"]
gains = readout.gain_table({u: correct[u] for u in fused}, "pool_concat", pictures)
won = gains[(gains["p_holm"] < 0.05) & (gains["mean"] > 0)]
chapter.value("gains.won", len(won))
chapter.value("gains.compared", len(gains))

# %% tags=["hide-input"]
named = gains.assign(unit=gains["unit"].map(title)).rename(columns={"unit": "method", "p_holm": "p (Holm)"})
chapter.table(
    named,
    "gains",
    records=records,
    formats=dict.fromkeys(("mean", "low", "high"), "+.1%") | {"p": ".2g", "p (Holm)": ".2g"},
    caption="Gain in accuracy over pooled concatenation, paired by seed and question; paired t test over seeds, adjusted for all rows.",
)

# %% tags=["hide-input"]
chapter.figure(
    drawing.forest(
        gains,
        "gain over pooled concatenation, percentage points",
        zero=True,
        stars=lambda row: row["p_holm"] < 0.05,
    ),
    "gain_over_concat",
    data=gains,
    records=records,
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
first = readout.best_on_validation(runs, ["linear_sum", "linear_concat", "late_mean"])
last = readout.best_on_validation(runs, looking)
steps = {"no interaction": first, "pooled vectors": best_pooled, "tokens": last}


def gained(a, b, family):
    """Gain of a method over another on one family."""
    return readout.gain([correct[a]], [correct[b]], pictures, families == family).interval


# %%
need = {f: gained(last, first, f) for f in scenes.FAMILIES}
climb = sorted(scenes.FAMILIES, key=lambda f: need[f].mean)

# %% tags=["hide-input"]
drawn = table[table["unit"].isin(steps.values()) & (table["family"] != "all")]
chapter.figure(
    drawing.climb(table, steps, climb, chance),
    "need_of_interaction",
    data=drawn,
    records=[r for u in steps.values() for r in runs[u]],
    caption="What each step of interaction buys. Grey circle: no interaction. Blue square: pooled vectors interact. Red triangle: the question meets "
    "tokens. Families are sorted by the whole way; each step's method is chosen on validation.",
    alt="Dumbbells for eight families. Least gained from the first to the last step: "
    f"{climb[0].replace('_', ' ')} ({need[climb[0]].mean:+.0%}); most: {climb[-1].replace('_', ' ')} ({need[climb[-1]].mean:+.0%}).",
)

# %% tags=["hide-input"]
for name, family in {"least": climb[0], "most": climb[-1]}.items():
    chapter.value(f"need.{name}.family", family.replace("_", " "))
    value(f"need.{name}.gain", need[family])
for name, (a, b) in {
    "pooling": (best_pooled, first),
    "looking": (last, best_pooled),
}.items():
    helped = [f.replace("_", " ") for f in scenes.FAMILIES if gained(a, b, f).low > 0.02]
    chapter.value(f"need.{name}.families", ", ".join(helped) or "no family")

# %% [markdown]
# The whole way is worth most in **{val}`03_fusion.need.most.family`** ({val}`03_fusion.need.most.gain:+.1p`) and least in
# **{val}`03_fusion.need.least.family`** ({val}`03_fusion.need.least.gain:+.1p`). The first step, interaction of pooled vectors, adds more than two points (with its whole
# interval) in: {val}`03_fusion.need.pooling.families`. The second, looking at tokens, does so in: {val}`03_fusion.need.looking.families`.
#
# Pooled vectors lose *which colour belongs to which shape*. Where an answer needs that binding, no way of multiplying pooled vectors brings it back.

# %% [markdown]
# ### What accuracy costs

# %% tags=["hide-input"]
priced = overall.join(cost).loc[fused]
cheap = ", ".join(title(u) for u in drawing.frontier(priced, "flops"))
chapter.value("cost.frontier", cheap)
chapter.figure(
    drawing.price_panels(priced),
    "cost_against_accuracy",
    data=priced.reset_index(),
    records=records,
    caption="Accuracy against four prices (logarithmic). Numbered and joined by a dotted line: the methods that nothing cheaper beats.",
    alt=f"Four scatter plots of accuracy against cost. By FLOPs, nothing cheaper beats {cheap}.",
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
rows = []
for unit, repeats in timed.items():
    for k, tokens in enumerate(repeats[0].arrays["tokens"]):
        interval = statistics.mean_over_seeds([r.arrays["seconds"][k] for r in repeats])
        rows.append({"unit": unit, "tokens": int(tokens), **readout.row(interval)})
timings = pd.DataFrame(rows)

# %% tags=["hide-input"]
exponent = {u: fusion_cost.exponent_interval(some) for u, some in timed.items()}
predicted = {u: some[0].details["predicted"] for u, some in timed.items()}
names = {u: fusion_cost.METHODS[u].title for u in timed}
value("exponent.early", exponent["early"], of="repeats")
value("exponent.attend", exponent["attend_film"], of="repeats")
steepest = max(exponent, key=lambda u: exponent[u].mean)

# %% tags=["hide-input"]
chapter.figure(
    drawing.cost_curves(timings, {u: f"{names[u]}: {exponent[u].mean:.2f} ({predicted[u]})" for u in timed}),
    "cost_curves",
    data=timings,
    records=[r for some in timed.values() for r in some],
    caption="Measured seconds against the number of tokens, both logarithmic. Bands: t intervals over repeats.",
    alt=f"Seven lines from {timings['tokens'].min():,} to {timings['tokens'].max():,} tokens; the steepest is {names[steepest]} "
    f"with an exponent of {exponent[steepest].mean:.2f}.",
)

# %% tags=["hide-input"]
fitted = [{"method": names[u], "predicted": predicted[u], **readout.row(i)} for u, i in exponent.items()]
chapter.table(
    pd.DataFrame(fitted),
    "exponents",
    formats=dict.fromkeys(("mean", "low", "high"), ".2f"),
    caption="Exponents of the measured time in the number of tokens, with 95 % intervals over repeats, and the predicted ones.",
)

# %% [markdown]
# A joint sequence grows with exponent {val}`03_fusion.exponent.early:.2f`, attention from one question vector with {val}`03_fusion.exponent.attend:.2f`. A fit below its
# prediction means that a cheaper term still weighs at these sizes; chapter 4 takes the layers apart.
#
# ### Combinations that were never seen
#
# In the split `test_composition` every picture has at least one pair of colour and shape that training never showed.

# %% tags=["hide-input"]
other = scene_split(profile, "test_composition")
other_truth, other_pictures = ([getattr(s, k) for s in other] for k in ("answer", "picture_id"))
new = {u: readout.right_or_wrong(some, other_truth, "predicted_test_composition") for u, some in runs.items()}
unseen = readout.accuracy_table(new, other_pictures).drop(columns="family").set_index("unit").loc[ORDER]
lost = (overall["mean"] - unseen["mean"])[late + pooled + looking].sort_values()
value("unseen.best", unseen.loc[best])
chapter.value("unseen.most_lost", title(lost.index[-1]))
chapter.value("unseen.most_lost.points", float(lost.iloc[-1]), n=len(other), of="questions")

# %% tags=["hide-input"]
chapter.figure(
    drawing.scatter_of_splits(overall, unseen),
    "composition",
    data=pd.concat([overall.assign(split="test"), unseen.assign(split="test_composition")]).reset_index(),
    records=records,
    caption="Accuracy on pictures with unseen pairs of colour and shape against accuracy on pictures like those in training. On the dashed line nothing is lost.",
    alt=f"Scatter plot of {len(ORDER)} methods about a diagonal. The loss runs from {lost.iloc[0]:+.1%} ({title(lost.index[0])}) "
    f"to {lost.iloc[-1]:+.1%} ({title(lost.index[-1])}).",
)

# %% [markdown]
# {val}`03_fusion.best.title` has {val}`03_fusion.unseen.best:ci.1%` there. Its tokens name colour and shape as separate features; but the picture encoder has
# never named the new combinations either. What is lost may be lost by the frozen encoder, whose names get less sure, or by the fusion, which tied together what went together in training. The most is lost by {val}`03_fusion.unseen.most_lost` ({val}`03_fusion.unseen.most_lost.points:+.1p`). (Chapter 5 asks the same of encoders that were trained end to end.)
#
# ### How they learn

# %% tags=["hide-input"]
watched = dict.fromkeys(["late_mean", "pool_concat", best_pooled, "token_film", earliest, best, "attend_film"])
watched = list(watched)[:6]
curves = readout.learning_curves({u: runs[u] for u in watched})
end = curves[curves["epoch"] == curves["epoch"].max()].set_index("unit")["mean"]
chapter.figure(
    drawing.learning_curves(curves, runs),
    "learning_curves",
    data=curves,
    records=[r for u in watched for r in runs[u]],
    caption="Validation accuracy by epoch: mean (with markers) and every seed (thin).",
    alt=f"Learning curves of {len(watched)} methods; at the last epoch from {end.min():.0%} ({title(end.idxmin())}) to {end.max():.0%} ({title(end.idxmax())}).",
)

# %% tags=["hide-input"]
history = [[e["validation"] for e in r.details["history"]] for r in runs["attend_film"]]
at = [str(int(np.diff(h).argmax()) + 2) for h in history if len(h) > 1]
told = f"The seeds of {title('attend_film')} make their largest step from one epoch to the next on reaching epoch {', '.join(at)}."
chapter.value(
    "jump.sentence",
    told if at else "At this profile there is one epoch, and no curve to speak of.",
)

# %% [markdown]
# {val}`03_fusion.jump.sentence` Where an answer needs two facts at once, as an exclusive-or does, the loss falls little before both
# have been found: a plateau in such a curve need not mean that training is over.
#
# ## The same fusions on real data
#
# Scenes are drawn, their tokens are almost names, and their questions are balanced. Do the differences survive where nothing of this holds? Three small real
# data sets are asked with eleven of the methods: easy-VQA {cite:p}`zhou2019easyvqa` (drawn shapes, template questions),
# NLVR {cite:p}`suhr2017nlvr` (sentences by people about drawn boxes, true or false) and VQA-RAD {cite:p}`lau2018vqarad` (radiology pictures, questions by clinicians).
# The image tokens come from three frozen picture encoders, concatenated; none of them was trained on these pictures.

# %% tags=["hide-input"]
present = fusion_real.present()
real = readout.by_unit(experiments.load("fusion_real", profile)) if present else {}
box = (
    '<div class="admonition warning"><p class="admonition-title">{title} is not here</p><p>Its results are left out below. '
    "This line gets it: <code>python -m vqa_core data fetch {name}</code></p></div>"
)
for name in fusion_real.DATASETS.keys() - set(present):
    display(HTML(box.format(name=name, title=fusion_real.DATASETS[name])))


# %% tags=["hide-input"]
def scores(unit):
    """Right or wrong, bool (S, Q), of one unit of the experiment on real data; and the picture of each question."""
    return np.stack([r.arrays["correct_test"] for r in real[unit]]).astype(bool), real[unit][0].arrays["picture_test"]


def line(name, what, row):
    interval = statistics.seeds_and_questions(*scores(f"{name}.{what}"))
    return {
        "data": fusion_real.DATASETS[name],
        "unit": what,
        "row": row,
        **readout.row(interval),
    }


# %% tags=["hide-input"]
swept = [u for u in ORDER if u in fusion_real.SWEEP]
on_real = pd.DataFrame([line(n, u, u) for n in present for u in swept])

# %% tags=["hide-input"]
if present:
    alone = on_real[on_real["unit"] == "question_only"].set_index("data")["mean"]
    top = on_real.loc[on_real.groupby("data")["mean"].idxmax()]
    said = "; ".join(f"{r['data']}: {title(r['unit'])} {r['mean']:.0%}" for r in top.to_dict("records"))
    fig = drawing.matrix_of_panels(on_real, {u: title(u) for u in swept}, alone, drawing.style)
    shown_ = chapter.figure(
        fig,
        "real_data",
        data=on_real,
        records=[r for some in real.values() for r in some],
        caption="The same fusions on real data, with 95 % intervals over seeds and pictures. Dashed: the question alone. The axes differ.",
        alt=f"Dot plots of {len(swept)} methods on {len(present)} real data sets. Highest: {said}.",
    )
    display(shown_)


# %% tags=["hide-input"]
def verdict(d):
    """A paired difference in words."""
    span = f"(95 % CI {100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})".replace("-", "−")
    if d.interval.low <= 0 <= d.interval.high:
        return f"no clear difference {span}"
    return f"{100 * abs(d.interval.mean):.1f} points {'more' if d.interval.mean > 0 else 'less'} {span}"


# %% tags=["hide-input"]
def compare(name, a, b):
    (first, groups), (second, _) = scores(f"{name}.{a}"), scores(f"{name}.{b}")
    return statistics.paired_difference(first, second, groups)


# %% tags=["hide-input"]
for name in fusion_real.DATASETS:
    for other_unit in ("pool_concat", "question_only"):
        said = verdict(compare(name, "attend_film", other_unit)) if name in present else "not measured in this build"
        chapter.value(f"real.{name}.{other_unit}", said)

# %% [markdown]
# Attend-FiLM against concatenation of pooled vectors:
#
# - easy-VQA: {val}`03_fusion.real.easy_vqa.pool_concat`;
# - NLVR: {val}`03_fusion.real.nlvr.pool_concat`;
# - VQA-RAD: {val}`03_fusion.real.vqa_rad.pool_concat`.
#
# And against the question alone, which on real data is the baseline that matters: easy-VQA, {val}`03_fusion.real.easy_vqa.question_only`;
# NLVR, {val}`03_fusion.real.nlvr.question_only`; VQA-RAD, {val}`03_fusion.real.vqa_rad.question_only`. A fusion can't bring into the answer what is not in the
# tokens: where frozen features say little about the picture, all fusions come close to the question-only line.
#
# ### More encoders, better answers?
#
# The tokens above are three encoders side by side. Claim F3 says that such a concatenation can lose to fewer encoders. Here is attend-FiLM on each
# encoder alone, and on all.


# %% tags=["hide-input"]
def encoders_of(name):
    """Units with fewer encoders, and the one with all of them → what they read."""
    fewer = sorted(
        (u.partition(".")[2] for u in real if u.startswith(f"{name}.encoders_")),
        key=lambda u: (len(u), u),
    )
    read = {u: " + ".join(fusion_real.ENCODERS[c] for c in u.removeprefix("encoders_")) for u in fewer}
    return read | {"attend_film": "all of them"}


# %% tags=["hide-input"]
by_encoder = pd.DataFrame([line(n, u, read) for n in present for u, read in encoders_of(n).items()])

# %% tags=["hide-input"]
if present:
    rows = {read: read for read in by_encoder["row"].unique() if read != "all of them"} | {"all of them": "all of them"}
    looks = {read: {"fmt": "o", "color": figures.PALETTE[0]} for read in rows}
    looks["all of them"] = {"fmt": "s", "color": figures.PALETTE[1]}
    together = by_encoder[by_encoder["unit"] == "attend_film"].to_dict("records")
    shown_ = chapter.figure(
        drawing.matrix_of_panels(by_encoder, rows, {}, looks.get),
        "encoders",
        data=by_encoder,
        records=[r for some in real.values() for r in some],
        caption="Attend-FiLM on fewer picture encoders (blue circles) and on the concatenation of all (red squares).",
        alt=f"Dot plots of accuracy by picture encoder on {len(present)} data sets; all encoders together have "
        + ", ".join(f"{r['data']} {r['mean']:.0%}" for r in together),
    )
    display(shown_)

# %% [markdown]
# ## What was looked at
#
# The heads of attend-concat, for one test question that it answers rightly: the brighter a cell, the more its token weighs in what the head reads. This is what the
# model *used*, layer by layer true by construction; it is not an explanation of *why* it answered so. Chapter 9 measures that difference.

# %%
run = runs[fusion.KEPT][0]
feed = fusion.feed_of(profile, "test", "grid", "vector", empty_cells=True)
model = fusion.build(run.spec.model, d_i, d_t, answers)
stored = {k.removeprefix("model."): torch.from_numpy(v) for k, v in run.arrays.items() if k.startswith("model.")}
model.load_state_dict(stored)
right = correct[fusion.KEPT][0]
wanted = right & (families == "spatial_relation") & (truth == "yes")
chosen = int(wanted.argmax() if wanted.any() else right.argmax())

# %%
sample = test[chosen]
with torch.inference_mode():
    seen = model.eval()(*feed.batch([chosen])[:3])
answer = run.details["answers"][int(seen.logits.argmax())]
heat = seen.fusion.attention[0, :, 0].unflatten(-1, (8, 8)).numpy()  # (heads, 8, 8)
weights = pd.DataFrame([{"head": h + 1, "row": r, "column": c, "weight": w} for (h, r, c), w in np.ndenumerate(heat)])

# %% tags=["hide-input"]
chapter.figure(
    drawing.attention_panels(
        test.images[test.picture_index(sample.picture_id)],
        heat,
        f"{sample.question} – {answer}",
    ),
    "attention",
    data=weights,
    records=[run],
    picture=True,
    caption="Attention weights of the eight heads over the grid of cells: the brighter, the more. What is missing to the whole went to the entry “nothing here”.",
    alt=f"A scene and eight heat maps over it for the question: {sample.question} The answer is {answer}. "
    f"The heads put from {heat.sum((1, 2)).min():.0%} to {heat.sum((1, 2)).max():.0%} of their weight on cells.",
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


# %%
rows = [i for i, s in enumerate(test) if s.meta["objects"]]
with torch.inference_mode():
    parts = [model(*feed.batch(rows[i : i + 1024])[:3]).fusion.attention for i in range(0, len(rows), 1024)]
weight = torch.cat(parts)[:, :, 0].sum(1).numpy()  # (questions, cells), all heads together

# %% tags=["hide-input"]
shares = np.array(
    [(w[a].sum() / w.sum(), len(a) / len(every)) for w, (a, every) in zip(weight, (cells_of(test[i]) for i in rows))]
)
value("attention.pointed", statistics.bootstrap(shares[:, 0], pictures[rows]))
value("attention.uniform", statistics.bootstrap(shares[:, 1], pictures[rows]))

# %% [markdown]
# {val}`03_fusion.attention.pointed:ci.1%` of the weight lies on them, where looking at all objects alike would give {val}`03_fusion.attention.uniform:.1%`.
#
# ## What we saw

# %%
interaction = np.isin(
    families,
    ["exclusive_or", "attribute_comparison", "count_comparison", "spatial_relation"],
)
f1 = readout.gain([correct[earliest]], [correct[best_late]], pictures, interaction)
f2 = readout.gain(
    [correct["pool_film"], correct["pool_gated"]],
    [correct["pool_sum"], correct["pool_concat"]],
    pictures,
)
chapter.value("early.title", title(earliest))
second = readout.gain([correct["attend_film"]], [correct["attend_concat"]], pictures)

# %%
chapter.claim("F1", f1.interval, of="questions")
chapter.claim("F2", f2.interval, of="questions")
for key, found in {"f1": f1, "f2": f2, "second_look": second}.items():
    value(f"claims.{key}", found.interval)


# %% tags=["hide-input"]
def best_single(name):
    """The picture encoder that is best on validation."""

    def on_validation(unit):
        return np.mean([r.metrics["accuracy_val"].value for r in real[f"{name}.{unit}"]])

    return max((f"encoders_{letter}" for letter in fusion_real.ENCODERS), key=on_validation)


# %%
f3 = {name: compare(name, "attend_film", best_single(name)) for name in present}
if "vqa_rad" in f3:
    chapter.claim("F3", f3["vqa_rad"].interval, of="questions")
for name in fusion_real.DATASETS:
    chapter.value(
        f"claims.f3.{name}",
        verdict(f3[name]) if name in f3 else "not measured in this build",
    )

# %% [markdown]
# - **Addition has a hard limit.** A sum, a concatenation, a mean of answers and a vote solve {val}`03_fusion.four.linear_sum:.0%` of the exclusive-or cases with a linear head;
#   attend-FiLM solves {val}`03_fusion.four.attend_film:.1%`.
# - **Where they meet, and by which formula.** Pooled fusions lie between {val}`03_fusion.range.pooled.low:.1%` and {val}`03_fusion.range.pooled.high:.1%`; fusions
#   that let the question meet tokens lie between {val}`03_fusion.range.tokens.low:.1%` and {val}`03_fusion.range.tokens.high:.1%`.
# - **Early against late, where interaction is needed (F1).** The earliest meeting that was run at this profile is *{val}`03_fusion.early.title`*; against the best late rule it gains {val}`03_fusion.claims.f1:+.1p` ({val}`03_fusion.claims.f1:range+.1p`): {verdict}`F1`.
# - **FiLM and gates against sum and concatenation (F2),** same pooled inputs, same deep head: {val}`03_fusion.claims.f2:+.1p` ({val}`03_fusion.claims.f2:range+.1p`): {verdict}`F2`.
#   The head can make up for a sum. A fairer second look gives both what was *looked at*: attend-FiLM against attend-concat is {val}`03_fusion.claims.second_look:+.1p`
#   ({val}`03_fusion.claims.second_look:range+.1p`). That look was not in the rule and judges nothing.
# - **All encoders against the best one on validation (F3):** VQA-RAD {val}`03_fusion.claims.f3.vqa_rad`; easy-VQA {val}`03_fusion.claims.f3.easy_vqa`; NLVR {val}`03_fusion.claims.f3.nlvr`.
#   The rule is about VQA-RAD: {verdict}`F3`.
#
# What this does *not* say: that a method is good or bad in general. The tokens here are nearly symbols; the widths are small; each method had one learning rate. What it does say is
# about what a fusion *can't* do, and that is mathematics, and about what it does with the same input, and that is measured.
#
# ```{claims}
# :chapter: 3
# ```

# %% tags=["hide-input"]
for name, units in {"pooled": pooled, "tokens": looking}.items():
    found = overall.loc[units, "mean"]
    chapter.value(f"range.{name}.low", float(found.min()), n=seeds, of="seeds")
    chapter.value(f"range.{name}.high", float(found.max()), n=seeds, of="seeds")

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
