"""SyntheticSplit: the fixed validation set of pseudo-anomalies."""

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS, refused
from test_contract import TRAINED

from adlib import methods, profiles
from adlib.images import Resize
from adlib.synthesis import SyntheticSplit, judge


def _same(first, second) -> bool:
    same = np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)
    return same and first[2:5] == second[2:5] and repr(first.info) == repr(second.info)


def test_half_is_clean_and_each_image_comes_in_both_forms(train):
    split = SyntheticSplit(train, resize=64)
    items = [split[i] for i in range(len(split))]
    assert len(items) == 2 * len(train)
    assert split.labels.tolist() == [item.label for item in items]
    assert split.labels.sum() == len(train)
    for label in (0, 1):
        assert sorted(i.path for i in items if i.label == label) == sorted(train.image_path)
    for item in items:
        assert item.mask.any() == bool(item.family) == bool(item.label)
        assert (item.image.shape, item.image.dtype) == ((64, 64, 3), np.uint8)
    assert {item.family for item in items if item.label} == set(split.families)


def test_an_image_meets_another_family_in_the_next_round(train):
    split = SyntheticSplit(train, families=("cutpaste", "cutpaste_scar"), number=4 * len(train), resize=64)
    met = {}
    for i in np.flatnonzero(split.labels):
        met.setdefault(split[int(i)].path, []).append(split[int(i)].family)
    assert all(sorted(families) == ["cutpaste", "cutpaste_scar"] for families in met.values())


def test_an_item_is_the_same_in_any_order_and_after_a_restart(train):
    first, second = SyntheticSplit(train, resize=64, seed=3), SyntheticSplit(train, resize=64, seed=3)
    backwards = {i: second[i] for i in reversed(range(len(second)))}
    assert all(_same(first[i], backwards[i]) for i in range(len(first)))
    assert _same(first[-1], first[len(first) - 1])
    other = SyntheticSplit(train, resize=64, seed=4)
    assert not any(_same(first[i], other[i]) for i in range(len(first)) if first[i].label)


def test_batches_fit_a_method(train):
    split = SyntheticSplit(train, families="cutpaste", number=5, share=0.4, resize=Resize((48, 64)))
    batches = list(split.batches(2))
    assert [len(batch) for batch, _, _ in batches] == [2, 2, 1]
    (batch, masks, _) = batches[0]
    assert (batch.images.shape, batch.images.dtype, masks.shape) == ((2, 3, 48, 64), torch.float32, (2, 48, 64))
    assert np.concatenate([labels for _, _, labels in batches]).tolist() == split.labels.tolist()
    assert split.labels.sum() == 2
    for batch, masks, _ in batches:  # the geometry leads back to the original file
        assert batch.geometries[0].original == (64, 64)
        assert masks.shape[1:] == batch.geometries[0].size


def test_a_family_that_changes_nothing_is_replaced(train):
    split = SyntheticSplit(train, families="nsa", resize=64, params={"nsa": {"tries": 0}})
    item = next(split[i] for i in range(len(split)) if split.labels[i])
    assert item.family == "cutpaste"
    assert "CutPaste instead" in item.info["fallback"]
    assert item.mask.any()


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_shares(train, share):
    assert SyntheticSplit(train, families="cutpaste", number=12, share=share).labels.sum() == round(12 * share)


def test_protocol_and_bad_input(test_rows, train):
    def raises(pattern, *args, **kwargs):
        refused(pattern, SyntheticSplit, *args, **kwargs)

    raises("anomalous image", test_rows[test_rows.label == 1])
    raises("test image", test_rows[test_rows.label == 0])
    raises("empty", train[:0])
    raises("no held-out", [])
    raises("did you mean 'cutpaste'", train, families="cutpast")
    raises("choose one of", train, families="feature_gauss")
    raises("no family", train, families=())
    raises("share", train, share=1.5)
    raises("number", train, number=0)
    raises("did you mean 'nsa'", train, params={"nsaa": {}})
    with pytest.raises(IndexError):
        SyntheticSplit(train)[1000]
    refused("no such image", SyntheticSplit(["nowhere.png"]).__getitem__, 0)


# -- the judge --------------------------------------------------------------------------------------------------------


def test_no_method_of_any_profile_trains_on_a_family_of_the_judge():
    taught = set()
    for profile in profiles.names():
        for name in methods.METHODS:
            settings = methods.get(name).Settings(**profiles.method_settings(profile, name))
            taught |= set(getattr(settings, "families", ()))
        for study in profiles.load(profile)["studies"].values():
            taught |= set(study.get("families", ()))
    assert taught > {"glass_las", "pagmfr", "perlin_dtd", "nsa"}
    assert not taught & set(judge.FAMILIES)


def test_every_method_of_a_seed_sees_the_same_judged_images(train, monkeypatch):
    class Seen(Exception):
        pass

    def look(self, table, resize, number=64, seed=0):
        raise Seen(list(table.image_path), resize, number, seed)

    monkeypatch.setattr(judge.Judge, "__init__", look)
    for name in TRAINED:
        settings = SMALL_SETTINGS[name] | {"selection": "synthetic", "seed": 5, "steps": 1}
        with pytest.raises(Seen) as seen:
            methods.create(name, **settings).fit(train.iloc[:4], train.iloc[4:])
        assert seen.value.args == (list(train.image_path[4:]), Resize(64, "stretch"), 64, 5), name
