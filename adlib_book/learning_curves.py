"""Learning curves: every snapshot of a training evaluated on the test set, and who would choose which.

    curve = snapshot_metrics(method, run.test)        step, seconds, metrics
    chosen = selections(curve, method.history)        last, synthetic, oracle (best on test)
    run.write(result, **as_record(curve, chosen))     into the run's record
    recorded("glass", "laptop")                       out of the records again, all categories and seeds

For pictures and for the column that is *not* the result: what a method returns was chosen before any test image was
seen (`selection` in its settings).
"""

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd

from adlib import evaluation, runs
from adlib.methods.few_shot.support_images import pixel_hash
from adlib.paths import results_dir

METRICS = ("image_auroc", "pixel_auroc", "aupro_30")
ORACLE = "oracle (best on test)"


def snapshot_metrics(method, table: pd.DataFrame, max_memory: float = 2.0) -> pd.DataFrame:
    """Test metrics of every snapshot, a row each: step, seconds of training until then, and `METRICS` as fractions.

    The backbone is frozen, so each test image goes through it once. Afterwards the method has its chosen weights
    again. A method that kept no snapshots has one row, of its weights as they are.

    Args:
        method: fitted; has `history`, `use_snapshot` and, where it looks through a frozen one, `backbone`.
        table: rows of split "test".
        max_memory: GiB of features to keep; further ones are computed again.
    """
    history, rows = method.history, []
    snapshots = dict(history.snapshots) or {len(history.losses): None}
    backbone = getattr(method, "backbone", None)  # DRAEM has none
    with contextlib.nullcontext() if backbone is None else remembered(backbone, max_memory):
        for step, states in snapshots.items():
            if states is not None:
                method.use_snapshot(states)
            values = evaluation.evaluate(method, table).metrics
            rows.append({"step": step, "seconds": _seconds(history, step), **{name: values[name] for name in METRICS}})
        if len(snapshots) > 1:
            method.use_snapshot(snapshots[history.selected_step])
    return pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))


def held_out_scores(curve: pd.DataFrame, history) -> np.ndarray:
    """Score on held-out pseudo-anomalies at each row of `curve`; NaN where nothing was validated at that step."""
    if not len(history.validation):
        return np.full(len(curve), np.nan)
    return history.validation.set_index("step").score.reindex(curve.step).to_numpy()


def selections(curve: pd.DataFrame, history) -> dict[str, int]:
    """Rows of `curve` that would be kept: the last; the best on held-out pseudo-anomalies; the best on the test set.

    The second is missing where nothing was validated at the snapshots' steps. The third is the published protocol of
    many papers: the largest sum of image and pixel AUROC. It knows the answers.
    """
    rows, held_out = {"last": len(curve) - 1}, held_out_scores(curve, history)
    if len(curve) == 1:  # where there is one candidate, nothing was chosen
        return rows
    if np.isfinite(held_out).any():
        rows["synthetic"] = int(np.nanargmax(held_out))
    rows[ORACLE] = int((curve.image_auroc.fillna(0) + curve.pixel_auroc.fillna(0)).to_numpy().argmax())
    return rows


def as_record(curve: pd.DataFrame, rows: dict[str, int]) -> dict:
    """`learning_curve` and `selections` in JSON types, for `runs.Run.write`; what is undefined is None."""

    def plain(value):
        return None if pd.isna(value) else round(float(value), 6)

    return {
        "learning_curve": {name: [plain(value) for value in curve[name]] for name in curve},
        "selections": {name: {key: plain(curve[key][i]) for key in curve} for name, i in rows.items()},
    }


def recorded(method: str, profile: str, folder=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learning curves and selections of all records of a method below `results/runs` (or `folder`).

    Returns:
        curves (category, seed, step, seconds, metrics) and selections (category, seed, selection, step, metrics);
        both empty where there is no record that holds them.
    """
    curves, selections = [], []
    folder = Path(folder) if folder else results_dir() / "runs"
    for file in sorted((folder / profile / method).glob("*/record.json")):
        record = runs.read_record(file.parent)
        if "learning_curve" not in record:
            continue
        who = {"category": record["category"], "seed": record["seed"]}
        curve = pd.DataFrame(record["learning_curve"])
        curve = curve.reindex(columns=["step", "seconds", *METRICS])  # older records had no seconds
        curves.append(curve.assign(**who))
        selections += [who | {"selection": name} | values for name, values in record["selections"].items()]
    return (pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()), pd.DataFrame(selections)


def over_seeds(table: pd.DataFrame, keys: list[str], columns=METRICS) -> pd.DataFrame:
    """Mean and standard deviation in percent over the seeds ("85.1 ± 2.0"), one row per group of `keys`."""
    grouped = 100 * table.groupby(keys, sort=False)[list(columns)].agg(["mean", "std"]).astype(float)
    cells = {
        name: [f"{m:.1f} ± {d:.1f}" if d == d else f"{m:.1f}" if m == m else "" for m, d in grouped[name].to_numpy()]
        for name in columns
    }
    return pd.DataFrame(cells, index=grouped.index).assign(seeds=table.groupby(keys, sort=False).size())


@contextlib.contextmanager
def remembered(backbone, max_memory: float = 2.0):
    """Within the block, a frozen backbone returns what it returned before for the same call (up to so many GiB)."""
    cache, room, forward, own = {}, [max_memory * 2**30], backbone.forward, "forward" in vars(backbone)

    def cached_forward(images, **options):
        key = pixel_hash(images.cpu()), *options.items()
        if key in cache:
            return cache[key]
        features = forward(images, **options)
        size = sum(feature.numel() * feature.element_size() for feature in features)
        if size <= room[0]:
            cache[key], room[0] = features, room[0] - size
        return features

    backbone.forward = cached_forward
    try:
        yield
    finally:
        del backbone.forward
        if own:
            backbone.forward = forward


def _seconds(history, step: int) -> float:
    """Training time until a step: its share of the steps, validations included."""
    return round(history.seconds * step / len(history.losses), 1)
