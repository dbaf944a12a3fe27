"""Losses of the support-conditioned methods: contrastive losses over the cells of one image, focal and Dice loss.

The contrastive losses go *image by image*, never across images: normal and anomalous mean something only inside one
image (or one episode). All rows are normalised to unit length first.
"""

import torch
import torch.nn.functional as F

from adlib.errors import InputError
from adlib.settings import choice

CONTRASTIVE = ("nearest_positive", "focal", "supcon", "soft")


def contrastive_loss(
    kind: str,
    anchors: torch.Tensor,
    negatives: torch.Tensor,
    positives: torch.Tensor | None = None,
    excluded: torch.Tensor | None = None,
    temperature: float = 0.1,
    top: int = 5,
) -> torch.Tensor:
    """Return one loss per anchor: close to its positives, far from all negatives.

    With cosines s_ij to the positives and n_im to the negatives, and t the temperature:

    - `focal`: FOCAL (Wu et al., IEEE TDSC 2025, arXiv 2308.09307), as in its released code, with one positive logit,
      the *mean* of s_ij:
      -log[exp(p_i / t) / (exp(p_i / t) + sum_m exp(n_im / t))], p_i = mean_j s_ij
    - `nearest_positive`: the same with p_i the mean of the `top` largest s_ij. An image holds several kinds of normal
      patch; asking each to resemble the average of all others would push the kinds together.
    - `supcon`: the log-ratio of each positive, averaged outside the logarithm (Khosla et al., 2020, L_out).
    - `soft`: p_i = sum_j w_ij s_ij, w_i = softmax_j(s_ij / 0.5), not differentiated. A simple stand-in of our own for
      the weighted loss of FOCAL's journal version, not its algorithm.

    Args:
        kind: one of `CONTRASTIVE`.
        anchors: (N, D) normal cells.
        negatives: (M, D) anomalous cells; all anchors share them.
        positives: (P, D), for example cells of other normal images; None: the other anchors.
        excluded: bool (N, P), positives that an anchor must not use (itself, its neighbours); default, where positives
            are the anchors, itself.
        temperature: t.
        top: positives averaged by `nearest_positive`.

    Returns:
        (N,) losses. Chance level is log(1 + M). Anchors without any allowed positive get NaN, as in FOCAL's code;
        `mean_over_images` leaves them out.
    """
    choice("contrastive loss", kind, CONTRASTIVE)
    if not len(negatives):
        raise InputError("a contrastive loss needs at least one anomalous cell; skip images without a defect")
    anchors, negatives = F.normalize(anchors, dim=1), F.normalize(negatives, dim=1)
    if positives is None:
        positives = anchors
        excluded = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device) if excluded is None else excluded
    else:
        positives = F.normalize(positives, dim=1)
    similarity = anchors @ positives.T  # (N, P)
    allowed = torch.ones_like(similarity, dtype=torch.bool) if excluded is None else ~excluded
    away = torch.logsumexp(anchors @ negatives.T / temperature, dim=1)  # (N,)
    if kind == "supcon":
        each = torch.logaddexp(similarity / temperature, away[:, None]) - similarity / temperature  # (N, P)
        return (each * allowed).sum(1) / allowed.sum(1)
    if kind == "nearest_positive":
        nearest = similarity.masked_fill(~allowed, -torch.inf).topk(min(top, similarity.shape[1]), dim=1).values
        there = nearest.isfinite()
        positive = nearest.masked_fill(~there, 0).sum(1) / there.sum(1)
    elif kind == "soft":
        weights = (similarity.detach() / 0.5).masked_fill(~allowed, -torch.inf).softmax(1)
        positive = (weights * similarity).sum(1)
    else:
        positive = (similarity * allowed).sum(1) / allowed.sum(1)
    positive = positive / temperature
    return torch.logaddexp(positive, away) - positive


def mean_over_images(losses: list[torch.Tensor]) -> torch.Tensor | None:
    """Average the anchors of each image, then the images; images without a usable anchor are skipped.

    Returns:
        a scalar, or None where no image has a usable anchor.
    """
    means = [loss[loss.isfinite()].mean() for loss in losses if loss.isfinite().any()]
    return torch.stack(means).mean() if means else None


def neighbours_excluded(cells: torch.Tensor, width: int, radius: int = 1) -> torch.Tensor:
    """Mark each cell's own surroundings, which share its receptive field and are alike for free.

    Args:
        cells: int64 (N,), numbers of the cells, row by row on a grid of `width` columns.

    Returns:
        bool (N, N), true where two cells are within `radius` rows and columns of each other (and on the diagonal).
    """
    rows, columns = cells // width, cells % width
    near = (rows[:, None] - rows).abs().maximum((columns[:, None] - columns).abs())
    return near <= radius


def focal_loss(logits, target, valid, gamma: float = 2.0, alpha: float = 0.75) -> torch.Tensor:
    """Binary focal loss (Lin et al., ICCV 2017, Eq. 5), the mean over the cells where `valid`.

    -alpha_t (1 - p_t)^gamma log p_t, with alpha_t = alpha on anomalous and 1 - alpha on normal cells.
    """
    target = target.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = torch.exp(-cross_entropy)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return ((weight * (1 - p_t) ** gamma * cross_entropy) * valid).sum() / valid.sum().clamp(min=1)


def balanced_focal_loss(logits, target, valid, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss with the same weight for all anomalous cells together as for all normal ones."""
    anomalous = focal_loss(logits, target, valid & target, gamma, alpha=1.0)
    return 0.5 * (anomalous + focal_loss(logits, target, valid & ~target, gamma, alpha=0.0))


def dice_loss(logits, target, valid, smooth: float = 1.0) -> torch.Tensor:
    """1 - Dice overlap of sigmoid(logits) and the target on the valid cells; 0 is a perfect match."""
    p, t = logits.sigmoid() * valid, (target & valid).float()
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)
