"""The protocol audit: what habits of evaluation add to a reported number, on the same anomaly maps.

Nothing about the detector changes from one line to the next; only the ruler does. Every line holds a number with and
without one habit:

    reference   maps and masks at network input size, masks true where half a pixel is covered, all pixels, all
                thresholds, the last step of a training
    habit       one thing done otherwise, as published code does it

Two lines have another reference: dilation is compared at the 200 thresholds it comes with, and evaluation at input
size is itself the habit, held against the original resolution.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage

from adlib import datasets, methods, profiles
from adlib.errors import InputError
from adlib.evaluation import Evaluation, evaluate, metrics
from adlib.evaluation.thresholds import from_normals
from adlib.images import Resize, image_shape
from adlib.paths import results_dir
from adlib.settings import choice
from adlib_book import figures, learning_curves, studies

STUDY = "92_protocol_audit"
COLUMNS = ["habit", "metric", "without", "with", "added", "bound"]
CROP = 224 / 256  # share of each side that the usual centre crop keeps
PRO_CONVENTIONS = ("dfr", "glass", "thresholds_200")
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_30": "AUPRO@0.3"}
EPOCH, RESIZED, PER_IMAGE, PER_CATEGORY, POOLED = (
    "step chosen on the test set",
    "evaluated at input size",
    "each map scaled to 0..1",
    "scaled over the test set",
    "scaled over the test set, categories pooled",
)
MASKS = [f"masks: {rule}" for rule in ("any coverage", "full coverage", "nearest pixel", "bilinear")]
HABITS = (EPOCH, "prediction dilated 5 x 5", "200 thresholds", "centre crop", *MASKS)
HABITS += (RESIZED, PER_IMAGE, PER_CATEGORY, POOLED)
LINEAR = 2  # points up to which the figure's axis is linear
FILLS = ("full", "none", "left", "bottom")  # of the marks of the first, second, ... category


class Audited(NamedTuple):
    """A fitted method on one category, and what `evaluate` made of its test rows."""

    dataset: str
    category: str
    name: str  # of the method
    method: object
    test: pd.DataFrame
    result: Evaluation


def fit_all(profile: str, data_root: str = "", seed: int = 0, settings: dict | None = None):
    """Fit and evaluate what the profile's study `92_protocol_audit` asks for, one after the other.

    Args:
        profile, seed: as in every notebook.
        data_root: folder that holds the data sets; "" for demo data. What the profile names and is not there is left
            out with a line that says so; where nothing of it is there, the demo gear serves.
        settings: changes to the study's settings (`runs`, `changes`).

    Yields:
        `Audited`.
    """
    study = studies.study_settings(profile, STUDY, settings)
    runs_of, places, there = study["runs"], {}, {f"demo/{name}" for name in datasets.categories("demo", None)}
    for name, _, path, names in datasets.discover(data_root) if data_root else ():
        places[name] = path
        there |= {f"{name}/{category}" for category in names}
    by_reader = "runs" in (settings or {})  # by the reader, not by the profile
    if not by_reader and not any(place in there for group in runs_of.values() for place in group):
        print(f"nothing of the profile's list is below data root {data_root!r}: the demo gear serves")
        runs_of = {name: ["demo/gear"] for name in runs_of}
    for name, categories in runs_of.items():
        for place in categories:
            dataset, _, category = place.partition("/")
            if place not in there:
                if by_reader:
                    raise InputError(
                        f"{place}: no data set {dataset!r} below data root {data_root!r}; give its parent folder"
                    )
                print(f"left out: {place} is not below data root {data_root!r}")
                continue
            table = datasets.load(dataset, places.get(dataset), category)
            values = profiles.method_settings(profile, name, study["changes"].get(name, {}) | {"seed": seed})
            train = table[(table.split == "train") & (table.label == 0)]
            method = methods.create(name, **profiles.shaped(name, values, train.image_path)).fit(train)
            test = table[table.split == "test"]
            yield Audited(dataset, category, name, method, test, evaluate(method, test))


def audit_all(fitted: list[Audited], seed: int = 0) -> pd.DataFrame:
    """Audit fitted methods, and each method's categories together.

    Returns:
        the rows of `audit` with dataset, category, method, seed and n_test; categories that were pooled are joined
        by " + ".
    """
    tables, groups = [], {}
    for one in fitted:
        who = {"dataset": one.dataset, "category": one.category, "method": one.name}
        tables.append(audit(one.method, one.test, one.result).assign(**who, n_test=len(one.test)))
        groups.setdefault(one.name, []).append(one)
    for name, group in groups.items():
        if len(group) > 1:
            who = {"dataset": " + ".join(dict.fromkeys(one.dataset for one in group)), "method": name}
            who["category"] = " + ".join(one.category for one in group)
            pooled = audit_pooled(
                {one.category: one.result for one in group},
                {one.category: from_normals(one.method.normal_scores).value for one in group},
            )
            tables.append(_table(pooled).assign(**who, n_test=sum(len(one.test) for one in group)))
    table = pd.concat(tables, ignore_index=True).assign(seed=seed)
    return table[["dataset", "category", "method", "seed", "n_test", *COLUMNS]]


def write(table: pd.DataFrame, profile: str) -> Path:
    """Write rows to `results/studies/audit_<profile>.csv`; rows of other categories, methods and seeds there stay."""
    keys = ["dataset", "category", "method", "seed"]
    studies.write_rows(f"audit_{profile}", table, keys, keys, "%.4f")
    return results_dir() / "studies" / f"audit_{profile}.csv"


def read(profile: str) -> pd.DataFrame:
    """Return the committed audit of a profile; an empty table where there is none."""
    return studies.read("audit", profile)


def audit(method, test: pd.DataFrame, result: Evaluation) -> pd.DataFrame:
    """Audit one fitted method on one category.

    Args:
        method: fitted; a trained one with `history.snapshots` is also audited for the choice of its step.
        test: the test table that `result` was made from.
        result: of `evaluate(method, test)`: scores, maps and masks at input size.

    Returns:
        one row per habit and metric: habit, metric, without, with, added (points of percent), bound (how far `added`
        may be off, in points; 0 where exact).
    """
    measured = np.flatnonzero(result.measured)
    maps, masks = ([arrays[i] for i in measured] for arrays in (result.anomaly_maps, result.masks))
    rows = audit_maps(maps, masks, result.scores.label.to_numpy()[measured], test.iloc[measured], method.resize)
    if getattr(getattr(method, "history", None), "snapshots", None):
        rows += audit_selection(method, test)
    return _table(rows)


def _table(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["habit", "metric", "without", "with", "bound"])
    table["added"] = table["with"] - table["without"]
    return table.sort_values("habit", key=lambda habit: habit.map(HABITS.index), kind="stable")[COLUMNS]


def audit_maps(anomaly_maps, masks, labels, test: pd.DataFrame, resize: Resize) -> list[tuple]:
    """Rows (habit, metric, without, with, bound) in percent of every habit that only reads the maps differently.

    Args:
        anomaly_maps, masks: (B,) arrays (H, W) at input size.
        labels: (B,) 1 for anomalous images.
        test: the test table, to read the masks at their own size.
        resize: of the method.
    """
    exact = _pixel(anomaly_maps, masks)
    largest = [float(anomaly_map.max()) for anomaly_map in anomaly_maps]
    image = {"image_auroc": _percent(metrics.image_metrics(largest, labels)["image_auroc"])}
    rows = []

    def add(habit, reference, values, bound=None):
        for name, value in values.items():
            if value is not None and reference[name] is not None:
                rows.append((habit, name, reference[name], value, (bound or {}).get(name, 0.0)))

    sampled = {"aupro_30": _percent(legacy_pro(anomaly_maps, masks, "thresholds_200"))}
    dilated = {"aupro_30": _percent(legacy_pro(anomaly_maps, masks, "glass"))}
    add("prediction dilated 5 x 5", sampled, dilated)
    add("200 thresholds", exact, sampled)

    # The image score is read as the map's maximum here, for both sides of the comparison.
    cropped = [crop_centre(anomaly_map) for anomaly_map in anomaly_maps]
    inside = [float(part.max()) for part in cropped]
    add("centre crop", image, {"image_auroc": _percent(metrics.image_metrics(inside, labels)["image_auroc"])})
    add("centre crop", exact, _pixel(cropped, [crop_centre(mask) for mask in masks]))

    originals = list(datasets.masks(test))
    for rule in ("any coverage", "full coverage", "nearest pixel", "bilinear"):
        resized = [resized_mask(o, m, resize, rule) for o, m in zip(originals, masks, strict=True)]
        add(f"masks: {rule}", exact, _pixel(anomaly_maps, resized))

    full, bound = _full_resolution(anomaly_maps, originals, test, resize)
    add(RESIZED, full, exact, bound)

    alone = [scaled(anomaly_map, anomaly_map.min(), anomaly_map.max()) for anomaly_map in anomaly_maps]
    add(PER_IMAGE, exact, _pixel(alone, masks))
    low, high = min(m.min() for m in anomaly_maps), max(largest)
    add(PER_CATEGORY, exact, _pixel([scaled(m, low, high) for m in anomaly_maps], masks))
    return rows


def audit_selection(method, test: pd.DataFrame) -> list[tuple]:
    """Rows of the habit to keep the step with the best sum of image and pixel AUROC on the test set.

    Without it, the last step counts. The method keeps its weights.
    """
    curve = learning_curves.snapshot_metrics(method, test)
    rows = learning_curves.selections(curve, method.history)
    last, best = (100 * curve.iloc[rows[name]] for name in ("last", learning_curves.ORACLE))
    return [(EPOCH, name, last[name], best[name], 0.0) for name in METRICS if not np.isnan(last[name])]


def audit_pooled(results: dict, calibration: dict) -> list[tuple]:
    """Rows of the habit to scale the scores of every category by its own test set before pooling categories.

    Without it, scores are divided by a threshold from held-out *normal* images of the category, which a user has too.

    Args:
        results: category -> `Evaluation`.
        calibration: category -> that threshold.
    """
    labels = np.concatenate([r.scores.label for r in results.values()])
    honest = np.concatenate([r.scores.score / calibration[name] for name, r in results.items()])
    peeking = np.concatenate(
        [scaled(r.scores.score, r.scores.score.min(), r.scores.score.max()) for r in results.values()]
    )
    without, with_ = (100 * metrics.image_metrics(scores, labels)["image_auroc"] for scores in (honest, peeking))
    return [(POOLED, "image_auroc", without, with_, 0.0)]


# -- rulers -----------------------------------------------------------------------------------------------------------


def crop_centre(array: np.ndarray, share: float = CROP) -> np.ndarray:
    """Keep the central `share` of both sides of an array (H, W)."""
    height, width = (max(1, round(n * share)) for n in array.shape)
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width]


def resized_mask(original, mask: np.ndarray, resize: Resize, rule: str) -> np.ndarray:
    """Bring a mask (H0, W0) to input size (H, W) by another rule than ours (half a pixel covered).

    Args:
        original: the mask at its own size, or None for a normal image.
        mask: ours, for shape, and the result for normal images.
        resize: must be a stretch; other geometries keep our mask.
        rule: `any coverage` (> 0), `full coverage` (1 and no less), `nearest pixel`, or `bilinear` (without
            antialiasing, > 0.5).
    """
    if original is None or resize.mode != "stretch":
        return mask
    size = mask.shape[::-1]
    if rule == "nearest pixel":
        return cv2.resize(original.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if rule == "bilinear":
        return cv2.resize(original.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    covered = cv2.resize(original.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return covered > 1e-6 if rule == "any coverage" else covered > 1 - 1e-6


def scaled(values, low: float, high: float):
    """Scale values from low..high to 0..1; all 0 where low equals high."""
    return (values - low) / (high - low) if high > low else values * 0


def _pixel(anomaly_maps, masks) -> dict:
    values = metrics.pixel_metrics(anomaly_maps, masks, limits=(0.3,))
    return {name: _percent(values[name]) for name in ("pixel_auroc", "aupro_30")}


def _percent(value):
    return None if value is None else 100 * value


def _full_resolution(anomaly_maps, originals, test, resize) -> tuple[dict, dict]:
    """Pixel metrics at the images' own size, streamed, and how far they may be off; in percent."""
    stream = metrics.StreamingPixelMetrics.from_maps(anomaly_maps, limits=(0.3,))
    for anomaly_map, mask, path in zip(anomaly_maps, originals, test.image_path, strict=True):
        if mask is None:
            mask = np.zeros(image_shape(path), dtype=bool)
        full = resize.geometry(mask.shape).to_original(anomaly_map)
        stream.update(np.nan_to_num(full, nan=float(anomaly_map.min())), mask)
    names = ("pixel_auroc", "aupro_30")
    values, bound = stream.compute(), stream.bound()
    return {name: _percent(values[name]) for name in names}, {name: _percent(bound[name]) or 0.0 for name in names}


