"""The methods, one file a paper, all behind one small contract.

    method = methods.create("patchcore", coreset=0.02)     # settings: one frozen dataclass, unknown ones are errors
    method.fit(train)                                      # a sample table of normal training images
    scores = method.score(batch)                           # Scores(image (B,), map (B, H, W))
    method.save("model/"); methods.load("model/")

A method sees normal training images only; `datasets.check_training_table` refuses anything else. Thresholds, selection
and quantiles come from normal images that it was not trained on; `normals.split_normals` puts them aside.
"""

import importlib
from typing import NamedTuple

import numpy as np

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
