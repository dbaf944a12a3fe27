"""What limits GLASS on small features? One change at a time, on cached features of a real category.

    python benchmarks/glass_remedies.py --data-root DIR --category screw --textures DTD_DIR

Head only: features of normal, of test and of 240 blended images are computed once; then each variant trains on a
quarter of the tokens with a manifold hypothesis, and its last step is tested. The test set is looked at here to learn
what matters. Results go to results/studies/glass_remedies.csv.
"""

import argparse
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from adlib import datasets, images, metrics, synthesis
from adlib.methods.glass import Glass, optimizers, some_rows, token_labels
from adlib.methods.glass_step import Network, losses
from adlib.methods.patchcore import upsample_and_smooth
from adlib.paths import atomic_path, results_dir

MIXED = ("glass_las", "cutpaste", "cutpaste_scar", "nsa")
N_BLENDED = 240


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    steps: int = 200
    lr: float = 0.001  # of the adaptor; the discriminator's is twice that
    norm: float | None = None  # mean length of a feature; None: as they are
    standardise: bool = False  # every channel to mean 0, deviation 1 first
    families: str = "glass_las"  # or "mixed"
    average: float = 0.0
    seed: int = 0


PAPER_RATE = Variant("the paper's learning rate", lr=0.0001)
VARIANTS = (
    PAPER_RATE,
    replace(PAPER_RATE, name="the paper's learning rate, length 1", norm=1.0),
    Variant("learning rate x 10"),
    Variant("x 10, length 15", norm=15.0),
    Variant("x 10, length 5", norm=5.0),
    Variant("x 10, length 1", norm=1.0),
    Variant("x 10, standardised channels", standardise=True),
    Variant("x 10, length 5, four families", norm=5.0, families="mixed"),
    Variant("x 10, length 15, 400 steps", norm=15.0, steps=400),
    Variant("x 10, length 10, averaged, 150 steps", norm=10.0, steps=150, average=0.97),
)


