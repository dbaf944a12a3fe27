"""The batch: which notebooks a profile runs on which data, and how one notebook is run.

Snakemake does the scheduling (see the Snakefile); this module says what there is to do and runs one thing.
"""

import ast
import contextlib
import fcntl
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote, unquote

from adlib import methods, profiles, source_files
from adlib.errors import InputError, suggest
from adlib.images import weights
from adlib.paths import atomic_path, results_dir, root
from adlib.settings import build, choice
from adlib_book import costs, progress
from adlib_book.cells import declared_parameters, execute, notebook_path, parts

# Modules that load torch are imported where they are needed: a notebook has its own kernel to load it.

TABLES_NOTEBOOK = "90_tables"
START_NOTEBOOK = "00_start_here"  # it shows the headline table, which the tables' notebook writes
# What a study imports of these measures in it; the rest draws, claims and checks.
MEASURING = ("adlib.evaluation", "adlib_book.learning_curves", "adlib_book.studies")
# What a batch may be narrowed to: fields of `Job`.
SELECTORS = ("method", "dataset", "category", "seed")
# Profiles whose batch tells each method's story once, of its first run.
ONE_STORY = ("smoke", "paper")
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
        for category in settings["only"].get(method, categories)
        if category in categories
        for seed in settings["seeds"]
    ]
    if settings["based_on"] in ONE_STORY:
        first = {job.method: job for job in reversed(jobs)}.values()
        jobs = [replace(job, story=job in first) for job in jobs]
    return jobs


