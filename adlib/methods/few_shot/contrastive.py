"""Contrastive learning with clustering: FOCAL's idea (Wu et al., IEEE TDSC 2025, arXiv 2308.09307) for products.

    train  normal image + pseudo-anomaly -> features in which normal cells agree and anomalous ones do not
    test   cluster the cells of one image -> which cluster is anomalous -> score, mask

FOCAL finds forged regions: "forged" means something only inside one image, so the loss compares cells of one image
and the answer comes from clustering that image, with no classifier at all. Forged and pristine become defective and
normal here, and the defects of the training are made (`adlib.methods.few_shot.episodic_training`).

Where we differ from FOCAL's code. The encoder is frozen (flag `train_last_stage`) below a small fusion neck, where
theirs trains two networks end to end. The default loss takes the *nearest* positives, from other normal images, because
a product has several kinds of normal patch (`focal` is the original form). The smaller cluster is not always the
defect, and k-means cuts a clean image in two as well: so there are three rules for the anomalous cluster, a gate for
clean images, and a continuous score (`adlib.images.clustering`). FOCAL's journal version clusters with HDBSCAN; its
code does not.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, Resize, backbones, batches, clustering
from adlib.images.clustering import ALGORITHMS
from adlib.images.maps import upsample_and_smooth
from adlib.images.patches import to_rows
from adlib.methods import Scores, storage, training
from adlib.methods.few_shot import episodic_training, losses
from adlib.methods.few_shot.support_images import (
    below,
    check_fingerprint,
    check_fitted,
    check_queries,
    describe,
    enlarge,
    read_images,
)
from adlib.methods.normals import collect, split_normals, without_selection
from adlib.settings import as_dict, build
from adlib.synthesis.registry import Families


@dataclass(frozen=True)
class ContrastiveSettings(training.Options):
    """Settings; the loss and the clustering offer FOCAL's, the rest is ours."""

    backbone: str = "swin_tiny_patch4_window7_224.ms_in1k"
    stages: S.Stages = (0, 1, 2)  # strides 4, 8, 16
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 224  # network input, pixels
    resize: S.ResizeMode = "stretch"
    scale: S.Count | None = None  # pixels, for resize short_side
    # Network.
    stride: S.Count = 8  # of the fused grid, pixels; the stage with this stride gives the grid, else the first one does
    width: S.Count = 128  # channels of the neck
    dim: S.Count = 128  # length of a cell's feature
    train_last_stage: bool = False  # train the encoder's last stage too, at a tenth of the learning rate
    # Loss (adlib.methods.few_shot.losses).
    loss: Literal[losses.CONTRASTIVE] = "nearest_positive"  # nearest_positive, focal (FOCAL's), supcon, soft
    positives: Literal["support", "self"] = "support"  # cells of other normal images, or of the same
    temperature: S.Positive = 0.1  # FOCAL
    symmetric: bool = False  # add half the loss with anomalous anchors, where an image has at least two
    n_cells: S.Count = 1024  # cells a region and image that enter the loss, at most (FOCAL: 1000)
    # Training.
    steps: S.Count = 1500  # optimiser steps
    episodes: S.Count = 8  # images a step
    clean: S.ShareFrom0 = 0.3  # share of images without a defect; they carry no loss, only the validation needs them
    n_normals: S.Count = 64  # normal images that defects are painted on, at most
    n_styles: S.Count = 24  # styles of defect, each on five images
    families: Families = ()  # of adlib.synthesis that the training defects come from; () for a mix
    learning_rate: S.Positive = 1e-3
    weight_decay: S.NotNegative = 1e-4
    validate_every: S.Whole = 100  # steps
    selection: Literal[training.SELECTIONS] = "synthetic"  # synthetic: by cell AP + image AUROC of pseudo-anomalies
    # Test.
    clustering: Literal[tuple(ALGORITHMS)] = "kmeans"  # FOCAL's code; see adlib.images.clustering.ALGORITHMS
    rule: Literal["reference", "minority", "border"] = "reference"  # the anomalous cluster; FOCAL: minority
    gate_share: S.Closed = 0.95  # share of held-out normals whose separation must stay below the gate; 0: no gate
    n_reference: S.Count = 1024  # normal cells kept for the rule `reference`
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels
    n_calibration: S.Whole = 50  # at most so many held-out normals are scored for gate and threshold
    batch_size: S.Count = 8  # images a forward pass


