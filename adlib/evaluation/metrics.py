"""How good are anomaly scores and anomaly maps? Exact metrics, their bounded-memory twin, and the legacy variants.

Higher scores mean more anomalous, and a pixel or image is called anomalous where score >= threshold. All values are
fractions in [0, 1], never percent. A value that is not defined, because one of the two classes is missing, is None.

The pixel metrics share one observation. Between two neighbouring scores of *anomalous* pixels only false positives
change, so every curve runs level there: it is enough to know, at each distinct score of an anomalous pixel, how many
normal pixels score higher. Defects are small, so the work is one sort of the normal scores, in place, and a few
look-ups. No threshold is sampled and ties are treated exactly.

Definitions:
    AUPRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
    sPRO: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
        Localization", IJCV 2022.
"""

from typing import NamedTuple

import cv2
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from adlib.errors import InputError

# --- image level ------------------------------------------------------------------------------------------------


def image_metrics(scores, labels) -> dict[str, float | None]:
    """Area under the ROC curve, average precision and best F1 of one score per image.

    Args:
        scores: (B,) finite anomaly scores.
        labels: (B,) 0 or False for normal, 1 or True for anomalous.

    Returns:
        `image_auroc`, `image_ap` (the step-wise sum, not the trapezoid) and `image_f1_max` (its threshold is chosen
        on the very labels it is measured on, so it is an upper limit, not a working point). All are None where the
        test set has no normal or no anomalous image.

    Raises:
        InputError: the lengths differ, there is no score, a score is NaN or infinite, or a label is not 0 or 1.
    """
    scores, labels = _check_scores(scores, labels)
    if labels.all() or not labels.any():
        return {"image_auroc": None, "image_ap": None, "image_f1_max": None}
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": f1_max(scores, labels)[0],
    }


def f1_max(scores, labels) -> tuple[float, float]:
    """Return the best F1 over all thresholds, and the largest score at which it is reached.

    Works for images and for pixels alike (`scores` and `labels` of any one shape). F1 = 2 TP / (2 TP + FP + FN), with
    0/0 = 0; without an anomalous label the result is therefore 0 at the highest score.

    >>> f1_max([0.1, 0.9, 0.4, 0.8], [0, 1, 0, 1])
    (1.0, 0.8)
    """
    scores, labels = _check_scores(scores, labels)
    if not labels.any():
        return 0.0, float(scores.max())
    steps = _steps(scores[~labels], scores[labels])
    f1 = _f1(steps)
    best = int(f1.argmax())  # steps descend, and argmax takes the first
    return float(f1[best]), float(steps.threshold[best])


# --- pixel level ------------------------------------------------------------------------------------------------


def pixel_metrics(anomaly_maps, masks, *, limits=(0.3, 0.05), connectivity: int = 8) -> dict[str, float | None]:
    """AUROC, average precision, best F1 and AUPRO over the pixels of all test images, exact, from one sort.

    Give all test images, the normal ones with an all-false mask: their pixels count as normal.

    Args:
        anomaly_maps: B arrays (H, W), finite; H and W may differ from image to image. Float32 stays float32, so
            4 bytes per pixel are needed on top of the maps.
        masks: B arrays (H, W), bool or with one value besides 0; true where anomalous.
        limits: false positive rates up to which PRO is integrated, in whole percent.
        connectivity: 8 or 4 neighbours join anomalous pixels to one region; 8 is the definition.

    Returns:
        `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, and one `aupro_<percent>` a limit: `aupro_30`, `aupro_05`. All are
        None where there is no anomalous or no normal pixel.

    Raises:
        InputError: nothing given, a map holds NaN or infinity, or a mask does not fit its map; names the index.
    """
    names = _limit_names("aupro", limits)
    normal, anomalous, weight = _pool(anomaly_maps, masks, connectivity)
    if not len(normal) or not len(anomalous):
        return dict.fromkeys(["pixel_auroc", "pixel_ap", "pixel_f1_max", *names])
    return _summary(_steps(normal, anomalous, weight), names)


