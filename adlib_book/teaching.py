"""Exercises: self-checks, and copies of the notebooks for students.

The committed notebooks are the solved ones, so that the tests run the solutions too. An exercise is a Markdown cell
with the task, code cells tagged `solution` (folded where notebooks are shown), and a cell that checks the answer.
"""

import ast
import copy
from pathlib import Path

import nbformat
import numpy as np

from adlib.errors import InputError
from adlib.paths import atomic_path, root
from adlib_book.cells import notebook_path

STUB = "# your code here"


def check(
    name: str, answer, expected, tolerance: float = 1e-6, hint: str = "have another look at the text above"
) -> None:
    """Print "name: right" if an answer is a number or array near the expected one, and stop the notebook if it is not.

    Args:
        name: what is checked, for the message.
        answer: a number, or an array or list of numbers; None where the student has not written anything yet.
        expected: the same kind and shape.
        tolerance: largest absolute difference.
        hint: what to think of where the answer is wrong.
    """
    if answer is None:
        raise AssertionError(f"{name}: not answered yet; complete the cell marked {STUB!r}, run it, then run this one")
    try:
        got = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        raise AssertionError(f"{name}: expected numbers, got {answer!r}") from None
    expected = np.asarray(expected, dtype=float)
    if got.shape != expected.shape:
        raise AssertionError(f"{name}: expected an answer of shape {expected.shape}, got {got.shape}")
    if not np.allclose(got, expected, rtol=0, atol=tolerance):
        text = f", got {answer!r}" if got.size <= 9 else f" in {np.sum(np.abs(got - expected) > tolerance)} places"
        raise AssertionError(f"{name}: not yet right{text}; {hint}")
    print(f"{name}: right")


def fold_solutions(book) -> None:
    """Fold the solution cells of a notebook, in place: Jupyter shows them closed until a reader opens them."""
    for cell in book.cells:
        if is_solution(cell):
            cell.metadata["jupyter"] = {"source_hidden": True}


def is_solution(cell) -> bool:
    """Whether a cell holds the solution of an exercise."""
    return cell.cell_type == "code" and "solution" in cell.metadata.get("tags", [])


def student_copy(book):
    """Return a copy of a solved notebook in which every solution is a stub.

    What comes before the first stub keeps its outputs; what comes after it loses them, because it depends on answers.
    """
    book, begun = copy.deepcopy(book), False
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        if is_solution(cell):
            cell.source, begun = stub(cell.source), True
            cell.metadata["tags"] = [*(tag for tag in cell.metadata.tags if tag != "solution"), "exercise"]
            cell.metadata.pop("jupyter", None)
        if begun:
            cell.outputs, cell.execution_count = [], None
    return book


def stub(solution: str) -> str:
    """Return what a student finds in place of a solution: its names and signatures without what they stand for.

    >>> print(stub("import math\\nhalf = 0.5 * 3"))
    import math
    half = None  # your code here
    >>> print(stub("def twice(x):\\n    return 2 * x"))
    def twice(x):
        # your code here
        raise NotImplementedError("complete twice where it says '# your code here', then run this cell again")
    """
    lines = []
    for statement in ast.parse(solution).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            lines.append(ast.get_source_segment(solution, statement))
        elif isinstance(statement, ast.FunctionDef):
            message = f"complete {statement.name} where it says {STUB!r}, then run this cell again"
            docstring = statement.body[:1] if ast.get_docstring(statement) else []
            statement.body = [*docstring, ast.Pass()]
            *head, _ = ast.unparse(statement).splitlines()  # all but the line "pass"
            lines += [*(["", ""] if lines else []), *head, f"    {STUB}", f"    raise NotImplementedError({message!r})"]
        elif isinstance(statement, ast.Assign):
            names = [name.id for target in statement.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            lines += [f"{name} = None  {STUB}" for name in names]
        else:
            lines.append(STUB)
    return "\n".join(lines).strip("\n")


def write_student_copies(out, names=(), force: bool = False) -> tuple[list[Path], list[Path]]:
    """Write student copies of notebooks.

    Args:
        out: folder for the copies.
        names: notebooks ("10_patchcore"); none: all that have exercises.
        force: replace copies that are there; without it they are left alone, for a student may have worked in them.

    Returns:
        the files written, and those left alone.
    """
    out = Path(out)
    if out.resolve() == (root() / "notebooks").resolve():
        raise InputError(f"{out} holds the solved notebooks; give another folder for the student copies")
    books = [notebook_path(name) for name in names] or sorted((root() / "notebooks").glob("[!.]*.ipynb"))
    copies, copies_kept = [], []
    for file in books:
        book = nbformat.read(file, as_version=4)
        if not any(map(is_solution, book.cells)):
            if names:
                raise InputError(f"{file.name} has no exercise: no cell is tagged 'solution'")
            continue
        target = out / file.name
        if target.exists() and not force:
            copies_kept.append(target)
            continue
        with atomic_path(target) as temporary:
            nbformat.write(student_copy(book), temporary)
        copies.append(target)
    return copies, copies_kept
