"""Normal images that a method is not fitted to: what thresholds, quantiles and selection rest on."""

from dataclasses import replace

import numpy as np
import pandas as pd

from adlib.datasets import check_training_table, hold_out
from adlib.errors import InputError
from adlib.images import batches


def split_normals(table: pd.DataFrame, settings, validation=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split normal images into (train, held out): to fit on, and to set thresholds and judge training by.

    `validation`, where given, is held out and `table` trained on. Else `settings.hold_out` of the table, at least two
    images (a threshold needs two) and at most all but two. Of fewer than four images none: a fit needs them more.

    Raises:
        InputError: an anomalous or a test image in either table.
    """
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
    return replace(settings, selection="last")


def collect(scored) -> tuple[np.ndarray, np.ndarray]:
    """Image scores and map maxima, float32 (n,) each, of `Scores` of batches of normal images; empty of none."""
    none = np.zeros(0, np.float32)
    rows = [(none, none), *((scores.image, scores.map.max(axis=(1, 2))) for scores in scored)]
    return tuple(np.concatenate(part) for part in zip(*rows, strict=True))


def score_normals(method, table: pd.DataFrame, batch_size: int = 8) -> None:
    """Set `normal_scores` and `normal_map_maxima` of a fitted method: its scores of normal images it has not seen."""
    images = batches(table.image_path, method.resize, batch_size)
    method.normal_scores, method.normal_map_maxima = collect(method.score(batch) for batch in images)


def check_held_out(method, what: str = "use_snapshot") -> None:
    """Refuse to score the held-out normals again where there are none: `fit` keeps them, a saved model does not."""
    if not hasattr(method, "_held_out"):
        raise InputError(f"{what} needs the held-out images of fit; they are not saved with a model")
