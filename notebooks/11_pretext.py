# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretext tasks and pretrained models
#
# Labels are expensive, and pictures are not. Most of what large models know they learned before anybody asked them a question,
# from exercises that data set themselves: cover a word and guess it, hide most of a picture and paint it again, tell a true caption from
# a wrong one, put shuffled pieces in order. Such an exercise is called a *pretext task*, since nobody needs its answers. What is wanted is what a
# model has to understand on the way.
#
# This chapter writes four of them down, trains them together on generated scenes, and asks what they are worth when labels are few. Then it turns the
# arrow round, from pictures to sentences, and ends with two models that others pretrained: ViLT and BLIP.
#
# :::{admonition} What you will be able to do
# :class: tip
# - make labels out of data: masked words, mismatched captions, shuffled pieces, hidden patches, each with the chance level that belongs to it;
# - build a masked autoencoder in which nothing leaks from what is hidden, and measure what its features are worth;
# - weigh several losses against each other in three ways, and tell whether it mattered;
# - write a captioner with greedy and beam search, and check what it says against the world instead of against other sentences;
# - load ViLT and BLIP from a folder, and read their probabilities for what they are.
#
# **You need** tokens and masks (chapter 3) and transformer blocks (chapters 2 and 4).\
# **What it costs**: {val}`11_pretext.size.runs` trainings took {val}`11_pretext.time.experiment:.0f` seconds of computing on {val}`11_pretext.time.device`.
# :::

# %% tags=["parameters"]
PROFILE = "auto"

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from vqa_core import captioning, experiments, figures, pretrained_vqa
from vqa_core.evaluation import claims
from vqa_core.evaluation.caption_truth import judge
from vqa_core.experiments import pretext, readout
from vqa_core.experiments import pretext_drawing as drawing
from vqa_core.experiments import pretext_readout as read
from vqa_core.training import pretext as tasks

figures.use_style()
chapter = figures.Chapter("11_pretext", profile=PROFILE)
profile = chapter.profile

# %% tags=["hide-input"]
records = experiments.load("pretext", profile)
runs = readout.by_unit(records)
config = pretext.PROFILES[profile]

# %% tags=["hide-input"]
chapter.value("size.runs", len(records))
chapter.value("size.seeds", config.seeds)
chapter.value("time.experiment", sum(r.seconds for r in records), n=len(records), of="runs")
chapter.value("time.device", records[0].device)


# %% tags=["hide-input"]
def value(key, found, of):
    """A measured number for the text: a row of a table, or an interval."""
    row = found if isinstance(found, dict) else read.row(found)
    chapter.value(key, {name: row[name] for name in ("mean", "low", "high", "n")}, of=of)


# %% [markdown]
# ## Labels for nothing
#
# Every pretext task damages its input and asks for what was there. What differs is what is damaged, how the answer is scored, and how well
# somebody does who has understood nothing.
#
# | task | damage | answer | chance |
# |---|---|---|---|
# | masked language modelling, MLM {cite:p}`devlin2019bert` | some words are covered | the word | the most frequent word |
# | image–text matching, ITM {cite:p}`chen2020uniter` | half of the captions belong to another picture | true or not | one half |
# | ordering {cite:p}`noroozi2016jigsaw` | pieces are shuffled | the place of each | one over the number of pieces |
# | masked autoencoding, MAE {cite:p}`he2022mae` | most patches are hidden | their pixels | the mean colour |
#
# ### Masked words
#
# Of a sentence's words, {typed}`15 %` are chosen. Of these, {typed}`80 %` are covered by a mask symbol, {typed}`10 %` become a random word and
# {typed}`10 %` stay {cite:p}`devlin2019bert`: a model that saw the symbol in every question would learn nothing about sentences without one.
#
# ```{literalinclude} /vqa_core/training/pretext.py
# :pyobject: mask_words
# ```

# %%
words = torch.arange(3, 15).view(1, -1).repeat(3, 1)  # (3, 12), three times the same sentence
mask = torch.arange(12) < torch.tensor([[12], [8], [3]])  # the second and third are shorter
damaged, targets = tasks.mask_words(words * mask, mask, 2, 20, 3, generator=torch.Generator().manual_seed(4))
print("read:", *damaged.tolist(), sep="\n  ")
print("asked:", *targets.tolist(), sep="\n  ")

