"""Records of runs as files: their schema, writing, reading. Tables and the batch load nothing heavier than this.

results/runs/<profile>/<method>/<dataset>-<category>-seed<k>/record.json
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from adlib.errors import InputError
from adlib.paths import atomic_path, digest_of, results_dir

# Every key of record.json with the types it may have.
SCHEMA = {
    "method": (str,),
    "dataset": (str,),
    "category": (str,),
    "profile": (str,),
    "parameters": (dict,),
    "seed": (int,),
    "protocol": (dict,),
    "metrics": (dict,),
    "threshold": (dict, type(None)),
    "at_threshold": (dict, type(None)),
    "n_images": (dict,),
    "timing": (dict,),
    "peak_memory_mib": (float, int),
    "device": (str,),
    "versions": (dict,),
    "git_commit": (str, type(None)),
    "table_hash": (str,),
    "content_hash": (str,),
    "notebook": (str,),
    "created": (str,),
}
AS_THEY_STAND = ("peak_memory_mib", "protocol", "parameters", "n_images", "table_hash", "by_kind", "weights", "older")
KINDS = ("logical", "structural", "mean")  # of `by_kind`, where a record has it


def write_record(directory, record: dict) -> None:
    """Check a record against the schema and write it as `record.json`; on any error the old one stays."""
    problems = _problems(record)
    if problems:
        raise InputError(f"record for {directory} is incomplete: {problems[0]}")
    record = json.loads(json.dumps(record, allow_nan=False))  # with the keys and types that are read back
    with atomic_path(Path(directory) / "record.json") as temporary:
        temporary.write_text(json.dumps(record | {"digest": digest_of(record)}, indent=2) + "\n")


def read_record(directory) -> dict:
    """Read and check `record.json` of a run folder."""
    file = Path(directory) / "record.json"
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; expected the record of a run") from None
    except (ValueError, RecursionError):  # no JSON, a number of 5,000 digits, a list in a list in a list ...
        raise InputError(f"{file} is damaged: not valid JSON; delete the folder and run again") from None
    problems = _problems(record)
    if not problems and record.pop("digest", None) not in (None, digest_of(record)):  # none: of an earlier version
        problems = ["it does not hold what was written"]
    if problems:
        raise InputError(f"{file} is damaged: {problems[0]}; delete the folder and run again")
    return record


def collect(folder=None) -> tuple[pd.DataFrame, list[str]]:
    """Read all records below `results/runs` (or `folder`).

    Returns:
        one row per run: method, dataset, category, profile, seed, the metrics, seconds, memory, `run` (its folder below
        the results) and, as they stand in the record, protocol, parameters, n_images, table_hash, by_kind (None where
        anomalies are of one kind), weights (None without a backbone, and in records that do not say it) and older (why
        it is of an earlier version, else None), sorted; and one line
        for every record that could not be read, that says it is of another run than its folder, or repeats another.
    """
    folder = Path(folder) if folder else results_dir() / "runs"
    rows, damaged, files = [], [], {}
    keys = ("profile", "method", "dataset", "category", "seed")
    for file in sorted(folder.rglob("record.json")):
        try:
            record = read_record(file.parent)
        except InputError as error:
            damaged.append(str(error))
            continue
        profile, method, dataset, category, seed = who = tuple(record[key] for key in keys)
        own, place = f"{profile}/{method}/{dataset}-{category}-seed{seed}", file.parent.relative_to(folder).as_posix()
        if re.search(r"-seed\d+$", place) and place != own:
            damaged.append(f"{file} is damaged: it is the record of {own}; put it there or run again")
            continue
        if (*who, record.get("variant")) in files:
            damaged.append(f"{file} repeats {files[*who, record.get('variant')]}; keep one of them")
            continue
        files[*who, record.get("variant")] = file
        rows.append(
            {key: record[key] for key in keys}
            | record["metrics"]
            | {
                "selection": record["protocol"].get("selection"),
                "fit_s": record["timing"].get("fit_s"),
                "score_ms_per_image": record["timing"].get("score_ms_per_image"),
                "run": place,
            }
            | {key: record.get(key) for key in AS_THEY_STAND}
        )
    table = pd.DataFrame(rows)
    return (table.sort_values(["profile", "method", "run"]).reset_index(drop=True) if len(table) else table), damaged


def _problems(record) -> list[str]:
    if not isinstance(record, dict):
        return ["expected a JSON object"]
    missing = [f"key {key!r} is missing" for key in SCHEMA if key not in record]
    wrong = [
        f"key {key!r} has type {type(record[key]).__name__}"
        for key, kinds in SCHEMA.items()
        if key in record and not isinstance(record[key], kinds)
    ]
    if missing or wrong:
        return missing + wrong
    number = lambda value: type(value) in (int, float) and abs(value) < 2**53  # noqa: E731 - no bool, NaN or infinity
    name = lambda value: not {"/", "\\", "\0"} & set(value) and value.strip(".")  # noqa: E731 - of a file or folder
    bad = [f"{key} is {record[key]!r}" for key in ("method", "dataset", "category", "profile") if not name(record[key])]
    bad += [f"{key} is {record[key]!r}" for key in ("seed", "peak_memory_mib") if not number(record[key])]
    if not isinstance(record.get("older"), str | None):
        bad.append(f"older is {record['older']!r}")
    kinds = record.get("by_kind")
    try:
        values = [] if kinds is None else [kinds[kind][key] for kind in KINDS for key in ("image_auroc", "spro_05")]
    except (LookupError, TypeError):
        values = [kinds]
    if not all(value is None or number(value) for value in values):
        bad.append(f"by_kind is {str(kinds)[:60]!r}")
    inner = [
        *(("n_images", key, number) for key in ("train", "test_normal", "test_anomalous")),
        *(("timing", key, number) for key in ("fit_s", "score_ms_per_image") if key in record["timing"]),
        *(("protocol", key, lambda value: isinstance(value, str)) for key in ("resolution", "selection")),
        ("protocol", "image_size", lambda value: value is None or all(map(number, np.atleast_1d(value).tolist()))),
    ]
    bad += [
        f"{group}.{key} is {record[group].get(key, 'missing')!r}"
        for group, key, right in inner
        if key not in record[group] or not right(record[group][key])
    ]
    return bad + [
        f"metric {name!r} is {value!r}, not a fraction in [0, 1]"
        for name, value in record["metrics"].items()
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1)
    ]
