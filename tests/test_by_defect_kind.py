"""Per-kind results: each kind against all good images, sPRO equal to brute force, the mean of both."""

import json

import numpy as np
import pytest
from conftest import write_image
from test_metrics import brute_area, brute_spro

from adlib.datasets.table import make_table
from adlib.evaluation import by_defect_kind
from adlib.images import Resize


@pytest.fixture
def loco_like(tmp_path):
    """Two good images, one logical (two regions, one saturated at a quarter) and one structural; 16 x 16 pixels."""
    folder, rng = tmp_path / "box", np.random.default_rng(0)
    config = [
        {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 0.25, "relative_saturation": True},
        {"defect_name": "extra", "pixel_value": 254, "saturation_threshold": 500, "relative_saturation": False},
    ]
    regions = {
        "logical_anomalies": [(slice(0, 8), slice(0, 8), 255), (slice(10, 14), slice(10, 14), 254)],
        "structural_anomalies": [(slice(4, 8), slice(8, 12), 254)],
    }
    rows = []
    for i, defect in enumerate(["good", "good", "logical_anomalies", "structural_anomalies"]):
        image = write_image(folder / f"test/{defect}/{i:03d}.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        masks = None
        for j, (down, across, value) in enumerate(regions.get(defect, [])):
            mask = np.zeros((16, 16), np.uint8)
            mask[down, across] = value
            masks = folder / f"ground_truth/{defect}/{i:03d}"
            write_image(masks / f"{j:03d}.png", mask)
        rows.append((image, masks and str(masks), int(defect != "good"), defect, "test", "box"))
    (folder / "defects_config.json").write_text(json.dumps(config))
    return make_table(rows, "loco", 0)


def test_each_kind_is_measured_against_all_good_images(loco_like):
    rng = np.random.default_rng(1)
    maps = list(rng.random((4, 16, 16)).astype(np.float32))
    maps[2][:4, :4] += 0.9
    maps[3][5, 9] += 0.9
    scores = [0.2, 0.6, 0.5, 0.9]
    found = by_defect_kind.by_kind(loco_like, scores, maps, Resize(16))
    assert found["logical"]["image_auroc"] == 0.5  # above one good image, below the other
    assert (found["structural"]["image_auroc"], found["mean"]["image_auroc"]) == (1.0, 0.75)
    first, second, third = (np.zeros((16, 16), bool) for _ in range(3))
    first[:8, :8] = second[10:14, 10:14] = third[4:8, 8:12] = True
    logical = brute_area(brute_spro(maps[:3], [[], [], [(first, 16), (second, 16)]]), 0.05)
    structural = brute_area(brute_spro([*maps[:2], maps[3]], [[], [], [(third, 16)]]), 0.05)
    assert found["logical"]["spro_05"] == pytest.approx(logical, abs=1e-9)
    assert found["structural"]["spro_05"] == pytest.approx(structural, abs=1e-9)
    assert found["mean"]["spro_05"] == pytest.approx((logical + structural) / 2, abs=1e-9)


def test_kinds_are_known_for_loco_and_the_tray(loco_like):
    assert by_defect_kind.kinds_of(loco_like).tolist() == ["good", "good", "logical", "structural"]
    assert by_defect_kind.has_both(loco_like)
    assert not by_defect_kind.has_both(loco_like.iloc[:3])
    tray = loco_like.assign(defect=["good", "missing", "dent", "unheard_of"])
    assert by_defect_kind.kinds_of(tray).tolist() == ["good", "logical", "structural", ""]


@pytest.mark.parametrize(
    ("change", "undefined"),
    [
        (lambda table: table.assign(mask_path=None), {"spro_05": ["logical", "structural", "mean"]}),
        (lambda table: table.assign(mask_path=[*table.mask_path[:3], None]), {"spro_05": ["structural", "mean"]}),
        (lambda table: table[:3], {"spro_05": ["structural", "mean"], "image_auroc": ["structural", "mean"]}),
        (lambda table: table[2:], {"image_auroc": ["logical", "structural", "mean"]}),
        (lambda table: table[3:], {"spro_05": ["logical", "mean"], "image_auroc": ["logical", "structural", "mean"]}),
    ],
    ids=["no masks", "one kind without", "one kind", "no good", "one image"],
)
def test_what_is_undefined_is_none(loco_like, change, undefined):
    table = change(loco_like)
    maps = list(np.random.default_rng(2).random((len(table), 16, 16)))
    found = by_defect_kind.by_kind(table, np.arange(len(table)), maps, Resize(16))
    for key in ("image_auroc", "spro_05"):
        assert [kind for kind, values in found.items() if values[key] is None] == undefined.get(key, [])
