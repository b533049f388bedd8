# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Multimodal transformers
#
# A transformer does not know what a picture is, nor what a word is. It knows tokens, and which token may read which. With two
# modalities that one choice makes a family of models: all tokens in one row, or each modality on its own first, or each reading only the other,
# or both talking through a handful of messengers {cite:p}`xu2023survey`.
#
# This chapter writes all of them as rows of three kinds of layers, draws from the code what reads what, counts and times what each costs as sequences grow, and
# trains them on the same tokens. Then it makes one of them cheaper in four ways and asks what that costs in accuracy.
#
# :::{admonition} What you will be able to do
# :class: tip
# - draw the attention pattern of a multimodal transformer, and say from the drawing what it costs;
# - write bottleneck fusion and the Perceiver, and see when a Perceiver is blind;
# - predict the exponent with which time grows, measure it, and explain the difference;
# - drop tokens, share layers, distil, and prune, and report what was saved and what was lost.
# :::
#
# **You need** attention and its masks (chapter 2), and the tokens and stages of fusion (chapter 3).\
# **What it costs**: {val}`04_transformers.size.trainings` trainings took {val}`04_transformers.time.experiment:.0f` seconds of computing, the clocks
# {val}`04_transformers.time.cost:.0f` more, on {val}`04_transformers.time.device`.

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vqa_core import experiments, figures
from vqa_core.evaluation import baselines, claims
from vqa_core.experiments import fusion_drawing, transformer_cost, transformers
from vqa_core.experiments import readout as tables
from vqa_core.experiments import transformers_drawing as drawing
from vqa_core.experiments import transformers_readout as readout
from vqa_core.experiments.transformers import TEACHER
from vqa_core.experiments.transformers_readout import title

