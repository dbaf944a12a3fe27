"""The repository itself: environments agree, notebooks keep the house's rules, nothing points at one machine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell

from adlib import profiles, source_files
from adlib.methods import METHODS
from adlib.paths import data_dir, root
from adlib_book import notebook_jobs

NOTEBOOKS = sorted(f for f in (root() / "notebooks").glob("*.ipynb") if f.name[0] != ".")


def test_conda_environment_equals_pyproject():
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted |= set(extra)
    environment = yaml.safe_load((root() / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert {line for line in pip if not line.startswith("--")} == wanted
    assert "--constraint constraints.txt" in pip


def test_every_dependency_is_pinned():
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in _constraints()}
    names = [re.split(r"[<>=!~ ]", d)[0].lower().replace("_", "-") for d in project["dependencies"]]
    assert set(names) <= pinned
    assert all("==" in line and "@" not in line for line in _constraints())


def _constraints():
    return [line for line in (root() / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]


def test_every_profile_is_valid():
    assert {"smoke", "laptop", "paper"} <= set(profiles.names())
    for name in profiles.names():
        assert profiles.load(name)["name"] == name
        profiles.check(name)


@pytest.mark.parametrize("name", [entry.notebook for entry in METHODS.values()])
def test_the_record_of_a_method_is_written_before_the_story(name):
    cells = nbformat.read(notebook_jobs.notebook_path(name), as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    (number,) = [i for i, cell in enumerate(code, 1) if "record" in cell.metadata.get("tags", [])]
    assert number <= max(7, 0.4 * len(code))  # parameters, seed, data, fit, evaluation, threshold, record


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    book = nbformat.read(path, as_version=4)
    assert book.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert "papermill" not in book.metadata
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", [])
    assert "seed" in code[1].source or "use_style" in code[1].source
    for cell in code:
        assert len(cell.source.splitlines()) <= 26, cell.source[:80]
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.source[:80]
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.source[:80]
        assert not re.search(r"/(home|root|work|tmp|Users)/", cell.source)
    assert any(cell.outputs for cell in code), "committed without outputs"
    assert path.stat().st_size < 600_000
    prose = sum(len(cell.source) for cell in book.cells if cell.cell_type == "markdown")
    assert prose > 800, "a notebook is prose first"


def test_committed_studies_have_a_producer():
    """Two files of earlier code have none; no third may join them."""
    code = [*(root() / "benchmarks").glob("*.py"), root() / "adlib_book/studies/audit.py"]
    text, notebooks = "".join(file.read_text() for file in code), {file.stem for file in NOTEBOOKS}
    files = (file.stem for file in (root() / "results/studies").glob("*.csv") if "_smoke" not in file.stem)
    stems = {stem.removesuffix("_laptop") for stem in files}
    stems -= {"glass_one_head", "pagmfr_remedies"}
    assert {"23_scorers", "audit", "ulsad_tray"} <= stems
    assert not [stem for stem in stems - notebooks if not re.search(rf"\b{stem}", text)]


@pytest.mark.parametrize("page", ["capabilities", "field_cases"])
def test_what_a_page_says_is_held_by_tests_and_files_is_there(page):
    text = (root() / f"site/{page}.md").read_text()
    tests = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    files = re.findall(r"`((?:adlib|notebooks|profiles|results)/[\w./]+)`", text)
    assert len(tests) > 30
    assert not [name for file, name in tests if f"def {name}(" not in (root() / "tests" / file).read_text()]
    assert not [file for file in files if not (root() / file).is_file()]


def test_no_tracked_file_points_at_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=root(), capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    here = str(root().parent) + "/"
    for name in files.stdout.split():
        file = root() / name
        if file.suffix in {".png", ".npz", ".pdf"} or not file.is_file() or len(here) < 4:
            continue
        text = file.read_text(errors="replace")
        assert here not in text, name
        assert str(Path.home()) + "/" not in text or str(Path.home()) == "/", name


def _module_imports() -> dict[str, set[str]]:
    """Module -> the modules of adlib and adlib_book that it imports, inside functions too; its own package left out."""
    files = [file for name in ("adlib", "adlib_book") for file in (root() / name).rglob("*.py")]
    names = {".".join(f.relative_to(root()).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    imported = {name: source_files.imported_modules(file.read_text()) for name, file in names.items()}

    def apart(name, other):
        return other in names and not f"{name}.".startswith(f"{other}.") and not other.startswith(f"{name}.")

    return {name: {other for other in others if apart(name, other)} for name, others in imported.items()}


def test_the_rooms_stay_apart():
    imports = _module_imports()
    for name, others in imports.items():
        if name.split(".")[0] == "adlib":
            assert not [other for other in others if other.startswith("adlib_book")], name
        if name.startswith(("adlib.datasets", "adlib.synthesis", "adlib.images")):
            assert not [other for other in others if other.startswith("adlib.methods")], name
    while leaves := [name for name, others in imports.items() if not others & imports.keys()]:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert not imports, f"modules that import each other, and what imports them: {sorted(imports)}"


TOY = """
from dataclasses import dataclass

