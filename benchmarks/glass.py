"""One training step of GLASS: ours beside the original's arithmetic, same sizes, same weights, same inputs, in turns.

    python benchmarks/glass.py

"theirs" is written here from the description of the original: every one of the 21 passes goes through the whole
discriminator with autograd, the backbone sees normal and blended images in every step, features are unfolded before
they are pooled, noise masks come from a lattice that is expanded to pixels, textures go through torchvision.
Textures are random arrays in memory on both sides, so no disk is measured. Both sides get the same noise for the
ascent, and their losses are compared.
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SIZE, BATCH, REPEATS = 256, 8, 3
SETTINGS = SimpleNamespace(hypothesis="manifold", n_ascent=20, step_size=0.001, radius=0.75, p=0.5)


# -- the original's arithmetic ----------------------------------------------------------------------------------------


def their_losses(adaptor, discriminator, normal, blended, labels, centre, noise) -> list[float]:
    """21 passes, three losses, one backward pass; `discriminator` returns probabilities (N, 1)."""
    u, v = adaptor(normal), adaptor(blended)
    centre = centre.repeat(len(u) // len(centre), 1)
    distances = torch.cat([(v[labels == 0] - centre[labels == 0]).norm(dim=1), (u - centre).norm(dim=1)])
    torch.quantile(distances, 0.75)
    g = u + noise
    bce = nn.BCELoss()
    for step in range(21):
        scores = discriminator(torch.cat([u, g]))
        true, fake = scores[: len(u)], scores[len(u) :]
        true_loss, fake_loss = bce(true, torch.zeros_like(true)), bce(fake, torch.ones_like(fake))
        if step == 20:
            break
        gradient = torch.autograd.grad(fake_loss, [g], retain_graph=True)[0]
        gradient = gradient / (gradient.norm(dim=1, keepdim=True) + 1e-10)
        with torch.no_grad():
            g.add_(0.001 * gradient)
        if (step + 1) % 5 == 0:
            offset = g - u
            length = offset.norm(dim=1, keepdim=True)
            g = u + offset * (length.clamp(0.5, 1.0) / (length + 1e-10))
    scores = discriminator(v)
    target = labels[:, None]
    error = (scores.detach() - target) ** 2
    kept = error >= torch.quantile(error, 0.5)
    scores, target = scores[kept][:, None], target[kept][:, None]
    rows, one_hot = torch.cat([1 - scores, scores], 1), torch.cat([1 - target, target], 1).clamp(1e-5, 1 - 1e-5)
    p = (rows * one_hot).sum(1) + 1e-5
    focal = (-((1 - p) ** 2) * p.log()).mean()
    (true_loss + fake_loss + focal).backward()
    return [float(x.detach()) for x in (true_loss, fake_loss, focal)]


def their_embedding(features, width: int) -> torch.Tensor:
    """Unfold windows, bring them to the first map's grid, pool each layer to `width`, pool both to `width`."""
    grid, vectors = features[0].shape[-2:], []
    for feature in features:
        windows = F.unfold(feature, 3, padding=1).unflatten(2, feature.shape[-2:])  # (B, C 9, h, w)
        windows = F.interpolate(windows, size=grid, mode="bilinear", align_corners=False)
        rows = windows.flatten(2).transpose(1, 2).flatten(0, 1)  # (B h w, C 9)
        vectors.append(F.adaptive_avg_pool1d(rows[:, None], width)[:, 0])
    stacked = torch.stack(vectors, 1).flatten(1)
    return F.adaptive_avg_pool1d(stacked[:, None], width)[:, 0]


