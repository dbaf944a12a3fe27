"""Peak memory is this process's own, and an allocation shows in it."""

import subprocess
import sys

import numpy as np

from adlib.images import features
from adlib.images.features import allocate, is_out_of_memory, peak_memory_mib

PROGRAM = """
from adlib.images.features import peak_memory_mib
before = peak_memory_mib()
held = bytearray(200 * 2**20)
print(peak_memory_mib() - before)
"""


def test_an_allocation_raises_the_peak_by_its_size():
    grown = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 150 < float(grown.stdout) < 260


def test_a_child_does_not_inherit_the_memory_of_its_parent():
    held = bytearray(600 * 2**20)
    program = "from adlib.images.features import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    own = peak_memory_mib()
    assert own > len(held) / 2**20
    assert float(child.stdout) < own


def test_memory_errors_are_known_by_their_words():
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_exceeds_memory_lies_in_a_file(monkeypatch):
    inside = allocate((3, 4))
    monkeypatch.setattr(features, "MAX_MEMORY", 0.0)
    outside = allocate((3, 4))
    assert not isinstance(inside, np.memmap)
    assert isinstance(outside, np.memmap)
    outside[:] = 1
    assert outside.sum() == 12
    assert inside.dtype == outside.dtype == np.float32
