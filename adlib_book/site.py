"""The site: executed notebooks, result tables and run records as a static book that works from disk and offline.

    build("smoke", "build/site")     -> build/site/index.html

The hand-written pages, the style and the scripts are in `site/`; this module adds the pages that are made from results
and calls Sphinx. Nothing is computed but the maps of the threshold page, and those only when they are out of date.
"""

import ast
import base64
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from urllib.parse import quote, unquote

import cv2
import nbformat
import numpy as np
import pandas as pd

from adlib import datasets, evaluation, methods, profiles, runs
from adlib.errors import InputError
from adlib.evaluation import thresholds
from adlib.paths import atomic_path, results_dir, root
from adlib.settings import build as build_settings
from adlib_book import teaching
from adlib_book.cells import declared_parameters

# One plain object, one texture, one set with defects that no patch shows.
THRESHOLD_CATEGORIES = ("gear", "brick", "tray")
REPOSITORY = ""  # "https://github.com/OWNER/NAME": set it, and every notebook's page offers Colab and Binder
MARKER = ".adlib-site"  # says that a folder may be cleared and written again
ROWS = 300  # of a page of run records
STEPS = 255  # of the quantised maps: one byte per pixel
SHOWN_METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_30": "AUPRO@0.3"}


def build(profile: str = "smoke", out=None, categories=THRESHOLD_CATEGORIES) -> Path:
    """Build the site and return its first page.

    Args:
        profile: whose executed notebooks are taken, where there are any.
        out: folder of the site, default `build/site`; pages of an earlier build are replaced.
        categories: demo categories of the threshold page; none leaves the page without maps.
    """
    missing = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the site needs {', '.join(missing)}: say `make site`, or pip install -e '.[site]'")
    profiles.load(profile)
    out = Path(out) if out else root() / "build" / "site"
    _clear(out)
    write_threshold_maps(out / "threshold", categories)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "site"
        shutil.copytree(root() / "site", source, ignore=shutil.ignore_patterns("conf.py", "_static", "__pycache__"))
        shutil.copytree(root() / "figures", source / "figures", ignore=shutil.ignore_patterns("*.pdf"))
        records, damaged = write_records(source / "records")
        for line in write_notebooks(profile, source / "notebooks", records):
            print(line)
        left_out = damaged + write_tables(source / "tables", records)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        command = [sys.executable, "-m", "sphinx", "-q", "-d", str(Path(folder) / "doctrees")]
        command += ["-c", str(root() / "site"), str(source), str(out)]
        if subprocess.run(command, check=False).returncode:
            raise InputError("Sphinx could not build the site; its message is above")
    return out / "index.html"


def _clear(out: Path) -> None:
    """Remove an earlier site but for its maps, which are kept while they are up to date; refuse any other folder."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out} holds files that are no site of adlib; give an empty or a new folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for old in out.iterdir():
        if old.is_dir() and old.name != "threshold":
            shutil.rmtree(old)
        elif old.is_file() and old.name != MARKER:
            old.unlink()


# -- notebooks --------------------------------------------------------------------------------------------------------


def write_notebooks(profile: str, folder: Path, records=()) -> list[str]:
    """Copy every notebook: the executed copy of the profile, or else the committed one.

    Solutions of exercises are folded in both, and links to `records` (runs that have a page) lead to their pages.
    Below its title each offers the committed file.

    Returns:
        lines that say which committed copies were taken, and why.
    """
    (folder / "files").mkdir(parents=True)
    lines, not_run = [], []
    for file in sorted((root() / "notebooks").glob("[!.]*.ipynb")):
        book = nbformat.read(file, as_version=4)
        copy = executed_file(profile, file)
        executed, reason = _executed_copy(copy, book) if copy.is_file() else (None, "")
        if reason:
            lines.append(f"{file.stem}: the committed copy ({copy.relative_to(results_dir())} {reason})")
        elif executed is None:
            not_run.append(file.stem)
        shutil.copy(file, folder / "files")
        book = executed or book
        title, _, rest = book.cells[0].source.partition("\n")
        book.cells[0].source = f"{title}\n\n{offers(file.name)}\n{rest}"
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("](../site/", "](../")  # as the pages lie here
            if teaching.is_solution(cell):
                cell.metadata["tags"] = [*cell.metadata.tags, "hide-input"]
                cell.metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide"}
            for output in cell.get("outputs", []):
                if "text/html" in output.get("data", {}):
                    output.data["text/html"] = link_records(output.data["text/html"], records)
        nbformat.write(book, folder / file.name)
    if not_run:
        lines.append(f"the committed copy of what was not run in profile {profile!r}: {', '.join(not_run)}")
    return lines


def offers(name: str) -> str:
    """Return the line below a notebook's title: its file, and where it runs without an installation."""
    links = [f"{{download}}`this notebook <files/{name}>`"]
    if place := REPOSITORY.removeprefix("https://github.com/"):
        links += [f"[Colab](https://colab.research.google.com/github/{place}/blob/main/notebooks/{name})"]
        links += [f"[Binder](https://mybinder.org/v2/gh/{place}/main?labpath=notebooks/{name})"]
    return "To run it yourself: " + ", ".join(links) + "."


