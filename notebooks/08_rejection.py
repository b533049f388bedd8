# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Knowing when not to answer: Bayesian heads and rejection curves
#
# :::{warning}
# **Not for clinical use.** The thresholds on this page are promises about drawn pictures and about one small public data set. They promise nothing about a patient.
# :::
#
# Every model of this book answers every question. Nothing forces it to: a model that says *I do not know* to the right tenth of the questions can be worth more than one that is a point more accurate. For that it needs a number that knows when it is wrong, and somebody must say what may be promised about that number. The study notes propose a Bayesian
# last layer and a threshold. This chapter builds it, puts simpler rivals beside it with what each costs, and separates what a curve *shows* from what it *guarantees*.
#
# :::{admonition} What you will be able to do
# :class: tip
# - write a Bayesian layer whose KL divergence, estimators and gradients agree with closed forms;
# - split an uncertainty into what more data would remove and what it would not;
# - read and compare risk–coverage curves, with bands, without being fooled by ties or by the score's scale;
# - choose a threshold that keeps its promise, and know when there is none.
#
# **You need** chapter 3 (fusion); chapter 7 for the medical data.\
# **What it costs**: {val}`08_rejection.time.runs` runs took {val}`08_rejection.time.seconds:.0f` seconds of computing.
# :::

# %% tags=["parameters"]
PROFILE = "auto"  # smoke, cpu, gpu; auto is gpu where CUDA is

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vqa_core import experiments, figures
from vqa_core.evaluation import claims, rejection
from vqa_core.experiments import rejection as experiment
from vqa_core.experiments import rejection_drawing as drawing
from vqa_core.experiments import rejection_readout as readout
from vqa_core.experiments import rejection_tokens
from vqa_core.experiments.rejection_explorer import Answers, fragment
from vqa_core.heads.bayes import BayesLinear

