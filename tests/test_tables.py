"""Tables: what is compared, what is marked, what is missing; and the committed ones are those of the records."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import RECORD, refused
from sklearn.metrics import roc_auc_score

from adlib.paths import root
from adlib_book import cli, published, published_tables, ranks, site, table_files, tables

LABELS, SCORES = [0, 0, 0, 1, 1, 1], [1, 2, 3, 2, 4, 5]  # 7 of 9 pairs and a tie: AUROC 7.5 / 9


@pytest.fixture
def write(tmp_path):
    """Return a function that writes one run: record and scores whose image AUROC is `auroc` (default 7.5 / 9)."""

    def run(method, dataset="mvtec_ad", category="screw", seed=0, profile="laptop", **changes):
        record = json.loads(json.dumps(RECORD)) | {"method": method, "dataset": dataset, "category": category}
        metrics = {"image_auroc": 7.5 / 9, "pixel_auroc": 0.9, "aupro_30": 0.8, "aupro_05": None}
        metrics = dict.fromkeys(tables.METRICS) | metrics | changes.pop("metrics", {})
        record |= {"seed": seed, "profile": profile, "metrics": metrics}
        for key in ("parameters", "protocol"):
            record[key] |= changes.pop(key, {})
        folder = tmp_path / "runs" / profile / method / f"{dataset}-{category}-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record | changes))
        names = [f"{i}.png" for i in range(6)]
        scores = pd.DataFrame({"image_path": names, "label": LABELS, "score": SCORES})
        scores.to_csv(folder / "scores.csv", index=False)
        return folder

    return run


def table_of(folder, name):
    return next(table for table in table_files.build("laptop", folder) if table.name == name)


# -- what is compared -------------------------------------------------------------------------------------------------


def test_mean_deviation_and_links_over_seeds(write, tmp_path):
    for seed, value in enumerate((0.8, 0.9)):
        write("patchcore", seed=seed, metrics={"pixel_auroc": value})
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    assert table.text.loc["screw", "patchcore"] == "85.00 ± 7.07"  # sd with n - 1
    assert table.data.iloc[0][["mean", "sd", "seeds"]].tolist() == [85.0, 7.07, "0 1"]
    runs = table.cells.at["screw", "patchcore"].runs
    assert runs == [f"laptop/patchcore/mvtec_ad-screw-seed{seed}" for seed in (0, 1)]
    page = table_files.html(table)
    assert all(f'<a href="../runs/{run}/record.json">' in page for run in runs)


def test_means_are_over_categories_and_have_no_gaps(write, tmp_path):
    """Carpet and tile are textures, screw is an object: the mean of all is not the mean of the group means."""
    for category, value in (("carpet", 0.9), ("tile", 0.8), ("screw", 0.4)):
        write("patchcore", category=category, metrics={"pixel_auroc": value})
    write("dfr", category="carpet")
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    text = table.text
    means = ["mean of textures (2 of 5)", "mean of objects (1 of 10)", "mean of all (3 of 15)"]
    assert list(text.index) == ["carpet", "screw", "tile", *means]
    assert text.patchcore.tolist()[3:] == ["85.00", "40.00", "70.00"]  # (85 + 40) / 2 would be 62.5
    assert text.dfr.tolist() == ["90.00", "–", "–", "–", "–", "–"]  # no mean over other categories than the neighbour's
    assert any(note.startswith("No record at all: bottle, cable") for note in table.notes)


def test_average_ranks_are_over_the_methods_that_have_every_category(write, tmp_path):
    for category, values in {"carpet": (0.9, 0.8), "tile": (0.9, 0.90001), "screw": (0.7, 0.6)}.items():
        for method, value in zip(("patchcore", "padim"), values, strict=True):
            write(method, category=category, metrics={"pixel_auroc": value})
    write("glass", category="carpet", metrics={"pixel_auroc": 0.99})  # would be first where it has a record
    for category in ("carpet", "tile", "screw"):
        write("dfr", category=category, protocol={"selection": "oracle"}, metrics={"pixel_auroc": 1.0})
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    row = table.text.loc["average rank (3 categories)"]
    # 1, 1.5 and 1: equal at two decimals share a rank
    assert row[["patchcore", "glass", "padim"]].tolist() == ["1.17", "–", "1.83"]
    assert row["dfr (oracle: step chosen on the test set)"] == "–"
    assert not any(cell.rank for cell in table.cells.loc[row.name])
    assert "1.17" in table_files.html(table)
    assert r"1.17 & -- &" in table_files.latex(table) or "1.17 & – &" in table_files.latex(table)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"protocol": {"image_size": 224}}, "dfr (224 px)"),
        ({"protocol": {"image_size": [288, 448], "side": 256}}, "dfr"),  # the images' shape, the others' pixels
        ({"parameters": {"resize": 256}}, "dfr (256)"),
        ({"parameters": {"backbone": "resnet18"}}, "dfr (resnet18)"),
        ({"parameters": {"backbone": None}}, "dfr"),  # a method without one
        ({"protocol": {"resolution": "original"}}, "dfr (original)"),
        ({"protocol": {"selection": "oracle"}}, "dfr (oracle: step chosen on the test set)"),
        ({"protocol": {"selection": "synthetic"}}, "dfr"),  # never looks at test images
    ],
)
def test_another_protocol_gets_its_own_column(write, tmp_path, changes, column):
    write("patchcore", metrics={"pixel_auroc": 0.7})
    write("padim", metrics={"pixel_auroc": 0.8})
    write("dfr", metrics={"pixel_auroc": 0.95}, **changes)
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    assert list(table.text.columns) == ["patchcore", "padim", column]
    assert table.cells.at["screw", column].rank == (0 if "oracle" in column else 1)


@pytest.mark.parametrize(
    ("method", "changes", "columns"),
    [
        ("dfr", [{}, {}, {"parameters": {"backbone": "resnet18"}}], ["dfr", "dfr (resnet18)"]),
        ("dfr", [{}, *({"weights": {"hash": f"{h}0000000-"}} for h in "aab")], ["dfr", "dfr (weights b0000000)"]),
        ("glass", [{"protocol": {"selection": name}} for name in ("last", "synthetic")],
         ["glass (step: last)", "glass (step: synthetic)"]),
        ("few_shot", [{"parameters": {"k": k}} for k in (1, 4)], ["few_shot (1 shots)", "few_shot (4 shots)"]),
    ],
)  # fmt: skip
def test_seeds_on_other_backbones_selections_or_shots_are_never_averaged(write, tmp_path, method, changes, columns):
    for seed, change in enumerate(changes):
        write(method, seed=seed, **change)
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    assert list(table.text.columns) == columns
    assert any("features of tf_efficientnet_lite0" in note for note in table.notes) or method != "dfr"


def test_seeds_of_other_settings_are_remarked(write, tmp_path):
    write("glass", parameters={"textures": "dtd", "seed": 0})
    write("glass", seed=1, parameters={"seed": 1})
    write("dfr", parameters={"seed": 0})
    write("dfr", seed=1, parameters={"seed": 1})
    for name in ("laptop_headline", "laptop_mvtec_ad_pixel_auroc"):
        found = [note for note in table_of(tmp_path, name).notes if "the seeds differ" in note]
        assert found == ["mvtec_ad / screw, glass: the seeds differ in textures too."]


def test_records_of_other_images_are_left_out_and_named(write, tmp_path):
    write("patchcore")
    write("padim")
    write("dfr", table_hash="other")
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    assert list(table.text.columns) == ["patchcore", "padim"]
    assert "laptop/dfr/mvtec_ad-screw-seed0 was made on other images" in table.left_out[0]


def test_a_damaged_record_leaves_a_mark(write, tmp_path, capsys):
    write("patchcore")
    (write("dfr") / "record.json").write_text("{")
    (write("glass", category="grid") / "record.json").write_text("[]")
    table = table_of(tmp_path, "laptop_mvtec_ad_image_auroc")
    assert table.text.loc["screw", "dfr"] == table.text.loc["grid", "glass"] == "×"
    assert table.text.loc["grid", "patchcore"] == "–"
    places = [line.split("/record.json is damaged")[0] for line in table.left_out]
    assert places == [f"runs/laptop/{run}-seed0" for run in ("dfr/mvtec_ad-screw", "glass/mvtec_ad-grid")]
    assert cli.main(["tables", "--profile", "laptop", "--results", str(tmp_path)]) == 1
    assert "left out: runs/laptop/dfr/mvtec_ad-screw-seed0/record.json is damaged" in capsys.readouterr().err
    for suffix in ("md", "html", "tex"):
        text = (tmp_path / f"tables/laptop_mvtec_ad_image_auroc.{suffix}").read_text()
        assert "×" in text.replace(r"$\times$", "×")
        assert str(tmp_path) not in text


def test_ranks_are_shared_by_equal_values():
    values = pd.DataFrame({"a": [90.001], "b": [90.004], "c": [80.0], "d": [np.nan], "e": [70.0], "f": [95.0]})
    values = values.rename(columns={"f": "f (oracle: step chosen on the test set)"})
    assert tables.rank(values).iloc[0].tolist() == [1, 1, 3, 0, 0, 0]  # rank 3: two share rank 1


# -- intervals --------------------------------------------------------------------------------------------------------


def test_pair_wins_are_the_auroc_of_every_resample():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 6, 40).astype(float)  # many ties
    wins = tables.pair_wins(labels, scores)
    assert wins.mean() == pytest.approx(roc_auc_score(labels, scores))
    chosen = rng.choice(40, 40)
    times = np.bincount(chosen, minlength=40)
    bad, good = times[labels == 1], times[labels == 0]
    weighted = bad @ wins @ good / bad.sum() / good.sum()
    assert weighted == pytest.approx(roc_auc_score(labels[chosen], scores[chosen]))


def test_interval_comes_from_the_scores_and_scores_must_fit_the_record(write, tmp_path):
    write("patchcore")
    broken, wrong = write("dfr"), write("glass")
    (broken / "scores.csv").unlink()
    pd.read_csv(wrong / "scores.csv").assign(score=1.0).to_csv(wrong / "scores.csv", index=False)
    headline = table_of(tmp_path, "laptop_headline")
    interval = headline.text.set_index("method")["95 % interval"]
    low, high = map(float, interval["patchcore"].split(" to "))
    assert low < 100 * 7.5 / 9 < high <= 100
    assert interval["dfr"] == interval["glass"] == ""
    assert any("dfr/mvtec_ad-screw-seed0/scores.csv: it is missing" in line for line in headline.left_out)
    assert any("glass" in line and "do not give the image AUROC" in line for line in headline.left_out)


# -- what is missing --------------------------------------------------------------------------------------------------


def test_coverage_counts_what_is_missing(write, tmp_path):
    write("patchcore")
    write("patchcore", seed=1)
    table = table_of(tmp_path, "laptop_coverage")
    assert table.text.loc["mvtec_ad", "patchcore"] == "1 of 15, 2 seeds"
    assert table.text.loc["visa", "patchcore"] == table.text.loc["mvtec_ad", "glass"] == "–"
    line = table.data[(table.data.dataset == "mvtec_ad") & (table.data.method == "patchcore")].iloc[0]
    assert len(line.missing.split()) == 14
    empty = table_files.build("laptop", write("dfr", profile="smoke").parents[3].parent)
    assert {*tables.PAPER_DATASETS, "elpv"} <= set(empty[0].text.index)


def test_missing_names_expected_runs():
    expected = [{"profile": "p", "method": "a", "dataset": "d", "category": "x", "seed": s} for s in (0, 1, 2)]
    assert tables.missing(pd.DataFrame(expected[:2]), expected) == ["p/a/d/x/2"]
    assert len(tables.missing(pd.DataFrame(), expected)) == 3


def test_logical_and_structural_apart(write, tmp_path):
    kinds = {kind: {"image_auroc": v, "spro_05": v / 2} for kind, v in (("logical", 0.6), ("structural", 0.8))}
    write("ulsad", "mvtec_loco", "pushpins", by_kind=kinds | {"mean": {"image_auroc": 0.7, "spro_05": None}})
    text = table_of(tmp_path, "laptop_logical_structural").text.iloc[0]
    columns = ["image AUROC, logical", "sPRO@0.05, structural", "sPRO@0.05, mean"]
    assert text[columns].tolist() == ["60.00", "40.00", ""]


def test_kinds_are_ranked_linked_and_averaged_over_categories(write, tmp_path):
    categories = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")
    for i, category in enumerate(categories):
        values = {"image_auroc": 0.5 + i / 10, "spro_05": None}
        write("ulsad", "mvtec_loco", category, by_kind=dict.fromkeys(("logical", "structural", "mean"), values))
    worse = {"image_auroc": 0.4, "spro_05": None}
    write("dfr", "mvtec_loco", "pushpins", by_kind=dict.fromkeys(("logical", "structural", "mean"), worse))
    table = table_of(tmp_path, "laptop_logical_structural")
    by_place = table.text.set_index(["data", "method"])["image AUROC, logical"]
    assert by_place["mvtec_loco / mean of 5", "ulsad"] == "70.00"
    assert ("mvtec_loco / mean of 5", "dfr") not in by_place.index  # it lacks four of them
    at = table.text.index[(table.text.data == "mvtec_loco / pushpins") & (table.text.method == "dfr")][0]
    assert table.cells.at[at, "image AUROC, logical"].rank == 2
    assert table.cells.at[at, "method"].runs == ["laptop/dfr/mvtec_loco-pushpins-seed0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_images": {}}, "n_images.train is 'missing'"),
        ({"timing": {"fit_s": "abc"}}, "timing.fit_s is 'abc'"),
        ({"protocol": {"image_size": "big"}}, "protocol.image_size is 'big'"),
        ({"protocol": {"selection": 3}}, "protocol.selection is 3"),
        ({"by_kind": {"logical": 3}}, "by_kind is "),
        ({"timing": {"fit_s": 10**400}}, "timing.fit_s is 1000"),
        ({"older": ["x"]}, "older is ['x']"),
    ],
)
def test_a_record_damaged_inside_is_named_and_left_out(write, tmp_path, changes, said):
    write("padim", "elpv", "mono")
    write("patchcore", **changes)
    made = {table.name: table for table in table_files.build("laptop", tmp_path)}
    coverage = made["laptop_coverage"]
    assert any(said in line for line in coverage.left_out)
    assert coverage.text.loc["mvtec_ad", "patchcore"] == "– ×"
    assert "laptop_mvtec_ad_pixel_auroc" not in made


def test_a_record_must_be_that_of_its_folder_and_the_only_one(write, tmp_path):
    write("dfr", metrics={"pixel_auroc": 0.7})
    other = write("dfr", seed=1)
    (other / "record.json").write_text((other / "record.json").read_text().replace('"seed": 1', '"seed": 0'))
    shutil.copytree(other.parent / "mvtec_ad-screw-seed0", tmp_path / "runs" / "laptop" / "dfr" / "copy")
    table = table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc")
    assert table.text.loc["screw", "dfr"].startswith("70.00")
    left_out = " ".join(table.left_out)
    assert "it is the record of laptop/dfr/mvtec_ad-screw-seed0" in left_out
    assert "repeats" in left_out


def test_tables_without_records_go_with_their_last_record(write, tmp_path):
    folder = write("dfr")
    write("padim", "elpv", "mono")
    table_files.write_all(results=tmp_path)
    mine = tmp_path / "tables" / "notes.md"
    mine.write_text("not a table")
    assert (tmp_path / "tables" / "laptop_mvtec_ad_pixel_auroc.csv").is_file()
    shutil.rmtree(folder)
    table_files.write_all(results=tmp_path)
    left = {file.name for file in (tmp_path / "tables").iterdir()}
    assert "laptop_elpv_image_auroc.csv" in left
    assert not [name for name in left if "mvtec_ad" in name and name.startswith("laptop_")]
    assert mine.is_file()


# -- published beside measured ----------------------------------------------------------------------------------------


def test_gap_and_known_differences_come_from_facts(write, tmp_path):
    write("patchcore", metrics={"pixel_auroc": 0.9})
    same = {"backbone": "wide_resnet50_2.tv_in1k", "resize": 256}
    full = {"train": 320, "test_normal": 41, "test_anomalous": 119}
    write("patchcore", seed=1, profile="paper", parameters=same, protocol={"image_size": 224}, n_images=full)
    line = table_of(tmp_path, "laptop_beside_published").text.set_index("metric").loc["pixel AUROC"]
    assert (line.published, line.gap) == ("99.52", "-9.52")
    assert line["known differences"] == (
        "backbone tf_efficientnet_lite0, not WideResNet50-2; 256 px, not 224 px; 10 of 320 training images; "
        "6 of 160 test images; settings other than the published ones: resize"
    )
    paper = next(t for t in table_files.build("paper", tmp_path) if t.name == "paper_beside_published")
    assert paper.text.iloc[0]["known differences"] == "none known: the gap is unexplained"


def test_a_full_data_set_is_held_against_the_published_mean(write, tmp_path):
    for i, category in enumerate(("01", "02", "03")):
        write("patchcore", "btad", category, metrics={"pixel_auroc": 0.9 + i / 100})
    cells = tables.make_cells(tables.read("laptop", tmp_path))
    mean = next(c for c in published_tables._full_means(cells) if c.metric == "pixel_auroc")
    assert (mean.category, round(mean.mean, 6)) == ("mean", 91.0)


def test_published_tables_mark_second_hand_numbers_and_leave_out_unverified_ones():
    table = published_tables.by_category("mvtec_ad", "image_auroc")
    assert table.text.loc["pill", "PatchCore-1%"] == "97.0†"
    assert table.text.loc["pill", "PatchCore-1% (tiskw)"] == "94.5‡"
    assert table.text.loc["pill", "PatchCore-10% (official code)"] == "96.67"
    few = published_tables.means(few_shot=True).text
    assert "AnomalyGPT 4-shot" in set(few.method)
    assert "AnomalyGPT 2-shot" not in set(few[few["image AUROC"] == "95.5†"].method)
    assert (published.load().evidence == "unv").any()


# -- ranks ------------------------------------------------------------------------------------------------------------


def test_average_ranks_by_hand():
    table = pd.DataFrame({"a": [3, 3, 2.0], "b": [2, 2, 2.0], "c": [1, 1, 1.0]})
    found = ranks.average_ranks(table)
    assert found.average.to_dict() == pytest.approx({"a": 3.5 / 3, "b": 5.5 / 3, "c": 3})
    assert not found.enough
    assert "decides nothing" in str(found)


def test_critical_distance_is_demsars():
    """Table 5 of Demšar 2006: q_0.05 is 1.960 for 2 classifiers, 2.343 for 3, 2.728 for 5, 3.164 for 10."""
    for k, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        expected = q * np.sqrt(k * (k + 1) / 6 / 20)
        assert ranks.critical_distance(k, 20) == pytest.approx(expected, abs=1e-3)


def test_complete_block_leaves_out_what_has_gaps():
    nan = np.nan
    table = pd.DataFrame({"a": [1, 2, 3, 4], "b": [1, 2, nan, nan], "c": [1, nan, 3, nan]}, index=list("wxyz"))
    block = ranks.complete_block(table)
    assert block.size == 4
    assert list(block.columns) in (["a", "b"], ["a", "c"])
    assert ranks.complete_block(table[["a"]]).empty
    # The largest block is shared by three rows and is nobody's own: 3 x 3, where two rows would give 2 x 4.
    rows = {"x": "abcpq", "y": "abcpr", "z": "abcqr"}
    three = pd.DataFrame([{c: 1.0 if c in own else nan for c in "abcpqr"} for own in rows.values()], index=list(rows))
    block = ranks.complete_block(three)
    assert (list(block.index), list(block.columns)) == (["x", "y", "z"], ["a", "b", "c"])
    refused("gaps", ranks.average_ranks, table)


def test_critical_difference_diagram_joins_what_is_too_close():
    average = np.array([1.0, 1.5, 2.2, 4.0])
    assert ranks._groups(average, 1.3) == [(1.0, 2.2)]
    assert ranks._groups(average, 0.8) == [(1.0, 1.5), (1.5, 2.2)]
    assert ranks._groups(average, 0.1) == []
    figure = ranks.plot(ranks.average_ranks(pd.DataFrame({"a": [3, 2.0], "b": [2, 1.0]})))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("a  1.00" in text for text in texts)
    assert any("b" in text and "2.00" in text for text in texts)


# -- files ------------------------------------------------------------------------------------------------------------


def test_four_forms_of_one_table(write, tmp_path):
    write("patchcore", metrics={"pixel_auroc": 0.9})
    write("dfr", metrics={"pixel_auroc": 0.8})
    files = table_files.write(table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc"), tmp_path)
    assert [file.suffix for file in files] == [".csv", ".md", ".html", ".tex"]
    assert pd.read_csv(files[0])["mean"].tolist() == [90.0, 80.0]
    text = files[1].read_text()
    run = "../runs/laptop/patchcore/mvtec_ad-screw-seed0/record.json"
    assert f"| screw | **[90.00]({run})** |" in text
    assert (files[1].parent / run).resolve().is_file()
    link = r"\adlibrun{laptop/patchcore/mvtec_ad-screw-seed0}{90.00}"
    assert rf"\bfseries {link}" in files[3].read_text()
    before = [file.read_bytes() for file in files]
    table_files.write(table_of(tmp_path, "laptop_mvtec_ad_pixel_auroc"), tmp_path)
    assert [file.read_bytes() for file in files] == before


def test_latex_cells_link_to_every_seed_and_mask_odd_names(write, tmp_path):
    for seed in (0, 1):
        write("patchcore", "folder", "a#b_%", seed)
    text = table_files.latex(table_of(tmp_path, "laptop_folder_pixel_auroc"))
    run = r"laptop/patchcore/folder-a\#b_\%-seed"
    assert rf"\adlibrun{{{run}0}}{{90.00 $\pm$ 0.00}}\adlibseed{{{run}1}}{{seed1}} \\" in text
    odd = "<script>|\\^[x](javascript:y)"
    assert table_files._latex_text(odd) == r"<script>|\textbackslash{}\textasciicircum{}[x](javascript:y)"
    assert table_files._markdown_text(odd) == r"&lt;script>\|\\^&#91;x](javascript:y)"
    assert site.plain("# a\n<b> [x](y)") == r"\# a \<b\> \[x\]\(y\)"
    assert "adlib" not in table_files.latex(published_tables.means(few_shot=True))  # no records, no links


def test_readme_block_is_replaced_and_nothing_else(write, tmp_path):
    write("patchcore")
    headline, readme = table_of(tmp_path, "laptop_headline"), tmp_path / "README.md"
    readme.write_text("before\n\n<!-- results -->\nstale text\n<!-- /results -->\n\nafter\n")
    assert table_files.update_readme(headline, readme)
    text = readme.read_text()
    assert text.startswith("before\n\n<!-- results -->\n\n| data | method |")
    assert text.endswith("<!-- /results -->\n\nafter\n")
    assert "stale text" not in text
    assert "results/runs/laptop/patchcore/mvtec_ad-screw-seed0/record.json" in text
    assert not table_files.update_readme(headline, readme)
    readme.write_text("nothing")
    refused("expected the lines", table_files.update_readme, headline, readme)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A results folder with the committed records only, and the tables made from them."""
    folder = tmp_path_factory.mktemp("results")
    command = ["git", "ls-files", "results/runs"]
    listed = subprocess.run(command, cwd=root(), capture_output=True, text=True, check=False)
    names = listed.stdout.split()
    if listed.returncode or not names:
        pytest.skip("not a git checkout with committed records")
    for name in names:
        target = folder / Path(name).relative_to("results")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root() / name, target)
    table_files.write_all(results=folder)
    return folder / "tables"


