"""The one list of families, and the one function that calls them."""

import inspect
from typing import Annotated, NamedTuple

import numpy as np

from adlib.errors import InputError
from adlib.settings import Must, choice
from adlib.synthesis.sources import Sources

KINDS = ("image", "feature")
FIXED = ("image", "features", "rng", "foreground", "sources")  # what synthesise passes; the rest are parameters


class Family(NamedTuple):
    """A registered family: its kind, its function and the parameters a caller may change, with their defaults."""

    kind: str
    function: object
    defaults: dict


_families: dict[str, Family] = {}


def register(name: str, kind: str = "image"):
    """Decorate a function to make it a family.

    Args:
        name: what users write.
        kind: "image": `function(image, rng, foreground, sources, **params)` with `image` float32 (H, W, 3) in [0, 1],
            `foreground` bool (H, W), `sources` a `Sources`; it returns (image, mask (H, W), info). What it paints
            outside the mask or the foreground is dropped by `synthesise`.
            "feature": `function(features, rng, **params)` returns (features, mask, info).
            Every parameter needs a default; an unknown one is refused before the function is called.
    """
    choice("kind of family", kind, KINDS)

    def decorate(function):
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in FIXED]
        unset = [p.name for p in parameters if p.default is p.empty]
        if unset:
            raise InputError(f"family {name!r}: parameter {unset[0]!r} needs a default value")
        _families[name] = Family(kind, function, {p.name: p.default for p in parameters})
        return function

    return decorate


def names(kind: str | None = None) -> list[str]:
    """Return the names of all families, or of one kind ("image" or "feature"), in the order they were registered."""
    if kind is not None:
        choice("kind of family", kind, KINDS)
    return [name for name, family in _families.items() if kind in (None, family.kind)]


def _known(families) -> bool:
    for family in families:
        choice("families: family", family, names("image"))
    return True


Families = Annotated[tuple[str, ...], Must(_known, "be families")]  # `_known` says more
SomeFamilies = Annotated[Families, Must(bool, "name at least one family, for example perlin_dtd")]


def defaults(name: str) -> dict:
    """Return the parameters of a family with their default values."""
    choice("family", name, names())
    return dict(_families[name].defaults)


def synthesise(name: str, image, rng: np.random.Generator, foreground=None, sources=None, **params):
    """Make one pseudo-anomaly.

    Args:
        name: a family of `names()`.
        image: the normal host, uint8 or float in [0, 1], (H, W, 3) or grey (H, W); for a family of kind "feature" an
            array or tensor of cells, see `adlib.synthesis.feature`.
        rng: the source of every random draw.
        foreground: (H, W), nonzero on the product; the anomaly stays inside. None for the whole image.
        sources: `Sources`, or a folder or a list of images that serves wherever the family needs foreign pixels.
        params: changes to `defaults(name)`.

    Returns:
        image_a: as `image` in type and shape, equal to it exactly where the mask is false.
        mask: bool (H, W), true on the anomaly; a subset of the foreground.
        info: dict of every drawn parameter; "fallback" says in words when the first choice could not be had.

    Raises:
        InputError: unknown family or parameter, an image or foreground of the wrong shape, type or range, an empty
            foreground, a source that cannot be read.
    """
    choice("family", name, _families)
    family = _families[name]
    for parameter in params:
        choice(f"parameter of family {name!r}:", parameter, family.defaults)
    if not isinstance(rng, np.random.Generator):
        raise InputError(
            f"rng must be a numpy.random.Generator, got {type(rng).__name__}; try np.random.default_rng(0)"
        )
    if family.kind == "feature":
        return family.function(image, rng, **params)

    image = np.asarray(image)
    host = _host(image)  # (H, W, 3) float32
    allowed = _allowed(foreground, host.shape[:2])  # (H, W) bool
    painted, mask, info = family.function(host, rng, allowed, Sources.of(sources), **params)
    mask = np.asarray(mask).astype(bool) & allowed
    return _like(painted, image, mask), mask, {"family": name, **info}


def _host(image: np.ndarray) -> np.ndarray:
    """Check the image and return it as float32 (H, W, 3) in [0, 1]."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise InputError(f"image must be (H, W, 3) or grey (H, W), got shape {image.shape}")
    if image.dtype == np.uint8:
        host = image.astype(np.float32) / np.float32(255)
    elif image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"image: float values must lie in [0, 1], got {low:.3g} to {high:.3g}; normalise after the synthesis"
            )
        host = image.astype(np.float32)
    else:
        raise InputError(f"image must be uint8 or float in [0, 1], got {image.dtype}")
    return host if host.ndim == 3 else np.repeat(host[..., None], 3, axis=2)


def _allowed(foreground, shape: tuple[int, int]) -> np.ndarray:
    if foreground is None:
        return np.ones(shape, bool)
    foreground = np.asarray(foreground)
    if foreground.shape != shape:
        raise InputError(f"foreground must have the shape of the image {shape}, got {foreground.shape}")
    allowed = foreground > 0
    if not allowed.any():
        raise InputError("foreground has no pixel of the product; pass a mask with some, or None for the whole image")
    return allowed


def _like(painted: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Bring the painted pixels to the type and channels of the image, and keep the image outside the mask."""
    if image.ndim == 2:
        painted = painted @ np.float32([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
    painted = painted[mask].clip(0, 1)
    result = image.copy()
    result[mask] = np.rint(painted * 255) if image.dtype == np.uint8 else painted
    return result