# %% [markdown]
# The symbol is 2 and padding is 0. Every sentence has at least one question, the short ones too, and padding is never asked about (−100 is the label that does not
# count).
#
# ### True or not
#
# Half of the pictures get a caption of another picture of the batch. The trap: *there is a red circle* was written about one picture and is true of
# many. Where it is, the label "wrong" would be wrong. For scenes the truth is known, so the function is told which captions are true of which pictures and never
# draws those:
#
# ```{literalinclude} /vqa_core/training/pretext.py
# :pyobject: mismatch
# ```

# %%
pairs = pretext.pairs_of(profile, "val")
own = torch.zeros_like(pairs.true)  # (pictures, different captions)
own[pairs.picture, pairs.number] = True
accidental = float((pairs.true & ~own).sum() / (~own).sum())
print(f"captions of other pictures that are true all the same: {accidental:.1%}")

# %% tags=["hide-input"]
chapter.value("accidental", accidental, n=int((~own).sum()), of="pairs")

# %% [markdown]
# That is {val}`11_pretext.accidental:.1%` of all pairs. With captions that people wrote nobody knows the number, and it is counted as noise.
#
# ### Order
#
# Pieces lose their place and have to be told it, each as a classification over all places. Words without their positions, patches without
# theirs, or the sentences of a report: one function serves them all.
#
# ```{literalinclude} /vqa_core/training/pretext.py
# :pyobject: shuffle_pieces
# ```

# %%
pieces = torch.tensor([[10, 11, 12, 13, 14, 0]])  # five pieces and a padding
order, places = tasks.shuffle_pieces(pieces > 0, torch.Generator().manual_seed(1))
print("shown:", pieces.gather(1, order).tolist()[0], " belong at:", places.tolist()[0])
print(f"chance: {tasks.order_chance(pieces > 0):.2f}")

# %% [markdown]
# ## A picture with holes
#
# A masked autoencoder {cite:p}`he2022mae` cuts the picture into patches $x_1 \dots x_N$, hides {typed}`75 %` of them and rebuilds them from the rest.
# Three decisions make it work. The share is large, since neighbouring patches are alike and a small hole is filled by copying. The encoder reads the *visible* patches
# alone, so pre-training is cheap: a quarter of the tokens, a sixteenth of the attention scores. And the loss counts *hidden* patches only:
#
# $$ \mathcal{L} = \frac{1}{|H|} \sum_{i \in H} \frac{1}{P} \lVert \hat x_i - \tilde x_i \rVert^2, \qquad \tilde x_i = x_i \;\text{ or }\; \frac{x_i - \bar x_i}{\sqrt{\operatorname{var} x_i + \varepsilon}} . $$
#
# ```{literalinclude} /vqa_core/encoders/masked_autoencoder.py
# :pyobject: MaskedAutoencoder.forward
# ```
#
# The decoder is a light thing that is thrown away afterwards. Does anything leak? Change what a hidden patch holds: no guess may move, and the error
# must.

# %%
from vqa_core.encoders.masked_autoencoder import MaskedAutoencoder, PatchEncoder, hide, patchify, unpatchify

torch.manual_seed(0)
small = MaskedAutoencoder(PatchEncoder(32, 8, dim=16, depth=2, heads=2), dim=16, normalise=False).eval()
pictures, hidden = torch.randn(1, 3, 32, 32), hide(1, 16)
patches = patchify(pictures, 8)
patches[hidden] = torch.randn_like(patches[hidden])
before, after = small(pictures, hidden), small(unpatchify(patches, 8, (4, 4)), hidden)
print("guesses moved by", float((before.prediction - after.prediction).abs().max().detach()))
print("error moved by  ", round(float((before.error() - after.error()).abs().detach()), 4))

# %% [markdown]
# :::{note}
# **Normalised or plain pixels?** The paper's target is each patch minus its mean, divided by its deviation: structure counts, brightness does not. On photographs
# that is better. The ground of our scenes is flat, and a flat patch minus its mean is noise, divided by the noise's deviation: more than half of
# the targets could not be guessed by anybody. The experiment rebuilds plain pixels, and {ref}`an exercise <ex-pretext-normalised>` tries the other way.
# :::
#
# ### What it makes of what it sees
#
# The first pictures that it never trained on, with the mask of a fixed seed:

# %% tags=["hide-input"]
shown = runs["mae"][0].arrays
pictures, hidden, rebuilt = (shown[f"gallery.{k}"] for k in ("pictures", "hidden", "rebuilt"))
side = config.few.size // config.mae.patch
errors = read.error_table(runs["mae"])
for name, row in zip(("mae", "mean"), errors.to_dict("records")):
    value(f"error.{name}", row, "seeds")
chapter.value("mae.seen", int((~hidden[0]).sum()))
chapter.value("mae.patches", side**2)

