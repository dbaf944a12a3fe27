"""ULSAD: golden values of the original, hand-computed cases, bounded attention, resume, bad input."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from adlib import images, training
from adlib.errors import InputError
from adlib.methods import ulsad
from adlib.methods.ulsad import ULSAD, ULSADSettings

SMALL = TINY | {"channels": 24, "n_steps": 3, "batch_size": 4}


def fill(net) -> None:
    """Give a network the formula parameters of the golden files, in the order of registration."""
    norms = {id(m.weight) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine}
    for j, (name, parameter) in enumerate(net.named_parameters(), start=1):
        i = np.arange(parameter.numel(), dtype=np.float64)
        if id(parameter) in norms:
            value = 1 + 0.2 * np.sin(0.7 * i + j)
        elif name.endswith("bias"):
            value = 0.1 * np.sin(0.9 * i + j + 0.5)
        else:
            value = 1.6 / np.sqrt(parameter[0].numel()) * np.sin(0.37 * i + j)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(value.astype(np.float32)).view(parameter.shape))


def assert_relative(found, expected, tolerance):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def shapes(net) -> list:
    return [list(p.shape) for p in net.parameters()]


# -- golden values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_pooled_features_match_the_original(golden, case):
    file = golden("ulsad/feature_pooling")
    layers = [torch.from_numpy(file[f"layer{k}_{case}"]) for k in (2, 3)]
    pooled = ulsad.pool_features(layers, int(file[f"target_dim_{case}"]))
    np.testing.assert_allclose(pooled, file[f"features_{case}"], atol=1e-5)


def test_channel_statistics_match_the_original(golden):
    file = golden("ulsad/channel_statistics")
    mean, std = ulsad.channel_statistics(np.moveaxis(file[f"batch_{i}"], 1, -1) for i in range(3))
    np.testing.assert_allclose(mean, file["mean"].ravel(), atol=1e-5)
    np.testing.assert_allclose(std, file["std"].ravel(), atol=1e-4)


@pytest.mark.parametrize("case", range(2))
def test_attention_matches_the_original_and_the_plain_form(golden, case):
    file = golden("ulsad/attention")
    f, g = torch.from_numpy(file[f"F_{case}"]), torch.from_numpy(file[f"G_{case}"])
    np.testing.assert_allclose(ulsad.attend(f, f), file[f"self_{case}"], atol=1e-5)
    np.testing.assert_allclose(ulsad.attend(g, f), file[f"cross_{case}"], atol=1e-5)
    q, kv = g.flatten(2).transpose(1, 2), f.flatten(2).transpose(1, 2)
    plain = torch.softmax(q @ kv.transpose(1, 2) / f.shape[1] ** 0.5, dim=-1) @ kv
    np.testing.assert_allclose(ulsad.attend(g, f).flatten(2).transpose(1, 2), plain, atol=1e-5)


@pytest.mark.parametrize("case", range(4))
def test_losses_and_gradients_match_the_original(golden, case):
    file = golden("ulsad/losses")
    f, r, g = (torch.from_numpy(file[f"{name}_{case}"]) for name in "FRG")
    r.requires_grad_()
    g.requires_grad_()
    direction, *others = (float(x) for x in file[f"lambda_{case}"])
    # The file varies the two global weights apart; the paper and its settings have one for both.
    parts = [
        ulsad.losses(f, ulsad.attend(f, f), r, g, ULSADSettings(direction=direction, direction_global=other))
        for other in others
    ]
    found = [parts[0]["local"], parts[1]["attention"], parts[0]["local_global"]]
    total = sum(found)
    np.testing.assert_allclose([x.item() for x in (*found, total)], file[f"losses_{case}"], atol=1e-5)
    total.backward()
    for name, tensor in (("R", r), ("G", g)):
        expected = file[f"grad_{name}_{case}"]
        if np.abs(expected).max() > 1e3:  # zero vectors: enormous gradients there, ordinary ones elsewhere
            np.testing.assert_allclose(tensor.grad, expected, rtol=1e-4, atol=1e-7)
        else:
            assert_relative(tensor.grad, expected, 1e-5)


@pytest.mark.parametrize("case", range(2))
def test_maps_quantiles_and_scores_match_the_original(golden, case):
    file = golden(f"ulsad/maps_{case}")
    f = (torch.from_numpy(file["F_raw"]) - torch.from_numpy(file["mean"])) / torch.from_numpy(file["std"])
    small = ulsad.small_maps(f, torch.from_numpy(file["R"]), torch.from_numpy(file["G"]))
    raw = ulsad.enlarge(small, tuple(file["output_size"]), pad=bool(file["pad_maps"]))
    blurred = ulsad.smooth(raw, 4.0)
    assert_relative(blurred[:1, 0], file["local_raw_map"], 5e-5)
    assert_relative(blurred[:1, 1], file["global_raw_map"], 5e-5)
    assert_relative(blurred[:1].mean(axis=1), file["combined_raw"], 5e-5)
    quantiles = ulsad.map_quantiles(blurred[file["labels"] == 0])
    assert_relative(quantiles.ravel(), file["quantiles"], 5e-5)
    maps = ulsad.smooth(ulsad.normalise(raw, quantiles), 4.0)
    assert_relative(maps[1:2, 0], file["local_map"], 5e-5)
    assert_relative(maps[1:2, 1], file["global_map"], 5e-5)
    assert_relative(maps[1:2].mean(axis=1), file["combined"], 5e-5)
    assert_relative(maps.mean(axis=1).max(axis=(1, 2)), file["scores"], 5e-5)


def test_the_reconstruction_net_matches_the_original(golden):
    file = golden("ulsad/reconstruction_net")
    net = ulsad.ReconstructionNet(8)
    assert shapes(net) == [shape for _, shape, _ in json.loads(str(file["parameter_list"]))]
    fill(net)
    x = torch.from_numpy(file["input"])
    with torch.no_grad():
        assert_relative(net.train()(x), file["output_train"], 1e-4)
        np.testing.assert_allclose(net.layers[1].running_mean, file["running_mean_bn1"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(net.layers[1].running_var, file["running_var_bn1"], rtol=1e-4, atol=1e-6)
        assert_relative(net.eval()(x), file["output_eval"], 1e-4)


def test_the_global_net_matches_the_original(golden):
    file = golden("ulsad/global_net")
    net = ulsad.GlobalNet(6, (256, 256), (32, 32))
    assert shapes(net) == [shape for _, shape, _ in json.loads(str(file["parameter_list"]))]
    fill(net)
    b, k, y, x = np.ogrid[:3, :3, :256, :256]
    x = torch.from_numpy((0.5 + 0.5 * np.sin(0.02 * (k + 1) * x + 0.035 * (b + 1) * y + k)).astype(np.float32))
    with torch.no_grad():
        assert_relative(net.train()(x)[:, :, ::2, ::2], file["output_train"], 1e-3)
        assert_relative(net.eval()(x[:1]), file["output_eval"], 1e-4)


def test_the_networks_have_the_papers_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in ulsad.ReconstructionNet(384).parameters()) == 65_487_744
        assert sum(p.numel() for p in ulsad.GlobalNet(384, (256, 256), (32, 32)).parameters()) == 1_030_720