def aupro(anomaly_maps, masks, limit: float = 0.3, connectivity: int = 8) -> float | None:
    """Area under the PRO curve for false positive rates up to `limit`, divided by `limit`.

    A random map gives about limit / 2, a perfect one 1. Arguments and errors as in `pixel_metrics`.

    Returns:
        The area in [0, 1], or None where there is no anomalous or no normal pixel.
    """
    curve = _pooled_curve(anomaly_maps, masks, limit, connectivity)
    return None if curve is None else _area(*curve, limit)


def pro_curve(anomaly_maps, masks, limit: float = 1.0, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return the PRO curve as the corners of its polyline.

    The overlap of a region is the share of its pixels with score >= threshold; PRO is the mean over the regions of
    all images, so a small defect counts as much as a large one. A region is a connected component of a mask.

    Returns:
        fpr: (P,) ascending from 0 to `limit`: share of the normal pixels of all images with score >= threshold.
        pro: (P,) mean overlap. The point at `limit` is interpolated linearly.

    Raises:
        InputError: as `pixel_metrics`, and where the curve is undefined (no anomalous or no normal pixel).
    """
    curve = _pooled_curve(anomaly_maps, masks, limit, connectivity)
    if curve is None:
        raise InputError("the PRO curve is undefined: the masks need at least one anomalous and one normal pixel")
    return _cut(*curve, limit)


def _pooled_curve(anomaly_maps, masks, limit, connectivity):
    _check_limit(limit)
    normal, anomalous, weight = _pool(anomaly_maps, masks, connectivity)
    return _curve(_steps(normal, anomalous, weight, limit)) if len(normal) and len(anomalous) else None


def spro_metrics(anomaly_maps, regions, limits=(0.01, 0.05, 0.1, 0.3, 1.0)) -> dict[str, float | None]:
    """Area under the saturated PRO curve, the metric of MVTec LOCO, exact.

    sPRO counts a region as found once its saturation area is found: overlap = min(pixels found / saturation area, 1).
    Only the best-scoring `saturation area` pixels of a region can add to it, so each of those weighs
    1 / saturation area, the others nothing, and the rest is the PRO curve.

    LOCO's headline figure is `spro_05`, computed once for the logical and once for the structural defects, each
    together with all normal images, and then averaged.

    Args:
        anomaly_maps: B arrays (H, W), finite.
        regions: B lists, one per image, of (mask, saturation area in pixels): one entry per annotation, whose parts
            stay together; annotations may overlap. An empty list is a normal image. A saturation area larger than
            its region is capped at the region.
        limits: false positive rates, in whole percent. False positives lie in no annotation of their image.

    Returns:
        One `spro_<percent>` a limit: `spro_01`, `spro_05`, ... ; None where there is no annotation or no normal pixel.

    Raises:
        InputError: as `pixel_metrics`; also an empty annotation or a saturation area below 1.
    """
    names = _limit_names("spro", limits)
    normal, anomalous, weight = _pool_annotations(anomaly_maps, regions)
    if not len(normal) or not len(anomalous):
        return dict.fromkeys(names)
    curve = _curve(_steps(normal, anomalous, weight, max(limits)))
    return {name: _area(*curve, limit) for name, limit in names.items()}


# --- pooling: from maps and masks to two lists of scores ------------------------------------------------------------


def _pool(anomaly_maps, masks, connectivity):
    """Return the scores of normal pixels (N,), of anomalous pixels (M,), and the latter's weights in PRO (M,).

    A pixel of region k weighs 1 / (|C_k| K) with K regions in all, so the weights of all pixels add up to 1.
    """
    maps, masks = check_maps(anomaly_maps, masks)
    dtype = np.result_type(*{m.dtype for m in maps})
    normal = np.empty(sum(mask.size - np.count_nonzero(mask) for mask in masks), dtype)
    anomalous, weight, n_regions, start = [], [], 0, 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if mask.any():
            background = anomaly_map[~mask]
            region_weight, n = _region_weight(mask, connectivity)
            anomalous.append(anomaly_map[mask].astype(dtype, copy=False))
            weight.append(region_weight)
            n_regions += n
        else:
            background = anomaly_map.ravel()
        normal[start : start + len(background)] = background
        start += len(background)
    if not anomalous:
        return normal, np.empty(0, dtype), np.empty(0)
    return normal, np.concatenate(anomalous), np.concatenate(weight) / n_regions


def _region_weight(mask, connectivity):
    """Return 1 / |C_k| for each true pixel of a mask in reading order, and the number of its regions."""
    if connectivity not in (4, 8):
        raise InputError(f"connectivity {connectivity!r}: expected 8 or 4 neighbours")
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)  # label 0 is background
    labels = labels[mask]
    return 1.0 / np.bincount(labels, minlength=count)[labels], count - 1


def _pool_annotations(anomaly_maps, regions):
    """As `_pool`, for annotations that may overlap and saturate; only pixels that can count are returned."""
    regions = [list(annotations) for annotations in regions]
    maps = check_maps(anomaly_maps)
    if len(maps) != len(regions):
        raise InputError(f"{len(maps)} anomaly maps but {len(regions)} lists of regions; give one list per map")
    normal, anomalous, weight = [], [], []
    for i, (anomaly_map, annotations) in enumerate(zip(maps, regions, strict=True)):
        covered = np.zeros(anomaly_map.shape, bool)
        for mask, area in annotations:
            mask = _check_mask(mask, anomaly_map, i)
            scores = anomaly_map[mask]
            if not len(scores) or not area >= 1:
                raise InputError(f"regions of image {i}: a region is empty or its saturation area {area!r} is below 1")
            area = int(min(area, len(scores)))
            anomalous.append(np.partition(scores, len(scores) - area)[-area:])
            weight.append(np.full(area, 1.0 / area))
            covered |= mask
        normal.append(anomaly_map[~covered])
    if not anomalous:
        return np.concatenate(normal), np.empty(0), np.empty(0)
    return np.concatenate(normal), np.concatenate(anomalous), np.concatenate(weight) / len(weight)


# --- counting -------------------------------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """Counts at each distinct score of an anomalous pixel, the highest first (or at each bin of a histogram).

    At such a score three things happen at once, and everything else follows from them: normal pixels of the same
    score are added (`fp_before` -> `fp`), anomalous pixels are added (`tp`), and regions are covered further.
    """

    threshold: np.ndarray  # (S,) the score
    fp_before: np.ndarray  # (S,) normal pixels above it
    fp: np.ndarray  # (S,) normal pixels at or above it
    tp: np.ndarray  # (S,) anomalous pixels at or above it
    overlap: np.ndarray  # (S,) mean region overlap
    n_normal: int
    n_anomalous: int


def _steps(normal, anomalous, weight=None, limit=1.0) -> _Steps:
    """Count; reorders `normal`. Steps beyond a false positive rate of `limit` may be left out."""
    n_normal, n_anomalous = len(normal), len(anomalous)
    keep = min(n_normal, int(limit * n_normal) + 1)
    if keep < n_normal:
        # Only the highest `keep` normal scores lie within the limit: select first, so that the sort is short.
        normal.partition(n_normal - keep)
        lowest = normal[n_normal - keep]
        ties = np.count_nonzero(normal[: n_normal - keep] == lowest)
        normal = np.concatenate([np.full(ties, lowest), normal[n_normal - keep :]])
        inside = anomalous >= lowest
        anomalous, weight = anomalous[inside], None if weight is None else weight[inside]
    normal.sort()
    order = np.argsort(anomalous)  # ascending, because look-ups in ascending order are the fast ones
    anomalous = anomalous[order]
    # Where a run of equal scores starts; the slice matters when no anomalous pixel lies within the limit.
    first = np.flatnonzero(np.concatenate([[True], anomalous[1:] != anomalous[:-1]])[: len(anomalous)])
    threshold = anomalous[first]
    fp = len(normal) - np.searchsorted(normal, threshold, "left")
    fp_before = len(normal) - np.searchsorted(normal, threshold, "right")
    tp = len(anomalous) - first
    overlap = np.zeros(len(first))
    if weight is not None:
        descending = np.cumsum(weight[order][::-1])  # (M,)
        overlap = np.minimum(descending[tp - 1], 1.0)  # the sum of all weights is 1 up to rounding
    return _Steps(*(a[::-1] for a in (threshold, fp_before, fp, tp, overlap)), n_normal, n_anomalous)


def _summary(steps: _Steps, aupro_names: dict[str, float]) -> dict[str, float]:
    new = np.diff(steps.tp, prepend=0)  # anomalous pixels of each step
    below = steps.n_normal - (steps.fp + steps.fp_before) / 2  # normal pixels they beat; a tie counts one half
    curve = _curve(steps)
    return {
        "pixel_auroc": float(new @ below / steps.n_normal / steps.n_anomalous),
        "pixel_ap": float(new @ (steps.tp / (steps.tp + steps.fp).clip(1)) / steps.n_anomalous),
        "pixel_f1_max": float(_f1(steps).max()),
        **{name: _area(*curve, limit) for name, limit in aupro_names.items()},
    }


def _f1(steps: _Steps) -> np.ndarray:
    return 2 * steps.tp / (steps.tp + steps.fp + steps.n_anomalous)  # 2 TP + FP + FN


def _curve(steps: _Steps) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (1 + 2 S + 1,) of fpr and pro: level to the next step, then straight up it."""
    before = np.concatenate([[0.0], steps.overlap])
    fpr = np.stack([steps.fp_before, steps.fp], axis=1).ravel() / steps.n_normal
    pro = np.stack([before[:-1], steps.overlap], axis=1).ravel()
    return np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], pro, [before[-1]]])