# %% tags=["hide-input"]
chapter.figure(
    drawing.reconstructions(pictures, hidden, rebuilt, (side, side)),
    "reconstructions",
    data=errors,
    records=runs["mae"][:1],
    picture=True,
    caption="Above what the encoder sees, in the middle what the decoder makes of it, below the picture. Visible patches are copied. The table holds the error at hidden patches.",
    alt=f"Six pictures of coloured shapes in three rows. Of {side**2} patches {int((~hidden[0]).sum())} are visible; the filled ones are smooth ground with blurred objects "
    "where a visible patch shows a part of one.",
)

# %% [markdown]
# It sees {val}`11_pretext.mae.seen` of {val}`11_pretext.mae.patches` patches. Its squared error at hidden patches is {val}`11_pretext.error.mae:.3f`, against
# {val}`11_pretext.error.mean:.3f` for the mean colour of what is seen (pixels lie between −1 and 1). An object of which no patch is visible can't be guessed, and nobody should want it to be.
#
# ### Few labels
#
# What are the features worth? Take pictures of a single object and name its shape, from a handful of labels per class. The encoder starts from the autoencoder's weights or from
# the random weights that the autoencoder itself began with; same labels, same number of steps, same head. *Fine-tuned*, all weights are trained. *Frozen*, a logistic regression
# reads the mean of the tokens, here for all four attributes.

# %% tags=["hide-input"]
few = read.few_label_table(runs["mae"])
gain = read.few_label_gain(runs["mae"]).interval
tuned = few[(few["way"] == "tuned") & (few["labels"] == pretext.LABELS)].set_index("start")

# %% tags=["hide-input"]
chapter.figure(
    drawing.few_label_curves(few),
    "few_labels",
    data=few,
    records=runs["mae"],
    caption="Accuracy against labels per class, with 95 % intervals over seeds and pictures; dotted: guessing.",
    alt=f"Five panels of two lines each. Fine-tuned on the shape with {pretext.LABELS} labels per class, masked autoencoding reaches {tuned.loc['mae', 'mean']:.0%} "
    f"and random weights {tuned.loc['random', 'mean']:.0%}.",
)

# %% tags=["hide-input"]
chapter.value("few.labels", pretext.LABELS)
for start in ("mae", "random"):
    value(f"few.tuned.{start}", dict(tuned.loc[start]), "pictures")
value("few.gain", gain, "pictures")
floor = 1 / len(pretext.ATTRIBUTES[pretext.ATTRIBUTE])
chapter.value("few.floor", floor, exact=True)
learned = tuned["high"].max() > floor + 0.1
chapter.value(
    "few.sentence",
    "At least one of them is well above guessing"
    if learned
    else "Neither is far above guessing, so that this compares two encoders that have not learned the shape yet",
)
for attribute in ("colour", "shape"):
    frozen = read.few_label_gain(runs["mae"], "frozen", attribute).interval
    value(f"few.frozen.{attribute}", frozen, "pictures")

# %% [markdown]
# With {val}`11_pretext.few.labels` labels per class, fine-tuning reaches {val}`11_pretext.few.tuned.mae:ci.1%` from the autoencoder's weights and
# {val}`11_pretext.few.tuned.random:ci.1%` from random ones: a difference of {val}`11_pretext.few.gain:+.1p` ({val}`11_pretext.few.gain:range+.1p`). {val}`11_pretext.few.sentence` ({val}`11_pretext.few.floor:.0%`). Frozen, the difference is
# {val}`11_pretext.few.frozen.shape:+.1p` for the shape and {val}`11_pretext.few.frozen.colour:+.1p` for the colour. Random weights are no bad baseline for colours: a random
# projection of pixels still holds them.
#
# ## Several tasks, one model
#
# Words and picture in one sequence, as in UNITER {cite:p}`chen2020uniter`: a class token, the tokens of the objects that a frozen detector sees (chapter 3), and the caption's words. Each task has a
# linear head: on words for MLM and order, on the class token for ITM.
#
# ```{literalinclude} /vqa_core/training/pretext.py
# :pyobject: PretextModel
# ```
#
# For the ordering task the words come without positions. Then the order in which they are given can't matter, because attention does not know it; what is left is a bag of
# words and a picture. Grammar says where *left of* goes. Which of two objects comes first, only the picture can say.
#
# ### Balancing
#
# Three losses, and their sum is what is trained. But a sum has units: MLM chooses among all words and begins at the logarithm of their number, ITM at $\log 2$. Whose gradient
# is larger, decides. Two ways out:
#
# - **Dynamic weight average** {cite:p}`liu2019mtan`: a loss that falls slowly gets more weight, $\lambda_k \propto \exp(r_k / T)$ with $r_k = L_k(t{-}1) / L_k(t{-}2)$.
# - **Uncertainty** {cite:p}`kendall2018multitask`: weights are learned, $\sum_k e^{-s_k} L_k + s_k / 2$; a loss that stays large gets less.
#
# ```{literalinclude} /vqa_core/training/weighting.py
# :pyobject: DynamicWeightAverage.weights
# ```

