# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Counterfactual attention
#
# Attention is trained by accident. A loss asks for the right answer; weights over cells appear on the way, and nothing ever asks whether *they* were of use. Counterfactual attention learning (CAL) asks {cite:p}`rao2021cal`: what would the answer have been if the maps had known nothing? What the maps add, the difference of the two answers, is
# their effect, and it gets a loss of its own.
#
# A study note carries this from birds and cars to volumes of the body with a vector of genes beside them, and reports of private data that accuracy, F1 and AUC rise and that maps become finer. Private data can't be looked at. Here are {val}`10_counterfactual.size.train:,d` volumes of phantoms with {val}`10_counterfactual.size.covariates` numbers beside each, of which we know
# everything, also where the answer is.
#
# :::{admonition} What you will be able to do
# :class: tip
# - write an intervention on attention as code, in two and in three dimensions, behind any encoder that has a grid;
# - derive what the effect term does *not* see, and so what it trains;
# - compare a method with the same network without it, so that the difference is the method's;
# - score maps against masks, and against maps that know nothing.
#
# **You need** the grids of chapter 2 and the scores of maps of chapter 9.\
# **What it costs**: {val}`10_counterfactual.time.runs` runs took {val}`10_counterfactual.time.seconds:.0f` seconds of computing on {val}`10_counterfactual.time.device`.
# :::

# %% tags=["parameters"]
PROFILE = "auto"  # smoke, cpu, gpu; auto is gpu where CUDA is

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from torch import nn

from vqa_core import experiments, figures
from vqa_core.experiments import counterfactual
from vqa_core.experiments import counterfactual_drawing as drawing
from vqa_core.experiments import counterfactual_readout as readout
from vqa_core.experiments.readout import learning_curves
from vqa_core.explain import counterfactual as cal

