"""The unified model: one set of weights for all products; what is normal comes from the support alone.

    condition  k normal images -> one memory per stage: patches, turned copies, yardsticks, normal images in their light
    score      distances to the support and to the query's own other cells -> small head -> a logit per cell ->
               image logit, map, p-value

The design joins the two projects that stopped half-way (see the README): the comparison with a support of `few_shot`,
and the comparison of an image's cells with each other of `contrastive` (`adlib.methods.few_shot.references`).

The head sees distances and never the patch itself, so it cannot memorise what training products look like (compare
ResAD, Yao et al., NeurIPS 2024, arXiv 2410.20047). Each is standardised by what the support images get from each
other. Its last layer starts at zero: the untrained model *is* the detector of ratios, step 0 of the training. It
learns from products drawn by code (`adlib.datasets.demo.products`) and from those that are given, by a loss that ranks
the defective images of a product above its good ones.
"""

import zlib
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import to_tensor
from adlib.images.maps import enlarge, smooth, top_mean
from adlib.methods import training
from adlib.methods.few_shot import episodic_training, losses, references
from adlib.methods.few_shot.few_shot import FewShot, SupportSettings
from adlib.methods.few_shot.support_images import check_support, distinct, jittered, rotated

LOG_2 = float(np.log(2))
N_COPIES = 4  # changed copies of a single support image that give it a yardstick
BETA = 2.4  # weight of log(1 + rho) in the logit
BIAS = -2.0  # logit of a patch exactly as far away as its yardstick, rho = 1
WIDTH = 16  # channels of the head
QUERIES = 12  # of a product in the training, good and defective ones, at most so many each
References = Annotated[
    tuple[Literal["turned", "own"], ...], S.Must(lambda v: len(set(v)) == len(v), "name each reference once")
]


@dataclass(frozen=True)
class UnifiedSettings(SupportSettings):
    """Settings of the unified model. The design is ours, and so are the defaults."""

    image_score: Literal["max", "top"] = "top"  # mean of the highest 1 % of cells, as a logit
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels at 224
    layer_weights: tuple[S.NotNegative, ...] | None = None  # weight of each stage; None: equal
    whiten: S.ShareTo1 = 0.05  # weight of the identity in S, in (0, 1]; 1: a scale and no directions
    references: References = ("turned", "own")  # beside the support: turned copies where parts lie freely, own cells
    # Training.
    steps: S.Count = 400  # optimiser steps
    episodes: S.Count = 4  # products per step
    drawn_products: S.Whole = 100  # products drawn by code to learn from

    def check(self):
        weights = self.layer_weights
        if weights is not None and (len(weights) != len(self.stages) or not sum(weights)):
            raise InputError(
                f"layer_weights {list(weights)} must hold a number for each of stages {list(self.stages)}, not all 0"
            )


class UnifiedScores(NamedTuple):
    """As `Scores`, with a calibrated answer.

    Attributes:
        image: float32 (B,), logits relative to those of the support; map: float32 (B, H, W) in [0, 1].
        p_value: float32 (B,), share of normal images that would score as high: (number above + 1) / (n + 1). The n
            normals are those of the context: held-out images after `fit`; after `condition` alone only its support
            images, each judged by the others (of a single one changed copies), so that four of them give no p-value
            below 1/5. NaN where a context has no normals.
    """

    image: np.ndarray
    map: np.ndarray
    p_value: np.ndarray


class Lesson(NamedTuple):
    """Queries of one product against one draw of its support: what the head sees of them, and what it should say.

    Attributes:
        inputs: float16 (n, inputs, h, w); log_ratio: float16 (n, h, w), see `Unified.inputs`.
        target, valid: bool (n, h, w), see `cell_targets`. Good queries have no target.
    """

    category: str
    inputs: torch.Tensor
    log_ratio: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    source: str = ""


def make_head(channels: int, seed: int) -> nn.Sequential:
    """Three 1x1 convolutions, (B, channels, h, w) -> (B, 1, h, w); the last one starts at zero."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        first, second, last = nn.Conv2d(channels, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)


def p_values(scores: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(number of `normal` (n,) at least as high + 1) / (n + 1) for each of `scores` (B,); NaN without normals."""
    if not len(normal):
        return np.full(len(scores), np.nan, np.float32)
    above = len(normal) - np.searchsorted(np.sort(normal), scores, side="left")
    return ((above + 1) / (len(normal) + 1)).astype(np.float32)


