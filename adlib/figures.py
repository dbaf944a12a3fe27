"""Figures: each from one function, one style, a colour-blind-safe palette.

Functions draw and return a matplotlib figure; `save` writes it, as PNG (small) and where asked as PDF.
"""

import sys
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
    """Write a figure to `figures/<name>.png` (and `.pdf`) and return the path of the PNG."""
    for suffix in ("png", "pdf") if vector else ("png",):
        with atomic_path(figures_dir() / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None} if suffix == "pdf" else {"Software": None})
    return figures_dir() / f"{name}.png"


def image_grid(images, titles=None, columns: int = 5, size: float = 1.7, title: str = "", outlines=None):
    """Show images (H, W, 3) in a grid, with the outline of a mask where one is given."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + 0.2)), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i >= len(images):
            continue
        axis.imshow(images[i], cmap="gray")
        if outlines is not None and outlines[i] is not None and np.any(outlines[i]):
            draw_outline(axis, outlines[i])
        if titles is not None:
            axis.set_title(titles[i], fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


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
    low, high = scale or (min(m.min() for m in maps), max(m.max() for m in maps))
    figure, axes = plt.subplots(3, len(images), figsize=(len(images) * size, 3 * size + 0.4), squeeze=False)
    for i in range(len(images)):
        axes[0, i].imshow(images[i])
        draw_outline(axes[0, i], masks[i])
        axes[1, i].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        shown = axes[2, i].imshow(maps[i], vmin=low, vmax=high)
        if titles is not None:
            axes[0, i].set_title(titles[i], fontsize="small")
    for axis, label in zip(axes[:, 0], ("image", "truth", "anomaly map"), strict=True):
        axis.set_ylabel(label)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.colorbar(shown, ax=axes[2], label="score", fraction=0.02, pad=0.01)
    if title:
        figure.suptitle(title)
    return figure


def score_histogram(scores: pd.DataFrame, threshold: float | None = None, title: str = ""):
    """Histogram of image scores by kind (columns `score`, `defect`, `label`), with the threshold if there is one."""
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    kinds = ["good", *sorted(set(scores.defect[scores.label == 1]))]
    colors = dict(zip(kinds, [NORMAL, *[c for c in sns.color_palette(PALETTE) if c != NORMAL]], strict=False))
    sns.histplot(
        scores, x="score", hue="defect", hue_order=kinds, palette=colors, multiple="stack", bins=30, ax=axis, alpha=0.9
    )
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


def compare_maps(images, rows: dict, titles=None, scale=(0, 1), size: float = 1.8, title: str = ""):
    """Show the same images (H, W, 3) above several rows of maps, {row label: maps (H, W)}, on one colour scale."""
    shape = (1 + len(rows), len(images))
    figure, axes = plt.subplots(*shape, figsize=(shape[1] * size, shape[0] * size + 0.4), squeeze=False)
    for column, image in enumerate(images):
        axes[0, column].imshow(image)
        if titles is not None:
            axes[0, column].set_title(titles[column], fontsize="small")
    for row, (label, maps) in enumerate(rows.items(), start=1):
        axes[row, 0].set_ylabel(label)
        for axis, anomaly_map in zip(axes[row], maps, strict=True):
            shown = axis.imshow(anomaly_map, vmin=scale[0], vmax=scale[1])
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.colorbar(shown, ax=axes[1:], label="score", fraction=0.02, pad=0.01)
    if title:
        figure.suptitle(title)
    return figure


def scores_by_category(axis, scores: pd.DataFrame, title: str = "") -> None:
    """Draw image scores (columns `score`, `label`, `category`) of several categories on one axis of scores."""
    kind = scores.label.map({0: "normal", 1: "anomalous"})
    palette = {"normal": NORMAL, "anomalous": ANOMALOUS}
    sns.stripplot(scores, x="score", y="category", hue=kind, palette=palette, size=3, dodge=True, ax=axis)
    axis.set(title=title, xlabel="image score, one scale for all", ylabel="")
    axis.get_legend().set_title("")
