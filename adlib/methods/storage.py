"""Fitted methods on disk: one folder with `model.json` (readable) and `model-<digest>.safetensors` (arrays, no pickle).

`model.json` is written last and names the arrays by their digest, and itself by its own: whenever a process is killed,
the folder holds the old model or the new one, and a bit that has changed since is seen.

A method declares what it consists of once fitted, and both directions follow from that:

    STATE = storage.State(modules=("network",), facts=("shape",))
    save, load = storage.save, classmethod(storage.load)
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import adlib
from adlib.errors import InputError
from adlib.paths import atomic_path, digest_of
from adlib.settings import as_dict

FORMAT = 3  # of the folder; 1 had no number, 2 no digest of the description


class State(NamedTuple):
    """The attributes that a fitted method consists of, by what they are.

    Attributes:
        modules: networks. `method.build_networks()` makes them, from settings and facts, before their weights are read.
        tensors: tensors, read onto the method's device.
        arrays: numpy arrays; of every method the scores and map maxima of normal images, which thresholds are made of.
        facts: numbers, texts, lists of them: they stand readable in `model.json`. Tuples are read as tuples.
    """

    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ("normal_scores", "normal_map_maxima")
    facts: tuple[str, ...] = ()


def check_fitted(method, *more: str) -> None:
    """Refuse a method that lacks what scores are made with, or an attribute of `more`; `fit` or `load` makes both.

    Normal scores (`STATE.arrays`) are not among the former: `fit` itself makes them by `score`.
    """
    for name in (*method.STATE.modules, *method.STATE.tensors, *method.STATE.facts, *more):
        if not hasattr(method, name):
            raise InputError(f"this {method.name} is not fitted; call fit(table) first")


def save(method, path, **facts) -> Path:
    """Write a fitted method to the folder `path`; `facts`, as its thresholds, stand in the description too."""
    state = method.STATE
    check_fitted(method, *state.arrays)
    tensors = {name: getattr(method, name) for name in state.tensors}
    tensors |= {name: torch.from_numpy(np.ascontiguousarray(getattr(method, name))) for name in state.arrays}
    for name in state.modules:
        tensors |= {f"{name}.{key}": value for key, value in getattr(method, name).state_dict().items()}
    facts |= {name: getattr(method, name) for name in state.facts}
    return save_model(path, method.name, as_dict(method.settings), tensors, **_fingerprint(method), **facts)


def load(cls, path):
    """Read a fitted method from the folder that `save` wrote.

    Raises:
        InputError: the folder is no model, is damaged or older, or belongs to other weights of the backbone.
    """
    header, tensors = read_model(path)
    with parts_of(path):
        method = cls(**header["settings"])
        for name, value in _fingerprint(method).items():
            if header.get(name) != value:
                raise InputError(
                    f"{path} was made with other weights of backbone {method.backbone.name!r} than those found here; "
                    "use the same weights or fit again"
                )
        state = cls.STATE
        for name in state.facts:
            setattr(method, name, _tuples(header[name]))
        for name in state.tensors:
            setattr(method, name, tensors[name].to(method.device))
        for name in state.arrays:
            setattr(method, name, tensors[name].numpy())
        if state.modules:
            method.build_networks()
        for name in state.modules:
            getattr(method, name).load_state_dict(below(f"{name}.", tensors))
            getattr(method, name).eval()
    return method


def _fingerprint(method) -> dict:
    backbone = getattr(method, "backbone", None)  # DRAEM has none
    return {} if backbone is None else {"backbone_fingerprint": backbone.fingerprint}


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def below(prefix: str, tensors: dict) -> dict:
    """Return the entries whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def save_model(path, method: str, settings: dict, tensors: dict[str, torch.Tensor], **facts) -> Path:
    """Write a fitted method to the folder `path`; an older model there is replaced only by a complete new one."""
    path = Path(path)
    if path.is_file():
        raise InputError(f"model folder {path} is a file; give a folder")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "adlib": adlib.__version__, "method": method, "settings": settings}
    header |= {"tensors_digest": digest(tensors), **facts}
    with atomic_path(tensors_file(path, header)) as temporary:
        save_file(tensors, temporary)
    _write_header(path, header)
    return path


def tensors_file(path, header: dict) -> Path:
    """Return the file of the arrays that a description names."""
    return Path(path) / f"model-{header['tensors_digest']}.safetensors"


def _write_header(path, header: dict) -> None:
    """Write the description; with it the tensors that it names become the model, and all others are deleted."""
    with atomic_path(Path(path) / "model.json") as temporary:
        temporary.write_text(json.dumps(header | {"digest": digest_of(header)}, indent=2, allow_nan=False) + "\n")
    for file in Path(path).glob(f"model-{'[0-9a-f]' * 32}.safetensors"):
        if file != tensors_file(path, header):
            file.unlink(missing_ok=True)


def read_header(path) -> dict:
    """Read the description of a saved model."""
    file = Path(path) / "model.json"
    if not file.is_file():
        raise InputError(f"{path} holds no model (no model.json); make one with: adlib train -i GOOD_DIR -o {path}")
    try:
        header = json.loads(file.read_text())
        if header.get("format") != FORMAT:
            again = f"adlib train --method {header['method']} -i GOOD_DIR -o {path}"
            raise InputError(f"{file} is of another version of adlib ({header.get('adlib')}); train it again: {again}")
        whole = header["digest"] == digest_of(header)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        whole = False
    if not whole:
        raise InputError(f"{file} is damaged or was changed by hand; train the model again")
    return header


def read_model(path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read the description and the tensors of a saved model."""
    header = read_header(path)
    file = tensors_file(path, header)
    try:
        tensors = load_file(file)
    except (FileNotFoundError, SafetensorError, OSError):
        raise InputError(f"{file} is missing or damaged; train the model again") from None
    if header.get("tensors_digest") != digest(tensors):
        raise InputError(f"{file} is not the one that model.json describes; train the model again")
    return header, tensors


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of names, types, shapes and values."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        total.update(array.numpy().tobytes())
    return total.hexdigest()


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
    _write_header(path, read_header(path) | facts)
