"""Contrastive learning, one change at a time: loss, temperature, positives, fusion, families, clustering and rule.

    python benchmarks/relative_contrastive.py [--categories brick gear] [--seeds 0] [--only CHANGE ...]

`all families` trains on four families of pseudo-anomalies, `without ...` on three of them. The settings are those of
the smoke profile. A fifth of the normals is held out of everything; damaged by `adlib.synthesis` it is what choices are
made on (`synthetic`). The test column is there to see what such a choice was worth; nothing is chosen by it. Results go
to results/studies/relative_contrastive.csv.
"""

import argparse

import pandas as pd
import torch

from adlib import datasets, profiles
from adlib.images import batches
from adlib.methods.few_shot.contrastive import Contrastive
from adlib.synthesis import SyntheticSplit
from adlib_book import studies
from adlib_book.studies import cluster_answers

FAMILIES = ("cutpaste", "cutpaste_scar", "nsa", "perlin_dtd")
CHANGES = {
    "as set": {},
    "loss focal": {"loss": "focal"},
    "loss supcon": {"loss": "supcon"},
    "loss soft": {"loss": "soft"},
    "FOCAL: focal, own cells": {"loss": "focal", "positives": "self"},
    "temperature 0.05": {"temperature": 0.05},
    "temperature 0.2": {"temperature": 0.2},
    "one stage": {"stages": [2]},
    "all families": {"families": FAMILIES},
    **{f"without {name}": {"families": tuple(f for f in FAMILIES if f != name)} for name in FAMILIES},
    "backbone lite1": {"backbone": "tf_efficientnet_lite1"},  # from the optional package of its weights
}
EVERY_CLUSTERING = ("as set", "backbone lite1")


def study(category: str, seed: int, changes: dict):
    """Train with each change on a demo category, and score by two or (`EVERY_CLUSTERING`) all clusterings and rules."""
    table = datasets.load("demo", None, category)
    train, test = table[(table.split == "train") & (table.label == 0)], table[table.split == "test"]
    train, judged = datasets.hold_out(train, 0.2, seed)
    for change, settings in changes.items():
        method = Contrastive(**profiles.method_settings("smoke", "contrastive", {"seed": seed} | settings)).fit(train)
        synthetic = SyntheticSplit(judged, number=4 * len(judged), resize=method.resize, seed=seed)
        sets = {
            "synthetic": (torch.cat([method.embed(b.images) for b, *_ in synthetic.batches(16)]), synthetic.labels),
            "test": (
                torch.cat([method.embed(b.images) for b in batches(test.image_path, method.resize, 16)]),
                test.label,
            ),
        }
        options = {"reference": method.reference, "seed": seed}
        if change not in EVERY_CLUSTERING:
            options |= {"names": ("bank_knn", "kmeans"), "rules": ("reference",)}
        found = {
            where: cluster_answers.compare(grids, labels, **options)["image AUROC"]
            for where, (grids, labels) in sets.items()
        }
        rows = pd.DataFrame(found).reset_index().assign(category=category, seed=seed, change=change)
        print(rows.round(3).to_string(index=False, header=False), flush=True)
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", nargs="*", default=["brick", "gear"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", choices=CHANGES, help="only these changes; other rows of the file stay")
    arguments = parser.parse_args()
    changes = {name: CHANGES[name] for name in arguments.only or CHANGES}
    for category in arguments.categories:
        for seed in arguments.seeds:
            for rows in study(category, seed, changes):
                keys = ["category", "seed", "change"]
                studies.write_rows("relative_contrastive", rows, keys, float_format="%.4f")


if __name__ == "__main__":
    main()