figures.use_style()
chapter = figures.Chapter("04_transformers", profile=PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
records = experiments.load("transformers", profile)
clocks = experiments.load("transformer_cost", profile)
runs, timed = readout.by_name(records), tables.by_unit(clocks)
config = transformers.PROFILES[profile]
sizes, spec = config.model, runs[TEACHER].spec

# %% tags=["hide-input"]
chapter.value("size.seeds", sizes.seeds)
chapter.value("size.methods", len(runs))
chapter.value("size.trainings", (len(runs) + len(transformers.OFFSPRING)) * sizes.seeds)
chapter.value("size.depth", sizes.depth)
chapter.value("size.dim", sizes.dim)
chapter.value("size.epochs", config.training.epochs)
chapter.value("size.repeats", len(timed["steps"]))
chapter.value("time.experiment", sum(r.seconds for r in records), n=len(records), of="units")
chapter.value("time.cost", sum(r.seconds for r in clocks), n=len(clocks), of="units")
chapter.value("time.device", records[0].device)

# %% [markdown]
# ## Six layouts are rows of three layers
#
# Let $I$ be $N_i$ image tokens, $T$ be $N_t$ text tokens, both embedded to the same width, $\mathcal{C}$ concatenation along the sequence, and $\mathrm{Tf}$ a transformer block. A block whose queries
# come from $x$ and whose keys and values come from $c$ is $\mathrm{Tf}(Q_x, K_c, V_c)$.
#
# | layout | definition | pairs of tokens that meet |
# |---|---|---|
# | early summation | $\mathrm{Tf}(I \oplus T)$ | $N_i^2$ |
# | early concatenation | $\mathrm{Tf}(\mathcal{C}(I, T))$ | $(N_i + N_t)^2$ |
# | multi to one | $\mathrm{Tf}_3(\mathcal{C}(\mathrm{Tf}_1(I), \mathrm{Tf}_2(T)))$ | $N_i^2 + N_t^2$, then $(N_i + N_t)^2$ |
# | one to multi | $\mathcal{C}(I, T)$ through $\mathrm{Tf}_1$, split, then $\mathrm{Tf}_2$ and $\mathrm{Tf}_3$ | $(N_i + N_t)^2$, then $N_i^2 + N_t^2$ |
# | cross attention | $\mathrm{Tf}_1(Q_I, K_T, V_T)$ and $\mathrm{Tf}_2(Q_T, K_I, V_I)$ | $2 N_i N_t$ |
# | cross attention to concatenation | $\mathrm{Tf}_3$ on the concatenation of the two above | $2 N_i N_t$, then $(N_i + N_t)^2$ |
#
# All of them are made of three layers. In the first, both streams are one sequence:
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: JointLayer.forward
# ```
#
# In the second, each stream is on its own; in the third, each reads only the other:
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: OwnLayer.forward
# ```
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: CrossLayer.forward
# ```
#
# A layout names the layers of its stages and nothing else; `depth` blocks are divided between the stages.
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: MultiToOne
# ```
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: CrossAttentionToConcatenation
# ```

# %%
from vqa_core.fusion.transformer import LAYOUTS, TriCoAttention, stretched

torch.manual_seed(0)
picture, question = torch.randn(1, 4, 8), torch.randn(1, 3, 8)  # (B, Nᵢ, D), (B, Nₜ, D)
for name, layout in LAYOUTS.items():
    made = layout(8, 8, 16, depth=2, heads=2)
    print(f"{name:34}", [type(layer).__name__ for layer in made.layers], tuple(made(picture, question).fused.shape))

# %% [markdown]
# What reads what need not be drawn by hand. Each layout returns the weights of every layer as one map over all tokens; where a weight is exactly zero, nothing is read.

# %% tags=["hide-input"]
found = readout.patterns(image=4, text=3)
chapter.figure(
    drawing.pattern_panels(found, image=4),
    "patterns",
    data=readout.pattern_table(found),
    caption="Which token (row) reads which (column) in a stack of two layers: four image tokens, then three text tokens. Blue: its own modality; red, hatched: the other one. "
    "Found by running the six classes. Early summation has image tokens only, each of which carries the question.",
    alt="Twelve square grids, two layers for each of six layouts. Early concatenation is full twice; multi to one is block diagonal, then full; one to multi the reverse; "
    "cross attention has only the two off-diagonal blocks; cross attention to concatenation has these and then is full; early summation is a full square of image tokens.",
)

# %% [markdown]
# Two things can be read off {numref}`fig-04-transformers-patterns`. The *area* that is filled is what attention costs. And *where* a token learns of the other modality: in one to multi
# nothing crosses after the first stage; in cross attention no token ever reads its own modality, so that words learn of one another only by way of the picture.
#
# :::{warning}
# **The names of the two hierarchical layouts are no help.** The survey speaks of multi-stream to one-stream and one-stream to multi-stream; lecture notes that follow it call the first
# "1-to-2" and the second "2-to-1", the other way round. Say what is done.
# :::
#
# ### A sum needs equal lengths
#
# Early summation adds token to token, and a question does not have as many tokens as a picture. Papers rarely say how they get there. Two ways, both of which look at real tokens only:
#
# - *pool*: every image token gets the mean of the words. Image tokens stay a set, word order is lost.
# - *resample*: the row of words is stretched onto the row of image tokens. The first meets the first, the last the last.

# %%
row = torch.tensor([[[0.0], [10.0], [20.0], [99.0]]])  # three real words and padding
real = torch.tensor([[True, True, True, False]])
onto = torch.ones(1, 5, dtype=torch.bool)
print("resampled:", stretched(row, real, onto).flatten().tolist())

# %% [markdown]
# Image tokens of scenes are a set of objects, where "first" means nothing. The experiment below pools.
#
# ### Three modalities
#
# With three modalities there is a new choice. In TriBERT {cite:p}`rahman2021tribert`, as the notes tell it, the concatenated queries of two modalities read keys and values of the third, each in turn:
#
# ```{literalinclude} /vqa_core/fusion/transformer.py
# :pyobject: TriCoAttention.forward
# ```

# %%
co = TriCoAttention(8, heads=2)
vision, pose, sound = (torch.randn(1, n, 8) for n in (5, 3, 2))
out, maps = co((vision, pose, sound), need_weights=True)
print("tokens:", [tuple(t.shape) for t in out])
print("who reads vision:", tuple(maps[0].shape), " pose:", tuple(maps[1].shape), " sound:", tuple(maps[2].shape))

# %% [markdown]
# ## A few tokens in between
#
# ### Bottlenecks
#
# Full attention between modalities is quadratic in everything. Bottleneck fusion {cite:p}`nagrani2021mbt` lets modality $m$ read its own tokens $z_m$ and $n$ shared bottleneck
# tokens $b$, and nothing else; each modality writes its own version of the bottlenecks, and the versions are averaged:
#
# $$[z_m' \,;\, \hat b_m] = \mathrm{Tf}_m([z_m \,;\, b]), \qquad b' = \tfrac12\,(\hat b_I + \hat b_T), \qquad \text{cost } \textstyle\sum_m (N_m + n)^2 .$$
#
# The published model has {typed}`12` layers and {typed}`4` bottlenecks, and lets the modalities meet from layer {typed}`8` on {cite:p}`nagrani2021mbt`.
#
# ```{literalinclude} /vqa_core/fusion/bottleneck.py
# :pyobject: BottleneckLayer.forward
# ```

# %%
from vqa_core.fusion.bottleneck import BottleneckFusion, attention_pairs

for n in (64, 512, 2048):
    print(f"{n:5} tokens a side: {attention_pairs(n, n, 4):>10,} pairs instead of {(2 * n) ** 2:>10,}")

# %% [markdown]
# With two modalities of the same length a bottleneck halves the pairs, no more: each modality still reads itself. What it changes is the *exchange*. News from the picture needs two layers to reach a word:
# one to be written into the bottleneck, one to be read.

# %%
torch.manual_seed(0)
for depth in (1, 2):
    bottleneck = BottleneckFusion(8, 8, 16, bottlenecks=4, depth=depth, heads=2).eval()
    words = []
    for shown in (picture, picture + 1):  # another picture, the same question
        streams, b = bottleneck.embed(shown, question), bottleneck.bottlenecks
        for layer in bottleneck.fusing:
            streams, b, _ = layer(streams, b)
        words.append(streams.text)
    print(f"{depth} layer(s): words differ by {(words[0] - words[1]).abs().max().item():.4f}")

# %% [markdown]
# ### Latents
#
# The Perceiver {cite:p}`jaegle2021perceiver` goes further: no input token reads anything. $L$ learned latents $z$ read all $N$ inputs $x$, then one another:
#
# $$z \leftarrow \mathrm{Tf}(Q_z, K_x, V_x) \quad O(N L), \qquad z \leftarrow \mathrm{Tf}(z) \quad O(L^2) .$$
#
# ```{literalinclude} /vqa_core/fusion/perceiver.py
# :pyobject: Perceiver.encode
# ```
#
# Its input may have any length and its output has one vector. Perceiver IO {cite:p}`jaegle2022perceiverio` asks the latents with *output queries*, one for each thing that is wanted (an answer, a pixel, a word):
#
# ```{literalinclude} /vqa_core/fusion/perceiver.py
# :pyobject: PerceiverIO.decode
# ```

# %%
from vqa_core.fusion.perceiver import Perceiver, PerceiverIO

torch.manual_seed(0)
io = PerceiverIO(8, 8, 16, latents=4, heads=2).eval()
latents, _ = io.encode(*io.embed(picture, question, None, None).joined())
print("latents:", tuple(latents.shape), " five outputs:", tuple(io.decode(latents, torch.randn(1, 5, 16)).shape))

# %% [markdown]
# The only line through which anything comes in is the reading. A published sketch has exactly that line commented out. It runs, it trains, its loss falls to that of the most frequent
# answer ({ref}`exercise <ex-transformers-blind>`).
#
# ## What it costs
#
# ### Counted
#
# With width $D$, $n_q$ queries and $n_k$ keys, one block needs (multiplications and additions, norms not counted)
#
# $$ F(n_q, n_k) = \underbrace{4 n_q D^2 + 4 n_k D^2}_{\text{projections}} + \underbrace{4 n_q n_k D}_{\text{attention}} + \underbrace{16\, n_q D^2}_{\text{feed-forward}} . $$


# %%
def block_flops(queries, keys, d):
    """The formula above."""
    return 4 * queries * d * d + 4 * keys * d * d + 4 * queries * keys * d + 16 * queries * d * d


n_i, n_t, d = 40, 8, 16
blocks = {
    "early_concatenation": [(n_i + n_t, n_i + n_t)],
    "cross_attention": [(n_i, n_t), (n_t, n_i)],
    "cross_attention_to_concatenation": [(n_i, n_t), (n_t, n_i), (n_i + n_t, n_i + n_t)],
}

# %%
for name, of in blocks.items():
    depth = 2 if name.endswith("to_concatenation") else 1
    made = LAYOUTS[name](d, d, d, depth=depth, heads=2)
    counted = transformer_cost.flops_of(made, n_i, n_t, d) - 2 * (n_i + n_t) * d * d  # without the embedding
    formula = sum(block_flops(*pair, d) for pair in of)
    print(f"{name:34} counted {counted:>9,}  formula {formula:>9,}")
    assert counted == formula

# %% [markdown]
# The attention term grows as $N^2$, all others as $N$. They are equal where $N = 6 D$: a stack of width $D$ behaves *linearly* below that length. To see the square, sequences must be long and vectors short.
#
# ### Timed
#
# Each fusion reads {val}`04_transformers.cost.smallest:,d` to {val}`04_transformers.cost.largest:,d` tokens, half of them from each side (and once with a question of constant length), on one thread, with
# {val}`04_transformers.cost.dim` features. The exponent $p$ in seconds $\propto N^p$ of the *attention layers* is fitted from {val}`04_transformers.cost.fitted:,d` tokens on. Of the Perceiver the layer that reads the input is timed: what
# its latents do among themselves does not depend on $N$.

# %% tags=["hide-input"]
lengths, model = timed["steps"][0].spec.data, timed["steps"][0].spec.model
chapter.value("cost.smallest", min(lengths.together))
chapter.value("cost.largest", max(lengths.together))
chapter.value("cost.dim", model.dim)
chapter.value("cost.fitted", int(timed[TEACHER][0].details["fitted"][0]))
chapter.value("cost.latents", model.latents)
chapter.value("cost.side", lengths.side)

# %% tags=["hide-input"]
exponents = readout.exponent_table(timed)
attention = exponents[exponents["cost"] == readout.EXPONENTS["exponent"]].set_index("unit")
names = {u: transformer_cost.CURVES[u].title for u in attention.index}
legend = {u: f"{names[u]}: {r['mean']:.2f} ({r['predicted']})" for u, r in attention.iterrows()}
curves = readout.curves_table(timed, "seconds_attention")
steepest, flattest = attention["mean"].idxmax(), attention["mean"].idxmin()

# %% tags=["hide-input"]
fig = fusion_drawing.cost_curves(curves, legend)
fig.axes[0].set_ylabel("seconds in the attention layers (forward)")
chapter.figure(
    fig,
    "cost_curves",
    data=curves,
    records=[r for u in names for r in timed[u]],
    caption="Measured seconds of the attention layers against the number of tokens, both logarithmic. Bands: t intervals over repeats.",
    alt=f"{len(names)} lines from {curves['tokens'].min():,} to {curves['tokens'].max():,} tokens. The steepest is {names[steepest]} with an exponent of "
    f"{attention['mean'].max():.2f}, the flattest {names[flattest]} with {attention['mean'].min():.2f}.",
)

# %% tags=["hide-input"]
fitted = exponents.assign(fusion=exponents["unit"].map(names))[
    ["fusion", "cost", "predicted", "mean", "low", "high", "n"]
]
drawn = chapter.table(
    fitted,
    "exponents",
    records=clocks,
    formats=dict.fromkeys(("mean", "low", "high"), ".2f"),
    caption="Exponents in the number of tokens, with 95 % intervals over repeats, and the predicted one of the attention layers. Whole passes have terms that grow more slowly.",
)
display(drawn)
distance = (attention["mean"] - attention["predicted"]).abs()
worst = distance.drop("explicit")
chapter.value("cost.worst", float(worst.max()), n=int(attention["n"].min()), of="repeats")
chapter.value("cost.worst_name", names[worst.idxmax()])
chapter.value("cost.explicit", float(distance["explicit"]), n=int(attention["n"].min()), of="repeats")
for unit, found_ in attention.iterrows():
    chapter.value(f"exponent.{unit}", dict(found_[["mean", "low", "high", "n"]]), of="repeats")

# %% [markdown]
# With the fused kernel, the largest distance between a measured exponent of attention and the predicted one is {val}`04_transformers.cost.worst:.2f` ({val}`04_transformers.cost.worst_name`). Written out, attention is
# {val}`04_transformers.cost.explicit:.2f` away from its prediction, although it does the same multiplications: its map goes through memory, and what a map costs per entry rises when it has outgrown the caches. Between two lengths that lie
# on both sides of that edge, a slope in seconds measures the machine as much as the method; the exponents of its operations and bytes in the table do not have this bend. Cross attention is *quadratic* when both sides grow
# ({val}`04_transformers.exponent.cross_attention:.2f`) and linear when the question keeps its length ({val}`04_transformers.exponent.cross_attention_16:.2f`): "O(NM)" is a statement about which side grows.
#
# ### The same attention, written out or fused
#
# Scaled dot-product attention can be computed without ever storing the map {cite:p}`dao2022flashattention`. The result is the same; memory is not.

# %% tags=["hide-input"]
two = {u: timed[u] for u in (TEACHER, "explicit")}
shared = int(max(timed["explicit"][0].arrays["tokens"]))
both = {q: readout.curves_table(two, q) for q in ("seconds", "kept_bytes")}
both = {q: t[t["tokens"] <= shared] for q, t in both.items()}
kept = both["kept_bytes"].assign(**{c: both["kept_bytes"][c] / 1e6 for c in ("mean", "low", "high")})

# %% tags=["hide-input"]
last = {u: {q: t[(t["unit"] == u) & (t["tokens"] == shared)]["mean"].item() for q, t in both.items()} for u in two}
gain = {q: last["explicit"][q] / last[TEACHER][q] for q in both}
repeats = len(timed["explicit"])
chapter.value("sdpa.tokens", shared)
chapter.value("sdpa.seconds", gain["seconds"], n=repeats, of="repeats")
chapter.value("sdpa.memory", gain["kept_bytes"], n=repeats, of="repeats")

# %% tags=["hide-input"]
chapter.figure(
    drawing.two_ways(
        {"seconds (forward)": both["seconds"], "MB kept for the backward pass": kept},
        {TEACHER: "fused (SDPA)", "explicit": "written out"},
    ),
    "sdpa",
    data=pd.concat([both["seconds"].assign(quantity="seconds"), kept.assign(quantity="MB kept")]),
    records=[r for some in two.values() for r in some],
    caption="Early concatenation with its attention computed by the fused kernel and written out: time and memory against tokens.",
    alt=f"Two panels with two lines each. At {shared:,} tokens written-out attention takes {gain['seconds']:.1f} times the time and keeps {gain['kept_bytes']:.1f} times the memory of fused attention.",
)

# %% [markdown]
# At {val}`04_transformers.sdpa.tokens:,d` tokens the written-out form takes {val}`04_transformers.sdpa.seconds:.1f` times as long and keeps {val}`04_transformers.sdpa.memory:.1f` times as much.
# All layouts here use the fused form unless their weights are asked for.
#
# ### Whole training steps
#
# An exponent says where things go; a ratio says what you pay today. These are training steps (forward, backward, update), taken turn by turn on the same machine: a bottleneck against early concatenation at
# {val}`04_transformers.cost.side:,d` tokens a side, a Perceiver of {val}`04_transformers.cost.latents` latents with long against short inputs, and DropToken against all tokens on the grid of a scene.

# %% tags=["hide-input"]
ratios = readout.ratio_table(timed["steps"])
drawn = chapter.table(
    ratios,
    "steps",
    records=timed["steps"],
    formats=dict.fromkeys(("mean", "low", "high"), ".2f"),
    caption="Ratios of seconds per training step, with 95 % intervals over repeats, and the claims that they decide.",
)
display(drawn)
by_ratio = dict(zip(transformer_cost.RATIOS, ratios.to_dict("records")))
for metric, found_ in by_ratio.items():
    chapter.value(f"steps.{metric}", {k: found_[k] for k in ("mean", "low", "high", "n")}, of="repeats")

# %% [markdown]
# The Perceiver's ratio depends on what its latents do *besides* reading. With six latent blocks after a reading, as published, longer inputs cost
# {val}`04_transformers.steps.ratio_perceiver:.2f` times as much; with one, as in a widespread re-implementation, {val}`04_transformers.steps.ratio_perceiver_one:.2f` times. The rule of F7 was
# applied to the published number of blocks.
#
# ## The experiment
#
# **The same for all.** The frozen tokens of chapter 3: cells of a scene that name an object and its place, and the slots of a question. Questions of {val}`04_transformers.size.families` families
# ({val}`04_transformers.size.family_names`), {val}`04_transformers.size.train:,d` for training; a linear head; {val}`04_transformers.size.depth` blocks in a row of {val}`04_transformers.size.dim` features;
# optimiser, order of the data and {val}`04_transformers.size.epochs` epochs. All {val}`04_transformers.size.seeds` seeds of a method are trained in one vectorised pass.
#
# **What differs.** What reads what. **What counts.** {val}`04_transformers.size.test:,d` test questions; intervals hold seeds *and* pictures to be random. Training is short
# ({numref}`fig-04-transformers-learning-curves`): what is said about accuracy holds for this length.

# %%
test, _ = transformers.questions_of(spec.data, "test")
train, _ = transformers.questions_of(spec.data, "train")
truth, families, pictures = (np.array([getattr(s, k) for s in test]) for k in ("answer", "family", "picture_id"))
correct = readout.right_or_wrong(runs, truth)  # name → bool (seeds, questions)
majority = baselines.majority(train.samples, test.samples).correct
order = [n for n in drawing.ORDER if n in correct]

# %% tags=["hide-input"]
chapter.value("size.families", len(test.families))
chapter.value("size.family_names", ", ".join(f.replace("_", " ") for f in test.families))
chapter.value("size.train", len(train))
chapter.value("size.test", len(test))
chance = {f: test.chance(f) for f in test.families}
table = tables.accuracy_table({n: correct[n] for n in order}, pictures, families)
overall = table[table["family"] == "all"].drop(columns="family").set_index("unit")
base = tables.accuracy_table({"majority": majority[None]}, pictures).iloc[0]

# %% tags=["hide-input"]
chapter.value("base.majority", dict(base[["mean", "low", "high", "n"]]), of="questions")
chapter.value("base.chance", test.chance(), exact=True)
for name in ("question_only", "picture_only", "shuffled", TEACHER):
    chapter.value(f"accuracy.{name}", dict(overall.loc[name, ["mean", "low", "high", "n"]]), of="questions")
layouts = [u for u in runs if transformers.METHODS[u].group in ("layout", "few tokens")]
best = max(layouts, key=lambda u: runs[u].details["accuracy_val"])
chapter.value("best.title", title(best))
chapter.value("best.accuracy", dict(overall.loc[best, ["mean", "low", "high", "n"]]), of="questions")

# %% [markdown]
# ### Every family, every layout

# %% tags=["hide-input"]
chapter.figure(
    drawing.family_panels(table, chance),
    "accuracy_by_family",
    data=table.assign(chance=table["family"].map(chance | {"all": test.chance()})),
    records=records,
    caption="Same tokens, same head, another transformer: accuracy by question family with 95 % intervals over seeds and pictures. Bars start at chance (dashed).",
    alt=f"{len(chance)} panels of dots, one per question family, {len(order)} models each. Overall {title(best)} has {overall.loc[best, 'mean']:.0%}, "
    f"question only {overall.loc['question_only', 'mean']:.0%}, a shuffled picture {overall.loc['shuffled', 'mean']:.0%}, chance {test.chance():.0%}.",
)


# %% tags=["hide-input"]
cost = readout.cost_table(runs).set_index("unit")
results = overall[["mean", "low", "high", "n"]].join(cost).drop(index="shuffled").reset_index()
results["unit"] = results["unit"].map(title)
results["MFLOP"], results["ms per step"] = results.pop("flops") / 1e6, 1e3 * results.pop("seconds_per_step")
results = results.rename(columns={"unit": "model", "activation_mb": "activations, MB"})
shapes = dict.fromkeys(("mean", "low", "high"), ".1%") | {
    "MFLOP": ".2f",
    "ms per step": ".1f",
    "activations, MB": ".1f",
}

# %% tags=["hide-input"]
chapter.table(
    results,
    "results",
    records=records,
    formats=shapes,
    caption="Accuracy over all families with its interval, and what a model costs: parameters, operations for one question with all cells of the grid, what one training step keeps for its backward pass, "
    "and one seed's share of the time of a vectorised step (validation included).",
)

# %% tags=["hide-input"]
gains = tables.gain_table({u: correct[u] for u in layouts}, TEACHER, pictures)
named = gains.assign(unit=gains["unit"].map(title)).rename(columns={"unit": "layout", "p_holm": "p (Holm)"})
drawn = chapter.table(
    named,
    "gains",
    records=records,
    formats=dict.fromkeys(("mean", "low", "high"), "+.1%") | {"p": ".2g", "p (Holm)": ".2g"},
    caption="Gain in accuracy over early concatenation, paired by seed and question; paired t test over seeds, adjusted for all rows.",
)
display(drawn)
chapter.value("gains.better", int(((gains["p_holm"] < 0.05) & (gains["mean"] > 0)).sum()))
chapter.value("gains.worse", int(((gains["p_holm"] < 0.05) & (gains["mean"] < 0)).sum()))
chapter.value("gains.compared", len(gains))

# %% [markdown]
# Chosen on validation, the best layout is **{val}`04_transformers.best.title`** with {val}`04_transformers.best.accuracy:ci.1%`; early concatenation has {val}`04_transformers.accuracy.early_concatenation:.1%`. Without the picture a model reaches
# {val}`04_transformers.accuracy.question_only:.1%`, without the question {val}`04_transformers.accuracy.picture_only:.1%`; with another picture than the one that is asked about, early concatenation has
# {val}`04_transformers.accuracy.shuffled:.1%`. The most frequent answer gives {val}`04_transformers.base.majority:.1%`, chance is {val}`04_transformers.base.chance:.1%`.
# Of {val}`04_transformers.gains.compared` others, {val}`04_transformers.gains.better` are significantly better and {val}`04_transformers.gains.worse` significantly worse than early concatenation.

# %% tags=["hide-input"]
learned = readout.learning_curves({u: runs[u] for u in layouts})
end = learned[learned["epoch"] == learned["epoch"].max()].set_index("unit")["mean"]
chapter.figure(
    drawing.learning_curves(learned),
    "learning_curves",
    data=learned,
    records=[runs[u] for u in layouts],
    caption="Validation accuracy by epoch, with t intervals over seeds.",
    alt=f"Learning curves of {len(layouts)} layouts; at the last epoch from {end.min():.0%} ({title(end.idxmin())}) to {end.max():.0%} ({title(end.idxmax())}).",
)

# %% [markdown]
# ### Accuracy against cost

# %% tags=["hide-input"]
hidden = [n for n in overall.index if drawing.group(n) == "one side hidden"]
priced = overall.drop(index=hidden).join(cost)
cheap = ", ".join(title(n) for n in fusion_drawing.frontier(priced, "flops"))
chapter.value("cost.frontier", cheap)
chapter.figure(
    drawing.price_panels(priced),
    "cost_against_accuracy",
    data=priced.reset_index(),
    records=records,
    caption="Accuracy against four prices (logarithmic). Numbered and named: the models that nothing cheaper beats.",
    alt=f"Four scatter plots of accuracy against cost. By operations, nothing cheaper beats {cheap}.",
)

# %% [markdown]
# By operations, nothing cheaper beats: {val}`04_transformers.cost.frontier`.
#
# ## Cheaper
#
# **DropToken** {cite:p}`akbari2021vatt` trains on a random part of the image tokens and tests on all of them:
#
# ```{literalinclude} /vqa_core/fusion/efficiency.py
# :pyobject: drop_tokens
# ```
#
# **Sharing** uses one block's weights in all layers {cite:p}`dehghani2019universal,lan2020albert`. It saves memory, not operations. **Distillation** {cite:p}`hinton2015distilling` trains a small stack (student) on the softened answers $q^\tau$ of a large one (teacher), besides the right ones:
#
# $$ (1 - w)\,\mathrm{CE}(p, a) + w\, \tau^2\, \mathrm{KL}(q^\tau \,\|\, p^\tau), \qquad p^\tau = \operatorname{softmax}(\text{logits} / \tau) . $$
#
# ```{literalinclude} /vqa_core/training/distillation.py
# :pyobject: distillation_loss
# ```
#
# **Pruning** takes away after training: whole heads {cite:p}`michel2019heads`, which makes the matrices smaller, or the smallest weights {cite:p}`han2015pruning`, which only makes them sparse.

# %%
from vqa_core.fusion.efficiency import drop_tokens, share_layers

torch.manual_seed(0)
numbers = torch.arange(1.0, 9).view(1, 8, 1)
kept_tokens, left = drop_tokens(numbers, torch.tensor([[True] * 6 + [False] * 2]), keep=0.5)
print("of tokens 1 to 6 stay:", kept_tokens[left].flatten().tolist(), "in a sequence of", kept_tokens.shape[1])

# %%
stack = LAYOUTS[TEACHER](8, 8, 16, depth=4, heads=2)
before = sum(p.numel() for p in stack.parameters())
stack.layers = share_layers(stack.layers)
print(f"{before:,} parameters, shared {sum(p.numel() for p in stack.parameters()):,}")

# %% tags=["hide-input"]
cheaper = [TEACHER, *(n for n in order if drawing.group(n) == "cheaper" and n in cost.index)]
rows = overall.loc[cheaper, ["mean", "low", "high", "n"]].join(cost).reset_index()
relative = {
    "parameters": rows["parameters"] / rows["parameters"][0],
    "operations": rows["flops"] / rows["flops"][0],
    "activations": rows["activation_mb"] / rows["activation_mb"][0],
    "time per step": rows["seconds_per_step"] / rows["seconds_per_step"][0],
}
efficiency = pd.DataFrame({"model": rows["unit"].map(title), **rows[["mean", "low", "high", "n"]], **relative})
chapter.table(
    efficiency,
    "efficiency",
    records=records,
    formats=dict.fromkeys(("mean", "low", "high"), ".1%") | dict.fromkeys(relative, ".0%"),
    caption="Four ways to make early concatenation cheaper: accuracy, and what is left of each cost. Operations and activations of DropToken are those with all tokens, as in testing.",
)

# %% tags=["hide-input"]
pruning = readout.pruning_table(runs[TEACHER], correct, pictures)
of_weights = pruning[pruning["way"] == "weights"].set_index("share")["mean"]
of_heads = pruning[pruning["way"] == "heads"].set_index("share")["mean"]
drawn = chapter.figure(
    drawing.pruning_panels(pruning, {"majority": base["mean"]}),
    "pruning",
    data=pruning,
    records=[runs[TEACHER]],
    caption="Accuracy of the trained early concatenation when heads or weights are taken away, without further training.",
    alt=f"Two panels. With {of_heads.index[-1]:.0%} of the heads gone accuracy falls from {of_heads.iloc[0]:.0%} to {of_heads.iloc[-1]:.0%}; "
    f"with {of_weights.index[-1]:.0%} of the weights gone to {of_weights.iloc[-1]:.0%}.",
)
display(drawn)
harmless = pruning[(pruning["way"] == "weights") & (pruning["mean"] > of_weights[0.0] - 0.01)]["share"].max()
chapter.value("pruning.harmless", float(harmless), n=len(test), of="questions")

# %% [markdown]
# Up to {val}`04_transformers.pruning.harmless:.0%` of the weights can be set to zero before a point of accuracy is lost.
#
# ## What we saw

# %% tags=["hide-input"]
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.chapter == 4]
chapter.table(
    pd.DataFrame(rules),
    "rules",
    caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.",
)

