"""GLASS against golden steps of the original, by hand, and as a whole."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adlib.methods import glass_judge, glass_step

STEPS = (
    "manifold_default",
    "manifold_inside",
    "manifold_outside",
    "hypersphere",
    "hypersphere_far",
    "no_mining",
    "no_ohem",
)
# Names of the original's weights -> ours.
NAMES = {
    "A_weight": "adaptor.weight",
    "A_bias": "adaptor.bias",
    "D_body.block1.0.weight": "discriminator.linear.weight",
    "D_body.block1.0.bias": "discriminator.linear.bias",
    "D_body.block1.1.weight": "discriminator.norm.weight",
    "D_body.block1.1.bias": "discriminator.norm.bias",
    "D_body.block1.1.running_mean": "discriminator.norm.running_mean",
    "D_body.block1.1.running_var": "discriminator.norm.running_var",
    "D_body.block1.1.num_batches_tracked": "discriminator.norm.num_batches_tracked",
    "D_tail.0.weight": "discriminator.out.weight",
}
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
    settings = SimpleNamespace(
        hypothesis="hypersphere" if sphere else "manifold",
        mining=bool(cfg["mining"]),
        n_ascent=cfg["step"],
        step_size=0.001,
        project_every=5,
        radius=0.75,
        p=cfg["p"],
        all_statistics=True,
    )
    arrays = (torch.from_numpy(data[name]) for name in ("features_normal", "features_las"))
    labels = torch.from_numpy(data["mask"]).float().flatten()
    trace = []
    losses = glass_step.losses(network, *arrays, labels, torch.from_numpy(data["noise"]), settings, trace)
    sum(value for key, value in losses.items() if key[0] != "_").backward()
    return SimpleNamespace(data=data, network=network, losses=losses, trace=trace, sphere=sphere)


def test_every_pass_of_the_ascent_is_the_original_one(step):
    np.testing.assert_allclose(
        np.stack([row["tokens"].numpy() for row in step.trace]), step.data["trajectory"], rtol=0, atol=2e-5
    )
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
        np.testing.assert_allclose(
            parameter.grad.numpy(), expected, rtol=0, atol=2e-4 * np.abs(expected).max(), err_msg=theirs
        )


def test_running_statistics_went_through_all_passes(step):
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        found = getattr(step.network.discriminator.norm, name).numpy()
        np.testing.assert_allclose(found, step.data[f"after_D_body.block1.1.{name}"], rtol=2e-6, atol=2e-6)


def test_optimisers_move_the_weights_as_the_original_ones(step):
    from adlib.methods.glass import optimizers

    for optimizer in optimizers(step.network, lr=1e-4, lr_discriminator=2e-4):
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
