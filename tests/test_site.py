"""The site: pages from results, sound links, a console without errors, and a threshold that moves.

A small site of three notebooks is built here once. `make site-test` runs the same checks over the whole built site
(`ADLIB_SITE=build/site`).
"""

import base64
import html.parser
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import numpy as np
import pytest
from conftest import RECORD, SMALL_SETTINGS, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adlib.paths import root
from adlib_book import site

NOTEBOOKS = ("00_start_here", "10_patchcore", "14_ulsad")
HERE = root()


def small_root(folder: Path) -> Path:
    """A repository with three notebooks and what the site needs beside them."""
    for name in ("site", "profiles"):
        shutil.copytree(HERE / name, folder / name)
    for name in ("notebooks", "figures"):
        (folder / name).mkdir()
    shutil.copy(HERE / "figures/00_start_here.png", folder / "figures")
    others = rf"\[([\w -]+)\]\((?:notebooks/)?(?!(?:{'|'.join(NOTEBOOKS)})\.)\w+\.ipynb\)"
    files = [f"notebooks/{name}.ipynb" for name in NOTEBOOKS] + [f"site/{file.name}" for file in HERE.glob("site/*.md")]
    for file in files:  # links to the other notebooks would lead nowhere
        (folder / file).write_text(re.sub(others, r"\1", (HERE / file).read_text()))
    return folder


RECORD = RECORD | {
    "method": "patchcore", "dataset": "demo", "category": "gear", "profile": "smoke", "seed": 0,
    "parameters": {"coreset": 0.05, "note": "a|b <script>"}, "notebook": "notebooks/10_patchcore.ipynb",
    "metrics": {"image_auroc": 0.9375, "pixel_auroc": None, "aupro_30": None},
    "threshold": {"value": 1.25, "rule": "quantile"}, "at_threshold": {"detection_rate_by_defect": {"dent": 0.5}},
}  # fmt: skip
TABLE = """<!DOCTYPE html><html><head><style>td { color: red; }</style></head><body>
<style>#T1 td { color: #c00000; }</style><table id="T1" class="adlib"><caption>Scores &amp; more</caption>
<thead><tr><th></th><th>score</th></tr><tr><th>set</th><th></th></tr></thead><tbody>
<tr><th rowspan="2">a</th><td><a href="../runs/smoke/patchcore/demo-gear-seed0/record.json">9.5</a></td></tr>
<tr><td></td></tr><tr><th>b</th><td><a href="../runs/smoke/patchcore/gone/record.json">10.25</a></td></tr>
<tr><th>c</th><td>-1</td></tr><tr><th>mean</th><td>0</td></tr></tbody></table><ul><li>Percent.</li></ul></body></html>"""


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """A built site of three notebooks, one table, one record and one damaged record."""
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name, reason="the site needs pip install -e '.[site]'")
    folder = tmp_path_factory.mktemp("site")
    results = folder / "results"
    for name, text in (("demo-gear-seed0", json.dumps(RECORD)), ("demo-tray-seed0", "{")):
        (results / "runs/smoke/patchcore" / name).mkdir(parents=True)
        (results / "runs/smoke/patchcore" / name / "record.json").write_text(text)
    (results / "tables").mkdir()
    (results / "tables/smoke_scores.html").write_text(TABLE)
    (results / "tables/smoke_scores.csv").write_text("set,score\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADLIB_ROOT", str(small_root(folder / "repository")))
        patch.setenv("ADLIB_RESULTS", str(results))
        site.build("smoke", folder / "out", categories=())
    write_small_maps(folder / "out" / "threshold")
    return folder / "out"


def write_small_maps(folder: Path) -> None:
    """Two good and two defective images of 8 x 8 pixels whose highest scores are 10, 60, 50 and 200."""
    maps, masks = np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8), bool)
    maps[:, 0, 0] = 10, 60, 50, 200
    masks[2:, 0, :2] = True
    picture = site._jpeg(np.full((8, 8, 3), 90, np.uint8))
    kinds = (("good", 0), ("good", 0), ("dent", 1), ("hole", 1))
    images = [{"name": str(i), "defect": d, "label": n, "photo": picture} for i, (d, n) in enumerate(kinds)]
    packed = {"maps": site._packed(maps), "masks": site._packed(np.packbits(masks))}
    data = {"category": "small", "size": 8, "low": 0.0, "high": 25.5, "threshold": 55, "images": images, **packed}
    site._write_script(folder / "small.js", "adlibMaps", data)
    site._write_script(folder / "sets.js", "adlibSets", ["small"])


