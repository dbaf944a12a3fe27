"""PAGMFR: pseudo-anomaly generation and multi-layer feature reconstruction, after the README of Wang et al. (2026).

    fit    pseudo-anomalies on normal images -> a decoder that gives back image and features *without* the anomaly,
           and a small perceptron that reads the differences
    score  anomaly map; its largest value -> image score

"PAGMFR: Collaborative Purification in Dual Spaces for Industrial Anomaly Detection via Hierarchical Reconstruction" was
published as a README alone: no code, no weights, no paper text. What it fixes is here: the four modules and how they
join (`network`), losses, optimiser, batch and epochs, the names of its functions. What it leaves open is our
choice: backbone, resolution, widths, weights of the losses, the generator's numbers (`adlib.synthesis.pagmfr`), the
score rule, the selection. So this is an implementation after the README and no reproduction; its figures are not ours
to match.

Two settings go beyond it, both off by default: `whiten` adds the Mahalanobis length of the feature residuals to the
logit, and `calibrate` brings maps to one scale at every place, both measured on normal training images.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, backbones, batches, to_tensor
from adlib.images.features import resize_of
from adlib.images.maps import check_images, upsample_and_smooth
from adlib.methods import Scores, storage, training
from adlib.methods.memory import memory_errors
from adlib.methods.normals import check_held_out, collect, split_normals, without_selection
from adlib.methods.pagmfr.network import FUSIONS, SIGMA, TERMS, PAGMFRModel, check_terms, losses, to_grid
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib.methods.ulsad.maps import peaks_at_the_border, place_statistics, whitened_maps, whitening
from adlib.settings import build
from adlib.synthesis.judge import Judge

WEIGHT_DECAY = 1e-5  # README
N_NORMAL = 96  # at most so many training images serve to measure statistics
MAX_RESIDUALS = 2**27  # numbers kept to measure the spread of residuals, 512 MiB


@dataclass(frozen=True)
class PAGMFRSettings(PairSettings):
    """Settings of PAGMFR; defaults from the README where it says, ours where it does not."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # ours; the README shows ResNet-50 as a change
    stages: S.Stages = (1, 2, 3)  # layer1 ... layer3, strides 4, 8, 16; ours
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 256  # network input, pixels; ours
    resize: Literal["stretch", "letterbox", "aspect"] = "stretch"
    width: S.Count = 256  # channels of the decoder at its second-deepest step, twice that in the bottleneck; ours
    blocks: S.Whole = 2  # residual blocks per step; ours
    fusion_width: S.Count = 128  # channels of the MFFM; ours
    image_stride: S.Count = 1  # the image is reconstructed at 1 / image_stride of its size
    dropout: S.ShareFrom0 = 0.0  # probability, whole channels of the MFFM and of the MLP
    fusion: Literal[FUSIONS] = "mlp"  # mlp (README), sum, product; `set_fusion` takes a function
    terms: tuple[Literal[TERMS], ...] = TERMS  # cosine and mffm: feature space; colour and structure: image space
    detach: bool = False  # cut the detection loss off from the reconstruction
    pos_weight: S.NotNegative = 1.0  # weight of anomalous pixels in the focal loss (README's knob)
    jitter: S.Closed = 0.0  # augmentation: brightness and contrast change by up to this share
    sampling: Literal["uniform", "small"] = "uniform"  # from the bank; small: by area^(-1/2)
    accumulate: S.Count = 1  # parts that a batch is computed in, to fit the memory
    learning_rate: S.Positive = 1e-3  # Adam (README)
    warm_up: S.ShareFrom0 = 0.0  # share of the steps in which the rate rises from 0; then cosine down to 1e-6
    epochs: S.Count = 600  # passes over the training images (README)
    checkpointing: bool = False  # gradient checkpointing: less memory, the same gradients
    whiten: bool = False  # add the length of the feature residuals, in units of their spread over normal images; ours
    calibrate: Literal["none", "position", "auto"] = "none"  # maps in units of their spread over normals at each place;
    # auto: where most normal maps have their peak at the border
    selection: Literal[training.SELECTIONS] = "synthetic"  # synthetic (best on held-out pseudo-anomalies), or last

    def check(self):
        check_terms(self.terms, self.fusion)
        if self.batch_size % self.accumulate:
            raise InputError(f"accumulate {self.accumulate} must divide batch_size {self.batch_size}")
        if self.sampling != "uniform" and not self.bank:
            raise InputError("sampling 'small' weighs the pairs of a bank; set bank to their number, for example 400")


class Whitening(nn.Module):
    """How unusual the residuals of each level are, by the mean and the covariance that normal images have there.

    Args:
        shapes: (C_l, h_l, w_l) of each level.
    """

    def __init__(self, shapes):
        super().__init__()
        self.n_levels = len(shapes)
        for i, (c, h, w) in enumerate(shapes):
            self.register_buffer(f"mean{i}", torch.zeros(1, c, h, w))
            self.register_buffer(f"matrix{i}", torch.zeros(1, c, c))

    def forward(self, residuals) -> list[torch.Tensor]:
        """Residuals (B, C_l, h_l, w_l) of each level -> their squared lengths in units of the spread, (B, h_l, w_l)."""
        return [
            whitened_maps(residuals[i][:, None], getattr(self, f"mean{i}"), getattr(self, f"matrix{i}"))[:, 0]
            for i in range(self.n_levels)
        ]


