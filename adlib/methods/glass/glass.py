"""GLASS: global and local anomaly co-synthesis strategy (Chen et al., ECCV 2024, arXiv 2407.09359).

    fit    frozen features -> hypothesis: manifold or hypersphere -> adaptor and discriminator, trained on three
           streams of cells: normal, weak anomalies made in feature space (GAS), strong ones made in the image (LAS)
    score  discriminator on every cell -> map; its largest value -> image score

The defaults are those of the authors' released code. The steps of the training are in `step`, the choice of
the hypothesis in `hypothesis`.

Where we differ: nothing here looks at test images. The published figures are those of the epoch with the best sum of
image and pixel AUROC *on the test set*; ours are of the last step, or of the step that separates held-out
pseudo-anomalies best (`selection`). Normal images go through the frozen backbone once instead of once an epoch, the
ascent walks in the hidden layer (same numbers, a fraction of the time), the centre is the mean over all images, and
`hold_out` of the training images are kept for thresholds. `noise` is the paper's at a width of 1536; for another width
D it is multiplied by sqrt(1536 / D), so that its length stays the same. Foregrounds are found by published rules: how
the authors made their masks is not known.
"""

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from adlib import settings as S
from adlib import synthesis
from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import Batch, Resize, backbones, image_shape, patches, read_mask, to_tensor
from adlib.images.features import channels_first, frozen_features, picture_features, resize_of
from adlib.images.maps import align, check_images, top_mean, upsample_and_smooth
from adlib.methods import Scores, storage, training
from adlib.methods.glass import noise
from adlib.methods.glass.hypothesis import MODES, Verdict, decide, published_name
from adlib.methods.glass.step import Ensemble, Network, read_original, some_rows
from adlib.methods.normals import score_normals, split_normals, without_selection
from adlib.paths import texture_folder
from adlib.settings import build
from adlib.synthesis.judge import Judge
from adlib.synthesis.registry import SomeFamilies

IMAGES_PER_EPOCH = 392  # an epoch ends with the batch that brings the number of images above this
# What "paper" means for `resize` and `foreground`, which the authors' scripts set by category and by data set.
# Shorter side over image size; else 1.
PAPER_ENLARGED = {("mvtec_ad", "toothbrush"): 329 / 288, ("mvtec_ad", "wood"): 329 / 288}
PAPER_FOREGROUNDS = ("mvtec_ad", "visa", "wfdd")  # MPDD and own data train without


