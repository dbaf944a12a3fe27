"""The batch: which notebooks a profile runs on which data, and how one notebook is run.

Snakemake does the scheduling (see the Snakefile); this module says what there is to do and runs one thing.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat

from adlib import methods, profiles, source_files
from adlib.errors import InputError, suggest
from adlib.paths import atomic_path, results_dir, root
from adlib.settings import build
from adlib_book import teaching
from adlib_book.cells import notebook_path, parts

# Modules that load torch are imported where they are needed: a notebook has its own kernel to load it.

TABLES_NOTEBOOK = "90_tables"
# What a study imports of these measures in it; the rest draws, claims and checks.
MEASURING = ("adlib.evaluation", "adlib_book.learning_curves", "adlib_book.studies")
# Profiles of long runs: their batch tells each method's story once, of its first run.
ONE_STORY = ("paper",)
GOES_ON = "raises-exception"  # the tag of a cell whose error does not stop a run, as nbclient understands it
TYPES = {"str": str, "int": int, "float": (float, int), "bool": bool, "dict": dict, "list": list}


@dataclass(frozen=True)
class Job:
    """One method notebook on one category of one data set."""

    profile: str
    method: str
    dataset: str
    data_root: str
    category: str
    seed: int
    story: bool = True

    @property
    def folder(self) -> str:
        """Folder of the run below `results/runs`."""
        return f"{self.profile}/{self.method}/{self.dataset}-{self.category}-seed{self.seed}"

    def command(self, out: str) -> list[str]:
        """The `adlib run` command line of this job."""
        place = ["--data-root", self.data_root] if self.data_root else []
        data = ["--dataset", self.dataset, "--category", self.category, "--profile", self.profile]
        # Snakemake deletes what a failed job has written: a failed story must not look like one.
        ending = ["--keep-going"] if self.story else ["--no-story"]
        return ["run", self.method, *place, *data, "--seed", str(self.seed), *ending, "--out", out]


def plan(profile: str, data_root: str = "") -> list[Job]:
    """List the method runs of a profile: on what is found below `data_root`, or else on the profile's own data sets."""
    from adlib import datasets

    settings = profiles.load(profile)
    if data_root and settings["discover"]:
        places = [(name, str(path), categories) for name, _, path, categories in datasets.discover(data_root)]
        if not places:
            raise InputError(
                f"data root {data_root} holds no known data set; expected folders like mvtec_ad/<category>/train/good "
                "(see: adlib data list)"
            )
    else:
        places = []
        for name, entry in settings["datasets"].items():
            categories = entry.get("categories", "all")
            places.append((name, "", datasets.categories(name, None) if categories == "all" else categories))
    if not places:
        raise InputError(f"profile {profile!r} needs data: give --data-root DIR (make: DATA=DIR)")
    jobs = [
        Job(profile, method, name, path, category, seed)
        for method in settings["methods"]
        for name, path, categories in places
        for category in categories
        if category in settings["only"].get(method, categories)
        for seed in settings["seeds"]
    ]
    if profile in ONE_STORY:
        first = {job.method: job for job in reversed(jobs)}.values()
        jobs = [replace(job, story=job in first) for job in jobs]
    return jobs


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse parameters that the notebook does not declare, or of another type, before any kernel starts."""
    from papermill import inspect_notebook

    declared = inspect_notebook(str(notebook))
    for name, value in parameters.items():
        if name not in declared:
            raise InputError(
                f"parameter {name!r} is unknown to {notebook.name}{suggest(name, declared)}; "
                f"it takes: {', '.join(declared)}"
            )
        expected = TYPES.get(declared[name]["inferred_type_name"].split("[")[0])
        wrong = expected and not isinstance(value, expected)
        if wrong or (isinstance(value, bool) and expected in (int, (float, int))):
            kind = declared[name]["inferred_type_name"]
            raise InputError(f"parameter {name!r} of {notebook.name} must be {kind}, got {value!r}")


def run_notebook(name: str, output, parameters: dict, story: bool = True, figures=None) -> dict:
    """Execute a notebook with papermill and keep the executed copy at `output`.

    In a method's notebook the cell tagged `record` ends the result, and what comes after it is the story. An error in
    the story, or a kernel that dies there, is returned: the record is written, and the other cells still run. A
    notebook that fails before is kept beside `output` as `failed-<name>`, with the error in it; an earlier `output`
    stays.

    Args:
        story: False leaves out what comes after the record.
        figures: folder for figures; default `results/figures/<profile>`. `$ADLIB_FIGURES` goes before both.

    Returns:
        what `story.json` holds: status ("complete", "skipped" or "failed"), cell (its number in the executed copy;
        None where the kernel died), error and notebook.

    Raises:
        InputError: a parameter is unknown or wrong, or the notebook itself refused its input.
        NotebookError: a cell failed or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    notebook, output = notebook_path(name), Path(output)
    check_parameters(notebook, parameters)
    figures = figures or results_dir() / "figures" / parameters.get("profile", "smoke")
    failed = output.with_name(f"failed-{notebook.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    outcome = {"status": "complete" if story else "skipped", "cell": None, "error": None, "notebook": notebook.name}
    try:
        with atomic_path(output) as temporary:
            try:
                _execute(notebook, temporary, parameters, story, figures)
            except BaseException as error:
                expected = isinstance(error, papermill.PapermillExecutionError | DeadKernelError)
                failure = _story_failure(temporary) if expected else None
                if failure is None:
                    if temporary.stat().st_size:
                        os.replace(temporary, failed)
                    raise
                outcome |= failure
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        where = f"cell {error.exec_count} of {notebook.name} failed: {error.ename}: {error.evalue}"
        raise NotebookError(f"{where}; see {failed}") from None
    except DeadKernelError:
        raise NotebookError(
            f"the kernel of {notebook.name} died, most often for lack of memory; see {failed} for how far it came"
        ) from None
    return outcome


def _execute(notebook: Path, output: Path, parameters: dict, story: bool, figures) -> None:
    """Let papermill run a copy in which errors of the story stop nothing."""
    import papermill

    book = nbformat.read(notebook, as_version=4)
    result, rest = parts(book)
    for cell in rest:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), GOES_ON]
    book.cells = result + rest if story else result
    place = os.environ.get("ADLIB_FIGURES")
    os.environ["ADLIB_FIGURES"] = place or str(figures)  # the kernel inherits it
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, notebook.name)
            nbformat.write(book, copy)
            bar = sys.stderr.isatty()
            papermill.execute_notebook(
                copy, str(output), parameters, kernel_name="python3", progress_bar=bar, cwd=str(root())
            )
    finally:
        del os.environ["ADLIB_FIGURES"]
        if place:
            os.environ["ADLIB_FIGURES"] = place


