"""What the studies (notebooks 2x) share: one table of measurements, and the few ways to change data or method.

    study = Study("27_robustness", profile, dataset, data_root, category, seed, settings)
    method = PatchCore(**study.method_settings("patchcore")).fit(study.train)
    study.measure(Corrupted(method, "blur", 1.0), kind="blur", amount=1.0)
    study.write()                                         results/studies/27_robustness_<profile>.csv

A study asks what happens when *one* thing changes. Everything else, the profile's settings included, stays.
"""

import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

from adlib import datasets, evaluation, profiles
from adlib.errors import InputError
from adlib.evaluation.metrics import image_metrics
from adlib.images import Batch, batches, patches, read_image, to_tensor
from adlib.images.maps import upsample_and_smooth
from adlib.methods import Scores
from adlib.methods.few_shot.support_images import pixel_hash
from adlib.paths import atomic_path, results_dir, root
from adlib.settings import choice

LABELS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro_30": "AUPRO",
    "false_alarm_rate": "false alarms",
}
METRICS = tuple(LABELS)[:3]
CORRUPTIONS = ("brighter", "darker", "blur", "noise", "jpeg", "shift", "rotation")
SCORERS = ("k-NN", "one-class SVM", "Mahalanobis", "LOF", "isolation forest")


def study_settings(profile: str, study: str, overrides: dict | None = None) -> dict:
    """Return the settings of a study: the profile's, then `overrides` on top; unknown names are refused."""
    studies = profiles.load(profile)["studies"]
    choice("study", study, studies)
    for name in overrides or {}:
        choice(f"setting of {study}", name, studies[study])
    return {**studies[study], **(overrides or {})}


class Study:
    """One study on one category: its data, its settings, and the rows that were measured.

    Args:
        name: of the notebook; `studies:` in the profile holds its settings under this name.
        profile, dataset, data_root, category, seed: as in every notebook.
        settings: changes to the profile's settings of the study.

    Attributes:
        settings: of the study.
        train, test: normal training rows and test rows; at most `settings["n_train"]` and `["n_test"]` where given.
        rows: list of dicts, one a measurement.
    """

    def __init__(self, name, profile, dataset, data_root, category, seed, settings=None):
        self.name, self.profile, self.dataset, self.category, self.seed = name, profile, dataset, category, seed
        self.settings = study_settings(profile, name, settings)
        table = datasets.load(dataset, data_root or None, category)
        train = table[(table.split == "train") & (table.label == 0)]
        self.train = subset(train, self.settings.get("n_train"), seed)
        self.test = subset(table[table.split == "test"], self.settings.get("n_test"), seed)
        self.rows = []

    def method_settings(self, method: str, **changes) -> dict:
        """Return the profile's settings of a method; the study's seed and `changes` and those given here on top."""
        own = self.settings.get("changes", {}).get(method, {})
        settings = profiles.method_settings(self.profile, method, {"seed": self.seed} | own | changes)
        return profiles.shaped(method, settings, self.train.image_path)

    def measure(self, method, test: pd.DataFrame | None = None, /, **columns) -> evaluation.Evaluation:
        """Evaluate a fitted method on the test rows and keep one row: `columns`, metrics, milliseconds per image."""
        test = self.test if test is None else test
        result = evaluation.evaluate(method, test)
        metrics = {key: result.metrics[key] for key in METRICS}
        milliseconds = round(1e3 * result.seconds_per_image["score"], 2)
        self.rows.append(columns | metrics | {"score_ms": milliseconds, "n_test": len(test)})
        return result

    @property
    def table(self) -> pd.DataFrame:
        """What was measured, one row per measurement; metrics as fractions."""
        return pd.DataFrame(self.rows)

    def average(self, keys: list[str]) -> pd.DataFrame:
        """Return the mean in percent over the categories that this profile has written, one row per group of `keys`."""
        table = read(self.name, self.profile)
        places = table.groupby(keys, sort=False, dropna=False).category.nunique().rename("categories")
        return percent(table.groupby(keys, sort=False, dropna=False)[list(METRICS)].mean(), 1).join(places)

    def write(self) -> Path:
        """Write the rows to `results/studies/<name>_<profile>.csv`; rows of other data and seeds there stay."""
        place = {"dataset": self.dataset, "category": self.category, "seed": self.seed}
        own = self.table.assign(**place)
        own = own[[*place, *(column for column in own if column not in place)]]
        write_rows(f"{self.name}_{self.profile}", own, keys=list(place), float_format="%.5g")
        return results_dir() / "studies" / f"{self.name}_{self.profile}.csv"


