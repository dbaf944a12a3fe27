"""Losses against the golden values of FOCAL's code, and by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused

from adlib.methods.few_shot import losses


@pytest.mark.parametrize("case", range(13))
def test_focal_form_equals_the_original(golden, case):
    file = golden("focal/contrastive")
    query = torch.tensor(file[f"query_{case}"], requires_grad=True)
    negative = torch.tensor(file[f"negative_{case}"], requires_grad=True)
    temperature = float(file[f"temperature_{case}"])
    loss = losses.contrastive_loss("focal", query, negative, temperature=temperature)
    tolerance = 2e-5 if temperature < 0.1 else 1e-5
    np.testing.assert_allclose(loss.detach(), file[f"per_anchor_{case}"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(loss.mean().item(), file[f"loss_{case}"], rtol=0, atol=tolerance)
    name = str(file["names"][case])
    if name in ("one_query", "zero_vector"):  # no positive: NaN as in the original; a zero row has no direction
        return
    loss.mean().backward()
    for found, wanted in ((query.grad, f"grad_query_{case}"), (negative.grad, f"grad_negative_{case}")):
        np.testing.assert_allclose(found, file[wanted], rtol=0, atol=2e-4 * np.abs(file[wanted]).max())


def test_implicit_negatives_are_cross_entropy_over_cosines(golden):
    file = golden("focal/other_modes")
    for case in range(2):
        query, positive, negative = (torch.tensor(file[f"{n}_{case}"]) for n in ("query", "positive", "negative"))
        cosines = F.normalize(query, dim=1) @ F.normalize(positive, dim=1).T
        expected = F.cross_entropy(cosines / 0.1, torch.arange(len(query)))
        assert expected.item() == pytest.approx(float(file[f"implicit_{case}"]), abs=1e-5)
        # With negatives the original's positive keys do not enter: ours without keys gives the same number.
        ours = losses.contrastive_loss("focal", query, negative).mean()
        assert ours.item() == pytest.approx(float(file[f"ignores_positive_{case}"]), abs=1e-5)


def test_images_without_both_regions_are_skipped(golden):
    file = golden("focal/per_image")
    found = []
    for features, mask, wanted in zip(file["features"], file["mask"], file["image_losses"], strict=True):
        rows, anomalous = torch.tensor(features).flatten(1).T, torch.tensor(mask).flatten() > 0
        if np.isnan(wanted):
            assert anomalous.all() or not anomalous.any()
            continue
        found.append(losses.contrastive_loss("focal", rows[~anomalous], rows[anomalous]))
        assert found[-1].mean().item() == pytest.approx(wanted, abs=1e-5)
    assert losses.mean_over_images(found).item() == pytest.approx(float(file["batch_loss"]), abs=1e-5)
    assert losses.mean_over_images([torch.tensor([float("nan")])]) is None


@pytest.mark.parametrize("kind", losses.CONTRASTIVE)
def test_perfect_features_cost_nothing_and_equal_ones_chance(kind):
    normal, anomalous = torch.tensor([[1.0, 0.0]]).repeat(6, 1), torch.tensor([[-1.0, 0.0]]).repeat(4, 1)
    assert losses.contrastive_loss(kind, normal, anomalous).max() < 1e-6
    chance = losses.contrastive_loss(kind, normal, normal[:4])
    torch.testing.assert_close(chance, torch.full((6,), np.log(5)), rtol=0, atol=1e-5)


def test_nearest_positive_by_hand():
    anchor = torch.tensor([[1.0, 0.0]])
    positives = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    negative = torch.tensor([[0.0, 1.0]])
    loss = losses.contrastive_loss("nearest_positive", anchor, negative, positives, temperature=1.0, top=2)
    expected = -np.log(np.exp(0.8) / (np.exp(0.8) + np.exp(0.0)))  # mean of 1 and 0.6 against 0
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    excluded = torch.tensor([[True, False, False]])
    loss = losses.contrastive_loss("nearest_positive", anchor, negative, positives, excluded, 1.0, top=1)
    assert loss.item() == pytest.approx(-np.log(np.exp(0.6) / (np.exp(0.6) + 1)), abs=1e-6)


def test_neighbours_on_a_grid():
    excluded = losses.neighbours_excluded(torch.tensor([0, 1, 2, 5, 8]), width=3)
    assert excluded[0].tolist() == [True, True, False, False, False]
    assert excluded[3].tolist() == [False, True, True, True, True]


def test_focal_and_dice_by_hand():
    logits, target = torch.tensor([0.0, 0.0, 9.0]), torch.tensor([True, False, True])
    valid = torch.tensor([True, True, False])
    expected = (0.75 * 0.25 * np.log(2) + 0.25 * 0.25 * np.log(2)) / 2
    assert losses.focal_loss(logits, target, valid).item() == pytest.approx(expected, abs=1e-6)
    assert losses.dice_loss(logits, target, valid).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1), abs=1e-6)


def test_bad_input_is_one_line():
    rows = torch.rand(3, 4)
    refused("did you mean 'focal'", losses.contrastive_loss, "focall", rows, rows)
    refused("at least one anomalous cell", losses.contrastive_loss, "focal", rows, rows[:0])
