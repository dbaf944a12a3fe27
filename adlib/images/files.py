"""Images from disk to tensors, with the geometry that leads back to the original pixels.

A method works at one input size; a user wants the answer on the picture that was given. Every resize and crop is
therefore written down in a `Geometry`, which maps an anomaly map back onto the original canvas.
"""

import contextlib
import itertools
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from adlib.errors import InputError
from adlib.settings import choice

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
                  ".pbm", ".jp2")  # fmt: skip
RESULTS_MARK = "adlib-predict.json"  # a folder that holds it holds results, and none of its pictures is a photograph
PILLOW = {
    "antialias": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
# What these files hold, whatever they are called: pillow also knows PostScript, which is a program.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
# Photographs of 90 megapixels are an inspection's daily work; twice as many are refused by pillow itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
BIT_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, *range(16, 33))  # of integers from 8 on
RESIZE_MODES = ("stretch", "short_side", "letterbox")


def read_image(path, bit_depth: int | None = None) -> np.ndarray:
    """Read an image of any channel count and depth as RGB, upright: as its EXIF orientation says.

    Grey images are repeated over three channels, an alpha channel is dropped.

    Args:
        path: an image file.
        bit_depth: of images with more than 8 bits per channel: 2^bit_depth - 1 becomes 255, the same for all images
            of a data set (`bit_depth_of`). Default 16 for 16-bit images; 32-bit and floating ones do not say theirs.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        InputError: the file is missing, no image, or holds NaN, infinity, values below 0 or above its bit depth.
    """
    values = stored_values(path)
    return values if values.dtype == np.uint8 else _eight_bits(values, bit_depth, path)


def bit_depth_of(image_paths) -> int | None:
    """Return the bit depth that holds the values of all images of more than 8 bits; None where there are none.

    It is one that cameras have (8, 10, 12, 14, 16), the next that is enough above, and below for floating images: 1 for
    those from 0 to 1. Errors as `read_image`.
    """
    deep = (_checked(stored_values(path), path) for path in image_paths if _is_deep(path))
    found = [(values.max(initial=0), 1 if values.dtype.kind == "f" else 8) for values in deep]
    highest, lowest = np.max(found, axis=0) if found else (0, 0)
    return next((depth for depth in BIT_DEPTHS if depth >= lowest and _holds(depth, highest)), 32) if found else None


def stored_values(path) -> np.ndarray:
    """Return the values of an image as stored, upright: (H, W, 3), uint8 unless it has more than 8 bits per channel."""
    with _opened(path) as image:
        mode = _deep_mode(image)
        if mode == "RGB":  # pillow would keep the upper eight bits alone
            values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            return values[..., ::-1]
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if not mode:
            return np.array(image.convert("RGB"))
        values = np.asarray(image)
        return np.repeat((values.astype(np.uint16) if mode == "I;16" else values)[..., None], 3, axis=2)


def _deep_mode(image) -> str:
    """Say how an opened image holds more than 8 bits per channel: "RGB", "I;16", "I" or "F"; "" where it does not."""
    sixteen = ";16" in str(image.tile[:1])
    if image.mode[0] in "IF":
        return "I;16" if sixteen else image.mode[:4]
    return "RGB" if sixteen else ""


def _is_deep(path) -> bool:
    with _opened(path) as image:
        return bool(_deep_mode(image))


def _checked(values: np.ndarray, path) -> np.ndarray:
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise InputError(f"{path}: holds NaN, infinity or values below 0, which no image has; replace or remove it")
    return values


def _holds(bit_depth: int, value: float) -> bool:
    return value < 2**bit_depth - 0.998  # half a grey level more than the highest: sums of floats may have that


def _eight_bits(values: np.ndarray, bit_depth: int | None, path) -> np.ndarray:
    if bit_depth is None and values.dtype != np.uint16:
        raise InputError(f"{path}: its values do not say their range; set bit_depth (12 for 0 to 4095, 1 for 0 to 1)")
    if not _holds(bit_depth := bit_depth or 16, highest := _checked(values, path).max(initial=0)):
        raise InputError(
            f"{path}: its highest value {highest:g} is above the {bit_depth} bits of the other images; "
            "train with a higher bit_depth, or remove it"
        )
    return (values.astype(np.float64) / ((2**bit_depth - 1) / 255)).round().clip(0, 255).astype(np.uint8)


