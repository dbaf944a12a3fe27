"""Where things are, whatever folder a notebook or a command is started from.

papermill runs a notebook in the caller's folder and nbval in the notebook's own, so a relative path means two
different places. Every path in the project therefore comes from here.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from adlib.errors import InputError

MIXED = "mixed"  # textures without a folder: patterns, 1/f noise, and the product's own images, distorted
PREFIX = ".adlib.tmp-"  # of everything temporary; what carries it and is locked by no process may be deleted


def root() -> Path:
    """Return the folder of the repository: `$ADLIB_ROOT`, or the folder that holds the package `adlib`."""
    return Path(os.environ.get("ADLIB_ROOT") or Path(__file__).resolve().parents[1]).resolve()


def data_dir() -> Path:
    """Return the folder of downloaded and generated data: `$ADLIB_DATA`, or `data/` in the repository."""
    return Path(os.environ.get("ADLIB_DATA") or root() / "data").resolve()


def texture_folder(name: str, image_path=None) -> Path | str | None:
    """Return the folder of source images of this name: as given, below `data/`, or beside an image's data set.

    "mixed" stays what it is. None for "". Where the folder of a name with a question mark is not there, what stands
    behind the mark counts: "dtd?mixed", or nothing ("dtd?").
    """
    name, optional, other = name.partition("?")
    if name in ("", MIXED):
        return name or None
    # <data root>/<data set>/<category>/train/good/000.png and <data root>/<name>; some layouts are a folder deeper.
    above = [] if image_path is None else Path(os.path.abspath(image_path)).parents[:7]
    places = (Path(name), data_dir() / name, *(folder / name for folder in above))
    folder = next((place for place in places if place.is_dir()), Path(name))
    return other or None if optional and not folder.is_dir() else folder


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

    Raises:
        InputError: `path` cannot be written, most often because the disk is full.
    """
    path = Path(path)
    # The suffix stays at the end because image and notebook writers choose their format by it.
    with writing(path), temporary_beside(path, path.suffix) as temporary:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; results are meant to be read
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path):
    """Turn what goes wrong while `path` is written, in whichever library, into one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        full, of_system = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT), isinstance(error, OSError)
        # numpy, torch and safetensors lose the number of the error: then the disk itself is asked.
        if not full and (not of_system or error.errno is None):
            full = "No space left" in str(error) or (
                type(error) in (OSError, RuntimeError) and shutil.disk_usage(_existing(path)).free < 2**20
            )
        if full:
            raise InputError(f"{path}: the disk is full; free space there and run the command again") from error
        if of_system and Path(str(error.filename or path)).name.startswith((PREFIX, Path(path).name)):
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
        raise


@contextlib.contextmanager
def temporary_beside(path, suffix: str | None = None):
    """Yield a temporary path in the folder of `path`: a file of this suffix, or a folder; delete it in the end.

    What killed processes have left there is deleted first.
    """
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    if suffix is None:
        temporary = tempfile.mkdtemp(prefix=PREFIX, dir=folder)
        handle = os.open(temporary, os.O_RDONLY)
    else:
        handle, temporary = tempfile.mkstemp(prefix=PREFIX, suffix=suffix, dir=folder)
    try:
        with contextlib.suppress(OSError):  # some network file systems know no locks; nothing is swept there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        yield Path(temporary)
    finally:
        os.close(handle)
        _delete(Path(temporary))


def digest_of(content: dict | bytes) -> str:
    """Return the digest of bytes, or of what a JSON file holds: it carries it as "digest", which does not count."""
    if isinstance(content, dict):
        content = json.dumps({k: v for k, v in content.items() if k != "digest"}, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@functools.cache  # once per process: a folder of ten thousand maps is not listed for each of them
def _sweep(folder: Path) -> None:
    for leftover in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(leftover)
            finally:
                os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _existing(path) -> Path:
    return next(folder for folder in Path(os.path.abspath(path)).parents if folder.is_dir())


@functools.cache  # to ask for it is to set it, which two threads must not do at once
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
