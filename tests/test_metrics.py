"""Metrics against reference values, brute force over all thresholds, hand-made cases and bad input."""

import itertools
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from adlib.datasets.loco import saturation_area
from adlib.errors import InputError
from adlib.evaluation.metrics import (
    StreamingPixelMetrics,
    aupro,
    bootstrap_interval,
    f1_max,
    image_metrics,
    pixel_metrics,
    pro_curve,
    spro_metrics,
)
from adlib_book.studies.audit import PRO_CONVENTIONS, legacy_pro

GOLDEN = Path(__file__).parent / "golden" / "metrics"
MAP_SETS = ("smooth", "ties", "tiny_regions", "diagonal", "hot_pixel", "inverted_constant")
SPRO_SETS = ("spro_set0", "spro_set1", "spro_set2")
LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] if file[key].ndim else file[key].item() for key in file}


# --- brute force: one threshold after another, straight from the definitions ---


def brute_curve(anomaly_maps, masks, overlaps):
    """(fpr, mean overlap) at every distinct score; `overlaps(i, predicted)` lists the overlaps of image i."""
    thresholds = np.unique(np.concatenate([m.ravel() for m in anomaly_maps]))[::-1]
    n_normal = sum(int((~mask).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in thresholds:
        predicted = [m >= threshold for m in anomaly_maps]
        fp = sum(int((p & ~mask).sum()) for p, mask in zip(predicted, masks, strict=True))
        points.append((fp / n_normal, np.mean([o for i, p in enumerate(predicted) for o in overlaps(i, p)])))
    return np.array(points)


def brute_area(points, limit):
    """Trapezoids, the last one cut at the limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > limit:
            y1 = y0 + (limit - x0) / (x1 - x0) * (y1 - y0)
            return (area + (limit - x0) * (y0 + y1) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def components(mask):
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == k for k in range(1, count)]


def brute_pro(anomaly_maps, masks):
    regions = [components(mask) for mask in masks]
    return brute_curve(anomaly_maps, masks, lambda i, p: [(p & r).sum() / r.sum() for r in regions[i]])


def brute_spro(anomaly_maps, regions):
    pairs = zip(anomaly_maps, regions, strict=True)
    masks = [np.logical_or.reduce([np.zeros(m.shape, bool), *(r for r, _ in parts)]) for m, parts in pairs]
    return brute_curve(anomaly_maps, masks, lambda i, p: [min((p & r).sum() / s, 1) for r, s in regions[i]])


@st.composite
def small_sets(draw):
    """A few small maps of different size with many ties, and masks with at least one pixel of each kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_values = draw(st.sampled_from([2, 6, 1000]))
    density = draw(st.sampled_from([0.05, 0.3, 0.7]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(2, 7)), min_size=1, max_size=4))
    masks = [rng.random(shape) < density for shape in shapes]
    masks[0][0, :2] = True, False
    signal = draw(st.sampled_from([-1, 0, 2]))
    scores = [np.round(rng.random(m.shape) * n_values + signal * m).astype(np.float32) / 8 for m in masks]
    return scores, masks


# --- reference values ---


@pytest.mark.parametrize("name", MAP_SETS)
def test_metrics_match_the_reference(name):
    golden = load(name)
    maps, masks = golden["maps"], golden["masks"]

    def expected(kind, *limits):
        values = {f"{kind}_{name}": golden[f"{kind[0]}_{name.replace('_', '')}"] for name in ("auroc", "ap", "f1_max")}
        return pytest.approx(values | {f"aupro_{x:02d}": golden[f"aupro_{x:03d}"] for x in limits}, abs=1e-9)

    assert image_metrics(maps.max(axis=(1, 2)), masks.any(axis=(1, 2))) == expected("image")
    assert pixel_metrics(maps, masks, limits=(0.3, 0.05, 1.0)) == expected("pixel", 30, 5, 100)
    assert f1_max(maps, masks) == pytest.approx((golden["p_f1max"], golden["p_f1_threshold"]), abs=1e-9)
    for limit in (0.3, 0.05, 1.0):  # the variant that sorts only what lies within the limit
        assert aupro(maps, masks, limit) == pytest.approx(golden[f"aupro_{round(100 * limit):03d}"], abs=1e-9)
    assert aupro(maps, masks, connectivity=4) == pytest.approx(golden["aupro_030_conn4"], abs=1e-9)
    assert aupro(maps, masks, limit=0.3) == pytest.approx(golden["anomalib_aupro_030"], abs=1e-5)
    for convention in ("glass", "dfr"):
        assert legacy_pro(maps, masks, convention) == pytest.approx(golden[f"{convention}_pro"], abs=1e-6)
    fpr, pro = pro_curve(maps, masks)
    for x, y in golden["pro_curve_sub"]:
        # At a given fpr the curve may jump, so the point must lie between the lowest and the highest value there.
        at = np.flatnonzero(np.abs(fpr - x) < 1e-12)
        low, high = (pro[at].min(), pro[at].max()) if len(at) else (np.interp(x, fpr, pro),) * 2
        assert low - 1e-9 <= y <= high + 1e-9


@pytest.mark.parametrize("name", SPRO_SETS)
def test_spro_matches_the_reference(name):
    golden = load(name)
    regions, full = ([[] for _ in golden["maps"]] for _ in range(2))
    for k, i in enumerate(golden["region_image"]):
        mask = golden["regions"][k] > 0
        relative = bool(golden["saturation_is_relative"][k])
        area = saturation_area(mask.sum(), golden["saturation_value"][k], relative)
        assert area == golden["saturation_area"][k]
        regions[i].append((mask, area))
        full[i].append((mask, mask.sum()))
    expected = {f"spro_{round(100 * x):02d}": golden[f"au_spro_{round(100 * x):03d}"] for x in LIMITS}
    assert spro_metrics(golden["maps"], regions) == pytest.approx(expected, abs=1e-9)
    unsaturated = spro_metrics(golden["maps"], full, limits=(0.3,))["spro_30"]
    assert unsaturated == pytest.approx(golden["au_pro_same_regions_030"], abs=1e-9)


# --- worked out by hand ---

HAND_MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)  # regions of 2 and 1 pixels
HAND_MAP = np.array([[9, 6, 1, 1], [1, 7, 1, 1], [1, 1, 1, 8], [1, 1, 1, 1]], np.float32)
HAND_MASK.flags.writeable = HAND_MAP.flags.writeable = False  # nothing changes what it is given