def select(jobs: list[Job], **names: str) -> list[Job]:
    """Keep the jobs that are named.

    Args:
        names: field of `Job` (of `SELECTORS`) -> names or globs, separated by commas, for example "glass,ul*"; "": all.

    Raises:
        InputError: a name or glob is none of the jobs'.
    """
    for field, text in names.items():
        patterns = [name.strip() for name in str(text).split(",") if name.strip()]
        values = list(dict.fromkeys(str(getattr(job, field)) for job in jobs))
        for name in patterns:
            if not fnmatch.filter(values, name):
                listed = ", ".join(values[:20]) + (", ..." if len(values) > 20 else "")
                raise InputError(f"{field} {name!r} is none of this batch{suggest(name, values)}; there are {listed}")
        if patterns:
            jobs = [job for job in jobs if any(fnmatch.fnmatch(str(getattr(job, field)), name) for name in patterns)]
    return jobs


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse parameters that the notebook does not declare, or of another type, before any kernel starts."""
    declared = {name: ast.unparse(line.annotation) for name, line in declared_parameters(notebook).items()}
    for name, value in parameters.items():
        if name not in declared:
            raise InputError(
                f"parameter {name!r} is unknown to {notebook.name}{suggest(name, declared)}; "
                f"it takes: {', '.join(declared)}"
            )
        expected = TYPES.get(declared[name].split("[")[0])
        wrong = expected and not isinstance(value, expected)
        if wrong or (isinstance(value, bool) and expected in (int, (float, int))):
            quote = f"; quote it: --set {name}='\"{value}\"'" if expected is str else ""
            raise InputError(f"parameter {name!r} of {notebook.name} must be {declared[name]}, got {value!r}{quote}")


def run_notebook(name: str, output, parameters: dict, story: bool = True, figures=None) -> dict:
    """Execute a notebook and keep the executed copy at `output`.

    In a method's notebook the cell tagged `record` ends the result, and what comes after it is the story. An error in
    the story, or a kernel that dies there, is returned: the record is written, and the other cells still run. A
    notebook that fails before is kept beside `output` as `failed-<name>`, with the error in it; an earlier `output`
    stays.

    Args:
        story: False leaves out what comes after the record; the rest runs in this process, where a kernel would take
            longer to start than a small run, and its copy holds what was printed, no pictures.
        figures: folder for figures; default `results/figures/<profile>`. `$ADLIB_FIGURES` goes before both.

    Returns:
        what `story.json` holds: status ("complete", "skipped" or "failed"), cell (its number in the executed copy;
        None where the kernel died), error and notebook.

    Raises:
        InputError: a parameter is unknown or wrong, or the notebook itself refused its input.
        NotebookError: a cell failed or the kernel died.
    """
    notebook, output = notebook_path(name), Path(output).absolute()
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
                failure = _story_failure(temporary) if story and isinstance(error, _CellError) else None
                if failure is None:
                    if temporary.stat().st_size:
                        os.replace(temporary, failed)
                    raise
                outcome |= failure
        failed.unlink(missing_ok=True)
    except _CellError as error:
        number, kind, text = error.args
        if kind == "InputError":
            raise InputError(text) from None
        if number is None:
            text = (
                f"the kernel of {notebook.name} died, most often for lack of memory; see {failed} for how far it came"
            )
            raise NotebookError(text) from None
        raise NotebookError(f"cell {number} of {notebook.name} failed: {kind}: {text}; see {failed}") from None
    return outcome


class _CellError(Exception):
    """A cell stopped a notebook. Arguments: its number (None where the kernel died), kind and text of the error."""


def _execute(notebook: Path, output: Path, parameters: dict, story: bool, figures) -> None:
    """Run a copy and write it to `output`, whatever happens."""
    with _environment(ADLIB_FIGURES=os.environ.get("ADLIB_FIGURES") or str(figures)):  # a kernel inherits it
        (_run_in_kernel if story else _run_result_here)(notebook, output, parameters)


@contextlib.contextmanager
def _environment(**variables: str):
    """Set environment variables until the block ends."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_in_kernel(notebook: Path, output: Path, parameters: dict) -> None:
    """Let papermill run it all; errors of the story stop nothing."""
    import nbformat
    import papermill
    from ipykernel.kernelspec import write_kernel_spec
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    book = nbformat.read(notebook, as_version=4)
    for cell in parts(book)[1]:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), GOES_ON]
    try:
        # Sockets that are files, in a folder of this user and this kernel alone: what goes over a port, others on this
        # machine can read. And nbclient ends a kernel by an interrupt, which the kernel would log as an error.
        with tempfile.TemporaryDirectory() as folder, _environment(JUPYTER_PATH=folder):
            # The kernel is this interpreter, whatever else is registered on this machine under the name that is asked.
            write_kernel_spec(Path(folder, "kernels/python3"))
            sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
            own = Config({"KernelManager": sockets, "NotebookClient": {"extra_arguments": ["--log-level=50"]}})
            papermill.execute_notebook(
                book, str(output), parameters, kernel_name="python3", progress_bar=sys.stderr.isatty(),
                cwd=str(root()), config=own,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise _CellError(error.exec_count, error.ename, error.evalue) from None
    except DeadKernelError:
        raise _CellError(None, "", "") from None


def _run_result_here(notebook: Path, output: Path, parameters: dict) -> None:
    """Run the cells up to the record in this process, without what serves kernels: to load that takes seconds."""
    book = json.loads(notebook.read_text())
    book["cells"], _ = parts(book)
    try:
        with contextlib.chdir(root()):
            execute(book, parameters)
    except Exception as error:
        number = max(cell.get("execution_count") or 0 for cell in book["cells"])
        raise _CellError(number, type(error).__name__, str(error)) from None
    finally:
        output.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def _story_failure(executed: Path) -> dict | None:
    """Return the first failure behind the record, and take papermill's marks out of the file; None: it came before."""
    import nbformat
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
    import nbformat

    from adlib_book import teaching

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
    method, *, data_root, dataset, category, profile, seed, overrides, out, force=False, story=True, done=None
) -> tuple[str, dict]:
    """Run a method's notebook on one category; skip it where the record at `out` is of the same content.

    A record whose story failed or was left out is not up to date for a run that asks for the story.

    Args:
        done: done-file of a batch, written when the record stands (see `adlib_book.progress`).

    Returns:
        "done" or "up to date"; and what `story.json` holds, beside the record.
    """
    from adlib import datasets

    choice("method", method, methods.METHODS)
    profiles.load(profile)
    table = datasets.load(dataset, data_root or None, category)
    out, job = Path(out), Job(profile, method, dataset, data_root or "", category, seed, story)
    made_from = progress.of_run(job, out).split()[0]
    if overrides or (not force and (out / "record.json").is_file()):  # only then: it loads torch, as the kernel does
        settings = profiles.method_settings(profile, method, overrides)
        outcome = None if force else _up_to_date(out, method, settings, seed, table, story)
        if outcome:
            _seal(done, made_from, out)
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
    with progress.reported(out):
        for left in out.glob(".notebook-*.ipynb"):  # of a run that was killed: how far it came
            os.replace(left, out / f"failed-{methods.METHODS[method].notebook}.ipynb")
        outcome = run_notebook(methods.METHODS[method].notebook, out / "notebook.ipynb", parameters, story)
        with atomic_path(out / "story.json") as temporary:
            temporary.write_text(json.dumps(outcome, indent=2) + "\n")
        _seal(done, made_from, out)
    return "done", outcome


