"""Reading, resizing and the way back to the original pixels."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import refused, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from adlib import methods, profiles
from adlib.errors import InputError
from adlib.images import (
    RESULTS_MARK,
    Geometry,
    Resize,
    aspect_size,
    batches,
    bit_depth_of,
    image_shape,
    list_images,
    read_image,
    read_mask,
    to_tensor,
)


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("area", [64, 128]),
        ("linear", [128, 0]),  # the two pixels in the middle of four
        ("nearest", [255, 0]),
        ("antialias", [91, 100]),  # weights that fall to zero four pixels from the middle, of the pixels there are
    ],
)
def test_each_way_to_shrink_is_that_of_an_original(interpolation, expected):
    row = np.uint8([0, 0, 255, 0, 255, 0, 0, 255])
    image = np.tile(row[None, :, None], (8, 1, 3))
    for side in (image, image.transpose(1, 0, 2)):
        small, _ = Resize(2, interpolation=interpolation).image(side)
        np.testing.assert_allclose(np.unique(small.reshape(-1, 3), axis=0)[:, 0], sorted(expected), atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_any_channel_count_and_depth_reads_as_rgb(tmp_path, mode):
    grey = np.tile(np.array([0, 128, 255], np.uint8), (4, 4))
    wide = grey.astype(np.uint16) * 257
    image = Image.fromarray(wide) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    file = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(file)
    pixels = read_image(file)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 12, 3))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_range_for_the_images_of_a_data_set(tmp_path, suffix):
    dark, bright = (np.linspace(0, top, 300).astype(np.uint16).reshape(10, 30) for top in (250, 4000))
    files = [tmp_path / f"{name}.{suffix}" for name in ("dark", "bright", "colour")]
    for file, values in zip(files, (dark, bright, np.dstack([dark, bright, bright])), strict=True):
        cv2.imwrite(str(file), values)
    assert bit_depth_of(files) == 12
    assert bit_depth_of([write_image(tmp_path / "usual.png", np.zeros((4, 4), np.uint8))]) is None
    for file, values in zip(files, (dark, bright, bright), strict=True):
        assert np.abs(read_image(file, 12)[..., 0] - values / (4095 / 255)).max() <= 0.5
        assert read_image(file).max() <= 16  # 12 of 16 bits
    refused(r"bright\..* highest value 4000 is above the 10 bits", read_image, files[1], 10)
    assert profiles.shaped("padim", {}, files) == {"bit_depth": 12}
    assert profiles.shaped("padim", {"bit_depth": 14}, files) == {"bit_depth": 14}
    assert Resize(8, bit_depth=12).read(files[1])[0].max() == 243


def test_floating_images_have_a_range_that_is_asked_for_and_no_nan(tmp_path):
    values = np.linspace(0, 1, 40, dtype=np.float32).reshape(4, 10)
    Image.fromarray(values).save(tmp_path / "float.tif")
    for kind, highest, depth in (("f4", 1, 1), ("f4", 1.5, 2), ("f4", 20, 5), ("i4", 70000, 17), ("i4", 20, 8)):
        Image.fromarray((values * highest).astype(kind)).save(tmp_path / "deep.tif")
        assert bit_depth_of([tmp_path / "deep.tif"]) == depth
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif", 1)[..., 0], np.rint(values * 255))
    refused(r"float\.tif: its values do not say their range; set bit_depth", read_image, tmp_path / "float.tif")
    for wrong in (np.nan, np.inf, -1):
        values[2, 3] = wrong
        Image.fromarray(values).save(tmp_path / "wrong.tif")
        for read in (lambda: read_image(tmp_path / "wrong.tif", 1), lambda: bit_depth_of([tmp_path / "wrong.tif"])):
            refused(r"wrong\.tif: holds NaN, infinity or values below 0", read)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_photographs_are_read_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned to the right
    picture = np.zeros((20, 30), np.uint8)
    picture[:, :10] = 255
    Image.fromarray(picture).save(tmp_path / f"turned.{suffix}", exif=exif)
    pixels = read_image(tmp_path / f"turned.{suffix}")
    assert image_shape(tmp_path / f"turned.{suffix}") == pixels.shape[:2] == (30, 20)
    assert pixels[:9].min() > 200
    assert pixels[11:].max() < 55
    assert read_mask(tmp_path / f"turned.{suffix}").sum(axis=1)[0] == 20


def test_unreadable_images_are_named(tmp_path):
    bomb = bytearray(Path(write_image(tmp_path / "bomb.png", np.zeros((4, 4), np.uint8))).read_bytes())
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    path = tmp_path / "cut.png"
    write_image(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-200])  # an error, not half an image
    page = Image.fromarray(np.zeros((8, 8), np.uint8))
    for name in ("pages.tif", "frames.gif"):
        page.save(tmp_path / name, save_all=True, append_images=[Image.fromarray(np.eye(8, dtype=np.uint8) * 255)])
    for name in ("broken.png", "empty.jpg", "absent.png", "cut.png", "bomb.png", "program.png"):
        refused(name, read_image, tmp_path / name)
    for name in ("pages.tif", "frames.gif"):
        refused(f"{name}: holds 2", read_image, tmp_path / name)


def test_masks_are_true_above_127_unless_told_otherwise(tmp_path):
    path = write_image(tmp_path / "mask.png", np.array([[0, 1, 127, 128, 255]], np.uint8))
    assert read_mask(path).tolist() == [[False, False, False, True, True]]
    assert read_mask(path, threshold=0).tolist() == [[False, True, True, True, True]]


def test_a_folder_of_masks_is_their_union(tmp_path):
    write_image(tmp_path / "m/000.png", np.array([[255, 0, 0]], np.uint8))
    write_image(tmp_path / "m/001.png", np.array([[0, 0, 255]], np.uint8))
    assert read_mask(tmp_path / "m").tolist() == [[True, False, True]]
    (tmp_path / "none").mkdir()
    refused("no mask file", read_mask, tmp_path / "none")


def test_listing_follows_links_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    images = ("in/b.PNG", "in/a.jfif", "in/deep/c.JPeG", "out/d.gif", "out/e.jp2")
    others = (".hidden.png", "a.txt", "__MACOSX/f.png", ".ipynb_checkpoints/g.png", "old/h.png", f"old/{RESULTS_MARK}")
    for name in (*images, *(f"in/{name}" for name in others)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    for link, place in (("linked", "out"), ("again", "out"), ("twice", "in/deep"), ("circle", ".")):
        (tmp_path / "in" / link).symlink_to(tmp_path / place)
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere")
    assert [f.name for f in list_images(tmp_path / "in")] == ["a.jfif", "b.PNG"]
    left_out = []
    found = [f.relative_to(tmp_path / "in").as_posix() for f in list_images(tmp_path / "in", True, left_out)]
    assert found == ["a.jfif", "again/d.gif", "again/e.jp2", "b.PNG", "deep/c.JPeG"]
    hidden = [".hidden.png", ".ipynb_checkpoints/", "__MACOSX/", "a.txt", "circle/", "gone.png", "linked/"]
    assert left_out == [*hidden, "old (results of adlib predict)", "twice/"]
    monkeypatch.setattr(os, "scandir", lambda place: (_ for _ in ()).throw(PermissionError(13, "denied", place)))
    refused(r"in: folder cannot be opened \(denied\)", list_images, tmp_path / "in", True)


def test_short_side_is_patchcores_protocol():
    geometry = Resize(224, "short_side", 256).geometry((700, 1000))
    assert geometry == Geometry((700, 1000), (256, 366), (-16, -71), (224, 224))


def test_what_a_crop_cut_off_is_nan_on_the_way_back():
    resize = Resize(64, "short_side", 64)
    image = np.zeros((64, 128, 3), np.uint8)
    prepared, geometry = resize.image(image)
    assert prepared.shape == (64, 64, 3)
    back = geometry.to_original(np.ones((64, 64), np.float32))
    assert np.isnan(back[:, :32]).all()
    assert np.isnan(back[:, 96:]).all()
    assert (back[:, 32:96] == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    size=st.tuples(st.integers(8, 64), st.integers(8, 64)),
    mode=st.sampled_from(["stretch", "short_side", "letterbox"]),
)
def test_geometry_leads_back_to_the_original_canvas(height, width, size, mode):
    resize = Resize(size, mode)
    prepared, geometry = resize.image(np.full((height, width, 3), 77, np.uint8))
    assert prepared.shape == (*size, 3)
    assert (prepared == 77).all()
    back = geometry.to_original(np.full(size, 2.5, np.float32))
    assert back.shape == (height, width)
    seen = ~np.isnan(back)
    assert seen.any()
    np.testing.assert_allclose(back[seen], 2.5, rtol=1e-6)
    if mode != "short_side":
        assert seen.all()


@pytest.mark.parametrize(
    ("mode", "size"),
    [("stretch", 64), ("short_side", 64), ("letterbox", 64), ("stretch", (64, 96)), ("stretch", (96, 64))],
)
def test_a_blob_comes_back_where_it_was(mode, size):
    original = np.zeros((90, 150, 3), np.uint8)
    original[40:50, 70:84] = 255
    prepared, geometry = Resize(size, mode, 64 if mode == "short_side" else None).image(original)
    back = np.nan_to_num(geometry.to_original(prepared[..., 0].astype(np.float32)))
    rows, columns = np.nonzero(back > 127)
    assert abs(rows.mean() - 44.5) < 1.5
    assert abs(columns.mean() - 76.5) < 1.5


def test_mask_and_image_take_the_same_way():
    image = np.zeros((50, 80, 3), np.uint8)
    image[10:30, 20:60] = 255
    for mode in ("stretch", "short_side", "letterbox"):
        resize = Resize(40, mode)
        mask = resize.mask(image[..., 0] > 127)
        assert mask.dtype == bool
        shown = resize.image(image)[0][..., 0] > 127
        assert (mask != shown).mean() < 0.02


@pytest.mark.parametrize(
    ("shapes", "size", "line"),
    [
        ([(1000, 1000)], 256, ""),
        ([(100, 99), (99, 100)], 256, ""),
        ([(120, 100)], (288, 224), "input 288 x 224 (height x width), from 1 training images of ratio 1.2"),
        ([(1250, 500)], (576, 224), "ratio 2.5"),  # long: twice the pixels
        ([(500, 750)], (288, 448), "ratio 0.667"),  # 3:2 is long
        ([(500, 740)], (224, 320), "ratio 0.676"),  # not yet
        ([(10, 1000)], (128, 1024), "ratio 0.01"),  # 1:8 at most
        ([(100, 200), (200, 100)], 256, "from 2 training images of mixed shapes (height / width 0.5 to 2)"),
        ([(100, 200), (200, 100), (200, 100), (200, 100), (200, 100)], (512, 256), "ratio 2"),
        ([], 256, ""),
    ],
)
def test_an_input_takes_the_shape_of_the_training_images(tmp_path, shapes, size, line):
    paths = [write_image(tmp_path / f"{i}.png", np.zeros(shape, np.uint8)) for i, shape in enumerate(shapes)]
    found, said = aspect_size(paths, 256)
    assert found == size
    assert line in said
    assert bool(line) == bool(said)


def test_aspect_is_resolved_once_and_what_was_asked_for_wins(tmp_path, capsys):
    path = write_image(tmp_path / "tall.png", np.zeros((200, 100), np.uint8))
    lines = []
    shaped = lambda **changes: profiles.shaped("dfr", changes, [path], lines.append)  # noqa: E731
    assert shaped(resize="aspect") == {"resize": "stretch", "image_size": (512, 256)}  # DFR's own default is 256
    assert shaped(resize="aspect", image_size=128, seed=1) == {"resize": "stretch", "image_size": (256, 128), "seed": 1}
    assert len(lines) == 2
    assert shaped(resize="aspect", image_size=[96, 64])["image_size"] == [96, 64]
    for asked in ({}, {"resize": "letterbox", "image_size": 64}):
        assert shaped(**asked) == asked
    assert len(lines) == 2
    with pytest.raises(InputError, match=r"^resize 'aspect' is resolved from the training images by"):
        methods.create("dfr", backbone="tf_efficientnet_lite0", stages=[2], resize="aspect")
    refused(r"gone\.png: no such image file", profiles.shaped, "dfr", {"resize": "aspect"}, [tmp_path / "gone.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "crop"}, "resize mode"), ({"size": 0}, "positive"), ({"mode": "short_side", "scale": 100}, "smaller")],
)
def test_bad_resize_is_refused(arguments, message):
    refused(message, Resize, **{"size": 224, **arguments})


def test_batches_keep_order_paths_and_geometry(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png", np.full((10 + i, 12, 3), i, np.uint8)) for i in range(5)]
    got = list(batches(paths, Resize(8), batch_size=2))
    assert [len(batch) for batch in got] == [2, 2, 1]
    assert [path for batch in got for path in batch.paths] == paths
    assert got[2].geometries[0].original == (14, 12)
    assert got[1].images.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(got[1].images[0].numpy(), 2 / 255)


def test_to_tensor_is_rgb_first_in_unit_range():
    tensor = to_tensor([np.dstack([np.full((2, 3), v, np.uint8) for v in (255, 0, 51)])])
    assert tensor.shape == (1, 3, 2, 3)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