def test_pixel_metrics_of_a_case_done_by_hand():
    # Descending: 9 hits half of region A (PRO 1/4), 8 hits all of B (3/4), 7 is a false positive (FPR 1/13),
    # 6 completes A (1). So PRO is 3/4 up to FPR 1/13 and 1 beyond it.
    result = pixel_metrics([HAND_MAP], [HAND_MASK], limits=(0.3, 0.05))
    pro = {"aupro_05": 0.75, "aupro_30": (0.75 / 13 + (0.3 - 1 / 13)) / 0.3}
    auroc, ap = (13 + 13 + 12) / 39, (1 + 1 + 3 / 4) / 3
    assert result == pytest.approx({"pixel_auroc": auroc, "pixel_ap": ap, "pixel_f1_max": 2 * 3 / (2 * 3 + 1)} | pro)
    assert f1_max(HAND_MAP, HAND_MASK) == pytest.approx((6 / 7, 6.0))
    fpr, pro = pro_curve([HAND_MAP], [HAND_MASK])
    corners = list(dict.fromkeys(zip(fpr.tolist(), pro.tolist(), strict=True)))
    expected = [(0, 0), (0, 0.25), (0, 0.75), (1 / 13, 0.75), (1 / 13, 1), (1, 1)]
    assert np.array(corners) == pytest.approx(np.array(expected))
    fpr, pro = pro_curve([HAND_MAP], [HAND_MASK], limit=0.05)
    assert (fpr[-1], pro[-1]) == pytest.approx((0.05, 0.75))


def test_spro_of_a_case_done_by_hand():
    # Region A needs one of its two pixels only, so it is full at 9; B follows at 8, both without a false positive.
    regions = [[(np.pad([[True, True]], ((0, 3), (0, 2))), 1), (HAND_MASK & (np.arange(4) == 3), 1)]]
    assert spro_metrics([HAND_MAP], regions, limits=(0.05,)) == {"spro_05": 1.0}


