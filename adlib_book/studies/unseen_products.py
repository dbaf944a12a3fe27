"""Relative normality on categories that training has never seen: the study behind `13_unified`.

    found = study(FOLDS, data_root, seeds=(0, 1, 2))        one row per method, category and seed, and pooled ones
    summarise(found)                                        the table

Every detector gets the same `k` normal images of a category, the same backbone and the same test images. Trained ones
have seen *other* categories only. `pooled` throws the scores of all held-out images into one list: one threshold for
all products. Labels and masks are read here, after scoring; no setting is chosen by what comes out.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from adlib import datasets, images, profiles
from adlib.evaluation import metrics, thresholds
from adlib.methods.few_shot.few_shot import FewShot
from adlib.methods.few_shot.support_images import choose_support, read_images
from adlib.methods.few_shot.unified import Unified
from adlib.methods.padim import Padim
from adlib.methods.patchcore import PatchCore
from adlib.methods.spade import Spade
from adlib.settings import build
from adlib_book.studies import RememberingBackbone

DEMO = ("brick", "gear", "grass", "gravel", "tray")
REAL = {"magnetic_tile": "magnetic_tile", "screw": "mvtec_ad", "leather": "mvtec_ad_samples"}  # category -> folder
# (trained on, tested on): every category is held out once.
FOLDS = (
    ((*DEMO, "screw"), ("magnetic_tile", "leather")),
    ((*DEMO, "magnetic_tile"), ("screw",)),
    (("brick", "gear", "tray", "magnetic_tile"), ("grass", "gravel")),
    (("grass", "gravel", "screw", "magnetic_tile"), ("brick", "gear", "tray")),
)
# The same for all of MVTec AD: five folds, each of one texture and two objects, trained on the other twelve categories.
MVTEC_HELD_OUT = (
    ("carpet", "bottle", "pill"),
    ("grid", "cable", "screw"),
    ("leather", "capsule", "toothbrush"),
    ("tile", "hazelnut", "transistor"),
    ("wood", "metal_nut", "zipper"),
)
MVTEC_FOLDS = tuple(
    (tuple(name for other in MVTEC_HELD_OUT if other != names for name in other), names) for names in MVTEC_HELD_OUT
)


class Queries(NamedTuple):
    """The test images of a category, read once: table, batches of `adlib.images`, masks bool (N, H, W)."""

    table: pd.DataFrame
    batches: list
    masks: np.ndarray


def load(category: str, data_root=None, n_train: int = 120) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return at most `n_train` normal training images of a category, and its test images."""
    root = None
    if category not in DEMO:
        whole = Path(data_root) / "mvtec_ad"
        root = whole if (whole / category).is_dir() else Path(data_root) / REAL.get(category, "mvtec_ad")
    table = datasets.load("demo" if root is None else "mvtec", root, category)
    train = table[(table.split == "train") & (table.label == 0)]
    return train.sample(frac=1, random_state=0).iloc[:n_train], table[table.split == "test"]


def read_queries(test: pd.DataFrame, resize, n_test: int) -> Queries:
    """Read at most `n_test` test images, the same share of each kind of defect."""
    if len(test) > n_test:
        test = test.groupby("defect", group_keys=False).sample(frac=n_test / len(test), random_state=0)
    masks = []
    for mask, image in zip(datasets.masks(test), test.image_path, strict=True):
        empty = np.zeros(images.read_image(image).shape[:2], bool)
        masks.append(resize.mask(empty if mask is None else mask))
    return Queries(test, list(images.batches(test.image_path, resize, 8)), np.stack(masks))


def detectors(k: int, seed: int, training: dict, common: dict) -> dict:
    """Name -> (class, settings) of the rows of the table; `training` changes the settings of trained ones."""
    own = {"resize": "stretch"} | common | {"k": k, "seed": seed}  # one input for products of any shape
    few = profiles.method_settings("laptop", "few_shot") | own
    one = profiles.method_settings("laptop", "unified") | own
    # Whatever the unified model is set to, by the profile or by default, the baselines see the same features.
    model = build(Unified.Settings, one)
    plain = {name: getattr(model, name) for name in ("backbone", "stages", "weights", "image_size", "resize")}
    few_images = {"k": k, "seed": seed}
    bank = {"embedding_dim": None, "sampler": "none", "seed": seed}
    return {
        "PatchCore": (PatchCore, plain | bank),
        "SPADE": (Spade, plain | few_images),
        "PaDiM": (Padim, plain | few_images | {"d": 100}),
        "few-shot, step 0": (FewShot, few),
        "few-shot, trained": (FewShot, few | training),
        "unified, step 0, no directions": (Unified, one | {"whiten": 1.0}),
        "unified, step 0": (Unified, one),
        "unified, trained": (Unified, one | training),
    }


