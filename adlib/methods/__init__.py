"""The methods, one file a paper, all behind one small contract.

    method = methods.create("patchcore", coreset=0.02)     # settings: one frozen dataclass, unknown ones are errors
    method.fit(train)                                      # a sample table of normal training images
    scores = method.score(batch)                           # Scores(image (B,), map (B, H, W))
    method.save("model/"); methods.load("model/")

A method sees normal training images only; `datasets.check_training_table` refuses anything else. Thresholds, selection
and quantiles come from normal images that it was not trained on; `split_normals` puts them aside.
"""

import importlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from adlib.errors import InputError, suggest

# name -> (module, class). A new method is one line here and one file.
METHODS = {
    "patchcore": ("adlib.methods.patchcore", "PatchCore"),
    "glass": ("adlib.methods.glass.glass", "Glass"),
    "few_shot": ("adlib.methods.few_shot.few_shot", "FewShot"),
    "padim": ("adlib.methods.padim", "Padim"),
    "spade": ("adlib.methods.spade", "Spade"),
    "ulsad": ("adlib.methods.ulsad.ulsad", "ULSAD"),
    "dfr": ("adlib.methods.dfr", "DFR"),
    "contrastive": ("adlib.methods.few_shot.contrastive", "Contrastive"),
    "unified": ("adlib.methods.few_shot.unified", "Unified"),
    "pagmfr": ("adlib.methods.pagmfr.pagmfr", "PAGMFR"),
    "draem": ("adlib.methods.draem", "DRAEM"),
}


class Scores(NamedTuple):
    """Anomaly scores of a batch, higher is more anomalous.

    Attributes:
        image: float32 (B,), one score an image.
        map: float32 (B, H, W), one score a pixel of the network input.
    """

    image: np.ndarray
    map: np.ndarray


def get(name: str):
    """Return the class of a method by name."""
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown{suggest(name, METHODS)}; choose one of {', '.join(METHODS)}")
    module, cls = METHODS[name]
    return getattr(importlib.import_module(module), cls)


def create(name: str, **settings):
    """Create an unfitted method with some settings changed."""
    return get(name)(**settings)


def load(path):
    """Load a fitted method of any kind from the folder that `save` wrote."""
    from adlib.methods.storage import read_header

    return get(read_header(path)["method"]).load(path)


def split_normals(table: pd.DataFrame, settings, validation=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split normal images into (train, held out): to fit on, and to set thresholds and judge training by.

    `validation`, where given, is held out and `table` trained on. Else `settings.hold_out` of the table, at least two
    images (a threshold needs two) and at most all but two. Of fewer than four images none: a fit needs them more.

    Raises:
        InputError: an anomalous or a test image in either table.
    """
    from adlib.datasets import check_training_table, hold_out  # they load torch

    check_training_table(table)
    if validation is not None:
        check_training_table(validation, "the validation table")
        return table, validation
    if len(table) < 4:
        return table, table.iloc[:0]
    least = 2 / len(table)
    return hold_out(table, min(max(settings.hold_out, least), 1 - least), settings.seed)


def without_selection(settings, held_out: pd.DataFrame):
    """Settings of a training that keeps its last weights where nothing is held out to select others by."""
    if len(held_out):
        return settings
    if settings.selection != "last":
        print(f"selection {settings.selection!r} needs held-out normal images, and there are none: last", flush=True)
    return replace(settings, selection="last", validate_every=0)


def collect(found) -> tuple[np.ndarray, np.ndarray]:
    """Image scores and map maxima, float32 (n,) each, of `Scores` of batches of normal images; empty of none."""
    none = np.zeros(0, np.float32)
    rows = [(none, none), *((scores.image, scores.map.max(axis=(1, 2))) for scores in found)]
    return tuple(np.concatenate(part) for part in zip(*rows, strict=True))