def test_saturation_area_is_capped_at_the_region_and_at_least_one_pixel():
    areas = {(10, 1000, False): 10, (10, 0.01, True): 1, (223, 0.25, True): 55}
    assert {case: saturation_area(*case[:2], relative=case[2]) for case in areas} == areas
    # A larger saturation area given directly is capped too: full coverage must count as full.
    mask = HAND_MASK
    assert spro_metrics([mask.astype(float)], [[(mask, 1000)]], limits=(0.3,)) == {"spro_30": 1.0}


def test_how_hot_one_normal_pixel_is_moves_the_legacy_value_but_not_the_exact_one():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), bool)
    mask[10:20, 10:20] = True
    maps = [rng.random((64, 64)) + mask / 2, rng.random((64, 64))]
    masks = [mask, np.zeros_like(mask)]
    exact, legacy = [], []
    for hot in (2, 5, 10, 20, 40):  # all other scores lie below 1.5, so fewer and fewer thresholds fall among them
        maps[1][0, 0] = hot
        exact.append(aupro(maps, masks))
        legacy.append(legacy_pro(maps, masks, "thresholds_200"))
    assert exact == pytest.approx([exact[0]] * 5, abs=1e-12)
    assert np.ptp(legacy) > 0.02


def test_dfr_counts_hits_in_a_hole_but_not_its_area():
    # A ring of 8 pixels around 1 normal one, all with score 5; 11 of the other 55 normal pixels score 4, the rest 0.
    # Below 5 the filled region has 9 hits on an area of 8 at FPR 1/56; FPR 12/56 is the last one under 0.3.
    mask = np.zeros((8, 8), bool)
    mask[1:4, 1:4] = True
    anomaly_map = np.where(mask, 5.0, 0.0)
    anomaly_map[7, :8] = anomaly_map[6, :3] = 4.0
    mask[2, 2] = False
    overlap, step = 9 / 8, (1 / 56) / (12 / 56)
    assert legacy_pro([anomaly_map], [mask], "dfr") == pytest.approx(overlap * (1 - step / 2))


# --- properties ---


@settings(max_examples=60, deadline=None)
@given(small_sets())
def test_pixel_metrics_equal_brute_force(case):
    maps, masks = case
    points = brute_pro(maps, masks)
    scores = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    labels = np.concatenate([m.ravel() for m in masks])
    f1 = [2 * (labels & (scores >= t)).sum() / ((scores >= t).sum() + labels.sum()) for t in np.unique(scores)]
    expected = [roc_auc_score(labels, scores), average_precision_score(labels, scores), max(f1)]
    expected += [brute_area(points, limit) for limit in LIMITS]
    assert list(pixel_metrics(maps, masks, limits=LIMITS).values()) == pytest.approx(expected, abs=1e-12)
    for limit in LIMITS:  # the selecting variant, which sorts only what lies within the limit
        assert aupro(maps, masks, limit) == pytest.approx(brute_area(points, limit), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(small_sets(), st.integers(0, 2**32 - 1))
def test_spro_equals_brute_force_with_overlapping_regions(case, seed):
    maps, _ = case
    rng = np.random.default_rng(seed)
    regions = []
    for anomaly_map in maps:
        masks = [rng.random(anomaly_map.shape) < 0.3 for _ in range(rng.integers(0, 3))]
        regions.append([(m, int(rng.integers(1, m.sum() + 1))) for m in masks if m.any()])
    covered = sum(np.count_nonzero(np.logical_or.reduce([r for r, _ in a])) for a in regions if a)
    result = spro_metrics(maps, regions, LIMITS)
    if not any(regions) or covered == sum(m.size for m in maps):
        assert set(result.values()) == {None}
        return
    points = brute_spro(maps, regions)
    assert list(result.values()) == pytest.approx([brute_area(points, limit) for limit in LIMITS], abs=1e-12)


def stream(metrics, maps, masks):
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)


