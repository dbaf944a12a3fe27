"""The command `adlib`: notebooks, batches, tables, pages and student copies; and the library's own commands."""

import os
import signal
import sys
import threading

from adlib import cli
from adlib.cli import fail, with_settings
from adlib.errors import InputError

# Modules that load torch are imported where they are needed, so that --help and bad arguments answer at once.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is cancelled tidies up, as by Ctrl-C
    return cli.main(arguments, cli.build_parser(add_commands))


def run(options) -> int:
    """Run one method's notebook on one category: the record first, then the story."""
    from adlib import datasets
    from adlib.settings import parse_overrides
    from adlib_book import notebook_jobs

    dataset = options.dataset or (datasets.guess_dataset(options.data_root) if options.data_root else "demo")
    try:
        state, outcome = notebook_jobs.run_method(
            options.method,
            data_root=options.data_root or "",
            dataset=dataset,
            category=options.category,
            profile=options.profile,
            seed=options.seed,
            overrides=parse_overrides(options.set),
            out=options.out,
            force=options.force,
            story=not options.no_story,
            done=options.done,
        )
    except notebook_jobs.NotebookError as error:
        return fail(str(error), 1)
    print(f"{options.method} on {dataset}/{options.category}: {state}, see {os.path.join(options.out, 'record.json')}")
    if state == "done" and outcome["status"] == "failed":
        fail(f"{notebook_jobs.story_line(outcome)}; see {os.path.join(options.out, 'notebook.ipynb')}", 1)
        return 0 if options.keep_going else 1
    return 0


def notebook(options) -> int:
    """Run any notebook with strict parameters."""
    from adlib.settings import parse_overrides
    from adlib_book import notebook_jobs, progress

    parameters = parse_overrides(options.set)
    try:
        if options.refresh:
            output = notebook_jobs.refresh(options.name)
        elif options.out:
            output = options.out
            made_from = (
                notebook_jobs.of_notebook(options.name, parameters.get("profile", "smoke")) if options.done else ""
            )
            outcome = notebook_jobs.run_notebook(options.name, output, parameters)
            if outcome["status"] == "failed":
                return fail(f"{notebook_jobs.story_line(outcome)}; see {output}", 1)
            if options.done:
                progress.write_done((options.done, progress.done_file(output)), made_from)
        else:
            raise InputError("give --out FILE for the executed copy, or --refresh to renew the notebook itself")
    except notebook_jobs.NotebookError as error:
        return fail(str(error), 1)
    print(f"executed notebook: {output}")
    return 0


def reproduce(options) -> int:
    """Run a whole profile."""
    from adlib_book import notebook_jobs

    if options.cores is not None and options.cores < 1:
        raise InputError(f"cores {options.cores} must be at least 1; leave it out to use all")
    return notebook_jobs.reproduce(
        options.profile, options.data_root or "", options.cores, options.dry_run, options.cluster, **_selection(options)
    )


def plan(options) -> int:
    """Say what a batch takes and what it lacks, before anything runs: hours, memory, weights, folders."""
    from adlib_book import batch_plan

    print(batch_plan.text(options.profile, options.data_root or "", **_selection(options)))
    return 0


def status(options) -> int:
    """Print how far a batch is, from its files alone: done, older, running, failed and why, to do."""
    from adlib_book import notebook_jobs

    print(notebook_jobs.status(options.profile, options.data_root or "", **_selection(options)))
    return 0


def site(options) -> int:
    """Build the static site from results, or from the committed notebooks where there are none."""
    from adlib_book import site as own

    print(f"site: {own.build(options.profile, options.out)}")
    return 0


def student(options) -> int:
    """Write copies of the notebooks for students: solutions taken out, self-checks kept."""
    from adlib_book import teaching

    written, kept = teaching.write_student_copies(options.out, options.names, options.force)
    for file in kept:
        print(f"left alone, it may hold somebody's work (--force replaces it): {file}", file=sys.stderr)
    print(f"{len(written)} notebooks: {options.out}")
    return 0


