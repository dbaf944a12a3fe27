"""The command line. Bad input gives one line and exit code 2; what failed for another reason gives exit code 1."""

import argparse
import os
import sys

from adlib.errors import InputError

# Modules that load torch are imported where they are needed, so that --help and bad arguments answer at once.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return options.run(options) or 0
    except InputError as error:
        return _fail(str(error), 2)
    except OSError as error:  # disk full, no permission: the file and the reason are all there is to say
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        return 1


def _fail(message: str, code: int) -> int:
    print("adlib: " + " ".join(message.split()), file=sys.stderr)
    return code


# -- commands ---------------------------------------------------------------------------------------------------------


def run(options) -> int:
    """Run one method's notebook on one category: the record first, then the story."""
    from adlib import batch, datasets
    from adlib.settings import parse_overrides

    dataset = options.dataset or (datasets.guess_dataset(options.data_root) if options.data_root else "demo")
    try:
        state, told = batch.run_method(
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
        )
    except batch.NotebookError as error:
        return _fail(str(error), 1)
    print(f"{options.method} on {dataset}/{options.category}: {state}, see {os.path.join(options.out, 'record.json')}")
    if state == "done" and told["status"] == "failed":
        _fail(f"{batch.story_line(told)}; see {os.path.join(options.out, 'notebook.ipynb')}", 1)
        return 0 if options.keep_going else 1
    return 0


def notebook(options) -> int:
    """Run any notebook with strict parameters."""
    from adlib import batch
    from adlib.settings import parse_overrides

    try:
        if options.refresh:
            output = batch.refresh(options.name)
        elif options.out:
            output = options.out
            told = batch.run_notebook(options.name, output, parse_overrides(options.set))
            if told["status"] == "failed":
                return _fail(f"{batch.story_line(told)}; see {output}", 1)
        else:
            raise InputError("give --out FILE for the executed copy, or --refresh to renew the notebook itself")
    except batch.NotebookError as error:
        return _fail(str(error), 1)
    print(f"executed notebook: {output}")
    return 0


def reproduce(options) -> int:
    """Run a whole profile."""
    from adlib import batch

    return batch.reproduce(options.profile, options.data_root or "", options.cores)


def site(options) -> int:
    """Build the static site from results, or from the committed notebooks where there are none."""
    from adlib import site as own

    print(f"site: {own.build(options.profile, options.out)}")
    return 0


def student(options) -> int:
    """Write copies of the notebooks for students: solutions taken out, self-checks kept."""
    from adlib import teaching

    written, kept = teaching.write_student_copies(options.out, options.names, options.force)
    for file in kept:
        print(f"left alone, it may hold somebody's work (--force replaces it): {file}", file=sys.stderr)
    print(f"{len(written)} notebooks: {options.out}")
    return 1 if kept else 0


def tables(options) -> int:
    """Rebuild all tables from run records and published numbers."""
    from pathlib import Path

    from adlib import profiles, table_files
    from adlib.paths import results_dir, root

    if options.profile:
        profiles.load(options.profile)
    folder = Path(options.results).resolve() if options.results else results_dir()
    chosen = [options.profile] if options.profile else table_files.profiles_at_hand(folder)
    made = table_files.write_all(chosen, folder)
    print(f"{len(made)} tables of {', '.join([*chosen, 'published numbers'])}: {folder / 'tables'}")
    own = folder == root() / "results"
    for table in made:
        if own and table.name == "laptop_headline":
            print("README.md:", "results renewed" if table_files.update_readme(table) else "results up to date")
    left_out = list(dict.fromkeys(note for table in made for note in table.left_out))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if left_out else 0


def train(options) -> int:
    """Fit a method on a folder of good images."""
    from adlib import predict, profiles, storage, training
    from adlib.settings import parse_overrides

    settings = profiles.method_settings(options.profile, options.method, parse_overrides(options.set))
    try:
        fitted, skipped = predict.train(options.input, options.output, options.method, settings)
    except training.TrainingError as error:
        return _fail(str(error), 1)
    header = storage.read_header(options.output)
    backbone = getattr(fitted.settings, "backbone", "")  # DRAEM has none
    print(f"model      {options.output}  ({', '.join(filter(None, (options.method, backbone)))})")
    for key in ("threshold", "pixel_threshold"):
        if key in header:
            print(_threshold_line(key, header[key]))
    return _report_skipped(skipped)


def threshold(options) -> int:
    """Set a model's thresholds from good images that it has not seen."""
    from adlib import predict

    image, pixel, skipped = predict.set_threshold(
        options.model, options.input, options.rule, options.false_alarm_rate, options.n_sigma
    )
    print(_threshold_line("threshold", image.to_dict()))
    print(_threshold_line("pixel_threshold", pixel.to_dict()))
    return _report_skipped(skipped)


def predict(options) -> int:
    """Write heat maps, regions and scores for a folder of images."""
    from adlib import predict as own

    done = own.predict(
        options.model, options.input, options.output, options.threshold, options.pixel_threshold, options.min_area
    )
    print(f"{len(done.scores)} images scored, see {os.path.join(options.output, 'scores.csv')}")
    if done.scores.anomalous.notna().any():
        print(f"{int(done.scores.anomalous.sum())} of them above the threshold {done.scores.threshold.iloc[0]:.4g}")
    return _report_skipped(done.skipped)


def data_list(options) -> int:
    """List the data sets."""
    from adlib import datasets

    print(datasets.listing(options.data_root).to_string(index=False))
    return 0


def data_get(options) -> int:
    """Download a data set, or say how to get it."""
    from adlib import datasets

    datasets.get(options.name, options.data_root)
    return 0


