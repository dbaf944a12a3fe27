"""What training adds to four images of a product that it has not seen: products drawn by code, tested on real ones.

    python benchmarks/relative.py --data-root DATA --cache DIR [--draws 3] [--seeds 3] [--k 4] [--curve 2 5 20 60]

Writes results/studies/relative.csv: one row per detector, number of training products, draw of the support, training
seed and product, and rows "pooled" over all of them; and relative_drawn.csv: the same heads on the drawn products that
they learned from and on those that they did not. What is frozen is computed once and kept in `--cache`; the head is all
that is trained. Scores, loss and rates are those of the settings; nothing is chosen by what comes out.
`--swaps` asks the head of the last point of the curve whether a defect that the support shows stops being one:
results/studies/relative_context_swap.csv.
"""

import argparse
import itertools
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from adlib import datasets, profiles
from adlib.evaluation import metrics
from adlib.images.maps import enlarge, smooth
from adlib.methods.few_shot import episodic_training, references
from adlib.methods.few_shot.support_images import choose_support, jittered, read_images, rotated
from adlib.methods.few_shot.unified import N_COPIES, Lesson, Unified
from adlib.methods.patchcore import PatchCore
from adlib_book import studies
from adlib_book.studies import unseen_products

# category -> layout, folder below the data root
PRODUCTS = {
    "magnetic_tile": ("mvtec", "magnetic_tile"),
    "screw": ("mvtec", "mvtec_ad"),
    "fryum": ("visa", "visa"),
    "mono": ("elpv", None),
    "leather": ("mvtec", "mvtec_ad_samples"),
    "metal_plate": ("mvtec", "mpdd"),
}
TARGETS = ("magnetic_tile", "screw", "fryum", "mono")  # leather and plate stand near 100 from the start
STEP_0 = {"step 0": ("turned", "own"), "support alone, step 0": ()}  # references; the second is what `unified` was
FURTHER = [references.QUANTITIES.index(name) for name in ("turned", "own")]
N_GOOD, N_DEFECTIVE, GRID = 40, 45, 128  # test images at most; pixels of the maps that AUPRO is measured on


def load(category: str, data_root) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The normal training images of a real product and a fixed part of its test images."""
    layout, folder = PRODUCTS[category]
    table = datasets.load(layout, folder and Path(data_root) / folder, category)
    test = table[table.split == "test"].sample(frac=1, random_state=0)
    good, bad = test[test.label == 0], test[test.label == 1]
    order = bad.groupby("defect").cumcount().sort_values(kind="stable").index  # all kinds in turn
    train = table[(table.split == "train") & (table.label == 0)]
    return train, pd.concat([good[:N_GOOD], bad.loc[order][:N_DEFECTIVE]])


@cache
def images_of(category: str, model: Unified, data_root) -> tuple:
    """What no draw of the support changes: normal images to draw from, queries, and the queries described."""
    train, test = load(category, data_root)
    queries = unseen_products.read_queries(test, model.resize, len(test))
    with torch.no_grad():
        return train, queries, [model.describe(batch.images) for batch in queries.batches]


def frozen(category: str, model: Unified, k: int, draw: int, data_root) -> dict:
    """What no training changes of a product: inputs of queries and of the support, scores of PatchCore."""
    train, queries, tested = images_of(category, model, data_root)
    support = choose_support(train, k, draw)[0]
    stack = read_images(support.image_path, model.resize)
    answer = {"label": queries.table.label.to_numpy(), "masks": np.stack([m[::2, ::2] for m in queries.masks])}
    with torch.no_grad():
        described, turned = model.describe(stack), model.describe(rotated(stack, (90, 180, 270)))
        rng = np.random.default_rng(0)
        copies = model.describe(jittered(stack.repeat(N_COPIES, 1, 1, 1), rng)) if k == 1 else None
        for name, used in STEP_0.items():
            model.settings = replace(model.settings, references=used)
            context, *of_support = model.remember(described, turned if used else [None] * len(turned), copies)
            if used:
                compared = [list(map(references.compare, part, context)) for part in tested]
            else:  # `compare` would say the same again, and of what it does not look at the distance to the support
                for stage in itertools.chain(*compared):
                    stage[:, FURTHER] = stage[:, :1]
            of_queries = [model.compared_inputs(part, context) for part in compared]
            answer[name] = [torch.cat(parts).half() for parts in zip(*of_queries, strict=True)], of_support
    answer["free"] = bool(context[0].turned.shape[1])
    plain = {n: getattr(model.settings, n) for n in ("backbone", "stages", "image_size", "resize")}
    core = PatchCore(**plain, sampler="none", embedding_dim=None).fit(support)
    image, maps = zip(*(core.score(batch)[:2] for batch in queries.batches), strict=True)
    answer["PatchCore"] = np.concatenate(image), np.concatenate(maps)[:, ::2, ::2]
    return answer


def answers(model: Unified, kept: dict, name: str = "step 0") -> tuple[np.ndarray, np.ndarray]:
    """Image scores and maps of a product's queries, by the head of now."""
    (seen, log_ratio), of_support = kept[name]
    with torch.no_grad():
        logits = model.logits(seen.float(), log_ratio.float())
        usual = model.image_logits(model.logits(*of_support)).mean()
    maps = enlarge(logits.sigmoid(), (GRID, GRID), align_corners=True).numpy()
    return (model.image_logits(logits) - usual).numpy(), smooth(maps, model.settings.sigma * GRID / 224)


