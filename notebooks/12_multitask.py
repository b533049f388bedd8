# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Multi-task learning: shared layers, competing losses
#
# A question about a picture carries more labels than its answer. It has a *category* (is it about size, about a plane, about presence?), and its picture shows an *organ*. A model that is trained for all three has to
# find layers that serve them all, and the hope is as old as the idea {cite:p}`caruana1997multitask`: what one task teaches these layers helps the others, as if there were more data.
#
# The hope can fail. The tasks share parameters, so every step that is good for one may be bad for another. This chapter builds the model, *measures* how often the gradients pull apart, compares five ways to weight the losses, and
# asks the question that decides: is a task done better together than alone, with the same network, the same batches and the same number of steps?
#
# :::{admonition} What you will be able to do
# :class: tip
# - write a shared trunk with one head for each task, and say why a plain Python list of heads trains nothing;
# - weight losses by fixed numbers, by their rates (DWA) and by learned uncertainties;
# - measure gradient conflict, and remove it by projection (PCGrad);
# - compare with single tasks fairly, and with models that see no picture or read no question;
# - tell negative transfer from noise.
#
# **You need** fusion (chapter 3); nothing else.\
# **What it costs**: {val}`12_multitask.size.trainings` trainings took {val}`12_multitask.time.experiment:.0f` seconds of computing on {val}`12_multitask.time.device`.
# :::
#
# *Multi-task* is not *multimodal*: the first has several outputs, the second several inputs. The models here are both.

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from torch import nn

from vqa_core import experiments, figures
from vqa_core.evaluation import claims
from vqa_core.experiments import multitask
from vqa_core.experiments import multitask_drawing as drawing
from vqa_core.experiments import multitask_readout as readout
from vqa_core.heads.multitask import TaskHeads, shared_parameters, unregistered
from vqa_core.training.multitask import conflict, project_conflicts

figures.use_style()
chapter = figures.Chapter("12_multitask", profile=PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
records = experiments.load("multitask", profile)
amounts = readout.by_amount(records)
config = multitask.PROFILES[profile]
runs = amounts[config.main]  # all arms, at the middle amount of training pictures
material = multitask.material_of(multitask.Pictures(config.main, config.val, config.test))

# %% tags=["hide-input"]
chapter.value("size.trainings", len(records) * config.model.seeds)
chapter.value("size.seeds", config.model.seeds)
chapter.value("size.pictures", config.main)
chapter.value("size.questions", len(material.parts["train"]))
chapter.value("size.test", len(material.parts["test"]))
chapter.value("size.test_pictures", config.test)

# %% tags=["hide-input"]
chapter.value("size.parameters", runs["equal"].details["parameters"])
chapter.value("size.narrow", runs["narrow"].details["parameters"])
chapter.value("time.experiment", sum(r.seconds for r in records), n=len(records), of="units")
chapter.value("time.device", records[0].device)


# %% tags=["hide-input"]
def value(key, found, of):
    """A measured number for the text: a row of a table, or an interval."""
    row = found if isinstance(found, dict) else readout.row(found)
    chapter.value(key, {name: row[name] for name in ("mean", "low", "high", "n")}, of=of)


# %% [markdown]
# ## One trunk, three heads
#
# Let $\theta$ be the parameters of the trunk and $\varphi_k$ those of the head of task $k$. The trunk turns picture $x$ and question $q$ into one vector $h = f_\theta(x, q)$; every head reads the same $h$:
#
# $$ p_k(y \mid x, q) = \operatorname{softmax}\bigl(W_k\, f_\theta(x, q) + b_k\bigr)_y , \qquad \varphi_k = (W_k, b_k), $$
#
# and one loss is made of three:
#
# $$ \mathcal L(\theta, \varphi_1, \dots, \varphi_K) = \sum_{k=1}^{K} \lambda_k\, L_k(\theta, \varphi_k) . $$ (eq-multitask-loss)
#
# This is {term}`hard parameter sharing`: everything but the heads is common. In code it is the fourth part of the one composition of this book, image encoder + text encoder + fusion + head, with a head that returns three sets of logits. The shared layers stand in a
# `nn.ModuleList`, because they are gone through in order, the heads in a `nn.ModuleDict`, because they are asked for by name:
#
# ```{literalinclude} /vqa_core/heads/multitask.py
# :pyobject: TaskHeads.__init__
# ```
#
# ```{literalinclude} /vqa_core/heads/multitask.py
# :pyobject: TaskHeads.forward
# ```
#
# Who reaches whom can be read from the gradients. The loss of one task touches the shared layers and its own head, and nothing else:

# %%
torch.manual_seed(0)
heads = TaskHeads(4, {"category": 11, "answer": 5, "organ": 3}, hidden=(6,))
heads(torch.randn(8, 4))["organ"].square().sum().backward()
print("touched:", [name for name, p in heads.named_parameters() if p.grad is not None])
print("shared: ", shared_parameters(heads))

# %% [markdown]
# ### The list that trains nothing
#
# Why not a plain list? Because PyTorch finds the layers of a module by looking at its attributes, and does not look into lists. The model below runs, and its loss falls a little, because the trunk learns to serve random heads:


# %%
class Listed(nn.Module):
    """Three heads in a plain list."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.heads = [nn.Linear(6, n) for n in (11, 5, 3)]

    def forward(self, x):
        return [head(self.trunk(x).relu()) for head in self.heads]


# %%
class Registered(Listed):
    """The same heads in a ModuleList."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(self.heads)


# %%
def trained(model, x, labels):
    """Train the last head, move the model, and count what of it was seen."""
    before, optimizer = model.heads[2].weight.clone(), torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x)[2], labels).backward()
        optimizer.step()
    moved = int(not torch.equal(model.heads[2].weight, before))
    model.to(torch.float64)
    return {
        "parameters that an optimiser gets": len(list(model.parameters())),
        "entries of the state dict": len(model.state_dict()),
        "heads that training moved, of one": moved,
        "heads that .to(float64) moved, of three": sum(h.weight.dtype == torch.float64 for h in model.heads),
    }


