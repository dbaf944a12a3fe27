"""A fixed set of pseudo-anomalies on held-out normal images: what trained methods select on instead of test data."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import Batch, Geometry, Resize, to_tensor
from adlib.settings import choice
from adlib.synthesis.foregrounds import Rule
from adlib.synthesis.foregrounds import foreground as product_mask
from adlib.synthesis.registry import names, synthesise
from adlib.synthesis.sources import Sources

TRIES = 10


class SyntheticItem(NamedTuple):
    """One image of the set.

    Attributes:
        image: uint8 (H, W, 3), resized.
        mask: bool (H, W), true on the anomaly; all false for a clean image.
        label: 1 for an anomaly, 0 for a clean image.
        family: the family that made it, "" for a clean image.
        path: the normal image it was made from.
        info: what was drawn.
        geometry: leads from the image back to the file's own pixels.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    family: str
    path: str
    info: dict
    geometry: Geometry


class SyntheticSplit:
    """A seeded validation set, made when it is read: item i is the same in any process and in any order.

    Every held-out image serves in turn, and so does every family; with the default share each image comes once clean
    and once damaged, so a score that only knows the image cannot tell the two apart.

    Args:
        table: a sample table of normal images that are not used for fitting, such as the second part of
            `datasets.hold_out(train)`; or a list of paths. Anomalous and test images are refused.
        families: a family of kind "image", or several.
        number: images in the set; default twice the number of held-out images.
        share: share of anomalous images.
        seed: item i draws from `numpy.random.default_rng([seed, i])`.
        resize: the geometric preparation, or a size in pixels. The anomaly is made after it.
        foreground: "auto", a `Rule`, or None for the whole image.
        sources: as for `synthesise`; None with `normals` empty takes the held-out images as the other normal images.
        params: family name -> changes to its defaults.
    """

    def __init__(
        self,
        table,
        families=("perlin_dtd", "cutpaste", "cutpaste_scar", "nsa"),
        number: int | None = None,
        share: float = 0.5,
        seed: int = 0,
        resize: Resize | int = 256,
        foreground: Rule | str | None = "auto",
        sources=None,
        params: dict | None = None,
    ):
        if isinstance(table, pd.DataFrame):
            check_training_table(table)
            table = table.image_path
        self.paths = [str(path) for path in table]
        self.families = (families,) if isinstance(families, str) else tuple(families)
        self.number = 2 * len(self.paths) if number is None else number
        self.share, self.seed, self.foreground = share, seed, foreground
        self.resize = resize if isinstance(resize, Resize) else Resize(resize)
        self.params = params or {}
        if not self.paths:
            raise InputError("the synthetic split has no held-out normal image; give at least one")
        if not self.families:
            raise InputError("the synthetic split has no family; give at least one of " + ", ".join(names("image")))
        for family in (*self.families, *self.params):
            choice("family", family, names("image"))
        if not 0 <= share <= 1:
            raise InputError(f"share {share!r} of anomalous images must lie between 0 and 1")
        if self.number < 1:
            raise InputError(f"number {number!r} of images must be at least 1")
        self.sources = Sources.of(sources)
        if not self.sources.normals:
            own = Sources.of(None)
            own.textures, own.objects = self.sources.textures, self.sources.objects
            own.normals = Sources(normals=self.paths).normals
            self.sources = own

    def __len__(self) -> int:
        return self.number

    @property
    def labels(self) -> np.ndarray:
        """int (N,): 1 for anomalous items; known without making them."""
        counts = np.floor(np.arange(self.number + 1) * self.share + 1e-9).astype(int)
        return np.diff(counts)

    def __getitem__(self, index: int) -> SyntheticItem:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a synthetic split of {len(self)}")
        index %= len(self)
        labels = self.labels
        label = int(labels[index])
        turn = int((labels[:index] == label).sum())  # how many items of this label came before
        path = self.paths[turn % len(self.paths)]
        image, geometry = self.resize.read(path)
        if not label:
            return SyntheticItem(image, np.zeros(image.shape[:2], bool), 0, "", path, {}, geometry)
        # The families shift by one each round over the images, or an image would always meet the same family.
        family = self.families[(turn + turn // len(self.paths)) % len(self.families)]
        rng = np.random.default_rng([self.seed, index])
        damaged, mask, family, info = self._damage(image, family, rng)
        return SyntheticItem(damaged, mask, 1, family, path, info, geometry)

    def _damage(self, image, family, rng):
        allowed = None if self.foreground is None else product_mask(image, self.foreground)
        for _ in range(TRIES):
            damaged, mask, info = synthesise(family, image, rng, allowed, self.sources, **self.params.get(family, {}))
            if mask.any():
                return damaged, mask, family, info
        damaged, mask, info = synthesise("cutpaste", image, rng, allowed, self.sources)
        return damaged, mask, "cutpaste", info | {"fallback": f"{family} changed nothing: CutPaste instead"}

    def batches(self, batch_size: int = 16) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
        """Yield (batch for `method.score`, masks bool (B, H, W), labels int (B,)) over the whole set, in order."""
        for start in range(0, len(self), batch_size):
            items = [self[i] for i in range(start, min(start + batch_size, len(self)))]
            images = to_tensor([item.image for item in items])
            batch = Batch(images, tuple(item.path for item in items), tuple(item.geometry for item in items))
            yield batch, np.stack([item.mask for item in items]), np.array([item.label for item in items])
