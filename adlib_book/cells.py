"""A notebook's code cells in this process: for checks that run many notebooks, where a kernel each would cost most.

A method notebook is a *result*, up to the cell tagged `record`, which writes it, and a *story* after it.
"""

import ast
import contextlib
import io
import json
import traceback
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


def declared_parameters(notebook: Path) -> dict[str, ast.AnnAssign]:
    """Return the parameters that a notebook declares, by name: statements with `annotation` and `value`."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if "parameters" in c["metadata"].get("tags", ())]
    lines = ast.parse("\n".join("".join(cell["source"]) for cell in cells)).body
    return {line.target.id: line for line in lines if isinstance(line, ast.AnnAssign)}


def run(name: str, parameters: dict | None = None, story: bool = True) -> tuple[dict, str]:
    """Run the code cells of `notebooks/<name>.ipynb` one after another.

    Args:
        name: for example "10_patchcore".
        parameters: replace those of the cell tagged `parameters`.
        story: also the cells after the record.

    Returns:
        the names that the cells have defined, and what they have printed.
    """
    book = json.loads((root() / "notebooks" / f"{name}.ipynb").read_text())
    book["cells"] = code_cells(book, story)
    names = execute(book, parameters or {})
    return names, "".join(output.get("text", "") for cell in book["cells"] for output in cell["outputs"])


def execute(book: dict, parameters: dict) -> dict:
    """Run the code cells of a notebook; each keeps, as its outputs, what it prints and the error that stopped it.

    Args:
        book: the notebook as JSON; a cell with `parameters` is put behind the one that is tagged so.

    Returns:
        the names that the cells have defined.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    injected = {"cell_type": "code", "id": "injected", "metadata": {"tags": ["injected-parameters"]}, "source": values}
    for i, cell in enumerate(book["cells"]):
        if parameters and "parameters" in cell["metadata"].get("tags", []):
            book["cells"].insert(i + 1, injected)
    names, cells = {"__name__": "__main__", "display": print}, code_cells(book)
    for cell in cells:
        cell |= {"execution_count": None, "outputs": []}
    for number, cell in enumerate(cells, start=1):
        cell["execution_count"] = number
        printed, source = io.StringIO(), "".join(cell["source"])
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(source, f"code cell {number}", "exec"), names)
        except Exception as error:
            error.add_note(f"in code cell {number}: {source[:200]}")
            facts = {"ename": type(error).__name__, "evalue": str(error)}
            cell["outputs"].append({"output_type": "error", "traceback": traceback.format_exc().splitlines()} | facts)
            raise
        finally:
            if text := printed.getvalue():
                cell["outputs"].insert(0, {"output_type": "stream", "name": "stdout", "text": text})
            plt.close("all")
    return names