# %%
listed, registered = Listed(), Registered()
x, labels = torch.randn(64, 4), torch.randint(0, 3, (64,))
hidden = pd.DataFrame({"list": trained(listed, x, labels), "ModuleList": trained(registered, x, labels)})
hidden

# %% [markdown]
# Its heads are not trained, not moved to the device, and not in the checkpoint; loading that checkpoint gives *other* random heads. Nothing of this raises an error. So the training loop of this chapter asks first:

# %%
print(unregistered(listed))

# %% tags=["hide-input"]
assert (hidden["list"] < hidden["ModuleList"]).all()
assert len(unregistered(listed)) == 3
assert unregistered(registered) == unregistered(heads) == []

# %% [markdown]
# A `ModuleDict` has a trap of its own: its entries become attributes, and a task called `"type"` would hide the method `type` of every module. `TaskHeads` refuses such names, which is why the first task is called *category* here.
#
# ## Two tasks that pull apart
#
# Let $g_k = \nabla_\theta L_k$ be the gradient of task $k$ on the shared parameters. After a small step $-\eta g_j$ the loss of task $i$ has changed by
#
# $$ L_i(\theta - \eta g_j) - L_i(\theta) = -\eta\, g_i \cdot g_j + O(\eta^2), $$ (eq-multitask-conflict)
#
# so that a step for $j$ hurts $i$ exactly where $g_i \cdot g_j < 0$: the tasks *conflict*. The smallest example has a closed form. Take $L_1 = \tfrac12 \lVert\theta - a\rVert^2$ and $L_2 = \tfrac12 \lVert\theta - b\rVert^2$. Then
# $g_1 \cdot g_2 = (\theta - a) \cdot (\theta - b)$, and with the midpoint $m = (a + b)/2$
#
# $$ g_1 \cdot g_2 = \lVert\theta - m\rVert^2 - \tfrac14 \lVert a - b\rVert^2 . $$ (eq-multitask-disc)
#
# The tasks conflict inside the circle over $a$ and $b$ (it is Thales' circle: on it the gradients are orthogonal), and nowhere else. Far away, at the beginning of a training, they agree.
#
# PCGrad {cite:p}`yu2020pcgrad` takes from each gradient what points against another, $g_i \leftarrow g_i - \frac{g_i \cdot g_j}{\lVert g_j \rVert^2}\, g_j$ where $g_i \cdot g_j < 0$:
#
# ```{literalinclude} /vqa_core/training/multitask.py
# :pyobject: project_conflicts
# ```