def tables(options) -> int:
    """Rebuild all tables from run records and published numbers."""
    from pathlib import Path

    from adlib import profiles
    from adlib.paths import results_dir, root
    from adlib_book import table_files

    if options.profile:
        profiles.load(options.profile)
    folder = Path(options.results).resolve() if options.results else results_dir()
    if options.results and not (folder / "runs").is_dir():
        raise InputError(f"results folder {folder} does not exist, or holds no runs/<profile>/<method>/<run>")
    names = [options.profile] if options.profile else table_files.profiles_at_hand(folder)
    all_tables = table_files.write_all(names, folder)
    print(f"{len(all_tables)} tables of {', '.join([*names, 'published numbers'])}: {folder / 'tables'}")
    own = folder == root() / "results"
    for table in all_tables:
        if own and table.name == "laptop_headline":
            print("README.md:", "results renewed" if table_files.update_readme(table) else "results up to date")
    left_out = list(dict.fromkeys(note for table in all_tables for note in table.left_out))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if left_out else 0


def predict(options) -> int:
    """Write heat maps, regions and scores for a folder of images, and a page to look at them."""
    from adlib_book import report

    if options.report:
        report.check_place(options.report, options.output)
    code = cli.predict(options)
    if options.report:
        print(f"report: {report.write(options.model, options.output, options.report)}")
    return code


def train(options) -> int:
    """Fit a method on a folder of good images; `auto` is the one that the judge of `adlib compare` puts first."""
    if options.method == "auto":
        from adlib_book import compare

        if options.set or options.roi or options.products or options.tiles:
            raise InputError("--set, --roi, --tiles and --products need a method's name; give --method patchcore, say")
        options.method = compare.winner(options.input, options.minutes, options.profile)
    return cli.train(options)


def compare(options) -> int:
    """Say which method suits a folder of good images: all are fitted and judged on damages made by code."""
    from adlib_book import compare as own

    names = options.methods.split(",") if options.methods else None
    table, out = own.compare(options.input, options.output, names, options.minutes, options.profile)
    print(table.dropna(subset="score").drop(columns="reason").round(3).to_string(index=False))
    print(f"see {os.path.join(out, 'comparison.png')} and comparison.json")
    return 0 if table.score.notna().any() else 1


def export(options) -> int:
    """Write a model as one ONNX file, for programs without Python."""
    from adlib_book import onnx_export

    print(f"ONNX file: {onnx_export.export_model(options.model, options.output)}")
    return 0


