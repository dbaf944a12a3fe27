"""The testing step of `12_contrastive`: its decisions at a threshold, its clustering of each image, other clusterings.

    decisions(result, image_line, pixel_line)      accuracy, F1, false alarms, pixel F1 and IoU, overall and by kind
    diagnose(method, test)                         one row per image: clusters, noise, separation, gate, wrong side
    compare(grids, labels, reference)              one row per algorithm and rule, on features that stay the same

All read labels and masks of a test set, after everything has been chosen.
"""

import itertools
import time

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from adlib import datasets, images
from adlib.evaluation import Evaluation
from adlib.images import clustering


def decisions(result: Evaluation, image_line: float, pixel_line: float) -> pd.DataFrame:
    """Describe the decisions score > line, image by image and pixel by pixel.

    Args:
        result: of `evaluation.evaluate`, at input size.
        image_line, pixel_line: thresholds from held-out normals, of image scores and of maps.

    Returns:
        one row per kind of defect, `all` and `oracle`: n, its images; accuracy, f1, false_alarms (share of good images
        above the line), found (share of defective ones); pixel_f1, pixel_iou. A kind is judged among all good images,
        its pixels in its own images alone. `oracle` is the best F1 that any threshold reaches on this test set, which
        nobody can know beforehand. NaN where there are no masks, or nothing to count.
    """
    scores = result.scores
    kinds = sorted(scores.defect[scores.label == 1].unique())
    members = {kind: (scores.label == 0) | (scores.defect == kind) for kind in kinds}
    members["all"] = scores.label.notna()
    rows = {}
    for name, rows_of in members.items():
        label, flagged = scores.label[rows_of] == 1, scores.score[rows_of] > image_line
        row = {
            "n": len(label) if name == "all" else int(label.sum()),
            "accuracy": (flagged == label).mean(),
            "f1": _ratio(2 * (flagged & label).sum(), flagged.sum() + label.sum()),
            "false_alarms": _ratio((flagged & ~label).sum(), (~label).sum()),
            "found": _ratio((flagged & label).sum(), label.sum()),
        }
        inside = rows_of if name == "all" else rows_of & (scores.label == 1)
        rows[name] = row | _pixel_decisions(result, np.flatnonzero(inside), pixel_line)
    best = {"f1": result.metrics["image_f1_max"], "pixel_f1": result.metrics.get("pixel_f1_max")}
    rows["oracle"] = {"n": len(scores)} | best
    return pd.DataFrame(rows).T.astype(float)


def _pixel_decisions(result: Evaluation, rows, line: float) -> dict:
    rows = [i for i in rows if result.measured[i]]
    if not rows or not any(mask.any() for mask in result.masks):
        return {"pixel_f1": np.nan, "pixel_iou": np.nan}
    answers = np.stack([result.anomaly_maps[i] for i in rows]) > line
    truth = np.stack([result.masks[i] for i in rows])
    both, either = np.count_nonzero(answers & truth), np.count_nonzero(answers | truth)
    return {"pixel_f1": _ratio(2 * both, either + both), "pixel_iou": _ratio(both, either)}


def diagnose(method, table: pd.DataFrame, batch_size: int = 16) -> pd.DataFrame:
    """What the clustering of a fitted `Contrastive` did with each image of a table.

    Returns:
        image_path, defect, label; n_clusters; noise, share of cells in no cluster; separation, of the two sides; open,
        whether that is above the gate; anomalous, share of cells called so; wrong_side, whether those cells lie in the
        mask less often than the others do: None where the mask is empty or fills the image, where there is none, or
        where no cell or every one was called anomalous. An analysis with masks, never a choice.
    """
    rows, masks = [], datasets.masks(table)
    for batch in images.batches(table.image_path, method.resize, batch_size):
        grid = tuple(method.embed(batch.images[:1]).shape[2:])
        for split in method.cluster(batch.images):
            mask, wrong = next(masks), None
            if mask is not None:
                inside = images.Resize(grid).mask(method.resize.mask(mask)).ravel()
                if 0 < inside.sum() < len(inside) and 0 < split.anomalous.sum() < len(inside):
                    wrong = bool(split.anomalous[inside].mean() < split.anomalous[~inside].mean())
            row = {"n_clusters": split.n_clusters, "noise": split.noise, "separation": split.separation}
            row |= {"open": split.separation > method.gate, "anomalous": split.anomalous.mean(), "wrong_side": wrong}
            rows.append(row)
    columns = table[["image_path", "defect", "label"]].reset_index(drop=True)
    return pd.concat([columns, pd.DataFrame(rows)], axis=1)


def compare(
    grids, labels, reference, masks=None, names=tuple(clustering.ALGORITHMS), rules=clustering.RULES[:3], seed: int = 0
) -> pd.DataFrame:
    """Score images by several algorithms and rules of `adlib.images.clustering`.

    Args:
        grids: (N, d, h, w), cells of each image; labels: (N,), 1 for anomalous images.
        reference: (m, d) cells of normal images.
        masks: bool (h, w) per image, or None where there is none; only for the column `wrong side`.

    Returns:
        one row per algorithm and rule: image AUROC of the largest cell score; wrong side: share of masked images where
        the cluster called anomalous overlaps the mask less than the other one; clusters, noise (means), separation
        (median); ms per image.
    """
    rows, shape = [], tuple(grids.shape[2:])
    cells = [np.asarray(grid).reshape(len(grid), -1).T for grid in grids]  # (h w, d) an image
    for name, rule in itertools.product(names, rules):
        started = time.perf_counter()
        answers = [clustering.cluster(name, x, rule, reference, shape, seed=seed) for x in cells]
        seconds = (time.perf_counter() - started) / len(cells)
        wrong = [
            answer.anomalous[mask.ravel()].mean() < answer.anomalous[~mask.ravel()].mean()
            for answer, mask in zip(answers, masks or [None] * len(answers), strict=True)
            if mask is not None and mask.any() and not mask.all() and answer.anomalous.any()
        ]
        rows.append(
            {
                "clustering": name,
                "rule": rule,
                "image AUROC": roc_auc_score(labels, [answer.scores.max() for answer in answers]),
                "wrong side": np.mean(wrong) if wrong else np.nan,
                "clusters": np.mean([answer.n_clusters for answer in answers]),
                "noise": np.mean([answer.noise for answer in answers]),
                "separation": np.median([answer.separation for answer in answers]),
                "ms per image": 1e3 * seconds,
            }
        )
    return pd.DataFrame(rows).set_index(["clustering", "rule"])


def _ratio(part, whole) -> float:
    return float(part) / float(whole) if whole else float("nan")