def _up_to_date(out: Path, method: str, settings: dict, seed: int, table, story: bool) -> dict | None:
    """Return what `story.json` holds where the record at `out` is what a run would give, else None."""
    from adlib import runs

    settings = profiles.shaped(method, settings, table.image_path[(table.split == "train") & (table.label == 0)])
    with contextlib.suppress(InputError):
        values = build(methods.get(method).Settings, settings | {"seed": seed})
        outcome, current = read_story(out), runs.content_hash(method, values, seed, table)
        complete = outcome["status"] == "complete" or not story
        return outcome if complete and runs.read_record(out)["content_hash"] == current else None


def _seal(done, made_from: str, out: Path) -> None:
    if done:
        progress.write_done((done, out / progress.DONE), f"{made_from} {progress.record_digest(out)}")


def read_story(out) -> dict:
    """Read the `story.json` of a run; records that are older than stories with a status count as complete."""
    try:
        return json.loads((Path(out) / "story.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {"status": "complete"}


def to_do(jobs: list[Job], profile: str, data_root: str = "", whole: bool = True) -> list:
    """Return the jobs, and of a whole batch the executed notebooks (paths), that are not of today's inputs."""
    runs = [job for job in jobs if not progress.is_done(job)]
    waiting = []
    for path in once_outputs(profile, data_root) if whole else []:
        name = Path(path).stem
        current = Path(path).is_file() and progress.content(path) == of_notebook(name, profile)
        if not current or waits_for(name, profile, runs):
            waiting.append(path)
    return runs + waiting


def lacking_weights(profile: str, names) -> list[str]:
    """One line for each of these methods whose backbone's weights are not there, or have to be fetched."""
    settings = {name: profiles.load(profile)["methods"][name] for name in names}
    backbones = {name: own.get("backbone", methods.METHODS[name].backbone) for name, own in settings.items()}
    lines = [weights.lacking(b, settings[name].get("weights", "auto")) for name, b in backbones.items() if b]
    return list(filter(None, lines))


def reproduce(
    profile: str, data_root: str = "", cores: int | None = None, dry_run=False, cluster: str = "", **names: str
) -> int:
    """Run a profile's batch with Snakemake and say where the results are.

    Args:
        cores: processors; default all of this machine.
        dry_run: list what there is to do, and run nothing.
        cluster: a Snakemake profile, for example "slurm" for `profiles/slurm`; "": this machine.
        names: what the batch is narrowed to, as `select` takes it; then only runs, no notebooks besides.

    Returns:
        exit code: 0, or 1 where a notebook or a story failed (the others still ran).
    """
    data_root = str(Path(data_root).resolve()) if data_root else ""
    jobs, whole = select(plan(profile, data_root), **names), not any(names.values())
    waiting = to_do(jobs, profile, data_root, whole)
    if waiting and (not dry_run or os.environ.get("ADLIB_PROFILE")):
        with ProcessPoolExecutor(1, get_context("spawn")) as aside:  # it loads torch; this process waits for days
            aside.submit(profiles.check, profile).result()
        names_to_do = dict.fromkeys(task.method for task in waiting if isinstance(task, Job))
        for line in lacking_weights(profile, names_to_do):  # before the first job, not inside it
            if not line.endswith("by the first job"):
                raise InputError(line)
    if dry_run:
        for task in waiting:
            print(task if isinstance(task, str) else task.folder)
        hours = sum(costs.read(*_entry(task)).minutes for task in waiting) / 60
        print(f"{len(waiting)} of {len(jobs) + whole * len(once_outputs(profile, data_root))} to do, {hours:.1f} hours")
        return 0
    with _only_batch():
        finished, failed = 0, []
        if waiting:
            arguments = _arguments(profile, data_root, cores, cluster, names)
            finished = _watch([sys.executable, "-m", "snakemake", *arguments], waiting)
            failed = [file for job in jobs for file in progress.run_folder(job).glob("failed-*.ipynb")]
            failed += sorted(results_dir().glob(f"notebooks/{profile}/failed-*.ipynb"))
        if finished and failed and whole:
            # The tables are still worth having: they say what is missing.
            tables = {"profile": profile, "data_root": data_root}
            run_notebook(TABLES_NOTEBOOK, results_dir() / "notebooks" / profile / f"{TABLES_NOTEBOOK}.ipynb", tables)
    for notebook in failed:
        print(f"failed: {_last_error(notebook)} ({notebook})", file=sys.stderr)
    folders = [results_dir() / "runs" / job.folder for job in jobs]
    failures = {folder: outcome for folder in folders if (outcome := read_story(folder))["status"] == "failed"}
    for folder, outcome in failures.items():
        print(f"{story_line(outcome)} ({folder / 'notebook.ipynb'})", file=sys.stderr)
    if finished:
        return 1
    if not failures and not waiting:
        print(f"Nothing to do: all results of profile {profile!r} are up to date.")
    print(f"tables     {results_dir() / 'tables'}")
    print(f"figures    {os.environ.get('ADLIB_FIGURES') or results_dir() / 'figures' / profile}")
    print(f"notebooks  {results_dir() / 'notebooks' / profile}")
    print(f"records    {results_dir() / 'runs' / profile}")
    return 1 if failures else 0


def status(profile: str, data_root: str = "", **names: str) -> str:
    """Return the batch as a table, from its files alone; `names` as in `select`."""
    return progress.table(select(plan(profile, str(Path(data_root).resolve()) if data_root else ""), **names))


def _arguments(profile: str, data_root: str, cores: int | None, cluster: str, names: dict) -> list[str]:
    """Arguments of `snakemake`."""
    arguments = ["--snakefile", str(root() / "Snakefile"), "--directory", str(root()), "--nolock"]
    arguments += ["--keep-going", "--rerun-incomplete", "--quiet", "rules", "progress", "host", "reason"]
    if cluster:
        shipped = root() / "profiles" / cluster
        place = shipped if shipped.is_dir() else Path(cluster)
        if not place.is_dir():
            there = [folder.name for folder in (root() / "profiles").iterdir() if folder.is_dir()]
            raise InputError(f"cluster {cluster!r} is no Snakemake profile{suggest(cluster, there)}; there are {there}")
        arguments += ["--workflow-profile", str(place)]
    else:
        cards = len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1  # without one a run takes the processors' place
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        arguments += ["--cores", str(cores or os.cpu_count()), "--resources", f"mem_mb={memory}", f"gpu={cards}"]
    # Snakemake reads values as numbers or YAML: "lot #2" would be cut, and "01" 1. So they are quoted as in an address,
    # and a list of names ends with a comma.
    values = {"profile": profile, "data_root": data_root} | {field: f"{text}," for field, text in names.items() if text}
    return [*arguments, "--config", *(f"{key}={quote(value, safe='/,')}" for key, value in values.items())]


def from_config(config: dict) -> dict[str, str]:
    """Return Snakemake's `config` as `_arguments` wrote it, or as a user typed it."""
    return {key: unquote(str(value)) for key, value in config.items() if value is not None}


def _watch(command: list[str], waiting: list) -> int:
    """Run Snakemake and say in a line, now and then, how far it is; return its exit code."""
    started, live = time.time(), sys.stderr.isatty()
    cost = {task: costs.read(*_entry(task)).minutes for task in waiting}
    last_line, running = started, subprocess.Popen(command)
    while True:
        try:
            return running.wait(timeout=2)
        except subprocess.TimeoutExpired:
            if time.time() - last_line < (2 if live else 60):
                continue
        except KeyboardInterrupt:
            running.send_signal(signal.SIGINT)  # it cancels its jobs
            running.wait()
            raise
        done, last_line = [task for task in waiting if _made_since(task, started)], time.time()
        share = sum(cost[task] for task in done) / sum(cost.values())
        left = f", about {progress.duration((last_line - started) * (1 - share) / share)} left" if done else ""
        print(f"{len(done)} of {len(waiting)} done{left}", file=sys.stderr, end="  \r" if live else "\n", flush=True)


def _entry(task) -> tuple[str, str]:
    """Profile and entry of a task in the file of costs."""
    return (Path(task).parent.name, costs.NOTEBOOKS) if isinstance(task, str) else (task.profile, task.method)


def _made_since(task, start: float) -> bool:
    with contextlib.suppress(OSError):
        return progress.done_file(task).stat().st_mtime >= start
    return False


# -- notebooks that a batch runs once --------------------------------------------------------------------------------


def notebooks(kind: str) -> dict[str, dict]:
    """Return the notebooks of a kind, by name, and what each says of itself in its metadata, under `adlib`.

    Args:
        kind: "story", told on the demo data, by a batch of the smoke profile; "study", which fits `methods` (names, or
            "all"), on the demo data or on what the profile names; or "records", which fits nothing and comes
            last. `shows` are patterns below `results`: committed numbers that stand beside the notebook's own.
    """
    names = [file.stem for file in sorted((root() / "notebooks").glob("[!.]*.ipynb"))]
    return {name: own for name in names if (own := facts(name)).get("kind") == kind}


def facts(name: str) -> dict:
    """Return what a notebook says of itself in its metadata, under `adlib`."""
    return json.loads(notebook_path(name).read_text())["metadata"].get("adlib", {})


def records_read(name: str, profile: str) -> str:
    """Return which records of a batch a notebook reads, as a pattern below `results`; "" for none.

    Study 20 puts PatchCore's records on MVTec AD beside the paper's figures.
    """
    if name == "20_patchcore_paper":
        return f"runs/{profile}/patchcore/mvtec_ad-*/record.json"
    shows_tables = name == START_NOTEBOOK or facts(name).get("kind") == "records"
    return "runs/*/*/*/record.json" if shows_tables else ""


def waits_for(name: str, profile: str, jobs: list[Job]) -> list[Job]:
    """Return those of `jobs` whose records a notebook reads."""
    pattern = records_read(name, profile)
    return [job for job in jobs if fnmatch.fnmatch(f"runs/{job.folder}/record.json", pattern)]


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


def once_commands(name: str, profile: str, jobs: list[Job], data_root: str) -> list[list[str]]:
    """The `adlib notebook` command lines of a notebook that a batch runs once, one after the other.

    A story has its own defaults; so has a study on demo data. On other data a study runs on every category of the batch
    that the profile names for it; the last one shows the mean over all, the others stand in a folder beside it. Where
    the batch has none of them it runs on the first category. A study without `data` and notebooks of records choose
    below the data root themselves.
    """
    kind, places = facts(name).get("kind"), [{"profile": profile}]
    data = profiles.load(profile)["studies"].get(name, {}).get("data")
    if kind == "records" or (kind == "study" and profile != "smoke" and data is None):
        places[0]["data_root"] = data_root
    elif kind == "study" and profile != "smoke":
        roots = {(job.dataset, job.category): job.data_root for job in jobs}
        named = [(d, c) for d, c in roots if data.get(d) == "all" or c in data.get(d, ())] or list(roots)[:1]
        places = [
            {"profile": profile, "dataset": dataset, "data_root": roots[dataset, category], "category": category}
            for dataset, category in named
        ]
    folder, commands = results_dir() / "notebooks" / profile, []
    for place in places:
        # JSON is YAML with quotes: a category called 01 stays text.
        pairs = [] if kind == "story" else [f"{key}={json.dumps(value)}" for key, value in place.items()]
        own = folder / f"{name}.ipynb"
        if place is not places[-1]:
            own = folder / name / f"{place['dataset']}-{place['category']}.ipynb"
        commands.append(["notebook", name, *(part for pair in pairs for part in ("--set", pair)), "--out", str(own)])
    return commands


def of_notebook(name: str, profile: str) -> str:
    """Return the content of the done-file of a notebook that a batch runs once."""
    kind = facts(name).get("kind")
    parts = [notebook_path(name)]
    if name == START_NOTEBOOK:
        parts.append(of_notebook(TABLES_NOTEBOOK, profile))
    if kind in ("study", "records"):
        # Not what this batch itself writes while the study runs; the records it waits for come below.
        own = (str(results_dir() / "runs" / profile) + os.sep, f"_{profile}.csv")
        files = inputs(name)
        parts += [Path(file) for file in files if not (file.startswith(own[0]) or file.endswith(own[1]))]
    if kind == "study":
        parts.append(profiles.files()[profile])
    read = records_read(name, profile)
    parts += [progress.record_digest(file.parent) for file in sorted(results_dir().glob(read))] if read else []
    return progress.digest(*parts)


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


def _last_error(notebook: Path) -> str:
    import nbformat

    with contextlib.suppress(json.JSONDecodeError, OSError, nbformat.ValidationError):
        return _first_error(reversed(nbformat.read(notebook, as_version=4).cells))[1]
    return "the kernel died"
