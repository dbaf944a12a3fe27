"""Evaluation on test sets of every shape: what is undefined is None, what has no mask is left out and counted."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused, write_image

from adlib import evaluation
from adlib.datasets.table import make_table, sample
from adlib.errors import InputError
from adlib.evaluation import by_defect_kind, metrics
from adlib.images import Resize
from adlib.methods import Scores

SIDE, IMAGE, PIXEL = 16, ("image_auroc", "image_ap", "image_f1_max"), evaluation.PIXEL_METRICS


class Brightness:
    """A method that calls bright pixels anomalous."""

    resize, settings = Resize(SIDE), SimpleNamespace(batch_size=3)

    def score(self, batch):
        maps = batch.images.mean(1).numpy()
        return Scores(maps.max((1, 2)), maps)


@pytest.fixture
def table(tmp_path):
    """Three good images and four with a defect of 16 pixels, masks of class number 3 as in VisA."""
    rng, rows = np.random.default_rng(0), []
    for i in range(7):
        pixels, mask = rng.integers(0, 200, (SIDE, SIDE, 3)), np.zeros((SIDE, SIDE), np.uint8)
        mask[4:8, i : i + 4] = 3 * (i > 2)
        pixels[mask > 0] += 40
        image = write_image(tmp_path / f"part/test/{i}.png", pixels.astype(np.uint8))
        path = write_image(tmp_path / f"part/masks/{i}.png", mask) if i > 2 else None
        rows.append(sample(image, path, "bad" if i > 2 else "good", "test", "part"))
    return make_table(rows, "own", 0)


def without_masks(table, rows):
    return table.assign(mask_path=[None if i in rows else path for i, path in enumerate(table.mask_path)])


@pytest.mark.parametrize(
    ("change", "undefined"),
    [
        (lambda table: table, ()),
        (lambda table: table[table.label == 0], (*IMAGE, *PIXEL)),
        (lambda table: table[table.label == 1], IMAGE),
        (lambda table: table[:1], (*IMAGE, *PIXEL)),
        (lambda table: table[-1:], IMAGE),
        (lambda table: without_masks(table, range(7)), PIXEL),
        (lambda table: without_masks(table, range(7))[-1:], (*IMAGE, *PIXEL)),
        (lambda table: without_masks(table, {3, 5}), ()),
    ],
    ids=["whole", "no defect", "no good", "one good", "one bad", "no masks", "one bad, no mask", "some masks"],
)
@pytest.mark.filterwarnings("ignore:pixel metrics leave out")
def test_what_is_undefined_is_none(table, change, undefined):
    table = change(table)
    found = evaluation.evaluate(Brightness(), table)
    assert {name for name, value in found.metrics.items() if value is None} == set(undefined)
    assert set(found.metrics) == {*IMAGE, *PIXEL}
    assert len(found.scores) == len(found.measured) == len(found.masks) == len(table)  # pictures can be drawn
    streamed = evaluation.evaluate(Brightness(), table, resolution="original")  # here of the same size
    assert streamed.masks == []
    for name, value in found.metrics.items():
        bound = streamed.bounds.get(name, 0)
        assert bound < 0.05
        assert streamed.metrics[name] == (None if value is None else pytest.approx(value, abs=bound + 1e-9))


@pytest.mark.parametrize("resolution", evaluation.RESOLUTIONS)
def test_defects_without_a_usable_mask_leave_the_pixel_metrics_alone(table, tmp_path, resolution):
    """As if they were not there; their images still count, and their places in maps and masks stay."""
    part = without_masks(table, {4})
    write_image(tmp_path / "part/masks/6.png", np.zeros((SIDE, SIDE), np.uint8))
    with pytest.warns(UserWarning, match=r"^pixel metrics leave out defective images: 1 without mask, 1 black mask$"):
        found = evaluation.evaluate(Brightness(), part, resolution)
    assert found.left_out == {"without_mask": 1, "black_mask": 1}
    assert found.measured == [True] * 4 + [False, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewer = evaluation.evaluate(Brightness(), part[found.measured], resolution)
        whole = evaluation.evaluate(Brightness(), without_masks(table, range(7)), resolution)
    assert fewer.left_out == whole.left_out == {}
    for name in PIXEL:
        assert found.metrics[name] == pytest.approx(fewer.metrics[name], abs=2 * found.bounds.get(name, 0))
    assert [found.metrics[name] for name in IMAGE] == [whole.metrics[name] for name in IMAGE]
    if resolution == "input":
        assert [bool(mask.any()) for mask in found.masks] == [False] * 3 + [True, False, True, False]
        assert found.metrics["aupro_30"] != metrics.aupro(found.anomaly_maps, found.masks)  # a check that can fail


def test_what_cannot_be_measured_is_refused(table):
    refused("is empty; expected rows with split 'test'", evaluation.evaluate, Brightness(), table[:0])
    refused("other splits", evaluation.evaluate, Brightness(), table.assign(split=["train"] + ["test"] * 6))
    broken = Brightness()
    broken.score = lambda batch: Scores(np.full(len(batch), np.nan), np.zeros((len(batch), SIDE, SIDE)))
    refused("NaN", evaluation.evaluate, broken, table)


def test_a_mask_below_the_threshold_is_an_error(table):
    with pytest.raises(InputError, match=r"masks/3\.png: mask is not black, .* threshold 127 .*highest value is 3\)"):
        evaluation.evaluate(Brightness(), table.drop(columns="mask_threshold"))
    write_image(table.mask_path[3], np.zeros((SIDE, SIDE + 1), np.uint8))
    refused(r"masks/3\.png: mask is \(16, 17\), its image is \(16, 16\)", evaluation.evaluate, Brightness(), table)


def test_decisions_without_a_class_are_none(table):
    scores = evaluation.evaluate(Brightness(), table).scores
    assert evaluation.at_threshold(scores[scores.label == 0], 0.5)["detection_rate"] is None
    assert evaluation.at_threshold(scores[scores.label == 1], 0.5)["false_alarm_rate"] is None
    assert not by_defect_kind.has_both(table)
    assert not by_defect_kind.has_both(table[:0])


def test_defects_too_small_for_the_input_are_counted(tmp_path):
    rows = []
    for name, places in (("two", (np.s_[8:24, 8:24], np.s_[40:42, 40:42])), ("tiny", (np.s_[9, 9],)), ("good", ())):
        mask = np.zeros((64, 64), np.uint8)  # four times the input: a pixel there needs eight here
        for place in places:
            mask[place] = 255
        image = write_image(tmp_path / f"{name}.png", np.repeat(mask[..., None], 3, 2))
        path = write_image(tmp_path / f"mask_{name}.png", mask) if places else None
        rows.append(sample(image, path, "bad" if places else "good", "test", "part"))
    with pytest.warns(UserWarning, match="too small for the input size: 1 of 2 masks, 2 of 3 regions"):
        result = evaluation.evaluate(Brightness(), make_table(rows, "own"))
    assert result.vanished == {"masks": 1, "of_masks": 2, "regions": 2, "of_regions": 3}
