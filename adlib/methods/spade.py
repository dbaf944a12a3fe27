"""SPADE: nearest images first, then nearest patches within them (Cohen & Hoshen, 2020, arXiv 2005.02357).

image  mean distance of the pooled last feature to its K nearest normal images            (section 3.2)
pixel  distance of each patch to the nearest patch, at any place, of those K images       (section 3.3)
"""

from dataclasses import dataclass

import numpy as np
import torch

from adlib import settings as S
from adlib.datasets import check_training_table
from adlib.images import Batch, backbones, neighbours, patches
from adlib.images.features import check_finite, frozen_features, resize_of
from adlib.images.maps import check_images, upsample_and_smooth
from adlib.methods import Scores, storage
from adlib.methods.few_shot.support_images import score_normals, split_support, support_ids
from adlib.settings import build

IMAGE_STAGE = 4  # its maps, pooled over the image, are what images are compared by (section 3.1)


@dataclass(frozen=True)
class SpadeSettings(S.Settings):
    """Settings of SPADE; defaults from the paper for MVTec AD (section 4.1)."""

    backbone: str = "wide_resnet50_2.tv_in1k"
    stages: S.Stages = (1, 2, 3)  # layer1, layer2, layer3: pyramid of the patches
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 224  # network input, pixels
    resize: S.ResizeMode = 256  # shorter side, pixels; then a crop of the centre
    k: S.Count | None = None  # images to fit on, the same choice as `few_shot` makes; None: all but `hold_out`
    hold_out: S.Share = 0.15  # share of the normals kept for the threshold when k is None
    n_nearest: S.Count = 50  # K, nearest normal images
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels
    seed: S.Whole = 0  # choice of images


class Spade:
    """Nearest images, then nearest patches.

    Attributes after `fit`:
        pooled: (N, C), one vector per image; gallery: (N, P, D), its patches, on the CPU and
            above a few GiB in a temporary file.
        normal_scores, normal_map_maxima: of held-out normals, or of each image by the others.
    """

    name = "spade"
    Settings = SpadeSettings
    STATE = storage.State(tensors=("pooled", "gallery"), facts=("support_ids",))
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(SpadeSettings, settings, owner=self.name)
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        stages = dict.fromkeys((*s.stages, IMAGE_STAGE))  # each once
        self.backbone = backbones.create(s.backbone, tuple(stages), s.weights, self.resize.hw).to(self.device)
        self.n_pyramid = len(s.stages)

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed images (B, 3, H, W) in [0, 1]: pooled vectors (B, C) and patches (B, D, h, w)."""
        with torch.inference_mode():
            features = self.backbone(images.to(self.device))
            return features[-1].mean((2, 3)), patches.mean_embedding(features[: self.n_pyramid], patch_size=1)

    def fit(self, table, validation=None):
        """Store the features of a table of normal training images."""
        check_training_table(table)
        support, held_out = split_support(table, self.settings, validation)
        self.take_in(support)
        self.normal_scores, self.normal_map_maxima = score_normals(self, support, held_out)
        return self

    def take_in(self, table) -> None:
        """Store the features of all images of a table."""
        self.support_ids = support_ids(table)
        pooled = []

        def grids(images):
            vectors, grid = self.embed(images)
            pooled.append(vectors)
            return grid

        gallery, _ = frozen_features(table.image_path, self.resize, grids)
        self.pooled = torch.cat(pooled).clone()
        check_finite(self.pooled, "the training images")
        self.gallery = torch.from_numpy(gallery.reshape(len(gallery), -1, gallery.shape[-1]))

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]."""
        storage.check_fitted(self)
        images = check_images(batch)
        pooled, grids = self.embed(images)
        index = neighbours.NearestNeighbours().fit(self.pooled.cpu())
        squared, nearest = index.query(pooled.cpu().numpy(), min(self.settings.n_nearest, len(self.pooled)))  # (B, K)
        rows = grids.flatten(2).mT.cpu().numpy()  # (B, P, D)
        cells = []
        for own, images_near in zip(rows, nearest, strict=True):
            gallery = self.gallery[torch.from_numpy(np.sort(images_near))].flatten(0, 1)  # (K P, D)
            distances, _ = neighbours.NearestNeighbours().fit(gallery.cpu()).query(own, 1)
            cells.append(np.sqrt(distances[:, 0]))
        cells = torch.from_numpy(np.stack(cells)).view(len(images), *grids.shape[2:])
        maps = upsample_and_smooth(cells, tuple(images.shape[-2:]), self.settings.sigma)
        return Scores(squared.mean(1).astype(np.float32), maps)
