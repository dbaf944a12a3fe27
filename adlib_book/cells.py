"""A notebook's code cells in this process: for checks that run many notebooks, where a kernel each would cost most.

A method notebook is a *result*, up to the cell tagged `record`, which writes it, and a *story* after it.
"""

import ast
import contextlib
import io
from pathlib import Path

from adlib.errors import InputError, suggest
from adlib.paths import root

RECORD = "record"


def notebook_path(name: str) -> Path:
    """Return the path of a notebook by name ("10_patchcore")."""
    folder = root() / "notebooks"
    file = folder / f"{name.removesuffix('.ipynb')}.ipynb"
    if not file.is_file():
        names = [f.stem for f in sorted(folder.glob("*.ipynb"))]
        raise InputError(f"notebook {name!r} does not exist{suggest(name, names)}; there are: {', '.join(names)}")
    return file


def code_cells(book, story: bool = True) -> list:
    """Return the code cells of a notebook; without the story, those up to the cell that writes the record."""
    result, rest = parts(book)
    return [cell for cell in (result + rest if story else result) if cell["cell_type"] == "code"]


def parts(book) -> tuple[list, list]:
    """Return the cells of a notebook up to the one that writes the record (all where there is none), and the others."""
    cells = book["cells"]
    end = next((i for i, cell in enumerate(cells) if RECORD in cell["metadata"].get("tags", [])), len(cells))
    return cells[: end + 1], cells[end + 1 :]


def run(name: str, parameters: dict | None = None, story: bool = True) -> tuple[dict, str]:
    """Run the code cells of `notebooks/<name>.ipynb` one after another.

    Args:
        name: for example "10_patchcore".
        parameters: replace those of the cell tagged `parameters`.
        story: also the cells after the record.

    Returns:
        the names that the cells have defined, and what they have printed.
    """
    import matplotlib
    import nbformat

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    book = nbformat.read(root() / "notebooks" / f"{name}.ipynb", as_version=4)
    names, printed = {"__name__": "__main__", "display": print}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(code_cells(book, story)):
            try:
                exec(compile(ast.parse(cell.source), f"{name}, code cell {number}", "exec"), names)
            except Exception as error:
                error.add_note(f"in code cell {number} of {name}: {cell.source[:200]}")
                raise
            finally:
                plt.close("all")
            if "parameters" in cell.metadata.get("tags", []):
                names |= parameters or {}
    return names, printed.getvalue()
