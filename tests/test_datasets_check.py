"""The validation of a tree: one broken thing at a time, each named with its file."""

import re
import shutil

import numpy as np
import pytest
from conftest import refused, texture, write_image

from adlib import datasets
from adlib.errors import InputError


@pytest.fixture
def tree(small_tree, tmp_path):
    """A sound copy of the small tree that a test may break."""
    return shutil.copytree(small_tree, tmp_path / "data") / "plate"


def problems(tree, category="plate", layout="mvtec"):
    return {p.kind: p for p in datasets.check(layout, tree.parent, category)}


def test_masks_that_belong_to_none_to_two_or_are_misnamed(tree):
    masks, image = tree / "ground_truth/hole", tree / "test/hole/001.png"
    shutil.copy(masks / "000_mask.png", masks / "left_over_mask.png")
    shutil.copy(tree / "test/hole/002.png", tree / "test/hole/002.jpg")
    (masks / "001_mask.png").unlink()
    (masks / "003_mask.png").rename(masks / "03_mask.png")
    (tree / "train/good/notes.txt").touch()
    found = {kind: problem.examples[0] for kind, problem in problems(tree).items()}
    assert found == {
        "mask of two images": f"{tree}/test/hole/002.png: its mask {masks}/002_mask.png is that of "
        f"{tree}/test/hole/002.jpg as well",
        "defective image without mask": str(image),
        "mask without image": str(masks / "left_over_mask.png"),
        "mask is not named like its image": f"{tree}/test/hole/003.png and {masks}/03_mask.png",
        "file that is not read": f"{tree}/train/good/notes.txt",
    }
    refused(r"002\.png: its mask .* is that of .*002\.jpg as well; rename one of", datasets.load, "mvtec", tree.parent)


@pytest.mark.parametrize("name", ["test/ok", "test/Good", "test/good ", "train/normal", "Train", "train"])
def test_folders_that_are_most_likely_meant_as_others_are_named(tree, name):
    (tree / ("test" if name[:4] == "test" else "train") / "good").rename(tree / "moved")
    if name == "train":
        (tree / "train").rmdir()
    (tree / "moved").rename(tree / name)
    refused(f"plate/{name}: (this folder|images lie in)", datasets.load, "mvtec", tree.parent)
    shutil.rmtree(tree / "test")  # no folder is left by which the layout is recognised
    if not name.startswith("test"):
        refused(f"no known layout; .*plate/{name}: (this folder|images lie in)", datasets.guess_dataset, tree.parent)


def test_size_and_content_of_masks(tree):
    write_image(tree / "ground_truth/hole/000_mask.png", np.full((64, 32), 255, np.uint8))
    write_image(tree / "ground_truth/hole/001_mask.png", np.zeros((64, 64), np.uint8))
    (tree / "ground_truth/hole/002_mask.png").write_bytes(b"no image")
    write_image(tree / "ground_truth/hole/003_mask.png", np.full((64, 64), 100, np.uint8))
    found = problems(tree)
    inverted = "mask covers more than nine tenths of its image (inverted?)"
    assert set(found) == {"mask and image differ in size", "black mask of a defective image", "unusable mask", inverted}
    kinds = ["mask and image differ in size", inverted, "black mask of a defective image", *["unusable mask"] * 2]
    said = ("000_mask.png is 32 x 64", "000_mask.png", "001_mask.png", "002_mask.png")
    said += ("003_mask.png: mask is not black, but nothing in it is above",)
    for kind, place, text in zip(kinds, (0, 0, 0, 0, 1), said, strict=True):
        assert text in found[kind].examples[place]


