"""Exercises: self-checks, student copies, and what every committed notebook must hold to."""

import ast
import itertools

import nbformat
import numpy as np
import pytest
from conftest import refused
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from adlib.paths import root
from adlib.synthesis import registry
from adlib_book import cli, teaching

NOTEBOOKS = sorted((root() / "notebooks").glob("[!.]*.ipynb"))
# Self-checks of these read what the notebook has computed before, so they only run in the notebook itself (nbval).
NEED_THE_NOTEBOOK = {"00_start_here", "01_data"}


# -- self-checks ------------------------------------------------------------------------------------------------------


def test_check_right_says_so(capsys):
    teaching.check("area", [1, 2.0000001], np.array([1, 2]))
    assert capsys.readouterr().out == "area: right\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "not answered yet"),
        (3.0, "not yet right, got 3.0; count twice$"),
        ([2.0], "shape"),
        ("two", "expected numbers, got 'two'"),
        (float("nan"), "not yet right"),
        (2.001, "not yet right"),
    ],
)
def test_check_wrong_stops_with_a_reason(answer, message):
    with pytest.raises(AssertionError, match=message) as error:
        teaching.check("exercise 2", answer, 2, hint="count twice")
    assert str(error.value).startswith("exercise 2: ")


def test_check_of_a_large_array_does_not_print_it():
    with pytest.raises(AssertionError, match="in 1 places"):
        teaching.check("map", np.eye(30), np.eye(30) + 0.5 * (np.arange(900) == 7).reshape(30, 30))


# -- stubs ------------------------------------------------------------------------------------------------------------


SOLUTION = """import math
@register('dust')
def area(r: float, *, unit='px'):
    '''Area of a circle.'''
    return math.pi * r * r  # the answer
half, whole = 0.5, 1
print(area(1))"""


def test_stub_keeps_all_but_the_answer():
    made = teaching.stub(SOLUTION)
    assert made.startswith(SOLUTION[: SOLUTION.index("    '''")].replace("math\n", "math\n\n\n"))
    assert "Area of a circle" in made
    assert made.endswith(f"half = None  {teaching.STUB}\nwhole = None  {teaching.STUB}\n{teaching.STUB}")
    assert "math.pi" not in made


def solved() -> nbformat.NotebookNode:
    """A small solved notebook: a measurement, an exercise with its check, and a cell that builds on it."""
    cells = [
        new_markdown_cell("# Circles"),
        new_code_cell("from adlib_book.teaching import check\nprint('radius', 2)"),
        new_markdown_cell("## Exercise\n\nComplete `area`."),
        new_code_cell("def area(r):\n    return 3.14159 * r * r", metadata={"tags": ["solution"]}),
        new_code_cell("check('area of a circle', area(2), 12.56636)"),
        new_code_cell("double = 2 * area(2)", metadata={"tags": ["solution"]}),
        new_code_cell("check('double', double, 25.13272)\nprint('all done')"),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def execute(book):
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    return book


def test_a_student_copy_stops_at_its_first_check_and_runs_through_with_the_solutions_back():
    book = solved()
    teaching.fold_solutions(book)
    student = teaching.student_copy(execute(book))
    assert student.cells[1].outputs
    assert not any(cell.outputs or cell.execution_count for cell in student.cells[3:])
    assert not any("solution" in cell.metadata.get("tags", []) or "jupyter" in cell.metadata for cell in student.cells)
    with pytest.raises(CellExecutionError, match="complete area where it says"):
        execute(student)
    assert student.cells[1].outputs[0].text == "radius 2\n"
    assert student.cells[4].outputs[-1].output_type == "error"  # the first check, and nothing after it
    assert not student.cells[6].outputs

    for mine, theirs in zip(student.cells, book.cells, strict=True):
        if "exercise" in mine.metadata.get("tags", []):
            mine.source = theirs.source
    execute(student)
    assert student.cells[6].outputs[-1].text == "double: right\nall done\n"
    assert all(cell.source == other.source for cell, other in zip(student.cells, book.cells, strict=True))


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_writes_copies_and_does_not_touch_work(tmp_path, capsys):
    assert cli.main(["student", str(tmp_path), "10_patchcore"]) == 0
    file = tmp_path / "10_patchcore.ipynb"
    book = nbformat.read(file, as_version=4)
    assert sum(teaching.STUB in cell.source for cell in book.cells) == 1
    file.write_text("my answers")
    assert cli.main(["student", str(tmp_path), "10_patchcore"]) == 0  # as `make student` again and again
    assert "left alone" in capsys.readouterr().err
    assert file.read_text() == "my answers"
    assert cli.main(["student", str(tmp_path), "10_patchcore", "--force"]) == 0
    assert file.read_text() != "my answers"


def test_without_names_all_notebooks_with_exercises_are_copied(tmp_path):
    written, kept = teaching.write_student_copies(tmp_path)
    with_exercises = [f.name for f in NOTEBOOKS if any(map(teaching.is_solution, nbformat.read(f, as_version=4).cells))]
    assert [file.name for file in written] == with_exercises
    assert not kept


def test_command_refuses_what_has_no_exercise(tmp_path, capsys, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("print(1)")]), tmp_path / "notebooks/plain.ipynb")
    monkeypatch.setenv("ADLIB_ROOT", str(tmp_path))
    assert cli.main(["student", str(tmp_path / "out"), "plain"]) == 2
    assert "plain.ipynb has no exercise" in capsys.readouterr().err