def prepare(table, textures: str, every: int) -> dict:
    """Features (float16), labels and masks; `every` n-th image of a large category."""
    train, test = table[(table.split == "train") & (table.label == 0)], table[table.split == "test"]
    train = train.iloc[::every]
    test = pd.concat([test[test.label == label].iloc[:: -(-every * 2 // 3)] for label in (0, 1)])
    small = {"backbone": "tf_efficientnet_lite0", "image_size": 256, "resize": "stretch", "scale": None}
    method = Glass(**small, pretrain_dim=None, target_dim=None, hidden=128)

    def read(paths):
        return [method.resize.image(images.read_image(path))[0] for path in paths]

    def features(pictures):
        blocks = [method.embed(images.to_tensor(pictures[i : i + 8])) for i in range(0, len(pictures), 8)]
        return torch.cat(blocks).flatten(2).transpose(1, 2).half().numpy()  # (n, L, D)

    hosts, dataset = read(train.image_path), str(table.attrs["dataset"]).replace("mvtec_ad", "mvtec")
    rule = synthesis.rule_for(dataset, train.category.iloc[0])
    products = [synthesis.foreground(host, rule) for host in hosts]
    found = {"train": features(hosts), "test": features(read(test.image_path)), "labels": test.label.to_numpy()}
    masks = [images.read_mask(p) if isinstance(p, str) else np.zeros((256, 256), bool) for p in test.mask_path]
    found["masks"] = [method.resize.mask(mask) for mask in masks]
    for name, families in (("glass_las", ("glass_las",)), ("mixed", MIXED)):
        textures_here = textures if name == "glass_las" else None
        sources = synthesis.Sources(textures=textures_here or None, normals=list(train.image_path))
        pictures, labels = [], []
        for k in range(N_BLENDED):
            i, rng = k % len(hosts), np.random.default_rng([7, k])
            picture, mask, _ = synthesis.synthesise(families[k % len(families)], hosts[i], rng, products[i], sources)
            pictures.append(picture)
            labels.append(token_labels(mask, (32, 32)))
        found[name] = features(pictures), np.stack(labels)
    return found


def run(data: dict, v: Variant) -> dict:
    """Train one variant and test its last step."""
    train, (blended, labels) = data["train"].astype(np.float32), data[v.families]
    n, positions, width = train.shape
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if v.standardise:
        rows = train.reshape(-1, width)
        mean, scale = rows.mean(0), 1 / (rows.std(0) + 1e-3)
    if v.norm:
        scale = scale * np.float32(v.norm / np.sqrt((((train - mean) * scale) ** 2).sum(-1)).mean())

    def scaled(features):
        return torch.from_numpy((features.astype(np.float32) - mean) * scale)

    torch.manual_seed(v.seed)
    network = Network(width, 128, positions).train()
    both, rng = optimizers(network, v.lr, 2 * v.lr), np.random.default_rng(v.seed)
    settings = SimpleNamespace(
        hypothesis="manifold", mining=True, n_ascent=5, step_size=0.004, project_every=5, radius=0.75, p=0.5,
        all_statistics=True,
    )  # fmt: skip
    centre, averaged, started = scaled(train.mean(0)), None, time.process_time()
    for step in range(v.steps):
        if step % (len(blended) // 8) == 0:
            order = rng.permutation(len(blended))
        chosen = order[8 * (step % (len(blended) // 8)) :][:8]
        if step % 50 == 0:
            with torch.no_grad():
                network.centre.copy_(network.adaptor(centre))
        x, y = scaled(train[chosen % n]).flatten(0, 1), torch.from_numpy(labels[chosen]).flatten()
        noise = torch.randn_like(x) * 0.015 * (1536 / width) ** 0.5
        rows = some_rows(y, 0.25)
        terms = losses(network, x, scaled(blended[chosen]).flatten(0, 1), y, noise, settings, rows=rows)
        sum(value for key, value in terms.items() if key[0] != "_").backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if v.average:
            decay, state = min(v.average, (step + 1) / (step + 10)), network.state_dict()
            state = {k: value.clone() for k, value in state.items()}
            averaged = state if averaged is None else {
                k: averaged[k].lerp(x, 1 - decay) if x.is_floating_point() else x for k, x in state.items()
            }  # fmt: skip
    seconds = time.process_time() - started
    if averaged:
        network.load_state_dict(averaged)
    with torch.no_grad():
        probabilities = network.eval()(scaled(data["test"]).flatten(0, 1)).sigmoid().reshape(-1, 32, 32)
    maps = upsample_and_smooth(probabilities, (256, 256), 4.0)
    found = metrics.image_metrics(probabilities.flatten(1).amax(1).double().numpy(), data["labels"])
    found |= metrics.pixel_metrics(list(maps), data["masks"])
    chosen = {key: round(float(found[key]), 4) for key in ("image_auroc", "pixel_auroc", "aupro_30")}
    return {"variant": v.name, "steps": v.steps, "seed": v.seed, **chosen, "cpu_s": round(seconds, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", default="mvtec_ad")
    parser.add_argument("--category", required=True)
    parser.add_argument("--textures", default="")
    parser.add_argument("--every", type=int, default=1, help="take each n-th training image of a large category")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = results_dir() / "studies" / "glass_remedies.csv"
    features = prepare(
        datasets.load(options.dataset, options.data_root, options.category), options.textures, options.every
    )
    for number in range(len(VARIANTS)) if options.only is None else options.only:
        for seed in options.seeds:
            row = run(features, replace(VARIANTS[number], seed=seed))
            row = {"category": options.category, "n_test": len(features["labels"]), **row}
            print(row, flush=True)
            table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
            with atomic_path(file) as temporary:
                pd.concat([table, pd.DataFrame([row])]).to_csv(temporary, index=False)
