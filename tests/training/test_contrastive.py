"""Contrastive losses: closed forms on three pairs, CLIP's own loss, chunks and processes that change nothing."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.dual import DualEncoder
from vqa_core.encoders.tokens import Tokens
from vqa_core.training.contrastive import (
    NEGATIVES,
    average_gradients,
    cached_clip_gradients,
    clip_loss,
    cosines,
    distributed_clip_loss,
    gathered,
    nt_xent,
    self_similarity_loss,
    siglip,
    triplet,
)

LOSSES = {
    "clip": clip_loss,
    "nt_xent": nt_xent,
    "siglip": siglip,
    **{n: lambda image, text, n=n: triplet(image, text, negatives=n) for n in NEGATIVES},
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def with_cosines(table):
    """Two sides (B, B) whose cosines are the table: its rows against unit vectors, with a rest of its own each."""
    table = torch.tensor(table, dtype=torch.float64)
    n = len(table)
    rest = (1 - table.square().sum(1)).clamp(min=0).sqrt()
    image = torch.cat([table, torch.diag(rest)], dim=1)  # (B, 2 B), unit rows
    return image, torch.cat([torch.eye(n), torch.zeros(n, n)], dim=1).double()


#: Cosines of three pictures (rows) with three captions; 0.8 is the second caption's wrong and better partner.
TABLE = [[0.6, 0.5, 0.1], [0.2, 0.4, 0.8], [0.0, 0.3, 0.7]]


def log_sum_exp(*values):
    return math.log(sum(map(math.exp, values)))


# ------------------------------------------------------------------------------------------------------- closed forms


def test_cosines_are_what_was_planted():
    image, text = with_cosines(TABLE)
    assert_close(cosines(3 * image, 0.1 * text), torch.tensor(TABLE, dtype=torch.float64))


def test_clip_loss_of_three_pairs_by_hand():
    s = 5.0
    rows = [log_sum_exp(*(s * x for x in row)) - s * row[i] for i, row in enumerate(TABLE)]
    columns = [log_sum_exp(*(s * row[j] for row in TABLE)) - s * TABLE[j][j] for j in range(3)]
    expected = (sum(rows) + sum(columns)) / 6
    assert clip_loss(*with_cosines(TABLE), s).item() == pytest.approx(expected, abs=1e-12)


def test_nt_xent_of_three_pairs_by_hand():
    """Both sides are anchors, and all five others compete, also those of the anchor's own side."""
    image, text = with_cosines(TABLE)
    both, tau, total = torch.cat([image, text]).tolist(), 0.5, 0.0
    for a in range(6):
        similar = [sum(x * y for x, y in zip(both[a], both[b])) / tau for b in range(6)]
        total += log_sum_exp(*(s for b, s in enumerate(similar) if b != a)) - similar[(a + 3) % 6]
    assert nt_xent(image, text, tau).item() == pytest.approx(total / 6, abs=1e-12)


@pytest.mark.parametrize(
    ("negatives", "rows", "columns"),
    [
        # margin 0.2. rows: of 0.6 | 0.5 0.1 → 0.1 0;  of 0.4 | 0.2 0.8 → 0 0.6;  of 0.7 | 0.0 0.3 → 0 0
        # columns: of 0.6 | 0.2 0.0 → 0 0;  of 0.4 | 0.5 0.3 → 0.3 0.1;  of 0.7 | 0.1 0.8 → 0 0.3
        ("all", (0.1 + 0.6) / 6, (0.3 + 0.1 + 0.3) / 6),
        ("hard", (0.1 + 0.6 + 0.0) / 3, (0.0 + 0.3 + 0.3) / 3),
        # less similar than the partner: 0.5 → 0.1, 0.2 → 0, 0.3 → 0; in columns 0.2 → 0, 0.3 → 0.1, 0.1 → 0
        ("semi-hard", 0.1 / 3, 0.1 / 3),
    ],
)
def test_triplet_of_three_pairs_by_hand(negatives, rows, columns):
    found = triplet(*with_cosines(TABLE), margin=0.2, negatives=negatives)
    assert found.item() == pytest.approx((rows + columns) / 2, abs=1e-12)


def test_siglip_of_three_pairs_by_hand():
    scale, bias, total = 4.0, -1.5, 0.0
    for i, row in enumerate(TABLE):
        for j, cosine in enumerate(row):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (scale * cosine + bias)))
    assert siglip(*with_cosines(TABLE), scale, bias).item() == pytest.approx(total / 3, abs=1e-12)


