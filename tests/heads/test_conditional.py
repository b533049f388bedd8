"""Conditional reasoning: gated by the question, routed by its kind, scored by its true kind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.encoders.text import RecurrentText
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.output import FusionOutput
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.vector import ProductFusion
from vqa_core.heads.classifier import LinearHead, MLPHead
from vqa_core.heads.conditional import (
    KINDS,
    QCR,
    Branch,
    ConditionalVQAModel,
    Count,
    QuestionReader,
    TypeClassifier,
    branch_answers,
    score_by_kind,
)
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import accuracy, predict

WORDS, IMAGE, TEXT, OUT, ANSWERS = 20, 6, 8, 10, 7
CLOSED_ANSWERS, OPEN_ANSWERS = [5, 0], [6, 2, 0, 3]  # 0 is in both, 1 and 4 in none; not in order


def reader(dim=9):
    return QuestionReader(nn.Embedding(WORDS, 5, padding_idx=0), dim)


def branches():
    return [
        Branch(SAN(IMAGE, TEXT, OUT), LinearHead(OUT, 2), CLOSED_ANSWERS),
        Branch(BAN(IMAGE, TEXT, OUT), MLPHead(OUT, 4, hidden=32), OPEN_ANSWERS),
    ]


def build(router=True, gate=True, dropout=0.0, parts=None):
    parts = parts or (branches() if router else branches()[1:])
    return ConditionalVQAModel(
        CachedTokens(IMAGE),
        RecurrentText(WORDS, TEXT),
        parts,
        ANSWERS,
        TypeClassifier(reader(), hidden=(32, 16), dropout=dropout) if router else None,
        QCR(reader(), OUT, dropout=dropout) if gate else None,
    )


MODELS = {
    "base": lambda **kw: build(router=False, gate=False, **kw),
    "qcr": lambda **kw: build(router=False, **kw),
    "tcr": lambda **kw: build(gate=False, **kw),
    "both": lambda **kw: build(**kw),
}
every = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
routed = pytest.mark.parametrize("make", [MODELS["tcr"], MODELS["both"]], ids=["tcr", "both"])


@pytest.fixture
def batch():
    words = torch.randint(2, WORDS, (6, 5))
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[1, 2:] = False
    return torch.randn(6, 12, IMAGE), words * mask, mask


KIND = torch.tensor([0, 1, 1, 0, 1, 0])


# -- the question's vector ---------------------------------------------------------------------------------------------


def test_reader_closed_form(batch):
    """The formula of the docstring, word by word."""
    _, words, mask = batch
    module = reader()
    got = module(words, mask)
    for b in range(6):
        embedded = module.embedding(words[b, mask[b]])
        states = module.recurrent(embedded.unsqueeze(0))[0][0]
        both = torch.cat([embedded, states], -1)
        y = torch.tanh(module.content(both)) * torch.sigmoid(module.gate(both))
        a = torch.softmax(module.score(y)[:, 0], 0)
        assert_close(got.vector[b], a @ states)
        assert_close(got.attention[b, 0, 0, mask[b]], a)
    assert (got.attention[1, 0, 0, 2:] == 0).all()
    assert got.attention.shape == (6, 1, 1, 5)


def test_published_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        read = QuestionReader(nn.Embedding(1178, 300), 1024)
        gru, gates = 3 * 1024 * (300 + 1024 + 2), 2 * (1324 * 1024 + 1024)
        assert count(read) == 1178 * 300 + gru + gates + 1024
        assert count(QCR(read, 1024).mlp) == 1025 * 2048 + 2049 * 1024 + 1025 * 1024
        assert count(TypeClassifier(read).mlp) == 1025 * 256 + 257 * 64 + 65 * 2


def test_question_padding_does_not_matter(batch):
    _, words, mask = batch
    long = torch.cat([words.masked_fill(~mask, 7), torch.full((6, 4), 9)], 1)
    long_mask = torch.cat([mask, torch.zeros(6, 4, dtype=torch.bool)], 1)
    for module in (reader(), QCR(reader(), OUT).eval()):
        got, want = module(long, long_mask), module(words, mask)
        assert_close(got.vector, want.vector)
        assert_close(got.attention[..., :5], want.attention)
    classifier = TypeClassifier(reader()).eval()
    assert_close(classifier(long, long_mask), classifier(words, mask))


@every
def test_padding_a_batch_and_splitting_it_change_no_answer(make, batch):
    pictures, words, mask = batch
    model = make().eval()
    want = model(*batch).logits
    long = torch.cat([words.masked_fill(~mask, 7), torch.full((6, 4), 9)], 1)
    long_mask = torch.cat([mask, torch.zeros(6, 4, dtype=torch.bool)], 1)
    assert_close(model(pictures, long, long_mask).logits, want, rtol=1e-5, atol=1e-5)
    parts = [model(*(t[i : i + 1] for t in batch)).logits for i in range(6)]
    assert_close(torch.cat(parts), want, rtol=1e-5, atol=1e-5)


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_without_gate_and_router_it_is_the_plain_model(batch):
    model = MODELS["base"]()
    branch = model.branches[0]
    plain = VQAModel(model.image_encoder, model.text_encoder, branch.fusion, branch.head)
    output = model(*batch)
    assert_close(output.logits[:, OPEN_ANSWERS], plain(*batch).logits)
    assert output.kind_logits is None
    assert output.gate is None


def test_gate_is_multiplied_onto_the_fused_vector(batch):
    model = MODELS["qcr"]()
    branch, output = model.branches[0], model(*batch)
    fused = VQAModel(model.image_encoder, model.text_encoder, branch.fusion, nn.Identity())(*batch).logits
    assert_close(output.logits[:, OPEN_ANSWERS], branch.head(fused * model.gate(*batch[1:]).vector))
    assert_close(output.gate.attention.sum(-1), torch.ones(6, 1, 1))
    last = model.gate.mlp[-1]
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    assert_close(model(*batch).logits[:, OPEN_ANSWERS], branch.head(fused))  # a gate of ones is no gate


# -- routes ------------------------------------------------------------------------------------------------------------


@routed
def test_training_goes_by_the_true_kind_and_evaluation_by_the_predicted_one(make, batch):
    model = make()
    output = model(*batch, KIND)
    assert torch.equal(output.route, KIND)
    with pytest.raises(ValueError, match="give kinds"):
        model(*batch)
    model.eval()
    predicted = model(*batch)
    assert torch.equal(predicted.route, model.router(*batch[1:]).argmax(-1))
    assert torch.equal(predicted.kind_logits, model.router(*batch[1:]))
    with pytest.raises(ValueError, match="call answer_by"):
        model(*batch, KIND)
    for kind in (0, 1):  # whatever the true kinds are, the router decides
        with torch.no_grad():
            model.router.mlp[-1].bias.copy_(torch.tensor([100.0 * (1 - kind), 100.0 * kind]))
        assert (model(*batch).route == kind).all()
        assert_close(model(*batch).logits, model.answer_by(torch.full((6,), kind), *batch).logits)


@routed
def test_each_question_gets_the_logits_of_its_branch_in_its_place(make, batch):
    model = make().eval()
    output = model.answer_by(KIND, *batch)
    least = torch.finfo(torch.float32).min
    for i, kind in enumerate(KIND.tolist()):
        branch, others = model.branches[kind], set(range(ANSWERS)) - set((CLOSED_ANSWERS, OPEN_ANSWERS)[kind])
        alone = model.answer_by(KIND[i : i + 1], *(t[i : i + 1] for t in batch)).logits[0]
        assert_close(output.logits[i], alone, rtol=1e-5, atol=1e-5)
        assert (output.logits[i, sorted(others)] == least).all()
        assert (output.logits[i, branch.answers] > -1e3).all()
    assert output.fusion[0].fused.shape == (3, OUT)
    assert output.fusion[0].attention.shape == (3, 2, 1, 12)  # SAN's maps, for the three closed questions
    assert output.fusion[1].attention.shape == (3, 2, 5, 12)  # BAN's, for the three open ones
    assert model.answer_by(torch.zeros_like(KIND), *batch).fusion[1] is None


def test_losses_are_those_of_the_branch_alone(batch):
    """Answers outside the branch have probability 0, and binary cross-entropy finds nothing to pay for there."""
    model = MODELS["both"]()
    logits = model(*batch, KIND).logits
    closed = KIND == 0
    labels = torch.tensor([0, 1, 0])  # positions among CLOSED_ANSWERS
    ids = torch.tensor(CLOSED_ANSWERS)
    own = logits[closed][:, ids]
    assert_close(F.cross_entropy(logits[closed], ids[labels]), F.cross_entropy(own, labels))
    assert_close(
        F.binary_cross_entropy_with_logits(logits[closed], F.one_hot(ids[labels], ANSWERS).float(), reduction="sum"),
        F.binary_cross_entropy_with_logits(own, F.one_hot(labels, 2).float(), reduction="sum"),
    )


class Oracle(nn.Module):
    """A fusion that knows the answer: the picture's one token is the answer's one-hot vector."""

    out_dim = ANSWERS

    def forward(self, image_tokens, text_tokens, image_mask=None, text_mask=None):
        return FusionOutput(image_tokens[:, 0])


class Choose(nn.Linear):
    """A head that reads the logits of given answers."""

    def __init__(self, answers):
        super().__init__(ANSWERS, len(answers), bias=False)
        self.weight.data.copy_(torch.eye(ANSWERS)[answers])


class Given(nn.Module):
    """A router that says what it is told, by the first word."""

    kinds = 2

    def forward(self, words, word_mask):
        return F.one_hot(words[:, 0] - 2, 2).float()


def test_a_wrong_route_costs_exactly_the_answers_it_should():
    """Perfect branches: a question is lost if and only if it went wrong and the other branch has not its answer."""
    parts = [Branch(Oracle(), Choose(a), a) for a in (CLOSED_ANSWERS, OPEN_ANSWERS)]
    model = ConditionalVQAModel(CachedTokens(ANSWERS), RecurrentText(4, TEXT), parts, ANSWERS, Given()).eval()
    answers = torch.tensor([5, 0, 5, 0, 6, 2, 0, 3, 6, 0])
    kinds = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    went = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 0, 0])  # five wrong routes; the answer 0 is in both branches
    pictures, words, mask = F.one_hot(answers, ANSWERS).float().unsqueeze(1), (went + 2)[:, None], None
    mask = torch.ones_like(words, dtype=torch.bool)
    output = model(pictures, words, mask)
    assert torch.equal(output.route, went)
    correct = output.logits.argmax(-1) == answers
    lost = (went != kinds) & (answers != 0)
    assert torch.equal(correct, ~lost)
    assert lost.sum() == 3
    assert (model.answer_by(kinds, pictures, words, mask).logits.argmax(-1) == answers).all()

    scores = score_by_kind(correct, kinds)
    assert scores == {"closed": Count(3, 4), "open": Count(4, 6), "all": Count(7, 10)}
    # the planted defect: divided by the *predicted* counts, open questions look better than they are
    predicted_open = went == 1
    assert (correct & predicted_open).sum() / predicted_open.sum() == pytest.approx(4 / 5)  # instead of 4 / 6

    feed = Feed(pictures, range(10), words, mask, answers)  # the package's loop reads it as any other model
    assert torch.equal(predict(model, feed, 3, "cpu"), output.logits)
    assert accuracy(model, feed, "cpu") == pytest.approx(0.7)


# -- learning ----------------------------------------------------------------------------------------------------------


@every
def test_gradient_reaches_every_parameter(make, batch):
    model = make()
    output = model(*batch, KIND)
    answers = torch.where(KIND == 0, 5, 2) if model.router else torch.full((6,), 2)
    loss = F.cross_entropy(output.logits, answers)
    if model.router:
        loss = loss + F.cross_entropy(output.kind_logits, KIND)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_router_and_branches_learn_from_their_own_losses(batch):
    model = MODELS["both"]()
    output = model(*batch, KIND)
    F.cross_entropy(output.logits, torch.where(KIND == 0, 5, 2)).backward(retain_graph=True)
    assert all(p.grad is None for p in model.router.parameters())
    model.zero_grad()
    F.cross_entropy(output.kind_logits, KIND).backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"router"}


def test_branch_learns_only_from_its_questions(batch):
    model = MODELS["tcr"]()
    F.cross_entropy(model(*batch, torch.zeros_like(KIND)).logits, torch.full((6,), 5)).backward()
    assert all(p.grad is not None for p in model.branches[0].parameters())
    assert all(p.grad is None for p in model.branches[1].parameters())


def test_overfits_eight_questions():
    """First word: the kind; second word: which of two picture features is asked for."""
    torch.manual_seed(1)
    pictures = torch.eye(4)[torch.arange(8) % 4].unsqueeze(1)
    kinds = torch.arange(8) // 4
    words = torch.stack([2 + kinds, 4 + torch.arange(8) % 2], 1)
    mask = torch.ones_like(words, dtype=torch.bool)
    closed, open_ = torch.tensor(CLOSED_ANSWERS), torch.tensor(OPEN_ANSWERS)
    answers = torch.where(kinds == 0, closed[torch.arange(8) % 4 // 2], open_[torch.arange(8) % 4])
    parts = [
        Branch(ProductFusion(4, TEXT, OUT), MLPHead(OUT, len(a)), branch_answers(answers, kinds, kind))
        for kind, a in enumerate((CLOSED_ANSWERS, OPEN_ANSWERS))
    ]
    assert [b.answers.tolist() for b in parts] == [sorted(CLOSED_ANSWERS), sorted(OPEN_ANSWERS)]
    model = ConditionalVQAModel(
        CachedTokens(4), RecurrentText(WORDS, TEXT), parts, ANSWERS, TypeClassifier(reader()), QCR(reader(), OUT)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        output = model(pictures, words, mask, kinds)
        loss = F.cross_entropy(output.logits, answers) + F.cross_entropy(output.kind_logits, kinds)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    output = model.eval()(pictures, words, mask)
    assert torch.equal(output.route, kinds)
    assert torch.equal(output.logits.argmax(-1), answers)


def test_dropout_is_off_in_evaluation(batch):
    model = MODELS["both"](dropout=0.5)
    assert not torch.equal(model(*batch, KIND).logits, model(*batch, KIND).logits)
    model.eval()
    assert torch.equal(model(*batch).logits, model(*batch).logits)


def test_answers_of_a_branch_are_saved_with_it(batch):
    model, other = MODELS["tcr"](), MODELS["tcr"]()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(*batch).logits, other.eval()(*batch).logits)
    assert "branches.0.answers" in model.state_dict()


def test_bfloat16_autocast(batch):
    model = MODELS["both"]().eval()
    want = model.answer_by(KIND, *batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = model.answer_by(KIND, *batch).logits.float()
    reachable = want > -1e3
    assert_close(got[reachable], want[reachable], rtol=0.1, atol=0.1)
    assert got.isfinite().all()
    assert (got[~reachable] < -1e30).all()


# -- small functions and refusals --------------------------------------------------------------------------------------


def test_kinds_are_numbered_as_the_branches():
    assert KINDS.ids(["closed", "open", "closed"]).tolist() == [0, 1, 0]


def test_branch_answers():
    answers, kinds = torch.tensor([3, 1, -100, 3, 0, -100]), torch.tensor([1, 0, 0, 0, 1, 1])
    assert branch_answers(answers, kinds, 0).tolist() == [1, 3]
    assert branch_answers(answers, kinds, 1).tolist() == [0, 3]
    with pytest.raises(ValueError, match="no question of kind 2"):
        branch_answers(answers, kinds, 2)


def test_scores_without_questions_and_wrong_inputs():
    scores = score_by_kind(torch.tensor([True, False]), torch.tensor([1, 1]))
    assert scores["closed"].share != scores["closed"].share  # NaN, not 0
    assert scores["open"].share == scores["all"].share == 0.5
    with pytest.raises(ValueError, match=r"torch\.int64"):
        score_by_kind(torch.tensor([1, 0]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="numbers 0 to 1"):
        score_by_kind(torch.tensor([True, False]), torch.tensor([1, -100]))


def test_impossible_models_are_refused(batch):
    with pytest.raises(ValueError, match="1 branches and a router for 2"):
        build(parts=branches()[:1])
    with pytest.raises(ValueError, match="2 branches and a router for nothing"):
        build(router=False, parts=branches())
    with pytest.raises(ValueError, match="the gate has 10 features, the fusion of branch 0 3"):
        build(router=False, parts=[Branch(SAN(IMAGE, TEXT, 3), LinearHead(3, 2), [0, 1])])
    with pytest.raises(ValueError, match="branch 0 has answer 7, the vocabulary 7"):
        build(router=False, parts=[Branch(SAN(IMAGE, TEXT, OUT), LinearHead(OUT, 2), [0, 7])])
    for answers in ([], [1, 1], [-100, 2], [0.5]):
        with pytest.raises(ValueError, match="different ids of the answer vocabulary"):
            Branch(Oracle(), nn.Identity(), answers)
    with pytest.raises(ValueError, match="the head has 3 logits, the branch 2 answers"):
        build(router=False, parts=[Branch(SAN(IMAGE, TEXT, OUT), LinearHead(OUT, 3), [0, 1])])(*batch)
    for route in (KIND.float(), KIND[:3], KIND + 1, KIND - 1):
        with pytest.raises(ValueError, match=r"give long \(6,\) with numbers of branches, 0 to 1"):
            build().answer_by(route, *batch)
