"""GLASS against golden steps of the original, by hand, and as a whole."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, refused, write_image

from adlib import own_parts
from adlib.evaluation import thresholds
from adlib.images import patches
from adlib.methods.glass import glass, noise
from adlib.methods.glass import hypothesis as glass_judge
from adlib.methods.glass import step as glass_step

STEPS = [f"manifold_{start}" for start in ("default", "inside", "outside")]
STEPS += ["hypersphere", "hypersphere_far", "no_mining", "no_ohem"]
# Names of the original's weights -> ours.
NAMES = {"A_weight": "adaptor.weight", "A_bias": "adaptor.bias", "D_tail.0.weight": "discriminator.out.weight"}
for name in ("weight", "bias"):
    NAMES[f"D_body.block1.0.{name}"] = f"discriminator.linear.{name}"
for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
    NAMES[f"D_body.block1.1.{name}"] = f"discriminator.norm.{name}"
# Exactly zero but for rounding: batch normalisation takes any common shift away.
NO_GRADIENT = {"D_body.block1.0.bias"}


@pytest.fixture(params=STEPS)
def step(request, golden):
    """One golden training step, and our step from the same start."""
    data = golden(f"glass/step_{request.param}")
    cfg = json.loads(str(data["cfg"]))
    sphere = bool(cfg["svd"])
    network = glass_step.Network(cfg["D"], cfg["H"], cfg["L"])
    state = {ours: torch.from_numpy(data[f"init_{theirs}"]) for theirs, ours in NAMES.items()}
    network.load_state_dict(state | {"centre": torch.from_numpy(data["centre"])})
    network.train()
    n_ascent, hypothesis = cfg["step"] if cfg["mining"] else 0, "hypersphere" if sphere else "manifold"
    settings = SimpleNamespace(hypothesis=hypothesis, n_ascent=n_ascent, step_size=0.001, radius=0.75, p=cfg["p"])
    arrays = (torch.from_numpy(data[name]) for name in ("features_normal", "features_las"))
    labels = torch.from_numpy(data["mask"]).float().flatten()
    trace = []
    losses = glass_step.losses(network, *arrays, labels, torch.from_numpy(data["noise"]), settings, trace)
    sum(value for key, value in losses.items() if key[0] != "_").backward()
    return SimpleNamespace(data=data, network=network, losses=losses, trace=trace, sphere=sphere)


def test_every_pass_of_the_ascent_is_the_original_one(step):
    cells = np.stack([row["cells"].numpy() for row in step.trace])
    np.testing.assert_allclose(cells, step.data["trajectory"], rtol=0, atol=2e-5)
    scores = np.stack([row["logits"].sigmoid().numpy() for row in step.trace])
    np.testing.assert_allclose(scores, step.data["pass_scores"], rtol=0, atol=1e-5)


def test_losses_radii_and_shares_are_the_original_ones(step):
    found = {key: float(value.detach()) for key, value in step.losses.items()}
    expected = step.data["losses"]
    np.testing.assert_allclose([found["normal"], found["global"], found["local"]], expected[:3], rtol=0, atol=1e-5)
    radii = [found["_r_true"], found["_r_local"]]
    np.testing.assert_allclose(radii, [step.data["r_t"], step.data["r_f"]], rtol=0, atol=1e-5)
    np.testing.assert_allclose([found["_p_true"], found["_p_fake"]], [step.data["p_true"], step.data["p_fake"]])


def test_gradients_are_the_original_ones(step):
    for theirs, ours in NAMES.items():
        parameter = dict(step.network.named_parameters()).get(ours)
        if parameter is None or theirs in NO_GRADIENT or (theirs == "A_bias" and not step.sphere):
            continue
        expected = step.data[f"grad_{theirs}"]
        largest = np.abs(expected).max()
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=0, atol=2e-4 * largest, err_msg=theirs)


def test_running_statistics_went_through_all_passes(step):
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        found = getattr(step.network.discriminator.norm, name).numpy()
        np.testing.assert_allclose(found, step.data[f"after_D_body.block1.1.{name}"], rtol=2e-6, atol=2e-6)


def test_optimisers_move_the_weights_as_the_original_ones(step):
    for optimizer in glass.optimizers(step.network, 1e-4):
        optimizer.step()
    for theirs, ours in NAMES.items():
        if "running" in theirs or "num_batches" in theirs or theirs in NO_GRADIENT or theirs == "A_bias":
            continue
        gradient = np.abs(step.data[f"grad_{theirs}"])
        clear = gradient > 1e-3 * gradient.max()  # the first step of Adam is the sign of the gradient
        found = step.network.get_parameter(ours).detach().numpy()
        np.testing.assert_allclose(found[clear], step.data[f"after_{theirs}"][clear], rtol=0, atol=2e-6)


def test_focal_loss(golden):
    data = golden("glass/focal")
    for i in range(4):
        scores = torch.from_numpy(data[f"scores_{i}"]).flatten().requires_grad_()
        labels = torch.from_numpy(data[f"target_{i}"]).flatten()
        loss = glass_step.focal_loss(scores, labels)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(data[f"loss_{i}"]), abs=1e-6)
        assert float(loss.detach()) * len(scores) == pytest.approx(float(data[f"loss_sum_{i}"]), abs=1e-5)
        np.testing.assert_allclose(scores.grad.numpy(), data[f"grad_{i}"].ravel(), rtol=1e-5, atol=1e-7)


def test_the_judge_decides_as_the_original(golden):
    data = golden("glass/distribution_judge")
    for i, flag in enumerate(data["flags"]):
        rgb = np.ascontiguousarray(data[f"image_{i:02d}"][..., ::-1])  # stored as BGR
        verdict = glass_judge.judge(rgb)
        assert verdict.hypothesis == ("hypersphere" if flag else "manifold"), i
        n, radius, _, _, density_box, density_disc, _ = data["diagnostics"][i]
        assert verdict.n == n
        found = [verdict.radius, verdict.density_box, verdict.density_disc]
        np.testing.assert_allclose(found, [radius, density_box, density_disc], rtol=1e-9)


# -- the walk, by hand ------------------------------------------------------------------------------------------------


def walk(n_steps, noise, hypothesis_origin=None):
    """Ascend 40 random cells of width 6; returns them, the segments and the trace."""
    torch.manual_seed(0)
    discriminator = glass_step.Discriminator(6, 5).train()
    true, offset = torch.randn(40, 6), noise * torch.randn(40, 6)
    trace = []
    low = torch.tensor(0.5)
    segments = glass_step.ascend(discriminator, true, offset, hypothesis_origin, low, n_steps, 0.001, 5, trace)
    return true, segments, trace


@pytest.mark.parametrize("hypothesis_origin", [None, torch.ones(40, 6)])
def test_the_walk_does_not_depend_on_the_size_of_its_blocks(monkeypatch, hypothesis_origin):
    whole = walk(11, 0.4, hypothesis_origin=hypothesis_origin)[-1]
    monkeypatch.setattr(glass_step, "BLOCK", 35)  # 7 rows of 5: the last block is a short one
    blocks = walk(11, 0.4, hypothesis_origin=hypothesis_origin)[-1]
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one["cells"], other["cells"])


@pytest.mark.parametrize("hidden", [3, 4, 40])
def test_one_step_is_the_gradient_that_autograd_finds(hidden):
    torch.manual_seed(0)
    discriminator = glass_step.Discriminator(2, hidden).train()
    true, noisy, trace = torch.randn(30, 2), torch.randn(30, 2).requires_grad_(), []
    logits = discriminator(torch.cat([true, noisy]))[30:]
    gradient = torch.autograd.grad(torch.nn.functional.softplus(-logits).mean(), noisy)[0]
    expected = noisy + 0.1 * gradient / (gradient.norm(dim=1, keepdim=True) + 1e-10)
    glass_step.ascend(discriminator, true, noisy.detach() - true, None, torch.tensor(0.5), 2, 0.1, 5, trace=trace)
    torch.testing.assert_close(trace[1]["cells"], expected.detach(), rtol=1e-4, atol=1e-5)


# -- features and labels ----------------------------------------------------------------------------------------------


def test_token_labels_are_the_maximum_over_each_square():
    mask = np.zeros((32, 40), bool)
    mask[7, 8] = True  # one pixel: cell row 0, column 1
    mask[24:, 36] = True
    labels = glass.cell_labels(mask, (4, 5)).reshape(4, 5)
    assert np.argwhere(labels).tolist() == [[0, 1], [3, 4]]
    assert labels.sum() == 2


@pytest.mark.parametrize(("channels", "dim"), [((512, 1024), 1536), ((5, 7), 16), ((3, 4), 40)])
def test_the_embedding_by_convolution_is_the_literal_one(channels, dim):
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 5), (3, 3)]
    features = [torch.randn(1, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)]
    expected = patches.adaptive_pool_embedding(features, 3, 1, dim, dim)
    torch.testing.assert_close(glass.embed(features, 3, dim), expected, rtol=1e-4, atol=1e-5)


# -- the judge's modes ------------------------------------------------------------------------------------------------


def test_stored_decisions():
    stored = {"hypersphere": ("mvtec_ad/screw", "mad_man/bottle"), "manifold": ("mad_sys/carpet", "visa/pcb3")}
    for decision, places in (stored | {None: ("mvtec_ad/gear",)}).items():
        assert [glass_judge.stored(*place.split("/")) for place in places] == [decision] * len(places)
    assert pd.Series(glass_judge._decisions()).value_counts().to_dict() == {"manifold": 26, "hypersphere": 11}


def test_modes_of_the_hypothesis(train):
    train, screw = named(train, "mvtec_ad", "plate"), named(train, "mvtec_ad", "screw")
    assert glass_judge.decide(screw, "stored").hypothesis == "hypersphere"
    assert glass_judge.decide(screw, "opposite").hypothesis == "manifold"
    assert glass_judge.decide(screw, "manifold").why == "asked for"
    analysed = glass_judge.decide(train, "stored")  # no decision is stored for "plate"
    assert (analysed.hypothesis, analysed.n) == ("hypersphere", glass_judge.decide(screw, "analyse").n)
    assert glass_judge.decide(train, "opposite").hypothesis == "manifold"
    assert "strong frequencies" in str(analysed)


# -- the method -------------------------------------------------------------------------------------------------------

TINY = SMALL_SETTINGS["glass"]


@pytest.mark.parametrize("hypothesis", ["manifold", "hypersphere"])
def test_both_hypotheses_train_and_log(train, hypothesis):
    method = glass.Glass(**TINY | {"hypothesis": hypothesis}).fit(train)
    logged = {"normal", "global", "local", "p_true", "p_fake", "r_true", "r_global", "r_local"}
    assert logged <= set(method.history.losses.columns)
    assert np.isfinite(method.history.losses.to_numpy()).all()
    assert method.network.centre.shape == method.network.adaptor(method.mean_features).shape


@pytest.mark.parametrize("hypothesis", ["manifold", "hypersphere"])
def test_a_batch_of_a_bank_knows_its_anomalous_cells(train, hypothesis):
    settings = TINY | {"bank": 6, "cell_share": 0.25, "hypothesis": hypothesis}
    method = glass.Glass(**settings).prepare(train)
    normal, blended, labels = method.make_batch(0)
    assert normal.shape == blended.shape == (2, 64, 152)
    changed = (normal != blended).any(dim=2)
    assert changed[labels > 0.5].float().mean() > 0.9  # an anomalous cell differs from its normal one
    assert set(method.bank) <= set(range(6))
    method.settings = dataclasses.replace(method.settings, bank=1)  # of a smaller bank the other images are normal, too
    seen = {method.make_batch(step)[0][0].sum().item() for step in range(20)}
    assert len(seen) > 2


def test_heads_score_by_their_mean(train):
    method = glass.Glass(**TINY | {"heads": 3, "image_score": "top"}).fit(train)
    assert not torch.equal(method.network[0].adaptor.weight, method.network[1].adaptor.weight)  # other initial weights
    cells = torch.rand(5, 152)
    mean = sum(head.logits(cells) for head in method.network) / 3
    torch.testing.assert_close(method.network.logits(cells), mean)
    scores = method.score(torch.rand(2, 3, 64, 64))
    top = np.sort(scores.map.reshape(2, -1), axis=1)[:, -40:].mean(axis=1)  # 1 % of 64 x 64 pixels
    np.testing.assert_allclose(scores.image, top, rtol=1e-5)


def test_several_processes_can_share_a_step(train, tmp_path):
    """Through the wrapper of torch.distributed (a group of one) the gradients are those of the plain network."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        method = glass.Glass(**TINY).prepare(train)
        wrapped, passes, gradients = torch.nn.parallel.DistributedDataParallel(method.network.train()), [], []
        wrapped.register_forward_hook(lambda *_: passes.append(1))
        for network in (method.network, wrapped):
            torch.manual_seed(0)
            method.network.zero_grad()
            terms = method.losses({"network": network}, method.make_batch(0), 0)
            sum(value for key, value in terms.items() if key[0] != "_").backward()
            gradients.append(torch.cat([p.grad.flatten() for p in method.network.parameters()]))
    finally:
        torch.distributed.destroy_process_group()
    assert len(passes) == 1
    torch.testing.assert_close(gradients[0], gradients[1])