def their_noise(rng) -> np.ndarray:
    """Lattice noise with gradients expanded to pixels, rotated, thresholded."""
    cells = [2 ** int(e) for e in rng.integers(0, 6, 2)]
    step = [SIZE // c for c in cells]
    angles = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], -1)
    expanded = gradients.repeat(step[0], 0).repeat(step[1], 1)
    axes = [np.arange(SIZE) / s % 1 for s in step]
    y, x = np.meshgrid(*axes, indexing="ij")

    def corner(dy, dx):
        block = expanded[dy * step[0] : dy * step[0] + SIZE, dx * step[1] : dx * step[1] + SIZE]
        return (np.stack([y - dy, x - dx], -1) * block).sum(-1)

    ty, tx = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y, x))
    top = corner(0, 0) + tx * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + tx * (corner(1, 1) - corner(1, 0))
    field = np.sqrt(2) * (top + ty * (bottom - top))
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-90, 90), 1)
    return cv2.warpAffine(field, matrix, (SIZE, SIZE)) > 0.5


def their_local_anomaly(image, texture, rng):
    """One blended image, float (3, H, W), and the labels of its cells, float (h w,)."""
    from torchvision.transforms import v2

    while True:
        first, second, draw = their_noise(rng), their_noise(rng), rng.random()
        mask = first | second if draw > 2 / 3 else first & second if draw > 1 / 3 else first
        labels = F.max_pool2d(torch.from_numpy(mask[None].astype(np.float32)), 8)
        if labels.any():
            break
    operations = [
        v2.ColorJitter(contrast=0.2), v2.ColorJitter(brightness=0.2), v2.ColorJitter(saturation=0.2, hue=0.2),
        v2.RandomHorizontalFlip(1), v2.RandomVerticalFlip(1), v2.Grayscale(3), v2.RandomAutocontrast(1),
        v2.RandomEqualize(1), v2.RandomRotation(45),
    ]  # fmt: skip
    drawn = [operations[i] for i in rng.permutation(9)[:3]]
    to_tensor = [v2.CenterCrop(SIZE), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    prepare = v2.Compose([v2.Resize(SIZE), *drawn, *to_tensor])
    texture = prepare(Image.fromarray(texture))
    beta = float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))
    inside = torch.from_numpy(mask.astype(np.float32))
    return image * (1 - inside) + (1 - beta) * texture * inside + beta * image * inside, labels.flatten()


class TheirDiscriminator(nn.Module):
    """The same layers as ours, with the sigmoid inside."""

    def __init__(self, ours):
        super().__init__()
        self.layers = nn.Sequential(ours.linear, ours.norm, nn.LeakyReLU(0.2), ours.out, nn.Sigmoid())

    def forward(self, cells):
        """Return probabilities (N, 1)."""
        return self.layers(cells)


# -- the comparison ---------------------------------------------------------------------------------------------------


def compare_passes(width: int, hidden: int, repeats: int = REPEATS) -> dict:
    """21 passes, losses and backward on given cells."""
    from adlib.methods.glass import step as glass_step

    generator = torch.Generator().manual_seed(0)
    n, positions = BATCH * 1024, 1024
    torch.manual_seed(0)
    network = glass_step.Network(width, hidden, positions)
    normal = torch.randn(n, width, generator=generator)
    blended = normal + torch.randn(n, width, generator=generator)
    labels = (torch.rand(n, generator=generator) < 0.1).float()
    noise = torch.randn(n, width, generator=generator) * 0.588 / width**0.5
    times, found = {"ours": [], "theirs": []}, {}
    for _ in range(repeats):
        ours, copied = copy.deepcopy(network).train(), copy.deepcopy(network).train()
        theirs = TheirDiscriminator(copied.discriminator)
        started = time.perf_counter()
        terms = glass_step.losses(ours, normal, blended, labels, noise, SETTINGS)
        sum(value for key, value in terms.items() if key[0] != "_").backward()
        middle = time.perf_counter()
        found["theirs"] = their_losses(copied.adaptor, theirs, normal, blended, labels, copied.centre, noise)
        times["theirs"].append(time.perf_counter() - middle)
        times["ours"].append(middle - started)
        found["ours"] = [float(terms[key].detach()) for key in ("normal", "global", "local")]
    gap = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    return row("GLASS: ascent, losses, gradients", f"{n} cells, D {width}, hidden {hidden}", times, gap)


