"""Whole notebooks of every method on data of every shape by `adlib run`, each in a process of its own, as a table.

    python benchmarks/matrix.py [--methods patchcore glass] [--shapes "no masks"] [--jobs 2] [--no-story]  (make matrix)

The shapes and what a record of each must hold are those of tests/test_matrix.py. Exit code 1 where a cell is not what
is expected.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from adlib import runs
from adlib.errors import InputError
from adlib.methods import METHODS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_matrix import REFUSED, SHAPES, check_record, tiny, written


def run_command(job) -> str:
    """Run `adlib run` on a cell; say what became of it, in a word or its line."""
    method, shape, folder, story = job
    where, out = written(folder, shape), folder / "runs" / method / shape.replace(" ", "_")
    settings = tiny(method, SHAPES[shape].get("settings"))
    command = [str(Path(sys.executable).with_name("adlib")), "run", method, "--profile", "smoke", "--out", str(out)]
    for option in ("dataset", "data_root", "category"):
        command += [f"--{option.replace('_', '-')}", where[option]]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    environment = os.environ | {"ADLIB_RESULTS": str(folder / "results"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + ([] if story else ["--no-story"]), capture_output=True, text=True, env=environment)
    line = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("adlib: ")
    if done.returncode == 2:
        return line if REFUSED.get((method, shape)) == line else f"REFUSED {line}"
    try:
        check_record(runs.read_record(out), method, shape)
    except (InputError, AssertionError) as error:
        return f"FAILED {line or ' '.join(str(error).split())}"
    return "record" if done.returncode == 0 else f"STORY {line}"


def main() -> int:
    """Print the table method x shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[s for s in SHAPES if s != "folder"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-story", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for shape in options.shapes:
            written(Path(folder), shape)
        pairs = [(method, shape) for method in options.methods for shape in options.shapes]
        cells = [(*pair, Path(folder), not options.no_story) for pair in pairs]
        found, bad = {}, False
        for pair, result in zip(pairs, pool.map(run_command, cells), strict=True):
            found[pair] = result
            bad |= result != REFUSED.get(pair, "record")
            print(f"{' x '.join(pair)}: {result}", flush=True)
    table = pd.Series(found).map(lambda result: result.split()[0] if result[0].isupper() else result[:6])
    print("\n" + table.unstack(0).loc[options.shapes, options.methods].to_string())
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
