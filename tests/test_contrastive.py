"""Contrastive learning with clustering: it learns what it is shown, and answers clean images with "clean"."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS, refused

from adlib.images import clustering
from adlib.methods.few_shot import episodic_training, losses, support_images
from adlib.methods.few_shot.contrastive import Contrastive

SMALL = SMALL_SETTINGS["contrastive"] | {"stages": [1, 2, 3], "width": 16, "pool": [5, 4], "snapshot_every": 6}
SMALL |= {"steps": 12, "episodes": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def fitted(train):
    return Contrastive(**SMALL).fit(train)


def test_training_lowers_the_loss_below_chance(fitted):
    history = fitted.history.losses
    trained = history[history.contrastive > 0].contrastive
    assert trained.iloc[-3:].mean() < trained.iloc[:3].mean()
    # Features that know nothing: all similarities alike. One anomalous cell is the lowest such line.
    assert trained.iloc[-3:].mean() < np.log(1 + 1)
    validation = fitted.history.validation
    assert {"score", "image_auroc", "cell_ap", "cell_f1", "macro_f1", "cell_iou", "clean_share"} <= set(validation)
    assert history.skipped_images.between(0, 3).all()


@pytest.mark.parametrize("name", ["kmeans", "hdbscan", "bank_knn"])
def test_clusterings_share_the_trained_features(fitted, test_batch, name, monkeypatch):
    monkeypatch.setattr(fitted, "settings", fitted.settings.__class__(**vars(fitted.settings) | {"clustering": name}))
    found = fitted.cluster(test_batch.images)
    assert len(found) == len(test_batch)
    scores = fitted.score(test_batch)
    assert np.isfinite(scores.map).all()
    assert all(len(f.labels) == 64 for f in found)


@pytest.mark.parametrize("name", list(clustering.ALGORITHMS))
def test_clean_images_have_an_empty_mask_behind_the_gate(fitted, train, name):
    """At most 5 % of the normals that set the gate pass it, with every algorithm."""
    method, stack = copy.copy(fitted), support_images.read_images(train.image_path, fitted.resize)
    method.settings = dataclasses.replace(fitted.settings, clustering=name)
    method._set_gate(train.image_path)
    masks = [method.cluster(image[None])[0].anomalous for image in stack]  # one by one, to the last bit
    assert sum(mask.any() for mask in masks) <= 1  # the quantile lies between two of so few


def test_the_focal_form_inside_one_image_is_the_original():
    rows = torch.nn.functional.normalize(torch.randn(36, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    coverage = torch.zeros(6, 6)
    coverage[:2, :3] = 1
    method = Contrastive(**SMALL | {"loss": "focal"})
    found = method.image_losses(rows, (6, 6), coverage)
    anomalous = coverage.flatten() > 0
    expected = losses.contrastive_loss("focal", rows[~anomalous], rows[anomalous])
    torch.testing.assert_close(found, expected)
    for of_one_kind in (0, 1):
        assert method.image_losses(rows, (6, 6), torch.full((6, 6), float(of_one_kind))) is None


def test_training_defects_come_from_the_families_asked_for(train, fitted):
    described = lambda x: [x[:, :1]]  # noqa: E731 - the picture itself as its feature
    families = ("cutpaste", "perlin_dtd")
    pictures = episodic_training.paint(train, fitted.resize, 0, n_normals=4, n_styles=3, families=families)
    pool = episodic_training.describe_pictures(pictures, described)
    assert pool.styles == ("cutpaste", "perlin_dtd", "cutpaste")
    assert (pool.coverage.flatten(2).amax(2) > 0).all()
    refused("did you mean 'cutpaste'", Contrastive, **SMALL, families=("cutpast",))
    one, other = (Contrastive(**SMALL, families=(name,)).fit(train).history.losses.total for name in families)
    assert not np.allclose(one, other)