figures.use_style()
chapter = figures.Chapter("10_counterfactual", PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
records = experiments.load("counterfactual", profile)
runs = readout.runs_of(records)
config = counterfactual.PROFILES[profile]
effects = readout.effects(runs)
units = counterfactual.UNITS

# %% tags=["hide-input"]
chapter.value("time.runs", len(records))
chapter.value("time.seconds", sum(r.seconds for r in records), n=len(records), of="runs")
chapter.value("time.device", records[0].device)
chapter.value("size.seeds", config.seeds)
chapter.value("size.covariates", counterfactual.COVARIATES)
for split in counterfactual.SPLITS:
    chapter.value(f"size.{split}", getattr(config.volumes, split))
    chapter.value(f"size.scenes_{split}", getattr(config.scenes, split))

# %% [markdown]
# ## The idea
#
# An encoder makes a grid of features $X \in \mathbb{R}^{D \times N}$ of a picture. Attention maps $A \in \mathbb{R}^{M \times N}$ are computed from $X$; both together give the answer $Y$. In the words of causal inference {cite:p}`pearl2009causality`, $X$ acts on $Y$ directly and through $A$.

# %% tags=["hide-input"]
graph, edges = drawing.causal_graph()
chapter.figure(
    graph,
    "causal_graph",
    data=edges,
    caption="How an answer comes about, and the same when maps are *set* to something else. The vector beside the picture acts on the answer in both.",
    alt="Two graphs. In the first, features lead to maps, and features, maps and a vector lead to the answer. In the second, the arrow from features to maps is missing.",
)

# %% [markdown]
# To set the maps to some $\bar A$, whatever the picture, is an intervention, $do(A = \bar A)$: the arrow that leads to $A$ is cut ({numref}`fig-10-counterfactual-causal-graph`). What the learned maps add to the answer is
#
# $$ Y_\text{effect} = \mathbb{E}_{\bar A}\bigl[\, Y(do(A), X) - Y(do(\bar A), X) \,\bigr], $$
#
# and the loss asks both for a right answer and for a right effect, with weights that are ours to choose:
#
# $$ L = \lambda_\text{raw}\, \mathrm{CE}(Y, y) + \lambda_\text{effect}\, \mathrm{CE}(Y_\text{effect}, y) . $$
#
# The note takes $\lambda_\text{raw} = 1/3$ and $\lambda_\text{effect} = 1$.
#
# **Pooling.** With $x_n$ the features of cell $n$, each map reads one vector of the grid, and the $M$ vectors stand side by side (bilinear attention pooling):
#
# $$ r_m = \frac{1}{N} \sum_n A_{mn}\, x_n, \qquad p = \frac{s(r)}{\lVert s(r) \rVert}, \qquad s(r) = \operatorname{sign}(r) \sqrt{|r| + \varepsilon}, \qquad Y = W \begin{bmatrix} 100\, p \\ v \end{bmatrix} + b . $$
#
# In place of the mean there may be a maximum over the cells. The vector $v$ (covariates here, genes there) is put beside what is pooled.
#
# ```{literalinclude} /vqa_core/explain/counterfactual.py
# :pyobject: bilinear_attention_pooling
# ```
#
# ```{literalinclude} /vqa_core/explain/counterfactual.py
# :pyobject: CounterfactualAttention.forward
# ```
#
# ```{literalinclude} /vqa_core/explain/counterfactual.py
# :pyobject: CounterfactualAttention._classify
# ```
#
# ```{literalinclude} /vqa_core/explain/counterfactual.py
# :pyobject: counterfactual_loss
# ```
#
# Nothing in it knows how many axes a grid has, so it goes behind any encoder that gives one:
#
# ```{literalinclude} /vqa_core/explain/counterfactual.py
# :pyobject: CounterfactualModel.forward
# ```
#
# ## Toy numbers
#
# One picture of two cells with two features, and two maps. By hand: the first map reads $(1, 0)/2$, the second $(1 + 6, -12)/2$.

# %%
features = torch.tensor([[[[1.0, 2.0]], [[0.0, -4.0]]]])  # (1, 2 features, 1, 2 cells)
maps = torch.tensor([[[[1.0, 0.0]], [[1.0, 3.0]]]])  # (1, 2 maps, 1, 2 cells)
pooled = cal.bilinear_attention_pooling(features, maps)
by_hand = torch.tensor([0.5, 0.0, 3.5, -6.0])
by_hand = by_hand.sign() * (by_hand.abs() + cal.EPSILON).sqrt()
print(pooled.numpy().round(4), (by_hand / by_hand.norm()).numpy().round(4))

# %% [markdown]
# Three things follow from the equations, before anything is trained.
#
# **The vector drops out of the effect.** $b$ and $v$ act on both answers alike, so $Y_\text{effect} = 100\, W_p\, (p(A) - p(\bar A))$. The effect term therefore asks something of the *picture alone*, and a network can't answer it by reading the vector. This is a second thing that CAL changes, besides the maps, and it has to be told from the first.

# %%
torch.manual_seed(0)
module = cal.CounterfactualAttention(dim=6, classes=2, axes=3, extra=25).eval()
grid = torch.randn(4, 6, 3, 3, 3)
one, other = (module(grid, torch.randn(4, 25)) for _ in range(2))
print("logits move by", (one.logits - other.logits).abs().max().item())
print("effects move by", (one.effect - other.effect).abs().max().item())

# %% [markdown]
# **Random maps are nearly uniform ones.** With $\bar A_{mn}$ uniform on $(0, 2)$, $r_m$ has mean $\bar x$, what a map of ones reads, and variance $\tfrac{1}{3N}\, \overline{x^2}$. On a large grid there is little chance left in it: training with random maps should give nearly what training with maps of ones gives.

# %%
cells = [8, 64, 512, 4096]
apart = []
for n in cells:
    x = torch.rand(64, 16, n)
    read = [cal.bilinear_attention_pooling(x, make(x[:, :8])) for make in (cal.random_maps, cal.uniform_maps)]
    apart.append((read[0] - read[1]).norm(dim=1).mean().item())
pd.Series(apart, index=pd.Index(cells, name="cells"), name="distance").to_frame().style.format("{:.4f}")

# %% [markdown]
# **A map's sign means nothing** where maps are not rectified: $s(-r) = -s(r)$, so maps $-A$ with weights $-W_p$ give the same answers.

# %%
signed = torch.randn(1, 2, 1, 2)
both = [cal.bilinear_attention_pooling(features, m) for m in (signed, -signed)]
print("sum of the two:", (both[0] + both[1]).abs().max().item())

# %% [markdown]
# ## A snippet that can't be constructed
#
# The note's model can't have been run as it is printed: its constructor calls `super()` with the name of *another* class. Python then does one of two things. Here is a toy of our own with the same slip:


# %%
class Older(nn.Module):
    """Any class that happens to be there."""


class Renamed(nn.Module):
    def __init__(self):
        super(Older, self).__init__()  # the name of another class


def attempt(make):
    try:
        return f"made {make()}"
    except (TypeError, NameError) as error:
        return f"{type(error).__name__}: {error}"


# %%
class Moved(nn.Module):
    def __init__(self):
        super(NoLongerHere, self).__init__()  # noqa: F821 – the name of a class of another file


outcomes = {make.__name__: attempt(make) for make in (Renamed, Moved, Older)}
pd.Series(outcomes, name="what happens").to_frame()

# %% tags=["hide-input"]
assert outcomes["Renamed"].startswith("TypeError")
assert outcomes["Moved"].startswith("NameError")
assert outcomes["Older"].startswith("made")

# %% [markdown]
# `super()` without arguments can't go wrong in this way. Reading on, four more things differ from the method that the note describes, and each is a choice that we make the other way:
#
# - the vector is taken from the input and then never used;
# - maps are a bare convolution, so that they can be negative (the published code has batch norm and ReLU);
# - with maximum pooling, the *counterfactual* half still takes the mean, so that even $\bar A = A$ would have an effect:

# %%
torch.manual_seed(0)
x, a = torch.rand(1, 4, 3, 3), torch.rand(1, 2, 3, 3)
halves = {pool: cal.bilinear_attention_pooling(x, a, pool) for pool in ("max", "average")}
print("same maps, one half max:", (halves["max"] - halves["average"]).norm().item())
print("same maps, both max:    ", (halves["max"] - cal.bilinear_attention_pooling(x, a, "max")).norm().item())

# %% [markdown]
# - the last layer has as many outputs as there are genes, whatever the number of classes.
#
# Which parts of the reported gains come from which code is therefore unknown. The claims are tested on the method.
#
# ## The experiment
#
# **Data.** Phantoms of the chest with a mass of low grade (smooth) or high grade (irregular, dark inside), noisy, and with {val}`10_counterfactual.size.covariates` numbers beside each, five of which are shifted by the grade. There are {val}`10_counterfactual.size.train:,d` volumes to train on, {val}`10_counterfactual.size.val:,d` to choose the epoch
# and {val}`10_counterfactual.size.test:,d` to test, cut to a field around the lungs; the {val}`10_counterfactual.size.left_out:.1%` whose mass reaches out of it are left out. Phantoms are no patients, and the numbers are no genes.
#
# **Network.** Two convolutions in 3-D, {val}`10_counterfactual.model.grid` cells of eight voxels, {val}`10_counterfactual.model.maps` maps; {val}`10_counterfactual.model.parameters:,d` parameters.
#
# ```{literalinclude} /vqa_core/encoders/volume.py
# :pyobject: VolumeCNN.forward
# ```
#
# **What is compared.** *With* and *without* have the same layers, the same first weights, the same batches in the same order and as many steps. Without CAL, $\lambda_\text{effect} = 0$; and $\lambda_\text{raw} = 4/3$, so that the weights have the same sum as with it. The answer is $Y$ in both, as in the note. What replaces the maps is drawn in training; evaluation draws
# nothing. The rate was chosen on validation for the network *without* CAL. Each is trained with {val}`10_counterfactual.size.seeds` seeds, and the best epoch on validation is kept. All rules, and the map that is scored (the mean over the maps), were fixed before the test volumes were looked at. Noise,
# training size and batch were chosen where neither network was at a ceiling, after validation of both had been seen; and when the rate was set, the test numbers of one seed at an earlier rate had been on the screen.

# %% tags=["hide-input"]
material = counterfactual.material_of(config.volumes, "test")
shape = counterfactual.build(config.volume_model, config.volumes, 0)
chapter.value("model.grid", " × ".join(map(str, shape.encoder.grid)))
chapter.value("model.maps", config.volume_model.maps)
chapter.value("model.parameters", runs["with"][0].details["parameters"])
chapter.value("size.left_out", material.left_out, n=len(material.regions), of="volumes")
chapter.value("size.area", float(material.regions.mean()), n=len(material.regions), of="volumes")

# %% tags=["hide-input"]
curves = learning_curves({u: runs[u] for u in ("without", "with")})
curves[["low", "high"]] = curves[["low", "high"]].clip(0, 1)
chapter.figure(
    drawing.learning_curves(curves),
    "learning_curves",
    data=curves,
    records=readout.of_units(runs, ("without", "with")),
    caption="Validation accuracy by epoch, with and without the effect term; mean and interval over seeds.",
    alt="Two curves of validation accuracy that rise with the epochs: with counterfactual training and without it.",
)

# %% [markdown]
# ### Answers

# %% tags=["hide-input"]
shown = ["vector", "picture", "without", "long.without", "with", "uniform", "shuffled", "reversed", "zero", "max"]
answered = readout.metric_table(runs, shown, readout.ANSWERS)
chapter.figure(
    drawing.forest(answered, xlabel="on test volumes"),
    "answers",
    data=answered,
    records=readout.of_units(runs, shown),
    caption="Accuracy, macro F1 and AUROC of every unit, with intervals over seeds and volumes. Squares are trained with an effect term, circles without.",
    alt="Three panels with a row for each way of training; in each the vector alone and the picture alone stand beside the networks that read both.",
)

# %% tags=["hide-input"]
for unit in ("vector", "picture", "without", "with", "zero"):
    for metric in readout.ANSWERS:
        chapter.value(f"answers.{unit}.{metric}", readout.measured(runs[unit], metric), of="volumes")

# %% [markdown]
# The vector alone is right in {val}`10_counterfactual.answers.vector.accuracy:ci.1%` of volumes and the picture alone in {val}`10_counterfactual.answers.picture.accuracy:ci.1%`. Both together, without CAL, reach {val}`10_counterfactual.answers.without.accuracy:ci.1%`; with it, {val}`10_counterfactual.answers.with.accuracy:ci.1%`.

# %% tags=["hide-input"]
pairs = dict.fromkeys((*readout.KINDS, "max"), "without")
gains = readout.gain_table(runs, pairs, readout.TITLES)
answer_gains = gains[gains["metric"].isin(readout.ANSWERS.values())]
published = {readout.TITLES[readout.CLAIMS[c]]: gain for c, gain in readout.PUBLISHED.items()}

# %% tags=["hide-input"]
chapter.figure(
    drawing.forest(
        answer_gains, lines=published, zero=True, xlabel="percentage points over the same network without CAL"
    ),
    "gains",
    data=answer_gains,
    records=readout.of_units(runs, [*pairs, *pairs.values()]),
    caption="Gain in answers over the same network without an effect term, paired by seed and volume. Dotted: the gains that the note reports. The base pools by the mean in every row, the last one by the maximum.",
    alt="Differences with intervals in three panels, accuracy, macro F1 and AUROC, around a line at zero, with a dotted line at the reported gain.",
)

# %% tags=["hide-input"]
for claim, metric in readout.CLAIMS.items():
    chapter.value(f"gain.{metric}", effects[claim], of="volumes")
for metric in ("accuracy", "pointing_game"):
    for name, pair in {
        "gain.zero": ("zero", "without"),
        "control": ("with", "zero"),
        "gain.long": ("long.without", "without"),
        "long": ("with", "long.without"),
    }.items():
        found = readout.difference(*(runs[u] for u in pair), metric).interval
        chapter.value(f"{name}.{metric}", found, of="volumes")

# %% [markdown]
# The gains of CAL in points: accuracy {val}`10_counterfactual.gain.accuracy:+.1p` ({val}`10_counterfactual.gain.accuracy:range+.1p`), macro F1 {val}`10_counterfactual.gain.f1:+.1p` ({val}`10_counterfactual.gain.f1:range+.1p`), AUROC {val}`10_counterfactual.gain.auroc:+.1p` ({val}`10_counterfactual.gain.auroc:range+.1p`).
# The note reports {typed}`1.3`, {typed}`2.3` and {typed}`3.3` (its method is that of {cite:t}`rao2021cal`).
#
# **The control** takes the vector away in its effect term, as CAL does, but compares with maps of *zeros*, so that it says nothing about where to look. Its gain in accuracy is {val}`10_counterfactual.gain.zero.accuracy:+.1p` ({val}`10_counterfactual.gain.zero.accuracy:range+.1p`). CAL minus control: {val}`10_counterfactual.control.accuracy:+.1p`
# ({val}`10_counterfactual.control.accuracy:range+.1p`). Only this last number is about counterfactual *attention*; the rest of a gain could be had by one more head on the picture.
#
# **Twice the steps.** A loss with more in it may only learn faster. Twice the epochs give the network without CAL {val}`10_counterfactual.gain.long.accuracy:+.1p` ({val}`10_counterfactual.gain.long.accuracy:range+.1p`); CAL minus that is {val}`10_counterfactual.long.accuracy:+.1p` ({val}`10_counterfactual.long.accuracy:range+.1p`), with half of the steps.
#
# **Kinds.** Random and uniform maps were predicted to be nearly the same thing; in {numref}`fig-10-counterfactual-gains` the two rows can be compared. Shuffled maps belong to another volume and are as peaked as the own ones; reversed ones look everywhere else. {numref}`fig-10-counterfactual-kinds` shows all of them for one slice. The last row of {numref}`fig-10-counterfactual-gains` pools by the maximum, after the same schedule.

# %% tags=["hide-input"]
torch.manual_seed(0)
own = torch.from_numpy(runs["with"][0].arrays["maps"][:2].astype(np.float32)).unsqueeze(1)  # (2, 1, *grid)
own = own / own.mean((1, 2, 3, 4), keepdim=True)
depth = int(material.regions[0].sum((1, 2)).argmax()) * own.shape[2] // len(material.regions[0])
slices = {"own": own} | {kind: make(own) for kind, make in cal.COUNTERFACTUALS.items()}
slices = {kind: m[0, 0, depth].numpy() for kind, m in slices.items()}

# %% tags=["hide-input"]
values = pd.DataFrame(
    [
        {"kind": k, "row": i, "column": j, "value": float(v)}
        for k, m in slices.items()
        for (i, j), v in np.ndenumerate(m)
    ]
)
chapter.figure(
    drawing.kinds(slices),
    "kinds",
    data=values,
    records=runs["with"][:1],
    picture=True,
    caption="One slice of the mean map of the first test volume, and what stands in its place: four kinds of counterfactual, and the zeros of the control. The mean over the volume is one in the own map, and about one in random and uniform ones.",
    alt="Six small heat maps side by side: the own map, random values, ones, the map of another volume, the own map reversed, and zeros.",
)

# %% [markdown]
# ### Maps
#
# The map of a volume is the mean over its maps. Each is scored against the voxels of its mass, as in chapter 9, and beside three maps that have seen no answer: where masses usually are, chance, and the picture's own brightness. All have cells of the same size. The mass takes {val}`10_counterfactual.size.area:.1%` of the field, which is what a
# constant map scores in pointing.
#
# A cell is a cube of voxels, so its score is computed from the share of it that lies inside, which gives exactly what the repeated map would.
#
# ```{literalinclude} /vqa_core/explain/cells.py
# :pyobject: cell_scores
# ```

# %% tags=["hide-input"]
looked = ["without", "long.without", "with", "uniform", "shuffled", "reversed", "zero", "max", "picture"]
scored = pd.concat([readout.baseline_table(runs), readout.metric_table(runs, looked, readout.MAPS)], ignore_index=True)
chapter.figure(
    drawing.forest(scored, xlabel="on test volumes"),
    "maps",
    data=scored,
    records=readout.of_units(runs, ["volume.baselines", *looked]),
    caption="Scores of the maps against the masses, with intervals over seeds and volumes. The first three rows are no networks.",
    alt="Four panels, pointing game, IoU, energy inside and AUPRC, with a row for each baseline and each way of training.",
)

# %% tags=["hide-input"]
map_gains = gains[gains["metric"].isin(readout.MAPS.values())]
chapter.figure(
    drawing.forest(map_gains, zero=True, xlabel="points over the same network without CAL"),
    "map_gains",
    data=map_gains,
    records=readout.of_units(runs, [*pairs, *pairs.values()]),
    caption="Gain of the maps over those of the same network without an effect term, paired by seed and volume.",
    alt="Differences with intervals in four panels around a line at zero, one for each score of maps.",
)

# %% tags=["hide-input"]
for unit in ("without", "with"):
    for metric in readout.MAPS:
        chapter.value(f"maps.{unit}.{metric}", readout.measured(runs[unit], metric), of="volumes")
base = readout.baseline_table(runs).set_index(["unit", "metric"])
for name in readout.BASELINE_TITLES:
    found = base.loc[(name, readout.MAPS["pointing_game"]), ["mean", "low", "high", "n"]].to_dict()
    chapter.value(f"maps.{name}.pointing_game", found | {"n": int(found["n"])}, of="volumes")

# %% [markdown]
# Without CAL the highest cell lies in the mass in {val}`10_counterfactual.maps.without.pointing_game:ci.1%` of volumes, with it in {val}`10_counterfactual.maps.with.pointing_game:ci.1%`: a difference of {val}`10_counterfactual.gain.pointing_game:+.1p` ({val}`10_counterfactual.gain.pointing_game:range+.1p`). Usual places point at it in
# {val}`10_counterfactual.maps.centre.pointing_game:.1%`, chance in {val}`10_counterfactual.maps.chance.pointing_game:.1%` and brightness in {val}`10_counterfactual.maps.salience.pointing_game:.1%`. CAL minus control, in pointing: {val}`10_counterfactual.control.pointing_game:+.1p` ({val}`10_counterfactual.control.pointing_game:range+.1p`); minus twice the steps without it:
# {val}`10_counterfactual.long.pointing_game:+.1p` ({val}`10_counterfactual.long.pointing_game:range+.1p`).
#
# "Finer" may also mean that attention falls off faster around the mass.

# %% tags=["hide-input"]
falloff = readout.mean_profile(runs, material, ("without", "with"))
chapter.figure(
    drawing.profiles(falloff),
    "profiles",
    data=falloff,
    records=[runs["without"][0], runs["with"][0]],
    caption="Attention of a cell against its distance from the centre of the mass, in multiples of the mean over all cells. First seed; intervals over volumes.",
    alt="Two curves of attention against distance in cells, with and without counterfactual training, and a dotted line at one.",
)

# %% [markdown]
# ### Before and after
#
# The cases of {numref}`fig-10-counterfactual-slices` were not chosen by hand: they stand at fixed quantiles of the energy inside with CAL, first seed.

# %% tags=["hide-input"]
pair = ("without", "with")
titles = {u: units[u].title for u in pair}
energy = runs["with"][0].arrays["score.energy_inside"]
typical = readout.rows_at_quantiles(energy, np.linspace(0.1, 0.9, 6))
found = readout.examples(runs, material, pair, typical, "energy_inside")
chapter.figure(
    drawing.panels(found, titles, "inside"),
    "slices",
    data=readout.example_table(found),
    records=[runs[u][0] for u in pair],
    picture=True,
    caption="Slices through the middle of the mass (outlined) at six quantiles of the energy inside, from poor to good. Under each map: the answer, and the share of the whole volume's attention that lies in the mass.",
    alt="Six columns of chest slices with an outlined mass; below each the map of the network trained without CAL and with it, laid over the slice.",
)

# %% tags=["hide-input"]
worst = np.sort(np.argsort(energy, kind="stable")[: max(6, len(energy) // 10)])
failures = worst[np.linspace(0, len(worst) - 1, 6).round().astype(int)]
found = readout.examples(runs, material, pair, failures, "energy_inside")
chapter.figure(
    drawing.panels(found, titles, "inside"),
    "failures",
    data=readout.example_table(found),
    records=[runs[u][0] for u in pair],
    picture=True,
    caption="Failures by rule: six volumes, evenly spaced in the order of the test set, of the worst tenth by energy inside with CAL.",
    alt="Six columns of chest slices with an outlined mass that the maps below mostly miss.",
)

# %% tags=["hide-input"]
split = readout.answers_and_maps(runs, pair)
chapter.figure(
    drawing.by_answer(split, "energy inside"),
    "right_and_wrong",
    data=split,
    records=readout.of_units(runs, pair),
    caption="Energy inside the mass where the answer is right and where it is wrong. A volume that some seeds get right counts on both sides.",
    alt="For each of two ways of training a filled mark for right answers and a hollow one for wrong answers, with intervals.",
)

# %% [markdown]
# A map that misses is not a wrong answer, and the reverse holds neither: {numref}`fig-10-counterfactual-right-and-wrong` says how far the two go together.
#
# ## In two dimensions
#
# The same module behind the `GridCNN` of chapter 2, on scenes. Every picture shows one square among other shapes, and the question is always the same: *what colour is the square?* The region is the square's pixels. There are {val}`10_counterfactual.size.scenes_train:,d` pictures to train on and {val}`10_counterfactual.size.scenes_test:,d` to test.

# %% tags=["hide-input"]
flat = ("scene.without", "scene.with")
scenes = pd.concat(
    [readout.baseline_table(runs, "scene"), readout.metric_table(runs, flat, ["accuracy", *readout.MAPS])],
    ignore_index=True,
)
chapter.figure(
    drawing.forest(scenes, xlabel="on test pictures"),
    "scenes",
    data=scenes,
    records=readout.of_units(runs, ["scene.baselines", *flat]),
    caption="Scenes: accuracy and scores of the maps against the square, with and without CAL, and three maps that have seen no answer.",
    alt="Five panels, four scores of maps and the accuracy, with rows for three baselines and for training without and with CAL.",
)

# %% tags=["hide-input"]
for metric in ("accuracy", "pointing_game"):
    interval = readout.difference(runs["scene.with"], runs["scene.without"], metric).interval
    chapter.value(f"scenes.gain.{metric}", interval, of="pictures")
    chapter.value(f"scenes.with.{metric}", readout.measured(runs["scene.with"], metric), of="pictures")

# %% tags=["hide-input"]
drawn = counterfactual.material_of(config.scenes, "test")
energy = runs["scene.with"][0].arrays["score.energy_inside"]
typical = readout.rows_at_quantiles(energy, np.linspace(0.1, 0.9, 6))
found = readout.examples(runs, drawn, flat, typical, "energy_inside")
chapter.figure(
    drawing.panels(found, dict(zip(flat, ("without CAL", "with CAL"))), "inside"),
    "scene_maps",
    data=readout.example_table(found),
    records=[runs[u][0] for u in flat],
    picture=True,
    caption="Scenes at six quantiles of the energy inside with CAL, from poor to good, with the square outlined. The true colour stands above, the answers below the maps.",
    alt="Six columns of pictures with coloured shapes, the square outlined, and below each the maps without and with CAL.",
)

# %% [markdown]
# With CAL, {val}`10_counterfactual.scenes.with.accuracy:ci.1%` of answers are right, a gain of {val}`10_counterfactual.scenes.gain.accuracy:+.1p` ({val}`10_counterfactual.scenes.gain.accuracy:range+.1p`), and the highest cell lies in the square in {val}`10_counterfactual.scenes.with.pointing_game:ci.1%`, a gain of
# {val}`10_counterfactual.scenes.gain.pointing_game:+.1p` ({val}`10_counterfactual.scenes.gain.pointing_game:range+.1p`). Here there is no vector that could drop out, so that whatever CAL does, it does through the maps and the features.
#
# ## Verdicts

# %% tags=["hide-input"]
for claim, effect in effects.items():
    chapter.claim(claim, effect, of="volumes")

# %% [markdown]
# ```{claims}
# :chapter: 10
# ```
#
# - **Accuracy (E1a)** {verdict}`E1a`, **F1 (E1b)** {verdict}`E1b`, **AUC (E1c)** {verdict}`E1c`: each says whether there is a gain after as many steps, not whether it is as large as the note's. What a gain is due to is said by the control and by twice the steps without CAL.
# - **Finer maps (E2)** {verdict}`E2`, by the pointing game, with a margin of two points that was set beforehand.
#
# **What the intervals don't hold.** The map that is scored is the mean over the maps, whichever of them the classifier uses. One kind of volume, one small network, one schedule, a training set of the size that such studies have. The note's data are private and its network was a vision transformer that is about fifty times as wide; a method may need that size to help. What the equations say holds at any size: the effect
# term does not see the vector, and random maps on a large grid are uniform ones.
#
# ## Exercises
#
# One star: read and compute. Two stars: prove or program. Three stars: run an experiment.
#
# ```{exercise} ★ An effect of nothing
# :label: ex-cal-nothing
#
# For which maps $A$ is $Y_\text{effect} = 0$ in evaluation, where $\bar A$ is a map of ones? What is the loss then, with two classes?
# ```
#
# ```{solution} ex-cal-nothing
# :class: dropdown
#
# $p$ does not change when $A$ is multiplied by a positive number (but for $\varepsilon$), so it is zero for every constant map. Then CE of the effect is $\ln 2$ whatever the label, and $L = \lambda_\text{raw}\, \mathrm{CE}(Y, y) + \lambda_\text{effect} \ln 2$.
# ```
#
# ```{exercise} ★ Which gradient reaches what?
# :label: ex-cal-gradient
#
# In `forward` the counterfactual maps are made of `maps.detach()`. For which kinds does that change anything? What would be trained without it?
# ```
#
# ```{solution} ex-cal-gradient
# :class: dropdown
#
# For shuffled and reversed maps, the only ones that are made of the learned maps. Without it, maps could lower the loss by making the *counterfactual* worse: the map of the neighbour would be trained to mislead on this picture. An intervention sets the maps; nothing should flow back through what was set.
# ```
#
# ```{exercise} ★★ Variance of a random map
# :label: ex-cal-variance
#
# Derive the variance of $r_m$ for $\bar A_{mn}$ uniform on $(0, 2)$, and the expected squared distance of $r$ from its mean. By which factor does the distance in the table of toy numbers fall from row to row, and by which should it?
# ```
#
# ```{solution} ex-cal-variance
# :class: dropdown
#
# A uniform variable on $(0, 2)$ has variance $4/12 = 1/3$. The cells are independent, so $\operatorname{Var} r_{md} = \frac{1}{N^2} \sum_n \frac{1}{3} x_{nd}^2 = \frac{1}{3N}\, \overline{x_d^2}$, and the squared distance is the sum over $m$ and $d$. It falls with $1/N$, the distance with $1/\sqrt{N}$: from row to row by $\sqrt{8}$.
# ```
#
# ````{exercise} ★★ A kind of your own
# :label: ex-cal-kind
#
# Write a counterfactual that moves each map by half of the grid along its last axis, so that it is as peaked as before but looks beside the mass. Put it into `COUNTERFACTUALS` and give it to the module. Is it more like shuffled or like reversed maps?
# ````
#
# ````{solution} ex-cal-kind
# :class: dropdown
#
# ```python
# def moved_maps(maps):
#     return maps.roll(maps.shape[-1] // 2, dims=-1)
#
# cal.COUNTERFACTUALS["moved"] = moved_maps
# module = cal.CounterfactualAttention(6, 2, axes=3, training_kind="moved")
# ```
# Like shuffled ones: real maps in the wrong place. Unlike them it needs no second picture, so it works in a batch of one.
# ````
#
# ```{exercise} ★★ AUROC as a mean
# :label: ex-cal-auroc
#
# The intervals of AUROC above come from one number for each volume {cite:p}`delong1988auc`. Show that the mean of `auroc_contributions` is the area under the curve, and that a volume's number can lie outside of $[0, 1]$.
# ```
#
# ```{solution} ex-cal-auroc
# :class: dropdown
#
# With $u_i$ the share of the other class on the right side of case $i$ and $n_1 + n_0 = n$: the mean is $\frac1n \bigl( n\,\mathrm{AUC} + \frac{n}{n_1} \sum_{+} (u_i - \mathrm{AUC}) + \frac{n}{n_0} \sum_{-} (u_i - \mathrm{AUC}) \bigr)$, and both sums are zero because the mean of $u$ over either class is the AUC.
# A positive with $u_i = 0$ has $\mathrm{AUC}\,(1 - n/n_1) < 0$.
# ```
#
# ```{exercise} ★★★ When is a vector in the way?
# :label: ex-cal-vector
#
# The stronger the vector, the less a network has to look at the picture. Change `effect` of `Volumes` and run *with*, *without* and the control for several strengths. For which is CAL worth most, and how much of it is the control's? What would you fix before you look?
# ```
#
# ```{solution} ex-cal-vector
# :class: dropdown
#
# In `vqa_core/experiments/counterfactual.py` change `PROFILES` and run `python -m vqa_core run counterfactual --unit with,without,zero`. Fix the strengths, the seeds and the number that decides, `readout.difference(runs["with"], runs["zero"], "accuracy")`; at strength zero there is no vector to hide behind, and CAL and control should agree with the picture alone.
# ```
