"""The testing step of contrastive learning: decisions counted by hand, and what clustering did with each image."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_SETTINGS

from adlib.evaluation import Evaluation
from adlib.methods.few_shot.contrastive import Contrastive
from adlib_book.studies import cluster_answers


def example() -> Evaluation:
    """Two good images (one a false alarm), two scratches (one found), one stain (found); maps of four pixels."""
    defect = ["good", "good", "scratch", "scratch", "stain"]
    scores = pd.DataFrame({"defect": defect, "label": [0, 0, 1, 1, 1], "score": [0.1, 0.6, 0.9, 0.2, 0.8]})
    maps = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [9, 9, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]], float).reshape(5, 2, 2)
    masks = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], bool).reshape(5, 2, 2)
    return Evaluation(scores, {"image_f1_max": 0.8, "pixel_f1_max": 0.7}, {}, list(maps), list(masks))


def test_decisions_by_hand():
    found = cluster_answers.decisions(example(), image_line=0.5, pixel_line=5.0)
    assert list(found.index) == ["scratch", "stain", "all", "oracle"]
    # Pixels of all images: 4 called, 4 true, 2 both. Of the scratches: 2 called, 3 true, 1 both.
    by_hand = {"n": 5, "accuracy": 3 / 5, "f1": 4 / 6, "false_alarms": 1 / 2, "found": 2 / 3}
    by_hand |= {"pixel_f1": 4 / 8, "pixel_iou": 2 / 6}
    assert found.loc["all", [*by_hand]].to_dict() == pytest.approx(by_hand)
    by_hand = {"n": 2, "accuracy": 2 / 4, "f1": 2 / 4, "found": 1 / 2, "pixel_f1": 2 / 5, "pixel_iou": 1 / 4}
    assert found.loc["scratch", [*by_hand]].to_dict() == pytest.approx(by_hand)
    assert found.loc["oracle", ["f1", "pixel_f1"]].tolist() == [0.8, 0.7]
    assert np.isnan(found.loc["oracle", "found"])


def test_without_masks_pixels_stay_blank():
    result = example()
    result.masks = [np.zeros((2, 2), bool)] * 5
    found = cluster_answers.decisions(result, 0.5, 5.0)
    assert found.loc["all", ["pixel_f1", "pixel_iou"]].isna().all()
    assert found.loc["all", "f1"] == pytest.approx(4 / 6)


@pytest.fixture(scope="module")
def fitted(train):
    return Contrastive(**SMALL_SETTINGS["contrastive"] | {"clustering": "agglomerative"}).fit(train)


def test_diagnosis_is_that_of_each_image(fitted, test_rows):
    found = cluster_answers.diagnose(fitted, test_rows, batch_size=4)
    assert found.image_path.tolist() == test_rows.image_path.tolist()
    assert (found.n_clusters == 2).all()
    assert (found.open == (found.separation > fitted.gate)).all()
    assert (found.anomalous[~found.open] == 0).all()
    assert found.wrong_side[found.label == 0].isna().all()


def test_a_wrong_side_is_told(fitted, test_rows, monkeypatch):
    """With the answer turned round, what was right is wrong."""
    test = test_rows[test_rows.label == 1]
    monkeypatch.setattr(fitted, "gate", 0.0)
    plain = cluster_answers.diagnose(fitted, test).wrong_side
    cluster = fitted.cluster
    monkeypatch.setattr(fitted, "cluster", lambda stack: [replace(f, anomalous=~f.anomalous) for f in cluster(stack)])
    other = cluster_answers.diagnose(fitted, test).wrong_side
    assert plain.notna().any()
    assert (plain[plain.notna()] != other[plain.notna()]).all()
