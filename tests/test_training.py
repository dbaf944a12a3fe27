"""The one loop: resume equals uninterrupted, accumulation equals a large batch, NaN stops with its step."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from adlib import training
from adlib.errors import InputError

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


def run(model, optimizer, schedulers, n_steps, **options):
    def losses(modules, batch, _step):
        return {
            "mse": nn.functional.mse_loss(modules["model"](batch[0]), batch[1]),
            "_size": torch.tensor(float(len(batch[0]))),
        }

    return training.train(
        {"model": model},
        [optimizer],
        options.pop("make_batch", batch_of(8)),
        losses,
        n_steps,
        schedulers=schedulers,
        **options,
    )


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


def test_resume_at_any_step_equals_an_uninterrupted_run(tmp_path):
    whole, optimizer, schedulers = make(dropout=0.3)
    full = run(whole, optimizer, schedulers, 30)
    for stop in (1, 7, 29):
        file = tmp_path / f"{stop}.pt"
        first, optimizer, schedulers = make(dropout=0.3)

        def killed(step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return batch_of(8)(step)

        with pytest.raises(KeyboardInterrupt):
            run(first, optimizer, schedulers, 30, make_batch=killed, checkpoint=file, checkpoint_every=1, workers=0)
        second, optimizer, schedulers = make(dropout=0.3)
        resumed = run(second, optimizer, schedulers, 30, checkpoint=file, checkpoint_every=1)
        assert torch.equal(weights(second), weights(whole))
        pd.testing.assert_frame_equal(resumed.losses, full.losses)


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

    history = run(model, optimizer, schedulers, 6, validate=validate, validate_every=2, selection=selection)
    assert history.validation.step.tolist() == [2, 4, 6]
    assert history.selected_step == (6 if selection == "last" else 4)
    assert torch.equal(weights(model), seen[2 if selection == "last" else 1])


def test_snapshots_are_the_weights_of_their_step():
    model, optimizer, schedulers = make()
    history = run(model, optimizer, schedulers, 6, snapshot_every=3)
    assert [step for step, _ in history.snapshots] == [3, 6]
    assert torch.equal(history.snapshots[1][1]["model"]["0.weight"], model.state_dict()["0.weight"])


def test_nan_stops_with_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
    model, optimizer, schedulers = make()

    def poisoned(step):
        x, y = batch_of(8)(step)
        return x, y * (float("nan") if step == 5 else 1.0)

    file = tmp_path / "c.pt"
    with pytest.raises(training.TrainingError, match=r"nan at step 6.*step 4 is kept"):
        run(model, optimizer, schedulers, 10, make_batch=poisoned, checkpoint=file, checkpoint_every=2)
    content = torch.load(file, weights_only=True)
    assert content["step"] == 4
    assert all(torch.isfinite(v.float()).all() for v in content["modules"]["model"].values())


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


def test_the_global_generator_is_left_alone():
    model, optimizer, schedulers = make(dropout=0.5)
    state = torch.get_rng_state()
    run(model, optimizer, schedulers, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_step_generators_differ_by_step_and_repeat_by_seed():
    draws = [training.step_generator(3, step).integers(0, 2**31) for step in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert isinstance(training.step_generator(0, 0), np.random.Generator)


def test_bad_input_is_refused(tmp_path):
    model, optimizer, schedulers = make()
    with pytest.raises(InputError, match="selection 'best'"):
        run(model, optimizer, schedulers, 1, selection="best")
    with pytest.raises(InputError, match="held-out pseudo-anomalies"):
        run(model, optimizer, schedulers, 1, selection="synthetic")
    run(model, optimizer, schedulers, 1, checkpoint=tmp_path / "c.pt", checkpoint_every=1)
    other = nn.Linear(3, 1)
    with pytest.raises(InputError, match=r"c\.pt does not belong"):
        run(other, torch.optim.Adam(other.parameters()), [], 1, checkpoint=tmp_path / "c.pt")