def study(
    folds=FOLDS,
    data_root=None,
    seeds=(0, 1, 2),
    k: int = 4,
    n_test: int = 120,
    training: dict | None = None,
    common: dict | None = None,
    methods=None,
    swaps: list | None = None,
    report=None,
) -> pd.DataFrame:
    """Test every detector on every held-out category.

    Args:
        folds: pairs (categories to train on, categories to test on).
        data_root: folder with `mvtec_ad` and the folders of `REAL`; None where only demo categories are used.
        seeds: of support and training. k: support images. n_test: test images of a category, at most.
        training: changes to the settings of training, as `steps`; common: to all detectors, as `image_size`.
        methods: only these rows.
        swaps: a list that gets one row per kind of defect of the real categories: the trained unified model.
        report: called with a line of text after every detector.

    Returns:
        method, category, seed, image_auroc, image_f1_max, pixel_auroc, pixel_ap, and n_images, n_defective, what they
        are of; the rows of category "pooled" are over the images of all held-out categories, with one threshold for
        the F1: the best one, seen on the test. It is never below `always_defective`.
    """
    cached, rows, scored = {}, [], []
    for trained_on, held_out in folds:
        sizes = detectors(k, 0, training or {}, common or {})["unified, trained"]
        probe = _share(sizes[0](**sizes[1]), cached)
        lessons = {}  # of the trained classes
        tests = {name: load(name, data_root) for name in held_out}
        tests = {name: (train, read_queries(test, probe.resize, n_test)) for name, (train, test) in tests.items()}
        for seed in seeds:
            for name, (cls, settings) in detectors(k, seed, training or {}, common or {}).items():
                if methods and name not in methods:
                    continue
                method = _share(cls(**settings), cached)
                if name.endswith(", trained"):
                    if cls not in lessons:
                        lessons[cls] = method.make_pools({name: load(name, data_root)[0] for name in trained_on})
                    method.train_episodes(None, None, *lessons[cls])
                line = f"seed {seed} {name:>30}:"
                for category, (train, queries) in tests.items():
                    support = choose_support(train, k, seed)[0]
                    method.fit(support if cls is PatchCore else train)
                    for row, scores, values in _evaluate(name, method, queries):
                        rows.append({"method": row, "category": category, "seed": seed} | values)
                        part = {"method": row, "seed": seed, "score": scores, "label": queries.table.label}
                        scored.append(pd.DataFrame(part))
                    line += f" {category} {rows[-1]['image_auroc']:.3f}"
                    if swaps is not None and name == "unified, trained" and category not in DEMO:
                        swaps += context_swaps(name, method, support, queries, category, seed)
                if report:
                    report(line)
    for (name, seed), group in pd.concat(scored).groupby(["method", "seed"], sort=False):
        values = metrics.image_metrics(group.score.to_numpy(np.float64), group.label.to_numpy())
        pooled = {key: values[key] for key in ("image_auroc", "image_f1_max")} | _counts(group.label)
        rows.append({"method": name, "category": "pooled", "seed": seed} | pooled)
    return pd.DataFrame(rows)


