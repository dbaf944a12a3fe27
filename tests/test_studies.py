"""What the studies share: settings of one schema, honest contamination, corruptions that can be undone, scorers."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, refused, write_image

from adlib import datasets, images, methods, profiles, synthesis
from adlib.datasets.catalogue import DATASETS
from adlib.images import backbones
from adlib.methods.patchcore import PatchCore
from adlib_book import studies


@pytest.fixture(scope="module")
def patchcore(train):
    return PatchCore(**SMALL_SETTINGS["patchcore"]).fit(train)


@pytest.fixture
def study(small_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    known = {"27_robustness": {"n_train": 4, "n_test": 5, "changes": {}}}
    profile = profiles.load("smoke") | {"studies": known}
    monkeypatch.setattr("adlib.profiles.load", lambda _name: profile)
    where = ("27_robustness", "smoke", "mvtec", str(small_tree), "plate")
    return lambda seed=0, **changes: studies.Study(*where, seed, changes)


# -- settings and rows ------------------------------------------------------------------------------------------------


def test_all_profiles_know_the_same_studies_and_settings():
    known = {name: profiles.load(name)["studies"] for name in profiles.names()}
    for name, found in known.items():
        assert {s: sorted(v) for s, v in found.items()} == {s: sorted(v) for s, v in known["smoke"].items()}, name


@pytest.mark.parametrize("profile", profiles.names())
def test_what_a_study_names_exists(profile):
    """A study of the paper profile would otherwise fail after hours, or on somebody else's cluster."""
    known = profiles.load(profile)["studies"]
    changes = [change for study in known.values() for change in study["changes"].items()]
    changes += [("pagmfr", values) for values in known["25_pagmfr_ablations"]["variants"].values()]
    for method, values in [*changes, *known["26_synthesis_families"]["methods"].items()]:
        profiles.method_settings(profile, method, values)
    assert set(known["26_synthesis_families"]["families"]) <= set(synthesis.names())
    assert set(known["27_robustness"]["methods"]) <= set(methods.METHODS)
    first = {kind: amounts[0] for kind, amounts in known["27_robustness"]["amounts"].items()}
    assert first == dict.fromkeys(studies.CORRUPTIONS, 0)
    assert set(known["23_scorers"]["scorers"]) == set(studies.SCORERS)
    for method, places in known["92_protocol_audit"]["runs"].items():
        assert method in methods.METHODS
        for place in places:
            dataset, _, category = place.partition("/")
            assert category in DATASETS[dataset].categories
    for name, categories in (pair for study in known.values() for pair in study.get("data", {}).items()):
        assert categories == "all" or set(categories) <= set(DATASETS[name].categories)
    sizes = {**known["21_backbones"]["backbones"], **known["21_backbones"]["time_only"]}
    sizes |= {backbone: stages for backbone, stages, _ in known["22_pretrainings"]["pretrainings"].values()}
    for backbone, stages in sizes.items():
        with torch.device("meta"):  # no weights, no time
            assert len(backbones._stage_indices(backbone, tuple(stages))) == len(stages)


def test_settings_of_a_method_are_the_profiles_then_the_studys_then_the_callers(study):
    found = study(seed=3, changes={"patchcore": {"max_rows": 50, "k": 2}}).method_settings("patchcore", k=3)
    assert (found["seed"], found["max_rows"], found["k"], found["coreset"]) == (3, 50, 3, 0.1)


def test_an_unknown_setting_is_refused_and_a_study_that_was_not_run_is_an_empty_table(study):
    refused("did you mean 'n_train'", study, n_trian=3)
    refused("study", studies.study_settings, "smoke", "29_nothing")
    assert len(studies.read("27_robustness", "paper")) == 0


def test_measure_and_write_keep_rows_of_other_seeds(study, patchcore):
    for seed in (0, 1, 0):  # the third run replaces the first
        one = study(seed)
        one.measure(patchcore, kind="none", amount=0)
        file = one.write()
    found = pd.read_csv(file)
    assert file.name == "27_robustness_smoke.csv"
    assert (sorted(found.seed), set(found.category)) == ([0, 1], {"plate"})
    assert list(found.columns[:5]) == ["dataset", "category", "seed", "kind", "amount"]
    assert studies.percent(found).image_auroc.tolist() == [100.0, 100.0]