@settings(max_examples=60, deadline=None)
@given(small_sets(), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_streaming_stays_within_its_bound(case, seed, n_edges):
    maps, masks = case
    edges = np.unique(np.random.default_rng(seed).normal(maps[0].mean(), maps[0].std() + 0.1, n_edges))
    metrics = StreamingPixelMetrics(edges, limits=(0.3, 0.05, 1.0))
    stream(metrics, maps, masks)
    exact = pixel_metrics(maps, masks, limits=(0.3, 0.05, 1.0))
    binned, bound = metrics.compute(), metrics.bound()
    assert binned.keys() == exact.keys() == bound.keys()
    for name in exact:
        assert abs(binned[name] - exact[name]) <= bound[name] + 1e-12
    every = StreamingPixelMetrics(np.unique(np.concatenate([m.ravel() for m in maps])), limits=(0.3, 0.05, 1.0))
    stream(every, maps, masks)
    assert every.compute() == pytest.approx(exact, abs=1e-12)  # with every score an edge it is exact


# --- streaming ---


def test_streaming_bound_is_small_with_edges_from_normal_maps_only():
    rng = np.random.default_rng(1)
    maps = rng.random((6, 100, 100), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[3:, 40:60, 40:60] = True
    maps[masks] += 0.5  # some of these scores exceed all that the sample holds
    metrics = StreamingPixelMetrics.from_maps(maps[:2], n_bins=4096)
    stream(metrics, maps, masks)
    assert metrics.normal.shape == metrics.anomalous.shape == (4097,)  # whatever went through
    assert max(metrics.bound().values()) < 0.005
    assert metrics.compute() == pytest.approx(pixel_metrics(maps, masks), abs=0.005)
    assert metrics.bound()["pixel_auroc"] <= metrics.normal.max() / metrics.normal.sum() / 2


def test_streaming_before_any_defect_is_undefined_and_names_the_image_it_refuses():
    metrics = StreamingPixelMetrics.from_maps([np.zeros((4, 4))])  # a constant sample is legal
    metrics.update(np.zeros((4, 4)), np.zeros((4, 4), bool))
    assert set(metrics.compute().values()) == set(metrics.bound().values()) == {None}
    refused("anomaly map 1 contains NaN", metrics.update, np.full((2, 2), np.nan), np.zeros((2, 2), bool))
    assert metrics.normal.sum() == 16  # the refused image left no trace
    refused("ascending", StreamingPixelMetrics, [1.0, 0.0])


# --- undefined cases and bad input ---


def test_a_category_without_defects_gives_none_without_a_warning():
    maps, masks = [np.ones((4, 4)), np.zeros((3, 5))], [np.zeros((4, 4), bool), np.zeros((3, 5), bool)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(image_metrics([0.1, 0.2], [0, 0]).values()) == {None}
        assert set(image_metrics([0.1, 0.2], [1, 1]).values()) == {None}
        for undefined in (masks, [~mask for mask in masks]):
            assert set(pixel_metrics(maps, undefined).values()) == {None}
            assert aupro(maps, undefined) is None
            assert all(legacy_pro(maps, undefined, c) is None for c in PRO_CONVENTIONS)
        assert spro_metrics(maps, [[], []], limits=(0.05,)) == {"spro_05": None}
    refused("PRO curve is undefined", pro_curve, maps, masks)


def test_what_is_flat_or_without_a_defect():
    assert f1_max([0.5, 0.25], [0, 0]) == (0.0, 0.5)  # at the highest score
    assert legacy_pro([np.ones((4, 4))], [HAND_MASK], "glass") is None
    assert aupro([np.ones((4, 4))], [HAND_MASK]) == pytest.approx(0.15)  # one step, from (0, 0) to (1, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_dtypes_of_maps_and_masks_do_not_matter(dtype):
    expected = pixel_metrics([HAND_MAP], [HAND_MASK])
    assert pixel_metrics([HAND_MAP.astype(dtype)], [HAND_MASK.astype(np.uint8) * 255]) == expected
    mixed = pixel_metrics([HAND_MAP.astype(dtype), HAND_MAP.astype(np.float64)], [HAND_MASK, HAND_MASK])
    assert mixed == pytest.approx(expected)


def nan_map():
    anomaly_map = HAND_MAP.copy()
    anomaly_map[1, 1] = np.nan
    return anomaly_map


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pixel_metrics([HAND_MAP, nan_map()], [HAND_MASK] * 2), "anomaly map 1 contains NaN"),
        (lambda: aupro([HAND_MAP + np.inf], [HAND_MASK]), "anomaly map 0 contains infinity"),
        (lambda: legacy_pro([nan_map()], [HAND_MASK], "dfr"), "anomaly map 0 contains NaN"),
        (lambda: spro_metrics([nan_map()], [[]]), "anomaly map 0 contains NaN"),
        (lambda: pixel_metrics([], []), "no anomaly maps given"),
        (lambda: pixel_metrics([HAND_MAP], [HAND_MASK] * 2), "1 anomaly maps but 2 masks"),
        (lambda: pixel_metrics([HAND_MAP], [HAND_MASK[:2]]), r"mask 0 has shape \(2, 4\)"),
        (lambda: pixel_metrics([HAND_MAP[None]], [HAND_MASK]), r"anomaly map 0 has shape \(1, 4, 4\)"),
        (lambda: pixel_metrics([HAND_MAP], [HAND_MAP]), "mask 0 holds more than two values; binarise"),
        (lambda: pixel_metrics([HAND_MAP], [HAND_MASK], connectivity=6), "connectivity 6"),
        (lambda: pixel_metrics([HAND_MAP], [HAND_MASK], limits=(0.123,)), "limit 0.123: expected whole percent"),
        (lambda: aupro([HAND_MAP], [HAND_MASK], limit=30), "limit 30: expected a false positive rate"),
        (lambda: legacy_pro([HAND_MAP], [HAND_MASK], "glas"), "'glas' is unknown .did you mean 'glass'"),
        (lambda: image_metrics([0.1, np.nan], [0, 1]), "score 1 is nan"),
        (lambda: image_metrics([0.1, 0.2], [0]), "expected the same shape"),
        (lambda: image_metrics([], []), "at least one entry"),
        (lambda: image_metrics([0.1, 0.2], [0, 2]), "labels: expected only 0"),
        (lambda: spro_metrics([HAND_MAP], [[(HAND_MASK, 0)]]), "regions of image 0: .* saturation area 0"),
        (lambda: spro_metrics([HAND_MAP], [[(HAND_MASK & False, 1)]]), "regions of image 0: a region is empty"),
        (lambda: spro_metrics([HAND_MAP], [[], []]), "1 anomaly maps but 2 lists of regions"),
        (lambda: bootstrap_interval(np.mean, [1, 2], [1], rng=np.random.default_rng(0)), "one common length"),
        (lambda: bootstrap_interval(np.mean, np.ones(3), rng=np.random.default_rng(0), level=95), "level"),
    ],
)
def test_bad_input_is_one_line_that_names_the_culprit(call, message):
    refused(message, call)