class Links(html.parser.HTMLParser):
    """Collects what a page links to and what can be linked to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.update(values[key] for key in ("id", "name") if values.get(key))
        self.links += [(tag, values[key]) for key in ("href", "src") if values.get(key)]


@pytest.fixture(scope="module")
def tab():
    """A headless Chromium."""
    if not browser.find():
        pytest.skip("no Chromium on this machine (set CHROMIUM to its path)")
    with browser.open_tab() as made:
        yield made


# -- the small site ---------------------------------------------------------------------------------------------------


TABLE_PAGE, RUN = "tables/table_smoke_scores", "smoke/patchcore/demo-gear-seed0"
HELD = {
    TABLE_PAGE: f"""href="../records/{RUN}.html"|<td>10.25</td>|#T1 td {{ color: #c00000; }}|<h1>Scores &amp; more
        |<li>Percent.</li>""",  # the record of 10.25 is gone
    f"records/{RUN}": """<th>image auroc</th><td>93.75</td>|<th>pixel auroc</th><td></td>|a\x7fb &lt;script&gt;|dent 0.5
        |href="../../../notebooks/10_patchcore.html\"""",
    "records/index": f'demo-tray-seed0|not valid JSON|href="{RUN}.html"',  # a damaged record is named, the rest shown
}


@pytest.mark.parametrize("page", HELD)
def test_a_page_holds(small_site, page):
    text = (small_site / f"{page}.html").read_text()
    assert [part for part in HELD[page].split("|") if part.strip().replace("\x7f", "|") not in text] == []
    assert "td { color: red; }" not in text  # the style of a table's own page


def test_a_notebook_is_offered_and_its_solutions_are_folded(small_site):
    text = (small_site / "notebooks/10_patchcore.html").read_text()
    assert re.search(r'href="\.\./_downloads/\w+/10_patchcore\.ipynb"', text)
    assert "Colab" not in text  # where no setting names the repository
    assert 'href="../glossary.html"' in text
    assert text.index("Show the solution") < text.index("farthest</span><span")


def test_where_a_notebook_runs_without_an_installation(monkeypatch):
    monkeypatch.setattr(site, "REPOSITORY", "https://github.com/a/b")
    assert "/github/a/b/blob/main/notebooks/x.ipynb)" in site.offers("x.ipynb")
    assert "/gh/a/b/main?labpath=notebooks/x.ipynb)" in site.offers("x.ipynb")


@pytest.mark.parametrize(("words", "page"), [("coreset", "10_patchcore"), ("threshold", "threshold.html")])
def test_search_finds(small_site, tab, words, page):
    tab.open(f"{(small_site / 'search.html').as_uri()}?q={words}")
    tab.wait_for("document.querySelectorAll('#search-results li a').length > 0")
    assert page in tab.run("document.querySelector('#search-results li a').href")
    assert not tab.errors


def test_tables_sort_by_number_and_keep_means_last(small_site, tab):
    tab.open((small_site / "tables/table_smoke_scores.html").as_uri())
    rows = "[...document.querySelectorAll('table.adlib tbody tr')].map(r => r.innerText.trim().split(/\\s+/).join(' '))"
    click = "[...document.querySelectorAll('button.sort')].find(b => b.innerText.startsWith('score')).click()"
    assert tab.run(rows) == ["a 9.5", "a", "b 10.25", "c -1", "mean 0"]
    tab.run(click)
    assert tab.run(rows) == ["c -1", "a 9.5", "b 10.25", "a", "mean 0"]
    tab.run(click)
    assert tab.run(rows) == ["b 10.25", "a 9.5", "c -1", "a", "mean 0"]
    tab.run(click)
    assert tab.run(rows) == ["a 9.5", "a", "b 10.25", "c -1", "mean 0"]


COUNTS = "['n-found', 'n-false', 'recall', 'precision'].map(id => document.getElementById(id).textContent)"


def set_threshold(tab, value):
    tab.run(f"""(() => {{ const slider = document.getElementById("threshold"); slider.value = {value};
        slider.dispatchEvent(new Event("input"));
        return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); }})()""")


