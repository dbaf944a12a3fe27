"""Fitted methods on disk: one folder with `model.json` (readable) and `model.safetensors` (arrays, no pickle)."""

import contextlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import adlib
from adlib.errors import InputError
from adlib.paths import atomic_path


def save_model(path, method: str, settings: dict, tensors: dict[str, torch.Tensor], **facts) -> Path:
    """Write a fitted method to the folder `path`; an older model there is replaced only by a complete new one."""
    path = Path(path)
    if path.is_file():
        raise InputError(f"model folder {path} is a file; give a folder")
    header = {"adlib": adlib.__version__, "method": method, "settings": settings, **facts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    # The description goes last: a folder without it is not a model.
    with atomic_path(path / "model.json") as temporary:
        temporary.write_text(json.dumps(header, indent=2) + "\n")
    return path


def read_header(path) -> dict:
    """Read the description of a saved model."""
    file = Path(path) / "model.json"
    if not file.is_file():
        raise InputError(f"{path} holds no model (no model.json); make one with: adlib train -i GOOD_DIR -o {path}")
    try:
        header = json.loads(file.read_text())
        header["method"], header["settings"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{file} is damaged: expected the JSON description of a model; train it again") from None
    return header


def read_model(path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read the description and the tensors of a saved model."""
    header = read_header(path)
    file = Path(path) / "model.safetensors"
    try:
        return header, load_file(file)
    except (FileNotFoundError, SafetensorError, OSError):
        raise InputError(f"{file} is missing or damaged; train the model again") from None


@contextlib.contextmanager
def parts_of(path):
    """Take a model's parts into use: what is missing there, or does not fit its settings, becomes one line.

    >>> with parts_of("model/"):  # doctest: +SKIP
    ...     method.memory_bank = tensors["memory_bank"]
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0].strip()
        raise InputError(f"model {path} is damaged ({reason}); train it again") from None


def update_header(path, **facts) -> None:
    """Add facts (a threshold, for example) to the description of a saved model."""
    header = read_header(path) | facts
    with atomic_path(Path(path) / "model.json") as temporary:
        temporary.write_text(json.dumps(header, indent=2) + "\n")
