"""From photographs to files: `adlib predict` beside anomalib's `Engine.predict`, on the same weights and images.

    python benchmarks/predict.py [--data-root DIR --category NAME]      textures of the demo, or photographs

Both write the map and the photograph with the map laid over it, at the photograph's size, for each test image: theirs
as one picture, ours as an array and a picture, and also outlines, polygons and a row of scores. Ours loads its model
from disk; theirs is the model that was just fitted. Each side runs in a process of its own, in turns; images per second
are wall clock, from the first file to the last. A last row compares the exported graph in onnxruntime with torch, one
image at a time, in one process.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from patchcore import BACKBONE, SHARE, SIZE, pooled_textures, their_data, their_engine, their_model

SETTINGS = {"backbone": BACKBONE, "stages": [2, 3], "coreset": SHARE, "embedding_dim": None, "projection_dim": None}
SETTINGS |= {"image_size": SIZE, "resize": "stretch"}


def ours(good: Path, test: Path, folder: Path) -> float:
    from adlib import own_parts

    own_parts.train(good, folder / "model", "patchcore", SETTINGS)
    started = time.perf_counter()
    own_parts.predict(folder / "model", test, folder / "out")
    return time.perf_counter() - started


def theirs(good: Path, test: Path, folder: Path) -> float:
    from anomalib.visualization import ImageVisualizer

    from adlib import datasets
    from adlib.images import image_shape

    size = image_shape(next(test.rglob("*.png")))
    shown = {"fields": ["anomaly_map"], "overlay_fields": [("image", ["anomaly_map"])], "field_size": size}
    model = their_model(SHARE, visualizer=ImageVisualizer(**shown))
    engine = their_engine(folder)
    table = datasets.load("mvtec", str(good.parents[2]), good.parents[1].name)
    engine.fit(model, datamodule=their_data(table))
    started = time.perf_counter()
    for place in sorted(file for file in test.iterdir() if file.is_dir()):  # it reads one folder at a time
        engine.predict(model, data_path=place, return_predictions=False)
    return time.perf_counter() - started


def onnx(good: Path, test: Path, folder: Path) -> dict:
    """Milliseconds to score an image, by torch and by onnxruntime, in turns."""
    from adlib import images, methods, own_parts
    from adlib.methods.onnx_model import OnnxModel
    from adlib_book import onnx_export

    own_parts.train(good, folder / "model", "patchcore", SETTINGS)
    onnx_export.export_model(folder / "model", folder / "model.onnx")
    sides = {"torch": methods.load(folder / "model"), "onnxruntime": OnnxModel(folder / "model.onnx")}
    paths = sorted(test.rglob("*.png"))[:40]
    stack = list(images.batches(paths, sides["torch"].resize, 1))
    times = {name: [] for name in sides}
    for _ in range(3):
        for name, side in sides.items():
            started = time.perf_counter()
            for batch in stack:
                side.score(batch)
            times[name].append(1e3 * (time.perf_counter() - started) / len(stack))
    return {name: min(values) for name, values in times.items()}


def main(data_root: str = "", category: str = "textures", repeats: int = 3) -> list[dict]:
    """Run both sides in turns and return the rows of results/benchmarks.csv."""
    if not data_root:
        with tempfile.TemporaryDirectory() as folder:
            return main(str(pooled_textures(Path(folder))), category, repeats)
    found = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for side, runs in found.items():
            runs.append(in_a_process(side, data_root, category))
    a, b = ({key: statistics.median(run[key] for run in runs) for key in runs[0]} for runs in found.values())
    size = f"{category}, {a['n']:.0f} images of {a['side']:.0f} px, at {SIZE} px"
    rows = [{"benchmark": "predict, files written", "size": size, "ours": round(a["n"] / a["seconds"], 2)}]
    rows[0] |= {"theirs": round(b["n"] / b["seconds"], 2), "ratio": round(b["seconds"] / a["seconds"], 2)}
    rows[0] |= {"unit": "images/s", "note": f"medians of {repeats}; peak {a['peak']:.0f} / {b['peak']:.0f} MiB"}
    with contextlib.suppress(RuntimeError):  # the packages of the export are an extra
        times = in_a_process("onnx", data_root, category)
        row = {"benchmark": "PatchCore score, onnxruntime beside torch", "size": size.replace("256 px", "256 px, bank")}
        row |= {"ours": round(times["onnxruntime"], 2), "theirs": round(times["torch"], 2), "unit": "ms/image"}
        rows.append(row | {"ratio": round(times["torch"] / times["onnxruntime"], 2), "note": "theirs: torch, faiss"})
    return rows


def in_a_process(side: str, data_root: str, category: str) -> dict:
    command = [sys.executable, __file__, "--side", side, "--data-root", data_root, "--category", category]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("ours", "theirs", "onnx"))
    parser.add_argument("--data-root", default="")
    parser.add_argument("--category", default="textures")
    options = parser.parse_args()
    if not options.side:
        print(json.dumps(main(options.data_root, options.category), indent=2))
        sys.exit()
    from adlib.images import image_shape
    from adlib.images.features import peak_memory_mib

    torch.set_num_threads(2)
    root = Path(options.data_root, options.category)
    good_folder, test_folder = root / "train/good", root / "test"
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(open(os.devnull, "w")):
        outcome = {"ours": ours, "theirs": theirs, "onnx": onnx}[options.side](good_folder, test_folder, Path(scratch))
    if options.side != "onnx":
        pictures = sorted(test_folder.rglob("*.png"))
        outcome = {"seconds": outcome, "n": len(pictures), "side": max(image_shape(pictures[0]))}
        outcome["peak"] = peak_memory_mib()
    print(json.dumps(outcome))
