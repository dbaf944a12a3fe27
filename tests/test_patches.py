"""Patch embeddings against the original's, and the fast path against the general one."""

import numpy as np
import pytest
import torch

from adlib.images import patches


@pytest.mark.parametrize("case", ["a_square", "b_nonsquare", "c_patch5_stride2", "d_stretch"])
def test_general_embedding_matches_the_original(golden, case):
    g = golden(f"patchcore/embed_{case}")
    features = [torch.from_numpy(g["layer2"]), torch.from_numpy(g["layer3"])]
    sizes = [int(g[key]) for key in ("patch_size", "patch_stride", "pretrain_dim", "target_dim")]
    grid = patches.adaptive_pool_embedding(features, *sizes)
    assert tuple(grid.shape[2:]) == tuple(g["grid"])
    np.testing.assert_allclose(patches.to_rows(grid), g["embedding"], atol=1e-6)


def test_first_pool_matches_the_original(golden):
    g = golden("patchcore/embed_a_square")
    # With one layer and equal dimensions the second pool is the identity, so the first can be seen alone.
    single = patches.adaptive_pool_embedding([torch.from_numpy(g["layer2"])], 3, 1, 24, 24)
    np.testing.assert_allclose(patches.to_rows(single)[:60], g["layer_vectors"][:, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (9, 14)])
def test_paper_case_without_unfolding_equals_the_general_path(shape):
    generator = torch.Generator().manual_seed(1)
    shallow = torch.rand(2, 512, *shape, generator=generator)
    deep = torch.rand(2, 1024, *(-(-n // 2) for n in shape), generator=generator)
    general = patches.adaptive_pool_embedding([shallow, deep], 3, 1, 1024, 1024)
    fast = patches.embed([shallow, deep])
    torch.testing.assert_close(fast, general, rtol=0, atol=1e-6)


def test_mean_embedding_matches_the_plain_port(golden):
    g = golden("patchcore_reweight/embedding_and_map")
    grid = patches.mean_embedding([torch.from_numpy(g["layer2"]), torch.from_numpy(g["layer3"])])
    np.testing.assert_allclose(patches.to_rows(grid), g["embedding"], atol=1e-6)


def test_border_patches_shrink_because_zero_padding_is_counted():
    ones = torch.ones(1, 1, 4, 4)
    pooled = patches.mean_embedding([ones])[0, 0]
    assert pooled[1, 1] == 1
    assert pooled[0, 0] == pytest.approx(4 / 9)


def test_window_of_one_changes_nothing():
    feature = torch.rand(1, 3, 5, 6)
    torch.testing.assert_close(patches.embed([feature], 1, None), feature)


def test_rows_and_grid_are_inverse():
    grid = torch.arange(24.0).view(2, 1, 3, 4)
    torch.testing.assert_close(patches.to_grid(patches.to_rows(grid)[:, 0], (3, 4)), grid[:, 0])