# %%
theta, minima = torch.tensor([0.6, 0.3]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
g = (theta - minima)[None]  # (1, 2, 2): one model, two tasks, two parameters
projected = project_conflicts(g, torch.tensor([[0, 1]]))
print("cosine", conflict(g).cosine[0, 0, 1].item())
print("g1 · g2", (g[0, 0] @ g[0, 1]).item(), "= ‖θ − m‖² − 1 =", (theta.square().sum() - 1).item())
print("after projection:", (projected[0, 0] @ g[0, 1]).item(), (projected[0, 1] @ g[0, 0]).item())

# %% tags=["hide-input"]
minima, start = np.array([[1.0, 0.0], [-1.0, 0.0]]), (0.75, 1.4)
ways = {"sum": False, "PCGrad": True}
path = pd.DataFrame(
    [
        {"way": name, "x": x, "y": y}
        for name, project in ways.items()
        for x, y in readout.descend(minima, start, 60, 0.1, project)
    ]
)
ends = path.groupby("way", sort=False).last()

# %% tags=["hide-input"]
chapter.value("toy.sum", float(abs(ends.loc["sum", "x"])), exact=True)
chapter.value("toy.pcgrad", float(ends.loc["PCGrad", "x"]), exact=True)

# %% tags=["hide-input"]
chapter.figure(
    drawing.quadratics(path, minima),
    "quadratics",
    data=path,
    caption="Two quadratic tasks and two ways down. In the grey disc they conflict. Outside it both ways are the same.",
    alt="A plane with the minima of two tasks at plus and minus one. From a common start above the disc two paths come down: the sum bends to the middle, PCGrad goes straight on to the line between the minima and stops there.",
)

# %% [markdown]
# The plain sum ends at the midpoint (|θ₁| = {val}`12_multitask.toy.sum:.2f`). PCGrad ends at θ₁ = {val}`12_multitask.toy.pcgrad:.2f`: on the line between the minima the two gradients are opposite, their projections are zero, and it stops wherever it arrives. It does not look for the smallest sum, it looks for a
# point where no step helps both. With three tasks even less is promised: one projection can undo another (an exercise below).
#
# ## Weightings
#
# Where the tasks can't all have their way, the $\lambda_k$ of {eq}`eq-multitask-loss` decide. Five choices stand in the experiment; the first four are modules of `vqa_core.training.weighting`:
#
# - **equal**: $\lambda_k = 1$;
# - **1 / log(classes)**: guessing among $C_k$ classes costs $\log C_k$ nats, so with $\lambda_k = 1/\log C_k$ all tasks start at a loss of one;
# - **DWA** {cite:p}`liu2019mtan`: a loss that falls slowly gets more, $\lambda_k \propto \exp(r_k / T)$, where $r_k$ is the ratio of the last two epochs' losses;
# - **uncertainty** {cite:p}`kendall2018multitask`: $\sum_k e^{-s_k} L_k + s_k/2$ with learned $s_k$. For a constant loss the best $e^{-s_k}$ is $1/(2 L_k)$: a task that is nearly solved gets a *large* weight;
# - **PCGrad**: equal weights, gradients on the trunk projected.
#
# ```{literalinclude} /vqa_core/training/weighting.py
# :pyobject: DynamicWeightAverage.weights
# ```
#
# ## The experiment
#
# Phantoms, {val}`12_multitask.size.pictures` for training with all of their {val}`12_multitask.size.questions:,d` questions, {val}`12_multitask.size.test:,d` questions about {val}`12_multitask.size.test_pictures` other pictures as test. Phantoms are drawn; they are not patients.
#
# | task | classes | picture needed | question needed |
# |---|---|---|---|
# | *category* of the question | the families of VQA-RAD {cite:p}`lau2018vqarad` | no | yes |
# | *answer* | answers of the training questions | yes | yes |
# | *organ* that the picture shows | head, chest, abdomen | yes | hardly: some questions name an organ |
#
# All is trained from scratch: a small picture encoder of linear layers on patches, whose neighbours are merged as in Swin {cite:p}`liu2021swin`, a bag of words, FiLM {cite:p}`perez2018film` at every image token, their mean beside the question, one shared layer; {val}`12_multitask.size.parameters:,d` parameters. The baselines:
#
# - **each task alone**: the *same* network from the same initial weights, the same batches, the same number of steps, with $\lambda = 1$ for one task and 0 for the others. It keeps the weights that validate best for its own task; the shared model keeps one set of weights for all three.
# - **three narrow trunks**: no sharing, but no more parameters in all ({val}`12_multitask.size.narrow:,d`) than the shared model.
# - **organ read early**: as with equal weights, but the head of the organ reads the mean of the image tokens, before the question meets them, with a hidden layer of its own. The picture encoder is still shared.
# - **no picture** and **no question**: trained for all tasks, blind or deaf; and the **most frequent label**.
#
# The amount, the arm with equal weights and the recipe were fixed on validation pictures. The rule was there before:

# %% tags=["hide-input"]
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.id == "F11"]

