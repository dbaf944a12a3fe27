"""Methods x real data sets x seeds: accuracy, CPU seconds and peak memory of the laptop profile. No GPU.

    python benchmarks/accuracy.py --data-root DIR --methods patchcore padim --state "padim: shrinkage 0.1"

Every run is a process of its own; one whose row is in results/studies/product_accuracy.csv already is left out, so a
benchmark goes on where it was. `--state` names the code or the settings at hand: the table sets states side by side.
The quick form looks at no more than 100 good and 100 defective test images of a set, and with `--train N` at N normal
training images, all evenly spaced; `--full` takes all.
"""

import argparse
import itertools
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import pandas as pd

from adlib import settings
from adlib.paths import results_dir

PLACE, QUICK = ["state", "method", "dataset", "category", "seed", "n_train"], 100
NAME = "product_accuracy"  # of the table below results/studies
METRICS = ["image_auroc", "pixel_auroc", "aupro_30"]


def spaced(table: pd.DataFrame, number: int | None) -> pd.DataFrame:
    """At most so many rows of a table, evenly spaced."""
    if number is None or len(table) <= number:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, number).round().astype(int)]


def measure(place: dict, root, changes: dict, full: bool) -> dict:
    """Fit and evaluate one method on one category with one seed."""
    import torch

    from adlib import datasets, evaluation, methods, profiles
    from adlib.images.features import peak_memory_mib

    torch.set_num_threads(1)
    table = datasets.load(place["dataset"], root, place["category"])
    train = spaced(table[(table.split == "train") & (table.label == 0)], place["n_train"] or None)
    test = table[table.split == "test"]
    test = pd.concat([spaced(test[test.label == label], None if full else QUICK) for label in (0, 1)])
    train.attrs.update(table.attrs)
    chosen = profiles.method_settings("laptop", place["method"], changes | {"seed": place["seed"]})
    chosen |= {"snapshot_every": 0} if "snapshot_every" in chosen else {}  # nothing is looked at in between
    before = time.process_time()
    method = methods.create(place["method"], **profiles.shaped(place["method"], chosen, train.image_path)).fit(train)
    fit = time.process_time() - before
    found = evaluation.evaluate(method, test).metrics
    row = place | {"n_good": int((test.label == 0).sum()), "n_defective": int((test.label == 1).sum())}
    row |= {key: round(float(found[key]), 4) for key in METRICS}
    total = time.process_time() - before
    return row | {"fit_cpu_s": round(fit, 1), "cpu_s": round(total, 1), "peak_mib": round(peak_memory_mib())}


def main(options) -> None:
    """Run what is not there yet, then print mean and deviation over the seeds."""
    from adlib import datasets
    from adlib_book import studies

    sets = [(name, path, c) for name, _, path, categories in datasets.discover(options.data_root) for c in categories]
    wanted = [one for one in sets if not options.sets or one[2] in options.sets]
    file = results_dir() / "studies" / f"{NAME}.csv"
    there = pd.read_csv(file)[PLACE].values.tolist() if file.is_file() else []
    changes = settings.parse_overrides(options.set)
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = []
        for method, (name, path, category), seed in itertools.product(options.methods, wanted, options.seeds):
            values = [options.state, method, name, category, seed, options.train]
            if values not in there:
                arguments = dict(zip(PLACE, values, strict=True)), path, changes, options.full
                jobs.append(pool.submit(measure, *arguments))
        for job in as_completed(jobs):
            print(job.result(), flush=True)
            studies.write_rows(NAME, pd.DataFrame([job.result()]), PLACE, PLACE)
    table = pd.read_csv(file)
    groups = table.groupby(["category", "method", "state"])[[*METRICS, "fit_cpu_s", "peak_mib"]]
    print(groups.agg(["mean", "std"]).round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim", "glass", "ulsad"])
    parser.add_argument("--sets", nargs="*", help="categories; none: all below the data root")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--state", default="now", help="name of the code or settings at hand")
    parser.add_argument("--set", nargs="*", default=[], help="changes to the profile's settings, name=value")
    parser.add_argument("--train", type=int, default=0, help="normal training images of a set; 0: all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="all test images")
    main(parser.parse_args())