# %%
effects = readout.claims(correct, float(majority.mean()), pictures, timed)
for claim, effect in effects.items():
    if effect is not None:
        counted_ = "repeats" if claim in ("F5", "F6b", "F7", "F8a") else "questions"
        chapter.claim(claim, effect, of=counted_)
        chapter.value(f"claims.{claim.lower()}", effect, of=counted_)

# %% tags=["hide-input"]
kept_share = effects["F10"]
told = "is undefined, because the teacher is no better than the most frequent answer"
if kept_share is not None:
    told = f"is {kept_share.mean:.0%} ({kept_share.low:.0%} to {kept_share.high:.0%}) of what the teacher has above the most frequent answer"
chapter.value("f10.sentence", told.replace("%", " %"))

# %% [markdown]
# - **Early concatenation is quadratic (F5).** Exponent {val}`04_transformers.claims.f5:.2f` ({val}`04_transformers.claims.f5:range.2f`): {verdict}`F5`.
# - **Bottlenecks keep the accuracy (F6a)**: {val}`04_transformers.claims.f6a:+.1p` ({val}`04_transformers.claims.f6a:range+.1p`) against early concatenation of the same depth and width: {verdict}`F6a`. **And lower the cost (F6b)**:
#   {val}`04_transformers.claims.f6b:.2f` of the time ({val}`04_transformers.claims.f6b:range.2f`): {verdict}`F6b`.
# - **A Perceiver hardly minds longer inputs (F7)**: {val}`04_transformers.claims.f7:.2f` times the time ({val}`04_transformers.claims.f7:range.2f`): {verdict}`F7`.
# - **DropToken saves cost (F8a)**: {val}`04_transformers.claims.f8a:.2f` of the time ({val}`04_transformers.claims.f8a:range.2f`): {verdict}`F8a`. **And loses accuracy (F8b)**:
#   {val}`04_transformers.claims.f8b:+.1p` ({val}`04_transformers.claims.f8b:range+.1p`): {verdict}`F8b`.
# - **Sharing layers is nearly free (F9)**: {val}`04_transformers.claims.f9:+.1p` ({val}`04_transformers.claims.f9:range+.1p`): {verdict}`F9`.
# - **A distilled stack keeps most (F10)**: what it has above the most frequent answer {val}`04_transformers.f10.sentence`: {verdict}`F10`.
#
# What this does *not* say: which layout is good for your data. The tokens here are few and nearly symbols, the stacks are small and trained for minutes. The costs are a matter of arithmetic and carry over; the accuracies are those of this
# task at this length of training.
#
# ```{claims}
# :chapter: 4
# ```
#
# ## Exercises
#
# One star: read and compute. Two stars: prove or program. Three stars: run an experiment.
#
# ```{exercise} ★ Which pattern is it?
# :label: ex-transformers-pattern
#
# Write a function that gives the attention pattern of a *bottleneck* layer over [image ; bottlenecks ; text] for given sizes, as a boolean matrix: who reads whom? Call `check_pattern` with it.
# ```


