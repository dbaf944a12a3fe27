"""`precision: auto`: bfloat16 where it saves time, and only there.

Without instructions of its own for it a processor takes 2.5 times as long in bfloat16 as in float32; with them it may
still lose, because small layers spend their time elsewhere. So the processor is asked first, then a step is timed.
"""

import time

import torch

PASSES = 2  # of each precision; the first warms up


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16, and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest(modules, batch, compute_losses, device: torch.device) -> str:
    """Return `bf16` where the device has it and a step, forward and backward, takes less time so, else `no`.

    Args:
        modules, compute_losses: as for `training.train`; here in evaluation mode, so that running statistics stay.
        batch: that of the first step, on the device.
    """
    if not has_bf16(device):
        return "no"
    seconds = {}
    with torch.random.fork_rng():
        for precision in ("no", "bf16") * PASSES:
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = compute_losses({name: module.eval() for name, module in modules.items()}, batch, 0)
            sum(value for key, value in losses.items() if not key.startswith("_")).backward()
            next(iter(losses.values())).item()  # a GPU is waited for
            seconds[precision] = time.perf_counter() - started
    for module in modules.values():
        module.zero_grad(set_to_none=True)
    return min(seconds, key=seconds.get)