def compare_steps(width: int, hidden: int, repeats: int = REPEATS) -> dict:
    """A whole step: local synthesis, backbone, passes, gradients, optimiser steps."""
    from adlib import images
    from adlib.methods.glass.glass import Glass

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for kind, number, size in (("train", 16, SIZE), ("texture", 8, 300)):
            (Path(folder) / kind).mkdir()
            for i in range(number):
                pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder) / kind / f"{i:03d}.png")
        method = Glass(
            backbone="tf_efficientnet_lite0", image_size=SIZE, resize="stretch", embedding_dim=width,
            hidden=hidden, hypothesis="manifold", batch_size=BATCH, foreground="none",
            textures=f"{folder}/texture",
        )  # fmt: skip
        paths = [str(path) for path in sorted(Path(folder).glob("train/*"))]
        method.prepare(pd.DataFrame({"image_path": paths, "category": "noise"}))
        textures = [images.read_image(path) for path in sorted(Path(folder).glob("texture/*"))]
        for step in range(4):  # both sides have the textures in memory
            method.make_batch(step)
        return _steps(method, textures, rng, width, hidden, repeats)


def _steps(method, textures, rng, width: int, hidden: int, repeats: int) -> dict:
    from adlib.images import backbones
    from adlib.methods.glass.glass import optimizers

    ours_network = method.network.train()
    ours_optimizers = optimizers(ours_network, 1e-4)
    network = copy.deepcopy(ours_network)
    their_optimizers, theirs = optimizers(network, 1e-4), TheirDiscriminator(network.discriminator)
    backbone = backbones.create("tf_efficientnet_lite0", image_size=(SIZE, SIZE), fold=False)
    tensors = torch.from_numpy(method.images).permute(0, 3, 1, 2).float() / 255
    times = {"ours": [], "theirs": []}
    for step in range(repeats):
        started = time.perf_counter()
        terms = method.losses({"network": ours_network}, method.make_batch(step + 1), step + 1)
        sum(value for key, value in terms.items() if key[0] != "_").backward()
        update(ours_optimizers)
        middle = time.perf_counter()
        normal = tensors[rng.permutation(len(tensors))[:BATCH]]
        pairs = [their_local_anomaly(image, textures[rng.integers(len(textures))], rng) for image in normal]
        with torch.no_grad():
            a, b = (their_embedding(backbone(x), width) for x in (normal, torch.stack([p[0] for p in pairs]).float()))
        noise = torch.randn(a.shape) * 0.588 / width**0.5
        labels = torch.cat([p[1] for p in pairs])
        their_losses(network.adaptor, theirs, a, b, labels, network.centre, noise)
        update(their_optimizers)
        times["theirs"].append(time.perf_counter() - middle)
        times["ours"].append(middle - started)
    return row("GLASS: whole training step", f"batch {BATCH}, {SIZE} px, Lite0, D {width}, hidden {hidden}", times)


def update(optimizers) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def row(benchmark: str, size: str, times: dict, gap: float | None = None) -> dict:
    """One line of results/benchmarks.csv; the first repetition warms up and is left out."""
    middle = {side: statistics.median(values[1:]) for side, values in times.items()}
    return {
        "benchmark": benchmark,
        "size": f"{size}, threads {torch.get_num_threads()}",
        "ours": round(middle["ours"], 3),
        "theirs": round(middle["theirs"], 3),
        "ratio": round(middle["theirs"] / middle["ours"], 2),
        "unit": "s",
        "note": "" if gap is None else f"largest difference of a loss {gap:.1e}",
    }


def main() -> list[dict]:
    """Return the rows of results/benchmarks.csv."""
    return [compare_passes(256, 256), compare_steps(256, 256), compare_passes(256, 1024, 2)]


if __name__ == "__main__":
    torch.set_num_threads(2)
    for line in main():
        print(line)
    sys.exit()
