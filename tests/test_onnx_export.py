"""A method as one ONNX file: the same scores and maps, from the command line to the picture."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, refused

from adlib import methods, own_parts
from adlib.methods.onnx_model import OnnxModel
from adlib_book import cli, onnx_export

CASES = {
    "glass, max": {"embedding_dim": 48, "feature_norm": 1.0},
    "glass, laptop's form": {"heads": 2, "patch_size": 1, "feature_norm": 10.0, "image_score": "top"},
    "glass, no smoothing": {"sigma": 0.0, "average": 0.9},
    "patchcore": {"k": 3},
    "patchcore, top": {"image_score": "top", "squared": True, "patch_size": 1},
    "padim": {},
    "dfr": {"standardise": True},
    "draem": {"sigma": 1.0},
}


def fitted(case, train):
    name = case.split(",")[0]
    return methods.create(name, **SMALL_SETTINGS[name] | CASES[case]).fit(train)


def assert_equal_scores(found, method, images, tolerance):
    """Hold that image scores and maps are those of the method, but for a share of its highest score."""
    for one, other in zip(found, method.score(images), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, other.max()))


@pytest.mark.parametrize("case", CASES)
def test_the_graph_scores_like_the_method_and_shares_nothing_with_it(train, case):
    method = fitted(case, train)
    module = onnx_export.Deployed(method).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_equal_scores(module(images), method, images, 1e-5)
    before = method.score(images).map
    module.double()  # or .cpu() of a method on a GPU
    np.testing.assert_array_equal(method.score(images).map, before)


@pytest.mark.parametrize("case", ["glass, laptop's form", "patchcore", "padim", "dfr", "draem"])  # a slow export
def test_the_file_scores_like_the_method(train, test_rows, tmp_path, case):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    method, file, good = fitted(case, train), tmp_path / "model.onnx", Path(test_rows.image_path.iloc[0]).parent
    method.save(tmp_path / "model", threshold={"value": 1.5})
    assert cli.main(["export", "-m", str(tmp_path / "model"), "-o", str(file)]) == 0
    model = OnnxModel(file)
    for n in (1, 3):  # the batch is dynamic
        images = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))
        assert_equal_scores(model.score(images), method, images, 1e-4)
    assert model.resize == method.resize
    predict = ["predict", "-m", str(file), "-i", str(good), "-o", str(tmp_path / "out")]
    assert cli.main([*predict, "--report", str(tmp_path / "out/report.html")]) == 0
    expected, _ = own_parts.predict(tmp_path / "model", good, tmp_path / "own")
    found = pd.read_csv(tmp_path / "out/scores.csv")
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)
    assert found.anomalous.tolist() == expected.anomalous.tolist()
    content = np.frombuffer(file.read_bytes(), np.uint8)
    for place in np.linspace(0, len(content) - 45, 9, dtype=int):  # a flipped bit, wherever it is, is seen
        file.write_bytes(content ^ np.uint8(np.arange(len(content)) == place))
        refused("model.onnx is no ONNX file that adlib export has written", OnnxModel, file)


@pytest.mark.parametrize("name", methods.METHODS)
def test_what_has_no_graph_or_no_package_says_why(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(r"a\.onnx: onnxruntime is not installed; run: pip install -e '\.\[onnx\]'", OnnxModel, "a.onnx")
    assert (name in onnx_export.CELLS) != (name in onnx_export.REASONS)
    if name in onnx_export.REASONS:
        said = f"{name} cannot be exported: {onnx_export.REASONS[name]}; glass, patchcore, padim, dfr, draem can"
        refused(said, onnx_export.Deployed, methods.create(name, **SMALL_SETTINGS[name]))
