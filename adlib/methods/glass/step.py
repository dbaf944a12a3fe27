"""One training step of GLASS: three streams of cells, a walk uphill, and three losses (Chen et al., arXiv 2407.09359).

    u  normal cells                    A(t(x))              label 0
    g  global synthesis (GAS)          u + noise, ascended  label 1: weak anomalies, close to normal
    v  local synthesis (LAS)           A(t(x_a))            label of each cell: 1 where a texture was blended in

The loss that g *ascends* is that of calling g anomalous. Uphill is therefore where the discriminator is fooled: towards
normal. Truncated projection keeps g from arriving there, and hard examples remain.

The walk takes 20 passes through the discriminator and is most of the training time. It can be walked entirely in the
hidden layer, which makes each pass one small matrix product (see `ascend`). Losses and gradients stay those of the
original, to rounding.
"""

import torch
import torch.nn.functional as F
from torch import nn

from adlib.errors import InputError

TINY = 1e-10  # added to a norm before dividing
CLAMP = 1e-5  # label smoothing of the focal loss
BLOCK = 2**18  # numbers of a block of rows in the ascent: its buffers stay in the cache


class Discriminator(nn.Module):
    """Linear, batch normalisation, leaky ReLU, linear without bias: one logit per cell.

    Args:
        width: length D of a cell; hidden: width H of the hidden layer.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.out = nn.Linear(hidden, 1, bias=False)
        for layer in (self.linear, self.out):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return logits (N,) for cells (N, D)."""
        return self.head(self.linear(cells))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (N,) for values (N, H) of the hidden layer before normalisation."""
        return self.out(F.leaky_relu(self.norm(hidden), 0.2, inplace=True)).squeeze(1)


class Network(nn.Module):
    """What is trained: the adaptor A, the discriminator D, and the centre c (L, D) of the current epoch as a buffer."""

    def __init__(self, width: int, hidden: int, n_positions: int):
        super().__init__()
        self.adaptor = nn.Linear(width, width)
        nn.init.xavier_normal_(self.adaptor.weight)
        self.discriminator = Discriminator(width, hidden)
        self.register_buffer("centre", torch.zeros(n_positions, width))

    def forward(self, *batch, units=(1.0,), **options) -> dict[str, torch.Tensor]:
        """Return the losses of one batch (see `losses`); its `unit` is the only one of `units`.

        The whole step is the forward pass, because that is what several processes wrap to share their gradients.
        """
        return losses(self, *batch, unit=units[0], **options)

    def logits(self, cells: torch.Tensor) -> torch.Tensor:
        """Return logits (N,) for pooled backbone features (N, D): the way of a test image."""
        return self.discriminator(self.adaptor(cells))

    def renew_centre(self, mean_features: torch.Tensor) -> None:
        """Set the centre to A of the mean features (L, D): A is linear, so that is the mean of A(t(x)), at no pass."""
        with torch.no_grad():
            self.centre.copy_(self.adaptor(mean_features))


def read_original(path) -> Network:
    """Read a checkpoint of the authors' code: two state dicts, `pre_projection` and `discriminator`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        adaptor, head = content["pre_projection"], content["discriminator"]
        matrix, bias = (next(v for v in adaptor.values() if v.ndim == n) for n in (2, 1))
        state = {"adaptor.weight": matrix, "adaptor.bias": bias}
        for theirs, ours in (("body.block1.0", "linear"), ("body.block1.1", "norm"), ("tail.0", "out")):
            for key in [key for key in head if key.startswith(theirs + ".")]:
                state[f"discriminator.{ours}.{key.removeprefix(theirs + '.')}"] = head[key]
        network = Network(matrix.shape[0], head["body.block1.0.weight"].shape[0], 1)
        network.load_state_dict(state | {"centre": network.centre})
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist; expected a ckpt*.pth of the authors' code") from None
    except Exception as error:  # torch, pickle and zip each raise their own; to the user they mean one thing
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path} is not one of the authors' GLASS code ({reason})") from None
    return network


class Ensemble(nn.ModuleList):
    """Networks with different initial weights that learn from the same batches; a cell's logit is their mean.

    Ours: after few steps much of a score is the luck of the initial weights, and that part averages out.
    """

    def forward(self, *batch, units=None, **options) -> dict[str, torch.Tensor]:
        """Return the mean over the networks, each with its unit, of each loss term and of each number for the log."""
        units = units or (1.0,) * len(self)
        terms = [network(*batch, units=(unit,), **options) for network, unit in zip(self, units, strict=True)]
        return {name: torch.stack([torch.as_tensor(t[name]) for t in terms]).mean(0) for name in terms[0]}

    def logits(self, cells: torch.Tensor) -> torch.Tensor:
        """Return mean logits (N,) for pooled backbone features (N, D)."""
        return torch.stack([network.logits(cells) for network in self]).mean(0)

    def renew_centre(self, mean_features: torch.Tensor) -> None:
        """Set the centre of each network."""
        for network in self:
            network.renew_centre(mean_features)


