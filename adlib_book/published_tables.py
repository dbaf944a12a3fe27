"""Published numbers as tables, and beside the numbers measured here."""

import functools
import operator

import pandas as pd

from adlib import methods, profiles, settings
from adlib.datasets.catalogue import DATASETS
from adlib_book import published
from adlib_book.tables import (
    LEGEND,
    MAIN_METRICS,
    METRICS,
    PAPER_DATASETS,
    Cell,
    Records,
    Table,
    cell_text,
    mean_over,
    rank,
)

# Backbones of records whose sources call them otherwise.
BACKBONE_NAMES = {"wide_resnet50_2.tv_in1k": "WideResNet50-2", "wide_resnet50_2": "WideResNet50-2"}
PUBLISHED_NAMES = {"image_auroc": "image_auroc", "pixel_auroc": "pixel_auroc", "aupro_30": "pro"}
# Settings that change no number, or that a difference of its own names; and how many others are named in one cell.
NOT_SETTINGS = ("seed", "backbone", "image_size", "weights", "batch_size")
N_NAMED = 6
TABLE_ONE = "pagmfr_table1.csv"  # one paper's table of itself and seven others
MARKS = "† second-hand: read in a transcription, a digest or a summary page. ‡ read off a figure."


@functools.cache
def _printed_numbers() -> pd.DataFrame:
    """The published numbers that tables show, read once."""
    numbers = published.load()
    return numbers[~numbers.evidence.isin(published.UNPRINTED)]


def beside_published(records: Records, cells: pd.DataFrame, profile: str) -> Table:
    """Published beside measured, with the gap and every difference of protocol that the facts show.

    One row per category, and one for the mean over the categories where every category of the data set has a record.
    """
    numbers = _printed_numbers()
    lines, data, without = [], [], {}
    single = cells[cells.metric.isin(MAIN_METRICS) & cells["mean"].notna()]
    record_of = {row.run: row for row in records.table.itertuples()}
    first = numbers.drop_duplicates(["dataset", "category", "metric", "method"])
    row_of = {(row.dataset, row.category, row.metric, row.method): row for row in first.itertuples()}
    for cell in [*single.itertuples(), *_full_means(cells)]:
        record = record_of[cell.runs[0]]
        reference = _reference(row_of, cell, record)
        if reference is None:
            without.setdefault(f"{cell.dataset} / {cell.category}, {cell.column}", []).append(METRICS[cell.metric])
            continue
        differences = known_differences(reference, record, whole=cell.category == "mean")
        line = {
            "data": f"{cell.dataset} / {cell.category}",
            "method": cell.column,
            "metric": METRICS[cell.metric],
            "published": published.marked(reference.printed, reference.evidence),
            "source": f"{reference.method}, {reference.source}",
            "ours": cell_text(cell),
            "gap": f"{cell.mean - reference.value:+.2f}",
            "known differences": "; ".join(differences) or "none known: the gap is unexplained",
        }
        lines.append({name: Cell(text, runs=cell.runs if name == "ours" else ()) for name, text in line.items()})
        plain = {"published": reference.printed, "evidence": reference.evidence, "ours": round(cell.mean, 2)}
        data.append(line | plain)
    columns = ["data", "method", "metric", "published", "source", "ours", "gap", "known differences"]
    notes = [
        f"Percent. {MARKS}",
        "Known differences are read from the record and the published row; how much each contributes is not known.",
        "Published PRO comes from the source's own routine (see 03_evaluation).",
    ]
    if without:
        listed = "; ".join(f"{place} ({', '.join(names)})" for place, names in without.items())
        notes.append(f"No published number at hand: {listed}.")
    title = f"Published beside measured, profile {profile}"
    frames = pd.DataFrame(lines, columns=columns), pd.DataFrame(data, columns=[*columns, "evidence"])
    return Table(f"{profile}_beside_published", title, *frames, tuple(notes), tuple(records.left_out))


