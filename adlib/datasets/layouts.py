"""The layouts of data sets: where the images of a category lie and where their masks.

    MVTEC     train/good/000.png, test/{good,<defect>}/000.png, ground_truth/<defect>/000_mask.png: MVTec AD, MPDD,
              WFDD, magnetic tile, the demo data and most own data
    BTAD      the same with `ok` for good; .bmp and .png files
    MVTEC_3D  {train,validation}/good/rgb, test/<defect>/{rgb,gt}; only the colour images are read
    LOCO      {train,validation}/good, test/{good,logical_anomalies,structural_anomalies}; a mask is the *folder* of an
              image's regions, ground_truth/<kind>/000/{000,001,...}.png (see `loco`)
    VISA      Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly; split_csv/1cls.csv beside the categories lists all
    VISA_PREPARED  what the authors' script makes of it: MVTEC, below the folder 1cls

Images and masks are paired by name. A category may have masks for all defects, for some or for none.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from adlib.datasets.table import MASK_THRESHOLD, looks_good, sample, subfolders, unknown_category
from adlib.errors import InputError
from adlib.images import list_images


class Layout(NamedTuple):
    """Patterns of paths, from the folder of a category.

    Attributes:
        marks: folders of which a category has at least one.
        good: name of the folders of normal images, in `train`, `validation` and `test`.
        images: folder of the images below the folder of their kind; "" for that folder itself.
        masks: folder of the masks of a kind.
        mask_threshold: a mask pixel is true above it; 0 for masks that store class numbers.
        split_file: file beside the categories with the columns object, split, label, image and mask (paths from its
            root); "" where folders say it all.
    """

    marks: tuple[str, ...]
    good: str = "good"
    images: str = ""
    masks: str = "ground_truth/{kind}"
    mask_threshold: int = MASK_THRESHOLD
    split_file: str = ""

    def is_category(self, folder: Path) -> bool:
        """Tell whether a folder is a category of this layout."""
        return any(f.is_dir() and f.name[0] != "." for mark in self.marks for f in folder.glob(mark))

    def categories(self, root: Path) -> list[str]:
        """Return the names of the category folders in `root`; of `root` alone where it is one itself."""
        if self.is_category(root):
            return [root.name]
        return [folder.name for folder in subfolders(root) if self.is_category(folder)]

    def folder(self, root: Path, category: str) -> Path:
        """Return the folder of a category; `root` may be the category folder itself."""
        if self.is_category(root / category):
            return root / category
        if root.name == category and self.is_category(root):
            return root
        raise unknown_category(category, root, self.categories(root))

    def trainable(self, root: Path) -> list[str]:
        """Return the names of the categories that have training images; MAD-man and MAD-sys have none."""
        normal = Path("train", self.good, self.images)
        return [c for c in self.categories(root) if self.split_file or (self.folder(root, c) / normal).is_dir()]

    def misnamed(self, folder: Path) -> str:
        """Say which folder of a category is most likely meant as another one, and what to do; "" where none is."""
        for split in subfolders(folder) if not self.split_file else ():
            meant = split.name.strip().lower()
            if meant not in ("train", "validation", "test"):
                continue
            if split.name != meant:
                return f"{split}: this folder is most likely meant as {meant!r}; rename it"
            for kind in subfolders(split):
                if kind.name != self.good and looks_good(kind.name):
                    other = " (or load it as btad)" if kind.name == BTAD.good else ""
                    return f"{kind}: this folder most likely holds good images; rename it to {self.good!r}{other}"
            if meant == "train" and not (split / self.good).is_dir() and list_images(split):
                return f"{split}: images lie in this folder itself; move them to {split / self.good}"
        return ""

    def rows(self, root: Path, category: str) -> list[tuple]:
        """Return the rows of a category: normal images to fit on, test good, then every kind of defect by name."""
        folder = self.folder(root, category)
        if self.split_file:
            return _listed_rows(folder.parent, folder.parent / self.split_file, category)
        if misnamed := self.misnamed(folder):
            raise InputError(misnamed)
        rows = []
        for split in ("train", "validation"):
            images = list_images(folder / split / self.good / self.images)
            rows += [sample(image, None, "good", split, category) for image in images]
        for kind in sorted(subfolders(folder / "test"), key=lambda f: (f.name != self.good, f.name)):
            defect = "good" if kind.name == self.good else kind.name
            masks = {} if defect == "good" else _masks_by_stem(folder / self.masks.format(kind=kind.name))
            for image in list_images(kind / self.images):
                # Pairing by sorted position, as some loaders do, shifts every later mask when one file is missing.
                # A stem that itself ends in "_mask" is listed under its shortened name.
                mask = masks.get(image.stem) or masks.get(image.stem.removesuffix("_mask"))
                rows.append(sample(image, mask, defect, "test", category))
        if not rows:
            expected = folder / "train" / self.good / self.images
            raise InputError(f"category folder {folder} holds no image; expected files in {expected}")
        return rows

    def mask_files(self, root: Path, category: str) -> list[Path]:
        """Return every mask of a defect, whether or not an image belongs to it."""
        folder = self.folder(root, category)
        masks = list_images(folder / Path(self.masks).parent)  # those that lie outside the folder of any kind
        for place in sorted(folder.glob(self.masks.format(kind="*"))):
            if self.good not in place.relative_to(folder).parts:  # some data sets give good images black masks
                masks += _masks_in(place)
        return masks


def _masks_in(folder: Path) -> list[Path]:
    """Return the masks of a kind: image files, and folders of image files."""
    return [*list_images(folder), *(inner for inner in subfolders(folder) if list_images(inner))]


def _masks_by_stem(folder: Path) -> dict[str, Path]:
    """Return masks by the stem of their image: "000" for 000.png, 000_mask.png and the folder 000."""
    return {mask.stem.removesuffix("_mask"): mask for mask in _masks_in(folder)}


def _listed_rows(base: Path, split_file: Path, category: str) -> list[tuple]:
    """Return the rows of a category in the order of the split file; any defect is called "bad"."""
    if not split_file.is_file():
        raise InputError(f"{split_file}: no such file; the raw form of VisA needs its split file (from the archive)")
    lines = pd.read_csv(split_file, dtype=str, keep_default_na=False)
    missing = {"object", "split", "label", "image", "mask"}.difference(lines.columns)
    if missing:
        raise InputError(f"{split_file}: no column {min(missing)!r}; expected object,split,label,image,mask")
    rows = []
    for line in lines[lines.object == category].itertuples():
        image, mask, normal = base / line.image, base / line.mask, line.label == "normal"
        if not image.is_file():
            raise InputError(f"{image}: no such image, but {split_file.name} lists it; unpack the archive again")
        mask = mask if not normal and mask.is_file() else None
        rows.append(sample(image, mask, "good" if normal else "bad", line.split, category))
    if not rows:
        raise InputError(f"{split_file}: no line for category {category!r}")
    return rows


MVTEC = Layout(marks=("train/good", "test/*"))
BTAD = Layout(marks=("train/ok",), good="ok")
MVTEC_3D = Layout(marks=("train/good/rgb",), images="rgb", masks="test/{kind}/gt")
LOCO = Layout(marks=("test/logical_anomalies", "test/structural_anomalies"), mask_threshold=0)
VISA = Layout(marks=("Data/Images",), masks="Data/Masks/{kind}", mask_threshold=0, split_file="split_csv/1cls.csv")
VISA_PREPARED = MVTEC._replace(mask_threshold=0)
