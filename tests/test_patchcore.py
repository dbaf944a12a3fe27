"""PatchCore against the original's numbers, and its behaviour on small images."""

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS

from adlib import images
from adlib.images import features, neighbours, patches
from adlib.images.maps import upsample_and_smooth
from adlib.methods.patchcore import PatchCore, reweighted_scores

SMALL = SMALL_SETTINGS["patchcore"]


@pytest.fixture(scope="module")
def fitted(train):
    return PatchCore(**SMALL).fit(train)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("case", ["a_square", "b_nonsquare"])
def test_predict_matches_the_original(golden, case, backend):
    embedded, g = golden(f"patchcore/embed_{case}"), golden(f"patchcore/predict_{case}")
    rows_per_image = int(np.prod(embedded["grid"]))
    split = int(g["n_train_images"]) * rows_per_image
    bank, queries = embedded["embedding"][:split], embedded["embedding"][split:]
    index = neighbours.NearestNeighbours(backend).fit(bank)
    for k in (1, 3):
        squared, nearest = index.query(queries, k)
        np.testing.assert_array_equal(nearest, g[f"nn_index_k{k}"])
        np.testing.assert_allclose(squared, g[f"nn_sqdist_k{k}"], rtol=1e-4)
        patch_scores = squared.mean(axis=1).reshape(-1, *embedded["grid"])
        np.testing.assert_allclose(patch_scores[:1], g[f"patch_scores_k{k}"], rtol=1e-4)
        image_scores = patch_scores.reshape(len(patch_scores), -1).max(axis=1)
        np.testing.assert_allclose(image_scores[: len(g[f"image_scores_k{k}"])], g[f"image_scores_k{k}"], rtol=1e-4)
        maps = upsample_and_smooth(torch.from_numpy(patch_scores), tuple(g["input_size"]), 4.0)
        if k == 1:
            np.testing.assert_allclose(maps[:1], g["maps_k1"], rtol=1e-4)
        else:
            np.testing.assert_allclose(maps[:1, ::4, ::4], g["maps_k3_sub"][:1], rtol=1e-4)


@pytest.mark.parametrize("case", ["a", "b_small_bank", "c_large_distances"])
def test_reweighted_score_matches_the_reference(golden, case):
    g = golden(f"patchcore_reweight/{case}")
    bank, n_images = g["bank"], int(g["n_images"])
    index = neighbours.NearestNeighbours("torch").fit(bank)
    squared, nearest = index.query(g["queries"], 1)
    distances = np.sqrt(squared[:, 0]).reshape(n_images, -1)
    np.testing.assert_allclose(distances, g["nn_distance"], rtol=1e-4, atol=2e-3)
    rows = g["queries"].reshape(n_images, -1, bank.shape[1])
    for b in g["b_values"]:
        found = reweighted_scores(rows, distances, nearest[:, 0].reshape(n_images, -1), index, int(b))
        np.testing.assert_allclose(found, g[f"score_b{b}"], rtol=1e-4)


def test_training_patches_have_distance_zero_without_a_coreset(train):
    train = train.iloc[:2]
    method = PatchCore(**{**SMALL, "sampler": "none"}).fit(train)
    assert len(method.memory_bank) == 2 * 8 * 8
    batch = next(images.batches(train.image_path, method.resize, 2))
    typical = np.square(method.memory_bank).sum(1).mean()
    assert method.score(batch).image.max() < 1e-4 * typical


def test_leave_one_out_scores_are_above_those_of_the_bank_itself(fitted, train):
    own = fitted.score(next(images.batches(train.image_path, fitted.resize, len(train)))).image
    assert len(fitted.normal_scores) == len(train)
    assert (fitted.normal_scores >= own - 1e-3).all()
    assert fitted.normal_scores.mean() > own.mean()


def test_the_same_seed_gives_the_same_bank_and_another_seed_another(train):
    a, b, c = (PatchCore(**SMALL, seed=seed).fit(train) for seed in (3, 3, 4))
    assert np.array_equal(a.memory_bank, b.memory_bank)
    assert not np.array_equal(a.memory_bank, c.memory_bank)


def test_a_bank_larger_than_memory_is_built_on_disk_with_the_same_result(train, fitted, monkeypatch):
    monkeypatch.setattr(features, "MAX_MEMORY", 1e-6)
    on_disk = PatchCore(**SMALL).fit(train)
    assert np.array_equal(on_disk.memory_bank, fitted.memory_bank)


def test_random_thinning_keeps_real_rows_of_the_right_images(train):
    method = PatchCore(**SMALL, max_rows=50)
    rows, numbers, grid = method.collect_rows(list(train.image_path), np.random.default_rng(0))
    everything, all_numbers, _ = PatchCore(**SMALL).collect_rows(list(train.image_path), np.random.default_rng(0))
    assert len(rows) == len(set(numbers.tolist())) == 50
    assert len(everything) == len(train) * grid[0] * grid[1]
    np.testing.assert_array_equal(all_numbers, np.arange(len(everything)))
    np.testing.assert_allclose(rows, everything[numbers], rtol=1e-5)
    assert len(method.fit(train).memory_bank) == 12


def test_score_of_one_image_by_hand():
    method = PatchCore(**SMALL)
    method.memory_bank, method.grid = np.zeros((1, 152), np.float32), (8, 8)
    method._build_index()
    image = torch.rand(1, 3, 64, 64)
    rows = patches.to_rows(method.embed(image))
    assert method.score(image).image[0] == pytest.approx(rows.square().sum(1).max().item(), rel=1e-4)
