"""The network of PAGMFR: what reconstructs (MFRM), what fuses (MFFM), what is compared, and the losses.

    image x_a -> frozen encoder -> features f_l, standardised
              -> MFRM: one narrow trunk gives f_hat_l and x_hat, both as they would be without the anomaly
              -> differences in feature space (cosine) and in image space (colour, structure)
              -> fusion with the MFFM's channels -> anomaly map

The authors' README fixes the modules, what they are called and what goes in and out; every width and every formula here
is our choice.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from adlib.errors import InputError
from adlib.images import backbones
from adlib.images.colour import colour_difference, ssim_map
from adlib.images.maps import align, check_images, enlarge, upsample_and_smooth
from adlib.methods import Scores
from adlib.methods.memory import checkpointed
from adlib.settings import choice

TERMS = ("cosine", "colour", "structure", "mffm")  # the first and the last live in feature space, the others in images
FUSIONS = ("mlp", "sum", "product")
NORMS = ("batch", "group")
MFFM_CHANNELS = 16
PRIOR = 0.01  # share of anomalous pixels that the untrained MLP assumes
SIGMA = 4.0  # Gaussian smoothing of the map, input pixels


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm="batch", bias=False) -> nn.Sequential:
    """Convolution, normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(convolution, normalisation(outputs, norm), nn.ReLU())


def normalisation(channels: int, norm: str) -> nn.Module:
    """Batch normalisation, or group normalisation, which knows no batch: parts of a batch then equal the batch."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(min(8, channels), channels)


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int, norm: str = "batch"):
        super().__init__()
        self.body = nn.Sequential(
            block(channels, channels, norm=norm),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            normalisation(channels, norm),
        )

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(x + self.body(x))


# -- 2. multi-layer feature reconstruction -----------------------------------------------------------------------------


class MFRM(nn.Module):
    """Hierarchical decoder: from a one-class bottleneck back to the features of every level, and on to the image.

    There is no way around the bottleneck: a skip connection would carry the anomaly along.

    Args:
        channels, strides: of the encoder's levels, shallow to deep; strides are powers of two.
        width: channels at the deepest level's stride are 2 * width, and half as many at each finer one (at least 8).
        bottleneck: channels at twice the deepest stride.
        blocks: residual blocks after each step.
        image_stride: the image is reconstructed at 1 / image_stride of its size.
        spaces: (features, image): which of the two are reconstructed.
        norm: `batch` or `group`.
        checkpointing: compute inner activations again in the backward pass instead of keeping them.
    """

    def __init__(self, channels, strides, width=256, bottleneck=512, blocks=2, image_stride=1,
                 spaces=(True, True), norm="batch", checkpointing=False):  # fmt: skip
        super().__init__()
        for stride in (*strides, image_stride):
            if stride < 1 or stride & (stride - 1):
                raise InputError(f"stride {stride} must be a power of two; choose other stages or image_stride")
        if image_stride >= strides[0]:
            raise InputError(f"image_stride {image_stride} must be finer than the first level's stride {strides[0]}")
        self.strides, self.image_stride, self.checkpointing = tuple(strides), image_stride, checkpointing
        deepest = strides[-1]
        # Every level comes down to the deepest stride by 3x3 convolutions of stride 2, the deepest by a 1x1.
        self.down = nn.ModuleList()
        for channel, stride in zip(channels, strides, strict=True):
            halvings = (deepest // stride).bit_length() - 1
            steps = [block(channel if i == 0 else width, width, 3, 2, norm) for i in range(halvings)]
            self.down.append(nn.Sequential(*(steps or [block(channel, width, 1, 1, norm)])))
        self.bottleneck = nn.Sequential(
            block(width * len(channels), 2 * width, 1, 1, norm),
            block(2 * width, bottleneck, 3, 2, norm),
            *(Residual(bottleneck, norm) for _ in range(blocks)),
        )
        self.decoder, self.heads = nn.ModuleList(), nn.ModuleDict()
        stride, inputs, outputs = deepest, bottleneck, 2 * width
        finest = max(image_stride, 2) if spaces[1] else strides[0]
        while stride >= finest:
            self.decoder.append(
                nn.Sequential(block(inputs, outputs, norm=norm), *(Residual(outputs, norm) for _ in range(blocks)))
            )
            if stride in strides and spaces[0]:
                self.heads[str(stride)] = nn.Conv2d(outputs, channels[strides.index(stride)], 1)
            stride, inputs, outputs = stride // 2, outputs, max(8, outputs // 2)
        thin = max(8, width // 8)
        self.image_head = None
        if spaces[1]:
            self.image_head = nn.Sequential(block(inputs, thin, norm=norm), nn.Conv2d(thin, 3, 3, padding=1))

    def forward(self, features: list[torch.Tensor], size: tuple[int, int]):
        """Reconstruct features and image.

        Args:
            features: standardised maps (B, C_l, H_l, W_l).
            size: (H, W) of the input image.

        Returns:
            list of (B, C_l, H_l, W_l), and (B, 3, H / image_stride, W / image_stride) in [0, 1]; None for a space that
            is not reconstructed.
        """
        run = checkpointed if self.checkpointing else lambda module, x: module(x)
        grid = features[-1].shape[-2:]
        lowered = [F.adaptive_avg_pool2d(down(f), grid) for down, f in zip(self.down, features, strict=True)]
        x = run(self.bottleneck, torch.cat(lowered, dim=1))
        grids = dict(zip(self.strides, (f.shape[-2:] for f in features), strict=True))
        levels, stride = [], self.strides[-1]
        for step in self.decoder:
            # Sizes come from the encoder, so that any input size works, not only multiples of the strides.
            at = grids.get(stride) or tuple(-(-side // stride) for side in size)
            x = run(step, F.interpolate(x, size=at, mode="bilinear", align_corners=False))
            if str(stride) in self.heads:
                levels.insert(0, self.heads[str(stride)](x))
            stride //= 2
        picture = None
        if self.image_head is not None:
            at = tuple(-(-side // self.image_stride) for side in size)
            if x.shape[-2:] != at:
                x = F.interpolate(x, size=at, mode="bilinear", align_corners=False)
            picture = self.image_head(x).sigmoid()
        return levels or None, picture


# -- 3. multi-layer feature fusion -------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Squeeze and excitation: weigh channels by what the whole map shows; our reading of adaptive feature selection."""

    def __init__(self, channels: int, reduction: int = 8):
        super().__init__()
        inner = max(4, channels // reduction)
        self.body = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid())

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.body(x.mean(dim=(2, 3)))[:, :, None, None]


