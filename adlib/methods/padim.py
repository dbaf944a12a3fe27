"""PaDiM: one Gaussian a position (Defard et al., ICPR workshops 2021, arXiv 2011.08785).

    fit    features of all stages on the grid of the first, d random channels -> mean, covariance + 0.01 I a position
    score  Mahalanobis distance of each patch to the Gaussian of its position  (Eq. 2)

Positions are not compared with each other, so PaDiM suits aligned products. Few images are enough to run it: the
added 0.01 I keeps every covariance invertible (section 3.2), but with k images its rank is at most k - 1.
"""

from dataclasses import dataclass

import numpy as np
import torch

from adlib import settings as S
from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import Batch, backbones, patches
from adlib.images.features import frozen_features, resize_of
from adlib.images.maps import check_images, upsample_and_smooth
from adlib.methods import Scores, storage
from adlib.methods.few_shot.support_images import score_normals, split_support, support_ids
from adlib.settings import build

EPSILON = 0.01  # added to the diagonal of each covariance in the paper, whose features vary by about 1


@dataclass(frozen=True)
class PadimSettings(S.Settings):
    """Settings of PaDiM; defaults from the paper for MVTec AD (section 4.2, PaDiM-WR50-Rd550)."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    stages: S.Stages = (1, 2, 3)  # layer1, layer2, layer3
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 224  # network input, pixels
    resize: S.ResizeMode = 256  # shorter side, pixels; then a crop of the centre
    k: S.Count | None = None  # images to fit on, the same choice as `few_shot` makes; None: all but `hold_out`
    hold_out: S.Share = 0.15  # share of the normals kept for the threshold when k is None
    d: S.Count = 550  # channels kept at random
    ridge: S.Positive | None = None  # added to each covariance, in mean variances of the features; None: 0.01 (paper)
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels
    seed: S.Whole = 0  # channels, choice of images


class Padim:
    """Gaussians over positions.

    Attributes after `fit`:
        channels: int64 (d,), the random choice.
        mean: (P, d); whitening: (P, d, d), inverse Cholesky factors, so that distance = |whitening (x - mean)|.
        normal_scores, normal_map_maxima: of held-out normals, or of each image by the others.
    """

    name = "padim"
    Settings = PadimSettings
    STATE = storage.State(tensors=("channels", "mean", "whitening"), facts=("support_ids",))
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(PadimSettings, settings, owner=self.name)
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) in [0, 1] as (B, C, h, w), channels of all stages."""
        with torch.inference_mode():
            return patches.mean_embedding(self.backbone(images.to(self.device)), patch_size=1)

    def fit(self, table, validation=None):
        """Estimate the Gaussians from a table of normal training images."""
        check_training_table(table)
        support, held_out = split_support(table, self.settings, validation)
        self.take_in(support)
        self.normal_scores, self.normal_map_maxima = score_normals(self, support, held_out)
        return self

    def take_in(self, table) -> None:
        """Estimate the Gaussians from all images of a table."""
        s = self.settings
        self.support_ids = support_ids(table)
        channels = np.sort(np.random.default_rng(s.seed).permutation(sum(self.backbone.channels))[: s.d])
        self.channels = torch.from_numpy(channels)
        grids, _ = frozen_features(  # the other channels are not even stored
            table.image_path, self.resize, lambda images: self.embed(images)[:, channels]
        )
        x = torch.from_numpy(grids).to(self.device)  # (N, h, w, d)
        x = x.permute(0, 3, 1, 2).contiguous().flatten(2).permute(2, 0, 1)  # (P, N, d)
        # Over all images and places, so that features of a single image vary as well.
        epsilon = (s.ridge or 0) * float(x.flatten(0, 1).var(0, correction=0).mean()) or EPSILON
        self.mean = x.mean(1)  # (P, d)
        x = x - self.mean[:, None]
        identity = torch.eye(x.shape[2], device=x.device)
        self.whitening = torch.empty(len(x), x.shape[2], x.shape[2])
        for start in range(0, len(x), 64):  # in blocks: the (P, d, d) covariances need not exist at once
            block = x[start : start + 64]
            covariance = block.mT @ block / max(1, block.shape[1] - 1) + epsilon * identity  # (64, d, d)
            factor = torch.linalg.cholesky(covariance)
            inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            self.whitening[start : start + 64] = inverse.cpu()
        self.whitening = self.whitening.to(self.device)

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: Mahalanobis distances, enlarged and smoothed; their maximum."""
        storage.check_fitted(self)
        images = check_images(batch)
        grids = self.embed(images)
        if grids.shape[2] * grids.shape[3] != len(self.mean):
            raise InputError(
                f"images of {images.shape[2]}x{images.shape[3]} have other positions than those this PaDiM was fitted "
                f"on; resize them to {self.resize.hw[0]}x{self.resize.hw[1]}"
            )
        x = grids[:, self.channels].flatten(2).permute(2, 1, 0) - self.mean[:, :, None]  # (P, d, B)
        with torch.inference_mode():
            distances = torch.bmm(self.whitening, x).norm(dim=1).T  # (B, P)
        distances = distances.reshape(len(images), *grids.shape[2:])
        maps = upsample_and_smooth(distances, tuple(images.shape[-2:]), self.settings.sigma)
        return Scores(maps.max((1, 2)), maps)
