"""DRAEM: a discriminatively trained reconstruction (Zavrtanik, Kristan and Skočaj, ICCV 2021, arXiv 2108.07610).

    fit    pseudo-anomalies on normal images -> one network paints them away, a second one compares the two pictures
    score  probability of every pixel -> map; the largest mean over 21 x 21 pixels of 256 x 256 -> image score

No pretrained features: both networks learn from pixels in [0, 1] alone, and that scale is part of the method (a port
that normalised by ImageNet's mean failed). It is the baseline of PAGMFR, trained by the same loop on the same pairs.

The defaults are those of the authors' code but for the networks: ours are leaner and see mirrored borders. With
`network="authors"` they are theirs, and so are first weights, losses, corners of turned images and the image score.
Where we still differ then: 15 % of the normal images are held out for a threshold, nothing is selected on test images,
an empty mask is drawn again where theirs becomes a normal sample, images come in shuffled epochs where theirs are drawn
with replacement, and textures are changed by operations of our own.
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, backbones, batches
from adlib.images.colour import ssim_map
from adlib.images.features import resize_of
from adlib.images.maps import check_images, smooth
from adlib.methods import Scores, storage, training
from adlib.methods.memory import memory_errors
from adlib.methods.normals import check_held_out, collect, split_normals, without_selection
from adlib.methods.pagmfr.network import block
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib.settings import build
from adlib.synthesis.judge import Judge
from adlib.synthesis.registry import SomeFamilies


@dataclass(frozen=True)
class DRAEMSettings(PairSettings):
    """Settings of DRAEM; defaults from the authors' code."""

    families: SomeFamilies = ("perlin_dtd",)  # of adlib.synthesis
    kind: Literal["auto", "texture", "object"] = "texture"  # every image is turned with probability `rotate`
    foreground: Literal["rules", "none"] = "none"  # anomalies anywhere
    batch_size: S.Count = 8  # images per optimiser step
    image_size: S.ImageSize = 256  # network input, pixels
    resize: Literal["stretch", "letterbox", "aspect"] = "stretch"
    network: Literal["lean", "authors"] = "lean"  # authors: their networks and losses to the letter
    interpolation: S.Interpolation = "area"  # of the resized image; the authors' code: linear
    width: S.Count = 128  # channels of the reconstruction at full resolution
    width_discriminator: S.Count = 64  # of the discriminator
    learning_rate: S.Positive = 1e-4  # Adam
    epochs: S.Count = 700  # passes over the training images; the rate falls to a fifth at 80 % and again at 90 %
    sigma: S.NotNegative = 0.0  # Gaussian smoothing of the map, input pixels (the image score has its window); paper: 0
    average: S.Closed = 0.0  # decay of the running mean of the weights that scores are made with; 0: no mean (paper)


# -- networks ---------------------------------------------------------------------------------------------------------

WIDTHS = (1, 2, 4, 8, 8)  # channels at strides 1, 2, 4, 8, 16, in units of the width
WIDTHS_UP = (8, 4, 2, 1, 1)  # of the authors' way up: after joining the map of stride 16, 8, 4, 2, 1
SMOOTH = 1e-5  # of the labels in the authors' focal loss


class HourGlass(nn.Module):
    """Down to stride 16 and up again.

    Args:
        inputs, outputs: channels.
        width: channels at full resolution.
        skips: hand the maps of the way down to the way up (a U-Net). Without them everything must pass the middle.
        authors: the authors' networks: with skips down to stride 32, without them narrowed by the second convolution
            of a pair; upsampling with aligned corners; biases.
    """

    def __init__(self, inputs: int, outputs: int, width: int, skips: bool, authors: bool = False):
        super().__init__()
        self.skips, self.align_corners = skips, authors
        down = [width * factor for factor in (*WIDTHS, *([8] if authors and skips else []))]
        up = [width * factor for factor in WIDTHS_UP[1 - skips :]] if authors else down[-2::-1]
        self.down = nn.ModuleList(pair(a, b, bias=authors) for a, b in zip([inputs, *down], down, strict=False))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for deep, own, beside in zip([down[-1], *up], up, down[-2::-1], strict=False):
            middle = deep if authors and not skips else own
            self.up.append(block(deep, middle, bias=authors))
            self.join.append(pair(middle + beside * skips, own, middle, bias=authors))
        self.head = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x):
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        passed = []
        for i, step in enumerate(self.down):
            x = step(F.max_pool2d(x, 2) if i else x)
            passed.append(x)
        for up, join, way_down in zip(self.up, self.join, passed[-2::-1], strict=True):
            x = up(F.interpolate(x, size=way_down.shape[-2:], mode="bilinear", align_corners=self.align_corners))
            x = join(torch.cat([x, way_down], dim=1) if self.skips else x)
        return self.head(x)


