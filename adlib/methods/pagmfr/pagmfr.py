"""PAGMFR: pseudo-anomaly generation and multi-layer feature reconstruction, after the README of Wang et al. (2026).

    fit    pseudo-anomalies on normal images -> a decoder that gives back image and features *without* the anomaly,
           and a small perceptron that reads the differences
    score  anomaly map; its largest value -> image score

"PAGMFR: Collaborative Purification in Dual Spaces for Industrial Anomaly Detection via Hierarchical Reconstruction" was
published as a README alone: no code, no weights, no paper text. What it fixes is here: the four modules and how they
join (`pagmfr_network`), losses, optimiser, batch and epochs, the names of its functions. What it leaves open is our
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

import cv2
import numpy as np
import torch

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, Resize, backbones, batches, to_tensor
from adlib.images.maps import upsample_and_smooth
from adlib.methods import Scores, storage, training
from adlib.methods.few_shot.support_images import below, check_fingerprint, check_queries
from adlib.methods.normals import collect, split_normals, without_selection
from adlib.methods.pagmfr.network import FUSIONS, NORMS, TERMS, PAGMFRModel, check_terms, losses, to_grid
from adlib.methods.pagmfr.training_pairs import Pairs, PairSettings
from adlib.methods.reconstruction import synthetic_images, synthetic_score
from adlib.methods.ulsad.maps import peaks_at_the_border, place_statistics, whitened_maps, whitening
from adlib.settings import as_dict, build

N_NORMAL = 96  # at most so many training images serve to measure statistics
MAX_RESIDUALS = 2**27  # numbers kept to measure the spread of residuals, 512 MiB


@dataclass(frozen=True)
class PAGMFRSettings(PairSettings):
    """Settings of PAGMFR; defaults from the README where it says, ours where it does not."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # ours; the README shows ResNet-50 as a change
    stages: S.Stages = (1, 2, 3)  # layer1 ... layer3, strides 4, 8, 16; ours
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 256  # network input, pixels; ours
    resize: S.ResizeMode = "stretch"
    scale: S.Count | None = None  # pixels, only for resize "short_side"
    width: S.Count = 256  # channels of the decoder at stride 8 (of the second-deepest step); ours
    bottleneck: S.Count = 512  # channels at stride 32; ours
    blocks: S.Whole = 2  # residual blocks a step; ours
    fusion_width: S.Count = 128  # channels of the MFFM; ours
    image_stride: S.Count = 1  # the image is reconstructed at 1 / image_stride of its size
    norm: Literal[NORMS] = "batch"  # batch or group normalisation; with group, parts of a batch equal the batch exactly
    dropout: S.ShareFrom0 = 0.0  # probability, whole channels of the MFFM and of the MLP
    fusion: Literal[FUSIONS] = "mlp"  # mlp (README), sum, product; `set_fusion` takes a function
    terms: tuple[Literal[TERMS], ...] = TERMS  # cosine and mffm: feature space; colour and structure: image space
    prior: S.Share | None = 0.01  # share of anomalous pixels that the untrained MLP assumes; None: torch's start; ours
    detach: bool = False  # cut the detection loss off from the reconstruction
    gamma: S.NotNegative = 2.0  # focal loss
    pos_weight: S.NotNegative = 1.0  # weight of anomalous pixels in the focal loss (README's knob)
    detection: S.NotNegative = 1.0  # weight of the focal loss beside the reconstruction; ours, DRAEM's
    learning_rate: S.Positive = 1e-3  # Adam (README)
    weight_decay: S.NotNegative = 1e-5  # README
    warm_up: S.ShareFrom0 = 0.0  # share of the steps in which the rate rises from 0; then cosine down to 1e-6
    clip_norm: S.Positive = 1.0  # largest norm of the gradient; ours
    epochs: S.Count = 600  # passes over the training images (README)
    checkpointing: bool = False  # gradient checkpointing: less memory, the same gradients
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels; 0 for none
    score: Literal["max", "top", "mean21"] = "max"  # top: mean of the highest 0.1 %; mean21: DRAEM
    whiten: bool = False  # add the length of the feature residuals, in units of their spread over normal images; ours
    calibrate: Literal["none", "global", "position", "auto"] = "none"  # maps in units of their spread over normals;
    # auto: by position where most normal maps have their peak at the border, else none
    selection: Literal[training.SELECTIONS] = "synthetic"  # synthetic (best on held-out pseudo-anomalies), or last

    def check(self):
        super().check()
        check_terms(self.terms, self.fusion)


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

    def __init__(self, **settings):
        self.settings = s = build(PAGMFRSettings, settings, owner="pagmfr")
        size = s.image_size if isinstance(s.image_size, int) else tuple(s.image_size)
        self.resize = Resize(size, s.resize, s.scale if s.resize == "short_side" else None)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)
        self.fusion = s.fusion
        self._start_anew()

    def _start_anew(self) -> None:
        """Take an untrained network, and forget what was measured with another one."""
        self.model = self._new_model()
        self.whitening, self.calibration = [], None  # of residuals, of maps: measured at the end of `fit`
        for name in ("normal_scores", "normal_map_maxima"):
            self.__dict__.pop(name, None)

    def _new_model(self) -> PAGMFRModel:
        s = self.settings
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            model = PAGMFRModel(
                self.backbone, width=s.width, bottleneck=s.bottleneck, blocks=s.blocks, fusion_width=s.fusion_width,
                image_stride=s.image_stride, norm=s.norm, dropout=s.dropout, fusion=self.fusion, terms=s.terms,
                detach=s.detach, checkpointing=s.checkpointing, prior=s.prior,
            )  # fmt: skip
        return model.to(self.device, memory_format=torch.channels_last).eval()  # the fast kernels on a CPU

    def set_fusion(self, function):
        """Fuse by a function (features, features_hat, images, images_hat) -> (B, h, w); before `fit`.

        A function cannot be stored: `save` refuses such a model.
        """
        self.fusion = function
        self._start_anew()
        return self

    # -- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None):
        """Train on a sample table of normal images.

        Args:
            table: normal training images.
            validation: further normal images, for threshold and selection; None keeps `hold_out` of `table`. Of fewer
                than four images none is held out: no normal scores, and the last weights are kept.
        """
        started = time.perf_counter()
        table, held_out = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, held_out)
        self.prepare(table)
        synthetic = synthetic_images(held_out, s, self.resize) if s.watched else None
        trainable = self.model.trainable()
        parameters = [p for module in trainable.values() for p in module.parameters()]
        optimizer = torch.optim.Adam(parameters, s.learning_rate, weight_decay=s.weight_decay)
        n_steps = self.n_steps
        self.preparation_s = round(time.perf_counter() - started, 3)
        self.history = training.train(
            trainable,
            [optimizer],
            self.pairs.batch,
            self.losses,
            n_steps,
            s,
            origin=training.origin(self, table, held_out),
            schedulers=[training.warm_up_cosine(optimizer, n_steps, s.warm_up, lowest=1e-6 / s.learning_rate)],
            validate=(lambda: self._validate(synthetic)) if synthetic else None,
            accumulate=s.accumulate,
            clip_norm=s.clip_norm,
            workers=s.workers,
            pin_memory=s.pin_memory,
            log_every=s.log_every,
            progress="PAGMFR",
        )
        self._held_out = held_out
        self._calibrate()
        return self

    def prepare(self, table) -> "PAGMFR":
        """Everything before the first step: training pairs, feature statistics, untrained network."""
        s = self.settings
        self._start_anew()
        with self._memory_errors("before the first step"):
            self.pairs = Pairs(table, self.resize, s, self.model.encode)
            print(f"PAGMFR: {self.pairs.note}", flush=True)
            images = list(self._in_parts(_spread_out(self.pairs.images, N_NORMAL)))
            features = [torch.cat(level) for level in zip(*(self.model.encode(x) for x in images), strict=True)]
            self.model.set_statistics(features, torch.cat(images))
        self.n_steps = s.epochs * math.ceil(len(table) / s.batch_size) if s.steps is None else s.steps
        return self

    def _memory_errors(self, when: str):
        # Outside the steps, neither the batch nor its gradients take memory.
        usable = set(training.memory_knobs(self.settings)) - {"batch_size", "accumulate", "checkpointing"}
        return training.memory_errors("PAGMFR", when, tuple(usable))

    def losses(self, modules, batch, _step) -> dict[str, torch.Tensor]:
        """Every term of the loss of a batch (`pagmfr_network.losses`)."""
        s = self.settings
        return losses(self.model, modules, batch, s.gamma, s.pos_weight, s.detection)

    def _validate(self, synthetic) -> dict[str, float]:
        """Rate the model on held-out pseudo-anomalies, of families that PAGMFR is not trained on."""
        images, masks, labels = synthetic
        found = [self._scores(x, calibrated=False) for x in self._in_parts(images)]
        return synthetic_score(
            np.concatenate([f.image for f in found]), np.concatenate([f.map for f in found]), masks, labels
        )

    def _in_parts(self, images: np.ndarray):
        """Images uint8 (n, H, W, 3), eight at a time as (8, 3, H, W) in [0, 1] on the device."""
        for start in range(0, len(images), 8):
            yield to_tensor(images[start : start + 8]).to(self.device)

    def use_snapshot(self, states: dict) -> None:
        """Put the weights of `history.snapshots` in place and score the held-out normal images again."""
        if not hasattr(self, "_held_out"):
            raise InputError("use_snapshot needs the held-out images of fit; they are not saved with a model")
        for name, module in self.model.trainable().items():
            module.load_state_dict(states[name])
        self._calibrate()

    # -- score ------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] at the network's input size.

        Map: the sigmoid of the fused logit (`mlp`) or the fused difference (`sum`, `product`, a function), bilinear to
        the input size, Gaussian smoothing. With `whiten`, and where it is calibrated, the logit itself, plus the
        whitened residuals of the features. Image score: by the rule `score` from the map.
        """
        return self._scores(self._queries(batch))

    def _queries(self, batch: Batch | torch.Tensor) -> torch.Tensor:
        """The images of a batch, on the device."""
        if not hasattr(self, "normal_scores"):
            raise InputError("this PAGMFR is not fitted; call fit(table) before it scores")
        images = batch.images if isinstance(batch, Batch) else batch
        check_queries(images)
        return images.to(self.device)

    @torch.no_grad()
    def _scores(self, images, calibrated: bool = True) -> Scores:
        s = self.settings
        maps = self._raw_maps(images, calibrated and s.whiten)  # (B, T, h, w)
        if calibrated and self.calibration is not None:
            maps = (maps - self.calibration[0]) / self.calibration[1]
        elif maps.shape[1] == 1 and self.fusion == "mlp":
            maps = maps.sigmoid()
        full = upsample_and_smooth(maps.sum(dim=1), tuple(images.shape[-2:]), s.sigma)
        return Scores(image_scores(full, s.score), full)

    def _raw_maps(self, images, whiten: bool) -> torch.Tensor:
        """The maps before calibration, (B, T, h, w): the fused one (each difference of a sum), then whitened ones."""
        output = self.model(images)
        parts = list(output.maps.values()) if self.fusion == "sum" else [output.fused]
        if whiten:
            for residual, (mean, matrix) in zip(self._residuals(output), self.whitening, strict=True):
                white = whitened_maps(residual[:, None], mean, matrix)  # (B, 1, h_l, w_l)
                parts.append(to_grid(white, output.fused.shape[-2:])[:, 0])
        return torch.stack(parts, dim=1)

    def _residuals(self, output) -> list[torch.Tensor]:
        """What the reconstruction of the features left over, (B, C_l, h_l, w_l) for each level."""
        return [f - f_hat for f, f_hat in zip(output.features, output.features_hat or (), strict=False)]

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Measure residuals and maps over normal training images, then score the held-out ones."""
        s, normal = self.settings, self.pairs.images
        self.whitening, self.calibration = [], None
        with self._memory_errors("after the last step"):
            if s.whiten:
                size = sum(f[0].numel() for f in self.model.encode(next(self._in_parts(normal[:1]))))
                chosen = _spread_out(normal, max(8, min(N_NORMAL, MAX_RESIDUALS // size)))
                parts = [self._residuals(self.model(x)) for x in self._in_parts(chosen)]
                self.whitening = [whitening(torch.cat(level)[:, None]) for level in zip(*parts, strict=True)]
            if s.calibrate != "none":
                maps = torch.cat([self._raw_maps(x, s.whiten) for x in self._in_parts(_spread_out(normal, N_NORMAL))])
                if s.calibrate != "auto" or peaks_at_the_border(maps.sum(dim=1)):
                    self.calibration = level_and_spread(maps, by_position=s.calibrate != "global")
            held_out = batches(self._held_out.image_path, self.resize, 8)
            found = collect(self._scores(batch.images.to(self.device)) for batch in held_out)
        self.normal_scores, self.normal_map_maxima = found

    def explain(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """What stands behind the maps of images (B, 3, H, W): reconstruction and every difference, at input size.

        Returns:
            "reconstruction" (B, H, W, 3) where the image space takes part, and one (B, H, W) for each difference and,
            with `whiten`, for the whitened residuals of each level. The MFFM's channels are no difference: not here.
        """
        with torch.no_grad():
            output = self.model(self._queries(images))
        size, shown = tuple(images.shape[-2:]), {}
        if output.images_hat is not None:
            large = torch.nn.functional.interpolate(output.images_hat, size=size, mode="bilinear", align_corners=False)
            shown["reconstruction"] = large.permute(0, 2, 3, 1).cpu().numpy()
        maps = dict(output.maps)
        levels = zip(self.model.encoder.strides, self._residuals(output), self.whitening, strict=False)
        maps |= {f"whitened {stride}": whitened_maps(r[:, None], *measured)[:, 0] for stride, r, measured in levels}
        return shown | {name: upsample_and_smooth(found, size, 0) for name, found in maps.items()}

    # -- save and load --------------------------------------------------------------------------------------------

    def save(self, path):
        """Write the fitted method to the folder `path`."""
        if not hasattr(self, "normal_scores"):
            raise InputError("this PAGMFR is not fitted; call fit(table) before save")
        if callable(self.fusion):
            raise InputError("fusion is a function, which cannot be stored; save with fusion mlp, sum or product")
        storage.save_model(path, self.name, as_dict(self.settings), self._tensors(), **self._facts())

    def _facts(self) -> dict:
        return {"backbone_fingerprint": self.backbone.fingerprint}

    def _tensors(self) -> dict:
        state = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        tensors = {f"model.{name}": tensor for name, tensor in state.items()}
        tensors["normal_scores"] = torch.from_numpy(self.normal_scores)
        tensors["normal_map_maxima"] = torch.from_numpy(self.normal_map_maxima)
        if self.calibration is not None:
            tensors["level"], tensors["spread"] = self.calibration
        for i, (mean, matrix) in enumerate(self.whitening):
            tensors |= {f"whitening.{i}.mean": mean, f"whitening.{i}.matrix": matrix}
        return tensors

    @classmethod
    def load(cls, path):
        """Read a fitted method; refuses a network that was trained on features of other backbone weights."""
        header, tensors = storage.read_model(path)
        method = cls(**header["settings"])
        check_fingerprint(header, method.backbone, path)
        with storage.parts_of(path):
            method._use(tensors)
        return method

    def _use(self, tensors: dict) -> None:
        own = {k: v for k, v in self.model.state_dict().items() if k.startswith("encoder.")}
        self.model.load_state_dict(own | below("model.", tensors))
        self.model.to(self.device).eval()
        self.normal_scores = tensors["normal_scores"].numpy()
        self.normal_map_maxima = tensors["normal_map_maxima"].numpy()
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.calibration = (tensors["level"], tensors["spread"]) if "level" in tensors else None
        white = below("whitening.", tensors)
        self.whitening = [(white[f"{i}.mean"], white[f"{i}.matrix"]) for i in range(len(white) // 2)]


def image_scores(maps: np.ndarray, rule: str = "max") -> np.ndarray:
    """Image scores float32 (B,) from maps (B, H, W).

    Args:
        rule: `max`; `top`, the mean of the highest 0.1 % of the pixels; `mean21`, the largest mean over a window of
            21 x 21 pixels, edges mirrored.
    """
    if rule == "mean21":
        maps = np.stack([cv2.blur(m, (21, 21), borderType=cv2.BORDER_REFLECT) for m in maps])
    flat = maps.reshape(len(maps), -1)
    count = max(1, round(0.001 * flat.shape[1])) if rule == "top" else 1
    return np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1).astype(np.float32)


def level_and_spread(maps: torch.Tensor, by_position: bool, prior: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of normal maps (N, T, h, w) -> (1, T, h, w), or (1, T, 1, 1) over all positions.

    By position, both are drawn to those of all positions by `prior` images: a few images tell little of one place.
    """
    if not by_position:
        return maps.mean(dim=(0, 2, 3), keepdim=True), maps.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
    level, spread = place_statistics(maps, prior)
    return level[None], spread[None]


def _spread_out(images: np.ndarray, n: int) -> np.ndarray:
    """At most about `n` images, evenly spaced."""
    return images[:: max(1, -(-len(images) // n))]
