"""Training pairs (x_n, x_a, m): a normal image, the same with a pseudo-anomaly, and where it is.

What PAGMFR and DRAEM are trained on. Sample `c` of the endless stream follows from the seed and `c` alone, so the parts
of a large batch, several processes and a resumed run all see what one large batch would have shown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from adlib import settings as S
from adlib import synthesis
from adlib.errors import InputError
from adlib.images import read_image, to_tensor
from adlib.methods import training
from adlib.paths import data_dir
from adlib.synthesis.pagmfr import category_kind, judge_kind
from adlib.synthesis.registry import SomeFamilies

TRIES = 10


@dataclass(frozen=True)
class PairSettings(training.Options):
    """How training pairs are made; shared by the methods that are trained on them."""

    families: SomeFamilies = ("pagmfr",)  # of adlib.synthesis
    family_weights: tuple[S.NotNegative, ...] = ()  # how often each family is drawn, in proportion; () draws all alike
    kind: Literal["auto", "texture", "object"] = "auto"  # of category; auto: by name, or judged
    textures: str = ""  # folder of textures, also by its name below data/ ("dtd"); "" for textures made on the spot
    objects: str = ""  # folder of pictures of foreign objects; "" for objects made on the spot
    foreground: Literal["rules", "none"] = "rules"  # where they may be; rules: on the product
    probability: S.Closed = 0.5  # share of anomalous images in a batch
    rotate: S.Closed = 0.3  # probability that a texture image is turned, by up to 90 degrees
    jitter: S.Closed = 0.0  # augmentation: brightness and contrast change by up to this share
    flip: bool = False  # augmentation: mirror every second image
    bank: S.Whole = 0  # make so many pairs once and reuse them; 0 makes new ones all the time
    sampling: Literal["uniform", "small"] = "uniform"  # from the bank; small: by area^(-1/2)
    batch_size: S.Count = 32  # images an optimiser step
    accumulate: S.Count = 1  # parts that a batch is computed in, to fit the memory
    epochs: S.Count = 600  # passes over the training images, where there are no `steps`
    pin_memory: bool = False  # page-locked batches for a GPU
    workers: S.Whole = 1  # threads that prepare batches
    log_every: S.Whole = 0  # steps between two rows of the gradient flow and of the memory; 0 for none

    def check(self):
        if self.family_weights and len(self.family_weights) != len(self.families):
            raise InputError(f"family_weights needs one weight for each of {', '.join(self.families)}, or none at all")
        if self.family_weights and not sum(self.family_weights):
            raise InputError(f"family_weights {list(self.family_weights)} must not all be zero; or give none")
        if self.batch_size % self.accumulate:
            raise InputError(f"accumulate {self.accumulate} must divide batch_size {self.batch_size}")
        if self.sampling != "uniform" and not self.bank:
            raise InputError("sampling 'small' weighs the pairs of a bank; set bank to their number, for example 400")


class Pairs:
    """The stream of training pairs.

    Args:
        table: sample table of normal training images; `attrs["dataset"]` and the category choose kind and rule.
        resize: the geometric preparation; anomalies are made after it.
        settings: a `PairSettings`.
        encode: images (B, 3, H, W) -> list of frozen features; the bank then keeps features of both images (float16).

    Attributes:
        images: uint8 (n, H, W, 3), the normal images.
        kind: "texture" or "object".
        note: where foreign pixels come from, in words.
    """

    def __init__(self, table, resize, settings: PairSettings, encode=None):
        self.settings = s = settings
        self.images = np.stack([resize.image(read_image(path))[0] for path in table.image_path])
        dataset, category = str(table.attrs.get("dataset", "")), str(table.category.iloc[0])
        self.kind = s.kind if s.kind != "auto" else category_kind(dataset, category)
        if self.kind == "auto":
            self.kind = judge_kind(self.images[:: max(1, len(self.images) // 24)])
        self.sources = synthesis.Sources(folder(s.textures), folder(s.objects), list(table.image_path))
        made = [role for role in ("textures", "objects") if not getattr(s, role)]
        self.note = f"kind {self.kind}" + (f"; {' and '.join(made)} are made on the spot" if made else "")
        self.rule = None if s.foreground == "none" else synthesis.rule_for(dataset, category)
        self._foregrounds = {}
        self.weights = np.asarray(s.family_weights or [1] * len(s.families), dtype=np.float64)
        self.bank = self._make_bank(encode) if s.bank else None
        if s.sampling == "small":
            self.bank_weights = self.bank["mask"].flatten(1).sum(1).clamp_min(1).double().rsqrt().numpy()

    # -- one pair -----------------------------------------------------------------------------------------------------

    def pair(self, i: int, rng: np.random.Generator):
        """Make a pair on training image `i`: x_n and x_a uint8 (H, W, 3), m bool (H, W), and what was drawn.

        An anomaly that comes out empty is tried again, ten times; then the pair is a normal one.
        """
        s, turned = self.settings, False
        normal = self.images[i]
        if self.kind == "texture" and rng.random() < s.rotate:
            normal, turned = rotated(normal, float(rng.uniform(-90, 90))), True
        if s.flip and rng.random() < 0.5:
            normal, turned = np.ascontiguousarray(normal[:, ::-1]), True
        if s.jitter:
            gain, shift = 1 + rng.uniform(-s.jitter, s.jitter), 128 * rng.uniform(-s.jitter, s.jitter)
            normal = ((normal.astype(np.float32) - 128) * gain + 128 + shift).round().clip(0, 255).astype(np.uint8)
        foreground = self._foreground(None if turned else i, normal)
        for _ in range(TRIES):
            family = str(rng.choice(s.families, p=self.weights / self.weights.sum()))
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

    def batch(self, micro_step: int) -> dict:
        """The images of a micro-step: one of `accumulate` parts of a batch.

        Returns:
            normal, image: float32 (B, 3, H, W), x_n and x_a; mask: bool (B, H, W); from a bank with features also
            normal_features and features, lists of float32 (B, C_l, H_l, W_l).
        """
        s = self.settings
        size = s.batch_size // s.accumulate
        counters = range(micro_step * size, (micro_step + 1) * size)
        if self.bank is None:
            pairs = [self.sample(c) for c in counters]
            normal, damaged, masks = zip(*pairs, strict=True)
            return {
                "normal": to_tensor(normal),
                "image": to_tensor(damaged),
                "mask": torch.from_numpy(np.stack(masks)),
            }
        if s.sampling == "small":
            rows = training.weighted_rows(self.bank_weights, size, s.seed, micro_step)
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
        made = [self.pair(k % len(self.images), np.random.default_rng([s.seed, 3, k]))[:3] for k in range(s.bank)]
        normal, damaged, masks = (np.stack(part) for part in zip(*made, strict=True))
        bank = {"normal": normal, "image": damaged, "mask": torch.from_numpy(masks)}
        if encode:
            for role, images in (("normal_features", normal), ("features", damaged)):
                parts = [[f.half().cpu() for f in encode(to_tensor(images[k : k + 8]))] for k in range(0, s.bank, 8)]
                bank[role] = [torch.cat(level) for level in zip(*parts, strict=True)]
        return bank

    def _from_bank(self, rows: torch.Tensor, anomalous: torch.Tensor) -> dict:
        bank, choose = self.bank, rows.numpy()
        shown = np.where(anomalous.numpy()[:, None, None, None], bank["image"][choose], bank["normal"][choose])
        batch = {
            "normal": to_tensor(bank["normal"][choose]),
            "image": to_tensor(shown),
            "mask": bank["mask"][rows] & anomalous[:, None, None],
        }
        if "features" in bank:
            batch["normal_features"] = [level[rows].float() for level in bank["normal_features"]]
            batch["features"] = [
                torch.where(anomalous[:, None, None, None], level[rows].float(), clean)
                for level, clean in zip(bank["features"], batch["normal_features"], strict=True)
            ]
        return batch


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turn an image about its centre, mirroring its edges into the corners."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def folder(name: str) -> Path | None:
    """A folder of source images: as given, or by its name below `data/`.

    None for "", and for a name with a question mark ("dtd?") whose folder is not there.
    """
    name, optional = name.removesuffix("?"), name.endswith("?")
    if not name:
        return None
    found = next((place for place in (Path(name), data_dir() / name) if place.is_dir()), Path(name))
    return None if optional and not found.is_dir() else found
