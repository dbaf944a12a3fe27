"""Relative normality on categories that training has never seen: four detectors, one backbone, the same supports.

    python benchmarks/few_shot.py --data ../shared/data [--seeds 0 1 2] [--steps 300] [--out results/few_shot.csv]

For each fold the trained models see the normal images of some categories with pseudo-anomalies; the table holds the
*other* categories only. Every number is a mean over seeds (support and training). `pooled` puts the scores of all
held-out images into one AUROC: one threshold for all products. `--out` collects the scores of every image; runs of
other folds and seeds add theirs, and the table is made of all that is there.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from adlib import datasets, episodes, images, metrics
from adlib.methods.few_shot import FewShot
from adlib.methods.padim import Padim
from adlib.methods.patchcore import PatchCore
from adlib.methods.spade import Spade
from adlib.methods.unified import Unified
from adlib.support import choose_support

COMMON = {"backbone": "tf_efficientnet_lite0", "stages": [2, 3], "resize": "stretch", "scale": None}
DEMO = ("brick", "gear", "grass", "gravel", "tray")
REAL = {"magnetic_tile": "magnetic_tile", "screw": "mvtec_ad", "leather": "mvtec_ad_samples"}
# (trained on, tested on): every category is held out once.
FOLDS = (
    ((*DEMO, "screw"), ("magnetic_tile", "leather")),
    ((*DEMO, "magnetic_tile"), ("screw",)),
    (("brick", "gear", "tray", "magnetic_tile"), ("grass", "gravel")),
    (("grass", "gravel", "screw", "magnetic_tile"), ("brick", "gear", "tray")),
)


class Cached(nn.Module):
    """A backbone that computes the features of an image once: the detectors and seeds share them."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.store = backbone, {}
        for name in ("name", "stages", "channels", "strides", "fingerprint"):
            setattr(self, name, getattr(backbone, name))

    def forward(self, stack):
        keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=12).digest() for image in stack]
        new = [i for i, key in enumerate(keys) if key not in self.store]
        if new:
            with torch.no_grad():
                for i, *features in zip(new, *self.backbone(stack[new]), strict=True):
                    self.store[keys[i]] = [f.clone() for f in features]
        return [torch.stack(stage) for stage in zip(*(self.store[key] for key in keys), strict=True)]


