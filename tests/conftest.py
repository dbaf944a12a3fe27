"""Fixtures that several test files share: small images on disk, a small sample table, golden files."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from adlib.errors import InputError
from adlib.images import Resize, batches

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
GOLDEN = Path(__file__).parent / "golden"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Mark the tests that compare with golden values, so that they can be run alone as other processors compute."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")


@pytest.fixture
def golden():
    """Return a reader of golden files: golden("patchcore/embed_a_square")."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images for development; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real development images are not on this machine")
    return SHARED_DATA


def refused(said: str, call, *arguments, **options) -> None:
    """Hold that a call ends in an InputError: one line, in which the pattern `said` is found."""
    with pytest.raises(InputError, match=said) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)


def full_disk(*_arguments, **_options):
    raise OSError(28, "No space left on device")


def write_image(path, pixels) -> str:
    """Write uint8 pixels as an image file and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def texture(rng, height=64, width=64) -> np.ndarray:
    """A plain normal image: grey noise on a gradient."""
    base = np.linspace(90, 150, width)[None, :, None] + rng.normal(0, 6, (height, width, 1))
    return np.repeat(base, 3, axis=2).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """An MVTec-shaped category "plate": 6 training images, 3 good and 4 defective test images with exact masks."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(6):
        write_image(root / f"plate/train/good/{i:03d}.png", texture(rng))
    for i in range(3):
        write_image(root / f"plate/test/good/{i:03d}.png", texture(rng))
    for i in range(4):
        image, mask = texture(rng), np.zeros((64, 64), np.uint8)
        top, left = rng.integers(8, 36, 2)
        image[top : top + 16, left : left + 16] = rng.integers(0, 255, (16, 16, 3))
        mask[top : top + 16, left : left + 16] = 255
        write_image(root / f"plate/test/hole/{i:03d}.png", image)
        write_image(root / f"plate/ground_truth/hole/{i:03d}_mask.png", mask)
    return root


def sample_table(root, category="plate") -> pd.DataFrame:
    """The sample table of `small_tree`, built without adlib.datasets."""
    rows = []
    for path in sorted((Path(root) / category).glob("t*/*/*.png")):
        split, defect = path.parts[-3:-1]
        mask = Path(root) / category / "ground_truth" / defect / f"{path.stem}_mask.png"
        where = {"image_path": str(path), "mask_path": str(mask) if mask.exists() else None}
        rows.append(where | {"label": int(defect != "good"), "defect": defect, "split": split, "category": category})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def small_table(small_tree):
    """The sample table of `small_tree`."""
    return sample_table(small_tree)


@pytest.fixture(scope="session")
def train(small_table):
    """The training images of `small_table`."""
    return small_table[small_table.split == "train"]


@pytest.fixture(scope="session")
def test_rows(small_table):
    """The test images of `small_table`: three good ones, then four with a hole."""
    return small_table[small_table.split == "test"]


@pytest.fixture(scope="session")
def test_batch(test_rows):
    """All test images of `small_table`, as a method with the settings below takes them."""
    return next(batches(test_rows.image_path, Resize(64), len(test_rows)))


# A record of a run, but for its place (method, dataset, category, profile, seed) and its metrics.
RECORD = {
    "parameters": {"resize": "stretch", "image_size": 256, "backbone": "tf_efficientnet_lite0"},
    "protocol": {"resolution": "input", "image_size": 256, "selection": "none"}, "threshold": None,
    "n_images": {"train": 10, "test_normal": 3, "test_anomalous": 3}, "peak_memory_mib": 3.0, "at_threshold": None,
    "timing": {"fit_s": 1.0, "score_ms_per_image": 2.0}, "git_commit": None, "table_hash": "a", "content_hash": "b",
    "notebook": "", "created": "", "device": "", "versions": {},
}  # fmt: skip
TINY = {"image_size": 64, "resize": "stretch", "backbone": "tf_efficientnet_lite0"}
# Settings that make each method small enough for a test, by method name.
SMALL_SETTINGS = {
    "patchcore": TINY | {"embedding_dim": None, "coreset": 0.25},
    "glass": TINY | {"embedding_dim": None, "hidden": 16, "batch_size": 2, "steps": 4},
    "few_shot": TINY | {"k": 2},
    "padim": TINY | {"stages": [2], "d": 20, "hold_out": 0.34},
    "spade": TINY | {"stages": [2, 3], "hold_out": 0.34},
    "ulsad": TINY | {"channels": 24, "steps": 2, "batch_size": 4, "whiten": "both", "position_wise": "on"},
    "dfr": TINY | {"stages": [2, 3], "map_size": 32, "steps": 2},
    "contrastive": TINY | {"stages": [2, 3], "width": 8, "steps": 3, "episodes": 2, "pool": [4, 2], "hold_out": 0.34},
    "unified": TINY | {"k": 2, "drawn_products": 2},
    "pagmfr": TINY | {
        "stages": [1, 2], "width": 8, "blocks": 1, "fusion_width": 8, "image_stride": 2,
        "batch_size": 4, "steps": 2, "hold_out": 0.34,
    },
    "draem": {"image_size": 64, "width": 4, "width_discriminator": 4, "batch_size": 4, "steps": 2},
}  # fmt: skip
