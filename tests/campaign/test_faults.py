"""A campaign of faults: leftovers of kills, flipped bits, cut files. `make campaign` is the long form.

What is tried and what was survived is printed (`pytest -s`); the long form is chosen by `ADLIB_CAMPAIGN=long`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adlib import runs
from adlib.errors import InputError
from adlib.methods import checkpoints, storage
from adlib.paths import PREFIX, _sweep, atomic_path, root

LONG = os.environ.get("ADLIB_CAMPAIGN") == "long"
FLIPS = 400 if LONG else 40


def number_of(folder: Path) -> float:
    header, tensors = storage.read_model(folder)
    assert bool((tensors["bank"] == header["threshold"]["value"]).all()), "parts of two models"
    return header["threshold"]["value"]


def test_what_killed_runs_left_is_deleted_by_the_next_and_what_others_write_is_not(tmp_path):
    (tmp_path / f"{PREFIX}left.json").write_text("half")
    (tmp_path / f"{PREFIX}folder").mkdir()
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
        _sweep.cache_clear()  # as another process
        with atomic_path(tmp_path / "b.json") as other:
            other.write_text("{}")
        assert temporary.is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.json"]


def a_model(folder):
    storage.save_model(folder, "padim", {}, {"bank": torch.full((64, 8), 1.0)}, threshold={"value": 1.0})
    return [folder / "model.json", next(folder.glob("*.safetensors"))], lambda: number_of(folder)


def a_checkpoint(folder):
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 8)
    weights = network.weight.detach().clone()
    checkpoints.save(folder / "c.pt", {"step": 3}, {"n": network}, [], [])

    def read():
        state = checkpoints.restore(folder / "c.pt", {"n": network}, [], [])
        return state["step"], bool(torch.equal(network.weight, weights))

    return [folder / "c.pt"], read


def some_maps(folder):
    levels = np.random.default_rng(0).integers(0, 65535, (2, 8, 8)).astype(np.uint16)
    arrays = {"low": 0.0, "high": 1.0, "masks": levels > 9, "rows": np.arange(2)}
    np.savez_compressed(folder / "maps.npz", levels=levels, **arrays)
    return [folder / "maps.npz"], lambda: (found := runs.read_maps(folder)) and float(found[0].sum())


def a_record(folder):
    runs.write_record(folder, runs.read_record(next(root().glob("results/runs/laptop/padim/*"))))
    return [folder / "record.json"], lambda: runs.read_record(folder)


@pytest.mark.parametrize("make", [a_model, a_checkpoint, some_maps, a_record])
def test_a_flipped_bit_or_a_cut_file_is_refused_or_changes_nothing(tmp_path, make, capsys):
    files, read = make(tmp_path)
    right, rng, counts = read(), np.random.default_rng(0), {"refused": 0, "the same": 0}
    for file in files:
        content = file.read_bytes()
        for turn in range(FLIPS):
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
            file.write_bytes(damaged if turn % 4 else content[: rng.integers(len(content))])
            try:
                value, said = read(), ""
            except InputError as error:
                value, said = None, str(error)
            assert "\n" not in said
            assert value in (None, right), "another value, and no word"
            counts["refused" if value is None else "the same"] += 1
        file.write_bytes(content)
    with capsys.disabled():
        print(f"\n{make.__name__}: {len(files) * FLIPS} damaged files, {counts}")
