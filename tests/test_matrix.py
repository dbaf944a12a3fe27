"""Every method on data of every shape: each cell ends in a record, or in one line that says what is missing.

The result cells of every method's notebook in this process, and the whole notebook for two shapes. `make matrix`
(benchmarks/matrix.py) runs whole notebooks on all shapes, each in a process of its own.
"""

import functools
from pathlib import Path

import gpu_check
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_SETTINGS, texture, write_image

from adlib import datasets, methods, profiles, runs
from adlib.errors import InputError
from adlib.images import backbones
from adlib.methods import METHODS, training
from adlib_book import cells

# Data set: category, and the places of training, good test and defective images and of masks.
PLACES = {
    "own": ("plate", "train/good/{i}", "test/good/{i}", "test/{kind}/{i}", "ground_truth/{kind}/{i}_mask"),
    "mpdd": ("tubes", "train/good/{i}", "test/good/{i}", "test/{kind}/{i}", "ground_truth/{kind}/{i}_mask"),
    "btad": ("01", "train/ok/{i}", "test/ok/{i}", "test/ko/{i}", "ground_truth/ko/{i}"),
    "visa": ("candle", *["Data/Images/Normal/{i}"] * 2, "Data/Images/Anomaly/{i}", "Data/Masks/Anomaly/{i}"),
    "mvtec_loco": ("pushpins", "train/good/{i}", "test/good/{i}", "test/{kind}/{i}", "ground_truth/{kind}/{i}/000"),
    "mvtec_3d": ("bagel", "train/good/rgb/{i}", "test/good/rgb/{i}", "test/{kind}/rgb/{i}", "test/{kind}/gt/{i}"),
    "folder": ("plate", "good/train{i}", "fine/{i}", "bad/{kind}/{i}", "masks/{kind}/{i}"),  # plain folders
}
OBLONG = {"resize": "aspect"}  # as in the laptop profile
# What differs from six training images, three good ones and three with a hole to test on, all with masks.
SHAPES = {
    "one kind": {},
    "eleven kinds": {"kinds": {f"kind {i:02d}": 1 for i in range(11)}},
    "one test image": {"good": 0, "kinds": {"hole": 1}},
    "one test image a side": {"good": 1, "kinds": {"hole": 1}},
    "no good test image": {"good": 0},
    "no defect": {"kinds": {}},
    "no masks": {"masked": 0},
    "masks for some": {"masked": 1},
    "one training image": {"train": 1},
    "two training images": {"train": 2},
    "three training images": {"train": 3},
    "eight training images": {"train": 8},
    "grey": {"stored": lambda image: image[..., 0]},
    "16 bit": {"stored": lambda image: image[..., 0].astype(np.uint16) * 257},
    "RGBA": {"stored": lambda image: np.dstack([image, np.full(image.shape[:2], 200, np.uint8)])},
    "wide": {"sizes": [(32, 128)], "settings": OBLONG},
    "tall": {"sizes": [(128, 32)], "settings": OBLONG},
    "mixed sizes": {"sizes": [(64, 64), (48, 80), (80, 48)], "settings": OBLONG},
    "VisA": {"dataset": "visa"},
    "BTAD": {"dataset": "btad"},
    "LOCO": {"dataset": "mvtec_loco", "kinds": {"logical_anomalies": 3}},  # without the structural ones
    "3D": {"dataset": "mvtec_3d"},
    "MPDD": {"dataset": "mpdd"},
    "folder": {"dataset": "folder"},
}
WHOLE = ("no masks", "eight training images")  # shapes on which the stories run, too
# What a method cannot do, in a line that comes before its fit; all other cells are records.
ONE = "1 normal training image; {}: give at least 2"
REFUSED = {
    ("ulsad", "one training image"): ONE.format("ulsad normalises over the images of a batch"),
    ("contrastive", "one training image"): ONE.format("contrastive learns from pairs of images"),
}
# What `data check` says of a shape, before anything is fitted.
NO_GOOD, FEW, NO_MASK = "no good test image", "fewer than 4 normal training images", "defective image without mask"
SAID = {"one test image": {NO_GOOD}, "no good test image": {NO_GOOD}, "no defect": {"no defective test image"}}
SAID |= {f"{number} training image{s}": {FEW} for number, s in (("one", ""), ("two", "s"), ("three", "s"))}
SAID |= {"no masks": {NO_MASK}, "masks for some": {NO_MASK}}
TRAINED = ("glass", "ulsad", "dfr", "contrastive", "pagmfr", "draem")  # without a threshold below four images
FEW_STEPS = {"snapshot_every": 0, "bank": 4}
EPISODES = {"steps": 2, "episodes": 1, "pool": [4, 2], "shots": [1, 2]}


