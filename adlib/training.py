"""The one training loop: every trained method hands it its modules, its batches and its losses.

Three choices make it short and exact.

- *A batch is a function of its step.* `make_batch(step)` draws everything random from a generator seeded by the step,
  so a run can be resumed at any step, and prefetched by any number of workers, without changing a number.
- *Selection never sees test data.* `last` keeps the last step; `synthetic` keeps the step with the best score on
  held-out pseudo-anomalies, which the method computes in `validate`.
- *One checkpoint file*, moved into place when complete, read with `weights_only=True`.

Mixed precision, gradient accumulation and several processes are Hugging Face accelerate's.
"""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from adlib.errors import InputError
from adlib.paths import atomic_path
from adlib.settings import choice

SELECTIONS = ("last", "synthetic")
PRECISIONS = ("no", "bf16", "fp16")


class TrainingError(RuntimeError):
    """Training stopped; the message names the step and what is left of the run."""


@dataclass
class History:
    """What a training run leaves behind besides the weights.

    Attributes:
        losses: one row an optimiser step: step, each loss term, total, learning_rate.
        validation: one row a validation: step, seconds since the start, and what `validate` returned.
        snapshots: (step, module states) pairs, for learning curves and the oracle column of the evaluation.
        selected_step: the step whose weights were kept.
        seconds: wall time; loading_share: share of it spent waiting for batches.
    """

    losses: pd.DataFrame
    validation: pd.DataFrame
    snapshots: list = field(default_factory=list, repr=False)
    selected_step: int = 0
    seconds: float = 0.0
    loading_share: float = 0.0


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return the generator of a training step: the same for the same seed and step, whatever ran before."""
    return np.random.default_rng([seed, step])


def train(
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    make_batch: Callable[[int], object],
    compute_losses: Callable[[dict[str, nn.Module], object, int], dict[str, torch.Tensor]],
    n_steps: int,
    *,
    seed: int = 0,
    schedulers: list | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    validate_every: int = 0,
    selection: str = "last",
    snapshot_every: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    precision: str = "no",
    accumulate: int = 1,
    clip_norm: float | None = None,
    workers: int = 1,
    progress: str = "train",
) -> History:
    """Train `modules` in place for `n_steps` optimiser steps.

    Args:
        modules: name -> module; what is trained, checkpointed and selected.
        optimizers: each is stepped once a step; together they own the modules' parameters.
        make_batch: micro-step number -> batch. Runs in a worker thread; must draw randomness from `step_generator`.
        compute_losses: (modules, batch, step) -> named loss terms, scalars; their sum is minimised. Keys that start
            with "_" are only recorded. The modules are passed in because several processes train wrapped ones.
        n_steps: optimiser steps; each takes `accumulate` micro-steps.
        seed: seeds torch's global generator anew at each step (dropout, noise), so that resuming changes nothing.
        schedulers: stepped once a step, after the optimisers.
        validate: called with the modules in evaluation mode; its value `score` (higher is better) decides `synthetic`.
        validate_every: steps between validations; 0 for only one at the end.
        selection: `last` or `synthetic`.
        snapshot_every: keep the weights every so many steps (for curves); 0 for none.
        checkpoint: file to resume from, if it is there, and to write every `checkpoint_every` steps.
        precision: `no`, `bf16` or `fp16` (accelerate's mixed precision).
        accumulate: micro-batches a step; their mean gradient is that of one large batch.
        clip_norm: largest norm of the gradient of all modules together.
        workers: threads that prepare batches ahead.
        progress: label of the progress bar (only on a terminal).

    Raises:
        InputError: selection without a validation, a checkpoint of other modules.
        TrainingError: a loss became NaN or infinite.
    """
    choice("selection", selection, SELECTIONS)
    choice("precision", precision, PRECISIONS)
    if selection == "synthetic" and validate is None:
        raise InputError("selection 'synthetic' needs held-out pseudo-anomalies; give a validation table to fit")
    accelerator = Accelerator(
        mixed_precision=precision, gradient_accumulation_steps=accumulate, cpu=not torch.cuda.is_available()
    )
    raw = modules
    names = list(modules)
    prepared = accelerator.prepare(*modules.values(), *optimizers)
    prepared = prepared if isinstance(prepared, tuple) else (prepared,)
    modules, optimizers = dict(zip(names, prepared[: len(names)], strict=True)), list(prepared[len(names) :])
    schedulers = schedulers or []
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]

    state = {"step": 0, "losses": [], "validation": [], "snapshots": [], "best": None}
    checkpoint = Path(checkpoint) if checkpoint else None
    if checkpoint and checkpoint.is_file():
        state = _restore(checkpoint, raw, optimizers, schedulers)

    saved = state["step"]
    first, total = state["step"] * accumulate, n_steps * accumulate
    shard, n_shards = accelerator.process_index, accelerator.num_processes
    stream = _prefetch(lambda micro: make_batch(micro * n_shards + shard), range(first, total), workers)
    started, waiting = time.perf_counter(), 0.0
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), contextlib.closing(stream):
        bar = tqdm(range(state["step"], n_steps), desc=progress, disable=None, unit="step", leave=False)
        for step in bar:
            torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
            for module in modules.values():
                module.train()
            row = {"step": step + 1}
            for _ in range(accumulate):
                before = time.perf_counter()
                batch = next(stream)
                waiting += time.perf_counter() - before
                with accelerator.accumulate(*modules.values()):
                    with accelerator.autocast():
                        losses = compute_losses(modules, batch, step)
                    loss = sum(value for key, value in losses.items() if not key.startswith("_"))
                    if not torch.isfinite(loss):
                        kept = f"; the checkpoint of step {saved} is kept" if checkpoint and saved else ""
                        value = float(loss.detach())
                        raise TrainingError(f"{progress}: the loss became {value} at step {step + 1}{kept}")
                    accelerator.backward(loss)
                    if clip_norm is not None and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(parameters, clip_norm)
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
                for key, value in losses.items():
                    row[key.lstrip("_")] = row.get(key.lstrip("_"), 0.0) + float(value.detach()) / accumulate
                row["total"] = row.get("total", 0.0) + float(loss.detach()) / accumulate
            row["learning_rate"] = optimizers[0].param_groups[0]["lr"]
            for scheduler in schedulers:
                scheduler.step()
            state["losses"].append(row)
            done = step + 1
            if validate and (done == n_steps or (validate_every and done % validate_every == 0)):
                found = _validate(validate, modules)
                state["validation"].append({"step": done, "seconds": time.perf_counter() - started, **found})
                if state["best"] is None or found["score"] > state["best"][1]:
                    state["best"] = [done, float(found["score"]), _states(raw)]
            if snapshot_every and done % snapshot_every == 0:
                state["snapshots"].append([done, _states(raw)])
            state["step"] = done
            if checkpoint and checkpoint_every and (done % checkpoint_every == 0 or done == n_steps):
                _save(checkpoint, state, raw, optimizers, schedulers)
                saved = done
    for module in raw.values():
        module.eval()
    selected = n_steps
    if selection == "synthetic":
        selected, _, best = state["best"]
        for name, module in raw.items():
            module.load_state_dict(best[name])
    seconds = time.perf_counter() - started
    return History(
        pd.DataFrame(state["losses"]),
        pd.DataFrame(state["validation"]),
        [tuple(snapshot) for snapshot in state["snapshots"]],
        selected,
        round(seconds, 3),
        round(waiting / seconds, 4) if seconds else 0.0,
    )


def _validate(validate, modules) -> dict[str, float]:
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        found = validate()
    return {key: None if value is None else float(value) for key, value in found.items()}


def _states(modules) -> dict:
    return {n: {k: v.detach().cpu().clone() for k, v in m.state_dict().items()} for n, m in modules.items()}


def _prefetch(make, steps, workers: int):
    """Yield `make(step)` in order while up to `workers` threads prepare the next ones."""
    if workers < 1:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting, steps = [], iter(steps)
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _save(path: Path, state, modules, optimizers, schedulers) -> None:
    content = {
        **state,
        "modules": _states(modules),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _restore(path: Path, modules, optimizers, schedulers) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(content["modules"][name])
        for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        return {key: content[key] for key in ("step", "losses", "validation", "snapshots", "best")}
    except Exception as error:  # torch, pickle and zip each raise their own; to the user they mean one thing
        reason = str(error).splitlines()[0][:100]
        raise InputError(
            f"checkpoint {path} does not belong to this configuration or is damaged ({reason}); delete it to start anew"
        ) from error
