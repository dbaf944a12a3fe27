"""The contract that every method keeps. A new method is tested here without a line written for it."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, texture, write_image
from safetensors.torch import load_file, save_file

from adlib import batch, images, methods
from adlib.errors import InputError

pytestmark = pytest.mark.parametrize("name", list(methods.METHODS))


@pytest.fixture(scope="module")
def fit(small_table):
    fitted = {}

    def get(name):
        if name not in fitted:
            train = small_table[small_table.split == "train"]
            fitted[name] = methods.create(name, **SMALL_SETTINGS[name]).fit(train)
        return fitted[name]

    return get


@pytest.fixture
def test_batch(small_table, fit, name):
    test = small_table[small_table.split == "test"]
    return next(images.batches(test.image_path, fit(name).resize, len(test)))


def test_settings_are_a_frozen_dataclass_and_strict(name):
    settings = methods.get(name).Settings()
    with pytest.raises(AttributeError):
        settings.seed = 1
    with pytest.raises(InputError, match="unknown"):
        methods.create(name, no_such_setting=1)


def test_fit_takes_tables_alone_and_whatever_else_is_a_setting(name):
    """A notebook and the command line can say everything that way, for example which checkpoint to resume from."""
    assert list(inspect.signature(methods.get(name).fit).parameters) == ["self", "table", "validation"]


def test_scores_have_the_promised_shapes(fit, test_batch, name):
    scores = fit(name).score(test_batch)
    size = test_batch.images.shape
    assert scores.image.shape == (size[0],)
    assert scores.map.shape == (size[0], *size[2:])
    assert scores.image.dtype == scores.map.dtype == np.float32
    assert np.isfinite(scores.image).all()
    assert np.isfinite(scores.map).all()


def test_a_batch_is_its_images_one_by_one(fit, test_batch, name):
    together = fit(name).score(test_batch)
    for i in range(len(test_batch)):
        alone = fit(name).score(test_batch.images[i : i + 1])
        np.testing.assert_allclose(alone.image[0], together.image[i], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(alone.map[0], together.map[i], rtol=1e-3, atol=1e-3 * together.map.max())


def test_saved_and_loaded_is_the_same(fit, test_batch, name, tmp_path):
    fit(name).save(tmp_path / "model")
    again = methods.load(tmp_path / "model")
    assert type(again) is type(fit(name))
    assert again.settings == fit(name).settings
    np.testing.assert_array_equal(again.score(test_batch).map, fit(name).score(test_batch).map)
    assert len(again.normal_scores) == len(again.normal_map_maxima) >= 2


def test_an_input_need_not_be_square(small_table, name, tmp_path):
    """What changes below left changes the map there: rows and columns are nowhere mixed up."""
    train, size = small_table[small_table.split == "train"], (96, 64)
    # Two steps leave DRAEM's map flat; two clusters are of the whole image.
    more = {"draem": {"max_steps": 20, "lr": 0.003}, "contrastive": {"clustering": "bank_knn"}}.get(name, {})
    fitted = methods.create(name, **SMALL_SETTINGS[name] | more | {"image_size": size}).fit(train)
    fitted.save(tmp_path / "model")
    inputs = next(images.batches(train.image_path[:1], fitted.resize, 1)).images.repeat(2, 1, 1, 1)
    inputs[1, :, -24:-8, 8:24] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = fitted.score(inputs).map
    assert maps.shape == (2, *size)
    np.testing.assert_array_equal(methods.load(tmp_path / "model").score(inputs).map, maps)
    change = np.abs(maps[1] - maps[0])
    assert change[-40:, :40].mean() > 1.2 * change[:-40].mean()


def test_a_damaged_model_is_one_line(fit, name, tmp_path):
    fit(name).save(tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    save_file(
        {key: value for key, value in tensors.items() if key != "normal_scores"}, tmp_path / "model/model.safetensors"
    )
    with pytest.raises(InputError, match=r"^model .*model is damaged \(lacks 'normal_scores'\); train it again$"):
        methods.load(tmp_path / "model")
    save_file({"normal_scores": tensors["normal_scores"]}, tmp_path / "model/model.safetensors")
    with pytest.raises(InputError, match=r"^model .*model is damaged \([^\n]+\); train it again$"):
        methods.load(tmp_path / "model")


def test_test_images_and_anomalies_are_refused_in_training(small_table, name):
    method = methods.create(name, **SMALL_SETTINGS[name])
    with pytest.raises(InputError, match="test image"):
        method.fit(small_table[small_table.label == 0])
    with pytest.raises(InputError, match="anomalous image"):
        method.fit(small_table[small_table.label == 1])
    with pytest.raises(InputError, match="empty"):
        method.fit(small_table.iloc[:0])


def test_fit_leaves_the_table_and_the_global_generators_alone(small_table, name):
    train = small_table[small_table.split == "train"]
    before, state = train.copy(), torch.get_rng_state()
    methods.create(name, **SMALL_SETTINGS[name]).fit(train)
    assert train.equals(before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_few_images_are_enough(small_table, name, n, tmp_path):
    """Held-out normals from four images on; below, leave-one-out, but for trained networks: they keep the last step."""
    train = small_table[small_table.split == "train"]
    more = [write_image(tmp_path / f"{i}.png", texture(np.random.default_rng(10 + i))) for i in range(2)]
    train = pd.concat([train, train.iloc[:2].assign(image_path=more)]).iloc[:n]
    known, wanted = methods.get(name).Settings.__dataclass_fields__, {"hold_out": 0.15, "selection": "synthetic"}
    changes = {"k": 4} if "shots" in known else {key: value for key, value in wanted.items() if key in known}
    method = methods.create(name, **SMALL_SETTINGS[name] | changes)
    if n == 1 and name in ("ulsad", "contrastive"):  # a network that normalises over images; pairs of images
        method.backbone = None  # refused before any feature is computed
        with pytest.raises(InputError, match=r"^1 normal training image; [^\n]+: give at least 2$"):
            method.fit(train)
        return
    method.fit(train)
    trained = "selection" in changes
    expected = {1: 0, 2: 0 if trained else 2, 4: 4 if name == "patchcore" or "k" in changes else 2}
    expected[8] = 8 if name == "patchcore" else 4 if "k" in changes else 2
    assert len(method.normal_scores) == len(method.normal_map_maxima) == expected[n]
    assert np.isfinite(method.normal_scores).all()
    if trained:  # and a record says so
        assert method.settings.selection == ("last" if n < 4 else "synthetic")
    method.save(tmp_path / "model")
    test = small_table[small_table.split == "test"]
    batch = next(images.batches(test.image_path, method.resize, len(test)))
    found = methods.load(tmp_path / "model").score(batch)
    np.testing.assert_array_equal(found.map, method.score(batch).map)
    assert np.isfinite(found.map).all()


def test_it_has_a_notebook_and_a_docstring_with_its_source(name):
    assert batch.notebook_path(batch.METHOD_NOTEBOOKS[name]).is_file()
    module = __import__(methods.METHODS[name][0], fromlist=["x"])
    assert "arXiv" in module.__doc__ or "README" in module.__doc__