# %%
from vqa_core.training.weighting import DynamicWeightAverage, UncertaintyWeighting

dwa = DynamicWeightAverage(["fell by half", "stayed"])
for losses in ((4.0, 1.0), (2.0, 1.0)):  # two epochs of one step each
    dwa(dict(zip(dwa.names, map(torch.tensor, losses))))
    dwa.end_epoch()
print("DWA:", dict(zip(dwa.names, [round(w, 3) for w in dwa.weights().tolist()])))

# %%
learned = UncertaintyWeighting(["large", "small"])
optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
for _ in range(500):
    loss = learned({"large": torch.tensor(4.0), "small": torch.tensor(0.5)})
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("uncertainty:", dict(zip(learned.names, [round(w, 3) for w in learned.weights().tolist()])))

# %% [markdown]
# For constant losses the second is $1 / (2 L_k)$: each weighted loss is one half, whatever its unit was.
#
# ### The experiment
#
# The captions of {val}`11_pretext.size.pretrain:,d` pictures, five each; pretraining on all three tasks with each weighting; then fine-tuning on {val}`11_pretext.size.questions`
# questions of one family ("what colour is the square?"), and beside it the same fine-tuning without any pretraining. The rules were written before the runs:

# %% tags=["hide-input"]
chapter.value("size.pictures", config.told.train)
chapter.value("size.pretrain", config.told.pretrain)
chapter.value("size.questions", config.told.questions)

# %% tags=["hide-input"]
ledger = claims.read_claims(figures.repository_root() / "book/claims.yml")
rules = [{"claim": c.id, "effect": c.test, "rule": c.rule} for c in ledger if c.id in ("P1", "P3", "P4")]
chapter.table(
    pd.DataFrame(rules),
    "rules",
    caption="What is measured, and the rule that turns it into a verdict. Read from the ledger.",
)

# %% tags=["hide-input"]
curves = read.balance_curves(runs)
last = curves[(curves["epoch"] == curves["epoch"].max()) & (curves["quantity"] == "weight")].set_index(["unit", "task"])
shares = ", ".join(f"{drawing.TASK_TITLES[t]} {last.loc[('joint.dwa', t), 'mean']:.0%}" for t in tasks.TASKS)
chapter.figure(
    drawing.balance(curves),
    "balance",
    data=curves,
    records=[r for u, some in runs.items() if u.startswith("joint.") for r in some],
    caption="Above the share of each task in the weights, below its loss on validation pictures, by epoch; bands are 95 % intervals over seeds.",
    alt=f"Six panels of three lines. In the last epoch DWA gives {shares}; the plain sum gives each a third of the weights throughout.",
)

# %% tags=["hide-input"]
downstream, in_tasks = read.downstream_table(runs), read.task_table(runs)
best = read.balanced_unit(runs)
balanced = read.downstream_gain(runs, best, "joint.plain").interval
pretrained = read.downstream_gain(runs, "joint.plain", "joint.nothing").interval
majority = float(np.mean([r.arrays["correct_majority"].mean() for r in runs["joint.plain"]]))
by = downstream.set_index("unit")

# %% tags=["hide-input"]
chapter.figure(
    drawing.forest(downstream, "title", "accuracy on downstream questions", {"majority": majority}),
    "downstream",
    data=downstream,
    records=[r for u, some in runs.items() if u.startswith("joint.") for r in some],
    caption="Downstream accuracy after pretraining with each weighting, and without pretraining; 95 % intervals over seeds and pictures.",
    alt=f"Four dots with intervals: plain sum {by.loc['joint.plain', 'mean']:.0%}, DWA {by.loc['joint.dwa', 'mean']:.0%}, uncertainty "
    f"{by.loc['joint.uncertainty', 'mean']:.0%}, no pretraining {by.loc['joint.nothing', 'mean']:.0%}; majority {majority:.0%}.",
)

# %% tags=["hide-input"]
chapter.value("balanced.title", pretext.WEIGHTINGS[best.removeprefix("joint.")])
value("balanced.gain", balanced, "questions")
value("pretrained.gain", pretrained, "questions")

