"""ULSAD's local branch on small features: what each remedy is worth, and accuracy against steps and time. No GPU.

    python benchmarks/ulsad_accuracy.py --data-root DIR --dataset mvtec_ad --category screw --cache DIR

Features of all images are computed once (and kept in `--cache`); then each variant trains the reconstruction network
on them, without the global branch. Every look writes two kinds of numbers: `held_*` on normal images kept from
training, most of them damaged by families that no training here knows (CutPaste, its scar, NSA), and the test set's.
Variants and readings are chosen by the first kind alone; the second tells what the choice was worth. Of a large
category (`--thin`) every second training image is used, every second good and every third bad test image.
Rows go to results/studies/ulsad_accuracy.csv.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from adlib import datasets, images, synthesis
from adlib.evaluation import metrics
from adlib.images.features import channels_first, picture_features
from adlib.images.maps import enlarge, smooth
from adlib.methods import training
from adlib.methods.ulsad import maps as ulsad_maps
from adlib.methods.ulsad import step as ulsad_step
from adlib.methods.ulsad.ulsad import BORDER, SIGMA, ULSAD, channel_statistics, disturbed
from adlib_book import studies

FAMILIES = ("cutpaste", "cutpaste_scar", "nsa")
SIZE, GRID, CHANNELS, N_SAMPLE = 256, (32, 32), 96, 128


@dataclass(frozen=True)
class Variant:
    """One way to train; all with a rate of 0.001 that falls."""

    name: str
    noise: float = 0.0
    hidden: float = 0.0
    batch_size: int = 4
    half: bool = True  # bfloat16
    looks: tuple[int, ...] = (400,)  # steps at which it is measured; the last ends the training


VARIANTS = (
    Variant("batch 8, float32", batch_size=8, half=False, looks=(100, 300)),
    Variant("batch 4"),
    Variant("batch 4, hidden 0.3", hidden=0.3),
    Variant("batch 4, hidden 0.5", hidden=0.5),
    Variant("batch 4, noise 0.5, hidden 0.3", noise=0.5, hidden=0.3),
)


def prepare(table, thin: bool) -> dict:
    """Pooled features (n, h, w, C) of training, held-out and test images, with labels and masks."""
    train, test = table[(table.split == "train") & (table.label == 0)], table[table.split == "test"]
    if thin:
        train = train.iloc[::2]
        test = pd.concat([test[test.label == 0].iloc[::2], test[test.label == 1].iloc[::3]])
    train.attrs.update(table.attrs)
    train, held = datasets.hold_out(train, 0.15 if thin else 0.25, 0)
    method = ULSAD(backbone="tf_efficientnet_lite0", image_size=SIZE, context=32, channels=CHANNELS)

    def features(pictures):
        return picture_features(np.stack(pictures), method.embed, 8)

    def read(paths):
        return [method.resize.image(images.read_image(path))[0] for path in paths]

    split = synthesis.SyntheticSplit(
        held, FAMILIES, number=len(held) * (4 if thin else 8), share=0.5, seed=0, resize=method.resize
    )
    items = [split[i] for i in range(len(split))]
    clean = [k for k, item in enumerate(items) if not item.label][: len(held)]  # each image once
    items = [items[k] for k in clean] + [item for item in items if item.label]
    masks = [np.zeros((SIZE, SIZE), bool) if mask is None else mask for mask in datasets.masks(test)]
    found = {"train": features(read(train.image_path)), "test": features(read(test.image_path))}
    mean, std = channel_statistics(found["train"])
    found["held"] = features([item.image for item in items])
    found = {name: (block - mean) / std for name, block in found.items()}
    found["test_labels"], found["held_labels"] = test.label.to_numpy(), np.array([item.label for item in items])
    found["test_masks"] = np.stack([method.resize.mask(mask) for mask in masks])
    found["held_masks"] = np.stack([item.mask for item in items])
    return found


def readings(data: dict, net) -> dict[str, dict[str, torch.Tensor]]:
    """Ways to make a map of features and their reconstruction: name -> part -> maps (n, h, w)."""
    with torch.inference_mode():
        features = {part: channels_first(data[part], "cpu") for part in ("train", "held", "test")}
        features["train"] = features["train"][:N_SAMPLE]
        left = {part: f - torch.cat([net(x)[:, :CHANNELS] for x in f.split(8)]) for part, f in features.items()}
        plain = {part: ulsad_step.dissimilarity(f, f - left[part]) for part, f in features.items()}
        mean, std = ulsad_maps.place_statistics(plain["train"][:, None])[:, 0]
        found = {"d (paper)": plain, "d, place by place": {part: (m - mean) / std for part, m in plain.items()}}
        for name, rows in (("whitened residual", left), ("whitened features", features)):
            fitted = ulsad_maps.whitening(rows["train"][:, None])
            found[name] = {part: ulsad_maps.whitened_maps(r[:, None], *fitted)[:, 0] for part, r in rows.items()}
    return found


def measure(data: dict, small: dict[str, torch.Tensor]) -> dict:
    """Metrics of the enlarged, smoothed maps on held-out and test images."""
    row = {}
    for prefix, part in (("held_", "held"), ("", "test")):
        maps = smooth(enlarge(small[part], (SIZE, SIZE)).numpy(), SIGMA, BORDER)
        pixel = metrics.pixel_metrics(list(maps), list(data[f"{part}_masks"]))
        scores = maps.max(axis=(1, 2)).astype(np.float64)
        values = metrics.image_metrics(scores, data[f"{part}_labels"]) | pixel
        names = ("image_auroc", "pixel_auroc", "aupro_30", "pixel_ap")
        row |= {f"{prefix}{name}": round(float(values[name]), 3) for name in names}
    return row


def run(data: dict, v: Variant, seed: int) -> list[dict]:
    """Train one variant; a row a look and reading."""
    torch.manual_seed(seed)
    net = ulsad_step.ReconstructionNet(CHANNELS, final_relu=False).to(memory_format=torch.channels_last)
    ulsad_step.GlobalNet(CHANNELS, (SIZE, SIZE), GRID)  # ULSAD makes both, from one stream of random numbers
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=2e-5, fused=True)
    falling = training.warm_up_cosine(optimizer, v.looks[-1], 0.05, 0.01)
    seconds, rows = 0.0, []
    for step in range(1, v.looks[-1] + 1):
        started = time.process_time()
        net.train()
        f = channels_first(data["train"][training.epoch_rows(len(data["train"]), v.batch_size, seed, step - 1)], "cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=v.half):
            reconstructed = net(disturbed(f, v.noise, v.hidden)).float()
        optimizer.zero_grad()
        ulsad_step.local_loss(f, reconstructed).backward()
        optimizer.step()
        falling.step()
        seconds += time.process_time() - started
        if step in v.looks:
            for name, small in readings(data, net.eval()).items():
                row = {"variant": v.name, "seed": seed, "step": step, "cpu_s": round(seconds), "reading": name}
                rows.append(row | measure(data, small))
    return rows


def load(options) -> dict:
    """Features of a category, from the cache where they are."""
    file = Path(options.cache) / f"ulsad_{options.category}.npz" if options.cache else None
    if file and file.is_file():
        return dict(np.load(file))
    data = prepare(datasets.load(options.dataset, options.data_root, options.category), options.thin)
    if file:
        np.savez(file, **data)
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", default="mvtec_ad")
    parser.add_argument("--category", required=True)
    parser.add_argument("--thin", action="store_true", help="use a part of a large category")
    parser.add_argument("--cache", default="", help="folder to keep the features in")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    features = load(options)
    for number in range(len(VARIANTS)) if options.only is None else options.only:
        for seed in options.seeds:
            rows = [{"category": options.category} | row for row in run(features, VARIANTS[number], seed)]
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
            studies.write_rows("ulsad_accuracy", pd.DataFrame(rows))
