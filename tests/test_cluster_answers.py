"""The testing step of contrastive learning: decisions counted by hand, and what clustering did with each image."""

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_SETTINGS

from adlib.evaluation import Evaluation
from adlib.methods.few_shot.contrastive import Contrastive
from adlib_book.studies import cluster_answers


def example() -> Evaluation:
    """Two good images (one a false alarm), two scratches (one found), one stain (found); maps of four pixels."""
    scores = pd.DataFrame(
        {
            "defect": ["good", "good", "scratch", "scratch", "stain"],
            "label": [0, 0, 1, 1, 1],
            "score": [0.1, 0.6, 0.9, 0.2, 0.8],
        }
    )
    maps = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [9, 9, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]], float).reshape(5, 2, 2)
    masks = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], bool).reshape(5, 2, 2)
    return Evaluation(scores, {"image_f1_max": 0.8, "pixel_f1_max": 0.7}, {}, list(maps), list(masks))


def test_decisions_by_hand():
    found = cluster_answers.decisions(example(), image_line=0.5, pixel_line=5.0)
    assert list(found.index) == ["scratch", "stain", "all", "oracle"]
    total = found.loc["all"]
    assert total[["n", "accuracy", "f1", "false_alarms", "found"]].tolist() == pytest.approx(
        [5, 3 / 5, 4 / 6, 1 / 2, 2 / 3]
    )
    # Pixels of all images: 4 called, 4 true, 2 both. Of the scratches: 2 called, 3 true, 1 both.
    assert total[["pixel_f1", "pixel_iou"]].tolist() == pytest.approx([4 / 8, 2 / 6])
    scratch = found.loc["scratch"]
    assert scratch[["n", "accuracy", "f1", "found"]].tolist() == pytest.approx([2, 2 / 4, 2 / 4, 1 / 2])
    assert scratch[["pixel_f1", "pixel_iou"]].tolist() == pytest.approx([2 / 5, 1 / 4])
    assert found.loc["oracle", ["f1", "pixel_f1"]].tolist() == [0.8, 0.7]
    assert np.isnan(found.loc["oracle", "found"])


def test_without_masks_pixels_stay_blank():
    result = example()
    result.masks = [np.zeros((2, 2), bool)] * 5
    found = cluster_answers.decisions(result, 0.5, 5.0)
    assert found.loc["all", ["pixel_f1", "pixel_iou"]].isna().all()
    assert found.loc["all", "f1"] == pytest.approx(4 / 6)


@pytest.fixture(scope="module")
def fitted(small_table):
    settings = SMALL_SETTINGS["contrastive"] | {"clustering": "agglomerative"}
    return Contrastive(**settings).fit(small_table[small_table.split == "train"])


def test_diagnosis_is_that_of_each_image(fitted, small_table):
    test = small_table[small_table.split == "test"]
    found = cluster_answers.diagnose(fitted, test, batch_size=4)
    assert found.image_path.tolist() == test.image_path.tolist()
    assert (found.n_clusters == 2).all()
    assert (found.open == (found.separation > fitted.gate)).all()
    assert (found.anomalous[~found.open] == 0).all()
    assert found.wrong_side[found.label == 0].isna().all()


def test_a_wrong_side_is_told(fitted, small_table, monkeypatch):
    """With the answer turned round, what was right is wrong."""
    test = small_table[(small_table.split == "test") & (small_table.label == 1)]
    monkeypatch.setattr(fitted, "gate", 0.0)
    plain = cluster_answers.diagnose(fitted, test).wrong_side
    cluster = fitted.cluster

    def turned(stack):
        return [f.__class__(**vars(f) | {"anomalous": ~f.anomalous}) for f in cluster(stack)]

    monkeypatch.setattr(fitted, "cluster", turned)
    other = cluster_answers.diagnose(fitted, test).wrong_side
    assert plain.notna().any()
    assert (plain[plain.notna()] != other[plain.notna()]).all()
