"""Your own images: a folder of good ones, and perhaps one of bad ones and one of masks."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from adlib.datasets.table import MASK_THRESHOLD, existing_folder, make_table, refuse_misnamed, sample
from adlib.errors import InputError
from adlib.images import list_images


def load_folder(
    good,
    bad=None,
    masks=None,
    test_good=None,
    test_share: float = 0.2,
    seed: int = 0,
    category: str | None = None,
    mask_threshold: int = MASK_THRESHOLD,
) -> pd.DataFrame:
    """Return the sample table of plain folders. All of them are searched with their subfolders.

    Args:
        good: folder of normal images.
        bad: folder of anomalous images; a subfolder's name becomes the kind of defect, else it is "bad".
        masks: folder of masks of the bad images, or of some of them. A mask has its image's stem, or stem + "_mask";
            where names repeat in subfolders, the subfolders must be the same too.
        test_good: folder of normal images to test on. Without it, and with `bad`, a share of `good` is used: metrics
            need both classes.
        test_share: that share, in (0, 1); at least one image stays on each side.
        seed: which images it is.
        category: name in the table; default the name of the folder `good`.
        mask_threshold: a mask pixel is true above it; 0 for masks of 0 and 1 or of class numbers.

    Raises:
        InputError: missing or empty folder, folders within one another, a mask that belongs to no image.
    """
    if masks is not None and bad is None:
        raise InputError(f"masks {masks} are given without bad images; name their folder (bad=...)")
    given = {"good": good, "bad": bad, "masks": masks, "test_good": test_good}
    folders = {name: existing_folder(path, f"{name} folder") for name, path in given.items() if path is not None}
    for name, folder in folders.items():
        for other, inside in folders.items():
            if name != other and (folder == inside or folder in inside.parents):
                raise InputError(f"{other} folder {inside} lies within {name} folder {folder}; keep them apart")
    files = {name: list_images(folder, recursive=True) for name, folder in folders.items()}
    for name, images in files.items():
        if not images:
            raise InputError(f"{name} folder {folders[name]} holds no image (.png, .jpg, .bmp, .tif, ...)")

    category = category or folders["good"].name
    train, test = files["good"], files.get("test_good", [])
    if bad is not None and test_good is None:
        train, test = _divide(train, test_share, seed, folders["good"])
    rows = [sample(image, None, "good", "train", category) for image in train]
    rows += [sample(image, None, "good", "test", category) for image in test]
    by_stem = defaultdict(list)
    for mask in files.get("masks", []):
        by_stem[mask.stem.removesuffix("_mask")].append(mask)
    repeated = Counter(image.stem for image in files.get("bad", []))
    for image in files.get("bad", []):
        inside = image.relative_to(folders["bad"])
        kind = inside.parts[0] if len(inside.parts) > 1 else "bad"
        if kind == "good":
            raise InputError(f"{image}: a folder 'good' among the bad images; move or rename it")
        mask = _mask_of(inside, folders["masks"], by_stem, repeated) if masks is not None else None
        rows.append(sample(image, mask, kind, "test", category))
    refuse_misnamed(rows, files.get("masks", []))
    return make_table(rows, "folder", mask_threshold)


def _divide(images: list[Path], share: float, seed: int, folder: Path) -> tuple[list[Path], list[Path]]:
    if not 0 < share < 1:
        raise InputError(f"test_share {share!r} must lie between 0 and 1")
    if len(images) < 2:
        raise InputError(f"good folder {folder} holds 1 image; at least 2 are needed to train and to test")
    count = min(max(1, round(share * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(seed).choice(len(images), count, replace=False).tolist())
    return [f for i, f in enumerate(images) if i not in chosen], [images[i] for i in sorted(chosen)]


def _mask_of(image: Path, folder: Path, by_stem: dict[str, list[Path]], repeated: Counter) -> Path | None:
    """Return the mask of an image, given by its path within the folder of bad images; None where it has none."""
    named = by_stem.get(image.stem.removesuffix("_mask"), [])
    beside = [mask for mask in named if mask.relative_to(folder).parent == image.parent]
    found = beside or (named if repeated[image.stem] == 1 else [])
    if len(found) > 1:
        seen = ", ".join(map(str, found[:2]))
        raise InputError(f"bad image {image}: {len(found)} masks of this name ({seen}) in {folder}; expected one")
    return found[0] if found else None
