"""Which files a result depends on: the modules that its code imports, and all that they import."""

import ast
import functools
from pathlib import Path

from adlib.methods import METHODS


def imported_modules(code: str) -> list[str]:
    """Return the modules of the repository that Python code imports, inside functions too; some names are no module."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("adlib")]


def of_modules(names) -> tuple[Path, ...]:
    """Return the files of modules and of all that they import, sorted."""
    waiting, files = [file for name in names for file in module_files(name)], set()
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.add(file)
            waiting += _imported_files(file)
    return tuple(sorted(files))


@functools.cache
def of_method(method: str) -> tuple[Path, ...]:
    """Return the files that a result of `method` depends on: its own, the evaluation, and all that they import.

    A changed line in another method's file therefore leaves this method's results up to date.
    """
    return of_modules([METHODS[method].module, "adlib.evaluation"])


def module_files(name: str) -> list[Path]:
    """Return the file of a module; none where the name is none of the repository's."""
    place = Path(__file__).parents[1] / name.replace(".", "/")
    return [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]


@functools.cache
def _imported_files(file: Path) -> tuple[Path, ...]:  # parsing is slow, and every method imports much the same
    return tuple(file for name in imported_modules(file.read_text()) for file in module_files(name))
