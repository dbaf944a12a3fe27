"""The memory that a training takes: how to need less, how much it was, and one line where it ran out."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from adlib.errors import TrainingError
from adlib.images.features import is_out_of_memory, peak_memory_mib

# What needs less memory, by the setting that a method may have for it.
KNOBS = {
    "batch_size": "lower batch_size",
    "episodes": "lower episodes",
    "image_size": "lower image_size",
    "bank": "lower bank (pairs that are kept)",
    "accumulate": "raise accumulate (parts of a batch)",
    "checkpointing": "switch on checkpointing (of gradients)",
}


def memory_knobs(settings, in_steps: bool) -> tuple[str, ...]:
    """Names of the settings that this method has and that a user can still turn where memory ran out.

    Outside the steps neither the batch nor its gradients take memory.
    """
    spent = {"bank": 0, "checkpointing": True}
    of_steps = () if in_steps else ("batch_size", "episodes", "accumulate", "checkpointing")
    names = (name for name in KNOBS if hasattr(settings, name) and name not in of_steps)
    return tuple(name for name in names if name not in spent or getattr(settings, name) != spent[name])


@contextlib.contextmanager
def memory_errors(progress: str, when: str, settings, in_steps: bool = False):
    """Turn "out of memory", of the processor or of a GPU, into one line.

    Args:
        progress: who trains.
        when: in words, for example "at step 3".
        settings: of the method at hand; what they let a user change is named.
        in_steps: whether the block is a step of the training.

    Raises:
        TrainingError: memory ran out in the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError) or not is_out_of_memory(error):
            raise
        advice = [KNOBS[name] for name in memory_knobs(settings, in_steps)]
        advice = ", ".join(advice[:-1]) + " or " * (len(advice) > 1) + "".join(advice[-1:])
        raise TrainingError(f"{progress}: memory ran out {when}; {advice}") from error


def peak_memory(device: torch.device) -> dict[str, float]:
    """MiB: `peak_mib` of the process so far, `cuda_peak_mib` since the last call (0 without a GPU)."""
    cuda = 0.0
    if device.type == "cuda":
        cuda = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
    return {"peak_mib": round(peak_memory_mib(), 1), "cuda_peak_mib": round(cuda, 1)}


def checkpointed(module: nn.Module, *inputs: torch.Tensor):
    """Run a module without keeping its inner activations; they are computed again when the gradient needs them.

    Gradients stay the same, memory falls, time rises by about a forward pass. The second pass leaves the running
    statistics of batch normalisation alone, or they would count every batch twice.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    contexts = (contextlib.nullcontext, lambda: _statistics_kept(module))
    return recompute(module, *inputs, use_reentrant=False, context_fn=lambda: tuple(make() for make in contexts))


@contextlib.contextmanager
def _statistics_kept(module: nn.Module):
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    buffers = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, buffers, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)
