"""The study of held-out products: what it counts, and that detectors share features without changing a number."""

import numpy as np
import pandas as pd
import pytest

from adlib_book.studies import unseen_products

SMALL = {"image_size": 64}


def test_every_category_is_held_out_once_and_never_trained_on():
    tested = [name for _, names in unseen_products.FOLDS for name in names]
    assert sorted(tested) == sorted([*unseen_products.DEMO, *unseen_products.REAL])
    assert all(not set(trained_on) & set(names) for trained_on, names in unseen_products.FOLDS)
    tested = [name for _, names in unseen_products.MVTEC_FOLDS for name in names]
    assert len(tested) == len(set(tested)) == 15
    assert all(set(trained_on) == set(tested) - set(names) for trained_on, names in unseen_products.MVTEC_FOLDS)


def test_all_detectors_see_the_same_features_and_support():
    made = unseen_products.detectors(2, 3, {"steps": 7}, SMALL)
    for cls, settings in made.values():
        known = cls.Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})
        assert (known.image_size, known.backbone, known.seed) == (64, "tf_efficientnet_lite0", 3)
        assert known.resize == "stretch"
        assert tuple(known.stages) == (2, 3)
    assert made["unified, trained"][1]["steps"] == 7
    assert made["unified, step 0"][1].get("steps") != 7


def test_study_on_one_fold():
    names = ("PatchCore", "unified, step 0")
    found = unseen_products.study([((), ("gear",))], seeds=(0,), k=3, n_test=10, common=SMALL, methods=names)
    rows = ["PatchCore", "PatchCore, in yardsticks", "unified, step 0"]
    assert found[found.category == "gear"].method.tolist() == rows
    single, pooled = (found[found.category == name].set_index("method") for name in ("gear", "pooled"))
    # With one category, pooling changes nothing, and counting in yardsticks keeps the order of its images.
    np.testing.assert_allclose(single.image_auroc, pooled.image_auroc.loc[single.index])
    assert single.image_auroc[rows[0]] == pytest.approx(single.image_auroc[rows[1]])
    assert single.pixel_auroc.between(0.5, 1).all()
    assert set(zip(found.n_images, found.n_defective, strict=True)) == {(9, 4)}  # the same share of each kind
    assert (found.image_f1_max >= unseen_products.always_defective(9, 4) - 1e-9).all()


def test_summary_by_hand():
    rows = [("a", "x", 0, 0.5), ("a", "y", 0, 0.7), ("a", "x", 1, 0.7), ("a", "y", 1, 0.9), ("a", "pooled", 0, 0.4)]
    found = pd.DataFrame(rows, columns=["method", "category", "seed", "image_auroc"])
    found[["pixel_auroc", "pixel_ap", "image_f1_max"]] = 0.25
    table = unseen_products.summarise(found).loc["a"]
    by_hand = {"x": 0.6, "mean": 0.7, "sd": np.std([0.6, 0.8], ddof=1), "pooled AUROC": 0.4, "pooled F1": 0.25}
    assert table[[*by_hand]].to_dict() == pytest.approx(by_hand)


def test_context_swap_in_numbers_by_hand():
    swap = pd.DataFrame({"defect": ["good"] * 2 + ["dent"] * 2 + ["hole"] * 4, "label": [0, 0, 1, 1, 1, 1, 1, 1]})
    swap["A"] = [0.0, 1.0, 3.0, 2.0, 4.0, 2.0, 4.0, 1.2]
    swap["B"] = [0.0, 1.0, 0.5, 2.5, 4.0, 1.1, 4.0, 1.2]
    found = unseen_products.swap_answer(swap, "dent", threshold=1.5)
    dents = {"auroc_a": 1.0, "auroc_b": 0.75, "n_found": 2, "flip_rate": 0.5}
    # The fourth hole was never found, so it cannot flip.
    holes = {"other_a": 1.0, "other_b": 1.0, "n_other_found": 3, "other_flip_rate": pytest.approx(1 / 3)}
    assert found == dents | holes
    alone = unseen_products.swap_answer(swap[swap.defect != "hole"], "dent", 1.5)
    assert (alone["other_a"], alone["n_other_found"], alone["other_flip_rate"]) == (None, 0, None)
    none = unseen_products.swap_answer(swap, "dent", threshold=9.0)  # nothing found that could flip
    assert (none["n_found"], none["flip_rate"]) == (0, None)


def test_calling_every_image_defective_by_hand():
    """Two of three images are defective: precision 2/3, recall 1."""
    assert unseen_products.always_defective(3, 2) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    labels, scores = np.array([0, 1, 1]), np.zeros(3)
    assert unseen_products.metrics.image_metrics(scores, labels)["image_f1_max"] == pytest.approx(0.8)
