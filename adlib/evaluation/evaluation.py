"""Evaluation: the only reader of test labels and masks. It runs a fitted method over a test table.

Pixel metrics are taken over all normal test images and all defective ones that have a mask; of a defective image
without one, or with a black one, nobody knows which pixels are normal, so it is left out and counted. By default maps
and masks are compared at the network's input size, as the papers do; `resolution="original"` maps every anomaly map
back onto the original canvas and streams it into histograms, so that memory does not grow with the number or the size
of the test images.
"""

import time
import warnings
from dataclasses import dataclass, field

import cv2
import numpy as np
import pandas as pd

from adlib import datasets
from adlib.errors import InputError
from adlib.evaluation import metrics
from adlib.images import batches
from adlib.settings import choice

RESOLUTIONS = ("input", "original")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05")


@dataclass
class Evaluation:
    """What a test run gives.

    Attributes:
        scores: one row per image: image_path, category, defect, label, score.
        metrics: image and pixel metrics as fractions; None where they are undefined (no defects, no masks).
        seconds_per_image: scoring time without and with reading the files.
        anomaly_maps: at input size, in the order of `scores`.
        masks: the same; all false where an image has none, an empty list at original resolution.
        bounds: at original resolution, how far each pixel metric may be from the exact one.
        measured: one bool per image: whether its pixels count in the pixel metrics.
        left_out: number of defective images whose pixels do not count, though others' do: `without_mask`,
            `black_mask`; empty where there is none.
        vanished: number of `masks` and of `regions` of which no pixel is left at the input size, so that pixel metrics
            do not see them, and `of_masks`, `of_regions`, how many there are; empty where none vanishes.
        method: the fitted method whose scores these are.
    """

    scores: pd.DataFrame
    metrics: dict
    seconds_per_image: dict
    anomaly_maps: list = field(default_factory=list, repr=False)
    masks: list = field(default_factory=list, repr=False)
    bounds: dict = field(default_factory=dict)
    measured: list = field(default_factory=list, repr=False)
    left_out: dict = field(default_factory=dict)
    vanished: dict = field(default_factory=dict)
    method: object = field(default=None, repr=False)

    def __post_init__(self):
        self.measured = self.measured or [True] * len(self.anomaly_maps)


