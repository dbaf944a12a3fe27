"""Which method for these parts? Every method is fitted to good images and judged without a label.

    adlib compare -i parts/good -o out/comparison        adlib train --minutes 10 -i parts/good -o model/

Some images are held out from all methods and damaged by code, by families of pseudo-anomalies that no method trains on
(`adlib.synthesis.judge`); the method that tells damaged from clean best is first. Each runs in a process of its own:
what it takes is measured there, and one that fails costs the others nothing.
"""

import functools
import json
import multiprocessing
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from adlib import methods, own_parts, profiles
from adlib.datasets import hold_out
from adlib.errors import InputError
from adlib.images import Batch, Resize, aspect_size, bit_depth_of, to_tensor
from adlib.images.features import peak_memory_mib
from adlib.paths import atomic_path, results_dir
from adlib.settings import choice
from adlib.synthesis.judge import N_IMAGES, Judge
from adlib_book import costs, figures, image_figures

SHARE = 0.2  # of the images, held out from all methods; no more than the judge shows
SIDE = 256  # damages are drawn at this size, the same for every method
NOT_TRIED = {"reason": "not tried: no time was left"}
COLUMNS = ("method", "score", "image_auroc", "pixel_ap", "fit_s", "score_ms_per_image", "peak_memory_mib", "model_mb")


