"""Episodes: a query and a handful of normal images to judge it by, for methods whose "anomalous" is relative.

    pool = describe_pictures(paint(train, resize, seed=0), describe)    features of one category, made once
    episode = draw(pool, rng, shots=(1, 2, 4))                          a query, its support, what is anomalous here

The encoder is frozen, so a pool is made once and episodes are cut out of cached features. A pool holds normal images
and pseudo-anomalies in *styles*: one family with one source of foreign material, painted onto several hosts.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from adlib import settings as S
from adlib.datasets import check_training_table, table_hash
from adlib.datasets.demo.products import VERSION, product
from adlib.errors import InputError
from adlib.images import Resize, to_tensor
from adlib.methods.few_shot.support_images import choose_support, read_images
from adlib.methods.normals import split_normals
from adlib.synthesis import Sources, foreground, synthesise
from adlib.synthesis.judge import N_IMAGES, Judge
from adlib.synthesis.textures import procedural_texture

HOSTS = 5  # images a style is painted on: a query and up to four supports that show it as well
ROWS = 1024  # support patches per stage that a training episode keeps


# -- masks on the patch grid ------------------------------------------------------------------------------------------


def cell_means(maps, grid: tuple[int, int]) -> torch.Tensor:
    """Mean of maps (B, H, W) in each cell of a grid, float32 (B, h, w); of masks, the share of it that is covered."""
    return F.adaptive_avg_pool2d(torch.as_tensor(np.asarray(maps), dtype=torch.float32), grid)


def cell_targets(coverage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decide which cells are anomalous and which count at all.

    A cell is anomalous when at least half of it is covered; partly covered cells are ignored, they would poison the
    negatives. When a defect is so small that no cell reaches a half, its best covered cell stands for it.

    Args:
        coverage: (..., h, w), `cell_means` of masks.

    Returns:
        target, valid: bool (..., h, w).
    """
    top = coverage.flatten(-2).amax(-1)[..., None, None]  # (..., 1, 1)
    target = (coverage >= 0.5) | ((coverage == top) & (top > 0) & (top < 0.5))
    return target, target | (coverage == 0)


# -- pools ------------------------------------------------------------------------------------------------------------


PoolSize = Annotated[tuple[S.Count, ...], S.Must(lambda v: len(v) == 2, "be two numbers, for example [24, 9]")]


class Pictures(NamedTuple):
    """Normal images of one category, and pseudo-anomalies in S styles on m hosts each.

    Attributes:
        normal: N images uint8 (H, W, 3).
        painted: S m images uint8 (H, W, 3), style by style; masks: bool (S m, H, W); hosts: int64 (S, m), the normal
            image that was painted on, -1 for one that is not among them.
        styles, source: as of `Pool`.
    """

    category: str
    normal: list[np.ndarray]
    painted: list[np.ndarray]
    masks: np.ndarray
    hosts: np.ndarray
    styles: tuple[str, ...]
    source: str


class Pool(NamedTuple):
    """Cached features of one category; one list entry per stage.

    Attributes:
        normal: (N, C, h, w) features of normal images.
        defective: (S, m, C, h, w), style by host; hosts: int64 (S, m), the normal image that was painted on.
        coverage: float32 (S, m, h, w) on the grid of the first stage.
        styles: name of each style.
        source: `table_hash` of the images and everything else that the pool was made from.
    """

    category: str
    normal: list[torch.Tensor]
    defective: list[torch.Tensor]
    hosts: np.ndarray
    coverage: torch.Tensor
    styles: tuple[str, ...]
    source: str = ""


class Episode(NamedTuple):
    """One query and its support; one list entry per stage.

    Attributes:
        query: (C, h, w); support: (k, C, h, w).
        coverage: float32 (h, w), share of each cell of the first grid that is anomalous.
        kind: "clean" or "defect".
    """

    query: list[torch.Tensor]
    support: list[torch.Tensor]
    coverage: torch.Tensor
    kind: str


