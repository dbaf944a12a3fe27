"""The networks of ULSAD and one step of their training (Patra and Ben Taieb, arXiv 2410.16255, sections 3.2 and 3.3).

    F   standardised features of the frozen backbone
    R   what the reconstruction network makes of them: R_l to be like F, R_g to be like G
    G   what the global network draws from the image through a single cell

Since F is frozen, its attention to itself never changes and only G has a gradient in the other attention. Both
savings leave every loss as it was, to rounding.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TERMS = ("attention", "local_global")  # of the loss, those of the global branch
LAST = 14  # layers of the reconstruction network before its last convolution
TILE = 256  # queries whose attention to all cells is held at once


# -- the two networks -------------------------------------------------------------------------------------------------


class ReconstructionNet(nn.Module):
    """Feature reconstruction network: C features in, 2 C out; the first half predicts them, the second the global net.

    Three convolutions down to a quarter of the grid, three transposed ones up again; batch normalisation after each.
    """

    def __init__(self, channels: int, final_relu: bool = True):
        super().__init__()
        c = channels
        self.layers = nn.Sequential(
            *_block(nn.Conv2d(c, 2 * c, 3, 2, 1)),  # 1/2 of the grid
            *_block(nn.Conv2d(2 * c, 4 * c, 3, 2, 1)),  # 1/4
            *_block(nn.Conv2d(4 * c, 4 * c, 3, 1, 1), relu=False),
            *_block(nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1)),  # 1/2
            *_block(nn.ConvTranspose2d(2 * c, c, 4, 2, 1)),  # 1
            *_block(nn.ConvTranspose2d(c, 2 * c, 5, 1, 2), relu=final_relu),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("leaky_relu"))

    def forward(self, features: torch.Tensor, local: bool = False) -> torch.Tensor:
        """(B, C, h, w) -> (B, 2 C, h, w); with `local` its first half alone, which saves a third of the time."""
        if not local:
            return self.layers(features)
        c, inner, (last, norm, *relu) = features.shape[1], self.layers[:LAST], self.layers[LAST:]
        x = F.conv_transpose2d(inner(features), last.weight[:, :c], last.bias[:c], last.stride, last.padding)
        mean, var, weight, bias = (p[:c] for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        x = F.batch_norm(x, mean, var, weight, bias, self.training, norm.momentum, norm.eps)
        return nn.Sequential(*relu)(x)


class GlobalNet(nn.Module):
    """Image -> features (B, C, h, w) through a bottleneck of a single cell with 64 numbers.

    Whatever is drawn here had to pass that cell: not the place of every grain, but which parts there are and where.
    The decoder's sizes are those of the paper at 256 pixels (grid 32), in proportion for other grids.
    """

    def __init__(self, channels: int, image_size: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        widths = (3, 32, 32, 64, 64, 64)
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        coarse = tuple(n // 32 for n in image_size)  # what five halvings leave
        self.to_cell = nn.Conv2d(64, 64, coarse)
        self.sizes = [tuple(max(1, n * part // 32) for n in grid) for part in (3, 8, 15, 31, 63)]
        self.decoder = nn.ModuleList(nn.Conv2d(64, 64, 4, 1, 2) for _ in self.sizes)
        self.smooth = nn.Conv2d(64, 64, 3, 1, 1)
        self.out = nn.Conv2d(64, channels, 3, 1, 1)
        self.grid = tuple(grid)
        widths = [32, 32, 64, 64, 64, 64, *[64] * len(self.sizes), 64]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-4, affine=False) for width in widths)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] -> (B, C, h, w)."""
        norms = iter(self.norms)
        x = (images - self.mean) / self.std
        for convolution in (*self.encoder, self.to_cell):
            x = F.relu(next(norms)(convolution(x)))
        for size, convolution in zip(self.sizes, self.decoder, strict=True):
            x = F.relu(next(norms)(convolution(F.interpolate(x, size=size, mode="bilinear"))))
        x = F.interpolate(x, size=self.grid, mode="bilinear")
        return self.out(F.relu(next(norms)(self.smooth(x))))


def _block(convolution, relu: bool = True) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), *([nn.ReLU(inplace=True)] if relu else [])]


# -- losses -----------------------------------------------------------------------------------------------------------


def dissimilarity(a: torch.Tensor, b: torch.Tensor, direction: float = 0.5) -> torch.Tensor:
    """d(a, b) = ||a - b||^2 / C + direction (1 - cos(a, b)) at every position.

    Args:
        a, b: features (B, C, h, w).
        direction: weight of the angle; 0 leaves the magnitude.

    Returns:
        float tensor (B, h, w). Norms below 1e-8 count as 1e-8, so that a zero vector has cosine 0.
    """
    d = (a - b).square().mean(dim=1)
    return d + direction * (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)) if direction else d


