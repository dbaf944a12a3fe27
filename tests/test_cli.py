"""The command line as a user types it: own data, bad input, exit codes."""

import contextlib
import io
import json
import multiprocessing.dummy
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock
from urllib.parse import unquote

import browser
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_SETTINGS, full_disk, refused, texture, write_image

from adlib import own_parts, runs
from adlib.images import Resize, read_image, to_tensor
from adlib.methods import Scores
from adlib.methods.few_shot import episodic_training
from adlib_book import cli, compare, report

SMALL = ["--set", "image_size=64", "--set", "coreset=0.25", "--set", "resize=aspect", "--method", "patchcore"]
SMALL += ["--profile", "smoke"]


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
    out, errors = tmp_path_factory.mktemp("predicted"), io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert adlib("predict", "-m", model, "-i", parts / "new", "-o", out) == 1  # one file could not be read
    return errors.getvalue(), out


def test_predict_writes_everything_at_the_original_size_and_finds_the_defect(predicted):
    errors, out = predicted
    assert "broken.png" in errors
    assert "1 files could not be read" in errors
    scores = pd.read_csv(out / "scores.csv")
    assert sorted(scores.image) == ["bad.JPG", "bad.png", "deep/ok.png"]
    for name, shape in (("bad_jpg", (160, 240)), ("bad_png", (160, 240)), ("deep/ok", (80, 120))):
        assert np.load(out / f"maps/{name}.npy").shape == shape
        assert cv2.imread(str(out / f"overlays/{name}.jpg")).shape == (*shape, 3)
        assert cv2.imread(str(out / f"contours/{name}.jpg")).shape == (*shape, 3)
        assert json.loads((out / f"polygons/{name}.json").read_text())["size"] == list(shape)
    scores = scores.set_index("image")
    assert scores.anomalous[["bad.png", "deep/ok.png"]].tolist() == [True, False]
    assert scores.n_regions["deep/ok.png"] == 0
    row, column = np.unravel_index(np.load(out / "maps/bad_png.npy").argmax(), (160, 240))
    assert 40 <= row < 80
    assert 150 <= column < 200
    region = json.loads((out / "polygons/bad_png.json").read_text())["regions"][0]
    assert cv2.pointPolygonTest(np.array(region["polygon"], np.int32), (175, 60), False) > 0


