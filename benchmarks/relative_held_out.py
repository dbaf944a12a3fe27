"""The study of relative normality (`adlib_book.studies.unseen_products`) on every fold, written to results/studies.

    python benchmarks/relative_held_out.py --data-root DATA [--seeds 0 1 2] [--n-test 60] [--set name=value ...]

Writes relative_held_out.csv (one row per method, category and seed) and relative_context_swap.csv. `--folds mvtec`
holds the fifteen categories of MVTec AD out in five folds instead, and writes the same files with `mvtec_` before.
"""

import argparse
import time

import pandas as pd

from adlib.settings import parse_overrides
from adlib_book import studies
from adlib_book.studies import unseen_products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder with magnetic_tile, mvtec_ad, mvtec_ad_samples")
    parser.add_argument("--folds", choices=("all", "mvtec"), default="all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--n-test", type=int, default=80, help="test images per category, at most")
    parser.add_argument("--methods", nargs="*", help="only these rows; nothing is written")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the training, name=value")
    arguments = parser.parse_args()
    started, swaps = time.perf_counter(), []
    folds, prefix = (
        (unseen_products.MVTEC_FOLDS, "mvtec_") if arguments.folds == "mvtec" else (unseen_products.FOLDS, "")
    )

    def report(line: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s {line}", flush=True)

    found = unseen_products.study(
        folds,
        data_root=arguments.data_root,
        seeds=arguments.seeds,
        n_test=arguments.n_test,
        training=parse_overrides(arguments.set),
        methods=arguments.methods,
        swaps=swaps,
        report=report,
    )
    if not arguments.methods:
        own = {"keys": ["seed"], "order": "seed", "float_format": "%.4f"}  # the rows of other seeds stay
        found = studies.write_rows(f"{prefix}relative_held_out", found, **own)
        studies.write_rows(f"{prefix}relative_context_swap", pd.DataFrame(swaps), **own)
    print(unseen_products.summarise(found).round(3).to_string())


if __name__ == "__main__":
    main()