def always_defective(n_images: int, n_defective: int) -> float:
    """F1 of calling every image defective: what the best threshold gives a detector that knows nothing."""
    return 2 * n_defective / (n_images + n_defective)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method: image AUROC a category, its mean and deviation over seeds, pixel metrics, pooled metrics."""
    single, pooled = rows[rows.category != "pooled"], rows[rows.category == "pooled"]
    table = single.groupby(["method", "category"], sort=False).image_auroc.mean().unstack("category")
    table["mean"] = table.mean(axis=1)
    table["sd"] = single.groupby(["method", "seed"]).image_auroc.mean().groupby("method").std()
    table[["pixel AUROC", "pixel AP"]] = single.groupby("method")[["pixel_auroc", "pixel_ap"]].mean()
    by_method = pooled.groupby("method")
    table["pooled AUROC"], table["pooled sd"] = by_method.image_auroc.mean(), by_method.image_auroc.std()
    table["pooled F1"] = by_method.image_f1_max.mean()
    return table


def context_swap(model: Unified, good: torch.Tensor, table: pd.DataFrame, kind: str, seed: int = 0, n_shown: int = 4):
    """Does a kind of defect stop being one when the support shows it?

    Context A is the support `good` (k, 3, H, W) alone, context B holds `n_shown` images of the kind besides; those are
    then no queries.

    Args:
        table: test rows of one category; kind: one of its defects, with at least two images.

    Returns:
        the queries with columns A and B, their image scores; the tables of shown images.
    """
    of_kind = table[table.defect == kind].sample(frac=1, random_state=seed)
    examples = of_kind.iloc[: min(n_shown, len(of_kind) // 2)]
    queries = table[~table.image_path.isin(examples.image_path)]
    stack = torch.cat([good, read_images(examples.image_path, model.resize)])
    contexts = {"A": model.condition(good), "B": model.condition(stack)}
    scores = {name: [] for name in contexts}
    for batch in images.batches(queries.image_path, model.resize, 16):
        for name, context in contexts.items():
            scores[name].append(model.score(batch, context).image)
    return queries.assign(**{name: np.concatenate(parts) for name, parts in scores.items()}), examples


def swap_answer(swap: pd.DataFrame, kind: str, threshold: float) -> dict:
    """What `context_swap` says, in numbers.

    Args:
        swap: its queries; threshold: from held-out normals under A.

    Returns:
        auroc_a, auroc_b: of the kind against good images, under A and B (relative: high, low). flip_rate: share of
        the `n_found` images of the kind above the threshold under A that are not above it under B. other_a, other_b:
        AUROC of the *other* kinds (relative: both high); other_flip_rate: share of their `n_other_found` images that
        fall below the threshold as well. B has a wider notion of normal, so all scores fall and the threshold of A is
        a high one there: only where flip_rate exceeds other_flip_rate has the kind itself become more acceptable.
    """
    is_kind, is_other = swap.defect == kind, (swap.label == 1) & (swap.defect != kind)

    def auroc(column, rows):
        sample = swap[(swap.label == 0) | rows]
        return metrics.image_metrics(sample[column].to_numpy(np.float64), sample.label.to_numpy())["image_auroc"]

    def flipped(rows):
        above = swap[rows & swap.A.gt(threshold)]
        return len(above), float(above.B.le(threshold).mean()) if len(above) else None

    n_found, flip_rate = flipped(is_kind)
    n_other_found, other_flip_rate = flipped(is_other)
    return {
        "auroc_a": auroc("A", is_kind),
        "auroc_b": auroc("B", is_kind),
        "n_found": n_found,
        "flip_rate": flip_rate,
        "other_a": auroc("A", is_other) if is_other.any() else None,
        "other_b": auroc("B", is_other) if is_other.any() else None,
        "n_other_found": n_other_found,
        "other_flip_rate": other_flip_rate,
    }


def _share(method, cached: dict):
    method.backbone = cached.setdefault(method.backbone.fingerprint, RememberingBackbone(method.backbone))
    return method


def _counts(labels) -> dict[str, int]:
    return {"n_images": len(labels), "n_defective": int(np.sum(labels))}


def _evaluate(name: str, method, queries: Queries):
    """Yield (row name, image scores, metrics); PatchCore a second time with scores counted from its own support."""
    batches = [method.score(batch) for batch in queries.batches]
    scores, maps = np.concatenate([f.image for f in batches]), np.concatenate([f.map for f in batches])
    labels = queries.table.label.to_numpy()
    pixels = queries.masks[:, ::4, ::4].ravel(), maps[:, ::4, ::4].ravel()
    pixel = {
        "pixel_auroc": roc_auc_score(*pixels),
        "pixel_ap": average_precision_score(*pixels),
    }

    def measured(scores):
        image = metrics.image_metrics(scores.astype(np.float64), labels)
        return {key: image[key] for key in ("image_auroc", "image_f1_max")} | pixel | _counts(labels)

    yield name, scores, measured(scores)
    if isinstance(method, PatchCore):
        # Its normal scores are those of each support image against the others: a yardstick it could have, too.
        ratio = np.log(np.maximum(scores, 1e-9)) - np.log(method.normal_scores).mean()
        yield f"{name}, in yardsticks", ratio, measured(ratio)


def context_swaps(name, method, support, queries, category, seed) -> list[dict]:
    """One row for each kind of defect with at least four images: `swap_answer`, at 5 % false alarms."""
    good, table = read_images(support.image_path, method.resize), queries.table
    line = thresholds.from_normals(method.normal_scores, "quantile", false_alarm_rate=0.05).value
    rows = []
    for kind, count in table.defect[table.label == 1].value_counts().items():
        if count >= 4:
            swap, examples = context_swap(method, good, table, kind, seed)
            row = {"method": name, "category": category, "defect": kind, "seed": seed, "n_shown": len(examples)}
            rows.append(row | swap_answer(swap, kind, line))
    return rows
