"""The data sets by name: what they are, what they allow, where they come from. `catalogue.yaml` lists them.

A data set in a layout that is there already needs nothing but an entry there.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class DataSet:
    """One entry of the catalogue.

    Attributes:
        name: name in every command, record and folder (`data/<name>`).
        layout: a key of `loading.LAYOUTS`, or "textures" for a source of textures.
        licence: as its owners state it.
        page: where to read about it, accept its terms and find it.
        citation: what to cite.
        size: of the download, in words; "" where we do not know it.
        categories: names of the categories, sorted; empty where they are free.
        counts: category -> (train, test normal, test anomalous) as published, for `check`.
        url: direct link; "" where terms must be accepted first or there is none.
        archive: file name of the archive; "" where a data set does not come as one archive.
        sha256: of the archive; "" where we do not know it.
        steps: what to do by hand, when there is no direct link.
    """

    name: str
    layout: str
    licence: str
    page: str
    citation: str
    size: str = ""
    categories: tuple[str, ...] = ()
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    url: str = ""
    archive: str = ""
    sha256: str = ""
    steps: str = ""


def _entry(name: str, values: dict) -> DataSet:
    counts = {category: tuple(numbers) for category, numbers in values.get("counts", {}).items()}
    categories = tuple(values.get("categories", counts))
    return DataSet(name, **values | {"categories": categories, "counts": counts})


_FILE = Path(__file__).with_suffix(".yaml")
DATASETS = {name: _entry(name, values) for name, values in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}


def layout_of(dataset: str) -> str:
    """Return the layout of a data set, and any other name as it is."""
    return DATASETS[dataset].layout if dataset in DATASETS else dataset


# Which categories of the known layouts are textures; data sets in MVTec's layout (MPDD, WFDD) share its entry.
TEXTURES = ("carpet", "grid", "leather", "tile", "wood", "grey_cloth", "grid_cloth", "pink_flower", "yellow_cloth")
OBJECTS = (*DATASETS["mvtec_ad"].categories, *DATASETS["mpdd"].categories)
KINDS = {
    "mvtec": dict.fromkeys(OBJECTS, "object") | dict.fromkeys(TEXTURES, "texture"),
    "btad": {"01": "object", "02": "texture", "03": "object"},
    "demo": {**dict.fromkeys(("brick", "grass", "gravel"), "texture"), "gear": "object", "tray": "object"},
    **{layout: {"*": "object"} for layout in ("visa", "loco", "mvtec3d")},
}


def category_kind(dataset: str, category: str) -> str:
    """Return "texture" or "object" for a known category of a layout or data set, "auto" for any other.

    >>> category_kind("mvtec", "leather"), category_kind("visa", "pcb1"), category_kind("folder", "bolts")
    ('texture', 'object', 'auto')
    """
    kinds = KINDS.get(layout_of(dataset), {})
    return kinds.get(category, kinds.get("*", "auto"))