def test_averaged_weights_are_the_running_mean_of_the_snapshots(train):
    method = glass.Glass(**TINY | {"average": 0.5, "snapshot_every": 1, "steps": 3}).fit(train)
    states = [s["network"]["adaptor.weight"] for _, s in method.history.snapshots]
    first = glass.Glass(**TINY).prepare(train).network.adaptor.weight.detach()
    mean = first.lerp(states[0], 1 - 1 / 11)  # step 1 of step / (step + 10)
    mean = mean.lerp(states[1], 1 - 2 / 12)
    torch.testing.assert_close(method.network.adaptor.weight.detach(), mean)


def test_some_rows_prefer_anomalous_cells():
    labels = torch.zeros(100)
    labels[:5] = 1
    torch.manual_seed(0)
    normal, blended = glass_step.some_rows(labels, 0.2)
    assert len(normal) == len(blended) == len(set(blended.tolist())) == 20
    assert set(range(5)) <= set(blended.tolist())


def test_noise_in_units_of_the_data(train):
    rows = np.array([[[0.0, 0], [10, 0]], [[3, 4], [10, 1]]], np.float32)  # distances 5 and 1
    assert noise.cell_distance(rows) == 3
    changes = {"noise": "auto", "heads": 3, "bank": 6, "hypothesis": "manifold"}
    method = glass.Glass(**TINY | changes).prepare(train)
    small, large, third = method.units
    assert (small / large, third) == (pytest.approx(noise.LEVELS[0] / noise.LEVELS[1]), small)
    normal, blended, labels = (part.flatten(0, 1) for part in method.make_batch(0))
    head, far = method.network[0].train(), []
    for unit in (1.0, 3.0):  # a global anomaly lies three times as far from its normal cell
        trace = []
        drawn = torch.randn(normal.shape, generator=torch.Generator().manual_seed(0)) * 0.05
        glass_step.losses(head, normal, blended, labels, drawn, method.step_settings, trace, unit=unit)
        far.append((trace[-1]["cells"] - head.adaptor(normal)).norm(dim=1).mean().item())
    assert far[1] / far[0] == pytest.approx(3, rel=0.05)
    assert glass.Glass(**TINY | {"noise": "auto"}).fit(train.iloc[:1]).units[0] > 0  # one image


