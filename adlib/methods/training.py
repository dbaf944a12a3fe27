"""The one training loop: every trained method hands it its modules, its batches and its losses.

Three choices make it short and exact.

- *A batch is a function of its step.* `make_batch(step)` draws everything random from a generator seeded by the step,
  so a run can be resumed at any step, and prefetched by any number of workers, without changing a number.
- *Selection never sees test data.* `last` keeps the last step; `synthetic` keeps the step with the best score on
  held-out pseudo-anomalies, which the method computes in `validate`.
- *One checkpoint file*, moved into place when complete, read with `weights_only=True`.

Mixed precision, gradient accumulation and several processes are Hugging Face accelerate's. With several processes
each takes every n-th batch, so n processes make the step that one process makes of a batch n times as large.
"""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import recursively_apply
from torch import nn
from tqdm import tqdm

from adlib import settings as S
from adlib.datasets import table_hash
from adlib.errors import InputError, TrainingError
from adlib.methods import checkpoints, precision
from adlib.methods.memory import memory_errors, peak_memory
from adlib.paths import atomic_path
from adlib.settings import as_dict

SELECTIONS = ("last", "synthetic")
PRECISIONS = ("no", "auto", "bf16", "fp16")


@dataclass
class History:
    """What a training run leaves behind besides the weights.

    Attributes:
        losses: one row per optimiser step: step, each loss term, total, learning_rate.
        validation: one row per validation: step, seconds since the start, and what `validate` returned.
        snapshots: (step, module states) pairs, for learning curves and the oracle column of the evaluation; the last
            step and the selected one are among them.
        gradients: the gradient flow, one row per logged step and part of a module: step, part, mean, max (magnitudes).
        memory: one row per logged step or validation: step, peak_mib of the process so far, cuda_peak_mib since the
            row before (0 without a GPU).
        selected_step: the step whose weights were kept.
        seconds: wall time; loading_share: share of it spent waiting for batches.
        precision: of the steps; what "auto" came to.
    """

    losses: pd.DataFrame
    validation: pd.DataFrame
    snapshots: list = field(default_factory=list, repr=False)
    selected_step: int = 0
    seconds: float = 0.0
    loading_share: float = 0.0
    gradients: pd.DataFrame = field(default_factory=pd.DataFrame)
    memory: pd.DataFrame = field(default_factory=pd.DataFrame)
    precision: str = "no"

    def write(self, folder) -> list[Path]:
        """Write losses, validation, gradients and memory as CSV files into `folder`; return the files."""
        files = []
        for name in ("losses", "validation", "gradients", "memory"):
            table = getattr(self, name)
            if len(table):
                files.append(Path(folder) / f"{name}.csv")
                with atomic_path(files[-1]) as temporary:
                    table.to_csv(temporary, index=False, float_format="%.6g")
        return files


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return the generator of a training step: the same for the same seed and step, whatever ran before."""
    return np.random.default_rng([seed, step])


def epoch_rows(n_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the images of a step: every epoch is a new shuffle that follows from the seed; a short rest is dropped."""
    epoch, place = divmod(step, max(1, n_images // batch_size))
    order = step_generator(seed, epoch).permutation(n_images)
    return order[place * batch_size : (place + 1) * batch_size]


def warm_up_cosine(optimizer, n_steps: int, warm_up: float = 0.0, lowest: float = 0.0):
    """Learning rate as a share of its start: rises over `warm_up * n_steps` steps, then a cosine falls to `lowest`."""
    first = round(warm_up * n_steps)

    def share(step: int) -> float:
        if step < first:
            return (step + 1) / (first + 1)
        along = min(1.0, (step - first) / max(1, n_steps - first))
        return lowest + (1 - lowest) * 0.5 * (1 + float(np.cos(np.pi * along)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


@dataclass(frozen=True)
class Options(S.Settings):
    """What every trained method lets a user choose, under the same names; its settings extend this class."""

    steps: S.Count | None = None  # optimiser steps; None: as many as the epochs have
    learning_rate: S.Positive = 1e-4
    hold_out: S.Share = 0.15  # share of the training images kept for thresholds and selection; at least two images
    selection: Literal[SELECTIONS] = "last"  # last, or synthetic: the step that the judge rates best
    snapshot_every: S.Whole = 0  # steps between two kept copies of the weights, each rated by the judge; 0: none
    precision: Literal[PRECISIONS] = "no"  # mixed precision; auto: bf16 where this processor is faster with it
    seed: S.Whole = 0  # initial weights, order and choice of the images, everything else that is random

    def watched(self, held_out) -> bool:
        """Whether the judge is needed, and has images to go by."""
        return len(held_out) > 0 and (self.selection == "synthetic" or self.snapshot_every > 0)


def origin(method, train: pd.DataFrame, held_out: pd.DataFrame) -> dict:
    """What a checkpoint belongs to beside the settings: weights of the backbone, images."""
    facts = {"training images": table_hash(train), "validation images": table_hash(held_out)}
    return facts | ({"backbone weights": method.backbone.fingerprint} if hasattr(method, "backbone") else {})


def train(
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    make_batch: Callable[[int], object],
    compute_losses: Callable[[dict[str, nn.Module], object, int], dict[str, torch.Tensor]],
    n_steps: int,
    options: Options,
    *,
    checkpoint: str | Path | None = None,
    origin: dict | None = None,
    schedulers: list | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    workers: int = 1,
    log_every: int = 0,
    progress: str = "train",
) -> History:
    """Train `modules` in place for `n_steps` optimiser steps.

    Args:
        modules: name -> module; what is trained, checkpointed and selected.
        optimizers: each is stepped once per step; together they own the modules' parameters.
        make_batch: micro-step number -> batch. Runs in a worker thread; must draw randomness from `step_generator`.
        compute_losses: (modules, batch, step) -> named loss terms, scalars; their sum is minimised. Keys that start
            with "_" are only recorded. The modules are passed in because several processes train wrapped ones.
        n_steps: optimiser steps; each takes `accumulate` micro-steps.
        options: the method's settings. The seed seeds torch's global generator anew at each step (dropout, noise), so
            that resuming changes nothing.
        checkpoint: file to resume from, written every `checkpoints.EVERY` steps; None: none.
        origin: `origin(...)`; with it a checkpoint of other settings, weights or images is refused.
        schedulers: stepped once per step, after the optimisers.
        validate: called with the modules in evaluation mode; its value `score` (higher is better) decides `synthetic`.
        accumulate: micro-batches per step; their mean gradient is that of one large batch.
        clip_norm: largest norm of the gradient of all modules together.
        workers: threads that prepare batches ahead; for a GPU in page-locked memory, from where it copies faster.
        log_every: steps between two rows of the gradient flow and of the memory in the history; 0 for none (memory
            is also read at each validation).
        progress: label of the progress bar (only on a terminal).

    Raises:
        InputError: selection without a validation, a checkpoint of other modules, settings, weights or images.
        TrainingError: a loss or a gradient became NaN or infinite, or memory ran out.
    """
    if options.selection == "synthetic" and validate is None:
        raise InputError("selection 'synthetic' needs held-out pseudo-anomalies; give a validation table to fit")
    checkpoint = checkpoints.checkpoint_file(checkpoint) if checkpoint else None
    if origin is not None:
        # A constant rate may go on longer than its checkpoint was meant to; a schedule depends on the number of steps.
        origin = as_dict(options) | origin | ({"number of steps": n_steps} if schedulers else {})
    device = next(p.device for module in modules.values() for p in module.parameters())
    processes = _processes(device)
    raw, schedulers = modules, schedulers or []
    state = {"step": 0, "losses": [], "validation": [], "snapshots": [], "best": None, "gradients": [], "memory": []}
    state |= {"seconds": 0.0, "waiting": 0.0, "precision": options.precision}
    if checkpoint and checkpoint.is_file():
        state |= checkpoints.restore(checkpoint, raw, optimizers, schedulers, origin)
    if state["precision"] == "auto":  # kept in the checkpoint: another processor goes on to the same numbers
        first = recursively_apply(lambda part: part.to(device), make_batch(0)) if processes.num_processes == 1 else None
        state["precision"] = precision.fastest(raw, first, compute_losses, device) if first is not None else "no"
    accelerator, modules, optimizers = _accelerated(modules, optimizers, device, state["precision"], accumulate)
    saved = state["step"]
    shard, n_shards = accelerator.process_index, accelerator.num_processes

    def prepare_batch(micro):
        batch = make_batch(micro * n_shards + shard)
        return recursively_apply(torch.Tensor.pin_memory, batch) if device.type == "cuda" else batch

    def next_batch():
        before = time.perf_counter()
        batch = next(stream)
        state["waiting"] += time.perf_counter() - before
        return recursively_apply(lambda part: part.to(accelerator.device, non_blocking=True), batch)

    def step_once(step: int, logged: bool) -> dict:
        """One optimiser step: `accumulate` batches forward and backward, then the update; its row of `losses`."""
        # One process draws as ever; further ones draw their own dropout and noise.
        words = [options.seed, step, shard] if shard else [options.seed, step]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        for module in modules.values():
            module.train()
        row = {"step": step + 1}
        for _ in range(accumulate):
            batch = next_batch()
            with accelerator.accumulate(*modules.values()):
                with accelerator.autocast():
                    losses = compute_losses(modules, batch, step)
                loss = sum(value for key, value in losses.items() if not key.startswith("_"))
                values = _values({**losses, "total": loss}, accelerator)
                if not np.isfinite(values["total"]):
                    raise TrainingError(f"{progress}: the loss became {values['total']} {when}")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    if logged:
                        accelerator.unscale_gradients()
                        state["gradients"] += _gradient_flow(raw, step + 1)
                    norm = _gradient_norm(accelerator, modules, clip_norm)
                    # A finite loss may have a gradient that is not, and one step along it spoils all weights. With
                    # float16 that happens now and then: the scaler leaves such a step out.
                    if accelerator.scaler is None and not torch.isfinite(norm):
                        raise TrainingError(f"{progress}: the gradient became {float(norm)} {when}")
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            for key, value in values.items():
                row[key] = row.get(key, 0.0) + value / accumulate
        row["learning_rate"] = optimizers[0].param_groups[0]["lr"]
        for scheduler in schedulers:
            scheduler.step()
        return row

    def look_after(row: dict, logged: bool) -> None:
        """What follows a step: its row, a validation, a snapshot, where it is their turn."""
        n_done, every = row["step"], options.snapshot_every
        state["losses"].append(row)
        turn = bool(every) and n_done % every == 0
        validated = bool(validate) and (turn or n_done == n_steps)
        if validated:
            rating = _validate(validate, modules)
            state["validation"].append({"step": n_done, "seconds": time.perf_counter() - started, **rating})
            if state["best"] is None or rating["score"] > state["best"][1]:
                state["best"] = [n_done, float(rating["score"]), checkpoints.states(raw)]
        if logged or validated:
            state["memory"].append({"step": n_done, **peak_memory(device)})
        if turn:
            state["snapshots"].append([n_done, checkpoints.states(raw)])
        state["step"] = n_done

    stream = _prefetch(prepare_batch, range(state["step"] * accumulate, n_steps * accumulate), workers)
    started = time.perf_counter() - state["seconds"]  # a resumed run counts the time of its earlier parts
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), contextlib.closing(stream):
        for step in tqdm(range(state["step"], n_steps), desc=progress, disable=None, unit="step", leave=False):
            n_done = step + 1
            logged = bool(log_every) and n_done % log_every == 0
            when = f"at step {n_done}" + (f"; the checkpoint of step {saved} is kept" if checkpoint and saved else "")
            with memory_errors(progress, when, options, in_steps=True):
                look_after(step_once(step, logged), logged)
            if checkpoint and (n_done % checkpoints.EVERY == 0 or n_done == n_steps):
                if accelerator.is_main_process:
                    state["seconds"] = time.perf_counter() - started
                    checkpoints.save(checkpoint, state, raw, optimizers, schedulers, origin)
                saved = n_done
    if state["precision"] != "no":  # what accelerate put around the modules for mixed precision ends with the training
        raw = {name: accelerator.unwrap_model(module, keep_fp32_wrapper=False) for name, module in modules.items()}
    for module in raw.values():
        module.eval()
    return _history(state, raw, n_steps, options, time.perf_counter() - started)


def move_mean(mean: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move the running mean of a module's weights and buffers; the first steps forget faster."""
    share = 1 - min(decay, step / (step + 10))
    for kept, value in zip(mean.state_dict().values(), module.state_dict().values(), strict=True):
        kept.lerp_(value, share) if kept.is_floating_point() else kept.copy_(value)


def _processes(device: torch.device) -> PartialState:
    """The processes that train: one alone does so where its modules are, of several each has the device of its rank."""
    # accelerate keeps one state a Python process and refuses another precision; the processes' group outlives it.
    AcceleratorState._reset_state(reset_partial_state=False)
    processes = PartialState(cpu=device.type == "cpu")
    if processes.num_processes == 1:
        processes.device = device
    return processes


def _accelerated(modules: dict, optimizers: list, device: torch.device, mixed: str, accumulate: int):
    """accelerate's handle, and the modules and optimizers as it wraps them."""
    cpu = device.type == "cpu"
    accelerator = Accelerator(mixed_precision=mixed, gradient_accumulation_steps=accumulate, cpu=cpu)
    prepared = accelerator.prepare(*modules.values(), *optimizers)
    prepared = prepared if isinstance(prepared, tuple) else (prepared,)
    n = len(modules)
    return accelerator, dict(zip(modules, prepared[:n], strict=True)), list(prepared[n:])


def _gradient_norm(accelerator, modules: dict, largest: float | None) -> torch.Tensor:
    """The norm of the gradient of all modules together, which is cut to `largest` where that is asked for."""
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    if largest is not None:
        return accelerator.clip_grad_norm_(parameters, largest)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _history(state: dict, modules, n_steps: int, options: Options, seconds: float) -> History:
    """Put the selected weights in place and return what else the run leaves behind."""
    selected, snapshots = n_steps, dict(state["snapshots"])
    if options.snapshot_every:
        snapshots.setdefault(n_steps, checkpoints.states(modules))
    if options.selection == "synthetic":
        selected, _, best = state["best"]
        for name, module in modules.items():
            module.load_state_dict(best[name])
    return History(
        pd.DataFrame(state["losses"]),
        pd.DataFrame(state["validation"]),
        sorted(snapshots.items()),
        selected,
        round(seconds, 3),
        round(state["waiting"] / seconds, 4) if seconds else 0.0,
        pd.DataFrame(state["gradients"]),
        pd.DataFrame(state["memory"]),
        state["precision"],
    )


def _values(losses: dict, accelerator) -> dict[str, float]:
    """The loss terms as numbers, averaged over the processes."""
    values = {key.lstrip("_"): value.detach().float() for key, value in losses.items()}
    if accelerator.num_processes > 1:
        together = accelerator.reduce(torch.stack([v.to(accelerator.device) for v in values.values()]), "mean")
        values = dict(zip(values, together, strict=True))
    return {key: float(value) for key, value in values.items()}


def _gradient_flow(modules, step: int) -> list[dict]:
    """Mean and largest magnitude of the gradient in each part (child) of each module."""
    rows = []
    for name, module in modules.items():
        parts = list(module.named_children()) or [("", module)]
        for part, child in parts:
            magnitudes = [p.grad.detach().abs() for p in child.parameters() if p.grad is not None]
            if magnitudes:
                mean = float(sum(g.sum() for g in magnitudes)) / sum(g.numel() for g in magnitudes)
                largest = max(float(g.max()) for g in magnitudes)
                rows.append({"step": step, "part": f"{name}.{part}".rstrip("."), "mean": mean, "max": largest})
    return rows


def _validate(validate, modules) -> dict[str, float]:
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        rating = validate()
    return {key: None if value is None else float(value) for key, value in rating.items()}


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