def _story_failure(executed: Path) -> dict | None:
    """Return the first failure behind the record, and take papermill's marks out of the file; None: it came before."""
    from papermill.execute import remove_error_markers

    book = remove_error_markers(nbformat.read(executed, as_version=4))
    story = [cell for cell in parts(book)[1] if cell.cell_type == "code"]
    if not any(cell.metadata.papermill.start_time for cell in story):
        return None
    nbformat.write(book, executed)
    number, error = _first_error(story)
    return {"status": "failed", "cell": number, "error": error}


def _first_error(cells) -> tuple[int | None, str]:
    """Return the number of the first of `cells` that failed, and its error; where none did, the kernel died."""
    for cell in cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell.execution_count, f"{output.ename}: {output.evalue}"
    return None, "the kernel died"


def story_line(story: dict) -> str:
    """Say which cell of a story failed and why."""
    where = f"cell {story['cell']} of " if story["cell"] else ""
    return f"story failed: {where}{story['notebook']}: {story['error']}"


def refresh(name: str) -> Path:
    """Run a notebook with its own defaults and put the result in its place, without the traces of papermill.

    This is how the committed copies are made, and the figures: the defaults are the smoke profile, so nbval compares
    like with like.

    Raises:
        NotebookError: a cell failed, in the story too; the committed copy stays.
    """
    notebook = notebook_path(name)
    with atomic_path(notebook) as temporary:
        story = run_notebook(name, temporary, {}, figures=root() / "figures")
        if story["status"] == "failed":
            os.replace(temporary, failed := notebook.with_name(f"failed-{notebook.name}"))
            raise NotebookError(f"{story_line(story)}; see {failed}")
        book = nbformat.read(temporary, as_version=4)
        book.metadata.pop("papermill", None)
        book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        for cell in book.cells:
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
            cell.metadata["tags"] = [tag for tag in cell.metadata.tags if tag != GOES_ON]
        teaching.fold_solutions(book)
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        own = {key: book.metadata[key] for key in ("adlib",) if key in book.metadata}
        book.metadata = own | {"kernelspec": kernel, "language_info": {"name": "python"}}
        nbformat.write(book, temporary)
    return notebook


