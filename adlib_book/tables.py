"""Tables from run records and published numbers, and from nothing else.

    records -> cells: mean over seeds, deviation, interval -> tables -> files (`table_files`)

A cell without a record stays visibly empty, a damaged record leaves a mark, and only what was measured alike shares a
column: records of another backbone, image size, resize, evaluation resolution or number of shots, and those whose step
was chosen on the test set, get a column of their own.
"""

import csv
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from adlib import profiles
from adlib.datasets.catalogue import DATASETS, category_kind
from adlib.errors import InputError
from adlib.methods import METHODS
from adlib.paths import results_dir
from adlib.record_files import KINDS, collect

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
MAIN_METRICS = ("image_auroc", "pixel_auroc", "aupro_30")
PAPER_DATASETS = ("mvtec_ad", "visa", "mpdd", "btad", "mvtec_loco", "wfdd", "mad_sys")
HONEST = ("none", "last", "synthetic")  # selections that never look at test images
NO_RECORD, DAMAGED = "–", "×"
BEST_THREE = "red (bold), green (underlined), blue (italic)"
LEGEND = (
    f"Percent. Best three of a row: {BEST_THREE}; equal values share a rank.",
    f"Mean over seeds ± standard deviation. {NO_RECORD}: no record. {DAMAGED}: a record is damaged. "
    "Empty: the data do not define it.",
)


class Cell(NamedTuple):
    """One printed cell.

    Attributes:
        text: as printed.
        rank: 1, 2, 3 where it is among the best three, else 0.
        runs: the run folders it links to, relative to `results/runs`, one per seed.
    """

    text: str
    rank: int = 0
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table, before it is written.

    Attributes:
        name: stem of the files.
        title: one line.
        cells: of `Cell`; rows and columns as printed.
        data: the same numbers for machines, one row per number (the CSV).
        notes: what must be read with it.
        left_out: one line per record that could not be used, and why.
    """

    name: str
    title: str
    cells: pd.DataFrame
    data: pd.DataFrame
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @functools.cached_property
    def text(self) -> pd.DataFrame:
        """The text of every cell."""
        return self.cells.map(lambda cell: cell.text)

    @property
    def footnotes(self) -> list[str]:
        """Notes and left-out records, as they stand below a printed table."""
        return [*self.notes, *(f"Left out: {line}." for line in self.left_out)]


class Measured(NamedTuple):
    """One metric in percent over the seeds of a cell: mean and deviation (NaN where undefined), values by seed."""

    mean: float
    sd: float
    values: dict
    seeds: list
    runs: list


@dataclass
class Records:
    """Records of one profile, sorted into columns that may be compared.

    Attributes:
        table: one row per run, as `record_files.collect`, with `column`: the method, and what sets its protocol apart.
        damaged: (dataset, category, method) of the records that could not be used.
        left_out: one line per record that was left out, and why.
        protocol: what all plain columns share, in words.
        remarks: one line of the records of an earlier version, and one per cell whose seeds differ in settings.
        folder: the folder that holds `runs`.
    """

    table: pd.DataFrame
    damaged: list
    left_out: list
    protocol: str
    remarks: list
    folder: Path


def read(profile: str, results=None) -> Records:
    """Read the records of a profile below `results` (default: the results folder) and check that they compare.

    Raises:
        InputError: the folder does not exist.
    """
    folder = Path(results) if results else results_dir()
    if not folder.is_dir():
        raise InputError(
            f"results folder {folder} does not exist; expected one that holds runs/<profile>/<method>/<run>"
        )
    records, lines = collect(folder / "runs")
    good = set(records.run) if len(records) else set()
    places = sorted((folder / "runs" / profile).rglob("record.json"))
    bad = [file.parent for file in places if file.parent.relative_to(folder / "runs").as_posix() not in good]
    damaged = [_place(path) for path in bad]
    # Without the folder in front: a table must not name places on one machine.
    left_out = [line.replace(f"{folder}/", "") for line in lines if any(f"{path}/" in line for path in bad)]
    table = records[records.profile == profile].reset_index(drop=True) if len(records) else records
    if len(table):
        table, other = _same_data(table)
        left_out += other
        table, shared = _columns(table)
    else:
        shared = "no records"
    return Records(table, damaged, left_out, shared, [*_older(table), *_mixed_settings(table)], folder)


# -- records ----------------------------------------------------------------------------------------------------------


def _place(folder: Path) -> tuple[str, str, str]:
    """results/runs/<profile>/<method>/<dataset>-<category>-seed<k> -> (dataset, category, method)."""
    dataset, _, rest = folder.name.partition("-")
    return dataset, rest.rpartition("-seed")[0], folder.parent.name


def _same_data(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep, for every category, the records made on the same images; name the others."""
    keep, lines = np.ones(len(table), bool), []
    for (dataset, category), group in table.groupby(["dataset", "category"]):
        counts = Counter(group.table_hash)
        usual = max(counts, key=lambda value: (counts[value], value))
        for i in group.index[group.table_hash != usual]:
            keep[i] = False
            lines.append(f"{table.run[i]} was made on other images of {dataset}/{category} than most; run it again")
    return table[keep].reset_index(drop=True), lines