def _full_means(cells: pd.DataFrame) -> list:
    """Mean cells of the methods that have every category of a data set of several."""
    means = []
    for (dataset, _, metric), group in cells.groupby(["dataset", "column", "metric"], sort=False):
        names = set(DATASETS[dataset].categories) if dataset in DATASETS else set()
        if metric in MAIN_METRICS and len(names) > 1 and names == set(group.category):
            members = list(group.itertuples())
            mean = mean_over(members)
            if mean is not None:
                means.append(mean._replace(category="mean", runs=members[0].runs))
    return means


def _reference(row_of: dict, cell, record):
    """Return the published row to compare a cell with, or None; `row_of`: data set, category, metric, method -> row."""
    if record.method not in methods.METHODS:
        return None
    entry = methods.METHODS[record.method]
    shots = f"{record.parameters.get(entry.shots)}-shot"
    place = (cell.dataset, cell.category, PUBLISHED_NAMES[cell.metric])
    names = (name.format(shots=shots) for name in entry.published)
    return next((row_of[*place, name] for name in names if (*place, name) in row_of), None)


def known_differences(reference, record, whole: bool = False) -> list[str]:
    """List what differs between a published row and a record, from facts in both.

    Args:
        reference: a row of `published.load()`.
        record: a row of `runs.collect()`.
        whole: the row is a mean over categories; numbers of images are then not compared.
    """
    differences = []
    ours = record.parameters.get("backbone", "")
    if not reference.backbone:
        differences.append(f"backbone of the source not known, ours {ours}")
    elif BACKBONE_NAMES.get(ours, ours) != reference.backbone:
        differences.append(f"backbone {ours}, not {reference.backbone}")
    size = record.protocol.get("image_size")
    if not reference.image_size:
        differences.append("image size of the source not known")
    elif str(size) != reference.image_size:
        differences.append(f"{size} px, not {reference.image_size} px")
    entry, n = DATASETS.get(record.dataset), record.n_images
    counts = entry.counts.get(record.category) if entry and not whole else None
    if not counts and not whole:
        differences.append("images of the source not known")
    if counts and n["train"] != counts[0]:
        differences.append(f"{n['train']} of {counts[0]} training images")
    if counts and n["test_normal"] + n["test_anomalous"] != sum(counts[1:]):
        differences.append(f"{n['test_normal'] + n['test_anomalous']} of {sum(counts[1:])} test images")
    if reference.selection == "test":
        differences.append("the source chose its step on the test set")
    if reference.metric == "pro":
        differences.append("another PRO routine")
    # The paper profile's rows: some settings' defaults, the way of resizing for one, are not the publication's.
    faithful = profiles.method_settings("paper", record.method)
    paper = settings.as_dict(settings.build(methods.get(record.method).Settings, faithful))
    others = [
        name
        for name, value in record.parameters.items()
        if name not in NOT_SETTINGS and name in paper and paper[name] != value
    ]
    if others:
        more = f" and {len(others) - N_NAMED} more" if len(others) > N_NAMED else ""
        differences.append(f"settings other than the published ones: {', '.join(others[:N_NAMED])}{more}")
    return differences