def test_solved_notebooks_are_never_overwritten():
    refused("solved notebooks", teaching.write_student_copies, root() / "notebooks", force=True)


# -- every committed notebook -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_frame_of_a_notebook(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    assert "**Afterwards you can**" in prose[0]
    assert "## Take away" in "".join(prose)
    assert any("## Exercise" in text for text in prose[-4:]), "at the end, so that a student copy loses nothing"
    named = {f"`{other.stem}`" for other in NOTEBOOKS if other != path}
    assert [name for name in named if name in "".join(prose)] == [], "names that are no links"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_of_a_notebook(path):
    book = nbformat.read(path, as_version=4)
    student = teaching.student_copy(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    copies = {cell.id: cell for cell in student.cells}
    begun = False
    for number, cell in enumerate(code):
        if teaching.is_solution(cell):
            begun = True
            assert cell.metadata.get("jupyter", {}).get("source_hidden"), "in sight: adlib notebook NAME --refresh"
            checks = [c.source for c in code[number + 1 :] if "nbval-check-output" in c.metadata.get("tags", [])]
            assert any(name in "\n".join(checks) for name in defined(cell.source)), "no self-check reads this solution"
            assert teaching.STUB in copies[cell.id].source
            compile(copies[cell.id].source, path.name, "exec")
            copies[cell.id].source = cell.source  # the solution put back
        assert bool(copies[cell.id].outputs) == (bool(cell.outputs) and not begun)
    assert [cell.source for cell in student.cells] == [cell.source for cell in book.cells]


def defined(source: str) -> list[str]:
    """Names that a cell defines."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return names


def exercises_of(book) -> list[tuple[str, str]]:
    """Pairs of a solution and the self-check after it."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    return [(a.source, b.source) for a, b in itertools.pairwise(code) if teaching.is_solution(a)]


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in NEED_THE_NOTEBOOK], ids=lambda p: p.stem
)
def test_self_checks_refuse_the_stub_and_accept_the_solution(path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_families", dict(registry._families))  # an exercise registers a family
    book = nbformat.read(path, as_version=4)
    names = {}
    for cell in book.cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
            imports = [n for n in ast.parse("\n".join(lines)).body if isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), path.name, "exec"), names)
    for solution, self_check in exercises_of(book):
        ours = "check(" in self_check  # others print what is expected: a reader compares
        errors, message = ((NotImplementedError, AssertionError), teaching.STUB) if ours else (Exception, None)
        with pytest.raises(errors, match=message):
            exec(teaching.stub(solution) + "\n" + self_check, names)
        exec(solution + "\n" + self_check, names)
        assert not ours or ": right" in capsys.readouterr().out