@contextlib.contextmanager
def _opened(path):
    try:
        # As an opened file: pillow maps a plain TIFF that it knows the name of, and mixes up its rows if it is turned.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            # The second picture of an MPO file, as telephones write it, is a preview or the other eye.
            if image.format != "MPO" and (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{path}: holds {pages} pages or frames; save each of them as a file of its own")
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except Exception as error:  # each decoder raises its own, and a header that promises too many pixels another
        reason = "its content is of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason}); replace or remove the file") from None


def image_shape(path) -> tuple[int, int]:
    """Return height and width of an image file, upright, from its header; errors as in `read_image`."""
    with _opened(path) as image:
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # of TIFF it is done
        return image.size if turned else image.size[::-1]


def read_mask(path, threshold: int = 127) -> np.ndarray:
    """Read a ground-truth mask: true where the grey value is above `threshold`.

    Args:
        path: an image file, or a folder of image files whose union is the mask (MVTec LOCO keeps one file per region).
        threshold: 127 for masks of 0 and 255 with soft edges; 0 for masks that store class numbers (VisA, LOCO).

    Returns:
        bool array (H, W); all false for a black mask.

    Raises:
        InputError: no readable image, or one that is not black and yet has nothing above the threshold.
    """
    path = Path(path)
    if path.is_dir():
        regions = [read_mask(file, threshold) for file in list_images(path)]
        if not regions:
            raise InputError(f"{path}: no mask file in this folder; expected at least one image")
        if any(region.shape != regions[0].shape for region in regions):
            raise InputError(f"{path}: the mask files of one image differ in size")
        return np.logical_or.reduce(regions)
    values = stored_values(path)
    if values.dtype != np.uint8:  # a mask's depth is its own
        values = _eight_bits(values, 16 if values.max(initial=0) > 255 else 8, path)
    red, green, blue = np.moveaxis(values, 2, 0)
    grey = np.maximum(np.maximum(red, green), blue)  # .max(axis=2) takes fifteen times as long
    if 0 < (highest := grey.max()) <= threshold:
        raise InputError(
            f"{path}: mask is not black, but nothing in it is above the threshold {threshold} (its highest value is "
            f"{highest}); write defects as 255, or lower mask_threshold in the sample table"
        )
    return grey > threshold


def list_images(folder, recursive: bool = False, left_out: list[str] | None = None) -> list[Path]:
    """Return the image files of a folder by name, those of subfolders too if `recursive`; suffixes in any case.

    Linked folders are followed, each folder is read once. Hidden files and folders, `__MACOSX` and the results of
    `adlib predict` are left out.

    Args:
        left_out: a list that takes the path, from `folder`, of everything that was passed over, and why.

    Raises:
        InputError: a folder cannot be opened.
    """
    folder, images, passed = Path(folder), [], [] if left_out is None else left_out
    if not folder.is_dir():
        return []
    top = os.path.realpath(folder)
    real_folders = {top}
    for place, folders, files in os.walk(folder, onerror=_cannot_be_opened, followlinks=True):
        inside = os.path.relpath(place, folder)
        if RESULTS_MARK in files:
            passed.append(f"{inside} (results of adlib predict)")
            folders.clear()
            continue
        names, folders[:] = sorted(folders) if recursive else (), ()
        for name in names:
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            # A link to what is read anyway, or to a folder that this one lies in, would show an image twice.
            circle = os.path.islink(path) and os.path.commonpath((top, real)) in (top, real)
            if name[0] == "." or name == "__MACOSX" or circle or real in real_folders:
                passed.append(os.path.normpath(os.path.join(inside, name)) + os.sep)
            else:
                real_folders.add(real)
                folders.append(name)
        for name in files:
            image = name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            if image and os.path.isfile(os.path.join(place, name)):
                images.append(Path(place, name))
            else:
                passed.append(os.path.normpath(os.path.join(inside, name)))
    passed.sort()
    return sorted(images)


def _cannot_be_opened(error: OSError):
    raise InputError(f"{error.filename}: folder cannot be opened ({error.strerror}); make it readable or move it away")