figures.use_style()
pd.options.display.max_colwidth = 90
chapter = figures.Chapter("08_rejection", PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
runs = experiments.load("rejection", profile)
tokens = experiments.load("rejection_tokens", profile)
config = experiment.PROFILES[profile]
DATASETS = {k: v for k, v in experiment.DATASETS.items() if any(r.spec.unit == k for r in tokens)}
rad_here = "vqa_rad" in DATASETS

# %% tags=["hide-input"]
chapter.value("time.runs", len(runs))
chapter.value("time.seconds", sum(r.seconds for r in [*runs, *tokens]), n=len(runs), of="runs")
chapter.value("size.seeds", config.seeds)
chapter.value("size.samples", config.head.samples)
chapter.value("size.members", config.head.members)

# %% [markdown]
# ## A posterior over weights
#
# Bayes' rule gives every setting $w$ of the weights a probability after the data $D$: $p(w \mid D) \propto p(D \mid w)\, p(w)$. An answer is then an average over opinions, $p(a \mid x, D) = \int p(a \mid x, w)\, p(w \mid D)\, dw$. For a network the integral is out of reach. Variational inference replaces the posterior by the nearest member of a simple
# family $q_\theta$, here independent Gaussians $N(\mu_i, \sigma_i^2)$ {cite:p}`graves2011practical,blundell2015weight`. *Nearest* is in the sense of
#
# $$ \mathrm{KL}(q_\theta \,\|\, p(\cdot \mid D)) = \underbrace{\mathrm{KL}(q_\theta \,\|\, p) - \mathbb{E}_{q_\theta} \ln p(D \mid w)}_{-\mathrm{ELBO}} + \ln p(D) , $$
#
# and since $\ln p(D)$ does not depend on $\theta$, the first part is minimised: the likelihood of the data, averaged over weights, plus the price of moving away from the prior. Its unit is nats *per data set*. Divided by the number $N$ of questions it stands beside an ordinary loss:
#
# ```{literalinclude} /vqa_core/heads/bayes.py
# :pyobject: negative_elbo
# ```
#
# With $\alpha = 1$ it is the bound. A smaller $\alpha$ makes the posterior *cold*: sharper than Bayes' rule allows. The study notes use $\sigma_0$ = {val}`08_rejection.notes.sigma` for the prior and $\alpha$ = {val}`08_rejection.notes.alpha`.
#
# The gradient goes through the sampling by writing a weight as $w = \mu + \sigma \varepsilon$ with $\varepsilon \sim N(0, 1)$. Better: a sum of independent Gaussians is a Gaussian, so the *pre-activation* of each row can be drawn instead of the weights {cite:p}`kingma2015local`. That is cheaper, and less noisy:
#
# ```{literalinclude} /vqa_core/heads/bayes.py
# :pyobject: BayesLinear._local
# ```

# %% tags=["hide-input"]
chapter.value("notes.sigma", f"{config.head.prior_sigma:g}")
chapter.value("notes.alpha", f"{config.head.alpha:g}")

# %% [markdown]
# ### One dimension, where the exact answer is known
#
# Twelve points, a curve made of eight bumps with unknown heights, known noise. Heights with a Gaussian prior have a Gaussian posterior in closed form, with precision $\Lambda = \Phi^\top \Phi / s^2 + I / \sigma_0^2$ and mean $\Lambda^{-1} \Phi^\top y / s^2$.

# %%
torch.manual_seed(0)
noise, line = 0.15, torch.linspace(-2, 2, 81)
x = torch.cat([torch.rand(8) - 1.8, 0.4 + torch.rand(4)])  # a gap in the middle
y = torch.sin(2 * x) + noise * torch.randn(len(x))


def bumps(x):
    """Eight Gaussian bumps at each of X points: (X,) → (X, 8)."""
    return torch.exp(-((x[:, None] - torch.linspace(-2, 2, 8)) ** 2) / 0.5)


# %%
phi = bumps(x)  # (12, 8)
precision = phi.T @ phi / noise**2 + torch.eye(8)
exact = torch.linalg.solve(precision, phi.T @ y / noise**2)  # (8,)
covariance = torch.linalg.inv(precision)
at = bumps(line)  # (81, 8)
exact_sd = ((at @ covariance) * at).sum(1).sqrt()

# %% [markdown]
# The same by variational inference, with the layer of this book:

# %%
layer = BayesLinear(8, 1, prior_sigma=1.0, bias=False, estimator="local")
optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
for _ in range(1500):
    error = layer(phi, samples=16).squeeze(-1) - y  # (16, 12)
    loss = (error**2 / (2 * noise**2)).sum(1).mean() + layer.kl()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% tags=["hide-input"]
with torch.no_grad():
    learned, learned_sd = (at @ layer.weight_mu[0]), (at**2 @ layer.weight_sigma[0] ** 2).sqrt()
    coherent = layer.draw(5)(at).squeeze(-1).numpy()  # (5, 81)
    local = layer(at, samples=3).squeeze(-1).numpy()
columns = {"x": line, "exact": at @ exact, "exact_sd": exact_sd, "learned": learned, "learned_sd": learned_sd}
line_table = pd.DataFrame({k: v.numpy() for k, v in columns.items()})

# %% tags=["hide-input"]
should = precision.diagonal().rsqrt()  # the optimum of independent Gaussians
chapter.value("line.sigma_ratio", float((layer.weight_sigma[0].detach() / should).mean()), n=8, of="weights")
chapter.value("line.sd_ratio", float((learned_sd / exact_sd).mean()), n=len(line), of="points")

# %% tags=["hide-input"]
chapter.figure(
    drawing.one_dimension(
        line_table,
        pd.DataFrame({"x": x.numpy(), "y": y.numpy()}),
        {"five functions, one draw of weights each": coherent, "local reparameterisation": local},
    ),
    "line",
    data=line_table,
    caption="Left: exact posterior and the nearest independent Gaussians. Middle: functions of the learned posterior, one draw of all weights each. Right: what local reparameterisation draws: every point is right by itself, but a curve is no function.",
    alt="Twelve points with a gap. The exact band is wide in the gap; the learned band is narrower. Five smooth curves in the middle panel, jagged lines in the right one.",
)

# %% [markdown]
# The learned $\sigma_i$ are {val}`08_rejection.line.sigma_ratio:.2f` times what theory says that independent Gaussians should have, $\Lambda_{ii}^{-1/2}$; that is less than the true spread, because what is correlated in the posterior has been cut apart: the learned band has {val}`08_rejection.line.sd_ratio:.2f` of the width of the exact one, on average over the line.
# This *mean-field* approximation is too sure of itself by construction. And whoever compares rows (a function over a line, the covariance of two answers) must draw weights, not pre-activations.
#
# ## The heads
#
# | head | what is uncertain | how |
# |---|---|---|
# | softmax | nothing | its probability is the confidence |
# | softmax, temperature | nothing | one number, fitted on validation, divides the logits {cite:p}`guo2017calibration` |
# | MC dropout | the hidden features of the head | dropout stays on {cite:p}`gal2016dropout` |
# | Laplace, last layer | the last layer | a Gaussian around the trained weights, curvature as precision {cite:p}`daxberger2021laplace` |
# | Bayes, last layer; whole head | the last layer; all layers of the head | the ELBO above, with the notes' values |
# | Bayes, whole head, α = 1 | all layers of the head | the ELBO as it is |
# | ensemble | everything behind the frozen encoders | several trained models {cite:p}`lakshminarayanan2017ensembles`; *same compute*: each has a share of the steps of one |
#
# On **scenes** only the head is trained, on the fused vectors of chapter 3's model; on **phantoms** and **VQA-RAD** everything behind MEVF's two frozen encoders is. All heads have the same width, schedule and number of steps, and no epoch is chosen. The ensemble has {val}`08_rejection.size.members` members; {val}`08_rejection.size.samples` samples are drawn of all others;
# {val}`08_rejection.size.seeds` seeds each. All samples of a batch go through in one pass, and what they have in common is computed once.
#
# What is judged, and by which rule, was written before any run:

# %% tags=["hide-input"]
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.chapter == 8]
chapter.table(pd.DataFrame(rules), "rules", caption="Effects and rules of this chapter's claims, from the ledger.")

# %% tags=["hide-input"]
every = readout.overview(runs)
wide = every.assign(protocol=every["data"].map(DATASETS), model=every["method"])
shown = every[every["metric"].isin(["accuracy", "nll", "ece", "aurc"])].copy()
shown["cell"] = [f"{m:.3f} ± {(h - lo) / 2:.3f}" for m, lo, h in zip(shown["mean"], shown["low"], shown["high"])]
table = shown.pivot_table(index=["data", "method"], columns="metric", values="cell", aggfunc="first", sort=False)
table = table.reset_index().assign(method=lambda t: t["method"].map(experiment.METHODS))

