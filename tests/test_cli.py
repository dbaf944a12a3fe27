"""The command line as a user types it: own data, bad input, exit codes."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import texture, write_image

from adlib import own_parts
from adlib.errors import InputError
from adlib_book import cli

SMALL = ["--set", "image_size=64", "--set", "coreset=0.25", "--profile", "smoke", "--set", "resize=aspect"]


def adlib(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Good parts in nested folders with upper-case suffixes, new parts with one defect and one broken file."""
    root = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(1)
    for i in range(16):
        write_image(root / "good" / ("line_a" if i % 2 else "line_b/shift_1") / f"{i}.PNG", texture(rng, 80, 120))
    for i in range(4):
        write_image(root / f"more_good/{i}.jpg", texture(rng, 80, 120))
    write_image(root / "new/deep/ok.png", texture(rng, 80, 120))
    bad = texture(rng, 80, 120).repeat(2, axis=0).repeat(2, axis=1)
    bad[40:80, 150:200] = rng.integers(0, 255, (40, 50, 3))
    write_image(root / "new/bad.JPG", bad)
    write_image(root / "new/bad.png", bad)
    (root / "new/broken.png").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def model(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    assert adlib("train", "-i", parts / "good", "-o", out, *SMALL) == 0
    assert json.loads((out / "model.json").read_text())["settings"]["image_size"] == [64, 96]  # pictures of 2:3
    return out


@pytest.fixture(scope="module")
def predicted(parts, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    return adlib("predict", "-m", model, "-i", parts / "new", "-o", out), out


def test_predict_writes_everything_at_the_original_size(predicted):
    code, out = predicted
    assert code == 1  # one file could not be read; nothing else was lost
    scores = pd.read_csv(out / "scores.csv")
    assert sorted(scores.image) == ["bad.JPG", "bad.png", "deep/ok.png"]
    for name, shape in (("bad_jpg", (160, 240)), ("bad_png", (160, 240)), ("deep/ok", (80, 120))):
        assert np.load(out / f"maps/{name}.npy").shape == shape
        assert cv2.imread(str(out / f"overlays/{name}.jpg")).shape == (*shape, 3)
        assert cv2.imread(str(out / f"contours/{name}.jpg")).shape == (*shape, 3)
        assert json.loads((out / f"polygons/{name}.json").read_text())["size"] == list(shape)


def test_the_defect_is_found_where_it_is(predicted):
    _, out = predicted
    scores = pd.read_csv(out / "scores.csv").set_index("image")
    assert scores.anomalous["bad.png"]
    assert not scores.anomalous["deep/ok.png"]
    assert scores.n_regions["deep/ok.png"] == 0
    row, column = np.unravel_index(np.load(out / "maps/bad_png.npy").argmax(), (160, 240))
    assert 40 <= row < 80
    assert 150 <= column < 200
    region = json.loads((out / "polygons/bad_png.json").read_text())["regions"][0]
    assert cv2.pointPolygonTest(np.array(region["polygon"], np.int32), (175, 60), False) > 0


def test_unreadable_files_are_named_and_counted(parts, model, tmp_path, capsys):
    assert adlib("predict", "-m", model, "-i", parts / "new", "-o", tmp_path) == 1
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "1 files could not be read" in errors


def test_a_training_that_breaks_down_is_one_line_and_exit_code_1(parts, tmp_path, capsys):
    changes = ["image_size=64", "hidden=8", "batch_size=2", "steps=4", "learning_rate=1.0e+30"]
    settings = [part for change in changes for part in ("--set", change)]
    code = adlib(
        "train", "-i", parts / "good", "-o", tmp_path / "m", "--method", "glass", "--profile", "smoke", *settings
    )
    assert code == 1
    errors = capsys.readouterr().err
    assert "adlib: GLASS: the loss became" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_a_method_without_a_backbone_is_trained_too(parts, tmp_path, capsys):
    changes = ["image_size=64", "width=4", "width_discriminator=4", "batch_size=4", "steps=2", "bank=4"]
    settings = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "m"
    assert adlib("train", "-i", parts / "good", "-o", out, "--method", "draem", "--profile", "smoke", *settings) == 0
    assert f"{out}  (draem)" in capsys.readouterr().out


def test_threshold_from_a_folder_is_stored_and_used(parts, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    assert adlib("threshold", "-m", tmp_path / "model", "-i", parts / "more_good", "--rule", "max") == 0
    header = json.loads((tmp_path / "model/model.json").read_text())
    assert header["threshold"]["rule"] == "max"
    assert header["threshold"]["n_normals"] == 4
    assert header["threshold"]["false_alarm_rate"] == pytest.approx(1 / 5)
    assert adlib("predict", "-m", tmp_path / "model", "-i", parts / "more_good", "-o", tmp_path / "out") == 0
    assert not pd.read_csv(tmp_path / "out/scores.csv").anomalous.any()


def test_one_colour_scale_for_all_images(predicted):
    _, out = predicted
    quiet = cv2.imread(str(out / "overlays/deep/ok.jpg")).astype(int)
    plain = cv2.imread(str(out / "contours/deep/ok.jpg")).astype(int)  # no region: the image itself
    assert np.abs(quiet - plain).mean() < 25
    loud = np.load(out / "maps/bad_png.npy")
    assert loud.max() > 2 * np.load(out / "maps/deep/ok.npy").max()


def test_regions_by_hand():
    anomaly_map = np.zeros((20, 20), np.float32)
    anomaly_map[2:6, 2:6] = 3
    anomaly_map[10:19, 10:19] = 2
    anomaly_map[13:15, 13:15] = 0  # a hole
    anomaly_map[0, 19] = 9  # one pixel: smaller than the filter
    regions = own_parts.find_regions(anomaly_map, 1.0, min_area=0.01)
    assert [round(r["area"] * 400) for r in regions] == [77, 16]
    assert [len(r["holes"]) for r in regions] == [1, 0]
    assert [r["max_score"] for r in regions] == [2.0, 3.0]
    assert sorted(map(tuple, regions[1]["polygon"])) == [(2, 2), (2, 5), (5, 2), (5, 5)]


def test_a_flat_map_gives_the_plain_image():
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    flat = np.full((8, 9), 2.0, np.float32)
    np.testing.assert_array_equal(own_parts.overlay(image, flat, (2.0, 2.0)), image)
    unseen = np.full((8, 9), np.nan, np.float32)
    np.testing.assert_array_equal(own_parts.overlay(image, unseen, (0.0, 1.0)), image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "patchcor", "--category", "x", "--out", "o"], "did you mean 'patchcore'"),
        (["run", "patchcore", "--category", "brik", "--out", "o"], "did you mean 'brick'"),
        (["run", "patchcore", "--category", "brick", "--out", "o", "--profile", "smok"], "did you mean 'smoke'"),
        (["run", "patchcore", "--category", "brick", "--out", "o", "--set", "corest=1"], "did you mean 'coreset'"),
        (["run", "patchcore", "--category", "brick", "--out", "o", "--set", "coreset=many"], "must be a number"),
        (["run", "patchcore", "--category", "x", "--data-root", "/no/such", "--out", "o"], "/no/such"),
        (["train", "-i", "/no/such", "-o", "o"], "/no/such"),
        (["predict", "-m", "/no/model", "-i", ".", "-o", "o"], "/no/model"),
        (["notebook", "10_patchcor", "--out", "o"], "did you mean '10_patchcore'"),
        (["data", "get", "visaa"], "visa"),
        (["data", "check", "mvtec", "--data-root", "/no/such"], "/no/such"),
        (["reproduce", "--profile", "smokee"], "did you mean 'smoke'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert adlib(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["run"], ["data"], ["nonsense"], ["run", "patchcore", "--seed", "x"]])
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        adlib(*arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("stored", "told", "options", "code", "ran"),
    [
        (None, "complete", [], 0, False),  # a record from before stories had a status
        ("complete", "complete", [], 0, False),
        ("failed", "failed", [], 1, True),
        ("failed", "failed", ["--keep-going"], 0, True),
        ("failed", "complete", [], 0, True),
        ("skipped", "complete", [], 0, True),
        ("skipped", "skipped", ["--no-story"], 0, False),
        ("complete", "skipped", ["--no-story", "--force"], 0, True),
    ],
)
def test_a_record_is_up_to_date_when_the_story_that_was_asked_for_is_told(
    stored, told, options, code, ran, tmp_path, monkeypatch, capsys
):
    def fate(status):
        return {"status": status, "cell": 9, "error": "IndexError: 2", "notebook": "11a_padim.ipynb"}

    monkeypatch.setattr("adlib_book.notebook_jobs.run_notebook", lambda *_, **__: fate(told))
    monkeypatch.setattr("adlib.runs.content_hash", lambda *_: "same")
    monkeypatch.setattr("adlib.runs.read_record", lambda _: {"content_hash": "same"})
    if stored:
        (tmp_path / "story.json").write_text(json.dumps(fate(stored)))
    assert adlib("run", "padim", "--category", "tray", "--out", tmp_path, *options) == code
    out, errors = capsys.readouterr()
    assert out.split(": ")[1].startswith("done" if ran else "up to date")
    assert json.loads((tmp_path / "story.json").read_text())["status"] == told if ran else True
    assert ("adlib: story failed: cell 9 of 11a_padim.ipynb: IndexError: 2" in errors) == (told == "failed")


@pytest.mark.parametrize("command", ["run", "notebook", "reproduce", "train", "threshold", "predict",
                                     "data list", "data get", "data check"])  # fmt: skip
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        adlib(*command.split(), "--help")
    assert stopped.value.code == 0
    assert f"example: adlib {command}" in " ".join(capsys.readouterr().out.split())


def test_an_empty_folder_and_a_folder_of_broken_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        own_parts.train(tmp_path / "empty", tmp_path / "model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"x")
    with pytest.raises(InputError, match="none of the images"):
        own_parts.train(tmp_path / "broken", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_commands_that_only_start_a_notebook_load_no_torch():
    """Its kernel loads it; a batch starts dozens of such commands."""
    program = "import sys; from adlib_book import cli, notebook_jobs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
