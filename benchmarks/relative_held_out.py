"""The study of relative normality: `adlib.held_out.study` on every fold, written to results/studies.

    python benchmarks/relative_held_out.py --data-root ../shared/data [--seeds 0 1 2] [--steps 100] [--set name=value]

Writes relative_held_out.csv (one row a method, category and seed) and relative_context_swap.csv.
"""

import argparse
import time

import pandas as pd

from adlib import held_out
from adlib.paths import atomic_path, results_dir
from adlib.settings import parse_overrides


def write(table: pd.DataFrame, name: str) -> None:
    with atomic_path(results_dir() / "studies" / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder with magnetic_tile, mvtec_ad, mvtec_ad_samples")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--n-test", type=int, default=120, help="test images a category, at most")
    parser.add_argument("--methods", nargs="*", help="only these rows; nothing is written")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the training, name=value")
    arguments = parser.parse_args()
    started, swaps = time.perf_counter(), []

    def report(line: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s {line}", flush=True)

    found = held_out.study(
        data_root=arguments.data_root,
        seeds=arguments.seeds,
        n_test=arguments.n_test,
        training=parse_overrides(arguments.set),
        methods=arguments.methods,
        swaps=swaps,
        report=report,
    )
    print(held_out.summarise(found).round(3).to_string())
    if not arguments.methods:
        write(found, "relative_held_out")
        write(pd.DataFrame(swaps), "relative_context_swap")


if __name__ == "__main__":
    main()
