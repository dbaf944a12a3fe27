"""The contract that every method keeps. A new method is tested here without a line written for it."""

import inspect

import numpy as np
import pytest
import torch
from conftest import SMALL_SETTINGS
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


def test_it_has_a_notebook_and_a_docstring_with_its_source(name):
    assert batch.notebook_path(batch.METHOD_NOTEBOOKS[name]).is_file()
    module = __import__(methods.METHODS[name][0], fromlist=["x"])
    assert "arXiv" in module.__doc__ or "README" in module.__doc__
