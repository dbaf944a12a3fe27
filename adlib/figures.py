"""Figures: each from one function, one style, a colour-blind-safe palette.

Functions draw and return a matplotlib figure; `save` writes it, as PNG (small) and where asked as PDF. A method has the
same colour and marker in every figure: `METHOD_STYLES`.
"""

import itertools
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
import sklearn.metrics

from adlib import images as image_files
from adlib.evaluation import metrics
from adlib.methods import METHODS
from adlib.paths import atomic_path, figures_dir

PALETTE = "colorblind"
NORMAL, ANOMALOUS, ACCENT = (sns.color_palette(PALETTE)[i] for i in (0, 3, 1))
MAP_COLORS = "inferno"


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


def metric_label(name: str) -> str:
    """The name of a metric for readers: "image_auroc" is "image AUROC", "aupro_30" is "AUPRO@0.3"."""
    name = re.sub(r"aupro_(\d+)", lambda match: f"AUPRO@{int(match[1]) / 100:g}", name)
    return name.replace("auroc", "AUROC").replace("aupro", "AUPRO").replace("_", " ")


def use_style() -> None:
    """Set the one style of all figures."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE, font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 70,
            "savefig.dpi": 110,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "image.cmap": MAP_COLORS,
            "svg.hashsalt": "adlib",  # the same figure gives the same bytes
        }
    )
    if "ipykernel" in sys.modules:
        # Photographs as JPEG keep a notebook with its outputs under a few hundred kilobytes.
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


def save(figure, name: str, vector: bool = False) -> Path:
    """Write a figure to `<name>.png` (and `.pdf`) in `paths.figures_dir()` and return the path of the PNG.

    Only `adlib notebook --refresh` writes where the committed figures are.
    """
    for suffix in ("png", "pdf") if vector else ("png",):
        with atomic_path(figures_dir() / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None} if suffix == "pdf" else {"Software": None})
    return figures_dir() / f"{name}.png"


def image_grid(images, titles=None, columns: int = 5, size: float = 1.7, title: str = "", outlines=None):
    """Show images (H, W, 3) in a grid, with the outline of a mask where one is given."""
    columns = min(columns, max(len(images), 1))
    rows = max(1, -(-len(images) // columns))
    width, height = _cell(images, rows, columns, size)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * width, rows * (height + 0.2)), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i >= len(images):
            continue
        axis.imshow(images[i], cmap="gray")
        if outlines is not None and outlines[i] is not None and np.any(outlines[i]):
            draw_outline(axis, outlines[i])
        if titles is not None:
            _set_title(axis, titles[i], width)
    if title:
        figure.suptitle(title)
    return figure


def _cell(images, rows: int, columns: int, size: float) -> tuple[float, float]:
    """Width and height in inches of a cell that has the mean ratio of the images' sides and the area size x size.

    Wide and tall images keep that area as long as the grid stays within 12 inches.
    """
    ratio = np.exp(np.mean([np.log(np.shape(i)[1] / np.shape(i)[0]) for i in images])) if len(images) else 1.0
    width, height = size * np.sqrt(ratio), size / np.sqrt(ratio)
    fits = min(1.0, max(size, 12 / columns) / width, max(size, 12 / rows) / height)
    return fits * width, fits * height


def _set_title(axis, text, width: float) -> None:
    """Title a cell that is so many inches wide; what is longer is broken into lines."""
    most = max(8, int(13 * width))
    lines = [
        line if len(line) <= most else textwrap.fill(line.replace("_", " "), most) for line in str(text).split("\n")
    ]
    axis.set_title("\n".join(lines), fontsize="small")


def draw_outline(axis, mask, color=ACCENT) -> None:
    """Draw the outline of a mask (H, W) on an axis that shows its image."""
    contours, _ = cv2.findContours(np.uint8(np.asarray(mask) > 0), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        closed = np.vstack([contour[:, 0], contour[:1, 0]])
        axis.plot(closed[:, 0], closed[:, 1], color=color, linewidth=1.2)


def anomaly_maps(images, masks, maps, titles=None, scale=None, size: float = 1.8, title: str = ""):
    """Show image, truth and anomaly map in columns, all maps on one colour scale.

    Args:
        images: (H, W, 3) each; masks: bool (H, W) each; maps: float (H, W) each.
        scale: scores of the first and the last colour; default the range over all maps shown.
    """
    scale = scale or (min(m.min() for m in maps), max(m.max() for m in maps))
    figure = compare_maps(images, {"anomaly map": maps}, titles, scale, size, title, masks)
    for axis, mask in zip(figure.axes, masks, strict=False):  # the first row shows the images
        draw_outline(axis, mask)
    return figure


def strongest(scores: pd.DataFrame, kinds: int = 5) -> list[int]:
    """Rows of `Evaluation.scores` to show: the lowest-scored normal image and each kind's highest-scored one.

    At most so many kinds of defect, in the order of their names; either part is missing where there is no such image.
    """
    normal, defective = scores[scores.label == 0], scores[scores.label == 1]
    highest = defective.groupby("defect").score.idxmax()
    return [int(i) for i in (*normal.score.nsmallest(1).index, *highest[:kinds])]


def pictures(method, paths) -> list[np.ndarray]:
    """Image files as a fitted method sees them: uint8 (H, W, 3) each, at its input size."""
    return [method.resize.image(image_files.read_image(path))[0] for path in paths]


def gallery(result, method, title: str = "", kinds: int = 5, size: float = 1.8):
    """Image, truth and map of the lowest-scored normal image and of the highest-scored one of each kind of defect.

    Args:
        result: the `Evaluation` of a test table with `method`.
        kinds: at most so many kinds are shown; the title says when there are more.
    """
    there = result.scores.defect[result.scores.label == 1].nunique()
    if there > kinds:
        title = f"{title} ({kinds} of {there} kinds of defect)".strip()
    rows = strongest(result.scores, kinds)
    return _maps_of(result, method, rows, [result.scores.defect[i] for i in rows], title, size)


def misses(result, method, n: int = 3, title: str = "Lowest defects (left), highest normals (right)"):
    """The n lowest-scored defective images (left) and the n highest-scored normal ones, with truth, map and score."""
    scores = result.scores
    lowest, highest = scores[scores.label == 1].nsmallest(n, "score"), scores[scores.label == 0].nlargest(n, "score")
    rows = [*lowest.index, *highest.index]
    titles = [f"{scores.defect[i]}: {scores.score[i]:.3g}" for i in rows]
    return _maps_of(result, method, rows, titles, title)


def _maps_of(result, method, rows, titles, title: str, size: float = 1.8):
    maps = [result.anomaly_maps[i] for i in rows]
    # At original resolution an evaluation keeps no masks.
    masks = [result.masks[i] if len(result.masks) else np.zeros_like(m, bool) for i, m in zip(rows, maps, strict=True)]
    shown = pictures(method, result.scores.image_path[rows])
    return anomaly_maps(shown, masks, maps, titles, size=size, title=title)


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
        axis.annotate(
            " threshold from\n held-out normals",
            (threshold, 0.97),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize="small",
        )
    axis.set(xlabel="image score (higher is more anomalous)", ylabel="images", title=title)
    return figure


def compare_maps(images, rows: dict, titles=None, scale=(0, 1), size: float = 1.8, title: str = "", masks=None):
    """Show the same images (H, W, 3) above several rows of maps, {row label: maps (H, W)}, on one colour scale.

    A map that is None leaves a grey field: that run does not exist. With `masks` the truth comes below the images.
    """
    above = ["image"] if masks is None else ["image", "truth"]
    shape = (len(above) + len(rows), len(images))
    width, height = _cell(images, *shape, size)
    figure, axes = plt.subplots(*shape, figsize=(shape[1] * width + 0.9, shape[0] * height + 0.5), squeeze=False)
    for column, image in enumerate(images):
        axes[0, column].imshow(image)
        if titles is not None:
            _set_title(axes[0, column], titles[column], width)
        if masks is not None:
            axes[1, column].imshow(masks[column], cmap="gray", vmin=0, vmax=1)
    shown = None
    for row, maps in enumerate(rows.values(), start=len(above)):
        for axis, anomaly_map in zip(axes[row], maps, strict=True):
            if anomaly_map is None:
                axis.set(facecolor="0.92", box_aspect=height / width)
            else:
                shown = axis.imshow(anomaly_map, vmin=scale[0], vmax=scale[1])
    for axis, label in zip(axes[:, 0], [*above, *rows], strict=True):
        low = {"rotation": 0, "ha": "right", "va": "center"} if height < 1 else {}  # lower than its name is long
        axis.set_ylabel(label, **low)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label="score", fraction=0.02, pad=0.01)
    if title:
        figure.suptitle(textwrap.fill(title, max(20, int(9 * figure.get_figwidth()))))
    figure.draw_without_rendering()  # settles the layout once: it would be solved again each time it is shown or saved
    figure.set_layout_engine("none")
    return figure


def in_units_of_normals(maps, labels) -> np.ndarray:
    """Bring maps (n, H, W) of any method to one scale for display: 0 their median, 1 the highest pixel on a normal.

    What is brighter than 1 on a defect would be seen at a threshold that leaves every normal test image alone. It looks
    at test labels, so it is for pictures only.
    """
    maps, normal = np.asarray(maps, np.float32), np.asarray(labels) == 0
    low = float(np.median(maps[normal] if normal.any() else maps))
    high = float(maps[normal].max() if normal.any() else maps.max())
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
    axes[2].set(
        title="PRO up to 30 % false positives", xlabel="normal pixels above, %", ylabel="overlap, %", xlim=(0, 30)
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    if title:
        figure.suptitle(title)
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
    figure.legend(
        handles,
        [f"{size:g} MiB" for size in sizes],
        title="peak memory\nof the process",
        loc="outside right center",
        frameon=False,
        labelspacing=1.3,
        handletextpad=1.2,
        borderpad=1,
    )
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
    taken = [np.concatenate([c - r, c + r]) for c, r in zip(centres, radii, strict=True)]  # x0, y0, x1, y1
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
            covered = sum(_overlap(box, other) for j, other in enumerate(taken) if j != i)
            outside = 4 * half.prod() - _overlap(box, inside)
            if covered + outside < best - 1e-6:
                best, shift, where = covered + outside, offset, box
        text.set_position(tuple(shift))
        taken.append(where)


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


def radar(results: dict, title: str = ""):
    """Image AUROC of each kind of defect against all normal test images, one closed line per method.

    Args:
        results: {label: scores table with `score`, `label`, `defect`}, all of the same category.
    """
    values = {label: auroc_by_defect(scores) for label, scores in results.items()}
    kinds = list(next(iter(values.values())).index)
    angles = np.linspace(0, 2 * np.pi, len(kinds), endpoint=False)
    figure, axis = plt.subplots(figsize=(5.6, 3.8), subplot_kw={"projection": "polar"})
    for label, style in method_styles(values).items():
        closed = [*values[label], *values[label][:1]]
        axis.plot([*angles, *angles[:1]], 100 * np.array(closed), label=label, linewidth=1.6, **style._asdict())
    axis.set_xticks(angles, kinds)
    axis.tick_params(axis="x", pad=14)  # names outside the circle
    low = 10 * np.floor(np.nanmin([5, *(10 * v.min() for v in values.values())]))
    axis.set_ylim(low, 100)
    rings = np.arange(100, low - 1, -20 if low < 50 else -10)
    axis.set_yticks(rings, [])
    between = np.pi / max(len(kinds), 1)  # half-way to the second kind; in front of the lines, on white
    for ring in rings:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
        axis.text(between, ring, f"{ring:g}", ha="center", va="center", fontsize="x-small", bbox=box, zorder=5)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    figure.suptitle(title or "image AUROC by kind of defect, %")
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
