"""Figures of several methods side by side: from records and tables of scores, each from one function.

A method has the same colour and marker in every figure: `METHOD_STYLES`. Style, saving and what shows the result of one
method are `adlib_book.image_figures`.
"""

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.colors
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
import sklearn.metrics
from IPython.display import HTML

from adlib.evaluation import metrics
from adlib.methods import METHODS
from adlib_book.image_figures import ANOMALOUS, NORMAL, PALETTE, metric_label


class Style(NamedTuple):
    """How a method is drawn: colour, and a marker that tells it apart where colours do not."""

    color: str
    marker: str


METHOD_STYLES = {name: Style(entry.color, entry.marker) for name, entry in METHODS.items()}


def method_styles(labels) -> dict[str, Style]:
    """The style of every label, which starts with the name of its method ("PatchCore, 10 %", "glass (gear)").

    The second label of one method, and what is no method, take in turn the styles that no other label has.
    """
    labels = list(dict.fromkeys(labels))
    own = {}
    for label in labels:
        name = re.match(r"\w*", str(label).lower().replace("-", "_")).group()
        if name in METHOD_STYLES and name not in own.values():
            own[label] = name
    free = itertools.cycle([name for name in METHOD_STYLES if name not in own.values()] or METHOD_STYLES)
    return {label: METHOD_STYLES[own[label] if label in own else next(free)] for label in labels}


def method_palette(labels) -> dict[str, str]:
    """The colour of every label, as seaborn's `palette` takes it."""
    return {label: style.color for label, style in method_styles(labels).items()}


def in_units_of_normals(maps, labels) -> np.ndarray:
    """Bring maps (n, H, W) of any method to one scale for display: 0 their median, 1 what a normal image reaches.

    What is brighter than 1 on a defect would be seen at a threshold that leaves nine of ten normal test images alone:
    a single restless one would darken all others. It looks at test labels, so it is for pictures only.
    """
    maps, normal = np.asarray(maps, np.float32), np.asarray(labels) == 0
    low = float(np.median(maps[normal] if normal.any() else maps))
    high = float(np.quantile(maps[normal].max((1, 2)), 0.9) if normal.any() else maps.max())
    return (maps - low) / max(high - low, 1e-12)


