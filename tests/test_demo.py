"""The demo data: same seed, same bytes; exact masks; no test pixel in training; safe to ask for twice at once."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from conftest import refused

from adlib import datasets
from adlib.datasets import demo, loco
from adlib.datasets.demo import scenes as demo_scenes
from adlib.images import read_image, read_mask

KINDS = [(category, kind) for category, kinds in demo_scenes.DEFECTS.items() for kind in kinds]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Trees of a few images, made in a moment."""
    for name, number in (("TRAIN", 2), ("TEST_GOOD", 2), ("PER_DEFECT", 1)):
        monkeypatch.setattr(demo, name, number)
    monkeypatch.setenv("ADLIB_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def two_categories(small, monkeypatch):
    """The same, for tests of files and not of pictures: one texture and the tray."""
    monkeypatch.setattr(demo_scenes, "DEFECTS", {name: demo_scenes.DEFECTS[name] for name in ("brick", "tray")})
    return small


def tree_hash(root):
    digest = hashlib.blake2b()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def draw(category, kind, i, strength):
    """A picture and the same scene without its defect."""
    pair = []
    for defect in (kind, None):
        scene_rng, defect_rng = np.random.default_rng([i, 0]), np.random.default_rng([i, 1])
        pair.append(demo_scenes.scene(category, "test", scene_rng, defect, strength, defect_rng))
    (image, mask), (twin, nothing) = pair
    assert not nothing.any()
    return image, twin, mask


# -- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "kind"), KINDS)
def test_masks_are_exact(category, kind):
    """The defect changes what the mask covers, and nothing further away than the lens and a shadow's edge reach."""
    for i, strength in enumerate((0.15, 0.6, 1.0)):
        image, twin, mask = draw(category, kind, i, strength)
        changed = np.abs(image.astype(int) - twin).max(axis=2)
        reach = {"break": 8, "dent": 5}.get(kind, 3)  # the shadow of a lost tooth, the bevel at a dent's edge
        near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1,) * 2)).astype(bool)
        assert 4 <= mask.sum() < 0.2 * mask.size
        assert (changed[~near] > 3).sum() == 0
        assert (changed[mask] > 3).mean() > 0.4


@pytest.mark.parametrize(("category", "kind"), [pair for pair in KINDS if demo.KIND[pair[1]] == "structural"])
def test_strength_grades_the_surface_defects(category, kind):
    # A part is missing or it is not: logical defects have no strength.
    def energy(strength):
        pairs = [draw(category, kind, i, strength)[:2] for i in range(2)]
        return sum(np.abs(image.astype(float) - twin).sum() for image, twin in pairs)

    assert energy(0.15) < energy(0.5) < energy(1.0)


@pytest.mark.parametrize("category", demo_scenes.TEXTURES)
def test_no_test_pixel_was_in_training(category, monkeypatch):
    columns = np.broadcast_to(np.arange(512, dtype=np.float32), (512, 512))  # a photograph of its column numbers
    monkeypatch.setattr(demo_scenes, "_photo", lambda name: columns)
    monkeypatch.setitem(demo_scenes.TINTS, category, ((0, 0, 0), (1, 1, 1)))
    seen = {}
    for split in ("train", "test"):
        crops = [demo_scenes.texture(category, split, np.random.default_rng(i)) for i in range(30)]
        seen[split] = set(np.unique(crops).tolist())
    assert seen["train"].isdisjoint(seen["test"])
    assert len(seen["train"] | seen["test"]) > 400