# %% tags=["hide-input"]
chapter.table(
    table[["data", "method", "accuracy", "nll", "ece", "aurc"]],
    "heads",
    records=runs,
    caption="Test questions: accuracy, negative log-likelihood (nats, of the questions whose answer can be given), calibration error (15 bins of equal mass), area under the risk–coverage curve; with half-widths of intervals over seeds and pictures. Lower is better but for accuracy.",
)

# %% tags=["hide-input"]
cost = readout.costs(runs)
cost = cost[cost["data"] == "phantoms"].drop(columns="data")
chapter.table(
    cost.assign(method=cost["method"].map(experiment.METHODS)),
    "costs",
    formats={"train_seconds": ".2f", "microseconds_per_question": ".0f"},
    records=runs,
    caption="What the heads cost on this machine, on phantoms: seconds of training (one process), microseconds per answered test question behind the fused vector (all samples), parameters.",
)

# %% [markdown]
# ### Convergence

# %% tags=["hide-input"]
learned_curves = readout.learning(runs)
chapter.figure(
    drawing.panels(
        learned_curves,
        "data",
        DATASETS,
        "head",
        {h: experiment.METHODS[h] for h in ("deterministic", "last", "full", "bound")},
        "epoch",
        "epoch",
        "validation accuracy",
    ),
    "learning",
    data=learned_curves,
    records=runs,
    caption="Validation accuracy by epoch. Bands: t intervals over seeds.",
    alt=f"Curves of {learned_curves['head'].nunique()} heads over {learned_curves['epoch'].max()} epochs on {learned_curves['data'].nunique()} data sets.",
)

# %% [markdown]
# ## Calibration
#
# *Calibrated* means: of the answers given with a probability of four fifths, four fifths are right. A temperature repairs on validation data what training has sharpened; what it cannot repair is a ranking.

# %% tags=["hide-input"]
CALIBRATED = ("deterministic", "temperature", "full", "ensemble")
binned = pd.concat([readout.reliability(runs, d, CALIBRATED).assign(data=d) for d in DATASETS])
chapter.figure(
    drawing.reliability(binned[binned["data"] == "phantoms"], {m: experiment.METHODS[m] for m in CALIBRATED}),
    "reliability",
    data=binned,
    records=runs,
    caption="Reliability on phantoms: share of right answers against their probability, ten bins of equal mass, all seeds; dashed: calibrated. The CSV has all data sets.",
    alt="Four diagrams; points near the diagonal mean that probabilities can be taken at their word.",
)

# %% [markdown]
# ## Two uncertainties
#
# Samples $p_1 \dots p_S$ of the answer's distribution can be unsure together or disagree with each other {cite:p}`houlsby2011bald,depeweg2018decomposition`:
#
# $$ \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\tfrac1S \sum_s H[p_s]}_{\text{aleatoric}} + \underbrace{H[\bar p] - \tfrac1S \sum_s H[p_s]}_{\text{epistemic}} . $$
#
# The second part is the mutual information between answer and weights, and what more data would remove. From few samples it comes out too small, because samples agree more with their own mean than with the true one.

# %% tags=["hide-input"]
material = rejection_tokens.material_of(profile, "phantoms")
record = next(r for r in runs if r.spec.unit == "phantoms.full" and r.spec.seed == 0)
about = material.details
RULE = ("the most epistemic", "the most aleatoric", "the surest right one", "the surest wrong one")

# %% tags=["hide-input"]
picked = record.arrays["chosen"]
titles = [f"{rule}: {about['questions'][i]}" for rule, i in zip(RULE, picked)]
true = [about["true"][i] for i in picked]
spread = record.arrays["chosen_probabilities"]  # (S, 4, A)

# %% tags=["hide-input"]
quantiles = np.quantile(spread, [0.05, 0.5, 0.95], axis=0)  # (3, 4, A)
rows = [
    {
        "question": titles[q],
        "answer": a,
        "p05": quantiles[0, q, i],
        "median": quantiles[1, q, i],
        "p95": quantiles[2, q, i],
    }
    for q in range(len(picked))
    for i, a in enumerate(about["answers"])
]

# %% tags=["hide-input"]
chapter.figure(
    drawing.posteriors(spread, titles, about["answers"], true),
    "posteriors",
    data=pd.DataFrame(rows),
    records=[record],
    caption="Posterior of the answer's probability for four questions about phantoms, chosen by the rule in their titles (seed 0, whole head Bayesian); ✓ is the right answer.",
    alt="Violins of the four likeliest answers for each of four questions. " + " ".join(titles),
)

# %% tags=["hide-input"]
answered = {d: readout.said(runs, d, "full") for d in DATASETS}
split = {DATASETS[d]: (s.total[s.correct], s.total[~s.correct]) for d, s in answered.items()}
fig, bins = drawing.right_and_wrong(split, "total uncertainty, nats")
chapter.figure(
    fig,
    "right_and_wrong",
    data=bins,
    records=runs,
    caption="Total uncertainty of right and of wrong answers (whole head Bayesian, all seeds).",
    alt="Histograms: right answers have less uncertainty than wrong ones; the two overlap least on scenes.",
)

# %% [markdown]
# Rejecting needs only that the two densities lie apart, not that either is right. How far they do depends on the data set more than on the head.
#
# ### With more data

