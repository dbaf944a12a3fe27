"""Where foreign pixels come from: folders of textures, of objects, of other normal images, or made on the spot."""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adlib.errors import InputError
from adlib.images import list_images, read_image, resample
from adlib.paths import MIXED
from adlib.synthesis.objects import extract_object, procedural_object
from adlib.synthesis.textures import augment, procedural_texture, spectral_texture

CACHED = 64  # decoded images kept in memory, about 60 MB of DTD


class Sources:
    """Pools of foreign images by role.

    Each pool is a folder (searched with its subfolders), a list of paths, or a list of uint8 arrays (H, W, 3); None
    where there is nothing, and then textures and objects are made by the project itself.

    Args:
        textures: for example the `images` folder of the Describable Textures Dataset (DTD); "mixed": see `MIXED`.
        objects: pictures that each show an object; its region is found by `objects.extract_object`.
        normals: other normal images of the same product, for NSA and splicing.

    Raises:
        InputError: a folder that is missing or holds no image.
    """

    def __init__(self, textures=None, objects=None, normals=None):
        self.mixed = isinstance(textures, str) and textures == MIXED
        self.textures = _pool(None if self.mixed else textures, "textures")
        self.objects = _pool(objects, "objects")
        self.normals = _pool(normals, "normals")

    @classmethod
    def of(cls, sources) -> "Sources":
        """Return `sources` as it is, or make a folder, path or list serve in every role."""
        if sources is None or isinstance(sources, cls):
            return sources or cls()
        pool = _pool(sources, "sources")
        return cls(pool, pool, pool)

    def texture(self, shape: tuple[int, int], rng: np.random.Generator, fit: str = "stretch"):
        """Draw a texture of the host's size.

        Args:
            shape: (H, W) of the host.
            fit: "stretch" to the size (DRAEM), or "crop": shorter side to the size, then the centre (GLASS).

        Returns:
            uint8 (H, W, 3), and {"source": file name, index or "procedural ..."}.
        """
        if not self.textures:
            turn = int(rng.integers(3 if self.normals else 2)) if self.mixed else 0
            if turn == 2:
                return self._distorted_normal(shape, rng)
            texture, kind = (procedural_texture, spectral_texture)[turn](shape, rng)
            return texture, {"source": f"procedural {kind}"}
        texture, name = _draw(self.textures, rng)
        return fit_to(texture, shape, fit), {"source": name}

    def _distorted_normal(self, shape, rng):
        """A part of a normal image, enlarged and turned, whose colours are not its own any more."""
        image, name = _draw(self.normals, rng)
        sides = [max(1, int(side * rng.uniform(0.2, 0.7))) for side in image.shape[:2]]
        top, left = (int(rng.integers(full - part + 1)) for full, part in zip(image.shape, sides, strict=False))
        part = np.rot90(image[top : top + sides[0], left : left + sides[1]], int(rng.integers(4)))
        return augment(fit_to(np.ascontiguousarray(part), shape, "stretch"), rng)[0], {"source": f"distorted {name}"}

    def object(self, rng: np.random.Generator):
        """Draw an object: its pixels uint8 (h, w, 3), its mask bool (h, w), and where it is from."""
        if not self.objects:
            pixels, mask, kind = procedural_object(rng)
            return pixels, mask, {"source": f"procedural {kind}"}
        index = int(rng.integers(len(self.objects)))
        entry = self.objects[index]
        pixels, mask, how = _extracted(entry) if isinstance(entry, Path) else extract_object(entry)
        return pixels, mask, {"source": _name(entry, index), "extraction": how}

    def normal(self, shape: tuple[int, int], rng: np.random.Generator):
        """Draw another normal image of the host's size: uint8 (H, W, 3) or None when there is no pool, and its name."""
        if not self.normals:
            return None, {"source": "same image"}
        image, name = _draw(self.normals, rng)
        return fit_to(image, shape, "stretch"), {"source": name}


def fit_to(image: np.ndarray, shape: tuple[int, int], fit: str) -> np.ndarray:
    """Bring an image to (H, W) by stretching it or by scaling and cutting out the centre."""
    height, width = shape
    if fit == "crop":
        factor = max(height / image.shape[0], width / image.shape[1])
        image = resample(image, tuple(max(n, round(m * factor)) for n, m in zip(shape, image.shape, strict=False)))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    return resample(image, shape)


def _pool(entries, role: str) -> list:
    if entries is None:
        return []
    if isinstance(entries, str | Path):
        folder = Path(entries)
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; {role} must be a folder of images, or None to make them")
        files = list_images(folder, recursive=True) if folder.is_dir() else [folder]
        if not files:
            raise InputError(f"{folder}: no image in this folder or below it; {role} needs at least one")
        return files
    if not isinstance(entries, Iterable):
        raise InputError(f"{role} must be a folder, a list of paths or a list of arrays, got {type(entries).__name__}")
    entries = [Path(entry) if isinstance(entry, str) else entry for entry in entries]
    if not entries:
        raise InputError(f"{role}: the list is empty; give at least one image, or None")
    for entry in entries:
        is_array = isinstance(entry, np.ndarray) and entry.dtype == np.uint8 and entry.ndim == 3 and entry.shape[2] == 3
        if not (is_array or isinstance(entry, Path)):
            what = f"{entry.dtype} {entry.shape}" if isinstance(entry, np.ndarray) else type(entry).__name__
            raise InputError(f"{role}: entries must be paths or uint8 arrays (H, W, 3), got {what}")
    return entries


def _draw(pool: list, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    index = int(rng.integers(len(pool)))
    entry = pool[index]
    return (_read(entry) if isinstance(entry, Path) else entry), _name(entry, index)


def _name(entry, index: int) -> str:
    return entry.name if isinstance(entry, Path) else f"array {index}"


@functools.lru_cache(maxsize=CACHED)
def _read(path: Path) -> np.ndarray:
    image = read_image(path)
    image.setflags(write=False)  # shared by all callers
    return image


@functools.lru_cache(maxsize=4 * CACHED)
def _extracted(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    return extract_object(_read(path))
