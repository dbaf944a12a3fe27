"""Figures: the numbers behind them by hand, every function on small data, and the same bytes twice."""

from types import SimpleNamespace

import browser
import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import write_image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from adlib import evaluation, images, methods
from adlib_book import figures as book_figures
from adlib_book import image_figures as figures


@pytest.fixture(autouse=True)
def _close():
    figures.use_style()
    yield
    plt.close("all")


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    defect = ["good"] * 8 + ["dent"] * 4 + ["hole"] * 4
    label = [int(d != "good") for d in defect]
    return pd.DataFrame({"score": rng.random(16) + label, "defect": defect, "label": label, "category": "plate"})


@pytest.fixture
def maps(scores):
    rng = np.random.default_rng(1)
    masks = np.zeros((len(scores), 12, 12), bool)
    masks[scores.label == 1, 3:6, 4:8] = True
    return rng.random(masks.shape) + masks, masks


def test_auroc_by_defect_by_hand():
    table = pd.DataFrame({"score": [1, 2, 3, 1.5, 4], "label": [0, 0, 0, 1, 1], "defect": ["good"] * 3 + ["a", "b"]})
    assert book_figures.auroc_by_defect(table).to_dict() == pytest.approx({"a": 1 / 3, "b": 1.0})


def test_units_of_normals_put_one_where_nine_of_ten_normals_end():
    maps = np.array([[[0.0, 2.0, 4.0]], [[1.0, 2.0, 10.0]]])
    found = book_figures.in_units_of_normals(maps, [0, 1])
    assert found[0].tolist() == [[-1.0, 0.0, 1.0]]  # median 2, highest 4
    assert found[1].tolist() == [[-0.5, 0.0, 4.0]]
    assert np.isfinite(book_figures.in_units_of_normals(np.ones((2, 1, 3)), [0, 1])).all()


