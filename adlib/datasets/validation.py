"""Validation of a data set on disk, so that a broken download is found before a night of training."""

import difflib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from adlib.datasets import catalogue, loading, mad
from adlib.datasets.table import COLUMNS, file_hash, make_table, masks, subfolders
from adlib.errors import InputError
from adlib.images import image_shape, list_images, read_image, read_mask

EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """One kind of problem: how often it occurs, and where first."""

    kind: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return f"{self.kind} ({self.count}): {'; '.join(self.examples)}{more}"


def check(layout: str, root=None, category: str | None = None) -> list[Problem]:
    """Read every file of a data set and name what is wrong.

    Looked for: empty categories, what `missing_for_evaluation` tells of each, counts other than published, defective
    images without mask, masks without image, names that nearly match, unreadable files, masks of another size than
    their image, black, nearly white or of values below the threshold, and the same image (by content) in two splits.

    Args:
        layout, root, category: as in `datasets.load`.

    Returns:
        the problems, an empty list when there is none; each has a count and its first examples.

    Raises:
        InputError: there is no such data set, root or category.
    """
    module, root = loading.locate(layout, root)
    names = [category] if category is not None else module.categories(root)
    found = defaultdict(list)
    if category is None and root is not None:
        found["empty category"] = [str(f) for f in subfolders(root) if f.name not in names and not any(f.rglob("*.*"))]
    if not names and not found["empty category"]:
        raise InputError(f"data root {root} holds no category of the layout of {layout!r}; see: adlib data list")
    for name in names:
        try:
            found_rows = module.rows(root, name)
        except InputError as error:
            if name not in module.categories(root):
                raise
            found["unusable category"].append(str(error))
            continue
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in found_rows]
        _check_counts(layout, name, rows, found)
        for line in _missing_images(make_table(found_rows, layout)):
            kind, meaning = line.split(": ")
            if kind != "no normal training image" or layout not in mad.NAMES:  # these hold test images only
                found[kind].append(f"{name}: {meaning}")
        _check_pairs(module.mask_files(root, name), rows, layout, found)
        _check_files(rows, module.MASK_THRESHOLD, found)
        _check_duplicates(rows, found)
    return [Problem(kind, len(items), tuple(items[:EXAMPLES])) for kind, items in found.items() if items]


def missing_for_evaluation(table: pd.DataFrame) -> list[str]:
    """Tell, before anything is fitted, what a category lacks for its metrics and its threshold.

    Args:
        table: a sample table of one category, training and test rows.

    Returns:
        one line for each thing, "what is missing: what follows from it"; an empty list where nothing is.

    Raises:
        InputError: a mask of a test image cannot be used (`masks`), or is of another size than its image.
    """
    bad, found = table[(table.split == "test") & (table.label == 1)], []
    for image, file, mask in zip(bad.image_path, bad.mask_path, masks(bad), strict=True):
        if mask is not None and mask.shape != (shape := image_shape(image)):
            raise InputError(f"{file}: mask is {mask.shape}, its image is {shape}; sizes must agree")
        found.append(None if mask is None else bool(mask.any()))
    lines, without, black = _missing_images(table), found.count(None), found.count(False)
    if without == len(bad) > 0:
        lines.append("no masks of defective images: pixel metrics are undefined")
    elif without:
        lines.append(f"{without} of {len(bad)} defective images have no mask: pixel metrics leave them out")
    if black:
        lines.append(f"{black} of {len(bad)} defective images have a black mask: pixel metrics leave them out")
    return lines


def _missing_images(table: pd.DataFrame) -> list[str]:
    """The lines of `missing_for_evaluation` that need no mask."""
    good, test = table.label == 0, table.split == "test"
    lines, n_train = [], int((good & (table.split == "train")).sum())
    if not n_train:
        lines.append("no normal training image: nothing can be fitted")
    elif n_train < 4:
        lines.append("fewer than 4 normal training images: most methods cannot hold out the 2 that a threshold needs")
    if not test.any():
        return [*lines, "no test image: nothing can be measured"]
    if not (test & good).any():
        lines.append("no good test image: image metrics and the rate of false alarms are undefined")
    if not (test & ~good).any():
        lines.append("no defective test image: only the rate of false alarms can be measured")
    return lines


def _check_counts(layout: str, category: str, rows: list[dict], found) -> None:
    train = sum(row["split"] == "train" for row in rows)
    normal = sum(row["split"] == "test" and row["label"] == 0 for row in rows)
    anomalous = sum(row["split"] == "test" and row["label"] == 1 for row in rows)
    entry = catalogue.DATASETS.get(layout)
    published = entry.counts.get(category) if entry else None
    if published and published != (train, normal, anomalous):
        found["counts differ from the published ones"].append(
            f"{category}: train, test normal, test anomalous {train}, {normal}, {anomalous} "
            f"instead of {', '.join(map(str, published))}"
        )


def _check_pairs(mask_files: list[Path], rows: list[dict], layout: str, found) -> None:
    paired = {row["mask_path"] for row in rows}
    unused = [mask for mask in mask_files if str(mask) not in paired]
    without = [Path(row["image_path"]) for row in rows if row["label"] == 1 and row["mask_path"] is None]
    for image in without if layout != "elpv" else []:
        # A near name in the folder of the same kind is most likely a misnamed mask.
        same_kind = {mask.stem.removesuffix("_mask"): mask for mask in unused if mask.parent.name == image.parent.name}
        near = difflib.get_close_matches(image.stem, same_kind, n=1, cutoff=0.6)
        if near:
            unused.remove(same_kind[near[0]])
            found["mask is not named like its image"].append(f"{image} and {same_kind[near[0]]}")
        else:
            found["defective image without mask"].append(str(image))
    found["mask without image"].extend(map(str, unused))


def _check_files(rows: list[dict], threshold: int, found) -> None:
    for row in tqdm(rows, desc=f"check {rows[0]['category']}", disable=None, leave=False):
        try:
            size = read_image(row["image_path"]).shape[:2]
        except InputError as error:
            found["unreadable image"].append(str(error))
            size = None
        if row["mask_path"] is None:
            continue
        mask_path = Path(row["mask_path"])
        parts = list_images(mask_path) if mask_path.is_dir() else [mask_path]
        try:
            regions = [read_mask(part, threshold) for part in parts]
        except InputError as error:
            found["unusable mask"].append(str(error))
            continue
        for part, mask in zip(parts, regions, strict=True):
            if size is not None and mask.shape != size:
                found["mask and image differ in size"].append(
                    f"{part} is {mask.shape[1]} x {mask.shape[0]}, {row['image_path']} is {size[1]} x {size[0]}"
                )
            if mask.mean() > 0.9:
                found["mask covers more than nine tenths of its image (inverted?)"].append(str(part))
        if not any(mask.any() for mask in regions):
            found["black mask of a defective image"].append(str(mask_path))


def _check_duplicates(rows: list[dict], found) -> None:
    splits = defaultdict(dict)  # content -> split -> first image
    for row in rows:
        splits[file_hash(row["image_path"])].setdefault(row["split"], row["image_path"])
    for images in splits.values():
        if len(images) > 1:
            found["same image in two splits"].append(" and ".join(images.values()))
