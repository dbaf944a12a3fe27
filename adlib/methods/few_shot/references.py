"""What the cells of a query are compared with: the support, turned copies of it, and the query's own other cells.

    memory = remember(support, turned, copies)      what a stage keeps of a support
    seen = compare(query, memory)                   how far each cell is from everything, as logarithms

Few-shot methods compare with the support, contrastive clustering with the other cells of the same image. Each sees
what the other misses: a part of a normal image that no support shows is usually repeated somewhere in the query, and
what fills a query's whole surface is still far from the support. Support patches that are turned by quarters stand
for parts that lie freely.

Two yardsticks make distances of different products comparable. The *whitening* (ours) is of directions: the
differences between each normal patch and the nearest one of another image have a covariance S; patches are multiplied
by its inverse root, so that a step which normal patches make all the time counts little, and one that they never make
counts much (as the Mahalanobis distance of PaDiM, but of differences, and so without positions). The *delta* of each
row is of places: how far it is from normal rows of other images (compare LOF, Breunig et al., SIGMOD 2000, and
PatchCore's re-weighting).
"""

from functools import cache
from typing import NamedTuple

import torch

from adlib.images.patches import to_rows

SHRINK = 0.5  # delta <- (1 - SHRINK) delta + SHRINK median(delta)
FLOOR = 1e-3  # added to delta, so that rho stays finite
# What `compare` says of each cell, one channel each, all logarithms of distances: to the nearest support patch; the
# same over its delta; mean and maximum over the support images of the distance to each; to support patches near the
# same place; to turned ones too; to the query's own cells far away; and the length of the patch itself.
QUANTITIES = ("distance", "ratio", "mean", "farthest", "place", "turned", "own", "norm")
N_INPUTS = len(QUANTITIES) + 4  # of the head, a stage
FREE = 0.25  # share of support patches to which a turned patch is nearer, from which on parts lie freely


class Memory(NamedTuple):
    """What a query is compared with at one stage; k support images, P = h w patches of C channels each.

    Attributes:
        mean: (C,), the mean patch of the support; whitening: (C, C), see `whitening`.
        rows: (k, P, C), all patches, centred and whitened; delta: (k, P), how far each is from rows of other images.
        turned: (k, 3 P, C), patches of the support images turned by quarters; (k, 0, C) where orientation counts.
        usual_map: (h, w), log distance of the support images to each other, the mean over them.
        centre, spread: (1, N_INPUTS, 1, 1), mean and deviation of the inputs of support images, each by the others.
        usual: (), the image logit of the support images, each judged by the others. It is the zero of all image scores
            in this context, which makes them comparable between products. The same at all stages.
        normal: (n,), image scores of normal images in this context, for p-values. The same at all stages.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    rows: torch.Tensor
    delta: torch.Tensor
    turned: torch.Tensor
    usual_map: torch.Tensor | None = None
    centre: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    usual: torch.Tensor | None = None
    normal: torch.Tensor | None = None

    def without(self, image: int):
        """The memory of all support images but one."""
        rest = [i for i in range(len(self.rows)) if i != image]
        return self._replace(rows=self.rows[rest], delta=self.delta[rest], turned=self.turned[rest])


def nearest_elsewhere(rows, image, others, other_image) -> torch.Tensor:
    """Difference of each row to its nearest row of another image, (M, C).

    Args:
        rows: (M, C), image: int64 (M,), the image each comes from.
        others: (N, C), other_image: int64 (N,), where to look.
    """
    half, parts = -0.5 * others.square().sum(1), []  # |x - m|^2 / 2 = |x|^2 / 2 - (x.m - |m|^2 / 2)
    for start in range(0, len(rows), 256):  # so many rows of the product stay in the processor's cache
        part = slice(start, start + 256)
        closeness = torch.addmm(half, rows[part], others.T)
        parts.append(closeness.masked_fill(image[part, None] == other_image, -torch.inf).max(dim=1).indices)
    return rows - others[torch.cat(parts)]


def whitening(differences: torch.Tensor, identity: float) -> torch.Tensor:
    """S^(-1/2) of the differences (M, C) between normal patches, symmetric (C, C).

    S = (1 - identity) E[d d^T] + identity t I, with t the mean variance: never singular, and of the same trace. The
    symmetric root keeps channels what they are, as far as that can be.
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