def add_commands(commands) -> None:
    """Add the book's commands to a group, and to the library's what the book does more."""
    sub = commands.choices["train"]
    auto = "of --method auto, the default, which takes the first method of adlib compare: for both together, default 10"
    sub.add_argument("--minutes", type=float, default=10, help=auto)
    sub.set_defaults(run=train, method="auto")

    sub = commands.choices["predict"]
    sub.add_argument("--report", metavar="FILE.html", help="write a page to look at the images, worst first")
    sub.set_defaults(run=predict)

    sub = cli.command(commands, "compare", compare, "adlib compare -i parts/good -o out/comparison --minutes 30")
    sub.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="folder of good images, nested or not")
    sub.add_argument("-o", "--output", metavar="DIR", help="for table and picture; default results/compare/GOOD_DIR")
    sub.add_argument("--methods", metavar="NAMES", help="only these, for example patchcore,padim; default all")
    sub.add_argument("--minutes", type=float, help="for everything; methods are tried cheapest first; default no limit")
    sub.add_argument("--profile", default="laptop", help="profile whose settings are used; a name or FILE.yaml")

    sub = cli.command(commands, "export", export, "adlib export -m model/ -o model.onnx")
    sub.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.onnx", help="file to write")

    example = "adlib run patchcore --data-root ~/mvtec_ad --category bottle --profile laptop --out out/bottle"
    sub = cli.command(commands, "run", run, example)
    sub.add_argument("method", help="method, for example patchcore")
    sub.add_argument("--data-root", metavar="DIR", help="folder that holds the category folders; none: demo data")
    sub.add_argument("--category", required=True, help="category, for example bottle")
    sub.add_argument("--dataset", help="layout or data set; default: by the name of the data root, else mvtec")
    sub.add_argument("--profile", default="smoke", help="smoke, laptop, paper or FILE.yaml")
    sub.add_argument("--seed", type=int, default=0, help="seed of everything random")
    sub.add_argument("--out", required=True, metavar="DIR", help="where record, scores and executed notebook go")
    sub.add_argument("--force", action="store_true", help="run even where an up-to-date record is there")
    sub.add_argument("--no-story", action="store_true", help="numbers only: leave out the cells after the record")
    sub.add_argument("--keep-going", action="store_true", help="exit 0 though the story failed; story.json tells")
    sub.add_argument("--done", metavar="FILE", help="written when the record stands: how a batch knows")
    with_settings(sub)

    sub = cli.command(commands, "notebook", notebook, "adlib notebook 03_evaluation --set seed=1 --out out/03.ipynb")
    sub.add_argument("name", help="notebook, for example 03_evaluation")
    sub.add_argument("--out", metavar="FILE", help="executed copy")
    sub.add_argument("--refresh", action="store_true", help="run with the defaults, in place")
    sub.add_argument("--done", metavar="FILE", help="written when the copy stands: how a batch knows")
    with_settings(sub)

    sub = cli.command(commands, "plan", plan, "adlib plan --profile paper --data-root ~/data")
    _with_selection(sub)

    sub = cli.command(commands, "reproduce", reproduce, "adlib reproduce --profile laptop --data-root ~/data")
    _with_selection(sub)
    sub.add_argument("--cores", type=int, help="cores to use; default all")
    sub.add_argument("--dry-run", action="store_true", help="list what there is to do, and run nothing")
    sub.add_argument("--cluster", default="", help="Snakemake profile, for example slurm for profiles/slurm")

    sub = cli.command(commands, "status", status, "adlib status --profile paper --data-root ~/data")
    _with_selection(sub)

    sub = cli.command(commands, "site", site, "adlib site --profile laptop --out build/site")
    sub.add_argument("--profile", default="smoke", help="whose executed notebooks are taken: smoke, laptop or paper")
    sub.add_argument("--out", metavar="DIR", help="folder of the site; default build/site")

    sub = cli.command(commands, "student", student, "adlib student course/ 10_patchcore 16_glass")
    sub.add_argument("out", metavar="DIR", help="folder for the copies")
    sub.add_argument("names", nargs="*", metavar="NOTEBOOK", help="default: all that have exercises")
    sub.add_argument("--force", action="store_true", help="replace copies that are there")

    sub = cli.command(commands, "tables", tables, "adlib tables --profile laptop")
    sub.add_argument("--profile", help="one profile; default all that have records")
    sub.add_argument("--results", metavar="DIR", help="folder that holds runs/; default results/")


def _selection(options) -> dict[str, str]:
    """Return what the command line narrows a batch to, as `notebook_jobs.select` takes it."""
    from adlib_book import notebook_jobs

    return {field: getattr(options, field) for field in notebook_jobs.SELECTORS}


def _with_selection(sub) -> None:
    """Let a command take a profile's batch, or a part of it."""
    sub.add_argument("--profile", default="smoke", help="smoke, laptop, paper or FILE.yaml")
    sub.add_argument("--data-root", metavar="DIR", help="folder that holds data sets")
    for field in ("method", "dataset", "category", "seed"):
        sub.add_argument(
            f"--{field}", default="", metavar="NAMES", help="only these, for example a,b or a*; default all"
        )