def describe_pictures(pictures: Pictures, describe) -> Pool:
    """Make the cached features of a category; `describe`: images (B, 3, H, W) -> list of feature maps (B, C, h, w)."""
    shape = pictures.hosts.shape
    normal = _describe(to_tensor(pictures.normal), describe)
    defective = [f.unflatten(0, shape) for f in _describe(to_tensor(pictures.painted), describe)]
    coverage = cell_means(pictures.masks, tuple(normal[0].shape[2:])).unflatten(0, shape)
    return Pool(pictures.category, normal, defective, pictures.hosts, coverage, pictures.styles, pictures.source)


def paint(table, resize: Resize, seed: int, foreign=(), n_normals=24, n_styles=9, families=()) -> Pictures:
    """Read normal images of a category and paint defects onto them.

    Args:
        table: normal training images of one category.
        resize: preparation of the images.
        seed: choice of images and everything about the pseudo-anomalies.
        foreign: paths of normal images of *other* categories; a third of the styles paste from them, because what is
            normal there is anomalous here.
        n_normals: normal images, at most; n_styles: styles of pseudo-anomaly, each on `HOSTS` hosts.
        families: of `adlib.synthesis`, one a style in turn; () for a mix of foreign patches, CutPaste, NSA, textures.
    """
    rng = np.random.default_rng(seed)
    hosts_table = table.iloc[np.sort(rng.permutation(len(table))[:n_normals])]
    if len(hosts_table) < 2:
        raise InputError(f"category {table.category.iloc[0]!r} has one normal image; an episode needs at least 2")
    hosts_uint8 = [resize.read(path)[0] for path in hosts_table.image_path]  # (H, W, 3)
    rng.random(4 * len(hosts_uint8))  # drawn for copies that no method uses any more; records rest on what follows
    products = [foreground(image) for image in hosts_uint8]
    n_hosts = min(HOSTS, len(hosts_table))
    painted, masks, hosts, styles = [], [], [], []
    for s in range(n_styles):
        style, on_host = _draw_style(s, rng, resize, foreign, hosts_uint8, families)
        styles.append(style)
        hosts.append(rng.permutation(len(hosts_table))[:n_hosts])
        for i in hosts[-1]:
            image, mask = _painted(on_host, hosts_uint8[i], products[i], rng)
            painted.append(image)
            masks.append(mask)
    category = str(table.category.iloc[0])
    source = f"{category} {table_hash(table)} seed {seed}, {n_normals} normals, {n_styles} styles"
    return Pictures(category, hosts_uint8, painted, np.stack(masks), np.stack(hosts), tuple(styles), source)


def drawn_pictures(number: int, resize: Resize) -> Pictures:
    """The pictures of a product that is drawn by code; every defect is on a picture of its own."""
    normal, painted, masks, kinds = product(number, resize.hw)
    hosts = np.full((len(painted), 1), -1)
    return Pictures("drawn", normal, painted, masks, hosts, kinds, f"drawn {VERSION}.{number}")


def draw(pool: Pool, rng: np.random.Generator, shots: tuple[int, ...] = (1, 2, 4), clean: float = 0.3) -> Episode:
    """Cut an episode out of a pool; the query's host is never among the supports.

    Args:
        shots: numbers of support images to draw from.
        clean: share of queries without a defect.
    """
    n_normals, n_hosts = len(pool.normal[0]), pool.hosts.shape[1]
    k = min(int(rng.choice(shots)), n_normals - 1)
    chance = rng.random()
    style, j = int(rng.integers(len(pool.styles))), int(rng.integers(n_hosts))
    host = int(pool.hosts[style, j]) if chance >= clean else int(rng.integers(n_normals))
    others = rng.permutation([i for i in range(n_normals) if i != host])[:k]
    support = [f[others] for f in pool.normal]
    if chance < clean:
        return Episode([f[host] for f in pool.normal], support, torch.zeros_like(pool.coverage[0, 0]), "clean")
    return Episode([f[style, j] for f in pool.defective], support, pool.coverage[style, j], "defect")


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
        sources = Sources(normals=[resize.read(path)[0]])
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


