"""ULSAD: golden values of the original, hand-computed cases, bounded attention, resume, bad input."""

import dataclasses
import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from adlib.images import features
from adlib.images.maps import enlarge, smooth
from adlib.methods import training
from adlib.methods.ulsad import maps as ulsad_maps
from adlib.methods.ulsad import step as ulsad_step
from adlib.methods.ulsad import ulsad
from adlib.methods.ulsad.ulsad import ULSAD
from adlib.paths import results_dir

SMALL = TINY | {"channels": 24, "steps": 3, "batch_size": 4}


def fill(net, file) -> None:
    """Give a network the formula parameters of a golden file, which has the same, in the order of registration."""
    shapes = [shape for _, shape, _ in json.loads(str(file["parameter_list"]))]
    assert [list(parameter.shape) for parameter in net.parameters()] == shapes
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
    np.testing.assert_allclose(ulsad_step.attend(f, f), file[f"self_{case}"], atol=1e-5)
    np.testing.assert_allclose(ulsad_step.attend(g, f), file[f"cross_{case}"], atol=1e-5)
    q, kv = g.flatten(2).transpose(1, 2), f.flatten(2).transpose(1, 2)
    plain = torch.softmax(q @ kv.transpose(1, 2) / f.shape[1] ** 0.5, dim=-1) @ kv
    np.testing.assert_allclose(ulsad_step.attend(g, f).flatten(2).transpose(1, 2), plain, atol=1e-5)


def test_the_attention_loss_is_the_plain_one_for_any_tile(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 2, 12, 5, 7, generator=generator)  # 35 cells an image
    sa, found = ulsad_step.attend(f, f), []
    for tile in (None, 8, 35, 100):
        query = g.clone().requires_grad_()
        if tile is None:
            q, kv = (x.flatten(2).transpose(1, 2) for x in (query, f))
            answer = torch.softmax(q @ kv.transpose(1, 2) / 12**0.5, dim=-1) @ kv
            loss = ulsad_step.dissimilarity(sa, answer.transpose(1, 2).reshape(f.shape), 0.5).mean()
        else:
            monkeypatch.setattr(ulsad_step, "TILE", tile)
            loss = ulsad_step.attention_loss(query, f, sa, 0.5)
        (3 * loss).backward()
        found.append((loss.item(), query.grad))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", range(4))
def test_losses_and_gradients_match_the_original(golden, case):
    file = golden("ulsad/losses")
    f, r, g = (torch.from_numpy(file[f"{name}_{case}"]) for name in "FRG")
    r.requires_grad_()
    g.requires_grad_()
    # The file varies the weight of each term apart; the paper and the settings have one for all.
    directions = dict(zip(("local", "local_global", "attention"), file[f"lambda_{case}"].tolist(), strict=True))
    attended, terms = ulsad_step.attend(f, f), ("local", "attention", "local_global")
    found = [ulsad_step.losses(f, attended, r, g, directions[term])[term] for term in terms]
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
    small = ulsad_maps.small_maps(f, torch.from_numpy(file["R"]), torch.from_numpy(file["G"]))
    small = F.pad(small, (4, 4, 4, 4)) if file["pad_maps"] else small  # an option of the original
    raw = enlarge(small.flatten(0, 1), tuple(file["output_size"])).unflatten(0, (-1, 2)).numpy()
    blurred = smooth(raw, 4.0, cv2.BORDER_REFLECT_101)
    quantiles = ulsad_maps.map_quantiles(blurred[file["labels"] == 0])
    assert_relative(quantiles.ravel(), file["quantiles"], 5e-5)
    maps = smooth(ulsad_maps.normalise(raw, quantiles), 4.0, cv2.BORDER_REFLECT_101)
    for made, image, suffix in ((blurred, slice(1), "_raw"), (maps, slice(1, 2), "")):
        assert_relative(made[image, 0], file[f"local{suffix}_map"], 5e-5)
        assert_relative(made[image, 1], file[f"global{suffix}_map"], 5e-5)
        assert_relative(made[image].mean(axis=1), file[f"combined{suffix}"], 5e-5)
    assert_relative(maps.mean(axis=1).max(axis=(1, 2)), file["scores"], 5e-5)


