"""The masked autoencoder: the encoder sees visible patches only, the loss counts hidden ones only."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.encoders.masked_autoencoder import (
    MaskedAutoencoder,
    PatchEncoder,
    Rebuilt,
    hide,
    patchify,
    sine_positions,
    unpatchify,
)


def make(normalise=True, size=32, decoder=8, **sizes):
    torch.manual_seed(0)
    encoder = PatchEncoder(size, 8, **({"dim": 16, "depth": 2, "heads": 2} | sizes))
    return MaskedAutoencoder(encoder, decoder, depth=1, heads=2, normalise=normalise)


def test_patches_are_cut_in_reading_order_and_put_together_again():
    pictures = torch.randn(2, 3, 16, 24)
    patches = patchify(pictures, 8)
    assert patches.shape == (2, 6, 192)
    assert_close(patches[1, 4].view(8, 8, 3), pictures[1, :, 8:16, 8:16].permute(1, 2, 0))  # second row, second column
    assert_close(unpatchify(patches, 8, (2, 3)), pictures)
    with pytest.raises(ValueError, match="20 × 16 pixels do not split into patches of 8"):
        patchify(torch.zeros(1, 3, 20, 16), 8)


def test_patch_embedding_is_a_convolution_with_stride():
    encoder = make().encoder
    pictures = torch.randn(2, 3, 32, 32)
    kernel = encoder.embed.weight.view(16, 8, 8, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(pictures, kernel, encoder.embed.bias, stride=8).flatten(2).transpose(1, 2)
    assert_close(encoder.embed(patchify(pictures, 8)), expected, rtol=1e-4, atol=1e-5)


def test_sine_positions_have_the_closed_form_and_all_differ():
    positions = sine_positions(3, 4, 8)  # rates 1 and 1/100
    row, column = 2, 3
    expected = [(place * rate) for place in (row, column) for rate in (1.0, 0.01)]
    found = positions[row * 4 + column]
    assert_close(found[:2], torch.tensor(expected[:2]).sin())
    assert_close(found[2:4], torch.tensor(expected[:2]).cos())
    assert_close(found[4:6], torch.tensor(expected[2:]).sin())
    assert (torch.cdist(positions, positions) + torch.eye(12) > 1e-2).all()
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions(2, 2, 6)


def test_three_quarters_are_hidden_uniformly():
    hidden = hide(4000, 16, 0.75)
    assert (hidden.sum(1) == 12).all()
    assert_close(hidden.float().mean(0), torch.full((16,), 0.75), atol=0.03, rtol=0)
    assert hide(3, 196).sum(1).tolist() == [147] * 3
    assert hide(3, 4, 0.99).sum(1).tolist() == [3] * 3  # one is always seen
    again = [hide(5, 16, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*again)
    with pytest.raises(ValueError, match="hide more than 0 and less than 1"):
        hide(2, 16, 1.0)


def test_target_has_mean_zero_and_variance_one_in_each_patch():
    model, patches = make(), 5 + 3 * torch.randn(2, 16, 192)
    target = model.target(patches)
    assert_close(target.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    assert_close(target.var(-1), torch.ones(2, 16), atol=1e-4, rtol=0)
    assert_close(model.target(2 * patches + 1), target, atol=1e-4, rtol=0)  # brightness and contrast are gone
    assert torch.equal(make(normalise=False).target(patches), patches)


def test_error_is_the_mean_over_hidden_patches_only():
    prediction, target = torch.zeros(1, 4, 2), torch.tensor([[[1.0, 1], [2, 0], [9, 9], [9, 9]]])
    hidden = torch.tensor([[True, True, False, False]])
    assert Rebuilt(prediction, target, hidden).error().tolist() == [pytest.approx((1 + 2) / 2)]


def test_nothing_leaks_from_hidden_patches():
    """Change a hidden patch: the same guesses, another loss. Change a seen one: other guesses."""
    model, pictures = make().eval(), torch.randn(1, 3, 32, 32)
    hidden = hide(1, 16)
    first = model(pictures, hidden)

    def changed(place):
        patches = patchify(pictures, 8).clone()
        patches[0, place] = torch.randn(192)
        return model(unpatchify(patches, 8, (4, 4)), hidden)

    for place in hidden[0].nonzero().flatten().tolist():
        other = changed(place)
        assert torch.equal(other.prediction, first.prediction)
        assert abs(other.error() - first.error()) > 1e-4
    for place in (~hidden[0]).nonzero().flatten().tolist():
        assert (changed(place).prediction - first.prediction).abs().max() > 1e-4


def test_encoder_reads_a_quarter_of_the_tokens():
    model, seen = make(), []
    model.encoder.blocks[0].register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].shape[1]))
    model(torch.randn(2, 3, 32, 32), hide(2, 16))
    model.encoder(torch.randn(2, 3, 32, 32))
    assert seen == [4, 16]


def test_visible_tokens_do_not_depend_on_the_order_in_which_they_are_given():
    encoder, patches = make().encoder.eval(), torch.randn(1, 4, 192)
    places, turned = torch.tensor([[1, 5, 6, 11]]), [2, 0, 3, 1]
    assert_close(
        encoder.encode(patches[:, turned], places[:, turned]), encoder.encode(patches, places)[:, turned], atol=1e-5,
        rtol=1e-4,
    )  # fmt: skip
    assert (encoder.encode(patches, None) - encoder.encode(patches, places)).abs().max() > 1e-3


def test_gradient_reaches_every_parameter_and_batches_may_be_split():
    model, pictures = make(), torch.randn(3, 3, 32, 32)
    hidden = hide(3, 16)
    model(pictures, hidden).error().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    together = model(pictures, hidden).error()
    alone = torch.cat([model(p[None], h[None]).error() for p, h in zip(pictures, hidden)])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_eight_pictures_can_be_learned_by_heart(normalise):
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.randn(8, 3, 2, 2), size=16, mode="bilinear")
    model = make(normalise, size=16, decoder=32, dim=32)
    hidden = hide(8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first = model(pictures, hidden).error().mean().item()
    for _ in range(80):
        loss = model(pictures, hidden).error().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_a_picture_is_filled_only_where_it_was_hidden():
    model, pictures = make(normalise=False), torch.randn(2, 3, 32, 32)
    hidden = hide(2, 16)
    rebuilt = model(pictures, hidden)
    filled = patchify(model.picture(pictures, rebuilt), 8)
    assert_close(filled[~hidden], patchify(pictures, 8)[~hidden])
    assert_close(filled[hidden], rebuilt.prediction[hidden])
    normalised = make()
    rebuilt = normalised(pictures, hidden)
    with pytest.raises(ValueError, match="no brightness"):
        normalised.picture(pictures, rebuilt)


def test_as_an_image_encoder_it_gives_tokens():
    encoder = make().encoder
    tokens = encoder(torch.randn(2, 3, 32, 32))
    assert tokens.tokens.shape == (2, 16, 16)
    assert tokens.mask is None
    assert (encoder.out_dim, encoder.grid) == (16, (4, 4))


def test_mistakes_are_named():
    model, pictures = make(), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        model(torch.randn(2, 3, 24, 24), hide(2, 9))
    with pytest.raises(ValueError, match=r"give bool \(2, 16\)"):
        model(pictures, torch.zeros(2, 16))
    with pytest.raises(ValueError, match="different numbers of patches"):
        model(pictures, torch.tensor([[True] * 4 + [False] * 12, [True] * 5 + [False] * 11]))
    with pytest.raises(ValueError, match="not a multiple of patch"):
        PatchEncoder(30, 8)
