"""Evaluation: the only reader of test labels and masks. It runs a fitted method over a test table.

Pixel metrics are taken over *all* test images, normal ones included. By default maps and masks are compared at the
network's input size, as the papers do; `resolution="original"` maps every anomaly map back onto the original canvas
and streams it into histograms, so that memory does not grow with the number or the size of the test images.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from adlib import metrics
from adlib.errors import InputError
from adlib.images import batches, read_mask
from adlib.settings import choice

RESOLUTIONS = ("input", "original")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05")


@dataclass
class Evaluation:
    """What a test run gives.

    Attributes:
        scores: one row an image: image_path, category, defect, label, score.
        metrics: image and pixel metrics as fractions; None where they are undefined (no defects, no masks).
        seconds_per_image: scoring time without and with reading the files.
        anomaly_maps: at input size, in the order of `scores`.
        masks: the same; all false where the data have none, an empty list at original resolution.
        bounds: at original resolution, how far each pixel metric may be from the exact one.
    """

    scores: pd.DataFrame
    metrics: dict
    seconds_per_image: dict
    anomaly_maps: list = field(default_factory=list, repr=False)
    masks: list = field(default_factory=list, repr=False)
    bounds: dict = field(default_factory=dict)


def evaluate(method, table: pd.DataFrame, resolution: str = "input", batch_size: int | None = None) -> Evaluation:
    """Score a test table with a fitted method and compute every metric.

    Args:
        method: anything with `resize` and `score(batch)`.
        table: a sample table; rows of other splits than `test` are refused.
        resolution: `input` (exact metrics at network size) or `original` (streamed, with a stated bound).
        batch_size: images a forward pass; default the method's own.
    """
    choice("resolution", resolution, RESOLUTIONS)
    if len(table) == 0:
        raise InputError("the test table is empty; expected rows with split 'test'")
    if (table.split != "test").any():
        raise InputError("the table to evaluate holds rows of other splits; pass table[table.split == 'test']")
    threshold = table.attrs.get("mask_threshold", 127)
    has_masks = bool(table.mask_path[table.label == 1].notna().all()) and bool((table.label == 1).any())

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

    bounds = {}
    masks = (_mask(path, geometry, threshold) for path, geometry in zip(table.mask_path, geometries, strict=True))
    found = metrics.image_metrics(np.array(image_scores), table.label.to_numpy())
    if not has_masks:
        found |= dict.fromkeys(PIXEL_METRICS)
        masks = [np.zeros(anomaly_map.shape, dtype=bool) for anomaly_map in anomaly_maps]
    elif resolution == "input":
        masks = [method.resize.mask(mask) for mask in masks]
        found |= metrics.pixel_metrics(anomaly_maps, masks)
    else:
        # Only the small maps are held; each is enlarged, counted into the histograms and dropped again.
        stream = metrics.StreamingPixelMetrics.from_maps(anomaly_maps)
        for anomaly_map, geometry, mask in zip(anomaly_maps, geometries, masks, strict=True):
            full = geometry.to_original(anomaly_map)
            # What a crop cut off was never seen: it counts as perfectly normal instead of being left out.
            stream.update(np.nan_to_num(full, nan=float(anomaly_map.min())), mask)
        found |= stream.compute()
        bounds = stream.bound()
        masks = []
    scores = table[["image_path", "category", "defect", "label"]].reset_index(drop=True).assign(score=image_scores)
    seconds = {"score": scoring / len(table), "read_and_score": elapsed / len(table)}
    return Evaluation(scores, found, seconds, anomaly_maps, masks, bounds)


def at_threshold(scores: pd.DataFrame, threshold: float) -> dict:
    """Describe decisions `score > threshold` on test scores: false-alarm rate, detection rate, per kind of defect.

    The threshold must come from held-out normal images (`adlib.thresholds`); here it is only looked at.
    """
    flagged = scores.score > threshold
    rate = flagged.groupby(scores.defect).mean()
    bad, good = scores.label == 1, scores.label == 0
    return {
        "false_alarm_rate": float(flagged[good].mean()) if good.any() else None,
        "detection_rate": float(flagged[bad].mean()) if bad.any() else None,
        "detection_rate_by_defect": {k: float(v) for k, v in rate.items() if k in set(scores.defect[bad])},
    }


def _mask(path, geometry, threshold: int) -> np.ndarray:
    """Read the mask of an image at its original size; all false for a normal image."""
    if not isinstance(path, str):
        return np.zeros(geometry.original, dtype=bool)
    mask = read_mask(path, threshold)
    if mask.shape != geometry.original:
        raise InputError(f"{path}: mask is {mask.shape}, its image is {geometry.original}; sizes must agree")
    return mask
