"""DFR: deep feature reconstruction (Shi, Yang and Qi, Neurocomputing 2021, arXiv 2012.07122).

    fit    maps of many layers -> one regular grid of long features -> auto-encoder of 1x1 convolutions
    score  squared error of the reconstruction at every position -> map, its maximum

An auto-encoder whose bottleneck is as wide as the normal features have dimensions (by PCA) reproduces these and fails
on others. Every position is treated alone, so DFR sees what is wrong *at* a place, never that something is missing:
it is the local half of ULSAD, which grew from it, without the direction term.

The defaults are the paper's. Where we differ: the features are computed once, not in every epoch, and the resize to
the full image followed by window means is done as two small matrix products, which it is, without the large maps.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, backbones
from adlib.images.features import channel_statistics, channels_first, frozen_features, picture_features, resize_of
from adlib.images.maps import check_images, enlarge, top_mean
from adlib.methods import Scores, storage, training
from adlib.methods.normals import check_held_out, collect, split_normals, without_selection
from adlib.settings import build, choice
from adlib.synthesis.judge import Judge

VGG_RELUS = tuple(f"relu{block}_{i}" for block, n in ((1, 2), (2, 2), (3, 4), (4, 4)) for i in range(1, n + 1))
WINDOW = 4  # cells of the resized map that one position averages; 256 / 4 = 64 positions per side
N_PCA_IMAGES = 10  # training images that the width of the bottleneck follows from


@dataclass(frozen=True)
class DFRSettings(training.Options):
    """Settings of DFR; defaults from the paper and its code."""

    backbone: str = "vgg19.tv_in1k"
    stages: S.Stages = VGG_RELUS  # outputs of 12 ReLUs of VGG, 3,456 channels; or stages of any backbone
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 256  # network input, pixels
    resize: S.ResizeMode = "stretch"
    map_size: S.Count = 256  # every map is resized to this before its windows are averaged; see `DFR.__init__`
    interpolation: S.Interpolation = "area"  # of the resized image; the authors' code: nearest
    learning_rate: S.Positive = 1e-4  # Adam
    batch_size: S.Count = 4  # images per step
    epochs: S.Count = 700  # passes over the training images
    standardise: bool = False  # bring every channel to mean 0 and deviation 1 first, whatever the backbone's units
    image_score: Literal["max", "top"] = "max"  # max (paper), top (mean of the highest 1 % of the map)
    threshold_images: Literal["train", "held_out"] = "train"  # set the segmentation threshold; held_out: not too low

    def check(self):
        if self.map_size < WINDOW:
            raise InputError(f"map_size {self.map_size} must be at least {WINDOW}, the window of a position")


# -- regional features (section 3.1) ----------------------------------------------------------------------------------


def aggregate(features: list[torch.Tensor], map_size, window, stride, upsample: str = "bilinear") -> torch.Tensor:
    """Bring maps of all layers (B, C_l, H_l, W_l) to one grid: resize to `map_size`, then average windows.

    Resizing and averaging are linear and separable, so both together are one matrix for the rows and one for the
    columns; the resized map, which can be a gigabyte for one image, is never made.

    Args:
        features: maps, in the order in which their channels are joined.
        map_size, window, stride: (rows, columns) each, or one number for both. Before the windows are averaged the
            resized map is padded by (window - stride) // 2 copies of its border.
        upsample: `bilinear` (corners aligned) or `nearest`.

    Returns:
        float tensor (B, sum C_l, h, w).
    """
    sizes = [(n, n) if isinstance(n, int) else tuple(int(v) for v in n) for n in (map_size, window, stride)]
    rows, columns = zip(*sizes, strict=True)
    out = []
    for feature in features:
        down = _resample_matrix(feature.shape[-2], *rows, upsample).to(feature)  # (h, H_l)
        across = _resample_matrix(feature.shape[-1], *columns, upsample).to(feature)  # (w, W_l)
        out.append(down @ feature @ across.T)  # (B, C_l, h, w)
    return torch.cat(out, dim=1)


def _resample_matrix(length: int, map_size: int, window: int, stride: int, upsample: str) -> torch.Tensor:
    """The matrix of one axis: what the plain operations do to every unit vector."""
    unit = torch.eye(length)[None]  # (1, length, length): one signal per unit vector
    mode = {"mode": "linear", "align_corners": True} if upsample == "bilinear" else {"mode": "nearest"}
    padding = (window - stride) // 2
    resized = F.pad(F.interpolate(unit, size=map_size, **mode), (padding, padding), mode="replicate")
    return F.avg_pool1d(resized, window, stride)[0].T  # (cells, length)


def vgg_relus(name: str, stages: tuple[str, ...], weights: str) -> backbones.Backbone:
    """A VGG that returns the outputs of named ReLUs ("relu3_2": the second of the third block)."""
    import timm  # here and not above: see adlib.images.backbones

    for stage in stages:
        choice("stage", stage, [f"relu{b}_{i}" for b in range(1, 6) for i in range(1, 5)])
    if not name.startswith("vgg") or not timm.is_model(name):
        raise InputError(f"stages {stages[0]!r}, ... are layers of a VGG, not of backbone {name!r}; give stage numbers")
    hub = weights in ("auto", "hub")
    if hub:
        backbones.require_hub(name)
    try:
        model = timm.create_model(name, pretrained=hub)
    except Exception as error:  # every hub client has exceptions of its own; all of them mean the same here
        raise backbones.hub_error(name, type(error).__name__) from error
    info, block, i, channels = {}, 1, 0, 0
    for position, layer in enumerate(model.features):
        if isinstance(layer, nn.MaxPool2d):
            block, i = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, nn.ReLU):
            i += 1
            entry = {"num_chs": channels, "reduction": 2 ** (block - 1), "module": f"features.{position}"}
            info[f"relu{block}_{i}"] = entry
    for stage in stages:
        choice(f"stage of {name}", stage, info)
    indices = tuple(sorted(list(info).index(stage) for stage in stages))
    if weights not in ("auto", "hub", "random"):
        backbones._load_features(model, name, backbones.read_state_dict(weights), weights)
    config = timm.get_pretrained_cfg(name)
    model.feature_info = list(info.values())
    pyramid = timm.models.FeatureListNet(model, out_indices=indices, flatten_sequential=True)
    return backbones.Backbone(pyramid, name, indices, config.mean, config.std)


# -- auto-encoder (section 3.2) ---------------------------------------------------------------------------------------


class FeatureAutoEncoder(nn.Module):
    """1x1 convolutions C -> (C + 2 L) / 2 -> 2 L -> L and back; no activation at the bottleneck and the output."""

    def __init__(self, channels: int, latent: int):
        super().__init__()
        widths = (channels, (channels + 2 * latent) // 2, 2 * latent, latent)
        self.encoder = _pointwise(widths)
        self.decoder = _pointwise(widths[::-1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.decoder(self.encoder(features))


def _pointwise(widths) -> nn.Sequential:
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])


def pca_width(cells: np.ndarray, variance: float = 0.9) -> int:
    """Return how many principal components keep a share `variance` of the variance of cells (n, C); at least 1."""
    centred = cells.reshape(-1, cells.shape[-1]) - cells.reshape(-1, cells.shape[-1]).mean(axis=0, dtype=np.float64)
    values = np.linalg.eigvalsh(centred.T @ centred)[::-1].clip(0)  # falling
    if values.sum() == 0:
        return 1
    return int(np.searchsorted(np.cumsum(values) / values.sum(), variance - 1e-9) + 1)


def energy(features: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the channels: (B, C, h, w) twice -> (B, h, w)."""
    return (features - reconstructed).square().mean(dim=1)


