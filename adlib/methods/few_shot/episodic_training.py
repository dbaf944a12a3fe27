"""Episodes: a query and a handful of normal images to judge it by, for methods whose "anomalous" is relative.

    pool = build_pool(train, describe, resize, seed=0)           features of one category, made once
    episode = draw(pool, rng, shots=(1, 2, 4), swap=0.2)         a query, its support, and what is anomalous here

Where the encoder is frozen, a pool is made once and episodes are cut out of cached features; where its last stage is
trained, the pool keeps images (`describe` hands them through) and the method describes them in every step. A pool
holds normal images and pseudo-anomalies in *styles*: one family with one source of foreign material, painted onto
several hosts. A style can then serve as a defect, or, in a *context swap*, be declared acceptable by showing it in the
support.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score

from adlib.datasets import check_training_table, table_hash
from adlib.errors import InputError
from adlib.images import Resize, read_image, to_tensor
from adlib.methods.few_shot.support_images import jittered, top_mean
from adlib.synthesis import Sources, foreground, synthesise
from adlib.synthesis.textures import procedural_texture

HOSTS = 5  # images a style is painted on: a query and up to four supports that show it as well


# -- masks on the patch grid ------------------------------------------------------------------------------------------


def cell_coverage(masks, grid: tuple[int, int]) -> torch.Tensor:
    """Area-average masks (B, H, W) into the cells of a grid: float32 (B, h, w), the share of a cell that is covered."""
    masks = torch.as_tensor(np.asarray(masks), dtype=torch.float32)[:, None]  # (B, 1, H, W)
    return F.adaptive_avg_pool2d(masks, grid)[:, 0]


def cell_targets(coverage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decide which cells are anomalous and which count at all.

    A cell is anomalous when at least half of it is covered; partly covered cells are ignored, they would poison the
    negatives. When a defect is so small that no cell reaches a half, its best covered cell stands for it.

    Args:
        coverage: (..., h, w) from `cell_coverage`.

    Returns:
        target, valid: bool (..., h, w).
    """
    top = coverage.flatten(-2).amax(-1)[..., None, None]  # (..., 1, 1)
    target = (coverage >= 0.5) | ((coverage == top) & (top > 0) & (top < 0.5))
    return target, target | (coverage == 0)


