"""One's own parts: a model from a folder of good images, and heat maps for a folder of new ones.

    adlib train -i GOOD_DIR -o model/        adlib threshold -m model/ -i OTHER_GOOD_DIR
    adlib predict -m model/ -i DIR -o OUT

For every image OUT holds, at the size of the original: `overlays/*.jpg` (one colour scale across all images),
`maps/*.npy` (raw scores, NaN where a crop hid the image), `contours/*.jpg` and `polygons/*.json` (regions above the
pixel threshold); and one `scores.csv` for all.
"""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from adlib import methods, profiles
from adlib.errors import InputError
from adlib.evaluation import thresholds
from adlib.images import Batch, list_images, read_image, to_tensor
from adlib.methods import storage
from adlib.paths import atomic_path

COLORMAP = cv2.COLORMAP_INFERNO  # monotone in lightness: readable in grey and for colour-blind readers
OUTLINE = (0, 158, 230)  # orange (BGR)


def normal_table(folder) -> tuple[pd.DataFrame, list[str]]:
    """Return a training table of every readable image below `folder`, and one line for each unreadable file."""
    files, unreadable = _readable_images(folder)
    if not files:
        raise InputError(f"{folder}: none of the images in this folder can be read ({unreadable[0]})")
    table = pd.DataFrame({"image_path": [str(f) for f in files], "mask_path": None, "label": 0, "defect": "good"})
    return table.assign(split="train", category=Path(folder).resolve().name), unreadable


def train(folder, out, method: str = "patchcore", settings: dict | None = None) -> tuple[object, list[str]]:
    """Fit a method on a folder of good images, set its thresholds from held-out scores and save it to `out`.

    Returns:
        the fitted method and one line for each file that was skipped.
    """
    table, unreadable = normal_table(folder)
    settings = profiles.shaped(method, settings or {}, table.image_path, report=print)
    fitted = methods.create(method, **settings).fit(table)
    facts = {}
    if len(fitted.normal_scores) >= 2:
        for name, scores in (("threshold", fitted.normal_scores), ("pixel_threshold", fitted.normal_map_maxima)):
            facts[name] = thresholds.from_normals(scores, "quantile", 0.05).to_dict()
    fitted.save(out, **facts)  # one write: never a new model beside the thresholds of the one before
    return fitted, unreadable


def set_threshold(model, folder, rule: str = "quantile", false_alarm_rate: float = 0.05, n_sigma: float = 3.0):
    """Score a folder of good images that the model has not seen and store the thresholds that follow.

    Returns:
        the image threshold, the pixel threshold, and one line for each file that was skipped.
    """
    fitted = methods.load(model)
    files, unreadable = _readable_images(folder)
    scored = [_score_one(fitted, read_image(file)) for file in tqdm(files, desc="score", disable=None, leave=False)]
    scores = [score for score, _ in scored]
    maxima = [float(np.nanmax(anomaly_map)) for _, anomaly_map in scored]
    return *_store_thresholds(model, scores, maxima, rule, false_alarm_rate, n_sigma), unreadable


