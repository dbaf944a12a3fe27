"""GLASS on small features: accuracy against steps and time, and what each remedy is worth. Real categories, no GPU.

    python benchmarks/glass_accuracy.py --data-root DIR --dataset mvtec_ad --category screw --textures DTD_DIR

The features of all images are computed once (and kept in `--cache`); then each variant trains its head on them. Every
look writes two kinds of numbers: `held_*` on normal images kept from training, half of them damaged by families that
the training never uses (CutPaste, its scar, NSA), and the test set's. Variants are chosen by the first kind alone; the
second tells what the choice was worth. Rows go to results/studies/glass_accuracy.csv.
"""

import argparse
import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from adlib import datasets, images, synthesis
from adlib.evaluation import metrics
from adlib.images.maps import top_mean, upsample_and_smooth
from adlib.methods.glass.glass import Glass, cell_labels, optimizers
from adlib.methods.glass.step import Ensemble, Network, some_rows
from adlib_book import studies

HELD_OUT_FAMILIES = ("cutpaste", "cutpaste_scar", "nsa")
N_BLENDED, SIZE, GRID, WIDTH = 240, 256, (32, 32), 152
PAPER_NOISE = 0.015 * 1536**0.5  # length of the paper's noise


@dataclass(frozen=True)
class Variant:
    """One way to train; the first is the paper's on features as they are, but for its width."""

    name: str
    lr: float = 1e-4  # of the adaptor; the discriminator's is twice that
    norm: float | None = None  # mean length of a cell; None: as they are
    prepare: str = "none"  # none, standardise (every channel to deviation 1), whiten (all principal components)
    noise: float = PAPER_NOISE  # length of the noise on a global anomaly
    families: str = "glass_las"  # or "mixed"
    hypothesis: str = "manifold"
    average: float = 0.0  # decay of the running mean of the weights
    hidden: int = 128
    cell_share: float = 0.25
    patch_size: int = 3  # neighbourhood whose mean is a cell, cells
    heads: int = 1  # networks that learn from the same batches and score together
    looks: tuple[int, ...] = (150,)  # steps at which it is measured; the last ends the training


CURVE = (50, 100, 150, 250)
PAPER = Variant("paper's rate, features as they are", looks=CURVE)
FAST = replace(PAPER, name="rate x 10", lr=1e-3, looks=(150,))
VARIANTS = (
    PAPER,
    replace(FAST, looks=CURVE),
    replace(FAST, name="rate x 10, length 10, averaged", norm=10.0, average=0.97, looks=CURVE),
    replace(FAST, name="rate x 10, length 1, averaged", norm=1.0, average=0.97),
    replace(FAST, name="rate x 10, standardised, averaged", prepare="standardise", average=0.97),
    replace(FAST, name="rate x 10, whitened, averaged", prepare="whiten", average=0.97),
    replace(
        FAST, name="rate x 10, whitened, noise x 5, averaged", prepare="whiten", noise=5 * PAPER_NOISE, average=0.97
    ),
    replace(FAST, name="rate x 10, length 10, four families, averaged", norm=10.0, families="mixed", average=0.97),
    replace(
        FAST, name="rate x 10, length 10, hypersphere, averaged", norm=10.0, hypothesis="hypersphere", average=0.97
    ),
    replace(FAST, name="rate x 10, length 10, averaged, 5 heads", norm=10.0, average=0.97, heads=5, looks=CURVE),
    replace(FAST, name="rate x 10, length 10, averaged, window 1", norm=10.0, average=0.97, patch_size=1, looks=CURVE),
    replace(
        FAST, name="rate x 10, length 10, averaged, window 1, 5 heads", norm=10.0, average=0.97, patch_size=1, heads=5,
        looks=CURVE,
    ),
)  # fmt: skip
STEP = {"n_ascent": 5, "step_size": 0.004, "radius": 0.75, "p": 0.5}


# -- features ---------------------------------------------------------------------------------------------------------