def count_pins(image):
    """Count the pins of each colour in each well by their saturated pixels."""
    pixels = image.astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    colours = ((red - green > 70) & (red - blue > 60), (red - blue > 90) & (green - blue > 50), (blue - red > 70))
    counts = np.zeros((6, 3), int)
    for colour, where in enumerate(colours):
        where = cv2.morphologyEx(where.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
        _, _, stats, centres = cv2.connectedComponentsWithStats(where)
        for area, (x, y) in zip(stats[1:, cv2.CC_STAT_AREA], centres[1:], strict=True):
            if area >= 20:
                inside = [left <= x < left + w and top <= y < top + h for left, top, w, h in demo_scenes.WELLS]
                counts[inside.index(True), colour] += 1
    return counts


@pytest.mark.parametrize("i", range(5))
def test_trays_keep_or_break_their_rule(i):
    rule = np.concatenate([np.diag([1, 2, 3]), np.diag([3, 2, 1])])
    for kind, expected in ((None, []), ("missing", [-1]), ("surplus", [1]), ("misplaced", [-1, 1])):
        difference = count_pins(draw("tray", kind, i, 1.0)[0]) - rule
        assert sorted(difference[difference != 0]) == expected, kind
    wells, colours = np.nonzero(difference)  # of the misplaced pin
    assert colours[0] == colours[1]
    assert wells[0] % 3 != wells[1] % 3


# -- files ------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(two_categories):
    first, second, other = (demo.generate(two_categories / name, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert tree_hash(first) == tree_hash(second)
    assert tree_hash(first) != tree_hash(other)
    assert json.loads((first / demo.STAMP).read_text()) == {"seed": 3, "version": demo.VERSION}


def test_load_generates_once(small):
    assert datasets.categories("demo") == ["brick", "gear", "grass", "gravel", "tray"]
    assert not (small / "data").exists()
    table = datasets.load("demo", category="tray")
    assert table.groupby(["split", "label"]).size().to_dict() == {("train", 0): 2, ("test", 0): 2, ("test", 1): 5}
    before = (small / "data/demo" / demo.STAMP).stat().st_mtime_ns
    assert datasets.load("demo", category="tray").equals(table)
    assert len(datasets.load("demo", small / "data")) == 2 * 5 + 2 * 5 + len(KINDS)  # the folder above will do
    assert (small / "data/demo" / demo.STAMP).stat().st_mtime_ns == before
    assert [p.name for p in (small / "data").iterdir() if not p.name.endswith(".lock")] == ["demo"]
    assert [p.kind for p in datasets.check("demo", small / "data/demo")] == ["fewer than 4 normal training images"]
    assert set(table.defect) == {"good", *demo_scenes.DEFECTS["tray"]}


def test_images_and_masks_on_disk(small):
    table = datasets.load("demo")
    for row in table.itertuples():
        assert read_image(row.image_path).shape == (160, 160, 3)
        assert (row.mask_path is not None) == (row.label == 1)
        if row.mask_path:
            mask = read_mask(row.mask_path)
            assert (mask.shape, mask.any()) == ((160, 160), True)
    logical = table[table.defect == "misplaced"].iloc[0]
    ((mask, area, name),) = loco.regions(logical.mask_path, small / "data/demo/tray/defects_config.json")
    assert (name, area) == ("misplaced", int(mask.sum()) // 2)
    assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 3  # background and two places


def test_an_old_version_is_made_anew_and_foreign_files_are_kept(two_categories, monkeypatch):
    root = demo.generate(two_categories / "demo", 5)
    bytes_before = tree_hash(root)
    (root / "brick/train/good/000.png").unlink()
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    assert json.loads((demo.generate(root) / demo.STAMP).read_text()) == {"seed": 5, "version": demo.VERSION}
    (root / demo.STAMP).write_text(json.dumps({"seed": 5, "version": demo.VERSION - 1}) + "\n")
    assert tree_hash(root) == bytes_before
    (two_categories / "own").mkdir()
    (two_categories / "own/notes.txt").write_text("mine")
    refused("holds other files", demo.generate, two_categories / "own")
    assert (two_categories / "own/notes.txt").read_text() == "mine"


def test_a_failure_leaves_no_half_tree(small, monkeypatch):
    monkeypatch.setattr(demo, "_save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    refused("demo: the disk is full", demo.generate, small / "demo")
    assert [p.name for p in small.iterdir()] == [".demo.lock"]


def test_two_requests_at_once(two_categories):
    """Threads stand for processes here: the lock belongs to the opened file, so they exclude each other as well."""
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(demo.generate, [two_categories / "demo"] * 2))
    assert roots[0] == roots[1]
    assert len(demo.rows(roots[0], "brick")) == 2 + 2 + 4
    assert sorted(p.name for p in two_categories.iterdir()) == [".demo.lock", "demo"]


def test_every_kind_has_a_nature():
    assert set(demo.KIND) == {kind for _, kind in KINDS}
    assert {demo.KIND[kind] for kind in demo_scenes.DEFECTS["tray"]} == {"logical", "structural"}