# %% tags=["hide-input"]
chapter.table(
    pd.DataFrame(rules),
    "rules",
    caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.",
)

# %% tags=["hide-input"]
table = readout.accuracy_table(runs)
by = table.set_index(["arm", "task"])
for arm in by.index.unique("arm"):
    for task in multitask.TASKS:
        value(f"accuracy.{arm}.{task}", by.loc[(arm, task)].to_dict(), "questions")

# %% tags=["hide-input"]
together, alone = (table[table["arm"] == a].set_index("task")["mean"] for a in ("equal", "alone"))
said = ", ".join(f"{task} {together[task]:.0%} together and {alone[task]:.0%} alone" for task in multitask.TASKS)

# %% tags=["hide-input"]
chapter.figure(
    drawing.accuracies(table),
    "accuracies",
    data=table,
    records=runs.values(),
    caption="Accuracy on held-out pictures by task, for each way of training. The dashed line is what the same network reaches when it is trained for this task alone. Bars are 95 % intervals over seeds and pictures.",
    alt=f"Four panels of points with intervals, a row for each way of training: {said}.",
)

# %% [markdown]
# {numref}`fig-12-multitask-accuracies` says first what each task needs. Without a picture the category is told in {val}`12_multitask.accuracy.blank.category:.1%` of the questions (with one in {val}`12_multitask.accuracy.equal.category:.1%`): it stands in the words. Without a question the organ is told in
# {val}`12_multitask.accuracy.mute.organ:.1%` (with one in {val}`12_multitask.accuracy.equal.organ:.1%`), and without a picture in {val}`12_multitask.accuracy.blank.organ:.1%`, where always saying the most frequent one gives {val}`12_multitask.accuracy.usual.organ:.1%`. The answer needs both sides:
# {val}`12_multitask.accuracy.equal.answer:.1%` with both, {val}`12_multitask.accuracy.blank.answer:.1%` from words alone. These are three tasks that *read different inputs*, which is what makes the shared vector a matter of dispute.

# %% tags=["hide-input"]
arms = (*multitask.WEIGHTINGS, "narrow", "early")
gains = readout.gain_table({config.main: runs}, arms)
for row in gains.to_dict("records"):
    name = "mean" if row["task"] == readout.MEAN else row["task"]
    value(f"gain.{row['arm']}.{name}", row, "questions")

# %% tags=["hide-input"]
shown = gains.assign(arm=gains["arm"].map(readout.TITLES))[["arm", "task", "mean", "low", "high", "n"]]

# %% tags=["hide-input"]
chapter.table(
    shown,
    "gains",
    records=runs.values(),
    formats={"mean": "+.1%", "low": "+.1%", "high": "+.1%", "n": ",d"},
    caption="Accuracy minus that of each task alone, on the same questions and seeds; 95 % intervals over seeds and pictures. Three narrow trunks share nothing.",
)

# %% [markdown]
# With equal weights, sharing changes the category by {val}`12_multitask.gain.equal.category:+.1p`, the answer by {val}`12_multitask.gain.equal.answer:+.1p` and the organ by {val}`12_multitask.gain.equal.organ:+.1p`; over the tasks by
# {val}`12_multitask.gain.equal.mean:ci.1p`. The other weightings give {val}`12_multitask.gain.scaled.mean:+.1p` (1 / log classes), {val}`12_multitask.gain.dwa.mean:+.1p` (DWA),
# {val}`12_multitask.gain.uncertainty.mean:+.1p` (uncertainty) and {val}`12_multitask.gain.pcgrad.mean:+.1p` (PCGrad). Three trunks with as many parameters as one give {val}`12_multitask.gain.narrow.mean:+.1p`: that is what being narrow costs, without any sharing.
#
# *Where* the tasks share matters too. When the organ is read before the question comes in, it changes by {val}`12_multitask.gain.early.organ:+.1p` against the organ alone, not by {val}`12_multitask.gain.equal.organ:+.1p`, with the answer at {val}`12_multitask.gain.early.answer:+.1p` and the mean at
# {val}`12_multitask.gain.early.mean:+.1p`. The picture encoder serves both tasks in either case; the difference is the layers in which picture and question are already mixed.
#
# ### How the tasks learn

