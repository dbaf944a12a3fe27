"""Published numbers: what the papers and other code bases report, one number per row, with where it was read.

The files are `adlib_book/reported/*.csv`. Nothing is computed, rounded or filled in there: what a source does not give
is blank. The evidence column says how the number was read, because few of the papers themselves could be read.
"""

import re
from pathlib import Path

import pandas as pd

from adlib.errors import InputError

COLUMNS = (
    "source",  # who printed the number, and through whom we know it
    "method",  # as the source calls it, with what tells its variants apart (share, size, shots)
    "dataset",  # our names (`adlib data list`) where we have the data set
    "category",  # or mean, mean_textures, mean_objects
    "metric",
    "value",  # percent where the metric is one of PERCENT
    "image_size",  # pixels; blank where unknown, as all that follows
    "backbone",
    "selection",  # which step of a training: none (nothing is trained), last, test (best on the test set)
    "evidence",
    "note",
)
FOLDER = Path(__file__).parent / "reported"
# `pro` is the per-region overlap up to 30 % false positives by whatever routine the source used (see 03_evaluation).
PERCENT = (
    *("image_auroc", "image_ap", "image_f1_max", "image_accuracy", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pro"),
    *("auroc_gain", "iou_gain", "gpu_memory_saving"),  # differences in points, or percent of another method
)
OTHER_METRICS = (
    *("misclassified", "memory_gb", "gpu_memory_gb"),
    *("s_per_image", "images_per_s", "ms_features", "ms_map", "ms_total"),
)
SELECTIONS = ("none", "last", "synthetic", "test", "")
MEANS = ("mean", "mean_textures", "mean_objects")
EVIDENCE = {
    "code": "read in the released code or its result files",
    "C": "read in the released code or its README",
    "R": "read in a README or its history",
    "fig": "read off a figure of the source",
    "A": "read in an abstract or on a public summary page",
    "2nd": "read in a transcription or a digest, not in the source itself",
    "mem": "recalled from the literature",
    "unv": "not verified",
}
MARKS = {"2nd": "†", "A": "†", "fig": "‡"}  # how tables mark what was not read in print at the source
UNPRINTED = ("mem", "unv")  # tables leave these out


def load(folder=None) -> pd.DataFrame:
    """Read and check all published numbers.

    Returns:
        one row per number with `COLUMNS` (strings, but `value` a float in the unit of the metric), `printed` (the value
        with the digits that were printed) and `file`.

    Raises:
        InputError: a file cannot be read or breaks the schema; names the file and the line.
    """
    frames = []
    for file in sorted(Path(folder or FOLDER).glob("*.csv")):
        try:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not a readable CSV ({str(error).splitlines()[0]})") from None
        if tuple(frame.columns) != COLUMNS:
            raise InputError(f"{file}: expected the columns {', '.join(COLUMNS)}")
        for line, row in enumerate(frame.itertuples(index=False), start=2):
            problem = _problem(row)
            if problem:
                raise InputError(f"{file}, line {line}: {problem}")
        frames.append(frame.assign(file=file.name))
    if not frames:
        raise InputError(f"{folder or FOLDER} holds no table of published numbers")
    numbers = pd.concat(frames, ignore_index=True)
    keys = ["source", "method", "dataset", "category", "metric", "backbone"]
    twice = numbers[numbers.duplicated(keys)]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"{row.file}: {', '.join(row[keys])} stands there twice; keep one row per number")
    return numbers.assign(printed=numbers.value).astype({"value": float})


def marked(printed: str, evidence: str) -> str:
    """Return a published number as tables print it: † for second-hand, ‡ for read off a figure.

    >>> marked("99.0", "2nd"), marked("98.77", "code")
    ('99.0†', '98.77')
    """
    return printed + MARKS.get(evidence, "")


def _problem(row) -> str:
    """Say what is wrong with a row, or ""."""
    metric = row.metric.removesuffix("_sd")
    try:
        value = float(row.value)
    except ValueError:
        return f"value {row.value!r} is not a number; leave out rows without one"
    if not (row.source and row.method and metric):
        return "source, method and metric must be there"
    if metric not in PERCENT + OTHER_METRICS:
        return f"metric {row.metric!r} is unknown; known: {', '.join(PERCENT + OTHER_METRICS)}, each also with _sd"
    if not 0 <= value <= (100 if metric in PERCENT else 1e6):
        return f"value {row.value} of {row.metric} is out of range; percentages lie between 0 and 100"
    if row.selection not in SELECTIONS:
        return f"selection {row.selection!r} is unknown; known: {', '.join(filter(None, SELECTIONS))} or blank"
    if row.evidence not in EVIDENCE and not re.fullmatch(r"I#\d+(-\d+)?", row.evidence):  # I#12: issue 12
        return f"evidence {row.evidence!r} is unknown; known: {', '.join(EVIDENCE)} and I#<issue>"
    return ""