def measured(by_product: dict, kept: dict, **columns) -> None:
    """Write a row per product, and one over the pictures of all, with one threshold; AUPRO of the first seed alone."""
    rows, scores, labels = [], [], []
    for category, (image, maps) in by_product.items():
        label, masks = kept[category]["label"], kept[category]["masks"]
        values = metrics.image_metrics(image.astype(np.float64), label)
        row = columns | {"category": category, "image_auroc": values["image_auroc"]}
        row["aupro"] = metrics.aupro(list(maps), list(masks)) if masks.any() and not columns["seed"] else None
        rows.append(row)
        scores.append(image)
        labels.append(label)
    values = metrics.image_metrics(np.concatenate(scores).astype(np.float64), np.concatenate(labels))
    pooled = {"category": "pooled", "image_auroc": values["image_auroc"], "image_f1": values["image_f1_max"]}
    keys = ["detector", "products", "k", "draw", "seed", "category"]
    studies.write_rows("relative", pd.DataFrame([*rows, columns | pooled]), keys, float_format="%.4f")


def on_drawn(model: Unified, head: Unified, lessons: list[Lesson]) -> dict:
    """Mean image AUROC on drawn products, each by itself, of step 0 and of a trained head."""
    means = {}
    for name, one in (("step_0", model), ("trained", head)):
        with torch.no_grad():
            scores = [one.image_logits(one.logits(x.inputs.float(), x.log_ratio.float())) for x in lessons]
        labels = [x.target.flatten(1).any(1) for x in lessons]
        means[name] = np.mean([roc_auc_score(*pair) for pair in zip(labels, scores, strict=True)]) if lessons else None
    return means | {"n_products": len(lessons)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="folder of the real products; not needed where --products names none")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, nargs="*", default=[4])
    parser.add_argument("--curve", type=int, nargs="*", default=[2, 5, 20, 60, 100])
    parser.add_argument("--held-out", type=int, default=12, help="drawn products beside those that are learned from")
    parser.add_argument("--swaps", nargs="*", default=[], choices=PRODUCTS, help="products to swap contexts on")
    parser.add_argument("--products", nargs="*", default=list(PRODUCTS))
    arguments = parser.parse_args()
    started, folder = time.perf_counter(), Path(arguments.cache)
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"resize": "stretch", "selection": "last", "snapshot_every": 0}
    settings = profiles.method_settings("laptop", "unified") | changes

    def cached(name, make):
        file = folder / f"{name}.pt"
        if not file.is_file():
            torch.save(make(), file)
            print(f"{time.perf_counter() - started:5.0f} s {name}", flush=True)
        return torch.load(file, weights_only=False)  # our own, written above

    model = Unified(**settings)
    kept = {(k, draw): {} for k in arguments.k for draw in range(arguments.draws) if arguments.products}
    for category in arguments.products:
        for k, draw in kept:
            make = lambda: frozen(category, model, k, draw, arguments.data_root)  # noqa: B023, E731 - called at once
            kept[k, draw][category] = cached(f"{category}-{k}-{draw}", make)
        images_of.cache_clear()
    for (k, draw), products in kept.items():
        common = {"products": 0, "k": k, "draw": draw, "seed": 0}
        measured({c: p["PatchCore"] for c, p in products.items()}, products, detector="PatchCore", **common)
        for name in STEP_0:
            by_product = {c: answers(model, p, name) for c, p in products.items()}
            measured(by_product, products, detector=name, **common)
    lessons = []
    for number in range(max(arguments.curve) + arguments.held_out if arguments.curve else 0):
        make = lambda: tuple(model.lesson(episodic_training.drawn_pictures(number, model.resize)))  # noqa: B023, E731
        lessons.append(Lesson(*cached(f"drawn-{number}", make)))
    for size in arguments.curve:
        for seed in range(arguments.seeds):
            one = Unified(**settings | {"seed": seed})
            # Another seed learns from other products.
            order = np.random.default_rng(seed).permutation(len(lessons))
            taught = [lessons[i] for i in order[:size]]
            one.train_episodes(None, pools=taught)
            parts = {"trained on": taught, "held out": [lessons[i] for i in order[size:]]}
            drawn = [{"products": size, "seed": seed, "drawn": k} | on_drawn(model, one, v) for k, v in parts.items()]
            drawn = studies.write_rows("relative_drawn", pd.DataFrame(drawn), ["products", "seed"], float_format="%.4f")
            print(drawn.to_string(), flush=True)
            for (k, draw), products in kept.items():
                by_product = {c: answers(one, p) for c, p in products.items()}
                where = {"products": size, "k": k, "draw": draw, "seed": seed}
                measured(by_product, products, detector="trained", **where)
        print(f"{time.perf_counter() - started:5.0f} s trained on {size}", flush=True)
    swaps = []
    for category in arguments.swaps:
        train, test = load(category, arguments.data_root)
        one.fit(train[:16])  # 12 of them set the threshold
        queries = unseen_products.read_queries(test, one.resize, len(test))
        support = choose_support(train[:16], one.settings.k, one.settings.seed)[0]
        swaps += unseen_products.context_swaps("trained", one, support, queries, category, seed)
    if swaps:
        swaps = studies.write_rows("relative_context_swap", pd.DataFrame(swaps), ["category"], float_format="%.4f")
        print(swaps.round(2).to_string())
    found = pd.read_csv(studies.results_dir() / "studies" / "relative.csv")
    table = found.pivot_table(index=["k", "detector", "products"], columns="category", values="image_auroc", sort=False)
    print((100 * table.assign(target=table[[c for c in TARGETS if c in table]].mean(axis=1))).round(1).to_string())


if __name__ == "__main__":
    main()
