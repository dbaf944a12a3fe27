"""DFR: golden values of the original, hand-computed cases, the threshold rule, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, refused
from hypothesis import given
from hypothesis import strategies as st
from test_ulsad import assert_relative, fill

from adlib.methods import dfr
from adlib.methods.dfr import DFR

SMALL = TINY | {"stages": [1, 2, 3], "map_size": 64, "steps": 3}


# -- golden values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_aggregation_matches_the_original(golden, case):
    file = golden("ulsad/dfr_aggregation")
    maps = [torch.from_numpy(file[key]) for key in file.files if key.startswith(f"map_{case}_")]
    sizes = [tuple(file[f"{key}_{case}"]) for key in ("map_size", "kernel", "stride")]
    found = dfr.aggregate(maps, *sizes, str(file[f"upsample_{case}"]))
    np.testing.assert_allclose(found, file[f"features_{case}"], atol=1e-5)


def test_the_auto_encoder_matches_the_original(golden):
    file = golden("ulsad/dfr_autoencoder")
    net = dfr.FeatureAutoEncoder(10, 3)
    fill(net, file)
    x = torch.from_numpy(file["input"])
    with torch.no_grad():
        output = net.train()(x)
    assert_relative(output, file["output"], 1e-4)
    np.testing.assert_allclose(torch.nn.functional.mse_loss(output, x), file["loss"], rtol=1e-4)
    assert_relative(dfr.energy(x, output), file["energy"], 1e-4)


# -- hand-computed cases ----------------------------------------------------------------------------------------------


def test_aggregation_of_a_ramp_by_hand():
    # 1, 3 resized to four cells with aligned corners: 1, 5/3, 7/3, 3; windows of two: 4/3 and 8/3
    ramp = torch.tensor([1.0, 3.0]).expand(2, 2)[None, None]
    found = dfr.aggregate([ramp], 4, 2, 2)
    np.testing.assert_allclose(found[0, 0], [[4 / 3, 8 / 3]] * 2, rtol=1e-6)


def test_pca_width_counts_components():
    rng = np.random.default_rng(0)
    cells = rng.normal(0, [3, 1, 0.1, 0], (4000, 4)).astype(np.float32) + 5  # variances 9, 1, 0.01, 0
    assert [dfr.pca_width(cells, share) for share in (0.85, 0.95, 0.9999)] == [1, 2, 3]
    assert dfr.pca_width(np.ones((5, 4), np.float32), 0.9) == 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=400), st.sampled_from([0.005, 0.1, 0.5]))
def test_the_segmentation_threshold_is_the_smallest_that_keeps_the_share(values, share):
    maps = np.array(values, dtype=np.float32)
    threshold = dfr.segmentation_threshold(maps, share)
    assert (maps > threshold).mean() <= share
    lower = maps[maps < threshold]
    if len(lower):
        assert (maps > lower.max()).mean() > share


def test_vgg_layers_are_found_by_name():
    backbone = dfr.vgg_relus("vgg19", ("relu1_2", "relu3_4"), "random")
    assert backbone.channels == (64, 256)
    with torch.inference_mode():
        shallow, deep = backbone(torch.rand(1, 3, 32, 32))
    assert (shallow.shape, deep.shape, float(shallow.min())) == ((1, 64, 32, 32), (1, 256, 8, 8), 0)  # after the ReLU
    for name, layer, said in (("resnet18", "relu1_1", "layers of a VGG"), ("vgg11", "relu1_4", "stage")):
        refused(said, dfr.vgg_relus, name, (layer,), "random")


# -- the method -------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_threshold_lets_its_share_through(train):
    method = DFR(**SMALL | {"steps": 60, "learning_rate": 1e-2, "threshold_images": "held_out"}).fit(train)
    losses = method.history.losses.reconstruction
    assert losses.iloc[-5:].mean() < 0.7 * losses.iloc[:5].mean()
    maps = method._scores(method._held_out).map
    assert 0 < (maps > method.segmentation_threshold).mean() <= 0.005
    np.testing.assert_array_equal(method.normal_scores, maps.max(axis=(1, 2)))
    method.settings = replace(method.settings, image_score="top")
    method._score_held_out()
    highest = np.sort(maps.reshape(len(maps), -1))[:, -(maps[0].size // 100) :]
    np.testing.assert_allclose(method.normal_scores, highest.mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(method.normal_map_maxima, maps.max(axis=(1, 2)))