class MFFM(nn.Module):
    """Fuse features and their reconstruction: concatenate, reduce, gate, bring all levels together."""

    def __init__(self, channels, width: int = 128, norm: str = "batch", dropout: float = 0.0):
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(block(2 * c, width, 1, 1, norm), Gate(width)) for c in channels)
        self.join = nn.Sequential(
            block(len(channels) * width, width, norm=norm), nn.Dropout2d(dropout), nn.Conv2d(width, MFFM_CHANNELS, 1)
        )

    def forward(self, features, reconstructed):
        """Maps (B, C_l, H_l, W_l) of all levels, twice -> (B, 16, H_1, W_1)."""
        grid, joined = features[0].shape[-2:], []
        for level, f, f_hat in zip(self.levels, features, reconstructed, strict=True):
            joined.append(align(level(torch.cat([f, f_hat], dim=1)), grid))
        return self.join(torch.cat(joined, dim=1))


# -- 4. anomaly calculation --------------------------------------------------------------------------------------------


def to_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring maps (B, C, H, W) to a grid: means where it is coarser, bilinear where it is finer."""
    return F.adaptive_avg_pool2d(maps, grid) if maps.shape[-1] > grid[-1] else align(maps, grid)


def feature_difference(features, reconstructed) -> torch.Tensor:
    """1 - cosine at every position of every level, on the finest grid: (B, L, H_1, W_1), 0 ... 2."""
    grid = features[0].shape[-2:]
    maps = [1 - F.cosine_similarity(f, f_hat, dim=1) for f, f_hat in zip(features, reconstructed, strict=True)]
    return torch.cat([align(m[:, None], grid) for m in maps], dim=1)


def image_difference(images, reconstructed, terms=TERMS) -> torch.Tensor:
    """Colour and structure at every pixel: (B, 1 or 2, H, W), in that order.

    Colour is the CIE76 distance in CIELAB / 100; structure is (1 - SSIM) / 2.
    """
    maps = []
    if "colour" in terms:
        maps.append(colour_difference(images, reconstructed) / 100)
    if "structure" in terms:
        maps.append((1 - ssim_map(images, reconstructed)) / 2)
    return torch.stack(maps, dim=1)


def texture_difference(images, reconstructed, sigma: float = 2.0) -> torch.Tensor:
    """How much the fine texture differs: (B, H, W), 0 ... about 0.5. For the README's example of a fusion of one's own.

    The strength of fine detail is the mean magnitude of each grey image's difference to its blurred self.
    """
    blur = functools.partial(gaussian_blur, kernel_size=11, sigma=sigma)
    strength = [
        blur((grey - blur(grey)).abs()) for grey in (x.mean(dim=1, keepdim=True) for x in (images, reconstructed))
    ]
    return (strength[0] - strength[1]).abs()[:, 0]


class MLPFusion(nn.Module):
    """One small perceptron for all pixels: all differences and the MFFM's channels -> logit."""

    def __init__(self, inputs: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, 32, 1),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(32, 16, 1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        )
        # From torch's start near one half the first steps push all logits down, and since no difference is negative
        # they do so by turning the slopes round: the map can stay upside down for good.
        nn.init.constant_(self.layers[-1].bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, channels):
        """(B, T, h, w) -> (B, h, w)."""
        return self.layers(channels)[:, 0]


