"""PAGMFR: no way around the bottleneck, losses by hand, pairs that follow from a counter, the README's names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS, refused
from torch.nn import functional as F

from adlib.evaluation import metrics
from adlib.images import Resize, backbones
from adlib.methods.pagmfr import network
from adlib.methods.pagmfr.network import PAGMFRModel
from adlib.methods.pagmfr.pagmfr import PAGMFR
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib_book.studies import pagmfr_readme as readme

SMALL = SMALL_SETTINGS["pagmfr"] | {"steps": 3, "selection": "last", "kind": "texture"}


@pytest.fixture(scope="module")
def encoder():
    return backbones.create("tf_efficientnet_lite0", (1, 2))


def small_model(encoder, **changes):
    torch.manual_seed(0)
    options = {"width": 8, "bottleneck": 8, "blocks": 1, "fusion_width": 8, "image_stride": 2} | changes
    return PAGMFRModel(encoder, **options)


def images(n=2, size=(64, 64), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (70, 53)])
@pytest.mark.parametrize("image_stride", [1, 2])
def test_shapes_at_any_size(encoder, size, image_stride):
    model, x = small_model(encoder, image_stride=image_stride).eval(), images(size=size)
    output = model(x)
    features = encoder(x)
    assert [f.shape for f in output.features_hat] == [f.shape for f in features]
    assert output.images_hat.shape[-2:] == tuple(-(-side // image_stride) for side in size)
    assert 0 <= output.images_hat.min() <= output.images_hat.max() <= 1
    assert list(output.maps) == ["cosine 4", "cosine 8", "colour", "structure"]
    for found in (*output.maps.values(), output.logits):
        assert found.shape == (2, *features[0].shape[-2:])
    assert min(float(found.detach().min()) for found in output.maps.values()) >= -1e-6


def test_the_numbers_of_parameters_are_those_of_the_stated_design():
    model = PAGMFRModel("resnet18", (1, 2, 3), "random", width=64, bottleneck=128, blocks=1, fusion_width=32)
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.trainable().items()}
    assert count["fusion"] == 1249  # 21 -> 32 -> 16 -> 1
    assert 0.9 < count["mfrm"] / 1_314_507 < 1.1
    assert 0.9 < count["mffm"] / 57_980 < 1.1


def test_the_encoder_gets_no_gradient_and_stays_in_evaluation_mode(encoder):
    model = small_model(encoder).train()
    assert not model.encoder.model.training
    assert model.mfrm.training
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    batch = {"normal": images(), "image": images(seed=1), "mask": torch.zeros(2, 64, 64, dtype=torch.bool)}
    sum(network.losses(model, model.trainable(), batch).values()).backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is not None for m in model.trainable().values() for p in m.parameters())


def test_nothing_passes_beside_the_bottleneck(encoder):
    model, x = small_model(encoder).eval(), images()
    model.mfrm.bottleneck.register_forward_hook(lambda _module, _inputs, output: output * 0)
    a, b = model(x), model(images(seed=5))
    torch.testing.assert_close(a.images_hat, b.images_hat)
    torch.testing.assert_close(a.features_hat, b.features_hat)


def test_standardised_features_have_mean_zero_and_deviation_one(encoder):
    model, x = small_model(encoder), images(8)
    model.set_statistics(encoder(x), x)
    for f in model.standardise(encoder(x)):
        spread = f.std(dim=(0, 2, 3))
        assert f.mean().abs() < 1e-4
        assert 0.99 < spread.median() <= spread.max() < 1.001
    torch.testing.assert_close(model.mfrm.image_head[-1].bias.sigmoid(), x.mean(dim=(0, 2, 3)))


def test_differences_are_zero_where_reconstruction_is_perfect_and_by_hand_elsewhere():
    f = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)]
    g = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(2, 2, 1, 1)]
    torch.testing.assert_close(network.feature_difference(f, g).flatten(), torch.tensor([0.0, 1.0]))
    white, black = torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    assert network.image_difference(white, white).abs().max() < 1e-5
    colour, structure = network.image_difference(white, black)[0]
    torch.testing.assert_close(colour, torch.ones(16, 16), atol=1e-3, rtol=0)
    torch.testing.assert_close(structure, torch.full((16, 16), 0.49995), atol=1e-4, rtol=0)
    assert network.image_difference(white, black, ("colour",)).shape[1] == 1


@pytest.mark.parametrize("terms", [("cosine", "mffm"), ("colour", "structure"), ("colour",), ("mffm",), network.TERMS])
def test_a_space_that_is_switched_off_is_neither_built_nor_trained(encoder, terms):
    model = small_model(encoder, terms=terms).train()
    batch = {"normal": images(), "image": images(seed=1), "mask": torch.ones(2, 64, 64, dtype=torch.bool)}
    found = network.losses(model, model.trainable(), batch)
    spaces = {"features": {"cosine", "mffm"}, "image": {"colour", "structure"}, "ssim": {"colour", "structure"}}
    assert set(found) == {loss for loss, needs in spaces.items() if needs & {*terms}} | {"detection"}
    sum(found.values()).backward()
    assert all(p.grad is not None for m in model.trainable().values() for p in m.parameters())


# -- fusion (the README's switch) -------------------------------------------------------------------------------------


def test_sum_and_product_fuse_the_single_maps(encoder):
    x = images()
    for fusion, by_hand in (("sum", lambda m: m.sum(0)), ("product", lambda m: (1 + m).prod(0) - 1)):
        output = small_model(encoder, fusion=fusion).eval()(x)
        torch.testing.assert_close(output.fused, by_hand(torch.stack(list(output.maps.values()))))
        order = output.fused.flatten().argsort()
        assert (output.logits.flatten()[order].diff() >= 0).all()  # the affine layer keeps the order


def readme_fusion(features, features_hat, x, x_hat):
    """The README's example: features + image + 0.1 * texture."""
    grid = features[0].shape[-2:]
    feature_map = network.feature_difference(features, features_hat).mean(1)
    image_map = network.to_grid(network.image_difference(x, x_hat), grid).mean(1)
    texture = network.to_grid(network.texture_difference(x, x_hat)[:, None], grid)[:, 0]
    return feature_map + image_map + 0.1 * texture


