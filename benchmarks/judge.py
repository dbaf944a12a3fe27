"""Is the method that `adlib compare` puts first the right one? Its order beside the order by test labels, on real sets.

    python benchmarks/judge.py --data-root DIR [--methods patchcore padim spade] [--profile smoke]

Of each set some good training images, evenly spaced, stand for a folder of one's own: every method is fitted to them
and judged as in `adlib compare`, without a label, and then evaluated on test images of the set. A row of
results/studies/judge.csv is one method on one set. The summary is printed: the rank correlation of both orders, and the
image AUROC that is lost by taking the method that the judge puts first.
"""

import argparse
import functools

import pandas as pd
import torch
from accuracy import spaced
from scipy.stats import spearmanr

from adlib import datasets, evaluation, methods, profiles
from adlib.images import Resize, aspect_size, bit_depth_of
from adlib.paths import results_dir
from adlib.synthesis.judge import N_IMAGES
from adlib_book import compare, studies

N_GOOD, N_TEST = 40, 30  # good images of a folder; test images of each label
KEYS = ["profile", "dataset", "category", "method"]


def rows_of(dataset: str, root, category: str, names, profile: str):
    """Judge and evaluate methods on one category."""
    table = datasets.load(dataset, root, category)
    good = spaced(table[(table.split == "train") & (table.label == 0)], N_GOOD).reset_index(drop=True)
    test = table[table.split == "test"]
    test = pd.concat([spaced(test[test.label == label], N_TEST) for label in (0, 1)])
    fit, held_out = datasets.hold_out(good, max(2 / len(good), min(compare.SHARE, N_IMAGES / 2 / len(good))))
    size, _ = aspect_size(fit.image_path, compare.SIDE)
    judge = compare.judge_of(held_out, Resize(size, bit_depth=bit_depth_of(fit.image_path)))
    for name in names:
        settings = profiles.shaped(name, profiles.method_settings(profile, name), fit.image_path)
        fitted = methods.create(name, **settings).fit(fit)
        scores, maps = zip(*map(functools.partial(compare._score, fitted), judge.images), strict=True)
        judged = judge.rate(scores, maps)["score"]
        found = evaluation.evaluate(fitted, test).metrics
        row = {"profile": profile, "dataset": dataset, "category": category, "method": name, "n_fit": len(fit)}
        row |= {"n_judged": len(judge.labels), "n_test": len(test), "judged": judged}
        yield row | {key: found[key] for key in ("image_auroc", "pixel_auroc", "aupro_30")}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a set: rank correlation of judge and image AUROC, the judge's choice, the best, and what is lost."""
    found = []
    for (profile, dataset, category), part in rows.groupby(["profile", "dataset", "category"], sort=False):
        first, best = part.loc[part.judged.idxmax()], part.loc[part.image_auroc.idxmax()]
        row = {"profile": profile, "set": f"{dataset}/{category}"}
        row |= {"rank correlation": spearmanr(part.judged, part.image_auroc).statistic}
        row |= {"judge's first": first.method, "best": best.method, "lost": best.image_auroc - first.image_auroc}
        found.append(row)
    return pd.DataFrame(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim", "spade"])
    parser.add_argument("--profile", default="smoke")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, _, root, categories in datasets.discover(options.data_root):
        for category in categories:
            table = datasets.load(name, root, category)
            counts = table.groupby(["split", "label"]).size()
            if min(counts.get(place, 0) for place in (("train", 0), ("test", 0), ("test", 1))) < 10:
                continue  # a sample, not a set
            rows = pd.DataFrame(rows_of(name, root, category, options.methods, options.profile)).round(4)
            print(rows.to_string(index=False), flush=True)
            studies.write_rows("judge", rows, KEYS)
    print(summary(pd.read_csv(results_dir() / "studies/judge.csv", dtype={"category": str})).round(3).to_string())