def compare(folder, out=None, names=None, minutes=None, profile: str = "laptop", then_train: bool = False):
    """Fit methods to a folder of good images and judge them; write a table, a picture and the facts.

    Args:
        folder: good images, nested or not; at least four.
        out: folder for `comparison.json` (renewed after each method) and `comparison.png`; default below the results.
        names: methods; default all of the profile.
        minutes: for everything. Methods are tried cheapest first, and those that no time is left for are named.
        then_train: leave time to fit the winner once more.

    Returns:
        a table of one row per method, best first (`COLUMNS`, `reason` where it has no score), and the folder of files.

    Raises:
        InputError: unknown method, fewer than four images, an output folder in the input folder.
    """
    started = time.monotonic()
    names = list(names or profiles.load(profile)["methods"])
    for name in names:
        choice("method", name, methods.METHODS)
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes {minutes} must be above 0; leave it out for no limit")
    out = Path(out or results_dir() / "compare" / Path(folder).resolve().name)
    own_parts.keep_apart(out, folder)
    table, unreadable = own_parts.normal_table(folder)
    if len(table) < 4:
        raise InputError(f"{folder}: {len(table)} images are too few to compare; give at least 4, or a --method")
    fit, held_out = hold_out(table, max(2 / len(table), min(SHARE, N_IMAGES / 2 / len(table))))
    size, _ = aspect_size(fit.image_path, SIDE)
    judge = judge_of(held_out, Resize(size, bit_depth=bit_depth_of(fit.image_path)))
    facts = {"input": str(folder), "profile": profile, "minutes": minutes, "skipped": unreadable}
    facts |= {"n_fit": len(fit), "n_held_out": len(held_out), "n_judged": len(judge.labels), "methods": []}
    for name in sorted(names, key=lambda name: costs.read(profile, name).minutes):
        begun = time.monotonic()
        left = np.inf if minutes is None else 60 * minutes - (begun - started)
        if then_train:  # afterwards this one or the best so far is fitted again
            left = min(left / 2, left - sum(row["seconds"] for row in facts["methods"][:1]))
        row = {"method": name, **(_attempt(name, profile, fit, judge, left) if left > 0 else NOT_TRIED)}
        row["seconds"] = round(time.monotonic() - begun, 1)
        facts["methods"] = ranked([*facts["methods"], row])
        print(_line(row), flush=True)
        with atomic_path(out / "comparison.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    result = pd.DataFrame(facts["methods"]).reindex(columns=[*COLUMNS, "reason"])
    image_figures.use_style()
    with atomic_path(out / "comparison.png") as temporary:
        figures.time_accuracy_memory(result, "score", f"{folder}: {len(fit)} good images").savefig(temporary)
    return result, out


def judge_of(held_out: pd.DataFrame, resize: Resize) -> Judge:
    """Who holds methods against each other: by the one family that is akin to none that a method trains on."""
    return Judge(held_out, resize, families=("memseg",), draws=4)  # four: of one the order is half luck


def ranked(rows) -> list[dict]:
    """Rows of methods, best first: by score, of equal scores the faster to fit, and then those that have none."""
    return sorted(rows, key=lambda row: (-row.get("score", -1), row.get("fit_s", 0)))


def winner(folder, minutes: float, profile: str) -> str:
    """Return the method for a folder of good images; it and the comparison take so many minutes together."""
    table, out = compare(folder, None, None, minutes, profile, then_train=True)
    best = table.iloc[0]
    if pd.isna(best.score):
        raise InputError(f"no method was judged ({best.method}: {best.reason}); give more --minutes, or a --method")
    print(f"method: {best.method}, see {out}")
    return best.method


def _line(row: dict) -> str:
    if "reason" in row:
        return f"{row['method']:12s} {row['reason']}"
    values = f"score {row['score']:.3f}  fit {row['fit_s']:.0f} s  {row['score_ms_per_image']:.0f} ms/image"
    return f"{row['method']:12s} {values}  {row['peak_memory_mib']:.0f} MiB  model {row['model_mb']:.1f} MB"


def _attempt(name: str, profile: str, fit: pd.DataFrame, judge: Judge, seconds: float) -> dict:
    """Judge a method in a process of its own, for so many seconds at most: its row, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as place:
        arguments = (name, profile, fit, judge, place)
        process = multiprocessing.get_context("spawn").Process(target=rate, args=arguments)
        process.start()
        try:
            process.join(None if np.isinf(seconds) else seconds)
            if process.is_alive():
                return {"reason": f"stopped: not done after the {seconds:.0f} s that were left"}
        finally:
            if process.is_alive():
                process.kill()
            process.join()
        file = Path(place, "row.json")
        if file.is_file():
            return json.loads(file.read_text())
        killed = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"
        return {"reason": f"failed: its process ended ({killed}); memory may have run out"}


def rate(name: str, profile: str, fit: pd.DataFrame, judge: Judge, place) -> None:
    """Fit a method, let the judge rate it and write its row to `place`, or the reason why it failed."""
    tqdm.set_lock(threading.RLock())  # the default one is a semaphore, which outlives a process that is stopped
    try:
        start = time.perf_counter()
        settings = profiles.shaped(name, profiles.method_settings(profile, name), fit.image_path)
        fitted = methods.create(name, **settings).fit(fit)
        fit_s = time.perf_counter() - start
        start = time.perf_counter()
        scores, maps = zip(*map(functools.partial(_score, fitted), judge.images), strict=True)
        ms = 1000 * (time.perf_counter() - start) / len(scores)
        fitted.save(Path(place, "model"))
        n_bytes = sum(file.stat().st_size for file in Path(place, "model").iterdir())
        row = judge.rate(scores, maps) | {"fit_s": fit_s, "score_ms_per_image": ms}
        row |= {"peak_memory_mib": peak_memory_mib(), "model_mb": n_bytes / 1e6}
        row = {key: round(float(value), 4) for key, value in row.items()}
    except Exception as error:
        row = {"reason": " ".join(f"failed: {type(error).__name__}: {error}".split())}
    with atomic_path(Path(place, "row.json")) as temporary:
        temporary.write_text(json.dumps(row))


def _score(fitted, image: np.ndarray) -> tuple[float, np.ndarray]:
    """Score of an image and its map at the image's size; what a crop hid is as normal as anything there."""
    prepared, geometry = fitted.resize.image(image)
    scores = fitted.score(Batch(to_tensor([prepared]), ("",), (geometry,)))
    anomaly_map = geometry.to_original(scores.map[0])
    return scores.image[0], np.nan_to_num(anomaly_map, nan=np.nanmin(anomaly_map))