def test_a_fusion_of_ones_own(encoder, train, tmp_path):
    model = small_model(encoder, fusion=readme_fusion).eval()
    output = model(images())
    expected = readme_fusion(output.features, output.features_hat, model.shrink(images()), output.images_hat)
    torch.testing.assert_close(output.fused, expected)
    method = PAGMFR(**SMALL).set_fusion(readme_fusion).fit(train)
    assert np.isfinite(method.score(images()).map).all()
    refused("function, which cannot be stored", method.save, tmp_path)
    refused("function, which cannot be stored", readme.save_checkpoint, method.model, tmp_path, "plate")


def test_texture_difference_sees_grain_and_not_brightness():
    flat = torch.full((1, 3, 32, 32), 0.5)
    grain = (flat + 0.1 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert network.texture_difference(flat, flat + 0.2).abs().max() < 1e-5
    assert network.texture_difference(flat, grain).mean() > 0.03


@pytest.mark.parametrize("detach", [False, True])
def test_detach_cuts_the_detection_loss_off_from_the_reconstruction(encoder, detach):
    model = small_model(encoder, detach=detach).train()
    output = model(images())
    network.detection_loss(output.logits, torch.ones_like(output.logits)).backward()
    reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.mfrm.parameters()]
    assert not any(reached) if detach else all(reached)
    assert all(p.grad is not None for p in model.fusion.parameters())