def losses(
    network: Network, normal, blended, labels, noise, settings, trace: list | None = None, rows=None, unit: float = 1.0
) -> dict:
    """The losses of one batch; their sum is minimised.

    Args:
        network: in training mode. All passes share one set of running statistics, as in the original.
        normal, blended: (B L, D) pooled features t(x) of normal images and t(x_a) of blended ones, image by image.
        labels: (B L,) float, 1 where a blended cell is anomalous.
        noise: (B L, D), added to the normal cells before the ascent.
        settings: `hypothesis` ("manifold" or "hypersphere"), `n_ascent`, `step_size`, `radius`, `p`.
        trace: a list that receives one dict for every pass of the ascent (`cells`, `logits`), for pictures.
        rows: (rows of `normal`, rows of `blended`) to use, index tensors; None for all, as in the original.
        unit: what noise, the radius 0.5 of the manifold and the length of a step are multiplied by.

    Returns:
        "normal", "global", "local" loss terms (scalars with gradient), and for the log, with a leading "_": shares of
        cells on the right side of 0.5, and the radii r_t, r_g, r_f (0.75-quantiles of distances to the centre).
    """
    s, discriminator, noise = settings, network.discriminator, noise * unit
    sphere = s.hypothesis == "hypersphere"
    centre = centre_v = network.centre.repeat(len(normal) // len(network.centre), 1)  # (B L, D)
    if rows is not None:
        normal, noise, centre = (part[rows[0]] for part in (normal, noise, centre))
        blended, labels, centre_v = (part[rows[1]] for part in (blended, labels, centre_v))
    u, v = network.adaptor(normal).float(), network.adaptor(blended).float()  # (B L, D)
    anomalous = labels > 0.5
    with torch.no_grad():
        to_centre_u, to_centre_v = (u - centre).norm(dim=1), (v - centre_v).norm(dim=1)
        r_t = torch.cat([to_centre_v[~anomalous], to_centre_u]).quantile(s.radius)
        r_f = to_centre_v[anomalous].quantile(s.radius) if anomalous.any() else torch.zeros(())
        low = r_t if sphere else u.new_tensor(0.5 * unit)  # a fixed radius about each cell's own normal feature

    # -- global anomaly synthesis: a walk without gradients, then the same walk as one differentiable expression ------
    offset = u.detach() + noise - centre if sphere else noise  # g - origin
    origin = centre if sphere else None
    with torch.autocast(u.device.type, enabled=False):  # steps of 0.001: float32 in mixed precision, too
        step_size = s.step_size * unit
        segments = ascend(discriminator, u.detach(), offset, origin, low, s.n_ascent, step_size, trace=trace)
    weight = discriminator.linear.weight.detach()
    if sphere:
        offset = u + noise - centre
        for push, scale in segments:
            offset = offset + push @ weight  # the step itself is a constant to autograd, as in the original
            offset = offset if scale is None else project(offset, low, 2 * low)
        g = centre + offset
    else:
        # About u itself the offset does not depend on u, so the whole walk is one constant.
        pushed = torch.zeros_like(offset[:, :1])
        for push, scale in segments:
            pushed = pushed + push
            if scale is not None:
                pushed, offset = pushed * scale[:, None], offset * scale[:, None]
        g = u + (offset + pushed @ weight if segments else offset)
    logits = discriminator(torch.cat([u, g])).float()  # (2 B L,): one batch for the statistics
    if trace is not None:
        trace.append({"cells": g.detach().clone(), "logits": logits.detach().clone()})

    # -- local anomaly synthesis --------------------------------------------------------------------------------------
    if sphere:
        v = torch.where(anomalous[:, None], centre_v + project(v - centre_v, 2 * r_t, 4 * r_t), v)
    scores = discriminator(v).float().sigmoid()  # (B L,)
    kept_scores, kept_labels = hard_examples(scores, labels, s.p)
    with torch.no_grad():
        r_g = (g - centre).norm(dim=1).quantile(s.radius)
        n = len(u)
        true_scores, fake_scores = logits[:n].sigmoid(), logits[n:].sigmoid()
        p_true = share(torch.cat([true_scores, scores[~anomalous]]) < 0.5)
        p_fake = share(torch.cat([fake_scores, scores[anomalous]]) >= 0.5)
    return {
        "normal": F.softplus(logits[:n]).mean(),  # binary cross-entropy against 0
        "global": F.softplus(-logits[n:]).mean(),  # against 1
        "local": focal_loss(kept_scores, kept_labels),
        "_p_true": p_true,
        "_p_fake": p_fake,
        "_r_true": r_t,
        "_r_global": r_g,
        "_r_local": r_f,
    }


@torch.no_grad()
def ascend(
    discriminator: Discriminator,
    true: torch.Tensor,
    offset: torch.Tensor,
    origin: torch.Tensor | None,
    low: torch.Tensor,
    n_steps: int = 20,
    step_size: float = 0.001,
    every: int = 5,
    trace: list | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Walk noisy cells up the gradient of their loss against label 1, with truncated projection.

    With d the gradient for a cell g and W the weight of the first layer, the original repeats

        g <- g + step_size d / |d|,    d = W' e,    e the gradient at the hidden layer,

    and every fifth time clips |g - o| to [r, 2r]. All of it can be followed through h = W g alone: a step moves h by
    step_size (W W') e / |d|, where |d|^2 = e' (W W') e. With s the sum of the step_size e / |d| since the last
    projection, g - o has moved by W' s, and its squared length has grown by (W' s)' (2 (g - o) + W' s), which is
    s' (h + h_before - 2 W o). So a pass needs one product with the H x H matrix W W' (or two with W, where H is more
    than twice D) for half of the cells, where the original needs two with W for all; u passes through W once.

    Batch normalisation ties all cells together at two points of a pass: at the statistics and at their gradient.
    Between the two everything goes block by block of rows, so that the work happens in the processor's cache.

    Args:
        true: (N, D) normal cells u, which share the batch statistics.
        offset: (N, D) g - o at the start. origin: (N, D) the points o, or None for u itself.
        low: the smallest distance r; the largest is 2 r.
        n_steps, step_size, every: number of steps, their length, and steps between two projections.

    Returns:
        the walk as segments (e summed (N, H), scale (N,) or None): between two projections g - o moves by
        `summed @ W` and is then multiplied by `scale`; the last segment may end without a projection.
    """
    if n_steps < 1:
        return []
    weight, norm, out = discriminator.linear.weight, discriminator.norm, discriminator.out.weight[0]  # out: (H,)
    n, hidden = len(true), len(weight)
    gram = weight @ weight.T if hidden <= 2 * weight.shape[1] else None  # (H, H)
    h_true = discriminator.linear(true)  # (N, H)
    # Normalisation takes means away anyway; without them sums of squares lose no digits.
    shift = h_true.mean(0)
    h_true -= shift
    h_origin = h_true if origin is None else discriminator.linear(origin).sub_(shift)
    h = torch.addmm(h_origin, offset, weight.T)  # (N, H), the walker
    h_before, squared = h.clone(), offset.square().sum(1)  # both at the last projection; |g - o|^2
    sums_true, sums = _sums(h_true), _sums(h)
    pushed, scale, back = torch.zeros_like(h), offset.new_empty(n), offset.new_empty(n)
    segments, statistics = [], []
    size = max(1, BLOCK // hidden) if h.device.type == "cpu" else n  # elsewhere a launch costs more than a cache saves
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    buffers = h.new_empty(2, min(size, n), hidden)  # allocating anew is a third of the original's time
    walker, start = true if origin is None else origin, offset
    for step in range(n_steps):
        mean, square = (sums_true + sums) / (2 * n)
        variance = square - mean.square()
        statistics.append((mean + shift, variance))
        gain = norm.weight / (variance + norm.eps).sqrt()
        bias = norm.bias - mean * gain
        if trace is not None:
            logits = [F.leaky_relu(torch.addcmul(bias, x, gain), 0.2) @ out for x in (h_true, h)]
            trace.append({"cells": walker + start + pushed @ weight, "logits": torch.cat(logits)})
        # Gradient of the mean of -log sigmoid(logit), back through activation and batch normalisation.
        through = h.new_zeros(2, hidden)  # sums over cells: the gradient after normalisation, and times its input
        for block in blocks:
            y, slope = buffers[:, : block.stop - block.start]
            torch.addcmul(bias, h[block], gain, out=y)  # normalised
            torch.gt(y, 0, out=slope).mul_(0.8).add_(0.2)  # slope of the leaky ReLU
            y.mul_(slope)
            back[block] = ((y @ out).sigmoid_() - 1) / n
            through[0].addmv_(slope.T, back[block])
            through[1].addmv_(y.T, back[block])
        mean_back, mean_product = through / (2 * n)
        slant = (mean_product - norm.bias * mean_back) / norm.weight * gain / norm.weight
        direction = gain * out
        constant, tilt = (mean * slant - mean_back) * direction, slant * direction
        projecting = (step + 1) % every == 0
        sums.zero_()
        for block in blocks:
            y, e = buffers[:, : block.stop - block.start]
            walking = h[block]
            torch.addcmul(bias, walking, gain, out=y)
            torch.gt(y, 0, out=e).mul_(0.8 * direction).add_(0.2 * direction)
            torch.addcmul(constant, e, back[block, None], out=e).addcmul_(walking, tilt, value=-1)  # e
            if gram is None:
                d = e @ weight  # (block, D)
                length = d.norm(dim=1, keepdim=True)
                torch.mm(d, weight.T, out=y)  # W d
            else:
                torch.mm(e, gram, out=y)
                length = torch.linalg.vecdot(y, e).clamp_(min=0).sqrt_()[:, None]  # |d|
            t = step_size / (length + TINY)
            walking.addcmul_(y, t)
            pushed[block].addcmul_(e, t)
            if projecting:
                at_origin, before = h_origin[block], h_before[block]
                grown = before.add_(walking).sub_(at_origin, alpha=2)
                squared[block] += torch.linalg.vecdot(grown, pushed[block])
                distance = squared[block].clamp(min=0).sqrt_()
                scale[block] = distance.clamp(low, 2 * low) / (distance + TINY)
                squared[block] *= scale[block].square()
                walking.sub_(at_origin).mul_(scale[block, None]).add_(at_origin)
                before.copy_(walking)
            sums += _sums(walking, y)
        if projecting:
            if trace is not None:
                start = (start + pushed @ weight) * scale[:, None]
            segments.append((pushed, scale))
            pushed, scale = torch.zeros_like(h), torch.empty_like(scale)
    if n_steps % every:
        segments.append((pushed, None))
    if norm.training:
        _update_running(norm, statistics, 2 * n)
    return segments


def _sums(rows: torch.Tensor, buffer: torch.Tensor | None = None) -> torch.Tensor:
    """Sums of rows (N, H) and of their squares: (2, H)."""
    ones = rows.new_ones(len(rows))
    return torch.stack([ones @ rows, ones @ torch.mul(rows, rows, out=buffer)])


def _update_running(norm: nn.BatchNorm1d, statistics, n: int) -> None:
    """Move the running statistics as that many passes in training mode would have done."""
    for mean, variance in statistics:
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (n / (n - 1)), norm.momentum)
    norm.num_batches_tracked += len(statistics)


def some_rows(labels: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw rows of normal and of blended cells: a share of them, anomalous ones first (up to half of the draw)."""
    n = max(2, round(share * len(labels)))
    order = torch.randperm(len(labels), device=labels.device)
    shuffled = labels[order] > 0.5
    anomalous = order[shuffled][: n // 2]
    others = order[~shuffled][: n - len(anomalous)]
    return torch.randperm(len(labels), device=labels.device)[:n], torch.cat([anomalous, others])


def project(offset: torch.Tensor, low, high) -> torch.Tensor:
    """Truncated projection: stretch or shrink offsets (N, D) to a length in [low, high]."""
    length = offset.norm(dim=1, keepdim=True)
    return offset * (length.clamp(low, high) / (length + TINY))


def hard_examples(scores, labels, p: float):
    """Keep the cells whose squared error is at or above its p-quantile; p = 0 keeps all.

    >>> import torch
    >>> hard_examples(torch.tensor([0.1, 0.2, 0.9, 0.4]), torch.tensor([0.0, 0.0, 1.0, 1.0]), 0.5)[0]
    tensor([0.2000, 0.4000])
    """
    if p <= 0:
        return scores, labels
    error = (scores.detach() - labels).square()
    hardest = error >= error.quantile(p)
    return scores[hardest], labels[hardest]


def focal_loss(scores: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the true label (smoothed by 1e-5).

    Args:
        scores: (N,) anomaly probabilities; labels: (N,) 0 or 1.
    """
    one = labels.clamp(CLAMP, 1 - CLAMP)
    zero = (1 - labels).clamp(CLAMP, 1 - CLAMP)
    p = zero * (1 - scores) + one * scores + CLAMP
    return (-((1 - p) ** gamma) * p.log()).mean()


def share(flags: torch.Tensor) -> torch.Tensor:
    """Share of true flags, 0 where there are none."""
    return flags.float().mean() if flags.numel() else torch.zeros(())
