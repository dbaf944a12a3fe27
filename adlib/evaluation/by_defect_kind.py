"""Results by kind of anomaly: for each defect as the data set calls it, and for logical and structural ones.

MVTec LOCO's protocol: each kind is measured apart, against *all* good images, and the two (logical: a rule is broken;
structural: something is damaged) are averaged. Otherwise the kind with more images would decide.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from adlib import datasets
from adlib.datasets import demo, loco
from adlib.evaluation import metrics
from adlib.images import Resize, image_shape

KINDS = ("logical", "structural")
KIND_OF_DEFECT = {"good": "good", "logical_anomalies": "logical", "structural_anomalies": "structural"} | demo.KIND


def kinds_of(table: pd.DataFrame) -> np.ndarray:
    """Return "good", "logical" or "structural" for every row of a sample table, or "" where it is not known."""
    return np.array([KIND_OF_DEFECT.get(defect, "") for defect in table.defect], dtype=object)


def has_both(table: pd.DataFrame) -> bool:
    """Tell whether a test table holds anomalies of both kinds and a `defects_config.json` that sPRO needs."""
    return set(KINDS) <= set(kinds_of(table)) and _config(table.image_path.iloc[0]).is_file()


def by_defect(evaluation) -> dict[str, dict]:
    """Image AUROC and AUPRO of each defect against all good images, and its number of images.

    A defect "Person_1/hole" (MAD-man, MAD-sys) counts under this name and under "Person_1", all defects of that part.

    Returns:
        {defect: {"image_auroc", "aupro_30", "n"}}, fractions; None where undefined.
    """
    defects, good = evaluation.scores.defect, (evaluation.scores.label == 0).to_numpy()
    names = {name for defect in defects[~good] for name in (defect, defect.rpartition("/")[0]) if name}
    result = {}
    for name in sorted(names):
        own = ~good & ((defects == name) | defects.str.startswith(f"{name}/")).to_numpy()
        part = evaluation.scores[good | own]
        auroc = metrics.image_metrics(part.score.to_numpy(), part.label.to_numpy())["image_auroc"]
        rows = np.flatnonzero((good | own) & evaluation.measured) if evaluation.masks else []
        maps, masks = ([values[i] for i in rows] for values in (evaluation.anomaly_maps, evaluation.masks))
        aupro = metrics.aupro(maps, masks) if len(rows) else None
        values = {"image_auroc": auroc, "aupro_30": aupro}
        values = {key: None if value is None else round(float(value), 6) for key, value in values.items()}
        result[name] = values | {"n": int(own.sum())}
    return result


def by_kind(table: pd.DataFrame, scores, anomaly_maps, resize: Resize) -> dict[str, dict]:
    """Image AUROC, AUPRO and area under sPRO up to 5 % false positives, for each kind and as the mean of both.

    AUPRO and sPRO leave out defective images without a mask or with a black one, as the pixel metrics do.

    Args:
        table: test rows, in the order of the scores.
        scores: (B,) image scores.
        anomaly_maps: B maps at the network's input size; sPRO is measured at the original size.
        resize: of the method, to find the way back to the original size.

    Returns:
        {"logical": {"image_auroc", "aupro_30", "spro_05"}, "structural": {...}, "mean": {...}}, fractions; None where
        undefined.
    """
    kinds, scores, maps, masks, regions = kinds_of(table), np.asarray(scores, dtype=np.float64), [], [], []
    for path, file, mask, anomaly_map in zip(
        table.image_path, table.mask_path, datasets.masks(table), anomaly_maps, strict=True
    ):
        annotations = loco.regions(file, _config(path)) if mask is not None and mask.any() else []
        shape = annotations[0][0].shape if annotations else image_shape(path)
        full = resize.geometry(shape).to_original(anomaly_map)
        maps.append(np.nan_to_num(full, nan=float(anomaly_map.min())))  # what a crop cut off counts as normal
        masks.append(resize.mask(np.zeros(shape, bool) if mask is None else mask))
        regions.append([(region, area) for region, area, _ in annotations])
    result = {}
    for kind in KINDS:
        rows = np.flatnonzero((kinds == kind) | (kinds == "good"))
        measured = [i for i in rows if kinds[i] == "good" or regions[i]]
        auroc = aupro = spro = None
        if len(rows):
            auroc = metrics.image_metrics(scores[rows], (kinds[rows] == kind).astype(int))["image_auroc"]
        if any(regions[i] for i in measured):
            aupro = metrics.aupro([anomaly_maps[i] for i in measured], [masks[i] for i in measured])
            spro = metrics.spro_metrics([maps[i] for i in measured], [regions[i] for i in measured])["spro_05"]
        result[kind] = {"image_auroc": auroc, "aupro_30": aupro, "spro_05": spro}
    both = {key: [result[kind][key] for kind in KINDS] for key in result["logical"]}
    result["mean"] = {key: None if None in values else float(np.mean(values)) for key, values in both.items()}
    return result


def _config(image_path) -> Path:
    """<category>/test/<defect>/000.png -> <category>/defects_config.json."""
    return Path(image_path).parents[2] / "defects_config.json"