def test_moving_the_threshold_changes_what_is_counted(small_site, tab):
    tab.open((small_site / "threshold.html").as_uri())
    tab.wait_for("document.querySelectorAll('#cards figure').length === 4")
    assert tab.run(COUNTS) == ["1 of 2", "1 of 2", "25.0 %", "50.0 %"]  # at 55: 60 is a false alarm, 50 is missed
    set_threshold(tab, 50)
    assert tab.run(COUNTS) == ["2 of 2", "1 of 2", "50.0 %", "66.7 %"]
    set_threshold(tab, 61)
    assert tab.run(COUNTS) == ["1 of 2", "0 of 2", "25.0 %", "100.0 %"]
    assert tab.run("document.getElementById('threshold-value').textContent") == "6.10"
    states = "[...document.querySelectorAll('#cards figure')].map(f => f.className)"
    assert tab.run(states) == ["missed", "found", "passed", "passed"]
    tab.run("""(() => { const f = document.getElementById("filter"); f.value = "missed";
        f.dispatchEvent(new Event("change")); })()""")
    tab.wait_for("[...document.querySelectorAll('#cards figure')].filter(f => !f.hidden).length === 1")
    tab.run("document.getElementById('threshold').focus()")
    tab.page.keyboard.press("ArrowRight")
    tab.wait_for("document.getElementById('threshold').value === '62'")
    assert not tab.errors


# -- the small site and, where it is built, the whole one -------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_site():
    """The site that `make site` built, for `make site-test`."""
    place = os.environ.get("ADLIB_SITE")
    if not place:
        pytest.skip("make site-test runs this over the whole site")
    folder = Path(place).resolve()
    assert (folder / "index.html").is_file(), f"{folder} holds no site: make site"
    return folder


