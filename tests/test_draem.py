"""DRAEM: losses by hand, no skips in the first network, pixels in [0, 1]."""

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS, refused

from adlib.methods import draem
from adlib.methods.draem import DRAEM, HourGlass

SMALL = SMALL_SETTINGS["draem"] | {"steps": 3, "hold_out": 0.34, "families": ["cutpaste"]}


def images(n=2, size=(64, 64), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 64), (70, 53)])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("authors", [False, True])
def test_shapes_at_any_size(size, skips, authors):
    assert HourGlass(3, 2, 4, skips, authors)(images(size=size)).shape == (2, 2, *size)


@pytest.mark.parametrize(("shape", "count"), [((3, 3, 128, False), 69_048_579), ((6, 2, 64, True), 28_374_146)])
def test_the_authors_networks_have_their_numbers_of_parameters(shape, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in HourGlass(*shape, authors=True).parameters()) == count


def test_only_the_second_network_has_a_way_around_the_middle():
    for skips in (False, True):
        torch.manual_seed(0)
        network = HourGlass(3, 3, 4, skips).eval()
        network.down[-1].register_forward_hook(lambda _module, _inputs, output: output * 0)
        same = torch.allclose(network(images(seed=1)), network(images(seed=2)))
        assert same is (not skips)


def test_losses_by_hand():
    normal, mask = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 16, 16, dtype=torch.bool)
    logits = torch.zeros(1, 2, 16, 16)
    logits[:, 1] = np.log(3.0)  # probability of anomalous 3/4
    mask[:, :8] = True
    found = draem.losses(normal, normal + 0.1, logits, mask)
    assert float(found["l2"]) == pytest.approx(0.01, rel=1e-4)
    expected = (0.25**2 * -np.log(0.75) + 0.75**2 * -np.log(0.25)) / 2
    assert float(found["focal"]) == pytest.approx(expected, rel=1e-5)
    assert float(draem.losses(normal, normal, logits, mask)["ssim"]) == pytest.approx(0, abs=1e-6)
    logits[:, 1] = np.log(1e9)  # labels 1e-5 and 1 - 1e-5, and 1e-5 more: the lower half is wholly wrong
    found = draem.losses(normal, normal, logits, mask, authors=True)
    assert float(found["focal"]) == pytest.approx((1 - 2e-5) ** 2 * -np.log(2e-5) / 2, rel=1e-3)


FILES = ("diagonal", "hot_pixel", "inverted_constant", "smooth", "ties", "tiny_regions")


@pytest.mark.parametrize("file", FILES)
def test_the_score_is_the_largest_mean_of_a_window(golden, file):
    stored = golden(f"metrics/{file}")
    scores = draem.window_maxima(stored["maps"], draem.cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(scores, stored["draem_image_scores"], rtol=1e-5, atol=1e-6)
    plain = np.zeros((1, 100, 100), np.float32)
    plain[0, 50, 50] = 3.0
    np.testing.assert_allclose(draem.window_maxima(plain), 3 / 441, rtol=1e-5)


def test_it_trains_on_pixels_in_zero_to_one(train):
    method = DRAEM(**SMALL | {"steps": 25, "learning_rate": 3e-3, "bank": 12})
    seen = []
    losses = method.losses
    method.losses = lambda modules, batch, step: seen.append(batch["image"]) or losses(modules, batch, step)
    method.fit(train)
    assert 0 <= min(x.min() for x in seen) <= max(x.max() for x in seen) <= 1
    history = method.history.losses
    assert history.total.iloc[-5:].mean() < 0.8 * history.total.iloc[:3].mean()
    assert history.learning_rate.iloc[-1] == pytest.approx(3e-3 * 0.04)  # a fifth of a fifth
    scores = method.score(images())
    np.testing.assert_allclose(scores.image, draem.window_maxima(scores.map, side=5))  # 21 of 256 pixels, here of 64
    assert 0 <= scores.map.min() <= scores.map.max() <= 1


def test_the_running_mean_is_scored_with_and_the_other_network_trained(train):
    method = DRAEM(**SMALL | {"steps": 1, "average": 0.5})
    method.build_networks()
    first = method.discriminator.head.weight.clone()
    method.fit(train)
    assert torch.equal(method.discriminator.head.weight, first)  # a mean is moved before the next step
    assert not torch.equal(method.trained["discriminator"].head.weight, first)


def test_what_cannot_be_repaired_is_one_line(train):
    method = DRAEM(**SMALL)
    refused(r"^this draem is not fitted; call fit\(table\) first$", method.repair, images())
    method.fit(train)
    for wrong in (images()[:0], images()[:, :1], images()[0]):
        refused(r"expected \(B, 3, H, W\), B >= 1", method.repair, wrong)