def test_a_method_has_one_style_in_every_figure():
    styles = book_figures.METHOD_STYLES
    assert set(styles) == set(methods.METHODS)
    colours, markers = zip(*((style.color, style.marker) for style in styles.values()), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(styles)
    *found, other = book_figures.method_styles(["PatchCore, 10 %", "few_shot", "glass (gear)", "mine"]).values()
    assert found == [styles[name] for name in ("patchcore", "few_shot", "glass")]
    assert other not in found
    assert book_figures.method_palette(["dfr"]) == {"dfr": styles["dfr"].color}


def test_second_lines_of_a_method_and_unknown_names_get_styles_of_their_own():
    found = book_figures.method_styles(["patchcore (a)", "patchcore (b)", *methods.METHODS, "x", "y"][:11])
    assert len(set(found.values())) == 11
    assert found["patchcore (a)"] == book_figures.METHOD_STYLES["patchcore"]
    assert len(book_figures.method_styles([*methods.METHODS, "x", "y"])) == 13  # more labels than styles: some twice


def test_metrics_are_named_for_readers():
    names = ["image_auroc", "aupro_30", "aupro_05", "held_pixel_auroc"]
    assert list(map(figures.metric_label, names)) == ["image AUROC", "AUPRO@0.3", "AUPRO@0.05", "held pixel AUROC"]


def test_curves_have_one_line_a_method_and_the_areas_of_the_metrics(scores, maps):
    figure = book_figures.curves({"a": (scores, *maps), "b": (scores, None, maps[1])})
    roc, _, pro = figure.axes
    assert (len(roc.lines), len(pro.lines)) == (3, 1)  # two methods and chance; b has no maps
    x, y = roc.lines[0].get_data()
    assert np.trapezoid(y, x) / 1e4 == pytest.approx(1.0)  # every defect scores above every normal
    assert pro.lines[0].get_xdata().max() == pytest.approx(30)


def test_histograms_are_in_units_of_the_threshold(scores):
    figure = book_figures.score_histograms({"a": (scores, 0.5), "b": (scores, None), "c": (scores, 2.0)}, columns=2)
    first, second, third, empty = figure.axes[:4]
    assert [len(axis.lines) for axis in (first, second, third)] == [1, 0, 1]  # no threshold, no line
    assert sum(patch.get_height() for patch in first.patches) == len(scores)
    assert not empty.axison


def test_time_accuracy_memory_is_one_mark_a_method():
    columns = {"method": list("aab"), "score_ms_per_image": [5, 15, 3], "image_auroc": [0.9, 0.7, 0.5]}
    figure = book_figures.time_accuracy_memory(pd.DataFrame(columns | {"peak_memory_mib": 600.0, "run": "x"}))
    assert [tuple(c.get_offsets()[0]) for c in figure.axes[0].collections] == [(10.0, pytest.approx(80.0)), (3.0, 50.0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["512 MiB", "1024 MiB"]
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"3", "5", "10"} <= set(ticks)  # plain numbers


def test_labels_of_discs_do_not_cover_each_other():
    """Four discs in a row, nearer to each other than their labels are wide."""
    names = ["contrastive", "few_shot", "patchcore", "unified", "far"]
    columns = {"method": names, "peak_memory_mib": 500.0, "run": "x"}
    columns |= {"score_ms_per_image": [100, 104, 108, 112, 200], "image_auroc": [0.9] * 4 + [0.5]}
    figure = book_figures.time_accuracy_memory(pd.DataFrame(columns))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_data_flow_has_an_arrow_into_every_box_from_each_before_it():
    figure = book_figures.data_flow([("a", "data")], [[("b", "stored")], [("c", "trained")]], [("d", "compared")])
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts if text.get_text()] == ["a", "b", "c", "d"]
    assert (len(axis.patches), sum(not text.get_text() for text in axis.texts)) == (4, 4)  # boxes, arrows
    assert len(figure.legends[0].get_texts()) == 4


def test_a_threshold_to_drag_counts_by_itself(tmp_path):
    scores = pd.DataFrame({"score": [1.0, 2.0, 3.0, 2.5, 4.0], "label": [0, 0, 0, 1, 1]})
    page, said = tmp_path / "slider.html", "document.querySelector('output').textContent"
    page.write_text(book_figures.threshold_slider(scores, 2.2).data)
    if not browser.find():
        pytest.skip("no Chromium on this machine (set CHROMIUM to its path)")
    with browser.open_tab() as tab:
        tab.open(page.as_uri())
        assert tab.run(said) == "2.200: 1 of 3 good images raise a false alarm, 0 of 2 defective ones are missed"
        tab.page.locator("input").fill("1000")
        assert tab.run(said) == "4.000: 0 of 3 good images raise a false alarm, 2 of 2 defective ones are missed"
        assert not tab.errors


def test_learning_curves_draw_what_was_measured():
    found = {"a": {"step": [10, 20], "loss": [3.0, 2.0], "image_auroc": [0.5, 0.75], "pixel_auroc": [None, None]}}
    found["b"] = {"step": [10], "aupro_30": [0.25], "image_auroc": [0.5]}
    figure = book_figures.learning_curves(found)
    (line,), (same, other) = (axis.lines for axis in figure.axes)
    assert line.get_ydata().tolist() == [50.0, 75.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["image AUROC", "AUPRO@0.3"]
    assert line.get_color() == same.get_color() != other.get_color()


def test_compare_maps_shows_truth_and_leaves_a_missing_run_grey(maps):
    images = [np.zeros((12, 12, 3), np.uint8)] * 2
    figure = figures.compare_maps(images, {"a": list(maps[0][:2]), "b": [None, maps[0][1]]}, masks=list(maps[1][-2:]))
    axes = np.array(figure.axes[:8]).reshape(4, 2)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["image", "truth", "a", "b"]
    assert [len(axis.images) for axis in axes[3]] == [0, 1]


def test_panels_share_one_legend_and_keep_the_order_of_appearance():
    table = pd.DataFrame({"kind": list("bbaac"), "x": [0, 1, 0, 1, 0], "y": range(5)})
    figure = book_figures.panels(table, "kind", lambda axis, rows: axis.plot(rows.x, rows.y, label="line"), columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["b", "a", "c", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["line"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 1, 1, 0]


def test_a_figure_is_written_as_picture_and_as_vectors_with_the_same_bytes(tmp_path, monkeypatch, scores):
    monkeypatch.setenv("ADLIB_FIGURES", str(tmp_path))
    written = []
    for _ in range(2):
        figures.save(book_figures.score_histogram(scores, 0.5), "x", vector=True)
        written.append([(tmp_path / f"x.{suffix}").read_bytes() for suffix in ("png", "pdf")])
    assert written[0] == written[1]
    assert written[0][1].startswith(b"%PDF")


def _shown(figure):
    """Titles of the upper row of a grid of maps, and the shape of what each axis shows."""
    axes = [axis for axis in figure.axes if axis.images]
    return [axis.get_title() for axis in axes if axis.get_title()], {axis.images[0].get_size() for axis in axes}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("shape", "n_normal", "kinds", "flat", "n_masks", "best", "missed"),
    [
        ((40, 40), 3, 11, False, 14, ["good", "k00", "k01", "k02", "k03", "k04"], 6),
        ((24, 96), 0, 2, False, 0, ["k00", "k01"], 2),  # no normal image; at original resolution no masks either
        ((96, 24), 2, 0, False, 2, ["good"], 2),
        ((40, 40), 1, 0, True, 1, ["good"], 1),  # one image in all, with one value
        ((96, 24), 1, 1, True, 2, ["good", "k00"], 2),
    ],
)
def test_no_shape_of_data_breaks_a_picture(shape, n_normal, kinds, flat, n_masks, best, missed, tmp_path):
    rng = np.random.default_rng(0)
    defect = ["good"] * n_normal + [f"k{i:02d}" for i in range(kinds)]
    table = pd.DataFrame({"defect": defect, "label": [int(d != "good") for d in defect], "category": "plate"})
    table["score"] = 1.0 if flat else rng.random(len(table))
    table["image_path"] = [write_image(tmp_path / f"{i}.png", np.zeros((*shape, 3), np.uint8)) for i in table.index]
    maps = [np.ones(shape) if flat else rng.random(shape) for _ in defect]
    masks = [np.full(shape, False) for _ in range(n_masks)]
    result, method = evaluation.Evaluation(table, {}, {}, maps, masks), SimpleNamespace(resize=images.Resize(shape))
    gallery = figures.gallery(result, method, "t")
    assert _shown(gallery) == (best, {shape})
    assert gallery.get_suptitle() == ("t (5 of 11 kinds of defect)" if kinds > 5 else "t")
    titles, shapes = _shown(figures.misses(result, method))
    assert (len(titles), shapes) == (missed, {shape})
    assert [title.split(":")[0] == "good" for title in titles] == [False] * min(kinds, 3) + [True] * n_normal
    width, height = gallery.get_size_inches()
    assert max(width, height) < 14

    histogram = book_figures.score_histogram(table)
    assert sum(patch.get_height() for patch in histogram.axes[0].patches) == len(table)
    assert len({text.get_text() for text in histogram.axes[0].get_legend().get_texts()}) == kinds + (n_normal > 0)
    (line,) = book_figures.score_histogram(table, SimpleNamespace(value=0.5)).axes[0].lines
    assert line.get_xdata()[0] == 0.5
    one_class = n_normal == 0 or kinds == 0
    roc = book_figures.curves({"a": (table, np.array(maps), np.array(masks))}).axes[0]
    assert (len(roc.lines[0].get_xdata()) == 0) == one_class
    book_figures.score_histograms({"a": (table, None), "b": (table, 0.5)}).draw_without_rendering()
    by_kind = book_figures.auroc_by_defect(table)
    assert list(by_kind.index) == defect[n_normal:]
    assert by_kind.isna().all() == one_class
    figures.compare_maps(maps[:1], {"a": [None]}).draw_without_rendering()  # no run at all