@dataclass(frozen=True)
class Geometry:
    """How an original image became a network input: resize to `resized`, then paste or cut at `offset` into `size`.

    All pairs are (rows, columns) in pixels. `offset` is the position of the resized image's top left corner on the
    input canvas: negative for a crop, positive for padding, zero for neither.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def to_original(self, anomaly_map: np.ndarray) -> np.ndarray:
        """Map an anomaly map (H, W) of the input back onto the original canvas, by bilinear interpolation.

        Pixels of the original that the network never saw (cut off by a crop) are NaN: nothing is known about them.

        Returns:
            float32 array of the original size.
        """
        anomaly_map = np.asarray(anomaly_map, dtype=np.float32)
        if anomaly_map.shape != self.size:
            anomaly_map = cv2.resize(anomaly_map, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        (top, left), nan = self.offset, float("nan")
        canvas = _place(anomaly_map, (-top, -left), self.resized, cv2.BORDER_CONSTANT, nan)
        if self.resized == self.original:
            return canvas
        # NaN would bleed through the interpolation, so values and validity are resized apart.
        valid = ~np.isnan(canvas)
        shape = self.original[::-1]
        values = cv2.resize(np.where(valid, canvas, 0), shape, interpolation=cv2.INTER_LINEAR)
        weight = cv2.resize(valid.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight >= 0.5, values / weight, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Resize:
    """The one geometric preparation of images and masks.

    Args:
        size: height and width of the network input in pixels; one number means a square.
        mode: `stretch` to `size` (aspect changes), `short_side` (shorter side to `scale`, then centre crop to
            `size`: PatchCore's protocol), or `letterbox` (aspect kept, rest padded by repeating the border).
        scale: for `short_side`, the length of the shorter side before the crop; default `size`.
        interpolation: of images, see `resample`; masks are always area averages.
        bit_depth: of images with more than 8 bits, see `read_image`.
    """

    size: int | tuple[int, int] = 256
    mode: str = "stretch"
    scale: int | None = None
    interpolation: str = "area"
    bit_depth: int | None = None

    def __post_init__(self):
        if self.mode == "aspect":
            raise InputError(
                "resize 'aspect' is resolved from the training images by adlib.profiles.shaped, as `adlib run` and "
                "`adlib train` do; give a method resize='stretch' and image_size=(height, width)"
            )
        choice("resize mode", self.mode, RESIZE_MODES)
        height, width = self.hw
        if height < 1 or width < 1:
            raise InputError(f"image size {self.size!r} must be positive")
        if self.mode == "short_side" and self.scale is not None and self.scale < max(height, width):
            raise InputError(f"scale {self.scale!r} is smaller than the crop {self.hw}; give at least {max(self.hw)}")

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (int(self.size[0]), int(self.size[1]))

    def geometry(self, original: tuple[int, int]) -> Geometry:
        """Return the geometry for an image of `original` = (height, width) pixels."""
        height, width = original
        if self.mode == "stretch":
            return Geometry((height, width), self.hw, (0, 0), self.hw)
        if self.mode == "short_side":
            factor = (self.scale or max(self.hw)) / min(height, width)
        else:
            factor = min(self.hw[0] / height, self.hw[1] / width)
        resized = (max(1, round(height * factor)), max(1, round(width * factor)))
        offset = tuple((outside - inside) // 2 for outside, inside in zip(self.hw, resized, strict=True))
        return Geometry((height, width), resized, offset, self.hw)

    def read(self, path) -> tuple[np.ndarray, Geometry]:
        """Read an image file and apply to it; returns as `image`, errors as `read_image`."""
        return self.image(read_image(path, self.bit_depth))

    def image(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Apply to a uint8 image (H, W, 3).

        Returns:
            uint8 array (height, width, 3) and the geometry.
        """
        geometry = self.geometry(image.shape[:2])
        resized = resample(image, geometry.resized, self.interpolation)
        return _place(resized, geometry.offset, geometry.size, cv2.BORDER_REPLICATE), geometry

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Apply to a bool mask (H, W); a pixel is true where at least half of it is covered (stated, see 03)."""
        geometry = self.geometry(mask.shape[:2])
        soft = resample(mask.astype(np.float32), geometry.resized)
        return _place(soft, geometry.offset, geometry.size, cv2.BORDER_CONSTANT) >= 0.5


def aspect_size(image_paths, side: int, multiple: int = 32) -> tuple[int | tuple[int, int], str]:
    """Return the input size, of about side * side pixels, that keeps the shape of these images.

    With r = height / width of an image (read from file headers; of more than 200 images an even sample of 200):

    1. One shape for all: the median of log r, which must take away at least half of the mean |log r| that a square
       input would stretch; else (square images, or portrait and landscape mixed) the input is the square. Beyond 1:8
       the rest is stretched.
    2. Pixels: side^2, and 2 side^2 where the longer side is 1.49 times the shorter or more (3:2 pictures count).
    3. Both sides are multiples of `multiple`: of the neighbours of the exact size the one of the best shape and number
       of pixels (differences of logarithms, those of the shape counted twice).

    Args:
        image_paths: normal training images.
        side: pixels of the side of the square input.
        multiple: 32 is the stride of the deepest stage of the usual pyramids, and suits our own networks' halvings.

    Returns:
        `side` itself for a square, else (height, width); and one line that says what was decided, "" where the images
        are square, or nearly.
    """
    paths = list(image_paths)
    if not paths:
        return side, ""
    ratios = []
    for i in np.linspace(0, len(paths) - 1, min(len(paths), 200)).round().astype(int):
        height, width = image_shape(paths[i])
        ratios.append(height / width)
    logs = np.log(ratios)
    middle = np.median(logs)
    stretched = np.abs(logs).mean()
    of = f"{len(paths)} training images of "
    if np.abs(logs - middle).mean() > 0.5 * stretched:
        mixed = f"input {side} x {side}, from {of}mixed shapes (height / width {min(ratios):.2g} to {max(ratios):.2g})"
        return side, mixed if stretched > 0.1 else ""
    middle = float(np.clip(middle, -np.log(8), np.log(8)))
    pixels = side**2 * (2 if abs(middle) >= np.log(1.49) else 1)
    exact = [float(np.sqrt(pixels * np.exp(sign * middle))) / multiple for sign in (1, -1)]
    near = itertools.product(*([max(1, int(n)) * multiple, (int(n) + 1) * multiple] for n in exact))
    height, width = min(
        near, key=lambda hw: 2 * abs(np.log(hw[0] / hw[1]) - middle) + abs(np.log(hw[0] * hw[1] / pixels))
    )
    if height == width:
        return side, ""
    return (height, width), f"input {height} x {width} (height x width), from {of}ratio {np.exp(np.median(logs)):.3g}"


def resample(pixels: np.ndarray, shape: tuple[int, int], interpolation: str = "area") -> np.ndarray:
    """Resize pixels (H, W, ...) to `shape`.

    Args:
        interpolation: `area` (averages where a side shrinks, else bilinear), or what an original implementation does to
            uint8 images: `antialias` (bilinear over all pixels that a new one covers), `nearest` and `bicubic` are
            Pillow's, which torchvision uses; `linear` (bilinear between four pixels, however far apart) is OpenCV's.
    """
    if pixels.shape[:2] == tuple(shape):
        return pixels
    if interpolation in PILLOW:
        return np.asarray(Image.fromarray(pixels).resize(shape[::-1], PILLOW[interpolation]))
    if interpolation == "linear":
        return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_LINEAR)
    shrinking = shape[0] < pixels.shape[0] or shape[1] < pixels.shape[1]
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def _place(pixels: np.ndarray, offset, size, border: int, value: float = 0) -> np.ndarray:
    """Paste pixels (H, W, ...) onto a canvas of `size`, their top left corner at `offset`; negative offsets cut."""
    (top, left), (height, width) = offset, size
    pixels = pixels[max(-top, 0) : max(-top, 0) + height, max(-left, 0) : max(-left, 0) + width]
    top, left = max(top, 0), max(left, 0)
    bottom, right = height - pixels.shape[0] - top, width - pixels.shape[1] - left
    if top or left or bottom or right:
        pixels = cv2.copyMakeBorder(pixels, top, bottom, left, right, border, value=value)
    return np.ascontiguousarray(pixels)


def to_tensor(images):
    """Stack uint8 images (H, W, 3) into one float32 tensor (B, 3, H, W) in [0, 1].

    There is no normalisation here: it belongs to the weights, so the backbone applies it.
    """
    import torch  # what lists and reads files alone, as a batch, does without

    stacked = np.stack([np.asarray(image) for image in images])  # (B, H, W, 3)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)


@dataclass(frozen=True)
class Batch:
    """A batch of network inputs: `images` (B, 3, H, W) float32 in [0, 1], and where each came from."""

    images: "torch.Tensor"  # noqa: F821 - loaded by those who make one
    paths: tuple[str, ...]
    geometries: tuple[Geometry, ...]

    def __len__(self) -> int:
        return len(self.paths)


def batches(image_paths, resize: Resize, batch_size: int = 16, progress: str | None = None):
    """Yield `Batch` after `Batch` over image files, in order, in bounded memory.

    Args:
        image_paths: file paths, for example `table.image_path`.
        resize: the geometric preparation.
        batch_size: images per batch; the last batch may be smaller.
        progress: a label turns on a progress bar (only on a terminal).
    """
    from tqdm import tqdm

    image_paths = [str(path) for path in image_paths]
    starts = range(0, len(image_paths), batch_size)
    for start in tqdm(starts, desc=progress, disable=None if progress else True, unit="batch", leave=False):
        paths = image_paths[start : start + batch_size]
        prepared = [resize.read(path) for path in paths]
        yield Batch(to_tensor([p for p, _ in prepared]), tuple(paths), tuple(g for _, g in prepared))
