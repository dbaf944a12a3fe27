"""Memory and time of ULSAD beside PatchCore's as the training set grows; each measurement is a process of its own.

    python benchmarks/ulsad_memory.py --data-root DIR --dataset magnetic_tile --category magnetic_tile

Both with the laptop profile's settings, but PatchCore with the paper's coreset of 10 %, drawn at random: as large as a
searched one, which would take minutes here. A first process fits on n images and saves the model, a second loads it
and scores images one by one. ULSAD's memory does not depend on the number of steps, so it is fitted with `STEPS` of
them; its training time is given by step.
Rows go to results/studies/ulsad_memory.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from adlib import datasets, images, methods, profiles
from adlib.images.features import peak_memory_mib
from adlib.paths import atomic_path, results_dir

STEPS, N_SCORED = 8, 20
VARIANTS = {
    "PatchCore, 10 %": ("patchcore", {"patch_size": 3, "coreset": 0.1, "sampler": "random", "max_rows": 10**7}),
    "ULSAD": ("ulsad", {"steps": STEPS, "snapshot_every": 0}),
}


def fit(options, folder: Path) -> dict:
    """Fit on `options.count` images, save, and measure."""
    name, changes = VARIANTS[options.variant]
    table = datasets.load(options.dataset, options.data_root, options.category)
    train = table[(table.split == "train") & (table.label == 0)].iloc[: options.count]
    method = methods.create(name, **profiles.method_settings("laptop", name, {"resize": "stretch"} | changes))
    before, started = peak_memory_mib(), time.perf_counter()
    method.fit(train)
    seconds = time.perf_counter() - started
    method.save(folder)
    found = {"fit_s": round(seconds, 1), "fit_peak_mib": round(peak_memory_mib() - before)}
    if name == "ulsad":
        found |= {"fit_s": round(seconds - method.history.seconds, 1)}
        found |= {"s_per_step": round(method.history.seconds / STEPS, 3)}
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return found | {"model_mib": round(size / 2**20, 1)}


def score(options, folder: Path) -> dict:
    """Load the model and score images one by one."""
    table = datasets.load(options.dataset, options.data_root, options.category)
    before = peak_memory_mib()
    method = methods.load(folder)
    test, started = table[table.split == "test"].iloc[:N_SCORED], time.perf_counter()
    for batch in images.batches(test.image_path, method.resize, 1):
        method.score(batch)
    seconds = time.perf_counter() - started
    return {"score_peak_mib": round(peak_memory_mib() - before), "ms_per_image": round(1e3 * seconds / N_SCORED, 1)}


def main(options) -> None:
    """Run all processes and write a row each."""
    file, rows = results_dir() / "studies" / "ulsad_memory.csv", []
    for count in options.counts:
        for variant in VARIANTS:
            row = {"method": variant, "train_images": count}
            with tempfile.TemporaryDirectory() as folder:
                for part in ("fit", "score"):
                    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", folder]
                    command += ["--variant", variant, "--count", str(count)]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    row |= json.loads(output.splitlines()[-1])
            rows.append(row)
            print(row, flush=True)
            with atomic_path(file) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--dataset", default="magnetic_tile")
    parser.add_argument("--category", default="magnetic_tile")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--part", choices=("fit", "score"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part:
        print(json.dumps({"fit": fit, "score": score}[options.part](options, Path(options.folder))))
    else:
        main(options)