def pair(inputs: int, outputs: int, middle: int | None = None, bias: bool = False) -> nn.Sequential:
    """Two convolutions with normalisation and ReLU; the first gives `middle` channels, by default `outputs`."""
    middle = middle or outputs
    return nn.Sequential(block(inputs, middle, bias=bias), block(middle, outputs, bias=bias))


def start_like_the_authors(module: nn.Module) -> None:
    """First weights of one layer: convolutions N(0, 0.02), scales of batch normalisation N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)


def losses(normal, reconstructed, logits, mask, authors: bool = False, gamma: float = 2.0) -> dict[str, torch.Tensor]:
    """L2 + (1 - SSIM) of the reconstruction, focal loss of the two classes; all of weight 1.

    Args:
        normal, reconstructed: (B, 3, H, W) in [0, 1], x_n and what the first network made of x_a.
        logits: (B, 2, H, W), normal and anomalous.
        mask: bool (B, H, W).
        authors: zeros beyond the border count in SSIM, and the focal loss has smooth labels.
    """
    log_p = logits.float().log_softmax(dim=1)
    log_p = torch.where(mask, log_p[:, 1], log_p[:, 0])  # (B, H, W), of the true class
    if authors:
        log_p = (SMOOTH * 2 + (1 - 2 * SMOOTH) * log_p.exp()).log()
    return {
        "l2": F.mse_loss(reconstructed.float(), normal),
        "ssim": 1 - ssim_map(reconstructed, normal, border="constant" if authors else "reflect").mean(),
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
    STATE = storage.State(modules=("reconstruction", "discriminator"))
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(DRAEMSettings, settings, owner="draem")
        self.resize = resize_of(s)
        self.authors = s.network == "authors"
        least = 64 if self.authors else 32
        if min(self.resize.hw) < least:
            raise InputError(
                f"image_size {s.image_size} is too small to be halved so often; give at least {least} pixels"
            )
        self.device = backbones.default_device()

    def build_networks(self) -> None:
        """Make both networks, untrained."""
        s = self.settings
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            self.reconstruction = HourGlass(3, 3, s.width, False, self.authors)
            self.discriminator = HourGlass(6, 2, s.width_discriminator, True, self.authors)
            for network in (self.reconstruction, self.discriminator) if self.authors else ():
                network.apply(start_like_the_authors)
        for network in (self.reconstruction, self.discriminator):
            network.to(self.device, memory_format=torch.channels_last).eval()

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a sample table of normal images; arguments as for `PAGMFR.fit`."""
        started = time.perf_counter()
        table, held_out = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, held_out)
        for name in self.STATE.arrays:  # measured with other networks
            self.__dict__.pop(name, None)
        self.build_networks()
        with memory_errors("DRAEM", "before the first step", s):
            corners = cv2.BORDER_CONSTANT if self.authors else cv2.BORDER_REFLECT
            self.pairs = Pairs(table, self.resize, s, corners=corners)
        print(f"DRAEM: {self.pairs.note}", flush=True)
        judge = Judge(held_out, self.resize, seed=s.seed) if s.watched(held_out) else None
        networks = {"reconstruction": self.reconstruction, "discriminator": self.discriminator}
        # Those that are scored with: they follow the trained ones as running means, or are the same.
        self.trained = copy.deepcopy(networks) if s.average else networks
        optimizer = torch.optim.Adam([p for m in self.trained.values() for p in m.parameters()], s.learning_rate)
        n_steps = s.epochs * math.ceil(len(table) / s.batch_size) if s.steps is None else s.steps
        falls = [round(0.8 * n_steps), round(0.9 * n_steps)]
        self.preparation_s = round(time.perf_counter() - started, 3)
        self.history = training.train(
            networks | {f"trained_{name}": module for name, module in self.trained.items() if s.average},
            [optimizer],
            self.pairs.batch,
            self.losses,
            n_steps,
            s,
            checkpoint=checkpoint,
            origin=training.origin(self, table, held_out),
            schedulers=[torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.2)],
            validate=(lambda: judge.look(self._scores)) if judge else None,
            progress="DRAEM",
        )
        self._held_out = held_out
        self._score_held_out()
        return self

    def losses(self, modules, batch, step) -> dict[str, torch.Tensor]:
        """The three losses of a batch of pairs."""
        prefix = "trained_" if self.settings.average else ""
        if prefix and step:
            for name, module in self.trained.items():
                training.move_mean(getattr(self, name), module, self.settings.average, step)
        normal, image, mask = (batch[key].to(self.device) for key in ("normal", "image", "mask"))
        repaired = modules[prefix + "reconstruction"](image)
        logits = modules[prefix + "discriminator"](torch.cat([repaired, image], dim=1))
        with torch.autocast(image.device.type, enabled=False):
            return losses(normal, repaired.float(), logits, mask, self.authors)

    def _score_held_out(self) -> None:
        with memory_errors("DRAEM", "after the last step", self.settings):
            held_out = batches(self._held_out.image_path, self.resize, 8)
            self.normal_scores, self.normal_map_maxima = collect(self._scores(batch.images) for batch in held_out)

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and score the held-out normal images again."""
        check_held_out(self)
        self.reconstruction.load_state_dict(states["reconstruction"])
        self.discriminator.load_state_dict(states["discriminator"])
        self._score_held_out()

    @torch.no_grad()
    def repair(self, images: torch.Tensor) -> torch.Tensor:
        """What the first network makes of images (B, 3, H, W) in [0, 1]: the same shape and range."""
        images = self._queries(images)
        return self.reconstruction(images).clamp(0, 1)

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: probability of the class "anomalous" at every pixel."""
        return self._scores(self._queries(batch))

    def _queries(self, batch: Batch | torch.Tensor) -> torch.Tensor:
        """The images of a batch, on the device."""
        storage.check_fitted(self, *self.STATE.arrays)
        return check_images(batch).to(self.device)

    @torch.no_grad()
    def _scores(self, images: torch.Tensor) -> Scores:
        images = images.to(self.device)
        logits = self.discriminator(torch.cat([self.reconstruction(images), images], dim=1))  # (B, 2, H, W)
        maps = logits.softmax(dim=1)[:, 1].cpu().numpy()
        return Scores(window_maxima(maps, *self.window), smooth(maps, self.settings.sigma))

    @property
    def window(self) -> tuple[int, int]:
        """Border and side of the window whose largest mean is the image score, as `window_maxima` takes them."""
        if self.authors:
            return cv2.BORDER_CONSTANT, 21
        # The paper's share of the image, an odd number.
        return cv2.BORDER_REFLECT, 2 * round(21 / 256 * min(self.resize.hw) / 2 - 0.5) + 1


def window_maxima(maps: np.ndarray, border: int = cv2.BORDER_REFLECT, side: int = 21) -> np.ndarray:
    """Return the largest mean over a window of side x side pixels: (B, H, W) -> float32 (B,).

    Args:
        border: what is beyond the edges: the mirrored map, or zeros that count (`cv2.BORDER_CONSTANT`, the authors').
    """
    return np.stack([cv2.blur(m, (side, side), borderType=border).max() for m in maps])
