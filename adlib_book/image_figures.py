"""Figures of images and of one method's result: each from one function, one style, a colour-blind-safe palette.

Functions draw and return a matplotlib figure; `save` writes it, as PNG (small) and where asked as PDF. Several methods
side by side are the book's: `adlib_book.figures`.
"""

import re
import sys
import textwrap
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from adlib.paths import atomic_path, figures_dir

PALETTE = "colorblind"
NORMAL, ANOMALOUS, ACCENT = (sns.color_palette(PALETTE)[i] for i in (0, 3, 1))
MAP_COLORS = "inferno"


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
    return [method.resize.read(path)[0] for path in paths]


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
    rows_of_maps = pictures(method, result.scores.image_path[rows])
    return anomaly_maps(rows_of_maps, masks, maps, titles, size=size, title=title)


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
    heat = None
    for row, maps in enumerate(rows.values(), start=len(above)):
        for axis, anomaly_map in zip(axes[row], maps, strict=True):
            if anomaly_map is None:
                axis.set(facecolor="0.92", box_aspect=height / width)
            else:
                heat = axis.imshow(anomaly_map, vmin=scale[0], vmax=scale[1])
    for axis, label in zip(axes[:, 0], [*above, *rows], strict=True):
        low = {"rotation": 0, "ha": "right", "va": "center"} if height < 1 else {}  # lower than its name is long
        axis.set_ylabel(label, **low)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    if heat is not None:
        figure.colorbar(heat, ax=axes, label="score", fraction=0.02, pad=0.01)
    if title:
        figure.suptitle(textwrap.fill(title, max(20, int(9 * figure.get_figwidth()))))
    figure.draw_without_rendering()  # settles the layout once: it would be solved again each time it is shown or saved
    figure.set_layout_engine("none")
    return figure
