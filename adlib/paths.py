"""Where things are, whatever folder a notebook or a command is started from.

papermill runs a notebook in the caller's folder and nbval in the notebook's own, so a relative path means two
different places. Every path in the project therefore comes from here.
"""

import contextlib
import os
import tempfile
from pathlib import Path


def root() -> Path:
    """Return the folder of the repository: `$ADLIB_ROOT`, or the folder that holds the package `adlib`."""
    return Path(os.environ.get("ADLIB_ROOT") or Path(__file__).resolve().parents[1]).resolve()


def data_dir() -> Path:
    """Return the folder of downloaded and generated data: `$ADLIB_DATA`, or `data/` in the repository."""
    return Path(os.environ.get("ADLIB_DATA") or root() / "data").resolve()


def results_dir() -> Path:
    """Return the folder of run records and tables: `$ADLIB_RESULTS`, or `results/` in the repository."""
    return Path(os.environ.get("ADLIB_RESULTS") or root() / "results").resolve()


def figures_dir() -> Path:
    """Return the folder that figures are written to: `$ADLIB_FIGURES`, or `figures/` in the results.

    A batch and `adlib notebook` set the variable: to `results/figures/<profile>`, or with `--refresh` to the committed
    `figures/` of the repository, which nothing else writes.
    """
    return Path(os.environ.get("ADLIB_FIGURES") or results_dir() / "figures").resolve()


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; move it into place when the block ends without an error.

    A reader therefore sees the old file or the whole new one, never a half: a full disk or a killed process
    leaves the old file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end because image and notebook writers choose their format by it.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(temporary)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; results are meant to be read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
