"""Learning curves: every snapshot of a training evaluated on the test set, and who would choose which.

    curve = snapshot_metrics(method, run.test)    step, seconds, metrics
    chosen = selections(curve, method.history)        last, synthetic, oracle (best on test)

For pictures and for the column that is *not* the result: what a method returns was chosen before any test image was
seen (`selection` in its settings).
"""

import contextlib

import numpy as np
import pandas as pd

from adlib import evaluation
from adlib.errors import InputError
from adlib.support import pixel_hash

METRICS = ("image_auroc", "pixel_auroc", "aupro_30")
ORACLE = "oracle (best on test)"


def snapshot_metrics(method, table: pd.DataFrame, max_memory: float = 2.0) -> pd.DataFrame:
    """Test metrics of every snapshot, a row each: step, seconds of training until then, and `METRICS` as fractions.

    The backbone is frozen, so each test image goes through it once. Afterwards the method has the weights of its last
    snapshot whose step is the selected one, or of the last.

    Args:
        method: fitted with `snapshot_every`; has `history`, `use_snapshot` and `backbone`.
        table: rows of split "test".
        max_memory: GiB of features to keep; further ones are computed again.

    Raises:
        InputError: the method kept no snapshots.
    """
    history = method.history
    if not history.snapshots:
        raise InputError(
            "there are no snapshots to evaluate; set snapshot_every, for example to a quarter of the steps"
        )
    rows = []
    with remembered(method.backbone, max_memory):
        for step, states in history.snapshots:
            method.use_snapshot(states)
            found = evaluation.evaluate(method, table).metrics
            rows.append({"step": step, "seconds": _seconds(history, step), **{name: found[name] for name in METRICS}})
    states = dict(history.snapshots)
    method.use_snapshot(states.get(history.selected_step, history.snapshots[-1][1]))
    return pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))


def selections(curve: pd.DataFrame, history) -> dict[str, int]:
    """Rows of `curve` that would be kept: the last; the best on held-out pseudo-anomalies; the best on the test set.

    The second is missing where nothing was validated at the snapshots' steps. The third is the published protocol of
    many papers: the largest sum of image and pixel AUROC. It knows the answers.
    """
    chosen = {"last": len(curve) - 1}
    if len(history.validation):
        held_out = history.validation.set_index("step").score.reindex(curve.step).to_numpy()
        if np.isfinite(held_out).any():
            chosen["synthetic"] = int(np.nanargmax(held_out))
    chosen[ORACLE] = int((curve.image_auroc.fillna(0) + curve.pixel_auroc.fillna(0)).to_numpy().argmax())
    return chosen


@contextlib.contextmanager
def remembered(backbone, max_memory: float = 2.0):
    """Within the block, a frozen backbone returns what it returned before for the same batch (up to so many GiB)."""
    kept, room, forward, own = {}, [max_memory * 2**30], backbone.forward, "forward" in vars(backbone)

    def remembering(images):
        key = pixel_hash(images.cpu())
        if key in kept:
            return kept[key]
        features = forward(images)
        size = sum(feature.numel() * feature.element_size() for feature in features)
        if size <= room[0]:
            kept[key], room[0] = features, room[0] - size
        return features

    backbone.forward = remembering
    try:
        yield
    finally:
        del backbone.forward
        if own:
            backbone.forward = forward


def _seconds(history, step: int) -> float:
    """Training time until a step: its share of the steps, validations included."""
    return round(history.seconds * step / len(history.losses), 1)
