"""The one loop: resume equals uninterrupted, accumulation equals a large batch, NaN stops with its step."""

import itertools
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from torch import nn

from adlib.errors import TrainingError
from adlib.methods import checkpoints, memory, precision, training
from adlib.methods.pagmfr.pagmfr import PAGMFR
from adlib.methods.pagmfr.training_pairs import weighted_rows

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X @ torch.arange(6.0)[:, None] + 0.5


def make(dropout=0.0, lr=0.05, scheduler=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.BatchNorm1d(16), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)] if scheduler else []
    return model, optimizer, schedulers


def batch_of(size, seed=0):
    def make_batch(step):
        rows = training.step_generator(seed, step).integers(0, len(X), size)
        return X[rows], Y[rows]

    return make_batch


@dataclass(frozen=True)
class Options(training.Options):
    batch_size: int = 8
    accumulate: int = 1


@pytest.fixture(autouse=True)
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 1)


def train(modules, optimizers, make_batch, losses, n_steps, **arguments):
    """`training.train` with the options among the arguments."""
    options = {key: arguments.pop(key) for key in list(arguments) if key in training.Options.__dataclass_fields__}
    return training.train(modules, optimizers, make_batch, losses, n_steps, Options(**options), **arguments)


def run(model, optimizer, schedulers, n_steps, **options):
    def losses(modules, batch, _step):
        error = nn.functional.mse_loss(modules["model"](batch[0]), batch[1])
        return {"mse": error, "_size": torch.tensor(float(len(batch[0])))}

    make_batch = options.pop("make_batch", batch_of(8))
    return train({"model": model}, [optimizer], make_batch, losses, n_steps, schedulers=schedulers, **options)


def weights(model):
    return torch.cat([v.flatten().float() for v in model.state_dict().values()])


def test_it_learns_and_records_every_step():
    model, optimizer, schedulers = make(scheduler=False)
    history = run(model, optimizer, schedulers, 300)
    assert len(history.losses) == 300
    assert history.losses.total.iloc[-10:].mean() < 0.2 * history.losses.total.iloc[:10].mean()
    assert (history.losses["size"] == 8).all()
    assert history.losses.total.tolist() == history.losses.mse.tolist()
    assert history.selected_step == 300
    assert 0 <= history.loading_share < 1


def test_the_number_of_workers_changes_nothing():
    results = []
    for workers in (0, 1, 3):
        model, optimizer, schedulers = make(dropout=0.3)
        run(model, optimizer, schedulers, 12, workers=workers)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_accumulated_parts_equal_one_large_batch():
    def parts(micro):
        return X[(micro % 4) * 8 : (micro % 4) * 8 + 8], Y[(micro % 4) * 8 : (micro % 4) * 8 + 8]

    results = []
    for accumulate, make_batch in ((4, parts), (1, lambda _: (X[:32], Y[:32]))):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        run(model, optimizer, [], 10, make_batch=make_batch, accumulate=accumulate)
        results.append(weights(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("selection", ["last", "synthetic"])
def test_selection_keeps_the_step_it_says(selection):
    model, optimizer, schedulers = make()
    scores = iter([0.2, 0.9, 0.4])
    seen = []

    def validate():
        assert not model.training
        seen.append(weights(model).clone())
        return {"score": next(scores), "extra": None}

    options = {"selection": selection, "snapshot_every": 2}
    history = run(model, optimizer, schedulers, 6, validate=validate, **options)
    assert history.validation.step.tolist() == [2, 4, 6]
    assert history.selected_step == (6 if selection == "last" else 4)
    assert [step for step, _ in history.snapshots] == [2, 4, 6]
    kept = dict(history.snapshots)[history.selected_step]["model"]
    assert torch.equal(kept["0.weight"], model.state_dict()["0.weight"])
    assert torch.equal(weights(model), seen[2 if selection == "last" else 1])


def test_a_resumed_run_counts_the_time_of_its_earlier_part(tmp_path):
    model, optimizer, schedulers = make()
    file = tmp_path / "c.pt"
    run(model, optimizer, schedulers, 2, checkpoint=file)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"seconds": 1000.0}, file)
    model, optimizer, schedulers = make()
    history = run(model, optimizer, schedulers, 3, checkpoint=file)
    assert history.seconds > 1000


NAN_GRADIENTS = [{}, {"clip_norm": 1.0}, {"accumulate": 2}, {"precision": "bf16", "clip_norm": 1.0}, {"log_every": 1}]