def attend(query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """softmax(Q F^T / sqrt(C)) F over all h w cells of an image, without learned projections.

    Never holds the (h w, h w) matrix: the softmax is accumulated tile by tile (`scaled_dot_product_attention`).

    Args:
        query: (B, C, h, w), one query per position.
        features: (B, C, h, w), keys and values.

    Returns:
        float tensor (B, C, h, w).
    """
    q, kv = (x.flatten(2).transpose(1, 2)[:, None].contiguous() for x in (query, features))  # (B, 1, h w, C)
    attended = F.scaled_dot_product_attention(q, kv, kv)[:, 0]  # (B, h w, C)
    return attended.transpose(1, 2).reshape(query.shape)


class _AttentionLoss(torch.autograd.Function):
    """mean d(SA, softmax(Q F^T / sqrt(C)) F) and its gradient in Q, tile by tile, both in the forward pass.

    While a tile of the softmax P is at hand its gradient costs two products more: with a the gradient of d at the
    answer P F, that at the logits is P (a F^T - row sums of a P F), and times F it is that of the queries. Keeping P
    for later would take (h w)^2 numbers per image; making it anew, as attention kernels do, costs a third product and
    the gradients of keys and values, which are frozen here, two more.
    """

    @staticmethod
    def forward(ctx, query, features, attended, direction: float, tile: int):
        scale, n = query.shape[2] ** -0.5, query.shape[0] * query.shape[1]
        total, gradient = query.new_zeros(()), torch.empty_like(query)  # (B, h w, C)
        for q_image, f, sa_image, g_image in zip(query, features, attended, gradient, strict=True):
            for rows in torch.arange(len(q_image)).split(tile):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                p = torch.softmax(q_image[part] @ f.T * scale, dim=-1)  # (tile, h w)
                answer = p @ f  # (tile, C)
                with torch.enable_grad():
                    answer.requires_grad_()
                    d = dissimilarity(sa_image[part], answer, direction).sum()
                (back,) = torch.autograd.grad(d, answer)
                answer = answer.detach()
                total += d.detach()
                p *= (back @ f.T).sub_((back * answer).sum(dim=1, keepdim=True))  # at the logits
                torch.mm(p, f, out=g_image[part]).mul_(scale)
        ctx.save_for_backward(gradient / n)
        return total / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None, None, None


def attention_loss(from_image, features, attended, direction: float = 0.5) -> torch.Tensor:
    """L_pg: mean over images and positions of d(SA, CA), for SA = `attended` and CA = attend(from_image, features).

    Args:
        from_image: G (B, C, h, w), the only one with a gradient. features: F. attended: attend(F, F).
    """
    q, f, sa = (x.flatten(2).transpose(1, 2).float().contiguous() for x in (from_image, features, attended))
    with torch.autocast(q.device.type, enabled=False):
        return _AttentionLoss.apply(q, f, sa, direction, TILE)


def local_loss(features, reconstructed, direction: float = 0.5) -> torch.Tensor:
    """L_pl: mean over images and positions of d(F, R_l), for R = `reconstructed` (B, 2 C, h, w)."""
    return dissimilarity(features, reconstructed[:, : features.shape[1]], direction).mean()


def losses(features, attended, reconstructed, from_image, direction=0.5, terms=TERMS) -> dict[str, torch.Tensor]:
    """The terms of the loss, each the mean over images and positions; their sum is minimised.

    Args:
        features: standardised features F (B, C, h, w).
        attended: their self-attention, `attend(F, F)`; constant, so it may be computed once.
        reconstructed: R (B, 2 C, h, w), output of the reconstruction network.
        from_image: G (B, C, h, w), output of the global network. It is never matched to F itself: only what the
            image's own features say when asked with it must be the same (attention loss).
        direction: weight of the angle, see `dissimilarity`.
        terms: which of `TERMS` there are beside the local one.
    """
    values = {"local": local_loss(features, reconstructed, direction)}  # L_pl
    if "attention" in terms:
        values["attention"] = attention_loss(from_image, features, attended, direction)  # L_pg
    if "local_global" in terms:
        imitated = reconstructed[:, features.shape[1] :]
        values["local_global"] = dissimilarity(from_image, imitated, direction).mean()  # L_lg
    return values