# %% tags=["hide-input"]
chapter.table(
    in_tasks.assign(task=in_tasks["task"].map(drawing.TASK_TITLES))
    .drop(columns="unit")
    .rename(columns={"title": "weighting"}),
    "tasks",
    formats=dict.fromkeys(("mean", "low", "high"), ".1%"),
    records=[r for r in records if r.spec.unit.startswith("joint.")],
    caption="Accuracy in the pretext tasks themselves, on captions of test pictures; intervals over seeds.",
)

# %% [markdown]
# Chosen on validation, the better of the two balancings is **{val}`11_pretext.balanced.title`**; downstream it changes the plain sum's accuracy by {val}`11_pretext.balanced.gain:+.1p`
# ({val}`11_pretext.balanced.gain:range+.1p`). Pretraining itself, with the plain sum, is worth {val}`11_pretext.pretrained.gain:+.1p` ({val}`11_pretext.pretrained.gain:range+.1p`) against none.
#
# ### What order needs
#
# How much of the order comes from grammar, and how much from the picture? Show the model the same words with *another* picture. And compare with a table that knows, for each word and each length of
# caption, the place where it stood most often in training.

# %% tags=["hide-input"]
ordered = read.order_table(runs["joint.plain"])
order_gain, seen = read.order_effect(runs["joint.plain"]), read.order_from_picture(runs["joint.plain"]).interval
value("order.gain", order_gain, "words")
value("order.picture", seen, "words")
at = ordered.set_index("guess")["mean"]
for key, name in {"own": "with its picture", "usual": "usual place of the word", "chance": "chance"}.items():
    value(f"order.{key}", ordered.set_index("guess").loc[name].to_dict(), "words")

# %% tags=["hide-input"]
chapter.figure(
    drawing.forest(ordered, "guess", "words put in their place"),
    "order",
    data=ordered,
    records=runs["joint.plain"],
    caption="Words of captions about test pictures, shown without their order: the share that is put in its place.",
    alt=f"Four dots: with its picture {at['with its picture']:.0%}, with another picture {at['with another picture']:.0%}, usual place of the word {at['usual place of the word']:.0%}, "
    f"chance {at['chance']:.0%}.",
)

# %% [markdown]
# The model puts {val}`11_pretext.order.own:.1%` of the words in their place; chance is {val}`11_pretext.order.chance:.1%`, the usual place {val}`11_pretext.order.usual:.1%`. The right picture
# is worth {val}`11_pretext.order.picture:+.1p` ({val}`11_pretext.order.picture:range+.1p`) over a wrong one. A word that stands twice in a caption (*a*, *red*) has two places, and no model could tell its two copies apart.
#
# ## From pictures to sentences
#
# Everything so far chose among given answers. A captioner {cite:p}`vinyals2015showtell,xu2015showattend` writes: the probability of a sentence is a product over its words,
#
# $$ p(w_1 \dots w_T \mid \text{picture}) = \prod_t p(w_t \mid w_1 \dots w_{t-1}, \text{picture}), $$
#
# and a decoder gives every factor. Words read the words before them (causal attention), then the picture (cross-attention). In training all true words are given at once and
# each place guesses the next one (*teacher forcing*); the causal mask is what keeps the answer out of sight.
#
# ```{literalinclude} /vqa_core/captioning.py
# :pyobject: DecoderBlock.forward
# ```
#
# Afterwards there are no true words, and the sentence has to be searched. **Greedy** search takes the most probable word each time. **Beam** search follows the $W$ most
# probable beginnings together.
#
# ```{literalinclude} /vqa_core/captioning.py
# :pyobject: beam_search
# ```
#
# A first word that is likely may lead nowhere. Here is a model of two words that was made for this: *a* is likelier than *b* at first, but whatever follows *a* is a coin toss.


# %%
class Coin:
    """A stand-in for a captioner: p(a) = 0.6, p(b) = 0.4; after a anything; after b surely the end."""

    A, B = 4, 5

    def look(self, pictures):
        return pictures, None

    def say(self, image, image_mask, words):
        p = torch.full((*words.shape, 6), 1e-9)  # (B, T, V)
        p[words == captioning.START_ID] = torch.tensor([0, 0, 0, 0, 0.6, 0.4])
        p[words == self.A] = torch.tensor([0, 0, 0, 0.34, 0.33, 0.33])
        p[words == self.B] = torch.tensor([0, 0, 0, 1.0, 0, 0])
        return captioning.Captioned(p.log(), None)