# --- bootstrap ---


def test_bootstrap_is_reproducible_and_covers_the_value():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 40)
    scores = rng.normal(labels, 1)

    def interval(seed, **settings):
        settings |= {"labels": labels, "rng": np.random.default_rng(seed), "n_resamples": 60}
        return bootstrap_interval(roc_auc_score, labels, scores, **settings)

    low, high = interval(0)
    assert interval(1) != (low, high) == interval(0)
    assert 0.5 < low < roc_auc_score(labels, scores) < high < 1
    narrow_low, narrow_high = interval(0, level=0.5)
    assert low < narrow_low < narrow_high < high


def test_bootstrap_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(6).normal(size=400)
    low, high = bootstrap_interval(np.mean, values, rng=np.random.default_rng(0), n_resamples=2000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_keeps_the_classes_of_a_lopsided_test_set():
    labels = np.array([1] + [0] * 20)  # without strata about a third of the resamples would lose the only defect
    maps = [HAND_MAP if label else HAND_MAP[:2] * 0 for label in labels]
    masks = [HAND_MASK if label else HAND_MASK[:2] & False for label in labels]
    low, high = bootstrap_interval(aupro, maps, masks, labels=labels, rng=np.random.default_rng(0), n_resamples=50)
    assert 0 < low <= high <= 1
    with pytest.raises(InputError, match="undefined on a resample"):
        bootstrap_interval(aupro, maps, masks, rng=np.random.default_rng(0), n_resamples=50)