# %% tags=["hide-input"]
curves = readout.curve_table(runs, "validation")

# %% tags=["hide-input"]
ends = curves.groupby(["arm", "task"], sort=False).last()["mean"]

# %% tags=["hide-input"]
chapter.figure(
    drawing.curves(curves, ("alone", "equal", "uncertainty", "pcgrad"), "validation accuracy"),
    "learning",
    data=curves,
    records=runs.values(),
    caption="Validation accuracy of each task by step: each task alone, and together with three weightings. Bands are 95 % intervals over seeds.",
    alt=f"Four panels of three lines. The organ ends at {ends['alone', 'organ']:.0%} alone and at {ends['equal', 'organ']:.0%} together with equal weights.",
)

# %% tags=["hide-input"]
weights = readout.curve_table(runs, "weight")
last = weights.groupby(["arm", "task"], sort=False).last()["mean"]
said = "; ".join(
    f"{readout.TITLES[arm]}: " + ", ".join(f"{t} {last[arm, t]:.2f}" for t in multitask.TASKS)
    for arm in ("dwa", "uncertainty")
)

# %% tags=["hide-input"]
chapter.figure(
    drawing.curves(weights, ("scaled", "dwa", "uncertainty"), "weight λ", line=1.0),
    "weights",
    data=weights,
    records=[runs[arm] for arm in ("scaled", "dwa", "uncertainty")],
    caption="The weight of each task by step; the dashed line is one, the weight that all have with equal weights.",
    alt=f"Three panels of three lines. At the end, {said}.",
)

# %% [markdown]
# Why the weights of {numref}`fig-12-multitask-weights` go where they go: DWA looks at ratios, and a loss that has reached zero no longer falls: it comes back to full weight when it has nothing left to learn. Uncertainty weighting does the same for another reason, $e^{-s} \to 1/(2L)$. Neither knows which task is *neglected*.
#
# ## Conflict, measured
#
# In every tenth step the gradients of the three losses on the shared parameters were computed one by one, before the update, whatever the update then did with them.

# %% tags=["hide-input"]
along = readout.cosine_table(runs)
first, end = along["step"].min(), along["step"].max()
at = along.set_index(["step", "pair"])["mean"]
said = "; ".join(f"{p} from {at[first, p]:.2f} to {at[end, p]:.2f}" for p in along["pair"].unique())

# %% tags=["hide-input"]
chapter.figure(
    drawing.cosines(along),
    "cosines",
    data=along,
    records=[runs["equal"]],
    caption="Cosine of the gradients of each pair of tasks on the shared parameters, along a training with equal weights; each point is the mean over a window of steps. In the grey part they conflict. Bands are 95 % intervals over seeds.",
    alt=f"Three panels with a line each: {said}.",
)

# %% tags=["hide-input"]
conflicts = readout.conflict_table(runs)
found = conflicts.set_index(["arm", "pair", "quantity"])
for pair, short in zip(along["pair"].unique(), ("category_answer", "category_organ", "answer_organ")):
    for quantity in ("negative", "cosine", "ratio"):
        value(f"conflict.{short}.{quantity}", found.loc[("equal", pair, quantity)].to_dict(), "seeds")

# %% tags=["hide-input"]
equal = conflicts[(conflicts["arm"] == "equal") & (conflicts["quantity"] == "negative")].set_index("pair")["mean"]
chapter.figure(
    drawing.conflicts(conflicts),
    "conflicts",
    data=conflicts,
    records=[r for r in runs.values() if "cosine" in r.arrays],
    caption="Share of the measured steps in which the gradients of two tasks conflict, by weighting. The table behind it also holds the mean cosine and the ratio of the gradients' lengths.",
    alt="A table of shades, five weightings by three pairs of tasks. Equal weights: "
    + ", ".join(f"{p} {v:.0%}" for p, v in equal.items())
    + ".",
)