# %% tags=["hide-input"]
by_amount = readout.amounts(runs)
parts = by_amount.assign(series=by_amount["metric"].where(by_amount["metric"] != "accuracy", by_amount["method"]))
parts["panel"] = np.where(parts["metric"] == "accuracy", "accuracy", parts["metric"])
chapter.figure(
    drawing.panels(
        parts,
        "panel",
        {"accuracy": "accuracy", "epistemic": "epistemic, nats", "aleatoric": "aleatoric, nats"},
        "series",
        {"deterministic": "softmax", "full": "Bayes, whole head", "epistemic": "epistemic", "aleatoric": "aleatoric"},
        "pictures",
        "training phantoms",
        "",
        percent=False,
        log=True,
    ),
    "amounts",
    data=by_amount,
    records=runs,
    caption="Accuracy and the two uncertainties by number of training phantoms.",
    alt=f"Three panels over {by_amount['pictures'].nunique()} numbers of training pictures on a logarithmic axis.",
)

# %% [markdown]
# Whether a Bayesian head helps most where data are few: {verdict}`B3`. Epistemic uncertainty shrinks with data: {verdict}`B6a`; aleatoric does not: {verdict}`B6b`.
#
# ### How many samples?

# %% tags=["hide-input"]
more = readout.growing(runs)
chapter.figure(
    drawing.panels(
        more.assign(panel=more["metric"].str.removesuffix("_jackknife")),
        "panel",
        {"nll": "NLL, nats", "accuracy": "accuracy", "epistemic": "epistemic, nats"},
        "metric",
        {"nll": "NLL", "accuracy": "accuracy", "epistemic": "epistemic", "epistemic_jackknife": "epistemic, jackknife"},
        "samples",
        "samples",
        "",
        percent=False,
        log=True,
    ),
    "samples",
    data=more,
    records=runs,
    caption="Estimates from S samples of one posterior on phantoms. One sample has no epistemic part at all; the jackknife removes most of the bias.",
    alt="Three panels over the number of samples. The log-likelihood falls and levels off; the plain epistemic estimate rises from zero, the corrected one is flat from two samples on.",
)

# %% [markdown]
# ## A cold posterior
#
# Two numbers of the notes are settings, not truths: the prior's $\sigma_0$ and the weight $\alpha$. The sweep varies both.

# %% tags=["hide-input"]
swept = readout.sweep(runs)
chapter.figure(
    drawing.sweep(swept, (config.head.prior_sigma, config.head.alpha)),
    "sweep",
    data=swept,
    records=runs,
    caption="Test NLL (nats) on phantoms with half-widths of intervals, by prior and weight of the KL divergence; star: the notes' point; framed: the best on validation.",
    alt=f"A table of {len(swept)} settings; darker is better.",
)

# %% tags=["hide-input"]
best = swept[swept["best"] == "yes"].iloc[0]
chapter.value("sweep.sigma", f"{best['sigma']:g}")
chapter.value("sweep.alpha", f"{best['alpha']:g}")

# %% tags=["hide-input"]
bound_nll = every[(every["data"] == "phantoms") & (every["metric"] == "nll")].set_index("method")
for method in ("deterministic", "full", "bound"):
    chapter.value(f"nll.{method}", bound_nll.loc[method, ["mean", "low", "high", "n"]].to_dict(), of="questions")

# %% [markdown]
# The best point on validation is $\sigma_0$ = {val}`08_rejection.sweep.sigma`, $\alpha$ = {val}`08_rejection.sweep.alpha`. NLL on phantoms: softmax {val}`08_rejection.nll.deterministic:ci.3f`, the notes' point {val}`08_rejection.nll.full:ci.3f`, the true bound {val}`08_rejection.nll.bound:ci.3f`. {verdict}`B4`
#
# A small $\alpha$ has a price that accuracy does not show: with almost no weight on the KL divergence the $\sigma_i$ stay where they started or shrink, all samples agree, and the "posterior" is a point estimate with a little noise. Its epistemic uncertainty is then a number without much meaning. The bound at $\alpha = 1$ is honest about its doubt, and underfits.
#
# ### Which weights matter
#
# A Bayes layer ranks its own weights by $|\mu|/\sigma$; those with the least can be set to zero {cite:p}`blundell2015weight`.

# %% tags=["hide-input"]
pruned = readout.pruning(runs)
chapter.figure(
    drawing.panels(
        pruned,
        "data",
        DATASETS,
        "by",
        {"signal_to_noise": "least |μ|/σ first", "magnitude": "least |μ| first"},
        "share",
        "share of the head's weights set to zero",
        "accuracy",
    ),
    "pruning",
    data=pruned,
    records=runs,
    caption="Accuracy of the mean function after pruning. Bands: t intervals over seeds.",
    alt="Curves that stay flat while half of the weights or more are removed, then fall.",
)

# %% [markdown]
# ## Declining
#
# Questions are answered in the order of confidence. At *coverage* $c$ the surest share $c$ is answered; the *selective risk* is the mean error of these. Equal confidences must not be ordered by chance: every number here is the expectation over all orders of tied questions. Of the areas under the curve, which have several definitions in the literature,
# **AURC** is the mean selective risk over the $n$ cut-offs {cite:p}`geifman2017selective`, and **AUGRC** counts wrong answers among *all* questions {cite:p}`traub2024augrc`.

# %%
rejection.risk_coverage([0, 1, 0, 0, 1], [5, 4, 3, 2, 1]).risk.round(3)