def legacy_pro(anomaly_maps, masks, convention: str) -> float | None:
    """PRO as another code base computes it: only to explain published numbers, never to report as AUPRO.

    `glass`: 200 equally spaced thresholds between the lowest and highest score, the prediction dilated 5 x 5 for the
        overlap but not for the false positive rate, points with FPR < 0.3, FPR stretched to [0, 1]. The routine of
        GLASS, SimpleNet and their heirs. Dilation flatters small defects; coarse thresholds punish skewed scores.
    `thresholds_200`: the same without dilation, as in several older code bases.
    `dfr`: 1000 equally spaced thresholds, holes of a region filled for the hits but not for its area, points with
        FPR <= 0.3, FPR stretched to [0, 1].

    anomalib's (release 2.7.0) agrees with the exact value, up to its float32 sums. All use score > threshold
    and thresholds formed in the dtype of the maps.

    Returns:
        The value, or None where the original divides by zero: a missing class, a constant score, or fewer than two
        different false positive rates below 0.3.

    Raises:
        InputError: an unknown convention, or input as in `pixel_metrics`.
    """
    choice("PRO convention", convention, PRO_CONVENTIONS)
    maps, masks = metrics.check_maps(anomaly_maps, masks)
    lowest, highest = min(m.min() for m in maps), max(m.max() for m in maps)
    normal = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    if lowest == highest or not len(normal) or not any(mask.any() for mask in masks):
        return None
    if convention == "dfr":
        thresholds = highest - np.arange(1000, dtype=lowest.dtype) * ((highest - lowest) / 1000)
    else:
        thresholds = np.arange(lowest, highest, (highest - lowest) / 200)

    overlaps = []  # one (T,) a region
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if convention == "glass":
            # A dilated prediction is above the threshold exactly where the maximum of its neighbourhood is.
            anomaly_map = ndimage.maximum_filter(anomaly_map, size=5, mode="nearest")
        count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        for label in range(1, count):
            region = labels == label
            filled = ndimage.binary_fill_holes(region, np.ones((3, 3))) if convention == "dfr" else region
            overlaps.append(_count_above(anomaly_map[filled], thresholds) / np.count_nonzero(region))
    pro = np.mean(overlaps, axis=0)  # (T,)
    fpr = _count_above(normal, thresholds) / len(normal)

    inside = fpr <= 0.3 if convention == "dfr" else fpr < 0.3
    fpr, pro = fpr[inside], pro[inside]
    if not len(fpr) or fpr.min() == fpr.max():
        return None
    return float(abs(np.trapezoid(pro, (fpr - fpr.min()) / (fpr.max() - fpr.min()))))  # abs: FPR may descend


