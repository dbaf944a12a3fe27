"""On a device that is not the CPU every method gives the CPU's numbers.

PYTHONPATH=tests/fake_device ADLIB_DEVICE=fake pytest tests/test_devices.py     the stand-in, as CI does
ADLIB_DEVICE=cuda pytest tests/test_devices.py                                  a GPU
"""

import json

import gpu_check
import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS

from adlib import methods
from adlib.images import backbones

DEVICE = backbones.default_device()
pytestmark = pytest.mark.skipif(DEVICE.type == "cpu", reason="there is no other device than the CPU")
# What takes another way through the code than the defaults do, by method.
BRANCHES = {
    "patchcore": {"image_score": "reweight"},
    "glass": {"bank": 3, "heads": 2, "average": 0.9, "image_score": "top", "cell_share": 0.5},
    "ulsad": {"noise": 0.5, "hidden": 0.5, "maps": "auto", "position_wise": "auto"},
    "pagmfr": {"bank": 4},
    "draem": {"bank": 4, "network": "authors"},
    "unified": {"references": []},
    "contrastive": {"positives": "self", "rule": "minority"},
}
CASES = [(name, {}) for name in methods.METHODS] + list(BRANCHES.items())


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_numbers_are_those_of_the_cpu(train, test_batch, monkeypatch, tmp_path, name, changes):
    fields = methods.get(name).Settings.__dataclass_fields__
    if "shots" in fields:
        changes |= {"steps": 2, "episodes": 2, "pool": [4, 2], "shots": [1, 2]}
    elif "selection" in fields:
        changes |= {"selection": "synthetic", "snapshot_every": 1}
    found = {}
    for device in ("cpu", str(DEVICE)):
        monkeypatch.setenv("ADLIB_DEVICE", device)
        method = methods.create(name, **SMALL_SETTINGS[name] | changes)
        if hasattr(method, "train_episodes"):
            method.train_episodes({"plate": train}, {"plate": train})
        method.fit(train)
        assert method.device.type == torch.device(device).type
        found[device] = method
    expected = found["cpu"].score(test_batch)
    method.save(tmp_path / "model")
    snapshots = getattr(getattr(method, "history", None), "snapshots", [])
    if snapshots and hasattr(method, "use_snapshot"):
        method.use_snapshot(dict(snapshots)[method.history.selected_step])
    tolerance = {"rtol": 0, "atol": 0} if DEVICE.type == "fake" else {"rtol": 1e-2, "atol": 1e-3 * expected.map.max()}
    for one in (method, methods.load(tmp_path / "model")):
        scores = one.score(test_batch)
        np.testing.assert_allclose(scores.map, expected.map, **tolerance)
        np.testing.assert_allclose(scores.image, expected.image, **tolerance)
    np.testing.assert_allclose(method.normal_scores, found["cpu"].normal_scores, **tolerance)


def test_a_gpu_check_holds_the_device_against_the_cpu(small_table, monkeypatch, tmp_path):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr(gpu_check.datasets, "load", lambda *_place: small_table)
    small = lambda _profile, name, changes: SMALL_SETTINGS[name] | changes  # noqa: E731
    monkeypatch.setattr(gpu_check.profiles, "method_settings", small)
    monkeypatch.setitem(gpu_check.LESS, "weights", "auto")
    assert gpu_check.main(["dfr", "spade"]) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [row["agrees"] for row in found["rows"]] == [True, True]
    assert torch.device(found["device"]).type == DEVICE.type
    assert found["rows"][0]["step_ms"] > 0
    monkeypatch.setattr(gpu_check, "numbers", lambda method, _paths: np.ones(1) * len(str(method.device)))
    assert gpu_check.main(["spade"]) == 1  # a device with numbers of its own
