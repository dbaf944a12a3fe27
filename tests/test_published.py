"""Published numbers: every row has a source and a known tag, and full rows agree with their printed mean."""

import shutil

import pandas as pd
import pytest
from conftest import refused

from adlib.datasets.catalogue import DATASETS
from adlib_book import published


@pytest.fixture(scope="module")
def numbers():
    return published.load()


def test_the_numbers_of_the_papers_are_there(numbers):
    """Spot checks against the sources, one per file."""

    def value(method, category, metric, dataset="mvtec_ad"):
        rows = numbers[(numbers.method == method) & (numbers.dataset == dataset)]
        return rows[(rows.category == category) & (rows.metric == metric)].value.tolist()

    assert value("PatchCore-10% (official code)", "screw", "image_auroc") == [98.77]
    assert value("PatchCore-10% (official code)", "transistor", "pro") == [83.24]
    assert value("PatchCore-1% 320 px ensemble (official code)", "grid", "pixel_auroc") == [99.11]
    assert value("PatchCore-1% (tiskw)", "pill", "image_auroc") == [94.5]
    assert value("GLASS (anomalib)", "transistor", "image_auroc") == [89.7]
    assert value("GLASS-j", "mean", "image_auroc", "mpdd") == [99.6]
    assert value("ULSAD", "mean", "image_auroc", "visa") == [92.46]
    assert value("DRAEM", "mean", "pixel_ap") == [68.9]
    assert value("AnomalyDINO-S 4-shot", "mean", "pro", "visa") == [94.1]
    assert value("PatchCore 1-shot", "mean", "image_auroc_sd") == [3.0]


def test_categories_are_those_of_the_data_set(numbers):
    for name, group in numbers.groupby("dataset"):
        if name in DATASETS:
            assert set(group.category) <= {*DATASETS[name].categories, *published.MEANS}, name


def test_full_rows_agree_with_their_printed_mean(numbers):
    """The mean over the categories, not of the group means; a printed mean that differs must say so in a note."""
    keys = ["source", "method", "dataset", "backbone", "metric"]
    checked = 0
    for key, group in numbers[numbers.dataset.isin(DATASETS)].groupby(keys):
        values = group.set_index("category").value
        categories = list(DATASETS[key[2]].categories)
        if len(categories) < 2 or not {*categories, "mean"} <= set(values.index):
            continue
        checked += 1
        digits = len(f"{values['mean']:g}".partition(".")[2]) or 1
        if abs(values[categories].mean() - values["mean"]) > 0.5 * 10**-digits + 1e-6:
            assert group.set_index("category").note["mean"], (key, values[categories].mean())
    assert checked >= 20


def test_second_hand_numbers_are_marked():
    assert published.marked("99.0", "2nd") == "99.0†"
    assert published.marked("98.57", "fig") == "98.57‡"
    assert published.marked("98.77", "code") == "98.77"
    assert set(published.MARKS) | set(published.UNPRINTED) <= set(published.EVIDENCE)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", "", "not a number"),
        ("value", "nan", "out of range"),
        ("value", "101", "out of range"),
        ("metric", "auroc", "unknown"),
        ("evidence", "seen", "evidence 'seen' is unknown"),
        ("evidence", "", "evidence '' is unknown"),
        ("selection", "best", "selection 'best' is unknown"),
        ("source", "", "must be there"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, column, value, message):
    file = tmp_path / "draem.csv"
    shutil.copy(published.FOLDER / "draem.csv", file)
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(file, index=False)
    refused(rf"draem\.csv, line 3: .*{message}", published.load, tmp_path)


def test_damaged_files_and_repeated_numbers_are_refused(tmp_path):
    refused("holds no table", published.load, tmp_path)
    rows = pd.read_csv(published.FOLDER / "draem.csv", dtype=str, keep_default_na=False)
    pd.concat([rows, rows]).to_csv(tmp_path / "draem.csv", index=False)
    refused("twice", published.load, tmp_path)
    rows.drop(columns="note").to_csv(tmp_path / "draem.csv", index=False)
    refused("expected the columns", published.load, tmp_path)