@pytest.fixture(params=["small_site", "whole_site"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_links(folder):
    """Every link leads to a file of the site and to a place in it; nothing is loaded from another host."""
    pages = {page: Links(page.read_text()) for page in folder.rglob("*.html")}
    broken = []
    for page, parsed in pages.items():
        for tag, link in parsed.links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto") or url.netloc:
                if tag != "a":
                    broken.append(f"{page.name} loads {link}")
                continue
            if url.scheme:  # data:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not target.is_file():
                broken.append(f"{page.name}: {link} does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                broken.append(f"{page.name}: nothing is called {link}")
    assert len(pages) > 5
    assert not broken, "\n".join(broken[:20])


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_console(folder, tab, width, height):
    """Every page opens without an error in the console, without the network, and without scrolling sideways."""
    tab.resize(width, height, phone=width < 500)
    found = []
    for page in sorted(folder.rglob("*.html")):
        tab.open(page.as_uri())
        found += [f"{page.relative_to(folder)}: {error}" for error in tab.errors]
        if tab.run("document.documentElement.scrollWidth > window.innerWidth"):
            found.append(f"{page.relative_to(folder)} is wider than the window")
    assert not found, "\n".join(found[:20])


def test_formulas(folder, tab):
    """Every formula of a notebook is set on its page, in order and from the very same source."""
    for page in sorted((folder / "notebooks").glob("*.html")):
        book = nbformat.read(HERE / f"notebooks/{page.stem}.ipynb", as_version=4)
        prose = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        prose = re.sub(r"```.*?```|`[^`]*`", "", prose, flags=re.DOTALL)
        written = ["".join(pair) for pair in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", prose, re.DOTALL)]
        tab.open(page.as_uri())
        shown = tab.run("[...document.querySelectorAll('.katex annotation')].map(a => a.textContent)")
        assert ["".join(tex.split()) for tex in shown] == ["".join(tex.split()) for tex in written], page.stem
        assert not tab.errors


FORMULAS = {  # as an earlier converter got them wrong
    r"\tfrac12 P": r"<mfrac><mn>1</mn><mn>2</mn></mfrac></mstyle><mi>P</mi>",
    r"\hat f_l": r'<msub><mover accent="true"><mi>f</mi><mo>^</mo></mover><mi>l</mi></msub>',
    r"\underbrace{ab}_c": r"<munder><munder><mrow><mi>a</mi><mi>b</mi></mrow><mo .*</munder><mi>c</mi></munder>",
}


def test_what_a_formula_means_is_kept(small_site, tab):
    tab.open((small_site / "index.html").as_uri())
    for tex, mathml in FORMULAS.items():
        assert re.search(mathml.replace("^", r"\^"), tab.run(f"katex.renderToString({json.dumps(tex)})"))


def test_every_notebook_is_in_the_whole_site(whole_site):
    names = {file.stem for file in (HERE / "notebooks").glob("[!.]*.ipynb")}
    assert names == {file.stem for file in (whole_site / "notebooks").glob("*.html")}


@pytest.mark.parametrize("category", site.THRESHOLD_CATEGORIES)
def test_threshold_page_of_the_whole_site(whole_site, tab, category):
    tab.open((whole_site / "threshold.html").as_uri())
    tab.run(f"""(() => {{ const c = document.getElementById("category"); c.value = "{category}";
        c.dispatchEvent(new Event("change")); }})()""")
    tab.wait_for(f"adlibShown() === '{category}' && document.querySelectorAll('#cards figure').length > 20")
    counts = []
    for value in (1, 40, 120, 255):
        set_threshold(tab, value)
        counts.append([int(text.split()[0]) for text in tab.run(COUNTS)[:2]])
    assert counts == sorted(counts, reverse=True)  # raising the threshold never finds more
    assert counts[0] > counts[-1]
    assert not tab.errors


# -- the parts --------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, (2, 5, 5), elements=st.floats(-1e3, 1e3, width=32)), st.integers(0, site.STEPS))
def test_a_quantised_map_is_thresholded_as_the_map_itself(maps, step):
    quantised, levels = site.quantise(maps)
    if levels[0] < levels[-1]:
        np.testing.assert_array_equal(quantised >= step, maps.astype(np.float64) >= levels[step])
        assert (levels[0], levels[-1]) == (maps.min(), maps.max())


def test_threshold_maps_hold_what_the_method_gave(small_table):
    made = site._threshold_maps(small_table, SMALL_SETTINGS["patchcore"] | {"seed": 0})
    maps = np.frombuffer(zlib.decompress(base64.b64decode(made["maps"])), np.uint8).reshape(7, 64, 64)
    masks = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(made["masks"])), np.uint8)).reshape(7, 64, 64)
    labels = np.array([image["label"] for image in made["images"]])
    assert (made["size"], labels.sum(), maps.min(), maps.max()) == (64, 4, 0, 255)
    assert masks.sum(axis=(1, 2)).tolist() == [256 * label for label in labels]  # the holes are 16 x 16 pixels
    assert maps[labels == 1].max(axis=(1, 2)).min() > maps[labels == 0].max()  # holes of noise stand out
    assert 1 <= made["threshold"] <= 255
    assert made["images"][0]["photo"].startswith("data:image/jpeg;base64,")


def test_threshold_maps_are_made_again_only_when_something_changed(tmp_path, monkeypatch, small_table):
    calls = []
    monkeypatch.setattr(site.datasets, "load", lambda *_: small_table)
    monkeypatch.setattr(site, "_threshold_maps", lambda *_: calls.append(1) or {"size": 1})
    site.write_threshold_maps(tmp_path, ("plate",))
    site.write_threshold_maps(tmp_path, ("plate",))
    assert len(calls) == 1
    assert (tmp_path / "sets.js").read_text() == 'adlibSets(["plate"]);\n'
    file = tmp_path / "plate.js"
    file.write_text(file.read_text().replace('"hash": "', '"hash": "0'))
    site.write_threshold_maps(tmp_path, ("plate",))
    assert len(calls) == 2


def test_notebooks_fall_back_to_the_committed_copy_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_ROOT", str(small_root(tmp_path / "repository")))
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path / "results"))
    executed = tmp_path / "results/notebooks/smoke"
    executed.mkdir(parents=True)
    committed = "the committed copy of what was not run in profile 'smoke': "
    assert site.write_notebooks("smoke", tmp_path / "a") == [committed + ", ".join(NOTEBOOKS)]

    book = nbformat.read(tmp_path / "repository/notebooks/00_start_here.ipynb", as_version=4)
    book.cells[0].source += " executed"
    nbformat.write(book, executed / "00_start_here.ipynb")
    (executed / "10_patchcore.ipynb").write_text("{")
    damaged = "10_patchcore: the committed copy (notebooks/smoke/10_patchcore.ipynb is damaged)"
    assert site.write_notebooks("smoke", tmp_path / "b") == [damaged, committed + "14_ulsad"]
    assert "executed" in nbformat.read(tmp_path / "b/00_start_here.ipynb", as_version=4).cells[0].source

    next(cell for cell in book.cells if cell.cell_type == "code").source += "\n# changed since"
    nbformat.write(book, executed / "00_start_here.ipynb")
    assert "another version" in site.write_notebooks("smoke", tmp_path / "c")[0]


@pytest.mark.parametrize(
    ("profile", "file", "message"), [("smoke", "thesis.txt", "no site"), ("smok", "index.html", "smok")]
)
def test_refused_before_anything_is_removed(tmp_path, monkeypatch, profile, file, message):
    monkeypatch.setattr(site.importlib.util, "find_spec", lambda name: None)
    refused("make site", site.build)
    monkeypatch.setattr(site.importlib.util, "find_spec", len)
    (tmp_path / file).write_text("mine")
    refused(message, site.build, profile, tmp_path)
    assert (tmp_path / file).read_text() == "mine"
