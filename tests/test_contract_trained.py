"""What every method that trains a network by steps keeps beside the contract of all methods."""

import pytest
from conftest import SMALL_SETTINGS

from adlib import methods
from adlib.errors import InputError

TRAINED = [
    name for name in methods.METHODS if {"selection", "hold_out"} <= set(methods.get(name).Settings.__annotations__)
]


@pytest.mark.parametrize("name", TRAINED)
def test_selection_keeps_the_best_step_and_a_checkpoint_belongs_to_its_images(small_table, name, tmp_path):
    train = small_table[small_table.split == "train"]
    first, second = train.iloc[:4], train.iloc[4:]
    settings = SMALL_SETTINGS[name] | {"selection": "synthetic", "validate_every": 1}
    settings |= {"checkpoint": str(tmp_path / "c.pt"), "checkpoint_every": 1}
    history = methods.create(name, **settings).fit(first, second).history
    assert len(history.validation) == len(history.losses) > 1
    assert history.selected_step == history.validation.step[history.validation.score.idxmax()]
    for other, what in (((train.iloc[1:4], second), "training"), ((first, second.iloc[:1]), "validation")):
        with pytest.raises(InputError, match=rf"c\.pt was made with {what} images"):
            methods.create(name, **settings).fit(*other)
