"""What a batch takes and what it lacks, before anything runs: `adlib plan`.

Hours are `profiles/costs.yaml` times the training images: they are of one category of MVTec AD (242 in the mean), where
a run of most methods takes time in proportion to them. No method is loaded, nor torch: a plan takes seconds.
"""

from collections import Counter
from pathlib import Path

import pandas as pd

from adlib import datasets, profiles
from adlib.paths import texture_folder
from adlib_book import costs, notebook_jobs

USUAL_IMAGES = 242  # training images of a category that the costs of the paper profile are of
RUN_MB = 5  # on disk: record, scores, small maps and the executed notebook of one run


def table_of(jobs: list, images: dict) -> pd.DataFrame:
    """Jobs, hours of GPUs and of processors, by method and data set.

    Args:
        images: (data set, category) -> number of normal training images.
    """
    rows = []
    for job in jobs:
        cost = costs.read(job.profile, job.method)
        scale = images[job.dataset, job.category] / USUAL_IMAGES if job.profile == "paper" else 1
        hours = scale * cost.minutes / 60
        row = {"method": job.method, "dataset": job.dataset, "jobs": 1, "GPU h": hours * cost.gpu}
        rows.append(row | {"CPU h": hours * cost.threads, "GB": cost.mem_mb / 1000, "basis": cost.basis})
    sums = {"jobs": "sum", "GPU h": "sum", "CPU h": "sum", "GB": "max", "basis": "first"}
    return pd.DataFrame(rows).groupby(["method", "dataset"], sort=False).agg(sums)


def missing(profile: str, jobs: list, tables: dict) -> list[str]:
    """One line for each thing that jobs need and that is not there or has to be fetched: weights, folders, masks."""
    changes, names = profiles.load(profile)["methods"], dict.fromkeys(job.method for job in jobs)
    gaps = Counter(notebook_jobs.lacking_weights(profile, names))
    for name in names:
        image = next(table.image_path.iloc[0] for table in tables.values())
        for role in ("textures", "objects"):
            folder = texture_folder(changes[name].get(role, ""), image)
            if isinstance(folder, Path) and not folder.is_dir():
                gaps[f"{role} {str(folder)!r}: no such folder here, below data/ or beside the data sets"] += 1
    lines = [f"{line} ({count} method{'s' * (count > 1)})" for line, count in gaps.items()]
    for (dataset, category), table in tables.items():
        lines += [f"{dataset}/{category}: {line}" for line in datasets.missing_for_evaluation(table)]
    return lines


def text(profile: str, data_root: str = "", **names: str) -> str:
    """The whole answer: the table, its sums, assumptions, and what is missing; `names` as in `notebook_jobs.select`."""
    jobs = notebook_jobs.select(notebook_jobs.plan(profile, data_root), **names)
    places = {(job.dataset, job.category): job.data_root or None for job in jobs}
    tables = {place: datasets.load(place[0], root, place[1]) for place, root in places.items()}
    images = {place: int(((t.split == "train") & (t.label == 0)).sum()) for place, t in tables.items()}
    table = table_of(jobs, images)
    total = table[["jobs", "GPU h", "CPU h"]].sum()
    lines = [table.round(1).to_string(), ""]
    lines.append(f"{len(jobs)} jobs: {total['GPU h']:.1f} GPU hours, {total['CPU h']:.1f} CPU hours")
    lines.append(f"largest job {table.GB.max():.0f} GB of memory, about {len(jobs) * RUN_MB / 1000:.1f} GB of results")
    lines.append(
        f"hours are {', '.join(sorted(set(table.basis)))}, of {USUAL_IMAGES} training images; see profiles/costs.yaml"
    )
    lines += [f"missing: {line}" for line in missing(profile, jobs, tables)] or ["nothing is missing"]
    return "\n".join(lines)
