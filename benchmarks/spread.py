"""How far the smoke profile's numbers move with the processor and with the seed: no method may be a lottery.

    python benchmarks/spread.py                                        the committed drawing; about an hour on a core
    python benchmarks/spread.py --demo-seed 1 --methods glass,draem    another drawing, to choose settings on

Every job of the profile is fitted and evaluated as its notebook does it: with seed 0 as three kinds of x86 processor
compute (the environment variables of `SETTINGS`, so each kind is a process of its own), and with further seeds on this
processor as it is. A row is one fit, appended when it is done; what the file already holds for the same settings of
the profile is not measured again. Settings are chosen on another drawing; the committed one (0) is measured, no more.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

KEYS = ["method", "category", "setting", "seed"]
METRICS = ["image_auroc", "aupro_30"]
LIMIT = 3.0  # points: largest range over processors, largest standard deviation over seeds
# As the oldest x86-64 processors compute, as those with AVX2 do, and as this one does.
SETTINGS = {
    "oldest": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "FAISS_OPT_LEVEL": "generic"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "FAISS_OPT_LEVEL": "avx2"},
    "native": {},
}


def settings_key(method: str) -> str:
    """Eight letters that change with the profile's settings of a method: rows of other settings are not comparable."""
    from adlib import profiles

    settings = json.dumps(profiles.method_settings("smoke", method, {}), sort_keys=True, default=list)
    return hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()


def fit(run, others: dict):
    """Fit the method of a `runs.Run` as its notebook does; `others`: normals of the other products, by category."""
    from adlib import methods

    method = methods.create(run.method, **run.settings)
    if run.method == "unified":  # its weights come from other products
        method.train_episodes(others)
    return method.fit(run.train)


def measure(method: str, category: str, seed: int) -> dict:
    """Fit and evaluate one job of the smoke profile: metrics in percent, CPU seconds of the fit."""
    from adlib import datasets, runs

    runs.seed_everything(seed)
    run = runs.Run(method, notebook="", profile="smoke", dataset="demo", data_root="", category=category, seed=seed)
    tables = {name: datasets.load("demo", None, name) for name in datasets.categories("demo", None) if name != category}
    before = time.process_time()
    fitted = fit(run, {name: t[(t.split == "train") & (t.label == 0)] for name, t in tables.items()})
    seconds = time.process_time() - before
    found = run.evaluate(fitted).metrics
    return {name: round(100 * found[name], 2) for name in METRICS} | {"cpu_s": round(seconds, 1)}


def rows_of(file: Path) -> pd.DataFrame:
    """The rows that were measured with the settings that the profile has now."""
    if not file.is_file():
        return pd.DataFrame(columns=[*KEYS, *METRICS, "cpu_s", "settings"])
    rows = pd.read_csv(file)
    return rows[rows.method.map(settings_key) == rows.settings]


def append(file: Path, wanted: list[tuple]) -> None:
    """Measure what is not in the file yet; in a process that computes as the setting says."""
    known = {tuple(row) for row in rows_of(file)[KEYS].itertuples(index=False)}
    for method, category, setting, seed in wanted:
        if (method, category, setting, seed) in known:
            continue
        who = dict(zip(KEYS, (method, category, setting, seed), strict=True))
        row = pd.DataFrame([who | measure(method, category, seed) | {"settings": settings_key(method)}])
        row.to_csv(file, mode="a", header=not file.is_file(), index=False)
        print(row.to_string(index=False, header=False), flush=True)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Method x category: range over the processors at seed 0, deviation over the seeds, of each metric, in points.

    A star marks what is above `LIMIT`; a blank is a spread of fewer than two numbers.
    """
    mark = lambda value: "" if pd.isna(value) else f"{value:.1f}{' *' if value > LIMIT else ''}"  # noqa: E731
    found = {}
    for job, part in rows.groupby(["method", "category"], sort=False):
        processors, seeds = part[part.seed == 0], part[part.setting == "native"]
        for metric in METRICS:
            over = processors[metric]
            found.setdefault((metric, "mean"), {})[job] = f"{seeds[metric].mean():.1f}"
            found.setdefault((metric, "range"), {})[job] = mark(over.max() - over.min() if len(over) > 1 else None)
            found.setdefault((metric, "deviation"), {})[job] = mark(seeds[metric].std())
        found.setdefault(("", "fits"), {})[job] = len(part)
        found.setdefault(("", "cpu_s"), {})[job] = f"{part.cpu_s.mean():.0f}"
    return pd.DataFrame(found)


def main() -> None:
    """Measure the jobs that are asked for, and print the table of all that the file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="some methods, a,b; default: all of the profile")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="kinds of processor")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds on this processor as it is")
    parser.add_argument("--demo-seed", type=int, default=0, help="another drawing of the demo data")
    parser.add_argument(
        "--rows", type=Path, help="CSV file of the rows; default: below results or, for another drawing, data"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)  # this process measures one setting
    arguments = parser.parse_args()

    from adlib.datasets import demo
    from adlib.paths import data_dir, results_dir
    from adlib_book import notebook_jobs

    folder = data_dir() / "spread" / f"drawing{arguments.demo_seed}"
    place = results_dir() / "studies" if arguments.demo_seed == 0 else folder
    file = (arguments.rows or place / "smoke_spread.csv").resolve()
    if arguments.only:
        append(file, [(*job.split("/"), arguments.only, int(seed)) for job, seed in json.load(sys.stdin)])
        return
    demo.generate(folder / "demo", arguments.demo_seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows_of(file).to_csv(file, index=False)  # without those of older settings
    jobs = [f"{job.method}/{job.category}" for job in notebook_jobs.plan("smoke")]
    jobs = [job for job in jobs if not arguments.methods or job.split("/")[0] in arguments.methods.split(",")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for setting in arguments.settings.split(","):
        wanted = [(job, seed) for job in jobs for seed in (seeds if setting == "native" else [0])]
        environment = os.environ | SETTINGS[setting] | {"ADLIB_DATA": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--only", setting, "--rows", str(file)]
        subprocess.run(command, input=json.dumps(wanted), text=True, env=environment, check=True)
    print(table(rows_of(file)).to_string())


if __name__ == "__main__":
    main()