from adlib.images import Resize, batches
from adlib.methods import Scores


@dataclass(frozen=True)
class Settings:
    image_size: int = 64
    seed: int = 0


class Toy:
    name, Settings = "toy", Settings

    def __init__(self, **settings):
        self.settings = Settings(**settings)
        self.resize = Resize(self.settings.image_size)

    def fit(self, table, validation=None):
        self.normal_scores = [self.score(batch).image[0] for batch in batches(table.image_path[:2], self.resize, 1)]
        return self

    def score(self, batch):
        maps = batch.images.mean(1).numpy()
        return Scores(maps.mean((1, 2)), maps)
"""
RESULT = """
from adlib import methods, runs
run = runs.Run("toy", notebook="17_toy.ipynb", profile=profile, dataset=dataset, data_root=data_root,
               category=category, seed=seed, settings=settings, out_dir=out_dir)
method = methods.create("toy", **run.settings).fit(run.train)
run.write(run.evaluate(method), run.threshold(method))
"""
BATCH = """
from adlib_book import cli, figures, notebook_jobs
job, = [job for job in notebook_jobs.plan("smoke") if (job.method, job.category) == ("toy", "gear")]
assert cli.main(job.command("results/runs/" + job.folder)) == 0
assert cli.main(["tables", "--profile", "smoke"]) == 0
assert figures.method_styles(["Toy, 2 %"])["Toy, 2 %"].color == "#123456"
"""


def test_a_method_is_one_file_one_entry_one_notebook_and_its_lines_in_the_profiles(tmp_path):
    for name in ("adlib", "adlib_book", "profiles"):
        shutil.copytree(root() / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "adlib/methods/toy.py").write_text(TOY)
    methods = tmp_path / "adlib/methods/__init__.py"
    entry = 'METHODS = {\n    "toy": Entry("adlib.methods.toy", "Toy", "17_toy", "#123456", "1"),'
    methods.write_text(methods.read_text().replace("METHODS = {", entry))
    profile = tmp_path / "profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("\nmethods:", "\nmethods:\n  toy: {image_size: 32}"))
    book = nbformat.read(notebook_jobs.notebook_path("11a_padim"), as_version=4)
    parameters = next(cell for cell in book.cells if cell.cell_type == "code")
    book.cells = [parameters, new_code_cell(RESULT, metadata={"tags": ["record"]})]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks/17_toy.ipynb")
    own = {name: value for name, value in os.environ.items() if not name.startswith("ADLIB_")}
    own |= {"PYTHONPATH": str(tmp_path), "ADLIB_DATA": str(data_dir())}
    done = subprocess.run([sys.executable, "-c", BATCH], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| demo / gear | [toy](" in (tmp_path / "results/tables/smoke_headline.md").read_text()