# %%
def pattern_of(n_image: int, n_bottlenecks: int, n_text: int) -> np.ndarray:
    """Bool (N, N) over [image ; bottlenecks ; text], rows read columns."""
    return np.zeros((n_image + n_bottlenecks + n_text,) * 2, dtype=bool)  # your pattern


def check_pattern(yours, sizes=(4, 2, 3)) -> bool:
    """Whether a pattern is that of the class: run with need_weights, both versions of the bottlenecks put together."""
    i, n, t = sizes
    fusion = BottleneckFusion(8, 8, 8, bottlenecks=n, depth=1, heads=1).eval()
    w = fusion(torch.randn(1, i, 8), torch.randn(1, t, 8), need_weights=True).attention[0, 0].detach().numpy() > 0
    want = np.zeros((i + n + t,) * 2, dtype=bool)
    left, right = np.arange(i + n), np.r_[i + n : i + n + t, i : i + n]  # places of the two sides' tokens
    want[np.ix_(left, left)] |= w[: i + n, : i + n]
    want[np.ix_(right, right)] |= w[i + n :, i + n :]
    return bool((np.asarray(yours(*sizes)) == want).all())


check_pattern(pattern_of)

# %% [markdown]
# ````{solution-start} ex-transformers-pattern
# :class: dropdown
# ````
# Everything but the two corners where image and text would meet.


