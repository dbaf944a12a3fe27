"""The regions of MVTec LOCO AD: one mask file each; a `defects_config.json` in each category tells their kinds.

`mask_path` is the *folder* of an image's regions: `images.read_mask` gives their union, `regions` keeps them apart as
the saturated overlap (sPRO) needs them. Summing or uniting the files first would merge regions that touch.
"""

import json
import math
from pathlib import Path

import numpy as np

from adlib.errors import InputError
from adlib.images import list_images, read_image

FIELDS = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")


def read_config(defects_config) -> dict[int, dict]:
    """Read a `defects_config.json`: pixel value -> defect_name, saturation_threshold, relative_saturation.

    Raises:
        InputError: no such file, not JSON, an entry lacks a field or holds what it cannot mean, or two entries share a
            pixel value.
    """
    try:
        entries = json.loads(Path(defects_config).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{defects_config}: cannot be read ({error.strerror}); it lies in the category folder"
        ) from None
    except ValueError as error:
        raise InputError(f"{defects_config}: not JSON ({error})") from None
    config = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        for key in FIELDS:
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(f"{defects_config}: an entry has no {key!r}; got {entry!r}")
        _check_entry(entry, defects_config)
        if config.setdefault(entry["pixel_value"], entry) is not entry:
            raise InputError(f"{defects_config}: pixel value {entry['pixel_value']} stands there twice")
    return config


def _check_entry(entry: dict, source) -> None:
    """Refuse values of an entry that say nothing; JSON knows NaN, and true is a number to Python."""
    value, threshold, relative = (entry[key] for key in FIELDS[1:])
    if type(value) is not int or not 0 < value < 256:
        raise InputError(f"{source}: pixel_value {value!r} must be a grey value from 1 to 255")
    if not isinstance(relative, bool):
        raise InputError(f"{source}: relative_saturation {relative!r} of pixel value {value} must be true or false")
    highest = 1 if relative else math.inf
    if type(threshold) not in (int, float) or not 0 < threshold <= highest or math.isinf(threshold):
        expected = "a share of the region above 0 and up to 1" if relative else "a number of pixels above 0"
        raise InputError(f"{source}: saturation_threshold {threshold!r} of pixel value {value} must be {expected}")


def saturation_area(region_area: int, threshold: float, relative: bool) -> int:
    """Return how many pixels of a region must be found for full marks.

    Returns:
        floor(threshold x region area) where the saturation is relative, floor(threshold) where it is absolute; at least
        1 and at most the region: a threshold larger than its region could never be reached.

    >>> saturation_area(49, 0.5, relative=True), saturation_area(91, 1000, relative=False)
    (24, 91)
    """
    return max(1, min(int(threshold * region_area if relative else threshold), region_area))


def regions(mask, defects_config) -> list[tuple[np.ndarray, int, str]]:
    """Return the regions of one image, each with the area at which its overlap is saturated.

    A logical anomaly often has no exact place: of a missing part one only knows where it could have been. The
    overlap with such a region counts as complete once `saturation area` of its pixels are found (MVTec LOCO AD,
    Bergmann et al. 2022, section 4).

    Args:
        mask: the mask folder of an image (`mask_path`), or a single mask file.
        defects_config: path of the category's `defects_config.json`.

    Returns:
        (bool mask (H, W), `saturation_area` in pixels, defect name) for each mask file.

    Raises:
        InputError: no mask file, a black or a many-valued mask, a pixel value without an entry.
    """
    mask, config = Path(mask), read_config(defects_config)
    files = list_images(mask) if mask.is_dir() else [mask]
    if not files:
        raise InputError(f"{mask}: no mask file; expected one for each region of the image")
    annotations = []
    for file in files:
        pixels = read_image(file).max(axis=2)
        values = np.unique(pixels[pixels > 0]).tolist()
        if len(values) != 1:
            raise InputError(f"{file}: expected one grey value beside 0 in the mask of a region, found {values}")
        if values[0] not in config:
            raise InputError(f"{file}: pixel value {values[0]} has no entry in {defects_config}")
        name, _, threshold, relative = (config[values[0]][key] for key in FIELDS)
        region = pixels > 0
        annotations.append((region, saturation_area(int(region.sum()), threshold, relative), name))
    return annotations