def test_subset_keeps_every_kind_in_order(test_rows):
    some = studies.subset(test_rows, 4, seed=0)
    assert some.defect.value_counts().to_dict() == {"good": 2, "hole": 2}
    assert list(some.index) == sorted(some.index)
    assert studies.subset(test_rows, None, seed=0) is test_rows
    assert studies.subset(test_rows, 100, seed=0).equals(test_rows)
    assert set(studies.subset(test_rows, 1, seed=0).defect) == {"good", "hole"}


def test_melted_is_percent_by_name_and_keeps_what_is_undefined():
    table = pd.DataFrame({"n": [1, 2], "image_auroc": [0.5, 0.75], "aupro_30": [None, None]})
    long = studies.melted(table, "n", ("image_auroc", "aupro_30"))
    assert long.measured.tolist() == ["image AUROC"] * 2 + ["AUPRO"] * 2
    assert long.percent.tolist()[:2] == [50.0, 75.0]
    assert long.percent.isna().tolist()[2:] == [True, True]


# -- contamination ----------------------------------------------------------------------------------------------------


def test_contaminating_images_leave_the_test_set_and_look_normal(train, test_rows):
    reserve, rest = studies.reserve_defects(test_rows, 2, seed=0)
    dirty = studies.contaminate(train, reserve, share=1 / 3)
    assert len(dirty) == len(train)
    assert set(dirty.image_path) & set(test_rows.image_path) == set(reserve.image_path)
    assert not set(dirty.image_path) & set(rest.image_path)
    datasets.check_training_table(dirty)  # nobody noticed
    one = set(studies.contaminate(train, reserve, share=1 / 6).image_path) & set(reserve.image_path)
    assert one == {reserve.image_path.iloc[0]}
    assert studies.contaminate(train, reserve, 0).image_path.tolist() == train.image_path.tolist()


def test_contamination_needs_enough_defects(train, test_rows):
    refused("4 defective images are needed", studies.reserve_defects, test_rows, 4, seed=0)
    reserve, _ = studies.reserve_defects(test_rows, 1, seed=0)
    refused("needs at most 1", studies.contaminate, train, reserve, 0.5)


# -- corruptions ------------------------------------------------------------------------------------------------------


def picture(seed=0):
    noise = np.random.default_rng(seed).integers(40, 200, (48, 48, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


@pytest.mark.parametrize("kind", studies.CORRUPTIONS)
def test_no_amount_leaves_the_picture_and_more_changes_more(kind):
    image, rng = picture(), np.random.default_rng
    assert studies.corrupt(image, kind, 0, rng(0))[0] is image
    amounts = {"blur": (1, 3), "jpeg": (60, 95), "rotation": (3, 12)}.get(kind, (0.05, 0.2))
    small, large = (np.abs(studies.corrupt(image, kind, a, rng(0))[0] - image.astype(float)).mean() for a in amounts)
    assert 0 < small < large
    assert studies.corrupt(image, kind, amounts[0], rng(0))[0].dtype == np.uint8


def test_light_and_jpeg_by_hand():
    image, rng = np.full((8, 8, 3), 100, np.uint8), np.random.default_rng(0)
    assert (studies.corrupt(image, "brighter", 0.5, rng)[0] == 150).all()
    assert (studies.corrupt(image, "darker", 0.5, rng)[0] == 50).all()
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert studies.corrupt(red, "jpeg", 10, rng)[0][..., 0].mean() > 190  # the channels keep their order
    for kind, amount, said in (("blur", -1, "must not be negative"), ("blurr", 1, "did you mean 'blur'")):
        refused(said, studies.corrupt, image, kind, amount, rng)


@pytest.mark.parametrize("bad", [90, 150])
def test_brightness_alone_is_found_out_in_either_direction(tmp_path, bad):
    paths = [write_image(tmp_path / f"{i}.png", np.full((8, 8, 3), g, np.uint8)) for i, g in enumerate([120, 121, bad])]
    test = pd.DataFrame({"image_path": paths, "label": [0, 0, 1]})
    assert studies.brightness_auroc(test, images.Resize(8)) == 1.0


@pytest.mark.parametrize(("kind", "amount"), [("shift", 0.1), ("rotation", 10)])
def test_the_map_of_a_moved_picture_comes_back_to_its_place(kind, amount):
    """A scorer whose map is the picture's own grey value: moved there and back, a blob is where it was."""

    class Grey:
        resize, settings = images.Resize(64), None

        def score(self, batch):
            grey = batch.mean(dim=1).numpy()
            return methods.Scores(grey.max((1, 2)), grey)

    blob = torch.zeros(2, 3, 64, 64)
    blob[:, :, 20:30, 36:44] = 1
    found = studies.Corrupted(Grey(), kind, amount).score(blob)
    back = found.map[0] > 0.5
    truth = blob[0, 0].numpy() > 0.5
    assert (back & truth).sum() / (back | truth).sum() > 0.85
    one = studies.Corrupted(Grey(), kind, amount).score(blob[:1])
    np.testing.assert_array_equal(one.map[0], found.map[0])


# -- scorers and shared features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", studies.SCORERS)
def test_every_scorer_calls_far_rows_more_anomalous(name):
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 2, (300, 6)).astype(np.float32)
    score = studies.fit_scorer(name, rows)
    near, far = score(rng.normal(5, 2, (50, 6))), score(rng.normal(25, 2, (50, 6)))
    assert far.min() > np.median(near)
    assert near.shape == (50,)


def test_mahalanobis_and_nearest_neighbour_by_hand():
    rows = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]] * 50)
    score = studies.fit_scorer("Mahalanobis", rows)
    assert score(np.array([[2.0, 0]]))[0] == pytest.approx(4 * score(np.array([[1.0, 0]]))[0])
    nearest = studies.fit_scorer("k-NN", rows)(np.array([[3.0, 0], [1, 0]]))
    assert nearest == pytest.approx([2 / np.sqrt(0.5), 0])  # standard deviation of each column: sqrt(1/2)