# %% tags=["hide-input"]
CURVES = ("deterministic", "mc_dropout", "laplace", "full", "ensemble")
curves = readout.curves(runs, CURVES)
names = {m: experiment.METHODS[m] for m in CURVES} | {"oracle": "knows its errors", "random": "knows nothing"}
chapter.figure(
    drawing.panels(curves, "data", DATASETS, "method", names, "coverage", "coverage", "accuracy of what is answered"),
    "rejection_curves",
    data=curves,
    records=runs,
    caption="Accuracy–rejection curves by head, with bands over seeds and pictures. Dotted: an oracle that declines its errors first; dashed: declining at random.",
    alt=f"Curves of {len(CURVES)} heads on {curves['data'].nunique()} data sets, all rising as coverage falls; the heads lie close together.",
)

# %% tags=["hide-input"]
gains = every[every["metric"] == "gain_80"].set_index(["data", "method"])
at_80 = every[every["metric"].isin(["accuracy", "accuracy_80"])].set_index(["data", "method", "metric"])

# %% tags=["hide-input"]
apart = []
for data in DATASETS:
    numbers = gains.loc[(data, "full"), ["mean", "low", "high", "n"]].to_dict()
    chapter.value(f"gain.{data}", numbers, of="questions")
    if at_80.loc[(data, "full", "accuracy_80"), "low"] > at_80.loc[(data, "full", "accuracy"), "high"]:
        apart.append(DATASETS[data])
chapter.value("gain.apart", ", ".join(apart) or "none")

# %% [markdown]
# Answering only the surest four fifths changes the accuracy of the Bayesian head by {val}`08_rejection.gain.scenes:ci.1p` on scenes and {val}`08_rejection.gain.phantoms:ci.1p` on phantoms. Intervals of all and of the surest four fifths lie apart on: {val}`08_rejection.gain.apart`. On VQA-RAD: {verdict}`B5`
#
# Two bands that overlap say little about a difference, because both move with the same questions. Paired:

# %% tags=["hide-input"]
paired = readout.against(runs)
lower = paired[paired["metric"] == "aurc"]
chapter.figure(
    drawing.differences(lower, "data", DATASETS, experiment.METHODS, "AURC minus that of softmax"),
    "paired",
    data=paired,
    records=runs,
    caption="AURC of each head minus that of softmax, same questions and seeds; left of the line is better. The CSV has accuracy, NLL and AUGRC too.",
    alt=f"Intervals of {lower['method'].nunique()} heads on {lower['data'].nunique()} data sets; most hold zero, the short ensemble and the true bound lie to the right.",
)

# %% tags=["hide-input"]
better = lower[lower["high"] < 0].groupby("data")["method"].agg(lambda m: ", ".join(experiment.METHODS[k] for k in m))
worse = lower[lower["low"] > 0].groupby("data")["method"].agg(lambda m: ", ".join(experiment.METHODS[k] for k in m))
for data in DATASETS:
    chapter.value(f"better.{data}", better.get(data, "none"))
    chapter.value(f"worse.{data}", worse.get(data, "none"))

# %% [markdown]
# Better than softmax with an interval that leaves zero out: on scenes {val}`08_rejection.better.scenes`; on phantoms {val}`08_rejection.better.phantoms`. Worse: on scenes {val}`08_rejection.worse.scenes`; on phantoms {val}`08_rejection.worse.phantoms`. Is a Bayesian head worth its name here? {verdict}`B2`
#
# ### Which uncertainty ranks best

# %% tags=["hide-input"]
scored = readout.by_score(runs, "full")
chapter.table(
    scored.assign(score=scored["score"].map(readout.SCORES)),
    "scores",
    records=runs,
    formats=dict.fromkeys(("mean", "low", "high"), ".4f"),
    caption="AURC of the Bayesian head when questions are ranked by another score.",
)

# %% [markdown]
# ### How reliable is that?
#
# {cite:t}`whitehead2022reliable` ask for two numbers: the coverage at a risk of one per cent, and $\Phi_c$, the mean gain when a right answer counts one, none counts nothing, and a wrong one costs $c$. At a high cost the best model is the one that keeps silent best.

# %% tags=["hide-input"]
trusted = readout.reliable(runs, ("deterministic", "full", "ensemble"))
trusted["cell"] = [
    f"{m:.1%} ± {100 * (h - lo) / 2:.1f}" for m, lo, h in zip(trusted["mean"], trusted["low"], trusted["high"])
]
table = trusted.pivot_table(index=["data", "method"], columns="metric", values="cell", aggfunc="first", sort=False)
table = table.reset_index().assign(method=lambda t: t["method"].map(experiment.METHODS))

# %% tags=["hide-input"]
chapter.table(
    table,
    "reliable",
    records=runs,
    caption="Coverage at a selective risk (named in the column) on the test, a description and no promise; and effective reliability Φ at two costs, with thresholds from the calibration questions; half-widths of t intervals over seeds.",
)

# %% [markdown]
# ### Open and closed questions

# %% tags=["hide-input"]
kind_data = "vqa_rad" if rad_here else "phantoms"
kinds = readout.by_kind(runs, kind_data, "full").assign(data=kind_data)
chapter.figure(
    drawing.panels(
        kinds,
        "data",
        DATASETS,
        "kind",
        {"closed": "closed", "open": "open"},
        "coverage",
        "coverage",
        "accuracy of what is answered",
    ),
    "open_closed",
    data=kinds,
    records=runs,
    caption=f"{DATASETS[kind_data]}: closed and open questions, each ranked among themselves. One threshold for both declines nearly all open questions first.",
    alt="Two curves: closed questions start higher and stay nearly flat; open ones rise steeply as fewer are answered.",
)

