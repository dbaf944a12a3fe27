"""DRAEM: a discriminatively trained reconstruction (Zavrtanik, Kristan and Skočaj, ICCV 2021, arXiv 2108.07610).

    fit    pseudo-anomalies on normal images -> one network paints them away, a second one compares the two pictures
    score  probability of every pixel -> map; the largest mean over 21 x 21 pixels -> image score

No pretrained features: both networks learn from pixels in [0, 1] alone, and that scale is part of the method (a port
that normalised by ImageNet's mean failed). It is the baseline of PAGMFR, trained by the same loop on the same pairs.

The defaults are those of the authors' code. Where we differ: 15 % of the normal images are held out for a threshold,
weights start from torch's own initialisation, and nothing is selected on test images.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, Resize, backbones, batches, to_tensor
from adlib.images.colour import ssim_map
from adlib.methods import Scores, storage, training
from adlib.methods.few_shot.support_images import below, check_queries
from adlib.methods.normals import collect, split_normals, without_selection
from adlib.methods.pagmfr.network import block
from adlib.methods.pagmfr.pagmfr import image_scores
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib.methods.reconstruction import synthetic_images, synthetic_score
from adlib.settings import as_dict, build
from adlib.synthesis.registry import SomeFamilies


@dataclass(frozen=True)
class DRAEMSettings(PairSettings):
    """Settings of DRAEM; defaults from the authors' code."""

    families: SomeFamilies = ("perlin_dtd",)  # of adlib.synthesis
    kind: Literal["auto", "texture", "object"] = "texture"  # every image is turned with probability `rotate`
    foreground: Literal["rules", "none"] = "none"  # anomalies anywhere
    batch_size: S.Count = 8  # images an optimiser step
    image_size: S.ImageSize = 256  # network input, pixels
    resize: S.ResizeMode = "stretch"
    scale: S.Count | None = None  # pixels, only for resize "short_side"
    width: S.Count = 128  # channels of the reconstruction at full resolution
    width_discriminator: S.Count = 64  # of the discriminator
    gamma: S.NotNegative = 2.0  # focal loss
    learning_rate: S.Positive = 1e-4  # Adam
    epochs: S.Count = 700  # passes over the training images; the rate falls to a fifth at 80 % and again at 90 %


# -- networks ---------------------------------------------------------------------------------------------------------

WIDTHS = (1, 2, 4, 8, 8)  # channels at strides 1, 2, 4, 8, 16, in units of the width


class HourGlass(nn.Module):
    """Down to stride 16 and up again.

    Args:
        inputs, outputs: channels.
        width: channels at full resolution.
        skips: hand the maps of the way down to the way up (a U-Net). Without them everything must pass the middle.
    """

    def __init__(self, inputs: int, outputs: int, width: int, skips: bool):
        super().__init__()
        self.skips = skips
        widths = [width * factor for factor in WIDTHS]
        before = [inputs, *widths]
        self.down = nn.ModuleList(pair(a, b) for a, b in zip(before, widths, strict=False))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(block(deep, shallow))
            self.join.append(pair(shallow * (2 if skips else 1), shallow))
        self.head = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x):
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        passed = []
        for i, step in enumerate(self.down):
            x = step(F.max_pool2d(x, 2) if i else x)
            passed.append(x)
        for up, join, way_down in zip(self.up, self.join, passed[-2::-1], strict=True):
            x = up(F.interpolate(x, size=way_down.shape[-2:], mode="bilinear", align_corners=False))
            x = join(torch.cat([x, way_down], dim=1) if self.skips else x)
        return self.head(x)


def pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with normalisation and ReLU."""
    return nn.Sequential(block(inputs, outputs), block(outputs, outputs))


def losses(normal, reconstructed, logits, mask, gamma: float = 2.0) -> dict[str, torch.Tensor]:
    """L2 + (1 - SSIM) of the reconstruction, focal loss of the two classes; all of weight 1.

    Args:
        normal, reconstructed: (B, 3, H, W) in [0, 1], x_n and what the first network made of x_a.
        logits: (B, 2, H, W), normal and anomalous.
        mask: bool (B, H, W).
    """
    log_p = logits.float().log_softmax(dim=1)
    log_p = torch.where(mask, log_p[:, 1], log_p[:, 0])  # (B, H, W), of the true class
    return {
        "l2": F.mse_loss(reconstructed.float(), normal),
        "ssim": 1 - ssim_map(reconstructed, normal).mean(),
        "focal": (-((1 - log_p.exp()) ** gamma) * log_p).mean(),
    }


# -- the method -------------------------------------------------------------------------------------------------------


class DRAEM:
    """Two networks: one that repairs, one that compares.

    Args:
        settings: changes to `DRAEMSettings`, by name.

    Attributes after `fit`:
        reconstruction, discriminator: the trained networks.
        preparation_s: seconds before the first step; only in the session that trained.
        history: `adlib.methods.training.History`.
        normal_scores, normal_map_maxima: float32 (n,), of held-out normal images.
    """

    name = "draem"
    Settings = DRAEMSettings

    def __init__(self, **settings):
        self.settings = s = build(DRAEMSettings, settings, owner="draem")
        size = s.image_size if isinstance(s.image_size, int) else tuple(s.image_size)
        self.resize = Resize(size, s.resize, s.scale if s.resize == "short_side" else None)
        if min(self.resize.hw) < 32:
            raise InputError(f"image_size {s.image_size} is too small for four halvings; give at least 32 pixels")
        self.device = backbones.default_device()
        self._build()

    def _build(self) -> None:
        """Take untrained networks, and forget what was measured with others."""
        s = self.settings
        for name in ("normal_scores", "normal_map_maxima"):
            self.__dict__.pop(name, None)
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            self.reconstruction = HourGlass(3, 3, s.width, skips=False)
            self.discriminator = HourGlass(6, 2, s.width_discriminator, skips=True)
        for network in (self.reconstruction, self.discriminator):
            network.to(self.device, memory_format=torch.channels_last).eval()

    def fit(self, table, validation=None):
        """Train on a sample table of normal images; arguments as for `PAGMFR.fit`."""
        started = time.perf_counter()
        table, held_out = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, held_out)
        self._build()
        with self._memory_errors("before the first step"):
            self.pairs = Pairs(table, self.resize, s)
        print(f"DRAEM: {self.pairs.note}", flush=True)
        synthetic = synthetic_images(held_out, s, self.resize) if s.watched else None
        modules = {"reconstruction": self.reconstruction, "discriminator": self.discriminator}
        optimizer = torch.optim.Adam([p for module in modules.values() for p in module.parameters()], s.learning_rate)
        n_steps = s.epochs * math.ceil(len(table) / s.batch_size) if s.steps is None else s.steps
        falls = [round(0.8 * n_steps), round(0.9 * n_steps)]
        self.preparation_s = round(time.perf_counter() - started, 3)
        self.history = training.train(
            modules,
            [optimizer],
            self.pairs.batch,
            self.losses,
            n_steps,
            s,
            origin=training.origin(self, table, held_out),
            schedulers=[torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.2)],
            validate=(lambda: self._validate(synthetic)) if synthetic else None,
            accumulate=s.accumulate,
            workers=s.workers,
            pin_memory=s.pin_memory,
            log_every=s.log_every,
            progress="DRAEM",
        )
        self._held_out = held_out
        self._score_held_out()
        return self

    def losses(self, modules, batch, _step) -> dict[str, torch.Tensor]:
        """The three losses of a batch of pairs."""
        normal, image, mask = (batch[key].to(self.device) for key in ("normal", "image", "mask"))
        repaired = modules["reconstruction"](image)
        logits = modules["discriminator"](torch.cat([repaired, image], dim=1))
        with torch.autocast(image.device.type, enabled=False):
            return losses(normal, repaired.float(), logits, mask, self.settings.gamma)

    def _validate(self, synthetic) -> dict[str, float]:
        images, masks, labels = synthetic
        found = [self._scores(to_tensor(images[i : i + 8]).to(self.device)) for i in range(0, len(images), 8)]
        return synthetic_score(
            np.concatenate([f.image for f in found]), np.concatenate([f.map for f in found]), masks, labels
        )

    def _score_held_out(self) -> None:
        with self._memory_errors("after the last step"):
            held_out = batches(self._held_out.image_path, self.resize, 8)
            found = collect(self._scores(batch.images.to(self.device)) for batch in held_out)
        self.normal_scores, self.normal_map_maxima = found

    def _memory_errors(self, when: str):
        # Outside the steps, neither the batch nor its gradients take memory.
        usable = set(training.memory_knobs(self.settings)) - {"batch_size", "accumulate"}
        return training.memory_errors("DRAEM", when, tuple(usable))

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and score the held-out normal images again."""
        if not hasattr(self, "_held_out"):
            raise InputError("use_snapshot needs the held-out images of fit; they are not saved with a model")
        self.reconstruction.load_state_dict(states["reconstruction"])
        self.discriminator.load_state_dict(states["discriminator"])
        self._score_held_out()

    @torch.no_grad()
    def repair(self, images: torch.Tensor) -> torch.Tensor:
        """What the first network makes of images (B, 3, H, W) in [0, 1]: the same shape and range."""
        return self.reconstruction(self._queries(images)).clamp(0, 1)

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: probability of the class "anomalous" at every pixel."""
        return self._scores(self._queries(batch))

    def _queries(self, batch: Batch | torch.Tensor) -> torch.Tensor:
        """The images of a batch, on the device."""
        if not hasattr(self, "normal_scores"):
            raise InputError("this DRAEM is not fitted; call fit(table) before it scores")
        images = batch.images if isinstance(batch, Batch) else batch
        check_queries(images)
        return images.to(self.device)

    @torch.no_grad()
    def _scores(self, images: torch.Tensor) -> Scores:
        logits = self.discriminator(torch.cat([self.reconstruction(images), images], dim=1))  # (B, 2, H, W)
        maps = logits.softmax(dim=1)[:, 1].cpu().numpy()
        return Scores(image_scores(maps, "mean21"), maps)

    # -- save and load --------------------------------------------------------------------------------------------

    def save(self, path):
        """Write the fitted method to the folder `path`."""
        if not hasattr(self, "normal_scores"):
            raise InputError("this DRAEM is not fitted; call fit(table) before save")
        tensors = {"normal_scores": torch.from_numpy(self.normal_scores)}
        tensors["normal_map_maxima"] = torch.from_numpy(self.normal_map_maxima)
        for name in ("reconstruction", "discriminator"):
            tensors |= {f"{name}.{key}": value for key, value in getattr(self, name).state_dict().items()}
        storage.save_model(path, self.name, as_dict(self.settings), tensors)

    @classmethod
    def load(cls, path):
        """Read a fitted method."""
        header, tensors = storage.read_model(path)
        method = cls(**header["settings"])
        with storage.parts_of(path):
            for name in ("reconstruction", "discriminator"):
                getattr(method, name).load_state_dict(below(f"{name}.", tensors))
            method.normal_scores = tensors["normal_scores"].numpy()
            method.normal_map_maxima = tensors["normal_map_maxima"].numpy()
        return method
