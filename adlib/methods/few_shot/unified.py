"""The unified model: one set of weights for all products; what is normal comes from the support alone.

    condition  k normal images -> memory of patches, and yardsticks: how far apart normal patches are, and in which
               directions
    score      distance to the nearest row, in yardsticks -> small head -> a logit per cell -> image logit, map, p-value

The design joins the two projects that stopped half-way (see the README): the comparison with a support of `few_shot`,
and a projection trained by the contrastive losses of `contrastive`. Two yardsticks make distances of different
products comparable. The *whitening* (ours) is of directions: the differences between each normal patch and the nearest
one of another image have a covariance S; patches are multiplied by its inverse root, so that a step which normal
patches make all the time counts little, and one that they never make counts much (as the Mahalanobis distance of
PaDiM, but of differences, and so without positions). The *delta* of each row is of places: how far it is from normal
rows of other images (compare LOF, Breunig et al., SIGMOD 2000, and PatchCore's re-weighting).

The head sees residual quantities and never the patch itself, so it cannot memorise what training categories look like
(compare ResAD, Yao et al., NeurIPS 2024, arXiv 2410.20047); by default not even in which channels the residual is,
which half a dozen training categories are too few to learn from. Its last layer starts at zero: the untrained model
*is* the detector of ratios. Two signals make training relative. *Foreign normals*: material that is normal in one
category is pasted as a defect into another. *Context swaps*: the same defective query is shown with a support that
contains its kind of defect; then the target is empty.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import clustering
from adlib.images.clustering import ALGORITHMS
from adlib.images.maps import enlarge, smooth, top_mean
from adlib.images.patches import to_rows
from adlib.methods import storage
from adlib.methods.few_shot import episodic_training, losses
from adlib.methods.few_shot.few_shot import FewShot, Projection, SupportSettings, stage_contrast
from adlib.methods.few_shot.support_images import check_support, distinct, jittered

LOG_2 = float(np.log(2))
N_COPIES = 4  # changed copies of a single support image that give it a yardstick
SHRINK = 0.5  # delta <- (1 - SHRINK) delta + SHRINK median(delta)
FLOOR = 1e-3  # added to delta, so that rho stays finite
BETA = 2.4  # weight of log(1 + rho) in the logit
BIAS = -2.0  # logit of a patch exactly as far away as its yardstick, rho = 1
WIDTH = 32  # channels of the head


@dataclass(frozen=True)
class UnifiedSettings(SupportSettings):
    """Settings of the unified model. The design is ours, and so are the defaults."""

    image_score: Literal["max", "top"] = "top"  # mean of the highest 1 % of cells, as a logit
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels at 224
    layer_weights: tuple[S.NotNegative, ...] | None = None  # weight of each stage; None: equal
    whiten: S.ShareTo1 = 0.05  # weight of the identity in S, in (0, 1]; 1: a scale and no directions
    clustering: Literal[(*ALGORITHMS, "")] = ""  # "": scores of the head; else of query and support clustered together
    # Training.
    swap: S.Closed = 0.2  # share of episodes whose support shows the query's kind of defect
    contrastive: Literal[losses.CONTRASTIVE] = "nearest_positive"  # see adlib.methods.few_shot.losses.contrastive_loss
    loss_weights: tuple[S.NotNegative, ...] = (0.5, 0.25, 0.1)  # contrastive, images, calibration; of the cells: 1

    def check(self):
        if len(self.loss_weights) != 3:
            raise InputError(f"loss_weights {list(self.loss_weights)} must be three: contrastive, images, calibration")
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


class ScaledMemory(NamedTuple):
    """What a query is compared with at one stage.

    Attributes:
        mean: (C,), the mean patch of the support; whitening: (C, C), see `whitening`.
        rows: (M, C), all patches, centred, whitened and projected.
        delta: (M,), how far each row is from normal rows of other images.
        usual: (), the image logit of the support images, each judged by the others. It is the zero of all image scores
            in this context, which makes them comparable between products. The same at all stages.
        normal: (n,), image scores of normal images in this context, for p-values. The same at all stages.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    rows: torch.Tensor
    delta: torch.Tensor
    usual: torch.Tensor
    normal: torch.Tensor


