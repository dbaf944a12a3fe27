"""What an approximate search costs PatchCore: recall, speed and accuracy beside the exact one, on the same banks.

    python benchmarks/search.py [--data-root DIR] [--profile laptop] [--coreset 0.25]

PatchCore's released code can search a product quantiser (IVFPQ) in place of all rows; HNSW is the graph that is common
today. For each product one bank is made and searched three ways. A row of results/studies/patchcore_search.csv is one
way on one product: share of patches whose nearest row is found, milliseconds an image of the search alone (one thread,
median) and as a ratio to the exact search of the same run, seconds to build the index, image AUROC and AUPRO.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from accuracy import spaced

from adlib import datasets, evaluation, profiles
from adlib.images import batches, neighbours, patches
from adlib.methods.patchcore import PatchCore
from adlib_book import studies

N_GOOD, N_TEST, N_TIMED = 100, 40, 12  # images that make the bank; test images of each label; images that are timed
MAX_ROWS = 40_000  # patches that the bank is chosen from
KEYS = ["profile", "coreset", "dataset", "category", "search"]


def rows_of(dataset: str, root, category: str, profile: str, coreset: float):
    """Measure the three searches on one category."""
    table = datasets.load(dataset, root, category)
    train = spaced(table[(table.split == "train") & (table.label == 0)], N_GOOD)
    test = table[table.split == "test"]
    test = pd.concat([spaced(test[test.label == label], N_TEST) for label in (0, 1)])
    settings = profiles.method_settings(profile, "patchcore") | {
        "coreset": coreset,
        "max_rows": MAX_ROWS,
        "n_calibration": 0,
    }
    fitted = PatchCore(**profiles.shaped("patchcore", settings, train.image_path)).fit(train)
    some = batches(spaced(test, N_TIMED).image_path, fitted.resize, 1)
    queries = [patches.to_rows(fitted.embed(batch.images)).numpy() for batch in some]
    nearest, exact_ms = None, None
    for search in neighbours.SEARCHES:
        started = time.perf_counter()
        fitted.index = neighbours.NearestNeighbours(search=search).fit(fitted.memory_bank)
        build_s = time.perf_counter() - started
        found, times = [], []
        for rows in queries:
            started = time.perf_counter()
            found.append(fitted.index.query(rows)[1][:, 0])
            times.append(1e3 * (time.perf_counter() - started))
        found, ms = np.concatenate(found), float(np.median(times))
        nearest, exact_ms = (found, ms) if nearest is None else (nearest, exact_ms)
        metrics = evaluation.evaluate(fitted, test).metrics
        row = {"profile": profile, "coreset": coreset, "dataset": dataset, "category": category, "search": search}
        row |= {"bank_rows": len(fitted.memory_bank), "width": fitted.memory_bank.shape[1], "n_test": len(test)}
        row |= {"recall": np.mean(found == nearest), "search_ms": ms, "times_faster": exact_ms / ms, "build_s": build_s}
        yield row | {key: metrics[key] for key in ("image_auroc", "pixel_auroc", "aupro_30")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="folder of data sets; default: the demo data")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--coreset", type=float, default=0.25, help="as released, whose banks are large")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = [("demo", None, None, datasets.categories("demo", None))]
    for dataset, _, root, names in datasets.discover(options.data_root) if options.data_root else sets:
        for category in names:
            counts = datasets.load(dataset, root, category).groupby(["split", "label"]).size()
            if min(counts.get(place, 0) for place in (("train", 0), ("test", 0), ("test", 1))) < 10:
                continue  # a sample, not a set
            rows = pd.DataFrame(rows_of(dataset, root, category, options.profile, options.coreset)).round(4)
            print(rows.to_string(index=False), flush=True)
            studies.write_rows("patchcore_search", rows, KEYS)
