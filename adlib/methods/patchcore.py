"""PatchCore: towards total recall in industrial anomaly detection (Roth et al., CVPR 2022, arXiv 2106.08265).

    fit    frozen features -> patch embeddings -> memory bank -> greedy coreset      (sections 3.1, 3.2)
    score  distance of every test patch to its nearest bank row -> map, image score  (section 3.3)

The defaults are those of the authors' released code, which differs from the paper's text in three places, kept here
as settings: distances are *squared* Euclidean (`squared`), the image score is the plain maximum of the patch scores
(`image_score="max"`; the paper's re-weighting, Eq. 7, is `"reweight"`), and the coreset is found by the approximate
greedy rule on a 128-dimensional random projection.

Where we differ: the greedy rule picks the same rows but in a fraction of the time (`adlib.images.neighbours`), and the
default embedding avoids the unfolded windows (`adlib.images.patches`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from adlib import settings as S
from adlib.datasets import check_training_table, hold_out
from adlib.images import Batch, backbones, batches, neighbours, patches
from adlib.images.features import allocate, resize_of
from adlib.images.maps import check_images, top_mean, upsample_and_smooth
from adlib.methods import Scores, storage
from adlib.methods.normals import collect
from adlib.settings import as_dict, build
from adlib.synthesis.judge import Judge


@dataclass(frozen=True)
class PatchCoreSettings(S.Settings):
    """Settings of PatchCore; defaults from the authors' code for MVTec AD at 224 pixels."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # ImageNet weights of torchvision's first release, as in the paper
    stages: S.Stages = (2, 3)  # layer2 and layer3 (section 4.4.2)
    weights: str = "auto"  # see adlib.images.backbones.create
    image_size: S.ImageSize = 224  # network input, pixels
    resize: S.ResizeMode = 256  # shorter side, pixels; then a crop of the centre
    patch_size: S.Odd | Literal["auto"] = 3  # neighbourhood p, feature cells (Eq. 1); "auto": see `choose_patch_size`
    embedding_dim: S.Count | None = 1024  # width D, of each layer and of all together; None: plain mean
    coreset: S.ShareTo1 = 0.1  # share of patches that is kept, in (0, 1]
    sampler: Literal[neighbours.SAMPLERS] = "approximate_greedy"  # approximate_greedy, greedy, random, none
    projection_dim: S.Count | None = 128  # width of the selection space; None: select among the embeddings themselves
    search: Literal[neighbours.SEARCHES] = "exact"  # exact; ivfpq, hnsw: approximate, see adlib.images.neighbours
    k: S.Count = 1  # neighbours that a patch score averages over
    squared: bool = True  # squared Euclidean distances, as the released code reports them
    image_score: Literal["max", "reweight", "top"] = "max"  # reweight: Eq. 7; top: mean of the highest 1 %
    b: S.Count = 9  # neighbourhood of Eq. 7, bank rows
    sigma: S.NotNegative = 4.0  # Gaussian smoothing of the map, input pixels; 0 for none
    interpolation: S.Interpolation = "area"  # of the resized image; the authors' code: antialias
    batch_size: S.Count = 2  # images per forward pass; small, since its activations are most of the memory on a CPU
    max_rows: S.Count | None = None  # patches the coreset is chosen from, at random where there are more; None: all
    n_calibration: S.Whole = 200  # at most so many training images are scored for the threshold
    seed: S.Whole = 0  # projection and starting rows