class Product(NamedTuple):
    """What selection goes by: damaged normals of a product, and a support to judge them by.

    Attributes:
        support: (k, 3, H, W) in [0, 1], normal images that the judge does not show.
        source: hash of the images.
    """

    category: str
    support: torch.Tensor
    judge: Judge
    source: str


def make_pools(tables: dict, validation: dict | None, make, resize: Resize, settings):
    """Make what episodes are cut from, and what selection goes by; see `FewShot.train_episodes`.

    Products left out of the training select by themselves; without any, every category gives up a share `hold_out` of
    its normals. Supports hold as many images as the largest of `shots`.

    Returns:
        list of what `make` makes of the `Pictures` of each category, list of `Product`; the latter is empty
        where the settings need no judge.
    """
    s, k = settings, max(settings.shots)
    if not tables:
        raise InputError("no category to train on; give tables of at least one other category")
    for name, table in {**tables, **(validation or {})}.items():
        check_training_table(table, f"the table of {name!r}")
    train = dict(tables)
    if validation:
        parts = [choose_support(t, min(k, len(t) - 1), s.seed, N_IMAGES) for t in validation.values()]
    else:
        split = {name: split_normals(table, s) for name, table in tables.items()}
        train = {name: part for name, (part, _) in split.items()}
        parts = [
            (choose_support(part, min(k, len(part)), s.seed, 0)[0], rest) for part, rest in split.values() if len(rest)
        ]
    products = []
    for support, held_out in parts if s.watched(parts) else ():
        if not len(support) or not len(held_out):
            raise InputError("a product to select by needs at least 2 different normal images, one of them its support")
        judge = Judge(held_out, resize, max(2, N_IMAGES // len(parts)), s.seed)
        source = f"{table_hash(support)} {table_hash(held_out)}"
        products.append(Product(str(held_out.category.iloc[0]), read_images(support.image_path, resize), judge, source))
    paths = {name: list(table.image_path) for name, table in {**train, **(validation or {})}.items()}
    pools = []
    for name, table in train.items():
        foreign = [path for other, images in paths.items() if other != name for path in images[:20]]
        pictures = paint(table, resize, s.seed, foreign, *s.pool)
        pools.append(make(pictures))  # before the check: features that are NaN are the worse fault
        if k > len(pictures.normal) - 1:
            raise InputError(
                f"shots {s.shots}: category {name!r} has {len(pictures.normal)} normal images here, one of them the "
                "query; lower shots or raise the first of pool"
            )
    return pools, products


def draw_rows(rng: np.random.Generator, k: int, grid: tuple[int, int]) -> torch.Tensor:
    """Draw which patches of a support of k images, cut into (h, w) each, a step keeps: int64 (at most `ROWS`,)."""
    return torch.from_numpy(np.sort(rng.permutation(k * grid[0] * grid[1])[:ROWS]))


def cell_metrics(maps, judge: Judge, grid: tuple[int, int]) -> dict[str, float]:
    """What a judge's images say cell by cell, beside what it rates by.

    Args:
        maps: (N, H, W) of its images; grid: (h, w).

    Returns:
        cell_ap. And at the line that 99.5 % of the cells of clean images stay below: cell_f1 of the anomalous cells;
        macro_f1, the mean with that of the normal ones; cell_iou; clean_share, of the clean images without any cell
        above it.
    """
    cells = cell_means(maps, grid)
    target, valid = cell_targets(cell_means(judge.masks, grid))
    truth, scores = target[valid].numpy(), cells[valid].numpy()
    clean = cells[judge.labels == 0].flatten(1).numpy()  # (n, h w)
    line = np.quantile(clean, 0.995)
    return {
        "cell_ap": float(average_precision_score(truth, scores)),
        "cell_f1": float(f1_score(truth, scores > line)),
        "macro_f1": float(f1_score(truth, scores > line, average="macro")),
        "cell_iou": float(jaccard_score(truth, scores > line)),
        "clean_share": float((clean.max(1) <= line).mean()),
    }