class Affine(nn.Module):
    """logit = softplus(a) map + b: the detection loss of a map that is no logit itself; the order stays."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-2.0))

    def forward(self, maps):
        """(B, h, w) -> (B, h, w)."""
        return F.softplus(self.scale) * maps + self.shift


# -- losses ------------------------------------------------------------------------------------------------------------


def reconstruction_losses(features, reconstructed, images, images_hat) -> dict[str, torch.Tensor]:
    """MSE of every level and of the image, and 1 - SSIM of the image; a space that is not reconstructed has no term."""
    losses = {}
    if reconstructed is not None:
        pairs = zip(features, reconstructed, strict=True)
        losses["features"] = sum(F.mse_loss(f_hat.float(), f.float()) for f, f_hat in pairs)
    if images_hat is not None:
        losses["image"] = F.mse_loss(images_hat.float(), images)
        losses["ssim"] = 1 - ssim_map(images_hat, images).mean()
    return losses


def detection_loss(logits, mask, gamma: float = 2.0, pos_weight: float = 1.0) -> torch.Tensor:
    """Focal loss on logits (B, H, W) and mask (B, H, W), mean over all pixels.

    -w (1 - p_t)^gamma log p_t, with w = `pos_weight` on anomalous pixels and 1 on the others.
    """
    target = mask.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    weight = 1 + (pos_weight - 1) * target
    return (weight * (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()


# -- all together ------------------------------------------------------------------------------------------------------


class Output(NamedTuple):
    """What the model makes of a batch.

    Attributes:
        logits: (B, h, w), on the finest feature grid.
        maps: dict of (B, h, w), each single difference: "cosine 8" (by stride), "colour", "structure".
        features, features_hat: standardised features and their reconstructions; the latter None without that space.
        images_hat: (B, 3, H', W') reconstructed image in [0, 1], or None.
        fused: (B, h, w), the value of the fusion before the affine layer; the logits themselves for `mlp`.
    """

    logits: torch.Tensor
    maps: dict
    features: list
    features_hat: list | None
    images_hat: torch.Tensor | None
    fused: torch.Tensor


class PAGMFRModel(nn.Module):
    """The whole model: a frozen encoder, MFRM, MFFM and the anomaly calculation.

    The encoder is no submodule: it is neither trained nor stored, and goes where the model is.

    Args:
        backbone: an `adlib.images.backbones.Backbone`, or the name of one; channels and strides are read from it.
        stages, weights: of the backbone, where a name is given.
        width, bottleneck, blocks, image_stride, norm, checkpointing: see `MFRM`.
        fusion_width, dropout: of the MFFM.
        fusion: `mlp`, `sum` (of the differences), `product` (of 1 + each of them, less 1), or a function
            (features, features_hat, images, images_hat) -> (B, h, w).
        terms: which of `TERMS` take part. Without "cosine" and "mffm" only the image space is left, without "colour"
            and "structure" only the feature space.
        detach: cut the detection loss off from the reconstruction.
    """

    def __init__(self, backbone="wide_resnet50_2.tv_in1k", stages=(1, 2, 3), weights="auto", width=256, bottleneck=512,
                 blocks=2, fusion_width=128, image_stride=1, norm="batch", dropout=0.0, fusion="mlp", terms=TERMS,
                 detach=False, checkpointing=False):  # fmt: skip
        super().__init__()
        if isinstance(backbone, str):
            backbone = backbones.create(backbone, tuple(stages), weights)
        check_terms(terms, fusion)
        choice("norm", norm, NORMS)
        self._encoder = (backbone,)  # in a tuple, or torch would make it a submodule
        self.fusion_name, self.terms, self.detach = fusion, tuple(terms), detach
        channels, strides = backbone.channels, backbone.strides
        for i, (c, stride) in enumerate(zip(channels, strides, strict=True)):
            self.register_buffer(f"mean{i}", torch.zeros(1, c, 1, 1))
            self.register_buffer(f"std{i}", torch.ones(1, c, 1, 1))
            if i and stride <= strides[i - 1]:
                raise InputError(f"stages of strides {strides} must go from fine to coarse; choose stages that do")
        own = callable(fusion)
        spaces = (own or bool({"cosine", "mffm"} & set(terms)), own or bool({"colour", "structure"} & set(terms)))
        self.mfrm = MFRM(channels, strides, width, bottleneck, blocks, image_stride, spaces, norm, checkpointing)
        n_maps = len(channels) * ("cosine" in terms) + ("colour" in terms) + ("structure" in terms)
        if fusion == "mlp":
            self.mffm = MFFM(channels, fusion_width, norm, dropout) if "mffm" in terms else None
            self.fusion = MLPFusion(n_maps + MFFM_CHANNELS * ("mffm" in terms), dropout)
        else:
            self.mffm, self.fusion = None, Affine()

    @property
    def encoder(self) -> backbones.Backbone:
        """The frozen backbone, on the model's device."""
        return self._encoder[0].to(self.mean0.device)

    def trainable(self) -> dict[str, nn.Module]:
        """The modules that are trained, by name; the encoder is not among them."""
        return {name: m for name in ("mfrm", "mffm", "fusion") if (m := getattr(self, name)) is not None}

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features of images (B, 3, H, W) in [0, 1] as the backbone gives them; no gradient reaches the encoder."""
        return self.encoder(images.to(self.mean0.device))

    def standardise(self, features) -> list[torch.Tensor]:
        """Every channel to mean 0 and deviation 1 over the normal training images."""
        return [(f.float() - getattr(self, f"mean{i}")) / getattr(self, f"std{i}") for i, f in enumerate(features)]

    @torch.no_grad()
    def set_statistics(self, features, images) -> None:
        """Learn from normal images (N, 3, H, W) and their features how a plain answer looks.

        Mean and deviation of every channel standardise the features; the image head starts at the mean colour, which
        the sigmoid would otherwise take hundreds of steps to reach.
        """
        for i, f in enumerate(features):
            f = f.float()
            getattr(self, f"mean{i}").copy_(f.mean(dim=(0, 2, 3))[None, :, None, None])
            # A channel that is nearly constant would be blown up to noise.
            std = f.std(dim=(0, 2, 3))
            getattr(self, f"std{i}").copy_(std.clamp_min(0.05 * float(std.mean()) + 1e-6)[None, :, None, None])
        if self.mfrm.image_head is not None:
            self.mfrm.image_head[-1].bias.copy_(images.mean(dim=(0, 2, 3)).clamp(0.01, 0.99).logit())

    def shrink(self, images: torch.Tensor) -> torch.Tensor:
        """Images at the size at which they are reconstructed."""
        stride = self.mfrm.image_stride
        return images if stride == 1 else F.avg_pool2d(images, stride, ceil_mode=True)

    def forward(self, images, features=None, modules=None) -> Output:
        """Reconstruct and compare.

        Args:
            images: (B, 3, H, W) in [0, 1].
            features: what `encode` gave for them, where it is at hand.
            modules: the trainable modules, where they are wrapped for several processes.
        """
        modules = modules or self.trainable()
        features = self.standardise(self.encode(images) if features is None else features)
        small = self.shrink(images)
        features_hat, images_hat = modules["mfrm"](features, tuple(images.shape[-2:]))
        with torch.autocast(images.device.type, enabled=False):  # differences of nearly equal numbers need float32
            features_hat = None if features_hat is None else [f.float() for f in features_hat]
            images_hat = None if images_hat is None else images_hat.float()
            shown_f, shown_x = features_hat, images_hat
            if self.detach:
                shown_f = None if features_hat is None else [f.detach() for f in features_hat]
                shown_x = None if images_hat is None else images_hat.detach()
            maps = self.differences(features, shown_f, small, shown_x)
        fused = self.fuse(maps, features, shown_f, small, shown_x, modules)
        logits = fused if self.fusion_name == "mlp" else modules["fusion"](fused)
        return Output(logits.float(), maps, features, features_hat, images_hat, fused.float())

    @torch.no_grad()
    def score(self, images: torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: sigmoid of the logits, enlarged, smoothed; the largest value."""
        check_images(images)
        logits = self.eval()(images.to(self.mean0.device)).logits
        maps = upsample_and_smooth(logits.sigmoid(), tuple(images.shape[-2:]), SIGMA)
        return Scores(maps.max(axis=(1, 2)), maps)

    def differences(self, features, features_hat, images, images_hat) -> dict[str, torch.Tensor]:
        """Each single difference on the finest feature grid, (B, h, w)."""
        grid, maps = features[0].shape[-2:], {}
        if "cosine" in self.terms:
            names = (f"cosine {stride}" for stride in self.encoder.strides)
            maps |= dict(zip(names, feature_difference(features, features_hat).unbind(1), strict=True))
        if "colour" in self.terms or "structure" in self.terms:
            differences = to_grid(image_difference(images, images_hat, self.terms), grid)
            maps |= dict(
                zip((t for t in ("colour", "structure") if t in self.terms), differences.unbind(1), strict=True)
            )
        return maps

    def fuse(self, maps, features, features_hat, images, images_hat, modules) -> torch.Tensor:
        """One map (B, h, w) from all differences."""
        if callable(self.fusion_name):
            return to_grid(
                self.fusion_name(features, features_hat, images, images_hat)[:, None], features[0].shape[-2:]
            )[:, 0]
        stacked = torch.stack(list(maps.values()), dim=1) if maps else None  # (B, T, h, w)
        if self.fusion_name == "sum":
            return stacked.sum(dim=1)
        if self.fusion_name == "product":
            return (1 + stacked).prod(dim=1) - 1
        parts = [stacked] if stacked is not None else []
        if "mffm" in self.terms:
            parts.append(modules["mffm"](features, features_hat))
        return modules["fusion"](torch.cat(parts, dim=1))


