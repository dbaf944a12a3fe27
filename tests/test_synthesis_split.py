"""SyntheticSplit: the fixed validation set of pseudo-anomalies."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS

from adlib import methods, profiles
from adlib.errors import InputError
from adlib.images import Resize
from adlib.synthesis import SyntheticSplit, judge


@pytest.fixture
def normals(small_table) -> pd.DataFrame:
    return small_table[small_table.split == "train"]


def _same(first, second) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
        and first[2:5] == second[2:5]
        and repr(first.info) == repr(second.info)
    )


def test_half_is_clean_and_each_image_comes_in_both_forms(normals):
    split = SyntheticSplit(normals, resize=64)
    items = [split[i] for i in range(len(split))]
    assert len(items) == 2 * len(normals)
    assert split.labels.tolist() == [item.label for item in items]
    assert split.labels.sum() == len(normals)
    for label in (0, 1):
        assert sorted(i.path for i in items if i.label == label) == sorted(normals.image_path)
    for item in items:
        assert item.mask.any() == bool(item.label)
        assert item.image.shape == (64, 64, 3)
        assert item.image.dtype == np.uint8
        assert bool(item.family) == bool(item.label)
    assert {item.family for item in items if item.label} == set(split.families)


def test_an_image_meets_another_family_in_the_next_round(normals):
    split = SyntheticSplit(normals, families=("cutpaste", "cutpaste_scar"), number=4 * len(normals), resize=64)
    met = {}
    for i in np.flatnonzero(split.labels):
        met.setdefault(split[int(i)].path, []).append(split[int(i)].family)
    assert all(sorted(families) == ["cutpaste", "cutpaste_scar"] for families in met.values())


def test_an_item_is_the_same_in_any_order_and_after_a_restart(normals):
    first, second = SyntheticSplit(normals, resize=64, seed=3), SyntheticSplit(normals, resize=64, seed=3)
    backwards = {i: second[i] for i in reversed(range(len(second)))}
    assert all(_same(first[i], backwards[i]) for i in range(len(first)))
    assert _same(first[-1], first[len(first) - 1])
    other = SyntheticSplit(normals, resize=64, seed=4)
    assert not any(_same(first[i], other[i]) for i in range(len(first)) if first[i].label)


def test_batches_fit_a_method(normals):
    split = SyntheticSplit(normals, families="cutpaste", number=5, share=0.4, resize=Resize((48, 64)))
    batches = list(split.batches(2))
    assert [len(batch) for batch, _, _ in batches] == [2, 2, 1]
    assert batches[0][0].images.shape == (2, 3, 48, 64)
    assert batches[0][0].images.dtype == torch.float32
    assert batches[0][1].shape == (2, 48, 64)
    assert np.concatenate([labels for _, _, labels in batches]).tolist() == split.labels.tolist()
    assert split.labels.sum() == 2
    for batch, masks, _ in batches:  # the geometry leads back to the original file
        assert batch.geometries[0].original == (64, 64)
        assert masks.shape[1:] == batch.geometries[0].size


def test_a_family_that_changes_nothing_is_replaced(normals):
    split = SyntheticSplit(normals, families="nsa", resize=64, params={"nsa": {"tries": 0}})
    item = next(split[i] for i in range(len(split)) if split.labels[i])
    assert item.family == "cutpaste"
    assert "CutPaste instead" in item.info["fallback"]
    assert item.mask.any()


def test_shares(normals):
    for share in (0.0, 0.25, 1 / 3, 0.5, 1.0):
        split = SyntheticSplit(normals, families="cutpaste", number=12, share=share)
        assert split.labels.sum() == round(12 * share)


def test_protocol_and_bad_input(small_table, normals):
    def raises(pattern, *args, **kwargs):
        with pytest.raises(InputError, match=pattern):
            SyntheticSplit(*args, **kwargs)

    raises("anomalous image", small_table[small_table.label == 1])
    raises("test image", small_table[(small_table.split == "test") & (small_table.label == 0)])
    raises("empty", normals[:0])
    raises("no held-out", [])
    raises("did you mean 'cutpaste'", normals, families="cutpast")
    raises("choose one of", normals, families="feature_gauss")
    raises("no family", normals, families=())
    raises("share", normals, share=1.5)
    raises("number", normals, number=0)
    raises("did you mean 'nsa'", normals, params={"nsaa": {}})
    with pytest.raises(IndexError):
        SyntheticSplit(normals)[1000]
    with pytest.raises(InputError, match="no such image"):
        SyntheticSplit(["nowhere.png"])[0]


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


def test_every_method_of_a_seed_sees_the_same_judged_images(normals, monkeypatch):
    class Seen(Exception):
        pass

    def look(self, table, resize, number=64, seed=0):
        raise Seen(list(table.image_path), resize, number, seed)

    monkeypatch.setattr(judge.Judge, "__init__", look)
    fields = {name: methods.get(name).Settings.__dataclass_fields__ for name in methods.METHODS}
    # Those that are trained on episodes are judged by other products.
    for name in (name for name in fields if "selection" in fields[name] and "shots" not in fields[name]):
        settings = SMALL_SETTINGS[name] | {"selection": "synthetic", "seed": 5, "steps": 1}
        with pytest.raises(Seen) as seen:
            methods.create(name, **settings).fit(normals.iloc[:4], normals.iloc[4:])
        assert seen.value.args == (list(normals.image_path[4:]), Resize(64, "stretch"), 64, 5), name