def executed_file(profile: str, notebook: Path) -> Path:
    """Return where a batch leaves an executed notebook; for a method's, the run with its defaults."""
    file = results_dir() / "notebooks" / profile / notebook.name
    method = next((name for name, entry in methods.METHODS.items() if entry.notebook == notebook.stem), None)
    if method is None or file.is_file():
        return file
    declared = declared_parameters(notebook)
    dataset, category, seed = (ast.literal_eval(declared[k].value) for k in ("dataset", "category", "seed"))
    return results_dir() / "runs" / profile / method / f"{dataset}-{category}-seed{seed}" / "notebook.ipynb"


def _executed_copy(file: Path, committed):
    """Return an executed notebook if its code is that of the committed one, or None; and the reason why not."""
    try:
        book = nbformat.read(file, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError, KeyError):
        return None, "is damaged"
    if file.name == "notebook.ipynb":  # run with the defaults: what was injected only adds folders of this machine
        book.cells = [cell for cell in book.cells if not _injected(cell)]

    def code(cells):
        return [cell.source for cell in cells if cell.cell_type == "code" and not _injected(cell)]

    if code(book.cells) != code(committed.cells):
        return None, "was run from another version"
    return book, ""


def _injected(cell) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


# -- tables -----------------------------------------------------------------------------------------------------------


def write_tables(folder: Path, records=()) -> list[str]:
    """Write a page for every table below `results/tables`, with its other formats to download.

    Links to `records` (runs that have a page) lead to their pages. Files without a table are named in the return value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out = []
    for file in sorted((results_dir() / "tables").glob("*.html")):
        title, body = table_of(file.read_text())
        if not body:
            left_out.append(f"{file} holds no table")
            continue
        lines = [f"# {plain(title or file.stem.replace('_', ' '))}", ""]
        lines += ["```{raw} html", link_records(body, records), "```", ""]
        links = []
        for suffix, name in (("csv", "CSV"), ("tex", "LaTeX"), ("md", "Markdown")):
            if file.with_suffix(f".{suffix}").is_file():
                shutil.copy(file.with_suffix(f".{suffix}"), folder / f"{file.stem}.{suffix}.txt")
                links.append(f"{{download}}`{name} <{file.stem}.{suffix}.txt>`")
        if links:
            lines.append("The same table as " + ", ".join(links) + ".")
        (folder / f"table_{file.stem}.md").write_text("\n".join(lines))
    return left_out


def table_of(page: str) -> tuple[str, str]:
    """Return the caption and the body of a table's HTML page, the table in a box that scrolls, or empty strings."""
    body = re.search(r"<body[^>]*>(.*)</body>", page, re.DOTALL)
    body = body[1] if body else page
    if "<table" not in body:
        return "", ""
    caption = re.search(r"\s*<caption>(.*?)</caption>", body, re.DOTALL)
    if caption:  # becomes the heading of the page
        body = body.replace(caption[0], "", 1)
    body = re.sub(r"<table.*?</table>", r'<div class="scroll">\g<0></div>', body, flags=re.DOTALL)
    return (html.unescape(caption[1].strip()) if caption else ""), body


def plain(text: str) -> str:
    """Mask in a line of Markdown what would be read as more than text: names are data."""
    return re.sub(r"([^\w\s])", r"\\\1", " ".join(text.split()), flags=re.ASCII)