def curves(results: dict, title: str = ""):
    """ROC and precision-recall of images and PRO of pixels, one line per method.

    Args:
        results: {label: (scores table with `label` and `score`, maps (n, H, W) or None, masks (n, H, W))}; maps may be
            of a subset of the images and smaller than the network's input.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    styles = method_styles(results)
    for i, (label, (scores, maps, masks)) in enumerate(results.items()):
        # A marker at every fifth of the panel's diagonal, each line's a little further along than the last one's.
        style = styles[label]._asdict() | {"linewidth": 1.4, "markersize": 5, "markevery": (0.018 * i, 0.2)}
        both = scores.label.nunique() == 2  # one class alone has no curve, only its name in the legend
        false_alarms, recall, _ = sklearn.metrics.roc_curve(scores.label, scores.score) if both else [[]] * 3
        axes[0].plot(100 * np.array(false_alarms), 100 * np.array(recall), label=label, **style)
        precision, recall, _ = sklearn.metrics.precision_recall_curve(scores.label, scores.score) if both else [[]] * 3
        axes[1].plot(100 * np.array(recall), 100 * np.array(precision), **style)
        if maps is not None and np.any(masks):
            false_alarms, overlap = metrics.pro_curve(list(maps), list(masks), limit=0.3)
            axes[2].plot(100 * false_alarms, 100 * overlap, **style)
    axes[0].plot([0, 100], [0, 100], color="0.7", linewidth=1)
    axes[0].set(title="ROC of images", xlabel="false alarms, %", ylabel="defects found, %")
    axes[1].set(title="precision and recall of images", xlabel="defects found, %", ylabel="precision, %", ylim=(0, 103))
    axes[2].set(title="PRO up to 30 % false positives", xlabel="normal pixels above, %", ylabel="overlap, %")
    axes[2].set(xlim=(0, 30))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def score_histogram(scores: pd.DataFrame, threshold=None, title: str = ""):
    """Histogram of image scores by kind (columns `score`, `defect`, `label`), with the threshold if there is one.

    Args:
        threshold: a number, what `thresholds.from_normals` returned, or None.
    """
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    normal, kinds = (sorted(set(scores.defect[scores.label == label])) for label in (0, 1))
    free = [color for color in sns.color_palette(PALETTE) if color != NORMAL]
    others = free[: len(kinds)] if len(kinds) <= len(free) else sns.husl_palette(len(kinds))
    colors = dict.fromkeys(normal, NORMAL) | dict(zip(kinds, others, strict=True))
    style = {"multiple": "stack", "bins": 30, "alpha": 0.9, "ax": axis}
    sns.histplot(scores, x="score", hue="defect", hue_order=list(colors), palette=colors, **style)
    if len(colors) > 9:  # a longer legend would lie on the bars
        sns.move_legend(axis, "center left", bbox_to_anchor=(1, 0.5), ncols=-(-len(colors) // 12), frameon=False)
    threshold = getattr(threshold, "value", threshold)
    if threshold is not None:
        axis.axvline(threshold, color="black", linestyle="--", linewidth=1)
        style = {"xycoords": ("data", "axes fraction"), "va": "top", "fontsize": "small"}
        axis.annotate(" threshold from\n held-out normals", (threshold, 0.97), **style)
    axis.set(xlabel="image score (higher is more anomalous)", ylabel="images", title=title)
    return figure


def score_histograms(results: dict, columns: int = 4, title: str = ""):
    """Image scores of several methods, {label: (scores table, threshold or None)}, each in units of its threshold."""
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.7 * columns, 1.9 * rows), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    for axis, (label, (scores, threshold)) in zip(axes.flat, results.items(), strict=False):
        normal = scores.score[scores.label == 0]
        unit = threshold or float((normal if len(normal) else scores.score).max()) or 1.0
        bins = np.histogram_bin_edges(scores.score / unit, 23)
        for kind, color in ((0, NORMAL), (1, ANOMALOUS)):
            axis.hist(scores.score[scores.label == kind] / unit, bins=bins, color=color, alpha=0.65)
        if threshold:
            axis.axvline(1, color="black", linestyle="--", linewidth=1)
        axis.set(title=label)
    figure.supxlabel("image score, 1 is the threshold from held-out normals", fontsize="small")
    figure.supylabel("images", fontsize="small")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.65) for color in (NORMAL, ANOMALOUS)]
    figure.legend(handles, ["normal", "defective"], loc="outside right upper", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def threshold_slider(scores: pd.DataFrame, threshold: float):
    """A threshold to drag over the scores of test images, as HTML that counts by itself: it needs no kernel.

    Args:
        scores: `score`, `label`; threshold: where it begins.
    """
    low, high = float(scores.score.min()), float(scores.score.max())
    span = high - low or 1.0
    places = ((scores.score - low) / span).round(4)
    values = {
        "SCORES": json.dumps([places[scores.label == label].tolist() for label in (0, 1)]),
        "RANGE": json.dumps([low, high]),
        "COLOURS": json.dumps([matplotlib.colors.to_hex(color) for color in (NORMAL, ANOMALOUS)]),
        "AT": str(round(1000 * (threshold - low) / span)),
    }
    values["ID"] = "slider-" + hashlib.blake2b(values["SCORES"].encode(), digest_size=4).hexdigest()
    text = (Path(__file__).parent / "slider.html").read_text()
    return HTML(re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[0]], text))


def time_accuracy_memory(records: pd.DataFrame, metric: str = "image_auroc", title: str = ""):
    """One mark per method: milliseconds per image and accuracy (means over its runs given), peak memory as area.

    Give runs of the same categories for all methods, or the marks compare different things.
    """
    defined = records.astype({metric: float}).dropna(subset=[metric, "score_ms_per_image"])
    grouped = defined.groupby("method").agg(
        ms=("score_ms_per_image", "mean"), value=(metric, "mean"), memory=("peak_memory_mib", "max")
    )
    figure, axis = plt.subplots(figsize=(7.6, 3.8))
    if grouped.empty:
        return figure
    styles = method_styles(grouped.index)
    area = 350 / grouped.memory.max()  # square points a MiB
    for row in grouped.itertuples():
        style = {"color": styles[row.Index].color, "alpha": 0.9, "edgecolor": "black", "linewidth": 0.5}
        axis.scatter(row.ms, 100 * row.value, s=area * row.memory, **style)
    axis.set(xscale="log", xlabel="ms per image (log)", ylabel=f"{metric_label(metric)}, %", title=title)
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.margins(0.15, 0.2)
    powers = np.arange(np.floor(np.log2(grouped.memory.min())), np.ceil(np.log2(grouped.memory.max())) + 1)
    sizes = 2.0 ** powers[-4:]
    style = {"linestyle": "", "marker": "o", "color": "0.8", "markeredgecolor": "black", "markeredgewidth": 0.5}
    handles = [plt.Line2D([], [], markersize=np.sqrt(area * size), **style) for size in sizes]
    style = {"loc": "outside right center", "frameon": False, "labelspacing": 1.3, "handletextpad": 1.2, "borderpad": 1}
    names = [f"{size:g} MiB" for size in sizes]
    figure.legend(handles, names, title="peak memory\nof the process", **style)
    _label_discs(axis, grouped.index, np.column_stack([grouped.ms, 100 * grouped.value]), area * grouped.memory)
    return figure


def _label_discs(axis, labels, places, areas) -> None:
    """Write a label at each disc, on the side where it covers least of the other discs and labels.

    Args:
        places: (n, 2) centres in the axis's data; areas: n, in square points.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # settles where the axis lies
    points = 72 / figure.dpi  # a pixel
    centres = axis.transData.transform(places) * points
    radii = np.sqrt(np.asarray(areas)) / 2
    boxes = [np.concatenate([c - r, c + r]) for c, r in zip(centres, radii, strict=True)]  # x0, y0, x1, y1
    inside = axis.get_window_extent().extents * points
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for i, label in enumerate(labels):
        style = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": "small"}
        text = axis.annotate(label, places[i], (0, 0), **style)
        half = np.array([text.get_window_extent().width, text.get_window_extent().height]) * points / 2
        best = np.inf
        for side in np.array(sides):
            # On the diagonal the disc has less width: its label may come nearer.
            offset = side * (radii[i] * (1 if 0 in side else 0.72) + half + 2.5)
            box = np.concatenate([centres[i] + offset - half, centres[i] + offset + half])
            covered = sum(_overlap(box, other) for j, other in enumerate(boxes) if j != i)
            outside = 4 * half.prod() - _overlap(box, inside)
            if covered + outside < best - 1e-6:
                best, shift, where = covered + outside, offset, box
        text.set_position(tuple(shift))
        boxes.append(where)


