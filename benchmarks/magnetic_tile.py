"""Lay the published magnetic tiles out as the data set `magnetic_tile`: MVTec's folders, the split of our records.

    python benchmarks/magnetic_tile.py Magnetic-tile-defect-datasets. ~/data/magnetic_tile

The repository holds `MT_<kind>/Imgs/<stem>.jpg`, with a mask `<stem>.png`; MT_Free are the good tiles. Several pictures
may show one tile, so good ones are split by the tile's number: no tile is in training and in test.
"""

import argparse
import hashlib
import re
import shutil
from pathlib import Path

from adlib.errors import InputError


def place_of(kind: str, stem: str) -> str:
    """Return the folder of an image: a fifth of the good tiles, by a hash of their number, is for testing."""
    if kind != "free":
        return f"test/{kind}"
    number = re.search(r"num_(\d+)", stem).group(1)
    return "test/good" if int(hashlib.md5(number.encode()).hexdigest(), 16) % 5 == 0 else "train/good"


def main() -> None:
    """Copy every image and mask; files that are there stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="clone of the repository")
    parser.add_argument("target", type=Path, help="folder of the data set")
    arguments = parser.parse_args()
    files = sorted(arguments.source.glob("MT_*/Imgs/*.jpg"))
    if not files:
        raise InputError(f"{arguments.source} holds no MT_*/Imgs/*.jpg; give a clone of the repository")
    for file in files:
        kind = file.parts[-3].removeprefix("MT_").lower()
        folder = arguments.target / "magnetic_tile" / place_of(kind, file.stem)
        copies = {file: folder / file.name}
        if kind != "free":
            mask = arguments.target / "magnetic_tile" / "ground_truth" / kind / f"{file.stem}_mask.png"
            copies[file.with_suffix(".png")] = mask
        for source, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copy(source, copy)
    print(f"{len(files)} images: {arguments.target}")


if __name__ == "__main__":
    main()