def evaluate(method, table: pd.DataFrame, resolution: str = "input", batch_size: int | None = None) -> Evaluation:
    """Score a test table with a fitted method and compute every metric.

    Args:
        method: anything with `resize` and `score(batch)`.
        table: a sample table; rows of other splits than `test` are refused.
        resolution: `input` (exact metrics at network size) or `original` (streamed, with a stated bound).
        batch_size: images per forward pass; default the method's own.
    """
    choice("resolution", resolution, RESOLUTIONS)
    if len(table) == 0:
        raise InputError("the test table is empty; expected rows with split 'test'")
    if (table.split != "test").any():
        raise InputError("the table to evaluate holds rows of other splits; pass table[table.split == 'test']")

    image_scores, anomaly_maps, geometries, scoring = [], [], [], 0.0
    batch_size = batch_size or getattr(method.settings, "batch_size", 16)
    started = time.perf_counter()
    for batch in batches(table.image_path, method.resize, batch_size, progress="score"):
        before = time.perf_counter()
        scores = method.score(batch)
        scoring += time.perf_counter() - before
        if not (np.isfinite(scores.image).all() and np.isfinite(scores.map).all()):
            raise InputError(f"scores of {batch.paths[0]} and its batch contain NaN; the fitted model is broken")
        image_scores.extend(scores.image.tolist())
        anomaly_maps.extend(scores.map)
        geometries.extend(batch.geometries)
    elapsed = time.perf_counter() - started

    values = metrics.image_metrics(np.array(image_scores), table.label.to_numpy()) | dict.fromkeys(PIXEL_METRICS)
    bad, bounds, masks, reasons, regions = table.label.to_numpy() == 1, {}, [], [], []
    stream = metrics.StreamingPixelMetrics.from_maps(anomaly_maps) if resolution == "original" else None
    for defective, mask, geometry, anomaly_map, path in zip(
        bad, datasets.masks(table), geometries, anomaly_maps, table.mask_path, strict=True
    ):
        reasons.append("" if not defective else "without_mask" if mask is None else "" if mask.any() else "black_mask")
        mask = np.zeros(geometry.original, dtype=bool) if mask is None else mask
        if mask.shape != geometry.original:
            raise InputError(f"{path}: mask is {mask.shape}, its image is {geometry.original}; sizes must agree")
        if stream is None:
            masks.append(method.resize.mask(mask))
            if mask.any():
                regions.append(regions_left(mask, masks[-1], geometry))
        elif not reasons[-1]:
            # Only the small maps are held; each is enlarged, counted into the histograms and dropped again. What a
            # crop cut off was never seen: it counts as perfectly normal instead of being left out.
            full = np.nan_to_num(geometry.to_original(anomaly_map), nan=float(anomaly_map.min()))
            stream.update(full, mask)
    measured = np.array([not reason for reason in reasons])
    if (bad & measured).any():
        if stream is None:
            rows = np.flatnonzero(measured)
            values |= metrics.pixel_metrics([anomaly_maps[i] for i in rows], [masks[i] for i in rows])
        else:
            values, bounds = values | stream.compute(), stream.bound()
    left_out = {reason: reasons.count(reason) for reason in ("without_mask", "black_mask") if reason in reasons}
    if left_out == {"without_mask": bad.sum()}:
        left_out = {}  # data without masks: there are no pixel metrics to be left out of
    elif left_out:
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())
        warnings.warn(f"pixel metrics leave out defective images: {counts}", stacklevel=1)  # once per process
    if vanished := _vanished(regions):
        counts = "{masks} of {of_masks} masks, {regions} of {of_regions} regions".format(**vanished)
        warnings.warn(f"pixel metrics do not see defects too small for the input size: {counts}", stacklevel=1)
    scores = table[["image_path", "category", "defect", "label"]].reset_index(drop=True).assign(score=image_scores)
    seconds = {"score": scoring / len(table), "read_and_score": elapsed / len(table)}
    return Evaluation(
        scores, values, seconds, anomaly_maps, masks, bounds, measured.tolist(), left_out, vanished, method
    )


def regions_left(mask: np.ndarray, small: np.ndarray, geometry) -> tuple[int, int]:
    """Count the regions (8-connected) of a mask (H, W), and those that `small`, it at the input size, still shows.

    Returns:
        all regions, and those at whose place at least one pixel of `small` is true.
    """
    n_labels, labels = cv2.connectedComponents(np.uint8(mask), connectivity=8)
    labels_left = np.unique(labels[geometry.to_original(small) > 0])
    return n_labels - 1, int(np.count_nonzero(labels_left))


def _vanished(regions: list[tuple[int, int]]) -> dict:
    """Sum up pairs of `regions_left`, one per mask; empty where nothing vanishes."""
    of_regions, n_left = (sum(counts) for counts in zip(*regions, strict=True)) if regions else (0, 0)
    if n_left == of_regions:
        return {}
    counts = {"masks": sum(not n for _, n in regions), "of_masks": len(regions)}
    return counts | {"regions": of_regions - n_left, "of_regions": of_regions}


def at_threshold(scores: pd.DataFrame, threshold: float) -> dict:
    """Describe decisions `score > threshold` on test scores: false-alarm rate, detection rate, per kind of defect.

    The threshold must come from held-out normal images (`adlib.evaluation.thresholds`); here it is only looked at.
    """
    flagged = scores.score > threshold
    rate = flagged.groupby(scores.defect).mean()
    bad, good = scores.label == 1, scores.label == 0
    return {
        "false_alarm_rate": float(flagged[good].mean()) if good.any() else None,
        "detection_rate": float(flagged[bad].mean()) if bad.any() else None,
        "detection_rate_by_defect": {k: float(v) for k, v in rate.items() if k in set(scores.defect[bad])},
    }