def test_another_scorer_sees_the_same_features(patchcore, test_batch):
    same = studies.WithScorer(patchcore, lambda rows: patchcore.index.query(rows, 1)[0][:, 0]).score(test_batch)
    np.testing.assert_allclose(same.map, patchcore.score(test_batch).map, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(same.image, patchcore.score(test_batch).image, rtol=1e-5)


def test_remembered_features_are_the_backbones_and_cost_one_pass(train, test_batch, patchcore):
    shared = studies.RememberingBackbone(patchcore.backbone)
    passes = []
    patchcore.backbone.register_forward_hook(lambda _m, inputs, _out: passes.append(len(inputs[0])))
    for share in (0.25, 0.5):
        settings = SMALL_SETTINGS["patchcore"] | {"coreset": share, "n_calibration": 0}
        again = studies.remembering(PatchCore(**settings), shared).fit(train)
        again.score(test_batch)
    assert sum(passes) == len(train) + len(test_batch)
    plain = PatchCore(**settings).fit(train).score(test_batch)
    np.testing.assert_allclose(again.score(test_batch).map, plain.map, rtol=1e-4, atol=1e-4 * plain.map.max())


def test_time_breakdown_counts_features_and_the_rest(patchcore, test_rows):
    found = studies.time_breakdown(patchcore, test_rows.image_path[:3])
    assert set(found) == {"features_ms", "search_ms"}
    assert min(found.values()) > 0
    assert patchcore.embed.__func__ is PatchCore.embed  # and the method is as it was
    refused("at least 2", studies.time_breakdown, patchcore, test_rows.image_path[:1])


def test_committed_studies_hold_fractions_and_say_what_they_rest_on():
    known = profiles.load("laptop")["studies"]
    files = [studies.results_dir() / "studies" / f"{name}_laptop.csv" for name in known]
    for file in (file for file in files if file.is_file()):
        table = pd.read_csv(file)
        assert {"dataset", "category", "seed", "n_train", "n_test", *studies.METRICS} <= set(table), file.name
        assert table[list(studies.METRICS)].stack().dropna().between(0, 1).all(), file.name
        assert not table.select_dtypes("object").stack().astype(str).str.contains("/").any(), file.name


def test_rows_replace_those_with_the_same_keys_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    rows = pd.DataFrame({"seed": [1, 1, 0], "change": ["a", "b", "a"], "value": [1.0, 2.0, 3.0]})
    studies.write_rows("some", rows)
    new = pd.DataFrame({"seed": [1], "change": ["a"], "value": [9.0]})
    assert studies.write_rows("some", new, keys=["seed", "change"]).value.tolist() == [2.0, 3.0, 9.0]
    assert studies.write_rows("some", new, keys=["change"], order="seed").value.tolist() == [2.0, 9.0]
    assert len(studies.write_rows("some", new)) == 3  # without keys nothing goes
    assert len(pd.read_csv(tmp_path / "studies" / "some.csv")) == 3
