"""Bring committed run records to today's names of settings, and mark them as older: their numbers are not made again.

    python benchmarks/migrate_records.py [--why "..."] [results/runs/laptop]

A record keeps every setting that it was run with, those that are gone too. Its content hash stays that of its own code,
so a batch makes it again. A second run changes nothing.
"""

import argparse
from pathlib import Path

from adlib import record_files
from adlib.settings import RENAMED

MERGED = ("scale", "validate_every")  # into a setting that the record has already
WHY = "before inputs kept their aspect ratio and one judge chose for all methods"


def migrate(record: dict, why: str) -> dict:
    """Return the record with today's names, marked as older; its protocol says whether its model was trained."""
    names = {old: new for old, new in RENAMED.items() if old not in MERGED} | {"target_dim": "embedding_dim"}
    parameters = {names.get(name, name): value for name, value in record["parameters"].items()}
    protocol = dict(record["protocol"])
    if record["method"] == "few_shot":  # `trained_on` was that of a second model beside it
        protocol["trained_on"] = []
        record = {key: value for key, value in record.items() if key != "trained_on"}
    if "trained_on" in protocol and "selected_step" in record:
        protocol["step"] = record["selected_step"]
    return record | {"protocol": protocol, "parameters": parameters, "older": record.get("older") or why}


def main() -> None:
    """Migrate every record below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/runs/laptop"))
    parser.add_argument("--why", default=WHY, help="what is older about them")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.rglob("record.json"))
    for file in files:
        record = migrate(record_files.read_record(file.parent), arguments.why)
        record_files.write_record(file.parent, record)
    print(f"{len(files)} records: {arguments.folder}")


if __name__ == "__main__":
    main()
