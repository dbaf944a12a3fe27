"""The methods, one file per paper, all behind one small contract.

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


class Entry(NamedTuple):
    """What there is to know of a method before its code is loaded.

    Attributes:
        module, class_name: its class.
        notebook: the one that teaches it, and that a batch runs for it.
        color, marker: of its lines and marks in every figure.
        published: rows of published numbers to hold it against, the closest protocol first; "{shots}" stands for the
            number of images that it was shown.
        shots: the setting that says how many normal images it sees; "" where it sees all.
        backbone: the default of its setting of that name, for `adlib plan`; "" where it has none.
    """

    module: str
    class_name: str
    notebook: str
    color: str
    marker: str
    published: tuple[str, ...] = ()
    shots: str = ""
    backbone: str = "wide_resnet50_2.tv_in1k"


# A new method is one entry here, one file and one notebook. The colours are those of a colour-blind-safe palette, with
# black; its pink and its yellow are too pale for a line: wine and a darker yellow instead.
METHODS = {
    "patchcore": Entry("adlib.methods.patchcore", "PatchCore", "10_patchcore", "#000000", "o",
                       published=("PatchCore-10% (official code)", "PatchCore-10%")),
    "glass": Entry("adlib.methods.glass.glass", "Glass", "16_glass", "#d55e00", "P",
                   published=("GLASS-j", "GLASS (anomalib)")),
    "few_shot": Entry("adlib.methods.few_shot.few_shot", "FewShot", "11_few_shot", "#56b4e9", "<",
                      published=("AnomalyGPT {shots}",), shots="k", backbone="swin_tiny_patch4_window7_224.ms_in1k"),
    "padim": Entry("adlib.methods.padim", "Padim", "11a_padim", "#882255", "s", published=("PaDiM-WR50-Rd550",)),
    "spade": Entry("adlib.methods.spade", "Spade", "11b_spade", "#949494", "D", published=("SPADE",)),
    "ulsad": Entry("adlib.methods.ulsad.ulsad", "ULSAD", "14_ulsad", "#0173b2", "X",
                   published=("ULSAD",), backbone="wide_resnet50_2.racm_in1k"),
    "dfr": Entry("adlib.methods.dfr", "DFR", "14b_dfr", "#ca9161", "^", backbone="vgg19.tv_in1k"),
    "contrastive": Entry("adlib.methods.few_shot.contrastive", "Contrastive", "12_contrastive", "#cc78bc", ">",
                         backbone="swin_tiny_patch4_window7_224.ms_in1k"),
    "unified": Entry("adlib.methods.few_shot.unified", "Unified", "13_unified", "#d8c51b", "d", shots="k",
                     backbone="swin_tiny_patch4_window7_224.ms_in1k"),
    "pagmfr": Entry("adlib.methods.pagmfr.pagmfr", "PAGMFR", "15_pagmfr", "#029e73", "*", published=("PAGMFR",)),
    "draem": Entry("adlib.methods.draem", "DRAEM", "15a_draem", "#de8f05", "v", published=("DRAEM",), backbone=""),
}  # fmt: skip


class Scores(NamedTuple):
    """Anomaly scores of a batch, higher is more anomalous.

    Attributes:
        image: float32 (B,), one score per image.
        map: float32 (B, H, W), one score per pixel of the network input.
    """

    image: np.ndarray
    map: np.ndarray


def get(name: str):
    """Return the class of a method by name."""
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown{suggest(name, METHODS)}; choose one of {', '.join(METHODS)}")
    entry = METHODS[name]
    return getattr(importlib.import_module(entry.module), entry.class_name)


def create(name: str, **settings):
    """Create an unfitted method with some settings changed."""
    return get(name)(**settings)


def load(path):
    """Load a fitted method of any kind from the folder that `save` wrote."""
    from adlib.methods.storage import read_header

    return get(read_header(path)["method"]).load(path)
