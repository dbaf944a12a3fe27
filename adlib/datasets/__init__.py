"""Data sets as sample tables: pandas DataFrames with one row per image.

Columns: `image_path` (absolute), `mask_path` (a file, a folder of files that belong to one image, or None), `label`
(0 normal, 1 anomalous), `defect` ("good" for normal), `split` ("train", "validation", "test"), `category`, and
`mask_threshold` (a mask pixel is true above it: 127, or 0 for VisA and MVTec LOCO AD, which store class numbers).
A data set is nothing else, so a table can be filtered, merged, concatenated and kept as CSV like any other; read it
back with `dtype={"category": str, "defect": str}`, or "01" becomes 1.

>>> from adlib import datasets
>>> table = datasets.load("demo", category="brick")
>>> table.split.value_counts().to_dict()
{'test': 62, 'train': 40}
"""

from adlib.datasets.download import get, listing
from adlib.datasets.folder import load_folder
from adlib.datasets.loading import LAYOUTS, categories, discover, guess_dataset, load
from adlib.datasets.table import check_training_table, hold_out, masks, table_hash
from adlib.datasets.validation import Problem, check, missing_for_evaluation