def _count_above(scores, thresholds):
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, "right")


# -- figure -----------------------------------------------------------------------------------------------------------


def plot(table: pd.DataFrame, title: str = ""):
    """Points added by every habit (rows) to each metric (panels), a mark for every method and category.

    The colour and the shape of a mark tell the method, as in all figures; its filling tells the category. Points are
    drawn linearly up to `LINEAR` and logarithmically beyond: most habits add a little, some cost twenty.

    Args:
        table: rows of `audit` with `method` and `category`.
        title: of the figure.
    """
    habits = [habit for habit in HABITS if habit in set(table.habit)]
    styles = figures.method_styles(sorted(set(table.method)))
    categories = sorted(set(table.category), key=lambda name: ("+" in name, name))  # what is pooled comes last
    fills = dict(zip(categories, itertools.cycle(FILLS), strict=False))
    names = [name for name in METRICS if name in set(table.metric)]
    height = 0.2 + 0.045 * len(styles)  # inches of a habit: its methods lie above each other
    shape = (3.2 * len(names) + 4, height * len(habits) + 1.4)
    figure, axes = plt.subplots(1, len(names), figsize=shape, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        _plot_metric(axis, table[table.metric == name], habits, styles, fills)
        axis.set(title=METRICS[name], xlabel=f"points added\n(linear to ±{LINEAR}, logarithmic beyond)")
    axes[0, 0].set_yticks(range(len(habits)), habits)
    axes[0, 0].set_ylim(len(habits) - 0.5, -0.5)
    mark = {"linestyle": "", "markersize": 6, "markeredgewidth": 1}
    handles = {"methods": plt.Line2D([], [], linestyle="")}  # a heading
    handles |= {name: plt.Line2D([], [], **style._asdict(), **mark) for name, style in styles.items()}
    handles["categories"] = handles["methods"]
    for name, fill in fills.items():
        handles[name] = plt.Line2D([], [], color="0.3", marker="s", fillstyle=fill, markerfacecoloralt="white", **mark)
    legend = figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in ("methods", "categories") else "normal")
    figure.suptitle(title)
    return figure