# %% [markdown]
# With equal weights ({numref}`fig-12-multitask-conflicts`) the category and the answer conflict in {val}`12_multitask.conflict.category_answer.negative:.0%` of the steps, the category and the organ in {val}`12_multitask.conflict.category_organ.negative:.0%`, the answer and the organ in
# {val}`12_multitask.conflict.answer_organ.negative:.0%`. Two random directions in so many dimensions have a cosine near zero of either sign, so half of the steps is what tasks that have *nothing to do with each other* show. The mean cosines are
# {val}`12_multitask.conflict.category_answer.cosine:.2f`, {val}`12_multitask.conflict.category_organ.cosine:.2f` and {val}`12_multitask.conflict.answer_organ.cosine:.2f`. The longer gradient is on average {val}`12_multitask.conflict.category_organ.ratio:.1f` times as long as the shorter one (category and organ): lengths
# decide who is heard, whatever the angle. Where gradients are nearly orthogonal, a projection has nothing to remove, and PCGrad is the plain sum, at the price of one more backward pass for each task.
#
# With the conflicting parts projected away (PCGrad) the organ is told in {val}`12_multitask.accuracy.pcgrad.organ:.1%`, without in {val}`12_multitask.accuracy.equal.organ:.1%`; with the losses scaled by $1/\log C_k$, which leaves the angles alone and changes the lengths, in {val}`12_multitask.accuracy.scaled.organ:.1%`. What a task
# gets out of a shared trunk is a question of angles, lengths, room and time, and only the first has a sign that tells it at once.
#
# ## Few questions and many
#
# If sharing works as more data does, it must help most where there is little. The same comparison with fewer and with more training pictures, and the same number of steps, so that more pictures are seen fewer times each:

# %% tags=["hide-input"]
growth = readout.gain_table(amounts)
places = dict(zip(amounts, ("few", "main", "many"), strict=True))
for row in growth.to_dict("records"):
    name = "mean" if row["task"] == readout.MEAN else row["task"]
    value(f"growth.{places[row['pictures']]}.{name}", row, "questions")

# %% tags=["hide-input"]
means = growth[growth["task"] == readout.MEAN]
said = ", ".join(f"{100 * m:+.1f} points with {q:,} questions" for m, q in zip(means["mean"], means["questions"]))

# %% tags=["hide-input"]
chapter.figure(
    drawing.gains(growth),
    "growth",
    data=growth,
    records=[r for some in amounts.values() for r in some.values()],
    caption="Accuracy together (equal weights) minus alone, against the number of training questions; a line for each task, dashed their mean. Bars are 95 % intervals over seeds and pictures.",
    alt=f"Four lines over the number of questions; the mean over the tasks is {said}.",
)

# %% [markdown]
# In {numref}`fig-12-multitask-growth` sharing is worth, over the tasks, {val}`12_multitask.growth.few.mean:+.1p` with the fewest, {val}`12_multitask.growth.main.mean:+.1p` with the middle and {val}`12_multitask.growth.many.mean:+.1p` with the most questions; for the answer alone
# {val}`12_multitask.growth.few.answer:+.1p`, {val}`12_multitask.growth.main.answer:+.1p` and {val}`12_multitask.growth.many.answer:+.1p`; for the organ {val}`12_multitask.growth.few.organ:+.1p`, {val}`12_multitask.growth.main.organ:+.1p` and {val}`12_multitask.growth.many.organ:+.1p`.
#
# ## Where it fails
#
# Which questions pay for the sharing? {numref}`fig-12-multitask-by-category` shows, by the category of the question (with the codes of VQA-RAD), what sharing does to the *organ*, a task whose true label does not depend on the question at all.

# %% tags=["hide-input"]
test = material.parts["test"]
families = [s.family for s in test]
by_family = readout.loss_by_family(runs, families, "organ")

# %% tags=["hide-input"]
worst, least = (by_family.loc[i] for i in (by_family["mean"].idxmin(), by_family["mean"].idxmax()))
chapter.value("failures.worst", worst["category"])
chapter.value("failures.least", least["category"])
value("failures.worst_gain", worst.to_dict(), "questions")
value("failures.least_gain", least.to_dict(), "questions")