class NotebookError(RuntimeError):
    """A notebook stopped on an error of its own; the executed part is kept."""


def run_method(
    method, *, data_root, dataset, category, profile, seed, overrides, out, force=False, story=True
) -> tuple[str, dict]:
    """Run a method's notebook on one category; skip it where the record at `out` is of the same content.

    A record whose story failed or was left out is not up to date for a run that asks for the story.

    Returns:
        "done" or "up to date"; and what `story.json` holds, beside the record.
    """
    from adlib import datasets, runs

    settings = profiles.method_settings(profile, method, overrides)
    table = datasets.load(dataset, data_root or None, category)
    settings = profiles.shaped(method, settings, table.image_path[(table.split == "train") & (table.label == 0)])
    out = Path(out)
    if not force:
        with contextlib.suppress(InputError):
            values = build(methods.get(method).Settings, settings | {"seed": seed})
            current = runs.content_hash(method, values, seed, table)
            outcome = read_story(out)
            if runs.read_record(out)["content_hash"] == current and (outcome["status"] == "complete" or not story):
                for name in ("record.json", "scores.csv"):
                    (out / name).touch()  # Snakemake compares times
                return "up to date", outcome
    parameters = {
        "profile": profile,
        "dataset": dataset,
        "data_root": str(Path(data_root).resolve()) if data_root else "",
        "category": category,
        "seed": seed,
        "settings": overrides,
        "out_dir": str(out.resolve()),
    }
    outcome = run_notebook(methods.METHODS[method].notebook, out / "notebook.ipynb", parameters, story)
    with atomic_path(out / "story.json") as temporary:
        temporary.write_text(json.dumps(outcome, indent=2) + "\n")
    return "done", outcome