def tiny(method: str, more: dict | None = None) -> dict:
    """Settings that make a notebook small, with the usual share of held-out images."""
    known = methods.get(method).Settings.__dataclass_fields__
    changes = {"hold_out": 0.15} | FEW_STEPS | (EPISODES if "shots" in known else {}) | (more or {})
    return SMALL_SETTINGS[method] | {key: value for key, value in changes.items() if key in known}


def write_tree(root: Path, *, dataset="own", train=6, good=3, kinds=None, masked=99, sizes=((64, 64),), stored=None):
    """Write a category; the first `masked` defective images of each kind have masks. Return data set and category."""
    rng = np.random.default_rng(0)
    category, *places = PLACES[dataset]
    base = root if dataset == "folder" else root / category
    stored, count, listed = stored or (lambda image: image), 0, []

    def write(place, split="train", kind="good", masks=False):
        nonlocal count
        height, width = sizes[count % len(sizes)]
        image, mask = texture(rng, height, width), np.zeros((height, width), np.uint8)
        if kind != "good":
            top, left = rng.integers(4, height - 20), rng.integers(4, width - 20)
            image[top : top + 16, left : left + 16] = rng.integers(0, 255, (16, 16, 3))
            mask[top : top + 16, left : left + 16] = 3 if dataset == "visa" else 255
        name = {"kind": kind, "i": f"{count:03d}"}
        count += 1
        file = Path(write_image(base / f"{place.format(**name)}.png", stored(image)))
        mask_file = base / f"{places[3].format(**name)}.png"
        if masks:
            write_image(mask_file, mask)
        label = "normal" if kind == "good" else "anomaly"
        parts = [str(f.relative_to(root)) if f else "" for f in (file, mask_file if masks else None)]
        listed.append(",".join([category, split, label, *parts]))

    for _ in range(train):
        write(places[0])
    for _ in range(good):
        write(places[1], "test")
    for kind, n in ({"hole": 3} if kinds is None else kinds).items():
        for i in range(n):
            write(places[2], "test", kind, i < masked)
    if dataset == "mvtec_loco":
        for i in range(2):
            write_image(base / f"validation/good/{i}.png", texture(rng))
    if dataset == "visa":
        (root / "split_csv").mkdir()
        (root / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *listed]))
    return (root.name if dataset == "own" else dataset), category


def written(folder: Path, shape: str) -> dict:
    """Write the data of a shape below a folder; the parameters of a notebook that name them."""
    root = folder / shape.replace(" ", "_")
    if not root.is_dir():
        root.mkdir()
        write_tree(root, **{key: value for key, value in SHAPES[shape].items() if key != "settings"})
    dataset = SHAPES[shape].get("dataset", "own")
    name = root.name if dataset == "own" else dataset
    return {"dataset": name, "data_root": str(root), "category": PLACES[dataset][0]}