for width in (1, 2):
    said = captioning.beam_search(Coin(), torch.zeros(1, 1, 1), width, max_words=6)
    print(f"width {width}: words {said.words[0, 1:].tolist()}, probability {said.log_probability.exp().item():.2f}")

# %% [markdown]
# Greedy search says *a* and ends with a third of its probability; the beam keeps *b* and finds the better sentence.
#
# ### Captions that can be checked
#
# How good is a caption? The usual measures count the words that it shares with what people wrote, BLEU first of all {cite:p}`papineni2002bleu`. They can't tell *a red circle left of a blue square* from *a
# blue square left of a red circle*. In a generated world nothing of this is needed: a caption is parsed and looked up.

# %%
test = pretext.captioned(profile, "test")
scene = test.scenes.scenes[0]
one, two = (" ".join(o[:4]) for o in scene.objects[:2])
for sentence in (f"a {one} left of a {two}", f"a {two} left of a {one}", f"there is a {one}"):
    print(f"{judge(sentence, scene).true!s:6}", sentence)

# %% [markdown]
# A small captioner, trained on the captions of {val}`11_pretext.size.pictures:,d` pictures, reads the tokens of the objects that the frozen detector sees, as bottom-up attention did {cite:p}`anderson2018bottomup`.
# Its captions (beam search) of the first six test pictures, good or bad:

# %% tags=["hide-input"]
teller = runs["captioner"]
said = teller[0].details["said"]["beam"][: pretext.GALLERY]
holds = [judge(s, scene).true for s, scene in zip(said, test.scenes.scenes)]
shown = pd.DataFrame(
    {
        "picture": range(1, len(said) + 1),
        "caption": [s or "–" for s in said],
        "true": ["yes" if h else "no" for h in holds],
    }
)

# %% tags=["hide-input"]
chapter.figure(
    drawing.captions(test.scenes.images[: len(said)], said, holds),
    "captions",
    data=shown,
    records=teller[:1],
    picture=True,
    caption="The first six test pictures, what the captioner says of each, and whether the world agrees. Chosen by their number, not by their success.",
    alt=f"Six pictures of coloured shapes with a sentence above each; {sum(holds)} of the six sentences are true.",
)

# %% tags=["hide-input"]
truth, kinds = read.truth_of_captions(teller), read.kinds_of_captions(teller)
titles = {"true": "the caption is true", "found": "things named are there", "exact": "is one of the five written"}
quantities = truth.set_index(["said", "quantity"])
for name, title in read.SAID.items():
    value(f"captions.{name}", quantities.loc[(title, "true")].to_dict(), "pictures")
value("captions.found", quantities.loc[("beam search", "found")].to_dict(), "pictures")
value("captions.exact", quantities.loc[("beam search", "exact")].to_dict(), "pictures")

# %% tags=["hide-input"]
display(
    chapter.table(
        truth.assign(quantity=truth["quantity"].map(titles)),
        "truth",
        formats=dict.fromkeys(("mean", "low", "high"), ".1%"),
        records=teller,
        caption="Captions of test pictures against the world. Told of another picture: how often the same sentences are true of a scene that they are not about.",
    ),
    chapter.table(
        kinds,
        "kinds",
        formats=dict.fromkeys(("share", "true"), ".1%"),
        records=teller,
        caption="Which kinds of sentences the beam prefers, and how many of each are true.",
    ),
)

# %% [markdown]
# {val}`11_pretext.captions.beam:ci.1%` of the beam's captions are true, {val}`11_pretext.captions.greedy:.1%` of the greedy ones. Told of another picture the beam's would be true in
# {val}`11_pretext.captions.other:.1%` of the cases: that much a caption is right by saying little. Only {val}`11_pretext.captions.exact:.1%` are, word for word, among the five that were written
# about the picture; a measure of exact matches would have called all the others wrong.
#
# ## Models that others pretrained
#
# **ViLT** {cite:p}`kim2021vilt` is a single stream like the one above, with patches in place of a detector's regions, pretrained with MLM and ITM on millions of pairs. For VQA it chooses among {typed}`3,129` answers
# {cite:p}`kim2021vilt`, each with a sigmoid of its own, because people's answers differ; its "probabilities" do not sum to one, and should not.
#
# ```{literalinclude} /vqa_core/pretrained_vqa.py
# :pyobject: ViltAnswerer
# ```
#
# **BLIP** {cite:p}`li2022blip` is an encoder–decoder: a vision transformer, a text encoder that reads the question with cross-attention to the patches, and a text decoder that writes the answer. Any sentence has a
# probability, the product of its pieces', so that given answers can be ranked.
#
# ```{literalinclude} /vqa_core/pretrained_vqa.py
# :pyobject: BlipAnswerer.log_probabilities
# ```
#
# The loaders refuse a folder whose weights do not fill the model: transformers would only warn, leave the rest random, and answer. What is here?

