"""The run record: one folder per run, with everything that is needed to trace a number or to make it again.

    results/runs/<profile>/<method>/<dataset>-<category>-seed<k>/{record.json, scores.csv, maps.npz, notebook.ipynb}

and `model/`, where the profile says `keep_models`; `evaluate_model` tests it on other data.
Tables and figures read records and nothing else.
"""

import contextlib
import datetime
import functools
import json
import platform
import random
import subprocess
import time
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from adlib import datasets, methods, profiles, source_files
from adlib.errors import InputError
from adlib.evaluation import Evaluation, at_threshold, by_defect_kind, evaluate, thresholds
from adlib.images import backbones
from adlib.images.features import peak_memory_mib
from adlib.methods import storage
from adlib.paths import atomic_path, digest_of, results_dir, root
from adlib.record_files import KINDS, SCHEMA, collect, read_record, write_record  # noqa: F401 - part of this module
from adlib.settings import as_dict, build

MAPS_SIDE, MAPS_IMAGES = 128, 200  # pixels, images
VERSIONED = ("adlib", "torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "pandas", "scikit-learn")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for the few places that draw from a global generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other libraries still draw from it
    torch.manual_seed(seed)


class Run:
    """One run of one method on one category: what a method notebook starts and finishes with.

    Args:
        method, profile, dataset, data_root, category, seed: as on the command line; `data_root` "" for the demo data.
        settings: changes to the profile's settings of the method.
        out_dir: where the record goes; "" for its place below `results/runs`.
        notebook: file name of the notebook, for the record; "" where there is none.
        fitted: `settings` are those of a fitted model: no profile changes them, and no training image is needed.

    Attributes:
        table, train, test: the sample table and its normal training and its test rows.
        settings: the settings to make the method with.
    """

    def __init__(
        self, method, *, notebook, profile, dataset, data_root, category, seed, settings=None, out_dir="", fitted=False
    ):
        self.method, self.notebook, self.profile = method, notebook, profile
        self.dataset, self.category, self.seed = dataset, category, seed
        self.keep_model = not fitted and profiles.load(profile)["keep_models"]
        self.settings = settings
        if not fitted:
            self.settings = profiles.method_settings(profile, method, {**(settings or {}), "seed": seed})
        self.table = datasets.load(dataset, data_root or None, category)
        self.train = self.table[(self.table.split == "train") & (self.table.label == 0)]
        self.test = self.table[self.table.split == "test"]
        self.n_train = len(self.train)
        if self.test.empty:
            raise InputError(f"{dataset}/{category} has no test image; expected some in {category}/test/good")
        if self.train.empty and not fitted:
            of_mvtec = "mvtec_ad/" if dataset in ("mad_man", "mad_sys") else ""  # these hold test images only
            where = f"{of_mvtec}{category}/train/good{' beside the data set' if of_mvtec else ''}"
            raise InputError(f"{dataset}/{category} has no normal training image; expected some in {where}")
        for line in datasets.missing_for_evaluation(self.table):
            print(f"{dataset}/{category}: {line}")
        side = self.settings.get("image_size")
        if not fitted:
            self.settings = profiles.shaped(method, self.settings, self.train.image_path, report=print)
        # Where the input took the images' shape: the side of the square that has its pixels, by which tables compare.
        self.side = {"side": side} if isinstance(side, int) and side != self.settings["image_size"] else {}
        place = results_dir() / "runs" / profile / method / f"{dataset}-{category}-seed{seed}"
        self.out_dir = Path(out_dir) if out_dir else place
        self.timing, self.weights = {}, {}
        self._started = time.perf_counter()

    @property
    def checkpoint(self) -> Path | None:
        """Where `fit` resumes the training of a job that was stopped; None in the smoke profile, whose runs are short.

        It is named by all that a result depends on, so that other settings, images or code start anew; `write` removes
        it.
        """
        if self.profile == "smoke":
            return None
        settings = build(methods.get(self.method).Settings, self.settings)
        return self.out_dir / f"checkpoint-{content_hash(self.method, settings, self.seed, self.table)}.pt"

    @contextlib.contextmanager
    def timed(self, name: str):
        """Add the seconds of a block to `timing[name + "_s"]`."""
        before = time.perf_counter()
        yield
        self.timing[f"{name}_s"] = round(self.timing.get(f"{name}_s", 0.0) + time.perf_counter() - before, 3)

    def evaluate(self, method) -> Evaluation:
        """Score the test rows and compute every metric that these data define."""
        if hasattr(method, "backbone"):  # DRAEM has none
            self.weights = {"weights": backbones.weights_facts(method.backbone, method.settings.weights)}
        return evaluate(method, self.test)

    def threshold(self, method) -> thresholds.Threshold | None:
        """The threshold of 5 % false alarms from a fitted method's held-out normals; None, said in a line, without."""
        if len(method.normal_scores) < 2:
            print(
                f"no threshold: {len(method.normal_scores)} of {len(self.train)} normal training images could be held "
                "out, at least 2 are needed"
            )
            return None
        return thresholds.from_normals(method.normal_scores, "quantile", false_alarm_rate=0.05)

    def write(
        self, evaluation: Evaluation, threshold: thresholds.Threshold | None = None, variant: str = "", **extra
    ) -> dict:
        """Write the model where the profile keeps it, scores.csv, then record.json, and return the record.

        Args:
            evaluation: what `evaluate` returned for the test rows.
            threshold: from held-out normal images.
            variant: of the method, such as "trained"; its record and model lie in a folder of this name.
            extra: further keys (JSON types): `selection`, learning curves, ...
        """
        settings, out_dir = build(methods.get(self.method).Settings, self.settings), self.out_dir / variant
        auto = getattr(settings, "precision", "") == "auto" and getattr(evaluation.method, "history", None)
        per_image = {f"{k}_ms_per_image": round(1e3 * v, 2) for k, v in evaluation.seconds_per_image.items()}
        total = round(time.perf_counter() - self._started, 2)
        protocol = {"resolution": "input", "image_size": as_dict(settings).get("image_size"), "selection": "none"}
        record = {
            "method": self.method,
            "dataset": self.dataset,
            "category": self.category,
            "profile": self.profile,
            "parameters": as_dict(settings),
            "seed": self.seed,
            "protocol": protocol | self.side | extra.pop("protocol", {}),
            "metrics": {k: None if v is None else round(float(v), 6) for k, v in evaluation.metrics.items()},
            "threshold": threshold.to_dict() if threshold else None,
            "at_threshold": at_threshold(evaluation.scores, threshold.value) if threshold else None,
            "n_images": {
                "train": self.n_train,
                "test_normal": int((self.test.label == 0).sum()),
                "test_anomalous": int((self.test.label == 1).sum()),
            },
            "timing": {**self.timing, **per_image, "total_s": total},
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "device": device_name(),
            **({"precision": auto.precision} if auto else {}),
            **self.weights,
            "versions": versions(),
            "git_commit": git_commit(),
            "table_hash": datasets.table_hash(self.table),
            "content_hash": content_hash(self.method, settings, self.seed, self.table),
            **({"metric_bounds": evaluation.bounds} if evaluation.bounds else {}),
            **({"left_out": evaluation.left_out} if evaluation.left_out else {}),  # of the pixel metrics
            **({"vanished": evaluation.vanished} if evaluation.vanished else {}),  # at the input size
            **({"by_kind": self._by_kind(evaluation)} if by_defect_kind.has_both(self.test) else {}),
            "by_defect": by_defect_kind.by_defect(evaluation),
            "notebook": f"notebooks/{self.notebook}" if self.notebook else "",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **({"variant": variant} if variant else {}),
            **extra,
        }
        if self.keep_model:
            keys = ("profile", "dataset", "category", "n_images")
            facts = {"run": {key: record[key] for key in keys}, "threshold": record["threshold"]}
            evaluation.method.save(out_dir / "model", **facts)
        scores = evaluation.scores.assign(image_path=[_relative(p) for p in evaluation.scores.image_path])
        with atomic_path(out_dir / "scores.csv") as temporary:
            scores.to_csv(temporary, index=False, float_format="%.6g")
        write_maps(out_dir, evaluation)
        write_record(out_dir, record)
        for checkpoint in self.out_dir.glob("checkpoint-*"):
            checkpoint.unlink()
        return record

    def _by_kind(self, evaluation: Evaluation) -> dict:
        resize = evaluation.method.resize
        return by_defect_kind.by_kind(self.test, evaluation.scores.score, evaluation.anomaly_maps, resize)


def evaluate_model(model, *, dataset, data_root, category, out_dir) -> dict:
    """Test a fitted model on a category, of the data set it was fitted on or of another, and write the record.

    Args:
        model: folder of a model, of a run or of `adlib train`; its threshold, where it has one, is looked at.
        dataset, data_root, category: as for `Run`; of these data only the test images are looked at.
        out_dir: folder of the record.

    Returns:
        the record; `model` in it says what the model was fitted on, where a run made it.
    """
    header, out = storage.read_header(model), Path(out_dir)
    if (out / "record.json").is_file() and "model" not in read_record(out):
        raise InputError(f"{out} holds the record of a run; give another folder for what its model does elsewhere")
    if header.get("tiles") or header.get("roi"):
        raise InputError(f"{model} looks at tiles or a region of images; adlib predict does, an evaluation cannot")
    origin = header.get("run") or {"profile": "own", "n_images": {"train": 0}}
    where = {"dataset": dataset, "data_root": data_root, "category": category, "out_dir": out_dir}
    settings = header["settings"]
    run = Run(
        header["method"], notebook="", profile=origin["profile"], seed=settings["seed"], settings=settings,
        fitted=True, **where,
    )  # fmt: skip
    run.n_train = origin["n_images"]["train"]
    evaluation = run.evaluate(methods.load(model))
    limit = header.get("threshold")
    extra = {"model": {"digest": header["tensors_digest"]} | origin, "content_hash": header["tensors_digest"]}
    return run.write(evaluation, thresholds.Threshold(**limit) if limit else None, **extra)


def write_maps(directory, evaluation: Evaluation) -> None:
    """Write `maps.npz` for figures: anomaly maps and masks, made smaller; git ignores it, metrics never read it.

    At most `MAPS_IMAGES` images, evenly spaced, at most `MAPS_SIDE` pixels per side; one byte range for all maps.
    """
    n = len(evaluation.anomaly_maps)
    rows = np.unique(np.linspace(0, n - 1, min(n, MAPS_IMAGES)).round().astype(int))
    height, width = evaluation.anomaly_maps[0].shape
    factor = min(1.0, MAPS_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    maps = np.stack([cv2.resize(evaluation.anomaly_maps[i], size, interpolation=cv2.INTER_AREA) for i in rows])
    low, high = float(maps.min()), float(maps.max())
    levels = np.rint((maps - low) * (65535 / max(high - low, 1e-12))).astype(np.uint16)
    masks = np.zeros(maps.shape, bool)
    if evaluation.masks:  # at original resolution there are none
        soft = (cv2.resize(np.float32(evaluation.masks[i]), size, interpolation=cv2.INTER_AREA) for i in rows)
        masks = np.stack([mask >= 0.5 for mask in soft])
    with atomic_path(Path(directory) / "maps.npz") as temporary:
        np.savez_compressed(temporary, levels=levels, low=low, high=high, masks=masks, rows=rows)


def read_maps(directory) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Read what `write_maps` wrote; None where a run has left no maps (they are not committed), or damaged ones.

    Returns:
        maps float32 (n, h, w); masks bool (n, h, w); rows int (n,), their rows in `scores.csv`.
    """
    file = Path(directory) / "maps.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            low, high = float(stored["low"]), float(stored["high"])
            maps = low + stored["levels"].astype(np.float32) * ((high - low) / 65535)
            masks, rows = stored["masks"], stored["rows"]
        if maps.ndim != 3 or (maps.shape, maps.shape[:1]) != (masks.shape, rows.shape) or not np.isfinite(maps).all():
            raise ValueError("arrays that do not belong together")
        return maps, masks, rows
    except Exception:  # numpy, zipfile and zlib each raise their own; to the user they mean one thing
        print(f"left out: {file} is damaged; delete it and run again")
        return None


def content_hash(method: str, settings, seed: int, table: pd.DataFrame) -> str:
    """Hash everything a result depends on: method, settings, seed, the content of the data, and the code."""
    parts = method, json.dumps(as_dict(settings), sort_keys=True), str(seed), datasets.table_hash(table)
    code = b"".join(file.read_bytes() for file in source_files.of_method(method))
    return digest_of("".join(parts).encode() + code)


def device_name() -> str:
    """Describe the device: the GPU's name, or the processor and the number of threads."""
    device = backbones.default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict:
    """Return the versions of what a number may depend on."""
    packages = {"python": platform.python_version()}
    for package in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return packages


def git_commit() -> str | None:
    """Return the commit of the repository, with "+" where files were changed since; None outside git."""
    try:
        git = functools.partial(subprocess.run, cwd=root(), capture_output=True, text=True, check=True, timeout=20)
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no", "--", "adlib", "notebooks", "profiles"])
        return commit + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _relative(path: str) -> str:
    """Keep the last four parts of a path (category, split, defect, file): no record names a folder of this machine."""
    return "/".join(Path(path).parts[-4:])