def test_a_training_that_breaks_down_is_one_line_and_exit_code_1(parts, tmp_path, capsys):
    changes = ["image_size=64", "hidden=8", "batch_size=2", "steps=4", "learning_rate=1.0e+30"]
    settings = [part for change in changes for part in ("--set", change)]
    settings += ["--method", "glass", "--profile", "smoke"]
    assert adlib("train", "-i", parts / "good", "-o", tmp_path / "m", *settings) == 1
    errors = capsys.readouterr().err
    assert "adlib: GLASS: the loss became" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_methods_are_compared_and_auto_trains_the_first(parts, tmp_path, monkeypatch, capsys):
    assert compare._attempt("padim", "smoke", None, None, 0.1)["reason"].startswith("stopped: not done after")
    small = SMALL_SETTINGS | {"spade": {"stages": [9]}}
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(compare.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    monkeypatch.setattr(compare.profiles, "method_settings", lambda _, method, *__: small[method])
    assert adlib("compare", "-i", parts / "good", "--methods", "spade,padim") == 0
    facts = json.loads((tmp_path / "results/compare/good/comparison.json").read_text())
    assert [row["method"] for row in facts["methods"]] == ["padim", "spade"]
    assert facts["methods"][0]["image_auroc"] > 0.5
    assert re.match("failed: InputError: .*stage 9", facts["methods"][1]["reason"])
    assert (facts["n_fit"], facts["n_held_out"], facts["n_judged"]) == (13, 3, 24)
    assert (tmp_path / "results/compare/good/comparison.png").is_file()
    monkeypatch.setattr(compare.profiles, "load", lambda _: {"methods": ["draem"]})
    assert adlib("train", "-i", parts / "good", "-o", tmp_path / "m") == 0
    assert f"{tmp_path / 'm'}  (draem)" in capsys.readouterr().out  # without a backbone
    late = "train", "-i", parts / "good", "-o", tmp_path / "late"
    assert adlib(*late, "--minutes", "1e-9") == adlib(*late, "--set", "a=1") == 2
    assert re.search(r"not tried: no time was left.*\n.*give --method patchcore", capsys.readouterr().err)


@pytest.mark.parametrize("method", ["few_shot", "contrastive", "unified"])
def test_methods_learn_from_the_products_beside(method, parts, tmp_path, monkeypatch):
    paint = mock.Mock(wraps=episodic_training.paint)
    monkeypatch.setattr(episodic_training, "paint", paint)
    settings = SMALL_SETTINGS[method] | {"steps": 1}
    fitted, _ = own_parts.train(parts / "more_good", tmp_path / "m", method, settings, products=parts / "good")
    assert [call.args[0].category.iloc[0] for call in paint.call_args_list] == ["line_a", "line_b"]
    assert fitted.history.losses.step.tolist() == [1]


def test_threshold_from_a_folder_is_stored_and_used(parts, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    assert adlib("threshold", "-m", tmp_path / "model", "-i", parts / "more_good", "--rule", "max") == 0
    header = json.loads((tmp_path / "model/model.json").read_text())
    assert (header["threshold"]["rule"], header["threshold"]["n_normals"]) == ("max", 4)
    assert header["threshold"]["false_alarm_rate"] == pytest.approx(1 / 5)
    shutil.copy(parts / "good/line_a/1.PNG", parts / "more_good/copy.png")
    seen = "threshold", "-m", tmp_path / "model", "-i", parts / "more_good"
    assert adlib(*seen) == 2
    assert "copy.png: the model was trained on this image (1 of 5 there)" in capsys.readouterr().err
    assert adlib(*seen, "--even-so", "--rule", "max") == 0
    (parts / "more_good/copy.png").unlink()
    assert adlib("predict", "-m", tmp_path / "model", "-i", parts / "more_good", "-o", tmp_path / "out") == 0
    assert not pd.read_csv(tmp_path / "out/scores.csv").anomalous.any()


class Brightness:
    """Stands for a fitted method: the score of a pixel is its brightness."""

    name, resize, normal_scores, settings = "brightness", Resize(16), (), SimpleNamespace(bit_depth=8)

    def fit(self, table):
        self.seen = [read_image(path).max() for path in table.image_path]
        return self

    def save(self, out, **facts):
        self.facts = facts

    def score(self, batch):
        maps = batch.images.mean(1).numpy()
        return Scores(maps.max(axis=(1, 2)), maps)


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """`own_parts.predict` of `in` into `out`, by brightness, with thresholds 0.5 and 0.8."""
    header = {"threshold": {"value": 0.5}, "pixel_threshold": {"value": 0.8}}
    monkeypatch.setattr(own_parts.storage, "read_header", lambda _: header)
    monkeypatch.setattr(own_parts.methods, "load", lambda _: Brightness())
    return lambda folder="in", out="out": own_parts.predict("model", tmp_path / folder, tmp_path / out)


def test_a_full_disk_is_named(parts, predict, tmp_path, monkeypatch):
    monkeypatch.setattr(own_parts, "open", full_disk, raising=False)
    refused(r"scores\.partial\.csv: the disk is full", predict, parts / "good")


def spots(*values):
    """An image of 16 x 16 with a pixel of each of these grey values."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[4, 2 : 2 + 2 * len(values) : 2] = np.array(values)[:, None]
    return image


NAMES = ["a.png", "a.PNG", "A.png", "a.bmp", "a_bmp.bmp", "a.npy/b.png", "~.png", "#:{%}'\".png", "l" * 251 + ".png",
         "l" * 251 + ".bmp", "n\udcff.png"]  # fmt: skip


def test_one_image_one_result(tmp_path, predict):
    for i, name in enumerate(NAMES):
        write_image(tmp_path / "one.bmp", spots(i))
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one.bmp", tmp_path / "in" / name)
    files = mock.MagicMock()
    files.__iter__.side_effect = lambda: iter(NAMES)
    names = own_parts.output_names(files)
    assert files.__iter__.call_count <= 3  # and not once a file: of 40,000 that took minutes
    assert len({name.casefold() for name in names}) == len(names)
    scores, skipped = predict()
    assert not skipped
    assert scores.set_index("image").score[NAMES].tolist() == pytest.approx([i / 255 for i in range(len(NAMES))])
    polygons = [json.loads(file.read_text()) for file in (tmp_path / "out/polygons").rglob("*.json")]
    assert sorted(polygon["image"] for polygon in polygons) == sorted(NAMES)
    for kind in ("maps", "overlays", "contours"):
        assert sum(file.is_file() for file in (tmp_path / "out" / kind).rglob("*")) == len(NAMES)
    assert pd.read_csv(tmp_path / "out/scores.csv", encoding_errors="surrogateescape").image.tolist() == [*scores.image]


def test_a_second_run_removes_what_the_first_has_written_and_nothing_else(tmp_path, predict):
    for name in ("a", "b"):
        write_image(tmp_path / f"in/{name}.png", spots(200))
    predict()
    (tmp_path / "in/a.png").unlink()
    (tmp_path / "out/maps/mine.txt").touch()
    refused(r"no earlier run of predict lists \(maps/mine\.txt\)", predict)
    assert (tmp_path / "out/maps/a.npy").is_file()
    (tmp_path / "out/maps/mine.txt").unlink()
    predict()
    names = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert names == {"adlib-predict.json", "scores.csv", "scale.png", "b.npy", "b.jpg", "b.json"}
    facts = json.loads((tmp_path / "out/adlib-predict.json").read_text())
    assert facts["scale"] == pytest.approx([0, 1.6])  # twice the pixel threshold: no image reaches it
    assert own_parts.normal_table(tmp_path)[0].image_path.tolist() == [str(tmp_path / "in/b.png")]  # results are not
    for out in ("in", "in/out"):
        refused("lies in the input folder", predict, out=out)
        refused("lies in the input folder", own_parts.train, tmp_path / "in", tmp_path / out)


def test_what_happens_to_the_files_while_they_are_scored_costs_a_row(tmp_path, predict, monkeypatch):
    for name in "abcd":
        write_image(tmp_path / f"in/{name}.png", spots(200))
    score, calls = Brightness.score, []

    def meanwhile(self, batch):
        calls.append(batch)
        (tmp_path / "in/a.png").unlink(missing_ok=True)
        if len(calls) == 2:
            write_image(tmp_path / "in/b.png", spots(200)[:8])
        (tmp_path / "in/d.png").write_bytes(b"half")
        return score(self, batch)

    monkeypatch.setattr(Brightness, "score", meanwhile)
    scores, skipped = predict()
    stored = pd.read_csv(tmp_path / "out/scores.csv")
    assert scores.image.tolist() == stored.image.tolist() == ["a.png", "b.png", "c.png"]
    reasons = (r"d\.png: not a readable", r"a\.png: no such", r"b\.png: changed while it was scored")
    assert all(re.search(reason, line) for reason, line in zip(reasons, skipped, strict=True))
    calls.clear()
    monkeypatch.setattr(Brightness, "score", lambda *_: calls.append(1) or (score(*_) if len(calls) < 2 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        predict()
    assert pd.read_csv(tmp_path / "out/scores.partial.csv").image.tolist() == ["b.png"]
    assert not (tmp_path / "out/scores.csv").exists()


def test_outside_of_the_region_of_interest_nothing_trains_or_scores(tmp_path, predict, monkeypatch):
    inside = np.zeros((16, 16), np.uint8)
    inside[:, :6] = 255
    write_image(tmp_path / "roi.png", inside)
    for name in ("top/a", "top/b", "side/c"):
        write_image(tmp_path / f"in/{name}.png", spots(140, 150, 160, 250))  # columns 2, 4, 6, 8
    monkeypatch.setattr(own_parts.profiles, "shaped", lambda *_, **__: {})
    monkeypatch.setattr(own_parts.methods, "create", lambda _: Brightness())
    regions = [f"top/*={tmp_path / 'roi.png'}", f"c*={write_image(tmp_path / 'all.png', inside | 255)}"]
    fitted, _ = own_parts.train(tmp_path / "in", tmp_path / "model", roi=regions)
    assert fitted.seen == [250, 150, 150]
    monkeypatch.setattr(own_parts.storage, "read_header", lambda _: {**fitted.facts, "method": "brightness"})
    scores, _ = predict()
    assert scores.score.tolist() == pytest.approx([250 / 255, 150 / 255, 150 / 255])
    np.testing.assert_array_equal(np.isnan(np.load(tmp_path / "out/maps/top/a.npy")), inside == 0)
    write_image(tmp_path / "in/top/a.png", spots(140, 150)[:8])
    write_image(tmp_path / "in/d.png", spots(140))
    scores, skipped = predict()
    assert len(scores) == 2
    assert re.search(r"d\.png: no region of interest is for images of this name", skipped[0])
    assert re.search(r"a\.png: image is \(8, 16\), its region of interest \(16, 16\)", skipped[1])
    refused("brightness takes in no more images; train it again", own_parts.update, "model", tmp_path / "in")
    refused("region of interest is black", own_parts.read_roi, [write_image(tmp_path / "black.png", inside * 0)])


def test_a_part_is_looked_at_tile_by_tile(tmp_path):
    for i in range(5):
        write_image(tmp_path / f"good/{i}.png", texture(np.random.default_rng(i), 64, 112))
    fitted, _ = own_parts.train(tmp_path / "good", tmp_path / "m", settings=SMALL_SETTINGS["patchcore"], tiles=(1, 2))
    scores, _ = own_parts.predict(tmp_path / "m", tmp_path / "good", tmp_path / "out")
    assert np.isclose(scores.score.to_numpy()[:, None], fitted.normal_scores).sum() == 2  # whole images are held out
    image, found = read_image(tmp_path / "good/0.png"), np.load(tmp_path / "out/maps/0.npy")
    left, right = (fitted.score(to_tensor([tile])) for tile in (image[:, :64], image[:, 48:]))
    assert scores.score[0] == pytest.approx(max(left.image[0], right.image[0]), rel=1e-4)
    np.testing.assert_allclose(found[:, 48:64], np.maximum(left.map[0, :, 48:], right.map[0, :, :16]), rtol=1e-4)
    refused("looks at tiles", runs.evaluate_model, tmp_path / "m", dataset="", data_root="", category="", out_dir="")


def test_a_report_counts_again_and_takes_names_as_data(tmp_path, predict, monkeypatch):
    names = [f"{i:02d}.png" for i in range(60)] + ["<img src=x onerror='document.title=1'> #%.png"]
    for i, name in enumerate(names):
        write_image(tmp_path / "in" / name, spots(4 * i))
    predict()
    read = ({"method": "brightness", "settings": {"bit_depth": 8}}, {"normal_scores": torch.tensor([0.1, 0.2, 0.6])})
    monkeypatch.setattr(report.storage, "read_model", lambda _: read)
    out, file = tmp_path / "out", tmp_path / "out/report.html"
    for place in ("out/other.html", "out/maps/report.html", "in/00.png", "in"):
        refused("report .* (lies in the folder of results|ends in .html)", report.check_place, tmp_path / place, out)
    report.check_place(file, out)
    report.write("model", out, file)
    results = json.loads(re.search(r'id="results">(.*?)</script>', file.read_text())[1])
    assert [image["name"] for image in results["images"]] == names[::-1]  # worst first
    assert all((out / unquote(link)).is_file() for image in results["images"] for link in image["links"].values())
    assert "higher than 67 % of them" in results["drift"]
    monkeypatch.setattr(report, "MOST_BYTES", 200_000)
    assert report.write("model", out, tmp_path / "small.html").stat().st_size <= 200_000
    if browser.find():
        with browser.open_tab() as tab:
            tab.open(file.as_uri())
            look_at(tab, names)
    predict()  # removes the report
    assert not file.exists()


def look_at(tab, names):
    """Hold what the page of `names` does when it is clicked and dragged."""
    shown = "document.querySelectorAll('#cards figure').length"
    assert tab.run("document.querySelector('figcaption div + div').textContent") == names[-1]
    assert tab.run("counts.textContent").startswith("29 of 61 images flagged, 1 of 3 good parts")
    assert (
        tab.run("""document.querySelector("figure button").click(), document.querySelector("img").alt""")
        == "photograph"
    )
    for press, number in (("next", 13), ("back", 48)):
        assert tab.run(f"document.getElementById('{press}').click(), {shown}") == number
    tab.run("slider.value = 895, slider.dispatchEvent(new Event('input'))")
    tab.wait_for("counts.textContent.startsWith('7 of 61')")  # above 0.895 x 240 / 255
    tab.run("filter.value = 'flagged', filter.dispatchEvent(new Event('change'))")
    assert tab.run(shown) == 7
    assert not tab.errors
    assert tab.run("document.title") == "adlib report"


def test_a_model_that_grows_alarms_no_more(parts, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    write_image(tmp_path / "alarms/a.png", np.random.default_rng(5).integers(0, 255, (80, 120, 3)).astype(np.uint8))
    before, _ = own_parts.predict(tmp_path / "model", tmp_path / "alarms", tmp_path / "out")
    for n in (1, 0):
        assert adlib("update", "-m", tmp_path / "model", "-i", tmp_path / "alarms") == 0
        assert f"{n} more images" in capsys.readouterr().out
    after, _ = own_parts.predict(tmp_path / "model", tmp_path / "alarms", tmp_path / "out")
    assert before.anomalous.all()
    assert after.score[0] < before.score[0]
    headers = [json.loads((folder / "model.json").read_text()) for folder in (model, tmp_path / "model")]
    assert headers[0]["threshold"] == headers[1]["threshold"]
    assert len(headers[1]["trained_on"]) == len(headers[0]["trained_on"]) + 1 == 17


def test_verdict_and_picture_agree():
    rng = np.random.default_rng(0)
    for _ in range(200):
        anomaly_map = rng.normal(size=(6, 7)).astype(np.float32)
        anomaly_map[0, :3] = np.nan  # cut off by a crop
        score, threshold, pixel_threshold = rng.normal(1, 1), rng.normal(1, 1), rng.normal(1, 2)
        anomalous, regions = own_parts.decide(score, anomaly_map, threshold, pixel_threshold, 0.1)
        assert anomalous == (score > threshold) == bool(regions)
        if anomalous:
            assert max(region["max_score"] for region in regions) == np.nanmax(anomaly_map)
    flat = np.ones((4, 4), np.float32)
    assert own_parts.decide(2.0, flat, 1.0, None)[1][0]["area"] == 1
    assert own_parts.decide(0.0, flat, None, 0.5)[0] is None
    assert own_parts.decide(0.0, flat, None, None) == (None, [])


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
        (["student", "copies", "10_patchcor"], "did you mean '10_patchcore'"),
        (["data", "get", "visaa"], "did you mean 'visa'"),
        (["data", "check", "mvtec", "--data-root", "/no/such"], "/no/such"),
        (["reproduce", "--profile", "smokee"], "did you mean 'smoke'"),
        (["tables", "--profile", "latpop"], "did you mean 'laptop'"),
        (["tables", "--results", "TYPO"], "TYPO does not exist"),
        (["predict", "-m", "~/model", "-i", ".", "-o", "o"], "/home/me/model holds no model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert adlib(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["run", "data", "nonsense", "run patchcore --seed x", "train --tiles 2by3 -i . -o o"])
def test_wrong_usage_is_one_line_and_exit_code_2(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        adlib(*line.split())
    assert (stopped.value.code, len(capsys.readouterr().err.strip().splitlines())) == (2, 1)


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
    (tmp_path / "record.json").touch()
    if stored:
        (tmp_path / "story.json").write_text(json.dumps(fate(stored)))
    options = [*options, "--done", tmp_path / "storage/copy"]  # where a batch without a shared disk looks
    assert adlib("run", "padim", "--category", "tray", "--out", tmp_path, *options) == code
    assert (tmp_path / ".done").read_text() == options[-1].read_text()
    out, errors = capsys.readouterr()
    assert out.split(": ")[1].startswith("done" if ran else "up to date")
    assert json.loads((tmp_path / "story.json").read_text())["status"] == told if ran else True
    assert ("adlib: story failed: cell 9 of 11a_padim.ipynb: IndexError: 2" in errors) == (told == "failed")


COMMANDS = ["run", "notebook", "reproduce", "plan", "train", "import glass", "threshold", "update", "predict"]


@pytest.mark.parametrize("command", [*COMMANDS, "compare", "evaluate", "data list", "data get", "data check"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        adlib(*command.split(), "--help")
    assert stopped.value.code == 0
    assert f"example: adlib {command}" in " ".join(capsys.readouterr().out.split())


def test_an_empty_folder_and_a_folder_of_broken_images(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("holds no image", own_parts.train, tmp_path / "empty", tmp_path / "model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"x")
    refused("none of the images", own_parts.train, tmp_path / "broken", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_plan_and_commands_that_only_start_a_notebook_load_no_torch():
    """Its kernel loads it; a batch starts dozens of such commands."""
    plan = "from adlib_book import batch_plan, cli, notebook_jobs; batch_plan.text('smoke')"
    program = f"import sys; {plan}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    done = subprocess.run([sys.executable, "-m", "adlib", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("adlib ")
