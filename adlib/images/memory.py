"""How much memory a process took, what memory errors look like, and arrays that may be larger than memory."""

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

STATUS = Path("/proc/self/status")  # Linux only


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    On Linux this is `VmHWM`: `ru_maxrss` also counts what the parent held when it started this process.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory, of the processor or of a GPU, ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


def allocate(shape, max_memory: float) -> np.ndarray:
    """Allocate float32 of `shape`; above `max_memory` GiB as a memory-mapped file that goes with its last user."""
    if 4 * np.prod(shape, dtype=np.int64) <= max_memory * 2**30:
        return np.empty(shape, dtype=np.float32)
    return np.memmap(tempfile.TemporaryFile(), dtype=np.float32, shape=tuple(shape), mode="w+")
