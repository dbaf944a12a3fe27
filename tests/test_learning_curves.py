"""Learning curves: each snapshot as evaluated alone, the backbone asked once, and three ways to choose."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS

from adlib import evaluation
from adlib.methods.draem import DRAEM
from adlib.methods.glass.glass import Glass
from adlib.methods.ulsad.ulsad import ULSAD
from adlib_book import learning_curves


@pytest.mark.parametrize(("cls", "name"), [(Glass, "glass"), (ULSAD, "ulsad")])
def test_the_curve_is_each_snapshot_evaluated_alone(train, test_rows, cls, name):
    method = cls(**SMALL_SETTINGS[name] | {"snapshot_every": 1}).fit(train)
    alone = []
    for _, states in method.history.snapshots:
        method.use_snapshot(states)
        alone.append(evaluation.evaluate(method, test_rows).metrics)
    forward, calls = method.backbone.forward, []
    method.backbone.forward = lambda images: calls.append(len(images)) or forward(images)
    curve = learning_curves.snapshot_metrics(method, test_rows)
    assert sum(calls) == len(test_rows)  # not once a snapshot
    assert list(curve.step) == [step for step, _ in method.history.snapshots]
    assert curve.seconds.is_monotonic_increasing
    for key in learning_curves.METRICS:
        assert list(curve[key]) == [row[key] for row in alone]


@pytest.mark.parametrize(("cls", "every"), [(DRAEM, 1), (ULSAD, 0)])
def test_a_curve_without_a_backbone_and_one_without_snapshots_end_with_the_fitted_method(train, test_rows, cls, every):
    settings = SMALL_SETTINGS[cls.__name__.lower()] | {"snapshot_every": every}
    method = cls(**settings).fit(train)
    curve = learning_curves.snapshot_metrics(method, test_rows)
    assert list(curve.step) == ([1, 2] if every else [2])
    assert curve.image_auroc.iloc[-1] == evaluation.evaluate(method, test_rows).metrics["image_auroc"]


def test_nothing_is_kept_without_room():
    calls = []
    backbone = SimpleNamespace(forward=lambda images, by=2: calls.append(1) or [images * by])
    for room, expected in ((1.0, 2), (0.0, 4)):
        calls.clear()
        with learning_curves.remembered(backbone, room):
            for _ in range(2):
                assert torch.equal(backbone.forward(torch.ones(1, 3, 4, 4))[0], torch.full((1, 3, 4, 4), 2.0))
                assert backbone.forward(torch.ones(1, 3, 4, 4), by=3)[0].mean() == 3
        assert len(calls) == expected


def test_three_ways_to_choose():
    steps = {"step": [10, 20, 30]}
    curve = pd.DataFrame(steps | {"image_auroc": [0.9, 0.8, 0.7], "pixel_auroc": [0.7, 0.9, 0.6], "aupro_30": 0})
    history = SimpleNamespace(validation=pd.DataFrame(steps | {"score": [0.6, 0.5, 0.4]}))
    assert learning_curves.selections(curve, history) == {"last": 2, "synthetic": 0, learning_curves.ORACLE: 1}
    history.validation = pd.DataFrame({"step": [5], "score": [1.0]})
    assert "synthetic" not in learning_curves.selections(curve, history)
    history.validation = pd.DataFrame()  # the paper profile looks at nothing on the way
    assert np.isnan(learning_curves.held_out_scores(curve, history)).all()
    assert set(learning_curves.selections(curve, history)) == {"last", learning_curves.ORACLE}


def test_records_give_back_curves_and_spread_over_seeds(tmp_path, monkeypatch):
    curve = pd.DataFrame({"step": [1, 2], "seconds": [0.5, 1.0], "image_auroc": [0.8, 0.9], "pixel_auroc": [0.7, 0.7]})
    curve["aupro_30"] = float("nan")  # no masks
    for seed, shift in ((0, 0.0), (1, 0.02)):
        moved = curve.assign(image_auroc=curve.image_auroc + shift)
        content = learning_curves.as_record(moved, {"last": 1, learning_curves.ORACLE: 0})
        assert content["selections"]["last"]["aupro_30"] is None
        folder = tmp_path / "laptop" / "glass" / f"x-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"category": "x", "seed": seed} | content))
    monkeypatch.setattr("adlib.runs.read_record", lambda folder: json.loads((folder / "record.json").read_text()))
    found, picked = learning_curves.recorded("glass", "laptop", tmp_path)
    assert list(found.image_auroc) == pytest.approx([0.8, 0.9, 0.82, 0.92])
    table = learning_curves.over_seeds(picked, ["category", "selection"])
    assert table.loc[("x", "last"), "image_auroc"] == "91.0 ± 1.4"
    assert list(table.seeds) == [2, 2]
    assert learning_curves.recorded("ulsad", "laptop", tmp_path)[0].empty