def data_check(options) -> int:
    """Validate a data set on disk."""
    from adlib import datasets

    problems = datasets.check(options.name, options.data_root, options.category)
    for problem in problems:
        print(problem)
    print(f"{options.name}: {len(problems) or 'no'} kind{'s' * (len(problems) != 1)} of problem found")
    return 1 if problems else 0


def _threshold_line(key: str, value: dict) -> str:
    rate = 100 * value["false_alarm_rate"]
    return (
        f"{key:15s} {value['value']:.6g}  ({value['rule']} of {value['n_normals']} normals, {rate:.1f} % false alarms)"
    )


def _report_skipped(skipped: list[str]) -> int:
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    if skipped:
        print(f"adlib: {len(skipped)} files could not be read and were skipped", file=sys.stderr)
    return 1 if skipped else 0


# -- arguments --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message):
        print(f"adlib: {message} (see: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    from adlib import __version__

    parser = _Parser(prog="adlib", description="Companion to six lines of work on image anomaly detection.")
    parser.add_argument("--version", action="version", version=f"adlib {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(group, name, function, example):
        text = function.__doc__.strip()
        made = group.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: {example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        made.set_defaults(run=function)
        return made

    def with_settings(made):
        made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")

    example = "adlib run patchcore --data-root ~/mvtec_ad --category bottle --profile laptop --out out/bottle"
    made = command(commands, "run", run, example)
    made.add_argument("method", help="method, for example patchcore")
    made.add_argument("--data-root", metavar="DIR", help="folder that holds the category folders; none: demo data")
    made.add_argument("--category", required=True, help="category, for example bottle")
    made.add_argument("--dataset", help="layout or data set; default: by the name of the data root, else mvtec")
    made.add_argument("--profile", default="smoke", help="smoke, laptop or paper")
    made.add_argument("--seed", type=int, default=0, help="seed of everything random")
    made.add_argument("--out", required=True, metavar="DIR", help="where record, scores and executed notebook go")
    made.add_argument("--force", action="store_true", help="run even where an up-to-date record is there")
    made.add_argument("--no-story", action="store_true", help="numbers only: leave out the cells after the record")
    made.add_argument("--keep-going", action="store_true", help="exit 0 though the story failed; story.json tells")
    with_settings(made)

    made = command(commands, "notebook", notebook, "adlib notebook 03_evaluation --set seed=1 --out out/03.ipynb")
    made.add_argument("name", help="notebook, for example 03_evaluation")
    made.add_argument("--out", metavar="FILE", help="executed copy")
    made.add_argument("--refresh", action="store_true", help="run with the defaults, in place")
    with_settings(made)

    made = command(commands, "reproduce", reproduce, "adlib reproduce --profile laptop --data-root ~/data")
    made.add_argument("--profile", default="smoke", help="smoke, laptop or paper")
    made.add_argument("--data-root", metavar="DIR", help="folder that holds data sets")
    made.add_argument("--cores", type=int, help="cores to use; default all")

    made = command(commands, "site", site, "adlib site --profile laptop --out build/site")
    made.add_argument("--profile", default="smoke", help="whose executed notebooks are taken: smoke, laptop or paper")
    made.add_argument("--out", metavar="DIR", help="folder of the site; default build/site")

    made = command(commands, "student", student, "adlib student course/ 10_patchcore 16_glass")
    made.add_argument("out", metavar="DIR", help="folder for the copies")
    made.add_argument("names", nargs="*", metavar="NOTEBOOK", help="default: all that have exercises")
    made.add_argument("--force", action="store_true", help="replace copies that are there")

    made = command(commands, "tables", tables, "adlib tables --profile laptop")
    made.add_argument("--profile", help="one profile; default all that have records")
    made.add_argument("--results", metavar="DIR", help="folder that holds runs/; default results/")

    made = command(commands, "train", train, "adlib train -i parts/good -o model/")
    made.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="folder of good images, nested or not")
    made.add_argument("-o", "--output", required=True, metavar="MODEL", help="folder of the model")
    made.add_argument("--method", default="patchcore", help="method")
    made.add_argument("--profile", default="laptop", help="profile whose settings are used")
    with_settings(made)

    made = command(commands, "threshold", threshold, "adlib threshold -m model/ -i parts/more_good")
    made.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    made.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="good images it was not trained on")
    made.add_argument("--rule", default="quantile", help="quantile, mean_sigma or max")
    made.add_argument("--false-alarm-rate", type=float, default=0.05, help="target of the quantile rule")
    made.add_argument("--n-sigma", type=float, default=3.0, help="for mean_sigma")

    made = command(commands, "predict", predict, "adlib predict -m model/ -i parts/new -o out/")
    made.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    made.add_argument("-i", "--input", required=True, metavar="DIR", help="images, nested folders included")
    made.add_argument("-o", "--output", required=True, metavar="OUT", help="folder of the results")
    made.add_argument("--threshold", type=float, help="image threshold; default the model's")
    made.add_argument("--pixel-threshold", type=float, help="threshold of regions; default the model's")
    made.add_argument("--min-area", type=float, default=0.0005, help="smallest region, share of the image")

    data = commands.add_parser("data", help="list, get and check data sets", description="List, get, check data sets.")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Parser)
    made = command(actions, "list", data_list, "adlib data list --data-root ~/data")
    made.add_argument("--data-root", metavar="DIR", help="folder that holds data sets; default data/")
    made = command(actions, "get", data_get, "adlib data get visa --data-root ~/data")
    made.add_argument("name", help="data set")
    made.add_argument("--data-root", metavar="DIR", help="where to; default data/")
    made = command(actions, "check", data_check, "adlib data check mvtec --data-root ~/data/mvtec_ad")
    made.add_argument("name", help="layout or data set")
    made.add_argument("--data-root", metavar="DIR", required=True, help="folder that holds the category folders")
    made.add_argument("--category", help="one category; default all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