# %% [markdown]
# ## Promise against guarantee
#
# "At this threshold the error is five per cent" is read off a curve, and the curve was drawn from a sample. Whoever takes the *widest* threshold whose observed risk is within the promise has chosen the luckiest of many, and breaks the promise about every second time. SGR {cite:p}`geifman2017selective` tests only a few thresholds, each with an exact bound,
#
# ```{literalinclude} /vqa_core/evaluation/rejection.py
# :pyobject: sgr
# ```
#
# and *learn then test* {cite:p}`angelopoulos2021ltt` walks down from a start and pays for the number of starts only. In a world where the risk of every answer is known:

# %% tags=["hide-input"]
RULES = {"empirical": "read off the curve", "sgr": "SGR", "learn_then_test": "learn then test"}
simulated = readout.simulated(runs)
sizes = {n: f"{n:,} calibration questions" for n in sorted(set(simulated["questions"]))}
delta = config.simulation.delta
chapter.figure(
    drawing.broken(simulated, "questions", sizes, RULES, delta, "share of broken promises"),
    "simulation",
    data=simulated,
    records=[r for r in runs if r.spec.unit == "simulation"],
    caption=f"Simulation: share of {config.simulation.repeats:,} calibration sets whose threshold has a true risk above the promise; dashed: what the guarantee allows. The CSV has the coverages.",
    alt="Intervals by promise: thresholds read off the curve break their promise about half of the time, the two others nearly never.",
)

# %% tags=["hide-input"]
for rule in RULES:
    some = simulated[simulated["rule"] == rule]
    least, most = some["mean"].min(), some["mean"].max()
    chapter.value(f"simulated.{rule}", f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}")

# %% [markdown]
# Broken: read off the curve {val}`08_rejection.simulated.empirical`, SGR {val}`08_rejection.simulated.sgr`, learn then test {val}`08_rejection.simulated.learn_then_test`. The price of the guarantee is coverage, and with few questions all of it.
#
# Real questions are not drawn independently: several are about one picture. So the same on real models, with thresholds from one half of the pictures and judgement on the other:

# %% tags=["hide-input"]
RISKS = {"scenes": (0.01, 0.02, 0.03), "phantoms": (0.05, 0.1, 0.2, 0.3), "vqa_rad": (0.1, 0.2, 0.3)}
promised = readout.promises(runs, "full", RISKS)
chapter.figure(
    drawing.broken(promised, "data", DATASETS, RULES, delta, "share of broken promises"),
    "promises",
    data=promised,
    records=runs,
    caption="Real models (whole head Bayesian): share of random halves in which the risk on the other half is above the promise. That risk is itself an estimate from a finite half, so a few breaks would be seen even of a perfect rule.",
    alt="Intervals by promise and data set; the threshold read off the curve breaks its promise far more often than the two rules with a guarantee.",
)

# %% tags=["hide-input"]
kept = promised[promised["rule"] == "sgr"].assign(data=lambda t: t["data"].map(DATASETS))
chapter.table(
    kept[["data", "promise", "questions", "coverage", "mean", "low", "high", "n"]],
    "coverage",
    records=runs,
    formats={"promise": ".0%", "coverage": ".1%", "mean": ".1%", "low": ".1%", "high": ".1%"},
    caption="What SGR can promise: calibration questions, mean coverage on the other half, and the share of broken promises (with its interval over seeds).",
)

# %% [markdown]
# A coverage of zero means that nothing can be promised: on a small data set, or with a model that is not good enough, the honest threshold declines everything. That is not a failure of the rule.
#
# ### Move the threshold yourself
#
# The same as a figure that answers. The slider stops at every threshold that changes something.

# %% tags=["hide-input"]
SHOWN, PROMISE = 600, 0.3  # questions of the figure, and its promised risk
heads = {m: experiment.METHODS[m] for m in ("deterministic", "full")}
asked = pd.DataFrame({"question": about["questions"], "right": about["true"]})
asked["picture"] = [f"phantom {i}" for i in readout.said(runs, "phantoms", "full").pictures]
asked["group"] = np.where(readout.said(runs, "phantoms", "full").closed, "closed", "open")

# %% tags=["hide-input"]
models = {}
for method, name in heads.items():
    known, test = (readout.said(runs, "phantoms", method, part) for part in ("calibration", "test"))
    first = next(r for r in runs if r.spec.unit == f"phantoms.{readout.HEAD_OF[method]}" and r.spec.seed == 0)
    given = [about["answers"][i] for i in first.arrays[f"{method}.test.predicted"]]
    threshold = rejection.sgr_threshold(known.errors[0], known.probability[0], PROMISE, delta)
    models[name] = Answers(given[:SHOWN], test.errors[0, :SHOWN], test.probability[0, :SHOWN], threshold)

# %% tags=["hide-input"]
static = curves[(curves["data"] == "phantoms") & curves["method"].isin([*heads, "oracle", "random"])]
explorer = fragment(asked.head(SHOWN), models, title="Decline questions about phantoms", max_risk=PROMISE, delta=delta)
drawn_names = heads | {"oracle": "knows its errors", "random": "knows nothing"}
axes = ("coverage", "coverage", "accuracy of what is answered")

