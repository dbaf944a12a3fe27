"""Run every benchmark side by side and write results/benchmarks.csv.

    make bench            (all)        .venv-bench/bin/python benchmarks/run.py coreset aupro    (some)

A row: what, size, ours, theirs, ratio (theirs / ours: above 1 means ours is faster or smaller), unit, note. Ratios
come from one run on one machine; absolute times are of that machine.
"""

import importlib
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
NAMES = ("coreset", "aupro", "patchcore", "predict", "synthesis", "glass", "ulsad", "few_shot", "pagmfr")


def main(names) -> None:
    """Run the named benchmarks; rows of the others stay as they were."""
    from adlib.paths import atomic_path, results_dir
    from adlib.runs import device_name

    torch.set_num_threads(2)
    file = results_dir() / "benchmarks.csv"
    table = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    for name in names:
        print(f"{name} ...", flush=True)
        rows = pd.DataFrame(importlib.import_module(name).main()).assign(group=name, machine=device_name())
        rows["python"] = platform.python_version()
        print(rows.drop(columns=["machine", "python"]).to_string(index=False), flush=True)
        kept = table[table.group != name] if len(table) else table
        table = pd.concat([kept, rows], ignore_index=True)
        with atomic_path(file) as temporary:
            table.to_csv(temporary, index=False)
    print(f"written to {file}")


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in NAMES]
    if unknown:
        sys.exit(f"benchmark {unknown[0]!r} is unknown; choose from {', '.join(NAMES)}")
    main(sys.argv[1:] or NAMES)
