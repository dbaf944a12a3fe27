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


@dataclass
class Evaluation:
    """What a test run gives.

    Attributes:
        scores: one row an image: image_path, category, defect, label, score.
        metrics: image and pixel metrics as fractions; None where they are undefined (no defects, no masks).
        seconds_per_image: scoring time without and with reading the files.
        anomaly_maps, masks: at input size, in the order of `scores`; empty at original resolution.
    """

    scores: pd.DataFrame
    metrics: dict
    seconds_per_image: dict
    anomaly_maps: list = field(default_factory=list, repr=False)
    masks: list = field(default_factory=list, repr=False)


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

    image_scores, anomaly_maps, masks, scoring, stream = [], [], [], 0.0, None
    batch_size = batch_size or getattr(method.settings, "batch_size", 16)
    started, row = time.perf_counter(), 0
    for batch in batches(table.image_path, method.resize, batch_size, progress="score"):
        before = time.perf_counter()
        scores = method.score(batch)
        scoring += time.perf_counter() - before
        if not (np.isfinite(scores.image).all() and np.isfinite(scores.map).all()):
            raise InputError(f"scores of {batch.paths[0]} and its batch contain NaN; the fitted model is broken")
        image_scores.extend(scores.image.tolist())
        for anomaly_map, geometry in zip(scores.map, batch.geometries, strict=True):
            path = table.mask_path.iloc[row]
            mask = read_mask(path, threshold) if isinstance(path, str) else np.zeros(geometry.original, bool)
            if mask.shape != geometry.original:
                raise InputError(f"{path}: mask is {mask.shape}, its image is {geometry.original}; sizes must agree")
            row += 1
            if resolution == "original" and has_masks:
                anomaly_map = geometry.to_original(anomaly_map)
                # What a crop cut off was never seen: it counts as perfectly normal instead of being left out.
                anomaly_map = np.nan_to_num(anomaly_map, nan=float(np.nanmin(anomaly_map)))
                stream = stream or metrics.StreamingPixelMetrics.from_sample(scores.map)
                stream.update(anomaly_map, mask)
            elif resolution == "input":
                anomaly_maps.append(anomaly_map)
                masks.append(method.resize.mask(mask))
    elapsed = time.perf_counter() - started

    labels = table.label.to_numpy()
    found = metrics.image_metrics(np.array(image_scores), labels)
    if not has_masks:
        found |= dict.fromkeys(metrics.PIXEL_METRICS)
    else:
        found |= stream.compute() if stream else metrics.pixel_metrics(anomaly_maps, masks)
    scores = table[["image_path", "category", "defect", "label"]].reset_index(drop=True).assign(score=image_scores)
    seconds = {"score": scoring / len(table), "read_and_score": elapsed / len(table)}
    return Evaluation(scores, found, seconds, anomaly_maps, masks)


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