def check_record(record: dict, method: str, shape: str) -> None:
    """Compare a record with what the shape of the data allows: numbers of images, and which values are missing."""
    what = SHAPES[shape]
    n_train, good, bad = what.get("train", 6), what.get("good", 3), sum(what.get("kinds", {"hole": 3}).values())
    threshold = n_train > 3 if method in TRAINED else n_train > 1
    there = {"threshold": threshold, "image_auroc": good and bad, "pixel_auroc": bad and what.get("masked", 1)}
    there |= {"false_alarm_rate": good and threshold, "detection_rate": bad and threshold}
    n_images = {"train": n_train, "test_normal": good, "test_anomalous": bad}
    assert {key: record["n_images"][key] for key in n_images} == n_images
    values = record["metrics"] | (record["at_threshold"] or {}) | {"threshold": record["threshold"]}
    assert {key: values.get(key) is not None for key in there} == {key: bool(there[key]) for key in there}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ADLIB_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(backbones, "create", shared_backbone)
    monkeypatch.setattr(runs, "git_commit", lambda: None)


create = backbones.create
cached = functools.cache(lambda name, stages, *rest: create(name, stages, *rest))


def shared_backbone(name, stages, weights="auto", image_size=None, fold=True):
    """One backbone for all cells of a process: loading it takes longer than most fits here."""
    return cached(name, tuple(stages), weights, image_size, fold)


def run_cells(monkeypatch, data, tmp_path, method, shape, story):
    """Run a notebook's cells on a shape and check its record; return what was printed."""
    where = written(data, shape)
    if where["dataset"] == "folder":
        root = Path(where["data_root"])
        table = datasets.load_folder(root / "good", root / "bad", root / "masks", root / "fine", category="plate")
        load = datasets.load  # plain folders have no layout, the demo data that some stories show have
        monkeypatch.setattr(datasets, "load", lambda at, *rest: table.copy() if at == "folder" else load(at, *rest))
    out = tmp_path / "run"
    settings = tiny(method, SHAPES[shape].get("settings"))
    _, printed = cells.run(METHODS[method].notebook, {**where, "settings": settings, "out_dir": str(out)}, story)
    record = runs.read_record(out)
    assert len(pd.read_csv(out / "scores.csv")) == sum(record["n_images"].values()) - record["n_images"]["train"]
    check_record(record, method, shape)
    return printed


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "folder"])
def test_data_check_says_what_is_missing_and_nothing_else(data, shape):
    found = {problem.kind for problem in datasets.check(*written(data, shape).values())}
    assert found - {"counts differ from the published ones"} == SAID.get(shape, set())


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in WHOLE])
@pytest.mark.parametrize("method", METHODS)
def test_a_record_or_one_line_before_the_fit(monkeypatch, data, tmp_path, method, shape):
    if (line := REFUSED.get((method, shape))) is None:
        run_cells(monkeypatch, data, tmp_path, method, shape, story=False)
        return
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("the training began"))
    with pytest.raises(InputError) as caught:
        run_cells(monkeypatch, data, tmp_path, method, shape, story=False)
    assert str(caught.value) == line


@pytest.mark.parametrize("shape", WHOLE)
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_notebook(monkeypatch, data, tmp_path, method, shape):
    run_cells(monkeypatch, data, tmp_path, method, shape, story=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_settings_come_to_a_record(monkeypatch, data, tmp_path, method):
    """One step with random weights and a batch of two; for DRAEM 64 pixels: a step at 256 takes 13 s per image."""
    monkeypatch.setenv("ADLIB_DATA", str(tmp_path))
    for i in range(4):
        write_image(tmp_path / f"dtd/images/{i}.png", texture(np.random.default_rng(i)))
    few = {**gpu_check.LESS, "steps": 1, "batch_size": 2, "episodes": 1, "snapshot_every": 1}
    few |= {"image_size": 64} if method == "draem" else {}
    known = methods.get(method).Settings.__dataclass_fields__
    few = {key: few[key] for key in known if key in few.keys() - {"textures", "selection"}}
    where = {
        "profile": "paper",
        **written(data, "eight training images"),
        "settings": few,
        "out_dir": str(tmp_path / "run"),
    }
    cells.run(METHODS[method].notebook, where, story=False)
    record = runs.read_record(tmp_path / "run")
    expected = profiles.method_settings("paper", method, few)
    assert {key: record["parameters"][key] for key in expected} == expected
    assert record["metrics"]["aupro_30"] is not None