def test_features_are_scaled_to_the_asked_length(train):
    method = glass.Glass(**TINY | {"feature_norm": 2.0}).prepare(train)
    assert method.sigma_noise * 152**0.5 == pytest.approx(0.015 * 1536**0.5)  # the noise, too, at any width
    assert np.sqrt((method.features**2).sum(-1)).mean() == pytest.approx(2.0, rel=1e-4)
    again = method.embed(torch.from_numpy(method.images).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(again.flatten(2).transpose(1, 2).numpy(), method.features, rtol=1e-3, atol=1e-4)


def made_up_original(file, width=152, hidden=16):
    """A checkpoint of random weights in the shape of the authors' code."""
    network = glass_step.Network(width, hidden, 1)
    names = {"linear": "body.block1.0", "norm": "body.block1.1", "out": "tail.0"}
    head = {}
    for name, value in network.discriminator.state_dict().items():
        layer, _, rest = name.partition(".")
        head[f"{names[layer]}.{rest}"] = value
    adaptor = {f"layers.0fc.{name}": value for name, value in network.adaptor.state_dict().items()}
    torch.save({"discriminator": head, "pre_projection": adaptor}, file)
    return network.eval()


def test_original_weights_give_the_original_scores(golden, tmp_path):
    data = golden("glass/step_manifold_default")
    state = {key[len("init_D_") :]: torch.from_numpy(data[key]) for key in data if key.startswith("init_D_")}
    adaptor = {f"layers.0fc.{part}": torch.from_numpy(data[f"init_A_{part}"]) for part in ("weight", "bias")}
    torch.save({"discriminator": state, "pre_projection": adaptor}, tmp_path / "ckpt.pth")
    network = glass.read_original(tmp_path / "ckpt.pth").eval()
    x = torch.from_numpy(data["features_normal"])
    u = torch.nn.functional.linear(x, adaptor["layers.0fc.weight"], adaptor["layers.0fc.bias"])
    np.testing.assert_allclose(network.adaptor(x).detach().numpy(), data["u"], atol=1e-6)
    h = torch.nn.functional.linear(u, state["body.block1.0.weight"], state["body.block1.0.bias"])
    mean, var = state["body.block1.1.running_mean"], state["body.block1.1.running_var"]
    h = (h - mean) / (var + 1e-5).sqrt() * state["body.block1.1.weight"] + state["body.block1.1.bias"]
    expected = (torch.nn.functional.leaky_relu(h, 0.2) @ state["tail.0.weight"].T)[:, 0]
    torch.testing.assert_close(network.logits(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_original_weights_score_and_get_thresholds_and_are_saved(train, tmp_path):
    file = tmp_path / "ckpt.pth"
    network = made_up_original(file)
    method = glass.Glass(**TINY | {"feature_norm": 3.0})  # of a training here; theirs know nothing of it
    method.use_original(file)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cells = method.embed(images).flatten(2).transpose(1, 2)  # (2, 64, 152)
    with torch.no_grad():
        expected = torch.stack([network.logits(rows).sigmoid().max() for rows in cells])
    scores = method.score(images)
    np.testing.assert_allclose(scores.image, expected, rtol=1e-5)
    refused("not fitted", method.save, tmp_path / "model")
    method.use_original(file, normals=train)
    method.save(tmp_path / "model")
    again = glass.Glass.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score(images).map, scores.map)
    np.testing.assert_array_equal(again.normal_scores, method.normal_scores)
    assert len(again.normal_scores) == len(again.normal_map_maxima) == len(train)
    assert thresholds.from_normals(again.normal_scores, "max").value == pytest.approx(method.normal_scores.max())
    stored, _ = own_parts.set_threshold(tmp_path / "model", Path(train.image_path.iloc[0]).parent, "max")
    assert stored["threshold"]["value"] == pytest.approx(method.normal_scores.max())
    assert stored["pixel_threshold"]["value"] == pytest.approx(method.normal_map_maxima.max())


def test_original_weights_that_do_not_fit_the_settings(tmp_path):
    made_up_original(tmp_path / "ckpt.pth")
    (tmp_path / "other.pth").write_bytes(b"nothing")
    for file, changes, match in (
        ("ckpt.pth", {"embedding_dim": 40}, "width 152 and hidden width 16, these settings make 1 of 40 and 16"),
        ("ckpt.pth", {"hidden": 8}, "these settings make 1 of 152 and 8; set heads=1, hidden=16"),
        ("ckpt.pth", {"heads": 2}, "these settings make 2 of"),
        ("other.pth", {}, "not one of the authors' GLASS code"),
    ):
        refused(match, glass.Glass(**TINY | changes).use_original, tmp_path / file)


# -- what "paper" means -----------------------------------------------------------------------------------------------


def named(table, dataset, category):
    """The same images under another name."""
    table = table.assign(category=category)
    table.attrs = {"dataset": dataset}
    return table


ENLARGED = [("mvtec_ad", "wood", 73), ("mad_man", "toothbrush", 73)]  # 64 * 329 / 288 = 73.1


@pytest.mark.parametrize(("dataset", "category", "scale"), [*ENLARGED, ("mvtec_ad", "screw", 64), ("visa", "wood", 64)])
def test_paper_enlarges_two_categories_before_the_crop(train, tmp_path, dataset, category, scale):
    settings = TINY | {"resize": "paper", "steps": 1}
    method = glass.Glass(**settings).fit(named(train, dataset, category))
    assert (method.resize.scale, method.resize.hw) == (scale, (64, 64))
    oblong = glass.Glass(**settings | {"image_size": [64, 96]}).resize  # no side may be below the crop
    assert (oblong.hw, oblong.scale) == ((64, 96), 96)
    method.save(tmp_path)
    assert glass.Glass.load(tmp_path).resize == method.resize
    made_up_original(tmp_path / "ckpt.pth")
    original = glass.Glass(**settings).use_original(tmp_path / "ckpt.pth", normals=named(train, dataset, category))
    assert original.resize == method.resize


@pytest.mark.parametrize(
    ("dataset", "masked"), [("mvtec_ad", True), ("mad_man", True), ("mpdd", False), ("own", False)]
)
def test_paper_masks_the_product_only_where_the_authors_do(train, monkeypatch, dataset, masked):
    asked = []
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    monkeypatch.setattr(glass.synthesis, "foreground", lambda image, rule: asked.append(rule) or half)
    method = glass.Glass(**TINY | {"foreground": "paper"}).prepare(named(train, dataset, "screw"))
    assert (method._foreground(0) is not None) == bool(asked) == masked


# -- bad input --------------------------------------------------------------------------------------------------------


def test_foregrounds_that_cannot_be_used(train, tmp_path):
    def unusable(folder, said, **changes):
        refused(said, glass.Glass(**TINY | {"foreground": str(tmp_path / folder)} | changes).fit, train)

    unusable("none", "foreground folder .* does not exist")
    (tmp_path / "masks/plate").mkdir(parents=True)
    unusable("masks", "foreground mask .*000.png is missing")
    for path in train.image_path:
        write_image(tmp_path / "masks/plate" / Path(path).name, np.full((64, 64), 255, np.uint8))
    write_image(tmp_path / "masks/plate/001.png", np.full((32, 64), 255, np.uint8))
    unusable("masks", r"\(32, 64\), its image \(64, 64\); sizes must agree", hold_out=0.34)


def test_foregrounds_from_files_are_obeyed(train, tmp_path):
    inside = np.zeros((64, 64), np.uint8)
    inside[:, :20] = 255
    for path in train.image_path:
        write_image(tmp_path / "plate" / Path(path).name, inside)
    method = glass.Glass(**TINY | {"foreground": str(tmp_path)}).prepare(train)
    for seed in range(5):
        image, mask = method.blend(0, np.random.default_rng(seed), "glass_las")
        assert mask.any()
        assert not mask[:, 20:].any()
        assert (image[~mask] == method.images[0][~mask]).all()


def test_textures_are_found_by_name_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_DATA", str(tmp_path))
    (tmp_path / "dtd").mkdir()
    found = {"dtd": tmp_path / "dtd", str(tmp_path): tmp_path, "dtd?": tmp_path / "dtd", "": None}
    found |= {"no such": Path("no such"), "no such?": None}  # refused by Sources; made on the spot then
    found |= {"mixed": "mixed", "no such?mixed": "mixed", "dtd?mixed": tmp_path / "dtd"}
    assert {name: glass.texture_folder(name) for name in found} == found
    (tmp_path / "root/beside").mkdir(parents=True)
    image = tmp_path / "root/mvtec_ad/wood/train/good/000.png"
    assert glass.texture_folder("beside", image) == tmp_path / "root/beside"
