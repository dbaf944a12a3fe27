"""Validation of a data set on disk, so that a broken download is found before a night of training."""

import difflib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from adlib.datasets import catalogue, loading
from adlib.datasets.table import COLUMNS, file_hash, subfolders
from adlib.errors import InputError
from adlib.images import list_images, read_image, read_mask

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

    Looked for: empty categories, counts other than published, defective images without mask, masks without image,
    names that nearly match, unreadable files, masks of another size than their image, black masks, and the same
    image (by content) in training and test.

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
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in module.rows(root, name, strict=False)]
        except InputError as error:
            if name not in module.categories(root):
                raise
            found["unusable category"].append(str(error))
            continue
        _check_counts(layout, name, rows, found)
        _check_pairs(module.mask_files(root, name), rows, layout, found)
        _check_files(rows, module.MASK_THRESHOLD, found)
        _check_duplicates(rows, found)
    return [Problem(kind, len(items), tuple(items[:EXAMPLES])) for kind, items in found.items() if items]


def _check_counts(layout: str, category: str, rows: list[dict], found) -> None:
    train = sum(row["split"] == "train" for row in rows)
    normal = sum(row["split"] == "test" and row["label"] == 0 for row in rows)
    anomalous = sum(row["split"] == "test" and row["label"] == 1 for row in rows)
    if normal + anomalous == 0:
        found["category without test images"].append(category)
    if train == 0 and layout not in ("mad_man", "mad_sys"):
        found["category without training images"].append(category)
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
            masks = [read_mask(part, threshold) for part in parts]
        except InputError as error:
            found["unreadable mask"].append(str(error))
            continue
        for part, mask in zip(parts, masks, strict=True):
            if size is not None and mask.shape != size:
                found["mask and image differ in size"].append(
                    f"{part} is {mask.shape[1]} x {mask.shape[0]}, {row['image_path']} is {size[1]} x {size[0]}"
                )
        if not any(mask.any() for mask in masks):
            found["empty mask of a defective image"].append(str(mask_path))


def _check_duplicates(rows: list[dict], found) -> None:
    splits = defaultdict(dict)  # content -> split -> first image
    for row in rows:
        splits[file_hash(row["image_path"])].setdefault(row["split"], row["image_path"])
    for images in splits.values():
        if len(images) > 1:
            found["same image in two splits"].append(" and ".join(images.values()))
