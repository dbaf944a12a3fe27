"""CIELAB and SSIM: scikit-image's values, exact ends, finite gradients."""

import numpy as np
import pytest
import torch
from conftest import refused
from skimage import color, metrics

from adlib.images import colour


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 40, 50, generator=generator)
    return a, (a + 0.1 * torch.randn(2, 3, 40, 50, generator=generator)).clamp(0, 1)


def test_lab_is_that_of_scikit_image(pair):
    expected = color.rgb2lab(pair[0].permute(0, 2, 3, 1).double().numpy())
    found = colour.rgb_to_lab(pair[0]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_lab_of_known_colours():
    named = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]]).reshape(4, 3, 1, 1)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [53.39, 0, 0]]
    torch.testing.assert_close(colour.rgb_to_lab(named)[:, :, 0, 0], torch.tensor(expected), atol=0.1, rtol=0)


def test_colour_difference_is_the_euclidean_one(pair):
    labs = [color.rgb2lab(x.permute(0, 2, 3, 1).double().numpy()) for x in pair]
    expected = np.linalg.norm(labs[0] - labs[1], axis=-1)
    np.testing.assert_allclose(colour.colour_difference(*pair).numpy(), expected, atol=2e-3)
    white, black = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    assert float(colour.colour_difference(white, black)) == pytest.approx(100, abs=0.01)


def test_ssim_is_that_of_scikit_image_away_from_the_border(pair):
    a, b = (x.permute(0, 2, 3, 1).double().numpy() for x in pair)
    for i in range(2):
        options = {"channel_axis": 2, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "full": True}
        _, expected = metrics.structural_similarity(a[i], b[i], use_sample_covariance=False, **options)
        found = colour.ssim_map(*pair)[i].numpy()
        inside = slice(5, -5)
        np.testing.assert_allclose(found[inside, inside], expected.mean(2)[inside, inside], atol=1e-5)


def test_ssim_of_equal_images_is_one(pair):
    torch.testing.assert_close(colour.ssim_map(pair[0], pair[0]), torch.ones(2, 40, 50))


def test_gradients_are_right_and_finite_even_at_black_and_where_both_agree():
    a = torch.rand(1, 3, 12, 12, dtype=torch.double, requires_grad=True)
    b = torch.rand(1, 3, 12, 12, dtype=torch.double)
    for function in (colour.colour_difference, colour.ssim_map):
        step = torch.randn_like(b) * 1e-3
        loss = function(a, b).double().sum()
        (gradient,) = torch.autograd.grad(loss, a)
        moved = (function(a + step, b).double().sum() - function(a - step, b).double().sum()) / 2
        assert float(moved.detach()) == pytest.approx(float((gradient * step).sum()), rel=0.02, abs=1e-3)
        black = torch.zeros(1, 3, 12, 12, requires_grad=True)
        function(black, black.detach()).sum().backward()
        assert torch.isfinite(black.grad).all()


def test_wrong_shapes_are_refused():
    refused("expected \\(batch, 3", colour.rgb_to_lab, torch.rand(3, 8, 8))
    refused("of one shape", colour.ssim_map, torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
    refused("window 11", colour.ssim_map, torch.rand(1, 3, 5, 16), torch.rand(1, 3, 5, 16))