# -- pools ------------------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """Cached features of one category; one list entry a stage.

    Attributes:
        normal: (N, C, h, w) features of normal images; augmented: the same of one slightly changed copy each.
        defective: (S, m, C, h, w), style by host; hosts: int64 (S, m), the normal image that was painted on.
        coverage: float32 (S, m, h, w) on the grid of the first stage.
        styles: name of each style.
        source: `table_hash` of the images and everything else that the pool was made from.
    """

    category: str
    normal: list[torch.Tensor]
    augmented: list[torch.Tensor]
    defective: list[torch.Tensor]
    hosts: np.ndarray
    coverage: torch.Tensor
    styles: tuple[str, ...]
    source: str = ""


class Episode(NamedTuple):
    """One query and its support; one list entry a stage.

    Attributes:
        query: (C, h, w); support: (k, C, h, w); augmented: (k, C, h, w), changed copies of the supports.
        coverage: float32 (h, w), share of each cell of the first grid that is anomalous *in this context*.
        kind: "clean", "defect" or "swap".
    """

    query: list[torch.Tensor]
    support: list[torch.Tensor]
    augmented: list[torch.Tensor]
    coverage: torch.Tensor
    kind: str


def build_pool(
    table: pd.DataFrame,
    describe,
    resize: Resize,
    seed: int,
    foreign=(),
    n_normals: int = 24,
    n_styles: int = 9,
    families: tuple[str, ...] = (),
    grid: tuple[int, int] | None = None,
) -> Pool:
    """Make the cached features of a category.

    Args:
        table: normal training images of one category.
        describe: function from images (B, 3, H, W) to a list of feature maps (B, C, h, w).
        resize: preparation of the images.
        seed: choice of images and everything about the pseudo-anomalies.
        foreign: paths of normal images of *other* categories; a third of the styles paste from them, because what is
            normal there is anomalous here.
        n_normals: normal images, at most; n_styles: styles of pseudo-anomaly, each on `HOSTS` hosts.
        families: of `adlib.synthesis`, one a style in turn; () for a mix of foreign patches, CutPaste, NSA, textures.
        grid: (h, w) of the cells that defects are counted in; None for that of the first stage.
    """
    rng = np.random.default_rng(seed)
    chosen = table.iloc[np.sort(rng.permutation(len(table))[:n_normals])]
    if len(chosen) < 2:
        raise InputError(f"category {table.category.iloc[0]!r} has one normal image; an episode needs at least 2")
    hosts_uint8 = [resize.image(read_image(path))[0] for path in chosen.image_path]  # (H, W, 3)
    images = to_tensor(hosts_uint8)
    normal = _describe(images, describe)
    augmented = _describe(jittered(images, rng), describe)
    products = [foreground(image) for image in hosts_uint8]
    n_hosts = min(HOSTS, len(chosen))
    painted, masks, hosts, styles = [], [], [], []
    for s in range(n_styles):
        style, paint = _draw_style(s, rng, resize, foreign, hosts_uint8, families)
        styles.append(style)
        hosts.append(rng.permutation(len(chosen))[:n_hosts])
        for i in hosts[-1]:
            image, mask = _painted(paint, hosts_uint8[i], products[i], rng)
            painted.append(image)
            masks.append(mask)
    defective = [f.unflatten(0, (n_styles, n_hosts)) for f in _describe(to_tensor(painted), describe)]
    coverage = cell_coverage(masks, grid or tuple(normal[0].shape[2:])).unflatten(0, (n_styles, n_hosts))
    category = str(table.category.iloc[0])
    source = f"{category} {table_hash(table)} seed {seed}, {n_normals} normals, {n_styles} styles"
    return Pool(category, normal, augmented, defective, np.stack(hosts), coverage, tuple(styles), source)


def draw(
    pool: Pool, rng: np.random.Generator, shots: tuple[int, ...] = (1, 2, 4), clean: float = 0.3, swap: float = 0.0
) -> Episode:
    """Cut an episode out of a pool; the query's host is never among the supports.

    Args:
        shots: numbers of support images to draw from.
        clean: share of queries without a defect; swap: share of queries whose defect the support declares acceptable.
    """
    n_normals, n_hosts = len(pool.normal[0]), pool.hosts.shape[1]
    k = min(int(rng.choice(shots)), n_normals - 1)
    chance = rng.random()
    style, j = int(rng.integers(len(pool.styles))), int(rng.integers(n_hosts))
    host = int(pool.hosts[style, j]) if chance >= clean else int(rng.integers(n_normals))
    others = rng.permutation([i for i in range(n_normals) if i != host])[:k]
    support, augmented = [f[others] for f in pool.normal], [f[others] for f in pool.augmented]
    empty = torch.zeros_like(pool.coverage[0, 0])
    if chance < clean:
        return Episode([f[host] for f in pool.normal], support, augmented, empty, "clean")
    query = [f[style, j] for f in pool.defective]
    if chance >= clean + swap or n_hosts < 2:
        return Episode(query, support, augmented, pool.coverage[style, j], "defect")
    # The same style on other hosts joins the support: in this process it is acceptable.
    shown = rng.permutation([i for i in range(n_hosts) if i != j])[:k]
    support = [torch.cat([f, d[style, shown]]) for f, d in zip(support, pool.defective, strict=True)]
    augmented = [torch.cat([f, d[style, shown]]) for f, d in zip(augmented, pool.defective, strict=True)]
    return Episode(query, support, augmented, empty, "swap")


def _describe(images: torch.Tensor, describe, batch_size: int = 16) -> list[torch.Tensor]:
    with torch.no_grad():
        parts = [[f.cpu() for f in describe(images[i : i + batch_size])] for i in range(0, len(images), batch_size)]
    return [torch.cat(stage) for stage in zip(*parts, strict=True)]


def _draw_style(number: int, rng, resize: Resize, foreign, own, families=()):
    """Draw one style: its name and a function (image, product, rng) -> (image, mask, info)."""
    size = resize.hw
    if families:
        family, sources = families[number % len(families)], Sources(normals=own)
        return family, lambda image, product, rng: synthesise(family, image, rng, product, sources)
    if number % 3 == 0 and len(foreign):
        path = str(rng.choice(np.asarray(foreign)))
        sources = Sources(normals=[resize.image(read_image(path))[0]])
        area = (0.004, 0.06)
        return "foreign normal", lambda image, product, rng: synthesise(
            "splice", image, rng, product, sources, area=area, shape=str(rng.choice(["perlin", "polygon"]))
        )
    kind = str(rng.choice(["cutpaste", "cutpaste_scar", "nsa", "texture", "texture", "texture"]))
    if kind in ("cutpaste", "cutpaste_scar"):
        params = {"area": (0.01, 0.06)} if kind == "cutpaste" else {}
        return kind, lambda image, product, rng: synthesise(kind, image, rng, product, **params)
    if kind == "nsa":
        sources = Sources(normals=own)
        return kind, lambda image, product, rng: synthesise(kind, image, rng, product, sources)
    texture, _ = procedural_texture(size, rng)
    opacity, area = float(rng.uniform(0.25, 1.0)), (0.003, 0.05)

    def paint(image, product, rng):
        painted, mask, info = synthesise("splice", image, rng, product, Sources(normals=[texture]), area=area)
        mixed = opacity * painted.astype(np.float32) + (1 - opacity) * image
        return np.where(mask[..., None], np.rint(mixed), image).astype(np.uint8), mask, info

    return kind, paint


def _painted(paint, image, product, rng, tries: int = 5):
    """Paint until the mask is not empty; some families find no place on some hosts."""
    for _ in range(tries):
        result, mask, _ = paint(image, product, rng)
        if mask.any():
            return result, mask
    result, mask, _ = synthesise("cutpaste", image, rng, product)
    return result, mask


# -- what training on episodes needs ----------------------------------------------------------------------------------


def make_pools(tables: dict, validation: dict | None, describe, resize: Resize, seed: int, **sizes):
    """Make the pools for training and for validation; see `FewShot.train_episodes`.

    Without validation tables every category gives up the last seventh of its normals, so that selection rests on
    images (not categories) that training has not seen.
    """
    if not tables:
        raise InputError("no category to train on; give tables of at least one other category")
    for table in [*tables.values(), *(validation or {}).values()]:
        check_training_table(table)
    cut = {
        name: len(table) if validation else max(2, len(table) - max(2, len(table) // 7))
        for name, table in tables.items()
    }
    held = validation or {
        name: table.iloc[cut[name] :] for name, table in tables.items() if len(table) - cut[name] >= 2
    }
    paths = {name: list(table.image_path) for name, table in {**tables, **held}.items()}

    def foreign(name):
        return [path for other, found in paths.items() if other != name for path in found[:20]]

    pools = [
        build_pool(table.iloc[: cut[name]], describe, resize, seed, foreign(name), **sizes)
        for name, table in tables.items()
    ]
    validation_pools = [
        build_pool(table, describe, resize, seed + 1, foreign(name), **sizes) for name, table in held.items()
    ]
    return pools, validation_pools


def kept_rows(rng: np.random.Generator, k: int, grid: tuple[int, int], n_rows: int) -> torch.Tensor:
    """Draw which patches of a support of k images, cut into (h, w) each, a step keeps: int64 (at most n_rows,)."""
    return torch.from_numpy(np.sort(rng.permutation(k * grid[0] * grid[1])[:n_rows]))


def fixed_episodes(pools, shots: tuple[int, ...], seed: int, n: int = 48) -> list[Episode]:
    """Draw the episodes that every validation uses, in turn from each pool: half of them clean."""
    rng = np.random.default_rng(seed)
    return [draw(pools[i % len(pools)], rng, shots, clean=0.5) for i in range(n)] if pools else []


def validation_scores(fixed, score) -> dict[str, float]:
    """Score fixed episodes with `score(episode) -> (h, w)`.

    Returns:
        image_auroc, pooled over the episodes; cell_ap; score, their mean, which selection goes by. And at the line that
        99.5 % of the cells of clean episodes stay below: cell_f1 of the anomalous cells; macro_f1, the mean with that
        of the normal ones; cell_iou; clean_share, of the clean episodes without any cell above it.
    """
    maps = [score(episode) for episode in fixed]
    labels = [episode.kind == "defect" for episode in fixed]
    cells = [cell_targets(episode.coverage) for episode in fixed]
    image_auroc = roc_auc_score(labels, [float(top_mean(m[None])) for m in maps])
    truth = torch.cat([target[valid] for target, valid in cells]).numpy()
    found = torch.cat([m[valid] for m, (_, valid) in zip(maps, cells, strict=True)]).cpu().numpy()
    cell_ap = average_precision_score(truth, found)
    clean = torch.stack([m for m, label in zip(maps, labels, strict=True) if not label]).flatten(1).cpu().numpy()
    line = np.quantile(clean, 0.995)
    said = found > line
    both, only, missed = (np.count_nonzero(x) for x in (said & truth, said & ~truth, ~said & truth))
    neither = len(truth) - both - only - missed
    f1, normal_f1 = 2 * both / (2 * both + only + missed), 2 * neither / (2 * neither + only + missed)
    return {
        "score": (image_auroc + cell_ap) / 2,
        "image_auroc": image_auroc,
        "cell_ap": cell_ap,
        "cell_f1": f1,
        "macro_f1": (f1 + normal_f1) / 2,
        "cell_iou": both / (both + only + missed),
        "clean_share": float((clean.max(1) <= line).mean()),
    }