def test_the_reconstruction_net_matches_the_original(golden):
    file = golden("ulsad/reconstruction_net")
    net = ulsad_step.ReconstructionNet(8)
    fill(net, file)
    x = torch.from_numpy(file["input"])
    with torch.no_grad():
        assert_relative(net.train()(x), file["output_train"], 1e-4)
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(getattr(net.layers[1], name), file[f"{name}_bn1"], rtol=1e-4, atol=1e-6)
        assert_relative(net.eval()(x), file["output_eval"], 1e-4)


def test_the_global_net_matches_the_original(golden):
    file = golden("ulsad/global_net")
    net = ulsad_step.GlobalNet(6, (256, 256), (32, 32))
    fill(net, file)
    b, k, y, x = np.ogrid[:3, :3, :256, :256]
    x = torch.from_numpy((0.5 + 0.5 * np.sin(0.02 * (k + 1) * x + 0.035 * (b + 1) * y + k)).astype(np.float32))
    with torch.no_grad():
        assert_relative(net.train()(x)[:, :, ::2, ::2], file["output_train"], 1e-3)
        assert_relative(net.eval()(x[:1]), file["output_eval"], 1e-4)


def test_the_networks_have_the_papers_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in ulsad_step.ReconstructionNet(384).parameters()) == 65_487_744
        assert sum(p.numel() for p in ulsad_step.GlobalNet(384, (256, 256), (32, 32)).parameters()) == 1_030_720


# -- hand-computed cases ----------------------------------------------------------------------------------------------


def test_dissimilarity_by_hand():
    a = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    b = torch.tensor([4.0, -3.0]).view(1, 2, 1, 1)  # as long, at a right angle
    assert ulsad_step.dissimilarity(a, b, 0).item() == 25  # (1 + 49) / 2
    assert ulsad_step.dissimilarity(a, b, 0.5).item() == pytest.approx(25.5)
    assert ulsad_step.dissimilarity(a, 2 * a, 0.5).item() == pytest.approx(12.5)  # same direction: magnitude only
    assert ulsad_step.dissimilarity(a, 0 * a, 0.5).item() == pytest.approx(13)  # a zero vector has cosine 0


def test_flat_normal_maps_are_shifted_not_divided_by_zero():
    quantiles = ulsad_maps.map_quantiles(np.full((3, 2, 4, 4), 2.0, np.float32))
    found = ulsad_maps.normalise(np.full((1, 2, 4, 4), 3.0, np.float32), quantiles)
    np.testing.assert_array_equal(found, np.ones((1, 2, 4, 4)))


def test_a_constant_channel_does_not_become_nan():
    np.testing.assert_allclose(ulsad.channel_statistics([np.float32([[1, 5], [3, 5]])]), [[2, 5], [1, 1]])


def test_whitened_normal_residuals_have_mean_square_one():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 3, 3))
    residual = np.einsum("bmchw,mcd->bmdhw", rng.normal(size=(20, 2, 3, 8, 8)), mixing).astype(np.float32) + 1
    residual = torch.from_numpy(residual)
    mean, matrix = ulsad_maps.whitening(residual, ridge=0, prior=1e6)  # so strong a prior: one mean for all positions
    maps = ulsad_maps.whitened_maps(residual, mean, matrix)
    assert maps.shape == (20, 2, 8, 8)
    np.testing.assert_allclose(maps.mean(dim=(0, 2, 3)), [1, 1], rtol=1e-4)
    # One vector by hand: (r - mean)^T cov^-1 (r - mean) / 3
    rows = residual[:, 0].permute(0, 2, 3, 1).reshape(-1, 3).numpy().astype(np.float64)
    r = rows[7] - rows.mean(axis=0)
    by_hand = r @ np.linalg.inv(np.cov(rows.T, bias=True)) @ r / 3
    assert maps[0, 0, 0, 7].item() == pytest.approx(by_hand, rel=1e-3)


