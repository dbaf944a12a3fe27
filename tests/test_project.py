"""The repository itself: environments agree, notebooks keep the house's rules, nothing points at one machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from adlib import profiles
from adlib.paths import root
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


@pytest.mark.parametrize("name", sorted(notebook_jobs.METHOD_NOTEBOOKS.values()))
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
