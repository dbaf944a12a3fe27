"""Break each method on purpose and count the claims that its notebook loses: a check that cannot fail is worthless.

    python benchmarks/sabotage.py [--methods patchcore glass] [--jobs 2]        (make sabotage; about half an hour)

    negated   every score and map has its sign turned: normal is called anomalous
    shifted   every map is moved by a third of the image: the image score stands, the place is wrong
    skipped   no optimiser takes a step; a method without training is fitted to the first image alone

First the result of the notebook is run (the cells up to the record); where that loses no claim, the whole notebook.
Prints a table of lost claims and writes `results/studies/sabotage.csv`; exit code 1 where a breakage loses none.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

BREAKAGES = ("none", "negated", "shifted", "skipped")


@contextlib.contextmanager
def broken(name: str, breakage: str):
    """Break a method, every instance of it, for as long as the block lasts."""
    import numpy as np
    import torch

    from adlib import methods
    from adlib.methods import training

    cls = methods.get(name)
    score, fit, train = cls.score, cls.fit, training.train

    def broken_score(self, batch):
        scores = score(self, batch)
        if breakage == "negated":
            return methods.Scores(-scores.image, -scores.map)
        return methods.Scores(scores.image, np.roll(scores.map, [side // 3 for side in scores.map.shape[1:]], (1, 2)))

    def fit_to_one(self, table, *args, **options):
        return fit(self, table.iloc[:1], *args, **options)

    def train_nothing(modules, optimizers, *args, **options):
        for optimizer in optimizers:
            optimizer.step = lambda *_, **__: None
        return train(modules, optimizers, *args, **options)

    with contextlib.ExitStack() as stack:
        if breakage in ("negated", "shifted"):
            stack.enter_context(mock.patch.object(cls, "score", broken_score))
        elif breakage == "skipped" and name in ("patchcore", "padim", "spade"):
            stack.enter_context(mock.patch.object(cls, "fit", fit_to_one))
        elif breakage == "skipped":
            stack.enter_context(mock.patch.object(training, "train", train_nothing))
        torch.set_num_threads(1)
        yield


def lost(name: str, breakage: str) -> dict:
    """Run a method's notebook with the method broken; return the claims that it made and lost, and the seconds."""
    from adlib import methods
    from adlib_book import cells, claims

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, broken(name, breakage):
        os.environ |= {"ADLIB_RESULTS": folder, "ADLIB_FIGURES": folder}
        parameters, notebook = {"out_dir": f"{folder}/run"}, methods.METHODS[name].notebook
        for story in (False, True):
            try:
                text, error = cells.run(notebook, parameters, story=story)[1], ""
            except Exception as problem:  # a notebook that stops has noticed, too
                text, error = "", f"{type(problem).__name__}: {problem}"
            gone = claims.lost(text) + ([error] if error else [])
            if gone and breakage != "none":
                break
    seconds = round(time.perf_counter() - started)
    part = "story" if story else "result"
    return {"method": name, "breakage": breakage, "held": len(claims.held(text)), "lost": len(gone), "part": part,
            "seconds": seconds, "first": gone[0] if gone else ""}  # fmt: skip


def main() -> int:
    import pandas as pd

    from adlib import methods
    from adlib.paths import atomic_path, root

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(methods.METHODS), choices=list(methods.METHODS))
    parser.add_argument("--breakages", nargs="*", default=list(BREAKAGES), choices=BREAKAGES)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks = [(name, breakage) for name in options.methods for breakage in options.breakages]
    rows = []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(lost, *zip(*tasks, strict=True)):
            rows.append(row)
            print(
                "{method:12s} {breakage:8s} {part:6s} held {held:2d} lost {lost:2d} {seconds:4d} s  {first}".format(
                    **row
                )
            )
    table = pd.DataFrame(rows)
    print(table.pivot(index="method", columns="breakage", values="lost").to_string())
    if set(options.methods) == set(methods.METHODS):
        with atomic_path(root() / "results" / "studies" / "sabotage.csv") as temporary:
            table.drop(columns="seconds").to_csv(temporary, index=False)
    wrong = [row for row in rows if (row["lost"] == 0) != (row["breakage"] == "none")]
    for row in wrong:
        print(f"{row['method']}, {row['breakage']}: {row['lost']} claims lost", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
