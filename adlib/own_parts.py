"""One's own parts: a model from a folder of good images, and heat maps for a folder of new ones.

    adlib train -i GOOD_DIR -o model/        adlib threshold -m model/ -i OTHER_GOOD_DIR
    adlib predict -m model/ -i DIR -o OUT    adlib update -m model/ -i MORE_GOOD_DIR

For every image OUT holds, at the size of the original: `overlays/*.jpg` (one colour scale across all images, drawn in
`scale.png`), `maps/*.npy` (raw scores, NaN where a crop hid the image), `contours/*.jpg` and `polygons/*.json` (the
regions of flagged images, see `decide`). `scores.csv` has a row per image; until all are drawn it is called
`scores.partial.csv`. `adlib-predict.json` says how they were made and lists them, so that the next run may remove them.
"""

import base64
import contextlib
import csv
import functools
import itertools
import json
import math
import os
import sys
import tempfile
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from adlib import methods, profiles
from adlib.datasets.table import existing_folder, file_hash, seeded_share, subfolders
from adlib.errors import InputError
from adlib.evaluation import thresholds
from adlib.images import IMAGE_SUFFIXES, RESULTS_MARK, Batch, list_images, read_image, read_mask, to_tensor
from adlib.methods import storage
from adlib.methods.normals import score_normals
from adlib.methods.onnx_model import OnnxModel
from adlib.paths import atomic_path, writing

COLORMAP = cv2.COLORMAP_INFERNO  # monotone in lightness: readable in grey and for colour-blind readers
OPACITY = 0.75 * np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(0.7)  # of the 256 colours
GREY = (124, 116, 104)  # mean of ImageNet: what lies outside of a region of interest
OUTLINE = (0, 158, 230)  # orange (BGR)
COLUMNS = ("image", "score", "map_max", "threshold", "anomalous", "n_regions", "region_area")  # of scores.csv
KEPT = ("threshold", "pixel_threshold", "roi", "tiles")  # of a model: what is said of images, and where it looks
KINDS = {"overlays": ".jpg", "maps": ".npy", "contours": ".jpg", "polygons": ".json"}  # what is written of an image


def normal_table(folder) -> tuple[pd.DataFrame, list[str]]:
    """Return a training table of every readable image below `folder`, and one line for each unreadable file."""
    files, unreadable = _readable_images(folder)
    table = pd.DataFrame({"image_path": [str(f) for f in files], "mask_path": None, "label": 0, "defect": "good"})
    return table.assign(split="train", category=Path(folder).resolve().name), unreadable


def product_tables(folder) -> dict[str, pd.DataFrame]:
    """Return a table of normal images for each product below `folder`: of its `train/good`, or of all its images."""
    places = {place.name: place for place in subfolders(existing_folder(folder))}
    good = {name: place / "train" / "good" for name, place in places.items()}
    if not places:
        raise InputError(f"{folder} holds no folder; give one with a folder of good images for each other product")
    return {name: normal_table(good[name] if good[name].is_dir() else place)[0] for name, place in places.items()}