def _plot_metric(axis, part: pd.DataFrame, habits: list, styles: dict, fills: dict) -> None:
    """One panel of `plot`: the rows of one metric."""
    for y in range(0, len(habits), 2):
        axis.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0, zorder=0)
    axis.axvline(0, color="0.6", linewidth=1, zorder=1)
    for end in (-LINEAR, LINEAR):
        axis.axvline(end, color="0.8", linewidth=0.8, linestyle=":", zorder=1)
    lane = 0.8 / len(styles)
    for i, (method, style) in enumerate(styles.items()):
        for category, fill in fills.items():
            rows = part[(part.method == method) & (part.category == category)]
            y = rows.habit.map(habits.index) + lane * (i - (len(styles) - 1) / 2)
            axis.plot(rows.added, y, **style._asdict(), fillstyle=fill, markerfacecoloralt="white", linestyle="",
                      markersize=6 if len(styles) < 5 else 4.5, markeredgewidth=0.9)  # fmt: skip
    axis.set_xscale("symlog", linthresh=LINEAR, linscale=0.9)
    reach = 1.2 * max(1.25 * LINEAR, part.added.abs().max())
    ticks = [sign * points for points in (1, 2, 5, 20 if reach > 20 else 10) if points < reach for sign in (-1, 1)]
    axis.set_xticks([0, *ticks], [f"{points:g}" for points in (0, *ticks)])
    axis.minorticks_off()
    axis.set_xlim(-reach, reach)
    axis.tick_params(axis="y", length=0)