def test_clip_loss_is_that_of_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    image, text = torch.randn(17, 8), torch.randn(17, 8)
    logits_per_text = 14.3 * cosines(text, image)
    assert_close(clip_loss(image, text, 14.3), image_text_contrastive_loss(logits_per_text), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pairs", [2, 7])
def test_equal_cosines_cost_a_guess(pairs):
    one = torch.ones(pairs, 4)
    assert clip_loss(one, one).item() == pytest.approx(math.log(pairs), abs=1e-5)
    assert nt_xent(one, one).item() == pytest.approx(math.log(2 * pairs - 1), abs=1e-5)
    for negatives, expected in zip(NEGATIVES, (0.3, 0.3, 0.0)):
        assert triplet(one, one, 0.3, negatives).item() == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------------------- invariances


@every
def test_length_order_and_exchange_of_sides_do_not_matter(loss):
    image, text = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    expected, order = loss(image, text), torch.randperm(6)
    assert_close(loss(image[order], text[order]), expected)
    assert_close(loss(7 * image, text * torch.rand(6, 1)), expected)
    assert_close(loss(text, image), expected)
    assert not torch.isclose(loss(image, text.roll(1, 0)), expected)


@every
def test_pairs_are_found_by_descent(loss):
    """Free embeddings end with every pair on top of its row and column, and both sides get a gradient."""
    image, text = (torch.randn(8, 4).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([image, text], lr=0.1)
    for step in range(200):
        optimizer.zero_grad()
        loss(image, text).backward()
        if step == 0:
            assert image.grad.any()
            assert text.grad.any()
        optimizer.step()
    found = cosines(image, text)
    assert found.argmax(0).tolist() == found.argmax(1).tolist() == list(range(8))


def test_scale_and_bias_get_gradients():
    image, text = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, -2.0)]
    assert torch.autograd.gradcheck(lambda s, b: (clip_loss(image, text, s), siglip(image, text, s, b)), numbers)


def test_self_similarity_is_solved_before_training_whatever_the_pairs():
    """The diagonal is 1; a larger scale alone takes the loss to 0, with the captions beside any picture."""
    image, text = torch.randn(16, 8), torch.randn(16, 8)
    for captions in (text, text[torch.randperm(16)]):
        combined = torch.tanh(torch.cat([image, captions], dim=1) @ torch.randn(16, 8))
        assert_close(cosines(combined, combined).diagonal(), torch.ones(16))
        assert self_similarity_loss(combined, 1.0) > 0.5
        assert self_similarity_loss(combined, 100.0) < 0.1
        assert clip_loss(image, captions, 100.0) > 5


def test_what_does_not_fit_is_refused():
    a = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        clip_loss(a, torch.randn(3, 5))
    with pytest.raises(ValueError, match="3 image embeddings and 2 text"):
        siglip(a, a[:2])
    with pytest.raises(ValueError, match="3 image embeddings and 2 text"):
        nt_xent(a, a[:2])
    with pytest.raises(ValueError, match="negatives is 'soft', allowed are 'all', 'hard', 'semi-hard'"):
        triplet(a, a, negatives="soft")
    with pytest.raises(ValueError, match="at least 2"):
        triplet(a[:1], a[:1])


# --------------------------------------------------------------------------------------------------------- gradcache


class Pictures(nn.Module):
    """Vectors as pictures: one token, with dropout."""

    def __init__(self, dropout):
        super().__init__()
        self.out_dim = 6
        self.net = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Dropout(dropout), nn.Linear(12, 6))

    def forward(self, x):
        return Tokens(self.net(x).unsqueeze(1))


class Words(nn.Module):
    """Embeddings of words, with dropout."""

    def __init__(self, dropout):
        super().__init__()
        self.out_dim = 7
        self.embedding, self.dropout = nn.Embedding(9, 7), nn.Dropout(dropout)

    def forward(self, words, mask):
        return Tokens(self.dropout(self.embedding(words)), mask)


def dual(dropout=0.0):
    torch.manual_seed(0)
    return DualEncoder(Pictures(dropout), Words(dropout), 4).double()