class Neck(nn.Module):
    """Fuse a pyramid: 1x1 convolution a stage, resize to one grid, sum, 3x3, GELU, 1x1, unit length."""

    def __init__(self, channels: tuple[int, ...], width: int, dim: int, grid_stage: int, seed: int):
        super().__init__()
        self.grid_stage = grid_stage
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
            self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, dim, 1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(B, C_l, h_l, w_l) a stage -> (B, dim, h, w)."""
        size = features[self.grid_stage].shape[2:]
        total = 0.0
        for lateral, feature in zip(self.lateral, features, strict=True):
            found = lateral(feature)
            if found.shape[2:] != size:
                found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
            total = total + found
        return F.normalize(self.fuse(total), dim=1)


class Contrastive:
    """Features by contrast, an answer by clustering.

    Attributes after `fit`:
        reference: (n, dim) normal cells; gate: separation that two clusters must exceed.
        normal_scores, normal_map_maxima: of held-out normals. history: of the training.
    """

    name = "contrastive"
    Settings = ContrastiveSettings

    def __init__(self, **settings):
        self.settings = s = build(ContrastiveSettings, settings, owner=self.name)
        size = s.image_size if isinstance(s.image_size, int) else tuple(s.image_size)
        self.resize = Resize(size, s.resize, s.scale if s.resize == "short_side" else None)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw, fold=not s.train_last_stage)
        self.backbone.to(self.device)
        strides = self.backbone.strides
        grid_stage = strides.index(s.stride) if s.stride in strides else 0
        neck = Neck(self.backbone.channels, s.width, s.dim, grid_stage, s.seed)
        self.modules = {"neck": neck.to(self.device).eval()}
        if s.train_last_stage:
            self.modules["last_stage"] = backbones.LastStage(self.backbone)
        self.history = None

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, C_l, h_l, w_l), each location normalised."""
        return describe(self.backbone(images.to(self.device)), patch_size=1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) in [0, 1] as unit vectors (B, dim, h, w)."""
        with torch.no_grad():
            return self.modules["neck"](self.features(images))

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None):
        """Train on a table of normal training images with pseudo-anomalies, then set reference, gate and threshold.

        `validation`: held-out normals; by default a share `hold_out` of the table. Of fewer than four images none is
        held out: there is no threshold and no selection then, and the gate comes from the training images.
        """
        train, held_out = split_normals(table, self.settings, validation)
        if len(train) < 2:
            raise InputError("1 normal training image; contrastive learns from pairs of images: give at least 2")
        self.settings = s = without_selection(self.settings, held_out)
        # With a frozen encoder its features are made once; with a trained one the pool holds images.
        cached = (lambda x: [x]) if s.train_last_stage else self.features
        sizes = {"n_normals": s.n_normals, "n_styles": s.n_styles}
        pool = episodic_training.build_pool(train, cached, self.resize, s.seed, **sizes, families=s.families)
        checked = held_out if len(held_out) > 1 else train
        n_styles = max(4, s.n_styles // 3)
        validation_pool = episodic_training.build_pool(checked, cached, self.resize, s.seed + 1, n_styles=n_styles)
        origin = training.origin(self, train, held_out)
        self._train(
            pool, episodic_training.fixed_episodes([validation_pool] if len(held_out) else [], (1,), s.seed), origin
        )
        self._calibrate(train, held_out.iloc[: s.n_calibration])
        return self

    def _train(self, pool, fixed, origin):
        s = self.settings

        def make_batch(step):
            rng = training.step_generator(s.seed, step)
            drawn = [episodic_training.draw(pool, rng, (1, 2), s.clean) for _ in range(s.episodes)]
            return [(episode, int(rng.integers(2**31))) for episode in drawn]

        rates = {"neck": s.learning_rate, "last_stage": 0.1 * s.learning_rate}
        groups = [{"params": list(m.parameters()), "lr": rates[n]} for n, m in self.modules.items()]
        optimizer = torch.optim.AdamW(groups, weight_decay=s.weight_decay)
        self.history = training.train(
            self.modules,
            [optimizer],
            make_batch,
            self._losses,
            s.steps,
            s,
            origin=origin,
            schedulers=[torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)],
            validate=(lambda: self._validate(fixed)) if fixed else None,
            clip_norm=1.0,
            workers=0,
            progress="contrastive",
        )

    def _losses(self, modules, batch, step) -> dict[str, torch.Tensor]:
        """The contrastive loss of each image that has both regions, averaged; how many were skipped is recorded."""
        found, skipped = [], 0
        for episode, seed in batch:
            if episode.kind == "clean":
                skipped += 1
                continue
            query = self._rows(modules, [f[None] for f in episode.query])  # (h w, dim), and the grid
            support = self._rows(modules, episode.support)[0] if self.settings.positives == "support" else None
            losses_of_image = self.image_losses(*query, episode.coverage, support, seed)
            skipped += losses_of_image is None
            found += [] if losses_of_image is None else [losses_of_image]
        loss = losses.mean_over_images(found)
        if loss is None:  # only clean images in this step: nothing to learn from it
            loss = sum(p.sum() for p in modules["neck"].parameters()) * 0
        return {"contrastive": loss, "_skipped_images": torch.tensor(float(skipped))}

    def image_losses(self, rows, grid, coverage, support=None, seed: int = 0) -> torch.Tensor | None:
        """Losses of the anchors of one image; None where a region is missing.

        Args:
            rows: (h w, dim) cells; grid: (h, w); coverage: mask area-averaged, on any grid at least as fine.
            support: (m, dim) cells of other normal images, or None to use the image's own.
        """
        s = self.settings
        target, valid = episodic_training.cell_targets(F.adaptive_avg_pool2d(coverage[None].to(rows.device), grid)[0])
        normal, anomalous = (target.logical_not() & valid).flatten().nonzero()[:, 0], target.flatten().nonzero()[:, 0]
        if len(normal) < 2 or not len(anomalous):
            return None
        generator = torch.Generator().manual_seed(seed)

        def sample(cells):
            chosen = torch.randperm(len(cells), generator=generator)[: s.n_cells].to(cells.device)
            return cells[chosen.sort().values]

        normal, anomalous = sample(normal), sample(anomalous)
        if support is None:
            options = {"excluded": losses.neighbours_excluded(normal, grid[1], radius=0 if s.loss == "focal" else 1)}
            options["positives"] = rows[normal]
        else:
            options = {"positives": support[sample(torch.arange(len(support), device=rows.device))]}
        found = losses.contrastive_loss(s.loss, rows[normal], rows[anomalous], temperature=s.temperature, **options)
        if s.symmetric and len(anomalous) > 1:
            other = losses.contrastive_loss(s.loss, rows[anomalous], rows[normal], temperature=s.temperature)
            found = torch.cat([found, 0.5 * other])
        return found

    def _rows(self, modules, cached) -> tuple[torch.Tensor, tuple[int, int]]:
        """Embed cached features (or images) of B images: (B h w, dim), and the grid (h, w)."""
        features = self.features(cached[0]) if self.settings.train_last_stage else [f.to(self.device) for f in cached]
        grid = modules["neck"](features)
        return to_rows(grid), tuple(grid.shape[2:])

    def _validate(self, fixed) -> dict[str, float]:
        """Distance to the nearest normal cell as the score, so that selection does not hang on one clustering."""
        contrast = []

        def score(episode):
            rows, grid = self._rows(self.modules, [f[None] for f in episode.query])
            support, _ = self._rows(self.modules, episode.support)
            known = support if self.settings.positives == "support" else None
            contrast.append(self.image_losses(rows, grid, episode.coverage, known))
            return (1 - (rows @ support.T).amax(1)).view(grid).cpu()

        grid = tuple(self._rows(self.modules, [f[None] for f in fixed[0].query])[1])
        small = [e._replace(coverage=F.adaptive_avg_pool2d(e.coverage[None], grid)[0]) for e in fixed]
        found = episodic_training.validation_scores(small, score)
        loss = losses.mean_over_images([c for c in contrast if c is not None])
        return found | {"loss": float("nan") if loss is None else float(loss)}

    def _calibrate(self, train, held_out):
        """Set the reference cells from training normals, gate and normal scores from held-out ones."""
        s = self.settings
        rng = np.random.default_rng(s.seed)
        chosen = train.iloc[np.sort(rng.permutation(len(train))[:32])]
        rows = torch.cat([to_rows(self.embed(read_images([path], self.resize))) for path in chosen.image_path])
        self.reference = rows[torch.from_numpy(np.sort(rng.permutation(len(rows))[: s.n_reference]))].cpu()
        self.gate = 0.0
        if s.gate_share > 0:
            paths = (held_out if len(held_out) else chosen).image_path
            found = [self.cluster(read_images([path], self.resize))[0] for path in paths]
            self.gate = clustering.gate_from_normals([f.separation for f in found], s.gate_share)
        found = (self.score(batch) for batch in batches(held_out.image_path, self.resize, s.batch_size))
        self.normal_scores, self.normal_map_maxima = collect(found)

    # -- test ---------------------------------------------------------------------------------------------------------

    def cluster(self, images: torch.Tensor) -> list[clustering.Clustering]:
        """Cluster the cells of each image (B, 3, H, W), with labels, mask and diagnostics."""
        s, grids = self.settings, self.embed(images)
        return [
            clustering.cluster(
                s.clustering,
                to_rows(grid[None]).cpu().numpy(),
                s.rule,
                self.reference.numpy(),
                tuple(grid.shape[1:]),
                gate=self.gate,
                seed=s.seed,
            )
            for grid in grids
        ]

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: the clusters' continuous score, enlarged and smoothed; its maximum."""
        images = batch.images if isinstance(batch, Batch) else batch
        check_fitted(self, "reference")
        check_queries(images)
        grid = self.embed(images[:1]).shape[2:]
        cells = torch.from_numpy(np.stack([found.scores.reshape(grid) for found in self.cluster(images)]))
        size = tuple(images.shape[-2:])
        maps = upsample_and_smooth(enlarge(cells, size, align_corners=False), size, self.settings.sigma)
        return Scores(maps.max((1, 2)), maps)

    def use_snapshot(self, states: dict) -> None:
        """Load the module states of one of `history.snapshots`; reference and gate stay as they are."""
        for name, module in self.modules.items():
            module.load_state_dict(states[name])

    # -- save and load ------------------------------------------------------------------------------------------------

    def save(self, path):
        """Write the fitted method to the folder `path`."""
        if not hasattr(self, "reference"):
            raise InputError("this contrastive method is not fitted; call fit(table) before save")
        tensors = {"reference": self.reference, "normal_scores": torch.from_numpy(self.normal_scores)}
        tensors["normal_map_maxima"] = torch.from_numpy(self.normal_map_maxima)
        for name, module in self.modules.items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        facts = {"backbone_fingerprint": self.backbone.fingerprint, "gate": self.gate}
        storage.save_model(path, self.name, as_dict(self.settings), tensors, **facts)

    @classmethod
    def load(cls, path):
        """Read a fitted method."""
        header, tensors = storage.read_model(path)
        method = cls(**header["settings"])
        check_fingerprint(header, method.backbone, path)
        with storage.parts_of(path):
            for name, module in method.modules.items():
                module.load_state_dict(below(f"{name}.", tensors))
            method.reference, method.gate = tensors["reference"], header["gate"]
            method.normal_scores = tensors["normal_scores"].numpy()
            method.normal_map_maxima = tensors["normal_map_maxima"].numpy()
        return method
