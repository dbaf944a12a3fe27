"""The data sets by name: what they are, what they allow, where they come from.

A data set in a layout that is there already needs nothing but an entry here.
"""

from dataclasses import dataclass, field


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


_TERMS = "Accept the terms on the page and download the archive."
_MVTEC_COUNTS = {  # train, test normal, test anomalous
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
_VISA_COUNTS = {
    "candle": (900, 100, 100),
    "capsules": (542, 60, 100),
    "cashew": (450, 50, 100),
    "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100),
    "macaroni1": (900, 100, 100),
    "macaroni2": (900, 100, 100),
    "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100),
    "pcb3": (905, 101, 100),
    "pcb4": (904, 101, 100),
    "pipe_fryum": (450, 50, 100),
}
_MPDD_COUNTS = {
    "bracket_black": (289, 32, 47),
    "bracket_brown": (185, 26, 51),
    "bracket_white": (110, 30, 30),
    "connector": (128, 30, 14),
    "metal_plate": (54, 26, 71),
    "tubes": (122, 32, 69),
}

_ENTRIES = (
    DataSet(
        "demo",
        "demo",
        "photographs CC0 (scikit-image), rendered parts MIT",
        "https://scikit-image.org",
        "none needed",
        size="21 MB, made on first use",
        categories=("brick", "gear", "grass", "gravel", "tray"),
    ),
    DataSet(
        "elpv",
        "elpv",
        "CC BY-NC-SA 4.0",
        "https://github.com/zae-bayern/elpv-dataset",
        "Deitsch et al., Segmentation of photovoltaic module cells in uncalibrated electroluminescence images, 2021",
        size="91 MB",
        categories=("mono", "poly"),
        steps="It comes as a Python package: pip install elpv-dataset",
    ),
    DataSet(
        "mvtec_ad",
        "mvtec",
        "CC BY-NC-SA 4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "Bergmann et al., The MVTec anomaly detection dataset, IJCV 2021",
        size="5.3 GB",
        categories=tuple(_MVTEC_COUNTS),
        counts=_MVTEC_COUNTS,
        archive="mvtec_anomaly_detection.tar.xz",
        sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        steps=_TERMS,
    ),
    DataSet(
        "mvtec_loco",
        "loco",
        "CC BY-NC-SA 4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        "Bergmann et al., Beyond dents and scratches: logical constraints in unsupervised anomaly detection, IJCV 2022",
        categories=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        archive="mvtec_loco_anomaly_detection.tar.xz",
        sha256="9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        steps=_TERMS,
    ),
    DataSet(
        "mvtec_3d",
        "mvtec3d",
        "CC BY-NC-SA 4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
        "Bergmann et al., The MVTec 3D-AD dataset for unsupervised 3D anomaly detection, VISAPP 2022",
        categories=("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire"),
        archive="mvtec_3d_anomaly_detection.tar.xz",
        steps=_TERMS,
    ),
    DataSet(
        "visa",
        "visa",
        "CC BY 4.0",
        "https://github.com/amazon-science/spot-diff",
        "Zou et al., SPot-the-difference self-supervised pre-training for anomaly detection, ECCV 2022",
        size="1.9 GB",
        categories=tuple(_VISA_COUNTS),
        counts=_VISA_COUNTS,
        url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
        archive="VisA_20220922.tar",
        sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
    ),
    DataSet(
        "btad",
        "btad",
        "CC BY-SA 4.0 (its README; others say NC)",
        "https://github.com/pankajmishra000/VT-ADL",
        "Mishra et al., VT-ADL: a vision transformer network for image anomaly detection and localization, ISIE 2021",
        categories=("01", "02", "03"),
        counts={"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)},
        url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
        archive="btad.zip",
        sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
    ),
    DataSet(
        "mpdd",
        "mvtec",
        "CC BY-NC-SA 4.0",
        "https://github.com/stepanje/MPDD",
        "Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021",
        categories=tuple(_MPDD_COUNTS),
        counts=_MPDD_COUNTS,
        steps="Follow the OneDrive link on the page.",
    ),
    DataSet(
        "wfdd",
        "mvtec",
        "MIT (its repository)",
        "https://github.com/cqylunlun/GLASS",
        "Chen et al., A unified anomaly synthesis strategy with gradient ascent (GLASS), ECCV 2024",
        categories=("grey_cloth", "grid_cloth", "pink_flower", "yellow_cloth"),
        steps="Follow the Google Drive link in the README.",
    ),
    DataSet(
        "mad_man",
        "mvtec",
        "images are MVTec AD's: CC BY-NC-SA 4.0",
        "https://github.com/cqylunlun/GLASS",
        "Chen et al., A unified anomaly synthesis strategy with gradient ascent (GLASS), ECCV 2024",
        categories=tuple(_MVTEC_COUNTS),
        steps="Follow the Google Drive link in the README, and put Person_1 to Person_5 here; the training images are "
        "MVTec AD's, in mvtec_ad beside it. The data root is this folder, or one person's.",
    ),
    DataSet(
        "mad_sys",
        "mvtec",
        "images are MVTec AD's: CC BY-NC-SA 4.0",
        "https://github.com/cqylunlun/GLASS",
        "Chen et al., A unified anomaly synthesis strategy with gradient ascent (GLASS), ECCV 2024",
        categories=("carpet", "grid", "leather", "tile", "wood"),
        steps="Follow the Google Drive link in the README, and put Beta_0.1 to Beta_0.7 here; the training images are "
        "MVTec AD's, in mvtec_ad beside it. The data root is this folder, or one strength's.",
    ),
    DataSet(
        "magnetic_tile",
        "mvtec",
        "none stated; use welcome with citation",
        "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "Huang et al., Surface defect saliency of magnetic tile, The Visual Computer 2020",
        categories=("magnetic_tile",),
        steps="Clone the repository and sort its images into the MVTec layout, masks as <stem>_mask.png.",
    ),
    DataSet(
        "dtd",
        "textures",
        "for research; copyright with the owners",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "Cimpoi et al., Describing textures in the wild, CVPR 2014",
        size="625 MB",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        archive="dtd-r1.0.1.tar.gz",
        sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
    ),
)
DATASETS = {entry.name: entry for entry in _ENTRIES}