def test_the_untrained_mlp_assumes_the_prior_and_learns_the_right_way_round():
    torch.manual_seed(0)
    untrained = network.MLPFusion(3)(torch.zeros(1, 3, 1, 1)).sigmoid()
    assert float(untrained.detach()) == pytest.approx(0.01, abs=0.005)
    difference = torch.rand(4, 1, 32, 32)
    mask = difference[:, 0] > 0.98  # few pixels, where the difference is largest
    for seed in range(3):
        torch.manual_seed(seed)
        mlp = network.MLPFusion(1)
        optimizer = torch.optim.Adam(mlp.parameters(), 3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            network.detection_loss(mlp(difference), mask).backward()
            optimizer.step()
        logits = mlp(difference).detach()
        assert logits[mask].mean() > logits[~mask].mean()


def test_focal_loss_by_hand():
    logits, mask = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1, 0]]])
    p = torch.sigmoid(torch.tensor(2.0))
    normal = p**2 * -torch.log(1 - p)
    anomalous = 0.5**2 * np.log(2)
    assert float(network.detection_loss(logits, mask)) == pytest.approx(float(anomalous + normal) / 2, rel=1e-5)
    weighted = network.detection_loss(logits, mask, pos_weight=3.0)
    assert float(weighted) == pytest.approx(float(3 * anomalous + normal) / 2, rel=1e-5)
    plain = F.binary_cross_entropy_with_logits(logits, mask.float(), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(network.detection_loss(logits, mask, gamma=0.0, pos_weight=3.0), plain)


# -- promises about the training --------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_gradients_and_statistics_for_less_memory(encoder):
    batch = {"normal": images(4), "image": images(4, seed=1), "mask": torch.ones(4, 64, 64, dtype=torch.bool)}
    kept, found = [0, 0], []
    for checkpointing in (False, True):
        model = small_model(encoder, checkpointing=checkpointing, blocks=2, norm="batch").train()

        def keep(tensor, checkpointing=checkpointing):
            kept[checkpointing] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = network.losses(model, model.trainable(), batch)
        sum(losses.values()).backward()
        found.append([p.grad for m in model.trainable().values() for p in m.parameters()] + list(model.buffers()))
    assert kept[1] < 0.75 * kept[0]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_batch_in_parts_equals_the_batch_exactly_with_group_normalisation(encoder, train, norm):
    batch, gradients = pairs(train, batch_size=8).batch(0), []
    for parts in (1, 4):
        model = small_model(encoder, norm=norm).train()
        for part in zip(*(batch[key].chunk(parts) for key in batch), strict=True):
            losses = network.losses(model, model.trainable(), dict(zip(batch, part, strict=True)))
            (sum(losses.values()) / parts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.mfrm.parameters()]))
    gap = float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())
    assert gap < 1e-4 if norm == "group" else gap > 1e-2, gap


def test_a_step_takes_all_parts_of_its_batch(train, monkeypatch):
    taken, whole = [], Pairs.batch
    monkeypatch.setattr(Pairs, "batch", lambda self, *given: taken.append(given) or whole(self, *given))
    history = PAGMFR(**SMALL | {"accumulate": 2, "steps": 2}).fit(train).history
    assert len(history.losses) == 2
    assert taken == [(0, 2), (1, 2), (2, 2), (3, 2)]


def test_differences_stay_in_float32(encoder):
    with torch.autocast("cpu", torch.bfloat16):
        output = small_model(encoder).train()(images())
    assert {m.dtype for m in output.maps.values()} | {output.logits.dtype} == {torch.float32}


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_active_in_training_only(encoder, training):
    model, x = small_model(encoder, dropout=0.5).train(training), images()
    assert torch.equal(model(x).logits, model(x).logits) is not training


# -- pairs ------------------------------------------------------------------------------------------------------------


def pairs(train, jitter=0.0, sampling="uniform", **changes):
    settings = PairSettings(**{"kind": "texture", "batch_size": 4} | changes)
    return Pairs(train, Resize(64), settings, jitter=jitter, sampling=sampling)


@pytest.mark.parametrize("families", [("pagmfr",), ("perlin_dtd", "cutpaste", "nsa")])
@pytest.mark.parametrize("kind", ["texture", "object"])
def test_pairs_agree_outside_the_mask(train, families, kind):
    stream = pairs(train, families=families, kind=kind, jitter=0.2, rotate=0.5)
    for seed in range(12):
        normal, damaged, mask, info = stream.pair(seed % 6, np.random.default_rng(seed))
        np.testing.assert_array_equal(normal[~mask], damaged[~mask])
        assert mask.any() or "fallback" in info


