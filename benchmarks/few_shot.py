"""What does it take to judge one image by four? Few-shot similarity and the unified model, Lite0 at 256 px.

    python benchmarks/few_shot.py

`ours` keeps the context, as `score(query, context)` is meant to be used; `theirs` is the plain way that makes it anew
from the four images for every query. One image at a time, from pixels to map; medians. The aim is 60 ms on two cores.
"""

import statistics
import time

import numpy as np
import torch

SIZE, LIMIT = 256, 60.0  # pixels, ms


def median_ms(function, repeats: int) -> float:
    """Median time of a call, after two to warm up."""
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[2:])


def main(repeats: int = 30) -> list[dict]:
    """Return the rows of results/benchmarks.csv."""
    from adlib import datasets, images, profiles
    from adlib.methods import create

    table = datasets.load("demo", None, "brick")
    train, test = table[table.split == "train"], table[table.split == "test"]
    rows = []
    for name in ("few_shot", "unified"):
        changes = {"image_size": SIZE, "resize": "stretch"}
        method = create(name, **profiles.method_settings("laptop", name, changes))
        method.fit(train)
        support = next(images.batches(train.image_path[:4], method.resize, 4)).images
        query = next(images.batches(test.image_path[:1], method.resize, 1)).images
        context = method.condition(support)
        ours = median_ms(lambda: method.score(query, context), repeats)  # noqa: B023 - called at once
        anew = median_ms(lambda: method.score(query, method.condition(support)), max(3, repeats // 5))  # noqa: B023
        again = method.score(query, method.condition(support))
        assert np.allclose(again.map, method.score(query, context).map, atol=1e-4)
        rows.append(
            {
                "benchmark": f"{name}: a query against a 4-shot context",
                "size": f"Lite0, {SIZE} px, threads {torch.get_num_threads()}",
                "ours": round(ours, 1),
                "theirs": round(anew, 1),
                "ratio": round(anew / ours, 2),
                "unit": "ms",
                "note": f"theirs: context made anew for each query; aim below {LIMIT:.0f} ms: "
                + ("met" if ours < LIMIT else "missed"),
            }
        )
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