def read_story(out) -> dict:
    """Read the `story.json` of a run; records that are older than stories with a status count as complete."""
    try:
        return json.loads((Path(out) / "story.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {"status": "complete"}


def reproduce(profile: str, data_root: str = "", cores: int | None = None) -> int:
    """Run a profile's batch with Snakemake and say where the results are.

    Returns:
        exit code: 0, or 1 where a notebook or a story failed (the others still ran).
    """
    jobs = plan(profile, data_root)
    data_root = str(Path(data_root).resolve()) if data_root else ""
    with _only_batch():
        arguments = ["--snakefile", str(root() / "Snakefile"), "--directory", str(root()), "--nolock"]
        arguments += ["--cores", str(cores or os.cpu_count()), "--keep-going", "--rerun-incomplete", "--quiet", "rules"]
        arguments += ["--config", f"profile={profile}", f"data_root={data_root}"]
        before = _times(jobs, profile, data_root)
        finished = subprocess.run([sys.executable, "-m", "snakemake", *arguments], check=False)
        failed = sorted(results_dir().glob(f"runs/{profile}/*/*/failed-*.ipynb"))
        failed += sorted(results_dir().glob(f"notebooks/{profile}/failed-*.ipynb"))
        if finished.returncode and failed:
            # The tables are still worth having: they say what is missing.
            tables = {"profile": profile, "data_root": data_root}
            run_notebook(TABLES_NOTEBOOK, results_dir() / "notebooks" / profile / f"{TABLES_NOTEBOOK}.ipynb", tables)
    for notebook in failed:
        print(f"failed: {_last_error(notebook)} ({notebook})", file=sys.stderr)
    folders = [results_dir() / "runs" / job.folder for job in jobs]
    failures = {folder: outcome for folder in folders if (outcome := read_story(folder))["status"] == "failed"}
    for folder, outcome in failures.items():
        print(f"{story_line(outcome)} ({folder / 'notebook.ipynb'})", file=sys.stderr)
    if finished.returncode:
        return 1
    if not failures and _times(jobs, profile, data_root) == before:
        print(f"Nothing to do: all results of profile {profile!r} are up to date.")
    print(f"tables     {results_dir() / 'tables'}")
    print(f"figures    {os.environ.get('ADLIB_FIGURES') or results_dir() / 'figures' / profile}")
    print(f"notebooks  {results_dir() / 'notebooks' / profile}")
    print(f"records    {results_dir() / 'runs' / profile}")
    return 1 if failures else 0


# -- notebooks that a batch runs once --------------------------------------------------------------------------------


def notebooks(kind: str) -> dict[str, dict]:
    """Return the notebooks of a kind, by name, and what each says of itself in its metadata, under `adlib`.

    Args:
        kind: "story", told on the demo data, by a batch of the smoke profile; "study", which fits `methods` (names, or
            "all"), on the demo data or on the first category that was found; or "records", which fits nothing and comes
            last. `shows` are patterns below `results`: committed numbers that stand beside the notebook's own.
    """
    files = sorted((root() / "notebooks").glob("[!.]*.ipynb"))
    facts = {file.stem: json.loads(file.read_text())["metadata"].get("adlib", {}) for file in files}
    return {name: own for name, own in facts.items() if own.get("kind") == kind}


def once_outputs(profile: str, data_root: str = "") -> list[str]:
    """Return the executed copies of all notebooks that a batch runs once.

    Studies measure localisation too: without a data root, other profiles run on data that have no masks, and no study.
    """
    kinds = {"story": profile == "smoke", "study": profile == "smoke" or data_root, "records": True}
    names = [name for kind, wanted in kinds.items() if wanted for name in notebooks(kind)]
    return [str(results_dir() / "notebooks" / profile / f"{name}.ipynb") for name in names]


def inputs(name: str) -> list[str]:
    """Return the files that a study or a notebook of records is run again for, when one of them changes.

    The code that measures, or all the code of what reads records, and the committed and published numbers it shows.
    """
    book = json.loads(notebook_path(name).read_text())
    facts = book["metadata"]["adlib"]
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    imported, patterns = source_files.imported_modules(code), list(facts.get("shows", ()))
    if facts["kind"] == "study":
        fitted = methods.METHODS if facts["methods"] == "all" else facts["methods"]
        measuring = [module for module in imported if module.startswith(MEASURING)]
        files = [file for module in measuring for file in source_files.module_files(module)]
        files += [file for method in fitted for file in source_files.of_method(method)]
        patterns.append(f"studies/{name}_laptop.csv")
    else:
        files = source_files.of_modules(imported)
    shown = [file for pattern in patterns for file in sorted(results_dir().glob(pattern))]
    if "adlib_book.published" in imported:
        shown += sorted((root() / "adlib_book" / "reported").glob("*.csv"))
    return list(dict.fromkeys(map(str, (*files, *shown))))


def study_command(name: str, profile: str, jobs: list[Job], data_root: str, out: str) -> list[str]:
    """The `adlib notebook` command line of a study: its own defaults on demo data, else on what the batch runs on.

    A study that takes a category gets the first one; the others choose below the data root of the batch themselves.
    """
    parameters = {"profile": profile}
    if profile != "smoke":
        cells = nbformat.read(notebook_path(name), as_version=4).cells
        declared = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        place = {key: getattr(jobs[0], key) for key in ("dataset", "data_root", "category")}
        parameters |= place if "\ncategory:" in declared else {"data_root": data_root}
    # JSON is YAML with quotes: a category called 01 stays text.
    pairs = [f"{key}={json.dumps(value)}" for key, value in parameters.items()]
    return ["notebook", name, *(part for pair in pairs for part in ("--set", pair)), "--out", out]


@contextlib.contextmanager
def _only_batch():
    """Hold a lock on the results folder; the system lets go of it when the process ends, however it ends."""
    results_dir().mkdir(parents=True, exist_ok=True)
    with open(results_dir() / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another batch is running in {results_dir()}; wait for it, or use another folder: ADLIB_RESULTS=DIR"
            ) from None
        yield


def _times(jobs: list[Job], profile: str, data_root: str) -> dict:
    files = [results_dir() / "runs" / job.folder / "record.json" for job in jobs]
    files += [Path(name) for name in once_outputs(profile, data_root)]
    return {str(file): file.stat().st_mtime_ns if file.exists() else None for file in files}


def _last_error(notebook: Path) -> str:
    with contextlib.suppress(json.JSONDecodeError, OSError, nbformat.ValidationError):
        return _first_error(reversed(nbformat.read(notebook, as_version=4).cells))[1]
    return "the kernel died"
