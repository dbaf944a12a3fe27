"""Your own images: a folder of good ones, and perhaps one of bad ones and one of masks."""

from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from adlib.datasets.table import (
    MASK_THRESHOLD,
    existing_folder,
    looks_good,
    make_table,
    refuse_misnamed,
    sample,
    seeded_share,
)
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
    folders = {"good": good, "bad": bad, "masks": masks, "test_good": test_good}
    folders = {name: existing_folder(path, f"{name} folder") for name, path in folders.items() if path is not None}
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
        if not 0 < test_share < 1:
            raise InputError(f"test_share {test_share!r} must lie between 0 and 1")
        if len(train) < 2:
            raise InputError(f"good folder {folders['good']} holds 1 image; at least 2 are needed to train and to test")
        test_mask = seeded_share(len(train), test_share, seed)
        train, test = ([image for image, of_test in zip(train, test_mask, strict=True) if of_test == k] for k in (0, 1))
    rows = [sample(image, None, "good", "train", category) for image in train]
    rows += [sample(image, None, "good", "test", category) for image in test]
    by_stem = defaultdict(list)
    for mask in files.get("masks", []):
        by_stem[mask.stem.removesuffix("_mask")].append(mask)
    repeated = Counter(image.stem for image in files.get("bad", []))
    for image in files.get("bad", []):
        inside = image.relative_to(folders["bad"])
        kind = inside.parts[0] if len(inside.parts) > 1 else "bad"
        if looks_good(kind):
            raise InputError(f"{image}: a folder {kind!r} among the bad images; move or rename it")
        mask = _mask_of(inside, folders["masks"], by_stem, repeated) if masks is not None else None
        rows.append(sample(image, mask, kind, "test", category))
    refuse_misnamed(rows, files.get("masks", []))
    return make_table(rows, "folder", mask_threshold)


def _mask_of(image: Path, folder: Path, by_stem: dict[str, list[Path]], repeated: Counter) -> Path | None:
    """Return the mask of an image, given by its path within the folder of bad images; None where it has none."""
    namesakes = by_stem.get(image.stem.removesuffix("_mask"), [])
    beside = [mask for mask in namesakes if mask.relative_to(folder).parent == image.parent]
    masks = beside or (namesakes if repeated[image.stem] == 1 else [])
    if len(masks) > 1:
        two = ", ".join(map(str, masks[:2]))
        raise InputError(f"bad image {image}: {len(masks)} masks of this name ({two}) in {folder}; expected one")
    return masks[0] if masks else None
