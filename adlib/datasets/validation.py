"""Validation of a data set on disk, so that a broken download is found before a night of training."""

import difflib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from adlib.datasets import catalogue, loading, mad
from adlib.datasets.layouts import Layout
from adlib.datasets.table import file_hash, make_table, masks, shared_masks, subfolders
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


def check(dataset: str, root=None, category: str | None = None) -> list[Problem]:
    """Read every file of a data set and name what is wrong.

    Looked for: empty categories, what `missing_for_evaluation` tells of each, counts other than published, defective
    images without mask, masks without image, names that nearly match, unreadable files, masks of another size than
    their image, black, nearly white or of values below the threshold, the same image (by content) in two splits, and
    files beside and below the images that are not read.

    Args:
        dataset, root, category: as in `datasets.load`.

    Returns:
        the problems, an empty list when there is none; each has a count and its first examples.

    Raises:
        InputError: there is no such data set, root or category.
    """
    layout, root = loading.locate(dataset, root)
    names = [category] if category is not None else layout.categories(root)
    problems = defaultdict(list)
    if category is None and root is not None:
        empty = [f for f in subfolders(root) if f.name not in names and not any(f.rglob("*.*"))]
        problems["empty category"] = list(map(str, empty))
    if not names and not problems["empty category"]:
        raise loading.no_category(layout, root, dataset)
    for name in names:
        try:
            rows = layout.rows(root, name)
            table = make_table(rows, dataset, loading.mask_threshold(layout))
        except InputError as error:
            if name not in layout.categories(root):
                raise
            problems["unusable category"].append(str(error))
            continue
        problems["mask of two images"] += shared_masks(rows)
        _check_counts(dataset, name, table, problems)
        for line in _missing_images(table):
            kind, meaning = line.split(": ")
            if kind != "no normal training image" or dataset not in mad.NAMES:  # these hold test images only
                problems[kind].append(f"{name}: {meaning}")
        _check_pairs(layout.mask_files(root, name), table, dataset, problems)
        _check_files(table, name, problems)
        _check_duplicates(table, problems)
        if isinstance(layout, Layout) and not layout.split_file:
            _check_left_out(table, problems)
    return [Problem(kind, len(items), tuple(items[:EXAMPLES])) for kind, items in problems.items() if items]


def missing_for_evaluation(table: pd.DataFrame) -> list[str]:
    """Tell, before anything is fitted, what a category lacks for its metrics and its threshold.

    Args:
        table: a sample table of one category, training and test rows.

    Returns:
        one line for each thing, "what is missing: what follows from it"; an empty list where nothing is.

    Raises:
        InputError: a mask of a test image cannot be used (`masks`), or is of another size than its image.
    """
    bad, black, without = table[(table.split == "test") & (table.label == 1)], 0, 0
    for image, file, mask in zip(bad.image_path, bad.mask_path, masks(bad), strict=True):
        if mask is not None and mask.shape != (shape := image_shape(image)):
            raise InputError(f"{file}: mask is {mask.shape}, its image is {shape}; sizes must agree")
        without += mask is None
        black += mask is not None and not mask.any()
    lines = _missing_images(table)
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


def _check_counts(dataset: str, category: str, table: pd.DataFrame, problems) -> None:
    entry, test = catalogue.DATASETS.get(dataset), table[table.split == "test"]
    published = entry.counts.get(category) if entry else None
    counts = int((table.split == "train").sum()), int((test.label == 0).sum()), int((test.label == 1).sum())
    if published and published != counts:
        problems["counts differ from the published ones"].append(
            f"{category}: train, test normal, test anomalous {', '.join(map(str, counts))} "
            f"instead of {', '.join(map(str, published))}"
        )


def _check_pairs(mask_files: list[Path], table: pd.DataFrame, dataset: str, problems) -> None:
    paired = set(table.mask_path)
    unused = [mask for mask in mask_files if str(mask) not in paired]
    without = table.image_path[(table.label == 1) & table.mask_path.isna()]
    for image in map(Path, without if dataset != "elpv" else ()):
        # A near name in the folder of the same kind is most likely a misnamed mask.
        same_kind = {mask.stem.removesuffix("_mask"): mask for mask in unused if mask.parent.name == image.parent.name}
        near = difflib.get_close_matches(image.stem, same_kind, n=1, cutoff=0.6)
        if near:
            unused.remove(same_kind[near[0]])
            problems["mask is not named like its image"].append(f"{image} and {same_kind[near[0]]}")
        else:
            problems["defective image without mask"].append(str(image))
    problems["mask without image"].extend(map(str, unused))


def _check_files(table: pd.DataFrame, category: str, problems) -> None:
    rows = zip(table.image_path, table.mask_path, table.mask_threshold, strict=True)
    for image, mask_path, threshold in tqdm(rows, f"check {category}", len(table), disable=None, leave=False):
        try:
            size = read_image(image, 32).shape[:2]  # whatever its depth: NaN is named
        except InputError as error:
            problems["unreadable image"].append(str(error))
            size = None
        if mask_path is None:
            continue
        parts = list_images(mask_path) if Path(mask_path).is_dir() else [mask_path]
        try:
            regions = [read_mask(part, threshold) for part in parts]
        except InputError as error:
            problems["unusable mask"].append(str(error))
            continue
        for part, mask in zip(parts, regions, strict=True):
            if size is not None and mask.shape != size:
                problems["mask and image differ in size"].append(
                    f"{part} is {mask.shape[1]} x {mask.shape[0]}, {image} is {size[1]} x {size[0]}"
                )
            if mask.mean() > 0.9:
                problems["mask covers more than nine tenths of its image (inverted?)"].append(str(part))
        if not any(mask.any() for mask in regions):
            problems["black mask of a defective image"].append(mask_path)


def _check_duplicates(table: pd.DataFrame, problems) -> None:
    first = table.assign(content=[file_hash(path) for path in table.image_path]).drop_duplicates(["content", "split"])
    for _, rows in first.groupby("content", sort=False):
        if len(rows) > 1:
            problems["same image in two splits"].append(" and ".join(rows.image_path))


def _check_left_out(table: pd.DataFrame, problems) -> None:
    read = set(table.image_path)
    for folder in sorted({Path(path).parent for path in read}):
        left_out = []
        deeper = list_images(folder, recursive=True, left_out=left_out)
        left_out += [path.relative_to(folder) for path in deeper if str(path) not in read]
        problems["file that is not read"].extend(str(folder / name) for name in left_out)