def predict(model, folder, out, threshold=None, pixel_threshold=None, min_area: float = 0.0005):
    """Score every image below `folder` and write overlays, maps, contours, polygons and `scores.csv` to `out`.

    Args:
        model: folder of a saved model.
        folder: images of any size, nested folders included. Unreadable files are skipped and named.
        out: output folder; file names follow the names below `folder`.
        threshold, pixel_threshold: replace the stored ones (units of the score).
        min_area: regions smaller than this share of the image are left out.

    Returns:
        the score table and one line for each file that was skipped.
    """
    out, folder = Path(out), Path(folder)
    if out.is_file():
        raise InputError(f"output {out} is a file; give a folder")
    if not 0 <= min_area < 1:
        raise InputError(f"min_area {min_area} must be a share of the image in [0, 1)")
    header = storage.read_header(model)
    fitted = methods.load(model)
    if threshold is None:
        threshold = (header.get("threshold") or {}).get("value")
    if pixel_threshold is None:
        pixel_threshold = (header.get("pixel_threshold") or {}).get("value")
    files = _image_files(folder)

    rows, skipped, lows, highs = [], [], [], []
    names = _output_names(files, folder)
    for file in tqdm(files, desc="score", disable=None, leave=False):
        try:
            image = read_image(file)
        except InputError as error:
            skipped.append(str(error))
            continue
        score, anomaly_map = _score_one(fitted, image)
        with atomic_path(out / "maps" / f"{names[file]}.npy") as temporary:
            np.save(temporary, anomaly_map)
        lows.append(float(np.nanmedian(anomaly_map)))
        highs.append(float(np.nanmax(anomaly_map)))
        rows.append({"image": file.relative_to(folder).as_posix(), "score": score, "map_max": highs[-1]})
    if not rows:
        raise InputError(f"{folder}: none of the images in this folder can be read ({skipped[0]})")

    # One colour scale for all images; never tighter than twice the pixel threshold, or a batch of good parts would
    # glow with its own noise.
    scale = min(lows), max([*highs, 2 * (pixel_threshold or 0.0) - min(lows)])
    readable = [file for file in files if file.relative_to(folder).as_posix() in {row["image"] for row in rows}]
    for file, row in zip(tqdm(readable, desc="draw", disable=None, leave=False), rows, strict=True):
        image, name = read_image(file), names[file]
        anomaly_map = np.load(out / "maps" / f"{name}.npy", allow_pickle=False)
        _write_jpeg(out / "overlays" / f"{name}.jpg", overlay(image, anomaly_map, scale))
        regions = find_regions(anomaly_map, pixel_threshold, min_area) if pixel_threshold is not None else []
        _write_jpeg(out / "contours" / f"{name}.jpg", draw_regions(image, regions))
        with atomic_path(out / "polygons" / f"{name}.json") as temporary:
            text = {"image": row["image"], "size": list(image.shape[:2]), "threshold": pixel_threshold}
            temporary.write_text(json.dumps(text | {"regions": regions}) + "\n")
        row |= {"threshold": threshold, "anomalous": None if threshold is None else row["score"] > threshold}
        row |= {"n_regions": len(regions), "region_area": sum(region["area"] for region in regions)}
    table = pd.DataFrame(rows)
    with atomic_path(out / "scores.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table, skipped


def overlay(image: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Lay an anomaly map (H, W) over an image (H, W, 3): the higher the score, the more of the colour shows.

    Args:
        scale: the scores that mean "nothing" and "full colour"; a flat scale gives the plain image.
    """
    low, high = scale
    span = high - low
    strength = np.clip((anomaly_map - low) / span, 0, 1) if span > 0 else np.zeros_like(anomaly_map)
    strength = np.nan_to_num(strength, nan=0.0)
    colour = cv2.applyColorMap(np.uint8(255 * strength), COLORMAP)[..., ::-1]
    opacity = 0.75 * strength[..., None] ** 0.7
    return np.uint8(np.round((1 - opacity) * image + opacity * colour))


def find_regions(anomaly_map: np.ndarray, pixel_threshold: float, min_area: float = 0.0005) -> list[dict]:
    """Return the connected regions above a threshold as polygons, largest first.

    Returns:
        one dict a region: `polygon` [[x, y], ...] and `holes` in pixels of the map, `area` (share of the image),
        `max_score`.
    """
    above = np.uint8(np.nan_to_num(anomaly_map, nan=-np.inf) > pixel_threshold)
    n_labels, labels, statistics, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = []
    for label in range(1, n_labels):
        area = statistics[label, cv2.CC_STAT_AREA] / above.size
        if area < min_area:
            continue
        region = np.uint8(labels == label)
        outlines, hierarchy = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        outer = [c[:, 0].tolist() for c, h in zip(outlines, hierarchy[0], strict=True) if h[3] < 0]
        holes = [c[:, 0].tolist() for c, h in zip(outlines, hierarchy[0], strict=True) if h[3] >= 0]
        score = float(np.nanmax(anomaly_map[region > 0]))
        regions.append({"polygon": outer[0], "holes": holes, "area": round(float(area), 6), "max_score": score})
    return sorted(regions, key=lambda region: -region["area"])


def draw_regions(image: np.ndarray, regions: list[dict]) -> np.ndarray:
    """Draw regions on an image: filled at 40 %, outlined in 2 pixels (more on large images)."""
    contours = [np.array(p, np.int32) for region in regions for p in (region["polygon"], *region["holes"])]
    filled = image.copy()
    cv2.drawContours(filled, contours, -1, OUTLINE[::-1], thickness=cv2.FILLED)
    drawn = cv2.addWeighted(filled, 0.4, image, 0.6, 0)
    width = max(2, round(min(image.shape[:2]) / 250))
    cv2.drawContours(drawn, contours, -1, OUTLINE[::-1], thickness=width)
    return drawn


def _score_one(fitted, image: np.ndarray):
    prepared, geometry = fitted.resize.image(image)
    scores = fitted.score(Batch(to_tensor([prepared]), ("",), (geometry,)))
    return float(scores.image[0]), geometry.to_original(scores.map[0])


def _image_files(folder) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of images")
    files = list_images(folder, recursive=True)
    if not files:
        raise InputError(
            f"{folder} holds no image (.png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp), nested folders included"
        )
    return files


def _readable_images(folder) -> tuple[list[Path], list[str]]:
    readable, unreadable = [], []
    for file in _image_files(folder):
        try:
            read_image(file)
            readable.append(file)
        except InputError as error:
            unreadable.append(str(error))
    return readable, unreadable


def _output_names(files: list[Path], folder: Path) -> dict[Path, str]:
    """Name outputs like the images, without suffix; where two images share a stem, keep the suffix in the name."""
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    return {
        file: f"{stem}_{file.suffix[1:].lower()}" if stem in twice else stem
        for file, stem in zip(files, stems, strict=True)
    }


def _store_thresholds(model, scores, maxima, rule, rate, n_sigma=3.0):
    image = thresholds.from_normals(scores, rule, rate, n_sigma)
    pixel = thresholds.from_normals(maxima, rule, rate, n_sigma)
    storage.update_header(model, threshold=image.to_dict(), pixel_threshold=pixel.to_dict())
    return image, pixel


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        ok, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        if not ok:
            raise InputError(f"{path} could not be written as JPEG")
        temporary.write_bytes(encoded.tobytes())
