"""Training pairs (x_n, x_a, m): a normal image, the same with a pseudo-anomaly, and where it is.

What PAGMFR and DRAEM are trained on. Sample `c` of the endless stream follows from the seed and `c` alone, so the parts
of a large batch, several processes and a resumed run all see what one large batch would have shown.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch

from adlib import settings as S
from adlib import synthesis
from adlib.datasets.catalogue import category_kind
from adlib.errors import InputError
from adlib.images import to_tensor
from adlib.methods import training
from adlib.paths import texture_folder
from adlib.synthesis.pagmfr import judge_kind
from adlib.synthesis.registry import SomeFamilies

TRIES = 10


@dataclass(frozen=True)
class PairSettings(training.Options):
    """How training pairs are made; shared by the methods that are trained on them."""

    families: SomeFamilies = ("pagmfr",)  # of adlib.synthesis
    kind: Literal["auto", "texture", "object"] = "auto"  # of category; auto: by name, or judged
    textures: str = ""  # folder, also by its name below data/ ("dtd"); "mixed", or "" for patterns made on the spot
    objects: str = ""  # folder of pictures of foreign objects; "" for objects made on the spot
    foreground: Literal["rules", "none"] = "rules"  # where they may be; rules: on the product
    probability: S.Closed = 0.5  # share of anomalous images in a batch
    rotate: S.Closed = 0.3  # probability that a texture image is turned, by up to 90 degrees
    bank: S.Whole = 0  # make so many pairs once and reuse them; 0 makes new ones all the time
    batch_size: S.Count = 32  # images per optimiser step
    epochs: S.Count = 600  # passes over the training images, where there are no `steps`


class Pairs:
    """The stream of training pairs.

    Args:
        table: sample table of normal training images; `attrs["dataset"]` and the category choose kind and rule.
        resize: the geometric preparation; anomalies are made after it.
        settings: a `PairSettings`.
        encode: images (B, 3, H, W) -> list of frozen features; the bank then keeps features of both images (float16).
        jitter: augmentation: brightness and contrast change by up to this share.
        sampling: from the bank, "uniform", or "small" anomalies more often, by area^(-1/2).
        corners: OpenCV's border mode: what fills the corners of a turned image.

    Attributes:
        images: uint8 (n, H, W, 3), the normal images.
        kind: "texture" or "object".
        note: where foreign pixels come from, in words.
    """

    def __init__(
        self,
        table,
        resize,
        settings: PairSettings,
        encode=None,
        jitter=0.0,
        sampling="uniform",
        corners=cv2.BORDER_REFLECT,
    ):
        self.settings, self.jitter, self.corners = settings, jitter, corners
        s = settings
        self.images = np.stack([resize.read(path)[0] for path in table.image_path])
        dataset, category = str(table.attrs.get("dataset", "")), str(table.category.iloc[0])
        self.kind = s.kind if s.kind != "auto" else category_kind(dataset, category)
        if self.kind == "auto":
            self.kind = judge_kind(self.images[:: max(1, len(self.images) // 24)])
        folders = (texture_folder(name, table.image_path.iloc[0]) for name in (s.textures, s.objects))
        self.sources = synthesis.Sources(*folders, list(table.image_path))
        roles = [role for role in ("textures", "objects") if not getattr(s, role)]
        self.note = f"kind {self.kind}" + (f"; {' and '.join(roles)} are made on the spot" if roles else "")
        self.rule = None if s.foreground == "none" else synthesis.rule_for(dataset, category)
        self._foregrounds = {}
        self.bank, self.bank_weights = self._make_bank(encode) if s.bank else None, None
        if sampling == "small":
            self.bank_weights = self.bank["mask"].flatten(1).sum(1).clamp_min(1).double().rsqrt().numpy()

    # -- one pair -----------------------------------------------------------------------------------------------------

    def pair(self, i: int, rng: np.random.Generator):
        """Make a pair on training image `i`: x_n and x_a uint8 (H, W, 3), m bool (H, W), and what was drawn.

        An anomaly that comes out empty is tried again, ten times; then the pair is a normal one.
        """
        s, turned = self.settings, False
        normal = self.images[i]
        if self.kind == "texture" and rng.random() < s.rotate:
            normal, turned = rotated(normal, float(rng.uniform(-90, 90)), self.corners), True
        if self.jitter:
            gain, shift = 1 + rng.uniform(-self.jitter, self.jitter), 128 * rng.uniform(-self.jitter, self.jitter)
            normal = ((normal.astype(np.float32) - 128) * gain + 128 + shift).round().clip(0, 255).astype(np.uint8)
        foreground = self._foreground(None if turned else i, normal)
        for _ in range(TRIES):
            family = str(rng.choice(s.families, p=np.ones(len(s.families)) / len(s.families)))
            params = {"kind": self.kind} if family == "pagmfr" else {}
            damaged, mask, info = synthesis.synthesise(family, normal, rng, foreground, self.sources, **params)
            if mask.any():
                return normal, damaged, mask, info
        return normal, normal, np.zeros(normal.shape[:2], bool), {"fallback": f"{TRIES} empty anomalies: left normal"}

    def _foreground(self, i, image):
        """The product's mask, or None for the whole image; kept for the unchanged training images."""
        if self.rule is None:
            return None
        if i is None:
            return synthesis.foreground(image, self.rule)
        if i not in self._foregrounds:
            self._foregrounds[i] = synthesis.foreground(image, self.rule)
        return self._foregrounds[i]

    # -- batches ------------------------------------------------------------------------------------------------------

    def batch(self, micro_step: int, parts: int = 1) -> dict:
        """The images of a micro-step: one of so many `parts` of a batch.

        Returns:
            normal, image: float32 (B, 3, H, W), x_n and x_a; mask: bool (B, H, W); from a bank with features also
            normal_features and features, lists of float32 (B, C_l, H_l, W_l).
        """
        s = self.settings
        size = s.batch_size // parts
        counters = range(micro_step * size, (micro_step + 1) * size)
        if self.bank is None:
            normal, damaged, masks = zip(*map(self.sample, counters), strict=True)
            masks = torch.from_numpy(np.stack(masks))
            return {"normal": to_tensor(normal), "image": to_tensor(damaged), "mask": masks}
        if self.bank_weights is not None:
            rows = weighted_rows(self.bank_weights, size, s.seed, micro_step)
        else:
            rows = np.array([self._shuffled(c, s.bank) for c in counters])
        anomalous = torch.tensor([training.step_generator(s.seed, c).random() < s.probability for c in counters])
        return self._from_bank(torch.from_numpy(rows), anomalous)

    def sample(self, counter: int):
        """Sample `counter` of the stream: x_n and x_a uint8 (H, W, 3), m bool (H, W); x_a is x_n in the normal half."""
        rng = np.random.default_rng([self.settings.seed, 2, counter])
        anomalous = rng.random() < self.settings.probability
        normal, damaged, mask, _ = self.pair(self._shuffled(counter, len(self.images)), rng)
        return (normal, damaged, mask) if anomalous else (normal, normal, np.zeros_like(mask))

    def _shuffled(self, counter: int, n: int) -> int:
        epoch, place = divmod(counter, n)
        return int(np.random.default_rng([self.settings.seed, 1, epoch]).permutation(n)[place])

    def _make_bank(self, encode) -> dict:
        s = self.settings
        pairs = [self.pair(k % len(self.images), np.random.default_rng([s.seed, 3, k]))[:3] for k in range(s.bank)]
        normal, damaged, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        bank = {"normal": normal, "image": damaged, "mask": torch.from_numpy(masks)}
        if encode:
            for role, images in (("normal_features", normal), ("features", damaged)):
                parts = [[f.half().cpu() for f in encode(to_tensor(images[k : k + 8]))] for k in range(0, s.bank, 8)]
                bank[role] = [torch.cat(level) for level in zip(*parts, strict=True)]
        return bank

    def _from_bank(self, rows: torch.Tensor, anomalous: torch.Tensor) -> dict:
        bank, choose = self.bank, rows.numpy()
        images = np.where(anomalous.numpy()[:, None, None, None], bank["image"][choose], bank["normal"][choose])
        batch = {
            "normal": to_tensor(bank["normal"][choose]),
            "image": to_tensor(images),
            "mask": bank["mask"][rows] & anomalous[:, None, None],
        }
        if "features" in bank:
            batch["normal_features"] = [level[rows].float() for level in bank["normal_features"]]
            batch["features"] = [
                torch.where(anomalous[:, None, None, None], level[rows].float(), clean)
                for level, clean in zip(bank["features"], batch["normal_features"], strict=True)
            ]
        return batch


def weighted_rows(weights, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Draw the rows of a step with replacement, in proportion to `weights` (n,): weighted sampling.

    Raises:
        InputError: a weight is negative or not finite, or all are zero.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise InputError("sampling weights must be finite, not negative, and not all zero")
    return training.step_generator(seed, step).choice(len(weights), batch_size, p=weights / weights.sum())


def rotated(image: np.ndarray, degrees: float, corners: int = cv2.BORDER_REFLECT) -> np.ndarray:
    """Turn an image about its centre; its mirrored edges, or black (`cv2.BORDER_CONSTANT`), fill the corners."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=corners)
