"""ULSAD's smoke settings on the demo tray: chosen on other drawings of the tray, measured on the shipped ones.

    python benchmarks/ulsad_tray.py

The demo data are drawn from a seed. Drawing 1 is used to look for the width of the area and the quantiles; drawing 0,
which every notebook shows, is looked at for what was chosen. Three trainings each. Rows go to
results/studies/ulsad_tray.csv.
"""

import contextlib
import dataclasses
import itertools
import tempfile
from pathlib import Path

import pandas as pd
import torch

from adlib import datasets, images, profiles
from adlib.datasets import demo
from adlib.evaluation import by_defect_kind, metrics
from adlib.methods.ulsad.ulsad import ULSAD
from adlib.paths import atomic_path, results_dir
from adlib_book import learning_curves

AREAS, QUANTILES, SEEDS = (2.0, 4.0, 6.0), ((0.9, 0.995), (0.9, 1.0)), (0, 1, 2)


def measure(method, test) -> dict:
    """Image AUROC against all good images, for each kind and for all."""
    kind = by_defect_kind.kinds_of(test)
    found = [method.score(batch).image for batch in images.batches(test.image_path, method.resize, 16)]
    scores, row = pd.Series([x for part in found for x in part]), {}
    for name in (*by_defect_kind.KINDS, "all"):
        rows = (kind == name) | (kind == "good") if name != "all" else kind == kind
        labels = (kind[rows] != "good").astype(int)
        row[name] = round(metrics.image_metrics(scores[rows].to_numpy(), labels)["image_auroc"], 4)
    return row


def run(table, drawing: int, seed: int) -> list[dict]:
    """Train once; every reading of the weights is a row."""
    train, test = table[(table.split == "train") & (table.label == 0)], table[table.split == "test"]
    settings = profiles.method_settings("smoke", "ulsad", {"seed": seed, "snapshot_every": 0})
    method, rows = ULSAD(**settings).fit(train), []
    given = method.settings
    with contextlib.ExitStack() as stack:
        for frozen in (method.backbone, method.reconstruction_net, method.global_net):
            stack.enter_context(learning_curves.remembered(frozen))
        for area, quantiles in itertools.product(AREAS, QUANTILES):
            for label, maps in (("both", "mean"), ("local", "local"), ("global", "global")):
                method.settings = dataclasses.replace(given, area=area, quantiles=quantiles, maps=maps)
                method.calibrate()
                row = {"drawing": drawing, "seed": seed, "area": area, "upper_quantile": quantiles[1], "maps": label}
                rows.append(row | measure(method, test))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    file, rows = results_dir() / "studies" / "ulsad_tray.csv", []
    with tempfile.TemporaryDirectory() as folder:
        drawn = {0: datasets.load("demo", None, "tray")}
        drawn[1] = datasets.load("demo", demo.generate(Path(folder) / "demo", seed=1), "tray")
        for drawing, seed in itertools.product((1, 0), SEEDS):
            rows += run(drawn[drawing], drawing, seed)
            print(pd.DataFrame(rows[-6:]).to_string(index=False), flush=True)
            with atomic_path(file) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