# %% tags=["hide-input"]
chapter.figure(
    drawing.by_category(by_family, "organ"),
    "by_category",
    data=by_family,
    records=[runs["equal"], runs["alone_organ"]],
    caption="Accuracy in telling the organ, together minus alone, by the category of the question that was asked beside the picture. Bars are 95 % intervals over seeds and pictures.",
    alt=f"A row for each category, sorted: from {100 * worst['mean']:+.1f} points in {worst['category']} to {100 * least['mean']:+.1f} points in {least['category']}.",
)

# %% [markdown]
# The change goes from {val}`12_multitask.failures.worst_gain:+.1p` ({val}`12_multitask.failures.worst`) to {val}`12_multitask.failures.least_gain:+.1p` ({val}`12_multitask.failures.least`). A question that names an organ can help; one that says nothing of it can do no more than shift the vector that the organ's head has to read.
#
# The pictures are chosen by rule: the questions at which the share of seeds that name the organ falls most from alone to together, one for each picture.

# %% tags=["hide-input"]
lost = readout.failures(runs, "organ", n=6)
lines, rows = [], []
for q, drop in zip(lost.lost, lost.drop):
    sample, label = test[int(q)], multitask.ORGANS.symbols[runs["equal"].arrays["label_test"][q, 2]]
    said = runs["equal"].arrays["predicted_test"][:, q, 2]
    guess = multitask.ORGANS.symbols[np.bincount(said).argmax()]
    lines.append(f"{sample.question}\ntrue: {label}, together: {guess}")
    rows.append({"question": sample.question, "true": label, "together": guess, "seeds lost": float(drop)})

# %% tags=["hide-input"]
pictures = [test.images[test.picture_index(test[int(q)].picture_id)] for q in lost.lost]

# %% tags=["hide-input"]
chapter.figure(
    drawing.gallery(pictures, lines),
    "failures",
    data=pd.DataFrame(rows),
    records=[runs["equal"], runs["alone_organ"]],
    picture=True,
    caption="The pictures whose organ is lost most by sharing: the question beside them, the true organ, and what most seeds say together. Phantoms, not patients.",
    alt="Six drawn grey pictures with the question, the true organ and the wrong organ below each; the table of the figure lists the same.",
)

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
effect = readout.multitask_effect(records, config.main)
if effect is not None:
    chapter.claim("F11", effect, of="questions")