def test_an_area_sums_what_no_cell_shows():
    features, nothing, made = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16), torch.zeros(2, 2, 16, 16)
    features[0, 0, 8, 8] = 1.0  # one part, here
    features[1, 0, 7, 9] = 1.0  # or there
    far = ulsad_maps.residuals(features, made, nothing, "features", area=2.0)[:, 1, 0]
    np.testing.assert_allclose(far.sum(dim=(1, 2)), [1, 1], rtol=5e-3)  # averaging keeps the amount
    assert far[0, 8, 8] == pytest.approx(1 / (2 * np.pi * 4), rel=0.01)  # the peak of the Gaussian
    moved = ulsad_maps.residuals(features, made, nothing, "features")[:, 1, 0]
    assert (far[0] - far[1]).abs().max() < 0.05 * (moved[0] - moved[1]).abs().max()  # the place hardly matters


def test_level_and_border_rule():
    maps = torch.ones(10, 2, 8, 8)
    maps[:, :, 0] = 5.0  # a loud upper border
    level = ulsad_maps.level_of(maps, prior=10)
    overall = (7 + 5) / 8
    np.testing.assert_allclose(level[:, 0, 0], (5 + overall) / 2)  # ten images and a prior of ten
    np.testing.assert_allclose(level[:, 4, 4], (1 + overall) / 2)
    assert ulsad_maps.peaks_at_the_border(maps[:, 0])
    maps[:6, :, 4, 4] = 9.0
    assert not ulsad_maps.peaks_at_the_border(maps[:, 0])


def test_place_statistics_by_hand():
    maps = torch.zeros(4, 1, 2, 2)
    maps[:, 0, 0, 0] = torch.tensor([1.0, 1.0, 3.0, 3.0])
    mean, deviation = ulsad_maps.place_statistics(maps, prior=0)
    assert mean[0].tolist() == [[2.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(deviation[0], [[1.0, 1e-6], [1e-6, 1e-6]], rtol=1e-5)
    mean, deviation = ulsad_maps.place_statistics(maps, prior=4)  # drawn half way to the mean of all places, 0.5
    np.testing.assert_allclose(mean[0], [[1.25, 0.25], [0.25, 0.25]])
    assert deviation.min() > 0.1


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 3))
def test_an_epoch_shows_every_image_once(n_images, batch_size, seed):
    batch_size = min(batch_size, n_images)
    n_steps = n_images // batch_size
    for epoch in range(2):
        rows = [training.epoch_rows(n_images, batch_size, seed, epoch * n_steps + step) for step in range(n_steps)]
        shown = np.concatenate(rows)
        assert len(shown) == n_steps * batch_size == len(set(shown.tolist()))


def test_disturbed_features_lose_their_share_of_cells():
    features = torch.full((2, 3, 40, 50), 2.0)
    torch.manual_seed(0)
    found = ulsad.disturbed(features, 0.0, 0.3)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found.amin(dim=1), found.amax(dim=1))  # a cell is hidden in all its channels
    assert abs((found == 0).float().mean() - 0.3) < 0.02
    noisy = ulsad.disturbed(features, 0.5, 0.0) - features
    assert (float(noisy.mean()), float(noisy.std())) == pytest.approx((0, 0.5), abs=0.02)
    assert ulsad.disturbed(features, 0.0, 0.0) is features


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(train):
    return ULSAD(**SMALL | {"snapshot_every": 1}).fit(train)


def test_maps_are_the_branches_and_their_fusion(fitted, test_batch):
    local, from_image = np.moveaxis(fitted.branch_maps(test_batch), 1, 0)
    scores = fitted.score(test_batch)
    np.testing.assert_allclose(scores.map, (local + from_image) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.image, scores.map.max(axis=(1, 2)))