def link_records(table: str, records) -> str:
    """Let links to record.json files lead to the pages of `records`; a link to any other is taken out."""

    def page(link: re.Match) -> str:
        run, text = link[1], link[2]
        return f'<a href="../records/{run}.html">{text}</a>' if unquote(run) in records else text

    return re.sub(r'<a href="[^"]*?runs/([^"]+)/record\.json">(.*?)</a>', page, table, flags=re.DOTALL)


# -- records ----------------------------------------------------------------------------------------------------------


def write_records(folder: Path) -> tuple[list[str], list[str]]:
    """Write a page for every run record and one that lists them; return the runs and a line for each damaged record."""
    table, damaged = runs.collect()
    rows = []
    for row in table.to_dict("records"):
        run = row["run"]
        place = folder / run
        place.parent.mkdir(parents=True, exist_ok=True)
        files = {}
        for name in ("record.json", "scores.csv"):
            file = results_dir() / "runs" / run / name
            if file.is_file():
                place.mkdir(exist_ok=True)
                files[name] = f"{place.name}/{name}"
                shutil.copy(file, place / name)
        record = runs.read_record(results_dir() / "runs" / run)
        place.with_name(f"{place.name}.md").write_text(record_page(record, files, "../" * (run.count("/") + 1)))
        cells = {key: html.escape(str(row[key])) for key in ("profile", "method", "dataset", "category", "seed")}
        cells |= {name: _percent(row.get(key)) for key, name in SHOWN_METRICS.items()}
        rows.append(cells | {"record": f'<a href="{quote(run)}.html">record</a>'})
    lines = ["# Run records", ""]
    lines += ["One row per run: what was run, what came out (in percent), and the record with everything else.", ""]
    if damaged:
        lines += [":::{warning}", "Damaged records, left out of every table:", ""]
        lines += [f"- `{Path(line.split()[0]).parent.name}`: {plain(line.split(':', 1)[1])}" for line in damaged]
        lines += [":::", ""]
    if not rows:
        lines += ["There are no records yet: `make reproduce` makes them."]
    pages = {f"index_{start}" if start else "index": rows[start : start + ROWS] for start in range(0, len(rows), ROWS)}
    links = [f"[{page[0]['profile']} {page[0]['method']} ...]({name}.md)" for name, page in pages.items()]
    lines += [f"{len(rows)} runs, on {len(pages)} pages: {', '.join(links)}", ""] if len(pages) > 1 else []
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in (pages or {"index": []}).items():
        head = "".join(f"<th>{key}</th>" for key in rows[0]) if page else ""
        body = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row.values())}</tr>" for row in page]
        shown = ["```{raw} html", f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>']
        shown += [*body, "</tbody></table></div>", "```"]
        orphan = [] if name == "index" else ["---", "orphan: true", "---"]
        (folder / f"{name}.md").write_text("\n".join([*orphan, *lines, *(shown if page else [])]))
    return [row["run"] for row in table.to_dict("records")], damaged


def record_page(record: dict, files: dict[str, str], up: str) -> str:
    """Return the Markdown page of a record: what one asks first, then the whole record as it is.

    Args:
        record: as `runs.read_record` returns it.
        files: {name: path beside the page} of what can be downloaded.
        up: way from the page to the top of the site, "../../../".
    """
    place = f"{record['dataset']} / {record['category']}"
    title = "# " + plain(f"{record['method']} on {place}, {record['profile']}, seed {record['seed']}")
    lines = ["---", "orphan: true", "---", title, ""]
    lines += ["Files: " + ", ".join(f"{{download}}`{name} <{path}>`" for name, path in files.items()) + ".", ""]
    metrics = {name.replace("_", " "): _percent(value) for name, value in record["metrics"].items()}
    sections = {"Metrics (percent)": metrics}
    if record["threshold"]:
        sections["Threshold, from held-out normal images"] = record["threshold"]
    if record["at_threshold"]:
        sections["Test images at this threshold"] = record["at_threshold"]
    sections |= {"Protocol": record["protocol"], "Images": record["n_images"]}
    sections["Time and memory"] = record["timing"] | {"peak_memory_mib": record["peak_memory_mib"]}
    origin = ("notebook", "git_commit", "created", "device", "table_hash", "content_hash")
    sections |= {"Parameters": record["parameters"], "Where it comes from": {key: record[key] for key in origin}}
    sections["Versions"] = record["versions"]
    for heading, values in sections.items():
        lines += [f"## {heading}", "", "```{raw} html", '<table class="facts"><tbody>']
        shown = {key: _shown(value) for key, value in values.items()}
        if "notebook" in shown and (root() / record["notebook"]).is_file():
            page = record["notebook"].replace(".ipynb", ".html")
            shown["notebook"] = f'<a href="{up}{html.escape(page)}">{shown["notebook"]}</a>'
        lines += [f"<tr><th>{html.escape(key)}</th><td>{value}</td></tr>" for key, value in shown.items()]
        lines += ["</tbody></table>", "```", ""]
    whole = html.escape(json.dumps(record, indent=2))
    lines += ["## The whole record", "", "```{raw} html", '<details class="record"><summary>record.json</summary>']
    lines += [f"<pre>{whole}</pre></details>", "```"]
    return "\n".join(lines)


def _shown(value) -> str:
    """Return a value of a record as HTML: six digits are enough to read, the whole record has them all."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{html.escape(str(key))} {_shown(part)}" for key, part in value.items())
    return "" if value is None else html.escape(value if isinstance(value, str) else json.dumps(value))


def _percent(value) -> str:
    return "" if value is None or pd.isna(value) else f"{100 * value:.2f}"


# -- the maps of the threshold page -----------------------------------------------------------------------------------


def write_threshold_maps(folder: Path, categories=THRESHOLD_CATEGORIES) -> None:
    """Write `<category>.js` with the maps of PatchCore (smoke profile) on demo data, where it is not up to date."""
    settings = profiles.method_settings("smoke", "patchcore") | {"seed": 0}
    for category in categories:
        table = datasets.load("demo", None, category)
        digest = runs.content_hash("patchcore", build_settings(methods.get("patchcore").Settings, settings), 0, table)
        file = folder / f"{category}.js"
        if file.is_file() and f'"hash": "{digest}"' in file.read_text()[:200]:
            continue
        _write_script(file, "adlibMaps", {"hash": digest, "category": category, **_threshold_maps(table, settings)})
    _write_script(folder / "sets.js", "adlibSets", list(categories))


def _threshold_maps(table: pd.DataFrame, settings: dict) -> dict:
    method = methods.create("patchcore", **settings).fit(table[(table.split == "train") & (table.label == 0)])
    test = table[table.split == "test"]
    result = evaluation.evaluate(method, test)
    threshold = thresholds.from_normals(method.normal_map_maxima, "quantile", false_alarm_rate=0.05)
    maps = np.stack(result.anomaly_maps)  # (n, H, W)
    quantised, levels = quantise(maps)
    step = int(np.clip(np.searchsorted(levels, threshold.value, side="right"), 1, STEPS))
    photos = [method.resize.read(path)[0] for path in test.image_path]
    rows = zip(test.image_path, test.defect, test.label, photos, strict=True)
    return {
        "size": maps.shape[1],
        "low": float(levels[0]),
        "high": float(levels[-1]),
        "threshold": step,
        "images": [
            {"name": Path(path).stem, "defect": defect, "label": int(label), "photo": _jpeg(photo)}
            for path, defect, label, photo in rows
        ],
        "maps": _packed(quantised),
        "masks": _packed(np.packbits(np.stack(result.masks))),
    }


def quantise(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round maps down to one byte per pixel, on one scale for all.

    Because of rounding *down*, a quantised pixel is at or above step k exactly where the pixel itself is at or above
    the score of that step: thresholds at steps lose nothing.

    Returns:
        uint8 array of the shape of `maps`; float64 (256,), the score of each step.
    """
    maps = np.asarray(maps, dtype=np.float64)
    levels = np.linspace(maps.min(), maps.max(), STEPS + 1)  # ends exact
    return (np.searchsorted(levels, maps, side="right") - 1).clip(0, STEPS).astype(np.uint8), levels


def _write_script(file: Path, function: str, data) -> None:
    # A script, because a page from disk may not fetch a JSON file.
    with atomic_path(file) as temporary:
        temporary.write_text(f"{function}({json.dumps(data)});\n")


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _jpeg(image: np.ndarray) -> str:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise RuntimeError("an image could not be written as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