@pytest.mark.parametrize("bank", [0, 10])
def test_the_stream_does_not_depend_on_the_parts_it_is_taken_in(train, bank):
    whole = pairs(train, batch_size=8, bank=bank).batch(1)
    parts = pairs(train, batch_size=8, bank=bank)
    for key in ("normal", "image", "mask"):
        assert torch.equal(torch.cat([parts.batch(micro, 4)[key] for micro in range(4, 8)]), whole[key])


def test_half_of_the_samples_are_anomalous_and_every_image_gets_its_turn(train):
    stream = pairs(train, batch_size=60, bank=12)
    batch = stream.batch(0)
    clean = ~batch["mask"].flatten(1).any(1)
    assert 0.3 < clean.float().mean() < 0.7
    torch.testing.assert_close(batch["image"][clean], batch["normal"][clean])
    assert len({tuple(x.flatten()[:50].tolist()) for x in batch["normal"]}) >= 6
    assert pairs(train, probability=0.0, batch_size=8).batch(0)["mask"].sum() == 0


def test_a_bank_keeps_the_features_of_its_pairs(train, encoder):
    stream = Pairs(train, Resize(64), PairSettings(kind="texture", batch_size=6, bank=6), encoder)
    batch = stream.batch(2)
    for key, source in (("features", "image"), ("normal_features", "normal")):
        for stored, fresh in zip(batch[key], encoder(batch[source]), strict=True):
            torch.testing.assert_close(stored, fresh, rtol=2e-3, atol=2e-3 * float(fresh.abs().max()))


def test_small_anomalies_are_drawn_more_often(train):
    stream = pairs(train, bank=20, sampling="small", batch_size=200, probability=1.0)
    area = stream.bank["mask"].flatten(1).sum(1).double()
    drawn = stream.batch(0)["mask"].flatten(1).sum(1).double().mean()
    expected = float((area.sqrt()).sum() / (1 / area.sqrt()).sum())  # mean area under weights 1 / sqrt(area)
    assert float(drawn) == pytest.approx(expected, rel=0.3)
    assert drawn < area.mean()


def test_the_kind_is_known_by_name_or_judged(train):
    assert pairs(train, kind="auto").kind == "texture"  # judged: noise on a gradient
    named = train.assign(category="screw")
    named.attrs["dataset"] = "mvtec"
    assert pairs(named, kind="auto").kind == "object"


# -- scores -----------------------------------------------------------------------------------------------------------


def test_whitened_residuals_are_about_one_on_normal_images(train):
    method = PAGMFR(**SMALL | {"whiten": True, "terms": ["cosine", "mffm"]}).fit(train)
    with torch.no_grad():
        maps = method._raw_maps(next(method._in_parts(method.pairs.images)))
    assert maps.shape[1] == 3  # the logit and two levels
    for white in maps[:, 1:].unbind(1):
        assert 0.3 < float(white.mean()) < 1.5
    shown = method.explain(next(method._in_parts(method.pairs.images)))
    assert list(shown) == ["cosine 4", "cosine 8", "whitened 4", "whitened 8"]
    np.testing.assert_allclose(shown["whitened 4"].mean(), maps[:, 1].mean(), rtol=0.05)


def test_auto_calibration_asks_where_normal_maps_peak(train, monkeypatch):
    for border in (False, True):
        monkeypatch.setattr("adlib.methods.pagmfr.pagmfr.peaks_at_the_border", lambda maps, border=border: border)
        method = PAGMFR(**SMALL | {"calibrate": "auto"}).fit(train)
        assert bool(len(method.calibration)) is border


def test_explain_shows_the_reconstruction_and_every_difference(train):
    shown = PAGMFR(**SMALL).fit(train).explain(images())
    assert shown.pop("reconstruction").shape == (2, 64, 64, 3)
    assert list(shown) == ["cosine 4", "cosine 8", "colour", "structure"]
    assert all(m.shape == (2, 64, 64) for m in shown.values())