@pytest.mark.parametrize(("what", "options"), [("loss", {}), *(("gradient", options) for options in NAN_GRADIENTS)])
def test_nan_stops_before_it_reaches_weights_or_checkpoint(tmp_path, what, options):
    """As the loss itself, or with a finite loss: the derivative of the root at zero."""
    model, file = torch.nn.Linear(2, 1), tmp_path / "run.pt"

    def losses(modules, batch, step):
        nothing = (modules["model"].weight * 0).abs().sum()
        spoilt = {"gradient": nothing.sqrt(), "loss": nothing * float("nan")}[what] if step == 2 else 0.0
        return {"loss": modules["model"](batch).square().mean() + spoilt}

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"seed": 0, "checkpoint": file} | options
    with pytest.raises(TrainingError, match=f"{what} became nan at step 3.*step 2 is kept"):
        train({"model": model}, [optimizer], lambda step: torch.ones(4, 2), losses, 5, **options)
    kept = torch.load(file, weights_only=True)
    assert all(torch.isfinite(w).all() for w in kept["modules"]["model"].values())
    assert torch.isfinite(model.weight).all()


def test_gradient_clipping_limits_the_first_step():
    moves = []
    for clip in (None, 1e-3):
        model, _, _ = make()
        before = weights(model)
        run(model, torch.optim.SGD(model.parameters(), 1.0), [], 1, clip_norm=clip)
        parameters = torch.cat([p.flatten() for p in model.parameters()])
        start = torch.cat([p.flatten() for p in make()[0].parameters()])
        moves.append((parameters - start).norm().item())
        assert not torch.equal(before, weights(model))
    assert moves[1] == pytest.approx(1e-3, rel=1e-3)
    assert moves[0] > 1e-2


def test_bad_input_is_refused(tmp_path):
    model, optimizer, schedulers = make()
    refused("selection 'best'", run, model, optimizer, schedulers, 1, selection="best")
    refused("held-out pseudo-anomalies", run, model, optimizer, schedulers, 1, selection="synthetic")
    run(model, optimizer, schedulers, 1, checkpoint=tmp_path / "c.pt")
    other = nn.Linear(3, 1)
    refused("does not belong", run, other, torch.optim.Adam(other.parameters()), [], 1, checkpoint=tmp_path / "c.pt")


# -- gradient flow, memory, sampling, checkpointing, several processes -------------------------------------------------