def train(
    folder, out, method="patchcore", settings: dict | None = None, roi=(), products=None, checkpoint=None, tiles=None
) -> tuple[object, list[str]]:
    """Fit a method on a folder of good images, set its thresholds from held-out scores and save it to `out`.

    Args:
        roi: masks of the region of interest, see `read_roi`; the model keeps them, and `predict` uses them.
        products: folder of other products, each a folder of good images or in the MVTec layout; `few_shot` and
            `unified` are trained on them first, `contrastive` on them alone.
        tiles: (rows, columns) of a grid of tiles, for large parts with small defects: the method sees each tile at its
            input size; the score of an image is the highest of its tiles'.
        checkpoint: weights that GLASS's authors released (`ckpt*.pth`), in place of training; the settings are those
            they were trained with, and the images only set the thresholds.

    Returns:
        the fitted method and one line for each file that was skipped.
    """
    keep_apart(out, folder)
    if products is not None:
        keep_apart(out, products)
    table, unreadable = normal_table(folder)
    facts = {"trained_on": sorted({file_hash(path) for path in table.image_path}), "roi": read_roi(roi)}
    facts |= {"tiles": tiles} if tiles else {}
    settings = settings or {}
    depth = profiles.shaped(method, settings | {"resize": "stretch"}, table.image_path, print).get("bit_depth")
    if os.path.isfile(settings.get("weights", "")):
        settings = settings | {"weights": os.path.abspath(settings["weights"])}  # the model is used from other folders
    with _inside(table, facts, depth) as inside:
        settings = profiles.shaped(method, settings | {"bit_depth": depth}, inside.image_path, print)
        fitted = methods.create(method, **settings)
        if products is not None and method not in ("few_shot", "contrastive", "unified"):
            raise InputError(f"{method} is not trained on other products; few_shot, contrastive and unified are")
        if products is not None and method == "contrastive":
            fitted.products = product_tables(products)
        elif products is not None:
            fitted.train_episodes(product_tables(products))
            print(f"trained on {', '.join(fitted.trained_on)}: step {fitted.history.selected_step} is kept")
        if tiles:
            _fit_to_tiles(fitted, table, inside, math.prod(tiles))
        elif checkpoint is None:
            fitted.fit(inside)
        else:
            fitted.use_original(checkpoint, normals=inside)
            facts["trained_on"] = []
    if len(fitted.normal_scores) >= 2:
        facts |= _thresholds(fitted.normal_scores, fitted.normal_map_maxima)
    if method == "unified" and not (fitted.history and fitted.history.selected_step):
        print("unified: its head is untrained (step 0); --products DIR trains it on other products")
    fitted.save(out, **facts)  # one write: never a new model beside the thresholds of the one before
    return fitted, unreadable


