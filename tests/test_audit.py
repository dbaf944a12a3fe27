"""The audit: each habit changes what it says and nothing else, in cases whose answer is known."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_SETTINGS, refused, write_image

from adlib import evaluation, methods
from adlib.evaluation import metrics
from adlib.images import Resize
from adlib_book.studies import audit


@pytest.fixture
def made(tmp_path):
    """Two images of 64 x 64 with maps of 32 x 32: a defect in the corner that the map finds a little off, and none."""
    rng = np.random.default_rng(0)
    original = np.zeros((64, 64), np.uint8)
    original[0:9, 0:9] = 255  # 4.5 pixels of the input
    rows = []
    for name, mask in (("bad", original), ("good", None)):
        path = write_image(tmp_path / f"{name}.png", rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))
        where = write_image(tmp_path / f"{name}_mask.png", mask) if mask is not None else None
        rows.append({"image_path": path, "mask_path": where, "label": int(mask is not None), "split": "test"})
    table = pd.DataFrame(rows)
    maps = [rng.random((32, 32)).astype(np.float32) for _ in rows]
    maps[0][2:7, 2:7] += 2
    resize = Resize(32)
    masks = [resize.mask(original > 127), np.zeros((32, 32), bool)]
    return table, maps, masks, resize


@pytest.fixture
def rows(made):
    table, maps, masks, resize = made
    found = audit.audit_maps(maps, masks, table.label.to_numpy(), table, resize)
    return pd.DataFrame(found, columns=["habit", "metric", "without", "with", "bound"]).set_index(["habit", "metric"])


def test_every_habit_is_there_once(rows):
    assert set(rows.index.get_level_values(0)) == set(audit.HABITS) - {audit.EPOCH, audit.POOLED}
    assert not rows.index.duplicated().any()
    assert rows[["without", "with"]].stack().between(0, 100).sum() == 2 * len(rows)


def test_habits_are_the_legacy_metrics_on_the_same_maps(made, rows):
    _, maps, masks, _ = made
    pro = rows.xs("aupro_30", level="metric")
    coarse, dilated = pro.loc["200 thresholds"], pro.loc["prediction dilated 5 x 5"]
    assert coarse["without"] == 100 * metrics.aupro(maps, masks)
    assert coarse["with"] == dilated["without"] < dilated["with"] == 100 * audit.legacy_pro(maps, masks, "glass")


def test_scaling_over_the_test_set_keeps_every_rank(rows):
    """A strictly increasing transform; scaling each map alone is none."""
    kept = rows.loc[audit.PER_CATEGORY]
    assert np.allclose(kept["with"], kept["without"], atol=1e-3)
    assert (rows.loc[audit.PER_IMAGE, "with"] != rows.loc[audit.PER_IMAGE, "without"]).any()


def test_the_crop_cuts_the_corner_off(made, rows):
    assert audit.crop_centre(np.zeros((256, 320))).shape == (224, 280)
    table, maps, _, _ = made
    inside = [audit.crop_centre(m) for m in maps]
    expected = metrics.image_metrics([m.max() for m in inside], table.label.to_numpy())["image_auroc"]
    crop = rows.loc["centre crop"]
    assert crop.loc["image_auroc", "with"] == 100 * expected
    assert crop.loc["pixel_auroc", "with"] > crop.loc["pixel_auroc", "without"]


@pytest.mark.parametrize(("rule", "side"), [("any coverage", 5), ("full coverage", 4)])
def test_mask_rules_by_hand(made, rule, side):
    table, _, masks, resize = made
    original = cv2.imread(table.mask_path[0], cv2.IMREAD_GRAYSCALE) > 127
    found = audit.resized_mask(original, masks[0], resize, rule)
    expected = np.zeros((32, 32), bool)
    expected[:side, :side] = True
    assert (found == expected).all()
    assert not audit.resized_mask(None, masks[1], resize, rule).any()
    assert audit.resized_mask(original, masks[0], Resize(32, "short_side"), "nearest pixel") is masks[0]  # of a crop


def test_a_trained_method_is_audited_for_its_step_and_keeps_its_weights(train, test_rows):
    settings = SMALL_SETTINGS["glass"] | {"snapshot_every": 1}
    method = methods.create("glass", **settings).fit(train)
    result = evaluation.evaluate(method, test_rows)
    table = audit.audit(method, test_rows, result)
    step = table[table.habit == audit.EPOCH].set_index("metric")
    assert step.without["image_auroc"] == pytest.approx(100 * result.metrics["image_auroc"])
    assert step.added["image_auroc"] + step.added["pixel_auroc"] >= 0
    assert evaluation.evaluate(method, test_rows).scores.equals(result.scores)
    assert list(table.habit) == sorted(table.habit, key=audit.HABITS.index)


def test_pooling_by_hand():
    """One category scores ten times as high as the other; its test set also holds one extreme image."""

    def result(scores, labels):
        return evaluation.Evaluation(pd.DataFrame({"score": scores, "label": labels}), {}, {})

    results = {"a": result([1.0, 1.4, 2.0], [0, 0, 1]), "b": result([10.0, 14.0, 20.0, 200.0], [0, 0, 1, 1])}
    ((habit, _, without, with_, _),) = audit.audit_pooled(results, {"a": 1.5, "b": 15.0})
    assert (habit, without) == (audit.POOLED, 100)  # both thresholds separate
    # The extreme image squeezes the other defect of b down to 0.053, below the 0.4 of a normal image of a.
    assert with_ == pytest.approx(100 * 11 / 12)


def test_rows_of_other_categories_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_ROOT", str(tmp_path))
    assert audit.read("laptop").empty
    row = {"dataset": "d", "method": "m", "seed": 0, "n_test": 3, "habit": "200 thresholds", "metric": "aupro_30"}
    for category, added in (("x", 1.0), ("y", 2.0), ("x", 3.0)):
        numbers = {"without": 50.0, "with": 50.0 + added, "added": added, "bound": 0.0}
        audit.write(pd.DataFrame([row | {"category": category} | numbers]), "laptop")
    assert audit.read("laptop").set_index("category").added.to_dict() == {"x": 3.0, "y": 2.0}


def test_settings_choose_what_is_audited(small_tree, monkeypatch):
    """Two categories are pooled; a data set that is not there is one line."""
    runs = {"runs": {"patchcore": ["data/plate"]}, "changes": {"patchcore": SMALL_SETTINGS["patchcore"]}}
    monkeypatch.setattr("adlib.datasets.discover", lambda _root: [("mvtec", "mvtec", small_tree, ["plate"])])
    refused("no data set 'data'", list, audit.fit_all("smoke", str(small_tree), 0, runs))
    runs["runs"] = {"patchcore": ["mvtec/plate", "mvtec/plate"]}
    table = audit.audit_all(list(audit.fit_all("smoke", str(small_tree), 0, runs)))
    assert set(table.category) == {"plate", "plate + plate"}
    assert set(table.habit) == set(audit.HABITS) - {audit.EPOCH}


def test_what_the_profile_names_and_is_not_there_is_left_out(small_tree, monkeypatch, capsys):
    """A batch on other data must not fail because the audit's own data sets are absent."""
    study = {"runs": {"patchcore": ["mvtec/plate", "mvtec/cup"]}, "changes": {"patchcore": SMALL_SETTINGS["patchcore"]}}
    monkeypatch.setattr("adlib_book.studies.study_settings", lambda *_: study)
    monkeypatch.setattr("adlib.datasets.discover", lambda _root: [("mvtec", "mvtec", small_tree, ["plate"])])
    assert [one.category for one in audit.fit_all("laptop", str(small_tree))] == ["plate"]
    assert "left out: mvtec/cup" in capsys.readouterr().out
    study["runs"] = {"patchcore": ["mvtec/cup"]}
    assert [(one.dataset, one.category) for one in audit.fit_all("laptop", str(small_tree))] == [("demo", "gear")]