# %% tags=["hide-input"]
chapter.figure(
    drawing.panels(static, "data", DATASETS, "method", drawn_names, *axes),
    "explorer",
    data=static,
    records=runs,
    interactive=explorer,
    caption="Move the threshold: what is answered, how often that is wrong, and which questions are declined (phantoms, seed 0, the first test questions; several are about one picture). The guaranteed threshold is that of SGR on the calibration questions. Without scripts, the curves of all seeds.",
    alt="Curves of the accuracy of what is answered over coverage, for softmax and the Bayesian head on phantoms, between an oracle and declining at random.",
)

# %% [markdown]
# ### What a doctor's time costs
#
# Let a wrong answer cost one, and asking a doctor a part of it. A threshold that is cheapest on the calibration questions then costs on the test questions:

# %% tags=["hide-input"]
prices = np.linspace(0.05, 0.6, 12).round(2)
bill = readout.decisions(runs, ("deterministic", "full", "ensemble"), prices)
names = {m: experiment.METHODS[m] for m in ("deterministic", "full", "ensemble")}

# %% tags=["hide-input"]
names |= {"never_ask": "never ask", "always_ask": "always ask"}
chapter.figure(
    drawing.panels(
        bill, "data", DATASETS, "method", names, "ask", "cost of asking", "cost per question", percent=False
    ),
    "decisions",
    data=bill,
    records=runs,
    caption="Decision curves: mean cost per question by the cost of asking, in units of one wrong answer. A model with a threshold is worth something where its curve lies below both lines.",
    alt="For each data set, curves of three heads that follow the cheaper of never asking and always asking, and lie below both in between.",
)

# %% [markdown]
# ### Sets instead of answers
#
# A conformal set holds the right answer with a chosen probability, whatever the model is worth {cite:p}`sadinle2019lac,romano2020aps,angelopoulos2021raps`. "Answer if the set has one member" looks like a promise about answers. It is none:

# %% tags=["hide-input"]
sets = readout.conformal_sets(runs)

# %% tags=["hide-input"]
some = sets[(sets["method"] == "full") & (sets["sets"] == "lac")]
table = some.pivot_table(index=["data", "alpha"], columns="metric", values="mean", sort=False).reset_index()
table = table.reindex(columns=["data", "alpha", "covered", "size", "singletons", "singleton_risk"])
table = table.assign(singleton_risk=table["singleton_risk"].map(lambda v: "–" if pd.isna(v) else f"{v:.1%}"))

# %% tags=["hide-input"]
chapter.table(
    table,
    "sets",
    records=runs,
    formats={"alpha": ".0%", "covered": ".1%", "size": ".1f", "singletons": ".1%"},
    caption="Conformal sets (LAC) of the Bayesian head: share that holds the right answer (wanted: 1 − α), answers in a set, share of sets with one answer, and the error of these.",
)

# %% [markdown]
# ## Where the guarantee stops
#
# A guarantee is about questions drawn like those of the calibration. The threshold stays, the pictures change: noisier phantoms, a modality that no training picture had, questions about organs that the picture does not show, scenes with noise on every pixel.

# %% tags=["hide-input"]
PROMISES = {"scenes": 0.02, "phantoms": 0.3}
shifted = readout.shifts(runs, "full", PROMISES)
TITLES = {"calibration": "calibration", "test": "test"}
TITLES |= {f"noise_{s:g}": f"noise, sd {s:g}" for s in rejection_tokens.PROFILES[profile].scenes.noise}
TITLES |= {f"severity_{s:g}": f"severity {s:g}" for s in rejection_tokens.PROFILES[profile].phantoms.severity}
TITLES |= {"unseen": "unseen modality", "unanswerable": "unanswerable"}
METRICS = {"accuracy": "accuracy", "coverage": "coverage", "risk": "risk of answers", "epistemic": "epistemic, nats"}

# %% tags=["hide-input"]
for data, promise in PROMISES.items():
    chapter.value(f"promise.{data}", f"{promise:.0%}")

# %% tags=["hide-input"]
for data, promise in PROMISES.items():
    moved = shifted[shifted["data"] == data]
    drawn = chapter.figure(
        drawing.shift(moved, TITLES, METRICS, promise),
        f"shift_{data}",
        data=moved,
        records=runs,
        caption=f"{DATASETS[data]}: a threshold that promises a risk of {promise:.0%} (dashed), kept while the pictures change. Severity 1 is the test itself. Where nothing is answered there is no risk.",
        alt=f"Four panels with a row for each of {moved['part'].nunique()} kinds of pictures: accuracy, coverage, risk of what is answered, and epistemic uncertainty.",
    )
    display(drawn)

# %% tags=["hide-input"]
here = shifted.set_index(["data", "part", "metric"])["mean"]
FAR = {"scenes": ("scenes", f"noise_{max(rejection_tokens.PROFILES[profile].scenes.noise):g}")}
FAR |= {part: ("phantoms", part) for part in ("unseen", "unanswerable", "test")}
for name, (data, part) in FAR.items():
    for metric in ("coverage", "risk"):
        number = here.get((data, part, metric))
        chapter.value(f"far.{name}.{metric}", "none" if number is None else f"{number:.1%}")

# %% tags=["hide-input"]
found = readout.detection(runs, ("deterministic", "mc_dropout", "laplace", "full", "bound", "ensemble"))
chapter.table(
    found.assign(method=found["method"].map(experiment.METHODS), score=found["score"].map(readout.SCORES)),
    "detection",
    records=runs,
    formats=dict.fromkeys(("mean", "low", "high"), ".3f"),
    caption="Telling unanswerable questions from answerable ones by an uncertainty: area under the ROC curve (one half is chance), interval over seeds.",
)