# %%
def solution(n_image, n_bottlenecks, n_text):
    reads = np.ones((n_image + n_bottlenecks + n_text,) * 2, dtype=bool)
    reads[:n_image, -n_text:] = reads[-n_text:, :n_image] = False
    return reads


check_pattern(solution)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} ★ Where the square begins
# :label: ex-transformers-crossover
#
# From the formula for $F(n, n)$: at which length $N$ does the attention term equal all the others together? How long must sequences be for a stack of 768 features, the width of BERT {cite:p}`devlin2019bert`, until attention is most of the work?
# ```
#
# ```{solution} ex-transformers-crossover
# :class: dropdown
#
# $4 N^2 D = 24 N D^2$ gives $N = 6 D$: 4,608 tokens for a width of 768. Below, a transformer's cost is nearly linear in its length, and a layout that saves pairs of tokens saves little.
# ```
#
# ````{exercise} ★★ A Perceiver that sees nothing
# :label: ex-transformers-blind
#
# Write a subclass of `Perceiver` without the reading, as the published sketch has it. Show that its answer does not depend on the picture, and that its input embedding gets no gradient. Which line of a training log would have told?
# ````
#
# ````{solution-start} ex-transformers-blind
# :class: dropdown
# ````
# The loss stays at the entropy of the answers: a model that always gives their frequencies. A baseline without the picture has the *same* loss, and that is the line to look for.