def batch(pairs=10):
    chance = torch.Generator().manual_seed(1)
    mask = torch.arange(4) < torch.randint(1, 5, (pairs, 1), generator=chance)
    words = torch.randint(1, 9, (pairs, 4), generator=chance)
    return torch.randn(pairs, 5, generator=chance).double(), words, mask


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def of_whole(model, loss=None):
    loss = loss or (lambda image, text: clip_loss(image, text, model.scale()))
    pictures, words, mask = batch()
    value = loss(model.encode_image(pictures), model.encode_text(words, mask))
    value.backward()
    return value.detach(), gradients(model)


@pytest.mark.parametrize("chunk", [1, 3, 10, 99])
@pytest.mark.parametrize("loss", [None, siglip])
def test_cached_gradients_are_those_of_the_whole_batch(chunk, loss):
    """Also that of the temperature, which no encoder has."""
    whole, cached = dual(), dual()
    if loss is not None:  # it has no part in this one
        whole.log_scale.grad = cached.log_scale.grad = torch.zeros((), dtype=torch.float64)
    expected, wanted = of_whole(whole, loss)
    value = cached_clip_gradients(cached, *batch(), chunk, loss)
    assert_close(value, expected)
    assert not value.requires_grad
    found = gradients(cached)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name])
    assert loss is not None or all(g.any() for g in found.values())


def test_gradients_are_added_to_what_is_there():
    model = dual()
    cached_clip_gradients(model, *batch(), 3)
    once = gradients(model)
    cached_clip_gradients(model, *batch(), 4)
    for name, twice in gradients(model).items():
        assert_close(twice, 2 * once[name])


def test_gradients_of_parts_are_not_those_of_the_whole():
    """What gradient accumulation does: each part has fewer negatives. The test above would notice."""
    whole, parts = dual(), dual()
    _, wanted = of_whole(whole)
    pictures, words, mask = batch()
    for rows in (slice(0, 5), slice(5, 10)):
        image, text = parts.encode_image(pictures[rows]), parts.encode_text(words[rows], mask[rows])
        (0.5 * clip_loss(image, text, parts.scale())).backward()
    found = gradients(parts)["image_projection.weight"]
    assert (found - wanted["image_projection.weight"]).abs().max() > 0.05 * found.abs().max()


def test_dropout_drops_the_same_in_both_passes():
    """The gradients are those of the loss that was computed: compared with a graph over the same chunks."""
    cached, whole = dual(0.4).train(), dual(0.4).train()
    torch.manual_seed(5)
    value = cached_clip_gradients(cached, *batch(), 4)
    after = torch.rand(1)
    torch.manual_seed(5)
    chunks = zip(*(x.split(4) for x in batch()))
    embedded = [(whole.encode_image(p), whole.encode_text(w, m)) for p, w, m in chunks]
    image, text = (torch.cat(side) for side in zip(*embedded))
    expected = clip_loss(image, text, whole.scale())
    expected.backward()
    assert_close(value, expected.detach())
    wanted = gradients(whole)
    for name, found in gradients(cached).items():
        assert_close(found, wanted[name])
    assert torch.rand(1) == after  # random numbers go on as if there had been one pass


def test_chunks_need_room_and_no_batch_norm():
    model = dual()
    with pytest.raises(ValueError, match="chunk is 0"):
        cached_clip_gradients(model, *batch(), 0)
    model.image_encoder.net.append(nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match=r"image_encoder\.net\.4 is a batch norm in training mode"):
        cached_clip_gradients(model.train(), *batch(), 5)
    cached_clip_gradients(model.double().eval(), *batch(), 5)


# --------------------------------------------------------------------------------------------------------- processes


def in_process(rank, processes, file, out):
    """One of the processes: its rows of the batch, then the mean of the gradients."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    try:
        model = dual()
        pictures, words, mask = (x.chunk(processes)[rank] for x in batch())
        image, text = model.encode_image(pictures), model.encode_text(words, mask)
        assert gathered(image).shape == (10, 4)
        value = distributed_clip_loss(image, text, model.scale())
        value.backward()
        average_gradients(model)
        value = value.detach()
        dist.all_reduce(value)
        if rank == 0:
            torch.save({"loss": value / processes, "gradients": gradients(model)}, out)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2])
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path, processes):
    torch.multiprocessing.spawn(in_process, (processes, tmp_path / "store", tmp_path / "out.pt"), processes)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    expected, wanted = of_whole(dual())
    assert_close(found["loss"], expected)
    assert found["gradients"].keys() == wanted.keys()
    for name in wanted:
        assert_close(found["gradients"][name], wanted[name])
        assert wanted[name].any()
