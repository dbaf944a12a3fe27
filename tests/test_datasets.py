"""Layouts on small trees: what is found, how it is paired, and what is said when something is missing."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused, texture, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from adlib import datasets, runs
from adlib.datasets import elpv, loco
from adlib.datasets.table import COLUMNS, make_table, sample
from adlib.errors import InputError

RNG = np.random.default_rng(0)


def image(path, size=8, mask=None):
    """Write a small image, or a mask of one grey value with a square of it."""
    if mask is None:
        return write_image(path, texture(RNG, size, size))
    pixels = np.zeros((size, size), np.uint8)
    pixels[2:5, 2:5] = mask
    return write_image(path, pixels)


def summary(table):
    """Split, defect, image and mask name of each row: enough to see the pairing."""
    rows = zip(table.split, table.defect, table.label, table.image_path, table.mask_path, strict=True)
    return [(*what, Path(image).name, mask and Path(mask).name) for *what, image, mask in rows]


def good(**names):
    """What `summary` has for good images of these names, by split."""
    return [(split, "good", 0, name, None) for split, group in names.items() for name in group]


GOOD = good(train=("000.png",), validation=("000.png",), test=("000.png",))


# -- MVTec layout -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mvtec_tree(tmp_path):
    root = tmp_path / "parts"
    for name in ("train/good/001.png", "train/good/000.JPG", "test/good/000.jpg"):
        image(root / "bolt" / name)
    for name, mask in (("a", "a_mask"), ("b", "b")):
        image(root / f"bolt/test/crack/{name}.jpg")
        image(root / f"bolt/ground_truth/crack/{mask}.png", mask=255)
    for split in ("train", "test"):
        image(root / f"anchor/{split}/good/0.png")
    return root


def test_mvtec_layout(mvtec_tree):
    table = datasets.load("mvtec", mvtec_tree, "bolt")
    assert (list(table.columns), table.attrs) == ([*COLUMNS, "mask_threshold"], {"dataset": "mvtec"})
    cracks = [("test", "crack", 1, image, mask) for image, mask in (("a.jpg", "a_mask.png"), ("b.jpg", "b.png"))]
    assert summary(table) == [*good(train=("000.JPG", "001.png"), test=("000.jpg",)), *cracks]
    assert table.mask_threshold.to_dict() == dict.fromkeys(range(5), 127)
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in table.image_path)
    assert [mask is not None and mask.sum() for mask in datasets.masks(table)] == [0, 0, 0, 9, 9]


def test_categories_and_every_way_to_name_the_root(mvtec_tree, monkeypatch):
    assert datasets.categories("mvtec", mvtec_tree) == ["anchor", "bolt"]
    table = datasets.load("magnetic_tile", mvtec_tree)  # a data set of the same layout
    assert table.category.tolist() == ["anchor"] * 2 + ["bolt"] * 5
    expected = datasets.load("mvtec", mvtec_tree, "bolt")
    monkeypatch.chdir(mvtec_tree / "anchor")
    roots = {"mvtec": ["..", mvtec_tree / "bolt"], "parts": [mvtec_tree, mvtec_tree / "bolt", mvtec_tree.parent]}
    for dataset, root in ((key, root) for key, places in roots.items() for root in places):  # own data: their folder's
        assert datasets.load(dataset, root, "bolt").equals(expected)
    mvtec_tree.rename(mvtec_tree.with_name("mpdd"))
    assert len(datasets.load("mpdd", mvtec_tree.parent, "bolt")) == len(expected)


@pytest.fixture
def mad_tree(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_DATA", str(tmp_path / "empty"))
    for person in ("Person_1", "Person_2", "Person_6"):
        image(tmp_path / f"mad_man/{person}/bottle/test/good/0.png")
        image(tmp_path / f"mad_man/{person}/bottle/test/faint/1.png")
        image(tmp_path / f"mad_man/{person}/bottle/ground_truth/faint/1_mask.png", mask=255)
    image(tmp_path / "mad_man/Person_2/wood/test/faint/1.png")
    return tmp_path / "mad_man"


def test_a_test_set_without_training_images_loads_but_is_not_discovered(mad_tree):
    assert datasets.load("mad_man", mad_tree / "Person_1", "bottle").label.tolist() == [0, 1]
    assert datasets.discover(mad_tree) == datasets.discover(mad_tree.parent) == []
    run = {"notebook": "", "profile": "smoke", "data_root": mad_tree, "seed": 0}
    said = "mad_man/bottle has no normal training image; expected some in mvtec_ad/bo"
    refused(said, runs.Run, "glass", dataset="mad_man", category="bottle", **run)


def test_mad_takes_the_training_images_of_mvtec_ad_beside_it(mad_tree):
    image(mad_tree.parent / "mvtec_ad/bottle/train/good/000.png")
    image(mad_tree.parent / "mvtec_ad/bottle/test/good/000.png")
    train, good = ("train", "good", 0, "000.png", None), ("test", "good", 0, "0.png", None)
    faint = ("test", "faint", 1, "1.png", "1_mask.png")
    for root in (mad_tree / "Person_1", mad_tree / "Person_1/bottle"):
        assert summary(datasets.load("mad_man", root, "bottle")) == [train, good, faint]
    together = [train, good, ("test", "Person_1/faint", *faint[2:]), good, ("test", "Person_2/faint", *faint[2:])]
    for root in (mad_tree, mad_tree.parent):  # Person_6 is no part of it
        assert summary(datasets.load("mad_man", root, "bottle")) == together
    assert datasets.categories("mad_man", mad_tree) == ["bottle", "wood"]
    assert [datasets.guess_dataset(root) for root in (mad_tree, mad_tree / "Person_2")] == ["mad_man", "mad_man"]
    assert datasets.discover(mad_tree.parent) == [
        ("mad_man", "mvtec", mad_tree, ["bottle"]),
        ("mvtec_ad", "mvtec", mad_tree.parent / "mvtec_ad", ["bottle"]),
    ]
    assert datasets.discover(mad_tree) == [("mad_man", "mvtec", mad_tree, ["bottle"])]
    refused(r"'botle' is not in .* \(did you mean 'bottle'\?\)", datasets.load, "mad_man", mad_tree, "botle")
    kinds = [problem.kind for problem in datasets.check("mad_man", mad_tree, "bottle")]
    assert kinds == ["fewer than 4 normal training images"]


def test_mad_under_its_released_name(mad_tree):
    image(mad_tree.parent / "MAD-sys/Beta_0.1/wood/test/faint/1.png")
    assert datasets.guess_dataset(mad_tree.parent / "MAD-sys") == "mad_sys"
    assert datasets.load("mad_sys", mad_tree.parent / "MAD-sys").category.tolist() == ["wood"]
    image(mad_tree.parent / "MAD-sys/Beta_0.9/wood/test/faint/1.png")  # no part of the paper's
    own = mad_tree.parent / "MAD-sys/Beta_0.9"
    assert [datasets.guess_dataset(own), len(datasets.load("mad_sys", own, "wood"))] == ["mad_sys", 1]
    assert len(datasets.load("mad_sys", own.parent, "wood")) == 1


def test_a_category_without_defects_and_one_without_masks(mvtec_tree):
    assert datasets.load("mvtec", mvtec_tree, "anchor").label.tolist() == [0, 0]
    image(mvtec_tree / "anchor/test/bent/1.png")
    assert datasets.load("mvtec", mvtec_tree, "anchor").mask_path.tolist() == [None] * 3


def test_masks_for_some_defects_are_fine_but_misnamed_ones_are_not(mvtec_tree):
    mask = mvtec_tree / "bolt/ground_truth/crack/a_mask.png"
    mask.rename(mask.with_name("aa_mask.png"))
    said = r"crack/a\.jpg: no mask of this name, but .*crack/aa_mask\.png bel"
    refused(said, datasets.load, "mvtec", mvtec_tree, "bolt")
    mask.with_name("aa_mask.png").unlink()
    assert [row[4] for row in summary(datasets.load("mvtec", mvtec_tree, "bolt"))[3:]] == [None, "b.png"]


@pytest.mark.parametrize(
    ("name", "root", "category", "message"),
    [
        ("mvtec", "nowhere", None, "nowhere: no such folder"),
        ("mvtec", "parts", "bold", r"did you mean 'bolt'\?.*there are: anchor, bolt"),
        ("mvtec", "parts", "zzz", "'zzz' is not in .*there are: anchor, bolt"),
        ("mvtec", "empty", None, "holds no category"),
        ("mvtec", "hollow", None, "hollow/disc holds no image"),
        ("mvtce", "parts", None, "'mvtce' is unknown.*did you mean 'mvtec'"),
        ("dtd", "parts", None, "'dtd' holds textures"),
        ("mvtec", None, None, "needs a data root"),
        ("visa", None, None, "adlib data get visa"),
        ("demo", None, "brik", "did you mean 'brick'"),
    ],
)
def test_bad_input_is_named(mvtec_tree, monkeypatch, name, root, category, message):
    monkeypatch.setenv("ADLIB_DATA", str(mvtec_tree.parent / "data"))
    (mvtec_tree.parent / "empty").mkdir()
    (mvtec_tree.parent / "hollow/disc/train/good").mkdir(parents=True)
    refused(message, datasets.load, name, root and mvtec_tree.parent / root, category)
    assert not (mvtec_tree.parent / "data").exists()


# -- other layouts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def visa_tree(tmp_path):
    root = tmp_path / "VisA_20220922"
    lines = ["object,split,label,image,mask"]
    for split, name in (("train", "0000.JPG"), ("test", "0001.JPG")):
        image(root / f"candle/Data/Images/Normal/{name}")
        lines.append(f"candle,{split},normal,candle/Data/Images/Normal/{name},")
    image(root / "candle/Data/Images/Anomaly/000.JPG")
    image(root / "candle/Data/Masks/Anomaly/000.png", mask=3)
    lines.append("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png")
    lines.append("pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines))
    return root


def test_visa_raw(visa_tree):
    for root in (visa_tree, visa_tree / "candle"):
        table = datasets.load("visa", root, "candle")
        bad = ("test", "bad", 1, "000.JPG", "000.png")
        assert summary(table) == [*good(train=("0000.JPG",), test=("0001.JPG",)), bad]
    assert table.mask_threshold.tolist() == [0] * 3
    assert list(datasets.masks(table))[2].sum() == 9
    assert datasets.discover(visa_tree) == [("VisA_20220922", "visa", visa_tree, ["candle"])]
    assert len(datasets.load("VisA_20220922", visa_tree, "candle")) == 3


def test_visa_raw_errors(visa_tree):
    (visa_tree / "candle/Data/Masks/Anomaly/000.png").rename(visa_tree / "candle/Data/Masks/Anomaly/00.png")
    refused(r"Anomaly/000\.JPG: no mask", datasets.load, "visa", visa_tree, "candle")
    (visa_tree / "candle/Data/Masks/Anomaly/00.png").unlink()
    assert datasets.load("visa", visa_tree, "candle").mask_path.tolist() == [None] * 3
    (visa_tree / "candle/Data/Images/Normal/0001.JPG").unlink()
    refused(r"0001\.JPG: no such image", datasets.load, "visa", visa_tree, "candle")
    (visa_tree / "split_csv/1cls.csv").write_text("object,split\n")
    refused("no column 'image'", datasets.load, "visa", visa_tree, "candle")
    (visa_tree / "split_csv/1cls.csv").unlink()
    refused(r"1cls\.csv: no such file", datasets.load, "visa", visa_tree, "candle")


@pytest.mark.parametrize("inside", ["", "1cls/"])
def test_visa_prepared(tmp_path, inside):
    for name in ("train/good/0", "test/good/1", "test/bad/2"):
        image(tmp_path / f"{inside}candle/{name}.JPG")
    image(tmp_path / f"{inside}candle/ground_truth/bad/2.png", mask=1)
    table = datasets.load("visa", tmp_path)
    assert summary(table)[-1] == ("test", "bad", 1, "2.JPG", "2.png")
    assert table.mask_threshold.unique().tolist() == [0]
    assert datasets.categories("visa", tmp_path) == ["candle"]


def test_btad(tmp_path):
    for name in ("train/ok/0000", "test/ok/0001", "test/ko/0002"):
        image(tmp_path / f"01/{name}.bmp")
    image(tmp_path / "01/ground_truth/ko/0002.png", mask=255)
    bad = ("test", "ko", 1, "0002.bmp", "0002.png")
    assert summary(datasets.load("btad", tmp_path, "01")) == [*good(train=("0000.bmp",), test=("0001.bmp",)), bad]
    (tmp_path / "01/ground_truth/ko/0002.png").rename(tmp_path / "01/ground_truth/ko/2.png")
    refused(r"0002\.bmp: no mask", datasets.load, "btad", tmp_path, "01")


def test_mvtec_3d(tmp_path):
    for split in ("train", "validation"):
        image(tmp_path / f"bagel/{split}/good/rgb/000.png")
    for kind in ("good", "hole"):
        image(tmp_path / f"bagel/test/{kind}/rgb/000.png")
        image(tmp_path / f"bagel/test/{kind}/gt/000.png", mask=255 * (kind == "hole"))
    assert summary(datasets.load("mvtec_3d", tmp_path)) == [*GOOD, ("test", "hole", 1, "000.png", "000.png")]
    (found,) = datasets.check("mvtec_3d", tmp_path)  # the black masks of good images are no problem
    assert found.kind == "fewer than 4 normal training images"
    assert datasets.discover(tmp_path)[0][1] == "mvtec3d"


LOCO_CONFIG = [
    {"defect_name": "missing_pin", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "extra_pin", "pixel_value": 254, "saturation_threshold": 4, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 253, "saturation_threshold": 100, "relative_saturation": False},
    {"defect_name": "speck", "pixel_value": 252, "saturation_threshold": 0.01, "relative_saturation": True},
]


@pytest.fixture
def loco_tree(tmp_path):
    for split in ("train", "validation", "test"):
        image(tmp_path / f"pushpins/{split}/good/000.png")
    for kind in ("logical", "structural"):
        image(tmp_path / f"pushpins/test/{kind}_anomalies/000.png")
    folder = tmp_path / "pushpins/ground_truth"
    for i, value in enumerate((255, 254, 253, 252)):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[0:3, i : i + 3] = value  # the regions overlap: 9 pixels each, 18 together
        write_image(folder / f"logical_anomalies/000/{i:03d}.png", pixels)
    image(folder / "structural_anomalies/000/000.png", mask=253)
    (tmp_path / "pushpins/defects_config.json").write_text(json.dumps(LOCO_CONFIG))
    return tmp_path


def test_loco(loco_tree):
    table = datasets.load("mvtec_loco", loco_tree, "pushpins")
    kinds = ("logical_anomalies", "structural_anomalies")
    assert summary(table) == GOOD + [("test", kind, 1, "000.png", "000") for kind in kinds]
    assert table.mask_threshold.unique().tolist() == [0]
    assert list(datasets.masks(table))[3].sum() == 18
    assert datasets.discover(loco_tree)[0][1:] == ("loco", loco_tree, ["pushpins"])


def test_loco_regions_stay_apart(loco_tree):
    part = loco_tree / "pushpins"
    found = loco.regions(part / "ground_truth/logical_anomalies/000", part / "defects_config.json")
    # relative: floor(0.5 * 9); absolute: min(4, 9), min(100, 9); never below 1
    assert {name: area for _, area, name in found} == {"missing_pin": 4, "extra_pin": 4, "scratch": 9, "speck": 1}
    assert [(int(mask.sum()), mask.dtype) for mask, _, _ in found] == [(9, bool)] * 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("saturation_threshold", "a", "saturation_threshold 'a' of pixel value 254 must be a number of pixels above 0"),
        *(("saturation_threshold", v, f"saturation_threshold {v}") for v in (np.nan, np.inf, -3, 0, True, None)),
        ("pixel_value", [254], r"pixel_value \[254\] must be a grey value from 1 to 255"),
        ("pixel_value", 0, "pixel_value 0"),
        ("relative_saturation", "no", "relative_saturation 'no' of pixel value 254 must be true or false"),
        ("relative_saturation", True, "saturation_threshold 4 of pixel value 254 must be a share"),  # 4 of 1
    ],
)
def test_loco_entries_that_mean_nothing_are_named(tmp_path, field, value, message):
    file = tmp_path / "defects_config.json"
    file.write_text(json.dumps([LOCO_CONFIG[0], LOCO_CONFIG[1] | {field: value}]))
    refused(rf"defects_config\.json: {message}", loco.read_config, file)


def test_loco_configs_that_do_not_fit_are_named(loco_tree):
    mask, file = loco_tree / "pushpins/ground_truth/structural_anomalies/000", loco_tree / "defects.json"
    for config, message in (
        (json.dumps(LOCO_CONFIG[:2]), r"000\.png: pixel value 253 has no entry"),
        ('[{"defect_name": "x", "pixel_value": 1}]', "an entry has no 'saturation_threshold'"),
        ("no json", "not JSON"),
        ("[3]", "an entry has no 'defect_name'; got 3"),
    ):
        file.write_text(config)
        refused(message, loco.regions, mask, file)


def test_loco_masks_that_do_not_fit_are_named(loco_tree):
    mask = loco_tree / "pushpins/ground_truth/structural_anomalies/000"
    image(mask / "001.png", mask=0)
    refused(r"001\.png: expected one grey value", loco.regions, mask, loco_tree / "pushpins/defects_config.json")
    mask.rename(mask.with_name("00"))
    refused(r"structural_anomalies/000\.png: no mask", datasets.load, "loco", loco_tree, "pushpins")


@pytest.fixture
def elpv_package(tmp_path, monkeypatch):
    """A stand-in for the package, so that the rules are tested wherever it is not installed."""
    probability = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    lines = [f"images/cell{i:04d}.png  {probability[i % 4]}  {('mono', 'poly')[i // 20]}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    monkeypatch.setattr(elpv, "package_folder", lambda: tmp_path)
    return tmp_path


def test_elpv_rules(elpv_package):
    table = datasets.load("elpv", category="mono")
    counts = {"train good": 4, "test good": 1, "test likely": 5, "test certain": 5}
    assert (table.split + " " + table.defect).value_counts().to_dict() == counts
    assert table.image_path.is_unique
    assert table.equals(datasets.load("elpv", "ignored", "mono"))
    refused("mono, poly", datasets.load, "elpv", category="multi")


def test_elpv_without_its_package(monkeypatch):
    monkeypatch.setattr(elpv.importlib.util, "find_spec", lambda name: None)
    refused("pip install elpv-dataset", datasets.load, "elpv", category="mono")


def test_elpv_package():
    pytest.importorskip("elpv_dataset", reason="elpv-dataset is not installed")
    table = datasets.load("elpv")
    assert (len(table), table.label.sum()) == (2624 - 295, 821)  # without the possible ones
    assert Path(table.image_path[0]).is_file()


# -- plain folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path):
    for i in range(10):
        image(tmp_path / f"good/{'deep/' * (i % 2)}{i}.PNG")
    for name, mask in (("top.JPG", "top_mask"), ("crack/1.jpg", "crack/1"), ("hole/1.jpg", "hole/1_mask")):
        image(tmp_path / "bad" / name)
        image(tmp_path / f"masks/{mask}.png", mask=255)
    return tmp_path


def test_load_folder(plain):
    assert datasets.load_folder(plain / "good").split.tolist() == ["train"] * 10
    folders = plain / "good", plain / "bad", plain / "masks"
    table = datasets.load_folder(*folders, category="part")
    pairs = {"crack": "1.png", "hole": "1_mask.png", "bad": "top_mask.png"}
    assert [row[:3] + row[4:] for row in summary(table)[-3:]] == [("test", name, 1, pairs[name]) for name in pairs]
    assert table[table.label == 0].split.value_counts().to_dict() == {"train": 8, "test": 2}
    assert table.category.unique().tolist() == ["part"]
    assert table.equals(datasets.load_folder(*folders, category="part"))
    assert not table.equals(datasets.load_folder(*folders, seed=3, category="part"))


def test_load_folder_with_good_test_images(plain):
    table = datasets.load_folder(plain / "good", plain / "bad", test_good=plain / "masks")
    assert table.groupby(["split", "label"]).size().to_dict() == {("train", 0): 10, ("test", 0): 3, ("test", 1): 3}
    assert table.mask_path.tolist() == [None] * 16


def test_load_folder_errors(plain):
    (plain / "empty").mkdir()
    for message, folders, options in (
        ("no such folder", ["none"], {}),
        ("empty holds no image", ["empty"], {}),
        ("lies within good folder", ["", "bad"], {}),
        ("without bad images", ["good"], {"masks": "masks"}),
        ("test_share", ["good", "bad"], {"test_share": 1.0}),
    ):
        refused(message, datasets.load_folder, *(plain / folder for folder in folders), **options)


def test_masks_of_plain_folders_that_do_not_fit(plain):
    folders = plain / "good", plain / "bad", plain / "masks"
    image(plain / "masks/hole/1.png", mask=255)
    refused(r"bad image hole/1\.jpg: 2 masks of this name", datasets.load_folder, *folders)
    (plain / "masks/hole/1.png").unlink()
    (plain / "masks/hole/1_mask.png").rename(plain / "masks/1.png")
    said = r"hole/1\.jpg: no mask of this name, but .*masks/1\.png belongs to no image"
    refused(said, datasets.load_folder, *folders)
    (plain / "masks/1.png").unlink()  # the mask of crack/1 is not taken for hole/1
    table = datasets.load_folder(*folders, mask_threshold=0)
    assert [row[4] for row in summary(table)[-3:]] == ["1.png", None, "top_mask.png"]
    assert set(table.mask_threshold) == {0}


# -- around the table -------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_hold_out_divides_the_training_normals(count, share, seed):
    rows = [sample(f"/x/{i}.png", None, "good", "train", "c") for i in range(count)]
    rows += [sample("/x/bad.png", None, "hole", "test", "c"), sample("/x/other.png", None, "good", "test", "c")]
    table = make_table(rows, "x")
    train, held = datasets.hold_out(table, share, seed)
    assert sorted([*train.image_path, *held.image_path]) == sorted(table.image_path[:count])
    assert len(held) == min(max(1, round(share * count)), count - 1)
    assert list(train.columns) == [*COLUMNS, "mask_threshold"]
    assert train.attrs == held.attrs == table.attrs
    again, _ = datasets.hold_out(table, share, seed)
    assert again.equals(train)


def test_hold_out_errors():
    table = make_table([sample("/x/0.png", None, "good", "train", "c")], "x")
    for share, said in ((0.15, "at least 2"), (0, "share")):
        refused(said, datasets.hold_out, table, share)


def test_a_table_survives_what_tables_go_through(visa_tree, mvtec_tree, tmp_path):
    """Merged, concatenated and stored as CSV, every mask keeps its own threshold: those of VisA hold class numbers."""
    visa, mvtec = datasets.load("visa", visa_tree, "candle"), datasets.load("mvtec", mvtec_tree, "bolt")

    def areas(table):
        return [None if mask is None else int(mask.sum()) for mask in datasets.masks(table)]

    assert areas(visa.merge(pd.DataFrame({"label": [0, 1], "cost": [0, 5]}), on="label")) == [None, None, 9]
    both = pd.concat([visa, mvtec], ignore_index=True)
    assert areas(both) == [None, None, 9, None, None, None, 9, 9]
    assert areas(pd.concat([visa, mvtec.drop(columns="mask_threshold")])) == areas(both)  # 127 where nothing is said
    both.to_csv(tmp_path / "both.csv", index=False)
    again = pd.read_csv(tmp_path / "both.csv", dtype={"category": str, "defect": str})
    assert areas(again) == areas(both)
    assert datasets.table_hash(again) == datasets.table_hash(both)
    # What records were made from keeps its hash: the threshold belongs to the layout and does not enter.
    assert datasets.table_hash(visa.drop(columns="mask_threshold")) == datasets.table_hash(visa)
    with pytest.raises(InputError, match=r"000\.png: mask is not black, but nothing in it is above the threshold 127 "):
        list(datasets.masks(visa.drop(columns="mask_threshold")))


def test_table_hash_follows_content_not_place(mvtec_tree):
    first = datasets.table_hash(datasets.load("mvtec", mvtec_tree, "bolt"))
    moved = mvtec_tree.with_name("elsewhere")
    mvtec_tree.rename(moved)
    table = datasets.load("mvtec", moved, "bolt")
    assert datasets.table_hash(table) == first
    for other in (table.assign(label=0), table.assign(split="test"), table[1:]):
        assert datasets.table_hash(other) != first
    image(moved / "bolt/ground_truth/crack/a_mask.png", mask=200)
    masked = datasets.table_hash(table)
    assert masked != first
    image(moved / "bolt/train/good/001.png")
    assert datasets.table_hash(table) != masked
    (moved / "bolt/train/good/001.png").unlink()
    refused(r"001\.png: cannot be read", datasets.table_hash, table)


def test_discover_and_guess(mvtec_tree, visa_tree):
    root = mvtec_tree.parent  # holds both
    assert datasets.discover(root) == [
        ("VisA_20220922", "visa", visa_tree, ["candle"]),
        ("parts", "mvtec", mvtec_tree, ["anchor", "bolt"]),
    ]
    assert datasets.discover(mvtec_tree / "bolt") == [("parts", "mvtec", mvtec_tree, ["bolt"])]
    assert datasets.guess_dataset(mvtec_tree) == "parts"
    refused("several data sets", datasets.guess_dataset, root)
    refused("no known layout", datasets.guess_dataset, mvtec_tree / "bolt/train/good")
