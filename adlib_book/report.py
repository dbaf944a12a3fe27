"""A page to look at what `adlib predict` has written: one HTML file that opens from disk, without a server or network.

    adlib predict -m model/ -i parts/new -o out/ --report out/report.html

The page is `report.html` beside this file, with the results in it as JSON: names of files are data there, never HTML.
"""

import base64
import csv
import json
import os
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from adlib.errors import InputError
from adlib.images import RESULTS_MARK, read_image
from adlib.methods import storage
from adlib.methods.onnx_model import OnnxModel
from adlib.paths import atomic_path

MOST_BYTES = 30_000_000  # of the page
THUMBNAIL_BYTES = 6_000  # at least so many for each, or the images of lower scores have none
THUMBNAILS = ((320, 80), (256, 75), (192, 70), (128, 60), (64, 40))  # longer side in pixels, JPEG quality


def check_place(file, out) -> None:
    """Refuse a place where a report would replace another file, or stop the next run of `predict` into `out`.

    Raises:
        InputError: no .html file, or in the folder of results under another name than `report.html`.
    """
    if Path(file).suffix != ".html" or Path(file).is_dir():
        raise InputError(f"report {file} must be a file whose name ends in .html")
    folder = Path(os.path.realpath(file)).parent
    out = Path(os.path.realpath(out))
    if out in (folder, *folder.parents) and (folder != out or Path(file).name != "report.html"):
        raise InputError(f"report {file} lies in the folder of results; call it {out / 'report.html'}")


def write(model, out, file) -> Path:
    """Write the report of what `adlib.own_parts.predict` has left in `out`; images of high scores come first.

    Args:
        model: folder of the model; the scores of good parts that it held out are what others are compared with.
        out: folder of the results.
        file: HTML file. Full pictures are linked by their way from there.
    """
    file, out = Path(file), Path(out)
    header, good = _description(model)
    facts = json.loads((out / RESULTS_MARK).read_text())
    with open(out / "scores.csv", encoding="utf-8", errors="surrogateescape", newline="") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: -float(row["score"]))
    polygons = (out / "polygons").rglob("*.json")
    names = {json.loads(p.read_text())["image"]: p.relative_to(out / "polygons").with_suffix("") for p in polygons}

    images, pictures = [], []
    for row in rows:
        photograph, name = Path(facts["input"], row["image"]), names[row["image"]]
        files = {"photograph": photograph, "overlay": out / f"overlays/{name}.jpg"}
        files |= {"outlines": out / f"contours/{name}.jpg"}
        flagged = None if row["anomalous"] == "" else row["anomalous"] == "True"
        image = {"name": row["image"], "score": float(row["score"]), "flagged": flagged}
        links = {kind: quote(os.fsencode(os.path.relpath(path, file.parent))) for kind, path in files.items()}
        images.append(image | {"links": links, "thumbnails": [None, None]})
        pictures.append((files["overlay"], photograph))
    n_unread = sum(name.startswith("maps/") for name in facts["files"]) - len(images)
    settings = {key: facts.get(key) for key in ("input", "model", "threshold", "pixel_threshold", "min_area", "scale")}
    settings |= {"method": header["method"]} | header["settings"]
    page = {"images": images, "threshold": facts["threshold"], "good": good.tolist()}
    page |= {"n_unread": n_unread, "settings": {key: _text(value) for key, value in settings.items()}}
    page |= {"drift": drift([image["score"] for image in images], good), "bar": _data(out / "scale.png")}
    template = Path(__file__).with_suffix(".html").read_text()
    left = MOST_BYTES - len(template) - len(json.dumps(page).replace("<", r"\u003c"))
    n_thumbnails = min(len(images), max(0, left // (2 * THUMBNAIL_BYTES)))
    for image, pair in zip(images[:n_thumbnails], pictures, strict=False):
        image["thumbnails"] = [thumbnail(picture, left // (2 * n_thumbnails), header["settings"]) for picture in pair]
    with atomic_path(file) as temporary:
        temporary.write_text(template.replace("{results}", json.dumps(page).replace("<", r"\u003c")))
    return file


def drift(scores, good) -> str:
    """Say in a sentence or two where the scores of images lie beside those of good parts that the model held out."""
    if len(good) < 2:
        return "Unknown: this model keeps no scores of good parts that it was not fitted to."
    middle = float(np.median(scores))
    share = 100 * np.mean(good < middle)
    return (
        f"The median image scores {middle:.4g}, the median of {len(good)} good parts held out in training "
        f"{np.median(good):.4g}. The median image scores higher than {share:.0f} % of them: about 50 % where only good "
        "parts were photographed and nothing has moved. Far more means many defects, or another light, focus or place."
    )


def thumbnail(file: Path, most: int, settings: dict) -> str | None:
    """Return an image as a JPEG in a data URI of at most so many bytes, or None where it cannot be read."""
    try:
        image = read_image(file, settings.get("bit_depth"))
    except InputError:
        return None
    for side, quality in THUMBNAILS:
        factor = min(1.0, side / max(image.shape[:2]))
        size = [max(1, round(factor * length)) for length in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        uri = f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
        if len(uri) + 2 <= most:
            return uri
    return None


def _description(model) -> tuple[dict, np.ndarray]:
    """What is written of a model, and its scores of good parts that it was not fitted to."""
    if Path(model).suffix == ".onnx":
        facts = OnnxModel(model).facts
        return facts, np.array(facts["normal_scores"])
    header, tensors = storage.read_model(model)
    return header, tensors["normal_scores"].numpy().astype(float)


def _data(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
