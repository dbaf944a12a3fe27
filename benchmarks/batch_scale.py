"""The scheduler alone: 2,000 jobs that write their record at once, through the Snakefile, on this machine.

Prints wall and processor time, peak memory and open files of the process that stays up for the whole batch.

    python benchmarks/batch_scale.py [--jobs 2000] [--cores 2]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# `adlib run ... --out FOLDER --done FILE` without the run.
STAND_IN = """#!/bin/sh
while [ $# -gt 1 ]; do case $1 in --out) out=$2;; --done) done=$2;; esac; shift; done
mkdir -p "$out" && echo '{}' > "$out/record.json" && echo stand-in > "$done"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adlib").write_text(STAND_IN)
        (folder / "adlib").chmod(0o755)
        seeds = ", ".join(map(str, range(options.jobs)))
        places = f"datasets: {{demo: {{categories: [gear]}}}}\nonly: {{}}\nseeds: [{seeds}]\n"
        (folder / "scale.yaml").write_text(f"based_on: smoke\n{places}")
        own = {"ADLIB_PROFILE": f"{folder}/scale.yaml", "ADLIB_RESULTS": str(folder / "results")}
        environment = os.environ | own | {"PATH": f"{folder}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", name]
        command += ["--cores", str(options.cores), "--nolock", "--quiet", "all"]
        command += ["--config", "profile=scale", "method=padim"]
        start, files = time.perf_counter(), 0
        scheduler = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while scheduler.poll() is None:
            try:
                files = max(files, len(os.listdir(f"/proc/{scheduler.pid}/fd")))
            except OSError:  # it has just ended
                continue
            time.sleep(0.2)
        wall, spent = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        records = len(list((folder / "results").glob("runs/*/*/*/record.json")))
    print(
        f"{records} of {options.jobs} jobs: {wall:.0f} s wall, {spent.ru_utime + spent.ru_stime:.0f} s of processors, "
        f"{spent.ru_maxrss / 1024:.0f} MiB at most, {files} open files at most; exit code {scheduler.returncode}"
    )


if __name__ == "__main__":
    main()