def write_rows(name: str, rows: pd.DataFrame, keys=(), order=None, float_format: str | None = None):
    """Add rows to `results/studies/<name>.csv`, in place of those there that agree with a new one in all `keys`.

    Args:
        rows: what was measured.
        keys: columns; without any nothing is replaced.
        order: columns to sort the whole by, or None to leave the new rows at the end.

    Returns:
        the whole table.
    """
    file = results_dir() / "studies" / f"{name}.csv"
    if file.is_file():
        old = pd.read_csv(file)
        if keys:
            old = old[~pd.MultiIndex.from_frame(old[list(keys)]).isin(pd.MultiIndex.from_frame(rows[list(keys)]))]
        rows = pd.concat([old, rows])
    rows = rows.sort_values(order, kind="stable") if order else rows
    with atomic_path(file) as temporary:
        rows.to_csv(temporary, index=False, float_format=float_format)
    return rows


def read(name: str, profile: str) -> pd.DataFrame:
    """Return the rows of a study for a profile, else the committed ones; an empty table where it has not been run."""
    places = (results_dir(), root() / "results")  # below $ADLIB_RESULTS a smoke run finds nothing of other profiles
    files = [place / "studies" / f"{name}_{profile}.csv" for place in places]
    return next((pd.read_csv(file) for file in files if file.is_file()), pd.DataFrame())


def percent(table: pd.DataFrame, digits: int = 0) -> pd.DataFrame:
    """Return a table with its metrics in rounded percent, for printing."""
    return table.assign(**{key: (100 * table[key].astype(float)).round(digits) for key in METRICS if key in table})


def melted(table: pd.DataFrame, keys, columns=METRICS) -> pd.DataFrame:
    """Return one row per key and metric for seaborn: `keys`, `measured` (name of the metric) and `percent`."""
    long = table.rename(columns=LABELS).melt(keys, [LABELS[column] for column in columns], "measured", "percent")
    return long.assign(percent=100 * long.percent.astype(float))


# -- data -------------------------------------------------------------------------------------------------------------


def subset(table: pd.DataFrame, n: int | None, seed: int) -> pd.DataFrame:
    """Return at most `n` random rows, each kind of defect in its proportion (at least one row each), in order."""
    if n is None or n >= len(table):
        return table
    rng, rows = np.random.default_rng(seed), []
    for _, group in table.groupby("defect", sort=True):
        count = max(1, round(n * len(group) / len(table)))
        rows.extend(rng.permutation(group.index.to_numpy())[:count])
    return table.loc[sorted(rows)]