# %%
class Sketch(Perceiver):
    """The cross-attention is commented out: latents think about themselves."""

    def encode(self, inputs, mask=None, need_weights=False):
        x = self.latents.repeat(len(inputs), 1, 1)
        for blocks in self.thinking:
            # x, weights = reading(x, inputs, mask)
            for block in blocks:
                x, _ = block(x)
        return x, None


sketch = Sketch(8, 8, 16, latents=4, heads=2)
same = torch.equal(sketch(picture, question).fused, sketch(picture + 1, -question).fused)
sketch(picture, question).fused.square().sum().backward()
print("another picture, the same answer:", same, "| gradient:", sketch.image_embedding.projection.weight.grad)

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} ★★ Cross attention cannot count words
# :label: ex-transformers-words
#
# In the layout `cross_attention` no word reads another word. After how many layers can the state of a word depend on another word? Prove it, and check with gradients.
# ```
#
# ````{solution} ex-transformers-words
# :class: dropdown
#
# After one layer a word depends on itself and the picture's embedding; image tokens depend on all words. In the second layer it reads these image tokens, so two layers are needed and are enough.
#
# ```python
# layout = LAYOUTS["cross_attention"](8, 8, 16, depth=1, heads=2)  # and depth=2
# words = question.clone().requires_grad_()
# streams, _ = layout.meet(layout.embed(picture, words))
# streams.text[0, 0].sum().backward()
# print(words.grad.abs().sum(-1))  # one number for each word
# ```
# ````
#
# ```{exercise} ★★ Why the square of the temperature?
# :label: ex-transformers-temperature
#
# Show that the gradient of $\mathrm{KL}(q^\tau \,\|\, p^\tau)$ in the student's logits shrinks like $1/\tau^2$ for large $\tau$, so that the factor $\tau^2$ keeps both terms of the loss in proportion.
# ```
#
# ```{solution} ex-transformers-temperature
# :class: dropdown
#
# The gradient is $(p^\tau - q^\tau)/\tau$. For large $\tau$ and logits $z, v$ with mean zero, $p^\tau - q^\tau \approx (z - v)/(A \tau)$ with $A$ answers, which leaves $(z - v)/(A \tau^2)$.
# ```
#
# ````{exercise} ★★★ Your own layout
# :label: ex-transformers-own
#
# A layout is a tuple of layers. Try `(CrossLayer, OwnLayer)`, or a layer of your own in which only words read (chapter 3 has one), enter it in `METHODS` and run it with the code below. Does it lie on the frontier of {numref}`fig-04-transformers-cost-against-accuracy`?
#
# ```python
# from dataclasses import replace
# from vqa_core.fusion.transformer import CrossLayer, Layout, OwnLayer
# class Mine(Layout):
#     stages = (CrossLayer, OwnLayer)
# build = lambda i, t, m: Mine(i, t, m.dim, depth=m.depth, heads=m.heads)
# transformers.METHODS["mine"] = transformers.Method("mine", "layout", build)
# mine = replace(spec, unit="mine", model=replace(spec.model, fusion="mine"))
# transformers.run(mine).metrics["accuracy_test"]
# ```
# ````
#
# ```{solution} ex-transformers-own
# :class: dropdown
#
# There is no one answer. Cross attention followed by own layers lets words compare what they have read; its pairs are $2 N_i N_t$, then $N_i^2 + N_t^2$. Report five seeds and the paired gain with `gain_table`, not one number.
# ```
#
# ```{exercise} ★★★ How narrow a bottleneck?
# :label: ex-transformers-narrow
#
# Train bottleneck fusion with one, two, eight and sixteen bottleneck tokens. Which families suffer first from a single one? Compare with a Perceiver of as many latents.
# ```
#
# ```{solution} ex-transformers-narrow
# :class: dropdown
#
# Use `replace(spec.model, bottlenecks=n)` as in the exercise above. A single token must carry, before it knows the question well, whatever a word may want to know of the picture; families that need several objects at once (counting, exclusive-or of attributes of several objects)
# have the most to pass through.
# ```
#
# ## Further reading
#
# The survey of layouts {cite:p}`xu2023survey`; a stack with as little as possible before the joint transformer {cite:p}`kim2021vilt`; bottlenecks {cite:p}`nagrani2021mbt`; Perceiver {cite:p}`jaegle2021perceiver` and
# Perceiver IO {cite:p}`jaegle2022perceiverio`; attention without its map in memory {cite:p}`dao2022flashattention`.
