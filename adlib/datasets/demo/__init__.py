"""The demo data set: made on first use, in seconds, without a download.

Five categories in the MVTec AD layout, 160 x 160 pixels, 40 training and 62 (the tray 60) test images each:

- `brick`, `grass`, `gravel`: scikit-image's photographs (CC0), tinted and cut into crops. Training crops come from one
  part of a photograph and test crops from the other, so no test pixel was ever trained on.
- `gear`: a rendered steel gear; a tooth can break.
- `tray`: six wells with pins. Its logical defects (missing, surplus, misplaced) break a rule of counts and colours
  while every small window looks normal. `defects_config.json` is written as in MVTec LOCO AD, and the masks hold the
  pixel values it names.

Defects are graded: each kind runs from hardly visible to plain, so no method should reach 100 %.
"""

import fcntl
import json
from pathlib import Path

import numpy as np
from PIL import Image

from adlib.datasets import loco
from adlib.datasets.demo import scenes
from adlib.datasets.layouts import MVTEC
from adlib.datasets.table import unknown_category
from adlib.errors import InputError
from adlib.paths import data_dir, temporary_beside, writing

VERSION = 2  # raise it when the same seed gives other bytes: trees of older versions are then made anew
STAMP = "demo.json"
TRAIN, TEST_GOOD, TEST_BAD, PER_DEFECT = 40, 30, 32, 8  # images of a category; the tests make smaller trees
KIND = {
    "break": "structural",
    "dent": "structural",
    "hole": "structural",
    "scratch": "structural",
    "stain": "structural",
    "missing": "logical",
    "surplus": "logical",
    "misplaced": "logical",
}
# A misplaced pin shows at two places; finding one of them is enough. The other kinds are to be covered whole.
SATURATION = {"misplaced": 0.5}


def categories(root: Path | None = None) -> list[str]:
    """Return the names of the demo categories; nothing is generated for it."""
    return sorted(scenes.DEFECTS)


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a demo category, generating the data set where it is not there yet."""
    if category not in categories():  # before the work of generating
        raise unknown_category(category, "demo", categories())
    return MVTEC.rows(generate(root), category)


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a demo category."""
    return MVTEC.mask_files(generate(root), category)


def generate(root=None, seed: int | None = None) -> Path:
    """Write the demo data set, unless it is already there.

    The tree is made beside its place and moved there whole. Two processes may ask at once: the second waits for the
    first. The same seed gives the same bytes.

    Args:
        root: its folder; default `data/demo`.
        seed: seed of all pictures; default 0, or the seed of the tree that is there.

    Returns:
        the folder.

    Raises:
        InputError: `root` holds files of something else.
    """
    root = Path(root) if root is not None else data_dir() / "demo"
    if _is_current(root, seed):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.parent / f".{root.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_current(root, seed):  # another process made it while this one waited
            return root
        if root.exists() and any(root.iterdir()) and not (root / STAMP).is_file():
            raise InputError(f"demo folder {root} holds other files; name an empty or a new folder")
        with writing(root), temporary_beside(root) as temporary:
            _write(temporary / "new", _stamp(root).get("seed", 0) if seed is None else seed)
            if root.exists():
                root.rename(temporary / "old")
            (temporary / "new").rename(root)
    return root


def _stamp(root: Path) -> dict:
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _is_current(root: Path, seed: int | None) -> bool:
    stamp = _stamp(root)
    return stamp.get("version") == VERSION and (seed is None or stamp.get("seed") == seed)


def _write(root: Path, seed: int) -> None:
    for number, category in enumerate(categories()):
        kinds = scenes.DEFECTS[category]
        for split, count in (("train", TRAIN), ("test", TEST_GOOD)):
            for i in range(count):
                image, _ = scenes.scene(category, split, np.random.default_rng([seed, number, split == "test", i]))
                _save(root / category / split / "good" / f"{i:03d}.png", image)
        for k, kind in enumerate(kinds):
            # Eight of each where there are four kinds, six where there are five.
            for i, strength in enumerate(np.linspace(0.15, 1.0, min(PER_DEFECT, TEST_BAD // len(kinds)))):
                place = [seed, number, 2 + k, i]
                scene_rng, defect_rng = np.random.default_rng([*place, 0]), np.random.default_rng([*place, 1])
                image, mask = scenes.scene(category, "test", scene_rng, kind, float(strength), defect_rng)
                _save(root / category / "test" / kind / f"{i:03d}.png", image)
                value = 255 - k if category == "tray" else 255
                _save(root / category / "ground_truth" / kind / f"{i:03d}_mask.png", mask.astype(np.uint8) * value)
    entries = [(kind, 255 - k, SATURATION.get(kind, 1.0), True) for k, kind in enumerate(scenes.DEFECTS["tray"])]
    config = [dict(zip(loco.FIELDS, entry, strict=True)) for entry in entries]
    (root / "tray" / "defects_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (root / STAMP).write_text(json.dumps({"seed": seed, "version": VERSION}) + "\n")


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=6)  # fixed, so that the bytes are