def segmentation_threshold(maps: np.ndarray, positive_share: float = 0.005) -> float:
    """Return the smallest value that at most a share `positive_share` of the pixels of normal maps exceeds.

    The paper scans thresholds until that share is reached; this is where an ever finer scan ends.
    """
    pixels = np.sort(np.asarray(maps).ravel())
    return float(pixels[len(pixels) - 1 - int(positive_share * len(pixels))])


# -- the method -------------------------------------------------------------------------------------------------------


class DFR:
    """Reconstruction of deep features, position by position.

    Args:
        settings: changes to `DFRSettings`, by name.

    Attributes after `fit`:
        auto_encoder: the trained network; latent: width of its bottleneck.
        mean_and_deviation: float32 (2, C), of the channels, with `standardise`; else empty.
        segmentation_threshold: a pixel above it is called anomalous.
        normal_scores, normal_map_maxima: float32 (n,), of the held-out normal images.
        history: losses, validations and snapshots (`adlib.methods.training.History`).
    """

    name = "dfr"
    Settings = DFRSettings
    STATE = storage.State(
        modules=("auto_encoder",), tensors=("mean_and_deviation",), facts=("latent", "segmentation_threshold")
    )
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(DFRSettings, settings, owner="dfr")
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        if isinstance(s.stages[0], str) and s.stages[0].startswith("relu"):
            self.backbone = vgg_relus(s.backbone, s.stages, s.weights).to(self.device)
        else:
            self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)
        self.channels = sum(self.backbone.channels)
        self.mean_and_deviation = torch.empty(0)  # (2, C) with `standardise`
        # Of an input that is not square: as many cells, and square ones.
        flat = math.sqrt(self.resize.hw[0] / self.resize.hw[1])  # height over width
        sides = (max(WINDOW, round(s.map_size * f / WINDOW) * WINDOW) for f in (flat, 1 / flat))
        self.map_size = s.map_size if flat == 1 else tuple(sides)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] -> features (B, C, h, w) on the common grid."""
        with torch.inference_mode():
            features = aggregate(self.backbone(images.to(self.device)), self.map_size, WINDOW, WINDOW)
            if len(self.mean_and_deviation):
                mean, deviation = self.mean_and_deviation[:, :, None, None]
                features = (features - mean) / deviation
            return features

    # -- fit ------------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a sample table of normal images; arguments as for `ULSAD.fit`."""
        train, held_out = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, held_out)
        self.mean_and_deviation = torch.empty(0)
        features = self._features(train)  # (N, h, w, C)
        if s.standardise:
            mean, deviation = channel_statistics(features)
            features -= mean  # in place
            features /= deviation
            self.mean_and_deviation = torch.from_numpy(np.stack([mean, deviation])).to(self.device)
        self._held_out = self._features(held_out) if len(held_out) else features[:0]
        self.latent = pca_width(features[:N_PCA_IMAGES])
        judge = Judge(held_out, self.resize, seed=s.seed) if s.watched(held_out) else None
        judged = picture_features(judge.images, self.embed, s.batch_size) if judge else None
        self.build_networks()
        batch_size = min(s.batch_size, len(train))
        n_steps = s.steps or s.epochs * max(1, len(train) // batch_size)

        def compute_losses(modules, batch, _step):
            f = channels_first(batch, self.device)
            return {"reconstruction": F.mse_loss(modules["auto_encoder"](f), f)}

        self.history = training.train(
            {"auto_encoder": self.auto_encoder},
            [torch.optim.Adam(self.auto_encoder.parameters(), s.learning_rate)],
            lambda step: features[training.epoch_rows(len(train), batch_size, s.seed, step)],
            compute_losses,
            n_steps,
            s,
            checkpoint=checkpoint,
            origin=training.origin(self, train, held_out),
            validate=(lambda: judge.rate(*self._scores(judged))) if judge else None,
            progress="dfr",
        )
        self._score_held_out()
        normal_features = features if s.threshold_images == "train" or not len(held_out) else self._held_out
        self.segmentation_threshold = segmentation_threshold(self._scores(normal_features).map)
        return self

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and score the held-out normals again."""
        check_held_out(self)
        self.auto_encoder.load_state_dict(states["auto_encoder"])
        self._score_held_out()

    def build_networks(self) -> None:
        """Make the auto-encoder, with weights that follow from the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            self.auto_encoder = FeatureAutoEncoder(self.channels, self.latent)
        self.auto_encoder.to(self.device, memory_format=torch.channels_last).eval()

    def _features(self, table) -> np.ndarray:
        s = self.settings
        return frozen_features(table.image_path, self.resize, self.embed, s.batch_size)[0]

    def _score_held_out(self) -> None:
        self.normal_scores, self.normal_map_maxima = collect([self._scores(self._held_out)])

    # -- score ----------------------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: error map, enlarged bilinearly with aligned corners; `image_score`."""
        storage.check_fitted(self)
        return self._score(self.embed(check_images(batch)))

    @torch.inference_mode()
    def _score(self, features: torch.Tensor) -> Scores:
        errors = energy(features, self.auto_encoder(features))  # (B, h, w)
        maps = enlarge(errors, self.resize.hw, align_corners=True).cpu()  # (B, H, W)
        scores = maps.amax(dim=(1, 2)) if self.settings.image_score == "max" else top_mean(maps)
        return Scores(scores.numpy(), maps.numpy())

    def _scores(self, features: np.ndarray) -> Scores:
        """Scores of cached features (N, h, w, C), a batch at a time."""
        size = self.settings.batch_size
        blocks = [features[i : i + size] for i in range(0, max(1, len(features)), size)]
        parts = [self._score(channels_first(block, self.device)) for block in blocks]
        return Scores(*(np.concatenate(part) for part in zip(*parts, strict=True)))
