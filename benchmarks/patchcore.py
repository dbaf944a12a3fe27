"""PatchCore end to end, ours beside anomalib's: same images, same weights, same layers, same coreset share.

    python benchmarks/patchcore.py [--data-root DIR --category NAME]

Without a data root, the three photographed textures of the demo data are taken as one category: 120 good images to
train on, as many as the smaller categories of MVTec AD have.

Each side runs in a process of its own (peak memory is a property of a process), in turns, several times. Times are
wall clock from the first image read to the last score; imports and model construction are left out on both sides.
Both sides' scores go through the same metrics. Batches are each library's own defaults (2 images; 32 to evaluate).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

SIZE, SHARE, BACKBONE = 256, 0.02, "tf_efficientnet_lite0"


def pooled_textures(folder: Path) -> Path:
    """Copy the textures of the demo data into one category `textures` in MVTec layout; return the folder above it."""
    from adlib.datasets import demo

    source = demo.generate()
    for texture in ("brick", "grass", "gravel"):
        for file in sorted((source / texture).rglob("*.png")):
            target = folder / "textures" / file.relative_to(source / texture)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target.with_name(f"{texture}_{file.name}"))
    return folder


def ours(table) -> dict:
    from adlib import evaluation, images
    from adlib.methods.patchcore import PatchCore

    settings = {"image_size": SIZE, "resize": "stretch", "embedding_dim": None}
    settings["projection_dim"] = None  # 152 dimensions need none; anomalib projects to 284
    method = PatchCore(backbone=BACKBONE, stages=[2, 3], coreset=SHARE, **settings)
    train, test = table[table.split == "train"], table[table.split == "test"]
    started = time.perf_counter()
    method.fit(train)
    fitted = time.perf_counter()
    scores, maps = [], []
    for batch in images.batches(test.image_path, method.resize, method.settings.batch_size):
        found = method.score(batch)
        scores.extend(found.image)
        maps.extend(found.map)
    done = time.perf_counter()
    return {"fit_s": fitted - started, "predict_s": done - fitted} | accuracy(
        evaluation, test, method.resize, scores, maps
    )


def their_model(share: float = SHARE, visualizer: bool = False):
    """anomalib's PatchCore with our weights, untrained."""
    import logging

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from anomalib.models import Patchcore
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    from adlib.images import backbones

    prepare = PreProcessor(Compose([Resize((SIZE, SIZE), antialias=True), Normalize([0.5] * 3, [0.5] * 3)]))
    layers = ("blocks.2", "blocks.4")
    model = Patchcore(BACKBONE, layers, False, share, pre_processor=prepare, evaluator=False, visualizer=visualizer)
    state = backbones.read_state_dict(backbones.package_file(BACKBONE))
    renamed = backbones.rename_to_timm(state, BACKBONE)
    own = model.model.feature_extractor.state_dict()
    matched = {key: renamed[key.removeprefix("feature_extractor.")] for key in own}
    model.model.feature_extractor.load_state_dict(matched)
    return model


def their_data(table):
    """The images of a table in MVTec layout as anomalib's own examples read them."""
    from anomalib.data import Folder

    test = table[table.split == "test"]
    return Folder(
        "bench",
        normal_dir="train/good",
        root=Path(table.image_path.iloc[0]).parents[2],
        abnormal_dir=[f"test/{kind}" for kind in sorted(set(test.defect[test.label == 1]))],
        normal_test_dir="test/good",
        num_workers=0,
        val_split_mode="same_as_test",
    )