def reserve_defects(test: pd.DataFrame, n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take `n` random defective images out of the test rows, for `contaminate`.

    Returns:
        (reserve, rest). The rest is the test set of *every* share of contamination, so that the shares compare, and
        no image is in training and in test.
    """
    bad = test[test.label == 1]
    if n >= len(bad):
        raise InputError(
            f"{n} defective images are needed to contaminate the training data, the test data hold {len(bad)} and must "
            "keep some; lower the shares or n_train"
        )
    reserve = bad.loc[np.random.default_rng(seed).permutation(bad.index.to_numpy())[:n]]
    return reserve, test.drop(reserve.index)


def contaminate(train: pd.DataFrame, reserve: pd.DataFrame, share: float) -> pd.DataFrame:
    """Replace a share of the training rows by defective images that nobody noticed: they carry the label of normals.

    Args:
        train: normal training rows, in random order (the first ones are replaced).
        reserve: from `reserve_defects`; the first rows are used, so a larger share contains the smaller one.
    """
    n = round(share * len(train))
    if not 0 <= share < 1 or n > len(reserve):
        raise InputError(f"share {share} of {len(train)} images must lie in [0, 1) and needs at most {len(reserve)}")
    unnoticed = reserve.iloc[:n].assign(label=0, split="train", defect="good", mask_path=None)
    return pd.concat([unnoticed, train.iloc[n:]])


def corrupt(image: np.ndarray, kind: str, amount: float, rng: np.random.Generator):
    """Change a picture as a camera, a lamp or a conveyor might.

    Args:
        image: uint8 (H, W, 3).
        kind: `brighter` or `darker` (amount: share by which the light grows or falls), `blur` (standard deviation in
            pixels), `noise` (standard deviation as a share of the full range), `jpeg` (100 - quality), `shift` (share
            of the width, to a random side), `rotation` (degrees, to a random side).
        amount: 0 leaves the picture as it is.
        rng: for noise and sides.

    Returns:
        uint8 (H, W, 3), and the float (2, 3) matrix that moved its pixels, or None where they stayed in place.
    """
    choice("corruption", kind, CORRUPTIONS)
    if amount < 0 or (kind == "jpeg" and amount > 99):
        raise InputError(f"amount {amount} of {kind} must not be negative (jpeg: 0 to 99)")
    if amount == 0:
        return image, None
    height, width = image.shape[:2]
    if kind in ("brighter", "darker"):
        gain = 1 + amount if kind == "brighter" else max(0.0, 1 - amount)
        return np.rint(image * gain).clip(0, 255).astype(np.uint8), None
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), amount, borderType=cv2.BORDER_REFLECT), None
    if kind == "noise":
        return np.rint(image + rng.normal(0, 255 * amount, image.shape)).clip(0, 255).astype(np.uint8), None
    if kind == "jpeg":
        _, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(100 - amount)])
        return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]), None
    side = rng.choice([-1, 1], 2)
    if kind == "shift":
        matrix = np.array([[1, 0, side[0] * amount * width], [0, 1, side[1] * amount * width]], np.float64)
    else:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), float(side[0] * amount), 1.0)
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return moved, matrix


def brightness_auroc(test: pd.DataFrame, resize) -> float:
    """Image AUROC of the median grey value alone, in whichever direction it ranks better: in [0.5, 1].

    A control: where it is far from a half, normal and defective test images were taken in different light, and a
    detector can score well, or change its score under a corruption, for a reason that is not the defect.
    """
    grey = [float(np.median(resize.read(path)[0])) for path in test.image_path]
    auroc = image_metrics(np.array(grey), test.label.to_numpy())["image_auroc"]
    return max(auroc, 1 - auroc)


# -- methods ----------------------------------------------------------------------------------------------------------


class Corrupted:
    """A fitted method that is shown corrupted pictures; maps of moved pictures are moved back before they are judged.

    The corruption is applied to the network's input, so `amount` means the same at any size of the original, and its
    randomness depends on the picture, so a batch gives what its images give one by one.
    """

    def __init__(self, method, kind: str, amount: float):
        self.method, self.kind, self.amount = method, kind, amount
        self.resize, self.settings = method.resize, method.settings

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Corrupt, score, and move the maps back."""
        images = batch.images if isinstance(batch, Batch) else batch
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
        pairs = [corrupt(p, self.kind, self.amount, np.random.default_rng(zlib.crc32(p.tobytes()))) for p in pictures]
        scores = self.method.score(to_tensor([picture for picture, _ in pairs]))
        return scores._replace(map=np.stack([_moved_back(m, f[1]) for m, f in zip(scores.map, pairs, strict=True)]))


def _moved_back(anomaly_map: np.ndarray, matrix) -> np.ndarray:
    if matrix is None:
        return anomaly_map
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(anomaly_map, matrix, anomaly_map.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


class WithScorer:
    """PatchCore's features with another scorer in place of its nearest neighbour."""

    def __init__(self, patchcore, score_rows):
        self.patchcore, self.score_rows = patchcore, score_rows
        self.resize, self.settings = patchcore.resize, patchcore.settings

    def score(self, batch: Batch | torch.Tensor) -> Scores:
        """Score every patch; the image score is the largest, the map is enlarged and smoothed as PatchCore's."""
        images = batch.images if isinstance(batch, Batch) else batch
        grid = self.patchcore.embed(images)  # (B, D, h, w)
        scores = self.score_rows(patches.to_rows(grid).cpu().numpy()).astype(np.float32)  # (B h w,)
        scores = patches.to_grid(torch.from_numpy(scores), tuple(grid.shape[2:]))
        maps = upsample_and_smooth(scores, tuple(images.shape[-2:]), self.settings.sigma)
        return Scores(scores.flatten(1).amax(1).numpy(), maps)


def fit_scorer(name: str, rows: np.ndarray, seed: int = 0):
    """Fit one of scikit-learn's novelty detectors to rows (N, D) of normal features.

    Parameters are scikit-learn's defaults but for two: the one-class SVM may call 5 % of the rows outliers (`nu`; the
    default of half of them is meant for dirty data), and LOF runs in its novelty mode. Rows are standardised first,
    which k-NN, LOF and the SVM need and the other two do not mind.

    Returns:
        function rows (n, D) -> float64 (n,), higher is more anomalous.
    """
    from sklearn.covariance import LedoitWolf
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import OneClassSVM

    choice("scorer", name, SCORERS)
    scaler = StandardScaler().fit(rows)
    rows = scaler.transform(rows)
    if name == "k-NN":
        model = NearestNeighbors(n_neighbors=1).fit(rows)
        return lambda x: model.kneighbors(scaler.transform(x))[0][:, 0]
    if name == "Mahalanobis":
        model = LedoitWolf().fit(rows)
        return lambda x: model.mahalanobis(scaler.transform(x))
    model = {
        "one-class SVM": lambda: OneClassSVM(nu=0.05),
        "LOF": lambda: LocalOutlierFactor(novelty=True),
        "isolation forest": lambda: IsolationForest(random_state=seed),
    }[name]().fit(rows)
    return lambda x: -model.score_samples(scaler.transform(x))


class RememberingBackbone(nn.Module):
    """A frozen backbone that runs once per image: features are kept by the image's pixels.

    Variants of a method that differ behind the features (coreset, number of images, scorer) then cost no second pass.
    Memory: the feature maps of every image that was seen, for Lite0 at 256 pixels about 0.3 MB each.
    """

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.features = backbone, {}
        for name in ("name", "stages", "channels", "strides", "fingerprint"):
            setattr(self, name, getattr(backbone, name))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one feature map (B, C_l, H_l, W_l) a stage, as `Backbone` does."""
        keys = [pixel_hash(image.cpu()) for image in images]
        new = [i for i, key in enumerate(keys) if key not in self.features]
        if new:
            maps = self.backbone(images[new])
            self.features |= {keys[i]: [m[j].clone() for m in maps] for j, i in enumerate(new)}
        return [torch.stack(stage) for stage in zip(*(self.features[key] for key in keys), strict=True)]


def remembering(method, shared: RememberingBackbone | None = None):
    """Give a method a `RememberingBackbone` (a shared one, or its own) and return the method."""
    method.backbone = shared or RememberingBackbone(method.backbone)
    return method


def time_breakdown(method, image_paths) -> dict[str, float]:
    """Time `score` for one image at a time and split it: features (`embed`), and all the rest (search, map).

    Returns:
        {"features_ms", "search_ms"}: medians over the images; the first image warms up and is not counted.
    """
    embed, features, rest = method.embed, [], []

    def timed(images):
        started = time.perf_counter()
        maps = embed(images)
        features.append(time.perf_counter() - started)
        return maps

    method.embed = timed  # on this object only, for the time being
    try:
        for batch in batches(image_paths, method.resize, 1):
            started = time.perf_counter()
            method.score(batch)
            rest.append(time.perf_counter() - started - features[-1])
    finally:
        del method.embed
    if len(rest) < 2:
        raise InputError(f"{len(rest)} image(s) given to be timed; at least 2 are needed, the first only warms up")
    times = {"features_ms": features[1:], "search_ms": rest[1:]}
    return {name: round(1e3 * float(np.median(seconds)), 2) for name, seconds in times.items()}