class Unified(FewShot):
    """One model for all products.

        context = model.condition(support)             # (k, 3, H, W), cached by the caller
        scores = model.score(query, context)           # UnifiedScores(image, map, p_value)
        scores = model.score(queries, contexts=[...])  # a batch of several products, one context per image

    Attributes: as `FewShot`; its context is one `references.Memory` a stage.
    """

    name = "unified"
    Settings = UnifiedSettings

    def make_modules(self) -> dict[str, nn.Module]:
        """Make the head."""
        return {"head": make_head(references.N_INPUTS * len(self.backbone.channels), self.settings.seed)}

    # -- condition ----------------------------------------------------------------------------------------------------

    def condition(self, images: torch.Tensor) -> list[references.Memory]:
        """Take in a support (k, 3, H, W) in [0, 1]; repeated images count once, order does not matter.

        Dropping repeats is no nicety: between two copies delta is zero, and every query would be infinitely far.
        """
        check_support(images, self.resize.hw)
        images = distinct(images)
        features, copies, turned = self.describe(images), None, [None] * len(self.settings.stages)
        if "turned" in self.settings.references:
            turned = self.describe(rotated(images, (90, 180, 270)))
        if len(images) == 1:
            rng = np.random.default_rng(0)  # the same copies for the same image
            copies = self.describe(jittered(images.repeat(N_COPIES, 1, 1, 1), rng))
        with torch.no_grad():
            context, *inputs = self.remember(features, turned, copies)
            logits = self.image_logits(self.logits(*inputs))
            usual, normal = logits.mean(), logits - logits.mean()
        return [memory._replace(usual=usual.clone(), normal=normal.clone()) for memory in context]

    def remember(self, features, turned, copies=None) -> tuple[list[references.Memory], torch.Tensor, torch.Tensor]:
        """Make the context of described images, one list entry per stage; arguments as for `references.remember`.

        Returns:
            the context, without `usual` and `normal`, and the `inputs` of its images, each judged by the others.
        """
        own, parts = "own" in self.settings.references, (features, turned, copies or [None] * len(turned))
        pairs = [references.remember(*stage, self.settings.whiten, own) for stage in zip(*parts, strict=True)]
        context, compared = zip(*pairs, strict=True)
        return list(context), *self.compared_inputs(compared, context)

    def image_logits(self, cells: torch.Tensor) -> torch.Tensor:
        """Logits of cells (B, h, w) -> logits of images (B,), before the context's `usual` is subtracted."""
        return top_mean(cells) if self.settings.image_score == "top" else cells.amax((1, 2))

    # -- score --------------------------------------------------------------------------------------------------------

    def inputs(self, features, context) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head sees of described queries (B, stages x N_INPUTS, h, w), and log(1 + rho) (B, h, w).

        rho is the distance over the yardstick; of the distances to the support, to turned copies and to the query's
        own cells far away the smallest counts, where they are among `references`. The mean over the stages.
        """
        own = "own" in self.settings.references
        return self.compared_inputs(
            [references.compare(q, m, own) for q, m in zip(features, context, strict=True)], context
        )

    def compared_inputs(self, compared, context) -> tuple[torch.Tensor, torch.Tensor]:
        """`inputs` of queries that are compared with the context already, one `references.compare` per stage."""
        size, weights = compared[0].shape[2:], self.settings.layer_weights or [1.0] * len(compared)
        inputs, log_ratio = [], 0.0
        for x, memory, weight in zip(compared, context, weights, strict=True):
            x = references.head_inputs(x, memory)
            least = (x[:, 1] + x[:, -1].clamp(max=0)).exp().log1p()  # rho, as of the nearest of all references
            maps = torch.cat([((x - memory.centre) / memory.spread).asinh(), least[:, None]], 1)
            if maps.shape[2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
            inputs.append(maps[:, :-1])
            log_ratio = log_ratio + weight / sum(weights) * maps[:, -1]
        return torch.cat(inputs, dim=1), log_ratio

    def logits(self, inputs, log_ratio, modules=None) -> torch.Tensor:
        """Logits of the cells (B, h, w), of `inputs`."""
        return (modules or self.modules)["head"](inputs)[:, 0] + BETA * (log_ratio - LOG_2) + BIAS

    def cells(self, features, context) -> torch.Tensor:
        """Logits of the cells of the first stage's grid, (B, h, w)."""
        return self.logits(*self.inputs(features, context))

    def fit(self, table, validation=None):
        """Choose `k` support images from a table of normal training images and take them in.

        `validation` normals, where given, replace the rest of the table for threshold and p-values.
        """
        check_training_table(table)
        return self._fit(table, validation)._count_normals()

    add = None  # its distances are measured in spreads of the support: more images would change what a threshold means

    @classmethod
    def load(cls, path):
        """Read a fitted method; its context is made anew from the images of its support."""
        return super().load(path)._count_normals()

    def _count_normals(self):
        """Count p-values among the normal scores of `fit`; without any, among those of the support by `condition`."""
        if len(self.normal_scores):
            normal = torch.from_numpy(self.normal_scores).to(self.device)
            self.context = [memory._replace(normal=normal.clone()) for memory in self.context]
        return self

    def _answer(self, features, context, size: tuple[int, int]) -> UnifiedScores:
        """Scores of described queries of one context, as maps of `size`; `score` says more."""
        s = self.settings
        logits = self.cells(features, context)
        image = self.image_logits(logits) - context[0].usual
        maps = enlarge(logits.sigmoid(), size, align_corners=True).cpu().numpy()
        image = image.cpu().numpy()
        p_value = p_values(image, context[0].normal.cpu().numpy())
        return UnifiedScores(image, smooth(maps, s.sigma * size[0] / 224), p_value)

    # -- training -----------------------------------------------------------------------------------------------------

    def make_pools(self, tables: dict | None, validation: dict | None = None):
        """Lessons of given products and of `drawn_products` others, and what selects; see `train_episodes`."""
        s, lessons, products = self.settings, [], []
        if tables or not s.drawn_products:
            lessons, products = episodic_training.make_pools(tables, validation, self.lesson, self.resize, s)
        pictures_of = (episodic_training.drawn_pictures(number, self.resize) for number in range(s.drawn_products))
        return lessons + [self.lesson(pictures) for pictures in pictures_of], products

    def lesson(self, pictures) -> Lesson:
        """Judge `Pictures` of a product by some others of it."""
        n = len(pictures.normal)
        rng = training.step_generator(self.settings.seed, zlib.crc32(pictures.source.encode()))  # its own of each
        support, good = np.split(rng.permutation(n), [min(int(rng.choice(self.settings.shots)), n - 1)])
        hosts = pictures.hosts.ravel()
        good, bad = good[:QUERIES], rng.permutation(np.flatnonzero(~np.isin(hosts, support)))[:QUERIES]
        queries = to_tensor([pictures.normal[i] for i in good] + [pictures.painted[i] for i in bad])
        context = self.condition(to_tensor([pictures.normal[i] for i in support]))
        with torch.no_grad():
            parts = [self.inputs(self.describe(part), context) for part in queries.split(8)]
        inputs, log_ratio = (torch.cat(part).half().cpu() for part in zip(*parts, strict=True))
        masks = np.concatenate([np.zeros_like(pictures.masks[: len(good)]), pictures.masks[bad]])
        target, valid = episodic_training.cell_targets(episodic_training.cell_means(masks, inputs.shape[2:]))
        return Lesson(pictures.category, inputs, log_ratio, target, valid, pictures.source)

    def make_batch(self, pools, step: int):
        """Queries of some products: of each 3 good and 4 defective ones, mirrored."""
        rng, batch = training.step_generator(self.settings.seed, step), []
        for i in rng.permutation(len(pools))[: self.settings.episodes]:
            defective = pools[i].target.flatten(1).any(1).numpy()
            rows = [rng.choice(np.flatnonzero(defective == d), size) for d, size in ((False, 3), (True, 4))]
            rows, axes = np.concatenate(rows), [axis for axis in (-2, -1) if rng.random() < 0.5]
            batch.append([part[rows].flip(axes) for part in pools[i][1:5]])
        return [torch.cat(parts) for parts in zip(*batch, strict=True)]

    def losses(self, modules, batch, step) -> dict[str, torch.Tensor]:
        """Focal and Dice loss of the cells; defective queries of each product are to rank above its good ones."""
        inputs, log_ratio, target, valid = batch
        logits = self.logits(inputs.float(), log_ratio.float(), modules)
        image = self.image_logits(logits).view(-1, 7)  # (products, 3 good + 4 defective)
        margins = image[:, 3:, None] - image[:, None, :3]
        return {
            "focal": losses.balanced_focal_loss(logits, target, valid),
            "dice": 0.5 * losses.dice_loss(logits, target, valid),
            "ranking": 3 * F.softplus(-margins).mean(),
        }