def _older(table: pd.DataFrame) -> list[str]:
    """Say which columns rest on records of an earlier version, until they are made again."""
    if not len(table) or not table.older.notna().any():
        return []
    old = table[table.older.notna()]
    columns = ", ".join(_ordered(set(old.column), METHODS))
    return [f"Older ({'; '.join(sorted(set(old.older)))}): {len(old)} of {len(table)} records ({columns})."]


def _mixed_settings(table: pd.DataFrame) -> list[str]:
    """Name the cells whose records differ in more than the seed: their deviation is not that of the seed alone."""
    lines = []
    for place, rows in _by_place(table).items():
        first, *others = [{k: v for k, v in row.parameters.items() if k != "seed"} for row in rows]
        names = sorted({k for other in others for k in {**first, **other} if first.get(k) != other.get(k)})
        if names:
            lines.append(f"{place[0]} / {place[1]}, {place[2]}: the seeds differ in {', '.join(names)} too.")
    return lines


def _columns(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Add `column`: the method's name, and in brackets what sets a record's protocol apart from the common one."""
    facts = [_protocol(row) for row in table.itertuples()]
    common = {}
    for name in ("backbone", "size", "resize", "resolution"):
        counts = Counter(fact[name] for fact in facts if fact[name])
        common[name] = counts.most_common(1)[0][0] if counts else ""
    selections, weights = {}, {}
    for method, fact in zip(table.method, facts, strict=True):
        selections.setdefault(method, set()).add(fact["selection"])
        weights.setdefault(method, Counter()).update([fact["weights"]] if fact["weights"] else [])
    columns = []
    for method, fact in zip(table.method, facts, strict=True):
        parts = [fact[name] for name in ("shots", "training") if fact[name]]
        parts += [fact[name] for name, usual in common.items() if fact[name] and fact[name] != usual]
        if fact["weights"] and fact["weights"] != weights[method].most_common(1)[0][0]:
            parts.append(f"weights {fact['weights']}")
        if fact["selection"] not in HONEST:
            parts.append("oracle: step chosen on the test set")
        elif len(selections[method]) > 1 and fact["training"] != "untrained":
            parts.append(f"step: {fact['selection']}")
        columns.append(f"{method} ({', '.join(parts)})" if parts else method)
    where = "network input size" if common["resolution"] == "input" else f"{common['resolution']} size"
    if any("side" in protocol for protocol in table.protocol):
        common["size"] += " (images that are not square: about as many pixels, or twice as many, in their shape)"
    shared = f"{common['size']}, {common['resize']}, maps and masks compared at {where}, no step chosen on test images"
    shared = f"features of {common['backbone']}, {shared}" if common["backbone"] else shared
    return table.assign(column=columns), shared


def _protocol(row) -> dict[str, str]:
    size = row.protocol.get("side", row.protocol.get("image_size"))  # a size in the images' shape is set beside squares
    size = size if isinstance(size, list) else [size, size]
    shots = row.parameters.get(METHODS[row.method].shots) if row.method in METHODS else None
    return {
        "backbone": str(row.parameters.get("backbone") or ""),  # some methods have none
        "size": f"{size[0]} px" if size[0] == size[-1] else f"{size[0]} x {size[-1]} px",
        "resize": str(row.parameters.get("resize", "?")),
        "resolution": str(row.protocol.get("resolution", "?")),
        "selection": str(row.protocol.get("selection", "?")),
        "shots": f"{shots} shots" if shots else "",
        "weights": (getattr(row, "weights", None) or {}).get("hash", "")[:8],
        "training": _training(row.protocol),
    }


def _training(protocol: dict) -> str:
    """Say whether a model that can be trained on other products was, and whether that changed it."""
    if "trained_on" not in protocol:
        return ""
    trained = "step 0 kept" if protocol.get("step") == 0 else "trained elsewhere"
    return trained if protocol["trained_on"] else "untrained"


def make_cells(records: Records) -> pd.DataFrame:
    """One row per number: dataset, category, column, metric, mean over seeds, deviation, interval, seeds, runs.

    `values` holds percent by seed. The interval (image AUROC only) is the 95 % bootstrap over images of the mean over
    the seeds: all seeds see the same resample.
    """
    rows = []
    for (dataset, category, column), group in _by_place(records.table).items():
        low, high = _interval(records, group)
        seeds, run_names, method = [row.seed for row in group], [row.run for row in group], group[0].method
        for metric in METRICS:
            row = {"dataset": dataset, "category": category, "column": column, "method": method, "metric": metric}
            row |= dict(zip(("low", "high"), (low, high) if metric == "image_auroc" else (np.nan, np.nan), strict=True))
            values = [getattr(run, metric, None) for run in group]
            rows.append(row | _measured(values, seeds, run_names)._asdict())
    return pd.DataFrame(rows)


def _measured(values, seeds, runs: list) -> Measured:
    """Sum up fractions, one per run, None or NaN where the data define none."""
    values = {seed: 100 * value for seed, value in zip(seeds, values, strict=True) if _known(value)}
    array = np.array(list(values.values()))
    mean, sd = array.mean() if len(array) else np.nan, array.std(ddof=1) if len(array) > 1 else np.nan
    return Measured(mean, sd, values, sorted(seeds), runs)


def _by_place(table: pd.DataFrame) -> dict[tuple[str, str, str], list]:
    """Return the records of every data set, category and column, in this order: groups of pandas take far longer."""
    rows = {}
    for row in table.itertuples():
        rows.setdefault((row.dataset, row.category, row.column), []).append(row)
    return dict(sorted(rows.items()))


def _interval(records: Records, group: list) -> tuple[float, float]:
    """95 % bootstrap interval in percent of a cell's image AUROC, from the scores.csv of its runs; NaN without."""
    wins, labels = [], None
    for run, stored in ((row.run, row.image_auroc) for row in group):
        if not _known(stored):
            return np.nan, np.nan
        try:
            with open(records.folder / "runs" / run / "scores.csv", newline="", encoding="utf-8") as file:
                lines = csv.reader(file)
                header = next(lines)
                path, label, score = (header.index(name) for name in ("image_path", "label", "score"))
                rows = sorted((line[path], line[label], line[score]) for line in lines)
            labels = np.array([int(label) for _, label, _ in rows])
            pairs = pair_wins(labels, np.array([float(score) for *_, score in rows]))
            if not abs(pairs.mean() - stored) < 1e-4:  # scores are stored with six digits
                raise ValueError("they do not give the image AUROC of the record")
        except Exception as error:  # pandas and numpy each raise their own; the table is worth having without it
            reason = "it is missing" if isinstance(error, OSError) else f"{error} ".splitlines()[0].strip()
            records.left_out.append(f"no interval from runs/{run}/scores.csv: {reason}")
            return np.nan, np.nan
        wins.append(pairs)
    if len({pairs.shape for pairs in wins}) > 1:
        return np.nan, np.nan
    pairs = np.mean(wins, axis=0)  # the mean over seeds of AUROC is the AUROC of the mean wins
    bad, good = map(_resamples, pairs.shape)
    low, high = 100 * np.quantile(((bad @ pairs) * good).sum(1) / pairs.size, [0.025, 0.975])
    return float(low), float(high)


@functools.cache  # all methods see the same resamples
def _resamples(n: int) -> np.ndarray:
    """How often each of `n` images is drawn in each of 1,000 resamples with replacement: float64 (1000, n)."""
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=1000).astype(np.float64)