def test_the_committed_tables_are_those_of_the_committed_records(committed):
    """Where this fails: `adlib tables` and commit what it writes."""
    own = root() / "results/tables"
    names = {f.name for f in committed.iterdir()}
    kept = {f.name for f in own.glob("laptop_*")} | {f.name for f in own.glob("published_*")}
    assert kept <= names <= {f.name for f in own.iterdir()}, "run `adlib tables`"
    stale = [name for name in sorted(names) if (own / name).read_bytes() != (committed / name).read_bytes()]
    assert not stale, "run `adlib tables`"


def test_the_readme_shows_the_committed_headline(committed, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(root() / "README.md", readme)
    headline = next(t for t in table_files.build("laptop", committed.parent) if t.name == "laptop_headline")
    assert not table_files.update_readme(headline, readme), "run `adlib tables`"


def test_latex_links_lead_to_committed_records(committed):
    text = (committed / "laptop_all.tex").read_text()
    assert r"\href{run:../runs/#1/record.json}{#2}" in text
    tables = "".join(file.read_text() for file in committed.glob("laptop_*.tex"))
    runs = set(re.findall(r"\\adlib\w+\{(laptop/[^}]+)\}", tables))
    assert len(runs) > 5
    assert all((committed.parent / "runs" / run / "record.json").is_file() for run in runs)


def test_latex_compiles(committed):
    """Also a table in somebody's own document, which has no links."""
    program = shutil.which("pdflatex") or shutil.which("tectonic")
    if program is None:
        pytest.skip("neither pdflatex nor tectonic is installed")
    lines = [r"\documentclass{article}", r"\usepackage{booktabs,xcolor}", r"\begin{document}"]
    lines += [r"\input{laptop_mvtec_ad_image_auroc.tex}", r"\end{document}"]
    (committed / "own.tex").write_text("\n".join(lines))
    for name in ("laptop_all.tex", "published_all.tex", "own.tex"):
        options = ["-interaction=nonstopmode", "-halt-on-error"] if program.endswith("pdflatex") else []
        done = subprocess.run([program, *options, name], cwd=committed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1500:]
        assert (committed / name).with_suffix(".pdf").stat().st_size > 10_000