# %% tags=["hide-input"]
folders = {name: pretrained_vqa.folder_of(name) for name in pretrained_vqa.FOLDERS}
here = [
    {"variable": k, "names a folder with": v, "here": "yes" if folders[k] else "no"}
    for k, v in pretrained_vqa.FOLDERS.items()
]
instead = {
    "VQA_VILT": "the single stream above",
    "VQA_BLIP": "the single stream above",
    "VQA_BLIP_CAPTION": "the captioner above",
}
table = pd.DataFrame(here).assign(instead=[instead[k] if not folders[k] else "–" for k in folders])
chapter.value("weights.here", sum(f is not None for f in folders.values()))

# %% tags=["hide-input"]
chapter.table(
    table,
    "weights",
    caption="Pretrained weights in this build: where there are none, their outputs are not shown, and the column says what was run in their place.",
)

# %% [markdown]
# :::{admonition} Weights that are not here
# :class: warning
# This build had {val}`11_pretext.weights.here` of the three folders. Nothing on this page imitates the outputs of a model whose weights are absent: in place of ViLT and BLIP stand the single stream and the captioner that were trained
# above. The loading code is tested on small models with random weights, saved in the official form with their processors. With weights, the cell below shows answers and captions of the first test picture:
#
# ```bash
# python -c "from huggingface_hub import snapshot_download as get; print(get('dandelin/vilt-b32-finetuned-vqa'))"
# VQA_VILT=<that folder> make book CHAPTERS=11
# ```
# :::

# %% tags=["hide-input"]
picture, rows = test.scenes.images[0], []
asked = next(s for s in test.scenes if s.family == pretext.FAMILY)
picture = test.scenes.picture(asked.picture_id)
if folders["VQA_VILT"]:
    for found in pretrained_vqa.ViltAnswerer(folders["VQA_VILT"]).answer([picture], [asked.question], best=3)[0]:
        rows.append({"model": "ViLT", "says": found.text, "probability": found.probability})
if folders["VQA_BLIP"]:
    found = pretrained_vqa.BlipAnswerer(folders["VQA_BLIP"]).answer(picture, asked.question)
    rows.append({"model": "BLIP, VQA", "says": found.text, "probability": found.probability})
if folders["VQA_BLIP_CAPTION"]:
    (sentence,) = pretrained_vqa.BlipCaptioner(folders["VQA_BLIP_CAPTION"]).caption([picture])
    print("BLIP, caption:", sentence)
if rows:
    display(chapter.table(pd.DataFrame(rows), "pretrained", caption=f"“{asked.question}” Truth: {asked.answer}."))

# %% [markdown]
# ## Verdicts

# %% tags=["hide-input"]
for identifier, effect in read.effects(runs).items():
    if effect is not None:
        chapter.claim(identifier, effect, of={"P1": "pictures", "P3": "questions", "P4": "words"}[identifier])