class PAGMFR:
    """Reconstruction in image and feature space, trained to undo pseudo-anomalies.

    Args:
        settings: changes to `PAGMFRSettings`, by name.

    Attributes after `fit`:
        model: the trained `PAGMFRModel`.
        pairs: the stream of training pairs; only in the session that trained.
        preparation_s: seconds before the first step: pairs, their features, statistics; also only there.
        history: `adlib.methods.training.History`.
        normal_scores, normal_map_maxima: float32 (n,), image scores and map maxima of held-out normal images.
    """

    name = "pagmfr"
    Settings = PAGMFRSettings
    # `calibration`: mean and deviation of normal maps at each place (2, T, h, w), or nothing.
    STATE = storage.State(modules=("model", "whitening"), tensors=("calibration",), facts=("residual_shapes",))
    load = classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(PAGMFRSettings, settings, owner="pagmfr")
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw)
        self.backbone.to(self.device, memory_format=torch.channels_last)  # the fast kernels on a CPU
        self.fusion = s.fusion
        self._start_anew()

    def build_networks(self) -> None:
        """Make `model`, untrained, and `whitening`, not measured."""
        s = self.settings
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            model = PAGMFRModel(
                self.backbone, width=s.width, bottleneck=2 * s.width, blocks=s.blocks, fusion_width=s.fusion_width,
                image_stride=s.image_stride, dropout=s.dropout, fusion=self.fusion, terms=s.terms, detach=s.detach,
                checkpointing=s.checkpointing,
            )  # fmt: skip
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()
        self.whitening = Whitening(self.residual_shapes).to(self.device)

    def _start_anew(self) -> None:
        """Take an untrained network, and forget what was measured with another one."""
        self.calibration, self.residual_shapes = torch.zeros(0), ()
        self.build_networks()
        for name in self.STATE.arrays:
            self.__dict__.pop(name, None)

    def set_fusion(self, function):
        """Fuse by a function (features, features_hat, images, images_hat) -> (B, h, w); before `fit`.

        A function cannot be stored: `save` refuses such a model.
        """
        self.fusion = function
        self._start_anew()
        return self

    # -- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a sample table of normal images.

        Args:
            table: normal training images.
            validation: further normal images, for threshold and selection; None keeps `hold_out` of `table`. Of fewer
                than four images none is held out: no normal scores, and the last weights are kept.
            checkpoint: file that the training is kept in and resumed from; None: none.
        """
        started = time.perf_counter()
        table, held_out = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, held_out)
        self.prepare(table)
        judge = Judge(held_out, self.resize, seed=s.seed) if s.watched(held_out) else None
        trainable = self.model.trainable()
        parameters = [p for module in trainable.values() for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, s.learning_rate, weight_decay=WEIGHT_DECAY)
        n_steps = self.n_steps
        self.preparation_s = round(time.perf_counter() - started, 3)
        self.history = training.train(
            trainable,
            [optimizer],
            lambda micro_step: self.pairs.batch(micro_step, s.accumulate),
            self.losses,
            n_steps,
            s,
            checkpoint=checkpoint,
            origin=training.origin(self, table, held_out),
            schedulers=[training.warm_up_cosine(optimizer, n_steps, s.warm_up, lowest=1e-6 / s.learning_rate)],
            validate=(lambda: judge.look(self._scores)) if judge else None,
            accumulate=s.accumulate,
            clip_norm=1.0,  # ours
            log_every=max(1, n_steps // 10),
            progress="PAGMFR",
        )
        self._held_out = held_out
        self._calibrate()
        return self

    def prepare(self, table) -> "PAGMFR":
        """Everything before the first step: training pairs, feature statistics, untrained network."""
        s = self.settings
        self._start_anew()
        with memory_errors("PAGMFR", "before the first step", s):
            self.pairs = Pairs(table, self.resize, s, self.model.encode, s.jitter, s.sampling)
            print(f"PAGMFR: {self.pairs.note}", flush=True)
            images = list(self._in_parts(_spread_out(self.pairs.images, N_NORMAL)))
            features = [torch.cat(level) for level in zip(*(self.model.encode(x) for x in images), strict=True)]
            self.model.set_statistics(features, torch.cat(images))
        self.n_steps = s.epochs * math.ceil(len(table) / s.batch_size) if s.steps is None else s.steps
        return self

    def losses(self, modules, batch, _step) -> dict[str, torch.Tensor]:
        """Every term of the loss of a batch (`network.losses`)."""
        return losses(self.model, modules, batch, self.settings.pos_weight)

    def _in_parts(self, images: np.ndarray):
        """Images uint8 (n, H, W, 3), eight at a time as (8, 3, H, W) in [0, 1] on the device."""
        for start in range(0, len(images), 8):
            yield to_tensor(images[start : start + 8]).to(self.device)

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and score the held-out normal images again."""
        check_held_out(self)
        for name, module in self.model.trainable().items():
            module.load_state_dict(states[name])
        self._calibrate()

    # -- score ------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] at the network's input size.

        Map: the sigmoid of the fused logit (`mlp`) or the fused difference (`sum`, `product`, a function), bilinear to
        the input size, Gaussian smoothing. With `whiten`, and where it is calibrated, the logit itself, plus the
        whitened residuals of the features. Image score: the largest value of the map.
        """
        return self._scores(self._queries(batch))

    def _queries(self, batch: Batch | torch.Tensor) -> torch.Tensor:
        """The images of a batch, on the device."""
        storage.check_fitted(self, *self.STATE.arrays)
        return check_images(batch).to(self.device)

    @torch.no_grad()
    def _scores(self, images) -> Scores:
        images = images.to(self.device)
        maps = self._raw_maps(images)  # (B, T, h, w)
        if len(self.calibration):
            level, spread = self.calibration
            maps = (maps - level) / spread
        elif maps.shape[1] == 1 and self.fusion == "mlp":
            maps = maps.sigmoid()
        full = upsample_and_smooth(maps.sum(dim=1), tuple(images.shape[-2:]), SIGMA)
        return Scores(full.max(axis=(1, 2)), full)

    def _raw_maps(self, images) -> torch.Tensor:
        """The maps before calibration, (B, T, h, w): the fused one (each difference of a sum), then whitened ones."""
        output = self.model(images)
        parts = list(output.maps.values()) if self.fusion == "sum" else [output.fused]
        grid = output.fused.shape[-2:]
        parts += [to_grid(white[:, None], grid)[:, 0] for white in self.whitening(self._residuals(output))]
        return torch.stack(parts, dim=1)

    def _residuals(self, output) -> list[torch.Tensor]:
        """What the reconstruction of the features left over, (B, C_l, h_l, w_l) for each level."""
        return [f - f_hat for f, f_hat in zip(output.features, output.features_hat or (), strict=False)]

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Measure residuals and maps over normal training images, then score the held-out ones."""
        s, normal = self.settings, self.pairs.images
        self.calibration = torch.zeros(0)
        with memory_errors("PAGMFR", "after the last step", s):
            if s.whiten:
                self._measure_residuals(normal)
            if s.calibrate != "none":
                maps = torch.cat([self._raw_maps(x) for x in self._in_parts(_spread_out(normal, N_NORMAL))])
                if s.calibrate != "auto" or peaks_at_the_border(maps.sum(dim=1)):
                    self.calibration = place_statistics(maps)
            held_out = batches(self._held_out.image_path, self.resize, 8)
            self.normal_scores, self.normal_map_maxima = collect(self._scores(batch.images) for batch in held_out)

    def _measure_residuals(self, normal: np.ndarray) -> None:
        size = sum(f[0].numel() for f in self.model.encode(next(self._in_parts(normal[:1]))))
        sample = _spread_out(normal, max(8, min(N_NORMAL, MAX_RESIDUALS // size)))
        parts = [self._residuals(self.model(x)) for x in self._in_parts(sample)]
        measured = [whitening(torch.cat(level)[:, None]) for level in zip(*parts, strict=True)]
        self.residual_shapes = tuple(tuple(mean.shape[1:]) for mean, _ in measured)
        self.whitening = Whitening(self.residual_shapes).to(self.device)
        for i, (mean, matrix) in enumerate(measured):
            getattr(self.whitening, f"mean{i}").copy_(mean)
            getattr(self.whitening, f"matrix{i}").copy_(matrix)

    def explain(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """What stands behind the maps of images (B, 3, H, W): reconstruction and every difference, at input size.

        Returns:
            "reconstruction" (B, H, W, 3) where the image space takes part, and one (B, H, W) for each difference and,
            with `whiten`, for the whitened residuals of each level. The MFFM's channels are no difference: not here.
        """
        with torch.no_grad():
            output = self.model(self._queries(images))
        size, pictures = tuple(images.shape[-2:]), {}
        if output.images_hat is not None:
            large = torch.nn.functional.interpolate(output.images_hat, size=size, mode="bilinear", align_corners=False)
            pictures["reconstruction"] = large.permute(0, 2, 3, 1).cpu().numpy()
        whitened = zip(self.backbone.strides, self.whitening(self._residuals(output)), strict=False)
        maps = output.maps | {f"whitened {stride}": white for stride, white in whitened}
        return pictures | {name: upsample_and_smooth(one, size, 0) for name, one in maps.items()}

    def save(self, path, **facts):
        """Write the fitted method to the folder `path`, with `facts` in its description."""
        if callable(self.fusion):
            raise InputError("fusion is a function, which cannot be stored; save with fusion mlp, sum or product")
        return storage.save(self, path, **facts)


def _spread_out(images: np.ndarray, n: int) -> np.ndarray:
    """At most about `n` images, evenly spaced."""
    return images[:: max(1, -(-len(images) // n))]
