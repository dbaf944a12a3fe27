"""Tables from run records, and from nothing else.

Every cell is the mean over the seeds at hand; a cell without a record stays visibly empty.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from adlib.paths import atomic_path, results_dir
from adlib.settings import choice

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro_30": "AUPRO@0.3",
    "aupro_05": "AUPRO@0.05",
}
# The first three ranks, as papers print them; bold and underline say the same without colour.
RANK_STYLES = {
    1: "color: #c00000; font-weight: bold;",
    2: "color: #007000; text-decoration: underline;",
    3: "color: #0000c0;",
}


def overview(records: pd.DataFrame) -> pd.DataFrame:
    """One row a profile, data set, category and method: metrics in percent (mean over seeds), seeds, time, memory."""
    keys = ["profile", "dataset", "category", "method"]
    grouped = records.groupby(keys, sort=True)
    table = 100 * grouped[list(METRICS)].mean(numeric_only=False).astype(float)
    table.columns = [METRICS[column] for column in table]
    table["seeds"] = grouped.size()
    table["fit s"] = grouped.fit_s.mean()
    table["ms / image"] = grouped.score_ms_per_image.mean()
    table["peak MiB"] = grouped.peak_memory_mib.max()
    return table.round(2)


def by_category(records: pd.DataFrame, metric: str = "image_auroc") -> pd.DataFrame:
    """Methods in columns, categories in rows, one metric in percent; the last row is the mean over categories.

    A method without a record for a category has an empty cell, and then no mean: a mean over other categories than
    the neighbour's would compare different things.
    """
    choice("metric", metric, METRICS)
    values = records.assign(value=100 * records[metric].astype(float))
    table = values.groupby(["dataset", "category", "method"]).value.mean().unstack("method")
    table.loc[("mean", ""), :] = table.mean(skipna=False)
    return table.round(2)


def missing(records: pd.DataFrame, expected: list[dict]) -> list[str]:
    """Name the expected runs (dicts with profile, method, dataset, category, seed) that have no record."""
    keys = ["profile", "method", "dataset", "category", "seed"]
    present = set(map(tuple, records[keys].to_numpy())) if len(records) else set()
    return ["/".join(str(run[k]) for k in keys) for run in expected if tuple(run[k] for k in keys) not in present]


def style_ranks(table: pd.DataFrame, axis: int = 1):
    """Colour the best three of each row (axis 1) or column (axis 0) red, green, blue; equal values share a rank."""

    def rank(values: pd.Series) -> list[str]:
        ranks = values.round(2).rank(ascending=False, method="min")
        return [RANK_STYLES.get(int(r), "") if np.isfinite(r) else "" for r in ranks]

    return table.style.apply(rank, axis=axis).format(precision=2, na_rep="")


def write(table: pd.DataFrame, name: str, styled=None) -> list[Path]:
    """Write a table to `results/tables/<name>` as CSV, Markdown, HTML and LaTeX."""
    styled = styled if styled is not None else table.style.format(precision=2, na_rep="")
    folder, flat = results_dir() / "tables", table.reset_index()
    texts = {
        "csv": flat.to_csv(index=False),
        "md": _markdown(flat),
        "html": styled.to_html(table_attributes='class="adlib"', doctype_html=True),
        "tex": styled.to_latex(convert_css=True, hrules=True),
    }
    for suffix, text in texts.items():
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text)
    return [folder / f"{name}.{suffix}" for suffix in texts]


def _markdown(table: pd.DataFrame) -> str:
    def cell(value) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return ""
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    lines = ["| " + " | ".join(map(str, table.columns)) + " |"]
    lines.append("| " + " | ".join("---:" if n else "---" for n in numeric) + " |")
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"