def test_whitening_the_global_residual_leaves_the_local_map_alone(train):
    method = ULSAD(**SMALL | {"steps": 1}).fit(train)
    plain = method._raw_maps(*method._held_out)
    method.settings = dataclasses.replace(method.settings, whiten="global", global_residual="features", area=1.0)
    method.calibrate()
    assert method.residual_matrix.shape == (1, 24, 24)
    found = method._raw_maps(*method._held_out)
    assert np.array_equal(found[:, 0], plain[:, 0])
    assert not np.allclose(found[:, 1], plain[:, 1])


def test_auto_takes_the_reading_that_tells_held_out_pseudo_anomalies_best(train):
    method = ULSAD(**SMALL | {"maps": "auto", "position_wise": "auto"}).fit(train)
    reading, best = method.reading, method._choose_reading()["score"]
    assert reading == method.reading
    scores = {}
    for maps in ("max", "local", "global"):
        for place in ("off", "on"):
            method.settings = dataclasses.replace(method.settings, maps=maps, position_wise=place)
            scores[maps, place == "on"] = method._choose_reading()["score"]
    assert max(scores.values()) == best == scores[reading]


def test_ablations_leave_out_their_terms_or_steps_of_the_global_branch(train):
    method = ULSAD(**SMALL | {"global_losses": (), "steps": 1}).fit(train)
    assert set(method.history.losses) == {"step", "local", "total", "learning_rate"}
    seen = ULSAD(**SMALL | {"steps": 4, "global_every": 2}).fit(train).history.losses.notna()
    assert seen.local.all()
    assert seen.attention.tolist() == seen.local_global.tolist() == [True, False, True, False]


def test_a_map_file_on_disk_gives_the_same_numbers(train, fitted, monkeypatch):
    monkeypatch.setattr(features, "MAX_MEMORY", 0.0)
    method = ULSAD(**SMALL).fit(train)
    np.testing.assert_array_equal(method.normal_scores, fitted.normal_scores)


def test_the_tray_gains_by_the_global_map_what_the_readme_says():
    """README: 17 points of image AUROC over the local map alone on logical defects, three seeds."""
    tray = pd.read_csv(results_dir() / "studies" / "ulsad_tray.csv")
    other = tray[(tray.drawing == 1) & (tray.maps == "both")].groupby(["area", "upper_quantile"])["all"].mean()
    area, upper = other.idxmax()  # chosen on the other drawing, as notebook 24 does
    shown = tray[(tray.drawing == 0) & (tray.area == area) & (tray.upper_quantile == upper)]
    logical = shown.pivot(index="seed", columns="maps", values="logical")
    assert len(logical) == 3
    assert 100 * (logical.both - logical.local).mean() >= 15


def test_every_change_of_the_study_changes_something():
    """A row that equals its reference to the last digit is a switch that the profile had thrown already."""
    rows = pd.read_csv(results_dir() / "studies" / "24_ulsad_ablations_laptop.csv").set_index(["group", "change"])
    measured = rows[["image_auroc", "pixel_auroc", "aupro_30"]]
    assert not any(measured.loc[group].duplicated().any() for group in ("training", "score", "area"))
    assert (measured.loc["score"] != measured.loc["maps", "as the profile"]).any(axis=1).all()


def test_two_images_to_train_on_are_enough(train):
    assert len(ULSAD(**SMALL | {"hold_out": 0.99, "steps": 1}).fit(train).normal_scores) == 4
    # Without a held-out image, nothing is chosen: the maximum, no level, quantiles of the training images.
    few = ULSAD(**SMALL | {"maps": "auto", "position_wise": "auto", "steps": 1}).fit(train.iloc[:3])
    assert (few.reading, len(few.normal_scores)) == (("max", False), 0)
    assert (few.quantiles[:, 0] < few.quantiles[:, 1]).all()