# %% [markdown]
# ```{claims}
# :chapter: 11
# ```
#
# - **Masked autoencoding (P1).** Fine-tuned from {val}`11_pretext.few.labels` labels per class, it is worth {val}`11_pretext.few.gain:+.1p`: {verdict}`P1`. This is for a small encoder, a short pre-training
#   and pictures of one kind of world.
# - **Balancing (P3).** {val}`11_pretext.balanced.gain:+.1p` over the plain sum: {verdict}`P3`. All three losses are cross-entropies of the same size to within a factor of a few; with losses in other units (pixels, metres) a plain sum has no meaning to begin with.
# - **Order (P4).** {val}`11_pretext.order.gain:+.1p` over chance: {verdict}`P4`. Most of it is grammar, which is why the picture's part is shown beside it.
#
# ## Exercises
#
# ```{exercise} ★ Chance
# :label: ex-pretext-chance
#
# A caption has $n$ words. What is the chance level of ordering if a guesser puts every word at a random place, independently? And if it guesses a permutation?
# ```
#
# ```{solution} ex-pretext-chance
# :class: dropdown
#
# One in $n$ both times. A random permutation has one fixed point on average, so $1/n$ of the words are right; what differs is the variance, not the mean.
# ```
#
# ```{exercise} ★ Why not everything
# :label: ex-pretext-share
#
# What would an MLM learn that covers every word of a caption, and what one that covers one word in a hundred?
# ```
#
# ```{solution} ex-pretext-share
# :class: dropdown
#
# With every word covered it can only read the picture and the length: it learns which words are frequent at which place, given the picture, and nothing about sentences. With one in a hundred it learns as much per
# question, but most of each step's computing has no question. With pictures as the second modality a larger share is better than in BERT, because the picture can answer.
# ```
#
# ```{exercise} ★★ Uncertainty
# :label: ex-pretext-uncertainty
#
# Show that $e^{-s} L + s/2$ is smallest at $s = \log 2L$ for constant $L$, and that the weighted loss is then one half. What does this do to a task whose loss has almost reached zero?
# ```
#
# ```{solution} ex-pretext-uncertainty
# :class: dropdown
#
# The derivative $-e^{-s} L + 1/2$ is zero at $e^{s} = 2L$, and then $e^{-s} L = 1/2$. A task that is nearly solved gets the weight $1/(2L)$, which grows without bound: the smaller its loss, the more its remaining noise counts. Clamp $s$ from below, or stop
# that task.
# ```
#
# ````{exercise} ★★ Normalised patches
# :label: ex-pretext-normalised
#
# Run one seed of `mae` with normalised targets. Compare the few-label accuracy, and explain the error that it reaches.
#
# ```python
# from dataclasses import replace
# spec = next(s for s in pretext.specs("cpu") if s.unit == "mae")
# ...
# ```
# ````
#
# ````{solution} ex-pretext-normalised
# :class: dropdown
#
# `rebuilding` fills pictures with plain pixels, which a model of normalised patches can't, so train it with the training loop alone:
#
# ```python
# encoder = PatchEncoder(spec.data.size, spec.model.patch, spec.model.dim, spec.model.depth, spec.model.heads)
# model = MaskedAutoencoder(encoder, spec.model.decoder_dim, spec.model.decoder_depth, spec.model.heads, normalise=True)
# feed = pretext.picture_feed(pretext.generated("unlabelled", spec.data.unlabelled, spec.data.size).images)
# loss = lambda m, batch: pretext.rebuild_loss(m, batch, share=spec.model.hidden)
# fit(model, feed, feed, spec.training.pretrain, 0, loss=loss, score=lambda *_: 0.0)
# pool, test = (pretext.generated(p, n, spec.data.size) for p, n in (("labelled", spec.data.pool), ("test", spec.data.test)))
# right = pretext.few_labels({"mae": model.encoder}, pool, test, spec)
# ```
#
# The error stays near the share of patches that show ground alone: their targets are noise of variance one, and the best guess of noise is zero. (`score` never grows here, so that the weights of the first epoch would be kept: let it return the number of the epoch.)
# ````
#
# ```{exercise} ★★ Length
# :label: ex-pretext-length
#
# With `length_power=0` a wider beam says shorter captions. Why? Measure the mean length for widths 1, 4 and 16, then again with `length_power=1`.
# ```
#
# ```{solution} ex-pretext-length
# :class: dropdown
#
# Every further word multiplies the probability by a number below one, so that among sentences that the model finds equally fitting the short ones win; a narrow beam never sees them because their end is not the most probable next word. Dividing the log-probability by the length
# compares nats *per word*.
# ```
#
# ```{exercise} ★★★ Pictures in order
# :label: ex-pretext-jigsaw
#
# `PatchEncoder.encode(patches, None)` reads patches without their places. Put a linear layer over its tokens, train it with `shuffle_pieces` and `label_loss` to say where each patch of a scene belongs, and compare with chance. What in these pictures gives places away at all?
# ```
#
# ```{solution} ex-pretext-jigsaw
# :class: dropdown
#
# Very little: objects lie anywhere. The ground is shaded by a linear ramp, so that a patch's brightness, relative to the mean of all, says how far along the ramp it lies; and objects that cross a border tie neighbours together. On photographs (sky above, ground below) the task is far easier.
# ```
#
# ## Further reading
#
# BERT's masked words {cite:p}`devlin2019bert`; UNITER, whose tasks this chapter follows {cite:p}`chen2020uniter`; jigsaws as a teacher of vision {cite:p}`noroozi2016jigsaw`; masked autoencoders {cite:p}`he2022mae` and their
# multimodal medical relative {cite:p}`chen2022m3ae`; balancing by rates {cite:p}`liu2019mtan` and by uncertainty {cite:p}`kendall2018multitask`; captioning with attention {cite:p}`xu2015showattend`; ViLT {cite:p}`kim2021vilt` and BLIP {cite:p}`li2022blip`.