@dataclass(frozen=True)
class GlassSettings(training.Options):
    """Settings of GLASS; defaults from the authors' code for MVTec AD."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # ImageNet weights of torchvision's first release
    stages: S.Stages = (2, 3)  # layer2 and layer3
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 288  # network input, pixels
    resize: S.ResizeMode | Literal["paper"] = 288  # shorter side, pixels; "paper": image size, for two categories 329
    patch_size: S.Count = 3  # neighbourhood, feature cells
    embedding_dim: S.Count | None = 1536  # width D, of each layer and of all together; None: plain mean
    feature_norm: S.Positive | None = None  # scale features to this mean length; None leaves them (paper)
    hidden: S.Count = 1024  # width of the discriminator's hidden layer
    heads: S.Count = 1  # networks that learn from the same batches and score together; the paper has one
    hypothesis: Literal[MODES] = "stored"  # manifold: GLASS-m; hypersphere: GLASS-h
    noise: S.NotNegative | Literal["auto"] = 0.015  # standard deviation at width 1536; auto: see `glass.noise`
    n_ascent: S.Whole = 20  # steps of the ascent; without any the global anomalies are plain noise
    step_size: S.NotNegative = 0.001  # length of one step in feature space
    radius: S.Closed = 0.75  # quantile of distances to the centre that makes r, a share (not a length)
    p: S.Closed = 0.5  # local cells below this quantile of the error are dropped; 0 keeps all
    families: SomeFamilies = ("glass_las",)  # of adlib.synthesis, in turn: where local anomalies come from
    bank: S.Whole = 0  # make so many local anomalies once and reuse them; 0 makes new ones in every step (paper)
    cell_share: S.ShareTo1 = 1.0  # share of all cells that a step trains on; the paper takes all
    # Folder, also by its name below data/ ("dtd"); "mixed", see `synthesis.sources`; "dtd?mixed": the folder if it is
    # there; "": patterns made on the spot.
    textures: str = ""
    foreground: str = "rules"  # rules (published, or auto), paper (rules where the authors mask), none, or a folder
    average: S.Closed = 0.0  # decay of the running mean of the weights that scores are made with; 0: no mean (paper)
    interpolation: S.Interpolation = "area"  # of the resized image; the authors' code: antialias
    epochs: S.Count = 640  # the code's meta epochs
    batch_size: S.Count = 8  # images
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels; 0 for none
    image_score: Literal["max", "top"] = "max"  # max: of the cells; top: mean of the highest 1 % of the map


class Glass:
    """A discriminator of normal and pseudo-anomalous cells.

    Args:
        settings: changes to `GlassSettings`, by name.

    Attributes after `fit`:
        verdict: the hypothesis and why (`hypothesis.Verdict`).
        network: adaptor, discriminator and centre (`step.Network`), or with `heads` an `Ensemble` of such.
        history: `adlib.methods.training.History`: losses, shares and radii of every step.
        normal_scores, normal_map_maxima: float32 (n,), image scores and map maxima of the held-out normal images.
    """

    name = "glass"
    Settings = GlassSettings
    STATE = storage.State(modules=("network",), facts=("shape", "verdict", "scale", "feature_factor"))
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(GlassSettings, settings, owner=self.name)
        # What "paper" enlarges is known with the category.
        self.resize = resize_of(replace(s, resize=max(Resize(s.image_size).hw)) if s.resize == "paper" else s)
        self.scale = self.resize.scale
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)
        self.feature_factor = 1.0

    # -- features -----------------------------------------------------------------------------------------------------

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) in [0, 1] as cells (B, D, h, w)."""
        s = self.settings
        with torch.inference_mode():
            features = self.backbone(images.to(self.device))
            cells = embed(features, s.patch_size, s.embedding_dim)
            return cells * self.feature_factor

    def build_networks(self) -> None:
        """Make the networks that the settings and `shape`, width D and number of positions L of the cells, ask for."""
        s = self.settings
        self.verdict, self.resize = Verdict(*self.verdict), replace(self.resize, scale=self.scale)
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            heads = [Network(self.shape[0], s.hidden, self.shape[1]).to(self.device) for _ in range(s.heads)]
        # What is scored with is `averaged`: the network itself, or in training the running mean of its weights.
        self.network = self.averaged = heads[0] if s.heads == 1 else Ensemble(heads)

    # -- fit ----------------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a sample table of normal images.

        Args:
            table: normal training images.
            validation: further normal images, for the threshold and for `selection`; None keeps `hold_out` of `table`.
                Of fewer than four images none is held out: no normal scores, and the last weights are kept.
            checkpoint: file that the training is kept in and resumed from; None: none.
        """
        table, validation = split_normals(table, self.settings, validation)
        self.settings = s = without_selection(self.settings, validation)
        self.prepare(table)
        averaged = {"averaged": self.averaged} if s.average else {}
        self.history = training.train(
            {"network": self.network, **averaged},
            optimizers(self.network, s.learning_rate),
            self.make_batch,
            self.losses,
            s.epochs * self.batches_per_epoch if s.steps is None else s.steps,
            s,
            checkpoint=checkpoint,
            origin=training.origin(self, table, validation),
            validate=self._validation(validation) if s.watched(validation) else None,
            progress="GLASS",
        )
        self.features = self.images = self.bank = None  # the caches have served
        self.network = self.averaged
        score_normals(self, validation, s.batch_size)
        return self

    def prepare(self, table):
        """Everything before the first step: hypothesis, cached features and images, untrained network."""
        s = self.settings
        self.verdict = decide(table, s.hypothesis, s.bit_depth)
        print(f"GLASS, {self.verdict}", flush=True)
        self.step_settings = replace(s, hypothesis=self.verdict.hypothesis)
        self.dataset = str(table.attrs.get("dataset", ""))
        self.paths, self.categories = list(table.image_path), list(table.category)
        self._resize_like_the_paper(self.dataset, self.categories)
        self.sources = synthesis.Sources(textures=texture_folder(s.textures, self.paths[0]), normals=self.paths)
        self.bank, self.foregrounds = {}, self._read_foregrounds()
        self.feature_factor = 1.0
        features, self.images = frozen_features(self.paths, self.resize, self.embed, s.batch_size, images=True)
        self.grid = features.shape[1:3]
        self.features = features = features.reshape(len(features), -1, features.shape[-1])  # (n, L, D)
        if s.feature_norm is not None:
            length = np.sqrt((features[:: max(1, len(features) // 32)] ** 2).sum(-1)).mean()
            self.feature_factor = float(s.feature_norm / length)
            features *= np.float32(self.feature_factor)
        n, positions, width = features.shape
        self.shape, self.units = (width, positions), (1.0,) * s.heads
        if s.noise == "auto":
            self.units = noise.units(features, s.heads, s.seed)
        self.build_networks()
        if s.average:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.mean_features = torch.from_numpy(features.mean(axis=0)).to(self.device)  # (L, D)
        deviation = noise.PAPER_NOISE if s.noise == "auto" else s.noise  # times a unit
        self.sigma_noise = deviation * (noise.PAPER_WIDTH / width) ** 0.5
        self.batches_per_epoch = min(-(-n // s.batch_size), IMAGES_PER_EPOCH // s.batch_size + 1)
        return self

    def _resize_like_the_paper(self, dataset: str, categories) -> None:
        """With `resize="paper"`, enlarge the categories that the authors' code enlarges before the crop."""
        if self.settings.resize == "paper":
            single = set(categories).pop() if len(set(categories)) == 1 else ""
            self.scale = round(max(self.resize.hw) * PAPER_ENLARGED.get((published_name(dataset), single), 1.0))
            self.resize = replace(self.resize, scale=self.scale)

    def make_batch(self, step: int):
        """Features of normal images, the same images with local anomalies, and the labels of their cells.

        Returns:
            normal (B, L, D); blended: images (B, 3, H, W), or features (B, L, D) from the bank; labels (B, L).
        """
        s = self.settings
        if s.bank:
            rng = np.random.default_rng([s.seed, 2, step])
            items = [self._bank_item(int(k)) for k in rng.choice(s.bank, min(s.batch_size, s.bank), replace=False)]
            numbers, blended, labels = zip(*items, strict=True)
            if s.bank < len(self.features):  # not every image has its anomaly, but all of them are normal
                numbers = rng.choice(len(self.features), len(items), replace=False)
            return torch.from_numpy(self.features[list(numbers)]), torch.stack(blended), torch.stack(labels)
        epoch, position = divmod(step, self.batches_per_epoch)
        order = np.random.default_rng([s.seed, 1, epoch]).permutation(len(self.features))
        numbers = order[position * s.batch_size : (position + 1) * s.batch_size]
        pairs = [self._local(i, np.random.default_rng([s.seed, 2, step, k]), step + k) for k, i in enumerate(numbers)]
        images, labels = zip(*pairs, strict=True)
        return torch.from_numpy(self.features[numbers]), to_tensor(images), torch.stack(labels)

    def _local(self, i: int, rng, turn: int):
        """A local anomaly on training image `i`, families taking turns: uint8 (H, W, 3), labels (L,)."""
        image, mask = self.blend(i, rng, self.settings.families[turn % len(self.settings.families)])
        return image, torch.from_numpy(cell_labels(mask, self.grid))

    def _bank_item(self, k: int):
        """Local anomaly `k` of the bank, made when first asked for: training image, features (L, D), labels (L,)."""
        if k not in self.bank:
            i = k % len(self.features)
            image, labels = self._local(i, np.random.default_rng([self.settings.seed, 3, k]), k)
            cells = self.embed(to_tensor([image]))[0].flatten(1).T.contiguous().cpu()
            self.bank[k] = (i, cells, labels)
        return self.bank[k]

    def blend(self, i: int, rng, family: str):
        """One local anomaly on training image `i`: uint8 (H, W, 3) and its mask."""
        params = {}
        if family == "glass_las":  # beta, the share of the original, is drawn from N(0.5, 0.1)
            params = {"opacity": 1 - float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))}
        image, mask, _ = synthesis.synthesise(family, self.images[i], rng, self._foreground(i), self.sources, **params)
        return image, mask

    def _foreground(self, i: int):
        """The product's mask in training image `i`, at input size, or None for the whole image."""
        if i not in self.foregrounds:
            s = self.settings
            if s.foreground == "none" or (
                s.foreground == "paper" and published_name(self.dataset) not in PAPER_FOREGROUNDS
            ):
                return None
            rule = synthesis.rule_for(self.dataset, self.categories[i])
            self.foregrounds[i] = synthesis.foreground(self.images[i], rule)
        mask = self.foregrounds[i]
        return mask if mask.any() else None  # a mask without product means the whole image

    def _read_foregrounds(self) -> dict[int, np.ndarray]:
        """The masks of a folder, at input size, by number of the image; without a folder none."""
        folder, masks = Path(self.settings.foreground), {}
        if self.settings.foreground in ("rules", "none", "paper"):
            return masks
        if not folder.is_dir():
            raise InputError(
                f"foreground folder {folder} does not exist; give a folder with <category>/<image name> below it, or "
                "one of: rules, none, paper"
            )
        for i, path in enumerate(self.paths):
            file = folder / self.categories[i] / Path(path).name
            if not file.is_file():
                raise InputError(f"foreground mask {file} is missing; expected one of the name of each training image")
            mask, size = read_mask(file, 0), image_shape(path)
            if mask.shape != size:
                raise InputError(f"foreground mask {file} is {mask.shape}, its image {size}; sizes must agree")
            masks[i] = self.resize.mask(mask)
        return masks

    def losses(self, modules, batch, step: int):
        """Loss terms of a batch (`step.losses`); the centre is renewed at the start of every epoch."""
        network = self.network  # `modules` holds it too, perhaps wrapped by accelerate
        if self.settings.average and step:
            training.move_mean(self.averaged, network, self.settings.average, step)
        normal, blended, labels = (part.to(self.device) for part in batch)
        if step % self.batches_per_epoch == 0:
            network.renew_centre(self.mean_features)
        if blended.ndim == 4:
            blended = self.embed(blended).flatten(2).transpose(1, 2).clone()  # (B, L, D)
        normal, blended, labels = normal.flatten(0, 1), blended.flatten(0, 1), labels.flatten()
        gaussian = torch.randn(normal.shape, device=self.device) * self.sigma_noise
        rows = some_rows(labels, self.settings.cell_share) if self.settings.cell_share < 1 else None
        return modules["network"](normal, blended, labels, gaussian, self.step_settings, rows=rows, units=self.units)

    def _validation(self, held_out):
        """Return the function that rates the network on held-out damaged images; their features are made once."""
        s = self.settings
        judge = Judge(held_out, self.resize, seed=s.seed)
        cells = channels_first(picture_features(judge.images, self.embed, s.batch_size), self.device)
        return lambda: judge.rate(*self._scores(cells, self.resize.hw))

    # -- score ------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] at the network's input size.

        Cell score: the discriminator's probability. Map: cell scores, bilinear to the input size, then Gaussian
        smoothing. Image score: the largest cell score, or with `image_score="top"` the mean of the highest 1 % of
        the map: a single cell may be high by chance, a defect of some size is not.
        """
        storage.check_fitted(self)
        images = check_images(batch)
        return self._scores(self.embed(images), tuple(images.shape[-2:]))

    @torch.no_grad()
    def _scores(self, cells: torch.Tensor, size) -> Scores:
        """Scores of cells (B, D, h, w)."""
        network = self.averaged.eval()
        logits = network.logits(patches.to_rows(cells))  # (B h w,)
        probabilities = patches.to_grid(logits.sigmoid(), cells.shape[2:])  # (B, h, w)
        maps = upsample_and_smooth(probabilities, size, self.settings.sigma)
        if self.settings.image_score == "top":
            image = top_mean(torch.from_numpy(maps))
        else:
            image = probabilities.flatten(1).amax(1)
        return Scores(image.cpu().numpy().astype(np.float32), maps)

    def use_snapshot(self, states) -> None:
        """Load the weights of a snapshot of `history.snapshots`, for learning curves."""
        self.network.load_state_dict(states.get("averaged", states["network"]))
        self.averaged = self.network.eval()

    def use_original(self, path, normals=None):
        """Use weights that the authors' code saved (`ckpt*.pth`) instead of training.

        Args:
            path: the checkpoint; backbone, pooling and width of the settings must be those it was trained with.
            normals: table of normal images that the weights have not seen, for thresholds; with it the method can be
                saved. None: scores only.
        """
        network, s = read_original(path), self.settings
        width, hidden = network.adaptor.in_features, network.discriminator.linear.out_features
        own = (s.embedding_dim or sum(self.backbone.channels), s.hidden, s.heads)
        if own != (width, hidden, 1):
            raise InputError(
                f"{path} holds 1 head of cell width {width} and hidden width {hidden}, these settings make {own[2]} "
                f"of {own[0]} and {own[1]}; set heads=1, hidden={hidden}, and backbone, stages and "
                "embedding_dim as they were in training"
            )
        self.network = self.averaged = network.to(self.device).eval()
        self.shape, self.feature_factor = (width, 1), 1.0
        self.verdict = Verdict("unknown", f"decided where {Path(path).name} was trained")
        self.__dict__.pop("normal_scores", None)  # thresholds of other weights
        if normals is not None:
            check_training_table(normals, "the table of normals")
            self._resize_like_the_paper(str(normals.attrs.get("dataset", "")), normals.category)
            score_normals(self, normals, s.batch_size)
        return self


def optimizers(network: Network | Ensemble, rate: float) -> list[torch.optim.Optimizer]:
    """Adam with weight decay 1e-5 for the adaptor; AdamW with decay 0.01 at twice the rate for the discriminator."""

    def parts(kind):  # of every head
        return [parameter for name, parameter in network.named_parameters() if kind in name.split(".")]

    return [
        torch.optim.Adam(parts("adaptor"), lr=rate, weight_decay=1e-5),
        torch.optim.AdamW(parts("discriminator"), lr=2 * rate),
    ]


def cell_labels(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """float32 (L,): 1 for every cell that holds an anomalous pixel (adaptive max-pooling, 8 x 8 in the paper)."""
    pooled = F.adaptive_max_pool2d(torch.from_numpy(mask[None, None].astype(np.float32)), grid)
    return pooled.flatten().numpy()


def embed(features, patch_size: int, embedding_dim: int | None) -> torch.Tensor:
    """Embed patches as the original does: unfold windows, align grids, pool each layer, pool all layers.

    Every one of these steps is linear, so for each layer they are one convolution, with the values of the literal
    order (weights trained on those fit) and without its nine-fold memory. Without a width: plain window means.

    Returns:
        (B, D, h, w), h and w of the first map.
    """
    if embedding_dim is None:
        return patches.mean_embedding(features, patch_size)
    channels, padding = tuple(feature.shape[1] for feature in features), (patch_size - 1) // 2
    kernels = pooling_kernels(channels, patch_size, embedding_dim)
    layers = [F.conv2d(f, k.to(f.device), padding=padding) for f, k in zip(features, kernels, strict=True)]
    return sum(align(layer, layers[0].shape[-2:]) for layer in layers)  # each (B, D, h, w)


@functools.cache
def pooling_kernels(channels, patch_size: int, embedding_dim: int) -> tuple[torch.Tensor, ...]:
    """One kernel (D, C_l, p, p) a layer: what two adaptive pools over flattened windows do to each input."""
    second = F.adaptive_avg_pool1d(torch.eye(len(channels) * embedding_dim), embedding_dim)  # (layers D, D)
    kernels = []
    for layer, second_part in zip(channels, second.split(embedding_dim), strict=True):
        first = F.adaptive_avg_pool1d(torch.eye(layer * patch_size**2), embedding_dim)  # (C p p, D)
        kernels.append((first @ second_part).T.reshape(embedding_dim, layer, patch_size, patch_size).contiguous())
    return tuple(kernels)