def check_terms(terms, fusion) -> None:
    """Refuse unknown terms, and a fusion that has nothing to fuse."""
    for term in terms:
        choice("term", term, TERMS)
    if not callable(fusion):
        choice("fusion", fusion, FUSIONS)
    if not set(terms) - (set() if fusion == "mlp" else {"mffm"}):
        raise InputError(f"terms {list(terms)} leave fusion {fusion!r} nothing to fuse; choose from {', '.join(TERMS)}")


def losses(model: PAGMFRModel, modules, batch: dict, pos_weight: float = 1.0) -> dict[str, torch.Tensor]:
    """The terms of L: the reconstruction losses against the *normal* image, and the focal loss of the map.

    Args:
        modules: the trainable modules, wrapped or not.
        batch: of `adlib.methods.pagmfr.training_pairs.Pairs.batch`, or of images alone: normal, image, mask.
    """
    device = model.mean0.device
    normal, image, mask = (batch[key].to(device) for key in ("normal", "image", "mask"))
    cached = {
        key: [level.to(device) for level in batch[key]] for key in ("features", "normal_features") if key in batch
    }
    output = model(image, cached.get("features"), modules)
    target = model.standardise(cached["normal_features"] if cached else model.encode(normal))
    terms = reconstruction_losses(target, output.features_hat, model.shrink(normal), output.images_hat)
    logits = enlarge(output.logits, tuple(mask.shape[1:]))
    return terms | {"detection": detection_loss(logits, mask, pos_weight=pos_weight)}
