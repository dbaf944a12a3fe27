"""The sample table: what every data set becomes, and what may be done with it before any image is read."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd

from adlib.errors import InputError, suggest
from adlib.images import list_images, read_mask

COLUMNS = ("image_path", "mask_path", "label", "defect", "split", "category")  # of a row, before `mask_threshold`
MASK_THRESHOLD = 127  # a mask pixel is true above it, unless its data set says otherwise


def sample(image, mask, defect: str, split: str, category: str) -> tuple:
    """Return one row of a sample table, in the order of `COLUMNS`; `defect` is "good" for a normal image."""
    return (str(image), None if mask is None else str(mask), int(defect != "good"), defect, split, category)


def make_table(rows: list[tuple], dataset: str, mask_threshold: int = MASK_THRESHOLD) -> pd.DataFrame:
    """Return rows of `sample` as a table with the column `mask_threshold` and `attrs["dataset"]`."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    # One dtype whatever the rows hold: without this, a table without masks or without rows would differ in type.
    table = table.astype({name: object for name in COLUMNS if name != "label"} | {"label": int})
    table["mask_path"] = table.mask_path.where(table.mask_path.notna(), None)
    table["mask_threshold"] = mask_threshold  # a column: `attrs` are lost where tables are joined or stored
    table.attrs.update(dataset=dataset)
    return table


def masks(table: pd.DataFrame):
    """Yield the mask of each row: bool (H, W) at its own size, or None where the row has none.

    A pixel is true above the row's `mask_threshold`; 127 where a table made by hand has no such column.

    Raises:
        InputError: a mask cannot be read, or is not black and yet has nothing above the threshold; names the file.
    """
    thresholds = table.get("mask_threshold", pd.Series(MASK_THRESHOLD, table.index)).fillna(MASK_THRESHOLD)
    for path, threshold in zip(table.mask_path, thresholds, strict=True):
        yield read_mask(path, int(threshold)) if isinstance(path, str) else None


def existing_folder(root, what: str = "data root") -> Path:
    """Return `root` as an absolute path, or raise InputError when there is no such folder."""
    root = Path(os.path.abspath(Path(root).expanduser()))  # symbolic links keep their names
    if not root.is_dir():
        raise InputError(f"{what} {root}: no such folder; check the path (adlib data list shows what is present)")
    return root


def subfolders(folder) -> list[Path]:
    """Return the visible folders in `folder`, by name."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != "." and f.name != "__MACOSX")


def looks_good(name: str) -> bool:
    """Tell whether a folder of this name most likely holds good images, not a kind of defect."""
    return name.strip().lower() in ("good", "ok", "okay", "normal", "nominal", "goods", "normals")


def unknown_category(category: str, where, names) -> InputError:
    """Return the error of a category that is not among the `names` of those in a data set or its folder."""
    there = ", ".join(names) or "none of this layout"
    return InputError(f"category {category!r} is not in {where}{suggest(category, names)}; there are: {there}")


def refuse_misnamed(rows: list[tuple], mask_files) -> None:
    """Refuse rows in which two images share a mask, or a defective one has none while one of `mask_files` has no image.

    Masks for some of the defects only are fine; but where a mask is left over as well, one name is most likely wrong.
    """
    if shared := shared_masks(rows):
        raise InputError(f"{shared[0]}; rename one of the images")
    missing = [image for image, mask, label, *_ in rows if label == 1 and mask is None]
    left_over = sorted(set(map(str, mask_files)) - {row[1] for row in rows}) if missing else []
    if left_over:
        raise InputError(
            f"{missing[0]}: no mask of this name, but {left_over[0]} belongs to no image; rename or remove one of them"
        )


def shared_masks(rows: list[tuple]) -> list[str]:
    """Return a line for each image whose mask is that of an image before it, as of 1.png and 1.jpg."""
    first: dict[str, str] = {}
    pairs = [(image, mask, first.setdefault(mask, image)) for image, mask, *_ in rows if mask is not None]
    return [f"{image}: its mask {mask} is that of {other} as well" for image, mask, other in pairs if image != other]


def hold_out(table: pd.DataFrame, share: float = 0.15, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the normal training images in two: most to fit on, a few to set thresholds and judge training by.

    Args:
        table: a sample table; only its rows with split "train" and label 0 are used.
        share: share of the normals to hold out, in (0, 1); at least one image goes to each side.
        seed: the same seed gives the same split.

    Returns:
        (train, held_out), both with all columns, in the order of `table`.
    """
    if not 0 < share < 1:
        raise InputError(f"share {share!r} of held-out images must lie between 0 and 1")
    normal = table[(table.split == "train") & (table.label == 0)]
    if len(normal) < 2:
        raise InputError(f"{len(normal)} normal training images: at least 2 are needed to hold one out")
    held_out = seeded_share(len(normal), share, seed)
    return normal[~held_out].reset_index(drop=True), normal[held_out].reset_index(drop=True)


def seeded_share(n: int, share: float, seed: int) -> np.ndarray:
    """Draw a share of `n` >= 2 rows, at least one and not all: bool (n,)."""
    mask = np.zeros(n, dtype=bool)
    count = min(max(1, round(share * n)), n - 1)
    mask[np.random.default_rng(seed).choice(n, count, replace=False)] = True
    return mask


def file_hash(path) -> str:
    """Return the blake2b hash of a file's content; for a folder, of the contents of its images in order."""
    path = Path(path)
    digest = hashlib.blake2b(digest_size=16)
    for file in list_images(path) if path.is_dir() else [path]:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); rebuild the sample table") from None
    return digest.hexdigest()


def table_hash(table: pd.DataFrame) -> str:
    """Return a hash of what a table says and what its files hold.

    Two copies of a data set in different places have the same hash; a changed image, mask, label or split does not.
    Only file names and their folder enter, never the path above them.

    Returns:
        32 hexadecimal digits (blake2b).
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in table[list(COLUMNS)].itertuples(index=False):
        mask = row.mask_path if isinstance(row.mask_path, str) else None
        for part in ("/".join(Path(row.image_path).parts[-2:]), row.label, row.defect, row.split, row.category):
            digest.update(f"{part}\0".encode(errors="surrogateescape"))
        digest.update(file_hash(row.image_path).encode())
        digest.update(file_hash(mask).encode() if mask else b"-")
    return digest.hexdigest()


def check_training_table(table: pd.DataFrame, what: str = "the training table") -> None:
    """Refuse a table that holds anything but normal images, or any image of a test split.

    This is the protocol in code: what a method is fitted on can never include test data.
    """
    if len(table) == 0:
        raise InputError(f"{what} is empty; expected at least one normal image")
    if (table.label != 0).any():
        path = table.image_path[table.label != 0].iloc[0]
        raise InputError(f"{what} holds an anomalous image ({path}); keep rows with label 0")
    if (table.split == "test").any():
        path = table.image_path[table.split == "test"].iloc[0]
        raise InputError(f"{what} holds a test image ({path}); keep rows with split 'train'")