def prepare(table, textures: str, every: int, patch_size: int) -> dict:
    """Cells (float16), labels and masks of training, held-out and test images; `every` n-th of a large category."""
    train, test = table[(table.split == "train") & (table.label == 0)], table[table.split == "test"]
    attributes = table.attrs
    train, held = datasets.hold_out(train.iloc[::every], 0.2, 0)
    test = pd.concat([test[test.label == label].iloc[:: -(-every * 2 // 3)] for label in (0, 1)])
    train.attrs.update(attributes)
    method = Glass(
        backbone="tf_efficientnet_lite0", image_size=SIZE, resize="stretch", embedding_dim=None,
        hidden=128, hypothesis="manifold", textures=textures, bank=N_BLENDED, patch_size=patch_size,
    )  # fmt: skip

    def features(pictures):
        blocks = [method.embed(images.to_tensor(pictures[i : i + 8])) for i in range(0, len(pictures), 8)]
        return torch.cat(blocks).flatten(2).transpose(1, 2).half().numpy()  # (n, L, D)

    def read(paths):
        return [method.resize.image(images.read_image(path))[0] for path in paths]

    masks = [np.zeros((SIZE, SIZE), bool) if mask is None else mask for mask in datasets.masks(test)]
    found = {
        "test": features(read(test.image_path)),
        "test_labels": test.label.to_numpy(),
        "test_masks": np.stack([method.resize.mask(mask) for mask in masks]),
    }
    split = synthesis.SyntheticSplit(
        held, HELD_OUT_FAMILIES, number=4 * len(held), share=0.5, seed=0, resize=method.resize
    )
    items = [split[i] for i in range(len(split))]
    clean = [k for k, item in enumerate(items) if not item.label][: len(held)]  # each image once
    items = [items[k] for k in clean] + [item for item in items if item.label]
    found["held"] = features([item.image for item in items])
    found["held_labels"] = np.array([item.label for item in items])
    found["held_masks"] = np.stack([item.mask for item in items])
    method.prepare(train)
    found["train"] = method.features.astype(np.float16)
    for name, families in (("glass_las", ("glass_las",)), ("mixed", ("glass_las", "perlin_dtd", "memseg", "splice"))):
        pictures, labels = [], []
        for k in range(N_BLENDED):
            rng, family = np.random.default_rng([7, k]), families[k % len(families)]
            picture, mask = method.blend(k % len(train), rng, family)
            pictures.append(picture)
            labels.append(cell_labels(mask, GRID))
        found[name], found[f"{name}_labels"] = features(pictures), np.stack(labels)
    return found


def transform(cells: np.ndarray, v: Variant):
    """Fit `v.prepare` and `v.norm` to training cells (n, L, D); return the function that applies them."""
    rows = cells.reshape(-1, cells.shape[-1]).astype(np.float64)
    mean, matrix = np.zeros(rows.shape[1]), np.eye(rows.shape[1])
    if v.prepare != "none":
        mean = rows.mean(0)
        values, vectors = np.linalg.eigh(np.cov(rows.T))
        matrix = (
            np.diag(1 / rows.std(0)) if v.prepare == "standardise" else vectors / np.sqrt(values + 1e-3 * values.mean())
        )
    if v.norm:
        matrix = matrix * v.norm / np.sqrt((((rows[::13] - mean) @ matrix) ** 2).sum(-1)).mean()
    mean, matrix = (torch.from_numpy(part).float() for part in (mean, matrix))
    return lambda part: (torch.from_numpy(part.astype(np.float32)) - mean) @ matrix


# -- one variant ------------------------------------------------------------------------------------------------------


def measure(network, cells, labels, masks, apply, prefix: str) -> dict:
    """Image AUROC of the largest cell and of the smoothed map's highest per cent, pixel AUROC, AUPRO."""
    with torch.no_grad():
        found = [network.logits(apply(part).flatten(0, 1)).sigmoid() for part in np.array_split(cells, 8)]
    grid = torch.cat(found).reshape(-1, *GRID)
    maps = upsample_and_smooth(grid, (SIZE, SIZE), 4.0)
    pixel = metrics.pixel_metrics(list(maps), list(masks))
    image = metrics.image_metrics(grid.flatten(1).amax(1).double().numpy(), labels)["image_auroc"]
    top = metrics.image_metrics(top_mean(torch.from_numpy(maps)).double().numpy(), labels)["image_auroc"]
    values = {"image_auroc": image, "top_image_auroc": top} | {k: pixel[k] for k in ("pixel_auroc", "aupro_30")}
    return {f"{prefix}{key}": round(float(value), 4) for key, value in values.items()}


def run(data: dict, v: Variant, seed: int) -> list[dict]:
    """Train one variant; one row a look."""
    apply, (blended, labels) = transform(data["train"], v), (data[v.families], data[f"{v.families}_labels"])
    n, settings = len(data["train"]), SimpleNamespace(hypothesis=v.hypothesis, **STEP)
    torch.manual_seed(seed)
    heads = [Network(WIDTH, v.hidden, GRID[0] * GRID[1]) for _ in range(v.heads)]
    network = heads[0] if v.heads == 1 else Ensemble(heads)
    averaged = copy.deepcopy(network)
    both, rng = optimizers(network, v.lr), np.random.default_rng(seed)
    centre, seconds, rows = apply(data["train"].mean(0)), 0.0, []
    for step in range(1, v.looks[-1] + 1):
        started = time.process_time()
        chosen = rng.choice(len(blended), 8, replace=False)
        if step % 50 == 1:
            network.renew_centre(centre)
        x, y = apply(data["train"][chosen % n]).flatten(0, 1), torch.from_numpy(labels[chosen]).flatten()
        noise = torch.randn_like(x) * v.noise / WIDTH**0.5
        terms = network(x, apply(blended[chosen]).flatten(0, 1), y, noise, settings, rows=some_rows(y, v.cell_share))
        sum(value for key, value in terms.items() if key[0] != "_").backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(v.average, step / (step + 10))
        for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
            mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
        seconds += time.process_time() - started
        if step in v.looks:
            row = {"variant": v.name, "seed": seed, "step": step, "cpu_s": round(seconds, 1)}
            for prefix, part in (("held_", "held"), ("", "test")):
                row |= measure(
                    averaged.eval(), data[part], data[f"{part}_labels"], data[f"{part}_masks"], apply, prefix
                )
            rows.append(row)
    return rows


def load(options, patch_size: int) -> dict:
    """Cells of a category, from the cache where they are."""
    file = Path(options.cache) / f"glass_{options.category}_{patch_size}.npz" if options.cache else None
    if file and file.is_file():
        return dict(np.load(file))
    table = datasets.load(options.dataset, options.data_root, options.category)
    data = prepare(table, options.textures, options.every, patch_size)
    if file:
        np.savez(file, **data)
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", default="mvtec_ad")
    parser.add_argument("--category", required=True)
    parser.add_argument("--textures", default="")
    parser.add_argument("--every", type=int, default=1, help="take each n-th training image of a large category")
    parser.add_argument("--cache", default="", help="folder to keep the features in")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = {}
    for number in range(len(VARIANTS)) if options.only is None else options.only:
        size = VARIANTS[number].patch_size
        if size not in cells:
            cells = {size: load(options, size)}  # one window at a time in memory
        for seed in options.seeds:
            rows = [{"category": options.category} | row for row in run(cells[size], VARIANTS[number], seed)]
            print(pd.DataFrame(rows).to_string(header=seed == options.seeds[0], index=False), flush=True)
            studies.write_rows("glass_accuracy", pd.DataFrame(rows))