# -- the README's names -----------------------------------------------------------------------------------------------


def test_the_readme_walk(small_tree, encoder, tmp_path):
    loader = readme.get_mvtec_dataloader(small_tree, "plate", train=True, image_size=64, batch_size=4)
    first = next(iter(loader))
    assert (first["image"].shape, first["mask"].dtype) == ((4, 3, 64, 64), torch.bool)
    model = readme.train_pagmfr(small_model(encoder), loader, epochs=2)
    test = readme.get_mvtec_dataloader(small_tree, "plate", train=False, image_size=64, batch_size=4)
    found = readme.validate_pagmfr(model, test)
    assert [0 <= value <= 1 for value in found] == [True] * 3
    path = readme.save_checkpoint(model, tmp_path, "plate")
    assert path.name == "pagmfr_plate_best.pth"
    again = readme.load_checkpoint(small_model(encoder), path)
    assert readme.validate_pagmfr(again, test) == found
    pictures = readme.save_pictures(again, test, tmp_path, "plate")
    assert len(pictures) == 7
    assert {p.name for p in pictures} >= {"pagmfr_plate_good_000.png", "pagmfr_plate_hole_003.png"}


def test_validation_is_the_metrics_of_the_scores(small_tree):
    class Truth:
        def score(self, x):
            maps = (x.mean(1) < 0.5).float().numpy()
            return network.Scores(maps.mean((1, 2)), maps)

    loader = readme.get_mvtec_dataloader(small_tree, "plate", train=False, image_size=64)
    batch = next(iter(loader))
    scores = Truth().score(batch["image"])
    expected = metrics.pixel_metrics(list(scores.map), list(batch["mask"].numpy()))
    assert readme.validate_pagmfr(Truth(), loader)[1:] == (expected["pixel_auroc"], expected["aupro_30"])
    # Without masks nobody knows which pixels of a defect are normal.
    unmasked = [batch | {"mask": torch.zeros_like(batch["mask"])}]
    assert readme.validate_pagmfr(Truth(), unmasked)[1:] == (None, None)


def test_a_loader_of_the_wrong_kind_is_one_line(small_tree, encoder):
    train, test = (readme.get_mvtec_dataloader(small_tree, "plate", train=x, image_size=64) for x in (True, False))
    for call in (readme.validate_pagmfr, lambda model, given: readme.save_pictures(model, given, "", "")):
        refused(r"^loader gives batches without label, name; .*train=False", call, small_model(encoder), train)
    refused(r"^loader gives no training pairs; .*train=True", readme.train_pagmfr, small_model(encoder), test, epochs=1)
    refused(r"^rate -1 must be a positive number", readme.train_pagmfr, small_model(encoder), train, epochs=1, rate=-1)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_the_readme_checkpoint_of_another_configuration_is_refused(encoder, tmp_path):
    path = readme.save_checkpoint(small_model(encoder), tmp_path, "plate")

    def refused_by(said, path=path, **changes):
        refused(said, readme.load_checkpoint, small_model(encoder, **changes), path)

    refused_by("fusion 'mlp'", fusion="sum")
    refused_by("another configuration", width=16)
    refused_by("does not exist", tmp_path / "none.pth")
    for content in ({"configuration": [1, 2], "state": {}}, {"configuration": {}, "state": 3}, [1]):
        torch.save(content, path)
        refused_by("damaged or none of PAGMFR's")
    Path(path).write_bytes(b"no checkpoint")
    refused_by("damaged")


def test_a_fit_that_was_begun_anew_is_none(train, tmp_path):
    fitted = PAGMFR(**SMALL).fit(train)
    calls = [PAGMFR(**SMALL).explain, fitted.prepare(train).score, fitted.set_fusion("sum").score]
    for call in [*calls, lambda _: fitted.save(tmp_path)]:
        refused(r"^this pagmfr is not fitted; call fit\(table\) first$", call, images())
