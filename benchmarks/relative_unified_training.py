"""What does training add to the unified model? One change at a time, judged by products that the training left out.

    python benchmarks/relative_unified_training.py [--judges gear grass tray] [--seeds 0] [--only NAME ...]

Each judge in turn is left out; the model is trained on the other demo products and asked at every `--every` steps about
synthetic defects on the judge's normals, step 0 included. No test image is read, so that settings may be chosen by the
result, results/studies/unified_training.csv: one row a change, judge, seed and step.
"""

import argparse
import time

import pandas as pd

from adlib import profiles
from adlib.methods.few_shot import episodic_training
from adlib.methods.few_shot.few_shot import FewShot
from adlib.methods.few_shot.support_images import choose_support
from adlib.methods.few_shot.unified import Unified
from adlib_book import studies
from adlib_book.studies import unseen_products

# name: changes of settings; what is no setting is done in `study`
CHANGES = {
    "as set": {},
    "no contrastive loss": {"loss_weights": [0.0, 0.25, 0.1]},
    "mean of all positives": {"contrastive": "focal"},
    "no image loss": {"loss_weights": [0.5, 0.0, 0.1]},
    "no calibration loss": {"loss_weights": [0.5, 0.25, 0.0]},
    "no context swaps": {"swap": 0.0},
    "no foreign normals": {},
    "head only": {},
    "projection only": {},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "four-shot supports only": {"shots": [4]},
    "no directions": {"whiten": 1.0},
    "few-shot similarity": {},  # the other method that is trained on episodes, for comparison
}
FROZEN = {"head only": "projection", "projection only": "head"}


def make_pools(method: Unified, tables: dict, foreign: bool) -> dict:
    """Make one pool of episodes a demo product."""
    paths, s = {name: list(table.image_path[:20]) for name, table in tables.items()}, method.settings
    return {
        name: episodic_training.build_pool(
            table,
            method.cached,
            method.resize,
            seed=0,
            grid=method.grids()[0],
            foreign=[p for other, part in paths.items() if other != name for p in part] if foreign else (),
            n_normals=s.pool[0],
            n_styles=s.pool[1],
        )
        for name, table in tables.items()
    }


def study(change: str, pools: dict, products: dict, judge: str, seed: int, common: dict) -> pd.DataFrame:
    """Train without the product `judge`; return what its judge says at every validation."""
    name, cls = ("few_shot", FewShot) if change == "few-shot similarity" else ("unified", Unified)
    method = cls(**profiles.method_settings("smoke", name) | common | CHANGES[change] | {"seed": seed})
    if change in FROZEN:
        method.modules[FROZEN[change]].requires_grad_(False)
    others = [pool for name, pool in pools.items() if name != judge]
    method.train_episodes(None, pools=others, products=[products[judge]])
    return method.history.validation.drop(columns="seconds").assign(change=change, judge=judge, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judges", nargs="*", default=["gear", "grass", "tray"], choices=unseen_products.DEMO)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--only", nargs="*", choices=CHANGES, help="only these changes; other rows of the file stay")
    arguments = parser.parse_args()
    started, chosen = time.perf_counter(), arguments.only or list(CHANGES)
    common = {"steps": arguments.steps, "snapshot_every": arguments.every, "selection": "last"}
    method = Unified(**profiles.method_settings("smoke", "unified") | common)
    common["image_size"] = method.settings.image_size  # pools and judges serve both methods
    tables = {name: unseen_products.load(name)[0] for name in unseen_products.DEMO}
    products = {}
    for name in arguments.judges:
        parts = choose_support(tables[name], max(method.settings.shots), 0)
        products[name] = episodic_training.make_product(*parts, method.resize, seed=0)
    pools = make_pools(method, tables, foreign=True)
    for change in chosen:
        trained_on = pools
        if change == "no foreign normals":
            trained_on = make_pools(method, tables, foreign=False)
        rows = [
            study(change, trained_on, products, judge, seed, common)
            for judge in arguments.judges
            for seed in arguments.seeds
        ]
        answers = pd.concat(rows)
        print(f"{time.perf_counter() - started:5.0f} s {change}", flush=True)
        print(answers.groupby("step")[["image_auroc", "cell_ap"]].mean().round(4).T.to_string(), flush=True)
        studies.write_rows("unified_training", answers, keys=["change"], float_format="%.4f")


if __name__ == "__main__":
    main()
