"""SPADE and PaDiM: the same numbers as a plain reading of their formulas, and few images are enough."""

import numpy as np
import pytest
import torch
from conftest import TINY, refused

from adlib.methods.few_shot import support_images
from adlib.methods.padim import Padim
from adlib.methods.spade import Spade

SMALL = TINY | {"stages": [1, 2]}


def test_padim_refuses_images_of_another_size(train):
    refused("resize them to 64x64", Padim(**SMALL).fit(train).score, torch.zeros(1, 3, 120, 120))


@pytest.mark.parametrize("ridge", [None, 0.5])
def test_padim_is_the_mahalanobis_distance(train, test_batch, ridge):
    method = Padim(**SMALL, d=20, sigma=0.0, k=4, ridge=ridge).fit(train)
    chosen, _ = support_images.choose_support(train, 4, seed=0)
    stack = method.embed(support_images.read_images(chosen.image_path, method.resize))[:, method.channels]
    query = method.embed(test_batch.images[-1:])[0, method.channels]
    epsilon = 0.01 if ridge is None else ridge * stack.double().var((0, 2, 3), correction=0).mean().item()
    for row, column in ((0, 0), (3, 9), (15, 15)):
        x = stack[:, :, row, column].double().numpy()
        covariance = np.cov(x.T) + epsilon * np.eye(20)
        difference = query[:, row, column].double().numpy() - x.mean(0)
        expected = np.sqrt(difference @ np.linalg.inv(covariance) @ difference)
        cell = row * 16 + column
        found = (method.whitening[cell] @ (query[:, row, column] - method.mean[cell])).norm().item()
        assert found == pytest.approx(expected, rel=1e-3)
    scores = method.score(test_batch)
    np.testing.assert_array_equal(scores.image, scores.map.max((1, 2)))


def test_spade_is_two_nearest_neighbour_searches(train, test_batch):
    method = Spade(**SMALL, n_nearest=2, sigma=0.0, k=4).fit(train)
    pooled, grid = method.embed(test_batch.images[-1:])
    squared = (method.pooled - pooled).square().sum(1)
    nearest = squared.argsort()[:2]
    scores = method.score(test_batch.images[-1:])
    assert scores.image[0] == pytest.approx(squared[nearest].mean().item(), rel=1e-4)
    cells = torch.cdist(grid[0].flatten(1).T, method.gallery[nearest].flatten(0, 1)).amin(1)
    # Bilinear enlargement by four leaves no cell centre on a pixel, but it keeps the mean.
    assert scores.map.mean() == pytest.approx(cells.mean().item(), rel=1e-3)


@pytest.mark.parametrize("cls", [Padim, Spade])
def test_supports_are_those_of_few_shot(cls, train):
    method = cls(**SMALL, k=2, seed=3).fit(train)
    assert method.support_ids == support_images.support_ids(support_images.choose_support(train, 2, seed=3)[0])
    assert len(cls(**SMALL, k=9).fit(train).normal_scores) == 6  # of each image by the others
