"""The command line. Bad input gives one line and exit code 2; what failed for another reason gives exit code 1."""

import argparse
import os
import sys
import warnings

from adlib.errors import InputError, TrainingError

# Modules that load torch are imported where they are needed, so that --help and bad arguments answer at once.


def main(arguments: list[str] | None = None, parser=None) -> int:
    """Run one command and return its exit code; the book's parser knows more commands than this file."""
    warnings.formatwarning = lambda message, *_, **__: f"adlib: {message}\n"
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = parser or build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    for name, value in vars(options).items():  # the shell expands "-o ~/x", but not "--output=~/x"
        if isinstance(value, str):
            setattr(options, name, os.path.expanduser(value))
    if empty := [name for name in ("input", "output", "model") if getattr(options, name, None) == ""]:
        return fail(f"--{empty[0]} is empty; give a path ('.' for this folder)", 2)
    try:
        if getattr(options, "profile", None):
            from adlib import profiles

            options.profile = profiles.use(options.profile)
        return options.run(options) or 0
    except InputError as error:
        return fail(str(error), 2)
    except OSError as error:  # disk full, no permission: the file and the reason are all there is to say
        return fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except BrokenPipeError:
        return 1


def fail(message: str, code: int) -> int:
    print("adlib: " + " ".join(message.split()), file=sys.stderr)
    return code


# -- commands ---------------------------------------------------------------------------------------------------------


def train(options) -> int:
    """Fit a method on a folder of good images."""
    from adlib import own_parts, profiles
    from adlib.methods import storage
    from adlib.settings import parse_overrides

    overrides = parse_overrides(options.set)
    if getattr(options, "bit_depth", None) is not None:
        overrides["bit_depth"] = options.bit_depth
    settings = profiles.method_settings(options.profile, options.method, overrides)
    try:
        fitted, skipped = own_parts.train(
            options.input,
            options.output,
            options.method,
            settings,
            options.roi,
            options.products,
            options.checkpoint,
            options.tiles,
        )
    except TrainingError as error:
        return fail(str(error), 1)
    header = storage.read_header(options.output)
    backbone = getattr(fitted.settings, "backbone", "")  # DRAEM has none
    print(f"model      {options.output}  ({', '.join(filter(None, (options.method, backbone)))})")
    for key in ("threshold", "pixel_threshold"):
        if key in header:
            print(_threshold_line(key, header[key]))
    return _report_skipped(skipped)


def import_glass(options) -> int:
    """Make a model of weights that GLASS's authors released, with thresholds from good images."""
    options.method, options.products, options.roi, options.tiles = "glass", None, [], None
    return train(options)


def threshold(options) -> int:
    """Set a model's thresholds from good images that it has not seen."""
    from adlib import own_parts

    stored, skipped = own_parts.set_threshold(
        options.model, options.input, options.rule, options.false_alarm_rate, options.n_sigma, options.even_so
    )
    for key, value in stored.items():
        print(_threshold_line(key, value))
    return _report_skipped(skipped)


def update(options) -> int:
    """Let a model take in more good images, false alarms for example."""
    from adlib import own_parts

    n_new, skipped = own_parts.update(options.model, options.input)
    print(f"{n_new} more images in {options.model}; its thresholds stay (adlib threshold sets them from other images)")
    return _report_skipped(skipped)


def predict(options) -> int:
    """Write heat maps, regions and scores for a folder of images."""
    from adlib import own_parts

    scores, skipped = own_parts.predict(
        options.model, options.input, options.output, options.threshold, options.pixel_threshold, options.min_area
    )
    print(f"{len(scores)} images scored, see {os.path.join(options.output, 'scores.csv')}")
    if scores.anomalous.notna().any():
        print(f"{int(scores.anomalous.sum())} of them above the threshold {scores.threshold.iloc[0]:.4g}")
    return _report_skipped(skipped)


def evaluate(options) -> int:
    """Test a model on a data set with masks, the one it was fitted on or another, and write the record."""
    from adlib import datasets, runs

    dataset = options.dataset or (datasets.guess_dataset(options.data_root) if options.data_root else "demo")
    where = {"dataset": dataset, "data_root": options.data_root or "", "category": options.category}
    record = runs.evaluate_model(options.model, out_dir=options.out, **where)
    rows = {f"{dataset}/{options.category}": record["metrics"]} | record["by_defect"] | record.get("by_kind", {})
    for name, values in rows.items():
        numbers = {key: values.get(key) for key in ("image_auroc", "pixel_auroc", "aupro_30", "spro_05")}
        print(f"{name:24s}", *(f"{key} {100 * value:5.1f}" for key, value in numbers.items() if value is not None))
    print(f"record     {os.path.join(options.out, 'record.json')}")
    return 0


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


def command(group, name: str, function, example: str) -> argparse.ArgumentParser:
    """Add a command whose help is the docstring of the function that runs it."""
    text = function.__doc__.strip()
    sub = group.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sub.set_defaults(run=function)
    return sub