def pair_wins(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For every pair of an anomalous and a normal image: 1 where the anomalous one scores higher, 1/2 for a tie.

    The mean is the image AUROC, and reweighting rows and columns is that of a resample.

    Returns:
        float64 (n_anomalous, n_normal).
    """
    bad, good = scores[labels == 1][:, None], scores[labels == 0][None]
    return (bad > good) + 0.5 * (bad == good)


# -- tables -----------------------------------------------------------------------------------------------------------


def by_category(records: Records, cells: pd.DataFrame, profile: str, dataset: str, metric: str) -> Table:
    """Methods in columns, categories in rows, and the means over textures, objects and all categories at hand.

    A mean is over categories, never over group means, and a method that lacks one of the rows has none: it would be
    compared over other categories than its neighbour. The last row holds average ranks among the
    methods that have every category, where there are two of both.
    """
    part = cells[(cells.dataset == dataset) & (cells.metric == metric)]
    entry = DATASETS.get(dataset)
    names = entry.categories if entry else ()
    damaged = {(category, method) for place, category, method in records.damaged if place == dataset}
    recorded = _ordered(set(part.category), names)
    categories = _ordered({*recorded, *(category for category, _ in damaged)}, names)
    columns = _ordered({*part.column, *(method for _, method in damaged)}, METHODS)
    cell_at = {(row.category, row.column): row for row in part.itertuples()}
    groups = {}
    for kind, label in (("texture", "textures"), ("object", "objects"), (None, "all")):
        members = [c for c in recorded if kind in (None, category_kind(dataset, c))]
        of = sum(kind in (None, category_kind(dataset, c)) for c in names) or len(recorded)
        if members and of > 1:
            groups[f"mean of {label} ({len(members)} of {of})"] = members
    for label, members in groups.items():
        for column in columns:
            row = mean_over([cell_at.get((category, column)) for category in members])
            if row is not None:
                cell_at[label, column] = row
    rows = [*categories, *groups]
    value = pd.DataFrame({c: [getattr(cell_at.get((r, c)), "mean", np.nan) for r in rows] for c in columns}, index=rows)
    order = rank(value)

    def printed(row, column) -> Cell:
        text = cell_text(cell_at.get((row, column)))
        if (row, column) in damaged:
            text = f"{text.removesuffix(NO_RECORD)} {DAMAGED}".strip()
        return Cell(text, order.at[row, column], getattr(cell_at.get((row, column)), "runs", ()))

    printed_cells = pd.DataFrame({c: [printed(r, c) for r in rows] for c in columns}, pd.Index(rows, name=dataset))
    complete = value.loc[recorded].dropna(axis=1)
    complete = complete.drop(columns=[column for column in complete if _oracle(column)])
    if min(complete.shape) > 1:
        label, ranks = f"average rank ({len(recorded)} categories)", complete.round(2).rank(axis=1, ascending=False)
        printed_cells.loc[label] = ranks.mean().map("{:.2f}".format).reindex(columns).fillna(NO_RECORD).map(Cell)
    absent = [category for category in names if category not in recorded]
    notes = [*LEGEND, f"Protocol: {records.protocol}."]
    notes += [f"No record at all: {', '.join(absent)}."] if absent else []
    notes += [line for line in records.remarks if line.startswith(f"{dataset} / ")]
    data = _tidy(part, recorded, columns)
    title = f"{METRICS[metric]}, {dataset}, profile {profile}"
    name = f"{profile}_{dataset}_{metric}"
    return Table(name, title, printed_cells, data, tuple(notes), tuple(records.left_out))


def by_category_all(records: Records, cells: pd.DataFrame, profile: str) -> list[Table]:
    """One table per data set and main metric, where the data define it."""
    main = cells[cells.metric.isin(MAIN_METRICS) & cells["mean"].notna()]
    return [
        by_category(records, cells, profile, dataset, metric)
        for dataset in _ordered(set(main.dataset), DATASETS)
        for metric in MAIN_METRICS
        if ((main.dataset == dataset) & (main.metric == metric)).any()
    ]


def headline(records: Records, cells: pd.DataFrame, profile: str) -> Table:
    """The table of the README: one row per data set, category and method."""
    labels = {metric: METRICS[metric] for metric in (*MAIN_METRICS, "aupro_05")}
    return _rows_by_run(records, cells, f"{profile}_headline", f"Results, profile {profile}", labels, memory=False)


def overview(records: Records, cells: pd.DataFrame, profile: str) -> Table:
    """All metrics, one row per data set, category and method."""
    return _rows_by_run(records, cells, f"{profile}_overview", f"All metrics, profile {profile}", METRICS, memory=True)


def _rows_by_run(records, cells, name, title, labels, memory) -> Table:
    lines, data = [], []
    facts = {
        "seed": "size",
        "fit_s": "mean",
        "score_ms_per_image": "mean",
        "peak_memory_mib": "max",
        "n_images": "first",
    }
    numbers = records.table.astype({"fit_s": float, "score_ms_per_image": float})
    cost_at = {row.Index: row for row in numbers.groupby(["dataset", "category", "column"]).agg(facts).itertuples()}
    value = cells.pivot(index=["dataset", "category", "metric"], columns="column", values="mean")
    order = rank(value).stack().to_dict()
    for (dataset, category), part in cells.groupby(["dataset", "category"], sort=False):
        columns = _ordered(set(part.column), METHODS)
        cell_at = {(row.column, row.metric): row for row in part.itertuples()}
        for column in columns:
            cost, first = cost_at[dataset, category, column], cell_at[column, "image_auroc"]
            costs = {"seeds": str(cost.seed), "fit s": _whole(cost.fit_s)}
            costs["ms / image"] = _whole(cost.score_ms_per_image)
            if memory:
                costs["training images"] = str(cost.n_images["train"])
                costs["peak MiB"] = _whole(cost.peak_memory_mib)
            interval = "" if np.isnan(first.low) else f"{first.low:.1f} to {first.high:.1f}"
            ranks = {m: order[dataset, category, m, column] for m in labels}
            measured = {labels[m]: Cell(cell_text(cell_at[column, m]), ranks[m]) for m in labels}
            key = {"data": dataset if category == dataset else f"{dataset} / {category}", "method": column}
            line = {"data": Cell(key["data"]), "method": Cell(column, runs=first.runs)}
            line |= {"image AUROC": measured["image AUROC"], "95 % interval": Cell(interval)} | measured
            lines.append(line | {label: Cell(cost) for label, cost in costs.items()})
            plain = {labels[m]: round(cell_at[column, m].mean, 2) for m in labels}
            data.append(key | plain | {"95 % low": round(first.low, 2), "95 % high": round(first.high, 2)} | costs)
    notes = (
        LEGEND[0].replace("of a row", "of a category"),
        LEGEND[1],
        f"Protocol: {records.protocol}; all test images counted, masks true where half a pixel is covered, AUPRO "
        "exact, 8-connected regions. Interval: bootstrap over test images. Times on the record's own device.",
        *(
            f"{DAMAGED} {dataset} / {category}, {method}: damaged record"
            for dataset, category, method in records.damaged
        ),
        *records.remarks,
    )
    return Table(name, title, pd.DataFrame(lines), pd.DataFrame(data), notes, tuple(records.left_out))


def coverage(records: Records, profile: str) -> Table:
    """Which categories of which data set have a record, for every method of the profile: what is missing is said."""
    settings = profiles.load(profile)
    table = records.table
    here = set(table.dataset) if len(table) else set()
    datasets = [*settings["datasets"], *(PAPER_DATASETS if settings["discover"] else ())]
    datasets = _ordered(here | set(datasets), DATASETS)
    methods = [m for m in METHODS if m in settings["methods"] or (len(table) and m in set(table.method))]
    rows, data = {}, []
    for dataset in datasets:
        names = DATASETS[dataset].categories if dataset in DATASETS else ()
        rows[dataset] = {}
        for method in methods:
            own = table[(table.dataset == dataset) & (table.method == method)] if len(table) else table
            have = set(own.category) if len(own) else set()
            wanted = [c for c in names if c in settings["only"].get(method, names)] or sorted(have)
            seeds = sorted(set(own.groupby("category").seed.nunique())) if len(own) else []
            some = f", {'-'.join(map(str, seeds))} seeds" if seeds not in ([], [1]) else ""
            broken = sum(place[::2] == (dataset, method) for place in records.damaged)
            marked = f" {DAMAGED}" + (f" {broken}" if broken > 1 else "") if broken else ""
            rows[dataset][method] = (f"{len(have)} of {len(wanted)}{some}" if have else NO_RECORD) + marked
            missing_here = [c for c in wanted if c not in have]
            data.append(
                {"dataset": dataset, "method": method, "recorded": len(have), "categories": len(wanted)}
                | {"missing": " ".join(missing_here)}
            )
    text = pd.DataFrame.from_dict(rows, orient="index", columns=methods).rename_axis("categories with a record")
    title = f"What is there and what is missing, profile {profile}"
    notes = (
        f"{NO_RECORD}: no record of that method on that data set. Methods that run on some categories only are counted "
        f"on those. {DAMAGED}: a record is damaged.",
    )
    return Table(f"{profile}_coverage", title, text.map(Cell), pd.DataFrame(data), notes, tuple(records.left_out))


def logical_structural(records: Records, profile: str) -> Table:
    """Image AUROC and sPRO up to 5 % false positives for logical and structural anomalies, and the mean of both.

    Where a method has every category of a data set of several, further rows hold the means over the categories.
    """
    labels = {"image_auroc": "image AUROC", "spro_05": "sPRO@0.05"}
    measures = {(key, kind): f"{label}, {kind}" for key, label in labels.items() for kind in KINDS}
    both = records.table[records.table.by_kind.notna()] if len(records.table) else records.table
    cells = {}  # (dataset, category, column) -> label -> cell
    for place, group in _by_place(both).items():
        cells[place] = {
            label: _measured(
                [row.by_kind[kind][key] for row in group], [row.seed for row in group], [row.run for row in group]
            )
            for (key, kind), label in measures.items()
        }
    for dataset, column in dict.fromkeys((dataset, column) for dataset, _, column in cells):
        names = DATASETS[dataset].categories if dataset in DATASETS else ()
        members = [cells.get((dataset, category, column)) for category in names]
        if len(members) > 1 and all(members):
            averages = {label: mean_over([member[label] for member in members]) for label in measures.values()}
            cells[dataset, f"mean of {len(members)}", column] = averages
    lines, data = [], []
    for dataset, category in dict.fromkeys(place[:2] for place in cells):
        by_column = {column: row for (*place, column), row in cells.items() if place == [dataset, category]}
        means = {
            column: [getattr(row[label], "mean", np.nan) for label in measures.values()]
            for column, row in by_column.items()
        }
        order = rank(pd.DataFrame(means, index=list(measures.values()))).T
        for column, row in by_column.items():
            one = next(filter(None, row.values()))
            line = {"data": Cell(f"{dataset} / {category}"), "method": Cell(column, runs=one.runs)}
            line |= {
                label: Cell(cell_text(cell) if cell else "", order.at[column, label]) for label, cell in row.items()
            }
            lines.append(line)
            data.append({label: cell.text for label, cell in line.items()} | {"seeds": len(one.seeds)})
    columns = ["data", "method", *measures.values()]
    notes = [LEGEND[0].replace("of a row", "of a category"), "Each kind against all good images; the mean is that of "
             "the two kinds, whatever their numbers. What the ULSAD paper has here could not be read."]  # fmt: skip
    if not lines:
        notes = ["No record of this profile holds anomalies of both kinds (MVTec LOCO AD does)."]
    title = f"Logical and structural anomalies, profile {profile}"
    frames = pd.DataFrame(lines, columns=columns), pd.DataFrame(data, columns=[*columns, "seeds"])
    return Table(f"{profile}_logical_structural", title, *frames, tuple(notes), tuple(records.left_out))


# -- helpers ----------------------------------------------------------------------------------------------------------


def rank(values: pd.DataFrame) -> pd.DataFrame:
    """Rank 1 to 3 within each row (0 elsewhere); equal at two decimals is equal; oracle columns have no rank."""
    fair = values.drop(columns=[c for c in values.columns if _oracle(c)])
    ranks = fair.astype(float).round(2).rank(axis=1, ascending=False, method="min")
    return ranks.where(ranks <= 3, 0).fillna(0).astype(int).reindex(columns=values.columns, fill_value=0)


def _oracle(column) -> bool:
    """Tell whether a column's step was chosen on the test set: it is shown, but takes part in no ranking."""
    return "oracle" in str(column)


def missing(records: pd.DataFrame, expected: list[dict]) -> list[str]:
    """Name the expected runs (dicts with profile, method, dataset, category, seed) that have no record."""
    keys = ["profile", "method", "dataset", "category", "seed"]
    present = set(map(tuple, records[keys].to_numpy())) if len(records) else set()
    return ["/".join(str(run[k]) for k in keys) for run in expected if tuple(run[k] for k in keys) not in present]


def _whole(value) -> str:
    return f"{value:.0f}" if _known(value) else ""


def _known(value) -> bool:
    return value is not None and not pd.isna(value)


def cell_text(cell) -> str:
    """Print a cell: mean and deviation, a dash where there is no record, nothing where the data define no value."""
    if cell is None:
        return NO_RECORD
    if np.isnan(cell.mean):
        return ""
    return f"{cell.mean:.2f}" + ("" if np.isnan(cell.sd) else f" ± {cell.sd:.2f}")


def mean_over(cells: list):
    """Return the mean of cells over categories, with the deviation of that mean where all have the same seeds.

    None where a cell is missing or undefined.
    """
    if any(cell is None or np.isnan(cell.mean) for cell in cells):
        return None
    seeds = {tuple(cell.values) for cell in cells}
    sd = np.nan
    if len(seeds) == 1 and len(next(iter(seeds))) > 1:
        sd = np.std([np.mean([cell.values[seed] for cell in cells]) for seed in next(iter(seeds))], ddof=1)
    return cells[0]._replace(mean=float(np.mean([cell.mean for cell in cells])), sd=float(sd), runs=[])


def _tidy(part: pd.DataFrame, categories: list, columns: list) -> pd.DataFrame:
    """The numbers of a table, one row each, in the order of rows and columns."""
    order = part.sort_values(
        ["category", "column"],
        key=lambda names: names.map((categories if names.name == "category" else columns).index),
    )
    tidy = order[["dataset", "category", "column", "metric", "mean", "sd", "low", "high"]].round(2)
    return tidy.assign(seeds=[" ".join(map(str, s)) for s in order.seeds], runs=[" ".join(r) for r in order.runs])


def _ordered(names, order) -> list:
    """Sort names: those of `order` first and in its order, by their first word, then the others by name."""
    order = list(order)
    return sorted(names, key=lambda n: (order.index(w) if (w := n.split(" ")[0]) in order else len(order), n))
