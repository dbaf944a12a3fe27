"""Records on disk, content hashes, batches and strict notebook parameters."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_SETTINGS, refused, texture, write_image
from snakemake.cli import parse_config

from adlib import evaluation, methods, profiles, runs, source_files
from adlib.errors import InputError
from adlib.evaluation import thresholds
from adlib.images import Resize
from adlib.settings import parse_overrides
from adlib_book import costs, notebook_jobs, progress


@pytest.fixture(scope="module")
def run(small_tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    where = {"dataset": "mvtec", "data_root": str(small_tree), "category": "plate", "out_dir": str(out)}
    settings = SMALL_SETTINGS["patchcore"]
    return runs.Run("patchcore", notebook="10_patchcore.ipynb", profile="smoke", seed=5, settings=settings, **where)


@pytest.fixture(scope="module")
def record(run):
    with run.timed("fit"):
        method = methods.create("patchcore", **run.settings).fit(run.train)
    result = evaluation.evaluate(method, run.test)
    run.keep_model = True
    return run.write(result, thresholds.from_normals(method.normal_scores))


def test_record_has_every_field_and_reads_back(run, record):
    assert set(runs.SCHEMA) <= set(record)
    assert runs.read_record(run.out_dir) == json.loads(json.dumps(record))
    assert record["metrics"]["image_auroc"] == 1.0
    assert 0.9 < record["metrics"]["aupro_30"] <= 1
    assert record["n_images"] == {"train": 6, "test_normal": 3, "test_anomalous": 4}
    assert (record["parameters"]["seed"], record["threshold"]["n_normals"]) == (5, 6)
    assert record["timing"]["fit_s"] > 0
    assert record["peak_memory_mib"] > 10


def test_the_model_of_a_run_is_tested_again(run, record, small_tree, tmp_path):
    where = {"dataset": "mvtec", "data_root": str(small_tree), "category": "plate"}
    again = runs.evaluate_model(run.out_dir / "model", out_dir=tmp_path, **where)
    same = ("metrics", "by_defect", "threshold", "at_threshold", "n_images", "seed")
    assert {key: again[key] for key in same} == {key: record[key] for key in same}
    assert again["by_defect"]["hole"] == {key: again["metrics"][key] for key in ("image_auroc", "aupro_30")} | {"n": 4}
    assert (again["model"]["category"], again["parameters"]) == ("plate", record["parameters"])
    refused("holds the record of a run", runs.evaluate_model, run.out_dir / "model", out_dir=run.out_dir, **where)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [1]", "is based on nothing"),
        ("based_on: laptp", "did you mean 'laptop'"),
        ("based_on: laptop\nsedes: [1]", "did you mean 'seeds'"),
        ("based_on: laptop\nmethods: {patchcore: {corest: 1}}", "did you mean 'coreset'"),
        ("based_on: laptop\nstudies: {23_scorers: {n_trian: 1}}", "did you mean 'n_train'"),
        ("- 1", "must hold keys and values"),
    ],
)
def test_a_profile_of_ones_own_says_what_it_changes(tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("ADLIB_PROFILE", "")  # so that it is as before when the test ends
    file = tmp_path / "mine.yaml"
    file.write_text("based_on: paper\nseeds: [7]\nmethods: {patchcore: {k: 3}}")
    assert profiles.use(str(file)) == "mine"
    mine, paper = profiles.load("mine"), profiles.load("paper")
    assert mine["methods"] == paper["methods"] | {"patchcore": paper["methods"]["patchcore"] | {"k": 3}}
    assert (mine["seeds"], mine["based_on"], mine["studies"]) == ([7], "paper", paper["studies"])
    file.write_text(text)
    refused(message, lambda: profiles.check(profiles.use(str(file))))
    refused("rename the file", profiles.use, str(file.rename(tmp_path / "laptop.yaml")))


def test_scores_csv_lets_the_image_metrics_be_computed_again(run, record):
    scores = pd.read_csv(run.out_dir / "scores.csv")
    bad, good = scores.score[scores.label == 1], scores.score[scores.label == 0]
    assert (bad.to_numpy()[:, None] > good.to_numpy()[None]).mean() == record["metrics"]["image_auroc"]
    assert scores.image_path[0].startswith("plate/test/")


def test_maps_for_figures_come_back_smaller_and_nearly_the_same(run, record, tmp_path, monkeypatch):
    maps, masks, rows = runs.read_maps(run.out_dir)
    assert maps.shape == masks.shape == (7, 64, 64)
    assert rows.tolist() == list(range(7))
    assert masks.any(axis=(1, 2)).tolist() == (pd.read_csv(run.out_dir / "scores.csv").label == 1).tolist()

    rng = np.random.default_rng(0)
    images, masks = list(rng.random((9, 40, 20), np.float32)), list(rng.random((9, 40, 20)) > 0.5)
    found = evaluation.Evaluation(pd.DataFrame(index=range(9)), {}, {}, images, masks)
    monkeypatch.setattr("adlib.runs.MAPS_SIDE", 40)
    monkeypatch.setattr("adlib.runs.MAPS_IMAGES", 3)
    runs.write_maps(tmp_path, found)
    maps, masks, rows = runs.read_maps(tmp_path)
    assert rows.tolist() == [0, 4, 8]
    np.testing.assert_allclose(maps, np.stack(found.anomaly_maps)[rows], atol=1e-4)
    np.testing.assert_array_equal(masks, np.stack(found.masks)[rows])
    monkeypatch.setattr("adlib.runs.MAPS_SIDE", 20)
    runs.write_maps(tmp_path, found)
    assert runs.read_maps(tmp_path)[0].shape == (3, 20, 10)

    (tmp_path / "maps.npz").unlink()
    assert runs.read_maps(tmp_path) is None  # maps are not committed


def test_a_run_takes_the_shape_of_its_training_images_and_is_then_up_to_date(tmp_path, capsys):
    for place in ("train/good/0", "train/good/1", "test/good/0", "test/hole/0"):
        write_image(tmp_path / f"plate/{place}.png", texture(np.random.default_rng(0), 40, 100))
    write_image(tmp_path / "plate/ground_truth/hole/0_mask.png", np.full((40, 100), 255, np.uint8))
    where = {"dataset": "mvtec", "data_root": str(tmp_path), "category": "plate", "profile": "laptop", "seed": 0}
    run = runs.Run("dfr", notebook="x.ipynb", settings={"image_size": 64}, out_dir=str(tmp_path / "out"), **where)
    assert "input 64 x 160 (height x width), from 2 training images of ratio 0.4\n" in capsys.readouterr().out

    class Blind:
        resize, settings = Resize(run.settings["image_size"], run.settings["resize"]), None

        def score(self, batch):
            return methods.Scores(np.zeros(len(batch), np.float32), np.zeros((len(batch), 64, 160), np.float32))

    run.out_dir.mkdir()
    run.checkpoint.touch()  # a job that was stopped
    (left := run.out_dir / "checkpoint-of-other-settings.pt").touch()
    run.keep_model = False
    record = run.write(evaluation.evaluate(Blind(), run.test))
    assert not run.checkpoint.exists()
    assert not left.exists()
    assert record["content_hash"] in run.checkpoint.name
    assert record["protocol"]["side"] == 64
    assert record["protocol"]["image_size"] == record["parameters"]["image_size"] == [64, 160]
    assert record["parameters"]["resize"] == "stretch"
    again, *_ = notebook_jobs.run_method("dfr", overrides={"image_size": 64}, out=tmp_path / "out", **where)
    assert again == "up to date"


def test_content_hash_follows_settings_seed_and_data(small_table, tmp_path):
    settings = methods.get("patchcore").Settings()
    first = runs.content_hash("patchcore", settings, 0, small_table)
    assert first == runs.content_hash("patchcore", settings, 0, small_table)
    changed = methods.get("patchcore").Settings(coreset=0.5)
    assert first != runs.content_hash("patchcore", changed, 0, small_table)
    assert first != runs.content_hash("patchcore", settings, 1, small_table)
    assert first != runs.content_hash("patchcore", settings, 0, small_table.iloc[1:])


def test_source_files_are_those_a_method_imports():
    names = {file.name for file in source_files.of_method("patchcore")}
    assert {"patchcore.py", "neighbours.py", "patches.py", "backbones.py", "metrics.py", "evaluation.py"} <= names
    assert not {"cli.py", "tables.py", "figures.py", "batch.py"} & names


@pytest.mark.parametrize("text", ["", "{", "[]", '{"method": "patchcore"}', "9" * 5000, "[" * 99999])
def test_a_damaged_record_is_named_and_left_out(record, tmp_path, text):
    runs.write_record(tmp_path / "good", record)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/record.json").write_text(text)
    table, (damaged,) = runs.collect(tmp_path)
    assert len(table) == 1
    assert "bad/record.json" in damaged


def test_a_metric_that_is_no_fraction_is_damage(record, tmp_path):
    for value in (90.2, "0.9", True, float("nan")):
        (tmp_path / "record.json").write_text(json.dumps({**record, "metrics": {"image_auroc": value}}))
        refused("image_auroc", runs.read_record, tmp_path)
    (tmp_path / "record.json").write_text(json.dumps({**record, "dataset": "x/../../../../escaped"}))
    refused(r"dataset is 'x/\.\./", runs.read_record, tmp_path)


def test_an_incomplete_record_is_not_written(record, tmp_path):
    refused("seed", runs.write_record, tmp_path, {k: v for k, v in record.items() if k != "seed"})
    assert not list(tmp_path.iterdir())


# -- batch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Make a repository with one notebook, and return a function that writes it."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr("adlib_book.notebook_jobs.root", lambda: tmp_path)
    monkeypatch.setattr("adlib_book.cells.root", lambda: tmp_path)
    (tmp_path / "kernels/python3").mkdir(parents=True)  # another interpreter is registered under the kernel's name
    (tmp_path / "kernels/python3/kernel.json").write_text('{"argv": ["false"], "display_name": "", "language": ""}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))

    def write(*sources, record=None):
        """Cells after the parameters; `record` is the number of the one that ends the result."""
        book = nbformat.v4.new_notebook()
        book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        parameters = nbformat.v4.new_code_cell("n: int = 1\nname: str = 'a'\nshare: float = 0.5\nflag: bool = False")
        parameters.metadata["tags"] = ["parameters"]
        book.cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
        if record:
            book.cells[record].metadata["tags"] = ["record"]
            book.cells.insert(record + 1, nbformat.v4.new_markdown_cell("The story"))
        nbformat.write(book, tmp_path / "notebooks/toy.ipynb")
        return tmp_path

    return write


# Where figures go; and sockets of a kernel, of which none may lie in the repository: two kernels would share them.
WHERE = "import glob\nfrom adlib.paths import figures_dir\nprint(figures_dir(), *glob.glob('*ipc*'))"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"m": 2}, "parameter 'm' is unknown"),
        ({"nmae": "b"}, "did you mean 'name'"),
        ({"n": "2"}, "must be int"),
        ({"n": True}, "must be int"),
        ({"name": 3}, "must be str, got 3; quote it: --set name='\"3\"'"),
        ({"flag": 1}, "must be bool"),
    ],
)
def test_wrong_parameters_fail_before_a_kernel_starts(notebook, monkeypatch, parameters, message):
    folder = notebook("1 + 1")
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    refused(message, notebook_jobs.run_notebook, "toy", folder / "out.ipynb", parameters)


@pytest.mark.parametrize("story", [True, False])  # in a kernel, and in this process
def test_a_failing_notebook_is_kept_and_an_earlier_copy_stays(notebook, story):
    folder = notebook("assert n == 1, 'n must be one'", "1 / 0", record=1)
    told = notebook_jobs.run_notebook("toy", folder / "out/toy.ipynb", {}, story=False)
    before = (folder / "out/toy.ipynb").read_text()
    assert told == {"status": "skipped", "cell": None, "error": None, "notebook": "toy.ipynb"}
    assert "The story" not in before
    with pytest.raises(
        notebook_jobs.NotebookError, match=r"cell 3 of toy\.ipynb failed: AssertionError: n must be one"
    ):
        notebook_jobs.run_notebook("toy", folder / "out/toy.ipynb", {"n": 2, "share": 1}, story)
    assert (folder / "out/toy.ipynb").read_text() == before
    assert "n must be one" in (folder / "out/failed-toy.ipynb").read_text()
    notebook_jobs.run_notebook("toy", folder / "out/toy.ipynb", {"n": 1}, story=False)
    assert not (folder / "out/failed-toy.ipynb").exists()


def test_an_error_in_the_story_is_told_and_the_other_cells_run(notebook, monkeypatch):
    monkeypatch.delenv("ADLIB_FIGURES", raising=False)
    monkeypatch.setenv("ADLIB_RESULTS", str(folder := notebook("'written'", "1 / 0", "[][0]", WHERE, record=1)))
    told = notebook_jobs.run_notebook("toy", folder / "toy.ipynb", {})
    assert told == {"cell": 3, "error": "ZeroDivisionError: division by zero"} | {
        "status": "failed", "notebook": "toy.ipynb",
    }  # fmt: skip
    cells = nbformat.read(folder / "toy.ipynb", as_version=4).cells
    assert [cell.cell_type for cell in cells] == ["code", "code", "markdown", "code", "code", "code"]
    assert cells[-1].outputs[0].text == f"{folder / 'figures/smoke'}\n"
    assert "ADLIB_FIGURES" not in os.environ
    assert not list(folder.glob("failed-*"))


def test_a_kernel_that_dies_is_reported(notebook):
    folder = notebook("import os\nos._exit(1)", "1", record=1)
    with pytest.raises(notebook_jobs.NotebookError, match="died"):
        notebook_jobs.run_notebook("toy", folder / "out.ipynb", {})
    notebook("'written'", "import os\nos._exit(1)", "1", record=1)
    told = notebook_jobs.run_notebook("toy", folder / "out.ipynb", {})
    assert (told["status"], told["cell"], told["error"]) == ("failed", None, "the kernel died")
    assert "written" in (folder / "out.ipynb").read_text()


def test_a_refreshed_notebook_writes_the_committed_figures_or_stays(notebook, monkeypatch):
    monkeypatch.delenv("ADLIB_FIGURES", raising=False)
    folder = notebook("'written'", WHERE, record=1)
    file = notebook_jobs.refresh("toy")
    cells = nbformat.read(file, as_version=4).cells
    assert cells[-1].outputs[0].text == f"{folder / 'figures'}\n"
    assert [cell.metadata.tags for cell in cells] == [["parameters"], ["record"], [], []]
    before = file.read_text()
    failed = {"status": "failed", "cell": 3, "error": "E: x", "notebook": "toy.ipynb"}
    monkeypatch.setattr(notebook_jobs, "run_notebook", lambda *_, **__: failed)
    with pytest.raises(notebook_jobs.NotebookError, match=r"story failed: cell 3 of toy\.ipynb: E: x"):
        notebook_jobs.refresh("toy")
    assert file.read_text() == before


@pytest.mark.parametrize("story", [True, False])
def test_bad_input_inside_a_notebook_is_bad_input(notebook, story):
    folder = notebook("from adlib.errors import InputError\nraise InputError('folder x is empty')")
    refused("folder x is empty", notebook_jobs.run_notebook, "toy", folder / "out.ipynb", {}, story)


def test_two_batches_in_one_results_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    with notebook_jobs._only_batch(), pytest.raises(InputError, match="another batch"), notebook_jobs._only_batch():
        pass
    with notebook_jobs._only_batch():  # and once the first has ended, the way is free
        pass


def test_plan_lists_every_category_of_a_root(small_tree):
    jobs = notebook_jobs.plan("laptop", str(small_tree))
    assert [(job.category, job.seed) for job in jobs if job.method == "patchcore"] == [("plate", 0)]
    assert len({job.folder for job in jobs}) == len(jobs)
    refused("no known data set", notebook_jobs.plan, "laptop", str(small_tree / "plate/train/good"))
    refused("needs data", notebook_jobs.plan, "paper")


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_a_batch_tells_one_story_per_method(small_tree, profile):
    jobs = notebook_jobs.plan(profile, "" if profile == "smoke" else str(small_tree))
    assert [job.method for job in jobs if job.story] == list(notebook_jobs.profiles.load(profile)["methods"])
    assert all(job.story != ("--no-story" in job.command("out")) for job in jobs)
    assert len(jobs) > len({job.method for job in jobs})  # so that some are without


def test_a_batch_reports_failed_stories_until_they_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr(notebook_jobs, "to_do", lambda *_: [])
    file = tmp_path / "runs" / notebook_jobs.plan("smoke")[1].folder / "story.json"
    file.parent.mkdir(parents=True)
    for _ in range(2):
        file.write_text('{"status": "failed", "cell": 9, "error": "IndexError: 2", "notebook": "x.ipynb"}')
        assert notebook_jobs.reproduce("smoke") == 1
        assert capsys.readouterr().err.startswith("story failed: cell 9 of x.ipynb: IndexError: 2 (")
    file.write_text('{"status": "complete"}')
    assert notebook_jobs.reproduce("smoke") == 0
    assert f"figures    {notebook_jobs.results_dir()}" in capsys.readouterr().out


def test_every_notebook_is_part_of_the_batch():
    """A notebook that no rule runs would rot unseen."""
    stories, studies, readers = (set(notebook_jobs.notebooks(kind)) for kind in ("story", "study", "records"))
    there = {file.stem for file in (notebook_jobs.root() / "notebooks").glob("[!.]*.ipynb")}
    assert there == stories | studies | readers | {entry.notebook for entry in methods.METHODS.values()}

    def once(*place):
        return {Path(name).stem for name in notebook_jobs.once_outputs(*place)}

    assert once("smoke") == stories | studies | readers
    assert once("laptop", "data") == studies | readers
    assert once("laptop") == readers


def test_what_renews_a_notebook():
    renewing = {name: set(notebook_jobs.inputs(name)) for name in ("24_ulsad_ablations", "92_protocol_audit")}
    ulsad = {str(file) for file in source_files.of_method("ulsad")}
    book = {"evaluation/by_defect_kind.py", "learning_curves.py", "studies/__init__.py", "ulsad_accuracy.csv"}
    assert ulsad < renewing["24_ulsad_ablations"]
    assert all(any(name.endswith(end) for name in renewing["24_ulsad_ablations"]) for end in book)
    assert not any(name.endswith(("figures.py", "claims.py")) for name in renewing["24_ulsad_ablations"])
    assert ulsad | {str(file) for file in source_files.of_method("glass")} < renewing["92_protocol_audit"]
    names = {Path(name).name for name in notebook_jobs.inputs("90_tables")}
    book = {"tables.py", "table_files.py", "published_tables.py", "ranks.py"}
    assert book | {"record.json", "pagmfr_table1.csv"} <= names


def test_a_study_runs_on_its_own_defaults_or_on_what_the_profile_names(monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", "/r")
    out = "/r/notebooks/smoke/23_scorers.ipynb"
    smoke = notebook_jobs.once_commands("23_scorers", "smoke", [], "")
    assert smoke == [["notebook", "23_scorers", "--set", 'profile="smoke"', "--out", out]]
    places = [("btad", "01"), ("mvtec_ad", "screw"), ("mvtec_ad", "tile"), ("magnetic_tile", "magnetic_tile")]
    jobs = [notebook_jobs.Job("laptop", "dfr", name, f"/data/{name}", category, 0) for name, category in places]

    def chosen(name, jobs=jobs):
        commands = notebook_jobs.once_commands(name, "laptop", jobs, "/data")
        given = [[part for before, part in pairwise(command) if before == "--set"] for command in commands]
        return [parse_overrides(values) for values in given], [command[-1] for command in commands]

    def parameters(*places):
        names = ("dataset", "data_root", "category")
        return [{"profile": "laptop"} | dict(zip(names, (d, f"/data/{d}", c), strict=True)) for d, c in places]

    files = [f"/r/notebooks/laptop/23_scorers{end}.ipynb" for end in ("/mvtec_ad-screw", "")]
    assert chosen("23_scorers") == (parameters(places[1], places[3]), files)
    assert chosen("23_scorers", jobs[:1])[0] == parameters(places[0])  # none of the named ones is there
    assert chosen("92_protocol_audit")[0] == [{"profile": "laptop", "data_root": "/data"}]


@pytest.fixture
def whole_batch(tmp_path, monkeypatch):
    """A results folder in which all of the smoke profile is done."""
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    jobs = notebook_jobs.plan("smoke")
    for job in jobs:
        folder = progress.run_folder(job)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(job.folder)
        progress.write_done([progress.done_file(job)], progress.of_run(job))
    for path in notebook_jobs.once_outputs("smoke"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
        progress.write_done([progress.done_file(path)], notebook_jobs.of_notebook(Path(path).stem, "smoke"))
    return jobs


def test_what_is_to_do_follows_content(whole_batch, tmp_path):
    def stems():
        tasks = notebook_jobs.to_do(whole_batch, "smoke")
        return {Path(task).stem if isinstance(task, str) else task.folder for task in tasks}

    show_records = {*notebook_jobs.notebooks("records"), notebook_jobs.START_NOTEBOOK}
    assert stems() == set()
    record = progress.run_folder(whole_batch[0]) / "record.json"
    os.utime(record, (0, 0))
    assert stems() == set()
    record.write_text("another record, made by hand")  # nobody knows of what
    assert stems() == {whole_batch[0].folder, *show_records}
    record.unlink()
    assert stems() == {whole_batch[0].folder, *show_records}
    record.write_text(whole_batch[0].folder)

    shown = {"studies/27_robustness_laptop.csv": {"27_robustness"}, "studies/ulsad_tray.csv": {"24_ulsad_ablations"},
             "runs/laptop/ulsad/screw/record.json": {"24_ulsad_ablations", *show_records}}  # fmt: skip
    for name, made in shown.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert stems() == made
        file.unlink()
    executed = tmp_path / "notebooks/smoke/01_data.ipynb"
    executed.unlink()
    assert stems() == {"01_data"}


def test_a_refused_job_leaves_the_record(whole_batch, tmp_path):
    """Snakemake removes the outputs of a job that fails; here no job can start at all."""
    job = next(job for job in whole_batch if job.method == "padim")
    progress.done_file(job).write_text("older inputs")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(notebook_jobs.root() / "Snakefile"), "--nolock"]
    command += ["--directory", str(tmp_path), "--cores", "1", "--config", "profile=smoke", "method=padim"]
    (tmp_path / "adlib").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "adlib").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "adlib run padim" in done.stderr, done.stderr[-2000:]
    assert (progress.run_folder(job) / "record.json").read_text() == job.folder
    states = progress.states(whole_batch).set_index("folder").state
    assert states[job.folder] == "older"
    assert (states.drop(job.folder) == "done").all()


@pytest.mark.parametrize(
    ("state", "minutes", "expected"),
    [
        ({"state": "running"}, 0, ("running", "")),
        ({"state": "running"}, 3, ("failed", "3 minutes ago: out of memory, or at its limit")),
        ({"state": "failed", "reason": "disk full"}, 99, ("failed", "disk full (an older record is kept)")),
    ],
)
def test_status_tells_a_running_job_from_a_killed_one(whole_batch, state, minutes, expected):
    job = whole_batch[0]
    progress.done_file(job).unlink()
    file = progress.run_folder(job) / "job.json"
    file.write_text(json.dumps({"host": "node1", "since": "then"} | state))
    os.utime(file, (time.time() - 60 * minutes,) * 2)
    row = progress.states(whole_batch[:1]).iloc[0]
    assert row.state == expected[0]
    assert expected[1] in row.reason
    assert "failed: smoke/" in progress.table(whole_batch) or expected[0] == "running"


def test_a_job_says_that_it_runs_and_why_it_failed(tmp_path):
    with progress.reported(tmp_path):
        assert json.loads((tmp_path / "job.json").read_text())["state"] == "running"
    assert not (tmp_path / "job.json").exists()
    with pytest.raises(KeyboardInterrupt), progress.reported(tmp_path):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "job.json").read_text())["reason"].startswith("stopped")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"method": "padim,sp*"}, {"padim/gear", "spade/gear"}),
        ({"method": "ulsad", "category": "tr*", "seed": 0}, {"ulsad/tray"}),
        ({"dataset": "demo", "method": "dreem"}, "did you mean 'draem'"),
        ({"seed": "1"}, "there are 0"),
    ],
)
def test_a_batch_is_narrowed_by_names(names, expected):
    jobs = notebook_jobs.plan("smoke")
    if isinstance(expected, set):
        assert {f"{job.method}/{job.category}" for job in notebook_jobs.select(jobs, **names)} == expected
    else:
        refused(expected, notebook_jobs.select, jobs, **names)


@pytest.mark.parametrize("name", ["lot #2", "lot: 3", "lot{x}", "*", "01", "50% off", "it's"])
def test_snakemake_is_told_names_as_they_are(name):
    values = notebook_jobs._arguments("smoke", f"/data/{name}", 1, "", {"category": name})
    told = notebook_jobs.from_config(parse_config(values[values.index("--config") + 1 :]))
    assert told == {"profile": "smoke", "data_root": f"/data/{name}", "category": f"{name},"}


def test_every_method_has_a_cost_in_every_profile():
    for profile in notebook_jobs.profiles.names():
        for entry in (*notebook_jobs.profiles.load(profile)["methods"], costs.NOTEBOOKS):
            first, second = (costs.request(profile, entry, attempt) for attempt in (1, 2))
            assert second["runtime"] == 2 * first["runtime"] >= 6 * costs.read(profile, entry).minutes
            assert costs.read(profile, entry).basis in ("measured", "estimated")


@pytest.mark.parametrize("name", [*notebook_jobs.notebooks("study"), *notebook_jobs.notebooks("records")])
def test_what_a_study_shows_is_among_its_inputs(name):
    """Each committed CSV of results whose name stands in a study's code."""
    cells = nbformat.read(notebook_jobs.notebook_path(name), as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    read = {file.name for file in (notebook_jobs.root() / "results/studies").glob("*.csv") if file.stem in code}
    read |= {f"{name}_laptop.csv"} if "studies.read(" in code else set()
    assert read - {f"{name}_smoke.csv"} <= {Path(file).name for file in notebook_jobs.inputs(name)}