# %% [markdown]
# ```{claims}
# :chapter: 12
# ```
#
# **Sharing layers improves generalisation (F11)**: {val}`12_multitask.gain.equal.mean:ci.1p` over three tasks, with equal weights and {val}`12_multitask.size.questions:,d` training questions: {verdict}`F11`.
# The mean hides that the tasks fare differently: {val}`12_multitask.gain.equal.category:+.1p` for the category, {val}`12_multitask.gain.equal.answer:+.1p` for the answer, {val}`12_multitask.gain.equal.organ:+.1p` for the organ.
#
# What this says, and what not:
#
# - Every arm has the same number of *steps*. One shared model costs a third of three single ones; whoever pays for training may spend the difference on more steps. Per step, a task that shares gets a part of each step, and a slow one may not be done.
# - The trunk is small. A larger one has room for tasks that don't care for each other; conflict is a matter of room as much as of tasks.
# - That these tasks share the *whole* trunk up to the last layer is a choice. The arm that reads the organ early shows what another choice is worth; it is not the one that the rule judges, because the rule was written for the plain form.
# - The statement that was tested is a general one. A single experiment can refute it as a law; it can't say that sharing never helps.
#
# ## Exercises
#
# ````{exercise} ★ A list that is seen
# :label: ex-multitask-list
#
# Repair `Listed` with as few characters as possible. Then write it with a `ModuleDict`, and call the first task `"type"`. What happens?
# ````
#
# ````{solution} ex-multitask-list
# :class: dropdown
#
# `self.heads = nn.ModuleList(nn.Linear(6, n) for n in (11, 5, 3))`. With `nn.ModuleDict({"type": …})` PyTorch itself raises `KeyError: attribute 'type' already exists`, because entries become attributes and every module has a method of that name; the same is true of `"keys"`, `"items"` and `"train"`.
# ````
#
# ```{exercise} ★ The disc
# :label: ex-multitask-disc
#
# Derive {eq}`eq-multitask-disc`. What is the region of conflict for $L_1 = \tfrac{\alpha}{2} \lVert\theta - a\rVert^2$ with $\alpha > 0$, and what for $L_1 = \tfrac12 (\theta - a)^\top A (\theta - a)$ with a positive definite $A$?
# ```
#
# ```{solution} ex-multitask-disc
# :class: dropdown
#
# Put $\theta - a = (\theta - m) - \tfrac12 (a - b)$ and $\theta - b = (\theta - m) + \tfrac12 (a - b)$; the product is the difference of two squares. A factor $\alpha$ changes the length of $g_1$, not its sign against $g_2$: the same disc. With $A$ the condition is $(\theta - a)^\top A (\theta - b) < 0$: the inside of a conic
# through $a$ and $b$, an ellipse where the symmetric part of $A$ is positive definite, which it is here.
# ```
#
# ```{exercise} ★★ PCGrad with three tasks
# :label: ex-multitask-three
#
# Find three gradients in the plane such that the projected $g_1$ points *against the unprojected $g_1$*. Why is this impossible with two?
# ```
#
# ````{solution} ex-multitask-three
# :class: dropdown
#
# With two, $g_1' = g_1 - \frac{g_1 \cdot g_2}{\lVert g_2\rVert^2} g_2$ has $g_1' \cdot g_1 = \lVert g_1\rVert^2 (1 - \cos^2) \ge 0$. The product of two projections is no projection, and in the plane the second one acts on a vector that is orthogonal to $g_2$ and may be turned by more than a right angle from $g_1$. A search finds one at once:
#
# ```python
# for _ in range(1000):
#     g = torch.randn(1, 3, 2)
#     out = project_conflicts(g, torch.tensor([[0, 1, 2]]))
#     if (out[0, 0] @ g[0, 0]) < 0:
#         print(g[0], out[0, 0])
#         break
# ```
# ````
#
# ```{exercise} ★★ What uncertainty does at zero loss
# :label: ex-multitask-zero
#
# {numref}`fig-12-multitask-weights` shows the weight of the category under uncertainty weighting. What would it tend to in a longer training, and what stops it here?
# ```
#
# ```{solution} ex-multitask-zero
# :class: dropdown
#
# The best $e^{-s}$ is $1/(2L)$, so that a loss that tends to zero gets a weight that tends to infinity: the weighted loss stays at one half. What stops it is that $s$ moves by at most about one learning rate in each step of Adam, and that the rate falls to zero.
# ```
#
# ````{exercise} ★★★ Leave the trunk earlier
# :label: ex-multitask-early
#
# The organ needs no question, and the category no picture. Let the head of the category read the mean of the words, with the organ in the trunk as before. Does the organ recover, as it does (or does not) when it leaves itself?
# ````
#
# ````{solution} ex-multitask-early
# :class: dropdown
#
# A model whose trunk ends at two places, after `multitask.EarlyOrgan`:
#
# ```python
# from dataclasses import replace
#
# from vqa_core.fusion.output import masked_mean
# from vqa_core.heads.multitask import TaskOutput
#
#
# class EarlyCategory(nn.Module):
#     """The category is read from the words, the other tasks from the fused vector."""
#
#     def __init__(self, whole, dim):
#         super().__init__()
#         self.whole, self.early = whole, TaskHeads(dim, {"category": len(multitask.CATEGORIES)}, hidden=(dim,))
#         del whole.head.heads["category"]
#
#     def forward(self, pictures, words, mask):
#         read = self.whole.text_encoder(words, mask)
#         return TaskOutput(self.early(masked_mean(read.tokens, read.mask)) | self.whole(pictures, words, mask).logits)
#
#
# build = multitask.build
# multitask.build = lambda model, *sizes: EarlyCategory(build(model, *sizes), model.dim)
# outcome = multitask.run(runs["equal"].spec)
# multitask.build = build
# mine = runs | {"early": replace(runs["equal"], arrays=outcome.arrays)}
# readout.gain(mine, "early", base="equal", task="organ")
# ```
#
# The interval of that difference says whether the category's way through the trunk was what cost the organ.
# ````
#
# ## Further reading
#
# The idea and its first measurements {cite:p}`caruana1997multitask`; weights from rates {cite:p}`liu2019mtan` and from uncertainties {cite:p}`kendall2018multitask`; projected gradients {cite:p}`yu2020pcgrad`. Pretext tasks as further tasks are in chapter 11, an organ classifier beside a medical answerer in chapter 7.