@pytest.mark.parametrize(
    ("gone", "line"),
    [
        (["test/good/*"], "no good test image: image metrics and the rate of false alarms are undefined"),
        (["*/hole/*"], "no defective test image: only the rate of false alarms can be measured"),
        (["*/hole/*", "test/good/*"], "no test image: nothing can be measured"),
        (["train/good/00[0-2]*"], "fewer than 4 normal training images: most methods cannot hold out the 2 that a "),
        (["train/good/*"], "no normal training image: nothing can be fitted"),
        (["ground_truth/hole/000*"], "1 of 4 defective images have no mask: pixel metrics leave them out"),
        (["ground_truth/hole/*"], "no masks of defective images: pixel metrics are undefined"),
    ],
)
def test_what_the_evaluation_lacks_is_told_before_and_by_the_check(tree, gone, line):
    assert datasets.missing_for_evaluation(datasets.load("mvtec", tree.parent, "plate")) == []
    for file in [file for pattern in gone for file in tree.glob(pattern)]:
        file.unlink()
    (found,) = datasets.missing_for_evaluation(datasets.load("mvtec", tree.parent, "plate"))
    assert found.startswith(line)
    kind = "defective image without mask" if "ground_truth" in gone[0] else line.split(":")[0]
    assert set(problems(tree)) == {kind}


def test_black_masks_are_told_before(tree):
    write_image(tree / "ground_truth/hole/001_mask.png", np.zeros((64, 64), np.uint8))
    (found,) = datasets.missing_for_evaluation(datasets.load("mvtec", tree.parent, "plate"))
    assert found == "1 of 4 defective images have a black mask: pixel metrics leave them out"
    write_image(tree / "ground_truth/hole/001_mask.png", np.eye(64, 65, dtype=np.uint8) * 255)
    with pytest.raises(InputError, match=r"001_mask\.png: mask is \(64, 65\), its image is \(64, 64\)"):
        datasets.missing_for_evaluation(datasets.load("mvtec", tree.parent, "plate"))


def test_unreadable_images_are_counted_and_a_few_named(tree):
    for i in range(5):
        (tree / f"train/good/{i:03d}.png").write_bytes(b"\x89PNG broken")
    found = problems(tree)["unreadable image"]
    assert (found.count, len(found.examples)) == (5, 3)
    assert re.fullmatch(r"unreadable image \(5\): .* and 2 more", str(found))


def test_a_sound_tree_has_no_problem_and_an_image_in_training_and_test_is_one(tree):
    assert datasets.check("mvtec", tree.parent) == datasets.check("mvtec", tree, "plate") == []
    shutil.copy(tree / "train/good/002.png", tree / "test/good/renamed.png")
    (found,) = datasets.check("mvtec", tree.parent)
    assert found.kind == "same image in two splits"
    assert found.examples == (f"{tree / 'train/good/002.png'} and {tree / 'test/good/renamed.png'}",)


def test_empty_categories(tree):
    (tree.parent / "nothing").mkdir()
    (tree.parent / "hollow/train/good").mkdir(parents=True)
    write_image(tree.parent / "untested/train/good/0.png", texture(np.random.default_rng(9)))
    found = problems(tree, None)
    few = "fewer than 4 normal training images"
    assert set(found) == {"empty category", "unusable category", "no test image", few}
    assert found["empty category"].examples == (str(tree.parent / "nothing"),)
    assert "hollow holds no image" in found["unusable category"].examples[0]
    assert found["no test image"].examples == ("untested: nothing can be measured",)


def test_counts_of_a_known_data_set(tree):
    tree.rename(tree.with_name("screw"))
    (found,) = datasets.check("mvtec_ad", tree.parent, "screw")
    assert found.examples == ("screw: train, test normal, test anomalous 6, 3, 4 instead of 320, 41, 119",)


def test_loco_regions_are_checked_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/good/0", "train/good/1", "train/good/2", "train/good/3", "validation/good/0", "test/good/0"):
        write_image(tmp_path / f"pins/{name}.png", texture(rng))
    write_image(tmp_path / "pins/test/logical_anomalies/0.png", texture(rng))
    folder = tmp_path / "pins/ground_truth/logical_anomalies"
    write_image(folder / "0/000.png", np.eye(64, dtype=np.uint8))
    assert datasets.check("mvtec_loco", tmp_path) == []
    write_image(folder / "0/001.png", np.eye(32, 64, dtype=np.uint8))
    write_image(folder / "7/000.png", np.eye(64, dtype=np.uint8))
    found = problems(tmp_path / "pins", "pins", "mvtec_loco")
    assert set(found) == {"mask and image differ in size", "mask without image"}
    assert "0/001.png is 64 x 32" in found["mask and image differ in size"].examples[0]
    assert found["mask without image"].examples == (str(folder / "7"),)
