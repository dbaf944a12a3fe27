"""ULSAD: unified local-global anomaly detection (Patra and Ben Taieb, TMLR 2024, arXiv 2410.16255).

    fit    frozen features, standardised -> reconstruct them from themselves (local) and from the whole image through
           one single cell (global); the two must agree                                   (architecture, losses)
    score  disagreement with the local and with the global reconstruction -> two maps -> their mean, its maximum

A scratch is seen by the local branch: its features are not reproduced. A missing part is not, since every feature
around it is normal; the global branch, which draws the image from 64 numbers, has never seen this arrangement.

The defaults are the paper's. The released code has three behaviours that matter, each a setting here:

- `quantiles`: it computes the quantiles that bring both maps to one scale in the last epoch but tests the best epoch,
  where they are mostly unset (None: the maps are added raw). Default: those of the weights that are kept.
- `hold_out`: it takes the good *test* images as validation set. We hold out training images, or take `validation`.
- `final_relu`: its reconstruction ends in a ReLU, so negative features cannot be reproduced. Default True, as there.

Where we differ: features and their self-attention are computed once, since neither can change; all sizes follow the
feature grid, so that other image sizes than 256 work. Settings that the paper does not have make short training worth
its while: in training `schedule`, `noise`, `hidden`, `global_every`; in the maps `context`, `whiten`,
`global_residual`, `area`, `position_wise`, `maps`. Their defaults leave the paper's method as it is; the study in
notebook 24 shows what each of them does.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, backbones
from adlib.images.features import (
    allocate,
    channel_statistics,
    channels_first,
    frozen_features,
    picture_features,
    resize_of,
)
from adlib.images.maps import check_images, enlarge, smooth
from adlib.methods import Scores, storage, training
from adlib.methods.normals import check_held_out, collect, split_normals, without_selection
from adlib.methods.ulsad.maps import (
    map_quantiles,
    normalise,
    place_statistics,
    residuals,
    small_maps,
    whitened_maps,
    whitening,
)
from adlib.methods.ulsad.step import TERMS, GlobalNet, ReconstructionNet, attend, local_loss, losses
from adlib.settings import build
from adlib.synthesis.judge import Judge

SIGMA, BORDER = 4.0, cv2.BORDER_REFLECT_101  # Gaussian smoothing of the maps, input pixels (section 3.4)
WEIGHT_DECAY = 2e-5  # of Adam (section 4)
N_SAMPLE = 128  # training images that the covariance and the level of the residuals rest on
TwoImages = Annotated[int, S.Must(lambda v: v >= 2, "be at least 2: one cell per image is normalised over the batch")]
Quantiles = Annotated[
    tuple[S.Closed, ...],
    S.Must(lambda q: len(q) == 2 and q[0] < q[1], "be two shares in rising order, for example [0.9, 0.995]"),
]


@dataclass(frozen=True)
class ULSADSettings(training.Options):
    """Settings of ULSAD; defaults from the paper, which are the same for all its five data sets."""

    backbone: str = "wide_resnet50_2.racm_in1k"  # what timm gave the authors for "wide_resnet50_2"
    stages: S.Stages = (2, 3)  # layer2 and layer3
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 256  # network input, pixels
    resize: S.ResizeMode = "stretch"
    context: S.Whole = 0  # pixels of mirrored surroundings that the backbone sees; 0: the zero padding of its layers
    channels: S.Count = 384  # C, length of a feature after pooling along the channels
    final_relu: bool = True  # ReLU after the last layer of the reconstruction network, as released
    direction: S.NotNegative = 0.5  # lambda of all terms; 0 leaves magnitude only
    global_losses: tuple[Literal[TERMS], ...] = TERMS  # L_pg, which ties the global branch to the features, and L_lg
    interpolation: S.Interpolation = "area"  # of the resized image; the authors' code: linear
    learning_rate: S.Positive = 2e-4  # Adam
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: up in 5 % of the steps, down to 1 %
    batch_size: TwoImages = 8  # images per step
    epochs: S.Count = 200  # passes over the training images
    noise: S.NotNegative = 0.0  # standard deviation of noise on the standardised features in training
    hidden: S.ShareFrom0 = 0.0  # share of the cells whose features the reconstruction network must guess in training
    global_every: S.Count = 1  # the global branch learns in every so many-th step; it costs half of a step
    whiten: Literal["off", "global", "both"] = "off"  # measure residuals by their covariance, not by d
    global_residual: Literal["imitation", "features"] = "imitation"  # G - R_g as in the paper; features: F - G
    area: S.NotNegative = 0.0  # Gaussian that the global residual is averaged over before it is measured, cells
    position_wise: Literal["off", "on", "auto"] = "off"  # standardise maps by normal ones at the same place
    # Mean or maximum of both maps, or one of them. auto, here and above: by held-out pseudo-anomalies; of maps it
    # takes the maximum or one of them.
    maps: Literal["mean", "max", "local", "global", "auto"] = "mean"
    quantiles: Quantiles | None = (0.9, 0.995)  # q_a, q_b of the pixels of held-out normal maps; None: maps as they are

    def check(self):
        if self.whiten == "off" and (self.area or self.global_residual != "imitation"):
            raise InputError(
                f"area {self.area} and global_residual {self.global_residual!r} change the residual that is whitened; "
                "set whiten: global"
            )


# -- features ---------------------------------------------------------------------------------------------------------


def pool_features(features: list[torch.Tensor], channels: int) -> torch.Tensor:
    """Join feature maps (B, C_l, H_l, W_l) on the grid of the first one and pool *along the channels*.

    Later maps are enlarged bilinearly; neighbouring channels are averaged at every position (adaptive average
    pooling), from sum C_l down to `channels`. Where both are equal nothing is pooled.

    Returns:
        float32 tensor (B, channels, H, W), H and W of the first map.
    """
    grid = features[0].shape[-2:]
    same = [f if f.shape[-2:] == grid else F.interpolate(f, size=grid, mode="bilinear") for f in features]
    joined = torch.cat(same, dim=1)  # (B, sum C_l, H, W)
    if joined.shape[1] == channels:
        return joined
    cells = F.adaptive_avg_pool1d(joined.flatten(2).transpose(1, 2), channels)  # (B, H W, C)
    return cells.transpose(1, 2).reshape(len(joined), channels, *grid)


def disturbed(features: torch.Tensor, noise: float, hidden: float) -> torch.Tensor:
    """Add noise and hide cells at random, so that a network cannot learn to copy: it must know what is normal here.

    Args:
        features: standardised features (B, C, h, w).
        noise: standard deviation of the Gaussian noise.
        hidden: share of the cells that are set to 0, the mean of every channel.

    Draws from torch's global generator, which `training.train` seeds at every step.
    """
    if noise:
        features = features + noise * torch.randn_like(features)
    if hidden:
        features = features * (torch.rand_like(features[:, :1]) >= hidden)
    return features


def read_maps(maps: np.ndarray, name: str) -> Scores:
    """Local and global map (B, 2, H, W) -> the map that counts and its maximum; `name`: mean, max, local or global."""
    readings = {"mean": maps.mean(axis=1), "max": maps.max(axis=1), "local": maps[:, 0], "global": maps[:, 1]}
    return Scores(readings[name].max(axis=(1, 2)), readings[name])


# -- the method -------------------------------------------------------------------------------------------------------


class ULSAD:
    """Two reconstructions of a frozen feature map, one local and one through a single cell.

    Args:
        settings: changes to `ULSADSettings`, by name.

    Attributes after `fit`:
        reconstruction_net, global_net: the trained networks.
        channel_mean, channel_std: float32 tensors (C,), for standardisation.
        reading: (mean, max, local or global; whether maps are standardised by place), as set or as "auto" found.
        residual_mean (M, C, h, w), residual_matrix (M, C, C): of the M whitened residuals; empty where M is 0.
        level: (2, 2, h, w), mean and deviation of normal maps at every place; 0 and 1 where that is not in the reading.
        quantiles: float32 (2, 2), rows local and global, columns q_a and q_b.
        normal_scores, normal_map_maxima: float32 (n,), of the held-out normal images.
        history: losses, validations and snapshots (`adlib.methods.training.History`).
    """

    name = "ulsad"
    Settings = ULSADSettings
    STATE = storage.State(
        modules=("reconstruction_net", "global_net"),
        tensors=("channel_mean", "channel_std", "residual_mean", "residual_matrix", "level"),
        arrays=("quantiles", "normal_scores", "normal_map_maxima"),
        facts=("reading",),
    )
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(ULSADSettings, settings, owner="ulsad")
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)
        self.grid = tuple(n // self.backbone.strides[0] for n in self.resize.hw)
        step = max(32, 4 * self.backbone.strides[0])
        if any(n % step for n in self.resize.hw):
            near = tuple(max(step, round(n / step) * step) for n in self.resize.hw)
            raise InputError(
                f"image_size {s.image_size} does not suit ulsad: both sides must be multiples of {step}, for example "
                f"{near[0]}x{near[1]}"
            )
        deepest = self.backbone.strides[-1]
        if s.context % deepest or not 0 <= s.context < min(self.resize.hw):
            raise InputError(f"context {s.context} must be a multiple of {deepest} pixels and less than the image size")
        if s.channels > sum(self.backbone.channels):
            raise InputError(
                f"channels {s.channels} is more than backbone {s.backbone!r} has in stages {list(s.stages)}; "
                f"give at most {sum(self.backbone.channels)}"
            )

    # -- fit ------------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a sample table of normal images.

        Args:
            table: normal training images. Without `validation` a share `hold_out` of them is put aside.
            validation: normal images that are not trained on (MVTec LOCO ships some): quantiles, threshold, selection.
            checkpoint: file that the training is kept in and resumed from; None: none.

        Of fewer than four images none is held out: quantiles then come from the training images (too low), "auto"
        takes the maximum of both maps without a level, the last weights are kept, and there are no normal scores.
        """
        train, held_out = split_normals(table, self.settings, validation)
        if len(train) < 2:
            raise InputError("1 normal training image; ulsad normalises over the images of a batch: give at least 2")
        self.settings = s = without_selection(self.settings, held_out)
        features, images = self._features(train)
        mean, std = channel_statistics(features)
        features -= mean  # in place
        features /= std
        self.channel_mean, self.channel_std = (torch.from_numpy(x).to(self.device) for x in (mean, std))
        self._sample = features[:N_SAMPLE], images[:N_SAMPLE]
        self._held_out = features[:0], images[:0]
        self._judge = None
        if len(held_out):
            held_out_features, held_out_images = self._features(held_out)
            self._held_out = (held_out_features - mean) / std, held_out_images
            if s.watched(held_out) or "auto" in (s.maps, s.position_wise):
                self._judge = Judge(held_out, self.resize, seed=s.seed)
                judged = picture_features(self._judge.images, self.embed, s.batch_size)
                self._judge_features = (judged - mean) / std
        attended = self._self_attention(features) if "attention" in s.global_losses else None

        self.build_networks()
        modules = {"reconstruction": self.reconstruction_net, "global": self.global_net}
        parameters = [p for module in modules.values() for p in module.parameters()]
        batch_size = min(s.batch_size, len(train))

        def make_batch(step):
            rows = training.epoch_rows(len(train), batch_size, s.seed, step)
            return features[rows], None if attended is None else attended[rows], images[rows]

        def compute_losses(modules, batch, step):
            f, attended_f = (None if x is None else channels_first(x, self.device) for x in batch[:2])
            inputs, local = disturbed(f, s.noise, s.hidden), step % s.global_every > 0
            reconstructed = modules["reconstruction"](inputs, local=local)  # (B, 2 C, h, w), or its local half
            if local:
                return {"local": local_loss(f, reconstructed, s.direction)}
            from_image = modules["global"](channels_first(batch[2], self.device).float() / 255)  # (B, C, h, w)
            return losses(f, attended_f, reconstructed, from_image, s.direction, s.global_losses)

        n_steps = s.steps or s.epochs * max(1, len(train) // batch_size)
        optimizer = torch.optim.Adam(parameters, s.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        falling = [training.warm_up_cosine(optimizer, n_steps, 0.05, 0.01)] if s.schedule == "cosine" else None
        self.history = training.train(
            modules,
            [optimizer],
            make_batch,
            compute_losses,
            n_steps,
            s,
            checkpoint=checkpoint,
            origin=training.origin(self, train, held_out),
            schedulers=falling,
            validate=self._choose_reading if s.watched(held_out) else None,
            progress="ulsad",
        )
        self.calibrate()
        return self

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and calibrate again, with the reading as it is."""
        check_held_out(self, "calibration")
        self.reconstruction_net.load_state_dict(states["reconstruction"])
        self.global_net.load_state_dict(states["global"])
        self._measure_normal()
        self._score_held_out()

    def calibrate(self) -> None:
        """Fit covariance, level and quantiles to the weights as they are, and score the held-out normals.

        `fit` ends with this. Call it again after a change of the settings that only concern the maps.
        """
        check_held_out(self, "calibration")
        maps, place = self.settings.maps, self.settings.position_wise
        if self._judge and "auto" in (maps, place):
            self._choose_reading()
        else:
            self._measure_normal()
            self.reading = "max" if maps == "auto" else maps, place == "on"
        self._score_held_out()

    def build_networks(self) -> None:
        """Make both networks, with weights that follow from the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            c = self.settings.channels
            self.reconstruction_net = ReconstructionNet(c, self.settings.final_relu)
            self.global_net = GlobalNet(c, self.resize.hw, self.grid)
        for net in (self.reconstruction_net, self.global_net):
            net.to(self.device, memory_format=torch.channels_last).eval()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] -> pooled features (B, C, h, w), not standardised."""
        pad, cells = self.settings.context, self.settings.context // self.backbone.strides[0]
        with torch.inference_mode():
            images = F.pad(images.to(self.device), (pad,) * 4, mode="reflect") if pad else images.to(self.device)
            pooled = pool_features(self.backbone(images), self.settings.channels)
            return pooled[:, :, cells : cells + self.grid[0], cells : cells + self.grid[1]]  # (B, C, h, w)

    def _features(self, table) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features float32 (N, h, w, C) and the images uint8 (N, H, W, 3), each computed once."""
        s = self.settings
        return frozen_features(table.image_path, self.resize, self.embed, s.batch_size, images=True)

    def _self_attention(self, features: np.ndarray) -> np.ndarray:
        attended = allocate(features.shape)
        with torch.inference_mode():
            for i in range(len(features)):
                f = channels_first(features[i : i + 1], self.device)
                attended[i] = attend(f, f)[0].permute(1, 2, 0).cpu().numpy()
        return attended

    def _measure_normal(self) -> None:
        """Fit mean and covariance of the residuals, and the level of maps, to the weights as they are.

        All of it in one pass over training images; the quantiles come from held-out ones.
        """
        s = self.settings
        self.level = self._places = self._no_level()
        self.residual_mean, self.residual_matrix = torch.empty(0), torch.empty(0)
        if s.whiten == "off" and s.position_wise == "off":
            return
        parts = [(small_maps(*outputs), self._residuals(*outputs)) for outputs in self._outputs(*self._sample)]
        maps, residual = (torch.cat(part) for part in zip(*parts, strict=True))
        if s.whiten != "off":
            self.residual_mean, self.residual_matrix = whitening(residual)
        if s.position_wise != "off":
            self._places = place_statistics(self._measured(maps, residual))

    def _no_level(self) -> torch.Tensor:
        """Mean 0 and deviation 1 at every place of both maps."""
        return torch.stack([f(2, *self.grid, device=self.device) for f in (torch.zeros, torch.ones)])

    def _normalise_by(self, normal: torch.Tensor, by_place: bool) -> np.ndarray:
        """Set level and quantiles; `normal`: small maps of normal images without a level. Return their raw maps."""
        self.level = self._places if by_place else self._no_level()
        raw = self._enlarged(normal)
        self.quantiles = np.tile(np.float32([0, 0.1]), (2, 1))  # 0.1 (map - 0) / (0.1 - 0): the map as it is
        if self.settings.quantiles is not None:
            self.quantiles = map_quantiles(smooth(raw, SIGMA, BORDER), self.settings.quantiles)
        return raw

    def _score_held_out(self) -> None:
        n = len(self._held_out[0])
        raw = self._normalise_by(self._small_maps(*(self._held_out if n else self._sample)), self.reading[1])
        self.normal_scores, self.normal_map_maxima = collect([read_maps(self._on_one_scale(raw)[:n], self.reading[0])])

    def _choose_reading(self) -> dict[str, float]:
        """Score the judge's images; of the readings of the maps that the settings leave open, keep the best.

        The quantiles are those of the clean images among them. Ties go to the first: the maximum, no level.
        """
        self._measure_normal()
        s, ratings = self.settings, {}
        small, clean = self._small_maps(self._judge_features, self._judge.images), self._judge.labels == 0
        for by_place in {"off": (False,), "on": (True,), "auto": (False, True)}[s.position_wise]:
            self._normalise_by(small[clean], by_place)
            maps = self._on_one_scale(self._enlarged(small))
            for name in ("max", "local", "global") if s.maps == "auto" else (s.maps,):
                ratings[name, by_place] = self._judge.rate(*read_maps(maps, name))
        self.reading = max(ratings, key=lambda reading: ratings[reading]["score"])
        return ratings[self.reading]

    # -- score ----------------------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: the map of the reading and its maximum."""
        maps = self.branch_maps(batch)
        return read_maps(maps, self.reading[0])

    @torch.inference_mode()
    def branch_maps(self, batch: Batch | torch.Tensor) -> np.ndarray:
        """Return the local and the global map, normalised and blurred, float32 (B, 2, H, W)."""
        storage.check_fitted(self)
        images = check_images(batch)
        pooled = self.embed(images)
        f = (pooled - self.channel_mean.view(1, -1, 1, 1)) / self.channel_std.view(1, -1, 1, 1)
        outputs = f, self._reconstructed(f), self.global_net(images.to(self.device))
        small = self._measured(small_maps(*outputs), self._residuals(*outputs))
        return self._on_one_scale(self._enlarged(small))

    def _reconstructed(self, features: torch.Tensor) -> torch.Tensor:
        """R, or its local half where the settings do not look at what imitates the global net."""
        return self.reconstruction_net(features, local=self.settings.global_residual == "features")

    def _outputs(self, features: np.ndarray, images: np.ndarray):
        """Yield (F, R, G), a batch at a time, of standardised features (N, h, w, C) and images (N, H, W, 3)."""
        size = self.settings.batch_size
        for i in range(0, len(features), size):
            f, x = (channels_first(part[i : i + size], self.device) for part in (features, images))
            with torch.inference_mode():
                yield f, self._reconstructed(f), self.global_net(x.float() / 255)

    def _residuals(self, features, reconstructed, from_image) -> torch.Tensor:
        """The residuals that are whitened: of both branches or of the global one alone (B, M, C, h, w)."""
        s = self.settings
        both = residuals(features, reconstructed, from_image, s.global_residual, s.area)
        return both if s.whiten == "both" else both[:, 1:]

    def _measured(self, maps: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Plain maps and residuals -> local and global map on the feature grid (B, 2, h, w), whitened where asked."""
        if self.settings.whiten != "off":
            white = whitened_maps(residual, self.residual_mean, self.residual_matrix)  # (B, M, h, w)
            maps = torch.cat([maps[:, : 2 - white.shape[1]], white], dim=1)
        return maps

    def _small_maps(self, features: np.ndarray, images: np.ndarray) -> torch.Tensor:
        """Local and global map on the feature grid (N, 2, h, w), without a level."""
        outputs = self._outputs(features, images)
        return torch.cat([self._measured(small_maps(*one), self._residuals(*one)) for one in outputs])

    def _raw_maps(self, features: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Maps (N, 2, H, W) of standardised features (N, h, w, C) and images, before they are on one scale."""
        return self._enlarged(self._small_maps(features, images))

    def _enlarged(self, maps: torch.Tensor) -> np.ndarray:
        maps = (maps - self.level[0]) / self.level[1]
        return enlarge(maps.flatten(0, 1), self.resize.hw).unflatten(0, (-1, 2)).cpu().numpy()  # (B, 2, H, W)

    def _on_one_scale(self, raw_maps: np.ndarray) -> np.ndarray:
        return smooth(normalise(raw_maps, self.quantiles), SIGMA, BORDER)
