"""Contrastive learning with clustering: FOCAL's idea (Wu et al., IEEE TDSC 2025, arXiv 2308.09307) for products.

    train  normal image + pseudo-anomaly -> features in which normal cells agree and anomalous ones do not
    test   cluster the cells of one image -> which cluster is anomalous -> score, mask

FOCAL finds forged regions: "forged" means something only inside one image, so the loss compares cells of one image
and the answer comes from clustering that image, with no classifier at all. Forged and pristine become defective and
normal here, and the defects of the training are made (`adlib.methods.few_shot.episodic_training`).

Where we differ from FOCAL's code. The encoder is frozen below a small fusion neck, where theirs trains two networks
end to end. The default loss takes the *nearest* positives, from other normal images, because
a product has several kinds of normal patch (`focal` is the original form). The smaller cluster is not always the
defect, and k-means cuts a clean image in two as well: so there are three rules for the anomalous cluster, a gate for
clean images, and a continuous score (`adlib.images.clustering`). FOCAL's journal version clusters with HDBSCAN; its
code does not.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from adlib import settings as S
from adlib.errors import InputError
from adlib.images import Batch, backbones, clustering, to_tensor
from adlib.images.clustering import ALGORITHMS
from adlib.images.features import resize_of
from adlib.images.maps import align, check_images, upsample_and_smooth
from adlib.images.patches import to_rows
from adlib.methods import Scores, storage, training
from adlib.methods.few_shot import episodic_training, losses
from adlib.methods.few_shot.support_images import describe, read_images
from adlib.methods.normals import score_normals, split_normals, without_selection
from adlib.settings import build
from adlib.synthesis.judge import Judge
from adlib.synthesis.registry import Families

STRIDE = 8  # of the fused grid, pixels; the stage with this stride gives the grid, else the first one does
N_REFERENCE = 4096  # normal cells kept for the rule `reference`; with 1024 the nearest is far by chance
N_CELLS = 1024  # cells a region and image that enter the loss, at most (FOCAL: 1000)
GATE_SHARE = 0.95  # share of held-out normals whose separation must stay below the gate


@dataclass(frozen=True)
class ContrastiveSettings(training.Options):
    """Settings; the loss and the clustering offer FOCAL's, the rest is ours."""

    backbone: str = "swin_tiny_patch4_window7_224.ms_in1k"
    stages: S.Stages = (0, 1, 2)  # strides 4, 8, 16
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 224  # network input, pixels
    resize: S.ResizeMode = "stretch"
    width: S.Count = 128  # channels of the neck, and length of a cell's feature
    # Loss (adlib.methods.few_shot.losses).
    loss: Literal[losses.CONTRASTIVE] = "nearest_positive"  # nearest_positive, focal (FOCAL's), supcon, soft
    positives: Literal["support", "self"] = "support"  # cells of other normal images, or of the same
    temperature: S.Positive = 0.1  # FOCAL
    # Training.
    steps: S.Count = 1500  # optimiser steps
    episodes: S.Count = 8  # images per step, three in ten without a defect, which carry no loss
    pool: episodic_training.PoolSize = (64, 24)  # normal images, at most; styles of defect, on five each
    families: Families = ()  # of adlib.synthesis that the training defects come from; () for a mix
    learning_rate: S.Positive = 1e-3
    snapshot_every: S.Whole = 100  # steps
    selection: Literal[training.SELECTIONS] = "synthetic"
    # Test.
    clustering: Literal[tuple(ALGORITHMS)] = "kmeans"  # FOCAL's code; see adlib.images.clustering.ALGORITHMS
    rule: Literal["reference", "minority", "border"] = "reference"  # the anomalous cluster; FOCAL: minority
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels


class Neck(nn.Module):
    """Fuse a pyramid: a 1x1 convolution per stage, resize to one grid, sum, 3x3, GELU, 1x1, unit length."""

    def __init__(self, channels: tuple[int, ...], width: int, grid_stage: int, seed: int):
        super().__init__()
        self.grid_stage = grid_stage
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
            self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(B, C_l, h_l, w_l) per stage -> (B, width, h, w)."""
        size = features[self.grid_stage].shape[2:]
        total = 0.0
        for lateral, feature in zip(self.lateral, features, strict=True):
            total = total + align(lateral(feature), size)
        return F.normalize(self.fuse(total), dim=1)


class Contrastive:
    """Features by contrast, an answer by clustering.

    Attributes:
        products: name -> table of normal images of other products, to train on in place of the table's.

    Attributes after `fit`:
        reference: (n, width) normal cells; gate: separation that two clusters must exceed.
        normal_scores, normal_map_maxima: of held-out normals. history: of the training.
    """

    name = "contrastive"
    Settings = ContrastiveSettings
    STATE = storage.State(modules=("neck",), arrays=("reference", *storage.State().arrays), facts=("gate",))
    save, load = storage.save, classmethod(storage.load)

    def __init__(self, **settings):
        self.settings = s = build(ContrastiveSettings, settings, owner=self.name)
        self.resize = resize_of(s)
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)
        self.build_networks()
        self.history, self.products = None, {}

    def build_networks(self) -> None:
        """Make the neck."""
        s, strides = self.settings, self.backbone.strides
        grid_stage = strides.index(STRIDE) if STRIDE in strides else 0
        self.neck = Neck(self.backbone.channels, s.width, grid_stage, s.seed).to(self.device).eval()

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, C_l, h_l, w_l), each location normalised."""
        with torch.no_grad():
            return describe(self.backbone(images.to(self.device)), window=1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) in [0, 1] as unit vectors (B, width, h, w)."""
        with torch.no_grad():
            return self.neck(self.features(images))

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(self, table, validation=None, checkpoint=None):
        """Train on a table of normal training images with pseudo-anomalies, then set reference, gate and threshold.

        `validation`: held-out normals; by default a share `hold_out` of the table. Of fewer than four images none is
        held out: there is no threshold and no selection then, and the gate comes from the training images.
        """
        train, held_out = split_normals(table, self.settings, validation)
        products = self.products or {"": train}
        if min(map(len, products.values()), default=0) < 2:
            raise InputError("1 normal training image; contrastive learns from pairs of images: give at least 2")
        self.settings = s = without_selection(self.settings, held_out)
        # The encoder is frozen: features are made once.
        n_normals, n_styles = (max(2, n // len(products)) for n in s.pool)
        paint = partial(episodic_training.paint, n_normals=n_normals, n_styles=n_styles, families=s.families)
        painted = (paint(product, self.resize, s.seed) for product in products.values())
        pools = [episodic_training.describe_pictures(pictures, self.features) for pictures in painted]
        rng = np.random.default_rng(s.seed)
        normal = train.image_path.iloc[np.sort(rng.permutation(len(train))[:32])]
        features = [self.features(read_images([path], self.resize)) for path in normal]
        n_cells = sum(f[self.neck.grid_stage][0, 0].numel() for f in features)
        cells = np.sort(rng.permutation(n_cells)[:N_REFERENCE])
        origin = training.origin(self, pd.concat(products.values()), held_out)
        self._train(pools, features, cells, held_out, checkpoint, origin)
        self._set_reference(features, cells)
        self._set_gate(held_out.image_path if len(held_out) else normal)
        score_normals(self, held_out)
        return self

    def _train(self, pools, features, cells, held_out, checkpoint, origin):
        s = self.settings

        def make_batch(step):
            rng = training.step_generator(s.seed, step)
            drawn = [pools[rng.integers(len(pools))] for _ in range(s.episodes)]
            episodes = [episodic_training.draw(pool, rng, (1, 2)) for pool in drawn]
            return [(episode, int(rng.integers(2**31))) for episode in episodes]

        judge = Judge(held_out, self.resize, seed=s.seed) if s.watched(held_out) else None
        judged = [self.features(to_tensor([image])) for image in judge.images] if judge else []

        def validate() -> dict[str, float]:
            """Rate the scores with the reference of now; the gate is set after the training."""
            self.gate = 0.0
            self._set_reference(features, cells)
            grids = torch.cat([self.neck(f) for f in judged])
            maps = self._maps(grids, self.resize.hw)
            return judge.rate(maps.max((1, 2)), maps) | episodic_training.cell_metrics(maps, judge, grids.shape[2:])

        optimizer = torch.optim.AdamW(self.neck.parameters(), s.learning_rate, weight_decay=1e-4)
        self.history = training.train(
            {"neck": self.neck},
            [optimizer],
            make_batch,
            self._losses,
            s.steps,
            s,
            checkpoint=checkpoint,
            origin=origin,
            schedulers=[torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)],
            validate=validate if judge else None,
            clip_norm=1.0,
            workers=0,
            progress="contrastive",
        )

    def _losses(self, modules, batch, step) -> dict[str, torch.Tensor]:
        """The contrastive loss of each image that has both regions, averaged; how many were skipped is recorded."""
        neck, terms = modules["neck"], []
        for episode, seed in batch:
            if episode.kind == "clean":
                continue
            query = neck([f[None].to(self.device) for f in episode.query])
            support = None
            if self.settings.positives == "support":
                support = to_rows(neck([f.to(self.device) for f in episode.support]))
            terms.append(self.image_losses(to_rows(query), tuple(query.shape[2:]), episode.coverage, support, seed))
        terms = [term for term in terms if term is not None]
        loss = losses.mean_over_images(terms)
        if loss is None:  # only clean images in this step: nothing to learn from it
            loss = sum(p.sum() for p in neck.parameters()) * 0
        return {"contrastive": loss, "_skipped_images": torch.tensor(float(len(batch) - len(terms)))}

    def image_losses(self, rows, grid, coverage, support=None, seed: int = 0) -> torch.Tensor | None:
        """Losses of the anchors of one image; None where a region is missing.

        Args:
            rows: (h w, width) cells; grid: (h, w); coverage: mask area-averaged, on any grid at least as fine.
            support: (m, width) cells of other normal images, or None to use the image's own.
        """
        s = self.settings
        target, valid = episodic_training.cell_targets(F.adaptive_avg_pool2d(coverage[None].to(rows.device), grid)[0])
        normal, anomalous = (target.logical_not() & valid).flatten().nonzero()[:, 0], target.flatten().nonzero()[:, 0]
        if len(normal) < 2 or not len(anomalous):
            return None
        generator = torch.Generator().manual_seed(seed)

        def sample(cells):
            numbers = torch.randperm(len(cells), generator=generator)[:N_CELLS].to(cells.device)
            return cells[numbers.sort().values]

        normal, anomalous = sample(normal), sample(anomalous)
        if support is None:
            options = {"excluded": losses.neighbours_excluded(normal, grid[1], radius=0 if s.loss == "focal" else 1)}
            options["positives"] = rows[normal]
        else:
            options = {"positives": support[sample(torch.arange(len(support), device=rows.device))]}
        return losses.contrastive_loss(s.loss, rows[normal], rows[anomalous], temperature=s.temperature, **options)

    def _set_reference(self, features, cells):
        """Keep `cells` of all cells of normal training images, as the neck sees them now."""
        with torch.no_grad():
            rows = torch.cat([to_rows(self.neck(f)) for f in features])
        self.reference = rows.cpu().numpy()[cells]

    def _set_gate(self, paths):
        """Let the separation that clusters of normal images have pass in hardly any of them."""
        self.gate = 0.0
        groups = [self.cluster(read_images([path], self.resize))[0] for path in paths]
        self.gate = clustering.gate_from_normals([group.separation for group in groups], GATE_SHARE)

    # -- test ---------------------------------------------------------------------------------------------------------

    def cluster(self, images: torch.Tensor) -> list[clustering.Clustering]:
        """Cluster the cells of each image (B, 3, H, W), with labels, mask and diagnostics."""
        return self._cluster(self.embed(images))

    def _cluster(self, grids: torch.Tensor) -> list[clustering.Clustering]:
        s, shape = self.settings, tuple(grids.shape[2:])
        cells = [to_rows(grid[None]).cpu().numpy() for grid in grids]  # (h w, width) an image
        return [
            clustering.cluster(s.clustering, x, s.rule, self.reference, shape, gate=self.gate, seed=s.seed)
            for x in cells
        ]

    def _maps(self, grids: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        """The clusters' continuous scores of cells (B, width, h, w), as maps (B, *size)."""
        cells = np.stack([group.scores.reshape(grids.shape[2:]) for group in self._cluster(grids)])
        return upsample_and_smooth(torch.from_numpy(cells), size, self.settings.sigma)

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1]: the clusters' continuous score, enlarged and smoothed; its maximum."""
        storage.check_fitted(self)
        images = check_images(batch)
        maps = self._maps(self.embed(images), tuple(images.shape[-2:]))
        return Scores(maps.max((1, 2)), maps)

    def use_snapshot(self, states: dict) -> None:
        """Load the module states of one of `history.snapshots`; reference and gate stay as they are."""
        self.neck.load_state_dict(states["neck"])