class PatchCore:
    """A memory bank of normal patches and the distance to it.

    Args:
        settings: changes to `PatchCoreSettings`, by name.

    Attributes after `fit`:
        memory_bank: float32 (M, D), the coreset in order of selection.
        bank_image: int64 (M,), the training image each row came from.
        patch_size: the neighbourhood in use, the settings' or the one chosen.
        normal_scores, normal_map_maxima: float32 (n,), image scores and map maxima of training images against the
            bank *without their own rows*: what thresholds are made of.
    """

    name = "patchcore"
    Settings = PatchCoreSettings
    STATE = storage.State(
        arrays=("memory_bank", "bank_image", "normal_scores", "normal_map_maxima"), facts=("grid", "patch_size")
    )
    save = storage.save

    def __init__(self, **settings):
        self.settings = s = build(PatchCoreSettings, settings, owner=self.name)
        self.resize = resize_of(s)
        self.patch_size = 3 if s.patch_size == "auto" else s.patch_size  # until `fit` has chosen
        self.device = backbones.default_device()
        self.backbone = backbones.create(s.backbone, s.stages, s.weights, self.resize.hw).to(self.device)

    # -- fit (sections 3.1 and 3.2) ---------------------------------------------------------------------------------

    def fit(self, table, validation=None):
        """Build the memory bank from a sample table of normal training images.

        `validation` is checked for the common contract and not used: nothing is selected or trained here.
        """
        check_training_table(table)
        if validation is not None:
            check_training_table(validation, "the validation table")
        s = self.settings
        rng = np.random.default_rng(s.seed)
        if s.patch_size == "auto":
            self.patch_size = choose_patch_size(table, s)
        embeddings, numbers, self.grid = self.collect_rows(table.image_path, rng)
        n_keep = max(1, int(len(embeddings) * s.coreset))
        keep = neighbours.select(embeddings, n_keep, s.sampler, s.projection_dim, rng=rng)
        self.memory_bank = np.ascontiguousarray(embeddings[keep])  # (M, D)
        self.bank_image = numbers[keep] // (self.grid[0] * self.grid[1])  # (M,)
        self._build_index()
        every_patch = len(embeddings) == len(table) * self.grid[0] * self.grid[1]
        self.normal_scores, self.normal_map_maxima = self._leave_one_out(
            list(table.image_path), rng, embeddings if every_patch else None
        )
        return self

    def add(self, table) -> None:
        """Take patches of more normal images into the bank: the share `coreset`, the one farthest from it first.

        `normal_scores` stay: a larger bank can only lower them.
        """
        check_training_table(table)
        s = self.settings
        rows, numbers, grid = self.collect_rows(table.image_path, np.random.default_rng(s.seed))
        distances, keep = self.index.query(rows, 1)[0][:, 0], []  # squared, to the bank as it grows
        for _ in range(max(1, int(len(rows) * s.coreset))):
            keep.append(int(distances.argmax()))
            distances = np.minimum(distances, np.square(rows - rows[keep[-1]]).sum(axis=1))
        self.memory_bank = np.concatenate([self.memory_bank, rows[keep]])
        images = self.bank_image.max() + 1 + numbers[keep] // (grid[0] * grid[1])
        self.bank_image = np.concatenate([self.bank_image, images])
        self._build_index()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) in [0, 1] as patches (B, D, h, w)."""
        s = self.settings
        with torch.inference_mode():
            features = self.backbone(images.to(self.device))
            return patches.embed(features, self.patch_size, s.embedding_dim)

    def collect_rows(self, image_paths, rng) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Embed all images into one array, allocated once; on disk where it would not fit in memory.

        Where there are more than `max_rows` patches, a random `max_rows` of them is kept.

        Returns:
            rows (N, D) float32; numbers (N,) int64, the number of each row among all patches; the patch grid (h, w).
        """
        s, rows, filled, n_cells = self.settings, None, 0, 0
        for batch in batches(image_paths, self.resize, s.batch_size, progress="features"):
            grid = self.embed(batch.images)  # (B, D, h, w)
            if rows is None:
                total = len(image_paths) * grid.shape[2] * grid.shape[3]
                numbers = np.arange(total)
                if s.max_rows and total > s.max_rows:
                    numbers = np.sort(rng.choice(total, s.max_rows, replace=False))
                rows = allocate((len(numbers), grid.shape[1]))
            block = patches.to_rows(grid).cpu().numpy()
            rows_here = numbers[filled : np.searchsorted(numbers, n_cells + len(block))] - n_cells
            rows[filled : filled + len(rows_here)] = block[rows_here]
            filled, n_cells = filled + len(rows_here), n_cells + len(block)
        return rows, numbers, tuple(grid.shape[2:])

    def _build_index(self):
        self.index = neighbours.NearestNeighbours(search=self.settings.search).fit(self.memory_bank)

    def _leave_one_out(self, image_paths, rng, embeddings=None) -> tuple[np.ndarray, np.ndarray]:
        """Score training images as if each had been held out: its own rows are struck from the bank.

        The coreset was chosen with the image present, so its neighbourhood is a little thinner than it would be
        without it; the scores err on the high side, never on the low one. `embeddings` (N, D) are the rows of all
        images in order, where they are at hand; otherwise the images are embedded once more.
        """
        numbers = np.sort(rng.permutation(len(image_paths))[: self.settings.n_calibration])
        if embeddings is None:
            again = batches([image_paths[i] for i in numbers], self.resize, 1, "thresholds")
            images = (patches.to_rows(self.embed(batch.images)).cpu().numpy() for batch in again)
        else:
            n = self.grid[0] * self.grid[1]
            images = (np.ascontiguousarray(embeddings[i * n : (i + 1) * n]) for i in numbers)

        def scores():
            for i, rows in zip(numbers, images, strict=True):
                own = self.bank_image == i
                if own.all():  # the only training image: there is no other normal to compare with
                    continue
                if self.settings.search == "exact" or len(own) < 256:
                    index = neighbours.NearestNeighbours().fit(self.memory_bank[~own])
                else:
                    index = self.index.without(own.nonzero()[0])
                yield self._score_rows(rows, (1, *self.grid), index, self.resize.hw)

        return collect(scores())

    # -- score (section 3.3) ----------------------------------------------------------------------------------------

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] at the network's input size.

        Patch score: mean distance to the `k` nearest bank rows. Map: patch scores, bilinear to the input size, then
        Gaussian smoothing. The image score is taken *before* both.
        """
        storage.check_fitted(self)
        images = check_images(batch)
        grid = self.embed(images)  # (B, D, h, w)
        rows = patches.to_rows(grid).cpu().numpy()  # (B h w, D)
        return self._score_rows(rows, (len(grid), *grid.shape[2:]), self.index, tuple(images.shape[-2:]))

    def _score_rows(self, rows, shape, index, size) -> Scores:
        """Score embeddings (B h w, D) of images, `shape` = (B, h, w), by the bank in `index`; maps of `size`."""
        s = self.settings
        squared, nearest = index.query(rows, min(s.k, len(index.memory_bank)))  # (B h w, k)
        distances = squared if s.squared else np.sqrt(squared)
        patch_scores = distances.mean(axis=1).reshape(shape)  # (B, h, w)
        per_image = len(patch_scores), -1
        if s.image_score == "reweight":
            to_nearest, nearest = np.sqrt(squared[:, 0]).reshape(per_image), nearest[:, 0].reshape(per_image)
            embeddings = rows.reshape(*per_image, rows.shape[1])  # (B, h w, D)
            image_scores = reweighted_scores(embeddings, to_nearest, nearest, index, s.b)
        elif s.image_score == "top":
            image_scores = top_mean(torch.from_numpy(patch_scores)).numpy()
        else:
            image_scores = patch_scores.max(axis=(1, 2))
        maps = upsample_and_smooth(torch.from_numpy(patch_scores.astype(np.float32)), size, s.sigma)
        return Scores(image_scores.astype(np.float32), maps)

    @classmethod
    def load(cls, path):
        """Read a fitted method; refuses a bank that was made by other backbone weights."""
        method = storage.load(cls, path)
        method._build_index()
        return method


def choose_patch_size(table, settings: PatchCoreSettings, candidates=(1, 3), n_images: int = 200) -> int:
    """Choose the neighbourhood by pseudo-anomalies on held-out normal images; no real defect is looked at.

    Ours, not the paper's: its choice of 3 is for a network whose cells see little. What suits another backbone
    depends on the product (fine threads want 1, a noisy surface wants 3), so each candidate is fitted on three
    quarters of at most `n_images` training images and rated on the rest, half of them damaged, by `Judge`. Fewer than
    four images take the paper's choice.
    """
    rng = np.random.default_rng([settings.seed, len(table)])
    some = table.iloc[np.sort(rng.permutation(len(table))[:n_images])]
    if len(some) < 4:
        return 3
    fit, held_out = hold_out(some, 0.25, settings.seed)
    judge = Judge(held_out, resize_of(settings), seed=settings.seed)
    ratings = {}
    for size in candidates:
        method = PatchCore(**{**as_dict(settings), "patch_size": size, "n_calibration": 0}).fit(fit)
        ratings[size] = judge.look(method.score)["score"]
    return max(ratings, key=ratings.get)


def reweighted_scores(rows, distances, nearest, index, b: int) -> np.ndarray:
    """Image scores by Eq. 7: the largest nearest-neighbour distance s*, damped where bank rows crowd around it.

        s = (1 - exp(|t - m*|) / sum over m in N_b(m*) of exp(|t - m|)) s*

    t is the patch with the largest distance, m* its nearest bank row, N_b(m*) the b bank rows nearest to m*. The
    fraction is a softmax, computed with its maximum subtracted. With b = 1 the score is s* itself.

    Args:
        rows: (B, P, D) embeddings; distances, nearest: (B, P), Euclidean distance to the nearest bank row, its number.
        index: holds the bank.

    Returns:
        float64 (B,).
    """
    memory_bank = index.memory_bank
    b = min(b, len(memory_bank))
    scores = np.empty(len(rows))
    for i in range(len(rows)):
        t = distances[i].argmax()
        s_star = float(distances[i, t])
        if b == 1:
            scores[i] = s_star
            continue
        _, neighbourhood = index.query(memory_bank[nearest[i, t]][None], b)  # (1, b), m* first
        to_neighbourhood = np.linalg.norm(rows[i, t].astype(np.float64) - memory_bank[neighbourhood[0]], axis=1)
        exponent = np.exp(to_neighbourhood - to_neighbourhood.max())
        scores[i] = (1 - exponent[0] / exponent.sum()) * s_star
    return scores