# %% [markdown]
# A risk to the right of the dashed line is a broken promise. Under the strongest noise the scenes' model is wrong in {val}`08_rejection.far.scenes.risk` of what it still answers, and it still answers {val}`08_rejection.far.scenes.coverage` of the questions: its confidence has not noticed. On phantoms of an unseen modality the risk is {val}`08_rejection.far.unseen.risk` at a coverage of {val}`08_rejection.far.unseen.coverage`.
#
# Unanswerable questions are declined more often than others ({val}`08_rejection.far.unanswerable.coverage` are answered, of the test questions {val}`08_rejection.far.test.coverage`), but whatever is answered there is wrong. And the uncertainty that is named after ignorance is no help: where the area above is below one half, the epistemic part is *smaller* for questions that no picture can answer. The members agree, because all of them learned to say something.
#
# ## Ask, and be declined
#
# `python -m vqa_core ask scene.png "Is there a red circle?" --max-risk 0.05 --delta 0.05` takes the Bayesian head of this chapter with the threshold that SGR finds on its stored calibration questions. It prints the answer with its probability and both uncertainties, or *declined*.
#
# ## Verdicts

# %% tags=["hide-input"]
for identifier, effect in readout.effects(runs).items():
    if effect is not None:
        chapter.claim(identifier, effect)

# %% [markdown]
# ```{claims}
# :chapter: 8
# ```
#
# Schedules matter here as well. An earlier build trained the heads of phantoms and VQA-RAD up to half as long again, with the same rules: B6b was supported there, and Bayes and softmax ranked the questions of the phantoms alike. All other verdicts were the same.
#
# What this does *not* say: that Bayesian networks are of no use. It says what a Gaussian mean-field posterior over a small head, trained for a few hundred steps with a nearly vanishing KL weight, adds to the probability that a softmax gives for nothing.
#
# ## Exercises
#
# One star: read and compute. Two stars: prove or program. Three stars: run an experiment.
#
# ```{exercise} ★ Five answers
# :label: ex-rejection-five
#
# Errors 0, 1, 0, 0, 1 in order of falling confidence. Compute the selective risks, AURC and AUGRC by hand.
# ```
#
# ```{solution} ex-rejection-five
# :class: dropdown
#
# Risks 0, ½, ⅓, ¼, ⅖; AURC is their mean, $89/300$. AUGRC is the area under 0, 0, 1, 1, 1, 2 fifths at coverages of 0 to 5 fifths: trapezoids give $4/25$. Check with `rejection.aurc` and `rejection.augrc`.
# ```
#
# ```{exercise} ★ Constant confidence
# :label: ex-rejection-constant
#
# What is the AURC of a model that gives every answer the same confidence, and why do two popular implementations give other numbers for it?
# ```
#
# ```{solution} ex-rejection-constant
# :class: dropdown
#
# The error rate: every order is equally likely. An implementation that sorts and does not look at ties reports the order in which the rows happen to stand.
# ```
#
# ```{exercise} ★★ KL of two Gaussians
# :label: ex-rejection-kl
#
# Derive $\mathrm{KL}(N(\mu, \sigma^2) \,\|\, N(0, \sigma_0^2))$ and show that it is zero only at $\mu = 0$, $\sigma = \sigma_0$. Which of its terms keeps $\sigma$ from collapsing?
# ```
#
# ```{solution} ex-rejection-kl
# :class: dropdown
#
# $\ln(\sigma_0/\sigma) + (\sigma^2 + \mu^2)/(2\sigma_0^2) - \tfrac12$. The derivative in $\sigma$ is $-1/\sigma + \sigma/\sigma_0^2$: the logarithm goes to infinity as $\sigma \to 0$, at a price of $\alpha$.
# ```
#
# ```{exercise} ★★ Why local reparameterisation draws no functions
# :label: ex-rejection-local
#
# For one weight and inputs $x_1 = x_2$, what is the correlation of the two outputs of one draw of the weight, and of one draw by local reparameterisation?
# ```
#
# ```{solution} ex-rejection-local
# :class: dropdown
#
# One, and zero: each row gets noise of its own, although both rows go through the same weight.
# ```
#
# ```{exercise} ★★ The luckiest threshold
# :label: ex-rejection-lucky
#
# Simulate it: confidences that say nothing, an error rate of one tenth, two hundred questions. How often does the widest threshold with an observed risk of at most one tenth answer something, and what is its true risk?
# ```
#
# ```{solution} ex-rejection-lucky
# :class: dropdown
#
# Nearly always; its true risk is one tenth by construction, its observed risk is the smallest of many. `rejection.sgr_threshold` on the same numbers returns infinity in most repeats.
# ```
#
# ```{exercise} ★★★ A prior that knows more
# :label: ex-rejection-prior
#
# Replace the Gaussian prior by `ScaleMixturePrior` in `rejection.build` and run `phantoms.full` with three seeds. Write down before you look whether you expect NLL, AURC or the share of prunable weights to change.
# ```
#
# ```{solution} ex-rejection-prior
# :class: dropdown
#
# `BayesHead(..., prior=ScaleMixturePrior())`. At a KL weight near zero no prior can change much: that is the point of the exercise. Try it again with a weight of one.
# ```