def _fit_to_tiles(fitted, table: pd.DataFrame, inside: pd.DataFrame, n: int) -> None:
    """Fit a method to the tiles of images, `n` of each; those of an image are held out together, or not at all.

    Held out for the thresholds are the method's share, and of a few images five, or half of them.
    """
    if len(table) < 4:
        raise InputError(f"tiles need at least 4 good images, to hold whole ones out; {len(table)} are there")
    share = max(getattr(fitted.settings, "hold_out", 0.15), min(5, len(table) // 2) / len(table))
    apart = seeded_share(len(table), share, fitted.settings.seed).repeat(n)
    train, held_out = (inside[rows].reset_index(drop=True) for rows in (~apart, apart))
    fitted.fit(train, held_out)
    score_normals(fitted, held_out)  # PatchCore leaves tiles out one by one, but not their neighbours
    for name in ("normal_scores", "normal_map_maxima"):
        setattr(fitted, name, getattr(fitted, name).reshape(-1, n).max(axis=1))


def update(model, folder) -> tuple[int, list[str]]:
    """Let a model take in more good images, false alarms for example, where its method can (PatchCore, few_shot).

    Its thresholds stay. They follow from held-out scores against fewer images, and with more to compare with no score
    rises: there are not more false alarms than was asked for. `set_threshold` finds them anew from other good images.

    Returns:
        the number of images that the model did not have yet, and one line for each file that was skipped.

    Raises:
        InputError: a model of this method has to be trained again.
    """
    header, fitted = storage.read_header(model), methods.load(model)
    if getattr(fitted, "add", None) is None:
        again = f"adlib train --method {header['method']} -i GOOD_DIR -o {model}"
        raise InputError(f"{model}: {header['method']} takes in no more images; train it again on old and new: {again}")
    table, unreadable = normal_table(folder)
    digests = pd.Series([file_hash(path) for path in table.image_path], table.index)
    new = ~digests.isin(header.get("trained_on", ())) & ~digests.duplicated()
    if new.any():
        with _inside(table[new].reset_index(drop=True), header, fitted.settings.bit_depth) as inside:
            fitted.add(inside)
        kept = {key: header[key] for key in KEPT if key in header}
        fitted.save(model, trained_on=sorted({*header.get("trained_on", ()), *digests}), **kept)
    return int(new.sum()), unreadable


def read_roi(entries) -> list[list[str]]:
    """Read masks of what is to be inspected, true inside, as a model keeps them: [pattern, PNG as base64] each.

    Args:
        entries: "mask.png" for all images, or "PATTERN=mask.png" for those of a camera pose, by name ("top_*") or
            folder ("top/*"); the first pattern that an image has is its own.

    Raises:
        InputError: no such mask, or one that is black.
    """
    stored = []
    for entry in entries:
        pattern, _, file = ("", "", entry) if os.path.isfile(entry) else entry.rpartition("=")
        mask = read_mask(file)
        if not mask.any():
            raise InputError(f"{file}: region of interest is black; paint white what is to be inspected")
        png = cv2.imencode(".png", np.uint8(mask) * 255)[1]
        stored.append([pattern or "*", base64.b64encode(png.tobytes()).decode()])
    return stored


@functools.lru_cache(8)
def _mask(png: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_GRAYSCALE) > 0


def only_inside(file, image: np.ndarray, roi) -> tuple[np.ndarray, np.ndarray | None]:
    """Paint an image (H, W, 3) grey outside of its region of interest, so that nothing there can train or score.

    Returns:
        the image, and the mask (H, W), None where there are no regions.

    Raises:
        InputError: no pattern is that of the file, or its mask is of another size.
    """
    if not roi:
        return image, None
    mask = next((_mask(png) for pattern, png in roi if Path(file).match(pattern)), None)
    if mask is None:
        raise InputError(f"{file}: no region of interest is for images of this name; train with --roi PATTERN=MASK")
    if mask.shape != image.shape[:2]:
        raise InputError(f"{file}: image is {image.shape[:2]}, its region of interest {mask.shape}; sizes must agree")
    return np.where(mask[..., None], image, np.uint8(GREY)), mask


def set_threshold(
    model, folder, rule: str = "quantile", false_alarm_rate: float = 0.05, n_sigma: float = 3.0, even_so: bool = False
):
    """Score a folder of good images that the model has not seen and store the thresholds that follow.

    Args:
        even_so: take images that the model was trained on as well; they score lower than new ones, so that the
            threshold comes out too low.

    Returns:
        the thresholds as they are stored, and one line for each file that was skipped.

    Raises:
        InputError: the model was trained on some of the images.
    """
    header, fitted = storage.read_header(model), methods.load(model)
    files = _image_files(folder)
    trained_on = set(header.get("trained_on", ()))
    copies = [file for file in files if trained_on and file_hash(file) in trained_on]
    if copies and not even_so:
        raise InputError(
            f"{copies[0]}: the model was trained on this image ({len(copies)} of {len(files)} there), and a threshold "
            "from it would flag good parts; give other good images, or --even-so"
        )
    scores, maxima, skipped = [], [], []
    for file in tqdm(files, desc="score", disable=None, leave=False):
        try:
            score, anomaly_map, _ = _score_one(fitted, file, header)
        except InputError as error:
            skipped.append(str(error))
            continue
        scores.append(score)
        maxima.append(float(np.nanmax(anomaly_map)))
    facts = _thresholds(scores, maxima, rule, false_alarm_rate, n_sigma)
    storage.update_header(model, **facts)
    return facts, skipped


def predict(model, folder, out, threshold=None, pixel_threshold=None, min_area: float = 0.0005):
    """Score every image below `folder` and write overlays, maps, contours, polygons and `scores.csv` to `out`.

    Args:
        model: folder of a saved model, or its ONNX file.
        folder: images of any size, nested folders included. Unreadable files are skipped and named.
        out: output folder, empty or of an earlier run, whose files are removed; names follow those below `folder`.
        threshold, pixel_threshold: replace the stored ones (units of the score).
        min_area: regions smaller than this share of the image are left out.

    Returns:
        the score table and one line for each file that was skipped.
    """
    out, folder = Path(out), Path(folder)
    if not 0 <= min_area < 1:
        raise InputError(f"min_area {min_area} must be a share of the image in [0, 1)")
    header, fitted = _open(model)
    threshold = header.get("threshold", {}).get("value") if threshold is None else threshold
    if pixel_threshold is None:
        pixel_threshold = header.get("pixel_threshold", {}).get("value")
    for name, value in (("threshold", threshold), ("pixel_threshold", pixel_threshold)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} {value} must be a number in the units of the score")
    keep_apart(out, folder)
    files = _image_files(folder)
    names = output_names([file.relative_to(folder).as_posix() for file in files])
    written = ["scores.csv", "scores.partial.csv", "scale.png", "report.html"]
    written += [f"{kind}/{name}{suffix}" for name in names for kind, suffix in KINDS.items()]
    facts = {"input": str(folder), "model": str(model), "threshold": threshold, "pixel_threshold": pixel_threshold}
    facts |= {"min_area": min_area, "files": written}
    _start_results(out, facts)

    rows, drawn, skipped, lows, highs = [], [], [], [], []
    # A row is on the disk as soon as its image is scored, whatever happens to the next one.
    csv_file = out / "scores.partial.csv"
    with writing(csv_file), open(csv_file, "w", encoding="utf-8", errors="surrogateescape", newline="") as partial:
        lines = csv.DictWriter(partial, COLUMNS, lineterminator="\n")
        lines.writeheader()
        for file, name in zip(tqdm(files, desc="score", disable=None, leave=False), names, strict=True):
            try:
                score, anomaly_map, image = _score_one(fitted, file, header)
            except InputError as error:
                skipped.append(str(error))
                continue
            with atomic_path(out / "maps" / f"{name}.npy") as temporary:
                np.save(temporary, anomaly_map)
            anomalous, regions = decide(score, anomaly_map, threshold, pixel_threshold, min_area)
            write_image(out / "contours" / f"{name}.jpg", draw_regions(image, regions))
            inside, area = file.relative_to(folder).as_posix(), sum(region["area"] for region in regions)
            values = inside, score, float(np.nanmax(anomaly_map)), threshold, anomalous, len(regions), area
            row = dict(zip(COLUMNS, values, strict=True))
            with atomic_path(out / "polygons" / f"{name}.json") as temporary:
                text = {"image": inside, "size": list(image.shape[:2]), "threshold": pixel_threshold}
                temporary.write_text(json.dumps(text | {"regions": regions}) + "\n")
            lines.writerow({key: f"{value:.6g}" if type(value) is float else value for key, value in row.items()})
            partial.flush()
            rows.append(row)
            drawn.append((file, name))
            lows.append(float(np.nanmedian(anomaly_map)))
            highs.append(row["map_max"])
    if not rows:
        raise InputError(f"{folder}: none of the images in this folder can be read ({skipped[0]})")
    del image, anomaly_map  # the last ones, of an image of 90 megapixels 650 MB

    # One colour scale for all images; never tighter than twice the pixel threshold, or a batch of good parts would
    # glow with its own noise.
    scale = min(lows), max([*highs, 2 * (pixel_threshold or 0.0) - min(lows)])
    write_image(out / "scale.png", scale_bar(scale))

    def draw(file, name) -> str:
        anomaly_map = np.load(out / "maps" / f"{name}.npy", allow_pickle=False)
        try:
            image = read_image(file, fitted.settings.bit_depth)
        except InputError as error:
            return str(error)
        if image.shape[:2] != anomaly_map.shape:
            return f"{file}: changed while it was scored; its row is that of the earlier image"
        write_image(out / "overlays" / f"{name}.jpg", overlay(image, anomaly_map, scale))
        return ""

    with ThreadPool(torch.get_num_threads()) as pool:  # decoding and encoding hold no lock
        lines = pool.imap(lambda place: draw(*place), drawn)
        skipped += filter(None, tqdm(lines, desc="draw", total=len(drawn), disable=None, leave=False))
    _write_facts(out, facts | {"scale": scale})
    os.replace(csv_file, out / "scores.csv")
    return pd.DataFrame(rows, columns=list(COLUMNS)), skipped


def decide(score: float, anomaly_map: np.ndarray, threshold, pixel_threshold, min_area: float = 0.0005):
    """Return what is said of an image, so that the verdict and the picture agree: (anomalous or None, regions).

    The image score alone decides, by the threshold that held-out normal images gave it, so that the rate of false
    alarms is the one that was asked for. Regions are shown of flagged images: those of the map above
    `pixel_threshold` (see `find_regions`), and always the surroundings of the highest place of the map, also where they
    are below it or smaller than `min_area`. Without a `threshold` nothing is flagged, and any region is shown.
    """
    anomalous = None if threshold is None else bool(score > threshold)
    if anomalous is False or (anomalous is None and pixel_threshold is None):
        return anomalous, []
    level = math.inf if pixel_threshold is None else pixel_threshold
    regions, peak = find_regions(anomaly_map, level, min_area), float(np.nanmax(anomaly_map))
    if anomalous and all(region["max_score"] < peak for region in regions):
        middle = float(np.nanmedian(anomaly_map))
        level = min(level, middle + 0.8 * (peak - middle), float(np.nextafter(peak, -math.inf, dtype=np.float32)))
        regions.append(max(find_regions(anomaly_map, level, 0.0), key=lambda region: region["max_score"]))
    return anomalous, regions


def overlay(image: np.ndarray, anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Lay an anomaly map (H, W) over an image (H, W, 3): the higher the score, the more of the colour shows.

    Args:
        scale: the scores that mean "nothing" and "full colour"; a flat scale gives the plain image.
    """
    low, high = scale
    span, drawn = high - low, np.empty_like(image)
    step = max(1, 2**20 // image.shape[1])  # rows at a time: in floating point a large image takes 24 times its size
    for top in range(0, len(image), step):
        rows = slice(top, top + step)
        strength = np.clip((anomaly_map[rows] - low) / span, 0, 1) if span > 0 else np.zeros_like(anomaly_map[rows])
        level = np.uint8(255 * np.nan_to_num(strength, nan=0.0))
        colour, opacity = cv2.cvtColor(cv2.applyColorMap(level, COLORMAP), cv2.COLOR_BGR2RGB), OPACITY[level]
        drawn[rows] = cv2.blendLinear(np.ascontiguousarray(image[rows]), colour, 1 - opacity, opacity)
    return drawn


def scale_bar(scale: tuple[float, float]) -> np.ndarray:
    """Draw the colours of `overlay` and the scores at their two ends: uint8 (64, 512, 3)."""
    ramp = np.tile(np.linspace(*scale, 480, dtype=np.float32), (24, 1))
    bar = np.full((64, 512, 3), 255, np.uint8)
    bar[8:32, 16:496] = overlay(bar[8:32, 16:496], ramp, scale)
    for x, text in ((16, f"{scale[0]:.4g}: nothing"), (390, f"{scale[1]:.4g}: full")):
        cv2.putText(bar, text, (x, 52), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def find_regions(anomaly_map: np.ndarray, pixel_threshold: float, min_area: float = 0.0005) -> list[dict]:
    """Return the connected regions above a threshold as polygons, largest first.

    Returns:
        one dict per region: `polygon` [[x, y], ...] and `holes` in pixels of the map, `area` (share of the image),
        `max_score`.
    """
    above = np.uint8(np.nan_to_num(anomaly_map, nan=-np.inf) > pixel_threshold)
    n_labels, labels, statistics, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    regions = []
    for label in range(1, n_labels):
        area = statistics[label, cv2.CC_STAT_AREA] / above.size
        if area < min_area:
            continue
        left, top, width, height = (int(value) for value in statistics[label, :4])
        box = np.s_[top : top + height, left : left + width]  # of a large image a region is a small part
        region = np.uint8(labels[box] == label)
        outlines, hierarchy = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        outer = [c[:, 0].tolist() for c, h in zip(outlines, hierarchy[0], strict=True) if h[3] < 0]
        holes = [c[:, 0].tolist() for c, h in zip(outlines, hierarchy[0], strict=True) if h[3] >= 0]
        score = float(np.nanmax(anomaly_map[box][region > 0]))
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


def output_names(files: list[str]) -> list[str]:
    """Name the results of images, given by their paths from one folder: without suffix where that is unmistakable.

    No two names are the same, on systems either that do not tell "a" from "A", and none is too long for a file.
    """
    stems = [os.path.splitext(file)[0] for file in files]
    counts = Counter(stem.casefold() for stem in stems)
    # A folder may be called like a result: a.npy/b.png beside a.png.
    taken = {str(folder).casefold() for file in files for folder in Path(file).parents}
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = stem if counts[stem.casefold()] == 1 else f"{stem}_{os.path.splitext(file)[1][1:].lower()}"
        folder, name = os.path.split(name)
        if len(os.fsencode(name)) > 240:  # a suffix and a number must have room in the 255 bytes of a name
            name = os.fsencode(name)[:240].decode(errors="ignore")
        name, number = os.path.join(folder, name), 1
        unique = name
        while not taken.isdisjoint(unique.casefold() + suffix for suffix in KINDS.values()):
            number += 1
            unique = f"{name}-{number}"
        taken.update(unique.casefold() + suffix for suffix in KINDS.values())
        names.append(unique)
    return names


def keep_apart(out, folder) -> None:
    """Refuse an output folder that is a file, or that lies in the input folder: the next run would read it."""
    out, folder = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    if out.is_file():
        raise InputError(f"output {out} is a file; give a folder")
    if out == folder or folder in out.parents:
        raise InputError(f"output {out} lies in the input folder {folder}; give a folder outside of it")


def _start_results(out: Path, facts: dict) -> None:
    """Remove from `out` what an earlier run has written there, and nothing else; write down what this one will write.

    Raises:
        InputError: the folder holds other files.
    """
    there = {f.relative_to(out).as_posix() for f in out.rglob("*") if not f.is_dir() and f.name[0] != "."}
    listed = set()
    if RESULTS_MARK in there:
        try:
            listed = {RESULTS_MARK, *json.loads((out / RESULTS_MARK).read_text())["files"]}
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{out / RESULTS_MARK}: damaged; empty the folder {out} or give another one") from None
    if others := sorted(there - listed):
        raise InputError(
            f"output folder {out} holds files that no earlier run of predict lists ({others[0]}); give another folder"
        )
    _write_facts(out, facts)
    for name in there - {RESULTS_MARK}:
        (out / name).unlink(missing_ok=True)


def _write_facts(out: Path, facts: dict) -> None:
    with atomic_path(out / RESULTS_MARK) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


@contextlib.contextmanager
def _inside(table: pd.DataFrame, facts: dict, bit_depth: int | None):
    """Yield a table of copies, tile by tile, in which nothing is seen outside of the region of interest."""
    with tempfile.TemporaryDirectory() as folder:
        if facts.get("roi") or facts.get("tiles"):  # as files, for that is what methods read
            files = []
            for i, path in enumerate(table.image_path):
                image, _ = only_inside(path, read_image(path, bit_depth), facts.get("roi"))
                for j, window in enumerate(tile_windows(image.shape, facts.get("tiles"))):
                    files.append(Path(folder, f"{i:06d}-{j:02d}.png"))
                    write_image(files[-1], image[window])
            rows = table.index.repeat(len(files) // len(table))
            table = table.loc[rows].reset_index(drop=True).assign(image_path=list(map(str, files)))
        yield table


def tile_windows(shape, tiles=None) -> list[tuple[slice, slice]]:
    """Return the windows (rows, columns) of a grid of tiles; neighbours share a quarter of their side.

    >>> tile_windows((70, 10), (2, 1))
    [(slice(0, 40, None), slice(0, 10, None)), (slice(30, 70, None), slice(0, 10, None))]
    """
    sides = []
    for side, n in zip(shape, tiles or (1, 1), strict=False):
        length = math.ceil(side / (1 + 0.75 * (n - 1)))
        starts = [round(i * (side - length) / max(n - 1, 1)) for i in range(n)]
        sides.append([slice(start, start + length) for start in starts])
    return list(itertools.product(*sides))


def _open(model) -> tuple[dict, object]:
    """Return what is written of a model, and the fitted method: of a folder, or of an ONNX file."""
    if Path(model).suffix == ".onnx":
        return (fitted := OnnxModel(model)).facts, fitted
    return storage.read_header(model), methods.load(model)


def _score_one(fitted, file, facts: dict) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the score of an image, its map on the original canvas, NaN where nothing was looked at, and the image.

    Where tiles share a place, the higher score counts.
    """
    image = read_image(file, fitted.settings.bit_depth)
    inside, mask = only_inside(file, image, facts.get("roi"))
    image_scores, anomaly_map = [], np.full(image.shape[:2], np.nan, np.float32)
    for window in tile_windows(image.shape, facts.get("tiles")):
        prepared, geometry = fitted.resize.image(inside[window])
        scores = fitted.score(Batch(to_tensor([prepared]), ("",), (geometry,)))
        image_scores.append(float(scores.image[0]))
        np.fmax(anomaly_map[window], geometry.to_original(scores.map[0]), out=anomaly_map[window])
    if mask is not None:
        anomaly_map = np.where(mask, anomaly_map, np.float32(np.nan))
    if np.isnan(anomaly_map).all():
        raise InputError(f"{file}: nothing is left to look at: the crop of the model hides the region of interest")
    return max(image_scores), anomaly_map, image


def _image_files(folder) -> list[Path]:
    """List the images below a folder; say on stderr what is not read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder of images")
    left_out: list[str] = []
    files = list_images(folder, recursive=True, left_out=left_out)
    if left_out:
        more = f" and {len(left_out) - 20} more" if len(left_out) > 20 else ""
        print(f"not read in {folder} ({len(left_out)}): {', '.join(left_out[:20])}{more}", file=sys.stderr)
    if not files:
        raise InputError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}), nested folders included")
    return files


def _readable_images(folder) -> tuple[list[Path], list[str]]:
    readable, unreadable = [], []
    for file in _image_files(folder):
        try:
            read_image(file, 32)  # its range is not yet known
            readable.append(file)
        except InputError as error:
            unreadable.append(str(error))
    if not readable:
        raise InputError(f"{folder}: none of the images in this folder can be read ({unreadable[0]})")
    return readable, unreadable


def _thresholds(scores, maxima, rule: str = "quantile", rate: float = 0.05, n_sigma: float = 3.0) -> dict:
    """The two thresholds of a model, as they are stored: of the image score, and of the map for the outlines."""
    kinds = {"threshold": scores, "pixel_threshold": maxima}
    return {name: thresholds.from_normals(x, rule, rate, n_sigma).to_dict() for name, x in kinds.items()}


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 RGB image in the format of its suffix."""
    with atomic_path(path) as temporary:
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
        ok, encoded = cv2.imencode(path.suffix, image[..., ::-1], quality)
        if not ok:
            raise InputError(f"{path} could not be written as {path.suffix}")
        temporary.write_bytes(encoded.tobytes())