def remember(support, turned, copies, identity: float, own: bool) -> tuple[Memory, torch.Tensor]:
    """Make the memory of one stage.

    Args:
        support: (k, C, h, w), its patches. turned: (3 k, C, h, w), those of its images turned by 90, 180 and 270
            degrees, angle by angle; None: not compared with.
        copies: (n, C, h, w), of changed copies of a single support image, which give it a yardstick: within an image
            neighbours are too alike to say how far apart normal patches lie.
        identity: weight of the identity in the whitening. own: as for `compare`.

    Returns:
        the memory, and the support images each compared with the others (the copies with the single one). Turned
        patches are kept only where for `FREE` of their patches a turned one is nearer: there parts lie freely.
    """
    k, rows = len(support), to_rows(support)  # (k P, C)
    image = torch.arange(k, device=rows.device).repeat_interleave(len(rows) // k)
    mean, others, other_image = rows.mean(0), rows, image
    if k == 1:
        others = to_rows(copies)
        other_image = torch.full((len(others),), -1, device=rows.device)
    white = whitening(nearest_elsewhere(rows, image, others, other_image), identity)
    z, z_others = (rows - mean) @ white, (others - mean) @ white
    delta = yardsticks(z, image, z_others, other_image).view(k, -1)
    z = z.unflatten(0, (k, -1))
    views = z[:, :0]
    if turned is not None:
        views = ((to_rows(turned) - mean) @ white).view(3, *z.shape).transpose(0, 1).flatten(1, 2)
    memory = Memory(mean, white, z, delta, views)
    pairs = [(copies, memory)] if k == 1 else [(support[i : i + 1], memory.without(i)) for i in range(k)]
    compared = torch.cat([compare(query, rest, own) for query, rest in pairs])
    distance, view = compared[:, QUANTITIES.index("distance")], compared[:, QUANTITIES.index("turned")]
    if (view < distance).float().mean() < FREE:
        memory = memory._replace(turned=views[:, :0])
        view.copy_(distance)
    memory = memory._replace(usual_map=distance.mean(0))
    spread, centre = torch.std_mean(head_inputs(compared, memory), (0, 2, 3), keepdim=True)
    return memory._replace(centre=centre, spread=spread.clamp(min=0.05)), compared


def head_inputs(compared: torch.Tensor, memory: Memory) -> torch.Tensor:
    """What is compared (B, len(QUANTITIES), h, w), the support's own distances there, log ratios: (B, N_INPUTS, h, w).

    The last one is how much nearer the nearest of all references is than the support.
    """
    distance, _, _, _, _, turned, own, _ = compared.unbind(1)
    more = [memory.usual_map.expand_as(distance), turned - distance, own - distance, own.minimum(turned) - distance]
    return torch.cat([compared, torch.stack(more, 1)], 1)


@cache
def cells_near_and_far(grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells of a grid (h, w) each one is compared with at its place, and in its own image.

    Returns:
        int64 (h w, n), the cells within a sixteenth of the grid, those at the border more than once; bool (h w, h w),
        true where two cells are an eighth of the grid apart or more.
    """
    cells, reach = torch.cartesian_prod(*map(torch.arange, grid)), max(1, min(grid) // 16)
    steps = torch.cartesian_prod(*2 * [torch.arange(-reach, reach + 1)])
    near = (cells[:, None] + steps).clamp(min=torch.tensor(0)).minimum(torch.tensor(grid) - 1)
    apart = (cells[:, None].to(torch.int16) - cells.to(torch.int16)).abs().amax(2)
    return near[..., 0] * grid[1] + near[..., 1], apart >= max(2, min(grid) // 8)


def compare(query: torch.Tensor, memory: Memory, own: bool = True) -> torch.Tensor:
    """Compare the cells of queries (B, C, h, w) with a memory; `own`: also with those of the same query.

    What is not compared with (no turned copies, not its own) has the distance to the support.

    Returns:
        (B, len(QUANTITIES), h, w), logarithms; distances are root mean squares over the channels.
    """
    grid, (k, p, c) = tuple(query.shape[2:]), memory.rows.shape
    near, far_away = (cells.to(query.device) for cells in cells_near_and_far(grid))
    support, turned, delta = memory.rows.flatten(0, 1), memory.turned.flatten(0, 1), memory.delta.flatten()
    answers = []
    for one in ((to_rows(query) - memory.mean) @ memory.whitening).split(p):  # (P, C)
        halves = [-0.5 * rows.square().sum(1) for rows in (support, turned, one)]
        parts = []
        for block in torch.arange(p, device=query.device).split(128):
            z = one[block]
            length = z.square().sum(1)
            closeness = torch.addmm(halves[0], z, support.T).view(-1, k, p)  # x.m - |m|^2 / 2
            by_image, cell = closeness.max(2)  # (n, k)
            image = by_image.argmax(1, keepdim=True)
            nearest = (image * p + cell.gather(1, image))[:, 0]
            best = (z - support[nearest]).square().sum(1)  # exact where it is near zero
            place = length - 2 * closeness.gather(2, near[block, None].expand(-1, k, -1)).amax((1, 2))
            views = itself = best
            if len(turned):
                views = best.minimum(length - 2 * torch.addmm(halves[1], z, turned.T).amax(1))
            if own:
                closeness = torch.addmm(halves[2], z, one.T).masked_fill(~far_away[block], -torch.inf)
                itself = length - 2 * closeness.amax(1)
                itself = itself.where(itself.isfinite(), best)  # no cell of a tiny grid is far away
            squares = torch.stack([best, best, length - 2 * by_image.amin(1), place, views, itself, length], 1)
            logs = squares.div(c).clamp(min=FLOOR**2).log() / 2
            logs[:, 1] -= (delta[nearest] + FLOOR).log()
            each = (length[:, None] - 2 * by_image).div(c).clamp(min=FLOOR**2).sqrt().mean(1, keepdim=True).log()
            parts.append(torch.cat([logs[:, :2], each, logs[:, 2:]], 1))
        answers.append(torch.cat(parts).T.unflatten(1, grid))
    return torch.stack(answers)
