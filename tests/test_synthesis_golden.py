"""Pseudo-anomaly synthesis against the original implementations: GLASS, DRAEM, NSA and the noise package."""

import json

import numpy as np
import pytest

from adlib.synthesis import nsa
from adlib.synthesis.blends import as_float, blend
from adlib.synthesis.perlin import cell_mask, combine, lattice_noise, rotate


@pytest.mark.parametrize("k", range(6))
def test_lattice_noise_equals_glass(golden, k):
    data = golden("glass/perlin_field")
    field = lattice_noise(data[f"shape_{k}"], data[f"res_{k}"], data[f"angles_{k}"])
    np.testing.assert_allclose(field, data[f"field_{k}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(3))
def test_rotation_equals_glass(golden, k):
    data = golden("glass/perlin_rotation")
    rotated = rotate(data[f"field_{k}"], float(data[f"angle_{k}"]))
    np.testing.assert_allclose(rotated, data[f"rotated_{k}"], atol=1e-3)


@pytest.mark.parametrize("k", range(12))
def test_mask_combination_and_token_mask_equal_glass(golden, k):
    data = golden("glass/perlin_mask")
    mask, _ = combine(data[f"thr1_{k}"] > 0, data[f"thr2_{k}"] > 0, float(data[f"draw_{k}"]))
    mask &= data[f"foreground_{k}"] > 0
    assert np.array_equal(mask, data[f"mask_pixel_{k}"] > 0)
    assert np.array_equal(cell_mask(mask, 8), data[f"mask_token_{k}"] > 0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_las_blend_equals_glass(golden, k):
    data = golden("glass/las_blend")
    image, texture = (data[f"{name}_{k}"].transpose(1, 2, 0) for name in ("image", "texture"))
    mask = data[f"mask_pixel_{k}"] > 0
    opacity = 1 - np.clip(data[f"beta_raw_{k}"], 0.2, 0.8)
    expected = data[f"blend_{k}"].transpose(1, 2, 0)
    np.testing.assert_allclose(blend(image, texture, mask, opacity), expected, atol=2e-6)
    assert np.array_equal(cell_mask(mask, 8), data[f"mask_token_{k}"] > 0)


@pytest.mark.parametrize("k", range(4))
def test_draem_blend_equals_original(golden, k):
    data = golden("synthesis/draem")
    if data[f"draw_skip_{k}"] > 0.5:
        assert not data[f"mask_{k}"].any()  # DRAEM leaves half of its samples alone; here the caller does
        return
    mask = data[f"noise_{k}"] > 0.5
    opacity = 1 - 0.8 * float(data[f"draw_beta_{k}"])
    assert np.array_equal(mask, data[f"mask_{k}"] > 0)
    made = blend(data[f"image_{k}"], as_float(data[f"texture_{k}"]), mask, opacity)
    np.testing.assert_allclose(made, data[f"augmented_{k}"], atol=1e-6)


def _nsa_case(golden, name):
    data = golden(f"synthesis/nsa_{name}")
    settings = json.loads(str(data["settings"]))
    boxes = [(data["box"], data["patch_mask"])]
    if "box_of_patch_0" in data:
        boxes = [(data[f"box_of_patch_{i}"], data[f"mask_of_patch_{i}"]) for i in range(2)]
    region = np.zeros(data["dest"].shape[:2], bool)
    for (top, bottom, left, right), mask in boxes:
        region[top:bottom, left:right] = mask  # the later patch overwrites, as in the original
    return data, settings, region


@pytest.mark.parametrize(
    "name", ["swap", "uniform_continuous", "normal_binary", "normal_logistic", "ellipses_two_patches"]
)
def test_nsa_masks_equal_original(golden, name):
    data, settings, region = _nsa_case(golden, name)
    mask = nsa.changed_mask(data["dest"], data["result"], region, settings.get("tol", 1))
    np.testing.assert_array_equal(mask, data["label"] > 0)


@pytest.mark.parametrize("name", ["normal_binary", "normal_logistic", "mixed_intensity", "ellipses_two_patches"])
def test_poisson_clone_equals_original(golden, name):
    data, settings, _ = _nsa_case(golden, name)
    mode = settings["mode"].split("_")[0]
    result = data["dest"]
    for k in range(2 if "clone1_mask" in data else 1):
        mask = data[f"clone{k}_mask"].copy()
        center = tuple(int(v) for v in data[f"clone{k}_center"])
        result = nsa.poisson_clone(result, data[f"clone{k}_source"], mask, center, mode)
        assert np.array_equal(mask, data[f"clone{k}_mask"])  # the caller's mask stays as it was
    assert np.abs(result.astype(int) - data["result"]).max() <= 2  # exact with the same OpenCV


def test_swap_equals_original(golden):
    data, _, _ = _nsa_case(golden, "swap")
    top, bottom, left, right = data["box"]
    patch = data["source"][top:bottom, left:right]
    made = nsa.paste(data["dest"], patch, data["patch_mask"] > 0, (int(top), int(left)), "swap")
    assert np.array_equal(made, data["result"])


@pytest.mark.parametrize("k", [0, 1, 2])
def test_pnoise2_backend_walks_the_same_field(golden, k):
    """Columns are x and rows are y; the field at an offset is that of the package at the same coordinates."""
    pytest.importorskip("noise", reason="the package noise needs a C compiler and is optional")
    from adlib.synthesis import pnoise2_noise

    data = golden("synthesis/pnoise2")
    octaves, persistence, lacunarity = data[f"params_{k}"][:3]
    scale, x, y = data[f"grid_{k}"]
    side = data[f"noise_{k}"].shape[0]
    if (persistence, lacunarity) == (0.5, 2.0):
        made = pnoise2_noise((side, side), (side / scale, side / scale), (y, x), int(octaves))
        np.testing.assert_allclose(made, data[f"noise_{k}"], atol=5e-5)
    else:
        from noise import pnoise2

        rest, places = (int(octaves), persistence, lacunarity), np.ndindex(side, side)
        values = [pnoise2(column / scale + x, row / scale + y, *rest) for row, column in places]
        np.testing.assert_allclose(np.reshape(values, (side, side)), data[f"noise_{k}"], atol=5e-5)
