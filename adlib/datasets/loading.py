"""From the name of a data set and a folder to a sample table."""

import os
from pathlib import Path

import pandas as pd

from adlib.datasets import catalogue, demo, elpv, layouts, mad
from adlib.datasets.table import MASK_THRESHOLD, existing_folder, make_table, refuse_misnamed, subfolders
from adlib.errors import InputError
from adlib.paths import data_dir
from adlib.settings import choice

# Each has categories(root), rows(root, category) and mask_files(root, category): a `Layout`, or a module where patterns
# of paths do not say it. They stand in the order in which an unknown folder is tried: the general layout comes last.
LAYOUTS = {
    "mvtec3d": layouts.MVTEC_3D,
    "loco": layouts.LOCO,
    "visa": layouts.VISA,
    "btad": layouts.BTAD,
    "mvtec": layouts.MVTEC,
    "demo": demo,
    "elpv": elpv,
}


def load(dataset: str, root=None, category: str | None = None) -> pd.DataFrame:
    """Return the sample table of a data set.

    Args:
        dataset: a data set ("mvtec_ad", "visa", ...: see `catalogue`), a layout (a key of `LAYOUTS`), or the name of
            the folder `root` itself where that holds data of your own in one of the layouts.
        root: the folder that holds the category folders; also accepted are the category folder itself and a folder
            that holds the data set under its name. Default `data/<data set>`; "elpv" lies in its package.
        category: one category; None for all of them, one after the other.

    Returns:
        the table, in an order that depends on names only, with a RangeIndex and `attrs` = {"dataset": dataset}.

    Raises:
        InputError: unknown data set or category, missing or empty folder, a mask and an image that miss each other.
    """
    layout, root = locate(dataset, root)
    names = [category] if category is not None else layout.categories(root)
    if not names:
        raise no_category(layout, root, dataset)
    rows = []
    for name in names:
        of_category = layout.rows(root, name)
        refuse_misnamed(of_category, layout.mask_files(root, name))
        rows += of_category
    return make_table(rows, dataset, mask_threshold(layout))


def misnamed(layout, root) -> str:
    """Say which folder in or below `root` is most likely meant as another one of the layout; "" where none is."""
    folders = [Path(root), *subfolders(root)] if isinstance(layout, layouts.Layout) else []
    return next(filter(None, map(layout.misnamed, folders)), "") if folders else ""


def no_category(layout, root, dataset: str) -> InputError:
    """Return the error of a data root that holds no category of a layout."""
    hint = misnamed(layout, root) or "see: adlib data list"
    return InputError(f"data root {root} holds no category of the layout of {dataset!r}; {hint}")


def mask_threshold(layout) -> int:
    """Return the grey value above which a mask pixel of a layout is true."""
    return layout.mask_threshold if isinstance(layout, layouts.Layout) else MASK_THRESHOLD


def categories(dataset: str, root=None) -> list[str]:
    """Return the names of the categories that are there, sorted; arguments as in `load`."""
    layout, root = locate(dataset, root)
    return layout.categories(root)


def discover(root) -> list[tuple[str, str, Path, list[str]]]:
    """Find the data sets below a folder that have training images.

    Looked at are the folder itself (also when it is a single category) and its subfolders.

    Returns:
        (data set, layout, root to load it from, categories) for each; where the folder's name is not in the
        catalogue, the data set is called by its folder.
    """
    root = existing_folder(root)
    name, own = _recognise(root), mad.name_of(root)
    if name is not None and LAYOUTS[name].is_category(root):
        return [(root.parent.name, name, root.parent, [root.name])]
    entries = []
    for folder in [root] if name is not None or own is not None else subfolders(root):
        # MAD-man and MAD-sys have test images only; they count where MVTec AD lies beside them.
        if (own := mad.name_of(folder)) and (names := mad.trainable(folder)):
            entries.append((own, "mvtec", folder, names))
            continue
        name = _recognise(folder)
        # A category needs its data set's folder around it.
        if name is not None and not LAYOUTS[name].is_category(folder):
            entries.append((folder.name, name, folder, LAYOUTS[name].trainable(folder)))
    return entries


def guess_dataset(root) -> str:
    """Return the name of the one data set below `root`, for a user who gave only a folder."""
    if name := mad.name_of(existing_folder(root)):
        return name
    names = [name for name, *_ in discover(root)]
    if not names:
        hint = misnamed(layouts.MVTEC, root) or f"expected e.g. {Path(root) / '<category>/train/good'}"
        raise InputError(f"data root {root} holds no known layout; {hint}")
    if len(names) > 1:
        raise InputError(
            f"data root {root} holds several data sets ({', '.join(names)}); "
            "name one of them (--dataset) or give its own folder"
        )
    return names[0]


def _recognise(folder: Path) -> str | None:
    """Return the layout of the categories in a folder that can be trained on; demo and ELPV need no folder."""
    named = ((name, layout) for name, layout in LAYOUTS.items() if isinstance(layout, layouts.Layout))
    return next((name for name, layout in named if layout.trainable(folder)), None)


def _layout(dataset: str):
    if dataset in mad.NAMES:
        return mad
    name = catalogue.layout_of(dataset)
    if name == "textures":
        raise InputError(f"{dataset!r} holds textures, not images to inspect; give its folder as textures=")
    names = {*LAYOUTS, *(name for name, entry in catalogue.DATASETS.items() if entry.layout in LAYOUTS)}
    choice("data set", dataset, sorted(names))
    return LAYOUTS[name]


def locate(dataset: str, root) -> tuple:
    """Return the layout and the folder of the category folders."""
    if root is not None and dataset not in LAYOUTS and dataset not in catalogue.DATASETS:
        folder = existing_folder(root)
        for own in (folder, folder.parent, folder / dataset):  # own data, called by the name of its folder
            if own.name == dataset and (name := _recognise(own)):
                return LAYOUTS[name], own
    layout = _layout(dataset)
    if dataset == "elpv":
        return layout, None
    if dataset == "demo":
        root = Path(os.path.abspath(root)) if root is not None else data_dir() / "demo"
        return layout, root / "demo" if (root / "demo" / demo.STAMP).is_file() else root
    if root is None:
        if dataset not in catalogue.DATASETS:
            raise InputError(f"layout {dataset!r} needs a data root: name the folder of the category folders")
        root = data_dir() / dataset
        if not root.is_dir():
            raise InputError(
                f"data set {dataset!r} is not in {root}; give its data root or see: adlib data get {dataset}"
            )
    root, prepared = existing_folder(root), layouts.VISA_PREPARED
    forms = [(layout, ""), (prepared, "1cls"), (prepared, "")] if layout is layouts.VISA else [(layout, "")]
    for place in (root, root / dataset):
        for form, inside in forms:
            if form.categories(place / inside):
                return form, place / inside
    return layout, root