def _overlap(a, b) -> float:
    """Area that two boxes (x0, y0, x1, y1) share."""
    return float(np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)))


def learning_curves(curves: dict, title: str = ""):
    """Held-out and test scores over the steps of a training, {label: {column: list}} with a column `step`.

    The test line is an oracle: nothing was selected by it.
    """
    curves = {label: pd.DataFrame(curve) for label, curve in curves.items()}
    parts = ("auroc", "aupro", "score")
    names = dict.fromkeys(n for curve in curves.values() for n in curve if any(part in n for part in parts))
    names = [n for n in names if any(n in curve and curve[n].notna().any() for curve in curves.values())]
    looks = dict(zip(names, zip(itertools.cycle(sns.color_palette(PALETTE)), itertools.cycle("osD^v<>")), strict=False))
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves) + 1.4, 2.8), squeeze=False, sharey=True)
    for axis, (label, curve) in zip(axes[0], curves.items(), strict=True):
        for name, (color, marker) in looks.items():
            if name in curve and curve[name].notna().any():
                axis.plot(curve.step, 100 * curve[name].astype(float), color=color, marker=marker, markersize=4)
        axis.set(title=label, xlabel="step")
    axes[0, 0].set_ylabel("percent")
    handles = [plt.Line2D([], [], color=color, marker=marker, markersize=4) for color, marker in looks.values()]
    figure.legend(handles, map(metric_label, looks), loc="outside right center", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def auroc_by_defect(scores: pd.DataFrame) -> pd.Series:
    """Image AUROC of each kind of defect against all normal images, as fractions, by name; NaN without normals."""
    normal, defective = scores[scores.label == 0], scores[scores.label == 1]
    if normal.empty:
        return pd.Series(np.nan, sorted(defective.defect.unique()))
    both = {kind: pd.concat([normal, rows]) for kind, rows in defective.groupby("defect")}
    return pd.Series({k: sklearn.metrics.roc_auc_score(b.label, b.score) for k, b in both.items()}, dtype=float)


def panels(
    table: pd.DataFrame, by: str, draw, columns: int = 4, size: tuple[float, float] = (2.4, 2.1), title: str = ""
):
    """One panel for each value of the column `by`, in order of appearance, with one legend for all.

    Args:
        draw: function (axis, rows of the panel) that draws with a legend, as seaborn's axis functions do.
        size: width and height of a panel in inches.
    """
    groups = list(table.groupby(by, sort=False))
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    shape = (size[0] * columns + 1.2, size[1] * rows + 0.2)
    figure, axes = plt.subplots(rows, columns, figsize=shape, sharey=True, squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    for axis, (name, group) in zip(axes.flat, groups, strict=False):
        draw(axis, group)
        axis.set_title(name)
        handles = axis.get_legend_handles_labels()
        if axis.get_legend():
            axis.get_legend().remove()
    figure.legend(*handles, loc="outside right upper", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


# What happens in a box of `data_flow`: colour, line, and what the legend says.
ROLES = {
    "data": ("#ffffff", "-", "data"),
    "frozen": ("#cfe3f1", "--", "network that stays as it is"),
    "trained": ("#f9d9b0", "-", "network that is trained"),
    "stored": ("#d5ead0", "-", "kept of the good images"),
    "compared": ("#ead2e4", "-", "comparison or loss"),
}


def data_flow(start: list, paths: list[list], joint: list, title: str = ""):
    """Draw how data flow through a method, from left to right: what is frozen, trained, kept and compared.

    Args:
        start: boxes (label, a key of `ROLES`) that everything goes through.
        paths: lists of boxes, drawn one above the other.
        joint: boxes where the paths meet.
    """
    longest, rows = max(map(len, paths), default=0), max(len(paths), 1)
    columns = len(start) + longest + len(joint)
    figure, axis = plt.subplots(figsize=(1.45 * columns, 0.75 * rows + 0.5))
    middle, ends = (rows - 1) / 2, []

    def row_of_boxes(boxes, x, y, before):
        for label, role in boxes:
            face, line, _ = ROLES[role]
            axis.add_patch(
                plt.Rectangle((x - 0.4, y - 0.34), 0.8, 0.68, facecolor=face, edgecolor="black", linestyle=line)
            )
            axis.text(x, y, label, ha="center", va="center", fontsize=8)
            for point in before:
                axis.annotate(
                    "",
                    (x - 0.4, y),
                    point,
                    arrowprops={"arrowstyle": "->", "color": "black", "shrinkA": 0, "shrinkB": 0},
                )
            x, before = x + 1, [(x + 0.4, y)]
        return before

    first = row_of_boxes(start, 0, middle, [])
    for i, boxes in enumerate(paths):
        ends += row_of_boxes(boxes, len(start), rows - 1 - i, first)
    row_of_boxes(joint, len(start) + longest, middle, ends or first)
    roles = dict.fromkeys(role for boxes in (start, *paths, joint) for _, role in boxes)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=ROLES[r][0], edgecolor="black", linestyle=ROLES[r][1]) for r in roles
    ]
    figure.legend(handles, [ROLES[r][2] for r in roles], loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5), title=title)
    axis.axis("off")
    return figure
