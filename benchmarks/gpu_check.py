"""Some steps of every method with the paper profile's settings on a device, held against the CPU, and what they cost.

make gpu-check     results/gpu_check.json, and the same as a table; the demo data, random weights, no network
"""

import json
import os
import platform
import sys
import time

import numpy as np
import pandas as pd
import torch

from adlib import datasets, methods, profiles, runs
from adlib.images import backbones, batches
from adlib.paths import atomic_path, results_dir

TOLERANCE = 0.01  # relative, of losses and scores; kernels of a GPU sum in another order
N_IMAGES = 12  # to fit on, two of them held out, so that a batch of 8 is whole; and 4 to score
# Less than the paper's where it only takes longer: numbers of steps, images of a made pool, and no folder of textures.
LESS = {"weights": "random", "textures": "", "selection": "last", "snapshot_every": 0}
LESS |= {"pool": [4, 2], "shots": [1, 2], "drawn_products": 2}


def fitted(name: str, device: str, table: pd.DataFrame, **changes):
    """Fit a method with the paper profile's settings, and `changes` of those it has, on a device; and the seconds."""
    os.environ["ADLIB_DEVICE"] = device
    fields = methods.get(name).Settings.__dataclass_fields__
    changes = {key: value for key, value in (LESS | changes).items() if key in fields}
    method = methods.create(name, **profiles.method_settings("paper", name, changes))
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    if hasattr(method, "train_episodes"):
        method.train_episodes({"demo": table}, {"demo": table})
    method.fit(table)
    return method, time.perf_counter() - started


def numbers(method, paths) -> np.ndarray:
    """What two devices must agree on: the losses of the steps or, where nothing is trained, scores of images."""
    if getattr(method, "history", None) is not None:
        return method.history.losses.total.to_numpy()
    return np.concatenate([method.score(batch).image for batch in batches(paths, method.resize, 2)])


def check_method(name: str, device: str, steps: int = 10, compared: int = 2) -> dict:
    """One row: how far the device's numbers are from the CPU's, and time and memory of `steps` paper-size steps."""
    table = datasets.load("demo", None, "brick")
    train = table[(table.split == "train") & (table.label == 0)].iloc[:N_IMAGES]
    test = table.image_path[table.split == "test"].iloc[:4]
    both = {}
    for place in ("cpu", device):
        method, _ = fitted(name, place, train, steps=compared, batch_size=2, episodes=2)
        both[place] = numbers(method, test)
    difference = float(np.max(np.abs(both[device] - both["cpu"]) / np.abs(both["cpu"]).clip(1e-6)))
    method, seconds = fitted(name, device, train, steps=steps)
    history = getattr(method, "history", None)
    cuda = torch.device(device).type == "cuda"
    return {
        "method": name,
        "difference": difference,
        "agrees": difference <= TOLERANCE,
        "fit_s": round(seconds, 2),
        "step_ms": None if history is None else round(1e3 * history.seconds / steps, 1),
        "waiting_share": None if history is None else history.loading_share,
        "gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if cuda else None,
    }


def main(names=None, device: str | None = None) -> int:
    """Check methods (all) on a device (the one in use); exit code 1 where one disagrees or fails."""
    before, device = os.environ.get("ADLIB_DEVICE"), device or str(backbones.default_device())
    rows = []
    try:
        for name in names or methods.METHODS:
            try:
                rows.append(check_method(name, device))
            except (RuntimeError, ValueError) as error:  # the others are still worth knowing
                rows.append({"method": name, "agrees": False, "error": str(error).splitlines()[0]})
            print(f"{name}: {'agrees' if rows[-1]['agrees'] else rows[-1].get('error', 'differs')}", flush=True)
    finally:
        os.environ.pop("ADLIB_DEVICE", None)
        os.environ |= {"ADLIB_DEVICE": before} if before else {}
    facts = {"device": device, "name": runs.device_name(), "tolerance": TOLERANCE, "images": N_IMAGES}
    facts |= {"python": platform.python_version(), "versions": runs.versions(), "rows": rows}
    with atomic_path(results_dir() / "gpu_check.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    print(pd.DataFrame(rows).to_string(index=False))
    return int(not all(row["agrees"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