def grid(text: str) -> tuple[int, int]:
    """Read the value of `--tiles`."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and 0 < int(rows) * int(columns) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r} is no grid; expected ROWSxCOLUMNS, such as 2x3, at most 64 tiles")
    return int(rows), int(columns)


def with_settings(sub) -> None:
    """Let a command take `--set NAME=VALUE`."""
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting")


def build_parser(add_commands=lambda commands: None) -> argparse.ArgumentParser:
    """Make the parser of the library's commands, before those that `add_commands` adds."""
    from adlib import __version__

    parser = _Parser(prog="adlib", description="Companion to six lines of work on image anomaly detection.")
    parser.add_argument("--version", action="version", version=f"adlib {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    sub = command(commands, "train", train, "adlib train -i parts/good -o model/")
    sub.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="folder of good images, nested or not")
    sub.add_argument("-o", "--output", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("--method", default="patchcore", help="method")
    sub.set_defaults(checkpoint=None)
    sub.add_argument("--products", metavar="DIR", help="folders of other products, for few_shot, contrastive, unified")
    sub.add_argument("--profile", default="laptop", help="profile whose settings are used; a name or FILE.yaml")
    roi = "white where to look; once for each camera pose, by name"
    sub.add_argument("--roi", action="append", default=[], metavar="[PATTERN=]MASK", help=roi)
    tiles = "grid of tiles, 2x3 for example, for large parts with small defects; neighbours share a quarter"
    sub.add_argument("--tiles", type=grid, metavar="ROWSxCOLUMNS", help=tiles)
    sub.add_argument("--bit-depth", type=int, help="of images of more than 8 bits, for example 12; default: found")
    with_settings(sub)

    imports = commands.add_parser("import", help="make a model of released weights", description="Import weights.")
    kinds = imports.add_subparsers(title="whose", metavar="METHOD", required=True, parser_class=_Parser)
    sub = command(kinds, "glass", import_glass, "adlib import glass ckpt_best_42.pth -i parts/good -o model/")
    sub.add_argument("checkpoint", help="ckpt*.pth of the authors' code")
    sub.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="good images the weights have not seen")
    sub.add_argument("-o", "--output", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("--profile", default="paper", help="profile whose settings are used; a name or FILE.yaml")
    with_settings(sub)

    sub = command(commands, "threshold", threshold, "adlib threshold -m model/ -i parts/more_good")
    sub.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="good images it was not trained on")
    sub.add_argument("--rule", default="quantile", help="quantile, mean_sigma or max")
    sub.add_argument("--false-alarm-rate", type=float, default=0.05, help="target of the quantile rule")
    sub.add_argument("--n-sigma", type=float, default=3.0, help="for mean_sigma")
    sub.add_argument("--even-so", action="store_true", help="take images that the model was trained on as well")

    sub = command(commands, "update", update, "adlib update -m model/ -i false_alarms/")
    sub.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("-i", "--input", required=True, metavar="GOOD_DIR", help="good images to add")

    sub = command(commands, "predict", predict, "adlib predict -m model/ -i parts/new -o out/")
    sub.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model, or its ONNX file")
    sub.add_argument("-i", "--input", required=True, metavar="DIR", help="images, nested folders included")
    sub.add_argument("-o", "--output", required=True, metavar="OUT", help="folder of the results")
    sub.add_argument("--threshold", type=float, help="image threshold; default the model's")
    sub.add_argument("--pixel-threshold", type=float, help="threshold of regions; default the model's")
    sub.add_argument("--min-area", type=float, default=0.0005, help="smallest region, share of the image")

    sub = command(
        commands, "evaluate", evaluate, "adlib evaluate -m model/ --data-root ~/MAD-man --category tile --out out/"
    )
    sub.add_argument("-m", "--model", required=True, metavar="MODEL", help="folder of the model")
    sub.add_argument("--data-root", metavar="DIR", help="folder that holds the category folders; none: demo data")
    sub.add_argument("--dataset", help="layout or data set; default: by the name of the data root, else mvtec")
    sub.add_argument("--category", required=True, help="category, for example bottle")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of record and scores")

    data = commands.add_parser("data", help="list, get and check data sets", description="List, get, check data sets.")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Parser)
    sub = command(actions, "list", data_list, "adlib data list --data-root ~/data")
    sub.add_argument("--data-root", metavar="DIR", help="folder that holds data sets; default data/")
    sub = command(actions, "get", data_get, "adlib data get visa --data-root ~/data")
    sub.add_argument("name", help="data set")
    sub.add_argument("--data-root", metavar="DIR", help="where to; default data/")
    sub = command(actions, "check", data_check, "adlib data check mvtec --data-root ~/data/mvtec_ad")
    sub.add_argument("name", help="layout or data set")
    sub.add_argument("--data-root", metavar="DIR", required=True, help="folder that holds the category folders")
    sub.add_argument("--category", help="one category; default all")
    add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
