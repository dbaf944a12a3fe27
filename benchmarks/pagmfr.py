"""A training step of PAGMFR from the bank, beside the same step with new pairs and a running encoder.

    python benchmarks/pagmfr.py

"theirs" is the plain way, which the README's loader implies: each step makes new pseudo-anomalies and sends normal and
damaged images through the frozen encoder. Ours takes both from a bank that was made once. Both sides do the same
forward and backward pass afterwards; their losses on one batch are compared. The second row is the memory that
gradient checkpointing saves, as bytes that autograd keeps between the passes.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

SIZE, BATCH, REPEATS = 256, 8, 5


def compare_steps(method) -> dict:
    """Seconds of a step: batch, forward, backward."""
    times, bank = {"ours": [], "theirs": []}, method.pairs.bank
    trainable = method.model.train().trainable()
    for step in range(REPEATS + 1):
        for side, kept in (("ours", bank), ("theirs", None)):
            method.pairs.bank = kept
            started = time.perf_counter()
            sum(method.losses(trainable, method.pairs.batch(step), step).values()).backward()
            if step:  # the first round warms up
                times[side].append(time.perf_counter() - started)
    method.pairs.bank = bank
    method.model.eval()
    batch = method.pairs.batch(0)
    plain = {key: batch[key] for key in ("normal", "image", "mask")}
    with torch.no_grad():
        both = [method.losses(trainable, b, 0) for b in (batch, plain)]
    gap = max(float(abs(both[0][key] - both[1][key])) for key in both[0])
    ours, theirs = (statistics.median(values) for values in times.values())
    return {
        "benchmark": "PAGMFR: training step, bank against new pairs",
        "size": f"batch {BATCH}, {SIZE} px, Lite0, threads {torch.get_num_threads()}",
        "ours": round(ours, 3),
        "theirs": round(theirs, 3),
        "ratio": round(theirs / ours, 2),
        "unit": "s",
        "note": f"largest difference of a loss {gap:.1g} (the bank keeps features in half precision)",
    }


def compare_memory(method) -> dict:
    """MiB that autograd keeps for the backward pass, with and without checkpointing."""
    kept, batch = {}, method.pairs.batch(0)
    for checkpointing in (False, True):
        method.model.mfrm.checkpointing, sizes = checkpointing, []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sum(method.losses(method.model.train().trainable(), batch, 0).values())
        kept[checkpointing] = sum(sizes) / 2**20
    return {
        "benchmark": "PAGMFR: kept for the backward pass",
        "size": f"batch {BATCH}, {SIZE} px, 2 residual blocks",
        "ours": round(kept[True], 1),
        "theirs": round(kept[False], 1),
        "ratio": round(kept[False] / kept[True], 2),
        "unit": "MiB",
        "note": "with gradient checkpointing against without",
    }


def main() -> list[dict]:
    """Both comparisons on random pictures."""
    from adlib.methods.pagmfr.pagmfr import PAGMFR

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(16)]
        for path in paths:
            Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
        table = pd.DataFrame({"image_path": paths, "category": "noise", "label": 0, "split": "train"})
        method = PAGMFR(
            backbone="tf_efficientnet_lite0", stages=(2, 3), image_size=SIZE, width=64, bottleneck=128, blocks=2,
            fusion_width=32, image_stride=4, bank=24, batch_size=BATCH, kind="texture", foreground="none",
        )  # fmt: skip
        method.prepare(table)
        return [compare_steps(method), compare_memory(method)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(pd.DataFrame(main()).to_string(index=False))