def their_engine(folder):
    from anomalib.engine import Engine

    quiet = {"logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
    return Engine(default_root_dir=folder, accelerator="cpu", **quiet)


def theirs(table) -> dict:
    """Run anomalib as its own examples do: `Folder` data, `Engine.fit`, `Engine.predict`."""
    model, data, test = their_model(), their_data(table), table[table.split == "test"]
    from adlib import evaluation
    from adlib.images import Resize

    with tempfile.TemporaryDirectory() as folder:
        engine = their_engine(folder)
        started = time.perf_counter()
        engine.fit(model, datamodule=data)
        fitted = time.perf_counter()
        predictions = engine.predict(model, datamodule=data, return_predictions=True)
        done = time.perf_counter()
    by_path = {}
    for batch in predictions:
        for path, score, anomaly_map in zip(batch.image_path, batch.pred_score, batch.anomaly_map, strict=True):
            by_path[str(path)] = float(score), anomaly_map.squeeze().float().numpy()
    found = [by_path[path] for path in test.image_path]
    measured = accuracy(evaluation, test, Resize(SIZE), [score for score, _ in found], [m for _, m in found])
    return {"fit_s": fitted - started, "predict_s": done - fitted} | measured


def accuracy(evaluation, test, resize, scores, maps) -> dict:
    from adlib import datasets
    from adlib.evaluation import metrics

    found = metrics.image_metrics(np.array(scores, dtype=np.float64), test.label.to_numpy())
    empty = np.zeros((SIZE, SIZE), bool)
    masks = [empty if mask is None else resize.mask(mask) for mask in datasets.masks(test)]
    found |= metrics.pixel_metrics(maps, masks)
    return {key: found[key] for key in ("image_auroc", "pixel_auroc", "aupro_30")}


def main(data_root: str = "", category: str = "textures", repeats: int = 3) -> list[dict]:
    """Run both sides in turns and return the rows of results/benchmarks.csv."""
    if not data_root:
        with tempfile.TemporaryDirectory() as folder:
            return main(str(pooled_textures(Path(folder))), category, repeats)
    results = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for side, found in results.items():
            command = [sys.executable, __file__, "--side", side, "--data-root", data_root, "--category", category]
            output = subprocess.run(command, capture_output=True, text=True, check=False)
            if output.returncode:
                raise RuntimeError(f"{side}: {output.stderr[-2000:]}")
            found.append(json.loads(output.stdout.strip().splitlines()[-1]))
    middle = {
        side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in results.items()
    }
    a, b = middle["ours"], middle["theirs"]
    note = "; ".join(f"{k} {100 * a[k]:.1f} / {100 * b[k]:.1f}" for k in ("image_auroc", "pixel_auroc", "aupro_30"))
    size = f"{category}, {a['n_train']:.0f} + {a['n_test']:.0f} images, {SIZE} px, {SHARE:.0%}"
    rows = []
    for key, unit in (("fit_s", "s"), ("predict_s", "s"), ("total_s", "s"), ("peak_mib", "MiB"), ("growth_mib", "MiB")):
        rows.append(
            {
                "benchmark": f"PatchCore {key.rsplit('_', 1)[0]}",
                "size": size,
                "ours": round(a[key], 2),
                "theirs": round(b[key], 2),
                "ratio": round(b[key] / a[key], 2),
                "unit": unit,
                "note": f"{note}; medians of {repeats}",
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("ours", "theirs"))
    parser.add_argument("--data-root", default="")
    parser.add_argument("--category", default="textures")
    options = parser.parse_args()
    if not options.side:
        print(json.dumps(main(options.data_root, options.category), indent=2))
        sys.exit()
    from adlib import datasets
    from adlib.images.features import peak_memory_mib

    torch.set_num_threads(2)
    sample_table = datasets.load("mvtec", options.data_root, options.category)
    if options.side == "theirs":
        import anomalib.engine
        import anomalib.models  # noqa: F401 - imports are left out of the time and the growth of memory
    before = peak_memory_mib()
    outcome = {"ours": ours, "theirs": theirs}[options.side](sample_table)
    outcome |= {"total_s": outcome["fit_s"] + outcome["predict_s"], "peak_mib": peak_memory_mib()}
    outcome |= {"growth_mib": peak_memory_mib() - before}
    outcome |= {
        "n_train": int((sample_table.split == "train").sum()),
        "n_test": int((sample_table.split == "test").sum()),
    }
    print(json.dumps(outcome))