def test_gradient_flow_is_the_gradient_of_each_part_before_clipping():
    model, optimizer, _ = make()
    history = run(model, optimizer, [], 4, log_every=2, clip_norm=1e-6)
    assert history.gradients.step.unique().tolist() == [2, 4]
    assert set(history.gradients.part) == {"model.0", "model.3", "model.4"}  # the parts that have parameters
    again, _, _ = make()
    x, y = batch_of(8)(0)
    again.train()
    nn.functional.mse_loss(again(x), y).backward()
    expected = torch.cat([p.grad.abs().flatten() for p in again[4].parameters()])
    first = run(*make()[:2], [], 1, log_every=1, clip_norm=1e-6).gradients.set_index("part").loc["model.4"]
    assert first["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert first["max"] == pytest.approx(expected.max().item(), rel=1e-4)


def test_memory_is_read_at_every_log_and_validation_and_survives_a_resume(tmp_path):
    model, optimizer, _ = make()
    options = {"log_every": 2, "validate": lambda: {"score": 0.0}, "snapshot_every": 3}
    file = tmp_path / "c.pt"
    run(model, optimizer, [], 3, **options, checkpoint=file)
    model, optimizer, _ = make()
    history = run(model, optimizer, [], 6, **options, checkpoint=file)
    assert history.memory.step.tolist() == [2, 3, 4, 6]
    assert (history.memory.peak_mib > 10).all()
    assert history.memory.peak_mib.is_monotonic_increasing
    written = history.write(tmp_path / "log")
    assert [file.name for file in written] == ["losses.csv", "validation.csv", "gradients.csv", "memory.csv"]
    assert len(pd.read_csv(written[0])) == 6


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB")])
@pytest.mark.parametrize("place", ["loading", "losses", "validation"])
def test_running_out_of_memory_is_one_line_that_names_the_knobs(tmp_path, error, place):
    model, optimizer, _ = make()

    def full(where, result):
        if where == place:
            seen.append(where)
            if len(seen) == 3:
                raise error
        return result

    seen = []
    options = {"checkpoint": tmp_path / "c.pt", "snapshot_every": 1, "progress": "x"}
    options["validate"] = lambda: full("validation", {"score": 0.0})

    def losses(modules, batch, _step):
        return full("losses", {"loss": modules["model"](batch[0]).square().mean()})

    said = r"^x: memory ran out at step 3; the checkpoint of step 2 is kept; lower batch_size or raise accumulate"
    with pytest.raises(TrainingError, match=said):
        train({"model": model}, [optimizer], lambda step: full("loading", batch_of(8)(step)), losses, 5, **options)


def test_the_advice_against_full_memory_names_what_the_settings_have():
    some, spent = PAGMFR.Settings(bank=4), PAGMFR.Settings(bank=0, checkpointing=True)
    expected = ("batch_size", "image_size", "bank", "accumulate", "checkpointing")
    assert memory.memory_knobs(some, in_steps=True) == expected
    assert memory.memory_knobs(spent, in_steps=True) == ("batch_size", "image_size", "accumulate")
    match = r"^x: memory ran out at last; lower image_size or lower bank \(pairs that are kept\)$"
    with pytest.raises(TrainingError, match=match), memory.memory_errors("x", "at last", some):
        raise MemoryError


def test_a_folder_as_checkpoint_is_refused(tmp_path):
    refused(r"^checkpoint .* is a folder; give a file, for example .*run\.pt$", run, *make(), 1, checkpoint=tmp_path)


def test_other_runtime_errors_stay_what_they_are():
    model, optimizer, _ = make()
    with pytest.raises(RuntimeError, match="shapes"):
        run(model, optimizer, [], 1, make_batch=lambda _: (X[:, :3], Y))


def test_weighted_rows_follow_the_weights():
    weights = [0.0, 1.0, 3.0]
    rows = np.concatenate([weighted_rows(weights, 50, 0, step) for step in range(40)])
    assert (rows != 0).all()
    assert (rows == 2).mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(weighted_rows(weights, 8, 1, 5), weighted_rows(weights, 8, 1, 5))
    for wrong in ([0, 0], [-1, 2], [float("nan"), 1]):
        refused("sampling weights", weighted_rows, wrong, 2, 0, 0)


def test_warm_up_and_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = training.warm_up_cosine(optimizer, 100, 0.1, lowest=0.01)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.505)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_bf16_trains_close_to_full_precision_and_leaves_plain_modules_behind(monkeypatch, tmp_path):
    """`auto` is one of both to the last digit, and goes on as it began on another processor."""
    results = {}
    for asked in ("no", "bf16", "auto"):
        model, optimizer, _ = make(lr=0.01)
        for has, n_steps in ((True, 10), (False, 20)):
            monkeypatch.setattr(precision, "has_bf16", lambda _, has=has: has)
            history = run(model, optimizer, [], n_steps, precision=asked, checkpoint=tmp_path / f"{asked}.pt")
        results[asked] = history.losses.total.tolist()
        assert model(X[:2]).dtype == next(model.parameters()).dtype == torch.float32
        assert "_original_forward" not in model.__dict__
    assert results["no"][-1] == pytest.approx(results["bf16"][-1], rel=0.1)
    assert results["auto"] == results[history.precision]
    assert run(*make(), 1, precision="auto").precision == "no"


def test_pinning_reaches_every_tensor_of_a_batch():
    batch = {"a": [torch.zeros(1), (torch.zeros(1), "name")], "b": 3}
    pinned = training.recursively_apply(lambda tensor: tensor + 1, batch)
    assert float(pinned["a"][0]) == float(pinned["a"][1][0]) == 1
    assert (pinned["a"][1][1], pinned["b"]) == ("name", 3)


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import test_training as t
from torch import nn
torch.manual_seed(2)
model = nn.Linear(6, 1)
parts = lambda micro: (t.X[(micro % 4) * 8 : (micro % 4) * 8 + 8], t.Y[(micro % 4) * 8 : (micro % 4) * 8 + 8])
history = t.run(model, torch.optim.SGD(model.parameters(), 0.01), [], 10, make_batch=parts, accumulate=2,
                checkpoint={out!r} + "/c.pt")
from accelerate.state import PartialState
if PartialState().is_main_process:
    torch.save({{"weights": t.weights(model), "loss": history.losses.total.tolist(),
                "processes": PartialState().num_processes}}, {out!r} + "/found.pt")
"""


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared["ACCELERATE_USE_CPU"] = "true"
    # What torchrun and accelerate launch set for their processes, without the launcher's own start.
    ranks = [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    command = [sys.executable, str(script)]
    workers = [subprocess.Popen(command, env=rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    for worker in workers:
        errors = worker.communicate(timeout=120)[1]
        assert worker.returncode == 0, errors[-2000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["processes"] == 2
    torch.manual_seed(2)
    model = nn.Linear(6, 1)
    # Two processes with two parts of 8 each are one batch of 32.
    history = run(model, torch.optim.SGD(model.parameters(), 0.01), [], 10, make_batch=lambda _: (X[:32], Y[:32]))
    torch.testing.assert_close(found["weights"], weights(model), rtol=1e-5, atol=1e-6)
    assert found["loss"] == pytest.approx(history.losses.total.tolist(), rel=1e-4)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 10