def by_category(dataset: str, metric: str, file: str = "") -> Table:
    """Published numbers of one data set: sources that give most of its categories in columns, categories in rows.

    Args:
        dataset, metric: which.
        file: only the rows of this file; by default all, but of a paper's own table only the paper's own method.
    """
    numbers, names = _printed_numbers(), DATASETS[dataset].categories
    part = numbers[(numbers.dataset == dataset) & (numbers.metric == metric)]
    part = part[part.file == file] if file else part[(part.file != TABLE_ONE) | (part.method == "PAGMFR")]
    sources = part.groupby(["method", "source", "backbone"], sort=False)
    full = [group for _, group in sources if len(set(group.category) & set(names)) > len(names) / 2]
    part = pd.concat(full)
    numbers_at = {(row.category, row.method): row for row in part.itertuples()}
    columns = list(dict.fromkeys(part.method))
    rows = [c for c in (*names, *published.MEANS) if c in set(part.category)]
    recomputed = {
        m: f"{part[(part.method == m) & part.category.isin(names)].value.mean():.2f}"
        for m in columns
        if set(names) <= set(part.category[part.method == m])
    }

    order = rank(
        part.drop_duplicates(["category", "method"], keep="last")
        .pivot(index="category", columns="method", values="value")
        .reindex(rows, columns=columns)
    )

    def printed(category, method) -> Cell:
        row = numbers_at.get((category, method))
        return Cell(published.marked(row.printed, row.evidence), order.at[category, method]) if row else Cell("")

    cells = pd.DataFrame({m: [printed(c, m) for c in rows] for m in columns}, pd.Index(rows, name=dataset))
    cells.loc["mean, recomputed here"] = pd.Series(recomputed, dtype=object).reindex(columns).fillna("").map(Cell)
    notes = [
        LEGEND[0],
        f"{MARKS} Empty: not at hand.",
        *(f"{m}: {part[part.method == m].source.iloc[0]}." for m in columns),
        *_remarks(part),
    ]
    measure = "PRO" if metric == "pro" else METRICS[metric]
    data = part.drop(columns=["file", "printed"]).reset_index(drop=True)
    name = f"published_{file.removesuffix('.csv')}" if file else f"published_{dataset}_{metric}"
    return Table(name, f"Published {measure}, {dataset}", cells, data, tuple(notes))


def _remarks(part: pd.DataFrame) -> list[str]:
    """Notes of published rows, each once: with the category where only one row has it."""
    noted = part[part.note != ""].groupby(["method", "note"], sort=False).category.apply(list)
    return [f"{method}{f', {where[0]}' if len(where) == 1 else ''}: {note}." for (method, note), where in noted.items()]


def means(few_shot: bool) -> Table:
    """Published means over all categories: image and pixel AUROC and PRO of every data set, with or without shots."""
    numbers = _printed_numbers()
    part = numbers[numbers.category == "mean"]
    part = part[part.method.str.contains("-shot") == few_shot]
    facts = operator.attrgetter("dataset", "method", "backbone", "image_size", "selection", "source")
    spread = part[part.metric.str.endswith("_sd")].itertuples()
    deviations = {(*facts(row), row.metric.removesuffix("_sd")): row.printed for row in spread}
    part = part[part.metric.isin(PUBLISHED_NAMES.values())]
    lines = {}
    for row in part.itertuples():
        key = facts(row)
        deviation = f" ± {deviations[*key, row.metric]}" if (*key, row.metric) in deviations else ""
        lines.setdefault(key, {})[row.metric] = published.marked(row.printed + deviation, row.evidence)
    names = ("data", "method", "image AUROC", "pixel AUROC", "PRO", "backbone", "image size", "selection", "source")
    text = pd.DataFrame(
        [
            (*key[:2], *(values.get(metric, "") for metric in PUBLISHED_NAMES.values()), *key[2:])
            for key, values in lines.items()
        ],
        columns=names,
    )
    order = [*PAPER_DATASETS, *sorted(set(text.data) - set(PAPER_DATASETS))]
    text = text.sort_values("data", key=lambda column: column.map(order.index), kind="stable").reset_index(drop=True)
    empty = [dataset for dataset in PAPER_DATASETS if dataset not in set(text.data)]
    notes = (
        f"Percent, mean over the categories as printed, ± as printed. {MARKS} Blank: not known.",
        "Selection: none, nothing is trained; test, the step was chosen on the test set.",
        *([f"No published mean at hand: {', '.join(empty)}."] if empty else []),
        *_remarks(part),
    )
    kind = "few-shot means" if few_shot else "means"
    name = "published_few_shot" if few_shot else "published_means"
    return Table(name, f"Published {kind} over all categories", text.map(Cell), text, notes)


def build() -> list[Table]:
    """Build the tables of published numbers, which no record changes."""
    by_metric = [by_category("mvtec_ad", metric) for metric in PUBLISHED_NAMES.values()]
    return [*by_metric, by_category("mvtec_ad", "image_auroc", TABLE_ONE), means(False), means(True)]