def load(category: str, data: Path | None, n_test: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the normal training images (at most 120) and the test images (at most n_test) of a category."""
    root = None if category in DEMO else data / REAL[category]
    table = datasets.load("demo" if root is None else "mvtec", root, category)
    train = table[(table.split == "train") & (table.label == 0)]
    test = table[table.split == "test"].sample(frac=1, random_state=0).iloc[:n_test]
    return train.sample(frac=1, random_state=0).iloc[:120], test


def evaluate(method, test: pd.DataFrame) -> tuple[np.ndarray, dict]:
    """Image scores and metrics of a fitted method."""
    scores, maps, masks = [], [], []
    for batch in images.batches(test.image_path, method.resize, 8):
        found = method.score(batch)
        scores.extend(found.image)
        maps.extend(found.map)
    for path, image in zip(test.mask_path, test.image_path, strict=True):
        mask = images.read_mask(path) if isinstance(path, str) else np.zeros(images.read_image(image).shape[:2], bool)
        masks.append(method.resize.mask(mask))
    scores, labels = np.array(scores), test.label.to_numpy()
    pixels = np.concatenate([m.ravel()[::7] for m in maps]), np.concatenate([m.ravel()[::7] for m in masks])
    found = {
        "image_auroc": roc_auc_score(labels, scores),
        "pixel_auroc": roc_auc_score(pixels[1], pixels[0]),
        "pixel_ap": metrics.average_precision_score(pixels[1], pixels[0]),
    }
    return scores, found


def main() -> pd.DataFrame:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with magnetic_tile, mvtec_ad, mvtec_ad_samples")
    parser.add_argument("--size", type=int, default=192, help="network input, pixels")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--normals", type=int, default=24, help="normal images of a training category, at most")
    parser.add_argument("--styles", type=int, default=9, help="styles of pseudo-anomaly of a training category")
    parser.add_argument("--n-test", type=int, default=160, help="test images a category, at most")
    parser.add_argument("--folds", type=int, nargs="*", default=range(len(FOLDS)))
    parser.add_argument("--methods", nargs="*", help="only these rows")
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of both trained models or the unified one, name=value"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from adlib.settings import parse_overrides

    common = COMMON | {"image_size": arguments.size}
    training = {"steps": arguments.steps, "episodes": 3, "rows": 512, "validate_every": max(1, arguments.steps // 2)}
    changes = parse_overrides(arguments.set)
    own = {name: changes.pop(name) for name in list(changes) if name not in FewShot.Settings.__dataclass_fields__}
    backbones, parts = {}, []
    if arguments.out and arguments.out.is_file():
        parts.append(pd.read_csv(arguments.out))

    def cached(method):
        method.backbone = backbones.setdefault(method.backbone.fingerprint, Cached(method.backbone))
        return method

    for fold in arguments.folds:
        trained_on, held_out = FOLDS[fold]
        tables = {name: load(name, arguments.data, 0)[0] for name in trained_on}
        probe = FewShot(**common, layer_norm=False)
        started = time.perf_counter()
        pools = episodes.make_pools(
            tables, None, probe.describe, probe.resize, 0, n_normals=arguments.normals, n_styles=arguments.styles
        )
        print(f"fold {fold}: pools of {', '.join(trained_on)} in {time.perf_counter() - started:.0f} s", flush=True)
        tests = {name: load(name, arguments.data, arguments.n_test) for name in held_out}
        for seed in arguments.seeds:
            base = common | {"k": arguments.k, "seed": seed, "n_calibration": 2}
            # A CNN: neither centred nor normalised, see adlib.support.describe; the anchor keeps lengths in play.
            relative = base | {"centre": False, "layer_norm": False, "anchor": 1.0, "image_score": "top"} | changes
            plain = common | {"pretrain_dim": None, "target_dim": None, "coreset": 0.25, "n_calibration": 2}
            fits = {
                "few_shot step 0": (FewShot, relative),
                "few_shot trained": (FewShot, relative | training),
                "unified step 0": (Unified, relative | own),
                "unified trained": (Unified, relative | training | own),
                "patchcore": (PatchCore, plain | {"seed": seed}),
                "spade": (Spade, base),
                "padim": (Padim, base | {"d": 100}),
            }
            for name, (cls, settings) in fits.items():
                if arguments.methods and name not in arguments.methods:
                    continue
                started = time.perf_counter()
                method = cached(cls(**settings))
                if name.endswith("trained"):
                    method.train_episodes(None, pools=pools[0], validation_pools=pools[1])
                for category, (train, test) in tests.items():
                    k = min(arguments.k, len(train))
                    normal = choose_support(train, k, seed)[0] if name == "patchcore" else train
                    scores, found = evaluate(method.fit(normal), test)
                    run = {"method": name, "category": category, "seed": seed, "label": test.label, "score": scores}
                    parts.append(pd.DataFrame(run | found).reset_index(drop=True))
                seconds = time.perf_counter() - started
                shown = ", ".join(
                    f"{r['category']} {r['image_auroc']:.3f}" for r in (part.iloc[0] for part in parts[-len(tests) :])
                )
                print(f"  seed {seed} {name:>17}: {shown}  ({seconds:.0f} s)", flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                pd.concat(parts).to_csv(arguments.out, index=False, float_format="%.5g")
    table = summarise(pd.concat(parts))
    print(table.round(3).to_string())
    return table


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a method: image AUROC a held-out category, their mean, pixel metrics, and the pooled AUROC."""
    runs = scores.drop_duplicates(["method", "category", "seed"])
    table = runs.groupby(["method", "category"], sort=False).image_auroc.mean().unstack("category")
    table["mean"] = table.mean(1)
    table["sd over seeds"] = runs.groupby(["method", "seed"]).image_auroc.mean().groupby("method").std()
    table[["pixel AUROC", "pixel AP"]] = runs.groupby("method")[["pixel_auroc", "pixel_ap"]].mean()
    pooled = scores.groupby(["method", "seed"])[["label", "score"]].apply(lambda g: roc_auc_score(g.label, g.score))
    table["pooled"], table["pooled sd"] = pooled.groupby("method").mean(), pooled.groupby("method").std()
    return table


if __name__ == "__main__":
    main()