def _cut(fpr, pro, limit) -> tuple[np.ndarray, np.ndarray]:
    """End a curve at fpr = `limit`, with linear interpolation there."""
    inside = int(np.searchsorted(fpr, limit, "right"))
    if inside == len(fpr):
        return fpr, pro
    share = (limit - fpr[inside - 1]) / (fpr[inside] - fpr[inside - 1])
    last = pro[inside - 1] + share * (pro[inside] - pro[inside - 1])
    return np.append(fpr[:inside], limit), np.append(pro[:inside], last)


def _area(fpr, pro, limit) -> float:
    fpr, pro = _cut(fpr, pro, limit)
    return float(min(np.trapezoid(pro, fpr) / limit, 1.0))


# --- bounded memory -------------------------------------------------------------------------------------------------


class StreamingPixelMetrics:
    """The pixel metrics from a histogram of the scores: memory does not grow with the number of images.

    Scores in one bin are treated as equal, which moves each metric by no more than `bound()` says. The bound is
    worked out from the counts, so it holds for whatever data came; it is small where no bin holds many normal and
    many anomalous pixels at once. For AUROC it is at most half the largest share of normal pixels in a bin.

        metrics = StreamingPixelMetrics.from_maps(first_maps)
        for anomaly_map, mask in test_images:
            metrics.update(anomaly_map, mask)
        metrics.compute(), metrics.bound()

    Args:
        edges: (E,) ascending bin edges in score units. Bin i holds edges[i-1] <= score < edges[i]; scores outside
            fall into the two open bins at the ends, so no score is lost.
        limits, connectivity: as in `pixel_metrics`.
    """

    def __init__(self, edges, limits=(0.3, 0.05), connectivity: int = 8):
        self.edges = np.asarray(edges)
        if self.edges.ndim != 1 or not len(self.edges) or not np.all(self.edges[1:] > self.edges[:-1]):
            raise InputError("edges: expected a 1-D array of strictly ascending scores; `from_maps` makes one")
        self.limits, self.connectivity = _limit_names("aupro", limits), connectivity
        self.normal = np.zeros(len(self.edges) + 1, np.int64)  # pixels in each bin
        self.anomalous = np.zeros(len(self.edges) + 1, np.int64)
        self.weight = np.zeros(len(self.edges) + 1)  # the sum of 1 / |C_k| in each bin
        self.n_regions = 0
        self.n_images = 0

    @classmethod
    def from_maps(cls, anomaly_maps, n_bins: int = 2**16, **settings):
        """Choose the edges from a sample of maps, so that about as many of its pixels fall into each bin.

        The sample may hold no defect at all. One bin in eight is therefore laid evenly above its highest score, up
        to four times as far from the median as that.
        """
        scores = np.sort(np.concatenate([m.ravel() for m in check_maps(anomaly_maps)]))
        above = max(n_bins // 8, 1)
        quantiles = scores[np.linspace(0, len(scores) - 1, max(n_bins - above, 1)).astype(np.int64)]
        spread = scores[-1] - scores[len(scores) // 2]
        tail = scores[-1] + spread * np.linspace(0, 3, above + 1, dtype=scores.dtype)
        return cls(np.unique(np.concatenate([quantiles, tail])), **settings)

    def update(self, anomaly_map, mask) -> None:
        """Count one image: anomaly map and mask, both (H, W)."""
        (anomaly_map,), (mask,) = check_maps([anomaly_map], [mask], first=self.n_images)
        n_bins = len(self.normal)
        bins = np.searchsorted(self.edges, anomaly_map.ravel(), "right")
        self.n_images += 1
        if mask.any():
            inside = bins[mask.ravel()]
            weight, n_regions = _region_weight(mask, self.connectivity)
            self.anomalous += np.bincount(inside, minlength=n_bins)
            self.weight += np.bincount(inside, weight, minlength=n_bins)
            self.n_regions += n_regions
            bins = bins[~mask.ravel()]
        self.normal += np.bincount(bins, minlength=n_bins)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics of all images so far, under the names of `pixel_metrics`."""
        steps = self._steps()
        if steps is None:
            return dict.fromkeys(["pixel_auroc", "pixel_ap", "pixel_f1_max", *self.limits])
        return _summary(steps, self.limits)

    def bound(self) -> dict[str, float | None]:
        """Return for each metric how far the exact value can be from `compute()`, in either direction.

        Inside a bin the exact curve may take any rising path from corner to corner, while ours takes the diagonal.
        """
        steps = self._steps()
        if steps is None:
            return dict.fromkeys(["pixel_auroc", "pixel_ap", "pixel_f1_max", *self.limits])
        new = np.diff(steps.tp, prepend=0)
        tp_before = steps.tp - new
        # Average precision: each pixel's precision lies between "all false positives first" and "all hits first".
        precision = steps.tp / (steps.tp + steps.fp).clip(1)
        highest = steps.tp / (steps.tp + steps.fp_before).clip(1)
        lowest = (tp_before + 1) / (tp_before + 1 + steps.fp)
        # F1: every bin's lower edge is a threshold that the exact maximum also tries, so only upwards.
        best = (2 * steps.tp / (steps.tp + steps.fp_before + steps.n_anomalous)).max()
        bounds = {
            "pixel_auroc": new @ (steps.fp - steps.fp_before) / 2 / steps.n_normal / steps.n_anomalous,
            "pixel_ap": max(new @ (highest - precision), new @ (precision - lowest)) / steps.n_anomalous,
            "pixel_f1_max": best - _f1(steps).max(),
        }
        start, stop = steps.fp_before / steps.n_normal, steps.fp / steps.n_normal
        rise = np.diff(steps.overlap, prepend=0)
        for name, limit in self.limits.items():
            width = (stop.clip(max=limit) - start.clip(max=limit)) / limit
            bounds[name] = (width * rise * np.where(stop <= limit, 0.5, 1.0)).sum()  # 1: the limit cuts the bin
        return {name: float(bound) for name, bound in bounds.items()}

    def _steps(self) -> _Steps | None:
        if not self.normal.any() or not self.anomalous.any():
            return None
        fp, tp, overlap = (np.cumsum(h[::-1]) for h in (self.normal, self.anomalous, self.weight))
        overlap = np.minimum(overlap / self.n_regions, 1.0)
        threshold = np.concatenate([[-np.inf], self.edges])[::-1]
        return _Steps(threshold, fp - self.normal[::-1], fp, tp, overlap, int(fp[-1]), int(tp[-1]))


# --- uncertainty ----------------------------------------------------------------------------------------------------


def bootstrap_interval(
    metric, *arrays, rng: np.random.Generator, labels=None, n_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile bootstrap confidence interval of a metric, resampling whole images.

    Pixels of one image depend on each other, so the image is the unit. The interval tells how much the number would
    move with another test set of the same kind, not with another training seed.

        bootstrap_interval(roc_auc_score, labels, scores, labels=labels, rng=np.random.default_rng(0))

    Args:
        metric: called with the resampled arrays, returns a number. Exact pixel metrics of large maps take seconds
            each: resample fewer times.
        arrays: one entry per image each: arrays (B, ...) or lists of B maps of different size.
        rng: the source of randomness; the same seed gives the same interval.
        labels: (B,) class of each image. If given, each class keeps its number of images in every resample, so that
            none is ever missing.
        n_resamples: number of resamples.
        level: coverage in (0, 1).

    Raises:
        InputError: the arrays differ in length, or a resample leaves the metric undefined (pass `labels`).
    """
    sizes = {len(array) for array in (*arrays, *([] if labels is None else [labels]))}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"bootstrap: expected arrays of one common length of at least 1, got {sorted(sizes)}")
    if not 0 < level < 1 or n_resamples < 1:
        raise InputError(f"bootstrap: level {level!r} must lie in (0, 1) and n_resamples {n_resamples!r} be at least 1")
    labels = np.zeros(sizes.pop()) if labels is None else np.asarray(labels)
    strata = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    values = []
    for _ in range(n_resamples):
        rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        value = metric(*(a[rows] if isinstance(a, np.ndarray) else [a[i] for i in rows] for a in arrays))
        if value is None or np.isnan(value):
            raise InputError("bootstrap: the metric is undefined on a resample; pass `labels` so that no class is lost")
        values.append(value)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_scores(scores, labels):
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or not scores.size:
        raise InputError(
            f"scores {scores.shape} and labels {labels.shape}: expected the same shape, at least one entry"
        )
    scores = scores.ravel().astype(np.result_type(scores.dtype, np.float32), copy=False)
    labels = labels.ravel()
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(f"score {bad} is {scores[bad]}; scores must be finite, look for NaN in that image's features")
    if labels.dtype != bool:
        if not np.isin(labels, (0, 1)).all():
            raise InputError("labels: expected only 0 (normal) and 1 (anomalous)")
        labels = labels.astype(bool)
    return scores, labels


def check_maps(anomaly_maps, masks=None, first: int = 0):
    """Return maps as float arrays and masks as bool arrays; `first` is the index of the first in messages."""
    maps = []
    for i, anomaly_map in enumerate(anomaly_maps, first):
        anomaly_map = np.asarray(anomaly_map)
        if anomaly_map.ndim != 2:
            raise InputError(f"anomaly map {i} has shape {anomaly_map.shape}; expected two dimensions (H, W)")
        anomaly_map = anomaly_map.astype(np.result_type(anomaly_map.dtype, np.float32), copy=False)
        if not np.isfinite(anomaly_map).all():
            kind = "NaN" if np.isnan(anomaly_map).any() else "infinity"
            raise InputError(
                f"anomaly map {i} contains {kind}; compare only pixels that were scored, with finite scores"
            )
        maps.append(anomaly_map)
    if not maps:
        raise InputError("no anomaly maps given; expected one map and one mask per image")
    if masks is None:
        return maps
    masks = list(masks)
    if len(masks) != len(maps):
        raise InputError(f"{len(maps)} anomaly maps but {len(masks)} masks; give one mask per map, all false if normal")
    return maps, [_check_mask(mask, maps[i], i + first) for i, mask in enumerate(masks)]


def _check_mask(mask, anomaly_map, i):
    mask = np.asarray(mask)
    if mask.shape != anomaly_map.shape:
        raise InputError(f"mask {i} has shape {mask.shape}, its anomaly map {anomaly_map.shape}; resize one of them")
    if mask.dtype != bool:
        # Soft edges left over from resizing would be counted as defect, so they must be decided by the caller.
        if not ((mask == 0) | (mask == mask.max(initial=0))).all():
            raise InputError(f"mask {i} holds more than two values; binarise it first, for example mask > 127")
        mask = mask != 0
    return np.ascontiguousarray(mask)


def _check_limit(limit):
    if not 0 < limit <= 1:
        raise InputError(f"limit {limit!r}: expected a false positive rate in (0, 1], for example 0.3")


def _limit_names(prefix, limits) -> dict[str, float]:
    for limit in limits:
        _check_limit(limit)
        if abs(100 * limit - round(100 * limit)) > 1e-9:
            raise InputError(f"limit {limit!r}: expected whole percent, because the results are named by it")
    return {f"{prefix}_{round(100 * limit):02d}": limit for limit in limits}