class Head(nn.Module):
    """1x1 convolution, GELU, depthwise 3x3, and a 1x1 convolution that starts at zero."""

    def __init__(self, channels: int, seed: int):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(channels, WIDTH, 1),
                nn.GELU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
                nn.Conv2d(WIDTH, 1, 1),
            )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, h, w)."""
        return self.layers(x)[:, 0]


def nearest_rows(x, rows, forbidden=None) -> torch.Tensor:
    """Number of the nearest of `rows` (M, C) for each row of `x` (N, C), int64 (N,).

    `forbidden`: a function from a slice of `x` to bool (n, M), true where a row must not be taken.
    """
    half, parts = -0.5 * rows.square().sum(1), []  # |x - m|^2 / 2 = |x|^2 / 2 - (x.m - |m|^2 / 2)
    for start in range(0, len(x), 256):  # so many rows of the product stay in the processor's cache
        part = slice(start, start + 256)
        closeness = torch.addmm(half, x[part], rows.T)
        if forbidden is not None:
            closeness = closeness.masked_fill(forbidden(part), -torch.inf)
        parts.append(closeness.max(dim=1).indices)
    return torch.cat(parts)


def nearest_elsewhere(rows, image, others, other_image) -> torch.Tensor:
    """Difference of each row to its nearest row of another image, (M, C).

    Args:
        rows: (M, C), image: int64 (M,), the image each comes from.
        others: (N, C), other_image: int64 (N,), where to look.
    """
    return rows - others[nearest_rows(rows, others, lambda part: image[part, None] == other_image)]


def whitening(differences: torch.Tensor, identity: float) -> torch.Tensor:
    """S^(-1/2) of the differences (M, C) between normal patches, symmetric (C, C).

    S = (1 - identity) E[d d^T] + identity t I, with t the mean variance: never singular, and of the same trace. The
    symmetric root keeps channels what they are, as far as that can be, so that one projection serves all contexts.
    """
    covariance = differences.T @ differences / len(differences)
    scale = covariance.trace() / len(covariance)
    covariance = covariance / scale.clamp(min=1e-12)
    covariance = (1 - identity) * covariance + identity * torch.eye(len(covariance), device=covariance.device)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * (values.clamp(min=1e-6) * scale.clamp(min=1e-12)).rsqrt() @ vectors.T


def yardsticks(rows, image, others, other_image) -> torch.Tensor:
    """delta of each memory row: its distance to the nearest row of another image, shrunk towards the median.

    Distances are root mean squares over the channels. Arguments as for `nearest_elsewhere`.
    """
    delta = nearest_elsewhere(rows, image, others, other_image).square().mean(1).sqrt()
    return (1 - SHRINK) * delta + SHRINK * delta.median()


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

    Attributes: as `FewShot`; its context is one `ScaledMemory` a stage.
    """

    name = "unified"
    Settings = UnifiedSettings

    def make_modules(self) -> dict[str, nn.Module]:
        """Make the projection and the head."""
        seed = self.settings.seed
        return {"projection": Projection(self.channels, seed, unit=False), "head": Head(2 * len(self.channels), seed)}

    @property
    def channels(self) -> tuple[int, ...]:
        """Length of a patch vector, a stage."""
        return tuple(self.backbone.channels)

    # -- condition ----------------------------------------------------------------------------------------------------

    def condition(self, images: torch.Tensor) -> list[ScaledMemory]:
        """Take in a support (k, 3, H, W) in [0, 1]; repeated images count once, order does not matter.

        Dropping repeats is no nicety: between two copies delta is zero, and every query would be infinitely far.
        """
        check_support(images, self.resize.hw)
        images = distinct(images)
        described, copies = self.describe(images), None
        if len(images) == 1:
            rng = np.random.default_rng(0)  # the same copies for the same image
            copies = self.describe(jittered(images.repeat(N_COPIES, 1, 1, 1), rng))
        with torch.no_grad():
            context = self._remember(described, copies)
            logits = self._support_logits(described, copies, context)
            usual, normal = logits.mean(), logits - logits.mean()
        return [memory._replace(usual=usual.clone(), normal=normal.clone()) for memory in context]

    def _support_logits(self, described, copies, context) -> torch.Tensor:
        """Image logits of the support images against the others, or of the copies of a single one against it."""
        n_images = len(described[0])
        if n_images == 1:
            return self.image_logits(self.cells(copies, context))
        logits = []
        for i in range(n_images):
            others = []
            for feature, memory in zip(described, context, strict=True):
                kept = torch.arange(len(memory.rows)) // (feature.shape[2] * feature.shape[3]) != i
                kept = kept.to(memory.rows.device)
                others.append(memory._replace(rows=memory.rows[kept], delta=memory.delta[kept]))
            logits.append(self.image_logits(self.cells([f[i : i + 1] for f in described], others)))
        return torch.cat(logits)

    def image_logits(self, cells: torch.Tensor) -> torch.Tensor:
        """Logits of cells (B, h, w) -> logits of images (B,), before the context's `usual` is subtracted."""
        return top_mean(cells) if self.settings.image_score == "top" else cells.amax((1, 2))

    def _remember(self, described, augmented=None, kept=None, projection=None):
        """Make the context from a described support, or of its rows `kept` a stage.

        With one image, the yardsticks come from changed copies of it (`augmented`); within an image neighbours are
        too alike to say how far apart normal patches lie.
        """
        projection, context, n_images = projection or self.projection, [], len(described[0])
        for stage, feature in enumerate(described):
            rows = to_rows(feature)  # (k h w, C)
            image = torch.arange(len(rows), device=rows.device) // (feature.shape[2] * feature.shape[3])
            if kept is not None:
                rows, image = rows[kept[stage]], image[kept[stage]]
            mean = rows.mean(0)
            others, other_image = rows, image
            if n_images == 1:
                others = to_rows(augmented[stage].to(rows.device))
                other_image = torch.full((len(others),), -1, device=rows.device)
            # Yardsticks are givens of the context: no gradient stretches them (and that of equal eigenvalues is NaN).
            with torch.no_grad():
                whiten = whitening(nearest_elsewhere(rows, image, others, other_image), self.settings.whiten)
            z = projection(stage, (rows - mean) @ whiten)
            with torch.no_grad():
                z_others = projection(stage, (others - mean) @ whiten) if n_images == 1 else z
                delta = yardsticks(z.detach(), image, z_others.detach(), other_image)
            context.append(ScaledMemory(mean, whiten, z, delta, z.new_zeros(()), z.new_zeros(0)))
        return context

    # -- score --------------------------------------------------------------------------------------------------------

    def compare(self, stage: int, query: torch.Tensor, memory: ScaledMemory, projection=None):
        """Compare patches (B, C, h, w) of a stage with a memory.

        Returns:
            what the head sees (B, 2, h, w): log(1 + d) and log(1 + rho), with d the root mean square of the
            difference to the nearest row; and the projected rows (B h w, C).
        """
        projection = projection or self.projection
        z = projection(stage, (to_rows(query) - memory.mean) @ memory.whitening)  # (N, C)
        with torch.no_grad():
            nearest = nearest_rows(z, memory.rows)
        d = (
            (z - memory.rows[nearest]).square().mean(1, keepdim=True) + 1e-12
        ).sqrt()  # (N, 1); the root of zero has no gradient
        rho = d / (memory.delta[nearest, None] + FLOOR)
        seen = torch.cat([d.log1p(), rho.log1p()], dim=1)
        return seen.view(len(query), *query.shape[2:], -1).movedim(-1, 1), z

    def logits(self, described, context, modules=None) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Logits of the cells (B, h, w), log(1 + rho) averaged over the stages (B, h, w), projected rows per stage."""
        modules = modules or self.modules
        size, weights = tuple(described[0].shape[2:]), self.settings.layer_weights or [1.0] * len(described)
        seen, log_ratio, projected = [], 0.0, []
        for stage, (query, memory) in enumerate(zip(described, context, strict=True)):
            maps, z = self.compare(stage, query, memory, modules["projection"])
            if maps.shape[2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
            seen.append(maps)
            log_ratio = log_ratio + weights[stage] / sum(weights) * maps[:, -1]
            projected.append(z)
        head = modules["head"](torch.cat(seen, dim=1))
        return head + BETA * (log_ratio - LOG_2) + BIAS, log_ratio, projected

    def cells(self, described, context) -> torch.Tensor:
        """Logits of the cells of the first stage's grid, (B, h, w)."""
        return self.logits(described, context)[0]

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

    def save(self, path, **facts):
        """Write the fitted model; an untrained head, whose last layer is zero, is warned of."""
        if not self.modules["head"].layers[-1].weight.any():
            hint = "train_episodes trains it on other products (adlib train --products DIR)"
            warnings.warn(f"unified: the head is untrained, step 0 of its training; {hint}", stacklevel=2)
        return storage.save(self, path, **facts)

    def _count_normals(self):
        """Count p-values among the normal scores of `fit`; without any, among those of the support by `condition`."""
        if len(self.normal_scores):
            normal = torch.from_numpy(self.normal_scores).to(self.device)
            self.context = [memory._replace(normal=normal.clone()) for memory in self.context]
        return self

    def _answer(self, described, context, size: tuple[int, int]) -> UnifiedScores:
        """Scores of described queries of one context, as maps of `size`; `score` says more."""
        s = self.settings
        logits, _, projected = self.logits(described, context)
        if s.clustering:
            logits = logits + self._clustered(projected[0], context[0], logits.shape)
        image = self.image_logits(logits) - context[0].usual
        maps = enlarge(logits.sigmoid(), size, align_corners=True).cpu().numpy()
        image = image.cpu().numpy()
        p_value = p_values(image, context[0].normal.cpu().numpy())
        return UnifiedScores(image, smooth(maps, s.sigma * size[0] / 224), p_value)

    def _clustered(self, rows, memory: ScaledMemory, shape, n_support: int = 512) -> torch.Tensor:
        """Cluster each query's cells together with cells of the support, which are known to be normal.

        The anomalous clusters are those that hold hardly any support; so the rule of the smaller cluster, and its
        failures, are gone. Only the first stage is clustered: rows of different grids do not pair up.

        Returns:
            what the clusters add to the logits of the cells, (B, h, w): 1 in anomalous clusters, 0 elsewhere, so that
            the zero of the scores stays that of the support.
        """
        normal = memory.rows[torch.linspace(0, len(memory.rows) - 1, min(n_support, len(memory.rows))).long()]
        added = []
        for cells in rows.view(shape[0], -1, rows.shape[1]):
            both = torch.cat([cells, normal]).cpu().numpy()
            is_normal = np.arange(len(both)) >= len(cells)
            clusters = clustering.cluster(
                self.settings.clustering, both, "support", normal.cpu().numpy(), known_normal=is_normal
            )
            added.append(clusters.anomalous[: len(cells)].astype(float))
        return torch.from_numpy(np.stack(added)).float().view(shape).to(rows.device)

    # -- losses of an episode -----------------------------------------------------------------------------------------

    def episode_losses(self, modules, episode, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Focal, Dice, contrastive, image-level and calibration loss of one episode."""
        s, weights = self.settings, self.settings.loss_weights
        target, valid = (x.to(self.device) for x in episodic_training.cell_targets(episode.coverage))
        support = [f.to(self.device) for f in episode.support]
        context = self._remember(support, episode.augmented, rows, modules["projection"])
        query = [f[None].to(self.device) for f in episode.query]
        logits, log_ratio, projected = self.logits(query, context, modules)
        logits, normal = logits[0], valid & ~target
        contrast = [
            stage_contrast(z, memory.rows, episode.coverage, f.shape[2:], s.contrastive)
            for z, memory, f in zip(projected, context, query, strict=True)
        ]
        contrast = losses.mean_over_images([c for c in contrast if c is not None])
        zero = logits.sum() * 0
        image = F.binary_cross_entropy_with_logits(top_mean(logits[None])[0], target.any().float())
        return {
            "focal": losses.focal_loss(logits, target, valid),
            "dice": 0.5 * losses.dice_loss(logits, target, valid) if target.any() else zero,
            "contrastive": zero if contrast is None else weights[0] * contrast,
            "image": weights[1] * image,
            "calibration": weights[2] * (log_ratio[0][normal].mean() - LOG_2) ** 2,
        }
