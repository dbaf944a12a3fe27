"""Pseudo-anomaly synthesis: adlib against a pnoise2 loop and against anomalib 2.7.0, in one process.

    .venv-bench/bin/python benchmarks/synthesis.py

Samples a second at 256 x 256 pixels. Both sides draw their textures from the same folder of JPEG files, decoded for
every sample: adlib's cache of decoded images is emptied each time, since a run on the 5,640 files of DTD would hardly
hit it either. Sides alternate, because a shared machine is not equally fast at all times; medians over samples.
Families without a counterpart have a rate and no ratio.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from adlib.synthesis import Sources, names, perlin_mask, sources, synthesise
from adlib.synthesis.perlin import rotate
from adlib.synthesis.textures import procedural_texture

SIZE = 256
TEXTURES = 60  # files in the folder
REPEATS = {"mask": 30, "draem": 60, "family": 40}


def make_textures(folder: Path) -> None:
    """Write texture files of DTD's usual size."""
    rng = np.random.default_rng(0)
    for k in range(TEXTURES):
        Image.fromarray(procedural_texture((480, 640), rng)[0]).save(folder / f"{k:03d}.jpg", quality=90)


def pnoise2_loop(rng) -> np.ndarray:
    """The usual way to a pnoise2 mask: one call per pixel in two loops, rotated, then a quantile as threshold.

    adlib's own backend "pnoise2" makes the same calls in one comprehension; it is measured as well.
    """
    from noise import pnoise2

    cells = 2 ** rng.integers(0, 6, 2)
    x0, y0 = rng.uniform(0, 256, 2)
    field = np.zeros((SIZE, SIZE), np.float32)
    for i in range(SIZE):
        for j in range(SIZE):
            field[i, j] = pnoise2(x0 + j * cells[1] / SIZE, y0 + i * cells[0] / SIZE)
    field = rotate(field, rng.uniform(-90, 90))
    return field >= np.quantile(field, 1 - rng.uniform(0.01, 0.10))


def side_by_side(sides: dict, repeats: int) -> dict:
    """Median seconds of each function, called in turn."""
    times = {name: [] for name in sides}
    for k in range(repeats + 3):
        for name, function in sides.items():
            sources._read.cache_clear()
            start = time.perf_counter()
            function(k)
            if k >= 3:  # the first calls load and warm up
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def row(what: str, ours: float, theirs: float | None, note: str) -> dict:
    """One row in samples a second; the ratio is above 1 where adlib is faster."""
    return {
        "benchmark": what,
        "size": f"{SIZE}x{SIZE}",
        "ours": round(1 / ours, 1),
        "theirs": round(1 / theirs, 1) if theirs else None,
        "ratio": theirs / ours if theirs else None,
        "unit": "samples/s",
        "note": f"{note}; {1000 * ours:.2f} ms" + (f" against {1000 * theirs:.2f} ms" if theirs else ""),
    }


def mask_rows() -> list[dict]:
    """Masks alone: the lattice against the pnoise2 loop and against anomalib's generator of Perlin fields."""
    from anomalib.data.utils.generators.perlin import generate_perlin_noise

    shape = (SIZE, SIZE)
    sides = {
        "lattice": lambda k: perlin_mask(shape, np.random.default_rng(k), threshold=None),
        "anomalib": lambda k: generate_perlin_noise(SIZE, SIZE) > 0.5,
    }
    try:
        pnoise2_loop(np.random.default_rng(0))
        sides["loop"] = lambda k: pnoise2_loop(np.random.default_rng(k))
        sides["backend"] = lambda k: perlin_mask(shape, np.random.default_rng(k), threshold=None, backend="pnoise2")
    except ImportError:
        print("the package noise is not installed: no pnoise2 rows")
    seconds = side_by_side(sides, REPEATS["mask"])
    note = f"median of {REPEATS['mask']}; noise, rotation and quantile threshold"
    rows = [
        row("perlin mask, vs anomalib field", seconds["lattice"], seconds["anomalib"], f"{note}; anomalib no rotation")
    ]
    if "loop" in seconds:
        rows.append(row("perlin mask, vs pnoise2 loop", seconds["lattice"], seconds["loop"], note))
        note += "; the quickest form of the loop"
        rows.append(row("perlin mask, vs own pnoise2 backend", seconds["lattice"], seconds["backend"], note))
    return rows


def main() -> list[dict]:
    """Return the rows for `results/benchmarks.csv`."""
    from anomalib.data.utils.generators import PerlinAnomalyGenerator

    rows = mask_rows()
    host = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        make_textures(Path(folder))
        pool = Sources(textures=folder, objects=folder, normals=[host[::-1].copy()])
        generator = PerlinAnomalyGenerator(anomaly_source_path=folder, probability=1.0)
        host_tensor = torch.from_numpy(host).permute(2, 0, 1).float() / 255

        def theirs(k):
            torch.manual_seed(k)
            return generator(host_tensor)

        def ours(name):
            return lambda k: synthesise(name, host, np.random.default_rng(k), sources=pool)

        seconds = side_by_side({"ours": ours("perlin_dtd"), "theirs": theirs}, REPEATS["draem"])
        note = f"median of {REPEATS['draem']}; texture files decoded each time"
        rows.append(row("DRAEM-style sample, vs anomalib", seconds["ours"], seconds["theirs"], note))
        made = Sources()
        sides = {"ours": lambda k: synthesise("perlin_dtd", host, np.random.default_rng(k), sources=made)}
        seconds = side_by_side(sides, REPEATS["family"])
        rows.append(row("DRAEM-style sample, textures made", seconds["ours"], None, f"median of {REPEATS['family']}"))
        for name in names("image"):
            seconds = side_by_side({"ours": ours(name)}, REPEATS["family"])
            rows.append(row(f"family {name}", seconds["ours"], None, f"median of {REPEATS['family']}"))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(2)
    for line in main():
        ratio = f"{line['ratio']:6.1f}" if line["ratio"] else "     -"
        print(f"{line['benchmark']:38s} {line['ours']:9.1f} {line['theirs'] or '-':>9} {ratio}  {line['note']}")
